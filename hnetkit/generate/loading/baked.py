"""What a model or a LoRA was baked of, by the record in its file: such networks are not to be applied once more."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hnetkit.errors import HnetkitError
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.formats.writing import source_sha256
from hnetkit.limits import parse_json
from hnetkit.network import Hypernetwork
from hnetkit.prompts.tags import excerpt

METADATA = "hnetkit.bake"
"""Key of a file's metadata that holds the record of its baking, as JSON."""

EARLIER = "model_baked"
"""Key of a record that holds the record of the model which a copy was made of, where that was baked itself."""


def read_record(file: OpenFile) -> dict[str, Any] | None:
    """Returns the record in an open file; None in one that was not baked, and where it is no JSON object."""
    try:
        found = parse_json(read_safetensors(file).metadata.get(METADATA, "null"))
        json.dumps(found, allow_nan=False)  # NaN is no JSON, and could not be written into a copy
    except (HnetkitError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def record_of(path: Path) -> dict[str, Any] | None:
    """As `read_record`, of a file that is not open; None too where it cannot be read."""
    try:
        with OpenFile(path) as file:
            return read_record(file)
    except (OSError, HnetkitError):
        return None


def with_earlier(record: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Yields a record and those of the models that it was made on, the newest first."""
    while record is not None:
        yield record
        record = record.get(EARLIER)


def applied_once_more(files: Iterable[Path], networks: Mapping[str, Hypernetwork]) -> Iterator[str]:
    """Yields a line for each network that one of the files was baked of, so that it is in what is drawn twice.

    Args:
        files: the model's weights, and LoRAs.
        networks: name -> network that is applied beside them.
    """
    for path in files if networks else ():
        baked = _hashes_of_networks(path)
        for name, network in networks.items() if baked else ():
            if not baked.isdisjoint({network.content_hash, source_sha256(network)}):
                yield (
                    f"Warning: {excerpt(name)} was baked into {path} already, and is applied once more: leave it out "
                    "of one of them"
                )


def _hashes_of_networks(path: Path) -> frozenset[str]:
    """Returns the hashes that a file's record has of networks, of their content and of their files; else none."""
    try:
        networks = [network for record in with_earlier(record_of(path)) for network in record["networks"]]
        return frozenset(str(network[key]) for network in networks for key in ("content_hash", "sha256"))
    except Exception:  # not baked, or a record that anybody may have written
        return frozenset()
