"""UNets of videos: attention between frames is no network's, whatever its width."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import AnimateDiffPipeline, ControlNetModel, MotionAdapter, UNetMotionModel
from support.networks import network_file
from support.pipelines import SELF_WIDTHS, tiny_sd

import hnetkit
from hnetkit.runtime.layers import find_layers


def motion() -> MotionAdapter:
    torch.manual_seed(0)
    return MotionAdapter(
        block_out_channels=SELF_WIDTHS,
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        motion_mid_block_layers_per_block=1,
    )


def test_motion_modules_are_left_alone() -> None:
    plain = tiny_sd().unet
    unet = UNetMotionModel.from_unet2d(plain, motion())
    assert any("motion_modules" in name for name, _ in unet.named_modules())
    assert sorted(layer.name for layer in find_layers(unet)) == sorted(layer.name for layer in find_layers(plain))


def test_a_unet_of_videos_that_is_made_of_one_with_networks_is_said_to_have_none(tmp_path: Path) -> None:
    pipe = tiny_sd()
    hnetkit.load_hypernetwork(pipe, network_file(tmp_path, "ink.pt", widths=(8, 20, 24), activation="relu"))
    with pytest.warns(UserWarning, match="ink") as told:
        video = AnimateDiffPipeline.from_pipe(pipe, motion_adapter=motion())
    assert len([one for one in told if "has none of its hypernetworks" in str(one.message)]) == 1
    assert hnetkit.get_active_hypernetworks(video) == []


def test_saving_a_unet_with_networks_and_making_a_controlnet_of_it_says_nothing(tmp_path: Path) -> None:
    pipe = tiny_sd()
    hnetkit.load_hypernetwork(pipe, network_file(tmp_path, "ink.pt", widths=(8, 20, 24), activation="relu"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hypernetworks")
        pipe.unet.state_dict()
        torch.nn.ModuleDict({"unet": pipe.unet}).state_dict()
        pipe.save_pretrained(tmp_path / "saved")
        ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 4))
    hnetkit.unload_hypernetworks(pipe)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hypernetworks")
        UNetMotionModel.from_unet2d(pipe.unet, motion())
