"""What a new network starts from, and what it does to the UNet before the first step and after it."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from support.networks import ACTIVATIONS
from support.pipelines import tiny_sd, unet_call
from support.training import alone
from torch import Tensor, nn

from hnetkit.errors import UsageError
from hnetkit.formats.activations import NAMES
from hnetkit.runtime.layers import find_layers
from hnetkit.train.build import INITIALIZATIONS, Build
from hnetkit.train.network import TrainedNetwork

EVERY = sorted(NAMES)
BUILDS = list(itertools.product(INITIALIZATIONS, (False, True)))


@pytest.fixture(scope="module")
def pipe() -> Any:
    pipe = tiny_sd(least=True)
    pipe.unet.requires_grad_(False)
    return pipe


def called(pipe: Any) -> Tensor:
    output: Tensor = pipe.unet(**unet_call(pipe, batch=1), return_dict=False)[0]
    return output


def new_network(pipe: Any, build: Build) -> TrainedNetwork:
    return TrainedNetwork(build, {layer.width for layer in find_layers(pipe.unet)}, seed=3)


def allowed(activation: str | None, initialisations: Iterable[str]) -> Iterator[Build]:
    """Every build with this activation and zero output that is not refused; which are is another test's."""
    for initialisation, norm, output in itertools.product(initialisations, (False, True), (False, True)):
        with contextlib.suppress(UsageError):
            yield Build(activation=activation, layer_norm=norm, activate_output=output, initialisation=initialisation)


def at_zero(name: str) -> tuple[float, float]:
    """What torch's own module and its gradient give at 0."""
    torch.manual_seed(0)
    zero = torch.zeros(1, requires_grad=True)
    value = ACTIVATIONS[name]().train()(zero)
    (slope,) = torch.autograd.grad(value.sum(), zero)
    return value.item(), slope.item()


@pytest.mark.parametrize("activation", [None, *EVERY])
def test_with_zero_output_step_0_is_the_identity(pipe: Any, activation: str | None) -> None:
    with torch.no_grad():
        plain = called(pipe)
        for build in allowed(activation, INITIALIZATIONS):
            with alone(new_network(pipe, build)).on(pipe.unet):
                assert torch.equal(called(pipe), plain), build


@pytest.mark.parametrize("activation", [None, *EVERY])
def test_with_zero_output_the_first_step_changes_something(pipe: Any, activation: str | None) -> None:
    plain = called(pipe)
    for build in allowed(activation, ["normal"]):
        network = new_network(pipe, build)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
        with alone(network).on(pipe.unet):
            called(pipe).square().mean().backward()
            optimizer.step()
            assert not torch.equal(called(pipe), plain), build


@pytest.mark.parametrize("activation", EVERY)
def test_zero_output_is_refused_exactly_where_it_cannot_be_or_cannot_learn(activation: str) -> None:
    value, slope = at_zero(activation)
    for initialisation, norm in BUILDS:
        settings = {"activation": activation, "initialisation": initialisation}
        Build(**settings, layer_norm=norm, activate_output=False)
        Build(**settings, layer_norm=True, activate_output=True)
        if value == 0 and slope != 0:
            Build(**settings, activate_output=True)
            continue
        why = "is flat where it gives 0" if value == 0 else rf"makes {value:.3g} of 0"
        with pytest.raises(UsageError, match=f"no zero output with {activation} after the last layer: .*{why}"):
            Build(**settings, activate_output=True)
        Build(**settings, activate_output=True, zero_output=False)


@pytest.mark.parametrize("activation", ["relu", "leakyrelu"])
@pytest.mark.parametrize("initialisation", INITIALIZATIONS)
def test_weights_are_drawn_as_a1111_draws_them(initialisation: str, activation: str) -> None:
    build = Build((1, 3, 1), activation, layer_norm=True, initialisation=initialisation, zero_output=False)
    modules = list(TrainedNetwork(build, [200], seed=0).mlp(200, "k").linear)
    for linear in (module for module in modules if isinstance(module, nn.Linear)):
        out, taken = linear.weight.shape
        std = {
            "normal": 0.01,
            "xavier-uniform": math.sqrt(2 / (out + taken)),
            "xavier-normal": math.sqrt(2 / (out + taken)),
            "kaiming-uniform": math.sqrt(2 / taken),
            "kaiming-normal": math.sqrt(2 / taken),
        }[initialisation]
        assert linear.weight.std().item() == pytest.approx(std, rel=0.02)
        assert linear.weight.mean().abs().item() < std / 100
        largest = linear.weight.abs().max().item() / std
        assert (largest <= math.sqrt(3) + 1e-6) if "uniform" in initialisation else (largest > 3)
        assert not linear.bias.any()
    for norm in (module for module in modules if isinstance(module, nn.LayerNorm)):
        assert norm.weight.std().item() == pytest.approx(0.01, rel=0.2)
        assert norm.weight.mean().abs().item() < 0.003
        assert not norm.bias.any()


def test_the_std_of_normal_can_be_chosen() -> None:
    network = TrainedNetwork(Build(std=0.3, zero_output=False), [200], seed=0)
    assert all(p.std().item() == pytest.approx(0.3, rel=0.02) for p in network.parameters() if p.dim() == 2)


def test_with_zero_output_only_what_comes_last_is_zero() -> None:
    for norm in (False, True):
        zero, plain = (TrainedNetwork(Build(layer_norm=norm, zero_output=own), [8], seed=1) for own in (True, False))
        last = "linear.3" if norm else "linear.1"
        for (name, mine), other in zip(zero.named_parameters(), plain.parameters(), strict=True):
            assert not mine.any() if last in name else torch.equal(mine, other)


def test_the_same_seed_gives_the_same_weights_whatever_else_there_is() -> None:
    build = Build(zero_output=False)
    both = TrainedNetwork(build, [8, 20], seed=1).state_dict()
    one = TrainedNetwork(Build(zero_output=False, widths=(20,), sides=("v",)), [8, 20], seed=1).state_dict()
    other = TrainedNetwork(build, [8, 20], seed=2).state_dict()
    assert one
    assert all(torch.equal(both[name], tensor) for name, tensor in one.items())
    weights = [name for name in both if name.endswith("weight")]
    assert not any(torch.equal(both[name], other[name]) for name in weights)
    assert not torch.equal(both["mlps.8.k.linear.0.weight"], both["mlps.8.v.linear.0.weight"])


def test_the_generators_of_torch_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    TrainedNetwork(Build(zero_output=False, initialisation="kaiming-uniform"), [8, 20], seed=1)
    drawn = torch.random.get_rng_state()
    assert torch.equal(before, drawn)
