"""What is made of hostile JSON and hostile small files is limited, and every failure of one item has a name."""

from __future__ import annotations

import errno
import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import Defect, DiskFull, HnetkitError, NotFound, OutOfMemory, UnsafeFile, failure_of
from hnetkit.limits import Budget, json_size, parse_json, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=60,
)


@given(VALUES)
def test_good_json_is_read_as_it_was_written(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        "[" + "{}," * 100_000 + "0]",
        "[" + "[]," * 100_000 + "0]",
        "[" + '{"a":{"b":[]}},' * 30_000 + "0]",
        "[" + "1.5," * 100_000 + "0]",
        "{" + ",".join(f'"{n}":"{n}"' for n in range(100_000)) + "}",
        '"' + "x" * 1_000_000 + '"',
        "[" + '"ab",' * 100_000 + "0]",
    ],
    ids=["objects", "lists", "nested", "floats", "keys", "one text", "texts"],
)
def test_the_size_that_is_foreseen_is_hardly_less_than_what_is_made(text: str) -> None:
    tracemalloc.start()
    try:
        kept = json.loads(text)
        made, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept is not None
    assert made < 1.2 * json_size(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ("[" + "{}," * 1_000_000 + "0]", "would take more than"),
        ("{", "Expecting"),
        (b"\xff\xfe", "codec"),
    ],
)
def test_bad_json_is_a_value_error(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_a_pipe_called_as_a_configuration_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match="not a regular file"):
        read_json(tmp_path / "config.json")


def test_a_file_of_the_system_that_has_nothing_to_say_yet_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel's log is, to which a link may lead: Python gives None for it."""

    class Silent(io.BufferedReader):
        def read(self, size: int | None = -1) -> Any:
            return None

    (tmp_path / "a.json").write_bytes(b"{}")
    monkeypatch.setattr("builtins.open", lambda handle, mode: Silent(io.FileIO(handle)))
    with pytest.raises(ValueError, match="nothing can be read from it now"):
        read_json(tmp_path / "a.json")


def test_a_file_larger_than_any_of_its_kind_is_not_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[" + b" " * 100 + b"]")
    assert read_json(tmp_path / "a.json", most=102) == []
    with pytest.raises(ValueError, match="more than 101 bytes"):
        read_json(tmp_path / "a.json", most=101)


def test_a_budget_is_for_everything_that_is_made_together() -> None:
    budget = Budget(made=100, work=10)
    budget.make(60)
    budget.work(10)
    with pytest.raises(UnsafeFile, match="far more memory"):
        budget.make(41)
    with pytest.raises(UnsafeFile, match="never end"):
        budget.work(1)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (NotFound("x: no such file"), NotFound, "x: no such file"),
        (OSError(errno.EIO, "Input/output error", "b.pt"), HnetkitError, "b.pt: Input/output error"),
        (OSError(errno.EIO, "Input/output error"), HnetkitError, "a.pt: Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device"), DiskFull, "a.pt: no room is left on the disk"),
        (MemoryError(), OutOfMemory, "a.pt: not enough memory"),
        (OverflowError("too\nlarge"), Defect, "a.pt: OverflowError: too\\nlarge"),
    ],
)
def test_whatever_fails_is_a_failure_of_the_item_that_is_named(
    error: Exception, kind: type[HnetkitError], message: str
) -> None:
    failure = failure_of(error, "a.pt")
    assert type(failure) is kind
    assert str(failure) == message
    assert failure.hint or kind in (NotFound, HnetkitError)


def test_a_system_that_starts_no_further_thread_is_no_defect() -> None:
    failure = failure_of(RuntimeError("can't start new thread"), "ink.pt")
    assert not isinstance(failure, Defect)
    assert str(failure) == "ink.pt: no further thread can be started"
