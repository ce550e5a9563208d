"""Part `tiles`: what the tables of `kernels/configs.py` are chosen from: other tiles for the contexts of UNets."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from gpu_parts import paths
from gpu_parts.clock import Bench
from gpu_parts.contexts import measured
from gpu_parts.record import Key, Row
from gpu_parts.work import BUILDS, SWISH, Contexts, Layers, context, stack
from hnetkit.kernels.configs import FusedTiles, Tiles
from hnetkit.kernels.gpu import fused, linear

CONTEXTS = (
    Layers(8192, 320, 5),
    Layers(2048, 640, 5),
    Layers(512, 1280, 5),
    Layers(128, 1280, 1),
    Layers(154, 768, 1),
    Layers(8192, 640, 5),
    Layers(2048, 1280, 6),
    Layers(154, 2048, 1),
    Layers(32768, 320, 2),
)
TOY = (Layers(5, 320, 1), Layers(5, 24, 1))
LINEAR = (
    Tiles(64, 64, 64, 4, 4, by_descriptor=True),
    Tiles(64, 64, 64, 4, 6, by_descriptor=True),
    Tiles(64, 128, 64, 4, 3, by_descriptor=True),
    Tiles(64, 128, 64, 4, 4, by_descriptor=True),
    Tiles(128, 128, 64, 8, 3, by_descriptor=True),
    Tiles(128, 128, 64, 8, 4, by_descriptor=True),
    Tiles(128, 256, 64, 8, 3, by_descriptor=True),
    Tiles(128, 256, 64, 8, 4, by_descriptor=True),
    Tiles(128, 64, 64, 4, 4, by_descriptor=True),
    Tiles(64, 256, 64, 4, 4, by_descriptor=True),
    Tiles(128, 128, 64, 8, 4),
    Tiles(64, 64, 64, 4, 4),
)
FUSED = (FusedTiles(128, 32, 8, 2), FusedTiles(128, 32, 8, 3), FusedTiles(64, 64, 8, 2), FusedTiles(64, 32, 4, 3))
TOY_TILES = (Tiles(16, 64, 64, 4, 2, by_descriptor=True), Tiles(32, 64, 64, 4, 2)), (FusedTiles(16, 32, 4, 2),)
NETWORKS = 2


def tiles(bench: Bench, stands: Callable[[Key], bool]) -> Iterator[Row]:
    """Yields a row for each context and tile: two networks, each layer of a UNet with such contexts once."""
    for layers in TOY if bench.rehearse else CONTEXTS:
        work: list[Contexts] = []
        for path, module, name, choice in _choices(layers.width, bench):
            key = Key("tiles", f"{layers.rows} x {layers.width}", SWISH, str(NETWORKS), path, str(tuple(choice)))
            if stands(key):
                continue
            if not work:
                xs = [context(seed, layers, bench.device) for seed in range(layers.count)]
                work = [Contexts(xs, 1, stack(layers.width, BUILDS[SWISH], NETWORKS, bench.device))]
            with _chosen(module, name, choice):
                yield {**key._asdict(), **measured(work, paths.Path(paths.by_kernels(path)), bench)}


def _choices(width: int, bench: Bench) -> Iterator[tuple[str, Any, str, Tiles | FusedTiles]]:
    """Yields a path, the function that gives its tiles, and what it shall give."""
    of_linear, of_fused = TOY_TILES if bench.rehearse else (LINEAR, FUSED)
    for choice in of_linear:
        yield "grouped", linear, "linear_tiles", choice
    for other in of_fused if width == 320 else ():
        yield "fused", fused, "fused_tiles", other


@contextlib.contextmanager
def _chosen(module: Any, name: str, choice: Tiles | FusedTiles) -> Iterator[None]:
    table = getattr(module, name)
    setattr(module, name, lambda *arguments, **named: choice)
    try:
        yield
    finally:
        setattr(module, name, table)
