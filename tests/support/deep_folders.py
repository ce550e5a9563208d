"""Folders that are hard to walk: `deep_tree` is deeper than any path can name, `unreadable` may not be listed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def deep_tree(folder: Path) -> Iterator[None]:
    """A folder in a folder and so on, deeper than any path can be long."""
    here = os.getcwd()
    os.chdir(folder)
    try:
        for _ in range(60):
            os.mkdir("x" * 100)
            os.chdir("x" * 100)
    finally:
        os.chdir(here)
    try:
        yield
    finally:
        shutil.rmtree(folder / ("x" * 100))  # other tests look around, by path


@contextmanager
def unreadable(folder: Path) -> Iterator[None]:
    """A folder of this name that its owner may not look into; root may all the same."""
    folder.mkdir()
    folder.chmod(0)
    try:
        yield
    finally:
        folder.chmod(0o700)
