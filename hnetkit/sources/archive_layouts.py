"""Repositories of the hub that archive other people's networks: who made a file, and its title, by its folders.

Known are the layouts of two archives, also where somebody copied them: `Civitai/<creator>/"<name> [slug]"`, with
folders for what came from elsewhere, and `.../hypernetworks/<name>.pt`. Whoever archives them did not make them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_OF_CIVITAI = "civitai"
_ELSEWHERE = frozenset({"mega", "arca", "nai"})
_ARCHIVE, _COLLECTION = "hypernetworkarchive", "hypernetworkcollection"
_TITLE = re.compile(r"(?P<name>.*?\S)\s*\[[^\[\]]*\]")


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """A network, or several versions of one, in an archive.

    Attributes:
        place: its folder, or the path of its only file.
        title: as the archive has it.
        creator: None where the folders do not say.
    """

    place: str
    title: str
    creator: str | None


def entry_of(repo: str, path: str) -> ArchiveEntry | None:
    """Returns what the layout of an archive says of a file; None where the repository has none that is known."""
    name = repo.rpartition("/")[2].lower()
    parts = path.split("/")
    if parts[0].lower() == _OF_CIVITAI and len(parts) >= 3:
        return ArchiveEntry("/".join(parts[:3]), _title(parts[2], is_file=len(parts) == 3), parts[1])
    if name.startswith(_ARCHIVE) and parts[0].lower() in _ELSEWHERE and len(parts) >= 2:
        place = parts[:-1] if len(parts) > 2 else parts
        return ArchiveEntry("/".join(place), _title(place[-1], is_file=len(parts) == 2), None)
    if name.startswith(_COLLECTION) and "hypernetworks" in map(str.lower, parts[:-1]):
        return ArchiveEntry(path, _title(parts[-1], is_file=True), None)
    return None


def _title(part: str, *, is_file: bool) -> str:
    """Returns the name in a part of a path, without its quotes and the slug behind it."""
    text = (os.path.splitext(part)[0] if is_file else part).strip().strip('"')
    match = _TITLE.fullmatch(text)
    return (match["name"] if match else text).strip(' "') or part
