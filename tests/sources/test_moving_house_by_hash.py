"""A library moved to another machine by its records alone, with real processes: each file from whoever still has it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import networks
from support.fake_sites import Sites, World

TOKENS = ("CIVITAI_TOKEN", "HF_TOKEN")


@pytest.fixture
def sites() -> Iterator[Sites]:
    with Sites(World.make(4, plain=True), needs_token=True) as sites:
        yield sites


class Machine:
    """A home of its own, on which commands run as processes."""

    def __init__(self, sites: Sites, home: Path) -> None:
        self.home = home
        self.environment = {
            **os.environ,
            **{"HNETKIT_HOME": str(home), "HNETKIT_CIVITAI_URL": sites.civitai_url, "CIVITAI_TOKEN": sites.token},
            **{"HNETKIT_CIVARCHIVE_URL": sites.civarchive_url, "HF_ENDPOINT": sites.hub_url},
            **{"HF_TOKEN": sites.hub_token, "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"},
        }

    def do(self, *command: str, ok: int = 0) -> tuple[str, str]:
        line = [sys.executable, "-P", "-m", "hnetkit", *command]
        done = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == ok, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout, done.stderr

    def holds(self) -> dict[str, str]:
        """Name -> sha256 of every network in the library's folder."""
        files = (self.home / "library").iterdir()
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.suffix in (".pt", ".safetensors")
        }


def test_what_is_gone_at_its_site_comes_from_the_hub_the_archive_and_a_mirror_of_ones_own(
    sites: Sites, tmp_path: Path
) -> None:
    sites.civarchive.keep_all("lying", "right")
    ids = sites.world.ids()
    content = {
        id: [sites.world.content(file["id"]) for m, _, file in sites.world.files() if m["id"] == id] for id in ids
    }
    own = networks.network_file(tmp_path, "own.pt", seed=77).read_bytes()
    sites.hub.add("someone/copies", {f"{number}.pt": data for number, data in enumerate(content[ids[0]])})
    sites.hub.add("someone/own", {"own words.pt": own})
    old = Machine(sites, tmp_path / "old")
    old.do("sync", "-y", "--nsfw", "--all-versions", "--no-previews")
    old.do("pull", "hf:someone/copies", "hf:someone/own")
    first = next(iter((old.home / "library").glob("*.pt")))
    first.rename(first.with_name("my ink (best).pt"))
    old.do("scan")
    old.do("tag", "my ink (best)", "precious", "--alias", "lines")
    before = old.holds()
    old.do("export", str(tmp_path / "library.jsonl"))

    for data in content[ids[0]]:  # of this one, only the hub is left
        del sites.civarchive.kept[hashlib.sha256(data).hexdigest()]
    sites.world.remove(ids[0])
    sites.world.archive(ids[1])  # of this one, CivArchive's mirrors
    sites.hub.repos.pop("someone/own")  # of this one, a mirror of one's own
    sites.hub.add("me/backup", {"x.pt": own})
    sites.clear()

    new = Machine(sites, tmp_path / "new")
    new.do("import", str(tmp_path / "library.jsonl"))
    new.do("config", "mirrors", "hf:me/backup")
    out, said = new.do("repair", "--no-previews")
    assert new.holds() == before
    assert "from hf:someone/copies, since the site has none" in out
    assert "(CivArchive), since archived by its owner" in out
    assert "from hf:me/backup, since" in out
    assert said.count("other bytes") == len(content[ids[1]]), "each liar is said"
    shown = json.loads(new.do("show", "lines", "--json")[0])
    assert (shown[0]["name"], shown[0]["tags"]) == ("my ink (best)", ["precious"])
    assert new.do("repair")[1].strip() == "nothing is missing or damaged"

    for request in sites.requests:
        is_own = request.origin in ("api", "hub")
        assert is_own or not any(token in str(request.headers) for token in (sites.token, sites.hub_token)), request
    whole = [request.path for request in sites.requests if request.status == 200 and request.origin == "storage"]
    assert len(whole) == len(set(whole)), "nothing is fetched twice"
    for path in new.home.rglob("*"):
        if path.is_file():
            assert sites.token.encode() not in path.read_bytes()
            assert b"signature=of" not in path.read_bytes()
    listed = {row["name"]: row["gone"] for row in json.loads(new.do("list", "--json")[0])}
    assert sorted({gone["state"] for gone in listed.values() if gone}) == ["archived", "gone"]


def test_a_sync_brings_what_is_listed_and_a_repair_the_rest(sites: Sites, tmp_path: Path) -> None:
    sites.civarchive.keep_all("right")
    old = Machine(sites, tmp_path / "old")
    old.do("sync", "-y", "--nsfw", "--all-versions", "--no-previews")
    before = old.holds()
    old.do("export", str(tmp_path / "library.jsonl"))
    sites.world.remove(sites.world.ids()[0])
    new = Machine(sites, tmp_path / "new")
    new.do("import", str(tmp_path / "library.jsonl"))
    new.do("sync", "-y", "--nsfw", "--all-versions", "--no-previews")
    assert set(new.holds()) < set(before)
    new.do("repair", "--no-previews")
    assert new.holds() == before


def test_a_network_of_ones_own_comes_from_ones_own_mirror_by_its_hash(sites: Sites, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    own = networks.network_file(tmp_path / "mine", "own words.pt", seed=77)
    old = Machine(sites, tmp_path / "old")
    old.do("scan", str(own.parent))
    old.do("export", str(tmp_path / "library.jsonl"))
    sites.hub.add("me/backup", {"some/where.pt": own.read_bytes()})
    new = Machine(sites, tmp_path / "new")
    new.do("import", str(tmp_path / "library.jsonl"))
    assert new.do("repair")[0].startswith("unknown")
    assert new.do("repair", "--dry-run")[1] == "0 to fetch again\n", "not: nothing is missing"
    new.do("config", "mirrors", "hf:me/backup")
    assert "from sha256:" in new.do("repair", "--dry-run")[0]
    new.do("repair")
    assert new.holds() == {"own words.pt": hashlib.sha256(own.read_bytes()).hexdigest()}
    assert new.do("repair")[1].strip() == "nothing is missing or damaged"
