"""Networks in stacking order, applied to a context tensor, without a UNet or diffusers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hnetkit.errors import DamagedFile, IncompatibleNetwork, UsageError
from hnetkit.kernels.dispatch import chosen_path
from hnetkit.kernels.executor import PackedPair, StackExecutor, pack_pair
from hnetkit.kernels.weights import MLPWeights, StageWeights
from hnetkit.network import Hypernetwork, ResidualMLP, TensorRef
from hnetkit.runtime.fit import TEXT_WIDTH
from hnetkit.runtime.strength import KINDS, SIDES, Kind, Strength, require_order
from hnetkit.text import argument, shorten


class Stack:
    """An ordered stack: each network sees what the one before it gave, ``y = x + strength * MLP(x)``.

    Args:
        items: ``(network, strength)`` in order, or a dict of them; a strength is a number or a `Strength`.

    Raises:
        UsageError: something else, such as a path or a network without a strength.

    Example::

        stack = Stack([(net, 0.8), (other, Strength(1.0, cross_v=0.5))])
        k, v = stack(x)

    Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/hypernetworks/hypernetwork.py (behavior only).
    """

    def __init__(
        self,
        items: Iterable[tuple[Hypernetwork, float | Strength]] | Mapping[Hypernetwork, float | Strength],
    ) -> None:
        self.items = tuple(_items(items))
        self._weights: dict[tuple[int, int, torch.device, torch.dtype, str], PackedPair] = {}
        self._executors: dict[object, StackExecutor] = {}

    def __repr__(self) -> str:
        return f"Stack([{', '.join(f'({network.name}, {strength})' for network, strength in self.items)}])"

    def __getstate__(self) -> dict[str, Any]:
        """Returns the networks and strengths: what was computed from them is computed again."""
        return {**vars(self), "_weights": {}, "_executors": {}}

    @property
    def widths(self) -> list[int]:
        """Context widths that some network has, ascending."""
        return sorted({width for network, _ in self.items for width in network.widths})

    def __call__(self, x: Tensor, *, kind: Kind | None = None, progress: float | None = None) -> tuple[Tensor, Tensor]:
        """Returns what ``to_k`` and ``to_v`` get instead of the context `x`.

        Args:
            x: ``[..., width]``, floating point. Products are in x's dtype; a file of another dtype is converted.
            kind: which of a `Strength`'s numbers count; None: cross for the text widths, self for all others.
            progress: fraction of the sampling steps, for windows; None: every window is open.

        Returns:
            K's and V's context, each ``[..., width]`` of x's dtype on its device. Block factors play no part: there
            are no blocks here. A width that no network has gives `x` itself, twice.

        Raises:
            hnetkit.errors.UsageError: there is no such kind.
            hnetkit.errors.KernelUnavailable: `HNETKIT_KERNEL` forces a path that cannot run here.
            hnetkit.errors.DamagedFile, hnetkit.errors.IncompatibleNetwork: see `read_mlp`.
        """
        if kind not in (None, *KINDS):
            raise UsageError(f"a kind of attention is {' or '.join(KINDS)}, not {shorten(kind)}", hint='kind="cross"')
        width = x.shape[-1]
        kind = kind or ("cross" if width in TEXT_WIDTH.values() else "self")
        numbers = {
            index: [strength.number(kind, side) for side in SIDES]
            for index, (network, strength) in enumerate(self.items)
            if width in network.mlps and (progress is None or strength.applies_at(progress))
        }
        indices = tuple(index for index, pair in numbers.items() if any(pair))
        if not indices:
            return x, x
        sides = [[numbers[index][side] for index in indices] for side in range(len(SIDES))]
        executor = self._executor(indices, width, x, tuple(side for side, own in enumerate(sides) if any(own)))
        strengths = torch.tensor(sides, dtype=torch.float32, device=x.device)
        return executor.apply(x, strengths, [[bool(number) for number in own] for own in sides])

    @torch.inference_mode(False)  # tensors that are made in it could not be trained through outside of it
    def _executor(self, indices: tuple[int, ...], width: int, x: Tensor, sides: tuple[int, ...]) -> StackExecutor:
        """Returns what applies some of the networks on x's device and in its dtype; it is kept for the next call."""
        path = chosen_path(x.device)
        key = (indices, width, x.device, x.dtype, path, sides)
        if key not in self._executors:
            pairs = [self._pair(index, width, x, path) for index in indices]
            self._executors[key] = StackExecutor(pairs, path, sides)
        return self._executors[key]

    def _pair(self, index: int, width: int, x: Tensor, path: str) -> PackedPair:
        key = (index, width, x.device, x.dtype, path)
        if key not in self._weights:
            network = self.items[index][0]
            key_mlp, value_mlp = (read_mlp(mlp, x.device, x.dtype, network.path) for mlp in network.mlps[width])
            self._weights[key] = pack_pair(key_mlp, value_mlp, path)
        return self._weights[key]


