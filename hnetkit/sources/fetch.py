"""One file over HTTP: resumed where it stopped, at the rate that was set, and never a web page for a model.

The address is resolved anew for every attempt, because storage links expire; every answer to a range is checked,
because servers give the wrong one, the whole file, or the middle of another.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from hnetkit.errors import Archived, AuthRequired, DiskFull, Gone, HnetkitError
from hnetkit.sources.origins import Origin
from hnetkit.sources.pace import ByteLimit
from hnetkit.sources.parts import Part
from hnetkit.sources.retry import Passing, persevere
from hnetkit.sources.web import Web, in_words, read_text

_CHUNK = 1 << 18  # bytes
_MARGIN = 1.05  # of free space
_ROUNDING = 1024  # bytes: sites give sizes in KiB
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)")

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
            DiskFull: no room for it.
        """
        missed = 0

        def attempt() -> None:
            nonlocal missed
            try:
                self._attempt(url, part, what, size, progress)
            except Gone as error:
                missed += 1  # also what a hiccup of the site looks like
                if missed > 1 or isinstance(error, Archived):
                    raise
                raise Passing("the site has no such file") from None

        persevere(attempt, what, clock=self.web.clock, pace=self.web.pace)

    def _attempt(self, url: str, part: Part, what: str, size: int | None, progress: Progress) -> None:
        headers = {"Accept-Encoding": "identity"}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
        with self.web.open(url, headers) as response:
            if response.status_code == 416 and part.size:
                if _range_total(response) == part.size:
                    return
                _restart(part, progress)
                raise Passing("another size than the part that is here")
            if response.status_code not in (200, 206):
                raise self._refused(response, what)
            self._refuse_pages(response, what)
            _require_room(part, _total(response) or size, what)
            total = _begin(response, part, progress)
            self._stream(response, part, progress)
        if total is not None and part.size != total:
            _restart_if(part.size > total, part, progress)
            raise Passing("cut short")
        if total is None and size is not None and part.size < size - _ROUNDING and part.sha256 != part.origin.sha256:
            raise Passing("cut short")

    def _stream(self, response: requests.Response, part: Part, progress: Progress) -> None:
        came = 0
        try:
            with part.open() as file:
                while chunk := response.raw.read1(_CHUNK, decode_content=True):
                    self.web.clock.sleep(0)
                    self.limit.take(len(chunk))
                    if not part.size and part.origin.sha256 is None:  # with one, the hash will tell
                        _refuse_page_bytes(chunk)
                    part.append(file, chunk)
                    came += len(chunk)
                    progress(len(chunk))
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Passing(in_words(error), progress=came) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(
                    f"{part.path.parent}: the disk is full", hint="make room, then the same command"
                ) from error
            raise

    def _refused(self, response: requests.Response, what: str) -> Exception:
        status, content = response.status_code, _content(response)
        if Origin.of(response.url) != self.web.trust.base:
            return Passing(f"the storage answered {status}")
        if content is None and status in (400, 403):
            return Passing(f"the site's guard answered {status}")
        return self.refusal(status, content, what)

    def _refuse_pages(self, response: requests.Response, what: str) -> None:
        kind = response.headers.get("Content-Type", "").lower()
        if urlsplit(response.url).path.startswith("/login"):
            raise self.refusal(401, None, what)
        if "text/html" in kind:
            if self.web.trust.token is None and "log" in read_text(response, 1 << 20).lower():
                raise self.refusal(401, None, what)
            raise Passing("a web page instead of the file")
        if "application/json" in kind:
            error = self.refusal(400, _content(response), what)
            raise error if isinstance(error, AuthRequired | Gone) else Passing("an error instead of the file")


def _begin(response: requests.Response, part: Part, progress: Progress) -> int | None:
    """Makes the part fit the answer, and returns how long the whole is; None where the answer does not say."""
    host, etag = urlsplit(response.url).hostname, response.headers.get("ETag")
    plain = response.headers.get("Content-Encoding", "identity").lower() in ("", "identity")
    total = _total(response) if plain else None
    if response.status_code == 206:
        changed = part.origin.host == host and None not in (etag, part.origin.etag) and etag != part.origin.etag
        resized = None not in (total, part.origin.total) and total != part.origin.total
        if not plain or changed or resized or _range_start(response) != part.size:
            _restart(part, progress)
            raise Passing("another part of the file than was asked for")
    else:
        _restart_if(part.size > 0, part, progress)
    part.begin(host=host, etag=etag, total=total)
    return total


def _restart(part: Part, progress: Progress) -> None:
    progress(-part.size)
    part.restart()


def _restart_if(condition: bool, part: Part, progress: Progress) -> None:
    if condition:
        _restart(part, progress)


def _content_range(response: requests.Response) -> re.Match[str] | None:
    return _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())


def _range_start(response: requests.Response) -> int | None:
    match = _content_range(response)
    return int(match[1]) if match and match[1] else None


def _range_total(response: requests.Response) -> int | None:
    match = _content_range(response)
    return int(match[3]) if match and match[3] != "*" else None


def _total(response: requests.Response) -> int | None:
    if response.status_code == 206:
        return _range_total(response)
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


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


def _content(response: requests.Response) -> Any:
    """The JSON of an answer; None where it has none."""
    try:
        return json.loads(read_text(response, 1 << 20), strict=False)
    except (ValueError, RecursionError):
        return None
