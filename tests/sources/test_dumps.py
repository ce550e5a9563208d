"""`identify --dump`: what files are, from a dump of the site's records, which is a stranger's file."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support import dumps, networks
from support.fake_sites import Sites, World

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import FileRefused, HnetkitError, NotFound
from hnetkit.library.scan import scan
from hnetkit.registry import dumps as database
from hnetkit.sources.civitai_models import BadRecord
from hnetkit.sources.dumps import MOST_NAMED, WantedHashes, find_in_dump
from hnetkit.sources.export import export_records
from hnetkit.sources.session import FetchSession

Model = dict[str, Any]


@pytest.fixture(scope="module")
def world() -> World:
    return World.make(6, plain=True)


@pytest.fixture
def site(world: World) -> Iterator[Sites]:
    with Sites(world) as sites:
        yield sites


@pytest.fixture
def mine(here: FetchSession, world: World, tmp_path: Path) -> dict[Path, tuple[str, str]]:
    """Files of four versions, named otherwise, and one that nobody knows; path -> numbers of model and version."""
    folder, known = tmp_path / "mine", {}
    folder.mkdir()
    for number, (model, version, file) in enumerate(list(world.files())[:4]):
        path = folder / f"{number}.pt"
        path.write_bytes(world.content(file["id"]))
        known[path] = (str(model["id"]), str(version["id"]))
    networks.network_file(folder, "own.pt", seed=99)
    list(scan(here.registry, [folder]))
    return known


def known_to(session: FetchSession, dump: Path) -> dict[Path, tuple[str, str]]:
    """Returns path -> numbers of model and version, of the files that a dump knows."""
    rows = session.identify(dump=dump, failed=_never).files
    assert len(rows) == 5
    return {Path(row["path"]): (row["model_id"], row["version_id"]) for row in rows if row["model_id"] is not None}


def _never(record: BadRecord) -> None:
    raise AssertionError(record)


def _as_lines(path: Path, models: list[Model]) -> Path:
    return dumps.write_lines(path, models)


def _as_pages(path: Path, models: list[Model]) -> Path:
    return dumps.write_lines(path, [{"items": models[:3], "metadata": {}}, models[3:]])


def _without_indexes(path: Path, models: list[Model]) -> Path:
    return dumps.write_sqlite(path, models, indexes="")


def _in_wal_mode(path: Path, models: list[Model]) -> Path:
    dumps.write_sqlite(path, models)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    return path


def _numbers_as_text(path: Path, models: list[Model]) -> Path:
    return dumps.write_sqlite(
        path, models, tables=dumps.TABLES.replace("model_id INTEGER", "model_id TEXT"), indexes=""
    )


Write = Callable[[Path, list[Model]], Path]
KINDS: list[Write] = [dumps.write_sqlite, _without_indexes, _in_wal_mode, _numbers_as_text, _as_lines, _as_pages]


@pytest.mark.parametrize("write", KINDS)
def test_a_dump_says_what_files_are_and_no_site_is_asked(
    site: Sites, here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path, write: Write
) -> None:
    dump = write(tmp_path / "dump", site.world.models)
    before = dump.read_bytes()
    assert known_to(here, dump) == mine
    assert site.requests == []
    assert dump.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("dump")] == ["dump"]
    models = {row["model_id"]: row for row in here.registry.catalogue.files()}
    for model in site.world.models:
        if str(model["id"]) in models:
            row = models[str(model["id"])]
            creator = (model.get("creator") or {}).get("username")
            assert (row["model"], row["creator"]) == (model["name"], creator and str(creator))
            assert row["site_base_model"] == model["modelVersions"][0]["baseModel"]


def test_what_the_dump_told_is_what_the_site_tells(
    site: Sites, here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path
) -> None:
    def told() -> list[dict[str, Any]]:
        dated = ("hashes_at", "remote_file_id", "is_told")
        return [{k: v for k, v in row.items() if k not in dated} for row in here.registry.catalogue.files()]

    here.identify(dump=dumps.write_sqlite(tmp_path / "dump", site.world.models))
    by_dump = told()
    assert all(row["is_told"] for row in here.registry.catalogue.files())
    here.identify()
    assert not any(row["is_told"] for row in here.registry.catalogue.files())
    assert [{**row, "hashes": None} for row in told()] == [{**row, "hashes": None} for row in by_dump]
    assert len(by_dump) >= len(mine)


def test_what_only_a_dump_told_is_asked_of_the_site_later_and_replaced(
    site: Sites, here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path
) -> None:
    older = json.loads(json.dumps(site.world.models))
    for model in older:
        model |= {"name": "an old name", "tags": ["old"]}
    dump = dumps.write_sqlite(tmp_path / "dump", older)
    assert known_to(here, dump) == mine
    assert {row["model"] for row in here.registry.catalogue.files()} == {"an old name"}
    found = here.identify().files
    assert {Path(row["path"]): (row["model_id"], row["version_id"]) for row in found if row["model_id"]} == mine
    assert len([request for request in site.requests if request.path.endswith("by-hash/ids")]) == 1
    names = {str(model["id"]): model["name"] for model in site.world.models}
    assert {row["model_id"]: row["model"] for row in here.registry.catalogue.files()}.items() <= names.items()
    site.clear()
    here.identify()
    assert site.requests == [], "the site has said all of it"
    assert known_to(here, dump) == mine
    assert "an old name" not in {row["model"] for row in here.registry.catalogue.files()}


def test_a_model_that_the_site_has_lost_stays_as_the_dump_tells_it_and_is_asked_for_once(
    here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path, site: Sites
) -> None:
    dump = dumps.write_sqlite(tmp_path / "dump", site.world.models)
    with Sites(World.make(0)) as empty:
        here.civitai.base = empty.civitai_url
        assert known_to(here, dump) == mine
        found = here.identify().files
        assert {Path(row["path"]): (row["model_id"], row["version_id"]) for row in found if row["model_id"]} == mine
        empty.clear()
        here.identify()
        assert empty.requests == []


def test_versions_that_the_site_no_longer_lists_are_added_to_its_model(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    model = next(model for model in site.world.models if len(model["modelVersions"]) > 1)
    old = model["modelVersions"][1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "old.pt").write_bytes(site.world.content(old["files"][0]["id"]))
    list(scan(here.registry, [tmp_path / "mine"]))
    dump = dumps.write_sqlite(tmp_path / "dump", site.world.models)
    with here.registry.write():
        from hnetkit.sources.civitai_models import parse_model
        from hnetkit.sources.sync import store_model

        newer = parse_model({**model, "name": "a new name", "modelVersions": model["modelVersions"][:1]})
        assert newer is not None
        store_model(here.registry, newer)
    (row,) = here.identify(dump=dump).files
    assert (row["model"], row["version"]) == ("a new name", old["name"])


def test_a_file_of_which_the_dump_has_only_the_autov2_is_found_by_that(
    site: Sites, here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path
) -> None:
    models = json.loads(json.dumps(site.world.models))
    for model in models:
        for version in model["modelVersions"]:
            for file in version["files"]:
                file["hashes"] = {"AutoV2": file["hashes"]["SHA256"][:10]}
    assert known_to(here, dumps.write_lines(tmp_path / "dump", models)) == mine


def test_a_converted_file_is_found_as_what_it_was_converted_from(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    model, version, file = next(entry for entry in site.world.files() if entry[2]["name"].endswith(".pt"))
    (tmp_path / "a.pt").write_bytes(site.world.content(file["id"]))
    (tmp_path / "mine").mkdir()
    hnetkit.save(hnetkit.load(tmp_path / "a.pt"), tmp_path / "mine" / "a.safetensors")
    list(scan(here.registry, [tmp_path / "mine"]))
    (row,) = here.identify(dump=dumps.write_sqlite(tmp_path / "dump", site.world.models)).files
    assert (row["model_id"], row["version_id"]) == (str(model["id"]), str(version["id"]))


def test_an_export_of_another_library_is_a_dump(
    site: Sites, here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path
) -> None:
    here.identify()
    lines = list(export_records(here.registry))
    with here.registry.write():
        for table in ("lookups", "models"):
            here.registry._db.execute(f"DELETE FROM {table}")
    site.clear()
    assert known_to(here, dumps.write_lines(tmp_path / "dump", lines)) == mine
    assert site.requests == []


# --- a stranger's file


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty", b"", "no dump of Civitai's records"),
        ("picture", b"\x89PNG\r\n\x1a\n" + bytes(99), "no dump of Civitai's records"),
        ("civitai.zip", b"PK\x03\x04" + bytes(99), "a zip, and no dump"),
        ("cut", b"SQLite format 3\0" + bytes(50), "no database that can be read"),
        ("noise", b"SQLite format 3\0" + os.urandom(9000), "no database that can be read"),
        ("text", b"{\n", "line 1: "),
        ("other", b'{"prompt": "a castle"}\n', "line 1: neither a model nor a list of models"),
        ("deep", b"[" * 100_000, "line 1: "),
        ("export", b'{"kind": "hnetkit", "version": 1, "records": 0}\n', "holds no record of a model"),
    ],
)
def test_what_is_no_dump_is_refused(
    here: FetchSession, mine: object, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileRefused, match=said) as caught:
        here.identify(dump=tmp_path / name)
    assert (caught.value.exit_code, str(caught.value).startswith(f"{tmp_path / name}: ")) == (7, True)
    assert caught.value.hint
    assert here.registry.catalogue.files() == []


@pytest.mark.skipif(os.name == "nt", reason="its shells have no such tools")
@pytest.mark.parametrize(
    ("name", "pack", "hint"),
    [
        ("dump.jsonl.gz", gzip.compress, "gzip -dc {0}/dump.jsonl.gz > {0}/dump.jsonl, then: "),
        ("dump", gzip.compress, "gzip -dc {0}/dump > {0}/dump.jsonl, then: "),
        ("civitai.sqlite.xz", lzma.compress, "xz -dc {0}/civitai.sqlite.xz > {0}/civitai.sqlite, then: "),
    ],
)
def test_a_packed_dump_is_answered_with_how_to_unpack_it(
    here: FetchSession, mine: object, tmp_path: Path, name: str, pack: Callable[[bytes], bytes], hint: str
) -> None:
    (tmp_path / name).write_bytes(pack(b"{}"))
    with pytest.raises(FileRefused, match=r"packed with .*, and no dump") as caught:
        here.identify(dump=tmp_path / name)
    assert str(caught.value.command_hint).startswith(hint.format(tmp_path))


def test_what_is_no_file_is_refused(here: FetchSession, mine: object, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileRefused, match="not a regular file"):
        here.identify(dump=tmp_path / "pipe")
    with pytest.raises(HnetkitError):
        here.identify(dump=tmp_path)
    with pytest.raises(NotFound, match="no such file"):
        here.identify(dump=tmp_path / "absent")


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS id, i AS model_id"
VIEW = f"CREATE VIEW model_files AS {ENDLESS}, i AS version_id, '' AS type, '' AS sha256, '' AS data FROM n"
HUGE = "data TEXT GENERATED ALWAYS AS (hex(zeroblob(400000000)))"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP TABLE model_files", "without a table model_files"),
        ("ALTER TABLE model_files RENAME COLUMN sha256 TO hash", "model_files has no column sha256"),
        (f"DROP TABLE model_files; {VIEW}", "model_files is no plain table"),
        (
            "DROP TABLE models; CREATE VIRTUAL TABLE models USING fts5(id, name, type, username, data)",
            "models is no plain table",
        ),
        (
            f"DROP TABLE models; CREATE TABLE models (id INTEGER PRIMARY KEY, name, type, username, {HUGE})",
            "no plain table",
        ),
        (
            "DROP TABLE models; CREATE TABLE models (id INTEGER PRIMARY KEY, name, type, username, data) WITHOUT ROWID",
            "models is no plain table",
        ),
    ],
)
def test_a_database_of_another_shape_is_refused_and_nothing_of_its_schema_is_run(
    here: FetchSession, mine: object, tmp_path: Path, change: str, said: str
) -> None:
    dump = dumps.write_sqlite(tmp_path / "dump", [])
    with closing(sqlite3.connect(dump)) as db:
        db.executescript(change)
    with pytest.raises(FileRefused, match=said) as caught:
        here.identify(dump=dump)
    assert caught.value.exit_code == 7


@pytest.mark.parametrize("number", [20, 5000])
def test_a_database_of_very_many_parts_is_no_dump(
    here: FetchSession, mine: object, tmp_path: Path, number: int
) -> None:
    """SQLite parses all of a schema, whatever is asked, into thirty times its size."""
    dump = dumps.write_sqlite(tmp_path / "dump", [])
    with closing(sqlite3.connect(dump)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        views = ((f"v{i}", f"CREATE VIEW v{i} AS SELECT {'+'.join(['1'] * 900)}") for i in range(number))
        db.executemany("INSERT INTO sqlite_master SELECT 'view', ?1, ?1, 0, ?2", views)
    if number < 100:
        here.identify(dump=dump)
        return
    with pytest.raises(FileRefused, match="very many tables, indexes or views"):
        here.identify(dump=dump)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="SQLite's limits cannot be set")
def test_a_database_with_a_part_of_great_length_is_refused(here: FetchSession, mine: object, tmp_path: Path) -> None:
    dump = dumps.write_sqlite(tmp_path / "dump", [])
    with closing(sqlite3.connect(dump)) as db:
        db.execute(f"CREATE VIEW v AS SELECT 1 WHERE 1 IN ({','.join(['1'] * 100_000)})")
    with pytest.raises(FileRefused, match="no database that can be read"):
        here.identify(dump=dump)


def test_a_database_with_changes_beside_it_is_refused(here: FetchSession, mine: object) -> None:
    """What is read as it lies there would lack them."""
    with pytest.raises(FileRefused, match=r"another program has it open, or left changes in registry\.db-wal"):
        here.identify(dump=here.registry.path)


def test_a_copy_of_the_registry_is_no_dump(here: FetchSession, mine: object, tmp_path: Path) -> None:
    here.registry._db.execute("VACUUM INTO ?", [str(tmp_path / "copy.db")])
    with pytest.raises(FileRefused, match="models has no column username"):
        here.identify(dump=tmp_path / "copy.db")


def test_a_table_whose_pages_never_end_is_refused(here: FetchSession, mine: object, tmp_path: Path) -> None:
    tables = f"PRAGMA page_size = 512; {dumps.TABLES}"
    dump = dumps.write_sqlite(tmp_path / "dump", [], tables=tables, indexes="")
    with closing(sqlite3.connect(dump)) as db, db:
        rows = ((number, 1, 1, "Model", f"{number:064x}", "{}") for number in range(4000))
        db.executemany("INSERT INTO model_files VALUES (?, ?, ?, ?, ?, ?)", rows)
    dumps.make_endless(dump, "model_files")
    with pytest.raises(FileRefused, match="reading it would never end"):
        here.identify(dump=dump)


def test_a_long_value_that_all_rows_share_does_not_hold_a_look_up_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_SECONDS", 0.1)
    monkeypatch.setattr(database, "_SCHEMA_TEXT", 1 << 20)  # Python 3.10 has no such limit
    path = dumps.write_sqlite(
        tmp_path / "dump.sqlite", [], tables=dumps.TABLES.replace(" sha256 TEXT,", ""), indexes=""
    )
    with closing(sqlite3.connect(path)) as db, db:
        rows = ((number, 7, 8, "", "") for number in range(60_000))
        db.executemany("INSERT INTO model_files VALUES (?, ?, ?, ?, ?)", rows)
        db.execute(f"ALTER TABLE model_files ADD COLUMN sha256 TEXT DEFAULT '{'z' * 900_000}'")
    begun = time.thread_time()
    with pytest.raises(FileRefused, match="reading it would never end"):
        list(find_in_dump(path, WantedHashes(["ab" * 32]), lambda bad: None))
    assert time.thread_time() - begun < 8


def test_a_database_that_is_damaged_anywhere_is_read_or_refused(world: World, tmp_path: Path) -> None:
    """Names of tables, which SQLite's own messages repeat, may be no text any more."""
    whole = dumps.write_sqlite(tmp_path / "dump", world.models).read_bytes()
    wanted = WantedHashes([world.sha256(file["id"]).lower() for _, _, file in world.files()])
    rng, outcomes = random.Random(5), set[str]()
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 10, 100))):
            data[rng.randrange(rng.choice((4096, len(data))))] = rng.choice((0, 5, 13, 255, rng.randrange(256)))
        (tmp_path / "damaged").write_bytes(data)
        try:
            for match in find_in_dump(tmp_path / "damaged", wanted, lambda record: None):
                json.dumps(match.model.raw)
            outcomes.add("read")
        except FileRefused as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"read", "FileRefused", "DamagedFile"}


