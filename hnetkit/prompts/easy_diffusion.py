"""Easy Diffusion's metadata, converted to the equivalent infotext.

Each setting is a text of its own in a PNG, a member of a JSON object in a JPEG or WebP, and a line of the text file
beside a picture. Its name is that of the program's interface (``num_inference_steps``) or that on the screen
(``Steps``).

Source: easydiffusion/easydiffusion ui/easydiffusion/utils/save_utils.py, easydiffusion/sdkit (behavior only).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from hnetkit.prompts.infotext import Infotext, with_selected_networks
from hnetkit.prompts.schedule import as_whole_text, plain_elsewhere
from hnetkit.prompts.tags import excerpt, finite_number, fits_in_tag, unread_tags, without_tags

# name on the screen -> name of the interface
_SCREEN = {
    "Prompt": "prompt",
    "Negative Prompt": "negative_prompt",
    "Seed": "seed",
    "Stable Diffusion model": "use_stable_diffusion_model",
    "Clip Skip": "clip_skip",
    "ControlNet model": "use_controlnet_model",
    "ControlNet Filter": "control_filter_to_apply",
    "VAE model": "use_vae_model",
    "Sampler": "sampler_name",
    "Width": "width",
    "Height": "height",
    "Steps": "num_inference_steps",
    "Guidance Scale": "guidance_scale",
    "Prompt Strength": "prompt_strength",
    "LoRA model": "use_lora_model",
    "LoRA Strength": "lora_alpha",
    "Hypernetwork model": "use_hypernetwork_model",
    "Hypernetwork Strength": "hypernetwork_strength",
    "Embedding models": "use_embeddings_model",
    "Seamless Tiling": "tiling",
    "Use Face Correction": "use_face_correction",
    "Use Upscaling": "use_upscale",
    "Upscale By": "upscale_amount",
    "Latent Upscaler Steps": "latent_upscaler_steps",
}
_LABELS = {name: label for label, name in _SCREEN.items()}
_OTHER_NAMES = {"use_embedding_models": "use_embeddings_model"}  # of a version in 2023
# name of the interface -> A1111's key
_KEYS = {
    "num_inference_steps": "Steps",
    "guidance_scale": "CFG scale",
    "seed": "Seed",
    "use_stable_diffusion_model": "Model",
    "use_vae_model": "VAE",
    "prompt_strength": "Denoising strength",
    "use_hypernetwork_model": "Hypernet",
    "hypernetwork_strength": "Hypernet strength",
}
_SAMPLERS = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "ddim": "DDIM",
    "plms": "PLMS",
}
_NAME = re.compile(r"[a-z]+(?:_[a-z]+)+")  # of the interface
_NOTHING = ("", "None", "none", "null", "[]", "False", "false")
_LINE = re.compile(rf"^({'|'.join(map(re.escape, _SCREEN))}): ?", re.MULTILINE)
_SUFFIX = re.compile(r"\.(?:pt|ckpt|safetensors|sft|bin)$", re.IGNORECASE)
# an item of a list: as Python quotes it, else without quotes and brackets
_ITEM = re.compile(r"""'([^'\\]*)'|"([^"\\]*)"|([^,\[\]'"\s](?:[^,\[\]'"]*[^,\[\]'"\s])?)""")
_COMPEL = re.compile(r"\)\d|[\w)][+]{1,9}(?=[\s,.]|$)|[\w)]-{2,9}(?=[\s,.]|$)|\)-")
_MOST_LORAS = 100


def parse(texts: Mapping[str, str]) -> Infotext | None:
    """Converts the texts of an image; None if they are not Easy Diffusion's."""
    given = {name: texts[key] for name, label in _LABELS.items() for key in (label, name) if key in texts}
    given |= {_OTHER_NAMES[key]: text for key, text in texts.items() if key in _OTHER_NAMES}
    if not {"prompt", "num_inference_steps", "guidance_scale"} <= given.keys():
        return None
    found = {name: value.strip() for name, value in given.items() if value.strip() not in _NOTHING}
    sampler = found.pop("sampler_name", "")
    width, height = found.pop("width", ""), found.pop("height", "")
    prompt, negative = found.pop("prompt", ""), found.pop("negative_prompt", "")
    tags = list(_lora_tags(found.pop("use_lora_model", ""), found.pop("lora_alpha", "")))
    loras = "".join(tag for _, tag in tags if tag)
    unread = [excerpt(model) for model, tag in tags if not tag]
    unread_loras = [f"LoRAs without a strength or a name that a tag can have are left out: {', '.join(unread)}"]
    parameters = {key: found.pop(name) for name, key in _KEYS.items() if name in found}
    for key in ("Model", "Hypernet"):
        if key in parameters:
            parameters[key] = _stem(parameters[key])
    if "clip_skip" in found:  # a switch: the last layer is left out
        del found["clip_skip"]
        parameters["Clip skip"] = "2"
    parameters |= {"Sampler": _SAMPLERS.get(sampler, sampler)} if sampler else {}
    parameters |= {"Size": f"{width}x{height}"} if width and height else {}
    if embeddings := list(map(_stem, _items(found.pop("use_embeddings_model", "")))):
        parameters["Used embeddings"] = ", ".join(embeddings)
    parameters |= {_LABELS[name]: value for name, value in found.items()} | dict(_unknown(texts))
    said = {**parameters, "Version": "Easy Diffusion"}
    warnings = (*_read_otherwise(prompt, negative), *(unread_loras if unread else ()))
    return with_selected_networks(
        Infotext(as_whole_text(without_tags(prompt).strip()) + loras, negative, said, warnings)
    )


def _unknown(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields settings that later versions may have, by the form of their names, for the list of what is not read."""
    for name, text in texts.items():
        if _NAME.fullmatch(name) and name not in (*_LABELS, *_OTHER_NAMES) and text.strip() not in _NOTHING:
            yield name, text.strip()


def _read_otherwise(prompt: str, negative: str) -> Iterator[str]:
    """Yields what of a prompt and a negative prompt A1111 reads in another way."""
    if _COMPEL.search(f"{prompt}\n{negative}"):
        yield "its prompt has weights such as (words)1.5 or word++, which are not taken over: write (words:1.5)"
    yield from plain_elsewhere("Easy Diffusion", prompt, negative)
    yield from unread_tags(prompt, "Easy Diffusion")


def parse_lines(text: str) -> Infotext | None:
    """Converts the text file that is written beside an image; None if it is not Easy Diffusion's."""
    _, *parts = _LINE.split(text)
    return parse(dict(zip(parts[::2], parts[1::2], strict=True)))


def _lora_tags(models: str, strengths: str) -> Iterator[tuple[str, str]]:
    """Yields name and tag of one LoRA, or of a list of them, which a PNG has as Python writes it.

    The tag is empty where none can hold the name, or the strength is no number.
    """
    numbers = _items(strengths)
    for number, model in enumerate(_items(models)[:_MOST_LORAS]):
        strength = numbers[number] if number < len(numbers) else "1"
        can_be_written = fits_in_tag(name := _stem(model)) and finite_number(strength) is not None
        yield name, f"<lora:{name}:{strength}>" if can_be_written else ""


def _items(text: str) -> list[str]:
    """Returns the items of a list as Python or JSON writes it; another text is one item, or several at commas."""
    return ["".join(groups).strip() for groups in _ITEM.findall(text)]


def _stem(model: str) -> str:
    return _SUFFIX.sub("", model.replace("\\", "/").rpartition("/")[2])
