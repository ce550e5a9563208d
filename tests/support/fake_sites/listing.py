"""`GET /models`: its parameters, treated as unhelpfully as the site treats them, and its pages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from support.fake_sites.messages import Request, Response, error, json_response
from support.fake_sites.world import Model, World

TYPES = [
    "Checkpoint",
    "TextualInversion",
    "Hypernetwork",
    "AestheticGradient",
    "LORA",
    "LoCon",
    "DoRA",
    "Controlnet",
    "Upscaler",
    "MotionModule",
    "VAE",
    "Poses",
    "Wildcards",
    "Workflows",
    "Detection",
    "Other",
]
PERIODS = {"Day": 1, "Week": 7, "Month": 30, "Year": 365, "AllTime": None}
SORTS: dict[str, tuple[str, ...]] = {  # what orders the models; the same keys make up the cursor
    "Highest Rated": ("thumbsUpCount", "downloadCount"),
    "Most Downloaded": ("downloadCount", "thumbsUpCount"),
    "Most Liked": ("thumbsUpCount", "commentCount"),
    "Most Discussed": ("commentCount", "downloadCount"),
    "Most Collected": ("thumbsUpCount", "tippedAmountCount"),
    "Most Images": ("downloadCount", "commentCount"),
    "Newest": ("published",),
    "Oldest": ("published",),
}
UNSORTED_TAIL = re.compile(r"(\|~\d+)+$")  # a cursor with this tail means the place that it means without it
_LONGEST_TARGET = 32_768


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


def zod(name: str, message: str) -> Refused:
    """400 with a Zod error, whose `error` is an object."""
    issues = json.dumps([{"code": "invalid_value", "path": [name], "message": message}])
    return Refused(error(400, {"name": "ZodError", "message": issues}))


def number(request: Request, name: str, low: int, high: int) -> int | None:
    """An integer parameter within bounds, None without it."""
    text = request.one(name)
    if text is None:
        return None
    if not re.fullmatch(r"-?\d+", text) or not low <= int(text) <= high:
        raise zod(name, f"Invalid input: expected number from {low} to {high}")
    return int(text)


def numbers(request: Request, name: str) -> set[int] | None:
    """A list of ids, with commas or as a repeated key."""
    if name not in request.query:
        return None
    texts = [text for value in request.query[name] for text in value.split(",") if text]
    if not all(text.strip().isdigit() for text in texts):
        raise zod(name, "Invalid input: expected number, received NaN")
    return {int(text) for text in texts}


def choice(request: Request, name: str, choices: Any, default: str) -> str:
    text = request.one(name)
    if text is not None and text not in choices:
        raise zod(name, f"Invalid option: expected one of {'|'.join(choices)}")
    return text or default


def slug(username: object) -> str:
    """What the site makes of a username."""
    return re.sub(r"[^a-z0-9_]", "", str(username).strip().replace(" ", "_").lower())


def seconds(text: str | None) -> float:
    """An ISO time as seconds since 1970; 0 for none."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0.0


@dataclass
class _Wish:
    """The parameters of one request that were understood."""

    limit: int
    page: int | None
    cursor: str | None
    query: str | None
    sort: str
    period: str
    ids: set[int] | None
    version_ids: set[int] | None
    username: str | None
    adult: bool
    bases: set[str]
    archived: bool


def answer(request: Request, world: World, *, logged_in: bool) -> Response:
    """One page of models."""
    try:
        wish = _read(request, logged_in)
        return _page(request, world, wish, _chosen(request, world, wish))
    except Refused as refused:
        return refused.response


