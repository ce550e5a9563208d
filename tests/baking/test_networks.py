"""Several networks as one file: exactly what they do together, or refused; averages are called averages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import plain_a1111

import hnetkit
from hnetkit.baking.networks import merge_networks
from hnetkit.errors import UsageError
from hnetkit.network import Hypernetwork
from hnetkit.runtime.strength import Strength

Make = Callable[..., Hypernetwork]
TEXT = (24,)
WIDTHS = (8, 20, 24)


def context(width: int) -> torch.Tensor:
    return torch.randn(3, 5, width, generator=torch.Generator().manual_seed(width))


def merged(networks: Sequence[Hypernetwork], strengths: Sequence[Any], mix: Any, folder: Path) -> Hypernetwork:
    """Returns the network of the file that is written, as A1111 would have it."""
    stack = [(f"n{i}", net, Strength.of(s)) for i, (net, s) in enumerate(zip(networks, strengths, strict=True))]
    hnetkit.save(merge_networks(stack, TEXT, mix=mix, name="both"), folder / "both.pt")
    return hnetkit.load(folder / "both.pt")


def added(network: Hypernetwork, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Returns what a network adds to a context, by A1111's own modules."""
    return tuple(module(x) for module in plain_a1111.modules_of(network)[x.shape[-1]])


@pytest.mark.parametrize("activation", ["relu", "swish", "mish", None])
def test_side_by_side_networks_of_one_kind_are_a_wider_one(activation: Any, make: Make, tmp_path: Path) -> None:
    structures = [(1, 2, 1), (1, 0.3, 1), (1, 1.5, 1)]
    nets = [make(f"n{i}", activation=activation, structure=own, seed=i) for i, own in enumerate(structures)]
    strengths = [0.8, Strength(-0.4, cross_v=1.3), 0.5]
    net = merged(nets, strengths, "parallel", tmp_path)
    for width in WIDTHS:
        x, kind = context(width), "cross" if width in TEXT else "self"
        found = hnetkit.Stack([(net, 1.0)])(x)
        for index, side in enumerate("kv"):
            parts = zip(nets, map(Strength.of, strengths), strict=True)
            expected = x + sum(own.number(kind, side) * added(n, x)[index] for n, own in parts)
            assert (found[index] - expected).abs().max() < 1e-5
    assert net.warnings == nets[0].warnings  # the widths of a tiny model
    assert "beside" in net.metadata["optional_info"]


def test_affine_networks_in_order_are_one(tint: Hypernetwork, shade: Hypernetwork, tmp_path: Path) -> None:
    net = merged([tint, shade], [0.8, -0.5], "stack", tmp_path)
    assert net.is_affine
    for width in WIDTHS:
        x = context(width)
        own, both = hnetkit.Stack([(net, 1.0)])(x), hnetkit.Stack([(tint, 0.8), (shade, -0.5)])(x)
        for found, expected in zip(own, both, strict=True):
            assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "relu"},
        {"activation": "mish", "layer_norm": True},
        {"activation": "relu", "activate_output": True},
        {"activation": "swish", "activate_output": True, "layer_norm": True},
        {"activation": None, "structure": (1, 2, 0.5, 1)},
    ],
)
def test_a_strength_goes_into_a_network(options: dict[str, Any], make: Make, tmp_path: Path) -> None:
    network = make("ink", seed=2, **options)
    net = merged([network], [Strength(0.6, self_k=0)], "stack", tmp_path)
    for width in WIDTHS:
        x = context(width)
        kind: Any = "cross" if width in TEXT else "self"
        expected = hnetkit.Stack([(network, Strength(0.6, self_k=0))])(x, kind=kind)
        for found, wanted in zip(hnetkit.Stack([(net, 1.0)])(x), expected, strict=True):
            assert (found - wanted).abs().max() < 1e-5


def test_an_average_is_called_one(make: Make, tmp_path: Path) -> None:
    first, second = (make(f"n{seed}", activation="relu", seed=seed) for seed in (1, 2))
    net = merged([first, second], [3.0, 1.0], "average", tmp_path)
    own, other, both = (next(iter(n.mlps[8].key.tensors.values())).torch() for n in (first, second, net))
    assert torch.allclose(both, 0.75 * own + 0.25 * other)
    assert "averaged" in net.metadata["optional_info"]


@pytest.mark.parametrize(
    ("kinds", "strengths", "mix", "hint"),
    [
        ([{"activation": "relu"}, {"activation": "relu"}], [1, 1], "stack", "--to lora"),
        ([{"activation": "relu"}, {"activation": "swish"}], [1, 1], "parallel", "--to lora"),
        ([{"activation": "relu", "layer_norm": True}] * 2, [1, 1], "parallel", "--to lora"),
        ([{"activation": "relu", "structure": (1, 2, 2, 1)}] * 2, [1, 1], "parallel", "--to lora"),
        ([{"activation": "tanh", "activate_output": True}], [0.5], "stack", "--to lora"),
        ([{"activation": "relu", "activate_output": True}], [-1], "stack", "--to lora"),
        ([{"activation": "relu"}, {"activation": "relu", "structure": (1, 1, 1)}], [1, 1], "average", "--to lora"),
        ([{"activation": "relu"}] * 2, [1, -1], "average", "-n NAME:1"),
        ([{"activation": "relu"}], [0], "stack", "-n NAME:1"),
        ([{"activation": "relu"}], [Strength(1, blocks={"up_blocks": 0})], "stack", "--to lora"),
        ([{"activation": "relu"}], [Strength(1, end=0.5)], "stack", "--to lora"),
    ],
)
def test_what_no_single_network_does_is_refused(
    kinds: list[dict[str, Any]], strengths: list[Any], mix: Any, hint: str, make: Make, tmp_path: Path
) -> None:
    nets = [make(f"n{number}", seed=number, **kind) for number, kind in enumerate(kinds)]
    with pytest.raises(UsageError) as refusal:
        merged(nets, strengths, mix, tmp_path)
    assert hint in str(refusal.value.command_hint)
    assert not (tmp_path / "both.pt").exists()


@pytest.mark.parametrize("mix", ["stack", "parallel"])
def test_narrow_layers_in_very_wide_contexts_do_not_become_gigabytes(mix: Any, make: Make, tmp_path: Path) -> None:
    narrow = {"activation": None, "structure": (1, 0.0001, 1)}
    nets = [make(f"n{seed}", widths=(20_000,), seed=seed, **narrow) for seed in (1, 2)]
    with pytest.raises(UsageError, match="weights"):
        merged(nets, [1, 1], mix, tmp_path)
    assert merged(nets[:1], [0.5], mix, tmp_path).parameters == nets[0].parameters


def test_a_width_is_not_filled_up_to_gigabytes_because_of_another(make: Make, tmp_path: Path) -> None:
    wide = make("wide", widths=(20_000,), activation=None, structure=(1, 0.0001, 1))
    high = make("high", widths=(2,), activation=None, structure=(1, 5_000, 1))
    both = Hypernetwork({**high.mlps, **wide.mlps}, wide.metadata)
    with pytest.raises(UsageError, match="weights"):
        merged([both], [0.5], "stack", tmp_path)
