"""Sidecars: small files that tools put beside a model file. Tells whether they changed, and reads all.

`x.pt` and `x.safetensors` in one folder share their sidecars, which are named after the stem. Their content comes from
other tools and may be anything. A sidecar that cannot be understood is reported.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import itertools
import json
import math
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hnetkit.files import is_absence, is_absent, is_file_at, is_link_elsewhere, mtime_of, read_regular
from hnetkit.library.layouts import folded
from hnetkit.limits import MAX_JSON, Budget, json_size, parse_json
from hnetkit.paths import is_state

Json = dict[str, Any]

INFO, A1111, API_INFO = ".civitai.info", ".json", ".api_info.json"
STABILITY_MATRIX, LORA_MANAGER = ".cm-info.json", ".metadata.json"
TEXTS = (".txt", ".description.txt")
PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
PREVIEWS = tuple(kind + suffix for suffix in PREVIEW_SUFFIXES for kind in ("", ".preview"))
"""In the order of A1111, which tries both names of a suffix before the next suffix."""
SUFFIXES = (INFO, A1111, API_INFO, STABILITY_MATRIX, LORA_MANAGER, *TEXTS, *PREVIEWS)
"""What follows the stem of a model file in the names of all its sidecars."""

A1111_KEYS = ("description", "notes", "activation text", "negative text", "preferred weight", "sd version")

_GENERAL = frozenset({"description", "notes"})  # those of A1111's keys that any JSON may have
_NOTES = frozenset({*A1111_KEYS, "modelId", "modelVersionId", "sha256"})

MAX_TOGETHER = 32 << 20
"""Bytes of memory that all sidecars of one file may take together; the largest real one takes a few MB."""

MAX_TEXT = 1 << 16
"""Characters of one text, and of all tags, that the registry keeps: many links may lead to one large file."""

_ROW_KEYS = (
    "model_id",
    "version_id",
    "looked_up",
    "description",
    "notes",
    "activation_text",
    "negative_text",
    "preferred_weight",
    "sd_version",
    "title",
)
_MOST_ID = 2**63 - 1  # the largest integer that the registry can hold


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A sidecar that was not read, or not wholly.

    Attributes:
        path: of the sidecar.
        reason: one line.
        is_passing: the system could not read it, so another time it may.
    """

    path: Path
    reason: str
    is_passing: bool = False


@dataclass(frozen=True, slots=True)
class Sidecars:
    """The merged content of all sidecars of one stem. None means that no sidecar states a value.

    Attributes:
        civitai_version: Civitai's JSON of the version, from ``.civitai.info`` (or ``.json``). If the file holds the
            whole model, the version that this file belongs to, if that is certain.
        civitai_model: Civitai's JSON of the model, with its ``modelVersions``.
        model_id: at Civitai.
        version_id: at Civitai.
        looked_up: an empty ``.civitai.info``: Civitai was asked and does not know the file.
        description: text or HTML, as stored.
        notes: the user's own.
        activation_text: for the prompt; else the trigger words that a site states, joined by commas.
        negative_text: for the negative prompt.
        preferred_weight: finite.
        sd_version: in the words of the tool that wrote it (``"SD1"``, ``"SD 1.5"``).
        title: the name of the model at its site.
        tags: of the site, StabilityMatrix and LoRA Manager.
        preview: the image that A1111 shows.
        unreadable: sidecars that are too large, not valid JSON, of a shape that no tool writes, or links to files that
            are neither beside the model file nor beside the file that it is a link to; texts that are not UTF-8.
    """

    civitai_version: Json | None
    civitai_model: Json | None
    model_id: int | None
    version_id: int | None
    looked_up: bool
    description: str | None
    notes: str | None
    activation_text: str | None
    negative_text: str | None
    preferred_weight: float | None
    sd_version: str | None
    title: str | None
    tags: tuple[str, ...] | None
    preview: Path | None
    unreadable: tuple[Unreadable, ...]

    def as_row(self) -> dict[str, Any]:
        """Returns the values as JSON-able ones, without Civitai's own records and without empty ones.

        Each text, and all tags together, are cut to `MAX_TEXT` characters. `unreadable` is one text for each sidecar.
        """
        values = {key: getattr(self, key) for key in _ROW_KEYS}
        row = {key: value[:MAX_TEXT] if isinstance(value, str) else value for key, value in values.items()}
        lengths = itertools.accumulate(len(tag) + 1 for tag in self.tags or ())
        tags = [tag for tag, length in zip(self.tags or (), lengths, strict=True) if length <= MAX_TEXT]
        row |= {"tags": tags, "preview": str(self.preview) if self.preview else None}
        row["unreadable"] = [_clean(f"{it.path.name}: {it.reason}") for it in self.unreadable]
        return {key: value for key, value in row.items() if value not in (None, [], False)}


