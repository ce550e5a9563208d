"""What is secret in an address is kept and shown nowhere, and a token reaches no proxy and no page."""

from __future__ import annotations

import base64
import hashlib
import html
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support import networks
from support.fake_sites import Sites, World
from support.fake_sites.messages import Request, Response
from support.fast_clock import FastClock
from support.fetching import EVERYTHING, installed, jobs_of
from support.told import told

from hnetkit.errors import HnetkitError, NetworkFailed, UsageError
from hnetkit.generate.loading.model_source import hub_request, require_safe_hub
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.http import HttpClient, RateLimiter
from hnetkit.sources.huggingface import Hub
from hnetkit.sources.references import parse_reference
from hnetkit.sources.session import FetchSession
from hnetkit.sources.trust import Origin, SitePolicy, redact, token_remover

SECRET = "SeCrEt0123456789abcdef"
TOKEN = "ToKeN-0123456789/abc+def"


def everything_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# --- addresses


@pytest.fixture
def ink(tmp_path: Path) -> bytes:
    return networks.network_file(tmp_path, "ink.pt", seed=5).read_bytes()


@pytest.fixture
def host(ink: bytes) -> Iterator[Sites]:
    """A host of files that gives them to those only who know the secret."""
    with Sites(World.make(1), repos={"a/b": {"ink.bin": ink, "page.bin": b"<html>nothing</html>" * 9}}) as sites:

        def guarded(request: Request, response: Response) -> Response:
            known = SECRET in request.target or request.origin != "hub"
            return response if known else Response(403, {"Content-Type": "text/plain"}, b"no")

        sites.alter = guarded
        yield sites


def queries(secret: str) -> list[str]:
    names = ("sig", "X-Amz-Signature", "key", "auth_token", "token", "access_token", "Policy", "hdnts")
    return [f"{name}={secret}" for name in names] + [f"a=1&{secret}", secret]


@pytest.mark.parametrize("query", queries(SECRET))
def test_a_secret_in_an_address_fetches_and_resumes_and_is_kept_nowhere(
    host: Sites, here: FetchSession, home: Path, ink: bytes, query: str
) -> None:
    cut = iter([True])

    def breaking(request: Request, response: Response, before: Any = host.alter) -> Response:
        response = before(request, response)
        if request.origin == "storage" and next(cut, False):
            response.cut_after = len(response.body) // 2
        return response

    host.alter = breaking
    url = f"{host.hub_url}/a/b/resolve/main/ink.bin"
    (job,) = jobs_of(here, here.pull(f"{url}?{query}#{SECRET}", sha256=hashlib.sha256(ink).hexdigest()))
    assert job.state == "done"
    assert job.url == f"{url}?..."
    (bad,) = jobs_of(here, here.pull(f"{url.replace('ink', 'page')}?{query}", sha256="ab" * 32))
    assert bad.state == "refused"
    assert SECRET not in f"{job}{bad}"
    assert SECRET.encode() not in everything_below(home)
    assert hashlib.sha256(f"{url}?{query}".encode()).hexdigest()[:16] not in job.key


def test_the_same_address_with_another_signature_goes_on_with_the_same_job(
    host: Sites, here: FetchSession, ink: bytes
) -> None:
    url, digest = f"{host.hub_url}/a/b/resolve/main/ink.bin", hashlib.sha256(ink).hexdigest()
    (first,) = here.pull(f"{url}?sig={SECRET}", sha256="ab" * 32)
    (again,) = here.pull(f"{url}?sig={SECRET}2", sha256="ab" * 32)
    assert first.job == again.job
    assert here.pull(f"{url}?sig={SECRET}", sha256=digest)[0].state == "done"


def test_a_job_whose_address_was_not_kept_says_so_and_asks_for_it(
    site: Sites, host: Sites, here: FetchSession, open_session: Callable[..., FetchSession], ink: bytes
) -> None:
    url, digest = f"{host.hub_url}/a/b/resolve/main/ink.bin", hashlib.sha256(ink).hexdigest()
    (job,) = here.pull(f"{url}?sig={SECRET}", sha256=digest)
    for path in installed(here).values():
        path.unlink()
    with here.registry.write():
        here.registry.files.set_state([row["id"] for row in here.registry.files.rows()], "missing")
        here.registry.jobs.requeue(job.job)
    (later,) = open_session(site).run([job.job])
    assert later.state == "failed"
    assert "complete address was not stored" in str(later.reason)
    assert here.pull(f"{url}?sig={SECRET}", sha256=digest)[0].state == "done"


