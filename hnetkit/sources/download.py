"""Downloads over HTTP into partial files, which a later run resumes where they stopped.

The URL is resolved anew for each attempt, because storage links expire. Each answer to a range is checked, because
servers send the wrong range, the whole file, or part of another one. A web page is never taken for a model. What is
written is bounded by the site's size, the answer's own, the largest hypernetwork, and the room on the disk.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from hnetkit.errors import Archived, AuthRequired, DiskFull, Gone, HnetkitError, NetworkFailed, WrongBytes
from hnetkit.files import new_file, try_lock
from hnetkit.formats.reading import MAX_FILE
from hnetkit.limits import parse_json, read_json
from hnetkit.sources.http import (
    ATTEMPTS,
    LONGEST_OBEYED_S,
    BandwidthLimit,
    HttpClient,
    HttpResponse,
    TransientError,
    retry,
)
from hnetkit.sources.trust import Origin
from hnetkit.text import size_text

# --- partial files: `.hnetkit-<key>.part` beside the target, and a note of what it is a part of

_CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class PartialFileSource:
    """Where the bytes of a partial file came from; bytes of another source are never appended."""

    key: str
    sha256: str | None
    host: str | None = None
    etag: str | None = None
    total: int | None = None


@contextlib.contextmanager
def lock_download(folder: Path, key: str, what: str) -> Iterator[None]:
    """Lets one process at a time write a partial file, also processes that use different registries.

    Args:
        folder: of the target.
        key: of the job.
        what: the file, in words for messages.

    Raises:
        NetworkFailed: another process is downloading it.
    """
    path = part_path(folder, key).with_suffix(".lock")
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if path.is_symlink():
        path.unlink()
    handle = os.open(path, flags, 0o666)
    try:
        # a lock file that was removed after it was opened excludes nobody
        if not try_lock(handle) or os.fstat(handle).st_nlink == 0:
            hint = "run the same command again when it has ended"
            raise NetworkFailed(f"{what}: another hnetkit is fetching it into this folder", hint=hint)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(handle)


def part_path(folder: Path, key: str, place: str = "") -> Path:
    """Returns where the part of a job's file is; `place` is as `PartialFile` takes it."""
    of_place = f"-{hashlib.sha256(place.encode()).hexdigest()[:8]}" if place else ""
    return folder / f"{_beginning(key)}{of_place}.part"


def _beginning(key: str) -> str:
    return f".hnetkit-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def discard_parts(folder: Path, key: str) -> None:
    """Removes all partial files of a job and their notes: that of its own source, and those of mirrors."""
    begun = _beginning(key)
    for name in os.listdir(folder):
        if name.startswith(begun) and ".part" in name:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder / name)


class PartialFile:
    """An unfinished download on disk, with the hash of its bytes so far.

    Args:
        folder: of the target.
        key: of the job.
        sha256: of the complete file; None where it is unknown.
        place: a mirror that the bytes come from; empty for the job's own source.
    """

    def __init__(self, folder: Path, key: str, sha256: str | None, place: str = "") -> None:
        self.path = part_path(folder, key, place)
        self._note = folder / f"{self.path.name}.json"
        self.source = PartialFileSource(key, sha256)
        self.size = 0
        self._digest = hashlib.sha256()
        self._resume()

    def _resume(self) -> None:
        """Continues what an earlier run left of the same file, and removes anything else."""
        found = self._read_note()
        # without a hash nothing could tell the file's own bytes from planted ones
        has_hash = self.source.sha256 is not None
        fits = found is not None and (found.key, found.sha256) == (self.source.key, self.source.sha256)
        if found is None or not fits or not has_hash or not self._is_ours():
            self.discard()
            return
        self.source = found
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            while chunk := file.read(_CHUNK):
                self._digest.update(chunk)
                self.size += len(chunk)

    def _is_ours(self) -> bool:
        """Whether the path is free, or a regular file without other links and no larger than any network.

        A link would redirect what is written, a pipe would block, and a huge file would take long to hash.
        """
        try:
            status = os.lstat(self.path)
        except FileNotFoundError:
            return True
        return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size <= MAX_FILE

    def _read_note(self) -> PartialFileSource | None:
        try:
            return PartialFileSource(**read_json(self._note))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, *, host: str | None, etag: str | None, total: int | None) -> None:
        """Records where the bytes come from; called before the first chunk of an answer is appended."""
        self.source = PartialFileSource(self.source.key, self.source.sha256, host, etag, total)
        # half-written it would cost all bytes received; these are not flushed yet either
        with new_file(self._note, overwrite=True, is_lasting=False) as file:
            file.write(json.dumps(asdict(self.source)).encode())

    def open(self) -> BinaryIO:
        """Returns the open file for `append`."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        return open(os.open(self.path, flags, 0o666), "ab")

    def append(self, file: BinaryIO, chunk: bytes) -> None:
        file.write(chunk)
        self._digest.update(chunk)
        self.size += len(chunk)

    @property
    def sha256(self) -> str:
        """Hash of the bytes so far, 64 hex digits."""
        return self._digest.hexdigest()

    def restart(self) -> None:
        """Discards the bytes; the next ones are the first of the file."""
        self.size, self._digest = 0, hashlib.sha256()
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self.path, 0)

    def flush(self) -> None:
        """Blocks until all bytes are on the disk."""
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Removes the file and its note."""
        self.size, self._digest = 0, hashlib.sha256()
        for path in (self.path, self._note):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


