"""Archives other than zips, told by their first bytes: what each is called, and the suffix that extractors look for."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from hnetkit.formats.polyglot import is_tar

_BLOCK = 512  # bytes of a tar's header
_WITH_HEADER = 31  # of zlib: the largest window, and gzip's header


@dataclass(frozen=True, slots=True)
class ArchiveKind:
    """A kind of archive, or of packed file.

    Attributes:
        suffix: in lower case.
        title: in messages.
        tool: prints what a packed file holds, with ``-dc``; None for an archive.
    """

    suffix: str
    title: str
    tool: str | None = None


_TAR, _PACKED_TAR = ArchiveKind(".tar", "a tar archive"), ArchiveKind(".tar.gz", "a tar archive packed with gzip")
_GZIP = ArchiveKind(".gz", "a file packed with gzip", "gzip")
_BEGINNINGS = (
    (b"Rar!", ArchiveKind(".rar", "a RAR archive")),
    (b"7z\xbc\xaf\x27\x1c", ArchiveKind(".7z", "a 7-Zip archive")),
    (b"BZh", ArchiveKind(".bz2", "a file packed with bzip2", "bzip2")),
    (b"\xfd7zXZ\0", ArchiveKind(".xz", "a file packed with xz", "xz")),
    (b"\x28\xb5\x2f\xfd", ArchiveKind(".zst", "a file packed with Zstandard", "zstd")),
)
SUFFIXES = (_TAR.suffix, _GZIP.suffix, ".tgz", *(kind.suffix for _, kind in _BEGINNINGS))
"""What the names of such files end with, in lower case."""


def archive_kind(head: bytes) -> ArchiveKind | None:
    """Returns the kind of archive that a file is; None if it is none of these.

    Args:
        head: its first 4096 bytes.
    """
    if _is_tar(head):
        return _TAR
    if head.startswith(b"\x1f\x8b"):
        return _PACKED_TAR if _is_tar(_unpacked(head)) else _GZIP
    return next((kind for beginning, kind in _BEGINNINGS if head.startswith(beginning)), None)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar" or is_tar(head[:_BLOCK])


def _unpacked(head: bytes) -> bytes:
    """The first bytes of what a gzip file holds; fewer, or none, if it is damaged."""
    try:
        return zlib.decompressobj(_WITH_HEADER).decompress(head, _BLOCK)
    except zlib.error:
        return b""
