"""One file over HTTP: resumed where it stopped, at the rate that was set, and never a web page for a model.

The address is resolved anew for every attempt, because storage links expire; every answer to a range is checked,
because servers give the wrong one, the whole file, or the middle of another. What is written has an end, whatever
comes: the site's word for the size, the answer's own, or what no hypernetwork has, and the room on the disk.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from hnetkit.errors import Archived, AuthRequired, DiskFull, Gone, HnetkitError, WrongBytes
from hnetkit.formats.reading import MAX_FILE
from hnetkit.limits import parse_json
from hnetkit.sources.origins import Origin
from hnetkit.sources.pace import ByteLimit
from hnetkit.sources.parts import Part
from hnetkit.sources.retry import Passing, persevere
from hnetkit.sources.web import Answer, Web

LARGEST = 1 << 30
"""Bytes that come of a file at most where an answer states more than the site did: sites' sizes may be old."""

_MOST_SAID = 1 << 20  # bytes of a refusal
_LOOK_BYTES = 64 << 20  # of what comes: how often the room on the disk is looked at where nobody says how much comes
_MARGIN = 1.05  # of free space
_ROUNDING = 1024  # bytes: sites give sizes in KiB
_LOGIN = re.compile(r"\b(?:log|sign)[ -]?in\b", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)")

Progress = Callable[[int], None]
"""Called with bytes that came; negative where some had to be thrown away."""
Refusal = Callable[[int, Any, str], HnetkitError]
"""From status, content and what was asked for to the error that a site means by it."""


@dataclass(slots=True)
class Fetch:
    """How to fetch from one site.

    Attributes:
        web: the way to it.
        limit: bytes a second, of all fetches together.
        refusal: what its refusals mean.
    """

    web: Web
    limit: ByteLimit
    refusal: Refusal

    def __call__(self, url: str, part: Part, *, what: str, size: int | None, progress: Progress) -> None:
        """Completes `part` from `url`.

        Args:
            url: lasting address; redirects are followed.
            part: gets the bytes; its sha256 is that of the whole then, not yet held against anything.
            what: the file, in words for messages.
            size: about, in bytes; None where nobody says.
            progress: told what comes.

        Raises:
            RemoteError: refused, gone, or failed for good; what came is kept for another try.
            WrongBytes: it goes on beyond every size that was stated; nothing of it is kept.
            DiskFull: no room for it.
        """
        missed, most = 0, part.size

        def attempt() -> None:
            nonlocal missed, most
            try:
                self._attempt(url, part, what, size, progress)
            except Passing as failure:  # what came once more is no progress: a server may begin anew for ever
                failure.progress, most = max(0, part.size - most), max(part.size, most)
                raise
            except Gone as error:
                missed += 1  # also what a hiccup of the site looks like
                if missed > 1 or isinstance(error, Archived):
                    raise
                raise Passing("the site has no such file") from None

        persevere(attempt, what, clock=self.web.clock, pace=self.web.pace)

    def _attempt(self, url: str, part: Part, what: str, size: int | None, progress: Progress) -> None:
        headers = {"Accept-Encoding": "identity"}
        _restart_if(part.size > 0 and not _can_go_on(part), part, progress)
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        with self.web.open(url, headers) as answer:
            if answer.status == 416 and part.size:
                if _range_total(answer) == part.size:
                    return
                _restart(part, progress)
                raise Passing("another size than the part that is here")
            if answer.status not in (200, 206):
                raise self._refused(answer, what)
            self._refuse_pages(answer, what)
            most = most_of(size, _total(answer))
            _refuse_longer(part, _total(answer) or 0, most, what, progress)
            _require_room(part, _total(answer) or (size and min(size, most)), what)
            total = _begin(answer, part, progress)
            self._stream(answer, part, most, what, progress)
        if total is not None and part.size != total:
            _restart_if(part.size > total, part, progress)
            raise Passing("cut short")
        if total is None and size is not None and part.size < size - _ROUNDING and part.sha256 != part.origin.sha256:
            raise Passing("cut short")

    def _stream(self, answer: Answer, part: Part, most: int, what: str, progress: Progress) -> None:
        looked = part.size if _total(answer) is None else most
        try:
            with part.open() as file:
                for chunk in answer.chunks():
                    self.web.clock.sleep(0)
                    self.limit.take(len(chunk))
                    if not part.size and part.origin.sha256 is None:  # with one, the hash will tell
                        _refuse_page_bytes(chunk)
                    _refuse_longer(part, part.size + len(chunk), most, what, progress)
                    if part.size >= looked:
                        looked = part.size + _LOOK_BYTES
                        _require_room(part, min(looked, most), what)
                    part.append(file, chunk)
                    progress(len(chunk))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"{part.path.parent}: the disk is full", hint="make room, then the same command"
                ) from error
            raise

    def _refused(self, answer: Answer, what: str) -> Exception:
        content = _content(answer)
        if Origin.of(answer.url) != self.web.trust.base:
            if answer.status in (404, 410):
                return Gone(f"{what}: the site lists it, and its storage does not have it")
            return Passing(f"the storage answered {answer.status}")
        if content is None and answer.status in (400, 403):
            return Passing(f"the site's guard answered {answer.status}")
        return self.refusal(answer.status, content, what)

    def _refuse_pages(self, answer: Answer, what: str) -> None:
        kind = answer.headers.get("Content-Type", "").lower()
        own = self.web.trust.is_site(answer.url)  # what others answer, a storage say, may be anybody's upload
        if own and urlsplit(answer.url).path.startswith("/login"):
            raise self.refusal(401, None, what)
        if "text/html" in kind:
            if own and self.web.trust.token is None and _LOGIN.search(answer.text(_MOST_SAID)):
                raise self.refusal(401, None, what)
            raise Passing("a web page instead of the file")
        if "application/json" in kind:
            error = self.refusal(400, _content(answer), what)
            raise error if isinstance(error, AuthRequired | Gone) else Passing("an error instead of the file")


