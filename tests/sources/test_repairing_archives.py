"""`repair` of one network of an archive leaves the others as the user has them: removed, renamed, or where they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.fake_sites import Sites
from support.fetching import EVERYTHING
from support.odd_answers import first_version, give, network_bytes, zipped

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


def test_a_damaged_one_of_which_another_copy_was_removed_is_fetched_again(packed: FetchSession) -> None:
    copy = packed.folder / "copies" / "day.pt"
    copy.parent.mkdir()
    shutil.copy(packed.folder / "day.pt", copy)
    packed.survey()
    packed.library.remove(str(copy))
    damage(packed.folder / "day.pt")
    (result,) = packed.repair()
    assert (result.state, networks_in(packed)) == ("done", {"day.pt": DAY, "night.pt": NIGHT})


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
