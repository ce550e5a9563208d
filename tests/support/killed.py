"""A process that dies at a change of the disk, or a disk that fills up: calls that change names raise from then on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHANGES = ("link", "mkdir", "remove", "rename", "replace", "rmdir", "symlink", "unlink")


class Killed(BaseException):
    """Nothing may catch it, as nothing catches a kill."""


def full_disk() -> OSError:
    """Returns what the system raises where no room is left."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def killed_at(
    monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool = False, by: Callable[[], BaseException] = Killed
) -> Iterator[list[str]]:
    """Raises at the n-th change of names on the disk and at all later ones; yields the changes so far.

    What a program still does while it dies, in its `finally` blocks, does not reach the disk either.

    Args:
        monkeypatch: of the test.
        number: of the change, from 1.
        after: make the n-th change first.
        by: makes what is raised.
    """
    made: list[str] = []

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            if len(made) < number:
                return call(*args, **kwargs)
            if after and len(made) == number:
                call(*args, **kwargs)
            raise by()

        return changed

    with monkeypatch.context() as patched:
        for name in CHANGES:
            patched.setattr(os, name, wrapped(name, getattr(os, name)))
        yield made


def recorded_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Returns a list that gets ("fsync", path) and ("unlink", path) as they happen: what is on the disk before what."""
    events: list[tuple[str, str]] = []
    fsync, unlink = os.fsync, os.unlink

    def flushed(handle: int) -> None:
        fsync(handle)
        events.append(("fsync", os.readlink(f"/proc/self/fd/{handle}")))

    def removed(path: Any, *args: Any, **kwargs: Any) -> None:
        unlink(path, *args, **kwargs)
        events.append(("unlink", os.fspath(path)))

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "unlink", removed)
    return events
