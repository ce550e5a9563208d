"""Disks that this machine lacks: the system's calls behave as they would there, for root as for everybody.

`fail_at` is a disk that fails at some paths, `make_case_blind` one on which case makes no difference.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def fail_at(monkeypatch: pytest.MonkeyPatch, path: Path, number: int, *calls: str) -> None:
    """Makes calls of `os` ("stat", "scandir", "open", ...) raise OSError for a path and everything below it."""
    for name in calls:
        monkeypatch.setattr(os, name, _failing(getattr(os, name), path, number))


def _failing(call: Callable[..., Any], place: Path, number: int) -> Callable[..., Any]:
    def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(place):
            raise OSError(number, os.strerror(number), os.fspath(path))
        return call(path, *args, **kwargs)

    return wrapped


def make_case_blind(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes paths below a folder lead to the same file in whatever case they are written."""
    listing = os.listdir

    def found(path: Any) -> Any:
        if not isinstance(path, str | os.PathLike) or not Path(path).is_relative_to(folder):
            return path
        real = folder
        for name in Path(path).relative_to(folder).parts:
            names = {other.casefold(): other for other in listing(real)} if real.is_dir() else {}
            real /= names.get(name.casefold(), name)
        return os.fspath(real)

    for name in ("stat", "lstat", "open", "unlink"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *args, _call=call, **kwargs: _call(found(path), *args, **kwargs))
    for name in ("link", "replace", "rename"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, new, _call=call, **kwargs: _call(found(path), found(new), **kwargs))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scandir(found(path)))
