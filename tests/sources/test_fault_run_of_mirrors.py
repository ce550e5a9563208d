"""A long bad day of a library whose site loses half of what it had: faults of sites, archive and mirrors, and kills.

The seed decides faults and moments. `make test` runs a part of what `make test-long` runs.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fake_sites import Sites, World, random_fault
from support.fake_sites.faults import random_mirror_fault
from support.fetching import EVERYTHING

from hnetkit.files import TEMPORARY
from hnetkit.library.library import Library
from hnetkit.registry import Registry
from hnetkit.sources.export import export_library, import_library
from hnetkit.sources.session import FetchSession

PROCESS = Path(__file__).resolve().parents[1] / "support" / "repair_process.py"
WAITING = 10  # faults that lie in wait at any time
BEFORE_IT = ("deleted", "stale", "lying", "larger", "cut", "login", "busy")


@contextmanager
def troubled(sites: Sites, rng: random.Random, count: int) -> Iterator[threading.Event]:
    """Throws faults, a few at a time, until `count` of them happened; the event says that they did."""
    over, stop = threading.Event(), threading.Event()

    def throw() -> None:
        while not stop.is_set():
            if len(sites.faults.fired) >= count:
                over.set()
                return
            while len(sites.faults.waiting) < WAITING:
                fault = random_mirror_fault(rng) if rng.random() < 0.7 else random_fault(rng)
                if fault.kind not in "DJKLMNOPTU":  # owners' doings, and what waits for requests that are not made
                    sites.faults.add(fault)
            time.sleep(0.01)

    thread = threading.Thread(target=throw, daemon=True)
    thread.start()
    try:
        yield over
    finally:
        stop.set()
        thread.join()


def start(sites: Sites) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", str(PROCESS), sites.civitai_url, sites.token]
    environment = {**os.environ, "PYTHONPATH": str(PROCESS.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(sites: Sites) -> str:
    """What a repair that nothing disturbs prints."""
    process = start(sites)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    return output


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def held(home: Path) -> dict[Path, str]:
    """Path -> sha256 of the networks that are installed and there."""
    with Registry(home / "registry.db") as registry:
        rows = registry.jobs.installs(kind="network")
    return {Path(row["path"]): row["sha256"] for row in rows if Path(row["path"]).exists()}


def lose_some(home: Path, rng: random.Random, count: int) -> set[str]:
    """Deletes some networks; returns their sha256."""
    files = held(home)
    lost = rng.sample(sorted(files), min(count, max(0, len(files) - 1)))
    for path in lost:
        path.unlink()
    return {files[path] for path in lost}


def moved(sites: Sites, rng: random.Random, home: Path, tmp_path: Path, session: FetchSession) -> list[set[str]]:
    """Lets half of the site vanish, with mirrors of all characters, and imports its library here.

    A mirror that is right comes at a random place among the others.

    Returns:
        The sha256 of the files of each network that it had.
    """
    session.sync(EVERYTHING, all_versions=True)
    wanted = [{file["sha256"] for file in row["files"]} for row in session.library.networks()]
    export_library(session.library, tmp_path / "library.jsonl")
    for _, _, file in list(sites.world.files()):
        others = rng.sample(BEFORE_IT, rng.randint(0, 4))
        others.insert(rng.randint(0, len(others)), "right")
        sites.civarchive.keep(file["id"], *others)
    for number, id in enumerate(sites.world.ids()):
        if number % 2:
            (sites.world.remove if number % 4 == 1 else sites.world.archive)(id)
    with Library(home) as library:
        import_library(library, tmp_path / "library.jsonl")
    sites.clear()
    return wanted


@pytest.mark.parametrize(
    ("seed", "models", "faults", "kills"),
    [
        pytest.param(1, 8, 60, 4, id="a part"),
        pytest.param(2, 40, 1000, 50, id="whole", marks=pytest.mark.long),
    ],
)
def test_after_any_number_of_faults_and_kills_every_file_is_the_one_that_it_was(
    home: Path,
    tmp_path: Path,
    open_session: Callable[..., FetchSession],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    models: int,
    faults: int,
    kills: int,
) -> None:
    rng = random.Random(seed)
    with Sites(World.make(models, plain=True, widths=(64,))) as sites:
        monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", sites.civarchive_url)
        new = tmp_path / "new"
        wanted = moved(sites, rng, new, tmp_path, open_session(sites))
        sites.needs_token = True
        monkeypatch.setenv("HNETKIT_HOME", str(new))
        killed, codes = 0, []
        with troubled(sites, rng, faults) as over:
            while not over.is_set() or killed < kills:
                process = start(sites)
                try:
                    _, errors = process.communicate(timeout=rng.uniform(0.6, 2.5) if killed < kills else 300)
                    assert "Traceback" not in errors, errors
                    codes.append(process.returncode)
                except subprocess.TimeoutExpired:
                    assert killed < kills, "a repair that hangs"
                    process.kill()
                    process.wait()
                    killed += 1
                lose_some(new, rng, models // 2)
        fired = {fired.fault.where for fired in sites.faults.fired}
        sites.faults.clear()
        assert {"civarchive", "mirrors"} <= fired
        assert killed >= kills
        assert set(codes) <= {0, 1}
        finished(sites)
        for path, sha256 in held(new).items():
            assert digest(path) == sha256
        here = set(held(new).values())
        assert here <= set().union(*wanted), "a file that nobody wanted"
        assert all(files & here for files in wanted), "a network that is missing"
        require_tokens_kept(sites, new)
        require_nothing_twice(sites, new, rng, models)
        left = [path.name for path in (new / "library").rglob("*.part*") if not path.name.endswith(TEMPORARY)]
        assert left == []


def require_nothing_twice(sites: Sites, home: Path, rng: random.Random, count: int) -> None:
    """Of what is lost once more, each file comes once; and nothing is asked for where nothing is missing."""
    lost = lose_some(home, rng, count)
    sites.clear()
    finished(sites)
    bodies = [request for request in sites.requests if request.origin in ("storage", "mirrors")]
    right = [request for request in bodies if request.status == 200 and not request.path.startswith(LIARS)]
    assert len(right) == len({request.path for request in right}) == len(lost)
    sites.clear()
    assert finished(sites) == ""
    assert sites.requests == []


LIARS = tuple(f"/{character}/" for character in BEFORE_IT)


def require_tokens_kept(sites: Sites, home: Path) -> None:
    assert {"api", "storage", "civarchive", "mirrors"} <= {request.origin for request in sites.requests}
    for request in sites.requests:
        told = [name for name, value in request.headers.items() if sites.token in value]
        assert told == (["authorization"] if told and request.origin == "api" else []), request
    for path in home.rglob("*"):
        if path.is_file():
            assert sites.token.encode() not in path.read_bytes(), path
            assert b"signature=of" not in path.read_bytes(), path
