"""Registries of earlier versions open with everything in them."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from hnetkit.errors import HnetkitError, RegistryError
from hnetkit.registry import Registry
from hnetkit.registry.migrations import migrations
from hnetkit.registry.store import SCHEMA_VERSION

FIRST = Path(__file__).with_name("registry_m001.sql")


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A registry as the first version of the schema left it."""
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        connection.executescript(FIRST.read_text(encoding="utf-8"))
    return tmp_path / "old.db"


def schema(connection: sqlite3.Connection) -> set[str]:
    return {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql NOTNULL")}


def test_a_registry_of_the_first_version_opens_with_all_that_people_said(first: Path) -> None:
    with Registry(first) as registry:
        (network,) = registry.networks.search("lines")
        (file,) = registry.files.rows()
        assert registry.check() == "1 network in 1 file"
    assert (network["tags"], network["note"], network["aliases"]) == (["anime"], "best at 0.6", ["lines"])
    assert (file["path"], file["content_hash"]) == ("/library/ink-0.pt", network["content_hash"])
    with closing(sqlite3.connect(first)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION


def test_a_released_step_of_the_schema_is_not_edited(first: Path, tmp_path: Path) -> None:
    later = [step.name for step in migrations.pending(Database(memory=True))][1:]
    with closing(sqlite3.connect(first)) as old, closing(sqlite3.connect(tmp_path / "new.db")) as new:
        migrations.apply(Database(new), stop_before=later)
        assert schema(new) == schema(old)


def test_the_version_kept_in_the_file_counts_the_steps() -> None:
    assert len(migrations.pending(Database(memory=True))) == SCHEMA_VERSION


def test_what_was_gone_before_is_gone_since_it_was_last_looked_at(tmp_path: Path) -> None:
    later = [step.name for step in migrations.pending(Database(memory=True))][12:]
    with closing(sqlite3.connect(tmp_path / "old.db")) as connection:
        migrations.apply(Database(connection), stop_before=later)
        connection.execute("PRAGMA user_version = 12")
        for number, state in enumerate(("gone", "listed"), 1):
            values = (number, "civitai", str(number), "Ink", state, b"", "2024-01-01", "2025-02-02")
            connection.execute(
                "INSERT INTO models (id, source, remote_id, name, state, raw, first_seen, last_seen) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        connection.commit()
    with Registry(tmp_path / "old.db") as registry:
        assert [(row["state"], row["state_since"]) for row in registry.catalogue.models()] == [
            ("gone", "2025-02-02"),
            ("listed", None),
        ]
        assert registry.mirrors.of(["0" * 64]) == []


def test_whatever_refers_to_a_row_is_found_by_an_index(tmp_path: Path) -> None:
    Registry(tmp_path / "registry.db").close()
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            referring = {row[3] for row in connection.execute(f"PRAGMA foreign_key_list('{table}')")}
            keys = {row[1] for row in connection.execute(f"PRAGMA table_info('{table}')") if row[5] == 1}
            indexes = [row[1] for row in connection.execute(f"PRAGMA index_list('{table}')")]
            first = {connection.execute(f"PRAGMA index_info('{index}')").fetchone()[2] for index in indexes}
            assert referring <= keys | first, table


def test_an_upgrade_keeps_the_registry_as_it_was(first: Path) -> None:
    with closing(sqlite3.connect(first)) as connection:
        before = schema(connection)
    Registry(first).close()
    Registry(first).close()
    kept = first.with_name("old.v1.db")
    assert sorted(path.name for path in first.parent.iterdir()) == ["old.db", "old.v1.db"]
    with closing(sqlite3.connect(kept)) as connection:
        assert schema(connection) == before
        assert connection.execute("SELECT note FROM notes").fetchall() == [("best at 0.6",)]
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 1


def test_the_name_of_the_copy_is_on_the_disk_before_the_upgrade_is(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, int, bool]] = []
    real = os.fsync

    def noted(handle: int) -> None:
        with closing(sqlite3.connect(first)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        flushed.append((os.fstat(handle).st_ino, version, first.with_name("old.v1.db").exists()))
        real(handle)

    monkeypatch.setattr(os, "fsync", noted)
    Registry(first).close()
    assert (first.parent.stat().st_ino, 1, True) in flushed


def test_a_copy_that_was_kept_is_never_replaced(first: Path) -> None:
    first.with_name("old.v1.db").write_bytes(b"of an earlier upgrade")
    Registry(first).close()
    assert first.with_name("old.v1.db").read_bytes() == b"of an earlier upgrade"
    assert first.with_name("old.v1-2.db").exists()


def test_a_registry_that_cannot_be_copied_is_not_upgraded(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(HnetkitError):
            Registry(first)
    with closing(sqlite3.connect(first)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == 1
    with Registry(first) as registry:
        assert [row["note"] for row in registry.networks.search("lines")] == ["best at 0.6"]


def test_a_new_registry_leaves_no_copy(tmp_path: Path) -> None:
    Registry(tmp_path / "registry.db").close()
    assert [path.name for path in tmp_path.iterdir()] == ["registry.db"]


def test_many_processes_upgrade_one_registry_together(first: Path) -> None:
    code = "import sys, hnetkit; print(hnetkit.registry.Registry(sys.argv[1]).check())"
    command = [sys.executable, "-P", "-c", code, str(first)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert {process.communicate() for process in processes} == {("1 network in 1 file\n", "")}
    assert [path.name for path in first.parent.glob("old.v*")] == ["old.v1.db"]


def test_a_registry_of_a_newer_version_says_both_versions(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    Registry(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RegistryError, match=f"newer hnetkit: .* 99, .* {SCHEMA_VERSION}") as caught:
        Registry(path)
    assert caught.value.command_hint == "pip install --upgrade hnetkit"
