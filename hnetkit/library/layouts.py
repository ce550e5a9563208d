"""Layouts of other programs: their folders of hypernetworks, the files they list, and how they name them."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hnetkit.errors import NotFound
from hnetkit.files import is_reserved


@dataclass(frozen=True, slots=True)
class Program:
    """One program's rules.

    Attributes:
        name: the value of `hnetkit link --layout`.
        folder: of hypernetworks, below the program's own folder.
        suffixes: of the files that it lists, in lower case. It reads all of them as torch files, so a network in a
            safetensors file always has to be converted.
        named_by: ``"stem"``: subfolders are not part of the name, and equal stems hide each other; ``"path"``: the
            name is the path below `folder`, with the suffix.
        note: what a user should know before using hypernetworks there.
        by_order: whether it applies layers in the order of the file and ignores their names.
    """

    name: str
    folder: tuple[str, ...]
    suffixes: frozenset[str]
    named_by: Literal["stem", "path"]
    note: str | None = None
    by_order: bool = False


_PT = frozenset({".pt"})
# ComfyUI lists .safetensors and .sft too, but finds no network in them and silently applies nothing
_COMFY = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".pkl"})

PROGRAMS = {
    program.name: program
    for program in (
        Program("a1111", ("models", "hypernetworks"), _PT, "stem"),
        Program(
            "forge",
            ("models", "hypernetworks"),
            _PT,
            "stem",
            note="Forge lists hypernetworks but does not apply them (its issue 275); hnetkit generate does",
        ),
        Program(
            "sdnext",
            ("models", "hypernetworks"),
            _PT,
            "stem",
            note="SD.Next removed hypernetworks in July 2025: only older releases apply them",
        ),
        Program("comfyui", ("models", "hypernetworks"), _COMFY, "path", by_order=True),
        Program(
            "stabilitymatrix",
            ("Data", "Models", "Hypernetwork"),
            _PT,
            "stem",
            note="Forge, where StabilityMatrix shares this folder with it, lists hypernetworks but does not apply them",
        ),
    )
}

_LONGEST = 200  # bytes of a stem; with a number and a suffix a name may have 255
_KEPT = "_.- "


def folder_of(program: Program, directory: Path) -> Path:
    """Returns the real path of a program's folder of hypernetworks, which need not exist yet.

    Args:
        program: the program.
        directory: its own folder, one between that and its hypernetworks, or the folder of hypernetworks itself.

    Raises:
        NotFound: `directory` is not a folder.
    """
    if not os.path.isdir(directory):
        raise NotFound(f"{directory}: no such folder", hint=f"give the folder that {program.name} is installed in")
    parts, own_name = program.folder, folded(os.path.basename(os.path.abspath(directory)))
    below: tuple[str, ...] = parts
    if own_name == folded(parts[-1]):
        below = ()
    elif inside := [index for index, part in enumerate(parts) if os.path.isdir(directory / part)]:
        below = parts[inside[0] :]
    elif between := [index for index, part in enumerate(parts) if folded(part) == own_name]:
        below = parts[between[0] + 1 :]
    return Path(os.path.realpath(directory.joinpath(*below)))


def stem_for_layout(name: str) -> str:
    """Returns a file stem that works in `<hypernet:stem:1>`, in every program's list and on every file system.

    Letters, digits, their marks, ``_``, ``.``, ``-`` and spaces are kept, in NFC; anything else becomes ``_``.
    """
    text = unicodedata.normalize("NFC", name)
    text = "".join(c if unicodedata.category(c)[0] in "LMN" or c in _KEPT else "_" for c in text)
    text = text.encode()[:_LONGEST].decode(errors="ignore").strip(". ") or "hypernetwork"
    return f"_{text}" if is_reserved(text) else text


def folded(name: str) -> str:
    """Returns a key that is equal for names that a file system may treat as one: case folded, Unicode normalized."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
