"""What to draw: every number that a picture depends on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hnetkit.errors import UsageError
from hnetkit.prompts.tags import require_text

if TYPE_CHECKING:
    from hnetkit.runtime.strength import Strength

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """What to draw.

    Attributes:
        prompt: what the text encoder reads: no tags.
        seed: of the first picture, 0 to `LARGEST_SEED`; each further one counts up by one.
        width, height: pixels, multiples of 8.
        sampler: one of `hnetkit.generate.samplers.SAMPLERS`.
        negative_prompt: what to steer away from; empty for nothing.
        count: how many pictures.
        stack: (name on the pipeline, strength) in stacking order; 0 is as good as absent, to the bit.

    Raises:
        UsageError: a number that cannot be meant, or a prompt that is not text.
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
    stack: tuple[tuple[str, float | Strength], ...] = ()

    def __post_init__(self) -> None:
        require_size(self.width)
        require_size(self.height)
        if self.steps < 1 or self.count < 1:
            raise UsageError(f"{self.steps} steps, {self.count} pictures: there is at least one of each")
        if not 0 <= self.seed <= LARGEST_SEED - self.count + 1:
            raise UsageError(f"seeds lie between 0 and {LARGEST_SEED}, not from {self.seed} on {self.count}")
        require_text(self.prompt)
        require_text(self.negative_prompt)


def random_seed() -> int:
    """Returns a seed from A1111's range, 32 bits."""
    return random.SystemRandom().randrange(2**32)


def is_size(pixels: object) -> bool:
    """Whether a picture can be so wide or high: the autoencoder works on squares of 8 pixels."""
    return type(pixels) is int and pixels > 0 and pixels % 8 == 0


def require_size(pixels: int) -> int:
    """Returns `pixels`; raises UsageError, with the nearest size, where a picture cannot be so wide or high."""
    if not is_size(pixels):
        nearest = max(8, round(pixels / 8) * 8)
        raise UsageError(f"{pixels} pixels: width and height are multiples of 8", hint=f"the nearest is {nearest}")
    return pixels