def test_odd_rows_are_named_and_left_out_and_the_others_are_used(
    site: Sites, here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path
) -> None:
    dump = dumps.write_sqlite(tmp_path / "dump", site.world.models)
    (first, second, third, fourth) = [(int(model), int(version)) for model, version in mine.values()]
    with closing(sqlite3.connect(dump)) as db, db:
        db.execute("UPDATE models SET data = '{' WHERE id = ?", [first[0]])
        db.execute("UPDATE model_versions SET data = ? WHERE id = ?", [b"\xff\xfe", second[1]])
        db.execute("UPDATE models SET data = ? WHERE id = ?", ["[" * 2_000_000, third[0]])
        db.execute("UPDATE models SET name = ? WHERE id = ?", [b"\xff\x00", fourth[0]])
        db.execute("INSERT INTO model_files VALUES (NULL, 'x', 'y', 3.5, ?, NULL)", [b"z" * 99])
        row = [fourth[0], fourth[1], b"\0", b"\1", 7]
        db.execute("INSERT INTO model_files VALUES (NULL, ?, ?, ?, ?, ?)", row)
    bad: list[BadRecord] = []
    found = {Path(row["path"]): row["model_id"] for row in here.identify(dump=dump, failed=bad.append).files}
    lost = {str(number) for number, _ in (first, second, third)}
    assert {model for model in found.values() if model} == {model for model, _ in mine.values()} - lost
    assert {record.id for record in bad} == {first[0], second[0], third[0], fourth[0]}
    assert json.dumps(here.registry.catalogue.raw("civitai", str(fourth[0])))
    assert all("in the dump" in record.reason for record in bad)


