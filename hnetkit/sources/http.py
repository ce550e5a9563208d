"""HTTP client for one site, shared by threads: rate limits, retries, redirects followed by hand, bounded answers.

Every answer passes through here. Its size and its time are limited, and the token is removed from it: otherwise
a site that echoes a request would have the token stored and shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any, Protocol, TypeVar
from urllib.parse import urljoin

import requests
import urllib3

from hnetkit.errors import HnetkitError, NetworkFailed, RateLimited, Unreachable, WrongBytes
from hnetkit.limits import parse_json
from hnetkit.sources.trust import Adapter, Origin, SitePolicy, Watchdog, redact, token_finder, token_remover
from hnetkit.text import counted


class Stopped(HnetkitError):
    """The user asked to stop. What was fetched so far is kept for the next run."""

    exit_code = 130


class Clock(Protocol):
    """Tells the time and waits. Tests pass their own."""

    def now(self) -> float:
        """Returns seconds since an arbitrary moment; never goes back."""
        ...

    def wall(self) -> float:
        """Returns seconds since 1970."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits.

        Raises:
            Stopped: a stop was requested before or during the wait.
        """
        ...


class RealClock:
    """The machine's clock; setting `stop` wakes every sleeper."""

    def __init__(self) -> None:
        self.stop = threading.Event()

    def now(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise Stopped("stopped", hint="run the same command again to resume")


class RateLimiter:
    """Limits requests to one site: a fixed rate, less after a complaint, none during a pause.

    Args:
        clock: tells the time and waits.
        per_second: requests per second, shared by all threads.

    Attributes:
        given_up: how many requests in a row failed after all their attempts.
    """

    def __init__(self, clock: Clock, per_second: float = 4.0) -> None:
        self._clock, self._full, self._rate = clock, per_second, per_second
        self._lock = threading.Lock()
        self._next = self._paused_until = 0.0
        self.given_up = 0

    def wait(self) -> None:
        """Blocks until the next request may be sent."""
        with self._lock:
            turn = max(self._next, self._clock.now())
            self._next = turn + 1 / self._rate
            self._rate = min(self._full, self._rate * 1.02)
        while (left := max(turn, self._paused_until) - self._clock.now()) > 0:
            self._clock.sleep(left)

    def pause(self, seconds: float) -> None:
        """Stops all threads for that long and halves the rate, after the site reported too many requests."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._clock.now() + seconds)
            self._rate = max(self._full / 16, self._rate / 2)


class BandwidthLimit:
    """Limits bytes per second, shared by all threads; None means no limit."""

    def __init__(self, clock: Clock, per_second: float | None) -> None:
        self._clock, self._rate = clock, per_second
        self._lock = threading.Lock()
        self._next = 0.0

    def take(self, count: int) -> None:
        """Blocks until `count` more bytes may have been received."""
        if self._rate is None:
            return
        with self._lock:
            start = max(self._next, self._clock.now())
            self._next = start + count / self._rate
        left = start - self._clock.now()
        if left > 0:
            self._clock.sleep(left)


# --- retries

ATTEMPTS = 6
LONGEST_WAIT_S = 60.0
LONGEST_OBEYED_S = 900.0
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, *range(520, 528)})
MOST_PATIENT = 5
"""After so many failures in a row, each with all its attempts, one attempt has to do until a request succeeds."""
PROGRESS = 1 << 20  # bytes: an attempt that received this many does not count as failed

T = TypeVar("T")


class TransientError(Exception):
    """A failure that may be gone on the next attempt.

    Args:
        reason: what happened, in words.
        after: seconds that the site asked to wait; None where it did not say.
        limited: the site reported too many requests.
        elsewhere: the answer came from another host, about one file; the site itself may serve all others.

    Attributes:
        progress: bytes received before the failure that need not be fetched again.
    """

    def __init__(
        self, reason: str, *, after: float | None = None, limited: bool = False, elsewhere: bool = False
    ) -> None:
        super().__init__(reason)
        self.after, self.limited, self.elsewhere, self.progress = after, limited, elsewhere, 0


class NoConnection(TransientError):
    """The site, or the way to it, did not answer: this machine may be offline."""


def retry_after(headers: Mapping[str, str], clock: Clock) -> float | None:
    """Returns the seconds of a ``Retry-After`` header, given as seconds or as a date; None without one.

    A date is held against the answer's own, since this machine's clock may be wrong.
    """
    text = headers.get("Retry-After", "").strip()[:64]
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    until, now = _seconds(text), _seconds(headers.get("Date", "").strip()[:64])
    return None if until is None else max(0.0, until - (clock.wall() if now is None else now))


def _seconds(date: str) -> float | None:
    """Returns a date of HTTP as seconds since 1970; None for anything else."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError, OSError):  # all that the parser and the calendar raise
        return None


def retry(
    call: Callable[[], T],
    what: str,
    *,
    clock: Clock,
    limiter: RateLimiter,
    attempts: int = ATTEMPTS,
    obeyed_s: float = LONGEST_OBEYED_S,
) -> T:
    """Returns what `call` returns, calling it again after each `TransientError`.

    Waits grow from one second to a minute, with random jitter so that clients do not return at once. That there is no
    connection is a warning at the first failure, since all attempts together may take half a minute. A pause that the
    site asks for because of too many requests holds for all threads; any other may concern this request alone.

    Args:
        call: makes one attempt.
        what: is requested, in words for messages.
        clock: waits.
        limiter: of the site; paused for all threads where the site asks for it.
        attempts: made at most without progress in between.
        obeyed_s: seconds, in total, that the site may ask us to wait.

    Raises:
        RateLimited: the site asks for too long a pause, or keeps asking.
        Unreachable: `attempts` failures in a row, or one where earlier requests failed all theirs.
        NetworkFailed: the site asks for too long a pause for this request alone.
    """
    tried, obeyed = 0, 0.0
    while True:
        try:
            result = call()
            limiter.given_up = 0
            return result
        except TransientError as failure:
            tried = 1 if failure.progress >= PROGRESS else tried + 1
            of_all = failure.limited and not failure.elsewhere
            obeyed += failure.after or 0.0
            if failure.after is not None and obeyed > (obeyed_s if of_all else min(obeyed_s, LONGEST_WAIT_S)):
                kind, hint = RateLimited if of_all else NetworkFailed, "run the same command again then"
                raise kind(f"{what}: the site asks to wait {failure.after:.0f} s", hint=hint) from failure
            if tried >= (attempts if limiter.given_up < MOST_PATIENT else 1):
                limiter.given_up += 1
                raise _final_error(what, failure, tried) from failure
            if isinstance(failure, NoConnection) and tried == 1:  # from here each time, so that Python shows it once
                warnings.warn(f"{failure}; trying again", stacklevel=1)
            wait = random.uniform(0.5, 1) * min(LONGEST_WAIT_S, 2.0 ** (tried - 1))
            wait = max(wait, failure.after or 0.0)
            if of_all:
                limiter.pause(wait)
            clock.sleep(wait)


def _final_error(what: str, failure: TransientError, tried: int) -> Unreachable | RateLimited:
    kind = RateLimited if failure.limited and not failure.elsewhere else Unreachable
    return kind(
        f"{what}: {failure} ({counted(tried, 'attempt')})",
        hint="run the same command again later to resume",
    )


# --- requests

USER_AGENT = f"hnetkit/{version('hnetkit')} (library of Stable Diffusion hypernetworks)"
TIMEOUT_S = (10.0, 60.0)  # to connect, and between two reads
MOST_HOPS = 10
MOST_JSON = 64 << 20
"""Bytes of one JSON answer: a page of a hundred models has about ten million."""
WHOLE_JSON_S = 600.0
"""Seconds until a JSON answer must be complete."""
MOST_MADE = 256 << 20
"""Bytes that the values of a JSON answer may take in memory."""
_CHUNK, _CODED_CHUNK = 1 << 18, 1 << 14  # bytes: compressed data may grow a thousandfold
_CODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})  # one only: twice is a millionfold
_MOST_REDIRECT = 16 << 10  # bytes: what it takes to read more costs more than another connection
_DIRECT: dict[str, Any] = {"http": None, "https": None, "all": None}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FOR_GOOD = (requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL)
"""Errors that requests raises about the address of a proxy: ours was parsed before."""


