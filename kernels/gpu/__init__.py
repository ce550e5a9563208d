"""What needs Triton: one module for each operation, kernels and launcher together, and what these share."""

from __future__ import annotations

import functools
import importlib.util
import re

OLDEST_TRITON = (3, 6)
"""The kernels compile from this version on; an older one counts as absent."""


@functools.cache
def triton_obstacle() -> str | None:
    """Returns why Triton cannot be used, whatever the device: it is absent or too old. None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    import triton

    found = re.match(r"(\d+)\.(\d+)", triton.__version__)
    if found and (int(found[1]), int(found[2])) < OLDEST_TRITON:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}"
    return None