def most_of(size: int | None, total: int | None = None) -> int:
    """Returns how many bytes may come.

    Args:
        size: that the site states, in bytes, and rounded: in kB of 1000 or of 1024.
        total: that the answer states itself.
    """
    if size is None:
        return MAX_FILE
    return min(MAX_FILE, max(size + size // 16 + (64 << 10), min(total or 0, LARGEST)))


def _refuse_longer(part: Part, size: int, most: int, what: str, progress: Progress) -> None:
    if size > most:
        _restart(part, progress)
        raise WrongBytes(f"{what}: goes on beyond {most:,} bytes, and the site states no more")


def _begin(answer: Answer, part: Part, progress: Progress) -> int | None:
    """Makes the part fit the answer, and returns how long the whole is; None where the answer does not say."""
    host, etag = urlsplit(answer.url).hostname, answer.headers.get("ETag")
    total = None if answer.coding else _total(answer)
    if answer.status == 206:
        changed = part.origin.host == host and None not in (etag, part.origin.etag) and etag != part.origin.etag
        changed |= part.origin.sha256 is None and (host, etag) != (part.origin.host, part.origin.etag)
        resized = None not in (total, part.origin.total) and total != part.origin.total
        if answer.coding or changed or resized or _range_start(answer) != part.size:
            _restart(part, progress)
            raise Passing("another part of the file than was asked for")
    else:
        _restart_if(part.size > 0, part, progress)
    part.begin(host=host, etag=etag, total=total)
    return total


def _can_go_on(part: Part) -> bool:
    """Whether it will be seen that what comes next is of another file: else half of one and half of another pass."""
    etag = part.origin.etag
    return part.origin.sha256 is not None or (etag is not None and not etag.startswith("W/"))


def _restart(part: Part, progress: Progress) -> None:
    progress(-part.size)
    part.restart()


def _restart_if(condition: bool, part: Part, progress: Progress) -> None:
    if condition:
        _restart(part, progress)


def _content_range(answer: Answer) -> re.Match[str] | None:
    return _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())


def _range_start(answer: Answer) -> int | None:
    match = _content_range(answer)
    return int(match[1]) if match and match[1] else None


def _range_total(answer: Answer) -> int | None:
    match = _content_range(answer)
    return int(match[3]) if match and match[3] != "*" else None


def _total(answer: Answer) -> int | None:
    if answer.status == 206:
        return _range_total(answer)
    length = answer.headers.get("Content-Length", "")
    return int(length) if re.fullmatch(r"[0-9]{1,18}", length) and not answer.coding else None


def _require_room(part: Part, size: int | None, what: str) -> None:
    if size is None:
        return
    free = shutil.disk_usage(part.path.parent).free
    needed = (size - part.size) * _MARGIN
    if needed > free:
        raise DiskFull(
            f"{what}: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free in {part.path.parent}",
            hint="make room, or set HNETKIT_LIBRARY to another disk",
        )


def _refuse_page_bytes(chunk: bytes) -> None:
    start = chunk[:64].lstrip().lower()
    if start.startswith((b"<!do", b"<html", b"<?xml", b'{"')):
        raise Passing("a page instead of the file")


def _content(answer: Answer) -> Any:
    """The JSON of an answer; None where it has none."""
    try:
        return parse_json(answer.text(_MOST_SAID), strict=False)
    except ValueError:
        return None
