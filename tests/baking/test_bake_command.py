"""`hnetkit bake`: files of the bundled model's networks, rows that say what they are, and what is refused at once."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.networks import a1111_network, network_file, save_pt
from support.pipelines import tiny_sd

import hnetkit
from hnetkit import demo, settings
from hnetkit.baking.record import told
from hnetkit.cli import run
from hnetkit.generate.loading.baked import METADATA

needs_demo = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")
pytestmark = needs_demo

QUICK = ["--steps", "1", "--prompts", "prompts.txt"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red circle\n\na blue star\na black square\na green star\n")
    return tmp_path


def test_an_affine_network_leaves_in_a_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bake", "-n", "paper:0.5", "--to", "diff", "--for", "comfyui", "--out", "paper.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert out == "paper.safetensors\n"
    assert "Exact, to rounding to fp32: 28 of 28 projections." in err
    kinds = {name.rpartition(".")[2] for name in load_file("paper.safetensors")}
    assert kinds == {"diff", "diff_b"}


def test_rows_and_the_file_say_the_same_of_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bake", "-n", "outline:0.8", "-n", "paper:0.6", "--rank", "4", "--check", "sheet.png", "--json", *QUICK]
    assert run([*command, "--out", "both.safetensors"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    with safe_open("both.safetensors", "pt") as file:
        record = json.loads(file.metadata()[METADATA])
    assert {key: row[key] for key in record} == record
    assert [(network["name"], network["strength"]["cross_v"]) for network in record["networks"]] == [
        ("outline", 0.8),
        ("paper", 0.6),
    ]
    assert record["networks"][0]["content_hash"] == hnetkit.load(demo.networks()["outline"]).content_hash
    assert len(record["layers"]) == 28
    assert {layer["rank"] for layer in record["layers"].values()} == {4}
    assert row["error"] == pytest.approx(max(layer["error"] for layer in record["layers"].values()), abs=1e-6)
    assert row["picture_error"] == record["pictures"]["share"]
    assert record["fitted_on"]["holds_out"] == "prompts and seeds"
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 3 * 192  # three columns of pictures that are large enough to see
        assert sheet.height > 4 * 192


def test_comments_and_textual_inversions_of_prompts_are_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("embeddings").mkdir()
    Path("embeddings/mine.pt").write_bytes(b"x")
    settings.put("embeddings", "embeddings")
    Path("noted.txt").write_text("a red circle # the first\na mine star\n")
    command = ["bake", "-n", "outline", "--rank", "4", "--steps", "1", "--prompts", "noted.txt", "--json"]
    assert run([*command, "--out", "outline.safetensors"]) == 0
    printed, err = capsys.readouterr()
    (row,) = json.loads(printed)
    assert row["fitted_on"]["prompts"] + row["fitted_on"]["held_out"] == ["a red circle", "a mine star"]
    assert "Left out of the prompt as a comment: # the first" in err
    assert "Warning: mine: a textual inversion, which a bake reads as the words of its name" in err


def test_tags_have_strengths_by_side(here: Path) -> None:
    assert run(["bake", "<hypernet:paper:1:v=0>", "--to", "diff", "--for", "a1111", "--out", "k.safetensors"]) == 0
    assert {name.rpartition("_")[2] for name in load_file("k.safetensors")} == {"k.diff"}


def test_a_baked_lora_works_in_a_prompt(here: Path, recwarn: pytest.WarningsRecorder) -> None:
    Path("loras").mkdir()
    assert run(["bake", "-n", "paper:0.7", "--out", "loras/baked.safetensors"]) == 0
    assert run(["config", "loras", "loras"]) == 0
    drawing = ["--seed", "3", "--steps", "3"]
    assert run(["generate", "a star <lora:baked:1>", *drawing, "--out", "lora.png"]) == 0
    assert not [said for said in recwarn if "lora_bias" in str(said.message)]  # PEFT's, of merging
    assert run(["generate", "a star", "-n", "paper:0.7", *drawing, "--out", "network.png"]) == 0
    assert run(["generate", "a star", *drawing, "--out", "none.png"]) == 0
    lora, network, none = (pixels(name) for name in ("lora.png", "network.png", "none.png"))
    assert (lora - network).abs().max() <= 1
    assert (none - network).abs().max() > 20


def test_networks_side_by_side_are_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = ["-n", "outline:0.8", "-n", "outline:0.3", "--to", "hypernetwork"]
    assert run(["bake", *stack, "--out", "wide.pt"]) == 2
    assert "--to lora, which is fitted; or --mix parallel" in capsys.readouterr().err
    assert run(["bake", *stack, "--mix", "parallel", "--out", "wide.pt"]) == 0
    wide, own = hnetkit.load("wide.pt"), hnetkit.load(demo.networks()["outline"])
    assert wide.layer_structure == [1, 4, 1]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(hnetkit.Stack([(wide, 1.0)])(x), hnetkit.Stack([(own, 1.1)])(x), strict=True):
        assert (found - expected).abs().max() < 1e-5
    capsys.readouterr()
    assert run(["bake", *stack, "--mix", "average", "--out", "mean.pt", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["origin"] == "average"
    assert "not what the networks do together" in err


def test_a_checkpoint_is_a_model(here: Path) -> None:
    assert run(["bake", "-n", "paper:0.7", "--to", "checkpoint", "--out", "paper-model"]) == 0
    drawing = ["--seed", "3", "--steps", "3"]
    assert run(["generate", "a star", "--model", "paper-model", *drawing, "--out", "baked.png"]) == 0
    assert run(["generate", "a star", "-n", "paper:0.7", *drawing, "--out", "network.png"]) == 0
    assert (pixels("baked.png") - pixels("network.png")).abs().max() <= 1


def test_a_network_that_is_baked_in_already_is_told_where_it_is_applied_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper, outline = (str(demo.networks()[name]) for name in ("paper", "outline"))
    Path("loras").mkdir()
    settings.put("loras", str(here / "loras"))
    assert run(["bake", "-n", paper, "--to", "checkpoint", "--out", "paper-model"]) == 0
    assert run(["bake", "-n", paper, "--out", "loras/baked.safetensors"]) == 0
    weights = Path("paper-model", "unet", "diffusion_pytorch_model.safetensors")
    hnetkit.save(hnetkit.load(paper), "small.safetensors", dtype="bf16")  # the same network to other people
    capsys.readouterr()

    def told_of(*command: str) -> list[str]:
        assert run([*command, "--steps", "1", "--overwrite"]) == 0
        return [line for line in capsys.readouterr().err.splitlines() if "once more" in line]

    on_it = ["--model", "paper-model", "--out", "a.png"]
    line = "Warning: {} was baked into {} already, and is applied once more: leave it out of one of them"
    assert told_of("generate", "a", "-n", f"{paper}:0.5", *on_it) == [line.format("paper", weights)]
    assert told_of("generate", "a", "-n", "small.safetensors", *on_it) == [line.format("small", weights)]
    lora = line.format("paper", here / "loras" / "baked.safetensors")
    assert told_of("generate", "a <lora:baked:1>", "-n", paper, "--out", "a.png") == [lora]
    again = ["--to", "diff", "--for", "comfyui", "--out", "diff.safetensors"]
    assert told_of("bake", "-n", paper, "--model", "paper-model", *again) == [line.format("paper", weights)]
    assert told_of("generate", "a", "-n", outline, "-n", f"{paper}:0", *on_it) == []
    assert told_of("generate", "a", "-n", paper, "--out", "a.png") == []
    tint = str(network_file(here, "tint.pt", widths=(64, 80), activation="linear"))
    assert run(["bake", "-n", tint, "--model", "paper-model", "--to", "checkpoint", "--out", "both"]) == 0
    twice = Path("both", "unet", "diffusion_pytorch_model.safetensors")
    on_both = ["--model", "both", "--out", "a.png"]
    lines = [line.format("paper", twice), line.format("tint", twice)]
    assert told_of("generate", "a", "-n", paper, "-n", tint, *on_both) == lines
    assert run(["inspect", str(twice)]) == 0
    assert "baked of tint:1, on paper-model, which was baked of paper:1; exact" in capsys.readouterr().out


@pytest.mark.parametrize("record", ['{"error": NaN}', "[1]", '{"networks": 3}', '{"model_baked": [2]}'])
def test_a_copy_of_a_model_with_any_record_is_made(here: Path, record: str) -> None:
    shutil.copytree(demo.model_folder(), "model")
    weights = Path("model", "unet", "diffusion_pytorch_model.safetensors")
    save_file(load_file(weights), weights, {METADATA: record})
    paper = str(demo.networks()["paper"])
    assert run(["bake", "-n", paper, "--model", "model", "--to", "checkpoint", "--out", "copy"]) == 0
    assert run(["inspect", str("copy" / weights.relative_to("model"))]) == 0


def test_inspect_says_what_a_file_was_baked_of(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bake", "-n", "paper:0.5", "--to", "diff", "--for", "comfyui", "--out", "diff.safetensors"]) == 0
    assert run(["bake", "<hypernet:paper:1:v=0.5>", "--out", "lora.safetensors"]) == 0
    capsys.readouterr()
    assert run(["inspect", "diff.safetensors", "lora.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "full differences of a model's weights, not a hypernetwork" in out
    assert (
        "baked of paper:0.5, on hnetkit-demo, for comfyui; exact, to rounding, the largest relative error is 0\n" in out
    )
    assert "baked of paper (self_k 1, self_v 0.5, cross_k 1, cross_v 0.5), on hnetkit-demo, for diffusers; exact" in out
    assert run(["inspect", "diff.safetensors", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["verdict"], row["baked"]["networks"][0]["name"]) == ("diff", "other", "paper")


LAYER = '{"networks": [], "for": "", "model": "m", "layers": {"x": {"error": %s, "origin": "exact"}}}'


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        '{"networks": 5}',
        '{"networks": [{"name": "a", "strength": {}}]}',
        LAYER % f"1{'0' * 400}",
        LAYER.replace("[]", f'[{{"name": "a", "strength": {{"self_k": 1{"0" * 400}}}}}]') % 0,
    ],
    ids=["cut", "list", "number", "no strength", "vast error", "vast strength"],
)
def test_a_record_that_is_none_is_no_fault_of_the_file(
    record: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"lora_unet_x.diff": torch.zeros(2, 2)}, "odd.safetensors", {METADATA: record})
    save_file({"lora_unet_x.diff": torch.zeros(2, 2)}, "plain.safetensors")
    assert run(["inspect", "odd.safetensors", "plain.safetensors"]) == 0
    out, err = capsys.readouterr()
    assert ("not understood" in out) == record.startswith('{"')
    assert "plain.safetensors" in out
    assert err == ""


def test_a_record_of_very_many_networks_is_told_in_a_line_of_bounded_length() -> None:
    network = {"name": "a" * 100, "strength": {"self_k": 1}}
    record = {"networks": [network] * 10_000, "for": "", "model": "m", "layers": {"x": {"error": 0, "origin": "exact"}}}
    assert len(told(record)) < 3000


def test_one_prompt_is_said_to_hold_out_other_seeds_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("prompts.txt").write_text("# one\na red circle\n")
    assert run(["bake", "-n", "outline", "--out", "outline.safetensors", *QUICK]) == 0
    assert "There is one prompt, so errors are those of other seeds alone" in capsys.readouterr().err


def test_above_the_limit_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bake", "-n", "outline", "--max-error", "0.01", "--check", "sheet.png", *QUICK]
    assert run([*command, "--out", "outline.safetensors"]) == 1
    assert "nothing was written" in capsys.readouterr().err
    assert sorted(path.name for path in here.iterdir()) == ["prompts.txt"]


REFUSED: list[tuple[list[str], int, str]] = [
    ([], 2, "there is no hypernetwork to bake"),
    (["-n", "nobody"], 4, "nobody"),
    (["a star <hypernet:paper:1>"], 2, "hypernetworks are baked, and nothing else"),
    (["<hypernet:paper:1:end=0.5>"], 2, "paper is limited to 0 to 0.5 of the steps"),
    (["-n", "other.pt"], 1, "other"),
    (["-n", "sdxl.pt"], 1, "sdxl"),
    (["-n", "nan.pt"], 7, "values that are not finite"),
    (["-n", "paper", "--rank", "0"], 2, "a rank is a whole number from 1 on"),
    (["-n", "paper", "--rank", "97"], 2, "rank 97: the widest layer has 96"),
    (["-n", "paper", "--max-error", "nan"], 2, "an error lies between 0 and 1"),
    (["-n", "paper", "--to", "diff"], 2, "--to diff: programs name full differences differently"),
    (["-n", "dots", "--for", "a1111"], 2, "carry no bias"),
    (["-n", "paper", "--prompts", "tagged.txt"], 2, "a prompt has tags"),
    (
        ["-n", "paper", "--prompts", "kohya.txt"],
        2,
        "a prompt has options, which would be drawn as words: --n, --w in a",
    ),
    (["-n", "paper", "--prompts", "pasted.txt"], 2, "a prompt is the generation data of a picture"),
    (["-n", "paper", "--prompts", "empty.txt"], 2, "empty.txt: has no prompt"),
    (["-n", "paper", "--prompts", "absent.txt"], 4, "absent.txt: no such file"),
    (["-n", "paper", "--check", "sheet.txt"], 2, "sheet.txt"),
    (["-n", "paper", "--out", "there.safetensors"], 2, "there.safetensors: the file exists"),
    (["-n", "sdxl.pt", "--to", "hypernetwork", "--out", "sdxl.pt", "--overwrite"], 2, "one of the networks that are"),
    (["-n", "paper", "--out", "mine.safetensors", "--overwrite"], 2, "mine.safetensors: a file of another kind"),
    (["-n", "paper", "--check", "no/sheet.png"], 4, "no: no such folder"),
    (["-n", "paper", "--out", "out.pt"], 2, "out.pt: weights are written as .safetensors"),
    (["-n", "paper", "--out", "no/out.safetensors"], 4, "no: no such folder"),
    (["-n", "paper", "--to", "checkpoint", "--out", "folder", "--overwrite"], 2, "a folder is never replaced"),
    (["-n", "paper", "--to", "checkpoint"], 2, "new.safetensors: the model is a folder, and so is its copy"),
    (["-n", "paper", "--model", "pickled.ckpt", "--to", "checkpoint"], 2, "copies are made of .safetensors"),
    (
        ["-n", "paper", "--model", "./folder", "--to", "checkpoint", "--out", "copy"],
        1,
        "no pipeline in diffusers' layout",
    ),
]


@pytest.mark.parametrize(("arguments", "code", "said"), REFUSED, ids=[" ".join(row[0]) for row in REFUSED])
def test_what_cannot_be_baked_is_refused_in_a_line(
    arguments: list[str], code: int, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tagged.txt").write_text("a star <lora:ink:1>\n")
    Path("kohya.txt").write_text("a star\na star --n blurred --w 512\n")
    Path("pasted.txt").write_text("a star\nSteps: 4, Sampler: Euler, Seed: 5\n", encoding="utf-8")
    Path("empty.txt").write_text("\n \n# a comment\n")
    Path("there.safetensors").write_bytes(b"x")
    Path("pickled.ckpt").write_bytes(b"x")
    Path("folder").mkdir()
    network_file(here, "mine.safetensors", widths=(64, 80), activation="relu")
    network_file(here, "other.pt", widths=(8, 24), activation="relu")
    network_file(here, "sdxl.pt", widths=(640, 2048), structure=(1, 0.01, 1), activation="relu")
    content = a1111_network(widths=(64, 80, 96))
    content[64][0]["linear.0.weight"][0, 0] = float("nan")
    save_pt(content, here / "nan.pt")
    before = sorted(path.name for path in here.iterdir())
    out = [] if "--out" in arguments else ["--out", "new.safetensors"]
    assert run(["bake", *arguments, *out]) == code
    printed, err = capsys.readouterr()
    assert printed == ""
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert said in line
    assert sorted(path.name for path in here.iterdir()) == before


def test_a_disk_without_room_is_refused_before_work_begins(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = shutil.disk_usage(here)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    for to in (["--out", "a.safetensors"], ["--to", "checkpoint", "--out", "copy"]):
        assert run(["bake", "-n", "dots", *QUICK, *to]) == 1
        assert "the disk has 1.0 kB left" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["prompts.txt"]


def test_fused_projections_and_loras_are_refused(here: Path) -> None:
    from support.unet_truth import lora

    network = hnetkit.load(network_file(here, "ink.pt", widths=(8, 20, 24), activation="relu"))
    fused, with_lora = tiny_sd(), tiny_sd()
    for pipe in (fused, with_lora):
        hnetkit.load_hypernetwork(pipe, network, "ink")
    with_lora.load_lora_weights(lora(with_lora))
    with pytest.raises(hnetkit.errors.AttachError, match="has a LoRA"):
        hnetkit.bake(with_lora)
    hnetkit.unload_hypernetworks(fused)
    fused.fuse_qkv_projections()
    with pytest.raises(hnetkit.errors.AttachError, match="fused"):
        hnetkit.load_hypernetwork(fused, network, "ink")


def pixels(path: str) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.tensor(list(image.convert("RGB").tobytes()), dtype=torch.int32)


def test_the_library_knows_what_was_baked(here: Path) -> None:
    paper = ["bake", "-n", "paper:0.5", "--to", "diff", "--for", "comfyui", "--out", "paper.safetensors"]
    merged = ["bake", "-n", "paper", "--to", "hypernetwork", "--out", "paper.pt"]
    assert [run(paper), run(merged)] == [0, 0]
    content = hnetkit.load(demo.networks()["paper"]).content_hash
    with hnetkit.Library() as library:
        found = {os.path.basename(bake.path): bake for bake in library.registry.bakes.of(content)}
    assert found.keys() == {"paper.safetensors", "paper.pt"}
    bake = found["paper.safetensors"]
    assert (bake.path, bake.target, bake.program) == (str(here / "paper.safetensors"), "diff", "comfyui")
    assert (bake.error, bake.model_name, len(bake.model_hash or "")) == (0.0, "hnetkit-demo", 10)
    assert bake.parts[0].strength["cross_v"] == 0.5
    assert found["paper.pt"].target == "hypernetwork"


def test_a_library_that_cannot_be_written_costs_no_bake(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hnetkit.Library() as library:
        place = library.registry.path
    with closing(sqlite3.connect(place)) as connection:
        connection.execute("CREATE TRIGGER full BEFORE INSERT ON bakes BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    assert run(["bake", "-n", "paper", "--to", "hypernetwork", "--out", "paper.pt"]) == 0
    assert "paper.pt is written, but the library has no record of it" in capsys.readouterr().err
    assert hnetkit.load("paper.pt").is_affine
