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
from hnetkit.registry.columns import Row
from hnetkit.registry.files import Root
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
        self._since: dict[Path, str | None] = {}

    @cached_property
    def _roots(self) -> list[Root]:
        """The innermost first: a folder is scanned without those inside it that are scanned themselves."""
        return sorted(self._registry.files.roots(), key=lambda root: -len(root.path.parts))

    def root_of(self, path: str | os.PathLike[str]) -> Path:
        """Returns the scanned folder that a known file is under."""
        return self._root_of(path).path

    def _root_of(self, path: str | os.PathLike[str]) -> Root:
        return next(root for root in self._roots if Path(path).is_relative_to(root.path))

    def away(self, row: Row) -> Away | None:
        """Returns why a known file that is not there may be only away; None if it is gone.

        It is gone if a file that was there together with it still is. One that came later may be on another disk, or
        in the empty folder on which a disk is mounted.
        """
        root = self._root_of(row["path"])
        if (away := away_below(root.path, Path(row["path"]))) is not None:
            return away
        last_seen = row["last_seen"] or ""
        if row["state"] != "missing":
            last_seen = max(last_seen, root.scanned_at or "")
        since = self._holds_one_since(root.path)
        if since is not None and since <= last_seen:
            return None
        which = "its files" if since is None else "the files that were there with it"
        return Away(root.path, f"holds none of {which}, {_DISK}")

    def _holds_one_since(self, root: Path) -> str | None:
        """When the first of the files that are there was found; None if none is there."""
        if root not in self._since:
            known = [row for row in self._registry.files.rows() if self.root_of(row["path"]) == root]
            known.sort(key=_first_seen)
            self._since[root] = next((_first_seen(row) for row in known if not is_absent(row["path"])), None)
        return self._since[root]


def _first_seen(row: Row) -> str:
    return row["first_seen"] or ""


def away_below(folder: Path, path: Path) -> Away | None:
    """Returns what the way from a folder to a file that is not there says of why; None if it says nothing."""
    if (said := in_cloud(path)) is not None:
        return Away(path, said)
    if (absent := broken_way(folder, path)) is not None:
        return Away(absent, f"is not there, {_DISK}")
    if (bare := bare_way(folder, path)) is not None:
        return Away(bare, f"is empty, {_DISK}")
    return None
