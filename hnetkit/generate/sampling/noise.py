"""The noise of an image, from its own seed alone: what it starts with, and what samplers add at each step.

A1111 draws noise from CUDA's generator, Philox 4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
2011) with the Box-Muller transform, or from torch's CPU generator. Both are computed here for any device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

NoiseSource = Literal["cpu", "nv"]

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW_32 = np.uint64(0xFFFFFFFF)
_FULL_TURN = float(np.float32(2 * math.pi))  # as CUDA's kernel rounds it

_PATH_DIGITS = 6  # torchsde's Brownian tree has a resolution of a millionth
_SEED_POOL = 24


class PhiloxNormal:
    """Normal numbers of CUDA's generator: element `i` of draw `n` is a function of (seed, i, n)."""

    def __init__(self, seed: int) -> None:
        self._key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
        self._draws = 0

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Returns the next draw, float32 of `shape` on the CPU."""
        count = math.prod(shape)
        zeros = np.zeros(count, np.uint64)
        counter = (zeros + np.uint64(self._draws), zeros, np.arange(count, dtype=np.uint64), zeros)
        self._draws += 1
        first, second = _philox(counter, self._key)[:2]
        radius = np.sqrt(-2 * np.log(_unit(first)))
        normal = radius * np.sin(_FULL_TURN * _unit(second))
        return torch.from_numpy(normal.astype(np.float32)).reshape(tuple(shape))


def _philox(counter: tuple[npt.NDArray[np.uint64], ...], key: tuple[int, int]) -> tuple[npt.NDArray[np.uint64], ...]:
    """Returns four words of 32 bits for each counter of four such words, all stored in 64 bits."""
    for number in range(_ROUNDS):
        key_0, key_1 = (np.uint64((k + number * step) & 0xFFFFFFFF) for k, step in zip(key, _KEY_STEPS, strict=True))
        even, odd = (counter[at] * np.uint64(by) for at, by in zip((0, 2), _MULTIPLIERS, strict=True))
        high_even, high_odd = even >> np.uint64(32), odd >> np.uint64(32)
        counter = (high_odd ^ counter[1] ^ key_0, odd & _LOW_32, high_even ^ counter[3] ^ key_1, even & _LOW_32)
    return counter


def _unit(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Maps words of 32 bits to (0, 1), each to the middle of its interval."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


class _TorchNormal:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def __call__(self, shape: Sequence[int]) -> Tensor:
        # said, because another dtype, which may be torch's default, has other numbers
        return torch.randn(tuple(shape), generator=self._generator, dtype=torch.float32, device="cpu")


_SOURCES: dict[NoiseSource, Callable[[int], Callable[[Sequence[int]], Tensor]]] = {
    "cpu": _TorchNormal,
    "nv": PhiloxNormal,
}


class Noise:
    """The noise of one image, drawn as in A1111.

    Args:
        seed: of the image, 0 to 2**64 - 1.
        shape: of its latents, ``[channels, height, width]``.
        source: ``"nv"`` for CUDA's generator, ``"cpu"`` for torch's CPU generator.
        variation_seed: of the noise that is blended into the first draw.
        variation_strength: how much of it, 0 to 1.
        ensd: eta noise seed delta: if it is not 0, all draws but the first have seed + ensd.
    """

    def __init__(
        self,
        seed: int,
        shape: Sequence[int],
        *,
        source: NoiseSource,
        variation_seed: int | None = None,
        variation_strength: float = 0.0,
        ensd: int = 0,
    ) -> None:
        self.seed, self.shape, self.source = seed, tuple(shape), source
        self._draw = _SOURCES[source](seed)
        self._first = self._draw(self.shape)
        if variation_seed is not None and variation_strength:
            self._first = slerp(variation_strength, self._first, _SOURCES[source](variation_seed)(self.shape))
        if ensd:
            self._draw = _SOURCES[source](seed + ensd)
        self._paths: dict[tuple[float, float], BrownianPath] = {}

    def first(self) -> Tensor:
        """Returns the noise that sampling starts with, float32 ``[channels, height, width]`` on the CPU."""
        return self._first.clone()

    def next(self) -> Tensor:
        """Returns the next draw, of the same shape, for a sampler that adds noise at each step."""
        return self._draw(self.shape)

    def between(self, interval: NoiseInterval) -> Tensor:
        """Returns the normal numbers of the seed's Brownian path for an interval, of the same shape."""
        ends = (interval.lowest, interval.highest)
        path = self._paths.setdefault(ends, BrownianPath(self.seed, self.shape, self.source, *ends))
        return path.between(interval.start, interval.end)


