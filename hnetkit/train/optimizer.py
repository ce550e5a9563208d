"""The optimizer of a run: any of torch's that steps once by gradients, with its state restored to the bit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.nn import Parameter

from hnetkit.errors import UsageError

_UNFIT: Mapping[str, str] = {
    "LBFGS": "it computes the loss several times a step",
    "SparseAdam": "it takes sparse gradients alone",
}
_FUSED = ("Adam", "AdamW", "SGD")  # read and write every value once, not once for each operation
_MOST_KEPT = 32  # values that an optimizer keeps of a parameter: torch's keep up to six
_PATHS = frozenset({"fused", "foreach", "differentiable"})  # options that choose how


def make_optimizer(
    name: str, parameters: Iterable[Parameter], options: Mapping[str, Any], rate: float
) -> torch.optim.Optimizer:
    """Returns a new optimizer.

    Args:
        name: of a class of ``torch.optim``; capitals do not matter.
        options: keyword arguments beside the rate, as JSON gives them: lists stand for tuples.
        rate: of its first step.

    Raises:
        UsageError: torch has no such optimizer, it cannot train a hypernetwork, or it does not take the options.
    """
    classes = {found.__name__: found for found in vars(torch.optim).values() if _is_optimizer(found)}
    chosen = next((known for known in classes if known.casefold() == name.casefold()), None)
    if chosen is None:
        near = difflib.get_close_matches(name, classes, n=1, cutoff=0.4) or sorted(set(classes) - set(_UNFIT))
        raise UsageError(f"torch has no optimizer {name}", hint=f"--optimizer {', '.join(near)}")
    if chosen in _UNFIT:
        raise UsageError(f"{chosen} cannot train a hypernetwork: {_UNFIT[chosen]}", hint="--optimizer AdamW")
    if "lr" in options:
        raise UsageError("the optimizer's rate comes from the schedule", hint="--rate 1e-5, and no lr in the options")
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    trained = list(parameters)
    on_device = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    if chosen in _FUSED and on_device and not _PATHS & set(arguments):
        arguments["fused"] = True
    try:
        _step_once(classes[chosen], {**arguments, "lr": rate}, trained[:1])  # some look at their options no earlier
        made: torch.optim.Optimizer = classes[chosen](trained, lr=rate, **arguments)
    except MemoryError:
        raise
    except Exception as error:
        raise UsageError(f"{chosen} does not take {dict(options)}: {error}") from error
    return made


def _step_once(kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any], like: list[Parameter]) -> None:
    """Makes a step with an optimizer of one small parameter, on the device of those that are trained."""
    parameter = Parameter(torch.zeros(2, 2, device=like[0].device if like else None))
    parameter.grad = torch.ones_like(parameter)
    kind([parameter], **arguments).step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Makes `rate` the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def restore(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Gives a new optimizer the state that ``state_dict()`` of an equal one was.

    Every tensor keeps its type, which torch's own ``load_state_dict`` changes to that of the parameter.

    Raises:
        ValueError, KeyError, TypeError: it is not.
    """
    _require_fit(optimizer, state)
    optimizer.load_state_dict(dict(state))
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in state["state"].get(number, {}).items():
            if isinstance(value, torch.Tensor):
                kept = optimizer.state[parameter][key]
                optimizer.state[parameter][key] = value.to(kept.device, copy=True)


def _require_fit(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raises ValueError where a state has tensors of other shapes than an optimizer could make of its parameters.

    A checkpoint may name one huge tensor many times, and each would be copied.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        kept = state["state"].get(number, {})
        if len(kept) > _MOST_KEPT:
            raise ValueError(f"optimizer: {len(kept)} values for one parameter")
        for key, value in kept.items():
            if isinstance(value, torch.Tensor) and value.numel() > max(1, parameter.numel()):
                raise ValueError(f"optimizer: {key} is {list(value.shape)} for a parameter of {list(parameter.shape)}")
    if len(state["state"]) > len(parameters):
        raise ValueError(f"optimizer: it is of {len(state['state'])} parameters, not of {len(parameters)}")


def _is_optimizer(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
