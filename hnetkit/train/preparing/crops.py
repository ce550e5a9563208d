"""Which part of an image is kept, and the size that it is brought to.

A crop keeps the middle, the part with most to see, or the one with the face. Sizes are one for all images, or the
nearest of several with about the same area.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hnetkit.errors import BadPicture, MissingPackage, UsageError
from hnetkit.image_formats import MAX_PIXELS
from hnetkit.images import as_gray, parse_size

if TYPE_CHECKING:
    from PIL import Image

Focus = Literal["centre", "entropy", "face"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the image."""

MAX_PARTS = 500
"""Parts of one image: the longest comic strips give about a hundred."""

MAX_ENLARGED = 8
"""How many times larger than in the image the side of a part may become."""

_SMALL = 192  # longest side in pixels of the copy that entropy is computed on
_WINDOWS = 33  # that are compared
_SHADES = 64  # of gray, for entropy


def crop_window(image: Image.Image, size: Size, focus: Focus) -> Box:
    """Returns the largest part of an image with the ratio of `size`, placed as `focus` says.

    Raises:
        MissingPackage: `focus` is ``"face"`` and OpenCV is not installed.
    """
    width, height = _largest(image.size, size)
    free = image.width - width, image.height - height
    if max(free) < 1:
        return _box(free[0] / 2, free[1] / 2, width, height)
    if focus == "face" and (face := largest_face(image)):
        middle = (face[0] + face[2]) / 2, (face[1] + face[3]) / 2
        left, top = (min(max(m - side / 2, 0), f) for m, side, f in zip(middle, (width, height), free, strict=True))
        return _box(left, top, width, height)
    share = _busiest(image, (width, height)) if focus == "entropy" else 0.5
    return _box(free[0] * share, free[1] * share, width, height)


def windows_along(image_size: Size, size: Size, overlap: float) -> list[Box]:
    """Returns parts with the ratio of `size` that together cover an image, each overlapping the next.

    Args:
        overlap: at least this share of a part is in the next one, 0 to 0.9.

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
    return [_box(free[0] * share, free[1] * share, width, height) for share in shares]


def kept_share(image_size: Size, size: Size) -> float:
    """Returns the share of an image that a crop to the ratio of `size` keeps, 0 to 1."""
    width, height = _largest(image_size, size)
    return width * height / (image_size[0] * image_size[1])


def largest_face(image: Image.Image) -> Box | None:
    """Returns the largest face seen from the front, or None.

    Raises:
        MissingPackage: OpenCV is not installed, or is one without its cascades.
    """
    import numpy as np

    gray = np.asarray(as_gray(image))
    least = max(20, min(image.size) // 12)
    found = [tuple(map(float, face)) for face in _cascade().detectMultiScale(gray, 1.1, 5, minSize=(least, least))]
    if not found:
        return None
    left, top, width, height = max(found, key=lambda face: face[2] * face[3])
    return left, top, left + width, top + height


def require_faces() -> None:
    """Checks that faces can be found.

    Raises:
        MissingPackage: OpenCV is not installed, or is one without its cascades.
    """
    _cascade()


@cache
def _cascade() -> Any:
    """Returns OpenCV's own detector of faces; its data comes with the package, up to OpenCV 4."""
    command = 'pip install "opencv-python-headless<5"'
    if importlib.util.find_spec("cv2") is None:
        raise MissingPackage("--crop face needs OpenCV, which is not installed", hint=command)
    cv2 = importlib.import_module("cv2")
    data = Path(getattr(getattr(cv2, "data", None), "haarcascades", "")) / "haarcascade_frontalface_default.xml"
    if not hasattr(cv2, "CascadeClassifier") or not data.is_file():
        raise MissingPackage(f"--crop face: OpenCV {cv2.__version__} comes without its face cascades", hint=command)
    return cv2.CascadeClassifier(str(data))


def _largest(image_size: Size, size: Size) -> tuple[float, float]:
    scale = min(image_size[0] / size[0], image_size[1] / size[1])
    return size[0] * scale, size[1] * scale


def _box(left: float, top: float, width: float, height: float) -> Box:
    return left, top, left + width, top + height


def _busiest(image: Image.Image, part: tuple[float, float]) -> float:
    """Returns the position of the window with the highest entropy, 0 to 1 along the free side."""
    import numpy as np

    small = as_gray(image)
    small.thumbnail((_SMALL, _SMALL))
    shades = np.asarray(small) // (256 // _SHADES)
    if part[0] > image.width - 1:  # the free side is the height
        shades, share = shades.T, part[1] / image.height
    else:
        share = part[0] / image.width
    columns = np.stack([np.bincount(column, minlength=_SHADES) for column in shades.T])  # [position, shade]
    length = max(1, round(share * len(columns)))
    starts = np.unique(np.linspace(0, len(columns) - length, _WINDOWS).round().astype(int))
    entropies = [_entropy(columns[start : start + length].sum(0)) for start in starts]
    highest = max(entropies)
    last = max(int(starts[-1]), 1)
    # of windows with the same entropy, the one nearest to the middle
    return min(
        (int(start) / last for start, entropy in zip(starts, entropies, strict=True) if entropy >= highest - 1e-9),
        key=lambda share: abs(share - 0.5),
    )


def _entropy(counts: Any) -> float:
    import numpy as np

    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


# --- sizes

Size = tuple[int, int]
"""(width, height) in pixels."""

_MULTIPLE = 8  # pixels along a side for each latent
_STEP = 64  # pixels between the sides of buckets
_WIDEST = 2.0  # ratio of a bucket's sides
_AREA = 1.05  # largest area of a bucket, times that of the size


def parse_training_size(text: str) -> Size:
    """Returns the size that ``"512"`` or ``"512x768"`` means.

    Raises:
        UsageError: it is no size, a side is no multiple of 8, or it has too many pixels.
    """
    try:
        size = parse_size(text)
    except ValueError as error:
        hint = "--size 512, or --size 512x768 for width and height"
        raise UsageError(f"{text}: not a size", hint=hint) from error
    if any(side % _MULTIPLE or not side for side in size):
        raise UsageError(f"{text}: sides are multiples of {_MULTIPLE}", hint="--size 512")
    if size[0] * size[1] > MAX_PIXELS:
        raise UsageError(f"{text}: more pixels than a picture may have", hint="--size 512")
    return size


def buckets_of(size: Size) -> list[Size]:
    """Returns sizes with about the area of `size`, at most 2:1, the widest last; `size` is one of them.

    Sides are multiples of 64 pixels; for areas below 512 x 512, of an eighth of the square's side.
    """
    area = size[0] * size[1]
    step = min(_STEP, max(_MULTIPLE, int(math.sqrt(area) / 8) // _MULTIPLE * _MULTIPLE))
    found = {size}
    for width in range(step, int(math.sqrt(area * _WIDEST)) + 1, step):
        height = int(area * _AREA / width) // step * step
        if height and max(width, height) <= _WIDEST * min(width, height):
            found |= {(width, height), (height, width)}
    return sorted(found, key=lambda bucket: (bucket[0] / bucket[1], bucket))


def nearest(size: Size, buckets: list[Size]) -> Size:
    """Returns the bucket with which an image of this size loses least; of several, the largest."""
    ratio = math.log(size[0] / size[1])
    return min(
        buckets,
        key=lambda bucket: (round(abs(math.log(bucket[0] / bucket[1]) - ratio), 6), -bucket[0] * bucket[1]),
    )
