"""The pages of strips and comparisons: the queue with its progress, and the settings of what is to be drawn."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hnetkit import settings
from hnetkit.errors import BadPicture, NotFound, UsageError
from hnetkit.gallery.cards import View, joined
from hnetkit.gallery.drawing import Drawing, DrawingSettings, PictureToDraw, State
from hnetkit.gallery.drawing_queue import DrawingQueue, networks_of, suggested_prompt
from hnetkit.gallery.pages import Gallery, answer, sent_texts, sent_values, shown
from hnetkit.gallery.paging import page_number, part_of
from hnetkit.gallery.picture_pages import beyond_a_strip, drawable_networks, drawing_settings
from hnetkit.gallery.pictures import SeenPicture
from hnetkit.gallery.thumbnails import SIDES, Served
from hnetkit.generate.sampling.samplers import SAMPLERS
from hnetkit.prompts.tags import plain_number
from hnetkit.text import counted, printable

Row = dict[str, Any]

PER_PAGE = 20
"""Drawings of a page."""
MOST_AT_ONCE = 1000
"""Strips that one press of a button adds."""
_MOST_EARLIER = 10
_MOST_ASKED = 200
_PENDING: tuple[State, ...] = ("waiting", "drawing")
_SIZE = re.compile(r"(\d{1,5})(?:\s*[x*]\s*(\d{1,5}))?", re.IGNORECASE)
_FIELDS = ("prompt", "negative_prompt", "seed", "strengths", "steps", "sampler", "size")


class _Given(NamedTuple):
    """The settings that a page begins with: of a picture or a drawing that its address names, else the defaults.

    Attributes:
        picture: that they are of.
        lost: why none of its settings can be taken over.
        others: what else it was drawn with.
    """

    settings: DrawingSettings
    picture: SeenPicture | None = None
    lost: str = ""
    others: Sequence[str] = ()


class DrawingPages:
    """What a gallery draws by itself, as pages."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._queue: DrawingQueue = gallery.queue

    def routes(self) -> list[Route]:
        """Returns the addresses of these pages and of their changes."""
        return [
            Route("/drawing", self._drawings),
            Route("/drawing/state", self._state),
            Route("/drawing/add", _change(self._add), methods=["POST"]),
            Route("/drawing/add-picture", _change(self._add_picture), methods=["POST"]),
            Route("/drawing/add-all", _change(self._add_all), methods=["POST"]),
            Route("/drawing/stop-all", _change(self._stop_all), methods=["POST"]),
            Route("/drawing/remove-ended", _change(self._remove_ended), methods=["POST"]),
            Route("/drawing/{id}/sheet", self._sheet),
            Route("/drawing/{id}/cell/{row:int}/{column:int}", self._cell),
            Route("/drawing/{id}/{action}", _change(self._act), methods=["POST"]),
            Route("/compare", self._compare),
        ]

    def strips(self, contents: Iterable[str]) -> dict[str, Row]:
        """Returns content hash -> its latest strip, for a line on its card; those without one are not there."""
        found = self._queue.strips_of(contents, (*_PENDING, "done"))
        nothing: Row = {"pending": False}  # is to be told: its picture is seen
        return {
            content: self._as_row(drawing) if drawing.state in _PENDING else nothing
            for content, drawing in found.items()
        }

    def latest_strip(self, content_hash: str) -> Row | None:
        """Returns the latest strip of a network, whatever became of it; None without one."""
        found = self._queue.drawings_of([content_hash])
        return self._as_row(found[0]) if found else None

    def of_picture(self, id: str) -> list[Row]:
        """Returns a picture as it was drawn again, the latest first."""
        return [self._as_row(one) for one in self._queue.drawings_of_picture(id)[:_MOST_EARLIER]]

    def picture(self, content_hash: str, size: str) -> Served | None:
        """Returns the strip of a network as a picture: for cards a square, else the whole sheet; None without one."""
        strip = self._queue.strip_of(content_hash)
        if strip is None:
            return None
        with suppress(BadPicture, NotFound):  # the pages of drawings say so
            path = strip.preview if size == "small" else strip.sheet
            return self._gallery.thumbnails.of(path, size, within=[strip.folder])
        return None

    def _drawings(self, request: Request) -> Response:
        """All drawings: what is drawn now and what waits, then what has ended, the latest first."""
        found = self._queue.drawings()
        pending = [one for one in found if one.state in _PENDING]
        ended = [one for one in reversed(found) if one.state not in _PENDING]
        pending.sort(key=lambda one: one.state != "drawing")
        rows = pending + ended
        part = part_of(len(rows), page_number(request.query_params), PER_PAGE)
        return self._gallery.page(
            "drawing.html",
            drawings=[self._as_row(one) for one in rows[part.rows]],
            summary=self._summary(found),
            pending=len(pending),
            useless=sum(one.state in ("failed", "stopped") for one in ended),
            number=part.number,
            last=part.last,
        )

    def _state(self, request: Request) -> Response:
        """How far drawings are, for a page that shows them: their parts of it, as they are now."""
        template = "_drawing_line.html" if request.query_params.get("as") == "line" else "_drawing.html"
        found: dict[str, Row] = {}
        for id in request.query_params.getlist("id")[:_MOST_ASKED]:
            try:
                row = self._as_row(self._queue.drawing(id))
            except NotFound:
                continue
            html = self._gallery.part(template, drawing=row)
            found[id] = {"html": html, **{key: row[key] for key in ("pending", "said", "contents")}}
        return JSONResponse({"drawings": found, "summary": self._summary(self._queue.drawings())})

    def _compare(self, request: Request) -> Response:
        """What is to be drawn of one network, or of several: the settings, and what was drawn of them before."""
        view = View.of(request.query_params)
        cards = [(content, self._gallery.cards.card(content)) for content in view.chosen_contents]
        known = [card for _, card in cards if card is not None]
        earlier = self._queue.drawings_of(card["content_hash"] for card in known) if known else []
        given, picture, lost, others = self._given(request.query_params)
        named = networks_of(self._gallery.library, [card["content_hash"] for card in known])
        return self._gallery.page(
            "compare.html",
            view=view,
            cards=known,
            chosen=joined(card["content_hash"] for card in known),
            missing=len(cards) - len(known),
            given=given,
            picture=picture,
            lost=lost,
            others=others,
            strengths=", ".join(map(plain_number, given.strengths)),
            suggested=suggested_prompt(self._gallery.library, named),
            samplers=list(SAMPLERS),
            model=settings.get("model"),
            drawings=[self._as_row(one) for one in earlier[:_MOST_EARLIER]],
        )

    def _given(self, parameters: Mapping[str, str]) -> _Given:
        with suppress(NotFound):
            if id := parameters.get("picture"):
                record = self._gallery.pictures.record(id)
                try:
                    return _Given(drawing_settings(record), record.found.picture, others=beyond_a_strip(record))
                except UsageError as error:
                    return _Given(DrawingSettings(), record.found.picture, str(error))
            return _Given(self._queue.drawing(parameters.get("like", "")).settings)
        return _Given(DrawingSettings())

    def _sheet(self, request: Request) -> Response:
        drawing = self._queue.drawing(request.path_params["id"])
        return self._gallery.picture(
            request, self._gallery.thumbnails.of(drawing.sheet, "large", within=[drawing.folder])
        )

    def _cell(self, request: Request) -> Response:
        drawing = self._queue.drawing(request.path_params["id"])
        row = drawing.pictures().get((request.path_params["row"], request.path_params["column"]))
        size = request.query_params.get("size", "small")
        if row is None or size not in SIDES:
            raise NotFound("this cell is not drawn")
        path = drawing.picture_file(row)
        return self._gallery.picture(request, self._gallery.thumbnails.of(path, size, within=[drawing.folder]))

    def _add(self, given: Any) -> Row:
        """Adds a strip or a comparison, unless the same is there."""
        values = sent_texts(given, ("networks", *_FIELDS))
        named = networks_of(self._gallery.library, View.of({"chosen": values.pop("networks", "")}).chosen_contents)
        chosen = settings_of(values)
        if not named:
            raise UsageError("no network is chosen", hint="choose one on its card")
        for one in self._queue.drawings_of(network.content_hash for network in named):
            if (one.networks, one.settings) == (tuple(named), chosen) and one.state not in ("failed", "stopped"):
                return self._added([one], "The same is there already")
        drawing = self._queue.add(named, chosen)
        self._gallery.drawer.wake()
        what = (
            f"A strip of {shown(named[0].name)}"
            if drawing.kind == "strip"
            else f"A comparison of {len(named)} networks"
        )
        return self._added([drawing], f"{what} waits to be drawn") | {"command": drawing.command}

    def _add_picture(self, given: Any) -> Row:
        """Adds a picture of a person's to draw again, unless it waits already."""
        values = sent_texts(given, ("picture",))
        record = self._gallery.pictures.record(values.get("picture", ""))
        seen = record.found.picture
        if seen.command is None:
            raise UsageError("the picture carries no settings", hint="choose one that does")
        for one in self._queue.drawings_of_picture(seen.id):
            if one.state in _PENDING:
                return self._added([one], "It waits to be drawn already")
        named = networks_of(self._gallery.library, drawable_networks(record.found))
        picture = PictureToDraw(str(seen.path), seen.stamp.size_bytes, seen.stamp.modified_ns)
        drawing = self._queue.add_picture(seen.id, picture, named)
        self._gallery.drawer.wake()
        return self._added([drawing], f"{shown(seen.name)} waits to be drawn again") | {"command": drawing.command}

    def _add_all(self, given: Any) -> Row:
        """Adds a strip of each network that a view shows and that has none."""
        values = sent_texts(given, ("view",))
        if "view" not in values:  # an empty one shows all networks
            raise UsageError("no view was sent", hint="reload the page")
        view = View.of(dict(parse_qsl(values["view"].removeprefix("?"))))
        shown_by_view = self._gallery.cards.passing(view)
        there = self._queue.strips_of((card["content_hash"] for card in shown_by_view), (*_PENDING, "done"))
        cards = [card for card in shown_by_view if card["content_hash"] not in there]
        files = [card for card in cards if card["state"] == "present"]
        # the bundled model fits none of those that are known to be for another one
        fitting = files if settings.get("model") else [card for card in files if card["base_model"] == "unknown"]
        left_out = {
            "has one already" if len(there) == 1 else "have one already": len(there),
            "in no file": len(cards) - len(files),
            "for a model, and none is set": len(files) - len(fitting),
            "left for the next time": len(fitting[MOST_AT_ONCE:]),
        }
        left = "; ".join(f"{number:,} {why}" for why, number in left_out.items() if number)
        if not fitting:
            hint = "hnetkit config model FOLDER" if files else "choose other filters"
            raise UsageError(f"no strip to draw: {left or 'no network passes the filters'}", hint=hint)
        named = networks_of(self._gallery.library, [card["content_hash"] for card in fitting[:MOST_AT_ONCE]])
        added = [self._queue.add([one], DrawingSettings()) for one in named]
        self._gallery.drawer.wake()
        said = f"{counted(len(added), 'strip')} to draw" + (f"; {left}" if left else "")
        return self._added(added, said)

    def _added(self, drawings: Iterable[Drawing], said: str) -> Row:
        added = [{"id": one.id, "contents": [network.content_hash for network in one.networks]} for one in drawings]
        return {"said": said, "drawings": added}

    def _stop_all(self, given: Any) -> Row:
        """Stops all that is not yet drawn."""
        sent_texts(given, ())
        pending = [one for one in self._queue.drawings() if one.state in _PENDING]
        for one in pending:
            with suppress(NotFound, UsageError):  # it has ended meanwhile
                self._queue.stop(one.id)
        return {"said": f"{counted(len(pending), 'drawing')} stopped", "reload": True}

    def _remove_ended(self, given: Any) -> Row:
        """Removes all that failed or was stopped."""
        sent_texts(given, ())
        ended = [one for one in self._queue.drawings() if one.state in ("failed", "stopped")]
        for one in ended:
            with suppress(NotFound, UsageError):  # another window has removed it, or lets it go on
                self._queue.remove(one.id)
        return {"said": f"{counted(len(ended), 'drawing')} removed", "reload": True}

    def _act(self, given: Any, id: str, action: str) -> Row:
        """Stops, removes or goes on with one drawing."""
        sent_texts(given, ("do",))
        if action == "stop":
            self._queue.stop(id)
            return {"said": "Stopped", "drawings": [{"id": id, "contents": []}]}
        if action == "again":
            self._queue.again(id)
            self._gallery.drawer.wake()
            return {"said": "It waits to be drawn", "drawings": [{"id": id, "contents": []}]}
        if action == "remove":
            self._queue.remove(id)
            return {"said": "Removed", "removed": id}
        raise NotFound(f"{action}: nothing that can be done with a drawing")

    def _summary(self, drawings: Iterable[Drawing]) -> str:
        """Returns how much is to be done, in a sentence."""
        states = [one.state for one in drawings]
        waiting, now = states.count("waiting"), states.count("drawing")
        said = f"{counted(waiting, 'drawing')} {'waits' if waiting == 1 else 'wait'}" if waiting else "Nothing waits"
        trouble = self._gallery.drawer.trouble
        return f"{said}{', one is being drawn' if now else ''}." + (f" {trouble}" if trouble else "")

    def _as_row(self, drawing: Drawing) -> Row:
        """Returns a drawing as templates show it."""
        pictures = drawing.pictures()
        first = next(iter(pictures.values()), None)
        picture = drawing.picture
        named = ", ".join(network.name for network in drawing.networks)
        names = shown(named if picture is None else printable(Path(picture.path).name))
        return {
            "id": drawing.id,
            "kind": drawing.kind,
            "state": drawing.state,
            "pending": drawing.state in _PENDING,
            "progress": _progress(drawing, len(pictures)),
            "said": f"{drawing.kind.capitalize()} of {names}: {_progress(drawing, len(pictures))}",
            "contents": [network.content_hash for network in drawing.networks],
            "chosen": joined(network.content_hash for network in drawing.networks),
            "names": names,
            "lines": _lines(drawing, pictures),
            "prompt": drawing.prompt,
            "negative_prompt": drawing.settings.negative_prompt,
            "settings": _settings_in_words(drawing, first),
            "message": drawing.progress.message if drawing.state == "failed" else "",
            "hint": drawing.progress.next_step if drawing.state == "failed" else "",
            "notes": drawing.progress.notes,
            "command": drawing.command,
            "has_sheet": drawing.state == "done",
            "is_complete": drawing.state == "done" and len(pictures) == drawing.cells,
            "is_damaged": drawing.is_damaged,
        }


