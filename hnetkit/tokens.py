"""Tokens of sites: where they are looked for, and which texts can be one. What else stands there is never shown."""

from __future__ import annotations

import os

from hnetkit.errors import UsageError

MOST_TOKEN = 4096  # signs; what looks for one in an answer grows with it


def token_of(name: str) -> str | None:
    """Returns the token in an environment variable; None without one.

    Raises:
        UsageError: it cannot be one; what it is instead is not said.
    """
    return checked_token(os.environ.get(name, ""), name)


def checked_token(text: str, where: str) -> str | None:
    """Returns the token in a text from `where`; None where it is blank.

    Raises:
        UsageError: it cannot be one; what it is instead is not said.
    """
    token = text.strip()
    if len(token) > MOST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise no_token(where)
    return token or None


def no_token(where: str) -> UsageError:
    """Returns the error of what can be no token; what it is instead is not said."""
    return UsageError(f"{where} holds characters that no token has", hint="copy it from the site again")
