"""A request to draw: every number and text that an image depends on, and the limits on them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from hnetkit.errors import UsageError
from hnetkit.images import has_more, has_other_colors, image_size, open_mask
from hnetkit.prompts.schedule import pieces_drawn, require_room, split_and
from hnetkit.prompts.tags import require_text
from hnetkit.text import shorten

if TYPE_CHECKING:
    from hnetkit.runtime.strength import Strength

LARGEST_SEED = 2**63 - 1
UPSCALERS = ("Latent", "Lanczos", "Nearest")

LARGEST_SIDE = 16_384
"""Pixels of the longest side of an image."""

MOST_PIXELS = 1 << 26
"""Pixels of an image: 8192 x 8192."""

MOST_STEPS = 1000
"""Sampling steps: models are trained on this many time steps."""

MOST_PARTS = 100
"""Prompts joined by ``AND``: each adds a call of the UNet at every step."""

NamedStrengths: TypeAlias = "tuple[tuple[str, float | Strength], ...]"
"""(name on the pipeline, strength) in stacking order. Strength 0 gives the same bits as no network."""


@dataclass(frozen=True, slots=True)
class InitImage:
    """The image that image-to-image begins with, and which part of it is repainted.

    Attributes:
        image: its file; it is resized to the size that is drawn.
        denoising: how strongly it is repainted, 0 to 1.
        mask: an image that is white where to repaint; None repaints everything.
        mask_blur: radius in pixels of the mask's file that softens its edge.
        inverted: the mask is black where to repaint.
        content: what lies under the mask at first.
    """

    image: Path
    denoising: float = 0.75
    mask: Path | None = None
    mask_blur: float = 4
    inverted: bool = False
    content: Literal["original", "noise", "nothing"] = "original"

    def notes(self, size: tuple[int, int]) -> Iterator[str]:
        """Yields what a user should know of an image or a mask: stretched, one of several, or without effect.

        Args:
            size: (width, height) in pixels that is drawn.

        Raises:
            NotFound, BadPicture: as `hnetkit.images.open_image`.
        """
        for path in (self.image, self.mask):
            if path is not None and has_more(path):
                yield f"{path} holds several pictures; the first is used"
        if has_other_colors(self.image):
            yield (
                f"{self.image} has a color profile other than sRGB, which is not applied: viewers show other colors; "
                "save it as sRGB to keep them"
            )
        own = image_size(self.image)
        fitting = nearest_size(own, size)
        if fitting != size:
            yield (
                f"{self.image} is {_written(own)} and is stretched to {_written(size)}; "
                f"{_written(fitting)} is a size of its shape"
            )
        if self.mask is not None and nearest_size(shape := image_size(self.mask), size) != fitting:
            yield f"{self.mask} is {_written(shape)} and is stretched over a picture of {_written(own)}"
        if self.mask is not None and not self._repaints(self.mask, size, self.mask_blur):
            yield self._unused_mask(self.mask, size)

    def _repaints(self, mask: Path, size: tuple[int, int], blur: float) -> bool:
        """Whether any square of 8 pixels, which is one value for the UNet, is at least half white under the mask."""
        from hnetkit.generate.sampling.vae import latent_mask, soft_mask

        soft = soft_mask(open_mask(mask), size, blur=blur, inverted=self.inverted)
        return bool(latent_mask(soft, (size[0] // 8, size[1] // 8)).any())

    def _unused_mask(self, mask: Path, size: tuple[int, int]) -> str:
        color, other = ("black", "white") if self.inverted else ("white", "black")
        if open_mask(mask).getextrema() == ((255, 255) if self.inverted else (0, 0)):
            return f"{mask} is {other} everywhere, so nothing is repainted"
        if self._repaints(mask, size, 0):
            return f"the {color} of {mask} is too thin for --mask-blur {self.mask_blur:g}, so nothing is repainted"
        return f"no area of {mask} is {color} and large enough to count, so nothing is repainted"


@dataclass(frozen=True, slots=True)
class SecondPass:
    """A pass over the enlarged image of the first pass: A1111's hires fix.

    Attributes:
        width, height: pixels of the result; of another ratio than the first pass, they show its middle.
        steps: sampling steps; all of them are made, whatever `denoising` is.
        denoising: how strongly the first pass is repainted, 0 to 1.
        upscaler: one of `UPSCALERS`; ``Latent`` enlarges before the autoencoder, the others after it.
        prompt, negative_prompt: without tags; the first pass's unless this pass has its own.
        stack: of this pass.
        written: the prompt as it is stored, with tags; empty if it is the first pass's.
    """

    width: int
    height: int
    steps: int
    denoising: float
    upscaler: str
    prompt: str
    negative_prompt: str
    stack: NamedStrengths = ()
    written: str = ""

    def __post_init__(self) -> None:
        _require_sizes(self.width, self.height)
        _require_steps(self.steps)
        require_prompt(self.prompt, self.steps)
        require_prompt(self.negative_prompt, self.steps)


@dataclass(frozen=True, slots=True)
class Request:
    """What to draw.

    Attributes:
        prompt: in A1111's language of weights and schedules, without tags.
        seed: of the first image, 0 to `LARGEST_SEED`; each further image has the next seed.
        width, height: pixels, multiples of 8.
        sampler: one of `hnetkit.generate.sampling.samplers.SAMPLERS`.
        negative_prompt: what to steer away from; empty for nothing.
        count: number of images.
        batch_size: how many of them are sampled together. Sums round differently in another batch, so images may
            differ in the last bits.
        stack: of the first pass.
        rng: source of noise: torch's generator for the CPU, or CUDA's (``nv``), computed in software.
        variation_seed, variation_strength: mix the first noise with that of another seed, 0 to 1; each further image
            has the next variation seed.
        eta_seed_delta: A1111's ENSD: added to the seed of the noise that samplers add at each step.
        clip_skip: 1 takes the text encoder's last layer, 2 the one before.
        emphasis: what weights in the prompt do; see `hnetkit.generate.sampling.encoding.TextEncoder`.
        init_image: where image-to-image begins.
        second: a second pass.

    Raises:
        UsageError: a number is out of its range, or a prompt is not text.
    """

    prompt: str
    seed: int
    steps: int
    cfg_scale: float
    width: int
    height: int
    sampler: str
    negative_prompt: str = ""
    count: int = 1
    batch_size: int = 1
    stack: NamedStrengths = ()
    rng: Literal["cpu", "nv"] = "cpu"
    variation_seed: int = 0
    variation_strength: float = 0.0
    eta_seed_delta: int = 0
    clip_skip: int = 1
    emphasis: Literal["original", "no-norm", "ignore", "none"] = "original"
    init_image: InitImage | None = None
    second: SecondPass | None = None

    def __post_init__(self) -> None:
        _require_sizes(self.width, self.height)
        _require_steps(self.steps)
        if min(self.count, self.batch_size) < 1:
            raise UsageError(f"{self.count} pictures, {self.batch_size} at once: both must be at least 1")
        if not 0 <= self.seed <= LARGEST_SEED - self.count + 1:
            raise UsageError(f"seeds lie between 0 and {LARGEST_SEED}, not from {self.seed} on {self.count}")
        if not (0 <= self.variation_seed <= LARGEST_SEED and abs(self.eta_seed_delta) <= LARGEST_SEED):
            raise UsageError(f"variation seed and ENSD are numbers up to {LARGEST_SEED}")
        require_prompt(self.prompt, self.steps)
        require_prompt(self.negative_prompt, self.steps)
        if self.second is not None:
            self._require_enlarged(self.second.width, self.second.height)

    def notes(self) -> Iterator[str]:
        """Yields what a user should know of the prompts, the init image, its mask and the second pass.

        Raises:
            NotFound, BadPicture: as `hnetkit.images.open_image`.
        """
        for prompt in dict.fromkeys(self.texts[::2]):
            (_, weight), *others = split_and(prompt)
            if weight != 1 and not others:  # with AND, weights are what people mean
                yield (
                    f"the {weight:g} at the end of {shorten(prompt)!r} is its weight, as in A1111; for the text, write "
                    ":1 behind it"
                )
        own = self.width, self.height
        if self.init_image is not None:
            yield from self.init_image.notes(own)
        if self.second is not None:
            size = self.second.width, self.second.height
            covering = covering_size(own, size)
            if max(large - small for large, small in zip(covering, size, strict=True)) > 8:  # else it is rounding
                yield (
                    f"the second pass of {_written(size)} has another shape than the first of {_written(own)}, "
                    "and shows its middle"
                )

    def _require_enlarged(self, width: int, height: int) -> None:
        """Raises UsageError if the first pass has too many pixels once it covers the second."""
        enlarged = covering_size((self.width, self.height), (width, height))
        if not has_room(*enlarged):
            raise UsageError(
                f"a second pass of {width}x{height} over {self.width}x{self.height}: the first would be enlarged to "
                f"{_written(enlarged)}, more pixels than any model draws",
                hint="give both passes about the same shape",
            )

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts and negative prompts of all passes."""
        second = () if self.second is None else (self.second.prompt, self.second.negative_prompt)
        return (self.prompt, self.negative_prompt, *second)

    @property
    def pieces(self) -> set[str]:
        """What the text encoder reads of `texts`."""
        return {piece for text in self.texts for piece in pieces_drawn(text, self.emphasis)}

    @property
    def seeds(self) -> range:
        """The seeds of the images, in order."""
        return range(self.seed, self.seed + self.count)


