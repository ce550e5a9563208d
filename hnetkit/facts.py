"""What is known of a network, as labeled facts in groups, which `hnetkit show` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hnetkit.library.listing import said_of_lost
from hnetkit.ratings import ratings_of
from hnetkit.sharing.licenses import permissions
from hnetkit.text import counted, size_text, without_markup

Row = dict[str, Any]
Fact = tuple[str, str]
"""A label and a text, which may have several lines; without a label it goes on with the fact before."""

_Told = tuple[str, str | None]  # None, and an empty text, where it is not known
_REFERENCES = {"civitai": "model:", "huggingface": "hf:"}  # source -> what `hnetkit pull` takes before the id
_TARGETS = {
    "lora": "LoRA",
    "diff": "full differences",
    "checkpoint": "copy of the model",
    "hypernetwork": "one hypernetwork",
}
# what of a site may be gone -> the keys of its state, and of the time since when
_STATES = (
    ("", "model_state", "model_state_since"),
    ("this version ", "version_state", "version_state_since"),
    ("this file ", "file_state", "file_state_since"),
)


@dataclass(frozen=True, slots=True)
class FactGroup:
    """Facts that one source states.

    Attributes:
        about: ``"network"``, ``"training"``, ``"site"``, ``"elsewhere"``, ``"sidecar"``, ``"file"``, ``"imported"`` or
            ``"bake"``. There is a group for each site, sidecar, file and bake.
        facts: at least one.
    """

    about: str
    facts: tuple[Fact, ...]


def facts_of(row: Row) -> list[FactGroup]:
    """Returns all that is known of a network; `row` is that of `Library.record`.

    The groups are in the order of `FactGroup.about`. What a site or a sidecar says is left out of later ones: copies of
    a file have sidecars that say the same.
    """
    parts: list[tuple[str, Iterable[_Told]]] = [("network", _own(row)), ("training", _training(row["training"]))]
    parts += [("site", _site(site)) for site in row["sites"]]
    parts += [("elsewhere", map(_place, row["elsewhere"]))]
    parts += [("sidecar", _sidecar(sidecar, has_sites=bool(row["sites"]))) for sidecar in row["sidecars"]]
    said: set[Fact] = set()
    groups = []
    for about, facts in parts:
        known = dict.fromkeys(fact for fact in _known(facts) if fact not in said)
        said |= known.keys()
        groups.append(FactGroup(about, tuple(known)))
    groups += [FactGroup("file", tuple(_known(file))) for file in _files(row["files"])]
    groups += [FactGroup("imported", tuple(_known(_imported(file)))) for file in row["imported"]]
    groups += [FactGroup("bake", tuple(_known(_bake(bake)))) for bake in row["bakes"]]
    return [group for group in groups if group.facts]


def _known(facts: Iterable[_Told]) -> Iterator[Fact]:
    return ((label, text) for label, text in facts if text)


def _own(row: Row) -> Iterator[_Told]:
    structure = ", ".join(f"{part:g}" for part in row["layer_structure"])
    build = [f"[{structure}] {row['activation']}", *(["layer norm"] if row["layer_norm"] else [])]
    if row["activate_output"] and row["activation"] != "linear":
        build.append("activated output")
    if any(row["dropout"]):
        build.append(f"dropout {', '.join(f'{part:g}' for part in row['dropout'])}")
    yield "content", row["content_hash"]
    yield "own name", row["own_name"] if row["own_name"] != row["name"] else None
    yield "for", row["base_model"]
    yield "widths", ", ".join(map(str, row["widths"]))
    yield "build", ", ".join(build)
    yield "weights", f"{row['parameters']:,} in {row['dtype']}"
    yield "trained", counted(row["step"], "step") if row["step"] is not None else None
    yield "trained on", row["trained_on"]
    yield "checkpoint", row["checkpoint_path"]
    yield "known since", (row["first_seen"] or "")[:10]
    yield "at its source", said_of_lost(row["gone"])
    yield "tags", ", ".join(row["tags"])
    yield "aliases", ", ".join(row["aliases"])
    yield "note", row["note"]


def _training(training: Row | None) -> Iterator[_Told]:
    """Yields what a person wants to know of a recipe; `--json` has all of it."""
    if training is not None:
        recipe = training["recipe"]
        known = [
            f"{key.replace('_', ' ')} {recipe[key]}" for key in ("rates", "batch_size", "pictures") if key in recipe
        ]
        yield "recipe", ", ".join(known)
        yield "begun with", " < ".join(one["name"] or one["content_hash"][:13] for one in training["lineage"])


def _site(site: Row) -> Iterator[_Told]:
    """Yields what a site says of the version that a network is."""
    creator = f" by {site['creator']}" if site["creator"] else ""
    states = [_state(what, site[state], site[since]) for what, state, since in _STATES if site[state] != "listed"]
    state = f" ({states[0]})" if states else ""
    number = f"{_REFERENCES[site['source']]}{site['model_id']}"
    yield site["source"], f"{site['model']}, {site['version']}{creator}, {number}{state}"
    yield "told by", "a dump or an import; the site itself was not asked" if site["is_told"] else None
    yield "link", site["link"]
    yield "listed file", ", ".join(filter(None, (site["file_name"], site["file_type"])))
    yield "trigger words", ", ".join(site["trained_words"] or ())
    yield "strength", f"{site['strength']:g} in its example pictures" if site["strength"] else None
    yield "site tags", ", ".join(site["tags"] or ())
    stated = (site["type"], site["site_base_model"], site["site_format"], site["site_fp"])
    yield "stated as", ", ".join(filter(None, stated))
    yield "virus scan", site["site_scan"]
    yield "license", permissions(site)
    yield "rated", ", ".join(ratings_of(site["nsfw_level"]))
    yield "published", (site["published_at"] or "")[:10]
    yield "early access", f"until {site['early_access_until']}" if site["early_access_until"] else None
    yield "downloads", f"{site['downloads']:,}" if site["downloads"] is not None else None
    hashes = ", ".join(f"{name} {digits}" for name, digits in (site["hashes"] or {}).items())
    yield "hashes", f"{hashes} (stated {(site['hashes_at'] or '')[:10]})" if hashes else None
    yield "description", without_markup(site["description"] or "")


def _state(what: str, state: str, since: str | None) -> str:
    """Returns that a site does not have a model, a version or a file any more, and since when."""
    return f"{what}{state}{f' since {since[:10]}' if since else ''}"


def _place(place: Row) -> _Told:
    """Returns where else the bytes of a file are known to be."""
    told = {"civarchive": "CivArchive lists it", "huggingface": "listed", "setting": "your own mirror"}
    how = "gave them" if place["state"] == "served" else told[place["source"]]
    return "also at", f"{place['place']} ({how}, {place['seen_at'][:10]})"


def _sidecar(sidecar: Row, *, has_sites: bool) -> Iterator[_Told]:
    """Yields what other programs, or the user with them, wrote beside a file."""
    if not has_sites:
        number = f"model:{sidecar['model_id']}" if sidecar.get("model_id") else None
        yield "civitai", ", ".join(filter(None, (sidecar.get("title"), number)))
    yield "trigger words", sidecar.get("activation_text")
    yield "negative", sidecar.get("negative_text")
    weight = sidecar.get("preferred_weight")
    yield "weight", f"{weight:g} preferred" if weight else None
    yield "made for", sidecar.get("sd_version")
    yield "sidecar tags", ", ".join(sidecar.get("tags") or ())
    yield "notes", sidecar.get("notes")
    yield "description", without_markup(sidecar.get("description") or "")
    yield "preview", sidecar.get("preview")
    for text in sidecar.get("unreadable") or ():
        yield "not read", text


def _files(files: list[Row]) -> Iterator[Iterator[_Told]]:
    """Yields the facts of each file; what the bytes of copies are is told with the first."""
    here = {file["sha256"] for file in files if file["state"] != "missing"}
    told: set[str] = set()
    for file in files:
        yield _file(file, is_told=file["sha256"] in told, is_here=file["sha256"] in here)
        told.add(file["sha256"])


def _file(file: Row, *, is_told: bool, is_here: bool) -> Iterator[_Told]:
    """Yields where a file is, and what its bytes are.

    Args:
        file: of the network.
        is_told: another file has these bytes, and was told of.
        is_here: a file that is not missing has them, as after a move.
    """
    is_missing = file["state"] == "missing"
    is_as_said = file["there"] or is_missing
    path = file["path"] if is_as_said else f"{file['path']}, gone or changed since: hnetkit scan"
    yield "was at" if is_missing and is_here else file["state"], path
    if file["same_as"]:
        yield "", f"no copy: one file with {file['same_as']}"
    if is_told:
        return
    old = f", [{file['autov1']}] in 2022" if file["autov1"] else ""
    yield "", f"{size_text(file['size_bytes'])}, {file['format']}, A1111's hash [{file['sha256'][:10]}]{old}"
    yield "", f"sha256 {file['sha256']}"
    for warning in file["warnings"]:
        yield "warning", warning


def _imported(file: Row) -> Iterator[_Told]:
    """Yields what an import told of a file that held the network elsewhere, and how to get it."""
    is_known = file["reference"] is not None
    yield (
        "not here",
        f"{file['name']}; {'hnetkit repair fetches it' if is_known else 'where you have it: hnetkit scan FOLDER'}",
    )
    yield "", f"from {file['reference']}" if is_known else None
    yield "", f"sha256 {file['sha256']}"


def _bake(bake: Row) -> Iterator[_Told]:
    """Yields what the network was baked to, with which others, and how far from them that is."""
    from hnetkit.baking.record import with_strength

    states = {"present": "", "missing": ", which is gone", "changed": ", where something else is by now"}
    moved = f", which is {bake['found_at']} by now" if bake["found_at"] else None
    yield "baked to", f"{bake['path']}{moved or states[bake['state']]}"
    rank = f" of rank {bake['rank']}" if bake["rank"] is not None else ""
    program = f" for {bake['program']}" if bake["program"] else ""
    model = f", with {bake['model_name']}" if bake["model_name"] else ""
    yield "", f"{_TARGETS[bake['target']]}{rank}{program}, {bake['baked_at'][:10]}{model}"
    yield "", f"of {', '.join(map(with_strength, bake['networks']))}"
    errors = []
    if bake["error"] is not None:
        errors.append(f"largest relative error {bake['error']:.3f}" if bake["error"] else "exact")
    if bake["picture_error"] is not None and bake["error"]:
        errors.append(f"pictures {bake['picture_error']:.1%} of what the networks change")
    yield "", "; ".join(errors)
