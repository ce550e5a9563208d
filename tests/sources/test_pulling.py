"""`pull`: whatever a person types to mean a network, from Civitai, the hub, or a plain address."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from huggingface_hub import constants
from support import networks
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response, json_response
from support.fetching import EVERYTHING, installed, jobs_of

import hnetkit
from hnetkit.errors import Gone, HnetkitError, NotAHypernetwork, UsageError
from hnetkit.library.scan import scan
from hnetkit.sources.install import safe_stem
from hnetkit.sources.session import FetchSession
from hnetkit.sources.workers import Worker

REPO = "someone/nets"


@pytest.fixture
def ink(tmp_path: Path) -> bytes:
    return networks.network_file(tmp_path, "ink.pt", seed=5).read_bytes()


@pytest.fixture
def hub_sites(ink: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    """A hub with one repository: networks in folders, a VAE's page, a README."""
    files = {
        "README.md": b"# nets\n",
        "styles/ink.pt": ink,
        "styles/page.pt": b"<html>nothing</html>" * 400,
        "other/notes.txt": b"x",
    }
    with Sites(World.make(3), repos={REPO: files}) as sites:
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield sites


def test_every_way_to_say_a_version_brings_the_same_file(
    open_session: Callable[..., FetchSession],
) -> None:
    with Sites(World.make(1, plain=True)) as sites:
        session = open_session(sites)
        model = sites.world.models[0]
        version = model["modelVersions"][0]
        digest = sites.world.sha256(version["files"][0]["id"]).lower()
        base = sites.civitai_url.removesuffix("/api/v1")
        says = [
            f"https://civitai.com/models/{model['id']}/some-slug?modelVersionId={version['id']}",
            f"https://civitai.red/models/{model['id']}",
            f"https://www.civitai.green/models/{model['id']}",
            f"{base}/api/download/models/{version['id']}",
            f"model:{model['id']}",
            f"version:{version['id']}",
            f"urn:air:sd1:hypernet:civitai:{model['id']}@{version['id']}",
            f"civitai:{model['id']}@{version['id']}",
            digest,
            digest[:10].upper(),
        ]
        for text in says:
            session.pull(text)
            ((found, path),) = installed(session).items()
            assert found == digest, text
            path.unlink()
            list(scan(session.registry))


