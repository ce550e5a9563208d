"""The library as cards: which networks, in which order, on which page. The address of a page holds all of it."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

from hnetkit.base_models import fitting, require_base_model
from hnetkit.errors import DiskFull, RegistryError, UsageError
from hnetkit.gallery.drawing import MOST_NETWORKS
from hnetkit.gallery.paging import neighbours, page_number, part_of
from hnetkit.library.library import Library
from hnetkit.library.listing import SORTS, in_order, trained_on
from hnetkit.library.prompt_names import meaning_in, tag_text
from hnetkit.library.records import with_what_is_said
from hnetkit.library.suggestions import trigger_words
from hnetkit.ratings import is_adult
from hnetkit.registry.cards import CardFacts
from hnetkit.text import listed

Row = dict[str, Any]

PER_PAGE = 60
"""Cards of a page."""
_CHOSEN = re.compile(rf"(?:[0-9a-f]{{64}}(?:\.|\Z)){{0,{MOST_NETWORKS}}}")
_MOST_CHOICES = 200  # values of a filter that are offered; another one can stand in the address
STATES: Mapping[str, str] = {
    "sound": "sound",
    "warnings": "with warnings",
    "missing": "missing",
    "duplicates": "in several files",
    "gone": "gone at their source",
    "unsafe": "rated above PG-13",
}
"""What a filter by state is called in an address -> in words."""
ORDERS: Mapping[str, str] = {
    "best": "best match",
    "name": "name",
    "added": "latest first",
    "size": "largest first",
    "step": "most steps first",
    "copies": "most copies first",
    "base-model": "base model",
    "creator": "creator",
    "title": "title",
}
"""What an order is called in an address -> in words."""
# columns of the view `library`: what is filtered by, of all networks, and what else a card shows, of those of a page
_FILTERED = (
    "name",
    "base_model",
    "layer_structure",
    "activation",
    "state",
    "tags",
    "copies",
    "checkpoint_name",
    "checkpoint_hash",
    "content_hash",
)
_SHOWN = ("content_hash", "size_bytes", "title", "creator", "trigger_words")


def joined(contents: Iterable[str]) -> str:
    """Returns content hashes as `View.chosen` names them."""
    return ".".join(content.removeprefix("h1:") for content in contents)


@dataclass(frozen=True)
class View:
    """What a page of cards shows. Each field is a part of the address; an empty one is left out of it.

    Attributes:
        q: words to search for.
        base: a base model that networks fit.
        activation: of the networks.
        structure: layer structure, as ``1, 2, 1``.
        tag: the user's, a site's or a sidecar's.
        root: number of a scanned folder.
        trained: the checkpoint, as a card shows it.
        state: one of `STATES`.
        sort: one of `ORDERS`.
        turned: ``"1"`` turns the order around.
        nsfw: ``"1"`` shows pictures of networks that are rated above PG-13 as they are; else they are blurred.
        chosen: what is to be compared: the digits of content hashes, with dots between them.
        page: number of the page, from 1.
    """

    q: str = ""
    base: str = ""
    activation: str = ""
    structure: str = ""
    tag: str = ""
    root: str = ""
    trained: str = ""
    state: str = ""
    sort: str = ""
    turned: str = ""
    nsfw: str = ""
    chosen: str = ""
    page: int = 1

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> View:
        """Returns the view of an address; what cannot be is as if it were not there."""
        known = {field.name: parameters[field.name] for field in fields(cls) if field.name in parameters}
        allowed = {"sort": ORDERS, "state": STATES, "turned": ("1",), "nsfw": ("1",)}
        for name, values in allowed.items():
            if known.get(name) not in values:
                known.pop(name, None)
        if not _CHOSEN.fullmatch(known.get("chosen", "")):
            known.pop("chosen", None)
        known.pop("page", None)
        return cls(**known, page=page_number(parameters))

    def address(self, **changes: Any) -> str:
        """Returns the address of this view, or of one that differs; another view begins at its first page."""
        changes.setdefault("page", 1)
        other = replace(self, **changes)
        given = {field.name: value for field in fields(other) if (value := getattr(other, field.name)) not in ("", 1)}
        return f"?{urlencode(given)}" if given else "?"

    @property
    def chosen_contents(self) -> list[str]:
        """The content hashes of the networks that are to be compared, each once."""
        return [f"h1:{digits}" for digits in dict.fromkeys(filter(None, self.chosen.split(".")))]

    @property
    def is_full(self) -> bool:
        """Whether no further network can be chosen."""
        return len(self.chosen_contents) >= MOST_NETWORKS

    def toggled(self, content_hash: str) -> str:
        """Returns `chosen` with a network, or without it if it is chosen already."""
        contents = self.chosen_contents
        others = [content for content in contents if content != content_hash]
        kept = others if content_hash in contents else [*contents, content_hash]
        return joined(kept)

    @property
    def order(self) -> str:
        """The order that is meant: the best match first where something is searched."""
        if self.sort == "best" and not self.q:
            return "name"
        return self.sort or ("best" if self.q else "name")

    def filters(self) -> dict[str, str]:
        """Returns what narrows the library down, in words: name of the field -> what it is."""
        words = {
            "q": f"“{self.q}”" if self.q else "",
            "base": self.base,
            "activation": self.activation,
            "structure": f"[{self.structure}]" if self.structure else "",
            "tag": f"tag {self.tag}" if self.tag else "",
            "root": "one folder" if self.root else "",
            "trained": f"trained on {self.trained}" if self.trained else "",
            "state": STATES.get(self.state, ""),
        }
        return {name: text for name, text in words.items() if text}


@dataclass(frozen=True)
class Page:
    """Cards of one page.

    Attributes:
        cards: rows of `CardIndex`.
        count: networks that pass all filters.
        which: what `which` returns of them.
        of: networks of the library.
        number, last: of this page and of the last one, from 1.
        choices: field of the view -> value -> how many networks of the library have it, the commonest first.
    """

    cards: list[Row]
    count: int
    which: str
    of: int
    number: int
    last: int
    choices: Mapping[str, Mapping[str, int]]


def which(contents: Iterable[str]) -> str:
    """Returns what tells these networks from others, in any order; another process says it otherwise."""
    return f"{hash(frozenset(contents)):x}"


class CardIndex:
    """All networks of a library as rows for cards, read again after each change of the registry."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._state: tuple[int, int] | None = None
        self._rows: dict[str, Row] = {}
        self._choices: Mapping[str, Mapping[str, int]] = {}
        self._orders: dict[tuple[str, bool], list[str]] = {}

    def page(self, view: View) -> Page:
        """Returns the page that a view shows."""
        with self._lock:
            self._refresh()
            rows = self._passing(view)
            part = part_of(len(rows), view.page, PER_PAGE)
            cards = self._with_use(self._shown(rows[part.rows]))
            networks = which(row["content_hash"] for row in rows)
            return Page(cards, len(rows), networks, len(self._rows), part.number, part.last, self._choices)

    def contents(self, view: View) -> list[str]:
        """Returns the content hashes of all networks that pass the filters of a view, in its order."""
        return [row["content_hash"] for row in self.passing(view)]

    def passing(self, view: View) -> list[Row]:
        """Returns all networks that pass the filters of a view, in its order, with what they are filtered by."""
        with self._lock:
            self._refresh()
            return self._passing(view)

    def card(self, content_hash: str) -> Row | None:
        """Returns the row of a network; None if the library does not have it."""
        with self._lock:
            self._refresh()
            row = self._rows.get(content_hash)
            return next(iter(self._shown([row] if row else [])), None)

    def neighbours(self, content_hash: str, view: View) -> tuple[str | None, str | None]:
        """Returns the networks before and after one, in the order of a view."""
        return neighbours(self.contents(view), content_hash)

    def tags(self) -> list[str]:
        """Returns the user's tags, the commonest first, as far as a filter offers them."""
        with self._lock:
            self._refresh()
            return list(self._choices["tag"])

    def _refresh(self) -> None:
        registry = self._library.registry
        with suppress(RegistryError, DiskFull):  # a registry that cannot be written is searched as it is
            registry.catch_up()
        state = registry.state()
        if state == self._state:
            return
        facts, nothing = registry.cards.facts(), CardFacts()
        lost = registry.catalogue.lost()
        rows = {row["content_hash"]: row for row in registry.networks.listing(*_FILTERED)}
        for content, row in rows.items():
            of_row = facts.get(content, nothing)
            row["structure"] = re.sub(r"\.0(?!\d)", "", (row.pop("layer_structure") or "")[1:-1])
            row["trained_on"] = trained_on(row.pop("checkpoint_name"), row.pop("checkpoint_hash"))
            row["gone"], row["verdict"] = lost.get(content), of_row.verdict
            row["roots"], row["preview"] = of_row.roots, of_row.preview
            row["is_adult"] = is_adult(of_row.nsfw_level)
        self._rows, self._choices, self._state = rows, self._count(rows.values()), state
        self._orders.clear()

    def _shown(self, rows: list[Row]) -> list[Row]:
        """Returns rows with all that a card shows."""
        contents = [row["content_hash"] for row in rows]
        details = {row["content_hash"]: row for row in self._library.registry.networks.listing(*_SHOWN, of=contents)}
        # another process may have forgotten one in between
        return [row | details[row["content_hash"]] for row in rows if row["content_hash"] in details]

    def _with_use(self, cards: list[Row]) -> list[Row]:
        """Returns cards with how a prompt uses their networks: their tags and trigger words."""
        registry = self._library.registry
        meaning = meaning_in(registry)
        known = {
            row["content_hash"]: row for row in with_what_is_said(registry, [row["content_hash"] for row in cards])
        }
        return [
            card | {"tag_text": tag_text(row, meaning), "trigger_words": trigger_words(row)}
            for card in cards
            if (row := known.get(card["content_hash"])) is not None
        ]

    def _count(self, rows: Iterable[Row]) -> Mapping[str, Mapping[str, int]]:
        rows = list(rows)
        counts = {
            "base": Counter(row["base_model"] for row in rows),
            "activation": Counter(row["activation"] for row in rows),
            "structure": Counter(row["structure"] for row in rows),
            "trained": Counter(row["trained_on"] for row in rows if row["trained_on"]),
            "tag": Counter(tag for row in rows for tag in listed([row["tags"] or ""])),
            "root": Counter(str(root) for row in rows for root in row["roots"]),
            "state": Counter(state for state in STATES for row in rows if _IS_IN[state](row)),
        }
        return {name: dict(count.most_common(_MOST_CHOICES)) for name, count in counts.items()}

    def _passing(self, view: View) -> list[Row]:
        """Returns the rows that pass all filters of a view, in its order."""
        order, networks = view.order, self._library.registry.networks
        found = list(self._rows.values())
        if view.q:
            matching = networks.contents_matching(view.q)
            found = [self._rows[content] for content in matching if content in self._rows]
        if view.base:
            try:
                bases = fitting(require_base_model(view.base))
            except UsageError:
                return []
            found = [row for row in found if row["base_model"] in bases]
        if view.tag:
            tagged = networks.tagged(view.tag)
            found = [row for row in found if row["content_hash"] in tagged]
        if view.root:
            found = [row for row in found if view.root in map(str, row["roots"])]
        for field, key in (("activation", "activation"), ("structure", "structure"), ("trained", "trained_on")):
            if wanted := getattr(view, field):
                found = [row for row in found if row[key] == wanted]
        if view.state:
            found = list(filter(_IS_IN[view.state], found))
        if order == "best":
            return found[::-1] if view.turned else found
        ordered = self._in_order(order, reverse=bool(view.turned))
        wanted_contents = {row["content_hash"] for row in found}
        return [self._rows[content] for content in ordered if content in wanted_contents]

    def _in_order(self, sort: str, *, reverse: bool) -> list[str]:
        """Returns the content hashes of all networks in an order of `hnetkit list`."""
        if (sort, reverse) not in self._orders:
            column = SORTS[sort][0]
            rows = list(self._rows.values())
            if column not in _FILTERED:
                rows = self._library.registry.networks.listing("content_hash", "name", column)
            ordered = (row["content_hash"] for row in in_order(rows, sort, reverse=reverse))
            self._orders[sort, reverse] = [content for content in ordered if content in self._rows]
        return self._orders[sort, reverse]


_IS_IN: Mapping[str, Callable[[Row], bool]] = {
    "sound": lambda row: row["verdict"] == "ok" and row["state"] == "present",
    "warnings": lambda row: row["verdict"] == "warnings",
    "missing": lambda row: row["state"] != "present",
    "duplicates": lambda row: row["copies"] > 1,
    "gone": lambda row: row["gone"] is not None,
    "unsafe": lambda row: row["is_adult"],
}
