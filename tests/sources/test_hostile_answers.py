"""What a hostile answer, record, name or link must not do: hold the others, fill memory or disk, or lead elsewhere."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_sites import Sites, World
from support.fake_sites.messages import Ledger, Request, Response, error, json_response
from support.fake_sites.server import Origin as Server
from support.fetching import EVERYTHING, installed, jobs_of
from support.networks import network_file

from hnetkit.cli import run
from hnetkit.errors import HnetkitError, NetworkFailed, UsageError
from hnetkit.library import sidecar_writing
from hnetkit.registry.catalogue import Catalogue
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.download import PartialFile
from hnetkit.sources.export import export_records, import_records
from hnetkit.sources.http import HttpClient, RateLimiter
from hnetkit.sources.install import quarantine
from hnetkit.sources.references import parse_reference
from hnetkit.sources.session import FetchSession
from hnetkit.sources.sync import find_updates, store_models
from hnetkit.sources.trust import SLOW_BYTES, SLOW_S, Origin, SitePolicy

OpenSession = Callable[..., FetchSession]
HEADER = b'{"kind": "hnetkit", "version": 1}'


def first_file(site: Sites) -> dict[str, Any]:
    file: dict[str, Any] = site.world.models[0]["modelVersions"][0]["files"][0]
    return file


def only(site: Sites) -> dict[str, Any]:
    """The first model, with its first file alone."""
    model: dict[str, Any] = site.world.models[0]
    model["modelVersions"][1:] = []
    model["modelVersions"][0]["files"][1:] = []
    return model


def without_token(session: FetchSession, site: Sites) -> FetchSession:
    session.civitai = Civitai(session.clock, base=site.civitai_url)
    return session


# --- answers without an end


def test_the_body_of_a_redirect_is_not_read(site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.sources.trust.HEADERS_S", 5.0)

    def endless(request: Request, response: Response) -> Response:
        if response.status in (302, 307):
            response.body, response.length, response.endless = b"x", False, b"x" * 65_536
        return response

    site.alter = endless
    assert {job.state for job in here.sync(EVERYTHING, all_versions=True)} == {"done"}
    assert sum(r.sent for r in site.requests if r.origin == "api") < 64 << 20


def test_a_file_that_begins_anew_for_ever_is_given_up_and_one_that_goes_on_is_not(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.http.PROGRESS", 1000)
    monkeypatch.setattr("hnetkit.sources.http._CHUNK", 500)
    never = first_file(site)["id"]

    def cut(request: Request, response: Response) -> Response:
        if request.path.startswith("/files/"):
            if request.path.split("/")[2] == str(never):
                response = Response(200, response.headers, site.world.content(never))
                response.headers.pop("Content-Range", None)
            response.cut_after = 1200
        return response

    site.alter = cut
    by_id = {job.key: job.state for job in jobs_of(here, here.sync(EVERYTHING, all_versions=True))}
    assert by_id.pop(f"civitai:{never}") == "failed"
    assert set(by_id.values()) == {"done"}
    asked = [r for r in site.requests if r.path.startswith(f"/files/{never}/")]
    assert len(asked) <= 7


def test_a_page_of_the_list_that_is_cut_for_ever_is_given_up(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.http.PROGRESS", 100)

    def cut(request: Request, response: Response) -> Response:
        response.cut_after = 500 if request.path == "/api/v1/models" else None
        return response

    site.alter = cut
    with pytest.raises(NetworkFailed):
        here.sync(EVERYTHING, all_versions=True)
    assert len(site.requests) < 20


def test_cookies_are_not_even_taken_apart(site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(headers: object) -> None:
        raise AssertionError("a cookie of 60 kB takes seconds")

    monkeypatch.setattr("http.cookiejar.parse_ns_headers", apart)

    def baking(request: Request, response: Response) -> Response:
        response.headers["Set-Cookie"] = "a;" * 30_000
        return response

    site.alter = baking
    assert {job.state for job in here.sync(EVERYTHING, all_versions=True)} == {"done"}


def test_sixteen_gets_may_share_a_slow_line() -> None:
    assert 16 * SLOW_BYTES / SLOW_S < 5000, "bytes a second"


# --- one answer that would hold the others


def test_a_page_of_the_storage_is_not_the_sites_question_who_asks(site: Sites, here: FetchSession) -> None:
    page = first_file(site)["id"]

    def change(request: Request, response: Response) -> Response:
        if request.path.startswith(f"/files/{page}/"):
            return Response(200, {"Content-Type": "text/html"}, b"<html><body>log in to my blog</body></html>")
        return response

    site.alter = change
    results = without_token(here, site).sync(EVERYTHING, all_versions=True)
    states = {job.key: (job.state, job.code) for job in jobs_of(here, results)}
    assert states.pop(f"civitai:{page}") == ("failed", "network")
    assert {state for state, _ in states.values()} == {"done"}


@pytest.mark.parametrize("status", [401, 451])
def test_what_one_owner_wants_does_not_end_the_others(open_session: OpenSession, status: int) -> None:
    with Sites(World.make(12, plain=True)) as sites:
        wanted = [first_file(sites)["id"]]

        def change(request: Request, response: Response) -> Response:
            if "/api/download/" in request.path and (not wanted or request.one("fileId") == str(wanted[0])):
                return error(status, "The creator of this asset requires you to be logged in to download it")
            return response

        sites.alter = change
        session = without_token(open_session(sites), sites)
        states = [job.state for job in jobs_of(session, session.sync(EVERYTHING, all_versions=True))]
        assert sorted(states) == ["done"] * (len(states) - 1) + ["failed"]
        wanted.clear()
        other = open_session(sites)
        with other.registry.write():
            other.registry.catalogue._db.execute("DELETE FROM installs")
            other.registry.catalogue._db.execute("DELETE FROM files")
            other.registry.catalogue._db.execute("DELETE FROM jobs")
        before = len([r for r in sites.requests if "/download/" in r.path])
        assert {job.state for job in without_token(other, sites).sync(EVERYTHING, all_versions=True)} == {"failed"}
        asked = len([r for r in sites.requests if "/download/" in r.path]) - before
        assert asked < len(states) - 3, "what else such an owner has need not be asked for"


@pytest.fixture
def mirrors() -> Iterator[tuple[str, str, str]]:
    """A host that asks for a long pause, one that gives a file, and the file's sha256."""
    content = b"no network"
    limited = Server("limited", lambda _: Response(429, {"Retry-After": "9999"}), Ledger())
    good = Server("good", lambda _: Response(200, {}, content), Ledger())
    for server in (limited, good):
        server.start()
    yield f"{limited.url}/a.pt", f"{good.url}/b.pt", hashlib.sha256(content).hexdigest()
    for server in (limited, good):
        server.close()


