"""Every place that removes, renames or replaces a file, and why nothing can be lost there; a new one has to say it."""

from __future__ import annotations

import ast

from support.places import places

OF_THE_SYSTEM = {"unlink", "remove", "rmdir", "removedirs", "rename", "replace", "rmtree", "move"}
OF_A_PATH = {"unlink", "rmdir", "rename"}

WHY = {
    "hnetkit/files.py new_file": "what is new is complete and on the disk before it replaces; its temporary file goes",
    "hnetkit/files.py new_folder": "its name was free",
    "hnetkit/files.py temporary_folder": "a folder of its own",
    "hnetkit/files.py _remove_stale": "a temporary file that no process has open, hours old",
    "hnetkit/files.py publish": "the name was free",
    "hnetkit/gallery/drawing_queue.py DrawingQueue.again": "how a drawing ended, which begins again; its cells stay",
    "hnetkit/gallery/drawing_queue.py DrawingQueue.remove": "the person asked, for a folder of the queue's own",
    "hnetkit/generate/grids/files.py GridFiles.discard": "the person asked to begin again",
    "hnetkit/generate/grids/files.py GridFiles._remove": "its lines are in the one record, whose name is on the disk",
    "hnetkit/library/link.py _LinkRun.clear": "unchanged since hnetkit put it there, and not the last with its content",
    "hnetkit/library/link.py _LinkRun._spelled_anew": "one file under two spellings",
    "hnetkit/library/placing.py Placing.remove_folders": "folders that hnetkit made, if they are empty",
    "hnetkit/library/placing.py _place_link": "what is new exists before it replaces what hnetkit put there",
    "hnetkit/library/plugins.py uninstall": "unchanged since hnetkit put it there; the package has it",
    "hnetkit/library/plugins.py _remove_unfinished": "half-written files of a killed run, where no other run writes",
    "hnetkit/library/remove.py _unlink": "unchanged since hnetkit put it there; the journal and the library have it",
    "hnetkit/library/suggestions.py _put_preview": "its person asked that no preview is shown",
    "hnetkit/library/trash.py put_in": "a name that is free, in a folder of this removal alone; the journal is written",
    "hnetkit/library/trash.py put_back": "the name was free; what stays in the trash is at its place too",
    "hnetkit/library/trash.py close": "a journal of which every file is at its place",
    "hnetkit/library/trash.py sweep": "folders without a journal, which hold nothing yet or no more",
    "hnetkit/library/trash.py _remove_if_empty": "a folder with nothing in it",
    "hnetkit/sharing/folder.py _move": "--overwrite: what an earlier share wrote, and the new share is complete",
    "hnetkit/sources/archives.py extract_models": "what it unpacked itself",
    "hnetkit/sources/download.py lock_download": "a lock of its own",
    "hnetkit/sources/download.py PartialFile.discard": "a part that does not fit what the site has now",
    "hnetkit/sources/download.py discard_parts": "parts of a file that is here",
    "hnetkit/sources/presence.py remake": "a file that it wrote itself",
    "hnetkit/sources/install.py _install_one": "what it placed itself and could not register",
    "hnetkit/sources/install.py _place": "what it placed itself and could not register",
    "hnetkit/sources/install.py _replace_damaged": "the damaged file is in quarantine, and what is new is complete",
    "hnetkit/sources/workers.py Worker._remove": "a lock of its own",
    "hnetkit/sources/maintenance.py requeue_damaged": "the damaged file is in quarantine",
    "hnetkit/train/checkpoints.py Checkpoints._write": "the name was free",
    "hnetkit/train/checkpoints.py Checkpoints._remove": "a later checkpoint is complete",
    "hnetkit/train/checkpoints.py _discard": "a checkpoint that is to go, under a name that no run reads",
    "hnetkit/train/preparing/folder.py TrainingFolder._write": "--overwrite: the caption of an image that was replaced",
    "hnetkit/train/run_folder.py RunFolder.remove_snapshots_after": "--restart or a rollback: what the run makes again",
    "hnetkit/train/run_folder.py RunFolder._clear": "--restart: what the run makes again",
    "registry/store.py _keep": "the copy is complete before it has its name",
}


def removal(node: ast.AST) -> str | None:
    """Returns the text of a call that takes a name from a file, or gives it to another."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    owner, call = ast.unparse(node.func.value), node.func.attr
    of_a_path = call in OF_A_PATH or (call == "replace" and len(node.args) == 1 and not node.keywords)
    is_one = (call in OF_THE_SYSTEM) if owner in ("os", "shutil") else (of_a_path and owner != "library")
    return ast.unparse(node) if is_one else None


def test_every_removal_says_why_nothing_is_lost() -> None:
    found = places(removal)
    assert len(found) > 20
    assert {place: call for place, call in found.items() if place not in WHY} == {}
