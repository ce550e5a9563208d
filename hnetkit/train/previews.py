"""Images of what a network has learned so far, as one labeled sheet: prompts and seeds down, strengths across."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hnetkit.errors import BadPicture, UsageError
from hnetkit.files import new_file
from hnetkit.network import Hypernetwork

if TYPE_CHECKING:
    from PIL import Image

    from hnetkit.generate.model import Model
    from hnetkit.generate.request import Request

    ImageRows = Sequence[Sequence[Sequence[Image.Image | None]]]  # by prompt, strength and seed; None: NaN or black

_OWN_PROMPTS = 3  # at most, of the model's own examples
_ADAPTER = "hnetkit's preview"
_INSTEAD_OF_LMS = "Euler a"  # LMS overshoots with a hypernetwork, and shows a good one as damaged


@dataclass(frozen=True, slots=True)
class PreviewSettings:
    """What previews show; None leaves the choice to the model.

    Attributes:
        prompts: if empty, the model's own examples, up to 3, or else the empty prompt.
        seeds: of each prompt.
        strengths: from left to right; guards look at the largest one.
        negative_prompt: what to steer away from.
        steps, cfg_scale, sampler, width, height, clip_skip: as for any image.
        batch_size: images that are drawn together.

    Raises:
        UsageError: nothing to draw.
    """

    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2)
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0)
    negative_prompt: str = ""
    steps: int | None = None
    cfg_scale: float | None = None
    sampler: str | None = None
    width: int | None = None
    height: int | None = None
    clip_skip: int = 1
    batch_size: int = 4

    def __post_init__(self) -> None:
        if not self.seeds or not self.strengths or self.batch_size < 1:
            raise UsageError("a preview has at least one seed and one strength")
        if self.clip_skip < 1 or (self.cfg_scale is not None and not self.cfg_scale >= 1):
            raise UsageError("clip skip and CFG scale of previews are at least 1")
        if not np.isfinite(self.strengths).all():
            raise UsageError(f"strengths of previews are numbers, not {', '.join(map(str, self.strengths))}")


@dataclass(frozen=True, slots=True)
class Preview:
    """One sheet, drawn and written.

    Attributes:
        step: of the network.
        path: ``NAME-<step>.png``.
        images: at the largest strength, by prompt, then by seed, without those that came out NaN or black.
        energy: mean of their `high_frequencies`, for `Guards.after_preview`.
        fault: how many images came out NaN or black although they do not without the network; empty for none.
    """

    step: int
    path: Path
    images: tuple[Image.Image, ...]
    energy: float
    fault: str = ""


class Previews:
    """Draws previews of one run. Images without the network are drawn once.

    Args:
        model: that the network is trained on. Its UNet is used as it is, and is the same afterwards, bit for bit.
        settings: what to show.
        folder: for sheets; made with the first one.
        name: of the network.
        ready: a context that is entered while images are drawn, to bring offloaded encoders back.
        note: called with what has no effect in the prompts: comments, and tags, because previews show this network
            alone.

    Raises:
        UsageError: invalid settings, or more images than fit on a sheet.
    """

    def __init__(
        self,
        model: Model,
        settings: PreviewSettings,
        folder: Path,
        name: str,
        *,
        ready: Callable[[], AbstractContextManager[None]] = nullcontext,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        from hnetkit.generate.grids.sheet import require_room
        from hnetkit.generate.prompt_networks import (
            warn_about_negative_tags,
            warn_about_unread_embeddings,
            without_comments,
        )

        self._model, self._settings, self._folder, self._name = model, settings, folder, name
        self._ready = ready
        typed = settings.prompts or model.defaults.prompts[:_OWN_PROMPTS] or ("",)
        prompts = [_without_networks(prompt, note) for prompt in typed]
        negative = without_comments(settings.negative_prompt, note)
        warn_about_negative_tags([negative], note)
        warn_about_unread_embeddings([*prompts, negative], "a preview", note)
        settings = replace(settings, negative_prompt=negative)
        self._requests = [_request(model, settings, prompt) for prompt in prompts]
        require_room(len(settings.strengths), len(prompts) * len(settings.seeds))
        self._without: dict[int, list[Image.Image | None]] = {}

    def draw(
        self, network: Hypernetwork, step: int, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Preview:
        """Draws the preview of a network as it is now; random generators, modes and the UNet are as before.

        Call it while the trained network's own hooks are off the UNet (outside of `BatchStacks.on`), or it would be
        applied twice.

        Args:
            progress: called with the cells drawn and the cells in all, one for each prompt and strength.

        Raises:
            OutOfMemory: drawing needs more memory than there is.
        """
        strengths, rows = self._settings.strengths, list[list[Any]]()
        with self._loaded(network):
            for number in range(len(self._requests)):
                rows.append([])
                for column, strength in enumerate(strengths):
                    progress(number * len(strengths) + column, len(self._requests) * len(strengths))
                    rows[number].append(self._images(number, strength))
            fault = self._fault(rows)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._name}-{step}.png"
        with new_file(path, overwrite=True) as file:
            self._sheet(rows, step).save(file, format="png")
        largest = strengths.index(max(strengths, key=abs))
        sound = tuple(image for row in rows for image in row[largest] if image is not None)
        grid = self._model.pipe.vae_scale_factor
        energy = sum(high_frequencies(np.asarray(image), grid) for image in sound) / max(1, len(sound))
        return Preview(step, path, sound, energy, fault)

    @property
    def columns(self) -> list[str]:
        """The labels of the images of `row`."""
        prompts = [request.prompt or "(no prompt)" for request in self._requests]
        return [f"seed {seed}: {prompt}" for prompt in prompts for seed in self._settings.seeds]

    @property
    def drawn_with(self) -> str:
        """The model and the settings that all images share, for a sheet's caption."""
        first = self._requests[0]
        parts = [self._model.name, first.sampler, f"{first.steps} steps", f"CFG {first.cfg_scale:g}"]
        return "  ·  ".join(parts)

    def row(self, network: Hypernetwork | None) -> list[Image.Image]:
        """Returns an image for each prompt and seed at strength 1; a cross for one that came out NaN or black.

        Args:
            network: None for images without one.
        """
        strength = 0.0 if network is None else 1.0
        with self._loaded(network):
            rows = [self._images(number, strength) for number in range(len(self._requests))]
        return [image or _placeholder(self._requests[0]) for images in rows for image in images]

    def empty_row(self) -> list[Image.Image]:
        """Returns as many crosses as `row` has images."""
        return [_placeholder(self._requests[0])] * len(self.columns)

    @contextmanager
    def _loaded(self, network: Hypernetwork | None) -> Iterator[None]:
        """Prepares the pipeline for drawing and puts a network on its UNet while the block lasts."""
        from hnetkit.runtime.adapters import load_hypernetwork, unload_hypernetworks

        pipe = self._model.pipe
        with self._ready(), _preserving_state(pipe), _captured_on_cuda(pipe):
            if network is not None:
                load_hypernetwork(pipe, network, _ADAPTER, strength=0.0, force=True)
            try:
                yield
            finally:
                if network is not None:
                    unload_hypernetworks(pipe, _ADAPTER)

    def _images(self, number: int, strength: float) -> list[Image.Image | None]:
        """Returns the images of a prompt, one for each seed; None for those that came out NaN or black."""
        request, seeds = self._requests[number], self._settings.seeds
        if strength:
            return self._draw(replace(request, stack=((_ADAPTER, strength),)), seeds)
        if number not in self._without:
            self._without[number] = self._draw(request, seeds)
        return self._without[number]

    def _draw(self, request: Request, seeds: Sequence[int]) -> list[Image.Image | None]:
        from hnetkit.generate.drawing import draw_batch

        size, drawn = request.batch_size, list[Any]()
        for batch in (seeds[at : at + size] for at in range(0, len(seeds), size)):
            try:
                drawn += [
                    picture.image for picture in draw_batch(self._model, request, batch, lambda done, total: None)
                ]
            except BadPicture:  # at least one of them: draw each alone
                alone = replace(request, batch_size=1)
                drawn += [None] if len(batch) == 1 else self._draw(alone, batch)
        return drawn

    def _fault(self, rows: ImageRows) -> str:
        """Returns how many images came out NaN or black that do not without the network; empty for none."""
        bad = 0
        for number, row in enumerate(rows):
            if any(image is None for images in row for image in images):
                without = self._images(number, 0.0)
                pairs = [pair for images in row for pair in zip(images, without, strict=True)]
                bad += sum(image is None and plain is not None for image, plain in pairs)
        total = sum(len(images) for row in rows for images in row)
        return f"{bad} of {total} pictures came out NaN or black" if bad else ""

    def _sheet(self, rows: ImageRows, step: int) -> Image.Image:
        from hnetkit.generate.grids.sheet import Section, SheetRow, draw_sheet

        settings = self._settings
        sections = [
            Section(
                request.prompt or "(no prompt)",
                [
                    SheetRow(f"seed {seed}", [images[place] or _placeholder(request) for images in row])
                    for place, seed in enumerate(settings.seeds)
                ],
            )
            for request, row in zip(self._requests, rows, strict=True)
        ]
        columns = [f"strength {strength:g}" for strength in settings.strengths]
        return draw_sheet(f"{self._name} after {step:,} steps", self.drawn_with, columns, sections)


