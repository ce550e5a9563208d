"""Hashes of a file and of its content, computed in one pass over the bytes.

- ``sha256``: of the whole file. A1111's short hash and Civitai's AutoV2 are its first 10 digits.
- ``autov1``: A1111's first ``model_hash``: 8 digits of the sha256 of 64 KiB at 1 MiB. It is None for files under
  1 MiB, which would all have the same one.
- content hash: of the network in the file, independent of the container; see `Hypernetwork.content_hash_from`.

Tensors are hashed with BLAKE3 while they are read for the file's sha256: a second sha256 would double the cost of a
scan, BLAKE3 adds less than half.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from hnetkit.network import Checksum, Hypernetwork, SizedSource

if TYPE_CHECKING:
    from blake3 import blake3

_CHUNK = 1 << 20  # bytes
_V1_OFFSET, _V1_SIZE = 1 << 20, 64 << 10


@dataclass(frozen=True, slots=True)
class FileHashes:
    """All hashes of one file.

    Attributes:
        sha256: 64 hex digits; None if the file was not read as a whole.
        autov1: 8 hex digits; None for files under 1 MiB.
        content_hash: ``h1:`` + 64 hex digits; None if the file is not a hypernetwork.
    """

    sha256: str | None
    autov1: str | None
    content_hash: str | None


def sha256_of(file: SizedSource) -> str:
    """Returns the sha256 of a whole file, 64 hex digits."""
    digest = hashlib.sha256()
    for _, chunk in _read_all(file):
        digest.update(chunk)
    return digest.hexdigest()


def autov1_of(file: SizedSource) -> str | None:
    """Returns A1111's first ``model_hash`` of a file, 8 hex digits; None for files under 1 MiB."""
    if file.size <= _V1_OFFSET:
        return None
    part = file.read_at(_V1_OFFSET, min(_V1_SIZE, file.size - _V1_OFFSET))
    return hashlib.sha256(part).hexdigest()[:8]


def blake3_of(path: str | os.PathLike[str]) -> str:
    """Returns the BLAKE3 of a whole file, 64 hex digits."""
    from blake3 import blake3

    return blake3().update_mmap(path).hexdigest()


def git_id_of(path: str | os.PathLike[str]) -> str:
    """Returns git's id of a whole file, 40 hex digits: the name under which a repository keeps such bytes."""
    with open(path, "rb") as file:
        digest = hashlib.sha1(b"blob %d\0" % os.fstat(file.fileno()).st_size, usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_file(file: SizedSource, net: Hypernetwork | None = None, *, sha256: str | None = None) -> FileHashes:
    """Computes all hashes of a file and reads it once.

    Args:
        file: an open file.
        net: the network that was read from this file; None if it holds none.
        sha256: of the whole file, if it is known already.
    """
    whole, v1 = hashlib.sha256(), hashlib.sha256()
    refs = [ref for *_, ref in net.each_tensor()] if net else []
    tensors = sorted({(ref.offset, ref.nbytes) for ref in refs if ref.file is file})
    tensors.reverse()  # `_begun` takes the next one from the end
    digests: dict[tuple[int, int], str] = {}
    unfinished: list[tuple[tuple[int, int], blake3]] = []
    for start, chunk in _read_all(file):
        if sha256 is None:
            whole.update(chunk)
        end, view = start + len(chunk), memoryview(chunk)
        v1.update(view[max(0, _V1_OFFSET - start) : max(0, _V1_OFFSET + _V1_SIZE - start)])
        still_open: list[tuple[tuple[int, int], blake3]] = []
        for span, digest in chain(unfinished, _begun(tensors, end)):
            digest.update(view[max(0, span[0] - start) : sum(span) - start])
            if sum(span) <= end:
                digests[span] = digest.hexdigest()
            else:
                still_open.append((span, digest))
        unfinished = still_open
    return FileHashes(
        sha256=sha256 or whole.hexdigest(),
        autov1=v1.hexdigest()[:8] if file.size > _V1_OFFSET else None,
        content_hash=net.content_hash_from(
            lambda ref: digests[ref.offset, ref.nbytes] if ref.file is file else ref.blake3()
        )
        if net
        else None,
    )


def _begun(tensors: list[tuple[int, int]], end: int) -> Iterator[tuple[tuple[int, int], blake3]]:
    """Pops the tensors that begin before `end`; each digest is created when needed, because it is large."""
    from blake3 import blake3

    while tensors and tensors[-1][0] < end:
        yield tensors.pop(), blake3()


def damaged_parts(net: Hypernetwork) -> list[str]:
    """Returns the names of the parts of a network's file whose bytes do not match the stored checksum."""
    return [part.name for part in net.checksums if net.source and _crc32(net.source, part) != part.crc32]


def _crc32(file: SizedSource, part: Checksum) -> int:
    crc, end = 0, part.offset + part.size
    for start in range(part.offset, end, _CHUNK):
        crc = zlib.crc32(file.read_at(start, min(_CHUNK, end - start)), crc)
    return crc


def _read_all(file: SizedSource) -> Iterator[tuple[int, bytes]]:
    for start in range(0, file.size, _CHUNK):
        yield start, file.read_at(start, min(_CHUNK, file.size - start))
