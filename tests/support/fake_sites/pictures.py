"""Small pictures that differ: previews and training data."""

from __future__ import annotations

import functools
import io
import random
from typing import Literal

from PIL import Image, ImageDraw

MP4 = b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + b"\x00" * 256


@functools.lru_cache(maxsize=2048)
def picture(seed: int, size: tuple[int, int], kind: Literal["JPEG", "PNG"]) -> bytes:
    """A plain ground with a few rectangles, the same for the same seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        left, top = rng.randrange(size[0]), rng.randrange(size[1])
        corner = (left + size[0] // 4, top + size[1] // 4)
        draw.rectangle((left, top, *corner), fill=tuple(rng.randrange(256) for _ in range(3)))
    target = io.BytesIO()
    image.save(target, kind)
    return target.getvalue()
