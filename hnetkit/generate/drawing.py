"""Drawing the images of a request: one or two passes of sampling, between noise or an image and pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image as pil
from torch import Tensor

from hnetkit.errors import BadPicture
from hnetkit.generate.backend_errors import is_out_of_memory, translating_oom
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.request import InitImage, Request, SecondPass, covering_size
from hnetkit.generate.sampling import vae
from hnetkit.generate.sampling.encoding import Conditioning
from hnetkit.generate.sampling.loop import AfterStep, Denoiser, KeptRegion, Steps, noised, sample
from hnetkit.generate.sampling.noise import Noise
from hnetkit.generate.sampling.samplers import prepare_scheduler
from hnetkit.images import open_mask, open_rgb
from hnetkit.runtime.adapters import applied
from hnetkit.runtime.capture import forget_graphs
from hnetkit.runtime.progress import step_of_call

if TYPE_CHECKING:
    from PIL import Image

Progress = Callable[[int, int], None]
"""Called with the calls of the UNet so far and in all, over every image of a request."""


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """An image and the seed that it was drawn from."""

    image: Image.Image
    seed: int


def draw(model: LoadedPipeline, request: Request, progress: Progress | None = None) -> Iterator[DrawnImage]:
    """Draws the images of a request, batch after batch. Each image depends on its own seed alone.

    Raises:
        BadPicture: sampling gave NaN, or nothing but black.
        NotFound: a network of a stack is not loaded on the pipeline, or the init image is not there.
    """
    seeds = request.seeds
    batches = [seeds[start : start + request.batch_size] for start in range(0, len(seeds), request.batch_size)]
    for number, batch in enumerate(batches):

        def report(done: int, total: int, before: int = number) -> None:
            if progress is not None:
                progress(before * total + done, len(batches) * total)

        yield from draw_batch(model, request, batch, report)


def draw_batch(model: LoadedPipeline, request: Request, seeds: Sequence[int], progress: Progress) -> list[DrawnImage]:
    """Samples the images of these seeds together; the request's own seeds and batch size are not read.

    Raises:
        As `draw`.
    """
    images = []
    for drawn in draw_each(model, request, seeds, progress):
        if isinstance(drawn, BadPicture):
            raise drawn
        images.append(drawn)
    return images


def draw_each(
    model: LoadedPipeline, request: Request, seeds: Sequence[int], progress: Progress
) -> list[DrawnImage | BadPicture]:
    """Samples as `draw_batch` does, and returns an error in place of each image that came out NaN or black."""
    with torch.no_grad(), translating_oom("drawing"):
        results = list(_ImageBatch(model, request, seeds, progress).images())
    model.pipe.maybe_free_model_hooks()
    return [
        result if isinstance(result, BadPicture) else DrawnImage(result, seed)
        for result, seed in zip(results, seeds, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _InitPixels:
    """The pixels of an init image, read once.

    Attributes:
        image: of the size that is drawn.
        mask: gray, of the same size; None where the whole image is repainted.
        content: what lies under the mask at first.
    """

    image: Image.Image
    mask: Image.Image | None
    content: str

    @classmethod
    def read(cls, init: InitImage, size: tuple[int, int]) -> _InitPixels:
        image = open_rgb(init.image).resize(size, pil.Resampling.LANCZOS)
        if init.mask is None:
            return cls(image, None, init.content)
        mask = vae.soft_mask(open_mask(init.mask), size, blur=init.mask_blur, inverted=init.inverted)
        return cls(image, mask, init.content)

    def restore_outside_mask(self, drawn: Image.Image) -> Image.Image:
        """Returns a drawn image with its first pixels outside of the mask, where the autoencoder blurs them.

        As in A1111 all that is at least half under the mask, and so was sampled, is the drawn image's alone.
        """
        return drawn if self.mask is None else pil.composite(drawn, self.image, self.mask.point(lambda part: 2 * part))


class _ImageBatch:
    """One batch of a request, from noise to pixels."""

    def __init__(self, model: LoadedPipeline, request: Request, seeds: Sequence[int], report: Progress) -> None:
        self._pipe, self._request, self._seeds, self._report = model.pipe, request, seeds, report
        init, second = request.init_image, request.second
        self._init = _InitPixels.read(init, (request.width, request.height)) if init else None
        self._first = SamplingPass(model, request, seeds, request)
        self._second = None
        if second is not None:
            self._second = SamplingPass(model, request, seeds, second, self._first.prompt_steps)
        self._calls = self._first.calls + (self._second.calls if self._second else 0)

    def images(self) -> Iterator[Image.Image | BadPicture]:
        """Yields the images in the order of their seeds; for one that came out NaN or black, the error."""
        init, second = self._init, self._request.second
        latents = self._first.from_noise(self._after_step()) if init is None else self._repaint(init)
        if self._second is not None and second is not None:
            large = self._enlarge(latents, second, self._second.noise.shape[2:])
            latents = self._second.over(large, self._after_step(self._first.calls))
        for seed, pixels in zip(self._seeds, _decode(self._pipe, latents), strict=True):
            if fault := self._fault(pixels, seed):
                yield fault
                continue
            image = _to_image(self._pipe, pixels)
            yield image if init is None else init.restore_outside_mask(image)

    def _after_step(self, calls_before: int = 0) -> AfterStep:
        return lambda call, _: self._report(calls_before + call, self._calls)

    def _repaint(self, init: _InitPixels) -> Tensor:
        """Returns latents ``[images, 4, h, w]`` sampled over those of the init image."""
        noise = self._first.noise
        original = vae.encode(self._pipe, init.image, init.image.size, self._seeds)
        if init.mask is None:
            return self._first.over(original, self._after_step())
        mask = vae.latent_mask(init.mask, (noise.shape[3], noise.shape[2])).to(noise)
        if init.content == "original":
            content = original
        else:  # as in A1111 the noise of the seeds, whatever their variations
            content = self._first.noise_of_seeds() if init.content == "noise" else torch.zeros_like(original)
        begun = original * (1 - mask) + content * mask
        kept = KeptRegion(original, noise, mask)
        return self._first.over(begun, self._after_step(), kept, (init.image, init.mask))

    def _enlarge(self, latents: Tensor, second: SecondPass, size: Sequence[int]) -> Tensor:
        """Returns latents of the second pass's size, `size` (h, w); of another shape, the middle of the first pass."""
        width, height = covering_size((self._request.width, self._request.height), (second.width, second.height))
        if second.upscaler == "Latent":
            scale = self._pipe.vae_scale_factor
            return _middle(vae.resize_latents(latents, (height // scale, width // scale)), size)
        resampling = {"Lanczos": pil.Resampling.LANCZOS, "Nearest": pil.Resampling.NEAREST}[second.upscaler]
        decoded = _decode(self._pipe, latents)
        enlarged = [_to_image(self._pipe, pixels).resize((width, height), resampling) for pixels in decoded]
        by_seed = zip(enlarged, self._seeds, strict=True)
        encoded = [vae.encode(self._pipe, image, (width, height), [seed]) for image, seed in by_seed]
        return _middle(torch.cat(encoded), size)

    def _fault(self, pixels: Tensor, seed: int) -> BadPicture | None:
        fault = "NaN" if not torch.isfinite(pixels).all() else "black" if pixels.max() < 1 / 255 else None
        if fault is None:
            return None
        tries = ["--dtype fp32"] if self._pipe.unet.dtype != torch.float32 else []
        tries += ["lower strengths", "fewer hypernetworks"] if self._request.stack else []
        hint = f"try {', or '.join([*tries, 'a lower --cfg-scale'])}"
        return BadPicture(f"the picture of seed {seed} came out {fault}", hint=hint)


def _decode(pipe: Any, latents: Tensor) -> Tensor:
    """As `vae.decode`; where there is not enough memory, the UNet's graphs give theirs."""
    try:
        return vae.decode(pipe, latents)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or not forget_graphs(pipe):
            raise
    return vae.decode(pipe, latents)


def _middle(latents: Tensor, size: Sequence[int]) -> Tensor:
    """Returns the middle of latents, of `size` (h, w)."""
    top, left = ((own - wanted) // 2 for own, wanted in zip(latents.shape[2:], size, strict=True))
    return latents[:, :, top : top + size[0], left : left + size[1]]


def _to_image(pipe: Any, pixels: Tensor) -> Image.Image:
    image: Image.Image = pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(pixels[None]))[0]
    return image


class SamplingPass:
    """One pass of sampling over a batch, at one size, with its own prompts, noise and stack.

    Args:
        request: what both passes share.
        seeds: of the batch.
        part: the request itself for the first pass, its `SecondPass` for the second.
        steps_before: `prompt_steps` of the pass before, which schedules in prompts count.

    Attributes:
        noise: that sampling begins with, ``[images, 4, h, w]`` on the device.
        prompt_steps: by which schedules in prompts are measured: the steps of the pass, and as in A1111 twice as many
            for samplers of second order, whose calls of the UNet they count.
        calls: of the UNet, that this pass makes.
    """

    def __init__(
        self,
        model: LoadedPipeline,
        request: Request,
        seeds: Sequence[int],
        part: Request | SecondPass,
        steps_before: int | None = None,
    ) -> None:
        pipe = model.pipe
        self._pipe, self._request, self._part = pipe, request, part
        self._scheduler, self._begin = _scheduler_of_pass(model, request, part)
        self.prompt_steps = part.steps * int(self._scheduler.order)
        self.calls = len(self._scheduler.timesteps) - self._begin
        encoder = model.text_encoder(request.clip_skip, request.emphasis)
        self._conditioning = Conditioning(encoder, part.prompt, part.negative_prompt, self.prompt_steps, steps_before)
        scale = pipe.vae_scale_factor
        shape = (pipe.vae.config.latent_channels, part.height // scale, part.width // scale)
        self._noises = [_noise(request, seed, shape) for seed in seeds]
        self.noise = torch.stack([noise.first() for noise in self._noises]).to(pipe._execution_device)

    def noise_of_seeds(self) -> Tensor:
        """Returns `noise` without variations."""
        noises = [Noise(noise.seed, noise.shape, source=noise.source).first() for noise in self._noises]
        return torch.stack(noises).to(self.noise)

    def from_noise(self, after_step: AfterStep) -> Tensor:
        """Returns clean latents ``[images, 4, h, w]``, sampled from noise alone."""
        return self._sample(self.noise * self._scheduler.init_noise_sigma, after_step)

    def over(
        self,
        latents: Tensor,
        after_step: AfterStep,
        kept: KeptRegion | None = None,
        masked: tuple[Image.Image, Image.Image] | None = None,
    ) -> Tensor:
        """Returns `latents`, of the noise's shape, repainted as strongly as the pass's denoising says.

        Args:
            kept: the region outside of a mask.
            masked: the init image and its mask, for a UNet made for inpainting; see `vae.mask_channels`.
        """
        self._scheduler.set_begin_index(self._begin)
        timestep = self._scheduler.timesteps[self._begin : self._begin + 1]
        return self._sample(noised(latents, self.noise, self._scheduler, timestep), after_step, kept, masked)

    def _sample(
        self,
        latents: Tensor,
        after_step: AfterStep,
        kept: KeptRegion | None = None,
        masked: tuple[Image.Image, Image.Image] | None = None,
    ) -> Tensor:
        size = self._part.width, self._part.height
        beside = vae.mask_channels(self._pipe, size, masked)
        denoiser = Denoiser(self._pipe, self._conditioning, self._request.cfg_scale, size, beside)
        with applied(self._pipe, dict(self._part.stack)):
            return sample(denoiser, self._scheduler, latents, self._noises, self._begin, kept, after_step)


def steps_of_pass(model: LoadedPipeline, request: Request, part: Request | SecondPass) -> int:
    """Returns how many steps a pass of a request makes."""
    scheduler, begin = _scheduler_of_pass(model, request, part)
    return step_of_call(scheduler, len(scheduler.timesteps) - begin - 1) + 1


def _scheduler_of_pass(model: LoadedPipeline, request: Request, part: Request | SecondPass) -> tuple[Any, int]:
    """Returns the scheduler of a pass, with its timesteps set, and the number of the first one that is sampled."""
    steps = _chosen_steps(part)
    scheduler = prepare_scheduler(request.sampler, model.scheduler_config, steps.in_all)
    return scheduler, steps.first_call(scheduler)


def _chosen_steps(part: Request | SecondPass) -> Steps:
    if isinstance(part, SecondPass):
        return Steps.over_first_pass(part.steps, part.denoising)
    if part.init_image is not None:
        return Steps.over_image(part.steps, part.init_image.denoising)
    return Steps(part.steps, part.steps)


def _noise(request: Request, seed: int, shape: tuple[int, ...]) -> Noise:
    return Noise(
        seed,
        shape,
        source=request.rng,
        variation_seed=request.variation_seed + seed - request.seed,
        variation_strength=request.variation_strength,
        ensd=request.eta_seed_delta,
    )
