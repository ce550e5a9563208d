"""What ComfyUI's own loader of hypernetworks makes of the golden files, beside what the nodes of hnetkit do.

    python tools/comfyui_loader.py --record

`HNETKIT_SHARED`, `COMFYUI_PATH` and `COMFYUI_PYTHON` are those of the tests (CONTRIBUTING.md). The record is
`benchmarks/results/comfyui_loader.json`; the table in docs/comfyui.md is made of it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RECORD = REPOSITORY / "benchmarks" / "results" / "comfyui_loader.json"
EQUAL = 1e-5
"""The largest error, as a part of what a network changes, that counts as rounding."""

THEIRS = """
import json, sys
comfyui, inputs, outputs, *files = sys.argv[1:]
sys.argv[1:] = ["--cpu"]
sys.path.insert(0, comfyui)
import comfy.options
comfy.options.enable_args_parsing()
from comfy_extras.nodes_hypernetwork import load_hypernetwork_patch
import comfyui_version, torch
from safetensors.torch import load_file, save_file

x, results, versions = load_file(inputs), {}, {}
for file in files:
    name = file.replace("\\\\", "/").rpartition("/")[2]
    patch = load_hypernetwork_patch(file, 1.0)
    for key in [key for key in x if patch is not None and key.startswith(name + "/")]:
        for turn in "12":
            with torch.no_grad():
                _, k, v = patch(x[key], x[key], x[key], {})
            results[f"{key}/k{turn}"], results[f"{key}/v{turn}"] = k.contiguous(), v.contiguous()
save_file(results, outputs)
print("version", comfyui_version.__version__)
"""


def golden(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns the golden files' descriptions, and their recorded inputs and outputs."""
    from safetensors.torch import load_file

    return json.loads((folder / "cases.json").read_text())["files"], load_file(folder / "expected.safetensors")


def ours(folder: Path) -> dict[str, float]:
    """Returns the error of hnetkit's stack at strength 1, by file, as a part of what the network changes."""
    import hnetkit

    files, expected = golden(folder)
    errors = {}
    for file in files:
        stack = hnetkit.Stack([(hnetkit.load(folder / file["file"]), 1.0)])
        got = {width: stack(expected[f"{file['name']}/{width}/x"]) for width in file["widths"]}
        errors[file["file"]] = _error(file, expected, {width: [pair] for width, pair in got.items()})
    return errors


def theirs(folder: Path, comfyui: str, python: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """Returns ComfyUI's version, and by file what its loader does: its verdict, and the error where it is no rounding.

    A verdict is ``"equal"``, ``"dropped"``, ``"differs"``, or ``"changes"`` where two calls give two results.
    """
    from safetensors.torch import load_file, save_file

    files, expected = golden(folder)
    inputs = {
        f"{file['file']}/{width}": expected[f"{file['name']}/{width}/x"] for file in files for width in file["widths"]
    }
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save_file(inputs, work / "inputs.safetensors")
        paths = [str(folder / file["file"]) for file in files]
        command = [python, "-c", THEIRS, comfyui, str(work / "inputs.safetensors"), str(work / "outputs.safetensors")]
        done = subprocess.run([*command, *paths], cwd=work, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        results = load_file(work / "outputs.safetensors")
    verdicts: dict[str, dict[str, Any]] = {}
    for file in files:
        got = {
            width: [
                tuple(results[f"{file['file']}/{width}/{side}{turn}"] for side in "kv")
                for turn in "12"
                if f"{file['file']}/{width}/k{turn}" in results
            ]
            for width in file["widths"]
        }
        if not any(got.values()):
            verdicts[file["file"]] = {"verdict": "dropped"}
        elif any(not first[side].equal(second[side]) for first, second in got.values() for side in (0, 1)):
            verdicts[file["file"]] = {"verdict": "changes"}
        elif (error := _error(file, expected, got)) <= EQUAL:
            verdicts[file["file"]] = {"verdict": "equal"}
        else:
            verdicts[file["file"]] = {"verdict": "differs", "error": _rounded(error)}
    return done.stdout.rpartition("version ")[2].strip(), verdicts


def _error(file: Mapping[str, Any], expected: Mapping[str, Any], got: Mapping[int, list[Any]]) -> float:
    """Returns the norm of the error by the norm of what the network changes, the worst of widths, sides and calls."""
    errors = []
    for width, calls in got.items():
        x = expected[f"{file['name']}/{width}/x"]
        for call in calls:
            for side, own in zip("kv", call, strict=True):
                wanted = expected[f"{file['name']}/{width}/{side}@1.0"]
                errors.append(float((own - wanted).norm() / (wanted - x).norm()))
    return max(errors)


def _rounded(error: float) -> float:
    return float(f"{error:.2g}")


def described(file: Mapping[str, Any]) -> str:
    """What is in a file, in a few words."""
    parts = [str(file["layer_structure"] or "no layer structure"), file["activation_func"] or "no activation"]
    if file["layer_norm"]:
        parts.append("layer norm")
    if file["dropout"]:
        parts.append("dropout")
    if file["activate_output_in_file"]:
        parts.append("activated output")
    elif "activate_output" in file["missing_keys"] and file["activation_func"]:
        parts.append("`activate_output` missing")
    if file["dtype"] != "float32":
        parts.append(file["dtype"])
    if file["container"] != "zip":
        parts.append(f"{file['container']} container")
    return ", ".join(parts)


def as_table() -> str:
    """Returns the record as a table of Markdown: a row for each kind of network."""
    record = json.loads(RECORD.read_text())
    lines = [f"| network | ComfyUI's own loader ({record['comfyui']}) | hnetkit |", "| --- | --- | --- |"]
    said = {
        "equal": "equal",
        "dropped": "left out; the log says so",
        "differs": "differs, by {error:.0%} of its effect",
        "changes": "differs, and each time by something else",
    }
    for row in record["files"]:
        lines.append(f"| {row['network']} | {said[row['verdict']].format(**row)} | equal |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the record")
    given = parser.parse_args()
    missing = [name for name in ("HNETKIT_SHARED", "COMFYUI_PATH") if name not in os.environ]
    if missing:
        parser.error(f"{missing[0]} names no folder")
    folder = Path(os.environ["HNETKIT_SHARED"]) / "data" / "golden"
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    version, verdicts = theirs(folder, os.environ["COMFYUI_PATH"], python)
    worst = max(ours(folder).values())
    if worst > EQUAL:
        sys.exit(f"hnetkit is not equal to A1111: {worst:.2g}")
    files, _ = golden(folder)
    rows = [{"network": described(file), **verdicts[file["file"]]} for file in files]
    text = json.dumps({"comfyui": version, "files": rows}, indent=2) + "\n"
    print(text, end="")
    if given.record:
        RECORD.write_text(text)


if __name__ == "__main__":
    main()
