"""The application: its addresses, and the pages of the whole library."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from hnetkit.errors import BadPicture, HnetkitError, NotFound, failure_of
from hnetkit.files import is_absent
from hnetkit.gallery.actions import Actions
from hnetkit.gallery.cards import ORDERS, STATES, View
from hnetkit.gallery.drawing_page import DrawingPages
from hnetkit.gallery.network_page import NetworkPages
from hnetkit.gallery.pages import STATIC, Gallery, answer, sent_values
from hnetkit.gallery.picture_pages import PictureView, picture_routes
from hnetkit.gallery.thumbnails import SIDES, placeholder

_MOST_DRAWN = 12  # of a person's pictures, on the page of a network


def make_app(gallery: Gallery) -> Starlette:
    """Returns the application of a gallery; `hnetkit.gallery.access.Access` has to stand before it."""

    networks, actions = NetworkPages(gallery), Actions(gallery)
    drawings = DrawingPages(gallery)

    def cards(request: Request) -> Response:
        """The library as cards; a script asks for the cards alone."""
        view = View.of(request.query_params)
        page = gallery.cards.page(view)
        template = "_cards.html" if request.url.path == "/cards" else "cards.html"
        return gallery.page(
            template,
            view=view,
            page=page,
            strips=drawings.strips(card["content_hash"] for card in page.cards),
            roots={str(root.id): str(root.path) for root in gallery.library.registry.files.roots()},
            states=STATES,
            orders=ORDERS,
            empty=gallery.library.registry.emptiness(),
        )

    def network(request: Request) -> Response:
        """One network."""
        content = request.path_params["content"]
        values = networks.values(content, View.of(request.query_params))
        drawn_view = PictureView(network=content)
        drawn = gallery.pictures.page(**drawn_view.chosen, size=_MOST_DRAWN)
        return gallery.page(
            "network.html", **values, drawn=drawn, drawn_view=drawn_view, drawing=drawings.latest_strip(content)
        )

    async def change(request: Request) -> Response:
        """A change of one network, or something that is done with its files."""
        given = await sent_values(request)
        content, action = request.path_params["content"], request.path_params["action"]
        return answer(await run_in_threadpool(actions.do, content, action, given))

    async def token(request: Request) -> Response:
        """Whether a token is that of the server: `Access` lets no other request through."""
        return answer({})

    async def tag_all(request: Request) -> Response:
        """Tags for all networks that a view shows."""
        return answer(await run_in_threadpool(actions.tag_all, await sent_values(request)))

    def preview(request: Request) -> Response:
        """One of the previews of a network, which has several where copies of it lie in several places."""
        path = networks.picture(request.path_params["content"], request.path_params["number"])
        return gallery.picture(request, gallery.thumbnails.of(path, "large", within=gallery.folders()))

    def refused(request: Request) -> Response:
        """Files that are no network that can be used, with the reasons."""
        files = [row for row in gallery.library.files() if row["verdict"] == "refused"]
        return gallery.page("files.html", files=files[:1000], count=len(files))

    def thumbnail(request: Request) -> Response:
        """The picture of a network: of its sidecars, else its strip, else a drawing of its structure."""
        row = gallery.cards.card(request.path_params["content"])
        size = request.query_params.get("size", "small")
        if row is None or size not in SIDES:
            raise NotFound("the library has no such picture")
        said = ""
        if row["preview"]:
            try:
                return gallery.picture(request, gallery.thumbnails.of(row["preview"], size, within=gallery.folders()))
            except BadPicture:
                said = "its preview is no picture"
            except NotFound:
                said = "its preview is gone" if is_absent(row["preview"]) else "its preview is outside of the library"
        strip = drawings.picture(row["content_hash"], size)
        return gallery.picture(request, strip or placeholder(row["structure"], row["activation"], said))

    def failed(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = NotFound(f"{request.url.path}: there is no such page", hint="go back to the library")
        if not isinstance(error, HnetkitError):
            error = failure_of(error, "hnetkit gallery")
        return gallery.failure(request, error)

    return Starlette(
        routes=[
            Route("/", cards),
            Route("/cards", cards),
            Route("/network/{content}", network),
            Route("/network/{content}/preview/{number:int}", preview),
            Route("/network/{content}/{action}", change, methods=["POST"]),
            Route("/tags", tag_all, methods=["POST"]),
            Route("/token", token, methods=["POST"]),
            Route("/files", refused),
            Route("/thumbnail/{content}", thumbnail),
            *picture_routes(gallery, drawings.of_picture),
            *drawings.routes(),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers=dict.fromkeys((HnetkitError, HTTPException, OSError, Exception), failed),
    )
