"""A long bad day: a process that meets faults of the sites and is killed, again and again; and what must hold after it.

The seed of `rng` decides faults and moments.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.fake_sites import Sites
from support.fake_sites.faults import Fault

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Day:
    """What happened: how often the process was killed, its exit codes where it was not, and the faults that it met."""

    killed: int
    codes: list[int]
    fired: list[Fault]


def started(sites: Sites, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a script of this folder, which gets the address and the token of the fake Civitai."""
    command = [sys.executable, "-P", str(_FOLDER / script), sites.civitai_url, sites.token, *arguments]
    common = {**os.environ, "PYTHONPATH": str(_FOLDER.parent), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**common, **environment})


@contextmanager
def troubled(
    sites: Sites, draw: Callable[[], Fault], count: int, waiting: int, seldom: Collection[str]
) -> Iterator[threading.Event]:
    """Throws faults, `waiting` at a time, until `count` of them happened; the event says that they did.

    Those of a `seldom` kind wait for requests that are hardly ever made, and come on top.
    """
    over, stop = threading.Event(), threading.Event()

    def throw() -> None:
        while not stop.is_set():
            if len(sites.faults.fired) >= count:
                over.set()
                return
            while sum(fault.kind not in seldom for fault in sites.faults.waiting) < waiting:
                sites.faults.add(draw())
            time.sleep(0.01)

    thread = threading.Thread(target=throw, daemon=True)
    thread.start()
    try:
        yield over
    finally:
        stop.set()
        thread.join()


def live_through(
    sites: Sites,
    rng: random.Random,
    start: Callable[[], subprocess.Popen[str]],
    draw: Callable[[], Fault],
    between: Callable[[], object],
    *,
    faults: int,
    kills: int,
    waiting: int = 10,
    seldom: Collection[str] = (),
    patience_s: float = 120.0,
) -> Day:
    """Starts a process until all faults and kills are over.

    Args:
        sites: that it uses.
        rng: decides when it is killed: at some moment of the time that the quickest one took.
        start: starts it.
        draw: returns the next fault.
        between: is called after each end, so that there is something to do for the next one.
        faults, kills: how many, at least.
        waiting, seldom: see `troubled`.
        patience_s: seconds until a process that is not killed counts as one that hangs.
    """
    killed, codes, quickest_s = 0, [], 2.5
    with troubled(sites, draw, faults, waiting, seldom) as over:
        while not over.is_set() or killed < kills:
            process, start_s = start(), time.monotonic()
            try:
                patience = quickest_s * rng.uniform(0.25, 1.0) if killed < kills else patience_s
                _, errors = process.communicate(timeout=patience)
                assert "Traceback" not in errors, errors
                codes.append(process.returncode)
                quickest_s = min(quickest_s, time.monotonic() - start_s)
            except subprocess.TimeoutExpired:
                assert killed < kills, "a process that hangs"
                process.kill()
                process.wait()
                killed += 1
            between()
    day = Day(killed, codes, [fired.fault for fired in sites.faults.fired])
    sites.faults.clear()
    assert day.killed >= kills
    assert len(day.fired) >= faults
    return day


def finished(process: subprocess.Popen[str], *codes: int) -> str:
    """Returns what a process prints that nothing disturbs; it ends with one of these exit codes."""
    output, errors = process.communicate(timeout=300)
    assert process.returncode in codes, output + errors
    return output


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def require_token_kept(sites: Sites, home: Path, token: str, origin: str) -> None:
    """Requires that a token was sent to one origin alone, in its header, and is in no file."""
    for request in sites.requests:
        told = [name for name, value in request.headers.items() if token in value]
        assert told == (["authorization"] if told and request.origin == origin else []), request
        assert token not in str(request.query) + request.path, request
    for path in home.rglob("*"):
        if path.is_file():
            assert token.encode() not in path.read_bytes(), path
