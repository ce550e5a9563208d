"""`repair` of one network of an archive leaves the others as the user has them: removed, renamed, or where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.fake_sites import Sites
from support.fetching import EVERYTHING
from support.odd_answers import OpenSession, first_version, give, network_bytes, zipped

import hnetkit
from hnetkit.sources.session import FetchSession

DAY, NIGHT = network_bytes(11), network_bytes(12)


@pytest.fixture
def packed(site: Sites, here: FetchSession) -> FetchSession:
    """A library with day.pt and night.pt of one archive, of which night has tags."""
    version = first_version(site)
    give(site, version["files"][0], zipped({"day.pt": DAY, "night.pt": NIGHT}), "pack.zip")
    here.pull(f"version:{version['id']}")
    here.library.tag("night", "good")
    return here


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300] + bytes(300))


def networks_in(session: FetchSession) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in session.folder.rglob("*.pt")}


def test_a_removed_one_stays_in_the_trash_and_that_is_said(packed: FetchSession) -> None:
    packed.library.remove("night")
    damage(packed.folder / "day.pt")
    (result,) = packed.repair()
    assert (result.state, networks_in(packed)) == ("done", {"day.pt": DAY})
    words = "not installed: night.pt: removed from the library; hnetkit remove --undo night brings it back"
    assert words in str(result.reason)
    packed.library.restore("night")
    assert packed.library.record("night")["tags"] == ["good"]
    assert packed.repair() == []


def test_a_renamed_one_gets_no_second_copy(packed: FetchSession) -> None:
    (packed.folder / "night.pt").rename(packed.folder / "moon.pt")
    damage(packed.folder / "day.pt")
    (result,) = packed.repair()
    assert (result.state, networks_in(packed)) == ("done", {"day.pt": DAY, "moon.pt": NIGHT})
    assert packed.library.record("moon")["tags"] == ["good"]
    assert packed.repair() == []


@pytest.mark.parametrize("by", ["repair", "sync"])
def test_a_damaged_one_of_which_another_copy_was_removed_is_fetched_again(packed: FetchSession, by: str) -> None:
    copy = packed.folder / "copies" / "day.pt"
    copy.parent.mkdir()
    shutil.copy(packed.folder / "day.pt", copy)
    packed.survey()
    packed.library.remove(str(copy))
    damage(packed.folder / "day.pt")
    (packed.folder / "night.pt").unlink()
    results = packed.repair() if by == "repair" else packed.sync(EVERYTHING)
    assert {result.state for result in results if result.name == "pack.zip"} == {"done"}
    assert networks_in(packed).items() >= {"day.pt": DAY, "night.pt": NIGHT}.items()


def test_an_archive_of_what_other_downloads_brought_is_not_fetched_again(site: Sites, here: FetchSession) -> None:
    """Its networks have their places already, which belong to the other downloads."""
    first, second, third, *_ = (file for _, _, file in site.world.files())
    give(site, first, DAY, "day.pt")
    give(site, second, NIGHT, "night.pt")
    here.sync(EVERYTHING, all_versions=True)
    give(site, third, zipped({"sun.pt": DAY, "moon.pt": NIGHT}), "pack.zip")
    assert [item.name for item in here.plan(EVERYTHING, all_versions=True).to_fetch] == ["pack.zip"]
    here.sync(EVERYTHING, all_versions=True)
    assert here.plan(EVERYTHING, all_versions=True).to_fetch == []
    (here.folder / "day.pt").unlink()
    here.survey()
    names = {item.name for item in here.plan(EVERYTHING, all_versions=True).to_fetch}
    assert names == {"day.pt", "pack.zip"}


@pytest.mark.parametrize("removed", [("day",), ("day", "night")])
def test_an_archive_of_what_other_downloads_brought_does_not_bring_back_what_was_removed(
    site: Sites, open_session: OpenSession, removed: tuple[str, ...]
) -> None:
    """Without sidecars no file is the archive's own, whose removal would tell of it."""
    here = open_session(site, sidecars=False)
    first, second, third, *_ = (file for _, _, file in site.world.files())
    give(site, first, DAY, "day.pt")
    give(site, second, NIGHT, "night.pt")
    here.sync(EVERYTHING, all_versions=True)
    give(site, third, zipped({"sun.pt": DAY, "moon.pt": NIGHT}), "pack.zip")
    here.sync(EVERYTHING, all_versions=True)
    here.library.remove(*removed)
    left = networks_in(here)
    plan = here.plan(EVERYTHING, all_versions=True)
    assert plan.to_fetch == []
    assert "hnetkit remove --undo" in str({item.name: item.reason for item in plan.items}["pack.zip"])
    here.sync(EVERYTHING, all_versions=True)
    assert networks_in(here) == left
    here.library.restore(*removed)
    assert {item.action for item in here.plan(EVERYTHING, all_versions=True).items} == {"have"}


