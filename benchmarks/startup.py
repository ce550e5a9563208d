"""CPU time of `hnetkit generate` until the bundled model has made its first sampling step, against another commit.

python benchmarks/startup.py --against OTHER/.venv/bin/python --commit HASH

The other commit is installed in an environment of its own with the same packages. The two take turns in one run, each
in a new process with one thread; the least of each counts, as whatever else the machine does only adds to it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import conditions, write

TURNS = 9
MISTAKE = ("--model", "absent")

FIRST_STEP = """
import contextlib, os, sys
import hnetkit.cli.progress as progress

@contextlib.contextmanager
def until_the_first_step(label, **how):
    def report(done, total):
        used = os.times()
        print(used.user + used.system, flush=True)
        os._exit(0)
    yield report

progress.step_progress = until_the_first_step
from hnetkit.cli import run

code = run(["generate", "a red circle", "--steps", "1", "--seed", "1", "-q", *sys.argv[1:]])
used = os.times()
print(used.user + used.system, flush=True)
os._exit(0)
"""


def cpu_seconds(python: str, home: Path, *arguments: str) -> float:
    """User and system time of one process, until its first step or its error."""
    environment = {**os.environ, "HNETKIT_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-P", "-c", FIRST_STEP, *arguments]
    ran = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=True)
    return float(ran.stdout.splitlines()[-1])


def measure(pythons: dict[str, str], home: Path, *arguments: str) -> dict[str, Any]:
    """Seconds of each, the least of its turns, and the ratio of the first to the second."""
    turns: dict[str, list[float]] = {name: [] for name in pythons}
    for _ in range(TURNS):
        for name, python in pythons.items():
            turns[name].append(round(cpu_seconds(python, home, *arguments), 2))
    least = {name: min(seconds) for name, seconds in turns.items()}
    first, second = least.values()
    return {"cpu_seconds": least, "ratio": round(first / second, 3), "turns": turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", required=True, help="the Python of the other commit's environment")
    parser.add_argument("--commit", required=True, help="the other commit")
    given = parser.parse_args()
    pythons = {"here": sys.executable, given.commit: given.against}
    with tempfile.TemporaryDirectory() as home:
        result = {
            **conditions("torch", "diffusers", "transformers"),
            "first_step": measure(pythons, Path(home)),
            "a_model_that_is_not_there": measure(pythons, Path(home), *MISTAKE),
        }
    write("startup", result)


if __name__ == "__main__":
    main()
