"""Sizes that pictures are brought to: one for all, or the nearest of several with about the same area."""

from __future__ import annotations

import math
import re

from hnetkit.errors import UsageError
from hnetkit.images import MAX_PIXELS

Size = tuple[int, int]
"""(width, height) in pixels."""

_MULTIPLE = 8  # pixels for each latent
_STEP = 64
_WIDEST = 2.0  # ratio of a bucket's sides
_AREA = 1.05  # of the size's own, at most


def read_size(text: str) -> Size:
    """Returns the size that ``"512"`` or ``"512x768"`` means.

    Raises:
        UsageError: it means none, a side is no multiple of 8, or no picture may be so large.
    """
    found = re.fullmatch(r"(\d{1,5})(?:[xX](\d{1,5}))?", text.strip())
    if not found:
        raise UsageError(f"{text}: not a size", hint="--size 512, or --size 512x768 for width and height")
    size = int(found[1]), int(found[2] or found[1])
    if any(side % _MULTIPLE or not side for side in size):
        raise UsageError(f"{text}: sides are multiples of {_MULTIPLE}", hint="--size 512")
    if size[0] * size[1] > MAX_PIXELS:
        raise UsageError(f"{text}: more pixels than a picture may have", hint="--size 512")
    return size


def buckets_of(size: Size) -> list[Size]:
    """Returns sizes with about the area of `size`, at most 2:1, widest last; `size` is one of them.

    Sides are multiples of 64 pixels; for areas below 512 x 512, of an eighth of the square's side.
    """
    area = size[0] * size[1]
    step = min(_STEP, max(_MULTIPLE, int(math.sqrt(area) / 8) // _MULTIPLE * _MULTIPLE))
    found = {size}
    for width in range(step, int(math.sqrt(area * _WIDEST)) + 1, step):
        height = int(area * _AREA / width) // step * step
        if height and max(width, height) <= _WIDEST * min(width, height):
            found |= {(width, height), (height, width)}
    return sorted(found, key=lambda one: (one[0] / one[1], one))


def nearest(size: Size, buckets: list[Size]) -> Size:
    """Returns the bucket of which a picture of this size loses least; of several, the largest."""
    ratio = math.log(size[0] / size[1])
    return min(buckets, key=lambda one: (round(abs(math.log(one[0] / one[1]) - ratio), 6), -one[0] * one[1]))
