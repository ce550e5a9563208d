"""Samplers by name: which schedule a name means, noise levels against the published formulas, and whole runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from support.k_samplers import REFERENCES, Draws, Model
from support.pipelines import tiny_sd

from hnetkit.errors import UsageError
from hnetkit.generate.sampling.loop import sample
from hnetkit.generate.sampling.noise import Noise, NoiseInterval, PerImageNoise
from hnetkit.generate.sampling.samplers import (
    SAMPLERS,
    infotext_fields,
    make_scheduler,
    prepare_scheduler,
    sampler_name,
    sampler_of,
)
from hnetkit.generate.sampling.schedulers import model_sigmas

SD = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "trained_betas": None,
}
SDXL = {**SD, "_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "interpolation_type": "linear"}
PREDICTIONS = ("epsilon", "v_prediction")
SHAPE = (4, 2, 2)
SEED = 77
FURTHER = ("Euler Karras", "Euler a SGM Uniform", "Heun Exponential", "Euler Simple", "DPM++ 2M DDIM", "LCM Simple")

# A1111's models hold alphas and sigmas in float32
ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2).astype(np.float32)
SIGMAS = np.sqrt((1 - ALPHAS) / ALPHAS).astype(np.float64)
LOWEST, HIGHEST = SIGMAS[0], SIGMAS[-1]


def levels_of(times: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.exp(np.interp(times, np.arange(1000), np.log(SIGMAS)))


def times_of(levels: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.interp(np.log(levels), np.log(SIGMAS), np.arange(1000))


def karras(steps: int) -> npt.NDArray[np.float64]:
    ramp = np.linspace(0, 1, steps)
    return (HIGHEST ** (1 / 7) + ramp * (LOWEST ** (1 / 7) - HIGHEST ** (1 / 7))) ** 7


PUBLISHED: dict[str, Callable[[int], npt.NDArray[np.float64]]] = {
    "Uniform": lambda steps: levels_of(np.linspace(999, 0, steps)),
    "Karras": karras,
    "Exponential": lambda steps: HIGHEST * (LOWEST / HIGHEST) ** np.linspace(0, 1, steps),
    "SGM Uniform": lambda steps: levels_of(np.linspace(999, 0, steps + 1)[:-1]),
    "Simple": lambda steps: np.array([SIGMAS[999 - int(step * 1000 / steps)] for step in range(steps)]),
    "DDIM": lambda steps: SIGMAS[1 :: 1000 // steps][::-1],
}
LCM_TIMES = np.arange(19, 1000, 20)


def published(sampler: str, schedule: str, steps: int) -> npt.NDArray[np.float64]:
    """Returns the levels of a run, 0 at the end."""
    if sampler == "LCM":
        assert schedule == "Uniform"
        every = np.exp(np.interp(np.linspace(49, 0, steps), np.arange(50), np.log(SIGMAS[LCM_TIMES])))
        return np.append(every, 0)
    if sampler in ("DPM2", "DPM2 a", "DPM++ 3M SDE"):
        return np.append(PUBLISHED[schedule](steps + 1)[:-1], 0)
    return np.append(PUBLISHED[schedule](steps), 0)


def scheduled(*others: str) -> list[str]:
    return [name for name in SAMPLERS if name not in ("DDIM", "PLMS", "UniPC", *others)]


TWO_CALLS = ("Heun", "DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ SDE")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 10, 20, 50])
@pytest.mark.parametrize("name", scheduled())
def test_noise_levels_are_the_published_ones(name: str, steps: int, prediction: str) -> None:
    sampler, schedule = SAMPLERS[name]
    made = prepare_scheduler(name, {**SD, "prediction_type": prediction}, steps)
    expected = published(sampler, schedule, steps)
    levels = made.sigmas.numpy()
    if sampler in ("Heun", "DPM2", "DPM2 a", "DPM++ 2S a"):
        levels = np.unique(levels)[::-1]  # each again for its second call
    elif sampler == "DPM++ SDE":
        levels = np.append(levels[::2], 0)  # with the middle of each step between
    np.testing.assert_allclose(levels, expected, rtol=0, atol=1e-5)
    assert made.config.prediction_type == prediction


@pytest.mark.parametrize("steps", [1, 10, 20, 30])
@pytest.mark.parametrize("schedule", PUBLISHED)
def test_any_schedule_goes_with_a_sampler(schedule: str, steps: int) -> None:
    made = prepare_scheduler(sampler_of("Euler", schedule), SD, steps)
    expected = np.append(PUBLISHED[schedule](steps), 0)
    np.testing.assert_allclose(made.sigmas.numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", scheduled("LCM"))
def test_the_model_is_told_the_time_of_the_level_it_is_given(name: str) -> None:
    made = prepare_scheduler(name, SD, 10)
    assert len(made.timesteps) == (19 if SAMPLERS[name][0] in TWO_CALLS else 10)
    made.set_begin_index(0)
    for timestep in made.timesteps:
        level = levels_of(timestep)
        scaled = made.scale_model_input(torch.ones(1, *SHAPE, dtype=torch.float64), timestep).mean().item()
        if SAMPLERS[name][0] not in ("DPM++ 2M", "DPM++ 2M SDE", "DPM++ 2M SDE Heun"):
            assert scaled == pytest.approx((level**2 + 1) ** -0.5, rel=1e-5)
        made.step(torch.zeros(1, *SHAPE), timestep, torch.zeros(1, *SHAPE))
    assert made.timesteps.dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 3, 9, 10, 20, 30, 50, 999, 2000])
def test_ddim_and_plms_take_whole_time_steps_at_even_distances(steps: int) -> None:
    expected = [min(time, 999) for time in range(1, 1001, max(1000 // steps, 1))][::-1]
    assert prepare_scheduler("DDIM", SD, steps).timesteps.tolist() == expected
    assert prepare_scheduler("PLMS", SD, steps).timesteps.tolist() == [*expected[:2], *expected[1:]]


def unipc_levels(steps: int) -> npt.NDArray[np.float64]:
    count = len(range(0, 1000, 1000 // steps))
    return np.sqrt(np.expm1(np.interp(np.linspace(999, 0, count + 1), np.arange(1000), np.log1p(SIGMAS**2))))


@pytest.mark.parametrize("steps", [3, 10, 20, 30, 50])
def test_unipc_goes_evenly_from_the_last_time_step_to_the_first(steps: int) -> None:
    made = prepare_scheduler("UniPC", SD, steps)
    expected = unipc_levels(steps)
    np.testing.assert_allclose(made.sigmas.numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(made.timesteps.numpy(), np.linspace(999, 0, len(expected))[:-1], rtol=0, atol=1e-3)


class Unet:
    """A denoiser that knows its data: channels of two values each, blurred; deterministic and smooth."""

    def __init__(self, prediction: str) -> None:
        self.prediction = prediction
        self.centre = np.linspace(-0.5, 0.5, SHAPE[0]).reshape(-1, 1, 1)

    def __call__(self, scaled: npt.NDArray[np.float64], time: float) -> npt.NDArray[np.float64]:
        """Returns the prediction for latents of variance 1 at a time step."""
        level = float(levels_of(time))
        x = scaled * (level**2 + 1) ** 0.5
        clean = self.centre + np.tanh((x - self.centre) / (level**2 + 0.3))
        noise = (x - clean) / level
        if self.prediction == "epsilon":
            return noise
        return (noise - level * clean) / (level**2 + 1) ** 0.5


def drawn(name: str, steps: int, config: dict[str, Any] = SD, *, seeds: tuple[int, ...] = (SEED,)) -> torch.Tensor:
    """Returns the end of a run, float32 of the shape [pictures, *SHAPE]."""
    made, unet = prepare_scheduler(name, config, steps), Unet(config["prediction_type"])
    noises = [Noise(seed, SHAPE, source="nv") for seed in seeds]
    x = torch.stack([noise.first() for noise in noises]) * made.init_noise_sigma
    for timestep in made.timesteps:
        scaled = made.scale_model_input(x, timestep).double().numpy()
        output = torch.from_numpy(unet(scaled, float(timestep))).float()
        with PerImageNoise(noises):
            x = made.step(output, timestep, x, return_dict=False)[0]
    return x


class _Draws(Draws):
    def __init__(self, levels: npt.NDArray[np.float64]) -> None:
        self._noise = Noise(SEED, SHAPE, source="nv")
        self._ends = [float(np.float32(end)) for end in (levels[levels > 0].min(), levels.max())]

    def first(self) -> npt.NDArray[np.float64]:
        return self._noise.first().double().numpy()

    def next(self) -> npt.NDArray[np.float64]:
        return self._noise.next().double().numpy()

    def along(self, start: float, end: float) -> npt.NDArray[np.float64]:
        stretch = NoiseInterval._make((*self._ends, float(np.float32(start)), float(np.float32(end))))
        return self._noise.between(stretch).double().numpy()


def reference(name: str, steps: int, prediction: str) -> npt.NDArray[np.float64]:
    """Returns the end of the same run by k-diffusion's formulas in float64."""
    sampler, schedule = SAMPLERS[name]
    unet = Unet("epsilon")
    if sampler in ("DDIM", "PLMS"):
        levels = np.array([HIGHEST])
        model = Model(None, unet, ALPHAS)
        times = np.minimum(np.arange(1, 1001, 1000 // steps), 999)
        return REFERENCES[sampler](model, _Draws(levels).first(), times, _Draws(levels))
    levels = unipc_levels(steps) if sampler == "UniPC" else published(sampler, schedule, steps)

    def denoise(x: npt.NDArray[np.float64], level: float) -> npt.NDArray[np.float64]:
        time = times_of(level)
        if sampler == "UniPC":
            time = np.interp(np.log1p(level**2), np.log1p(SIGMAS**2), np.arange(1000))
        if sampler == "LCM":
            time = LCM_TIMES[np.abs(np.log(SIGMAS[LCM_TIMES] / level)).argmin()]
        scaled = x / (level**2 + 1) ** 0.5
        if prediction == "epsilon":
            clean = x - level * unet(scaled, time)
        else:
            clean = x / (level**2 + 1) - Unet(prediction)(scaled, time) * level / (level**2 + 1) ** 0.5
        if sampler == "LCM":
            clean = (10 * time * clean / np.hypot(10 * time, 0.5)) + x * 0.25 / (100 * time**2 + 0.25)
        return clean

    draws = _Draws(levels)
    model = Model(denoise, None, ALPHAS)
    if sampler == "UniPC":
        start, end = ((level**2 + 1) ** 0.5 for level in levels[[0, -1]])
        return REFERENCES[sampler](model, draws.first() * start, levels, draws) / end
    return REFERENCES[sampler](model, draws.first() * levels[0], levels, draws)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 9, 20])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_ends_where_the_published_algorithm_ends(name: str, steps: int, prediction: str) -> None:
    ours = drawn(name, steps, {**SD, "prediction_type": prediction})[0]
    np.testing.assert_allclose(ours.numpy(), reference(name, steps, prediction), rtol=0, atol=2e-5)


