"""Which failures pass by themselves, and how long to wait for that."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeVar

from hnetkit.errors import NetworkFailed, RateLimited
from hnetkit.sources.pace import Clock, Pace
from hnetkit.text import counted

ATTEMPTS = 6
LONGEST_WAIT_S = 60.0
LONGEST_OBEYED_S = 900.0
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 528)})
MOST_PATIENT = 5
"""Things in a row that were given up after all attempts: until something comes again, one attempt has to do."""
PROGRESS = 1 << 20  # bytes: an attempt that brought so much does not count

T = TypeVar("T")


class Passing(Exception):
    """A failure that may be gone the next time.

    Args:
        reason: what happened, in words.
        after: seconds that the site asked to wait; None where it did not say.
        limited: the site said that we ask too much.
        elsewhere: another than the site said it, of one file: the site itself may give all others.
        progress: bytes that came before it happened, and that need not come again.
    """

    def __init__(
        self, reason: str, *, after: float | None = None, limited: bool = False, elsewhere: bool = False
    ) -> None:
        super().__init__(reason)
        self.after, self.limited, self.elsewhere, self.progress = after, limited, elsewhere, 0


def retry_after(headers: Mapping[str, str], clock: Clock) -> float | None:
    """Returns the seconds that a ``Retry-After`` asks for, given as seconds or as a date; None without one."""
    text = headers.get("Retry-After", "").strip()[:64]
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - clock.wall())
    except (ValueError, TypeError, OverflowError, IndexError, OSError):  # what the parser and the calendar raise
        return None


def persevere(
    call: Callable[[], T],
    what: str,
    *,
    clock: Clock,
    pace: Pace,
    attempts: int = ATTEMPTS,
    obeyed_s: float = LONGEST_OBEYED_S,
) -> T:
    """Returns what `call` returns, calling it again while it fails in a way that passes.

    Waits grow from one second to a minute, each a random part of its step, so that many do not come back at once. A
    pause that the site asked for since we ask too much holds for everybody; any other may be about this one thing.

    Args:
        obeyed_s: seconds that it may ask us to wait, in all.

    Raises:
        RateLimited: the site asks for too long a pause, or never has enough of asking for one.
        NetworkFailed: it failed `attempts` times in a row, or once where everything else failed so before.
    """
    tried, obeyed = 0, 0.0
    while True:
        try:
            result = call()
            pace.given_up = 0
            return result
        except Passing as failure:
            tried = 1 if failure.progress >= PROGRESS else tried + 1
            of_all = failure.limited and not failure.elsewhere
            obeyed += failure.after or 0.0
            if failure.after is not None and obeyed > (obeyed_s if of_all else min(obeyed_s, LONGEST_WAIT_S)):
                kind, hint = RateLimited if of_all else NetworkFailed, "run the same command again then"
                raise kind(f"{what}: the site asks to wait {failure.after:.0f} s", hint=hint) from failure
            if tried >= (attempts if pace.given_up < MOST_PATIENT else 1):
                pace.given_up += 1
                raise _final(what, failure, tried) from failure
            wait = random.uniform(0.5, 1) * min(LONGEST_WAIT_S, 2.0 ** (tried - 1))
            wait = max(wait, failure.after or 0.0)
            if of_all:
                pace.pause(wait)
            clock.sleep(wait)


def _final(what: str, failure: Passing, tried: int) -> NetworkFailed | RateLimited:
    kind = RateLimited if failure.limited and not failure.elsewhere else NetworkFailed
    return kind(
        f"{what}: {failure} ({counted(tried, 'attempt')})",
        hint="run the same command again later: it goes on from here",
    )
