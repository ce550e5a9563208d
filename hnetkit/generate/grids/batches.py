"""Cells that are the same image, and images that are sampled together: a plan that follows from the grid alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hnetkit.generate.grids.cells import Cell
from hnetkit.generate.loading.pipeline import digest


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that are sampled together; they differ in nothing but their seed.

    Attributes:
        cells: one for each image.
        keys: for each image, a hash of all that it depends on.
        numbers: for each image, the number of its first cell, from 0 in reading order.
    """

    cells: tuple[Cell, ...]
    keys: tuple[str, ...]
    numbers: tuple[int, ...]

    @property
    def checkpoint(self) -> str | None:
        return self.cells[0].spec.checkpoint

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(cell.spec.seed for cell in self.cells)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """The batches of a grid.

    Attributes:
        keys: of every cell, in reading order; cells that are the same image have the same key.
        batches: in the order in which they are drawn: by model, then by stack.
    """

    keys: tuple[str, ...]
    batches: tuple[Batch, ...]


def plan_batches(
    cells: Sequence[Cell],
    shared: Mapping[str, object],
    models: Mapping[str | None, str],
    *,
    batch_size: int,
) -> BatchPlan:
    """Plans which images are drawn in which batch.

    Args:
        cells: in reading order.
        shared: what all images depend on beside their cells.
        models: checkpoint -> `fingerprint` of its files.
        batch_size: the most images of a batch. Sums round differently in another batch, so an image's key includes
            the seeds of its batch.
    """
    facts = [{**cell.facts(), "model": models[cell.spec.checkpoint], "shared": shared} for cell in cells]
    digests = [digest(fact) for fact in facts]
    firsts = {each: number for number, each in reversed(list(enumerate(digests)))}  # the first cell of each image
    groups: dict[str, list[int]] = {}
    for number in sorted(firsts.values()):
        without_seed = {name: fact for name, fact in facts[number].items() if name != "seed"}
        groups.setdefault(digest(without_seed), []).append(number)
    batches = []
    for numbers in groups.values():
        for start in range(0, len(numbers), batch_size):
            together = numbers[start : start + batch_size]
            seeds = [cells[number].spec.seed for number in together]
            keys = tuple(
                digests[number] if len(together) == 1 else digest({"picture": digests[number], "batch": seeds})
                for number in together
            )
            batches.append(Batch(tuple(cells[number] for number in together), keys, tuple(together)))
    key_of = {digests[number]: key for batch in batches for number, key in zip(batch.numbers, batch.keys, strict=True)}
    return BatchPlan(tuple(key_of[each] for each in digests), tuple(_in_drawing_order(batches)))


def _in_drawing_order(batches: Sequence[Batch]) -> list[Batch]:
    """Sorts by model and by stack, so that from batch to batch mostly strengths alone change on the UNet."""
    models: dict[str | None, int] = {}
    stacks: dict[tuple[str, ...], int] = {}
    for batch in batches:
        models.setdefault(batch.checkpoint, len(models))
        stacks.setdefault(_stack(batch), len(stacks))
    return sorted(batches, key=lambda batch: (models[batch.checkpoint], stacks[_stack(batch)], batch.numbers))


def _stack(batch: Batch) -> tuple[str, ...]:
    return tuple(network.network.content_hash for network in batch.cells[0].networks)
