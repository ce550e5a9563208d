"""One request at a time: own User-Agent, redirects followed by hand, the token only where it belongs.

Whatever comes back passes through here, so here it is limited in size and in time, and here the token is taken out of
it: a site that repeats what it was sent would have it stored and shown.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from importlib.metadata import version
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3

from hnetkit.errors import NetworkFailed, WrongBytes
from hnetkit.limits import parse_json
from hnetkit.sources.connections import Adapter, Watch
from hnetkit.sources.origins import Origin, Trust, redacted
from hnetkit.sources.pace import Clock, Pace
from hnetkit.sources.retry import ATTEMPTS, PASSING, Passing, persevere, retry_after
from hnetkit.sources.secrets import finder, remover

USER_AGENT = f"hnetkit/{version('hnetkit')} (library of Stable Diffusion hypernetworks)"
TIMEOUT_S = (10.0, 60.0)  # to connect, and between two bytes
MOST_HOPS = 10
MOST_JSON = 64 << 20
"""Bytes of a page of JSON: a page of a hundred models has about ten million."""
WHOLE_JSON_S = 600.0
"""Seconds until such a page must be here: it is worth less waiting than a network."""
MOST_MADE = 256 << 20
"""Bytes that such a page may take in memory."""
_CHUNK, _CODED_CHUNK = 1 << 18, 1 << 14  # bytes: what is packed may become a thousand times as much
_CODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})  # one of them: packed twice is a million times
_DIRECT: dict[str, Any] = {"http": None, "https": None, "all": None}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FOR_GOOD = (requests.exceptions.InvalidProxyURL, requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL)
"""What requests says of a proxy's address: ours was read before."""


def read_json(text: str) -> Any:
    """Returns the value of a page of JSON.

    Raises:
        ValueError: it is none, is nested too deeply, or its values would take more than `MOST_MADE` bytes.
    """
    return parse_json(text, most=MOST_MADE, strict=False)


class TooSlow(NetworkFailed):
    """An answer was not whole in the time that it is worth."""


class Answer:
    """The end of all redirects: status, headers, and a body that is still to be read.

    Attributes:
        status: of HTTP.
        headers: without the token.
        url: that answered.
        coding: how the body is packed; empty where it is not.
    """

    def __init__(
        self, response: requests.Response, watch: Watch, token: str | None, clean: Callable[[str], str]
    ) -> None:
        self._response, self._watch, self._token, self._clean = response, watch, token, clean
        self.status, self.url, self.headers = response.status_code, response.url, response.headers
        coding = response.headers.get("Content-Encoding", "").strip().lower()
        self.coding = "" if coding == "identity" else coding

    def chunks(self) -> Iterator[bytes]:
        """Yields the body, unpacked, in pieces of a few megabytes at most.

        Raises:
            NetworkFailed: it is packed in a way that nobody asked for.
            WrongBytes: it repeats the token: what comes as bytes is stored as it is, and may be given away.
        """
        has_token = finder(self._token)
        for chunk in self._chunks():
            if has_token(chunk):
                raise WrongBytes(f"{redacted(self.url)}: refused: what it gives holds your token")
            yield chunk

    def _chunks(self) -> Iterator[bytes]:
        if self.coding not in _CODINGS:
            raise NetworkFailed(f"{redacted(self.url)}: an answer packed as {self.coding[:40]}")
        size = _CODED_CHUNK if self.coding else _CHUNK
        while True:
            self._watch.reads()
            chunk = self._response.raw.read1(size, decode_content=True)
            self._watch.got(len(chunk))
            if not chunk:
                return
            yield chunk

    def text(self, most: int = MOST_JSON) -> str:
        """Returns the body as text, without the token.

        Raises:
            Passing: it is longer than any answer should be, or cut short.
        """
        data = bytearray()
        for chunk in self._chunks():
            data += chunk
            if len(data) > most:
                raise Passing(f"an answer of more than {most >> 20} MB")
        return self._clean(data.decode("utf-8-sig", "replace"))


