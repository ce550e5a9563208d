"""Models that caption images: a sentence by BLIP, or tags by a booru tagger. No pickle is ever loaded.

Their files come from strangers. The libraries build what a configuration says, and some of what it can say runs code.
So none reads it: each model is of a class on a list, of checked settings and tensors, and hnetkit takes nothing else.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import MissingPackage, ModelNotUsable, NotFound, UsageError
from hnetkit.files import read_regular
from hnetkit.generate.backend_errors import quiet_libraries, translating_errors, translating_oom
from hnetkit.generate.loading.checkpoints import read_state_dict
from hnetkit.generate.loading.configs import HINT, checked_values, read_object, refuse_more_than_weights
from hnetkit.generate.loading.model_source import require_safe_hub
from hnetkit.limits import MAX_JSON, require_unique_columns
from hnetkit.text import printable

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

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
    if is_timm_model(config):
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


# --- models from the files of strangers

WEIGHTS = "model.safetensors"
TAG_LIST = "selected_tags.csv"  # of the WD taggers
FILES = ("config.json", WEIGHTS, TAG_LIST, "preprocessor_config.json", "vocab.txt", "tokenizer.json")
"""All that is fetched of a model of the hub."""

_MOST_TAG = 300  # letters
GENERAL, CHARACTER, RATING = 0, 4, 9  # categories of a tag list

Pixels = Callable[["Image.Image"], Any]

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"
_TRANSFORMER = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    *("attention_dropout", "initializer_range", "projection_dim"),
)
_BLIP_TEXT = (
    *_TRANSFORMER,
    *("vocab_size", "encoder_hidden_size", "max_position_embeddings", "hidden_dropout_prob", "is_decoder"),
    *("attention_probs_dropout_prob", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "use_cache"),
    "label_smoothing",
)
_BLIP_VISION = (*_TRANSFORMER, "image_size", "patch_size")
_BLIP = ("projection_dim", "logit_scale_init_value", "image_text_hidden_size", "label_smoothing")

# model_type -> (class of its configuration, its own class, the class that makes its pixels)
_CLASSIFIERS: Mapping[str, tuple[str, str, str]] = {
    "convnext": ("ConvNextConfig", "ConvNextForImageClassification", "ConvNextImageProcessor"),
    "convnextv2": ("ConvNextV2Config", "ConvNextV2ForImageClassification", "ConvNextImageProcessor"),
    "deit": ("DeiTConfig", "DeiTForImageClassification", "DeiTImageProcessor"),
    "dinov2": ("Dinov2Config", "Dinov2ForImageClassification", "BitImageProcessor"),
    "resnet": ("ResNetConfig", "ResNetForImageClassification", "ConvNextImageProcessor"),
    "swin": ("SwinConfig", "SwinForImageClassification", "ViTImageProcessor"),
    "swinv2": ("Swinv2Config", "Swinv2ForImageClassification", "ViTImageProcessor"),
    "vit": ("ViTConfig", "ViTForImageClassification", "ViTImageProcessor"),
}
_OF_CLASSIFIERS = (
    *_TRANSFORMER,
    *("image_size", "patch_size", "num_channels", "qkv_bias", "encoder_stride", "pooler_output_size", "pooler_act"),
    *("embed_dim", "depths", "num_heads", "window_size", "mlp_ratio", "use_absolute_embeddings", "num_stages"),
    *("hidden_sizes", "layer_scale_init_value", "drop_path_rate", "hidden_dropout_prob", "embedding_size"),
    *("attention_probs_dropout_prob", "layer_type", "downsample_in_first_stage", "downsample_in_bottleneck"),
    *("layerscale_value", "use_swiglu_ffn", "pretrained_window_sizes", "path_norm"),
)
_PROCESSORS = frozenset({processor for _, _, processor in _CLASSIFIERS.values()} | {"CLIPImageProcessor"})
_OF_PROCESSORS = (
    *("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    *("do_center_crop", "crop_pct", "do_convert_rgb"),
)
_SIDES = ("height", "width", "shortest_edge", "longest_edge")

# timm takes more than a name where there is a colon or a slash in it
_ARCHITECTURE = re.compile(r"[a-z][a-z0-9_]{0,100}")
_OF_TIMM = (
    *("img_size", "patch_size", "window_size", "depth", "embed_dim", "num_heads", "mlp_ratio", "ref_feat_shape"),
    *("global_pool", "act_layer", "class_token", "fc_norm", "init_values", "qkv_bias", "reg_tokens", "pos_embed"),
    *("depths", "drop_rate", "drop_path_rate", "dynamic_img_size", "strict_img_size", "no_embed_class", "pre_norm"),
    *("norm_layer", "ls_init_value"),
)
_INTERPOLATIONS: Mapping[str, str] = {
    **{"bilinear": "BILINEAR", "bicubic": "BICUBIC", "nearest": "NEAREST", "lanczos": "LANCZOS", "box": "BOX"},
}


def blip_model(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns a BLIP model and its processor.

    Args:
        config: of the folder, as `hnetkit.generate.loading.configs.read_object` gives it.

    Raises:
        ModelNotUsable: a file is missing, or says what no BLIP model does.
        FileRefused: the weights cannot be read safely.
    """
    from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor

    try:
        from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    except ImportError:  # before transformers 5, the class of the plain name is Pillow's
        from transformers import BlipImageProcessor as BlipImageProcessorPil

    path = folder / _CONFIG
    text, vision = (
        checked_values(path, part if isinstance(part := config.get(name), dict) else {}, keys)
        for name, keys in (("text_config", _BLIP_TEXT), ("vision_config", _BLIP_VISION))
    )
    made = BlipConfig(text_config=text, vision_config=vision, **checked_values(path, config, _BLIP))
    model = _filled(BlipForConditionalGeneration, made, _tensors(folder, text, vision), folder)
    # the processor is put together by hand: its own loading takes torchvision's transforms where they are there
    with tempfile.TemporaryDirectory(prefix="hnetkit-tokenizer-") as clean:
        Path(clean, "vocab.txt").write_text("\n".join(_words(folder)), encoding="utf-8", newline="\n")
        Path(clean, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
        tokenizer = BertTokenizer.from_pretrained(clean, local_files_only=True)
    image_processor = BlipImageProcessorPil(**_processing(folder)[1])
    return model, BlipProcessor(image_processor=image_processor, tokenizer=tokenizer)


def classifier(folder: Path, config: Mapping[str, Any]) -> tuple[Any, list[tuple[str, int]], Pixels]:
    """Returns a model for image classification, name and category of each output, and what makes its input.

    Args:
        config: of the folder, as `hnetkit.generate.loading.configs.read_object` gives it.

    Raises:
        ModelNotUsable: a file is missing, or says what no such model does.
        FileRefused: the weights cannot be read safely.
    """
    is_wd = (folder / TAG_LIST).is_file()
    tags = _tag_list(folder / TAG_LIST) if is_wd else _labels(folder / _CONFIG, config)
    for number, (name, _) in enumerate(tags, 1):  # they become captions, and some of them words of a terminal
        if not 0 < len(name) <= _MOST_TAG or printable(name) != name:
            raise ModelNotUsable(f"{folder}: name {number} of its outputs is no tag", hint=HINT)
    if not tags:
        raise ModelNotUsable(f"{folder}: it has no tags", hint=HINT)
    if is_timm_model(config):
        model = _timm_model(folder, config, len(tags))
        pixels = _wd_pixels(folder, config) if is_wd else _cropped_pixels(folder, config)
        return model, tags, pixels
    named = config.get("model_type")
    if not isinstance(named, str) or named not in _CLASSIFIERS:
        raise ModelNotUsable(f"{folder}: holds a {str(named)[:60]}, no image classifier that is known", hint=HINT)
    model = _model_of_transformers(folder, config, named, len(tags))
    return model, tags, _wd_pixels(folder, config) if is_wd else _own_pixels(folder, named)


def is_timm_model(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of a model that timm makes."""
    return "pretrained_cfg" in config or "architecture" in config


def _timm_model(folder: Path, config: Mapping[str, Any], outputs: int) -> Any:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    path, architecture, arguments = folder / _CONFIG, config.get("architecture"), config.get("model_args") or {}
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
        raise ModelNotUsable(f"{path}: {str(architecture)[:60]!r} is no name of an architecture", hint=HINT)
    if not isinstance(arguments, dict) or (foreign := sorted(arguments.keys() - set(_OF_TIMM))):
        named = foreign[0] if isinstance(arguments, dict) else "model_args"
        raise ModelNotUsable(f"{path}: asks for {named[:60]}, which no tagger needs", hint=HINT)
    kept = checked_values(path, arguments, _OF_TIMM)
    _require_outputs(folder, config.get("num_classes", outputs), outputs)
    made = TimmWrapperConfig(architecture=architecture, model_args=kept, num_labels=outputs)
    tensors = {f"timm_model.{name}": tensor for name, tensor in _tensors(folder, kept).items()}
    return _filled(TimmWrapperForImageClassification, made, tensors, folder)


def _model_of_transformers(folder: Path, config: Mapping[str, Any], named: str, outputs: int) -> Any:
    import transformers

    kept = checked_values(folder / _CONFIG, config, _OF_CLASSIFIERS)
    labels = config.get("id2label")
    _require_outputs(folder, len(labels) if isinstance(labels, dict) else outputs, outputs)
    of_config, of_model, _ = (getattr(transformers, name) for name in _CLASSIFIERS[named])
    return _filled(of_model, of_config(**kept, num_labels=outputs), _tensors(folder, kept), folder)


def _require_outputs(folder: Path, outputs: Any, tags: int) -> None:
    if outputs != tags:
        raise ModelNotUsable(f"{folder}: {tags} tags for {str(outputs)[:20]} outputs", hint="get the model again")


def _tensors(folder: Path, *configs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns a model's tensors in fp32; there are enough for the layers of its configurations."""
    import torch

    state = read_state_dict(folder / WEIGHTS)
    for config in configs:
        refuse_more_than_weights(folder / _CONFIG, config, list(state.shapes.values()))
    return state.part("", torch.float32)


def _filled(kind: Any, config: Any, tensors: dict[str, Tensor], folder: Path) -> Any:
    """Returns a model of transformers with these tensors; raises ModelNotUsable where it would be far larger."""
    import torch

    with torch.device("meta"):
        wanted = sum(tensor.numel() for tensor in kind(config).parameters())
    there = sum(tensor.numel() for tensor in tensors.values())
    if wanted > 2 * there:  # weights that are tied are in the file once
        raise ModelNotUsable(f"{folder}: {there} weights for a model of {wanted}", hint="get the model again")
    return kind.from_pretrained(None, config=config, state_dict=tensors)


def _words(folder: Path) -> list[str]:
    """Returns BERT's vocabulary in the order of its numbers."""
    if (folder / "vocab.txt").is_file():
        return read_regular(folder / "vocab.txt", most=MAX_JSON).decode("utf-8").split("\n")
    vocabulary = read_object(folder / "tokenizer.json").get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict) or sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ModelNotUsable(f"{folder}: no vocabulary in it", hint="get the model again")
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _tag_list(path: Path) -> list[tuple[str, int]]:
    text = read_regular(path, most=MAX_JSON).decode("utf-8-sig")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    require_unique_columns(rows, ("name", "category"))
    try:
        return [(row["name"], int(row["category"])) for row in rows]
    except (ValueError, TypeError, KeyError):  # whose words would show what is in the file, which may be a private one
        raise ModelNotUsable(f"{path}: no list of tags and their categories", hint=HINT) from None


def _labels(path: Path, config: Mapping[str, Any]) -> list[tuple[str, int]]:
    names = config.get("label_names")
    if isinstance(labels := config.get("id2label"), dict):
        names = [labels.get(str(number)) for number in range(len(labels))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelNotUsable(f"{path}: does not name its outputs", hint="get the model again")
    return [(name, RATING if name.startswith("rating:") else GENERAL) for name in names]


def _processing(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Returns the name of what makes a model's input, without what it ends in by kind, and its settings."""
    path = folder / _PREPROCESSOR
    said = read_object(path)
    named = said.get("image_processor_type") or said.get("feature_extractor_type")
    kept = checked_values(path, said, _OF_PROCESSORS)
    for key in ("size", "crop_size"):
        value = said.get(key)
        sides = {side: value[side] for side in _SIDES if side in value} if isinstance(value, dict) else {"": value}
        if value is not None:
            if not all(type(side) is int and 0 < side <= 4096 for side in sides.values()):
                raise ModelNotUsable(f"{path}: {key} cannot be meant", hint=HINT)
            kept[key] = sides if isinstance(value, dict) else value
    if not isinstance(named, str):
        return None, kept
    return re.sub(r"(?:FeatureExtractor|ImageProcessor(?:Fast|Pil)?)$", "ImageProcessor", named), kept


def _own_pixels(folder: Path, model_type: str) -> Pixels:
    import transformers

    named, kept = _processing(folder)
    named = named or _CLASSIFIERS[model_type][2]
    if named not in _PROCESSORS:
        raise ModelNotUsable(f"{folder / _PREPROCESSOR}: of a {named[:60]}, which is not known", hint=HINT)
    processor = getattr(transformers, named)(**kept)
    return lambda image: processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"]


def _wd_pixels(folder: Path, config: Mapping[str, Any]) -> Pixels:
    """The input of WD taggers: on a white square, scaled with bicubic, blue first as OpenCV has it."""
    import numpy as np
    import torch
    from PIL import Image as Images

    size, mean, spread, _ = _pretrained(folder, config, 448)

    def pixels(image: Image.Image) -> torch.Tensor:
        side = max(image.size)
        square = Images.new("RGB", (side, side), "white")
        corner = (side - image.width) // 2, (side - image.height) // 2
        square.paste(image, corner, image if image.mode == "RGBA" else None)
        scaled = np.asarray(square.resize((size, size), Images.Resampling.BICUBIC), dtype=np.float32) / 255
        normal = (scaled - mean) / spread
        return torch.from_numpy(np.ascontiguousarray(normal[..., ::-1].transpose(2, 0, 1)))[None]

    return pixels


def _cropped_pixels(folder: Path, config: Mapping[str, Any]) -> Pixels:
    """The input of timm's classifiers: the shorter side scaled, and the middle cut out."""
    import numpy as np
    import torch
    from PIL import Image as Images

    size, mean, spread, own = _pretrained(folder, config, 224)
    share = own.get("crop_pct") or 0.875
    if not isinstance(share, int | float) or not 0.1 <= share <= 1:
        raise ModelNotUsable(f"{folder / _CONFIG}: crop_pct cannot be meant", hint=HINT)
    method = Images.Resampling[_INTERPOLATIONS.get(str(own.get("interpolation")), "BICUBIC")]
    shorter = int(size / share)

    def pixels(image: Image.Image) -> torch.Tensor:
        scale = shorter / min(image.size)
        width, height = (max(shorter, round(side * scale)) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        # only what is cut out is made: a picture may be very long
        box = tuple(side / scale for side in (left, top, left + size, top + size))
        within = (max(0.0, box[0]), max(0.0, box[1]), min(image.width, box[2]), min(image.height, box[3]))
        scaled = image.convert("RGB").resize((size, size), method, box=within)
        normal = (np.asarray(scaled, dtype=np.float32) / 255 - mean) / spread
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))[None]

    return pixels


def _pretrained(folder: Path, config: Mapping[str, Any], usual: int) -> tuple[int, Any, Any, Mapping[str, Any]]:
    """Returns the side of a model's input, mean and spread of its colours, and what else is said of its input."""
    import numpy as np

    own = config.get("pretrained_cfg")
    own = own if isinstance(own, dict) else {}
    stated = own.get("input_size")
    size = stated[-1] if isinstance(stated, list) and stated else config.get("image_size", usual)
    colours = [own.get(key) or [0.5] * 3 for key in ("mean", "std")]
    numbers = [number for colour in colours if isinstance(colour, list) for number in colour]
    if type(size) is not int or not 0 < size <= 4096 or len(numbers) != 6:
        raise ModelNotUsable(f"{folder / _CONFIG}: input_size, mean and std cannot be meant", hint=HINT)
    if not all(isinstance(number, int | float) for number in numbers) or not all(numbers[3:]):
        raise ModelNotUsable(f"{folder / _CONFIG}: mean and std cannot be meant", hint=HINT)
    mean, spread = (np.array(colour, dtype=np.float32) for colour in colours)
    return size, mean, spread, own
