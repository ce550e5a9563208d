"""The made-up catalogue that the fake sites serve, and the ways in which a test can change it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from support.fake_sites import quirks
from support.fake_sites.catalogue import API, IMAGES, Catalogue
from support.fake_sites.contents import Contents

Model = dict[str, Any]
REPOSITORY = Path(__file__).resolve().parents[3]


class World:
    """Models with all that is known of them. `World.make` is the way to get one."""

    def __init__(self, contents: Contents, seed: int) -> None:
        self.contents = contents
        self.usage: dict[int, str] = {}  # version id -> usageControl, where it is not Download
        self.early: dict[int, str] = {}  # version id -> the end of its early access
        self.favorites: set[int] = set()  # model ids, of the owner of the token
        self.hidden: set[int] = set()
        self.cursors: dict[str, set[str]] = {}  # cursors given out -> the sorts they were given out for
        self._catalogue = Catalogue(contents, seed)
        self._models: dict[int, Model] = {}
        self._quirks: dict[str, list[int]] = {}
        self._lock = threading.RLock()
        self._api, self._images = API, IMAGES

    @classmethod
    def make(
        cls,
        models: int,
        *,
        others: int = 0,
        seed: int = 0,
        real: bool = False,
        plain: bool = False,
        widths: Sequence[int] = (8,),
        structure: Sequence[float] = (1, 2, 1),
        cache_bytes: int = 1 << 30,
    ) -> World:
        """`models` hypernetworks with 4/3 files each, and `others` LoRAs and checkpoints.

        `real` adds the 12 real models of 2023 where their JSON is at hand; `plain` leaves out what cannot be listed,
        fetched or loaded; `widths` and `structure` decide the size of every network file.
        """
        world = cls(Contents(widths, structure, cache_bytes), seed)
        for index in range(models):
            quirk, layout = quirks.quirk_of(index, plain=plain)
            world._add(quirk, world._catalogue.model(index, quirk, layout))
        for index in range(others):
            kind = ("LORA", "Checkpoint")[index % 2]
            model = world._catalogue.model(index, "plain", (("lora",),), kind)
            model["stats"]["thumbsUpCount"] += 30  # well among the rest, not at its end
            world._add("other", model)
        for model in real_models() if real else ():
            world._add("real", world._catalogue.adopt(model))
        return world

    def _add(self, quirk: str, model: Model) -> None:
        self._models[model["id"]] = model
        self._quirks.setdefault(quirk, []).append(model["id"])
        versions = [version["id"] for version in model["modelVersions"]]
        if quirk == "archived":
            self.archive(model["id"])
        elif quirk == "taken down":
            self.take_down(model["id"])
        elif quirk == "early access":
            self.early_access(versions[0], "2099-01-01T00:00:00.000Z")
        elif quirk == "early access over":
            self.early[versions[0]] = model["modelVersions"][0]["earlyAccessDeadline"]
        elif quirk == "private":
            model["availability"] = "Private"
        elif quirk == "generation only":
            self.usage[versions[0]] = "Generation"

    @property
    def api_url(self) -> str:
        """Where the catalogue's download URLs point, without the path from /download on."""
        return self._api

    def bind(self, api: str, images: str) -> None:
        """Moves every URL of the catalogue to these origins."""
        with self._lock:
            moves = ((self._api, api), (self._images, images))
            for model in self._models.values():
                _move(model, moves)
            self._api, self._images = api, images

    # ------------------------------------------------------------------ reading

    @property
    def models(self) -> list[Model]:
        """All models that exist, hidden ones too, as `GET /models` would list them. Editing them edits the world."""
        with self._lock:
            return [self._filled(model) for model in self._models.values()]

    def model(self, model_id: int) -> Model:
        """One model, with true sizes and hashes; KeyError where there is none."""
        with self._lock:
            return self._filled(self._models[model_id])

    def find(self, quirk: str) -> list[int]:
        """The ids of the models with this oddity (quirks.QUIRKS; also "other" and "real")."""
        return list(self._quirks.get(quirk, ()))

    def ids(self) -> list[int]:
        with self._lock:
            return list(self._models)

    def raw(self, model_id: int) -> Model:
        """One model whose sizes and hashes may not be there yet: for choosing, not for answering."""
        return self._models[model_id]

    def version(self, version_id: int) -> tuple[Model, Model]:
        """(model, version); KeyError where there is none."""
        with self._lock:
            for model in self._models.values():
                for version in model["modelVersions"]:
                    if version["id"] == version_id:
                        return self._filled(model), version
        raise KeyError(version_id)

    def file(self, file_id: int) -> tuple[Model, Model, Model]:
        """(model, version, file); KeyError where there is none."""
        with self._lock:
            for model in self._models.values():
                for version in model["modelVersions"]:
                    for file in version["files"]:
                        if file["id"] == file_id:
                            return self._filled(model), version, file
        raise KeyError(file_id)

    def files(self, kind: str | None = "Hypernetwork") -> Iterator[tuple[Model, Model, Model]]:
        """(model, version, file) of all models of one type, or of all."""
        for model in self.models:
            if kind in (None, model["type"]):
                for version in model["modelVersions"]:
                    for file in version["files"]:
                        yield model, version, file

    def content(self, file_id: int) -> bytes:
        """The bytes that are served now under this file id."""
        return self.contents[file_id]

    def sha256(self, file_id: int) -> str:
        """Upper-case, of the bytes that are served now."""
        return self.contents.facts(file_id).hashes["SHA256"]

    def build_all(self) -> int:
        """Makes every file now, before something is timed; returns the bytes of all."""
        return sum(self.contents.facts(file["id"]).size for _, _, file in self.files(None))

    def _filled(self, model: Model) -> Model:
        for version in model["modelVersions"]:
            for file in version["files"]:
                if file["sizeKB"] is None:
                    facts = self.contents.facts(file["id"])
                    file["sizeKB"] = facts.size / 1024
                    file["hashes"] = {} if file["id"] in self._catalogue.no_hashes else dict(facts.hashes)
        return model

    # ------------------------------------------------------------------ changing

    def replace_file(self, file_id: int) -> str:
        """The owner replaces a file: new bytes and a new hash under the same id. Returns the new SHA256."""
        with self._lock:
            file = self.file(file_id)[2]
            self.contents.replace(file_id)
            file["sizeKB"] = None
            return self.sha256(file_id)

    def remove(self, model_id: int) -> None:
        """Deletes a model: 404 from now on."""
        with self._lock:
            del self._models[model_id]

    def remove_version(self, version_id: int) -> None:
        """Unpublishes a version: it vanishes from its model."""
        with self._lock:
            model, version = self.version(version_id)
            model["modelVersions"].remove(version)

    def archive(self, model_id: int) -> None:
        self._models[model_id]["mode"] = "Archived"

    def take_down(self, model_id: int) -> None:
        self._models[model_id]["mode"] = "TakenDown"

    def add_version(self, model_id: int) -> Model:
        """Publishes a new version with one file, first in the model's order; returns it."""
        with self._lock:
            model = self._models[model_id]
            number = len(model["modelVersions"]) + 1
            published = f"2024-06-{1 + number % 28:02}T12:00:00.000Z"
            if "nsfwLevel" not in model:  # a real model of 2023
                model |= {"nsfwLevel": 1, "baseModels": ["SD 1.5"]}
            version = self._catalogue.version(model, f"v{number}.0", ("pt",), published)
            _move(version, ((API, self._api), (IMAGES, self._images)))
            model["modelVersions"].insert(0, version)
            for position, each in enumerate(model["modelVersions"]):
                each["index"] = position
            self._filled(model)
            return version

    def early_access(self, version_id: int, until: str) -> None:
        """Puts a version behind payment until that time (ISO, `Z`)."""
        with self._lock:
            version = self.version(version_id)[1]
            self.early[version_id] = until
            version |= {"availability": "EarlyAccess", "earlyAccessDeadline": until}


def real_models() -> list[Model]:
    """The JSON of the 12 real models, where the shared folder is at hand."""
    shared = Path(os.environ.get("HNETKIT_SHARED", REPOSITORY.parent / "shared"))
    return [json.loads(path.read_text("utf-8")) for path in sorted(shared.glob("data/civitai/*.json"))]


def _move(value: Any, moves: Sequence[tuple[str, str]]) -> None:
    """Replaces URL prefixes in place, however deep."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            _move(item, moves)
        elif isinstance(item, str):
            for old, new in moves:
                if item.startswith(old + "/"):
                    value[key] = new + item[len(old) :]
