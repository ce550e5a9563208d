"""From a request to pictures: one or two passes of sampling over latents, and the autoencoder at either end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image as images
from torch import Tensor

from hnetkit.errors import BadPicture
from hnetkit.generate.memory import needing_memory
from hnetkit.generate.pipeline import LoadedPipeline
from hnetkit.generate.request import Request, SecondPass, Start
from hnetkit.generate.sampling import latents as space
from hnetkit.generate.sampling.loop import AfterStep, Kept
from hnetkit.generate.sampling.passes import Pass
from hnetkit.images import open_image

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[int, int], None]
"""Called with the calls of the UNet done and the calls in all, over every picture of a request."""


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A picture and the seed that it was drawn from."""

    image: Image.Image
    seed: int


def draw(model: LoadedPipeline, request: Request, progress: Progress | None = None) -> Iterator[DrawnImage]:
    """Draws the pictures of a request, batch after batch. A picture depends on its own seed alone.

    Raises:
        BadPicture: sampling gave NaN, or nothing but black.
        NotFound: a name of a stack that is not loaded on the pipeline, or a picture to start with that is not there.
    """
    seeds = request.seeds
    batches = [seeds[at : at + request.batch_size] for at in range(0, len(seeds), request.batch_size)]
    for number, batch in enumerate(batches):

        def report(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(batches) * total)

        yield from draw_batch(model, request, batch, report)


def draw_batch(model: LoadedPipeline, request: Request, seeds: Sequence[int], progress: Progress) -> list[DrawnImage]:
    """Returns the pictures of these seeds, sampled together; the request's own seeds and batch size do not count.

    Raises:
        As `draw`.
    """
    pictures = []
    for drawn in draw_each(model, request, seeds, progress):
        if isinstance(drawn, BadPicture):
            raise drawn
        pictures.append(drawn)
    return pictures


def draw_each(
    model: LoadedPipeline, request: Request, seeds: Sequence[int], progress: Progress
) -> list[DrawnImage | BadPicture]:
    """Returns the pictures of these seeds, as `draw_batch` does; one that came out NaN or black does not end it."""
    with torch.no_grad(), needing_memory("drawing"):
        drawn = list(_Batch(model, request, seeds, progress).images())
    model.pipe.maybe_free_model_hooks()
    return [
        image if isinstance(image, BadPicture) else DrawnImage(image, seed)
        for image, seed in zip(drawn, seeds, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Beginning:
    """What image-to-image begins with, read once.

    Attributes:
        image: of the size that is drawn.
        mask: grey, of the same size; None where all of it is drawn anew.
        content: what lies under the mask at first.
    """

    image: Image.Image
    mask: Image.Image | None
    content: str

    @classmethod
    def of(cls, start: Start, size: tuple[int, int]) -> _Beginning:
        image = open_image(start.image).convert("RGB").resize(size, images.Resampling.LANCZOS)
        if start.mask is None:
            return cls(image, None, start.content)
        mask = space.soft_mask(open_image(start.mask), size, blur=start.mask_blur, inverted=start.inverted)
        return cls(image, mask, start.content)

    def outside_as_it_was(self, drawn: Image.Image) -> Image.Image:
        """Returns a picture with the pixels that it began with outside of the mask, which the autoencoder blurs."""
        return drawn if self.mask is None else images.composite(drawn, self.image, self.mask)


class _Batch:
    """One batch of a request, from noise to pixels."""

    def __init__(self, model: LoadedPipeline, request: Request, seeds: Sequence[int], report: Progress) -> None:
        self._pipe, self._request, self._seeds, self._report = model.pipe, request, seeds, report
        start, second = request.start, request.second
        self._start = _Beginning.of(start, (request.width, request.height)) if start else None
        self._first = Pass(model, request, seeds, request, start.denoising if start else None)
        self._second = None
        if second is not None:
            self._second = Pass(model, request, seeds, second, second.denoising, self._first.schedule_calls)
        self._calls = self._first.calls + (self._second.calls if self._second else 0)

    def images(self) -> Iterator[Image.Image | BadPicture]:
        """Yields the pictures, in the order of their seeds; of one that came out NaN or black, what is to be said."""
        start, second = self._start, self._request.second
        latents = self._first.from_noise(self._after_step()) if start is None else self._over(start)
        if self._second is not None and second is not None:
            large = self._enlarged(latents, second, self._second.noise.shape[2:])
            latents = self._second.over(large, self._after_step(self._first.calls))
        for seed, pixels in zip(self._seeds, space.decode(self._pipe, latents), strict=True):
            if bad := self._fault(pixels, seed):
                yield bad
                continue
            image = _to_image(self._pipe, pixels)
            yield image if start is None else start.outside_as_it_was(image)

    def _after_step(self, before: int = 0) -> AfterStep:
        return lambda call, _: self._report(before + call, self._calls)

    def _over(self, start: _Beginning) -> Tensor:
        noise = self._first.noise
        old = self._encoded(start.image, *start.image.size).expand_as(noise)
        if start.mask is None:
            return self._first.over(old, self._after_step())
        mask = space.mask_of(start.mask, (noise.shape[3], noise.shape[2])).to(noise)
        under = {"original": old, "noise": noise, "nothing": torch.zeros_like(old)}[start.content]
        beside = None
        if self._pipe.unet.config.in_channels == noise.shape[1] * 2 + 1:
            beside = torch.cat([mask, old[:1] * (1 - mask)], dim=1)
        begun = old * (1 - mask) + under * mask
        return self._first.over(begun, self._after_step(), Kept(old, noise, mask), beside)

    def _enlarged(self, latents: Tensor, second: SecondPass, size: Sequence[int]) -> Tensor:
        """Returns latents of the second pass's size, `size` (h, w)."""
        if second.upscaler == "Latent":
            return space.resized(latents, size)
        filtered = {"Lanczos": images.Resampling.LANCZOS, "Nearest": images.Resampling.NEAREST}[second.upscaler]
        pixels = second.width, second.height
        pictures = [_to_image(self._pipe, one).resize(pixels, filtered) for one in space.decode(self._pipe, latents)]
        return torch.cat([self._encoded(picture, *pixels) for picture in pictures])

    def _fault(self, pixels: Tensor, seed: int) -> BadPicture | None:
        fault = "NaN" if not torch.isfinite(pixels).all() else "black" if pixels.max() < 1 / 255 else None
        if fault is None:
            return None
        tries = ["--dtype fp32"] if self._pipe.unet.dtype != torch.float32 else []
        tries += ["lower strengths", "fewer hypernetworks"] if self._request.stack else []
        hint = f"try {', or '.join([*tries, 'a lower --cfg-scale'])}"
        return BadPicture(f"the picture of seed {seed} came out {fault}", hint=hint)

    def _encoded(self, image: Image.Image, width: int, height: int) -> Tensor:
        generator = torch.Generator("cpu").manual_seed(self._seeds[0])
        return space.encode(self._pipe, image, (width, height), generator)


def _to_image(pipe: Any, pixels: Tensor) -> Image.Image:
    image: Image.Image = pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(pixels[None]))[0]
    return image
