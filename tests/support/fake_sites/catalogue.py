"""Builds the models of a made-up catalogue, in the shape in which `GET /models` lists them."""

from __future__ import annotations

import copy
import random
import re
from dataclasses import dataclass, field
from typing import Any

from support.fake_sites import quirks
from support.fake_sites.contents import Contents, FileKind, Recipe

Model = dict[str, Any]
API = "https://civitai.com/api"
IMAGES = "https://image.civitai.com"
CREATORS = ("inkfox_test", "LuminaPress", "brush_and_bone", "Kettle", "paper_moth")
TAGS = ("style", "watercolor", "hypernetwork", "artist", "anime", "photography", "Pixel Art")
_FIRST = ("Neon", "Quiet", "Paper", "Amber", "Winter", "Velvet", "Hollow", "Copper", "Silent", "Cobalt", "Marble")
_SECOND = ("Watercolour", "Harbour", "Engraving", "Comic", "Lantern", "Meadow", "Portrait", "Cathedral", "Sketch")
_IMPORTS = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage")
_SCAN = "**Detected Pickle imports (3)**\n```\n" + "\n".join(_IMPORTS) + "\n```"
_BASES = ("SD 1.5", "SD 1.5", "SD 1.5", "Other", "SD 1.5", "SD 1.4", "SD 2.1 768")
_LEVELS = (1, 1, 5, 1, 28, 1, 3)


