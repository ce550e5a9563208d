"""Which address hears the token, and which may be asked at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fast_clock import FastClock
from support.told import told

from hnetkit.errors import NetworkFailed, UsageError
from hnetkit.sources.civitai import CIVITAI_HOSTS, Civitai, civitai_base, civitai_token
from hnetkit.sources.trust import Origin, SitePolicy, redact

TOKEN = "SeCrEt0123456789abcdef"
CIVITAI = SitePolicy(Origin.of("https://civitai.com/api/v1"), TOKEN, CIVITAI_HOSTS)
LOOPBACK = SitePolicy(Origin.of("http://127.0.0.1:7999/api/v1"), TOKEN, CIVITAI_HOSTS)

OWN = [
    "https://civitai.com/api/v1/models",
    "https://civitai.red/api/v1/models",
    "https://civitai.green/",
    "https://www.civitai.com/",
    "https://api.eu.civitai.red/x",
    "https://CIVITAI.COM/x",
    "https://civitai.com:443/x",
    "https://civitai.com./x",
    "https://user:pass@civitai.com/x",
]
STRANGERS = [
    "https://civitai.com.evil.net/x",
    "https://evilcivitai.com/x",
    "https://evil-civitai.com/x",
    "https://civitai.com@evil.net/x",
    "https://civitai.com:443@evil.net/x",
    "https://civitai.com%2eevil.net/x",
    "https://civitai.org/x",
    "https://civitai.co/x",
    "https://civitai.com.au/x",
    "https://com/x",
    "https://evil.net/civitai.com",
    "https://evil.net/?https://civitai.com/",
    "https://evil.net/#@civitai.com/",
    "https://\u0441ivitai.com/x",  # its first letter is Cyrillic
    "https://account.r2.cloudflarestorage.com/x",
    "https://huggingface.co/x",
]
OTHER_PORTS = ["https://civitai.com:8443/x", "https://civitai.com:80/x", "https://www.civitai.red:444/x"]
PLAIN = ["http://civitai.com/x", "http://www.civitai.red/x", "http://civitai.com:443/x"]


# --- who hears the token


@pytest.mark.parametrize("url", OWN)
def test_the_sites_own_hosts_hear_the_token_over_https(url: str) -> None:
    assert CIVITAI.token_for(url) == TOKEN
    assert LOOPBACK.token_for(url) == TOKEN


@pytest.mark.parametrize("url", [*STRANGERS, *OTHER_PORTS, *PLAIN])
def test_a_lookalike_another_port_and_plain_http_hear_no_token(url: str) -> None:
    assert CIVITAI.token_for(url) is None
    assert LOOPBACK.token_for(url) is None


PIECES = [
    "civitai.com",
    "civitai.red",
    "evil.net",
    "www.",
    "evil",
    ".",
    "@",
    ":",
    "443",
    "/",
    "\\",
    "?",
    "#",
    "%2e",
    "[",
    "]",
]
PIECES += ["\t", "\uff0e", "\u3002", "xn--"]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
def test_only_a_name_that_ends_with_the_sites_own_hears_the_token(authority: str) -> None:
    """Held against what the HTTP library itself would connect to."""
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    url = f"https://{authority}/x"
    try:
        heard = CIVITAI.token_for(url)
    except NetworkFailed:
        return
    if heard is not None:
        try:
            connected = (parse_url(url).host or "").rstrip(".")
        except LocationParseError:
            return
        assert any(connected == host or connected.endswith(f".{host}") for host in CIVITAI_HOSTS)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.net\\@civitai.com/x",
        "https://evil.net\\@www.civitai.red/x",
        "https://evil.net\\\\@civitai.com",
        "https://evil.net\\/@civitai.com",
    ],
)
def test_an_address_that_two_readers_read_differently_hears_no_token(url: str) -> None:
    """`urlsplit` takes what is behind the @ for the host; urllib3, which connects, what is before the backslash."""
    try:
        heard = CIVITAI.token_for(url)
    except NetworkFailed:
        heard = None
    assert heard is None


@pytest.mark.parametrize(
    ("base", "url", "hears"),
    [
        ("https://mirror.example:8443/api/v1", "https://mirror.example:8443/x", True),
        ("https://mirror.example:8443/api/v1", "https://MIRROR.example:8443/x", True),
        ("https://mirror.example:8443/api/v1", "https://mirror.example/x", False),
        ("https://mirror.example:8443/api/v1", "https://mirror.example:8444/x", False),
        ("https://mirror.example:8443/api/v1", "http://mirror.example:8443/x", False),
        ("https://mirror.example:8443/api/v1", "https://sub.mirror.example:8443/x", False),
        ("https://mirror.example/api/v1", "https://mirror.example:443/x", True),
        ("http://mirror.example/api/v1", "http://mirror.example/x", False),
        ("http://127.0.0.1:7999/api/v1", "http://127.0.0.1:7999/x", True),
        ("http://127.0.0.1:7999/api/v1", "http://127.0.0.1:8000/x", False),
        ("http://127.0.0.1:7999/api/v1", "https://127.0.0.1:7999/x", False),
        ("http://127.0.0.1:7999/api/v1", "http://localhost:7999/x", False),
        ("http://127.0.0.1:7999/api/v1", "http://127.0.0.2:7999/x", False),
        ("http://localhost/api/v1", "http://localhost:80/x", True),
        ("http://[::1]:7999/api/v1", "http://[::1]:7999/x", True),
        ("http://[::1]:7999/api/v1", "http://127.0.0.1:7999/x", False),
        ("http://192.168.1.5/api/v1", "http://192.168.1.5/x", False),
        ("http://127.0.0.1.evil.net/api/v1", "http://127.0.0.1.evil.net/x", False),
        ("http://localhost.evil.net/api/v1", "http://localhost.evil.net/x", False),
    ],
)
def test_the_exact_origin_of_the_base_hears_the_token_unless_it_is_plain_http_abroad(
    base: str, url: str, hears: bool
) -> None:
    assert SitePolicy(Origin.of(base), TOKEN, CIVITAI_HOSTS).token_for(url) == (TOKEN if hears else None)


# --- who may be asked


PUBLIC = ["https://account.r2.cloudflarestorage.com/x", "https://8.8.8.8/x", "https://[2606:4700::1111]/x"]
PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "127.0.0.1.",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "localhost",
    "LOCALHOST.",
    "x.localhost",
    "printer.local",
    "metadata.google.internal",
    "router",
    "[::1]",
    "[::]",
    "[fe80::1]",
    "[fe80::1%25eth0]",
    "[fd00::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:10.0.0.1]",
]
OLD_SPELLINGS = [
    "127.1",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "2130706433",
    "0x7f000001",
    "10.1",
    "192.168.257",
    "\uff11\uff12\uff17.0.0.1",
]


@pytest.mark.parametrize("url", [*OWN, *PUBLIC, *OTHER_PORTS, *STRANGERS[:2]])
def test_a_redirect_may_lead_to_any_public_address_over_https(url: str) -> None:
    CIVITAI.check(url)
    LOOPBACK.check(url)


@pytest.mark.parametrize("url", [*PLAIN, "http://evil.net/x", "http://8.8.8.8/x", "http://127.0.0.1/x"])
def test_a_redirect_may_not_lead_from_https_to_plain_http(url: str) -> None:
    with pytest.raises(NetworkFailed):
        CIVITAI.check(url)


@pytest.mark.parametrize("host", PRIVATE)
def test_a_redirect_may_not_lead_into_a_private_network(host: str) -> None:
    for url in (f"https://{host}/x", f"https://{host}:8443/x", f"http://{host}/x"):
        with pytest.raises(NetworkFailed):
            CIVITAI.check(url)


@pytest.mark.parametrize("host", OLD_SPELLINGS)
def test_a_private_address_in_an_old_spelling_is_private_too(host: str) -> None:
    """The C library reads `127.1`, octal and hex parts as addresses, and IDNA makes ASCII digits of wide ones."""
    with pytest.raises(NetworkFailed):
        CIVITAI.check(f"https://{host}/x")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/x", "http://localhost:1/x", "https://127.0.0.1/x", "http://[::1]:5/"]
)
def test_from_a_loopback_base_redirects_may_lead_to_loopback(url: str) -> None:
    LOOPBACK.check(url)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1/x", "https://10.0.0.1/x", "http://192.168.1.1/x", "https://router/x", "http://evil.net/x"]
)
def test_from_a_loopback_base_redirects_may_not_lead_into_another_private_network(url: str) -> None:
    with pytest.raises(NetworkFailed):
        LOOPBACK.check(url)


def test_a_base_in_ones_own_network_is_fine_over_https_and_for_itself_alone() -> None:
    trust = SitePolicy(Origin.of("https://nas.local/api/v1"), TOKEN)
    trust.check("https://nas.local/api/download/5")
    for url in ("https://nas.local:8443/x", "https://other.local/x", "http://nas.local/x", "https://127.0.0.1/x"):
        with pytest.raises(NetworkFailed):
            trust.check(url)
    plain = SitePolicy(Origin.of("http://nas.local/api/v1"), TOKEN)
    with pytest.raises(NetworkFailed, match="plain http"):
        plain.check("http://nas.local/api/v1/models")


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "/x",
        "//civitai.com/x",
        "ftp://civitai.com/x",
        "file:///etc/passwd",
        "https://",
        "https:///x",
        "https://[",
        "https://civitai.com:99999/",
        "https://civitai.com:x/",
        "javascript:1",
        "data:,x",
        "https://civitai.com\u2100/",
    ],
)
def test_what_is_no_address_of_the_web_is_refused(url: str) -> None:
    for ask in (CIVITAI.check, CIVITAI.token_for, Origin.of):
        with pytest.raises(NetworkFailed):
            ask(url)


@given(st.text() | st.text("htps:/@[]?#%0\u2100.\\", max_size=20).map("https://{}".format))
def test_any_text_is_an_origin_or_refused(text: str) -> None:
    try:
        origin = Origin.of(text)
    except NetworkFailed:
        return
    assert origin.scheme in ("http", "https")
    assert origin.host == origin.host.lower()


# --- the token, and the base, of the environment


@pytest.mark.parametrize("said", [TOKEN, f" {TOKEN} ", f"{TOKEN}\n", f"\t{TOKEN}\r\n"])
def test_space_around_a_token_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("CIVITAI_TOKEN", said)
    assert civitai_token() == TOKEN


@pytest.mark.parametrize(
    "said", [f"{TOKEN} {TOKEN}", f"{TOKEN}\n{TOKEN}", f"{TOKEN}\x7f", f"{TOKEN}\u00e9", f"a\r\nX-Evil: {TOKEN}"]
)
@pytest.mark.parametrize("name", ["CIVITAI_TOKEN", "CIVITAI_API_KEY"])
def test_a_token_that_can_be_none_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.setenv(name, said)
    with pytest.raises(UsageError) as caught:
        Civitai(FastClock())
    assert name in str(caught.value)
    assert TOKEN not in told(caught.value)


def test_civitai_token_wins_over_civitai_api_key_and_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert civitai_token() is None
    monkeypatch.setenv("CIVITAI_API_KEY", "second")
    assert civitai_token() == "second"
    monkeypatch.setenv("CIVITAI_TOKEN", " \n")
    assert civitai_token() == "second"
    monkeypatch.setenv("CIVITAI_TOKEN", "first")
    assert civitai_token() == "first"


def test_the_base_is_the_sites_own_unless_the_environment_moves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert civitai_base() == "https://civitai.com/api/v1"
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", " https://civitai.red/api/v1/ ")
    assert civitai_base() == "https://civitai.red/api/v1"
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", "http://127.0.0.1:8000/")
    assert civitai_base() == "http://127.0.0.1:8000/api/v1"
    for nonsense in ("civitai.red", "ftp://civitai.red", "https://["):
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", nonsense)
        with pytest.raises(UsageError, match="HNETKIT_CIVITAI_URL"):
            civitai_base()


def test_an_address_is_shown_without_its_query() -> None:
    assert redact("https://h/p?X-Amz-Signature=abc&token=x#y") == "https://h/p?..."
    assert redact("https://h/p") == "https://h/p"
    with pytest.raises(NetworkFailed) as caught:
        CIVITAI.check(f"http://h/p?X-Amz-Signature={TOKEN}")
    assert TOKEN not in told(caught.value)
