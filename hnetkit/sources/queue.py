"""Many jobs, a few at a time, by any number of processes on one library."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from urllib.parse import urlsplit

from hnetkit.registry.jobs import UNFINISHED, Job
from hnetkit.registry.store import Registry
from hnetkit.sources.pace import RealClock
from hnetkit.sources.work import Workshop
from hnetkit.sources.workers import Worker

_HALTING = frozenset({"rate-limited"})  # what the next job would meet too
_DOUBTFUL = frozenset({"no-token", "region-blocked"})  # so may one owner have it, for one file
_SURE = 5  # such owners: then all that they have is meant, and nothing of others, since one person may be many
_NO_ROOM = 64 << 20  # bytes free on the disk: with more, only what is larger fails
_LOOK_S = 0.3  # how often another process's jobs are looked at, and whether running ones are slow
_LONG_S, _SLOWEST = 60.0, 2000  # a job that has run so many seconds, and brought fewer bytes in each, holds up no other
_MOST = 16  # jobs at a time, slow ones too


def run(
    registry: Registry, jobs: Iterable[int], workshop: Workshop, worker: Worker, clock: RealClock, *, parallel: int = 2
) -> Iterator[Job]:
    """Carries out jobs and yields each when it is at its end, whoever brought it there.

    After a failure that every other job of its source would meet too, those are ended with it, unasked.

    Args:
        jobs: their numbers.
        worker: this process.
        clock: its stop ends the work: what was begun is kept for the next run.
        parallel: jobs at a time; where some hardly move, so many others.

    Raises:
        Stopped: the clock was stopped.
    """
    waiting, elsewhere = deque(jobs), deque[int]()
    running: dict[Future[Job], int] = {}
    begun: dict[int, float] = {}
    halted: dict[str, Job] = {}
    refused: dict[str | int, Job] = {}  # owner -> what was refused of theirs

    def slow() -> int:
        lasted = {id: time.monotonic() - begun[id] for id in running.values()}
        return sum(s > _LONG_S and workshop.came[id] < s * _SLOWEST for id, s in lasted.items())

    with ThreadPoolExecutor(max(parallel, _MOST)) as pool:
        try:
            while waiting or running or elsewhere:
                while waiting and len(running) < min(parallel + slow(), max(parallel, _MOST)):
                    job = _claim(registry, waiting[0], worker)
                    id = waiting.popleft()
                    if job is None:
                        elsewhere.append(id)
                    elif job.state not in UNFINISHED:
                        yield job
                    elif _site(job) in halted:
                        yield _end_like(registry, job, halted[_site(job)])
                    elif len(refused) >= _SURE and (owner := _owner(registry, job)) in refused:
                        yield _end_like(registry, job, refused[owner])
                    else:
                        begun[id] = time.monotonic()
                        running[pool.submit(workshop.carry_out, job)] = id
                if running:
                    done, _ = wait(
                        running, timeout=_LOOK_S if elsewhere or waiting else None, return_when=FIRST_COMPLETED
                    )
                    for future in done:
                        job = future.result()
                        del running[future]
                        if job.code in _DOUBTFUL:
                            refused[_owner(registry, job)] = job
                        if job.state == "failed" and _halts(job, token_is_bad=workshop.token_is_bad):
                            halted[_site(job)] = job
                        yield job
                elif elsewhere:
                    clock.sleep(_LOOK_S)
                waiting.extend(elsewhere)
                elsewhere.clear()
        except BaseException:
            clock.stop.set()
            wait(running)
            with registry.write():
                for id in running.values():
                    registry.jobs.release(id, worker.name)
            raise


def _site(job: Job) -> str:
    """What one answer of it stands for: plain addresses have nothing in common but their host."""
    return urlsplit(job.url).netloc if job.source == "url" else job.source


def _owner(registry: Registry, job: Job) -> str | int:
    """Who put a file there, as far as that is known."""
    if job.remote_file_id is None:
        return job.key
    with registry.write():
        return registry.catalogue.owner(job.remote_file_id)


def _halts(job: Job, *, token_is_bad: bool) -> bool:
    if job.code == "disk-full":
        return shutil.disk_usage(job.folder).free < _NO_ROOM
    return job.code in _HALTING or (token_is_bad and job.code in _DOUBTFUL)


def _claim(registry: Registry, id: int, worker: Worker) -> Job | None:
    """Returns the job where it is ours now, or at its end; None while another process has it."""
    with registry.write():
        job = registry.jobs.get(id)
        if job.state not in UNFINISHED:
            return job
        if job.owner is not None and not worker.is_dead(job.owner):
            return None
        return registry.jobs.get(id) if registry.jobs.claim(id, worker.name, job.owner) else None


def _end_like(registry: Registry, job: Job, other: Job) -> Job:
    with registry.write():
        registry.jobs.set_state(job.id, "failed", code=other.code, reason=f"not tried: {other.reason}")
        return registry.jobs.get(job.id)
