"""One network as a page: how to use it, whether it is sound, and all that is known of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hnetkit.errors import HnetkitError, NotFound
from hnetkit.facts import facts_of
from hnetkit.formats import load
from hnetkit.gallery.cards import View
from hnetkit.gallery.pages import MOST_TEXT, Gallery
from hnetkit.gallery.thumbnails import is_below, seen_at
from hnetkit.library.layouts import PROGRAMS
from hnetkit.library.prompt_names import meaning_in, prompt_name, tag_text
from hnetkit.library.records import gone
from hnetkit.library.resolve import content_called
from hnetkit.library.suggestions import suggested_strength, trigger_words
from hnetkit.text import argument

Row = dict[str, Any]

_TITLES: Mapping[str, str] = {
    "network": "The network",
    "training": "Training",
    "site": "At its source",
    "elsewhere": "Elsewhere",
    "sidecar": "Beside its files",
    "imported": "Not here",
}
_EDITED = frozenset({"tags", "aliases", "note"})  # facts that stand in forms already
_MOST_PROMPTS = 12
_KEPT = 512  # networks whose untrained widths are remembered
# the beginning of a warning -> what it means for who uses the network, and what to do
_ADVICE: Mapping[str, str] = {
    "activate_output is missing": "Nothing to do: AUTOMATIC1111 takes it the same way.",
    "no Stable Diffusion model has": "These widths do nothing on Stable Diffusion; the others of the network do.",
    "wrapped in a state_dict": "Converting it writes it as AUTOMATIC1111 expects it.",
    "the width": "Converting it writes the width as a number, which every program reads.",
    "is_layer_norm": "The tensors are right. Converting it writes settings that agree with them.",
    "activation_func": "The tensors are right. Converting it writes settings that agree with them.",
    "layer_structure": "The tensors are right. Converting it writes settings that agree with them.",
}


@dataclass(frozen=True, slots=True)
class Soundness:
    """Whether a network can be used.

    Attributes:
        word: ``"sound"``, ``"with warnings"``, ``"damaged"``, ``"missing"``.
        reasons: each with what to do about it, which may be empty.
        command: that helps; None where nothing has to be done.
    """

    word: str
    reasons: tuple[tuple[str, str], ...]
    command: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A preview.

    Attributes:
        number: of the picture among those of the network.
        seen: differs once another picture is there; None if none is.
        path: of the file.
        prompt: the settings that it was drawn with; empty if they are not known.
    """

    number: int
    seen: str | None
    path: str
    prompt: str


class NetworkPages:
    """The pages of single networks of a gallery."""

    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery
        self._untrained: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()

    def values(self, content_hash: str, view: View) -> Row:
        """Returns what the template of a network's page shows.

        Raises:
            NotFound: the library has no such network.
        """
        gallery, registry = self._gallery, self._gallery.library.registry
        card = gallery.cards.card(content_hash)
        if card is None:
            raise gone(registry, content_hash)
        row = gallery.library.record(content_hash)
        suggested = suggested_strength(row)
        before, after = gallery.cards.neighbours(content_hash, view)
        called = name_for_commands(gallery, row)
        groups = list(_groups(row))
        return {
            "view": view,
            "card": card,
            "row": row,
            "tag_text": tag_text(row, meaning_in(registry)),
            "python": python_text(called, suggested[0] if suggested else 1.0),
            "command": f"hnetkit show {argument(called)}",
            "strength": suggested,
            "trigger_words": trigger_words(row),
            "most_text": MOST_TEXT,
            "verdict": verdict_of(row),
            "untrained": self._untrained_of(row),
            "groups": [(_TITLES[about], facts) for about, facts in groups if about in _TITLES],
            "bakes": [facts for about, facts in groups if about == "bake"],
            "leaving": leaving(row, called, suggested[0] if suggested else 1.0),
            "lineage": self._lineage(row),
            "pictures": list(self._pictures(row)),
            "prompts": self._example_prompts(row),
            "links": sources(row),
            "before": before and gallery.cards.card(before),
            "after": after and gallery.cards.card(after),
            "layouts": list(PROGRAMS),
            "programs": sorted({(link.folder, link.layout) for link in registry.links.rows()}),
            "all_tags": gallery.cards.tags(),
        }

    def picture(self, content_hash: str, number: int) -> str:
        """Returns the path of one of a network's previews; it may be anywhere, and may be no picture.

        Raises:
            NotFound, AmbiguousName: the library has no such network, or this one has no such picture.
        """
        paths = _previews(self._gallery.library.record(content_hash))
        if not 0 <= number < len(paths):
            raise NotFound("the network has no such picture")
        return paths[number]

    def _pictures(self, row: Row) -> Iterator[Shown]:
        from hnetkit.image_text import infotext_of  # of the many parsers, a start needs none

        folders = self._gallery.folders()
        for number, path in enumerate(_previews(row)):
            real = os.path.realpath(path)
            prompt = ""
            if any(is_below(real, folder) for folder in folders):
                with suppress(OSError, HnetkitError):
                    prompt = infotext_of(Path(real))
            yield Shown(number, seen_at(path), path, prompt)

    def _untrained_of(self, row: Row) -> tuple[int, ...] | None:
        """Returns the widths that training never changed; None where no file can be read for it."""
        content: str = row["content_hash"]
        with self._lock:
            if content in self._untrained:
                return self._untrained[content]
        there = [file["path"] for file in row["files"] if file["there"] and file["state"] == "present"]
        if not there:
            return None
        try:
            net = load(there[0])
            found = tuple(width for width in net.widths if not net.is_trained(width))
        except HnetkitError:  # its verdict says so
            return None
        with self._lock:
            while len(self._untrained) >= _KEPT:
                del self._untrained[next(iter(self._untrained))]
            self._untrained[content] = found
        return found

    def _lineage(self, row: Row) -> list[Row]:
        """Returns the networks that training began with, nearest first, and whether they have a page."""
        lineage = row["training"]["lineage"] if row["training"] else []
        return [one | {"is_here": self._gallery.cards.card(one["content_hash"]) is not None} for one in lineage]

    def _example_prompts(self, row: Row) -> list[str]:
        """Returns the prompts of a site's example pictures, as far as its record has them."""
        from hnetkit.sources.sidecar_writer import site_version

        catalogue = self._gallery.library.registry.catalogue
        versions = [site_version(catalogue, site) for site in row["sites"] if site["source"] == "civitai"]
        images = [image for version in versions if version for image in _list(version.get("images"))]
        metas = [image.get("meta") for image in images if isinstance(image, dict)]
        prompts = [meta.get("prompt") for meta in metas if isinstance(meta, dict)]
        known = [prompt for prompt in prompts if isinstance(prompt, str) and prompt.strip()]
        return list(dict.fromkeys(known))[:_MOST_PROMPTS]


