"""A disk that fails at some paths, for root as for everybody: the system's calls raise there, and nowhere else."""

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
