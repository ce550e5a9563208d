"""What `hnetkit inspect` says of a picture: its settings, and which of its hypernetworks the library holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import PurePath
from typing import TYPE_CHECKING

from hnetkit import paths
from hnetkit.cli.output import Output, Row
from hnetkit.errors import NoSettings
from hnetkit.generate.picture_text import picture_format, settings_of
from hnetkit.prompts.infotext import Infotext, Mention, hypernetworks_of
from hnetkit.text import argument

if TYPE_CHECKING:
    from hnetkit.formats.source import OpenFile

_FETCHABLE = (8, 10, 12, 64)  # digits of a hash that the site can be asked for


def picture_row(file: OpenFile, output: Output) -> tuple[Row, NoSettings | None] | None:
    """Returns the row of a picture, with the error where it carries no settings; None where the file is none.

    Raises:
        FileRefused: its texts are damaged or too large.
    """
    from hnetkit.formats.reading import is_sparse
    from hnetkit.hashes import sha256_of

    kind = picture_format(file.read_at(0, min(12, file.size)))
    if kind is None:
        return None
    failure = None
    try:
        said = settings_of(file)
    except NoSettings as error:
        said, failure = Infotext("", "", {}), error
    mentioned = hypernetworks_of(said)
    networks, doubts = _in_library(mentioned.networks)
    for network in networks:
        if not network["in_library"]:
            output.note(f"Hint: {network['name']} is not in the library; {_command(network)}")
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


def _in_library(mentioned: tuple[Mention, ...]) -> tuple[list[Row], list[str]]:
    """The networks as rows, and what speaks against their being the picture's; looking makes no library."""
    from hnetkit.library.mentions import find_mentioned
    from hnetkit.registry.store import Registry

    rows, doubts = [], []
    with Registry(paths.registry_file()) if mentioned and paths.registry_file().exists() else nullcontext() as registry:
        for network in mentioned:
            held = find_mentioned(registry, network.name, network.hash) if registry else None
            rows.append({**network._asdict(), "in_library": held is not None and held.is_held})
            doubts += [held.warning] if held and held.warning else []
    return rows, doubts


def _command(network: Row) -> str:
    """What to type to get a network. Its name is a stranger's: the shell must see nothing else in it."""
    if network["hash"] and len(network["hash"]) in _FETCHABLE:
        return f"hnetkit pull {network['hash']}"
    return f"hnetkit browse {argument(network['name'])}"


def picture_card(row: Row) -> list[str]:
    """One picture for a person to read."""
    lines = [row["path"]]
    for label, text in _facts(row):
        first, *others = text.split("\n")
        lines += [f"  {label:<12} {first}", *(f"{'':<15}{line}" for line in others)]
    return lines


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    if not (row["settings"] or row["prompt"]):
        yield "picture", "carries no settings"
        return
    yield "prompt", row["prompt"]
    if row["negative_prompt"]:
        yield "negative", row["negative_prompt"]
    if row["settings"]:
        yield "settings", ", ".join(f"{key}: {value}" for key, value in row["settings"].items())
    for network in row["hypernetworks"]:
        digits = f" [{network['hash']}]" if network["hash"] else ""
        where = "in the library" if network["in_library"] else "not in the library"
        yield "network", f"{network['name']} at {network['strength']:g}{digits}: {where}"
    for warning in row["warnings"]:
        yield "warning", warning