@pytest.mark.parametrize("port_open", [True, False])
def test_a_command_that_fails_shows_no_secret_of_an_address(
    host: Sites, home: Path, tmp_path: Path, port_open: bool
) -> None:
    """With all that HNETKIT_DEBUG shows, of a refused download and of a connection that fails."""
    base = f"{host.hub_url}/a/b/resolve/main" if port_open else "http://127.0.0.1:9"
    environment = {"HNETKIT_HOME": str(home), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HNETKIT_DEBUG": "1"}
    program = "import hnetkit.sources.http as r; r.LONGEST_WAIT_S = 0.01; from hnetkit.cli import main; main()"
    sha256 = ["--sha256", "ab" * 32]
    for address, more in (
        (f"{base}/nothing.pt?sig={SECRET}#{SECRET}", sha256),
        (f"http://u:{SECRET}@127.0.0.1/x.pt", sha256),
        (f"https://h/x?{SECRET}", []),
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-c", program, "pull", address, *more],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode not in (0, None)
        assert SECRET not in done.stdout + done.stderr
    assert SECRET.encode() not in everything_below(home)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h:8/p.pt?a=b", "https://h:8/p.pt?..."),
        ("https://h/p.pt#f", "https://h/p.pt?..."),
        ("https://u:p@h.x/a@b", "https://h.x/a@b"),
        ("https://u:p@[::1]:8/a@b", "https://[::1]:8/a@b"),
        ("https://h.x/@a/b?c=d@e", "https://h.x/@a/b?..."),
        ("https://u:p/w@h.x/y", "https://h.x/y"),
        ("https://u:1/w@h.x/y", "https://h.x/y"),
        ("https://u:p.q/w@h.x/y", "https://h.x/y"),
        ("https://u:p@q/w@h.x/y", "https://h.x/y"),
        ("https://u:p?w@h.x/y", "https://?..."),
        ("https://u:p#w@h.x/y", "https://?..."),
        ("https://p/w@h.x/y", "https://h.x/y"),
        ("https://u:p@w@h/x", "https://h/x"),
        ("https:///u:p@h/x", "h/x"),
        ("https:/u:p@h/x", "h/x"),
        ("u:p@h", "h"),
        ("https://h/x?u=https://u:p@h", "https://h/x?..."),
    ],
)
def test_an_address_is_shown_without_what_may_be_secret(url: str, shown: str) -> None:
    assert redact(url) == shown


@pytest.mark.parametrize("base", [f"https://u:{SECRET}@h/api", f"https://h/api?key={SECRET}", f"https://h/#{SECRET}"])
def test_a_site_is_set_up_without_a_secret_in_its_address(monkeypatch: pytest.MonkeyPatch, base: str) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", base)
    monkeypatch.setenv("HF_ENDPOINT", base)
    for site in (Civitai, Hub):
        with pytest.raises(UsageError) as caught:
            site(FastClock())
        assert SECRET not in told(caught.value)


