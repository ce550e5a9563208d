"""Captions that models make: a sentence by BLIP, or tags by a booru tagger. No pickle is ever loaded."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import MissingPackage, ModelNotUsable, NotFound, UsageError
from hnetkit.generate.backend_errors import quiet_libraries, translating_errors, translating_oom
from hnetkit.generate.loading.configs import read_object
from hnetkit.generate.loading.model_source import require_safe_hub
from hnetkit.train.preparing.caption_models import (
    CHARACTER,
    FILES,
    RATING,
    WEIGHTS,
    blip_model,
    classifier,
    is_of_timm,
)

if TYPE_CHECKING:
    from PIL import Image

BLIP = "Salesforce/blip-image-captioning-large"
_HINT = "get the model again, from a source that you trust"
TAGGER = "SmilingWolf/wd-vit-tagger-v3"


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

    Raises:
        UsageError: a probability that is none.
    """

    general: float = 0.35
    character: float = 0.85
    excluded: frozenset[str] = frozenset()
    underscores: bool = False
    escape: bool = True
    by_score: bool = False

    def __post_init__(self) -> None:
        for name, least in (("general", self.general), ("character", self.character)):
            if not 0 <= least <= 1:
                raise UsageError(f"{name}_threshold {least:g}: a probability from 0 to 1")


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
        """Returns a sentence; the same picture gives the same one.

        Raises:
            ModelNotUsable: its files do not fit each other.
        """
        import torch

        with torch.inference_mode(), translating_oom("a caption by BLIP"), translating_errors("this BLIP", hint=_HINT):
            inputs = self.processor(images=image.convert("RGB"), return_tensors="pt").to(self.model.device)
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
        """Returns the tags that are sure enough, separated by commas; may be empty.

        Raises:
            ModelNotUsable: its files do not fit each other, or it gives no numbers.
        """
        import torch

        with (
            torch.inference_mode(),
            translating_oom("tags of a picture"),
            translating_errors("this tagger", hint=_HINT),
        ):
            logits = self.model(self.pixels(image).to(self.model.device)).logits[0]
            scores = logits.float().sigmoid().tolist()
        if len(scores) != len(self.tags) or not all(map(math.isfinite, scores)):
            raise ModelNotUsable("this tagger gives no number for each of its tags", hint=_HINT)
        found = [
            (score, name) for score, (name, kind) in zip(scores, self.tags, strict=True) if self._takes(score, kind)
        ]
        excluded = {_spelled(tag) for tag in self.settings.excluded}
        found = [(score, name) for score, name in found if _spelled(name) not in excluded]
        found.sort(key=lambda tag: (-tag[0], tag[1]) if self.settings.by_score else (0.0, tag[1]))
        return ", ".join(self._written(name) for _, name in found)

    def _takes(self, score: float, category: int) -> bool:
        if category == RATING:
            return False
        return score >= (self.settings.character if category == CHARACTER else self.settings.general)

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
    config = read_object(folder / "config.json")
    if (kind := config.get("model_type")) != "blip":
        raise ModelNotUsable(
            f"{place}: holds a {str(kind or 'model without model_type')[:60]}, not BLIP", hint=f"for example {BLIP}"
        )
    with (
        quiet_libraries(),
        translating_oom(f"loading {place}"),
        translating_errors(str(place), hint="get the model again"),
    ):
        model, processor = blip_model(folder, config)
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
    config = read_object(folder / "config.json")
    if is_of_timm(config):
        _require_timm(place)
    with (
        quiet_libraries(),
        translating_oom(f"loading {place}"),
        translating_errors(str(place), hint=f"for example {TAGGER}"),
    ):
        model, tags, pixels = classifier(folder, config)
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
                folder = Path(snapshot_download(place, allow_patterns=list(FILES)))
        except Exception as error:
            raise NotFound(
                f"{place}: no folder here, and the hub gave no model of this name ({type(error).__name__})",
                hint="go online once so that it is cached, or give the model's folder",
            ) from error
    if not (folder / WEIGHTS).is_file():
        raise ModelNotUsable(f"{place}: no {WEIGHTS} in it", hint="pickled weights are not loaded")
    return folder


def _require_timm(place: str) -> None:
    command = 'pip install "hnetkit[train]"'
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        raise MissingPackage(f"{place}: a timm model, and timm or its torchvision is not installed", hint=command)
    try:
        importlib.import_module("timm")
    except Exception as error:  # a torchvision that was built for another torch fails in many ways
        raise MissingPackage(f"{place}: a timm model, and timm cannot be imported ({error})", hint=command) from error


def _is_face(tag: str) -> bool:
    """Whether underscores draw something: ``^_^``, ``o_o``, ``>_<``, ``||_||``."""
    return all(sum(letter.isalnum() for letter in part) <= 1 for part in tag.split("_"))


def _spelled(tag: str) -> str:
    return tag.strip().casefold().replace("_", " ").replace("\\", "")