def name_for_commands(gallery: Gallery, row: Row) -> str:
    """Returns what commands call a network: by its name, where that means it, else by what certainly does."""
    library, content = gallery.library, row["content_hash"]
    name = prompt_name(row, meaning_in(library.registry))
    with suppress(HnetkitError):
        if content_called(library.registry, name) == content:
            return name
    return str(content)


def python_text(name: str, strength: float) -> str:
    """Returns lines of Python that apply a network of the library to a pipeline of diffusers."""
    return "\n".join(
        [
            "import hnetkit",
            "",
            f"network = hnetkit.Library().find({name!r})",
            f"hnetkit.load_hypernetwork(pipe, network, name={name!r})",
            f"hnetkit.set_hypernetworks(pipe, [{name!r}], [{strength:g}])",
        ]
    )


def leaving(row: Row, name: str, strength: float) -> tuple[str, str]:
    """Returns how exactly a network can become a file that other programs load, and the command for it."""
    is_affine = row["activation"] == "linear" and not row["layer_norm"]
    how = (
        "Exactly, to rounding: without an activation it is one linear map."
        if is_affine
        else "Fitted, as it has an activation or a layer norm. The error is measured, and told."
    )
    out = argument(f"{row['name']}-lora.safetensors", is_path=True)
    return how, f"hnetkit bake -n {argument(f'{name}:{strength:g}')} --to lora --out {out}"


def verdict_of(row: Row) -> Soundness:
    """Returns whether a network can be used, why not, and what helps; `row` is that of `Library.record`."""
    states = {file["state"] for file in row["files"]}
    if "present" not in states:
        has_source = row["sites"] or row["elsewhere"] or any(file["reference"] for file in row["imported"])
        repair = "hnetkit repair" if has_source else None
        if "corrupt" in states:
            advice = "It is fetched again from its source." if has_source else "Get it again from where you had it."
            reason = "its bytes changed on the disk, and neither its size nor its time did"
            return Soundness("damaged", ((reason, advice),), repair)
        advice = "It is fetched again from its source." if has_source else "Index the folder where you have it now."
        return Soundness("missing", (("no file that is here holds it", advice),), repair or "hnetkit scan FOLDER")
    reasons = [("a copy of it is damaged", f"{file['path']}") for file in row["files"] if file["state"] == "corrupt"]
    warnings = dict.fromkeys(warning for file in row["files"] for warning in file["warnings"])
    reasons += [(warning, _advice(warning)) for warning in warnings]
    if not reasons:
        return Soundness("sound", (), None)
    best = next(file["path"] for file in row["files"] if file["state"] == "present")
    return Soundness("with warnings", tuple(reasons), f"hnetkit validate {argument(best, is_path=True)}")


def _advice(warning: str) -> str:
    return next((advice for beginning, advice in _ADVICE.items() if warning.startswith(beginning)), "")


def sources(row: Row) -> list[tuple[str, str]]:
    """Returns the pages of a network at sites: what to call each, and its address. Only https is followed."""
    names = {"civitai": "Civitai", "huggingface": "Hugging Face"}
    found = [(names[site["source"]], site["link"]) for site in row["sites"] if is_https(site["link"])]
    return list(dict.fromkeys(found))


def is_https(address: str | None) -> bool:
    """Whether an address can be a link: a page of a site, and nothing that runs or opens a file."""
    try:
        parts = urlsplit(address or "")
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname) and not parts.username


def _groups(row: Row) -> Iterator[tuple[str, list[Row]]]:
    """Yields whose facts they are, and the facts, each with its label and its texts.

    Files have a part of the page of their own.
    """
    for group in facts_of(row):
        facts: list[Row] = []
        for label, text in group.facts:
            if group.about == "file" or label in _EDITED:
                continue
            if not label and facts:
                facts[-1]["texts"].append(text)
            else:
                facts.append({"label": label, "texts": [text], "is_link": label == "link" and is_https(text)})
        if facts:
            yield group.about, facts


def _previews(row: Row) -> list[str]:
    return list(dict.fromkeys(sidecar["preview"] for sidecar in row["sidecars"] if sidecar.get("preview")))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
