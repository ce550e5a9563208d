"""The fault switches A to U: which request each fits, and the queue of those that wait to happen.

| kind | what happens | options |
|---|---|---|
| A | token required: 401, unless the good token came | |
| B | the redirect is a 302; at storage: 400 as if credentials had come | |
| C | the signed URL dies after `seconds`; at storage: it has died | seconds=0 |
| D | a request with Range is answered wrongly | mode="ignored", "wrong-start", "416" |
| E | the connection is cut | after=half, content_length=True, reset=False |
| F | slow drip, or a stall after which all goes on | mode="stall" or "drip", seconds=0.3, after=half, chunk=1024 |
| G | HTML with 200 | |
| H | 429 | retry_after=2 or None, form="seconds" or "date" |
| I | 503, or another status | status=503, retry_after=None |
| J | a list page | mode="empty" (goes on with a cursor that holds a bar), "repeated" (the cursor that came) |
| K | raw control characters inside JSON strings | |
| L | wrong SHA256 in metadata | file_id=None for all in the answer |
| M | the owner replaces the file between metadata and download | |
| N | refused download | status=410, 451, 403; deadline="2099-…" |
| O | the answer for browsers | mode="redirect", "html" |
| P | missing data | mode="creator", "username", "hashes", "files" |
| Q | redirect | mode="loop", "stranger" (http to a third origin), "file" |
| R | Content-Disposition | mode="traversal", "latin1", "long" |
| S | gzip body, with the Content-Length of the compressed bytes | |
| T | POST by-hash with null entries and duplicates | |
| U | 429 while more than `limit` requests are in flight at this origin | limit=4 |
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from support.fake_sites.downloads import PATH as DOWNLOAD
from support.fake_sites.messages import Request

LIST = "/api/v1/models"
_METADATA = re.compile(r"/api/v1/(models(/\d+)?|model-versions/(\d+|by-hash(/\w+)?))")


def _any(request: Request) -> bool:
    return True


def _content(request: Request) -> bool:
    """A transfer of a file (from storage or the hub), or whatever an API answers."""
    return request.method == "GET" and not request.path.startswith("/images/")


def _download(request: Request) -> bool:
    return request.method == "GET" and request.path.startswith(DOWNLOAD)


def _download_or_content(request: Request) -> bool:
    return _download(request) if request.origin == "api" else _content(request)


def _metadata(request: Request) -> bool:
    return _METADATA.fullmatch(request.path) is not None


class Switch(NamedTuple):
    """Where a kind applies unless told otherwise, what it fits, and how to draw options for it."""

    where: str
    fits: Callable[[Request], bool]
    draw: Callable[[random.Random], dict[str, Any]]


def _modes(*modes: str) -> Callable[[random.Random], dict[str, Any]]:
    return lambda rng: {"mode": rng.choice(modes)}


def _cut(rng: random.Random) -> dict[str, Any]:
    return {"after": rng.choice((None, 0, 1, 700)), "content_length": rng.random() < 0.8, "reset": rng.random() < 0.3}


def _slow(rng: random.Random) -> dict[str, Any]:
    return {"mode": rng.choice(("stall", "drip")), "seconds": 0.05, "chunk": 2048}


def _limited(rng: random.Random) -> dict[str, Any]:
    return {"retry_after": rng.choice((0, 0, 1, None)), "form": rng.choice(("seconds", "date"))}


def _nothing(rng: random.Random) -> dict[str, Any]:
    return {}


SWITCHES: dict[str, Switch] = {
    "A": Switch("api", _download, _nothing),
    "B": Switch("api", _download_or_content, _nothing),
    "C": Switch("api", _download_or_content, _nothing),
    "D": Switch("storage", lambda request: "range" in request.headers, _modes("ignored", "wrong-start", "416")),
    "E": Switch("storage", _content, _cut),
    "F": Switch("storage", _content, _slow),
    "G": Switch("storage", _content, _nothing),
    "H": Switch("api", _any, _limited),
    "I": Switch("api", _any, lambda rng: {"status": rng.choice((500, 502, 503, 504, 520))}),
    "J": Switch("api", lambda request: request.path == LIST, _modes("empty", "repeated")),
    "K": Switch("api", lambda request: request.path.startswith("/api/v1/"), _nothing),
    "L": Switch("api", _metadata, _nothing),
    "M": Switch("storage", _download_or_content, _nothing),
    "N": Switch("api", _download, lambda rng: {"status": rng.choice((410, 451, 403))}),
    "O": Switch("api", _download, _modes("redirect", "html")),
    "P": Switch("api", _metadata, _modes("creator", "username", "hashes", "files")),
    "Q": Switch("api", _download, _modes("loop", "stranger", "file")),
    "R": Switch("storage", _content, _modes("traversal", "latin1", "long")),
    "S": Switch("storage", _content, _nothing),
    "T": Switch("api", lambda request: request.path == "/api/v1/model-versions/by-hash", _nothing),
    "U": Switch("api", _any, lambda rng: {"limit": rng.choice((1, 4))}),
}


ORIGINS = ("api", "storage", "hub", "civarchive", "mirrors")


@dataclass(frozen=True, init=False)
class Fault:
    """One fault that waits to happen `times` times. See the table of this module for kinds and options."""

    kind: str
    where: str
    times: int
    match: str | None
    options: Mapping[str, Any] = field(hash=False)

    def __init__(
        self, kind: str, where: str | None = None, times: int = 1, *, match: str | None = None, **options: Any
    ) -> None:
        """`where` is an origin or "any"; `match`, a part of the path, replaces the kind's own test."""
        if kind not in SWITCHES:
            raise ValueError(f"no fault of kind {kind!r}; there are {''.join(SWITCHES)}")
        if where not in (None, *ORIGINS, "any"):
            raise ValueError(f"no origin {where!r}")
        values = {"kind": kind, "where": where or SWITCHES[kind].where, "times": times, "match": match}
        for name, value in {**values, "options": MappingProxyType(options)}.items():
            object.__setattr__(self, name, value)

    def fits(self, request: Request) -> bool:
        if self.where not in ("any", request.origin):
            return False
        if self.match is not None:
            return self.match in request.path
        return SWITCHES[self.kind].fits(request)


