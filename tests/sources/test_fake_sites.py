"""The fake sites themselves: as unhelpful as the real ones, and every fault does what it says."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import string
import threading
import time
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from support.fake_sites import Fault, Sites, World, random_fault
from support.fake_sites.faults import SWITCHES

import hnetkit

REPO = "fake/nets"
REPO_FILES = {"README.md": b"# Nets\n", "styles/ink.pt": b"\x80\x02" + bytes(5000), "styles/old/a.txt": b"x"}


@pytest.fixture(scope="module")
def sites() -> Iterator[Sites]:
    with Sites(World.make(39, others=4), repos={REPO: REPO_FILES}) as site:
        yield site


@pytest.fixture
def site(sites: Sites) -> Iterator[Sites]:
    sites.clear()
    sites.needs_token = False
    yield sites
    sites.clear()


@pytest.fixture
def web() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.headers["User-Agent"] = "fake-sites-test/1 (+https://example.invalid)"
        yield session


class Api:
    """The API of one site, without following redirects."""

    def __init__(self, site: Sites, web: requests.Session) -> None:
        self.site, self.web = site, web

    def get(self, path: str, query: str = "", *, token: str | None = None) -> requests.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"{self.site.civitai_url}/{path}?{query}"
        return self.web.get(url, headers=headers, allow_redirects=False, timeout=5)

    def names(self, query: str) -> list[str]:
        return [item["name"] for item in self.get("models", query).json()["items"]]

    def walk(self, query: str) -> list[dict[str, Any]]:
        """All pages of a list."""
        pages, cursor = [], None
        while True:
            more = "" if cursor is None else f"&cursor={cursor.replace('|', '%7C')}"
            pages.append(self.get("models", query + more).json())
            cursor = pages[-1]["metadata"].get("nextCursor")
            if cursor is None:
                return pages

    def download(self, version_id: int, file_id: int | None = None, **options: Any) -> requests.Response:
        url = self.site.download_url(version_id, file_id)
        return self.web.get(url, allow_redirects=False, timeout=5, **options)

    def signed(self) -> tuple[str, bytes]:
        """A signed URL of the first model's file, and the bytes behind it."""
        version = self.site.world.models[0]["modelVersions"][0]
        return self.download(version["id"]).headers["Location"], self.site.world.content(version["files"][0]["id"])


@pytest.fixture
def api(site: Sites, web: requests.Session) -> Api:
    return Api(site, web)


def test_three_hundred_models_hold_four_hundred_files_the_same_ones_every_time() -> None:
    world, again = World.make(300), World.make(300)
    assert sum(file["type"] == "Model" for _, _, file in world.files()) == 400
    assert world.models == again.models
    assert World.make(3, seed=1).models != World.make(3).models


def test_hashes_and_sizes_are_those_of_real_hypernetwork_files(site: Sites, tmp_path: Path) -> None:
    for quirk in ("plain", "two formats"):
        for file in site.world.model(site.world.find(quirk)[0])["modelVersions"][0]["files"]:
            content = site.world.content(file["id"])
            assert file["hashes"]["SHA256"] == hashlib.sha256(content).hexdigest().upper()
            assert file["sizeKB"] * 1024 == len(content)
            path = tmp_path / file["name"]
            path.write_bytes(content)
            assert tuple(hnetkit.load(path).widths) == (8,)


