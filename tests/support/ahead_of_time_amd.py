"""Compiles what the tables give AMD GPUs, without one, and prints what came out as JSON; see `ahead_of_time`.

python ahead_of_time_amd.py [--all] ARCHITECTURE...        gfx90a gfx942 gfx950 gfx1100 gfx1201, for instance
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from hnetkit.kernels.configs import gradient_tiles, linear_tiles
from support.ahead_of_time import Signature, gradient, linear, norm_alone, source_of

CONTEXTS = ((128, 1280), (8192, 640))
"""Rows and width of contexts, for each of the two tiles that a GPU has."""


def compiled(what: Signature, architecture: str, *, warps: int, stages: int) -> dict[str, Any]:
    """Returns what the compiler made of a kernel: memory, matrix instructions, and what it had no registers for."""
    lanes = 64 if architecture.startswith("gfx9") else 32
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = triton.compile(source_of(what), target=GPUTarget("hip", architecture, lanes), options=options)
    code: str = made.asm["amdgcn"]

    def number(name: str) -> int:
        return int(re.findall(rf"{name}:\s+(\d+)", code)[0])

    return {
        "shared": made.metadata.shared,
        "spilled": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "scratch": number("private_segment_fixed_size"),
        "mfma": len(re.findall(r"\bv_mfma", code)),
        "wmma": len(re.findall(r"\bv_wmma", code)),
    }


def all_compiled(architectures: Sequence[str], *, every: bool) -> Iterator[dict[str, Any]]:
    """Yields a row per GPU, tiles of the table, and build: `every` one, or those that need most."""
    for gpu in architectures:
        for tiles in dict.fromkeys(linear_tiles(gpu, 1, *context) for context in CONTEXTS):
            for is_last, norm in ((False, True), (True, True), (False, False), (True, False))[: 4 if every else 2]:
                what = linear(tiles, is_last=is_last, norm=norm, activation="mish")
                made = compiled(what, gpu, warps=tiles.warps, stages=tiles.stages)
                yield {"kernel": "linear", "gpu": gpu, "tiles": list(tiles), "last": is_last, "norm": norm, **made}
        tiles = gradient_tiles(gpu)
        made = compiled(gradient(tiles, activation="mish"), gpu, warps=tiles.warps, stages=tiles.stages)
        yield {"kernel": "gradient", "gpu": gpu, "tiles": list(tiles), **made}
        yield {"kernel": "norm", "gpu": gpu, **compiled(norm_alone(), gpu, warps=4, stages=2)}


def main() -> None:
    """Prints the version of Triton and all rows."""
    options = set(sys.argv[1:])
    rows = list(all_compiled(sorted(options - {"--all"}), every="--all" in options))
    json.dump({"triton": triton.__version__, "kernels": rows}, sys.stdout)


if __name__ == "__main__":
    main()
