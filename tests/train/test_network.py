"""The network in training on a UNet: what it computes, what it learns from, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import plain_a1111
from support.networks import a1111_network, network_file, save_pt
from support.pipelines import tiny_sd, tiny_sdxl, unet_call
from support.training import alone
from support.unet_truth import surface
from torch import Tensor, nn

import hnetkit
from hnetkit.errors import AttachError, UsageError
from hnetkit.runtime.layers import find_layers
from hnetkit.train.build import Build
from hnetkit.train.network import CastCache, TrainedNetwork

BUILDS = {
    "linear": Build(zero_output=False),
    "relu, activated output": Build(activation="relu", activate_output=True, zero_output=False),
    "mish, layer norm, 3 layers": Build((1, 2, 1.5, 1), "mish", layer_norm=True, zero_output=False),
    "prelu": Build(activation="prelu", zero_output=False),
    "K alone": Build(activation="swish", zero_output=False, sides=("k",)),
    "text alone": Build(activation="swish", zero_output=False, widths=(24,)),
    "self-attention alone": Build(activation="swish", zero_output=False, widths=(8, 20)),
}


@pytest.fixture
def pipe() -> Any:
    pipe = tiny_sd()
    pipe.unet.requires_grad_(False)
    return pipe


def loud_network(unet: nn.Module, build: Build, dtype: torch.dtype = torch.float32) -> TrainedNetwork:
    """A network whose every weight is far from 0, in evaluation mode."""
    network = TrainedNetwork(build, {layer.width for layer in find_layers(unet)}, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network.to(dtype).eval()


def gradients(network: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    network.zero_grad()
    loss().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_output_and_gradients_are_those_of_every_layer_on_its_own_in_float64(build: Build) -> None:
    pipe = tiny_sd(dtype=torch.float64)
    network = loud_network(pipe.unet, build, torch.float64)
    call = unet_call(pipe)

    def ours() -> Tensor:
        with alone(network).on(pipe.unet):
            return pipe.unet(**call).sample.square().mean()

    fresh = copy.deepcopy(pipe.unet)
    silent: nn.Module = nn.Module()
    silent.forward = torch.zeros_like  # type: ignore[method-assign]
    sides = {
        width: tuple(network.mlp(width, side).linear if side in build.sides else silent for side in ("k", "v"))
        for width in network.widths
    }
    fresh.set_attn_processor(plain_a1111.PlainProcessor([(sides, 1.0)]))  # type: ignore[arg-type]

    truth = gradients(network, lambda: fresh(**call).sample.square().mean())
    found = gradients(network, ours)
    assert set(found) == set(truth) == {name for name, _ in network.named_parameters()}
    for name, gradient in truth.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-14, msg=name)
    torch.testing.assert_close(ours(), fresh(**call).sample.square().mean(), rtol=1e-12, atol=0)


def test_sdxl_is_reached_with_its_added_conditions() -> None:
    pipe = tiny_sdxl()
    plain = pipe.unet(**unet_call(pipe)).sample
    network = loud_network(pipe.unet, Build(zero_output=False))
    with alone(network).on(pipe.unet):
        assert not torch.equal(pipe.unet(**unet_call(pipe)).sample, plain)
    assert network.widths == (8, 20, 48)


def test_a_text_passes_through_once_for_each_call_of_the_unet(pipe: Any) -> None:
    network = loud_network(pipe.unet, BUILDS["linear"])
    seen: dict[int, int] = {}
    for width in network.widths:
        network.mlp(width, "k").register_forward_hook(
            lambda *_, width=width: seen.update({width: seen.get(width, 0) + 1})
        )
    with alone(network).on(pipe.unet):
        pipe.unet(**unet_call(pipe))
        pipe.unet(*unet_call(pipe).values())
    layers = find_layers(pipe.unet)
    assert seen == {24: 2} | {width: 2 * sum(layer.width == width for layer in layers) for width in (8, 20)}


def test_a_context_that_is_not_the_text_passes_through_where_it_is_met(pipe: Any) -> None:
    """What an IP-Adapter or a norm makes of the text is another tensor; it goes through its own layer's MLPs."""
    network = loud_network(pipe.unet, BUILDS["text alone"])
    layer = next(layer for layer in find_layers(pipe.unet) if layer.kind == "cross")
    to_k = pipe.unet.get_submodule(layer.name).to_k
    context = torch.randn(1, 3, 24)
    expected = to_k(network.apply_to(context, "k"))
    with alone(network).on(pipe.unet):
        assert torch.equal(to_k(context), expected)