# --- proxies, and plain http


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """A proxy for everything, which writes down what it hears and answers nothing."""
    import threading

    heard: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                heard.append(client.recv(65_536))

    threading.Thread(target=serve, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with server:
        yield heard


def test_loopback_is_never_reached_through_a_proxy(
    site: Sites, here: FetchSession, proxy: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", site.hub_url)
    monkeypatch.setenv("HF_TOKEN", site.hub_token)
    site.hub.add("a/b", {"ink.pt": site.world.content(site.world.models[0]["modelVersions"][0]["files"][0]["id"])})
    assert {job.state for job in jobs_of(here, here.sync(EVERYTHING, all_versions=True))} == {"done"}
    assert [result.state for result in here.pull("hf:a/b")] == ["have"]
    assert proxy == []


def test_what_a_proxy_hears_of_https_is_where_to_and_no_token(proxy: list[bytes]) -> None:
    web = HttpClient(
        SitePolicy(Origin.of("https://civitai.com/api/v1"), TOKEN), FastClock(), RateLimiter(FastClock(), 50.0)
    )
    with pytest.raises(Exception, match=r"prox|connection"), web.open("https://civitai.com/api/v1/models"):
        pass
    assert [line.split(b" HTTP")[0] for line in proxy] == [b"CONNECT civitai.com:443"]
    assert TOKEN.encode() not in b"".join(proxy)


def test_the_hubs_token_does_not_go_over_plain_http(
    session: FetchSession, proxy: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", f"hf_{SECRET}")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with pytest.raises(UsageError, match="plain http"):
        session.pull("hf:a/b")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    with pytest.raises(HnetkitError, match="plain http"), hub_request("a/b"):
        raise AssertionError("the hub is not asked")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HnetkitError, match="plain http"):
        require_safe_hub("a/b")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    require_safe_hub("a/b")
    assert proxy == []


# --- a site that repeats what it hears


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "percent": lambda token: quote(token, safe=""),
    "all percent": lambda token: "".join(f"%{ord(c):02X}" for c in token),
    "json": lambda token: "".join(f"\\u{ord(c):04x}" for c in token),
    "json, mixed": lambda token: token[:5] + "".join(f"\\u{ord(c):04X}" for c in token[5:]),
    "html": lambda token: html.escape("".join(f"&#{ord(c)};" for c in token)).replace("&amp;", "&"),
    "percent of percent": lambda token: "".join(f"%25{ord(c):02X}" for c in token),
    "json in json": lambda token: "".join(f"\\\\u{ord(c):04x}" for c in token),
    "hex": lambda token: token.encode().hex().upper(),
    "html without semicolons": lambda token: "".join(f"&#{ord(c)}" for c in token),
    "html in hex": lambda token: "".join(f"&#x{ord(c):x};" for c in token),
    "base64": lambda token: base64.b64encode(token.encode()).decode(),
    "base64 of the header": lambda token: base64.b64encode(f"Bearer {token}".encode()).decode(),
    "base64 in a text": lambda token: base64.urlsafe_b64encode(f"Authorization: Bearer {token}, x".encode()).decode(),
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("token", [TOKEN, SECRET])
def test_a_token_is_taken_out_of_a_text_in_every_spelling(spelling: Callable[[str], str], token: str) -> None:
    text = f"you said {spelling(token)}!"
    cleaned = token_remover(token)(text)
    assert cleaned.startswith("you said ")
    assert cleaned.count("[token]") == 1
    assert len(cleaned) < len(text) - len(token) + len("[token]") + 1
    assert token_remover(token)("nothing of it: SeCrEt") == "nothing of it: SeCrEt"
    assert token_remover("short")("short words") == "short words", "no site gives out such tokens"


@pytest.mark.parametrize("said", ["civ\\/tok\\+en==01234", "civ&sol;tok&plus;en&equals;&equals;01234"])
def test_a_token_with_signs_is_taken_out_also_where_these_are_escaped(said: str) -> None:
    assert token_remover("civ/tok+en==01234")(f"you said {said}!") == "you said [token]!"


@pytest.mark.parametrize("spelling", ["as it is", "percent", "json", "base64 of the header"])
@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_site_that_repeats_the_token_has_it_shown_and_kept_nowhere(
    site: Sites, here: FetchSession, home: Path, spelling: str, status: int
) -> None:
    said = SPELLINGS[spelling](site.token)

    def repeating(request: Request, response: Response) -> Response:
        if request.path.startswith("/api/download/"):
            body = f'{{"error": "Forbidden", "message": "not with Authorization: Bearer {said}"}}'
            headers = {"Content-Type": "application/json", "ETag": f'"{said}"', "X-Said": said}
            return Response(status, headers, body.encode())
        return response

    site.alter = repeating
    (job,) = here.pull(f"version:{site.world.models[0]['modelVersions'][0]['id']}")[:1]
    assert job.state == "failed"
    assert site.token not in str(job)
    assert said.replace("\\u", "u")[8:24] not in str(job).replace("\\u", "u")
    assert site.token.encode() not in everything_below(home)


def test_a_redirect_that_repeats_the_token_does_not_pass_it_on(site: Sites, here: FetchSession) -> None:
    def leading(request: Request, response: Response) -> Response:
        if request.path.startswith("/api/download/"):
            return Response(302, {"Location": f"{site.stranger_url}/{site.token}?t={site.token}"})
        return response

    site.alter = leading
    here.pull(f"model:{site.world.ids()[0]}")
    came = [r for r in site.requests if r.origin == "stranger"]
    assert came
    assert not any(site.token in f"{r.path}{r.query}{r.headers}" for r in came)


def test_cookies_are_neither_kept_nor_sent(site: Sites, here: FetchSession) -> None:
    def baking(request: Request, response: Response) -> Response:
        response.headers["Set-Cookie"] = f"session={SECRET}; Path=/"
        return response

    site.alter = baking
    here.sync(EVERYTHING, all_versions=True)
    assert not [r for r in site.requests if "cookie" in r.headers]


# --- somebody's own network


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Names of the test's own -> the addresses that they lead to."""
    names: dict[str, str] = {}
    ask = socket.getaddrinfo

    def answered(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        return ask(names.get(host, host), port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answered)
    return names


@pytest.mark.parametrize("base", ["https://public.example/x.pt", "https://civitai.com/api/v1"])
def test_a_public_name_that_leads_into_a_private_network_is_not_asked(named: dict[str, str], base: str) -> None:
    named["public.example"] = "127.0.0.1"
    server = socket.create_server(("127.0.0.1", 0))
    with server:
        url = f"https://public.example:{server.getsockname()[1]}/x.pt"
        trust = SitePolicy(Origin.of(url if "public" in base else base), settled="public" not in base)
        with (
            pytest.raises(NetworkFailed, match="private network"),
            HttpClient(trust, FastClock(), RateLimiter(FastClock())).open(url),
        ):
            pass
        server.settimeout(5)
        client, _ = server.accept()
        client.settimeout(5)
        assert client.recv(100) == b"", "not a byte was sent"


@pytest.mark.parametrize(
    "peer",
    [
        *("10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "100.64.0.1", "192.0.0.8", "0.0.0.0", "224.0.0.1"),
        *("::1", "::", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "64:ff9b:1::1"),
        *("::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "2002:7f00:1::", "2002:a00:1::1"),
        *("::ffff:0:10.0.0.1", "what is no address"),
    ],
)
def test_no_spelling_of_a_private_address_is_a_public_machine(peer: str) -> None:
    trust = SitePolicy(Origin.of("https://civitai.com"))
    assert not trust.may_reach(Origin.of("https://storage.example/x"), peer)
    assert trust.may_reach(Origin.of("https://civitai.com"), peer), (
        "a site that a person set up may be in their network"
    )
    if "%" not in peer and " " not in peer:
        with pytest.raises(NetworkFailed):
            trust.check(f"https://[{peer}]/" if ":" in peer else f"https://{peer}/")


@pytest.mark.parametrize("peer", ["8.8.8.8", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8", "198.18.0.7"])
def test_a_public_machine_may_be_asked_also_through_translation_and_tunnels(peer: str) -> None:
    assert SitePolicy(Origin.of("https://civitai.com")).may_reach(Origin.of("https://storage.example/x"), peer)


@pytest.mark.parametrize("host", ["nas.lan", "x.home", "x.home.arpa", "x.internal", "x.local", "x.localdomain"])
def test_a_file_of_a_private_network_is_not_pulled(session: FetchSession, host: str) -> None:
    with pytest.raises(UsageError, match="private network"):
        session.pull(f"https://{host}/x.pt", sha256="ab" * 32)


def test_a_reference_is_shown_without_its_address() -> None:
    assert SECRET not in repr(parse_reference(f"https://h/x.pt?sig={SECRET}"))


@pytest.mark.parametrize("address", [f"https://me:{SECRET}@hub.example", f"https://hub.example?key={SECRET}"])
def test_a_hubs_address_with_a_secret_in_it_is_refused_and_not_said(
    session: FetchSession, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """huggingface_hub prints it where the hub is out of reach."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with pytest.raises(UsageError, match="more than a site's address") as refused:
        session.pull("hf:a/b")
    assert SECRET not in told(refused.value)
    with pytest.raises(HnetkitError, match="more than a site's address"):
        require_safe_hub("a/b")