def test_a_line_that_is_no_record_does_not_stop_the_others(
    site: Sites, here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path
) -> None:
    dump = dumps.write_lines(tmp_path / "dump", site.world.models)
    first, *others = dump.read_text().splitlines()
    one = json.dumps(hashlib.sha256(next(iter(mine)).read_bytes()).hexdigest())
    odd = ["{", "", f'{{"a": {one}}}', f'{{"items": [3, {{"modelVersions": {one}}}]}}', "[" + "9" * 5000]
    dump.write_text("\n".join([first, *odd, *others]))
    bad: list[BadRecord] = []
    found = here.identify(dump=dump, failed=bad.append).files
    assert {(row["model_id"], row["version_id"]) for row in found if row["model_id"]} == set(mine.values())
    reasons = [record.reason.partition(": ")[0] for record in bad]
    assert reasons == ["line 2", "line 4", "left out", "left out", "line 6"]


def test_a_row_that_thousands_claim_is_cut_and_said(
    here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path, site: Sites
) -> None:
    for indexes in (dumps.INDEXES, ""):
        dump = dumps.write_sqlite(tmp_path / f"dump{len(indexes)}", site.world.models, indexes=indexes)
        model, version = next(iter(mine.values()))
        row = [int(model), int(version), "Model", f"{hashlib.sha256(b'').hexdigest()}", "{}"]
        with closing(sqlite3.connect(dump)) as db, db:
            db.executemany(
                "INSERT INTO model_files (model_id, version_id, type, sha256, data) VALUES (?, ?, ?, ?, ?)",
                [row] * 1500,
            )
        bad: list[BadRecord] = []
        here.identify(dump=dump, failed=bad.append)
        assert [record.reason for record in bad] == [
            f"left out: rows of model_files beyond the first 1,000 with version_id {version}"
        ]