@dataclass
class Catalogue:
    """Gives out ids and builds models; `contents` learns how each file's bytes are made."""

    contents: Contents
    seed: int
    next_version: int = 900_001  # the same numbers occur as model ids
    next_file: int = 920_301
    next_image: int = 930_401
    no_hashes: set[int] = field(default_factory=set)

    def model(self, index: int, quirk: str, layout: quirks.Layout, kind: str = "Hypernetwork") -> Model:
        """Model number `index`, with the oddities that are plain data."""
        rng = random.Random(f"{self.seed}/{index}/{kind}")
        name = quirks.NAMES.get(quirk) or f"{rng.choice(_FIRST)} {rng.choice(_SECOND)} {index + 1}"
        level = _LEVELS[index % len(_LEVELS)]
        downloads = int(rng.lognormvariate(6, 1))
        model: Model = {
            "id": 900_000 + 3 * index if kind == "Hypernetwork" else 800_000 + index,
            "name": name,
            "description": f"<p>{name}. Trained {1000 * (index + 1)} steps.</p>",
            **quirks.licence(index),
            "type": kind,
            "minor": False,
            "sfwOnly": False,
            "poi": False,
            "nsfw": not level & 3,
            "nsfwLevel": level,
            "availability": "Public",
            "userId": 70_000 + index % len(CREATORS),
            "cosmetic": None,
            "supportsGeneration": False,
            "baseModels": [_BASES[index % len(_BASES)]],
            "stats": {
                "downloadCount": downloads,
                "thumbsUpCount": rng.randrange(60),
                "thumbsDownCount": rng.randrange(3),
                "commentCount": rng.randrange(9),
                "tippedAmountCount": 0,
            },
            "creator": {"username": CREATORS[index % len(CREATORS)], "image": None},
            "tags": sorted({rng.choice(TAGS) for _ in range(3)}),
            "modelVersions": [],
        }
        for number, kinds in reversed(list(enumerate(layout))):
            label = "*" if quirk == "symbol versions" else f"v{number + 1}.0"
            model["modelVersions"].append(self.version(model, label, kinds, _date(rng, index, number)))
        for position, version in enumerate(model["modelVersions"]):
            version["index"] = position
        if quirk == "uploaded name":
            model["modelVersions"][0]["files"][0]["name"] = quirks.UPLOADED
        if quirk == "no hashes":
            self.no_hashes |= {file["id"] for version in model["modelVersions"] for file in version["files"]}
        if quirk == "same content":
            first, second = (version["files"][0]["id"] for version in model["modelVersions"])
            self.contents.copy(first, second)
        quirks.change(quirk, model, "2023-05-01T00:00:00.000Z")
        return model

    def version(self, model: Model, name: str, kinds: tuple[str, ...], published: str) -> Model:
        """A version with one file for each kind; the model need not hold it yet."""
        version_id = self.next_version
        self.next_version += 1
        level = model["nsfwLevel"]
        files = [self._file(model["name"], name, kind) for kind in kinds]
        primary = next((file for file in files if file["name"].endswith(".safetensors")), files[0])
        for file in files:
            file["downloadUrl"] = f"{API}/download/models/{version_id}"
            if file is primary:
                file["primary"] = True
            else:
                parts = {"type": file["type"], **file["metadata"]}
                query = "&".join(f"{key}={value}" for key, value in parts.items() if value)
                file["downloadUrl"] += "?" + query.replace(" ", "%20")
        return {
            "id": version_id,
            "index": len(model["modelVersions"]),
            "name": name,
            "baseModel": model["baseModels"][0],
            "baseModelType": "Standard",
            "createdAt": published,
            "publishedAt": published,
            "status": "Published",
            "availability": "Public",
            "nsfwLevel": level,
            "description": None if version_id % 3 else "<p>Two strengths.</p>",
            "trainedWords": [],
            "covered": False,
            "stats": {"downloadCount": version_id % 900, "thumbsUpCount": version_id % 40, "thumbsDownCount": 0},
            "files": files,
            "images": [self._image(level, number) for number in range(1 + version_id % 2)],
            "downloadUrl": f"{API}/download/models/{version_id}",
        }

    def _file(self, model_name: str, version_name: str, kind: str) -> Model:
        file_id = self.next_file
        self.next_file += 1
        stem = f"{_camel(model_name)[:20]}_{_camel(version_name)}"
        kinds: dict[str, tuple[FileKind, str, str, str]] = {
            "pt": ("network", "Model", "PickleTensor", ".pt"),
            "safetensors": ("safetensors", "Model", "SafeTensor", ".safetensors"),
            "vae": ("vae", "Model", "PickleTensor", ".pt"),
            "html": ("html", "Model", "PickleTensor", ".pt"),
            "lora": ("lora", "Model", "PickleTensor", ".pt"),
            "archive": ("networks zip", "Archive", "Other", ".zip"),
            "training": ("training zip", "Training Data", "Other", "_trainingData.zip"),
        }
        recipe, file_type, file_format, suffix = kinds[kind]
        self.contents.define(file_id, Recipe(recipe, file_id + 1_000_000 * self.seed, stem))
        declared = ("full", "fp16") if file_type == "Model" else (None, None)
        return {
            "id": file_id,
            "sizeKB": None,
            "name": stem + suffix,
            "type": file_type,
            "pickleScanResult": "Success",
            "pickleScanMessage": _SCAN if kind == "pt" else "No Pickle imports",
            "virusScanResult": "Success",
            "virusScanMessage": None,
            "scannedAt": "2023-02-11T09:14:03.512Z",
            "metadata": {"format": file_format, "size": declared[0], "fp": declared[1]},
            "hashes": None,
            "downloadUrl": "",
        }

    def _image(self, level: int, number: int) -> Model:
        image_id = self.next_image
        self.next_image += 1
        bits = [bit for bit in (1, 2, 4, 8, 16) if level & bit]
        unique = f"{image_id:08}-0000-4000-8000-{image_id:012}"
        width, height = ((64, 96), (80, 80))[image_id % 2]
        return {
            "id": image_id,
            "url": f"{IMAGES}/ACCOUNTKEY/{unique}/original=true/{image_id}.jpeg",
            "nsfwLevel": bits[number % len(bits)],
            "width": width,
            "height": height,
            "hash": "UFGQ]1~q00M{",
            "type": "image",
            "minor": False,
            "poi": False,
            "hasMeta": False,
            "meta": None,
            "onSite": False,
            "availability": "Public",
        }

    def adopt(self, real: Model) -> Model:
        """A real model's JSON of 2023; its files get bytes of the made-up kind."""
        model = copy.deepcopy(real)
        for version in model["modelVersions"]:
            for file in version["files"]:
                kind: FileKind = "training zip" if file["name"].endswith(".zip") else "network"
                stem = file["name"].rpartition(".")[0]
                self.contents.define(file["id"], Recipe(kind, file["id"] + 1_000_000 * self.seed, stem))
                file |= {"sizeKB": None, "hashes": None}
        return model


def _camel(text: str) -> str:
    """The site's camelCase: Latin letters and digits only."""
    words = re.findall(r"[A-Za-z0-9]+", re.sub(r"(?<=\d)\.(?=\d)", "", text))
    return "".join(word.lower() if not index else word[:1].upper() + word[1:] for index, word in enumerate(words))


def _date(rng: random.Random, index: int, number: int) -> str:
    day = 10 + (index * 7) % 200 + 30 * number  # most of the type was published in the first half of 2023
    month, day = divmod(day, 28)
    return f"2023-{1 + month:02}-{1 + day:02}T{rng.randrange(24):02}:{rng.randrange(60):02}:00.000Z"
