"""The table of what ComfyUI's own loader makes of A1111's files, in docs/comfyui.md, is true."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import comfyui_loader
import pytest

from hnetkit.formats import load
from hnetkit.generate.differences import made_by_comfyui


def test_hnetkit_gives_what_a1111_recorded_for_each_row_of_the_table(shared: Path) -> None:
    folder = shared / "data" / "golden"
    errors = comfyui_loader.ours(folder)
    assert max(errors.values()) <= comfyui_loader.EQUAL
    files, _ = comfyui_loader.golden(folder)
    rows = json.loads(comfyui_loader.RECORD.read_text())["files"]
    assert [row["network"] for row in rows] == [comfyui_loader.described(file) for file in files]


def test_what_comfyuis_own_loader_makes_otherwise_is_told_of_the_rows_that_differ(shared: Path) -> None:
    files, _ = comfyui_loader.golden(shared / "data" / "golden")
    rows = json.loads(comfyui_loader.RECORD.read_text())["files"]
    for file, row in zip(files, rows, strict=True):
        said = made_by_comfyui(load(shared / "data" / "golden" / file["file"]))
        words = {"equal": "None", "dropped": "makes nothing", "changes": "dropout", "differs": "activation at the end"}
        assert words[row["verdict"]] in str(said), (row["network"], said)


@pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs a ComfyUI: COMFYUI_PATH=FOLDER")
def test_comfyuis_own_loader_does_what_the_table_says(shared: Path) -> None:
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    _, verdicts = comfyui_loader.theirs(shared / "data" / "golden", os.environ["COMFYUI_PATH"], python)
    rows = json.loads(comfyui_loader.RECORD.read_text())["files"]
    assert list(verdicts.values()) == [{key: row[key] for key in ("verdict", "error") if key in row} for row in rows]