def settings_of(values: Mapping[str, str]) -> DrawingSettings:
    """Reads the settings of a form; an empty field takes the default.

    Raises:
        UsageError: a field cannot have this value.
    """
    given: Row = {key: value for key in ("prompt", "negative_prompt") if (value := values.get(key, "").strip())}
    for key in ("seed", "steps"):
        if text := values.get(key, "").strip():
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                raise UsageError(f"{key}: not a whole number", hint="for example 20")
            given[key] = int(text)
    if text := values.get("strengths", "").replace(",", " ").strip():
        try:
            given["strengths"] = [float(part) for part in text.split()]
        except ValueError as error:
            raise UsageError("strengths are numbers with commas between them", hint="for example 0, 0.5, 1") from error
    if text := values.get("sampler", "").strip():
        given["sampler"] = text
    if text := values.get("size", "").strip():
        match = _SIZE.fullmatch(text)
        if match is None:
            raise UsageError("a size is a number of pixels, or width x height", hint="for example 512 or 512x768")
        given["width"], given["height"] = int(match[1]), int(match[2] or match[1])
    return DrawingSettings.of(given)


def _change(function: Callable[..., Row]) -> Callable[[Request], Awaitable[Response]]:
    """Returns the endpoint of a change: its JSON, and the parts of its address, are the arguments."""

    async def endpoint(request: Request) -> Response:
        given = await sent_values(request)
        return answer(await run_in_threadpool(function, given, **request.path_params))

    return endpoint


