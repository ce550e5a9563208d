"""The places in the UNet that contexts pass through: a forward pre-hook on whatever is `to_k` or `to_v`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hnetkit.errors import AttachError
from hnetkit.kernels.affine import Affine
from hnetkit.runtime.buffers import Chain
from hnetkit.runtime.folding import Folded
from hnetkit.runtime.layers import Layer
from hnetkit.runtime.plan import Term
from hnetkit.runtime.strength import SIDES, Side


class TextContext:
    """The text of the UNet call that is running, with what each cross-attention part makes of it.

    It lives for one call: the UNet's pre-hook fills it, its forward hook empties it.

    Attributes:
        source: `encoder_hidden_states` as the UNet was given it, ``[batch, tokens, width]``.
        contexts: K's and V's ``[batch, tokens, width]`` by the part's number.
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
    """K's and V's context of one layer: both are computed when the first is asked for, and the other one waits.

    Attributes:
        chain: what the context goes through; None where there is nothing to do.
        part: number of the layer's part in the plan.
    """

    def __init__(self) -> None:
        self.chain: Chain | None = None
        self.part = 0
        self._waits: tuple[Tensor, Side, Tensor] | None = None

    def take(self, x: Tensor, side: Side) -> Tensor:
        """Returns a side's context for `x`."""
        waits, self._waits = self._waits, None
        if waits is not None and waits[0] is x and waits[1] == side:
            return waits[2]
        chain = cast(Chain, self.chain)
        contexts: tuple[Tensor, Tensor] = chain(x)
        own = SIDES.index(side)
        if len(chain.part.sides) == len(SIDES):
            self._waits = (x, SIDES[1 - own], contexts[1 - own])
        return contexts[own]

    def clear(self) -> None:
        """Forgets what was not taken."""
        self._waits = None


class Slot:
    """`to_k` or `to_v` of one layer. It is itself the hook, and sits outside of what PEFT puts into the slot.

    Attributes:
        layer: the attention layer.
        side: ``"k"`` or ``"v"``.
        module: what is in the slot and carries the hook.
        context: K's and V's, shared with the layer's other slot.
        is_wanted: whether the context changes on this side.
        folded: the map that is in the module's weights, None without one.
    """

    def __init__(
        self, layer: Layer, side: Side, attention: nn.Module, text: TextContext, context: LayerContext
    ) -> None:
        self.layer = layer
        self.side: Side = side
        self.context = context
        self.is_wanted = False
        self.folded: Folded | None = None
        self._attention = attention
        self._attribute = f"to_{side}"
        self._text = text
        self.module: nn.Module = self.current
        self._handle: RemovableHandle = self.module.register_forward_pre_hook(self)

    @property
    def current(self) -> nn.Module:
        """The module that is in the slot now: PEFT puts its own there, around the one before."""
        module: nn.Module = getattr(self._attention, self._attribute)
        return module

    @property
    def weight(self) -> Tensor:
        """The projection's weight ``[out, width]``, without what PEFT adds to it."""
        return cast(Tensor, self.module.weight)

    def is_replaced(self) -> bool:
        """Whether another module came into the slot since the hook was put on.

        Raises:
            AttachError: the projections were fused meanwhile.
        """
        require_unfused(self.layer.name, self._attention)
        return self.current is not self.module

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The hook: gives the projection the context after the stack."""
        if not self.is_wanted:
            return None
        context, *others = arguments
        # The very tensor that the UNet was given went through the stack already. Any other K input (an
        # IP-Adapter's slice, a normalised or projected text) goes through it here.
        if self.layer.kind == "cross" and context is self._text.source:
            return (self._text.contexts[self.context.part][SIDES.index(self.side)], *others)
        return (self.context.take(context, self.side), *others)

    def rewrap(self) -> None:
        """Moves to the module that is in the slot now."""
        self.remove()
        self.module = self.current
        self._handle = self.module.register_forward_pre_hook(self)

    def fold(self, terms: tuple[Term, ...], affine: Affine) -> None:
        """Has the map `affine` of `terms` in the module's weights, in place of any other."""
        if self.folded is None:
            self.folded = Folded(self.module, terms, affine)
        else:
            self.folded.rewrite(terms, affine)

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
        """Leaves the module as it was before."""
        self.unfold()
        self._handle.remove()


def make_slots(unet: nn.Module, layers: Iterable[Layer], text: TextContext) -> tuple[Slot, ...]:
    """Puts hooks on `to_k` and `to_v` of every layer.

    Raises:
        AttachError: the UNet's projections are fused.
    """
    modules = dict(unet.named_modules())
    layers = tuple(layers)
    for layer in layers:
        require_unfused(layer.name, modules[layer.name])
    contexts = {layer: LayerContext() for layer in layers}
    return tuple(Slot(layer, side, modules[layer.name], text, contexts[layer]) for layer in layers for side in SIDES)


def require_unfused(name: str, attention: nn.Module) -> None:
    """Raises AttachError where the attention processor goes round `to_k` and `to_v`."""
    if "Fused" in type(attention.processor).__name__:
        raise AttachError(
            f"{name}: its projections are fused, and hypernetworks change what to_k and to_v get",
            hint="pipe.unfuse_qkv_projections()",
        )
