"""Small pictures and grids of a tiny pipeline, for tests of `hnetkit.generate`.

`one` draws a picture as bytes, `drawn` a grid, and `load_all` loads networks as a prompt would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hnetkit.formats import load
from hnetkit.generate import draw_grid
from hnetkit.generate.drawing import draw
from hnetkit.generate.grids.run import DrawnGrid
from hnetkit.generate.model import Model
from hnetkit.generate.prompt_networks import ResolvedNetwork, attach_network
from hnetkit.generate.request import Request

REQUEST = Request("a red circle", 5, steps=3, cfg_scale=7.0, width=16, height=16, sampler="Euler a")


def one(model: Model, request: Request = REQUEST) -> bytes:
    return next(draw(model, request)).image.tobytes()


def load_all(model: Model, folder: Path, *names: str) -> list[str]:
    """Returns what the networks of these files are called on the pipeline."""
    loaded: list[str] = []
    for name in names:
        loaded.append(attach_network(model.pipe, ResolvedNetwork(name, load(folder / f"{name}.pt")), loaded))
    return loaded


SMALL: dict[str, Any] = {"steps": 2, "width": 16, "height": 16}


def drawn(model: Model, axes: Any = (), **options: Any) -> DrawnGrid:
    """A small grid of a circle, in the folder that the test is in."""
    grid = draw_grid(model, axes, **{"prompt": "a circle", "seed": 7, **SMALL, **options})
    assert grid is not None
    return grid
