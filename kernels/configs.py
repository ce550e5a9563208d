"""Tables of what runs on which GPU: one row per kind of device and size, each with its reason.

Nothing is tuned at run time: one machine gives one answer. A row changes only with a measurement that is committed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from hnetkit.errors import KernelUnavailable

Capability: TypeAlias = tuple[int, int]
"""Compute capability of a CUDA device: (8, 0) is A100, (8, 6) RTX 30, (8, 9) RTX 40, (9, 0) H100, (12, 0) RTX 50."""

Architecture: TypeAlias = "Capability | str"
"""What tables know a GPU by: its compute capability or, of AMD's, its ``gcnArchName`` without features: gfx942."""

VARIABLE = "HNETKIT_KERNEL"
"""Environment variable that forces a path by its name."""

UNMEASURED = "unmeasured"


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
        (9, 0), "fused", "width 320 is bound by the traffic of its hidden layer, which stays on chip", "gpu.csv"
    ),
    KernelChoice(
        (8, 0), "grouped", "fusing gains a fifth of the bytes at most, and tiles are small: grouped until measured"
    ),
    KernelChoice((0, 0), "eager", "no matrix instructions that Triton supports"),
)


FALLBACKS: Mapping[str, tuple[str, ...]] = {"fused": ("fused", "grouped"), "grouped": ("grouped",)}
"""The paths to try, in this order, where a path is chosen; after the last comes plain torch."""


class Tiles(NamedTuple):
    """The tiles of a linear kernel.

    Attributes:
        rows, columns, depth: of a tile of 16-bit values.
        warps: per program.
        stages: loads in flight.
        by_descriptor: whether the device's copy engine loads the tiles where it can: from Hopper on.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    by_descriptor: bool = False


class LinearRow(NamedTuple):
    """`tiles` of the linear kernel for capability `least` or higher, up to a width and a number of values of x.

    Attributes:
        most_width: of x; None for any.
        most_values: rows times width; None for any.
    """

    least: Capability
    most_width: int | None
    most_values: int | None
    tiles: Tiles
    reason: str
    measured: str = UNMEASURED


_FEW_TILES = "few rows: small tiles keep more of the device busy"
_ON_H100 = "tiles_h100.csv"
LINEAR: tuple[LinearRow, ...] = (
    LinearRow((12, 0), None, 1 << 18, Tiles(64, 64, 64, 4, 3), "as 8.6: no warp-group instructions, as much memory"),
    LinearRow((12, 0), None, None, Tiles(128, 128, 32, 8, 3), "as 8.6"),
    LinearRow((9, 0), None, 1 << 18, Tiles(64, 64, 64, 4, 6, True), _FEW_TILES, _ON_H100),
    LinearRow((9, 0), None, 1 << 20, Tiles(64, 128, 64, 4, 4, True), _FEW_TILES, _ON_H100),
    LinearRow(
        (9, 0), 320, None, Tiles(64, 128, 64, 4, 3, True), "so little depth: three programs at once hide ends", _ON_H100
    ),
    LinearRow(
        (9, 0), None, 1 << 21, Tiles(64, 128, 64, 4, 3, True), "three programs at once hide each other's ends", _ON_H100
    ),
    LinearRow(
        (9, 0),
        None,
        1 << 22,
        Tiles(128, 128, 64, 8, 4, True),
        "enough tiles of this size: less is read twice",
        _ON_H100,
    ),
    LinearRow(
        (9, 0), None, None, Tiles(128, 256, 64, 8, 4, True), "enough tiles of this size: less is read twice", _ON_H100
    ),
    LinearRow((8, 6), None, 1 << 19, Tiles(64, 64, 64, 4, 3), _FEW_TILES),
    LinearRow((8, 6), None, None, Tiles(128, 128, 32, 8, 3), "with 4 warps the residual does not fit into registers"),
    LinearRow((8, 0), None, 1 << 19, Tiles(64, 64, 64, 4, 4), _FEW_TILES),
    LinearRow((8, 0), None, None, Tiles(128, 128, 64, 8, 3), "compiles without spills"),
    LinearRow((0, 0), None, None, Tiles(64, 64, 32, 4, 2), "any other device"),
)
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
    return linear_tiles(capability, 1, 1, itemsize)


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


def is_forced(path: str) -> bool:
    """Whether `HNETKIT_KERNEL` asks for this path by name."""
    return os.environ.get(VARIABLE) == path


def auto_path(capability: Architecture) -> str:
    """Returns the path for a device where none is forced: plain torch on AMD's, which no kernel has run on so far."""
    if isinstance(capability, str):
        return "eager"
    return next(choice.path for choice in AUTO if capability >= choice.least)


def linear_tiles(capability: Architecture | None, rows: int, width: int, itemsize: int = 2) -> Tiles:
    """Returns the tiles of the linear kernel.

    Args:
        capability: None in Triton's interpreter, where small tiles exercise more edges.
        rows: of x.
        width: of x, before and after the network.
        itemsize: bytes of a value; wider values get a smaller depth, so that a tile takes the same memory.
    """
    if capability is None:
        return LINEAR_INTERPRETED
    tiles = (
        _nvidia_tiles(capability, rows, width) if isinstance(capability, tuple) else amd_tiles(capability, rows * width)
    )
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


def _nvidia_tiles(capability: Capability, rows: int, width: int) -> Tiles:
    return next(
        row.tiles
        for row in LINEAR
        if capability >= row.least
        and (row.most_width is None or width <= row.most_width)
        and (row.most_values is None or rows * width <= row.most_values)
    )


def fused_tiles(capability: Architecture | None, *, normed: bool) -> FusedTiles | None:
    """Returns the tiles of the fused kernel, None where it does not run."""
    if capability is None:
        return FUSED_INTERPRETED
    if isinstance(capability, str) or capability >= (10, 0):
        return None
    return next((row.tiles for row in FUSED if capability >= row.least and row.normed == normed), None)
