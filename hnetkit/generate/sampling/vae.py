"""The autoencoder between images and latents, and the masks of inpainting at both sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from PIL import Image


@contextmanager
def fp32_where_needed(vae: Any) -> Iterator[Any]:
    """Keeps an autoencoder that overflows in fp16, as SDXL's first one does, in fp32 inside the block."""
    dtype = vae.dtype
    if dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)
    yield vae
    vae.to(dtype)


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Returns images ``[images, 3, height, width]``, 0 to 1 in fp32, of latents ``[images, 4, h, w]``."""
    with fp32_where_needed(pipe.vae) as vae:
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    result: Tensor = pipe.image_processor.postprocess(pixels.detach().float(), output_type="pt")
    return result


def encode(pipe: Any, image: Image.Image, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Returns latents ``[1, 4, h, w]`` of an image in RGB that is resized to `size` (width, height) in pixels."""
    pixels = pipe.image_processor.preprocess(image, height=size[1], width=size[0])
    with fp32_where_needed(pipe.vae) as vae:
        encoded = vae.encode(pixels.to(pipe._execution_device, vae.dtype)).latent_dist.sample(generator)
    latents: Tensor = encoded.float() * vae.config.scaling_factor
    return latents


def resize_latents(latents: Tensor, size: Sequence[int]) -> Tensor:
    """Returns latents ``[images, 4, h, w]`` resized to `size` (h, w), as A1111's upscaler ``Latent`` does."""
    return interpolate(latents, size=list(size), mode="bilinear")


def soft_mask(image: Image.Image, size: tuple[int, int], *, blur: float, inverted: bool) -> Image.Image:
    """Returns a gray mask of `size` (width, height), white where the image is repainted.

    Args:
        image: in gray, white where the image is repainted.
        blur: radius in pixels of the result.
        inverted: repaint where `image` is black instead.
    """
    from PIL import ImageChops, ImageFilter

    gray = image.resize(size)
    return (ImageChops.invert(gray) if inverted else gray).filter(ImageFilter.GaussianBlur(blur))


def latent_mask(soft: Image.Image, size: tuple[int, int]) -> Tensor:
    """Returns a mask ``[1, 1, h, w]`` of `size` (w, h): 1 where the image is repainted, else 0, rounded as in A1111."""
    small = torch.tensor(list(soft.resize(size).tobytes()), dtype=torch.float32)
    return (small / 255).round().reshape(1, 1, size[1], size[0])
