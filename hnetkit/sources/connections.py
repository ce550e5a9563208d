"""The connections that requests go over: to public machines only, and none that is held for ever.

What a name stands for is known when it is connected to: a name in public hands may lead to a machine in somebody's own
network, also the second time only. So the machine is looked at after connecting, before a byte is sent.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from hnetkit.errors import NetworkFailed
from hnetkit.sources.origins import Origin, Trust

HEADERS_S = 120.0
"""Seconds until an answer must have begun, headers and all."""

SLOW_S = 60.0
SLOW_BYTES = 16 << 10
"""Bytes that an answer must bring in every `SLOW_S` seconds: less than each of sixteen gets that share a modem."""

_watching: ContextVar[Watch | None] = ContextVar("watching", default=None)


class Watch:
    """Ends one answer that is too slow, from a thread of its own.

    A server that sends a byte now and then keeps whoever reads waiting for ever: each byte starts the timeout anew.

    Args:
        until: by `time.monotonic`, when all of it must be here; None where what comes is worth any time.

    Attributes:
        count: bytes of the body that came.
        expired: whether the answer was ended.
    """

    def __init__(self, until: float | None = None) -> None:
        self.count, self.expired, self._until = 0, False, until
        self._reading, self._held_s, self._since = False, 0.0, time.monotonic()
        self._twin: socket.socket | None = None  # of the connection's own, which TLS hides
        self._begun, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def start(self) -> None:
        """From here on, `HEADERS_S` is counted for whatever this thread connects to."""
        _watching.set(self)
        self._thread.start()

    def began(self) -> None:
        """The headers are here: from now on bytes are counted."""
        _watching.set(None)
        self._begun.set()

    def reads(self) -> None:
        """The next bytes are waited for: how long whoever reads was busy otherwise is not the server's fault."""
        self._held_s += time.monotonic() - self._since
        self._reading = True

    def got(self, count: int) -> None:
        """They came."""
        self.count += count
        self._reading, self._since = False, time.monotonic()

    def stop(self) -> None:
        """The answer is at its end."""
        _watching.set(None)
        self._ended.set()
        self._begun.set()
        self._thread.join()
        if self._twin is not None:
            self._twin.close()

    def connected(self, sock: socket.socket) -> None:
        """The answer will come over this socket."""
        if self._twin is not None:
            self._twin.close()
        self._twin = socket.fromfd(sock.fileno(), sock.family, sock.type)

    @property
    def is_over(self) -> bool:
        """Whether all of it should be here by now."""
        return self._until is not None and time.monotonic() >= self._until

    def _at_most(self, seconds: float) -> float:
        return seconds if self._until is None else max(0.0, min(seconds, self._until - time.monotonic()))

    def _look(self) -> None:
        if self._begun.wait(self._at_most(HEADERS_S)):
            count, held = self.count, self._held_s
            while not self._ended.wait(self._at_most(SLOW_S)):
                if self.is_over:
                    break
                share = 1 - min(1.0, (self._held_s - held) / SLOW_S)
                if self._reading and self.count - count < SLOW_BYTES * share:
                    break
                count, held = self.count, self._held_s
            else:
                return
        self.expired = True
        with contextlib.suppress(OSError):
            if self._twin is not None:
                self._twin.shutdown(socket.SHUT_RDWR)


class Adapter(requests.adapters.HTTPAdapter):
    """Makes connections that go only where `trust` allows. What lies behind a proxy is the proxy's to know."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        super().__init__(pool_maxsize=32)

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        """Without cookies: none is kept, and taking apart what a site calls one may take long."""
        message = getattr(getattr(resp, "_original_response", None), "msg", None)
        if message is not None:
            del message["Set-Cookie"], message["Set-Cookie2"]
        return super().build_response(req, resp)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._trust)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = _pools(self._trust)
        return manager


def _pools(trust: Trust) -> dict[str, type[HTTPConnectionPool]]:
    class Plain(_Watched, HTTPConnection):
        scheme, may_reach = "http", staticmethod(trust.may_reach)

    class Secure(_Watched, HTTPSConnection):
        scheme, may_reach = "https", staticmethod(trust.may_reach)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}


if TYPE_CHECKING:
    _Base = HTTPConnection
else:
    _Base = object


class _Watched(_Base):
    """What both kinds of connection do beside what they are."""

    scheme: str
    may_reach: Any

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        peer = str(sock.getpeername()[0])
        origin = Origin(self.scheme, self.host.strip("[]").lower().rstrip("."), int(self.port or 0))
        if self.proxy is None and not self.may_reach(origin, peer):
            sock.close()
            raise NetworkFailed(f"{self.scheme}://{self.host}: refused: leads into a private network ({peer})")
        _tell(sock)
        return sock

    def getresponse(self) -> Any:
        _tell(self.sock)  # it may be one that an earlier request made
        return super().getresponse()


def _tell(sock: Any) -> None:
    watch = _watching.get()
    if watch is not None and sock is not None:
        watch.connected(sock)