def test_a_host_that_asks_for_a_pause_does_not_end_what_another_gives(
    site: Sites, open_session: Callable[..., FetchSession], mirrors: tuple[str, str, str]
) -> None:
    limited, good, sha256 = mirrors
    results = open_session(site, parallel=1).pull(limited, good, sha256=sha256)
    assert [(result.state, result.code) for result in results] == [("failed", "rate-limited"), ("refused", "refused")]


# --- another thing than was asked for


def test_another_model_version_or_file_than_was_asked_for_is_none(site: Sites, here: FetchSession) -> None:
    first, second = site.world.models[0], site.world.models[1]
    other = {**second["modelVersions"][0], "modelId": second["id"]}

    def change(request: Request, response: Response) -> Response:
        if request.path == f"/api/v1/models/{first['id']}":
            return json_response(second)
        return json_response(other) if request.path.startswith("/api/v1/model-versions/") else response

    site.alter = change
    for ref in (
        f"model:{first['id']}",
        f"version:{first['modelVersions'][0]['id']}",
        first_file(site)["hashes"]["SHA256"],
    ):
        with pytest.raises(NetworkFailed, match="answered with"):
            here.pull(ref)


def test_pictures_are_those_that_the_site_names_now(here: FetchSession) -> None:
    catalogue: Catalogue = here.registry.catalogue
    with here.registry.write():
        version = catalogue.put_version(
            catalogue.put_model("civitai", "5", {"name": "x", "state": "listed"}, {}), "6", {"name": "v"}
        )
        image = {"type": "image", "nsfw_level": None, "width": None, "height": None}
        catalogue.put_images(version, [{**image, "url": "https://stranger.example/track.png"}])
        catalogue.put_images(version, [{**image, "url": "https://image.civitai.com/a.png"}])
        assert [row["url"] for row in catalogue.images(version)] == ["https://image.civitai.com/a.png"]
        catalogue.put_images(version, [])
        assert len(catalogue.images(version)) == 1, "a listing without pictures says nothing of them"


def test_an_import_changes_no_subscription_and_brings_none_that_cannot_be_asked(here: FetchSession) -> None:
    with here.registry.write():
        here.registry.subscriptions.put("luisa", {"username": "luisa"})
    told = [
        {"name": "luisa", "filters": {"query": "something else"}},
        {"name": "odd", "filters": {"tag": "\ud800"}},
        {"name": "odd too", "filters": {"base_models": ["\ud800"]}},
        {"name": "good", "filters": {"query": "aquarelle \u6c34\u5f69"}},
    ]
    lines = [HEADER, *(json.dumps({"kind": "subscription", **line}).encode() for line in told)]
    assert len(import_records(here.registry, lines).failures) == 3  # one names filters that are others here
    rows = {row["name"]: row["filters"] for row in here.registry.subscriptions.rows()}
    assert rows == {"luisa": {"username": "luisa"}, "good": {"query": "aquarelle \u6c34\u5f69"}}


