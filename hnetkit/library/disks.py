"""What a disk says of a file that is not there: that it is gone, or only away, with its disk or into a cloud.

Whatever is known of a network goes with its last file, so every verb that forgets files asks here first.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from hnetkit.files import is_absent
from hnetkit.library.walking import bare_way, broken_way, in_cloud
from hnetkit.registry.store import Registry
from hnetkit.text import argument

_DISK = "and its disk may be away"


@dataclass(frozen=True, slots=True)
class Away:
    """Why a file that is not there may be only away.

    Attributes:
        place: the file, or a folder on the way to it.
        looks: what is to be seen there.
    """

    place: Path
    looks: str

    def __str__(self) -> str:
        return f"{self.place} {self.looks}"

    @property
    def forgotten_by(self) -> str:
        """The command for somebody who knows that what was there is gone."""
        return f"hnetkit forget {argument(self.place, is_path=True)}"


class Disks:
    """The scanned folders of a library, as the disk shows them now.

    Args:
        registry: of the library; each look at it and at the disk is kept for the next question.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._holds_any: dict[Path, bool] = {}

    @cached_property
    def _roots(self) -> list[Path]:
        """The innermost first: a folder is scanned without those inside it that are scanned themselves."""
        return sorted((root.path for root in self._registry.files.roots()), key=lambda path: -len(path.parts))

    def root_of(self, path: str | os.PathLike[str]) -> Path:
        """Returns the scanned folder that a known file is under."""
        return next(root for root in self._roots if Path(path).is_relative_to(root))

    def away(self, path: str | os.PathLike[str]) -> Away | None:
        """Returns why a known file that is not there may be only away; None if it is gone."""
        root = self.root_of(path)
        if (away := away_below(root, Path(path))) is not None:
            return away
        return None if self._holds_some(root) else Away(root, f"holds none of its files, {_DISK}")

    def _holds_some(self, root: Path) -> bool:
        if root not in self._holds_any:
            known = (row["path"] for row in self._registry.files.rows() if self.root_of(row["path"]) == root)
            self._holds_any[root] = any(not is_absent(path) for path in known)
        return self._holds_any[root]


def away_below(folder: Path, path: Path) -> Away | None:
    """Returns what the way from a folder to a file that is not there says of why; None if it says nothing."""
    if (said := in_cloud(path)) is not None:
        return Away(path, said)
    if (absent := broken_way(folder, path)) is not None:
        return Away(absent, f"is not there, {_DISK}")
    if (bare := bare_way(folder, path)) is not None:
        return Away(bare, f"is empty, {_DISK}")
    return None