def test_names_that_differ_end_elsewhere() -> None:
    ends = [tuple(drawn(name, 7).flatten().round(decimals=4).tolist()) for name in (*SAMPLERS, *FURTHER)]
    assert len(set(ends)) == len(ends)


@pytest.mark.parametrize("name", [*SAMPLERS, *FURTHER])
def test_a_picture_does_not_depend_on_its_batch(name: str) -> None:
    both = drawn(name, 5, seeds=(SEED, 5))
    assert torch.equal(both[:1], drawn(name, 5))
    assert torch.equal(both[1:], drawn(name, 5, seeds=(5,)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_model_says_of_samplers_changes_nothing(name: str) -> None:
    own = {
        **SDXL,
        "use_exponential_sigmas": False,
        "timestep_spacing": "trailing",
        "solver_order": 3,
        "steps_offset": 0,
    }
    assert torch.equal(drawn(name, 6), drawn(name, 6, own))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_models_noise_schedule_is_its_own(name: str) -> None:
    own = {**SD, "beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "v_prediction"}
    made = make_scheduler(name, own)
    assert {key: made.config[key] for key in own if key in ("beta_start", "beta_end", "prediction_type")} == {
        "beta_start": 0.001,
        "beta_end": 0.02,
        "prediction_type": "v_prediction",
    }
    made.set_timesteps(10)
    if hasattr(made, "sigmas"):
        last = np.cumprod(1 - np.linspace(0.001, 0.02, 1000))[-1]
        assert made.sigmas[0].item() == pytest.approx((1 / last - 1) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("LCM", "DPM++ 3M SDE")])
def test_a_run_that_begins_late_is_given_the_level_it_begins_with(name: str) -> None:
    made = prepare_scheduler(name, SD, 10)
    begin = 4 * made.order
    made.set_begin_index(begin)
    timesteps = made.timesteps[begin:]
    clean, noise = torch.full((1, *SHAPE), 0.25), torch.ones(1, *SHAPE)
    x = made.add_noise(clean, noise, timesteps[:1])
    made.set_begin_index(begin)
    noises = [Noise(SEED, SHAPE, source="cpu")]
    for timestep in timesteps:
        scaled = made.scale_model_input(x, timestep)
        level = float(levels_of(timestep))
        output = (scaled * (level**2 + 1) ** 0.5 - clean) / level  # it sees through all noise
        with PerImageNoise(noises):
            x = made.step(output.float(), timestep, x, return_dict=False)[0]
    left = SIGMAS[0] if name in ("DDIM", "PLMS", "UniPC") else 0
    np.testing.assert_allclose(x.numpy(), (0.25 + left) / (left**2 + 1) ** 0.5, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["DPM++ 2S a", "DPM++ SDE Karras", "LMS"])
def test_what_is_put_into_the_latents_between_steps_counts(name: str) -> None:
    def run(put_back: float) -> torch.Tensor:
        made, x = prepare_scheduler(name, SD, 6), torch.ones(1, *SHAPE)
        for number, timestep in enumerate(made.timesteps):
            with PerImageNoise([Noise(SEED, SHAPE, source="cpu")]):
                x = made.step(made.scale_model_input(x, timestep) * 0.5, timestep, x, return_dict=False)[0]
            if number == 3:
                x = x + put_back
        return x

    assert not torch.equal(run(0.0), run(1.0))


ALIASES = {
    "k_euler_a": "Euler a",
    "K_Euler_Ancestral": "Euler a",
    "k_lms": "LMS",
    "k_lms_ka": "LMS Karras",
    "k_dpm_2_a_ka": "DPM2 a Karras",
    "k_dpmpp_2m_ka": "DPM++ 2M Karras",
    "k_dpmpp_2m_sde_exp": "DPM++ 2M SDE Exponential",
    "plms": "PLMS",
    "dpm++ 2m karras": "DPM++ 2M Karras",
    "Euler Normal": "Euler",
    "Euler SGMUniform": "Euler SGM Uniform",
    "DPM++ 2M Polyexponential": "DPM++ 2M Exponential",
    "DPM++ 2M Automatic": "DPM++ 2M Karras",
}


@pytest.mark.parametrize(("written", "meant"), ALIASES.items())
def test_other_names_of_a_sampler_mean_it(written: str, meant: str) -> None:
    assert sampler_name(written) == meant
    assert sampler_of(written) == meant


FIELDS = [
    ("DPM++ 2M", None, "DPM++ 2M"),
    ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),
    ("DPM++ 2M", "Uniform", "DPM++ 2M"),
    ("DPM++ 2M", "karras", "DPM++ 2M Karras"),
    ("DPM++ 2M", "Normal", "DPM++ 2M"),
    ("DPM++ SDE", "Automatic", "DPM++ SDE Karras"),
    ("DPM++ 2S a", "Automatic", "DPM++ 2S a Karras"),
    ("DPM2", "Automatic", "DPM2 Karras"),
    ("DPM2 a", "Automatic", "DPM2 a Karras"),
    ("DPM++ 2M SDE", "Automatic", "DPM++ 2M SDE Exponential"),
    ("DPM++ 2M SDE Heun", "Automatic", "DPM++ 2M SDE Heun Exponential"),
    ("DPM++ 3M SDE", "Automatic", "DPM++ 3M SDE Exponential"),
    ("Euler a", "Automatic", "Euler a"),
    ("LMS", "Automatic", "LMS"),
    ("Heun", "Automatic", "Heun"),
    ("Euler", "SGM Uniform", "Euler SGM Uniform"),
    ("DPM++ 2M Karras", "Exponential", "DPM++ 2M Karras"),
    ("DDIM", "Automatic", "DDIM"),
    ("UniPC", "Karras", "UniPC"),
]


@pytest.mark.parametrize(("sampler", "schedule_type", "meant"), FIELDS)
def test_a_schedule_type_belongs_to_the_name(sampler: str, schedule_type: str | None, meant: str) -> None:
    assert sampler_of(sampler, schedule_type) == meant


@pytest.mark.parametrize("name", [*SAMPLERS, *FURTHER])
def test_the_fields_of_a_name_mean_it(name: str) -> None:
    sampler, schedule_type = infotext_fields(name)
    assert sampler_of(sampler, schedule_type) == name


UNKNOWN = {
    "DPM++ 2M Karass": '--sampler "DPM++ 2M Karras"',
    "Eular": '--sampler "Euler"',
    "Restart": '--sampler "Heun Karras"',
    "DPM adaptive": '--sampler "DPM++ 2M"',
    "DDIM CFG++": '--sampler "DDIM"',
}


@pytest.mark.parametrize(("name", "hint"), UNKNOWN.items())
def test_an_unknown_sampler_is_an_error_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="sampler") as error:
        sampler_name(name)
    assert error.value.command_hint == hint


