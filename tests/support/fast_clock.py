"""A clock on which waiting costs little: retries and pauses happen as they would, only sooner."""

from __future__ import annotations

import time

from hnetkit.sources.http import RealClock


class FastClock(RealClock):
    """Runs `speed` times as fast as the wall's; its stop wakes sleepers like the real one's."""

    def __init__(self, speed: float = 200.0) -> None:
        super().__init__()
        self.speed = speed
        self.slept: list[float] = []

    def now(self) -> float:
        return time.monotonic() * self.speed

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.slept.append(seconds)
        super().sleep(seconds / self.speed)
