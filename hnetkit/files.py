"""Atomic writing of files, locks, suffixes of models, and reading of small files that may be hostile."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hnetkit.errors import ANOTHER_HOME, HnetkitError, NotFound, OutputExists, failure_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PICKLE_SUFFIXES = (".pt", ".ckpt", ".bin", ".pth")
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
MODEL_SUFFIXES = (*PICKLE_SUFFIXES, *SAFETENSORS_SUFFIXES)
"""Suffixes of files that may be models, in lower case; every command accepts all of them."""

TEMPORARY = ".hnetkit.tmp"
"""End of the names of files that are still being written."""

_HALF = 2**63
_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})  # nothing can be at such a path
_LONGEST_NAME = 255  # bytes
_NO_NAMES = frozenset({123, 1921})  # the same in Windows' numbers: an invalid name, a link in a circle
_PORTS = (f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³")
_RESERVED = frozenset({"none", "con", "conin$", "conout$", "prn", "aux", "nul", *_PORTS})

READ_FLAGS = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags to open a file for reading that may be a pipe: O_NONBLOCK does not wait for its writer."""

_UMASK = os.umask(0o077)  # reading it means setting it for all threads, so it is read once at import
os.umask(_UMASK)
STALE_S = 6 * 3600
"""Seconds without a change after which a half-written file that no process has open is removed."""


@contextmanager
def new_file(path: str | os.PathLike[str], *, overwrite: bool = False, is_lasting: bool = True) -> Iterator[BinaryIO]:
    """Opens a temporary file that becomes `path` at a clean exit, after a flush to disk; on an error it is removed.

    Files that killed processes left half-written in the same folder are removed some hours later, by the next process
    that writes there.

    Args:
        path: of the file.
        overwrite: replace a file that is there.
        is_lasting: flush it. Without, a kill leaves it whole or absent, and a loss of power may leave it empty.

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
    try:  # the name is known before the file exists, so an interrupt at any moment can remove it
        with open(temporary, "xb", opener=_private) as file:
            try_lock(file.fileno())
            yield file
            file.flush()
            if is_lasting:
                os.fsync(file.fileno())
        os.chmod(temporary, _mode_for(target))
        if overwrite:
            os.replace(temporary, target)
        else:
            publish(temporary, target)
    except OSError as error:
        _name(error, temporary, target)
        raise
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Makes a temporary folder that becomes `path` at a clean exit; on an error it is removed with all that is in it.

    What killed processes left half-written beside it is removed some hours later, as by `new_file`.

    Raises:
        OutputExists: there is anything at `path`: a folder is never replaced.
        NotFound: the folder that it is to be in does not exist.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise NotFound(f"{target.parent}: no such folder")
    refuse_any(target)
    with temporary_folder(target) as temporary:
        try:
            yield temporary
            sync_folder(temporary)
            refuse_any(target)
            os.rename(temporary, target)
        except OSError as error:
            _name(error, temporary, target)
            raise


@contextmanager
def temporary_folder(beside: Path) -> Iterator[Path]:
    """Makes a hidden folder beside a path; at the end of the block it is removed with all that is still in it.

    What killed processes left beside the path is removed some hours later, as by `new_file`.
    """
    _sweep(os.path.realpath(beside.parent))
    temporary = beside.parent / f".{beside.name[:40]}.{secrets.token_hex(8)}{TEMPORARY}"
    try:
        os.mkdir(temporary)
        yield temporary
    except OSError as error:
        _name(error, temporary, beside.parent)
        raise
    finally:
        if os.path.lexists(temporary):
            shutil.rmtree(temporary, ignore_errors=True)


def _name(error: OSError, temporary: Path, target: Path) -> None:
    """Makes an error name what was to be written: a temporary file's name means nothing to a person."""
    named = error.filename
    is_ours = isinstance(named, str | bytes | os.PathLike) and Path(os.fsdecode(named)).is_relative_to(temporary)
    if is_ours or (named is None and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        error.filename, error.filename2 = str(target), None


def refuse_any(path: str | os.PathLike[str]) -> None:
    """Raises OutputExists if there is anything at a path where a folder is to be made."""
    if os.path.lexists(path):
        raise OutputExists(f"{os.fspath(path)}: exists, and a folder is never replaced", hint="choose another name")


def _mode_for(target: Path) -> int:
    """The permissions of the file that it replaces, which may be private; else the default."""
    try:
        return stat.S_IMODE(os.stat(target).st_mode) & 0o777
    except OSError:
        return 0o666 & ~_UMASK


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@functools.cache
def _sweep(folder: str) -> None:
    """Removes the remains of killed processes from a folder, once per process."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(TEMPORARY):
                with contextlib.suppress(OSError):  # another user's, or removed meanwhile
                    _remove_stale(entry)


def _remove_stale(entry: os.DirEntry[str]) -> None:
    status = entry.stat(follow_symlinks=False)
    if time.time() - status.st_mtime < STALE_S:
        return
    if stat.S_ISLNK(status.st_mode):  # its target stays
        os.unlink(entry.path)
    if stat.S_ISDIR(status.st_mode):  # of `temporary_folder`
        shutil.rmtree(entry.path, ignore_errors=True)
    if not stat.S_ISREG(status.st_mode):
        return
    with open(entry.path, "r+b") as file:  # network file systems lock only files that are open for writing
        is_stale = try_lock(file.fileno())
    if is_stale:
        os.unlink(entry.path)


def try_lock(handle: int) -> bool:
    """Locks a file until this process closes it; returns False if another process has locked it.

    Without locks (Windows, some network file systems) it returns True. The age of a file then has to do, and Windows
    does not let anybody remove a file that is open.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


@contextmanager
def exclusive_lock(
    lock: Path, busy: HnetkitError, *, patience_s: float = 0.0, elsewhere: str = ANOTHER_HOME
) -> Iterator[None]:
    """Holds a lock between processes for the duration of a block.

    Args:
        lock: a file, created if missing; it is never removed.
        busy: raised if another process holds the lock.
        patience_s: seconds to wait for it.
        elsewhere: the hint where the file cannot be created.
    """
    from filelock import FileLock, Timeout

    held = FileLock(lock)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=patience_s)
    except Timeout as error:
        raise busy from error
    except OSError as error:
        failure = failure_of(error, os.fspath(lock))
        raise failure if failure.command_hint else HnetkitError(str(failure), hint=elsewhere) from error
    try:
        yield
    finally:
        held.release()


