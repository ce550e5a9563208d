"""Puts the trained parts into the folder that diffusers and hnetkit read, in half precision."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from demo_training import pictures, tokenizer
from demo_training.unet import scheduler

DEFAULTS = {
    "cfg_scale": 2.0,
    "steps": 20,
    "width": pictures.SIDE,
    "height": pictures.SIDE,
    "sampler": "Euler a",
    "prompts": [
        "a red circle",
        "a large blue star",
        "a small green square on the left",
        "a purple triangle at the top",
        "a large yellow circle at the bottom",
        "a black star on the right",
    ],
}


def write_pipeline(parts: Path, folder: Path) -> None:
    """Writes a StableDiffusionPipeline folder, and hnetkit's own defaults beside it.

    Args:
        parts: where the training left ``vae``, ``unet``, ``text_encoder`` and ``tokenizer``.
        folder: what to write; files of the same names are replaced.
    """
    tokens = CLIPTokenizer.from_pretrained(parts / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae", dtype=torch.float16),
        text_encoder=CLIPTextModel.from_pretrained(parts / "text_encoder", dtype=torch.float16),
        tokenizer=tokens,
        unet=UNet2DConditionModel.from_pretrained(parts / "unet", dtype=torch.float16),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    ask_for_single_precision(folder / "text_encoder" / "config.json")
    tokenizer.save(tokens, folder / "tokenizer")
    (folder / "hnetkit.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n", "utf-8")


def ask_for_single_precision(config: Path) -> None:
    """Lets transformers load fp32 unless told otherwise, as diffusers does for the other parts."""
    content = json.loads(config.read_text("utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
