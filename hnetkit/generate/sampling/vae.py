"""The autoencoder between images and latents, the masks of inpainting at both sizes, and what UNets read of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hnetkit.generate.loading.parts import is_for_inpainting

if TYPE_CHECKING:
    from PIL import Image


@contextmanager
def fp32_where_needed(vae: Any) -> Iterator[Any]:
    """Keeps an autoencoder that overflows in fp16, as SDXL's first one does, in fp32 inside the block."""
    dtype = vae.dtype
    if dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)
    try:
        yield vae
    finally:
        vae.to(dtype)


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Returns images ``[images, 3, height, width]``, 0 to 1 in fp32, of latents ``[images, 4, h, w]``."""
    with fp32_where_needed(pipe.vae) as vae:
        pixels = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    result: Tensor = pipe.image_processor.postprocess(pixels.detach().float(), output_type="pt")
    return result


def encode(pipe: Any, image: Image.Image, size: tuple[int, int], seeds: Sequence[int]) -> Tensor:
    """Returns latents ``[seeds, 4, h, w]`` of an image in RGB that is resized to `size` (width, height) in pixels.

    Args:
        seeds: each draws one sample of what the autoencoder gives, a distribution.
    """
    pixels = pipe.image_processor.preprocess(image, height=size[1], width=size[0])
    with fp32_where_needed(pipe.vae) as vae:
        encoded = vae.encode(pixels.to(pipe._execution_device, vae.dtype)).latent_dist
    samples = [encoded.sample(torch.Generator("cpu").manual_seed(seed)) for seed in seeds]
    latents: Tensor = torch.cat(samples).float() * vae.config.scaling_factor
    return latents


def resize_latents(latents: Tensor, size: Sequence[int]) -> Tensor:
    """Returns latents ``[images, 4, h, w]`` resized to `size` (h, w), as A1111's upscaler ``Latent`` does."""
    return interpolate(latents, size=list(size), mode="bilinear")


def soft_mask(image: Image.Image, size: tuple[int, int], *, blur: float, inverted: bool) -> Image.Image:
    """Returns a gray mask of `size` (width, height), white where the image is repainted.

    As in A1111, the mask is blurred before it is resized, by Lanczos.

    Args:
        image: in gray, white where the image is repainted.
        blur: standard deviation in pixels of `image`.
        inverted: repaint where `image` is black instead.
    """
    from PIL import Image, ImageChops

    gray = ImageChops.invert(image) if inverted else image
    return _blurred(gray, blur).resize(size, Image.Resampling.LANCZOS)


def _blurred(gray: Image.Image, blur: float) -> Image.Image:
    """Returns a gray image blurred along its rows, then its columns, as OpenCV's ``GaussianBlur`` does for A1111.

    Pillow's own blur is an approximation by boxes: with it, some squares of the latents get another side of the mask.
    Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/processing.py (behavior only).
    """
    from PIL import Image

    sigma = min(blur, 2.0 * max(gray.size))  # beyond, all is one gray
    reach = int(2.5 * sigma + 0.5)
    if reach == 0:
        return gray
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    values = np.asarray(gray, np.float32)
    for _ in range(2):  # along rows, of which there are columns then
        padded = torch.from_numpy(np.pad(values, [(0, 0), (reach, reach)], mode="reflect"))
        wide = padded.shape[1]
        kernel = torch.fft.rfft(torch.tensor(weights / weights.sum(), dtype=torch.float32), wide)
        spread = torch.fft.irfft(torch.fft.rfft(padded) * kernel, wide)
        values = spread[:, 2 * reach :].round().clamp(0, 255).T.contiguous().numpy()
    return Image.fromarray(values.astype(np.uint8))


def latent_mask(soft: Image.Image, size: tuple[int, int]) -> Tensor:
    """Returns a mask ``[1, 1, h, w]`` of `size` (w, h): 1 where the image is repainted, else 0, rounded as in A1111."""
    return _of_gray(soft.resize(size)).round()


def mask_channels(
    pipe: Any, size: tuple[int, int], masked: tuple[Image.Image, Image.Image] | None = None
) -> Tensor | None:
    """Returns what a UNet made for inpainting reads beside the latents, ``[1, 5, h, w]``; None for any other UNet.

    The first channel is the mask, the others are the latents of an image that is gray where the mask is 1. As in
    A1111, the mask is 1 or 0 in each pixel, and where there is none it is 1 everywhere: all of the image is gray. The
    latents are the middle of what the autoencoder gives, so that images do not depend on those drawn with them.

    Args:
        size: (width, height) in pixels of what is drawn.
        masked: the init image, and its mask of `soft_mask`; both of `size`.
    """
    if not is_for_inpainting(pipe.unet.config):
        return None
    width, height = size
    mask, pixels = torch.ones(1, 1, height, width), torch.zeros(1, 3, height, width)
    if masked is not None:
        mask = _of_gray(masked[1]).round()
        pixels = pipe.image_processor.preprocess(masked[0], height=height, width=width) * (1 - mask)
    with fp32_where_needed(pipe.vae) as vae:
        encoded = vae.encode(pixels.to(pipe._execution_device, vae.dtype)).latent_dist.mode()
    latents = encoded.float() * vae.config.scaling_factor
    return torch.cat([interpolate(mask, size=latents.shape[2:]).to(latents), latents], dim=1)


def _of_gray(image: Image.Image) -> Tensor:
    """Returns the values ``[1, 1, height, width]`` of a gray image, 0 to 1."""
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return (values.float() / 255).reshape(1, 1, image.height, image.width)
