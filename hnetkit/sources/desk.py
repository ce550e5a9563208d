"""Everything that a command needs to fetch, put together once: sites, clock, limits, this process's worker."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from hnetkit import paths
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources import civitai, hub, queue
from hnetkit.sources.beside import Beside
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.fetch import Fetch, Progress
from hnetkit.sources.hub import Hub
from hnetkit.sources.origins import Origin, Trust
from hnetkit.sources.pace import ByteLimit, Pace, RealClock, Stopped
from hnetkit.sources.web import Web
from hnetkit.sources.work import Workshop
from hnetkit.sources.workers import Worker

_PICTURE_TIMEOUT_S = (5.0, 10.0)  # a picture is worth less waiting than a network


@dataclass(slots=True)
class Desk:
    """What a command fetches with.

    Attributes:
        registry: the library's.
        folder: where networks are installed.
        clock: shared by everything that waits; its stop ends all work.
        civitai: the site's API.
        parallel: files at a time.
        limit: bytes a second, of all files together.
        addresses: of jobs whose whole address is not in the registry, since it may hold a secret.
        asked: digits of the hash by which a job's file was asked for: no other content comes, whatever a site says.
        sidecars, previews, nsfw: whether files are written beside networks, pictures too, and those above PG-13.
    """

    registry: Registry
    folder: Path
    clock: RealClock
    civitai: Civitai
    parallel: int = 2
    limit: float | None = None
    sidecars: bool = True
    previews: bool = True
    nsfw: bool = False
    addresses: dict[int, str] = field(default_factory=dict, repr=False)
    asked: dict[int, str] = field(default_factory=dict)

    def run(self, jobs: Iterable[int], progress: Progress = lambda count: None) -> Iterator[Job]:
        """Carries out jobs; see `queue.run`. Ctrl-C keeps what came, and raises Stopped."""
        limit = ByteLimit(self.clock, self.limit)
        trust = self.civitai.web.trust
        pictures = Web(Trust(trust.base), self.clock, Pace(self.clock, 10.0), _PICTURE_TIMEOUT_S, hidden=trust.token)
        site = Fetch(self.civitai.web, limit, civitai.refusal)
        hub_web = functools.cache(lambda: Hub(self.clock).web)  # one: what one file learns of the hub, all know
        workshop = Workshop(
            self.registry,
            self.civitai,
            {
                "civitai": lambda job: site,
                "huggingface": lambda job: Fetch(hub_web(), limit, hub.refusal),
                "url": lambda job: Fetch(self._plain(job.url), limit, civitai.refusal),
            },
            Beside(self.registry, pictures if self.previews else None, self.nsfw) if self.sidecars else None,
            progress,
            self.addresses,
            self.asked,
        )
        with Worker(paths.home() / "workers") as worker, _stopping_on_interrupt(self.clock):
            yield from queue.run(self.registry, jobs, workshop, worker, self.clock, parallel=self.parallel)

    def _plain(self, url: str) -> Web:
        return Web(Trust(Origin.of(url), settled=False), self.clock, Pace(self.clock, 4.0))


@contextmanager
def _stopping_on_interrupt(clock: RealClock) -> Iterator[None]:
    """Ctrl-C, a polite kill and a closed terminal stop all threads at their next step; a second one, for a site that
    hangs, at once. The exit code is the signal's.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    came = signal.SIGINT

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if clock.stop.is_set():
            os._exit(128 + number)  # nothing is lost: jobs and parts are made for a kill at any moment
        came = signal.Signals(number)
        clock.stop.set()

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # as `nohup` has it
    former = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    except Stopped as stopped:
        stopped.exit_code = 128 + came
        raise
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