def slerp(strength: float, low: Tensor, high: Tensor) -> Tensor:
    """Returns the spherical interpolation of two tensors ``[channels, height, width]``, along the height as in A1111.

    If both point the same way it is linear, and then, as in A1111, `strength` is the share of `low`.
    """
    unit_low, unit_high = (tensor / tensor.norm(dim=1, keepdim=True) for tensor in (low, high))
    cosine = (unit_low * unit_high).sum(dim=1, keepdim=True)
    if cosine.mean() > 0.9995:
        return low * strength + high * (1 - strength)
    angle = torch.acos(cosine)
    return (torch.sin((1 - strength) * angle) * low + torch.sin(strength * angle) * high) / torch.sin(angle)


class NoiseInterval(NamedTuple):
    """An interval of noise levels on a Brownian path, and the ends of the path."""

    lowest: float
    highest: float
    start: float
    end: float


class BrownianPath:
    """A Brownian path over noise levels: that of ``torchsde.BrownianTree`` for the same entropy.

    The value at the middle of an interval follows from the interval's ends and one normal draw. The seed of that draw
    comes from the path's seed and the interval's position in the tree, so the order of calls does not matter.

    Args:
        seed: of the path.
        shape: of its values.
        source: of normal numbers.
        lowest, highest: the noise levels at its ends.
    """

    def __init__(self, seed: int, shape: tuple[int, ...], source: NoiseSource, lowest: float, highest: float) -> None:
        self._seed, self._shape, self._source = seed, shape, source
        self._ends = round(lowest, _PATH_DIGITS), round(highest, _PATH_DIGITS)
        self._whole = self._normal(self._seeds().generate_state(3)[0]) * math.sqrt(highest - lowest)
        # neighboring intervals share the upper part of the tree
        self._at_middle = functools.lru_cache(maxsize=32)(self._draw_at_middle)
        self._value = functools.lru_cache(maxsize=4)(self._find_value)

    def between(self, start: float, end: float) -> Tensor:
        """Returns the path's increment from `start` to `end` over the root of their distance, float32."""
        lowest, highest = self._ends
        begin, stop = (min(max(round(level, _PATH_DIGITS), lowest), highest) for level in (start, end))
        return ((self._value(stop) - self._value(begin)) / math.sqrt(abs(end - start))).float()

    def _find_value(self, level: float) -> Tensor:
        (start, end), change = self._ends, self._whole
        value, position, depth = torch.zeros_like(change), 0, 0
        if level == start:
            return value
        while level != end:
            middle = round(0.5 * (start + end), _PATH_DIGITS)
            left, right = middle - start, end - middle
            scale = math.sqrt(left * right / (end - start))
            to_middle = left / (end - start) * change + scale * self._at_middle(position, depth)
            if level <= middle:
                end, change, position = middle, to_middle, 2 * position
            else:
                value, start, change, position = value + to_middle, middle, change - to_middle, 2 * position + 1
            depth += 1
        return value + change

    def _draw_at_middle(self, position: int, depth: int) -> Tensor:
        return self._normal(self._seeds((position, depth)).generate_state(4)[0])

    def _seeds(self, key: tuple[int, ...] = ()) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=key, pool_size=_SEED_POOL)

    def _normal(self, seed: np.uint32) -> Tensor:
        return _SOURCES[self._source](int(seed))(self._shape).double()


_interval: ContextVar[NoiseInterval | None] = ContextVar("interval", default=None)


@contextmanager
def noise_from(interval: NoiseInterval) -> Iterator[None]:
    """Takes all noise inside the block from one interval of the images' Brownian paths."""
    before = _interval.set(interval)
    try:
        yield
    finally:
        _interval.reset(before)


def sent_ahead(tensor: Tensor, device: Any) -> Tensor:
    """Returns a tensor of the CPU on a device, without waiting for what the device has still to do."""
    if device is None or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class PerImageNoise(TorchFunctionMode):
    """A mode in which ``torch.randn`` and ``torch.randn_like`` return each image of a batch its own noise.

    Every draw of a diffusers scheduler's ``step`` goes through these two, whichever generator it passes. The result has
    the dtype and device of the call.

    Args:
        noises: of each image of the batch, in order.

    Raises:
        ValueError: a draw does not have the shape of the whole batch.
    """

    def __init__(self, noises: Sequence[Noise]) -> None:
        super().__init__()
        self._noises = noises

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            size = args[0] if args and not isinstance(args[0], int) else args or kwargs["size"]
            return self._drawn(tuple(size), kwargs.get("dtype"), kwargs.get("device"))
        if func is torch.randn_like:
            like = args[0]
            return self._drawn(like.shape, kwargs.get("dtype", like.dtype), kwargs.get("device", like.device))
        return func(*args, **kwargs)

    def _drawn(self, size: tuple[int, ...], dtype: torch.dtype | None, device: Any) -> Tensor:
        expected = (len(self._noises), *self._noises[0].shape)
        if tuple(size) != expected:
            raise ValueError(f"noise of shape {tuple(size)} is drawn for latents of shape {expected}")
        interval = _interval.get()
        with torch._C.DisableTorchFunction():
            draws = [noise.next() if interval is None else noise.between(interval) for noise in self._noises]
            return sent_ahead(torch.stack(draws).to(dtype=dtype), device)
