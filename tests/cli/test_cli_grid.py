"""`hnetkit grid` on a real tiny pipeline: what it writes, that it goes on, and that processes share it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.pipelines import tiny_sd
from support.waiting import wait_until

from hnetkit import demo, settings
from hnetkit.cli import run
from hnetkit.generate import drawing
from hnetkit.generate.grids.files import FAILURE
from hnetkit.generate.grids.run import GridRun
from hnetkit.prompts import infotext

THREADS = 2  # of a launched process, which takes one for the launcher's choice and then uses its own number

needs_demo = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The seeds of each batch that was sampled."""
    batches: list[tuple[int, ...]] = []
    original = drawing.draw_each

    def counting(model: Any, request: Any, seeds: Any, progress: Any) -> Any:
        batches.append(tuple(seeds))
        return original(model, request, seeds, progress)

    monkeypatch.setattr(drawing, "draw_each", counting)
    return batches


def parameters(path: str | Path) -> infotext.Infotext:
    with Image.open(path) as image:
        return infotext.parse(image.info["parameters"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def record(path: str = "grid.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def command(model: str, *more: str) -> list[str]:
    return ["grid", "--prompt", "a circle", "--model", model, "--seed", "7", *more]


def test_a_grid_is_one_labelled_picture(
    model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["grid", "ink", "wash", "--prompt", "a circle", "--model", model, "--seed", "7"]
    assert run([*arguments, "--strengths", "0,1", "--json"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert captured.err == "A grid of 4 cells.\n"
    assert (row["path"], row["networks"], row["strengths"]) == ("grid.png", ["ink", "wash"], [0.0, 1.0])
    assert (row["prompts"], row["seeds"]) == (["a circle"], [7])
    assert (row["cells"], row["drawn"]) == (4, 3)
    assert parameters("grid.png").parameters["Grid networks"] == "ink, wash"
    with Image.open("grid.png") as sheet:
        assert sheet.width > 2 * 192
        assert sheet.height > 2 * 192
    before = Path("grid.png").read_bytes()
    assert run([*arguments, "--strengths", "0"]) == 2
    assert Path("grid.png").read_bytes() == before
    assert names(out) == ["grid-cells", "grid.jsonl", "grid.png"]


def test_the_record_has_every_cell_and_its_picture(model: str, library: Path, out: Path) -> None:
    assert run(command(model, "-n", "ink", "--x", "strength=0,0.5", "--y", "seed=1,2", "--z", "cfg=4,7")) == 0
    rows = record()
    assert [(row["x"], row["y"], row["z"]) for row in rows] == [
        (x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)
    ]
    last = rows[-1]
    assert last["coordinates"] == {"strength": 0.5, "seed": 2, "cfg": 7.0}
    assert (last["prompt"], last["negative_prompt"], last["seed"]) == ("a circle <hypernet:ink:0.5>", "", 2)
    assert (last["cfg_scale"], last["steps"], last["sampler"], last["width"]) == (7.0, 2, "DDIM", 16)
    assert (last["model"], last["hypernetworks"][0]["name"]) == ("tiny", "ink")
    assert last["model_hash"] == parameters("grid.png").parameters["Model hash"]
    for row in rows:
        assert parameters(row["picture"]) == infotext.parse(row["infotext"])
    assert len(names(out / "grid-cells")) == 8


def test_a_cell_is_the_picture_that_generate_draws(model: str, library: Path, out: Path) -> None:
    assert run(command(model, "-n", "ink", "--x", "strength=0.5", "--y", "sampler=Euler")) == 0
    said = ["generate", "a circle", "-n", "ink:0.5", "--model", model, "--seed", "7", "--sampler", "Euler"]
    assert run([*said, "--out", "one.png"]) == 0
    assert Path("one.png").read_bytes() == Path(record()[0]["picture"]).read_bytes()


def test_what_is_there_is_not_drawn_again(
    model: str, library: Path, out: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command(model, "--x", "hypernetwork=none,ink,wash", "--y", "seed=1,2")
    assert run(arguments) == 0
    sheet, lines, cells = Path("grid.png").read_bytes(), Path("grid.jsonl").read_bytes(), names(out / "grid-cells")
    assert len(drawn) == 6

    Path("grid.png").unlink()
    Path("grid-cells", cells[2]).unlink()
    Path("grid-cells", cells[3]).write_bytes(Path("grid-cells", cells[3]).read_bytes()[:-40])
    Path("grid.jsonl").write_bytes(lines[: lines.rfind(b"\n", 0, -1) + 30])  # the last line is torn
    drawn.clear()
    capsys.readouterr()
    assert run(arguments) == 0
    assert len(drawn) == 3
    assert capsys.readouterr().err == "A grid of 6 cells.\n3 of 6 pictures are there already.\n"
    assert (Path("grid.png").read_bytes(), Path("grid.jsonl").read_bytes()) == (sheet, lines)
    assert names(out / "grid-cells") == cells

    drawn.clear()
    assert run([*arguments, "--overwrite"]) == 0
    assert drawn == []
    assert run([*arguments, "--overwrite", "--steps", "3"]) == 0
    assert len(drawn) == 6
    assert len(record()) == 6


def test_a_grid_that_was_renamed_says_where_its_pictures_are_by_now(
    model: str, library: Path, out: Path, drawn: list[Any]
) -> None:
    arguments = command(model, "--x", "hypernetwork=none,ink")
    assert run(arguments) == 0
    Path("grid.png").unlink()
    Path("grid.jsonl").rename("mice.jsonl")
    Path("grid-cells").rename("mice-cells")
    drawn.clear()
    assert run([*arguments, "--out", "mice.png"]) == 0
    assert drawn == []
    pictures = [row["picture"] for row in record("mice.jsonl")]
    assert pictures == [f"mice-cells/{name}" for name in names(out / "mice-cells")]


def test_a_batch_is_the_same_whatever_of_it_is_there(model: str, library: Path, out: Path, drawn: list[Any]) -> None:
    arguments = command(model, "-n", "ink", "--x", "seed=1-3", "--batch-size", "2")
    assert run(arguments) == 0
    assert drawn == [(1, 2), (3,)]
    sheet, second = Path("grid.png").read_bytes(), record()[1]
    whole = Path(second["picture"]).read_bytes()
    Path("grid.png").unlink()
    Path(second["picture"]).unlink()
    drawn.clear()
    assert run(arguments) == 0
    assert drawn == [(1, 2)]
    assert (Path("grid.png").read_bytes(), Path(second["picture"]).read_bytes()) == (sheet, whole)


def test_random_seeds_of_an_interrupted_grid_are_kept(model: str, out: Path, drawn: list[Any]) -> None:
    arguments = ["grid", "--prompt", "a circle", "--model", model, "--x", "seed=-1,-1", "--y", "cfg=2,3"]
    assert run(arguments) == 0
    seeds = {row["seed"] for row in record()}
    assert len(seeds) == 2
    Path("grid.png").unlink()
    Path(record()[0]["picture"]).unlink()
    drawn.clear()
    assert run(arguments) == 0
    assert ({row["seed"] for row in record()}, len(drawn)) == (seeds, 1)
    assert run([*arguments, "--overwrite"]) == 0
    assert {row["seed"] for row in record()}.isdisjoint(seeds)


def test_checkpoints_are_an_axis_and_each_is_loaded_once(
    model: str, library: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnetkit.generate import model as models

    loaded = []
    original = models.load_pipeline

    def counting(place: Any, **options: Any) -> Any:
        loaded.append(place)
        return original(place, **options)

    monkeypatch.setattr(models, "load_pipeline", counting)
    other = library.parent / "another"
    tiny_sd(seed=5).save_pretrained(other)
    assert run(command(model, "--x", f"checkpoint={model},{other}", "--y", "hypernetwork=none,ink")) == 0
    assert loaded == [model, str(other)]
    assert [row["model"] for row in record()] == ["tiny", "another", "tiny", "another"]
    assert len({Path(row["picture"]).read_bytes() for row in record()}) == 4
    assert parameters("grid.png").parameters["Grid checkpoints"] == "tiny, another"


def test_files_that_are_no_grids_are_left_alone(model: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("grid.jsonl").write_text('{"mine": 1}\n')
    assert run(command(model, "--x", "seed=1,2")) == 2
    assert "no grid's record" in capsys.readouterr().err
    assert Path("grid.jsonl").read_text() == '{"mine": 1}\n'
    assert names(out) == ["grid.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["ink"], 2, "--prompt"),
        (["--prompt", "a"], 2, "nothing varies"),
        (["ink", "--prompt", "a", "--strengths", "0,much"], 2, "much"),
        (["ink", "--prompt", "a", "--strengths", "nan"], 2, "nan"),
        (["ink", "--prompt", "a", "--out", "folder"], 2, "folder"),
        (["ink", "--prompt", "a", "--out", "folder/grid.png"], 4, "folder"),
        (["ink", "--prompt", "a", "--x", "seed=1"], 2, "--y hypernetwork=ink"),
        (["imk", "--prompt", "a"], 4, "ink"),
        (["ink", "--prompt", "a <hypernet:imk:1>"], 4, "ink"),
        (["--prompt", "a", "--x", "hypernetwork=ink,imk"], 4, "imk"),
        (["--prompt", "a", "--x", "smpler=DDIM"], 2, "sampler"),
        (["--prompt", "a", "--x", "sampler=Euler,DDMI"], 2, "DDIM"),
        (["--prompt", "a", "--x", "checkpoint=absent.safetensors"], 4, "absent.safetensors"),
        (["--prompt", "a", "--x", "steps=1,x"], 2, "--x steps: x"),
        (["--prompt", "a", "--x", "seed=1", "--strengths", "1"], 2, "--x strength=1"),
        (["--prompt", "a", "--prompt", "b", "--x", "seed=1"], 2, "one --prompt"),
        (["--prompt", "a", "--seed", "1", "--seed", "2", "--x", "cfg=1"], 2, "--y seed=1,2"),
        (["--prompt", "a", "--x", "seed=1-900", "--y", "steps=1-900"], 2, "too many"),
    ],
)
def test_what_cannot_be_meant_is_told_before_anything_is_loaded(
    model: str,
    library: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    told: str,
) -> None:
    from hnetkit.generate import model as models

    monkeypatch.setattr(models, "load_pipeline", None)
    assert run(["grid", "--model", model, *arguments]) == code
    assert told in capsys.readouterr().err
    assert names(out) == []


def test_what_to_type_in_place_of_a_file_that_holds_no_picture_is_taken(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("notes.txt").touch()
    for command, hint in (
        (["grid", "ink", "--prompt", "a", "--out", "notes.txt"], "--out grid.png"),
        (["bake", "-n", "ink", "--out", "a.safetensors", "--check", "notes.txt"], "--check sheet.png"),
        (["generate", "a", "--out", "notes.txt"], "--out FOLDER"),
    ):
        assert run(command) == 2
        assert capsys.readouterr().err.endswith(f"Hint: {hint}\n")


def test_a_network_of_another_base_leaves_nothing(model: str, library: Path, out: Path) -> None:
    assert run(["grid", "other", "--prompt", "a", "--model", model, "--strengths", "0.5,1"]) == 1
    assert names(out) == []


@pytest.fixture
def broken(library: Path, home: Path) -> Path:
    """A network of the library whose file is none any more."""
    path = library / "broken.pt"
    path.write_bytes((library / "ink.pt").read_bytes())
    assert run(["scan", str(library), "-q"]) == 0
    path.write_bytes(b"no network")
    return path


def test_a_network_that_cannot_be_read_leaves_its_own_cells_empty(
    model: str, broken: Path, out: Path, drawn: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = [
        "grid",
        "ink",
        "broken",
        "wash",
        "--prompt",
        "a",
        "--model",
        model,
        "--seed",
        "7",
        "--strengths",
        "0,1",
    ]
    assert run([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert [(cell["x"], cell["y"]) for cell in row["failed"]] == [(1, 1)]
    assert (row["cells"], row["drawn"]) == (6, 3)
    assert str(broken) in captured.err
    assert "1 of 6 cells" in captured.err
    assert [FAILURE in cell for cell in record()] == [False, False, False, True, False, False]
    assert Path("grid.png").is_file()
    first = Path("grid.png").read_bytes()
    drawn.clear()
    assert run([*arguments, "--steps", "3"]) == 2  # another grid
    assert run(arguments) == 1  # tried again, and nothing else
    assert drawn == []
    assert Path("grid.png").read_bytes() == first
    broken.write_bytes(Path(broken.parent, "ink.pt").read_bytes())
    assert run(arguments) == 0
    assert not any(FAILURE in cell for cell in record())
    assert Path("grid.png").read_bytes() != first
    assert run(arguments) == 2  # now it is whole


def test_a_checkpoint_that_cannot_be_loaded_leaves_its_own_cells_empty(
    model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.safetensors").write_bytes(b"nothing of use")
    axes = ["--x", f"checkpoint={model},bad.safetensors", "--y", "hypernetwork=none,ink"]
    assert run(command(model, *axes)) == 1
    assert "bad.safetensors" in capsys.readouterr().err
    assert [FAILURE in row for row in record()] == [False, True, False, True]
    assert "<hypernet:ink:1>" in record()[2]["prompt"]


def test_a_lora_that_cannot_be_put_on_leaves_its_own_cells_empty(model: str, library: Path, out: Path) -> None:
    from safetensors.torch import save_file
    from support.unet_truth import lora

    Path("loras").mkdir()
    save_file(lora(tiny_sd(least=True)), "loras/good.safetensors")
    save_file({"unet.a.lora_A.weight": torch.zeros(2, 3)}, "loras/bad.safetensors")
    Path("loras/none.safetensors").write_bytes(b"{}")
    settings.put("loras", "loras")
    prompt = "a <lora:good:1>"
    said = ["grid", "--prompt", prompt, "--model", model, "--seed", "7", "--x", "prompt=good,bad,none,good"]
    assert run(said) == 1
    assert [FAILURE in row for row in record()] == [False, True, True, False]
    assert run(["generate", prompt, "--model", model, "--seed", "7", "--out", "one.png"]) == 0
    with Image.open("one.png") as one, Image.open(record()[3]["picture"]) as cell:
        assert one.convert("RGB").tobytes() == cell.convert("RGB").tobytes()


@pytest.mark.parametrize("fault", ["damaged", "another base", "holes"])
def test_a_textual_inversion_that_cannot_be_used_leaves_its_own_cells_empty(
    model: str, out: Path, tmp_path: Path, fault: str
) -> None:
    folder = tmp_path / "inversions"
    folder.mkdir()
    save_file({"emb_params": torch.zeros(1, 5)}, folder / "square.safetensors")
    if fault == "damaged":
        (folder / "square.safetensors").write_bytes(b"PK\3\4" * 50)
    elif fault == "holes":
        os.truncate(folder / "square.safetensors", 1 << 40)
    settings.put("embeddings", str(folder))
    assert run(command(model, "--x", "prompt=circle,square", "--y", "seed=1,2")) == 1
    assert [(row["x"], FAILURE in row) for row in record()] == [(0, False), (1, True), (0, False), (1, True)]
    assert all("square.safetensors" in row.get(FAILURE, "square.safetensors") for row in record())


def test_models_and_loras_of_holes_leave_their_own_cells_empty(model: str, out: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "big.safetensors"):
        save_file({"x": torch.zeros(9)}, tmp_path / name)
        os.truncate(tmp_path / name, 1 << 40)
    settings.put("loras", str(tmp_path))
    assert run(command(model, "--x", "prompt=circle,circle <lora:big:1>")) == 1
    assert (
        run(command(model, "--x", f"checkpoint={model},{tmp_path / 'model.safetensors'}", "--out", "models.png")) == 1
    )
    for rows in (record(), record("models.jsonl")):
        assert [FAILURE in row for row in rows] == [False, True]
        assert "a sparse file" in rows[1][FAILURE]
    assert run(command(model, "--x", "seed=1,2", "--vae", str(tmp_path / "model.safetensors"), "--out", "vae.png")) == 7


def test_random_seeds_of_a_grid_with_a_failed_cell_are_kept(model: str, broken: Path, out: Path) -> None:
    arguments = ["grid", "broken", "ink", "--prompt", "a", "--model", model, "--strengths", "1"]
    assert run(arguments) == 1
    seeds = [row["seed"] for row in record()]
    broken.write_bytes(Path(broken.parent, "wash.pt").read_bytes())
    assert run(arguments) == 0
    assert [row["seed"] for row in record()] == seeds


def test_anything_but_an_interrupt_is_one_cells_failure(
    model: str, library: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = drawing.draw_each

    def failing(model: Any, request: Any, seeds: Any, progress: Any) -> Any:
        if tuple(seeds) == (2,):
            raise raised[-1]
        return original(model, request, seeds, progress)

    raised: list[BaseException] = []
    monkeypatch.setattr(drawing, "draw_each", failing)
    arguments = command(model, "--x", "seed=1-3")
    for error in (MemoryError(), ZeroDivisionError("why"), OSError(5, "bad disk")):
        raised.append(error)
        assert run([*arguments, "--overwrite"]) == 1
        assert [FAILURE in row for row in record()] == [False, True, False]
    assert "seed 2" in capsys.readouterr().err
    raised.append(KeyboardInterrupt())
    assert run([*arguments, "--overwrite"]) == 130


def test_default_networks_apply_in_every_cell(model: str, library: Path, out: Path) -> None:
    settings.put("hypernetworks", "<hypernet:wash:0.2>")
    assert run(["grid", "ink", "--prompt", "a", "--strengths", "0,1", "--model", model, "--seed", "7"]) == 0
    assert [row["prompt"] for row in record()] == [
        "a <hypernet:wash:0.2>",
        "a <hypernet:wash:0.2> <hypernet:ink:1>",
    ]


def test_a_malformed_tag_is_told_once(model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["grid", "ink", "--prompt", "a <hypernet:wash:k=1>", "--strengths", "0,1", "--model", model]
    assert run([*arguments, "--seed", "7"]) == 0
    assert capsys.readouterr().err.count("<hypernet:wash:k=1>") == 1


def started(*arguments: str) -> list[str]:
    """The command line of a process of its own."""
    return [sys.executable, "-P", "-m", "hnetkit", *arguments]


def environment(home: Path, threads: int | None = None) -> dict[str, str]:
    """With so many threads of torch, or as many as it takes by itself: bits depend on them."""
    others = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return {**others, "HNETKIT_HOME": str(home), **({"OMP_NUM_THREADS": str(threads)} if threads else {})}


def test_a_second_grid_of_one_name_at_once_is_refused_and_loses_nothing(
    model: str, library: Path, out: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, second = drawing.draw_each, []

    def meanwhile(*arguments: Any) -> Any:
        if not second:
            another = started(*command(model, "--x", "seed=1-3", "-n", "ink", "-q"))
            second.append(subprocess.run(another, env=environment(home), capture_output=True, text=True, timeout=120))
        return original(*arguments)

    monkeypatch.setattr(drawing, "draw_each", meanwhile)
    assert run(command(model, "--x", "seed=1-4", "-n", "ink", "-q")) == 0
    assert second[0].returncode == 1
    assert "another command draws this grid" in second[0].stderr
    assert [row["seed"] for row in record()] == [1, 2, 3, 4]


def test_a_killed_grid_goes_on(
    model: str,
    library: Path,
    out: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Killed in a process of its own, then interrupted here, in the middle of a picture."""
    arguments = command(model, "--x", "seed=1-8", "--steps", "6", "-n", "ink", "-q")
    with subprocess.Popen(
        started(*arguments), env=environment(home, torch.get_num_threads()), stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: Path("grid.jsonl").exists() and Path("grid.jsonl").read_bytes().count(b"\n") > 1, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not Path("grid.png").exists()
    killed = len(record())
    assert 2 <= killed < 7

    original, begun = drawing.draw_each, []

    def interrupted(drawer: Any, request: Any, seeds: Any, progress: Any) -> Any:
        begun.append(seeds)

        def told(*at: Any) -> None:
            if len(begun) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            progress(*at)

        return original(drawer, request, seeds, told)

    with monkeypatch.context() as patched:
        patched.setattr(drawing, "draw_each", interrupted)
        assert run(arguments) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("grid.png").exists()
    assert len(record()) == killed + 1
    assert run(arguments) == 0
    assert len(record()) == 8
    resumed = Path("grid.png").read_bytes()
    assert run([*arguments, "--out", "whole.png"]) == 0
    assert Path("whole.png").read_bytes() == resumed


def launch(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    local = ["--main_process_ip", "127.0.0.1", "--main_process_port", "0", "-m", "hnetkit"]
    line = [*launcher, *local, *arguments]
    patient = environment(home, THREADS) | {"OMP_WAIT_POLICY": "PASSIVE"}  # of more threads than cores, none may spin
    return subprocess.run(line, env=patient, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture
def threads_of_the_launched() -> Iterator[None]:
    """On some processors sums depend on the number of threads, however small the tensors are."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_of_the_launched")
@pytest.mark.parametrize("fails", [True, pytest.param(False, marks=pytest.mark.long)])
def test_two_processes_draw_the_same_sheet_and_a_failed_cell_keeps_none_waiting(
    model: str, library: Path, out: Path, home: Path, fails: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    strengths = "strength=0.5," + ("99999999999999999999999999999999999999" if fails else "1")
    axes = ["--x", "hypernetwork=none,ink,wash", "--y", "seed=1-3", "--z", strengths, "--batch-size", "2"]
    done = launch(home, *command(model, *axes, "--device", "cpu", "--out", "two.png"))
    assert (done.returncode != 0) == fails, done.stderr
    assert ("came out" in done.stderr) == fails
    assert run(command(model, *axes, "--device", "cpu", "--out", "one.png")) == int(fails)
    assert done.stdout.replace("two", "one") == capsys.readouterr().out
    assert [FAILURE in row for row in record("one.jsonl")] == [
        fails and z == 1 and x > 0 for z in (0, 1) for _ in range(3) for x in range(3)
    ]
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()
    assert Path("one.jsonl").read_text() == Path("two.jsonl").read_text().replace("two-cells", "one-cells")
    assert names(out / "one-cells") == names(out / "two-cells")
    for name in names(out / "one-cells"):
        assert Path("one-cells", name).read_bytes() == Path("two-cells", name).read_bytes()
    later = command(model, "-n", "ink", "--x", "strength=0.5", "--device", "cpu", "--out", "two.png", "--overwrite")
    assert run(later) == 0


def test_what_another_number_of_processes_left_is_taken_over(
    model: str, library: Path, out: Path, drawn: list[Any]
) -> None:
    arguments = command(model, "-n", "ink", "--x", "seed=1-4")
    assert run(arguments) == 0
    sheet, lines = Path("grid.png").read_bytes(), Path("grid.jsonl").read_bytes().splitlines(keepends=True)
    Path("grid.png").unlink()
    Path("grid.jsonl").write_bytes(lines[0])
    Path("grid-cells/process-1.jsonl").write_bytes(lines[2] + lines[3][:100])
    drawn.clear()
    assert run(arguments) == 0
    assert drawn == [(2,), (4,)]
    assert (Path("grid.png").read_bytes(), Path("grid.jsonl").read_bytes()) == (sheet, b"".join(lines))
    assert not list(Path("grid-cells").glob("*.jsonl"))


@needs_demo
def test_the_demo_model_draws_its_own_networks(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(demo.networks()))
    assert (
        run(["grid", "--prompt", "a red circle", "--x", f"hypernetwork=none,{name}", "--seed", "7", "--steps", "2"])
        == 0
    )
    assert capsys.readouterr().out == "grid.png\n"
    assert record()[1]["model"] == "hnetkit-demo"


@pytest.mark.parametrize("what", ["image", "model"])
def test_what_was_replaced_since_a_grid_asked_for_it_is_not_drawn_under_the_hash_of_the_old_one(
    what: str,
    model: str,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.new("RGB", (16, 16), "red").save("image.png")
    model = str(shutil.copytree(model, "own-model"))
    loading = GridRun._load

    def replacing(run: GridRun, checkpoint: str | None) -> Any:
        if what == "image":
            Image.new("RGB", (16, 16), "blue").save("image.png")
        else:
            file = Path(model) / "scheduler" / "scheduler_config.json"
            file.write_text(file.read_text() + " ")
        return loading(run, checkpoint)

    grid = ["grid", "--prompt", "a", "--x", "steps=1,2", "--image", "image.png", "--model", model, "--seed", "1"]
    with monkeypatch.context() as patched:
        patched.setattr(GridRun, "_load", replacing)
        assert run([*grid, "--out", "g.png"]) != 0
    assert "replaced since the grid began" in capsys.readouterr().err
    assert not Path("g.png").exists()
    assert run([*grid, "--out", "g.png"]) == 0


def test_a_grid_whose_name_differs_in_its_suffix_alone_does_not_replace_the_others_record(
    model: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["grid", "--prompt", "a", "--model", model, "--steps", "1"]
    assert run([*grid, "--x", "seed=1,2", "--out", "g.png"]) == 0
    record = Path("g.jsonl").read_bytes()
    assert run([*grid, "--x", "seed=7,8", "--out", "g.jpg"]) == 2
    assert "the record of another grid, g.png" in capsys.readouterr().err
    assert Path("g.jsonl").read_bytes() == record
    assert run([*grid, "--x", "seed=1,2", "--out", "g.jpg"]) == 0
    assert run([*grid, "--x", "seed=7,8", "--out", "g.jpg", "--overwrite"]) == 0
