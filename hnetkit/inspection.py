"""Inspection of a file, as one row for `inspect` and the library's scan, and validation of a network's values."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

from hnetkit.errors import FileChanged, FileRefused, HnetkitError, NotFound, failure_of
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import FileIdentity, identify, is_sparse, load, translating_unforeseen
from hnetkit.hashes import FileHashes, autov1_of, damaged_parts, hash_file
from hnetkit.network import ITEM_SIZE, Hypernetwork, TensorRef

Verdict = Literal["ok", "warnings", "refused", "other"]

_FACTS: Mapping[str, Callable[[Hypernetwork], Any]] = {
    "widths": lambda net: net.widths,
    "layer_structure": lambda net: net.layer_structure,
    "activation": lambda net: net.activation or "linear",
    "layer_norm": lambda net: net.layer_norm,
    "activate_output": lambda net: net.activate_output,
    "dropout": lambda net: net.dropout,
    "dtype": lambda net: net.dtype,
    "parameters": lambda net: net.parameters,
    "base_model": lambda net: net.base_model,
    "step": lambda net: net.step,
    "sd_checkpoint": lambda net: _text(net.metadata.get("sd_checkpoint")),
    "sd_checkpoint_name": lambda net: _text(net.metadata.get("sd_checkpoint_name")),
    "metadata": lambda net: dict(net.metadata),
    "source_sha256": lambda net: net.source_sha256,
}
"""Key of a row -> what it says of a network; None for other files."""

_LARGEST_FP16 = 65504.0
_HOLE = 4096  # bytes: what disks and file systems lose at least


@dataclass(frozen=True, slots=True)
class Examination:
    """What a file holds.

    Attributes:
        path: as given.
        size_bytes: of the file.
        kind: ``"hypernetwork"`` or a key of `hnetkit.formats.reading.TITLES`.
        verdict: ``"ok"``, ``"warnings"`` (usable, but with warnings), ``"refused"`` (unsafe, damaged, or not
            computable), ``"other"`` (recognized as another kind of file).
        reason: one line: why it is refused or what it is instead; None for a usable network.
        refusal: the same as an error with exit code and hint.
        hashes: None if they were not requested, and for sparse files.
        network: the network, None without a usable one. Its tensors can be read until its file is closed.
        facts: about the network, as JSON-able values.
    """

    path: str
    size_bytes: int
    kind: str
    verdict: Verdict
    refusal: HnetkitError | None
    hashes: FileHashes | None
    network: Hypernetwork | None
    facts: Mapping[str, Any]

    @property
    def reason(self) -> str | None:
        return str(self.refusal) if self.refusal else None

    def moved(self, path: str | os.PathLike[str]) -> Examination:
        """Returns the examination of the same file under another name, which is the network's if it has none itself."""
        if self.network is None:
            return replace(self, path=os.fspath(path))
        net = replace(self.network, path=os.fspath(path))
        return replace(self, path=os.fspath(path), network=net, facts={**self.facts, "name": net.name})

    def as_row(self) -> dict[str, Any]:
        """Returns everything as JSON-able values; for other files the keys of a network are None."""
        row: dict[str, Any] = {
            "path": self.path,
            "name": PurePath(self.path).stem,
            "format": None,
            "kind": self.kind,
            "verdict": self.verdict,
            "reason": self.reason,
            "size_bytes": self.size_bytes,
            "sha256": self.hashes.sha256 if self.hashes else None,
            "autov1": self.hashes.autov1 if self.hashes else None,
            "content_hash": self.hashes.content_hash if self.hashes else None,
        }
        return {**row, **self.facts}


def _network_row(net: Hypernetwork | None) -> dict[str, Any]:
    if net is None:
        return {**dict.fromkeys(_FACTS), "warnings": []}
    facts = {key: fact(net) for key, fact in _FACTS.items()}
    return {"name": net.name, "format": net.format, **facts, "warnings": list(net.warnings)}


