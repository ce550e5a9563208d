"""Writes the record of an evaluation, for programs and for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write(record: dict[str, Any], out: Path) -> None:
    """Writes ``OUT.json`` and ``OUT.md``; a record may still lack its later parts."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    out.with_suffix(".md").write_text("\n".join(_lines(record)) + "\n", "utf-8")


def _table(head: list[str], rows: list[list[object]]) -> list[str]:
    lines: list[Sequence[object]] = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _lines(record: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    lines = [
        "# The demo model: what was measured",
        "",
        f"{record['date']}, {record['machine']}, Python {record['python']}, {versions}. "
        f"Euler a, 20 steps, CFG {record['cfg_scale']}. Made by "
        "`python -m demo_training.evaluate`; the same numbers as data stand in the `.json`.",
        "",
    ]
    lines += ["## The checker, on drawn truth", ""]
    rows = [[name, _percent(value)] for name, value in record["checker"].items()]
    lines += _table(["pictures", "colour and shape read as captioned"], rows)
    if "model" in record:
        lines += _model(record)
    if "styles" in record:
        lines += _styles(record)
    lines += ["## Size", ""]
    rows = [[name, f"{value / 1e6:.2f} MB"] for name, value in record["bytes"].items()]
    return [*lines, *_table(["part", "on disk"], rows)][:-1]


def _model(record: dict[str, Any]) -> list[str]:
    rows = [[f"{record['cfg_scale']} (default)", *_judged(record["model"])]]
    rows += [[scale, *_judged(row)] for scale, row in record.get("other cfg_scale", {}).items()]
    head = ["CFG", "pictures", "colour and shape", "strict", "mean fit"]
    return [
        "## The model, without hypernetworks",
        "",
        "The first row is every caption (6 colours, 4 shapes, 3 sizes, 5 places) with several "
        "seeds, the others a third of the captions. Strict: also overlap with a true shape above "
        "0.85, and 98 % of the pixels inside, and of those around, of the right colour.",
        "",
        *_table(head, rows),
    ]


def _judged(row: dict[str, Any]) -> list[object]:
    passed = [_percent(row["colour and shape"]), _percent(row["strict"])]
    return [row["pictures"], *passed, row["mean fit"]]


def _styles(record: dict[str, Any]) -> list[str]:
    strengths = list(next(iter(record["styles"].values()))["mean score"])
    rows = []
    for name, row in record["styles"].items():
        scores = [f"{row['mean score'][s]:.2f}" for s in strengths]
        readable = [_percent(row["readable"][s]) for s in strengths]
        rows.append([name, *scores, _percent(row["rises over 0, 0.5, 1"]), " / ".join(readable)])
    head = ["style", *strengths, "rises over 0, 0.5, 1", "readable at " + " / ".join(strengths)]
    stacks = []
    for name, row in record["stacks"].items():
        kept = ", ".join(f"{style} {_percent(part)}" for style, part in row["kept"].items())
        stacks.append([name, kept, _percent(row["readable"])])
    return [
        "## The hypernetworks",
        "",
        "Mean score of 50 captions, one seed each, at each strength (0: plain, 1: as drawn), "
        "the share of them whose score rises, and the share whose caption is still readable.",
        "",
        *_table(head, rows),
        "Two at 0.7 each, and how much of its score alone at 0.7 either keeps:",
        "",
        *_table(["stack", "kept", "readable"], stacks),
    ]
