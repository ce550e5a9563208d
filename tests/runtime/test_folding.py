"""Affine networks in the weights of `to_k` and `to_v`: when, how exactly, and what is refused meanwhile."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import load_file
from support import plain_a1111
from support.networks import network_file
from support.pipelines import draw, tiny_sd
from support.stacks import relative
from support.unet_truth import plain, run, surface
from torch import nn

import hnetkit
from hnetkit.errors import AttachError
from hnetkit.kernels import affine
from hnetkit.network import Hypernetwork
from hnetkit.runtime import folding
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.plan import ActiveNetwork, plan_stack
from hnetkit.runtime.stack import read_mlp
from hnetkit.runtime.strength import Strength

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"


def folded(pipe: Any) -> set[str]:
    """The networks that are in some layer's weights."""
    return {name for part in hnetkit.explain(pipe)["parts"] for name in part["folded"]}


def test_folded_weights_are_a_float64_product_rounded_once(pipe: Any, tint: Hypernetwork, shade: Hypernetwork) -> None:
    pipe.unet.to(torch.bfloat16)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    hnetkit.load_hypernetwork(pipe, tint, strength=0.5)
    hnetkit.load_hypernetwork(pipe, shade, strength=-0.75)
    for attention, width in (("attn1", 20), ("attn2", 24)):
        for side in ("key", "value"):
            maps = [
                affine.collapse(read_mlp(getattr(net.mlps[width], side), torch.device("cpu"), torch.float64))
                for net in (tint, shade)
            ]
            name = f"{ATTENTION}.{attention}.to_{side[0]}"
            exact = affine.fold(
                before[f"{name}.weight"].double(), None, affine.compose(zip(maps, (0.5, -0.75), strict=True))
            )
            module = pipe.unet.get_submodule(name)
            for got, truth in zip((module.weight, module.bias), exact, strict=True):
                assert (got == truth.bfloat16()).float().mean() > 0.99, "all but ties: the maps are held in fp32"


@pytest.mark.parametrize("save", ["state_dict", "block"])
def test_taking_the_state_dict_while_folded_is_refused(pipe: Any, tint: Hypernetwork, save: str) -> None:
    hnetkit.load_hypernetwork(pipe, tint)
    attempts = {
        "state_dict": lambda: pipe.unet.state_dict(),
        "block": lambda: pipe.unet.down_blocks[0].state_dict(),
    }
    with pytest.raises(AttachError, match="folded") as refused:
        attempts[save]()
    assert "unload_hypernetworks" in str(refused.value.hint)
    hnetkit.unload_hypernetworks(pipe)
    attempts[save]()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("part", ["", "down_blocks", "mid_block"])
