"""Run a download job to its end.

A claimed job is downloaded, verified against what the site listed, and installed. Where its own source does not have
the bytes any more, or not for this user, others are asked for them by their sha256.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hnetkit.errors import (
    Archived,
    AuthRequired,
    Defect,
    FileRefused,
    Gone,
    HnetkitError,
    NetworkFailed,
    NoAccess,
    NotAHypernetwork,
    OtherContent,
    OutOfMemory,
    Unreachable,
    WrongBytes,
    failure_of,
    printable,
)
from hnetkit.files import is_absent
from hnetkit.hashes import blake3_of, git_id_of
from hnetkit.registry.jobs import Job
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.civitai_models import CivitaiFile
from hnetkit.sources.download import (
    Downloader,
    PartialFile,
    Progress,
    discard_parts,
    lock_download,
    max_bytes,
)
from hnetkit.sources.http import Stopped
from hnetkit.sources.install import Installed, has_room, install, quarantine
from hnetkit.sources.mirrors import NotElsewhere, SecondSource
from hnetkit.sources.plans import is_by_hash
from hnetkit.sources.presence import Replacement, find_bytes, has_bytes, remake
from hnetkit.sources.sidecar_writer import BARE, SidecarWriter

MOST_MISSED = 20
"""Files of one model that the site lists but does not serve, after which the run skips the rest of that model."""
PATIENCE_S = 60.0
"""Seconds that a job waits for another one with the same bytes before it fetches them itself."""
_POLL_S = 0.3  # how often waiting for another job checks again
_MISSED = frozenset({"gone", "archived", "network"})
_LOST = (Gone, NoAccess, WrongBytes, OtherContent)
"""Ends of a job's own source after which others are asked; after a failed connection, only if nothing came of it."""


