"""What `hnetkit inspect` says of a picture: its settings, and which of its hypernetworks the library holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hnetkit.cli.output import Output, Row
from hnetkit.text import argument

if TYPE_CHECKING:
    from hnetkit.errors import NoSettings
    from hnetkit.formats.open_file import OpenFile

_FETCHABLE = (8, 10, 12, 64)  # digits of a hash that the site can be asked for


def picture_row(file: OpenFile, output: Output) -> tuple[Row, NoSettings | None] | None:
    """Returns what `image_facts` does, and says how to get the networks that the library does not hold."""
    from hnetkit.generate.image_settings import image_facts

    found = image_facts(file)
    for network in found[0]["hypernetworks"] if found else ():
        if not network["in_library"]:
            output.note(f"Hint: {network['name']} is not in the library; {_command(network)}")
    return found


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
