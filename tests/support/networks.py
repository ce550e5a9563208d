"""Makes hypernetwork files of every variant, the way A1111 made them: torch modules and `torch.save`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    **{kind.__name__.lower(): kind for kind in (nn.CELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish)},
    **{kind.__name__.lower(): kind for kind in (nn.Hardtanh, nn.LogSigmoid, nn.Mish, nn.PReLU, nn.RReLU, nn.ReLU6)},
    **{kind.__name__.lower(): kind for kind in (nn.SELU, nn.SiLU, nn.Softplus, nn.Softshrink, nn.Softsign)},
    "tanhshrink": nn.Tanhshrink,
}


def sequential(
    width: int,
    structure: Sequence[float] = (1, 2, 1),
    activation: str | None = "linear",
    *,
    layer_norm: bool = False,
    activate_output: bool = False,
    dropout: Sequence[float] | None = None,
    scale: float = 0.1,
) -> nn.Sequential:
    """A1111's Sequential for one width and side, with random weights, in eval mode."""
    modules: list[nn.Module] = []
    last = len(structure) - 2
    for i in range(last + 1):
        linear = nn.Linear(int(width * structure[i]), int(width * structure[i + 1]))
        nn.init.normal_(linear.weight, std=scale)
        nn.init.normal_(linear.bias, std=scale)
        modules.append(linear)
        if activation not in (None, "linear") and (i < last or activate_output):
            modules.append(ACTIVATIONS[activation]())
        if layer_norm:
            norm = nn.LayerNorm(linear.out_features)
            nn.init.normal_(norm.weight, 1, std=scale)
            nn.init.normal_(norm.bias, std=scale)
            modules.append(norm)
        if dropout is not None and dropout[i + 1] > 0:
            modules.append(nn.Dropout(dropout[i + 1]))
    return nn.Sequential(*modules).eval()


def state_dict(modules: nn.Sequential) -> OrderedDict[str, torch.Tensor]:
    """Tensors under A1111's names, ``linear.{i}.weight``."""
    return OrderedDict((f"linear.{key}", value.detach()) for key, value in modules.state_dict().items())


def a1111_network(
    widths: Sequence[int] = (8, 12),
    structure: Sequence[float] = (1, 2, 1),
    activation: str | None = "linear",
    *,
    layer_norm: bool = False,
    activate_output: bool = False,
    dropout: Sequence[float] | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    scale: float = 0.1,
    **metadata: Any,
) -> dict[Any, Any]:
    """The dict that A1111 saves; `metadata` adds keys or replaces them."""
    torch.manual_seed(seed)
    options = {"layer_norm": layer_norm, "activate_output": activate_output, "dropout": dropout, "scale": scale}
    sides = {
        width: tuple(
            OrderedDict(
                (k, t.to(dtype)) for k, t in state_dict(sequential(width, structure, activation, **options)).items()
            )
            for _ in "kv"
        )
        for width in widths
    }
    stated = {
        "step": 1000 + seed,
        "name": f"net{seed}",
        "layer_structure": list(structure),
        "activation_func": activation,
        "is_layer_norm": layer_norm,
        "weight_initialization": "Normal",
        "use_dropout": bool(dropout),
        "sd_checkpoint": "d7049739",
        "sd_checkpoint_name": "model.ckpt",
        "activate_output": activate_output,
        "last_layer_dropout": bool(dropout) and dropout[-2] != 0,
        "dropout_structure": list(dropout) if dropout else [0.0] * len(structure),
        "optional_info": None,
    }
    return {**sides, **stated, **metadata}


def save_pt(content: Any, path: Path, container: Literal["zip", "legacy"] = "zip") -> Path:
    """Writes with `torch.save` in either container; returns the path."""
    torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    return path


def network_file(folder: Path, name: str = "net.pt", **options: Any) -> Path:
    """Writes one network; see `a1111_network`."""
    return save_pt(a1111_network(**options), folder / name)


def vast_network_file(path: Path, width: int = 23_040) -> Path:
    """Writes a network of gigabytes that takes no room: its weights are holes."""
    import json
    import os

    import hnetkit

    small = network_file(path.parent, "small.pt", widths=(8,), structure=(1, 1))
    hnetkit.save(hnetkit.load(small), path)
    small.unlink()
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    tensors, end = {"__metadata__": header.pop("__metadata__")}, 0
    for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape = [width for _ in tensor["shape"]]
        size = 4 * width ** len(shape)
        tensors[f"{width}{name.removeprefix('8')}"] = {**tensor, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(tensors).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    return path
