"""`hnetkit demo`: the full workflow on the bundled files, in the commands that a user would type."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from hnetkit import demo, paths
from hnetkit.cli.options import command, option
from hnetkit.cli.output import Output, quiet_option
from hnetkit.errors import NotFound, OutputExists, UsageError
from hnetkit.files import is_file_at, is_there, refuse_existing, refuse_links

SEED = "7"


@command("demo")
@option("--out", default="demo-output", metavar="DIR", show_default=True, help="Put everything into this folder.")
@option("--overwrite", is_flag=True, help="Replace what an earlier demo left there.")
@quiet_option("Print neither the commands nor progress.")
@click.pass_context
def demo_command(ctx: click.Context, out: str, overwrite: bool, quiet: bool) -> None:
    """Run the whole job on the bundled library and model.

    Indexes the bundled hypernetworks, converts one, draws pictures with several stacked, and leaves a labeled grid.
    Works offline and takes about a minute. Each command is printed before it runs; your own library is not touched.

    \b
    Examples:
      hnetkit demo
      hnetkit demo --out /tmp/hnetkit-demo
    """
    output, folder = Output(quiet=quiet), Path(out)
    if os.path.realpath(folder / "home") == os.path.realpath(paths.home()):
        raise UsageError(
            f"{folder / 'home'}: your own library's folder, which a demo leaves alone", hint="another --out"
        )
    commands = _commands(folder, overwrite=overwrite)
    made = [folder / "grid.png", folder / _converted()]
    if not overwrite:
        refuse_existing(made[0], overwrite=False)
    elif not is_file_at(folder / "home" / "registry.db") and (own := next(filter(is_there, made), None)):
        raise OutputExists(f"{own}: no earlier demo left it there", hint="another --out")
    # a folder may be a stranger's: what is written through a link would be in the library that a person has
    refuse_links(folder / name for name in ("home", "home/registry.db", "pictures"))
    registry = folder / "home" / "registry.db"
    if is_file_at(registry) and registry.stat().st_nlink > 1:
        raise OutputExists(f"{registry}: has another name as well, and may be a library's", hint="another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with _own_home(folder / "home"):
        for arguments in commands:
            _run(ctx, arguments, output)
    output.note("")
    output.note(f"Done: open {folder / 'grid.png'}")


def _commands(folder: Path, *, overwrite: bool) -> list[list[str]]:
    """Returns what to run, one list of arguments each, after the word `hnetkit`."""
    from hnetkit.generate.loading.defaults import read_defaults

    networks = demo.networks()
    if len(networks) < 2:
        raise NotFound(f"{demo.network_folder()}: the bundled hypernetworks are missing", hint="install hnetkit again")
    first, second = list(networks)[:2]
    prompt, other = read_defaults(demo.model_folder()).prompts[:2]
    converted, replace = folder / _converted(), ["--overwrite"] if overwrite else []
    pictures = str(folder / "pictures")
    cells = ["--strengths", "0,0.5,0.75,1", "--seed", SEED]
    stack = f"<hypernet:{first}:0.7> <hypernet:{second}:0.7>"
    return [
        ["scan", _shown(demo.network_folder())],
        ["list"],
        ["inspect", _shown(networks[first])],
        ["convert", _shown(networks[first]), str(converted), *replace],
        ["generate", f"{prompt} {stack}", "--seed", SEED, "--count", "2", "--out", pictures],
        ["generate", other, "-n", f"{converted}:0.8", "--seed", SEED, "--out", pictures],
        ["grid", *networks, "--prompt", prompt, *cells, "--out", str(folder / "grid.png"), *replace],
    ]


def _converted() -> str:
    """The name of the file that one of the bundled networks is converted to."""
    return f"{next(iter(demo.networks()), 'none')}.safetensors"


def _run(ctx: click.Context, arguments: list[str], output: Output) -> None:
    """Runs one command; the first that fails ends the demo with its exit code."""
    from hnetkit.cli import run

    line = subprocess.list2cmdline(arguments) if os.name == "nt" else shlex.join(arguments)
    output.note("")
    output.note(f"$ hnetkit {line}")
    code = run([*arguments, "-q"] if output.quiet else arguments)
    if code:
        ctx.exit(code)


@contextmanager
def _own_home(folder: Path) -> Iterator[None]:
    """A registry and settings of the demo's own: `HNETKIT_HOME` for as long as it runs."""
    before = os.environ.get("HNETKIT_HOME")
    os.environ["HNETKIT_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HNETKIT_HOME"]
        else:
            os.environ["HNETKIT_HOME"] = before


def _shown(path: Path) -> str:
    """The shorter of the absolute and the relative path, as a person would type it."""
    try:
        return min(str(path), os.path.relpath(path), key=len)
    except ValueError:  # another drive
        return str(path)
