"""Captions of images: a sentence by BLIP, or tags by a booru tagger."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import HnetkitError, MissingPackage, ModelNotUsable, NotFound, UsageError
from hnetkit.files import is_file_at, is_folder_at
from hnetkit.generate.backend_errors import quiet_libraries, translating_errors, translating_oom
from hnetkit.generate.loading.configs import read_object
from hnetkit.generate.loading.model_source import require_safe_hub
from hnetkit.hub import complete_folder, fetched_file
from hnetkit.images import on_white
from hnetkit.train.preparing.captioning_models import (
    CHARACTER,
    FILES,
    RATING,
    WEIGHTS,
    blip_model,
    classifier,
    is_timm_model,
)

if TYPE_CHECKING:
    from PIL import Image

BLIP = "Salesforce/blip-image-captioning-large"
TAGGER = "SmilingWolf/wd-vit-tagger-v3"
_HINT = "get the model again, from a source that you trust"


@dataclass(frozen=True, slots=True)
class TagSettings:
    """Which tags a caption gets and how they are written.

    Attributes:
        general: least probability of a tag, 0 to 1.
        character: least probability of a character's name, if the model tells them apart.
        excluded: tags to leave out, with spaces or underscores.
        underscores: keep them; otherwise they become spaces, except in faces such as ``^_^``.
        escape: write brackets as ``\\(`` and ``\\)``, so that a prompt does not take them for emphasis.
        by_score: put the surest first; otherwise sort by alphabet.

    Raises:
        UsageError: a probability outside of 0 to 1.
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
    """A BLIP model, which describes an image in a sentence.

    Attributes:
        model: a ``BlipForConditionalGeneration``.
        processor: prepares its input.
        beams: of beam search.
        tokens: (fewest, most) tokens of a caption.
    """

    model: Any
    processor: Any
    beams: int = 3
    tokens: tuple[int, int] = (5, 50)

    def caption(self, image: Image.Image) -> str:
        """Returns a sentence, the same one for the same image.

        Raises:
            ModelNotUsable: its files do not fit each other.
        """
        import torch

        with torch.inference_mode(), translating_oom("a caption by BLIP"), translating_errors("this BLIP", hint=_HINT):
            inputs = self.processor(images=on_white(image), return_tensors="pt").to(self.model.device)
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
        pixels: prepares its input ``[1, 3, height, width]`` from an image.
        settings: which tags a caption gets.
    """

    model: Any
    tags: list[tuple[str, int]]
    pixels: Callable[[Image.Image], Any]
    settings: TagSettings = TagSettings()

    def caption(self, image: Image.Image) -> str:
        """Returns the tags that are probable enough, separated by commas; may be empty.

        Raises:
            ModelNotUsable: its files do not fit each other, or its output is not finite.
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
            (score, name) for score, (name, kind) in zip(scores, self.tags, strict=True) if self._is_wanted(score, kind)
        ]
        excluded = {_normalized(tag) for tag in self.settings.excluded}
        found = [(score, name) for score, name in found if _normalized(name) not in excluded]
        found.sort(key=lambda tag: (-tag[0], tag[1]) if self.settings.by_score else (0.0, tag[1]))
        return ", ".join(self._format(name) for _, name in found)

    def _is_wanted(self, score: float, category: int) -> bool:
        if category == RATING:
            return False
        return score >= (self.settings.character if category == CHARACTER else self.settings.general)

    def _format(self, tag: str) -> str:
        if not self.settings.underscores and not _is_face(tag):
            tag = tag.replace("_", " ")
        if self.settings.escape:
            tag = tag.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
        return tag


def load_blip(source: str = BLIP, *, device: str = "auto") -> Blip:
    """Returns the BLIP model of a folder or of the hub.

    Raises:
        NotFound: there is no such folder, and it is neither in the cache nor on the hub.
        ModelNotUsable: it is no BLIP model, or has no ``.safetensors`` weights.
        OutOfMemory: there is not enough memory.
    """
    from hnetkit.generate.model import device_of

    folder = _model_folder(source)
    config = read_object(folder / "config.json")
    if (kind := config.get("model_type")) != "blip":
        raise ModelNotUsable(
            f"{source}: holds a {str(kind or 'model without model_type')[:60]}, not BLIP", hint=f"for example {BLIP}"
        )
    with (
        quiet_libraries(),
        translating_oom(f"loading {source}"),
        translating_errors(str(source), hint="get the model again"),
    ):
        model, processor = blip_model(folder, config)
        return Blip(model.eval().to(device_of(device)), processor)


def load_tagger(source: str = TAGGER, *, settings: TagSettings = TagSettings(), device: str = "auto") -> Tagger:
    """Returns the tagger of a folder or of the hub: a WD tagger, or any image classifier with several labels.

    Raises:
        NotFound: there is no such folder, and it is neither in the cache nor on the hub.
        MissingPackage: it is a timm model, and timm cannot be imported.
        ModelNotUsable: it is no image classifier, or has no ``.safetensors`` weights.
        OutOfMemory: there is not enough memory.
    """
    from hnetkit.generate.model import device_of

    folder = _model_folder(source)
    config = read_object(folder / "config.json")
    if is_timm_model(config):
        _require_timm(source)
    with (
        quiet_libraries(),
        translating_oom(f"loading {source}"),
        translating_errors(str(source), hint=f"for example {TAGGER}"),
    ):
        model, tags, pixels = classifier(folder, config)
    return Tagger(model.eval().to(device_of(device)), tags, pixels, settings)


def _model_folder(source: str) -> Path:
    """Returns the folder of a captioning model; from the hub, only `FILES` are fetched, none of which is a pickle.

    Those that are taken where none is named are the hub's, whatever the current folder has: it may be a stranger's.
    """
    folder = Path(source)
    if source in (BLIP, TAGGER) or not is_folder_at(folder):
        if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source):
            raise NotFound(f"{source}: no such folder", hint=f"a folder with config.json, or a hub id such as {BLIP}")
        require_safe_hub(source)
        try:
            with quiet_libraries():
                folder = fetched_file(source, FILES[0]).parent
                complete_folder(folder, source, FILES)
        except HnetkitError:
            raise
        except Exception as error:
            raise NotFound(
                f"{source}: no folder here, and the hub gave no model of this name ({type(error).__name__})",
                hint="go online once so that it is cached, or give the model's folder",
            ) from error
    if not is_file_at(folder / WEIGHTS):
        raise ModelNotUsable(f"{source}: no {WEIGHTS} in it", hint="pickled weights are not loaded")
    return folder


def _require_timm(source: str) -> None:
    command = 'pip install "hnetkit[train]"'
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        raise MissingPackage(f"{source}: a timm model, and timm or its torchvision is not installed", hint=command)
    try:
        importlib.import_module("timm")
    except Exception as error:  # a torchvision built for another torch fails in many ways
        raise MissingPackage(f"{source}: a timm model, and timm cannot be imported ({error})", hint=command) from error


def _is_face(tag: str) -> bool:
    """Whether a tag is a face: ``^_^``, ``o_o``, ``>_<``, ``||_||``."""
    return all(sum(letter.isalnum() for letter in part) <= 1 for part in tag.split("_"))


def _normalized(tag: str) -> str:
    return tag.strip().casefold().replace("_", " ").replace("\\", "")
