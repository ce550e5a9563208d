"""The documentation cannot disagree with the program."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from hnetkit.cli import COMMANDS, cli

REPOSITORY = Path(__file__).resolve().parents[2]


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_has_its_line_two_examples_and_help_for_every_option(name: str) -> None:
    found = command(name)
    text = found.help or ""
    assert text.split("\n\n")[0].replace("\n", " ").strip() == COMMANDS[name][1]
    assert len(re.findall(rf"^\s*hnetkit {name}\b", text, re.MULTILINE)) >= 1
    assert len(re.findall(r"^\s+\S+.*", text.split("Examples:")[1], re.MULTILINE)) >= 2
    for parameter in found.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_has_its_heading_in_the_reference(name: str) -> None:
    assert f"\n## hnetkit {name}\n" in (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [REPOSITORY / "README.md", *sorted(REPOSITORY.glob("docs/*.md"))], ids=lambda p: p.name
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
