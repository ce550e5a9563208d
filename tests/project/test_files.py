"""Outputs are whole or absent, and nothing is overwritten by accident."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import HnetkitError, NotFound, OutputExists
from hnetkit.files import new_file


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


def test_an_existing_file_is_kept_unless_overwriting_was_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_bytes(b"mine")
    with pytest.raises(OutputExists), new_file(target):
        pass
    assert target.read_bytes() == b"mine"
    with new_file(target, overwrite=True) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"


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