def is_model_name(name: str) -> bool:
    """Whether a file of this name may be a model. ``._ink.pt`` is a file that macOS writes beside ``ink.pt``."""
    return os.path.splitext(name)[1].lower() in MODEL_SUFFIXES and not os.path.basename(name).startswith("._")


def is_absence(error: OSError) -> bool:
    """Whether an error says that there is nothing at a path. Any other leaves that open."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR)


def not_opened(path: str | os.PathLike[str], error: OSError) -> HnetkitError:
    """Returns the failure of opening a file that somebody named: only an absence is `NotFound`."""
    shown = os.fspath(path)
    if is_absence(error):
        return NotFound(f"{shown}: no such file")
    return NotFound(f"{shown}: a folder, not a file") if os.path.isdir(path) else failure_of(error, shown)


def is_absent(path: str | os.PathLike[str]) -> bool:
    """Whether the system says that there is nothing at a path; any other error says nothing."""
    try:
        os.lstat(path)
    except ValueError:  # no path at all
        return True
    except OSError as error:
        # a path may be too long where a shorter one leads to the same file; a name that is too long is no file's
        is_no_name = error.errno == errno.ENAMETOOLONG and len(os.fsencode(os.path.basename(path))) > _LONGEST_NAME
        return is_absence(error) or is_no_name
    return False


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is anything at a path.

    Raises:
        OSError: that could not be seen.
    """
    try:
        os.lstat(path)
    except OSError as error:
        if is_absence(error):
            return False
        raise
    return True


