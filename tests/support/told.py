"""`told`: all text of an error and of what caused it, for tests that no secret is in it."""

from __future__ import annotations

import traceback


def told(error: BaseException) -> str:
    """All that a traceback, a message and a hint show of an error and of what led to it."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(getattr(error, "hint", ""))
