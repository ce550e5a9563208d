"""What is odd about the pictures of a training, before hours go into them. Needs no torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from hnetkit.images import read_image
from hnetkit.train.captions import caption_of
from hnetkit.train.preparing.crops import Size, buckets_of, nearest
from hnetkit.train.preparing.images import open_rgb

FEW = 10
"""Fewer pictures than this teach a network the pictures, not what they have in common."""

_SIDE = 8
_SAME_BITS = 4  # of 64: brightness that rises where the other's falls
_SAME_COLOUR = 6.0  # of 255, on average
_RATIO = 1.05  # sides that differ by less are of one ratio
_SHOWN = 5  # names in a warning


@dataclass(frozen=True, slots=True)
class ImageStats:
    """What warnings are made from.

    Attributes:
        path: of the picture.
        size: (width, height) in pixels, as it is seen.
        caption: as training would read it; may be empty.
        sha256: of the file's bytes.
        shape: 8 bytes, a difference hash: where brightness rises from one of 9 x 8 cells to the next.
        colours: of 8 x 8 cells, 192 bytes, RGB.
    """

    path: Path
    size: Size
    caption: str
    sha256: str
    shape: bytes
    colours: bytes

    @classmethod
    def at(cls, path: Path) -> ImageStats:
        """Returns the look of one picture file.

        Raises:
            BadPicture: it cannot be read.
            HnetkitError: its caption cannot be read, see `caption_of`.
        """
        data = read_image(path)
        image, sha256 = open_rgb(path, data), hashlib.sha256(data).hexdigest()
        del data
        grey = image.convert("L").resize((_SIDE + 1, _SIDE)).tobytes()
        rows = [grey[at : at + _SIDE + 1] for at in range(0, len(grey), _SIDE + 1)]
        bits = "".join("1" if right > left else "0" for row in rows for left, right in pairwise(row))
        # each by itself: what is hidden under transparency counts, and no second picture of this size is made
        bands = [image.getchannel(band).resize((_SIDE, _SIDE)).tobytes() for band in "RGB"]
        colours = bytes(chain.from_iterable(zip(*bands, strict=True)))
        return cls(path, image.size, caption_of(path), sha256, int(bits, 2).to_bytes(8, "big"), colours)


def warnings_about(looks: Sequence[ImageStats], *, size: Size | None = None, buckets: bool = False) -> Iterator[str]:
    """Yields what is odd about all pictures together, one line each.

    Args:
        size: what they will be brought to; None where they stay as they are.
        buckets: whether each is brought to the nearest of several sizes.
    """
    if len(looks) < FEW:
        yield f"{_count(looks)} few: with less than {FEW} a network learns them by heart"
    if size:
        sizes = buckets_of(size) if buckets else [size]
        if small := [look.path.name for look in looks if is_small(look.size, nearest(look.size, sizes))]:
            yield f"{_count(small)} smaller than {size[0]}x{size[1]} and scaled up: {_listed(small)}"
    for first, others in alike(looks).items():
        names = [looks[other].path.name for other in others]
        same = all(looks[other].sha256 == looks[first].sha256 for other in others)
        yield f"{looks[first].path.name} is there more than once{'' if same else ', or nearly'}: {_listed(names)}"
    if size and not buckets and (ratios := mixed_ratios([look.size for look in looks])) > 1:
        yield f"the pictures have {ratios} different ratios, and all are cropped to one: --buckets crops less"
    if empty := [look.path.name for look in looks if not look.caption.strip()]:
        yield f"{_count(empty)} without a caption: {_listed(empty)}"


def warnings_of_kinds(names: Sequence[str]) -> Iterator[str]:
    """Yields a line where there are pictures of kinds that are not opened; `names` are theirs."""
    if names:
        yield f"not read, of kinds that are not opened: {_listed(names)}"


def warnings_of_each(looks: Sequence[ImageStats]) -> list[list[str]]:
    """Returns for each picture what is odd about it, in a few words each."""
    found: list[list[str]] = [[] if look.caption.strip() else ["no caption"] for look in looks]
    for first, others in alike(looks).items():
        for other in others:
            same = looks[other].sha256 == looks[first].sha256
            found[other].append(f"{'the same file as' if same else 'looks like'} {looks[first].path.name}")
    for look, mine in zip(looks, found, strict=True):
        if any(side % 8 for side in look.size):
            mine.append("sides are no multiples of 8")
    return found


def is_small(own: Size, size: Size) -> bool:
    """Whether a picture must be scaled up to cover `size`."""
    return own[0] < size[0] or own[1] < size[1]


def mixed_ratios(sizes: Sequence[Size]) -> int:
    """Returns how many ratios of width and height there are, ratios within 5 % of the one before being one."""
    count, last = 0, 0.0
    for ratio in sorted(width / height for width, height in sizes):
        if ratio > last * _RATIO:
            count, last = count + 1, ratio
    return count


def alike(looks: Sequence[ImageStats]) -> dict[int, list[int]]:
    """Returns the first of each group of equal or nearly equal pictures -> the others, as places in `looks`."""
    import numpy as np

    if not looks:
        return {}
    shapes = np.array([np.frombuffer(look.shape, np.uint8) for look in looks])
    colours = np.array([np.frombuffer(look.colours, np.uint8) for look in looks], dtype=np.int16)
    groups: dict[int, list[int]] = {}
    taken: set[int] = set()
    for first in range(len(looks)):
        if first in taken:
            continue
        bits = np.unpackbits(shapes[first + 1 :] ^ shapes[first], axis=1).sum(1)
        near = np.flatnonzero(bits <= _SAME_BITS) + first + 1  # few, so that colours cost little
        near = near[np.abs(colours[near] - colours[first]).mean(1) <= _SAME_COLOUR]
        others = [int(place) for place in near if int(place) not in taken]
        if others:
            groups[first] = others
            taken |= {first, *others}
    return groups


def tag_counts(captions: Sequence[str]) -> list[tuple[str, int]]:
    """Returns the tags of captions, split at commas, with how many captions have each; the most frequent first."""
    counts = Counter(tag for caption in captions for tag in {part.strip() for part in caption.split(",")} if tag)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _count(pictures: Sequence[object]) -> str:
    return "1 picture is" if len(pictures) == 1 else f"{len(pictures)} pictures are"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
