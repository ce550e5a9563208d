"""Values as SQLite's text can hold them, and back."""

from __future__ import annotations

import json
import os
import re
from typing import Any

_UNSTORABLE = re.compile(r"[\\\ud800-\udfff]")
_STORED = re.compile(r"\\(?:\\|u([0-9A-F]{4}))")


def path_text(path: str) -> str:
    r"""Returns `path` as storable text: ``/`` between folders, ``\\`` for a backslash.

    What is not valid Unicode (a file name that is not UTF-8, as `os.fsdecode` gives it) becomes ``\uDCFF``.
    """
    if os.sep != "/":
        path = path.replace(os.sep, "/")
    return _UNSTORABLE.sub(lambda found: r"\\" if found[0] == "\\" else f"\\u{ord(found[0]):04X}", path)


def text_path(text: str) -> str:
    """Returns the path that `path_text` was given."""
    path = _STORED.sub(lambda found: chr(int(found[1], 16)) if found[1] else "\\", text) if "\\" in text else text
    return path if os.sep == "/" else path.replace("/", os.sep)


def json_text(value: Any) -> str:
    """Returns `value` as JSON; whatever JSON lacks is kept as the text that describes it."""
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode()
