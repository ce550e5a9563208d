"""A registry on a disk that is full or may not be written, with rows that are broken, lost or do not fit."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.filling_disk import mount, small_disk
from support.registry_rows import row

from hnetkit.errors import RegistryError, UnsafeFile
from hnetkit.registry import Registry
from hnetkit.registry.bakes import Bake, BakedPart
from hnetkit.registry.columns import COLUMNS, from_json, to_json

BROKEN = [(table, column) for table, columns in COLUMNS.items() for column in columns]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "r.db"
    with Registry(path) as registry, registry.write():
        root = registry.files.add_root(Path("/library"))
        registry.files.put(root, "ink.pt", 1, 1, row(1, sidecars={"notes": "mine"}))
        registry.networks.put(row(1))
        registry.networks.add_tags(1, ["lineart"])
        registry.subscriptions.put("all", {"nsfw": True})
        model = registry.catalogue.put_model("civitai", "7", {"name": "Ink", "tags": ["a"], "state": "listed"}, {})
        version = registry.catalogue.put_version(model, "8", {"name": "v1", "trained_words": ["b"]})
        registry.catalogue.put_file(version, "9", {"name": "ink.pt", "hashes": {"SHA256": "0"}})
        registry.bakes.put(
            Bake(
                "/out.safetensors",
                "lora",
                None,
                8,
                None,
                0.1,
                None,
                None,
                None,
                None,
                1,
                1,
                None,
                (BakedPart("ink", row(1)["content_hash"], None, {"self_k": 1}),),
            )
        )
    execute(
        path, "UPDATE models SET commercial_use = '[]'", "INSERT INTO trainings VALUES (1, '{}', NULL, NULL, NULL, '')"
    )
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A registry with something in every table that holds JSON."""
    return Path(shutil.copy(made, tmp_path / "r.db"))


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def read_all(registry: Registry) -> None:
    """Everything that can be read of a registry."""
    registry.files.rows()
    registry.files.sidecars([1])
    registry.networks.rows()
    registry.catalogue.files()
    registry.catalogue.models()
    registry.catalogue.raw("civitai", "7")
    registry.subscriptions.rows()
    registry.trainings.of(row(1)["content_hash"])
    registry.bakes.of(row(1)["content_hash"])


# --- values


@pytest.mark.parametrize(("table", "column"), BROKEN)
def test_a_value_that_something_broke_is_named_with_what_mends_it(path: Path, table: str, column: str) -> None:
    with Registry(path) as registry, closing(sqlite3.connect(path)) as connection:
        for value in ("{", "5", "null", "[" * 200_000, b"\xff\xfe"):
            connection.execute(f"UPDATE {table} SET {column} = ?", [value])
            connection.commit()
            for look in (read_all, Registry.check):
                with pytest.raises(RegistryError, match=f"the registry is damaged: {column} of .* {table}$") as caught:
                    look(registry)
                assert "hnetkit" in str(caught.value.hint)


def test_words_are_added_to_a_network_and_found_though_its_row_is_broken(path: Path) -> None:
    execute(path, "UPDATE networks SET metadata = '{'")
    with Registry(path) as registry:
        with registry.write():
            registry.networks.add_tags(1, ["late"])
            registry.networks.rebuild_search()
        assert registry.networks.is_searchable()


def test_the_sites_own_answer_that_something_broke_is_named(path: Path) -> None:
    execute(path, "UPDATE models SET raw = x'00ff'")
    with Registry(path) as registry:
        for look in (read_all, lambda registry: registry.check()):
            with pytest.raises(RegistryError, match="damaged: raw of civitai 7"):
                look(registry)


