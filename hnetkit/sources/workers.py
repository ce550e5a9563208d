"""Workers: the processes that share a library's jobs, and the jobs that each of them runs at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from hnetkit.errors import DiskFull, RegistryError
from hnetkit.registry.jobs import UNFINISHED, Job
from hnetkit.registry.store import Registry
from hnetkit.sources.http import RealClock
from hnetkit.sources.jobs import JobRunner
from hnetkit.text import counted

# --- processes


class Worker:
    """This process, while the block runs: holds a lock file that the system releases when the process dies.

    The files of those that died are removed when the next one begins: a worker that had no job is asked for by nobody.

    Args:
        folder: of the lock files.

    Attributes:
        name: the owner that claimed jobs carry.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, uuid.uuid4().hex
        self._lock = FileLock(self._file(self.name))

    def __enter__(self) -> Worker:
        self._lock.acquire()
        for path in self.folder.glob("*.lock"):
            with contextlib.suppress(OSError):  # another user's
                self.is_dead(path.stem)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()
        self._remove(self.name)

    def is_dead(self, name: str) -> bool:
        """Whether the process with this name has ended."""
        if name == self.name:
            return False
        lock = FileLock(self._file(name))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._remove(name)  # before it is released: whoever waits for it, as it begins, sees that it is gone
        lock.release()
        if os.name == "nt":  # where nobody removes a file that is open
            self._remove(name)
        return True

    def _file(self, name: str) -> str:
        return os.fspath(self.folder / f"{name}.lock")

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._file(name))


# --- many jobs

_POLL_S = 0.3  # how often waiting for a job of another process checks again
_TOLD_AFTER = 50  # checks in a row with nothing else to do: the other process may have been stopped, as by Ctrl-Z
_HALTING = frozenset({"rate-limited"})  # failures that every further job would meet
_DOUBTFUL = frozenset({"no-token", "region-blocked"})  # may concern one owner's files alone
_SURE = 5  # such owners after which their other files are skipped; others' are not: one person may be many owners
_NO_ROOM = 64 << 20  # bytes free on the disk; with more, only larger files fail
_LONG_S, _SLOWEST = 60.0, 2000  # seconds, and bytes per second: a slower job does not count as one of the parallel ones
_MOST = 16  # jobs at a time, slow ones included


def run_jobs(
    registry: Registry, jobs: Iterable[int], runner: JobRunner, worker: Worker, clock: RealClock, *, parallel: int = 2
) -> Iterator[Job]:
    """Runs jobs and yields each when it has ended, in this process or in another one.

    After a failure that all other jobs of its source would meet, those end with the same failure, without a request.

    Args:
        registry: holds the jobs.
        jobs: their numbers.
        runner: runs each.
        worker: this process.
        clock: its stop ends the run; what was begun is kept for the next one.
        parallel: files received at a time, not counting those that hardly move; one that is here is installed while
            the next one comes, but with 1 there is one job at a time.

    Raises:
        Stopped: the clock was stopped.
    """
    waiting, elsewhere = deque(jobs), deque[int]()
    running: dict[Future[Job], int] = {}
    arriving: dict[int, Future[None]] = {}  # running job -> whether all its bytes are here
    begun: dict[int, float] = {}
    halted: dict[str, Job] = {}
    refused: dict[str | int, Job] = {}  # owner -> a job of theirs that was refused
    checks = 0

    def slow() -> int:
        lasted = {id: time.monotonic() - begun[id] for id in arriving}
        return sum(s > _LONG_S and runner.received[id] < s * _SLOWEST for id, s in lasted.items())

    def has_place() -> bool:
        is_installing = len(running) - len(arriving)
        return len(arriving) < min(parallel + slow(), max(parallel, _MOST)) and is_installing < parallel

    with ThreadPoolExecutor(parallel + max(parallel, _MOST)) as pool:
        try:
            while waiting or running or elsewhere:
                while waiting and has_place():
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
                        arriving[id] = Future()
                        running[pool.submit(runner.run, job, arriving[id])] = id
                if running:
                    timeout = _POLL_S if elsewhere or waiting else None
                    futures: list[Future[Any]] = [*running, *arriving.values()]
                    done, _ = wait(futures, timeout=timeout, return_when=FIRST_COMPLETED)
                    for future in running.keys() & done:
                        job = future.result()
                        arriving.pop(running.pop(future), None)
                        if job.code in _DOUBTFUL:
                            refused[_owner(registry, job)] = job
                        if job.state == "failed" and _halts(job, token_is_bad=runner.token_is_bad):
                            halted[_site(job)] = job
                        yield job
                    arriving = {id: arrived for id, arrived in arriving.items() if not arrived.done()}
                    checks = 0
                elif elsewhere:
                    checks += 1
                    if checks == _TOLD_AFTER:
                        files = counted(len(elsewhere), "file")
                        warnings.warn(f"{files} left, which another process has begun: waiting for it", stacklevel=1)
                    clock.sleep(_POLL_S)
                waiting.extend(elsewhere)
                elsewhere.clear()
        except BaseException:
            clock.stop.set()
            wait(running)
            # on a full disk they are released later: the next run finds that this process has ended
            with contextlib.suppress(RegistryError, DiskFull), registry.write():
                for id in running.values():
                    registry.jobs.release(id, worker.name)
            raise


def _site(job: Job) -> str:
    """Returns what a failure that concerns a whole site applies to: the source, or the host of a plain URL."""
    return urlsplit(job.url).netloc if job.source == "url" else job.source


def _owner(registry: Registry, job: Job) -> str | int:
    """Returns who published a file, as far as that is known."""
    if job.remote_file_id is None:
        return job.key
    with registry.write():
        return registry.catalogue.owner(job.remote_file_id)


def _halts(job: Job, *, token_is_bad: bool) -> bool:
    if job.code == "disk-full":
        return shutil.disk_usage(job.folder).free < _NO_ROOM
    return job.code in _HALTING or (token_is_bad and job.code in _DOUBTFUL)


def _claim(registry: Registry, id: int, worker: Worker) -> Job | None:
    """Claims a job: returns it if it is ours now or has ended, None while another process has it."""
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
