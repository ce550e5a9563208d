"""Groups of commands that are imported one module at a time, so that `--help` and `list` stay fast."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Any

import click

from hnetkit.cli.named import check_names
from hnetkit.errors import UsageError


class LazyGroup(click.Group):
    """A group whose commands are imported when one of them is used.

    Args:
        table: command -> (module of this folder that defines it as ``COMMAND_command``, its line in the help).
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

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
            near = self.nearest(args[0])
            hint = f"{ctx.command_path} {near}" if near else f"{ctx.command_path} --help lists the commands"
            raise UsageError(f"there is no command {args[0]}", hint=hint)
        found = super().resolve_command(ctx, args)
        check_names(ctx, *found)
        return found

    def nearest(self, name: str) -> str | None:
        """Returns the command that someone may have meant."""
        return next(iter(difflib.get_close_matches(name, self.table, n=1)), None)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.table.items()])
