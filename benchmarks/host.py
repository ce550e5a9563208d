"""What it costs the host to have a GPU do something, without a GPU: a stub stands in for the driver.

python benchmarks/host.py [--part launches|replay] [--against OTHER/.venv/bin/python --commit HASH]

    launches  an application of three networks. Kernels are compiled for a Hopper, and launches go through all of
              hnetkit's and Triton's own Python, into a driver that does nothing. So neither the driver's work nor the
              GPU's is in these times, and the copy engine's descriptors are made but not encoded.
    replay    a call of a captured UNet with as many modules as Stable Diffusion 1.5's: until its graph is launched, and
              until the call returns. The graph does nothing.

Times are CPU time, the least of many rounds. The other commit is installed in an environment of its own with the same
packages; the two take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, conditions, write

TESTS = Path(__file__).resolve().parent.parent / "tests"
COUNT, ROUNDS, CALLS, TURNS, REPLAYS = 3, 40, 50, 3, 300
UNET: dict[str, Any] = {
    "block_out_channels": (32, 64, 64, 64),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 24,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
"""Stable Diffusion 1.5's UNet, but narrow."""


def executor_of(path: str, width: int) -> Any:
    """A stack of [1, 2, 1] networks; of this commit, or as 826ece6 named what makes one."""
    sys.path.insert(0, str(TESTS))
    from support.stub_driver import install

    try:
        from hnetkit.kernels.executor import StackExecutor, pack_pair
        from hnetkit.kernels.gpu import backward, fused, linear, op
        from hnetkit.kernels.weights import StageWeights

        stub = install(backward, fused, linear, op)
    except ImportError:
        from hnetkit.kernels import backward, fused, grouped, stacked  # type: ignore[attr-defined]
        from hnetkit.kernels.mlp import StageWeights
        from hnetkit.kernels.prepared import Prepared as StackExecutor
        from hnetkit.kernels.prepared import pack_pair

        stub = install(backward, fused, grouped, stacked)
    stub.launches = None

    def mlp() -> Any:
        first, last = (torch.randn(*shape).half() for shape in ((2 * width, width), (width, 2 * width)))
        return (StageWeights(first, first[:, 0].clone(), "swish"), StageWeights(last, last[:, 0].clone()))

    return StackExecutor([pack_pair(mlp(), mlp(), path) for _ in range(COUNT)], path)


def of_launches(path: str, width: int, rows: int) -> float:
    """CPU time in us of one application, the least of all rounds."""
    os.environ["HNETKIT_KERNEL"] = path
    executor, active = executor_of(path, width), [[True] * COUNT] * 2
    x, strengths = torch.randn(rows, width).half(), torch.rand(2, COUNT)
    times = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            start = time.process_time()
            for _ in range(CALLS):
                executor.apply(x, strengths, active)
            times.append((time.process_time() - start) / CALLS * 1e6)
    return min(times)


class NoGraphs:
    """Stands in for CUDA graphs: a replay does nothing, and notes when it was launched."""

    launched = 0.0

    def __init__(self, device: torch.device) -> None:
        self.memory = 0

    @staticmethod
    def obstacle(device: torch.device) -> str | None:
        return None

    def warm(self, call: Callable[[], Any]) -> Any:
        return call()

    def record(self, call: Callable[[], Any]) -> tuple[Any, Any]:
        return object(), call()

    def replay(self, graph: Any, fill: Callable[[], None], take: Callable[[], Any]) -> Any:
        fill()
        NoGraphs.launched = time.process_time()
        return take()

    def drop(self, *graphs: Any) -> None: ...


def of_a_replay(*, until_launched: bool) -> float:
    """CPU time in us of one call of a captured UNet, the least of all."""
    from diffusers import UNet2DConditionModel

    from hnetkit.runtime.capture import captured_by

    unet, times = UNet2DConditionModel(**UNET).eval(), []
    call = {"sample": torch.randn(2, 4, 8, 8), "encoder_hidden_states": torch.randn(2, 77, UNET["cross_attention_dim"])}
    captured_by(NoGraphs, unet)
    with torch.no_grad():
        for number in range(REPLAYS + 3):  # the first is made as ever, the second is captured
            start = time.process_time()
            unet(**call, timestep=number, return_dict=False)
            times.append((NoGraphs.launched if until_launched else time.process_time()) - start)
    return min(times[3:]) * 1e6


PARTS: dict[str, dict[str, Callable[[], float]]] = {
    "launches": {
        "640, six launches": partial(of_launches, "grouped", 640, 64),
        "320, fused, one launch": partial(of_launches, "fused", 320, 256),
    },
    "replay": {
        "captured UNet, until its graph is launched": partial(of_a_replay, until_launched=True),
        "captured UNet, in all": partial(of_a_replay, until_launched=False),
    },
}


def measured_by(python: str, case: str, cache: str) -> float:
    """The same in a process of another environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTHON"))}
    environment |= {"TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    command = [python, __file__, "--case", case]
    # somewhere else: a checkout in the working folder would be imported in place of what is installed
    done = subprocess.run(command, env=environment, cwd=cache, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def measured(part: str, pythons: dict[str, str], commit: str | None) -> dict[str, Any]:
    """Returns the figures of each case of a part: all environments in turn."""
    result: dict[str, Any] = {"turns": TURNS}
    with tempfile.TemporaryDirectory() as cache:
        for case in PARTS[part]:
            turns = [{name: measured_by(python, case, cache) for name, python in pythons.items()} for _ in range(TURNS)]
            times = {name: [turn[name] for turn in turns] for name in pythons}
            least = {name: round(min(own), 1) for name, own in times.items()}
            result[case] = {"us": least, "median_us": {n: round(statistics.median(t), 1) for n, t in times.items()}}
            if commit:
                result[case]["ratio"] = round(least["here"] / least[commit], 3)
    return {**result, **conditions("torch", "triton", "diffusers")}


def main() -> None:
    cases = {case: microseconds for part in PARTS.values() for case, microseconds in part.items()}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the Python of the other commit's environment")
    parser.add_argument("--commit", help="the other commit")
    parser.add_argument("--part", choices=PARTS, help="measure this alone, and keep what is known of the other")
    parser.add_argument("--case", choices=cases, help="measure this alone, here, and print it; nothing is written")
    given = parser.parse_args()
    if given.case:
        print(cases[given.case]())
        return
    pythons = {"here": sys.executable, **({given.commit: given.against} if given.against else {})}
    file = RESULTS / "host.json"
    known = json.loads(file.read_text()) if given.part and file.exists() else {}
    parts = [given.part] if given.part else [*PARTS]
    found = {part: measured(part, pythons, given.commit) for part in parts}
    write("host", {"networks": COUNT, **{part: found.get(part, known.get(part)) for part in PARTS}})


if __name__ == "__main__":
    main()
