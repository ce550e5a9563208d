"""A long bad day of a library whose site loses half of what it had: faults of sites, archive and mirrors, and kills.

The seed decides faults and moments. `make test` runs a part of what `make test-long` runs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.bad_day import digest, finished, live_through, require_token_kept, started
from support.fake_sites import Sites, World, random_fault
from support.fake_sites.faults import Fault, random_mirror_fault
from support.fetching import EVERYTHING

from hnetkit.files import TEMPORARY
from hnetkit.library.library import Library
from hnetkit.registry import Registry
from hnetkit.sources.export import export_library, import_library
from hnetkit.sources.session import FetchSession

BEFORE_IT = ("deleted", "stale", "lying", "larger", "cut", "login", "busy")
LIARS = tuple(f"/{character}/" for character in BEFORE_IT)


def fault_of(rng: random.Random) -> Fault:
    """A fault, but none of owners' doing, nor one that waits for requests that are not made."""
    while True:
        fault = random_mirror_fault(rng) if rng.random() < 0.7 else random_fault(rng)
        if fault.kind not in "DJKLMNOPTU":
            return fault


def repaired(sites: Sites) -> str:
    """What a repair that nothing disturbs prints."""
    return finished(started(sites, "repair_process.py"), 0)


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
        day = live_through(
            sites,
            rng,
            partial(started, sites, "repair_process.py"),
            partial(fault_of, rng),
            lambda: lose_some(new, rng, models // 2),
            faults=faults,
            kills=kills,
            patience_s=300,
        )
        assert {"civarchive", "mirrors"} <= {fault.where for fault in day.fired}
        assert set(day.codes) <= {0, 1}
        repaired(sites)
        for path, sha256 in held(new).items():
            assert digest(path.read_bytes()) == sha256
        here = set(held(new).values())
        assert here <= set().union(*wanted), "a file that nobody wanted"
        assert all(files & here for files in wanted), "a network that is missing"
        require_tokens_kept(sites, new)
        require_no_parts(new)
        require_nothing_twice(sites, new, rng, models)
        require_no_parts(new)


def require_nothing_twice(sites: Sites, home: Path, rng: random.Random, count: int) -> None:
    """Of what is lost once more, each file comes once; and nothing is asked for where nothing is missing."""
    lost = lose_some(home, rng, count)
    sites.clear()
    repaired(sites)
    bodies = [request for request in sites.requests if request.origin in ("storage", "mirrors")]
    others = (*LIARS, "/images/")  # a preview that a fault kept away comes when it can
    right = [request for request in bodies if request.status == 200 and not request.path.startswith(others)]
    assert len(right) == len({request.path for request in right}) == len(lost)
    sites.clear()
    assert repaired(sites) == ""
    assert sites.requests == []


def require_no_parts(home: Path) -> None:
    assert [path.name for path in (home / "library").rglob("*.part*") if not path.name.endswith(TEMPORARY)] == []


def require_tokens_kept(sites: Sites, home: Path) -> None:
    assert {"api", "storage", "civarchive", "mirrors"} <= {request.origin for request in sites.requests}
    require_token_kept(sites, home, sites.token, "api")
    for path in home.rglob("*"):
        assert not path.is_file() or b"signature=of" not in path.read_bytes(), path
