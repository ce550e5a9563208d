"""Trains the whole demo from nothing: about two hours on 2 CPU cores.

    python -m demo_training.train --work /tmp/demo --out hnetkit/demo

Each stage's result is kept under ``--work``; a stage whose result is there is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from demo_training import export, styles, unet, vae

VAE_MINUTES, DECODER_MINUTES, UNET_MINUTES = 11.0, 5.0, 26.0
VAE_SEED, DECODER_SEED, UNET_SEED, STYLES_SEED = 1, 2, 3, 4


def once(done: Path, stage: Callable[[], None]) -> None:
    """Runs a stage unless the last file that it writes is there."""
    if done.exists():
        print(f"kept: {done.parent}", flush=True)
    else:
        stage()


def train_vae(parts: Path, first: Path, speed: float) -> None:
    """Encoder and decoder together, then the decoder alone."""
    once(
        first / "diffusion_pytorch_model.safetensors",
        lambda: vae.save(vae.train(VAE_MINUTES / speed, VAE_SEED), first),
    )
    model = vae.load(first)
    vae.harden_decoder(model, DECODER_MINUTES / speed, DECODER_SEED)
    vae.save(model, parts / "vae")


def train_unet(parts: Path, checkpoints: Path, speed: float) -> None:
    """Text encoder and UNet, on the finished autoencoder's latents."""
    autoencoder = vae.load(parts / "vae")
    unet.train(autoencoder, UNET_MINUTES / speed, UNET_SEED, checkpoints).save(parts)


def train_styles(out: Path, work: Path) -> None:
    """The hypernetworks, on the exported model as users have it."""
    folder = out / "hypernetworks"
    folder.mkdir(exist_ok=True)
    for style in styles.BUILDS:
        styles.train_style(style, out / "model", work, folder, STYLES_SEED)


def main() -> None:
    """Runs the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="keeps what each stage made")
    parser.add_argument("--out", type=Path, required=True, help="gets model/ and hypernetworks/")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speed", type=float, default=1.0, help="divides the times of the model's own training")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    parts, speed = options.work / "parts", options.speed
    once(
        parts / "vae" / "diffusion_pytorch_model.safetensors",
        lambda: train_vae(parts, options.work / "vae_first", speed),
    )
    once(
        parts / "tokenizer" / "merges.txt",
        lambda: train_unet(parts, options.work / "unet_partial", speed),
    )
    export.write_pipeline(parts, options.out / "model")
    train_styles(options.out, options.work / "styles")


if __name__ == "__main__":
    main()
