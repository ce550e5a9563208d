"""Over real sockets: who hears a token, and that it is kept and shown nowhere."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.fake_sites import Fault, Sites, World
from support.fake_sites.messages import Ledger, Recorded, Request, Response
from support.fake_sites.server import Origin as Server
from support.fast_clock import FastClock
from support.fetching import EVERYTHING
from support.told import told

from hnetkit.errors import HnetkitError, NetworkFailed, UsageError
from hnetkit.hub import hub_token
from hnetkit.registry import Registry
from hnetkit.sources.civitai import CIVITAI_HOSTS, Civitai
from hnetkit.sources.http import HttpClient, RateLimiter, TransientError
from hnetkit.sources.huggingface import Hub
from hnetkit.sources.references import parse_reference
from hnetkit.sources.session import FetchSession
from hnetkit.sources.trust import Origin, SitePolicy, token_finder

TOKEN = "SeCrEt0123456789abcdef"
CIVITAI = SitePolicy(Origin.of("https://civitai.com/api/v1"), TOKEN, CIVITAI_HOSTS)


def carries_token(request: Recorded, token: str) -> bool:
    return (
        "authorization" in request.headers or "token" in request.query or token in f"{request.query}{request.headers}"
    )


@contextmanager
def served(answer: Callable[[Request], Response]) -> Iterator[tuple[str, Ledger]]:
    """One more origin, with answers of a test's own; its address, and what came."""
    ledger = Ledger()
    server = Server("own", answer, ledger)
    server.start()
    try:
        yield server.url, ledger
    finally:
        server.close()


def web_to(base: str) -> HttpClient:
    clock = FastClock()
    return HttpClient(SitePolicy(Origin.of(base), TOKEN, CIVITAI_HOSTS), clock, RateLimiter(clock, 50.0))


def everything_written(folder: Path) -> bytes:
    """All bytes below a folder, and what is packed in the registry."""
    written = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    with Registry(folder / "registry.db") as registry:
        for table in ("models", "versions", "remote_files", "images", "jobs", "installs", "files"):
            for row in registry.catalogue._db.execute(f"SELECT * FROM {table}"):
                for value in row:
                    if isinstance(value, bytes) and value[:1] == b"x":
                        written += zlib.decompress(value)
                    else:
                        written += str(value).encode()
    return written


def test_the_api_hears_the_token_and_storage_and_pictures_never_do(session: FetchSession, sites: Sites) -> None:
    sites.needs_token = True
    (job,) = session.pull(f"model:{sites.world.ids()[0]}")
    assert job.state == "done"
    by_origin = {origin: [r for r in sites.requests if r.origin == origin] for origin in ("api", "storage")}
    assert all(r.headers["authorization"] == f"Bearer {sites.token}" for r in by_origin["api"])
    assert {r.path.split("/")[1] for r in by_origin["storage"]} == {"files", "images"}
    for request in by_origin["storage"]:
        assert not carries_token(request, sites.token)
        assert "cookie" not in request.headers
    assert not [r for r in sites.requests if "token" in r.query], "query tokens land in the logs of proxies"


def test_a_stranger_that_a_redirect_leads_to_never_hears_the_token(session: FetchSession, sites: Sites) -> None:
    sites.faults.add(Fault("Q", "api", times=20, mode="stranger"))
    session.pull(f"model:{sites.world.ids()[0]}")
    came = [r for r in sites.requests if r.origin == "stranger"]
    assert came, "from a loopback base a redirect to loopback is followed"
    assert not any(carries_token(r, sites.token) for r in came)


def test_a_backslash_in_a_redirect_leads_no_token_to_another_origin(sites: Sites) -> None:
    """`http://stranger\\@api/` is the stranger for who connects, whatever it is for who reads."""
    api = urlsplit(sites.civitai_url)
    location = f"{sites.stranger_url}\\@{api.netloc}/taken"
    with served(lambda request: Response(302, {"Location": location})) as (url, _):
        for base in (sites.civitai_url, url):
            try:
                with web_to(base).open(url if base == url else location):
                    pass
            except (NetworkFailed, TransientError):
                pass
    assert not [r for r in sites.requests if r.origin == "stranger" and "authorization" in r.headers]


def test_what_is_sent_to_a_site_is_not_sent_on_to_another(sites: Sites) -> None:
    location = f"{sites.stranger_url}/taken"
    for status in (301, 302, 303, 307, 308):
        with served(lambda request, status=status: Response(status, {"Location": location})) as (url, ledger):
            refused = pytest.raises(NetworkFailed, match="would be sent on") if status > 303 else nullcontext()
            with refused, web_to(url).open(f"{url}/x", method="POST", body=b"[]"):
                pass
            (first,) = ledger.entries()
            assert (first.method, first.headers["authorization"]) == ("POST", f"Bearer {TOKEN}")
    came = [r for r in sites.requests if r.origin == "stranger"]
    assert [(r.method, r.body_size) for r in came] == [("GET", 0)] * 3
    assert not any(carries_token(r, TOKEN) for r in came)