def read_json(text: str) -> Any:
    """Returns the value of a JSON answer.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or its values would take more than `MOST_MADE` bytes.
    """
    return parse_json(text, most=MOST_MADE, strict=False)


class TooSlow(NetworkFailed):
    """An answer was not complete within its time limit."""


class HttpResponse:
    """The answer after all redirects, its body not read yet.

    Attributes:
        status: HTTP status.
        headers: with the token removed.
        url: that answered.
        coding: content coding of the body; empty for none.
    """

    def __init__(
        self, response: requests.Response, watch: Watchdog, token: str | None, clean: Callable[[str], str]
    ) -> None:
        self._response, self._watch, self._token, self._clean = response, watch, token, clean
        self.status, self.url, self.headers = response.status_code, response.url, response.headers
        coding = response.headers.get("Content-Encoding", "").strip().lower()
        self.coding = "" if coding == "identity" else coding

    def chunks(self) -> Iterator[bytes]:
        """Yields the decoded body in chunks of a few megabytes at most.

        Raises:
            NetworkFailed: its content coding was not requested.
            WrongBytes: it contains the token. Bytes are stored unchanged, and the user may share the file.
        """
        has_token = token_finder(self._token)
        for chunk in self._chunks():
            if has_token(chunk):
                raise WrongBytes(f"{redact(self.url)}: refused: its content holds your token")
            yield chunk

    def _chunks(self) -> Iterator[bytes]:
        if self.coding not in _CODINGS:
            raise NetworkFailed(f"{redact(self.url)}: an answer packed as {self.coding[:40]}")
        size = _CODED_CHUNK if self.coding else _CHUNK
        while True:
            self._watch.reads()
            chunk = self._response.raw.read1(size, decode_content=True)
            self._watch.got(len(chunk))
            if not chunk:
                return
            yield chunk

    def text(self, most: int = MOST_JSON) -> str:
        """Returns the body as text, with the token removed.

        Raises:
            TransientError: it is longer than `most` bytes.
        """
        data = bytearray()
        for chunk in self._chunks():
            data += chunk
            if len(data) > most:
                raise TransientError(f"an answer of more than {most >> 20} MB")
        return self._clean(data.decode("utf-8-sig", "replace"))


