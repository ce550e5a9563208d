"""Every error that a person can meet: what it says, what to type next, and the exit code.

The command line prints ``Error: <message>`` and ``Hint: <hint>`` on stderr and leaves with ``exit_code``.
Exit codes: 0 ok, 1 other or partly failed, 2 usage, 3 auth, 4 not found, 5 network, 6 rate limit,
7 file refused, 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import importlib.util
import os
from collections.abc import Iterable, Mapping
from typing import ClassVar

from hnetkit.text import printable as printable


class HnetkitError(Exception):
    """Base of all errors that hnetkit raises on purpose.

    Args:
        message: one line that names the file or thing and what is wrong with it.
        hint: the next command to type, or the setting to change; None where nothing can be done.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(printable(message))
        self.hint = printable(hint) if hint else None


class Defect(HnetkitError):
    """An exception that nobody foresaw: a mistake in hnetkit."""


class PartlyFailed(HnetkitError):
    """Some of several items failed; each failure was already reported."""


class UsageError(HnetkitError):
    """What was asked cannot be meant: a bad option, a bad value, or a question nobody can answer."""

    exit_code = 2


class AmbiguousName(UsageError):
    """A name stands for several networks; the message lists them as ``name@hash``."""


class OutputExists(UsageError):
    """An output would replace an existing file, and overwriting was not asked for."""


class NotFound(HnetkitError):
    """A file, a folder, a model or a name of the library is not there."""

    exit_code = 4


class NoSettings(NotFound):
    """A picture does not say how it was made."""


class FileRefused(HnetkitError):
    """A file is not a hypernetwork that can be read safely and understood fully."""

    exit_code = 7


class NotAHypernetwork(FileRefused):
    """The file is something else, recognised from its content.

    Args:
        kind: what it is, in the words of ``inspect``'s ``kind`` (``"lora"``, ``"html"``, ...).
    """

    def __init__(self, message: str, *, kind: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class UnsafeFile(FileRefused):
    """The pickle inside asks for something that no hypernetwork needs, or hides what it is."""


class DamagedFile(FileRefused):
    """The container is cut short or contradicts itself."""


class UnsupportedNetwork(FileRefused):
    """A hypernetwork, but of a build that cannot be computed faithfully (for example skip connections)."""


class UnreadableFile(FileRefused):
    """Reading the file failed in a way that nobody foresaw; the message says how."""


class FileChanged(FileRefused):
    """The file changed or shrank after it was opened."""


class RegistryError(HnetkitError):
    """The registry's database cannot be used: locked, damaged, or written by a newer hnetkit."""


class IncompatibleNetwork(HnetkitError):
    """A network does not belong on this UNet: other base model, or no layer of its widths."""


class AttachError(HnetkitError):
    """The UNet is in a state in which hypernetworks cannot be applied or changed (fused, folded, replaced)."""


class KernelUnavailable(HnetkitError):
    """``HNETKIT_KERNEL`` names a path that cannot run here."""


class ModelNotUsable(HnetkitError):
    """A pipeline folder or hub id that cannot be loaded as a Stable Diffusion pipeline."""


class OutOfMemory(HnetkitError):
    """The device, or this machine, has not enough memory; the hint says what to switch on."""


class RemoteError(HnetkitError):
    """Base of what a site or the way to it can do wrong; `code` is the word that the registry keeps."""

    exit_code = 5
    code: ClassVar[str] = "network"


class NetworkFailed(RemoteError):
    """No answer, a broken one, or one that makes no sense, and trying again did not help."""


class RegionBlocked(RemoteError):
    """The site serves nothing to this region."""

    code = "region-blocked"


class RateLimited(RemoteError):
    """The site asks for a pause that is longer than a command should wait."""

    exit_code = 6
    code = "rate-limited"


class AuthRequired(RemoteError):
    """The site wants to know who asks, or does not know the token."""

    exit_code = 3
    code = "no-token"


class EarlyAccess(AuthRequired):
    """Only those who paid get it before a date."""

    code = "early-access"


class NoAccess(AuthRequired):
    """It is private, or its owner does not allow downloads."""

    code = "no-access"


class Gone(RemoteError):
    """The site does not have it, or not any more."""

    exit_code = 4
    code = "gone"


class Archived(Gone):
    """The site still shows it and gives no file."""

    code = "archived"


class WrongBytes(FileRefused):
    """What came is not what the site says it is: size, hash or kind."""

    code = "wrong-bytes"


class DiskFull(HnetkitError):
    """Not enough room for what is to be fetched or written."""

    code = "disk-full"


class BadPicture(HnetkitError):
    """Sampling gave NaN or an all-black picture."""


class MissingPackage(HnetkitError):
    """An option needs a package that is not installed; the hint installs it."""


class MissingExtra(MissingPackage):
    """A part of hnetkit that not everybody installs needs packages that are not here; the hint installs them."""

    exit_code = 2


class RunChanged(UsageError):
    """What a training run was made with so far is not what it is asked to go on with."""


class TrainingFailed(HnetkitError):
    """A training run was stopped before it ruined its network; the message names the last good file."""


_EXTRA_OF: Mapping[str, str] = dict.fromkeys(
    ("accelerate", "diffusers", "huggingface_hub", "matplotlib", "PIL", "transformers"), "diffusers"
)
"""Module -> the extra of hnetkit that installs it."""

_COMPARED, _NEAR = 100, 0.5  # characters of a word that are compared; the least likeness, of difflib
_PIP_NAMES: Mapping[str, str] = {"huggingface_hub": "huggingface-hub", "PIL": "pillow"}


def require_extra(module: str, what: str) -> None:
    """Accepts that a module of an extra is installed; for what would else meet its lack once for each item.

    Args:
        what: needs it.

    Raises:
        MissingExtra: it is not.
    """
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise _missing(module, what)


def _missing(module: str, what: str) -> MissingExtra:
    hint = f'pip install "hnetkit[{_EXTRA_OF[module]}]"'
    return MissingExtra(f"{what}: needs {_PIP_NAMES.get(module, module)}, which is not installed", hint=hint)


def failure_of(error: Exception, what: str) -> HnetkitError:
    """Returns whatever went wrong with one thing as that thing's failure: a line that names it, a hint, an exit code.

    Wherever one of several items may fail, its every exception becomes its own failure here, and the others go on.

    Args:
        error: any exception; one of ours stays what it is.
        what: the name of the item, or of what was being done.
    """
    if isinstance(error, HnetkitError):
        return error
    if isinstance(error, ModuleNotFoundError) and (module := (error.name or "").partition(".")[0]) in _EXTRA_OF:
        return _missing(module, what)
    if isinstance(error, MemoryError):
        return OutOfMemory(f"{what}: not enough memory", hint="close other programs, or set the file aside")
    if isinstance(error, OSError):
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else what
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(f"{where}: no room is left on the disk", hint="make room, and run the command again")
        return HnetkitError(f"{where}: {error.strerror or error}")
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return HnetkitError(f"{what}: no further thread can be started", hint="close other programs, or see ulimit -u")
    hint = "this is a defect of hnetkit: please report it with what HNETKIT_DEBUG=1 prints"
    return Defect(f"{what}: {type(error).__name__}: {error}", hint=hint)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Returns the known word that `word` is most like, upper and lower case being the same; None where none is near."""
    by_fold = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(word[:_COMPARED].casefold(), by_fold, n=1, cutoff=_NEAR)
    return by_fold[near[0]] if near else None
