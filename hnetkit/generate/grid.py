"""The comparison that every article on hypernetworks prints: networks by strengths, the same seed everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hnetkit.generate.model import Model
from hnetkit.generate.networks import Network, StackedPrompt, hashes_of, put_on
from hnetkit.generate.picture import Progress, draw, infotext_of
from hnetkit.generate.request import Request
from hnetkit.generate.sheet import SheetRow, draw_sheet
from hnetkit.prompts.tags import TaggedPrompt, plain_number

if TYPE_CHECKING:
    from PIL import Image

RequestOf = Callable[[TaggedPrompt, int], Request]
"""Gives the request for one picture of a prompt and a seed, without a stack."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a grid shows: one row for each prompt, seed and network, one column for each strength.

    Attributes:
        networks: each takes its strength from the column.
        strengths: 0 is the picture without the network.
        prompts: the networks of their own tags apply in every column.
        seeds: of the pictures.
    """

    networks: Sequence[Network]
    strengths: Sequence[float]
    prompts: Sequence[StackedPrompt]
    seeds: Sequence[int]

    @property
    def columns(self) -> list[str]:
        return [plain_number(strength) if strength else "none" for strength in self.strengths]

    def label(self, network: Network, stacked: StackedPrompt, seed: int) -> str:
        """Returns the network's name, and what else tells a row from the others."""
        prompt = [stacked.prompt.written] if len(self.prompts) > 1 else []
        return ", ".join([network.name, *prompt, *([f"seed {seed}"] if len(self.seeds) > 1 else [])])


@dataclass(frozen=True, slots=True)
class _Row:
    label: str
    request: Request
    name: str  # on the pipeline

    def cell(self, strength: float) -> Request:
        if not strength:
            return self.request
        return replace(self.request, stack=(*self.request.stack, (self.name, strength)))


def draw_grid(
    model: Model, comparison: Comparison, request: RequestOf, progress: Progress | None = None
) -> Image.Image:
    """Returns the labelled sheet; cells that are the same picture are drawn once.

    Raises:
        BadPicture: a cell came out NaN or black.
        IncompatibleNetwork: a network does not belong on this model.
    """
    rows = list(_rows(model, comparison, request))
    cells = list(dict.fromkeys(row.cell(strength) for row in rows for strength in comparison.strengths))
    pictures = {}
    for number, cell in enumerate(cells):

        def report(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(cells) * total)

        pictures[cell] = next(draw(model, cell, report)).image
    return draw_sheet(
        *_headings(model, comparison, rows[0].request),
        comparison.columns,
        [SheetRow(row.label, [pictures[row.cell(strength)] for strength in comparison.strengths]) for row in rows],
    )


def infotext_of_grid(model: Model, comparison: Comparison, request: RequestOf) -> str:
    """Returns the infotext of a grid's first picture, and what varies."""
    stacked, seed = comparison.prompts[0], comparison.seeds[0]
    varying = {
        "Grid networks": ", ".join(network.name for network in comparison.networks),
        "Grid strengths": ", ".join(map(plain_number, comparison.strengths)),
    }
    hashes = hashes_of([*stacked.networks, *comparison.networks])
    return infotext_of(model, request(stacked.prompt, seed), seed, stacked.prompt.written, hashes, varying)


def _rows(model: Model, comparison: Comparison, request: RequestOf) -> Iterator[_Row]:
    of_prompts = [network for stacked in comparison.prompts for network in stacked.networks]
    loaded = put_on(model.pipe, [*of_prompts, *comparison.networks])
    base, names = iter(loaded[: len(of_prompts)]), loaded[len(of_prompts) :]
    for stacked in comparison.prompts:
        stack = tuple((next(base), strength) for strength in stacked.strengths)
        for seed in comparison.seeds:
            for network, name in zip(comparison.networks, names, strict=True):
                drawn = replace(request(stacked.prompt, seed), stack=stack)
                yield _Row(comparison.label(network, stacked, seed), drawn, name)


def _headings(model: Model, comparison: Comparison, request: Request) -> tuple[str, str]:
    title = comparison.prompts[0].prompt.written if len(comparison.prompts) == 1 else ""
    seed = [f"seed {comparison.seeds[0]}"] if len(comparison.seeds) == 1 else []
    numbers = [request.sampler, f"{request.steps} steps", f"CFG {request.cfg_scale:g}"]
    return title, "  ·  ".join([model.name, *seed, *numbers])
