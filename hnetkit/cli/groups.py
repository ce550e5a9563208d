"""Groups of commands, imported on first use so that `--help` and `list` stay fast, and the check of their arguments."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import click

from hnetkit import paths
from hnetkit.cli.signals import name_command
from hnetkit.errors import NotFound, OutputExists, UsageError, did_you_mean

_MAY_BE_EMPTY = frozenset(
    (
        "alias",
        "note",
        "prefix",
        "preview",
        "strength",
        "trigger_words",
        "text",
        "value",
        "words",
        "prompt",
        "prompts",
        "negative_prompt",
        "hires_prompt",
        "hires_negative_prompt",
        "prompt_name",
        "previews_prompts",
    )
)
"""Parameters that are free text; all others name something, and a name is never empty."""

_WRITTEN = frozenset({"check", "directory", "file", "html", "out", "out_dir"})
"""Parameters that name a file or a folder to write."""


class LazyGroup(click.Group):
    """A group whose commands are imported when one of them is used.

    Args:
        sections: heading in the help -> command -> (module of this folder that defines it as ``COMMAND_command``,
            its line in the help).
        meant: what other programs call a command -> its arguments here, for the hint.

    Attributes:
        table: the commands of all sections.
    """

    def __init__(
        self,
        *args: Any,
        sections: Mapping[str, Mapping[str, tuple[str, str]]],
        meant: Mapping[str, str] = MappingProxyType({}),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections = sections
        self._meant = meant
        self.table = {name: entry for commands in sections.values() for name, entry in commands.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in self.table and name not in self.commands:
            module = importlib.import_module(f"hnetkit.cli.{self.table[name][0]}")
            self.add_command(getattr(module, f"{name}_command"), name)
        return super().get_command(ctx, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.table and not args[0].startswith("-"):
            near = self._meant.get(args[0]) or did_you_mean(args[0], self.table)
            hint = f"{ctx.command_path} {near}" if near else f"{ctx.command_path} --help lists the commands"
            raise UsageError(f"there is no command {args[0]}", hint=hint)
        found = super().resolve_command(ctx, args)
        check_names(ctx, *found)
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            name_command(interruption, f"{ctx.command_path} {ctx.invoked_subcommand}".partition(" ")[2])
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, commands in self.sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name, summary) for name, (_, summary) in commands.items()])


def check_names(ctx: click.Context, name: str | None, command: click.Command | None, args: list[str]) -> None:
    """Accepts the arguments of a command that is about to run.

    Raises:
        UsageError: a file, a folder or a name is empty or blank, as ``"$FOLDER"`` is where the variable is not set; an
            empty path would often mean the current folder, and a blank filter everything.
        NotFound: the current folder is not there any more, from which paths begin, and which torch needs to load.
        OutputExists: a file to write, or a folder above it, is the registry or the settings, or would take their name.
    """
    if command is None or ctx.resilient_parsing:  # a shell completes the line
        return
    try:
        os.getcwd()
    except FileNotFoundError:
        raise NotFound("the folder that you are in is not there any more", hint='cd "$HOME"') from None
    try:
        own = click.Context(command, parent=ctx, info_name=name)
        given, _, _ = command.make_parser(own).parse_args(args=list(args))
    except click.UsageError:  # the command itself reports it, with its usage
        return
    for param in command.params:
        value = given.get(param.name or "")
        texts = value if isinstance(value, list | tuple) else [value]
        if param.name not in _MAY_BE_EMPTY and any(isinstance(text, str) and not text.strip() for text in texts):
            what = param.opts[0] if isinstance(param, click.Option) else "an argument"
            raise UsageError(f"{what} is empty", hint="a shell variable in it may not be set")
        if param.name in _WRITTEN and isinstance(value, str) and any(map(paths.is_state, _with_folders(value))):
            message = f"{value}: where hnetkit itself keeps its registry and settings"
            raise OutputExists(message, hint="choose another name")


def _with_folders(path: str) -> list[Path]:
    return [Path(path), *Path(path).parents]