def _read(request: Request, logged_in: bool) -> _Wish:
    if len(request.target) > _LONGEST_TARGET:
        raise Refused(Response(431))
    query = request.query
    limit = number(request, "limit", 0, 100)
    page = number(request, "page", 1, 1 << 31)
    for name in ("types",):
        for value in query.get(name, ()):
            if value not in TYPES:
                raise zod(name, f"Invalid option: expected one of {'|'.join(TYPES)}")
    for name in ("allowNoCredit", "allowDerivatives", "allowDifferentLicense", "collectionId"):
        if name in query:
            raise zod(name, "Invalid input: received string")
    if len(query.get("tag", ())) > 1:
        raise zod("tag", "Invalid input: expected string, received array")
    choice(request, "periodMode", ("published", "stats"), "published")
    choice(request, "nsfw", ("true", "false"), "false")
    for name in ("favorites", "hidden"):  # their mere presence
        if name in query and not logged_in:
            raise Refused(error(401, "Unauthorized"))
    cursor = request.one("cursor")
    text = request.one("query")
    wish = _Wish(
        100 if limit is None else limit,
        None if cursor else page,
        cursor or None,
        text or None,
        choice(request, "sort", SORTS, "Highest Rated"),
        choice(request, "period", PERIODS, "AllTime"),
        numbers(request, "ids"),
        numbers(request, "modelVersionIds"),
        request.one("username"),
        request.one("nsfw") == "true",
        set(query.get("baseModels", ())),
        "archived" in query,
    )
    if wish.page and wish.query:
        raise Refused(error(400, "Cannot use page param with query search. Use cursor-based pagination."))
    if wish.page and wish.page * wish.limit > 1000:
        raise Refused(error(429, "You've requested too many pages, please use cursors instead"))
    return wish


def _chosen(request: Request, world: World, wish: _Wish) -> list[Model]:
    """The models that the query itself finds; private and empty ones are dropped from pages only afterwards."""
    models = [world.raw(model_id) for model_id in world.ids()]
    query = request.query
    if "types" in query:
        models = [model for model in models if model["type"] in query["types"]]
    if wish.username is not None:
        wanted = slug(wish.username)
        if not any(slug(_username(model)) == wanted for model in models):
            raise Refused(error(404, "User not found"))
        models = [model for model in models if slug(_username(model)) == wanted]
    tag = request.one("tag")
    if tag is not None:
        models = _tagged(models, tag)
    if wish.ids is not None:
        models = [model for model in models if model["id"] in wish.ids]
    if wish.version_ids is not None:
        models = [m for m in models if any(v["id"] in wish.version_ids for v in m["modelVersions"])]
    if wish.bases:
        models = [m for m in models if any(v.get("baseModel") in wish.bases for v in m["modelVersions"])]
    if not wish.archived:
        models = [model for model in models if model.get("mode") != "Archived"]
    if "favorites" in query:
        models = [model for model in models if model["id"] in world.favorites]
    if "hidden" in query:
        models = [model for model in models if model["id"] in world.hidden]
    if {"supportsGeneration", "fromPlatform", "allowCommercialUse"} & query.keys() or ("followed" in query):
        models = []  # none of these is
    if "earlyAccess" in query:
        models = [m for m in models if any(v["id"] in world.early for v in m["modelVersions"])]
    return [model for model in models if not model.get("poi")]


def _tagged(models: list[Model], tag: str) -> list[Model]:
    if "," in tag:
        return []
    found = [model for model in models if tag.lower() in [each.lower() for each in model.get("tags") or ()]]
    return found or models  # an unknown tag filters nothing


def _page(request: Request, world: World, wish: _Wish, models: list[Model]) -> Response:
    cursor = UNSORTED_TAIL.sub("", wish.cursor) if wish.cursor else None
    if wish.query:
        rows, following = _found(models, wish, cursor)
    else:
        rows, following = _sorted(world, models, wish, cursor)
    items = [item for row in rows if (item := _item(world, row, wish)) is not None]
    metadata: dict[str, Any] = {}
    if wish.page:
        metadata |= {"currentPage": wish.page, "pageSize": wish.limit}
    if following is not None:
        metadata["nextCursor"] = following
        metadata["nextPage"] = _next_page(request, following)
    return json_response({"items": items, "metadata": metadata})


