"""`hnetkit.generate.draw_grid`: the sheet and the cells of `hnetkit grid`, from Python."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.drawing import SMALL, drawn
from support.pipelines import SD_CROSS_WIDTH, tiny_sd

import hnetkit
from hnetkit import settings
from hnetkit.cli import run
from hnetkit.errors import BadPicture, FileChanged, HnetkitError, NotFound, OutputExists, UsageError
from hnetkit.generate import model as models
from hnetkit.generate.grids import run as grid_run
from hnetkit.generate.grids.axes import label_of
from hnetkit.generate.model import Model


def pixels(model: Model, prompt: str) -> bytes:
    return model.draw(prompt, seed=7, **SMALL)[0].image.tobytes()


def test_a_grid_is_the_commands(sd: Model, sd_folder: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = pixels(sd, "a circle")
    axes = {"strength": [0, 0.5], "hypernetwork": ["ink", "wash:2", None], "prompt": "circle,star"}
    grid = drawn(sd, axes, networks=["mist:0.3"], negative_prompt="red circle", out="mine.png")
    said = ["--steps", "2", "--width", "16", "--height", "16", "--device", "cpu", "--negative-prompt", "red circle"]
    texts = ["--x", "strength=0,0.5", "--y", "hypernetwork=ink,wash:2,none", "--z", "prompt=circle,star"]
    command = ["grid", "--prompt", "a circle", "--seed", "7", "-n", "mist:0.3", "--model", str(sd_folder)]
    capsys.readouterr()
    assert run([*command, *said, *texts, "--out", "its.png", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert Path("mine.png").read_bytes() == Path("its.png").read_bytes()
    assert Path("mine.jsonl").read_text().replace("mine-cells", "its-cells") == Path("its.jsonl").read_text()
    assert (grid.path, grid.infotext, len(grid.cells), grid.drawn) == (Path("mine.png"), row["infotext"], 12, 6)
    assert (grid.axes, grid.networks, grid.prompts) == (row["axes"], row["networks"], row["prompts"])
    for cell in grid.cells:
        with Image.open(cell["picture"].replace("mine", "its")) as picture:
            assert grid.picture(cell).tobytes() == picture.tobytes()
    assert grid.image.size == Image.open("its.png").size
    assert pixels(sd, "a circle") == plain
    assert hnetkit.get_active_hypernetworks(sd.pipe) == []


def test_networks_are_rows_and_axes_may_be_the_commands_words(sd: Model, here: Path) -> None:
    names = drawn(sd, names=["ink", "wash"], strengths=[0, 1], out="names.png")
    texts = drawn(sd, ["strength=0,1", "hypernetwork=ink,wash"], out="texts.png")
    assert Path("names.png").read_bytes() == Path("texts.png").read_bytes()
    assert names.axes == texts.axes == {"strength": [0.0, 1.0], "hypernetwork": ["ink", "wash"]}
    several = drawn(sd, names="ink", strengths="1", prompt=["a circle", "a star"], seed=[7, 8], out="several.png")
    assert [(cell["prompt"], cell["seed"]) for cell in several.cells] == [
        (f"{prompt} <hypernet:ink:1>", seed) for prompt in ("a circle", "a star") for seed in (7, 8)
    ]
    orders = drawn(sd, {"order": [["ink", "wash"], ["wash", "ink"]]}, networks=["ink", "wash"], out="orders.png")
    assert [cell["coordinates"]["order"] for cell in orders.cells] == [("ink", "wash"), ("wash", "ink")]


def test_networks_of_a_grid_have_the_strengths_that_are_given_with_them(sd: Model, here: Path) -> None:
    in_each = drawn(sd, {"seed": [1]}, networks={"ink": 0.25}, out="each.png")
    assert in_each.cells[0]["prompt"].endswith("<hypernet:ink:0.25>")
    on_axis = drawn(sd, {"hypernetwork": {"ink": 0.25, "wash": 0.5}}, out="axis.png")
    tags = [cell["prompt"].partition(" <")[2] for cell in on_axis.cells]
    assert tags == ["hypernet:ink:0.25>", "hypernet:wash:0.5>"]


def test_the_same_call_draws_what_is_missing_and_tells_how_far_it_is(sd: Model, here: Path) -> None:
    done: list[tuple[float, float]] = []
    told: list[str] = []
    axes = {"seed": range(1, 4)}
    first = drawn(sd, axes)
    assert first.drawn == 3
    with pytest.raises(OutputExists):
        drawn(sd, axes)
    Path("grid.png").unlink()
    Path(first.cells[1]["picture"]).unlink()
    again = drawn(sd, axes, progress=lambda *at: done.append(at), note=told.append)
    assert (again.drawn, again.cells) == (1, first.cells)
    assert done == [(0.5, 1), (1, 1)]
    assert told == ["2 of 3 pictures are there already."]


def test_a_model_is_loaded_where_an_axis_names_another_one_alone(
    sd: Model, sd_folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    original = models.load_pipeline

    def counting(place: str, **options: Any) -> Any:
        loaded.append(place)
        return original(place, **options)

    monkeypatch.setattr(models, "load_pipeline", counting)
    tiny_sd(seed=5).save_pretrained("other")
    assert drawn(sd, {"strength": [0, 1]}, networks=["ink"]).drawn == 2
    assert loaded == []
    grid = drawn(sd, {"checkpoint": ["other"], "seed": [1]}, out="other.png")
    assert loaded == ["other"]
    assert [cell["model"] for cell in grid.cells] == ["other"]


def test_a_model_whose_files_were_replaced_since_it_was_loaded_is_loaded_again_first(
    sd_folder: Path, here: Path
) -> None:
    shutil.copytree(sd_folder, "own")
    model = hnetkit.load_model("own", device="cpu")
    file = Path("own/scheduler/scheduler_config.json")
    file.write_text(file.read_text() + " ")
    with pytest.raises(FileChanged, match="own: replaced since the model was loaded"):
        drawn(model, {"seed": [1]})
    assert drawn(hnetkit.load_model("own", device="cpu"), {"seed": [1]}).drawn == 1


@pytest.mark.parametrize("part", ["unet", "vae", "tokenizer"])
def test_cells_are_drawn_again_with_a_part_that_was_replaced(sd: Model, here: Path, part: str) -> None:
    """Also with one that has the same class and other values; and not again with the same one."""
    before = drawn(sd, {"seed": [1]}, prompt="a star", out="g.png")
    other = getattr(tiny_sd(3, least=True), part)
    if part == "tokenizer":
        other.add_tokens(["star"], special_tokens=True)
    setattr(sd.pipe, part, other)
    told: list[str] = []
    if part == "tokenizer":
        sd.pipe.text_encoder.resize_token_embeddings(len(other))
    after = drawn(sd, {"seed": [1]}, prompt="a star", out="g.png", overwrite=True, note=told.append)
    assert (before.drawn, after.drawn) == (1, 1)
    assert f"Warning: pictures cannot name the model: its {part} was replaced after loading" in told
    assert before.cells[0]["key"] != after.cells[0]["key"]
    assert drawn(sd, {"seed": [1]}, prompt="a star", out="g.png", overwrite=True).drawn == 0


def test_a_cell_states_the_textual_inversions_of_its_own_prompt(sd: Model, here: Path) -> None:
    Path("embeddings").mkdir()
    for name in ("mine", "other"):
        save_file({"emb_params": torch.ones(2, SD_CROSS_WIDTH)}, f"embeddings/{name}.safetensors")
    settings.put("embeddings", "embeddings")
    grid = drawn(sd, {"prompt": ["mine", "star"]}, prompt="mine", negative_prompt="a fog", out="g.png")
    first, second = (cell["infotext"] for cell in grid.cells)
    assert "embed:mine" in first
    assert "embed:other" not in first
    assert "embed:" not in second
    (picture,) = sd.draw("mine", seed=7, **SMALL, negative_prompt="a fog")
    assert picture.infotext == first


def test_a_cell_that_cannot_be_drawn_is_among_those_that_failed(sd: Model, here: Path) -> None:
    shutil.copy("networks/ink.pt", "networks/bad.pt")
    with hnetkit.Library() as library:
        library.scan("networks")
        Path("networks/bad.pt").write_bytes(b"no network")
        grid = drawn(sd, {"hypernetwork": ["ink", "bad"]}, library=library)
    assert [cell["coordinates"] for cell in grid.failed] == [{"hypernetwork": "bad"}]
    assert grid.picture(grid.cells[0]).size == (16, 16)
    with pytest.raises(BadPicture, match="could not be drawn"):
        grid.picture(grid.cells[1])
    with pytest.raises(HnetkitError, match=r"bad\.pt"):
        drawn(sd, {"hypernetwork": ["bad"]}, out="none.png")
    assert not Path("none.png").exists()


@pytest.mark.parametrize(
    ("axes", "options", "says"),
    [
        ({}, {}, "nothing varies"),
        ({"smpler": ["DDIM"]}, {}, "no axis has this name"),
        ({"steps": [1, "x"]}, {}, "x: not a number"),
        ({"seed": [1], "steps": [1], "cfg": [2], "sampler": ["DDIM"]}, {}, "at most 3"),
        ({"seed": [1]}, {"names": ["ink"]}, "NAMEs are rows already"),
        ({"seed": [1]}, {"strengths": [1, 2]}, "--strengths goes with NAMEs"),
        ({"cfg": [1]}, {"seed": [1, 2]}, "one --seed"),
        ({"cfg": [1]}, {"seed": -2}, "seed -2"),
        ({"cfg": [1]}, {"prompt": []}, "a prompt and a seed are needed"),
        ({"cfg": [1]}, {"steps": 0}, "steps: 0"),
        ({"cfg": [1]}, {"out": "folder"}, "a grid is one picture file"),
        ("strength=0,1", {"networks": "imk"}, "imk"),
        ({"cfg": [1]}, {"out": "folder/grid.png"}, "no such folder"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_one_of_the_packages_own_errors(
    sd: Model, here: Path, axes: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises((UsageError, NotFound), match=says):
        drawn(sd, axes, **options)
    assert not list(here.glob("grid*"))


def test_the_room_is_reached_without_loading_anything_heavy() -> None:
    probe = (
        "import sys, hnetkit; hnetkit.generate; hnetkit.load_model; print('torch' in sys.modules);"
        "print(hnetkit.generate.draw_grid is hnetkit.generate.draw_grid)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def told(model: Model, axes: Any = (), **options: Any) -> list[str]:
    lines: list[str] = []
    drawn(model, axes, note=lines.append, overwrite=True, **options)
    return [line for line in lines if line.startswith("Warning")]


def test_strengths_without_a_network_are_an_error(sd: Model, here: Path) -> None:
    for axes in (["strength=0,0.5,1"], ["strength=0"], ["strength=0,1", "hypernetwork=none"]):
        with pytest.raises(UsageError, match="no network whose strength could vary"):
            drawn(sd, axes)
    assert told(sd, ["strength=0", "hypernetwork=none,ink"]) == []


def test_strengths_that_a_grid_does_not_change_or_replaces_are_told(sd: Model, here: Path) -> None:
    tag = "<hypernet:ink:1:k=0.5>"
    said = f"Warning: {tag}: the strengths of the grid do not change k of it"
    for axis in ("strength=0,1", "strength:ink=0,1"):
        assert told(sd, [axis], prompt=f"a circle {tag}") == [said]
    assert told(sd, ["strength:wash=0,1"], prompt=f"a circle {tag}", networks=["wash"]) == []
    said = "Warning: ink:0.5: the strengths of the grid replace its 0.5"
    assert told(sd, names=["ink:0.5", "wash"], strengths="0.5,1") == [said]
    assert told(sd, ["seed=1", "hypernetwork=ink:0.5"]) == []


def test_axes_that_do_not_reach_a_second_pass_with_its_own_prompt_are_told(sd: Model, here: Path) -> None:
    """So strength 0 is not the picture without the network there."""
    prompt, own = "a circle <hypernet:ink:1> <hypernet:wash:1>", "a circle <hypernet:ink:1>"
    twice: dict[str, Any] = {"prompt": prompt, "hires_scale": 1.5}
    said = " changes the first pass alone: the second has a prompt of its own, --hires-prompt"
    for axis in ("strength=0,1", "strength:ink=0,1", "order=all", "prompt=circle,star"):
        name = axis.partition("=")[0]
        assert told(sd, [axis], **twice, hires_prompt=own) == [f"Warning: {name}{said}"]
        assert told(sd, [axis], **twice) == []
    assert told(sd, ["seed=1,2"], **twice, hires_prompt=own) == []
    (line,) = told(sd, names=["mist"], strengths="0,1", **twice, hires_prompt=own)
    assert line.startswith("Warning: mist applies in the first pass alone")
    negative = "Warning: prompt does not change the negative prompt of the second pass, --hires-negative-prompt"
    assert told(sd, ["prompt=circle,star"], **twice, hires_negative_prompt="a circle") == [negative]


def test_strength_0_is_not_called_none_where_a_part_of_the_network_stays(
    sd: Model, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []

    def make_sheet(grid: Any, rows: Any, files: Any, title: str, names: Any) -> Any:
        labels.extend(label_of(value, names) for value in grid.x)
        return renders(grid, rows, files, title, names)

    renders = grid_run.make_sheet
    monkeypatch.setattr(grid_run, "make_sheet", make_sheet)
    grid = drawn(sd, ["strength=0,1"], prompt="a circle <hypernet:ink:1:k=0.5>")
    assert pixels(sd, "a circle") != grid.picture(grid.cells[0]).tobytes()
    drawn(sd, ["strength=0,1"], prompt="a circle <hypernet:ink:1>", overwrite=True)
    assert labels == ["0", "1", "none", "1"]


def test_a_network_of_the_settings_is_not_added_in_the_cells_that_name_it(sd: Model, here: Path) -> None:
    """So strength 0 of it is the picture without it, and its other strengths are its own."""
    settings.put("hypernetworks", "<hypernet:ink:1>")
    grid = drawn(sd, names=["ink", "wash"], strengths=[0, 0.5])
    assert [cell["prompt"] for cell in grid.cells] == [
        "a circle",
        "a circle <hypernet:ink:0.5>",
        "a circle <hypernet:ink:1>",
        "a circle <hypernet:ink:1> <hypernet:wash:0.5>",
    ]
    grid = drawn(sd, {"hypernetwork": ["wash", None]}, networks=["ink:0.3"], out="beside.png")
    prompts = [cell["prompt"] for cell in grid.cells]
    assert prompts == ["a circle <hypernet:ink:0.3> <hypernet:wash:1>", "a circle <hypernet:ink:0.3>"]


def test_a_network_twice_in_a_stack_is_told_where_every_order_is_wanted(sd: Model, here: Path) -> None:
    (line,) = told(sd, ["order=all"], networks=["ink", "ink:0.3", "wash"])
    assert line.endswith("a network is in the stack twice, and its two places are not exchanged")
    assert told(sd, ["order=all"], networks=["ink", "wash"]) == []
