"""The errors that a person can meet: each with a message, a hint of what to type next, and an exit code.

The command line prints ``Error: <message>`` and ``Hint: <command_hint>`` on stderr and exits with ``exit_code``.
Exit codes: 0 ok, 1 other or partly failed, 2 usage, 3 auth, 4 not found, 5 network, 6 rate limit,
7 file refused, 130 interrupted.

    HnetkitError                  1
    ├── Defect                    1
    ├── PartlyFailed              1
    ├── UsageError                2
    │   ├── AmbiguousName         2
    │   ├── OutputExists          2
    │   └── RunChanged            2
    ├── NotFound                  4
    │   └── NoSettings            4
    ├── FileRefused               7
    │   ├── NotAHypernetwork      7
    │   ├── UnsafeFile            7
    │   ├── DamagedFile           7
    │   ├── UnsupportedNetwork    7
    │   ├── UnreadableFile        7
    │   ├── FileChanged           7
    │   └── WrongBytes            7
    ├── RemoteError               5
    │   ├── NetworkFailed         5
    │   │   ├── Unreachable       5
    │   │   └── OtherContent      5
    │   ├── RegionBlocked         5
    │   ├── RateLimited           6
    │   ├── StorageFull           1
    │   ├── AuthRequired          3
    │   │   ├── EarlyAccess       3
    │   │   └── NoAccess          3
    │   └── Gone                  4
    │       └── Archived          4
    ├── RegistryError             1
    ├── ChangedMeanwhile          1
    ├── DiskFull                  1
    ├── OutOfMemory               1
    ├── IncompatibleNetwork       1
    ├── AttachError               1
    ├── KernelUnavailable         1
    ├── ModelNotUsable            1
    ├── BadPicture                1
    ├── MissingPackage            1
    │   └── MissingExtra          2
    ├── TrainingFailed            1
    ├── TooInexact                1
    └── NodeFailed                1
"""

from __future__ import annotations

import errno
import importlib.util
import os
from collections.abc import Iterable, Mapping
from typing import ClassVar

from hnetkit.text import printable as printable


class HnetkitError(Exception):
    """Base class of all errors that hnetkit raises on purpose.

    Args:
        message: one line that names the file or thing and what is wrong with it.
        hint: the next command to type, or the flag to change; None where nothing can be done.
        python: the same where Python called, if the rules of `hnetkit.wording` do not give it.

    Attributes:
        command_hint: the hint as the command line shows it; also for errors that are made of this one.
    """

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None, python: str | None = None) -> None:
        super().__init__(printable(message))
        self.command_hint = printable(hint) if hint else None
        self._python = printable(python) if python else None

    @property
    def hint(self) -> str | None:
        """The hint in Python's words."""
        if self._python is not None or self.command_hint is None:
            return self._python
        from hnetkit.wording import in_python  # the command line needs none of it

        return in_python(self.command_hint)


class Defect(HnetkitError):
    """An unexpected exception: a bug in hnetkit."""


class PartlyFailed(HnetkitError):
    """Some of several items failed. Each failure has been reported already."""


class UsageError(HnetkitError):
    """Invalid usage: a bad option or value, or a question without a terminal to answer it."""

    exit_code = 2


class AmbiguousName(UsageError):
    """A name matches several networks. The message or the hint lists them as ``name@hash``."""


class OutputExists(UsageError):
    """An output would replace an existing file without ``--overwrite``, or a file of another kind."""


class NotFound(HnetkitError):
    """A file, a folder, a model or a network of the library does not exist."""

    exit_code = 4


class NoSettings(NotFound):
    """An image carries no generation settings."""


class FileRefused(HnetkitError):
    """A file is not a hypernetwork that can be read safely and understood completely."""

    exit_code = 7


