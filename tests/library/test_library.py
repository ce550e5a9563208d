"""A library of files against its registry: scanning, checking again, finding by name."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import networks

import hnetkit
from hnetkit.errors import AmbiguousName, NotFound, RegistryError
from hnetkit.formats.open_file import sha256_at
from hnetkit.library.library import Library
from hnetkit.library.resolve import resolve
from hnetkit.library.scan import FileChange, recheck, scan
from hnetkit.registry import Registry


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    (folder / "deep" / "er").mkdir(parents=True)
    networks.network_file(folder, "ink.pt", seed=1, activation="relu")
    networks.network_file(folder, "glow.pt", seed=2)
    networks.network_file(folder / "deep" / "er", "mist.ckpt", seed=3)
    (folder / "page.pt").write_bytes(b"<html>log in</html>")
    (folder / "broken.pt").write_bytes(b"PK\3\4 cut")
    (folder / "ink.pt.optim").write_bytes(b"\x80\x02cos\nsystem\n.")
    (folder / "readme.txt").write_text("not a model")
    return folder


def changes(registry: Registry, *folders: Path) -> list[tuple[str, str]]:
    return sorted((change.what, Path(change.path).name) for change in scan(registry, folders))


def state(registry: Registry) -> list[tuple[Any, ...]]:
    """All that a scan finds, less times and row numbers."""
    keys = ("path", "size_bytes", "mtime_ns", "sha256", "content_hash", "kind", "verdict", "reason", "state")
    files = sorted(tuple(row[key] for key in keys) for row in registry.files.rows())
    return [*files, *sorted((row["content_hash"], row["name"]) for row in registry.networks.rows())]


def test_a_first_scan_finds_every_model_file_and_says_what_it_is(registry: Registry, library: Path) -> None:
    names = ["broken.pt", "glow.pt", "ink.pt", "mist.ckpt", "page.pt"]
    assert changes(registry, library) == [("new", name) for name in names]
    kinds = {Path(row["path"]).name: (row["kind"], row["verdict"]) for row in registry.files.rows()}
    assert kinds["page.pt"] == ("html", "other")
    assert kinds["broken.pt"] == ("unknown", "refused")
    assert kinds["ink.pt"] == ("hypernetwork", "warnings")
    assert len(registry.networks.rows()) == 3


def test_a_second_scan_reads_nothing(registry: Registry, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes(registry, library)
    for path in library.rglob("*.pt"):
        path.chmod(0)
    assert changes(registry) == []


def test_what_an_older_registry_does_not_know_of_converted_files_a_scan_reads_once(tmp_path: Path) -> None:
    folder = tmp_path / "library"
    folder.mkdir()
    former = networks.network_file(folder, "former.pt")
    hnetkit.save(hnetkit.load(former), folder / "wash.safetensors")
    with Registry(tmp_path / "registry.db") as registry:
        changes(registry, folder)
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:  # as the fourth schema had it
        connection.executescript(
            "DROP INDEX files_by_source; ALTER TABLE files DROP COLUMN source_sha256; PRAGMA user_version = 4;"
            "DELETE FROM _sqlite_migrations WHERE name = 'm005_sources_of_conversions'"
        )
    with Registry(tmp_path / "registry.db") as registry:
        assert changes(registry) == [("changed", "wash.safetensors")]
        (found,) = registry.files.with_hash(source_sha256=hashlib.sha256(former.read_bytes()).hexdigest()[:10])
        assert found["stem"] == "wash"
        assert changes(registry) == []


@pytest.mark.parametrize("look", [scan, recheck])
def test_a_network_whose_row_another_program_deleted_is_named_and_comes_back_with_a_scan(
    tmp_path: Path, look: Callable[[Registry], Iterator[FileChange]]
) -> None:
    folder = tmp_path / "library"
    folder.mkdir()
    networks.network_file(folder, "ink.pt")
    with Library(tmp_path) as library:
        changes(library.registry, folder)
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        connection.execute("DELETE FROM networks")
        connection.commit()
    with Library(tmp_path) as library:
        for verb in (
            lambda: library.record("ink"),
            lambda: library.tag("ink", "lines"),
            lambda: library.remove("ink"),
            library.registry.check,
        ):
            with pytest.raises(RegistryError, match="the registry is damaged") as raised:
                verb()
            assert raised.value.command_hint == "hnetkit scan"
        assert (folder / "ink.pt").is_file()
        assert [(change.what, Path(change.path).name) for change in look(library.registry)] == [("changed", "ink.pt")]
        assert library.record("ink")["tags"] == []
        assert changes(library.registry) == []


def test_a_changed_file_is_read_again_and_a_touched_one_keeps_its_content(registry: Registry, library: Path) -> None:
    changes(registry, library)
    networks.network_file(library, "ink.pt", seed=9, activation="relu")
    os.utime(library / "glow.pt", (1, 1))
    assert changes(registry) == [("changed", "glow.pt"), ("changed", "ink.pt")]


def test_a_file_that_was_written_anew_with_the_same_content_is_still_found_by_its_former_hash(
    registry: Registry, library: Path
) -> None:
    changes(registry, library)
    before = sha256_at(library / "ink.pt")
    (original,) = registry.files.with_bytes(before)
    for again in range(2):
        hnetkit.save(hnetkit.load(library / "ink.pt"), library / "ink.pt", overwrite=True)
        os.utime(library / "ink.pt", (again, again))
        changes(registry)
    now = sha256_at(library / "ink.pt")
    assert now != before
    (row,) = registry.files.at(str(library / "ink.pt"))
    assert (row["sha256"], row["source_sha256"]) == (now, before)
    assert resolve(registry, before[:10]).content_hash == original["content_hash"]
    networks.network_file(library, "ink.pt", seed=9)
    changes(registry)
    (row,) = registry.files.at(str(library / "ink.pt"))
    assert row["source_sha256"] is None


def test_what_was_said_of_a_network_whose_file_holds_another_one_is_told(registry: Registry, library: Path) -> None:
    changes(registry, library)
    content_hash = resolve(registry, "ink").content_hash
    with registry.write():
        registry.networks.add_tags(registry.networks.id_of(content_hash), ["anime"])
    said: list[str] = []
    for name in ("ink.pt", "glow.pt"):  # the second has neither tags nor notes nor aliases
        networks.network_file(library, name, seed=9)
    list(scan(registry, note=said.append))
    assert [line for line in said if line.startswith("Tags, notes and aliases stay with ")] == [
        f"Tags, notes and aliases stay with {content_hash[:13]}, which no file of the library holds any more: "
        f"`hnetkit show {content_hash[:13]}` lists them."
    ]
    said.clear()
    networks.network_file(library, "ink.pt", seed=10)
    list(scan(registry, note=said.append))
    assert said == [], "once"


def test_what_was_said_of_a_network_whose_file_became_empty_is_told_as_it_is(registry: Registry, library: Path) -> None:
    changes(registry, library)
    with registry.write():
        registry.networks.add_tags(registry.networks.id_of(resolve(registry, "ink").content_hash), ["anime"])
    (library / "ink.pt").write_bytes(b"")
    said: list[str] = []
    list(scan(registry, note=said.append))
    assert "which no file of the library holds any more" in said[0]
    assert "another network" not in said[0]


def test_a_renamed_file_keeps_its_tags_note_and_alias(registry: Registry, library: Path) -> None:
    changes(registry, library)
    with registry.write():
        id = registry.networks.id_of(resolve(registry, "ink").content_hash)
        registry.networks.add_tags(id, ["anime"])
        registry.networks.set_note(id, "best at 0.6")
        registry.networks.set_alias(id, "lines")
    (library / "ink.pt").rename(library / "deep" / "pen.pt")
    assert changes(registry) == [("missing", "ink.pt"), ("new", "pen.pt")]
    found = resolve(registry, "lines")
    assert found.path == library / "deep" / "pen.pt"
    (row,) = registry.networks.of_contents([found.content_hash])
    assert (row["tags"], row["note"]) == (["anime"], "best at 0.6")
    assert resolve(registry, "pen") == found


def test_a_disk_that_is_gone_makes_files_missing_and_back_again(registry: Registry, library: Path) -> None:
    changes(registry, library)
    before = state(registry)
    library.rename(library.with_name("elsewhere"))
    found = changes(registry)
    assert ("unread", "library") in found
    assert [what for what, _ in found].count("missing") == 5
    assert len(registry.files.missing()) == 5
    library.with_name("elsewhere").rename(library)
    assert [what for what, _ in changes(registry)] == ["returned"] * 5
    assert state(registry) == before


def test_links_are_followed_once(registry: Registry, library: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    networks.network_file(other, "far.pt", seed=5)
    (library / "loop").symlink_to(library)
    (library / "link").symlink_to(other)
    (library / "again").symlink_to(other)
    (library / "dead.pt").symlink_to("nowhere.pt")
    (library / "self.pt").symlink_to("self.pt")
    found = [Path(change.path).name for change in scan(registry, [library], follow_links=True)]
    assert found.count("far.pt") == 1
    assert found.count("ink.pt") == 1
    assert "dead.pt" not in found


@pytest.mark.parametrize("name", [b"caf\xe9.pt", b"new\nline.pt", b"\x1b[31m.pt", b"quote'\".pt", "日本語.pt".encode()])
def test_any_file_name_is_kept_exactly(registry: Registry, tmp_path: Path, name: bytes) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    made = networks.network_file(folder)
    made.rename(folder / os.fsdecode(name))
    changes(registry, folder)
    (row,) = registry.files.rows()
    assert os.fsencode(row["path"]) == os.fsencode(folder) + b"/" + name
    assert changes(registry) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_a_name_is_the_same_in_a_locale_that_is_not_utf_8(tmp_path: Path, home: Path) -> None:
    """As a timer or a service may have it: one scans there, the other here."""
    (tmp_path / "odd").mkdir()
    path = networks.network_file(tmp_path / "odd", "最終 é.pt")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def there(*arguments: str) -> str:
        command = [sys.executable, "-P", "-m", "hnetkit", *arguments]
        return subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout

    there("scan", str(path.parent))
    with Registry(home / "registry.db") as registry:
        assert resolve(registry, "最終 é").path == path
        assert changes(registry) == []
        networks.network_file(tmp_path / "odd", "最終 é.pt", seed=5)
        assert len(changes(registry)) == 1
    (row,) = json.loads(there("list", "--files", "--json"))
    assert (row["stem"], row["state"]) == ("最終 é", "present")
    assert there("show", "最終 é")
    assert there("scan") == ""


def test_the_same_content_in_two_files_is_one_network(registry: Registry, library: Path) -> None:
    shutil.copy(library / "ink.pt", library / "deep" / "ink.pt")
    changes(registry, library)
    assert len(registry.networks.rows()) == 3
    assert resolve(registry, "ink").content_hash == resolve(registry, "ink").content_hash


def test_one_name_for_two_networks_is_an_error_that_tells_them_apart(registry: Registry, library: Path) -> None:
    networks.network_file(library / "deep", "ink.pt", seed=77)
    changes(registry, library)
    with pytest.raises(AmbiguousName) as caught:
        resolve(registry, "ink")
    labels = str(caught.value.hint).removeprefix("use one of ").split(", ")
    assert len({resolve(registry, label).content_hash for label in labels}) == 2


def test_a_name_is_a_stem_then_an_alias_then_a_hash(registry: Registry, library: Path) -> None:
    changes(registry, library)
    ink, glow = resolve(registry, "ink"), resolve(registry, "glow")
    with registry.write():
        registry.networks.set_alias(registry.networks.id_of(glow.content_hash), "ink")
        registry.networks.set_alias(registry.networks.id_of(glow.content_hash), "shine")
    assert resolve(registry, "ink") == ink
    assert resolve(registry, "shine") == glow
    for digits in (ink.content_hash, ink.content_hash[:12], ink.content_hash[3:13], ink.sha256, ink.sha256[:10]):
        assert resolve(registry, digits) == ink


def test_an_unknown_name_hints_at_the_nearest(registry: Registry, library: Path) -> None:
    with pytest.raises(NotFound) as empty:
        resolve(registry, "ink")
    assert "hnetkit scan" in str(empty.value.command_hint)
    changes(registry, library)
    with pytest.raises(NotFound) as caught:
        resolve(registry, "Glo")
    assert caught.value.hint == "did you mean glow?"


def test_rehashing_tells_rot_from_replacement(registry: Registry, library: Path) -> None:
    changes(registry, library)
    status = (library / "ink.pt").stat()
    data = bytearray((library / "ink.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (library / "ink.pt").write_bytes(data)
    os.utime(library / "ink.pt", ns=(status.st_atime_ns, status.st_mtime_ns))
    networks.network_file(library, "glow.pt", seed=50, structure=(1, 3, 1))
    (library / "page.pt").unlink()
    found = sorted((change.what, Path(change.path).name) for change in recheck(registry))
    assert found == [("changed", "glow.pt"), ("corrupt", "ink.pt"), ("missing", "page.pt")]
    assert [Path(row["path"]).name for row in registry.files.rows() if row["state"] == "corrupt"] == ["ink.pt"]


def test_rehashing_takes_files_that_changed_names_for_what_they_are(registry: Registry, library: Path) -> None:
    one, other = library / "one.pt", library / "two.pt"
    for seed, path in enumerate((one, other)):
        networks.network_file(library, path.name, seed=seed + 20)
        os.utime(path, (1, 1))
    assert one.stat().st_size == other.stat().st_size
    changes(registry, library)
    before = {path.name: resolve(registry, path.stem).content_hash for path in (one, other)}
    one.rename(library / "aside")
    other.rename(one)
    (library / "aside").rename(other)
    assert changes(registry) == []  # size and time are what they were
    found = sorted((change.what, Path(change.path).name) for change in recheck(registry))
    assert found == [("changed", "one.pt"), ("changed", "two.pt")]
    now = {path.name: resolve(registry, path.stem).content_hash for path in (one, other)}
    assert now == {"one.pt": before["two.pt"], "two.pt": before["one.pt"]}


def test_a_root_inside_a_root_takes_its_files_along(registry: Registry, library: Path) -> None:
    changes(registry, library)
    before = state(registry)
    assert changes(registry, library / "deep") == []
    assert changes(registry) == []
    assert state(registry) == before
    assert len(registry.files.roots()) == 2


def test_a_scan_of_a_folder_is_one_of_the_roots_inside_it_too(registry: Registry, library: Path) -> None:
    changes(registry, library / "deep")
    changes(registry, library)
    networks.network_file(library / "deep", "dew.pt", seed=4)
    (library / "deep" / "er" / "mist.ckpt").unlink()
    assert changes(registry, library) == [("missing", "mist.ckpt"), ("new", "dew.pt")]
    networks.network_file(library, "haze.pt", seed=5)
    assert changes(registry, library / "deep") == []  # what is around it is not asked for


# --- scans that are killed, and scans at once

_SCAN = """
import sys
from pathlib import Path
from hnetkit.library.scan import scan
from hnetkit.registry import Registry
with Registry(sys.argv[1]) as registry:
    print("open", flush=True)
    list(scan(registry, [Path(sys.argv[2])]))
