"""Who may see a page and change something: the addresses that are answered, the token, and the headers of each answer.

A page of another site can send requests here from the same browser. It is kept out by three rules: the Host has to be
ours, so that a foreign name that leads to this machine gets nothing; a change needs the Origin of our own pages and the
token of the address that the server printed, which no other page knows.
"""

from __future__ import annotations

import ipaddress
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_HEADER = "X-Gallery-Token"
MAX_CHANGE = 64 << 20
"""Bytes of a request that changes something: a preview is the largest."""
_HTTP = 80
_LOCAL = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Access:
    """Lets through what may be answered.

    Args:
        app: what answers.
        host: the address that the server listens on.
        port: as well.
        token: that changes need.
    """

    def __init__(self, app: ASGIApp, *, host: str, port: int, token: str) -> None:
        self._app, self._port, self._token = app, port, token
        self._is_open = is_open(host)
        self._names = _LOCAL | {f"[{host}]" if ":" in host else host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no sockets, and nothing to do at the start and the end
        refusal = self._refusal(scope["method"], Headers(scope=scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        answer: ASGIApp = self._app if refusal is None else refusal
        await answer(scope, _limited(receive), send_with_headers)

    def _refusal(self, method: str, headers: Headers) -> Response | None:
        """Returns what a request gets that may not be answered; None for all others."""
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            return PlainTextResponse("This is not the address of the gallery.", status_code=421)
        if method in ("GET", "HEAD"):
            return None
        if headers.getlist("origin") != [f"http://{host}"]:
            return _refused("only pages of this gallery may change something", "open the address that it printed")
        if not secrets.compare_digest(headers.get(TOKEN_HEADER, "").encode(), self._token.encode()):
            message = "the token of this page is not that of the server"
            return _refused(message, "open the address that hnetkit gallery printed")
        if headers.get("content-type", "").partition(";")[0] != "application/json":
            return _refused("a change is sent as JSON", "reload the page")
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host is an address of this server. Where it listens to all, any number of an address is."""
        name = host.lower().removesuffix(f":{self._port}")
        if name == host.lower() and self._port != _HTTP:  # of which browsers leave the number out
            return False
        return name in self._names or (self._is_open and _is_number(name.strip("[]")))


def _refused(message: str, hint: str) -> Response:
    return JSONResponse({"error": message, "hint": hint}, status_code=403)


def _limited(receive: Receive) -> Receive:
    """Returns `receive` that ends a request whose body is too large, whatever length it states."""
    room = MAX_CHANGE

    async def limited() -> Message:
        nonlocal room
        message = await receive()
        room -= len(message.get("body", b""))
        return message if room >= 0 else {"type": "http.disconnect"}

    return limited


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host == "localhost" or (_is_number(host) and ipaddress.ip_address(host).is_loopback)


def is_open(host: str) -> bool:
    """Whether an address stands for all of a machine's."""
    return _is_number(host) and ipaddress.ip_address(host).is_unspecified


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
