"""The model as training needs it: frozen, with pictures and prompts encoded and what is done with it moved away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hnetkit.errors import ModelNotUsable, UsageError
from hnetkit.runtime.adapters import unload_hypernetworks
from hnetkit.runtime.layers import unet_of
from hnetkit.train.convolutions import without_inputs_kept
from hnetkit.train.latents import Latents, encode_all
from hnetkit.train.prompts import Prompts

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.train.data import TrainingData
    from hnetkit.train.recipe import Recipe

DTYPES: Mapping[str, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What steps are made of.

    Attributes:
        latents: of each picture.
        prompts: encoded, or ready to be.
        pipe: whose autoencoder and text encoders are on the CPU where every prompt was encoded ahead.
        device: of the UNet.
    """

    latents: Sequence[Latents]
    prompts: Prompts
    pipe: Any
    device: torch.device

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Has the whole pipeline on the device while the block lasts."""
        away = [part for part in _encoders(self.pipe) if part.device != self.device]
        for part in away:
            part.to(self.device)
        try:
            yield
        finally:
            for part in away:
                part.to("cpu")


def prepare(model: Model, data: TrainingData, progress: Progress) -> Material:
    """Returns the material of a run; every prompt that is known ahead is encoded.

    Raises:
        UsageError: a caption is too long; it names the picture.
    """
    recipe, pipe = data.recipe, model.pipe
    unet: Any = unet_of(pipe)
    prompts = Prompts(model, recipe.clip_skip)
    for picture in data.pictures if data.template.has_filewords else ():
        try:
            prompts.require_short(picture.caption)
        except UsageError as error:
            raise UsageError(f"the caption of {picture.path.name}: {error}", hint=error.hint) from error
    latents = encode_all(pipe, data, lambda done, total: progress("Encoding pictures", done, total))
    if (
        not (recipe.shuffle_tags or recipe.drop_tags)
        and prompts.encode_all(data.prompts())
        and unet.device.type != "cpu"
    ):
        for part in _encoders(pipe):
            part.to("cpu")
        torch.cuda.empty_cache()
    return Material(latents, prompts, pipe, unet.device)


@contextmanager
def frozen(model: Model, recipe: Recipe) -> Iterator[Any]:
    """Gives the model's UNet, frozen, without hypernetworks and in the recipe's precision; flags are as before after.

    Raises:
        ModelNotUsable: the UNet takes more than latents (it was made for inpainting).
    """
    pipe = model.pipe
    unload_hypernetworks(pipe)
    unet: Any = unet_of(pipe)
    if unet.config.in_channels != pipe.vae.config.latent_channels:
        raise ModelNotUsable(
            f"{model.name}: its UNet takes {unet.config.in_channels} channels, as models for inpainting do",
            hint="train on the model that it was made from",
        )
    device, was_checkpointing = unet.device, unet.is_gradient_checkpointing
    parts = [unet, *_encoders(pipe)]
    learning = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    for part in parts:
        part.requires_grad_(False).eval()
    unet.to(DTYPES[recipe.precision])
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        with without_inputs_kept(unet):
            yield unet
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        if recipe.gradient_checkpointing and not was_checkpointing:
            unet.disable_gradient_checkpointing()
        pipe.to(device)


def _encoders(pipe: Any) -> list[Any]:
    parts = (getattr(pipe, name, None) for name in ("vae", "text_encoder", "text_encoder_2"))
    return [part for part in parts if part is not None]