def _without_networks(prompt: str, note: Callable[[str], None]) -> str:
    """Returns the text of a preview's prompt, and reports what is left out of it, or has no effect in it."""
    from hnetkit.generate.prompt_networks import read_prompt, without_comments

    tagged = read_prompt(without_comments(prompt, note), note)
    for name in (*(f"hypernet:{tag.name}" for tag in tagged.tags), *(f"lora:{tag.name}" for tag in tagged.loras)):
        note(f"Warning: <{name}> has no effect in a preview, which shows the network in training alone")
    return tagged.text


def _request(model: Model, settings: PreviewSettings, prompt: str) -> Request:
    from hnetkit.generate.options import DrawOptions

    sampler = settings.sampler or (_INSTEAD_OF_LMS if model.defaults.sampler.startswith("LMS") else None)
    options = DrawOptions(
        negative_prompt=settings.negative_prompt,
        steps=settings.steps or None,
        cfg_scale=settings.cfg_scale or None,
        width=settings.width or None,
        height=settings.height or None,
        sampler=sampler,
        clip_skip=settings.clip_skip,
    )
    return replace(options.request(model, prompt, min(settings.seeds)), batch_size=settings.batch_size)


def _placeholder(request: Request) -> Image.Image:
    """Returns what is shown for an image that came out NaN or black: a cross on gray."""
    from PIL import Image, ImageDraw

    right, bottom = request.width - 1, request.height - 1
    image = Image.new("RGB", (request.width, request.height), "#d8d8d8")
    canvas = ImageDraw.Draw(image)
    for line in ((0, 0, right, bottom), (0, bottom, right, 0)):
        canvas.line(line, fill="#a33a32", width=max(1, request.width // 64))
    return image


@contextmanager
def _captured_on_cuda(pipe: Any) -> Iterator[None]:
    """Has the UNet run as CUDA graphs within a ``with`` block, unless the settings are against it."""
    from hnetkit.generate.model import ModelSource
    from hnetkit.runtime.capture import capture, forget_graphs

    if pipe.unet.device.type != "cuda" or not ModelSource().is_captured:
        yield
        return
    with capture(pipe):
        try:
            yield
        finally:
            forget_graphs(pipe)  # training needs their memory


@contextmanager
def _preserving_state(pipe: Any) -> Iterator[None]:
    """Puts everything into evaluation mode; afterwards modes and all random generators are as before."""
    import torch

    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    modes = [(module, module.training) for part in parts for module in part.modules()]
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            for module, was_training in modes:
                module.training = was_training
            random.setstate(python)
            np.random.set_state(numpy)


# --- fine detail

Pixels = npt.NDArray[Any]


def high_frequencies(image: Pixels, grid: int) -> float:
    """Returns the energy of an image's fine detail, a mean over pixels and channels with values of 0 to 1.

    It is the part of the spectrum above half of the highest frequency, of the image as it is or of the image with one
    pixel for each of the latents, whichever has more. A broken network gives latents that are noise. The autoencoder
    makes blotches of them, as large as a latent and smooth at the scale of pixels, while a style may well have more
    fine lines, dots or grain than the images before it. So the scale of latents counts, and that of pixels only for
    noise that fills the whole image.

    Args:
        image: ``[height, width, channels]`` of 8-bit values.
        grid: pixels along a side that belong to one latent.
    """
    pixels = image.astype(np.float64) / 255
    return max(_upper_half(_average_blocks(pixels, grid)), _upper_half(pixels))


def _average_blocks(pixels: Pixels, by: int) -> Pixels:
    height, width, channels = (pixels.shape[0] // by, pixels.shape[1] // by, pixels.shape[2])
    blocks = pixels[: height * by, : width * by].reshape(height, by, width, by, channels)
    means: Pixels = blocks.mean((1, 3))
    return means


def _upper_half(pixels: Pixels) -> float:
    """Returns the energy of frequencies above a quarter of a cycle per pixel, along either side."""
    if not pixels.size:
        return 0.0
    height, width, _ = pixels.shape
    # mirrored: a spectrum is that of endless tiles, and the seam between two of them is no detail of the image
    mirrored = np.pad(pixels, ((0, height), (0, width), (0, 0)), mode="symmetric")
    energy = np.abs(np.fft.fft2(mirrored, axes=(0, 1), norm="ortho")) ** 2
    down, across = (np.abs(np.fft.fftfreq(side)) for side in mirrored.shape[:2])
    is_high = np.maximum(down[:, None], across[None]) > 0.25
    return float(energy[is_high].sum() / mirrored.size)
