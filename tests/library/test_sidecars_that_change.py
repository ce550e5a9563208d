"""Sidecars that come, go and change after the first scan: they are read again, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import networks
from support.failing_disk import fail_at

from hnetkit.cli import run
from hnetkit.library import sidecars
from hnetkit.library.scan import FileChange, recheck, scan
from hnetkit.registry import Registry

VERSION = {
    "id": 33,
    "modelId": 11,
    "name": "v1",
    "trainedWords": ["inkwash", "wash"],
    "model": {"name": "Ink Wash", "type": "Hypernetwork", "description": "wet ink", "tags": ["style"]},
}


@pytest.fixture
def folder(tmp_path: Path, registry: Registry) -> Path:
    """``ink.pt`` and ``dots.pt``, scanned."""
    made = tmp_path / "models"
    made.mkdir()
    for seed, name in enumerate(("ink.pt", "dots.pt")):
        networks.network_file(made, name, seed=seed)
    list(scan(registry, [made]))
    return made


def told(found: Iterator[FileChange]) -> list[tuple[str, str]]:
    return [(change.what, Path(change.path).name) for change in found]


def said(registry: Registry, stem: str = "ink") -> dict[str, Any]:
    (file,) = (row for row in registry.files.rows() if row["stem"] == stem)
    return registry.files.sidecars([file["id"]]).get(file["id"], {})


@pytest.mark.parametrize("suffix", sidecars.SUFFIXES)
def test_every_kind_of_sidecar_is_noticed_when_it_comes_changes_and_goes(
    registry: Registry, folder: Path, suffix: str
) -> None:
    path = folder / f"ink{suffix}"
    contents: list[bytes | None] = [b'{"description": "one"}', b'{"description": "second"}', None]
    if suffix in sidecars.PREVIEWS:  # what is in a picture is not read
        contents = [b"picture", None]
    for content in contents:
        path.unlink() if content is None else path.write_bytes(content)
        shown = told(scan(registry))
        is_news = suffix not in (sidecars.INFO, sidecars.API_INFO, sidecars.STABILITY_MATRIX, sidecars.LORA_MANAGER)
        assert shown == ([("sidecars", "ink.pt")] if is_news else []), "these four say nothing by that key"
        assert told(scan(registry)) == []
    assert said(registry) == {}


def test_what_comes_after_the_first_scan_is_read_by_a_scan_and_by_a_check(registry: Registry, folder: Path) -> None:
    (folder / "ink.json").write_text('{"activation text": "ink wash", "notes": "best at night"}')
    assert told(scan(registry)) == [("sidecars", "ink.pt")]
    assert (said(registry)["activation_text"], said(registry)["notes"]) == ("ink wash", "best at night")
    (folder / "ink.json").write_text('{"notes": "or by day"}')
    assert told(recheck(registry)) == [("sidecars", "ink.pt")]
    assert said(registry) == {"notes": "or by day"}
    assert told(scan(registry)) == told(recheck(registry)) == []


def test_where_only_sidecars_changed_no_network_is_read(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ink.txt").write_text("words")
    fail_at(monkeypatch, folder / "ink.pt", errno.EIO, "open")
    fail_at(monkeypatch, folder / "dots.pt", errno.EIO, "open")
    assert told(scan(registry)) == [("sidecars", "ink.pt")]


def test_files_of_one_stem_and_every_copy_hear_of_their_sidecars(registry: Registry, folder: Path) -> None:
    (folder / "sub").mkdir()
    for name in ("ink.ckpt", "sub/ink.pt"):
        shutil.copy(folder / "ink.pt", folder / name)
    list(scan(registry))
    (folder / "ink.txt").write_text("words")
    assert sorted(told(scan(registry))) == [("sidecars", "ink.ckpt"), ("sidecars", "ink.pt")]


def test_a_registry_that_does_not_know_what_sidecars_looked_like_reads_them_once(
    registry: Registry, folder: Path
) -> None:
    (folder / "ink.txt").write_text("words")
    list(scan(registry))
    with registry.write():
        for row in registry.files.rows():
            registry.files.put_sidecars(row["id"], {}, None)
    assert told(scan(registry)) == [("sidecars", "ink.pt")]
    assert told(scan(registry)) == []


# --- what cannot be read


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_sidecar_that_cannot_be_read_at_the_moment_keeps_what_it_said_and_is_tried_again(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    (folder / "ink.json").write_text('{"notes": "mine"}')
    (folder / "ink.txt").write_text("words")
    list(scan(registry))
    (folder / "ink.txt").write_text("other words")
    with monkeypatch.context() as patch:
        fail_at(patch, folder / "ink.json", number, "open")
        assert told(scan(registry)) == [("sidecars", "ink.pt"), ("unread", "ink.json")]
        (unread,) = scan(registry)
        assert unread.reason == f"{folder / 'ink.json'}: {os.strerror(number)}"
        os.utime(folder / "ink.pt", (1, 1))
        assert told(scan(registry)) == [("changed", "ink.pt"), ("unread", "ink.json")]
        assert (said(registry)["notes"], said(registry)["description"]) == ("mine", "other words")
    assert told(scan(registry)) == [("sidecars", "ink.pt")], "that it could not be read is no longer said"
    assert said(registry) == {"notes": "mine", "description": "other words"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ('{"notes": "café"}'.encode("cp1252"), "not UTF-8; save it as UTF-8"),
        ('{"notes": "训练"}'.encode("gbk"), "not UTF-8; save it as UTF-8"),
        (b'{"notes": "mi', "not valid JSON: Unterminated string starting at: line 1 column 11 (char 10)"),
        (b'{"notes": "mine",}', "not valid JSON: "),
        (b"[1]", "JSON, but nothing that a program writes there"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_a_sidecar_that_is_not_understood_is_named_once_with_the_reason(
    registry: Registry, folder: Path, data: bytes, reason: str
) -> None:
    (folder / "ink.json").write_bytes(data)
    network, unread = scan(registry)
    assert (network.what, unread.what, unread.path) == ("sidecars", "unread", str(folder / "ink.json"))
    assert unread.reason is not None
    assert unread.reason.startswith(f"{folder / 'ink.json'}: {reason}")
    assert said(registry)["unreadable"][0].startswith(f"ink.json: {reason}")
    assert told(scan(registry)) == []


def test_a_new_network_with_a_sidecar_that_is_not_understood_is_stored_and_the_command_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ink.json").write_bytes(b"{")
    assert run(["scan", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["new", str(folder / "dots.pt")],
        ["new", str(folder / "ink.pt")],
        ["unread", str(folder / "ink.json")],
    ]
    assert "1 file could not be read" in err
    assert run(["scan"]) == 0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_windows_own_encodings_are_read(registry: Registry, folder: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (folder / "ink.json").write_bytes((mark + '{"notes": "水墨"}').encode(encoding))
    (folder / "ink.txt").write_bytes((mark + "Mal café").encode(encoding))
    list(scan(registry))
    assert said(registry) == {"notes": "水墨", "description": "Mal café"}


def test_a_listing_that_breaks_off_says_nothing_of_sidecars(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ink.txt").write_text("words")
    list(scan(registry))
    listing = os.scandir

    def breaking(path: Any) -> Any:
        with closing(listing(path)) as entries:
            known = [entry for entry in entries if entry.name == "ink.pt"]

        def entries_then_error() -> Iterator[Any]:
            yield from known
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        class Broken:
            def __enter__(self) -> Iterator[Any]:
                return entries_then_error()

            def __exit__(self, *_: object) -> None: ...

        return Broken()

    monkeypatch.setattr(os, "scandir", breaking)
    assert told(scan(registry)) == [("unread", "models")]
    assert said(registry) == {"description": "words"}


# --- what they say


def test_trigger_words_title_tags_and_description_of_civitai_info_are_read(registry: Registry, folder: Path) -> None:
    (folder / "ink.civitai.info").write_text(json.dumps(VERSION))
    list(scan(registry))
    found = said(registry)
    assert (found["activation_text"], found["title"], found["tags"]) == ("inkwash, wash", "Ink Wash", ["style"])
    assert found["description"] == "wet ink"


def test_trigger_words_of_lora_manager_are_read(registry: Registry, folder: Path) -> None:
    (folder / "ink.metadata.json").write_text(json.dumps({"model_name": "Ink", "civitai": VERSION}))
    list(scan(registry))
    assert said(registry)["activation_text"] == "inkwash, wash"


def test_a_person_s_own_trigger_words_come_before_a_site_s(registry: Registry, folder: Path) -> None:
    (folder / "ink.civitai.info").write_text(json.dumps(VERSION))
    (folder / "ink.json").write_text('{"activation text": "mine", "description": "my own"}')
    list(scan(registry))
    assert (said(registry)["activation_text"], said(registry)["description"]) == ("mine", "my own")


def test_a_scan_of_what_has_not_changed_opens_nothing_and_looks_once_at_each_file(
    registry: Registry, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        networks.network_file(folder, f"n{number}.pt", seed=10 + number)
        (folder / f"n{number}.txt").write_text("words")
        (folder / f"n{number}.preview.png").write_bytes(b"")
    list(scan(registry))
    looked: list[str] = []
    opened: list[str] = []
    stat, open_file = os.stat, os.open
    monkeypatch.setattr(os, "stat", lambda path, **more: looked.append(str(path)) or stat(path, **more))
    monkeypatch.setattr(os, "open", lambda path, *more, **named: opened.append(path) or open_file(path, *more, **named))
    assert told(scan(registry)) == []
    assert opened == []
    files = [path for path in looked if path.startswith(f"{folder}{os.sep}")]
    assert sorted(files) == sorted(map(str, folder.iterdir()))
