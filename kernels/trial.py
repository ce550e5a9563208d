"""Before a GPU's kernels are trusted, they compute one small stack, held against plain torch."""

from __future__ import annotations

import functools
import warnings

import torch

from hnetkit.kernels import reference, stacked
from hnetkit.kernels.configs import SIMPLER
from hnetkit.kernels.mlp import MLPWeights, StageWeights
from hnetkit.kernels.packing import pack

_WIDTH, _ROWS, _LIMIT = 320, 65, 1e-2
_STRENGTHS = ((0.7, -0.4), (0.3, 0.9))


@functools.cache
def proven_path(path: str, device: torch.device) -> str:
    """Returns `path`, or the first simpler one that works on `device`; a path that does not is warned of, once."""
    for candidate in SIMPLER[path]:
        fault = fault_of(candidate, device)
        if fault is None:
            return candidate
        warnings.warn(f"hnetkit leaves out its {candidate} kernels: on {device} {fault}", RuntimeWarning, stacklevel=2)
    return "eager"


def fault_of(path: str, device: torch.device) -> str | None:
    """Says what is wrong with a path on `device`; None where it computes a small stack right."""
    sides = [[_network(10 * side + place, device) for place in range(2)] for side in range(2)]
    x = torch.randn(_ROWS, _WIDTH, generator=torch.Generator().manual_seed(0)).to(device, torch.float16)
    strengths = torch.tensor(_STRENGTHS, device=device)
    networks = [pack(pair, for_kernels=True) for pair in zip(*sides, strict=True)]
    try:
        with torch.no_grad():
            got = stacked.apply(x, stacked.flatten(stacked.arrange(networks, path)), strengths, path)
    except Exception as error:  # whatever a compiler or driver of the years to come says
        return f"they fail ({type(error).__name__})"
    for y, mlps, numbers in zip(got, sides, strengths, strict=True):
        truth = reference.apply(x.float(), mlps, numbers)
        if not (y.float() - truth).norm() <= _LIMIT * (truth - x.float()).norm():
            return "they compute something else than plain torch"
    return None


def _network(seed: int, device: torch.device) -> MLPWeights:
    noise = torch.Generator().manual_seed(seed)
    shapes = ((2 * _WIDTH, _WIDTH), (_WIDTH, 2 * _WIDTH))
    draws = [
        (torch.randn(*shape, generator=noise) / shape[1] ** 0.5, torch.randn(shape[0], generator=noise))
        for shape in shapes
    ]
    (w1, b1), (w2, b2) = ((weight.to(device, torch.float16), bias.to(device, torch.float16)) for weight, bias in draws)
    return (StageWeights(w1, b1, "swish"), StageWeights(w2, b2))
