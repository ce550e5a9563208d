"""The record in a file that was baked: what it was made of and how, and by which it is told from all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError
from hnetkit.files import refuse_existing
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.generate.loading.baked import EARLIER, METADATA, with_earlier
from hnetkit.text import shorten

_MOST_TOLD, _LONGEST = 20, 2000  # networks and letters of a line about it


def told(record: dict[str, Any]) -> str:
    """Returns what a record says, on one line; anybody may have written it."""
    try:
        program = f", for {record['for']}" if record["for"] else ""
        error = max(layer["error"] for layer in record["layers"].values())
        fitted = sum(layer["origin"] == "fitted" for layer in record["layers"].values())
        how = f"{fitted} of {len(record['layers'])} projections are fitted" if fitted else "exact, to rounding"
        earlier = [part for older in with_earlier(record.get(EARLIER)) for part in older["networks"]]
        model = f"{record['model']}, which was baked of {_joined(earlier)}" if earlier else record["model"]
        on = shorten(f"{_joined(record['networks'])}, on {model}{program}", _LONGEST)
        return f"{on}; {how}, the largest relative error is {error:.3g}"
    except Exception:  # whatever it holds is no fault of the file
        return "by a record that is not understood"


def _joined(networks: Sequence[Mapping[str, Any]]) -> str:
    more = [f"{len(networks) - _MOST_TOLD:,} more"] if len(networks) > _MOST_TOLD else []
    return " + ".join([*map(with_strength, networks[:_MOST_TOLD]), *more])


def with_strength(network: Mapping[str, Any]) -> str:
    """Returns a network of a record with its strength: one number, or those of each kind and side, and of blocks."""
    strength = network["strength"]
    numbers = {key: number for key, number in strength.items() if key != "blocks"}
    blocks = {block or "other blocks": factor for block, factor in (strength.get("blocks") or {}).items()}
    if len({*numbers.values()}) == 1 and not blocks:
        return f"{network['name']}:{numbers.popitem()[1]:g}"
    return f"{network['name']} ({', '.join(f'{key} {number:g}' for key, number in {**numbers, **blocks}.items())})"


def refuse_all_but_baked(path: Path, *, overwrite: bool) -> None:
    """Raises OutputExists if there is anything at `path` that must not be replaced; what was baked earlier may be."""
    refuse_existing(path, overwrite=overwrite, is_other=_is_other)


def _is_other(path: Path) -> bool:
    try:
        with OpenFile(path) as file:
            return METADATA not in read_safetensors(file).metadata
    except (OSError, HnetkitError):  # unknown, so it is kept
        return True
