"""`hnetkit train`: the group of commands that train hypernetworks."""

from __future__ import annotations

import os

import click
from click_default_group import DefaultGroup

from hnetkit.cli.lazy import LazyGroup
from hnetkit.cli.named import check_names
from hnetkit.errors import UsageError

# command -> (module of this folder that defines it, its line in `hnetkit train --help`); a test holds each line
# equal to the first line of the command's own help.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "run": ("train_run", "Train a hypernetwork on a folder of pictures."),
    "sweep": ("train_sweep", "Train one network by several recipes, and show them on one sheet."),
    "prepare": ("train_data", "Make a folder to train on from a folder of pictures."),
    "review": ("train_data", "List the captions of a training folder, to read and to edit."),
    "schedule": ("train_schedule", "Show what a learning-rate schedule means, or list the presets."),
}


class TrainGroup(LazyGroup, DefaultGroup):  # type: ignore[misc]
    """Takes what is none of its commands for the arguments of `run`."""

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            super().get_command(ctx, self.default_cmd_name)  # imported, so that DefaultGroup finds it
        return super().get_command(ctx, name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = args[0] in self.table or args[0].startswith("-") or os.path.exists(args[0])
        if not known and (near := self.nearest(args[0])):
            raise UsageError(f"there is no command and no folder {args[0]}", hint=f"{ctx.command_path} {near}")
        found: tuple[str | None, click.Command | None, list[str]] = DefaultGroup.resolve_command(self, ctx, args)
        check_names(ctx, *found)
        return found


@click.group("train", cls=TrainGroup, table=SUBCOMMANDS, default="run")
def train_command() -> None:
    """Train a hypernetwork, and prepare and check what it takes.

    `hnetkit train PICTURES` is short for `hnetkit train run PICTURES`.

    \b
    Examples:
      hnetkit train pictures --model stable-diffusion-v1-5 --name ink
      hnetkit train schedule "5e-5:100, 5e-6:1500" --max-steps 2000 --json
    """
