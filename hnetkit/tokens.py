"""Tokens of sites: where they come from, and which texts can be one. An invalid value is never shown."""

from __future__ import annotations

import os

from hnetkit.errors import UsageError

MOST_TOKEN = 4096  # characters; searching answers for one takes longer with its length


def token_of(name: str) -> str | None:
    """Returns the token in an environment variable; None without one.

    Raises:
        UsageError: it cannot be a token; the value is not shown.
    """
    return checked_token(os.environ.get(name, ""), name)


def checked_token(text: str, where: str) -> str | None:
    """Returns the token in a text from `where`; None where it is blank.

    Raises:
        UsageError: it cannot be a token; the value is not shown.
    """
    token = text.strip()
    if len(token) > MOST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise invalid_token(where)
    return token or None


def invalid_token(where: str) -> UsageError:
    """Returns the error for a value that cannot be a token; the value is not shown."""
    return UsageError(f"{where} holds characters that no token has", hint="copy it from the site again")
