"""The library's knowledge in a file: `portable`'s records, one on each line."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, cast

from hnetkit.errors import UsageError
from hnetkit.files import new_file, refuse_all_but
from hnetkit.library.library import AnyPath, Library
from hnetkit.sources.portable import MAX_LINE, Import, exported, imported

MOST = 2 << 30
"""Bytes of an import: an export of ten thousand networks has about a hundredth of it."""
_IN_MEMORY, _PIECE = 16 << 20, 1 << 20  # bytes
_BEGINNING = b'{"kind": "hnetkit"'  # of what is written, which tells it from other programs' files


def export_library(library: Library, path: AnyPath, *, overwrite: bool = False) -> int:
    """Writes what is known of a library as JSON lines, and returns how many records.

    Args:
        overwrite: replace an earlier export.

    Raises:
        OutputExists: the file is there and may not be replaced, or is of another kind.
        DiskFull: there is no room for it; nothing half-written is left.
    """
    refuse_all_but(_BEGINNING, path, overwrite=overwrite)
    count = -1  # the header is none
    with new_file(path, overwrite=overwrite) as out:
        for record in exported(library.registry):  # one at a time: each may be as large as a site liked
            out.write(f"{json.dumps(record, ensure_ascii=True)}\n".encode())
            count += 1
    return count


def import_library(library: Library, source: AnyPath | IO[bytes]) -> Import:
    """Takes in what `export_library` wrote; what is known here already stays, and a line that is wrong stops no other.

    Args:
        source: a file, or an open one, such as a pipe.

    Raises:
        HnetkitError: the first line is not the header of such records; nothing was taken in then.
        UsageError: it is larger than any export.
        RegistryError, DiskFull: nothing can be stored; nothing was taken in then.
    """
    with ExitStack() as stack:
        given = stack.enter_context(open(source, "rb")) if isinstance(source, str | os.PathLike) else source
        return imported(library.registry, _lines(stack.enter_context(_whole(given))))


@contextmanager
def _whole(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """A file that is all there: the registry is not kept busy while somebody's pipe is waited for."""
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
    return UsageError(f"more than {MOST >> 30} GB, which no export has", hint="give a file that `hnetkit export` wrote")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is far too long only the beginning."""
    while line := file.readline(MAX_LINE + 2):
        yield line
        while len(line) > MAX_LINE and not line.endswith(b"\n") and (line := file.readline(MAX_LINE + 2)):
            pass
