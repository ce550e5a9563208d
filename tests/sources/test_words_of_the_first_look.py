"""What a verb notices of the library it says: no later one could, since the registry knows it by then."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from support.fake_sites import Sites
from support.fetching import EVERYTHING, installed
from support.networks import network_file

from hnetkit.cli import run
from hnetkit.library.library import Library
from hnetkit.sources.export import export_library, import_library
from hnetkit.sources.session import FetchSession

Capture = pytest.CaptureFixture[str]


# --- a tagged file that was saved over


@pytest.fixture
def saved_over(site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch) -> str:
    """A library with a network with tags, whose file holds another one since; returns how `show` finds the former."""
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    monkeypatch.setenv("CIVITAI_TOKEN", site.token)
    here.folder.mkdir(parents=True)
    network_file(here.folder, "ink.pt", seed=1)
    here.library.scan(here.folder)
    here.library.tag("ink", "good", note="best at 0.6", alias="lines")
    short = str(here.library.record("ink")["content_hash"])[:13]
    network_file(here.folder, "ink.pt", seed=2, activation="relu")
    return short


VERBS = {
    "identify": ["identify"],
    "pull": ["pull", "model:{}"],
    "repair": ["repair"],
    "scan": ["scan"],
    "scan --rehash": ["scan", "--rehash"],
    "sync": ["sync", "-y"],
    "sync --dry-run": ["sync", "--dry-run"],
    "updates": ["updates"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_whichever_verb_notices_a_file_that_was_saved_over_says_where_its_tags_stay(
    site: Sites, saved_over: str, capsys: Capture, verb: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run([word.format(site.world.ids()[0]) for word in VERBS[verb]])
    told = "\n".join([capsys.readouterr().err, *(str(warning.message) for warning in caught)])
    assert told.count("Tags, notes and aliases stay with ") == 1
    assert f"`hnetkit show {saved_over}` lists them" in told
    run(["scan"])
    assert "stay with" not in capsys.readouterr().err, "once"


# --- what updates does not ask about


def said_by_updates(session: FetchSession) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert session.updates() == []
    return [str(warning.message) for warning in caught]


def test_updates_says_of_how_many_networks_it_knows_no_source(site: Sites, here: FetchSession, tmp_path: Path) -> None:
    here.sync(EVERYTHING)
    paths = sorted(installed(here).values())
    site.world.add_version(site.world.ids()[0])
    assert len(here.updates()) == 1
    with Library(tmp_path / "lost") as library:
        library.folder = here.folder
        again = FetchSession(library, clock=here.clock, site=here.civitai)
        network_file(here.folder, "own.pt", seed=77)
        assert said_by_updates(again) == [f"{len(paths) + 1} networks of unknown source: hnetkit identify"]
        again.identify()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(again.updates()) == 1, "own.pt was asked about, and the site does not know it"
        network_file(here.folder, "other.pt", seed=78)
        with pytest.warns(UserWarning, match="^1 network of unknown source: hnetkit identify$"):
            again.updates()


def test_updates_says_that_networks_of_an_import_are_not_here(here: FetchSession, tmp_path: Path) -> None:
    here.sync(EVERYTHING)
    count = len(installed(here))
    network_file(here.folder, "own.pt", seed=77)
    here.survey()
    export_library(here.library, tmp_path / "library.jsonl")
    with Library(tmp_path / "new") as library:
        import_library(library, tmp_path / "library.jsonl")
        there = FetchSession(library, clock=here.clock, site=here.civitai)
        words = f"{count} networks of an import not here, and not asked about: hnetkit repair"
        assert said_by_updates(there) == [words], "own.pt has no source, and repair does not help"
        there.repair()
        assert said_by_updates(there) == []
