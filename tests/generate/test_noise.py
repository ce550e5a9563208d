"""Noise: CUDA's draws in software, a picture's own draws, Brownian paths, and schedulers that draw from both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
)
from torch import Tensor

from hnetkit.generate.sampling.noise import (
    BrownianPath,
    Noise,
    NoiseInterval,
    NoiseSource,
    PerImageNoise,
    PhiloxNormal,
    noise_from,
    slerp,
)

SHAPE = (4, 3, 5)
SOURCES: Sequence[NoiseSource] = ("cpu", "nv")


def test_the_software_generator_draws_what_cuda_draws(shared: Path) -> None:
    for case in json.loads((shared / "data" / "noise_nv.json").read_text()):
        draw = PhiloxNormal(case["seed"])
        for expected in case["draws"]:
            drawn = draw(expected["shape"])
            assert list(drawn.shape) == expected["shape"]
            np.testing.assert_allclose(drawn.flatten().numpy(), expected["values"], rtol=0, atol=1e-6)


def test_every_bit_of_a_seed_counts() -> None:
    draws = [tuple(PhiloxNormal(seed)((4,)).tolist()) for seed in (1, 1 + 2**31, 1 + 2**32, 1 + 2**63)]
    assert len(set(draws)) == 4


def test_an_element_of_a_draw_does_not_depend_on_how_many_there_are() -> None:
    assert torch.equal(PhiloxNormal(3)((100,))[:7], PhiloxNormal(3)((7,)))


@pytest.mark.parametrize("source", SOURCES)
def test_a_picture_goes_on_with_the_generator_that_it_began_with(source: NoiseSource) -> None:
    noise = Noise(7, SHAPE, source=source)
    draw = PhiloxNormal(7) if source == "nv" else lambda shape: torch.randn(shape, generator=generator)
    generator = torch.Generator("cpu").manual_seed(7)
    drawn = [noise.first(), noise.next(), noise.next()]
    assert all(torch.equal(own, draw(SHAPE)) for own in drawn)
    assert all(own.dtype == torch.float32 for own in drawn)
    assert torch.equal(noise.first(), drawn[0])


@pytest.mark.parametrize("source", SOURCES)
def test_torchs_default_dtype_changes_no_noise(source: NoiseSource) -> None:
    expected = Noise(5, (4, 2, 3), source=source).first()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(Noise(5, (4, 2, 3), source=source).first(), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("source", SOURCES)
def test_eta_noise_seed_delta_changes_all_draws_but_the_first(source: NoiseSource) -> None:
    noise, other = Noise(7, SHAPE, source=source, ensd=31337), Noise(7 + 31337, SHAPE, source=source)
    assert torch.equal(noise.first(), Noise(7, SHAPE, source=source).first())
    assert torch.equal(noise.next(), other.first())
    assert torch.equal(noise.next(), other.next())


@pytest.mark.parametrize("source", SOURCES)
def test_a_variation_turns_the_first_draw_alone_towards_another_seed(source: NoiseSource) -> None:
    plain, other = Noise(7, SHAPE, source=source), Noise(8, SHAPE, source=source)

    def varied(strength: float) -> Noise:
        return Noise(7, SHAPE, source=source, variation_seed=8, variation_strength=strength)

    assert torch.equal(varied(0).first(), plain.first())
    torch.testing.assert_close(varied(1).first(), other.first())
    torch.testing.assert_close(varied(0.3).first(), slerp(0.3, plain.first(), other.first()))
    assert torch.equal(varied(0.3).next(), plain.next())


def test_interpolation_is_along_the_circle_between_columns() -> None:
    low, high = torch.tensor([3.0, 0.0]).reshape(1, 2, 1), torch.tensor([0.0, 2.0]).reshape(1, 2, 1)
    turned = slerp(1 / 3, low, high).flatten()  # of a right angle: 30 degrees
    torch.testing.assert_close(turned, torch.tensor([3 * 3**0.5 / 2, 2 / 2]))


def test_parallel_noises_are_interpolated_the_wrong_way_round_as_in_a1111() -> None:
    ones = torch.ones(1, 2, 1)
    torch.testing.assert_close(slerp(0.25, ones, 3 * ones), 2.5 * ones)


# torchsde 0.2.6: BrownianTree(t0=0.03, w0=zeros(2, 2, 2), t1=14.6, entropy=123), increments over the root of distances
TORCHSDE = {
    (14.6, 9.5): [-0.6414322, 0.1491724, -0.1069426, -1.118869, -0.14481, -0.79962, -0.8047295, -0.6431527],
    (9.5, 0.7): [1.052553, -0.03425495, 0.7285808, 0.8535094, -0.4530008, -0.5370923, -0.6921733, 1.82519],
    (0.7, 0.03): [1.138994, -0.4538058, -0.2650469, -0.03561393, 0.6628259, 3.877316, 1.461138, -0.2576312],
}


def test_a_brownian_path_is_that_of_torchsde() -> None:
    path = BrownianPath(123, (2, 2, 2), "cpu", 0.03, 14.6)
    for (start, end), expected in TORCHSDE.items():
        np.testing.assert_allclose(path.between(start, end).flatten().numpy(), expected, rtol=0, atol=2e-6)


def test_increments_of_a_path_add_up_in_any_order() -> None:
    levels = [14.6, 6.0, 2.5, 0.9, 0.03]
    stretches = list(pairwise(levels))

    def increments(order: Sequence[tuple[float, float]]) -> dict[tuple[float, float], Tensor]:
        path = BrownianPath(5, SHAPE, "nv", 0.03, 14.6)
        return {(start, end): path.between(start, end) * (start - end) ** 0.5 for start, end in order}

    forwards, backwards = increments([*stretches, (14.6, 0.03)]), increments(stretches[::-1])
    assert all(torch.equal(forwards[stretch], backwards[stretch]) for stretch in stretches)
    total = sum(forwards[stretch] for stretch in stretches)
    torch.testing.assert_close(total, forwards[14.6, 0.03], rtol=0, atol=1e-5)


def test_a_path_is_as_random_as_its_stretches_are_long() -> None:
    path = BrownianPath(5, (4, 64, 64), "nv", 0.03, 14.6)
    first, second = path.between(14.6, 5.0), path.between(5.0, 4.9)
    for drawn in (first, second):
        assert abs(drawn.mean()) < 0.03
        assert abs(drawn.std() - 1) < 0.02
    assert abs((first * second).mean()) < 0.03


def test_draws_inside_are_those_of_each_picture_in_the_type_asked_for() -> None:
    noises, alone = ([Noise(seed, SHAPE, source="nv") for seed in (3, 9)] for _ in range(2))
    expected = [torch.stack([one.next() for one in alone]) for _ in range(3)]
    outside = torch.get_rng_state()
    with PerImageNoise(noises):
        drawn = [
            torch.randn((2, *SHAPE)),
            torch.randn(2, *SHAPE, dtype=torch.float16),
            torch.randn_like(expected[0].double()),
        ]
    assert [one.dtype for one in drawn] == [torch.float32, torch.float16, torch.float64]
    assert all(torch.equal(one, draws.to(one)) for one, draws in zip(drawn, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), outside)


def test_draws_along_a_stretch_are_those_of_the_pictures_paths() -> None:
    noises, stretch = [Noise(seed, SHAPE, source="nv") for seed in (3, 9)], NoiseInterval(0.03, 14.6, 9.0, 4.0)
    with PerImageNoise(noises), noise_from(stretch):
        drawn = torch.randn(2, *SHAPE)
    paths = [BrownianPath(seed, SHAPE, "nv", 0.03, 14.6) for seed in (3, 9)]
    assert torch.equal(drawn, torch.stack([path.between(9.0, 4.0) for path in paths]))
    assert torch.equal(noises[0].next(), Noise(3, SHAPE, source="nv").next())


def test_a_draw_that_is_no_noise_of_the_batch_is_refused() -> None:
    noises = [Noise(seed, SHAPE, source="cpu") for seed in (3, 9)]
    with PerImageNoise(noises), pytest.raises(ValueError, match=r"\(1, 4, 3, 5\)"):
        torch.randn(1, *SHAPE)


DRAWING = {
    "ancestral": EulerAncestralDiscreteScheduler,
    "ancestral, two calls": KDPM2AncestralDiscreteScheduler,
    "SDE": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "consistency": LCMScheduler,
    "full variance": DDPMScheduler,
}


@pytest.mark.parametrize("kind", DRAWING)
def test_with_diffusers_schedulers_a_picture_does_not_depend_on_its_batch(kind: str) -> None:
    scheduler = DRAWING[kind]()

    def run(*seeds: int) -> Tensor:
        noises = [Noise(seed, SHAPE, source="cpu") for seed in seeds]
        scheduler.set_timesteps(4)
        x = torch.stack([noise.first() for noise in noises]) * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            output = scheduler.scale_model_input(x, timestep) * 0.9
            with PerImageNoise(noises):
                x = scheduler.step(output, timestep, x).prev_sample
        return x

    both = run(3, 9)
    torch.testing.assert_close(both[:1], run(3), rtol=0, atol=0)
    torch.testing.assert_close(both[1:], run(9), rtol=0, atol=0)
    torch.testing.assert_close(both[:1], run(3, 4)[:1], rtol=0, atol=0)
    assert not torch.equal(both[:1], both[1:])
