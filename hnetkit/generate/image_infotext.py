"""The infotext that is written into an image: A1111's, with what hnetkit needs to draw it again."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

from hnetkit.generate.image_settings import EMPHASIS, MASK_MODES, MASKED_CONTENT
from hnetkit.generate.sampling.samplers import infotext_fields
from hnetkit.library.known_hashes import hash_of_file
from hnetkit.prompts import infotext
from hnetkit.prompts.tags import plain_number

if TYPE_CHECKING:
    from pathlib import Path

    from hnetkit.generate.loading.pipeline import LoadedPipeline
    from hnetkit.generate.request import InitImage, Request, SecondPass


def infotext_of(
    model: LoadedPipeline,
    request: Request,
    seed: int,
    prompt: str,
    hashes: Mapping[str, str],
) -> str:
    """Returns A1111's infotext for one image of a request.

    Of a model whose parts were replaced, or that has LoRAs of its own, it says so in place of the hashes of its files.

    Args:
        prompt: as it is stored, with the tags of its hypernetworks.
        hashes: ``"hypernet:NAME"`` or ``"lora:NAME"`` -> 10 hex digits.
    """
    sampler, schedule_type = infotext_fields(request.sampler)
    replaced = model.replaced
    name = model.stated_name
    model_hash = model.hash if name == model.name else None
    has_own_vae, separate = "vae" not in replaced, model.vae
    parameters = {
        "Steps": request.steps,
        "Sampler": sampler,
        "Schedule type": schedule_type,
        "CFG scale": plain_number(request.cfg_scale),
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model_hash,
        "Model": name,
        "Model parts hash": None if replaced or model_hash is None else model.parts_hash,
        "VAE hash": separate.hash if separate and has_own_vae else None,
        "VAE": (separate.name if separate else None) if has_own_vae else "another",
        **_beside_defaults(request, seed),
        "Version": f"hnetkit {version('hnetkit')}",
    }
    of_model = {"model": model_hash} if model_hash else {}
    return infotext.write(prompt, request.negative_prompt, parameters, {**of_model, **hashes})


def _beside_defaults(request: Request, seed: int) -> dict[str, object]:
    """Returns the parameters that A1111 leaves out at their defaults; None leaves one out here too."""
    init, second = request.init_image, request.second
    varied = request.variation_strength > 0
    denoising = init.denoising if init else second.denoising if second else None
    parameters: dict[str, object] = {
        "Variation seed": request.variation_seed + seed - request.seed if varied else None,
        "Variation seed strength": plain_number(request.variation_strength) if varied else None,
        "Denoising strength": None if denoising is None else plain_number(denoising),
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "ENSD": request.eta_seed_delta or None,
        "RNG": request.rng.upper(),
        "Emphasis": EMPHASIS[request.emphasis] if request.emphasis != "original" else None,
    }
    if init is not None:
        parameters |= _first_picture_parameters(init)
    return parameters if second is None else parameters | _second_pass_parameters(request, second)


def _first_picture_parameters(init: InitImage) -> dict[str, object]:
    """Returns the parameters of image-to-image: A1111's, and which files to give again."""
    files: dict[str, object] = {
        "Start image": _file_name(init.image),
        "Start image hash": hash_of_file(init.image)[:10],
    }
    if init.mask is None:
        return files
    return {
        "Mask blur": plain_number(init.mask_blur),
        "Mask mode": MASK_MODES[True] if init.inverted else None,
        "Masked content": MASKED_CONTENT[init.content] if init.content != "original" else None,
        **files,
        "Mask image": _file_name(init.mask),
        "Mask image hash": hash_of_file(init.mask)[:10],
    }


def _file_name(path: Path) -> str:
    return path.name.encode("utf-8", "replace").decode()  # the name of a file may have bytes that are not text


def _second_pass_parameters(request: Request, second: SecondPass) -> dict[str, object]:
    has_own_negative = second.negative_prompt != request.negative_prompt
    return {
        "Hires resize": f"{second.width}x{second.height}",
        "Hires steps": second.steps if second.steps != request.steps else None,
        "Hires upscaler": second.upscaler,
        "Hires prompt": second.written if second.written else None,
        "Hires negative prompt": second.negative_prompt if has_own_negative else None,
    }