@pytest.mark.parametrize(
    "location",
    [
        "http://[",
        "https://[::1",
        "http://h\u00e9\u2100/x",
        "https://",
        "//",
        "https://127.0.0.1:99999/",
        "file:///etc/passwd",
        "javascript:1",
        "http://10.0.0.1/x",
        "https://10.0.0.1/x",
        "http://example.com/x",
        "ftp://civitai.com/x",
    ],
)
def test_a_redirect_to_nowhere_good_fails_in_words(location: str) -> None:
    wire = location.encode().decode("latin-1")
    with (
        served(lambda request: Response(302, {"Location": wire} if request.path == "/x" else {})) as (url, ledger),
        pytest.raises((NetworkFailed, TransientError)),
        web_to(url).open(f"{url}/x") as response,
    ):
        assert response.url == f"{url}/x"  # "//" leads to the page itself, again and again
    assert len(ledger.entries()) <= 11


def test_redirects_end_after_ten_hops() -> None:
    def onwards(request: Request) -> Response:
        return Response(302, {"Location": f"/{int(request.path[1:]) + 1}"})

    with (
        served(onwards) as (url, ledger),
        pytest.raises(NetworkFailed, match="10 redirects"),
        web_to(url).open(f"{url}/0"),
    ):
        pass
    assert len(ledger.entries()) == 11


NETRC = "machine 127.0.0.1 login somebody password hunter2\nmachine localhost login a password hunter2\n"
NETRC += "default login anybody password hunter2\n"


@pytest.mark.parametrize("has_token", [True, False])
def test_a_netrc_changes_nothing_about_what_is_sent(
    sites: Sites, session: FetchSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_token: bool
) -> None:
    """requests replaces a Bearer header by what ~/.netrc says, and adds one for the host behind a redirect."""
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text(NETRC)
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    if not has_token:
        session.civitai = Civitai(session.clock, base=sites.civitai_url)
    sites.needs_token = has_token
    (job,) = session.pull(f"model:{sites.world.ids()[0]}")
    assert job.state == "done"
    said = {r.headers.get("authorization") for r in sites.requests if r.origin == "api"}
    assert said == {f"Bearer {sites.token}" if has_token else None}
    assert not [r for r in sites.requests if r.origin == "storage" and "authorization" in r.headers]


TROUBLES = [
    Fault("N", "api", times=50, status=403),
    Fault("N", "api", times=50, status=410),
    Fault("N", "api", times=50, status=451),
    Fault("I", "api", times=50, status=500),
    Fault("I", "api", times=50, status=403),
    Fault("I", "storage", times=50, status=500),
    Fault("B", "storage", times=50),
    Fault("C", "storage", times=50),
    Fault("E", "storage", times=50, after=10),
    Fault("E", "api", times=50, after=0, reset=True),
    Fault("G", "api", times=50),
    Fault("H", "api", times=50, retry_after=5000),
    Fault("L", "api", times=50),
    Fault("O", "api", times=50),
    Fault("Q", "api", times=50, mode="loop"),
    Fault("Q", "api", times=50, mode="stranger"),
    Fault("Q", "api", times=50, mode="file"),
]


def test_no_trouble_shows_or_keeps_the_token_or_a_signature(
    open_session: Callable[..., FetchSession], home: Path, logged: list[logging.LogRecord]
) -> None:
    with Sites(World.make(1, plain=True)) as sites:
        session = open_session(sites)
        (id,) = sites.world.ids()
        shown = [repr(session), repr(session.civitai), repr(session.civitai.client.policy), str(vars(session.civitai))]
        for fault in TROUBLES:
            sites.clear()
            sites.faults.add(fault)
            try:
                jobs = session.pull(f"model:{id}")
                assert [job.state for job in jobs] != ["done"], f"{fault} did not hurt"
                shown += [str(job) for job in jobs]
            except HnetkitError as error:
                shown.append(told(error))
            assert sites.faults.fired, f"{fault} never happened"
        records = "".join(f"{r.getMessage()}{r.args}{r.exc_text}" for r in logged)
        for secret in (sites.token, "X-Amz-Signature"):
            assert secret not in "".join(shown)
            assert secret.encode() not in everything_written(home)
        assert sites.token not in records


