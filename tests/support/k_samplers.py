"""The published sampling algorithms in plain float64, for one picture: what every sampler is held against."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Model(NamedTuple):
    """What a sampler knows of a model.

    Attributes:
        denoise: from latents and a level to clean latents.
        noise: from latents of variance 1 and a time step to the noise in them.
        alphas: cumulative, by time step.
    """

    denoise: Callable[[Array, float], Array] | None
    noise: Callable[[Array, float], Array] | None
    alphas: Array


class Draws(Protocol):
    def next(self) -> Array: ...

    def along(self, start: float, end: float) -> Array: ...


def _slope(model: Model, x: Array, level: float) -> Array:
    return (x - model.denoise(x, level)) / level


def _split(start: float, end: float) -> tuple[float, float]:
    """The ancestral step: (down to, noise up)."""
    up = np.sqrt(end**2 * (start**2 - end**2) / start**2)
    return np.sqrt(end**2 - up**2), up


def euler(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    for now, then in pairwise(levels):
        x = x + _slope(model, x, now) * (then - now)
    return x


def euler_ancestral(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    for now, then in pairwise(levels):
        down, up = _split(now, then)
        x = x + _slope(model, x, now) * (down - now) + draws.next() * up
    return x


def heun(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    for now, then in pairwise(levels):
        first = _slope(model, x, now)
        predicted = x + first * (then - now)
        x = x + (first + _slope(model, predicted, then)) / 2 * (then - now) if then else predicted
    return x


def _midpoint(model: Model, x: Array, now: float, then: float) -> Array:
    first = _slope(model, x, now)
    if not then:
        return x + first * (then - now)
    middle = np.exp((np.log(now) + np.log(then)) / 2)
    return x + _slope(model, x + first * (middle - now), middle) * (then - now)


def dpm_2(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    for now, then in pairwise(levels):
        x = _midpoint(model, x, now, then)
    return x


def dpm_2_ancestral(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    for now, then in pairwise(levels):
        down, up = _split(now, then)
        x = _midpoint(model, x, now, down)
        x = x + draws.next() * up if then else x
    return x


def lms(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    slopes: list[Array] = []
    for index, (now, then) in enumerate(pairwise(levels)):
        slopes.append(_slope(model, x, now))
        count = min(index + 1, 4)
        nodes = levels[index + 1 - count : index + 1]
        for node, slope in zip(nodes, slopes[-count:], strict=True):
            others = nodes[nodes != node]
            integral = np.poly1d(others, r=True).integ() if count > 1 else np.poly1d([1, 0])
            x = x + slope * (integral(then) - integral(now)) / np.prod(node - others)
    return x


def _dpmpp(x: Array, denoised: Array, now: float, then: float) -> Array:
    """The exponential integrator of first order in t = -log(level)."""
    h = np.log(now) - np.log(then)
    return then / now * x - np.expm1(-h) * denoised


def dpmpp_2s_ancestral(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    for now, then in pairwise(levels):
        down, up = _split(now, then)
        denoised = model.denoise(x, now)
        if not down:
            return denoised
        middle = np.exp((np.log(now) + np.log(down)) / 2)
        between = _dpmpp(x, denoised, now, middle)
        x = _dpmpp(x, model.denoise(between, middle), now, down) + draws.next() * up
    return x


def dpmpp_2m(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    before, last_h = None, 0.0
    for now, then in pairwise(levels):
        denoised = model.denoise(x, now)
        if not then:
            return denoised
        h = np.log(now / then)
        ahead = denoised if before is None else denoised + (denoised - before) * h / (2 * last_h)
        x, before, last_h = _dpmpp(x, ahead, now, then), denoised, h
    return x


def dpmpp_sde(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    for now, then in pairwise(levels):
        denoised = model.denoise(x, now)
        if not then:
            return denoised
        middle = np.exp((np.log(now) + np.log(then)) / 2)
        down, up = _split(now, middle)
        between = _dpmpp(x, denoised, now, down) + draws.along(now, middle) * up
        down, up = _split(now, then)
        x = _dpmpp(x, model.denoise(between, middle), now, down) + draws.along(now, then) * up
    return x


def _sde(order: int, phi_2: Callable[[float], float]) -> Callable[[Model, Array, Array, Draws], Array]:
    def run(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
        seen: list[Array] = []
        steps: list[float] = []
        for now, then in pairwise(levels):
            seen.append(model.denoise(x, now))
            if not then:
                return seen[-1]
            steps.append(np.log(now / then))
            h = 2 * steps[-1]
            x = np.exp(-h) * x + (1 - np.exp(-h)) * seen[-1]
            if order == 3 and len(seen) > 2:
                r_0, r_1 = steps[-2] / steps[-1], steps[-3] / steps[-1]
                d_0, d_1 = (seen[-1] - seen[-2]) / r_0, (seen[-2] - seen[-3]) / r_1
                first, second = d_0 + (d_0 - d_1) * r_0 / (r_0 + r_1), (d_0 - d_1) / (r_0 + r_1)
                # phi_3 = (exp(-h) - 1 + h) / h**2 - 1/2
                x = x + phi_2(h) * first - ((np.exp(-h) - 1 + h) / h**2 - 0.5) * second
            elif len(seen) > 1:
                x = x + phi_2(h) * (seen[-1] - seen[-2]) * steps[-1] / steps[-2]
            x = x + draws.along(now, then) * then * np.sqrt(1 - np.exp(-h))
        return x

    return run


def lcm(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    for now, then in pairwise(levels):
        x = model.denoise(x, now)
        x = x + then * draws.next() if then else x
    return x


def _to_alpha(x: Array, noise: Array, alpha: float, before: float) -> Array:
    clean = (x - np.sqrt(1 - alpha) * noise) / np.sqrt(alpha)
    return np.sqrt(before) * clean + np.sqrt(1 - before) * noise


def ddim(model: Model, x: Array, times: Array, draws: Draws) -> Array:
    for then, now in list(pairwise([0, *times]))[::-1]:
        x = _to_alpha(x, model.noise(x, now), model.alphas[now], model.alphas[then])
    return x


def plms(model: Model, x: Array, times: Array, draws: Draws) -> Array:
    weights = [[3, -1], [23, -16, 5], [55, -59, 37, -9]]
    seen: list[Array] = []
    for then, now in list(pairwise([0, *times]))[::-1]:
        seen.append(model.noise(x, now))
        alphas = model.alphas[now], model.alphas[then]
        if len(seen) == 1 and len(times) > 1:
            noise = (seen[0] + model.noise(_to_alpha(x, seen[0], *alphas), then)) / 2
        elif len(seen) == 1:
            noise = seen[0]
        else:
            chosen = weights[min(len(seen), 4) - 2]
            noise = sum(weight * past for weight, past in zip(chosen, seen[::-1], strict=False)) / sum(chosen)
        x = _to_alpha(x, noise, *alphas)
    return x


def _unipc_step(x: Array, levels: Array, seen: list[Array], then: float, order: int, new: Array | None) -> Array:
    """UniP, or UniC where the new prediction is given, of Zhao et al. 2023 with B(h) = h, in data prediction.

    Args:
        levels: of the predictions seen, the last of them that of x.
    """
    h = np.log(levels[-1] / then)
    ratios = [np.log(levels[-1] / levels[-1 - back]) / h for back in range(1, order)]
    slopes = [(seen[-1 - back] - seen[-1]) / ratio for back, ratio in enumerate(ratios, 1)]
    if new is not None:
        ratios, slopes = [*ratios, 1.0], [*slopes, new - seen[-1]]
    phi, factorial, right = np.expm1(-h) / -h - 1, 1, []
    for power in range(1, len(ratios) + 1):
        factorial *= power
        right.append(phi * factorial / -h)
        phi = phi / -h - 1 / (factorial * (power + 1))
    weights = np.linalg.solve(np.vander(ratios, increasing=True).T, right) if ratios else []
    if len(ratios) == 1:
        weights = [0.5]
    x = _dpmpp(x, seen[-1], levels[-1], then)
    return x + h * sum(weight * slope for weight, slope in zip(weights, slopes, strict=True))


def unipc(model: Model, x: Array, levels: Array, draws: Draws) -> Array:
    """Order 3; the corrected latents of a step are those that the next one starts with."""
    seen = [model.denoise(x, levels[0])]
    for number, then in enumerate(levels[1:], 1):
        order = min(3, number, len(levels) - number)
        predicted = _unipc_step(x, levels[:number], seen, then, order, None)
        if number == len(levels) - 1:
            return predicted
        new = model.denoise(predicted, then)
        x = _unipc_step(x, levels[:number], seen, then, order, new)
        seen.append(new)
    return x


REFERENCES: dict[str, Callable[[Model, Array, Array, Draws], Array]] = {
    "Euler": euler,
    "Euler a": euler_ancestral,
    "Heun": heun,
    "DPM2": dpm_2,
    "DPM2 a": dpm_2_ancestral,
    "LMS": lms,
    "DPM++ 2S a": dpmpp_2s_ancestral,
    "DPM++ 2M": dpmpp_2m,
    "DPM++ SDE": dpmpp_sde,
    "DPM++ 2M SDE": _sde(2, lambda h: (1 - np.exp(-h)) / 2),
    "DPM++ 2M SDE Heun": _sde(2, lambda h: 1 - (1 - np.exp(-h)) / h),
    "DPM++ 3M SDE": _sde(3, lambda h: 1 - (1 - np.exp(-h)) / h),
    "LCM": lcm,
    "DDIM": ddim,
    "PLMS": plms,
    "UniPC": unipc,
}
