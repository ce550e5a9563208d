"""The configurations that are part of the package: those of the real models, by their published numbers and names."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from support.checkpoints import open_clip_tensors, original_vae, unet_name

from hnetkit.generate.loading.checkpoints import CONFIGURATIONS, StateDict, _kinds_of
from hnetkit.generate.loading.parts import build_text_encoder, build_unet, build_vae, is_for_inpainting

UNET = "model.diffusion_model."
COUNTS = {
    "sd1/unet": 859_520_964,
    "sdxl/unet": 2_567_463_684,
    "sdxl/text_encoder_2": 694_659_840,
    **dict.fromkeys(["sd2-base/unet", "sd2-v/unet"], 865_910_724),
    **dict.fromkeys(["sd1/vae", "sd2-base/vae", "sd2-v/vae", "sdxl/vae"], 83_653_863),
    **dict.fromkeys(["sd1/text_encoder", "sdxl/text_encoder"], 123_060_480),
    **dict.fromkeys(["sd2-base/text_encoder", "sd2-v/text_encoder"], 340_387_840),
}


def full_size(part: str) -> Any:
    """A part of full size without memory behind it."""
    import diffusers
    import transformers

    config = json.loads((CONFIGURATIONS / part / "config.json").read_text())
    with torch.device("meta"):
        if "_class_name" in config:
            return getattr(diffusers, config["_class_name"]).from_config(config)
        kind = getattr(transformers, config["architectures"][0])
        return kind(kind.config_class.from_dict(config))


def test_every_configuration_is_counted() -> None:
    found = {path.parent.relative_to(CONFIGURATIONS).as_posix() for path in CONFIGURATIONS.rglob("config.json")}
    assert found == COUNTS.keys()
    assert {path.parent.parent.name for path in CONFIGURATIONS.rglob("scheduler_config.json")} == {
        part.split("/")[0] for part in COUNTS
    }


@pytest.mark.parametrize("part", COUNTS)
def test_a_configuration_has_the_parameters_of_the_real_model_and_takes_its_names(part: str) -> None:
    made = full_size(part)
    assert sum(parameter.numel() for parameter in made.parameters()) == COUNTS[part]
    config = json.loads((CONFIGURATIONS / part / "config.json").read_text())
    if part.endswith("unet"):
        original = {f"{UNET}{unet_name(name, config)}": tensor for name, tensor in made.state_dict().items()}
        again = build_unet(config, original, part)
    elif part.endswith("vae"):
        again = build_vae(config, original_vae(made), part)
    else:
        prefix = "cond_stage_model.transformer." if config["hidden_act"] == "quick_gelu" else "embedders.1.model."
        names = open_clip_tensors(made.state_dict()) if prefix.endswith(".model.") else made.state_dict()
        again = build_text_encoder(config, {prefix + name: item for name, item in names.items()}, prefix, part)
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in made.state_dict().items()}


@pytest.mark.parametrize("kind", ["sd1", "sd2-base", "sdxl"])
def test_a_unet_for_inpainting_is_found_at_full_size(kind: str) -> None:
    """Published: 859,535,364 parameters in ``sd-v1-5-inpainting.ckpt``, as the first layer has 5 channels more."""
    config = json.loads((CONFIGURATIONS / kind / "unet" / "config.json").read_text())
    tensors = {
        f"{UNET}{unet_name(name, config)}": item for name, item in full_size(f"{kind}/unet").state_dict().items()
    }
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(320, 9, 3, 3, device="meta")
    text = {"conditioner.embedders.1.model.ln_final.weight": (1280,)} if kind == "sdxl" else {}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()} | text
    assert _kinds_of(StateDict("inpainting.ckpt", shapes, {}, tensors.__getitem__))[0] == kind
    unet = build_unet({**config, "in_channels": 9}, tensors, kind)
    assert sum(parameter.numel() for parameter in unet.parameters()) == COUNTS[f"{kind}/unet"] + 320 * 5 * 9
    assert is_for_inpainting(unet.config)


def test_names_and_shapes_are_those_of_the_published_files() -> None:
    known = {
        "sd1/unet": {
            "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
            "output_blocks.11.1.proj_out.weight": (320, 320, 1, 1),
            "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        },
        "sd2-v/unet": {
            "output_blocks.11.1.proj_out.weight": (320, 320),
            "input_blocks.9.0.op.weight": (1280, 1280, 3, 3),
        },
        "sdxl/unet": {
            "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
            "output_blocks.5.2.conv.weight": (640, 640, 3, 3),
            "label_emb.0.0.weight": (1280, 2816),
        },
    }
    for part, shapes in known.items():
        made = full_size(part)
        found = {unet_name(name, made.config): tuple(tensor.shape) for name, tensor in made.state_dict().items()}
        assert shapes.items() <= found.items()
