"""Steps as CUDA graphs, with a stand-in for CUDA: the same bits as without, and what no graph is for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.stand_in_graphs import StandInGraphs
from support.training import make_pictures, run_training, small_recipe, stepper

import hnetkit
from hnetkit.generate.model import Model
from hnetkit.runtime.cuda_graphs import CudaGraphs
from hnetkit.train import captured_step
from hnetkit.train.build import Build
from hnetkit.train.captured_step import StepGraphs, obstacle_of_run
from hnetkit.train.step import Stepper, make_optimizer

BUILD = Build(structure=(1, 2, 1), activation="relu", zero_output=False, std=0.6)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_captured() -> Iterator[None]:
    StandInGraphs.begin()
    yield
    StandInGraphs.begin()


def by_graphs(steps: Stepper, note: Callable[[str], None] = lambda said: None) -> StepGraphs:
    graphs = StepGraphs(StandInGraphs(CPU), steps.add_gradients, list(steps.network.parameters()), note)
    steps.graphs = graphs
    return graphs


def made(steps: Stepper, numbers: Sequence[int]) -> list[Any]:
    """What steps were like, and the weights after them."""
    results: list[Any] = [steps.make_step(number, 1e-2, None) for number in numbers]
    return [*results, torch.cat([parameter.detach().flatten() for parameter in steps.network.parameters()])]


def require_same(theirs: list[Any], ours: list[Any]) -> None:
    assert repr(ours[:-1]) == repr(theirs[:-1]), "to the last digit, and NaN where it is NaN"
    assert torch.equal(ours[-1], theirs[-1])


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2, "accumulation": 2},
        {"precision": "fp16"},
        {"precision": "bf16", "min_snr": 5.0, "latents": "random"},
        {"alpha_as_weight": True},
    ],
    ids=["accumulation", "fp16", "bf16", "weights"],
)
def test_a_run_by_graphs_has_the_bits_of_one_without(changes: dict[str, Any], tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 6, sizes=((16, 16), (24, 16)), mode="RGBA")
    ends = []
    for captured in (False, True):
        with stepper(pictures, BUILD, **changes) as steps:
            steps.optimizer = make_optimizer("AdamW", steps.network.parameters(), {}, 1.0)
            steps.scaler = torch.amp.GradScaler("cpu", enabled=changes.get("precision") == "fp16", init_scale=2.0**12)
            graphs = by_graphs(steps) if captured else None
            ends.append(made(steps, range(6)))
    require_same(*ends)
    assert graphs is not None
    assert StandInGraphs.recorded == graphs.captures == len(StandInGraphs.living) == 2, "one for each size"
    assert StandInGraphs.warmed == 2
    assert StandInGraphs.replayed > 2
    assert graphs.memory > 0
    graphs.release()
    assert StandInGraphs.living == []


def test_a_scale_that_is_too_large_skips_the_step_and_shrinks_for_the_same_graph(tmp_path: Path) -> None:
    ends = []
    for captured in (False, True):
        with stepper(make_pictures(tmp_path / str(captured), 2), BUILD, precision="fp16") as steps:
            steps.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2)
            if captured:
                by_graphs(steps)
            ends.append(made(steps, range(40)))
    skipped = [result.is_skipped for result in ends[1][:-1]]
    assert skipped[:3] == [True] * 3
    assert not all(skipped)
    require_same(*ends)
    assert StandInGraphs.recorded == 1


def test_batches_whose_samples_have_unlike_networks_run_as_they_come(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path, 4)
    for number in range(2):
        (folder / f"{number:02}.txt").write_text("a house <hypernet:tiny:0.5>")
    ends = []
    for captured in (False, True):
        with stepper(folder, BUILD, name="tiny", batch_size=1) as steps:
            if captured:
                by_graphs(steps)
            ends.append(made(steps, range(8)))
    require_same(*ends)
    assert (StandInGraphs.warmed, StandInGraphs.replayed) == (1, 3), "half of the samples"


def test_a_capture_that_fails_is_said_once_and_nothing_is_lost(tmp_path: Path) -> None:
    said: list[str] = []
    ends = []
    for captured in (False, True):
        with stepper(make_pictures(tmp_path / str(captured), 2), BUILD) as steps:
            if captured:
                by_graphs(steps, said.append)
                StandInGraphs.fault = torch.cuda.OutOfMemoryError("no room")
            ends.append(made(steps, range(5)))
    require_same(*ends)
    assert said == ["Steps run without CUDA graphs: there is not enough memory for its graph."]
    assert (StandInGraphs.warmed, StandInGraphs.recorded) == (1, 0)


def test_of_more_shapes_than_are_kept_the_oldest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_step, "SHAPES", 1)
    pictures = make_pictures(tmp_path, 2, sizes=((16, 16), (24, 16)))
    with stepper(pictures, BUILD, accumulation=2) as steps:
        by_graphs(steps)
        made(steps, range(4))
    assert len(StandInGraphs.living) <= 1


@pytest.mark.parametrize(
    ("changes", "build", "says"),
    [
        ({}, Build(structure=(1, 2, 1), dropout=(0, 0.3, 0)), "random numbers"),
        ({}, Build(structure=(1, 2, 1), activation="rrelu"), "random numbers"),
        ({"gradient_checkpointing": True}, BUILD, "gradient checkpointing"),
        ({}, BUILD, "it is on cpu"),
    ],
    ids=["dropout", "rrelu", "checkpointing", "cpu"],
)
def test_what_cannot_be_captured_is_named(changes: dict[str, Any], build: Build, says: str, tmp_path: Path) -> None:
    recipe = small_recipe(make_pictures(tmp_path, 1), build=build, **changes)
    assert says in str(obstacle_of_run(recipe, build, CPU, CudaGraphs))
    assert obstacle_of_run(recipe, BUILD, CPU, StandInGraphs) is None or changes


def test_on_a_cpu_a_run_that_asks_for_graphs_says_so_and_is_the_same(model: Model, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    plain = run_training(small_recipe(pictures), model, tmp_path / "plain")
    said: list[str] = []
    captured = run_training(small_recipe(pictures, capture=True), model, tmp_path / "captured", said)
    assert said.count("Steps run without CUDA graphs: it is on cpu.") == 1
    hashes = [hnetkit.load(result.files[0]).content_hash for result in (plain, captured)]
    assert hashes[0] == hashes[1]
