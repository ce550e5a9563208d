"""Pictures as pages show them: read by our reader, made small, written anew; kept below the home by their content.

Nothing of a file but its pixels leaves: no picture is served as it lies on the disk. Where a network has none, a small
drawing of its structure stands in.
"""

from __future__ import annotations

import html
import io
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from hnetkit.errors import HnetkitError, NotFound
from hnetkit.files import is_folder_at, new_file, read_regular, stat_at
from hnetkit.images import open_rgb, read_image
from hnetkit.text import printable, shorten

SIDES = {"small": 384, "large": 1536}
"""Names of sizes -> the longest side in pixels."""
_QUALITY = 82
_MOST_KEPT = 64 << 20  # bytes of a picture that was made here
_AT_ONCE = threading.BoundedSemaphore(2)
"""Pictures are large, and so may their files be: no more than two are in memory, however many a page asks for."""


@dataclass(frozen=True, slots=True)
class Served:
    """A picture to send.

    Attributes:
        data: its file.
        kind: media type.
        tag: differs whenever the picture does.
    """

    data: bytes
    kind: str
    tag: str


class Thumbnails:
    """The pictures of one home, by content.

    Args:
        folder: of what was made small; it is made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, path: str | os.PathLike[str], size: str, *, within: Iterable[Path]) -> Served:
        """Returns a picture in a size.

        Args:
            path: of the picture.
            size: one of `SIDES`.
            within: folders one of which it has to be in, wherever links lead.

        Raises:
            NotFound: it is not there, or not in these folders.
            BadPicture: it is no picture, or one of a kind or size that is not opened.
        """
        real = os.path.realpath(path)
        if not any(is_below(real, folder) for folder in within):
            raise NotFound(f"{os.path.basename(path)}: not in a folder of the library")
        with _AT_ONCE:
            data = read_image(real)
            name = f"{blake3(data).hexdigest(32)}-{SIDES[size]}.webp"
            with suppress(OSError, ValueError):
                return Served(read_regular(self._folder / name, most=_MOST_KEPT), "image/webp", name)
            made = _small(real, data, SIDES[size])
        self._keep(name, made)
        return Served(made, "image/webp", name)

    def _keep(self, name: str, data: bytes) -> None:
        """Keeps a picture that was made small; on a full or read-only disk it is made again the next time."""
        with suppress(OSError, HnetkitError):
            self._folder.mkdir(parents=True, exist_ok=True)
            with new_file(self._folder / name, overwrite=True) as file:
                file.write(data)


def seen_at(path: str | os.PathLike[str]) -> str | None:
    """Returns what differs once another picture is at a path, without reading it; None if nothing is there."""
    with suppress(OSError):
        if (found := stat_at(path)) is not None:
            return f"{found.st_mtime_ns:x}-{found.st_size:x}"
    return None


def is_below(real: str, folder: Path) -> bool:
    """Whether a path without links is in a folder that is there."""
    return is_folder_at(folder) and Path(real).is_relative_to(os.path.realpath(folder))


def _small(path: str, data: bytes, side: int) -> bytes:
    picture = open_rgb(path, data)
    picture.thumbnail((side, side))
    kept = io.BytesIO()
    picture.save(kept, "WEBP", quality=_QUALITY)
    return kept.getvalue()


def placeholder(structure: str, activation: str, said: str = "") -> Served:
    """Returns a drawing of a network's structure: one bar for each layer, as high as it is wide.

    Args:
        structure: as a card shows it, ``"1, 2, 1"``.
        activation: of the network.
        said: why there is no picture.
    """
    layers = _numbers(structure) or [1.0]
    highest, room = max(layers), 300 / len(layers)
    bars = "".join(
        f'<rect x="{42 + room * place + room * 0.1:.1f}" y="{290 - 190 * layer / highest:.1f}" '
        f'width="{room * 0.8:.1f}" height="{190 * layer / highest:.1f}" rx="6"/>'
        for place, layer in enumerate(layers)
    )
    words = html.escape(shorten(printable(said or activation), 40))
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 384 384"><rect width="384" height="384" fill="#8a8f98"/>'
        f'<g fill="#c9ced6">{bars}</g><text x="192" y="340" text-anchor="middle" font-family="sans-serif" '
        f'font-size="22" fill="#fff">{words}</text></svg>'
    )
    return Served(drawing.encode(), "image/svg+xml", f"{structure}-{activation}-{said}")


def _numbers(structure: str) -> list[float]:
    """Returns the layers that can be drawn: at most twenty, none above the others without end."""
    with suppress(ValueError):
        layers = [float(part) for part in structure.split(",")[:20]]
        return [layer for layer in layers if 0 < layer < 1e6]
    return []
