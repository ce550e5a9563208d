"""Export the library's knowledge as JSON lines and import it on another machine.

An export holds what networks are, what prompts call them, where their files came from, tags, notes and aliases, the
sites' records, and subscriptions; no files or paths. By it `repair` fetches the networks on the other machine.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import PurePath
from typing import IO, Any, cast

from hnetkit.errors import DiskFull, HnetkitError, OutputExists, RegistryError, UsageError, failure_of
from hnetkit.files import new_file, not_opened, refuse_all_but
from hnetkit.formats.archive_kinds import archive_kind
from hnetkit.library.examining import Progress
from hnetkit.library.library import AnyPath, Library
from hnetkit.library.prompt_names import require_alias
from hnetkit.limits import parse_json
from hnetkit.registry.catalogue import repo_of
from hnetkit.registry.columns import text_of
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import SOURCE
from hnetkit.sources.civitai_models import parse_model, parts_left_out
from hnetkit.sources.export_shapes import MOST_FILES, MOST_NAME, SHAPES, is_sha256
from hnetkit.sources.hub_plans import hub_item, store_items, without_listings
from hnetkit.sources.huggingface import SOURCE as HUB
from hnetkit.sources.huggingface import HubFile, parse_repo
from hnetkit.sources.single_files import References
from hnetkit.sources.subscriptions import as_stored, of_stored
from hnetkit.sources.sync import store_model
from hnetkit.text import argument, counted, shorten, size_text

VERSION = 1
MAX_LINE = 32 << 20
"""Bytes; a site's record of the largest model takes a few MB."""
MOST_LINES = 500_000
"""Lines read, empty ones included: the import keeps all others from writing into the registry."""
MOST_FAILURES = 1000
"""Failed lines that are named; further ones are only counted."""
MOST_MESSAGE = 300
"""Characters of the message for a failed line."""

STEP_S = 0.5
"""Seconds of a transaction: what an interruption loses."""

_NAMED = 3  # omitted parts of one line that its message names
_HEAD = 4096  # bytes that tell a compressed file
_HINT = "give a file that `hnetkit export` wrote"
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ImportReport:
    """Result of an import.

    Attributes:
        counts: kind -> number of records imported, completely or in part.
        failures: one message for each line that was not imported completely; the first ones of very many.
        failed: number of such lines.
        fetchable: number of networks in no file here that `repair` can fetch.
        without_source: number of those of which no source is known.
    """

    counts: Mapping[str, int]
    failures: tuple[str, ...]
    failed: int
    fetchable: int = 0
    without_source: int = 0


def export_records(registry: Registry) -> Iterator[dict[str, Any]]:
    """Yields all records of a library; each has a ``kind``, and the first is the header."""
    networks, models, subscriptions = (
        registry.networks.rows(),
        [row for row in registry.catalogue.models() if not _is_folder(row)],
        registry.subscriptions.rows(),
    )
    yield {"kind": "hnetkit", "version": VERSION, "records": len(networks) + len(models) + len(subscriptions)}
    files, lost = _files(registry), registry.catalogue.lost()
    for row in networks:
        held = files.get(row["content_hash"], [])
        hashes = {file[key] for file in held for key in ("sha256", "reference_sha256")} - {None}
        record = {"kind": "network"} | {key: row[key] for key in SHAPES["network"] if key not in ("files", "mirrors")}
        yield record | {
            "sha256": sorted({file["sha256"] for file in held}),
            "files": held,
            "gone": lost.get(row["content_hash"]),
            "mirrors": registry.mirrors.of(hashes),
        }
    of_repos = _hub_files(registry)
    for row in models:
        raw = without_listings(registry.catalogue.raw(row["source"], row["remote_id"]))
        about = {"kind": "model", "source": row["source"], "id": row["remote_id"]}
        told = {"files": of_repos.get(row["remote_id"], [])} if row["source"] == HUB else {}
        yield about | {"state": row["state"], "state_since": row["state_since"], "raw": raw} | told
    for row in subscriptions:
        yield {"kind": "subscription", "name": row["name"], "filters": row["filters"]}


def _files(registry: Registry) -> dict[str, list[dict[str, Any]]]:
    """Returns content hash -> its files, best first: those of the library, or else those that an import told of."""
    references = References(registry)
    found: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for file in registry.files.of_networks():
        name = text_of(PurePath(file["path"]).name)
        reference, sha256 = references.of(file)
        record = {"name": name} | {key: file[key] for key in ("sha256", "autov1", "size_bytes")}
        record |= {"reference": reference, "reference_sha256": sha256}
        found.setdefault(file["content_hash"], {}).setdefault((name, file["sha256"]), record)
    told = registry.imported.by_content()
    return {content: list(files.values()) for content, files in found.items()} | {
        content: [{key: value for key, value in asdict(file).items() if key != "content_hash"} for file in files]
        for content, files in told.items()
    }


