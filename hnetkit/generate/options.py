"""The options of drawing as a user gives them, checked; and the request that they make for a model."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit.errors import UsageError, did_you_mean
from hnetkit.generate.request import LARGEST_SEED, MOST_STEPS, UPSCALERS, InitImage, Request, SecondPass, require_size
from hnetkit.generate.sampling.samplers import sampler_name
from hnetkit.images import image_size

if TYPE_CHECKING:
    from hnetkit.generate.loading.outline import ModelOutline
    from hnetkit.generate.loading.pipeline import LoadedPipeline
    from hnetkit.prompts.tags import TaggedPrompt

NAMES: Mapping[str, tuple[str, ...]] = {
    "rng": ("cpu", "nv"),
    "emphasis": ("original", "no-norm", "ignore", "none"),
    "masked_content": ("original", "noise", "nothing"),
    "hires_upscaler": UPSCALERS,
}
"""Option -> its choices."""

SECOND_PASS = frozenset(
    {"hires_scale", "hires_size", "hires_steps", "hires_upscaler", "hires_prompt", "hires_negative_prompt"}
)
"""The options of a second pass, which an image to start from excludes."""


SECOND_DENOISING = 0.7
"""How strongly a second pass repaints the first, where nothing says it."""


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """The options of drawing; None takes the value of an image that is drawn again, else the model's default.

    Attributes:
        negative_prompt: what to steer away from.
        steps: sampling steps, 1 to 1000.
        cfg_scale: how closely to follow the prompt, 1 or more.
        width, height: pixels, multiples of 8.
        sampler: one of `hnetkit.generate.sampling.samplers.SAMPLERS`, in any case.
        rng: source of noise: torch's generator for CPUs (``"cpu"``), or CUDA's in software (``"nv"``).
        clip_skip: 2 leaves out the last layer of SD 1's text encoder.
        emphasis: what weights in a prompt do: ``"original"``, ``"no-norm"``, ``"ignore"``, or ``"none"``, which reads
            brackets as text.
        eta_seed_delta: A1111's eta noise seed delta (ENSD).
        variation_seed, variation_strength: seed of the variation noise, and how much of it to blend in, 0 to 1.
        image: file of the image to start from (image-to-image).
        denoising: how strongly to repaint `image`, or the first pass in the second: 0 keeps it, 1 ignores it.
        mask: file of an image that is white where `image` is repainted (inpainting).
        mask_blur: radius in pixels of the mask's file that softens its edge.
        masked_content: what lies under the mask at first: ``"original"``, ``"noise"`` or ``"nothing"``.
        invert_mask: repaint where the mask is black.
        hires_scale, hires_size: draw in two passes: this many times as large, or at this (width, height).
        hires_steps: sampling steps of the second pass; 0 takes those of the first.
        hires_upscaler: one of `hnetkit.generate.request.UPSCALERS`.
        hires_prompt, hires_negative_prompt: prompts of the second pass, with its own tags.

    Raises:
        UsageError: a value is out of its range, or options contradict each other.
        NotFound: `image` or `mask` is not there.
        BadPicture: one of them is no image, or too large; its pixels are not decoded yet.
    """

    negative_prompt: str | None = None
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    rng: str | None = None
    clip_skip: int | None = None
    emphasis: str | None = None
    eta_seed_delta: int | None = None
    variation_seed: int | None = None
    variation_strength: float | None = None
    image: str | os.PathLike[str] | None = None
    denoising: float | None = None
    mask: str | os.PathLike[str] | None = None
    mask_blur: float | None = None
    masked_content: str | None = None
    invert_mask: bool | None = None
    hires_scale: float | None = None
    hires_size: tuple[int, int] | None = None
    hires_steps: int | None = None
    hires_upscaler: str | None = None
    hires_prompt: str | None = None
    hires_negative_prompt: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> DrawOptions:
        """Returns the options of a call from Python; raises UsageError with the likely name where there is no such."""
        names = [field.name for field in fields(cls)]
        for name in options:
            if name not in names:
                meant = "width" if name == "size" else did_you_mean(name, names)
                raise UsageError(f"{name}: no option of drawing", hint=f"{meant}=..." if meant else ", ".join(names))
        return cls(**options)

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, check(name, value))
        if self.mask is not None and self.image is None:
            raise UsageError("--mask needs --image, the picture that it masks", hint="--image FILE --mask FILE")
        if self.has_second_pass and self.image is not None:
            raise UsageError("--hires-scale and --image do not go together", hint="leave one of them out")
        if self.hires_scale is not None and self.hires_size is not None:
            raise UsageError("--hires-scale and --hires-size both set the size", hint="leave one of them out")
        for path in (self.image, self.mask):
            if path is not None:
                image_size(path)

    @property
    def has_second_pass(self) -> bool:
        return self.hires_scale is not None or self.hires_size is not None

    def without_effect(self, filled: DrawOptions) -> Iterator[str]:
        """Yields a line for each of these options that changes nothing, because it belongs to one that is missing.

        Args:
            filled: these options, with those of an image that is drawn again.
        """
        for name, (needed, has_effect) in _NEEDS.items():
            value = getattr(self, name)
            if value is not None and value is not False and not has_effect(filled):
                yield f"--{name.replace('_', '-')} has no effect without {needed}"

    def fill_from(self, recorded: Mapping[str, Any]) -> DrawOptions:
        """Returns these options, with the values of `recorded` where they are None and do not contradict them."""
        unset = {field.name for field in fields(self) if getattr(self, field.name) is None}
        was_in_two_passes = not SECOND_PASS.isdisjoint(recorded)
        if self.image is not None:
            unset -= SECOND_PASS | ({"denoising"} if was_in_two_passes else set())
        if self.has_second_pass:
            unset -= {"hires_scale", "hires_size"} | (set() if was_in_two_passes else {"denoising"})
        return replace(self, **{name: value for name, value in recorded.items() if name in unset})

    def request(
        self, model: LoadedPipeline | ModelOutline, prompt: str, seed: int, hires: TaggedPrompt | None = None
    ) -> Request:
        """Returns the request for one image, without stacks. The model's defaults replace what is None.

        Args:
            prompt: without tags.
            hires: the prompt of the second pass, if it has its own.

        Raises:
            UsageError: as `Request`.
        """
        own, (width, height) = model.defaults, model.size
        base = Request(
            prompt,
            seed,
            steps=self.steps or own.steps,
            cfg_scale=self.cfg_scale or own.cfg_scale,
            width=self.width or width,
            height=self.height or height,
            sampler=self.sampler or own.sampler,
            negative_prompt=self.negative_prompt or "",
            clip_skip=self.clip_skip or 1,
            eta_seed_delta=self.eta_seed_delta or 0,
            variation_seed=self.variation_seed or 0,
            variation_strength=self.variation_strength or 0.0,
            rng=self.rng or "cpu",  # type: ignore[arg-type]  # checked: one of its choices
            emphasis=self.emphasis or "original",  # type: ignore[arg-type]  # as above
            init_image=self._init_image,
        )
        return replace(base, second=self._second_pass(base, hires)) if self.has_second_pass else base

    @property
    def _init_image(self) -> InitImage | None:
        if self.image is None:
            return None
        return InitImage(
            Path(self.image),
            denoising=0.75 if self.denoising is None else self.denoising,
            mask=None if self.mask is None else Path(self.mask),
            mask_blur=4 if self.mask_blur is None else self.mask_blur,
            inverted=bool(self.invert_mask),
            content=self.masked_content or "original",  # type: ignore[arg-type]  # as above
        )

    def _second_pass(self, base: Request, prompt: TaggedPrompt | None) -> SecondPass:
        width, height = self.hires_size or (
            _scaled(base.width, self.hires_scale),
            _scaled(base.height, self.hires_scale),
        )
        return SecondPass(
            width,
            height,
            steps=self.hires_steps or base.steps,
            denoising=SECOND_DENOISING if self.denoising is None else self.denoising,
            upscaler=self.hires_upscaler or UPSCALERS[0],
            prompt=base.prompt if prompt is None else prompt.text,
            negative_prompt=base.negative_prompt if self.hires_negative_prompt is None else self.hires_negative_prompt,
            written="" if prompt is None else prompt.written,
        )


_PASS_NEEDED = "--hires-scale or --hires-size", lambda options: options.has_second_pass
_MASK_NEEDED = "--mask", lambda options: options.mask is not None

_NEEDS: Mapping[str, tuple[str, Callable[[DrawOptions], bool]]] = {
    "denoising": (
        "--image, --hires-scale or --hires-size",
        lambda options: options.image is not None or options.has_second_pass,
    ),
    **dict.fromkeys(("mask_blur", "masked_content", "invert_mask"), _MASK_NEEDED),
    **dict.fromkeys(sorted(SECOND_PASS - {"hires_scale", "hires_size"}), _PASS_NEEDED),
    "variation_seed": ("--variation-strength", lambda options: bool(options.variation_strength)),
}
"""Option -> what it has no effect without, and whether that is there."""


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number, also one of numpy's."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _integer_option(lowest: int, highest: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        if not _is_whole(value) or not lowest <= value <= highest:
            raise UsageError(f"{name}: {value} is not a whole number from {lowest} to {highest}")
        return int(value)

    return check


def _real_option(lowest: float, highest: float = math.inf) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        if not _is_real(value) or not lowest <= value <= highest or not math.isfinite(value):
            span = f"from {lowest} on" if highest == math.inf else f"from {lowest} to {highest}"
            raise UsageError(f"{name}: {value} is not a number {span}")
        return float(value)

    return check


def _choice_option(*names: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in names:
            raise UsageError(f"{name}: {value} is not one of {', '.join(names)}")
        return str(value)

    return check


def _text_option(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{name}: {value!r} is not text")
    return value


def _side_option(name: str, value: Any) -> int:
    if not _is_whole(value):
        raise UsageError(f"{name}: {value!r} is not a whole number of pixels")
    return require_size(int(value))


def _size_option(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UsageError(f"{name}: {value!r} is not (width, height)")
    return _side_option(name, value[0]), _side_option(name, value[1])


def _path_option(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name}: {value!r} is not the path of a picture")
    return Path(value)


_CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    "negative_prompt": _text_option,
    "steps": _integer_option(1, MOST_STEPS),
    "cfg_scale": _real_option(1),
    "width": _side_option,
    "height": _side_option,
    "sampler": lambda name, value: sampler_name(_text_option(name, value)),
    "rng": _choice_option(*NAMES["rng"]),
    "clip_skip": _integer_option(1, 12),
    "emphasis": _choice_option(*NAMES["emphasis"]),
    "eta_seed_delta": _integer_option(-LARGEST_SEED, LARGEST_SEED),
    "variation_seed": _integer_option(0, LARGEST_SEED),
    "variation_strength": _real_option(0, 1),
    "image": _path_option,
    "denoising": _real_option(0, 1),
    "mask": _path_option,
    "mask_blur": _real_option(0),
    "masked_content": _choice_option(*NAMES["masked_content"]),
    "hires_scale": _real_option(1, 8),
    "hires_size": _size_option,
    "hires_steps": _integer_option(0, MOST_STEPS),
    "hires_upscaler": _choice_option(*NAMES["hires_upscaler"]),
    "hires_prompt": _text_option,
    "hires_negative_prompt": _text_option,
}
"""Option -> the function that returns a checked value, in the type that it has here; raises UsageError."""


def _scaled(pixels: int, scale: float | None) -> int:
    return math.floor(pixels * (scale or 1) / 8) * 8
