"""How far pictures with baked weights are from those with the networks, beside how far these are from none."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hnetkit.baking.contexts import Calls, sampled
from hnetkit.baking.picture_plan import PicturePlan, PlannedPicture
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.request import NamedStrengths
from hnetkit.generate.sampling import vae
from hnetkit.text import counted

if TYPE_CHECKING:
    from PIL import Image


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
    model: LoadedPipeline, plan: PicturePlan, which: Iterable[PlannedPicture], stack: NamedStrengths, report: Calls
) -> list[Tensor]:
    """Returns pictures ``[3, height, width]``, 0 to 1 in fp32 on the CPU."""
    pixels = []
    for picture in which:
        latents = sampled(model, plan.request(picture, stack), report)
        with torch.no_grad():
            pixels.append(vae.decode(model.pipe, latents)[0].cpu())
    return pixels


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same pictures three times, each ``[3, height, width]``: without networks, with them, with baked weights."""

    shown: tuple[PlannedPicture, ...]
    none: list[Tensor]
    networks: list[Tensor]
    baked: list[Tensor]

    @property
    def errors(self) -> PictureErrors:
        networks = torch.stack(self.networks)
        error = torch.stack(self.baked) - networks
        effect = (networks - torch.stack(self.none)).abs().mean().item()
        mean_square = error.square().mean().item()
        share = error.abs().mean().item() / effect if effect else math.inf
        return PictureErrors(share, -10 * math.log10(mean_square) if mean_square else math.inf, effect, len(self.baked))

    def sheet(self, networks: str, baked: str) -> Image.Image:
        """Returns a labeled sheet: a row for each picture, and a column for each of the three.

        Args:
            networks, baked: what the last two columns show.
        """
        from hnetkit.generate.grids.sheet import Section, SheetRow, draw_sheet

        rows = [
            SheetRow(
                f"{picture.prompt} (seed {picture.seed})",
                [_image(own[index]) for own in (self.none, self.networks, self.baked)],
            )
            for index, picture in enumerate(self.shown)
        ]
        errors = self.errors
        caption = (
            f"error of the last column: {errors.share:.1%} of what the networks change, PSNR {errors.psnr:.1f} dB, "
            f"over {counted(errors.number, 'picture')} that nothing was fitted on"
        )
        return draw_sheet(
            "Hypernetworks, and what they were baked to", caption, ["none", networks, baked], [Section("", rows)]
        )


def _image(pixels: Tensor) -> Image.Image:
    from PIL import Image

    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
