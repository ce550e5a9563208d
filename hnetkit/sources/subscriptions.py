"""What a sync is of, filters of Civitai or a repository of the hub, and how the registry keeps it under a name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from hnetkit.errors import NotFound, UsageError
from hnetkit.hub import REPO
from hnetkit.sources.civitai import Filters
from hnetkit.sources.references import Reference, parse_reference, redact_reference
from hnetkit.text import argument

Wanted: TypeAlias = Filters | Reference
_KEY, _FEW = "repository", 3


def repository_of(text: str) -> Reference | None:
    """Returns the repository, folder or files of the hub that a text names; None where it is something else.

    Raises:
        UsageError: it begins with ``hf:`` and names none.
    """
    try:
        ref = parse_reference(text)
    except UsageError:
        if text.startswith("hf:"):
            raise
        return None
    if ref.kind != "hub":
        return None
    at = f"@{ref.revision}" if ref.revision else ""
    of = f":{ref.pattern}" if ref.pattern else ""
    return Reference("hub", f"hf:{ref.repo}{at}{of}", repo=ref.repo, revision=ref.revision, pattern=ref.pattern)


def as_stored(wanted: Wanted) -> dict[str, Any]:
    """Returns what is wanted as an object, for storing."""
    return wanted.as_dict() if isinstance(wanted, Filters) else {_KEY: wanted.text}


def in_words(wanted: Wanted) -> str:
    """Returns what is wanted as a line for people."""
    stored = as_stored(wanted).items()
    texts = [f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in stored]
    return ", ".join(texts) or "none, so everything"


def of_stored(stored: Mapping[str, Any]) -> Wanted:
    """Returns what `as_stored` made an object of.

    Raises:
        UsageError: it is of a later hnetkit, or no repository.
    """
    if _KEY not in stored:
        return Filters.of(stored)
    repository = repository_of(str(stored[_KEY]))
    if repository is None:
        raise UsageError(f"{stored[_KEY]}: not a repository of the hub", hint="hf:owner/repo[@revision][:folder]")
    return repository


def syncs_of(rows: Iterable[Mapping[str, Any]], repos: Sequence[str]) -> str:
    """Returns the commands that sync repositories, the first few: by the subscription to all of one, or its address."""
    names = {row["filters"].get(_KEY): str(row["name"]) for row in rows}
    some = ", ".join(f"hnetkit sync {argument(names.get(f'hf:{repo}', f'hf:{repo}'))}" for repo in repos[:_FEW])
    return some + (f", and so for {len(repos) - _FEW} more" if len(repos) > _FEW else "")


def require_name(name: str) -> None:
    """Raises `UsageError` for a name by which nothing that is saved could be meant, since a repository is."""
    if name.startswith("hf:") or repository_of(name) is not None:
        raise UsageError("a repository's name or address cannot name what is saved", hint="choose another name")


def not_saved(name: str) -> NotFound:
    """Returns the error for a name under which nothing is saved; its hint is the command that takes such a text."""
    shown = redact_reference(name) if "://" in name else name  # an address may hold a token
    hint = "hnetkit sync --subscriptions lists them"
    if re.fullmatch(rf"(?:datasets/)?{REPO}(?:[@:].*)?", name):
        hint = f"hnetkit sync {argument(f'hf:{name}')}"
    else:
        try:
            parse_reference(name)
            hint = f"hnetkit pull {argument(name)}" if shown == name else "hnetkit pull takes such an address"
        except UsageError as refused:
            if (refused.command_hint or "").startswith("hnetkit sync "):  # the page of a creator or of a tag
                hint = str(refused.command_hint)
    return NotFound(f"no filters were saved as {shown}", hint=hint)
