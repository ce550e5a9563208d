"""Tiny Stable Diffusion and SDXL pipelines with random weights, built in code: offline, in a fraction of a second.

Widths are those of the golden files: self-attention 8 and 20, cross-attention 24 (SD) or 48 (SDXL).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

SELF_WIDTHS = (8, 20)
SD_CROSS_WIDTH = 24
SDXL_CROSS_WIDTH = 48

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.()[]{}<>:|-_'\"!?/\\"


def tiny_sd(seed: int = 0, dtype: torch.dtype = torch.float32, *, least: bool = False) -> StableDiffusionPipeline:
    """Returns a pipeline on the CPU that draws 16 px pictures from 8 x 8 latents; the same seed, the same weights.

    Args:
        least: the smallest UNet that has both kinds of attention: one level of width 8, one transformer block.
    """
    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(SD_CROSS_WIDTH)),
        tokenizer=tiny_tokenizer(),
        unet=_unet(SD_CROSS_WIDTH, least=least),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _ready(pipe, dtype)


def tiny_sdxl(seed: int = 0, dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """Returns a pipeline on the CPU with two text encoders and SDXL's added conditions; 16 px pictures."""
    torch.manual_seed(seed)
    half = SDXL_CROSS_WIDTH // 2
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(half)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(half)),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=_unet(
            SDXL_CROSS_WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + half,
        ),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        add_watermarker=False,
    )
    return _ready(pipe, dtype)


def reading(pipe: Any, channels: int, *, ignored: bool = False) -> Any:
    """Returns a pipeline of the same parts, but for a UNet that reads so many channels: 9 as those for inpainting do.

    Args:
        ignored: the UNet makes nothing of the channels that come after the latents.
    """
    unet = pipe.unet
    made = type(unet).from_config({**unet.config, "in_channels": channels, "_use_default_values": []}).eval()
    first = unet.conv_in.weight.detach()
    more = torch.randn(len(first), channels - 4, 3, 3, generator=torch.Generator().manual_seed(channels)) / 10
    weights = {**unet.state_dict(), "conv_in.weight": torch.cat([first, more * (not ignored)], dim=1)}
    made.load_state_dict(weights)
    return _ready(type(pipe)(**{**pipe.components, "unet": made}), torch.float32)


def tiny_tokenizer() -> CLIPTokenizer:
    """Returns a CLIP tokenizer that knows single letters, digits and marks; 77 tokens at most."""
    words = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:  # transformers 4 makes one from files alone
        Path(folder, "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def latents(pipe: Any, seed: int = 0) -> torch.Tensor:
    """Returns start noise ``[1, 4, 8, 8]`` in the UNet's dtype."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(1, 4, 8, 8, generator=generator).to(pipe.unet.dtype)


def draw(pipe: Any, prompt: str = "a red circle", steps: int = 2, seed: int = 0, **options: Any) -> torch.Tensor:
    """Returns the final latents ``[1, 4, 8, 8]`` of `steps` sampling steps from the noise of `seed`."""
    result = pipe(
        prompt,
        num_inference_steps=steps,
        latents=latents(pipe, seed),
        output_type="latent",
        guidance_scale=4.0,
        **options,
    )
    images: torch.Tensor = result.images
    return images


def unet_call(pipe: Any, seed: int = 0, batch: int = 2) -> dict[str, Any]:
    """Returns keyword arguments for one call of the pipeline's UNet, random but the same for the same seed."""
    unet = pipe.unet
    generator = torch.Generator("cpu").manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(unet.dtype)

    width = unet.config.cross_attention_dim
    call: dict[str, Any] = {
        "sample": noise(batch, 4, 8, 8),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": noise(batch, 7, width),
    }
    if unet.config.addition_embed_type == "text_time":
        call["added_cond_kwargs"] = {"text_embeds": noise(batch, width // 2), "time_ids": noise(batch, 6)}
    return call


def _ready(pipe: Any, dtype: torch.dtype) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe if dtype is torch.float32 else pipe.to(dtype=dtype)


def _unet(cross_width: int, *, least: bool = False, **more: Any) -> UNet2DConditionModel:
    channels, kind = (SELF_WIDTHS[:1], "") if least else (SELF_WIDTHS, "CrossAttn")
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=cross_width,
        down_block_types=(f"{kind}DownBlock2D",) * len(channels),
        up_block_types=(f"{kind}UpBlock2D",) * len(channels),
        **more,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=16,
    )


def _text_config(width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=2 * len(_LETTERS) + 2,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=width,
        bos_token_id=2 * len(_LETTERS),
        eos_token_id=2 * len(_LETTERS) + 1,
        pad_token_id=2 * len(_LETTERS) + 1,
    )
