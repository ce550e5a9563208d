"""Libraries as they are found: links across folders, files that rot, move and claim nonsense, names of any bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import networks

from hnetkit.errors import FileRefused
from hnetkit.library.resolve import resolve
from hnetkit.library.scan import recheck, scan
from hnetkit.registry import Registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    return made


def changes(registry: Registry, *folders: Path) -> list[tuple[str, str]]:
    return sorted((change.what, Path(change.path).name) for change in scan(registry, folders))


def paths(registry: Registry) -> list[str]:
    return sorted(row["path"] for row in registry.files.rows())


def tag(registry: Registry, name: str, *tags: str) -> None:
    with registry.write():
        registry.networks.add_tags(registry.networks.id_of(resolve(registry, name).content_hash), tags)


@pytest.mark.parametrize(
    "claim",
    [
        {"step": 10**30},
        {"step": -(2**63) - 1},
        {"name": "x\ud800y", "sd_checkpoint_name": "\udcff"},
        {"name": "a\0b", "sd_checkpoint": "\x1b[31m"},
        {"optional_info": {(1, 2): float("nan"), b"x": [b"\xff"]}},
    ],
)
def test_no_claim_of_a_file_stops_a_scan(registry: Registry, folder: Path, claim: dict[str, Any]) -> None:
    networks.save_pt(networks.a1111_network(seed=1) | claim, folder / "a.pt")
    networks.network_file(folder, "b.pt", seed=2)
    assert changes(registry, folder) == [("new", "a.pt"), ("new", "b.pt")]
    assert [row["verdict"] for row in registry.files.rows()] == ["warnings", "warnings"]
    assert len(registry.networks.rows()) == 2


def test_a_pipe_and_the_finders_notes_are_no_models(registry: Registry, folder: Path) -> None:
    networks.network_file(folder, "a.pt")
    (folder / "._a.pt").write_bytes(b"\0\5\x16\7")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.pt")
    assert changes(registry, folder) == [("new", "a.pt")]


def test_a_link_into_another_root_adds_nothing_to_its_own(registry: Registry, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    networks.network_file(other, "far.pt")
    (folder / "link").symlink_to(other)
    for _ in range(2):
        changes(registry, folder, other)
        assert paths(registry) == [str(other / "far.pt")]


def test_a_link_to_a_root_is_that_root(registry: Registry, folder: Path, tmp_path: Path) -> None:
    networks.network_file(folder, "a.pt")
    (tmp_path / "alias").symlink_to(folder)
    changes(registry, folder)
    assert changes(registry, tmp_path / "alias") == []
    assert [root.path for root in registry.files.roots()] == [folder]


def test_a_file_is_known_by_its_own_folder_and_not_by_a_link_to_it(registry: Registry, folder: Path) -> None:
    (folder / "real").mkdir()
    networks.network_file(folder / "real", "a.pt")
    (folder / "first").symlink_to(folder / "real")
    changes(registry, folder)
    assert paths(registry) == [str(folder / "real" / "a.pt")]


def test_the_name_of_a_deleted_file_is_free_for_another(registry: Registry, folder: Path) -> None:
    (folder / "old").mkdir()
    networks.network_file(folder / "old", "ink.pt", seed=1)
    changes(registry, folder)
    before = resolve(registry, "ink")
    networks.network_file(folder, "ink.pt", seed=2)
    (folder / "old" / "ink.pt").unlink()
    changes(registry)
    assert resolve(registry, "ink").path == folder / "ink.pt"
    assert resolve(registry, before.content_hash) == before


@pytest.mark.parametrize("stem", ["ink@deadbeef", "deadbeef", "h1:deadbeef", "@"])
def test_a_stem_comes_before_whatever_else_it_could_mean(registry: Registry, folder: Path, stem: str) -> None:
    networks.network_file(folder, f"{stem}.pt")
    changes(registry, folder)
    assert resolve(registry, stem).path == folder / f"{stem}.pt"


def test_the_name_of_something_else_says_what_it_is(registry: Registry, folder: Path) -> None:
    (folder / "page.pt").write_bytes(b"<html>log in</html>")
    changes(registry, folder)
    with pytest.raises(FileRefused, match="a web page"):
        resolve(registry, "page")


def test_a_content_that_left_its_last_file_is_kept_only_for_what_people_said_of_it(
    registry: Registry, folder: Path
) -> None:
    networks.network_file(folder, "plain.pt", seed=1)
    networks.network_file(folder, "tagged.pt", seed=2)
    networks.network_file(folder, "copied.pt", seed=3)
    shutil.copy(folder / "copied.pt", folder / "copy.pt")
    changes(registry, folder)
    tag(registry, "tagged", "favourite")
    tagged, copied = (resolve(registry, name).content_hash for name in ("tagged", "copied"))
    for seed, name in enumerate(("plain.pt", "tagged.pt", "copied.pt"), start=11):
        networks.network_file(folder, name, seed=seed, structure=(1, 3, 1))
    changes(registry)
    held = {row["content_hash"] for row in registry.files.rows()}
    assert copied in held
    assert {row["content_hash"] for row in registry.networks.rows()} == held | {tagged}
    networks.network_file(folder, "back.pt", seed=2)
    changes(registry)
    (back,) = registry.networks.of_contents([resolve(registry, "back").content_hash])
    assert back["tags"] == ["favourite"]


def test_the_search_follows_a_file_that_is_renamed_or_gets_another_content(registry: Registry, folder: Path) -> None:
    networks.network_file(folder, "sketch.pt", seed=1)
    changes(registry, folder)
    tag(registry, "sketch", "kept")
    (folder / "sketch.pt").rename(folder / "drawing.pt")
    changes(registry)
    assert [row["name"] for row in registry.networks.search("drawing")] == ["net1"]
    networks.network_file(folder, "drawing.pt", seed=2, structure=(1, 3, 1))
    changes(registry)
    assert [row["name"] for row in registry.networks.search("drawing")] == ["net2"]


def test_an_accent_is_found_however_it_is_typed(registry: Registry, folder: Path) -> None:
    networks.network_file(folder, "caf\u00e9s_at_night.pt")
    changes(registry, folder)
    for text in ("cafes", "caf\u00e9s", "cafe\u0301s", "cafe\u0301"):
        assert len(registry.networks.search(text)) == 1, text


def test_checking_again_takes_back_what_was_mended(registry: Registry, folder: Path) -> None:
    good = networks.network_file(folder, "ink.pt").read_bytes()
    networks.network_file(folder, "away.pt", seed=2)
    changes(registry, folder)
    status = (folder / "ink.pt").stat()
    (folder / "away.pt").rename(folder / "away")
    for data, found in ((good[:-1] + b"!", "corrupt"), (good[:-1] + b"!", "corrupt"), (good, "returned")):
        (folder / "ink.pt").write_bytes(data)
        os.utime(folder / "ink.pt", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (found, "ink.pt") in [(change.what, Path(change.path).name) for change in recheck(registry)]
    (folder / "away").rename(folder / "away.pt")
    assert [(change.what, Path(change.path).name) for change in recheck(registry)] == [("returned", "away.pt")]
    assert {row["state"] for row in registry.files.rows()} == {"present"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.binary(min_size=1, max_size=40)
    .filter(lambda name: not set(name) & {0, ord("/")} and not name.startswith(b"._"))
    .filter(lambda name: name.strip(b"."))  # dots and a suffix are a hidden file without one, as to os.path.splitext
)
def test_a_file_of_any_name_is_found_by_its_stem(tmp_path_factory: pytest.TempPathFactory, name: bytes) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = folder / os.fsdecode(name + b".pt")
    try:
        networks.network_file(folder, "made.pt").rename(path)
    except OSError:  # a name that this file system refuses
        return
    with Registry(folder / "r.db") as registry:
        changes(registry, folder)
        assert resolve(registry, path.stem).path == path
        assert changes(registry) == []
