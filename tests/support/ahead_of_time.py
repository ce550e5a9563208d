"""Compiles what the tiles' table gives each GPU, without one, for few rows and many, and prints what came out as JSON.

Run without TRITON_INTERPRET: kernels that are defined for the interpreter cannot be compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hnetkit.kernels.configs import Tiles, linear_tiles
from hnetkit.kernels.triton_linear import linear_kernel

GPUS = (80, 86, 89, 90)
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def source(tiles: Tiles, *, residual: bool) -> ASTSource:
    """The kernel in fp16 with mish, as a hidden stage or as the last one of a network."""
    flags = {"HAS_BIAS": True, "HAS_RESIDUAL": residual, "HAS_OUT": True, "HAS_TOTAL": residual}
    blocks = {"BLOCK_ROWS": tiles.rows, "BLOCK_COLUMNS": tiles.columns, "BLOCK_DEPTH": tiles.depth}
    constants: dict[str, Any] = {"ACTIVATION": "mish", **flags, **blocks, "slope_ptr": None}
    pointers = {"x_ptr": "*fp16", "weight_ptr": "*fp16", "bias_ptr": "*fp16", "out_ptr": "*fp16"}
    wide = {"residual_ptr": "*fp32", "strength_ptr": "*fp32", "total_ptr": "*fp32"}
    if residual:
        pointers |= wide
    else:
        constants |= dict.fromkeys(wide)
    numbers = dict.fromkeys(("rows", "columns", "depth", "slope_stride"), "i32")
    kinds = pointers | numbers | dict.fromkeys(constants, "constexpr")
    names = linear_kernel.arg_names
    aligned = [name for name in names if name in pointers or name in ("columns", "depth")]
    return ASTSource(
        linear_kernel,
        {name: kinds[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def compiled(gpu: int, tiles: Tiles, *, residual: bool) -> dict[str, Any]:
    kernel = triton.compile(
        source(tiles, residual=residual),
        target=GPUTarget("cuda", gpu, 32),
        options={"num_warps": tiles.warps, "num_stages": tiles.stages},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        shown = subprocess.run([CUOBJDUMP, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "gpu": gpu,
        "tiles": list(tiles),
        "residual": residual,
        "shared": kernel.metadata.shared,
        "local": len(re.findall(r"\b(?:LDL|STL)\b", shown)),
        "mma": len(re.findall(r"\bHMMA", shown)),
        "wgmma": len(re.findall(r"\bHGMMA", shown)),
    }


def main() -> None:
    """Prints one JSON array."""
    results = [
        compiled(gpu, linear_tiles((gpu // 10, gpu % 10), rows), residual=residual)
        for gpu in GPUS
        for rows in (1, 1 << 20)
        for residual in (False, True)
    ]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
