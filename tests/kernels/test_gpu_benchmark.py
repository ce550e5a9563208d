"""`benchmarks/gpu.py` goes through at toy sizes and sees what is wrong, so that time on a GPU is spent on the GPU."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

from support.stand_in_graphs import StandInGraphs

from hnetkit.kernels import eager

REPOSITORY = Path(__file__).resolve().parents[2]
BUILDS = {"[1,2,1] swish", "[1,2,2,1] mish, layer norm", "[1,2,1] linear"}
CONDITIONS = {"gpu": "a GPU", "driver": "1", "torch": "2", "triton": "3", "commit": "abc123"}


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a module of the benchmarks' folder."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module


@pytest.fixture
def bare_checkout(tmp_path: Path) -> Path:
    """A copy of what the benchmark needs, without git."""
    for folder in ("benchmarks", "hnetkit", "kernels", "registry"):
        ignored = shutil.ignore_patterns("*.safetensors", "*.pt")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignored)
    return tmp_path


PATHS = {
    "isolated": {"as A1111", "eager", "grouped", "fused", "specialized"},
    "compile": {"as A1111", "torch.compile", "fused"},
    "tiles": {"(16, 64, 64, 4, 2, True, 0)", "(32, 64, 64, 4, 2, False, 0)", "(16, 32, 4, 2)"},
    "candidates": {"fused", "specialized", "grouped"},
    "default": {"no networks", "as A1111", "hnetkit"},
    "unet": {"no networks", "as A1111", "hnetkit"},
    "train": {"plain loop", "hnetkit", "hnetkit, captured"},
}
REHEARSE = """
import runpy, sys
sys.path.append(sys.argv[1])
from support.quick_interpreter import quicken
quicken()
sys.path.remove(sys.argv[1])
for part in sys.argv[2:]:
    sys.argv = ["gpu.py", "--part", part, "--rehearse"]
    runpy.run_path("benchmarks/gpu.py", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("names", "missing"),
    [(("isolated", "compile", "tiles", "candidates"), ["diffusers"]), (("default", "unet", "train"), [])],
    ids=["without diffusers", "UNets"],
)
def test_a_rehearsal_in_a_bare_checkout_finds_every_path_right_and_writes_nothing(
    bare_checkout: Path, tmp_path_factory: pytest.TempPathFactory, names: tuple[str, ...], missing: list[str]
) -> None:
    absent = tmp_path_factory.mktemp("absent")
    for package in ("blake3", "platformdirs", "sqlite_utils", *missing):
        (absent / f"{package}.py").write_text("raise ImportError('a bare machine does not have it')")
    environment = {**os.environ, "PYTHONPATH": str(absent), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    before = sorted(bare_checkout.rglob("*"))
    command = [sys.executable, "-P", "-c", REHEARSE, str(REPOSITORY / "tests"), *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=bare_checkout, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = [row for row in csv.reader(done.stdout.splitlines()) if row]
    for name in names:
        rows = [row for row in printed if row[0] == name]
        assert {row[5] for row in rows} == PATHS[name]
        assert {row[2] for row in rows} >= (BUILDS if name in ("isolated", "compile") else {"[1,2,1] swish"})
        assert [row for row in rows if row[-1]] == [], "a path computes something wrong"
        assert [row for row in rows if any(row[6:11])] == [], "the interpreter was timed"
        if name == "candidates":
            tiles = {(row[4], row[5]): row[-2] for row in rows}
            assert tiles.pop(("candidates", "grouped")) == "16 x 32 + 8, 16 x 32 + 8"
            assert set(tiles.values()) == {""}
    assert sorted(bare_checkout.rglob("*")) == before


class Watch:
    """A bench that times nothing and counts how often it was asked to."""

    def __init__(self, called: Callable[..., Any]) -> None:
        self.captured = called
        self.timed = 0

    def figures(self, runner: Any, flops: int) -> dict[str, str]:
        self.timed += 1
        return {"ms": "1"}


def fails(*_: Any) -> Tensor:
    raise RuntimeError("out of shared memory\nin some kernel")


def without_the_last(x: Tensor, mlps: Sequence[Any], strengths: Tensor) -> Tensor:
    return eager.apply(x, mlps[:-1], strengths[:-1])


def slightly_too_strong(x: Tensor, mlps: Sequence[Any], strengths: Tensor) -> Tensor:
    return eager.apply(x, mlps, strengths * 1.005)


def not_finite_in_one_place(x: Tensor, mlps: Sequence[Any], strengths: Tensor) -> Tensor:
    y = eager.apply(x, mlps, strengths)
    y[-1, -1] = torch.nan
    return y


@pytest.mark.parametrize(
    ("apply", "said"),
    [
        (without_the_last, "off"),
        (slightly_too_strong, "off"),
        (not_finite_in_one_place, "not finite"),
        (fails, "RuntimeError: out of shared memory"),
    ],
)
def test_a_path_that_computes_something_wrong_on_one_side_is_reported_and_not_timed(
    part: Callable[[str], ModuleType], apply: Callable[..., Tensor], said: str
) -> None:
    contexts, work, paths = (part(f"gpu_parts.{name}") for name in ("contexts", "work", "paths"))
    watch = Watch(part("gpu_parts.clock").Called)
    case = work.Case("toy", work.SWISH, 3, "self and text").contexts("cpu")
    assert contexts.measured(case, paths.Path(paths.eagerly), watch) == {"ms": "1"}

    def broken(stack: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        keys, values = stack.sides
        return lambda x: (eager.apply(x, keys, stack.strengths[0]), apply(x, values, stack.strengths[1]))

    row = contexts.measured(case, paths.Path(broken), watch)
    assert list(row) == ["wrong"]
    assert said in row["wrong"]
    assert watch.timed == 1


def test_a_unet_that_its_networks_do_not_reach_is_wrong(part: Callable[[str], ModuleType]) -> None:
    unet = part("gpu_parts.unet")
    with torch.no_grad():
        subject = unet.Subject(unet.TOY["toy"], "cpu")
        expected = subject.expected(unet.SWISH, 3)
        bare = subject.step(subject.unet)()
        with unet.plainly(subject.unet, subject.stacks(unet.SWISH, 3)):
            reached = subject.step(subject.unet)()
    assert unet.error(reached, expected) is None
    assert "off" in unet.error(bare, expected)
    assert unet.error(bare, subject.expected("", 0)) is None


def test_a_row_stands_for_its_gpu_and_commit_and_for_no_sources_that_were_changed(
    part: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    record = part("gpu_parts.record")
    path, key = tmp_path / "gpu.csv", record.Key("isolated", "toy", "linear", "3", "self", "fused")
    for commit in ("abc123", "abc123+"):
        record.Record(path, {**CONDITIONS, "commit": commit}).add(key._asdict())
    assert record.Record(path, CONDITIONS).stands(key)
    assert not record.Record(path, CONDITIONS).stands(key._replace(path="grouped"))
    for other in ({"commit": "abc123+"}, {"commit": "def456"}, {"commit": "unknown"}, {"gpu": "another"}):
        assert not record.Record(path, {**CONDITIONS, **other}).stands(key)


def test_what_stands_is_not_measured_again(part: Callable[[str], ModuleType]) -> None:
    bench = part("gpu_parts.clock").Bench(rehearse=True)
    for measure in (part("gpu_parts.contexts").isolated, part("gpu_parts.contexts").compiled):
        assert list(measure(bench, lambda key: True)) == []
    assert list(part("gpu_parts.unet").steps(bench, lambda key: True)) == []


def test_without_measurements_the_readme_says_so_and_how_to_measure(
    part: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    text = part("plot").table(tmp_path / "gpu.csv")
    assert text.startswith("Not yet measured on a GPU.")
    assert "python benchmarks/gpu.py --part isolated" in text


def write_made_up(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            times = {"ms_p10": row["ms"], "ms_p90": row["ms"]} if "ms" in row else {}
            writer.writerow({**CONDITIONS, "utc": "2030-01-01T00:00:00+00:00", **times, **row})


def test_tables_and_chart_give_ratios_to_the_way_of_a1111_in_the_same_part_and_commit(
    part: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    plot, record = part("plot"), part("gpu_parts.record")
    alike = {"model": "SD 1.5, 512", "build": plot.BUILD, "networks": "3"}
    contexts, step = {**alike, "work": "self and text"}, {**alike, "part": "unet", "work": "CUDA graph"}
    rows = [
        {**contexts, "part": "isolated", "path": "as A1111", "ms": "8"},
        {**contexts, "part": "isolated", "path": "fused", "ms": "2"},
        {**contexts, "part": "isolated", "path": "grouped", "wrong": "k is off"},
        {**contexts, "part": "compile", "path": "as A1111", "ms": "9"},
        {**contexts, "part": "compile", "path": "torch.compile", "ms": "6"},
        {**step, "path": "no networks", "build": "", "networks": "0", "ms": "10"},
        {**step, "path": "as A1111", "ms": "15"},
        {**step, "path": "hnetkit", "ms": "12"},
    ]
    older = {"commit": "000", "utc": "2029-01-01T00:00:00+00:00"}
    path = tmp_path / "gpu.csv"
    write_made_up(path, record.COLUMNS, [*rows, {**rows[0], **older, "ms": "80"}, {**rows[1], **older, "ms": "1"}])
    text = plot.table(path)
    assert text.startswith("What `hnetkit generate` does by default, the UNet as CUDA graphs, is not yet measured")
    assert "| self and text | 8.00 ms (8.00-8.00) | - | 1.50x | wrong | 4.00x |" in text
    assert "| 10.00 ms (10.00-10.00) | 15.00 ms (15.00-15.00) | 12.00 ms (12.00-12.00) | 1.25x |" in text
    assert "a GPU, driver 1, torch 2, Triton 3, commit abc123, 2030-01-01" in text
    assert "000" not in text
    default = {**alike, "part": "default", "work": "20 steps, captured"}
    bare = {"path": "no networks", "build": "", "networks": "0", "ms": "300"}
    write_made_up(path, record.COLUMNS, [*rows, {**default, **bare}, {**default, "path": "hnetkit", "ms": "320"}])
    leading = plot.table(path).partition("A whole UNet step")[0]
    assert "| 20 steps, captured | 300.00 ms (300.00-300.00) | - | 320.00 ms (320.00-320.00) | - |" in leading
    assert "not yet measured" not in leading
    write_made_up(path, record.COLUMNS, rows)
    chart = plot.chart(plot.newest(path))
    assert chart.startswith("<svg")
    assert ">2.00 ms<" in chart
    assert "k is off" in chart
    assert ">1.00 ms<" not in chart


def test_training_steps_are_captured_and_what_is_wrong_with_their_gradients_is_seen(
    part: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the stand-in for CUDA graphs, at a toy size."""
    train, clock = part("gpu_parts.train"), part("gpu_parts.clock")
    bench = clock.Bench(rehearse=True)
    monkeypatch.setattr(train, "WORKS", (("bf16", 1),))
    StandInGraphs.begin()
    rows = list(train.steps(bench, lambda key: key.path == "hnetkit", StandInGraphs))
    assert [row["path"] for row in rows] == ["plain loop", "hnetkit, captured"]
    assert all(not row.get("wrong") for row in rows), rows
    assert StandInGraphs.recorded == 1
    assert StandInGraphs.living == []
    as_it_comes = lambda self, kind, arguments, options: self._run(*arguments, **options)  # noqa: E731
    monkeypatch.setattr(train.StepGraphs, "add_gradients", as_it_comes)
    (row,) = train.steps(bench, lambda key: key.path != "hnetkit, captured", StandInGraphs)
    assert row["wrong"] == "nothing was captured"
    vector = torch.ones(4)
    assert train.error([vector], [1.2 * vector]).endswith("off those of the plain loop")
    assert train.error([vector / 0], [vector]) == "gradients are not finite"
    assert train.error([vector], [1.05 * vector]) is None
