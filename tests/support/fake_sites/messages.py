"""What passes between a fake server and its routes: one request, one response, and the record of both."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request as it arrived; header names are lower-case, query values are lists in the order sent."""

    origin: str
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def path(self) -> str:
        """The path, percent-decoded."""
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def one(self, name: str) -> str | None:
        """The first value of a query parameter, None without it."""
        return self.query.get(name, [None])[0]

    @property
    def token(self) -> str | None:
        """The token given: the header wins over `token=`."""
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        return value.strip() if scheme.lower() == "bearer" else self.one("token")

    def without(self, header: str) -> Request:
        """This request as if that header had not been sent."""
        return replace(self, headers={name: value for name, value in self.headers.items() if name != header})


@dataclass
class Response:
    """What to answer, and how badly: the fields after `length` are used by faults only."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: bool = True  # whether Content-Length is stated; without it the connection's end is the body's end
    cut_after: int | None = None  # bytes of the body before the connection is closed; -1: not even a status
    reset: bool = False  # close with RST instead of FIN
    stall_after: int | None = None  # bytes of the body after which nothing comes for `stall_seconds`
    stall_seconds: float = 0.0
    drip: int | None = None  # bytes per write, with `drip_seconds` after each
    drip_seconds: float = 0.0
    endless: bytes = b""  # sent again and again after the body, until the client has enough

    def json(self) -> Any:
        """The body as data; None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def json_response(content: Any, status: int = 200, **headers: str) -> Response:
    """A JSON answer; header names are given with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = json.dumps(content, ensure_ascii=False).encode()
    return Response(status, {"Content-Type": "application/json; charset=utf-8", **named}, body)


def error(status: int, text: Any, /, **extra: Any) -> Response:
    """`{"error": text}`, with what else the site puts beside it."""
    return json_response({"error": text, **extra}, status)


def text_response(status: int, text: str, kind: str = "text/plain", **headers: str) -> Response:
    """An answer in plain text, HTML or XML."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(status, {"Content-Type": f"{kind}; charset=utf-8", **named}, text.encode())


def html(status: int, title: str) -> Response:
    """A page for people, as proxies and maintenance modes send it."""
    page = f"<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return text_response(status, page, "text/html")


def xml_error(status: int, code: str, message: str) -> Response:
    """An error of an S3-like storage."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return text_response(status, body, "application/xml")


@dataclass
class Recorded:
    """One request that reached an origin, and what became of it. `ended` is None while it still runs."""

    origin: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body_size: int
    status: int | None = None
    sent: int = 0  # bytes of the body written
    started: float = 0.0  # time.monotonic()
    ended: float | None = None
    broken: str | None = None  # why the connection ended early, by a fault or by the client


class Ledger:
    """The thread-safe record of all requests to all origins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[Recorded] = []
        self.failures: list[str] = []  # tracebacks of the fake's own mistakes

    def begin(self, request: Request) -> Recorded:
        """Writes down a request that has just been read."""
        entry = Recorded(
            request.origin,
            request.method,
            request.path,
            request.query,
            dict(request.headers),
            len(request.body),
            started=time.monotonic(),
        )
        with self._lock:
            self._entries.append(entry)
        return entry

    def entries(self, patience: float = 0.25) -> list[Recorded]:
        """All so far; waits a moment for answers that have been sent but not yet written down."""
        until = time.monotonic() + patience
        while True:
            with self._lock:
                entries = list(self._entries)
            if all(entry.ended is not None for entry in entries) or time.monotonic() > until:
                return entries
            time.sleep(0.001)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def in_flight(self, origin: str) -> int:
        """How many requests this origin is answering now."""
        with self._lock:
            return sum(entry.origin == origin and entry.ended is None for entry in self._entries)

    def in_flight_peak(self, origin: str) -> int:
        """The most requests that were being answered at one time."""
        entries = [entry for entry in self.entries() if entry.origin == origin]
        edges = [(entry.started, 1) for entry in entries]
        edges += [(entry.ended, -1) for entry in entries if entry.ended is not None]
        now = peak = 0
        for _, step in sorted(edges):
            now += step
            peak = max(peak, now)
        return peak

    def per_second_peak(self, origin: str) -> int:
        """The most requests that began within any one second."""
        starts = sorted(entry.started for entry in self.entries() if entry.origin == origin)
        peak = first = 0
        for last, start in enumerate(starts):
            while start - starts[first] >= 1:
                first += 1
            peak = max(peak, last - first + 1)
        return peak
