"""One origin: a threaded HTTP/1.1 server on 127.0.0.1 that sends responses as they say they want to be sent."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.fake_sites.messages import Ledger, Recorded, Request, Response, text_response

Answer = Callable[[Request], Response]
CHUNK = 1 << 18


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, name: str, answer: Answer, ledger: Ledger) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.name = name
        self.answer = answer
        self.ledger = ledger
        self.closing = threading.Event()
        self.connected = 0
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self.resets: set[socket.socket] = set()

    def serve(self) -> None:
        """Takes connections until one comes while the server is closing."""
        while not self.closing.is_set():
            self.handle_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self.connected += 1
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:
            self._connections.discard(request)
        if request in self.resets:  # a shutdown would send FIN first
            self.resets.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: clients and faults break connections on purpose."""

    def cut_all(self) -> None:
        """Ends every connection, so that no thread goes on waiting for a next request."""
        with self._connections_lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the ledger has it all."""

    def _request(self) -> Request:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        return Request(self.server.name, self.command, self.path, headers, body)

    def _serve(self) -> None:
        request = self._request()
        entry = self.server.ledger.begin(request)
        try:
            try:
                response = self.server.answer(request)
            except Exception:
                self.server.ledger.failures.append(traceback.format_exc())
                response = text_response(500, "the fake itself failed\n" + traceback.format_exc())
            entry.status = response.status
            self._send(request, response, entry)
        except OSError as exception:
            entry.broken = f"client: {exception}"
            self.close_connection = True
        finally:
            entry.ended = time.monotonic()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _serve

    def _send(self, request: Request, response: Response, entry: Recorded) -> None:
        if response.cut_after == -1:
            entry.broken = "fault: no answer"
            self._cut(response.reset)
            return
        self.send_response(response.status)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if response.length and "Content-Length" not in response.headers:
            self.send_header("Content-Length", str(len(response.body)))
        if not response.length:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if request.method == "HEAD":
            return
        body = memoryview(response.body)
        if response.cut_after is not None:
            body = body[: response.cut_after]
        stall = response.stall_after
        if stall is None:
            self._write(body, response, entry)
        else:
            self._write(body[:stall], response, entry)
            self.server.closing.wait(response.stall_seconds)
            self._write(body[stall:], response, entry)
        while response.endless and not self.server.closing.is_set():
            self._write(memoryview(response.endless), response, entry)
        if response.cut_after is not None:
            entry.broken = f"fault: cut after {len(body)} bytes"
            self._cut(response.reset)

    def _write(self, body: memoryview, response: Response, entry: Recorded) -> None:
        step = response.drip or CHUNK
        for start in range(0, len(body), step):
            if self.server.closing.is_set():
                raise ConnectionAbortedError("the server is closing")
            self.wfile.write(body[start : start + step])
            entry.sent += len(body[start : start + step])
            if response.drip:
                self.server.closing.wait(response.drip_seconds)

    def _cut(self, reset: bool) -> None:
        self.close_connection = True
        if reset:  # no lingering: close() then sends RST at once
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.server.resets.add(self.connection)


class Origin:
    """A server that runs in the background from `start` to `close`."""

    def __init__(self, name: str, answer: Answer, ledger: Ledger, port: int = 0) -> None:
        self.name = name
        self._server = _Server(port, name, answer, ledger)
        self._thread = threading.Thread(target=self._server.serve, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def connected(self) -> int:
        """How many connections were made to it."""
        return self._server.connected

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stops at once, also in the middle of a stall."""
        self._server.closing.set()
        if self._thread.is_alive():
            with contextlib.suppress(OSError), socket.create_connection(self._server.server_address[:2]):
                self._thread.join()
        self._server.cut_all()
        self._server.server_close()