class KnownHashes:
    """A thread-safe cache of file hashes: each content is read once, however many links lead to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[tuple[object, ...], threading.Lock] = {}
        self._known: dict[tuple[object, ...], FileHashes] = {}

    def of(self, file: OpenFile, net: Hypernetwork | None, *, sha256: str | None = None) -> FileHashes:
        """Returns the hashes of an open file; see `hash_file`."""
        if file.content is None:
            return hash_file(file, net, sha256=sha256)
        key = (*file.content, net is None)
        with self._lock:
            own = self._locks.setdefault(key, threading.Lock())
        with own:  # another thread may be reading the same content
            if key not in self._known:
                self._known[key] = hash_file(file, net, sha256=sha256)
            return self._known[key]


def examine(
    path: str | os.PathLike[str],
    *,
    hashes: bool = True,
    whole: bool = True,
    sha256: str | None = None,
    before_read: Callable[[], None] | None = None,
    known: KnownHashes | None = None,
) -> Examination:
    """Examines a file, which is opened once. Its content never makes this raise.

    Args:
        path: any file.
        hashes: whether to compute any.
        whole: whether to read all bytes of a file that holds no usable network, for its sha256. If not, little more
            than its header is read.
        sha256: of the file, if it is known already.
        before_read: called before every read; an exception from it ends the examination.
        known: cache of the hashes of files that were read through other links.

    Raises:
        NotFound: no such file.
        FileRefused: it cannot be opened, or it changed meanwhile.
    """
    with OpenFile(path, before_read=before_read) as file:
        return examine_open(file, hashes=hashes, whole=whole, sha256=sha256, known=known)


def examine_open(
    file: OpenFile,
    *,
    hashes: bool = True,
    whole: bool = True,
    sha256: str | None = None,
    known: KnownHashes | None = None,
) -> Examination:
    """Examines a file that is open already; see `examine`.

    Raises:
        FileRefused: it changed meanwhile.
    """
    cache = known or KnownHashes()

    def hashes_of(found: FileIdentity) -> FileHashes:
        if found.network is None and not whole:
            autov1 = autov1_of(file) if found.kind == "checkpoint" else None  # networks state it of theirs
            return FileHashes(sha256, autov1, None)
        return cache.of(file, found.network, sha256=sha256)

    with translating_unforeseen(file):
        found = identify(file)
        wanted = hashes and not is_sparse(file)
        try:
            with translating_unforeseen(file):
                facts = _network_row(found.network)  # may read biases, so the file must be open
                read = hashes_of(found) if wanted else None
        except FileChanged:
            raise
        except FileRefused as refusal:  # the file's own hashes are still worth knowing
            found, facts = FileIdentity(None, refusal), _network_row(None)
            read = hashes_of(found) if wanted else None
        return Examination(
            path=file.path,
            size_bytes=file.size,
            kind=found.kind,
            verdict=_verdict(found.network, found.kind),
            refusal=found.refusal,
            hashes=read,
            network=found.network,
            facts=facts,
        )


def _verdict(net: Hypernetwork | None, kind: str) -> Verdict:
    if net is not None:
        return "warnings" if net.warnings else "ok"
    return "refused" if kind in ("hypernetwork", "unknown", "empty", "zeros") else "other"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings of `validate`.

    Attributes:
        problems: faults that make the network unusable, one line each.
        warnings: oddities, one line each.
        untrained: widths whose MLPs training never changed.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    untrained: tuple[int, ...]


def validate(net: Hypernetwork) -> CheckReport:
    """Reads every value of a network and reports faults and oddities."""
    problems, warnings = [], list(net.warnings)
    for part in damaged_parts(net):
        problems.append(f"{part}: its bytes changed since it was saved: they do not match its checksum")
    largest = 0.0
    for width, side, key, tensor in net.each_tensor():
        name = f"{width}.{side}.{key}"
        bad, peak, zeros = _scan_values(tensor)
        largest = max(largest, peak)
        if bad:
            problems.append(f"{name}: {bad} of {tensor.numel} values are not finite")
        if peak and zeros * ITEM_SIZE[tensor.dtype] >= _HOLE:
            warnings.append(f"{name}: {zeros:,} values in a row are 0, as a failed copy or disk leaves them")
    untrained = tuple(width for width in net.widths if not net.is_trained(width))
    if untrained == tuple(net.widths):
        warnings.append("never trained: every bias is 0")
    elif untrained:
        warnings.append(f"never trained at width {', '.join(map(str, untrained))}: every bias is 0")
    if largest > _LARGEST_FP16:
        warnings.append(f"values up to {largest:g} do not fit fp16; compute it in bf16 or fp32")
    return CheckReport(tuple(problems), tuple(warnings), untrained)


def validate_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], HnetkitError | None]:
    """Reads every value of a file; returns its verdict as a row, and the failure if it cannot be used.

    Raises:
        NotFound: there is no such file.
    """
    name = os.fspath(path)
    try:
        report = validate(load(name))
    except NotFound:
        raise
    except Exception as error:
        failure = failure_of(error, name)
        return {"path": name, "verdict": "refused", "problems": [str(failure)], "warnings": []}, failure
    verdict = "refused" if report.problems else "warnings" if report.warnings else "ok"
    row = {"path": name, "verdict": verdict, "problems": list(report.problems), "warnings": list(report.warnings)}
    if not report.problems:
        return row, None
    more = f" and {len(report.problems) - 1} more" if len(report.problems) > 1 else ""
    return row, FileRefused(f"{name}: {report.problems[0]}{more}", hint="get the file again, or an earlier save of it")


def _scan_values(tensor: TensorRef, *, step: int = 1 << 20) -> tuple[int, float, int]:
    """Returns the number of values that are not finite, the largest finite magnitude, and the longest row of zeros.

    Reads in steps, so that a row of zeros that lies in several is counted as its longest part.
    """
    import numpy as np

    bad, largest, zeros = 0, 0.0, 0
    for values in _values(tensor, step):
        if values.size - np.count_nonzero(values) > zeros:
            ends = np.concatenate(([-1], np.flatnonzero(values), [values.size]))
            zeros = max(zeros, int(np.diff(ends).max()) - 1)
        finite = np.isfinite(values)
        bad += int(values.size - np.count_nonzero(finite))
        if finite.any():
            largest = max(largest, float(np.abs(values[finite]).max()))
    return bad, largest, zeros


def _values(tensor: TensorRef, step: int) -> Iterator[Any]:
    """Yields numpy arrays of the tensor's values; bf16 widened to fp32, which is exact."""
    import numpy as np

    form = {"fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "bf16": "<u2"}[tensor.dtype]
    item = np.dtype(form).itemsize
    for first in range(0, tensor.numel, step):
        count = min(step, tensor.numel - first)
        values = np.frombuffer(tensor.file.read_at(tensor.offset + first * item, count * item), dtype=form)
        yield (values.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "bf16" else values
