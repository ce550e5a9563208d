"""The API: lists and their pages, filters, refusals, times."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from support.fake_sites import Fault, Sites, World
from support.fake_sites.messages import Request, Response, json_response
from support.fast_clock import FastClock
from support.fetching import EVERYTHING, installed
from support.odd_answers import OpenSession, answering, in_list, listed

from hnetkit.errors import AuthRequired, Gone, RemoteError
from hnetkit.sources.civitai import Civitai, Filters, is_past
from hnetkit.sources.civitai_models import parse_model
from hnetkit.sources.plans import FetchItem
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import plan_items


def test_short_and_empty_pages_and_cursors_with_a_bar_lose_nothing(long_list: Sites) -> None:
    long_list.clear()
    long_list.faults.add(Fault("J", "api", times=3, mode="empty"))
    found = listed(Civitai(FastClock(), base=long_list.civitai_url))
    assert len(long_list.faults.fired) == 3
    assert set(found) == in_list(long_list.world)
    assert len(found) == len(set(found)) == 130
    cursors = [r.query["cursor"][0] for r in long_list.requests if "cursor" in r.query]
    assert any("|" in cursor for cursor in cursors)
    assert len({(*r.query["sort"], *r.query["period"], *r.query["limit"]) for r in long_list.requests}) == 1
    assert not [r for r in long_list.requests if "page" in r.query], "pages end at the thousandth model"


def test_a_cursor_of_a_search_is_a_number_and_its_pages_go_on(long_list: Sites) -> None:
    long_list.clear()
    names = {model["id"]: model["name"].lower() for model in long_list.world.models}
    word = max("aeiou", key=lambda letter: sum(letter in name for name in names.values()))
    found = listed(Civitai(FastClock(), base=long_list.civitai_url), Filters(query=word, nsfw=True))
    assert set(found) >= {id for id, name in names.items() if word in name}
    assert [r.query.get("cursor") for r in long_list.requests] == [None, ["100"]]


def test_a_cursor_that_comes_back_ends_the_list() -> None:
    def page(request: Request) -> Response:
        return json_response({"items": [{"id": 1}, {"id": 1}], "metadata": {"nextCursor": "1|2"}})

    with answering(page) as (civitai, ledger):
        assert listed(civitai) == [1]
        assert [entry.query["sort"] for entry in ledger.entries()] == [["Newest"], ["Newest"], ["Oldest"]]


def test_ever_new_cursors_with_nothing_new_behind_them_end() -> None:
    count = itertools.count()

    def page(request: Request) -> Response:
        return json_response({"items": [{"id": 1}], "metadata": {"nextCursor": f"{next(count)}|9"}})

    with answering(page) as (civitai, _):
        pages = list(itertools.islice(civitai.pages(EVERYTHING), 600))
        assert [model.id for models in pages for model in models] == [1]
        assert len(pages) < 600, "it would go on for ever"


@pytest.mark.parametrize("metadata", [None, {}, [], {"nextCursor": None}, {"nextCursor": ""}, {"nextPage": "x"}])
def test_only_a_missing_cursor_is_the_end_and_totals_are_not_needed(metadata: Any) -> None:
    with answering(lambda request: json_response({"items": [{"id": 1}], "metadata": metadata})) as (civitai, ledger):
        assert listed(civitai) == [1]
        assert len(ledger.entries()) == 1


@pytest.mark.parametrize("page", [{}, [], {"items": None}, {"items": {}}, "x", 5, None], ids=str)
def test_an_answer_without_a_list_is_no_end(page: Any) -> None:
    with answering(lambda request: json_response(page)) as (civitai, _), pytest.raises(RemoteError):
        listed(civitai)


def test_an_unknown_tag_filters_nothing_at_the_site_and_all_here(sites: Sites) -> None:
    civitai = Civitai(FastClock(), base=sites.civitai_url)
    assert listed(civitai, Filters(tag="no such tag", nsfw=True)) == []
    found = listed(civitai, Filters(tag="ANIME", nsfw=True))
    assert set(found) == {id for id in in_list(sites.world) if "anime" in sites.world.model(id)["tags"]}
    assert found


def test_flags_are_sent_only_where_they_are_true(site: Sites) -> None:
    anonymous = Civitai(FastClock(), base=site.civitai_url)
    listed(anonymous, Filters(favorites=False))
    (request,) = site.requests
    flags = {"favorites", "hidden", "earlyAccess", "supportsGeneration", "fromPlatform", "followed", "archived"}
    assert not flags & set(request.query)
    with pytest.raises(AuthRequired) as caught:
        listed(anonymous, Filters(favorites=True))
    assert "CIVITAI_TOKEN" in str(caught.value.hint)
    site.world.favorites = {site.world.ids()[0]}
    known = Civitai(FastClock(), base=site.civitai_url, token=site.token)
    assert listed(known, Filters(favorites=True, nsfw=True)) == [site.world.ids()[0]]


def test_other_types_that_a_list_holds_are_left_out() -> None:
    world = World.make(3, others=4)
    with answering(lambda request: json_response({"items": world.models, "metadata": {}})) as (civitai, ledger):
        assert set(listed(civitai)) == {m["id"] for m in world.models if m["type"] == "Hypernetwork"}
        (request,) = ledger.entries()
        assert request.query["types"] == ["Hypernetwork"]
        assert "type" not in request.query


def test_several_base_models_are_repeated_keys_and_never_one_with_commas(sites: Sites) -> None:
    civitai = Civitai(FastClock(), base=sites.civitai_url)
    found = listed(civitai, Filters(base_models=("SD 1.4", "SD 2.1 768"), nsfw=True))
    assert sites.requests[0].query["baseModels"] == ["SD 1.4", "SD 2.1 768"]
    assert {sites.world.model(id)["baseModels"][0] for id in found} == {"SD 1.4", "SD 2.1 768"}


def test_a_bad_token_is_anonymous_in_lists_and_found_out_by_asking_for_the_account(sites: Sites) -> None:
    bad = Civitai(FastClock(), base=sites.civitai_url, token="expired")
    assert set(listed(bad)) == in_list(sites.world)
    with pytest.raises(AuthRequired):
        bad.me()
    assert Civitai(FastClock(), base=sites.civitai_url, token=sites.token).me() == "fake_user"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("N", times=50, status=403), "early-access"),
        (Fault("N", times=50, status=410), "archived"),
        (Fault("N", times=50, status=451), "region-blocked"),
        (Fault("O", times=50, mode="redirect"), "no-token"),
        (Fault("O", times=50, mode="html"), "network"),
        (Fault("I", times=50, status=403, match="/download/"), "network"),
        (Fault("I", times=50, status=503, match="/download/"), "network"),
        (Fault("H", times=50, retry_after=None, match="/download/"), "rate-limited"),
        (Fault("H", times=50, retry_after=9999, match="/download/"), "rate-limited"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind}-{dict(value.options)}",
)
def test_refusals_are_told_apart(site: Sites, here: FetchSession, fault: Fault, code: str) -> None:
    site.faults.add(fault)
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert (job.state, job.code) == ("failed", code)
    assert not installed(here)


def test_what_nobody_gets_is_not_a_matter_of_the_token(sites: Sites, session: FetchSession) -> None:
    for quirk in ("taken down", "generation only"):
        (job,) = session.pull(f"model:{sites.world.find(quirk)[0]}")
        assert (job.state, job.code) == ("failed", "no-access")
    with pytest.raises(Gone):
        session.pull(f"model:{sites.world.find('private')[0]}")


def test_a_login_that_is_needed_is_said_with_the_way_to_it(site: Sites, open_session: OpenSession) -> None:
    site.needs_token = True
    (job,) = open_session(site, token="expired").pull(f"model:{site.world.ids()[0]}")
    assert (job.state, job.code) == ("failed", "no-token")


def test_early_access_in_the_past_is_over_and_in_the_future_is_waited_for(sites: Sites, session: FetchSession) -> None:
    def items(quirk: str) -> list[FetchItem]:
        model = session.civitai.model(sites.world.find(quirk)[0])
        return plan_items(session.registry, session.civitai, model, all_versions=True)

    assert {item.action for item in items("early access over")} == {"fetch"}
    (waiting,) = items("early access")
    assert (waiting.action, waiting.code) == ("skip", "early-access")
    assert waiting.not_before == "2099-01-01T00:00:00.000Z"
    jobs = session.pull(f"model:{sites.world.find('early access over')[0]}", all_versions=True)
    assert {job.state for job in jobs} == {"done"}


@pytest.mark.parametrize(
    ("time", "past"),
    [
        ("2023-05-01T00:00:00.000Z", True),
        ("2023-05-01", True),
        ("2023-05-01T00:00:00+02:00", True),
        ("2099-01-01T00:00:00.000Z", False),
        ("2099-01-01T00:00:00", False),
        ("2099-01-01", False),
        ("", True),
        ("soon", True),
        (None, True),
    ],
)
def test_times_are_iso_with_milliseconds_or_missing(time: str | None, past: bool) -> None:
    assert is_past(time) is past


@pytest.mark.parametrize("time", ["absent", None, "", [], {}], ids=str)
def test_a_version_without_a_time_is_older_than_any_with_one(time: Any) -> None:
    odd: dict[str, Any] = {"id": 9} if time == "absent" else {"id": 9, "publishedAt": time}
    model = parse_model({"id": 1, "modelVersions": [odd, {"id": 2, "publishedAt": "2023-02-10T18:05:00.000Z"}]})
    assert model is not None
    assert [version.id for version in model.versions] == [2, 9]
    assert model.versions[1].published_at is None


def test_a_model_without_any_time_is_fetched(site: Sites, here: FetchSession) -> None:
    for version in site.world.model(site.world.ids()[0])["modelVersions"]:
        for key in ("publishedAt", "createdAt"):
            version[key] = None
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "done"
