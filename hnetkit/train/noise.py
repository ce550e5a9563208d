"""How much of a picture is noise: what tells a network that draws something from one that broke."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]


def high_frequencies(picture: Pixels, grid: int) -> float:
    """Returns the energy of a picture's fine detail, a mean over pixels and channels with values of 0 to 1.

    It is the part of the spectrum above half of the highest frequency, of the picture as it is or of the picture with
    one pixel for each of the latents, whichever has more. A network that broke gives latents that are noise; the
    autoencoder makes blotches of them that are as large as a latent and smooth at the scale of pixels, while a style
    may well have more fine lines, dots or grain than the pictures before it: so the scale of latents is what counts,
    and that of pixels only for noise that fills the whole picture.

    Args:
        picture: ``[height, width, channels]`` of 8-bit values.
        grid: pixels along a side that belong to one latent.
    """
    pixels = picture.astype(np.float64) / 255
    return max(_upper_half(_reduced(pixels, grid)), _upper_half(pixels))


def _reduced(pixels: Pixels, by: int) -> Pixels:
    height, width, channels = (pixels.shape[0] // by, pixels.shape[1] // by, pixels.shape[2])
    blocks = pixels[: height * by, : width * by].reshape(height, by, width, by, channels)
    means: Pixels = blocks.mean((1, 3))
    return means


def _upper_half(pixels: Pixels) -> float:
    """Returns the energy of frequencies above a quarter of a cycle per pixel, along either side."""
    if not pixels.size:
        return 0.0
    height, width, _ = pixels.shape
    # mirrored, for a spectrum takes pictures as tiles, and an edge between the left and the right side is none
    mirrored = np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="symmetric")
    energy = np.abs(np.fft.fft2(mirrored, axes=(0, 1), norm="ortho")) ** 2
    down, across = (np.abs(np.fft.fftfreq(side)) for side in mirrored.shape[:2])
    is_high = np.maximum(down[:, None], across[None]) > 0.25
    return float(energy[is_high].sum() / mirrored.size)