def test_a_pull_of_the_archive_brings_all_of_it_back(site: Sites, packed: FetchSession) -> None:
    packed.library.remove("night")
    damage(packed.folder / "day.pt")
    packed.repair()
    packed.library.remove("day")
    packed.pull(f"version:{first_version(site)['id']}")
    assert networks_in(packed) == {"day.pt": DAY, "night.pt": NIGHT}


def test_a_converted_one_stays_so_without_its_original(packed: FetchSession) -> None:
    night = packed.folder / "night.pt"
    hnetkit.save(hnetkit.load(night), night.with_suffix(".safetensors"))
    night.unlink()
    damage(packed.folder / "day.pt")
    (result,) = packed.repair()
    assert (result.state, networks_in(packed)) == ("done", {"day.pt": DAY})
    assert str(night.with_suffix(".safetensors")) in result.paths
    assert packed.repair() == []


def test_a_pull_brings_back_the_one_that_was_removed(site: Sites, packed: FetchSession) -> None:
    packed.library.remove("night")
    packed.pull(f"version:{first_version(site)['id']}")
    assert networks_in(packed) == {"day.pt": DAY, "night.pt": NIGHT}
    assert [item.action for item in packed.plan(EVERYTHING).items if item.name == "pack.zip"] == ["have"]


def test_a_sync_fetches_an_archive_again_for_the_one_that_was_not_removed(packed: FetchSession) -> None:
    packed.library.remove("night")
    (packed.folder / "day.pt").unlink()
    (result,) = (result for result in packed.sync(EVERYTHING) if result.name == "pack.zip")
    assert [Path(path).name for path in result.paths] == ["day.pt"]
    assert "not installed: night.pt: removed from the library; hnetkit remove --undo night" in str(result.reason)
    assert [item.action for item in packed.plan(EVERYTHING).items if item.name == "pack.zip"] == ["skip"]
    packed.library.restore("night")
    assert {item.action for item in packed.plan(EVERYTHING).items} == {"have"}
    assert packed.repair() == []


@pytest.mark.parametrize("members", [{"sun.pt": DAY}, {"sun.pt": DAY, "moon.pt": NIGHT}])
def test_a_new_archive_does_not_bring_back_what_was_removed(
    site: Sites, here: FetchSession, members: dict[str, bytes]
) -> None:
    first, _, third, *_ = (file for _, _, file in site.world.files())
    give(site, first, DAY, "day.pt")
    here.sync(EVERYTHING, all_versions=True)
    here.library.remove("day")
    before = networks_in(here)
    give(site, third, zipped({**members, "sun.preview.png": b"not looked at"}), "pack.zip")
    (result,) = (result for result in here.sync(EVERYTHING, all_versions=True) if result.name == "pack.zip")
    assert (result.state, "not installed: sun.pt: removed from the library" in str(result.reason)) == ("done", True)
    new = {name: data for name, data in networks_in(here).items() if name not in before}
    assert list(new.values()) == [data for data in members.values() if data != DAY]
    assert here.plan(EVERYTHING, all_versions=True).to_fetch == []
    here.library.restore("day")
    assert {item.action for item in here.plan(EVERYTHING, all_versions=True).items} == {"have"}


def test_an_archive_that_was_replaced_is_known_by_what_is_in_it_now(site: Sites, packed: FetchSession) -> None:
    packed.library.remove("night")
    shutil.rmtree(packed.folder / ".hnetkit-trash")
    give(site, first_version(site)["files"][0], zipped({"day.pt": DAY, "dawn.pt": network_bytes(13)}), "pack.zip")
    packed.sync(EVERYTHING)
    assert {"day.pt", "dawn.pt"} <= networks_in(packed).keys()
    assert {item.action for item in packed.plan(EVERYTHING).items} == {"have"}
