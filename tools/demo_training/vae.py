"""The picture autoencoder: 64 x 64 x 3 pixels to 8 x 8 x 4 latents and back.

Two runs. The first trains encoder and decoder together on plain and styled pictures. The second
freezes the encoder and trains the decoder on latents with a little noise on them, as those of a
diffusion model have: the decoder learns to draw clean edges and even fills from latents that are
not quite right.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from demo_training import pictures
from demo_training.loop import TimedLoop

SCALING = 0.18215
BATCH = 16
KL_WEIGHT = 1e-5
POOL = 12_000
NOISE = 0.25  # the largest noise the decoder learns to look through, in latents' own deviation


def build() -> AutoencoderKL:
    """An untrained autoencoder, 8 x 8 x 4 latents."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=pictures.SIDE,
        mid_block_add_attention=False,
        scaling_factor=SCALING,
    )


def draw_pool(count: int, seed: int) -> Tensor:
    """Random pictures, plain and styled, as bytes [count, 3, 64, 64]."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    captions, chunks = pictures.all_captions(), []
    for start in range(0, count, 500):
        chosen = rng.choices(captions, k=min(500, count - start))
        styles = pictures.random_styles(len(chosen), 0.4, generator)
        chunks.append((pictures.draw(chosen, styles, generator) * 255).round().to(torch.uint8))
    return torch.cat(chunks)


def as_input(pool: Tensor) -> Tensor:
    """Bytes to the -1..1 that the autoencoder sees."""
    return pool.float() / 127.5 - 1


def difference(drawn: Tensor, wanted: Tensor) -> Tensor:
    """The loss between pictures: mean absolute plus twice the mean squared difference."""
    return F.l1_loss(drawn, wanted) + 2 * F.mse_loss(drawn, wanted)


def train(minutes: float, seed: int) -> AutoencoderKL:
    """Trains encoder and decoder together and gives their latents unit deviation."""
    torch.manual_seed(seed)
    vae, pool = build().train(), draw_pool(POOL, seed)
    loop = TimedLoop(vae.parameters(), rate=1.5e-3, minutes=minutes)
    for step in loop.steps():
        wanted = as_input(pool[torch.randint(len(pool), (BATCH,))])
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(wanted).latent_dist
            drawn = vae.decode(latents.sample()).sample
        loss = difference(drawn.float(), wanted)
        loop.descend(loss + KL_WEIGHT * latents.kl().mean())
        loop.report(step, 50, loss=loss.item(), psnr=psnr(drawn.float(), wanted))
    vae.eval()
    normalise(vae, as_input(pool[:2000]))
    return vae


def harden_decoder(vae: AutoencoderKL, minutes: float, seed: int) -> None:
    """Trains the decoder alone, on noisy latents; the encoder's latents stay what they are."""
    torch.manual_seed(seed)
    pool = draw_pool(POOL, seed)
    latents = encode(vae, as_input(pool))
    decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    loop = TimedLoop(decoder, rate=1e-3, minutes=minutes)
    vae.decoder.train()
    for step in loop.steps():
        chosen = torch.randint(len(pool), (BATCH,))
        noise = torch.randn(BATCH, 4, 8, 8) * torch.rand(BATCH, 1, 1, 1) * NOISE
        wanted = as_input(pool[chosen])
        with torch.autocast("cpu", torch.bfloat16):
            drawn = vae.decode((latents[chosen] + noise) / SCALING).sample
        loss = difference(drawn.float(), wanted)
        loop.descend(loss)
        loop.report(step, 50, loss=loss.item(), psnr=psnr(drawn.float(), wanted))
    vae.eval()


@torch.no_grad()
def normalise(vae: AutoencoderKL, inputs: Tensor) -> None:
    """Bakes the latents' mean and deviation into the 1 x 1 convolutions around them.

    Afterwards ``SCALING * latents`` has mean 0 and deviation 1 in each channel, and what the
    autoencoder draws has not changed.
    """
    latents = encode(vae, inputs) / SCALING
    mean, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3)) * SCALING
    into, out = vae.quant_conv, vae.post_quant_conv
    into.bias[:4] -= mean
    into.weight[:4] /= scale[:, None, None, None]
    into.bias[:4] /= scale
    # a channel that hardly varies would come out as noise: a sample of the latents is their mean
    into.weight[4:], into.bias[4:] = 0, -20
    out.bias += (out.weight[..., 0, 0] * mean).sum(1)
    out.weight *= scale[None, :, None, None]


@torch.no_grad()
def encode(vae: AutoencoderKL, inputs: Tensor) -> Tensor:
    """Pictures in -1..1 [B, 3, 64, 64] to the latents that the UNet sees [B, 4, 8, 8]."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in inputs.split(100)]) * SCALING


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """The UNet's latents [B, 4, 8, 8] to pictures in 0..1 [B, 3, 64, 64]."""
    parts = [vae.decode(part).sample for part in (latents / SCALING).split(100)]
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def psnr(drawn: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1."""
    return (10 * torch.log10(4 / F.mse_loss(drawn.detach(), wanted))).item()


def save(vae: AutoencoderKL, folder: Path) -> None:
    """Writes the autoencoder in fp32; the export rounds it."""
    vae.save_pretrained(folder)


def load(folder: Path) -> AutoencoderKL:
    """Reads what :func:`save` wrote, or the exported folder, in single precision."""
    return AutoencoderKL.from_pretrained(folder, dtype=torch.float32).eval()
