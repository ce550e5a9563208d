"""That a network is gone at its source is known, since when, and where else its bytes are: shown, exported, kept."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Sites
from support.fake_sites.messages import error
from support.fetching import EVERYTHING, installed

from hnetkit.cli import run
from hnetkit.library.library import Library
from hnetkit.sources.export import export_library, import_library
from hnetkit.sources.session import FetchSession

Capture = pytest.CaptureFixture[str]
NOW = datetime.now(timezone.utc)


@pytest.fixture
def archived(site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """The site, all of which is here and in an archive, with a mirror that has each file."""
    monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", site.civarchive_url)
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    site.civarchive.keep_all("right", "deleted")
    here.sync(EVERYTHING, all_versions=True)
    return site


def stem(session: FetchSession, site: Sites, model: int) -> str:
    """The name here of the first file of a model."""
    content = site.world.content(next(file["id"] for each, _, file in site.world.files() if each["id"] == model))
    return installed(session)[hashlib.sha256(content).hexdigest()].stem


def rows(capsys: Capture, *command: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run([*command, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_pull_of_what_is_gone_and_here_says_so_and_takes_its_number_for_no_other(
    archived: Sites, here: FetchSession, capsys: Capture
) -> None:
    first = archived.world.ids()[0]
    version = next(version["id"] for model, version, _ in archived.world.files() if model["id"] == first)
    path = here.library.folder / f"{stem(here, archived, first)}.pt"
    archived.world.remove(first)
    for text in (f"model:{first}", f"version:{version}"):
        capsys.readouterr()
        assert run(["pull", text]) == 4
        told = capsys.readouterr().err
        assert f"{text}: the site has none any more; here is {path}" in told
        assert "may be" not in told


@pytest.mark.parametrize("what", ["remove", "archive"])
@pytest.mark.parametrize("is_known", [True, False])
def test_pull_of_what_the_site_does_not_give_any_more_has_one_answer_whoever_tells_that_it_is_here(
    archived: Sites, here: FetchSession, capsys: Capture, what: str, is_known: bool
) -> None:
    first = archived.world.ids()[0]
    version = next(version["id"] for model, version, _ in archived.world.files() if model["id"] == first)
    path = here.library.folder / f"{stem(here, archived, first)}.pt"
    getattr(archived.world, what)(first)
    if not is_known:  # as where somebody copied the file there: the archive alone tells which bytes the site had
        with here.registry.write():
            here.registry.catalogue._db.execute("DELETE FROM jobs")
            here.registry.catalogue._db.execute("DELETE FROM models")
    for text in (f"model:{first}", f"https://civitai.com/models/{first}?modelVersionId={version}"):
        capsys.readouterr()
        assert run(["pull", text]) == 4
        told = capsys.readouterr().err
        assert f"; here is {path}\nHint: hnetkit list\n" in told
        assert ("the site has none any more" if what == "remove" else "is archived") in told


def test_updates_notes_what_is_gone_and_lists_say_since_when(
    archived: Sites, here: FetchSession, capsys: Capture
) -> None:
    first, second, third = archived.world.ids()
    names = {id: stem(here, archived, id) for id in (first, second, third)}
    assert run(["list"]) == 0
    assert "gone" not in capsys.readouterr().out
    archived.world.remove(first)
    archived.world.archive(second)
    with pytest.warns(UserWarning, match="2 networks gone at the source, kept here: hnetkit list"):
        here.updates()
    listed = {row["name"]: row["gone"] for row in rows(capsys, "list")}
    assert (listed[names[first]]["source"], listed[names[first]]["state"]) == ("civitai", "gone")
    assert listed[names[second]]["state"] == "archived"
    assert listed[names[third]] is None
    assert NOW - timedelta(minutes=1) < datetime.fromisoformat(listed[names[first]]["since"])
    (found,) = [row for row in rows(capsys, "search", names[second]) if row["name"] == names[second]]
    assert found["gone"]["state"] == "archived"
    assert run(["list"]) == 0
    table = capsys.readouterr().out
    assert f"archived since {NOW:%Y-%m-}" in table
    archived.world._models.clear()
    here.updates()
    assert {row["gone"]["state"] for row in rows(capsys, "list")} == {"gone"}


def test_a_table_of_values_has_the_column_whether_or_not_something_is_gone(
    archived: Sites, here: FetchSession, capsys: Capture
) -> None:
    def column() -> set[str]:
        capsys.readouterr()
        assert run(["list", "--csv"]) == 0
        return {row["gone"] for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}

    assert column() == {""}
    archived.world.remove(archived.world.ids()[0])
    here.updates()
    assert any("gone since 20" in value for value in column())


def test_what_is_listed_again_is_not_gone_any_more(archived: Sites, here: FetchSession, capsys: Capture) -> None:
    first = archived.world.ids()[0]
    name, model = stem(here, archived, first), archived.world._models[first]
    archived.world.remove(first)
    here.updates()
    assert {row["name"]: row["gone"] for row in rows(capsys, "list")}[name] is not None
    archived.world._models[first] = model
    here.updates()
    assert {row["name"]: row["gone"] for row in rows(capsys, "list")}[name] is None


def test_an_answer_that_failed_is_no_proof_that_a_model_is_gone(
    archived: Sites, here: FetchSession, capsys: Capture
) -> None:
    first = archived.world.ids()[0]
    archived.world.remove(first)
    archived.alter = lambda request, response: (
        error(500, "no") if request.path.endswith(f"/models/{first}") else response
    )
    here.updates(failed=lambda bad: None)
    assert all(row["gone"] is None for row in rows(capsys, "list"))


def test_show_says_since_when_and_where_else_its_bytes_are(
    archived: Sites, here: FetchSession, capsys: Capture
) -> None:
    first = archived.world.ids()[0]
    name = stem(here, archived, first)
    path = next(path for path in installed(here).values() if path.stem == name)
    archived.world.remove(first)
    path.unlink()
    here.repair()
    capsys.readouterr()
    assert run(["show", name]) == 0
    card = capsys.readouterr().out
    assert f"(this file gone since {NOW:%Y-%m-}" in card
    assert f"at its source  gone since {NOW:%Y-%m-}" in card
    mirror = f"{archived.civarchive.mirrors_url}/right/"
    assert f"also at        {mirror}" in card
    assert "(gave them, " in card
    (row,) = rows(capsys, "show", name)
    assert [(place["source"], place["state"]) for place in row["elsewhere"]] == [("civarchive", "served")]
    assert "signature" not in json.dumps(row["elsewhere"])


def test_a_repair_asks_no_more_than_it_has_to(archived: Sites, here: FetchSession) -> None:
    first = archived.world.ids()[0]
    name = stem(here, archived, first)
    next(path for path in installed(here).values() if path.stem == name).unlink()
    archived.world.archive(first)
    archived.clear()
    here.repair()
    asked = [(request.origin, request.path.split("/")[2]) for request in archived.requests]
    assert [origin for origin, _ in asked].count("civarchive") == 1
    assert [origin for origin, _ in asked].count("mirrors") == 1
    (row,) = [row for row in here.library.networks() if row["name"] == name]
    assert row["gone"]["state"] == "archived"


def test_another_machine_learns_it_all_from_an_export(archived: Sites, here: FetchSession, tmp_path: Path) -> None:
    first = archived.world.ids()[0]
    name = stem(here, archived, first)
    next(path for path in installed(here).values() if path.stem == name).unlink()
    archived.world.remove(first)
    here.repair()
    here.updates()
    export_library(here.library, tmp_path / "library.jsonl")
    before = {row["name"]: (row["gone"], row["elsewhere"]) for row in here.library.networks()}
    assert before[name][0]["state"] == "gone"
    assert before[name][1]
    told = [json.loads(line) for line in (tmp_path / "library.jsonl").read_text().splitlines()]
    assert any(line.get("gone") for line in told)
    with Library(tmp_path / "new") as library:
        assert import_library(library, tmp_path / "library.jsonl").failures == ()
        after = {row["name"]: (row["gone"], row["elsewhere"]) for row in library.networks()}
    assert after[name] == before[name]
    assert after == before


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "https://a.example/x?key=secret"},
        {"url": "https://me:word@a.example/x"},
        {"url": 5},
        {"url": "x" * 5000},
        {"url": "https://[/x"},
        {"url": "https://[fe80::1%25a%25b]/x"},
        {"url": "file:///x"},
        {"source": "a friend"},
        {"state": "splendid"},
        {"seen_at": "2999-01-01T00:00:00+00:00"},
        {"seen_at": "yesterday"},
        {"seen_at": "2026-01-01T00:00:00+01:00"},
        {"seen_at": "20260101T000000+00:00"},
        {"seen_at": "2026-W01-4T00:00:00+00:00"},
        {"sha256": "abc"},
    ],
)
def test_an_odd_mirror_of_an_import_is_the_failure_of_its_line(
    archived: Sites, here: FetchSession, tmp_path: Path, changes: dict[str, Any]
) -> None:
    export_library(here.library, tmp_path / "library.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "library.jsonl").read_text().splitlines()]
    good = {"sha256": "ab" * 32, "url": "https://a.example/x", "source": "civarchive", "state": "listed"}
    good["seen_at"] = "2026-01-01T00:00:00+00:00"
    lines[1]["mirrors"] = [good | changes]
    lines[2]["mirrors"] = [good]
    (tmp_path / "odd.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with Library(tmp_path / "new") as library:
        found = import_library(library, tmp_path / "odd.jsonl")
        assert found.failures == ("line 2: a network whose mirrors is not a list of mirrors",)
        assert [row["url"] for row in library.registry.mirrors.of(["ab" * 32])] == ["https://a.example/x"]
