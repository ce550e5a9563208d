"""The demo's hypernetworks: one per style, trained on top of the finished model.

First all three train in one loop. Each training picture is drawn with a random subset of the
styles at random strengths, and every network is applied to it at just that strength, in a random
order. So a network learns what its half strength means, and to leave room for the others. Then
each goes on alone, which makes its own pictures clean, and all together again, which cleans the stacks.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

import hnetkit
from demo_training import pictures
from demo_training.loop import Average, TimedLoop
from demo_training.unet import BATCH, TEXT_WIDTH, Model, noise_loss, random_captions
from demo_training.vae import as_input, encode

COPIES = 40  # pictures drawn of each caption, each with its own styles
WIDTHS = (64, 96, TEXT_WIDTH)
ACTIVATIONS = {"linear": None, "relu": nn.ReLU, "swish": nn.Hardswish}


@dataclass(frozen=True)
class Recipe:
    """How a style's networks are built, in A1111's terms."""

    structure: tuple[float, ...]
    activation: str
    layer_norm: bool = False


RECIPES = {
    "outline": Recipe((1, 2, 1), "relu"),
    "dots": Recipe((1, 1.5, 1), "swish", layer_norm=True),
    "paper": Recipe((1, 0.5, 1), "linear"),
}


class ResidualMLP(nn.Module):
    """What is added to a context: stages of linear, activation (not after the last), layer norm."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        widths = [int(width * share) for share in recipe.structure]
        activation = ACTIVATIONS[recipe.activation]
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(before, after))
            if activation is not None and i < len(widths) - 2:
                layers.append(activation())
            if recipe.layer_norm:
                layers.append(nn.LayerNorm(after))
        for layer in layers:
            if isinstance(layer, (nn.Linear, nn.LayerNorm)):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)
        self.linear = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """The addition for contexts [..., width], of the same shape."""
        return self.linear(x)


class Network(nn.Module):
    """One hypernetwork: a pair of MLPs, for keys and for values, at each context width."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.pairs = nn.ModuleDict(
            {str(width): nn.ModuleList([ResidualMLP(width, recipe), ResidualMLP(width, recipe)]) for width in WIDTHS}
        )

    def apply_to(self, x: Tensor, side: int, strength: Tensor | float) -> Tensor:
        """A context [B, T, width] for keys (side 0) or values (side 1), changed."""
        return x + strength * self.pairs[str(x.shape[-1])][side](x)


@dataclass(frozen=True)
class Trained:
    """Networks by their style's name, and how many steps they were trained for."""

    networks: dict[str, Network]
    steps: int


def untrained(seed: int) -> Trained:
    """All styles' networks before their first step."""
    torch.manual_seed(seed)
    return Trained({name: Network(recipe) for name, recipe in RECIPES.items()}, 0)


Stacked = Sequence[tuple[Network, Tensor | float]]


