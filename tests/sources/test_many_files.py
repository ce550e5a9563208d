"""A model of thousands of files, whatever becomes of them, costs what they cost and does not hold up the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Sites
from support.fake_sites.messages import Request, Response
from support.fetching import EVERYTHING, installed, jobs_of

from hnetkit.sources import install
from hnetkit.sources.hub_plans import hub_item
from hnetkit.sources.huggingface import HubFile, Listing, Repo
from hnetkit.sources.jobs import MOST_MISSED
from hnetkit.sources.plans import FetchPlan, enqueue
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import store_models


def with_many_files(site: Sites, count: int) -> dict[str, Any]:
    """Makes the first model list `count` files, of which its site has none."""
    model: dict[str, Any] = site.world.models[0]
    file = model["modelVersions"][0]["files"][0]
    many = [{**file, "id": 9_000_000 + n, "hashes": {"SHA256": f"{n:064x}"}} for n in range(count)]

    def changed(request: Request, response: Response) -> Response:
        if request.path == "/api/v1/models" and response.status == 200:
            page = response.json()
            for item in page["items"]:
                if item["id"] == model["id"]:
                    item["modelVersions"] = [{**item["modelVersions"][0], "files": many}]
            response.body = json.dumps(page).encode()
        return response

    site.alter = changed
    return model


def statements(session: FetchSession, action: Callable[[], object]) -> int:
    """How many statements the registry carries out."""
    told: list[str] = []
    connection = session.registry.catalogue._db
    connection.set_trace_callback(told.append)
    action()
    connection.set_trace_callback(None)
    return len(told)


def test_a_model_of_many_files_is_kept_once_and_not_once_for_each_file(site: Sites, here: FetchSession) -> None:
    def cost(count: int) -> int:
        with_many_files(site, count)
        plan = here.plan(EVERYTHING, all_versions=True)

        def queue() -> None:
            store_models(here.registry, plan.models)
            with here.registry.write():
                list(enqueue(here.registry, here.folder, plan.items))

        return statements(here, queue)

    assert cost(400) < 6 * cost(100)


def test_a_repository_of_many_files_is_kept_once_and_not_once_for_each_file(here: FetchSession) -> None:
    repo = Repo("a/b", "0a" * 20, ("tag",) * 1000, None)
    listing = Listing(repo, None, tuple(HubFile(f"{n}.pt", None, None) for n in range(100)))
    items = [hub_item(repo, file) for file in listing.files]
    put = 0

    def count(sql: str) -> None:
        nonlocal put
        put += "INTO models" in sql

    here.registry.catalogue._db.set_trace_callback(count)
    assert len(here.enqueue(FetchPlan(items=items, listings=[listing]), [])) == 100
    assert put == 1


@pytest.mark.parametrize("where", ["the site", "its storage"])
def test_a_model_whose_files_are_not_there_is_given_up_and_the_others_come(
    site: Sites, here: FetchSession, where: str
) -> None:
    model = with_many_files(site, 80)
    if where == "its storage":
        change = site.alter

        def elsewhere(request: Request, response: Response) -> Response:
            if "/download/" in request.path and int(request.query["fileId"][0]) >= 9_000_000:
                return Response(302, {"Location": f"{site.storage_url}/files/{request.query['fileId'][0]}/x"})
            return Response(404) if request.path.startswith("/files/9000") else change(request, response)

        site.alter = elsewhere
    jobs = jobs_of(here, here.sync(EVERYTHING, all_versions=True))
    of_model = [job for job in jobs if int(job.key.partition(":")[2]) >= 9_000_000]
    assert len(of_model) == 80
    assert {job.state for job in jobs if job not in of_model} == {"done"}
    gone = [job for job in of_model if job.code == "gone"]
    assert MOST_MISSED <= len(gone) <= MOST_MISSED + 2
    assert {(job.state, job.code) for job in of_model if job not in gone} == {("failed", "not-tried")}
    asked = [r for r in site.requests if "/download/" in r.path and int(r.query["fileId"][0]) >= 9_000_000]
    assert len(asked) == 2 * len(gone), "one answer alone may be a hiccup"
    site.clear()
    again = {job.key: job.code for job in jobs_of(here, here.sync(EVERYTHING, all_versions=True))}
    assert not {job.key for job in gone} & again.keys(), "what is gone is not asked for on the same day"
    assert list(again.values()).count("gone") >= MOST_MISSED, "the next run goes on with the others"
    assert model["id"] in {item.model_id for item in here.plan(EVERYTHING, all_versions=True).items}


def test_what_bears_the_name_of_a_file_and_is_not_as_long_is_not_read_for_it(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256_of, read = install._sha256, list[Path]()

    def told(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr(install, "_sha256", told)
    (file, *_) = site.world.models[0]["modelVersions"][0]["files"]
    here.folder.mkdir(parents=True)
    (here.folder / file["name"]).write_bytes(b"something else")
    here.pull(f"model:{site.world.models[0]['id']}")
    assert not read
    assert (here.folder / file["name"]).read_bytes() == b"something else"
    assert installed(here)
