"""Stacks on a GPU, each path side by side: right first, then how long. Needs torch and Triton and this checkout alone.

    python benchmarks/gpu.py --part isolated --budget 500
    TRITON_INTERPRET=1 python benchmarks/gpu.py --part isolated --rehearse      # the same at toy sizes, without a GPU

`isolated` applies stacks to the contexts of all self-attention layers of one UNet step, K and V, under CUDA graphs.
Rows go to `results/gpu.csv` as they come; a row that stands there for this commit and GPU is not measured again. A
path that computes something wrong is reported and not timed. A rehearsal writes nothing.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu.csv"


def borrow_checkout() -> None:
    """Makes `hnetkit` and `hnetkit.kernels` importable from a checkout in which nothing is installed."""
    sys.path.insert(0, str(ROOT))
    folder = ROOT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "hnetkit.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hnetkit.kernels"] = module
    spec.loader.exec_module(module)


if importlib.util.find_spec("hnetkit") is None:
    borrow_checkout()

from hnetkit.kernels import eager, grouped, reference  # noqa: E402
from hnetkit.kernels.activations import activate  # noqa: E402
from hnetkit.kernels.mlp import MLPWeights, StageWeights  # noqa: E402

STRENGTHS = (0.7, -0.4, 1.0, 0.5, 0.8)
LIMIT, DELTA_LIMIT = 1.5e-3, 1.5  # of y in fp16; of y - x, as a multiple of plain fp16's


@dataclass(frozen=True)
class Build:
    """How a network is built, in A1111's terms."""

    structure: tuple[float, ...]
    activation: str | None
    norm: bool = False


BUILDS = {
    "[1,2,1] swish": Build((1, 2, 1), "swish"),
    "[1,2,2,1] mish, layer norm": Build((1, 2, 2, 1), "mish", norm=True),
    "[1,2,1] linear": Build((1, 2, 1), None),
}
# rows of x at batch 2, width, number of self-attention layers
MODELS = {
    "SD 1.5, 512": ((8192, 320, 5), (2048, 640, 5), (512, 1280, 5), (128, 1280, 1)),
    "SD 1.5, 1024": ((32768, 320, 5), (8192, 640, 5), (2048, 1280, 5), (512, 1280, 1)),
    "SDXL, 1024": ((8192, 640, 10), (2048, 1280, 60)),
}
TOY = {"toy": ((37, 40, 2), (5, 80, 1))}


def network(seed: int, width: int, build: Build, device: str) -> MLPWeights:
    """Random fp16 weights at a scale at which the addition is about as large as x."""
    noise = torch.Generator().manual_seed(seed)
    stages = []
    widths = [int(width * part) for part in build.structure]
    for number, (before, after) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        tensors = [torch.randn(after, before, generator=noise) / before**0.5, torch.randn(after, generator=noise) / 8]
        norms = [1 + torch.randn(after, generator=noise) / 8, torch.randn(after, generator=noise) / 8]
        weight, bias, *norm = (t.to(device, torch.float16) for t in tensors + (norms if build.norm else []))
        stages.append(StageWeights(weight, bias, None if last else build.activation, None, *norm))
    return tuple(stages)


def as_a1111(x: Tensor, mlps: Sequence[MLPWeights], strengths: Tensor) -> Tensor:
    """What A1111 does: every network by itself, everything rounded to fp16."""
    for mlp, strength in zip(mlps, strengths.to(x.dtype), strict=True):
        h = x
        for stage in mlp:
            h = F.linear(h, stage.weight, stage.bias)
            if stage.activation is not None:
                h = activate(h, stage.activation, stage.slope, inplace=False)
            if stage.norm_weight is not None:
                h = F.layer_norm(h, (h.shape[-1],), stage.norm_weight, stage.norm_bias)
        x = x + h * strength
    return x


Apply = Callable[[Tensor, Sequence[MLPWeights], Tensor], Tensor]
PATHS: dict[str, Apply] = {"as A1111": as_a1111, "eager": eager.apply, "grouped": grouped.apply}


@dataclass
class Layer:
    """One kind of layer: x [rows, width], the networks of K and of V, and how many layers are like it."""

    x: Tensor
    sides: tuple[list[MLPWeights], list[MLPWeights]]
    strengths: Tensor
    count: int

    def run(self, apply: Apply) -> tuple[Tensor, Tensor]:
        k, v = (apply(self.x, mlps, self.strengths) for mlps in self.sides)
        return k, v

    @property
    def flops(self) -> int:
        weights = sum(stage.weight.numel() for side in self.sides for mlp in side for stage in mlp)
        return 2 * weights * len(self.x) * self.count