def test_the_catalogue_has_the_oddities_of_the_real_one(site: Sites) -> None:
    world = site.world
    version = {quirk: world.model(world.find(quirk)[0])["modelVersions"][0] for quirk in ("archive", "same name")}
    members = zipfile.ZipFile(BytesIO(world.content(version["archive"]["files"][0]["id"]))).namelist()
    assert [name.rpartition(".")[2] for name in members] == ["pt", "pt", "png"]
    assert len({file["name"] for file in version["same name"]["files"]}) == 1
    first, second = (each["files"][0] for each in world.model(world.find("same content")[0])["modelVersions"])
    assert first["hashes"] == second["hashes"]
    assert first["id"] != second["id"]
    assert world.model(world.find("numeric username")[0])["creator"]["username"] == 1234567
    assert "creator" not in world.model(world.find("no creator")[0])


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=101", 400),
        ("limit=ten", 400),
        ("page=0", 400),
        ("page=11", 429),
        ("page=1&query=ink", 400),
        ("types=Hypernetwork,LORA", 400),
        ("types=hypernetwork", 400),
        ("nsfw=Mature", 400),
        ("period=allTime", 400),
        ("sort=Best", 400),
        ("tag=a&tag=b", 400),
        ("allowNoCredit=true", 400),
        ("collectionId=3", 400),
        ("favorites=false", 401),
        ("username=nobody", 404),
        ("ids=" + "1," * 17000, 431),
        ("ids=" + "1," * 4000, 200),
        ("nonsense=1", 200),
    ],
)
def test_list_parameters_are_refused_as_on_the_site(api: Api, query: str, status: int) -> None:
    answer = api.get("models", query)
    assert answer.status_code == status
    assert "Retry-After" not in answer.headers


def test_a_zod_error_is_an_object_within_error(api: Api) -> None:
    assert api.get("models", "types=Nope").json()["error"]["name"] == "ZodError"


def test_unhelpful_parameters_answer_something_else(api: Api) -> None:
    everything = api.names("nsfw=true")
    assert api.names("nsfw=true&type=LORA") == everything
    assert api.names("nsfw=true&tag=no-such-tag") == everything
    assert api.names("nsfw=true&baseModels=SD 1.5,Other") == []
    assert api.names("nsfw=true&supportsGeneration=false") == []
    assert len(api.names("")) < len(everything)
    assert set(api.names("types=Hypernetwork&nsfw=true")) < set(everything)
    tagged = api.get("models", "nsfw=true&tag=pixel art").json()["items"]
    assert tagged
    assert all("Pixel Art" in item["tags"] for item in tagged)
    assert {item["creator"]["username"] for item in api.get("models", "username=Lumina-Press").json()["items"]} == {
        "LuminaPress"
    }
    assert {"earlyAccessDeadline"} & {
        key
        for item in api.get("models", "earlyAccess=false&nsfw=true").json()["items"]
        for key in item["modelVersions"][0]
    }


@pytest.mark.parametrize("sort", ["Highest Rated", "Newest", "Oldest"])
def test_cursors_lead_through_short_and_empty_pages_to_every_visible_model(api: Api, sort: str) -> None:
    pages = api.walk(f"types=Hypernetwork&nsfw=true&limit=1&sort={sort}")
    ids = [item["id"] for page in pages for item in page["items"]]
    world = api.site.world
    hidden = {world.find(quirk)[0] for quirk in ("archived", "poi", "private", "early access")}
    assert len(ids) == len(set(ids)) == 39 - len(hidden)
    assert not hidden & set(ids)
    assert any(not page["items"] and "nextCursor" in page["metadata"] for page in pages)
    assert "|" in pages[0]["metadata"]["nextCursor"]
    assert "totalPages" not in pages[0]["metadata"]
    assert pages[0]["metadata"]["nextPage"].startswith(api.site.civitai_url)


def test_a_cursor_belongs_to_its_sort_and_search_has_offsets(api: Api) -> None:
    cursor = api.get("models", "limit=2&sort=Highest Rated").json()["metadata"]["nextCursor"]
    assert "Invalid cursor" in api.get("models", f"limit=2&sort=Most Downloaded&cursor={cursor}").json()["error"]
    assert api.get("models", f"limit=2&sort=Newest&cursor={cursor}").status_code == 400
    found = api.get("models", "limit=1&query=glass orchard").json()
    assert found["metadata"]["nextCursor"] == "1"
    assert "Glass" in found["items"][0]["name"]