@dataclass(slots=True)
class JobRunner:
    """Runs single jobs; shared by all threads.

    Attributes:
        registry: records the state of each job.
        civitai: asked again where a file is not what the site listed.
        downloaders: source of a job -> its downloader.
        sidecars: writes sidecars and previews of what was installed; None writes none.
        progress: called with bytes as they arrive.
        urls: of jobs whose complete URL is not in the registry, since it may hold a secret.
        wanted: digits of the hash by which the user asked for a job's file.
        replaced: number of a job -> damaged files whose places its networks take.
        removed: what is not wanted of archives: sha256 of a network -> name of what the user removed.
        second: asked for what a job's own source does not give; None for nobody.
        received: number of a job -> bytes received of its file in this run.
        token_is_bad: whether the site reported an unknown token.
    """

    registry: Registry
    civitai: Civitai
    downloaders: dict[str, Callable[[Job], Downloader]]
    sidecars: SidecarWriter | None = None
    progress: Progress = field(default=lambda count: None)
    urls: Mapping[int, str] = field(default_factory=dict)
    wanted: Mapping[int, str] = field(default_factory=dict)
    replaced: Mapping[int, Sequence[Replacement]] = field(default_factory=dict)
    removed: Mapping[str, str] = field(default_factory=dict)
    second: SecondSource | None = None
    received: Counter[int] = field(default_factory=Counter)
    token_is_bad: bool = False
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _busy: dict[str, threading.Lock] = field(default_factory=dict)
    _missed: Counter[int] = field(default_factory=Counter)
    _folders: dict[str, int] = field(default_factory=dict)  # made for a job -> number of its disk

    @contextmanager
    def _one_at_a_time(self, content: str) -> Iterator[None]:
        """Makes the second of two jobs for the same bytes wait, so that it finds what the first installed.

        The wait is bounded: anybody may claim for a file of theirs the hash of another one.
        """
        with self._guard:
            lock = self._busy.setdefault(content, threading.Lock())
        until = self.civitai.client.clock.now() + PATIENCE_S
        while not (is_ours := lock.acquire(timeout=_POLL_S)) and self.civitai.client.clock.now() < until:
            self.civitai.client.clock.sleep(0)
        try:
            yield
        finally:
            if is_ours:
                lock.release()

    def run(self, job: Job, arrived: Future[None]) -> Job:
        """Runs a claimed job to its end, and returns it as it is then; every failure but a stop ends up in the job.

        Args:
            job: that is ours.
            arrived: gets its result when all bytes are here, and the file is yet to be installed.

        Raises:
            Stopped: the user asked for it; what was received is kept.
        """
        try:
            with self._one_at_a_time(job.sha256 or job.key):
                self._require_folder(job.folder)
                with lock_download(Path(job.folder), job.key, f"{job.name}{job.suffix}"):
                    state, code, reason = self._run(job, arrived)
        except Stopped:
            raise
        except Exception as error:
            state, code, reason = _end_of(error, job)
            if code == "no-token" and job.source == "civitai" and self.civitai.client.policy.token is not None:
                reason += f"; {self._token_status()}"
        with self.registry.write():
            if code in _MISSED and job.remote_file_id is not None:
                self._missed[self.registry.catalogue.model_row(job.remote_file_id)] += 1
            self.registry.jobs.set_state(job.id, state, code=code, reason=reason)
            return self.registry.jobs.get(job.id)

    def _require_folder(self, folder: str) -> None:
        """Makes the folder for the first job that needs it.

        Raises:
            FileNotFoundError: it was there before, and was moved since, or its disk is not mounted any more: what is
                fetched now would lie elsewhere than what came before.
            OSError: it cannot be made.
        """
        with self._guard:
            if folder not in self._folders:
                try:
                    os.makedirs(folder, exist_ok=True)
                except FileExistsError as error:
                    reason = "not a folder, or a link that leads nowhere"
                    raise NotADirectoryError(errno.ENOTDIR, reason, folder) from error
                self._folders[folder] = os.stat(folder).st_dev
            elif is_absent(folder) or os.stat(folder).st_dev != self._folders[folder]:
                reason = "no longer the folder that it was when this began: was it moved, or its disk unmounted?"
                raise FileNotFoundError(errno.ENOENT, reason, folder)

    def _is_given_up(self, job: Job) -> bool:
        """Whether too many files of its model failed: thousands of missing ones would hold up all others."""
        if job.remote_file_id is None or not self._missed:
            return False
        with self.registry.write():
            return self._missed[self.registry.catalogue.model_row(job.remote_file_id)] >= MOST_MISSED

    def _run(self, job: Job, arrived: Future[None]) -> tuple[str, str | None, str | None]:
        part = PartialFile(Path(job.folder), job.key, job.sha256)
        here = self._here(job)
        if here is not None:
            discard_parts(Path(job.folder), job.key)
            ours = self._installed_before(job)
            return ("done", *_remarks(Installed(ours), self._beside(job, ours))) if ours else ("done", "had", here)
        what = f"{job.name}{job.suffix}"
        if self._is_given_up(job):
            return "failed", "not-tried", f"{what}: not tried: {MOST_MISSED} files of its model failed"
        said = None
        if not self._is_remade(job, part):
            try:
                job, part = self._from_its_source(job, part, what)
            except (*_LOST, Unreachable) as error:
                if not isinstance(error, _LOST) and part.size:  # it goes on there later
                    raise
                self._note_state(job, error)
                part, said = self._from_elsewhere(job, error)
        here = self._here(job)  # another job may have installed it after this one stopped waiting
        if here is not None:
            discard_parts(Path(job.folder), job.key)
            return "done", "had", here
        self._require_folder(job.folder)
        arrived.set_result(None)
        with self.registry.write():
            self.registry.jobs.set_state(job.id, "installing")
        installed = install(self.registry, job, part, self.replaced.get(job.id, ()), self.removed)
        discard_parts(Path(job.folder), job.key)
        return "done", *_remarks(installed, self._beside(job, installed.paths), said)

    def _from_its_source(self, job: Job, part: PartialFile, what: str) -> tuple[Job, PartialFile]:
        """Downloads what is wanted from where the job says; returns the job, which the site may have changed."""
        if is_by_hash(job):
            raise Gone(f"{what}: no site lists it")
        self.progress(part.size)
        try:
            self._fetch(job, part, what)
            right = self._is_right(job, part)
        except WrongBytes:
            right = False
            if not self._has_changed(job):
                raise
        if not right:
            job, part = self._resolve_mismatch(job, part, what)
        self._require_wanted(job, part, what)
        self._note_state(job, None)
        return job, part

    def _is_remade(self, job: Job, part: PartialFile) -> bool:
        """Whether `part` could be completed from another file of the library."""
        sha256 = self._sought(job)
        if sha256 is None or part.source.sha256 != sha256:
            return False
        stems = [old.path.stem for old in self.replaced.get(job.id, ())]
        return remake(self.registry, sha256, part, job, stems)

    def _from_elsewhere(self, job: Job, error: HnetkitError) -> tuple[PartialFile, str]:
        """Returns what others gave, and where it came from, in words.

        Raises:
            HnetkitError: `error`, with who else was asked.
        """
        sha256 = self._sought(job)
        if self.second is None or sha256 is None:
            raise error
        try:
            part, place = self.second.fetch(job, sha256, self._came(job))
        except NotElsewhere as nobody:
            if nobody.asked:
                error.args = (f"{error}; also asked: {nobody}",)
            raise error from nobody
        why = str(error).removeprefix(f"{job.name}{job.suffix}: ")
        return part, f"from {place.shown}, since {why}"

    def _sought(self, job: Job) -> str | None:
        """Returns the sha256 of the file that is wanted; None where only the site can tell which one it is."""
        digits = self.wanted.get(job.id, "")
        if job.sha256 is not None and (job.sha256.startswith(digits) or self._is_stated(job, digits)):
            return job.sha256
        return digits if len(digits) == 64 else None

    def _is_stated(self, job: Job, digits: str) -> bool:
        """Whether the site states another hash of the job's file that begins so, as one of a kind of its own."""
        sha256, others = self._stated(job)
        return sha256 == job.sha256 and any(value.startswith(digits) for value in others.values())

    def _is_right(self, job: Job, part: PartialFile) -> bool:
        """Whether a whole file is the one that its site lists: by its sha256, else by what else the site states."""
        if job.sha256 is not None:
            return part.sha256 == job.sha256
        _, others = self._stated(job)
        return all(of(part.path) == others[kind] for kind, of in _HASHES.items() if kind in others)

    def _stated(self, job: Job) -> tuple[str | None, dict[str, str]]:
        """Returns what the site states of a job's file: its sha256, and each kind of hash with its digits."""
        if job.remote_file_id is None:
            return None, {}
        with self.registry.write():
            file = self.registry.catalogue.file(job.remote_file_id)
        return file["sha256"], {kind: str(value).lower() for kind, value in (file["hashes"] or {}).items()}

    def _note_state(self, job: Job, error: HnetkitError | None) -> None:
        """Stores that the site does not have a file that it listed, or has it after all."""
        if job.remote_file_id is None or not (error is None or isinstance(error, Gone)):
            return
        with self.registry.write():
            catalogue = self.registry.catalogue
            file = catalogue.file(job.remote_file_id)
            if isinstance(error, Archived):
                catalogue.set_model_state(file["source"], file["model_id"], "archived")
            elif file["file_state"] != ("listed" if error is None else "gone"):
                catalogue.set_file_state(job.remote_file_id, "listed" if error is None else "gone")

    def _beside(self, job: Job, paths: Sequence[Path]) -> list[str]:
        """Writes the sidecars of installed networks, and returns what could not be written, with the reason."""
        failed: list[str] = []
        for path in paths:
            if self.sidecars is not None:
                failed += self.sidecars.write(job, path)
        return failed

    def _came(self, job: Job) -> Progress:
        def progress(count: int) -> None:
            self.received[job.id] += count
            self.progress(count)

        return progress

    def _fetch(self, job: Job, part: PartialFile, what: str) -> None:
        downloader, url = self.downloaders[job.source](job), self.urls.get(job.id, job.url)
        if job.source == "url" and url.endswith("?..."):
            hint = f"hnetkit pull 'ADDRESS' --sha256 {job.sha256}"
            raise NetworkFailed(f"{what}: its complete address was not stored, since it may hold a secret", hint=hint)
        try:
            downloader.fetch(url, part, what=what, size=job.size_bytes, progress=self._came(job))
        except WrongBytes:
            part.discard()
            raise

    def _token_status(self) -> str:
        """Returns what the site knows of the token; with a bad one it answers as if there were none."""
        try:
            return f"it accepts the token of {self.civitai.me()}, whose account has no access"
        except AuthRequired:
            self.token_is_bad = True
            return "it does not accept the token: create a new one"
        except Exception:
            return "it does not say whether it accepts the token"

    def _installed_before(self, job: Job) -> list[Path]:
        """Returns where this job has installed the file already, and was killed or could not write all sidecars."""
        with self.registry.write():
            installs = self.registry.jobs.installs(job=job.id, kind="network")
        return [Path(i["path"]) for i in installs if i["sha256"] == job.sha256 and has_bytes(i["path"], i["sha256"])]

    def _here(self, job: Job) -> str | None:
        """Returns where the library has these bytes already."""
        with self.registry.write():
            return find_bytes(self.registry, job.sha256)

    def _has_changed(self, job: Job) -> bool:
        """Whether the site now states another hash or size than when the file was listed."""
        now = self._listed_now(job)
        return now is not None and (now.sha256, now.size_bytes) != (job.sha256, job.size_bytes)

    def _resolve_mismatch(self, job: Job, part: PartialFile, what: str) -> tuple[Job, PartialFile]:
        """Asks the site once more about a file whose bytes do not match, and fetches it again if they still do not.

        Raises:
            WrongBytes: they never match. The file is in quarantine, unless it is far larger than listed.
        """
        listed = self._listed_now(job)
        if listed is not None and listed.sha256 is not None:
            with self.registry.write():
                self.registry.jobs.set_hash(job.id, listed.sha256, listed.size_bytes)
                job = self.registry.jobs.get(job.id)
        if self._is_right(job, part):
            return job, part
        part.discard()
        part = PartialFile(Path(job.folder), job.key, job.sha256)
        self._fetch(job, part, what)
        if self._is_right(job, part):
            return job, part
        reason = f"{what}: sha256 {part.sha256}, and the site says {job.sha256}"
        if job.sha256 is None:
            reason = f"{what}: other bytes than the site lists, with the sha256 {part.sha256}"
        if job.size_bytes is not None and part.size > max_bytes(job.size_bytes):
            part.discard()
            raise WrongBytes(f"{reason}; far larger than stated, so it is not kept")
        kept = quarantine(self.registry, job, part.path, reason) if has_room(part.path.parent) else None
        part.discard()
        raise WrongBytes(reason, hint=f"kept at {kept}" if kept else "not kept: the disk is nearly full")

    def _require_wanted(self, job: Job, part: PartialFile, what: str) -> None:
        """Raises OtherContent, and keeps nothing, where the file has not the hash that the user asked for."""
        digits = self.wanted.get(job.id, "")
        if part.sha256.startswith(digits) or (len(digits) == 64 and blake3_of(part.path) == digits):
            return
        received = part.sha256
        part.discard()
        raise OtherContent(f"{what}: the site serves a file with the sha256 {received}; you asked for {digits}")

    def _listed_now(self, job: Job) -> CivitaiFile | None:
        if job.source != "civitai" or job.remote_file_id is None:
            return None
        with self.registry.write():
            row = self.registry.catalogue.file(job.remote_file_id)
        try:
            version = self.civitai.version(int(row["version_id"]))
        except HnetkitError:
            return None
        return next((file for file in version.files if str(file.id) == row["file_id"]), None)


