"""Nothing takes "it cannot be seen" for "it is not there": Python's own questions for a file answer both with no.

`hnetkit.files` has the questions that tell the two apart: `is_there`, `is_absent`, `stat_at`, `is_file_at`,
`is_folder_at`. Where another one is asked, it is said why a wrong no does no harm.
"""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import networks
from support.failing_disk import fail_at

from hnetkit.files import is_absent, is_file_at, is_folder_at, is_there, stat_at
from hnetkit.library import sidecars
from hnetkit.train.captions import caption_of
from hnetkit.train.checkpoints import Checkpoints
from hnetkit.train.preparing.images import image_files

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("library", "sources", "train")
QUESTIONS = {"exists", "lexists", "isdir", "isfile", "is_dir", "is_file"}

WHY = {
    "library/link.py _LinkRun._is_last": "a source that cannot be seen counts as none, so that the file stays",
    "library/walking.py is_same_file": "two files that cannot be compared count as two, so that both stay",
    "library/placing.py _place_link": "a temporary file of its own",
    "library/belongings.py Belongings.of": "a folder that cannot be seen is named among what stays",
    "library/belongings.py _sidecars_of": "a folder that cannot be seen is tried to be moved, and named",
    "library/resolve.py _Search._held": "the order in which files are tried",
    "library/trash.py sweep": "what cannot be seen stays",
    "library/walking.py _is_folder": "raises; Python takes only an absence for no folder",
    "sources/http.py _lost_certificates": "a hint",
    "train/checkpoints.py Checkpoints._next": "no folder with anything in it is replaced",
    "train/checkpoints.py _discard": "what cannot be seen stays",
    "train/preparing/crops.py _cascade": "a file of OpenCV's own",
    "train/preparing/images.py _is_folder": "raises; Python takes only an absence for no folder",
    "train/preparing/review.py read_captions": "the table is opened next, and that error is said",
}


def questions(node: ast.AST, within: str = "") -> Iterator[tuple[str, str]]:
    """Yields the function and the text wherever Python is asked whether something is there."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.ClassDef)
        own = f"{within}.{child.name}".lstrip(".") if named else within  # type: ignore[attr-defined]
        if isinstance(child, ast.Attribute) and child.attr in QUESTIONS:
            yield own, ast.unparse(child)
        yield from questions(child, own)


def test_every_question_that_takes_no_permission_for_absence_says_why_that_does_no_harm() -> None:
    found = {
        f"{path.relative_to(REPOSITORY / 'hnetkit').as_posix()} {function}": call
        for room in ROOMS
        for path in sorted((REPOSITORY / "hnetkit" / room).rglob("*.py"))
        for function, call in questions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {place: call for place, call in found.items() if place not in WHY} == {}
    assert {place for place in WHY if place not in found} == set()


def test_the_questions_of_files_tell_what_is_there_from_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere")
    assert (is_file_at(tmp_path / "file"), is_folder_at(tmp_path / "file")) == (True, False)
    assert (is_file_at(tmp_path), is_folder_at(tmp_path)) == (False, True)
    for name in ("none", "file/below", "loop", "lost", "n" * 5000, "a\0b"):
        assert stat_at(tmp_path / name) is None
        assert not is_file_at(tmp_path / name)
        assert not is_folder_at(tmp_path / name)
    assert is_there(tmp_path / "lost")
    assert is_absent(tmp_path / "none")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("question", [stat_at, is_file_at, is_folder_at, is_there])
def test_what_cannot_be_seen_is_an_error_and_no_absence(
    question: Callable[[Path], object], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, tmp_path / "unseen", number, "stat", "lstat")
    with pytest.raises(OSError, match="unseen") as caught:
        question(tmp_path / "unseen")
    assert caught.value.errno == number
    assert not is_absent(tmp_path / "unseen")


# --- and what came of the wrong answers


def test_checkpoints_that_cannot_be_seen_are_not_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training would have begun again, over what it had made."""
    checkpoints = Checkpoints(tmp_path / "state")
    (tmp_path / "state" / "00000001").mkdir(parents=True)
    fail_at(monkeypatch, tmp_path / "state", errno.EACCES, "stat")
    with pytest.raises(PermissionError):
        _ = checkpoints.newest_folder


def test_a_caption_that_cannot_be_seen_is_not_replaced_by_the_file_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cat.txt").write_text("a cat in the sun")
    fail_at(monkeypatch, tmp_path / "cat.txt", errno.EIO, "stat")
    with pytest.raises(Exception, match="Input/output error"):
        caption_of(tmp_path / "cat.png")


def test_a_picture_that_cannot_be_seen_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat.png", "dog.png"):
        (tmp_path / name).touch()
    fail_at(monkeypatch, tmp_path / "dog.png", errno.EACCES, "stat")
    with pytest.raises(PermissionError, match="Permission denied"):
        image_files(tmp_path, hint="")


@pytest.mark.parametrize("name", ["ink.json", "ink.civitai.info", "ink.png"])
def test_a_sidecar_that_cannot_be_seen_counts_as_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`link` would have taken it away from the program's folder."""
    ink = networks.network_file(tmp_path, "ink.pt")
    (tmp_path / name).write_text('{"notes": "mine"}')
    fail_at(monkeypatch, tmp_path / name, errno.EACCES, "stat", "open")
    assert list(sidecars.beside(ink).values()) == [tmp_path / name]
    assert [it.path for it in sidecars.read(ink).unreadable if it.is_passing] == [tmp_path / name]
