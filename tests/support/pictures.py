"""Pictures drawn for tests of preparing them."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

GREY = (90, 110, 140)


def save(folder: Path, name: str, size: tuple[int, int] = (40, 40), colour: object = "red", **options: object) -> Path:
    """Writes a picture of one colour and returns its file."""
    path = folder / name
    mode = "RGBA" if isinstance(colour, tuple) and len(colour) == 4 else "RGB"
    Image.new(mode, size, colour).save(path, **options)  # type: ignore[arg-type]
    return path


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Returns a picture of which every part is different."""
    data = random.Random(seed).randbytes(size[0] * size[1] * 3)
    return Image.frombytes("RGB", size, data)


def different(folder: Path, count: int, size: tuple[int, int] = (64, 64)) -> list[Path]:
    """Writes pictures that nobody takes for one another."""
    paths = [folder / f"picture-{number:02}.png" for number in range(count)]
    for number, path in enumerate(paths):
        noise((8, 8), seed=number).resize(size, Image.Resampling.NEAREST).save(path)
    return paths


def face(size: tuple[int, int], at: tuple[int, int], radius: int) -> Image.Image:
    """Returns a face seen from the front, with `at` in its middle, on a plain ground."""
    image = Image.new("RGB", size, GREY)
    draw = ImageDraw.Draw(image)

    def oval(x: float, y: float, half_width: float, half_height: float, colour: tuple[int, int, int]) -> None:
        middle = at[0] + x * radius, at[1] + y * radius
        across, down = half_width * radius, half_height * radius
        draw.ellipse((middle[0] - across, middle[1] - down, middle[0] + across, middle[1] + down), fill=colour)

    oval(0, -0.03, 0.95, 1.33, (60, 40, 30))  # hair
    oval(0, 0.08, 0.75, 1.08, (225, 190, 165))
    for side in (-0.33, 0.33):
        oval(side, -0.13, 0.24, 0.15, (150, 110, 90))
        oval(side, -0.12, 0.17, 0.09, (245, 245, 245))
        oval(side, -0.12, 0.09, 0.09, (30, 20, 20))
        oval(side, -0.38, 0.25, 0.05, (50, 30, 20))
    oval(0, 0.2, 0.1, 0.22, (205, 165, 140))
    oval(0, 0.37, 0.14, 0.05, (150, 100, 85))
    oval(0, 0.67, 0.3, 0.09, (150, 60, 60))
    return image.filter(ImageFilter.GaussianBlur(radius / 40))
