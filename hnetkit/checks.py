"""Judge a network by its tensors: whole, finite, trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hnetkit.hashes import damaged_parts
from hnetkit.network import Hypernetwork, TensorRef

_LARGEST = {"fp16": 65504.0}


@dataclass(frozen=True, slots=True)
class Report:
    """What `validate` found.

    Attributes:
        problems: what makes the network give wrong or no pictures, one line each.
        warnings: what is odd, one line each.
        untrained: widths whose two MLPs were never reached by training.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    untrained: tuple[int, ...]


def validate(net: Hypernetwork) -> Report:
    """Reads every value of a network and returns what is wrong or odd with it."""
    problems, warnings = [], list(net.warnings)
    for part in damaged_parts(net):
        problems.append(f"{part}: its bytes are not those that were saved: they do not have its checksum")
    largest = 0.0
    for width, side, key, tensor in net.each_tensor():
        name = f"{width}.{side}.{key}"
        bad, peak = _scan_values(tensor)
        largest = max(largest, peak)
        if bad:
            problems.append(f"{name}: {bad} of {tensor.numel} values are not finite")
    untrained = tuple(width for width in net.widths if not net.is_trained(width))
    if untrained == tuple(net.widths):
        warnings.append("never trained: every bias is 0")
    elif untrained:
        warnings.append(f"never trained at width {', '.join(map(str, untrained))}: every bias is 0")
    if largest > _LARGEST["fp16"]:
        warnings.append(f"values up to {largest:g} do not fit into fp16; compute it in bf16 or fp32")
    return Report(tuple(problems), tuple(warnings), untrained)


def _scan_values(tensor: TensorRef, *, step: int = 1 << 20) -> tuple[int, float]:
    """Returns how many values are not finite, and the largest finite magnitude; reads `step` values at a time."""
    import numpy as np

    bad, largest = 0, 0.0
    for values in _values(tensor, step):
        finite = np.isfinite(values)
        bad += int(values.size - np.count_nonzero(finite))
        if finite.any():
            largest = max(largest, float(np.abs(values[finite]).max()))
    return bad, largest


def _values(tensor: TensorRef, step: int) -> Iterator[Any]:
    """Yields numpy arrays of the tensor's values; bf16 widened to fp32, which is exact."""
    import numpy as np

    form = {"fp16": "<f2", "fp32": "<f4", "fp64": "<f8", "bf16": "<u2"}[tensor.dtype]
    item = np.dtype(form).itemsize
    for first in range(0, tensor.numel, step):
        count = min(step, tensor.numel - first)
        values = np.frombuffer(tensor.file.read_at(tensor.offset + first * item, count * item), dtype=form)
        yield (values.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "bf16" else values