def _lines(drawing: Drawing, pictures: Container[tuple[int, int]]) -> list[Row]:
    """Returns a line for each network of a drawing, with its cells; for a picture that is drawn again, one."""
    if drawing.picture is not None:
        return [{"row": 0, "name": "", "cells": [{"column": 0, "is_drawn": (0, 0) in pictures}]}]
    return [
        {
            "row": row,
            "name": network.name,
            "content_hash": network.content_hash,
            "cells": [
                {"strength": plain_number(strength), "is_drawn": (row, column) in pictures, "column": column}
                for column, strength in enumerate(drawing.settings.strengths)
            ],
        }
        for row, network in enumerate(drawing.networks)
    ]


def _progress(drawing: Drawing, drawn: int) -> str:
    of_cells = f"{drawn} of {drawing.cells}"
    words: dict[State, str] = {
        "waiting": f"waits, {of_cells} drawn" if drawn else "waits",
        "drawing": f"being drawn, {of_cells}",
        "done": "drawn" if drawn == drawing.cells else f"drawn, but only {of_cells}",
        "stopped": f"stopped, {of_cells}",
        "failed": "failed",
    }
    return words[drawing.state]


def _settings_in_words(drawing: Drawing, row: Mapping[str, Any] | None) -> str:
    """Returns the settings that all cells share: of a picture if there is one, else as far as they were chosen."""
    own = drawing.settings
    if drawing.picture is not None:  # it has its own, which its page shows
        return drawing.progress.model
    chosen: Row = {
        "sampler": own.sampler,
        "steps": own.steps,
        "width": own.width,
        "height": own.height,
        "model": drawing.progress.model,
    }
    known = chosen if row is None else row
    parts = [
        known["sampler"],
        known["steps"] and counted(known["steps"], "step"),
        known.get("cfg_scale") and f"CFG {known['cfg_scale']:g}",
        known["width"] and f"{known['width']} x {known['height']}",
        f"seed {own.seed}",
        known["model"],
    ]
    return ", ".join(filter(None, parts))
