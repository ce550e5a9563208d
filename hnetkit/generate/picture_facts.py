"""What a picture says of how it was made, and which of its hypernetworks the library holds."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import PurePath
from typing import Any

from hnetkit import paths
from hnetkit.errors import NoSettings
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import is_sparse
from hnetkit.generate.picture_text import picture_format, settings_of
from hnetkit.hashes import sha256_of
from hnetkit.library.resolve import find_mentioned
from hnetkit.prompts.infotext import Infotext, Mention, hypernetworks_of
from hnetkit.registry.store import Registry

Row = dict[str, Any]


def picture_facts(file: OpenFile, registry: Registry | None = None) -> tuple[Row, NoSettings | None] | None:
    """Returns what `hnetkit inspect --json` prints of a picture, with the error where it carries no settings.

    Args:
        registry: of the library; None is that of `hnetkit.paths.home`, where there is one: looking makes none.

    Returns:
        None where the file is no picture.

    Raises:
        FileRefused: its texts are damaged or too large.
    """
    kind = picture_format(file.read_at(0, min(12, file.size)))
    if kind is None:
        return None
    failure = None
    try:
        said = settings_of(file)
    except NoSettings as error:
        said, failure = Infotext("", "", {}), error
    mentioned = hypernetworks_of(said)
    networks, doubts = _in_library(mentioned.networks, registry)
    return {
        "path": file.path,
        "name": PurePath(file.path).stem,
        "format": kind,
        "kind": "picture",
        "size_bytes": file.size,
        "sha256": None if is_sparse(file) else sha256_of(file),
        "prompt": said.prompt,
        "negative_prompt": said.negative_prompt,
        "settings": said.parameters,
        "hypernetworks": networks,
        "warnings": [*mentioned.warnings, *doubts],
    }, failure


def _in_library(mentioned: tuple[Mention, ...], library: Registry | None) -> tuple[list[Row], list[str]]:
    """The networks as rows, and what speaks against their being the picture's."""
    rows, doubts = [], []
    is_needed = library is None and bool(mentioned) and paths.registry_file().exists()
    with Registry(paths.registry_file()) if is_needed else nullcontext(library) as registry:
        for network in mentioned:
            held = find_mentioned(registry, network.name, network.hash) if registry else None
            rows.append({**network._asdict(), "in_library": held is not None and held.is_held})
            doubts += [held.warning] if held and held.warning else []
    return rows, doubts
