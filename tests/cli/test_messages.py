"""Messages whose wording changed: `messages.tsv` has the old and the new words, and the exit code of both.

A script may look for a name, a number or a command in a message: these stay, and so does the exit code. ``{}`` stands
for what a message names.
"""

from __future__ import annotations

import ast
import csv
import re
from functools import cache
from pathlib import Path

import pytest

from hnetkit import errors
from hnetkit.cli import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = "|".join(name for commands in COMMANDS.values() for name in commands)
FACT = re.compile(
    rf"--[a-z][\w-]*|hnetkit (?:{NAMES})\b|\b[A-Z][A-Z0-9_]{{3,}}\b|(?:model|version):ID|\.quarantine|\d{{3,}}"
)

RENAMED = {
    "--undo": "--remove",
    "--unset": "--remove",
    "--base": "--base-model",
    "--beside": "--with",
    "--initialisation": "--initialization",
}
"""Earlier flags, which still work, and how messages spell them now."""


def table() -> list[tuple[str, str, str]]:
    text = Path(__file__).with_name("messages.tsv").read_text(encoding="utf-8")
    rows = csv.reader(text.splitlines()[1:], delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(code, old, new) for code, old, new in rows]


def template(node: ast.AST) -> str | None:
    """Returns the text of a string, with ``{}`` for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


@cache
def strings() -> list[tuple[str, tuple[str, ...]]]:
    """Every string of the package, with the names of the calls that it stands in."""
    found = []
    for folder in ("hnetkit", "kernels", "registry"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            nodes: list[tuple[ast.AST, tuple[str, ...]]] = [(ast.parse(path.read_text(encoding="utf-8")), ())]
            while nodes:
                node, calls = nodes.pop()
                if (text := template(node)) is not None:
                    found.append((text, calls))
                if isinstance(node, ast.Call):
                    calls = (*calls, getattr(node.func, "attr", getattr(node.func, "id", "")))
                nodes += [(child, calls) for child in ast.iter_child_nodes(node)]
    return found


@pytest.mark.parametrize(("code", "old", "new"), table(), ids=lambda value: value[:60])
def test_a_message_keeps_its_facts_and_its_exit_code(code: str, old: str, new: str) -> None:
    said = [calls for text, calls in strings() if new in text]
    assert said, "no message says this any more: take it out of the table, or write the words of today"
    facts = {RENAMED.get(fact, fact) for fact in FACT.findall(old)}
    assert facts <= set(FACT.findall(new))
    assert old.count("{}") <= new.count("{}")
    if code:
        kinds = [getattr(errors, called, None) for calls in said for called in calls]
        codes = {str(kind.exit_code) for kind in kinds if kind is not None and hasattr(kind, "exit_code")}
        assert code in codes
