"""Sidecars that hnetkit writes: what a site says of a network, what came packed with it, and A1111's own settings.

A sidecar that cannot be understood is never overwritten.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hnetkit.errors import OutputExists
from hnetkit.files import new_file, read_regular
from hnetkit.library.sidecars import (
    A1111,
    A1111_KEYS,
    INFO,
    MAX_TOGETHER,
    PREVIEWS,
    TEXTS,
    Json,
    Unreadable,
    decoded,
    is_notes,
    is_raw,
    payload_of,
    sidecar,
)
from hnetkit.limits import MAX_JSON, Budget, parse_json
from hnetkit.paths import is_state

A1111_UNSET = {"preferred weight": 0, "sd version": "Unknown"}
"""What A1111's editor stores for no choice; for texts that is an empty one."""


def write_info(model_file: Path, version: Mapping[str, Any], *, replace: bool = False) -> Path:
    """Writes ``<stem>.civitai.info`` and returns its path. An empty `version` means that Civitai lacks the file.

    Raises:
        OutputExists: the sidecar exists and `replace` is False.
    """
    path = sidecar(model_file, INFO)
    with new_file(path, overwrite=replace) as file:
        file.write(_to_json(version))
    return path


def write_preview(model_file: Path, data: bytes, *, replace: bool = False) -> Path | None:
    """Writes ``<stem>.preview.<suffix>`` with the suffix that fits the bytes of `data`.

    Returns:
        The path; None, and nothing is written, if `data` is not a PNG, JPEG, WebP or GIF.

    Raises:
        OutputExists: the preview exists and `replace` is False.
    """
    suffix = picture_suffix(data)
    if suffix is None:
        return None
    path = sidecar(model_file, f".preview{suffix}")
    with new_file(path, overwrite=replace) as file:
        file.write(data)
    return path


def write_as_packed(model_file: Path, suffix: str, data: bytes) -> Path:
    """Writes a sidecar that came in one archive with a model file, and returns its path.

    Args:
        model_file: of the library.
        suffix: one of `SUFFIXES`. A picture gets that of its content.
        data: the sidecar, byte for byte.

    Raises:
        OutputExists: another one exists; it is kept.
        ValueError: the bytes are not what such a sidecar holds, or are too many.
    """
    if suffix in PREVIEWS:
        suffix = _preview_suffix(suffix, data)
    elif len(data) > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON:,} bytes")
    elif suffix in TEXTS:
        if b"\0" in data and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("not a text")
    else:
        value = parse_json(decoded(data), most=MAX_TOGETHER)
        if not isinstance(value, dict) or (suffix == A1111 and not (is_raw(value) or is_notes(value))):
            raise ValueError("JSON, but nothing that a program writes beside a model")
    path = sidecar(model_file, suffix)
    if is_state(os.path.realpath(path)):
        raise ValueError("its name is that of hnetkit's own settings")
    with contextlib.suppress(OSError, ValueError):
        if read_regular(path, most=len(data)) == data:
            return path
    with new_file(path) as file:
        file.write(data)
    return path


def _preview_suffix(suffix: str, data: bytes) -> str:
    """The suffix of a picture by its content, with the ``.preview`` that its name may have."""
    kind, found = os.path.splitext(suffix)[0], picture_suffix(data)
    if found is None:
        raise ValueError("not a PNG, JPEG, WebP or GIF")
    return suffix if suffix.replace(".jpg", ".jpeg").endswith(found) else kind + found


def merge_a1111(model_file: Path, values: Mapping[str, Any]) -> Path | None:
    """Adds those of A1111's keys to ``<stem>.json`` that are not filled in yet; every other key stays as it is.

    Args:
        model_file: whose sidecar it is.
        values: by A1111's names (`A1111_KEYS`); other keys and None are ignored.

    Returns:
        The path of the file, which holds the values or the user's own; None if there is nothing to write, or if
        `change_a1111` leaves the file alone.
    """

    def filled(existing: Json) -> Json:
        for key in A1111_KEYS:
            if values.get(key) is not None and existing.get(key) in (None, "", A1111_UNSET.get(key)):
                existing[key] = values[key]
        return existing

    try:
        return change_a1111(model_file, filled)
    except OutputExists:
        return None


def change_a1111(model_file: Path, change: Callable[[Json], Json]) -> Path | None:
    """Changes ``<stem>.json``, where A1111 keeps what its user says of a network.

    Args:
        model_file: whose sidecar it is.
        change: makes what the file is to hold of what it holds, {} where there is none.

    Returns:
        The path of the file; None if there is none and nothing to write.

    Raises:
        OutputExists: the file is raw Civitai JSON, other settings (hnetkit's own, another program's), invalid,
            write-protected, another user's, or a link elsewhere: it is left alone.
    """
    path = sidecar(model_file, A1111)
    if is_state(os.path.realpath(path)):  # a network called config, in a library that is the home folder
        raise refuse_to_touch(path, "hnetkit's own settings")
    unreadable: list[Unreadable] = []
    existing = payload_of(model_file, A1111, unreadable, Budget(made=MAX_TOGETHER))
    if unreadable:
        raise refuse_to_touch(path, unreadable[0].reason)
    if existing and (is_raw(existing) or not is_notes(existing)):
        raise refuse_to_touch(path, "Civitai's record" if is_raw(existing) else "settings of another program")
    changed = change(dict(existing or {}))
    if changed != (existing or {}):
        try:
            data = _to_json(changed)
        except RecursionError as error:  # some readable values are nested too deeply to be written
            raise refuse_to_touch(path, "nested too deeply") from error
        replace(path, data, is_new=existing is None)
    return path if changed or existing is not None else None


def refuse_to_touch(path: Path, reason: str) -> OutputExists:
    """Returns the error for a sidecar that is left alone."""
    return OutputExists(f"{path}: {reason}, and is left alone", hint="give that file another name, and try again")


def replace(path: Path, data: bytes, *, is_new: bool) -> None:
    """Writes a sidecar in place of the one that is there; a link to a file beside it stays a link.

    Args:
        is_new: whether none is there.

    Raises:
        OutputExists: it may not be replaced, or `is_new` is wrong.
    """
    target = os.path.realpath(path)
    if not is_new and not _may_replace(target):
        raise refuse_to_touch(path, "write-protected, or another person's")
    with new_file(target, overwrite=not is_new) as file:
        file.write(data)


def _may_replace(path: str) -> bool:
    """Whether a file may be replaced: it is not write-protected, and its owner stays the same."""
    status = os.stat(path)
    is_own = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
    return is_own and bool(status.st_mode & stat.S_IWUSR)


def picture_suffix(data: bytes) -> str | None:
    """Returns the suffix that fits the bytes of an image: ``.png``, ``.jpeg``, ``.webp``, ``.gif``, or None."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if data.startswith(b"\xff\xd8\xff"):
        return ".jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return ".gif" if data[:6] in (b"GIF87a", b"GIF89a") else None


def _to_json(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(value), ensure_ascii=False)
    most = 4 * len(text) + (1 << 16)  # indentation of deeply nested values could take a million times more
    lines, size = [], 0
    for line in json.JSONEncoder(indent=4, ensure_ascii=False).iterencode(dict(value)):
        lines.append(line)
        size += len(line)
        if size > most:
            break
    else:
        text = "".join(lines)
    # half a surrogate pair cannot be UTF-8; its escape is JSON's own and reads back as it was
    return text.encode("utf-8", "backslashreplace")
