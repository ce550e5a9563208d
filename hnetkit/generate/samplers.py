"""Samplers by the names that A1111 gives them, as diffusers schedulers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from hnetkit.errors import UsageError

# A1111's name -> (diffusers scheduler, what the name implies beyond its defaults)
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": False}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "DDIM": ("DDIMScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}


def sampler_name(name: str) -> str:
    """Returns the A1111 name that `name` means; case does not matter.

    Raises:
        UsageError: no sampler has this name; the hint is the nearest one.
    """
    known = {sampler.casefold(): sampler for sampler in SAMPLERS}
    if name.casefold() in known:
        return known[name.casefold()]
    near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.4)
    hint = f'--sampler "{known[near[0]]}"' if near else f"samplers are: {', '.join(SAMPLERS)}"
    raise UsageError(f"{name}: no sampler has this name", hint=hint)


def scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Returns a new diffusers scheduler for the sampler `name`.

    Args:
        name: one of `SAMPLERS`.
        config: the model's own scheduler config; its noise schedule, prediction type and timestep spacing stay.
    """
    import diffusers

    kind, implied = SAMPLERS[name]
    return getattr(diffusers, kind).from_config(config, **implied)
