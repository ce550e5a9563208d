"""Sidecars whose network was moved or deleted are no other network's: what is fetched gets another name than theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import networks
from support.fake_sites import Sites
from support.fetching import EVERYTHING, installed
from support.odd_answers import first_version, give, network_bytes

from hnetkit.sources.session import FetchSession

NOTES = {"notes": "mine", "preferred weight": 0.4}


@pytest.fixture
def ink(site: Sites) -> str:
    """What `pull` fetches as ``ink.pt``."""
    version = first_version(site)
    give(site, version["files"][0], network_bytes(5), "ink.pt")
    return f"version:{version['id']}"


def beside(folder: Path, stem: str) -> dict[str, bytes]:
    """Everything in a folder that is called so, but the model."""
    return {path.name: path.read_bytes() for path in folder.glob(f"{stem}.*") if path.name != f"{stem}.pt"}


@pytest.mark.parametrize("suffix", [".json", ".txt", ".png", ".preview.png", ".civitai.info", ".pt.optim"])
def test_what_a_network_that_was_moved_left_behind_is_not_taken_over(suffix: str, here: FetchSession, ink: str) -> None:
    here.folder.mkdir(parents=True)
    (here.folder / f"ink{suffix}").write_text(json.dumps(NOTES))
    (result,) = here.pull(ink)
    (path,) = installed(here).values()
    assert result.state == "done"
    assert path.stem.startswith("ink-")
    assert beside(here.folder, "ink") == {f"ink{suffix}": json.dumps(NOTES).encode()}
    assert here.library.record(path.stem)["sidecars"][0].get("notes") is None
    here.library.remove(path.stem)
    assert (here.folder / f"ink{suffix}").exists()
    here.pull(ink)
    assert [path.stem for path in installed(here).values()] != ["ink"]


def test_a_newer_version_of_the_same_file_name_gets_its_own_record(site: Sites, here: FetchSession, ink: str) -> None:
    here.sync(EVERYTHING)
    old = beside(here.folder, "ink")
    (here.folder / "archive").mkdir()
    (here.folder / "ink.pt").rename(here.folder / "archive" / "ink.pt")
    version = site.world.add_version(site.world.ids()[0])
    version["files"][0]["name"] = "ink.pt"
    assert [result.state for result in here.sync(EVERYTHING)] == ["done"]
    (new,) = here.folder.glob("ink-*.pt")
    assert json.loads(new.with_suffix(".civitai.info").read_text())["id"] == version["id"]
    assert beside(here.folder, "ink") == old


@pytest.mark.parametrize("is_known", [True, False])
def test_a_network_that_is_fetched_again_has_its_own_sidecars(here: FetchSession, ink: str, is_known: bool) -> None:
    here.pull(ink)
    (here.folder / "ink.json").write_text(json.dumps(NOTES))
    (here.folder / "ink.pt").unlink()
    if not is_known:  # a registry that knows nothing of it: Civitai's record says which version it is
        here.library.forget("ink")
        with here.registry.write():
            for path in installed(here).values():
                here.registry.jobs.forget_install(str(path))
    here.pull(ink)
    assert list(installed(here).values()) == [here.folder / "ink.pt"]
    assert here.library.record("ink")["sidecars"][0]["notes"] == "mine"


def test_one_s_own_network_that_is_fetched_where_it_was_keeps_its_notes(here: FetchSession, ink: str) -> None:
    here.folder.mkdir(parents=True)
    (here.folder / "ink.pt").write_bytes(network_bytes(5))
    (here.folder / "ink.json").write_text(json.dumps(NOTES))
    networks.network_file(here.folder, "other.pt", seed=9)
    here.library.scan(here.folder)
    (here.folder / "ink.pt").unlink()
    here.pull(ink)
    assert list(installed(here).values()) == [here.folder / "ink.pt"]


def test_a_picture_of_another_name_takes_no_name(here: FetchSession, ink: str) -> None:
    here.folder.mkdir(parents=True)
    networks.network_file(here.folder, "ink.preview.pt", seed=9)
    (here.folder / "ink.preview.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (here.folder / "inks.json").write_text(json.dumps(NOTES))
    here.pull(ink)
    assert list(installed(here).values()) == [here.folder / "ink.pt"]
