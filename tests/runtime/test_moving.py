"""UNets that change device or dtype, or are offloaded, with networks on them.

There is no second device on a machine without a GPU: accelerate's hooks run with the CPU as the device to run on,
which moves weights through the same calls, and through the meta device for sequential offloading.
"""

from __future__ import annotations

from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_module
from support.pipelines import draw, tiny_sd
from support.stacks import relative
from support.unet_truth import plain, run, surface

import hnetkit
from hnetkit.errors import AttachError
from hnetkit.network import Hypernetwork

CPU = torch.device("cpu")


def load(pipe: Any, *networks: Hypernetwork) -> None:
    for net in networks:
        hnetkit.load_hypernetwork(pipe, net, strength=0.7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_as_if_loaded_in_it(dtype: torch.dtype, ink: Hypernetwork, tint: Hypernetwork) -> None:
    pipe, direct = tiny_sd(), tiny_sd(dtype=dtype)
    load(pipe, ink, tint)
    load(direct, ink, tint)
    pipe.to(dtype)
    assert torch.equal(run(pipe), run(direct))


def test_there_and_back_in_dtype_loses_nothing_of_the_networks(
    pipe: Any, ink: Hypernetwork, tint: Hypernetwork
) -> None:
    load(pipe, ink, tint)
    before = {name: buffer.clone() for name, buffer in pipe.unet.named_buffers()}
    pipe.unet.to(torch.bfloat16).to(torch.float32)
    after = dict(pipe.unet.named_buffers())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())


def test_strengths_stay_in_fp32(pipe: Any, ink: Hypernetwork) -> None:
    load(pipe, ink)
    pipe.unet.to(torch.bfloat16)
    strengths = [buffer for name, buffer in pipe.unet.named_buffers() if name.endswith("strengths")]
    assert strengths
    assert all(torch.equal(buffer, torch.tensor([[0.7], [0.7]])) for buffer in strengths)


def test_first_weights_follow_a_dtype_change_while_folded(pipe: Any, tint: Hypernetwork) -> None:
    load(pipe, tint)
    pipe.unet.to(torch.bfloat16)
    hnetkit.unload_hypernetworks(pipe)
    direct = tiny_sd(dtype=torch.bfloat16)
    assert surface(pipe.unet)["state"] == surface(direct.unet)["state"]


def test_a_move_to_the_device_that_it_is_on_does_nothing(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    load(pipe, ink, tint)
    before = {name: buffer.data_ptr() for name, buffer in pipe.unet.named_buffers()}
    pipe.to("cpu")
    assert {name: buffer.data_ptr() for name, buffer in pipe.unet.named_buffers()} == before


def test_buffers_are_moved_with_the_unet(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    """Seen through `_apply`, which every move goes through: each buffer is on the new device afterwards."""
    load(pipe, ink, tint)
    attached = pipe.unet.hnetkit
    attached._move(torch.device("meta"), attached.dtype)
    assert all(buffer.is_meta for buffer in attached.buffers())


def model_offload(pipe: Any) -> None:
    """What `enable_model_cpu_offload` puts on the UNet."""
    _, pipe.hook = accelerate.cpu_offload_with_hook(pipe.unet, CPU)


def sequential_offload(pipe: Any) -> None:
    """What `enable_sequential_cpu_offload` puts on the UNet."""
    accelerate.cpu_offload(pipe.unet, CPU, offload_buffers=len(pipe.unet._parameters) > 0)


def group_offload(pipe: Any) -> None:
    hooks = pytest.importorskip("diffusers.hooks", reason="this diffusers does not offload by groups")
    hooks.apply_group_offloading(pipe.unet, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")


@pytest.mark.parametrize("offload", [model_offload, sequential_offload, group_offload])
@pytest.mark.parametrize("when", ["before", "after"])
def test_offloading_keeps_working(pipe: Any, ink: Hypernetwork, wash: Hypernetwork, offload: Any, when: str) -> None:
    truth = plain(pipe, [(ink, 0.7), (wash, 0.7)])
    picture = draw(pipe)
    if when == "before":
        offload(pipe)
    load(pipe, ink, wash)
    if when == "after":
        run(pipe)
        offload(pipe)
    for _ in range(2):
        assert relative(run(pipe), truth) <= 1e-5
    hnetkit.set_hypernetworks(pipe, ["wash"], [0.2])
    assert torch.isfinite(run(pipe)).all()
    hnetkit.unload_hypernetworks(pipe)
    assert torch.equal(draw(pipe), picture)


@pytest.mark.parametrize("offload", [model_offload, sequential_offload, group_offload])
def test_nothing_is_folded_into_weights_that_offloading_holds(pipe: Any, tint: Hypernetwork, offload: Any) -> None:
    truth = plain(pipe, [(tint, 0.7)])
    offload(pipe)
    load(pipe, tint)
    assert {name for part in hnetkit.explain(pipe)["parts"] for name in part["folded"]} == set()
    for _ in range(2):
        assert relative(run(pipe), truth) <= 1e-5


def test_model_offloading_after_a_map_was_folded(pipe: Any, tint: Hypernetwork) -> None:
    truth = plain(pipe, [(tint, 0.7)])
    load(pipe, tint)
    model_offload(pipe)
    assert relative(run(pipe), truth) <= 1e-5
    remove_hook_from_module(pipe.unet)
    assert relative(run(pipe), truth) <= 1e-5


def test_sequential_offloading_after_a_map_was_folded_is_refused(pipe: Any, tint: Hypernetwork) -> None:
    """It would keep the folded weights as the model's own."""
    load(pipe, tint)
    with pytest.raises(AttachError, match="folded"):
        sequential_offload(pipe)


def test_the_pipelines_own_model_offloading(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    load(pipe, ink, tint)
    styled = draw(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert relative(draw(pipe), styled) <= 1e-5
    hnetkit.unload_hypernetworks(pipe)
    assert torch.equal(draw(pipe), draw(tiny_sd()))