class Fired(NamedTuple):
    """A fault that happened, and to which request."""

    fault: Fault
    origin: str
    method: str
    path: str


class Faults:
    """The faults that wait, in order; each request meets at most one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[list[Any]] = []  # [fault, times left]
        self._fired: list[Fired] = []

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append([fault, fault.times])

    def take(self, request: Request) -> Fault | None:
        """The first fault that fits this request; it is used up by one."""
        with self._lock:
            for entry in self._waiting:
                fault: Fault = entry[0]
                if fault.fits(request):
                    entry[1] -= 1
                    if entry[1] <= 0:
                        self._waiting.remove(entry)
                    self._fired.append(Fired(fault, request.origin, request.method, request.path))
                    return fault
        return None

    @property
    def fired(self) -> list[Fired]:
        with self._lock:
            return list(self._fired)

    @property
    def waiting(self) -> list[Fault]:
        with self._lock:
            return [entry[0] for entry in self._waiting]

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()
            self._fired.clear()


def random_fault(rng: random.Random) -> Fault:
    """One of all kinds, with options that keep a test of a thousand of them short."""
    kind = rng.choice(list(SWITCHES))
    switch = SWITCHES[kind]
    where = rng.choice(("api", "storage")) if kind in "EFGHIMU" else switch.where
    return Fault(kind, where, 1 if rng.random() < 0.8 else 2, **switch.draw(rng))


def random_mirror_fault(rng: random.Random) -> Fault:
    """One that CivArchive or a mirror may have."""
    kind = rng.choice("EFGHIQS")
    return Fault(kind, rng.choice(("civarchive", "mirrors")), match="/", **SWITCHES[kind].draw(rng))