def stat_at(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Returns what the system says of the file or folder that a path leads to; None if it leads to nothing.

    Raises:
        OSError: that could not be seen.
    """
    try:
        return os.stat(path)
    except ValueError:  # no path at all
        return None
    except OSError as error:
        if error.errno in _NOWHERE or getattr(error, "winerror", None) in _NO_NAMES:
            return None
        raise


def is_file_at(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a regular file.

    Raises:
        OSError: that could not be seen.
    """
    status = stat_at(path)
    return status is not None and stat.S_ISREG(status.st_mode)


def is_folder_at(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a folder.

    Raises:
        OSError: that could not be seen.
    """
    status = stat_at(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def is_link_elsewhere(path: Path, file: Path) -> bool:
    """Whether what has its name from `file` and lies beside it is a link to a file that does not belong to `file`.

    A stranger's folder may hold links to any file of the user, which would then be shown, written or shared. A link
    into the folder itself leads nowhere else. Where `file` is a link too, what belongs to it is what has its name from
    the file that it leads to, and not all that lies there.
    """
    if not os.path.islink(path):
        return False
    folder, target, own = (Path(os.path.realpath(each)) for each in (file.parent, path, file))
    if target.parent == folder or _is_in_cache_of(folder, target):
        return False
    return target != own.with_name(own.stem + path.name.removeprefix(file.stem))


def _is_in_cache_of(folder: Path, target: Path) -> bool:
    """Whether a file is one of those of a repository in the hub's cache, of which a folder shows a commit by links."""
    return any(above.name == "snapshots" and target.parent == above.parent / "blobs" for above in folder.parents)


def mtime_of(status: os.stat_result) -> int:
    """Returns the modification time in nanoseconds, wrapped to 64 bits after the year 2262.

    So a file with a nonsensical time can be stored, and its changes are noticed like those of any other.
    """
    return (status.st_mtime_ns + _HALF) % (2 * _HALF) - _HALF


def refuse_existing(
    path: str | os.PathLike[str], *, overwrite: bool, is_other: Callable[[Path], bool] | None = None
) -> None:
    """Raises OutputExists if `path` exists and must not be replaced.

    Args:
        overwrite: whether an existing file of the same kind may be replaced. A folder, a device or a pipe never is.
        is_other: tells whether a file is of another kind.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputExists(f"{os.fspath(path)}: the file exists", hint="add --overwrite to replace it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise OutputExists(f"{os.fspath(path)}: not a file, and never replaced", hint="choose another name")
    if is_other is not None and is_other(Path(path)):
        hint = "choose another name, or remove the file"
        raise OutputExists(f"{os.fspath(path)}: a file of another kind, which is not replaced", hint=hint)


def refuse_all_but(beginning: bytes, path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raises as `refuse_existing`, and for a file that is not empty and begins differently.

    A suffix is not enough, because files of other programs may have it.
    """

    def is_other(there: Path) -> bool:
        try:
            with there.open("rb") as file:
                return file.read(len(beginning)) not in (b"", beginning)
        except OSError:  # unknown, so it is kept
            return True

    refuse_existing(path, overwrite=overwrite, is_other=is_other)


def suffixed(path: str | os.PathLike[str], suffix: str) -> Path:
    """Returns a path with this suffix in place of its own; a name that ends in dots, as if it did not."""
    return Path(os.fspath(path).rstrip(".")).with_suffix(suffix)


def refuse_links(paths: Iterable[Path]) -> None:
    """Raises OutputExists if one of the files to write is a link, which may lead out of its folder."""
    for path in paths:
        if path.is_symlink():
            raise OutputExists(
                f"{path}: a link, and hnetkit does not write through links", hint="remove it, or choose another --out"
            )


def publish(temporary: str | os.PathLike[str], target: Path) -> None:
    """Gives a finished file its final name without replacing another; `temporary` may remain as a second name.

    Raises:
        OutputExists: a file with this name appeared meanwhile; it is kept.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        refuse_existing(target, overwrite=False)
    except OSError:  # a file system without hard links
        refuse_existing(target, overwrite=False)
        os.replace(temporary, target)


@contextmanager
def open_regular(path: str | os.PathLike[str], *, most: int) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a file to read it, without waiting if it is a pipe; yields it with its size in bytes.

    Args:
        most: bytes that the file may have.

    Raises:
        OSError: it does not exist or cannot be read.
        ValueError: it is not a regular file, or has more than `most` bytes.
    """
    with open(os.open(path, READ_FLAGS), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > most:
            raise ValueError(f"more than {most:,} bytes")
        yield file, status.st_size


def read_regular(path: str | os.PathLike[str], *, most: int) -> bytes:
    """Returns all bytes of a small file; the arguments and errors are those of `open_regular`.

    Raises:
        ValueError: there is nothing to read yet, or the file grew beyond `most` meanwhile.
    """
    with open_regular(path, most=most) as (file, size):
        # Python allocates as much as is asked for, so ask for no more than there is
        data: bytes | None = file.read(size + 1)
    if data is None:
        raise ValueError("nothing can be read from it now")
    if len(data) > most:
        raise ValueError(f"more than {most:,} bytes")
    return data


def is_reserved(name: str) -> bool:
    """Whether a name is a device of Windows, or "None", which A1111 reads as no network.

    The part after the first dot makes no difference: ``con.v2`` is reserved like ``con``.
    """
    return name.split(".")[0].strip().casefold() in _RESERVED


def sync_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk, if the system supports that."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
