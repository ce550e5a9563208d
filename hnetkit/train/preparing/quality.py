"""Warnings about the images of a training, before hours go into them. Imports no torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hnetkit.images import as_gray, has_more, has_other_colors, open_rgb, read_image
from hnetkit.prompts.tags import split_tags
from hnetkit.train.captions import caption_of, says_file_name
from hnetkit.train.preparing.crops import Size, buckets_of, nearest
from hnetkit.train.preparing.images import name_some

FEW = 10
"""With fewer images a network learns them by heart, and not what they have in common."""

_SIDE = 8
_SAME_BITS = 4  # most different bits, of 64, of two difference hashes of the same image
_SAME_COLOR = 6.0  # largest mean difference, of 255, of the colors of the same image
_RATIO = 1.05  # ratios that differ by less count as one


@dataclass(frozen=True, slots=True)
class ImageStats:
    """What warnings about an image are made from.

    Attributes:
        path: of its file.
        size: (width, height) in pixels, as it is seen.
        caption: as training would read it; may be empty.
        sha256: of the file's bytes.
        dhash: 8 bytes, a difference hash: where brightness rises from one of 9 x 8 cells to the next.
        colors: of 8 x 8 cells, 192 bytes, RGB.
        has_more: whether its file holds further images, which are not read.
        has_other_colors: whether viewers show it in other colors, by its color profile.
    """

    path: Path
    size: Size
    caption: str
    sha256: str
    dhash: bytes
    colors: bytes
    has_more: bool = False
    has_other_colors: bool = False

    @classmethod
    def of(cls, path: Path) -> ImageStats:
        """Returns the statistics of one image file.

        Raises:
            BadPicture: it cannot be read.
            HnetkitError: its caption cannot be read, see `caption_of`.
        """
        data = read_image(path)
        image, sha256 = open_rgb(path, data), hashlib.sha256(data).hexdigest()
        more, other_colors = has_more(path, data), has_other_colors(path, data)
        del data
        gray = as_gray(image).resize((_SIDE + 1, _SIDE)).tobytes()
        rows = [gray[start : start + _SIDE + 1] for start in range(0, len(gray), _SIDE + 1)]
        bits = "".join("1" if right > left else "0" for row in rows for left, right in pairwise(row))
        colors = image.resize((_SIDE, _SIDE)).tobytes()
        dhash = int(bits, 2).to_bytes(8, "big")
        return cls(path, image.size, caption_of(path), sha256, dhash, colors, more, other_colors)


def warnings_about(images: Sequence[ImageStats], *, size: Size | None = None, buckets: bool = False) -> Iterator[str]:
    """Yields what is odd about the images of a folder, one line each.

    Args:
        size: that they will be resized to; None if they stay as they are.
        buckets: whether each is resized to the nearest of several sizes.
    """
    if len(images) < FEW:
        yield f"{_count(images)} few: with less than {FEW} a network learns them by heart"
    if size:
        sizes = buckets_of(size) if buckets else [size]
        if small := [image.path.name for image in images if is_small(image.size, nearest(image.size, sizes))]:
            yield f"{_count(small)} smaller than {size[0]}x{size[1]} and scaled up: {name_some(small)}"
    for first, others in alike(images).items():
        names = [images[other].path.name for other in others]
        same = all(images[other].sha256 == images[first].sha256 for other in others)
        yield f"{images[first].path.name} is there more than once{'' if same else ', or nearly'}: {name_some(names)}"
    if size and not buckets and (ratios := mixed_ratios([image.size for image in images])) > 1:
        yield f"the pictures have {ratios} different ratios, and all are cropped to one: --buckets crops less"
    yield from further_warnings([image.path.name for image in images if image.has_more])
    yield from profile_warnings([image.path.name for image in images if image.has_other_colors])
    if empty := [image.path.name for image in images if not image.caption.strip()]:
        yield f"{_count(empty)} without a caption: {name_some(empty)}"
    yield from file_name_warnings([image.path.name for image in images if says_file_name(image.caption, image.path)])


def further_warnings(names: Sequence[str]) -> Iterator[str]:
    """Yields a line if files with these names hold several images."""
    if names:
        holds = "1 file holds" if len(names) == 1 else f"{len(names):,} files hold"
        yield f"{holds} several pictures, and only the first is used: {name_some(names)}"


def file_name_warnings(names: Sequence[str]) -> Iterator[str]:
    """Yields a line if files with these names have no other captions than their names."""
    if names:
        has = "1 picture has its file name as its" if len(names) == 1 else f"{len(names):,} pictures have file names as"
        yield f"{has} caption{'s' if len(names) > 1 else ''}, which training reads as words: {name_some(names)}"


def profile_warnings(names: Sequence[str]) -> Iterator[str]:
    """Yields a line if files with these names have color profiles that viewers apply and training does not."""
    if names:
        has = "1 file has a color profile" if len(names) == 1 else f"{len(names):,} files have color profiles"
        yield (
            f"{has} other than sRGB, which training does not apply: it sees other colors than viewers show, unless "
            f"you save them as sRGB: {name_some(names)}"
        )


def warnings_of_each(images: Sequence[ImageStats]) -> list[list[str]]:
    """Returns for each image what is odd about it, in a few words each."""
    found: list[list[str]] = [[] if image.caption.strip() else ["no caption"] for image in images]
    for first, others in alike(images).items():
        for other in others:
            same = images[other].sha256 == images[first].sha256
            found[other].append(f"{'the same file as' if same else 'looks like'} {images[first].path.name}")
    for image, mine in zip(images, found, strict=True):
        if says_file_name(image.caption, image.path):
            mine.append("the caption is the file name")
        if any(side % 8 for side in image.size):
            mine.append("sides are not multiples of 8")
        tagged = split_tags(image.caption)
        if tagged.loras or tagged.unknown or tagged.warnings:
            mine.append("tags without effect in training")
    return found


def is_small(own: Size, size: Size) -> bool:
    """Whether an image must be enlarged to cover `size`."""
    return own[0] < size[0] or own[1] < size[1]


def mixed_ratios(sizes: Sequence[Size]) -> int:
    """Returns the number of different ratios of width and height; a ratio within 5 % of the one before is the same."""
    count, last = 0, 0.0
    for ratio in sorted(width / height for width, height in sizes):
        if ratio > last * _RATIO:
            count, last = count + 1, ratio
    return count


def alike(images: Sequence[ImageStats]) -> dict[int, list[int]]:
    """Returns the first of each group of equal or nearly equal images -> the others, as indices of `images`."""
    import numpy as np

    if not images:
        return {}
    hashes = np.array([np.frombuffer(image.dhash, np.uint8) for image in images])
    colors = np.array([np.frombuffer(image.colors, np.uint8) for image in images], dtype=np.int16)
    groups: dict[int, list[int]] = {}
    taken: set[int] = set()
    for first in range(len(images)):
        if first in taken:
            continue
        bits = np.unpackbits(hashes[first + 1 :] ^ hashes[first], axis=1).sum(1)
        near = np.flatnonzero(bits <= _SAME_BITS) + first + 1  # these are few: comparing colors is slower
        near = near[np.abs(colors[near] - colors[first]).mean(1) <= _SAME_COLOR]
        others = [int(index) for index in near if int(index) not in taken]
        if others:
            groups[first] = others
            taken |= {first, *others}
    return groups


def tag_counts(captions: Sequence[str]) -> list[tuple[str, int]]:
    """Returns the tags of captions, split at commas, with how many captions have each; the most frequent first."""
    counts = Counter(tag for caption in captions for tag in {part.strip() for part in caption.split(",")} if tag)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _count(images: Sequence[object]) -> str:
    return "1 picture is" if len(images) == 1 else f"{len(images)} pictures are"
