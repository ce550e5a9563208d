"""Hints speak the language of the caller: flags on the command line, arguments in Python."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.networks import network_file

import hnetkit
from hnetkit.baking.run import bake_file
from hnetkit.cli import run
from hnetkit.cli.train_options import _SETTINGS
from hnetkit.errors import HnetkitError, NotAHypernetwork, OutputExists, UsageError
from hnetkit.formats.conversion import convert_all
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate import draw_grid
from hnetkit.generate.image_files import Picture
from hnetkit.generate.model import Model
from hnetkit.generate.options import DrawOptions
from hnetkit.runtime.bench import measure
from hnetkit.sharing import share
from hnetkit.sharing.folder import ShareFolder
from hnetkit.train import prepare, sweep, train
from hnetkit.train.build import Build
from hnetkit.train.guards import GuardSettings
from hnetkit.train.recipe import Recipe
from hnetkit.wording import in_python

PACKAGE = Path(__file__).resolve().parents[2] / "hnetkit"
SHELL = re.compile(r"hnetkit [a-z]+\b(?:(?!;|`|, or ).)*|pip install.*")
FOR_THE_SHELL_ALONE = {"base_model", "path", "x", "y", "vary"}
"""Flags of commands that Python has in other forms; the errors of the verbs that it has bring words of their own."""


def template(node: ast.AST) -> str | None:
    """Returns the text of a string, with a 7 for each value in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in node.values)
    return None


def hints() -> Iterator[tuple[str, bool]]:
    """Every hint and every remedy of the package that has a flag in it, and whether Python's words stand beside it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "cli" in path.parts or path.name == "wording.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            found: list[tuple[ast.AST, bool]] = []
            if isinstance(node, ast.Call):
                named = {word.arg: word.value for word in node.keywords}
                found += [(named["hint"], "python" in named)] if "hint" in named else []
                found += [(value, False) for value in node.args[2:3] if ast.unparse(node.func).endswith("Verdict")]
            elif isinstance(node, ast.Assign):
                name = ast.unparse(node.targets[0]).lower()
                found += [(node.value, False)] if re.search("hint|remedy|_lower_rate|_elsewhere|_fetch$", name) else []
            parts = {id(part) for value, _ in found for whole in ast.walk(value) for part in joined(whole)}
            for value, is_given in found:
                texts = (template(inner) for inner in ast.walk(value) if id(inner) not in parts)
                yield from ((text, is_given) for text in texts if text and "--" in text)


def joined(node: ast.AST) -> list[ast.AST]:
    """Returns the parts of a string with values, which are not strings of their own."""
    return list(node.values) if isinstance(node, ast.JoinedStr) else []


def arguments() -> set[str]:
    """The names of all arguments of Python's verbs, and of all settings of a recipe."""
    verbs = [hnetkit.load_model, Model.draw, Picture.save, draw_grid, prepare, train, sweep]
    verbs += [hnetkit.save, hnetkit.FetchSession.pull, hnetkit.FetchSession.repair, hnetkit.Library.link]
    verbs += [convert_all, measure, bake_file, share, ShareFolder.upload]
    names = {name for verb in verbs for name in inspect.signature(verb).parameters}
    for kind, prefix in ((DrawOptions, ""), (Recipe, ""), (Build, "build."), (GuardSettings, "guards.")):
        names |= {prefix + field.name for field in dataclasses.fields(kind)}
    return names


def test_no_hint_for_python_has_a_flag_and_every_argument_in_one_exists() -> None:
    found = set(hints())
    assert len(found) > 60
    known = arguments() | {"width", "height", "size"}
    for text, is_given in found:
        python = SHELL.sub("", in_python(text))
        assert "--" not in python.replace("leave --", ""), text
        named = set(re.findall(r"(?<![\w\".-])([a-z_]+(?:\.[a-z_]+)?)=", python))
        assert is_given or named - {"seed", "strength", "order"} <= known | FOR_THE_SHELL_ALONE, text


