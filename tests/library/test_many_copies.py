"""Thousands of files of one content: each takes as long as the first, and all of them are searched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import networks

from hnetkit.library.library import Library
from hnetkit.library.scan import BATCH, scan
from hnetkit.registry import Registry


def copies(folder: Path, count: int) -> Path:
    """A folder with so many files of one content, each with a name of its own."""
    folder.mkdir()
    first = networks.network_file(folder, "ink.pt")
    for number in range(count - 1):
        os.link(first, folder / f"copy {number}.pt")
    return folder


def cost(registry: Registry, folder: Path) -> tuple[int, int]:
    """The hundreds of steps of SQLite's machine that a scan takes, and the characters that it puts into the search."""
    steps, texts = list[int](), list[int]()
    registry._db.set_progress_handler(lambda: steps.append(1), 100)
    registry._db.set_trace_callback(lambda sql: texts.append(len(sql)) if "INTO network_text " in sql else None)
    assert all(change.what == "new" for change in scan(registry, [folder]))
    registry._db.set_progress_handler(None, 100)
    registry._db.set_trace_callback(None)
    return len(steps), sum(texts)


def test_a_scan_of_four_times_as_many_copies_takes_four_times_as_much(tmp_path: Path) -> None:
    few, many = 5 * BATCH, 20 * BATCH
    with Registry(tmp_path / "few.db") as registry:
        small = cost(registry, copies(tmp_path / "few", few))
    with Registry(tmp_path / "many.db") as registry:
        large = cost(registry, copies(tmp_path / "many", many))
        assert len(registry.networks.search(f"copy {many - 2}")) == 1
    assert large[0] < 4.4 * small[0]
    assert large[1] < 4.4 * small[1]


@pytest.mark.parametrize("after", [1, BATCH, 2 * BATCH])
def test_what_a_killed_scan_stored_is_searched(after: int, home: Path, tmp_path: Path) -> None:
    folder = copies(tmp_path / "copies", 3 * BATCH)
    with Library(home) as library:
        changes = scan(library.registry, [folder])
        seen = [Path(next(changes).path).stem for _ in range(after)]
        changes.close()  # type: ignore[attr-defined]
        library.registry.check()
        assert [row["name"] for row in library.search(seen[-1])] == [library.networks()[0]["name"]]
        assert not library.registry.networks.has_unindexed()
