"""Compiles what the tables give GPUs, without one, and prints what came out as JSON.

    python ahead_of_time.py [--all | --fp16-sums] CAPABILITY...        80 86 89 90 100 120, for instance

Without ``--all``, of each configuration the builds that need most: with layer norms, first in the stack, and with a sum
in fp32.

Run without TRITON_INTERPRET: kernels that are defined for the interpreter cannot be compiled.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from hnetkit.kernels.configs import FP16_DEPTH, NORM_ROWS, FusedTiles, Tiles, fused_tiles, gradient_tiles, linear_tiles
from hnetkit.kernels.gpu.backward import gradient_kernel
from hnetkit.kernels.gpu.fused import fused_kernel
from hnetkit.kernels.gpu.linear import linear_kernel, norm_kernel

CONTEXTS = ((128, 1280), (512, 1280), (8192, 320), (2048, 640), (2048, 1280), (32768, 640))
"""Rows and width of contexts, one for each row of the table at least."""

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
HALF, WIDE = "*fp16", "*fp32"
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);")
MATRIX = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA)")
LOCAL = re.compile(r"\b(?:LDL|STL)\b")

Signature: TypeAlias = "tuple[Any, Mapping[str, str], Mapping[str, Any]]"
"""A kernel, the types of its arguments, and its constants."""


def linear(tiles: Tiles, *, is_last: bool, norm: bool, activation: str, precision: str = "ieee") -> Signature:
    """A hidden stage that writes row statistics, or the last one of a network that takes them."""
    matrices = {"x": (tiles.rows, tiles.depth), "weight": (tiles.columns, tiles.depth)}
    pointers = {
        name: f"tensordesc<fp16[{rows}, {columns}]>" if tiles.by_descriptor else HALF
        for name, (rows, columns) in matrices.items()
    }
    pointers |= {"bias_ptr": WIDE, "strength_ptr": WIDE, "out_ptr": HALF}
    if is_last:
        pointers |= {"residual_ptr": WIDE, "total_ptr": WIDE}
        pointers |= {"shift_ptr": WIDE, "normed_ptr": WIDE} if norm else {}
    elif norm:
        pointers |= {"stats_ptr": WIDE}
    numbers = dict.fromkeys(("rows", "columns", "depth", "width", "normed_width", "strength_side"), "i32")
    numbers |= {"x_side": "i64", "residual_side": "i64", "epsilon": "fp32"}
    constants = {
        "ACTIVATION": "none" if is_last else activation,
        "IS_NORMED": is_last and norm,
        "HAS_RESIDUAL": is_last,
        "HAS_OUT": True,
        "HAS_TOTAL": is_last,
        "HAS_STATS": norm and not is_last,
        "PART": tiles.columns,
        "BY_DESCRIPTOR": tiles.by_descriptor,
        "WHOLE": True,
        "PRECISION": precision,
        "BLOCK_M": tiles.rows,
        "BLOCK_N": tiles.columns,
        "BLOCK_K": tiles.depth,
    }
    return linear_kernel, pointers | numbers, constants


def fused(tiles: FusedTiles, *, norm: bool, total: bool, is_first: bool, activation: str) -> Signature:
    """A stack of several networks of [1, 2, 1], from x or what came before; in bf16 with a sum in fp32, else fp16."""
    half = "*bf16" if total else HALF
    pointers = {"first_weight_ptr": half, "first_bias_ptr": WIDE, "last_weight_ptr": half, "last_bias_ptr": WIDE}
    pointers |= {"x_ptr": half, "strength_ptr": WIDE, "out_ptr": half}
    pointers |= {"total_ptr": WIDE} if total else {}
    pointers |= dict.fromkeys(("shift_ptr", "norm_weight_ptr", "norm_bias_ptr"), WIDE) if norm else {}
    numbers = {**dict.fromkeys(("rows", "count", "strength_side"), "i32"), "epsilon": "fp32"}
    constants = {
        "kept": 1,  # of two networks: Triton makes a constant of a number that is 1
        "HIDDEN": 640,
        "HIDDEN_WIDTH": 640,
        "ACTIVATION": activation,
        "LAST_ACTIVATION": activation if norm else "none",
        "HIDDEN_NORM": norm,
        "LAST_NORM": norm,
        "IS_FIRST": is_first,
        "HAS_TOTAL": total,
        "BLOCK_M": tiles.rows,
        "BLOCK_H": tiles.hidden,
        "STAGES": tiles.stages,
    }
    return fused_kernel, pointers | numbers, constants


def gradient(tiles: Tiles, *, activation: str) -> Signature:
    """A product of the backward pass, through an activation."""
    names = ("gradient_ptr", "weight_ptr", "before_ptr", "out_ptr", "activated_ptr")
    constants = {
        "ACTIVATION": activation,
        "HAS_BEFORE": True,
        "PRECISION": "ieee",
        "BLOCK_M": tiles.rows,
        "BLOCK_N": tiles.columns,
        "BLOCK_K": tiles.depth,
    }
    return gradient_kernel, {**dict.fromkeys(names, HALF), "rows": "i32", "columns": "i32", "depth": "i32"}, constants


def norm_alone() -> Signature:
    """The layer norm after the last stage, 1280 wide."""
    names = ("h_ptr", "weight_ptr", "bias_ptr", "residual_ptr", "strength_ptr", "total_ptr")
    numbers = {**dict.fromkeys(("rows", "columns", "strength_side"), "i32"), "residual_side": "i64", "epsilon": "fp32"}
    return (
        norm_kernel,
        {**dict.fromkeys(names, WIDE), "out_ptr": HALF, **numbers},
        {"HAS_TOTAL": True, "BLOCK_M": NORM_ROWS, "BLOCK_N": 2048},
    )


def source_of(what: Signature) -> ASTSource:
    """Returns a kernel as the compiler takes it, for addresses and sizes that are multiples of 16."""
    kernel, kinds, constants = what
    names = kernel.arg_names
    held = {**{name: None for name in names if name not in kinds}, **constants}
    divisible = [name for name, kind in kinds.items() if kind.startswith("*") and name != "strength_ptr"]
    divisible += [name for name in ("columns", "depth", "x_side", "residual_side") if name in kinds]
    return ASTSource(
        kernel,
        {name: kinds.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in held.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in divisible},
    )


def compiled(what: Signature, gpu: int, *, warps: int, stages: int) -> dict[str, Any]:
    """Returns what the compiler made of a kernel: memory, matrix instructions, what is in its loops."""
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    made = triton.compile(source_of(what), target=GPUTarget("cuda", gpu, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        shown = subprocess.run([CUOBJDUMP, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    loops = list(innermost_loops(shown))
    return {
        "shared": made.metadata.shared,
        "local": len(LOCAL.findall(shown)),
        "local_in_loops": sum(len(LOCAL.findall(body)) for body in loops),
        "loops": len(loops),
        "mma": len(re.findall(r"\bHMMA", shown)),
        "mma_shapes": sorted(set(re.findall(r"\bHMMA\.(\S+)", shown))),
        "wgmma": len(re.findall(r"\bHGMMA", shown)),
        "tcgen05": len(re.findall(r"\bUTCHMMA", shown)),
        "shapes": sorted(set(re.findall(r"HGMMA\.(\w+)\.F", shown))),
        "serialised": serialised(made.asm["ptx"], gpu) if "wgmma" in made.asm["ptx"] else "",
    }


def innermost_loops(shown: str) -> Iterator[str]:
    """Yields the loops that multiply matrices and hold no other such loop: from a branch's target up to the branch."""
    code = [(int(found[1], 16), found[2]) for line in shown.splitlines() if (found := INSTRUCTION.match(line))]
    spans = []
    for address, text in code:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            body = "\n".join(other for place, other in code if int(target[1], 16) <= place <= address)
            if MATRIX.search(body):
                spans.append((int(target[1], 16), address, body))
    for start, end, body in spans:
        if not any(start <= other and last <= end and (other, last) != (start, end) for other, last, _ in spans):
            yield body


