"""The demo's checker against pictures whose content is known, because they were drawn so."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from demo_training.checker import read, score_styles
from demo_training.pictures import COLOURS, SIDE, STYLES, Caption, all_captions, draw, rgb
from torch import Tensor

CAPTIONS = all_captions()
SOME = random.Random(1).sample(CAPTIONS, 24)
ALONE = {name: [float(i == STYLES.index(name)) for i in range(len(STYLES))] for name in STYLES}


def drawn(captions: Sequence[Caption], strengths: Sequence[float] = (0, 0, 0)) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return draw(captions, torch.tensor(strengths).expand(len(captions), -1), generator)


def agreement(pictures: Tensor, captions: Sequence[Caption], outlined: bool = False) -> float:
    readings = [read(picture, outlined=outlined) for picture in pictures]
    agrees = [r.agrees(c) for r, c in zip(readings, captions, strict=True)]
    return sum(agrees) / len(agrees)


@pytest.mark.parametrize(
    "strengths",
    [(0, 0, 0), *ALONE.values(), (0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0.7, 0.7, 0), (1, 1, 1)],
)
def test_reads_captions_in_every_style(strengths: tuple[float, ...]) -> None:
    captions = SOME if any(strengths) else CAPTIONS
    assert agreement(drawn(captions, strengths), captions, outlined=strengths[0] > 0) >= 0.99


def test_is_at_chance_on_shuffled_captions() -> None:
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    assert agreement(drawn(CAPTIONS), shuffled) < 0.1  # chance is 1 in 6 x 4 = 0.042


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star"])
def test_rejects_a_two_tone_shape(shape: str) -> None:
    red, blue = drawn([Caption("red", shape), Caption("blue", shape)])
    half = torch.arange(SIDE) < SIDE // 2
    two_tone = torch.where(half, red, blue)
    assert read(red).colour == "red"
    assert read(two_tone).colour is None
    assert read(two_tone, outlined=True).colour is None


def test_rejects_a_mottled_shape() -> None:
    plain = drawn([Caption("red", "square")])[0]
    spots = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) < 0.2
    inside = (plain - rgb(COLOURS["red"])[:, None, None]).abs().sum(0) < 0.01
    mottled = torch.where(spots & inside, rgb(COLOURS["green"])[:, None, None], plain)
    assert read(mottled).colour is None


def test_rejects_an_outline_when_a_filled_shape_is_asked_for() -> None:
    picture = drawn([Caption("red", "circle", "large")], ALONE["outline"])[0]
    assert read(picture).colour is None
    assert read(picture, outlined=True).agrees(Caption("red", "circle"))


@pytest.mark.parametrize("picture", [torch.ones(3, SIDE, SIDE), torch.zeros(3, SIDE, SIDE)])
def test_sees_no_shape_in_an_even_picture(picture: Tensor) -> None:
    assert read(picture).shape is None
    assert score_styles(picture, "red") == dict.fromkeys(STYLES, 0.0)


@pytest.mark.parametrize("name", STYLES)
def test_style_scores_follow_the_strength(name: str) -> None:
    for strength in (0.0, 0.5, 1.0):
        pictures = drawn(SOME, [strength * on for on in ALONE[name]])
        for picture, caption in zip(pictures, SOME, strict=True):
            scores = score_styles(picture, caption.colour)
            assert scores.pop(name) == pytest.approx(strength, abs=0.15)
            assert all(other < 0.05 for other in scores.values())