def _is_folder(model: dict[str, Any]) -> bool:
    """Whether a model is a folder of a repository, which the files of this tell of."""
    return bool(model["source"] == HUB and repo_of(model["remote_id"]) != model["remote_id"])


def _hub_files(registry: Registry) -> dict[str, list[dict[str, Any]]]:
    """Returns repository -> the files that the catalog knows: its record has none, as Civitai's have."""
    keys = {"commit": "version_id", "path": "file_name", "sha256": "sha256", "size_bytes": "size_bytes"}
    found: dict[str, list[dict[str, Any]]] = {}
    for file in registry.catalogue.files(source=HUB):
        told = found.setdefault(repo_of(file["model_id"]), [])
        if len(told) < MOST_FILES:
            told.append({key: file[column] for key, column in keys.items()})
    return found


def import_records(
    registry: Registry, lines: Iterable[str | bytes], *, came: Callable[[int], None] = lambda count: None
) -> ImportReport:
    """Imports what `export_records` yielded, and keeps what is known here already. A bad line does not stop the others.

    Unusable parts of a good line are omitted and reported: odd parts of a site's record, and an alias that
    ``tag --alias`` would refuse, since it could hide another network's name or hash. So are a note and a subscription
    that are other ones here, and that an export has fewer records than its header tells. What was imported before an
    interruption stays, and the same import takes in the rest.

    Args:
        registry: stores the records, in small steps.
        lines: as text, or as bytes of UTF-8.
        came: called with the size of each line once it is read.

    Raises:
        HnetkitError: the first line is not the header of an export; nothing was imported.
        RegistryError, DiskFull: nothing more can be stored.
    """
    found = _Import(registry)
    numbered = enumerate(lines, 1)
    is_more = True
    while is_more:
        until = time.monotonic() + STEP_S
        is_more = False
        with registry.write():
            for number, line in numbered:
                if number > MOST_LINES:
                    found.fail(f"line {number}: more lines than any export has; left out from here on", is_first=True)
                    found.left = 0
                    break
                found.take(number, line)
                came(len(line))
                if time.monotonic() > until:
                    is_more = True
                    break
    found.end()
    if not found.counts and not found.failed:
        raise HnetkitError("nothing to import: it is empty", hint=_HINT)
    found.counts.pop("hnetkit", None)
    _complete_references(registry)
    return ImportReport(found.counts, tuple(found.failures), found.failed, *registry.imported.counts())


def _complete_references(registry: Registry) -> None:
    """Stores where files came from of which an older export does not tell it, where the sites' records do."""
    untold = registry.imported.without_reference()
    if not untold:
        return
    references = References(registry)
    with registry.write():
        for file in untold:
            if (reference := references.by_sha256(file.sha256)) is not None:
                known = replace(file, reference=reference, reference_sha256=file.sha256)
                registry.imported.put(registry.networks.id_of(file.content_hash), asdict(known))


@dataclass
class _Import:
    """An import under way, one line after another; its lines are taken inside `registry.write()`.

    Attributes:
        told: records of the export whose lines are read, by its header; older ones tell none.
        left: those of them that are still to come.
    """

    registry: Registry
    told: int = 0
    left: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    failed: int = 0

    def take(self, number: int, line: str | bytes) -> None:
        """Stores the record of a line.

        Raises:
            HnetkitError: it is the first one, and not the header of an export.
            RegistryError, DiskFull: nothing can be stored.
        """
        if not line.strip():
            return
        is_first = not self.counts and not self.failed
        try:
            self.left -= 1
            record = _parse_line(line, is_first=is_first)
            if record["kind"] == "hnetkit":
                self.left += 1
                self.end()
                self.told = self.left = record.get("records") or 0
            with self.registry.part():
                left_out = _import_record(self.registry, record)
            self.counts[record["kind"]] = self.counts.get(record["kind"], 0) + 1
            wrong = _left_out_message(left_out) if left_out else None
        except (RegistryError, DiskFull):
            raise
        except Exception as error:
            failure = failure_of(error, "this line")
            if is_first:
                raise type(failure)(f"line {number}: {failure}", hint=failure.command_hint) from error
            wrong = str(failure)
        if wrong is not None:
            self.fail(f"line {number}: {shorten(wrong, MOST_MESSAGE)}")

    def end(self) -> None:
        """Reports that an export ended before the last of its records: nothing else tells that it was cut at a line."""
        if self.left > 0:
            came = f"{self.told - self.left} of its {counted(self.told, 'record')}"
            self.fail(f"the export ends after {came}: it was cut short, or lines were taken out of it", is_first=True)
        self.told = self.left = 0

    def fail(self, message: str, *, is_first: bool = False) -> None:
        self.failed += 1
        if is_first:
            self.failures.insert(0, message)
        elif self.failed <= MOST_FAILURES:
            self.failures.append(message)


