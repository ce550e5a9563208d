"""Stacks as patches of attention layers, against the outputs that the original implementation recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import network_file
from support.stacks import relative
from torch import Tensor

import hnetkit
from hnetkit.kernels.gpu import linear
from hnetkit.network import Hypernetwork
from hnetkit.runtime.attention_patches import AttentionPatch, AttentionStack
from hnetkit.runtime.buffers import LoadedNetwork
from hnetkit.runtime.layers import Layer, Place

FP32 = 1e-5
PLACE = Place("input", 1, 0, "cross")


def patched(x: Tensor, *networks: tuple[Hypernetwork, float], path: str) -> tuple[Tensor, Tensor]:
    """Returns K's and V's context from a patch in a layer of x's width."""
    width = x.shape[-1]
    stack = []
    for number, (network, strength) in enumerate(networks):
        loaded = LoadedNetwork(str(number), network, frozenset({width}))
        loaded.read_weights(torch.device("cpu"), x.dtype, path)
        stack.append((loaded, hnetkit.Strength(strength)))
    layers = {PLACE: Layer("down_blocks.0.attentions.0.transformer_blocks.0.attn2", "cross", width, width)}
    patch = AttentionPatch(AttentionStack(stack, layers, lambda options: None, path=path, dtype=x.dtype), "cross")
    with torch.inference_mode():
        _, k, v = patch(x, x, x, {"block": ("input", 1), "block_index": 0})
    return k, v


@pytest.mark.parametrize("path", ["grouped", "fused"])
def test_the_kernels_run_in_a_patch(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", path)
    ran, run = [], linear.run
    monkeypatch.setattr(linear, "run", lambda *own, **options: ran.append(1) or run(*own, **options))
    ink = hnetkit.load(network_file(tmp_path, "ink.pt", widths=(16,), activation="relu", layer_norm=True, seed=1))
    tint = hnetkit.load(network_file(tmp_path, "tint.pt", widths=(16,), activation=None, seed=2))
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(3))
    networks = [(ink, 0.8), (tint, -0.5)]
    got, plain = patched(x, *networks, path=path), patched(x, *networks, path="eager")
    assert ran
    assert all(relative(own, other) <= FP32 for own, other in zip(got, plain, strict=True))


def test_a_text_that_changes_in_place_is_seen_where_nothing_tells_the_call(tmp_path: Path) -> None:
    network = hnetkit.load(network_file(tmp_path, "ink.pt", widths=(8,), activation="relu"))
    loaded = LoadedNetwork("ink", network, frozenset({8}))
    loaded.read_weights(torch.device("cpu"), torch.float32, "eager")
    layers = {PLACE: Layer("down_blocks.0.attentions.0.transformer_blocks.0.attn2", "cross", 8, 8)}
    stack = AttentionStack(
        [(loaded, hnetkit.Strength(1.0))], layers, lambda options: None, path="eager", dtype=torch.float32
    )
    text, options = torch.ones(3, 8), {"block": ("input", 1), "block_index": 0}
    before = stack.contexts(text, text, "cross", options)[0].clone()
    text.mul_(2)
    after = stack.contexts(text, text, "cross", options)[0]
    assert torch.equal(after, hnetkit.Stack([(network, 1.0)])(text)[0])
    assert not torch.equal(after, before)


@pytest.mark.parametrize("path", ["eager", "reference"])
def test_every_recorded_file_through_a_patch(golden: dict[str, Any], path: str) -> None:
    """Affine files too, which it keeps as one map of each side."""
    expected, compared = golden["expected"], 0
    for key in expected:
        name, *rest = key.split("/")
        if name.startswith("stack") or not rest[-1].startswith("k@"):
            continue
        width, strength = rest[0], rest[1].removeprefix("k@")
        contexts = patched(expected[f"{name}/{width}/x"], (golden["networks"][name], float(strength)), path=path)
        for side, got in zip("kv", contexts, strict=True):
            assert relative(got, expected[f"{name}/{width}/{side}@{strength}"]) <= FP32, key
        compared += 1
    assert compared > 50


@pytest.mark.parametrize("number", range(7))
def test_every_recorded_stack_through_a_patch(golden: dict[str, Any], number: int) -> None:
    case = next(case for case in golden["stacks"] if case["id"] == f"stack{number}")
    networks = zip((golden["networks"][name] for name in case["names"]), case["multipliers"], strict=True)
    contexts = patched(golden["expected"][f"stack{number}/x"], *networks, path="eager")
    for side, got in zip("kv", contexts, strict=True):
        assert relative(got, golden["expected"][f"stack{number}/{side}"]) <= FP32
