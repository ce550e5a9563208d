"""This installation: `hnetkit path`, `config` and `doctor`."""

from __future__ import annotations

import click

from hnetkit import paths, settings
from hnetkit.cli.output import Output, output_options, put_path
from hnetkit.errors import NotFound, PartlyFailed, UsageError

PLACES = {
    "registry": paths.registry_file,
    "config": paths.config_file,
    "library": paths.library_folder,
    "home": paths.home,
}


@click.command("path")
@click.argument("what", type=click.Choice(list(PLACES)), default="registry")
def path_command(what: str) -> None:
    """Print where hnetkit keeps its registry, config or library.

    HNETKIT_HOME moves all of them.

    \b
    Examples:
      hnetkit path
      sqlite-utils tables "$(hnetkit path registry)" --counts
    """
    put_path(PLACES[what]())


@click.command("config")
@click.argument("key", required=False)
@click.argument("value", required=False)
@click.option("--unset", is_flag=True, help="Take the setting back.")
@output_options
def config_command(key: str | None, value: str | None, unset: bool, output: Output) -> None:
    """Show settings, or set one.

    \b
    Examples:
      hnetkit config
      hnetkit config model ./models/stable-diffusion-v1-5
    """
    if unset and (key is None or value is not None):
        raise UsageError("--unset takes one setting", hint="hnetkit config --unset model")
    if key is None:
        stored = settings.load()
        rows = [{"key": name, "value": stored.get(name), "meaning": text} for name, text in settings.KEYS.items()]
        output.rows(rows, columns=["key", "value", "meaning"])
    elif unset or value is not None:
        settings.put(key, value)
    else:
        found = settings.get(key)
        if found is None:
            raise NotFound(f"{key} is not set", hint=f"hnetkit config {key} VALUE")
        output.rows([{"key": key, "value": found}], columns=["key", "value"], text=lambda row: row["value"])


@click.command("doctor")
@output_options
def doctor_command(output: Output) -> None:
    """Check this installation: packages, devices, registry, settings.

    Exits with 1 where something needs care.

    \b
    Examples:
      hnetkit doctor
      hnetkit doctor --json
    """
    from hnetkit.doctor import check_installation

    rows = check_installation()
    output.rows(rows, columns=["check", "state", "detail"])
    failed = [row["check"] for row in rows if row["state"] == "failed"]
    if failed:
        raise PartlyFailed(f"needs care: {', '.join(failed)}", hint="the detail column says what is wrong")
