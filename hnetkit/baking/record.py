"""The record in a file that was baked: what it was made of and how, and by which it is told from all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError
from hnetkit.files import refuse_existing
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.limits import parse_json

METADATA = "hnetkit.bake"
"""Key of a file's metadata that holds the record of its baking, as JSON."""


def read_record(file: OpenFile) -> dict[str, Any] | None:
    """Returns the record in an open file; None in one that was not baked, and where it is no JSON object."""
    try:
        found = parse_json(read_safetensors(file).metadata.get(METADATA, "null"))
    except (HnetkitError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def told(record: dict[str, Any]) -> str:
    """Returns what a record says, on one line; anybody may have written it."""
    try:
        made = " + ".join(f"{network['name']}:{_strength(network['strength'])}" for network in record["networks"])
        program = f", for {record['for']}" if record["for"] else ""
        error = max(layer["error"] for layer in record["layers"].values())
        fitted = sum(layer["origin"] == "fitted" for layer in record["layers"].values())
        how = f"{fitted} of {len(record['layers'])} projections are fitted" if fitted else "exact, to rounding"
        return f"{made}, on {record['model']}{program}; {how}, the largest relative error is {error:.3g}"
    except (AttributeError, KeyError, TypeError, ValueError):
        return "by a record that is not understood"


def _strength(strength: dict[str, Any]) -> str:
    """Returns a network's strength; where sides, kinds or blocks differ, all that are there."""
    numbers = {key: number for key, number in strength.items() if key != "blocks"}
    numbers |= strength.get("blocks") or {}
    different = sorted(set(map(float, numbers.values())))
    return "/".join(f"{number:g}" for number in different)


def refuse_all_but_baked(path: Path, *, overwrite: bool) -> None:
    """Raises OutputExists if there is anything at `path` that must not be replaced; what was baked earlier may be."""
    refuse_existing(path, overwrite=overwrite, is_other=_is_other)


def _is_other(path: Path) -> bool:
    try:
        with OpenFile(path) as file:
            return METADATA not in read_safetensors(file).metadata
    except (OSError, HnetkitError):  # unknown, so it is kept
        return True
