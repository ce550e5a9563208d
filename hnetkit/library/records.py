"""Rows that describe networks: their files, what sidecars and sites say, how they were trained, what they went into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hnetkit.errors import NotFound
from hnetkit.files import is_absent
from hnetkit.library.bakes import bakes_of
from hnetkit.library.known_hashes import remembered_hashes
from hnetkit.library.listing import size_or_state, trained_on
from hnetkit.library.resolve import removed_hint
from hnetkit.library.walking import is_as_scanned, names_of_files
from hnetkit.registry.store import Registry

if TYPE_CHECKING:
    from hnetkit.registry.imported import ImportedFile

Row = dict[str, Any]
_SAID = ("title", "creator", "trigger_words", "copies", "first_seen")  # by the view `library`
_IMPORTED_COLUMNS = ("name", "sha256", "size_bytes", "reference", "reference_sha256")
_FILE_COLUMNS = ("path", "state", "format", "size_bytes", "sha256", "autov1", "warnings")


def gone(registry: Registry, content_hash: str) -> NotFound:
    """Returns the error that the library has a network no more that a page still shows."""
    hint = removed_hint(registry, digits=[content_hash])
    return NotFound("the library has no such network any more", hint=hint or "hnetkit scan, if its file is there")


def with_files(registry: Registry, rows: list[Row]) -> list[Row]:
    """Adds to rows of networks the files that hold them, and the checkpoint that they were trained on."""
    return _described(registry, rows, _held(registry, [row["content_hash"] for row in rows]))


def _held(registry: Registry, content_hashes: list[str]) -> dict[str, list[Row]]:
    """Returns content hash -> the files that hold it."""
    held: dict[str, list[Row]] = {}
    for file in registry.files.holding(content_hashes):
        held.setdefault(file["content_hash"], []).append(file)
    return held


def _described(registry: Registry, rows: list[Row], by_content: Mapping[str, list[Row]]) -> list[Row]:
    checkpoints = _checkpoints(registry)
    contents = [row["content_hash"] for row in rows]
    said = {one.pop("content_hash"): one for one in registry.networks.listing("content_hash", *_SAID, of=contents)}
    imported = registry.imported.by_content([content for content in contents if content not in by_content])
    lost = registry.catalogue.lost()
    hashes = {content: _hashes_of(by_content.get(content, []), imported.get(content, [])) for content in contents}
    places: dict[str, list[Row]] = {}
    for place in registry.mirrors.known(set().union(*hashes.values())):
        places.setdefault(place["sha256"], []).append(place)
    return [
        _with_files(row, by_content.get(content, []), imported.get(content, []), checkpoints, said[content])
        | {"gone": lost.get(content)}
        | {"elsewhere": [place for sha256 in sorted(hashes[content]) for place in places.get(sha256, ())]}
        for content, row in zip(contents, rows, strict=True)
    ]


def _hashes_of(files: list[Row], imported: Iterable[ImportedFile]) -> set[str]:
    """Returns the sha256 of a network's files, also those of which they were converted or came, as far as known."""
    of_files = {file[key] for file in files for key in ("sha256", "source_sha256")}
    told = {sha256 for file in imported for sha256 in (file.sha256, file.reference_sha256)}
    return {sha256 for sha256 in of_files | told if sha256 is not None}


def _checkpoints(registry: Registry) -> dict[str, str]:
    """Returns A1111's hashes of checkpoints -> their files: the old one, and ten digits of the sha256 where known.

    A scan reads only the headers of checkpoints; drawing with one remembers its hash.
    """
    files = registry.files.of_kind("checkpoint")
    remembered = remembered_hashes(file["path"] for file in files if file["sha256"] is None)
    found: dict[str, str] = {}
    for file in files:
        sha256 = file["sha256"] or remembered.get(file["path"])
        found |= {short: file["path"] for short in (sha256 and sha256[:10], file["autov1"]) if short}
    return found


def record(registry: Registry, content_hash: str) -> Row:
    """Returns everything that is known about one network of the registry.

    Raises:
        RegistryError: files hold it, and its row was deleted.
    """
    held = _held(registry, [content_hash])
    (row,) = _with_what_is_said(registry, [registry.networks.of_content(content_hash)], held)
    look_at_files(row, held.get(content_hash, []))
    row["training"] = _training(registry, content_hash)
    row["bakes"] = bakes_of(registry, content_hash)
    return row


def with_what_is_said(registry: Registry, content_hashes: list[str]) -> list[Row]:
    """Returns rows of known networks, as `with_files` does, with what their sidecars and sites say of them."""
    known = registry.networks.of_contents(content_hashes)
    return _with_what_is_said(registry, known, _held(registry, content_hashes))


def _with_what_is_said(registry: Registry, known: list[Row], held: Mapping[str, list[Row]]) -> list[Row]:
    rows = _described(registry, known, held)
    for row in rows:
        files = held.get(row["content_hash"], [])
        said = registry.files.sidecars(file["id"] for file in files).values()
        row["sidecars"] = list(map(_without_gone_preview, said))
        imported = {file[key] for file in row["imported"] for key in ("sha256", "reference_sha256")}
        row["sites"] = registry.catalogue.files_with({file["sha256"] for file in files} | imported)
    return rows


def _without_gone_preview(sidecar: Row) -> Row:
    """Returns what sidecars of a file say, without a picture that went along when the file was moved or removed."""
    preview = sidecar.get("preview")
    return {key: sidecar[key] for key in sidecar if key != "preview"} if preview and is_absent(preview) else sidecar


def look_at_files(row: Row, files: list[Row]) -> None:
    """Holds the files of a network against the disk: ``copies`` is how many there are, however many names they have.

    Of each, ``there`` is whether it is as it was scanned, as far as can be seen; ``same_as`` is the path of the file
    that it is another name of.
    """
    names = names_of_files(files)
    first = {path: paths[0] for paths in names for path in paths}
    there = {file["path"] for file in files if file["state"] != "missing" and is_as_scanned(file)}
    row["copies"] = len(names)
    for file in row["files"]:
        same = first.get(file["path"])
        file["there"], file["same_as"] = file["path"] in there, same if same != file["path"] else None


def _with_files(
    row: Row, files: list[Row], imported: list[ImportedFile], checkpoints: dict[str, str], said: Row
) -> Row:
    present = any(file["state"] == "present" for file in files)
    return {
        **{key: value for key, value in row.items() if key != "id"},
        "name": files[0]["stem"] if files else imported[0].stem if imported else row["name"],
        "own_name": row["name"],
        "size": size_or_state(files[0]["state"], files[0]["size_bytes"]) if files else "missing",
        "trained_on": trained_on(row["sd_checkpoint_name"], row["sd_checkpoint"]),
        **said,
        "checkpoint_path": checkpoints.get(row["sd_checkpoint"]),
        "present": present,
        "files": [{key: file[key] for key in _FILE_COLUMNS} for file in files],
        "imported": [{key: getattr(file, key) for key in _IMPORTED_COLUMNS} for file in imported],
    }


def _training(registry: Registry, content_hash: str) -> Row | None:
    """How a network was trained, if it was trained here: recipe, model, and ancestors, nearest first."""
    training = registry.trainings.of(content_hash)
    if training is None:
        return None
    lineage = registry.trainings.lineage(content_hash)
    names = {row["content_hash"]: row["name"] for row in with_files(registry, registry.networks.of_contents(lineage))}
    return asdict(training) | {"lineage": [{"content_hash": own, "name": names.get(own)} for own in lineage]}
