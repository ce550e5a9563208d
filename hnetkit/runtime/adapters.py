"""Hypernetworks on the UNet of a diffusers pipeline: load, set, disable, unload, in the verbs of its LoRA loaders.

All state lives on the UNet: pipelines that share one share the stack.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any, TypeAlias

import torch
from torch import nn

from hnetkit.errors import AttachError, NotFound, UsageError, did_you_mean
from hnetkit.hub import Token, network_file
from hnetkit.network import Hypernetwork
from hnetkit.runtime.capture import is_compiled
from hnetkit.runtime.explain import explanation
from hnetkit.runtime.fit import require_fit
from hnetkit.runtime.layers import contexts_of, find_layers, require_blocks, unet_of
from hnetkit.runtime.progress import make_follower
from hnetkit.runtime.strength import KINDS, SIDES, Strength, require_order
from hnetkit.runtime.unet_state import UNetState
from hnetkit.text import counted, several

_ATTRIBUTE = "hnetkit"
# older compilers skip hooks, or a part of what they do
_COMPILES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 5)

StepCallback: TypeAlias = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""What diffusers pipelines take as ``callback_on_step_end``."""


def load_hypernetwork(
    pipe: Any,
    network: str | os.PathLike[str] | Hypernetwork,
    name: str | None = None,
    strength: float | Strength = 1.0,
    *,
    force: bool = False,
    weight_name: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: Token = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> str:
    """Loads a hypernetwork onto the pipeline's UNet and puts it at the end of the active stack.

    Args:
        pipe: a `StableDiffusionPipeline`, a `StableDiffusionXLPipeline`, or anything else with such a ``unet``.
        network: a file, a folder, ``"owner/repo"`` of the Hugging Face hub, or what `hnetkit.load` gave. A local file
            or folder comes before a repository of that name.
        name: for `set_hypernetworks` and the others; the file's stem where it is not given.
        strength: a number, or a `Strength`.
        force: load it although it is made for another base model.
        weight_name: of the file in a folder or repository; needed where that has several model files.
        subfolder: of the folder or repository, where the file is.
        revision: of the repository: a branch, a tag or a commit.
        token: for the hub; None and True are that of ``HF_TOKEN`` or `hf auth login`, False is none.
        cache_dir: instead of the hub's own cache.
        local_files_only: fetch nothing from the hub.

    Returns:
        The name that it is loaded under.

    Raises:
        FileRefused: the file is not a hypernetwork that can be read safely.
        NotFound: there is no such file, folder, repository or revision.
        AuthRequired, NetworkFailed, RateLimited: the hub cannot be read.
        MissingExtra: huggingface_hub is not installed.
        IncompatibleNetwork: it does not belong on this UNet, reaches no layer of it, or has values too large for its
            dtype.
        DamagedFile: the file has NaN or infinity among its values.
        UsageError: the name is taken, `pipe` has no UNet, `network` is several, or there are several files to choose
            from.
        AttachError: the UNet's projections are fused, or it is compiled by a torch before 2.5.

    Example::

        load_hypernetwork(pipe, "style.pt", name="style")
        load_hypernetwork(pipe, "owner/repo", weight_name="ink.pt", revision="v1")
    """
    unet = unet_of(pipe)
    if not isinstance(network, Hypernetwork):
        if not isinstance(network, str | os.PathLike):
            raise UsageError(
                f"load_hypernetwork takes one network or its file, and no {type(network).__name__}",
                hint="for several: for file in files: hnetkit.load_hypernetwork(pipe, file)",
            )
        from hnetkit.formats import load

        network = load(
            network_file(
                network,
                weight_name=weight_name,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        )
    name = name or (PurePath(network.path).stem if network.path else network.name)
    state = _state_of(unet)
    if state is not None and name in state.networks:
        raise UsageError(f"a hypernetwork named {name} is loaded already", hint=f'give it another: name="{name}-2"')
    strength = Strength.of(strength)
    layers = state.layers if state is not None else find_layers(unet)
    require_fit(name, network, contexts_of(unet, layers), force=force)
    require_blocks(strength, state.layers if state else layers)
    if state is None:
        state = _attach(pipe, unet)
    try:
        state.add(name, network, strength)
    finally:
        if not state.networks:
            _detach(pipe, unet, state)
    _warn_if_disabled(state)
    return name


def set_hypernetworks(
    pipe: Any,
    names: str | Sequence[str] | Mapping[str, float | Strength | None],
    strengths: float | Strength | Sequence[float | Strength | None] | None = None,
) -> None:
    """Makes these loaded networks the active stack, in this order. Nothing is loaded or repacked.

    Args:
        names: in stacking order: the second sees what the first gave. None active: ``[]``. A dict has the strengths
            with the names.
        strengths: one for each name, or one for all of them; None is 1.0.

    Raises:
        NotFound: a name that is not loaded.
        UsageError: a name twice, not as many strengths as names, no strength at all, or a block that the UNet does
            not have.

    Example::

        set_hypernetworks(pipe, ["style", "ink"], [0.8, Strength(1.0, end=0.6)])
        set_hypernetworks(pipe, {"style": 0.8, "ink": Strength(1.0, end=0.6)})
    """
    state = _state_of(unet_of(pipe))
    stack = _checked_stack(state, names, strengths)
    if state is not None:
        state.set_stack(stack)
        _warn_if_disabled(state)


def named_networks(
    pipe: Any,
    names: str | Sequence[str] | Mapping[str, float | Strength | None] | None = None,
    strengths: float | Strength | Sequence[float | Strength | None] | None = None,
) -> list[tuple[str, Hypernetwork, Strength]]:
    """Returns loaded networks with their strengths, in stacking order; it makes nothing active.

    Args:
        names, strengths: as `set_hypernetworks` takes them; without names, the active stack.

    Raises:
        NotFound, UsageError: as `set_hypernetworks`.
    """
    state = _state_of(unet_of(pipe))
    if names is None:
        names = {} if state is None else dict(state.stack)
    stack = _checked_stack(state, names, strengths)
    return [] if state is None else [(name, state.networks[name].network, strength) for name, strength in stack]


def _checked_stack(state: UNetState | None, names: Any, strengths: Any) -> list[tuple[str, Strength]]:
    stack = _named_strengths(names, strengths)
    _require_loaded([name for name, _ in stack], state)
    if state is None:
        return stack
    for name, strength in stack:
        if sum(name == other for other, _ in stack) > 1:
            raise UsageError(f"{name} is in the stack twice", hint="load it a second time under another name")
        require_blocks(strength, state.layers)
    return stack


def get_active_hypernetworks(pipe: Any) -> list[str]:
    """Returns the names of the active stack in stacking order; disabling does not change it."""
    state = _state_of(unet_of(pipe))
    return [] if state is None else [name for name, _ in state.stack]


def disable_hypernetworks(pipe: Any) -> None:
    """Draws without the stack until `enable_hypernetworks`; it stays loaded."""
    _enable(pipe, False)


def enable_hypernetworks(pipe: Any) -> None:
    """Applies the stack again after `disable_hypernetworks`."""
    _enable(pipe, True)


def unload_hypernetworks(pipe: Any, names: str | Sequence[str] | None = None) -> None:
    """Unloads networks; without `names` all of them. After the last one the UNet is what it was, bit for bit.

    Raises:
        NotFound: a name that is not loaded.
    """
    unet = unet_of(pipe)
    state = _state_of(unet)
    if names is not None:
        names = several(names)
        _require_loaded(names, state)
    if state is None:
        return
    state.drop(state.networks if names is None else names)
    if not state.networks:
        _detach(pipe, unet, state)


@contextmanager
def applied(pipe: Any, strengths: str | Sequence[str] | Mapping[str, float | Strength | None]) -> Iterator[None]:
    """Makes these loaded networks the active stack within a ``with`` block; the stack before comes back after it.

    Args:
        strengths: by name, in stacking order; names alone are at 1.0.

    Raises:
        NotFound, UsageError: as `set_hypernetworks`.

    Example::

        with applied(pipe, {"style": 0.8}):
            image = pipe("a house").images[0]
    """
    state = _state_of(unet_of(pipe))
    chosen = _checked_stack(state, strengths, None)
    stack, enabled = (state.stack, state.is_enabled) if state is not None else ((), True)
    try:
        if state is not None:
            state.set_stack(chosen)
            state.enable(True)
        yield
    finally:
        state = _state_of(unet_of(pipe))
        if state is not None:
            state.set_stack([(name, strength) for name, strength in stack if name in state.networks])
            state.enable(enabled)


def set_progress(pipe: Any, step: int, steps: int) -> None:
    """Sets which sampling step comes next, for strengths with a window of steps.

    Args:
        step: counted from 0; `steps` when sampling is over.
        steps: how many there are.
    """
    state = _state_of(unet_of(pipe))
    if state is not None:
        state.set_progress(_middle(step, steps))


def follow_progress(pipe: Any, steps: int | None = None) -> StepCallback:
    """Returns a callback with which a diffusers pipeline calls `set_progress` at every step.

    It follows the steps that the pipeline really makes: in image-to-image, with ``denoising_end``, with timesteps of
    your own, with schedulers of second order, which call the UNet twice in a step. One callback serves many calls of
    Stable Diffusion's and SDXL's pipelines. A pipeline that does not announce its calls (latent consistency, PAG), and
    a function of yours around the callback, take a new one each time.

    Args:
        pipe: the pipeline that is called with it.
        steps: of a pipeline that does not say how many it makes; ignored where it does.

    Raises:
        UsageError: `pipe` is a UNet, and `steps` are not given. From the pipeline's call: another pipeline makes it,
            with another number of steps; or another thread followed a sampling of the same UNet meanwhile.

    Example::

        pipe(prompt, num_inference_steps=20, callback_on_step_end=follow_progress(pipe))
    """
    unet_of(pipe)
    return make_follower(pipe, steps, _follow, _require_alone)


def _follow(pipe: Any, step: int, steps: int) -> None:
    """As `set_progress`, of a sampling that this thread makes."""
    state = _state_of(unet_of(pipe))
    if state is not None:
        state.follow(_middle(step, steps))


def _require_alone(pipe: Any) -> None:
    """Raises UsageError if another thread sampled with the UNet since this one's last step."""
    state = _state_of(unet_of(pipe))
    if state is not None:
        state.require_followed_here()


def _middle(step: int, steps: int) -> float | None:
    """Returns the fraction of the steps at the middle of one; None once sampling is over."""
    return (step + 0.5) / steps if step < steps else None


def explain(pipe: Any, *, latent_size: int | None = None, batch_size: int = 2, text_tokens: int = 77) -> dict[str, Any]:
    """Returns the plan as data for `json.dumps`: what is applied where, in which form, at what cost.

    Args:
        latent_size: side of the latents in pixels, for the costs; None: the UNet's own size.
        batch_size: rows of a UNet call; 2 with classifier-free guidance.
        text_tokens: length of the text context.

    Returns:
        ``enabled, kernel, device, dtype, networks, layers_reached, launches, flops, bytes, parts``; each part has
        ``width, kind, side, path, kernel, networks, folded, strengths, layers, applications, launches,
        with_other_side, flops, bytes, reason``. Launches that serve K and V are counted with K. Launches and
        FLOPs are those of one UNet call. Without loaded networks: no networks and no parts.
    """
    unet = unet_of(pipe)
    return explanation(unet, _state_of(unet), latent_size=latent_size, batch_size=batch_size, text_tokens=text_tokens)


def without_effect(pipe: Any, name: str, strength: float | Strength, steps: int) -> str | None:
    """Returns why a loaded network would change nothing at a strength that is not 0; None where it does.

    Args:
        steps: that are sampled.
    """
    state, strength = _state_of(unet_of(pipe)), Strength.of(strength)
    if state is None or not any(strength.number(kind, side) for kind in KINDS for side in SIDES):
        return None
    if not any(strength.applies_at((step + 0.5) / steps) for step in range(steps)):
        of_steps = f"none of the {steps} steps" if steps > 1 else "not the only step"
        return f"{of_steps} has its middle within {strength.start:g} to {strength.end:g}"
    widths = state.networks[name].widths
    reached = (layer for layer in state.layers if layer.width in widths and strength.factor(layer.name))
    if any(strength.number(layer.kind, side) for layer in reached for side in SIDES):
        return None
    return f"its widths, {', '.join(map(str, widths))}, are in no layer that its strength reaches"


def _state_of(unet: nn.Module) -> UNetState | None:
    state = getattr(unet, _ATTRIBUTE, None)
    return state if isinstance(state, UNetState) else None


def _attach(pipe: Any, unet: nn.Module) -> UNetState:
    if not _COMPILES and is_compiled(getattr(pipe, "unet", pipe)):
        raise AttachError(
            f"this UNet is compiled, and code that torch {torch.__version__} compiles leaves networks out",
            hint='pip install "torch>=2.5", or load networks on a UNet that is not compiled',
        )
    state = UNetState(unet)
    unet.add_module(_ATTRIBUTE, state)
    _forget_compiled(pipe, unet)
    return state


def _detach(pipe: Any, unet: nn.Module, state: UNetState) -> None:
    state.remove()
    delattr(unet, _ATTRIBUTE)
    _forget_compiled(pipe, unet)


def _forget_compiled(pipe: Any, unet: nn.Module) -> None:
    """Drops what `torch.compile` made of the UNet: compiled code does not see hooks that are added or removed later."""
    if "torch._dynamo" not in sys.modules:
        return
    torch.compiler.reset()
    if is_compiled(getattr(pipe, "unet", pipe)):
        warnings.warn(
            "hnetkit dropped the compiled code of this UNet: its next call compiles again", UserWarning, stacklevel=4
        )


def _warn_if_disabled(state: UNetState) -> None:
    if state.stack and not state.is_enabled:
        warnings.warn(
            "hypernetworks of this UNet are disabled, these too: hnetkit.enable_hypernetworks(pipe) applies them",
            UserWarning,
            stacklevel=3,
        )


def _enable(pipe: Any, enabled: bool) -> None:
    state = _state_of(unet_of(pipe))
    if state is not None:
        state.enable(enabled)


def _named_strengths(names: Any, strengths: Any) -> list[tuple[str, Strength]]:
    """Returns names with strengths in stacking order, from all forms that `set_hypernetworks` takes."""
    if isinstance(names, Mapping):
        if strengths is not None:
            raise UsageError("a dict has the strengths with the names", hint="leave strengths out, or give a list")
        names, strengths = list(names), list(names.values())
    require_order(names)
    require_order(strengths)
    names = several(names)
    for name in names:
        if not isinstance(name, str):
            raise UsageError(
                f"a stack is of names, and no {type(name).__name__}",
                hint='what load_hypernetwork returned: ["style", "ink"], or {"style": 0.8, "ink": 1.0}',
            )
    if isinstance(strengths, str) or not isinstance(strengths, Iterable) or getattr(strengths, "ndim", 1) == 0:
        strengths = [strengths] * len(names)
    strengths = list(strengths)
    if len(strengths) != len(names):
        counts = f"{counted(len(names), 'name')} and {counted(len(strengths), 'strength')}"
        raise UsageError(counts, hint="give one strength for each name, or one number for all")
    return [(name, Strength.of(1.0 if s is None else s)) for name, s in zip(names, strengths, strict=True)]


def _require_loaded(names: Sequence[str], state: UNetState | None) -> None:
    loaded = list(state.networks) if state is not None else []
    for name in names:
        if name not in loaded:
            near = did_you_mean(name, loaded)
            known = f"loaded are {', '.join(loaded)}" if loaded else "hnetkit.load_hypernetwork(pipe, FILE) loads one"
            raise NotFound(f"no hypernetwork named {name} is loaded", hint=f"did you mean {near}?" if near else known)