# --- downloading

LARGEST = 1 << 30
"""Largest download, in bytes, where an answer states more than the site's listing, which may be old."""

_MOST_SAID = 1 << 20  # bytes of an error answer
_MOST_MESSAGE = 1000  # characters of one in a header
_LOOK_BYTES = 64 << 20  # how often the room on the disk is checked where the size is unknown
_MARGIN = 1.05  # of free space
_ROUNDING = 1024  # bytes: sites give sizes in KiB
_LOGIN = re.compile(r"\b(?:log|sign)[ -]?in\b", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)")

Progress = Callable[[int], None]
"""Called with the number of bytes received; negative where some were discarded."""
ErrorOf = Callable[[int, Any, str], HnetkitError]
"""Turns status, JSON content and what was requested into the error that a site means."""


@dataclass(slots=True)
class Downloader:
    """Downloads files from one site.

    Attributes:
        client: of the site.
        limit: shared by all downloads.
        error_of: what the site's error answers mean.
        attempts, obeyed_s: as `retry` takes them.
        is_believed: whether an answer may be longer than the stated size, which may be old.
    """

    client: HttpClient
    limit: BandwidthLimit
    error_of: ErrorOf
    attempts: int = ATTEMPTS
    obeyed_s: float = LONGEST_OBEYED_S
    is_believed: bool = True

    def fetch(self, url: str, part: PartialFile, *, what: str, size: int | None, progress: Progress) -> None:
        """Completes `part` from `url`.

        Args:
            url: permanent address; redirects are followed.
            part: receives the bytes. Its sha256 is then that of the complete file, not yet verified.
            what: the file, in words for messages.
            size: approximate size in bytes; None where it is unknown.
            progress: called as bytes arrive.

        Raises:
            RemoteError: refused, gone, or failed for good; the bytes received are kept for another run.
            WrongBytes: it exceeds every stated size; nothing is kept.
            DiskFull: there is no room for it.
        """
        missed, most = 0, part.size

        def attempt() -> None:
            nonlocal missed, most
            try:
                self._attempt(url, part, what, size, progress)
            except TransientError as failure:  # bytes received again are no progress: a server could restart for ever
                failure.progress, most = max(0, part.size - most), max(part.size, most)
                raise
            except Gone as error:
                missed += 1  # a single 404 may be a hiccup of the site
                if missed > 1 or isinstance(error, Archived):
                    raise
                raise TransientError("the site has no such file") from None

        retry(
            attempt,
            what,
            clock=self.client.clock,
            limiter=self.client.limiter,
            attempts=self.attempts,
            obeyed_s=self.obeyed_s,
        )

    def _attempt(self, url: str, part: PartialFile, what: str, size: int | None, progress: Progress) -> None:
        headers = {"Accept-Encoding": "identity"}
        _restart_if(part.size > 0 and not _can_resume(part), part, progress)
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        with self.client.open(url, headers) as answer:
            if answer.status == 416 and part.size:
                if _range_total(answer) == part.size:
                    return
                _restart(part, progress)
                raise TransientError("another size than the part that is here")
            if answer.status not in (200, 206):
                raise self._refused(answer, what)
            self._refuse_pages(answer, what)
            most = max_bytes(size, _total(answer)) if self.is_believed else max_bytes(size or LARGEST)
            _refuse_if_longer(part, _total(answer) or 0, most, what, progress)
            _require_room(part, _total(answer) or (size and min(size, most)), what)
            total = _begin(answer, part, progress)
            self._stream(answer, part, most, what, progress)
        if total is not None and part.size != total:
            _restart_if(part.size > total, part, progress)
            raise TransientError("cut short")
        if total is None and size is not None and part.size < size - _ROUNDING and part.sha256 != part.source.sha256:
            raise TransientError("cut short")

    def _stream(self, answer: HttpResponse, part: PartialFile, most: int, what: str, progress: Progress) -> None:
        looked = part.size if _total(answer) is None else most
        try:
            with part.open() as file:
                for chunk in answer.chunks():
                    self.client.clock.sleep(0)
                    self.limit.take(len(chunk))
                    if not part.size and part.source.sha256 is None:  # otherwise the hash will tell
                        _refuse_page_bytes(chunk)
                    _refuse_if_longer(part, part.size + len(chunk), most, what, progress)
                    if part.size >= looked:
                        looked = part.size + _LOOK_BYTES
                        _require_room(part, min(looked, most), what)
                    part.append(file, chunk)
                    progress(len(chunk))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"{part.path.parent}: the disk is full", hint="make room, then run the same command again"
                ) from error
            raise

    def _refused(self, answer: HttpResponse, what: str) -> Exception:
        content = _json_content(answer)
        if content is None and (
            message := answer.headers.get("X-Error-Message")
        ):  # the hub's, whose page is plain text
            content = {"error": message[:_MOST_MESSAGE]}
        if Origin.of(answer.url) != self.client.policy.base:
            if answer.status in (404, 410):
                return Gone(f"{what}: the site lists it, and its storage does not have it")
            return TransientError(f"the storage answered {answer.status}")
        if content is None and answer.status in (400, 403):
            return TransientError(f"the site's firewall answered {answer.status}")
        return self.error_of(answer.status, content, what)

    def _refuse_pages(self, answer: HttpResponse, what: str) -> None:
        kind = answer.headers.get("Content-Type", "").lower()
        own = self.client.policy.is_site(answer.url)  # a storage's answer may be anybody's upload
        if own and urlsplit(answer.url).path.startswith("/login"):
            raise self.error_of(401, None, what)
        if "text/html" in kind:
            if own and self.client.policy.token is None and _LOGIN.search(answer.text(_MOST_SAID)):
                raise self.error_of(401, None, what)
            raise TransientError("a web page instead of the file")
        if "application/json" in kind:
            error = self.error_of(400, _json_content(answer), what)
            raise error if isinstance(error, AuthRequired | Gone) else TransientError("an error instead of the file")


