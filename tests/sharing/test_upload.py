"""Uploads to a hub over real sockets: what comes there, who may, what goes on later, and who hears the token."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from support.fake_sites import Sites
from support.fake_sites.messages import Request, Response, json_response
from support.fake_sites.uploads import Account
from support.pipelines import tiny_sd
from support.told import told
from support.waiting import wait_until

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import (
    AuthRequired,
    FileRefused,
    HnetkitError,
    NetworkFailed,
    NoAccess,
    NotFound,
    OutputExists,
    PartlyFailed,
    RateLimited,
    StorageFull,
    UsageError,
)
from hnetkit.image_text import write_image
from hnetkit.sharing import share
from hnetkit.sharing.folder import RECORD, ShareFolder

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    from huggingface_hub import constants

    with Sites() as sites:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        monkeypatch.setenv("HF_TOKEN", sites.hub_token)
        yield sites


@pytest.fixture
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", quick)  # it tries again for half a minute


@pytest.fixture
def folder(library: hnetkit.Library, tmp_path: Path) -> ShareFolder:
    return share(library, ["ink", "wash"], tmp_path / "out", license="mit")


def files_at(sites: Sites, name: str) -> dict[str, bytes]:
    repo = sites.hub.repos[name]
    return {path: data for path, data in repo.commits[repo.branches["main"]].items() if path != ".gitattributes"}


def test_a_folder_is_uploaded_as_it_is_and_pulled_again_with_the_same_contents(
    sites: Sites, folder: ShareFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder.path / "diary.txt").write_text("not for anybody")
    assert folder.upload("me/ink") is not None
    assert files_at(sites, "me/ink") == {name: path.read_bytes() for name, path in folder.paths().items()}
    assert "me/ink" in (folder.path / "README.md").read_text()
    assert "OWNER/REPO" not in (folder.path / "README.md").read_text()
    monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "other"))
    assert run(["pull", "hf:me/ink:*.safetensors"]) == 0
    with hnetkit.Library() as other:
        assert {row["content_hash"] for row in other.networks()} == set(folder.contents)


def test_a_network_is_loaded_from_the_repository(sites: Sites, folder: ShareFolder, tmp_path: Path) -> None:
    folder.upload("me/ink")
    pipe: Any = tiny_sd(least=True)
    for name in ("ink.safetensors", "ink.pt"):
        hnetkit.load_hypernetwork(pipe, "me/ink", name=name, weight_name=name, cache_dir=tmp_path / "cache")
        assert pipe.unet.hnetkit.networks[name].network.content_hash == folder.contents[0]


def test_a_second_upload_brings_what_changed_alone(sites: Sites, library: hnetkit.Library, folder: ShareFolder) -> None:
    folder.upload("me/ink")
    first = list(sites.uploads.taken)
    assert folder.upload("me/ink") is None
    commits = len(sites.hub.repos["me/ink"].commits)
    card = folder.path / "README.md"
    card.write_text(card.read_text() + "\nMore.\n")
    assert folder.upload("me/ink") is not None
    assert (sites.uploads.taken, len(sites.hub.repos["me/ink"].commits)) == (first, commits + 1)
    assert files_at(sites, "me/ink")["README.md"].endswith(b"More.\n")


def test_a_card_of_any_size_is_not_read_whole(folder: ShareFolder, sites: Sites) -> None:
    os.truncate(folder.path / "README.md", 1 << 30)
    with pytest.raises(FileRefused, match=r"README\.md: more than 4,194,304 bytes"):
        folder.upload("me/ink")
    assert "me/ink" not in sites.hub.repos


def test_an_upload_that_was_interrupted_goes_on_and_sends_no_file_twice(
    sites: Sites, folder: ShareFolder, without_waiting: None
) -> None:
    sites.uploads.instead = {"/commit/": Response(503)}
    with pytest.raises(NetworkFailed, match="503") as caught:
        folder.upload("me/ink")
    assert "same command" in str(caught.value.command_hint)
    paths = folder.paths().values()
    large = {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.suffix != ".md"}
    assert set(sites.uploads.taken) == large
    assert files_at(sites, "me/ink") == {}
    sites.uploads.instead = {}
    assert folder.upload("me/ink") is not None
    assert len(sites.uploads.taken) == len(large)
    assert files_at(sites, "me/ink").keys() == folder.files.keys()


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_upload_whose_process_ended_goes_on(sites: Sites, folder: ShareFolder, how: signal.Signals) -> None:
    sites.uploads.instead = {"/commit/": Response(200, body=b"{}", stall_after=0, stall_seconds=60)}
    line = [sys.executable, "-m", "hnetkit", "share", "--out", str(folder.path), "--upload", "me/ink", "-y"]
    settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}
    with subprocess.Popen(line, env={**os.environ, **settings}, stderr=subprocess.PIPE) as process:
        wait_until(lambda: any("/commit/" in r.path for r in sites.requests), process)
        process.send_signal(how)
        said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (130 if how is signal.SIGINT else -how), said
    assert "Traceback" not in said
    taken = list(sites.uploads.taken)
    assert len(taken) == 4
    assert files_at(sites, "me/ink") == {}
    sites.uploads.instead = {}
    assert folder.upload("me/ink") is not None
    assert (sites.uploads.taken, files_at(sites, "me/ink").keys()) == (taken, folder.files.keys())


def test_a_repository_is_made_private_on_request_and_a_public_one_is_not_taken_for_it(
    sites: Sites, folder: ShareFolder
) -> None:
    folder.upload("me/hidden", private=True)
    assert sites.hub.repos["me/hidden"].private
    folder.upload("studio/open")
    assert not sites.hub.repos["studio/open"].private
    with pytest.raises(UsageError, match="is there, and public"):
        folder.upload("studio/open", private=True)
    assert folder.uploading("me/hidden").repository.is_private


def test_the_question_says_what_where_how_large_and_who_sees_it(sites: Sites, folder: ShareFolder) -> None:
    question = folder.uploading("me/ink").question
    assert question.startswith("Upload 5 files, ")
    assert question.endswith(f"to {sites.hub_url}/me/ink, a new public repository?")
    sites.hub.add("me/there", {"README.md": b"mine", "ink.pt": b"other", "more.pt": b"more"}, private=True)
    question = folder.uploading("me/there").question
    assert question.endswith("which is private? README.md, ink.pt there would be replaced.")
    assert "a new private repository" in folder.uploading("me/ink", private=True).question


def test_without_a_token_it_says_where_to_make_one(
    sites: Sites, folder: ShareFolder, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert run(["share", "--out", str(folder.path), "--upload", "me/ink", "-y"]) == 3
    assert f"{sites.hub_url}/settings/tokens" in capsys.readouterr().err
    assert sites.requests == []
    with pytest.raises(AuthRequired, match="needs a token"):
        folder.upload("me/ink", token=False)


def test_who_may_not_write_there_is_told_and_nothing_is_sent(sites: Sites, folder: ShareFolder) -> None:
    sites.uploads.accounts["hf_readreadread"] = Account("me", role="read")
    sites.uploads.accounts["hf_otherotherother"] = Account("somebody")
    sites.hub.add("me/there", {"a.txt": b""})
    with pytest.raises(NoAccess, match="may only read"):
        folder.uploading("me/ink", token="hf_readreadread")
    for name in ("me/ink", "me/there"):
        with pytest.raises(NoAccess, match="somebody may not write there") as caught:
            folder.upload(name, token="hf_otherotherother")
        assert f"upload to somebody/{name[3:]}" in str(caught.value.command_hint)
    revoked = "hf_" + "x" * 30
    with pytest.raises(AuthRequired, match="does not accept the token") as refused:
        folder.upload("me/ink", token=revoked)
    assert revoked not in told(refused.value)
    assert sites.uploads.taken == []
    assert sites.hub.repos.keys() == {"me/there"}


def test_a_full_account_is_one_line(sites: Sites, folder: ShareFolder, capsys: Capture) -> None:
    sites.uploads.room = 100
    with pytest.raises(StorageFull, match="no room left at the hub"):
        folder.upload("me/ink")
    assert run(["share", "--out", str(folder.path), "--upload", "me/ink", "-y", "-q"]) == 1
    assert capsys.readouterr().err.count("\n") == 2
    sites.uploads.room = None
    assert folder.upload("me/ink") is not None


def test_files_that_the_hub_leaves_out_are_named(sites: Sites, folder: ShareFolder) -> None:
    def ignoring(request: Request, response: Response) -> Response:
        if "/preupload/" not in request.path or response.status != 200:
            return response
        files = [{**file, "shouldIgnore": file["path"].endswith(".pt")} for file in response.json()["files"]]
        return json_response({"files": files})

    sites.alter = ignoring
    for _ in range(2):
        with pytest.raises(PartlyFailed, match=r"did not take ink\.pt, wash\.pt$") as error:
            folder.upload("me/ink")
        assert ".gitignore" in str(error.value.command_hint)
        assert set(files_at(sites, "me/ink")) == set(folder.files) - {"ink.pt", "wash.pt"}
    sites.alter = _as_it_is
    assert folder.upload("me/ink") is not None


def _as_it_is(request: Request, response: Response) -> Response:
    return response


def test_an_account_that_is_named_like_the_token_does_not_show_it(sites: Sites, folder: ShareFolder) -> None:
    sites.uploads.instead = {"/whoami-v2": json_response({"name": sites.hub_token})}
    with pytest.raises(NoAccess, match="<token> may not write") as error:
        folder.upload("elsewhere/ink")
    assert sites.hub_token not in f"{error.value} {error.value.command_hint}"


@pytest.mark.parametrize("name", ["ink", "me/ink/more", "me/in k", "me/..", "https://hub/me/ink", "me/a--b", "-me/a"])
def test_what_is_no_name_of_a_repository_is_said_before_anything_is_asked(
    sites: Sites, folder: ShareFolder, name: str
) -> None:
    with pytest.raises(UsageError, match="name of a repository"):
        folder.upload(name)
    assert sites.requests == []


def test_a_dry_run_of_an_upload_lists_what_would_be_uploaded_and_asks_no_site(
    sites: Sites, library: hnetkit.Library, folder: ShareFolder, capsys: Capture
) -> None:
    (folder.path / "diary.txt").write_text("not for anybody")
    for names in ([], ["ink", "wash"]):
        words = ["share", *names, "--out", str(folder.path), "--upload", "hf:me/ink", "--dry-run"]
        assert run([*words, "--json"]) == 0
        told = capsys.readouterr()
        assert {Path(row["path"]).name for row in json.loads(told.out)} == set(folder.files)
        assert {row["uploaded"] for row in json.loads(told.out)} == {None}
        assert "not uploaded, because `share` did not make it: diary.txt\n" in told.err
        assert told.err.endswith(" uploaded to me/ink\n")
    (folder.path / "ink.pt").write_bytes(b"another")
    assert run([*words, "--json"]) == 2
    assert sites.requests == []


def test_a_repository_may_be_named_as_pull_names_it_and_anything_else_is_refused_before_a_file_is_written(
    sites: Sites, library: hnetkit.Library, folder: ShareFolder, tmp_path: Path, capsys: Capture
) -> None:
    assert folder.upload("hf:me/ink") is not None
    assert "me/ink" in sites.hub.repos
    other = tmp_path / "other"
    for name in ("hf:me/ink@main", f"{sites.hub_url}/me/ink", "hf:datasets/me/ink"):
        assert run(["share", "ink", "--out", str(other), "--license", "mit", "--upload", name, "-y"]) == 2
        assert capsys.readouterr().err.endswith("Hint: owner/repo, such as your-name/ink\n")
    assert not other.exists()


def test_a_card_that_the_hub_does_not_accept_is_named_and_nothing_is_committed(
    sites: Sites, folder: ShareFolder
) -> None:
    card = folder.path / "README.md"
    card.write_text(card.read_text().replace("license: mit", "license: my own"))
    with pytest.raises(UsageError, match='does not accept the card: "license" must be one of'):
        folder.upload("me/ink")
    assert (files_at(sites, "me/ink"), sites.uploads.taken) == ({}, [])
    card.write_text(card.read_text().replace("license: my own", "license: mit"))
    assert folder.upload("me/ink") is not None


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthRequired), (403, NoAccess), (429, RateLimited), (500, NetworkFailed)]
)
def test_a_refusal_anywhere_is_one_error_without_the_token(
    sites: Sites, folder: ShareFolder, without_waiting: None, status: int, kind: type[HnetkitError]
) -> None:
    secret = sites.hub_token
    headers = {"X-Error-Message": f"Invalid credentials {secret}"}
    body = f'{{"error": "no {secret}"}}'.encode()
    for part in ("whoami", "repos/create", "preupload", "objects/batch", "verify", "/commit/"):
        sites.hub.repos.clear()
        sites.storage.blobs.clear()
        sites.uploads.instead = {part: Response(status, headers, body)}
        with pytest.raises(HnetkitError) as caught:
            folder.upload("me/ink")
        assert secret not in told(caught.value)
        if part != "whoami":
            assert isinstance(caught.value, kind), part


@pytest.mark.parametrize(("status", "kind"), [(401, AuthRequired), (402, StorageFull), (403, NoAccess)])
def test_a_refusal_of_the_storage_that_the_hub_has_now_is_the_same_error(
    sites: Sites, folder: ShareFolder, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[HnetkitError]
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    sites.uploads.instead = {"xet-write-token": Response(status, body=b"{}")}
    with pytest.raises(kind) as caught:
        folder.upload("me/ink")
    assert sites.hub_token not in told(caught.value)
    assert files_at(sites, "me/ink") == {}


def test_the_token_goes_to_no_other_site_that_a_hub_has_check_a_file(sites: Sites, folder: ShareFolder) -> None:
    def alter(request: Request, response: Response) -> Response:
        if not request.path.endswith("/objects/batch"):
            return response
        said = json.loads(response.body)
        for item in said["objects"]:
            item["actions"]["verify"]["href"] = f"{sites.stranger_url}/verify"
        return json_response(said)

    sites.alter = alter
    with pytest.raises(NetworkFailed, match="another site"):
        folder.upload("me/ink")
    assert [r.path for r in sites.requests if r.origin == "stranger"] == []
    assert files_at(sites, "me/ink") == {}


def test_a_token_is_heard_by_the_hub_alone(sites: Sites, folder: ShareFolder) -> None:
    folder.upload("me/ink")
    assert {r.origin for r in sites.requests if sites.hub_token in str((r.headers, r.query))} == {"hub"}
    assert {r.origin for r in sites.requests} == {"hub", "storage"}


def test_one_command_makes_and_uploads_and_the_same_one_goes_on(
    sites: Sites, library: hnetkit.Library, tmp_path: Path, without_waiting: None, capsys: Capture
) -> None:
    out = str(tmp_path / "out")
    words = ["share", "ink", "--out", out, "--license", "mit", "--upload", "me/ink"]
    assert run(words) == 2
    assert "a new public repository? There is no terminal to answer on." in capsys.readouterr().err
    assert sites.hub.repos == {}
    sites.uploads.instead = {"/commit/": Response(502)}
    assert run([*words, "-y"]) == 5
    sites.uploads.instead = {}
    capsys.readouterr()
    assert run([*words, "-y", "--json"]) == 0
    told = capsys.readouterr()
    rows = {Path(row["path"]).name: row for row in json.loads(told.out)}
    assert {row["uploaded"] for row in rows.values()} == {f"{sites.hub_url}/me/ink"}
    assert rows["README.md"]["sha256"] == hashlib.sha256(files_at(sites, "me/ink")["README.md"]).hexdigest()
    assert "it is uploaded as it is; --overwrite makes it anew" in told.err
    assert run([*words, "-y"]) == 0
    assert "had all of it already" in capsys.readouterr().err
    assert run(["share", "wash", *words[2:], "-y"]) == 2
    assert "add --overwrite" in capsys.readouterr().err


def test_a_folder_that_lost_a_file_is_not_uploaded(sites: Sites, folder: ShareFolder, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder.path / "ink.pt").unlink()
    with pytest.raises(NotFound, match=r"ink\.pt"):
        folder.upload("me/ink")
    (folder.path / "ink.pt").symlink_to(tmp_path / "secret")
    with pytest.raises(NotFound, match=r"ink\.pt"):
        folder.upload("me/ink")
    assert sites.requests == []


def test_a_network_that_was_replaced_is_not_uploaded_under_the_hashes_of_another(
    sites: Sites, folder: ShareFolder
) -> None:
    (folder.path / "ink.pt").write_bytes((folder.path / "ink.safetensors").read_bytes())
    with pytest.raises(OutputExists, match=r"ink\.pt: not the file that `hnetkit share` wrote"):
        folder.upload("me/ink")
    assert sites.requests == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evil.pt", b"cos\nsystem\n(S'true'\ntR."),
        ("ink.pt", b""),
        ("run.exe", b"MZ"),
        ("images/1.png", b"#!/bin/sh\n"),
        ("images/1.sh", b"#!/bin/sh\n"),
        (".bashrc", b"true\n"),
    ],
)
def test_of_a_folder_whose_record_a_stranger_wrote_only_networks_and_pictures_are_uploaded(
    sites: Sites, folder: ShareFolder, name: str, content: bytes
) -> None:
    """Their record has the right hash of whatever they put there."""
    place = folder.path / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    record = json.loads((folder.path / RECORD).read_text())
    record["files"][name] = hashlib.sha256(content).hexdigest()
    (folder.path / RECORD).write_text(json.dumps(record))
    with pytest.raises(OutputExists, match="not the file that `hnetkit share` wrote"):
        ShareFolder.read(folder.path).upload("me/ink")
    assert sites.requests == []


def test_a_network_that_the_record_does_not_name_is_not_uploaded(
    sites: Sites, folder: ShareFolder, library: hnetkit.Library
) -> None:
    record = json.loads((folder.path / RECORD).read_text())
    record["networks"] = ["h1:" + "0" * 64]
    (folder.path / RECORD).write_text(json.dumps(record))
    with pytest.raises(OutputExists, match="not the file that `hnetkit share` wrote"):
        ShareFolder.read(folder.path).upload("me/ink")
    assert sites.requests == []


def test_a_link_in_place_of_the_folder_of_pictures_is_not_followed(
    sites: Sites, library: hnetkit.Library, tmp_path: Path
) -> None:
    write_image(tmp_path / "drawn.png", Image.new("RGB", (8, 8)), "")
    folder = share(library, ["ink"], tmp_path / "out", license="mit", pictures=[tmp_path / "drawn.png"])
    (folder.path / "images").rename(tmp_path / "elsewhere")
    (folder.path / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotFound, match=r"1\.png"):
        folder.upload("me/ink")
    with pytest.raises(OutputExists, match="a link"):
        share(library, ["ink"], folder.path, license="mit", pictures=[tmp_path / "drawn.png"], overwrite=True)
    assert sites.requests == []
