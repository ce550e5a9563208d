"""What the shell completes: names and tags of the library that a shell reads as one plain word, licenses, settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from hnetkit import paths, settings
from hnetkit.errors import HnetkitError
from hnetkit.text import printable

if TYPE_CHECKING:
    from hnetkit.registry.store import Registry

# characters without a meaning in bash, zsh, fish and PowerShell, which reads typographic quotes and dashes as its own
_BEYOND_ASCII = r"[^\x00-\x7f\s\u2010-\u201f]"
_PLAIN_WORD = re.compile(rf"(?:[\w.]|{_BEYOND_ASCII})(?:[\w.+@%=:-]|{_BEYOND_ASCII})*")


def complete_name(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Returns network names for the shell's completion: only those that a shell reads as one plain word.

    A shell puts a completion on the command line unquoted, and the next Enter runs it.
    """
    from hnetkit.library.resolve import names

    return _plain_words(names, incomplete)


def complete_removed(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Returns what `complete_name` does, and with --undo what is in the trash."""
    if not ctx.params.get("undo"):
        return complete_name(ctx, param, incomplete)
    from hnetkit.library.restore import trashed

    return _plain_words(lambda registry: {*trashed(registry).values()}, incomplete)


def complete_tag(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Returns tags for the shell's completion, as `complete_name` does: all that a list can be filtered by."""
    return _plain_words(lambda registry: registry.networks.tags(), incomplete)


def complete_license(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Returns license ids of the hub for the shell's completion."""
    from hnetkit.sharing.licenses import HUB_LICENSES

    return sorted(id for id in HUB_LICENSES if id.startswith(incomplete.lower()))


def complete_setting(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Returns the names of settings for the shell's completion."""
    return [key for key in settings.KEYS if key.startswith(incomplete)]


def complete_value(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Returns values of the setting that stands before; where they are paths, the shell is asked to offer its own."""
    key = ctx.params.get("key") or ""
    if key in settings.MODELS:
        return [CompletionItem(incomplete, type="file")]
    if key in settings.FOLDERS:
        return [CompletionItem(incomplete, type="dir")]
    return [CompletionItem(value) for value in settings.CHOICES.get(key, ()) if value.startswith(incomplete)]


def complete_own_tag(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Returns the user's tags for the shell's completion, as `complete_name` does."""
    return _plain_words(lambda registry: registry.networks.own_tags(), incomplete)


def _plain_words(known: Callable[[Registry], Iterable[str]], incomplete: str) -> list[str]:
    """Returns those of the words that the registry knows that begin so and are one plain word to a shell, sorted."""
    from hnetkit.registry.columns import spelled
    from hnetkit.registry.store import Registry

    path = paths.registry_file()
    begun = spelled(incomplete)
    with suppress(OSError, HnetkitError):  # nobody waits for a completion, or reads why there is none
        if path.exists():
            with Registry(path, patience_s=0) as registry:
                words = list(known(registry))
            return sorted(word for word in words if spelled(word).startswith(begun) and _is_plain_word(word))
    return []


def _is_plain_word(name: str) -> bool:
    return _PLAIN_WORD.fullmatch(name) is not None and printable(name) == name
