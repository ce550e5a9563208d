"""Keeping a library in step with Civitai: what is listed, what is missing here, what the site lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from hnetkit.errors import Gone
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Civitai, Filters
from hnetkit.sources.pace import Clock
from hnetkit.sources.plan import Item, items_of
from hnetkit.sources.record import SOURCE, record
from hnetkit.sources.shapes import Model

_AGAIN_S = 5.0  # between two answers that a model is gone: one alone may be a hiccup
_ASKED_LATELY = timedelta(hours=24)


@dataclass(slots=True)
class Plan:
    """What a sync would do; nothing was touched for it.

    Attributes:
        models: everything listed that is meant.
        items: each of their files, with what is to be done.
    """

    models: list[Model] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    @property
    def to_fetch(self) -> list[Item]:
        return [item for item in self.items if item.action == "fetch"]

    @property
    def bytes_to_fetch(self) -> int:
        """About, in bytes: files whose size the site does not say count nothing."""
        return sum(item.file.size_bytes or 0 for item in self.to_fetch)


def plan_sync(
    registry: Registry,
    civitai: Civitai,
    filters: Filters,
    *,
    all_versions: bool = False,
    listed: Callable[[int], None] = lambda count: None,
) -> Plan:
    """Returns what to do to have everything that is meant.

    Args:
        filters: which models.
        all_versions: not only the newest of each.
        listed: told how many models were listed so far.

    Raises:
        RemoteError: the listing failed.
    """
    plan = Plan()
    for page in civitai.pages(filters):
        plan.models += page
        for model in page:
            plan.items += items_of(registry, model, all_versions=all_versions)
        listed(len(plan.models))
    return plan


def store(registry: Registry, models: Iterable[Model]) -> None:
    """Keeps what the site says of models."""
    with registry.write():
        for model in models:
            record(registry, model)


def missing(registry: Registry, models: Iterable[Model]) -> list[str]:
    """Returns known models that a listing of everything did not hold and that were not asked about lately."""
    listed = {str(model.id) for model in models}
    before = (datetime.now(timezone.utc) - _ASKED_LATELY).isoformat(timespec="seconds")
    rows = registry.catalogue.models("source = ? AND state = 'listed' AND last_seen < ?", [SOURCE, before])
    return [row["remote_id"] for row in rows if row["remote_id"] not in listed]


def ask_about(registry: Registry, civitai: Civitai, clock: Clock, ids: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Asks about models by number, stores and yields (number, state): absence from a list proves nothing."""
    for id in ids:
        model = _model_or_none(civitai, clock, int(id))
        state = model.state if model is not None else "gone"
        with registry.write():
            if model is not None:
                record(registry, model, whole=True)
            registry.catalogue.set_model_state(SOURCE, id, state)
        yield id, state


def _model_or_none(civitai: Civitai, clock: Clock, id: int) -> Model | None:
    try:
        return civitai.model(id)
    except Gone:
        clock.sleep(_AGAIN_S)
    try:
        return civitai.model(id)
    except Gone:
        return None


@dataclass(frozen=True, slots=True)
class Update:
    """A model of which the library holds something, and the site has something newer.

    Attributes:
        have: names of the versions that are here.
        newest: the version that is not.
    """

    model: Model
    have: tuple[str, ...]
    newest: Item


def updates(registry: Registry, civitai: Civitai) -> Iterator[Update]:
    """Yields the models whose newest version is not here, of those of which some version is."""
    here = _versions_here(registry)
    ids = tuple(sorted(int(id) for id in here))
    for page in civitai.pages(Filters(ids=ids)) if ids else ():
        store(registry, page)
        for model in page:
            newer = [item for item in items_of(registry, model) if item.action == "fetch"]
            if newer and str(newer[0].version.id) not in here[str(model.id)]:
                yield Update(model, tuple(here[str(model.id)].values()), newer[0])


def _versions_here(registry: Registry) -> dict[str, dict[str, str]]:
    """Model -> {version -> its name} of every version with a file in the library."""
    found: dict[str, dict[str, str]] = {}
    present = "remote_files.sha256 IN (SELECT sha256 FROM files WHERE state = 'present')"
    for row in registry.catalogue.files(f"models.source = '{SOURCE}' AND {present}"):
        found.setdefault(row["model_id"], {})[row["version_id"]] = row["version"]
    return found
