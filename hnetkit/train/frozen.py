"""The frozen side of training: the UNet, images and prompts encoded once, and convolutions that keep no inputs."""

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

from hnetkit.errors import ModelNotUsable, UsageError
from hnetkit.generate.sampling.encoding import Encoded
from hnetkit.generate.sampling.vae import fp32_where_needed
from hnetkit.runtime.adapters import unload_hypernetworks
from hnetkit.runtime.layers import unet_of
from hnetkit.train.batching import seed_for

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.generate.model import Model
    from hnetkit.train.data import TrainingData, TrainingImage
    from hnetkit.train.recipe import Recipe

DTYPES: Mapping[str, torch.dtype] = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True, slots=True, eq=False)
class FrozenInputs:
    """What steps are made of.

    Attributes:
        latents: of each picture.
        prompts: encoded, or ready to be.
        pipe: whose autoencoder and text encoders are on the CPU where every prompt was encoded ahead.
        device: of the UNet.
    """

    latents: Sequence[Latents]
    prompts: PromptCache
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


def encode_inputs(model: Model, data: TrainingData, progress: Progress) -> FrozenInputs:
    """Returns the material of a run; every prompt that is known ahead is encoded.

    Raises:
        UsageError: a caption is too long; it names the picture.
    """
    recipe, pipe = data.recipe, model.pipe
    unet: Any = unet_of(pipe)
    prompts = PromptCache(model, recipe.clip_skip)
    for picture in data.pictures if data.template.has_filewords else ():
        try:
            prompts.require_short(picture.caption)
        except UsageError as error:
            raise UsageError(f"the caption of {picture.path.name}: {error}", hint=error.hint) from error
    latents = encode_images(pipe, data, lambda done, total: progress("Encoding pictures", done, total))
    if (
        not (recipe.shuffle_tags or recipe.drop_tags)
        and prompts.encode_all(data.prompts())
        and unet.device.type != "cpu"
    ):
        for part in _encoders(pipe):
            part.to("cpu")
        torch.cuda.empty_cache()
    return FrozenInputs(latents, prompts, pipe, unet.device)


@contextmanager
def frozen_unet(model: Model, recipe: Recipe) -> Iterator[Any]:
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
        with without_kept_inputs(unet):
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


# --- images as latents


@dataclass(frozen=True, slots=True, eq=False)
class Latents:
    """One picture, encoded; on the CPU, in fp32.

    Attributes:
        mean: ``[4, h, w]``, scaled as the UNet takes it; with ``once`` the one sample instead.
        deviation: ``[4, h, w]`` of the distribution, scaled alike; None where no more samples are drawn.
        weight: ``[1, h, w]`` of the loss, 1 on average; None where all weighs the same.
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
    """Returns the latents of every picture, each encoded by itself so that company changes nothing.

    Args:
        pipe: with its autoencoder on the device.
        progress: called with the pictures done and the pictures in all.
    """
    made = []
    for number, picture in enumerate(data.pictures):
        made.append(_encode(pipe, picture, data.recipe, number))
        progress(number + 1, len(data.pictures))
    return made


def opacity_weight(image: Image.Image, size: tuple[int, int]) -> Tensor | None:
    """Returns weights ``[1, h, w]`` of a picture's opacity at latents' `size` (w, h): least 0, mean 1, as A1111 does.

    None where it is opaque, or equally transparent, everywhere.
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
def _encode(pipe: Any, picture: TrainingImage, recipe: Recipe, number: int) -> Latents:
    image = picture.open()
    scaling = pipe.vae.config.scaling_factor
    pixels = pipe.image_processor.preprocess(image.convert("RGB"))
    with fp32_where_needed(pipe.vae) as vae:
        distribution = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    mean = distribution.mean[0].float().cpu() * scaling
    deviation = distribution.std[0].float().cpu() * scaling
    weight = opacity_weight(image, (mean.shape[2], mean.shape[1])) if recipe.alpha_as_weight else None
    if recipe.latents == "deterministic":
        return Latents(mean, None, weight)
    drawn_anew = Latents(mean, deviation, weight)
    if recipe.latents == "random":
        return drawn_anew
    generator = torch.Generator("cpu").manual_seed(seed_for(recipe.seed, "latent of picture", number))
    return Latents(drawn_anew.sample(generator), None, weight)


