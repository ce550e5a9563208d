"""A gallery that runs as people start it: a process of `hnetkit gallery`, on a port of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

from hnetkit.gallery.access import TOKEN_HEADER

_WAIT_S = 60


@dataclass(frozen=True)
class Server:
    """One that runs.

    Attributes:
        base: its address, without a path.
        token: that changes need.
        process: it itself.
    """

    base: str
    token: str
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        """What it printed."""
        return f"{self.base}/#token={self.token}"

    def get(self, path: str, **headers: str) -> requests.Response:
        return requests.get(f"{self.base}{path}", headers=headers, timeout=_WAIT_S)

    def change(self, path: str, values: Any, **headers: str | None) -> requests.Response:
        """Sends a change as our pages do; headers of None are left out."""
        own: dict[str, str | None] = {"Origin": self.base, TOKEN_HEADER: self.token}
        sent = {name: value for name, value in {**own, **headers}.items() if value is not None}
        return requests.post(f"{self.base}{path}", json=values, headers=sent, timeout=_WAIT_S)


@contextmanager
def running(*options: str) -> Iterator[Server]:
    """Yields a gallery of the home that the environment names."""
    command = [sys.executable, "-P", "-m", "hnetkit", "gallery", "--port", "0", "--no-browser", "-q", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        base, mark, token = process.stdout.readline().strip().partition("/#token=")
        assert mark, f"the gallery ended with {process.wait()}"
        yield Server(base, token, process)
    finally:
        process.terminate()
        process.wait(_WAIT_S)
        process.stdout.close()
