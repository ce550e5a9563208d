"""A network that was converted is here: its original is not fetched again, and newer versions of it are found."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Sites
from support.fetching import EVERYTHING, installed
from support.odd_answers import first_version, give, network_bytes

import hnetkit
from hnetkit.library.library import Library
from hnetkit.sources.export import export_library, import_library
from hnetkit.sources.presence import find_bytes, find_network
from hnetkit.sources.session import FetchSession


def fetched(site: Sites) -> list[str]:
    return [request.path for request in site.requests if "/download/" in request.path]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def converted(site: Sites, here: FetchSession) -> FetchSession:
    """A library with everything of the site, as .safetensors; no request is remembered."""
    here.sync(EVERYTHING, all_versions=True)
    for path in installed(here).values():
        if path.suffix == ".pt":
            hnetkit.save(hnetkit.load(path), path.with_suffix(".safetensors"))
            path.unlink()
    here.library.scan()
    site.clear()
    return here


def test_what_was_converted_is_not_fetched_again_by_any_verb(site: Sites, converted: FetchSession) -> None:
    plan = converted.plan(EVERYTHING, all_versions=True)
    assert {item.action for item in plan.items} == {"have"}
    assert {Path(str(item.path)).suffix for item in plan.items} == {".safetensors"}
    assert converted.carry_out(plan) == []
    (result, *_) = converted.pull(f"version:{plan.items[0].version_id}")
    assert (result.state, result.paths) == ("have", (plan.items[0].path,))
    assert converted.damages() == []
    assert converted.repair() == []
    converted.library.forget(missing=True)
    assert converted.plan(EVERYTHING, all_versions=True).to_fetch == []
    assert converted.damages() == []
    assert fetched(site) == []


def test_a_pt_that_was_made_of_a_fetched_safetensors_is_here_too(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    """It does not say what it was made of: that both hold one network tells it, as long as the library knows both."""
    (tmp_path / "own.pt").write_bytes(network_bytes(31))
    hnetkit.save(hnetkit.load(tmp_path / "own.pt"), tmp_path / "own.safetensors")
    give(site, first_version(site)["files"][0], (tmp_path / "own.safetensors").read_bytes(), "own.safetensors")
    here.sync(EVERYTHING, all_versions=True)
    path = here.folder / "own.safetensors"
    hnetkit.save(hnetkit.load(path), path.with_suffix(".pt"))
    path.unlink()
    site.clear()
    here.survey()
    plan = here.plan(EVERYTHING, all_versions=True)
    assert plan.to_fetch == []
    assert str(path.with_suffix(".pt")) in {item.path for item in plan.items}
    assert here.damages() == []
    assert fetched(site) == []


def test_a_newer_version_of_what_was_converted_is_found(site: Sites, converted: FetchSession) -> None:
    assert converted.updates() == []
    model = site.world.ids()[0]
    before = site.world.model(model)["modelVersions"][0]["name"]
    site.world.add_version(model)
    (update,) = converted.updates()
    assert (update.model.id, before in update.have, update.is_replaced) == (model, True, False)


def test_a_version_that_is_known_by_the_hash_of_a_former_file_is_here_and_was_replaced(
    site: Sites, here: FetchSession
) -> None:
    model, version, own = site.world.ids()[0], first_version(site), here.folder / "own.pt"
    own.parent.mkdir(parents=True)
    own.write_bytes(network_bytes(31))
    here.survey()
    with here.registry.write():
        here.registry.catalogue.put_lookup(sha256(own), str(model), str(version["id"]))
    here.identify()
    (update,) = here.updates()
    assert (update.model.id, update.have, update.is_replaced) == (model, (version["name"],), True)
    site.world.add_version(model)
    (update,) = here.updates()
    assert (update.model.id, update.have, update.is_replaced) == (model, (version["name"],), False)


def test_after_an_import_sync_and_repair_agree_on_what_is_here(site: Sites, here: FetchSession, tmp_path: Path) -> None:
    here.sync(EVERYTHING)
    export_library(here.library, tmp_path / "library.jsonl")
    (tmp_path / "converted").mkdir()
    for path in installed(here).values():
        hnetkit.save(hnetkit.load(path), tmp_path / "converted" / f"{path.stem}.safetensors")
    shutil.rmtree(here.folder)
    site.clear()
    with Library(tmp_path / "new") as library:
        import_library(library, tmp_path / "library.jsonl")
        library.scan(tmp_path / "converted")
        there = FetchSession(library, clock=here.clock, site=here.civitai)
        assert there.damages() == []
        assert there.plan(EVERYTHING).to_fetch == []
        assert there.updates() == []
        site.world.add_version(site.world.ids()[-1])
        assert [update.model.id for update in there.updates()] == [site.world.ids()[-1]]
    assert fetched(site) == []


def test_a_damaged_original_is_still_fetched_again_where_its_conversion_lies_beside_it(
    site: Sites, here: FetchSession
) -> None:
    here.sync(EVERYTHING)
    path = next(path for path in installed(here).values() if path.suffix == ".pt")
    right = path.read_bytes()
    hnetkit.save(hnetkit.load(path), path.with_suffix(".safetensors"))
    path.write_bytes(right[:-300] + bytes(300))
    (result,) = here.repair()
    assert (result.state, path.read_bytes()) == ("done", right)


def test_where_bytes_matter_a_conversion_is_none_of_them(converted: FetchSession) -> None:
    item = converted.plan(EVERYTHING).items[0]
    with converted.registry.write():
        assert find_bytes(converted.registry, item.sha256) is None
        assert find_network(converted.registry, item.sha256) == item.path


def test_a_fetched_file_that_claims_to_be_converted_from_another_does_not_take_its_place(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    first, second = (site.world.model(id)["modelVersions"][0] for id in site.world.ids()[:2])
    right: Any = network_bytes(5)
    give(site, first["files"][0], right)
    (tmp_path / "a.pt").write_bytes(right)
    hnetkit.save(hnetkit.load(tmp_path / "a.pt"), tmp_path / "b.safetensors")
    give(site, second["files"][0], (tmp_path / "b.safetensors").read_bytes(), "claims.safetensors")
    here.pull(f"version:{second['id']}")
    assert [item.action for item in here.plan(EVERYTHING).items if item.version_id == first["id"]] == ["fetch"]


def test_a_conversion_that_was_deleted_is_not_here(converted: FetchSession) -> None:
    for path in converted.folder.glob("*.safetensors"):
        path.unlink()
    plan = converted.plan(EVERYTHING, all_versions=True)
    assert {item.action for item in plan.items} == {"fetch"}
