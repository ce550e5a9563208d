"""The library at its real size: a cold scan against plain SHA-256, a warm rescan, search, start-up of the commands.

    python benchmarks/library.py [--count 40] [--megabytes 121] [--folder DIR]

`--folder` is where the big files are made (several GB); a temporary folder without it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import conditions, write

from hnetkit.formats.writing import PickleWriter, write_zip
from hnetkit.library.scan import scan
from hnetkit.network import MemorySource, TensorRef
from hnetkit.registry import Registry


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def write_network(path: Path, width: int, rng: random.Random) -> None:
    """A [1, 2, 1] network of one width, random bytes as weights."""

    def side() -> dict[str, TensorRef]:
        shapes: dict[str, tuple[int, ...]] = {
            "linear.0.weight": (2 * width, width),
            "linear.1.weight": (width, 2 * width),
        }
        shapes |= {"linear.0.bias": (2 * width,), "linear.1.bias": (width,)}
        refs = {}
        for name, shape in shapes.items():
            size = shape[0] * (shape[1] if len(shape) > 1 else 1) * 4
            refs[name] = TensorRef("fp32", shape, MemorySource(rng.randbytes(size)), 0)
        return refs

    pickled = PickleWriter()
    pickled.add_pair(width, [side(), side()], None)
    pickled.add_item("name", path.stem)
    with path.open("wb") as file:
        write_zip(file, pickled.finish(), ([ref.read()] for ref in pickled.storages))


def evict(files: list[Path]) -> None:
    """Drops the files' pages from the system's cache."""
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def plain_sha256(files: list[Path]) -> None:
    def one(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, files))


def cold_scan(folder: Path, count: int, megabytes: float) -> dict[str, Any]:
    """Scan and plain hashing in turn, three times each, with the files' pages dropped before, and in memory."""
    width = int((megabytes * 1e6 / 32) ** 0.5)
    files = [folder / f"{number}.pt" for number in range(count)]
    for number, path in enumerate(files):
        write_network(path, width, random.Random(number))

    def scanned() -> None:
        with tempfile.TemporaryDirectory() as home, Registry(Path(home) / "r.db") as registry:
            assert len(list(scan(registry, [folder]))) == count

    result: dict[str, Any] = {"files": count, "file_mb": round(files[0].stat().st_size / 1e6, 1), "goal": 0.7}
    for label, before in (("cold", lambda: evict(files)), ("in_memory", lambda: plain_sha256(files))):
        pairs = []
        for _ in range(3):
            before()
            plain = seconds(lambda: plain_sha256(files))
            before()
            pairs.append((plain, seconds(scanned)))
        result[label] = {
            "plain_sha256_s": round(statistics.median(plain for plain, _ in pairs), 2),
            "scan_s": round(statistics.median(own for _, own in pairs), 2),
            "ratio": round(statistics.median(plain / own for plain, own in pairs), 2),
        }
    return result


def warm_rescan(folder: Path, count: int = 10_000) -> dict[str, Any]:
    write_network(folder / "0.pt", 8, random.Random(0))
    data = (folder / "0.pt").read_bytes()
    for number in range(1, count):
        (folder / f"{number}.pt").write_bytes(data)
    with Registry(folder / "r.db") as registry:
        list(scan(registry, [folder]))
        times = [seconds(lambda: list(scan(registry))) for _ in range(5)]
    return {"files": count, "median_s": round(statistics.median(times), 3), "goal": 1.0}


def search(folder: Path, count: int = 10_000) -> dict[str, Any]:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(3000)]
    with Registry(folder / "s.db") as registry:
        with registry.write():
            for number in range(count):
                registry.networks.put(_network_row(number, " ".join(rng.choices(words, k=3))))
        times = []
        for _ in range(50):
            query = " ".join(rng.choices(words, k=rng.randint(1, 2)))
            times.append(seconds(lambda query=query: registry.networks.search(query)) * 1e3)
    return {
        "networks": count,
        "median_ms": round(statistics.median(times), 2),
        "worst_ms": round(max(times), 2),
        "goal": 50,
    }


def _network_row(number: int, name: str) -> dict[str, Any]:
    return {
        "content_hash": f"h1:{number:064x}",
        "name": name,
        "widths": [768],
        "layer_structure": [1, 2, 1],
        "activation": "relu",
        "layer_norm": False,
        "activate_output": False,
        "dropout": [0, 0, 0],
        "dtype": "fp32",
        "parameters": 1,
        "base_model": "sd1",
        "step": 1,
        "sd_checkpoint": None,
        "sd_checkpoint_name": "model.ckpt",
        "metadata": {},
    }


def start_up(folder: Path) -> dict[str, Any]:
    """Whole processes in turn, nine times each."""
    environment = {**os.environ, "HNETKIT_HOME": str(folder)}
    scripts = Path(sys.executable).parent

    def run(*command: str) -> float:
        return seconds(
            lambda: subprocess.run(
                [str(scripts / command[0]), *command[1:]], env=environment, check=True, capture_output=True
            )
        )

    commands = {"help": ("hnetkit", "--help"), "list": ("hnetkit", "list"), "sqlite_utils": ("sqlite-utils", "--help")}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(9):
        for name, command in commands.items():
            times[name].append(run(*command))
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(times[name], times["sqlite_utils"], strict=True)), 2)
        for name in ("help", "list")
    }
    probe = "import sys; from hnetkit.cli import run; run(['list', '-q']); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe], env=environment, capture_output=True, text=True, check=True
    )
    return {
        **{f"{name}_ms": round(statistics.median(values) * 1e3) for name, values in times.items()},
        "ratio_to_sqlite_utils": ratios,
        "torch_imported": json.loads(done.stdout.splitlines()[-1].lower()),
        "goal": 1.5,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--megabytes", type=float, default=121)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    base = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        folders = {name: base / name for name in ("big", "many", "search", "home")}
        for folder in folders.values():
            folder.mkdir()
        result = {
            **conditions("sqlite-utils", "click"),
            "cold_scan": cold_scan(folders["big"], options.count, options.megabytes),
            "warm_rescan": warm_rescan(folders["many"]),
            "search": search(folders["search"]),
            "start_up": start_up(folders["home"]),
        }
    finally:
        shutil.rmtree(base)
    write("library", result)


if __name__ == "__main__":
    main()
