"""Tables of what runs on which GPU: one row per kind of device and size, each with its reason.

Nothing is tuned at run time: one machine gives one answer. A row changes only with a measurement that is committed.
Tiles that nobody measured are chosen by `hnetkit.kernels.launch_model`, from the device's number of multiprocessors.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

from hnetkit.errors import KernelUnavailable
from hnetkit.kernels.launch_model import microseconds

Capability: TypeAlias = tuple[int, int]
"""Compute capability of a CUDA device: (8, 0) is A100, (8, 6) RTX 30, (8, 9) RTX 40, (9, 0) H100, (12, 0) RTX 50."""

Architecture: TypeAlias = "Capability | str"
"""What tables know a GPU by: its compute capability or, of AMD's, its ``gcnArchName`` without features: gfx942."""

VARIABLE = "HNETKIT_KERNEL"
"""Environment variable that forces a path by its name."""

UNMEASURED = "unmeasured"

CANDIDATE = "candidate"
"""In place of a record: the row is passed over until it is measured, except within `candidates`."""

_with_candidates = False


@contextlib.contextmanager
def candidates() -> Iterator[None]:
    """Has candidates chosen as if they had been measured: for the benchmark that decides them, and for tests."""
    global _with_candidates
    before, _with_candidates = _with_candidates, True
    try:
        yield
    finally:
        _with_candidates = before


def _counts(measured: str) -> bool:
    return measured != CANDIDATE or _with_candidates


class KernelChoice(NamedTuple):
    """The path that `HNETKIT_KERNEL=auto` takes on devices of compute capability `least` or higher.

    Attributes:
        least: the lowest compute capability that the row is for.
        path: one of `hnetkit.kernels.dispatch.PATHS`.
        reason: why this path.
        measured: a record in `benchmarks/results`, or ``"unmeasured"``.
    """

    least: Capability
    path: str
    reason: str
    measured: str = UNMEASURED


AUTO: tuple[KernelChoice, ...] = (
    KernelChoice((10, 0), "grouped", "the fused kernel was compiled for up to 9.0 only"),
    KernelChoice(
        (9, 0), "specialized", "as fused, and one half of a tile multiplies while the other activates", CANDIDATE
    ),
    KernelChoice(
        (9, 0), "fused", "width 320 is bound by the traffic of its hidden layer, which stays on chip", "gpu.csv"
    ),
    KernelChoice(
        (8, 0), "grouped", "fusing gains a fifth of the bytes at most, and tiles are small: grouped until measured"
    ),
    KernelChoice((0, 0), "eager", "no matrix instructions that Triton supports"),
)


FALLBACKS: Mapping[str, tuple[str, ...]] = {
    "specialized": ("specialized", "fused", "grouped"),
    "fused": ("fused", "grouped"),
    "grouped": ("grouped",),
}
"""The paths to try, in this order, where a path is chosen; after the last comes plain torch."""


class Tiles(NamedTuple):
    """The tiles of a linear kernel.

    Attributes:
        rows, columns, depth: of a tile of 16-bit values.
        warps: per program.
        stages: loads in flight.
        by_descriptor: whether the device's copy engine loads the tiles where it can: from Hopper on.
        tail: columns that a tile has besides `columns`, so that their number need not be a power of two.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    by_descriptor: bool = False
    tail: int = 0


class LinearRow(NamedTuple):
    """Tiles of the linear kernel for compute capability `least` or higher.

    A row that was measured holds on devices of just this capability, for x up to a width and a number of values. Of the
    others, `linear_tiles` chooses by the device's number of multiprocessors.

    Attributes:
        most_width: of x; None for any.
        most_values: rows times width; None for any.
    """

    least: Capability
    tiles: Tiles
    reason: str
    measured: str = UNMEASURED
    most_width: int | None = None
    most_values: int | None = None


_FEW_TILES = "few rows: small tiles keep more of the device busy"
_ENDS = "three programs at once hide each other's ends"
_ENOUGH = "enough tiles of this size: less is read twice"
_ON_H100 = "tiles_h100.csv"
LINEAR: tuple[LinearRow, ...] = (
    LinearRow((12, 0), Tiles(64, 64, 64, 4, 3), "as 8.6: no warp-group instructions, as much memory"),
    LinearRow((12, 0), Tiles(128, 128, 32, 8, 3), "as 8.6"),
    LinearRow((9, 0), Tiles(64, 64, 64, 4, 6, True), _FEW_TILES, _ON_H100, most_values=1 << 18),
    LinearRow((9, 0), Tiles(64, 128, 64, 4, 4, True), _FEW_TILES, _ON_H100, most_values=1 << 20),
    LinearRow((9, 0), Tiles(64, 128, 64, 4, 3, True), f"so little depth: {_ENDS}", _ON_H100, most_width=320),
    LinearRow((9, 0), Tiles(64, 128, 64, 4, 3, True), _ENDS, _ON_H100, most_values=1 << 21),
    LinearRow((9, 0), Tiles(128, 128, 64, 8, 4, True), _ENOUGH, _ON_H100, most_values=1 << 22),
    LinearRow((9, 0), Tiles(128, 256, 64, 8, 4, True), _ENOUGH, _ON_H100),
    LinearRow((8, 6), Tiles(64, 64, 64, 4, 3), _FEW_TILES),
    LinearRow((8, 6), Tiles(128, 128, 32, 8, 3), "with 4 warps the residual does not fit into registers"),
    LinearRow((8, 0), Tiles(64, 64, 64, 4, 4), _FEW_TILES),
    LinearRow((8, 0), Tiles(128, 128, 64, 8, 3), "compiles without spills"),
    LinearRow((0, 0), Tiles(64, 64, 32, 4, 2), "any other device"),
)


class WideRow(NamedTuple):
    """Tiles whose columns divide the widths of Stable Diffusion, which are 320 times a power of two.

    For compute capability `only`, products at least 640 deep, and outputs of more than `least_outputs` values.
    """

    only: Capability
    least_outputs: int
    tiles: Tiles
    reason: str
    measured: str = UNMEASURED


WIDE: tuple[WideRow, ...] = (
    WideRow(
        (9, 0), 1 << 21, Tiles(128, 256, 64, 8, 3, True, 64), "2048 x 1280: 128 programs for 132 places", CANDIDATE
    ),
    WideRow((9, 0), 1 << 20, Tiles(128, 128, 64, 8, 4, True, 32), "2048 x 640 and 512 x 2560: as many", CANDIDATE),
    WideRow((9, 0), 1 << 19, Tiles(128, 64, 64, 8, 4, True, 16), "512 x 1280: as many", CANDIDATE),
)
WIDE_DEPTH = 640
"""With less depth, small tiles that hide each other's ends are faster."""
WIDE_INTERPRETED = Tiles(16, 32, 32, 4, 2, True, 8)

