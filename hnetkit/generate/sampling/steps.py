"""Which steps of a schedule a pass of sampling makes.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/sd_samplers_common.py and sd_samplers_timesteps.py (behavior
only).
"""

from __future__ import annotations

from typing import Any, NamedTuple

_MOST_DENOISING = 0.999
_LONGEST = 10_000
"""Steps of a schedule; beyond, its last levels are alike, and samplers that lay them out one by one take seconds."""


class Steps(NamedTuple):
    """The last steps of a schedule.

    Attributes:
        in_all: steps of the schedule, from noise to an image.
        made: how many of them are sampled, the last ones.
    """

    in_all: int
    made: int

    @classmethod
    def over_image(cls, steps: int, denoising: float) -> Steps:
        """Those of image-to-image: the share `denoising` of the steps, and one more, as in A1111."""
        return cls(steps, min(int(min(denoising, _MOST_DENOISING) * steps), steps - 1) + 1)

    @classmethod
    def over_first_pass(cls, steps: int, denoising: float) -> Steps:
        """Those of a second pass: as in A1111 all of its steps, in the share `denoising` of a longer schedule."""
        share = max(min(denoising, _MOST_DENOISING), steps / _LONGEST)
        return cls(max(steps, int(steps / share)), steps)

    def first_call(self, scheduler: Any) -> int:
        """Returns the number of the call of the UNet that they begin with, for a scheduler set to `in_all` steps.

        DDIM, PLMS and UniPC may have more times than steps (see `uniform_times`): from noise they take all of them,
        else they count from the end.
        """
        if self.made == self.in_all:
            return 0
        in_all = getattr(scheduler, "number_of_times", self.in_all)
        return (in_all - self.made) * int(scheduler.order)
