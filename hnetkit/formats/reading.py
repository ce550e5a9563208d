"""From a path to a Hypernetwork, or to what the file is instead. The format is told from the bytes that are parsed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from hnetkit.errors import (
    DamagedFile,
    FileChanged,
    FileRefused,
    HnetkitError,
    NotAHypernetwork,
    UnreadableFile,
    UnsafeFile,
    UnsupportedNetwork,
    failure_of,
)
from hnetkit.formats.a1111 import build_network, is_network_dict
from hnetkit.formats.convention import is_ours, network_of
from hnetkit.formats.kinds import TITLES, kind_of_bytes, kind_of_names, kind_of_value
from hnetkit.formats.messages import shown
from hnetkit.formats.safetensors_file import read_safetensors
from hnetkit.formats.source import OpenFile
from hnetkit.formats.torch_file import LEGACY_MAGIC, TorchFile, read_torch_legacy, read_torch_zip
from hnetkit.network import Hypernetwork

READER_VERSION = 3
"""Raised when files are read differently, so that a scan looks at them again."""

MAX_FILE = 4 << 30
"""Bytes: no hypernetwork is near it (the largest real one has 0.6 GB)."""


def load(path: str | os.PathLike[str]) -> Hypernetwork:
    """Reads a hypernetwork: its structure now, each tensor when it is asked for.

    Args:
        path: a ``.pt``, ``.ckpt``, ``.bin`` or ``.safetensors`` file; the suffix is not looked at.

    Returns:
        The network; its file stays open until nothing refers to it any more.

    Raises:
        NotFound: no such file.
        NotAHypernetwork: the file is something else; the message says what.
        UnsafeFile, DamagedFile, UnsupportedNetwork: it cannot be read safely, or not be computed faithfully.
        UnreadableFile: reading it failed in a way that nobody foresaw.
    """
    return read_network(OpenFile(path))


def read_network(file: OpenFile) -> Hypernetwork:
    """Reads a hypernetwork from a file that is already open; see `load`."""
    with nothing_unforeseen(file):
        return _read(file)


@contextmanager
def nothing_unforeseen(file: OpenFile) -> Iterator[None]:
    """Whatever exception comes out of reading one file refuses that file.

    A disk that fails and a machine without memory are no fault of the file: their errors stay what they are.

    Raises:
        UnreadableFile: for every other exception that is not of ours.
    """
    try:
        yield
    except (HnetkitError, OSError, MemoryError):
        raise
    except Exception as error:
        failure = failure_of(error, file.path)
        raise UnreadableFile(str(failure), hint=failure.hint) from error


def _read(file: OpenFile) -> Hypernetwork:
    refuse_sparse(file)
    head = file.read_at(0, min(file.size, 4096))
    if head.startswith(b"PK\3\4"):
        torch_file = read_torch_zip(file)
        if torch_file is None:
            raise _other(file, "zip")
        return _from_torch(torch_file)
    if head.startswith(LEGACY_MAGIC):
        return _from_torch(read_torch_legacy(file))
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return _from_safetensors(file)
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        raise UnsafeFile(f"{file.path}: a bare pickle, not a torch file", hint="get the file again from its source")
    kind = kind_of_bytes(head)
    if kind == "unknown" and any(head.startswith(start) for start in (b"PK\5\6", b"PK\7\10", b"\x80")):
        raise DamagedFile(f"{file.path}: damaged at its beginning", hint="get the file again from its source")
    raise _other(file, kind)


def is_sparse(file: OpenFile) -> bool:
    """Whether a file is larger than any network and hardly anything but holes: reading it would take hours."""
    return file.size > MAX_FILE and file.bytes_on_disk() < file.size


def refuse_sparse(file: OpenFile) -> None:
    """Raises DamagedFile for a file that `is_sparse`: to be called before all of one is read."""
    if is_sparse(file):
        raise DamagedFile(
            f"{file.path}: a sparse file: {file.bytes_on_disk():,} bytes of {file.size:,} are on the disk",
            hint="get the file again from its source",
        )


def _from_torch(source: TorchFile) -> Hypernetwork:
    path, value = source.file.path, source.value
    inner = value.get("state_dict") if isinstance(value, dict) else None
    is_network = any(is_network_dict(item, source.file.budget) for item in (value, inner))
    kind = "hypernetwork" if is_network else kind_of_value(value)
    if source.foreign and kind in ("hypernetwork", "unknown"):
        raise UnsafeFile(
            f"{path}: asks for {shown(source.foreign[0], 80)}, which no hypernetwork needs",
            hint="do not load this file with any program; get it again from its source",
        )
    if source.file.size > MAX_FILE:
        raise _other(source.file, kind if kind != "hypernetwork" else "checkpoint")
    if kind != "hypernetwork":
        raise _other(source.file, kind, asks_for=source.foreign)
    network = build_network(value, source.tensor, format=source.format, file=source.file)
    return replace(network, checksums=source.checksums)


def _from_safetensors(file: OpenFile) -> Hypernetwork:
    source = read_safetensors(file)
    if not is_ours(source):
        raise _other(file, kind_of_names(source.entries.keys()))
    return network_of(source)


def _other(file: OpenFile, kind: str, *, asks_for: Sequence[str] = ()) -> NotAHypernetwork:
    asked = f"; it asks for {shown(asks_for[0], 80)}" if asks_for else ""
    return NotAHypernetwork(f"{file.path}: {TITLES[kind]}, no hypernetwork{asked}", kind=kind)


@dataclass(frozen=True, slots=True)
class Look:
    """What a look into a file found: a network, or why there is none."""

    network: Hypernetwork | None
    refusal: FileRefused | None

    @property
    def kind(self) -> str:
        """A key of `TITLES`; a hypernetwork that cannot be computed is still one."""
        if self.network is not None or isinstance(self.refusal, UnsupportedNetwork):
            return "hypernetwork"
        return self.refusal.kind if isinstance(self.refusal, NotAHypernetwork) else "unknown"


def look(file: OpenFile) -> Look:
    """Reads an open file without raising for what is in it.

    Raises:
        FileChanged: it changed meanwhile.
    """
    try:
        return Look(read_network(file), None)
    except FileChanged:
        raise
    except FileRefused as refusal:
        return Look(None, refusal)
