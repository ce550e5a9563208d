"""What a prompt calls a network of the library, what may be an alias of it, and what to write there to use it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from hnetkit.errors import HnetkitError, UsageError
from hnetkit.library.resolve import find_if_known, is_hash, label, with_stem
from hnetkit.library.suggestions import suggested_strength, trigger_words
from hnetkit.prompts.tags import Tag, split_comments, split_tags, without_tags
from hnetkit.text import argument, is_text, printable

if TYPE_CHECKING:
    from hnetkit.registry.store import Registry

Row = dict[str, Any]
Meaning: TypeAlias = "Callable[[str], str | None]"
"""Returns the content hash of the network that a name means; None where it means none, or several."""

MOST_ALIAS = 200
"""Characters of an alias."""


def meaning_in(registry: Registry) -> Meaning:
    """Returns what names mean in a library, each looked up once: the networks of a page may be called alike."""

    @cache
    def meaning(name: str) -> str | None:
        try:
            found = find_if_known(name, None, lambda: registry)
        except HnetkitError:
            return None
        return None if found is None or found.has_other_hash else found.network.content_hash

    return meaning


def prompt_name(row: Row, meaning: Meaning | None = None) -> str:
    """Returns what a prompt calls a network: its name, else an alias, else its name with a hash, else a hash alone.

    Args:
        row: that of `Library.record`.
        meaning: of names in the library; what means another network there is passed over.
    """
    content: str = row["content_hash"]
    digits = content.removeprefix("h1:")
    names: list[str] = [row["name"], *row["aliases"], label(row["name"], content), digits[:10], digits]
    meant = (name for name in names if _is_read_back(name) and (meaning is None or meaning(name) == content))
    return next(meant, None) or next(filter(_is_read_back, names))


def _is_read_back(name: str) -> bool:
    """Whether a prompt can contain the tag of a name: no character ends the name there, or makes it a comment."""
    tag = Tag(name)
    return is_text(name) and split_tags(split_comments(str(tag))[0]).tags == (tag,)


def tag_text(row: Row, meaning: Meaning | None = None) -> str:
    """Returns what to write in a prompt to use a network: its tag at the suggested strength, and its trigger words.

    The arguments are those of `prompt_name`. Trigger words come from strangers: tags in them are left out, as they
    would apply other networks.
    """
    strength, _ = suggested_strength(row) or (1.0, "")
    words = without_tags(trigger_words(row).encode("utf-8", "replace").decode())
    return " ".join([str(Tag(prompt_name(row, meaning), strength)), *words.split()])


def require_alias(registry: Registry, text: str, content_hash: str) -> None:
    """Raises UsageError if a text cannot be the alias of a network."""
    why = None
    if not text.strip() or set(text) & set(":<>@") or len(text) > MOST_ALIAS:
        why = "it cannot be written in a prompt"
    elif printable(text) != text or text.strip() != text:
        why = "parts of it are invisible"
    elif text.startswith("-"):
        why = "commands would read it as an option"
    elif is_hash(text):
        why = "it looks like a hash"
    if why is not None:
        raise UsageError(f"{text[:60]!r} cannot be an alias: {why}", hint="use letters, digits, - and _")
    others = [row for row in with_stem(registry, text) if row["content_hash"] != content_hash]
    if others:  # stems take precedence
        raise UsageError(f"{text} is the name of {others[0]['path']}", hint="choose another alias")
    for holder in registry.networks.with_alias(text):
        if holder["content_hash"] != content_hash:  # prompts that use it would draw another network from now on
            name = _name_of(registry, holder)
            free = f"hnetkit tag {argument(name)} --remove-alias {argument(text)}"
            raise UsageError(f"{text} is an alias of {name} already", hint=f"choose another alias, or: {free}")


def _name_of(registry: Registry, network: Row) -> str:
    """Returns what commands call a network: the stem of its file; ``name@hash`` of one in no file."""
    held = registry.files.holding([network["content_hash"]])
    return str(held[0]["stem"]) if held else label(network["name"], network["content_hash"])