@pytest.mark.parametrize("build", [BUILDS["mish, layer norm, 3 layers"], BUILDS["K alone"]])
def test_gradient_checkpointing_changes_no_gradient(pipe: Any, build: Build) -> None:
    """Two calls before one backward pass, with dropout, on one and the same text."""
    dropout = (0, *[0.4] * (len(build.structure) - 2), 0)
    network = loud_network(pipe.unet, Build(**{**vars(build), "dropout": dropout})).train()
    call = unet_call(pipe)

    def loss() -> Tensor:
        torch.manual_seed(7)
        first = pipe.unet(**call).sample
        second = pipe.unet(**call | {"sample": call["sample"] * 2}).sample
        return first.square().mean() + second.square().mean()

    with alone(network).on(pipe.unet):
        plain = gradients(network, loss)
        pipe.unet.enable_gradient_checkpointing()
        again = gradients(network, loss)
    assert set(plain) == set(again)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_gradient_checkpointing_computes_layers_again(pipe: Any) -> None:
    """The test above compares two different things."""
    network = loud_network(pipe.unet, BUILDS["linear"])
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1

    network.mlp(8, "k").register_forward_hook(counted)
    pipe.unet.enable_gradient_checkpointing()
    with alone(network).on(pipe.unet):
        loss = pipe.unet(**unet_call(pipe)).sample.sum()
        forward = count
        loss.backward()
    assert count == 2 * forward


def test_nothing_is_left_behind_not_even_by_an_error(pipe: Any) -> None:
    before = surface(pipe.unet)
    network = loud_network(pipe.unet, BUILDS["linear"])
    with alone(network).on(pipe.unet):
        pipe.unet(**unet_call(pipe)).sample.sum().backward()
    assert surface(pipe.unet) == before
    with pytest.raises(RuntimeError), alone(network).on(pipe.unet):
        pipe.unet(torch.zeros(1, 4, 8, 8), 0, torch.zeros(1, 7, 23))  # no text is that wide
    assert surface(pipe.unet) == before
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_only_layers_that_can_receive_gradient_keep_activations(pipe: Any) -> None:
    network = loud_network(pipe.unet, BUILDS["text alone"])
    needs: dict[str, bool] = {}
    for name in ("conv_in", "time_embedding", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0"):
        pipe.unet.get_submodule(name).register_forward_hook(
            lambda module, _, output, name=name: needs.update(
                {name: (output[0] if isinstance(output, tuple) else output).requires_grad}
            )
        )
    shapes = []
    with (
        alone(network).on(pipe.unet),
        torch.autograd.graph.saved_tensors_hooks(lambda t: shapes.append(t.shape) or t, id),
    ):
        pipe.unet(**unet_call(pipe))
    assert needs == {
        "conv_in": False,
        "time_embedding": False,
        "down_blocks.0.resnets.0": False,
        "down_blocks.0.attentions.0": True,
    }
    rows = 2 * 7  # of the text: once, not once for each layer
    assert sum(shape == (rows, 24) for shape in shapes) == 2  # what K's and V's first layer was given


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_no_text_of_a_call_that_is_over_is_kept(pipe: Any, build: Build) -> None:
    network = loud_network(pipe.unet, build)
    call = unet_call(pipe) | {"encoder_hidden_states": torch.randn(2, 11, 24)}

    def alive() -> int:
        gc.collect()
        return sum(type(item) is Tensor and item.shape == (2, 11, 24) for item in gc.get_objects())

    before = alive()
    with alone(network).on(pipe.unet):
        for _ in range(3):
            pipe.unet(**call).sample.sum().backward()
        assert alive() == before


def test_parameters_stay_fp32_under_a_unet_of_bf16() -> None:
    pipe, narrow = tiny_sd(), tiny_sd(dtype=torch.bfloat16)
    network = loud_network(pipe.unet, BUILDS["mish, layer norm, 3 layers"])
    with alone(network).on(pipe.unet):
        truth = gradients(network, lambda: pipe.unet(**unet_call(pipe)).sample.square().mean())
    call = {key: value.bfloat16() if value.is_floating_point() else value for key, value in unet_call(pipe).items()}
    with alone(network).on(narrow.unet):
        output = narrow.unet(**call).sample
        found = gradients(network, lambda: output.float().square().mean())
    assert output.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    flat, flat_truth = (torch.cat([g[name].flatten() for name in sorted(truth)]) for g in (found, truth))
    assert torch.cosine_similarity(flat, flat_truth, dim=0) > 0.99


def test_parameters_are_cast_once_for_all_layers() -> None:
    casts, parameter = CastCache(), nn.Parameter(torch.ones(2))
    assert casts(parameter, torch.float32) is parameter
    assert casts(parameter, torch.bfloat16) is casts(parameter, torch.bfloat16)
    with torch.no_grad():
        assert not casts(parameter, torch.bfloat16).requires_grad


def test_an_untrained_side_gives_back_what_it_got(pipe: Any) -> None:
    network = loud_network(pipe.unet, BUILDS["K alone"])
    x = torch.randn(2, 5, 8)
    assert network.apply_to(x, "v") is x
    assert not torch.equal(network.apply_to(x, "k"), x)


def test_other_hypernetworks_must_be_gone(pipe: Any, tmp_path: Path) -> None:
    network = loud_network(pipe.unet, BUILDS["linear"])
    hnetkit.load_hypernetwork(pipe, network_file(tmp_path, widths=(8, 24)), name="ink")
    with pytest.raises(AttachError, match="hypernetworks on it: ink"), alone(network).on(pipe.unet):
        pass
    hnetkit.unload_hypernetworks(pipe)
    with alone(network).on(pipe.unet):
        pass


def test_fused_projections_and_a_unet_without_its_widths_are_refused(pipe: Any) -> None:
    with pytest.raises(AttachError, match="no layer of the UNet has a context of width 320"):
        alone(TrainedNetwork(Build(), [320], seed=0)).on(pipe.unet).__enter__()
    network = loud_network(pipe.unet, BUILDS["linear"])
    pipe.fuse_qkv_projections(vae=False)
    before = surface(pipe.unet)
    with pytest.raises(AttachError, match="its projections are fused"), alone(network).on(pipe.unet):
        pass
    assert surface(pipe.unet) == before


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu", "activate_output": True},
        {"activation": "mish", "layer_norm": True, "dropout": (0, 0.3, 0)},
        {"activation": "prelu", "structure": (1, 2, 2, 1)},
        {"structure": (1, 0.35, 1), "weight_initialization": "XavierNormal"},
    ],
    ids=str,
)
def test_training_goes_on_with_what_a_file_holds(options: dict[str, Any], tmp_path: Path) -> None:
    file = hnetkit.load(network_file(tmp_path, **options))
    network = TrainedNetwork.from_hypernetwork(file).eval()
    build = network.build
    assert (build.activation, build.layer_norm) == (options.get("activation"), options.get("layer_norm", False))
    assert build.activate_output == options.get("activate_output", False)
    assert build.structure == options.get("structure", (1, 2, 1))
    assert build.dropout == options.get("dropout", ())
    assert build.initialisation == ("xavier-normal" if "weight_initialization" in options else "normal")
    stack = hnetkit.Stack([(file, 1.0)])
    for width in file.widths:
        x = torch.randn(2, 3, width)
        for side, expected in zip(("k", "v"), stack(x), strict=True):
            assert torch.equal(network.apply_to(x, side), expected)


