"""A long bad day: faults of all kinds thrown at a mirror that is killed again and again; all is right at the end.

The seed decides faults and moments. `make test` runs a twelfth of what `make test-long` runs.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest
from support.bad_day import digest, finished, live_through, require_token_kept, started
from support.fake_sites import Sites, World, random_fault
from support.fake_sites.faults import SWITCHES, Fault

from hnetkit.files import TEMPORARY
from hnetkit.registry import Registry

SELDOM = frozenset("DTU")  # wait for a request that a sync makes seldom (a range) or never (a batch of hashes)


def fault_of(rng: random.Random) -> Fault:
    while (fault := random_fault(rng)).where == "hub":
        pass
    return fault


def require_all_right(sites: Sites, home: Path) -> None:
    with Registry(home / "registry.db") as registry:
        jobs = {job.id: job for job in registry.jobs.rows()}
        installs = registry.jobs.installs(kind="network")
        listed = {f"civitai:{f['id']}": (f.get("hashes") or {}).get("SHA256", "") for _, _, f in sites.world.files()}
        for install in installs:
            path = Path(install["path"])
            assert digest(path.read_bytes()) == install["sha256"], path
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
    allowed = {"registry.db", "registry.db-wal", "registry.db-shm", "library", "locks", "workers"}
    assert {path.name for path in home.iterdir()} <= allowed


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

        def replace_some() -> None:
            for _, _, file in rng.sample(list(sites.world.files()), 16):
                sites.world.replace_file(file["id"])

        start, draw = partial(started, sites, "sync_process.py"), partial(fault_of, rng)
        day = live_through(sites, rng, start, draw, replace_some, faults=faults, kills=kills, seldom=SELDOM)
        never = set(SWITCHES) - SELDOM - {fault.kind for fault in day.fired}
        assert len(never) <= unlucky, f"{sorted(never)} never happened"
        assert set(day.codes) <= {0, 1}
        finished(start(), 0, 1)
        require_all_right(sites, home)
        require_token_kept(sites, home, sites.token, "api")
        assert outside(home) == before
