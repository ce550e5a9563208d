"""Frozen dataclasses as JSON objects and back, checked against their own annotations."""

from __future__ import annotations

import difflib
import os
import reprlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from hnetkit.errors import UsageError

T = TypeVar("T")

LARGEST = 2**63 - 1
"""Of a number, and the least that is below zero: what files and tensors can hold."""

_SHOWN = 60  # letters of a key or a value in a message


def to_json(value: Any) -> Any:
    """Returns a dataclass (with others in it) as what JSON holds: tuples become lists."""
    return _plain(asdict(value))


def from_json(kind: type[T], data: Any, where: str) -> T:
    """Returns the dataclass that `to_json` made `data` of; what is left out has its default.

    Args:
        where: what `data` was read from, for errors.

    Raises:
        UsageError: an unknown key, a missing one, or a value of another type.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where}: {_brief(data)} is not a JSON object")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # only given dataclasses
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:_SHOWN], known, n=1) or known
            raise UsageError(f"{where}: there is no setting {str(key)[:_SHOWN]}", hint=f"known: {', '.join(near)}")
    values = {key: _read(hints[key], value, f"{where}: {key}") for key, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from error


def shown(value: Any) -> str:
    """Returns a value of JSON as a message shows it, however large or deep it is."""
    written = _BRIEF.repr(value)
    return written if len(written) <= 2 * _SHOWN else f"{written[: 2 * _SHOWN]}..."


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxlong = _SHOWN


def _brief(value: Any) -> str:
    """Returns what a value is where it cannot be meant: a number as it is, of all else nothing that stands in it.

    A stranger's folder may hold a link to a private file in place of the one that is read.
    """
    return _KINDS.get(type(value)) or shown(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _read(hint: Any, value: Any, where: str) -> Any:
    """Returns a value of JSON as its annotation wants it."""
    origin, arguments = get_origin(hint), get_args(hint)
    value = os.fspath(value) if isinstance(value, os.PathLike) else value  # from Python
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"{where}: {_brief(value)} is none of {', '.join(map(str, arguments))}")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _read(next(kind for kind in arguments if kind is not type(None)), value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise UsageError(f"{where}: {_brief(value)} is not a JSON object")
        return dict(value)
    if is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]  # a class, not one of its objects
    if type(value) in (int, float) and hint in (int, float) and not -LARGEST <= value <= LARGEST:
        raise UsageError(f"{where}: {_brief(value)} is no number from {-LARGEST} to {LARGEST}")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint or (hint is str and not _is_text(value)):
        raise UsageError(f"{where}: {_brief(value)} is not {_NAMES.get(hint, hint)}")
    return value


def _is_text(value: str) -> bool:
    """Whether a text can be written, and name a file: JSON may hold halves of letters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _read_tuple(arguments: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where}: {_brief(value)} is not a list")
    if arguments[-1] is Ellipsis:
        return tuple(_read(arguments[0], item, where) for item in value)
    if len(value) != len(arguments):
        raise UsageError(f"{where}: {_brief(value)} has not {len(arguments)} values")
    return tuple(_read(kind, item, where) for kind, item in zip(arguments, value, strict=True))


_KINDS: Mapping[Any, str] = {str: "a text", list: "a list", tuple: "a list", dict: "an object"}
_NAMES: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
