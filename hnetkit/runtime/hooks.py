"""Forward pre-hooks on `to_k` and `to_v`, which replace the context by what the stack makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hnetkit.errors import AttachError
from hnetkit.kernels.affine import Affine
from hnetkit.runtime.buffers import LayerGroupStack
from hnetkit.runtime.folding import FoldedMap
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.plan import WeightedNetwork
from hnetkit.runtime.strength import SIDES, Side


class TextContext:
    """The text of the UNet call that is running, with what each cross-attention group makes of it.

    It lives for one call: the UNet's pre-hook fills it, its forward hook empties it.

    Attributes:
        source: `encoder_hidden_states` as the UNet was given it, ``[batch, tokens, width]``.
        contexts: K's and V's ``[batch, tokens, width]`` by the group's index in the plan.
    """

    def __init__(self) -> None:
        self.source: Tensor | None = None
        self.contexts: dict[int, tuple[Tensor, Tensor]] = {}

    def fill(self, source: Tensor, contexts: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.source = source
        self.contexts = contexts

    def clear(self) -> None:
        self.source = None
        self.contexts = {}


class LayerContext:
    """K's and V's context of one layer: both are computed for the side that comes first, and kept for the other.

    Attributes:
        group_stack: what the context goes through; None where there is nothing to apply.
        group_index: of the layer's group in the plan.
    """

    def __init__(self) -> None:
        self.group_stack: LayerGroupStack | None = None
        self.group_index = 0
        self._other: tuple[Tensor, Side, Tensor] | None = None

    def take(self, x: Tensor, side: Side) -> Tensor:
        """Returns a side's context for `x`."""
        other, self._other = self._other, None
        if other is not None and other[0] is x and other[1] == side:
            return other[2]
        group_stack = cast(LayerGroupStack, self.group_stack)
        contexts: tuple[Tensor, Tensor] = group_stack(x)
        own = SIDES.index(side)
        if len(group_stack.group.sides) == len(SIDES):
            self._other = (x, SIDES[1 - own], contexts[1 - own])
        return contexts[own]

    def clear(self) -> None:
        """Drops a context that was not taken."""
        self._other = None


class ProjectionHook:
    """The hook on `to_k` or `to_v` of one layer. It sits outside of what PEFT wraps around the projection.

    Attributes:
        layer: the attention layer.
        side: ``"k"`` or ``"v"``.
        module: the module that the hook is on.
        context: K's and V's, shared with the layer's other hook.
        has_effect: whether the context changes on this side.
        folded: the map that is in the module's weights, None without one.
    """

    def __init__(
        self, layer: Layer, side: Side, attention: nn.Module, text: TextContext, context: LayerContext
    ) -> None:
        self.layer = layer
        self.side: Side = side
        self.context = context
        self.has_effect = False
        self.folded: FoldedMap | None = None
        self._attention = attention
        self._attribute = f"to_{side}"
        self._text = text
        self.module: nn.Module = self.current
        self._handle: RemovableHandle = self.module.register_forward_pre_hook(self)

    @property
    def current(self) -> nn.Module:
        """The module that is the projection now: PEFT puts its own there, around the original one."""
        module: nn.Module = getattr(self._attention, self._attribute)
        return module

    @property
    def weight(self) -> Tensor | None:
        """The projection's weight ``[out, width]``, without what PEFT adds to it; None where it is no tensor."""
        weight: Any = self.module.weight
        return weight if isinstance(weight, Tensor) else None

    def is_replaced(self) -> bool:
        """Whether another module has become the projection since the hook was put on, or folded weights were cast.

        Raises:
            AttachError: the projections were fused in the meantime.
        """
        require_unfused(self.layer.name, self._attention)
        return self.current is not self.module or (self.folded is not None and self.folded.is_cast)

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Replaces the projection's context by what the stack makes of it."""
        if not self.has_effect:
            return None
        context, *others = arguments
        # The very tensor that the UNet was given went through the stack already. Any other input (an IP-Adapter's
        # slice, a normalized or projected text) goes through it here.
        if self.layer.kind == "cross" and context is self._text.source:
            return (self._text.contexts[self.context.group_index][SIDES.index(self.side)], *others)
        return (self.context.take(context, self.side), *others)

    def rewrap(self) -> None:
        """Moves to the module that is the projection now.

        Raises:
            AttachError: it may be made of the one before, with a map in its weights, which nothing can take out again.
        """
        if self.folded is not None and not _wraps(self.current, self.module):
            name, kind = f"{self.layer.name}.to_{self.side}", type(self.current).__name__
            raise AttachError(
                f"{name} is another module, a {kind}, since hypernetworks were folded into it",
                hint="load the model again, and change its layers (quantize it) before loading hypernetworks",
            )
        self.remove()
        self.module = self.current
        self._handle = self.module.register_forward_pre_hook(self)

    def fold(self, networks: tuple[WeightedNetwork, ...], affine: Affine) -> None:
        """Puts the map `affine` of `networks` into the module's weights, in place of any other."""
        if self.folded is None:
            self.folded = FoldedMap(self.module, networks, affine)
        else:
            self.folded.rewrite(networks, affine)

    def unfold(self) -> None:
        """Puts the module's own weights back.

        Raises:
            AttachError: a LoRA was merged into the folded weights; it would be lost.
        """
        if self.folded is None:
            return
        if getattr(self.current, "merged", False):
            raise AttachError(
                f"{self.layer.name}.to_{self.side}: a LoRA was fused while hypernetworks were folded in",
                hint="unmerge it, unload the hypernetworks, fuse the LoRA, and load them again",
            )
        self.folded.undo()
        self.folded = None

    def remove(self) -> None:
        """Takes the hook off, and leaves the module as it was before."""
        self.unfold()
        self._handle.remove()


def _wraps(module: nn.Module, other: nn.Module) -> bool:
    """Whether one of two modules is a part of the other, as a projection is of what PEFT puts around it."""
    return any(part is other for part in module.modules()) or any(part is module for part in other.modules())


def make_hooks(unet: nn.Module, layers: Iterable[Layer], text: TextContext) -> tuple[ProjectionHook, ...]:
    """Puts hooks on `to_k` and `to_v` of every layer.

    Raises:
        AttachError: the UNet's projections are fused.
    """
    modules = dict(unet.named_modules())
    layers = tuple(layers)
    for layer in layers:
        require_unfused(layer.name, modules[layer.name])
    contexts = {layer: LayerContext() for layer in layers}
    return tuple(
        ProjectionHook(layer, side, modules[layer.name], text, contexts[layer]) for layer in layers for side in SIDES
    )


def require_unfused(name: str, attention: nn.Module) -> None:
    """Raises AttachError where the attention processor bypasses `to_k` and `to_v`."""
    if "Fused" in type(attention.processor).__name__:
        raise AttachError(
            f"{name}: its projections are fused, and hypernetworks change what to_k and to_v get",
            hint="pipe.unfuse_qkv_projections()",
        )
    if getattr(attention.processor, "train_kv", False):  # of Custom Diffusion
        raise AttachError(
            f"{name}: its processor has projections of its own, and hypernetworks change what to_k and to_v get",
            hint="pipe.unet.set_attn_processor(AttnProcessor2_0())",
        )
