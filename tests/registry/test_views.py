"""The views that people open with other tools, and the page that explains them."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.registry_rows import row

from hnetkit.registry import Registry

PAGE = Path(__file__).resolve().parents[2] / "docs" / "registry.md"
VIEWS = ("library", "library_files", "site_files")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A registry as another program opens it: a network in two files, one on a site, and a file that is no network."""
    with Registry(tmp_path / "registry.db") as registry, registry.write():
        root = registry.files.add_root(Path("/library"))
        said = {"activation_text": "lineart"}
        for number, path in ((1, "ink.pt"), (1, "deep/ink-copy.pt"), (2, "glow.pt")):
            found = row(number, sidecars=said if number == 1 else {})
            registry.files.put(root, path, 1_700_000_000_000_000_000, 1, found)
            registry.networks.put(found)
        registry.files.put(root, "page.pt", 1, 1, row(3, content_hash=None, kind="html", verdict="refused"))
        registry.files.put(root, "odd\udce9.pt", 1, 1, row(4))
        registry.networks.put(row(4))
        id = registry.networks.id_of(row(1)["content_hash"])
        registry.networks.add_tags(id, ["ink", "anime"])
        registry.networks.set_alias(id, "lines")
        registry.networks.set_note(id, "best at 0.6")
        values = {"name": "Glass", "state": "listed", "creator": "fox", "tags": ["Pixel Art", "fox"]}
        model = registry.catalogue.put_model("civitai", "42", values, {})
        version = registry.catalogue.put_version(model, "49", {"name": "v1", "trained_words": ["nwc", "nwcstyle"]})
        registry.catalogue.put_file(version, "1", {"name": "ink.pt", "sha256": f"{1:064x}"})
        registry.catalogue.put_file(version, "2", {"name": "big.pt", "sha256": "e" * 64})
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def one(database: sqlite3.Connection, query: str) -> dict[str, object]:
    (found,) = database.execute(query).fetchall()
    return dict(found)


def test_a_network_is_one_row_with_its_files_and_what_a_site_says(database: sqlite3.Connection) -> None:
    found = one(database, "SELECT * FROM library WHERE name = 'ink'")
    assert {key: found[key] for key in ("copies", "state", "path", "tags", "aliases", "note")} == {
        "copies": 2,
        "state": "present",
        "path": "/library/ink.pt",
        "tags": "anime, ink",
        "aliases": "lines",
        "note": "best at 0.6",
    }
    assert [found[key] for key in ("title", "version", "creator", "site_tags", "trigger_words")] == [
        *("Glass", "v1", "fox", "Pixel Art, fox", "lineart")
    ]
    assert one(database, "SELECT count(*) AS n FROM library")["n"] == 3


@pytest.mark.parametrize("said", ['{"activation_text": " "}', "{}", "{", '{"activation_text": null}'])
def test_trigger_words_of_a_site_stand_in_for_those_beside_a_file(database: sqlite3.Connection, said: str) -> None:
    database.execute("UPDATE sidecars SET said = ? WHERE file_id = 1", [said])
    assert one(database, "SELECT trigger_words FROM library WHERE name = 'ink'") == {"trigger_words": "lineart"}
    database.execute("UPDATE sidecars SET said = ?", [said])
    assert one(database, "SELECT trigger_words FROM library WHERE name = 'ink'") == {"trigger_words": "nwc, nwcstyle"}


def test_a_file_is_one_row_with_its_whole_path(database: sqlite3.Connection) -> None:
    paths = [path for (path,) in database.execute("SELECT path FROM library_files ORDER BY id")]
    assert paths[:4] == [f"/library/{name}" for name in ("ink.pt", "deep/ink-copy.pt", "glow.pt", "page.pt")]
    assert paths[4] == f"X'{b'odd'.hex().upper()}E9{b'.pt'.hex().upper()}'"
    found = one(database, "SELECT * FROM library_files WHERE name = 'glow'")
    assert (found["a1111_hash"], found["modified_at"]) == (f"{2:064x}"[:10], "2023-11-14 22:13:20")


@pytest.mark.parametrize(
    ("root", "path"), [("C:\\nets", "C:\\nets\\x\\a.pt"), ("C:\\", "C:\\x\\a.pt"), ("/", "/x\\a.pt")]
)
def test_paths_are_those_of_the_system(database: sqlite3.Connection, root: str, path: str) -> None:
    database.execute("UPDATE roots SET path = ?", [root])
    database.execute("UPDATE files SET path = 'x\\a.pt' WHERE id = 1")
    assert one(database, "SELECT path FROM library_files WHERE id = 1") == {"path": path}


def test_a_file_of_a_site_says_whether_it_is_here(database: sqlite3.Connection) -> None:
    found = database.execute("SELECT file_name, is_here, link FROM site_files ORDER BY id").fetchall()
    link = "https://civitai.com/models/42?modelVersionId=49"
    assert [tuple(each) for each in found] == [("ink.pt", 1, link), ("big.pt", 0, link)]


def test_damaged_values_break_no_view(database: sqlite3.Connection) -> None:
    database.execute("UPDATE models SET tags = '[[['")
    database.execute("UPDATE versions SET trained_words = 'x'")
    database.execute("UPDATE sidecars SET said = '{'")
    for view in VIEWS:
        assert len(database.execute(f"SELECT * FROM {view}").fetchall()) > 1


def columns(database: sqlite3.Connection, name: str) -> list[str]:
    return [found[1] for found in database.execute(f"PRAGMA table_info('{name}')")]


def test_the_page_has_every_table_and_column_of_the_real_database(database: sqlite3.Connection) -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = {
        name
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")
        if not name.startswith(("sqlite_", "_", "network_text_"))
    }
    described: dict[str, set[str]] = {}
    for line in text.split("## Tables")[1].splitlines():
        cells = line.split("|")
        if len(cells) == 5 and "`" in cells[1]:
            for name in re.findall(r"`(\w+)`", cells[1]):
                described[name] = set(re.findall(r"`(\w+)`", cells[3]))
    for view in VIEWS:
        rows = text.split(f"\n`{view}` has")[1].split("\n\n")[1]
        described[view] = {name for line in rows.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert set(described) == names
    shared = {"tags", "notes", "aliases"}
    for name in names - shared:
        assert described[name] == set(columns(database, name)), name
    assert described["tags"] == {column for name in shared for column in columns(database, name)}


def test_the_queries_of_the_page_run(database: sqlite3.Connection) -> None:
    queries = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert queries
    for query in "".join(queries).split(";\n"):
        database.execute(query).fetchall()
