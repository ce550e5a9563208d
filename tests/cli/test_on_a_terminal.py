"""What a person at a terminal sees while a command works, and what programs get from it all the same."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from hnetkit import demo

pty = pytest.importorskip("pty", reason="pseudo-terminals are of POSIX")
pytestmark = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")


def run_on_terminal(*arguments: str) -> tuple[str, str]:
    """Runs hnetkit with a terminal for stderr alone; returns stdout, and all that the terminal got."""
    ours, theirs = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(ours, 65536):
                seen.append(part)

    reader = threading.Thread(target=read)
    try:
        ran = subprocess.Popen(
            [sys.executable, "-m", "hnetkit", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        )
        os.close(theirs)
        reader.start()
        out, _ = ran.communicate(timeout=120)
        reader.join(timeout=10)
    finally:
        os.close(ours)
    return out.decode(), b"".join(seen).decode()


def test_loading_is_shown_at_once_and_paths_reach_the_pipe_from_under_the_bar(tmp_path: Path) -> None:
    out, shown = run_on_terminal("generate", "a star", "--steps", "2", "--count", "2", "--seed", "3", "--out", "drawn")
    assert out.splitlines() == [os.path.join("drawn", name) for name in ("00000-3.png", "00001-4.png")]
    assert 0 <= shown.index("Loading the model") < shown.index("No --model:") < shown.index("Drawing")
    assert "drawn" not in shown


def test_nothing_is_shown_with_q(tmp_path: Path) -> None:
    assert run_on_terminal("generate", "a star", "--steps", "1", "--seed", "3", "--out", "drawn", "-q")[1] == ""


def test_a_mistake_is_all_that_stays_on_the_terminal(tmp_path: Path) -> None:
    _, shown = run_on_terminal("generate", "a star", "--model", "absent")
    last = shown.rpartition("\x1b[2K")[2]
    assert "Error: absent: no such file or folder" in last
    assert "Loading" not in last


@pytest.mark.parametrize(("is_ignored", "code", "pictures"), [(True, 0, 3), (False, 129, 0)])
def test_a_closed_terminal_ends_the_work_by_its_signal_or_not_at_all(
    is_ignored: bool, code: int, pictures: int, tmp_path: Path
) -> None:
    """Each write to it fails from then on: of notes, of the bar, of paths, and what is left when Python exits."""
    ours, theirs = pty.openpty()
    ran = subprocess.Popen(
        [sys.executable, "-m", "hnetkit", "generate", "a star", "--steps", "1", "--count", "3", "--out", "drawn"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL),
    )
    os.close(theirs)
    shown = b""
    while b"Loading the model" not in shown:
        shown += os.read(ours, 65536)
    os.close(ours)
    ran.send_signal(signal.SIGHUP)
    assert ran.wait(timeout=120) == code
    assert len(list(tmp_path.glob("drawn/*.png"))) == pictures


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
