"""A site that gives odd files and odd answers, for tests of the API: one version is changed, and only that served."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hnetkit.sources.civitai import Civitai, Filters
from hnetkit.sources.session import FetchSession
from support import networks
from support.fake_sites import Sites, World
from support.fake_sites.contents import Facts, Recipe
from support.fake_sites.messages import Ledger, Request, Response
from support.fake_sites.server import Origin as Server
from support.fast_clock import FastClock
from support.fetching import EVERYTHING, installed

OpenSession = Callable[..., FetchSession]


def first_version(site: Sites, quirk: str | None = None) -> dict[str, Any]:
    """The first version of the first model, as the world holds it: changing it changes the site."""
    id = site.world.ids()[0] if quirk is None else site.world.find(quirk)[0]
    version: dict[str, Any] = site.world.model(id)["modelVersions"][0]
    return version


def give(site: Sites, file: dict[str, Any], content: bytes, name: str | None = None) -> None:
    """Lets the site serve these bytes, with their true size and hashes."""
    recipe = Recipe("network", 10**9 + file["id"], name=f"{len(content)}")
    contents = site.world.contents
    contents.define(file["id"], recipe)
    contents._cache[recipe], contents._facts[recipe] = content, Facts.of(content)
    file["sizeKB"] = None
    if name is not None:
        file["name"] = name


def network_bytes(seed: int = 1, *, legacy: bool = False) -> bytes:
    torch.manual_seed(seed)
    target = io.BytesIO()
    content = networks.a1111_network((8,), (1, 2, 1), "relu", seed=seed, name=f"net{seed}")
    torch.save(content, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


@contextmanager
def answering(answer: Callable[[Request], Response]) -> Iterator[tuple[Civitai, Ledger]]:
    """A site with answers of a test's own, and what came to it."""
    ledger = Ledger()
    server = Server("own", answer, ledger)
    server.start()
    try:
        yield Civitai(FastClock(2000), base=f"{server.url}/api/v1", token="t"), ledger
    finally:
        server.close()


def only_path(session: FetchSession) -> Path:
    (path,) = installed(session).values()
    return path


def listed(civitai: Civitai, filters: Filters = EVERYTHING) -> list[int]:
    return [model.id for page in civitai.pages(filters) for model in page]


def in_list(world: World) -> set[int]:
    """What a whole list can hold: hypernetworks that are neither archived, private nor of real people."""
    shown = [m for m in world.models if m["type"] == "Hypernetwork" and m.get("mode") != "Archived" and not m["poi"]]
    return {m["id"] for m in shown if any(v["availability"] == "Public" for v in m["modelVersions"])} & {
        m["id"] for m in shown if m["availability"] != "Private"
    }


def everything_kept(home: Path) -> str:
    """All that is written below the home, the registry's packed columns unpacked."""
    kept = b"".join(path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file())
    return kept.decode("latin-1")
