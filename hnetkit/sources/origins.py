"""Which address may be asked, and which may hear a token."""

from __future__ import annotations

import ipaddress
import os
import re
import unicodedata
from dataclasses import dataclass, field

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from hnetkit.errors import NetworkFailed, UsageError
from hnetkit.tokens import token_of

_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_HOST = re.compile(r"(?:.*@)?(?:\[[0-9a-f:.]+\]|[^:@]*\.[^:@]*|localhost)(?::[0-9]*)?", re.IGNORECASE | re.DOTALL)
_INSIDE = (".local", ".localdomain", ".internal", ".intranet", ".lan", ".home", ".home.arpa", ".corp", ".private")
_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
_TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))  # end in an IPv4 address
_ASSIGNED = ipaddress.ip_network("192.0.0.0/24")  # newer Pythons call parts of it global
_TUNNELLED = ipaddress.ip_network("198.18.0.0/15")
CIVITAI_HOSTS = ("civitai.com", "civitai.red", "civitai.green")
CIVITAI_API = "https://civitai.com/api/v1"


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port: another port is another origin."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """Raises NetworkFailed where `url` is no http address, or one that two programs could read differently."""
        try:
            parts = parse_url(url)  # what requests goes by: a second reader could find another host in it
        except LocationParseError:
            parts = parse_url("")
        host = unicodedata.normalize("NFKC", parts.host or "").strip("[]").lower().rstrip(".")
        if not host or parts.scheme not in ("http", "https") or not url.isprintable() or set(url) & set("\\ "):
            raise NetworkFailed(f"{redacted(url)[:200]}: not an address of the web")
        return cls(parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80))

    @property
    def is_loopback(self) -> bool:
        address = self._address()
        return address.is_loopback if address else self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def is_private(self) -> bool:
        """Whether the name alone shows that it lies inside somebody's own network."""
        address = self._address()
        if address:
            return not is_public(address)
        # `127.1` and `0x7f.0.0.1` are addresses to the system's resolver, whatever they look like
        is_number = _NUMBER.fullmatch(self.host.rpartition(".")[2]) is not None
        return is_number or self.is_loopback or "." not in self.host or self.host.endswith(_INSIDE)

    def _address(self) -> Address | None:
        return _address_of(self.host)


def _address_of(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_loopback(address: Address) -> bool:
    """Whether an address is this machine's own, also where it is written as IPv6."""
    inner = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (inner or address).is_loopback


def is_public(address: Address) -> bool:
    """Whether an address is one of the open internet; one that leads to an IPv4 address is what that one is."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast and address not in _ASSIGNED
    if any(address in network for network in _TRANSLATED):
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    inner = address.ipv4_mapped or address.sixtofour
    if inner is not None:
        return is_public(inner)
    return address in _PUBLIC_V6 and address.is_global


@dataclass(frozen=True, slots=True)
class Trust:
    """What a site's base address allows.

    Args:
        base: the origin that the person asked for; only on loopback may it be plain http, and then redirects may
            lead to loopback too.
        token: told to `base` and, over https, to `hosts` and what is below them; to nobody else.
        hosts: that belong to the same site.
        settled: whether a person set `base` up as their site: then it may lie in their own network. An address that
            somebody gave them to fetch one file from may not, unless it is loopback.
    """

    base: Origin
    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = ()
    settled: bool = True

    def token_for(self, url: str) -> str | None:
        """Returns the token where `url` may hear it."""
        origin = Origin.of(url)
        if origin == self.base and (origin.scheme == "https" or origin.is_loopback):
            return self.token
        own = any(origin.host == host or origin.host.endswith(f".{host}") for host in self.hosts)
        return self.token if own and origin.scheme == "https" and origin.port == 443 else None

    def is_site(self, url: str) -> bool:
        """Whether the site itself answers there, and not a storage of its files, on a host below it say."""
        origin = Origin.of(url)
        return origin == self.base or (origin.host.removeprefix("www.") in self.hosts and origin.scheme == "https")

    def check(self, url: str) -> None:
        """Raises NetworkFailed where nothing may be asked of `url`."""
        origin = Origin.of(url)
        if origin == self.base:
            if origin.scheme == "http" and not origin.is_loopback:
                raise NetworkFailed(f"{redacted(url)}: plain http", hint="use an https address")
            if not self.settled and origin.is_private and not origin.is_loopback:
                raise NetworkFailed(
                    f"{redacted(url)}: lies in a private network", hint="fetch it yourself, then: hnetkit scan FOLDER"
                )
            return
        if self.base.is_loopback and origin.is_loopback:
            return
        if origin.scheme != "https":
            raise NetworkFailed(f"{redacted(url)}: refused: leads to plain http")
        if origin.is_private:
            raise NetworkFailed(f"{redacted(url)}: refused: leads into a private network")

    def may_reach(self, origin: Origin, peer: str) -> bool:
        """Whether the machine that a name stands for may be asked: a name is private that leads to a private address.

        Args:
            origin: that `check` let pass.
            peer: the numeric address that it led to.
        """
        address = _address_of(peer.partition("%")[0])
        if origin.is_loopback and (origin == self.base or self.base.is_loopback):  # whatever the name says it is
            return address is not None and is_loopback(address)
        if origin == self.base and self.settled:
            return True
        # programs that tunnel all traffic give every name an address of the range for benchmarks
        return address is not None and (is_public(address) or address in _TUNNELLED)


def civitai_base() -> str:
    """Returns the address of Civitai's API: ``HNETKIT_CIVITAI_URL``, else the site's own.

    A bare origin means its ``/api/v1``.

    Raises:
        UsageError: the variable holds no address.
    """
    base = os.environ.get("HNETKIT_CIVITAI_URL", "").strip().rstrip("/") or CIVITAI_API
    try:
        require_no_secret(base)
        Origin.of(base)
    except NetworkFailed as error:
        raise UsageError(f"HNETKIT_CIVITAI_URL: {error}", hint=f"for example {CIVITAI_API}") from error
    return base if "/" in base.partition("://")[2] else f"{base}/api/v1"


def civitai_token() -> str | None:
    """Returns the token of the environment: ``CIVITAI_TOKEN``, then ``CIVITAI_API_KEY``."""
    return next(filter(None, map(token_of, ("CIVITAI_TOKEN", "CIVITAI_API_KEY"))), None)


def redacted(url: str) -> str:
    """Returns an address without user, password, query and fragment, in which secrets travel; `?...` says that some
    of it was left out."""
    head = re.split(r"[?#]", url, maxsplit=1)[0]
    scheme, separator, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    at_later = "@" in path or ("@" in url[len(head) :] and (":" in authority or not slash))
    if authority and at_later and not _HOST.fullmatch(authority):
        # no host ends where this one seems to: a password may hold any of / ? #
        shown = f"{scheme}{separator}{head.rpartition('@')[2] if '@' in head else ''}"
    elif authority and "://" not in rest:
        shown = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
    else:  # no address of the web: whatever stands before an @ may be a password
        shown = head.rpartition("@")[2]
    return f"{shown}?..." if len(head) < len(url) else shown


def require_no_secret(url: str) -> None:
    """Raises NetworkFailed where an address of a site holds a user, a password, a query or a fragment."""
    if redacted(url) != url:
        raise NetworkFailed(f"{redacted(url)}: more than a site's address", hint="leave out user, password and query")
