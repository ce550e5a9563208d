"""The examples of docs/python.md, run as they stand."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_sites import Sites, World
from support.networks import network_file
from support.pipelines import tiny_sd
from support.training import make_pictures

import hnetkit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "python.md"


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    """The site and the hub that the examples fetch from."""
    with Sites(World.make(3, plain=True)) as sites:
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", sites.civitai_url)
        monkeypatch.setenv("CIVITAI_TOKEN", sites.token)
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        monkeypatch.setenv("HF_TOKEN", sites.hub_token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield sites


def test_every_example_runs_and_gives_what_it_says(
    tmp_path: Path, sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_sd().save_pretrained(tmp_path / "sd-1.5")
    network_file(tmp_path, "style.pt", widths=(8, 20, 24), activation="relu", seed=1)
    hnetkit.save(
        hnetkit.load(network_file(tmp_path, "other.pt", widths=(8, 20, 24), seed=2)), tmp_path / "ink.safetensors"
    )
    (tmp_path / "hypernetworks").mkdir()
    for seed, name in enumerate(("ink", "glow")):
        network_file(tmp_path / "hypernetworks", f"{name}.pt", seed=seed)
    (tmp_path / "webui").mkdir()
    make_pictures(tmp_path / "photos", 10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    sites.hub.add("someone/styles", {f"{name}.pt": (tmp_path / "other.pt").read_bytes() for name in ("ink", "pen")})
    blocks = re.findall(r"^```pycon\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    test = doctest.DocTestParser().get_doctest("".join(blocks), {}, PAGE.name, str(PAGE), 0)
    output: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(test, out=output.append)
    assert results.attempted > 25
    assert not results.failed, "".join(output)
