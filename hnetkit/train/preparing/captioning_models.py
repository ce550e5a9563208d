"""Models that caption images, built from the files of a folder. No pickle is ever loaded.

The files come from strangers. The libraries build what a configuration says, and some of what it can say runs code. So
none reads it: each model is of a class on a list, of checked settings and tensors, and hnetkit takes nothing else.
"""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import ModelNotUsable
from hnetkit.files import is_file_at, read_regular
from hnetkit.generate.loading.checkpoints import read_state_dict
from hnetkit.generate.loading.configs import HINT, checked_values, read_object, refuse_more_than_weights
from hnetkit.images import on_white
from hnetkit.limits import MAX_JSON, rows_of_table
from hnetkit.text import printable, size_text

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

WEIGHTS = "model.safetensors"
TAG_LIST = "selected_tags.csv"  # of the WD taggers
FILES = ("config.json", WEIGHTS, TAG_LIST, "preprocessor_config.json", "vocab.txt", "tokenizer.json")
"""The files that are fetched from the hub."""

_MOST_TAG = 300  # characters
GENERAL, CHARACTER, RATING = 0, 4, 9  # categories of a tag list
# pixels of a side of a model's input, and patches along it; real ones have 448, and 112
_MOST_SIDE, _MOST_PATCHES = 1024, 128
# of a model each of whose heads compares each patch with all; real ones have 24 heads and 37 patches along a side
_MOST_COMPARISONS = 48 << 20
_COMPARED_NEARBY = ("convnext", "resnet", "swin")  # beginnings of the names of models that do not
_MOST_TABLES = 64 << 20  # bytes of what a model computes by itself, beyond its weights
_LARGEST_SQUARE = 4096  # pixels of a side that an image is scaled from
_MOST_RATIO = 8  # of the sides of an image whose shorter one is scaled

Pixels = Callable[["Image.Image"], Any]

_CONFIG, _PREPROCESSOR = "config.json", "preprocessor_config.json"


