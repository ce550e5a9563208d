"""How a hypernetwork is built, in A1111's terms, checked before anything is computed. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hnetkit.errors import UnsupportedNetwork, UsageError
from hnetkit.formats.activations import activation_name
from hnetkit.runtime.strength import SIDES, Side

INITIALIZATIONS: Mapping[str, str] = {
    "normal": "Normal",
    "xavier-uniform": "XavierUniform",
    "xavier-normal": "XavierNormal",
    "kaiming-uniform": "KaimingUniform",
    "kaiming-normal": "KaimingNormal",
}
"""hnetkit's names of the weight initializations -> what A1111 writes into files."""

MOST_LAYERS = 64
"""Of an MLP; A1111's interface offers up to a dozen."""

LARGEST_LAYER = 64.0
"""Times the context's width."""

MOST_PARAMETERS = 1 << 30
"""Of a network: 4 GiB, where real ones have 4 to 600 MB."""

# activation -> its value at 0
_NOT_ZERO = {"hardsigmoid": "0.5", "logsigmoid": "-0.693", "sigmoid": "0.5", "softplus": "0.693"}
# activations with no gradient at 0
_FLAT = frozenset({"hardshrink", "relu", "relu6", "softshrink", "tanhshrink"})


@dataclass(frozen=True)
class Build:
    """How the two MLPs of each width are built and what they start from.

    Attributes:
        structure: widths of the layers as multiples of the context's; the first and the last are 1.
        activation: A1111's name, after every linear layer but the last; None (or ``"linear"``) for none.
        layer_norm: whether a layer norm follows every linear layer and its activation, the last one included.
        activate_output: whether the last linear layer has the activation too.
        dropout: probability after each entry of `structure`, the first and the last 0; empty for none.
        initialisation: one of `INITIALIZATIONS`, by either name.
        zero_output: start with MLPs that give exactly 0, so that step 0 changes nothing.
        std: standard deviation of ``normal``.
        widths: of the contexts that get MLPs; None for every one that the UNet has.
        sides: which of K and V are trained.

    Raises:
        UsageError: an invalid value, or a `zero_output` that the build does not allow.
    """

    structure: tuple[float, ...] = (1.0, 2.0, 1.0)
    activation: str | None = None
    layer_norm: bool = False
    activate_output: bool = False
    dropout: tuple[float, ...] = ()
    initialisation: str = "normal"
    zero_output: bool = True
    std: float = 0.01
    widths: tuple[int, ...] | None = None
    sides: tuple[Side, ...] = SIDES

    def __post_init__(self) -> None:
        _require_structure(self.structure)
        dropout = tuple(float(chance) for chance in self.dropout) if any(self.dropout) else ()
        self._set("structure", tuple(float(part) for part in self.structure))
        self._set("activation", _activation(self.activation))
        self._set("dropout", dropout)
        self._set("initialisation", _initialisation(self.initialisation))
        for fault in self._faults():
            raise UsageError(fault)
        self._set("widths", None if self.widths is None else tuple(sorted(set(self.widths))))
        self._set("sides", tuple(side for side in SIDES if side in self.sides))
        if self.zero_output and self.last_activation is not None:
            _require_zero(self.last_activation, learns=True)
        if self.last_activation is not None and len(self.sides) == 1:
            _require_zero(self.last_activation, learns=False)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def last_activation(self) -> str | None:
        """The activation whose output is added to the context directly: the last layer's, if no norm follows it."""
        return self.activation if self.activate_output and not self.layer_norm else None

    def dropout_after(self, stage: int) -> float:
        """Returns the probability of dropout after a stage, counted from 0."""
        return self.dropout[stage + 1] if self.dropout else 0.0

    def layers(self, width: int) -> list[int]:
        """Returns the widths of the layers of an MLP, from the context's to the context's."""
        return [int(width * part) for part in self.structure]

    def trained_widths(self, available: Iterable[int]) -> tuple[int, ...]:
        """Returns the widths that get MLPs, of those that a UNet has, ascending.

        Raises:
            UsageError: one is missing in the UNet, a layer of it would have no values, or all layers together would
                have more than `MOST_PARAMETERS`.
        """
        known = sorted(set(available))
        widths = tuple(known) if self.widths is None else self.widths
        for width in widths:
            if width not in known:
                shown = ", ".join(map(str, known))
                raise UsageError(f"the model has no contexts of width {width}", hint=f"its widths are {shown}")
            if not all(self.layers(width)):
                empty = min(self.structure)
                raise UsageError(f"a layer of {empty:g} times {width} has no values", hint=f"at least {1 / width:.3g}")
        count = sum(2 * (taken + 1) * given for width in widths for taken, given in pairwise(self.layers(width)))
        if count > MOST_PARAMETERS:
            raise UsageError(f"layer structure {_joined(self.structure)}: {count:,} parameters; at most 2 ** 30")
        return widths

    def _faults(self) -> Iterator[str]:
        if self.dropout and len(self.dropout) != len(self.structure):
            yield f"a dropout of {len(self.dropout)} numbers for a structure of {len(self.structure)}: one for each"
            return
        if self.dropout and (self.dropout[0] or self.dropout[-1]):
            yield f"dropout {_joined(self.dropout)}: the first and the last are 0, nothing else may be left out there"
        if not all(0 <= chance < 1 for chance in self.dropout):
            yield f"dropout {_joined(self.dropout)}: a chance is at least 0 and under 1"
        if not 0 < self.std < float("inf"):
            yield f"std {self.std:g}: a number above 0"
        if self.widths is not None and not (self.widths and all(width > 0 for width in self.widths)):
            yield f"widths {_joined(self.widths) or 'none'}: at least one, each above 0"
        if not self.sides or not set(self.sides) <= set(SIDES):
            yield f"sides {', '.join(self.sides) or 'none'}: k, v or both"