def serialised(ptx: str, gpu: int) -> str:
    """Returns what the assembler warns of: warp-group products that it had to run one by one (C7510 to C7519)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx)
        command = [get_ptxas(gpu).path, "-v", f"--gpu-name=sm_{gpu}a", file, "-o", f"{file}.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return "\n".join(line for line in done.stderr.splitlines() if re.search(r"C75\d\d", line))


def all_compiled(gpus: Sequence[int], *, every: bool) -> Iterator[dict[str, Any]]:
    """Yields a row per GPU, configuration of the tables, and build: `every` one, or those that need most."""
    for gpu in gpus:
        capability = (gpu // 10, gpu % 10)
        for tiles in dict.fromkeys(linear_tiles(capability, *context) for context in CONTEXTS):
            for is_last, norm in ((False, True), (True, True), (False, False), (True, False))[: 4 if every else 2]:
                made = compiled(
                    linear(tiles, is_last=is_last, norm=norm, activation="mish"),
                    gpu,
                    warps=tiles.warps,
                    stages=tiles.stages,
                )
                yield {"kernel": "linear", "gpu": gpu, "tiles": list(tiles), "last": is_last, "norm": norm, **made}
        either = (True, False) if every else (True,)
        for is_first, norm, total in itertools.product(either, (False, True), either):
            shape = fused_tiles(capability, normed=norm)
            if shape is None:
                continue
            build = {"norm": norm, "total": total, "is_first": is_first}
            made = compiled(fused(shape, **build, activation="mish"), gpu, warps=shape.warps, stages=shape.stages)
            yield {"kernel": "fused", "gpu": gpu, "tiles": list(shape), **build, **made}
        tiles = gradient_tiles(capability)
        made = compiled(gradient(tiles, activation="mish"), gpu, warps=tiles.warps, stages=tiles.stages)
        yield {"kernel": "gradient", "gpu": gpu, "norm": False, "tiles": list(tiles), **made}
        yield {"kernel": "norm", "gpu": gpu, "norm": True, **compiled(norm_alone(), gpu, warps=4, stages=2)}


def with_fp16_sums(gpus: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields a row per GPU, configuration and stage of the linear kernel with sums in fp16."""
    for gpu in gpus:
        for tiles in dict.fromkeys(linear_tiles((gpu // 10, gpu % 10), *context) for context in CONTEXTS):
            tiles = tiles._replace(depth=FP16_DEPTH)
            for is_last in (False, True):
                what = linear(tiles, is_last=is_last, norm=False, activation="swish", precision="fp16")
                made = compiled(what, gpu, warps=tiles.warps, stages=tiles.stages)
                yield {"kernel": "linear", "gpu": gpu, "tiles": list(tiles), "last": is_last, **made}


def main() -> None:
    """Prints the version of Triton and all rows."""
    options = {option for option in sys.argv[1:] if option.startswith("--")}
    gpus = sorted(int(gpu) for gpu in set(sys.argv[1:]) - options)
    rows = list(with_fp16_sums(gpus) if "--fp16-sums" in options else all_compiled(gpus, every="--all" in options))
    json.dump({"triton": triton.__version__, "kernels": rows}, sys.stdout)


if __name__ == "__main__":
    main()
