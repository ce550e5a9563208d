"""From a network's tensor references to the weights that the kernels take, one tensor at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from hnetkit.kernels.mlp import MLPWeights, StageWeights
from hnetkit.network import ResidualMLP, TensorRef


def materialise(mlp: ResidualMLP, device: torch.device, dtype: torch.dtype) -> MLPWeights:
    """Returns the weights of `mlp` on `device`, each rounded once from the file's dtype to `dtype`.

    Only one tensor is held in the file's dtype at a time.

    Raises:
        hnetkit.errors.FileChanged: the file changed or shrank since it was opened.
    """

    def tensor(ref: TensorRef | None) -> Tensor | None:
        return None if ref is None else ref.torch().to(device=device, dtype=dtype)

    return tuple(
        StageWeights(
            weight=stage.weight.torch().to(device=device, dtype=dtype),
            bias=tensor(stage.bias),
            activation=stage.activation,
            slope=tensor(stage.slope),
            norm_weight=tensor(stage.norm.weight if stage.norm else None),
            norm_bias=tensor(stage.norm.bias if stage.norm else None),
        )
        for stage in mlp.stages
    )