def test_versions_that_claim_the_same_files_do_not_fill_the_memory(
    here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path, site: Sites
) -> None:
    dump = dumps.write_sqlite(tmp_path / "dump", site.world.models, tables=dumps.TABLES.replace(" PRIMARY KEY", ""))
    model, version = next(iter(mine.values()))
    data = json.dumps({"name": "x.pt", "note": "x" * 2000})
    with closing(sqlite3.connect(dump)) as db, db:
        row = [int(version), int(model), "v", "{}"]
        db.executemany("INSERT INTO model_versions (id, model_id, name, data) VALUES (?, ?, ?, ?)", [row] * 900)
        db.executemany(
            "INSERT INTO model_files (id, model_id, version_id, type, data) VALUES (?, ?, ?, 'Model', ?)",
            [[10**6 + n, int(model), int(version), data] for n in range(900)],
        )
    bad: list[BadRecord] = []
    found = here.identify(dump=dump, failed=bad.append).files
    assert [(record.id, "far more memory" in record.reason) for record in bad] == [(int(model), True)]
    assert {row["model_id"] for row in found} - {None} == {number for number, _ in mine.values()} - {model}


def test_records_of_one_line_that_make_no_sense_are_counted_beyond_a_thousand(
    here: FetchSession, mine: dict[Path, tuple[str, str]], tmp_path: Path, site: Sites
) -> None:
    one = json.dumps(hashlib.sha256(next(iter(mine)).read_bytes()).hexdigest())
    dump = dumps.write_lines(tmp_path / "dump", site.world.models)
    dump.write_text(f"{dump.read_text()}[{one}{', 0' * 4999}]\n")
    bad: list[BadRecord] = []
    found = here.identify(dump=dump, failed=bad.append).files
    assert (len(bad), sum(record.count for record in bad)) == (MOST_NAMED + 1, 5000)
    assert len([row for row in found if row["model_id"]]) == 4


# --- the command


def test_the_command_asks_no_site_and_says_what_is_known(
    site: Sites,
    home: Path,
    mine: dict[Path, tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    dump = dumps.write_sqlite(tmp_path / "dump", site.world.models)
    assert run(["identify", "--dump", str(dump)]) == 0
    said = capsys.readouterr()
    assert f"{len(mine)} of 5 files known" in said.err
    assert f"{tmp_path / 'mine' / 'own.pt'}  not known" in said.out
    assert site.requests == []
    assert run(["identify", "--dump", str(dump), "--again"]) == 2
    assert run(["identify", "--dump", str(tmp_path / "absent")]) == 4
    (tmp_path / "picture").write_bytes(b"\x89PNG")
    assert run(["identify", "--dump", str(tmp_path / "picture")]) == 7
