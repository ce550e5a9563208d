"""`hnetkit.load_model` and `Model.draw`: the pictures of `hnetkit generate`, from Python."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import load_file, save_file
from support.networks import a1111_network, save_pt
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd
from support.unet_truth import lora

import hnetkit
from hnetkit import demo, settings
from hnetkit.cli import run
from hnetkit.errors import (
    BadPicture,
    FileChanged,
    HnetkitError,
    IncompatibleNetwork,
    ModelNotUsable,
    NotFound,
    OutputExists,
    UsageError,
)
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.grids.run import draw_grid
from hnetkit.generate.image_settings import image_facts
from hnetkit.generate.model import Model, ModelSource, draw_images
from hnetkit.generate.options import DrawOptions

needs_demo = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")
GRID: dict[str, Any] = {"steps": 1, "width": 16, "height": 16}
PLAIN: dict[str, Any] = {"seed": 7, "steps": 2, "width": 16, "height": 16}
PROMPT = "a (red:1.2) circle <hypernet:ink:0.5:k=0.2>"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in: pictures to begin with, a LoRA, a textual inversion, and a library of three networks."""
    monkeypatch.chdir(tmp_path)
    for folder in ("networks", "loras", "embeddings"):
        (tmp_path / folder).mkdir()
    for seed, name in enumerate(("ink", "wash")):
        save_pt(network(seed), tmp_path / "networks" / f"{name}.pt")
    save_pt(a1111_network((768,), activation="relu", seed=5), tmp_path / "networks" / "other.pt")
    with hnetkit.Library() as library:
        library.scan("networks")
    save_file(lora(tiny_sd(least=True)), "loras/style.safetensors")
    save_file({"emb_params": torch.ones(2, SD_CROSS_WIDTH)}, "embeddings/mine.safetensors")
    settings.put("loras", "loras")
    settings.put("embeddings", "embeddings")
    noise = Image.effect_mandelbrot((16, 16), (-2, -1, 1, 1), 50)
    noise.convert("RGB").save("image.png")
    noise.save("mask.png")
    return tmp_path


def network(seed: int) -> Any:
    return a1111_network((*SELF_WIDTHS, SD_CROSS_WIDTH), activation="relu", seed=seed, scale=0.3)


@pytest.fixture(scope="module")
def shared_model(sd_folder: Path) -> Model:
    """One for all tests: whatever one of them draws, the next one's pictures are the same."""
    return hnetkit.load_model(sd_folder, device="cpu")


