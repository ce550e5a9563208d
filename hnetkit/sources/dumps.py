"""Look up in a dump of Civitai's records what files are: in one file, without a request to any site.

Two kinds are read: the SQLite database that CivArchive publishes for LoRA Manager (tables `models`, `model_versions`
and `model_files`), and JSON lines of the site's own records, as its API gives them or `hnetkit export` writes them. A
dump is a stranger's file, and may be far larger than memory: a database is asked by its indexes, and a table without
one is read in one pass, as lines are.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hnetkit.errors import FileRefused
from hnetkit.files import READ_FLAGS, not_opened
from hnetkit.formats.archive_kinds import ArchiveKind, archive_kind
from hnetkit.limits import parse_json
from hnetkit.registry.dumps import HINT, MOST_MADE, MOST_RECORD, records_in_database
from hnetkit.sources.civitai import SOURCE, Failed
from hnetkit.sources.civitai_models import BadRecord, CivitaiModel, parse_id, parse_model
from hnetkit.text import argument

MOST_NAMED = 1000
"""Lines without a record, and records that cannot be read, that are named; further ones are only counted."""
_HEAD = 4096  # bytes that tell what kind of file it is
_DIGITS = re.compile(rb'"([0-9a-fA-F]{64}|[0-9a-fA-F]{10})"')


class WantedHashes:
    """Hashes of files, in lower case.

    Attributes:
        sha256s: all of them.
        short: AutoV2, the first ten digits -> each.
    """

    def __init__(self, sha256s: Iterable[str]) -> None:
        self.sha256s = set(sha256s)
        self.short = {sha256[:10]: sha256 for sha256 in self.sha256s}

    def may_be_in(self, line: bytes) -> bool:
        """Whether one of the hashes is in a text of JSON, as a whole SHA-256 or an AutoV2."""
        found = {digits.decode().lower() for digits in _DIGITS.findall(line)}
        return not (found.isdisjoint(self.sha256s) and found.isdisjoint(self.short))

    def versions_of(self, model: CivitaiModel) -> dict[str, int]:
        """Returns the hashes that files of a model have -> the oldest version with each.

        A file without a SHA-256 is compared by its AutoV2.
        """
        found: dict[str, int] = {}
        for version in sorted(model.versions, key=lambda version: version.id):
            for file in version.files:
                autov2 = next((value for kind, value in file.hashes.items() if kind.upper() == "AUTOV2"), "")
                sha256 = self.short.get(autov2) if file.sha256 is None else file.sha256
                if sha256 in self.sha256s:
                    found.setdefault(str(sha256), version.id)
        return found


@dataclass(frozen=True, slots=True)
class Match:
    """A model of a dump with files that were looked for.

    Attributes:
        versions: sha256 of each -> the number of its version.
    """

    model: CivitaiModel
    versions: dict[str, int]


def find_in_dump(
    path: Path, wanted: WantedHashes, failed: Failed, progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[Match]:
    """Yields the models of a dump that have files with wanted hashes.

    Args:
        path: of the dump; it is not changed, and nothing is written beside it.
        wanted: what to look for.
        failed: called with what cannot be read of it.
        progress: called with the bytes of lines that were read, and with all.

    Raises:
        NotFound: there is no such file.
        FileRefused: it is no such dump, or is damaged.
    """
    with _opened(path) as file, _named(failed) as failed:
        beginning = file.read(_HEAD)
        file.seek(0)
        models: Iterator[CivitaiModel]
        if beginning.startswith(b"SQLite format 3\0"):
            records = records_in_database(path, wanted.sha256s, lambda id, why: failed(BadRecord(id, why)))
            models = filter(None, (_parsed(record, failed) for record in records))
        elif beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
            models = _models_of_lines(path, file, wanted, failed, progress)
        elif beginning.startswith(b"PK\3\4"):
            raise FileRefused(f"{path}: a zip, and no dump", hint="unpack it, and give the civitai.sqlite in it")
        elif (kind := archive_kind(beginning)) is not None:
            raise FileRefused(f"{path}: {kind.title}, and no dump", hint=_unpacking(path, kind))
        else:
            raise FileRefused(f"{path}: no dump of Civitai's records", hint=HINT)
        for model in models:
            if versions := wanted.versions_of(model):
                yield Match(model, versions)


def _unpacking(path: Path, kind: ArchiveKind) -> str:
    """Returns the commands that unpack a dump, and then look it up."""
    if kind.tool is None or os.name == "nt":
        return "unpack it, and give the file in it: hnetkit identify --dump FILE"
    unpacked = path.with_suffix("") if path.suffix == kind.suffix else path.with_suffix(".jsonl")
    packed, plain = argument(path, is_path=True), argument(unpacked, is_path=True)
    return f"{kind.tool} -dc {packed} > {plain}, then: hnetkit identify --dump {plain}"


@contextmanager
def _named(failed: Failed) -> Iterator[Failed]:
    """Gives a function that passes on what it is called with to `failed`; of very many, further ones are counted."""
    count = 0

    def passed_on(bad: BadRecord) -> None:
        nonlocal count
        count += 1
        if count <= MOST_NAMED:
            failed(bad)

    yield passed_on
    if (more := count - MOST_NAMED) > 0:
        failed(BadRecord(None, f"further records, or parts of them, that cannot be read ({more:,})", more))


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileRefused(f"{path}: not a regular file", hint=HINT)
        handle = os.open(path, READ_FLAGS)
    except OSError as error:
        raise not_opened(path, error) from error
    with open(handle, "rb") as file:
        yield file


def _parsed(record: Any, failed: Failed) -> CivitaiModel | None:
    id = parse_id(record.get("id")) if isinstance(record, dict) else None
    try:
        model = parse_model(record)
    except Exception as error:
        failed(BadRecord(id, f"its record in the dump makes no sense: {type(error).__name__}"))
        return None
    if model is None:
        failed(BadRecord(None, "left out: a model without a number"))
    return model


# --- JSON lines


def _models_of_lines(
    path: Path, file: BinaryIO, wanted: WantedHashes, failed: Failed, progress: Callable[[int, int], None]
) -> Iterator[CivitaiModel]:
    """Yields the models of lines that hold a wanted hash; the others are not parsed, which would take far longer.

    The first records are, and so are lines that are not whole: it may be no dump, or a damaged one.
    """
    total, good, models = os.fstat(file.fileno()).st_size, 0, 0
    for number, line in _lines(file):
        progress(file.tell(), total)
        if models and line is not None and _WHOLE.fullmatch(line) and not wanted.may_be_in(line):
            continue
        try:
            records = _records(line)
        except ValueError as error:
            if not good:
                raise FileRefused(f"{path}: line {number}: {error}", hint=HINT) from error
            failed(BadRecord(None, f"line {number}: {error}"))
            continue
        good += 1
        models += len(records)
        yield from filter(None, (_parsed(record, failed) for record in records))
    if not models:
        raise FileRefused(f"{path}: holds no record of a model of Civitai", hint=HINT)


_WHOLE = re.compile(rb"\s*(?:\{.*\}|\[.*\])\s*", re.DOTALL)


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yields the numbers of lines, and the lines that are not empty; None for one that is longer than any record."""
    number = 0
    while line := file.readline(MOST_RECORD + 1):
        number += 1
        if len(line) > MOST_RECORD:
            while line and not line.endswith(b"\n"):
                line = file.readline(MOST_RECORD)
            yield number, None
        elif line.strip():
            yield number, line


def _records(line: bytes | None) -> list[Any]:
    """Returns the records of models in a line: one, a page or a list of them, or what an export wrote.

    Raises:
        ValueError: it is none of these.
    """
    if line is None:
        raise ValueError(f"more than {MOST_RECORD >> 20} MB")
    value = parse_json(line, most=MOST_MADE, strict=False)
    if isinstance(value, dict) and isinstance(value.get("items"), list):
        value = value["items"]
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and isinstance(value.get("kind"), str):  # of an export, perhaps of something else
        return [value.get("raw")] if value["kind"] == "model" and value.get("source") == SOURCE else []
    if isinstance(value, dict) and "modelVersions" in value:
        return [value]
    raise ValueError("neither a model nor a list of models")
