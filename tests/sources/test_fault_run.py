"""A long bad day: faults of all kinds thrown at a mirror that is killed again and again; all is right at the end.

The seed decides faults and moments. `make test` runs a twelfth of what `make test-long` runs.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fake_sites import Sites, World, random_fault
from support.fake_sites.faults import SWITCHES

from hnetkit.files import TEMPORARY
from hnetkit.registry import Registry

PROCESS = Path(__file__).resolve().parents[1] / "support" / "sync_process.py"
WAITING = 10  # faults that lie in wait at any time
SELDOM = frozenset("DTU")  # wait for a request that a sync makes seldom (a range) or never (a batch of hashes)


@contextmanager
def troubled(sites: Sites, rng: random.Random, count: int) -> Iterator[threading.Event]:
    """Throws faults, a few at a time, until `count` of them happened; the event says that they did."""
    over, stop = threading.Event(), threading.Event()

    def throw() -> None:
        while not stop.is_set():
            if len(sites.faults.fired) >= count:
                over.set()
                return
            near = sum(fault.kind not in SELDOM for fault in sites.faults.waiting)
            while near < WAITING:
                fault = random_fault(rng)
                if fault.where != "hub":
                    sites.faults.add(fault)
                    near += fault.kind not in SELDOM
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


def run(sites: Sites, rng: random.Random, faults: int, kills: int) -> tuple[int, list[int], Counter[str]]:
    """Syncs under faults until they are over, killing it at random moments; returns kills, exit codes, faults."""
    killed, codes = 0, []
    with troubled(sites, rng, faults) as over:
        while not over.is_set() or killed < kills:
            process = start(sites)
            try:
                _, errors = process.communicate(timeout=rng.uniform(0.6, 2.5) if killed < kills else 120)
                assert "Traceback" not in errors, errors
                codes.append(process.returncode)
            except subprocess.TimeoutExpired:
                assert killed < kills, "a sync that hangs"
                process.kill()
                process.wait()
                killed += 1
            for _, _, file in rng.sample(list(sites.world.files()), 16):  # so that there is something to fetch
                sites.world.replace_file(file["id"])
    fired = Counter(fired.fault.kind for fired in sites.faults.fired)
    sites.faults.clear()
    return killed, codes, fired


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def require_all_right(sites: Sites, home: Path) -> None:
    with Registry(home / "registry.db") as registry:
        jobs = {job.id: job for job in registry.jobs.rows()}
        installs = registry.jobs.installs(kind="network")
        listed = {f"civitai:{f['id']}": (f.get("hashes") or {}).get("SHA256", "") for _, _, f in sites.world.files()}
        for install in installs:
            path = Path(install["path"])
            assert digest(path) == install["sha256"], path
        held = {install["sha256"] for install in installs}
        for job in jobs.values():
            is_record = job.key.startswith("civitai:model:")  # of a model, which could not be read once
            if job.state == "done" and job.suffix != ".zip" and not is_record and listed[job.key]:
                assert listed[job.key].lower() in held, f"{job} is done, and its bytes are not here"
        assert {job.state for job in jobs.values()} <= {"done", "skipped", "refused", "failed"}
        assert {job.code for job in jobs.values() if job.state == "failed"} <= {
            "no-access",
            "early-access",
            "archived",
            "gone",
        }
        assert all(job.reason for job in jobs.values() if job.state in ("failed", "refused"))
    left = [path.name for path in (home / "library").rglob("*.part*")]
    assert not [name for name in left if not name.endswith(TEMPORARY)]  # what a kill left half-written is swept later
    assert not list((home / "workers").iterdir())
    allowed = {"registry.db", "registry.db-wal", "registry.db-shm", "library", "workers"}
    assert {path.name for path in home.iterdir()} <= allowed


def require_token_kept(sites: Sites, home: Path) -> None:
    for request in sites.requests:
        told = [name for name, value in request.headers.items() if sites.token in value]
        assert told == (["authorization"] if told and request.origin == "api" else []), request
        assert sites.token not in str(request.query) + request.path, request
    for path in home.rglob("*"):
        if path.is_file():
            assert sites.token.encode() not in path.read_bytes(), path


def outside(home: Path) -> set[str]:
    return {str(path) for path in home.parent.rglob("*") if home not in (path, *path.parents)}


@pytest.mark.parametrize(
    ("seed", "models", "faults", "kills", "unlucky"),
    [
        pytest.param(1, 24, 84, 4, 6, id="a twelfth"),
        pytest.param(2, 60, 1000, 50, 0, id="whole", marks=pytest.mark.long),
    ],
)
def test_after_any_number_of_faults_and_kills_every_file_is_right(
    home: Path, seed: int, models: int, faults: int, kills: int, unlucky: int
) -> None:
    rng, before = random.Random(seed), outside(home)
    with Sites(World.make(models, widths=(64,)), needs_token=True) as sites:
        killed, codes, fired = run(sites, rng, faults, kills)
        assert killed >= kills
        assert sum(fired.values()) >= faults
        never = set(SWITCHES) - SELDOM - set(fired)
        assert len(never) <= unlucky, f"{sorted(never)} never happened"
        assert set(codes) <= {0, 1}
        process = start(sites)
        _, errors = process.communicate(timeout=300)
        assert process.returncode in (0, 1), errors
        require_all_right(sites, home)
        require_token_kept(sites, home)
        assert outside(home) == before
