"""One request at a time: own User-Agent, redirects followed by hand, the token only where it belongs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any
from urllib.parse import urljoin

import requests
import urllib3

from hnetkit.errors import NetworkFailed
from hnetkit.sources.origins import Origin, Trust, redacted
from hnetkit.sources.pace import Clock, Pace
from hnetkit.sources.retry import PASSING, Passing, persevere, retry_after

USER_AGENT = f"hnetkit/{version('hnetkit')} (library of Stable Diffusion hypernetworks)"
TIMEOUT_S = (10.0, 60.0)  # to connect, and between two bytes
MOST_HOPS = 10
MOST_JSON = 64 << 20  # bytes
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Web:
    """The way to one site, for all threads.

    Args:
        trust: which addresses may be asked, and the token.
        clock, pace: shared by everything that asks this site.
    """

    def __init__(self, trust: Trust, clock: Clock, pace: Pace) -> None:
        self.trust, self.clock, self.pace = trust, clock, pace
        self._session = requests.Session()
        self._session.auth = lambda request: request  # else requests takes what ~/.netrc says instead of our header
        self._session.headers.update({"User-Agent": USER_AGENT})
        pool = requests.adapters.HTTPAdapter(pool_maxsize=32)
        self._session.mount("https://", pool)
        self._session.mount("http://", pool)

    @contextmanager
    def open(
        self, url: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: bytes | None = None
    ) -> Iterator[requests.Response]:
        """Gives the answer at the end of all redirects, its body unread.

        Raises:
            Passing: the connection failed, or the answer is one that passes.
            NetworkFailed: a redirect leads where nothing may be asked, or nowhere.
        """
        response = self._follow(url, dict(headers or {}), method, body)
        try:
            if response.status_code in PASSING:
                after = retry_after(response.headers, self.clock)
                limited = response.status_code == 429
                raise Passing(f"the site answered {response.status_code}", after=after, limited=limited)
            yield response
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise Passing(in_words(error)) from error
        finally:
            response.close()

    def _follow(self, url: str, headers: dict[str, str], method: str, body: bytes | None) -> requests.Response:
        first = url
        for _ in range(MOST_HOPS + 1):
            self.trust.check(url)
            response = self._ask(url, headers, method, body)
            target = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or not target:
                return response
            response.close()
            target = target.encode("latin-1", "replace").decode("utf-8", "replace")
            try:
                url = urljoin(url, target)
            except ValueError as error:
                raise NetworkFailed(f"{redacted(first)}: redirected to no address") from error
            if response.status_code != 307 and response.status_code != 308:
                method, body = "GET", None
        raise NetworkFailed(f"{redacted(first)}: more than {MOST_HOPS} redirects")

    def _ask(self, url: str, headers: dict[str, str], method: str, body: bytes | None) -> requests.Response:
        sent = dict(headers)
        token = self.trust.token_for(url)
        if token:
            sent["Authorization"] = f"Bearer {token}"
        if Origin.of(url) == self.trust.base:
            self.pace.wait()
        try:
            return self._session.request(
                method, url, headers=sent, data=body, stream=True, allow_redirects=False, timeout=TIMEOUT_S
            )
        except requests.RequestException as error:
            raise Passing(in_words(error)) from error
        except ValueError as error:  # requests reads where a redirect leads, although it is not to follow
            raise NetworkFailed(f"{redacted(url)}: redirected to no address") from error

    def json(self, url: str, *, what: str, body: Any = None) -> tuple[int, Any]:
        """Returns status and content of a JSON answer, asking again while failures pass.

        Args:
            url: with its query.
            what: that is asked for, in words for messages.
            body: sent as JSON by POST; None asks by GET.

        Raises:
            RateLimited, NetworkFailed: see `persevere`.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if data else {})

        def ask() -> tuple[int, Any]:
            with self.open(url, headers, method="POST" if data else "GET", body=data) as response:
                text = read_text(response)
                try:
                    return response.status_code, json.loads(text, strict=False)
                except (ValueError, RecursionError) as error:
                    raise _not_json(response, text) from error

        return persevere(ask, what, clock=self.clock, pace=self.pace)


def read_text(response: requests.Response, most: int = MOST_JSON) -> str:
    """Returns the body as text.

    Raises:
        Passing: it is longer than any answer should be, or cut short.
    """
    data = bytearray()
    for chunk in response.iter_content(1 << 16):
        data += chunk
        if len(data) > most:
            raise Passing(f"an answer of more than {most >> 20} MB")
    return data.decode("utf-8", "replace")


def _not_json(response: requests.Response, text: str) -> Exception:
    if response.status_code == 403:
        hint = "wait a while, or try from another network"
        return NetworkFailed("the site's guard refuses this computer (403, a web page)", hint=hint)
    if response.status_code == 404:
        return Passing("the site answered 404 without saying why")
    if response.status_code >= 400:
        return NetworkFailed(f"the site answered {response.status_code} without saying why")
    said = "a web page" if "<html" in text[:1000].lower() or "<!doctype" in text[:100].lower() else "no JSON"
    return Passing(f"the site answered with {said}")


def in_words(error: Exception) -> str:
    """Says what happened to a connection, without the address, which may hold a signature."""
    if isinstance(error, requests.ConnectTimeout):
        return "no connection in time"
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "the site's certificate was not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy did not answer"
    if isinstance(error, (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.ProtocolError)):
        return "the connection broke in the middle"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return type(error).__name__
