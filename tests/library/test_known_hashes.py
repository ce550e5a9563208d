"""The hash of a large file is computed once, and never believed of a file that changed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from pathlib import Path

import pytest

from hnetkit import paths
from hnetkit.formats.open_file import OpenFile
from hnetkit.library.known_hashes import LEAST, hash_of_file


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of what is read, once for each read."""
    seen: list[str] = []
    original = OpenFile.read_at

    def counting(self: OpenFile, offset: int, size: int) -> bytes:
        seen.append(self.path)
        return original(self, offset, size)

    monkeypatch.setattr(OpenFile, "read_at", counting)
    return seen


def large_file(path: Path, *, seed: int, seconds_ago: float = 3600) -> str:
    """Writes a file that is large enough to be remembered, as long ago; returns its sha256."""
    content = random.Random(seed).randbytes(LEAST)
    path.write_bytes(content)
    settle(path, seconds_ago)
    return hashlib.sha256(content).hexdigest()


def settle(path: Path, seconds_ago: float) -> None:
    then = time.time_ns() - int(seconds_ago * 1e9)
    os.utime(path, ns=(then, then))


@pytest.fixture
def long_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour passes before anything is hashed: nobody can set the time at which a file's status changed."""
    now = time.time_ns
    monkeypatch.setattr("hnetkit.library.known_hashes.time.time_ns", lambda: now() + 3600 * 10**9)


@pytest.mark.usefixtures("long_after")
def test_a_large_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "model.safetensors"
    digest = large_file(path, seed=1)
    assert hash_of_file(path) == digest
    assert reads
    reads.clear()
    assert hash_of_file(path) == digest
    assert reads == []


@pytest.mark.usefixtures("long_after")
@pytest.mark.parametrize("how", ["in place", "replaced", "with its old time"])
def test_a_file_that_changed_is_read_again(how: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    before = large_file(path, seed=1)
    assert hash_of_file(path) == before
    times = path.stat()
    if how == "replaced":
        other = tmp_path / "other"
        after = large_file(other, seed=2)
        other.replace(path)
    else:
        after = large_file(path, seed=2, seconds_ago=60)
    if how == "with its old time":
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hash_of_file(path) == after != before


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = large_file(path, seed=1, seconds_ago=0)
    assert hash_of_file(path) == digest
    assert not paths.hashes_file().exists()


def test_a_small_file_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"content")
    assert hash_of_file(path) == hashlib.sha256(b"content").hexdigest()
    assert not paths.hashes_file().exists()


@pytest.mark.usefixtures("long_after")
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1, "b": [[], "x"]}', b"\xff"])
def test_what_cannot_be_read_is_forgotten(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = large_file(path, seed=1)
    paths.home().mkdir(parents=True, exist_ok=True)
    paths.hashes_file().write_bytes(content)
    assert hash_of_file(path) == digest
    assert json.loads(paths.hashes_file().read_bytes())[os.path.realpath(path)][1] == digest


@pytest.mark.usefixtures("long_after")
@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_home_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    digest = large_file(path, seed=1)
    paths.home().mkdir(parents=True, exist_ok=True)
    paths.home().chmod(0o500)
    try:
        assert hash_of_file(path) == hash_of_file(path) == digest
    finally:
        paths.home().chmod(0o700)
