"""What stands where a network was installed may be anything: nothing waits for it, and it fails alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_sites import Sites
from support.fetching import EVERYTHING, installed

from hnetkit.errors import HnetkitError
from hnetkit.formats.reading import MAX_FILE
from hnetkit.sources.maintenance import find_damage, requeue_damaged
from hnetkit.sources.session import FetchSession

LARGE = 300 * MAX_FILE  # of holes: reading it would take an hour


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def holes(path: Path) -> None:
    path.touch()
    os.truncate(path, LARGE)


@pytest.mark.skipif(os.name != "posix", reason="this system has no named pipes")
@pytest.mark.parametrize("odd", [os.mkfifo, link_to_zero, holes])
def test_repair_names_what_is_no_file_in_the_place_of_a_network_and_mends_the_others(
    site: Sites, here: FetchSession, odd: Callable[[Path], None]
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    first, second, *_ = sorted(installed(here).values())
    first.unlink()
    odd(first)
    second.write_bytes(b"damaged")
    taken = {
        Path(damage.path): requeue_damaged(here.registry, damage, here.folder) for damage in find_damage(here.registry)
    }
    assert taken.keys() == {first, second}
    assert isinstance(taken[first], HnetkitError)
    assert taken[second] is None
    assert os.path.lexists(first)


def test_files_of_holes_under_the_names_of_networks_are_not_read(site: Sites, here: FetchSession) -> None:
    here.folder.mkdir(parents=True)
    for item in here.plan(EVERYTHING, all_versions=True).items:
        holes(here.folder / item.name)
    assert {job.state for job in here.sync(EVERYTHING, all_versions=True)} == {"done"}
    assert all(path.stat().st_size < MAX_FILE for path in installed(here).values())


def test_a_part_of_holes_is_begun_anew(site: Sites, here: FetchSession) -> None:
    here.folder.mkdir(parents=True)
    item = here.plan(EVERYTHING, all_versions=True).items[0]
    part = here.folder / f".hnetkit-{hashlib.sha256(item.key.encode()).hexdigest()[:16]}.part"
    holes(part)
    Path(f"{part}.json").write_text(json.dumps({"key": item.key, "sha256": item.sha256}))
    assert {job.state for job in here.sync(EVERYTHING, all_versions=True)} == {"done"}
    assert not part.exists()
