"""The state of a UNet that hypernetworks are loaded on: networks, active stack, plan, and the hooks that apply it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from threading import get_ident
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from hnetkit.errors import AttachError, UsageError
from hnetkit.kernels.affine import Affine
from hnetkit.kernels.dispatch import KERNELS, chosen_path, path_on
from hnetkit.kernels.executor import packed_alike
from hnetkit.network import Hypernetwork
from hnetkit.runtime import folding
from hnetkit.runtime.buffers import LayerGroupStack, LoadedNetwork, compose_networks
from hnetkit.runtime.hooks import ProjectionHook, TextContext, make_hooks
from hnetkit.runtime.layers import find_layers
from hnetkit.runtime.plan import ActiveNetwork, LayerGroup, StackPlan, WeightedNetwork, plan_stack
from hnetkit.runtime.strength import Strength

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_makes_tensors = torch.inference_mode(False)  # those of inference mode could not be written to outside of it


class UNetState(nn.Module):
    """A submodule of the UNet for as long as networks are loaded; none of its buffers is saved.

    Attributes:
        layers: the attention layers that are reached.
        stack: the active names with their strengths, in stacking order.
        is_enabled: False leaves the stack out without forgetting it.
        plan: what is applied where.
        path: what is chosen to compute it, one of `hnetkit.kernels.dispatch.PATHS`; `path_here` is what does.
        device, dtype: of the weights: the UNet's.
        era: another object once networks come, go or move: calls that were captured before are of no use.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.layers = find_layers(unet)
        self.stack: tuple[tuple[str, Strength], ...] = ()
        self.is_enabled = True
        self.plan = StackPlan()
        self._progress: float | None = None
        self._followed_in: int | None = None
        self._networks: dict[str, LoadedNetwork] = {}
        self._group_stacks: dict[object, LayerGroupStack] = {}
        self._begin_era()
        self._misses_progress = False
        self._text = TextContext()
        self._text_stacks: tuple[tuple[int, LayerGroupStack], ...] = ()
        chosen_path()  # a path that cannot run is refused before any hook is on
        self._hooks = make_hooks(unet, self.layers, self._text)
        self._unet = (unet,)  # in a tuple: a parent must not become a submodule of its child
        self.device, self.dtype = _device(self._hooks), _dtype(unet, self._hooks)
        self.path = chosen_path(self.device)
        # of the way up, where there is one: a ControlNet, which hypernetworks leave alone, is made of the first half
        self._watched_layer = max((layer.name for layer in self.layers), key=lambda name: name.startswith("up_blocks"))
        self._unet_hooks = (
            unet.register_forward_pre_hook(self._before, with_kwargs=True),
            unet.register_forward_hook(self._after, always_call=True),
            unet.get_submodule(self._watched_layer).register_state_dict_pre_hook(self._warn_of_parts),
        )

    @property
    def networks(self) -> Mapping[str, LoadedNetwork]:
        """The loaded networks by name, in the order of loading."""
        return self._networks

    @_makes_tensors
    def add(self, name: str, network: Hypernetwork, strength: Strength) -> None:
        """Reads a network's weights and puts it at the end of the stack."""
        loaded = LoadedNetwork(name, network, frozenset(layer.width for layer in self.layers))
        loaded.read_weights(self.device, self.dtype, self.path)
        self._register({**self._networks, name: loaded})
        self.set_stack([*self.stack, (name, strength)])

    def drop(self, names: Iterable[str]) -> None:
        """Drops networks and their weights."""
        dropped = frozenset(names)
        self.set_stack([(name, strength) for name, strength in self.stack if name not in dropped])
        self._register({name: loaded for name, loaded in self._networks.items() if name not in dropped})

    def _register(self, networks: dict[str, LoadedNetwork]) -> None:
        self._begin_era()
        self._networks = networks
        self.registered_networks = nn.ModuleList(networks.values())

    def set_stack(self, stack: Sequence[tuple[str, Strength]]) -> None:
        """Makes `stack` the active one, in stacking order."""
        self.stack = tuple(stack)
        self.replan()

    def enable(self, enabled: bool) -> None:
        self.is_enabled = enabled
        self.replan()

    def set_progress(self, progress: float | None) -> None:
        """Sets which fraction of the sampling steps is done; None where it is not known."""
        self._progress = progress
        if any(strength.has_window for _, strength in self.stack):  # else no step changes the plan
            self.replan()

    def follow(self, progress: float | None) -> None:
        """Sets the progress of a sampling that this thread makes, as `set_progress`."""
        self._followed_in = get_ident()
        self.set_progress(progress)

    def require_followed_here(self) -> None:
        """Raises UsageError if another thread called `follow` since this one did, and a network has a window."""
        has_window = self.is_enabled and any(strength.has_window for _, strength in self.stack)
        if not has_window or self._followed_in in (None, get_ident()):
            return
        raise UsageError(
            "another thread sampled with this UNet meanwhile, and a network is limited to a window of its steps",
            hint="let the threads take turns, or give each a copy: copy.deepcopy(pipe)",
        )

    @_makes_tensors
    def replan(self, *, fold: bool = True) -> None:
        """Plans the stack again and applies what changed: scalars, composed maps, folded weights. No file is read."""
        for hook in self._hooks:
            hook.context.clear()
            # after a LoRA was loaded or unloaded: maps are folded into the module that is there now
            if hook.current is not hook.module:
                hook.rewrap()
        active = [self._active_network(name, strength) for name, strength in self.stack] if self.is_enabled else []
        fold_flops = folding.affordable_flops(self.device) if fold and self._can_fold else 0
        self._apply_plan(plan_stack(self.layers, active, fold_flops=fold_flops))
        self._misses_progress = self._progress is None and any(network.strength.has_window for network in active)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def rewrap(self) -> None:
        """Moves hooks to the modules that are the projections now, and plans again, outside of compiled code."""
        self.replan()

    def remove(self) -> None:
        """Takes all hooks off and leaves the UNet as it was before, bit for bit."""
        folding.unguard(self._unet[0])
        for hook in self._hooks:
            hook.remove()
        for handle in self._unet_hooks:
            handle.remove()

    def group_stack(self, group: LayerGroup) -> LayerGroupStack | None:
        """Returns what the contexts of a group of the plan go through; None where there is nothing to apply."""
        return self._group_stacks.get(group.key)

    @property
    def operations(self) -> object:
        """What a UNet call does on contexts, without the numbers in buffers: as long as it is equal, in one era, a
        captured call is right. It holds the buffers. Plain torch leaves networks out that have no effect now.
        """
        by_kernels = self.path_here in KERNELS
        group_stacks = self._group_stacks.values()
        return self._misses_progress, tuple((stack, None if by_kernels else stack.active) for stack in group_stacks)

    @property
    def path_here(self) -> str:
        """The path that computes the stack where the UNet is now."""
        return path_on(self.path, self.device, self.dtype)

    @property
    def _can_fold(self) -> bool:
        return self.path != "reference" and folding.can_fold(self._unet[0], (hook.current for hook in self._hooks))

    def _active_network(self, name: str, strength: Strength) -> ActiveNetwork:
        loaded = self._networks[name]
        is_open = self._progress is None or strength.applies_at(self._progress)
        return ActiveNetwork(name, strength, loaded.widths, loaded.affine, is_open)

    def _apply_plan(self, plan: StackPlan) -> None:
        hooks = {(hook.layer, hook.side): hook for hook in self._hooks}
        before, self._group_stacks = self._group_stacks, {}
        text_stacks = []
        for index, group in enumerate(plan.groups):
            group_stack = self._build_group_stack(group)
            if group_stack is not None and group.kind == "cross":
                text_stacks.append((index, group_stack))
            for side, side_plan in group.side_plans.items():
                own = [hooks[layer, side] for layer in group.layers]
                for hook in own:
                    hook.context.group_index, hook.context.group_stack = index, group_stack
                    hook.has_effect = side_plan.has_effect
                affine = partial(compose_networks, side_plan.folded, group.width, side, self._networks)
                _fold(own, side_plan.folded, affine)
        del before  # until here, those lived on that this plan has too
        self.plan = plan
        self.registered_group_stacks = nn.ModuleList(self._group_stacks.values())
        self._text_stacks = tuple(text_stacks)
        if any(hook.folded for hook in self._hooks):
            folding.guard(self._unet[0], self)
        else:
            folding.unguard(self._unet[0])

    def _build_group_stack(self, group: LayerGroup) -> LayerGroupStack | None:
        """Returns the stack of a group: one that lives, with other numbers, where only numbers differ.

        The plan before holds some, and captured calls hold those of other plans, which they find again so.
        """
        if not group.sides:
            return None
        group_stack = self._living.get((group.key, group.shape))
        if group_stack is None:
            group_stack = LayerGroupStack(group, self._networks, path=self.path, device=self.device, dtype=self.dtype)
            self._living[group.key, group.shape] = group_stack
        else:
            group_stack.rewrite(group, self._networks)
        self._group_stacks[group.key] = group_stack
        return group_stack

    def _begin_era(self) -> None:
        self.era = object()
        self._living: WeakValueDictionary[object, LayerGroupStack] = WeakValueDictionary()
        for key, group_stack in self._group_stacks.items():
            self._living[key, group_stack.group.shape] = group_stack

    def __getstate__(self) -> dict[str, Any]:
        """Returns what a copy has: its group stacks are its own."""
        return {name: value for name, value in vars(self).items() if name not in ("era", "_living")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._begin_era()

    def _before(self, unet: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """The UNet's pre-hook: applies the stack to the text, once for all layers."""
        if any([hook.is_replaced() for hook in self._hooks]):  # a list: torch 2.5 compiles no generator
            self.rewrap()
        if self._misses_progress:
            self._refuse_without_progress()
        text = options.get("encoder_hidden_states", arguments[2] if len(arguments) > 2 else None)
        self._text.clear()
        if not isinstance(text, Tensor):
            return
        if text.device != self.device:  # offloading: the UNet moves to its device later in this call, or piece by piece
            self._move(text.device, self.dtype)
        if _reaches_layers(unet) and not _computes_layers_again(unet):
            width = text.shape[-1]
            contexts = {index: stack(text) for index, stack in self._text_stacks if stack.group.width == width}
            self._text.fill(text, contexts)

    def _after(self, unet: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._text.clear()
        for hook in self._hooks:
            hook.context.clear()

    def _warn_of_parts(self, layer: nn.Module, prefix: str, keep_vars: bool) -> None:
        """Warns where a layer's weights are read without those of the whole UNet, as for a UNet of videos."""
        if self.is_enabled and self.stack and not prefix.endswith(f"{self._watched_layer}."):
            names = ", ".join(name for name, _ in self.stack)
            warnings.warn(
                f"what is made of parts of this UNet has none of its hypernetworks ({names}): load them there, too",
                UserWarning,
                stacklevel=2,
            )

    def _refuse_without_progress(self) -> NoReturn:
        name, strength = next((name, strength) for name, strength in self.stack if strength.has_window)
        raise AttachError(
            f"{name} is limited to {strength.start:g} to {strength.end:g} of the steps, but the progress was not set",
            hint="pass callback_on_step_end=hnetkit.follow_progress(pipe) to this call of the pipeline",
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> UNetState:
        """Follows the UNet to another device or dtype.

        Weights of another dtype are read from the files again: what was rounded once is not rounded twice, and the
        strengths stay in fp32.
        """
        there = fn(torch.empty(0, device=self.device, dtype=self.dtype))
        if not there.is_meta:
            self._move(there.device, there.dtype if there.dtype in _FLOATS else self.dtype)
        return self

    @_makes_tensors
    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        path = chosen_path(device)
        if (device, dtype) != (self.device, self.dtype):
            self._begin_era()
        if dtype != self.dtype or not packed_alike(path, self.path):
            self.device, self.dtype, self.path = device, dtype, path
            for hook in self._hooks:
                hook.unfold()
            for loaded in self._networks.values():
                loaded.read_weights(device, dtype, self.path)
            self._group_stacks = {}
            self._begin_era()
            self.replan()
        elif device != self.device:
            self.device = device
            for module in self.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(device))
            for group_stack in self._group_stacks.values():
                group_stack.prepare()
            self.replan()


def _fold(hooks: Iterable[ProjectionHook], networks: tuple[WeightedNetwork, ...], affine: Callable[[], Affine]) -> None:
    """Puts the map of `networks` into the weights of every projection; it is composed only where one lacks it."""
    todo = [hook for hook in hooks if (hook.folded.networks if hook.folded else ()) != networks]
    if not networks:
        for hook in todo:
            hook.unfold()
    elif todo:
        total = affine()
        for hook in todo:
            hook.fold(networks, total)


def _device(hooks: Iterable[ProjectionHook]) -> torch.device:
    """Returns where the projections are; the CPU where offloading keeps them nowhere, or quantizing in no tensor."""
    weight = next(iter(hooks)).weight
    return torch.device("cpu") if weight is None or weight.is_meta else weight.device


def _dtype(unet: Any, hooks: Iterable[ProjectionHook]) -> torch.dtype:
    """Returns the dtype of the projections, or the model's where they are stored in fewer bits."""
    weight = next(iter(hooks)).weight
    candidates = (None if weight is None else weight.dtype, unet.dtype, torch.float32)
    return next(dtype for dtype in candidates if dtype in _FLOATS)


def _computes_layers_again(unet: nn.Module) -> bool:
    """Whether gradient checkpointing computes layers once more after the call, when what lives for it is gone."""
    if not torch.is_grad_enabled():
        return False
    return any([getattr(module, "gradient_checkpointing", False) for module in unet.modules()])


def _reaches_layers(unet: Any) -> bool:
    """Whether the layers get the text tensor that the UNet was given, and not a projection of it."""
    if getattr(unet, "encoder_hid_proj", None) is None:
        return True
    is_ip_adapter: bool = unet.config.encoder_hid_dim_type == "ip_image_proj"
    return is_ip_adapter and getattr(unet, "text_encoder_hid_proj", None) is None
