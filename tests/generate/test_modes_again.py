"""A picture of every mode, and of every two modes together, comes back bit for bit, or it is said what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, tiny_sd
from support.unet_truth import lora

from hnetkit import settings
from hnetkit.generate.image_files import Picture
from hnetkit.generate.model import Model, load_model
from hnetkit.image_text import write_image
from hnetkit.library.library import Library

MODES: dict[str, dict[str, Any]] = {
    "size": {"width": 24, "height": 16},
    "sampler": {"sampler": "DPM++ 2M Karras", "steps": 3},
    "guidance": {"cfg_scale": 3.123456789, "negative_prompt": "blurry, (red:1.2)"},
    "noise": {"rng": "nv", "eta_seed_delta": 31_337},
    "variation": {"variation_seed": 5, "variation_strength": 0.123456789},
    "clip skip": {"clip_skip": 2},
    "emphasis": {"emphasis": "no-norm"},
    "networks": {"networks": ["ink:0.123456789", "wash"]},
    "words": {"prompt": "a (red:1.3) [star:circle:0.5]"},
    "lora": {"prompt": "a star <lora:glow:0.3>"},
    "textual inversion": {"prompt": "a mine"},
    "hires": {"hires_scale": 2.0, "denoising": 0.6123456789},
    "own hires": {
        **{"hires_size": (32, 24), "hires_steps": 3, "hires_upscaler": "Lanczos"},
        **{"hires_prompt": "a mine <hypernet:mist:1>", "hires_negative_prompt": "dark"},
    },
    "start": {"image": "start.png", "denoising": 0.5123456789},
    "mask": {
        "image": "start.png",
        "mask": "mask.png",
        "mask_blur": 1.123456789,
        "masked_content": "noise",
        "invert_mask": True,
    },
    "vae": {"vae": True},
}
PROMPTS = {"words", "lora", "textual inversion"}
SECOND, OVER = {"hires", "own hires"}, {"start", "mask"}
TOGETHER = [
    (one, other)
    for one, other in combinations(MODES, 2)
    if not any({one, other} <= exclusive for exclusive in (PROMPTS, SECOND | OVER))
]
FREE = [mode for mode in MODES if mode not in PROMPTS | SECOND | OVER]
FILES = ("image", "mask")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, sd_folder: Path) -> dict[bool, Model]:
    """The model with its own autoencoder, and with another one."""
    other = tmp_path_factory.mktemp("vae") / "other"
    tiny_sd(5).vae.save_pretrained(other)
    return {
        is_other: load_model(sd_folder, device="cpu", vae=other if is_other else None) for is_other in (False, True)
    }


@pytest.fixture
def files(here: Path) -> Path:
    """The folder to be in, with all files that the modes name."""
    Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 50).convert("RGB").save("start.png")
    Image.linear_gradient("L").resize((16, 16)).save("mask.png")
    for name, tensors in {
        "loras/glow": lora(tiny_sd(least=True)),
        "embeddings/mine": {"emb_params": torch.full((2, SD_CROSS_WIDTH), 0.05)},
    }.items():
        Path(name).parent.mkdir()
        save_file(tensors, f"{name}.safetensors")
        settings.put(name.partition("/")[0], name.partition("/")[0])
    return here


Draw = Callable[..., tuple[Picture, list[str]]]


@pytest.fixture
def draw(models: dict[bool, Model], files: Path) -> Draw:
    def draw_one(vae: bool = False, **options: Any) -> tuple[Picture, list[str]]:
        notes: list[str] = []
        (picture,) = models[vae].draw(**options, note=notes.append)
        return picture, notes

    return draw_one


def options_of(*modes: str) -> dict[str, Any]:
    merged: dict[str, Any] = {"prompt": "a star", "seed": 3, "steps": 2}
    for mode in modes:
        merged |= MODES[mode]
    return merged


def comes_back(draw: Draw, modes: Sequence[str]) -> None:
    options = options_of(*modes)
    picture, said = draw(**options)
    write_image(Path("own.png"), picture.image, picture.infotext, overwrite=True)
    given = {name: options[name] for name in (*FILES, "vae") if name in options}
    again, notes = draw(again="own.png", **given)
    assert again.image.tobytes() == picture.image.tobytes(), modes
    # a picture's prompt holds the networks that were given beside it
    assert (again.infotext, notes) == (picture.infotext, [line for line in said if "first pass alone" not in line])


@pytest.mark.parametrize("modes", [*((mode,) for mode in MODES), *TOGETHER], ids=" and ".join)
def test_it_comes_back_bit_for_bit(draw: Draw, modes: tuple[str, ...]) -> None:
    comes_back(draw, modes)


@pytest.mark.long
@pytest.mark.parametrize("passes", [None, *sorted(SECOND | OVER)])
@pytest.mark.parametrize("prompt", [None, *sorted(PROMPTS)])
def test_every_set_of_modes_comes_back_bit_for_bit(draw: Draw, prompt: str | None, passes: str | None) -> None:
    chosen = [mode for mode in (prompt, passes) if mode is not None]
    for count in range(len(FREE) + 1):
        for modes in combinations(FREE, count):
            comes_back(draw, [*chosen, *modes])


@pytest.mark.parametrize(
    ("mode", "given", "said"),
    [
        ("start", {}, r"over another picture \(start\.png \[\w{10}\]\), which is not in it: --image FILE\. "),
        ("mask", {}, r"\(start\.png \[\w{10}\], mask\.png \[\w{10}\]\), .* --image FILE --mask FILE\. "),
        ("mask", {"image": "start.png"}, r"repainted under a mask, which is not in it: --mask FILE"),
        ("start", {"image": "mask.png"}, r"made over start\.png \[\w{10}\]; mask\.png is another file"),
        (
            "mask",
            {"image": "start.png", "mask": "start.png"},
            r"under the mask mask\.png \[\w{10}\]; start\.png is another",
        ),
        ("vae", {}, r"made with the VAE other \[\w{10}\], drawn with the model's own: --vae FILE"),
    ],
)
def test_a_file_that_is_missing_or_another_is_named(draw: Draw, mode: str, given: dict[str, Any], said: str) -> None:
    picture, _ = draw(**options_of(mode))
    write_image(Path("own.png"), picture.image, picture.infotext)
    again, (note,) = draw(again="own.png", **given)
    assert again.image.tobytes() != picture.image.tobytes()
    assert re.search(said, note), note


def test_words_of_a_textual_inversion_that_is_not_there_are_said(draw: Draw) -> None:
    picture, _ = draw(**options_of("textual inversion"))
    write_image(Path("own.png"), picture.image, picture.infotext)
    Path("embeddings/mine.safetensors").unlink()
    _, (note,) = draw(again="own.png")
    assert "textual inversions mine, drawn as plain words: hnetkit config embeddings FOLDER" in note


def test_a_textual_inversion_that_is_another_file_is_said(draw: Draw) -> None:
    picture, _ = draw(prompt="a star", negative_prompt="a mine", seed=3, steps=2)
    write_image(Path("own.png"), picture.image, picture.infotext)
    other = torch.linspace(-1, 1, 2 * SD_CROSS_WIDTH).reshape(2, SD_CROSS_WIDTH)
    save_file({"emb_params": other}, "embeddings/mine.safetensors")
    again, (note,) = draw(again="own.png")
    assert again.image.tobytes() != picture.image.tobytes()
    assert re.fullmatch(
        r"own\.png: made with the textual inversion mine \[\w{10}\], drawn with another \[\w{10}\]", note
    )
    assert draw(again="own.png", negative_prompt="the mine")[1] == []  # which is the user's own


def test_a_textual_inversion_that_a_picture_was_drawn_without_is_said(draw: Draw) -> None:
    picture, _ = draw(prompt="a star", hires_scale=1.0, hires_prompt="a star", seed=3, steps=2)
    write_image(Path("own.png"), picture.image, picture.infotext)
    Path("embeddings/mine.safetensors").rename("embeddings/Star.safetensors")
    again, (note,) = draw(again="own.png")
    assert again.image.tobytes() != picture.image.tobytes()
    said = "drawn with the textual inversions Star, which it does not name: words of it are read as them"
    assert note == f"own.png: {said}"


def test_an_autoencoder_that_a_picture_does_not_name_is_said(draw: Draw) -> None:
    picture, _ = draw(**options_of())
    write_image(Path("own.png"), picture.image, picture.infotext)
    again, (note,) = draw(again="own.png", vae=True)
    assert again.image.tobytes() != picture.image.tobytes()
    assert re.fullmatch(r"own\.png: it names no VAE, drawn with other \[\w{10}\]", note)


def test_a_textual_inversion_with_brackets_in_its_name_is_read_where_they_are_text(draw: Draw) -> None:
    Path("embeddings/mine.safetensors").rename("embeddings/mine (v2).safetensors")
    plain, notes = draw(prompt="a mine (v2)", seed=3, steps=2)
    advice = r"write mine \(v2\)"
    assert notes == [f"Warning: the textual inversion mine (v2) is plain words here, for brackets weigh: {advice}"]
    assert "embed:" not in plain.infotext
    for prompt, emphasis in (
        (r"a mine \(v2\)", "original"),
        ("a mine (v2)", "none"),
        (r"a (mine \(v2\):1)", "original"),
    ):
        read, notes = draw(prompt=prompt, emphasis=emphasis, seed=3, steps=2)
        assert notes == []
        assert '"embed:mine (v2)"' in read.infotext
        assert read.image.tobytes() != plain.image.tobytes()
        write_image(Path("own.png"), read.image, read.infotext, overwrite=True)
        again, notes = draw(again="own.png")
        assert (again.image.tobytes(), notes) == (read.image.tobytes(), [])


@pytest.mark.parametrize("prompt", ["", "<hypernet:ink:0.5>"])
def test_an_empty_prompt_is_said(draw: Draw, prompt: str) -> None:
    picture, _ = draw(prompt=prompt, seed=3, steps=2)
    write_image(Path("own.png"), picture.image, picture.infotext)
    assert draw(again="own.png")[1] == ["own.png: its prompt is empty"]
    assert not any("empty" in note for note in draw(again="own.png", prompt="a star")[1])


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a star Negative prompt: bad Steps: 4, Sampler: Euler, CFG scale: 3, Seed: 7", "Negative prompt:, Steps: 4"),
        ("> a star\n> negative prompt: bad\n> Steps: 4, CFG scale: 3, Seed: 7", "negative prompt:, Steps: 4"),
        ("a star\nNegative prompt\uff1abad", "Negative prompt\uff1a"),
        ("Steps: 4 of them, all in stone", ""),
        ('{"prompt": "a star", "seed": 5}', '{"prompt":'),
        ('{"3": {"class_type": "KSampler"}}', '{"3":, {"class_type":'),
        ('a sign that says "hi": {red, blue}', ""),
        ("a negative prompt of stone", ""),
    ],
)
def test_settings_that_are_drawn_as_words_are_said(draw: Draw, prompt: str, words: str) -> None:
    """Generation data lose their line ends where they are copied out of a table or a chat."""
    said = f"Warning: {words} in the prompt: plain words here, which set nothing"
    notes = [note for note in draw(prompt=prompt, seed=3, steps=2)[1] if "is its weight" not in note]  # of Seed: 7
    assert notes == ([said] if words else [])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a {red|blue} star, {2$$x}, __colors/warm__, {3::a | {b|c}}", "{red|blue}, {2$$, __colors/warm__, {b|c}"),
        ("a (star:1,5) in [red:blue:0,5]", ":1,5), :0,5]"),
        ("a {star}, (red, blue:1.5), snake_case __ x__y__z [a|b], (one, two), 1,5", ""),
        ("a star, hypernet:ink:0.5, lora:pen:1", "hypernet:ink, lora:pen"),
        ("a star, (embedding:easy:1.2)", "embedding:easy"),
        ("red++ (blue)1.3 (old)-- star::2, 1.3::big::, {{wide}}", "red++, )1.3, )--, star::2, 1.3::big, {{wide}"),
        ("a star ADDCOMM a circle ADDCOL blue AND_PERP red", "ADDCOMM, ADDCOL, AND_PERP"),
        ("[red::7], [[a]::2], a - b, well-lit, (star)-shaped, 18+, 16:9, (a:1.2), add, mask", ""),
    ],
)
def test_what_is_typed_as_other_programs_read_it_is_said_to_be_words(draw: Draw, prompt: str, said: str) -> None:
    for options in ({"prompt": prompt}, {"prompt": "a star", "negative_prompt": prompt}):
        picture, notes = draw(seed=3, steps=2, **options)
        assert [note.partition(" in the prompt: plain words here")[0] for note in notes] == (
            [f"Warning: {said}"] if said else []
        )
    write_image(Path("own.png"), picture.image, picture.infotext)
    assert draw(again="own.png")[1] == [], "what is in a picture was drawn so"


def test_what_comfyuis_own_loader_makes_of_a_network_otherwise_is_said(draw: Draw) -> None:
    """Of those that it applied, and that are drawn with."""
    widths = (8, SD_CROSS_WIDTH)
    for name in ("plain", "normed"):
        network_file(Path(), f"{name}.pt", widths=widths, activation="mish", layer_norm=name == "normed", scale=0.01)
    with Library() as library:
        library.scan(Path())
    said = "a star<hypernet:plain:1><hypernet:normed:1>\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 16x16"
    Path("own.txt").write_text(f'{said}, ComfyUI loader: "plain, normed", Version: ComfyUI')
    (note,) = draw(again="own.txt")[1]
    made = "ComfyUI's own loader adds an activation at the end of normed"
    assert note == f"own.txt: {made}: the picture will differ"
    Path("own.txt").write_text(f"{said}, ComfyUI loader: plain, Version: ComfyUI")
    assert draw(again="own.txt")[1] == []


@pytest.mark.parametrize(
    ("prompt", "program", "is_said"),
    [
        (", ".join(["a red star"] * 30), "ComfyUI", True),
        (", ".join(["a red star"] * 30), "v1.10.1", False),
        (" AND ".join(["a red star:0.5"] * 30), "ComfyUI", False),
        (" BREAK ".join(["a red star"] * 3), "ComfyUI", False),
    ],
)
def test_a_prompt_that_another_program_divides_elsewhere_is_said(
    draw: Draw, prompt: str, program: str, is_said: bool
) -> None:
    settings = "Steps: 2, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 16x16, RNG: CPU"
    Path("own.txt").write_text(f"{prompt}\n{settings}, Version: {program}")
    where = "ComfyUI ends a chunk of its tokens at a word, and A1111 at a comma"
    said = [f"own.txt: its prompt is longer than a chunk: {where}, so the picture may differ"]
    assert draw(again="own.txt")[1] == (said if is_said else [])
    assert draw(again="own.txt", prompt=", ".join(["a blue star"] * 30))[1] == []


def test_options_beside_a_picture_go_before_its_own_second_pass(draw: Draw) -> None:
    picture, _ = draw(**options_of("own hires"))
    write_image(Path("own.png"), picture.image, picture.infotext)
    larger, _ = draw(again="own.png", hires_scale=3.0)
    assert larger.image.size == (48, 48)
    over, (note,) = draw(again="own.png", image="start.png")
    assert over.image.size == (16, 16)
    assert note == "own.png: its second pass is left out: --image begins with a picture"


def test_a_second_pass_that_keeps_its_own_prompt_beside_another_one_is_said(draw: Draw) -> None:
    picture, _ = draw(**options_of("own hires"))
    write_image(Path("own.png"), picture.image, picture.infotext)
    _, (note,) = draw(again="own.png", prompt="a circle")
    assert note == "own.png: its second pass keeps its own prompt: --hires-prompt TEXT"
    assert draw(again="own.png", prompt="a circle", hires_prompt="a circle")[1] == []


def test_what_else_of_its_own_a_second_pass_keeps_beside_options_is_said(draw: Draw) -> None:
    """Its negative prompt may be empty, and steps of 0 are those of the first pass."""
    settings = "Sampler: Euler, CFG scale: 7, Seed: 5, Size: 16x16, Denoising strength: 0.5, RNG: CPU, Hires upscale: 2"
    own = f'a circle\nNegative prompt: red\nSteps: 2, {settings}, Hires steps: 3, Hires negative prompt: ""'
    Path("own.txt").write_text(own)
    Path("same.txt").write_text(own.replace("Hires steps: 3", "Hires steps: 0").partition(", Hires negative")[0])
    asked: dict[str, Any] = {"negative_prompt": "blue", "steps": 4}
    said = ["negative prompt: --hires-negative-prompt TEXT", "steps: --hires-steps N"]
    notes = draw(again="own.txt", **asked)[1]
    assert [line for line in notes if "second pass" in line] == [
        f"own.txt: its second pass keeps its own {what}" for what in said
    ]
    assert not any("second pass" in line for line in draw(again="same.txt", **asked)[1])
    given = draw(again="own.txt", **asked, hires_negative_prompt="blue", hires_steps=4)[1]
    assert not any("second pass" in line for line in given)


def test_a_second_pass_that_keeps_its_own_size_beside_another_one_is_said(draw: Draw) -> None:
    picture, _ = draw(**options_of("own hires"))
    write_image(Path("own.png"), picture.image, picture.infotext)
    again, notes = draw(again="own.png", width=40)
    assert again.image.size == (32, 24)
    assert notes[0] == "own.png: its second pass keeps its own size, 32x24: --hires-size or --hires-scale"
    assert draw(again="own.png", width=16, hires_scale=2.0)[1] == draw(again="own.png", width=16)[1] == []


def test_a_second_pass_that_does_not_say_how_strong_it_is_is_said(draw: Draw) -> None:
    """As SD.Next writes it, where a picture is enlarged and not sampled again."""
    Path("own.txt").write_text(
        "a circle\nSteps: 2, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 16x16, Hires scale: 2, Hires size: 32x32"
    )
    said = "own.txt: it does not say how strongly its second pass repaints the first: 0.7 is used, --denoising N"
    assert draw(again="own.txt")[1] == [said]
    assert draw(again="own.txt", denoising=0.5)[1] == []


@pytest.mark.parametrize(
    ("mode", "given", "strength"),
    [("hires", {"image": "start.png"}, "0.75"), ("start", {"hires_scale": 2.0}, "0.7"), ("hires", {}, "0.6123456789")],
)
def test_how_strongly_one_way_repaints_is_not_taken_over_for_the_other(
    draw: Draw, mode: str, given: dict[str, Any], strength: str
) -> None:
    picture, _ = draw(**options_of(mode))
    write_image(Path("own.png"), picture.image, picture.infotext)
    assert f"Denoising strength: {strength}," in draw(again="own.png", **given)[0].infotext
