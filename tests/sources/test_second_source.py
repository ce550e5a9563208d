"""What its own source does not give comes from whoever has it, held against its sha256: copies, the hub, mirrors."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support import networks
from support.fake_sites import Fault, Sites, World
from support.fake_sites.messages import Request, Response, error, json_response
from support.fetching import EVERYTHING, installed

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import Archived, Gone, NotAHypernetwork
from hnetkit.library.library import Library
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.mirrors import MOST_ASKED
from hnetkit.sources.results import FetchResult
from hnetkit.sources.session import FetchSession

OpenSession = Callable[..., FetchSession]
Capture = pytest.CaptureFixture[str]
HUB_TOKEN = "hf_fakefakefakefakefakefakefakefake"


@pytest.fixture
def archived(site: Sites, monkeypatch: pytest.MonkeyPatch) -> Sites:
    """The site with an archive beside it, which keeps nothing yet."""
    monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", site.civarchive_url)
    return site


def first(site: Sites) -> tuple[int, dict[str, Any], bytes]:
    """Number of the first model, its first file, and its bytes."""
    model, _, file = next(site.world.files())
    return model["id"], file, site.world.content(file["id"])


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def lose(session: FetchSession, site: Sites) -> tuple[Path, str]:
    """Fetches everything; then the first file is lost here, and its model at the site. Returns path and sha256."""
    session.sync(EVERYTHING, all_versions=True)
    model, _, content = first(site)
    path = installed(session)[sha(content)]
    path.unlink()
    site.world.remove(model)
    site.clear()
    return path, sha(content)


def told(call: Callable[[], list[FetchResult]]) -> tuple[list[FetchResult], list[str]]:
    """The results of a call, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = call()
    return results, [str(warning.message) for warning in caught]


def bodies(site: Sites, origin: str = "mirrors") -> list[str]:
    """Which mirrors were asked, in order."""
    return [request.path.split("/")[1] for request in site.requests if request.origin == origin]


def all_is_right(session: FetchSession) -> None:
    for sha256, path in installed(session).items():
        assert sha(path.read_bytes()) == sha256
    assert list(session.folder.rglob("*.part*")) == []


# --- repair


def test_repair_takes_what_the_site_has_lost_from_a_mirror(archived: Sites, here: FetchSession) -> None:
    _, file, _ = first(archived)
    archived.civarchive.keep(file["id"], "right")
    path, sha256 = lose(here, archived)
    (result,) = here.repair()
    assert (result.state, result.code, sha(path.read_bytes())) == ("done", "elsewhere", sha256)
    assert "from 127.0.0.1:" in str(result.reason)
    assert "(CivArchive), since the site has none" in str(result.reason)
    assert here.repair() == []
    all_is_right(here)


def test_each_that_lies_or_fails_is_left_out_and_said_with_its_host(archived: Sites, here: FetchSession) -> None:
    _, file, _ = first(archived)
    archived.civarchive.keep(
        file["id"], "deleted", "closed", "stale", "lying", "larger", "endless", "login", "cut", "right"
    )
    path, sha256 = lose(here, archived)
    (result,), said = told(here.repair)
    assert (result.state, sha(path.read_bytes())) == ("done", sha256)
    lines = [line for line in said if "left out" in line]
    reasons = [
        "it has none",
        "other bytes, with the sha256",
        *[f"exceeds {_most(file):,} bytes"] * 2,
        "it asks for a login",
        "the connection broke in the middle (2 attempts)",
    ]
    assert len(lines) == len(reasons)
    assert all(
        f"127.0.0.1:{port(archived)} (CivArchive): {why}" in line for line, why in zip(lines, reasons, strict=True)
    )
    assert "deleted" not in bodies(archived)
    assert "closed" not in bodies(archived)
    all_is_right(here)
    states = {row["url"].split("/")[3]: row["state"] for row in here.registry.mirrors.of([sha256])}
    assert states == {
        **{"deleted": "deleted", "closed": "listed", "stale": "deleted", "lying": "other-bytes"},
        **{"larger": "other-bytes", "endless": "other-bytes", "login": "failed", "cut": "failed", "right": "served"},
    }
    assert not [row for row in here.registry.mirrors.of([sha256]) if "?" in row["url"]], "a query may be a secret"


