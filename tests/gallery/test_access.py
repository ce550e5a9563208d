"""Who may see a page and change something."""

from __future__ import annotations

import asyncio
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message
from support.gallery import Server, running

import hnetkit
from hnetkit.cli import run
from hnetkit.gallery.access import Access


def ask(server: Server, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    """Sends a request with exactly these headers."""
    connection = http.client.HTTPConnection(server.base.removeprefix("http://"), timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_only_a_host_of_this_machine_is_answered(server: Server) -> None:
    port = server.base.rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"LOCALHOST:{port}"):
        assert ask(server, "GET", "/", {"Host": host})[0] == 200
    # a name of a stranger's that leads here, another port, and no Host at all
    strange = (f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"10.0.0.7:{port}")
    for host in strange:
        status, body = ask(server, "GET", "/", {"Host": host})
        assert status == 421, host
        assert b"ink" not in body
    assert ask(server, "GET", "/", {})[0] in (400, 421)


@pytest.mark.parametrize(
    ("port", "host", "status"),
    [
        (80, "127.0.0.1", 200),
        (80, "127.0.0.1:80", 200),
        (80, "[::1]", 200),
        (80, "127.0.0.1:81", 421),
        (80, "evil.example", 421),
        (7870, "[::1]:7870", 200),
        (7870, "[::1]", 421),
        (7870, ":7870", 421),
    ],
)
def test_a_browser_leaves_the_port_of_http_out(port: int, host: str, status: int) -> None:
    access = Access(PlainTextResponse("here"), host="127.0.0.1", port=port, token="secret")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode())]}
    answers: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        answers.append(message)

    asyncio.run(access(scope, receive, send))
    assert answers[0]["status"] == status


def test_no_page_may_be_framed_and_no_answer_be_read_by_another_site(server: Server) -> None:
    for path in ("/", "/cards", "/files", "/static/gallery.js", "/network/none"):
        headers = server.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in headers


def test_the_token_stands_in_no_page(server: Server) -> None:
    assert len(server.token) >= 32
    for path in ("/", "/files", "/static/gallery.js", f"/?token={server.token}x"):
        assert server.token not in server.get(path).text.replace(f"{server.token}x", "")


def test_a_gallery_of_the_machine_alone_listens_nowhere_else(server: Server) -> None:
    port = int(server.base.rpartition(":")[2])
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in (address for address in others if not str(address).startswith("127.")):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address), port), timeout=1).close()


def test_an_address_that_is_not_there_is_a_page_with_a_way_back(server: Server) -> None:
    answer = server.get("/no/such/page")
    assert answer.status_code == 404
    assert 'href="/"' in answer.text
    assert server.get("/network/h1:none").status_code == 404


def test_a_port_that_is_taken_is_an_error_of_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    port = server.base.rpartition(":")[2]
    assert run(["gallery", "--no-browser", "--port", port]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"Error: port {port} is taken, perhaps by another gallery",
        "Hint: hnetkit gallery --port 0 takes one that is free",
    ]


def test_an_address_of_another_machine_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["gallery", "--no-browser", "--host", "192.0.2.1"]) == 2
    error = capsys.readouterr().err
    assert "192.0.2.1 is no address of this machine" in error
    assert "Warning: whoever reaches 192.0.2.1" in error


@pytest.fixture
def open_server(library: hnetkit.Library) -> Iterator[Server]:
    with running("--host", "0.0.0.0") as server:
        yield server


def test_where_other_machines_are_let_in_they_may_ask_by_number_but_by_no_name(open_server: Server) -> None:
    port = open_server.base.rpartition(":")[2]
    assert open_server.base.startswith("http://127.0.0.1:")
    assert ask(open_server, "GET", "/", {"Host": f"192.168.1.7:{port}"})[0] == 200
    assert ask(open_server, "GET", "/", {"Host": f"evil.example:{port}"})[0] == 421