def _left_out_message(parts: list[str]) -> str:
    count = f" {len(parts):,}, of which the first are" if len(parts) > _NAMED else ""
    return f"left out{count}: {'; '.join(parts[:_NAMED])}"


def _parse_line(line: str | bytes, *, is_first: bool) -> Record:
    if is_first and isinstance(line, bytes):
        _refuse_other_forms(line)
    if len(line) > MAX_LINE:
        raise HnetkitError(f"longer than {size_text(MAX_LINE)}", hint=_HINT)
    try:
        record = parse_json(line)
    except ValueError as error:
        raise HnetkitError(f"not JSON: {error}", hint=_HINT) from error
    if not isinstance(record, dict):
        raise HnetkitError("not a record of hnetkit", hint=_HINT)
    kind = record.get("kind")
    if not isinstance(kind, str) or (is_first and kind != "hnetkit"):
        raise HnetkitError("not a record of hnetkit", hint=_HINT)
    if kind not in SHAPES:
        raise HnetkitError(f"a record of an unknown kind: {shorten(kind)}", hint="pip install --upgrade hnetkit")
    if kind == "hnetkit" and record.get("version") != VERSION:  # also later headers: concatenated exports are fine
        version = shorten(record.get("version"))
        raise HnetkitError(f"unknown format version {version}", hint="pip install --upgrade hnetkit")
    for key, (is_fit, what) in SHAPES[kind].items():
        if not is_fit(record.get(key)):
            raise HnetkitError(f"a {kind} whose {key} is not {what}", hint=_HINT)
    return record


def _refuse_other_forms(beginning: bytes) -> None:
    """Raises HnetkitError if an export was compressed, or written by a shell in another encoding."""
    kind = archive_kind(beginning[:_HEAD])
    if kind is not None and kind.tool is not None:
        raise HnetkitError(f"compressed by {kind.tool}", hint=f"{kind.tool} -dc FILE | hnetkit import -")
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        shell = "Get-Content FILE | Set-Content -Encoding utf8 NEW, in PowerShell, then hnetkit import NEW"
        hint = shell if os.name == "nt" else "iconv -f UTF-16 -t UTF-8 FILE | hnetkit import -"
        raise HnetkitError("UTF-16, as PowerShell's > writes it, and an export is UTF-8", hint=hint)


def _import_record(registry: Registry, record: Record) -> list[str]:
    """Stores a checked record of a known kind, and returns what was omitted of it."""
    if record["kind"] == "network":
        return _import_network(registry, record)
    if record["kind"] == "model":
        return _import_model(registry, record)
    if record["kind"] == "subscription":
        return _import_subscription(registry, record)
    return []


def _import_network(registry: Registry, record: Record) -> list[str]:
    if not registry.networks.is_known(record["content_hash"]):
        registry.networks.put({**dict.fromkeys(SHAPES["network"]), **record})
    id = registry.networks.id_of(record["content_hash"])
    tags, aliases = ([word for word in record.get(key) or () if word] for key in ("tags", "aliases"))
    registry.networks.add_tags(id, tags)
    files = _files_told(record)
    for file in files:
        registry.imported.put(id, file)
    for mirror in record.get("mirrors") or ():
        registry.mirrors.take_in(mirror)
    left_out = []
    note, known = record.get("note"), registry.networks.note_of(id)
    if note and known is None:
        registry.networks.set_note(id, note)
    elif note and text_of(note) != known:
        name = argument(PurePath(files[0]["name"]).stem if files else record["name"])
        left_out.append(f"the note of {name}, which has another one here: {note}")
    for alias in aliases:
        try:
            require_alias(registry, alias, record["content_hash"])
        except UsageError as error:
            left_out.append(str(error))
            continue
        registry.networks.set_alias(id, alias)
    return left_out


def _import_subscription(registry: Registry, record: Record) -> list[str]:
    name, filters = record["name"], as_stored(of_stored(record["filters"]))
    known = registry.subscriptions.put_new(name, filters)
    if as_stored(of_stored(known)) == filters:
        return []
    return [f"the filters {argument(name)}, which are others here: {json.dumps(filters)}"]


def _files_told(record: Record) -> list[dict[str, Any]]:
    """Returns the files of a network that an export tells of; older ones tell only their hashes."""
    if "files" in record:
        return record["files"] or []
    hashes = record.get("sha256")
    known = filter(is_sha256, hashes if isinstance(hashes, list) else ())
    return [{"name": f"{record['name'][:MOST_NAME]}.pt", "sha256": sha256} for sha256 in known]


