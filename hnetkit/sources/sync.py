"""Keeping a library in step with Civitai: what is listed, what is missing here, what the site lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

from hnetkit.errors import Gone, NetworkFailed, failure_of
from hnetkit.registry.store import Registry
from hnetkit.sources.civitai import Civitai, Filters, halts
from hnetkit.sources.pace import Clock
from hnetkit.sources.pages import BadRecord
from hnetkit.sources.plan import Item, item_of, items_of
from hnetkit.sources.record import SOURCE, record
from hnetkit.sources.shapes import Model, id_of

_AGAIN_S = 5.0  # between two answers that a model is gone: one alone may be a hiccup
_ASKED_LATELY = timedelta(hours=24)
MOST_ASKED = 100
"""Models that one command asks about by number: a list that somebody gave away may name any number of them."""


@dataclass(slots=True)
class Plan:
    """What a sync would do; nothing was touched for it.

    Attributes:
        filters: which models are meant.
        models: everything listed that is meant.
        items: each of their files, with what is to be done.
        failed: records, and parts of them, with which nothing can be done.
    """

    filters: Filters
    models: list[Model] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    failed: list[BadRecord] = field(default_factory=list)

    @property
    def to_fetch(self) -> list[Item]:
        return [item for item in self.items if item.action == "fetch"]

    @property
    def left_out(self) -> int:
        """How many files, versions and models are neither here nor to be fetched."""
        return sum(item.action == "skip" for item in self.items) + sum(bad.count for bad in self.failed)

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
    plan = Plan(filters)
    owners: dict[str, Item] = {}
    for page in civitai.pages(filters, failed=plan.failed.append):
        for model in page:
            with alone(model.id, plan.failed):
                items = items_of(registry, model, all_versions=all_versions)
                own = [item for item in (_told_apart(registry, item, owners) for item in items) if item is not None]
                plan.items += own
                plan.models.append(model)
                if others := len(items) - len(own):
                    reason = f"left out: files that a model before it has ({others:,})"
                    plan.failed.append(BadRecord(model.id, reason, others, is_whole=False))
        listed(len(plan.models))
    return plan


def _told_apart(registry: Registry, item: Item, owners: dict[str, Item]) -> Item | None:
    """Returns what is to be done with a file: None where a model before it has it, whose it is then.

    One that only has the number of another, but other bytes, is a file of its own: who is listed first could keep
    all others from coming.
    """
    first = owners.setdefault(item.key, item)
    if first.model.id == item.model.id:
        return item
    if item.file.sha256 is None or item.file.sha256 == first.file.sha256:
        return None
    return item_of(registry, item.model, item.version, item.file, is_other=True)


@contextmanager
def alone(id: int | None, failed: list[BadRecord], what: str | None = None) -> Iterator[None]:
    """Surrounds what is done with one model: whatever fails is that model's failure.

    Args:
        id: the site's number of it.
        failed: gets it.
        what: it is, in words, where it is no model.

    Raises:
        RemoteError: the site would answer the next question in the same way.
        Stopped: the person asked for it.
    """
    try:
        yield
    except Exception as error:
        if halts(error):
            raise
        failed.append(BadRecord(id, str(failure_of(error, what or f"model {id}"))))


def store(registry: Registry, models: Iterable[Model]) -> list[BadRecord]:
    """Keeps what the site says of models, each by itself, and returns what could not be kept."""
    failed: list[BadRecord] = []
    for model in models:
        with alone(model.id, failed), registry.write():
            record(registry, model)
            for job in registry.jobs.of(_record_key(model.id), "refused"):
                registry.jobs.set_state(job.id, "done")
    return failed


def store_failures(registry: Registry, failed: Iterable[BadRecord]) -> None:
    """Keeps which records of the site could not be used, and why."""
    nothing = {"url": "", "suffix": "", "folder": "", "remote_file_id": None, "sha256": None, "size_bytes": None}
    with registry.write():
        for bad in failed:
            if bad.id is not None:
                values = {"source": SOURCE, "name": f"model-{bad.id}", **nothing}
                job = registry.jobs.add(_record_key(bad.id), values)
                registry.jobs.set_state(job.id, "refused", code="record", reason=bad.reason)


def _record_key(id: int) -> str:
    return f"{SOURCE}:model:{id}"


def missing(registry: Registry, models: Iterable[Model]) -> list[str]:
    """Returns known models that a listing of everything did not hold and that were not asked about lately.

    Those come first that were seen least lately: a command asks about `MOST_ASKED`.
    """
    listed = {str(model.id) for model in models}
    now = datetime.now(timezone.utc)
    first, last = ((now + age).isoformat(timespec="seconds") for age in (-_ASKED_LATELY, _ASKED_LATELY))
    rows = registry.catalogue.listed_models(SOURCE, not_seen=(first, last))  # later than now: by a wrong clock
    rows.sort(key=lambda row: str(row["last_seen"]))
    return [row["remote_id"] for row in rows if row["remote_id"] not in listed]


def ask_about(
    registry: Registry, civitai: Civitai, clock: Clock, ids: Iterable[str], failed: list[BadRecord] | None = None
) -> Iterator[tuple[str, str]]:
    """Asks about models by number, stores and yields (number, state): absence from a list proves nothing.

    Args:
        failed: gets those about which nothing could be learnt.
    """
    failed = [] if failed is None else failed
    doubtful: list[str] = []
    for id in ids:
        state = None
        with alone(id_of(id), failed):
            state = _asked(registry, civitai, id)
            if state == "gone":
                doubtful.append(id)
        if state not in (None, "gone"):
            yield id, str(state)
    if doubtful:
        clock.sleep(_AGAIN_S)  # once: an import may have brought thousands that never were
    for id in doubtful:
        state = None
        with alone(id_of(id), failed):
            state = _asked(registry, civitai, id)
            if state == "gone":
                with registry.write():
                    registry.catalogue.set_model_state(SOURCE, id, "gone")
        if state is not None:
            yield id, state


def _asked(registry: Registry, civitai: Civitai, id: str) -> str:
    """What the site says now of the state of a model, of which all else that it says is stored."""
    number = id_of(id)
    if number is None:
        raise NetworkFailed(f"{id[:40]}: no number of a model")
    try:
        model = civitai.model(number)
    except Gone:
        return "gone"
    with registry.write():
        record(registry, model, whole=True)
        registry.catalogue.set_model_state(SOURCE, id, model.state)
    return model.state


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


def updates(registry: Registry, civitai: Civitai, failed: list[BadRecord] | None = None) -> Iterator[Update]:
    """Yields the models whose newest version is not here, of those of which some version is.

    Args:
        failed: gets those of which the site's record cannot be used.
    """
    failed = [] if failed is None else failed
    here = _versions_here(registry)
    ids = tuple(sorted(filter(None, map(id_of, here))))
    for page in civitai.pages(Filters(ids=ids), failed=failed.append) if ids else ():
        failed += store(registry, page)
        for model in page:
            newer: list[Item] = []
            with alone(model.id, failed):
                newer = [item for item in items_of(registry, model) if item.action == "fetch"]
            if newer and str(newer[0].version.id) not in here[str(model.id)]:
                yield Update(model, tuple(here[str(model.id)].values()), newer[0])


def _versions_here(registry: Registry) -> dict[str, dict[str, str]]:
    """Model -> {version -> its name} of every version with a file in the library."""
    found: dict[str, dict[str, str]] = {}
    for row in registry.catalogue.files(source=SOURCE, here=True):
        found.setdefault(row["model_id"], {})[row["version_id"]] = row["version"]
    return found