class NotAHypernetwork(FileRefused):
    """The file is something else, recognized by its content.

    Args:
        kind: what it is, in the words of ``inspect``'s ``kind`` (``"lora"``, ``"html"``, ...).
    """

    def __init__(self, message: str, *, kind: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class UnsafeFile(FileRefused):
    """The file asks for something that no hypernetwork needs, or hides what it is."""


class DamagedFile(FileRefused):
    """The file is truncated or contradicts itself. Its hint is to get it again, where there is none that is better."""

    def __init__(
        self, message: str, *, hint: str | None = "get the file again from its source", python: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, python=python)


class UnsupportedNetwork(FileRefused):
    """A hypernetwork of a structure that cannot be computed faithfully, such as skip connections."""


class UnreadableFile(FileRefused):
    """Reading the file raised an unexpected exception, which the message names."""


class FileChanged(FileRefused):
    """The file changed or shrank after it was opened."""


ANOTHER_HOME = "make it writable, or set HNETKIT_HOME to a folder of yours, with a library of its own"
"""What to do where the folder of hnetkit's state cannot be written."""

WHERE_GONE = "hnetkit repair fetches it; hnetkit scan finds it"
"""What to type where a file of the library is gone: it may have a source, or be in another place."""


class RegistryError(HnetkitError):
    """The registry's database is locked, damaged, or was written by a newer hnetkit."""


class ChangedMeanwhile(HnetkitError):
    """A text was to be replaced, and somebody else had replaced it already. Nothing is changed.

    Args:
        now: the text that is there.
    """

    def __init__(self, message: str, *, now: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.now = now


class IncompatibleNetwork(HnetkitError):
    """A network does not fit this UNet: it is for another base model, or no layer has its widths."""


class AttachError(HnetkitError):
    """Hypernetworks cannot be applied or changed while the UNet is as it is (fused, folded, replaced)."""


class KernelUnavailable(HnetkitError):
    """``HNETKIT_KERNEL`` forces a path that cannot run here."""


class ModelNotUsable(HnetkitError):
    """A folder, hub id or checkpoint cannot be loaded as a Stable Diffusion model."""


class OutOfMemory(HnetkitError):
    """The device or the machine ran out of memory. The hint says what to switch on."""


class RemoteError(HnetkitError):
    """Base class of failures of a site or of the connection to it; the registry stores `code`."""

    exit_code = 5
    code: ClassVar[str] = "network"


class NetworkFailed(RemoteError):
    """No answer, or an unusable one, after all retries."""


class Unreachable(NetworkFailed):
    """No answer that can be used, in any of several attempts: the site, or the way to it, is down."""


class OtherContent(NetworkFailed):
    """The site serves another file than the one that was asked for by its hash."""

    code = "other-content"


class RegionBlocked(RemoteError):
    """The site does not serve this region."""

    code = "region-blocked"


class RateLimited(RemoteError):
    """The site asks for a longer pause than a command should wait."""

    exit_code = 6
    code = "rate-limited"


class StorageFull(RemoteError):
    """The account has no room left at the site for what is to be uploaded."""

    exit_code = 1
    code = "storage-full"


class AuthRequired(RemoteError):
    """The site requires a token, or rejects the one that it was sent."""

    exit_code = 3
    code = "no-token"


class EarlyAccess(AuthRequired):
    """Early access: available to supporters only until a date."""

    code = "early-access"


class NoAccess(AuthRequired):
    """The model is private, or its owner has disabled downloads."""

    code = "no-access"


class Gone(RemoteError):
    """The site does not have it, or no longer has it."""

    exit_code = 4
    code = "gone"


class Archived(Gone):
    """The site still lists it but no longer serves its files."""

    code = "archived"


class WrongBytes(FileRefused):
    """A download does not match what the site states: size, hash or kind of file."""

    code = "wrong-bytes"


class DiskFull(HnetkitError):
    """The disk has no room for what is to be fetched or written."""

    code = "disk-full"


class BadPicture(HnetkitError):
    """Sampling produced NaN or an all-black image."""


class MissingPackage(HnetkitError):
    """An option needs a package that is not installed. The hint installs it."""


class MissingExtra(MissingPackage):
    """A command needs an optional extra of hnetkit that is not installed. The hint installs it."""

    exit_code = 2


class RunChanged(UsageError):
    """A training run is to be resumed with other settings than it was started with."""


class TrainingFailed(HnetkitError):
    """A guard stopped a training run. The message names the last good file."""


class TooInexact(HnetkitError):
    """What was baked differs more from its networks than was allowed; nothing was written."""


class NodeFailed(HnetkitError):
    """A node of another program cannot do its work. That program shows the message alone, so the hint is in it."""

    @classmethod
    def of(cls, error: HnetkitError) -> NodeFailed:
        """Returns the error of a node for one of hnetkit's."""
        hint = error.command_hint
        if hint is None or hint.startswith("-"):  # an option of a command is no help in a program
            return cls(str(error))
        sentence = f"Run {hint}" if hint.startswith("hnetkit ") else f"{hint[0].upper()}{hint[1:]}"
        return cls(f"{error}. {sentence}")


_EXTRA_OF: Mapping[str, str] = dict.fromkeys(
    ("accelerate", "diffusers", "huggingface_hub", "matplotlib", "PIL", "transformers"), "diffusers"
) | dict.fromkeys(("starlette", "uvicorn"), "web")
"""Module -> the extra of hnetkit that installs it."""

_COMPARED, _NEAR = 100, 0.5  # characters of each word that are compared; the least likeness, of difflib
_MOST_COMPARED = 200  # words that are compared letter by letter: of the others, no more can be alike by their letters
_PIP_NAMES: Mapping[str, str] = {"huggingface_hub": "huggingface-hub", "PIL": "pillow"}


def require_extra(module: str, what: str) -> None:
    """Checks that a module of an extra is installed, before a lack of it fails each of many items.

    Args:
        what: what needs the module, for the message.

    Raises:
        MissingExtra: it is not installed.
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
    """Turns any exception of one item into its failure: a message that names the item, a hint, an exit code.

    Code that processes several items uses this, so that one failure does not stop the others.

    Args:
        error: any exception; an HnetkitError is returned unchanged.
        what: the name of the item, or of the activity.
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
    from difflib import SequenceMatcher
    from heapq import nlargest

    by_fold = {candidate.casefold(): candidate for candidate in known}
    compared = SequenceMatcher(b=word[:_COMPARED].casefold())

    def at_most(candidate: str) -> float:
        compared.set_seq1(candidate[:_COMPARED])
        return compared.quick_ratio() if compared.real_quick_ratio() >= _NEAR else 0

    def likeness(candidate: str) -> tuple[float, str]:
        compared.set_seq1(candidate[:_COMPARED])
        return compared.ratio(), candidate

    likely = nlargest(_MOST_COMPARED, by_fold, key=at_most)
    near = max(map(likeness, likely), default=(0, ""))
    return by_fold[near[1]] if near[0] >= _NEAR else None
