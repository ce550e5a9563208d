"""Hints in the words of the caller: flags for the command line, arguments for Python.

A hint is written once, as one types it into a shell. What Python shows of it is made here, by rules that the tests hold
against every hint of the package; an error whose hint needs other words in Python brings them along.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

_ARGUMENT: Mapping[str, str] = {
    "caption": "captions",
    "ensd": "eta_seed_delta",
    "file_dtype": "dtype",
    "for": "program",
    "from": "again",
    "init_from": "start",
    "rate": "rates",
    "with": "beside",
    "guards": "guarded",
    "initialization": "build.initialisation",
    **{name: f"build.{name}" for name in ("activation", "activate_output", "dropout", "layer_norm")},
    **{name: f"build.{name}" for name in ("sides", "structure", "widths", "zero_output")},
    **{name: f"guards.{name}" for name in ("loss_limit", "noise_limit", "rate_factor", "spike")},
    "roll_backs": "guards.most_roll_backs",
    "preview_prompt": "previews.prompts",
    "preview_seed": "previews.seeds",
}
"""Flag -> the argument of Python's verbs, or the setting of a recipe, where it has another name."""

_SWITCHES = frozenset(
    {"attention_slicing", "capture", "force", "gradient_checkpointing", "offload", "overwrite", "recursive", "restart"}
    | {"refill", "resume", "split"}
)

_CALLS: Mapping[str, str] = {"scan": "hnetkit.Library().scan({})", "generate": "hnetkit.load_model().draw({})"}
"""Command -> the same step in Python. Every other command is one for a shell there too."""

_COMMAND = re.compile(r"(?:hnetkit [a-z]+|pip install)\b(?:(?!;|`|, or ).)*")
_FLAG = re.compile(
    r"""(?P<before>\b(?:without|leave)\ )?(?<![\w-])--(?P<flag>[a-z][a-z0-9-]*)
    (?:[ =](?P<value>"[^"]*"|'[^']*'|[^\s,;:()"'-][^\s,;:()"']*)(?=(?P<ends>[,;:)]|$|\ or\ |\ --)?))?""",
    re.VERBOSE,
)
_NO_VALUES = frozenset({"alone", "and", "of", "or", "out"})


def in_python(hint: str) -> str:
    """Returns a hint for a shell as one for Python: ``--dtype bf16`` becomes ``dtype="bf16"``."""
    parts, at = [], 0
    for command in _COMMAND.finditer(hint):
        parts += [_arguments(hint[at : command.start()]), _call(command[0])]
        at = command.end()
    return "".join([*parts, _arguments(hint[at:])])


def _arguments(text: str) -> str:
    replaced = _FLAG.sub(_argument, text)
    return re.sub(r"(=[^\s,]+) (?=[\w.]+=[^\s,;])", r"\1, ", replaced)


def _argument(found: re.Match[str]) -> str:
    name, before, value = found["flag"].replace("-", "_"), found["before"] or "", found["value"]
    name = _ARGUMENT.get(name, name)
    if name not in _SWITCHES and value is not None and _is_value(value, ends=found["ends"] is not None):
        return f"{before}{name}={_literal(value)}"
    is_set = name in _SWITCHES and not before
    return found[0].replace(f"--{found['flag']}", f"{name}=True" if is_set else f"{name}=", 1)


def _is_value(word: str, *, ends: bool) -> bool:
    """Whether the word behind a flag is its value, and not the next word of the sentence."""
    if word in _NO_VALUES:
        return False
    return ends or not re.fullmatch(r"[a-z]+", word)


def _literal(word: str) -> str:
    is_placeholder, is_number = re.fullmatch(r"[A-Z]+", word), re.fullmatch(r"-?\d+(?:\.\d+)?", word)
    return word if is_placeholder or is_number else '"{}"'.format(word.strip("\"'"))


def _call(command: str) -> str:
    """Returns a command as a call, where Python has that verb and the command has no options."""
    try:
        _, verb, *arguments = shlex.split(command)
    except ValueError:  # the quotes are not closed: a sentence
        return command
    if verb not in _CALLS or any(argument.startswith("-") for argument in arguments) or len(arguments) > 1:
        return command
    given = ", ".join(argument if argument.isupper() else repr(argument) for argument in arguments)
    return _CALLS[verb].format(given)
