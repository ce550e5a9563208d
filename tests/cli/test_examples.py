"""The examples in the help of commands: those of one group, typed one after the other, tell a story that works."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.pipelines import tiny_sd
from support.training import make_pictures

from hnetkit import demo
from hnetkit.cli import COMMANDS, cli, run
from hnetkit.cli.groups import LazyGroup

ELSEWHERE = {
    r"hnetkit (browse|pull|updates|identify)\b": "asks a site",
    r"hnetkit sync\b": "asks a site",
    r"hnetkit share .*--upload": "asks a site",
    r"hnetkit train prepare .*--caption": "loads a model from the hub",
    r"hnetkit demo\b": "runs in tests of the demo",
    r"hnetkit gallery\b": "serves until Ctrl-C; tests of the gallery open its pages",
    r"hnetkit bench\b": "needs a network of Stable Diffusion's widths, and a minute",
}
"""Examples that no story runs, and why."""

DRAWN = 'generate "a large red star <hypernet:outline:0.8>" --seed 3 --out star.png'


def examples(command: click.Command) -> Iterator[str]:
    for line in (command.help or "").split("Examples:")[-1].splitlines():
        if line.strip():
            yield line.strip()


def story(group: LazyGroup, names: Iterator[str] | list[str]) -> Iterator[str]:
    for name in names:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield from examples(command)
        if isinstance(command, LazyGroup):
            yield from story(command, list(command.table))


STORIES = {heading: list(dict.fromkeys(story(cli, list(names)))) for heading, names in COMMANDS.items()}


def test_no_shell_reads_a_glob_in_an_example() -> None:
    """zsh, the shell of macOS, refuses a word with a glob that no file matches."""
    for example in {example for examples in STORIES.values() for example in examples}:
        unquoted = re.sub(r"'[^']*'|\"[^\"]*\"", "", example.partition(" #")[0])
        assert not re.search(r"hf:\S*[*?\[]", unquoted), example


def why_elsewhere(example: str) -> str | None:
    return next((reason for pattern, reason in ELSEWHERE.items() if re.match(pattern, example)), None)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundled networks, with folders of other programs and of photographs nearby."""
    folder = tmp_path / "here"
    shutil.copytree(demo.network_folder(), folder)
    make_pictures(folder / "photos", 3, [(96, 80)])
    for name in (
        "stable-diffusion-webui/models/hypernetworks",
        "ComfyUI/models",
        "ComfyUI/custom_nodes",
        "forge/modules_forge",
        "models",
    ):
        (tmp_path / name).mkdir(parents=True)
    for program in ("stable-diffusion-webui", "forge"):
        (tmp_path / program / "webui.py").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent) + os.pathsep + os.environ["PATH"])
    monkeypatch.chdir(folder)
    return folder


def draws_in_four_steps(model: Path) -> None:
    """Makes a copy of the bundled model, which itself draws in twenty."""
    shutil.copytree(demo.model_folder(), model)
    defaults = model / "hnetkit.json"
    defaults.write_text(json.dumps(json.loads(defaults.read_text()) | {"steps": 4}))


def typed(example: str) -> int:
    """Runs a line as a shell does, in this process where it takes no shell; returns the exit code."""
    if re.search(r"[|<>]|\$\(", re.sub(r'"[^"$]*"', "", example)) or not example.startswith("hnetkit "):
        return subprocess.run(["bash", "-o", "pipefail", "-c", example], check=False, timeout=300).returncode
    arguments = []
    for word in shlex.split(example)[1:]:
        word = os.path.expanduser(word)
        arguments += sorted(glob.glob(word)) if word.startswith("*") else [word]
    return run(arguments)


@pytest.mark.skipif(os.name == "nt", reason="some examples are for a POSIX shell")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("heading", list(STORIES))
def test_the_examples_of_a_group_run_one_after_the_other(
    heading: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = here.parent / "model"  # the bundled one takes a minute for what these lines train or draw
    if heading == "Training":
        tiny_sd(least=True).save_pretrained(model)
    elif heading == "Drawing":
        draws_in_four_steps(model)
    if model.exists():
        assert run(["config", "model", str(model)]) == 0
    if heading == "Files":
        assert run([*shlex.split(DRAWN), "--steps", "4"]) == 0
    elif heading != "Library":
        assert run(["scan", str(here)]) == 0
    for example in STORIES[heading]:
        if why_elsewhere(example) is None and shutil.which(example.split()[0]) is not None:
            assert typed(example) == 0, f"{example}\n{capfd.readouterr().err}"


def test_every_reason_not_to_run_an_example_is_needed() -> None:
    lines = [example for lines in STORIES.values() for example in lines]
    assert f"hnetkit {DRAWN}" in lines
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, line) for line in lines), pattern
