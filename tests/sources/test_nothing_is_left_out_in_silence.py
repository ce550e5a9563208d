"""What does not come is said, and comes later; what is there is what was asked for; no silence counts as an absence."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import ssl
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import requests
from huggingface_hub import constants
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response, json_response
from support.fast_clock import FastClock
from support.fetching import EVERYTHING, installed
from support.killed import Killed, killed_at
from support.odd_answers import OpenSession, answering, listed, network_bytes, zipped

from hnetkit.cli import run
from hnetkit.errors import AuthRequired, EarlyAccess, NetworkFailed, NotFound, OtherContent
from hnetkit.sources import results
from hnetkit.sources.civitai import Civitai, Filters
from hnetkit.sources.http import RealClock, _failed_connection, retry_after
from hnetkit.sources.session import FetchSession


@pytest.fixture
def command(site: Sites, home: Path, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """The command line of this test's home fetches from `site`."""
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    monkeypatch.setenv("CIVITAI_TOKEN", site.token)
    return site


# --- sidecars and previews


def beside(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_wherever_a_sync_is_killed_the_next_one_leaves_a_network_with_all_its_sidecars(
    site: Sites, open_session: OpenSession, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    only = Filters(ids=(site.world.ids()[0],))
    session = open_session(site)
    session.sync(only)
    whole = beside(session.folder)
    assert {Path(name).suffix for name in whole} >= {".pt", ".info", ".json", ".jpeg"}
    for number in range(1, 100):
        for path in session.folder.iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path)
        with (
            killed_at(monkeypatch, number, after=after) as made,
            contextlib.suppress(Killed),
        ):
            session.sync(only, refill=True)
        session.sync(only, refill=True)
        assert beside(session.folder) == whole, (number, made)
        if len(made) < number:
            break
    assert number > 5


def test_a_preview_that_does_not_come_is_said_and_comes_with_the_next_sync(site: Sites, here: FetchSession) -> None:
    site.alter = lambda request, response: Response(503) if request.path.startswith("/images") else response
    first = here.sync(EVERYTHING)
    assert {result.state for result in first} == {"done"}
    told = [result.reason for result in first if result.code == "sidecars"]
    assert told
    assert all("preview" in str(reason) for reason in told)
    assert not list(here.folder.glob("*.preview.*"))
    site.alter = lambda request, response: response
    site.clear()
    second = here.sync(EVERYTHING)
    assert [(result.state, result.code) for result in second] == [("done", None)] * len(told)
    assert len(list(here.folder.glob("*.preview.*"))) == len(told)
    assert not [request for request in site.requests if "/download/" in request.path]
    assert here.sync(EVERYTHING) == []


def test_a_preview_that_a_person_removed_does_not_come_back(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING)
    for picture in here.folder.glob("*.preview.*"):
        picture.unlink()
    assert here.sync(EVERYTHING) == []
    assert not list(here.folder.glob("*.preview.*"))


# --- the library's folder


def test_a_library_that_is_moved_while_a_sync_runs_is_not_begun_anew(
    site: Sites, open_session: OpenSession, tmp_path: Path
) -> None:
    session = open_session(site, parallel=1)
    moved = tmp_path / "moved"

    def move(request: Request, response: Response) -> Response:
        if request.path.startswith("/files/") and installed(session) and not moved.exists():
            session.folder.rename(moved)
        return response

    site.alter = move
    found = session.sync(EVERYTHING, all_versions=True)
    assert {result.state for result in found} == {"done", "failed"}
    assert any("was it moved, or its disk unmounted" in str(result.reason) for result in found)
    assert not session.folder.exists()


def test_a_library_whose_disk_is_another_while_a_sync_runs_gets_nothing(
    site: Sites, open_session: OpenSession, tmp_path: Path
) -> None:
    session = open_session(site, parallel=1)
    others = (folder for folder in map(Path, ("/dev/shm", "/var/tmp")) if os.access(folder, os.W_OK))
    other = next((folder for folder in others if folder.stat().st_dev != tmp_path.stat().st_dev), None)
    if other is None:
        pytest.skip("needs a second file system")
    disk, mount_point = Path(tempfile.mkdtemp(dir=other)), tmp_path / "empty"
    mount_point.mkdir()
    try:
        session.folder.symlink_to(disk)

        def unmount(request: Request, response: Response) -> Response:
            if request.path.startswith("/files/") and installed(session) and session.folder.resolve() == disk:
                session.folder.unlink()
                session.folder.symlink_to(mount_point)
            return response

        site.alter = unmount
        found = session.sync(EVERYTHING, all_versions=True)
        assert "failed" in {result.state for result in found}
        assert not list(mount_point.glob("*.pt"))
    finally:
        shutil.rmtree(disk)


# --- damaged files and other content


def test_a_sync_puts_a_network_where_its_damaged_file_is(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING)
    path = sorted(installed(here).values())[0]
    good = path.read_bytes()
    path.write_bytes(good[:2000])
    (result,) = here.sync(EVERYTHING)
    (kept,) = (here.folder / ".quarantine").glob("*.bad")
    assert (result.state, result.code, result.paths) == ("done", "replaced", (str(path),))
    assert str(kept) in str(result.reason)
    assert (path.read_bytes(), kept.read_bytes()) == (good, good[:2000])
    assert here.damages() == []


def test_a_pull_of_a_damaged_file_puts_it_in_its_place(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING)
    path = sorted(installed(here).values())[0]
    good = path.read_bytes()
    path.write_bytes(good[:2000])
    (result,) = here.pull(hashlib.sha256(good).hexdigest())
    assert (result.code, result.paths, path.read_bytes()) == ("replaced", (str(path),), good)


def test_repair_says_where_a_damaged_file_is_whose_bytes_are_elsewhere(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING)
    path = sorted(installed(here).values())[0]
    copy = path.with_name("copy.pt")
    copy.write_bytes(path.read_bytes())
    path.write_bytes(path.read_bytes()[:2000])
    (result,) = here.repair()
    (kept,) = (here.folder / ".quarantine").glob("*.bad")
    assert (result.state, result.code, result.paths) == ("had", "replaced", (str(copy),))
    assert str(kept) in str(result.reason)


def test_another_network_in_the_place_of_one_is_kept_by_a_sync(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING)
    first, second, *_ = sorted(installed(here).values())
    own = network_bytes(7)
    first.write_bytes(own)
    (result,) = here.sync(EVERYTHING)
    assert first.read_bytes() == own
    assert str(first) not in result.paths
    assert result.state == "done"
    assert second.exists()


@pytest.mark.parametrize("what", ["missing", "damaged"])
def test_repair_brings_no_other_content_where_the_site_states_no_hash(open_session: OpenSession, what: str) -> None:
    with Sites(World.make(39)) as site:
        session = open_session(site)
        id = site.world.find("no hashes")[0]
        session.sync(Filters(ids=(id,)))
        ((sha256, path),) = installed(session).items()
        data = path.read_bytes()
        site.world.replace_file(site.world.model(id)["modelVersions"][0]["files"][0]["id"])
        path.unlink() if what == "missing" else path.write_bytes(data[:-9] + b"x" * 9)
        (result,) = session.repair(refill=True)
        assert (result.state, result.code, result.paths) == ("failed", "other-content", ())
        assert sha256 in str(result.reason)
        assert [damage.sha256 for damage in session.damages()] == [sha256]
        with pytest.raises(OtherContent) as caught:
            results.require_all([result])
        assert "pull" in str(caught.value.hint)


def test_repair_of_a_file_without_a_hash_at_the_site_brings_it_back(open_session: OpenSession) -> None:
    with Sites(World.make(39)) as site:
        session = open_session(site)
        session.sync(Filters(ids=(site.world.find("no hashes")[0],)))
        ((sha256, path),) = installed(session).items()
        path.unlink()
        assert [result.state for result in session.repair(refill=True)] == ["done"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def test_a_file_without_a_hash_that_its_owner_replaced_is_noticed_by_its_size(open_session: OpenSession) -> None:
    with Sites(World.make(39)) as site:
        session = open_session(site)
        id = site.world.find("no hashes")[0]
        session.sync(Filters(ids=(id,)))
        before = set(installed(session))
        assert session.sync(Filters(ids=(id,))) == []
        file = site.world.model(id)["modelVersions"][0]["files"][0]
        site.world.replace_file(file["id"])
        site.world.model(id)
        file["sizeKB"] += 3
        (update,) = session.updates()
        assert update.is_replaced
        assert [result.state for result in session.sync(Filters(ids=(id,)))] == ["done"]
        assert set(installed(session)) > before
        assert session.updates() == []


# --- listings


def looping(site: Sites, monkeypatch: pytest.MonkeyPatch, size: int = 40) -> None:
    """Has the second page of a list lead to itself; pages have `size` models at most."""
    from support.fake_sites import listing

    read = listing._read

    def small(request: Request, logged_in: bool) -> Any:
        wish = read(request, logged_in)
        wish.limit = min(wish.limit, size)
        return wish

    def loop(request: Request, response: Response) -> Response:
        if request.path != "/api/v1/models" or not request.one("cursor"):
            return response
        page = response.json()
        page["metadata"]["nextCursor"] = request.one("cursor")
        return json_response(page)

    monkeypatch.setattr(listing, "_read", small)
    site.alter = loop


def test_a_list_that_repeats_itself_is_read_from_the_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sites(World.make(60, plain=True)) as site:
        looping(site, monkeypatch)
        bad: list[str] = []
        civitai = Civitai(FastClock(), base=site.civitai_url)
        pages = civitai.pages(EVERYTHING, failed=lambda record: bad.append(record.reason))
        assert {model.id for page in pages for model in page} == set(site.world.ids())
        assert bad == []


def test_what_a_list_that_repeats_itself_leaves_out_is_said(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sites(World.make(130, plain=True)) as site:
        looping(site, monkeypatch, 20)
        plan = open_session(site).plan(EVERYTHING)
        assert len(plan.models) == 80
        assert [bad.reason for bad in plan.failed] == [
            "the listing breaks off after 80 models: models: the list repeats itself"
        ]


def test_a_model_is_not_called_unlisted_where_the_list_was_cut(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sites(World.make(130, plain=True)) as site:
        session = open_session(site)
        session.sync(EVERYTHING, metadata_only=True)
        looping(site, monkeypatch, 20)
        monkeypatch.setattr("hnetkit.sources.sync._ASKED_LATELY", timedelta(hours=-1))
        found = session.sync(EVERYTHING, metadata_only=True)
        assert [result.name for result in found] == ["a record of the list"]


def test_a_search_that_repeats_itself_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def page(request: Request) -> Response:
        return json_response({"items": [{"id": 1}, {"id": 2}], "metadata": {"nextCursor": "2"}})

    with answering(page) as (civitai, _):
        bad: list[str] = []
        found = [m for each in civitai.pages(Filters(query="ink"), failed=lambda b: bad.append(b.reason)) for m in each]
        assert [model.id for model in found] == [1, 2]
        assert ["repeats itself" in reason for reason in bad] == [True]


def test_a_list_that_has_only_one_end_and_repeats_itself_is_said() -> None:
    def page(request: Request) -> Response:
        return json_response({"items": [{"id": 1}, {"id": 2}], "metadata": {"nextCursor": "9|9"}})

    with answering(page) as (civitai, _):
        bad: list[str] = []
        for _page in civitai.pages(EVERYTHING, failed=lambda record: bad.append(record.reason)):
            pass
        assert ["repeats itself" in reason for reason in bad] == [True]


def test_models_of_others_that_a_site_lists_for_a_creator_are_left_out() -> None:
    world = World.make(12, plain=True)
    with answering(lambda request: json_response({"items": world.models, "metadata": {}})) as (civitai, _):
        names = {(model.get("creator") or {}).get("username") for model in world.models}
        assert len(names) > 3
        found = listed(civitai, Filters(username="InkFox_Test", nsfw=True))
        allowed = {m["id"] for m in world.models if (m.get("creator") or {}).get("username") in ("inkfox_test", None)}
        assert set(found) == allowed


def test_of_a_model_the_newest_version_for_the_wanted_base_model_comes(
    open_session: OpenSession,
) -> None:
    with Sites(World.make(12, plain=True)) as site:
        model = next(m for m in site.world.models if len(m["modelVersions"]) == 2)
        older, newer = sorted(model["modelVersions"], key=lambda version: str(version["publishedAt"]))
        older["baseModel"], newer["baseModel"] = "SD 1.5", "SDXL 1.0"
        site.alter = lambda request, response: (
            json_response({"items": [model], "metadata": {}}) if request.path == "/api/v1/models" else response
        )
        session = open_session(site)

        def versions(**more: Any) -> list[int]:
            plan = session.plan(Filters(base_models=("SD 1.5", "SD 1.4"), nsfw=True), **more)
            return [item.version_id for item in plan.items]

        assert versions() == versions(all_versions=True) == [older["id"]]
        assert [item.version_id for item in session.plan(EVERYTHING).items] == [newer["id"]]


def test_a_checkpoint_that_a_list_of_numbers_names_is_refused_before_anything_is_fetched(
    open_session: OpenSession,
) -> None:
    with Sites(World.make(3, others=2, plain=True)) as site:
        others = site.world.find("other")
        found = open_session(site).sync(Filters(ids=(*others, site.world.ids()[0])))
        refused = {result.model_id: result.reason for result in found if result.state == "refused"}
        assert set(refused) == set(others)
        assert all("not a hypernetwork: the site calls it" in str(reason) for reason in refused.values())
        assert sum("/download/" in request.path for request in site.requests) == 1


def test_only_what_the_site_was_asked_about_is_said_to_be_missing(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.civitai.MOST_GONE", 10)
    with Sites(World.make(39)) as site:
        archived = site.world.find("archived")[0]
        plan = open_session(site).plan(Filters(ids=(*range(1, 16), archived, site.world.ids()[0])))
        assert plan.missing == list(range(1, 11))
        (bad,) = plan.failed
        assert bad.about == {*range(11, 16), archived}
        assert str(archived) in bad.reason
        states = {result.name: result.reason for result in results.of_plan(plan)}
        assert states["model:10"] == "the site has none"
        assert f"model:{archived}" not in states


def test_a_model_without_a_file_is_named(open_session: OpenSession) -> None:
    with Sites(World.make(39)) as site:
        archived, training = site.world.find("archived")[0], site.world.find("training primary")[0]
        session = open_session(site)
        plan = session.plan(Filters(ids=(archived, training)))
        found = {result.model_id: (result.state, result.code) for result in results.of_plan(plan)}
        assert found == {archived: ("skipped", "archived"), training: ("skipped", "no-file")}
        assert plan.left_out == 2
        assert {r.model_id: (r.state, r.code) for r in session.carry_out(plan)} == found


# --- updates


def test_a_newer_version_that_cannot_be_had_yet_is_an_update_with_the_reason(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING)
    version = site.world.add_version(site.world.ids()[0])
    site.world.early_access(version["id"], "2099-01-01T00:00:00.000Z")
    (update,) = here.updates()
    assert (update.newest.version_id, update.newest.reason) == (version["id"], "early access until 2099-01-01")
    assert not update.is_replaced


def test_a_file_that_a_person_removed_is_not_called_replaced(open_session: OpenSession) -> None:
    with Sites(World.make(39)) as site:
        session = open_session(site)
        session.sync(Filters(ids=(site.world.find("two formats")[0],)))
        first, *others = sorted(installed(session).values())
        assert others
        first.unlink()
        assert session.updates() == []


def test_updates_and_identify_do_not_take_an_unmounted_disk_for_an_empty_library(
    site: Sites, here: FetchSession
) -> None:
    here.sync(EVERYTHING)
    here.folder.rename(here.folder.with_name("away"))
    here.folder.mkdir()
    for look in (here.updates, here.identify):
        with pytest.raises(NotFound, match="nothing is left"):
            look()


def test_updates_says_that_the_hub_is_not_asked(hub: Sites, here: FetchSession) -> None:
    hub.hub.add("anna/nets", {"ink.pt": network_bytes()})
    here.pull("hf:anna/nets")
    with pytest.warns(UserWarning, match="the hub is not asked; what is new there comes by: hnetkit sync hf:anna/nets"):
        assert here.updates() == []


# --- what the sites refuse


def test_a_pull_of_early_access_asks_the_site_who_may_have_it(site: Sites, here: FetchSession) -> None:
    version = site.world.models[0]["modelVersions"][0]
    site.world.early_access(version["id"], "2099-01-01T00:00:00.000Z")
    (result,) = here.pull(f"version:{version['id']}")
    assert (result.state, result.code) == ("failed", "early-access")
    with pytest.raises(EarlyAccess) as caught:
        results.require_all([result])
    assert (caught.value.exit_code, "after that date" in str(caught.value.hint)) == (3, True)
    del site.world.early[version["id"]]  # who paid for it is served, whatever the record says
    assert [result.state for result in here.pull(f"version:{version['id']}")] == ["done"]


@pytest.mark.parametrize("token", [None, "hf_" + "x" * 30])
def test_a_gated_file_is_told_as_what_it_is_where_the_hub_says_so_in_plain_text(
    hub: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    monkeypatch.delenv("HF_TOKEN") if token is None else monkeypatch.setenv("HF_TOKEN", hub.hub_token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    hub.hub.add("anna/gated", {"ink.pt": network_bytes()}, gated=True)

    def plain(request: Request, response: Response) -> Response:
        if response.status in (401, 403):
            response.headers["Content-Type"] = "text/plain; charset=utf-8"
            return Response(response.status, response.headers, b"Access to model anna/gated is restricted.")
        return response

    hub.alter = plain
    (result,) = here.pull("hf:anna/gated")
    assert (result.code, "accept its terms" in str(result.reason)) == ("no-token", True)
    assert sum("/resolve/" in request.path for request in hub.requests) == 1


def test_a_token_that_the_hub_does_not_accept_is_told(
    hub: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    hub.hub.add("anna/nets", {"ink.pt": network_bytes()})
    hub.alter = lambda request, response: (
        json_response({"error": "Invalid credentials in Authorization header"}, 401)
        if request.origin == "hub" and request.token
        else response
    )
    with pytest.raises(AuthRequired, match="does not accept the token"):
        here.pull("hf:anna/nets")


def test_a_token_that_civitai_does_not_accept_is_told(site: Sites) -> None:
    bad = Civitai(FastClock(), base=site.civitai_url, token="expired-token")
    with pytest.raises(AuthRequired, match="does not accept the token"):
        listed(bad, Filters(favorites=True))


def test_archives_of_a_repository_are_named_with_the_command_that_fetches_them(hub: Sites, here: FetchSession) -> None:
    packed = zipped({"brush.pt": network_bytes(2)})
    hub.hub.add("anna/pack", {"ink.pt": network_bytes(), "brushes.zip": packed})
    with pytest.warns(UserWarning, match="has archives, which are not fetched: brushes.zip") as told:
        here.pull("hf:anna/pack")
    (command,) = [str(w.message).split("hnetkit pull '")[1].split("'")[0] for w in told if "archives" in str(w.message)]
    assert [Path(path).name for result in here.pull(command) for path in result.paths] == ["brush.pt"]


def test_a_pause_until_a_date_does_not_depend_on_this_machines_clock() -> None:
    class Slow(RealClock):
        def wall(self) -> float:
            return time.time() - 3600

    now = time.time()
    headers = {"Retry-After": formatdate(now + 3, usegmt=True), "Date": formatdate(now, usegmt=True)}
    assert retry_after(headers, Slow()) == 3
    assert retry_after({"Retry-After": formatdate(now + 3, usegmt=True)}, RealClock()) == pytest.approx(3, abs=2)


def test_a_certificate_that_is_not_accepted_is_told_at_once_with_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise requests.exceptions.SSLError(ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] expired"))

    clock = FastClock()
    civitai = Civitai(clock, base="https://example.com/api/v1")
    monkeypatch.setattr(civitai.client._session, "request", refuse)
    with pytest.raises(NetworkFailed, match="certificate was not accepted") as caught:
        listed(civitai)
    assert "date" in str(caught.value.hint)
    assert "certificate" not in str(_failed_connection(requests.exceptions.SSLError("EOF"), "example.com"))


# --- the command line


def test_saved_filters_take_no_others_and_are_not_replaced_in_silence(
    command: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    creator = str(command.world.models[0]["creator"]["username"])
    assert run(["sync", "--creator", creator, "--save", "mine", "--metadata-only"]) == 0
    assert run(["sync", "mine", "--nsfw", "--metadata-only"]) == 2
    for other in (["--subscriptions"], ["--remove", "mine"]):
        assert run(["sync", "--tag", "anime", "--save", "more", *other]) == 2
        assert run(["sync", "mine", *other]) == 2
    capsys.readouterr()
    assert run(["sync", "--tag", "anime", "--save", "mine", "--metadata-only"]) == 0
    assert f"mine had other filters until now: username={creator}" in capsys.readouterr().err


def test_pictures_of_saved_filters_are_those_that_the_filters_allow(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sites(World.make(39)) as site:
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
        monkeypatch.setenv("CIVITAI_TOKEN", site.token)
        model = site.world.model(site.world.find("explicit")[0])
        creator = str(model["creator"]["username"])
        assert run(["sync", "--creator", creator, "--nsfw", "--save", "mine", "--metadata-only"]) == 0
        run(["sync", "mine"])
        stem = next(path for sha, path in _by_hash(home / "library") if sha in _hashes(model)).stem
        assert list((home / "library").glob(f"{stem}.preview.*"))


def _by_hash(folder: Path) -> list[tuple[str, Path]]:
    return [(hashlib.sha256(path.read_bytes()).hexdigest(), path) for path in folder.glob("*.pt")]


def _hashes(model: dict[str, Any]) -> set[str]:
    return {file["hashes"]["SHA256"].lower() for v in model["modelVersions"] for file in v["files"] if file["hashes"]}


def test_sizes_that_the_site_does_not_state_are_not_called_nothing(
    command: Sites, capsys: pytest.CaptureFixture[str]
) -> None:
    def without_sizes(first: int) -> Callable[[Request, Response], Response]:
        def alter(request: Request, response: Response) -> Response:
            if request.path != "/api/v1/models":
                return response
            page = response.json()
            models = page["items"][first:]
            for file in (file for model in models for version in model["modelVersions"] for file in version["files"]):
                del file["sizeKB"]
            return json_response(page)

        return alter

    command.alter = without_sizes(0)
    assert run(["sync", "--dry-run"]) == 0
    assert "(the site states no sizes)" in capsys.readouterr().err
    assert run(["browse", "--json"]) == 0
    assert '"size_bytes": null' in capsys.readouterr().out
    command.alter = without_sizes(1)
    assert run(["sync", "--dry-run"]) == 0
    assert "without a stated size" in capsys.readouterr().err