def _import_model(registry: Registry, record: Record) -> list[str]:
    source, raw = record["source"], record["raw"]
    model = parse_model(raw) if source == SOURCE else None
    repo = parse_repo(raw) if source == HUB else None
    id = str(model.id) if model is not None else repo.name if repo is not None else None
    if id is None or record.get("id") not in (None, id):
        raise HnetkitError(f"not a record of a model of {shorten(source)}, or of another model", hint=_HINT)
    if registry.catalogue.model(source, id) is None:
        if model is not None:
            store_model(registry, model)
        elif repo is not None:
            files = record.get("files") or ()
            items = [hub_item(replace(repo, commit=file["commit"]), _hub_file(file)) for file in files]
            store_items(registry, repo, items, is_told=True)
        since = record.get("state_since")
        registry.catalogue.set_model_state(source, id, record.get("state") or "listed", since=since)
        registry.catalogue.mark_told(source, id)
    return [bad.reason.removeprefix("left out: ") for bad in parts_left_out(model)] if model is not None else []


def _hub_file(told: Mapping[str, Any]) -> HubFile:
    return HubFile(text_of(told["path"]), told.get("size_bytes"), told.get("sha256"))


# --- files

MOST = 2 << 30
"""Bytes of an import; an export of ten thousand networks has about a hundredth of them."""
_IN_MEMORY, _PIECE = 16 << 20, 1 << 20  # bytes
_BEGINNING = b'{"kind": "hnetkit"'  # of an export: only a file that begins so may be replaced


def export_library(library: Library, path: AnyPath, *, overwrite: bool = False) -> int:
    """Writes a library's records as JSON lines, and returns their number.

    Args:
        library: to export.
        path: of the new file.
        overwrite: replace an earlier export.

    Raises:
        OutputExists: the file is there and may not be replaced, or is of another kind, or has records while the library
            has none: under another home it is another one than a person thinks.
        DiskFull: there is no room for it; nothing half-written is left.
    """
    refuse_all_but(_BEGINNING, path, overwrite=overwrite)
    had_records = overwrite and _has_records(path)
    count = -1  # the header does not count
    with new_file(os.path.realpath(path) if overwrite else path, overwrite=overwrite) as out:  # a link stays one
        for record in export_records(library.registry):  # one at a time: each may be large
            out.write(f"{json.dumps(record, ensure_ascii=True)}\n".encode())
            count += 1
        if had_records and not count:
            empty = f"the library is empty, as {library.registry.path} says"
            raise OutputExists(
                f"{os.fspath(path)}: an export with records, and {empty}", hint="move it away to replace it"
            )
    return count


def _has_records(path: AnyPath) -> bool:
    """Whether an earlier export holds more than its header."""
    try:
        with open(path, "rb") as file:
            return len(list(islice(file, 2))) > 1
    except FileNotFoundError:
        return False


def import_library(
    library: Library, source: AnyPath | IO[bytes], *, progress: Progress = lambda done, total: None
) -> ImportReport:
    """Imports what `export_library` wrote; see `import_records`.

    Args:
        library: to import into.
        source: a path, or an open file such as a pipe.
        progress: called with the bytes imported, and of how many.

    Raises:
        HnetkitError: the first line is not the header of an export; nothing was imported.
        NotFound: there is no such file.
        UsageError: it is larger than any export.
        RegistryError, DiskFull: nothing more can be stored.
    """
    done = 0

    def came(count: int) -> None:
        nonlocal done
        done += count
        progress(done, max(total, done))

    with ExitStack() as stack:
        given = stack.enter_context(_opened(source)) if isinstance(source, str | os.PathLike) else source
        whole = stack.enter_context(_buffered(given))
        start = whole.tell()
        whole.seek(0, os.SEEK_END)
        total = whole.tell() - start
        whole.seek(start)
        return import_records(library.registry, _lines(whole), came=came)


def _opened(path: AnyPath) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise not_opened(path, error) from error


@contextmanager
def _buffered(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Gives a complete file: reads a pipe to its end first, so that the registry is not locked meanwhile."""
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        if os.fstat(file.fileno()).st_size > MOST:
            raise _too_large()
        yield file
        return
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as whole:
        left = MOST
        while piece := file.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise _too_large()
            whole.write(piece)
        whole.seek(0)
        yield cast(IO[bytes], whole)


def _too_large() -> UsageError:
    return UsageError(f"larger than {size_text(MOST)}, as no export is", hint=_HINT)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yields the lines of a file, and of a line that is far too long only its beginning."""
    while line := file.readline(MAX_LINE + 2):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n") and (line := file.readline(MAX_LINE + 2)):
            pass
