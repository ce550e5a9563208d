"""One job from queued to done: fetch, hold against what the site promised, file it, and write what goes beside it."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hnetkit.errors import (
    AuthRequired,
    Defect,
    FileRefused,
    HnetkitError,
    NetworkFailed,
    OutOfMemory,
    WrongBytes,
    failure_of,
    printable,
)
from hnetkit.hashes import blake3_of
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.beside import Beside
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.fetch import Fetch, Progress, most_of
from hnetkit.sources.here import path_of
from hnetkit.sources.install import has_room, install, quarantine
from hnetkit.sources.pace import Stopped
from hnetkit.sources.parts import Part, held
from hnetkit.sources.shapes import RemoteFile

MOST_MISSED = 20
"""Files of one model that the site lists and does not give: further ones of it are not asked for in this run."""
PATIENCE_S = 60.0
"""Seconds for which a job waits for another one that is to bring the same bytes; then it fetches them itself."""
_LOOK_S = 0.3  # how often a waiting job looks whether it is to stop
_MISSED = frozenset({"gone", "archived", "network"})


@dataclass(slots=True)
class Workshop:
    """What jobs are carried out with, shared by all threads.

    Attributes:
        registry: keeps how far each job is.
        civitai: asked again where a file is not what it said.
        fetches: source of a job -> how to fetch from it.
        beside: writes sidecars and previews of what was installed; None writes none.
        addresses: of jobs whose whole address is not in the registry, since it may hold a secret.
        asked: digits of the hash by which a job's file was asked for.
        came: number of a job -> bytes that came of its file in this run.
        token_is_bad: whether the site said that it does not know the token.
    """

    registry: Registry
    civitai: Civitai
    fetches: dict[str, Callable[[Job], Fetch]]
    beside: Beside | None = None
    progress: Progress = field(default=lambda count: None)
    addresses: Mapping[int, str] = field(default_factory=dict)
    asked: Mapping[int, str] = field(default_factory=dict)
    came: Counter[int] = field(default_factory=Counter)
    token_is_bad: bool = False
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _busy: dict[str, threading.Lock] = field(default_factory=dict)
    _missed: Counter[int] = field(default_factory=Counter)

    @contextmanager
    def _one_at_a_time(self, content: str) -> Iterator[None]:
        """Of two jobs for the same bytes, the second finds what the first brought; it does not wait for it for ever.

        Anybody can say of a file of their own that it has the bytes of another's.
        """
        with self._guard:
            lock = self._busy.setdefault(content, threading.Lock())
        until = self.civitai.web.clock.now() + PATIENCE_S
        while not (is_ours := lock.acquire(timeout=_LOOK_S)) and self.civitai.web.clock.now() < until:
            self.civitai.web.clock.sleep(0)
        try:
            yield
        finally:
            if is_ours:
                lock.release()

    def carry_out(self, job: Job) -> Job:
        """Brings a claimed job to its end, and returns it as it is then; nothing but a stop is raised.

        Raises:
            Stopped: the person asked for it; what came is kept.
        """
        try:
            with self._one_at_a_time(job.sha256 or job.key):
                os.makedirs(job.folder, exist_ok=True)
                with held(Path(job.folder), job.key, f"{job.name}{job.suffix}"):
                    state, code, reason = self._carried_out(job)
        except Stopped:
            raise
        except Exception as error:
            state, code, reason = _ended(error, job)
            if code == "no-token" and job.source == "civitai" and self.civitai.web.trust.token is not None:
                reason += f"; {self._about_the_token()}"
        with self.registry.write():
            if code in _MISSED and job.remote_file_id is not None:
                self._missed[self.registry.catalogue.model_row(job.remote_file_id)] += 1
            self.registry.jobs.set_state(job.id, state, code=code, reason=reason)
            return self.registry.jobs.get(job.id)

    def _is_given_up(self, job: Job) -> bool:
        """Whether the files of its model do not come: thousands that are not there would hold up all others."""
        if job.remote_file_id is None or not self._missed:
            return False
        with self.registry.write():
            return self._missed[self.registry.catalogue.model_row(job.remote_file_id)] >= MOST_MISSED

    def _carried_out(self, job: Job) -> tuple[str, str | None, str | None]:
        part = Part(Path(job.folder), job.key, job.sha256)
        here = self._here(job)
        if here is not None:
            part.discard()
            return ("done", None, None) if self._is_ours(job, here) else ("done", "had", here)
        what = f"{job.name}{job.suffix}"
        if self._is_given_up(job):
            return "failed", "not-tried", f"{what}: not tried: {MOST_MISSED} files of its model did not come"
        self.progress(part.size)
        try:
            self._fetch(job, part, what)
            right = job.sha256 is None or part.sha256 == job.sha256
        except WrongBytes:
            right = False
            if not self._has_changed(job):
                raise
        if not right:
            job, part = self._settle(job, part, what)
        self._require_asked(job, part, what)
        here = self._here(job)  # brought by another job that was slower than this one's patience
        if here is not None:
            part.discard()
            return "done", "had", here
        with self.registry.write():
            self.registry.jobs.set_state(job.id, "installing")
        installed = install(self.registry, job, part)
        for path in installed.paths:
            if self.beside is not None:
                self.beside.write(job, path)
        if installed.left_out:
            return "done", "partly", f"left out: {'; '.join(installed.left_out)}"[:2000]
        return "done", None, None

    def _fetch(self, job: Job, part: Part, what: str) -> None:
        def progress(count: int) -> None:
            self.came[job.id] += count
            self.progress(count)

        fetch, url = self.fetches[job.source](job), self.addresses.get(job.id, job.url)
        if job.source == "url" and url.endswith("?..."):
            hint = f"hnetkit pull 'ADDRESS' --sha256 {job.sha256}"
            raise NetworkFailed(f"{what}: its whole address is not kept, since it may hold a secret", hint=hint)
        try:
            fetch(url, part, what=what, size=job.size_bytes, progress=progress)
        except WrongBytes:
            part.discard()
            raise

    def _about_the_token(self) -> str:
        """Whether the site knows the token: with a bad one it answers as if there were none."""
        try:
            return f"it knows the token of {self.civitai.me()}, which may not"
        except AuthRequired:
            self.token_is_bad = True
            return "it does not know the token: make a new one"
        except Exception:
            return "it does not say whether it knows the token"

    def _is_ours(self, job: Job, path: str) -> bool:
        """Whether this very job put a file there, and was killed before it could say so."""
        with self.registry.write():
            return any(i["path"] == path for i in self.registry.jobs.installs(job=job.id))

    def _here(self, job: Job) -> str | None:
        """Where the library has these bytes already."""
        with self.registry.write():
            return path_of(self.registry, job.sha256)

    def _has_changed(self, job: Job) -> bool:
        """Whether the site says something else of the file now than when it was listed."""
        now = self._promised_now(job)
        return now is not None and (now.sha256, now.size_bytes) != (job.sha256, job.size_bytes)

    def _settle(self, job: Job, part: Part, what: str) -> tuple[Job, Part]:
        """What came is not what was promised: the site changed the file, or the way did. It is asked once more.

        Raises:
            WrongBytes: it stays so; what came is in quarantine, unless it is larger than the site says.
        """
        promised = self._promised_now(job)
        if promised is not None and promised.sha256 is not None:
            with self.registry.write():
                self.registry.jobs.set_hash(job.id, promised.sha256, promised.size_bytes)
                job = self.registry.jobs.get(job.id)
        if part.sha256 == job.sha256:
            return job, part
        part.discard()
        part = Part(Path(job.folder), job.key, job.sha256)
        self._fetch(job, part, what)
        if job.sha256 in (None, part.sha256):
            return job, part
        reason = f"{what}: sha256 {part.sha256}, and the site says {job.sha256}"
        if job.size_bytes is not None and part.size > most_of(job.size_bytes):
            part.discard()
            raise WrongBytes(f"{reason}; far larger than it says, so it is not kept")
        kept = quarantine(self.registry, job, part.path, reason) if has_room(part.path.parent) else None
        part.discard()
        raise WrongBytes(reason, hint=f"kept at {kept}" if kept else "not kept: little room is left on the disk")

    def _require_asked(self, job: Job, part: Part, what: str) -> None:
        """Raises NetworkFailed, with nothing kept, where what came has not the hash that a person asked for."""
        digits = self.asked.get(job.id, "")
        if part.sha256.startswith(digits) or (len(digits) == 64 and blake3_of(part.path) == digits):
            return
        came = part.sha256
        part.discard()
        raise NetworkFailed(f"{what}: what the site gives has the sha256 {came}, and asked for was {digits}")

    def _promised_now(self, job: Job) -> RemoteFile | None:
        if job.source != "civitai" or job.remote_file_id is None:
            return None
        with self.registry.write():
            row = self.registry.catalogue.file(job.remote_file_id)
        try:
            version = self.civitai.version(int(row["version_id"]))
        except HnetkitError:
            return None
        return next((file for file in version.files if str(file.id) == row["file_id"]), None)


_SAME_AGAIN = {Defect: "defect", OutOfMemory: "out-of-memory", FileRefused: "refused"}  # what a second try meets too


def _ended(error: Exception, job: Job) -> tuple[str, str, str]:
    """State, code and reason of a job that ended by an exception, whatever it is."""
    failure = failure_of(error, f"{job.name}{job.suffix}")
    same = next((word for kind, word in _SAME_AGAIN.items() if isinstance(failure, kind)), None)
    code = getattr(failure, "code", same or ("disk" if isinstance(error, OSError) else "failed"))
    return "refused" if same else "failed", code, _without_part(str(failure), job)


def _without_part(reason: str, job: Job) -> str:
    """A reason that speaks of the file's own name, not of the part's."""
    start = printable(os.path.join(job.folder, ".hnetkit-"))
    if not reason.startswith(start):
        return reason
    return f"{job.name}{job.suffix}: {reason.partition(': ')[2]}"
