"""This installation: `hnetkit path`, `config` and `doctor`."""

from __future__ import annotations

import click

from hnetkit import demo, paths, settings
from hnetkit.cli.completion import complete_setting, complete_value
from hnetkit.cli.options import command, option
from hnetkit.cli.output import Output, output_options, put_path
from hnetkit.errors import NotFound, PartlyFailed, UsageError
from hnetkit.text import argument

PLACES = {
    "registry": paths.registry_file,
    "config": paths.config_file,
    "library": paths.library_folder,
    "home": paths.home,
    "demo": demo.network_folder,
}


@command("path")
@click.argument("what", metavar=f"[{'|'.join(PLACES)}]", type=click.Choice(list(PLACES)), default="registry")
def path_command(what: str) -> None:
    """Print where hnetkit keeps its registry, config or library.

    "registry" is the database of what you have, "config" the file of settings, "library" the folder that fetched files
    go to, "home" the folder of all three, which HNETKIT_HOME moves. "demo" is the folder of the bundled hypernetworks.

    \b
    Examples:
      hnetkit path library
      hnetkit scan "$(hnetkit path demo)"
      sqlite-utils tables "$(hnetkit path registry)" --counts
    """
    put_path(PLACES[what]())


@command("config", context_settings={"allow_extra_args": True})
@click.argument("key", required=False, shell_complete=complete_setting)
@click.argument("value", required=False, shell_complete=complete_value)
@option("--remove", former=["--unset"], is_flag=True, help="Remove the setting KEY.")
@output_options
def config_command(key: str | None, value: str | None, remove: bool, output: Output) -> None:
    """Show settings, or set one.

    KEY is model, vae, tokenizer, device, dtype, capture, loras, embeddings, mirrors, hypernetworks or unasked.
    Without KEY, lists all settings with what they mean. With KEY, prints its value; with KEY and VALUE, checks and
    stores it.

    \b
    Examples:
      hnetkit config
      hnetkit config device cpu
      hnetkit config device --remove
    """
    if more := click.get_current_context().args:
        together = " ".join([str(value), *more])
        is_address = "://" in together  # it may hold a secret
        hint = (
            f"quote them as one: hnetkit config {argument(str(key))} {argument('... ...' if is_address else together)}"
        )
        raise UsageError(f"{key}: several values", hint=hint)
    if remove and (key is None or value is not None):
        raise UsageError("--remove takes one setting", hint=f"hnetkit config {argument(key or 'model')} --remove")
    if key is None:
        stored = settings.load()
        meanings = {**settings.KEYS, **dict.fromkeys(stored.keys() - settings.KEYS.keys(), settings.UNREAD)}
        rows = [{"key": name, "value": stored.get(name), "meaning": text} for name, text in meanings.items()]
        output.rows(rows, columns=["key", "value", "meaning"])
    elif remove:
        before = settings.load().get(key) or None
        settings.put(key, None)
        output.note(f"{key} was not set" if before is None else f"{key} is no longer set; it was {before}")
    elif value is not None:
        kept = settings.put(key, value)
        output.note(f"{key} is now {kept}")
        if kept is not None and settings.is_hub_id(key, kept):
            output.note("No file or folder here has this name: it is taken for a model of the hub.")
        if key == "model" and (vae := settings.get("vae")):
            output.note(
                f"It draws with the vae that is set, {vae}: `hnetkit config vae --remove` if that is not its own."
            )
    else:
        found = settings.get(key)
        if found is None:
            raise NotFound(f"{key} is not set", hint=f"hnetkit config {key} VALUE")
        output.rows([{"key": key, "value": found}], columns=["key", "value"], text=lambda row: row["value"])


@command("doctor")
@output_options
def doctor_command(output: Output) -> None:
    """Check this installation: packages, devices, registry, settings.

    "absent" is what an optional extra would install. The exit code is 1 if something failed.

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
