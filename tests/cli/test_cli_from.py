"""`hnetkit generate --from`: from a picture, a text file, standard input or the prompt itself, and what it says."""

from __future__ import annotations

import hashlib
import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from hnetkit.cli import run
from hnetkit.formats.open_file import OpenFile
from hnetkit.hashes import autov1_of, hash_file
from hnetkit.image_text import write_image
from hnetkit.prompts import infotext

DATA = "a star\nNegative prompt: blurry\nSteps: 2, Sampler: Euler, CFG scale: 5, Seed: 8, Size: 16x16"


def generate(*arguments: str, model: str) -> int:
    return run(["generate", *arguments, "--model", model])


def parameters(path: str) -> infotext.Infotext:
    with Image.open(path) as image:
        return infotext.parse(image.info["parameters"])


def picture(text: str, path: str = "old.png") -> str:
    write_image(Path(path), Image.new("RGB", (16, 16)), text, overwrite=True)
    return path


@pytest.fixture
def same(model: str, out: Path, capsys: pytest.CaptureFixture[str]) -> bytes:
    """The bytes of the picture that `DATA` draws."""
    assert generate("--from", picture(DATA), "--out", "same.png", model=model) == 0
    assert capsys.readouterr().err == ""
    assert parameters("same.png").parameters["Seed"] == "8"
    return Path("same.png").read_bytes()


def test_a_text_file_draws_the_same(same: bytes, model: str) -> None:
    Path("data.txt").write_text(DATA)
    assert generate("--from", "data.txt", "--out", "a.png", model=model) == 0
    assert Path("a.png").read_bytes() == same


def test_a_text_file_beside_a_bare_picture_draws_the_same_and_is_named(
    same: bytes, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16, 16)).save("bare.png")
    Path("bare.txt").write_text(DATA)
    assert generate("--from", "bare.png", "--out", "a.png", model=model) == 0
    assert Path("a.png").read_bytes() == same
    assert capsys.readouterr().err == "bare.png: its settings are those in bare.txt beside it\n"


def test_standard_input_draws_the_same(same: bytes, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(DATA.encode())))
    assert generate("--from", "-", "--out", "a.png", model=model) == 0
    assert Path("a.png").read_bytes() == same


def test_generation_data_as_the_prompt_draws_the_same_and_is_said(
    same: bytes, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(DATA, "--out", "a.png", model=model) == 0
    assert Path("a.png").read_bytes() == same
    assert capsys.readouterr().err == "The prompt is generation data: its settings are taken over, as by --from.\n"
    assert generate(DATA, "--steps", "3", "--out", "b.png", model=model) == 0
    assert parameters("b.png").parameters["Steps"] == "3"


def test_settings_from_two_places_are_refused(same: bytes, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(DATA, "--from", "old.png", model=model) == 2
    assert "PROMPT and --from both state the settings of a picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "old.png", "second.png"], "--from takes one picture, and PROMPT is a file, second.png"),
        (["second.png"], "PROMPT is a file, second.png"),
    ],
)
def test_the_name_of_a_picture_is_refused_as_a_prompt(
    same: bytes, model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    picture(DATA, "second.png")
    assert generate(*arguments, "--out", "a.png", model=model) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"Error: {said}"
    assert not Path("a.png").exists()
    assert generate("--from", "old.png", "third.png", "--out", "a.png", model=model) == 0  # words, as no file has them


def test_a_grid_refuses_generation_data(model: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["grid", "--prompt", DATA, "--x", "seed=1,2", "--model", model]) == 2
    assert "generation data" in capsys.readouterr().err


def test_a_prompt_of_pairs_is_a_prompt(model: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "a star\nColor: red, Mood: dark, Style: flat"
    assert generate(prompt, "--out", "a.png", model=model) == 0
    assert capsys.readouterr().err == ""


def test_what_a_picture_does_not_say_is_said(model: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = picture("a star\nSteps: 2, CFG scale: 5, Clip skip: 1")
    assert generate("--from", old, "--out", "a.png", model=model) == 0
    assert capsys.readouterr().err.splitlines() == [
        "old.png: it does not say: sampler, size; the model's own are used",
        "old.png: it says no seed; a random one is used",
    ]
    options = ["--seed", "3", "--sampler", "Euler", "--size", "16", "--out", "b.png"]
    assert generate("--from", old, *options, model=model) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ("Model: anime, Model hash: 925997e9", "made with anime [925997e9], drawn with tiny ["),
        ("Model: anime", "made with anime, drawn with tiny ["),
        ("Model hash: 0123456789", "made with the model [0123456789], drawn with tiny ["),
        (
            "VAE: soft.vae.pt, VAE hash: 735e4c3a44",
            "made with the VAE soft.vae.pt [735e4c3a44], drawn with the model's own",
        ),
        ("Tiling: True, Eta: 0.5", "not taken over: Tiling, Eta"),
    ],
)
def test_what_is_drawn_otherwise_is_said(
    model: str, out: Path, capsys: pytest.CaptureFixture[str], stated: str, said: str
) -> None:
    assert generate("--from", picture(f"{DATA}, {stated}"), "--out", "a.png", model=model) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"old.png: {said}")


def test_the_same_model_is_not_said(model: str, same: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    digits = parameters("same.png").parameters["Model hash"]
    for stated in ("Model: tiny", "Model: TINY", f"Model: renamed, Model hash: {digits}", f"Model hash: {digits}abcd"):
        assert generate("--from", picture(f"{DATA}, {stated}"), "--out", "a.png", "--overwrite", model=model) == 0
        assert capsys.readouterr().err == ""


def test_the_hash_that_a1111_gave_a_model_first_is_known(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    path.write_bytes(bytes(range(256)) * 5000)
    part = path.read_bytes()[1 << 20 :][: 64 << 10]
    with OpenFile(path) as file:
        assert autov1_of(file) == hash_file(file).autov1 == hashlib.sha256(part).hexdigest()[:8]
    path.write_bytes(bytes(1 << 20))
    with OpenFile(path) as file:
        assert autov1_of(file) is hash_file(file).autov1 is None


def test_inspect_shows_a_text_of_settings_and_knows_another_text(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.txt").write_text(f"{DATA}, Hypernet: ink")
    assert run(["inspect", "data.txt"]) == 0
    shown = capsys.readouterr().out
    assert "a star<hypernet:ink:1.0>" in shown
    assert "ink at 1: not in the library" in shown
    assert run(["inspect", "data.txt", "--json"]) == 0
    assert '"kind": "settings"' in capsys.readouterr().out
    Path("note.txt").write_text("a cat")
    assert run(["inspect", "note.txt"]) in (0, 7)
    assert "a text" in capsys.readouterr().out
