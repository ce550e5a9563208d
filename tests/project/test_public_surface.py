"""What outsiders rely on stays: names, options, exit codes, keys, columns, variables. Adding is free."""

from __future__ import annotations

from pathlib import Path

from support import surface

SNAPSHOT = Path(__file__).with_name("public_surface.txt")

WRITE = "PYTHONPATH=tests python -P -m support.surface"


def test_nothing_that_outsiders_rely_on_is_lost_and_what_is_new_is_written_down(tmp_path: Path) -> None:
    known = set(SNAPSHOT.read_text(encoding="utf-8").splitlines())
    found = surface.lines(tmp_path)
    assert not known - found, "lost or changed: give it back (an old option may become a hidden alias)"
    assert not found - known, f"new: {WRITE} > {SNAPSHOT}"
