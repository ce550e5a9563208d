"""Training at Stable Diffusion 1.5's real size on the CPU against a plain loop: steps per second, and peak memory.

python benchmarks/training.py [--dtype bf16] [--gradient-checkpointing]

Weights are random; the network is [1, 2, 1] on widths 320, 640, 768 and 1280; a batch is one picture of 256 px. The
plain loop trains the same MLPs on the same samples with nothing cached: every step encodes its picture and its prompt,
and every attention layer applies the MLPs anew, in torch's own modules. hnetkit's side is `hnetkit.train.trainer.train`
as it is. Speed is paired: after every step of hnetkit the plain loop makes the same one. Memory is that of a process
of its own for each, twice: with the whole model read before training begins, as programs have it that do not map their
files (this is what counts), and with the model's files mapped, where weights that a loop never looks at take none: the
plain loop looks at few rows of the table of tokens, hnetkit once at all of its 151 MB, to know the text encoder again.
That both train the same is shown by their losses, step by step.

All of it is in fp32. In bf16 (autocast in the plain loop), a step takes minutes on processors without bf16
instructions.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from machine import conditions, write
from PIL import Image
from real_size import DTYPES, WIDTHS, build_model, peak_of, plain_a1111, twin

from hnetkit.generate.model import load_model
from hnetkit.train.batching import seed_for
from hnetkit.train.build import Build
from hnetkit.train.data import TrainingData, read_data
from hnetkit.train.logs import CSV_NAME
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.recipe import Recipe
from hnetkit.train.trainer import Callbacks, train

SIDE, PICTURES = 256, 4
RATE = 1e-4
GOALS = {"speed": 1.3, "memory": 1.0, "losses_differ": 1e-2}
PRECISIONS: dict[str, Literal["no", "bf16"]] = {"fp32": "no", "bf16": "bf16"}
SIDES: tuple[Literal["k", "v"], ...] = ("k", "v")


class PlainLoop:
    """Trains a network's MLPs on a run's samples, in plain torch, with nothing cached.

    Attributes:
        losses: of the steps so far.
        encoding: seconds that each step took for its picture and its prompt.
    """

    def __init__(self, pipe: Any, unet: Any, data: TrainingData) -> None:
        recipe = data.recipe
        self.pipe, self.data, self.unet = pipe, data, unet.requires_grad_(False).eval()
        for encoder in (pipe.vae, pipe.text_encoder):
            encoder.requires_grad_(False).eval()
        network = TrainedNetwork(recipe.build, WIDTHS, seed=recipe.seed)
        modules = {width: tuple(copy.deepcopy(network.mlp(width, side).linear) for side in SIDES) for width in WIDTHS}
        self.unet.set_attn_processor(plain_a1111.PlainProcessor([(modules, 1.0)]))
        if recipe.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        parameters = [parameter for pair in modules.values() for mlp in pair for parameter in mlp.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=RATE)
        self.schedule = DDPMScheduler.from_config(pipe.scheduler.config)
        self.losses: list[float] = []
        self.encoding: list[float] = []

    def step(self) -> None:
        """Makes the next step."""
        ((sample,),) = self.data.step(len(self.losses))
        generator = torch.Generator().manual_seed(seed_for(self.data.recipe.seed, "sample", sample.index))
        times = torch.randint(self.schedule.config.num_train_timesteps, (1,), generator=generator)
        noise = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=generator)
        started = time.perf_counter()
        latents, text = self.encoded(self.data.images[sample.image].open(), sample.prompt)
        self.encoding.append(time.perf_counter() - started)
        noisy = self.schedule.add_noise(latents, noise, times).to(self.unet.dtype)
        is_fp32 = self.unet.dtype == torch.float32
        with nullcontext() if is_fp32 else torch.autocast("cpu", self.unet.dtype):
            predicted = self.unet(noisy, times, text, return_dict=False)[0]
            loss = F.mse_loss(predicted.float(), noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    @torch.no_grad()
    def encoded(self, picture: Image.Image, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns latents ``[1, 4, h, w]`` in fp32, and the text ``[1, 77, 768]`` in the UNet's dtype."""
        vae, tokenizer = self.pipe.vae, self.pipe.tokenizer
        pixels = self.pipe.image_processor.preprocess(picture.convert("RGB")).to(vae.dtype)
        latents = vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor
        tokens = tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return latents, self.pipe.text_encoder(tokens)[0].to(self.unet.dtype)


