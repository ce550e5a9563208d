"""Draws many pictures with the finished folder, the way a user's own script would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

import hnetkit

STEPS = 20
AT_ONCE = 60


def open_pipeline(folder: Path) -> StableDiffusionPipeline:
    """The demo's pipeline in single precision, from its half-precision files."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    cfg_scale: float,
    stack: Mapping[str, float] | None = None,
) -> Tensor:
    """One picture per prompt and seed, [B, 3, 64, 64] in 0..1.

    Args:
        stack: strengths by the names of loaded networks; None leaves the pipeline as it is.
    """
    chunks = []
    with nullcontext() if stack is None else hnetkit.applied(pipeline, stack):
        for start in range(0, len(prompts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            drawn = pipeline(
                list(prompts[part]),
                num_inference_steps=STEPS,
                guidance_scale=cfg_scale,
                generator=generators,
                output_type="pt",
            )
            chunks.append(drawn.images)
    return torch.cat(chunks)
