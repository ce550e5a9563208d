"""The table of samplers by A1111's names, each a diffusers scheduler on A1111's noise levels.

A name is that of a sampler, alone or followed by a schedule: ``DPM++ 2M Karras``. These were the names before A1111
1.9. Since then the schedule is a field of its own, which may be ``Automatic`` (see `sampler_of`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hnetkit.errors import UsageError, did_you_mean

AUTOMATIC = "Automatic"

_UNIFORM = "Uniform"
_SCHEDULES = (_UNIFORM, "Karras", "Exponential", "SGM Uniform", "Simple", "DDIM")
# with A1111's default settings these give the same levels
_SAME_SCHEDULES = {"Polyexponential": "Exponential", "Normal": _UNIFORM, "SGMUniform": "SGM Uniform"}
# samplers of A1111 that hnetkit lacks -> the nearest that it has
_ABSENT = {"DPM fast": "DPM++ 2M", "DPM adaptive": "DPM++ 2M", "Restart": "Heun Karras", "DDIM CFG++": "DDIM"}


@dataclass(frozen=True, slots=True)
class _Sampler:
    """One row of the table.

    Attributes:
        kind: a class of `hnetkit.generate.sampling.solvers` or `hnetkit.generate.sampling.schedulers`.
        alias: its first other name in A1111's code.
        automatic: the schedule that A1111 takes for ``Automatic`` since 1.9.
        listed: schedules that A1111 before 1.9 had in a name of this sampler.
        options: of the diffusers scheduler.
        scheduled: whether it takes a schedule at all.
        discards: see `hnetkit.generate.sampling.schedulers.HasA1111Sigmas`.
    """

    kind: str
    alias: str
    automatic: str = _UNIFORM
    listed: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    scheduled: bool = True
    discards: bool = False


_KARRAS, _BOTH = ("Karras",), ("Karras", "Exponential")
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_SDE_HEUN = {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}
_UNIPC = {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}
_SAMPLERS: Mapping[str, _Sampler] = {
    "Euler a": _Sampler("EulerAncestral", "k_euler_a"),
    "Euler": _Sampler("Euler", "k_euler"),
    "LMS": _Sampler("LMS", "k_lms", listed=_KARRAS),
    "Heun": _Sampler("Heun", "k_heun"),
    "DPM2": _Sampler("DPM2", "k_dpm_2", "Karras", _KARRAS, discards=True),
    "DPM2 a": _Sampler("DPM2Ancestral", "k_dpm_2_a", "Karras", _KARRAS, discards=True),
    "DPM++ 2S a": _Sampler("DPMPP2SAncestral", "k_dpmpp_2s_a", "Karras", _KARRAS),
    "DPM++ 2M": _Sampler("Multistep", "k_dpmpp_2m", "Karras", _KARRAS, {"algorithm_type": "dpmsolver++"}),
    "DPM++ SDE": _Sampler("DPMPPSDE", "k_dpmpp_sde", "Karras", _KARRAS),
    "DPM++ 2M SDE": _Sampler("Multistep", "k_dpmpp_2m_sde", "Exponential", _BOTH, _SDE),
    "DPM++ 2M SDE Heun": _Sampler("Multistep", "k_dpmpp_2m_sde_heun", "Exponential", _BOTH, _SDE_HEUN),
    "DPM++ 3M SDE": _Sampler("DPMPP3MSDE", "k_dpmpp_3m_sde", "Exponential", _BOTH, discards=True),
    "LCM": _Sampler("LCM", "k_lcm"),
    "DDIM": _Sampler("DDIM", "ddim", scheduled=False),
    "PLMS": _Sampler("PLMS", "plms", options={"skip_prk_steps": True}, scheduled=False),
    "UniPC": _Sampler("UniPC", "unipc", options=_UNIPC, scheduled=False),
}

# settings of samplers that a model's scheduler config may have, and that A1111 does not read from there
_OVERRIDES: Mapping[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "final_sigmas_type": "zero",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "thresholding": False,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_type": "discrete",
}


def _joined(sampler: str, schedule: str) -> str:
    return sampler if schedule == _UNIFORM else f"{sampler} {schedule}"


SAMPLERS: Mapping[str, tuple[str, str]] = {
    _joined(sampler, schedule): (sampler, schedule)
    for sampler, row in _SAMPLERS.items()
    for schedule in (_UNIFORM, *row.listed)
}
"""A1111's names before 1.9 -> (sampler, schedule). `sampler_name` accepts further combinations."""