def _remarks(installed: Installed, bare: Sequence[str], elsewhere: str | None = None) -> tuple[str | None, str | None]:
    """Returns code and reason of a download that was installed, if more is to be said of it.

    Args:
        installed: result of the installation.
        bare: sidecars that could not be written. With the code `BARE` they are tried again.
        elsewhere: where it came from, if that is not its own source.
    """
    said = {
        "partly": f"left out: {'; '.join(installed.left_out)}" if installed.left_out else "",
        BARE: f"not written beside it: {'; '.join(bare)}" if bare else "",
        "replaced": f"the damaged file is now {', '.join(map(str, installed.put_aside))}"
        if installed.put_aside
        else "",
        "elsewhere": elsewhere or "",
        "unpacked": "; ".join(_of_archive(installed)),
    }
    codes = [code for code, words in said.items() if words]
    return (codes[0], "; ".join(said[code] for code in codes)[:2000]) if codes else (None, None)


def _of_archive(installed: Installed) -> Iterator[str]:
    if installed.preview is not None:
        yield f"its preview is {printable(installed.preview)}, the only picture in the archive"
    if installed.unwanted:
        yield f"not installed: {', '.join(installed.unwanted)}"
    if installed.left:
        kept = "kept in .quarantine" if installed.kept else "not kept: the disk is nearly full"
        yield f"left in the archive ({kept}): {', '.join(installed.left)}"


_HASHES = {"GIT": git_id_of, "BLAKE3": blake3_of}  # of files whose sha256 is not stated
_SAME_AGAIN = {Defect: "defect", OutOfMemory: "out-of-memory", FileRefused: "refused"}  # a retry repeats it


def _end_of(error: Exception, job: Job) -> tuple[str, str, str]:
    """Returns state, code and reason of a job that ended with any exception."""
    failure = failure_of(error, f"{job.name}{job.suffix}")
    same = next((word for kind, word in _SAME_AGAIN.items() if isinstance(failure, kind)), None)
    if isinstance(failure, NotAHypernetwork) and failure.kind == "archive":
        same = "archive"  # there is something to do about it
    code = getattr(failure, "code", same or ("disk" if isinstance(error, OSError) else "failed"))
    return "refused" if same else "failed", code, _without_part(str(failure), job)


def _without_part(reason: str, job: Job) -> str:
    """Returns the reason with the file's own name instead of the partial file's."""
    start = printable(os.path.join(job.folder, ".hnetkit-"))
    if not reason.startswith(start):
        return reason
    return f"{job.name}{job.suffix}: {reason.partition(': ')[2]}"