# --- records


def test_a_value_that_lies_deep_does_not_make_a_sidecar_of_gigabytes(tmp_path: Path) -> None:
    deep: Any = [0] * 20_000
    for _ in range(300):
        deep = [deep]
    record = {"id": 1, "images": [{"meta": deep}]}
    path = sidecar_writing.write_info(tmp_path / "a.pt", record)
    assert path.stat().st_size < 400_000
    assert json.loads(path.read_text()) == record
    other = sidecar_writing.write_info(tmp_path / "b.pt", {"id": 1, "images": [{"meta": [0]}]})
    assert b'\n    "id": 1' in other.read_bytes()


def test_what_a_models_files_share_is_in_memory_once(site: Sites, here: FetchSession) -> None:
    model = only(site)
    (file,) = model["modelVersions"][0]["files"]
    model["description"] = "d" * 10_000
    model["modelVersions"][0]["files"] = [{**file, "id": 9_000_000 + number} for number in range(50)]
    assert store_models(here.registry, here.plan(EVERYTHING, all_versions=True).models) == []
    rows = [row for row in here.registry.catalogue.files() if row["model_id"] == str(model["id"])]
    assert len(rows) == 50
    assert {len(row["description"]) for row in rows} == {10_000}
    assert len({id(row["description"]) for row in rows}) == len({id(row["trained_words"]) for row in rows}) == 1