class _Session(requests.Session):
    """Follows nothing by itself, and so reads nothing: requests would take in the whole body of a redirect."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class Web:
    """The way to one site, for all threads.

    Args:
        trust: which addresses may be asked, and the token.
        clock, pace: shared by everything that asks this site.
        timeout_s: seconds to connect, and between two bytes; None takes `TIMEOUT_S`.
        hidden: a token that is not sent, and that the site may know: as its own is, it is taken out of what comes.
    """

    def __init__(
        self,
        trust: Trust,
        clock: Clock,
        pace: Pace,
        timeout_s: tuple[float, float] | None = None,
        *,
        hidden: str | None = None,
    ) -> None:
        self.trust, self.clock, self.pace, self._timeout_s = trust, clock, pace, timeout_s
        self._token = trust.token or hidden
        self._clean = remover(self._token)
        self._session = _Session()
        self._session.auth = lambda request: request  # else requests takes what ~/.netrc says instead of our header
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "gzip, deflate"})
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = Adapter(trust)
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
    ) -> Iterator[Answer]:
        """Gives the answer at the end of all redirects, its body unread.

        Args:
            whole_s: seconds until all of it must be here; without, only that it moves is seen to.

        Raises:
            Passing: the connection failed, was too slow, or the answer is one that passes.
            NetworkFailed: a redirect leads where nothing may be asked, or nowhere; or it was not whole in time.
        """
        until = None if whole_s is None else time.monotonic() + whole_s
        response, watch = self._follow(url, dict(headers or {}), method, body, until)
        try:
            if response.status_code in PASSING:
                after = retry_after(response.headers, self.clock)
                limited = response.status_code == 429
                elsewhere = Origin.of(response.url) != self.trust.base
                raise Passing(
                    f"the site answered {response.status_code}", after=after, limited=limited, elsewhere=elsewhere
                )
            yield Answer(response, watch, self._token, self._clean)
            if watch.expired:  # an answer without a length seems to be at its end then
                raise _too_slow(watch)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _too_slow(watch) if watch.expired else Passing(in_words(error)) from None
        finally:
            watch.stop()
            response.close()

    def _follow(
        self, url: str, headers: dict[str, str], method: str, body: bytes | None, until: float | None
    ) -> tuple[requests.Response, Watch]:
        first = url
        for _ in range(MOST_HOPS + 1):
            self.trust.check(url)
            response, watch = self._ask(url, headers, method, body, until)
            target = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not target:
                return response, watch
            watch.stop()
            response.close()
            target = target.encode("latin-1", "replace").decode("utf-8", "replace").strip().replace(" ", "%20")
            try:
                url = urljoin(url, target)
            except ValueError:
                raise NetworkFailed(f"{redacted(first)}: redirected to no address") from None
            if response.status_code != 307 and response.status_code != 308:
                method, body = "GET", None
            elif body is not None and not self.trust.is_site(url):
                raise NetworkFailed(f"{redacted(first)}: refused: what is asked would be told to {redacted(url)}")
        raise NetworkFailed(f"{redacted(first)}: more than {MOST_HOPS} redirects")

    def _ask(
        self, url: str, headers: dict[str, str], method: str, body: bytes | None, until: float | None
    ) -> tuple[requests.Response, Watch]:
        sent = dict(headers)
        token = self.trust.token_for(url)
        if token:
            sent["Authorization"] = f"Bearer {token}"
        origin = Origin.of(url)
        if origin == self.trust.base:
            self.pace.wait()
        proxies = _DIRECT if origin.is_loopback else None  # to a proxy, loopback is another machine
        watch = Watch(until)
        watch.start()
        # what requests raises holds the whole address, with what is secret in it: it is not passed on as the cause
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
                raise NetworkFailed(f"{redacted(url)}: the proxy that is set cannot be used", hint=hint) from None
            if isinstance(error, requests.RequestException):
                raise _too_slow(watch) if watch.expired else Passing(in_words(error)) from None
            if isinstance(error, ValueError):  # no scheme or host that requests can read: it names a proxy's too
                raise NetworkFailed(f"{redacted(url)}: no address that can be asked") from None
            raise
        watch.began()
        for name, value in list(response.headers.items()):
            response.headers[name] = self._clean(value)
        return response, watch

    def json(
        self,
        url: str,
        *,
        what: str,
        body: Any = None,
        read: Callable[[str], Any] = read_json,
        attempts: int = ATTEMPTS,
    ) -> tuple[int, Any]:
        """Returns status and content of a JSON answer, asking again while failures pass.

        Args:
            url: with its query.
            what: that is asked for, in words for messages.
            body: sent as JSON by POST; None asks by GET.
            read: makes the content of the text; a ValueError of it means that it is no JSON.
            attempts: how often it is asked for at most.

        Raises:
            RateLimited, NetworkFailed: see `persevere`.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data else {})

        def ask() -> tuple[int, Any]:
            with self.open(url, headers, method="POST" if data else "GET", body=data, whole_s=WHOLE_JSON_S) as response:
                text = response.text()
                try:
                    return response.status, read(text)
                except ValueError as error:
                    raise _not_json(response, text) from error

        return persevere(ask, what, clock=self.clock, pace=self.pace, attempts=attempts)


def _not_json(response: Answer, text: str) -> Exception:
    if response.status == 403:
        hint = "wait a while, or try from another network"
        return NetworkFailed("the site's guard refuses this computer (403, a web page)", hint=hint)
    if response.status == 404:
        return Passing("the site answered 404 without saying why")
    if response.status >= 400:
        return NetworkFailed(f"the site answered {response.status} without saying why")
    said = "a web page" if "<html" in text[:1000].lower() or "<!doctype" in text[:100].lower() else "no JSON"
    return Passing(f"the site answered with {said}")


def _too_slow(watch: Watch) -> Exception:
    if watch.is_over:
        return TooSlow("it came too slowly", hint="run the same command again later")
    return Passing("it came too slowly")


def in_words(error: Exception) -> str:
    """Says what happened to a connection, without the address, which may hold a signature."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "the site's certificate was not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy asks for a user and a password" if " 407 " in str(error) else "the proxy did not answer"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.ProtocolError)):
        return "the connection broke in the middle"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__