# --- prompts, encoded

_KEPT = 4096  # encoded prompts
_KEPT_TOKENS = 315_000  # of all of them: as many of one chunk each; 1 GB with SD 1


class PromptCache:
    """Prompts as the UNet reads them. While none is new, the text encoder is not needed.

    Args:
        model: with its text encoder on the device while there are new prompts.
        clip_skip: as in `hnetkit.generate`.
    """

    def __init__(self, model: Model, clip_skip: int = 1) -> None:
        self._encoder = model.text_encoder(clip_skip, "original")
        self._kept: dict[str, Encoded] = {}
        self._tokens = 0

    @property
    def is_full(self) -> bool:
        """Whether the next prompt takes the place of another."""
        return len(self._kept) >= _KEPT or self._tokens >= _KEPT_TOKENS

    def require_short(self, prompt: str) -> None:
        """Raises UsageError where a prompt is too long to be encoded."""
        self._encoder.require_short(prompt)

    @torch.no_grad()
    def encode(self, prompt: str) -> Encoded:
        """Returns one prompt, encoded, on the CPU."""
        if prompt not in self._kept:
            while self.is_full:
                self._tokens -= len(self._kept.pop(next(iter(self._kept))).hidden)
            encoded = self._encoder.encode(prompt)
            pooled = None if encoded.pooled is None else encoded.pooled.cpu()
            self._kept[prompt] = Encoded(encoded.hidden.cpu(), pooled)
            self._tokens += len(encoded.hidden)
        return self._kept[prompt]

    def encode_all(self, prompts: Iterable[str]) -> bool:
        """Encodes prompts ahead; returns whether all of them are kept."""
        for prompt in prompts:
            if self.is_full:
                return False
            self.encode(prompt)
        return True


def unet_arguments(texts: Sequence[Encoded], size: tuple[int, int], device: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Returns what a UNet takes beside latents and time steps.

    Texts of unlike length are filled up to the longest, and a mask hides what was filled in: company changes nothing.

    Args:
        size: (width, height) in pixels of the pictures, which SDXL reads.
    """
    hidden = pad_sequence([text.hidden for text in texts], batch_first=True)
    told: dict[str, Any] = {"encoder_hidden_states": hidden.to(device, dtype)}
    lengths = torch.tensor([len(text.hidden) for text in texts])
    if lengths.min() < hidden.shape[1]:
        mask = torch.arange(hidden.shape[1]) < lengths[:, None]
        told["encoder_attention_mask"] = mask.to(device, dtype)
    pooled = [text.pooled for text in texts if text.pooled is not None]
    if pooled:
        height_width = size[1], size[0]
        ids = torch.tensor([*height_width, 0, 0, *height_width], device=device, dtype=torch.float32)
        told["added_cond_kwargs"] = {
            "text_embeds": torch.stack(pooled).to(device, dtype),
            "time_ids": ids.expand(len(texts), -1),
        }
    return told


# --- convolutions that keep no inputs


@contextmanager
def without_kept_inputs(model: nn.Module) -> Iterator[None]:
    """Has the 2D convolutions of a frozen model keep their weights alone, while the block lasts.

    Outputs and gradients are the same bits. Left as they are: convolutions that pad with other than zeros, and those
    whose ``forward`` is somebody's own already.
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
    placed = (module.stride, module.padding, module.dilation, module.groups)
    convolved: Tensor = _Convolution.apply(image, module.weight, module.bias, placed)  # type: ignore[no-untyped-call]
    return convolved


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, bias: Tensor | None, placed: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.placed = image.shape, placed
        return F.conv2d(image, weight, bias, *placed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        image_gradient = conv2d_input(ctx.shape, weight, *gradients, *ctx.placed)  # type: ignore[no-untyped-call]
        return image_gradient, None, None, None
