"""Networks that are loaded and planned under `torch.inference_mode`, as apps decorate functions, and used outside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.pipelines import tiny_sd, unet_call
from support.stacks import relative
from support.unet_truth import plain, run, surface

import hnetkit
from hnetkit.network import Hypernetwork


@pytest.fixture
def pipe() -> Any:
    """One with a layer of each kind: what is shown is the same for each layer."""
    return tiny_sd(least=True)


@pytest.mark.parametrize("name", ["ink", "wash", "tint"])
@pytest.mark.parametrize("kernel", ["eager", "grouped"])
def test_strengths_can_be_set_outside(
    pipe: Any, name: str, kernel: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "grouped":
        pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")
    monkeypatch.setenv("HNETKIT_KERNEL", kernel)
    net = request.getfixturevalue(name)
    before, truth = surface(pipe.unet), plain(pipe, [(net, 0.3)])
    with torch.inference_mode():
        hnetkit.load_hypernetwork(pipe, net, name="net", strength=0.8)
        run(pipe)
    hnetkit.set_hypernetworks(pipe, ["net"], [0.3])
    assert relative(run(pipe), truth) <= 1e-5
    hnetkit.unload_hypernetworks(pipe)
    assert surface(pipe.unet) == before


@pytest.mark.parametrize("name", ["ink", "wash", "tint"])
def test_gradients_flow_outside(pipe: Any, name: str, request: pytest.FixtureRequest) -> None:
    with torch.inference_mode():
        hnetkit.load_hypernetwork(pipe, request.getfixturevalue(name), strength=0.8)
        run(pipe)
    call = unet_call(pipe)
    call["encoder_hidden_states"].requires_grad_()
    pipe.unet(**call, return_dict=False)[0].sum().backward()
    assert call["encoder_hidden_states"].grad.abs().sum() > 0
    assert all(parameter.grad is not None for name, parameter in pipe.unet.named_parameters() if ".to_k." in name)


def test_a_unet_that_was_made_in_it_is_given_back(tint: Hypernetwork) -> None:
    with torch.inference_mode():
        pipe = tiny_sd()
    before, truth = surface(pipe.unet), plain(pipe, [(tint, 0.3)])
    hnetkit.load_hypernetwork(pipe, tint, strength=0.8)
    hnetkit.set_hypernetworks(pipe, ["tint"], [0.3])
    assert relative(run(pipe), truth) <= 1e-5
    hnetkit.unload_hypernetworks(pipe)
    assert surface(pipe.unet) == before


def test_a_stack_that_was_first_called_in_it_gives_gradients(wash: Hypernetwork) -> None:
    stack, x = hnetkit.Stack([(wash, 0.8)]), torch.randn(2, 8)
    with torch.inference_mode():
        stack(x)
    x.requires_grad_()
    stack(x)[0].sum().backward()
    assert x.grad is not None
