"""The `hnetkit` command. Commands are in the modules of this folder, which are imported on first use."""

from __future__ import annotations

import os
import sys

import click

from hnetkit.cli.groups import LazyGroup
from hnetkit.cli.output import OutputClosed, not_text, say, say_traceback, say_usage, take_streams
from hnetkit.cli.signals import exit_code_of, next_step_of, unwind_on_signals
from hnetkit.errors import HnetkitError, failure_of
from hnetkit.text import is_text

# heading in `hnetkit --help` -> command -> (module of this folder that defines it, its line there): help imports no
# command. A test holds each line equal to the first line of the command's own help.
COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "Files": {
        "inspect": ("files", "Show what is in model files."),
        "validate": ("files", "Check hypernetwork files for damage and contradictions."),
        "convert": ("files", "Convert hypernetworks between .pt and .safetensors."),
        "bake": ("bake", "Write hypernetworks as a LoRA, full weights, a checkpoint, or one network."),
    },
    "Library": {
        "scan": ("library", "Index folders of hypernetworks in the registry."),
        "list": ("library", "List the networks of the library."),
        "search": ("library", "Search the library by all that is known of its networks."),
        "gallery": ("gallery", "Show the library as a page in the browser."),
        "show": ("library", "Show all that is known of one network."),
        "tag": ("library", "Tag a network, or say how it is best used."),
        "forget": ("library", "Remove files from the registry; no file is touched."),
        "remove": ("library", "Move networks' files to a trash on the same disk, or bring them back."),
        "link": ("link", "Put the library's networks into another program's folder."),
        "export": ("library", "Write what is known of the library as JSON lines."),
        "import": ("library", "Read what `export` wrote into the library."),
        "share": ("sharing", "Make a folder of networks to upload to Hugging Face."),
    },
    "Fetching": {
        "browse": ("remote", "Search Civitai for hypernetworks."),
        "pull": ("remote", "Fetch networks into the library."),
        "sync": ("remote", "Mirror hypernetworks from Civitai, or a repository of the hub, into the library."),
        "updates": ("upkeep", "Show models that have a newer version on the site than in the library."),
        "identify": ("upkeep", "Ask Civitai what the library's files are, by their hashes."),
        "repair": ("upkeep", "Fetch files again that are missing or damaged, and networks of an import."),
    },
    "Drawing": {
        "generate": ("drawing", "Draw pictures with hypernetworks applied."),
        "grid": ("drawing", "Draw a labeled sheet of pictures over two or three axes."),
        "prompt": ("prompt", "Show what a prompt means, step by step."),
    },
    "Training": {
        "train": ("train", "Train a hypernetwork, and prepare and check what it takes."),
    },
    "This installation": {
        "demo": ("demo", "Run the whole job on the bundled library and model."),
        "doctor": ("installation", "Check this installation: packages, devices, registry, settings."),
        "config": ("installation", "Show settings, or set one."),
        "path": ("installation", "Print where hnetkit keeps its registry, config or library."),
        "bench": ("bench", "Time each way to apply a stack on this machine."),
    },
}

MEANT = {
    **dict.fromkeys(("add", "index"), "scan DIR"),
    "alias": "tag NAME --alias ALIAS",
    "backup": "export FILE",
    **dict.fromkeys(("delete", "rm", "uninstall"), "remove NAME"),
    **dict.fromkeys(("download", "fetch", "get", "install"), "pull ADDRESS"),
    **dict.fromkeys(("draw", "img2img", "txt2img"), "generate --help"),
    **dict.fromkeys(("check", "verify"), "validate FILE"),
    **dict.fromkeys(("dupes", "duplicates"), "list --duplicates"),
    "info": "show NAME",
    "mirror": "sync --dry-run",
    "missing": "list --missing",
    "note": "tag NAME --note TEXT",
    "rename": "scan, after you renamed the file: tags and notes stay",
    **dict.fromkeys(("serve", "ui", "web", "webui"), "gallery"),
    **dict.fromkeys(("set", "settings"), "config"),
    **dict.fromkeys(("restore", "undo"), "remove --undo"),
    "upload": "share NAME --out FOLDER --upload OWNER/REPO",
}
"""What other programs call a command -> what to type here."""

EPILOG = """\b
Exit codes: 0 ok, 1 other or partly failed, 2 usage, 3 auth, 4 not found, 5 network,
6 rate limit, 7 file refused, 130 interrupted, 129 and 143 ended by a signal.
HNETKIT_DEBUG=1 shows tracebacks."""


@click.group(
    cls=LazyGroup,
    sections=COMMANDS,
    meant=MEANT,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)
@click.version_option(package_name="hnetkit", prog_name="hnetkit")
def cli() -> None:
    """Read, index, convert and run Stable Diffusion hypernetworks.

    Hypernetworks are small files, .pt or .safetensors, that change the style of what a model draws.

    New here? `hnetkit demo` runs everything on bundled networks, offline, in a minute. Then begin with `hnetkit scan
    DIR` for a folder of old files, with `hnetkit generate --help` to draw, or with `hnetkit train --help` to train.

    Each command's help has examples. They use the bundled networks dots, outline and paper, in a copy of the folder
    that `hnetkit path demo` prints.
    """


def main() -> None:
    """Runs the command line, then exits with the documented code."""
    take_streams()
    unwind_on_signals()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs `hnetkit ARGUMENTS` and returns its exit code; an error is one line on stderr, perhaps with a hint."""
    try:
        result = cli.main(arguments, prog_name="hnetkit", standalone_mode=False)
    except HnetkitError as error:
        return _report(error, str(error), error.command_hint, error.exit_code)
    except click.exceptions.Abort as interruption:
        say("Interrupted.")
        if (hint := next_step_of(interruption)) is not None:
            say(f"Hint: {hint}")
        return exit_code_of(interruption)
    except click.ClickException as error:
        say_usage(error)
        return error.exit_code
    except OutputClosed:  # Python would complain at exit, when it flushes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        failure = _failure(error, arguments)
        return _report(error, str(failure), failure.command_hint, failure.exit_code)
    return result if isinstance(result, int) else 0


def _failure(error: Exception, arguments: list[str]) -> HnetkitError:
    if isinstance(error, UnicodeEncodeError):
        # names of files may be any bytes; the registry and the sites take text alone
        not_utf8 = next((text for text in arguments if not is_text(text)), None)
        if not_utf8 is not None:
            return not_text(not_utf8)
    return failure_of(error, "hnetkit")


def _report(error: Exception, message: str, hint: str | None, exit_code: int) -> int:
    if os.environ.get("HNETKIT_DEBUG") == "1":
        say_traceback(error)
    say(f"Error: {message}")
    if hint:
        say(f"Hint: {hint}")
    return exit_code
