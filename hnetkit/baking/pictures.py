"""How far pictures with baked weights are from those with the networks, beside how far these are from none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hnetkit.baking.contexts import Calls, sampled
from hnetkit.baking.samples import Sample, Samples
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.request import NamedStrengths
from hnetkit.generate.sampling import vae


@dataclass(frozen=True, slots=True)
class PictureErrors:
    """The difference of two sets of pictures.

    Attributes:
        share: mean absolute error of the baked pictures, by the mean absolute effect of the networks.
        psnr: of all baked pictures together against those with the networks, in dB; infinite where they are equal.
        effect: mean absolute change that the networks make, of pixels from 0 to 1.
        number: of pictures.
    """

    share: float
    psnr: float
    effect: float
    number: int


def draw_pixels(
    model: LoadedPipeline, samples: Samples, which: Iterable[Sample], stack: NamedStrengths, report: Calls
) -> list[Tensor]:
    """Returns pictures ``[3, height, width]``, 0 to 1 in fp32 on the CPU."""
    pixels = []
    for sample in which:
        latents = sampled(model, samples.request(sample, stack), report)
        with torch.no_grad():
            pixels.append(vae.decode(model.pipe, latents)[0].cpu())
    return pixels


def picture_errors(none: Sequence[Tensor], networks: Sequence[Tensor], baked: Sequence[Tensor]) -> PictureErrors:
    """Compares pictures of the same prompts and seeds: without networks, with them, and with baked weights."""
    error = torch.stack(list(baked)) - torch.stack(list(networks))
    effect = (torch.stack(list(networks)) - torch.stack(list(none))).abs().mean().item()
    mean_square = error.square().mean().item()
    share = error.abs().mean().item() / effect if effect else math.inf
    return PictureErrors(share, -10 * math.log10(mean_square) if mean_square else math.inf, effect, len(baked))