def test_a_repository_gives_its_networks_and_says_what_the_rest_is(
    hub_sites: Sites, ink: bytes, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(hub_sites)
    jobs = {job.name: job for job in jobs_of(session, session.pull(f"hf:{REPO}"))}
    assert set(jobs) == {"ink", "page"}
    assert (jobs["ink"].state, jobs["page"].state) == ("done", "refused")
    assert "web page" in str(jobs["page"].reason)
    assert set(installed(session)) == {hashlib.sha256(ink).hexdigest()}
    (row,) = session.registry.catalogue.files_with([hashlib.sha256(ink).hexdigest()])
    assert (row["source"], row["model"], row["file_name"]) == ("huggingface", REPO, "styles/ink.pt")
    commit = jobs["ink"].key.split("@")[1].split(":")[0]
    assert len(commit) == 40
    assert f"/resolve/{commit}/" in jobs["ink"].url
    assert row["version_id"] == commit


def test_a_network_without_a_name_of_its_own_is_called_like_its_file(
    hub: Sites, open_session: Callable[..., FetchSession], tmp_path: Path
) -> None:
    nameless = networks.save_pt(networks.a1111_network(name=""), tmp_path / "x.pt").read_bytes()
    hub.hub.add(REPO, {"styles/glow.pt": nameless})
    session = open_session(hub)
    session.pull(f"hf:{REPO}")
    (row,) = session.registry.networks.rows()
    (before,), (path,) = session.registry.files.of_networks(), installed(session).values()
    assert (row["name"], path.stem, before["path"]) == ("glow", "glow", str(path))
    path.touch()
    list(scan(session.registry))
    assert session.registry.networks.rows() == [row]


def test_what_a_repository_has_that_is_no_network_is_fetched_once_and_again_only_by_its_name(
    hub_sites: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(hub_sites)
    states: list[dict[str, str]] = []
    for text in (f"hf:{REPO}", f"hf:{REPO}", f"hf:{REPO}:styles/page.pt"):
        hub_sites.clear()
        states.append({result.name: result.state for result in session.pull(text)})
        asked = [request for request in hub_sites.requests if request.path.endswith("/page.pt")]
        assert bool(asked) == (len(states) != 2)
    assert states == [
        {"ink.pt": "done", "page.pt": "refused"},
        {"styles/ink.pt": "have", "styles/page.pt": "skipped"},
        {"page.pt": "refused"},
    ]


def test_a_file_that_another_process_is_fetching_is_not_taken_from_it(
    hub_sites: Sites, open_session: Callable[..., FetchSession], tmp_path: Path
) -> None:
    session = open_session(hub_sites)
    (job,) = session.enqueue(session.plan_pull(f"hf:{REPO}:styles/ink.pt"), [])
    with Worker(session.folder.parent / "workers") as other:
        with session.registry.write():
            assert session.registry.jobs.claim(job, other.name, None)
        (same,) = session.enqueue(session.plan_pull(f"hf:{REPO}:styles/ink.pt"), [])
        assert (same, session.registry.jobs.get(job).owner) == (job, other.name)
    assert [done.state for done in session.run([job])] == ["done"]


def test_who_waits_for_a_file_of_another_process_alone_is_told(
    hub_sites: Sites, open_session: Callable[..., FetchSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, told = open_session(hub_sites), list[str]()
    (job,) = session.enqueue(session.plan_pull(f"hf:{REPO}:styles/ink.pt"), [])
    with ExitStack() as stopped, warnings.catch_warnings():
        other = stopped.enter_context(Worker(session.folder.parent / "workers"))
        with session.registry.write():
            assert session.registry.jobs.claim(job, other.name, None)

        def show(message: Warning | str, *about: object, **more: object) -> None:
            told.append(str(message))
            stopped.close()

        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        assert [done.state for done in session.run([job])] == ["done"]
    assert told == ["1 file left, which another process has begun: waiting for it"]


def test_a_pattern_chooses_among_a_repositorys_files_and_none_is_said(
    hub_sites: Sites, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(hub_sites)
    (job,) = jobs_of(session, session.pull(f"hf:{REPO}:styles/i*.pt"))
    assert job.name == "ink"
    with pytest.raises(Gone, match=r"README\.md"):
        jobs_of(session, session.pull(f"hf:{REPO}:*.safetensors"))
    with pytest.raises(Gone, match="no such repository"):
        jobs_of(session, session.pull("hf:nobody/nothing"))


@pytest.mark.parametrize(
    "page", ["", "/tree/main", "/tree/main/styles", "/blob/main/styles/ink.pt", "/resolve/main/styles/ink.pt"]
)
def test_a_page_of_the_hub_is_fetched_as_what_it_shows(
    hub_sites: Sites, ink: bytes, open_session: Callable[..., FetchSession], page: str
) -> None:
    session = open_session(hub_sites)
    results = {result.name: result.state for result in session.pull(f"{hub_sites.hub_url}/{REPO}{page}")}
    assert results.pop("ink.pt") == "done"
    assert results == ({} if page.endswith(".pt") else {"page.pt": "refused"})
    assert set(installed(session)) == {hashlib.sha256(ink).hexdigest()}


def test_a_folder_of_a_repository_is_a_pattern_too(hub_sites: Sites, open_session: Callable[..., FetchSession]) -> None:
    found = open_session(hub_sites).pull(f"hf:{REPO}:styles")
    assert {result.name for result in found} == {"ink.pt", "page.pt"}


@pytest.mark.parametrize("answer", [404, "without its model"])
def test_the_model_in_an_address_is_asked_where_the_page_of_the_version_fails(
    site: Sites, here: FetchSession, answer: int | str
) -> None:
    model = site.world.models[0]
    version = model["modelVersions"][0]["id"]

    def alter(request: Request, response: Response) -> Response:
        if f"/model-versions/{version}" not in request.path:
            return response
        return json_response({"error": "not found"}, 404) if answer == 404 else json_response({"id": version})

    site.alter = alter
    (result,) = here.pull(f"https://civitai.com/models/{model['id']}/x?modelVersionId={version}")
    assert (result.state, result.version_id) == ("done", str(version))


def test_a_version_of_another_model_than_the_address_says_is_refused(site: Sites, here: FetchSession) -> None:
    first, second, *_ = site.world.models
    with pytest.raises(UsageError, match=f"belongs to model {second['id']}, not to {first['id']}"):
        here.pull(f"civitai:{first['id']}@{second['modelVersions'][0]['id']}")


@pytest.mark.parametrize("by", ["model", "version", "hash"])
@pytest.mark.parametrize("kind", ["Checkpoint", "LORA"])
def test_a_page_of_another_kind_of_model_is_refused_before_anything_is_fetched(
    open_session: Callable[..., FetchSession], kind: str, by: str
) -> None:
    with Sites(World.make(1, others=2)) as sites:
        session = open_session(sites)
        model, version, file = next(found for found in sites.world.files(kind))
        text = {
            "model": f"model:{model['id']}",
            "version": f"version:{version['id']}",
            "hash": file["hashes"]["SHA256"],
        }
        with pytest.raises(NotAHypernetwork, match=f"the site calls it a {kind}"):
            session.pull(text[by])
        assert not [request for request in sites.requests if "/download/" in request.path]


def test_the_hubs_token_goes_to_the_hub_alone(
    hub_sites: Sites, open_session: Callable[..., FetchSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub_sites.hub_token)
    session = open_session(hub_sites)
    session.pull(f"hf:{REPO}:styles/ink.pt")
    heard = {r.origin for r in hub_sites.requests if hub_sites.hub_token in str(r.headers)}
    assert heard == {"hub"}


def test_a_plain_address_needs_its_hash_and_is_held_to_it(
    hub_sites: Sites, ink: bytes, open_session: Callable[..., FetchSession]
) -> None:
    session = open_session(hub_sites)
    url = f"{hub_sites.hub_url}/{REPO}/resolve/main/styles/ink.pt"
    digest = hashlib.sha256(ink).hexdigest()
    (wrong,) = session.pull(url, sha256="0" * 64)
    assert (wrong.state, wrong.code) == ("refused", "wrong-bytes")
    (right,) = session.pull(url, sha256=digest.upper())
    path = installed(session)[digest]
    path.unlink()
    (same,) = session.pull(f"{url}#sha256={digest.upper()}")  # as pip writes it
    assert (same.job, same.state, path.exists()) == (right.job, "done", True)
    with pytest.raises(UsageError, match="two different sha256"):
        session.pull(f"{url}#sha256={digest}", sha256="0" * 64)
    assert right.state == "done"
    assert set(installed(session)) == {digest}
    with pytest.raises(UsageError, match="needs --sha256"):
        session.pull("https://example.com/x.pt")
    with pytest.raises(UsageError, match="plain http"):
        session.pull("http://example.com/x.pt", sha256=digest)


def zipped(members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


@pytest.mark.parametrize(
    ("members", "installed", "state"),
    [
        ({"a/ink.pt": None, "b/ink.pt": None, "cover.png": b"\x89PNG"}, ["ink.pt"], "done"),
        ({"../../../evil.pt": None}, ["evil.pt"], "done"),
        ({"C:\\windows\\CON.pt": None}, [], "done"),
        ({"page.pt": b"<html></html>"}, [], "refused"),
        ({"notes.txt": b"nothing"}, [], "refused"),
        ({"bomb.pt": b"\0" * 40_000_000}, [], "refused"),
    ],
    ids=["two of one content", "climbing", "reserved", "no network", "no model", "bomb"],
)
def test_a_zip_is_unpacked_into_the_library_and_nowhere_else(
    ink: bytes,
    members: dict[str, bytes | None],
    installed: list[str],
    state: str,
    monkeypatch: pytest.MonkeyPatch,
    open_session: Callable[..., FetchSession],
) -> None:
    data = zipped({name: ink if content is None else content for name, content in members.items()})
    with Sites(World.make(1), repos={REPO: {"nets.zip": data}}) as sites:
        session = open_session(sites)
        url = f"{sites.hub_url}/{REPO}/resolve/main/nets.zip"
        (job,) = session.pull(url, sha256=hashlib.sha256(data).hexdigest())
        assert job.state == state
        names = sorted(path.name for path in session.folder.glob("*.pt"))
        if installed:
            assert names == installed
        for name in names:
            assert hnetkit.load(session.folder / name).widths
        outside = [path for path in session.folder.parent.rglob("*.pt") if path.parent != session.folder]
        assert outside == []
        assert not list(session.folder.glob(".hnetkit-*"))


def test_an_archive_is_fetched_again_only_when_something_of_it_is_gone(
    ink: bytes, open_session: Callable[..., FetchSession]
) -> None:
    data = zipped({"one.pt": ink, "notes.txt": b"nothing"})
    with Sites(World.make(1), repos={REPO: {"nets.zip": data}}) as sites:
        session = open_session(sites)
        url = f"{sites.hub_url}/{REPO}/resolve/main/nets.zip"

        def pulled() -> tuple[str, str | None, int]:
            (result,) = session.pull(url, sha256=hashlib.sha256(data).hexdigest())
            asked = sum(r.path.endswith("nets.zip") and r.method == "GET" for r in sites.requests)
            return result.state, result.code, asked

        assert pulled() == ("done", "unpacked", 1)
        assert pulled() == ("have", None, 1)
        (session.folder / "one.pt").unlink()
        assert pulled() == ("done", "unpacked", 2)
        assert (session.folder / "one.pt").read_bytes() == ink


def test_what_is_no_way_to_say_a_network_is_a_usage_error(session: FetchSession) -> None:
    for text in ("nonsense", "model:x", "https://civitai.com/articles/5", "hf:alone", "ftp://host/x.pt", ""):
        with pytest.raises(UsageError):
            session.pull(text)


def test_what_the_site_does_not_have_is_said(session: FetchSession) -> None:
    for text in ("model:5", "version:5", "0" * 64):
        with pytest.raises(HnetkitError) as error:
            session.pull(text)
        assert error.value.exit_code == 4


def test_names_that_no_prompt_can_say_are_changed_and_the_sites_own_is_kept(
    sites: Sites, session: FetchSession
) -> None:
    for job in [result for result in session.sync(EVERYTHING, all_versions=True) if result.job is not None]:
        assert safe_stem(job.name, "x") == job.name
        assert not set(job.name) & set(':<>,/\\"|?*')
    names = {row["file_name"] for row in session.registry.catalogue.files()}
    assert any(set(name) & set("/%$ ") for name in names)


def test_a_number_that_the_site_does_not_have_may_be_one_of_the_other_kind(sites: Sites, session: FetchSession) -> None:
    model, version, _ = next(iter(sites.world.files()))
    for text, what, instead in (
        (f"version:{model['id']}", "version", "model"),
        (f"{sites.civitai_url}/model-versions/{model['id']}", "version", "model"),
        (f"model:{version['id']}", "model", "version"),
    ):
        with pytest.raises(Gone, match=f"the site has no {what} [0-9]+; the number may be a {instead}'s") as caught:
            session.pull(text)
        assert str(caught.value).startswith(f"{text}: ")
        number = model["id"] if what == "version" else version["id"]
        assert caught.value.command_hint == f"hnetkit pull {instead}:{number}"
