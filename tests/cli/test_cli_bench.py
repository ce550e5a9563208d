"""`hnetkit bench`, on tiny networks and tiny pictures: what is measured, what is said, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import network_file
from support.stand_in_graphs import StandInGraphs
from torch import Tensor

import hnetkit
from hnetkit.cli import run
from hnetkit.kernels import eager, executor
from hnetkit.kernels.dispatch import BF16
from hnetkit.kernels.eager import bf16_obstacle
from hnetkit.kernels.weights import MLPWeights
from hnetkit.runtime.bench import AS_A1111, CAPTURED, UNETS, BenchLayers, PathTiming, measure

SMALL = ("--size", "64", "--seconds", "0.3", "--device", "cpu")
WITHOUT_GPU = [AS_A1111, "reference", "eager", *([BF16] if bf16_obstacle() is None else [])]


@pytest.fixture
def ink(tmp_path: Path) -> str:
    """A network of one width of self-attention."""
    return str(network_file(tmp_path, "ink.pt", widths=(320,), structure=(1, 0.1, 1), activation="relu"))


def bench(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """Returns the rows of `hnetkit bench ... --json`, and what it said."""
    assert run(["bench", *SMALL, *arguments, "--json"]) == code
    captured = capsys.readouterr()
    return json.loads(captured.out) if captured.out else [], captured.err


def test_each_path_is_named_once_with_its_time_and_its_ratio(ink: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", ink, *SMALL]) == 0
    captured = capsys.readouterr()
    header, _, *lines = captured.out.splitlines()
    assert header.split() == ["path", "ms", "spread", "ratio", "error", "launches", "note"]
    assert [line[: len(AS_A1111)].strip() for line in lines] == [path[: len(AS_A1111)] for path in WITHOUT_GPU]
    assert [line for line in lines if "what hnetkit uses here" in line] == [lines[WITHOUT_GPU.index("eager")]]
    assert "SD 1 at 64x64, batch 2, on cpu" in captured.err
    assert "width 320: 128 rows in 5 layers" in captured.err
    assert "Left out: grouped, fused, specialized:" in captured.err
    assert "Left out: captured: CUDA graphs are for CUDA devices" in captured.err


def test_json_says_what_was_measured_where(ink: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows, _ = bench(capsys, f"{ink}:0.7", "--batch", "1", "--seconds", "10")
    assert [row["path"] for row in rows] == WITHOUT_GPU
    plain = rows[0]["ms"]
    for row in rows:
        assert row["ratio"] == pytest.approx(plain / row["ms"], rel=1e-2)
        assert 0 < row["spread"][0] <= row["ms"] <= row["spread"][1]
        assert row["error"] < (1e-2 if row["path"] == BF16 else 1e-5)
        assert row["rounds"] > 1
        assert row["launches"] is None
        assert (row["base"], row["size"], row["batch"]) == ("sd1", [64, 64], 1)
        assert (row["device"], row["dtype"], row["widths"], row["state"]) == ("cpu", "fp32", [320], "ok")
        assert row["networks"] == [{"name": "ink", "strength": 0.7}]


def test_a_stack_of_the_library_is_measured_at_the_model_it_is_made_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("wash", "line")):
        network_file(
            tmp_path, f"{name}.pt", widths=(640, 2048), structure=(1, 0.05, 1), activation="mish", seed=seed, scale=0.02
        )
    assert run(["scan", str(tmp_path)]) == 0
    capsys.readouterr()
    rows, said = bench(capsys, "wash:0.5", "line", "wash:-0.3", "--path", "eager", "--dtype", "bf16")
    assert [row["path"] for row in rows] == [AS_A1111, "eager"]
    assert (rows[0]["base"], rows[0]["widths"], rows[0]["dtype"]) == ("sdxl", [640, 2048], "bf16")
    assert "SDXL at 64x64" in said
    assert "width 640: 32 rows in 10 layers" in said
    assert "width 2048: 154 rows in 70 layers, and once for hnetkit" in said
    assert "wash 0.5, line 1, wash -0.3" in said
    assert "Left out" not in said


def test_the_text_is_applied_once_where_a1111_applies_it_in_every_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = str(network_file(tmp_path, "text.pt", widths=(768,), structure=(1, 1, 1), activation="relu", scale=0.02))
    rows, _ = bench(capsys, text, "--path", "eager", "--seconds", "10")
    assert rows[1]["ratio"] > 4


def test_the_rows_are_those_of_the_pictures_size() -> None:
    assert UNETS["sd1"].layers(512, 512, 2) == [
        BenchLayers(320, "self", 8192, 5),
        BenchLayers(640, "self", 2048, 5),
        BenchLayers(1280, "self", 512, 5),
        BenchLayers(1280, "self", 128, 1),
        BenchLayers(768, "cross", 154, 16),
    ]
    assert [each.rows for each in UNETS["sdxl"].layers(1152, 896, 1)] == [56 * 72, 28 * 36, 77]
    assert [each.rows for each in UNETS["sd2"].layers(520, 520, 1)] == [65 * 65, 33 * 33, 17 * 17, 9 * 9, 77]


def test_without_a_name_it_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench"]) == 2
    assert "hnetkit bench NAME" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["imk"], 4, "no network named imk"),
        (["absent.pt"], 4, "absent.pt: no such file"),
        (["ink:much"], 2, "hnetkit bench ink:0.8"),
        (["INK:0"], 2, "every strength is 0"),
        (["INK", "--size", "100"], 2, "multiples of 8"),
        (["INK", "--size", "0"], 2, "multiples of 8"),
        (["INK", "--size", "512x"], 2, "--size 768x512"),
        (["INK", "--size", "512x20"], 2, "the nearest is 16"),
        (["INK", "--seconds", "0"], 2, "--seconds"),
        (["INK", "--path", "chain"], 1, "no such path"),
        (["INK", "--path", "eagre"], 2, "Hint: --path eager"),
        (["INK", "--path", "auto"], 2, "reference, eager, bf16, grouped, fused, specialized, captured"),
        (["INK", "--path", "captured"], 1, "CUDA graphs are for CUDA devices"),
        (["INK", "--base", "sdxl"], 1, "ink is made for SD 1 or SD 2, not for SDXL"),
        (["ODD"], 1, "odd reaches no layer: its widths are 8, 12, those of SD 1 are 320, 640, 768, 1280"),
        (["INK", "XL"], 1, "no model takes all of them: ink for SD 1 or SD 2, xl for SDXL"),
        (["REFINER"], 1, "refiner is made for the SDXL refiner"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    ink: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, says: str
) -> None:
    places = {"INK": ink}
    for name, widths in {"odd": (8, 12), "xl": (2048,), "refiner": (768, 1536)}.items():
        places[name.upper()] = str(network_file(tmp_path, f"{name}.pt", widths=widths, structure=(1, 0.2, 1)))
    spelled = [
        next((word.replace(name, at) for name, at in places.items() if name in word), word) for word in arguments
    ]
    assert run(["bench", "--device", "cpu", *spelled]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="tries what is said without a GPU, and there is one")
def test_a_path_that_cannot_be_timed_here_is_an_error_only_where_it_is_asked_for(
    ink: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", ink, *SMALL, "--path", "grouped"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "such times say nothing" in captured.err
    monkeypatch.delenv("TRITON_INTERPRET")
    line = ["bench", ink, *SMALL]
    both = "import sys; from hnetkit.cli import run; line = sys.argv[1:]; "
    both += "sys.exit(10 * run([*line, '--path', 'fused']) + run(line))"
    done = subprocess.run([sys.executable, "-P", "-c", both, *line], capture_output=True, text=True)
    assert done.returncode == 10, done.stderr
    refused, _, measured = done.stderr.partition("SD 1 at 64x64")
    assert "run on NVIDIA and AMD GPUs" in refused
    assert "Left out: grouped, fused, specialized: Triton's kernels run on NVIDIA and AMD GPUs" in measured
    assert done.stdout.count("ratio") == 1, "the table of the second alone"


def test_a_path_that_is_wrong_is_named_and_not_timed(
    ink: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def almost(x: Tensor, mlps: list[MLPWeights], strengths: list[Tensor]) -> Tensor:
        return eager.apply(x, mlps, [strength * 1.0001 for strength in strengths])

    monkeypatch.setitem(executor._PLAIN, "eager", almost)
    rows, said = bench(capsys, ink, code=1)
    plain, reference, wrong = rows[:3]
    assert (wrong["state"], wrong["ms"], wrong["spread"], wrong["ratio"]) == ("wrong", None, None, None)
    assert wrong["error"] == pytest.approx(1e-4, rel=0.1)
    assert wrong["note"].startswith("wrong: off by more than rounding at width 320")
    assert plain["ms"] > 0
    assert reference["ratio"] > 0
    assert "Error: wrong here, and not timed: eager\nHint: HNETKIT_KERNEL=reference" in said


def test_a_path_that_fails_leaves_the_others_alone(
    ink: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(x: Tensor, mlps: list[MLPWeights], strengths: list[Tensor]) -> Tensor:
        raise torch.cuda.OutOfMemoryError("no room")

    monkeypatch.setitem(executor._PLAIN, "reference", breaks)
    rows, _ = bench(capsys, ink, code=1)
    assert [row["note"] for row in rows][:2] == ["", "fails: OutOfMemoryError"]
    assert [row["ms"] is None for row in rows[:3]] == [False, True, False]


def test_values_that_a_dtype_cannot_hold_are_named_with_a_wider_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = str(network_file(tmp_path, "loud.pt", widths=(320,), structure=(1, 0.1, 1), activation="relu", scale=300))
    rows, said = bench(capsys, loud, "--dtype", "fp16", "--path", "eager", code=1)
    assert rows[0]["note"] == "wrong: not finite at width 320"
    assert rows[0]["error"] is None
    assert "Hint: --dtype fp32" in said
    bench(capsys, loud, "--path", "eager")


def test_networks_that_cost_nothing_or_less_are_told_of(
    ink: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    affine = str(network_file(tmp_path, "flat.pt", widths=(320,), structure=(1, 0.1, 1)))
    rows, said = bench(capsys, affine, f"{ink}:0", "--path", "eager")
    assert rows[0]["networks"] == [{"name": "flat", "strength": 1.0}]
    assert "Left out: ink: strength 0" in said
    assert "Without an activation: flat." in said
    assert bench(capsys, affine, "--path", "eager", "-q")[1] == ""


def test_a_forced_path_that_cannot_run_is_an_error_here_too(
    ink: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", "chain")
    assert run(["bench", ink, *SMALL]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "unset HNETKIT_KERNEL" in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="times Triton's interpreter, and there is a GPU")
def test_kernels_are_held_against_the_mathematics_and_their_launches_counted(ink: str, tmp_path: Path) -> None:
    """In Triton's interpreter: what the command refuses to time is right all the same."""
    other = network_file(tmp_path, "other.pt", widths=(320, 24), structure=(1, 0.1, 1), activation="swish", seed=2)
    items = [("ink", hnetkit.load(ink), 0.7), ("other", hnetkit.load(str(other)), -0.4)]
    layers = [BenchLayers(320, "self", 9, 5), BenchLayers(24, "cross", 4, 16)]
    results = measure(
        items, layers, ["grouped", "fused"], device=torch.device("cpu"), dtype=torch.float16, seconds=1e-3
    )
    assert [result.fault for result in results] == [None] * 3
    plain, grouped, fused = results
    assert (plain.launches, grouped.launches, fused.launches) == (None, 5 * 4 + 2, 5 * 2 + 2)
    for result in results:
        assert result.error is not None
        assert plain.error is not None
        assert 0 < result.error <= plain.error
        assert len(result.times) == 1
        assert result.spread is None


