"""Civitai's ratings of models and pictures: a number with one bit for each, of which several may be set."""

from __future__ import annotations

_NAMES = {1: "PG", 2: "PG-13", 4: "R", 8: "X", 16: "XXX", 32: "blocked"}
SAFE = 1 | 2
"""The bits of PG and PG-13."""


def ratings_of(level: int | None) -> list[str]:
    """Returns the names of the ratings that are set."""
    return [name for bit, name in _NAMES.items() if (level or 0) & bit]


def is_adult(level: int | None) -> bool:
    """Whether a rating above PG-13 is set; what is not rated has none."""
    return (level or 0) & ~SAFE != 0
