"""Which path computes a stack: `HNETKIT_KERNEL` forces one, and a forced path that cannot run is an error."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hnetkit.errors import KernelUnavailable, UsageError
from hnetkit.kernels.mlp import MLPWeights

Apply: TypeAlias = Callable[[Tensor, Sequence[MLPWeights], Tensor], Tensor]
"""``apply(x [..., d], mlps, strengths [n])`` gives ``[..., d]``: `x` after each ``y = y + strength * MLP(y)``."""

VARIABLE = "HNETKIT_KERNEL"
FORCED = ("auto", "reference", "eager", "grouped", "fused", "chain")
PATHS = ("reference", "eager", "grouped")


def apply_of(path: str) -> Apply:
    """Returns the function that computes a path of `PATHS`; Triton is imported only where it is needed."""
    apply: Apply = importlib.import_module(f"hnetkit.kernels.{path}").apply
    return apply


def chosen_path() -> str:
    """Returns the name of the path that computes stacks in this process: one of `PATHS`.

    Without a word it is the best plain torch, until a GPU has shown another to be right and faster.

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
    if name not in PATHS or (name == "grouped" and not _has_triton()):
        raise KernelUnavailable(f"{VARIABLE}={name}: this path cannot run here", hint=f"unset {VARIABLE}")
    return name


def _has_triton() -> bool:
    """Whether Triton is installed, with a GPU or its interpreter to run in."""
    if importlib.util.find_spec("triton") is None:
        return False
    from hnetkit.kernels.grouped import is_interpreted

    return is_interpreted() or torch.cuda.is_available()
