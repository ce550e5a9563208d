"""What an application of three networks costs the host, without a GPU: a stub stands in for the driver.

python benchmarks/host.py [--against OTHER/.venv/bin/python --commit HASH]

Kernels are compiled for a Hopper, and launches go through all of hnetkit's and Triton's own Python, into a driver that
does nothing. So neither the driver's work nor the GPU's is in these times, and the copy engine's descriptors are made
but not encoded. Times are CPU time, the least of many rounds. The other commit is installed in an environment of its
own with the same packages; the two take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import conditions, write

TESTS = Path(__file__).resolve().parent.parent / "tests"
COUNT, ROUNDS, CALLS, TURNS = 3, 40, 50, 3
CASES = {"640, six launches": ("grouped", 640, 64), "320, fused, one launch": ("fused", 320, 256)}


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
        from hnetkit.kernels import backward, fused, grouped, stacked
        from hnetkit.kernels.mlp import StageWeights
        from hnetkit.kernels.prepared import Prepared as StackExecutor
        from hnetkit.kernels.prepared import pack_pair

        stub = install(backward, fused, grouped, stacked)
    stub.launches = None

    def mlp() -> Any:
        first, last = (torch.randn(*shape).half() for shape in ((2 * width, width), (width, 2 * width)))
        return (StageWeights(first, first[:, 0].clone(), "swish"), StageWeights(last, last[:, 0].clone()))

    return StackExecutor([pack_pair(mlp(), mlp(), path) for _ in range(COUNT)], path)


def microseconds(path: str, width: int, rows: int) -> float:
    """CPU time of one application, the least of all rounds."""
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


def measured_by(python: str, case: str, cache: str) -> float:
    """The same in a process of another environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTHON"))}
    environment |= {"HNETKIT_KERNEL": CASES[case][0], "TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    command = [python, __file__, "--case", case]
    # somewhere else: a checkout in the working folder would be imported in place of what is installed
    done = subprocess.run(command, env=environment, cwd=cache, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", help="the Python of the other commit's environment")
    parser.add_argument("--commit", help="the other commit")
    parser.add_argument("--case", choices=CASES, help="measure this alone, here, and print it; nothing is written")
    given = parser.parse_args()
    if given.case:
        print(microseconds(*CASES[given.case]))
        return
    pythons = {"here": sys.executable, **({given.commit: given.against} if given.against else {})}
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for case in CASES:
            times = {name: [measured_by(python, case, cache) for _ in range(TURNS)] for name, python in pythons.items()}
            least = {name: round(min(own), 1) for name, own in times.items()}
            result[case] = {"us": least, "median_us": {n: round(statistics.median(t), 1) for n, t in times.items()}}
            if given.commit:
                result[case]["ratio"] = round(least["here"] / least[given.commit], 3)
    write("host", {"networks": COUNT, "turns": TURNS, **result, **conditions("torch", "triton")})


if __name__ == "__main__":
    main()
