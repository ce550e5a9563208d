"""Routes of the fake Civitai under /api, apart from the list of models and the downloads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from support.fake_sites import listing
from support.fake_sites.downloads import Downloads
from support.fake_sites.listing import Refused, zod
from support.fake_sites.messages import Request, Response, error, html, json_response
from support.fake_sites.storage import Signer
from support.fake_sites.world import Model, World

_BLOCKED_AGENTS = ("python-urllib", "python-requests", "python-httpx")
_BASES = {"SD 1.4": "sd1", "SD 1.5": "sd1", "SD 2.0": "sd2", "SD 2.1 768": "sd2", "SDXL 1.0": "sdxl"}
_KINDS = {"Hypernetwork": "hypernet", "LORA": "lora", "Checkpoint": "checkpoint"}
_LEVEL_WORDS = {"None": 1, "Soft": 2, "Mature": 4, "X": 24, "Blocked": 32, "true": 31, "false": 1}
UNRELIABLE = "http://civitai-internal.invalid:3000"  # the origin of downloadUrl in POST by-hash


class Civitai:
    """Answers requests to the API origin."""

    def __init__(self, world: World, signer: Signer, token: str) -> None:
        self.world = world
        self.token = token
        self.downloads = Downloads(world, signer)
        self._routes: tuple[tuple[str, str, Callable[..., Response]], ...] = (
            ("GET", r"/api/v1/models", self._models),
            ("GET", r"/api/v1/models/([^/]+)", self._model),
            ("GET", r"/api/v1/model-versions/mini/([^/]+)", self._mini),
            ("GET", r"/api/v1/model-versions/by-hash/([^/]+)", self._by_hash),
            ("POST", r"/api/v1/model-versions/by-hash", self._by_hashes),
            ("POST", r"/api/v1/model-versions/by-hash/ids", self._ids_by_hashes),
            ("GET", r"/api/v1/model-versions/([^/]+)", self._version),
            ("GET", r"/api/v1/images", self._images),
            ("GET", r"/api/v1/me", self._me),
            ("GET", r"/api/download/models/([^/]+)", self._download),
            ("GET", r"/login", lambda _: html(200, "Sign in to Civitai")),
        )

    def logged_in(self, request: Request) -> bool:
        """Any other token than the good one is anonymous, silently."""
        return request.token == self.token

    def answer(self, request: Request) -> Response:
        agent = request.headers.get("user-agent", "").lower()
        if agent.startswith(_BLOCKED_AGENTS):
            return html(403, "Access denied | Error 1010 | Cloudflare")
        if request.method == "HEAD" and request.path.startswith("/api/download/"):
            return error(401, "Unauthorized")  # the site handles it wrongly, with a token too
        method = "GET" if request.method == "HEAD" else request.method
        other_method = False
        for wanted, pattern, handler in self._routes:
            match = re.fullmatch(pattern, request.path)
            if match and wanted == method:
                try:
                    return handler(request, *match.groups())
                except Refused as refused:
                    return refused.response
            other_method |= match is not None
        return error(405, "Method not allowed") if other_method else html(404, "404 | Civitai")

    def _models(self, request: Request) -> Response:
        return listing.answer(request, self.world, logged_in=self.logged_in(request))

    def _download(self, request: Request, version: str) -> Response:
        return self.downloads.answer(request, _id(version), logged_in=self.logged_in(request))

    def _model(self, request: Request, text: str) -> Response:
        model_id = _id(text)
        try:
            model = self.world.model(model_id)
        except KeyError:
            model = {"availability": "Private"}
        if model.get("availability") == "Private":
            return error(404, f"No model with id {model_id}")
        versions = []
        for version in model["modelVersions"]:
            if version.get("files"):
                if model.get("mode"):
                    version = listing.without_mode(version, model["mode"])
                images = [_without(image, "id") for image in version["images"]]
                versions.append(dropped_empty({**version, "images": images}))
        return json_response({**model, "modelVersions": versions})

    def _version(self, request: Request, text: str) -> Response:
        model, version = self._found(_id(text))
        return json_response(self.full_version(model, version))

    def _found(self, version_id: int) -> tuple[Model, Model]:
        try:
            model, version = self.world.version(version_id)
        except KeyError:
            raise Refused(error(404, "Model not found")) from None
        if model.get("availability") == "Private":
            raise Refused(error(404, "Model not found"))
        if not version.get("files"):
            raise Refused(error(404, "Missing model file"))
        return model, version

    def full_version(self, model: Model, version: Model) -> Model:
        """The record of `GET /model-versions/:id`."""
        kind = _KINDS.get(model["type"], "other")
        base = _BASES.get(str(version.get("baseModel")), "other")
        shown = listing.without_mode(version, model["mode"]) if model.get("mode") else version
        files = [{**file, "primary": bool(file.get("primary"))} for file in shown["files"]]
        until = self.world.early.get(version["id"])
        return {
            **_without(shown, "index"),
            "modelId": model["id"],
            "status": "Published",
            "updatedAt": "2024-01-01T00:00:00.000Z",
            "trainingStatus": None,
            "trainingDetails": None,
            "earlyAccessEndsAt": until,
            "earlyAccessConfig": {"timeframe": 7, "downloadPrice": 500} if until else None,
            "uploadType": "Created",
            "usageControl": self.world.usage.get(version["id"], "Download"),
            "air": f"urn:air:{base}:{kind}:civitai:{model['id']}@{version['id']}",
            "model": {name: model[name] for name in ("name", "type", "nsfw", "poi", "mode") if name in model},
            "files": sorted(files, key=lambda file: not file["primary"]),
        }

    def _mini(self, request: Request, text: str) -> Response:
        model, version = self._found(_id(text))
        full = self.full_version(model, version)
        file = next((file for file in version["files"] if file.get("primary")), version["files"][0])
        return json_response(
            {
                "air": full["air"],
                "versionName": version["name"],
                "modelName": model["name"],
                "baseModel": version.get("baseModel"),
                "availability": version.get("availability", "Public"),
                "publishedAt": version.get("publishedAt"),
                "size": file["sizeKB"],
                "fileName": file["name"],
                "hashes": file["hashes"],
                "downloadUrls": [version["downloadUrl"]],
                "format": file["metadata"].get("format"),
                "requireAuth": self.downloads.needs_token,
                "checkPermission": full["earlyAccessEndsAt"] is not None,
                "earlyAccessEndsAt": full["earlyAccessEndsAt"],
            }
        )

    def _with_hash(self, text: str) -> tuple[Model, Model] | None:
        """The oldest published version that has this hash, of any kind."""
        wanted = text.upper()
        found = [
            (listing.seconds(version.get("publishedAt") or version.get("createdAt")), version["id"], model, version)
            for model, version, file in self.world.files(None)
            if wanted in file["hashes"].values() and model.get("availability") != "Private"
        ]
        return min(found, key=lambda row: row[:2])[2:] if found else None

    def _by_hash(self, request: Request, text: str) -> Response:
        found = self._with_hash(text)
        return json_response(self.full_version(*found)) if found else error(404, "Model not found")

    def _by_hashes(self, request: Request) -> Response:
        found = [self._with_hash(text) for text in _hashes(request, 100)]
        answer = json.dumps([self.full_version(*pair) for pair in found if pair])
        origin = self.world.api_url.rsplit("/", 1)[0]
        return json_response(json.loads(answer.replace(f'"{origin}/api/download', f'"{UNRELIABLE}/api/download')))

    def _ids_by_hashes(self, request: Request) -> Response:
        by_hash: dict[str, list[tuple[float, int, int]]] = {}
        for model, version, file in self.world.files(None):
            if file["hashes"].get("SHA256") and model.get("availability") != "Private":
                published = listing.seconds(version.get("publishedAt") or version.get("createdAt"))
                by_hash.setdefault(file["hashes"]["SHA256"], []).append((published, version["id"], model["id"]))
        rows = []
        for text in _hashes(request, 10_000):
            if text in by_hash:
                _, version_id, model_id = min(by_hash[text])
                rows.append({"modelVersionId": version_id, "modelId": model_id, "hash": text})
        return json_response(rows)

    def _images(self, request: Request) -> Response:
        limit = listing.number(request, "limit", 0, 200)
        wanted = {
            name: listing.number(request, name, 1, 2**31 - 1) for name in ("modelId", "modelVersionId", "imageId")
        }
        word = listing.choice(request, "nsfw", _LEVEL_WORDS, "false")
        kind = request.one("type")
        start = listing.number(request, "cursor", 0, 2**31 - 1) or 0
        items = []
        for model in self.world.models:
            for version in model["modelVersions"]:
                for image in version["images"]:
                    ids = {"modelId": model["id"], "modelVersionId": version["id"], "imageId": image["id"]}
                    if all(value in (None, ids[name]) for name, value in wanted.items()):
                        level = image.get("nsfwLevel", 1)
                        if level <= _LEVEL_WORDS[word] and kind in (None, image.get("type", "image")):
                            items.append({**image, "nsfwLevel": _word(level), "modelVersionIds": [version["id"]]})
        stop = start + (50 if limit is None else limit)
        metadata = {"nextCursor": stop} if start < stop < len(items) else {}
        return json_response({"items": items[start:stop], "metadata": metadata})

    def _me(self, request: Request) -> Response:
        if not self.logged_in(request):
            return error(401, "Unauthorized")
        me = {"id": 4242, "username": "fake_user", "tier": "free", "status": "active", "isMember": False}
        return json_response({**me, "subscriptions": [], "email": "fake@example.invalid", "tokenScope": 4})


def dropped_empty(value: Any) -> Any:
    """The by-id routes' last step: keys with null or an empty array vanish, however deep."""
    if isinstance(value, dict):
        kept = {name: dropped_empty(item) for name, item in value.items()}
        return {name: item for name, item in kept.items() if item is not None and item != []}
    return [dropped_empty(item) for item in value] if isinstance(value, list) else value


def _without(record: Model, name: str) -> Model:
    return {key: value for key, value in record.items() if key != name}


def _id(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 2**31 - 1:
        raise zod("id", "Invalid input: expected number from 1 to 2147483647")
    return int(text)


def _hashes(request: Request, most: int) -> list[str]:
    """The body of a POST by-hash: full SHA256 only."""
    try:
        hashes = json.loads(request.body)
    except ValueError:
        raise Refused(error(400, "Invalid JSON")) from None
    if not isinstance(hashes, list) or len(hashes) > most:
        raise zod("hashes", f"Too big: expected array to have <={most} items")
    if not all(isinstance(text, str) and re.fullmatch(r"[0-9A-Fa-f]{64}", text) for text in hashes):
        raise zod("hashes", "Invalid string: must be a SHA256")
    return [text.upper() for text in hashes]


def _word(level: int) -> str:
    return "None" if level == 1 else "Soft" if level == 2 else "Mature" if level == 4 else "X"