def test_a_record_larger_than_any_is_one_models_failure_and_all_else_is_exported(
    site: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.registry.catalogue.MAX_RECORD", 50_000)
    site.world.models[0]["pad"] = "x" * 50_000
    (bad,) = store_models(here.registry, here.plan(EVERYTHING, all_versions=True).models)
    assert (bad.id, "is too large" in bad.reason) == (site.world.models[0]["id"], True)
    assert len(list(export_records(here.registry))) == 1 + len(site.world.models) - 1
    assert list(find_updates(here.registry, here.civitai)) == []


# --- links and pipes where hnetkit writes


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe"])
def test_a_link_in_the_place_of_a_part_is_not_written_through(
    site: Sites, here: FetchSession, tmp_path: Path, kind: str
) -> None:
    model = only(site)
    file = first_file(site)
    precious = tmp_path / "precious.txt"
    precious.write_bytes(b"precious")
    here.folder.mkdir(parents=True)
    part = PartialFile(here.folder, f"civitai:{file['id']}", file["hashes"]["SHA256"].lower())
    part.begin(host="127.0.0.1", etag=None, total=None)
    {"link": part.path.symlink_to, "hard link": part.path.hardlink_to, "pipe": lambda _: os.mkfifo(part.path)}[kind](
        precious
    )
    assert {job.state for job in here.pull(f"model:{model['id']}")} == {"done"}
    assert precious.read_bytes() == b"precious"


def test_a_link_in_the_place_of_unpacked_members_is_removed_and_not_followed(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    file = first_file(site)
    content = network_file(tmp_path, "a.pt", seed=5).read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.pt ", content)
        archive.writestr("b.pt", network_file(tmp_path, "b.pt", seed=6).read_bytes())
    site.world.contents.put(file["id"], (tmp_path / "a.zip").read_bytes())
    only(site)
    file["hashes"], file["sizeKB"] = {}, None
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").touch()
    here.folder.mkdir(parents=True)
    PartialFile(here.folder, f"civitai:{file['id']}", None).path.with_suffix(".unpacked").symlink_to(outside)
    (job,) = here.pull(f"model:{site.world.models[0]['id']}")
    assert (job.state, job.code) == ("done", None)
    assert (outside / "keep").exists()
    assert len(installed(here)) == 2, "a name that ends in a space is no reason to leave a network out"


# --- names, kinds, quarantine


def test_what_comes_often_under_one_name_is_kept_without_a_look_at_the_rest(here: FetchSession, tmp_path: Path) -> None:
    with here.registry.write():
        values = {"source": "url", "url": "https://a.example/n.pt", "name": "n", "suffix": ".pt", "sha256": None}
        job = here.registry.jobs.add(
            "k", {**values, "folder": str(here.folder), "remote_file_id": None, "size_bytes": None}
        )
    here.folder.mkdir(parents=True)
    names = []
    for content in (b"a", b"b", b"c", b"b"):
        (tmp_path / "came").unlink(missing_ok=True)
        (tmp_path / "came").write_bytes(content)
        names.append(quarantine(here.registry, job, tmp_path / "came", "why").name)
    digits = [hashlib.sha256(content).hexdigest()[:10] for content in (b"b", b"c")]
    assert names == ["n.pt.bad", f"n.pt-{digits[0]}.bad", f"n.pt-{digits[1]}.bad", f"n.pt-{digits[0]}.bad"]


def test_a_hundred_networks_of_one_stem_in_an_archive_all_come(site: Sites, here: FetchSession, tmp_path: Path) -> None:
    file = first_file(site)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for seed in range(104):
            archive.writestr(f"{seed}/model.pt", network_file(tmp_path, "m.pt", seed=seed, widths=(8,)).read_bytes())
    site.world.contents.put(file["id"], (tmp_path / "a.zip").read_bytes())
    only(site)
    file["hashes"], file["sizeKB"] = {}, None
    (job,) = here.pull(f"model:{site.world.models[0]['id']}")
    assert (job.state, job.code) == ("done", None)
    assert len(installed(here)) == 104


def test_a_file_of_another_kind_with_many_tensors_is_called_what_it_is(
    site: Sites, here: FetchSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.archives.MOST_MEMBERS", 10)
    names = (f"lora_unet_down_blocks_{number}_attn.lora_up.weight" for number in range(20))
    torch.save(OrderedDict((name, torch.zeros(4)) for name in names), tmp_path / "lora.pt")
    file = first_file(site)
    site.world.contents.put(file["id"], (tmp_path / "lora.pt").read_bytes())
    only(site)
    file["hashes"], file["sizeKB"] = {}, None
    (job,) = here.pull(f"model:{site.world.models[0]['id']}")
    assert job.state == "refused"
    assert "a LoRA" in str(job.reason)


# --- addresses, clocks, proxies


def test_a_redirect_with_spaces_is_followed_as_browsers_do(site: Sites, here: FetchSession) -> None:
    def spaced(request: Request, response: Response) -> Response:
        if "Location" in response.headers:
            response.headers["Location"] = f" {response.headers['Location'].replace('%20', ' ')}&b=c d "
        return response

    target = "https://x.example/a b"
    assert SitePolicy(Origin.of(target.replace(" ", "%20"))).check(target.replace(" ", "%20")) is None
    site.alter = spaced
    here.sync(EVERYTHING, all_versions=True)
    assert [r.query["b"] for r in site.requests if r.origin == "storage" and "b" in r.query][:1] == [["c d"]]


def test_a_name_of_this_machine_that_leads_elsewhere_is_not_asked() -> None:
    base = Origin.of("http://site.localhost:8080/")
    for trust in (SitePolicy(base), SitePolicy(base, settled=False)):
        assert trust.may_reach(base, "127.0.0.1")
        assert trust.may_reach(base, "::ffff:127.0.0.1")
        assert not trust.may_reach(base, "93.184.216.34"), "the token would go there in plain text"
        assert not trust.may_reach(base, "10.0.0.1")


def test_a_failure_of_a_day_that_is_still_to_come_is_tried_again(site: Sites, here: FetchSession) -> None:
    model = only(site)
    here.sync(EVERYTHING, all_versions=True)
    with here.registry.write():
        for path in installed(here).values():
            path.unlink()
        here.registry.catalogue._db.execute(
            "UPDATE jobs SET state = 'failed', code = 'gone', updated_at = '2099-01-01T00:00:00+00:00'"
        )
    (item,) = [item for item in here.plan(EVERYTHING, all_versions=True).items if item.model_id == model["id"]]
    assert item.action == "fetch"


def web(url: str, session: FetchSession) -> HttpClient:
    return HttpClient(SitePolicy(Origin.of(url), settled=False), session.clock, RateLimiter(session.clock, 50.0))


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://[::1", "gopher://x"])
def test_a_proxy_that_cannot_be_used_is_said_at_once(
    here: FetchSession, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with (
        pytest.raises(HnetkitError, match="proxy") as caught,
        web("https://a.example/x", here).open("https://a.example/x"),
    ):
        raise AssertionError("nothing answers")
    assert "https_proxy" in str(caught.value.hint)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificates_that_are_not_there_are_named_by_their_variable(
    here: FetchSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "absent.pem"))
    with (
        pytest.raises(HnetkitError, match=f"{variable}: .*absent.pem: no such file") as caught,
        web("https://a.example/x", here).open("https://a.example/x"),
    ):
        raise AssertionError("nothing answers")
    assert f"set {variable}" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text", ["https://civitai.com\u2100@x/", "https://civitai.com\u2100/", "https://[/", "https://a]/"]
)
def test_an_address_that_no_program_can_read_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"not an address|user or password"):
        parse_reference(text)


def test_an_address_without_its_beginning_is_shown_without_its_secrets() -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference("civitai.net/models/1?token=SECRET")
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("ids", ["\u00b2", "9" * 5000, "@list", "@pipe"])
def test_ids_that_are_none_are_a_usage_error(
    home: Path, site: Sites, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ids: str
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_bytes(b"\xff\xfe\0")
    os.mkfifo(tmp_path / "pipe")
    assert run(["sync", "--ids", ids]) == 2
