"""The plan at Stable Diffusion 1.5's own size: counted launches, FLOPs and bytes of one UNet call, nothing computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from support.networks import network_file

import hnetkit
from hnetkit.network import Hypernetwork

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SELF_ROWS = {320: 5 * 2 * 64**2, 640: 5 * 2 * 32**2, 1280: 5 * 2 * 16**2 + 2 * 8**2}  # at batch 2
TEXT_ROWS = 2 * 77


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Hypernetwork:
    """[1, 2, 1], swish, all widths of SD 1.5, fp16."""
    folder = tmp_path_factory.mktemp("network")
    file = network_file(folder, "n.pt", widths=(320, 640, 768, 1280), activation="swish", dtype=torch.float16)
    return hnetkit.load(file)


def loaded(count: int, network: Hypernetwork) -> Any:
    """The UNet without its weights, with `count` networks on it."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET).half()
    for number in range(count):
        hnetkit.load_hypernetwork(unet, network, name=str(number), strength=0.5)
    return unet


@pytest.mark.parametrize(("count", "most"), [(1, 29), (3, 77), (5, 125)])
def test_launches_of_a_step(count: int, most: int, network: Hypernetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 320, 960 and 1600 where every layer applies every network by itself."""
    monkeypatch.setenv("HNETKIT_KERNEL", "fused")
    plan = hnetkit.explain(loaded(count, network))
    assert plan["kernel"] == "fused"
    assert plan["layers_reached"] == 32
    assert plan["launches"] <= most
    by_width = {width: sum(part["launches"] for part in plan["parts"] if part["width"] == width) for width in SELF_ROWS}
    assert by_width == {320: 5, 640: 5 * 2 * count, 1280: 6 * 2 * count}


def test_the_specialized_kernel_is_shown_with_a_launch_for_each_network_and_layer(
    network: Hypernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", "specialized")
    plan = hnetkit.explain(loaded(3, network))
    assert plan["kernel"] == "specialized"
    assert sum(part["launches"] for part in plan["parts"] if part["width"] == 320) == 5 * 3
    assert {part["kernel"] for part in plan["parts"] if part["width"] == 320} == {"specialized"}


def test_flops_are_the_formula_and_bytes_are_weights_and_contexts(
    network: Hypernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", "fused")
    plan = hnetkit.explain(loaded(1, network))
    flops = {width: 2 * 2 * 4 * rows * width**2 for width, rows in {**SELF_ROWS, 768: TEXT_ROWS}.items()}
    for width, wanted in flops.items():
        assert sum(part["flops"] for part in plan["parts"] if part["width"] == width) == wanted
    assert plan["flops"] == sum(flops.values())
    assert 204.6e9 < plan["flops"] - flops[768] < 204.8e9, "as counted by hand for one network"
    applied = {320: 5, 640: 5, 1280: 6, 768: 1}
    moved = sum(
        2 * 2 * (4 * width**2 * applied[width] + 2 * width * rows)
        for width, rows in {**SELF_ROWS, 768: TEXT_ROWS}.items()
    )
    assert plan["bytes"] == moved
    assert plan["bytes"] == sum(part["bytes"] for part in plan["parts"])
