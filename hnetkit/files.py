"""Writing files so that nothing half-written is ever seen, and reading small ones that may be hostile."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hnetkit.errors import HnetkitError, NotFound, OutputExists

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin", ".pth")
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
MODEL_SUFFIXES = (*PICKLE_SUFFIXES, *SAFETENSORS_SUFFIXES)
"""Of files that may be models, in lower case: each room accepts them all."""

TEMPORARY = ".hnetkit.tmp"
"""How the names of files end that are not whole yet."""

_PORTS = (f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³")
_RESERVED = frozenset({"none", "con", "conin$", "conout$", "prn", "aux", "nul", *_PORTS})

_UMASK = os.umask(0o077)  # it can be read only by setting it, for all threads: once, before there are any
os.umask(_UMASK)
STALE_S = 6 * 3600
"""Seconds without a change after which a half-written file that no process has open is nobody's."""


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Gives a file to write; on a clean exit it is flushed to disk and takes the name `path`, else it is gone.

    What a process that was killed left half-written in the same folder is removed some hours later, by the next
    process that writes there.

    Raises:
        OutputExists: `path` exists and `overwrite` is False (checked before writing and again at the end).
        NotFound: the folder does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise NotFound(f"{target.parent}: no such folder")
    refuse_existing(target, overwrite=overwrite)
    _sweep(os.path.realpath(target.parent))
    temporary = target.parent / f".{target.name[:40]}.{secrets.token_hex(8)}{TEMPORARY}"
    try:  # the name is known before there is a file: an interrupt at any moment finds it
        with open(temporary, "xb", opener=_private) as file:
            try_lock(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, _mode_for(target))
        if overwrite:
            os.replace(temporary, target)
        else:
            publish(temporary, target)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _mode_for(target: Path) -> int:
    """Who may read and write it: as what it replaces, which somebody may keep to themselves."""
    try:
        return stat.S_IMODE(os.stat(target).st_mode) & 0o777
    except OSError:
        return 0o666 & ~_UMASK


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@functools.cache
def _sweep(folder: str) -> None:
    """Removes what killed processes left in a folder; a process looks once."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(TEMPORARY):
                with contextlib.suppress(OSError):  # somebody else's, or removed meanwhile
                    _remove_stale(entry)


def _remove_stale(entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if time.time() - status.st_mtime < STALE_S:
        return
    if stat.S_ISLNK(status.st_mode):  # what it leads to stays
        os.unlink(entry.path)
    if not stat.S_ISREG(status.st_mode):
        return
    with open(entry.path, "r+b") as file:  # network disks lock only what may be written
        is_stale = try_lock(file.fileno())
    if is_stale:
        os.unlink(entry.path)


def try_lock(handle: int) -> bool:
    """Takes a file for this process until it closes it; False where another process has it.

    Where locks are not known (Windows, some network disks) its age alone has to tell, and on Windows nobody can
    remove what another process has open.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


@contextmanager
def exclusive_lock(lock: Path, busy: HnetkitError, *, patience_s: float = 0.0) -> Iterator[None]:
    """Keeps other processes from the same lock for as long as the block lasts.

    Args:
        lock: a file, made where it is not there; it stays.
        busy: raised where another process has it.
        patience_s: seconds to wait for it.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=patience_s)
    except Timeout as error:
        raise busy from error
    try:
        yield
    finally:
        held.release()


def is_model_name(name: str) -> bool:
    """Whether a file of this name may be a model; ``._ink.pt`` is what macOS writes beside ``ink.pt``."""
    return os.path.splitext(name)[1].lower() in MODEL_SUFFIXES and not os.path.basename(name).startswith("._")


def refuse_existing(
    path: str | os.PathLike[str], *, overwrite: bool, is_other: Callable[[Path], bool] | None = None
) -> None:
    """Raises OutputExists where `path` exists and must not be replaced.

    Args:
        overwrite: whether an earlier file of the kind that will be written may be; a folder, a device or a pipe
            never is.
        is_other: whether a file is of another kind.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputExists(f"{os.fspath(path)}: the file exists", hint="add --overwrite to replace it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputExists(f"{os.fspath(path)}: no file, and nothing replaces it", hint="choose another name")
    if is_other is not None and is_other(Path(path)):
        hint = "choose another name, or remove the file"
        raise OutputExists(f"{os.fspath(path)}: a file of another kind, which is not replaced", hint=hint)


def refuse_all_but(beginning: bytes, path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raises as `refuse_existing`, and where what is there is not empty and begins otherwise than what will be written.

    A suffix tells nothing: other programs' files may have it.
    """

    def is_other(there: Path) -> bool:
        try:
            with there.open("rb") as file:
                return file.read(len(beginning)) not in (b"", beginning)
        except OSError:  # nobody knows what it is
            return True

    refuse_existing(path, overwrite=overwrite, is_other=is_other)


def refuse_links(paths: Iterable[Path]) -> None:
    """Raises OutputExists where one of the names that will be written to is a link: it leads out of its folder."""
    for path in paths:
        if path.is_symlink():
            raise OutputExists(f"{path}: a link, which nothing is written through", hint="remove it, or another --out")


def publish(temporary: str | os.PathLike[str], target: Path) -> None:
    """Gives a finished file its name without replacing another; `temporary` may stay behind as a second name.

    Raises:
        OutputExists: a file of this name appeared meanwhile; it is kept.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        refuse_existing(target, overwrite=False)
    except OSError:  # a file system without hard links
        refuse_existing(target, overwrite=False)
        os.replace(temporary, target)


def read_regular(path: str | os.PathLike[str], *, most: int) -> bytes:
    """Returns all bytes of a small file; a pipe of its name is not waited for.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is no regular file, one of the system's that would be waited for, or has more than `most` bytes.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most:
            raise ValueError(f"more than {most:,} bytes")
        # Python makes room for all that it is asked for, so no more is asked for than there is
        data: bytes | None = file.read(min(status.st_size, most) + 1)
    if data is None:
        raise ValueError("nothing can be read from it now")
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return data


def is_reserved(name: str) -> bool:
    """Whether Windows takes a name for a device, or A1111 for no network at all: no file may be called so.

    What stands behind its first dot makes no difference: ``con.v2`` is as reserved as ``con``.
    """
    return name.split(".")[0].strip().casefold() in _RESERVED


def sync_folder(folder: Path) -> None:
    """Returns when the names in a folder are on the disk, where the system can promise that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
