"""What is known of a network's license, and why its record may not want it shared.

Civitai states permissions in flags, which are no license of any list: they are spelled out. A repository of the hub
states one of the hub's own license ids among its tags. What nobody states is unknown, and is not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from hnetkit.errors import UsageError, did_you_mean
from hnetkit.text import argument

Row = Mapping[str, Any]

_IDS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr
llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail
openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
HUB_LICENSES = frozenset(_IDS.split())
"""The ids that the hub's page of licenses lists."""

UNKNOWN = "unknown"
_STATED = "permissions-stated-at-civitai"
_TAG = "license:"  # before a license id among a repository's tags
_TAKEN = {
    "archived": "its owner archived it at {}",
    "taken-down": "{} took it down",
    "gone": "it is no longer at {}",
}


@dataclass(frozen=True, slots=True)
class License:
    """A license as a model card states it.

    Attributes:
        id: one of `HUB_LICENSES`; None where nothing is known.
        name: of one that is in no list.
        link: to where it is stated.
    """

    id: str | None = None
    name: str | None = None
    link: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """The keys of a card."""
        values = {"license": self.id or UNKNOWN, "license_name": self.name, "license_link": self.link}
        return {key: value for key, value in values.items() if value is not None}


def require_license(text: str) -> str:
    """Returns the hub's id of a license, in any case of letters.

    Raises:
        UsageError: the hub has none of that id.
    """
    if (found := text.strip().lower()) not in HUB_LICENSES:
        near = did_you_mean(found, HUB_LICENSES)
        message = f"{text}: not a license id of the hub"
        raise UsageError(message, hint=f"--license {near}" if near else "--license other, and say which in the card")
    return found


def license_of(sites: Iterable[Row]) -> License:
    """Returns what the sites themselves say of a network's license; the first that says anything decides.

    What a dump or an import tells for a site may be made up, and counts for nothing here.
    """
    own = (_stated(site) for site in sites if not site["is_told"])
    return next(filter(None, own), License())


def _stated(site: Row) -> License | None:
    """Returns the license in a record; None where it states none."""
    stated = [tag.removeprefix(_TAG).lower() for tag in site["tags"] or () if tag.startswith(_TAG)]
    if site["source"] == "huggingface" and (known := [id for id in stated if id in HUB_LICENSES - {UNKNOWN}]):
        return License(known[0], link=site["link"] if known[0] == "other" else None)
    if site["source"] == "civitai" and permissions(site):
        return License("other", _STATED, site["link"])
    return None


def only_told(sites: Iterable[Row]) -> Iterator[str]:
    """Yields where a license is told for a site by others, in words that follow a network's name, with what asks it."""
    for site in sites:
        if site["is_told"] and _stated(site):
            repo = site["model_id"].partition(":")[0]
            pull = f"hnetkit pull {argument(f'hf:{repo}' if site['source'] == 'huggingface' else f'model:{repo}')}"
            yield f"its license is told by a dump or an import alone; {pull} asks {site['source']}"


def common_license(licenses: Iterable[License]) -> License:
    """Returns what the card of several networks states: their license, or that each has its own."""
    found = list(dict.fromkeys(licenses))
    if len(found) == 1:
        return found[0]
    if {(one.id, one.name) for one in found} == {("other", _STATED)}:
        return License("other", _STATED)
    return License("other", "see-each-network")


def permissions(site: Row) -> str | None:
    """Returns what the owner allows, in words; None where nothing is stated."""
    allowed = {
        "without credit": site["allow_no_credit"],
        "derivatives": site["allow_derivatives"],
        "another license": site["allow_different_license"],
    }
    commercial = site["commercial_use"]
    words = [] if commercial is None else [f"commercial use: {', '.join(commercial) or 'none'}"]
    words += [
        f"{what}: {'yes' if is_allowed else 'no'}" for what, is_allowed in allowed.items() if is_allowed is not None
    ]
    return "; ".join(words) or None


def objections(sites: Iterable[Row], license: str | None) -> Iterator[str]:
    """Yields why a network's records may not want it shared, in words that follow its name.

    Args:
        license: that is to be stated instead of what is known.
    """
    now = datetime.now(timezone.utc).isoformat()
    for site in sites:
        for state in (site["model_state"], site["version_state"]):
            if state in _TAKEN:
                yield _TAKEN[state].format(site["source"])
                break
        if site["availability"] == "Private":
            yield f"it is private at {site['source']}"
        if (until := site["early_access_until"]) and until > now:
            yield f"early access at {site['source']} until {until[:10]}"
        if license is not None and site["allow_different_license"] is False:
            yield f"its owner at {site['source']} does not allow another license"
