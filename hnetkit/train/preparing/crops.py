"""Which part of an image is kept, and the size that it is brought to.

A crop keeps the middle, the part with most to see, or the one with the face. Sizes are one for all images, or the
nearest of several with about the same area.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hnetkit.errors import BadPicture, MissingPackage, UsageError
from hnetkit.images import MAX_PIXELS

if TYPE_CHECKING:
    from PIL import Image

Focus = Literal["centre", "entropy", "face"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture."""

MAX_PARTS = 500
"""Parts of one picture: the longest strips that are drawn give about a hundred."""

MAX_ENLARGED = 8
"""How often a part may be enlarged to its size, side by side."""

_LOOKED_AT = 192  # longest side in pixels of the copy that entropy is computed on
_PLACES = 33  # windows that are compared
_SHADES = 64


def crop_window(image: Image.Image, size: Size, focus: Focus) -> Box:
    """Returns the largest part of a picture that has the ratio of `size`, where `focus` wants it.

    Raises:
        MissingPackage: `focus` is ``"face"`` and OpenCV is not installed.
    """
    width, height = _largest(image.size, size)
    free = image.width - width, image.height - height
    if max(free) < 1:
        return _at(free[0] / 2, free[1] / 2, width, height)
    if focus == "face" and (face := largest_face(image)):
        middle = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
        left, top = (min(max(m - side / 2, 0), f) for m, side, f in zip(middle, (width, height), free, strict=True))
        return _at(left, top, width, height)
    share = _busiest(image, (width, height)) if focus == "entropy" else 0.5
    return _at(free[0] * share, free[1] * share, width, height)


def windows_along(image_size: Size, size: Size, overlap: float) -> list[Box]:
    """Returns parts of the ratio of `size` that together cover a picture, each overlapping the next.

    Args:
        overlap: at least this share of a part is in the next one too, 0 to 0.9.

    Raises:
        BadPicture: they would be far too small, or too many.
    """
    width, height = _largest(image_size, size)
    if width * MAX_ENLARGED < size[0]:
        raise BadPicture(
            f"a picture of {image_size[0]}x{image_size[1]} is too narrow to be split into {size[0]}x{size[1]}",
            hint="without --split, or with a smaller --size",
        )
    free = image_size[0] - width, image_size[1] - height
    long, short = (image_size[0], width) if free[0] > free[1] else (image_size[1], height)
    count = max(1, math.ceil((long - short * overlap) / (short * (1 - overlap)) - 1e-9))
    if count > MAX_PARTS:
        raise BadPicture(
            f"a picture of {image_size[0]}x{image_size[1]} would become {count:,} parts; at most {MAX_PARTS} are made",
            hint="without --split, or with a smaller --split-overlap",
        )
    shares = [number / (count - 1) for number in range(count)] if count > 1 else [0.5]
    return [_at(free[0] * share, free[1] * share, width, height) for share in shares]


def kept_share(image_size: Size, size: Size) -> float:
    """Returns the share of a picture that a crop to the ratio of `size` keeps, 0 to 1."""
    width, height = _largest(image_size, size)
    return width * height / (image_size[0] * image_size[1])


def largest_face(image: Image.Image) -> Box | None:
    """Returns the largest face seen from the front, or None.

    Raises:
        MissingPackage: OpenCV is not installed, or is one without its cascades.
    """
    import numpy as np

    grey = np.asarray(image.convert("L"))
    least = max(20, min(image.size) // 12)
    found = [tuple(map(float, face)) for face in _cascade().detectMultiScale(grey, 1.1, 5, minSize=(least, least))]
    if not found:
        return None
    left, top, width, height = max(found, key=lambda face: face[2] * face[3])
    return left, top, left + width, top + height


def require_faces() -> None:
    """Accepts a machine where faces can be found.

    Raises:
        MissingPackage: OpenCV is not installed, or is one without its cascades.
    """
    _cascade()


@cache
def _cascade() -> Any:
    """OpenCV's own detector of faces; its data comes with the package, up to OpenCV 4."""
    command = 'pip install "opencv-python-headless<5"'
    if importlib.util.find_spec("cv2") is None:
        raise MissingPackage("--crop face needs OpenCV, which is not installed", hint=command)
    cv2 = importlib.import_module("cv2")
    place = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / "haarcascade_frontalface_default.xml"
    if not hasattr(cv2, "CascadeClassifier") or not place.is_file():
        raise MissingPackage(f"--crop face: OpenCV {cv2.__version__} comes without its face cascades", hint=command)
    return cv2.CascadeClassifier(str(place))


def _largest(image_size: Size, size: Size) -> tuple[float, float]:
    scale = min(image_size[0] / size[0], image_size[1] / size[1])
    return size[0] * scale, size[1] * scale


def _at(left: float, top: float, width: float, height: float) -> Box:
    return left, top, left + width, top + height


def _busiest(image: Image.Image, part: tuple[float, float]) -> float:
    """Returns how far along its free side the window with the highest entropy of shades lies, 0 to 1."""
    import numpy as np

    small = image.convert("L")
    small.thumbnail((_LOOKED_AT, _LOOKED_AT))
    shades = np.asarray(small) // (256 // _SHADES)
    if part[0] > image.width - 1:  # what is free is the height
        shades, share = shades.T, part[1] / image.height
    else:
        share = part[0] / image.width
    columns = np.stack([np.bincount(column, minlength=_SHADES) for column in shades.T])  # [position, shade]
    length = max(1, round(share * len(columns)))
    places = np.unique(np.linspace(0, len(columns) - length, _PLACES).round().astype(int))
    entropies = [_entropy(columns[place : place + length].sum(0)) for place in places]
    most = max(entropies)
    last = max(int(places[-1]), 1)
    # of windows that hold as much, the one nearest to the middle
    return min(
        (int(place) / last for place, entropy in zip(places, entropies, strict=True) if entropy >= most - 1e-9),
        key=lambda place: abs(place - 0.5),
    )


def _entropy(counts: Any) -> float:
    import numpy as np

    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


# --- sizes

Size = tuple[int, int]
"""(width, height) in pixels."""

_MULTIPLE = 8  # pixels for each latent
_STEP = 64
_WIDEST = 2.0  # ratio of a bucket's sides
_AREA = 1.05  # of the size's own, at most


def parse_training_size(text: str) -> Size:
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
