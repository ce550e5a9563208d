"""`hnetkit generate`, `grid` and `demo`, on real tiny pipelines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from networks import a1111_network, save_pt
from PIL import Image
from pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd

from hnetkit import demo, settings
from hnetkit.cli import run
from hnetkit.prompts import infotext

needs_demo = pytest.mark.skipif(not demo.networks(), reason="this checkout has no bundled demo model")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd().save_pretrained(folder)
    (folder / "hnetkit.json").write_text(json.dumps({"steps": 2, "cfg_scale": 4.0, "sampler": "DDIM"}))
    return str(folder)


@pytest.fixture
def library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """``ink`` and ``wash`` fit the model, ``other`` does not; all are indexed."""
    folder = tmp_path / "library"
    folder.mkdir()
    for seed, (name, widths) in enumerate({"ink": 0, "wash": 0, "other": 768}.items()):
        fitting = (*SELF_WIDTHS, SD_CROSS_WIDTH)
        content = a1111_network((widths,) if widths else fitting, activation="relu", seed=seed, scale=0.3)
        save_pt(content, folder / f"{name}.pt")
    assert run(["scan", str(folder)]) == 0
    capsys.readouterr()
    return folder


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def generate(*arguments: str) -> int:
    return run(["generate", *arguments])


def parameters(path: str | Path) -> infotext.Infotext:
    with Image.open(path) as image:
        return infotext.parse(image.info["parameters"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_is_written_and_its_path_is_all_that_is_printed(
    model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("a circle <hypernet:ink:0.5>", "--model", model, "--seed", "7", "--negative-prompt", "red") == 0
    assert capsys.readouterr() == ("00000-7.png\n", "")
    read = parameters(out / "00000-7.png")
    assert (read.prompt, read.negative_prompt) == ("a circle <hypernet:ink:0.5>", "red")
    assert set(read.hashes) == {"model", "hypernet:ink"}


def test_the_models_own_defaults_are_honoured_and_options_go_before_them(model: str, out: Path) -> None:
    assert generate("a circle", "--model", model, "--out", "own.png") == 0
    assert generate("a circle", "--model", model, "--out", "mine.png", "--steps", "3", "--sampler", "euler a") == 0
    own, mine = parameters("own.png").parameters, parameters("mine.png").parameters
    assert [own[key] for key in ("Steps", "Sampler", "CFG scale", "Size")] == ["2", "DDIM", "4", "16x16"]
    assert [mine[key] for key in ("Steps", "Sampler", "CFG scale", "Size")] == ["3", "Euler a", "4", "16x16"]


def test_tags_and_options_give_the_same_file(model: str, library: Path, out: Path) -> None:
    common = ("--model", model, "--seed", "7")
    assert generate("a circle <hypernet:ink:0.5> <hypernet:wash:1>", *common, "--out", "tags.png") == 0
    assert generate("a circle", *common, "-n", "ink:0.5", "-n", "wash", "--out", "options.png") == 0
    assert generate("a circle <hypernet:ink:0.5>", *common, "-n", str(library / "wash.pt"), "--out", "file.png") == 0
    assert generate("a circle", *common, "-n", "wash", "-n", "ink:0.5", "--out", "other-order.png") == 0
    assert generate("a circle", *common, "--out", "none.png") == 0
    tags = Path("tags.png").read_bytes()
    assert Path("options.png").read_bytes() == tags
    assert Path("file.png").read_bytes() == tags
    pixels = {name: Image.open(f"{name}.png").tobytes() for name in ("tags", "other-order", "none")}
    assert len(set(pixels.values())) == 3


def test_strength_0_is_bit_identical_to_no_network(model: str, library: Path, out: Path) -> None:
    common = ("--model", model, "--seed", "7")
    assert generate("a circle", *common, "--out", "none.png") == 0
    assert generate("a circle", *common, "-n", "ink:0", "-n", "wash:0", "--out", "zero.png") == 0
    assert Image.open("none.png").tobytes() == Image.open("zero.png").tobytes()


def test_each_of_several_pictures_is_what_its_seed_alone_gives(
    model: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("a circle", "--model", model, "--seed", "7", "--count", "3", "--out", "all", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["seed"] for row in rows] == [7, 8, 9]
    assert names(out / "all") == ["00000-7.png", "00001-8.png", "00002-9.png"]
    assert generate("a circle", "--model", model, "--seed", "9", "--out", "all") == 0
    assert Path("all/00003-9.png").read_bytes() == Path("all/00002-9.png").read_bytes()


def test_json_says_everything_about_a_picture(
    model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("a circle", "--model", model, "-n", "ink:0.5", "--json", "--out", "a.png") == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert row["hypernetworks"] == [{"name": "ink", "strength": 0.5, "hash": row["hypernetworks"][0]["hash"]}]
    assert row["infotext"] == Image.open("a.png").info["parameters"]
    assert infotext.parse(row["infotext"]).hashes["hypernet:ink"] == row["hypernetworks"][0]["hash"]
    assert str(row["seed"]) == infotext.parse(row["infotext"]).parameters["Seed"]


def test_without_a_seed_every_run_draws_another_picture(model: str, out: Path) -> None:
    for name in ("a.png", "b.png"):
        assert generate("a circle", "--model", model, "--out", name) == 0
    assert parameters("a.png").parameters["Seed"] != parameters("b.png").parameters["Seed"]


def test_an_existing_file_is_never_overwritten_unasked(
    model: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.png").write_bytes(b"mine")
    assert generate("a circle", "--model", model, "--out", "a.png") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert Path("a.png").read_bytes() == b"mine"
    assert generate("a circle", "--model", model, "--out", "a.png", "--overwrite") == 0
    assert Path("a.png").read_bytes() != b"mine"


def test_the_settings_name_the_model(model: str, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings.put("model", model)
    settings.put("dtype", "bf16")
    assert generate("a circle", "--out", "a.png") == 0
    assert capfd.readouterr().err == ""
    assert parameters("a.png").parameters["Model"] == "tiny"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["<hypernet:imk:1>"], 4, "did you mean ink?"),
        (["<hypernet:ink:num>"], 2, "<hypernet:ink:num>"),
        (["<lora:ink:1>"], 2, "only hypernetworks"),
        (["a", "-n", "ink:much"], 2, "-n ink:much"),
        (["a", "-n", "absent.pt"], 4, "absent.pt"),
        (["a", "-n", "other"], 1, "other reaches no layer"),
        (["a", "--width", "20"], 2, "multiples of 8"),
        (["a", "--sampler", "Eulr a"], 2, '--sampler "Euler a"'),
        (["a", "--out", "a.jpg"], 2, "--out a.png"),
        (["a", "--out", "a.png", "--count", "2"], 2, "--out FOLDER"),
        (["a", "--out", "absent/a.png"], 4, "absent: no such folder"),
        (["a", "--seed", "-2"], 2, "--seed"),
        (["a", "--seed", str(2**63)], 2, "seeds lie between"),
        (["a", "--model", "absent"], 4, "absent"),
        (["a", "--model", "."], 1, "model_index.json"),
        (["\udcff"], 2, "not valid text"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(
    model: str,
    library: Path,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    assert run(["generate", "--model", model, *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert "Traceback" not in captured.err
    assert names(out) == []


def test_a_picture_of_nan_says_what_to_try(model: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tiny_sd()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(torch.nan)
    broken.save_pretrained("broken")
    capsys.readouterr()
    assert generate("a", "--model", "broken", "--dtype", "bf16", "--steps", "2", "--out", "pictures") == 1
    assert "--dtype fp32" in capsys.readouterr().err
    assert names(out) == ["broken"]


def test_what_a1111_would_read_and_hnetkit_does_not_is_said(
    model: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "a (circle:1.2) <wild:x>" + " b" * 80
    assert generate(prompt, "--model", model, "--negative-prompt", "<hypernet:ink:1>", "--out", "a.png") == 0
    notes = capsys.readouterr().err
    assert "Weights, schedules" in notes
    assert "<wild:x>: no known kind" in notes
    assert "negative prompt are plain text" in notes
    assert "does not read its end: b b" in notes
    assert generate(prompt, "--model", model, "--out", "b.png", "-q") == 0
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_leaves_130_and_only_whole_pictures(model: str, out: Path) -> None:
    command = [sys.executable, "-P", "-m", "hnetkit", "generate", "a", "--model", model, "--count", "10000", "-q"]
    process = subprocess.Popen(command, cwd=out, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    while len(list(out.glob("*.png"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert len(names(out)) >= 3
    for name in names(out):
        assert name.endswith(".png")
        with Image.open(out / name) as image:
            image.load()


def test_a_grid_is_one_labelled_picture(
    model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["grid", "ink", "wash", "--prompt", "a circle", "--model", model, "--seed", "7"]
    assert run([*arguments, "--strengths", "0,1", "--json"]) == 0
    captured = capsys.readouterr()
    (row,) = json.loads(captured.out)
    assert captured.err == ""
    assert (row["path"], row["networks"], row["strengths"]) == ("grid.png", ["ink", "wash"], [0.0, 1.0])
    assert (row["prompts"], row["seeds"]) == (["a circle"], [7])
    assert parameters("grid.png").parameters["Grid networks"] == "ink, wash"
    with Image.open("grid.png") as sheet:
        assert sheet.width > 2 * 192
        assert sheet.height > 2 * 192
    before = Path("grid.png").read_bytes()
    assert run([*arguments, "--strengths", "0"]) == 2
    assert Path("grid.png").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["ink"], 2),
        (["--prompt", "a"], 2),
        (["ink", "--prompt", "a", "--strengths", "0,much"], 2),
        (["ink", "--prompt", "a", "--strengths", "nan"], 2),
        (["ink", "--prompt", "a", "--out", "folder"], 2),
        (["imk", "--prompt", "a"], 4),
        (["ink", "--prompt", "a <hypernet:imk:1>"], 4),
        (["other", "--prompt", "a"], 1),
    ],
)
def test_a_grid_that_cannot_be_drawn_leaves_nothing(
    model: str, library: Path, out: Path, arguments: list[str], code: int
) -> None:
    assert run(["grid", "--model", model, *arguments]) == code
    assert names(out) == []


@needs_demo
def test_without_a_model_the_bundled_one_draws_with_its_own_networks(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(iter(demo.networks()))
    assert generate(f"a red circle <hypernet:{name}:0.7>", "--seed", "7", "--out", "a.png", "--steps", "2") == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert parameters("a.png").parameters["Model"] == "hnetkit-demo"
    assert generate("a <hypernet:absent:1>") == 4
    assert name in capsys.readouterr().err


@needs_demo
def test_the_demo_runs_the_whole_job_and_touches_no_library(
    home: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo"]) == 0
    captured = capsys.readouterr()
    for command in ("scan", "list", "convert", "generate", "grid"):
        assert f"\n$ hnetkit {command} " in captured.err + " " or f"\n$ hnetkit {command}\n" in captured.err
    made = {path.relative_to("demo-output").as_posix() for path in Path("demo-output").rglob("*")}
    first = next(iter(demo.networks()))
    assert {"grid.png", f"{first}.safetensors", "pictures/00000-7.png", "pictures/00002-7.png"} <= made
    assert len(parameters("demo-output/pictures/00000-7.png").hashes) == 3
    assert list(home.iterdir()) == []
    assert os.environ["HNETKIT_HOME"] == str(home)

    assert run(["demo"]) == 2
    assert "--overwrite" in capsys.readouterr().err


@needs_demo
def test_a_demo_whose_command_fails_ends_with_its_exit_code(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("demo-output").mkdir()
    shutil.copy(next(iter(demo.networks().values())), f"demo-output/{next(iter(demo.networks()))}.safetensors")
    assert run(["demo"]) == 2
    assert "the file exists" in capsys.readouterr().err
    assert not Path("demo-output/grid.png").exists()
