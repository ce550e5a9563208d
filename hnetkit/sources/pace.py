"""How fast: a clock that tests can set, requests per second, pauses that all workers share, bytes per second."""

from __future__ import annotations

import threading
import time
from typing import Protocol

from hnetkit.errors import HnetkitError


class Stopped(HnetkitError):
    """The person asked to stop; what was fetched so far is kept for the next run."""

    exit_code = 130


class Clock(Protocol):
    """Time, and waiting; a test gives its own."""

    def now(self) -> float:
        """Returns seconds since some moment; never goes back."""
        ...

    def wall(self) -> float:
        """Returns seconds since 1970."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits.

        Raises:
            Stopped: somebody called for a stop before or meanwhile.
        """
        ...


class RealClock:
    """The machine's clock, whose sleepers wake up when `stop` is set."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise Stopped("stopped", hint="the same command goes on where it stopped")


class Pace:
    """Requests to one site: so many a second, fewer after it complained, none during a pause.

    Args:
        clock: tells the time and waits.
        per_second: requests a second, shared by all threads.

    Attributes:
        given_up: how many things in a row did not come, however often they were asked for.
    """

    def __init__(self, clock: Clock, per_second: float = 4.0) -> None:
        self._clock, self._full, self._rate = clock, per_second, per_second
        self._lock = threading.Lock()
        self._next = self._paused_until = 0.0
        self.given_up = 0

    def wait(self) -> None:
        """Returns when the next request may go out."""
        with self._lock:
            turn = max(self._next, self._clock.now())
            self._next = turn + 1 / self._rate
            self._rate = min(self._full, self._rate * 1.02)
        while (left := max(turn, self._paused_until) - self._clock.now()) > 0:
            self._clock.sleep(left)

    def pause(self, seconds: float) -> None:
        """Keeps everybody from asking for so long, and halves the rate: the site said that it is too much."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock.now() + seconds)
            self._rate = max(self._full / 16, self._rate / 2)


class ByteLimit:
    """Bytes a second, shared by all threads; without a rate there is no limit."""

    def __init__(self, clock: Clock, per_second: float | None) -> None:
        self._clock, self._rate = clock, per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def take(self, count: int) -> None:
        """Returns when `count` more bytes may have come."""
        if self._rate is None:
            return
        with self._lock:
            start = max(self._next, self._clock.now())
            self._next = start + count / self._rate
        left = start - self._clock.now()
        if left > 0:
            self._clock.sleep(left)
