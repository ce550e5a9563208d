"""A hub that is a stranger's: what it says of commits and versions of files becomes no path outside of the cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Sites
from support.fake_sites.messages import Request, Response

from hnetkit.errors import ModelNotUsable, NetworkFailed, UsageError
from hnetkit.generate.loading.diffusers_folder import download_pipeline
from hnetkit.generate.model import load_model
from hnetkit.hub import network_file, repository
from hnetkit.train.preparing.captioners import load_tagger

REPO = "someone/tiny"


@pytest.fixture
def files(sd_folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(sd_folder).as_posix(): path.read_bytes() for path in sd_folder.rglob("*") if path.is_file()
    }


@pytest.fixture
def sites(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    from huggingface_hub import constants

    more = {"unet/pipeline.py": b"raise SystemExit", "config.json": b"{}"}
    with Sites(repos={REPO: {**files, **more}}) as sites:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", sites.hub_url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", _template(sites.hub_url))
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        yield sites


def _template(address: str) -> str:
    return address + "/{repo_id}/resolve/{revision}/{filename}"


def around(folder: Path) -> list[str]:
    """What lies in a folder beside the cache."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "cache" not in path.parts)


def stating(**headers: str) -> Any:
    """Alters answers about files, so that they have these headers."""

    def alter(request: Request, response: Response) -> Response:
        if "/resolve/" not in request.path:
            return response
        own = {name: value for name, value in response.headers.items() if name.lower() not in headers}
        return replace(response, headers={**own, **headers})

    return alter


@pytest.mark.parametrize("header", ["etag", "x-linked-etag", "x-repo-commit"])
def test_no_file_is_written_where_a_hub_says(sites: Sites, tmp_path: Path, header: str) -> None:
    for place in (str(tmp_path / "evil.pth"), "../../../../evil.pth", "..\\..\\evil.pth", ".evil", "a:b"):
        sites.alter = stating(**{header: place if header == "x-repo-commit" else f'"{place}"'})
        with pytest.raises(NetworkFailed, match="that is none"):
            download_pipeline(REPO)
        with pytest.raises(NetworkFailed, match="that is none"):
            load_tagger(REPO, device="cpu")
        with pytest.raises(NetworkFailed, match="that is none"):
            network_file(REPO, weight_name="model_index.json", cache_dir=tmp_path / "cache")
    assert around(tmp_path) == []


def test_that_a_file_is_missing_is_noted_nowhere_else(sites: Sites, tmp_path: Path) -> None:
    del sites.hub.repos[REPO].commits[sites.hub.repos[REPO].branches["main"]]["model_index.json"]
    sites.alter = stating(**{"x-repo-commit": str(tmp_path / "made")})
    with pytest.raises(NetworkFailed, match="that is none"):
        download_pipeline(REPO)
    assert around(tmp_path) == []


def test_what_a_hub_calls_its_newest_commit_replaces_no_file(sites: Sites, tmp_path: Path) -> None:
    (tmp_path / "work.txt").write_text("hours of it")

    def alter(request: Request, response: Response) -> Response:
        if not request.path.startswith("/api/") or "/tree/" in request.path:
            return response
        return replace(response, body=response.body.replace(b'"sha": "', b'"sha": "../../../../work.txt", "was": "'))

    sites.alter = alter
    download_pipeline(REPO)
    assert (tmp_path / "work.txt").read_text() == "hours of it"
    assert around(tmp_path) == ["work.txt"]


def test_names_in_a_repository_that_lead_out_of_it_are_left_out(
    sites: Sites, tmp_path: Path, files: dict[str, bytes]
) -> None:
    odd = ["unet/diffusion_pytorch_model-00001-of-/../../../../../../x.safetensors", "unet/a:b.safetensors"]
    sites.hub.commit(REPO, {**files, **dict.fromkeys(odd, b"x")})
    folder = download_pipeline(REPO)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {*files}
    assert around(tmp_path) == []


def test_a_model_of_the_hub_is_fetched_without_its_code_and_loads_again_without_the_hub(
    sites: Sites, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = download_pipeline(REPO)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {*files}
    asked = len(sites.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download_pipeline(REPO) == folder
    assert load_model(folder, device="cpu").pipe.unet is not None
    assert len(sites.requests) == asked


def test_of_a_model_that_is_only_there_in_part_the_rest_is_fetched(sites: Sites) -> None:
    folder = download_pipeline(REPO)
    shutil.rmtree(folder / "unet")
    assert (download_pipeline(REPO) / "unet" / "config.json").is_file()


def test_the_token_follows_no_next_page_to_another_site(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", sites.hub_token)

    def alter(request: Request, response: Response) -> Response:
        if not request.path.startswith("/api/"):
            return response
        return replace(response, headers={**response.headers, "Link": f'<{sites.stranger_url}/more>; rel="next"'})

    sites.alter = alter
    assert (download_pipeline(REPO) / "unet" / "config.json").is_file()
    assert [entry.origin for entry in sites.requests if entry.path == "/more"] == []


def test_the_token_is_exchanged_at_the_hub_alone(sites: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", sites.hub_token)
    for place in (f"{sites.stranger_url}/exchange", f"{sites.hub_url}@localhost/exchange", "//localhost/exchange"):
        sites.alter = stating(**{"x-xet-hash": "a" * 64, "x-xet-refresh-route": place})
        with pytest.raises(NetworkFailed, match="another site"):
            download_pipeline(REPO)
    assert [entry.origin for entry in sites.requests if entry.path == "/exchange"] == []
    sites.alter = stating(**{"x-xet-hash": "a" * 64, "x-xet-refresh-route": f"{sites.hub_url}/api/exchange"})
    assert network_file(REPO, weight_name="model_index.json", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_no_proxy_hears_the_token_of_a_hub_on_this_machine(
    sites: Sites, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, sites.hub_url)  # it would write down what it hears
    with pytest.raises(ModelNotUsable, match="plain http"):
        download_pipeline(REPO)
    with pytest.raises(UsageError, match="plain http"):
        repository(REPO, token="hf_secretsecret")
    assert sites.requests == []