def make_pictures(folder: Path) -> Path:
    """Writes pictures of noise with captions."""
    folder.mkdir()
    for number in range(PICTURES):
        noise = torch.randint(256, (SIDE, SIDE, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(noise.to(torch.uint8).numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"house number {number}")
    return folder


def recipe_of(arguments: argparse.Namespace, folder: Path, steps: int) -> Recipe:
    """Returns what both train: nothing is watched or drawn in between."""
    return Recipe(
        name="ink",
        model=str(folder / "model"),
        pictures=str(folder / "pictures"),
        build=Build(activation=arguments.activation),
        rates=f"{RATE:g}",
        max_steps=steps,
        precision=PRECISIONS[arguments.dtype],
        gradient_checkpointing=arguments.gradient_checkpointing,
        latents="deterministic",
        save_every=0,
        preview_every=0,
        guarded=False,
    )


def train_alone(who: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Makes a few steps with one of the two, in this process, which does nothing else."""
    recipe = recipe_of(arguments, folder, arguments.memory_steps)
    model, data = load_model(recipe.model, device="cpu", dtype=arguments.dtype), read_data(recipe)
    if not arguments.mapped:
        for part in (model.pipe.unet, model.pipe.vae, model.pipe.text_encoder):
            for parameter in part.parameters():
                parameter.sum()  # reads it
    if who == "hnetkit":
        train(recipe, model, data, folder / "alone", start_mode="restart")
        return
    loop = PlainLoop(model.pipe, model.pipe.unet, data)
    for _ in range(arguments.memory_steps):
        loop.step()


def memory(given: list[str], folder: Path) -> dict[str, Any]:
    """Peak resident memory of a process that trains with one of the two."""
    result = {}
    for kind, options in (("whole_model_read", []), ("model_mapped", ["--mapped"])):
        command = [sys.executable, __file__, *given, *options, "--folder", str(folder), "--alone"]
        plain, hnetkit = (peak_of([*command, who], dict(os.environ)) for who in ("plain", "hnetkit"))
        ratio = hnetkit / plain
        result[kind] = {
            "plain_mb": plain / 1e6,
            "hnetkit_mb": hnetkit / 1e6,
            "ratio": ratio,
            "met": ratio <= GOALS["memory"],
        }
    return result


def speed(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Steps per second of both, in turn; the first of each warms up."""
    recipe = recipe_of(arguments, folder, arguments.rounds + 1)
    model, data = load_model(recipe.model, device="cpu", dtype=arguments.dtype), read_data(recipe)
    plain = PlainLoop(model.pipe, twin(model.pipe.unet), data)
    times: dict[str, list[float]] = {"plain": [], "hnetkit": []}
    since = time.perf_counter()

    def made(report: object) -> None:
        nonlocal since
        times["hnetkit"].append(time.perf_counter() - since)
        since = time.perf_counter()
        plain.step()
        times["plain"].append(time.perf_counter() - since)
        since = time.perf_counter()

    train(recipe, model, data, folder / "run", callbacks=Callbacks(step=made))
    plain_s, hnetkit_s = (statistics.median(times[who][1:]) for who in ("plain", "hnetkit"))
    encoding_s = statistics.median(plain.encoding[1:])
    differ = losses_differ(plain.losses, folder / "run" / CSV_NAME)
    return {
        "rounds": arguments.rounds,
        "plain_step_s": plain_s,
        "of_it_encoding_s": encoding_s,
        "hnetkit_step_s": hnetkit_s,
        "plain_steps_per_s": 1 / plain_s,
        "hnetkit_steps_per_s": 1 / hnetkit_s,
        "ratio": plain_s / hnetkit_s,
        "ratio_of_a_plain_loop_that_encodes_ahead": (plain_s - encoding_s) / hnetkit_s,
        "losses_differ": differ,
        "met": plain_s / hnetkit_s >= GOALS["speed"] and differ <= GOALS["losses_differ"],
    }


def losses_differ(plain: list[float], log: Path) -> float:
    """Returns by what part of itself a step's loss differs between the two, at most."""
    with log.open() as lines:
        ours = [float(row["loss"]) for row in csv.DictReader(lines)]
    return max(abs(mine - other) / other for mine, other in zip(ours, plain, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--activation", help="of the MLPs; none without it, as `hnetkit train` and A1111 have it")
    parser.add_argument("--rounds", type=int, default=9, help="paired steps after a first that warms up")
    parser.add_argument("--memory-steps", type=int, default=3, help="of the processes whose memory is measured")
    parser.add_argument("--part", choices=["memory", "speed"], help="measure this alone; nothing is written")
    parser.add_argument("--alone", choices=["plain", "hnetkit"], help=argparse.SUPPRESS)
    parser.add_argument("--mapped", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        train_alone(arguments.alone, arguments, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_model(folder / "model", DTYPES[arguments.dtype])
        make_pictures(folder / "pictures")
        parts = {"memory": lambda: memory(sys.argv[1:], folder), "speed": lambda: speed(arguments, folder)}
        if arguments.part:
            print(json.dumps(parts[arguments.part](), indent=2))
            return
        measured = {part: measure() for part, measure in parts.items()}
    options = ("dtype", "gradient_checkpointing", "activation", "memory_steps")
    setting = {option: getattr(arguments, option) for option in options}
    result = {**setting, "pixels": SIDE, "goals": GOALS, **measured}
    write(name_of(arguments), {**result, **conditions("torch", "diffusers"), "threads": torch.get_num_threads()})


def name_of(arguments: argparse.Namespace) -> str:
    """Returns the name of the result: other options than the usual have one of their own."""
    parts = [None if arguments.dtype == "fp32" else arguments.dtype, arguments.activation]
    parts.append("checkpointing" if arguments.gradient_checkpointing else None)
    return "_".join(["training", *(part for part in parts if part)])


if __name__ == "__main__":
    main()