def _require_structure(structure: Sequence[float]) -> None:
    if len(structure) > MOST_LAYERS:
        raise UsageError(f"a layer structure of {len(structure):,} numbers: at most {MOST_LAYERS}")
    shown = _joined(structure) or "nothing"
    if len(structure) < 2 or structure[0] != 1 or structure[-1] != 1:
        raise UsageError(f"layer structure {shown}: it starts and ends with 1", hint="1, 2, 1 is the usual one")
    if not all(0 < part < float("inf") for part in structure):
        raise UsageError(f"layer structure {shown}: every number is above 0", hint="1, 2, 1 is the usual one")
    if max(structure) > LARGEST_LAYER:
        raise UsageError(f"layer structure {shown}: no layer is above {LARGEST_LAYER:g} times the width")


def _activation(stated: str | None) -> str | None:
    try:
        return activation_name(stated)
    except UnsupportedNetwork as error:
        raise UsageError(str(error), hint="linear, relu, leakyrelu, elu, swish, mish, silu, gelu, tanh ...") from error


def _initialisation(stated: str) -> str:
    bare = stated.lower().replace("-", "").replace("_", "").replace(" ", "")
    found = next((name for name in INITIALIZATIONS if name.replace("-", "") == bare), None)
    if found is None:
        raise UsageError(f"there is no initialisation {stated}", hint=", ".join(INITIALIZATIONS))
    return found


def _require_zero(activation: str, *, learns: bool) -> None:
    """Raises UsageError if an MLP that ends with `activation` cannot give 0 or, with `learns`, cannot learn from it."""
    if activation in _NOT_ZERO:
        why = f"{activation} makes {_NOT_ZERO[activation]} of 0"
    elif learns and activation in _FLAT:
        why = f"{activation} is flat where it gives 0, and nothing would be learned"
    else:
        return
    if learns:
        raise UsageError(
            f"no zero output with {activation} after the last layer: {why}",
            hint="do not activate the output, add the layer norm, or start without zero output",
        )
    raise UsageError(
        f"not one side alone with {activation} after the last layer: the other must change nothing, and {why}",
        hint="do not activate the output, add the layer norm, or train both sides",
    )


def _joined(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