def _items(items: Any) -> Iterator[tuple[Hypernetwork, Strength]]:
    require_order(items)
    for item in items.items() if isinstance(items, Mapping) else items:
        network, strength = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        if not isinstance(network, Hypernetwork):
            raise UsageError(
                f"a stack takes networks, each with its strength, and no {type(network).__name__}",
                hint='hnetkit.Stack([(hnetkit.load("ink.pt"), 0.8)])',
            )
        if strength is None:
            raise UsageError(f"{network.name} has no strength", hint="hnetkit.Stack([(net, 1.0)])")
        yield network, Strength.of(strength)


def read_mlp(mlp: ResidualMLP, device: torch.device, dtype: torch.dtype, file: str | None = None) -> MLPWeights:
    """Returns the weights of `mlp` on `device`, each rounded once from the file's dtype to `dtype`.

    Only one tensor is held in the file's dtype at a time.

    Args:
        file: that the MLP is from; None for one that was made in this process, whose values are not checked.

    Raises:
        hnetkit.errors.FileChanged: the file changed or shrank since it was opened.
        hnetkit.errors.DamagedFile: the file has NaN or infinity among its values.
        hnetkit.errors.IncompatibleNetwork: a value is too large for `dtype`.
    """

    def read(ref: TensorRef) -> Tensor:
        exact = ref.torch()
        tensor = exact.to(device=device, dtype=dtype)
        if file is not None and not _is_finite(tensor):
            raise _not_finite(file, mlp.width, exact, dtype)
        return tensor

    def optional(ref: TensorRef | None) -> Tensor | None:
        return None if ref is None else read(ref)

    return tuple(
        StageWeights(
            weight=read(stage.weight),
            bias=optional(stage.bias),
            activation=stage.activation,
            slope=optional(stage.slope),
            norm_weight=optional(stage.norm.weight if stage.norm else None),
            norm_bias=optional(stage.norm.bias if stage.norm else None),
        )
        for stage in mlp.stages
    )


def require_finite(exact: Tensor, file: str, width: int) -> None:
    """Raises DamagedFile where a tensor of a network's file has NaN or infinity among its values."""
    if not _is_finite(exact):
        raise DamagedFile(
            f"{file}: values that are not finite at width {width}: whatever it is applied to becomes NaN",
            hint=f"hnetkit validate {argument(file, is_path=True)}; get the file again, or an earlier save of it",
        )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. Their sum tells, unless it is too large itself: to look at each takes longer."""
    total = tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))
    return bool(torch.isfinite(total)) or bool(torch.isfinite(tensor).all())


def _not_finite(file: str, width: int, exact: Tensor, dtype: torch.dtype) -> IncompatibleNetwork:
    """Returns the error for a tensor that is finite in its file and not in `dtype`; raises that for any other."""
    require_finite(exact, file, width)
    name = str(dtype).removeprefix("torch.")
    return IncompatibleNetwork(
        f"{file}: values up to {exact.abs().max().item():g} at width {width} do not fit {name}",
        hint="--dtype bf16, or fp32",
        python="pipe.to(torch.bfloat16), or torch.float32",
    )
