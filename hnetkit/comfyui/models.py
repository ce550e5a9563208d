"""Hypernetworks on a MODEL of ComfyUI: on a copy of it, in the order of the wires."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from hnetkit.runtime.attention_patches import AttentionPatch, AttentionStack
from hnetkit.runtime.network_files import NetworkFile, PatchableUNet, nbytes
from hnetkit.runtime.strength import KINDS, Kind, Strength

_PATCHES: Mapping[Kind, str] = {"self": "attn1_patch", "cross": "attn2_patch"}


class ModelPatch(AttentionPatch):
    """A stack in the attention layers of one kind, whose weights ComfyUI manages.

    Args:
        stack: what is applied.
        kind: of attention.
        files: the networks of the stack.
        weights: of the stack, as ComfyUI takes models.
    """

    def __init__(
        self, stack: AttentionStack, kind: Kind, files: Sequence[tuple[NetworkFile, Strength]], weights: Sequence[Any]
    ) -> None:
        super().__init__(stack, kind)
        self.files = tuple(files)
        self._weights = tuple(weights)

    def models(self) -> list[Any]:
        """Returns what has to be on the device while the model samples."""
        return list(self._weights)


def with_networks(model: Any, files: Sequence[tuple[NetworkFile, Strength]]) -> Any:
    """Returns a copy of `model` with networks after those that it has; neighbors become one stack.

    Raises:
        AttachError: the model has no attention layers that hypernetworks know.
        IncompatibleNetwork: a network is made for another base model, or has values too large for the model's dtype.
        UsageError: a strength names a block that the model does not have.
        hnetkit.errors.FileRefused: a file cannot be read.
    """
    devices = model.load_device, model.offload_device
    unet = PatchableUNet(
        model.model.diffusion_model, model.load_device, _compute_dtype(model), partial(_managed, model), devices
    )
    copy = model.clone()
    stacks: dict[tuple[tuple[NetworkFile, Strength], ...], tuple[AttentionStack, list[Any]]] = {}
    for kind in KINDS:
        before = _last_patch(copy, kind)
        row = (*(before.files if before else ()), *files)
        if row not in stacks:  # earlier networks too: a node between may have changed the dtype that is computed in
            stacks[row] = unet.stack(row, sampling_progress)
        stack, weights = stacks[row]
        patch = ModelPatch(stack, kind, row, weights)
        if before:
            _patches(copy, kind)[-1] = patch
        else:
            getattr(copy, f"set_model_{_PATCHES[kind]}")(patch)
    return copy


def sampling_progress(options: Mapping[str, Any]) -> float | None:
    """Returns where sampling is, by the middle of its step, from the options of a patch."""
    now, schedule = options.get("sigmas"), options.get("sample_sigmas")
    if now is None or schedule is None or len(schedule) < 2:
        return None
    steps = len(schedule) - 1
    if schedule[0] < schedule[-1]:  # from a picture to noise
        now, schedule = -now, -schedule
    level = now.max().to(schedule)
    begun = int((schedule >= level - level.abs() * 1e-4).sum())  # samplers ask between two steps too
    return (min(max(begun, 1), steps) - 0.5) / steps


def _managed(model: Any, module: nn.Module) -> Any:
    """Returns a module as ComfyUI counts and moves models: with those that sample, and where `model` does."""
    import comfy.model_patcher  # type: ignore[import-not-found]

    return comfy.model_patcher.ModelPatcher(module, model.load_device, model.offload_device, size=nbytes(module))


def _compute_dtype(model: Any) -> torch.dtype:
    """Returns the dtype of the contexts in the model: that of its weights, unless ComfyUI casts them."""
    cast = model.get_model_object("manual_cast_dtype")
    dtype: torch.dtype = model.model_dtype() if cast is None else cast
    return dtype


def _patches(model: Any, kind: Kind) -> list[Any]:
    patches: list[Any] = model.model_options["transformer_options"].get("patches", {}).get(_PATCHES[kind], [])
    return patches


def _last_patch(model: Any, kind: Kind) -> ModelPatch | None:
    """Returns the patch that the model's attention ends with, if that is ours."""
    last = next(reversed(_patches(model, kind)), None)
    return last if isinstance(last, ModelPatch) else None