def test_training_goes_on_with_a_file_of_the_oldest_kind(tmp_path: Path) -> None:
    content = a1111_network()
    bare = {
        width: tuple({name.replace(".0.", "1.").replace(".1.", "2."): t for name, t in s.items()} for s in sides)
        for width, sides in content.items()
        if isinstance(width, int)
    }
    file = hnetkit.load(save_pt(bare, tmp_path / "nai.pt"))
    assert TrainedNetwork.from_hypernetwork(file).build == Build(zero_output=False, widths=(8, 12))


def test_training_does_not_go_on_with_mlps_of_several_builds(tmp_path: Path) -> None:
    mixed = {**a1111_network(widths=(8,), layer_norm=True), **{12: a1111_network(widths=(12,))[12]}}
    file = hnetkit.load(save_pt(mixed, tmp_path / "mixed.pt"))
    with pytest.raises(UsageError, match="its MLPs are not all of one build"):
        TrainedNetwork.from_hypernetwork(file)


def test_each_context_of_a_batch_has_its_own_strength() -> None:
    network = TrainedNetwork(Build(activation="relu", zero_output=False, std=0.5), [24], seed=0)
    x = torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(1))
    added = network.apply_to(x, "k") - x
    changed = network.apply_to(x, "k", strengths=torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(changed[0], x[0])
    for number, strength in enumerate((0.0, 0.5, 1.0)):
        assert torch.allclose(changed[number], x[number] + strength * added[number], atol=1e-6)
