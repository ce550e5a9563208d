"""The library: `hnetkit scan`, `list`, `search`, `show`, `tag`, `forget`, `remove`, `export` and `import`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from hnetkit import paths
from hnetkit.cli.completion import complete_name, complete_own_tag, complete_removed, complete_tag
from hnetkit.cli.network_card import network_card
from hnetkit.cli.options import base_model_name, command, option
from hnetkit.cli.output import Output, Row, confirm, not_text, output_options, put_json, say
from hnetkit.cli.progress import byte_progress
from hnetkit.errors import PartlyFailed, UsageError, printable
from hnetkit.library.listing import SORTS, list_networks, nearest_filters, said_of_lost
from hnetkit.text import argument, counted, is_text, listed

if TYPE_CHECKING:
    from hnetkit.library.library import Library
    from hnetkit.library.remove import Removal
    from hnetkit.library.restore import RemovalChange
    from hnetkit.registry.store import Registry

_FAILURES_SHOWN = 20
_NAMED = 5  # networks that a question names
_FILES = ["stem", "kind", "verdict", "state", "size_bytes", "path", "reason"]
_LIST = ["name", "base_model", "layer_structure", "activation", "size", "tags", "trained_on"]


@contextmanager
def open_registry() -> Iterator[Registry]:
    """Opens the user's registry."""
    from hnetkit.registry.store import Registry

    with Registry(paths.registry_file()) as registry:
        yield registry


@contextmanager
def open_library() -> Iterator[Library]:
    """Opens the user's library."""
    from hnetkit.library.library import Library

    with Library() as library:
        yield library


@command("scan")
@click.argument("folders", nargs=-1, metavar="[DIR...]")
@option("--rehash", is_flag=True, help="Read every known file again; list changed, missing and corrupt ones.")
@option("--follow-links", is_flag=True, help="Follow links to folders outside of DIR too.")
@output_options
def scan_command(folders: tuple[str, ...], rehash: bool, follow_links: bool, output: Output) -> None:
    """Index folders of hypernetworks in the registry.

    The registry is hnetkit's own database; files stay where they are. Folders are remembered: without DIR, all known
    ones are scanned again. Only files that are new, or of another size or time than before, are read, and so are their
    sidecars; a file that is gone is marked missing, not forgotten. Links to files are followed, links to folders only
    inside DIR. What a file manager deleted, in a trash or recycle bin inside DIR, is left out; so is what sync tools
    and disks keep of earlier versions (.stversions, .snapshots).

    What could not be read is listed as unread, and what is known of it stays; the exit code is then 1. With --rehash,
    it is also 1 if a file has changed, is missing or is corrupt.

    \b
    Examples:
      hnetkit scan .
      hnetkit scan ~/stable-diffusion-webui/models/hypernetworks
      hnetkit scan --rehash
    """
    if rehash and folders:
        raise UsageError("--rehash checks the whole library", hint="hnetkit scan --rehash")
    with open_library() as library, byte_progress("reading", quiet=output.quiet) as progress:
        if rehash:
            found = library.recheck(progress, note=output.note)
        else:
            found = library.scan(*folders, follow_links=follow_links, progress=progress, note=output.note)
        rows = list(map(_change, found))
        total = library.registry.summary()
    output.rows(rows, columns=["change", "path", "kind", "detail"], text=_change_line)
    output.note(f"{counted(len(rows), 'change')}; {total}")
    wrong = [
        row for row in rows if row["change"] in (("changed", "missing", "corrupt", "unread") if rehash else ("unread",))
    ]
    if wrong:
        states = ("is not what it was", "are not what they were") if rehash else ("could not be read",) * 2
        why = because(row["detail"] for row in wrong if row["change"] == "unread")
        raise PartlyFailed(f"{counted(len(wrong), 'file')} {states[len(wrong) != 1]}{why}")


def because(reasons: Iterable[str | None]) -> str:
    """Returns why files failed, to end a message: the rows that say it of each may have gone to another place."""
    different = list(dict.fromkeys(filter(None, reasons)))
    more = f", and {len(different) - 1} more" if len(different) > 1 else ""
    return f": {different[0]}{more}" if different else ""


