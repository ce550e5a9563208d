"""The pages of looking back: a person's pictures as cards, and one picture with its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hnetkit import demo, settings
from hnetkit.errors import BadPicture, NotFound, UsageError
from hnetkit.gallery.cards import joined
from hnetkit.gallery.drawing import MOST_NETWORKS, MOST_STRENGTHS, DrawingSettings
from hnetkit.gallery.pages import Gallery
from hnetkit.gallery.paging import page_number
from hnetkit.gallery.pictures import LookedUp, PictureRecord, Which
from hnetkit.gallery.thumbnails import SIDES, placeholder
from hnetkit.generate.image_settings import RecordedFile, settings_from_infotext
from hnetkit.generate.model import ModelSource
from hnetkit.generate.options import SECOND_PASS
from hnetkit.prompts.tags import Tag, excerpt, split_tags

WHICH: Mapping[Which, str] = {
    "all": "all",
    "known": "with a network that is known",
    "unknown": "without a network that is known",
}
"""What a choice of pictures is called in an address -> in words."""
_TAKEN = {"Steps": "steps", "Sampler": "sampler", "Size": "width"}
"""Key of the settings that a strip takes over -> the option that it becomes where it can be one."""
_PATIENCE_S = 0.3  # for pictures that are new; nothing new takes less


@dataclass(frozen=True)
class PictureView:
    """What a page of pictures shows, as its address has it.

    Attributes:
        network: a content hash: only pictures that were drawn with this network.
        which: one of `WHICH`.
        page: number of the page, from 1.
    """

    network: str = ""
    which: Which = "all"
    page: int = 1

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> PictureView:
        """Returns the view of an address; what cannot be is as if it were not there."""
        which: Which = next((name for name in WHICH if name == parameters.get("which")), "all")
        return cls(parameters.get("network", ""), which, page_number(parameters))

    def address(self, **changes: Any) -> str:
        """Returns the address of this view, or of one that differs; another view begins at its first page."""
        changed = {"page": 1, **changes}
        other = replace(self, **changed)
        given = {field.name: value for field in fields(other) if (value := getattr(other, field.name)) != field.default}
        return f"?{urlencode(given)}" if given else ""

    @property
    def chosen(self) -> dict[str, Any]:
        """What `PictureFolders` is asked for."""
        return {"network": self.network or None, "which": self.which}


def drawable_networks(found: LookedUp) -> list[str]:
    """Returns the content hashes of the networks of a picture that can be drawn with here, at most `MOST_NETWORKS`."""
    contents = dict.fromkeys(meaning.content_hash for _, meaning in found.networks if meaning.content_hash)
    return list(filter(None, contents))[:MOST_NETWORKS]


def drawing_settings(record: PictureRecord) -> DrawingSettings:
    """Returns the settings of a picture as those of a strip: without any network, and at the strengths that it has.

    Raises:
        UsageError: they cannot be those of a strip.
    """
    read = settings_from_infotext(record.info)
    if read.prompt is None:
        raise UsageError("its prompt cannot be taken over")
    tagged = split_tags(read.prompt)
    taken = ("negative_prompt", "steps", "sampler", "width", "height")
    given = {key: read.options[key] for key in taken if key in read.options}
    if read.seed is not None:
        given["seed"] = read.seed
    strengths = sorted({0.0, *(used.strength for used, _ in record.found.networks)})
    given["strengths"] = strengths[:MOST_STRENGTHS]
    return DrawingSettings.of({"prompt": tagged.replacing([None] * len(tagged.tags)).written.strip(), **given})


def beyond_a_strip(record: PictureRecord) -> list[str]:
    """Returns what a picture was drawn with that a strip of its settings has not, so that its pictures are others."""
    read = settings_from_infotext(record.info)
    own, tags = read.options, split_tags(read.prompt or "").tags
    found = {
        f"CFG scale {own.get('cfg_scale', 0):g}": "cfg_scale" in own,
        "the noise of an NVIDIA GPU": own.get("rng") == "nv",
        f"clip skip {own.get('clip_skip')}": own.get("clip_skip", 1) > 1,
        "what its tags limit networks to": any(tag != Tag(tag.name, tag.multiplier) for tag in tags),
        "its own emphasis": own.get("emphasis", "original") != "original",
        "ENSD": bool(own.get("eta_seed_delta")),
        "variation noise": bool(own.get("variation_strength")),
        "its second pass": not SECOND_PASS.isdisjoint(own),
        "the picture that it began with": "image" in read.files,
        f"the model {read.files.get('model')}": not _is_chosen(read.files.get("model"), ModelSource().location),
        f"the VAE {read.files.get('vae')}": not _is_chosen(read.files.get("vae"), settings.get("vae") or ""),
    }
    refused = [key for key, option in _TAKEN.items() if key in record.info.parameters and option not in own]
    unread = [f"{key} {excerpt(record.info.parameters[key])}" for key in refused] + [*map(excerpt, read.unread)]
    return [*(name for name, is_there in found.items() if is_there), *unread]


def _is_chosen(file: RecordedFile | None, place: str) -> bool:
    """Whether a strip is drawn with a file of a picture, by its name alone: no file is read for a page."""
    if file is None:
        return True
    path = Path(place)
    names = {demo.MODEL_NAME} if demo.is_bundled(place) else {path.name.casefold(), path.stem.casefold()}
    return file.name.casefold() in names


def picture_routes(gallery: Gallery, drawn_again: Callable[[str], list[dict[str, Any]]]) -> list[Route]:
    """Returns the addresses of the pages of a gallery's pictures.

    Args:
        gallery: what is shown.
        drawn_again: returns the drawings of a picture, by its id, as templates show them.
    """
    folders = gallery.pictures

    def pictures(request: Request) -> Response:
        """The pictures as cards."""
        view = PictureView.of(request.query_params)
        folders.begin_look(_PATIENCE_S)
        page, counts = folders.page(**view.chosen, number=view.page), folders.counts()
        cards = ((content, gallery.cards.card(content), count) for content, count in counts.most_common())
        return gallery.page(
            "pictures.html",
            view=view,
            page=page,
            folders=[str(folder) for folder in folders.folders],
            networks=[(content, card["name"], count) for content, card, count in cards if card is not None],
            which=WHICH,
            progress=folders.progress,
            of=len(folders),
        )

    def picture(request: Request) -> Response:
        """One picture."""
        view, id = PictureView.of(request.query_params), request.path_params["id"]
        before, after = folders.neighbours(id, **view.chosen)
        record = folders.record(id)
        return gallery.page(
            "picture.html",
            view=view,
            record=record,
            chosen=joined(drawable_networks(record.found)) if record.infotext else "",
            drawings=drawn_again(id),
            before=before,
            after=after,
        )

    def image(request: Request) -> Response:
        """The picture itself, made small."""
        size = request.query_params.get("size", "small")
        if size not in SIDES:
            raise NotFound("there is no such size", hint=f"use one of {', '.join(SIDES)}")
        path = folders.path_of(request.path_params["id"])
        try:
            return gallery.picture(request, gallery.thumbnails.of(path, size, within=folders.folders))
        except BadPicture:
            return gallery.picture(request, placeholder("", "", "no picture that can be shown"))

    def progress(request: Request) -> Response:
        """How far the reading of the folders is."""
        now = folders.progress
        return JSONResponse({"running": now.is_running, "done": now.done, "of": now.of, "pictures": len(folders)})

    return [
        Route("/pictures", pictures),
        Route("/pictures/progress", progress),
        Route("/picture/{id}", picture),
        Route("/picture/{id}/image", image),
    ]