def test_by_id_drops_empty_keys_and_shows_what_lists_hide(api: Api) -> None:
    world = api.site.world
    plain = api.get(f"models/{world.find('plain')[0]}").json()["modelVersions"][0]
    assert "trainedWords" not in plain
    assert "id" not in plain["images"][0]
    archived = api.get(f"models/{world.find('archived')[0]}").json()
    assert archived["mode"] == "Archived"
    assert not {"files", "downloadUrl"} & archived["modelVersions"][0].keys()
    assert "images" not in api.get(f"models/{world.find('taken down')[0]}").json()["modelVersions"][0]
    assert api.get("models/5").json() == {"error": "No model with id 5"}
    assert api.get("models/0").status_code == api.get(f"models/{2**31}").status_code == 400


def test_version_routes(api: Api) -> None:
    model = api.site.world.model(api.site.world.find("three files")[0])
    version = model["modelVersions"][0]
    full = api.get(f"model-versions/{version['id']}").json()
    assert [file["primary"] for file in full["files"]] == [True, False, False]
    assert full["files"][1]["downloadUrl"] == full["files"][2]["downloadUrl"]
    assert full["air"].endswith(f":hypernet:civitai:{model['id']}@{version['id']}")
    assert not {"creator", "tags"} & full["model"].keys()
    assert api.get(f"model-versions/mini/{version['id']}").json()["fileName"].endswith(".safetensors")
    assert api.get("model-versions/7").json() == {"error": "Model not found"}


def test_hashes_find_versions(api: Api) -> None:
    world = api.site.world
    newer, older = world.model(world.find("same content")[0])["modelVersions"]
    hashes = older["files"][0]["hashes"]
    for text in (hashes["SHA256"].lower(), hashes["AutoV2"], hashes["CRC32"]):
        assert api.get(f"model-versions/by-hash/{text}").json()["id"] == older["id"]
    url = api.site.civitai_url + "/model-versions/by-hash"
    missing = "0" * 64
    (row,) = api.web.post(url + "/ids", json=[hashes["SHA256"], missing]).json()
    assert row == {"modelVersionId": older["id"], "modelId": world.find("same content")[0], "hash": hashes["SHA256"]}
    (full,) = api.web.post(url, json=[hashes["SHA256"], missing]).json()
    assert not full["downloadUrl"].startswith(api.site.civitai_url)
    assert api.web.post(url, json=[hashes["AutoV2"]]).status_code == 400
    assert api.web.post(url, json=[missing] * 101).status_code == 400
    api.site.faults.add(Fault("T"))
    assert api.web.post(url, json=[hashes["SHA256"]]).json().count(None) == 2
    assert newer["id"] != older["id"]


def test_a_bad_token_is_silently_anonymous(api: Api) -> None:
    assert api.get("me", token="wrong").json() == {"error": "Unauthorized"}
    assert api.get("me", token=api.site.token).json()["username"] == "fake_user"
    assert api.get("models", "limit=1", token="wrong").status_code == 200
    assert api.get("models", "favorites=true", token=api.site.token).json()["items"] == []
    assert api.get("me", f"token={api.site.token}", token="wrong").status_code == 401  # the header wins


def test_downloads_need_the_token_where_the_site_says_so(api: Api) -> None:
    version = api.site.world.models[0]["modelVersions"][0]["id"]
    assert api.download(version).status_code == 307
    api.site.needs_token = True
    assert "logged in" in api.download(version).json()["message"]
    good = {"Authorization": f"Bearer {api.site.token}"}
    answer = api.download(version, headers=good)
    assert answer.status_code == 307
    assert answer.headers["Location"].startswith(api.site.storage_url)
    assert api.site.token not in answer.headers["Location"]
    assert api.web.head(api.site.download_url(version), headers=good).status_code == 401
    browser = api.download(version, headers={"User-Agent": "Mozilla/5.0"})
    assert "reason=download-auth" in browser.headers["Location"]
    assert "1010" in api.download(version, headers={"User-Agent": "python-requests/2"}).text


