"""`hnetkit.FetchSession`: the verbs of the fetching commands, from Python."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response
from support.fetching import EVERYTHING

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import NotFound, PartlyFailed, UsageError
from hnetkit.sources.civitai import Filters
from hnetkit.sources.civitai_models import BadRecord
from hnetkit.sources.results import FetchResult, require_all

OpenSession = Callable[..., hnetkit.FetchSession]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A site of seven models, that the environment names."""
    with Sites(World.make(7)) as sites:
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", sites.civitai_url)
        monkeypatch.setenv("CIVITAI_TOKEN", sites.token)
        yield sites


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    capsys.readouterr()
    code = run([*arguments, "--json", "-q"])
    return code, json.loads(capsys.readouterr().out)


def told(results: list[hnetkit.sources.results.FetchResult], home: Path) -> list[Any]:
    return sorted((r.state, r.name, r.code, r.sha256, [Path(p).relative_to(home) for p in r.paths]) for r in results)


def rows_told(rows: list[dict[str, Any]], home: Path) -> list[Any]:
    return sorted(
        (r["state"], r["name"], r["code"], r["sha256"], [Path(p).relative_to(home) for p in r["paths"]]) for r in rows
    )


def test_a_sync_from_python_is_that_of_the_command_line(
    small: Sites, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rows = command(capsys, "sync", "-y", "--nsfw", "--all-versions", "--parallel", "1")  # or names are raced for
    with (
        hnetkit.Library(tmp_path / "other") as library,
        hnetkit.FetchSession(library, parallel=1, nsfw=True) as session,
    ):
        results = session.sync(EVERYTHING, all_versions=True)
        assert told(results, tmp_path / "other") == rows_told(rows, home)
        assert {result.state for result in session.sync(EVERYTHING, all_versions=True)} <= {"skipped", "refused"}
    other = {path.name for path in (tmp_path / "other" / "library").iterdir()}
    assert other == {path.name for path in (home / "library").iterdir()}


def test_what_is_pulled_from_python_says_where_it_is_and_a_second_time_that_it_was_there(
    small: Sites, home: Path
) -> None:
    with hnetkit.FetchSession() as session:
        seen: list[tuple[int, int]] = []
        (result,) = session.pull("civitai:900000", progress=lambda done, total: seen.append((done, total)))
        assert (result.state, result.model_id) == ("done", "900000")
        assert hnetkit.load(result.paths[0]).content_hash
        assert seen[-1][0] == seen[-1][1] == Path(result.paths[0]).stat().st_size
        (again,) = session.pull("civitai:900000")
        assert (again.state, again.paths) == ("have", result.paths)
        assert session.library.record(Path(result.paths[0]).stem)["content_hash"]


def test_of_several_references_one_that_cannot_be_had_is_a_result_and_alone_it_is_raised(small: Sites) -> None:
    with hnetkit.FetchSession() as session:
        with pytest.raises(hnetkit.errors.Gone):
            session.pull("model:1")
        missing, came = session.pull("model:1", "civitai:900000")
        assert (missing.state, missing.name, came.state) == ("failed", "model:1", "done")
        assert isinstance(missing.error, hnetkit.errors.Gone)
        with pytest.raises(PartlyFailed, match="1 of 2"):
            require_all([missing, came])
        with pytest.raises(hnetkit.errors.Gone):
            require_all([missing])
        odd, there = session.pull("no such thing", "civitai:900000")
        assert (type(odd.error), there.state) == (UsageError, "have")
        with pytest.raises(UsageError, match="none of the references"):
            session.pull("no such thing", "nor this")


def test_for_what_an_owner_does_not_give_the_hint_is_no_second_try() -> None:
    failed = [FetchResult("failed", name, "no-access", "the owner has disabled downloads") for name in ("a.pt", "b.pt")]
    for results in (failed, failed[:1]):
        with pytest.raises(hnetkit.errors.HnetkitError) as caught:
            require_all(results)
        assert caught.value.command_hint == "that is up to the owner; sync asks again after a day"


def test_a_plan_touches_nothing_and_is_carried_out_as_it_was_shown(small: Sites, home: Path) -> None:
    with hnetkit.FetchSession() as session:
        plan = session.plan(Filters(ids=tuple(small.world.ids()[:2])))
        assert plan.to_fetch
        assert session.library.registry.jobs.rows() == []
        assert not session.folder.exists()
        results = session.carry_out(plan)
        assert {result.state for result in results if result.job is not None} == {"done"}
        assert len([result for result in results if result.job is not None]) == len(plan.to_fetch)


def test_what_is_saved_under_a_name_is_synced_by_it_and_dated(small: Sites) -> None:
    with hnetkit.FetchSession() as session:
        session.subscribe("two", Filters(ids=tuple(small.world.ids()[:2])))
        assert [row["synced_at"] for row in session.subscriptions()] == [None]
        results = session.sync("two")
        assert {result.state for result in results} == {"done"}
        assert session.subscriptions()[0]["synced_at"] is not None
        session.unsubscribe("two")
        assert session.subscriptions() == []
        with pytest.raises(NotFound, match="two"):
            session.sync("two")
        with pytest.raises(NotFound, match="two"):
            session.unsubscribe("two")


def test_what_is_damaged_is_found_and_fetched_again(small: Sites) -> None:
    with hnetkit.FetchSession() as session:
        (result,) = session.pull("civitai:900000")
        before = Path(result.paths[0]).read_bytes()
        assert session.repair() == []
        Path(result.paths[0]).write_bytes(before[:-9])
        (damage,) = session.damages()
        assert (damage.what, damage.path) == ("corrupt", result.paths[0])
        (mended,) = session.repair()
        assert mended.state == "done"
        assert Path(mended.paths[0]).read_bytes() == before


def test_files_are_identified_and_newer_versions_found(small: Sites) -> None:
    with hnetkit.FetchSession() as session:
        (result,) = session.pull("civitai:900000")
        (file,) = session.identify().files
        assert (file["path"], file["model_id"]) == (result.paths[0], "900000")
        assert [update.model.id for update in session.updates()] == []
        assert [model.id for model in session.browse(Filters(ids=(900000,)))] == [900000]
        assert len(session.browse(EVERYTHING, limit=2)) == 2


def test_a_record_that_cannot_be_used_is_a_warning_unless_somebody_listens(small: Sites) -> None:
    first = small.world.ids()[0]

    def odd(request: Request, response: Response) -> Response:
        if request.path == "/api/v1/models":
            content = response.json()
            next(item for item in content["items"] if item["id"] == first)["modelVersions"] = 5
            response.body = json.dumps(content).encode()
        return response

    small.alter = odd
    with hnetkit.FetchSession() as session:
        with pytest.warns(UserWarning, match=f"model:{first}"):
            session.browse(EVERYTHING)
        failed: list[BadRecord] = []
        session.browse(EVERYTHING, failed=failed.append)
        assert len(failed) == 1


def test_a_session_that_an_exception_ends_leaves_what_came_to_the_next(small: Sites) -> None:
    class Enough(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise Enough

    with hnetkit.FetchSession(parallel=1) as session, pytest.raises(Enough):
        session.sync(EVERYTHING, progress=stop)
    small.clear()
    with hnetkit.FetchSession() as session:
        jobs = session.library.registry.jobs.rows()
        assert {job.owner for job in jobs} == {None}
        had = {job.key for job in jobs if job.state == "done"}
        results = session.sync(EVERYTHING)
        assert had
        assert {result.state for result in results if result.job is not None} == {"done"}
        assert not {f"civitai:{r.file_id}" for r in results if r.job is not None} & had


def test_each_model_is_stored_once_by_a_sync(small: Sites) -> None:
    with hnetkit.FetchSession() as session:
        connection: sqlite3.Connection = session.registry.catalogue._db
        # counted by SQLite: a callback in Python waits for its lock, which a thread on the same connection may hold
        connection.execute("CREATE TEMP TABLE stored (remote_id)")
        connection.execute(
            "CREATE TEMP TRIGGER counting BEFORE INSERT ON models BEGIN INSERT INTO stored VALUES (NEW.remote_id); END"
        )
        plan = session.plan(EVERYTHING, all_versions=True)
        session.carry_out(plan)
        (stored,) = connection.execute("SELECT count(*) FROM stored").fetchone()
        assert stored == len(plan.models) > 1
