"""Hints are commands that people paste into a shell: a name or a path in one is a word of it, and nothing else."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hnetkit import errors
from hnetkit.cli import run
from hnetkit.errors import HnetkitError, did_you_mean
from hnetkit.text import argument, printable

PACKAGE = Path(__file__).resolve().parents[2] / "hnetkit"

_OPENS = re.compile(r"(?:hnetkit (?!.*[?;,]\s).*|(?:^|\s)--[a-z-]+[ =]|(?:^|\s)-n )\"?$")
"""What stands before a value that is a part of a command."""

# numbers, and words of hnetkit's own
OURS = re.compile(
    r"argument\(.*|beside|axis|near|near\[0\]|known\[near\[0\]\]|instead|chosen|layout|key|job\.sha256|network\['hash'\]"
    r"|what|processes\.size|' or '\.join\((?:DTYPES|DEVICES|bases)\)|fitting\[0\]|', '\.join\(near\)"
    r"|','\.join\(map\(str, seeds\)\)"
    r"|kind|config|max\(ranks\)|_.*"
)


def parts_of_commands() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            hints = [word.value for word in node.keywords if word.arg == "hint"] if isinstance(node, ast.Call) else []
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).endswith("hint"):
                hints.append(node.value)
            for text in (found for hint in hints for found in ast.walk(hint) if isinstance(found, ast.JoinedStr)):
                before = ""
                for part in text.values:
                    if isinstance(part, ast.FormattedValue) and _OPENS.search(before):
                        yield str(path.relative_to(PACKAGE)), ast.unparse(part.value)
                    before += str(part.value) if isinstance(part, ast.Constant) else "X"


def test_every_name_in_a_command_is_quoted() -> None:
    found = list(parts_of_commands())
    assert len(found) > 20
    assert [(place, value) for place, value in found if not OURS.fullmatch(value)] == []


@pytest.mark.skipif(os.name == "nt", reason="hints are for a POSIX shell")
@pytest.mark.parametrize("name", ["a b", "$(touch ran)", "`ran`", "a;ran", "a'b", "-x", "", "猫"])
def test_a_shell_reads_an_argument_as_one_word(name: str) -> None:
    assert shlex.split(f"hnetkit show {argument(name)}")[2:] in ([name], ["--", name])
    assert shlex.split(f"hnetkit scan {argument(name, is_path=True)}")[2:] in ([name], [f"./{name}"])


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    "name",
    ["a\nb", "x\x03\ntouch ran\x0f", "\x1b[31m'\\", "\u202egnp.exe", "in\u200bk", "\x01234", "\udcff\udce9", "-\r"],
)
def test_a_name_with_invisible_characters_is_typed_and_pasted_by_visible_ones(name: str) -> None:
    word = argument(name, is_path=True)
    assert printable(word) == word
    said = subprocess.run(["bash", "-c", f"printf %s {word}"], stdout=subprocess.PIPE, check=True).stdout
    assert said == os.fsencode(f"./{name}" if name.startswith("-") else name)


@pytest.mark.skipif(os.name == "nt", reason="hints are for a POSIX shell")
def test_a_folder_in_a_hint_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x$(touch ran);y", "-d"):
        (tmp_path / name).mkdir()
        run(["inspect", "--", name])
    hints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Hint: ")]
    assert hints == ["Hint: hnetkit scan 'x$(touch ran);y'", "Hint: hnetkit scan ./-d"]


@pytest.mark.parametrize(
    ("word", "near"), [("Grey", "gray"), ("eulr a", "Euler a"), ("EULER", "Euler a"), ("zzz", None), ("", None)]
)
def test_the_nearest_known_word_is_found_in_any_case(word: str, near: str | None) -> None:
    assert did_you_mean(word, ["Euler a", "gray", "DDIM"]) == near


def test_the_nearest_of_thousands_of_long_names_that_are_alike_is_found_at_once() -> None:
    begun = time.process_time()
    names = [f"{'style ' * 40}{number}" for number in range(5000)]
    assert did_you_mean("style " * 40, names) in names
    assert did_you_mean("styl 77", [*names, "style 77"]) == "style 77"
    assert time.process_time() - begun < 3  # 30 where each is compared letter by letter


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    drawn, parents = {}, []
    for match in re.finditer(r"^    ([│├└─ ]*)(\w+) +(\d)$", str(errors.__doc__), re.MULTILINE):
        depth = len(match[1]) // 4
        parents[depth:] = [match[2]]
        drawn[match[2]] = (parents[depth - 1] if depth else "Exception", int(match[3]))
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, HnetkitError)]
    assert drawn == {error.__name__: (error.__base__.__name__, error.exit_code) for error in classes if error.__base__}
