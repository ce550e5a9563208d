"""The pictures of a bake: contexts are gathered from some, and baked weights are measured on the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hnetkit.baking.changes import Changes, Rounding, in_weights
from hnetkit.baking.contexts import GatheredContexts, sampled
from hnetkit.baking.contributions import NamedStack, StackOnLayers
from hnetkit.baking.picture_plan import PicturePlan, PlannedPicture
from hnetkit.baking.refining import CALLS_PER_STEP, GuidedCall, recording, refined
from hnetkit.errors import BadPicture
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.request import NamedStrengths
from hnetkit.generate.sampling import vae
from hnetkit.prompts.tags import excerpt
from hnetkit.text import counted

if TYPE_CHECKING:
    from PIL import Image


Progress = Callable[[float, float], object]
"""Called with the pictures that are drawn, counting parts of the current one, and their number."""


@dataclass(frozen=True, slots=True)
class PictureErrors:
    """The difference of two sets of pictures.

    Attributes:
        share: mean absolute error of the baked pictures, by the mean absolute effect of the networks; None where they
            have none.
        psnr: of all baked pictures together against those with the networks, in dB; None where they are equal.
        effect: mean absolute change that the networks make, of pixels from 0 to 1.
        number: of pictures.
    """

    share: float | None
    psnr: float | None
    effect: float
    number: int

    def __str__(self) -> str:
        share = "the networks change nothing" if self.share is None else f"{self.share:.1%} of what the networks change"
        return f"{share}, {'equal' if self.psnr is None else f'PSNR {self.psnr:.1f} dB'}"


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
        share = error.abs().mean().item() / effect if effect else None
        return PictureErrors(share, -10 * math.log10(mean_square) if mean_square else None, effect, len(self.baked))

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
            f"error of the last column: {errors}, over {counted(errors.number, 'picture')} that nothing was fitted on"
        )
        return draw_sheet(
            "Hypernetworks, and what they were baked to", caption, ["none", networks, baked], [Section("", rows)]
        )


def _image(pixels: Tensor) -> Image.Image:
    from PIL import Image

    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


class FitDrawing:
    """The pictures of one bake: contexts are gathered from some, and errors measured on the others."""

    def __init__(
        self,
        model: LoadedPipeline,
        stack: NamedStack,
        on_layers: StackOnLayers,
        plan: PicturePlan,
        progress: Progress | None,
        refine: int = 0,
    ) -> None:
        """`refine` is the steps of refining; calls of the UNet are recorded for them."""
        self.plan = plan
        self.has_drawn = False
        self._refine, self._calls = refine, list[GuidedCall]()
        self._model, self._on_layers, self._progress = model, on_layers, progress
        self._stack: NamedStrengths = tuple((name, strength) for name, _, strength in stack)
        self._with_networks: list[Tensor] = []
        self._without: list[Tensor] = []
        self._done, self._total = 0.0, len(plan.seen) + 3 * len(plan.held_out) + refine * self._pictures_per_step

    def gather(self) -> tuple[GatheredContexts, GatheredContexts]:
        """Draws with the stack; returns the contexts to fit on, and those held out."""
        self.has_drawn = True
        seen, held_out = GatheredContexts(self._on_layers), GatheredContexts(self._on_layers)
        with seen.watching(), recording(self._model.pipe.unet, self._calls) if self._refine else nullcontext():
            self._draw(self.plan.seen, self._stack)
        encoder = self._model.text_encoder(1, "original")
        with torch.no_grad():
            for text in self.plan.texts:
                seen.add_text(encoder.encode(text).hidden, weight=self.plan.steps)
        with held_out.watching():
            self._with_networks = self._draw(self.plan.held_out, self._stack)
        return seen, held_out

    @property
    def _pictures_per_step(self) -> float:
        """How many pictures take as long as a step of refining, about: with its gradients a call takes three times."""
        return 3 * CALLS_PER_STEP / self.plan.steps

    def refine(self, changes: Changes) -> Changes:
        """Returns the changes refined on the pictures that `gather` drew."""
        begun, each = self._done, self._pictures_per_step

        def report(steps: int) -> None:
            self._done = begun + steps * each
            self._report(0, 1)

        return refined(
            self._model.pipe.unet,
            changes,
            self._calls,
            steps=self._refine,
            cfg_scale=self.plan.cfg_scale,
            seed=self.plan.seen[0].seed,
            report=report,
        )

    def compare(self, changes: Changes, rounding: Rounding) -> Comparison:
        """Draws the pictures that were held out: without networks, with them, and with the changes in the weights.

        Args:
            rounding: of the file that holds the changes.
        """
        held_out = self.plan.held_out
        if not self._with_networks:
            self._with_networks = self._draw(held_out, self._stack)
        if not self._without:
            self._without = self._draw(held_out, ())
        with in_weights(self._model.pipe.unet, changes, rounding):
            baked = self._draw(held_out, ())
        return Comparison(held_out, self._without, self._with_networks, baked)

    def _draw(self, which: Sequence[PlannedPicture], stack: NamedStrengths) -> list[Tensor]:
        """Returns pictures ``[3, height, width]``, 0 to 1 in fp32 on the CPU; raises BadPicture for one of NaN."""
        pixels = []
        for picture in which:
            latents = sampled(self._model, self.plan.request(picture, stack), self._report)
            with torch.no_grad():
                pixels.append(vae.decode(self._model.pipe, latents)[0].cpu())
            if not torch.isfinite(pixels[-1]).all():
                is_fp32 = self._model.pipe.unet.dtype == torch.float32
                raise BadPicture(
                    f"the picture of seed {picture.seed} came out NaN: {excerpt(picture.prompt)}",
                    hint="try lower strengths" if is_fp32 else "try --dtype fp32, or lower strengths",
                )
            self._done += 1
        return pixels

    def _report(self, calls: int, of_calls: int) -> None:
        if self._progress is not None:
            self._progress(self._done + calls / of_calls, self._total)
