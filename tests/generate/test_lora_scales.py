"""LoRAs whose ranks and alphas differ by layer: every layer gets its own, whatever the libraries make of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.pipelines import tiny_sd
from support.unet_truth import run
from torch import Tensor

from hnetkit.errors import ModelNotUsable
from hnetkit.generate.loading.extra_networks import attach_loras, find_loras, read_lora
from hnetkit.prompts.tags import split_tags

PARTS = ("to_q", "to_k", "to_v", "to_out.0")


def lora_of_many(pipe: Any, *, alphas: bool, kohya: bool, seed: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns a LoRA's tensors with another rank, and alpha, in every layer, and what each layer's weight gets."""
    noise = torch.Generator().manual_seed(seed)
    tensors, added = {}, {}
    layers = [(name, module) for name, module in pipe.unet.named_modules() if name.endswith(PARTS) and ".attn" in name]
    for number, (name, module) in enumerate(layers):
        rank, alpha = 1 + number % 5, 0.5 + number % 3
        down = torch.randn(rank, module.in_features, generator=noise) * 0.3
        up = torch.randn(module.out_features, rank, generator=noise) * 0.3
        key = f"lora_unet_{name.replace('.', '_')}" if kohya else f"unet.{name}"
        first, second = (".lora_down", ".lora_up") if kohya else (".lora_A", ".lora_B")
        tensors[f"{key}{first}.weight"], tensors[f"{key}{second}.weight"] = down, up
        if alphas and number % 4:  # a layer without an alpha has the scale 1
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        added[name] = up @ down * (alpha / rank if alphas and number % 4 else 1.0)
    return tensors, added


@pytest.mark.parametrize("kohya", [True, False])
@pytest.mark.parametrize("alphas", [True, False])
@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_every_layer_has_its_own_rank_and_scale(tmp_path: Path, alphas: bool, kohya: bool, strength: float) -> None:
    pipe, truth = tiny_sd(), tiny_sd()
    tensors, added = lora_of_many(pipe, alphas=alphas, kohya=kohya)
    save_file(tensors, tmp_path / "style.safetensors")
    attach_loras(pipe, find_loras(split_tags(f"<lora:style:{strength}>").loras, str(tmp_path)), [].append)
    for name, difference in added.items():
        module = truth.unet.get_submodule(name)
        module.weight.data += strength * difference
        found = pipe.unet.get_submodule(name)
        maps = found.lora_B["hnetkit_0"].weight @ found.lora_A["hnetkit_0"].weight * found.scaling["hnetkit_0"]
        assert (maps - strength * difference).abs().max() < 1e-5, name
    assert (run(pipe) - run(truth)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.surprise",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.diff_b",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_nothing.alpha",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k.hada_w1_a",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight",
    ],
)
def test_a_tensor_that_would_be_left_out_is_named(tmp_path: Path, name: str) -> None:
    pipe = tiny_sd()
    tensors, _ = lora_of_many(pipe, alphas=True, kohya=True)
    save_file({**tensors, name: torch.ones(1)}, tmp_path / "style.safetensors")
    bare = run(pipe)
    with pytest.raises(ModelNotUsable, match=r"style\.safetensors: not a plain LoRA"):
        attach_loras(pipe, find_loras(split_tags("<lora:style:1>").loras, str(tmp_path)), [].append)
    assert torch.equal(run(pipe), bare)


def test_one_layer_of_a_huge_rank_does_not_make_all_of_them_huge(tmp_path: Path) -> None:
    """The file has 1 MB; with zeros up to that rank its layers would have more than a thousand."""
    tensors = {"unet.wide.lora_A.weight": torch.ones(1000, 1), "unet.wide.lora_B.weight": torch.ones(1, 1000)}
    for number in range(300):
        name = f"unet.layer_{number}"
        tensors |= {f"{name}.lora_A.weight": torch.ones(1, 500), f"{name}.lora_B.weight": torch.ones(500, 1)}
    save_file(tensors, tmp_path / "style.safetensors")
    with pytest.raises(ModelNotUsable, match=r"one of its layers has the rank 1,000"):
        read_lora(tmp_path / "style.safetensors")
