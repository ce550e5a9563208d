"""Completion in a real bash: what it offers are plain words to the shell, whatever networks are called."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from support import networks

from hnetkit.cli import cli, run
from hnetkit.cli.completion import (
    complete_license,
    complete_name,
    complete_own_tag,
    complete_removed,
    complete_setting,
    complete_tag,
    complete_value,
)

PLAIN = ["ink", "ink-wash_2.5+x", "ink@v2", "ink=best", "ink水彩", "inkÉté", "ink❤️"]
HOSTILE = [
    *("ink$(touch pwned)", "ink`touch pwned`", "ink;touch pwned", "ink|touch pwned", "ink&touch pwned", "ink>pwned"),
    *("ink'x", 'ink"x', "ink\\x", "ink x", "ink\ttab", "ink\nplain,inkline", "ink*", "ink?", "ink[a]", "ink{a,b}"),
    *("ink!x", "ink#x", "ink^x", "ink(x)", "ink<x", "ink,x", "ink\u3000x", "ink\x1bx", "ink\u202ex", "ink\u200bx"),
    *("ink\u201cx", "ink\u2013x"),
]
LEADING = ["-ink", "~ink", "=ink", "%ink", "+ink", "@ink", "#ink", "!ink", "\u2013ink"]


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A folder whose networks have all these names, indexed; it is where the shell is."""
    first = networks.network_file(tmp_path, "ink.pt")
    for name in [*PLAIN[1:], *HOSTILE, *LEADING]:
        shutil.copy(first, tmp_path / f"{name}.pt")
    assert run(["scan", str(tmp_path), "-q"]) == 0
    assert run(["tag", "ink", "--alias", "ink$(touch pwned)alias"]) == 0
    return tmp_path


def completed(folder: Path, word: str) -> list[str]:
    """What bash would put on the line after `hnetkit show WORD`; each is given to the shell as Enter would."""
    script = f"""
        eval "$(_HNETKIT_COMPLETE=bash_source hnetkit 2>/dev/null)" 2>/dev/null
        COMP_WORDS=(hnetkit show {word}) COMP_CWORD=2
        _hnetkit_completion hnetkit
        for reply in "${{COMPREPLY[@]}}"; do
            printf '%s\\0' "$reply"
            eval "printf '%s\\0' $reply"
        done
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    words = done.stdout.split("\0")[:-1]
    assert words[::2] == words[1::2]  # to the shell each is the one word that it looks like
    return sorted(words[::2])


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_plain_names_and_obeys_none(shell: Path) -> None:
    assert completed(shell, "ink") == sorted(PLAIN)
    assert not (shell / "pwned").exists()


def test_names_that_begin_as_something_else_are_left_out(shell: Path) -> None:
    context = click.Context(cli)
    for incomplete in ("", *(name[0] for name in LEADING)):
        offered = complete_name(context, click.Argument(["name"]), incomplete)
        assert not set(offered) & {*LEADING, *HOSTILE}


def test_tags_are_completed_by_plain_words_alone(shell: Path) -> None:
    (shell / "glow.metadata.json").write_text('{"tags": ["shiny"]}')
    networks.network_file(shell, "glow.pt", seed=2)
    assert run(["scan", str(shell), "-q"]) == 0
    assert run(["tag", "ink", "shapes", "sharp", "sh;touch pwned", "two words"]) == 0
    assert run(["tag", "glow", "shade"]) == 0
    complete = ShellComplete(cli, {}, "hnetkit", "_HNETKIT_COMPLETE")

    def offered(*line: str) -> list[str]:
        return [item.value for item in complete.get_completions(list(line[:-1]), line[-1])]

    assert offered("list", "--tag", "sh") == ["shade", "shapes", "sharp", "shiny"]
    assert offered("tag", "ink", "sh") == ["shade", "shapes", "sharp"]
    assert offered("tag", "ink", "--remove", "sh") == ["shade", "shapes", "sharp"]
    assert run(["remove", "glow", "-y", "-q"]) == 0
    assert (offered("remove", "gl"), offered("remove", "--undo", "gl")) == ([], ["glow"])
    assert offered("remove", "--undo", "ink") == []


def test_licenses_are_those_of_the_hub() -> None:
    offered = complete_license(click.Context(cli), click.Option(["--license"]), "CC-by-4")
    assert offered == ["cc-by-4.0"]


def test_settings_and_their_values_are_completed_and_where_a_value_is_a_path_the_shell_offers_files() -> None:
    complete = ShellComplete(cli, {}, "hnetkit", "_HNETKIT_COMPLETE")

    def offered(*line: str) -> list[tuple[str, str]]:
        return [(item.value, item.type) for item in complete.get_completions(["config", *line[:-1]], line[-1])]

    assert offered("m") == [("model", "plain"), ("mirrors", "plain")]
    assert offered("capture", "o") == [("on", "plain"), ("off", "plain")]
    assert offered("model", "sd") == [("sd", "file")]
    assert offered("loras", "./") == [("./", "dir")]
    assert offered("unasked", "") == []


def test_nobody_waits_for_a_registry_that_is_busy(shell: Path, home: Path) -> None:
    context = click.Context(cli)
    assert complete_name(context, click.Argument(["name"]), "ink@")
    with closing(sqlite3.connect(home / "registry.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        assert complete_name(context, click.Argument(["name"]), "ink@") == []
        assert time.monotonic() - started < 10, "others wait half a minute"


def test_a_home_that_cannot_be_looked_at_completes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HNETKIT_HOME", f"/{'a' * 300}")
    assert complete_name(click.Context(cli), click.Argument(["name"]), "ink") == []


def test_every_completion_of_names_is_that_one() -> None:
    own = {
        parameter._custom_shell_complete
        for command in commands(cli, click.Context(cli))
        for parameter in command.params
        if parameter._custom_shell_complete is not None
    }
    of_the_registry = {complete_name, complete_removed, complete_tag, complete_own_tag}
    assert own - {complete_license, complete_setting, complete_value} == of_the_registry


def commands(group: click.Group, context: click.Context) -> Iterator[click.Command]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from commands(command, context)
