"""Where results lie: one CSV, a row for each configuration, with what it was measured on."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch

from gpu_parts import ROOT

UNKNOWN = "unknown"
SOURCES = ("benchmarks/gpu.py", "benchmarks/gpu_parts", "hnetkit", "kernels")


class Key(NamedTuple):
    """What a row is about.

    Attributes:
        part: of the benchmark.
        model: the UNet and the side of its pictures.
        build: of every network; empty without networks.
        networks: their number.
        work: what is timed: ``"self"``, ``"self and text"``, or how the UNet is run.
        path: what applies the networks.
    """

    part: str
    model: str
    build: str
    networks: str
    work: str
    path: str


FIGURES = ("ms", "ms_p10", "ms_p90", "tflops", "of_ceiling", "ceiling_tflops", "kernel", "wrong")
CONDITIONS = ("gpu", "driver", "torch", "triton", "commit", "utc")
PEAK = "peak_mb"
"""Of training: the last column, which rows of before do not have."""

COLUMNS = (*Key._fields, *FIGURES, *CONDITIONS, PEAK)

Row: TypeAlias = Mapping[str, str]


class Record:
    """Rows as they are measured.

    Args:
        path: the CSV; None prints rows and keeps none.
        here: what they are measured on.
    """

    def __init__(self, path: Path | None, here: Mapping[str, str]) -> None:
        self._path = path
        self._here = here
        self._standing = set() if path is None or not path.exists() else _standing(path, here)

    def stands(self, key: Key) -> bool:
        """Whether a row is there already, for this GPU and commit; what no commit has is measured anew."""
        return key in self._standing

    def add(self, row: Row) -> None:
        """Prints a row and writes it down."""
        printed = (*Key._fields, *FIGURES, *((PEAK,) if PEAK in row else ()))
        csv.writer(sys.stdout).writerow([row.get(name, "") for name in printed])
        sys.stdout.flush()
        self._standing.add(Key(*(row[name] for name in Key._fields)))
        if self._path is None:
            return
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            utc = datetime.now(timezone.utc).isoformat(timespec="seconds")
            writer.writerow({**row, **self._here, "utc": utc})


def _standing(path: Path, here: Mapping[str, str]) -> set[Key]:
    if not here["commit"].isalnum() or here["commit"] == UNKNOWN:
        return set()
    with path.open(newline="") as file:
        return {
            Key(*(row[name] for name in Key._fields))
            for row in csv.DictReader(file)
            if (row["gpu"], row["commit"]) == (here["gpu"], here["commit"])
        }


def conditions(commit: str | None) -> dict[str, str]:
    """Returns GPU, driver, versions and commit; `commit` is for a copy of the files without git."""
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "driver": (_said(query).splitlines() or ["unknown"])[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit or this_commit(),
    }


def this_commit() -> str:
    """Returns the short hash of the checkout's commit, with a plus where the sources differ from it."""
    git = ["git", "-C", str(ROOT)]
    changed = _said([*git, "status", "--porcelain", "--", *SOURCES])
    return (_said([*git, "rev-parse", "--short", "HEAD"]) or UNKNOWN) + ("+" if changed else "")


def fault_of(fault: Exception) -> str:
    """Returns an exception in one line, and prints all of it."""
    print(fault, file=sys.stderr)
    return f"{type(fault).__name__}: {(str(fault).splitlines() or [''])[0][:200]}"


def _said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
