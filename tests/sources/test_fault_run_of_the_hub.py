"""A long bad day of a repository of the hub: it changes between syncs that meet faults and are killed.

The seed decides faults, changes and moments. `make test` runs a part of what `make test-long` runs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from support.bad_day import digest, finished, live_through, require_token_kept, started
from support.fake_sites import Sites, World
from support.fake_sites.faults import random_hub_fault
from support.odd_answers import network_bytes

from hnetkit.files import TEMPORARY
from hnetkit.registry import Registry

REPO = "anna/Archive"
NOTHING = b"no network" * 99


def changed(files: dict[str, bytes], rng: random.Random, contents: Iterator[bytes]) -> dict[str, bytes]:
    """The files after a commit: some new, some changed, moved, deleted; of some folders that are in git itself."""
    files = dict(files)
    for path in rng.sample(sorted(files), min(4, len(files))):
        content = files.pop(path)
        kind = rng.choice(("delete", "move", "change", "change"))
        if kind == "move":
            files[f"moved/{rng.randrange(9)}/{path.rpartition('/')[2]}"] = content
        elif kind == "change":
            files[path] = next(contents)
    for _ in range(rng.randint(1, 6)):
        folder = rng.choice(("git", "Civitai/anna/ink", "Civitai/ben/ink", "styles"))
        files[f"{folder}/{rng.randrange(20)}.pt"] = NOTHING if rng.random() < 0.1 else next(contents)
    return files


def require_all_right(home: Path, files: dict[str, bytes]) -> None:
    with Registry(home / "registry.db") as registry:
        installs = registry.jobs.installs(kind="network")
        jobs = registry.jobs.rows()
    for install in installs:
        assert digest(Path(install["path"]).read_bytes()) == install["sha256"], install
    held = [install["sha256"] for install in installs]
    assert len(held) == len(set(held)), "nothing is here twice"
    missing = [path for path, content in files.items() if content != NOTHING and digest(content) not in held]
    assert not missing, (missing, [job for job in jobs if job.state != "done"])
    assert all(job.reason for job in jobs if job.state in ("failed", "refused"))
    left = [path.name for path in (home / "library").rglob("*.part*")]
    # of what the hub had for a while, and a fault or a kill kept away, half may be here
    is_over = all(job.state in ("done", "skipped", "refused") for job in jobs)
    assert not is_over or not [name for name in left if not name.endswith(TEMPORARY)]
    assert not list((home / "workers").iterdir())


@pytest.mark.parametrize(
    ("seed", "faults", "kills"),
    [
        pytest.param(1, 60, 4, id="a part"),
        pytest.param(2, 1000, 50, id="whole", marks=pytest.mark.long),
    ],
)
def test_after_any_number_of_faults_kills_and_commits_the_repository_is_here(
    home: Path, seed: int, faults: int, kills: int
) -> None:
    rng = random.Random(seed)
    contents = (network_bytes(1000 * seed + number) for number in range(100_000))
    files = {f"styles/{number}.pt": next(contents) for number in range(12)}
    with Sites(World.make(1, plain=True), repos={REPO: files}) as sites:
        hub = {"HF_ENDPOINT": sites.hub_url, "HF_TOKEN": sites.hub_token, "HF_HUB_OFFLINE": "0"}
        start = partial(started, sites, "sync_process.py", f"hf:{REPO}", **hub)

        def commit() -> None:
            nonlocal files
            files = changed(files, rng, contents)
            sites.hub.commit(REPO, files)

        draw = partial(random_hub_fault, rng)
        day = live_through(sites, rng, start, draw, commit, faults=faults, kills=kills, waiting=6, seldom="D")
        assert set(day.codes) <= {0, 1, 5, 6}
        for asked in (True, False):
            before = len(sites.requests)
            finished(start(), 0)
            downloads = [entry for entry in sites.requests[before:] if "/resolve/" in entry.path]
            assert asked or not downloads, "nothing is fetched twice"
        require_all_right(home, files)
        require_token_kept(sites, home, sites.hub_token, "hub")