@command("list")
@option(
    "--tag",
    "tags",
    multiple=True,
    metavar="TAG",
    shell_complete=complete_tag,
    help="List only networks with this tag. Repeatable.",
)
@option(
    "--base-model",
    metavar="NAME",
    type=base_model_name(),
    help="List only networks that fit this base model: sd1, sd2, sd1-or-sd2, sdxl, sdxl-refiner or unknown. Any "
    "spelling of Civitai's name will do.",
)
@option("--width", type=int, help="List only networks with MLPs for this context width, as 320.")
@option("--activation", metavar="NAME", help="List only networks with this activation; linear means none.")
@option("--missing", is_flag=True, help="List only networks none of whose files is there any more.")
@option(
    "--duplicates",
    is_flag=True,
    help="List only networks that several files hold, with these files; links are no copies.",
)
@option("--files", is_flag=True, help="List files instead, also those that are not networks or were refused.")
@option("--sort", type=click.Choice(list(SORTS)), default="name", show_default=True, help="Order of the networks.")
@option("--reverse", is_flag=True, help="Turn the order around.")
@output_options
def list_command(files: bool, output: Output, sort: str, reverse: bool, **filters: Any) -> None:
    """List the networks of the library.

    One row per network, however many files hold it. --json has everything that is known. A tag is one of yours, of a
    site or of a sidecar. Sorted by size, copies or steps, the largest come first; by added, the latest. A column says
    since when a site does not have a network any more.

    \b
    Examples:
      hnetkit list
      hnetkit list --activation relu --csv
      hnetkit list --duplicates --sort size
    """
    filters["activation"] = filters["activation"] or None
    if files and (sort != "name" or reverse):
        raise UsageError("--sort and --reverse order networks, not files", hint="hnetkit list --files --csv | sort")
    rows, none = _listed(output.form, filters, {"sort": sort, "reverse": reverse}, files=files)
    if filters["duplicates"] and not files:
        output.rows(rows, columns=["name", "copies", *_LIST[1:]], text=_copies)
    elif files:
        short = output.form in ("text", "table")
        output.rows([_without_path(row) for row in rows] if short else rows, columns=_FILES)
    else:
        _networks(rows, output)
    if none is not None:
        output.note(none)
    if missing := [row.get("size") for row in rows].count("missing"):
        output.note(f"{counted(missing, 'network')} in no file that is here; hnetkit repair fetches what has a source")


def _listed(form: str, filters: Row, order: Row, *, files: bool) -> tuple[list[Row], str | None]:
    """Returns the rows of `list`, and what to say where there is none."""
    if files or filters["duplicates"] or form in ("json", "nl"):
        with open_library() as library:
            rows = library.files(**filters) if files else library.networks(**filters, **order)
            return rows, None if rows else _none_of(library.registry, filters, files=files)
    with open_registry() as registry:  # of ten thousand networks, no more is read than their lines show
        rows = list_networks(registry, **filters, **order)
        return rows, None if rows else _none_of(registry, filters, files=files)


def _networks(rows: list[Row], output: Output) -> None:
    """Prints networks, one a line; that a site has lost one is a column, in a table only where one is lost."""
    if output.form not in ("json", "nl"):
        rows = [row | {"gone": said_of_lost(row["gone"])} if row["gone"] else row for row in rows]
    is_said = output.form in ("csv", "tsv") or any(row["gone"] for row in rows)
    output.rows(rows, columns=[*_LIST, *(["gone"] if is_said else [])])


def _without_path(row: Row) -> Row:
    """Returns a row whose reason does not begin with the path, which stands beside it."""
    return row | {"reason": (row["reason"] or "").removeprefix(f"{row['path']}: ")}


def _copies(row: Row) -> list[str]:
    lines = [f"{row['name']}  {row['copies']} copies, {row['size']}"]
    for file in (file for file in row["files"] if file["there"] and file["state"] == "present"):
        other = f"  (no copy: one file with {file['same_as']})" if file["same_as"] else ""
        lines.append(f"  {file['path']}{other}")
    return lines


def _none_of(registry: Registry, filters: Row, *, files: bool) -> str:
    """Returns what to say of a library in which nothing passes the filters of `list`."""
    if empty := registry.emptiness():
        return f"no networks: {empty}; hnetkit scan FOLDER"
    what = "file" if files else "network"
    what = (
        f"{'missing ' if filters['missing'] else ''}{what}{' in more than one file' if filters['duplicates'] else ''}"
    )
    given = [f"the tag {tag}" for tag in filters["tags"]]
    for key in ("base_model", "width", "activation"):
        given += [f"the {key.replace('_', ' ')} {filters[key]}"] if filters[key] is not None else []
    near = nearest_filters(registry, **{key: filters[key] for key in ("tags", "width", "activation")})
    like = f"; did you mean {' and '.join(near)}?" if near else ""
    return f"no {what} has {' and '.join(given)}{like}" if given else f"there is no {what}"


