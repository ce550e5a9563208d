"""An empty registry, for tests of what scans put into one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hnetkit.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry.db") as opened:
        yield opened
