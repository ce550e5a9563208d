"""What a file is when it is no hypernetwork, told from its content.

Source: the key names that each kind's own tools write.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hnetkit.formats import pickle_values

# kind -> what a person calls it
TITLES: Mapping[str, str] = {
    "hypernetwork": "a hypernetwork",
    "lora": "a LoRA",
    "lycoris": "a LyCORIS network",
    "textual-inversion": "a textual inversion embedding",
    "vae": "a VAE",
    "checkpoint": "a model checkpoint",
    "sam": "a Segment Anything model",
    "aesthetic-gradient": "an aesthetic gradient",
    "optimizer": "the state of an optimizer",
    "torchscript": "a TorchScript program",
    "html": "a web page, probably what a site sent instead of the file",
    "json": "a JSON text",
    "text": "a text",
    "image": "a picture",
    "zip": "a zip archive of other things",
    "archive": "an archive",
    "git-lfs": "a Git LFS pointer, not the file itself",
    "gguf": "a GGUF model",
    "empty": "an empty file",
    "unknown": "not a file that hnetkit knows",
}

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image"),
    (b"\xff\xd8\xff", "image"),
    (b"GIF8", "image"),
    (b"GGUF", "gguf"),
    (b"7z\xbc\xaf\x27\x1c", "archive"),
    (b"Rar!", "archive"),
    (b"\x1f\x8b", "archive"),
    (b"BZh", "archive"),
    (b"version https://git-lfs", "git-lfs"),
)


def kind_of_bytes(head: bytes) -> str:
    """Returns the kind of a file that is neither a torch file nor safetensors, from its first bytes."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if not head.strip(b"\0"):
        return "empty"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image"
    if head[257:262] == b"ustar":
        return "archive"
    return _kind_of_text(head.removeprefix(b"\xef\xbb\xbf").lstrip()[:2000])


def _kind_of_text(head: bytes) -> str:
    lowered = head.lower()
    if lowered.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")) or b"<html" in lowered[:500]:
        return "html"
    try:
        text = head.decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return "unknown"
    if not text or not all(character.isprintable() or character in "\r\n\t" for character in text):
        return "unknown"
    return "json" if text[0] in "{[" else "text"


def kind_of_names(names: Collection[str]) -> str:
    """Returns the kind of a flat set of tensor names; ``"unknown"`` where none is recognised."""
    joined = "\n".join(names)

    def any_of(*parts: str) -> bool:
        return any(part in joined for part in parts)

    if any_of("hada_w1_a", "lokr_w1", "dora_scale", "oft_blocks", "oft_diag", "lora_mid"):
        return "lycoris"
    if any_of("lora_up", "lora_down", ".lora_A", ".lora_B", "to_q_lora", "lora.up", "lora.down"):
        return "lora"
    if any_of("model.diffusion_model.", "cond_stage_model.", "conditioner.embedders", "down_blocks.0.resnets"):
        return "checkpoint"
    if any_of("mask_decoder.", "output_hypernetworks_mlps"):
        return "sam"
    if any_of("string_to_param", "string_to_token", "emb_params") or {"clip_l", "clip_g"} & set(names):
        return "textual-inversion"
    if any_of("first_stage_model.") or (any_of("encoder.") and any_of("decoder.", "quant_conv")):
        return "vae"
    if any_of("text_model.encoder", "transformer_blocks.", "double_blocks.", "joint_blocks."):
        return "checkpoint"
    return "unknown"


def kind_of_value(value: Any) -> str:
    """Returns the kind of an object that `torch.save` wrote."""
    if isinstance(value, pickle_values.Tensor):
        return "aesthetic-gradient" if len(value.shape) == 2 and value.shape[1] in (768, 1024, 1280) else "unknown"
    if isinstance(value, list | tuple):
        return "lora" if value and all(isinstance(item, pickle_values.Tensor) for item in value) else "unknown"
    if not isinstance(value, dict):
        return "unknown"
    names = _texts(value)
    if {"optimizer_state_dict", "optimizer_name"} & names or {"state", "param_groups"} <= names:
        return "optimizer"
    if any(name.startswith("<") for name in names) and len(value) <= 4:
        return "textual-inversion"
    inner = value.get("state_dict")
    for level in (value, inner, value.get("model")):
        if isinstance(level, dict):
            kind = kind_of_names(_texts(level))
            if kind != "unknown":
                return kind
    return "checkpoint" if {"global_step", "pytorch-lightning_version"} & names else "unknown"


def _texts(value: Mapping[Any, Any]) -> set[str]:
    return {key for key in value if isinstance(key, str)}
