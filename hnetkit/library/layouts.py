"""Layouts of other programs: their folders of hypernetworks, the files they list, and how they name them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hnetkit.errors import NotFound, UsageError
from hnetkit.files import is_folder_at, is_reserved, stat_at


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
        marks: files and folders in its own folder that tell it from the others.
    """

    name: str
    folder: tuple[str, ...]
    suffixes: frozenset[str]
    named_by: Literal["stem", "path"]
    note: str | None = None
    by_order: bool = False
    marks: tuple[str, ...] = ()


_PT = frozenset({".pt"})
# ComfyUI lists .safetensors and .sft too, but finds no network in them and silently applies nothing
_COMFY = frozenset({".ckpt", ".pt", ".pt2", ".bin", ".pth", ".pkl"})

PROGRAMS = {
    program.name: program
    for program in (
        Program("a1111", ("models", "hypernetworks"), _PT, "stem", marks=("webui.py",)),
        Program(
            "forge",
            ("models", "hypernetworks"),
            _PT,
            "stem",
            note="Forge lists hypernetworks but does not apply them (its issue 275); hnetkit link --extension mends it",
            marks=("webui.py", "modules_forge"),
        ),
        Program(
            "sdnext",
            ("models", "hypernetworks"),
            _PT,
            "stem",
            note="SD.Next removed hypernetworks in July 2025: only older releases apply them",
            marks=("launch.py", "installer.py"),
        ),
        Program("comfyui", ("models", "hypernetworks"), _COMFY, "path", by_order=True, marks=("custom_nodes",)),
        Program(
            "stabilitymatrix",
            ("Data", "Models", "Hypernetwork"),
            _PT,
            "stem",
            note="Forge, where StabilityMatrix shares this folder with it, lists hypernetworks but does not apply them",
            marks=("Data/Packages",),
        ),
    )
}

_LONGEST = 200  # bytes of a stem; with a number and a suffix a name may have 255
_IN_NO_PROMPT = frozenset(":>#")  # they end a name, a tag, and what A1111 reads of a line
_ON_NO_DISK = frozenset('<>:"/\\|?*')  # in no name on Windows, nor on the disks that it shares with others
_JOINERS = "\u200c\u200d"  # of Persian and Hindi letters, and of emoji


def folder_of(program: Program, directory: Path) -> Path:
    """Returns the real path of a program's folder of hypernetworks, which need not exist yet.

    Args:
        program: the program.
        directory: its own folder, one between that and its hypernetworks, or the folder of hypernetworks itself.

    Raises:
        NotFound: `directory` is not a folder.
    """
    if not is_folder_at(directory):
        raise NotFound(f"{directory}: no such folder", hint=f"give the folder that {program.name} is installed in")
    parts, own_name = program.folder, folded(os.path.basename(os.path.abspath(directory)))
    below: tuple[str, ...] = parts
    if own_name == folded(parts[-1]):
        below = ()
    elif inside := [index for index, part in enumerate(parts) if is_folder_at(directory / part)]:
        below = parts[inside[0] :]
    elif between := [index for index, part in enumerate(parts) if folded(part) == own_name]:
        below = parts[between[0] + 1 :]
    return Path(os.path.realpath(directory.joinpath(*below)))


def root_of(program: Program, directory: Path) -> Path:
    """Returns the real path of a program's own folder: `directory`, or the one that it is in.

    Raises:
        NotFound: `directory` is not a folder.
        UsageError: it does not belong to that program.
    """
    if not is_folder_at(directory):
        raise NotFound(f"{directory}: no such folder", hint=f"give the folder that {program.name} is installed in")
    folder = Path(os.path.realpath(directory))
    for own in (folder, *folder.parents):
        if all(stat_at(own / mark) is not None for mark in program.marks):
            return own
    missing = " or no ".join(program.marks)
    raise UsageError(
        f"{directory} is not the folder of {program.name}: it has no {missing}",
        hint=f"give the folder that {program.name} is installed in",
    )


def program_at(directory: Path) -> Program | None:
    """Returns the program that a folder belongs to, told by what is beside; None if nothing tells it.

    Args:
        directory: as `folder_of` takes it.
    """
    folder = Path(os.path.abspath(directory))
    by_marks = sorted(PROGRAMS.values(), key=lambda program: -len(program.marks))  # Forge has all that A1111 has
    for depth, own in enumerate([folder, *folder.parents]):
        below = [folded(part) for part in folder.relative_to(own).parts]
        for program in by_marks:
            is_its_own = below == [folded(part) for part in program.folder[:depth]]
            if is_its_own and all(stat_at(own / mark) is not None for mark in program.marks):
                return program
    return None


def stem_for_layout(name: str) -> str:
    """Returns a file stem that works in `<hypernet:stem:1>`, in every program's list and on every file system.

    It is the name itself, in NFC, except for what ends a name in a prompt or cannot be on some disk: that becomes
    ``_``. A name that begins with a dot is listed by no program, so the dot goes.
    """
    text = "".join(c if _is_kept(c) else "_" for c in unicodedata.normalize("NFC", name))
    text = text.encode()[:_LONGEST].decode(errors="ignore").strip(". ") or "hypernetwork"
    return f"_{text}" if is_reserved(text) else text


def _is_kept(character: str) -> bool:
    if character in _IN_NO_PROMPT | _ON_NO_DISK:
        return False
    return character in _JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def folded(name: str) -> str:
    """Returns a key that is equal for names that a file system may treat as one: case folded, Unicode normalized."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class TakenNames:
    """The names in a folder, no two of which may be one to a file system.

    Args:
        names: that are taken.
        numbered: returns a name with an ending, ``-2``, of a length that the folder allows.
    """

    def __init__(self, names: Iterable[str] = (), numbered: Callable[[str, str], str] = str.__add__) -> None:
        self._keys, self._numbered = set(map(folded, names)), numbered
        self._numbers: dict[str, int] = {}  # key of a name -> the number behind it that was free last

    def add(self, name: str) -> None:
        """Takes a name."""
        self._keys.add(folded(name))

    def free(self, name: str) -> str:
        """Returns a name if it is free, else with the first number behind it that is: ``ink``, ``ink-2``, ``ink-3``.

        A folder may have thousands of one name, so the search goes on where it ended.
        """
        key = folded(name)
        number = self._numbers.get(key, 1)
        while folded(found := self._numbered(name, f"-{number}") if number > 1 else name) in self._keys:
            number += 1
        self._numbers[key] = number
        return found
