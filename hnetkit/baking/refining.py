"""Refining: fitted changes are trained on, together, until the UNet's output is nearer to what it is with the stack on.

A fit takes each projection by itself, and the errors of many layers add up. This is a short distillation of the UNet
with the stack on into the UNet with the changes in its weights, at latents that pictures with the stack pass through.
A factor moves in proportion to its size and to the error of its fit: what is nearly right hardly moves.

Source of the idea: Hinton et al., Distilling the knowledge in a neural network (2015).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hnetkit.baking.changes import Changes, Place, SideChange
from hnetkit.generate.backend_errors import translating_oom

CALLS_PER_STEP = 16
"""Calls of the UNet that a step is made on."""

USES = 3
"""How often a recorded call is trained on, about: more of them teach more than more steps on the same."""

MOST_REFINE_STEPS = 100_000
"""Far more than any network needs."""

RATE = 0.15
"""Of the first steps, as a share of a factor's root mean square times the error of its fit; it falls along a cosine."""

_WARM_UP = 10  # steps
_LEAST_ERROR = 0.01  # of a fit that moves at all
_AT_ONCE = 2 * 64 * 64  # positions of latents that are computed together: one guided call of SD 1.5 at 512 px


@dataclass(frozen=True, slots=True, eq=False)
class GuidedCall:
    """A guided call of the UNet with the stack on, on the CPU.

    Attributes:
        sample: latents, ``[1, channels, h, w]``, the same for every text.
        timestep: ``[]``.
        conditions: the other tensors that the UNet was given, by name, ``[texts, ...]``; texts of one length are
            together, as the UNet is called once for them, and with guidance the negative text comes first.
        output: what it gave for every text, ``[texts, 4, h, w]``.
    """

    sample: Tensor
    timestep: Tensor
    conditions: tuple[Mapping[str, Tensor], ...]
    output: Tensor

    @property
    def shapes(self) -> tuple[Any, ...]:
        given = ((name, tensor.shape) for alike in self.conditions for name, tensor in alike.items())
        return (self.sample.shape, *given)

    @property
    def positions(self) -> int:
        """Of latents, for all texts."""
        return len(self.output) * self.sample.shape[-2] * self.sample.shape[-1]

    def is_at(self, sample: Tensor, timestep: Tensor) -> bool:
        return torch.equal(self.timestep, timestep) and torch.equal(self.sample, sample)


