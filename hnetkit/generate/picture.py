"""From a request to pictures. A picture depends on its own seed alone, not on how many were asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from hnetkit.errors import BadPicture
from hnetkit.generate.model import Model
from hnetkit.generate.request import Request
from hnetkit.generate.samplers import scheduler
from hnetkit.prompts import infotext
from hnetkit.runtime.attach import applied, set_progress

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[int, int], None]
"""Called with the sampling steps done and the steps in all, over every picture of a request."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and the seed that it was drawn from."""

    image: Image.Image
    seed: int


def draw(model: Model, request: Request, progress: Progress | None = None) -> Iterator[Picture]:
    """Draws the pictures of a request one after the other.

    Noise comes from the CPU's generator, so that every device draws the same picture, up to rounding.

    Raises:
        BadPicture: sampling gave NaN, or nothing but black.
        NotFound: a name of the stack that is not loaded on the pipeline.
    """
    with applied(model.pipe, dict(request.stack)):
        for index in range(request.count):
            yield Picture(_image(model, request, index, progress), request.seed + index)


def _image(model: Model, request: Request, index: int, progress: Progress | None) -> Image.Image:
    import torch

    pipe = model.pipe
    pipe.scheduler = scheduler(request.sampler, model.scheduler_config)

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps = pipe.num_timesteps  # more than the steps asked for where a sampler calls the UNet twice
        set_progress(pipe, step + 1, steps)
        if progress is not None:
            progress(index * steps + step + 1, request.count * steps)
        return tensors

    set_progress(pipe, 0, request.steps)
    pixels = pipe(
        request.prompt,
        negative_prompt=request.negative_prompt or None,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        width=request.width,
        height=request.height,
        generator=torch.Generator("cpu").manual_seed(request.seed + index),
        callback_on_step_end=after_step,
        output_type="pt",
    ).images
    fault = "NaN" if not torch.isfinite(pixels).all() else "black" if pixels.max() < 1 / 255 else None
    if fault:
        raise BadPicture(f"the picture of seed {request.seed + index} came out {fault}", hint=_remedy(model, request))
    image: Image.Image = pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(pixels))[0]
    return image


def _remedy(model: Model, request: Request) -> str:
    tries = ["--dtype fp32"] if str(model.pipe.unet.dtype) != "torch.float32" else []
    tries += ["lower strengths", "fewer hypernetworks"] if request.stack else []
    return f"try {', or '.join([*tries, 'a lower --cfg-scale'])}"


def infotext_of(
    model: Model,
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
    parameters = {
        "Steps": request.steps,
        "Sampler": request.sampler,
        "CFG scale": f"{request.cfg_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model.hash,
        "Model": model.name,
        **(extra or {}),
        "Version": f"hnetkit {version('hnetkit')}",
    }
    return infotext.write(prompt, request.negative_prompt, parameters, {"model": model.hash, **hashes})


def unread_part(model: Model, prompt: str) -> str:
    """Returns the end of a prompt that the text encoder has no room for; empty where all of it is read."""
    tokenizer = model.pipe.tokenizer
    tokens = tokenizer(prompt, truncation=False).input_ids
    room = tokenizer.model_max_length
    return str(tokenizer.decode(tokens[room - 1 : -1])) if len(tokens) > room else ""
