"""The documentation cannot disagree with the program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hnetkit.cli import cli
from hnetkit.cli.groups import LazyGroup

REPOSITORY = Path(__file__).resolve().parents[2]


def commands(group: LazyGroup, *path: str) -> Iterator[tuple[str, str, click.Command]]:
    """Every command of a group and of the groups in it, as (its name with theirs, its line in the help, itself)."""
    for name, (_, summary) in group.table.items():
        found = group.get_command(click.Context(group), name)
        assert found is not None
        yield " ".join([*path, name]), summary, found
        if isinstance(found, LazyGroup):
            yield from commands(found, *path, name)


COMMANDS = {name: (summary, command) for name, summary, command in commands(cli)}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_has_its_line_two_examples_and_help_for_every_option(name: str) -> None:
    summary, found = COMMANDS[name]
    text = found.help or ""
    assert text.split("\n\n")[0].replace("\n", " ").strip() == summary
    typed = name.removesuffix(" run")  # the default of its group
    assert len(re.findall(rf"^\s*hnetkit {typed}\b", text, re.MULTILINE)) >= 1
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


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_files_that_a_page_for_contributors_names_are_there(page: str) -> None:
    """In diagrams, paths begin below `hnetkit`. Capital letters stand for a name that somebody chooses."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w./-])[\w./-]+\.(?:py|toml)\b|(?<=`)[\w./-]+(?:/|\.md|\.txt)(?=`)", text))
    fixed = {name for name in named if not re.search(r"SITE|OP\b", name)}
    roots = (REPOSITORY, REPOSITORY / "hnetkit")
    assert len(fixed) > 15
    assert {name for name in fixed if not any((root / name).exists() for root in roots)} == set()
