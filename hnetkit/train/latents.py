"""Pictures as the UNet sees them, encoded once: the autoencoder is not needed again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from hnetkit.train.order import seed_for

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.train.data import TrainingData, TrainingPicture
    from hnetkit.train.recipe import Recipe


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """One picture, encoded; on the CPU, in fp32.

    Attributes:
        mean: ``[4, h, w]``, scaled as the UNet takes it; with ``once`` the one sample instead.
        deviation: ``[4, h, w]`` of the distribution, scaled alike; None where no more samples are drawn.
        weight: ``[1, h, w]`` of the loss, 1 on average; None where all weighs the same.
    """

    mean: Tensor
    deviation: Tensor | None = None
    weight: Tensor | None = None

    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns latents ``[4, h, w]``."""
        if self.deviation is None:
            return self.mean
        return self.mean + self.deviation * torch.randn(self.mean.shape, generator=generator)


def encode_all(
    pipe: Any, data: TrainingData, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Latents]:
    """Returns the latents of every picture, each encoded by itself so that company changes nothing.

    Args:
        pipe: with its autoencoder on the device.
        progress: called with the pictures done and the pictures in all.
    """
    made = []
    for number, picture in enumerate(data.pictures):
        made.append(_encode(pipe, picture, data.recipe, number))
        progress(number + 1, len(data.pictures))
    return made


def opacity_weight(image: Image.Image, size: tuple[int, int]) -> Tensor | None:
    """Returns weights ``[1, h, w]`` of a picture's opacity at latents' `size` (w, h): least 0, mean 1, as A1111 does.

    None where it is opaque, or equally transparent, everywhere.
    """
    if "A" not in image.getbands():
        return None
    alpha = torch.frombuffer(bytearray(image.getchannel("A").tobytes()), dtype=torch.uint8).float()
    alpha = alpha.reshape(1, 1, image.height, image.width) / 255
    small = interpolate(alpha, size=(size[1], size[0]), mode="bilinear", antialias=True)[0]
    small = small - small.min()
    mean = small.mean()
    return small / mean if mean > 0 else None


@torch.no_grad()
def _encode(pipe: Any, picture: TrainingPicture, recipe: Recipe, number: int) -> Latents:
    image = picture.opened()
    vae, scaling = pipe.vae, pipe.vae.config.scaling_factor
    pixels = pipe.image_processor.preprocess(image.convert("RGB"))
    dtype = vae.dtype
    if dtype == torch.float16 and vae.config.force_upcast:
        vae.to(torch.float32)  # SDXL's first autoencoder overflows in fp16
    distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    vae.to(dtype)
    mean = distribution.mean[0].float().cpu() * scaling
    deviation = distribution.std[0].float().cpu() * scaling
    weight = opacity_weight(image, (mean.shape[2], mean.shape[1])) if recipe.alpha_as_weight else None
    if recipe.latents == "deterministic":
        return Latents(mean, None, weight)
    drawn_anew = Latents(mean, deviation, weight)
    if recipe.latents == "random":
        return drawn_anew
    generator = torch.Generator("cpu").manual_seed(seed_for(recipe.seed, "latent of picture", number))
    return Latents(drawn_anew.sample(generator), None, weight)
