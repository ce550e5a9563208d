"""The gallery over 10,000 networks, against plain SQLite queries of the same rows.

python benchmarks/gallery.py [--count 10000]

The page and the search are asked for over a real connection, and so rendered; the plain query runs in this process and
gives the rows that the page shows. `first` is the page after a change of the registry, which reads all cards again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from machine import conditions, write
from ten_thousand import make

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.gallery import running

TURNS = 15
PAGE = "SELECT * FROM library ORDER BY name LIMIT 60"
SEARCH = """
SELECT library.* FROM network_text JOIN library ON library.id = network_text.rowid
WHERE network_text MATCH ? ORDER BY bm25(network_text, 10, 6, 6, 6, 3, 1, 2, 1, 1) LIMIT 60
"""


def least(call: Callable[[], object], turns: int = TURNS) -> float:
    """Returns the seconds of the fastest of several calls."""
    times = []
    for _ in range(turns):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


def measure(home: Path) -> dict[str, Any]:
    import hnetkit

    results: dict[str, Any] = {}
    with running() as server, contextlib.closing(sqlite3.connect(home / "registry.db")) as plain:
        session = requests.Session()

        def page(path: str) -> int:
            answer = session.get(f"{server.base}{path}", timeout=60)
            answer.raise_for_status()
            return len(answer.content)

        def first() -> None:
            with hnetkit.Library() as library:
                library.tag("style1", f"tag{time.monotonic_ns()}")
            started = time.perf_counter()
            page("/")
            after_change.append(time.perf_counter() - started)

        after_change: list[float] = []
        results["first_page_bytes"] = page("/")
        queries: dict[str, tuple[str, str, tuple[str, ...]]] = {
            "page": ("/", PAGE, ()),
            "search_many": ("/cards?q=style", SEARCH, ('"style"*',)),
            "search_few": ("/cards?q=word990", SEARCH, ('"word990"*',)),
        }
        for name, (path, query, values) in queries.items():
            ours = least(lambda path=path: page(path))
            bare = least(lambda query=query, values=values: plain.execute(query, values).fetchall())
            results[name] = {
                "ms": round(ours * 1e3, 1),
                "sqlite_ms": round(bare * 1e3, 1),
                "ratio": round(ours / bare, 2),
            }
        for _ in range(3):
            first()
        bare = results["page"]["sqlite_ms"]
        results["page_after_a_change"] = {
            "ms": round(min(after_change) * 1e3, 1),
            "ratio": round(min(after_change) * 1e3 / bare, 2),
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "home")
        os.environ["HNETKIT_HOME"] = str(home)
        make(Path(folder, "library"), count)
        import hnetkit

        with hnetkit.Library() as library:
            library.scan(Path(folder, "library"))
        write("gallery", {**conditions(), "networks": count, **measure(home)})


if __name__ == "__main__":
    main()
