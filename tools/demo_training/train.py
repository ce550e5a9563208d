"""Trains the whole demo from nothing: about an hour on 2 CPU cores.

    python -m demo_training.train --work /tmp/demo --out hnetkit/demo

Each stage's result is kept under ``--work``; a stage whose result is there is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from demo_training import export, styles, unet, vae

VAE_MINUTES, DECODER_MINUTES, UNET_MINUTES, STYLES_MINUTES, STYLE_MINUTES = 11.0, 5.0, 26.0, 13.0, 5.0
VAE_SEED, DECODER_SEED, UNET_SEED, STYLES_SEED, STYLE_SEED = 1, 2, 3, 4, 5


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


def train_styles(out: Path, speed: float) -> None:
    """The hypernetworks, together and then each alone, on the exported model as users have it."""
    folder = out / "hypernetworks"
    folder.mkdir(exist_ok=True)
    autoencoder, frozen = vae.load(out / "model" / "vae"), unet.Model.load(out / "model")
    fresh = styles.untrained(STYLES_SEED)
    together = styles.train(frozen, autoencoder, fresh, STYLES_MINUTES / speed, STYLES_SEED)
    weights = out / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    for name, network in together.networks.items():
        start = styles.Trained({name: network}, together.steps)
        alone = styles.train(frozen, autoencoder, start, STYLE_MINUTES / speed, STYLE_SEED)
        styles.save(alone.networks[name], name, alone.steps, weights, folder / f"{name}.pt")


def main() -> None:
    """Runs the stages in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="keeps what each stage made")
    parser.add_argument("--out", type=Path, required=True, help="gets model/ and hypernetworks/")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--speed", type=float, default=1.0, help="divides all training times")
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
    train_styles(options.out, speed)


if __name__ == "__main__":
    main()
