"""The state of a UNet that hypernetworks are loaded on: the networks, the active stack, and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from hnetkit.errors import AttachError
from hnetkit.kernels.affine import Affine
from hnetkit.kernels.dispatch import KERNELS, chosen_path, path_on
from hnetkit.network import Hypernetwork
from hnetkit.runtime import folding
from hnetkit.runtime.buffers import Chain, LoadedNetwork, composed
from hnetkit.runtime.layers import find_layers
from hnetkit.runtime.plan import Member, Part, Plan, Term, make_plan
from hnetkit.runtime.slots import Slot, TextContext, make_slots
from hnetkit.runtime.strength import Strength

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Attached(nn.Module):
    """A submodule of the UNet for as long as networks are loaded; none of its buffers is saved.

    Attributes:
        layers: the attention layers that are reached.
        stack: the active names with their strengths, in stacking order.
        is_enabled: False leaves the stack out without forgetting it.
        plan: what is applied where.
        path: what computes it on a GPU, one of `hnetkit.kernels.dispatch.PATHS`.
        device, dtype: of the weights: the UNet's.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.layers = find_layers(unet)
        self.stack: tuple[tuple[str, Strength], ...] = ()
        self.is_enabled = True
        self.plan = Plan()
        self._progress: float | None = None
        self._networks: dict[str, LoadedNetwork] = {}
        self._chain_of: dict[object, Chain] = {}
        self._misses_progress = False
        self._text = TextContext()
        self._text_chains: tuple[tuple[int, Chain], ...] = ()
        chosen_path()  # a path that cannot run is refused before any hook is on
        self._slots = make_slots(unet, self.layers, self._text)
        self._unet = (unet,)  # in a tuple: a parent must not become a submodule of its child
        self.device, self.dtype = _device(self._slots), _dtype(unet, self._slots)
        self.path = chosen_path(self.device)
        self._hooks = (
            unet.register_forward_pre_hook(self._before, with_kwargs=True),
            unet.register_forward_hook(self._after, always_call=True),
        )

    @property
    def networks(self) -> Mapping[str, LoadedNetwork]:
        """The loaded networks by name, in the order of loading."""
        return self._networks

    def add(self, name: str, network: Hypernetwork, strength: Strength) -> None:
        """Reads a network's weights and puts it at the end of the stack."""
        loaded = LoadedNetwork(name, network, frozenset(layer.width for layer in self.layers))
        loaded.materialise(self.device, self.dtype, self.path)
        self._register({**self._networks, name: loaded})
        self.set_stack([*self.stack, (name, strength)])

    def drop(self, names: Iterable[str]) -> None:
        """Forgets networks and their weights."""
        dropped = frozenset(names)
        self.set_stack([(name, strength) for name, strength in self.stack if name not in dropped])
        self._register({name: loaded for name, loaded in self._networks.items() if name not in dropped})

    def _register(self, networks: dict[str, LoadedNetwork]) -> None:
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
        """Tells which fraction of the sampling steps is done; None where nobody tells."""
        self._progress = progress
        self.replan()

    def replan(self, *, fold: bool = True) -> None:
        """Plans the stack anew and does what changed: scalars, composed maps, folded weights; nothing is read again."""
        for slot in self._slots:
            slot.context.clear()
            if slot.current is not slot.module:  # a LoRA came or went: maps are folded into what is there now
                slot.rewrap()
        members = [self._member(name, strength) for name, strength in self.stack] if self.is_enabled else []
        plan = make_plan(self.layers, members, fold=fold and self._can_fold)
        if not folding.is_worth_folding(plan.fold_flops, self.device):
            plan = make_plan(self.layers, members, fold=False)
        self._take(plan)
        self._misses_progress = self._progress is None and any(member.strength.has_window for member in members)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def rewrap(self) -> None:
        """Moves hooks to the modules that are in the slots now, and plans anew, outside of compiled code."""
        self.replan()

    def remove(self) -> None:
        """Leaves the UNet as it was before, bit for bit."""
        folding.unguard(self._unet[0])
        for slot in self._slots:
            slot.remove()
        for hook in self._hooks:
            hook.remove()

    def chain(self, part: Part) -> Chain | None:
        """Returns what the contexts of a part of the plan go through; None where nothing is left to do."""
        return self._chain_of.get(part.key)

    @property
    def path_here(self) -> str:
        """What computes the stack where the UNet is now."""
        return path_on(self.path, self.device, self.dtype)

    @property
    def _can_fold(self) -> bool:
        return self.path != "reference" and folding.can_fold(self._unet[0], (slot.current for slot in self._slots))

    def _member(self, name: str, strength: Strength) -> Member:
        loaded = self._networks[name]
        is_open = self._progress is None or strength.applies_at(self._progress)
        return Member(name, strength, loaded.widths, loaded.affine, is_open)

    def _take(self, plan: Plan) -> None:
        slots = {(slot.layer, slot.side): slot for slot in self._slots}
        before, self._chain_of = self._chain_of, {}
        text_chains = []
        for number, part in enumerate(plan.parts):
            chain = self._built(before.get(part.key), part)
            if chain is not None and part.kind == "cross":
                text_chains.append((number, chain))
            for side, recipe in part.recipes.items():
                members = [slots[layer, side] for layer in part.layers]
                for slot in members:
                    slot.context.part, slot.context.chain, slot.is_wanted = number, chain, recipe.is_wanted
                _fold(members, recipe.folded, partial(composed, recipe.folded, part.width, side, self._networks))
        self.plan = plan
        self.registered_chains = nn.ModuleList(self._chain_of.values())
        self._text_chains = tuple(text_chains)
        if any(slot.folded for slot in self._slots):
            folding.guard(self._unet[0], self)
        else:
            folding.unguard(self._unet[0])

    def _built(self, chain: Chain | None, part: Part) -> Chain | None:
        """Returns the chain of a part: the one before with other numbers where only numbers changed."""
        if not part.sides:
            return None
        if chain is not None and chain.part.shape == part.shape:
            chain.rewrite(part, self._networks)
        else:
            chain = Chain(part, self._networks, path=self.path, device=self.device, dtype=self.dtype)
        self._chain_of[part.key] = chain
        return chain

    def _before(self, unet: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """The UNet's pre-hook: applies the stack to the text, once for all layers."""
        if any([slot.is_replaced() for slot in self._slots]):  # a list: torch 2.5 compiles no generator
            self.rewrap()
        if self._misses_progress:
            self._refuse_without_progress()
        text = options.get("encoder_hidden_states", arguments[2] if len(arguments) > 2 else None)
        self._text.clear()
        if not isinstance(text, Tensor):
            return
        if text.device != self.device:  # the UNet comes to its device later in this call, or piece by piece
            self._move(text.device, self.dtype)
        if _reaches_layers(unet):
            width = text.shape[-1]
            contexts = {number: chain(text) for number, chain in self._text_chains if chain.part.width == width}
            self._text.fill(text, contexts)

    def _after(self, unet: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        self._text.clear()
        for slot in self._slots:
            slot.context.clear()

    def _refuse_without_progress(self) -> NoReturn:
        name, strength = next((name, strength) for name, strength in self.stack if strength.has_window)
        raise AttachError(
            f"{name} applies from {strength.start:g} to {strength.end:g} of the steps, and nobody tells which this is",
            hint="pass callback_on_step_end=hnetkit.follow_progress(pipe, STEPS) to the pipeline",
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Attached:
        """Follows the UNet to another device or dtype. Weights of another dtype come from the files again: what was
        rounded once is not rounded twice, and the strengths stay in fp32."""
        there = fn(torch.empty(0, device=self.device, dtype=self.dtype))
        if not there.is_meta:
            self._move(there.device, there.dtype if there.dtype in _FLOATS else self.dtype)
        return self

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        path = chosen_path(device)
        if dtype != self.dtype or (path in KERNELS) != (self.path in KERNELS):
            self.device, self.dtype, self.path = device, dtype, path
            for slot in self._slots:
                slot.unfold()
            for loaded in self._networks.values():
                loaded.materialise(device, dtype, self.path)
            self._chain_of = {}
            self.replan()
        elif device != self.device:
            self.device = device
            for module in self.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(device))
            for chain in self._chain_of.values():
                chain.prepare()
            self.replan()


def _fold(slots: Iterable[Slot], terms: tuple[Term, ...], affine: Callable[[], Affine]) -> None:
    """Has the map of `terms` in the weights of every slot; it is composed only where one has not."""
    todo = [slot for slot in slots if (slot.folded.terms if slot.folded else ()) != terms]
    if not terms:
        for slot in todo:
            slot.unfold()
    elif todo:
        total = affine()
        for slot in todo:
            slot.fold(terms, total)


def _device(slots: Iterable[Slot]) -> torch.device:
    """Returns where the projections are; the CPU where offloading keeps them nowhere."""
    weight = next(iter(slots)).weight
    return torch.device("cpu") if weight.is_meta else weight.device


def _dtype(unet: Any, slots: Iterable[Slot]) -> torch.dtype:
    """Returns the dtype of the projections, or the model's where they are stored in fewer bits."""
    candidates = (next(iter(slots)).weight.dtype, unet.dtype, torch.float32)
    return next(dtype for dtype in candidates if dtype in _FLOATS)


def _reaches_layers(unet: Any) -> bool:
    """Whether the layers get the text tensor that the UNet was given, and not a projection of it."""
    if getattr(unet, "encoder_hid_proj", None) is None:
        return True
    is_ip_adapter: bool = unet.config.encoder_hid_dim_type == "ip_image_proj"
    return is_ip_adapter and getattr(unet, "text_encoder_hid_proj", None) is None