@dataclass(frozen=True, slots=True)
class JsonAnswer:
    """An answer that is JSON.

    Attributes:
        status: HTTP status.
        content: its value.
        headers: with the token removed.
        url: that answered, after all redirects.
    """

    status: int
    content: Any
    headers: Mapping[str, str]
    url: str


class _NoRedirectSession(requests.Session):
    """Follows no redirects: requests would read the whole body of each."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class HttpClient:
    """HTTP client for one site, shared by threads.

    Args:
        policy: which addresses may be requested, and where the token may go.
        clock, limiter: shared by everything that requests from this site.
        timeout_s: seconds to connect, and between two reads; None takes `TIMEOUT_S`.
        hidden: a token that is not sent but that the site may know; it is removed from answers too.
    """

    def __init__(
        self,
        policy: SitePolicy,
        clock: Clock,
        limiter: RateLimiter,
        timeout_s: tuple[float, float] | None = None,
        *,
        hidden: str | None = None,
    ) -> None:
        self.policy, self.clock, self.limiter, self._timeout_s = policy, clock, limiter, timeout_s
        self._token = policy.token or hidden
        self._clean = token_remover(self._token)
        self._session = _NoRedirectSession()
        self._session.auth = lambda request: request  # otherwise requests replaces our header by what ~/.netrc holds
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"})
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = Adapter(policy)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)

    @contextmanager
    def open(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
        whole_s: float | None = None,
    ) -> Iterator[HttpResponse]:
        """Requests `url`, follows redirects, and gives the answer with its body unread.

        Args:
            url: requested.
            headers: besides the client's own.
            method, body: of the first request; a redirect other than 307 and 308 becomes a GET.
            whole_s: seconds until the whole answer must be here; None only requires that data keeps coming.

        Raises:
            TransientError: the connection failed or was too slow, or the status is a transient one.
            NetworkFailed: a redirect leads nowhere, or where nothing may be requested; or the answer was not complete
                in time.
        """
        until = None if whole_s is None else time.monotonic() + whole_s
        response, watch = self._follow(url, dict(headers or {}), method, body, until)
        try:
            if response.status_code in TRANSIENT_STATUSES:
                after = retry_after(response.headers, self.clock)
                limited = response.status_code == 429
                elsewhere = Origin.of(response.url) != self.policy.base
                raise TransientError(
                    f"the site answered {response.status_code}", after=after, limited=limited, elsewhere=elsewhere
                )
            yield HttpResponse(response, watch, self._token, self._clean)
            if watch.expired:  # an answer without a length seems complete when its connection is shut
                raise _too_slow_error(watch)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _too_slow_error(watch) if watch.expired else TransientError(describe_error(error)) from None
        finally:
            watch.stop()
            response.close()

    def _follow(
        self, url: str, headers: dict[str, str], method: str, body: bytes | None, until: float | None
    ) -> tuple[requests.Response, Watchdog]:
        first = url
        for _ in range(MOST_HOPS + 1):
            self.policy.check(url)
            response, watch = self._ask(url, headers, method, body, until)
            target = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not target:
                return response, watch
            _finish(response, watch)
            target = target.encode("latin-1", "replace").decode("utf-8", "replace").strip().replace(" ", "%20")
            try:
                url = urljoin(url, target)
            except ValueError:
                raise NetworkFailed(f"{redact(first)}: redirected to no address") from None
            if response.status_code != 307 and response.status_code != 308:
                method, body = "GET", None
            elif body is not None and not self.policy.is_site(url):
                raise NetworkFailed(f"{redact(first)}: refused: its content would be sent on to {redact(url)}")
        raise NetworkFailed(f"{redact(first)}: more than {MOST_HOPS} redirects")

    def _ask(
        self, url: str, headers: dict[str, str], method: str, body: bytes | None, until: float | None
    ) -> tuple[requests.Response, Watchdog]:
        sent = dict(headers)
        token = self.policy.token_for(url)
        if token:
            sent["Authorization"] = f"Bearer {token}"
        origin = Origin.of(url)
        if origin == self.policy.base:
            self.limiter.wait()
        proxies = _DIRECT if origin.is_loopback else None  # for a proxy, loopback is another machine
        watch = Watchdog(until)
        watch.start()
        # errors of requests hold the whole address with its secrets, so none is chained as the cause
        try:
            response = self._session.request(
                method,
                url,
                headers=sent,
                data=body,
                stream=True,
                allow_redirects=False,
                timeout=self._timeout_s or TIMEOUT_S,
                proxies=proxies,
            )
        except BaseException as error:
            watch.stop()
            if isinstance(error, _FOR_GOOD):
                hint = (
                    "look at http_proxy, https_proxy and all_proxy; a SOCKS proxy needs: pip install 'requests[socks]'"
                )
                raise NetworkFailed(f"{redact(url)}: the proxy that is set cannot be used", hint=hint) from None
            if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
                hint = "check this machine's date; for a proxy that decrypts, set REQUESTS_CA_BUNDLE to its certificate"
                raise NetworkFailed(f"{origin.host}: the site's certificate was not accepted", hint=hint) from None
            if isinstance(error, requests.RequestException):
                raise _too_slow_error(watch) if watch.expired else _failed_connection(error, origin.host) from None
            if isinstance(error, ValueError):  # no scheme or host that requests can parse, of the address or of a proxy
                raise NetworkFailed(f"{redact(url)}: no address that can be asked") from None
            if isinstance(error, OSError) and (variable := _lost_certificates()):
                hint = f"set {variable} to a file or folder of certificates, or unset it"
                raise NetworkFailed(f"{variable}: {os.environ[variable]}: no such file or folder", hint=hint) from None
            raise
        watch.began()
        for name, value in list(response.headers.items()):
            response.headers[name] = self._clean(value)
        return response, watch

    def json(self, url: str, *, what: str, **settings: Any) -> tuple[int, Any]:
        """Returns status and content of a JSON answer; see `json_answer`."""
        answer = self.json_answer(url, what=what, **settings)
        return answer.status, answer.content

    def json_answer(
        self,
        url: str,
        *,
        what: str,
        body: Any = None,
        read: Callable[[str], Any] = read_json,
        attempts: int = ATTEMPTS,
        obeyed_s: float = LONGEST_OBEYED_S,
    ) -> JsonAnswer:
        """Returns a JSON answer, with retries.

        Args:
            url: with its query.
            what: is requested, in words for messages.
            body: sent as JSON by POST; None sends a GET.
            read: parses the text; its ValueError means that the text is not JSON.
            attempts, obeyed_s: as `retry` takes them.

        Raises:
            RateLimited, NetworkFailed: see `retry`.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data else {})

        def ask() -> JsonAnswer:
            with self.open(url, headers, method="POST" if data else "GET", body=data, whole_s=WHOLE_JSON_S) as response:
                text = response.text()
                try:
                    return JsonAnswer(response.status, read(text), response.headers, response.url)
                except ValueError as error:
                    raise _not_json_error(response, text) from error

        return retry(ask, what, clock=self.clock, limiter=self.limiter, attempts=attempts, obeyed_s=obeyed_s)


