"""`hnetkit share`: networks as a folder for a Hugging Face repository, and its upload."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hnetkit.cli.completion import complete_license, complete_name
from hnetkit.cli.library import open_library, tell
from hnetkit.cli.options import OUTPUT, command, option
from hnetkit.cli.output import Output, Row, confirm, is_terminal, output_options
from hnetkit.cli.progress import step_progress
from hnetkit.errors import UsageError
from hnetkit.text import argument, counted, size_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hnetkit.sharing.api import Share
    from hnetkit.sharing.folder import ShareFolder

_SHARED, _UPLOAD = "What is shared", "Upload"
_COLUMNS = ["path", "size_bytes", "sha256"]
_LAST = "no other file of the library holds what is in it"


@command("share")
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_name)
@option(
    "--picture",
    "pictures",
    section=_SHARED,
    multiple=True,
    metavar="FILE",
    show_default="the networks' previews",
    help="Show this picture in the card, with the prompt that is in it. Repeatable.",
)
@option(
    "--license",
    section=_SHARED,
    metavar="ID",
    show_default="what is known",
    shell_complete=complete_license,
    help="State this license, an id of the hub's list such as mit, cc-by-4.0, creativeml-openrail-m or other.",
)
@option(
    "--upload",
    section=_UPLOAD,
    metavar="OWNER/REPO",
    help="Upload FOLDER to this repository of the hub, which is created if it is not there.",
)
@option("--private", section=_UPLOAD, is_flag=True, help="Create a private repository.")
@option("-y", "--yes", section=_UPLOAD, is_flag=True, help="Agree to all without being asked.")
@option("--out", section=OUTPUT, required=True, metavar="FOLDER", help="Write to this folder, a new or an empty one.")
@option("--overwrite", section=OUTPUT, is_flag=True, help="Update FOLDER if `share` made it before.")
@option(
    "--dry-run",
    section=OUTPUT,
    is_flag=True,
    help="Show what FOLDER would hold, and its card, or what of it would be uploaded; write nothing.",
)
@output_options
def share_command(
    names: tuple[str, ...],
    pictures: tuple[str, ...],
    license: str | None,
    upload: str | None,
    private: bool,
    yes: bool,
    out: str,
    overwrite: bool,
    dry_run: bool,
    output: Output,
) -> None:
    """Make a folder of networks to upload to Hugging Face.

    FOLDER can be a repository there. It gets each network as .safetensors and as .pt, and README.md, a model card with
    what is known: base model, trigger words, strength, layer structure, hashes, source, creator, license. The .pt keeps
    the bytes, and so the hash, of the library's file where AUTOMATIC1111 loads that. Your own tags, notes and aliases
    are not shared. Of pictures the pixels and the prompt with its settings are, and nothing else in their files.

    If no license is known, or a network's record does not want it shared, you are asked.

    The card is yours to edit before the upload. `hnetkit share --out FOLDER --upload OWNER/REPO` uploads a folder as it
    is; an upload that was interrupted goes on with the same command. It needs a token with write access, in HF_TOKEN or
    from `hf auth login`.

    \b
    Examples:
      hnetkit share outline dots --out shapes --license mit
      hnetkit share outline --out outline-repo --license mit --dry-run
      hnetkit share outline --out outline-repo --license mit --upload me/outline
    """
    from hnetkit.hub import repository_name
    from hnetkit.sharing.folder import ShareFolder, made_before

    if upload is not None:
        upload = repository_name(upload)
    if private and upload is None:
        raise UsageError("--private is for an upload", hint="--upload OWNER/REPO")
    if not names and (upload is None or pictures or license is not None or overwrite):
        raise UsageError("say what to share", hint="hnetkit share NAME --out FOLDER")
    plan = _plan(names, pictures, license, output) if names else None
    if plan is None:
        folder = ShareFolder.read(out)
    elif upload is not None and not overwrite and (earlier := made_before(out, plan.contents)) is not None:
        output.note(f"{out} is there: it is uploaded as it is; --overwrite makes it anew")
        folder = earlier
    elif dry_run:
        _show_plan(plan, out, upload, output, overwrite=overwrite)
        return
    else:
        folder = _written(plan, out, output, overwrite=overwrite, yes=yes)
    if dry_run:
        folder.require_own()
        _show_files(folder, None, output)
        _note_others(folder, output)
        output.note(
            f"would be: {counted(len(folder.files), 'file')}, {size_text(folder.size_bytes)}, uploaded to {upload}"
        )
        return
    address = None if upload is None else _upload(folder, upload, output, private=private, yes=yes)
    _show_files(folder, address, output)
    if upload is None:
        again = f"hnetkit share --out {argument(out, is_path=True)} --upload OWNER/REPO"
        output.note(f"README.md is yours to edit; then: {again}")


def _show_files(folder: ShareFolder, address: str | None, output: Output) -> None:
    hashes = folder.hashes()
    rows = [
        {"path": str(path), "size_bytes": path.stat().st_size, "sha256": hashes[name], "uploaded": address}
        for name, path in folder.paths().items()
    ]
    output.rows(rows, columns=_COLUMNS, text=lambda row: f"{row['path']}  {size_text(row['size_bytes'])}")


def _plan(names: Sequence[str], pictures: Sequence[str], license: str | None, output: Output) -> Share:
    from hnetkit.sharing.api import plan_share

    with open_library() as library:
        tell(library, names, output)
        plan = plan_share(library, names, pictures=pictures, license=license)
    for note in plan.notes:
        output.note(note)
    return plan


def _written(plan: Share, out: str, output: Output, *, overwrite: bool, yes: bool) -> ShareFolder:
    from hnetkit.sharing.folder import require_writable

    earlier = require_writable(out, overwrite=overwrite)
    if plan.doubts:
        confirm(_question(plan), yes=yes)
    gone, kept = plan.without(earlier), plan.kept(earlier)
    with step_progress("Writing", quiet=output.quiet) as progress:
        folder = plan.write(out, overwrite=overwrite, progress=progress)
    if gone:
        output.note(f"removed, because it is not in this share: {', '.join(gone)}")
    if kept:
        output.note(f"kept, but not shared, because {_LAST}: {', '.join(kept)}")
    return folder


def _question(plan: Share) -> str:
    said = " ".join(f"{line[0].upper()}{line[1:]}." for line in plan.doubts)
    known = all(network.license.id is not None for network in plan.networks)
    them = "it" if len(plan.networks) == 1 else "them"
    return f"{said}{'' if known else ' --license ID states one.'} Share {them} all the same?"


def _show_plan(plan: Share, out: str, upload: str | None, output: Output, *, overwrite: bool) -> None:
    from hnetkit.sharing.folder import require_writable

    earlier = require_writable(out, overwrite=overwrite)
    for doubt in plan.doubts:
        output.note(f"would be asked about: {doubt}")
    rows: list[Row] = [{"path": str(Path(out, name)), "card": None} for name in plan.files()]
    rows[-1]["card"] = plan.card()
    output.rows(rows, columns=["path"], text=_planned_lines)
    if gone := plan.without(earlier):
        output.note(f"would be removed: {', '.join(gone)}")
    if kept := plan.kept(earlier):
        output.note(f"would be kept, but not shared, because {_LAST}: {', '.join(kept)}")
    output.note(f"would be: {counted(len(rows), 'file')}{'' if upload is None else f', uploaded to {upload}'}")


def _planned_lines(row: Row) -> list[str]:
    return [row["path"], *(f"    {line}" for line in (row["card"] or "").splitlines())]


def _upload(folder: ShareFolder, repo: str, output: Output, *, private: bool, yes: bool) -> str:
    uploading = folder.uploading(repo, private=private)
    _note_others(folder, output)
    confirm(uploading.question, yes=yes)
    commit = uploading.carry_out(bars=not output.quiet and is_terminal(sys.stderr))
    output.note(f"{uploading.repository.url} has it" if commit else f"{uploading.repository.url} had all of it already")
    return uploading.repository.url


def _note_others(folder: ShareFolder, output: Output) -> None:
    if others := folder.others():
        output.note(f"not uploaded, because `share` did not make it: {', '.join(others)}")
