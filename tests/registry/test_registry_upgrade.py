"""Registries of earlier versions open with everything in them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

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


def test_whatever_refers_to_a_row_is_found_by_an_index(tmp_path: Path) -> None:
    Registry(tmp_path / "registry.db").close()
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            referring = {row[3] for row in connection.execute(f"PRAGMA foreign_key_list('{table}')")}
            keys = {row[1] for row in connection.execute(f"PRAGMA table_info('{table}')") if row[5] == 1}
            indexes = [row[1] for row in connection.execute(f"PRAGMA index_list('{table}')")]
            first = {connection.execute(f"PRAGMA index_info('{index}')").fetchone()[2] for index in indexes}
            assert referring <= keys | first, table