def layers_of(shapes: Sequence[tuple[int, int, int]], build: Build, count: int, device: str) -> Iterator[Layer]:
    for rows, width, layers in shapes:
        x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows)).to(device, torch.float16)
        sides = tuple([network(100 * side + n, width, build, device) for n in range(count)] for side in (1, 2))
        yield Layer(x, sides, torch.tensor(STRENGTHS[:count], device=device), layers)


def error(layer: Layer, apply: Apply) -> str | None:
    """Says how a path is wrong on some rows of a layer; None where it is right."""
    part = Layer(layer.x[:256].contiguous(), layer.sides, layer.strengths, 1)
    for side, got, plain in zip("kv", part.run(apply), part.run(as_a1111), strict=True):
        mlps = part.sides["kv".index(side)]
        truth = reference.apply(part.x.float(), mlps, part.strengths).double()
        delta = (truth - part.x.double()).norm()
        off, usual = ((y.double() - truth).norm() for y in (got, plain))
        if (
            not torch.isfinite(got).all()
            or off / truth.norm() > LIMIT
            or off / delta > DELTA_LIMIT * usual / delta + 1e-5
        ):
            return f"{side} is {off / truth.norm():.1e} off"
    return None


def milliseconds(run: Callable[[], Any]) -> list[float]:
    """Returns the times of 20 replays of a CUDA graph, warm."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=stream):
        run()
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        captured.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times


def ceiling(size: int = 8192) -> float:
    """TFLOP/s of torch's own fp16 product of two large square matrices."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    return 2 * size**3 / statistics.median(milliseconds(lambda: a @ b)) / 1e9


def isolated(rehearse: bool, known: set[tuple[str, ...]], most: float) -> Iterator[dict[str, Any]]:
    """Yields one row per model, build, number of networks and path."""
    device = "cpu" if rehearse else "cuda"
    for (model, shapes), (name, build) in (
        (m, b) for m in (TOY if rehearse else MODELS).items() for b in BUILDS.items()
    ):
        for count in (1, 3, 5):
            layers = list(layers_of(shapes, build, count, device))
            for path, apply in PATHS.items():
                key = ("isolated", model, name, str(count), path)
                if key in known:
                    continue
                row: dict[str, Any] = dict(zip(("part", "model", "build", "networks", "path"), key, strict=True))
                wrong = next(filter(None, (error(layer, apply) for layer in layers)), None)
                if wrong:
                    yield row | {"wrong": wrong}
                    continue
                if rehearse:  # how long the interpreter takes says nothing
                    yield row
                    continue
                with torch.no_grad():
                    times = [milliseconds(lambda la=la, a=apply: la.run(a)) for la in layers]
                total = sum(statistics.median(t) * la.count for t, la in zip(times, layers, strict=True))
                spread = max((max(t) - min(t)) / statistics.median(t) for t in times)
                flops = sum(la.flops for la in layers)
                rate = flops / total / 1e9
                figures = {"ms": f"{total:.4f}", "spread": f"{spread:.2f}", "tflops": f"{rate:.1f}"}
                yield row | figures | {"of_ceiling": f"{rate / most:.3f}"}


COLUMNS = (
    *("part", "model", "build", "networks", "path", "ms", "spread", "tflops", "of_ceiling", "wrong"),
    *("gpu", "driver", "torch", "triton", "commit", "utc"),
)


def conditions() -> dict[str, str]:
    """GPU, driver, versions, commit."""
    import triton

    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    gpu, driver = platform.processor() or "cpu", ""
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return {
        **{"gpu": gpu, "driver": driver, "torch": torch.__version__, "triton": triton.__version__},
        "commit": commit.strip() or "unknown",
    }


def measured(here: dict[str, str]) -> set[tuple[str, ...]]:
    """The rows that stand for this commit and GPU."""
    if not RESULTS.exists():
        return set()
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["gpu"], row["commit"]) == (here["gpu"], here["commit"])]
    return {tuple(row[name] for name in COLUMNS[:5]) for row in rows}


def main() -> None:
    """Measures until the budget is spent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["isolated"], default="isolated")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds after which nothing new is begun")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU; writes nothing")
    options = parser.parse_args()
    started, here = time.monotonic(), conditions()
    writer: Any = csv.DictWriter(sys.stdout, COLUMNS)
    file = None
    if not options.rehearse:
        is_new = not RESULTS.exists()
        file = RESULTS.open("a", newline="")
        writer = csv.DictWriter(file, COLUMNS)
        if is_new:
            writer.writeheader()
    most = 0.0 if options.rehearse else ceiling()
    for row in isolated(options.rehearse, set() if options.rehearse else measured(here), most):
        writer.writerow(row | here | {"utc": datetime.now(timezone.utc).isoformat(timespec="seconds")})
        if file is not None:
            file.flush()
            print(row, flush=True)
        if time.monotonic() - started > options.budget:
            break


if __name__ == "__main__":
    main()
