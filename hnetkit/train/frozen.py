"""The frozen model and what it gives training: images and prompts, encoded once; encoders are offloaded afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.grad import conv2d_input
from torch.nn.utils.rnn import pad_sequence

from hnetkit.errors import UsageError
from hnetkit.generate.sampling.encoding import Encoded
from hnetkit.generate.sampling.vae import fp32_where_needed, mask_channels
from hnetkit.images import on_white
from hnetkit.runtime.adapters import unload_hypernetworks
from hnetkit.runtime.layers import unet_of
from hnetkit.train.batching import seed_for

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.generate.model import Model
    from hnetkit.train.callbacks import Progress
    from hnetkit.train.data import TrainingData, TrainingImage
    from hnetkit.train.recipe import Recipe

DTYPES: Mapping[str, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, slots=True, eq=False)
class FrozenInputs:
    """What the frozen model gives to each step.

    Attributes:
        latents: of each image.
        beside_latents: ``[1, 5, h, w]`` for each size (width, height) in pixels, of `mask_channels`; empty if the UNet
            reads latents alone.
        prompts: encoded, or encoded when they are needed.
        pipe: its autoencoder and text encoders are on the CPU if every prompt was encoded in advance.
        device: of the UNet.
    """

    latents: Sequence[Latents]
    beside_latents: Mapping[tuple[int, int], Tensor]
    prompts: PromptCache
    pipe: Any
    device: torch.device

    @contextmanager
    def pipeline_on_device(self) -> Iterator[None]:
        """Moves offloaded encoders back to the device while the block lasts, for drawing."""
        offloaded = [part for part in _encoders(self.pipe) if part.device != self.device]
        for part in offloaded:
            part.to(self.device)
        try:
            yield
        finally:
            for part in offloaded:
                part.to("cpu")


def encode_inputs(model: Model, data: TrainingData, progress: Progress) -> FrozenInputs:
    """Encodes the images of a run, and every prompt that is known in advance.

    Raises:
        UsageError: a caption is too long; the message names its image.
    """
    recipe, pipe = data.recipe, model.pipe
    unet: Any = unet_of(pipe)
    prompts = PromptCache(model, recipe.clip_skip)
    for image in data.images if data.template.has_filewords else ():
        try:
            prompts.require_short(image.caption)
        except UsageError as error:
            raise UsageError(f"the caption of {image.path.name}: {error}", hint=error.command_hint) from error
    latents = encode_images(pipe, data, lambda done, total: progress("Encoding pictures", done, total))
    with torch.no_grad():
        masks = {size: mask_channels(pipe, size) for size in {image.size for image in data.images}}
    beside_latents = {size: channels for size, channels in masks.items() if channels is not None}
    are_fixed = not (recipe.shuffle_tags or recipe.drop_tags)
    known = data.prompts_in_all
    if (
        are_fixed
        and prompts.encode_all(data.prompts(), lambda done: progress("Encoding captions", done, known))
        and unet.device.type != "cpu"
    ):
        for part in _encoders(pipe):
            part.to("cpu")
        torch.cuda.empty_cache()
    return FrozenInputs(latents, beside_latents, prompts, pipe, unet.device)


@contextmanager
def frozen_unet(model: Model, recipe: Recipe) -> Iterator[Any]:
    """Gives the model's UNet, frozen, without hypernetworks and in the recipe's precision.

    Its precision stays; everything else is as before after the block.
    """
    pipe = model.pipe
    unload_hypernetworks(pipe)
    unet: Any = unet_of(pipe)
    device, was_checkpointing = unet.device, unet.is_gradient_checkpointing
    parts = [unet, *_encoders(pipe)]
    unfrozen = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    for part in parts:
        part.requires_grad_(False).eval()
    unet.to(DTYPES[recipe.precision])
    if recipe.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    try:
        with without_kept_inputs(unet):
            yield unet
    finally:
        for parameter in unfrozen:
            parameter.requires_grad_(True)
        if recipe.gradient_checkpointing and not was_checkpointing:
            unet.disable_gradient_checkpointing()
        pipe.to(device)


def _encoders(pipe: Any) -> list[Any]:
    parts = (getattr(pipe, name, None) for name in ("vae", "text_encoder", "text_encoder_2"))
    return [part for part in parts if part is not None]


# --- images as latents


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """One encoded image; on the CPU, in fp32.

    Attributes:
        mean: ``[4, h, w]``, scaled as the UNet takes it; with ``once`` the one sample instead.
        deviation: standard deviation ``[4, h, w]``, scaled alike; None if no more samples are drawn.
        weight: ``[1, h, w]`` of the loss, 1 on average; None if everything weighs the same.
    """

    mean: Tensor
    deviation: Tensor | None = None
    weight: Tensor | None = None

    def sample(self, generator: torch.Generator) -> Tensor:
        """Returns latents ``[4, h, w]``."""
        if self.deviation is None:
            return self.mean
        return self.mean + self.deviation * torch.randn(self.mean.shape, generator=generator)


def encode_images(
    pipe: Any, data: TrainingData, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Latents]:
    """Returns the latents of every image, each encoded alone: in a batch, others would change its last bits.

    Args:
        pipe: with its autoencoder on the device.
        progress: called with the images done and the images in all.
    """
    latents = []
    for number, image in enumerate(data.images):
        latents.append(_encode(pipe, image, data.recipe, number))
        progress(number + 1, len(data.images))
    return latents


def opacity_weight(image: Image.Image, size: tuple[int, int]) -> Tensor | None:
    """Returns weights ``[1, h, w]`` from an image's opacity, scaled to latents of `size` (w, h).

    As in A1111 the least is 0 and the mean 1. None if the image is equally opaque everywhere.
    """
    if "A" not in image.getbands():
        return None
    alpha = torch.frombuffer(bytearray(image.getchannel("A").tobytes()), dtype=torch.uint8).float()
    alpha = alpha.reshape(1, 1, image.height, image.width) / 255
    small = interpolate(alpha, size=(size[1], size[0]), mode="bilinear", antialias=True)[0]
    small = small - small.min()
    mean = small.mean()
    return small / mean if mean > 0 else None


@torch.no_grad()
def _encode(pipe: Any, source: TrainingImage, recipe: Recipe, number: int) -> Latents:
    image = source.open()
    pixels = pipe.image_processor.preprocess(on_white(image))
    with fp32_where_needed(pipe.vae) as vae:
        distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    mean, deviation = (
        values[0].float().cpu() * vae.config.scaling_factor for values in (distribution.mean, distribution.std)
    )
    weight = opacity_weight(image, (mean.shape[2], mean.shape[1])) if recipe.alpha_as_weight else None
    if recipe.latents == "deterministic":
        return Latents(mean, None, weight)
    latents = Latents(mean, deviation, weight)
    if recipe.latents == "random":
        return latents
    generator = torch.Generator("cpu").manual_seed(seed_for(recipe.seed, "latent of picture", number))
    return Latents(latents.sample(generator), None, weight)


# --- prompts, encoded

_MOST_PROMPTS = 4096
_MOST_TOKENS = 315_000  # of all cached prompts: those 4096 of one chunk each; 1 GB with SD 1


class PromptCache:
    """Prompts, each encoded once for the UNet. While none is new, the text encoder is not needed.

    Args:
        model: its text encoder must be on the device for new prompts.
        clip_skip: as in `hnetkit.generate`.
    """

    def __init__(self, model: Model, clip_skip: int = 1) -> None:
        self._encoder = model.text_encoder(clip_skip, "original")
        self._encoded: dict[str, Encoded] = {}
        self._tokens = 0

    @property
    def is_full(self) -> bool:
        """Whether the next prompt replaces the oldest."""
        return len(self._encoded) >= _MOST_PROMPTS or self._tokens >= _MOST_TOKENS

    def require_short(self, prompt: str) -> None:
        """Raises UsageError if a prompt is too long to be encoded."""
        self._encoder.chunks_of(prompt)

    @torch.no_grad()
    def encode(self, prompt: str) -> Encoded:
        """Returns one prompt, encoded, on the CPU."""
        if prompt not in self._encoded:
            while self.is_full:
                self._tokens -= len(self._encoded.pop(next(iter(self._encoded))).hidden)
            encoded = self._encoder.encode(prompt)
            pooled = None if encoded.pooled is None else encoded.pooled.cpu()
            self._encoded[prompt] = Encoded(encoded.hidden.cpu(), pooled)
            self._tokens += len(encoded.hidden)
        return self._encoded[prompt]

    def encode_all(self, prompts: Iterable[str], progress: Callable[[int], None] = lambda done: None) -> bool:
        """Encodes prompts in advance; returns whether all of them are cached.

        Args:
            progress: called with how many are.
        """
        for number, prompt in enumerate(prompts, 1):
            if self.is_full:
                return False
            self.encode(prompt)
            progress(number)
        return True


def unet_arguments(
    prompts: Sequence[Encoded], size: tuple[int, int], device: Any, dtype: torch.dtype
) -> dict[str, Any]:
    """Returns the keyword arguments of a UNet's call for encoded prompts.

    Prompts are padded to the longest, and a mask hides the padding, so that a prompt does not depend on the others.

    Args:
        size: (width, height) in pixels of the images, for SDXL.
    """
    hidden = pad_sequence([prompt.hidden for prompt in prompts], batch_first=True)
    arguments: dict[str, Any] = {"encoder_hidden_states": hidden.to(device, dtype)}
    lengths = torch.tensor([len(prompt.hidden) for prompt in prompts])
    if lengths.min() < hidden.shape[1]:
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
        arguments["encoder_attention_mask"] = mask.to(device, dtype)
    pooled = [prompt.pooled for prompt in prompts if prompt.pooled is not None]
    if pooled:
        height_width = size[1], size[0]
        ids = torch.tensor([*height_width, 0, 0, *height_width], device=device, dtype=torch.float32)
        arguments["added_cond_kwargs"] = {
            "text_embeds": torch.stack(pooled).to(device, dtype),
            "time_ids": ids.expand(len(prompts), -1),
        }
    return arguments


# --- convolutions that keep no inputs


@contextmanager
def without_kept_inputs(model: nn.Module) -> Iterator[None]:
    """Makes the 2D convolutions of a frozen model keep no inputs for the backward pass, while the block lasts.

    torch's own keep them for the gradient of the weights, which nobody needs here. At SD 1.5's size that is a tenth of
    the memory of a step. Outputs and gradients are the same bits. Convolutions that pad with other than zeros, and
    those whose ``forward`` is replaced already, are left alone.
    """
    changed = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _is_plain(module)]
    for module in changed:
        module.forward = partial(_convolve, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_plain(module: nn.Conv2d) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and "forward" not in vars(module)
    )


def _convolve(module: nn.Conv2d, image: Tensor) -> Tensor:
    geometry = (module.stride, module.padding, module.dilation, module.groups)
    convolved: Tensor = _Convolution.apply(image, module.weight, module.bias, geometry)  # type: ignore[no-untyped-call]
    return convolved


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = image.shape, geometry
        return F.conv2d(image, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        image_gradient = conv2d_input(ctx.shape, weight, *gradients, *ctx.geometry)  # type: ignore[no-untyped-call]
        return image_gradient, None, None, None
