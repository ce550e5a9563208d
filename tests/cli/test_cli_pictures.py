"""`hnetkit generate`, `grid` and `demo`, on real tiny pipelines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.networks import a1111_network, save_pt
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd
from support.unet_truth import lora
from support.waiting import once

import hnetkit
from hnetkit import demo, settings
from hnetkit.cli import run
from hnetkit.files import MODEL_SUFFIXES
from hnetkit.image_text import write_image
from hnetkit.prompts import infotext

needs_demo = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")


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


@pytest.mark.parametrize("suffix", MODEL_SUFFIXES)
def test_a_file_is_a_file_by_every_suffix_that_a_library_may_hold(
    suffix: str, model: str, library: Path, out: Path
) -> None:
    source = hnetkit.load(library / "wash.pt")
    hnetkit.save(source, f"mine{suffix}")
    assert generate("a circle", "--model", model, "--seed", "7", "-n", f"mine{suffix}:0.5", "--out", "file.png") == 0
    assert run(["inspect", f"mine{suffix}"]) == 0


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


def test_a_model_that_is_a_link_to_itself_is_not_there(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / "loop").symlink_to("loop")
    assert generate("a circle", "--model", "loop") == 4
    assert "loop: no such file or folder" in capsys.readouterr().err


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
        (["<lora:ink:1>"], 2, "hnetkit config loras FOLDER"),
        ([], 2, "a PROMPT is missing"),
        (["--from", "absent.png"], 4, "absent.png"),
        (["a", "--mask", "m.png"], 2, "--image FILE --mask FILE"),
        (["a", "--image", "absent.png"], 4, "absent.png"),
        (["a", "--hires-size", "64 by 64"], 2, "WIDTHxHEIGHT"),
        (["a", "--hires-scale", "2", "--hires-size", "32x32"], 2, "leave one of them out"),
        (["a", "--hires-scale", "2", "--image", str(Path(__file__))], 2, "do not go together"),
        (["a", "-n", "ink:much"], 2, "-n ink:much"),
        (["a", "-n", "absent.pt"], 4, "absent.pt"),
        (["a", "-n", "other"], 1, "other reaches no layer"),
        (["a", "--width", "20"], 2, "multiples of 8"),
        (["a", "--sampler", "Eulr a"], 2, '--sampler "Euler a"'),
        (["a", "--out", "a.gif"], 2, "--out a.png"),
        (["a", "--out", "a."], 2, "--out a.png"),
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


def test_a_network_of_nan_is_named_and_not_the_strengths_blamed(
    model: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = a1111_network((*SELF_WIDTHS, SD_CROSS_WIDTH), activation="relu")
    content[8][0]["linear.0.weight"][0, 0] = torch.nan
    path = save_pt(content, out.parent / "nan.pt")
    assert generate("x", "--model", model, "-n", str(path), "--out", str(out)) == 7
    error = capsys.readouterr().err
    assert f"Error: {path}: values that are not finite at width 8" in error
    assert f"Hint: hnetkit validate {path};" in error
    assert not list(out.glob("*.png"))


def test_what_has_no_effect_in_a_prompt_is_said_with_its_column(
    model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "a circle <wild:x> <hypernet:ink:num>"
    assert generate(prompt, "--model", model, "--negative-prompt", "<hypernet:ink:1>", "--out", "a.png") == 0
    notes = capsys.readouterr().err
    assert "<wild:x>: no known kind" in notes
    assert "column 19: <hypernet:ink:num>: 'num' is not a number" in notes
    assert "negative prompt are plain text" in notes
    assert parameters("a.png").prompt == prompt
    assert generate(prompt, "--model", model, "--out", "b.png", "-q") == 0
    assert capsys.readouterr().err == ""


def test_a_picture_is_drawn_again_from_itself_bit_for_bit(model: str, library: Path, out: Path) -> None:
    drawn = ["a (red:1.2) circle <hypernet:ink:0.5:k=0.2> <hypernet:wash:1>", "--negative-prompt", "blurry, dark"]
    settings_ = ["--seed", "8", "--steps", "3", "--cfg-scale", "5.5", "--sampler", "DPM++ 2M Karras", "--rng", "nv"]
    more = ["--clip-skip", "2", "--ensd", "31337", "--variation-seed", "3", "--variation-strength", "0.2"]
    hires = ["--hires-scale", "2", "--hires-steps", "4", "--denoising", "0.5", "--hires-prompt", "x <hypernet:ink:1>"]
    assert generate(*drawn, "--model", model, *settings_, *more, *hires, "--out", "a.png") == 0
    assert generate("--from", "a.png", "--model", model, "--out", "b.png") == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert generate("--from", "a.png", "--model", model, "--steps", "2", "--out", "c.png") == 0
    assert parameters("c.png").parameters["Steps"] == "2"
    assert Path("c.png").read_bytes() != Path("b.png").read_bytes()


def test_a_picture_of_another_process_has_the_same_bytes(model: str, library: Path, out: Path) -> None:
    drawn = ["generate", "a circle <hypernet:ink:0.5>", "--seed", "4", "--model", model]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-P", "-m", "hnetkit", *drawn, "--out", "a.png"]
    subprocess.run(command, check=True, env=environment)
    assert run([*drawn, "--out", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_a_picture_of_a1111_is_drawn_with_its_noise_unless_said_otherwise(
    model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = (
        "a circle\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 8, Size: 16x16, Model hash: 2700c435, Hypernet: ink"
    )
    write_image(Path("old.png"), Image.new("RGB", (16, 16)), f"{about}, Hypernet strength: 0.7, ENSD: x, Clip skip: 2")
    assert generate("--from", "old.png", "--model", model, "--out", "a.png") == 0
    assert "ENSD: x cannot be taken over" in capsys.readouterr().err
    written = parameters("a.png")
    assert written.prompt == "a circle<hypernet:ink:0.7>"
    assert {"RNG": "NV", "Seed": "8", "Clip skip": "2", "Sampler": "Euler"}.items() <= written.parameters.items()
    assert generate("--from", "old.png", "--rng", "cpu", "--model", model, "--out", "b.png") == 0
    assert Path("a.png").read_bytes() != Path("b.png").read_bytes()


def test_a_network_and_a_model_that_are_others_than_the_pictures_are_named(
    model: str, library: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate("a <hypernet:ink:1> <hypernet:wash:1>", "--model", model, "--out", "own.png") == 0
    hashes = parameters("own.png").hashes
    wash = hashes["hypernet:wash"]
    other = f'{{"hypernet:ink": "0123456789", "hypernet:wash": "{wash}", "model": "deadbeef12"}}'
    about = f"a <hypernet:ink:1> <hypernet:wash:1>\nSteps: 2, Sampler: Euler, Seed: 8, Size: 16x16, Hashes: {other}"
    write_image(Path("old.png"), Image.new("RGB", (16, 16)), about)
    capsys.readouterr()
    assert generate("--from", "old.png", "--model", model, "--out", "a.png") == 0
    notes = capsys.readouterr().err
    assert "Warning: ink: the library's has another hash than 0123456789" in notes
    assert "wash" not in notes
    assert f"old.png: made with the model [deadbeef12], drawn with tiny [{hashes['model']}]" in notes
    assert generate("--from", "own.png", "--model", model, "--out", "b.png") == 0
    assert capsys.readouterr().err == ""


def test_a_picture_without_settings_cannot_be_drawn_again(
    model: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (8, 8)).save("bare.png")
    assert generate("--from", "bare.png", "--model", model) == 4
    assert "no settings" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_pictures_of_other_formats_carry_their_settings_too(model: str, out: Path, suffix: str) -> None:
    assert generate("a circle", "--model", model, "--seed", "3", "--out", f"a.{suffix}") == 0
    assert generate("--from", f"a.{suffix}", "--model", model, "--out", "b.png") == 0
    assert parameters("b.png").parameters["Seed"] == "3"


def test_the_settings_default_stack_ends_prompts_that_do_not_name_it(model: str, library: Path, out: Path) -> None:
    settings.put("hypernetworks", "<hypernet:ink:0.5> <hypernet:wash:0.2>")
    assert generate("a circle <hypernet:wash:1>", "--model", model, "--out", "a.png") == 0
    assert parameters("a.png").prompt == "a circle <hypernet:wash:1> <hypernet:ink:0.5>"
    assert generate("--from", "a.png", "a circle", "--model", model, "--out", "b.png") == 0
    assert parameters("b.png").prompt == "a circle"


@pytest.mark.parametrize(
    ("named", "is_seen"),
    [
        *(("k=0.9", True), ("v=0.9", True), ("self=0.9", True), ("cross=0.9", True), ("blocks=mid", True)),
        *(("end=0.5", True), ("start=0.5", True), ("start=1", False), ("end=0", False)),
    ],
)
def test_named_arguments_of_a_tag_change_the_picture_where_they_should(
    model: str, library: Path, out: Path, named: str, is_seen: bool
) -> None:
    strength = "0" if named[0] in "kvc" or named.startswith("self") else "0.9"
    options = ["--model", model, "--seed", "3", "--steps", "4", "--out"]
    assert generate("a circle", *options, "plain.png") == 0
    assert generate(f"a circle <hypernet:ink:{strength}:{named}>", *options, "named.png") == 0
    assert (Image.open("plain.png").tobytes() != Image.open("named.png").tobytes()) == is_seen


def test_a_lora_of_the_prompt_is_applied_at_its_strength(model: str, library: Path, out: Path) -> None:
    (out / "loras").mkdir()
    save_file(lora(tiny_sd(least=True)), out / "loras" / "style.safetensors")
    settings.put("loras", "loras")
    options = ["--model", model, "--seed", "3", "--out"]
    pictures = {}
    for name, tag in {
        "none": "",
        "zero": "<lora:style:0>",
        "half": "<lora:style:0.5>",
        "whole": "<lora:style>",
    }.items():
        assert generate(f"a circle {tag}", *options, f"{name}.png") == 0
        pictures[name] = Image.open(f"{name}.png").tobytes()
    assert len(set(pictures.values())) == 3
    assert pictures["none"] == pictures["zero"]
    assert "lora:style" in parameters("half.png").hashes
    assert generate("a circle <lora:stile>", *options, "a.png") == 4


def test_a_textual_inversion_of_the_settings_folder_is_read_by_its_name(model: str, library: Path, out: Path) -> None:
    (out / "embeddings").mkdir()
    save_file({"emb_params": torch.ones(2, SD_CROSS_WIDTH)}, out / "embeddings" / "mine.safetensors")
    options = ["--model", model, "--seed", "3", "--out"]
    assert generate("a mine", *options, "word.png") == 0
    settings.put("embeddings", "embeddings")
    assert generate("a mine", *options, "vectors.png") == 0
    assert generate("a thing", *options, "other.png") == 0
    settings.put("embeddings", None)
    assert generate("a thing", *options, "same.png") == 0
    assert Image.open("word.png").tobytes() != Image.open("vectors.png").tobytes()
    assert Path("other.png").read_bytes() == Path("same.png").read_bytes()


@needs_demo
def test_on_the_bundled_model_each_named_argument_counts_where_it_should(out: Path) -> None:
    options = ["--seed", "3", "--steps", "4", "-q", "--out"]
    names = ["k=1", "v=1", "self=1", "cross=1", "blocks=down", "blocks=mid,up", "start=0.5", "end=0.5"]
    idle = ["start=1", "end=0", "k=0:v=0"]
    pictures = {}
    for number, named in enumerate(["", *names, *idle]):
        strength = "0" if named[:2] in ("k=", "v=", "se", "cr") and named not in idle else "0.8"
        tag = f" <hypernet:outline:{strength}:{named}>" if named else ""
        assert generate(f"a large red star{tag}", *options, f"{number}.png") == 0
        pictures[named] = Image.open(f"{number}.png").tobytes()
    assert all(pictures[named] == pictures[""] for named in idle)
    assert len({pictures[named] for named in ["", *names]}) == len(names) + 1


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupt_leaves_130_and_only_whole_pictures(
    model: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with once(lambda: len(list(out.glob("*.png"))) >= 3, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert generate("a", "--model", model, "--count", "10000", "-q") == 130
    assert "Traceback" not in capsys.readouterr().err
    assert len(names(out)) >= 3
    for name in names(out):
        assert name.endswith(".png")
        with Image.open(out / name) as image:
            image.load()


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


@pytest.mark.parametrize("prompt", ["Negative prompt: fog", "a cat\n Negative prompt: fog"])
def test_a_prompt_that_will_be_read_as_another_is_told(
    model: str, out: Path, capsys: pytest.CaptureFixture[str], prompt: str
) -> None:
    assert generate(prompt, "--model", model, "--steps", "1", "--out", str(out / "a.png")) == 0
    assert parameters(out / "a.png").negative_prompt == "fog"
    assert "it begins the negative prompt" in capsys.readouterr().err
