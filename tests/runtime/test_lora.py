"""Hypernetworks with LoRA: ``K = (W + B A) y``, whichever was loaded first, however it is fused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig
from support.pipelines import tiny_sd
from support.stacks import relative
from support.unet_truth import LORA_RANK, lora, merged, plain, run, surface

import hnetkit
from hnetkit.errors import AttachError
from hnetkit.network import Hypernetwork


@pytest.fixture(params=["ink", "tint"], ids=["activation", "affine"])
def network(request: pytest.FixtureRequest) -> Hypernetwork:
    """A network that is computed in the layers, and one that is folded into their weights."""
    net: Hypernetwork = request.getfixturevalue(request.param)
    return net


def test_lora_before_and_after_the_load_gives_one_result(pipe: Any, network: Hypernetwork) -> None:
    tensors = lora(pipe)
    truth = plain(merged(tensors), [(network, 0.8)])
    pipe.load_lora_weights(dict(tensors))
    hnetkit.load_hypernetwork(pipe, network, strength=0.8)
    first = run(pipe)
    other = tiny_sd()
    hnetkit.load_hypernetwork(other, network, strength=0.8)
    run(other)
    other.load_lora_weights(dict(tensors))
    assert relative(first, truth) <= 1e-5
    assert relative(run(other), truth) <= 1e-5


def test_lora_loaded_before_the_first_call(pipe: Any, network: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, network, strength=0.8)
    pipe.load_lora_weights(lora(pipe))
    assert relative(run(pipe), plain(merged(lora(tiny_sd())), [(network, 0.8)])) <= 1e-5


def test_lora_comes_and_goes(pipe: Any, network: Hypernetwork) -> None:
    before = surface(pipe.unet)
    hnetkit.load_hypernetwork(pipe, network, strength=0.8)
    alone = run(pipe)
    for _ in range(2):
        pipe.load_lora_weights(lora(tiny_sd()))
        assert relative(run(pipe), alone) > 1e-3
        pipe.unload_lora_weights()
        assert relative(run(pipe), alone) <= 1e-5
    hnetkit.unload_hypernetworks(pipe)
    assert surface(pipe.unet)["state"] == before["state"]
    assert surface(pipe.unet)["hooks"] == before["hooks"]


def test_the_hypernetwork_goes_while_the_lora_stays(pipe: Any, network: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, network)
    pipe.load_lora_weights(lora(tiny_sd()))
    run(pipe)
    hnetkit.unload_hypernetworks(pipe)
    assert relative(run(pipe), run(merged(lora(tiny_sd())))) <= 1e-5


def test_a_lora_of_other_layers_leaves_the_slots_alone(pipe: Any, network: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, network)
    pipe.load_lora_weights(lora(pipe, ("to_q",)))
    assert relative(run(pipe), plain(merged(lora(tiny_sd(), ("to_q",))), [(network, 1.0)])) <= 1e-5


def test_a_lora_can_be_fused_around_a_network_with_activation(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=0.8)
    truth = plain(merged(lora(tiny_sd())), [(ink, 0.8)])
    pipe.load_lora_weights(lora(pipe))
    pipe.fuse_lora()
    assert relative(run(pipe), truth) <= 1e-5
    pipe.unload_lora_weights()
    assert relative(run(pipe), truth) <= 1e-5


def test_fused_and_unfused_while_the_network_is_there(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=0.8)
    alone = run(pipe)
    pipe.load_lora_weights(lora(pipe))
    pipe.fuse_lora()
    run(pipe)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert relative(run(pipe), alone) <= 1e-5


def test_a_lora_that_was_fused_and_unloaded_before_an_affine_network(pipe: Any, tint: Hypernetwork) -> None:
    pipe.load_lora_weights(lora(pipe))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    before = surface(pipe.unet)
    hnetkit.load_hypernetwork(pipe, tint, strength=0.8)
    assert relative(run(pipe), plain(merged(lora(tiny_sd())), [(tint, 0.8)])) <= 1e-5
    hnetkit.unload_hypernetworks(pipe)
    assert surface(pipe.unet) == before


def test_loaded_fused_and_unloaded_in_one_go_around_an_affine_network(pipe: Any, tint: Hypernetwork) -> None:
    """No UNet call comes in between: the map must have stepped aside by itself."""
    hnetkit.load_hypernetwork(pipe, tint, strength=0.8)
    pipe.load_lora_weights(lora(tiny_sd()))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert relative(run(pipe), plain(merged(lora(tiny_sd())), [(tint, 0.8)])) <= 1e-5
    hnetkit.unload_hypernetworks(pipe)
    assert relative(run(pipe), run(merged(lora(tiny_sd())))) <= 1e-5


@pytest.mark.parametrize("method", ["fuse_lora", "unfuse_lora", "fuse_qkv_projections"])
def test_fusing_the_unet_while_folded_is_refused(pipe: Any, tint: Hypernetwork, method: str) -> None:
    hnetkit.load_hypernetwork(pipe, tint)
    styled = run(pipe)
    with pytest.raises(AttachError, match=method):
        getattr(pipe.unet, method)()
    assert torch.equal(run(pipe), styled)
    hnetkit.unload_hypernetworks(pipe)
    getattr(pipe.unet, method)()


def test_an_adapter_put_in_by_peft_itself_is_noticed_at_the_next_call(pipe: Any, network: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, network, strength=0.8)
    run(pipe)
    tensors = lora(tiny_sd())
    pipe.unet.add_adapter(
        LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    parameters = dict(pipe.unet.named_parameters())
    for name, value in tensors.items():
        stem, kind, _ = name.removeprefix("unet.").rsplit(".", 2)
        parameters[f"{stem}.{kind}.default.weight"].data.copy_(value)
    assert relative(run(pipe), plain(merged(tensors), [(network, 0.8)])) <= 1e-5


def test_nothing_is_folded_under_an_adapter(pipe: Any, tint: Hypernetwork) -> None:
    """The stack changes after PEFT put its modules in, and before any call could notice them."""
    hnetkit.load_hypernetwork(pipe, tint, strength=0)
    pipe.unet.add_adapter(LoraConfig(r=LORA_RANK, target_modules=["to_k"]))
    hnetkit.set_hypernetworks(pipe, ["tint"], [0.8])
    assert not any(part["folded"] for part in hnetkit.explain(pipe)["parts"])
    pipe.unet.fuse_lora()
    assert relative(run(pipe), plain(tiny_sd(), [(tint, 0.8)])) <= 1e-5


def test_an_adapter_merged_into_folded_weights_is_refused_with_the_reason(pipe: Any, tint: Hypernetwork) -> None:
    before = copy.deepcopy(pipe.unet.state_dict())
    hnetkit.load_hypernetwork(pipe, tint)
    pipe.unet.add_adapter(LoraConfig(r=LORA_RANK, target_modules=["to_k"], init_lora_weights=False))
    for module in pipe.unet.modules():
        if hasattr(module, "merge"):
            module.merge()
    for attempt in (run, run, hnetkit.unload_hypernetworks):
        with pytest.raises(AttachError, match="a LoRA was fused while hypernetworks were folded in"):
            attempt(pipe)
    for module in pipe.unet.modules():
        if hasattr(module, "unmerge"):
            module.unmerge()
    run(pipe)
    pipe.unet.unload_lora()
    hnetkit.unload_hypernetworks(pipe)
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())