@command("search")
@click.argument("words", nargs=-1, required=True, metavar="QUERY")
@output_options
def search_command(words: tuple[str, ...], output: Output) -> None:
    """Search the library by all that is known of its networks.

    Searches names, tags and notes, what sites and sidecars say (title, creator, tags, trigger words, description), the
    checkpoint that a network was trained on, its base model and its activation. Every word of QUERY must occur; the
    last one may be the beginning of a word, unless a mark follows it, as in c++. Chinese, Japanese and Korean words are
    found inside of others, and so are signs such as emoji.

    \b
    Examples:
      hnetkit search outline
      hnetkit search shapes line --json
    """
    with open_library() as library:
        rows = library.search(" ".join(words))
        empty = library.registry.emptiness()
    _networks(rows, output)
    if not rows:
        none = f"{empty}; hnetkit scan FOLDER" if empty else "no network of the library has all of this"
        output.note(f"{none}; hnetkit browse {argument(' '.join(words))} searches Civitai")


@command("show")
@click.argument("name", shell_complete=complete_name)
@output_options
def show_command(name: str, output: Output) -> None:
    """Show all that is known of one network.

    NAME is a network's name or alias, a file, or the beginning of a hash, as everywhere.

    \b
    Examples:
      hnetkit show outline
      hnetkit show h1:c2aed351 --json
    """
    with open_library() as library:
        tell(library, [name], output)
        row = library.record(name)
    output.rows([row], columns=_LIST, text=network_card)


@command("tag")
@click.argument("name", shell_complete=complete_name)
@click.argument("tags", nargs=-1, metavar="[TAG...]", shell_complete=complete_own_tag)
@option("--remove", multiple=True, metavar="TAG", shell_complete=complete_own_tag, help="Remove this tag. Repeatable.")
@option("--alias", metavar="NAME", help="Add a name for prompts and commands, which no other network has yet.")
@option("--remove-alias", multiple=True, metavar="NAME", help="Remove this alias. Repeatable.")
@option("--note", metavar="TEXT", help="Set the note; an empty one removes it.")
@option("--strength", metavar="N", help="Suggest this strength; an empty one suggests none.")
@option("--trigger-words", metavar="TEXT", help="Set the words for its prompts; an empty text removes them.")
@option(
    "--preview",
    metavar="IMAGE",
    help="Show a smaller copy of this image as its preview; an empty one removes the copy. Any other picture stays.",
)
@output_options
def tag_command(
    name: str,
    tags: tuple[str, ...],
    remove: tuple[str, ...],
    alias: str | None,
    remove_alias: tuple[str, ...],
    note: str | None,
    strength: str | None,
    trigger_words: str | None,
    preview: str | None,
    output: Output,
) -> None:
    """Tag a network, or say how it is best used.

    Tags, aliases and the note belong to the content: renaming or moving the file loses nothing. Strength, trigger words
    and preview are written beside its files, where AUTOMATIC1111, Forge and others show them: into NAME.json and
    NAME.preview.png. What else is in NAME.json stays.

    \b
    Examples:
      hnetkit tag outline shapes lineart
      hnetkit tag outline --alias ink --note "at night, too"
      hnetkit tag outline --strength 0.8 --trigger-words "thin lines"
    """
    said = (alias, note, strength, trigger_words, preview)
    if not listed(tags) and not remove and not remove_alias and all(text is None for text in said):
        raise UsageError("nothing to change", hint=f"hnetkit tag {argument(name)} TAG, or --remove, --alias, --note")
    texts = (*tags, *remove, *remove_alias, alias or "", note or "", trigger_words or "")
    not_utf8 = next((text for text in texts if not is_text(text)), None)
    if not_utf8 is not None:
        raise not_text(not_utf8)
    with open_library() as library:
        tell(library, [name], output)
        row = library.tag(
            name,
            *tags,
            remove=remove,
            alias=alias,
            note=note,
            remove_aliases=remove_alias,
            strength=strength,
            trigger_words=trigger_words,
            preview=preview,
        )
    output.rows([row], columns=_LIST, text=network_card)