@pytest.fixture
def model(shared_model: Model, here: Path) -> Iterator[Model]:
    before = state(shared_model)
    yield shared_model
    assert hnetkit.get_active_hypernetworks(shared_model.pipe) == []
    after = state(shared_model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def state(model: Model) -> dict[str, torch.Tensor]:
    parts = (model.pipe.unet, model.pipe.text_encoder)
    return {f"{n} {name}": tensor.clone() for n, part in enumerate(parts) for name, tensor in part.state_dict().items()}


def pixels(model: Model, prompt: str, **options: Any) -> bytes:
    (picture,) = model.draw(prompt, **{**PLAIN, **options})
    return picture.image.tobytes()


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_a_picture_of_a_model_whose_parts_were_replaced_does_not_name_what_was_loaded(model: Model, part: str) -> None:
    told: list[str] = []
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(model.pipe, part, getattr(tiny_sd(3), part))
        (picture,) = model.draw("a star", **PLAIN, note=told.append)
    assert told == [f"Warning: pictures cannot name the model: its {part} was replaced after loading"]
    assert "Model parts hash" not in picture.infotext
    assert ("VAE: another" in picture.infotext) == (part == "vae")
    assert (f"Model: {model.name} with another {part}," in picture.infotext) == (part != "vae")
    assert (model.hash in picture.infotext) == (part == "vae")
    picture.save("changed.png")
    told.clear()
    model.draw(again="changed.png", note=told.append)
    assert any("made with" in line for line in told)


def test_a_scheduler_that_was_put_on_the_pipeline_is_said_to_change_no_picture(model: Model) -> None:
    told: list[str] = []
    before = pixels(model, "a star")
    with pytest.MonkeyPatch.context() as changed:
        other = DDIMScheduler.from_config({**model.pipe.scheduler.config, "prediction_type": "v_prediction"})
        changed.setattr(model.pipe, "scheduler", other)
        assert pixels(model, "a star", note=told.append) == before
    assert [line for line in told if "scheduler" in line and "sampler=" in line] == told != []


def test_a_pipeline_that_something_else_was_made_of_is_the_models_own_still(model: Model) -> None:
    told: list[str] = []
    hnetkit.load_hypernetwork(model.pipe, "networks/ink.pt")
    hnetkit.bake(model.pipe, ["ink"], to="diff", program="comfyui", prompts=["a star", "a sky"], steps=2, size=(16, 16))
    hnetkit.unload_hypernetworks(model.pipe)
    (picture,) = model.draw("a star", **PLAIN, note=told.append)
    assert f"Model hash: {model.hash}" in picture.infotext
    assert not any("replaced" in line for line in told)


def test_numbers_of_numpy_are_numbers(model: Model) -> None:
    given = {"steps": 2, "cfg_scale": 3.5, "width": 16, "height": 16, "seed": 3, "hires_size": (24, 24)}
    (plain,) = model.draw("a star", **given)
    arrays = {name: np.array(value) for name, value in given.items()}
    (other,) = model.draw(
        "a star", **{name: tuple(array) if array.ndim else array[()] for name, array in arrays.items()}
    )
    assert (other.image.tobytes(), other.infotext) == (plain.image.tobytes(), plain.infotext)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 3.0}, "seed: 3.0 is not a whole number"),
        ({"count": "2"}, "count: 2 is not a whole number"),
        ({"batch_size": None}, "batch_size: None is not a whole number"),
        ({"steps": True}, "steps: True is not a whole number"),
        ({"cfg_scale": np.bool_(True)}, "cfg_scale: True is not a number"),
        ({"prompt": ["a", "b"]}, "a prompt is a text, and no list"),
        ({"seed": True}, "seed: True is not a whole number"),
        ({"networks": 3}, "networks: 3 is no list of networks"),
        ({"size": 64}, "size: no option of drawing"),
        ({"hires_sacle": 2}, "hires_sacle: no option of drawing"),
    ],
)
def test_an_argument_of_another_kind_is_told_in_one_line(model: Model, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        model.draw(**{"prompt": "a star", **PLAIN, **given})


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (
            {"negative_prompt": "blurry", "sampler": "dpm++ 2m karras", "cfg_scale": 5.5, "clip_skip": 2},
            ["--negative-prompt", "blurry", "--sampler", "DPM++ 2M Karras", "--cfg-scale", "5.5", "--clip-skip", "2"],
        ),
        (
            {
                "rng": "nv",
                "emphasis": "no-norm",
                "variation_seed": 3,
                "variation_strength": 0.2,
                "eta_seed_delta": 31337,
            },
            [
                *("--rng", "nv", "--emphasis", "no-norm", "--variation-seed", "3"),
                *("--variation-strength", "0.2", "--ensd", "31337"),
            ],
        ),
        ({"count": 3, "batch_size": 2}, ["--count", "3", "--batch-size", "2"]),
        (
            {"networks": ["wash:0.3", Path("networks/ink.pt")]},
            ["-n", "wash:0.3", "-n", "networks/ink.pt"],
        ),
        ({"image": "image.png", "denoising": 0.6}, ["--image", "image.png", "--denoising", "0.6"]),
        (
            {
                "image": "image.png",
                "mask": Path("mask.png"),
                "mask_blur": 1,
                "masked_content": "noise",
                "invert_mask": True,
            },
            [
                *("--image", "image.png", "--mask", "mask.png", "--mask-blur", "1"),
                *("--masked-content", "noise", "--invert-mask"),
            ],
        ),
        (
            {"hires_scale": 2, "hires_steps": 3, "hires_prompt": "mine <hypernet:wash:1>", "denoising": 0.5},
            [
                "--hires-scale",
                "2",
                "--hires-steps",
                "3",
                "--hires-prompt",
                "mine <hypernet:wash:1>",
                "--denoising",
                "0.5",
            ],
        ),
        (
            {"hires_size": (24, 32), "hires_upscaler": "Lanczos"},
            ["--hires-size", "24x32", "--hires-upscaler", "Lanczos"],
        ),
    ],
    ids=["texts", "noise", "several", "networks", "image", "mask", "second pass", "second pass, size"],
)
def test_a_picture_is_the_commands(
    model: Model, sd_folder: Path, options: dict[str, Any], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = model.draw(PROMPT, **{**PLAIN, **options})
    plain = ["--seed", "7", "--steps", "2", "--width", "16", "--height", "16", "--device", "cpu"]
    capsys.readouterr()
    assert run(["generate", PROMPT, "--model", str(sd_folder), *plain, *arguments, "--out", "drawn", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(pictures)
    for row, picture in zip(rows, pictures, strict=True):
        with Image.open(row["path"]) as image:
            assert image.tobytes() == picture.image.tobytes()
        del row["path"]
        assert row == {**{name: getattr(picture, name) for name in row}, "hypernetworks": [*picture.hypernetworks]}


def test_threads_that_draw_with_one_model_take_turns(model: Model) -> None:
    """Networks, LoRAs and textual inversions are attached to its pipeline, where each thread would find the others'."""
    prompts = ["a star <hypernet:ink:1>", "a star <hypernet:wash:1>", "a mine star <lora:style:1>", "a star"]

    def drawn(prompt: str) -> bytes:
        (picture,) = model.draw(prompt, **PLAIN)
        return picture.image.tobytes()

    alone = [drawn(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as threads:
        assert list(threads.map(drawn, prompts * 3)) == alone * 3


def test_a_drawing_may_end_in_another_thread_than_it_began(model: Model) -> None:
    """Servers iterate over a generator in whichever of their threads is free."""
    prompt = "a star <hypernet:ink:1>"
    alone = [picture.image.tobytes() for picture in model.draw(prompt, **PLAIN, count=2)]
    size = DrawOptions(**{name: value for name, value in PLAIN.items() if name != "seed"})
    pictures: Any = draw_images(model, prompt, size, seed=PLAIN["seed"], count=2)
    with ThreadPoolExecutor(1) as server:
        begun = server.submit(next, pictures).result()
    other = Thread(target=model.draw, args=("a star",), kwargs=PLAIN, daemon=True)
    other.start()
    ended = next(pictures)
    assert [begun.image.tobytes(), ended.image.tobytes()] == alone
    assert other.is_alive()  # it waits for its turn
    pictures.close()
    other.join(timeout=60)
    assert not other.is_alive()


def test_loras_textual_inversions_and_the_settings_stack_are_the_commands(model: Model, sd_folder: Path) -> None:
    plain, word = pixels(model, "a circle"), pixels(model, "a mine")
    prompt = "a mine <lora:style:0.7> <hypernet:ink:0.5>"
    both = pixels(model, prompt)
    settings.put("hypernetworks", "<hypernet:wash:0.2>")
    with_default = pixels(model, prompt)
    assert len({plain, word, both, with_default}) == 4
    size = ["--steps", "2", "--width", "16", "--height", "16"]
    assert run(["generate", prompt, "--model", str(sd_folder), "--seed", "7", *size, "--out", "a.png"]) == 0
    with Image.open("a.png") as image:
        assert image.tobytes() == with_default
    settings.put("hypernetworks", None)
    assert (pixels(model, prompt), pixels(model, "a mine"), pixels(model, "a circle")) == (both, word, plain)
    settings.put("embeddings", None)
    assert pixels(model, "a mine") != word


@pytest.mark.parametrize(
    "networks",
    [
        {"ink": 0.25, "wash": None},
        [("ink", 0.25), "wash"],
        ["ink:0.25", "wash:1"],
        {"ink": hnetkit.Strength(0.25), "wash": 1},
    ],
    ids=str,
)
def test_networks_beside_a_prompt_have_the_strengths_that_are_given_with_them(model: Model, networks: Any) -> None:
    (picture,) = model.draw("a circle", networks=networks, **PLAIN)
    assert picture.prompt == "a circle <hypernet:ink:0.25> <hypernet:wash:1>"


def test_networks_that_somebody_loaded_are_left_out_of_pictures_and_stay(sd: Model, here: Path) -> None:
    plain, with_ink = pixels(sd, "a circle"), pixels(sd, "a circle <hypernet:ink:0.5>")
    hnetkit.load_hypernetwork(sd.pipe, "networks/ink.pt", "ink", 0.7)
    hnetkit.load_hypernetwork(sd.pipe, "networks/wash.pt", "wash", 0.2)
    assert pixels(sd, "a circle") == plain
    assert pixels(sd, "a circle <hypernet:ink:0.5>") == with_ink
    with pytest.raises(IncompatibleNetwork):
        sd.draw("a circle <hypernet:wash:1> <hypernet:other:1>", **PLAIN)
    assert hnetkit.get_active_hypernetworks(sd.pipe) == ["ink", "wash"]
    strengths = [network["strength"]["self_k"] for network in hnetkit.explain(sd.pipe)["networks"]]
    assert strengths == [0.7, 0.2]


def test_a_picture_is_saved_and_drawn_again_from_its_file(model: Model, here: Path) -> None:
    told: list[str] = []
    (picture,) = model.draw(PROMPT, **PLAIN, sampler="Euler a", negative_prompt="blurry")
    assert [picture.save("pictures"), picture.save("pictures"), picture.save("a.webp")] == [
        Path("pictures/00000-7.png"),
        Path("pictures/00001-7.png"),
        Path("a.webp"),
    ]
    with pytest.raises(OutputExists):
        picture.save("a.webp")
    assert picture.save("a.webp", overwrite=True) == Path("a.webp")
    for file in ("pictures/00001-7.png", "a.webp"):
        (again,) = model.draw(again=file, note=told.append)
        assert (again.image.tobytes(), again.infotext) == (picture.image.tobytes(), picture.infotext)
    (other,) = model.draw("a star", again="a.webp", steps=3, seed=9)
    assert (other.prompt, other.seed) == ("a star", 9)
    assert "Steps: 3, Sampler: Euler a" in other.infotext
    assert told == []


def test_what_a_picture_says_of_itself_is_what_inspect_prints(
    model: Model, here: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model.draw(PROMPT, **PLAIN)[0].save("a.png")
    capsys.readouterr()
    assert run(["inspect", str(path), "--json"]) == 0
    with OpenFile(path) as file:
        found = image_facts(file)
    assert found is not None
    assert found[0] == json.loads(capsys.readouterr().out)[0]
    assert [network["in_library"] for network in found[0]["hypernetworks"]] == [True]
    with hnetkit.Library(home="elsewhere") as library, OpenFile(path) as file:
        found = image_facts(file, library.registry)
        assert found is not None
        assert [network["in_library"] for network in found[0]["hypernetworks"]] == [False]
    with OpenFile(here / "networks" / "ink.pt") as file:
        assert image_facts(file) is None


def test_names_are_found_in_the_library_that_is_given(model: Model, here: Path, home: Path) -> None:
    shutil.rmtree(home)
    home.mkdir()
    settings.put("loras", None)
    with hnetkit.Library(home="elsewhere") as library:
        library.scan("networks")
        library.tag("wash", alias="thin")
        (picture,) = model.draw("a circle <hypernet:thin:1>", library=library, **PLAIN)
        assert picture.hypernetworks[0]["name"] == "thin"
        assert model.draw("a", library=library, networks="wash", **PLAIN)[0].prompt == "a <hypernet:wash:1>"
        with pytest.raises(NotFound, match="thim"):
            model.draw("a circle <hypernet:thim:1>", library=library, **PLAIN)
    assert not (home / "registry.db").exists()
    with pytest.raises(NotFound, match="thin"):
        model.draw("a circle <hypernet:thin:1>", **PLAIN)


def test_a_call_tells_how_far_it_is_and_what_a_person_should_read(model: Model) -> None:
    done: list[tuple[int, int]] = []
    told: list[str] = []
    options = {**PLAIN, "count": 2, "negative_prompt": "<hypernet:ink:1>"}
    pictures = model.draw("a <wild:x> circle", progress=lambda *at: done.append(at), note=told.append, **options)
    assert [picture.seed for picture in pictures] == [7, 8]
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [line.partition(":")[0] for line in told] == [
        "<wild",
        "Tags in a negative prompt are plain text, as in A1111.",
    ]


def test_a_picture_that_is_stretched_is_said_once_by_pictures_and_grids(model: Model, here: Path) -> None:
    Image.new("RGB", (32, 64)).save(here / "tall.png")
    told: list[str] = []
    model.draw("a circle", image=here / "tall.png", note=told.append, **{**PLAIN, "count": 2})
    draw_grid(model, ["seed=1-2"], prompt="a circle", image=here / "tall.png", note=told.append, out=here / "g.png")
    assert [line for line in told if "tall.png is 32x64 and is stretched" in line] == [told[0]] * 2


def test_what_is_no_picture_is_refused_before_a_model_is_loaded(here: Path) -> None:
    (here / "text.png").write_text("no picture")
    with pytest.raises(BadPicture, match=r"text\.png"):
        next(draw_images(ModelSource("no model"), "a circle", DrawOptions(image=here / "text.png")))


def test_a_seed_is_drawn_where_none_is_given(model: Model) -> None:
    options = {name: value for name, value in PLAIN.items() if name != "seed"}
    seeds = {model.draw("a", **options)[0].seed, model.draw("a", seed=-1, **options)[0].seed}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": None}, "a PROMPT is missing"),
        ({"prompt": "<hypernet:imk:1>"}, "imk"),
        ({"prompt": "<lora:stile:1>"}, "stile"),
        ({"prompt": "\udcff"}, "not valid text"),
        ({"networks": ["ink:much"]}, "-n ink:much"),
        ({"networks": ["absent.pt"]}, "absent.pt"),
        ({"networks": {"ink": "0.5"}}, "a strength is a number"),
        ({"networks": {"ink": hnetkit.Strength(1.0, end=0.5)}}, "ink: a strength beside a prompt is one number"),
        ({"networks": [0.5]}, "0.5 is no name or file of a network"),
        ({"networks": [("ink", 0.5, 0.6)]}, "is no name or file of a network"),
        ({"again": "absent.png"}, "absent.png"),
        ({"image": "absent.png"}, "absent.png"),
        ({"mask": "mask.png"}, "--mask needs --image"),
        ({"hires_scale": 2, "image": "image.png"}, "do not go together"),
        ({"hires_scale": 2, "hires_size": (32, 32)}, "both set the size"),
        ({"count": 0}, "both must be at least 1"),
        ({"seed": -2}, "seeds lie between"),
        ({"seed": 2**63}, "seeds lie between"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_one_of_the_packages_own_errors(
    model: Model, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(HnetkitError, match=says):
        model.draw(**{"prompt": "a", **PLAIN, **arguments})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("steps", [0, 1001, 2.5, "20", True]),
        ("cfg_scale", [0.9, float("nan"), float("inf"), "7"]),
        *((name, [0, 20, 16.0, 65536, "512"]) for name in ("width", "height")),
        ("sampler", ["Eulr a", 3]),
        ("rng", ["gpu"]),
        ("clip_skip", [0, 13]),
        ("emphasis", ["loud"]),
        ("eta_seed_delta", [0.5, 2**63]),
        ("variation_seed", [-1, 2**63]),
        *((name, [-0.1, 1.1, float("nan")]) for name in ("variation_strength", "denoising")),
        ("mask_blur", [-1, float("inf")]),
        ("masked_content", ["black"]),
        ("hires_scale", [0.5, 9]),
        ("hires_size", [64, (64,), (64, 20), "64x64"]),
        ("hires_steps", [-1, 1001]),
        ("hires_upscaler", ["ESRGAN"]),
        *((name, [1, b"x"]) for name in ("negative_prompt", "hires_prompt", "image", "mask")),
    ],
)
def test_an_option_that_no_picture_has_is_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(UsageError, match="pixels|sampler|^" + name):
            DrawOptions(**{name: value})


def test_a_model_that_is_not_there_is_refused_as_by_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, device in (("absent", None), ("networks", None), (".", "cuda"), ("https://a.b/c?d", None)):
        if device == "cuda" and torch.cuda.is_available():
            continue
        with pytest.raises(HnetkitError) as caught:
            hnetkit.load_model(place, device=device)
        more = ["--device", device] if device else []
        assert run(["generate", "a", "--model", place, *more]) == caught.value.exit_code
        assert capsys.readouterr().err.splitlines()[0] == f"Error: {caught.value}"


@needs_demo
def test_the_bundled_model_is_called_demo_and_brings_its_networks(here: Path) -> None:
    model = hnetkit.load_model("demo", device="cpu")
    assert hnetkit.load_model(demo.model_folder(), device="cpu").name == model.name == "hnetkit-demo"
    (picture,) = model.draw("a red circle <hypernet:outline:0.8>", seed=3, steps=2)
    assert picture.hypernetworks[0]["name"] == "outline"
    shutil.copytree(demo.model_folder(), "demo")
    assert hnetkit.load_model("demo", device="cpu").name == "demo"  # a folder that is there goes first, as any other


def test_the_settings_say_what_nobody_chose(here: Path, sd_folder: Path) -> None:
    settings.put("model", str(sd_folder))
    settings.put("dtype", "bf16")
    settings.put("device", "cpu")
    model = hnetkit.load_model()
    assert (model.name, model.pipe.unet.dtype) == ("tiny-sd", torch.bfloat16)
    assert hnetkit.load_model(dtype="fp32").pipe.unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("option", "value", "needed"),
    [
        ("denoising", 0.0, {"image": "image.png"}),
        ("denoising", 0.5, {"hires_scale": 2.0}),
        *(
            (name, value, {"image": "image.png", "mask": "mask.png"})
            for name, value in (("mask_blur", 1.0), ("masked_content", "noise"), ("invert_mask", True))
        ),
        *((f"hires_{name}", "a star", {"hires_size": (32, 32)}) for name in ("prompt", "negative_prompt")),
        ("hires_upscaler", "Lanczos", {"hires_scale": 2.0}),
        ("hires_steps", 1, {"hires_scale": 2.0}),
        ("variation_seed", 3, {"variation_strength": 0.5}),
    ],
)
def test_an_option_without_the_one_that_it_belongs_to_is_said_to_have_no_effect(
    here: Path, shared_model: Model, option: str, value: Any, needed: dict[str, Any]
) -> None:
    def said(**options: Any) -> list[str]:
        lines: list[str] = []
        shared_model.draw("a circle", note=lines.append, **PLAIN, **options)
        draw_grid(
            shared_model,
            {"seed": [1]},
            prompt="a circle",
            note=lines.append,
            overwrite=True,
            out="g.png",
            **{**PLAIN, "seed": 1},
            **options,
        )
        return [line for line in lines if "no effect without" in line]

    (line, again) = said(**{option: value})
    assert line == again
    assert line.startswith(f"Warning: --{option.replace('_', '-')} has no effect without --")
    assert said(**{option: value}, **needed) == []
    assert said(invert_mask=False) == []


def test_a_picture_that_is_drawn_again_gives_an_option_what_it_belongs_to(here: Path, shared_model: Model) -> None:
    (picture,) = shared_model.draw("a circle", hires_scale=2.0, **PLAIN)
    picture.save("large.png")
    lines: list[str] = []
    shared_model.draw(again="large.png", denoising=0.4, hires_steps=3, mask_blur=1.0, note=lines.append)
    assert [line for line in lines if "effect" in line] == ["Warning: --mask-blur has no effect without --mask"]


@pytest.mark.parametrize(
    "own",
    [
        "a star <hypernet:ink:0.8> <hypernet:wash:0.5>\nSteps: 2, Sampler: Euler, Seed: 7",
        "a star <hypernet:ink:0.8>\nSteps: 2, Sampler: Euler, Seed: 7, Hypernet: wash, Hypernet strength: 0.5",
    ],
    ids=["tags", "settings of 2022"],
)
def test_networks_that_go_with_a_pictures_own_prompt_are_told(here: Path, shared_model: Model, own: str) -> None:
    Path("own.txt").write_text(own)

    def said(prompt: str | None, *networks: str) -> list[str]:
        lines: list[str] = []
        shared_model.draw(prompt, again="own.txt", networks=networks, width=16, height=16, note=lines.append)
        return [line for line in lines if "networks" in line]

    line = "own.txt: PROMPT is drawn in place of its own, so without its networks: {}; add their tags to PROMPT"
    assert said("a circle") == [line.format("ink, wash")]
    assert said("a circle <hypernet:wash:1>") == said("a circle", "wash") == [line.format("ink")]
    assert said(None) == said("a circle <hypernet:wash:1>", "ink") == []


def test_networks_beside_a_prompt_that_the_second_pass_lacks_are_told(here: Path, shared_model: Model) -> None:
    def said(hires_prompt: str | None, *networks: str, prompt: str = "a circle") -> list[str]:
        lines: list[str] = []
        options = {"hires_scale": 2.0, "hires_prompt": hires_prompt, "networks": networks}
        shared_model.draw(prompt, note=lines.append, **PLAIN, **options)
        return [line for line in lines if "first pass alone" in line]

    (line,) = said("a star", "ink", "wash:0.5")
    assert line.startswith("Warning: ink and wash apply in the first pass alone")
    (line,) = said("a star <hypernet:wash:1>", "ink", "wash:0.5")
    assert line.startswith("Warning: ink applies in the first pass alone")
    assert said(None, "ink") == said("a star") == said("a star", prompt="a circle <hypernet:ink:1>") == []


def test_an_empty_prompt_of_the_second_pass_is_the_prompt_as_in_a1111(here: Path, shared_model: Model) -> None:
    def draw(**options: Any) -> Any:
        return shared_model.draw("a star", hires_scale=2.0, **PLAIN, **options)[0]

    plain, empty, blank = draw(), draw(hires_prompt=""), draw(hires_prompt=" ")
    assert plain.infotext == empty.infotext == blank.infotext
    assert plain.image.tobytes() == empty.image.tobytes() == blank.image.tobytes()
    draw(hires_prompt="a mine").save("own.png")
    (again,) = shared_model.draw(again="own.png", hires_prompt="")
    assert again.image.tobytes() == plain.image.tobytes()


def test_the_networks_of_the_settings_apply_in_a_second_pass_of_its_own_prompt(here: Path, shared_model: Model) -> None:
    options = {"hires_scale": 2.0, "hires_prompt": "a star <hypernet:wash:1>"}
    (plain,) = shared_model.draw("a circle", **PLAIN, **options)
    plain.save("plain.png")
    settings.put("hypernetworks", "<hypernet:ink:0.5> <hypernet:wash:0.2>")
    lines: list[str] = []
    (picture,) = shared_model.draw("a circle", note=lines.append, **PLAIN, **options)
    assert 'Hires prompt: "a star <hypernet:wash:1> <hypernet:ink:0.5>"' in picture.infotext
    assert not any("first pass alone" in line for line in lines)
    grid = draw_grid(
        shared_model, {"seed": [7]}, prompt="a circle", out="grid.png", steps=2, width=16, height=16, **options
    )
    assert 'Hires prompt: "a star <hypernet:wash:1> <hypernet:ink:0.5>"' in grid.cells[0]["infotext"]
    (again,) = shared_model.draw(again="plain.png")
    assert again.image.tobytes() == plain.image.tobytes() != picture.image.tobytes()


def test_a_network_of_the_settings_that_is_named_beside_the_prompt_is_not_added(
    here: Path, shared_model: Model
) -> None:
    """By its name, with a strength of its own, 0 too, or as a file of whatever name."""
    (half,) = shared_model.draw("a circle <hypernet:ink:0.5>", **PLAIN)
    (plain,) = shared_model.draw("a circle", **PLAIN)
    shutil.copy("networks/ink.pt", "other.pt")
    settings.put("hypernetworks", "<hypernet:ink:1> <hypernet:wash:0>")
    for network, prompt, same in (
        ("ink:0.5", "a circle <hypernet:wash:0> <hypernet:ink:0.5>", half),
        ("ink:0", "a circle <hypernet:wash:0> <hypernet:ink:0>", plain),
        ("./other.pt:0.5", "a circle <hypernet:wash:0> <hypernet:other:0.5>", half),
        ("wash:0", "a circle <hypernet:ink:1> <hypernet:wash:0>", None),
    ):
        (picture,) = shared_model.draw("a circle", networks=[network], **PLAIN)
        assert picture.prompt == prompt
        assert same is None or picture.image.tobytes() == same.image.tobytes()


def test_several_variations_say_how_they_differ_from_a1111s(here: Path, shared_model: Model) -> None:
    """A1111 keeps the seed of all pictures where a variation strength is given."""

    def said(**options: Any) -> bool:
        lines: list[str] = []
        shared_model.draw("a circle", note=lines.append, **PLAIN, **options)
        return any("A1111 keeps the seed" in line for line in lines)

    assert said(count=2, variation_strength=0.3)
    assert not said(count=1, variation_strength=0.3)
    assert not said(count=2)


@pytest.fixture(scope="module")
def two_levels(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with a layer in each block, of which those of 8 values are not in the middle."""
    folder = tmp_path_factory.mktemp("models") / "two-levels"
    tiny_sd().save_pretrained(folder)
    return hnetkit.load_model(folder, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("end=0.1", "none of the 2 steps has its middle within 0 to 0.1"),
        ("start=0.4:end=0.6", "none of the 2 steps has its middle within 0.4 to 0.6"),
        ("self=0", "its widths, 8, are in no layer that its strength reaches"),
        ("blocks=mid", "its widths, 8, are in no layer that its strength reaches"),
        ("k=0:v=0", None),
        ("end=0.3", None),
        ("cross=0", None),
        ("blocks=down", None),
    ],
)
def test_a_network_that_changes_nothing_is_said_to(
    two_levels: Model, here: Path, arguments: str, why: str | None
) -> None:
    model = two_levels
    save_pt(a1111_network(SELF_WIDTHS[:1], activation="relu", seed=7, scale=0.5), here / "networks" / "small.pt")
    with hnetkit.Library() as library:
        library.scan("networks")
    plain, told, tag = pixels(model, "a circle"), list[str](), f"<hypernet:small:1:{arguments}>"
    drawn = pixels(model, f"a circle {tag}", note=told.append)
    assert told == ([] if why is None else [f"Warning: small has no effect: {why}"])
    assert (drawn == plain) == (why is not None or arguments == "k=0:v=0")
    told.clear()
    pixels(model, "a circle", hires_scale=2.0, hires_prompt=f"a circle {tag}", denoising=0.99, note=told.append)
    assert told == ([] if why is None else [f"Warning: small has no effect in the second pass: {why}"])
    told.clear()
    options = {**PLAIN, "prompt": f"a circle {tag}", "out": "g.png"}
    draw_grid(model, {"seed": [1, 2]}, note=told.append, **options)
    assert [line for line in told if "no effect" in line] == (
        [] if why is None else [f"Warning: small has no effect: {why}"]
    )


def test_a_window_is_of_the_steps_that_image_to_image_makes(model: Model) -> None:
    told: list[str] = []
    options = {**PLAIN, "image": "image.png", "steps": 8, "note": told.append}
    model.draw("a <hypernet:ink:1:end=0.1>", **options, denoising=0.99)
    assert [line for line in told if "no effect" in line] == []
    model.draw("a <hypernet:ink:1:end=0.1>", **options, denoising=0.2)
    assert "Warning: ink has no effect: none of the 2 steps has its middle within 0 to 0.1" in told


def test_clip_skip_is_said_to_have_no_effect_where_the_model_has_none(
    model: Model, here: Path, sdxl_folder: Path
) -> None:
    told: list[str] = []
    large = hnetkit.load_model(sdxl_folder, device="cpu")
    assert pixels(large, "a", clip_skip=2, note=told.append) == pixels(large, "a")
    assert told == ["Clip skip 2 has no effect: only SD 1's text encoder has one."]
    told.clear()
    pixels(large, "a", clip_skip=1, note=told.append)
    pixels(model, "a", clip_skip=2, note=told.append)
    assert told == []


def test_a_textual_inversion_that_a_schedule_puts_together_is_drawn_at_its_steps(model: Model) -> None:
    """A1111 looks for names in the text of each step."""
    for together, apart in (("m[ine:ap:0.5]", "[mine:map:0.5]"), ("[m|t]ine", "[mine|tine]")):
        assert pixels(model, f"a {together}") == pixels(model, f"a {apart}")
    (picture,) = model.draw("a m[ine:ap:0.5]", **PLAIN)
    assert "embed:mine" in picture.infotext
    (picture,) = model.draw("a (m:1.2)ine", **PLAIN)
    assert "embed:mine" not in picture.infotext  # two texts


@pytest.mark.parametrize(
    "part", ["text_encoder/model.safetensors", "vae/config.json", "scheduler/scheduler_config.json"]
)
def test_a_folder_with_another_part_beside_the_same_unet_is_said(here: Path, sd_folder: Path, part: str) -> None:
    """Its hash is that of the UNet alone, and people exchange autoencoders in folders."""
    for name in ("own", "moved", "other"):
        shutil.copytree(sd_folder, name)
    changed = Path("other", part)
    if changed.suffix == ".json":
        changed.write_text(json.dumps({**json.loads(changed.read_text()), "_diffusers_version": "0"}))
    else:
        save_file({name: tensor * 1.5 for name, tensor in load_file(changed).items()}, changed)
    hnetkit.load_model("own", device="cpu").draw("a", **PLAIN)[0].save("own.png")

    def said(folder: str, **options: Any) -> list[str]:
        lines: list[str] = []
        hnetkit.load_model(folder, device="cpu", **options).draw(again="own.png", note=lines.append)
        return lines

    assert said("own") == said("moved") == []
    (line,) = said("other")
    parts = "its text encoder, tokenizer, autoencoder or scheduler may be another"
    assert re.fullmatch(rf"own\.png: made with own \[\w{{10}}\], of which other files are here: {parts}", line)
    (line,) = said("other", vae="own/vae")
    assert "it names no VAE" in line


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_parts_are_compared_beside_a_vae_too_but_for_the_folders_own(here: Path, sd_folder: Path, part: str) -> None:
    for name in ("own", "other"):
        shutil.copytree(sd_folder, name)
    Path("other", part, "config.json").write_text(Path("own", part, "config.json").read_text() + "\n")
    hnetkit.load_model("own", device="cpu", vae="own/vae").draw("a", **PLAIN)[0].save("own.png")
    lines: list[str] = []
    hnetkit.load_model("other", device="cpu", vae="own/vae").draw(again="own.png", note=lines.append)
    told = [line.partition("are here: ")[2] for line in lines]
    assert told == (["its text encoder, tokenizer or scheduler may be another"] if part == "text_encoder" else [])
    lines.clear()
    hnetkit.load_model("own", device="cpu").draw(again="own.png", note=lines.append)
    assert [line.partition(", drawn with ")[2] for line in lines] == ["the model's own: --vae FILE"]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_file_that_was_replaced_after_it_was_loaded_is_not_stated_as_what_drew(
    here: Path, sd_folder: Path, part: str
) -> None:
    for name in ("own", "other"):
        shutil.copytree(sd_folder, name)
    vae = "other/vae" if part == "vae" else None
    name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    file = Path(vae or f"own/{part}", f"{name}.safetensors")
    before = hnetkit.load_model("own", device="cpu", vae=vae)
    first = before.draw("a", **PLAIN)[0].infotext
    late = hnetkit.load_model("own", device="cpu", vae=vae)
    weights = load_file(file)
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, "new.safetensors")
    Path("new.safetensors").replace(file)
    with pytest.raises(FileChanged, match="replaced since the model was loaded") as refused:
        late.draw("a", **PLAIN)
    assert refused.value.hint == "load the model again"
    assert before.draw("a", **PLAIN)[0].infotext == first
    assert hnetkit.load_model("own", device="cpu", vae=vae).draw("a", **PLAIN)[0].infotext != first


def test_a_text_encoder_that_was_changed_is_seen(here: Path, sd_folder: Path) -> None:
    def changed(model: Model, how: str) -> Model:
        encoder = model.pipe.text_encoder
        if how == "weights":
            with torch.no_grad():
                getattr(encoder, "text_model", encoder).final_layer_norm.weight.mul_(1.5)
        elif how == "another":
            model.pipe.text_encoder = changed(hnetkit.load_model(sd_folder, device="cpu"), "weights").pipe.text_encoder
        return model

    for how in ("weights", "another"):
        model = hnetkit.load_model(sd_folder, device="cpu")
        before = pixels(model, "a circle")
        after = pixels(changed(model, how), "a circle")
        assert after == pixels(changed(hnetkit.load_model(sd_folder, device="cpu"), how), "a circle")
        assert after != before


@pytest.mark.usefixtures("here")
def test_what_was_loaded_on_the_pipeline_before_is_told_and_there_afterwards(sd_folder: Path) -> None:
    model, notes = hnetkit.load_model(sd_folder, device="cpu"), []
    hnetkit.load_hypernetwork(model.pipe, "networks/wash.pt")
    plain = model.draw("a circle", **PLAIN, note=notes.append)[0]
    assert "wash" in "".join(notes)
    assert hnetkit.get_active_hypernetworks(model.pipe) == ["wash"]
    hnetkit.unload_hypernetworks(model.pipe)

    own = {name: tensor * 2 for name, tensor in lora(tiny_sd(least=True)).items()}
    model.pipe.load_lora_weights(own, adapter_name="own")
    model.pipe.set_adapters(["own"], adapter_weights=[0.5])
    notes.clear()
    with_own = model.draw("a circle", **PLAIN, note=notes.append)[0]
    assert with_own.image.tobytes() != plain.image.tobytes()
    assert [line for line in notes if "LoRAs on the pipeline" in line and line.endswith("own")]
    assert f"Model: {model.name} with the LoRA own, " in with_own.infotext
    assert "hash" not in with_own.infotext.lower()
    notes.clear()
    tagged = model.draw("a circle <lora:style:1>", **PLAIN, note=notes.append)[0]
    assert [line for line in notes if "own" in line]
    alone = hnetkit.load_model(sd_folder, device="cpu").draw("a circle <lora:style:1>", **PLAIN)[0]
    assert tagged.image.tobytes() == alone.image.tobytes()
    assert tagged.infotext.split("Version")[0] == alone.infotext.split("Version")[0]
    assert model.draw("a circle", **PLAIN)[0].image.tobytes() == with_own.image.tobytes()


@pytest.mark.parametrize("how", ["disabled", "fused"])
@pytest.mark.usefixtures("here")
def test_a_lora_of_the_prompt_applies_beside_one_that_is_disabled_or_fused(sd_folder: Path, how: str) -> None:
    model, notes = hnetkit.load_model(sd_folder, device="cpu"), []
    plain, styled = pixels(model, "a circle"), pixels(model, "a circle <lora:style:1>")
    own = {name: tensor * 2 for name, tensor in lora(tiny_sd(least=True)).items()}
    model.pipe.load_lora_weights(own, adapter_name="own")
    model.pipe.disable_lora() if how == "disabled" else model.pipe.fuse_lora()
    before = pixels(model, "a circle")
    assert (before == plain) == (how == "disabled")
    (picture,) = model.draw("a circle <lora:style:1>", **PLAIN, note=notes.append)
    assert np.abs(levels(picture.image.tobytes()) - levels(styled)).max() <= 1
    assert [line for line in notes if "own" in line] == [] or how == "fused"
    assert np.abs(levels(pixels(model, "a circle")) - levels(before)).max() <= 1


@pytest.mark.usefixtures("here")
def test_a_grid_is_drawn_again_once_the_pipeline_has_another_lora(sd_folder: Path) -> None:
    model = hnetkit.load_model(sd_folder, device="cpu")

    def drawn() -> int:
        return draw_grid(model, {"seed": [1, 2]}, prompt="a circle", out="grid.png", overwrite=True, **GRID).drawn

    assert (drawn(), drawn()) == (2, 0)
    model.pipe.load_lora_weights(lora(tiny_sd(least=True)), adapter_name="own")
    assert (drawn(), drawn()) == (2, 0)
    model.pipe.set_adapters(["own"], adapter_weights=[0.5])
    assert (drawn(), drawn()) == (2, 0)


def levels(pixels: bytes) -> Any:
    return np.frombuffer(pixels, np.uint8).astype(int)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("to_k.dora_scale", "a DoRA"),
        ("to_k.hada_w1_a", "a LoHa"),
        ("to_k.lokr_w1", "a LoKr"),
        ("conv1.lora_mid.weight", "Tucker"),
        ("conv_in.diff_b", "whole weights"),
        ("norm1.w_norm", "layer norms"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_lora_of_another_kind_is_refused_by_its_name(sd_folder: Path, key: str, said: str) -> None:
    save_file(
        {**lora(tiny_sd(least=True)), f"lora_unet_down_blocks_0_{key}": torch.ones(2, 2)}, "loras/style.safetensors"
    )
    with pytest.raises(ModelNotUsable, match=said):
        hnetkit.load_model(sd_folder, device="cpu").draw("a circle <lora:style:1>", **PLAIN)


@pytest.mark.usefixtures("here")
def test_a_textual_inversion_in_a_picture_is_told(sd_folder: Path) -> None:
    Image.new("RGB", (8, 8)).save("embeddings/charm.png")
    notes: list[str] = []
    hnetkit.load_model(sd_folder, device="cpu").draw("a charm", **PLAIN, note=notes.append)
    assert [line for line in notes if "charm.png" in line]
