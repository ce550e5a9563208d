"""Nothing takes "it cannot be seen" for "it is not there": Python's own questions for a file answer both with no.

`hnetkit.files` has the questions that tell the two apart: `is_there`, `is_absent`, `stat_at`, `is_file_at`,
`is_folder_at`. Where another one is asked, it is said why a wrong no does no harm.
"""

from __future__ import annotations

import ast
import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from support import networks
from support.failing_disk import fail_at
from support.places import places

from hnetkit.errors import ModelNotUsable
from hnetkit.files import is_absent, is_file_at, is_folder_at, is_there, stat_at
from hnetkit.generate.loading.checkpoints import predicts_v_by_yaml
from hnetkit.generate.loading.outline import read_outline
from hnetkit.library import sidecars
from hnetkit.registry.store import _has_changes_beside
from hnetkit.train.captions import caption_of
from hnetkit.train.checkpoints import Checkpoints
from hnetkit.train.preparing.images import image_files

ROOMS = ("library", "sources", "train", "generate", "baking", "gallery", "cli")
LOOKED_AT = (*(f"hnetkit/{room}" for room in ROOMS), "hnetkit/doctor.py", "hnetkit/settings.py")
QUESTIONS = {"exists", "lexists", "isdir", "isfile", "is_dir", "is_file"}

WHY = {
    "hnetkit/cli/completion.py _plain_words": "what cannot be seen is not completed",
    "hnetkit/cli/train.py TrainGroup.resolve_command": "whether a word is a command; what is no folder is said next",
    "hnetkit/generate/loading/checkpoints.py _fits": "a folder of hnetkit's own",
    "hnetkit/generate/loading/checkpoints.py load_checkpoint": "a folder of hnetkit's own",
    "hnetkit/generate/loading/model_source.py _models_beside": "a hint",
    "hnetkit/gallery/pictures.py _Walk._look_at": "raises; Python takes only an absence for none",
    "hnetkit/library/link.py _LinkRun._is_last": "a source that cannot be seen counts as none, so that the file stays",
    "hnetkit/library/walking.py is_same_file": "two files that cannot be compared count as two, so that both stay",
    "hnetkit/library/placing.py _place_link": "a temporary file of its own",
    "hnetkit/library/belongings.py Belongings.of": "a folder that cannot be seen is named among what stays",
    "hnetkit/library/belongings.py _sidecars_of": "a folder that cannot be seen is tried to be moved, and named",
    "hnetkit/library/resolve.py _Search._held": "the order in which files are tried",
    "hnetkit/library/trash.py sweep": "what cannot be seen stays",
    "hnetkit/library/walking.py _is_folder": "raises; Python takes only an absence for no folder",
    "hnetkit/sources/http.py _lost_certificates": "a hint",
    "hnetkit/sources/near_references.py refusal_of_text": "a hint",
    "hnetkit/sources/mirrors.py _is_begun": "the order in which mirrors are asked",
    "hnetkit/train/checkpoints.py Checkpoints._next": "no folder with anything in it is replaced",
    "hnetkit/train/checkpoints.py _discard": "what cannot be seen stays",
    "hnetkit/train/plot.py _elsewhere": "what cannot be seen is not read either",
    "hnetkit/train/preparing/crops.py _cascade": "a file of OpenCV's own",
    "hnetkit/train/preparing/images.py _is_folder": "raises; Python takes only an absence for no folder",
    "hnetkit/train/preparing/review.py read_captions": "the table is opened next, and that error is said",
}