@command("forget")
@click.argument("name", required=False, shell_complete=complete_name)
@option(
    "--missing", is_flag=True, help="Forget all files that are gone, also baked ones, and networks that no file holds."
)
@option("-y", "--yes", is_flag=True, help="Agree without being asked.")
@output_options
def forget_command(name: str | None, missing: bool, yes: bool, output: Output) -> None:
    """Remove files from the registry; no file is touched.

    NAME is a network's name, a file's path, a folder that was scanned, or one in it, or the path of what was baked.
    Tags, notes and aliases go with the last file of a network. A file that is still there comes back with the next
    scan of its folder; one that is gone is nothing that `hnetkit repair` fetches again. --missing keeps what may be
    on a disk that is away: files in a folder that is not there or is empty, and in one that was scanned and holds
    nothing any more of what was there with them.

    \b
    Examples:
      hnetkit forget paper -y
      hnetkit forget --missing -y
    """
    if (name is None) == (not missing):
        raise UsageError("say what to forget", hint="hnetkit forget NAME, or hnetkit forget --missing")
    with open_library() as library:
        found = library.forgetting(name, missing=missing)
        tell(library, [name] if name is not None and not found.root else [], output)
        if found.files or found.root or found.fileless or found.bakes:
            others = [f"{counted(found.fileless, 'network')} in no file"] if found.fileless else []
            others += [counted(len(found.bakes), "record") + " of what was baked"] if found.bakes else []
            parts = [*([counted(len(found.files), "file")] if found.files or not others else []), *others]
            whose = "they" if len(found.files) + found.fileless + len(found.bakes) != 1 else "it"
            confirm(f"Forget {' and '.join(parts)}, and what only {whose} held?", yes=yes)
        elif missing and not found.kept:
            output.note("nothing was missing at the last scan; hnetkit scan looks again")
        for line in found.kept:
            output.note(line)
        files = library.forget_found(found)
        if back := len(found.files) - len(files):
            output.note(f"{counted(back, 'file')} kept: there again since the question; hnetkit scan")
        for path in found.bakes:
            is_back = library.registry.bakes.has(path)
            output.note(f"{path} kept: it is there again" if is_back else f"forgotten that {path} was baked")
    if found.fileless:
        output.note(f"{counted(found.fileless, 'network')} in no file forgotten")
    output.rows(files, columns=["stem", "kind", "path"], text=lambda row: f"forgotten  {row['path']}")


def tell(library: Library, names: Iterable[str], output: Output) -> None:
    """Says where a name means another network than a person may think."""
    for name in names:
        if (said := library.said_of(name)) is not None:
            output.note(said)


def _change(change: Any) -> Row:
    row = change.row or {}
    detail = change.reason or row.get("reason") or "; ".join(row.get("warnings", [])) or None
    return {"change": change.what, "path": change.path, "kind": row.get("kind"), "detail": detail, **row}


def _change_line(row: Row) -> str:
    detail = f"  ({row['detail']})" if row["kind"] != "hypernetwork" and row["detail"] else ""
    return f"{row['change']:<9}{row['path']}{detail.replace(printable(row['path']) + ': ', '')}"


@command("remove")
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_removed)
@option("--undo", is_flag=True, help="Bring back what was removed last, or the last removal of each NAME.")
@option("--dry-run", is_flag=True, help="List what would be moved, and change nothing.")
@option("-y", "--yes", is_flag=True, help="Agree without being asked.")
@output_options
def remove_command(names: tuple[str, ...], undo: bool, dry_run: bool, yes: bool, output: Output) -> None:
    """Move networks' files to a trash on the same disk, or bring them back.

    NAME is a network's name, for all its files in the library's folders, or the path of one file. Sidecars go along,
    and what `link` made of the files in other programs' folders is taken away first. The trash is the folder
    .hnetkit-trash in each of the library's folders: it is yours to empty, and nothing else deletes from it.

    With --undo, files come back to their places, with tags, note and aliases. A removal that was cut short is taken
    back by the next `hnetkit remove`.

    \b
    Examples:
      hnetkit remove outline -y
      hnetkit remove --undo
    """
    if not names and not undo:
        raise UsageError("say what to remove", hint="hnetkit remove NAME, or hnetkit remove --undo")
    with open_library() as library:
        if undo:
            found = library.restore(*names, dry_run=dry_run)
        else:
            plan = library.removing(*names, dry_run=dry_run)
            tell(library, names, output)
            if plan.files and not dry_run:
                confirm(_removal_question(plan), yes=yes)
            try:
                found = _planned_changes(plan) if dry_run else library.remove_found(plan)
            except KeyboardInterrupt:
                say("What was removed before is in the trash: hnetkit remove --undo brings it back.")
                raise
    rows = [asdict(change) for change in found]
    for row in rows:
        row["change"] = row.pop("what")
    output.rows(rows, columns=["change", "path", "network", "trash", "reason"], text=partial(_removal_line, dry_run))
    counts = Counter(change.what for change in found)
    done = ", ".join(f"{count} {what}" for what, count in counts.items()) or "nothing to do"
    after = "; hnetkit remove --undo brings it back" if counts["removed"] and not dry_run else ""
    output.note(f"{'would be: ' if dry_run and counts else ''}{done}{after}")
    if counts["skipped"]:
        why = because(change.reason for change in found if change.what == "skipped")
        what = "brought back" if undo else "moved"
        raise PartlyFailed(f"{counted(counts['skipped'], 'file')} could not be {what}{why}")