def test_every_option_of_training_is_the_setting_that_it_stands_for() -> None:
    settings = [setting for group in _SETTINGS.values() for setting in group]
    wrong = {
        setting.flags: in_python(f"another {flag}")
        for setting in settings
        for flag in [setting.flags.split("/")[0]]
        if in_python(f"another {flag}") not in (f"another {setting.name}=", f"another {setting.name}=True")
    }
    assert wrong == {}


@pytest.mark.parametrize(
    ("shell", "python"),
    [
        ("--init-from /nets/ink.pt", 'start="/nets/ink.pt"'),
        ("add --overwrite to replace it", "add overwrite=True to replace it"),
        ("--image FILE --mask FILE", "image=FILE, mask=FILE"),
        ('--sampler "Euler a"', 'sampler="Euler a"'),
        ("--size 512, or --size 512x768 for width and height", 'size=512, or size="512x768" for width and height'),
        ("--restart starts over; --name or --out leaves it", "restart=True starts over; name= or out= leaves it"),
        ("--precision no, or another autoencoder (--vae)", 'precision="no", or another autoencoder (vae=)'),
        ("leave --resume out", "leave resume= out"),
        ("without --split, or with a smaller --size", "without split=, or with a smaller size="),
        ("--rate 1e-5, and no lr in the options", 'rates="1e-5", and no lr in the options'),
        ("less --dropout, or another --activation", "less build.dropout=, or another build.activation="),
        ("hnetkit scan 'my folder'", "hnetkit.Library().scan('my folder')"),
        ("hnetkit scan", "hnetkit.Library().scan()"),
        ("unpack it yourself, then: hnetkit scan FOLDER", "unpack it yourself, then: hnetkit.Library().scan(FOLDER)"),
        ('hnetkit generate "a red circle"', "hnetkit.load_model().draw('a red circle')"),
        ("hnetkit list --files", "hnetkit list --files"),
        ("give a file that `hnetkit export` wrote", "give a file that `hnetkit export` wrote"),
        ("hnetkit scan it's", "hnetkit scan it's"),
        ("pip install --upgrade hnetkit", "pip install --upgrade hnetkit"),
        ("did you mean red--blue?", "did you mean red--blue?"),
        ("rename it - it is too long", "rename it - it is too long"),
    ],
)
def test_a_hint_for_a_shell_as_one_for_python(shell: str, python: str) -> None:
    assert in_python(shell) == python
    error = UsageError("no", hint=shell)
    assert (error.hint, error.command_hint) == (python, shell)


def test_an_error_may_bring_its_own_words_or_have_no_hint() -> None:
    error = UsageError("no", hint="--x 1", python="axes=[1]")
    assert (error.hint, error.command_hint) == ("axes=[1]", "--x 1")
    assert (HnetkitError("no").hint, HnetkitError("no").command_hint) == (None, None)
    assert NotAHypernetwork("no", kind="text", hint="--out FILE").command_hint == "--out FILE"


def test_one_error_is_told_to_each_in_their_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = network_file(tmp_path)
    hnetkit.save(hnetkit.load(net), tmp_path / "there.safetensors")
    with pytest.raises(OutputExists) as refused:
        hnetkit.save(hnetkit.load(net), tmp_path / "there.safetensors")
    assert refused.value.hint == "add overwrite=True to replace it"
    assert run(["convert", str(net), str(tmp_path / "there.safetensors")]) == 2
    run(["inspect", "--", str(tmp_path)])
    with pytest.raises(HnetkitError) as refused_folder:
        OpenFile(tmp_path)
    assert refused_folder.value.hint == f"hnetkit.Library().scan({str(tmp_path)!r})"
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Hint: ")]
    assert told == ["Hint: add --overwrite to replace it", f"Hint: hnetkit scan {tmp_path}"]


def test_nothing_in_the_package_passes_on_a_hint_that_was_made_for_python() -> None:
    """An error that is made of another one takes its `command_hint`, or the command line would speak Python."""
    readers = [
        path.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "hint" and isinstance(node.ctx, ast.Load)
    ]
    assert readers == []