@contextmanager
def recording(unet: nn.Module, calls: list[GuidedCall]) -> Iterator[None]:
    """Adds the guided calls of `unet` inside the block, of one image each, to `calls`.

    Texts of several lengths take a call for each, at the same latents and time.
    """
    given: list[tuple[Tensor, Tensor, Mapping[str, Tensor]]] = []

    def before(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        conditions = {"encoder_hidden_states": options["encoder_hidden_states"], **options.get("added_cond_kwargs", {})}
        here: Mapping[str, Tensor] = {name: tensor.cpu().clone() for name, tensor in conditions.items()}
        for known in chain.from_iterable(call.conditions for call in calls[-2:]):
            if all(torch.equal(tensor, known[name]) for name, tensor in here.items()):
                here = known  # those of one picture are kept once
        given.append((arguments[0][:1].cpu().clone(), arguments[1].cpu().clone(), here))

    def after(module: nn.Module, arguments: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        sample, timestep, here = given.pop()
        made = output[0].cpu().clone()
        if calls and calls[-1].is_at(sample, timestep):
            begun = calls.pop()
            calls.append(replace(begun, conditions=(*begun.conditions, here), output=torch.cat([begun.output, made])))
        else:
            calls.append(GuidedCall(sample, timestep, (here,), made))

    # before the hook of the stack, which replaces the text
    hooks = [unet.register_forward_pre_hook(before, prepend=True, with_kwargs=True), unet.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def calls_for(steps: int) -> int:
    """Returns how many calls so many steps want."""
    return math.ceil(steps * CALLS_PER_STEP / USES)


def refined(
    unet: nn.Module,
    changes: Changes,
    calls: Sequence[GuidedCall],
    *,
    steps: int,
    cfg_scale: float,
    seed: int,
    report: Callable[[int], None],
) -> dict[Place, SideChange]:
    """Returns changes with which the UNet's guided output is nearer to that of the calls; exact ones stay.

    Args:
        unet: with no stack active.
        calls: of it with the stack on.
        steps: of the optimizer.
        cfg_scale: of the guidance that the errors are measured with.
        seed: of the order of the calls; the same seed gives the same changes on one machine.
        report: called with the steps that are made.

    Raises:
        OutOfMemory: a call with its gradients takes more than there is.
    """
    weights = _RefinedWeights(unet, changes)
    optimizer = torch.optim.Adam(weights.parameters, betas=(0.9, 0.99))
    scaler = torch.amp.GradScaler(weights.device.type, enabled=weights.dtype == torch.float16)
    with _frozen(unet), torch.enable_grad(), translating_oom("refining"):
        for step, batch in enumerate(_batches(calls, steps, seed)):
            warming = min(1.0, (step + 1) / _WARM_UP)
            optimizer.param_groups[0]["lr"] = RATE * warming * (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.zero_grad(set_to_none=True)
            for part in _parts(batch):
                loss = _loss(unet, weights, part, cfg_scale) * (len(part) / len(batch))
                torch.autograd.backward(scaler.scale(loss))
            scaler.step(optimizer)
            scaler.update()
            report(step + 1)
    return weights.changes()


class _Factors:
    """A fitted change as parameters: its factors, and V's constant, each in units of what it may be wrong by."""

    def __init__(self, change: SideChange, device: torch.device) -> None:
        self._change = change
        up, down = change.up, change.down
        if down is not None:  # both factors of each part are made as large as each other
            tiny = torch.finfo(up.dtype).tiny
            share = (down.norm(dim=1).clamp(min=tiny) / up.norm(dim=0).clamp(min=tiny)).sqrt()
            up, down = up * share, down / share[:, None]
        self._scaled: dict[str, tuple[nn.Parameter, float]] = {}
        for name, tensor in (("up", up), ("down", down), ("constant", change.constant)):
            if tensor is not None:
                scale = (float(tensor.square().mean().sqrt()) or 1.0) * min(max(change.error, _LEAST_ERROR), 1.0)
                self._scaled[name] = nn.Parameter((tensor / scale).to(device, torch.float32)), scale

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter, _ in self._scaled.values()]

    def _of(self, name: str) -> Tensor | None:
        if name not in self._scaled:
            return None
        parameter, scale = self._scaled[name]
        return parameter * scale

    @property
    def matrix(self) -> Tensor:
        up, down = self._of("up"), self._of("down")
        assert up is not None
        return up if down is None else up @ down

    @property
    def constant(self) -> Tensor | None:
        return self._of("constant")

    def change(self) -> SideChange:
        """Returns the change as it is now, in float64, with the errors that it had before."""
        made: dict[str, Any] = {
            name: (parameter.detach() * scale).to(self._change.up) for name, (parameter, scale) in self._scaled.items()
        }
        return replace(self._change, center=None, **made)


class _RefinedWeights:
    """The weights of a UNet with changes in them, of which the fitted ones are trained.

    Attributes:
        device, dtype: of the UNet.
    """

    def __init__(self, unet: nn.Module, changes: Changes) -> None:
        first = next(unet.parameters())
        self.device, self.dtype = first.device, first.dtype
        self._modules, self._changes = dict(unet.named_modules()), changes
        self._trained = {
            place: _Factors(change, self.device) for place, change in changes.items() if change.origin == "fitted"
        }
        self._exact: dict[str, Tensor] = {}
        with torch.no_grad():
            for place, change in changes.items():
                if place not in self._trained:
                    self._exact |= self._with(place, change)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for factors in self._trained.values() for parameter in factors.parameters]

    def now(self) -> dict[str, Tensor]:
        """Returns the tensors that are other ones than the UNet's own, by name."""
        found = dict(self._exact)
        for place, factors in self._trained.items():
            found |= self._with(place, factors)
        return found

    def _with(self, place: Place, change: SideChange | _Factors) -> dict[str, Tensor]:
        """Returns the UNet's tensors that a change of one projection makes other ones, by name."""
        layer, side = place
        attention: Any = self._modules[layer.name]
        own = (attention.to_k if side == "k" else attention.to_v).weight
        weight = own + change.matrix.to(self.device, torch.float32)
        found = {f"{layer.name}.to_{side}.weight": weight.to(own.dtype)}
        if change.constant is not None:
            output, bias = attention.to_out[0].weight, attention.to_out[0].bias
            shift = output.float() @ change.constant.to(self.device, torch.float32)
            found[f"{layer.name}.to_out.0.bias"] = (bias + shift).to(bias.dtype)
        return found

    def changes(self) -> dict[Place, SideChange]:
        """Returns all changes as they are now."""
        return {
            place: self._trained[place].change() if place in self._trained else change
            for place, change in self._changes.items()
        }


def _batches(calls: Sequence[GuidedCall], steps: int, seed: int) -> Iterator[list[GuidedCall]]:
    """Yields the calls of each step; all are used equally often, each round in another order."""
    generator = torch.Generator("cpu").manual_seed(seed)
    left: list[int] = []
    for _ in range(steps):
        while len(left) < CALLS_PER_STEP:
            left += torch.randperm(len(calls), generator=generator).tolist()
        yield [calls[index] for index in left[:CALLS_PER_STEP]]
        del left[:CALLS_PER_STEP]


def _parts(batch: Sequence[GuidedCall]) -> Iterator[list[GuidedCall]]:
    """Yields calls that are computed together: of one shape, and no more than fit the memory of one at full size."""
    alike: dict[tuple[Any, ...], list[GuidedCall]] = {}
    for call in batch:
        alike.setdefault(call.shapes, []).append(call)
    for group in alike.values():
        number = max(1, _AT_ONCE // group[0].positions)
        for start in range(0, len(group), number):
            yield group[start : start + number]


def _loss(unet: nn.Module, weights: _RefinedWeights, calls: Sequence[GuidedCall], cfg_scale: float) -> Tensor:
    """Returns the mean square error of the guided output over calls of one shape, in fp32."""
    sample = torch.cat([call.sample for call in calls]).to(weights.device)
    times = torch.stack([call.timestep for call in calls]).to(weights.device)
    wanted = torch.stack([call.output for call in calls]).to(weights.device)  # [calls, texts, 4, h, w]
    tensors, outputs = weights.now(), []
    for alike in zip(*(call.conditions for call in calls), strict=True):
        given = {name: torch.cat([own[name] for own in alike]).to(weights.device) for name in alike[0]}
        options: dict[str, Any] = {"encoder_hidden_states": given.pop("encoder_hidden_states"), "return_dict": False}
        if given:
            options["added_cond_kwargs"] = given
        number = len(options["encoder_hidden_states"]) // len(calls)
        arguments = sample.repeat_interleave(number, dim=0), times.repeat_interleave(number)
        output: Tensor = functional_call(unet, tensors, arguments, options)[0]
        outputs.append(output.reshape(len(calls), number, *output.shape[1:]))
    errors = torch.cat(outputs, dim=1).float() - wanted.float()
    texts = errors.shape[1]
    # a negative text and the prompt; several parts of a prompt count as if each had the weight 1
    shares = [1 - cfg_scale * (texts - 1), *[cfg_scale] * (texts - 1)] if texts > 1 else [1.0]
    guided = (errors * errors.new_tensor(shares)[:, None, None, None]).sum(1)
    loss: Tensor = guided.square().mean()
    return loss


@contextmanager
def _frozen(unet: nn.Module) -> Iterator[None]:
    """Has the UNet's own parameters take no gradients inside the block."""
    unfrozen = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in unfrozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in unfrozen:
            parameter.requires_grad_(True)