def _keys(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# keys of a configuration that are passed on, once their values are checked; all others are ignored
_TRANSFORMER_KEYS = _keys(
    """
    hidden_size intermediate_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps attention_dropout
    initializer_range projection_dim
    """
)
_BLIP_KEYS = _keys("projection_dim logit_scale_init_value image_text_hidden_size label_smoothing")
_BLIP_VISION_KEYS = (*_TRANSFORMER_KEYS, "image_size", "patch_size")
_BLIP_TEXT_KEYS = _TRANSFORMER_KEYS + _keys(
    """
    vocab_size encoder_hidden_size max_position_embeddings hidden_dropout_prob is_decoder attention_probs_dropout_prob
    bos_token_id eos_token_id pad_token_id sep_token_id use_cache label_smoothing
    """
)
_CLASSIFIER_KEYS = _TRANSFORMER_KEYS + _keys(
    """
    image_size patch_size num_channels qkv_bias encoder_stride pooler_output_size pooler_act embed_dim depths num_heads
    window_size mlp_ratio use_absolute_embeddings num_stages hidden_sizes layer_scale_init_value drop_path_rate
    hidden_dropout_prob embedding_size attention_probs_dropout_prob layer_type downsample_in_first_stage
    downsample_in_bottleneck layerscale_value use_swiglu_ffn pretrained_window_sizes path_norm
    """
)
_PROCESSOR_KEYS = _keys(
    """
    resample do_rescale rescale_factor do_normalize image_mean image_std do_center_crop crop_pct do_convert_rgb
    """
)
_SIZE_KEYS = _keys("height width shortest_edge longest_edge")
_TIMM_KEYS = _keys(
    """
    img_size patch_size window_size depth embed_dim num_heads mlp_ratio ref_feat_shape global_pool act_layer class_token
    fc_norm init_values qkv_bias reg_tokens pos_embed depths drop_rate drop_path_rate dynamic_img_size strict_img_size
    no_embed_class pre_norm norm_layer ls_init_value
    """
)

# model_type -> (class of its configuration, its own class, the class that prepares its input)
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
_PROCESSORS = frozenset({processor for _, _, processor in _CLASSIFIERS.values()} | {"CLIPImageProcessor"})

# timm takes a name with a colon or a slash for a place to load from
_ARCHITECTURE = re.compile(r"[a-z][a-z0-9_]{0,100}")
_INTERPOLATIONS: Mapping[str, str] = {
    "bilinear": "BILINEAR",
    "bicubic": "BICUBIC",
    "nearest": "NEAREST",
    "lanczos": "LANCZOS",
    "box": "BOX",
}


def blip_model(folder: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns a BLIP model and its processor.

    Args:
        config: of the folder, as `hnetkit.generate.loading.configs.read_object` gives it.

    Raises:
        ModelNotUsable: a file is missing, or is not of a BLIP model.
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
        for name, keys in (("text_config", _BLIP_TEXT_KEYS), ("vision_config", _BLIP_VISION_KEYS))
    )
    size = _processing(folder)[1].get("size")
    sides = size.values() if isinstance(size, dict) else [size or 1]
    _require_few_patches(
        folder, vision, max(*sides, vision.get("image_size") or 1), "blip", 3 * vision.get("num_attention_heads", 12)
    )
    made = BlipConfig(text_config=text, vision_config=vision, **checked_values(path, config, _BLIP_KEYS))
    model = _filled(BlipForConditionalGeneration, made, _tensors(folder, text, vision), folder)
    # its own loading would use torchvision's transforms if they are installed
    with tempfile.TemporaryDirectory(prefix="hnetkit-tokenizer-") as clean:
        Path(clean, "vocab.txt").write_text("\n".join(_vocabulary(folder)), encoding="utf-8", newline="\n")
        Path(clean, "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
        tokenizer = BertTokenizer.from_pretrained(clean, local_files_only=True)
    image_processor = BlipImageProcessorPil(**_processing(folder)[1])
    return model, BlipProcessor(image_processor=image_processor, tokenizer=tokenizer)


def classifier(folder: Path, config: Mapping[str, Any]) -> tuple[Any, list[tuple[str, int]], Pixels]:
    """Returns a model for image classification, the name and category of each output, and what prepares its input.

    Args:
        config: of the folder, as `hnetkit.generate.loading.configs.read_object` gives it.

    Raises:
        ModelNotUsable: a file is missing, or is not of such a model.
        FileRefused: the weights cannot be read safely.
    """
    is_wd = is_file_at(folder / TAG_LIST)
    tags = _tag_list(folder / TAG_LIST) if is_wd else _labels(folder / _CONFIG, config)
    for number, (name, _) in enumerate(tags, 1):  # they become captions, and some of them words of a terminal
        if not 0 < len(name) <= _MOST_TAG or printable(name) != name:
            raise ModelNotUsable(f"{folder}: name {number} of its outputs is no tag", hint=HINT)
    if not tags:
        raise ModelNotUsable(f"{folder}: it has no tags", hint=HINT)
    if is_timm_model(config):
        pixels = _wd_pixels(folder, config) if is_wd else _cropped_pixels(folder, config)
        return _timm_model(folder, config, len(tags)), tags, pixels
    named = config.get("model_type")
    if not isinstance(named, str) or named not in _CLASSIFIERS:
        raise ModelNotUsable(f"{folder}: holds a {str(named)[:60]}, no image classifier that is known", hint=HINT)
    pixels = _wd_pixels(folder, config) if is_wd else _own_pixels(folder, config, named)
    return _model_of_transformers(folder, config, named, len(tags)), tags, pixels


def is_timm_model(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is of a model that timm makes."""
    return "pretrained_cfg" in config or "architecture" in config


def _timm_model(folder: Path, config: Mapping[str, Any], outputs: int) -> Any:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    path, architecture, arguments = folder / _CONFIG, config.get("architecture"), config.get("model_args") or {}
    if not isinstance(architecture, str) or not _ARCHITECTURE.fullmatch(architecture):
        raise ModelNotUsable(f"{path}: {str(architecture)[:60]!r} is no name of an architecture", hint=HINT)
    if not isinstance(arguments, dict) or (foreign := sorted(arguments.keys() - set(_TIMM_KEYS))):
        named = foreign[0] if isinstance(arguments, dict) else "model_args"
        raise ModelNotUsable(f"{path}: asks for {named[:60]}, which no tagger needs", hint=HINT)
    kept = checked_values(path, arguments, _TIMM_KEYS)
    _require_outputs(folder, config.get("num_classes", outputs), outputs)
    made = TimmWrapperConfig(architecture=architecture, model_args=kept, num_labels=outputs)
    tensors = {f"timm_model.{name}": tensor for name, tensor in _tensors(folder, kept).items()}
    return _filled(TimmWrapperForImageClassification, made, tensors, folder)


def _model_of_transformers(folder: Path, config: Mapping[str, Any], named: str, outputs: int) -> Any:
    import transformers

    kept = checked_values(folder / _CONFIG, config, _CLASSIFIER_KEYS)
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
    """Returns a model of transformers with these tensors; raises ModelNotUsable if it would be far larger."""
    import torch

    with torch.device("meta"):
        empty = kind(config)
    wanted = sum(tensor.numel() for tensor in empty.parameters())
    found = sum(tensor.numel() for tensor in tensors.values())
    if wanted > 2 * found:  # a file holds tied weights once
        raise ModelNotUsable(f"{folder}: {found} weights for a model of {wanted}", hint="get the model again")
    tables = sum(table.nbytes for table in empty.buffers())  # of positions, which grow with the square of a window's
    if tables > _MOST_TABLES + 2 * sum(tensor.nbytes for tensor in tensors.values()):
        raise ModelNotUsable(f"{folder}: its tables of positions would take {size_text(tables)}", hint=HINT)
    return kind.from_pretrained(None, config=config, state_dict=tensors)


def _vocabulary(folder: Path) -> list[str]:
    """Returns BERT's vocabulary in the order of its ids."""
    if is_file_at(folder / "vocab.txt"):
        return read_regular(folder / "vocab.txt", most=MAX_JSON).decode("utf-8").split("\n")
    vocabulary = read_object(folder / "tokenizer.json").get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict) or sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ModelNotUsable(f"{folder}: no vocabulary in it", hint="get the model again")
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _tag_list(path: Path) -> list[tuple[str, int]]:
    text = read_regular(path, most=MAX_JSON).decode("utf-8-sig")
    tags: list[tuple[str, int]] = []
    for row in rows_of_table(io.StringIO(text, newline=""), ("name", "category")):
        try:
            tags.append((row["name"], int(row["category"])))
        except (ValueError, KeyError):  # the error's text would show parts of the file, which may be private
            raise ModelNotUsable(f"{path}: no list of tags and their categories", hint=HINT) from None
    return tags


def _labels(path: Path, config: Mapping[str, Any]) -> list[tuple[str, int]]:
    names = config.get("label_names")
    if isinstance(labels := config.get("id2label"), dict):
        names = [labels.get(str(number)) for number in range(len(labels))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelNotUsable(f"{path}: does not name its outputs", hint="get the model again")
    return [(name, RATING if name.startswith("rating:") else GENERAL) for name in names]


def _processing(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Returns the class of a model's image processor, without ``Fast`` or ``Pil``, and its settings."""
    path = folder / _PREPROCESSOR
    stated = read_object(path)
    named = stated.get("image_processor_type") or stated.get("feature_extractor_type")
    kept = checked_values(path, stated, _PROCESSOR_KEYS)
    for key in ("size", "crop_size"):
        value = stated.get(key)
        sides = {side: value[side] for side in _SIZE_KEYS if side in value} if isinstance(value, dict) else {"": value}
        if value is not None:
            if not all(type(side) is int and 0 < side <= _MOST_SIDE for side in sides.values()):
                raise ModelNotUsable(f"{path}: {key} cannot be meant", hint=HINT)
            kept[key] = sides if isinstance(value, dict) else value
    if not isinstance(named, str):
        return None, kept
    return re.sub(r"(?:FeatureExtractor|ImageProcessor(?:Fast|Pil)?)$", "ImageProcessor", named), kept


def _own_pixels(folder: Path, config: Mapping[str, Any], model_type: str) -> Pixels:
    import transformers

    named, kept = _processing(folder)
    for size in (kept.get("size"), kept.get("crop_size")):
        sides = size.values() if isinstance(size, dict) else [size or 1]
        _require_few_patches(folder, config, max(sides, default=1), model_type, config.get("num_attention_heads"))
    named = named or _CLASSIFIERS[model_type][2]
    if named not in _PROCESSORS:
        raise ModelNotUsable(f"{folder / _PREPROCESSOR}: of a {named[:60]}, which is not known", hint=HINT)
    processor = getattr(transformers, named)(**kept)
    return lambda image: processor(images=on_white(_middle(image)), return_tensors="pt")["pixel_values"]


def _middle(image: Image.Image) -> Image.Image:
    """Returns an image without the ends of its longer side, where that is very long: scaled, it would fill memory."""
    length = _MOST_RATIO * min(image.size)
    width, height = (min(side, length) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _require_few_patches(folder: Path, config: Mapping[str, Any], side: int, kind: str, heads: Any = 1) -> None:
    """Refuses a model whose input would have far more patches than any real one: each of its layers holds them all.

    Args:
        config: that states their size; where it does not, the name of the model may.
        kind: name of the model.
        heads: of its attention, as its configuration has it.
    """
    in_name = re.search(r"patch(\d{1,4})", kind)
    stated = config.get("patch_size", int(in_name[1]) if in_name else None)
    sizes = [size for size in (stated if isinstance(stated, list) else [stated]) if type(size) is int and size > 0]
    patches, most = side // min(sizes, default=1 if "patch_size" in config else 4), _MOST_PATCHES
    if sizes and not kind.startswith(_COMPARED_NEARBY):
        most = int((_MOST_COMPARISONS / max(1, heads if type(heads) is int else 1)) ** 0.25)
    if patches > most:
        reason = f"an input of {side} pixels has {patches} patches on a side, where at most {most} are meant"
        raise ModelNotUsable(f"{folder}: {reason}", hint=HINT)


def _wd_pixels(folder: Path, config: Mapping[str, Any]) -> Pixels:
    """Prepares the input of WD taggers: on a white square, scaled with bicubic, blue first as in OpenCV."""
    import numpy as np
    import torch
    from PIL import Image as Images

    size, mean, spread, _ = _pretrained(folder, config, 448)

    def pixels(image: Image.Image) -> torch.Tensor:
        if max(image.size) > _LARGEST_SQUARE:  # a very long one would have a square of gigabytes
            image = image.copy()
            image.thumbnail((_LARGEST_SQUARE, _LARGEST_SQUARE))
        side = max(image.size)
        square = Images.new("RGB", (side, side), "white")
        corner = (side - image.width) // 2, (side - image.height) // 2
        square.paste(on_white(image), corner)
        scaled = np.asarray(square.resize((size, size), Images.Resampling.BICUBIC), dtype=np.float32) / 255
        normal = (scaled - mean) / spread
        return torch.from_numpy(np.ascontiguousarray(normal[..., ::-1].transpose(2, 0, 1)))[None]

    return pixels


def _cropped_pixels(folder: Path, config: Mapping[str, Any]) -> Pixels:
    """Prepares the input of timm's classifiers: the shorter side scaled, the middle cropped."""
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
        # only the cropped part is scaled: an image may be very long
        box = tuple(side / scale for side in (left, top, left + size, top + size))
        within = (max(0.0, box[0]), max(0.0, box[1]), min(image.width, box[2]), min(image.height, box[3]))
        scaled = on_white(image).resize((size, size), method, box=within)
        normal = (np.asarray(scaled, dtype=np.float32) / 255 - mean) / spread
        return torch.from_numpy(np.ascontiguousarray(normal.transpose(2, 0, 1)))[None]

    return pixels


def _pretrained(folder: Path, config: Mapping[str, Any], default: int) -> tuple[int, Any, Any, Mapping[str, Any]]:
    """Returns the side of a model's input, mean and spread of its colors, and the rest of its ``pretrained_cfg``."""
    import numpy as np

    own = config.get("pretrained_cfg")
    own = own if isinstance(own, dict) else {}
    stated = own.get("input_size")
    size = stated[-1] if isinstance(stated, list) and stated else config.get("image_size", default)
    colors = [own.get(key) or [0.5] * 3 for key in ("mean", "std")]
    numbers = [number for color in colors if isinstance(color, list) for number in color]
    if type(size) is not int or not 0 < size <= _MOST_SIDE or len(numbers) != 6:
        raise ModelNotUsable(f"{folder / _CONFIG}: input_size, mean and std cannot be meant", hint=HINT)
    arguments = config.get("model_args")
    kind = str(config.get("architecture") or config.get("model_type"))
    _require_few_patches(folder, arguments if isinstance(arguments, dict) else config, size, kind)
    if not all(isinstance(number, int | float) for number in numbers) or not all(numbers[3:]):
        raise ModelNotUsable(f"{folder / _CONFIG}: mean and std cannot be meant", hint=HINT)
    mean, spread = (np.array(color, dtype=np.float32) for color in colors)
    return size, mean, spread, own
