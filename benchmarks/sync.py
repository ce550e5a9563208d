"""Fetching against curl, over loopback: many small files and few large ones; and what the metadata of 300 models costs.

    python benchmarks/sync.py [--rounds 3]

Many are 40 files of 5 MB at Civitai and 200 in a repository of the hub, few are four of 250 MB there: a network of
[1, 3, 1] on one width, and one of [1, 3, 3, 1] on all.

The fake sites run in a process of their own. curl fetches the same addresses with the same parallelism, and sha256sum
hashes what came; hnetkit fetches, hashes, checks, installs and indexes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from machine import conditions, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
PARALLEL = 2
REPOSITORY = "someone/hypernetworks"
ALL = (320, 640, 768, 1280)


def serve(models: int, widths: tuple[int, ...], structure: tuple[float, ...], pipe: Connection) -> None:
    """A fake Civitai, until the pipe says something."""
    from support.fake_sites import Sites, World

    world = World.make(models, plain=True, widths=widths, structure=structure)
    world.build_all()
    with Sites(world) as sites:
        urls = [sites.download_url(v["id"], f["id"]) for _, v, f in world.files() if f["type"] == "Model"]
        pipe.send((sites.civitai_url, sites.token, urls))
        pipe.recv()


def serve_repository(files: int, widths: tuple[int, ...], structure: tuple[float, ...], pipe: Connection) -> None:
    """A fake hub with one repository, until the pipe says something."""
    from support import networks
    from support.fake_sites import Sites

    with tempfile.TemporaryDirectory() as folder:
        contents = {}
        for number in range(files):
            path = networks.network_file(
                Path(folder), f"net{number}.pt", widths=widths, structure=structure, activation="relu", seed=number
            )
            contents[path.name] = path.read_bytes()
            path.unlink()
        with Sites(repos={REPOSITORY: contents}) as sites:
            urls = [f"{sites.hub_url}/{REPOSITORY}/resolve/main/{name}" for name in contents]
            pipe.send((sites.hub_url, sites.hub_token, urls))
            pipe.recv()


@contextmanager
def site(serve: Callable[..., None], *args: Any) -> Iterator[tuple[str, str, list[str]]]:
    """Address, token and download addresses of a fake site in its own process."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(*args, there))
    process.start()
    there.close()  # so that a child that fails ends the wait below
    try:
        yield here.recv()
    finally:
        here.send("stop")
        process.join()


def seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def with_curl(folder: Path, urls: list[str], token: str) -> None:
    """Fetches by curl, then hashes."""
    folder.mkdir()
    lines = [f'url = "{url}"\noutput = "{folder / str(number)}.pt"' for number, url in enumerate(urls)]
    config = folder / "config"
    config.write_text("\n".join(lines))
    common = ["curl", "-sS", "-L", "--fail", "-A", "bench/1", "-H", f"Authorization: Bearer {token}"]
    subprocess.run([*common, "-Z", "--parallel-max", str(PARALLEL), "-K", str(config)], check=True)
    files = [str(path) for path in sorted(folder.glob("*.pt"))]
    assert len(files) == len(urls)
    halves = [files[start::PARALLEL] for start in range(PARALLEL)]
    hashing = [subprocess.Popen(["sha256sum", *half], stdout=subprocess.DEVNULL) for half in halves]
    assert [process.wait() for process in hashing] == [0] * PARALLEL


def with_hnetkit(home: Path, base: str, token: str, repository: str | None) -> float:
    """Fetches by hnetkit; returns the seconds of fetching and installing, without the listing."""
    from hnetkit.library.library import Library
    from hnetkit.sources import huggingface
    from hnetkit.sources.civitai import Civitai, Filters
    from hnetkit.sources.http import RateLimiter, RealClock
    from hnetkit.sources.session import FetchSession

    clock = RealClock()
    # the rate that spares the sites is not what is measured
    huggingface.RateLimiter = lambda clock, rate: RateLimiter(clock, 1e6)
    os.environ.update({"HNETKIT_HOME": str(home), "HF_ENDPOINT": base, "HF_TOKEN": token})
    with Library(home) as library:
        civitai = Civitai(clock, base=base, token=token)
        civitai.client.limiter = RateLimiter(clock, 1e6)
        session = FetchSession(library, clock=clock, site=civitai, parallel=PARALLEL, sidecars=False)
        plan = session.plan(repository or Filters(nsfw=True), all_versions=True)
        started = time.perf_counter()
        found = session.carry_out(plan)
        spent = time.perf_counter() - started
    states = Counter(result.state for result in found)
    assert set(states) <= {"done", "had"}, states  # had: one file may be listed twice
    return spent


def throughput(rounds: int, serve: Callable[..., None], *args: Any) -> dict[str, Any]:
    repository = f"hf:{REPOSITORY}" if serve is serve_repository else None
    pairs = []
    with site(serve, *args) as (base, token, urls), tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            curl, home = Path(folder) / f"curl{number}", Path(folder) / f"home{number}"
            plain = seconds(lambda curl=curl: with_curl(curl, urls, token))
            size = sum(path.stat().st_size for path in curl.glob("*.pt"))
            shutil.rmtree(curl)
            home.mkdir()
            pairs.append((plain, with_hnetkit(home, base, token, repository)))
            shutil.rmtree(home)
    return {
        "files": len(urls),
        "megabytes": round(size / 1e6, 1),
        "parallel": PARALLEL,
        "curl_and_sha256sum_s": round(statistics.median(plain for plain, _ in pairs), 2),
        "hnetkit_s": round(statistics.median(own for _, own in pairs), 2),
        "ratio": round(statistics.median(plain / own for plain, own in pairs), 2),
        "goal": 0.9,
    }


def metadata() -> dict[str, Any]:
    from hnetkit.registry import Registry
    from hnetkit.sources.civitai import Civitai, Filters
    from hnetkit.sources.http import RealClock
    from hnetkit.sources.sync import plan_sync, store_models

    with (
        site(serve, 300, (8,), (1, 2, 1)) as (base, token, _),
        tempfile.TemporaryDirectory() as folder,
        Registry(Path(folder) / "registry.db") as registry,
    ):
        started = time.process_time()
        civitai = Civitai(RealClock(), base=base, token=token)
        plan = plan_sync(registry, civitai, Filters(nsfw=True), all_versions=True)
        store_models(registry, plan.models)
        return {"models": len(plan.models), "cpu_s": round(time.process_time() - started, 2), "goal": 2.0}


def main() -> None:
    """Runs and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    record = {
        **conditions("requests", "urllib3"),
        "throughput": throughput(options.rounds, serve, 30, (320,), (1, 3, 1)),
        "many_files_of_the_hub": throughput(options.rounds, serve_repository, 200, (320,), (1, 3, 1)),
        "large_files_of_the_hub": throughput(options.rounds, serve_repository, 4, ALL, (1, 3, 3, 1)),
        "metadata": metadata(),
    }
    write("sync", record)


if __name__ == "__main__":
    main()