def random_seed() -> int:
    """Returns a seed from A1111's range, 32 bits."""
    return random.SystemRandom().randrange(2**32)


def is_size(pixels: object) -> bool:
    """Whether an image can have a side of this length: the autoencoder works on squares of 8 pixels."""
    return type(pixels) is int and 0 < pixels <= LARGEST_SIDE and pixels % 8 == 0


def require_size(pixels: int) -> int:
    """Returns `pixels`; raises UsageError, with the nearest length, if no image can have a side of this length."""
    if not is_size(pixels):
        nearest = round(max(8, min(pixels, LARGEST_SIDE)) / 8) * 8
        raise UsageError(
            f"{pixels} pixels: width and height are multiples of 8, up to {LARGEST_SIDE}",
            hint=f"the nearest is {nearest}",
        )
    return pixels


def nearest_size(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Returns the size with the ratio of `shape` and about as many pixels as `size`; its sides are multiples of 8."""
    ratio, pixels = shape[0] / shape[1], size[0] * size[1]
    width, height = (max(8, round(math.sqrt(area) / 8) * 8) for area in (pixels * ratio, pixels / ratio))
    return width, height


def covering_size(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Returns the least size with the ratio of `shape` that covers `size`, to multiples of 8, as A1111's hires fix."""
    if shape[0] * size[1] < size[0] * shape[1]:
        return size[0], size[0] * shape[1] // shape[0] // 8 * 8
    return size[1] * shape[0] // shape[1] // 8 * 8, size[1]


def _written(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def has_room(width: int, height: int) -> bool:
    """Whether an image can have this size."""
    return is_size(width) and is_size(height) and width * height <= MOST_PIXELS


def _require_sizes(width: int, height: int) -> None:
    require_size(width)
    require_size(height)
    if not has_room(width, height):
        raise UsageError(f"{width}x{height}: more pixels than any model draws", hint="at most 8192x8192")


def _require_steps(steps: int) -> None:
    if not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"{steps} steps: there are 1 to {MOST_STEPS}")


def require_prompt(prompt: str, steps: int) -> None:
    """Raises UsageError if a prompt is not text, or has more parts or changes than so many steps can draw."""
    require_text(prompt)
    parts = [part for part, _ in split_and(prompt)]
    if len(parts) > MOST_PARTS:
        raise UsageError(f"{len(parts):,} prompts are joined by AND: at most {MOST_PARTS}", hint="leave some out")
    require_room(parts, steps)
