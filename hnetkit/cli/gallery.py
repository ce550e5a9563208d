"""`hnetkit gallery`: the library as a page."""

from __future__ import annotations

import click

from hnetkit.cli.library import open_library
from hnetkit.cli.options import command, option
from hnetkit.cli.output import put, quiet_option, say
from hnetkit.errors import require_extra
from hnetkit.text import counted


@command("gallery")
@option("--port", type=click.IntRange(0, 65535), default=7870, show_default=True, help="Port; 0 takes a free one.")
@option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to listen on. Any other lets other machines see the library.",
)
@option(
    "--pictures",
    multiple=True,
    type=click.Path(),
    metavar="FOLDER",
    help="Also show the pictures of this folder, and which networks each was drawn with. Can be given several times.",
)
@option("--no-browser", is_flag=True, help="Print the address without opening it.")
@quiet_option("Print only the address.")
def gallery_command(port: int, host: str, pictures: tuple[str, ...], no_browser: bool, quiet: bool) -> None:
    """Show the library as a page in the browser.

    Cards with pictures, search and filters; runs on this machine alone, offline, until Ctrl-C. The address that is
    printed holds a token: without it a page can look, but change nothing.

    \b
    Examples:
      hnetkit gallery
      hnetkit gallery --port 8000 --no-browser
      hnetkit gallery --pictures outputs
    """
    for module in ("starlette", "uvicorn", "PIL"):
        require_extra(module, "hnetkit gallery")
    from hnetkit.gallery.server import is_shared, serve

    def ready(address: str) -> None:
        put(address)
        if not quiet:
            say(f"{counted(library.registry.networks.count(), 'network')}; Ctrl-C ends it")

    if is_shared(host):
        say(f"Warning: whoever reaches {host} can see the library; with the token of the address, also change it.")
    with open_library() as library:
        serve(library, host=host, port=port, browser=not no_browser, pictures=pictures, ready=ready)
