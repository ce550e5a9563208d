"""Waits for what another process or thread brings about, and no longer than that lives.

`wait_until` waits for a process of its own, `once` does something in a thread while this one works.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PAUSE_S = 0.005


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[Any], seconds: float = 300.0) -> None:
    """Returns when something is so that a living process brings about.

    Raises:
        AssertionError: the process ended before, or is ended as the time is over; with what it said.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if process.poll() is not None:
            assert is_so(), f"the process ended with {process.returncode} before: {_output(process)}"
            return
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"after {seconds:.0f} s it is still not so: {_output(process)}")
        time.sleep(PAUSE_S)


def _output(process: subprocess.Popen[Any]) -> str:
    """What an ended process said to pipes; what it said to the terminal stands there."""
    said = (text.decode(errors="replace") if isinstance(text, bytes) else text for text in process.communicate())
    return "\n".join(filter(None, said))[-4000:]


@contextmanager
def once(is_so: Callable[[], bool], do: Callable[[], object]) -> Iterator[None]:
    """Does something as soon as something is so, in a thread; gives up where the block ends before.

    Raises:
        AssertionError: the block ended, and it was not so.
    """
    ended, done = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_so():
            if ended.wait(PAUSE_S / 5):
                return
        done.set()
        do()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert done.is_set(), "the block ended, and it was not yet so"
