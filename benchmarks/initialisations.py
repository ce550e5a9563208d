"""What each weight initialisation does to pictures before the first step, on the bundled demo model, on the CPU.

python benchmarks/initialisations.py

The same pictures are drawn without a network and with a new one of every initialisation, activation and layer norm.
With zero output they must be the same to the last bit, or the build must be refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from machine import RESULTS, conditions, write
from torch import Tensor

from hnetkit.demo import model_folder
from hnetkit.errors import UsageError
from hnetkit.generate.model import load_model
from hnetkit.runtime.layers import find_layers
from hnetkit.train.build import INITIALIZATIONS, Build
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.unet_hooks import BatchStacks

ACTIVATIONS = (
    "linear",
    "relu",
    "leakyrelu",
    "elu",
    "swish",
    "silu",
    "gelu",
    "mish",
    "selu",
    "tanh",
    "softsign",
    "sigmoid",
)
PROMPTS = ("a red circle", "a large blue star", "a small green square on the left", "a purple triangle at the top")
STEPS, SEED = 10, 1
NAME = "initialisations"


def draw(pipe: Any, build: Build | None = None) -> Tensor:
    """Returns the pictures ``[4, 64, 64, 3]``, 0 to 1, with a new network of `build` on the UNet, or without one."""
    noise = [torch.Generator().manual_seed(number) for number in range(len(PROMPTS))]
    call = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "generator": noise, "output_type": "pt"}
    with torch.no_grad():
        if build is None:
            return pipe(list(PROMPTS), **call).images
        network = TrainedNetwork(build, {layer.width for layer in find_layers(pipe.unet)}, seed=SEED).eval()
        with BatchStacks({NAME: network}).on(pipe.unet):
            return pipe(list(PROMPTS), **call).images


def builds(**more: Any) -> Iterator[dict[str, Any]]:
    """Yields the settings of every build but for `more`, which all of them share."""
    for activation, norm, name in itertools.product(ACTIVATIONS, (False, True), INITIALIZATIONS):
        yield {"activation": activation, "layer_norm": norm, "initialisation": name, **more}


def damage(pipe: Any, plain: Tensor) -> list[dict[str, Any]]:
    """Returns the mean absolute change of a pixel, 0 to 255, for every build as A1111 starts it."""
    rows = []
    for settings in builds():
        changed = (draw(pipe, Build(**settings, zero_output=False)) - plain).abs().mean().item() * 255
        rows.append({**settings, "change": round(changed, 3)})
    return rows


def zero_outputs(pipe: Any, plain: Tensor) -> dict[str, Any]:
    """Returns how many builds with zero output left every bit as it was, and which were refused."""
    same, changed, refused = 0, [], {}
    for activate_output in (False, True):
        for settings in builds(activate_output=activate_output):
            try:
                build = Build(**settings)
            except UsageError as error:
                refused[settings["activation"]] = str(error)
                continue
            if torch.equal(draw(pipe, build), plain):
                same += 1
            else:
                changed.append(settings)
    return {"same_to_the_last_bit": same, "changed": changed, "refused_with_an_activated_output": refused}


def table() -> str:
    """Returns the result as a table in Markdown: a row for each activation."""
    rows = json.loads((RESULTS / f"{NAME}.json").read_text())["change"]
    found = {(row["activation"], row["layer_norm"], row["initialisation"]): row["change"] for row in rows}
    columns = list(itertools.product((False, True), INITIALIZATIONS))
    lines = [["activation", *(f"{INITIALIZATIONS[name]}{', norm' * norm}" for norm, name in columns)]]
    lines.append(["---", *["---:"] * len(columns)])
    for activation in ACTIVATIONS:
        lines.append([activation, *(f"{found[activation, norm, name]:.2f}" for norm, name in columns)])
    return "\n".join(_line(cells) for cells in lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    torch.set_num_threads(1)
    pipe = load_model(model_folder(), device="cpu", dtype="fp32").pipe
    pipe.set_progress_bar_config(disable=True)
    plain = draw(pipe)
    result = {
        "conditions": conditions("torch", "diffusers"),
        "pictures": {"prompts": PROMPTS, "steps": STEPS, "guidance": 2.0, "size": list(plain.shape[1:3])},
        "zero_output": zero_outputs(pipe, plain),
        "change": damage(pipe, plain),
    }
    write(NAME, result)


if __name__ == "__main__":
    main()
