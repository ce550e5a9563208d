"""The library as cards: filters, orders, pages, and the address that holds them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gallery import Server
from support.networks import network_file

import hnetkit
from hnetkit.errors import AmbiguousName, RegistryError
from hnetkit.gallery.cards import ORDERS, PER_PAGE, STATES, CardIndex, View
from hnetkit.library.prompt_names import meaning_in
from hnetkit.library.sidecars import MAX_TEXT
from hnetkit.library.suggestions import trigger_words
from hnetkit.prompts.tags import split_tags
from hnetkit.sources.export import import_library


def names(cards: CardIndex, **view: object) -> list[str]:
    return [row["name"] for row in cards.page(View(**view)).cards]  # type: ignore[arg-type]


@given(
    q=st.text(max_size=20),
    tag=st.text(max_size=20),
    state=st.sampled_from(["", *STATES]),
    sort=st.sampled_from(["", *ORDERS]),
    page=st.integers(1, 10**6 - 1),
)
def test_an_address_means_the_view_that_it_was_made_of(q: str, tag: str, state: str, sort: str, page: int) -> None:
    from urllib.parse import parse_qsl

    view = View(q=q, tag=tag, state=state, sort=sort, page=page)
    assert View.of(dict(parse_qsl(view.address(page=page)[1:], keep_blank_values=True))) == view


@given(st.dictionaries(st.sampled_from(["q", "page", "sort", "state", "nsfw", "other"]), st.text(max_size=12)))
def test_any_address_is_some_view(parameters: dict[str, str]) -> None:
    view = View.of(parameters)
    assert view.page >= 1
    assert view.order in ORDERS


def test_cards_are_filtered_and_ordered(library: hnetkit.Library) -> None:
    cards = CardIndex(library)
    assert names(cards) == ["ink", "lines", "wash"]
    assert names(cards, turned="1") == ["wash", "lines", "ink"]
    assert names(cards, activation="relu") == ["lines"]
    assert names(cards, structure="1, 1.5, 1") == ["lines"]
    assert names(cards, tag="NIGHT") == ["ink"]
    assert names(cards, base="sd1") == ["ink", "lines", "wash"]
    assert names(cards, base="sdxl") == []
    assert names(cards, base="no such model") == []
    assert names(cards, state="missing") == []
    assert names(cards, sort="size")[-1] == "lines"


def test_a_structure_is_shown_with_its_fractions(library: hnetkit.Library, tmp_path: Path) -> None:
    network_file(tmp_path / "networks", "thin.pt", widths=(320,), structure=[1, 0.05, 10, 1], seed=4)
    library.scan()
    assert names(CardIndex(library), structure="1, 0.05, 10, 1") == ["thin"]


@pytest.mark.parametrize("words", ["tinte", "best at", "night", "night lin"])
def test_the_search_goes_over_aliases_notes_and_tags(library: hnetkit.Library, words: str) -> None:
    assert names(CardIndex(library), q=words) == ["ink"]


def test_a_change_of_another_process_is_seen_at_once(library: hnetkit.Library) -> None:
    cards = CardIndex(library)
    assert names(cards, q="ocean") == []
    with hnetkit.Library() as other:
        other.tag("wash", "ocean")
    assert names(cards, q="ocean") == ["wash"]
    assert names(cards, tag="ocean") == ["wash"]


def test_a_card_has_the_tag_that_means_its_network_at_its_strength_with_its_words(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    library.tag("ink", strength=0.7, trigger_words="ink wash")
    (tmp_path / "networks" / "wash.pt").rename(tmp_path / "networks" / "wash #2.pt")
    library.scan()
    library.tag("wash #2", alias="wasser")
    cards = {row["name"]: row for row in CardIndex(library).page(View()).cards}
    assert cards["ink"]["tag_text"] == "<hypernet:ink:0.7> ink wash"
    assert cards["ink"]["trigger_words"] == "ink wash"
    assert cards["wash #2"]["tag_text"] == "<hypernet:wasser:1>", "a comment would end the other name"


def test_a_file_that_is_gone_and_one_in_two_places_are_found_by_their_state(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    folder = tmp_path / "networks"
    (folder / "copy.pt").write_bytes((folder / "ink.pt").read_bytes())
    (folder / "wash.pt").unlink()
    library.scan()
    cards = CardIndex(library)
    assert names(cards, state="missing") == ["wash"]
    assert cards.page(View(state="duplicates")).count == 1
    assert cards.page(View()).choices["state"]["missing"] == 1


def test_many_networks_are_shown_in_pages(library: hnetkit.Library, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(PER_PAGE):
        network_file(folder, f"style{number}.pt", widths=(8,), seed=number)
    library.scan(folder)
    cards = CardIndex(library)
    first, last = cards.page(View()), cards.page(View(page=99))
    assert (first.count, first.last, last.number) == (PER_PAGE + 3, 2, 2)
    shown = [row["content_hash"] for page in (first, last) for row in page.cards]
    assert len(set(shown)) == PER_PAGE + 3
    before, after = cards.neighbours(shown[PER_PAGE], View())
    assert (before, after) == (shown[PER_PAGE - 1], shown[PER_PAGE + 1])


def test_a_registry_that_a_newer_hnetkit_changed_is_said_on_the_page(library: hnetkit.Library, server: Server) -> None:
    assert server.get("/").status_code == 200
    with library.registry.write():
        library.registry._db.execute("PRAGMA user_version = 999")
    answer = server.get("/")
    assert answer.status_code == 500
    assert "written by a newer hnetkit" in answer.text
    assert "pip install --upgrade hnetkit" in answer.text
    with pytest.raises(RegistryError):
        CardIndex(library).page(View())


def _told(number: int, name: str) -> dict[str, Any]:
    """A network as an export tells of it, in one file."""
    about = {"activation": "linear", "dtype": "fp32", "base_model": "sd1", "widths": [320], "layer_structure": [1, 1]}
    about |= {"dropout": [], "layer_norm": False, "activate_output": False, "parameters": 5, "metadata": {}}
    file = {"name": f"{name}.pt", "sha256": f"{number:064x}"}
    return {"kind": "network", "content_hash": f"h1:{number:064x}", "name": name, "files": [file], **about}


def _take_in(library: hnetkit.Library, records: list[dict[str, Any]], path: Path) -> None:
    header = {"kind": "hnetkit", "version": 1}
    path.write_text("".join(f"{json.dumps(record)}\n" for record in (header, *records)))
    assert import_library(library, path).failed == 0


def test_a_page_of_networks_in_no_file_takes_no_search_for_what_was_meant(home: Path, tmp_path: Path) -> None:
    with hnetkit.Library() as library:
        _take_in(library, [_told(number, f"net{number}") for number in range(1, 801)], tmp_path / "export.jsonl")
        cards, before = CardIndex(library), time.process_time()
        assert len(cards.page(View()).cards) == PER_PAGE
        assert time.process_time() - before < 3  # 5 with a hint for each name that means nothing here


def test_the_tag_of_each_of_many_networks_that_are_called_alike_means_it(home: Path, tmp_path: Path) -> None:
    for seed in range(PER_PAGE):
        (tmp_path / "networks" / str(seed)).mkdir(parents=True)
        network_file(tmp_path / "networks" / str(seed), "ink.pt", widths=(8,), seed=seed)
    with hnetkit.Library() as library:
        library.scan(tmp_path / "networks")
        cards = CardIndex(library).page(View()).cards
        meaning = meaning_in(library.registry)
        for card in cards:
            tag = split_tags(card["tag_text"]).tags[0]
            assert meaning(tag.name) == card["content_hash"]
            assert meaning("ink") is None
        with pytest.raises(AmbiguousName) as raised:
            library.record("ink")
        assert str(raised.value.command_hint).endswith(f", {PER_PAGE - 20} more")


def test_trigger_words_of_a_site_are_as_long_as_those_of_a_sidecar(home: Path, tmp_path: Path) -> None:
    network = _told(1, "ink")
    file = {"id": 9, "name": "x.pt", "sizeKB": 10, "type": "Model", "hashes": {"SHA256": network["files"][0]["sha256"]}}
    version = {"id": 8, "name": "v", "baseModel": "SD 1.5", "trainedWords": ["a, " * MAX_TEXT], "files": [file]}
    raw = {"id": 7, "name": "m", "type": "Hypernetwork", "modelVersions": [version]}
    with hnetkit.Library() as library:
        _take_in(library, [network, {"kind": "model", "source": "civitai", "id": "7", "raw": raw}], tmp_path / "export")
        assert len(trigger_words(library.record("ink"))) == MAX_TEXT
        [card] = CardIndex(library).page(View()).cards
        assert len(card["tag_text"]) < 2 * MAX_TEXT
