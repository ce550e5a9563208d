"""What lies beside a model file, and whose it is: what goes where the model file goes, and what stays, with the reason.

A name may be read in two ways: ``ink.preview.png`` is a sidecar of ``ink.pt``, and of ``ink.preview.pt``.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Set
from itertools import takewhile
from pathlib import Path, PurePath

from hnetkit.files import is_absent, is_link_elsewhere
from hnetkit.library import sidecars
from hnetkit.library.layouts import folded
from hnetkit.library.walking import is_same_file, may_be_model
from hnetkit.paths import is_state

_OPTIMIZER = ".optim"  # what A1111 puts behind the name of a network's file for the state of its training
_UNKNOWN = "hnetkit knows no sidecar of this kind"
_LED_AWAY = "a link to a file in another folder"


class Belongings:
    """What lies beside the model files that leave their folders; each folder is listed once.

    Args:
        leaving: paths of the model files.
    """

    def __init__(self, leaving: Set[str]) -> None:
        self._leaving = leaving
        self._names: dict[Path, list[str]] = {}

    def of(self, path: Path) -> tuple[tuple[Path, ...], list[tuple[Path, str]]]:
        """Returns the files that go with a model file, and those that stay, each with the reason."""
        known, own = _sidecars_of(path), [path.with_name(path.name + _OPTIMIZER)]
        going = [found for found in own if not is_absent(found)]
        try:
            near = self._near(path)
        except OSError as error:  # whether another model has them too is not known
            return tuple(going), [(found, f"its folder cannot be listed ({error.strerror})") for found in known]
        models = [name for name in near if may_be_model(name) and name != path.name]
        staying_models = [name for name in models if str(path.with_name(name)) not in self._leaving]
        staying = []
        for found in known:
            other = next((name for name in staying_models if _is_sidecar(found.name, name)), None)
            if other is None:
                going.append(found)
            else:
                staying.append((found, f"{other} has it too"))
        told = {folded(found.name): found for found in (*known, *own)}
        others = {PurePath(name).stem for name in models}
        for name in near:
            is_anothers = any(name.startswith(f"{stem}.") for stem in others)
            found, same = path.with_name(name), told.get(folded(name))
            is_told = same is not None and (same == found or is_same_file(str(same), str(found)))
            if not (may_be_model(name) or is_told or is_anothers or found.is_dir()):
                staying.append((found, _LED_AWAY if is_link_elsewhere(found, path) else _unknown(name, path.stem)))
        return tuple(going), staying

    def _near(self, path: Path) -> list[str]:
        """The names in a file's folder that begin with its stem and a dot."""
        folder, begun = path.parent, f"{path.stem}."
        if folder not in self._names:
            self._names[folder] = sorted(os.listdir(folder))
        names = self._names[folder]
        return list(takewhile(lambda name: name.startswith(begun), names[bisect_left(names, begun) :]))


def _sidecars_of(path: Path) -> list[Path]:
    beside = {sidecars.sidecar(path, suffix) for suffix in sidecars.SUFFIXES if suffix != sidecars.A1111}
    beside |= {found for suffix, found in sidecars.beside(path).items() if suffix == sidecars.A1111}
    there = sorted(found for found in beside if not (is_absent(found) or os.path.isdir(found)))
    return [found for found in there if not is_state(found)]


def _unknown(name: str, stem: str) -> str:
    """Why what is named like a model is no sidecar of it: on a disk where case matters, its case may be the reason."""
    suffix = name.removeprefix(stem)
    if suffix.lower() in sidecars.SUFFIXES and suffix not in sidecars.SUFFIXES:
        return f"a sidecar's name is {stem}{suffix.lower()}, and this one differs in case"
    return _UNKNOWN


def _is_sidecar(name: str, model: str) -> bool:
    stem = PurePath(model).stem
    return name.startswith(stem) and name.removeprefix(stem) in sidecars.SUFFIXES
