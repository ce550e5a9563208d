"""Part `candidates`: rows of `kernels/configs.py` that are passed over until they are measured, beside those chosen.

A row of the table counts once it is 5 % faster here than what is chosen without it, with one network and with three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from gpu_parts import paths
from gpu_parts.clock import Bench
from gpu_parts.contexts import measured
from gpu_parts.paths import Path
from gpu_parts.record import Key, Row
from gpu_parts.work import BUILDS, SWISH, Contexts, Layers, context, stack
from hnetkit.kernels import configs
from hnetkit.kernels.gpu import op
from hnetkit.kernels.gpu.device import capability_of

CONTEXTS = (
    Layers(8192, 320, 5),
    Layers(2048, 640, 5),
    Layers(512, 1280, 5),
    Layers(2048, 1280, 6),
    Layers(8192, 640, 4),
)
TOY = (Layers(5, 320, 1), Layers(5, 80, 1))
COUNTS = (3, 1)
CHOSEN, CANDIDATES = "chosen", "candidates"

NARROW = {
    (CHOSEN, "fused"): Path(paths.by_kernels("fused")),
    (CANDIDATES, "specialized"): Path(paths.by_kernels("specialized", with_candidates=True)),
}
"""Of contexts 320 wide."""
WIDER = {
    (CHOSEN, "grouped"): Path(paths.by_kernels("grouped")),
    (CANDIDATES, "grouped"): Path(paths.by_kernels("grouped", with_candidates=True)),
}


def candidates(bench: Bench, stands: Callable[[Key], bool]) -> Iterator[Row]:
    """Yields a row for each context, number of networks, and choice of rows."""
    for layers in TOY if bench.rehearse else CONTEXTS:
        for count in COUNTS:
            work: list[Contexts] = []
            for (choice, name), path in (NARROW if layers.width == 320 else WIDER).items():
                key = Key("candidates", f"{layers.rows} x {layers.width}", SWISH, str(count), choice, name)
                if stands(key):
                    continue
                if name == "specialized" and not bench.rehearse and not is_steady(bench):
                    yield {**key._asdict(), "wrong": "fails its self-test"}
                    continue
                if not work:
                    xs = [context(seed, layers, bench.device) for seed in range(layers.count)]
                    work = [Contexts(xs, 1, stack(layers.width, BUILDS[SWISH], count, bench.device))]
                kernel = tiles_of(layers, bench) if (choice, name) == (CANDIDATES, "grouped") else ""
                yield {**key._asdict(), **measured(work, path, bench), "kernel": kernel}


def tiles_of(layers: Layers, bench: Bench) -> str:
    """Returns the tiles that candidates give the two products of a network of [1, 2, 1]."""
    capability, width = capability_of(torch.device(bench.device)), layers.width
    with configs.candidates():
        both = [
            configs.wide_tiles(capability, layers.rows, columns, depth)
            for columns, depth in ((2 * width, width), (width, 2 * width))
        ]
    return ", ".join("none" if tiles is None else f"{tiles.rows} x {tiles.columns} + {tiles.tail}" for tiles in both)


def is_steady(bench: Bench) -> bool:
    """Whether the specialized kernel passes its self-test; in the interpreter that takes hours and shows nothing."""
    return op.verified_path("specialized", torch.device(bench.device)) == "specialized"
