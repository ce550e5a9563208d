"""UNets of videos: attention between frames is no network's, whatever its width."""

from __future__ import annotations

import torch
from diffusers import MotionAdapter, UNetMotionModel
from support.pipelines import SELF_WIDTHS, tiny_sd

from hnetkit.runtime.layers import find_layers


def test_motion_modules_are_left_alone() -> None:
    torch.manual_seed(0)
    plain = tiny_sd().unet
    motion = MotionAdapter(
        block_out_channels=SELF_WIDTHS,
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        motion_mid_block_layers_per_block=1,
    )
    unet = UNetMotionModel.from_unet2d(plain, motion)
    assert any("motion_modules" in name for name, _ in unet.named_modules())
    assert sorted(layer.name for layer in find_layers(unet)) == sorted(layer.name for layer in find_layers(plain))
