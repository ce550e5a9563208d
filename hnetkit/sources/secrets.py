"""Taking a token out of what a site answers, in whatever spelling it comes back."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from html.entities import html5

HIDDEN = "[token]"
SHORTEST = 8  # signs; less is no token, and would be found in much that is none


def remover(token: str | None) -> Callable[[str], str]:
    """Returns what takes a token out of a text: as it is, escaped for JSON, HTML or addresses, in hex or in base64."""
    if token is None or len(token) < SHORTEST:
        return lambda text: text
    spellings = ["".join(map(_any_spelling, token)), f"(?i:{token.encode().hex()})", *map(re.escape, _in_base64(token))]
    pattern = re.compile("|".join(spellings))
    return lambda text: pattern.sub(HIDDEN, text)


def finder(token: str | None) -> Callable[[bytes], bool]:
    """Returns what says of the pieces of a body, given one after another, whether the token as it is has come."""
    if token is None or len(token) < SHORTEST:
        return lambda piece: False
    sought, end = token.encode(), b""

    def found(piece: bytes) -> bool:
        nonlocal end
        whole = end + piece
        end = whole[1 - len(sought) :]
        return sought in whole

    return found


def _any_spelling(character: str) -> str:
    code = ord(character)
    if character.isalnum():
        named = ""
    else:  # JSON may put a backslash before any slash, HTML may name what is neither letter nor digit
        names = [name for name, sign in html5.items() if sign == character and name.endswith(";")]
        named = rf"|\\{re.escape(character)}" + "".join(f"|&{name}" for name in names)
    return rf"(?:{re.escape(character)}{named}|(?i:\\+u{code:04x}|%(?:25)*{code:02x}|&#x0*{code:x};)|&#0*{code};)"


def _in_base64(token: str) -> list[str]:
    """What is in the base64 of any text that holds the token: it may begin at any of three places of a group."""
    found = set()
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + token.encode()).decode()
        whole = coded.rstrip("=")[(0, 2, 3)[shift] : -1]  # without the signs that neighbours have a part in
        found |= {whole, whole.replace("+", "-").replace("/", "_")} if len(whole) >= 8 else set()
    return sorted(found)