def test_a_whole_registry_is_whole(path: Path) -> None:
    with Registry(path) as registry:
        read_all(registry)
        assert registry.check() == "1 network in 1 file"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=20,
    )
)
def test_whatever_a_file_says_is_stored_as_json_that_sqlite_reads(value: Any) -> None:
    text = to_json({"said": value})
    with closing(sqlite3.connect(":memory:")) as connection:
        assert connection.execute("SELECT json_valid(?)", [text]).fetchone() == (1,)
    assert from_json(text, "networks", "metadata", "x").keys() == {"said"}


def test_a_number_of_thousands_of_digits_is_stored_in_words() -> None:
    assert to_json([10**5000, float("inf")]) == '["an integer of 16610 bits", "inf"]'


def test_what_is_nested_too_deeply_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(UnsafeFile, match="too deeply"):
        to_json(deep)


@pytest.mark.parametrize("name", ["ink\udce9", "a\0b", "=1"])
def test_words_that_are_no_text_are_stored_and_found_again(path: Path, name: str) -> None:
    with Registry(path) as registry:
        with registry.write():
            registry.networks.add_tags(1, [name])
            registry.networks.set_note(1, name)
            registry.networks.set_alias(1, name)
        (network,) = registry.networks.rows()
        assert len(network["tags"]) == 2
        with registry.write():
            registry.networks.remove_tags(1, [name])
        assert registry.networks.rows()[0]["tags"] == ["lineart"]


@pytest.mark.parametrize("unfit", [{"size_bytes": 2**64}, {"kind": None}, {"reason": {1}}, {"sha256": "\udc80"}])
def test_a_part_of_a_change_that_fails_leaves_the_other_parts(path: Path, unfit: dict[str, Any]) -> None:
    def put(name: str, found: dict[str, Any]) -> None:
        with registry.part():
            registry.files.put(root, name, 1, 1, found)

    with Registry(path) as registry:
        with registry.write():
            (root,) = registry.files.roots()
            put("a.pt", row(2))
            with pytest.raises((ValueError, OverflowError)):
                put("b.pt", row(3, **unfit))
            put("c.pt", row(4))
        assert sorted(Path(file["path"]).name for file in registry.files.rows()) == ["a.pt", "c.pt", "ink.pt"]


# --- what is lost


@pytest.mark.parametrize(
    "loss",
    [
        "DELETE FROM network_text",
        "DROP TABLE network_text",
        "INSERT INTO network_text (rowid, names) VALUES (99, 'ghost')",
    ],
)
def test_a_search_index_that_is_lost_is_noticed_and_made_again(path: Path, loss: str) -> None:
    execute(path, loss)
    with Registry(path) as registry:
        with pytest.raises(RegistryError, match="search index") as caught:
            registry.check()
        assert caught.value.command_hint == "hnetkit scan"
        with registry.write():
            registry.networks.rebuild_search()
        assert registry.check() == "1 network in 1 file"
        assert [network["name"] for network in registry.networks.search("lineart")] == ["net1"]


@pytest.mark.parametrize("table", ["tags", "lookups", "trainings"])
def test_a_table_that_is_lost_is_named(path: Path, table: str) -> None:
    execute(path, f"DROP TABLE {table}")
    with Registry(path) as registry, pytest.raises(RegistryError, match=f"lost .*{table}"):
        registry.check()


# --- disks

READ = (
    "import sys, hnetkit; print([n['name'] for n in hnetkit.registry.Registry(sys.argv[1]).networks.search('lineart')])"
)
WRITE = """
import sys, hnetkit
registry = hnetkit.registry.Registry(sys.argv[1])
with registry.write():
    registry.networks.add_tags(1, ['x' * 100_000])
"""


