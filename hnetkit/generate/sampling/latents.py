"""Between pictures and latents: what the autoencoder does, and the sizes and masks around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from PIL import Image


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Returns pictures ``[pictures, 3, height, width]``, 0 to 1 in fp32, of latents ``[pictures, 4, h, w]``."""
    vae = pipe.vae
    dtype = vae.dtype
    if dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)  # SDXL's first autoencoder overflows in fp16
    pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    vae.to(dtype)
    result: Tensor = pipe.image_processor.postprocess(pixels.detach().float(), output_type="pt")
    return result


def encode(pipe: Any, image: Image.Image, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Returns latents ``[1, 4, h, w]`` of a picture that is brought to `size` (width, height) in pixels."""
    vae = pipe.vae
    pixels = pipe.image_processor.preprocess(image.convert("RGB"), height=size[1], width=size[0])
    dtype = vae.dtype
    if dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)
    encoded = vae.encode(pixels.to(pipe._execution_device, vae.dtype)).latent_dist.sample(generator)
    vae.to(dtype)
    latents: Tensor = encoded.float() * vae.config.scaling_factor
    return latents


def resized(latents: Tensor, size: Sequence[int]) -> Tensor:
    """Returns latents ``[pictures, 4, h, w]`` brought to `size` (h, w), as A1111's upscaler ``Latent`` does."""
    return interpolate(latents, size=list(size), mode="bilinear")


def soft_mask(image: Image.Image, size: tuple[int, int], *, blur: float, inverted: bool) -> Image.Image:
    """Returns a mask of `size` (width, height) in grey, white where is drawn anew.

    Args:
        image: white where is drawn anew; one that is transparent somewhere counts by its opacity.
        blur: radius in pixels of the result.
        inverted: draw where it is black instead.
    """
    from PIL import ImageChops, ImageFilter

    if "transparency" in image.info:  # of a palette, or one colour
        image = image.convert("RGBA")
    opacity = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    has_holes = opacity is not None and opacity.getextrema() != (255, 255)
    grey = (opacity if opacity is not None and has_holes else image.convert("L")).resize(size)
    return (ImageChops.invert(grey) if inverted else grey).filter(ImageFilter.GaussianBlur(blur))


def mask_of(soft: Image.Image, size: tuple[int, int]) -> Tensor:
    """Returns a mask ``[1, 1, h, w]`` of `size` (w, h), 1 where is drawn anew and 0 elsewhere, as A1111 rounds it."""
    small = torch.tensor(list(soft.resize(size).tobytes()), dtype=torch.float32)
    return (small / 255).round().reshape(1, 1, size[1], size[0])