LINEAR_INTERPRETED = Tiles(16, 32, 32, 4, 2, True)


class AmdRow(NamedTuple):
    """The linear kernel on AMD GPUs whose ``gcnArchName`` begins so: compiled for them, and never run on one.

    Attributes:
        prefix: of the name.
        small: tiles for up to `AMD_FEW` values of x, and for the backward pass.
        large: for more.
    """

    prefix: str
    small: Tiles
    large: Tiles
    reason: str
    measured: str = UNMEASURED


AMD_FEW = 1 << 19
_MATRIX_CORES = "compiles to MFMA without spills, with half of 64 KB of shared memory"
_WAVE_MATRIX = "compiles to WMMA without spills; deeper tiles fill the registers"
AMD: tuple[AmdRow, ...] = (
    AmdRow("gfx90a", Tiles(64, 64, 64, 4, 2), Tiles(128, 128, 64, 8, 2), _MATRIX_CORES),
    AmdRow("gfx942", Tiles(64, 64, 64, 4, 2), Tiles(128, 128, 64, 8, 2), _MATRIX_CORES),
    AmdRow("gfx950", Tiles(64, 64, 64, 4, 2), Tiles(128, 128, 64, 8, 2), "as gfx942, in 64 of 160 KB"),
    AmdRow("gfx11", Tiles(64, 64, 32, 4, 2), Tiles(128, 128, 32, 8, 2), _WAVE_MATRIX),
    AmdRow("gfx12", Tiles(64, 64, 32, 4, 2), Tiles(128, 128, 32, 8, 2), _WAVE_MATRIX),
)
"""MI200, MI300, MI350, RX 7000 and RX 9000. Older ones have no matrix instructions that Triton uses."""

FP16_SUMS = frozenset({(8, 6), (8, 9), (12, 0)})
"""RTX 30, 40 and 50, whose matrix instructions add up fp16 in fp16 at twice the rate at which they do in fp32."""

FP16_DEPTH = 32
"""So many products are added up in fp16, and their sums in fp32: with more, the error exceeds A1111's."""

NORM_ROWS, NORM_ROWS_INTERPRETED = 2, 16
"""Rows per program of the norm kernel: two of up to 2048 columns fit into the registers of 4 warps."""


def gradient_tiles(capability: Architecture | None, itemsize: int = 2) -> Tiles:
    """Returns the tiles of the backward pass: small ones, as an activation and its derivative need registers."""
    return linear_tiles(capability, 1, 1, 1, itemsize)


class FusedTiles(NamedTuple):
    """The tiles of the fused kernel.

    Attributes:
        rows: per program.
        hidden: values of the hidden layer per block.
        warps: per program.
        stages: loads in flight.
    """

    rows: int
    hidden: int
    warps: int
    stages: int


class FusedRow(NamedTuple):
    """`tiles` of the fused kernel for capability `least` or higher, for networks with or without layer norm.

    Attributes:
        tiles: None leaves such networks to the grouped kernels.
    """

    least: Capability
    normed: bool
    tiles: FusedTiles | None
    reason: str
    measured: str = UNMEASURED