FORGIVEN = {
    "hnetkit/baking/checkpoint.py _configuration_for": "what cannot be read is something else, and stays",
    "hnetkit/baking/record.py _is_other": "what cannot be read is kept",
    "hnetkit/generate/loading/baked.py record_of": "the file was read before, or is refused after",
    "hnetkit/cli/completion.py _plain_words": "what cannot be seen is not completed",
    "hnetkit/cli/output.py say": "a message that nobody can read",
    "hnetkit/gallery/drawing_queue.py DrawingQueue._drawing": "it is read, and that error is said",
    "hnetkit/gallery/network_page.py NetworkPages._pictures": "the picture is shown without its settings",
    "hnetkit/gallery/pictures.py SeenPicture.modified": "a time that no calendar has is not shown",
    "hnetkit/gallery/pictures.py _look_beside": "reading the picture says whether its settings are there",
    "hnetkit/gallery/thumbnails.py Thumbnails._keep": "the picture is made small again the next time",
    "hnetkit/gallery/thumbnails.py Thumbnails.of": "the picture is made small again",
    "hnetkit/gallery/thumbnails.py seen_at": "the picture itself is read, and that error is said",
    "hnetkit/gallery/worker.py DrawingProcess._fail": "a log that cannot be written",
    "hnetkit/gallery/worker.py DrawingProcess.trouble": "that there is trouble is said without its reason",
    "hnetkit/gallery/worker.py _ServerWatch._await_server": "a pipe that cannot be read counts as its end",
    "hnetkit/gallery/worker.py _ServerWatch._await_stop": "it is looked at again",
    "hnetkit/gallery/worker.py _ServerWatch._end": "a process that dies; the next one goes on as after a kill",
    "hnetkit/generate/grids/files.py GridFiles.discard": "a folder with something in it stays",
    "hnetkit/generate/loading/model_source.py _names_in": "a hint",
    "hnetkit/generate/loading/pipeline.py _list_folder": "loading it says so; here it has no hash",
    "hnetkit/generate/loading/pipeline.py file_stamp": "one of its own, which no file has that can be seen",
    "hnetkit/library/bakes.py _marker": "it counts as a file, which is not what it was",
    "hnetkit/library/known_hashes.py _read": "hashes are computed again",
    "hnetkit/library/known_hashes.py _remember": "hashes are computed again",
    "hnetkit/library/link.py _LinkRun._beside_by_size": "without a second copy that can be seen, the file stays",
    "hnetkit/library/link.py _is_as_scanned": "the order in which files are used; the one that is used is looked at",
    "hnetkit/library/placing.py Placing.place": "the next way is tried, and the error of the last is said",
    "hnetkit/library/placing.py Placing.remove_folders": "a folder with something in it stays",
    "hnetkit/library/placing.py is_same_bytes": "what cannot be read is another file, and stays",
    "hnetkit/library/placing.py is_same_entry": "two names that cannot be compared are two, and both stay",
    "hnetkit/library/placing.py is_untouched": "what cannot be read was changed, and stays",
    "hnetkit/library/placing.py way_of": "what is no link, or cannot be seen, leads no further",
    "hnetkit/library/sidecars.py _may_be_file": "it counts as there",
    "hnetkit/library/sidecar_writing.py write_as_packed": "what cannot be read is another's, and stays",
    "hnetkit/library/trash.py _names": "a trash that cannot be listed takes no removal either",
    "hnetkit/library/trash.py _without_journal": "a folder that cannot be listed has no journal either, and stays",
    "hnetkit/library/trash.py _remove_if_empty": "a folder with something in it stays",
    "hnetkit/library/trash.py sweep": "what cannot be seen stays",
    "hnetkit/library/walking.py _identity_or_none": "a root that cannot be looked at is entered from no other one",
    "hnetkit/library/walking.py _is_folder": "it counts as one, and entering it says why not",
    "hnetkit/library/walking.py is_link": "entering it says why not",
    "hnetkit/library/walking.py _spelled": "the name as it was given",
    "hnetkit/library/walking.py bare_way": "it counts as empty, so that nothing is forgotten",
    "hnetkit/settings.py _hint_in_place_of": "a hint",
    "hnetkit/sources/download.py PartialFile._read_note": "the bytes are fetched again",
    "hnetkit/sources/download.py lock_download": "a lock of its own",
    "hnetkit/sources/http.py _finish": "the body of a redirect, which says no more",
    "hnetkit/sources/http.py _seconds": "a time that a site sent, beyond what the system knows",
    "hnetkit/sources/workers.py Worker.__enter__": "another user's lock, which stays",
    "hnetkit/sources/workers.py Worker._remove": "a lock of its own",
    "hnetkit/sources/presence.py has_bytes": "what cannot be read has other bytes, and stays",
    "hnetkit/sources/trust.py Watchdog.look": "a connection that is closed already",
    "hnetkit/train/checkpoints.py _discard": "what cannot be removed stays",
    "hnetkit/train/logs.py has_no_step": "it counts as a table with steps, and stays",
    "hnetkit/train/logs.py other_columns": "reading the table says it",
    "hnetkit/train/preparing/images.py _folders_with_images": "a warning about folders that are not read",
    "hnetkit/train/preparing/images.py _identity": "it counts as another one, and listing it says why not",
    "hnetkit/train/preparing/images.py _is_folder": "it counts as a file, and opening it says why not",
    "hnetkit/train/run_folder.py RunFolder._clear": "a folder with something in it stays",
    "hnetkit/train/run_folder.py RunFolder._require_own_networks": "the run is refused",
}
"""Where an error of the system is passed over without its words, and why that does no harm."""