def test_a_command_that_fails_shows_and_keeps_no_token(sites: Sites, home: Path, tmp_path: Path) -> None:
    """As a person runs it: other process, token in the environment, all output, all files."""
    sites.needs_token = True
    environment = {"HNETKIT_HOME": str(home), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HNETKIT_DEBUG": "1"}
    environment |= {"CIVITAI_TOKEN": f" {sites.token}\n", "HNETKIT_CIVITAI_URL": sites.civitai_url}
    missing = sites.download_url(5)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "hnetkit", "pull", f"{missing}?token={sites.token}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 4, done.stderr
    assert sites.token not in done.stdout + done.stderr
    assert {r.headers["authorization"] for r in sites.requests if r.origin == "api"} == {f"Bearer {sites.token}"}
    assert sites.token.encode() not in everything_written(home)


def test_a_token_in_a_pasted_address_is_in_no_message(session: FetchSession, sites: Sites) -> None:
    version = sites.world.raw(sites.world.find("archived")[0])["modelVersions"][0]["id"]
    text = f"{sites.download_url(version)}?token={TOKEN}".replace(
        sites.civitai_url.removesuffix("/api/v1"), "https://civitai.com"
    )
    assert parse_reference(text).id == version
    with pytest.raises(HnetkitError) as caught:
        session.pull(text)
    assert TOKEN not in str(caught.value)


def test_a_plain_file_of_any_host_hears_no_token(
    session: FetchSession, sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVITAI_TOKEN", sites.token)
    monkeypatch.setenv("HF_TOKEN", sites.hub_token)
    session.pull(f"{sites.stranger_url}/a.pt", sha256="ab" * 32)
    (request,) = {r.path: r for r in sites.requests if r.origin == "stranger"}.values()
    assert not carries_token(request, sites.token)
    assert sites.hub_token not in str(request.headers)


def test_a_plain_file_over_plain_http_is_refused_before_anybody_is_asked(session: FetchSession) -> None:
    for url in ("http://example.com/a.pt", "http://192.168.1.5/a.pt"):
        with pytest.raises(UsageError):
            session.pull(url, sha256="ab" * 32)


# --- the hub


@pytest.fixture
def hub(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    """The fake hub, with one repository for those only who may see it."""
    from huggingface_hub import constants

    file = next(f for _, _, f in sites.world.files() if f["type"] == "Model")
    sites.hub.add("fake/hidden", {"styles/ink.pt": sites.world.content(file["id"])}, private=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
    return sites


@pytest.mark.parametrize("around", ["{}", " {}", "{}\n", "\t{}\r\n"])
def test_the_hub_hears_its_own_token_and_its_storage_does_not(
    hub: Sites, session: FetchSession, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", around.format(hub.hub_token))
    (job,) = session.pull("hf:fake/hidden")
    assert job.state == "done"
    said = {r.headers.get("authorization") for r in hub.requests if r.origin == "hub"}
    assert said == {f"Bearer {hub.hub_token}"}
    storage = [r for r in hub.requests if r.origin == "storage"]
    assert storage
    assert not any(carries_token(r, hub.hub_token) for r in storage)


@pytest.mark.parametrize("bad", [f"hf_{TOKEN}", f"hf_{TOKEN}\n{TOKEN}", f"hf_{TOKEN}\x7f", f"hf_{TOKEN}\u00e9"])
def test_the_hub_never_hears_the_token_of_civitai_nor_shows_a_bad_one(
    hub: Sites, session: FetchSession, home: Path, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", bad)
    monkeypatch.setenv("CIVITAI_TOKEN", hub.token)
    with pytest.raises(HnetkitError) as caught:
        session.pull("hf:fake/hidden")
    assert TOKEN not in told(caught.value)
    assert TOKEN.encode() not in everything_written(home)
    assert not [r for r in hub.requests if hub.token in str(r.headers)]


def test_a_hub_is_shown_without_its_token(hub: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.hub_token)
    site = Hub(FastClock())
    assert hub.hub_token not in repr(site) + repr(site.client) + repr(site.client.policy)


def test_a_file_and_a_picture_that_hold_the_token_are_not_kept(open_session: Callable[..., FetchSession]) -> None:
    with Sites(World.make(2, plain=True)) as site:
        file = next(site.world.files())[2]
        site.world.contents.put(file["id"], site.world.content(file["id"]) + site.token.encode())
        file["sizeKB"] = None

        def altered(request: Request, response: Response) -> Response:
            if "/images" in request.path:
                response.body = response.body + site.token.encode()
                response.headers.pop("Content-Length", None)
            return response

        site.alter = altered
        session = open_session(site)
        jobs = session.sync(EVERYTHING, all_versions=True)
        assert [(job.state, job.code) for job in jobs if job.state != "done"] == [("refused", "wrong-bytes")]
        assert len(jobs) > 1
        kept = [path for path in session.folder.rglob("*") if path.is_file()]
        assert not [path for path in kept if site.token.encode() in path.read_bytes()]
        assert not [path for path in kept if "preview" in path.name]


@pytest.mark.parametrize("size", [1, 5, 33, 1000])
def test_a_token_is_found_across_the_pieces_in_which_it_comes(size: int) -> None:
    body = b"x" * 77 + b"token-0123456789" + b"y" * 77
    has_token = token_finder("token-0123456789")
    assert any([has_token(body[at : at + size]) for at in range(0, len(body), size)])
    has_token = token_finder("token-0123456789")
    assert not any(has_token(piece) for piece in (b"token-", b"012345678", b"x9"))


@pytest.mark.skipif(os.name == "nt", reason="this system has no named pipes")
@pytest.mark.parametrize("kind", ["pipe", "long"])
def test_a_saved_token_that_is_none_is_refused_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("hf_" + "a" * 1_000_000)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UsageError, match="no token"):
        hub_token()
    monkeypatch.setenv("HF_TOKEN", "a" * 1_000_000)
    with pytest.raises(UsageError, match="no token"):
        hub_token()
