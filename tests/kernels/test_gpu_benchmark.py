"""`benchmarks/gpu.py` goes through at toy sizes, so that time on a GPU is spent on the GPU."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")


def test_the_rehearsal_finds_every_path_right_and_writes_nothing() -> None:
    before = sorted(SCRIPT.with_name("results").iterdir())
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(SCRIPT), "--rehearse"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [row for row in csv.reader(done.stdout.splitlines()) if row and row[0] == "isolated"]
    assert {(row[2], row[3], row[4]) for row in rows} >= {
        (build, count, path)
        for build in ("[1,2,1] swish", "[1,2,2,1] mish, layer norm", "[1,2,1] linear")
        for count in ("1", "3", "5")
        for path in ("as A1111", "eager", "grouped")
    }
    assert [row for row in rows if row[9]] == [], "a path computes something wrong"
    assert sorted(SCRIPT.with_name("results").iterdir()) == before
