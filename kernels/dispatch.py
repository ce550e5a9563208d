"""Which path computes a stack: `HNETKIT_KERNEL` forces one, and a forced path that cannot run is an error."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from hnetkit.errors import KernelUnavailable, UsageError
from hnetkit.kernels import eager, reference
from hnetkit.kernels.mlp import MLPWeights

Apply: TypeAlias = Callable[[Tensor, Sequence[MLPWeights], Tensor], Tensor]
"""``apply(x [..., d], mlps, strengths [n])`` gives ``[..., d]``: `x` after each ``y = y + strength * MLP(y)``."""

VARIABLE = "HNETKIT_KERNEL"
FORCED = ("auto", "reference", "eager", "grouped", "fused", "chain")
PATHS: dict[str, Apply] = {"reference": reference.apply, "eager": eager.apply}


def chosen_path() -> str:
    """Returns the name of the path that computes stacks in this process: a key of `PATHS`.

    Raises:
        UsageError: `HNETKIT_KERNEL` is no name of a path.
        KernelUnavailable: it names a path that this version or device does not have.
    """
    name = os.environ.get(VARIABLE) or "auto"
    if name not in FORCED:
        near = difflib.get_close_matches(name, FORCED, n=1)
        raise UsageError(f"{VARIABLE}={name}: no such path", hint=f"set it to {near[0] if near else ', '.join(FORCED)}")
    if name == "auto":
        return "eager"
    if name not in PATHS:
        raise KernelUnavailable(f"{VARIABLE}={name}: this path cannot run here", hint=f"unset {VARIABLE}")
    return name
