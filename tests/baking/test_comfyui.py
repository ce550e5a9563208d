"""ComfyUI's own code takes every key of the files that are baked for it, and computes what hnetkit computes.

``COMFYUI_PATH`` names its folder, ``COMFYUI_PYTHON`` the Python of an environment with its packages.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from support.checkpoints import unet_name
from support.networks import network_file
from support.pipelines import tiny_sd

import hnetkit
from hnetkit.baking.api import bake

pytestmark = pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs a ComfyUI: COMFYUI_PATH=FOLDER")

WIDTHS = (32, 64, 24)
UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),  # ComfyUI has 32 groups in every norm
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
    "down_block_types": ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2,
}
CALL = """
import logging, sys
root, folder = sys.argv[1:]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, root)
import comfy.options
comfy.options.enable_args_parsing()
import torch
from safetensors.torch import load_file, save_file
import comfy.lora, comfy.lora_convert, comfy.model_patcher, comfy.supported_models

class Small(comfy.supported_models.SD15):
    unet_extra_config = {"num_heads": 2, "num_head_channels": -1}

config = Small({
    "image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1],
    "channel_mult": [1, 2], "use_spatial_transformer": True, "transformer_depth": [1, 1],
    "transformer_depth_output": [1] * 4, "transformer_depth_middle": 1, "context_dim": 24,
    "use_linear_in_transformer": False, "legacy": False,
})
config.set_inference_dtype(torch.float32, None)
model = config.get_model({})
model.diffusion_model.load_state_dict(load_file(f"{folder}/unet.safetensors"))
patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
# as comfy/sd.py, load_lora_for_models
keys = comfy.lora.model_lora_keys_unet(model, {})
warned = []
logging.getLogger().addHandler(type("Kept", (logging.Handler,), {"emit": lambda self, record: warned.append(record)})())
loaded = comfy.lora.load_lora(comfy.lora_convert.convert_lora(load_file(f"{folder}/baked.safetensors")), keys)
taken = patcher.add_patches(loaded, 1.0)
assert loaded and set(taken) == set(loaded), set(loaded) - set(taken)
left = [record.getMessage() for record in warned if record.levelno >= logging.WARNING]
assert not left, left
given = load_file(f"{folder}/given.safetensors")
with torch.no_grad():
    bare = model.diffusion_model(given["x"], given["t"], context=given["context"])
    patcher.patch_model()
    out = model.diffusion_model(given["x"], given["t"], context=given["context"])
save_file({"bare": bare, "out": out}, f"{folder}/out.safetensors")
"""


def pipe_for_comfyui() -> Any:
    """Returns a tiny pipeline whose UNet ComfyUI can build."""
    pipe = tiny_sd()
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel(**UNET).eval()
    return pipe


def computed_by_comfyui(pipe: Any, baked: Any, folder: Path, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what ComfyUI's UNet gives bare, and with the file (out); fails where a key is left."""
    state = {unet_name(name, pipe.unet.config): tensor for name, tensor in pipe.unet.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "unet.safetensors")
    save_file(given, folder / "given.safetensors")
    baked.save(folder / "baked.safetensors")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-P", "-c", CALL, os.environ["COMFYUI_PATH"], str(folder)]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("to", ["diff", "lora"])
def test_comfyui_takes_every_key_and_computes_the_same(to: Any, tmp_path: Path) -> None:
    pipe = pipe_for_comfyui()
    noise = torch.Generator().manual_seed(1)
    given = {
        "x": torch.randn(2, 4, 8, 8, generator=noise),
        "t": torch.tensor([10.0, 500.0]),
        "context": torch.randn(2, 77, 24, generator=noise),
    }
    with torch.no_grad():
        bare = pipe.unet(given["x"], given["t"], given["context"]).sample
        for seed in (1, 2):
            path = network_file(tmp_path, f"n{seed}.pt", widths=WIDTHS, activation=None, scale=0.1, seed=seed)
            hnetkit.load_hypernetwork(pipe, path, strength=0.8)
        baked = bake(pipe, to=to, program="comfyui")
        expected = pipe.unet(given["x"], given["t"], given["context"]).sample
        hnetkit.unload_hypernetworks(pipe)
    found = computed_by_comfyui(pipe, baked, tmp_path, given)
    assert (found["bare"] - bare).abs().max() < 1e-5
    assert (expected - bare).abs().max() > 0.01
    assert (found["out"] - expected).abs().max() < 1e-4
