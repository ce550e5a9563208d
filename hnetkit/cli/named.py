"""What the arguments of every command may name, and which files may be written over."""

from __future__ import annotations

from pathlib import Path

import click

from hnetkit import paths
from hnetkit.errors import OutputExists, UsageError

_MAY_BE_EMPTY = frozenset(
    {
        *("alias", "note", "prefix", "text", "value", "words"),
        *("prompt", "prompts", "negative_prompt", "hires_prompt", "hires_negative_prompt"),
        *("prompt_name", "previews_prompts"),
    }
)
"""Parameters of commands that are free text; all others name something, and nothing has no name."""

_WRITTEN = frozenset({"directory", "file", "html", "out", "out_dir"})
"""Parameters that name a file or a folder to write."""


def check_names(ctx: click.Context, name: str | None, command: click.Command | None, args: list[str]) -> None:
    """Accepts the arguments of a command that is about to run.

    Raises:
        UsageError: a file, a folder or a name is empty, as ``"$FOLDER"`` is where nobody set it: many an empty path
            would mean the folder that one is in.
        OutputExists: a file to write, or a folder above it, is the registry or the settings, or would take their name.
    """
    if command is None or ctx.resilient_parsing:  # a shell asks how a line may go on
        return
    try:
        own = click.Context(command, parent=ctx, info_name=name)
        said, _, _ = command.make_parser(own).parse_args(args=list(args))
    except click.UsageError:  # the command itself will say it better
        return
    for param in command.params:
        value = said.get(param.name or "")
        if param.name not in _MAY_BE_EMPTY and "" in (value if isinstance(value, list | tuple) else [value]):
            what = param.opts[0] if isinstance(param, click.Option) else "an argument"
            raise UsageError(f"{what} is empty", hint="a variable of the shell that is not set may stand there")
        if param.name in _WRITTEN and isinstance(value, str) and any(map(paths.is_state, _with_folders(value))):
            own_place = f"{value}: where hnetkit itself keeps its registry and settings"
            raise OutputExists(own_place, hint="choose another name")


def _with_folders(path: str) -> list[Path]:
    return [Path(path), *Path(path).parents]