"""


def start_scan(db: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-c", _SCAN, str(db), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def many_files(folder: Path, count: int) -> Path:
    folder.mkdir()
    first = networks.network_file(folder, "0.pt").read_bytes()
    for number in range(1, count):
        # another name in the pickle is another file with the same content; every third is its own network
        data = networks.network_file(folder, "x.pt", seed=number).read_bytes() if number % 3 == 0 else first
        (folder / f"{number}.pt").write_bytes(data)
    (folder / "x.pt").unlink(missing_ok=True)
    return folder


def killed_and_finished(tmp_path: Path, kills: int, seed: int, files: int = 300) -> list[int]:
    """Returns how many files each killed scan had stored."""
    stored = []
    rng, folder = random.Random(seed), many_files(tmp_path / "many", files)
    with Registry(tmp_path / "calm.db") as registry:
        started = time.monotonic()
        list(scan(registry, [folder]))
        duration = time.monotonic() - started
        calm = state(registry)
    for number in range(kills):
        db = tmp_path / f"killed{number}.db"
        process = start_scan(db, folder)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0, duration))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Registry(db) as registry:
            stored.append(len(registry.files.rows()))
            list(scan(registry, [folder]))
            assert state(registry) == calm
            assert registry.check()
    return stored


def test_a_killed_scan_finished_later_equals_an_undisturbed_one(tmp_path: Path) -> None:
    killed_and_finished(tmp_path, kills=3, seed=1, files=150)


@pytest.mark.long
def test_a_scan_killed_at_thirty_moments_equals_an_undisturbed_one(tmp_path: Path) -> None:
    stored = killed_and_finished(tmp_path, kills=30, seed=20261123)
    assert len({count for count in stored if 0 < count < 300}) >= 3  # the moments were in the midst of it


def test_two_scans_at_once_give_no_error_and_no_duplicate(tmp_path: Path) -> None:
    folder = many_files(tmp_path / "many", 150)
    processes = [start_scan(tmp_path / "both.db", folder) for _ in range(2)]
    assert [(process.communicate()[1], process.returncode) for process in processes] == [("", 0), ("", 0)]
    with Registry(tmp_path / "calm.db") as calm, Registry(tmp_path / "both.db") as both:
        list(scan(calm, [folder]))
        assert state(both) == state(calm)


def test_what_says_a_hash_means_that_content_whatever_is_called_so(registry: Registry, library: Path) -> None:
    changes(registry, library)
    ink, glow = resolve(registry, "ink"), resolve(registry, "glow")
    label = f"ink@{ink.content_hash[3:13]}"
    for stem in (ink.content_hash, ink.sha256, label):
        shutil.copy(library / "glow.pt", library / f"{stem}.pt")
    changes(registry, library)
    with registry.write():
        for alias in (ink.content_hash[:20], ink.content_hash, ink.sha256, label):
            registry.networks.set_alias(registry.networks.id_of(glow.content_hash), alias)
    for name in (ink.content_hash, ink.content_hash[:20], ink.sha256, label):
        assert resolve(registry, name).content_hash == ink.content_hash


@pytest.mark.parametrize("is_alias", [False, True])
def test_a_name_that_reads_as_the_digits_of_another_network_is_ambiguous(
    registry: Registry, library: Path, is_alias: bool
) -> None:
    changes(registry, library)
    ink, glow = resolve(registry, "ink"), resolve(registry, "glow")
    digits = ink.sha256[:10]
    if is_alias:
        with registry.write():
            registry.networks.set_alias(registry.networks.id_of(glow.content_hash), digits)
    else:
        shutil.copy(library / "glow.pt", library / f"{digits}.pt")
        changes(registry, library)
    with pytest.raises(AmbiguousName) as caught:
        resolve(registry, digits)
    labels = str(caught.value.hint).removeprefix("use one of ").split(", ")
    assert {resolve(registry, label).content_hash for label in labels} == {ink.content_hash, glow.content_hash}


def test_a_word_or_a_date_of_hex_digits_is_a_name_as_any(registry: Registry, library: Path) -> None:
    for stem in ("20230101", "deadbeef"):
        (library / "glow.pt").rename(library / f"{stem}.pt")
        changes(registry, library)
        assert resolve(registry, stem).name == stem
        (library / f"{stem}.pt").rename(library / "glow.pt")


def test_many_links_that_are_not_followed_and_many_lost_files_take_no_longer_than_their_sum(
    registry: Registry, library: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (library / "lost").mkdir()
    for number in range(2000):
        (library / f"link{number}").symlink_to(tmp_path / "outside")
        (library / "lost" / f"{number}.pt").write_bytes(b"")
    changes(registry, library)
    shutil.rmtree(library / "lost")
    began = time.process_time()
    assert len(changes(registry, library)) == 2000
    assert time.process_time() - began < 15  # their product takes a minute
