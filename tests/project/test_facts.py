"""What is known of a network, in groups: one for each that states something, and none of the copies says it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from support import networks

from hnetkit.facts import facts_of
from hnetkit.library.library import Library


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
