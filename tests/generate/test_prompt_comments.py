"""Comments in typed prompts are told and not drawn; what a picture says is drawn as it stands."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from support.drawing import SMALL, drawn

import hnetkit
from hnetkit.generate.image_files import write_image
from hnetkit.generate.model import Model
from hnetkit.generate.options import DrawOptions

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
    assert said == ["Tags in a negative prompt are plain text, as in A1111."] * 2
