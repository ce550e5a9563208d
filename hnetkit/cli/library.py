"""`hnetkit scan`, `list`, `search`, `show`, `tag` and `forget`: the library."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hnetkit import paths
from hnetkit.cli.output import Output, Row, confirm, not_text, output_options
from hnetkit.errors import NotFound, PartlyFailed, UsageError, printable
from hnetkit.text import argument, counted, is_text

if TYPE_CHECKING:
    from hnetkit.registry.files import Root
    from hnetkit.registry.store import Registry

# what means nothing to bash, zsh, fish and PowerShell, which takes typographic quotes for quotes and dashes for -
_BEYOND_ASCII = r"[^\x00-\x7f\s\u2010-\u201f]"
_PLAIN_WORD = re.compile(rf"(?:[\w.]|{_BEYOND_ASCII})(?:[\w.+@%=:-]|{_BEYOND_ASCII})*")
_LIST = ["name", "base_model", "layer_structure", "activation", "size", "tags", "trained_on"]


@contextmanager
def open_registry() -> Iterator[Registry]:
    """The person's registry."""
    from hnetkit.registry.store import Registry

    with Registry(paths.registry_file()) as registry:
        yield registry


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Network names for the shell's completion: those that a shell reads as one plain word, and nothing else in them.

    A shell puts what it completes on the command line as it is, where the next Enter obeys it.
    """
    from hnetkit.library.resolve import names

    if not paths.registry_file().exists():
        return []
    with open_registry() as registry:
        return [name for name in names(registry) if name.startswith(incomplete) and _is_plain_word(name)]


def _is_plain_word(name: str) -> bool:
    return _PLAIN_WORD.fullmatch(name) is not None and printable(name) == name


@click.command("scan")
@click.argument("folders", nargs=-1, metavar="[DIR...]")
@click.option("--rehash", is_flag=True, help="Read every known file again; report changed, missing and corrupt ones.")
@click.option("--follow-links", is_flag=True, help="Also scan folders outside, to which links in a folder lead.")
@output_options
def scan_command(folders: tuple[str, ...], rehash: bool, follow_links: bool, output: Output) -> None:
    """Index folders of hypernetworks in the registry.

    Folders are remembered: without any, all known ones are scanned. Only what is new or changed is read; a file that
    is gone is marked missing and never forgotten. With --rehash, exits with 1 where a file is not what it was. Links
    to files are followed, links to folders only within the folder.

    \b
    Examples:
      hnetkit scan ~/stable-diffusion-webui/models/hypernetworks
      hnetkit scan --rehash
    """
    from hnetkit.cli.progress import byte_progress
    from hnetkit.library.scan import add_roots, recheck, scan

    if rehash and folders:
        raise UsageError("--rehash checks the whole library", hint="hnetkit scan --rehash")
    with open_registry() as registry, byte_progress("reading", quiet=output.quiet) as progress:
        if not folders and paths.library_folder().is_dir():
            add_roots(registry, [paths.library_folder()])
        if not folders and not registry.files.roots():
            raise NotFound("no folder was ever scanned", hint="hnetkit scan FOLDER")
        if rehash:
            found = recheck(registry, progress=progress)
        else:
            found = scan(registry, map(Path, folders), progress, follow_links=follow_links, note=output.note)
        rows = [_change(change) for change in found]
        total = registry.summary()
    output.rows(rows, columns=["change", "path", "kind", "detail"], text=_change_line)
    output.note(f"{counted(len(rows), 'change')}; {total}")
    wrong = [
        row for row in rows if row["change"] in (("changed", "missing", "corrupt", "unread") if rehash else ("unread",))
    ]
    if wrong:
        states = ("is not what it was", "are not what they were") if rehash else ("could not be read",) * 2
        raise PartlyFailed(f"{counted(len(wrong), 'file')} {states[len(wrong) != 1]}")


@click.command("list")
@click.option("--tag", "tags", multiple=True, help="Only networks with this tag; may be repeated.")
@click.option("--base-model", help="Only networks for sd1, sd2, sd1-or-sd2, sdxl, sdxl-refiner or unknown.")
@click.option("--width", type=int, help="Only networks with MLPs for this context width.")
@click.option("--activation", help="Only networks with this activation (linear for none).")
@click.option("--missing", is_flag=True, help="Only networks none of whose files is there.")
@click.option("--files", is_flag=True, help="List files instead, also those that are no networks or were refused.")
@output_options
def list_command(
    tags: tuple[str, ...],
    base_model: str | None,
    width: int | None,
    activation: str | None,
    missing: bool,
    files: bool,
    output: Output,
) -> None:
    """List the networks of the library.

    One row per network, in however many files it stands. JSON has everything that is known.

    \b
    Examples:
      hnetkit list
      hnetkit list --tag anime --base-model sd1 --csv
    """
    with open_registry() as registry:
        if files:
            rows = registry.files.rows("files.state = 'missing'" if missing else "1")
            output.rows(rows, columns=["stem", "kind", "verdict", "state", "size_bytes", "path", "reason"])
            return
        rows = [row for row in _networks(registry, registry.networks.rows()) if not missing or not row["present"]]
    if base_model:
        rows = [row for row in rows if row["base_model"] == base_model]
    if width is not None:
        rows = [row for row in rows if width in row["widths"]]
    if activation:
        rows = [row for row in rows if row["activation"] == activation.lower()]
    rows = sorted((row for row in rows if set(tags) <= set(row["tags"])), key=lambda row: str(row["name"]).casefold())
    output.rows(rows, columns=_LIST)
    if not rows:
        output.note("no networks; hnetkit scan FOLDER adds some")


@click.command("search")
@click.argument("words", nargs=-1, required=True, metavar="QUERY")
@output_options
def search_command(words: tuple[str, ...], output: Output) -> None:
    """Search the library's names, tags and notes.

    Also the checkpoint that a network was trained on. Every word must be there; the last may be a beginning.

    \b
    Examples:
      hnetkit search watercolor
      hnetkit search anime style --json
    """
    with open_registry() as registry:
        rows = _networks(registry, registry.networks.search(" ".join(words)))
    output.rows(rows, columns=_LIST)


@click.command("show")
@click.argument("name", shell_complete=complete_name)
@output_options
def show_command(name: str, output: Output) -> None:
    """Show all that is known of one network.

    \b
    Examples:
      hnetkit show ink
      hnetkit show h1:27f0fce0 --json
    """
    from hnetkit.library.resolve import resolve

    with open_registry() as registry:
        found = resolve(registry, name)
        rows = _networks(registry, registry.networks.rows("content_hash = ?", [found.content_hash]))
        for row in rows:
            files = registry.files.holding([row["content_hash"]])
            row["sidecars"] = list(registry.files.sidecars(file["id"] for file in files).values())
            row["sites"] = _sites(registry, {file["sha256"] for file in files})
            row["training"] = _training(registry, row["content_hash"])
    output.rows(rows, columns=_LIST, text=_network_card)


@click.command("tag")
@click.argument("name", shell_complete=complete_name)
@click.argument("tags", nargs=-1, metavar="[TAG...]")
@click.option("--remove", multiple=True, metavar="TAG", help="Take a tag away; may be repeated.")
@click.option("--alias", help="One more name for the network, for prompts and commands; taken from one that has it.")
@click.option("--note", help="A note, in place of the one before; an empty one removes it.")
@output_options
def tag_command(
    name: str, tags: tuple[str, ...], remove: tuple[str, ...], alias: str | None, note: str | None, output: Output
) -> None:
    """Tag a network, or give it an alias or a note.

    They belong to the content: renaming or moving its file loses nothing.

    \b
    Examples:
      hnetkit tag ink anime lineart
      hnetkit tag ink --alias lines --note "best at 0.6"
    """
    from hnetkit.library.resolve import require_alias, resolve

    if not tags and not remove and alias is None and note is None:
        raise UsageError("nothing to change", hint=f"hnetkit tag {argument(name)} TAG, or --remove, --alias, --note")
    odd = next((text for text in (*tags, *remove, alias or "", note or "") if not is_text(text)), None)
    if odd is not None:
        raise not_text(odd)
    former: list[Row] = []
    with open_registry() as registry:
        found = resolve(registry, name)
        if alias is not None:
            require_alias(registry, alias, found.content_hash)
        with registry.write():
            id = registry.networks.id_of(found.content_hash)
            registry.networks.add_tags(id, tags)
            registry.networks.remove_tags(id, remove)
            if alias is not None:
                former = registry.networks.rows("id IN (SELECT network_id FROM aliases WHERE alias = ?)", [alias])
                registry.networks.set_alias(id, alias)
            if note is not None:
                registry.networks.set_note(id, note)
        rows = _networks(registry, registry.networks.rows("id = ?", [id]))
        others = [row["name"] for row in _networks(registry, former) if row["content_hash"] != found.content_hash]
    output.rows(rows, columns=_LIST, text=_network_card)
    for other in others:
        output.note(f"{alias} is no alias of {other} any more")


@click.command("forget")
@click.argument("name", required=False, shell_complete=complete_name)
@click.option("--missing", is_flag=True, help="Forget all files that are gone, and networks in no file.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@output_options
def forget_command(name: str | None, missing: bool, yes: bool, output: Output) -> None:
    """Remove files from the registry; no file is touched.

    NAME is a network's name, a file's path, or a folder that was scanned. Tags, notes and aliases go with a
    network's last file. What is still there comes back with the next scan of its folder.

    \b
    Examples:
      hnetkit forget ink
      hnetkit forget --missing -y
    """
    if (name is None) == (not missing):
        raise UsageError("say what to forget", hint="hnetkit forget NAME, or hnetkit forget --missing")
    with open_registry() as registry:
        root = None if name is None else _root_at(registry, name)
        if root is not None:
            files = registry.files.rows("root_id = ?", [root.id])
        else:
            files = registry.files.rows("files.state = 'missing'") if missing else _files_called(registry, str(name))
        fileless = registry.networks.fileless() if missing else 0
        if files or root or fileless:
            also = f" and {counted(fileless, 'network')} in no file" if fileless else ""
            whose = "they" if len(files) + fileless != 1 else "it"
            confirm(f"Forget {counted(len(files), 'file')}{also}, and what only {whose} held?", yes=yes)
        with registry.write():
            registry.files.forget(row["id"] for row in files)
            if root is not None:
                registry.files.forget_root(root)
            registry.networks.forget_fileless(None if missing else {row["content_hash"] for row in files} - {None})
    output.rows(files, columns=["stem", "kind", "path"], text=lambda row: f"forgotten  {row['path']}")


def _root_at(registry: Registry, name: str) -> Root | None:
    if not os.path.dirname(name) and name != os.curdir:  # a bare word is a network, also where a folder is called so
        return None
    return next((root for root in registry.files.roots() if str(root.path) == os.path.realpath(name)), None)


def _files_called(registry: Registry, name: str) -> list[Row]:
    from hnetkit.library.resolve import resolve

    path = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
    by_path = [row for row in registry.files.rows() if row["path"] == path]
    return by_path or registry.files.rows("files.content_hash = ?", [resolve(registry, name).content_hash])


def _networks(registry: Registry, rows: list[Row]) -> list[Row]:
    """Adds to networks the files that hold them, and the checkpoint that they were trained on."""
    by_content: dict[str, list[Row]] = {}
    for file in registry.files.holding([row["content_hash"] for row in rows]):
        by_content.setdefault(file["content_hash"], []).append(file)
    checkpoints = {
        short: file["path"]
        for file in registry.files.rows("files.kind = 'checkpoint'")
        for short in (str(file["sha256"])[:10], file["autov1"])
    }
    return [_with_files(row, by_content.get(row["content_hash"], []), checkpoints) for row in rows]


def _with_files(row: Row, files: list[Row], checkpoints: dict[str, str]) -> Row:
    shown = ("path", "state", "format", "size_bytes", "sha256", "autov1", "warnings")
    present = any(file["state"] == "present" for file in files)
    return {
        **{key: value for key, value in row.items() if key != "id"},
        "name": files[0]["stem"] if files else row["name"],
        "own_name": row["name"],
        "size": _size(files[0]["size_bytes"]) if present else "missing",
        "trained_on": _trained_on(row),
        "checkpoint_path": checkpoints.get(row["sd_checkpoint"]),
        "present": present,
        "files": [{key: file[key] for key in shown} for file in files],
    }


def _training(registry: Registry, content_hash: str) -> Row | None:
    """How a network came to be that was trained here: its recipe, its model, and its ancestors, the nearest first."""
    training = registry.trainings.of(content_hash)
    if training is None:
        return None
    lineage = registry.trainings.lineage(content_hash)
    names = {row["content_hash"]: row["name"] for row in _networks(registry, _of_contents(registry, lineage))}
    return asdict(training) | {"lineage": [{"content_hash": own, "name": names.get(own)} for own in lineage]}


def _of_contents(registry: Registry, hashes: list[str]) -> list[Row]:
    return registry.networks.rows(f"content_hash IN ({','.join('?' * len(hashes))})", hashes)


def _sites(registry: Registry, sha256s: set[str]) -> list[Row]:
    """What sites say of files with these hashes: their claims, beside what hnetkit measured."""
    marks = ",".join("?" * len(sha256s))
    versions = "SELECT version_id FROM lookups WHERE sha256"
    rows = registry.catalogue.files(
        f"remote_files.sha256 IN ({marks}) OR versions.remote_id IN ({versions} IN ({marks}))", [*sha256s, *sha256s]
    )
    return list({(row["source"], row["version_id"]): row for row in rows}.values())


def _site_lines(sites: list[Row], sidecars: list[Row]) -> list[str]:
    facts: list[tuple[str, str | None]] = []
    for site in sites:
        creator = f" by {site['creator']}" if site["creator"] else ""
        state = f" ({site['model_state']})" if site["model_state"] != "listed" else ""
        ref = "model:" if site["source"] == "civitai" else "hf:"
        facts.append((site["source"], f"{site['model']}, {site['version']}{creator}, {ref}{site['model_id']}{state}"))
        scan = f"scan {site['site_scan']}" if site["site_scan"] else None
        facts.append(
            ("claims", ", ".join(filter(None, (site["type"], site["site_base_model"], site["site_fp"], scan))))
        )
        facts.append(("strength", f"{site['strength']:g} in its example pictures" if site["strength"] else None))
        facts.append(("words", ", ".join(site["trained_words"] or ())))
    for said in sidecars:
        facts.append(("weight", f"{said['preferred_weight']:g} preferred" if said.get("preferred_weight") else None))
        facts.append(("activation", said.get("activation_text")))
        facts.append(("notes", said.get("notes")))
    return [f"  {label:<11}{value}" for label, value in dict.fromkeys(facts) if value]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def _trained_on(row: Row) -> str | None:
    name, short = row["sd_checkpoint_name"], row["sd_checkpoint"]
    return " ".join([*([name] if name else []), *([f"[{short}]"] if short else [])]) or None


def _change(change: Any) -> Row:
    row = change.row or {}
    detail = change.reason or row.get("reason") or "; ".join(row.get("warnings", [])) or None
    return {"change": change.what, "path": change.path, "kind": row.get("kind"), "detail": detail, **row}


def _change_line(row: Row) -> str:
    detail = f"  ({row['detail']})" if row["kind"] != "hypernetwork" and row["detail"] else ""
    return f"{row['change']:<9}{row['path']}{detail.replace(printable(row['path']) + ': ', '')}"


def _training_lines(training: Row | None) -> list[str]:
    """What a person wants to know of a recipe; `--json` has all of it."""
    if training is None:
        return []
    recipe = training["recipe"]
    known = [f"{key.replace('_', ' ')} {recipe[key]}" for key in ("rates", "batch_size", "pictures") if key in recipe]
    ancestors = [ancestor["name"] or ancestor["content_hash"][:13] for ancestor in training["lineage"]]
    facts = {"recipe": ", ".join(known), "begun with": " < ".join(ancestors)}
    return [f"  {label:<11}{value}" for label, value in facts.items() if value]


def _network_card(row: Row) -> list[str]:
    structure = ", ".join(f"{part:g}" for part in row["layer_structure"])
    facts = {
        "content": row["content_hash"],
        "for": row["base_model"],
        "widths": ", ".join(map(str, row["widths"])),
        "build": f"[{structure}] {row['activation']}{', layer norm' if row['layer_norm'] else ''}",
        "trained": counted(row["step"], "step") if row["step"] is not None else None,
        "trained on": row["trained_on"],
        "checkpoint": row["checkpoint_path"],
        "tags": ", ".join(row["tags"]),
        "aliases": ", ".join(row["aliases"]),
        "note": row["note"],
    }
    lines = [row["name"]]
    lines += [f"  {label:<11}{value}" for label, value in facts.items() if value]
    lines += _training_lines(row.get("training"))
    lines += _site_lines(row.get("sites", []), row.get("sidecars", []))
    lines += [f"  {file['state']:<11}{file['path']}" for file in row["files"]]
    return lines