def test_other_weights_are_refused_while_folded(pipe: Any, tint: Hypernetwork, part: str, strict: bool) -> None:
    module = pipe.unet.get_submodule(part)
    other = {name: value * 1.5 for name, value in module.state_dict().items()}
    before = {name: value.clone() for name, value in module.state_dict().items()}
    hnetkit.load_hypernetwork(pipe, tint)
    with pytest.raises(AttachError, match="folded in") as refused:
        module.load_state_dict(other, strict=strict)
    assert "unload_hypernetworks" in str(refused.value.hint)
    hnetkit.unload_hypernetworks(pipe)
    if not part:  # nothing was taken over
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    module.load_state_dict(other, strict=strict)
    assert all(torch.equal(value, other[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("variant", [None, "ema"])
@pytest.mark.parametrize("part", ["unet", "pipeline"])
def test_saving_while_folded_writes_the_model_alone_and_folds_again(
    pipe: Any, tint: Hypernetwork, tmp_path: Path, part: str, variant: str | None
) -> None:
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    hnetkit.load_hypernetwork(pipe, tint)
    styled = run(pipe)
    if part == "unet":
        pipe.unet.save_pretrained(tmp_path / "unet", variant=variant)
    else:
        pipe.save_pretrained(tmp_path, variant=variant)
    (file,) = (tmp_path / "unet").glob("*.safetensors")
    saved = load_file(file)
    assert ("ema" in file.name) == (variant is not None)
    assert all(torch.equal(saved.pop(name), value) for name, value in before.items())
    assert saved == {}
    assert {part["path"] for part in hnetkit.explain(pipe)["parts"]} == {"folded"}
    assert torch.equal(run(pipe), styled)


def test_saving_with_networks_that_are_not_folded_saves_the_model_alone(
    pipe: Any, ink: Hypernetwork, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    hnetkit.load_hypernetwork(pipe, ink)
    pipe.unet.save_pretrained(tmp_path)
    saved = load_file(next(tmp_path.glob("*.safetensors")))
    assert {name: value.shape for name, value in saved.items()} == {name: value.shape for name, value in before.items()}
    assert all(torch.equal(saved[name], value) for name, value in before.items())


def test_a_strength_change_folds_again_into_the_same_memory(pipe: Any, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, tint, strength=0.5)
    places = {name: parameter.data_ptr() for name, parameter in pipe.unet.named_parameters()}
    hnetkit.set_hypernetworks(pipe, ["tint"], [1.5])
    assert {name: parameter.data_ptr() for name, parameter in pipe.unet.named_parameters()} == places
    assert relative(run(pipe), plain(pipe, [(tint, 1.5)])) <= 1e-5


def test_only_the_affine_end_of_a_stack_is_folded(
    pipe: Any, tint: Hypernetwork, ink: Hypernetwork, shade: Hypernetwork
) -> None:
    for net in (tint, ink, shade):
        hnetkit.load_hypernetwork(pipe, net)
    assert folded(pipe) == {"shade"}
    assert {part["path"] for part in hnetkit.explain(pipe)["parts"]} == {"eager", "text-once"}


def test_a_projection_with_a_bias(tint: Hypernetwork) -> None:
    pipe = tiny_sd()
    for name, module in list(pipe.unet.named_modules()):
        if name.endswith(("to_k", "to_v")):
            module.bias = nn.Parameter(torch.linspace(-1, 1, module.out_features))
    before = surface(pipe.unet)
    hnetkit.load_hypernetwork(pipe, tint, strength=0.7)
    assert folded(pipe) == {"tint"}
    assert relative(run(pipe), plain(pipe, [(tint, 0.7)])) <= 1e-5
    hnetkit.unload_hypernetworks(pipe)
    assert surface(pipe.unet) == before


def test_frozen_and_trainable_weights_stay_so(pipe: Any, tint: Hypernetwork) -> None:
    pipe.unet.requires_grad_(False)
    hnetkit.load_hypernetwork(pipe, tint)
    assert not any(parameter.requires_grad for parameter in pipe.unet.parameters())


def test_a_projection_that_is_no_plain_linear_is_left_alone(pipe: Any, tint: Hypernetwork) -> None:
    class Quantised(nn.Linear):
        pass

    attention = pipe.unet.get_submodule(f"{ATTENTION}.attn1")
    old, attention.to_k = attention.to_k, Quantised(20, 20, bias=False)
    attention.to_k.weight = old.weight
    hnetkit.load_hypernetwork(pipe, tint, strength=0.7)
    assert folded(pipe) == set()
    assert relative(run(pipe), plain(pipe, [(tint, 0.7)])) <= 1e-5


def test_a_projection_whose_weight_is_no_tensor_is_applied_to(pipe: Any, tint: Hypernetwork) -> None:
    class Quantized(nn.Module):
        """As torch's dynamically quantized layers, whose weight is a method."""

        def __init__(self, own: Any) -> None:
            super().__init__()
            self.in_features, self.out_features, self._own = own.in_features, own.out_features, (own,)

        def weight(self) -> torch.Tensor:
            weight: torch.Tensor = self._own[0].weight
            return weight

        def forward(self, x: torch.Tensor) -> Any:
            return self._own[0](x)

    hnetkit.load_hypernetwork(pipe, tint, strength=0.7)
    on_plain = run(pipe)
    hnetkit.unload_hypernetworks(pipe)
    for name, module in [*pipe.unet.named_modules()]:
        if name.endswith((".attn1", ".attn2")):
            module.to_k, module.to_v = Quantized(module.to_k), Quantized(module.to_v)
    hnetkit.load_hypernetwork(pipe, tint, strength=0.7)
    assert folded(pipe) == set()
    assert relative(run(pipe), on_plain) <= 1e-5


def test_a_projection_that_is_made_of_a_folded_one_is_refused(pipe: Any, tint: Hypernetwork) -> None:
    """Quantizing makes new modules of the old ones' weights: the map would be in them, and be applied once more."""
    hnetkit.load_hypernetwork(pipe, tint, strength=0.7)
    with_tint = run(pipe)
    attention = pipe.unet.get_submodule(f"{ATTENTION}.attn1")
    old, made = attention.to_k, nn.Linear(20, 20)
    made.load_state_dict({"weight": old.weight, "bias": old.bias})
    attention.to_k = made
    for attempt in (lambda: run(pipe), lambda: hnetkit.unload_hypernetworks(pipe)):
        with pytest.raises(AttachError, match="a Linear, since hypernetworks were folded into it") as refused:
            attempt()
        assert "load the model again" in str(refused.value.hint)
    attention.to_k = old
    assert torch.equal(run(pipe), with_tint)
    hnetkit.unload_hypernetworks(pipe)
    assert attention.to_k is old


def test_a_map_is_kept_out_of_the_weights_where_folding_takes_long(
    pipe: Any, tint: Hypernetwork, shade: Hypernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One product per layer then, as on SD 1.5 with a CPU."""
    monkeypatch.setattr(folding, "CPU_RATE", 1e3)
    for net in (tint, shade):
        hnetkit.load_hypernetwork(pipe, net, strength=0.5)
    plan = hnetkit.explain(pipe)
    assert {(part["kind"], part["path"]) for part in plan["parts"]} == {("self", "affine"), ("cross", "text-once")}
    assert {tuple(map(tuple, part["steps"])) for part in plan["parts"]} == {(("tint", "shade"),)}
    assert relative(run(pipe), plain(pipe, [(tint, 0.5), (shade, 0.5)])) <= 1e-5
    hnetkit.set_hypernetworks(pipe, ["shade", "tint"], [1.0, 0.25])
    assert relative(run(pipe), plain(pipe, [(shade, 1.0), (tint, 0.25)])) <= 1e-5


def sd15_layers() -> list[Layer]:
    """The attention layers of Stable Diffusion 1.5."""
    layers = []
    for width, count in ((320, 5), (640, 5), (1280, 6)):
        for number in range(count):
            layers.append(Layer(f"{width}.{number}.attn1", "self", width, width))
            layers.append(Layer(f"{width}.{number}.attn2", "cross", 768, width))
    return layers


@pytest.mark.parametrize("count", [1, 3])
def test_of_sd15_a_cpu_folds_narrow_self_attention_alone(count: int) -> None:
    """They take a tenth of what all take, and save two thirds of the products."""
    widths = (320, 640, 768, 1280)
    stack = [ActiveNetwork(f"{number}", Strength(0.5), widths, widths) for number in range(count)]
    for device, expected in (
        ("cpu", {(320, "self"), (640, "self")}),
        ("mps", set()),
    ):
        plan = plan_stack(sd15_layers(), stack, fold_flops=folding.affordable_flops(torch.device(device)))
        assert {(group.width, group.kind) for group in plan.groups if group.side_plans["k"].folded} == expected
        for group in plan.groups:
            for side in group.side_plans.values():
                names = [network.name for step in side.steps for network in step.networks]
                assert names + [network.name for network in side.folded] == [network.name for network in stack]
    everything = plan_stack(sd15_layers(), stack, fold_flops=1e12)
    assert all(group.side_plans["k"].folded for group in everything.groups)


def test_a_network_with_a_narrow_middle_keeps_its_factors(pipe: Any, tmp_path: Path) -> None:
    """Its two products are less work than one of ``[d, d]``."""
    net = hnetkit.load(network_file(tmp_path, widths=(8, 20, 24), structure=(1, 0.25, 1), activation=None, scale=0.3))
    hnetkit.load_hypernetwork(pipe, net)
    assert {part["path"] for part in hnetkit.explain(pipe)["parts"]} == {"eager", "text-once"}
    assert relative(run(pipe), plain(pipe, [(net, 1.0)])) <= 1e-5


def test_disabling_takes_the_map_out_of_the_weights(pipe: Any, tint: Hypernetwork) -> None:
    before, picture = surface(pipe.unet)["state"], draw(pipe)
    hnetkit.load_hypernetwork(pipe, tint)
    hnetkit.disable_hypernetworks(pipe)
    assert surface(pipe.unet)["state"] == before
    assert torch.equal(draw(pipe), picture)


def in_place(weight: Any) -> None:
    with torch.no_grad():
        weight.add_(0.25)


def by_data(weight: Any) -> None:
    weight.data *= 1.5


@pytest.mark.parametrize("edit", [in_place, by_data])
@pytest.mark.parametrize("change", ["strength", "unload"])
def test_an_edit_of_folded_weights_is_not_lost_silently(pipe: Any, tint: Hypernetwork, edit: Any, change: str) -> None:
    before = surface(pipe.unet)
    hnetkit.load_hypernetwork(pipe, tint, strength=0.7)
    edit(pipe.unet.get_submodule(f"{ATTENTION}.attn1.to_k").weight)
    changes = {
        "strength": lambda: hnetkit.set_hypernetworks(pipe, ["tint"], [0.3]),
        "unload": lambda: hnetkit.unload_hypernetworks(pipe),
    }
    with pytest.warns(UserWarning, match="changed while hypernetworks were folded into them"):
        changes[change]()
    hnetkit.unload_hypernetworks(pipe)
    assert surface(pipe.unet) == before


def test_an_edit_of_weights_that_nothing_is_folded_into_stays(pipe: Any, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, tint, strength=0.7)
    hnetkit.disable_hypernetworks(pipe)
    in_place(pipe.unet.get_submodule(f"{ATTENTION}.attn1.to_k").weight)
    hnetkit.enable_hypernetworks(pipe)
    assert relative(run(pipe), plain(pipe, [(tint, 0.7)])) <= 1e-5


def test_moves_and_other_strengths_are_no_edit(pipe: Any, tint: Hypernetwork, shade: Hypernetwork) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hnetkit.load_hypernetwork(pipe, tint, strength=0.7)
        hnetkit.load_hypernetwork(pipe, shade, strength=0.7)
        for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
            pipe.unet.to(dtype)
            run(pipe)
            hnetkit.set_hypernetworks(pipe, {"shade": 0.2})
        hnetkit.unload_hypernetworks(copy.deepcopy(pipe))
        hnetkit.unload_hypernetworks(pipe)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["tint", "ink"])
def test_storage_in_8_bits_rounds_the_model_alone(name: str, when: str, request: pytest.FixtureRequest) -> None:
    """Folded weights would be rounded with the map in them, which has none of the model's range."""
    net, truth, pipe = request.getfixturevalue(name), tiny_sd(), tiny_sd()
    if not hasattr(pipe.unet, "enable_layerwise_casting"):
        pytest.skip("this diffusers does not store weights in 8 bits")

    def store(unet: Any) -> None:
        unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    store(truth.unet)
    truth.unet.set_attn_processor(plain_a1111.PlainProcessor([(plain_a1111.modules_of(net, torch.float32), 0.7)]))
    if when == "before":
        store(pipe.unet)
    hnetkit.load_hypernetwork(pipe, net, name="net", strength=0.7)
    if when == "after":
        store(pipe.unet)
    assert relative(run(pipe), run(truth)) <= 1e-5
    hnetkit.set_hypernetworks(pipe, {"net": 0.0})
    truth.unet.set_attn_processor(AttnProcessor())
    assert relative(run(pipe), run(truth)) <= 1e-6
