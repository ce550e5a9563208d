"""The record in a file that was baked, by which it is told from all others."""

from __future__ import annotations

from pathlib import Path

from hnetkit.errors import HnetkitError
from hnetkit.files import refuse_existing
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.safetensors_file import read_safetensors

METADATA = "hnetkit.bake"
"""Key of a file's metadata that holds the record of its baking, as JSON."""


def refuse_all_but_baked(path: Path, *, overwrite: bool) -> None:
    """Raises OutputExists if there is anything at `path` that must not be replaced; what was baked earlier may be."""
    refuse_existing(path, overwrite=overwrite, is_other=_is_other)


def _is_other(path: Path) -> bool:
    try:
        with OpenFile(path) as file:
            return METADATA not in read_safetensors(file).metadata
    except (OSError, HnetkitError):  # unknown, so it is kept
        return True