def test_every_name_of_an_error_is_one() -> None:
    for hint in UNKNOWN.values():
        assert sampler_name(hint.split('"')[1])


def test_an_unknown_schedule_type_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="Karas") as error:
        sampler_of("Euler", "Karas")
    assert error.value.hint == 'the nearest is "Karras"'


def test_names_need_no_torch() -> None:
    code = (
        "import sys, hnetkit.generate.sampling.samplers; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["Euler a", "LMS", "Heun", "DPM2 a", "DPM++ 2M", "DPM++ SDE", "LCM", "DDIM", "PLMS"])
def test_a_model_that_predicts_the_image_is_drawn_as_one_that_predicts_its_noise(name: str) -> None:
    def run(prediction: str) -> torch.Tensor:
        scheduler = prepare_scheduler(name, {**SD, "prediction_type": prediction}, 4)
        levels = np.log(model_sigmas(scheduler))

        class Denoiser:
            pipe = tiny_sd(least=True)

            def __call__(self, given: torch.Tensor, time: torch.Tensor, call: int) -> torch.Tensor:
                level = np.exp(np.interp(time.item(), np.arange(len(levels)), levels))
                noise = torch.tanh(given)
                return given * np.hypot(level, 1) - level * noise if prediction == "sample" else noise

        latents = torch.linspace(-1, 1, 16).reshape(1, 4, 2, 2) * scheduler.init_noise_sigma
        denoiser: Any = Denoiser()
        return sample(denoiser, scheduler, latents, [Noise(3, (4, 2, 2), source="cpu")])

    torch.testing.assert_close(run("sample"), run("epsilon"), rtol=1e-3, atol=1e-3)