def run(code: str, path: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", before + code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def left_by_a_kill(path: Path) -> None:
    """Makes the registry what a killed process leaves: its last changes lie beside it."""
    kept = path.with_name("kept")
    with Registry(path) as registry:
        with registry.write():
            registry.networks.add_tags(1, ["late"])
        shutil.copy(path, kept)
        shutil.copy(f"{path}-wal", f"{kept}-wal")
    shutil.move(kept, path)
    shutil.move(f"{kept}-wal", f"{path}-wal")


@pytest.fixture(params=["closed", "killed"])
def any_end(request: pytest.FixtureRequest, path: Path) -> Path:
    if request.param == "killed":
        left_by_a_kill(path)
    return path


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files is POSIX's")
def test_where_no_file_can_grow_the_registry_is_read_and_a_change_says_so(any_end: Path) -> None:
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    assert run(READ, any_end, full).stdout == "['net1']\n"
    assert "RegistryError" in run(WRITE, any_end, full).stderr.splitlines()[-1]
    assert run(READ, any_end).stdout == "['net1']\n"


@pytest.fixture(name="small_disk")
def disk_of_1_mb(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as disk:
        yield disk


def fill(disk: Path) -> None:
    with open(disk / "other", "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                continue


def test_on_a_full_disk_the_registry_is_read_and_a_change_says_so(any_end: Path, small_disk: Path) -> None:
    for file in any_end.parent.glob("r.db*"):
        shutil.move(file, small_disk)
    fill(small_disk)
    assert run(READ, small_disk / "r.db").stdout == "['net1']\n"
    assert "DiskFull" in run(WRITE, small_disk / "r.db").stderr.splitlines()[-1]
    assert "DiskFull" in run(READ, small_disk / "new" / "r.db").stderr.splitlines()[-1]
    (small_disk / "other").unlink()
    assert run(WRITE, small_disk / "r.db").returncode == 0


def test_on_a_disk_that_may_not_be_written_the_registry_is_read(path: Path, small_disk: Path) -> None:
    shutil.move(path, small_disk)
    assert mount("-o", "remount,ro", str(small_disk))
    assert run(READ, small_disk / "r.db").stdout == "['net1']\n"
    assert "cannot be opened for writing" in run(WRITE, small_disk / "r.db").stderr.splitlines()[-1]


def test_one_of_an_earlier_version_that_may_not_be_written_is_called_so(small_disk: Path) -> None:
    with closing(sqlite3.connect(small_disk / "r.db")) as connection:
        connection.executescript(Path(__file__).with_name("registry_m001.sql").read_text(encoding="utf-8"))
    assert mount("-o", "remount,ro", str(small_disk))
    said = run(READ, small_disk / "r.db").stderr.splitlines()[-1]
    assert "of an earlier version of hnetkit, and cannot be brought up to date where it is" in said


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="file permissions do not stop root")
def test_in_a_folder_of_somebody_else_the_registry_is_read(path: Path) -> None:
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        assert run(READ, path).stdout == "['net1']\n"
    finally:
        path.parent.chmod(0o755)


def test_last_changes_that_cannot_be_read_are_not_left_out_without_a_word(path: Path, small_disk: Path) -> None:
    left_by_a_kill(path)
    for file in path.parent.glob("r.db*"):
        shutil.move(file, small_disk)
    assert mount("-o", "remount,ro", str(small_disk))
    assert "cannot be opened for writing" in run(READ, small_disk / "r.db").stderr.splitlines()[-1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_folder_in_its_place_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.db")
    (tmp_path / "folder.db").mkdir()
    for name in ("pipe.db", "folder.db"):
        with pytest.raises(RegistryError, match="not a regular file"):
            Registry(tmp_path / name)


def test_a_folder_whose_name_begins_as_an_address_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Registry("file:x?mode=memory/registry.db") as registry:
        registry.check()
    assert (tmp_path / "file:x?mode=memory" / "registry.db").is_file()


def test_the_hint_of_a_damaged_registry_can_be_typed_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folder = tmp_path / "a b$(touch pwned)"
    folder.mkdir()
    (folder / "registry.db").write_bytes(b"x" * 5000)
    with pytest.raises(RegistryError) as caught:
        Registry(folder / "registry.db")
    path = folder / "registry.db"
    assert str(caught.value.hint).endswith(f": mv '{path}' '{path}.damaged'")
