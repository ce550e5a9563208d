"""Commands of the library over 1,000 and 10,000 networks: CPU time of each process, here and at another commit.

python benchmarks/ten_thousand.py [--against OTHER/.venv/bin/python --commit HASH] [--counts 1000 10000]

The other commit is installed in an environment of its own with the same packages. The two take turns at each command.
`growth` is how much more CPU the command takes over the larger library, start-up taken off: linear is the ratio of the
counts. `list` is also timed within one process against the same rows from SQLite, printed as CSV.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from library import write_network
from machine import conditions, write
from sync import serve, site

LIMIT_S = 240
TURNS = 7
BARE = """
SELECT files.stem, networks.base_model, networks.layer_structure, networks.activation, files.size_bytes,
    (SELECT group_concat(tag, ', ') FROM tags WHERE network_id = networks.id),
    networks.sd_checkpoint_name, networks.sd_checkpoint
FROM networks JOIN files ON files.content_hash = networks.content_hash
GROUP BY networks.id ORDER BY files.stem
"""


def make(folder: Path, count: int) -> None:
    """Tiny networks, each of another content, with a sidecar beside every tenth."""
    for number in range(count):
        path = folder / f"{number % 100:02}" / f"style{number}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_network(path, 8, random.Random(number))
        if number % 10 == 0:
            path.with_suffix(".json").write_text(json.dumps({"activation text": f"word{number}", "notes": "a note"}))


def cpu_seconds(python: str, home: Path, address: str, *arguments: str) -> float | None:
    """User and system time of one command; None if it does not end within the limit."""
    environment = {**os.environ, "HNETKIT_HOME": str(home), "HNETKIT_CIVITAI_URL": address, "OMP_NUM_THREADS": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [python, "-P", "-m", "hnetkit", *arguments]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments}: {done.returncode}: {done.stderr[-500:]}")
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)


def commands(library: Path, exported: Path, other_home: Path) -> dict[str, tuple[Path | None, tuple[str, ...]]]:
    """Name -> the home, if it is not the usual one, and the arguments; in this order."""
    return {
        "help": (None, ("--help",)),
        "scan": (None, ("scan", str(library), "-q")),
        "scan again": (None, ("scan", "-q")),
        "list": (None, ("list", "--csv")),
        "search": (None, ("search", "word990", "--json")),
        "export": (None, ("export", str(exported), "-q")),
        "import": (other_home, ("import", str(exported), "-q")),
        "repair": (None, ("repair", "-q")),
        "identify": (None, ("identify", "-q")),
    }


def measure(pythons: dict[str, str], count: int, folder: Path, address: str) -> dict[str, dict[str, float | None]]:
    """Command -> commit -> seconds."""
    make(folder / "library", count)
    result: dict[str, dict[str, float | None]] = {}
    for name, python in pythons.items():
        home = folder / f"home-{name}"
        for command, (other, arguments) in commands(
            folder / "library", folder / f"{name}.jsonl", folder / f"other-{name}"
        ).items():
            result.setdefault(command, {})[name] = cpu_seconds(python, other or home, address, *arguments)
    return result


def list_against_sqlite(home: Path) -> dict[str, float]:
    """CPU seconds of `list --csv` and of the bare query, in one process, in turn; imports done."""
    os.environ["HNETKIT_HOME"] = str(home)
    from hnetkit.cli import run

    def ours() -> None:
        assert run(["list", "--csv"]) == 0

    def bare() -> None:
        with contextlib.closing(sqlite3.connect(home / "registry.db")) as database:
            csv.writer(sys.stdout).writerows(database.execute(BARE))

    times: dict[str, list[float]] = {"list": [], "bare": []}
    for _ in range(TURNS):
        for name, call in (("list", ours), ("bare", bare)):
            times[name].append(_seconds(call))
    own, plain = (min(times[name]) for name in ("list", "bare"))
    return {"list_s": round(own, 3), "bare_s": round(plain, 3), "ratio": round(own / plain, 2), "goal": 2.0}


def _seconds(call: Callable[[], None]) -> float:
    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        started = time.process_time()
        call()
        return time.process_time() - started


def growth(small: dict[str, Any], large: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    result: dict[str, dict[str, float | None]] = {}
    for command in large:
        for name, seconds in large[command].items():
            start, before = small["help"][name], small[command][name]
            is_known = seconds is not None and before is not None and before - start > 0.02
            result.setdefault(command, {})[name] = round((seconds - start) / (before - start), 1) if is_known else None
    return {command: ratios for command, ratios in result.items() if command != "help"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--against", help="the Python of the other commit's environment")
    parser.add_argument("--commit", help="the other commit")
    parser.add_argument("--counts", nargs=2, type=int, default=(1000, 10_000))
    given = parser.parse_args()
    pythons = {"here": sys.executable, **({given.commit: given.against} if given.against else {})}
    with tempfile.TemporaryDirectory() as base, site(serve, 1, (8,), (1, 2, 1)) as (address, _, _):
        sizes = {count: measure(pythons, count, Path(base) / str(count), address) for count in given.counts}
        small, large = sizes.values()
        result = {
            **conditions("sqlite-utils"),
            "cpu_seconds": sizes,
            "growth": growth(small, large),
            "list_in_one_process": list_against_sqlite(Path(base) / str(given.counts[1]) / "home-here"),
        }
    write("ten_thousand", result)


if __name__ == "__main__":
    main()
