"""What all pages stand on: the library, its cards and pictures, and how a page, a picture and an error are sent."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

import hnetkit
from hnetkit.errors import BadPicture, ChangedMeanwhile, FileRefused, HnetkitError, NotFound, UsageError
from hnetkit.gallery.cards import CardIndex, View
from hnetkit.gallery.drawing_queue import DrawingQueue
from hnetkit.gallery.pictures import PictureFolders
from hnetkit.gallery.thumbnails import Served, Thumbnails
from hnetkit.gallery.worker import DrawingProcess
from hnetkit.library.library import Library
from hnetkit.text import counted, is_text, printable, shorten, size_text

MOST_TEXT = 100_000
"""Characters of a text that a page sends, as of a note; the command line takes a longer one."""

_HERE = Path(__file__).parent
STATIC = _HERE / "static"
_STATUS = ((NotFound, 404), (UsageError, 400), (ChangedMeanwhile, 409), (FileRefused, 422), (BadPicture, 422))
_LONGEST = 300  # characters of a text on a card
_SAID, _MOST_SAID = ("said", "command", "error", "hint"), 4000


class Gallery:
    """A library as pages.

    Attributes:
        library: of which the pages are; any number of threads use it.
        cards: its networks.
        thumbnails: pictures, made small.
        pictures: those that a person has, in folders of their own.
        queue: strips and comparisons that it draws by itself.
        drawer: the process that draws them; whoever serves the pages starts and closes it.

    Args:
        pictures: these folders.

    Raises:
        NotFound: one of them is not there.
    """

    def __init__(self, library: Library, pictures: Iterable[str | os.PathLike[str]] = ()) -> None:
        self.library = library
        self.pictures = PictureFolders(pictures, library)
        self.cards = CardIndex(library)
        self.thumbnails = Thumbnails(library.home / "cache" / "gallery")
        self.queue = DrawingQueue(library.home)
        self.drawer = DrawingProcess(self.queue)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        self._templates.filters |= {"shown": shown, "size": size_text, "counted": counted, "path_part": path_part}
        self._templates.globals |= {"version": hnetkit.__version__, "View": View}

    def folders(self) -> list[Path]:
        """Returns the folders in which the library's pictures may be: those that were scanned, and its own."""
        return [*(root.path for root in self.library.registry.files.roots()), self.library.folder]

    def page(self, template: str, *, status: int = 200, **values: Any) -> Response:
        """Returns a page made of a template."""
        # a lone surrogate, as of a name that is not UTF-8, was made printable where it was shown
        text = self.part(template, **values).encode("utf-8", "replace")
        return HTMLResponse(text, status, {"Cache-Control": "no-store"})

    def part(self, template: str, **values: Any) -> str:
        """Returns a part of a page made of a template."""
        return self._templates.get_template(template).render(**values)

    def picture(self, request: Request, served: Served) -> Response:
        """Returns a picture, or that the browser has it already."""
        headers = {"ETag": f'"{quote(served.tag)}"', "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(served.data, media_type=served.kind, headers=headers)

    def failure(self, request: Request, error: HnetkitError) -> Response:
        """Returns what is wrong, in a sentence, with what to do: as a page, or as JSON where a script asked."""
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        if request.method != "GET" or "application/json" in request.headers.get("accept", ""):
            said = {"error": str(error), "hint": error.command_hint}
            return answer(said | ({"now": error.now} if isinstance(error, ChangedMeanwhile) else {}), status)
        return self.page("error.html", status=status, error=str(error), hint=error.command_hint)


def shown(text: Any, most: int = _LONGEST) -> str:
    """Returns a stranger's text as it can be shown: of a bounded length, without marks that turn other text around."""
    return "" if text is None else shorten("\n".join(map(printable, str(text)[: most + 1].split("\n"))), most)


def answer(values: Mapping[str, Any], status: int = 200) -> Response:
    """Returns what a script gets for a change: in what it shows a person, a stranger's text turns no other around."""
    texts = {name: shown(values[name], _MOST_SAID) for name in _SAID if isinstance(values.get(name), str)}
    return JSONResponse({**values, **texts}, status)


def path_part(text: str | os.PathLike[str]) -> str:
    """Returns a text as one part of an address."""
    return quote(os.fspath(text), safe="")


async def sent_values(request: Request) -> Any:
    """Returns the JSON that a page sends with a change.

    Raises:
        UsageError: it is none, or was not sent to its end.
    """
    try:
        return await request.json()
    except (ValueError, RecursionError, ClientDisconnect) as error:
        raise UsageError("the change is too large, or no JSON", hint="reload the page") from error


def sent_texts(given: Any, names: Iterable[str]) -> dict[str, str]:
    """Returns the values of a change that a page sends, all of which are texts.

    Raises:
        UsageError: they are not, or others.
    """
    if not isinstance(given, dict):
        raise UsageError("a change is an object of JSON", hint="reload the page")
    if other := set(given) - set(names):
        raise UsageError(f"{', '.join(sorted(map(str, other)))}: not a part of this change", hint="reload the page")
    for name, text in given.items():
        if not isinstance(text, str) or not is_text(text) or (len(text) > MOST_TEXT and name != "data"):
            raise UsageError(f"{name}: not a text of at most {MOST_TEXT:,} characters", hint="shorten it")
    return dict(given)