def _all_names() -> dict[str, tuple[str, str]]:
    names: dict[str, tuple[str, str]] = {"k_euler_ancestral": ("Euler a", _UNIFORM)}
    for sampler, row in _SAMPLERS.items():
        names |= {sampler.casefold(): (sampler, _UNIFORM), row.alias: (sampler, _UNIFORM)}
        if row.scheduled:
            spellings = {name: name for name in _SCHEDULES} | _SAME_SCHEDULES | {AUTOMATIC: row.automatic}
            names |= {f"{sampler} {spelling}".casefold(): (sampler, name) for spelling, name in spellings.items()}
            names |= {f"{row.alias}_ka": (sampler, "Karras"), f"{row.alias}_exp": (sampler, "Exponential")}
    return names


_NAMES = _all_names()


def sampler_name(name: str) -> str:
    """Returns hnetkit's spelling of a sampler's name, given in any case.

    Args:
        name: one of `SAMPLERS`, a sampler with another schedule type of A1111's (``"Euler SGM Uniform"``), or what
            A1111's code also calls it (``"k_dpmpp_2m_ka"``).

    Raises:
        UsageError: no sampler has this name; the hint is the nearest one.
    """
    return _joined(*_split_name(name))


def sampler_of(sampler: str, schedule_type: str | None = None) -> str:
    """Returns the name for the two fields of an infotext.

    A1111 writes ``Schedule type`` since 1.9. Without it, the sampler's name tells the schedule, as it did before.
    ``Automatic`` means the schedule that A1111 prefers for this sampler. A schedule in the sampler's name wins.

    Raises:
        UsageError: no such sampler or schedule; the hint is the nearest one.
    """
    name, own = _split_name(sampler)
    if schedule_type is None or own != _UNIFORM or not _SAMPLERS[name].scheduled:
        return _joined(name, own)
    known = {schedule.casefold(): schedule for schedule in (AUTOMATIC, *_SCHEDULES, *_SAME_SCHEDULES)}
    if schedule_type.casefold() not in known:
        near = did_you_mean(schedule_type, known.values())
        hint = f'the nearest is "{near}"' if near else f"schedule types are: {', '.join(known.values())}"
        raise UsageError(f"{schedule_type}: hnetkit has no schedule type of this name", hint=hint)
    return sampler_name(f"{name} {schedule_type}")


def infotext_fields(name: str) -> tuple[str, str | None]:
    """Returns (``Sampler``, ``Schedule type``) as A1111 writes them since 1.9; None for a sampler without schedules."""
    sampler, schedule = _split_name(name)
    return sampler, schedule if _SAMPLERS[sampler].scheduled else None


def _split_name(name: str) -> tuple[str, str]:
    folded = name.casefold()
    if folded in _NAMES:
        return _NAMES[folded]
    for absent, instead in _ABSENT.items():
        if folded.startswith(absent.casefold()):
            raise UsageError(f"{name}: a sampler of A1111 that hnetkit does not have", hint=f'--sampler "{instead}"')
    near = did_you_mean(name, SAMPLERS)
    hint = f'--sampler "{near}"' if near else f"samplers are: {', '.join(SAMPLERS)}"
    raise UsageError(f"{name}: no sampler has this name", hint=hint)


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Returns a new diffusers scheduler for a sampler, whose ``set_timesteps`` gives A1111's noise levels.

    Args:
        name: of a sampler, with or without a schedule.
        config: the model's own scheduler config, whose noise schedule and prediction type are kept. Of a model that
            predicts the image (``sample``), the scheduler is given noise, and ``predicts_image`` is True.

    Raises:
        UsageError: no sampler has this name.
    """
    from hnetkit.generate.sampling import schedulers, solvers

    sampler, schedule = _split_name(name)
    row = _SAMPLERS[sampler]
    predicts_image = config.get("prediction_type") == "sample"
    if predicts_image:  # `hnetkit.generate.sampling.loop` makes noise of it
        config = {**config, "prediction_type": "epsilon"}
    if config.get("rescale_betas_zero_snr"):  # diffusers' own option, which not all of its schedulers have
        betas = schedulers.zero_snr_betas(config)
        config = {**config, "rescale_betas_zero_snr": False, "trained_betas": betas}
    kind = getattr(solvers, row.kind, None) or getattr(schedulers, row.kind)
    laid_out = {"use_exponential_sigmas": issubclass(kind, schedulers.TwoCalls)}
    scheduler = kind.from_config(config, **{**_OVERRIDES, **laid_out, **row.options})
    scheduler.predicts_image = predicts_image
    if row.scheduled:
        scheduler.schedule, scheduler.discards = schedule, row.discards
    return scheduler


def prepare_scheduler(name: str, config: Mapping[str, Any], steps: int) -> Any:
    """Returns a new diffusers scheduler for `steps` steps of a sampler; see `make_scheduler`.

    Its ``timesteps`` are the model's times at each call of the UNet. They are on the CPU, as all that it looks up by
    them: it reads their values, for which the host would else wait for the device. A run may begin later: with
    ``timesteps[n:]`` and ``set_begin_index(n)``, where n is what `hnetkit.generate.sampling.loop.Steps` says.
    """
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(steps)
    return scheduler
