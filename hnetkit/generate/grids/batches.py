"""Which cells of a grid are one picture, and which pictures are sampled together. It depends on the grid alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hnetkit.generate.grids.cells import Cell
from hnetkit.generate.loading.fingerprints import digest


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures that are sampled together: they differ in nothing but their seed.

    Attributes:
        cells: one for each picture.
        keys: of each: a hash of all that it depends on.
        numbers: of each: its first place in the grid, counted from 0 in reading order.
    """

    cells: tuple[Cell, ...]
    keys: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def checkpoint(self) -> str | None:
        return self.cells[0].draft.checkpoint

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(cell.draft.seed for cell in self.cells)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be drawn for a grid.

    Attributes:
        keys: of every cell, in reading order; cells that are the same picture have the same key.
        batches: in the order in which they are drawn: by model, then by stack.
    """

    keys: tuple[str, ...]
    batches: tuple[Batch, ...]


def make_plan(
    cells: Sequence[Cell],
    shared: Mapping[str, object],
    models: Mapping[str | None, str],
    *,
    batch_size: int,
) -> Plan:
    """Returns what is drawn in which batch.

    Args:
        cells: in reading order.
        shared: what all pictures depend on beside what cells say.
        models: checkpoint -> `fingerprint` of its files.
        batch_size: pictures that are sampled together, at most. Sums round differently in another batch, so that a
            picture's key has its companions in it.
    """
    facts = [{**cell.facts(), "model": models[cell.draft.checkpoint], "shared": shared} for cell in cells]
    alike = [digest(fact) for fact in facts]
    firsts = {own: number for number, own in reversed(list(enumerate(alike)))}
    groups: dict[str, list[int]] = {}
    for number in sorted(firsts.values()):
        without_seed = {name: fact for name, fact in facts[number].items() if name != "seed"}
        groups.setdefault(digest(without_seed), []).append(number)
    batches = []
    for numbers in groups.values():
        for at in range(0, len(numbers), batch_size):
            together = numbers[at : at + batch_size]
            company = [cells[number].draft.seed for number in together]
            keys = tuple(
                alike[number] if len(together) == 1 else digest({"picture": alike[number], "batch": company})
                for number in together
            )
            batches.append(Batch(tuple(cells[number] for number in together), keys, tuple(together)))
    key_of = {alike[number]: key for batch in batches for number, key in zip(batch.numbers, batch.keys, strict=True)}
    return Plan(tuple(key_of[own] for own in alike), tuple(_in_drawing_order(batches)))


def share_of(batches: Sequence[Batch], process: int, processes: int) -> Sequence[Batch]:
    """Returns the batches of one process of several: neighbours, so that it loads few models."""
    return batches[len(batches) * process // processes : len(batches) * (process + 1) // processes]


def _in_drawing_order(batches: Sequence[Batch]) -> list[Batch]:
    """Sorts by model and by stack: what is on the UNet then changes in nothing but its strengths, mostly."""
    models: dict[str | None, int] = {}
    stacks: dict[tuple[str, ...], int] = {}
    for batch in batches:
        models.setdefault(batch.checkpoint, len(models))
        stacks.setdefault(_stack(batch), len(stacks))
    return sorted(batches, key=lambda batch: (models[batch.checkpoint], stacks[_stack(batch)], batch.numbers))


def _stack(batch: Batch) -> tuple[str, ...]:
    return tuple(network.network.content_hash for network in batch.cells[0].networks)
