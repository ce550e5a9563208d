"""Samplers by the names that A1111 gives them, as diffusers schedulers on A1111's noise levels.

A name is a sampler's, alone or with its schedule: ``DPM++ 2M Karras``. Before A1111 1.9 these were the names; since
then the schedule is a field of its own, and may be left to the sampler (see `sampler_of`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hnetkit.errors import UsageError

AUTOMATIC = "Automatic"

_PLAIN = "Uniform"
_SCHEDULES = (_PLAIN, "Karras", "Exponential", "SGM Uniform", "Simple", "DDIM")
# with A1111's default settings these come to the same levels
_SAME_SCHEDULES = {"Polyexponential": "Exponential", "Normal": _PLAIN, "SGMUniform": "SGM Uniform"}
# of A1111, and nothing here makes what they make: the nearest to each
_ABSENT = {"DPM fast": "DPM++ 2M", "DPM adaptive": "DPM++ 2M", "Restart": "Heun Karras", "DDIM CFG++": "DDIM"}


@dataclass(frozen=True, slots=True)
class _Sampler:
    """What is behind a name.

    Attributes:
        kind: a class of `hnetkit.generate.sampling.solvers` or `hnetkit.generate.sampling.schedulers`.
        alias: its first other name in A1111's files.
        automatic: the schedule that A1111 1.9 and later take where none is named.
        listed: schedules that A1111 before 1.9 had a name with.
        options: of the diffusers scheduler.
        scheduled: whether it takes a schedule at all.
        discards: see `hnetkit.generate.sampling.schedulers.Leveled`.
    """

    kind: str
    alias: str
    automatic: str = _PLAIN
    listed: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    scheduled: bool = True
    discards: bool = False


_KARRAS, _BOTH = ("Karras",), ("Karras", "Exponential")
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_SAMPLERS: Mapping[str, _Sampler] = {
    "Euler a": _Sampler("EulerAncestral", "k_euler_a"),
    "Euler": _Sampler("Euler", "k_euler"),
    "LMS": _Sampler("LMS", "k_lms", listed=_KARRAS),
    "Heun": _Sampler("Heun", "k_heun"),
    "DPM2": _Sampler("DPM2", "k_dpm_2", "Karras", _KARRAS, discards=True),
    "DPM2 a": _Sampler("DPM2Ancestral", "k_dpm_2_a", "Karras", _KARRAS, discards=True),
    "DPM++ 2S a": _Sampler("DPM2SAncestral", "k_dpmpp_2s_a", "Karras", _KARRAS),
    "DPM++ 2M": _Sampler("Multistep", "k_dpmpp_2m", "Karras", _KARRAS, {"algorithm_type": "dpmsolver++"}),
    "DPM++ SDE": _Sampler("DPMSDE", "k_dpmpp_sde", "Karras", _KARRAS),
    "DPM++ 2M SDE": _Sampler("Multistep", "k_dpmpp_2m_sde", "Exponential", _BOTH, _SDE),
    "DPM++ 2M SDE Heun": _Sampler(
        *("Multistep", "k_dpmpp_2m_sde_heun", "Exponential", _BOTH), options={**_SDE, "solver_type": "heun"}
    ),
    "DPM++ 3M SDE": _Sampler("DPM3MSDE", "k_dpmpp_3m_sde", "Exponential", _BOTH, discards=True),
    "LCM": _Sampler("LCM", "k_lcm"),
    "DDIM": _Sampler("DDIM", "ddim", scheduled=False),
    "PLMS": _Sampler("PLMS", "plms", options={"skip_prk_steps": True}, scheduled=False),
    "UniPC": _Sampler(
        *("UniPC", "unipc"),
        options={"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        scheduled=False,
    ),
}

# what a model's own scheduler config may say of a sampler, and A1111 does not ask it for
_OWN: Mapping[str, Any] = {
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
    return sampler if schedule == _PLAIN else f"{sampler} {schedule}"


SAMPLERS: Mapping[str, tuple[str, str]] = {
    _joined(sampler, schedule): (sampler, schedule)
    for sampler, behind in _SAMPLERS.items()
    for schedule in (_PLAIN, *behind.listed)
}
"""The names that A1111 had before 1.9 -> (sampler, schedule). `sampler_name` knows further combinations."""


def _all_names() -> dict[str, tuple[str, str]]:
    names: dict[str, tuple[str, str]] = {"k_euler_ancestral": ("Euler a", _PLAIN)}
    for sampler, behind in _SAMPLERS.items():
        names |= {sampler.casefold(): (sampler, _PLAIN), behind.alias: (sampler, _PLAIN)}
        if behind.scheduled:
            named = dict(zip(_SCHEDULES, _SCHEDULES, strict=True)) | _SAME_SCHEDULES | {AUTOMATIC: behind.automatic}
            names |= {f"{sampler} {said}".casefold(): (sampler, meant) for said, meant in named.items()}
            names |= {f"{behind.alias}_ka": (sampler, "Karras"), f"{behind.alias}_exp": (sampler, "Exponential")}
    return names


_NAMES = _all_names()


def sampler_name(name: str) -> str:
    """Returns the name that `name` means here; case does not matter.

    Args:
        name: one of `SAMPLERS`, a sampler with another schedule type of A1111's (``"Euler SGM Uniform"``), or what
            A1111's files also call it (``"k_dpmpp_2m_ka"``).

    Raises:
        UsageError: no sampler has this name; the hint is the nearest one.
    """
    return _joined(*_parts(name))


def sampler_of(sampler: str, schedule_type: str | None = None) -> str:
    """Returns the name for the two fields of an infotext.

    A1111 writes ``Schedule type`` since 1.9. Without it a sampler is what its name says, as it was before; with
    ``Automatic`` it has the schedule that A1111 prefers for it. A schedule in the sampler's own name goes first.

    Raises:
        UsageError: no such sampler or schedule; the hint is the nearest one.
    """
    name, own = _parts(sampler)
    if schedule_type is None or own != _PLAIN or not _SAMPLERS[name].scheduled:
        return _joined(name, own)
    known = {schedule.casefold(): schedule for schedule in (AUTOMATIC, *_SCHEDULES, *_SAME_SCHEDULES)}
    if schedule_type.casefold() not in known:
        near = difflib.get_close_matches(schedule_type.casefold(), known, n=1, cutoff=0.4)
        hint = f'the nearest is "{known[near[0]]}"' if near else f"schedule types are: {', '.join(known.values())}"
        raise UsageError(f"{schedule_type}: no schedule type that hnetkit has bears this name", hint=hint)
    return sampler_name(f"{name} {schedule_type}")


def infotext_fields(name: str) -> tuple[str, str | None]:
    """Returns (``Sampler``, ``Schedule type``) as A1111 1.9 and later write them; None where there is no schedule."""
    sampler, schedule = _parts(name)
    return sampler, schedule if _SAMPLERS[sampler].scheduled else None


def _parts(name: str) -> tuple[str, str]:
    folded = name.casefold()
    if folded in _NAMES:
        return _NAMES[folded]
    for absent, instead in _ABSENT.items():
        if folded.startswith(absent.casefold()):
            raise UsageError(f"{name}: a sampler of A1111 that hnetkit has not", hint=f'--sampler "{instead}"')
    known = {sampler.casefold(): sampler for sampler in SAMPLERS}
    near = difflib.get_close_matches(folded, known, n=1, cutoff=0.4)
    hint = f'--sampler "{known[near[0]]}"' if near else f"samplers are: {', '.join(SAMPLERS)}"
    raise UsageError(f"{name}: no sampler has this name", hint=hint)


def scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Returns a new diffusers scheduler for a sampler, whose ``set_timesteps`` gives A1111's noise levels.

    Args:
        name: of a sampler, with or without a schedule.
        config: the model's own scheduler config, whose noise schedule and prediction type are kept.

    Raises:
        UsageError: no sampler has this name.
    """
    from hnetkit.generate.sampling import schedulers, solvers

    sampler, schedule = _parts(name)
    behind = _SAMPLERS[sampler]
    kind = getattr(solvers, behind.kind, None) or getattr(schedulers, behind.kind)
    laid_out = {"use_exponential_sigmas": issubclass(kind, schedulers.TwoCalls)}
    made = kind.from_config(config, **{**_OWN, **laid_out, **behind.options})
    if behind.scheduled:
        made.schedule, made.discards = schedule, behind.discards
    return made


def prepare(name: str, config: Mapping[str, Any], steps: int, device: Any = None) -> Any:
    """Returns a new diffusers scheduler for `steps` steps of a sampler; see `scheduler`.

    Its ``timesteps`` are the model's time at each call of the UNet, on `device`. A run may begin later: with
    ``timesteps[n * order:]`` and ``set_begin_index(n * order)`` it leaves the first `n` steps out.
    """
    made = scheduler(name, config)
    made.set_timesteps(steps, device)
    return made
