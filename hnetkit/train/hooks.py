"""Networks in training on a UNet: forward pre-hooks that leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from hnetkit.errors import AttachError
from hnetkit.runtime.attach import get_active_hypernetworks
from hnetkit.runtime.layers import Layer, find_layers
from hnetkit.runtime.slots import require_unfused
from hnetkit.runtime.strength import Side
from hnetkit.train.mlp import Casts

if TYPE_CHECKING:
    from hnetkit.train.stacks import Stacks

_TEXT = "encoder_hidden_states"
_TEXT_PLACE = 2  # among the positional arguments of a UNet

Hook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]


class UNetCall:
    """The call of the UNet that is running.

    Texts are found again by the very tensor that the UNet's blocks are given, a new one for each call: under gradient
    checkpointing a layer is computed again when other calls may have begun, and must meet the text of its own.
    """

    def __init__(self, stacks: Stacks) -> None:
        self.stacks = stacks
        self.casts = Casts()
        self.texts: Any = WeakTensorKeyDictionary()

    def begin(
        self, unet: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The UNet's hook: takes the text context through the stacks."""
        self.casts = Casts()
        text = named.get(_TEXT, arguments[_TEXT_PLACE] if len(arguments) > _TEXT_PLACE else None)
        if not isinstance(text, Tensor) or text.shape[-1] not in self.stacks.widths:
            return arguments, named
        own = text.view_as(text)
        self.texts[own] = {side: self.stacks.apply_to(own, side, self.casts) for side in self.stacks.sides}
        if _TEXT in named:
            return arguments, {**named, _TEXT: own}
        return (*arguments[:_TEXT_PLACE], own, *arguments[_TEXT_PLACE + 1 :]), named

    def hook(self, side: Side) -> Hook:
        """Returns the hook of ``to_k`` or ``to_v``."""

        def change(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            context, *others = arguments
            contexts = self.texts.get(context)
            if contexts is None:
                return (self.stacks.apply_to(context, side, self.casts), *others)
            return (contexts[side], *others)

        return change


def put_on(unet: Any, stacks: Stacks) -> Iterator[RemovableHandle]:
    """Puts networks on a UNet; yields the handles that take them off.

    Raises:
        AttachError: other hypernetworks are active there, its projections are fused, or no layer is reached.
    """
    layers = [layer for layer in find_layers(unet) if layer.width in stacks.widths]
    modules = dict(unet.named_modules())
    _require_free(unet, stacks.widths, layers, modules)
    call = UNetCall(stacks)
    yield unet.register_forward_pre_hook(call.begin, with_kwargs=True)
    for layer in layers:
        for side in stacks.sides:
            yield getattr(modules[layer.name], f"to_{side}").register_forward_pre_hook(call.hook(side))


def _require_free(unet: Any, widths: Iterable[int], layers: Iterable[Layer], modules: dict[str, nn.Module]) -> None:
    active = get_active_hypernetworks(unet)
    if active:
        raise AttachError(
            f"the UNet has hypernetworks on it: {', '.join(active)}", hint="hnetkit.unload_hypernetworks(pipe)"
        )
    if not layers:
        raise AttachError(f"no layer of the UNet has a context of width {', '.join(map(str, sorted(widths)))}")
    for layer in layers:
        require_unfused(layer.name, modules[layer.name])
