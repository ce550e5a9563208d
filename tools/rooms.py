"""The rooms of the package: what each is for, and what it may import.

A room is a module or a folder directly below `hnetkit`; `kernels/` and `registry/` are two of them. The order is that
of the house, lowest room first: a room imports only rooms above it in this table. `tests/project/test_architecture.py`
holds the code to it, and docs/architecture.md shows it.
"""

from __future__ import annotations

from typing import NamedTuple


class Room(NamedTuple):
    """One row.

    Attributes:
        purpose: what the room is, in one line.
        imports: the rooms that it may import, separated by spaces.
        packages: the third-party packages that it may import; None where the table does not say.
    """

    purpose: str
    imports: str = ""
    packages: frozenset[str] | None = None


ROOMS = {
    "text": Room("Text that is safe to print, in a terminal, in JSON and in a spreadsheet; sizes and counts in words."),
    "wording": Room("Hints in the words of the caller: flags of a command, or arguments of Python."),
    "errors": Room("Every error a user can meet, with its exit code and its next step.", "text wording"),
    "base_models": Room("The names of base models: ours, Civitai's, and how people spell them.", "errors"),
    "ratings": Room("Civitai's ratings of models and pictures."),
    "paths": Room("Where hnetkit keeps its state: `HNETKIT_HOME`.", "errors"),
    "files": Room("Files written whole or not at all; the suffixes of models.", "errors"),
    "tokens": Room("Access tokens, read from the environment.", "errors"),
    "hub": Room("Files of the Hugging Face hub, and uploads, through huggingface_hub.", "errors text files tokens"),
    "limits": Room("Limits on memory and work for untrusted files; the JSON parser.", "errors files"),
    "image_formats": Room("What Pillow is given of an image file: allowed formats, size limits, EXIF orientation."),
    "images": Room(
        "The one reader of images: turned, white under transparency, 16 bits and floats scaled.",
        "errors files image_formats",
    ),
    "distributed": Room("The processes that accelerate started, for grids and training.", "errors"),
    "network": Room("`Hypernetwork`, the one in-memory form; its content hash and base model.", "errors text"),
    "hashes": Room("The hashes of a file and of its content, in one pass.", "errors network"),
    "formats": Room(
        "Bytes to a `Hypernetwork` and back. Reads pickles without running them.",
        "errors text files limits hashes network",
        frozenset({"torch", "numpy"}),
    ),
    "inspection": Room(
        "What a file is, as one row; is a network complete, finite and trained?", "errors network formats hashes"
    ),
    "prompts": Room("Prompts and infotext, parsed into data.", "errors limits text", frozenset()),
    "image_text": Room(
        "The texts in an image file: the settings that programs put there, read and written.",
        "errors text files limits formats prompts",
    ),
    "registry": Room(
        "The library's SQLite database. Answers named queries; opens no model file.",
        "errors files limits text",
        frozenset({"sqlite_utils"}),
    ),
    "kernels": Room(
        "A stack of networks applied to a tensor, by the fastest path of the device.",
        "errors",
        frozenset({"torch", "triton"}),
    ),
    "library": Room(
        "`Library`: scan folders, find a network by name or hash, link into other programs' folders.",
        "errors base_models text files limits paths images image_text hashes formats inspection prompts registry",
    ),
    "sources": Room(
        "`FetchSession`: Civitai, Hugging Face, downloads, sync, repair. All HTTP is here, except huggingface_hub's.",
        "errors text ratings paths files limits tokens hub hashes formats inspection registry library",
    ),
    "runtime": Room(
        "`Stack` and its adapters: networks on a UNet of diffusers, ComfyUI or Forge.",
        "errors text paths hub network formats kernels prompts",
    ),
    "comfyui": Room(
        "Nodes for ComfyUI.",
        "errors kernels prompts runtime",
        frozenset({"torch", "folder_paths", "comfy", "comfy_api"}),
    ),
    "webui": Room(
        "An extension for Forge and reForge: the tag of hypernetworks works again.",
        "errors kernels prompts runtime",
        frozenset({"torch", "modules"}),
    ),
    "demo": Room("The bundled model and its networks.", "errors"),
    "settings": Room("The settings of `hnetkit config`.", "errors text paths files limits hub sources prompts demo"),
    "generate": Room(
        "`load_model`, `Model.draw` and grids: images from prompts.",
        "errors paths files limits hub images image_text distributed settings network hashes formats text registry"
        " library prompts runtime demo",
    ),
    "baking": Room(
        "`bake`: a stack as weights that other programs load, exact where it can be, else fitted and measured.",
        "errors files limits text image_text network formats kernels registry library prompts runtime generate",
    ),
    "train": Room(
        "Training data, training runs and sweeps.",
        "errors paths files limits image_formats images distributed settings network hashes formats inspection"
        " text hub kernels registry library prompts runtime demo generate",
    ),
    "sharing": Room(
        "`share`: networks as a folder for a Hugging Face repository, with its model card; and its upload.",
        "errors text ratings files limits hub images image_text network hashes formats library prompts",
    ),
    "facts": Room(
        "What is known of a network, as labeled facts in groups.",
        "text ratings library baking sharing",
    ),
    "gallery": Room(
        "A local web page of the library: cards, one network, pictures that it draws, and those that a person has.",
        "errors base_models ratings text files limits paths images image_text distributed settings formats inspection"
        " registry library sources prompts facts generate demo",
    ),
    "doctor": Room(
        "Checks of an installation: packages, devices, the registry, settings, sites.",
        "errors text paths files settings prompts hub kernels registry library sources demo",
    ),
}
"""Room -> its row. `hnetkit.cli` is not listed: it may import every room, and no room may import it."""


def allowed(room: str) -> frozenset[str]:
    """Returns the rooms that a room's modules may import: its own, and those of its row."""
    return frozenset({room, *ROOMS[room].imports.split()})


def as_table() -> str:
    """Returns the table in Markdown, for docs/architecture.md."""
    lines = ["| room | what it is | may import |", "| --- | --- | --- |"]
    for name, row in ROOMS.items():
        imports = ", ".join(other for other in ROOMS if other in row.imports.split()) or "no room"
        if row.packages is not None:
            imports += f"; of packages {', '.join(sorted(row.packages)) or 'none'}"
        lines.append(f"| `{name}` | {row.purpose} | {imports} |")
    lines.append("| `cli` | The command line: options and printing, nothing else. | every room |")
    return "\n".join(lines)
