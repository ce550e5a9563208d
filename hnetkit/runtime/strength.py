"""Strength: how strongly a network is applied, where in the UNet, to K or V, and at which sampling steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, MappingView, Set
from dataclasses import InitVar, dataclass
from typing import Any, Literal, TypeAlias

from hnetkit.errors import UsageError
from hnetkit.prompts.tags import Tag
from hnetkit.text import shorten

Kind = Literal["self", "cross"]
Side = Literal["k", "v"]
KINDS: tuple[Kind, Kind] = ("self", "cross")
SIDES: tuple[Side, Side] = ("k", "v")

PARTS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}
"""The parts of a UNet as tags name them -> as diffusers does."""

BlockFactors: TypeAlias = "Mapping[str, float] | Iterable[tuple[str, float]]"


@dataclass(frozen=True, slots=True)
class Strength:
    """The multiplier of ``y = x + strength * MLP(x)``: one number for each of self/cross and K/V.

    Args:
        value: the number for all four that are not given on their own; any finite number, 0 is off.
        self_k, self_v: for K and V of self-attention.
        cross_k, cross_v: for K and V of cross-attention (the text).
        start, end: the window of sampling in which it applies, as fractions of the steps, 0 to 1. A step counts
            by its middle: of 20 steps, ``end=0.6`` takes the first 12 and ``start=0.6`` the other 8. A step whose
            middle is on the border is in both, as the third of five with 0.5.
        blocks: factors by the UNet's own block names, ``{"down_blocks": 0.5, "up_blocks.1": 0}``; the longest
            name that fits a layer counts, and a layer that none fits has factor 1; ``""`` fits all of them.

    Raises:
        UsageError: no number, one that is not finite, or a window outside 0 to 1 or with its end before its start.
    """

    value: InitVar[float] = 1.0
    self_k: float | None = None
    self_v: float | None = None
    cross_k: float | None = None
    cross_v: float | None = None
    start: float = 0.0
    end: float = 1.0
    blocks: BlockFactors = ()

    def __post_init__(self, value: float) -> None:
        for name in ("self_k", "self_v", "cross_k", "cross_v"):
            number = getattr(self, name)
            object.__setattr__(self, name, _number(value if number is None else number))
        pairs = self.blocks.items() if isinstance(self.blocks, Mapping) else self.blocks
        object.__setattr__(self, "blocks", tuple(sorted((str(block), _number(factor)) for block, factor in pairs)))
        numbers = [self.number(kind, side) for kind in KINDS for side in SIDES]
        numbers += [factor for _, factor in self._blocks]
        if not all(map(math.isfinite, numbers)):
            raise UsageError(f"a strength is a finite number, not {next(n for n in numbers if not math.isfinite(n))}")
        if not 0 <= self.start <= self.end <= 1:
            raise UsageError(f"a window of steps lies within 0 to 1, not {self.start} to {self.end}")

    def __repr__(self) -> str:
        """Only what differs from a bare number: ``Strength(0.8, cross_v=0.5, end=0.6)``."""
        numbers = {f"{kind}_{side}": self.number(kind, side) for kind in KINDS for side in SIDES}
        most = max(numbers.values(), key=list(numbers.values()).count)
        parts = [f"{most:g}", *(f"{name}={number:g}" for name, number in numbers.items() if number != most)]
        parts += [f"start={self.start:g}"] if self.start != 0 else []
        parts += [f"end={self.end:g}"] if self.end != 1 else []
        parts += [f"blocks={dict(self._blocks)}"] if self._blocks else []
        return f"Strength({', '.join(parts)})"

    @classmethod
    def of(cls, strength: float | Strength) -> Strength:
        """Returns `strength`, a bare number becoming all four; raises UsageError for anything else."""
        return strength if isinstance(strength, Strength) else cls(strength)

    def number(self, kind: Kind, side: Side) -> float:
        """Returns the multiplier for K or V of self- or cross-attention."""
        number: float = getattr(self, f"{kind}_{side}")
        return number

    def factor(self, layer: str) -> float:
        """Returns the block factor of a layer by its dotted name in the UNet."""
        fitting = [(len(block), factor) for block, factor in self._blocks if is_within(layer, block)]
        return max(fitting)[1] if fitting else 1.0

    @property
    def block_names(self) -> tuple[str, ...]:
        """The blocks that have a factor of their own, sorted."""
        return tuple(block for block, _ in self._blocks)

    @property
    def has_window(self) -> bool:
        return (self.start, self.end) != (0.0, 1.0)

    def applies_at(self, progress: float) -> bool:
        """Whether `progress`, a fraction of the sampling steps, lies in the window."""
        return self.start <= progress <= self.end

    @property
    def _blocks(self) -> tuple[tuple[str, float], ...]:
        return self.blocks  # type: ignore[return-value]  # __post_init__ made pairs of whatever was given


def strength_of(tag: Tag) -> float | Strength:
    """Returns the strength in a tag: a plain number, unless the tag names sides, a window or blocks."""
    strength = Strength(
        tag.multiplier,
        self_k=tag.self_k,
        self_v=tag.self_v,
        cross_k=tag.cross_k,
        cross_v=tag.cross_v,
        start=tag.start,
        end=tag.end,
        blocks={"": 0.0, **{PARTS.get(block, block): 1.0 for block in tag.blocks}} if tag.blocks else (),
    )
    return tag.multiplier if strength == Strength(tag.multiplier) else strength


def _number(value: Any) -> float:
    """Returns a number as a float: one of Python, numpy or torch, but no text that reads like one."""
    if isinstance(value, str) or not hasattr(value, "__float__"):
        raise UsageError(
            f"a strength is a number or an hnetkit.Strength, not {shorten(value, 40)}",
            hint="0.8, or hnetkit.Strength(0.8, end=0.6)",
        )
    return float(value)


def is_within(layer: str, block: str) -> bool:
    """Whether `block` is the layer of this dotted name, or holds it; ``""`` is the whole UNet."""
    return not block or layer == block or layer.startswith(f"{block}.")


def require_order(items: Any) -> None:
    """Raises UsageError for a set of several things, which Python keeps in an order of its own."""
    if isinstance(items, Set) and not isinstance(items, MappingView) and len(items) > 1:
        raise UsageError("a set has no order, and order is stacking order", hint="give a list")
