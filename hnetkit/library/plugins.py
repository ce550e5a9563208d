"""What makes another program run hypernetworks by hnetkit: nodes in ComfyUI, an extension in Forge and reForge.

Each is a folder of a few lines that import hnetkit from the program's own Python. They come and go as linked networks
do: recorded before they are placed, and never replaced or removed once they were changed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import hnetkit
from hnetkit.files import TEMPORARY, is_file_at, is_there
from hnetkit.library.layouts import PROGRAMS, root_of
from hnetkit.library.link import CHANGED, NOT_OURS, LinkChange
from hnetkit.library.placing import Placing, is_same_bytes, is_untouched, key_of, links_locked
from hnetkit.registry.store import Registry

Kind = Literal["node", "extension"]


@dataclass(frozen=True, slots=True)
class Plugin:
    """What one program takes.

    Attributes:
        program: its name in `PROGRAMS`.
        folder: of the plugin, below the program's own.
        files: the folder with its files, below hnetkit's package.
        what: what it is, for messages.
    """

    program: str
    folder: tuple[str, ...]
    files: tuple[str, ...]
    what: str


PLUGINS: dict[Kind, Plugin] = {
    "node": Plugin("comfyui", ("custom_nodes", "hnetkit"), ("comfyui", "custom_node"), "nodes"),
    "extension": Plugin("forge", ("extensions", "hnetkit", "scripts"), ("webui", "extension", "scripts"), "extension"),
}

_FIRST_READ = "__init__.py"  # by which the program takes the folder for whole: it comes last
_PYTHONS = ("venv", ".venv", "../python_embeded", "../python_embedded", "../venv")


def install(registry: Registry, directory: Path, kind: Kind, *, dry_run: bool = False) -> Iterator[LinkChange]:
    """Puts a plugin into a program's folder, or brings the one that is there up to date.

    Args:
        registry: records what was put where.
        directory: the program's own folder, or one in it.
        kind: of plugin.
        dry_run: yield what would be done, and do nothing.

    Raises:
        NotFound: no such folder.
        UsageError: it is not that program's.
        HnetkitError: another process is changing links and did not finish in time.
    """
    plugin = PLUGINS[kind]
    placing = _placing(registry, directory, plugin)
    with links_locked(registry, dry_run=dry_run):
        placed, _ = placing.known(dry_run=dry_run)
        if not dry_run:
            placing.make_folder()
            _remove_unfinished(placing.folder)
        for source in _files(plugin):
            path = placing.folder / source.name
            is_here, before = is_there(path), placed.get(key_of(path))
            if is_here and is_same_bytes(path, source):
                yield LinkChange("there", str(path), str(source), "copy")
            elif is_here and (before is None or not is_untouched(before)):
                yield LinkChange("kept", str(path), str(source), reason=CHANGED if before else NOT_OURS)
            else:
                if not dry_run:
                    placing.copy(source, path, "copy", replace=is_here)
                yield LinkChange("updated" if is_here else "linked", str(path), str(source), "copy")


def uninstall(registry: Registry, directory: Path, kind: Kind, *, dry_run: bool = False) -> Iterator[LinkChange]:
    """Removes the unchanged files that `install` put into a program's folder, and the folders it made, if empty.

    Raises: as `install`.
    """
    placing = _placing(registry, directory, PLUGINS[kind])
    with links_locked(registry, dry_run=dry_run):
        placed, made = placing.known(dry_run=dry_run)
        for link in sorted(placed.values(), key=lambda link: not link.path.endswith(_FIRST_READ)):
            if not is_there(link.path):
                if not dry_run:
                    placing.forget(link.path)
            elif is_untouched(link):
                if not dry_run:
                    os.unlink(link.path)
                    placing.forget(link.path)
                yield LinkChange("removed", link.path, link.source, link.how)
            else:
                yield LinkChange("kept", link.path, link.source, link.how, CHANGED)
        if not dry_run:
            _remove_unfinished(placing.folder)
            placing.remove_folders(made)


def python_of(directory: Path, kind: Kind) -> str | None:
    """Returns the Python that a program runs in, where it is found by its folder; None where it is not."""
    root = root_of(PROGRAMS[PLUGINS[kind].program], directory)
    names = ("python.exe", "Scripts/python.exe") if sys.platform == "win32" else ("bin/python",)
    places = (root / place / name for place in _PYTHONS for name in names)
    return next((os.path.normpath(place) for place in places if is_file_at(place)), None)


def _placing(registry: Registry, directory: Path, plugin: Plugin) -> Placing:
    root = root_of(PROGRAMS[plugin.program], directory)
    return Placing(registry, root.joinpath(*plugin.folder), f"{plugin.program} {plugin.what}", "copy")


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed run was writing; no other run writes there now."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink()


def _files(plugin: Plugin) -> list[Path]:
    folder = Path(hnetkit.__file__).parent.joinpath(*plugin.files)
    names = (name for name in sorted(os.listdir(folder)) if not name.startswith("__pycache__"))
    return sorted((folder / name for name in names), key=lambda path: path.name == _FIRST_READ)
