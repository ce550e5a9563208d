"""Hypernetworks by the name of a repository: fetched from the hub, and read as any other file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.fake_sites import Sites
from support.fake_sites.messages import Response
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS
from support.told import told

import hnetkit
from hnetkit.errors import AuthRequired, FileRefused, HnetkitError, NetworkFailed, NotFound, RateLimited, UsageError

REPO = "someone/styles"
Load = Callable[..., str]


@pytest.fixture
def contents(tmp_path: Path) -> list[bytes]:
    """Three networks for the tiny pipeline."""
    files = [
        network_file(tmp_path, f"{seed}.pt", widths=(*SELF_WIDTHS, SD_CROSS_WIDTH), seed=seed) for seed in range(3)
    ]
    return [file.read_bytes() for file in files]


@pytest.fixture
def sites(contents: list[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    from huggingface_hub import constants

    files = {"README.md": b"about", "ink.pt": contents[0], "more/wash.pt": contents[1]}
    with Sites(repos={REPO: files, "someone/one": {"a.txt": b"", "only.pt": contents[2]}}) as sites:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        yield sites


@pytest.fixture
def load(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads onto the pipeline, with a cache of this test's own."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return lambda place, **options: hnetkit.load_hypernetwork(pipe, place, cache_dir=tmp_path / "cache", **options)


def content_of(pipe: Any, name: str) -> str:
    network = pipe.unet.hnetkit.networks[name].network
    return str(network.content_hash)


@pytest.fixture
def hashes(tmp_path: Path, contents: list[bytes]) -> list[str]:
    return [hnetkit.load(tmp_path / f"{seed}.pt").content_hash for seed in range(len(contents))]


def test_a_file_of_a_repository_is_loaded_under_its_name_and_fetched_once(
    pipe: Any, sites: Sites, load: Load, hashes: list[str]
) -> None:
    assert load(REPO, weight_name="ink.pt") == "ink"
    assert load(REPO, name="wash", weight_name="more/wash.pt", strength=0.5) == "wash"
    assert load(REPO, name="again", weight_name="wash.pt", subfolder="more") == "again"
    assert hnetkit.get_active_hypernetworks(pipe) == ["ink", "wash", "again"]
    assert [content_of(pipe, name) for name in ("ink", "wash", "again")] == [hashes[0], hashes[1], hashes[1]]
    assert len([r for r in sites.requests if r.origin == "storage"]) == 2


def test_a_revision_is_what_it_was(pipe: Any, sites: Sites, load: Load, contents: list[bytes], hashes: Any) -> None:
    first = sites.hub.repos[REPO].branches["main"]
    sites.hub.commit(REPO, {"ink.pt": contents[2]})
    load(REPO, name="new", weight_name="ink.pt")
    load(REPO, name="old", weight_name="ink.pt", revision=first)
    assert [content_of(pipe, name) for name in ("old", "new")] == [hashes[0], hashes[2]]
    with pytest.raises(NotFound, match="has no revision v9"):
        load(REPO, name="none", weight_name="ink.pt", revision="v9")


def test_without_a_file_s_name_the_only_network_is_taken(pipe: Any, sites: Sites, load: Load, hashes: Any) -> None:
    assert load("someone/one") == "only"
    assert load(REPO, subfolder="more") == "wash"
    assert [content_of(pipe, name) for name in ("only", "wash")] == [hashes[2], hashes[1]]
    with pytest.raises(UsageError, match="has 2 model files") as caught:
        load(REPO)
    assert caught.value.hint == "say by weight_name which of ink.pt, more/wash.pt"
    with pytest.raises(NotFound, match="has no model file in none"):
        load(REPO, subfolder="none")


def test_what_is_here_comes_before_a_repository_of_the_name(
    pipe: Any, sites: Sites, load: Load, contents: list[bytes], hashes: list[str]
) -> None:
    Path(REPO).mkdir(parents=True)
    Path(REPO, "pen.pt").write_bytes(contents[1])
    assert load(REPO) == "pen"
    assert load(REPO, name="by name", weight_name="pen.pt") == "by name"
    assert [content_of(pipe, name) for name in ("pen", "by name")] == [hashes[1]] * 2
    with pytest.raises(NotFound, match=r"has no file ink\.pt"):
        load(REPO, weight_name="ink.pt")
    with pytest.raises(NotFound, match=r"networks/ink\.pt: no such file"):
        load("networks/ink.pt")
    assert sites.requests == []


def test_what_was_fetched_is_loaded_again_without_the_hub(pipe: Any, sites: Sites, load: Load) -> None:
    load(REPO, weight_name="ink.pt")
    asked = len(sites.requests)
    assert load(REPO, name="again", weight_name="ink.pt", local_files_only=True) == "again"
    with pytest.raises(NetworkFailed, match=r"more/wash\.pt is not in the cache"):
        load(REPO, name="wash", weight_name="more/wash.pt", local_files_only=True)
    with pytest.raises(UsageError, match="weight_name must name"):
        load(REPO, local_files_only=True)
    assert len(sites.requests) == asked


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_private_repository_is_loaded_with_a_token_which_the_storage_does_not_hear(
    sites: Sites, load: Load, contents: list[bytes], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    sites.hub.add("someone/private", {"ink.pt": contents[0]}, private=True)
    with pytest.raises(NotFound, match="or a private one") as caught:
        load("someone/private", weight_name="ink.pt")
    assert "HF_TOKEN" in str(caught.value.hint)
    if by == "environment":
        monkeypatch.setenv("HF_TOKEN", sites.hub_token)
    load("someone/private", weight_name="ink.pt", token=sites.hub_token if by == "argument" else None)
    heard = {r.origin for r in sites.requests if sites.hub_token in str(r.headers)}
    assert heard == {"hub"}
    with pytest.raises(NotFound):
        load("someone/private", token=False)


def test_what_is_not_there_and_what_may_not_be_had_is_said(sites: Sites, load: Load, contents: list[bytes]) -> None:
    sites.hub.add("someone/gated", {"ink.pt": contents[0]}, gated=True)
    with pytest.raises(NotFound, match="no such repository on the hub"):
        load("someone/nothing")
    with pytest.raises(NotFound, match=r"has no file pen\.pt"):
        load(REPO, weight_name="pen.pt")
    for token in (None, sites.hub_token):
        with pytest.raises(AuthRequired, match="accept its terms"):
            load("someone/gated", weight_name="ink.pt", token=token)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthRequired), (403, AuthRequired), (429, RateLimited), (500, NetworkFailed)]
)
def test_a_refusal_of_the_hub_is_one_error_without_the_token(
    sites: Sites, load: Load, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[HnetkitError]
) -> None:
    without_waiting = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", without_waiting)  # it tries again for half a minute
    secret = "hf_secretsecret"
    said = {"X-Error-Message": f"Invalid credentials in Authorization header {secret}"}
    sites.alter = lambda request, response: Response(status, said, b"")
    for name in (None, "ink.pt"):
        with pytest.raises(kind) as caught:
            load(REPO, weight_name=name, token=secret)
        assert secret not in told(caught.value)


@pytest.mark.parametrize("token", ["hf_secret\nsecret", "hf_secret secret", "hf_secr\u00e9t"])
def test_what_can_be_no_token_is_neither_sent_nor_shown(sites: Sites, load: Load, token: str) -> None:
    with pytest.raises(UsageError, match="token holds characters") as caught:
        load(REPO, weight_name="ink.pt", token=token)
    assert "hf_" not in repr(caught.value) + str(caught.value.hint)
    assert sites.requests == []


def test_a_hub_out_of_reach_is_a_failure_of_the_network(
    sites: Sites, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in (None, "ink.pt"):
        with pytest.raises(NetworkFailed):
            load(REPO, weight_name=name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for address in ("http://hub.example", "http://[hub"):
        monkeypatch.setenv("HF_ENDPOINT", address)
        with pytest.raises(UsageError, match="plain http"):
            load(REPO, weight_name="ink.pt")
    assert sites.requests == []


def test_what_the_hub_gives_is_read_as_any_other_file(sites: Sites, load: Load) -> None:
    sites.hub.add("someone/bad", {"page.pt": b"<html>log in</html>"})
    with pytest.raises(FileRefused, match="web page"):
        load("someone/bad")
