"""The table of what ComfyUI's own loader makes of A1111's files, in docs/comfyui.md, is true."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import comfyui_loader
import pytest


def test_hnetkit_gives_what_a1111_recorded_for_each_row_of_the_table(shared: Path) -> None:
    folder = shared / "data" / "golden"
    errors = comfyui_loader.ours(folder)
    assert max(errors.values()) <= comfyui_loader.EQUAL
    files, _ = comfyui_loader.golden(folder)
    rows = json.loads(comfyui_loader.RECORD.read_text())["files"]
    assert [row["network"] for row in rows] == [comfyui_loader.described(file) for file in files]


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs a ComfyUI: COMFYUI_PATH=FOLDER")
def test_comfyuis_own_loader_does_what_the_table_says(shared: Path) -> None:
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    _, verdicts = comfyui_loader.theirs(shared / "data" / "golden", os.environ["COMFYUI_PATH"], python)
    rows = json.loads(comfyui_loader.RECORD.read_text())["files"]
    assert list(verdicts.values()) == [{key: row[key] for key in ("verdict", "error") if key in row} for row in rows]