def question(node: ast.AST) -> str | None:
    """Returns the text where Python is asked whether something is there."""
    return ast.unparse(node) if isinstance(node, ast.Attribute) and node.attr in QUESTIONS else None


def test_every_question_that_takes_no_permission_for_absence_says_why_that_does_no_harm() -> None:
    found = places(question, LOOKED_AT)
    assert {place: call for place, call in found.items() if place not in WHY} == {}
    assert {place for place in WHY if place not in found} == set()


def passed_over(node: ast.AST) -> str | None:
    """Returns the text where an error of the system is caught, and nothing of it is said or raised."""
    if isinstance(node, ast.ExceptHandler) and node.type is not None and node.name is None:
        is_raised = any(isinstance(statement, ast.Raise) for statement in node.body)
        return None if is_raised or "OSError" not in ast.unparse(node.type) else ast.unparse(node.type)
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
        return ast.unparse(node) if "OSError" in map(ast.unparse, node.args) else None
    return None


def test_every_error_of_the_system_that_is_passed_over_says_why_that_does_no_harm() -> None:
    found = places(passed_over, LOOKED_AT)
    assert {place: call for place, call in found.items() if place not in FORGIVEN} == {}
    assert {place for place in FORGIVEN if place not in found} == set()


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


def test_a_configuration_beside_a_checkpoint_that_cannot_be_read_is_not_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pictures would have been noise: the model predicts something else."""
    assert not predicts_v_by_yaml(tmp_path / "sd.safetensors")
    assert not predicts_v_by_yaml(tmp_path / f"{'a' * 252}.pt"), "no file can have the other name"
    (tmp_path / "sd.yaml").write_text("parameterization: v")
    assert predicts_v_by_yaml(tmp_path / "sd.safetensors")
    fail_at(monkeypatch, tmp_path / "sd.yaml", errno.EACCES, "open")
    with pytest.raises(ModelNotUsable, match=r"sd\.yaml: Permission denied"):
        predicts_v_by_yaml(tmp_path / "sd.safetensors")


def test_a_model_that_cannot_be_seen_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would have been asked for at the hub, by the path of a person's own folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sd").mkdir(parents=True)
    fail_at(monkeypatch, Path("models/sd"), errno.EACCES, "stat")
    with pytest.raises(PermissionError, match="models/sd"):
        read_outline("models/sd")


def test_the_latest_changes_of_a_registry_that_cannot_be_seen_are_not_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is on a read-only disk would have been shown without them."""
    assert not _has_changes_beside(tmp_path / "registry.db")
    fail_at(monkeypatch, tmp_path / "registry.db-wal", errno.EACCES, "stat")
    assert _has_changes_beside(tmp_path / "registry.db")
