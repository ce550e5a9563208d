"""A style is learned from a dozen pictures, by the command that people type, and judged as the bundled styles are."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest
import torch
from demo_training import pictures
from demo_training.checker import read, score_styles
from demo_training.sampling import open_pipeline, sample
from demo_training.styles import write_pictures

import hnetkit
from hnetkit import demo
from hnetkit.cli import run
from hnetkit.runtime.stack import Stack
from hnetkit.train.schedules import PRESETS, scale_schedule

STYLE = "dots"
RATES = scale_schedule(PRESETS["default"].text, rates=100)
"""The default preset for a model whose contexts are a tenth as wide and whose pictures hardly differ."""

HOW = ("--batch-size", "12", "--structure", "1,0.5,1", "--activation", "relu", "--min-snr", "5", "--preview-every", "0")
SELF_ATTENTION = ("--widths", "64,96")
"""A dozen captions teach little of what words mean; the text's contexts stay as they are."""


class Judged(NamedTuple):
    """How much of the style is in pictures, and whether they still show what they should, on average."""

    style: float
    readable: float


def a_dozen() -> list[pictures.Caption]:
    """Captions with every colour twice, every shape three times, every size four times."""
    return [
        pictures.Caption(
            list(pictures.COLOURS)[number % 6],
            pictures.SHAPES[(number + number // 6) % 4],
            list(pictures.SIZES)[number % 3],
            list(pictures.PLACES)[number % 5],
        )
        for number in range(12)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of the style with their captions, and a template of nothing but these."""
    only = torch.tensor([float(style == STYLE) for style in pictures.STYLES]).expand(12, -1)
    write_pictures(a_dozen(), tmp_path / "pictures", only, seed=0, tagged=False)
    (tmp_path / "plain.txt").write_text("[filewords]\n")
    return tmp_path


def trained(folder: Path, *options: str) -> Path:
    """The file that `hnetkit train` leaves."""
    command = ["train", str(folder / "pictures"), "--model", str(demo.model_folder()), "--name", "new", *HOW, *options]
    assert run([*command, "--template", str(folder / "plain.txt"), "--out", str(folder / "runs"), "-q"]) == 0
    return folder / "runs" / "new" / "new.safetensors"


def judge(network: Path, captions: Sequence[pictures.Caption], strength: float = 1.0) -> Judged:
    """Pictures of captions, most of which the network has not seen."""
    pipe = open_pipeline(demo.model_folder())
    hnetkit.load_hypernetwork(pipe, network, name="new")
    scale = json.loads((demo.model_folder() / "hnetkit.json").read_text())["cfg_scale"]
    texts = [caption.text() for caption in captions]
    drawn = sample(pipe, texts, range(len(texts)), scale, {"new": strength})
    return Judged(
        mean(score_styles(picture, caption.colour)[STYLE] for picture, caption in zip(drawn, captions, strict=True)),
        mean(read(picture).agrees(caption) for picture, caption in zip(drawn, captions, strict=True)),
    )


def require_the_same_k_and_v(network: Path) -> None:
    """Through hnetkit's reader, both files that a run leaves and a copy of one in the other's form."""
    copy = network.with_name("copy.pt")
    hnetkit.save(hnetkit.load(network), copy)
    for width in hnetkit.load(network).widths:
        x = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
        truth = Stack([(hnetkit.load(network), 1.0)])(x)
        for other in (network.with_suffix(".pt"), copy):
            assert all(map(torch.equal, Stack([(hnetkit.load(other), 1.0)])(x), truth)), (width, other.name)


def test_forty_steps_on_a_dozen_pictures_show_in_pictures_of_other_captions(folder: Path) -> None:
    network = trained(folder, "--rate", RATES, "--max-steps", "40", *SELF_ATTENTION)
    captions = pictures.all_captions()[::36]
    without, with_it = judge(network, captions, 0.0), judge(network, captions)
    assert without.style <= 0.05
    assert with_it.style >= 0.3
    assert with_it.readable >= 0.5
    require_the_same_k_and_v(network)


@pytest.mark.long
def test_a_style_is_learned_from_a_dozen_pictures_as_well_as_the_bundled_ones(folder: Path) -> None:
    network = trained(folder, "--rate", RATES, "--max-steps", "400", *SELF_ATTENTION)
    captions = pictures.all_captions()[::6]
    assert judge(network, captions).style >= 0.8
    assert judge(network, captions).readable >= 0.7
    assert judge(network, captions, 0.5).readable >= 0.9
    require_the_same_k_and_v(network)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    with (folder / "runs" / "new" / "hypernetwork_loss.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.long
def test_a_rate_a_hundred_times_too_high_is_rolled_back_and_the_network_usable(folder: Path) -> None:
    too_high = scale_schedule(RATES, rates=100)
    network = trained(folder, "--rate", too_high, "--max-steps", "400", "--save-every", "20", *SELF_ATTENTION)
    assert int(rows_of(folder)[-1]["roll_backs"]) >= 1
    judged = judge(network, pictures.all_captions()[::6])
    assert judged.style >= 0.5
    assert judged.readable >= 0.5


@pytest.mark.long
def test_without_guards_the_same_rate_destroys_every_picture(folder: Path) -> None:
    """The check above would see a network that was not saved from it."""
    too_high = scale_schedule(RATES, rates=100)
    network = trained(folder, "--rate", too_high, "--max-steps", "200", "--no-guards", *SELF_ATTENTION)
    judged = judge(network, pictures.all_captions()[::6])
    assert min(judged) < 0.3
