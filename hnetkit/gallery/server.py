"""`serve`: the gallery on an address of this machine, until it is interrupted."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import webbrowser
from collections.abc import Callable, Iterable

import uvicorn

from hnetkit.errors import HnetkitError, UsageError
from hnetkit.gallery.access import Access, is_loopback, is_open
from hnetkit.gallery.app import make_app
from hnetkit.gallery.pages import Gallery
from hnetkit.library.library import Library

HOST, PORT = "127.0.0.1", 7870
_UNTIL_CLOSED_S = 2  # that open connections are waited for


def serve(
    library: Library,
    *,
    host: str = HOST,
    port: int = PORT,
    browser: bool = True,
    pictures: Iterable[str | os.PathLike[str]] = (),
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves the pages of a library until the process is interrupted.

    Args:
        library: kept open; commands may change it at the same time.
        host: the address to listen on. Only ``127.0.0.1`` is reached by this machine alone.
        port: as well; 0 takes any that is free.
        browser: open the page in a browser.
        pictures: folders of pictures, to look back at.
        ready: called with the address of the page, which holds the token that changes need, once it can be opened.

    Raises:
        UsageError: the port is taken, or the host is no address of this machine.
        NotFound: there is no such folder of pictures.
    """
    gallery = Gallery(library, pictures)
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(24)
        app = Access(make_app(gallery), host=host, port=port, token=token)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_UNTIL_CLOSED_S,
        )
        address = f"http://{_reached_at(host)}:{port}/#token={token}"
        ready(address)
        if browser:
            webbrowser.open(address)
        gallery.pictures.begin_look()
        gallery.drawer.start()
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            gallery.drawer.close()
            gallery.pictures.close()


def is_shared(host: str) -> bool:
    """Whether other machines may reach what listens there."""
    return not is_loopback(host)


def _reached_at(host: str) -> str:
    """Returns what stands in an address for a host that is listened on."""
    if is_open(host):
        return HOST
    return f"[{host}]" if ":" in host else host


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
        # connections inherit it; without it each answer waits for 40 ms until its first part is acknowledged
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        if number == errno.EADDRINUSE:
            message = f"port {port} is taken, perhaps by another gallery"
            raise UsageError(message, hint="hnetkit gallery --port 0 takes one that is free") from error
        if number in (errno.EACCES, errno.EPERM):
            raise UsageError(f"port {port} may not be used", hint="hnetkit gallery --port 0") from error
        if number == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            raise UsageError(
                f"{host} is no address of this machine", hint="hnetkit gallery listens on 127.0.0.1"
            ) from error
        raise HnetkitError(f"{host}:{port} cannot be listened on ({error})", hint="hnetkit gallery --port 0") from error
