"""Captions that models make: a sentence by BLIP, or tags by a booru tagger. No pickle is ever loaded."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import MissingPackage, ModelNotUsable, NotFound
from hnetkit.generate.loading.libraries import quiet_libraries, refusing
from hnetkit.generate.loading.places import require_safe_hub
from hnetkit.generate.memory import needing_memory

if TYPE_CHECKING:
    from PIL import Image

BLIP = "Salesforce/blip-image-captioning-large"
TAGGER = "SmilingWolf/wd-vit-tagger-v3"

_FILES = ("*.json", "*.txt", "*.csv", "*.safetensors")
_TAG_LIST = "selected_tags.csv"  # of the WD taggers
_GENERAL, _CHARACTER, _RATING = 0, 4, 9  # categories in it


@dataclass(frozen=True, slots=True)
class TagSettings:
    """Which tags a caption gets and how they are written.

    Attributes:
        general: probability from which a tag is taken, 0 to 1.
        character: the same for names of characters, where the model tells them apart.
        excluded: tags that are left out, in either spelling.
        underscores: keep them; else they become spaces, but in faces such as ``^_^``.
        escape: brackets become ``\\(`` and ``\\)``, so that a prompt does not take them for emphasis.
        by_score: the surest first; else by alphabet.
    """

    general: float = 0.35
    character: float = 0.85
    excluded: frozenset[str] = frozenset()
    underscores: bool = False
    escape: bool = True
    by_score: bool = False


@dataclass(frozen=True)
class Blip:
    """A BLIP model that says in a sentence what is in a picture.

    Attributes:
        model: a ``BlipForConditionalGeneration``.
        processor: makes its inputs.
        beams: of beam search.
        tokens: (fewest, most) tokens of a caption.
    """

    model: Any
    processor: Any
    beams: int = 3
    tokens: tuple[int, int] = (5, 50)

    def caption(self, image: Image.Image) -> str:
        """Returns a sentence; the same picture gives the same one."""
        import torch

        inputs = self.processor(images=image.convert("RGB"), return_tensors="pt").to(self.model.device)
        with torch.inference_mode(), needing_memory("a caption by BLIP"):
            ids = self.model.generate(
                **inputs,
                num_beams=self.beams,
                do_sample=False,
                min_new_tokens=self.tokens[0],
                max_new_tokens=self.tokens[1],
            )
        return " ".join(self.processor.batch_decode(ids, skip_special_tokens=True)[0].split())


@dataclass(frozen=True)
class Tagger:
    """A model with one output for each tag.

    Attributes:
        model: of transformers, for image classification.
        tags: name and category of each output.
        pixels: makes its input ``[1, 3, height, width]`` of a picture.
        settings: which tags a caption gets.
    """

    model: Any
    tags: list[tuple[str, int]]
    pixels: Callable[[Image.Image], Any]
    settings: TagSettings = TagSettings()

    def caption(self, image: Image.Image) -> str:
        """Returns the tags that are sure enough, separated by commas; may be empty."""
        import torch

        with torch.inference_mode(), needing_memory("tags of a picture"):
            logits = self.model(self.pixels(image).to(self.model.device)).logits[0]
        scores = logits.float().sigmoid().tolist()
        found = [
            (score, name) for score, (name, kind) in zip(scores, self.tags, strict=True) if self._takes(score, kind)
        ]
        excluded = {_spelled(tag) for tag in self.settings.excluded}
        found = [(score, name) for score, name in found if _spelled(name) not in excluded]
        found.sort(key=lambda tag: (-tag[0], tag[1]) if self.settings.by_score else (0.0, tag[1]))
        return ", ".join(self._written(name) for _, name in found)

    def _takes(self, score: float, category: int) -> bool:
        if category == _RATING:
            return False
        return score >= (self.settings.character if category == _CHARACTER else self.settings.general)

    def _written(self, tag: str) -> str:
        if not self.settings.underscores and not _is_face(tag):
            tag = tag.replace("_", " ")
        if self.settings.escape:
            tag = tag.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        return tag


def load_blip(place: str = BLIP, *, device: str = "auto") -> Blip:
    """Returns the BLIP model of a folder or of the hub.

    Raises:
        NotFound: it is in no folder and not in the cache, and the hub does not give it.
        ModelNotUsable: it is no BLIP model, or has no ``.safetensors`` weights.
        OutOfMemory: there is not enough of it.
    """
    from hnetkit.generate.model import device_of

    folder = _folder(place)
    if (kind := _config(folder).get("model_type")) != "blip":
        raise ModelNotUsable(
            f"{place}: holds a {kind or 'model without model_type'}, not BLIP", hint=f"for example {BLIP}"
        )
    with quiet_libraries(), needing_memory(f"loading {place}"), refusing(str(place), hint="get the model again"):
        from transformers import AutoTokenizer, BlipForConditionalGeneration, BlipProcessor
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

        # the processor is put together by hand: its own loading takes torchvision's transforms where they are there
        processor = BlipProcessor(
            image_processor=BlipImageProcessorPil.from_pretrained(folder, local_files_only=True),
            tokenizer=AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        )
        model = BlipForConditionalGeneration.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        return Blip(model.eval().to(device_of(device)), processor)


def load_tagger(place: str = TAGGER, *, settings: TagSettings = TagSettings(), device: str = "auto") -> Tagger:
    """Returns the tagger of a folder or of the hub: a WD tagger, or any image classifier with several labels.

    Raises:
        NotFound: it is in no folder and not in the cache, and the hub does not give it.
        MissingPackage: it is a timm model, and timm cannot be imported.
        ModelNotUsable: it is no image classifier, or has no ``.safetensors`` weights.
        OutOfMemory: there is not enough of it.
    """
    from hnetkit.generate.model import device_of

    folder = _folder(place)
    config = _config(folder)
    if "pretrained_cfg" in config:
        _require_timm(place)
    with quiet_libraries(), needing_memory(f"loading {place}"), refusing(str(place), hint=f"for example {TAGGER}"):
        from transformers import AutoModelForImageClassification

        model = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        is_wd = (folder / _TAG_LIST).is_file()
        tags = _tag_list(folder / _TAG_LIST) if is_wd else _labels(model)
        pixels = _wd_pixels(config) if is_wd else _own_pixels(folder)
    if len(tags) != model.config.num_labels:
        raise ModelNotUsable(
            f"{place}: {len(tags)} tags for {model.config.num_labels} outputs", hint="get the model again"
        )
    return Tagger(model.eval().to(device_of(device)), tags, pixels, settings)


def _folder(place: str) -> Path:
    """Returns the folder of a captioning model; of one of the hub, only what is no pickle is fetched."""
    folder = Path(place)
    if not folder.is_dir():
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", place):
            raise NotFound(f"{place}: no such folder", hint=f"a folder with config.json, or a hub id such as {BLIP}")
        from huggingface_hub import snapshot_download

        require_safe_hub(place)
        try:
            with quiet_libraries():
                folder = Path(snapshot_download(place, allow_patterns=list(_FILES)))
        except Exception as error:
            raise NotFound(
                f"{place}: no folder here, and the hub gave no model of this name ({type(error).__name__})",
                hint="go online once so that it is cached, or give the model's folder",
            ) from error
    if not any(folder.glob("*.safetensors")):
        raise ModelNotUsable(f"{place}: no .safetensors weights in it", hint="pickled weights are not loaded")
    return folder


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelNotUsable(f"{folder}: no config.json that can be read", hint="get the model again") from error
    if not isinstance(config, dict):
        raise ModelNotUsable(f"{folder / 'config.json'}: not a JSON object", hint="get the model again")
    return config


def _require_timm(place: str) -> None:
    command = 'pip install "hnetkit[train]"'
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        raise MissingPackage(f"{place}: a timm model, and timm or its torchvision is not installed", hint=command)
    try:
        importlib.import_module("timm")
    except Exception as error:  # a torchvision that was built for another torch fails in many ways
        raise MissingPackage(f"{place}: a timm model, and timm cannot be imported ({error})", hint=command) from error


def _tag_list(path: Path) -> list[tuple[str, int]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["name"], int(row["category"])) for row in csv.DictReader(file)]


def _labels(model: Any) -> list[tuple[str, int]]:
    names = model.config.id2label
    return [
        (name, _RATING if name.startswith("rating:") else _GENERAL)
        for name in (str(names[number]) for number in range(len(names)))
    ]


def _own_pixels(folder: Path) -> Callable[[Image.Image], Any]:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return lambda image: processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]


def _wd_pixels(config: dict[str, Any]) -> Callable[[Image.Image], Any]:
    """The input of WD taggers: on a white square, scaled with bicubic, blue first as OpenCV has it."""
    import numpy as np
    import torch
    from PIL import Image as Images

    own = config.get("pretrained_cfg", {})
    size = (own.get("input_size") or [3, config.get("image_size", 448)])[-1]
    mean, spread = (np.array(own.get(key) or [0.5] * 3, dtype=np.float32) for key in ("mean", "std"))

    def pixels(image: Image.Image) -> torch.Tensor:
        side = max(image.size)
        square = Images.new("RGB", (side, side), "white")
        corner = (side - image.width) // 2, (side - image.height) // 2
        square.paste(image, corner, image if image.mode == "RGBA" else None)
        scaled = np.asarray(square.resize((size, size), Images.Resampling.BICUBIC), dtype=np.float32) / 255
        normal = (scaled - mean) / spread
        return torch.from_numpy(np.ascontiguousarray(normal[..., ::-1].transpose(2, 0, 1)))[None]

    return pixels


def _is_face(tag: str) -> bool:
    """Whether underscores draw something: ``^_^``, ``o_o``, ``>_<``, ``||_||``."""
    return all(sum(letter.isalnum() for letter in part) <= 1 for part in tag.split("_"))


def _spelled(tag: str) -> str:
    return tag.strip().casefold().replace("_", " ").replace("\\", "")
