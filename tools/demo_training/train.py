"""Trains the whole demo from nothing: about an hour and a half on 2 CPU cores.

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
STYLES_MINUTES, STYLE_MINUTES, STACKS_MINUTES = 13.0, 5.0, 20.0
VAE_SEED, DECODER_SEED, UNET_SEED, STYLES_SEED, STYLE_SEED, STACKS_SEED = 1, 2, 3, 4, 5, 6


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
    """The hypernetworks on the exported model as users have it: together, each alone, and together at half the rate."""
    folder = out / "hypernetworks"
    folder.mkdir(exist_ok=True)
    autoencoder, frozen = vae.load(out / "model" / "vae"), unet.Model.load(out / "model")
    fresh = styles.untrained(STYLES_SEED)
    together = styles.train(frozen, autoencoder, fresh, STYLES_MINUTES / speed, STYLES_SEED)
    alone = {
        name: styles.train(
            frozen, autoencoder, styles.Trained({name: network}, together.steps), STYLE_MINUTES / speed, STYLE_SEED
        )
        for name, network in together.networks.items()
    }
    start = styles.Trained(
        {name: trained.networks[name] for name, trained in alone.items()}, max(t.steps for t in alone.values())
    )
    stacked = styles.train(frozen, autoencoder, start, STACKS_MINUTES / speed, STACKS_SEED, rate=1.5e-3)
    weights = out / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    for name, network in stacked.networks.items():
        styles.save(network, name, stacked.steps, weights, folder / f"{name}.pt")


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
