"""A fake CivArchive: what it kept of the world, as its API tells it, and mirrors of all characters.

    sites.civarchive.keep(file_id, "deleted", "lying", "right")

The archive remembers the file as it is now, whatever becomes of it at the site.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from support.fake_sites.messages import Request, Response, error, html, json_response, text_response
from support.fake_sites.storage import ranged
from support.fake_sites.world import Model, World

DELETED_AT = "2025-03-01T00:00:00.000Z"
CHARACTERS = {
    "right": "the very bytes",
    "deleted": "404, and the archive knows it",
    "stale": "404, and the archive does not know it",
    "lying": "other bytes of the same length",
    "larger": "more bytes than the file has, with their true length",
    "endless": "bytes without an end",
    "slow": "a few bytes a second",
    "cut": "half of the bytes, then the connection ends",
    "login": "a page to log in, with status 200",
    "closed": "401, and the archive says that it is gated",
    "busy": "429",
}


@dataclass(frozen=True)
class Kept:
    """A file as it was when the archive saw it."""

    content: bytes
    model: Model
    version: Model
    file: Model
    mirrors: tuple[str, ...]


class CivArchive:
    """Routes of the archive's API, and of the mirrors that it knows."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kept: dict[str, Kept] = {}  # by sha256
        self.mirrors_url = ""  # the origin of the mirrors, known once it listens
        self.files_only = False  # whether an answer about a hash names the version alone, as the real one's may

    def keep(self, file_id: int, *characters: str) -> str:
        """Remembers a file, with a mirror of each character; without any with one that is right. Returns its sha256."""
        model, version, file = self.world.file(file_id)
        content = self.world.content(file_id)
        sha256 = hashlib.sha256(content).hexdigest()
        self.kept[sha256] = Kept(content, dict(model), dict(version), dict(file), characters or ("right",))
        return sha256

    def keep_all(self, *characters: str) -> None:
        for _, _, file in list(self.world.files()):
            self.keep(file["id"], *characters)

    def mirror(self, character: str, sha256: str) -> str:
        """The address of a mirror."""
        return f"{self.mirrors_url}/{character}/{sha256}/{self.kept[sha256].file['id']}.bin?signature=of-{character}"

    # --- the API

    def answer(self, request: Request) -> Response:
        if match := re.fullmatch(r"/api/sha256/([0-9a-f]{64})", request.path):
            return self._file(match[1])
        if match := re.fullmatch(r"/api/models/(\d+)", request.path):
            return self._model(int(match[1]), request.one("modelVersionId"))
        return error(404, "Not found")

    def _file(self, sha256: str) -> Response:
        kept = self.kept.get(sha256)
        if kept is None:
            return error(404, "Model not found")
        if self.files_only:
            file = {"model_id": kept.model["id"], "model_version_id": kept.version["id"], "source": "civitai"}
            return json_response({"data": {"files": [file]}})
        return self._told(kept)

    def _model(self, model: int, version: str | None) -> Response:
        of_model = [kept for kept in self.kept.values() if kept.model["id"] == model]
        wanted = [kept for kept in of_model if version in (None, str(kept.version["id"]))]
        return self._told(wanted[0]) if wanted else error(404, "Model not found")

    def _told(self, kept: Kept) -> Response:
        files = [each for each in self.kept.values() if each.version["id"] == kept.version["id"]]
        version = {
            "id": kept.version["id"],
            "modelId": kept.model["id"],
            "name": kept.version["name"],
            "baseModel": kept.version.get("baseModel"),
            "trigger": kept.version.get("trainedWords") or [],
            "files": [self._record(each) for each in files],
            "images": [],
        }
        about = {
            "id": kept.model["id"],
            "name": kept.model["name"],
            "type": kept.model["type"],
            "is_nsfw": False,
            "tags": [],
            "creator_username": "somebody",
            "version": version,
            "versions": [{"id": kept.version["id"], "name": kept.version["name"]}],
        }
        return json_response({"data": about})

    def _record(self, kept: Kept) -> dict[str, Any]:
        sha256 = hashlib.sha256(kept.content).hexdigest()
        mirrors = [
            {
                "filename": kept.file["name"],
                "url": self.mirror(character, sha256),
                "source": "somewhere",
                "deletedAt": DELETED_AT if character == "deleted" else None,
                "is_gated": character == "closed",
                "is_paid": False,
            }
            for character in kept.mirrors
        ]
        return {
            "id": kept.file["id"],
            "name": kept.file["name"],
            "type": "Model",
            "sizeKB": len(kept.content) / 1024,
            "downloadUrl": kept.file.get("downloadUrl"),
            "sha256": sha256.upper(),
            "is_primary": False,
            "mirrors": mirrors,
        }

    # --- the mirrors

    def mirror_answer(self, request: Request) -> Response:
        character, _, rest = request.path.strip("/").partition("/")
        kept = self.kept.get(rest.partition("/")[0])
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{character}"'}
        if kept is None or character in ("deleted", "stale"):
            return text_response(404, "no such file")
        content = kept.content
        if character == "lying":
            content = bytes(byte ^ 1 for byte in content)
        elif character == "larger":
            content += bytes(len(content) + (1 << 20))
        elif character == "endless":
            return Response(200, headers, content, length=False, endless=bytes(1 << 16))
        elif character == "login":
            return html(200, "Log in to see this file")
        elif character == "closed":
            return text_response(401, "log in")
        elif character == "busy":
            return text_response(429, "later", Retry_After="600")
        answer = ranged(request, content, headers)
        if character == "slow":
            answer.drip, answer.drip_seconds = 16, 0.2
        elif character == "cut":
            answer.cut_after = len(answer.body) // 2
        return answer