def fingerprints(entries: Iterable[os.DirEntry[str]], stems: Collection[str]) -> dict[str, str]:
    """Tells what the sidecars of model files look like, from the listing of their folder; nothing is opened.

    Args:
        entries: of the folder.
        stems: of the model files.

    Returns:
        For each stem a text that is another one once a sidecar came, went or changed; empty without sidecars.
    """
    marks: dict[str, list[tuple[object, ...]]] = {folded(stem): [] for stem in stems}
    for entry in entries:
        name = folded(entry.name)
        begun = (name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix))
        beside = [marks[stem] for stem in begun if stem in marks]
        if beside and (mark := _mark(entry)) is not None:
            for found in beside:
                found.append(mark)
    return {stem: _digest(marks[folded(stem)]) for stem in stems}


def _mark(entry: os.DirEntry[str]) -> tuple[object, ...] | None:
    """A sidecar's name, size and time; None if it is a link that leads nowhere."""
    try:
        status = os.stat(entry.path)
    except OSError as error:  # it is there: that it cannot be looked at now is a change
        return None if is_absence(error) else (entry.name, error.errno)
    return entry.name, status.st_size, mtime_of(status)


def _digest(marks: list[tuple[object, ...]]) -> str:
    return hashlib.sha256(repr(sorted(marks, key=repr)).encode()).hexdigest()[:32] if marks else ""


def read(model_file: Path) -> Sidecars:
    """Reads all sidecars of a model file. Their content never makes it raise. The model file itself is not read."""
    unreadable: list[Unreadable] = []
    budget = Budget(made=MAX_TOGETHER)
    info, user, api, matrix, manager = (
        payload_of(model_file, suffix, unreadable, budget)
        for suffix in (INFO, A1111, API_INFO, STABILITY_MATRIX, LORA_MANAGER)
    )
    texts = [_text(model_file, suffix, unreadable, budget) for suffix in TEXTS]
    notes = {} if user is None or is_raw(user) else user
    payloads = [payload for payload in (info, user, api) if payload]
    model = next((payload for payload in payloads if _is_model(payload)), None)
    version = next((payload for payload in payloads if _is_version(payload)), None) or _version_of(model, model_file)
    matrix, manager = matrix or {}, manager or {}
    managed = _dict(manager.get("civitai"))
    listed = [payload for payload in (version, model, managed) if payload]
    about = [about for payload in listed for about in (_dict(payload.get("model")), payload)]  # both hold what they say
    return Sidecars(
        civitai_version=version,
        civitai_model=model,
        model_id=_first_id(
            (version or {}).get("modelId"),
            (model or {}).get("id"),
            notes.get("modelId"),
            matrix.get("ModelId"),
            managed.get("modelId"),
        ),
        version_id=_first_id(
            (version or {}).get("id"), notes.get("modelVersionId"), matrix.get("VersionId"), managed.get("id")
        ),
        looked_up=info == {},
        description=_first_text(
            notes.get("description"),
            *texts,
            matrix.get("ModelDescription"),
            manager.get("modelDescription"),
            *(payload.get("description") for payload in about),
        ),
        notes=_first_text(notes.get("notes"), manager.get("notes")),
        activation_text=_first_text(
            notes.get("activation text"),
            _joined(matrix.get("TrainedWords")),
            *(_joined(payload.get("trainedWords")) for payload in listed),
        ),
        negative_text=_first_text(notes.get("negative text")),
        preferred_weight=_number(notes.get("preferred weight")),
        sd_version=_first_text(notes.get("sd version"), matrix.get("BaseModel"), manager.get("base_model")),
        title=_first_text(
            *(_dict(payload.get("model")).get("name") for payload in listed),
            (model or {}).get("name"),
            matrix.get("ModelName"),
            manager.get("model_name"),
        ),
        tags=_all_texts(matrix.get("Tags"), manager.get("tags"), *(payload.get("tags") for payload in about)),
        preview=_preview(model_file, unreadable),
        unreadable=tuple(unreadable),
    )


def beside(model_file: Path) -> dict[str, Path]:
    """Returns the sidecars that a model file has: suffix -> path. They may go where the model file goes.

    Left out are links to files elsewhere, and a ``.json`` that is something else: a ``config.json``, for instance. What
    cannot be looked at counts as there: whoever uses it meets the reason.
    """
    found = {suffix: sidecar(model_file, suffix) for suffix in SUFFIXES}
    return {
        suffix: path
        for suffix, path in found.items()
        if _may_be_file(path)
        and not is_link_elsewhere(path, model_file)
        and (suffix != A1111 or _is_own_json(path, model_file))
    }


def _may_be_file(path: Path) -> bool:
    try:
        return is_file_at(path)
    except OSError:
        return not is_absent(path)


def _is_own_json(path: Path, model_file: Path) -> bool:
    if is_state(os.path.realpath(path)):
        return False
    unreadable: list[Unreadable] = []
    payload = payload_of(model_file, A1111, unreadable, Budget(made=MAX_TOGETHER))
    if payload is None:
        return any(it.is_passing for it in unreadable)
    return is_raw(payload) or is_notes(payload)


def sidecar(model_file: Path, suffix: str) -> Path:
    """Returns the path of a model file's sidecar with this suffix, such as ``".civitai.info"``."""
    return model_file.with_name(model_file.stem + suffix)