FUSED: tuple[FusedRow, ...] = (
    FusedRow((9, 0), False, FusedTiles(128, 32, 8, 3), "weights are read once per 128 rows", _ON_H100),
    FusedRow((9, 0), True, None, "the norm's second pass spills: 0.91 ms, grouped 0.81 ms", _ON_H100),
    FusedRow((8, 6), False, FusedTiles(64, 16, 8, 2), "60 KB of shared memory, no spills in the loop"),
    FusedRow((8, 6), True, FusedTiles(32, 32, 4, 2), "the norm's second pass fits into registers"),
    FusedRow((8, 0), False, FusedTiles(64, 32, 8, 2), "two programs to a multiprocessor, no spills"),
    FusedRow((8, 0), True, FusedTiles(32, 32, 4, 2), "the norm's second pass fits into registers"),
)
FUSED_INTERPRETED = FusedTiles(16, 32, 4, 2)

SPECIALIZED: Mapping[Capability, FusedTiles] = {(9, 0): FusedTiles(128, 32, 4, 2)}
"""Tiles of the specialized kernel: Triton makes twelve warps of four, and compiles it without spills in its loops."""
SPECIALIZED_INTERPRETED = FusedTiles(16, 32, 4, 2)


def is_forced(path: str) -> bool:
    """Whether `HNETKIT_KERNEL` asks for this path by name."""
    return os.environ.get(VARIABLE) == path


def auto_path(capability: Architecture) -> str:
    """Returns the path for a device where none is forced: plain torch on AMD's, which no kernel has run on so far."""
    if isinstance(capability, str):
        return "eager"
    return next(choice.path for choice in AUTO if capability >= choice.least and _counts(choice.measured))


def linear_rows(capability: Capability) -> list[LinearRow]:
    """Returns the rows of the linear kernel for a capability: those of the nearest one up to it."""
    nearest = max(row.least for row in LINEAR if capability >= row.least)
    return [row for row in LINEAR if row.least == nearest]


def linear_tiles(
    capability: Architecture | None, multiprocessors: int, rows: int, width: int, itemsize: int = 2
) -> Tiles:
    """Returns the tiles of the linear kernel: what was measured, else what `hnetkit.kernels.launch_model` says.

    Args:
        capability: None in Triton's interpreter, where small tiles exercise more edges.
        multiprocessors: of the device.
        rows: of x.
        width: of x, before and after the network.
        itemsize: bytes of a value; wider values get a smaller depth, so that a tile takes the same memory.
    """
    if capability is None:
        return LINEAR_INTERPRETED
    if isinstance(capability, str):
        tiles = amd_tiles(capability, rows * width)
    else:
        tiles = _nvidia_tiles(capability, multiprocessors, rows, width)
    return tiles._replace(depth=tiles.depth * 2 // itemsize)


def amd_tiles(architecture: str, values: int) -> Tiles:
    """Returns the tiles of the linear kernel on an AMD GPU, for so many values of x.

    Raises:
        KernelUnavailable: Triton has no matrix instructions there.
    """
    row = next((row for row in AMD if architecture.startswith(row.prefix)), None)
    if row is None:
        raise KernelUnavailable(f"the kernels know no tiles for {architecture}", hint=f"unset {VARIABLE}")
    return row.small if values <= AMD_FEW else row.large


def _nvidia_tiles(capability: Capability, multiprocessors: int, rows: int, width: int) -> Tiles:
    known = linear_rows(capability)
    for row in known:
        if (
            (row.measured != UNMEASURED and row.least == capability)
            and (row.most_width is None or width <= row.most_width)
            and (row.most_values is None or rows * width <= row.most_values)
        ):
            return row.tiles

    def predicted(tiles: Tiles) -> float:
        return microseconds(rows, width, (tiles.rows, tiles.columns), capability, multiprocessors)

    return min((row.tiles for row in known), key=predicted)


def wide_tiles(capability: Architecture | None, rows: int, columns: int, depth: int) -> Tiles | None:
    """Returns wide tiles for a product of 16-bit values; None where it takes those of `linear_tiles`.

    Args:
        capability: None in Triton's interpreter.
        rows, columns: of the output of one side.
        depth: of the product.
    """
    if capability is None:
        return WIDE_INTERPRETED if _with_candidates else None
    return next(
        (
            row.tiles
            for row in WIDE
            if capability == row.only
            and depth >= WIDE_DEPTH
            and rows * columns > row.least_outputs
            and _counts(row.measured)
        ),
        None,
    )


def fused_tiles(capability: Architecture | None, *, normed: bool) -> FusedTiles | None:
    """Returns the tiles of the fused kernel, None where it does not run."""
    if capability is None:
        return FUSED_INTERPRETED
    if isinstance(capability, str) or capability >= (10, 0):
        return None
    return next((row.tiles for row in FUSED if capability >= row.least and row.normed == normed), None)


def specialized_tiles(capability: Architecture | None) -> FusedTiles | None:
    """Returns the tiles of the specialized kernel, None where it does not run."""
    if capability is None:
        return SPECIALIZED_INTERPRETED
    return SPECIALIZED.get(capability) if isinstance(capability, tuple) else None
