"""Tables that people edited, or that other programs wrote."""

from __future__ import annotations

import csv
from collections.abc import Iterable


def require_each_once(reader: csv.DictReader[str], columns: Iterable[str]) -> None:
    """Raises ValueError where the header names one of `columns` twice: the reader would take the last, unasked."""
    header = list(reader.fieldnames or ())
    for name in columns:
        if header.count(name) > 1:
            raise ValueError(f"{header.count(name)} columns are called {name}")
