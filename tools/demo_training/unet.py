"""The latent-diffusion model: a text encoder and a UNet, trained together on captioned latents."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from demo_training import pictures, tokenizer
from demo_training.loop import Average, TimedLoop
from demo_training.vae import as_input, encode

TEXT_WIDTH = 80
BATCH = 32
COPIES = 40  # pictures drawn of each caption
UNCAPTIONED = 0.1
SNR_CAP = 5.0


@dataclass
class Model:
    """What turns captions and noise into latents."""

    unet: UNet2DConditionModel
    text: CLIPTextModel
    tokens: CLIPTokenizer

    def read(self, captions: Sequence[str]) -> Tensor:
        """Captions to the context that cross-attention sees, [B, 16, TEXT_WIDTH]."""
        batch = self.tokens(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        return self.text(batch.input_ids)[0]

    def save(self, folder: Path) -> None:
        """Writes unet, text encoder and tokenizer in fp32; the export rounds them."""
        self.unet.save_pretrained(folder / "unet")
        self.text.save_pretrained(folder / "text_encoder")
        tokenizer.save(self.tokens, folder / "tokenizer")

    @classmethod
    def load(cls, folder: Path) -> Model:
        """Reads what :meth:`save` wrote, or the exported folder, in single precision."""
        return cls(
            UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.float32).eval(),
            CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval(),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        )


def build() -> Model:
    """An untrained model with attention widths 64 and 96 (self) and 80 (cross)."""
    tokens = tokenizer.build()
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
    )
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    return Model(unet, CLIPTextModel(config), tokens)


def scheduler() -> EulerAncestralDiscreteScheduler:
    """Stable Diffusion's noise schedule, with the sampler that the demo was tuned for."""
    return EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    )


def random_captions(captions: Sequence[pictures.Caption], rng: random.Random) -> list[str]:
    """Captions as typed by different people, some left out for classifier-free guidance."""
    return ["" if rng.random() < UNCAPTIONED else c.loose_text(rng) for c in captions]


def noise_loss(model: Model, latents: Tensor, captions: Sequence[str]) -> Tensor:
    """Min-SNR weighted error of the predicted noise on latents [B, 4, 8, 8], a scalar."""
    kept = scheduler().alphas_cumprod
    steps = torch.randint(len(kept), (len(latents),))
    share = kept[steps][:, None, None, None]
    noise = torch.randn_like(latents)
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    guess = model.unet(noisy, steps, model.read(captions)).sample
    ratio = share / (1 - share)
    weight = ratio.clamp(max=SNR_CAP) / ratio
    return (weight * F.mse_loss(guess, noise, reduction="none")).mean()


def draw_latents(vae: AutoencoderKL, seed: int) -> tuple[list[pictures.Caption], Tensor]:
    """Plain pictures of every caption, as latents [360 * COPIES, 4, 8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    captions = pictures.all_captions() * COPIES
    chunks = []
    for start in range(0, len(captions), 360):
        part = captions[start : start + 360]
        drawn = pictures.draw(part, torch.zeros(len(part), 3), generator)
        chunks.append(encode(vae, as_input(drawn * 255)))
    return captions, torch.cat(chunks)


def train(vae: AutoencoderKL, minutes: float, seed: int, checkpoints: Path) -> Model:
    """Trains text encoder and UNet from scratch; returns their averaged weights."""
    torch.manual_seed(seed)
    rng, model = random.Random(seed), build()
    captions, latents = draw_latents(vae, seed)
    modules = (model.unet.train(), model.text.train())
    average = Average(modules, decay=0.999)
    unet, text = average.modules
    smooth = Model(unet, text, model.tokens)
    loop = TimedLoop([p for m in modules for p in m.parameters()], rate=1e-3, minutes=minutes)
    for step in loop.steps():
        chosen = torch.randint(len(captions), (BATCH,)).tolist()
        typed = random_captions([captions[i] for i in chosen], rng)
        loss = noise_loss(model, latents[chosen], typed)
        loop.descend(loss)
        average.update(step)
        loop.report(step, 100, loss=loss.item())
        if step % 1000 == 999:
            smooth.save(checkpoints)
    for module in average.modules:
        module.eval()
    return smooth
