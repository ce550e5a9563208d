"""Which hosts a request may reach, and which may receive a token: addresses, connections, answers that repeat it.

A host name says little about the machine behind it: a public name may lead into the user's own network, perhaps only
the second time. So each connection's peer address is checked after connecting, before a byte is sent.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import ipaddress
import math
import re
import socket
import threading
import time
import unicodedata
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from html.entities import html5
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import parse_url

from hnetkit.errors import NetworkFailed

_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_HOST = re.compile(r"(?:.*@)?(?:\[[0-9a-f:.]+\]|[^:@]*\.[^:@]*|localhost)(?::[0-9]*)?", re.IGNORECASE | re.DOTALL)
_INSIDE = (".local", ".localdomain", ".internal", ".intranet", ".lan", ".home", ".home.arpa", ".corp", ".private")
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))  # end in an IPv4 address
_ASSIGNED = ipaddress.ip_network("192.0.0.0/24")  # newer Pythons call parts of it global
_TUNNELED = ipaddress.ip_network("198.18.0.0/15")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a URL; another port is another origin."""

    scheme: str
    host: str
    port: int

    @classmethod
    @functools.lru_cache(maxsize=64)  # each request asks several times
    def of(cls, url: str) -> Origin:
        """Returns the origin of a URL.

        Raises:
            NetworkFailed: it is no http(s) URL, or one that two programs could parse differently.
        """
        try:
            parts = parse_url(url)  # the parser of requests: a second one could find another host
            urlsplit(url)  # whose host we show; it refuses others
        except ValueError:
            parts = parse_url("")
        host = unicodedata.normalize("NFKC", parts.host or "").strip("[]").lower().rstrip(".")
        if not host or parts.scheme not in ("http", "https") or not url.isprintable() or set(url) & set("\\ "):
            raise NetworkFailed(f"{redact(url)[:200]}: not a web address")
        return cls(parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def is_loopback(self) -> bool:
        address = self._address()
        return address.is_loopback if address else self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def is_private(self) -> bool:
        """Whether the name alone shows that the host lies in a private network."""
        address = self._address()
        if address:
            return not is_public(address)
        # the system's resolver takes `127.1` and `0x7f.0.0.1` for addresses
        is_number = _NUMBER.fullmatch(self.host.rpartition(".")[2]) is not None
        return is_number or self.is_loopback or "." not in self.host or self.host.endswith(_INSIDE)

    def _address(self) -> Address | None:
        return _address_of(self.host)


def _address_of(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(address: Address) -> bool:
    """Whether an address is this machine's own, also in its IPv6 form."""
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback


def is_public(address: Address) -> bool:
    """Whether an address is a public one; an IPv6 address that embeds an IPv4 address is judged by that one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and address not in _ASSIGNED
    if any(address in network for network in _TRANSLATED):
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    inner = address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return is_public(inner)
    return address in _PUBLIC_V6 and address.is_global


@dataclass(frozen=True, slots=True)
class SitePolicy:
    """Which addresses may be requested for one site, and which of them receive its token.

    Args:
        base: the origin that the user configured or named. Plain http is allowed on loopback only; redirects may then
            lead to loopback too.
        token: sent to `base` and, over https, to `hosts` and their subdomains; to no other host.
        hosts: that belong to the same site.
        settled: whether the user configured `base` as a site: it may then lie in a private network. The address of a
            single file may not, unless it is loopback.
    """

    base: Origin
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    settled: bool = True

    def token_for(self, url: str) -> str | None:
        """Returns the token if it may be sent to `url`; None otherwise."""
        origin = Origin.of(url)
        if origin == self.base and (origin.scheme == "https" or origin.is_loopback):
            return self.token
        own = any(origin.host == host or origin.host.endswith(f".{host}") for host in self.hosts)
        return self.token if own and origin.scheme == "https" and origin.port == 443 else None

    def is_site(self, url: str) -> bool:
        """Whether `url` is answered by the site itself, not by a storage of its files such as a subdomain."""
        origin = Origin.of(url)
        return origin == self.base or (origin.host.removeprefix("www.") in self.hosts and origin.scheme == "https")

    def check(self, url: str) -> None:
        """Raises NetworkFailed where `url` may not be requested."""
        origin = Origin.of(url)
        if origin == self.base:
            if origin.scheme == "http" and not origin.is_loopback:
                raise NetworkFailed(f"{redact(url)}: plain http", hint="use an https address")
            if not self.settled and origin.is_private and not origin.is_loopback:
                raise NetworkFailed(
                    f"{redact(url)}: lies in a private network", hint="fetch it yourself, then: hnetkit scan FOLDER"
                )
            return
        if self.base.is_loopback and origin.is_loopback:
            return
        if origin.scheme != "https":
            raise NetworkFailed(f"{redact(url)}: refused: leads to plain http")
        if origin.is_private:
            raise NetworkFailed(f"{redact(url)}: refused: leads into a private network")

    def may_reach(self, origin: Origin, peer: str) -> bool:
        """Whether a connection may be used: a name that resolves to a private address counts as private.

        Args:
            origin: that `check` accepted.
            peer: numeric address of the connected machine.
        """
        address = _address_of(peer.partition("%")[0])
        if origin.is_loopback and (origin == self.base or self.base.is_loopback):  # whatever the name claims
            return address is not None and is_loopback(address)
        if origin == self.base and self.settled:
            return True
        # VPN clients that tunnel all traffic map every name to the benchmarking range
        return address is not None and (is_public(address) or address in _TUNNELED)


def redact(url: str) -> str:
    """Returns a URL without user, password, query and fragment, which may hold secrets; ``?...`` marks what was cut."""
    head = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, separator, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    at_later = "@" in path or ("@" in url[len(head) :] and (":" in authority or not slash))
    if authority and at_later and not _HOST.fullmatch(authority):
        # the host cannot end here: a password may contain any of / ? #
        shown = f"{scheme}{separator}{head.rpartition('@')[2] if '@' in head else ''}"
    elif authority and "://" not in rest:
        shown = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
    else:  # not a web address: whatever precedes an @ may be a password
        shown = head.rpartition("@")[2]
    return f"{shown}?..." if len(head) < len(url) else shown


def require_no_secret(url: str) -> None:
    """Raises NetworkFailed where the address of a site holds a user, a password, a query or a fragment."""
    if redact(url) != url:
        raise NetworkFailed(f"{redact(url)}: more than a site's address", hint="leave out user, password and query")


# --- tokens in answers

HIDDEN = "[token]"
SHORTEST = 8  # characters; anything shorter is no token and would match harmless text


def token_remover(token: str | None) -> Callable[[str], str]:
    """Returns a function that removes the token from text, in any spelling: plain, escaped, in hex or in base64."""
    if token is None or len(token) < SHORTEST:
        return lambda text: text
    spellings = ["".join(map(_any_spelling, token)), f"(?i:{token.encode().hex()})", *map(re.escape, _in_base64(token))]
    pattern = re.compile("|".join(spellings))
    return lambda text: pattern.sub(HIDDEN, text)


def token_finder(token: str | None) -> Callable[[bytes], bool]:
    """Returns a function that takes a body chunk by chunk and tells whether the plain token has appeared."""
    if token is None or len(token) < SHORTEST:
        return lambda piece: False
    sought, end = token.encode(), b""

    def found(piece: bytes) -> bool:
        nonlocal end
        edge = end + piece[: len(sought) - 1]
        end = (end + piece[1 - len(sought) :])[1 - len(sought) :]
        return sought in piece or sought in edge

    return found


def _any_spelling(character: str) -> str:
    code = ord(character)
    if character.isalnum():
        named = ""
    else:  # JSON may escape a slash by a backslash, HTML may name any punctuation
        names = [name for name, sign in html5.items() if sign == character and name.endswith(";")]
        named = rf"|\\{re.escape(character)}" + "".join(f"|&{name}" for name in names)
    # HTML's numbers end at a semicolon, or where no digit follows
    by_number = rf"&#x0*{code:x}(?:;|(?![0-9a-f]))|&#0*{code}(?:;|(?!\d))"
    return rf"(?:{re.escape(character)}{named}|(?i:\\+u{code:04x}|%(?:25)*{code:02x}|{by_number}))"


def _in_base64(token: str) -> list[str]:
    """Returns the parts that appear in the base64 of any text with the token, which has three alignments."""
    found = set()
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + token.encode()).decode()
        whole = coded.rstrip("=")[(0, 2, 3)[shift] : -1]  # without the characters that depend on neighboring bytes
        found |= {whole, whole.replace("+", "-").replace("/", "_")} if len(whole) >= 8 else set()
    return sorted(found)


# --- connections

HEADERS_S = 120.0
"""Seconds until the headers of an answer must be complete."""

SLOW_S = 60.0
SLOW_BYTES = 16 << 10
"""Bytes that must arrive in every `SLOW_S` seconds: less than each of sixteen downloads gets over a modem."""

_LINGERS_S = 5.0  # how long the thread that watches waits for a further answer

_watching: ContextVar[Watchdog | None] = ContextVar("watching", default=None)


class Watchdog:
    """Shuts down the connection of one answer that is too slow.

    A socket timeout does not help against a server that sends a byte now and then: each byte restarts it.

    Args:
        until: deadline of the whole answer, by `time.monotonic`; None for none.

    Attributes:
        count: bytes of the body received.
        expired: whether the connection was shut down.
    """

    def __init__(self, until: float | None = None) -> None:
        self.count, self.expired, self._until = 0, False, until
        self._has_begun, self._reading, self._held_s, self._since = False, False, 0.0, time.monotonic()
        self._seen = (0, 0.0)  # bytes, and seconds between reads, when it was last looked at
        self._twin: socket.socket | None = None  # duplicate of the connection's socket, which TLS hides

    def start(self) -> None:
        """Starts to watch the next connection of this thread; `HEADERS_S` counts from here."""
        _watching.set(self)
        _WATCH.look_at(self, self._after(HEADERS_S))

    def began(self) -> None:
        """Notes that the headers arrived: from here on bytes are counted."""
        _watching.set(None)
        self._has_begun, self._seen = True, (self.count, self._held_s)
        _WATCH.look_at(self, self._after(SLOW_S))

    def reads(self) -> None:
        """Notes that a read begins; the time between reads is not the server's fault."""
        self._held_s += time.monotonic() - self._since
        self._reading = True

    def got(self, count: int) -> None:
        """Notes that a read returned `count` bytes."""
        self.count += count
        self._reading, self._since = False, time.monotonic()

    def stop(self) -> None:
        """Ends the watch: the connection may serve another answer."""
        _watching.set(None)
        _WATCH.forget(self)
        if self._twin is not None:
            self._twin.close()

    def connected(self, sock: socket.socket) -> None:
        """Notes the socket over which the answer will arrive."""
        if self._twin is not None:
            self._twin.close()
        self._twin = socket.fromfd(sock.fileno(), sock.family, sock.type)

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self._until is not None and time.monotonic() >= self._until

    def _after(self, seconds: float) -> float:
        due = time.monotonic() + seconds
        return due if self._until is None else min(due, self._until)

    def look(self) -> float | None:
        """Returns when to look again; None for one that was too slow, and whose connection is shut down now."""
        if self._has_begun and not self.is_over and not self._is_slow():
            return self._after(SLOW_S)
        self.expired = True
        with contextlib.suppress(OSError):
            if self._twin is not None:
                self._twin.shutdown(socket.SHUT_RDWR)
        return None

    def _is_slow(self) -> bool:
        (count, held), self._seen = self._seen, (self.count, self._held_s)
        share = 1 - min(1.0, (self._held_s - held) / SLOW_S)
        return self._reading and self.count - count < SLOW_BYTES * share


class _Watch:
    """The one thread that looks at all answers under way; it ends some time after the last of them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[Watchdog, float] = {}  # when to look at each
        self._wakes = math.inf
        self._thread: threading.Thread | None = None

    def look_at(self, dog: Watchdog, due: float) -> None:
        """Has an answer looked at, at a time by `time.monotonic`."""
        with self._changed:
            self._due[dog] = due
            if self._thread is None or not self._thread.is_alive():  # a fork has none
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            elif due < self._wakes:
                self._changed.notify()

    def forget(self, dog: Watchdog) -> None:
        """Has an answer looked at no more; none is being looked at afterwards."""
        with self._changed:
            self._due.pop(dog, None)

    def _run(self) -> None:
        with self._changed:
            was_idle = False
            while self._due or not was_idle:
                now = time.monotonic()
                for dog in [dog for dog, due in self._due.items() if due <= now]:
                    del self._due[dog]
                    if (due := dog.look()) is not None:
                        self._due[dog] = due
                was_idle = not self._due
                self._wakes = min(self._due.values(), default=now + _LINGERS_S)
                self._changed.wait(self._wakes - now)
            self._thread = None


_WATCH = _Watch()


class Adapter(requests.adapters.HTTPAdapter):
    """Makes connections only where `policy` allows; behind a proxy, the peer is unknown and not checked."""

    def __init__(self, policy: SitePolicy) -> None:
        self._policy = policy
        super().__init__(pool_maxsize=32)

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """Drops cookies: none is kept, and parsing a hostile one may take long."""
        message = getattr(getattr(resp, "_original_response", None), "msg", None)
        if message is not None:
            del message["Set-Cookie"], message["Set-Cookie2"]
        return super().build_response(req, resp)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pool_classes(self._policy)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _pool_classes(self._policy)
        return manager


def _pool_classes(policy: SitePolicy) -> dict[str, type[HTTPConnectionPool]]:
    class Plain(_WatchedConnection, HTTPConnection):
        scheme, may_reach = "http", staticmethod(policy.may_reach)

    class Secure(_WatchedConnection, HTTPSConnection):
        scheme, may_reach = "https", staticmethod(policy.may_reach)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


if TYPE_CHECKING:
    _Base = HTTPConnection
else:
    _Base = object


class _WatchedConnection(_Base):
    """Adds the check of the peer and the watchdog to both kinds of connection."""

    scheme: str
    may_reach: Any

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        peer = str(sock.getpeername()[0])
        origin = Origin(self.scheme, self.host.strip("[]").lower().rstrip("."), int(self.port or 0))
        if self.proxy is None and not self.may_reach(origin, peer):
            sock.close()
            raise NetworkFailed(f"{self.scheme}://{self.host}: refused: leads into a private network ({peer})")
        _hand_to_watchdog(sock)
        return sock

    def getresponse(self) -> Any:
        _hand_to_watchdog(self.sock)  # the socket may come from an earlier request
        return super().getresponse()


def _hand_to_watchdog(sock: Any) -> None:
    watch = _watching.get()
    if watch is not None and sock is not None:
        watch.connected(sock)