def port(site: Sites) -> str:
    return site.civarchive.mirrors_url.rpartition(":")[2]


def _most(file: dict[str, Any]) -> int:
    size = int(file["sizeKB"] * 1024)
    return size + size // 16 + (64 << 10)


def test_a_slow_mirror_gives_way_to_the_next(
    archived: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file, _ = first(archived)
    archived.civarchive.keep(file["id"], "slow", "busy", "right")
    path, sha256 = lose(here, archived)
    monkeypatch.setattr("hnetkit.sources.trust.SLOW_S", 0.2)
    (_,), said = told(here.repair)
    assert sha(path.read_bytes()) == sha256
    assert any("too slowly" in line for line in said)
    assert any("asks to wait 600 s" in line or "asks for a pause" in line for line in said)


def test_what_nobody_has_says_who_was_asked(archived: Sites, here: FetchSession) -> None:
    _, file, _ = first(archived)
    archived.civarchive.keep(file["id"], "deleted", "lying")
    lose(here, archived)
    (result,), _ = told(here.repair)
    assert (result.state, result.code) == ("failed", "gone")
    assert "the site has none; also asked: 127.0.0.1:" in str(result.reason)
    assert "(CivArchive): other bytes" in str(result.reason)
    assert len(here.damages()) == 1, "it is missing still"


def test_a_damaged_file_stays_until_a_mirror_has_given_the_right_one(archived: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    model, file, content = first(archived)
    path = installed(here)[sha(content)]
    path.write_bytes(content[:-100] + bytes(100))
    archived.world.remove(model)
    archived.civarchive.kept.clear()
    (result,), _ = told(here.repair)
    assert (result.state, path.read_bytes()[-100:]) == ("failed", bytes(100))
    archived.world._models[model] = None  # type: ignore[assignment]
    del archived.world._models[model]
    archived.civarchive.kept[sha(content)] = _kept(content, file)
    session = FetchSession(here.library, clock=here.clock, site=here.civitai)
    (result,), _ = told(session.repair)
    assert (result.state, result.code, path.read_bytes()) == ("done", "replaced", content)
    assert "from 127.0.0.1:" in str(result.reason)


def _kept(content: bytes, file: dict[str, Any]) -> Any:
    from support.fake_sites.civarchive import Kept

    about = {"id": 1, "name": "Ink", "type": "Hypernetwork"}
    return Kept(content, about, {"id": 2, "name": "v1"}, file, ("right",))


def test_another_file_that_the_owner_put_in_its_place_is_not_taken_where_a_mirror_has_the_former(
    archived: Sites, here: FetchSession
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    _, file, content = first(archived)
    archived.civarchive.keep(file["id"], "right")
    path = installed(here)[sha(content)]
    path.unlink()
    archived.world.replace_file(file["id"])
    (result,), _ = told(here.repair)
    assert (result.state, path.read_bytes()) == ("done", content)
    assert "you asked for" in str(result.reason)


def test_bytes_that_the_site_serves_wrongly_are_taken_from_a_mirror(archived: Sites, here: FetchSession) -> None:
    _, file, content = first(archived)
    archived.civarchive.keep(file["id"], "right")

    def lying(request: Request, response: Response) -> Response:
        if request.path.startswith(f"/files/{file['id']}/"):
            response.body = bytes(byte ^ 1 for byte in response.body)
        return response

    archived.alter = lying
    results, _ = told(lambda: here.sync(EVERYTHING, all_versions=True))
    assert {result.state for result in results} == {"done"}
    assert installed(here)[sha(content)].read_bytes() == content


@pytest.mark.parametrize(
    ("status", "content", "code"),
    [
        (429, {"error": "Too many requests"}, "rate-limited"),
        (401, {"error": "Unauthorized", "message": "logged in"}, "no-token"),
        (403, {"error": "Early Access", "deadline": "2099-01-01", "message": "Early Access"}, "early-access"),
        (451, {"code": "REGION_BLOCKED", "message": "not in your region"}, "region-blocked"),
    ],
)
def test_a_pause_a_token_early_access_and_a_law_stay_what_they_are(
    archived: Sites, here: FetchSession, status: int, content: dict[str, Any], code: str
) -> None:
    archived.civarchive.keep_all("right")

    def refusing(request: Request, response: Response) -> Response:
        if "/api/download/" in request.path:
            answer = json_response(content, status)
            if status == 429:
                answer.headers["Retry-After"] = "100000"
            return answer
        return response

    archived.alter = refusing
    results = here.sync(EVERYTHING, all_versions=True)
    assert {result.code for result in results} == {code}
    assert bodies(archived) == bodies(archived, "civarchive") == []


@pytest.mark.parametrize("how", ["archived", "taken down", "disabled"])
def test_what_the_owner_took_away_comes_from_a_mirror_too(archived: Sites, here: FetchSession, how: str) -> None:
    here.sync(EVERYTHING, all_versions=True)
    model, file, content = first(archived)
    archived.civarchive.keep(file["id"], "right")
    path = installed(here)[sha(content)]
    path.unlink()
    if how == "archived":
        archived.world.archive(model)
    elif how == "taken down":
        archived.world.take_down(model)
    else:
        version = archived.world.model(model)["modelVersions"][0]
        archived.world.usage[version["id"]] = "InternalGeneration"
    (result,), _ = told(here.repair)
    assert (result.state, path.read_bytes()) == ("done", content)


def test_a_site_that_cannot_be_reached_at_all_is_one_that_is_gone(
    open_session: OpenSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sites(World.make(2, plain=True)) as sites:
        monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", sites.civarchive_url)
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
        _, file, content = first(sites)
        sites.civarchive.keep(file["id"], "right")
        path = installed(session)[sha(content)]
        path.unlink()
        sites._origins["api"].close()
        (result,), _ = told(session.repair)
        assert (result.state, path.read_bytes()) == ("done", content)


def test_what_came_in_part_goes_on_at_the_site(archived: Sites, here: FetchSession) -> None:
    _, file, _ = first(archived)
    archived.civarchive.keep_all("right")
    for _ in range(6):
        archived.faults.add(Fault("E", "storage", match=f"/files/{file['id']}/", after=700))
    results, _ = told(lambda: here.sync(EVERYTHING, all_versions=True))
    assert sorted({str(result.code) for result in results}) == ["None", "network"]
    assert bodies(archived) == []


# --- the library's own copies


def test_of_two_containers_that_hnetkit_wrote_each_is_made_from_the_other(
    open_session: OpenSession, hub: Sites, tmp_path: Path
) -> None:
    own = networks.network_file(tmp_path, "first.pt", seed=5)
    hnetkit.save(hnetkit.load(own), tmp_path / "first.safetensors")
    hnetkit.save(hnetkit.load(tmp_path / "first.safetensors"), tmp_path / "ink.pt")
    hnetkit.save(hnetkit.load(tmp_path / "ink.pt"), tmp_path / "ink.safetensors")
    files = {name: (tmp_path / name).read_bytes() for name in ("ink.pt", "ink.safetensors")}
    hub.hub.add("a/b", files)
    session = open_session(hub)
    session.pull("hf:a/b:ink.pt")
    session.pull("hf:a/b:ink.safetensors")
    for path in installed(session).values():
        content = path.read_bytes()
        path.write_bytes(content[:-50])
        hub.clear()
        (result,) = session.repair()
        assert (result.state, path.read_bytes()) == ("done", content)
        assert hub.requests == [], "nothing was fetched"


def test_a_twin_that_does_not_give_the_same_bytes_is_no_copy(
    open_session: OpenSession, hub: Sites, tmp_path: Path
) -> None:
    own = networks.network_file(tmp_path, "ink.pt", seed=5)  # by torch itself
    hub.hub.add("a/b", {"ink.pt": own.read_bytes()})
    session = open_session(hub)
    session.pull("hf:a/b:ink.pt")
    (path,) = installed(session).values()
    hnetkit.save(hnetkit.load(path), session.folder / "twin.safetensors")
    session.library.scan()
    path.write_bytes(path.read_bytes()[:-50] + bytes(50))
    hub.clear()
    (result,) = session.repair()
    assert (result.state, path.read_bytes()) == ("done", own.read_bytes())
    assert [request for request in hub.requests if request.origin == "hub"]
    all_is_right(session)


# --- the hub


def test_a_file_of_the_hub_with_the_same_bytes_comes_before_the_archive(
    archived: Sites, hub: Sites, here: FetchSession
) -> None:
    _, file, content = first(hub)
    hub.civarchive.keep(file["id"], "right")
    hub.hub.add("someone/copies", {"deep/ink.pt": content})
    here.sync(EVERYTHING, all_versions=True)
    here.pull("hf:someone/copies")
    path, sha256 = lose(here, hub)
    (result,), _ = told(here.repair)
    assert (result.state, sha(path.read_bytes())) == ("done", sha256)
    assert "from hf:someone/copies, since the site has none" in str(result.reason)
    assert bodies(hub, "civarchive") == []
    assert any(request.headers.get("authorization") for request in hub.requests if request.origin == "hub")


def test_a_repository_that_is_gone_is_answered_by_the_site_that_lists_the_same_bytes(
    hub: Sites, here: FetchSession
) -> None:
    _, _, content = first(hub)
    hub.hub.add("someone/copies", {"ink.pt": content, "other.pt": b""})
    here.pull("hf:someone/copies:ink.pt")
    here.sync(EVERYTHING, metadata_only=True)
    (path,) = installed(here).values()
    path.unlink()
    del hub.hub.repos["someone/copies"]
    hub.alter = lambda request, response: error(404, "no") if request.origin == "hub" else response
    (result,), _ = told(lambda: here.repair(refill=True))
    assert (result.state, path.read_bytes()) == ("done", content)
    assert "from Civitai, model" in str(result.reason)


# --- mirrors of the settings


def test_mirrors_of_the_settings_are_asked_last_and_by_the_whole_hash(archived: Sites, here: FetchSession) -> None:
    _, file, _ = first(archived)
    archived.civarchive.keep(file["id"], "stale")
    _, sha256 = lose(here, archived)
    base = archived.civarchive.mirrors_url
    session = FetchSession(
        here.library,
        clock=here.clock,
        site=here.civitai,
        mirrors=[f"{base}/lying/{{sha256}}/x", f"{base}/right/{{sha256}}/x"],
    )
    (result,), _ = told(session.repair)
    assert result.state == "done"
    assert bodies(archived) == ["stale", "stale", "lying", "right"]
    rows = {row["url"]: (row["source"], row["state"]) for row in session.registry.mirrors.of([sha256])}
    assert rows[f"{base}/right/{sha256}/x"] == ("setting", "served")
    assert rows[f"{base}/lying/{sha256}/x"] == ("setting", "other-bytes")


def test_mirrors_of_the_settings_are_asked_however_many_strangers_failed(archived: Sites, here: FetchSession) -> None:
    _, file, _ = first(archived)
    sha256 = archived.civarchive.keep(file["id"])
    stale = [{"url": f"{archived.civarchive.mirrors_url}/stale/{sha256}/{n}.bin"} for n in range(MOST_ASKED + 2)]

    def many(request: Request, response: Response) -> Response:
        if request.path != f"/api/sha256/{sha256}":
            return response
        return json_response({"files": [{"sha256": sha256, "mirrors": stale}]})

    archived.alter = many
    path, _ = lose(here, archived)
    right = f"{archived.civarchive.mirrors_url}/right/{{sha256}}/x"
    session = FetchSession(here.library, clock=here.clock, site=here.civitai, mirrors=[right])
    (result,), _ = told(session.repair)
    assert (result.state, sha(path.read_bytes())) == ("done", sha256)
    asked = [request.path for request in archived.requests if request.path.startswith("/stale/")]
    assert len(set(asked)) == MOST_ASKED


def test_a_repository_of_the_settings_is_listed_once_for_all(hub: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    lost = {}
    for model, _, file in list(hub.world.files()):
        content = hub.world.content(file["id"])
        lost[sha(content)] = content
        installed(here)[sha(content)].unlink()
        with pytest.MonkeyPatch.context():
            hub.world._models.pop(model["id"], None)
    hub.hub.add("me/backup", {f"{number}.pt": content for number, content in enumerate(lost.values())})
    hub.clear()
    session = FetchSession(here.library, clock=here.clock, site=here.civitai, mirrors=["hf:me/backup"])
    results, _ = told(lambda: session.repair(refill=True))
    assert {result.state for result in results} == {"done"}
    assert {sha(path.read_bytes()) for path in installed(session).values()} == set(lost)
    assert len([request for request in hub.requests if "/api/models/" in request.path]) == 1


# --- pull


def test_a_hash_that_the_site_does_not_know_comes_from_a_mirror_under_its_name(
    archived: Sites, here: FetchSession
) -> None:
    model, file, content = first(archived)
    sha256 = archived.civarchive.keep(file["id"], "right")
    archived.world.remove(model)
    (result,), _ = told(lambda: here.pull(sha256))
    assert result.state == "done"
    (path,) = installed(here).values()
    assert path.read_bytes() == content
    assert path.stem == hnetkit.sources.install.safe_stem(Path(file["name"]).stem, "x")
    assert [result.state for result in here.pull(sha256)] == ["have"]
    path.unlink()
    session = FetchSession(here.library, clock=here.clock, site=here.civitai)
    (result,), _ = told(lambda: session.repair(refill=True))
    assert (result.state, path.read_bytes()) == ("done", content)


def test_a_hash_that_nobody_has_says_where_it_was_asked(
    archived: Sites, here: FetchSession, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Gone, match=r"the site has none; also asked: CivArchive, the file abababab"):
        here.pull("ab" * 32)
    assert here.registry.jobs.rows() == []
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", archived.civitai_url)
    assert run(["pull", "ab" * 32]) == 4
    assert "also asked: CivArchive" in capsys.readouterr().err


def test_fewer_digits_need_a_site_that_stated_the_whole_hash(archived: Sites, here: FetchSession) -> None:
    model, file, content = first(archived)
    archived.civarchive.keep(file["id"], "right")
    here.sync(EVERYTHING, metadata_only=True)
    archived.world.remove(model)
    for digits in (file["hashes"]["CRC32"], sha(content)[:10]):
        (result,), _ = told(lambda digits=digits: here.pull(digits))
        assert (result.state, installed(here)[sha(content)].read_bytes()) == ("done", content)
        installed(here)[sha(content)].unlink()
        here.library.scan()
    with pytest.raises(Gone):
        here.pull("abababab12")


@pytest.mark.parametrize("reference", ["model:{model}", "version:{version}", "https://civitai.com/models/{model}"])
def test_a_model_that_is_gone_comes_by_the_records_that_the_catalog_kept(
    archived: Sites, here: FetchSession, reference: str
) -> None:
    model, version, file = next(archived.world.files())
    content = archived.world.content(file["id"])
    archived.civarchive.keep_all("right")
    here.sync(EVERYTHING, metadata_only=True)
    archived.world.remove(model["id"])
    text = reference.format(model=model["id"], version=version["id"])
    results, _ = told(lambda: here.pull(text))
    assert {result.state for result in results} == {"done"}
    path = installed(here)[sha(content)]
    assert path.with_suffix(".civitai.info").exists(), "the site's record is known"


def test_a_model_that_was_never_seen_comes_by_the_archives_records_which_is_said(
    archived: Sites, here: FetchSession
) -> None:
    model, version, file = next(archived.world.files())
    content = archived.world.content(file["id"])
    archived.civarchive.keep(file["id"], "right")
    archived.world.remove(model["id"])
    text = f"https://civitai.com/models/{model['id']}?modelVersionId={version['id']}"
    (result,), said = told(lambda: here.pull(text))
    assert (result.state, installed(here)[sha(content)].read_bytes()) == ("done", content)
    assert any("the site does not say which bytes it had; CivArchive does" in line for line in said)
    assert len(bodies(archived, "civarchive")) == 1


def test_what_the_archive_calls_something_else_is_not_fetched(archived: Sites, here: FetchSession) -> None:
    model, _, file = next(archived.world.files())
    sha256 = archived.civarchive.keep(file["id"], "right")
    archived.civarchive.kept[sha256].model["type"] = "Checkpoint"
    archived.world.remove(model["id"])
    with pytest.raises(NotAHypernetwork, match="CivArchive calls it a Checkpoint"):
        here.pull(f"model:{model['id']}")


def test_an_archived_model_comes_from_a_mirror_or_stays_archived(archived: Sites, here: FetchSession) -> None:
    model, file, content = first(archived)
    archived.world.archive(model)
    with pytest.raises(Archived, match="also asked: CivArchive"):
        here.pull(f"model:{model}")
    archived.civarchive.keep(file["id"], "right")
    session = FetchSession(here.library, clock=here.clock, site=here.civitai)
    (result,), _ = told(lambda: session.pull(f"model:{model}"))
    assert (result.state, installed(here)[sha(content)].read_bytes()) == ("done", content)


# --- strangers


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://mirror.example/x.pt", "leads to plain http"),
        ("https://10.0.0.1/x.pt", "private network"),
        ("https://localhost/x.pt", "private network"),
        ("https://169.254.169.254/latest/meta-data", "private network"),
        ("http://127.0.0.1:9/x.pt", "plain http"),
    ],
)
def test_a_mirror_leads_neither_into_a_private_network_nor_to_plain_http(
    here: FetchSession, site: Sites, monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", "https://civarchive.example/api")
    _, sha256 = lose(here, site)
    here.registry.mirrors.put(sha256, url, "civarchive", "listed")  # as an import may tell
    monkeypatch.setattr("hnetkit.sources.civarchive.CivArchive.file", _unreachable)
    (result,), _ = told(here.repair)
    assert result.state == "failed"
    assert said in str(result.reason)
    assert not [request for request in site.requests if request.origin not in ("api", "storage")]


def _unreachable(self: Any, sha256: str) -> Any:
    raise hnetkit.errors.NetworkFailed("CivArchive: no connection")


def test_no_token_goes_to_the_archive_or_a_mirror_whatever_its_address(
    archived: Sites, hub: Sites, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror may be an address of the site, or of the hub, themselves: asked as a mirror, they get no token."""
    monkeypatch.setenv("CIVITAI_TOKEN", archived.token)
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", archived.civitai_url)
    model, file, content = first(archived)
    sha256 = archived.civarchive.keep(file["id"], "lying")
    hub.hub.add("private/x", {"x.pt": content})
    wanted = [f"{hub.hub_url}/private/x/resolve/main/x.pt", f"{archived.download_url(999_999)}"]

    def changed(request: Request, response: Response) -> Response:
        if request.origin == "civarchive" and response.status == 200:
            answer = response.json()
            for mirror, url in zip(answer["data"]["version"]["files"][0]["mirrors"] * 2, wanted, strict=False):
                answer["data"]["version"]["files"][0]["mirrors"].append({**mirror, "url": url})
            return json_response(answer)
        return response

    archived.alter = changed
    with Library(home) as library:
        session = FetchSession(library, clock=_fast(), site=Civitai(_fast(), base=archived.civitai_url))
        archived.world.remove(model)
        archived.clear()
        (result,), _ = told(lambda: session.pull(sha256))
        assert result.state == "done", result.reason
    asked = {
        origin: [r for r in archived.requests if r.origin == origin] for origin in ("mirrors", "civarchive", "hub")
    }
    assert all(asked.values())
    for request in archived.requests:
        is_own = request.origin == "api" and "999999" not in request.path
        assert is_own or "authorization" not in request.headers, request
    for path in home.rglob("*"):
        if path.is_file():
            assert archived.token.encode() not in path.read_bytes()


def _fast() -> Any:
    from support.fast_clock import FastClock

    return FastClock()


def test_a_redirect_of_a_mirror_is_held_to_the_same_rules(archived: Sites, here: FetchSession) -> None:
    _, file, _ = first(archived)
    archived.civarchive.keep(file["id"], "stale")
    lose(here, archived)

    def astray(request: Request, response: Response) -> Response:
        if request.origin == "mirrors":
            return Response(302, {"Location": "http://mirror.example/x"})
        return response

    archived.alter = astray
    (result,), _ = told(here.repair)
    assert result.state == "failed"
    assert "leads to plain http" in str(result.reason)


def test_one_answer_of_the_archive_serves_a_session_and_its_failures_end_the_asking(
    archived: Sites, here: FetchSession
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    for path in installed(here).values():
        path.unlink()
    for model in archived.world.ids():
        archived.world.remove(model)
    archived.alter = lambda request, response: error(503, "down") if request.origin == "civarchive" else response
    archived.clear()
    results, _ = told(lambda: here.repair(refill=True))
    assert {result.code for result in results} == {"gone"}
    assert len(bodies(archived, "civarchive")) <= 9
    assert any("not asked, after 3 failures in a row" in str(result.reason) for result in results)


# --- resuming


@pytest.mark.parametrize("order", [("lying", "right"), ("right", "lying")])
def test_a_stopped_download_from_a_mirror_goes_on_at_its_byte(
    archived: Sites, here: FetchSession, order: tuple[str, str]
) -> None:
    _, file, content = first(archived)
    archived.civarchive.keep(file["id"], *order)
    path, _ = lose(here, archived)
    cut = [True]

    def cutting(request: Request, response: Response) -> Response:
        if request.path.startswith("/right/") and cut:
            response.cut_after = 1000
            if "range" in request.headers:
                cut.clear()
                response.cut_after = 0
        return response

    archived.alter = cutting
    (result,), _ = told(here.repair)
    assert result.state == "failed"
    assert [part.stat().st_size for part in here.folder.glob("*.part")] == [1000]
    assert all("range" not in r.headers for r in archived.requests if r.path.startswith("/lying/"))
    archived.clear()
    (result,), _ = told(FetchSession(here.library, clock=here.clock, site=here.civitai).repair)
    assert (result.state, path.read_bytes()) == ("done", content)
    (request,) = [request for request in archived.requests if request.origin == "mirrors"]
    assert request.headers["range"] == "bytes=1000-", "and the liar was not asked again"
    assert request.sent == len(content) - 1000
    all_is_right(here)


# --- what the machine says


def test_a_machine_that_keeps_off_the_hub_does_not_ask_it_for_others(
    archived: Sites, hub: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file, content = first(hub)
    hub.civarchive.keep(file["id"], "right")
    hub.hub.add("someone/copies", {"ink.pt": content})
    here.pull("hf:someone/copies")
    here.sync(EVERYTHING, all_versions=True)
    model, _, _ = first(hub)
    path = installed(here)[sha(content)]
    path.unlink()
    hub.world.remove(model)
    hub.alter = lambda request, response: error(404, "no") if request.origin == "hub" else response
    hub.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    session = FetchSession(here.library, clock=here.clock, site=here.civitai)
    results, _ = told(session.repair)
    assert "done" in {result.state for result in results}
    assert sha(path.read_bytes()) == sha(content)
    assert not [request for request in hub.requests if request.origin == "hub"]


def test_a_machine_that_keeps_off_the_hub_does_not_fetch_again_from_it(
    hub: Sites, here: FetchSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.hub.add("someone/nets", {"ink.pt": first(hub)[2]})
    (fetched,) = here.pull("hf:someone/nets")
    Path(fetched.paths[0]).unlink()
    hub.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (left,) = here.repair(refill=True)
    assert (left.state, left.code, left.reason) == ("failed", "network", "the hub is not asked: HF_HUB_OFFLINE is set")
    assert not [request for request in hub.requests if request.origin == "hub"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert [result.state for result in here.repair(refill=True)] == ["done"]
