"""What is wrong with a command is said before torch is imported: half a second instead of several."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from PIL import Image
from support.networks import a1111_network, save_pt

import hnetkit
from hnetkit.cli import cli

COMMANDS: Mapping[str, list[str]] = {
    "generate": ["a castle"],
    "grid": ["--prompt", "a castle", "--x", "seed=1-2"],
    "train run": ["pictures", "--name", "ink"],
    "train sweep": ["pictures", "--name", "ink", "--vary", "rate=1e-5|1e-6"],
}
"""Command -> arguments with nothing wrong."""

WRONG: Mapping[str, tuple[str, ...]] = {
    "--axis": ("?!", "stength=1", "seed=x", "strength=0:1:0", "sampler=Eulr", "cfg=0"),
    "--beside": ("absent.pt", "lines.pt", "no-network.pt"),
    "--hires-size": ("?!", "60x60"),
    "--model": ("?!", "absent", "pictures", "no-network.pt", "https://a.b/c"),
    "--network": ("?!", "lines", "lines.pt:2", "absent.pt", "no-network.pt", "lines:much"),
    "--out": ("absent/folder.gif", "absent/a.png"),
    "--seed": ("-2", "9223372036854775808"),
    "--size": ("?!", "60"),
    "--start": ("absent.pt", "lines.pt", "no-network.pt"),
    "--vary": ("?!", "rate=", "raet=1|2", "rate=1e-5|1e-5"),
    "--width": ("60",),
    "--height": ("60",),
    "--x": ("?!", "stength=1", "seed=x", "strength=0:1:0", "sampler=Eulr", "cfg=0", "hypernetwork=lines"),
}
"""Option -> wrong values; others have `ANY`."""

ANY = ("?!",)

ANY_TEXT = frozenset(
    {
        *("--prompt", "--negative-prompt", "--hires-negative-prompt", "--preview-prompt", "--preview-negative-prompt"),
        *("--prompt-name", "--hires-prompt"),
    }
)
"""Options whose value may be any text."""

NEEDS_TORCH = frozenset({"--optimizer", "--optimizer-option"})
"""Options that only torch can judge."""

ALONE: Mapping[str, list[list[str]]] = {
    "generate": [
        [],
        ["a", "--size", "64", "--width", "64"],
        ["a", "--mask", "pictures/a.png"],
        ["a", "--image", "pictures/a.png", "--hires-scale", "2"],
        ["a", "--hires-scale", "2", "--hires-size", "128"],
        ["a", "--hires-scale", "2", "--hires-prompt", "a <hypernet:lines:1>"],
        ["a <hypernet:lnes:1>"],
        ["a <hypernet:lines:1>"],
        ["a <lora:absent:1>"],
        [" AND ".join("a" * 200)],
        ["a", "--offload", "--device", "cpu"],
        ["a", "--out", "a.png", "--count", "2"],
        ["a", "--json", "--csv"],
    ],
    "grid": [
        ["--prompt", "a"],
        ["lines", "--prompt", "a"],
        ["lines", "--prompt", "a", "--x", "seed=1"],
        ["--prompt", "a <hypernet:lines:1>", "--x", "seed=1-2"],
        ["--prompt", "a", "--x", "seed=1", "--y", "seed=2"],
        ["--prompt", "a", "--x", "order=all"],
        ["--prompt", "a", "--x", "prompt=castle,star"],
        ["--prompt", "a", "--x", "checkpoint=absent,gone"],
        ["--prompt", "a", "--strengths", "1"],
        ["--prompt", "a", "--x", "seed=1-999", "--y", "steps=1-999"],
    ],
    "train run": [
        [],
        ["pictures"],
        ["absent", "--name", "ink"],
        ["pictures", "--name", "ink", "--resume", "--restart"],
        ["pictures", "--name", "pictures", "--out", "."],
        ["pictures", "--name", "ink", "--start", "lines.pt", "--structure", "1,3,1"],
    ],
    "train sweep": [["pictures", "--name", "ink"], ["pictures", "--name", "ink", "--vary", "rate=1e-5"]],
}
"""Command -> mistakes that are not in one option's value."""

PROGRAM = """
import contextlib, io, json, sys

class Watch:
    asked = False

    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            Watch.asked = True
            raise ModuleNotFoundError("no torch here", name="torch")

sys.meta_path.insert(0, Watch())
from hnetkit.cli import run

for line in sys.stdin:
    Watch.asked, err = False, io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = run(json.loads(line))
    print(json.dumps([code, Watch.asked, err.getvalue()]))
"""


def mistakes(command: str) -> list[list[str]]:
    """Command lines with one mistake each: a wrong value for every option, whichever the command has."""
    found: click.Command = cli
    for part in command.split():
        assert isinstance(found, click.Group)
        inner = found.get_command(click.Context(found), part)
        assert inner is not None
        found = inner
    lines = []
    for option in found.params:
        name = max((name for name in option.opts if name.startswith("--")), key=len, default="")
        if not isinstance(option, click.Option) or option.is_flag or name in ANY_TEXT | NEEDS_TORCH:
            continue
        good = COMMANDS[command]
        if name in good:
            at = good.index(name)
            good = good[:at] + good[at + 2 :]
        lines += [[*good, name, wrong] for wrong in WRONG.get(name, ANY)]
    return [[*command.split(), *line] for line in (*lines, *ALONE[command])]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with a picture, a file that is no network, and a library of one network for SD 1."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    Image.new("RGB", (64, 64)).save("pictures/a.png")
    Path("no-network.pt").write_bytes(b"?" * 100)
    save_pt(a1111_network((320, 768), (1, 1)), "lines.pt")
    with hnetkit.Library() as library:
        library.scan(".")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_no_mistake_waits_for_torch(command: str, folder: Path) -> None:
    lines = mistakes(command)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(answers) == len(lines)
    late = [(line, said) for line, (_, asked, said) in zip(lines, answers, strict=True) if asked]
    assert late == []
    assert [line for line, (code, _, _) in zip(lines, answers, strict=True) if code == 0] == []
    assert [line for line, (_, _, said) in zip(lines, answers, strict=True) if "defect" in said] == []
