"""What a UNet must compute with any stack on it: each number of a strength, blocks and windows, plainly.

It reads a `Strength`'s public numbers, and shares no code with the package's runtime.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from hnetkit import Strength
from hnetkit.network import Hypernetwork
from support import plain_a1111
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd

BATCH, SIDE = 2, 2


def small_unet() -> UNet2DConditionModel:
    """Returns a UNet with one transformer block of width 8, in the middle: two attention layers."""
    unet: UNet2DConditionModel = tiny_sd(least=True).unet
    return unet


def broad_unet() -> UNet2DConditionModel:
    """Returns a UNet with four such blocks, one on the way down and two on the way up."""
    torch.manual_seed(0)
    config = {**small_unet().config, "down_block_types": ["CrossAttnDownBlock2D"]}
    return UNet2DConditionModel.from_config({**config, "up_block_types": ["CrossAttnUpBlock2D"]})


def pipeline_of(unet: UNet2DConditionModel) -> Any:
    """Returns a pipeline with a copy of `unet`; the other parts are shared by all of these pipelines."""
    return StableDiffusionPipeline(**{**_components(), "unet": copy.deepcopy(unet)}, requires_safety_checker=False)


@functools.cache
def _components() -> dict[str, Any]:
    components: dict[str, Any] = tiny_sd(least=True).components
    return components


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text_of(seed: int, tokens: int, dtype: torch.dtype) -> Tensor:
    """Returns a text context ``[batch, tokens, width]``."""
    return random(seed, BATCH, tokens, SD_CROSS_WIDTH).to(dtype)


def picture(pipe: Any, text: Tensor) -> Tensor:
    """Returns the output of one UNet call."""
    sample = random(0, BATCH, 4, SIDE, SIDE).to(text.dtype)
    with torch.no_grad():
        result: Tensor = pipe.unet(sample, torch.tensor(500), encoder_hidden_states=text, return_dict=False)[0]
    return result


def middle(pipe: Any, text: Tensor) -> Tensor:
    """Returns the output of the middle block's transformer, called by itself."""
    hidden = random(1, BATCH, SELF_WIDTHS[0], SIDE, SIDE).to(text.dtype)
    with torch.no_grad():
        result: Tensor = pipe.unet.mid_block.attentions[0](hidden, encoder_hidden_states=text, return_dict=False)[0]
    return result


def be_plain(pipe: Any, stack: Sequence[tuple[Hypernetwork, float | Strength]], progress: float | None) -> None:
    """Has a UNet without hypernetworks apply `stack` in every attention layer.

    Args:
        progress: fraction of the sampling steps that is done; None: every window is open.
    """
    dtype = pipe.unet.dtype
    strengths = [Strength(strength) if isinstance(strength, int | float) else strength for _, strength in stack]
    modules = [plain_a1111.modules_of(network, dtype) for network, _ in stack]
    pipe.unet.set_attn_processor(
        {
            name: plain_a1111.PlainProcessor(
                [
                    (_scaled(own, strength, name.removesuffix(".processor")), 1.0)
                    for own, strength in zip(modules, strengths, strict=True)
                    if progress is None or strength.start <= progress <= strength.end
                ]
            )
            for name in pipe.unet.attn_processors
        }
    )


def _scaled(modules: plain_a1111.Modules, strength: Strength, layer: str) -> plain_a1111.Modules:
    """Returns a network's modules times the numbers that a layer has for them."""
    block = max((own for own in dict(strength.blocks) if f"{layer}.".startswith(f"{own}.")), key=len, default=None)
    factor = 1.0 if block is None else dict(strength.blocks)[block]
    k, v = (strength.cross_k, strength.cross_v) if layer.endswith("attn2") else (strength.self_k, strength.self_v)
    return {width: (_Scaled(key, factor * k), _Scaled(value, factor * v)) for width, (key, value) in modules.items()}


class _Scaled(nn.Module):
    def __init__(self, module: nn.Module, number: float) -> None:
        super().__init__()
        self.module, self.number = module, number

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.module(x) * self.number
        return result
