"""What a picture says of how it was drawn: A1111's infotext, from a request."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from hnetkit.generate.pipeline import LoadedPipeline
from hnetkit.generate.request import Request, SecondPass
from hnetkit.generate.sampling.samplers import infotext_fields
from hnetkit.prompts import infotext
from hnetkit.prompts.tags import plain_number

EMPHASIS = {"original": "Original", "no-norm": "No norm", "ignore": "Ignore", "none": "None"}


def infotext_of(
    model: LoadedPipeline,
    request: Request,
    seed: int,
    prompt: str,
    hashes: Mapping[str, str],
    extra: Mapping[str, object] | None = None,
) -> str:
    """Returns A1111's infotext for one picture of a request.

    Args:
        prompt: as it is stored: with the tags of its hypernetworks.
        hashes: of the hypernetworks, ``"hypernet:NAME"`` -> 10 hex digits.
        extra: further parameters.
    """
    sampler, schedule_type = infotext_fields(request.sampler)
    parameters = {
        "Steps": request.steps,
        "Sampler": sampler,
        "Schedule type": schedule_type,
        "CFG scale": f"{request.cfg_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model.hash,
        "Model": model.name,
        **_unusual(request, seed),
        **(extra or {}),
        "Version": f"hnetkit {version('hnetkit')}",
    }
    return infotext.write(prompt, request.negative_prompt, parameters, {"model": model.hash, **hashes})


def _unusual(request: Request, seed: int) -> dict[str, object]:
    """What is left out where it is A1111's default; a None is left out too."""
    start, second = request.start, request.second
    varied = request.variation_strength > 0
    denoising = start.denoising if start else second.denoising if second else None
    return {
        "Variation seed": request.variation_seed + seed - request.seed if varied else None,
        "Variation seed strength": plain_number(request.variation_strength) if varied else None,
        "Denoising strength": None if denoising is None else plain_number(denoising),
        "Mask blur": plain_number(start.mask_blur) if start and start.mask else None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "ENSD": request.eta_seed_delta or None,
        "RNG": request.rng.upper(),
        "Emphasis": EMPHASIS[request.emphasis] if request.emphasis != "original" else None,
        **(_of_second_pass(request, second) if second else {}),
    }


def _of_second_pass(request: Request, second: SecondPass) -> dict[str, object]:
    other_negative = second.negative_prompt != request.negative_prompt
    return {
        "Hires resize": f"{second.width}x{second.height}",
        "Hires steps": second.steps if second.steps != request.steps else None,
        "Hires upscaler": second.upscaler,
        "Hires prompt": second.written if second.written else None,
        "Hires negative prompt": second.negative_prompt if other_negative else None,
    }