# --- files


def _content(path: Path, model_file: Path) -> bytes | None:
    """The bytes of a sidecar; None if it does not exist.

    Raises:
        ValueError: it is too large, not a regular file, or a link to another folder.
        OSError: it cannot be read.
    """
    if is_link_elsewhere(path, model_file):
        raise ValueError("a link to a file elsewhere")
    try:
        return read_regular(path, most=MAX_JSON)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            return None
        raise


def payload_of(model_file: Path, suffix: str, unreadable: list[Unreadable], budget: Budget) -> Json | None:
    """The object in a sidecar; None without a file. An unreadable one is added to `unreadable`."""
    path = sidecar(model_file, suffix)
    try:
        data = _content(path, model_file)
        if data is None:
            return None
        value = parse_json(decoded(data), most=budget.made_left)  # a larger one must not use up the others' budget
    except (OSError, ValueError) as error:
        unreadable.append(_unreadable(path, error))
        return None
    budget.make(json_size(data))
    if isinstance(value, list):  # SD.Next stores the results of a search
        value = next((item for item in value if isinstance(item, dict) and is_raw(item)), value)
    if isinstance(value, dict):
        return value
    unreadable.append(Unreadable(path, "JSON, but nothing that a program writes there"))
    return None


def _text(model_file: Path, suffix: str, unreadable: list[Unreadable], budget: Budget) -> str | None:
    path = sidecar(model_file, suffix)
    try:
        data = _content(path, model_file)
        if data is None:
            return None
        if 4 * len(data) > budget.made_left:  # one rare character makes all of them take four bytes
            raise ValueError("too large")
    except (OSError, ValueError) as error:
        unreadable.append(_unreadable(path, error))
        return None
    budget.make(4 * len(data))
    try:
        return decoded(data)
    except UnicodeDecodeError as error:
        unreadable.append(_unreadable(path, error))
        return data.decode("utf-8-sig", "replace")


def decoded(data: bytes) -> str:
    """The text of a sidecar: UTF-8, or UTF-16 with its mark, as Windows' editors and PowerShell write it."""
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_wide else "utf-8-sig")


def _unreadable(path: Path, error: OSError | ValueError) -> Unreadable:
    if isinstance(error, OSError):
        return Unreadable(path, error.strerror or str(error), is_passing=True)
    if isinstance(error, UnicodeDecodeError):
        return Unreadable(path, "not UTF-8; save it as UTF-8")
    if isinstance(error, json.JSONDecodeError):
        return Unreadable(path, f"not valid JSON: {error}")
    return Unreadable(path, str(error))


def _preview(model_file: Path, unreadable: list[Unreadable]) -> Path | None:
    for path in (sidecar(model_file, suffix) for suffix in PREVIEWS):
        try:
            if is_file_at(path):
                return path
        except OSError as error:
            unreadable.append(_unreadable(path, error))
    return None


# --- Civitai's JSON


def _is_model(payload: Json) -> bool:
    return isinstance(payload.get("modelVersions"), list)


def _is_version(payload: Json) -> bool:
    return not _is_model(payload) and "modelId" in payload and "id" in payload


def is_raw(payload: Json) -> bool:
    """Whether it is an answer of Civitai's API, and not a tool's own notes."""
    return _is_model(payload) or _is_version(payload)


def is_notes(payload: Json) -> bool:
    """Whether it is what tools write about a model. Other files, such as a package.json, have a description too."""
    return bool(payload.keys() & (_NOTES - _GENERAL)) or payload.keys() <= _NOTES


def _version_of(model: Json | None, model_file: Path) -> Json | None:
    """The version that a file belongs to: the only one, or the only one that lists a file with its name."""
    versions = [item for item in (model or {}).get("modelVersions", []) if isinstance(item, dict)]
    if len(versions) > 1:
        versions = [version for version in versions if model_file.name in _file_names(version)]
    return versions[0] if len(versions) == 1 else None


def _file_names(version: Json) -> list[Any]:
    files = version.get("files")
    return [file.get("name") for file in files if isinstance(file, dict)] if isinstance(files, list) else []


# --- values of any shape


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _first_id(*values: Any) -> int | None:
    return next((id for id in map(_id, values) if id is not None), None)


def _id(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    return value if type(value) is int and 0 < value <= _MOST_ID else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _first_text(*values: Any) -> str | None:
    """The first text that is not blank; else the first one; None without any."""
    texts = [_clean(value) for value in values if isinstance(value, str)]
    return next((text for text in texts if text.strip()), texts[0] if texts else None)


def _all_texts(*lists: Any) -> tuple[str, ...] | None:
    """The texts of all lists, each once; None if there is no list."""
    known = [value for value in lists if isinstance(value, list)]
    texts: Iterable[str] = (_clean(item) for value in known for item in value if isinstance(item, str))
    return tuple(dict.fromkeys(text for text in texts if text.strip())) if known else None


def _joined(words: Any) -> str | None:
    texts = _all_texts(words)
    return None if texts is None else ", ".join(texts)


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