def _found(models: list[Model], wish: _Wish, cursor: str | None) -> tuple[list[Model], str | None]:
    """Search: by relevance whatever the sort, with an offset for a cursor."""
    if cursor and not cursor.isdigit():
        raise Refused(error(400, "Invalid cursor"))
    text = (wish.query or "").lower()

    def rank(model: Model) -> int | None:
        name = model["name"].lower()
        if text in name:
            return 0 if name.startswith(text) else 1
        return 2 if any(text in tag.lower() for tag in model.get("tags") or ()) else None

    ranked = sorted((place, model["id"], model) for model in models if (place := rank(model)) is not None)
    start = int(cursor or 0)
    rows = [model for _, _, model in ranked[start : start + wish.limit]]
    following = str(start + wish.limit) if wish.limit and start + wish.limit < len(ranked) else None
    return rows, following


def _sorted(world: World, models: list[Model], wish: _Wish, cursor: str | None) -> tuple[list[Model], str | None]:
    key = sort_key(wish.sort)
    descending = wish.sort != "Oldest"
    models = sorted((model for model in models if _recent(model, wish)), key=key, reverse=descending)
    if cursor:
        after = _place(world, cursor, wish.sort)
        models = [model for model in models if (key(model) < after if descending else key(model) > after)]
    elif wish.page:
        models = models[(wish.page - 1) * wish.limit :]
    rows = models[: wish.limit]
    if not rows or len(models) <= wish.limit:
        return rows, None
    following = "|".join(map(str, key(rows[-1])))
    world.cursors.setdefault(following, set()).add(wish.sort)
    return rows, following


def sort_key(sort: str) -> Callable[[Model], tuple[int, ...]]:
    """The numbers that order models under a sort, the id last."""

    def key(model: Model) -> tuple[int, ...]:
        stats = model.get("stats") or {}
        values = {**stats, "published": int(_published(model) * 1000)}
        return (*(int(values.get(name) or 0) for name in SORTS[sort]), model["id"])

    return key


def _place(world: World, cursor: str, sort: str) -> tuple[int, ...]:
    """What a cursor stands for. One that another sort gave out is refused."""
    parts = cursor.split("|")
    if not all(part.isdigit() for part in parts) or len(parts) != len(SORTS[sort]) + 1:
        raise Refused(error(400, f"Invalid cursor for sort {sort}"))
    if sort not in world.cursors.get(cursor, {sort}):
        raise Refused(error(400, f"Invalid cursor for sort {sort}"))
    return tuple(map(int, parts))


def _item(world: World, model: Model, wish: _Wish) -> Model | None:
    """What the list shows of a model; None where a later filter drops it."""
    level = model.get("nsfwLevel", 8 if model.get("nsfw") else 1)
    if model.get("availability") == "Private" or not (wish.adult or level & 1):
        return None
    if wish.query and not _recent(model, wish):
        return None
    asked = wish.ids is not None or wish.version_ids is not None or wish.username is not None
    versions = [v for v in model["modelVersions"] if asked or v.get("availability", "Public") == "Public"]
    if wish.bases:
        versions = [version for version in versions if version.get("baseModel") in wish.bases]
    if not versions and model["modelVersions"]:
        return None
    item = {**world.model(model["id"]), "modelVersions": versions}
    if model.get("mode"):
        item["modelVersions"] = [without_mode(version, model["mode"]) for version in versions]
    return item


def without_mode(version: Model, mode: str) -> Model:
    """A version of an archived model without its files, of one taken down without its pictures."""
    gone = {"Archived": {"downloadUrl"}, "TakenDown": set()}[mode]
    emptied = {"Archived": "files", "TakenDown": "images"}[mode]
    return {name: [] if name == emptied else value for name, value in version.items() if name not in gone}


def _recent(model: Model, wish: _Wish) -> bool:
    days = PERIODS[wish.period]
    return days is None or _published(model) > time.time() - days * 86_400


def _published(model: Model) -> float:
    return max((seconds(v.get("publishedAt") or v.get("createdAt")) for v in model["modelVersions"]), default=0.0)


def _username(model: Model) -> object:
    username = (model.get("creator") or {}).get("username")
    return "" if username is None else username


def _next_page(request: Request, cursor: str) -> str:
    pairs = [(name, value) for name, values in request.query.items() for value in values if name != "cursor"]
    return f"http://{request.headers.get('host', '')}{request.path}?{urlencode([*pairs, ('cursor', cursor)])}"
