"""Hypernetworks on the UNet of a webui's model, for one sampling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from hnetkit.errors import HnetkitError
from hnetkit.prompts.tags import Tag
from hnetkit.runtime.attention_patches import AttentionPatch
from hnetkit.runtime.network_files import NetworkFile, PatchableUNet, nbytes
from hnetkit.runtime.strength import Strength, strength_of


class Patched(NamedTuple):
    """A UNet with networks.

    Attributes:
        unet: a copy of the webui's.
        applied: what is on it.
        failures: of what cannot be.
    """

    unet: Any
    applied: list[tuple[NetworkFile, Tag]]
    failures: list[HnetkitError]


def patched(unet: Any, networks: Iterable[tuple[NetworkFile, Tag]], denoiser: Any) -> Patched:
    """Returns a copy of a webui's UNet with networks on it.

    Args:
        unet: as the program has it, with the model's weights: it is copied, and its weights are not.
        networks: in stacking order, with the tag of each.
        denoiser: tells the step: its ``step`` and ``total_steps`` count what the sampler asks of the model. None where
            the sampler has none: networks with a window of steps are an error then, when they are asked for.

    Raises:
        AttachError: the model has no attention layers that hypernetworks know.
    """
    patchable = PatchableUNet(
        unet.model.diffusion_model, unet.load_device, _compute_dtype(unet), manage=lambda module: module
    )
    stack: list[tuple[NetworkFile, Strength]] = []
    result = Patched(unet.clone(), [], [])
    for file, tag in networks:
        try:
            strength = Strength.of(strength_of(tag))
            patchable.weights(file, strength)
        except HnetkitError as error:
            result.failures.append(error)
            continue
        result.applied.append((file, tag))
        stack.append((file, strength))
    if not stack:
        return result

    def progress(options: Mapping[str, Any]) -> float | None:
        steps = getattr(denoiser, "total_steps", None)
        return min((denoiser.step + 0.5) / steps, 1.0) if steps else None

    whole, modules = patchable.stack(stack, progress)
    _bring(result.unet, modules)
    result.unet.set_model_attn1_patch(AttentionPatch(whole, "self"))
    result.unet.set_model_attn2_patch(AttentionPatch(whole, "cross"))
    return result


def _bring(unet: Any, modules: Sequence[torch.nn.Module]) -> None:
    """Has the program move modules to the device while `unet` samples, and leave room for them."""
    for module in dict.fromkeys(modules):
        unet.add_extra_torch_module_during_sampling(module, cast_to_unet_dtype=False)
        unet.add_extra_preserved_memory_during_sampling(nbytes(module))


def _compute_dtype(unet: Any) -> torch.dtype:
    """Returns the dtype of the contexts in the model, which may differ from that of its weights."""
    casts = (getattr(unet.model, name, None) for name in ("computation_dtype", "manual_cast_dtype"))
    dtype: torch.dtype = next((cast for cast in casts if cast is not None), None) or unet.model_dtype()
    return dtype
