"""Listings with parts that make no sense, or that stand twice: each is counted and named, and the rest comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.fake_sites import Sites
from support.fake_sites.messages import Request, Response
from support.fetching import EVERYTHING, jobs_of

from hnetkit.cli import run
from hnetkit.errors import NetworkFailed
from hnetkit.sources.civitai_models import BadRecord, CivitaiModel, parse_id, parse_model
from hnetkit.sources.plans import FetchItem
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import store_model, store_models

Record = dict[str, Any]


def listing(site: Sites, change: Callable[[list[Any]], list[Any]]) -> None:
    """Lets the site list other records than it has."""

    def changed(request: Request, response: Response) -> Response:
        if request.path == "/api/v1/models" and response.status == 200:
            page = response.json()
            response.body = json.dumps({**page, "items": change(page["items"])}).encode()
        return response

    site.alter = changed


def with_versions(item: Record, versions: object) -> Record:
    return {**item, "modelVersions": versions}


def with_files(item: Record, files: object) -> Record:
    return with_versions(item, [{**item["modelVersions"][0], "files": files}])


def first_file(item: Record) -> Record:
    file: Record = item["modelVersions"][0]["files"][0]
    return file


ODD_PARTS: list[tuple[Callable[[Record], object], str, int]] = [
    (lambda item: {**item, "id": None}, "models without a number (1)", 1),
    (lambda item: {**item, "id": 5.5}, "models without a number (1)", 1),
    (lambda item: {**item, "id": "x"}, "models without a number (1)", 1),
    (lambda item: None, "models without a number (1)", 1),
    (lambda item: with_versions(item, 5), "modelVersions that are no list (1)", 1),
    (lambda item: with_versions(item, {"a": 1}), "modelVersions that are no list (1)", 1),
    (lambda item: with_versions(item, [None, {}, "x"]), "versions without a number (3)", 3),
    (lambda item: with_files(item, "x"), "files that are no list (1)", 1),
    (lambda item: with_files(item, [None] * 3000), "files without a number (3,000)", 3000),
    (lambda item: with_files(item, [{**first_file(item), "id": [5]}]), "files without a number (1)", 1),
]


@pytest.mark.parametrize(("change", "reason", "count"), ODD_PARTS)
def test_a_part_of_a_listing_that_makes_no_sense_is_counted_and_named_and_the_rest_comes(
    site: Sites,
    here: FetchSession,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Record], object],
    reason: str,
    count: int,
) -> None:
    listing(site, lambda items: [change(items[0]), *items[1:]])
    assert run(["sync", "-y", "--nsfw", "--no-sidecars", "--json"]) == 1
    said = capsys.readouterr()
    assert f" {count} left out" in said.err
    rows = json.loads(said.out)
    (bad,) = [row for row in rows if row["state"] != "done"]
    assert (bad["state"], bad["code"]) == ("refused", "record")
    assert bad["reason"] == f"left out: {reason}"
    assert len({row["model_id"] for row in rows if row["state"] == "done"}) == len(site.world.ids()) - 1


def test_what_is_good_of_a_model_comes_beside_what_is_not(
    site: Sites, here: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    id = site.world.ids()[0]
    listing(
        site, lambda items: [with_files(item, [{}, first_file(item)]) if item["id"] == id else item for item in items]
    )
    assert run(["sync", "-y", "--nsfw", "--no-sidecars", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows if row["state"] == "refused"] == [f"model:{id}"]
    assert str(id) in {row["model_id"] for row in rows if row["state"] == "done"}


def test_what_a_site_does_not_say_is_nothing_odd() -> None:
    for data in ({"id": 1}, {"id": 1, "modelVersions": None}, {"id": "1", "modelVersions": [{"id": 2, "files": None}]}):
        model = parse_model(data)
        assert model is not None
        assert not model.left_out


@pytest.mark.parametrize("value", [None, True, 0, -1, 5.5, "5.5", 2**31, float("nan"), [5], {}, ""])
def test_what_is_no_number_of_a_site_is_not_rounded_to_one(value: object) -> None:
    assert parse_id(value) is None


# --- what stands twice


def twice(data: Record) -> CivitaiModel:
    model = parse_model(data)
    assert model is not None
    return model


def test_of_versions_and_files_with_one_number_the_first_counts_and_the_others_are_counted() -> None:
    model = twice(
        {
            "id": 1,
            "modelVersions": [
                {"id": 2, "name": "a", "files": [{"id": 5, "name": "x"}, {"id": 5, "name": "y"}]},
                {"id": 2, "name": "b", "files": [{"id": 6}]},
                {"id": 3, "files": [{"id": 5}, {"id": 7}]},
            ],
        }
    )
    files = {version.id: [file.id for file in version.files] for version in model.versions}
    assert files == {2: [5], 3: [7]}
    assert [version.name for version in model.versions if version.id == 2] == ["a"]
    assert model.left_out == {
        "versions with the number of another one": 1,
        "files with the number of another one": 2,
    }


def test_a_file_that_two_models_list_is_fetched_once_and_the_second_is_named(site: Sites, here: FetchSession) -> None:
    def shared(items: list[Any]) -> list[Any]:
        return [items[0], with_files(items[1], [first_file(items[0])]), *items[2:]]

    listing(site, shared)
    plan = here.plan(EVERYTHING, all_versions=True)
    first, second = plan.models[:2]
    assert len({item.key for item in plan.items}) == len(plan.items)
    assert second.id not in {item.model_id for item in plan.items}
    (bad,) = plan.failed
    assert (bad.id, bad.count, bad.is_whole) == (second.id, 1, False)
    assert bad.reason == "left out: files that an earlier model has (1)"
    assert plan.left_out == 1
    keys = [job.key for job in jobs_of(here, here.sync(EVERYTHING, all_versions=True))]
    assert len(set(keys)) == len(keys)
    assert first.id in {item.model_id for item in plan.items}


@pytest.mark.parametrize("same", [True, False])
def test_a_model_that_is_listed_twice_counts_once_and_is_named_where_its_files_differ(
    site: Sites, here: FetchSession, same: bool
) -> None:
    def again(items: list[Any]) -> list[Any]:
        other = with_files(items[0], [{**first_file(items[0]), "id": 9_000_001}])
        return [*items, {**items[0], "name": "other words"} if same else other]

    listing(site, again)
    plan = here.plan(EVERYTHING, all_versions=True)
    assert [model.id for model in plan.models].count(plan.models[0].id) == 1
    assert plan.models[0].name != "other words"
    assert "civitai:9000001" not in {item.key for item in plan.items}
    reasons = [(bad.id, bad.reason) for bad in plan.failed]
    assert reasons == ([] if same else [(plan.models[0].id, "left out: listed once more, with other files")])


# --- one model, one repository


def failures_of(here: FetchSession, text: str) -> tuple[list[FetchItem], list[BadRecord]]:
    plan = here.plan_pull(text)
    return plan.to_fetch, plan.failed


def test_a_model_that_is_pulled_names_what_of_it_makes_no_sense(
    site: Sites, here: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    model: Record = site.world.models[0]
    versions: list[Any] = [{"id": None, "files": [{"id": 5}]}, *model["modelVersions"]]

    def odd(request: Request, response: Response) -> Response:
        if request.path == f"/api/v1/models/{model['id']}":
            response.body = json.dumps(with_versions(response.json(), versions)).encode()
        return response

    site.alter = odd
    items, failed = failures_of(here, f"model:{model['id']}")
    assert items
    assert [bad.reason for bad in failed] == ["left out: versions without a number (1)"]
    items, failed = failures_of(here, f"version:{model['modelVersions'][0]['id']}")
    assert (bool(items), failed) == (True, []), "what was asked for is whole"
    assert run(["pull", f"model:{model['id']}"]) == 1
    assert "versions without a number" in capsys.readouterr().out
    del versions[1:]
    with pytest.raises(NetworkFailed, match="versions without a number"):
        failures_of(here, f"model:{model['id']}")


def test_a_full_answer_of_which_parts_make_no_sense_does_not_mark_versions_as_gone(
    site: Sites, here: FetchSession
) -> None:
    model = next(model for model in site.world.models if len(model["modelVersions"]) > 1)
    store_models(here.registry, [twice(model)])
    with here.registry.write():
        store_model(here.registry, twice(with_versions(model, [model["modelVersions"][0], {"id": "?"}])), whole=True)
    known = here.registry.catalogue.files()
    states = {row["version_state"] for row in known if row["model_id"] == str(model["id"])}
    assert states == {"listed"}


def test_files_of_a_repository_without_a_name_or_named_twice_are_counted(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", site.hub_url)
    names: list[Any] = [
        {"rfilename": "ink.pt"},
        {"rfilename": "ink.pt"},
        {"rfilename": 5},
        None,
        {"rfilename": "../x.pt"},
    ]
    info: Record = {"sha": "0a" * 20, "siblings": names}

    def odd(request: Request, response: Response) -> Response:
        body = json.dumps(info).encode()
        is_info = request.path.startswith("/api/models/")
        return Response(200, {"Content-Type": "application/json"}, body) if is_info else response

    site.alter = odd
    items, failed = failures_of(here, "hf:a/b")
    assert len(items) == 1
    assert [bad.reason for bad in failed] == ["left out: files of a/b without a name of their own (4)"]
    info["siblings"] = "x"
    with pytest.raises(NetworkFailed, match="makes no sense"):
        failures_of(here, "hf:a/b")
