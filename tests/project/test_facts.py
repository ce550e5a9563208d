"""What is known of a network, in groups, one for each that states something; and the tag by which a prompt means it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import networks

from hnetkit.facts import facts_of
from hnetkit.library.library import Library
from hnetkit.library.prompt_names import meaning_in, prompt_name, tag_text
from hnetkit.library.resolve import find_network
from hnetkit.prompts.tags import split_comments, split_tags


def test_each_that_states_something_has_its_group(tmp_path: Path) -> None:
    networks.network_file(tmp_path, "ink.pt")
    (tmp_path / "ink.json").write_text(json.dumps({"activation text": "ink wash", "preferred weight": 0.6}))
    with Library() as library:
        library.scan(tmp_path)
        groups = facts_of(library.record("ink"))
    assert [group.about for group in groups] == ["network", "sidecar", "file"]
    assert groups[1].facts == (("trigger words", "ink wash"), ("weight", "0.6 preferred"))
    assert all(text for group in groups for _, text in group.facts)


def test_a_copy_says_only_what_is_its_own(tmp_path: Path) -> None:
    networks.network_file(tmp_path, "ink.pt")
    shutil.copy(tmp_path / "ink.pt", tmp_path / "pen.pt")
    for name, notes in (("ink", "mine"), ("pen", "yours")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"activation text": "ink wash", "notes": notes}))
    with Library() as library:
        library.scan(tmp_path)
        groups = [group for group in facts_of(library.record("ink")) if group.about == "sidecar"]
    assert [group.facts for group in groups] == [
        (("trigger words", "ink wash"), ("notes", "mine")),
        (("notes", "yours"),),
    ]


# --- the tag

ODD = st.text(st.one_of(st.sampled_from(list("<>:#@=()\\ \n,1aéf")), st.characters(exclude_categories=["Cs"])))
PIECES = st.sampled_from(["<hypernet:", "<lora:x:1>", "<hyper", "net:ink:1>", "#", ">", " ", "\n", "ink", "<a:b>"])
WORDS = st.one_of(ODD, st.lists(PIECES).map("".join))
CONTENT = "h1:" + "0123456789abcdef" * 4


def row_of(name: str, aliases: list[str], words: str, strength: float) -> dict[str, Any]:
    sidecar = {"activation_text": words, "preferred_weight": strength}
    return {"name": name, "aliases": aliases, "content_hash": CONTENT, "sidecars": [sidecar], "sites": []}


@given(name=ODD, aliases=st.lists(ODD, max_size=2), words=WORDS, strength=st.floats(0.001, 9) | st.floats(-9, -0.001))
def test_a_copied_tag_reads_back_as_one_network_at_its_strength(
    name: str, aliases: list[str], words: str, strength: float
) -> None:
    row = row_of(name, aliases, words, strength)
    read = split_tags(split_comments(tag_text(row))[0])
    (tag,) = read.tags
    assert tag.multiplier == strength
    assert tag.name in (name, *aliases) or CONTENT.removeprefix("h1:").startswith(tag.name.rpartition("@")[2])
    assert (read.unknown, read.loras) == ((), ())
    assert "\n" not in tag_text(row).removeprefix(str(tag))


def test_words_follow_the_tag_as_a1111_adds_them() -> None:
    assert tag_text(row_of("ink", [], "ink wash,\n <lora:x:1> 墨", 0.8)) == "<hypernet:ink:0.8> ink wash, 墨"
    assert tag_text(row_of("ink", [], "", 0.0)) == "<hypernet:ink:1>"


@pytest.mark.skipif(os.name == "nt", reason="these are no names of files on Windows")
@pytest.mark.parametrize("stem", ["ink", "a:b", "a>b", "red #2", "12345678", "ink(12345678)", "ink@12345678"])
def test_the_name_in_a_tag_means_the_network_in_its_library(tmp_path: Path, stem: str) -> None:
    for place in ("one", "other"):
        (tmp_path / place).mkdir()
    networks.network_file(tmp_path / "one", f"{stem}.pt", seed=1)
    networks.network_file(tmp_path / "other", f"{stem}.pt", seed=2)
    networks.network_file(tmp_path / "other", "pen.pt", seed=3)
    with Library() as library:
        library.scan(tmp_path)
        rows = [library.record(row["content_hash"]) for row in library.networks()]
        assert len(rows) == 3
        for row in rows:
            (tag,) = split_tags(split_comments(tag_text(row, meaning_in(library.registry)))[0]).tags
            found = find_network(tag.name, None, lambda: library.registry)
            assert found.network.content_hash == row["content_hash"]
            assert found.said is None


def test_a_name_that_is_of_two_networks_gives_way_to_an_alias(tmp_path: Path) -> None:
    for place, seed in (("one", 1), ("other", 2)):
        (tmp_path / place).mkdir()
        networks.network_file(tmp_path / place, "ink.pt", seed=seed)
    with Library() as library:
        library.scan(tmp_path)
        row = library.tag(str(tmp_path / "one" / "ink.pt"), alias="first")
        assert prompt_name(row, meaning_in(library.registry)) == "first"
        assert prompt_name(row) == "ink"