@contextmanager
def applied(unet: UNet2DConditionModel, stack: Stacked) -> Iterator[None]:
    """Changes the context of every attention layer while the block runs.

    Strengths are numbers, or tensors [B, 1, 1] with one for each picture of the batch.
    """
    handles = []
    for name, module in unet.named_modules():
        side = {"to_k": 0, "to_v": 1}.get(name.rpartition(".")[2])
        if side is None:
            continue

        def change(_: nn.Module, args: tuple[Tensor], side: int = side) -> tuple[Tensor]:
            (x,) = args
            for network, strength in stack:
                x = network.apply_to(x, side, strength)
            return (x,)

        handles.append(module.register_forward_pre_hook(change))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def random_strengths(count: int, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Strengths [count, 3]: of `names` mostly one is on, sometimes several, often at full; the others are 0."""
    order = torch.rand(count, len(names), generator=generator).argsort(1)
    several = torch.tensor([0.5, 0.35, 0.15]).multinomial(count, True, generator=generator)
    full = torch.rand(count, len(names), generator=generator) < 0.4
    part = 0.2 + 0.8 * torch.rand(count, len(names), generator=generator)
    strengths = torch.zeros(count, len(pictures.STYLES))
    columns = [pictures.STYLES.index(name) for name in names]
    strengths[:, columns] = (order <= several[:, None]) * torch.where(full, torch.ones(()), part)
    return strengths


def draw_latents(vae: AutoencoderKL, names: Sequence[str], seed: int) -> tuple[list[pictures.Caption], Tensor, Tensor]:
    """Pictures in some of the styles: captions, strengths [N, 3] and latents [N, 4, 8, 8]."""
    generator = torch.Generator().manual_seed(seed)
    captions = pictures.all_captions() * COPIES
    strengths = random_strengths(len(captions), names, generator)
    chunks = []
    for start in range(0, len(captions), 360):
        part = slice(start, start + 360)
        drawn = pictures.draw(captions[part], strengths[part], generator)
        chunks.append(encode(vae, as_input(drawn * 255)))
    return captions, strengths, torch.cat(chunks)


def train(
    model: Model, vae: AutoencoderKL, start: Trained, minutes: float, seed: int, *, rate: float = 3e-3
) -> Trained:
    """Trains networks together on a frozen model, on from `start`: each leaves room for the others of it."""
    torch.manual_seed(seed)
    rng, names = random.Random(seed), list(start.networks)
    captions, strengths, latents = draw_latents(vae, names, seed)
    networks = [network.requires_grad_(True) for network in start.networks.values()]
    model.unet.eval().requires_grad_(False)
    model.text.eval().requires_grad_(False)
    average = Average(networks, decay=0.998)
    loop = TimedLoop([p for n in networks for p in n.parameters()], rate=rate, minutes=minutes)
    order = list(range(len(networks)))
    step = 0
    for step in loop.steps():
        chosen = torch.randint(len(captions), (BATCH,)).tolist()
        typed = random_captions([captions[i] for i in chosen], rng)
        rng.shuffle(order)
        columns = [pictures.STYLES.index(names[i]) for i in order]
        stack = [(networks[i], strengths[chosen, column, None, None]) for i, column in zip(order, columns, strict=True)]
        with applied(model.unet, stack):
            loss = noise_loss(model, latents[chosen], typed)
            loop.descend(loss)
        average.update(step)
        loop.report(step, 100, loss=loss.item())
    return Trained(dict(zip(names, average.modules, strict=True)), start.steps + step + 1)


def save(network: Network, name: str, step: int, unet_file: Path, path: Path) -> None:
    """Writes a network as an A1111 hypernetwork, in half precision."""
    recipe = network.recipe
    content: dict[int | str, object] = {
        int(width): tuple(OrderedDict((key, value.half()) for key, value in mlp.state_dict().items()) for mlp in pair)
        for width, pair in network.pairs.items()
    }
    content |= {
        "step": step,
        "name": name,
        "layer_structure": list(recipe.structure),
        "activation_func": recipe.activation,
        "is_layer_norm": recipe.layer_norm,
        "weight_initialization": "Normal",
        "use_dropout": False,
        "sd_checkpoint": sha256(unet_file.read_bytes()).hexdigest()[:10],
        "sd_checkpoint_name": "hnetkit-demo",
        "activate_output": False,
        "last_layer_dropout": False,
        "dropout_structure": [0.0] * len(recipe.structure),
        "optional_info": "part of hnetkit's demo",
    }
    with TemporaryDirectory() as folder:
        torch.save(content, Path(folder) / "saved.pt")
        hnetkit.save(hnetkit.load(Path(folder) / "saved.pt"), path, overwrite=True)


def load(path: Path) -> Network:
    """Reads what :func:`save` wrote, in single precision."""
    content = torch.load(path, weights_only=True)
    recipe = Recipe(tuple(content["layer_structure"]), content["activation_func"], content["is_layer_norm"])
    network = Network(recipe)
    for width, pair in network.pairs.items():
        for mlp, state in zip(pair, content[int(width)], strict=True):
            mlp.load_state_dict(state)
    return network.eval().requires_grad_(False)