def test_unavailable_models_say_why(api: Api) -> None:
    def answer(quirk: str) -> requests.Response:
        return api.download(api.site.world.raw(api.site.world.find(quirk)[0])["modelVersions"][0]["id"])

    statuses = {quirk: answer(quirk).status_code for quirk in ("archived", "taken down", "private", "early access")}
    assert statuses == {"archived": 410, "taken down": 403, "private": 403, "early access": 403}
    assert answer("early access").json()["error"] == "Early Access"
    assert "disabled downloads" in answer("generation only").json()["message"]
    assert answer("early access over").status_code == 307
    assert api.download(7).json() == {"error": "File not found"}
    assert api.get("../download/models/900001", "type=Nope").status_code == 400


def test_a_file_id_names_exactly_one_of_two_files_of_one_name(api: Api) -> None:
    version = api.site.world.model(api.site.world.find("same name")[0])["modelVersions"][0]
    for file in version["files"]:
        location = api.download(version["id"], file["id"]).headers["Location"]
        answer = api.web.get(location)
        assert answer.content == api.site.world.content(file["id"])
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{file["name"]}"'
    assert api.download(version["id"], 1).status_code == 404


def test_storage_refuses_credentials_heads_and_forged_urls(api: Api) -> None:
    url, _ = api.signed()
    refused = api.web.get(url, headers={"Authorization": "Bearer x"})
    assert (refused.status_code, "InvalidRequest" in refused.text) == (400, True)
    assert api.web.get(url + "&token=x").status_code == 400
    assert api.web.head(url).status_code == 403
    assert api.web.get(url[:-1] + ("0" if url[-1] != "0" else "1")).status_code == 403


def test_storage_serves_ranges(api: Api) -> None:
    url, content = api.signed()

    def part(value: str, **headers: str) -> requests.Response:
        return api.web.get(url, headers={"Range": value, **headers})

    rest = part("bytes=100-")
    assert (rest.status_code, rest.content) == (206, content[100:])
    assert rest.headers["Content-Range"] == f"bytes 100-{len(content) - 1}/{len(content)}"
    assert part("bytes=0-0").content == content[:1]
    assert part("bytes=-5").content == content[-5:]
    beyond = part(f"bytes={len(content)}-")
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{len(content)}")
    assert part("bytes=5-", **{"If-Range": rest.headers["ETag"]}).status_code == 206
    assert part("bytes=5-", **{"If-Range": '"other"'}).content == content


def test_pictures_come_in_two_sizes(api: Api) -> None:
    url = api.site.world.models[0]["modelVersions"][0]["images"][0]["url"]
    assert url.startswith(api.site.storage_url + "/images/")
    whole = api.web.get(url)
    small = api.web.get(url.replace("/original=true/", "/width=20/"))
    assert whole.content[:2] == small.content[:2] == b"\xff\xd8"
    assert len(small.content) < len(whole.content)


def test_a_test_can_change_the_world(web: requests.Session) -> None:
    with Sites(World.make(3)) as site:
        api = Api(site, web)
        first, second, third = site.world.ids()
        file = site.world.model(first)["modelVersions"][0]["files"][0]
        before, old = file["hashes"]["SHA256"], site.world.content(file["id"])
        assert site.world.replace_file(file["id"]) != before
        assert site.world.model(first)["modelVersions"][0]["files"][0]["hashes"]["SHA256"] != before
        assert site.world.content(file["id"]) != old
        version = site.world.add_version(second)
        listed = api.get(f"models/{second}").json()["modelVersions"]
        assert listed[0]["id"] == version["id"]
        assert listed[0]["downloadUrl"].startswith(site.download_url(version["id"]))
        site.world.early_access(version["id"], "2099-01-01T00:00:00.000Z")
        assert api.download(version["id"]).status_code == 403
        site.world.remove(third)
        assert api.get(f"models/{third}").status_code == 404
        site.world.archive(first)
        assert api.get("models", "nsfw=true").json()["items"][0]["id"] == second