def max_bytes(size: int | None, total: int | None = None) -> int:
    """Returns how many bytes a download may have.

    Args:
        size: stated by the site's listing, in bytes; rounded to kB of 1000 or 1024.
        total: stated by the answer itself.
    """
    if size is None:
        return MAX_FILE
    return min(MAX_FILE, max(size + size // 16 + (64 << 10), min(total or 0, LARGEST)))


def _refuse_if_longer(part: PartialFile, size: int, most: int, what: str, progress: Progress) -> None:
    if size > most:
        _restart(part, progress)
        raise WrongBytes(f"{what}: exceeds {most:,} bytes, the most that the site states")


def _begin(answer: HttpResponse, part: PartialFile, progress: Progress) -> int | None:
    """Prepares the part for the answer, and returns the total size; None where the answer does not state it."""
    host, etag = urlsplit(answer.url).hostname, answer.headers.get("ETag")
    total = None if answer.coding else _total(answer)
    if answer.status == 206:
        changed = part.source.host == host and None not in (etag, part.source.etag) and etag != part.source.etag
        changed |= part.source.sha256 is None and (host, etag) != (part.source.host, part.source.etag)
        resized = None not in (total, part.source.total) and total != part.source.total
        if answer.coding or changed or resized or _range_start(answer) != part.size:
            _restart(part, progress)
            raise TransientError("another part of the file than was asked for")
    else:
        _restart_if(part.size > 0, part, progress)
    part.begin(host=host, etag=etag, total=total)
    return total


def _can_resume(part: PartialFile) -> bool:
    """Whether a change of the file would be noticed, so that halves of two files are never joined."""
    etag = part.source.etag
    return part.source.sha256 is not None or (etag is not None and not etag.startswith("W/"))


def _restart(part: PartialFile, progress: Progress) -> None:
    progress(-part.size)
    part.restart()


def _restart_if(condition: bool, part: PartialFile, progress: Progress) -> None:
    if condition:
        _restart(part, progress)


def _content_range(answer: HttpResponse) -> re.Match[str] | None:
    return _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())


def _range_start(answer: HttpResponse) -> int | None:
    match = _content_range(answer)
    return int(match[1]) if match and match[1] else None


def _range_total(answer: HttpResponse) -> int | None:
    match = _content_range(answer)
    return int(match[3]) if match and match[3] != "*" else None


def _total(answer: HttpResponse) -> int | None:
    if answer.status == 206:
        return _range_total(answer)
    length = answer.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) and not answer.coding else None


def _require_room(part: PartialFile, size: int | None, what: str) -> None:
    if size is None:
        return
    free = shutil.disk_usage(part.path.parent).free
    needed = (size - part.size) * _MARGIN
    if needed > free:
        raise DiskFull(
            f"{what}: needs {size_text(round(needed))}; {size_text(free)} are free in {part.path.parent}",
            hint="make room, or set HNETKIT_LIBRARY to another disk",
        )


def _refuse_page_bytes(chunk: bytes) -> None:
    start = chunk[:64].lstrip().lower()
    if start.startswith((b"<!do", b"<html", b"<?xml", b'{"')):
        raise TransientError("a page instead of the file")


def _json_content(answer: HttpResponse) -> Any:
    """Returns the JSON content of an answer; None where it has none."""
    try:
        return parse_json(answer.text(_MOST_SAID), strict=False)
    except ValueError:
        return None
