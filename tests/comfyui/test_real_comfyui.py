"""The nodes in a real ComfyUI, on the bundled model in ComfyUI's own UNet, against diffusers with hnetkit.

``COMFYUI_PATH`` names its folder, ``COMFYUI_PYTHON`` the Python of an environment with its packages and hnetkit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

import hnetkit
from hnetkit import demo

pytestmark = pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs a ComfyUI: COMFYUI_PATH=FOLDER")

TOLERANCE = 2e-6
REPOSITORY = Path(__file__).resolve().parents[2]
LOADER, STACK, TAGS = "HnetkitHypernetworkLoader", "HnetkitHypernetworkStack", "HnetkitHypernetworksFromTags"


def ours(name: str, strength: float, **advanced: Any) -> list[Any]:
    return [LOADER, {"hypernetwork_name": f"{name}.pt", "strength": strength, **advanced}]


def theirs(name: str, strength: float) -> list[Any]:
    return ["HypernetworkLoader", {"hypernetwork_name": f"{name}.pt", "strength": strength}]


NETWORKS: dict[str, list[tuple[str, Any]]] = {
    "none": [],
    "one": [("dots", 0.8)],
    "three": [("dots", 0.7), ("paper", 0.5), ("outline", -0.4)],
    "blocks": [("dots", hnetkit.Strength(0.9, blocks={"": 0.0, "mid_block": 1.0, "up_blocks.1": 0.5}))],
    "shares": [("dots", hnetkit.Strength(self_k=0.1, self_v=0.4, cross_k=0.6, cross_v=2.4))],
    "theirs": [("outline", 0.6)],
    "chained": [("outline", 0.6), ("dots", 0.8), ("outline", -0.3)],
    "ours around": [("dots", 0.8), ("outline", 0.6), ("paper", 0.5)],
}
WORKFLOWS = {
    "none": [],
    "one": [ours("dots", 0.8)],
    "three": [ours("dots", 0.7), ours("paper", 0.5), ours("outline", -0.4)],
    "stack": [
        [
            STACK,
            {
                **{"hypernetwork_1": "dots.pt", "strength_1": 0.7, "hypernetwork_2": "None", "strength_2": 1.0},
                **{"hypernetwork_3": "paper.pt", "strength_3": 0.5, "hypernetwork_5": "outline.pt", "strength_5": -0.4},
            },
        ]
    ],
    "tags": [[TAGS, {"text": "a <hypernet:dots:0.7> b <hypernet:paper:0.5><hypernet:outline:-0.4> castle"}]],
    "blocks": [ours("dots", 0.9, blocks="mid, up_blocks.1=0.5")],
    "shares": [ours("dots", 0.8, k=0.5, v=2.0, self_attention=0.25, cross_attention=1.5)],
    "zero": [ours("dots", 0.0)],
    "theirs": [theirs("outline", 0.6)],
    "chained": [theirs("outline", 0.6), ours("dots", 0.8), theirs("outline", -0.3)],
    "ours around": [ours("dots", 0.8), theirs("outline", 0.6), ours("paper", 0.5)],
}
STEPS = 8
WINDOW = {"hypernetwork_name": "dots.pt", "start": 0.25, "end": 0.75}
ONCE = ["off"] * 2 + ["on"] * 4 + ["off"] * 2
SAMPLERS = {
    ("euler", "normal"): ONCE,
    ("euler_ancestral", "karras"): ONCE,
    ("ddim", "ddim_uniform"): ONCE,
    ("dpmpp_2m", "karras"): ONCE,
    ("lms", "exponential"): ONCE,
    # two calls in each step but the last: at its own noise and between it and the next step's
    ("dpm_2", "normal"): [own for own in ONCE[:-1] for _ in range(2)] + ["off"],
    ("dpmpp_sde", "karras"): [own for own in ONCE[:-1] for _ in range(2)] + ["off"],
    # at its own noise and at the next step's, where the next step begins too
    ("heun", "normal"): ["off", *[own for own in ONCE[1:] for _ in range(2)]],
}


class Run(NamedTuple):
    """What ComfyUI did."""

    tensors: dict[str, Tensor]
    results: dict[str, Any]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, unet: Any, step: tuple[Tensor, Tensor, Tensor]) -> Run:
    folder = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(demo.network_folder(), folder / "models" / "hypernetworks")
    save_file(unet.state_dict(), folder / "unet.safetensors")
    save_file(dict(zip(("latents", "timesteps", "text"), step, strict=True)), folder / "step.safetensors")
    window = {"inputs": WINDOW, "steps": STEPS, "samplers": list(SAMPLERS)}
    (folder / "job.json").write_text(json.dumps({"workflows": WORKFLOWS, "window": window}))
    comfyui = os.environ["COMFYUI_PATH"]
    script = REPOSITORY / "tests" / "support" / "real_comfyui.py"
    done = subprocess.run(
        [os.environ.get("COMFYUI_PYTHON", sys.executable), str(script), comfyui, str(folder)],
        env={**os.environ, "HNETKIT_HOME": str(folder / "home")},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Run(load_file(folder / "results.safetensors"), json.loads((folder / "results.json").read_text()))


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_comfyui_predicts_what_diffusers_does_with_hnetkit(
    real: Run, expected: Callable[..., Tensor], name: str
) -> None:
    wanted = expected(*((demo.network_folder() / f"{own}.pt", strength) for own, strength in NETWORKS[name]))
    assert error(real.tensors[name], wanted) <= TOLERANCE
    if name != "none":
        assert error(real.tensors[name], real.tensors["none"]) > 1e-3


@pytest.mark.parametrize("name", ["stack", "tags"])
def test_one_node_with_three_networks_is_three_nodes_in_a_row(real: Run, name: str) -> None:
    assert real.tensors[name].equal(real.tensors["three"])


def test_nodes_in_a_row_are_one_patch_and_keep_their_place_among_others(real: Run) -> None:
    assert real.results["patches"]["three"] == ["ModelPatch"] * 2
    assert real.results["patches"]["chained"] == ["hypernetwork_patch", "ModelPatch", "hypernetwork_patch"] * 2


def test_tags_are_taken_out_of_the_prompt(real: Run) -> None:
    assert real.results["rest"] == "a  b  castle"


def test_strength_zero_gives_the_bits_of_the_model_without_networks(real: Run) -> None:
    assert real.tensors["zero"].equal(real.tensors["none"])


@pytest.mark.parametrize(("sampler", "scheduler"), list(SAMPLERS))
def test_a_window_takes_the_steps_of_a_sampler_whose_middle_is_in_it(real: Run, sampler: str, scheduler: str) -> None:
    assert real.results["windows"][sampler] == SAMPLERS[sampler, scheduler]


def test_prompts_that_are_asked_for_one_by_one_in_a_step_have_each_their_own_text(real: Run) -> None:
    assert real.results["texts"] == {"calls": 6, "steps": 3, "alone": 6}


AMONG = [
    *("texts of unlike lengths", "areas", "fp8", "no attention at the first level"),
    *("a block of a model without attention at the first level", "ToMe", "HyperTile", "PAG", "more tokens"),
    *("a merge", "another dtype", "another dtype at the end"),
]


@pytest.mark.parametrize("name", AMONG)
def test_nodes_draw_what_networks_in_each_layer_do_among_other_nodes(real: Run, name: str) -> None:
    found = real.results["differences"][name]
    assert found["effect"] > 1e-3
    # weights that stay in fp32 where the model computes in fp16 are rounded less
    assert found["error"] <= found["effect"] * (0.1 if name == "another dtype at the end" else 1e-3)


def test_a_second_sampler_counts_its_own_steps(real: Run) -> None:
    assert real.results["second sampler"]


def test_copies_of_a_model_copy_no_weights(real: Run) -> None:
    assert real.results["memory"]["copied"] == 0


def test_comfyui_counts_the_networks_while_they_are_in_use(real: Run) -> None:
    memory = real.results["memory"]
    assert memory["counted"] == ["BaseModel", *["ModuleList"] * 3]
    assert memory["bytes"] == memory["held"] > 0


def test_nothing_of_a_network_is_left_when_it_is_not_used_any_more(real: Run) -> None:
    assert real.results["memory"]["watched"] == 8
    assert real.results["memory"]["left"] == 0


def test_both_of_comfyuis_apis_show_the_same_nodes(real: Run) -> None:
    apis = real.results["apis"]
    assert apis["mappings"] is None  # else ComfyUI would not look at the newer ones
    assert list(apis["newer"]) == [LOADER, STACK, TAGS]
    assert apis["older"] == apis["newer"]
    assert apis["older outputs"] == apis["newer outputs"]
    assert apis["categories"] == ["loaders/hnetkit"]


def test_the_nodes_of_the_older_api_do_the_same(real: Run) -> None:
    assert real.tensors["older api"].equal(real.tensors["one"])