def captured(ink: str, tmp_path: Path) -> list[PathTiming]:
    """Measures plain torch, and the same captured by graphs that stand in for CUDA's."""
    text = network_file(tmp_path, "text.pt", widths=(320, 24), structure=(1, 1, 1), activation="mish", scale=0.02)
    items = [("ink", hnetkit.load(ink), 0.7), ("text", hnetkit.load(str(text)), -0.4)]
    layers = [BenchLayers(320, "self", 9, 5), BenchLayers(24, "cross", 4, 16)]
    StandInGraphs.begin()
    options: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32, "graphs": StandInGraphs}
    return measure(items, layers, ["eager", CAPTURED], seconds=1e-3, **options)


def test_the_layers_of_a_unet_call_are_measured_as_one_graph(ink: str, tmp_path: Path) -> None:
    plain, eager, whole = captured(ink, tmp_path)
    assert [result.fault for result in (plain, eager, whole)] == [None] * 3
    assert (StandInGraphs.recorded, StandInGraphs.replayed) == (1, 2), "once to be checked, once to be timed"
    assert whole.error == eager.error
    assert len(whole.times) == len(eager.times) == 1


def test_a_graph_that_cannot_be_captured_or_is_wrong_leaves_the_other_paths_alone(
    ink: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StandInGraphs, "record", lambda graphs, call: 1 / 0)
    *others, whole = captured(ink, tmp_path)
    assert whole.fault == "fails: ZeroDivisionError"
    assert not whole.times
    assert all(result.times and result.fault is None for result in others)
    monkeypatch.undo()
    monkeypatch.setattr(StandInGraphs, "replay", lambda graphs, graph, fill, take: take())
    assert captured(ink, tmp_path)[-1].fault == "wrong: its graph gives other numbers than its launches"