def test_the_real_library_reads_the_hub(site: Sites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants, errors

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = huggingface_hub.HfApi(endpoint=site.hub_url, token=False)
    info = hub.model_info(REPO, files_metadata=True)
    sizes = {sibling.rfilename: (sibling.size, sibling.lfs is not None) for sibling in info.siblings}
    assert sizes == {"README.md": (7, False), "styles/ink.pt": (5002, True), "styles/old/a.txt": (1, False)}
    sha256 = hashlib.sha256(REPO_FILES["styles/ink.pt"]).hexdigest()
    assert next(sibling.lfs.sha256 for sibling in info.siblings if sibling.lfs) == sha256
    assert {each.path for each in hub.list_repo_tree(REPO)} == {"README.md", "styles"}
    assert {each.path for each in hub.list_repo_tree(REPO, "styles", recursive=True)} == {
        "styles/ink.pt",
        "styles/old",
        "styles/old/a.txt",
    }
    site.hub.page_size = 2
    assert len(list(hub.list_repo_tree(REPO, recursive=True))) == 5
    site.hub.page_size = 1000
    assert [each.path for each in hub.get_paths_info(REPO, ["styles/ink.pt", "nope"])] == ["styles/ink.pt"]
    for name, content in REPO_FILES.items():
        path = hub.hf_hub_download(REPO, name, revision=info.sha, local_dir=tmp_path)
        assert Path(path).read_bytes() == content
    with pytest.raises(errors.RepositoryNotFoundError):
        hub.model_info("fake/none")
    with pytest.raises(errors.RevisionNotFoundError):
        hub.model_info(REPO, revision="0" * 40)
    with pytest.raises(errors.EntryNotFoundError):
        hub.hf_hub_download(REPO, "nope.pt", local_dir=tmp_path)
    site.hub.add("fake/gated", {"a.pt": b"x"}, gated=True)
    with pytest.raises(errors.GatedRepoError):
        hub.hf_hub_download("fake/gated", "a.pt", local_dir=tmp_path, token=site.hub_token)
    moved = site.hub.commit(REPO, {"README.md": b"new"})
    assert hub.model_info(REPO).sha == moved
    assert hub.model_info(REPO, revision=info.sha).sha == info.sha
    with pytest.raises(errors.GatedRepoError):
        hub.auth_check("fake/gated", token=site.hub_token)
    site.hub.repos["fake/gated"].admitted = True
    hub.auth_check("fake/gated", token=site.hub_token)
    site.hub.rename(REPO, "fake/moved")
    assert hub.model_info(REPO).id == "fake/moved"
    assert {each.path for each in hub.list_repo_tree(REPO)} == {"README.md"}
    assert Path(hub.hf_hub_download(REPO, "README.md", local_dir=tmp_path / "moved")).read_bytes() == b"new"
    site.hub.rename("fake/moved", REPO)
    site.hub.renamed.clear()
    site.hub.add("datasets/fake/set", {"a.pt": b"x"})
    assert hub.dataset_info("fake/set").id == "fake/set"
    assert [each.path for each in hub.list_repo_tree("fake/set", repo_type="dataset")] == ["a.pt"]


def test_the_hub_says_how_long_to_wait(site: Sites, web: requests.Session) -> None:
    site.faults.add(Fault("H", "hub", retry_after=55))
    answer = web.get(f"{site.hub_url}/api/models/{REPO}")
    assert (answer.status_code, answer.headers["RateLimit"]) == (429, '"api";r=0;t=55')


def test_requests_are_recorded_with_all_that_came(api: Api) -> None:
    api.get("models", "limit=1&tag=a%7Cb", token="secret")
    (entry,) = api.site.requests
    assert (entry.origin, entry.method, entry.path, entry.status) == ("api", "GET", "/api/v1/models", 200)
    assert entry.query == {"limit": ["1"], "tag": ["a|b"]}
    assert entry.headers["authorization"] == "Bearer secret"
    assert entry.sent > 100
    assert entry.ended is not None


def test_peaks_count_requests_at_one_time_and_within_a_second(api: Api) -> None:
    url, _ = api.signed()
    api.site.clear()
    api.site.faults.add(Fault("F", times=3, seconds=0.2))
    threads = [threading.Thread(target=requests.get, args=(url,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert api.site.in_flight_peak("storage") == 3
    assert api.site.per_second_peak("storage") == 3
    assert api.site.in_flight_peak("api") == 0


def fetched(api: Api, **headers: str) -> requests.Response:
    url, _ = api.signed()
    return api.web.get(url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=5)


def test_a_cut_transfer_breaks_or_merely_ends(api: Api) -> None:
    _, content = api.signed()
    api.site.faults.add(Fault("E", after=100))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        _ = fetched(api).content
    api.site.faults.add(Fault("E", after=100, content_length=False))
    ended = fetched(api)
    assert "Content-Length" not in ended.headers
    assert ended.content == content[:100]
    api.site.faults.add(Fault("E", after=100, reset=True))
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
        _ = fetched(api).content
    assert [entry.sent for entry in api.site.requests if entry.broken] == [100, 100, 100]
    assert fetched(api).content == content


@pytest.mark.parametrize("mode", ["stall", "drip"])
def test_slow_transfers_take_their_time_and_are_whole(api: Api, mode: str) -> None:
    _, content = api.signed()
    api.site.faults.add(Fault("F", mode=mode, seconds=0.2))
    began = time.monotonic()
    assert fetched(api).content == content
    assert 0.15 < time.monotonic() - began < 2


def test_ranges_go_wrong(api: Api) -> None:
    total = len(api.signed()[1])
    seen = []
    for mode in ("ignored", "wrong-start", "416"):
        api.site.faults.add(Fault("D", mode=mode))
        fetched(api)  # without Range: nothing happens yet
        answer = fetched(api, Range="bytes=10-")
        seen.append((answer.status_code, answer.headers.get("Content-Range")))
    assert seen == [(200, None), (206, f"bytes 9-{total - 1}/{total}"), (416, f"bytes */{total}")]


def test_signed_urls_die(api: Api) -> None:
    api.site.faults.add(Fault("C"))
    assert "ExpiredRequest" in fetched(api).text
    assert fetched(api).status_code == 200


def test_bodies_that_are_not_the_file(api: Api) -> None:
    content = api.signed()[1]
    api.site.faults.add(Fault("G"))
    assert fetched(api).text.startswith("<!DOCTYPE html>")
    api.site.faults.add(Fault("S"))
    packed = fetched(api).raw.read(decode_content=False)
    assert gzip.decompress(packed) == content
    api.site.faults.add(Fault("M"))
    changed = fetched(api).content
    assert changed != content
    assert hashlib.sha256(changed).hexdigest().upper() == api.site.world.sha256(920301)


def test_names_in_content_disposition(api: Api) -> None:
    names = []
    for mode in ("traversal", "latin1", "long"):
        api.site.faults.add(Fault("R", mode=mode))
        names.append(fetched(api).headers["Content-Disposition"].partition("filename=")[2].strip('"'))
    assert names[0] == "../../x"
    assert names[1].encode("latin-1").decode() == "ネオン Größe.pt"
    assert len(names[2]) == 300


def test_refusals_of_the_api(api: Api) -> None:
    version = api.site.world.models[0]["modelVersions"][0]["id"]
    faults = [
        (Fault("A"), 401),
        (Fault("B"), 302),
        (Fault("H"), 429),
        (Fault("I", times=1, status=520), 520),
        (Fault("N"), 410),
        (Fault("N", status=451), 451),
        (Fault("N", status=403), 403),
        (Fault("O"), 302),
        (Fault("O", mode="html"), 200),
        (Fault("U", limit=0), 429),
    ]
    for fault, status in faults:
        api.site.faults.add(fault)
        assert api.download(version).status_code == status
    assert api.download(version).status_code == 307
    api.site.faults.add(Fault("H", form="date"))
    assert api.get("models").headers["Retry-After"].endswith("GMT")
    targets = {"loop": api.site.download_url(version), "stranger": api.site.stranger_url, "file": "file:"}
    for mode, start in targets.items():
        api.site.faults.add(Fault("Q", mode=mode))
        assert api.download(version).headers["Location"].startswith(start)


def test_metadata_goes_wrong(api: Api) -> None:
    path = f"models/{api.site.world.ids()[0]}"
    sound = api.get(path).json()
    api.site.faults.add(Fault("L"))
    hashes = api.get(path).json()["modelVersions"][0]["files"][0]["hashes"]
    assert hashes["SHA256"] != sound["modelVersions"][0]["files"][0]["hashes"]["SHA256"]
    api.site.faults.add(Fault("K"))
    raw = api.get(path).text
    with pytest.raises(json.JSONDecodeError):
        json.loads(raw)
    assert json.loads(raw, strict=False)["name"] == sound["name"]
    answers = {}
    for mode in ("creator", "username", "hashes", "files"):
        api.site.faults.add(Fault("P", mode=mode))
        answers[mode] = api.get(path).json()
    assert "creator" not in answers["creator"]
    assert answers["username"]["creator"]["username"] == 31337
    assert answers["hashes"]["modelVersions"][0]["files"][0]["hashes"] == {}
    assert "files" not in answers["files"]["modelVersions"][0]
    assert api.get(path).json() == sound


def test_empty_and_repeated_pages_lose_nothing(api: Api) -> None:
    query = "types=Hypernetwork&nsfw=true&limit=10"
    sound = {item["id"] for page in api.walk(query) for item in page["items"]}
    api.site.faults.add(Fault("J", times=3))
    pages = api.walk(query)
    assert [page["items"] for page in pages[:3]] == [[], [], []]
    assert {item["id"] for page in pages for item in page["items"]} == sound
    cursor = pages[3]["metadata"]["nextCursor"]
    api.site.faults.add(Fault("J", mode="repeated"))
    again = api.get("models", f"{query}&cursor={cursor}").json()
    assert again["metadata"]["nextCursor"] == cursor


def test_every_kind_of_fault_happens_once_and_is_gone(api: Api) -> None:
    version = api.site.world.models[0]["modelVersions"][0]
    hashes = [version["files"][0]["hashes"]["SHA256"]]
    for kind in string.ascii_uppercase[:21]:
        api.site.faults.add(Fault(kind))
        for _ in range(2):
            try:
                api.get("models", "limit=1")
                api.web.post(api.site.civitai_url + "/model-versions/by-hash", json=hashes)
                location = api.download(version["id"]).headers.get("Location", "")
                if location.startswith(api.site.storage_url):
                    api.web.get(location, headers={"Range": "bytes=5-"}, timeout=5)
            except requests.RequestException:
                pass
        assert api.site.faults.waiting == []
        assert [fired.fault.kind for fired in api.site.faults.fired] == [kind]
        api.site.clear()


def test_random_faults_are_of_all_kinds_and_the_same_for_the_same_seed() -> None:
    drawn = [random_fault(random.Random(seed)) for seed in range(300)]
    assert {fault.kind for fault in drawn} == set(SWITCHES) == set(string.ascii_uppercase[:21])
    assert drawn == [random_fault(random.Random(seed)) for seed in range(300)]


def test_a_stalled_transfer_does_not_keep_the_sites_open(web: requests.Session) -> None:
    with Sites(World.make(1)) as site:
        url, _ = Api(site, web).signed()
        site.faults.add(Fault("F", seconds=60, after=0))
        reader = web.get(url, stream=True)
        began = time.monotonic()
    assert time.monotonic() - began < 1
    with pytest.raises(requests.RequestException):
        _ = reader.content
