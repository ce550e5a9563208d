"""Outputs are whole or absent, and nothing is overwritten by accident."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import HnetkitError, NotFound, OutputExists, failure_of
from hnetkit.files import STALE_S, new_file, new_folder


def test_a_new_file_appears_whole(tmp_path: Path) -> None:
    with new_file(tmp_path / "out.bin") as file:
        file.write(b"one")
        assert not (tmp_path / "out.bin").exists()
    assert (tmp_path / "out.bin").read_bytes() == b"one"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def write_half() -> None:
        with new_file(tmp_path / "out.bin") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert list(tmp_path.iterdir()) == []


def interrupted_at(moment: int, target: Path) -> bool:
    """Makes a new file, interrupted before one of the lines that run until it can be written; False when all ran."""
    lines = count()

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and next(lines) == moment:
            raise KeyboardInterrupt
        return interrupt

    before = sys.gettrace()
    try:
        sys.settrace(interrupt)
        with new_file(target):
            sys.settrace(before)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_while_a_file_is_made_leaves_nothing(tmp_path: Path) -> None:
    for moment in count():
        folder = tmp_path / str(moment)
        folder.mkdir()
        if not interrupted_at(moment, folder / "out.bin"):
            break
        assert list(folder.iterdir()) == [], f"interrupted before line {moment}"
    assert moment > 10


def test_an_existing_file_is_kept_unless_overwriting_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"mine")
    with pytest.raises(OutputExists), new_file(target):
        pass
    assert target.read_bytes() == b"mine"
    with new_file(target, overwrite=True) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"


def test_who_could_not_read_a_file_cannot_read_what_replaces_it(tmp_path: Path) -> None:
    mine = tmp_path / "notes.json"
    mine.write_text("mine")
    mine.chmod(0o600)
    with new_file(mine, overwrite=True) as file:
        file.write(b"more")
    assert (mine.read_text(), mine.stat().st_mode & 0o777) == ("more", 0o600)


@pytest.mark.parametrize("make", [new_file, new_folder])
def test_an_error_names_what_was_to_be_written_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    target = tmp_path / "out"
    with pytest.raises(OSError, match="No space") as full, make(target):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert str(failure_of(full.value, "a command")).startswith(f"{target}: no room")

    def refusing(source: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", os.fspath(source), None, os.fspath(target))

    with monkeypatch.context() as patched:
        for name in ("link", "rename", "replace"):
            patched.setattr(os, name, refusing)
        with pytest.raises(PermissionError) as refused, make(target):
            pass
    assert str(failure_of(refused.value, "a command")) == f"{target}: Operation not permitted"


def test_an_error_of_something_else_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as lost, new_file(tmp_path / "out"):
        (tmp_path / "what is read").read_bytes()
    assert lost.value.filename == str(tmp_path / "what is read")
    with pytest.raises(ConnectionResetError) as reset, new_file(tmp_path / "out"):
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
    assert reset.value.filename is None


def test_a_file_that_appears_while_writing_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"

    def write_late() -> None:
        with new_file(target) as file:
            file.write(b"ours")
            target.write_bytes(b"theirs")

    with pytest.raises(OutputExists):
        write_late()
    assert target.read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"), new_file(tmp_path / "no" / "out.bin"):
        pass


@given(st.text())
def test_a_message_is_one_line_without_control_characters(text: str) -> None:
    message = str(HnetkitError(text))
    assert message.isprintable()
    assert len(message.splitlines()) <= 1


# --- what killed processes leave

WRITES = """
import sys, click
from hnetkit.cli import cli, main
from hnetkit.files import new_file

@click.command()
@click.argument("path")
def write(path):
    with new_file(path) as file:
        file.write(b"half")
        file.flush()
        print("writing", flush=True)
        sys.stdin.read()

cli.table["write"] = ("", "")
cli.add_command(write)
sys.argv[1:1] = ["write"]
main()
"""


@contextmanager
def writing(target: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of writing a file."""
    command = [sys.executable, "-P", "-c", WRITES, str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        try:
            yield process
        finally:
            process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path) -> None:
    with new_file(path) as file:
        file.write(b"new")


def age(path: Path, seconds: float) -> None:
    before = time.time() - seconds
    os.utime(path, (before, before))


@pytest.mark.skipif(os.name != "posix", reason="Windows ends processes without signals")
@pytest.mark.parametrize(("number", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_process_that_is_told_to_end_leaves_nothing_half_written(tmp_path: Path, number: str, code: int) -> None:
    with writing(tmp_path / "out.bin") as process:
        process.send_signal(getattr(signal, number))
        assert process.wait(timeout=30) == code
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="Windows ends processes without signals")
def test_what_a_killed_process_left_is_removed_some_hours_later(tmp_path: Path) -> None:
    with writing(tmp_path / "out.bin") as process:
        process.kill()
        process.wait(timeout=30)
    (left,) = tmp_path.iterdir()
    young, other, link, part = (tmp_path / name for name in (".x.1.hnetkit.tmp", ".x.tmp", ".l.hnetkit.tmp", ".x.part"))
    for path in (young, other, part):
        path.write_bytes(b"x")
    link.symlink_to(other)
    for path in (left, other, part):
        age(path, STALE_S + 60)
    old_link = tmp_path / ".m.hnetkit.tmp"
    old_link.symlink_to(other)
    os.utime(old_link, (0, 0), follow_symlinks=False)
    write(tmp_path / "new.bin")
    assert not left.exists()
    assert not os.path.lexists(old_link)
    assert all(os.path.lexists(path) for path in (young, other, link, part))


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps files that a process has open")
def test_what_a_living_process_writes_is_kept_however_long_it_takes(tmp_path: Path) -> None:
    with writing(tmp_path / "out.bin"):
        (half,) = tmp_path.iterdir()
        age(half, STALE_S + 60)
        write(tmp_path / "new.bin")
        assert half.exists()


def test_a_folder_is_looked_through_once_however_much_is_written_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, scandir = [], os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: looks.append(folder) or scandir(folder))
    for number in range(20):
        write(tmp_path / f"{number}.bin")
    assert len(looks) == 1


@pytest.mark.skipif(os.name != "posix", reason="SIGHUP is POSIX's")
def test_a_process_that_outlives_its_terminal_on_purpose_still_does(tmp_path: Path) -> None:
    with subprocess.Popen(
        ["nohup", sys.executable, "-P", "-c", WRITES, str(tmp_path / "out.bin")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGHUP)
        process.communicate("", timeout=30)
    assert (process.returncode, names(tmp_path)) == (0, ["out.bin"])
