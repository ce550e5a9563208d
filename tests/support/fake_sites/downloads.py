"""`GET /api/download/models/:versionId`: who may have which file, and the redirect to storage."""

from __future__ import annotations

import time
from urllib.parse import quote

from support.fake_sites.listing import seconds
from support.fake_sites.messages import Request, Response, error, json_response, text_response
from support.fake_sites.storage import Signer
from support.fake_sites.world import Model, World

PATH = "/api/download/models/"
_BROWSERS = ("mozilla", "chrome", "safari", "firefox", "opera", "edge")
_ALLOWED = {
    "type": ("Model", "Text Encoder", "Pruned Model", "Negative", "Training Data", "VAE", "Config", "Archive", "Other"),
    "format": ("SafeTensor", "PickleTensor", "GGUF", "Diffusers", "Core ML", "ONNX", "Other"),
    "size": ("full", "pruned"),
    "fp": ("fp16", "fp8", "nf4", "fp32", "bf16"),
}


def login_required() -> Response:
    message = "The creator of this asset requires you to be logged in to download it"
    return json_response({"error": "Unauthorized", "message": message}, 401)


def early_access(deadline: str) -> Response:
    message = f"This asset is in Early Access. You can use Buzz access to it before {deadline}."
    return error(403, "Early Access", deadline=deadline, message=message)


def archived() -> Response:
    return error(410, "Model archived, not available for download")


def login_page(target: str) -> Response:
    location = f"/login?returnUrl={quote(target, safe='')}&reason=download-auth"
    return Response(302, {"Location": location, "Cache-Control": "no-store"})


class Downloads:
    """The download route."""

    def __init__(self, world: World, signer: Signer) -> None:
        self.world = world
        self.signer = signer
        self.needs_token = False

    def answer(self, request: Request, version_id: int, *, logged_in: bool) -> Response:
        browser = any(word in request.headers.get("user-agent", "").lower() for word in _BROWSERS)
        refusal, file = self._choose(request, version_id, logged_in)
        if refusal is not None:
            if browser and refusal.status == 401:
                return login_page(request.target)
            if browser:
                data = refusal.json()
                return text_response(refusal.status, str(data.get("message") or data["error"]))
            refusal.headers["Cache-Control"] = "no-store"
            return refusal
        name = file["name"].replace("\\", "\\\\").replace('"', '\\"')
        path = f"/files/{file['id']}/{file['id']}.bin"
        location = self.signer.sign(path, disposition=f'attachment; filename="{name}"')
        return Response(307, {"Location": location, "Cache-Control": "no-store"})

    def _choose(self, request: Request, version_id: int, logged_in: bool) -> tuple[Response | None, Model]:
        for name, allowed in _ALLOWED.items():
            value = request.one(name)
            if value is not None and value not in allowed:
                return error(400, f"Invalid {name}: {value}"), {}
        try:
            model, version = self.world.version(version_id)
        except KeyError:
            return error(404, "File not found"), {}
        if model.get("mode") == "Archived":
            return archived(), {}
        if model.get("mode") == "TakenDown" or model.get("availability") == "Private":
            return error(403, "Forbidden", message="You do not have access to this model"), {}
        if self.world.usage.get(version_id, "Download") != "Download":
            message = "The creator of this asset has disabled downloads on this file"
            return json_response({"error": "Unauthorized", "message": message}, 401), {}
        deadline = self.world.early.get(version_id)
        if deadline and seconds(deadline) > time.time():
            return early_access(deadline), {}
        if self.needs_token and not logged_in:
            return login_required(), {}
        file = self._file(request, version)
        return (None, file) if file else (error(404, "File not found"), {})

    def _file(self, request: Request, version: Model) -> Model | None:
        """The file asked for; `fileId` alone names exactly one."""
        files: list[Model] = version["files"]
        wanted = request.one("fileId")
        if wanted is not None:
            return next((file for file in files if str(file["id"]) == wanted), None)
        asked = {name: request.one(name) for name in _ALLOWED if request.one(name) is not None}
        if not asked:
            return next((file for file in files if file.get("primary")), None)
        for file in files:
            stated = {"type": file["type"], **file["metadata"]}
            if all(stated.get(name) == value for name, value in asked.items()):
                return file
        return None
