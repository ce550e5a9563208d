"""Torch's settings, which `monkeypatch` cannot put back where they are no plain attributes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def setting(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of a setting, and in the end the one that it had."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
