"""Comments in typed prompts are told and not drawn; what a picture says is drawn as it stands."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors.torch import save_file
from support.drawing import SMALL, drawn
from support.pipelines import tiny_sd
from support.unet_truth import lora

import hnetkit
from hnetkit import settings
from hnetkit.errors import UsageError
from hnetkit.generate.model import Model
from hnetkit.generate.options import DrawOptions
from hnetkit.image_text import write_image

COMMENT = "# <hypernet:wash:1> blue"
PROMPTS = [field.name for field in fields(DrawOptions) if "prompt" in field.name]
SAID = f"Left out of the prompt as a comment: {COMMENT}"


def test_a_network_that_is_commented_out_is_not_applied(sd: Model, here: Path) -> None:
    said: list[str] = []
    (plain,) = sd.draw("a star <hypernet:ink:1> ", seed=7, **SMALL)
    (picture,) = sd.draw(f"#wash\n# more\na star <hypernet:ink:1> {COMMENT}", seed=7, note=said.append, **SMALL)
    assert picture.image.tobytes() == plain.image.tobytes()
    assert picture.infotext == plain.infotext
    assert [network["name"] for network in picture.hypernetworks] == ["ink"]
    assert said == [f"Left out of the prompt as a comment: {text}" for text in ("#wash", "# more", COMMENT)]


@pytest.mark.parametrize("option", PROMPTS)
def test_every_option_with_a_prompt_has_comments(option: str, sd: Model, here: Path) -> None:
    said: list[str] = []
    passes = {"hires_scale": 2} if option.startswith("hires") else {}
    (plain,) = sd.draw("a star", seed=7, **{option: "red "}, **passes, **SMALL)
    (picture,) = sd.draw("a star", seed=7, **{option: f"red {COMMENT}"}, **passes, note=said.append, **SMALL)
    assert picture.image.tobytes() == plain.image.tobytes()
    assert picture.infotext == plain.infotext
    assert said == [SAID]


@pytest.mark.parametrize("option", PROMPTS)
def test_generation_data_are_no_prompt_beside_another_one(option: str, sd: Model, here: Path) -> None:
    with pytest.raises(UsageError, match="generation data"):
        sd.draw("a star", seed=7, **{option: "red\nSteps: 4, Sampler: Euler, Seed: 5"}, **SMALL)


def test_cells_of_a_grid_have_comments_wherever_a_prompt_comes_from(sd: Model, here: Path) -> None:
    said: list[str] = []
    axes = {"prompt": ["star", f"circle {COMMENT}"], "strength": [0, 1]}
    grid = drawn(
        sd, axes, prompt="a star <hypernet:ink:1># one", negative_prompt="red# two", note=said.append, out="a.png"
    )
    assert {cell["prompt"] for cell in grid.cells} == {
        *("a star ", "a circle  "),
        *("a star <hypernet:ink:1>", "a circle  <hypernet:ink:1>"),
    }
    assert {cell["negative_prompt"] for cell in grid.cells} == {"red"}
    assert sorted(said) == sorted(
        [SAID, *(f"Left out of the prompt as a comment: # {number}" for number in ("one", "two"))]
    )
    rows = drawn(sd, names=["ink"], strengths=[1], prompt=["a star # x", "# y\na circle"], out="b.png")
    assert [cell["prompt"] for cell in rows.cells] == ["a star  <hypernet:ink:1>", "a circle <hypernet:ink:1>"]


def test_every_module_that_is_given_a_prompt_takes_its_comments_out() -> None:
    """A module that reads the tags of what a person typed also knows comments."""
    package = Path(hnetkit.__file__).parent
    calls = {
        path.relative_to(package).as_posix(): {
            ast.unparse(node.func).rpartition(".")[2]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        }
        for path in package.rglob("*.py")
    }
    reading = {name for name, called in calls.items() if "read_prompt" in called}
    assert reading == {
        *("generate/model.py", "generate/grids/run.py", "train/previews.py"),
        "generate/prompt_networks.py",  # prompts of a second pass, from options without comments
        "baking/run.py",
    }
    assert all("without_comments" in calls[name] for name in reading - {"generate/prompt_networks.py"})


def test_a_picture_that_is_drawn_again_has_no_comments(sd: Model, here: Path) -> None:
    """A mark in its text was drawn: by a program without comments, or with a network of such a name."""
    said: list[str] = []
    Path("networks", "ink.pt").rename("networks/ink #2.pt")
    with hnetkit.Library() as library:
        library.scan("networks")
    (first,) = sd.draw("a star", networks=["ink #2"], seed=7, **SMALL)
    assert first.prompt == "a star <hypernet:ink #2:1>"
    write_image(Path("first.png"), first.image, first.infotext)
    (again,) = sd.draw(again="first.png", note=said.append)
    assert again.image.tobytes() == first.image.tobytes()
    assert not any("comment" in line for line in said)


@pytest.mark.parametrize("option", ["negative_prompt", "hires_negative_prompt"])
@pytest.mark.parametrize("tag", ["<hypernet:ink:1>", "<lora:ink:1>"])
def test_a_tag_in_any_negative_prompt_is_said_to_be_words(option: str, tag: str, sd: Model, here: Path) -> None:
    said: list[str] = []
    sd.draw("a star", seed=7, **{option: f"red {tag}"}, note=said.append, **SMALL)
    drawn(sd, {"seed": [1]}, **{option: f"red {tag}"}, note=said.append)
    told = [line for line in said if "no effect without" not in line]
    assert told == ["Tags in a negative prompt are plain text, as in A1111."] * 2


def test_a_second_pass_that_names_other_loras_is_told_that_they_stay(sd: Model, here: Path) -> None:
    Path("loras").mkdir()
    save_file(lora(tiny_sd(least=True)), "loras/style.safetensors")
    settings.put("loras", "loras")
    warning = "Warning: LoRAs are the same in both passes: those of PROMPT; tags in --hires-prompt do not change them."
    cases = {("a star", "a star <lora:style:1>"): 1, ("a <lora:style:1>", "a"): 1, ("a <lora:style:1>", None): 0}
    for (prompt, hires), count in cases.items():
        said: list[str] = []
        options = {"hires_scale": 2, "hires_prompt": hires, "note": said.append}
        sd.draw(prompt, seed=7, **options, **SMALL)
        assert said.count(warning) == count
        drawn(sd, {"seed": [1]}, prompt=prompt, overwrite=True, **options)
        assert said.count(warning) == 2 * count
