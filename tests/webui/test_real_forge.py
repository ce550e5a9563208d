"""The extension in a real Forge: its parser of tags, its patcher and its UNet, with random weights.

``FORGE_PATH`` names its folder, ``FORGE_PYTHON`` the Python of an environment with its packages and hnetkit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.networks import network_file

pytestmark = pytest.mark.skipif("FORGE_PATH" not in os.environ, reason="needs a Forge: FORGE_PATH=FOLDER")

PROMPTS = {
    "none": ["a castle"],
    "one": ["a castle <hypernet:ink:0.8>"],
    "three": ["<hypernet:ink:0.7> a <hypernet:wash:0.5> castle <hypernet:tint:-0.4>"],
    "zero": ["a castle <hypernet:ink:0>"],
    "two passes": ["a <hypernet:ink:0.8>", "a <hypernet:wash:0.5>"],
    "a second pass without": ["a <hypernet:ink:0.8>", "a castle"],
    "sides": ["a <hypernet:ink:0.8:k=0.2:cross=1.1>"],
    "after": ["a castle"],
    "unknown": ["a <hypernet:nobody:1> <hypernet:ink:0.5>"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("forge")
    files = folder / "models" / "hypernetworks"
    files.mkdir(parents=True)
    widths = (64, 128, 96)
    network_file(files, "ink.pt", widths=widths, activation="relu", seed=1, scale=0.1)
    network_file(files, "wash.pt", widths=widths, activation="mish", layer_norm=True, seed=2, scale=0.1)
    network_file(files, "tint.pt", widths=widths, activation=None, seed=3, scale=0.1)
    (folder / "job.json").write_text(json.dumps(list(PROMPTS.values())))
    script = Path(__file__).resolve().parents[1] / "support" / "real_forge.py"
    python = os.environ.get("FORGE_PYTHON", sys.executable)
    done = subprocess.run(
        [python, script, os.environ["FORGE_PATH"], folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = iter(json.loads((folder / "results.json").read_text()))
    return {name: [next(rows) for _ in prompts] for name, prompts in PROMPTS.items()}


@pytest.mark.parametrize("name", PROMPTS)
def test_each_pass_has_the_networks_of_its_prompt(results: dict[str, list[dict[str, Any]]], name: str) -> None:
    for prompt, row in zip(PROMPTS[name], results[name], strict=True):
        assert row["error"] <= 1e-5 * max(row["effect"], 1.0)
        has_effect = "<hypernet" in prompt and not prompt.endswith(":0>")
        assert (row["effect"] > 1e-3) == has_effect


def test_an_unknown_name_is_said(results: dict[str, list[dict[str, Any]]]) -> None:
    (row,) = results["unknown"]
    (said,) = row["said"]
    assert said.startswith("hnetkit: nobody: no such hypernetwork")
    assert list(row["params"]) == ["Hypernet hashes"]
    assert row["params"]["Hypernet hashes"].startswith("ink: ")