def _finish(response: requests.Response, watch: Watchdog) -> None:
    """Ends a redirect: a short one is read, so that its connection can serve further requests."""
    length = response.raw.length_remaining
    if length is not None and length <= _MOST_REDIRECT:
        watch.reads()
        with contextlib.suppress(OSError, urllib3.exceptions.HTTPError):  # where it leads is known
            watch.got(len(response.raw.read(decode_content=False)))
    watch.stop()
    response.close()


def _not_json_error(response: HttpResponse, text: str) -> Exception:
    if response.status == 403:
        hint = "wait a while, or try from another network"
        return NetworkFailed("the site's firewall refuses this computer (403, a web page)", hint=hint)
    if response.status == 404:
        return TransientError("the site answered 404 without saying why")
    if response.status >= 400:
        return NetworkFailed(f"the site answered {response.status} without saying why")
    content = "a web page" if "<html" in text[:1000].lower() or "<!doctype" in text[:100].lower() else "no JSON"
    return TransientError(f"the site answered with {content}")


def _lost_certificates() -> str | None:
    """Returns the variable that names certificates which are not there, as requests takes them; None without one."""
    given = (name for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE") if os.environ.get(name))
    return next((name for name in given if not os.path.exists(os.environ[name])), None)


def _too_slow_error(watch: Watchdog) -> Exception:
    if watch.is_over:
        return TooSlow("it came too slowly", hint="run the same command again later")
    return TransientError("it came too slowly")


def _failed_connection(error: Exception, host: str) -> TransientError:
    kind = NoConnection if isinstance(error, (requests.ConnectionError, requests.Timeout)) else TransientError
    return kind(f"{host}: {describe_error(error)}")


def describe_error(error: Exception) -> str:
    """Returns what happened to a connection in words, without the address, which may hold a signature."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "the encrypted connection failed"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy asks for a user and a password" if " 407 " in str(error) else "the proxy did not answer"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.ProtocolError)):
        return "the connection broke in the middle"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__