def _removal_question(plan: Removal) -> str:
    beside = f" and {counted(len(plan.beside), 'sidecar')}" if plan.beside else ""
    names = ", ".join(network.name for network in plan.networks[:_NAMED])
    more = f" and {len(plan.networks) - _NAMED} more" if len(plan.networks) > _NAMED else ""
    return f"Move {counted(len(plan.files), 'file')}{beside} of {names}{more} to the trash?"


def _planned_changes(plan: Removal) -> list[RemovalChange]:
    from hnetkit.library.restore import RemovalChange

    moved = [
        RemovalChange("removed", str(path), network.name)
        for network in plan.networks
        for file in network.files
        for path in (file.path, *file.beside)
    ]
    return [*plan.changes, *moved]


def _removal_line(dry_run: bool, row: Row) -> str:
    plans = {"removed": "to remove", "restored": "to restore"} if dry_run else {}
    reason = f"  ({row['reason']})" if row["reason"] else ""
    return f"{plans.get(row['change'], row['change']):<10} {row['path']}{reason}"


@command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@option("--overwrite", is_flag=True, help="Replace an earlier export.")
@output_options
def export_command(file: str, overwrite: bool, output: Output) -> None:
    """Write what is known of the library as JSON lines.

    Holds networks with their names, tags, notes and aliases, where their files came from, the sites' records of models,
    and saved filters of `hnetkit sync`; no paths, and not the networks themselves. On another machine, `hnetkit import`
    reads it, and `hnetkit repair` fetches the networks. FILE may be - for standard output.

    \b
    Examples:
      hnetkit export library.jsonl
      hnetkit export - | gzip > library.jsonl.gz
    """
    from hnetkit.sources.export import export_library, export_records

    with open_library() as library:
        if file == "-":
            for record in export_records(library.registry):
                put_json(record)
            if (empty := library.registry.emptiness()) is not None:
                output.note(empty)
            return
        count = export_library(library, file, overwrite=overwrite)
    output.rows([{"file": file, "records": count}], columns=["file", "records"], text=lambda row: row["file"])
    output.note(counted(count, "record"))


@command("import")
@click.argument("file", type=click.Path(allow_dash=True))
@output_options
def import_command(file: str, output: Output) -> None:
    """Read what `export` wrote into the library.

    Adds tags and what is not known yet; keeps what is known. Networks that are not here are known by their names then,
    and `hnetkit repair` fetches those that came from Civitai, Hugging Face or an address. FILE may be - for standard
    input. The exit code is 1 if a line cannot be read or lines are missing, or if a note, an alias or filters are other
    ones here: it is said, and all else is still taken in.

    \b
    Examples:
      hnetkit import library.jsonl
      zcat library.jsonl.gz | hnetkit import -
    """
    from hnetkit.sources.export import import_library

    if file == "-" and sys.stdin is None:
        raise UsageError("standard input is closed", hint="hnetkit import FILE")
    with open_library() as library, byte_progress("importing", quiet=output.quiet) as progress:
        found = import_library(library, sys.stdin.buffer if file == "-" else file, progress=progress)
    rows = [{"kind": kind, "records": count} for kind, count in sorted(found.counts.items())]
    output.rows(rows, columns=["kind", "records"], text=lambda row: f"{row['kind']}  {row['records']}")
    if found.fetchable:
        them = "it" if found.fetchable == 1 else "them"
        output.note(f"{counted(found.fetchable, 'network')} not here yet; hnetkit repair fetches {them}")
    if found.without_source:
        count = counted(found.without_source, "network")
        output.note(f"no source is known of {count} not here; hnetkit scan FOLDER adds what you have the files of")
    for failure in found.failures[:_FAILURES_SHOWN]:
        say(failure)
    if found.failed > _FAILURES_SHOWN:
        say(f"and {found.failed - _FAILURES_SHOWN} more")
    if found.failed:
        raise PartlyFailed(f"{counted(found.failed, 'line')} could not be imported, or not completely")
