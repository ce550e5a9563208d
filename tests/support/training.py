"""Small things to train on: pictures with captions, recipes of few steps; and what a run left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hnetkit.distributed import Processes
from hnetkit.generate.loading.defaults import Defaults
from hnetkit.generate.model import Model
from hnetkit.train.build import Build
from hnetkit.train.data import read_data
from hnetkit.train.frozen import encode_inputs, frozen_unet
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.recipe import Recipe
from hnetkit.train.step import Objective, Stepper, make_optimizer
from hnetkit.train.trainer import Callbacks, TrainingResult, train
from hnetkit.train.unet_hooks import BatchStacks
from support.pipelines import tiny_sd

CAPTIONS = ("a red circle", "a blue star, small", "a green square", "a black dot", "a white line")


def make_pictures(folder: Path, count: int = 5, sizes: Sequence[tuple[int, int]] = ((16, 16),), **more: Any) -> Path:
    """Makes a folder of noise pictures with captions; sizes take turns. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        make_picture(folder / f"{number:02}.png", sizes[number % len(sizes)], number, **more)
        (folder / f"{number:02}.txt").write_text(CAPTIONS[number % len(CAPTIONS)])
    return folder


def make_picture(path: Path, size: tuple[int, int], seed: int = 0, *, mode: str = "RGB") -> None:
    """Writes one picture of noise."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(256, (size[1], size[0], len(mode)), generator=generator, dtype=torch.uint8)
    Image.fromarray(noise.numpy(), mode).save(path)


def alone(network: TrainedNetwork) -> BatchStacks:
    """Returns stacks of one network at full strength."""
    return BatchStacks({"ink": network})


def small_recipe(pictures: Path, **changes: Any) -> Recipe:
    """Returns a recipe of six steps with a checkpoint after every second one and nothing that watches."""
    plain = Recipe(
        name="ink",
        model="tiny",
        pictures=str(pictures),
        rates="1e-2",
        max_steps=6,
        save_every=2,
        preview_every=0,
        guarded=False,
        template="hypernetwork",
    )
    return replace(plain, **changes)


def run_training(
    recipe: Recipe, model: Model, folder: Path, said: list[str] | None = None, **how: Any
) -> TrainingResult:
    """Trains, and puts what was said into `said`."""
    callbacks = Callbacks(note=(said if said is not None else []).append)
    return train(recipe, model, read_data(recipe), folder, callbacks=callbacks, **how)


@contextmanager
def stepper(pictures: Path, build: Build, pipe: Any = None, **changes: Any) -> Iterator[Stepper]:
    """A stepper over a tiny model, with plain gradient descent."""
    recipe = small_recipe(pictures, optimizer="SGD", build=build, **changes)
    pipe = pipe or tiny_sd(least=True)
    model = Model(pipe, "tiny", Defaults(), Path("none"), (), pipe.scheduler.config)
    with frozen_unet(model, recipe) as unet:
        data = read_data(recipe)
        network = TrainedNetwork(build, [8, 24], seed=0)
        frozen = encode_inputs(model, data, lambda what, done, total: None)
        yield Stepper(
            unet=unet,
            network=network,
            stacks=BatchStacks({recipe.called: network}),
            optimizer=make_optimizer("SGD", network.parameters(), {}, 1.0),
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            data=data,
            latents=frozen.latents,
            beside_latents=frozen.beside_latents,
            prompts=frozen.prompts,
            objective=Objective(model.scheduler_config),
            processes=Processes(),
        )
