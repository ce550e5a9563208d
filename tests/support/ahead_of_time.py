"""Compiles what the tables give GPUs, without one, and prints what came out as JSON.

    python ahead_of_time.py [--all] [--specialized | --fp16-sums] CAPABILITY...        80 86 89 90 100 120, for instance

Without ``--all``, of each configuration the builds that need most: with layer norms, first in the stack, and with a sum
in fp32. With ``--specialized`` the specialized kernel, and nothing else.

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

from hnetkit.kernels import configs
from hnetkit.kernels.configs import FP16_DEPTH, NORM_ROWS, FusedTiles, Tiles, fused_tiles, gradient_tiles, linear_rows
from hnetkit.kernels.gpu.backward import gradient_kernel
from hnetkit.kernels.gpu.fused import fused_kernel
from hnetkit.kernels.gpu.linear import linear_kernel, norm_kernel
from hnetkit.kernels.gpu.specialized import specialized_kernel

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
HALF, WIDE = "*fp16", "*fp32"
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);")
MATRIX = re.compile(r"\b(?:HMMA|HGMMA|UTCHMMA)")
LOCAL = re.compile(r"\b(?:LDL|STL)\b")

Signature: TypeAlias = "tuple[Any, Mapping[str, str], Mapping[str, Any]]"
"""A kernel, the types of its arguments, and its constants."""


def linear(
    tiles: Tiles, *, is_last: bool, norm: bool, activation: str, total: bool = True, precision: str = "ieee"
) -> Signature:
    """A hidden stage that writes row statistics, or the last one of a network that takes them."""
    matrices = {"x": (tiles.rows, tiles.depth), "weight": (tiles.columns, tiles.depth)}
    pointers = {
        name: f"tensordesc<fp16[{rows}, {columns}]>" if tiles.by_descriptor else HALF
        for name, (rows, columns) in matrices.items()
    }
    pointers |= {"tail": f"tensordesc<fp16[{tiles.tail}, {tiles.depth}]>"} if tiles.tail else {}
    pointers |= {"bias_ptr": WIDE, "strength_ptr": WIDE, "out_ptr": HALF}
    if is_last:
        pointers |= {"residual_ptr": WIDE, "total_ptr": WIDE} if total else {"residual_ptr": HALF}
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
        "HAS_TOTAL": is_last and total,
        "HAS_STATS": norm and not is_last,
        "PART": tiles.columns,
        "BY_DESCRIPTOR": tiles.by_descriptor,
        "WHOLE": True,
        "PRECISION": precision,
        "BLOCK_M": tiles.rows,
        "BLOCK_N": tiles.columns,
        "TAIL": tiles.tail,
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


def specialized(tiles: FusedTiles, *, activation: str) -> Signature:
    """A network of [1, 2, 1]."""
    boxes = {"first_head": (tiles.hidden, 256), "first_tail": (tiles.hidden, 64)}
    boxes |= {"last_head": (256, tiles.hidden), "last_tail": (64, tiles.hidden)}
    kinds = {name: f"tensordesc<fp16[{rows}, {columns}]>" for name, (rows, columns) in boxes.items()}
    kinds |= {"x_ptr": HALF, "out_ptr": HALF, "first_bias_ptr": WIDE, "last_bias_ptr": WIDE, "strength_ptr": WIDE}
    kinds |= {"rows": "i32", "x_side": "i64", "strength_side": "i32"}
    constants = {
        "HIDDEN": 640,
        "ACTIVATION": activation,
        "BLOCK_M": tiles.rows,
        "BLOCK_H": tiles.hidden,
        "STAGES": tiles.stages,
    }
    return specialized_kernel, kinds, constants


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
        "warps": made.metadata.num_warps,
        "boxes": boxes_of_descriptors(made.asm["ttgir"]),
        "freed_early": freed_early(made.asm["ttgir"]),
        "waits": sorted(set(re.findall(r"wgmma\.wait_group\.sync\.aligned (\d+)", made.asm["ptx"]))),
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


def boxes_of_descriptors(ttgir: str) -> list[list[int]]:
    """Returns the boxes of descriptors that the kernel makes itself, rows last."""
    constants = {name: int(value) for name, value in re.findall(r"(%\S+) = arith\.constant (\d+) : i32", ttgir)}
    found = re.findall(r"ttng\.tensormap_create [^\[]*\[([^\]]*)\]", ttgir)
    return [[constants[name] for name in box.split(", ")] for box in found]


def freed_early(ttgir: str) -> int:
    """Returns how often a place in shared memory is given back while a product may still read it."""
    count, running = 0, False
    for name, rest in re.findall(r"ttng\.(warp_group_dot_wait|warp_group_dot|arrive_barrier)\b([^\n]*)", ttgir):
        if name == "arrive_barrier":
            count += running
        elif name == "warp_group_dot":
            running |= "isAsync = true" in rest
        elif "pendings = 0 " in rest:
            running = False
    return count


def innermost_loops(shown: str) -> Iterator[str]:
    """Yields the loops that multiply matrices and hold no other such loop: from a branch's target up to the branch.

    What waits for the copy engine stands behind the end and branches back into its loop; that is no loop of its own.
    """
    code = [(int(found[1], 16), found[2]) for line in shown.splitlines() if (found := INSTRUCTION.match(line))]
    spans = []
    for address, text in code:
        target = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            body = "\n".join(other for place, other in code if int(target[1], 16) <= place <= address)
            if MATRIX.search(body) and not re.search(r"^EXIT", body, re.MULTILINE):
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
        for tiles in dict.fromkeys(row.tiles for row in linear_rows(capability)):
            for is_last, norm in ((False, True), (True, True), (False, False), (True, False))[: 4 if every else 2]:
                made = compiled(
                    linear(tiles, is_last=is_last, norm=norm, activation="mish"),
                    gpu,
                    warps=tiles.warps,
                    stages=tiles.stages,
                )
                yield {"kernel": "linear", "gpu": gpu, "tiles": list(tiles), "last": is_last, "norm": norm, **made}
        either = (True, False) if every else (True,)
        for row in configs.WIDE if capability == (9, 0) else ():
            for is_last, total in ((True, True), (True, False), (False, False))[: 3 if every else 1]:
                what = linear(row.tiles, is_last=is_last, norm=False, activation="mish", total=total)
                made = compiled(what, gpu, warps=row.tiles.warps, stages=row.tiles.stages)
                yield {"kernel": "wide", "gpu": gpu, "tiles": list(row.tiles), "last": is_last, "total": total, **made}
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
        for tiles in dict.fromkeys(row.tiles for row in linear_rows((gpu // 10, gpu % 10))):
            tiles = tiles._replace(depth=FP16_DEPTH)
            for is_last in (False, True):
                what = linear(tiles, is_last=is_last, norm=False, activation="swish", precision="fp16")
                made = compiled(what, gpu, warps=tiles.warps, stages=tiles.stages)
                yield {"kernel": "linear", "gpu": gpu, "tiles": list(tiles), "last": is_last, **made}


def all_specialized(gpus: Sequence[int], *, every: bool) -> Iterator[dict[str, Any]]:
    """Yields a row per GPU and activation of the specialized kernel: `every` kind of activation, or a usual one."""
    for gpu in gpus:
        tiles = configs.specialized_tiles((gpu // 10, gpu % 10))
        assert tiles is not None
        for name in ("swish", "none", "mish", "gelu", "tanh") if every else ("swish",):
            made = compiled(specialized(tiles, activation=name), gpu, warps=tiles.warps, stages=tiles.stages)
            yield {"kernel": "specialized", "gpu": gpu, "tiles": list(tiles), "activation": name, **made}


def main() -> None:
    """Prints the version of Triton and all rows."""
    options = set(sys.argv[1:])
    gpus = [int(option) for option in sorted(options) if option.isdecimal()]
    if "--fp16-sums" in options:
        rows = list(with_fp16_sums(gpus))
    else:
        rows = list((all_specialized if "--specialized" in options else all_compiled)(gpus, every="--all" in options))
    json.dump({"triton": triton.__version__, "kernels": rows}, sys.stdout)


if __name__ == "__main__":
    main()
