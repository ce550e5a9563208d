"""What a verb notices of the library it says: no later one could, since the registry knows it by then."""

from __future__ import annotations

import warnings

import pytest
from support.fake_sites import Sites
from support.networks import network_file

from hnetkit.cli import run
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
