"""Part `default`: what `hnetkit generate` does by default, beside the same UNet uncaptured, and compiled.

    step     one call of the UNet as the sampling loop makes it, with what the host does for it
    picture  the sampling of a first picture, from noise to latents, with the warm-up and the capture that it takes

Each is run as it is called (eager), as hnetkit captures it (captured), and compiled and then captured (compiled). Text
encoder and autoencoder are not part of it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import hnetkit
from gpu_parts.clock import Bench, Called
from gpu_parts.record import Key, Row, fault_of
from gpu_parts.unet import BARE, MODELS, OURS, PLAIN, STACKS, TOY, Expected, Subject, error, plainly, with_hnetkit
from hnetkit.generate.sampling.encoding import Encoded, Guidance
from hnetkit.generate.sampling.loop import Denoiser, sample
from hnetkit.generate.sampling.noise import Noise
from hnetkit.generate.sampling.samplers import prepare_scheduler
from hnetkit.kernels import dispatch

EAGER, CAPTURED, COMPILED = "eager", "captured", "compiled"
WORKS = (
    ("step", CAPTURED),
    ("step", EAGER),
    ("20 steps", CAPTURED),
    ("20 steps", EAGER),
    ("4 steps", CAPTURED),
    ("4 steps", EAGER),
    ("step", COMPILED),
)
"""What is timed, and how it is run, in the order of what is most telling: compiling takes minutes."""

WAYS = (OURS, BARE, PLAIN)
REPEATS = 5
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class _Pipe:
    """What the sampling loop knows of a pipeline."""

    def __init__(self, unet: Any, device: torch.device) -> None:
        self.unet, self._execution_device = unet, device


class _Texts:
    """Two encoded prompts, the same at each step."""

    def __init__(self, subject: Subject) -> None:
        negative, positive = subject.call["encoder_hidden_states"]
        self._guidance = Guidance(((Encoded(positive, None), 1.0),), Encoded(negative, None))

    def at(self, call: int) -> Guidance:
        return self._guidance


def steps(bench: Bench, stands: Callable[[Key], bool]) -> Iterator[Row]:
    """Yields a row for each work and way, for Stable Diffusion 1.5 at 512 pixels with three networks."""
    name, model = next(iter((TOY if bench.rehearse else MODELS).items()))
    build, count = STACKS[0]
    keys = [
        Key("default", name, *(("", "0") if path == BARE else (build, str(count))), f"{work}, {mode}", path)
        for work, mode in WORKS
        for path in WAYS
    ]
    todo = [key for key in keys if not stands(key)]
    subject = Subject(model, bench.device) if todo else None
    for key in todo:
        assert subject is not None
        yield {**key._asdict(), **measured(subject, key, bench)}


def measured(subject: Subject, key: Key, bench: Bench) -> dict[str, str]:
    """Returns the figures of one row, or what is wrong with it."""
    work, mode = key.work.split(", ")
    build, count = key.build, int(key.networks)
    kernel = dispatch.chosen_path(torch.device(bench.device)) if key.path == OURS else ""
    attached = with_hnetkit if key.path == OURS else plainly
    try:
        expected = subject.expected(build, count)  # of the UNet by itself
        with attached(subject.unet, subject.stacks(build, count)):
            if work == "step":
                figures = _of_step(subject, mode, expected, bench)
            else:
                figures = _of_picture(subject, mode, int(work.split()[0]), bench)
    except Exception as fault:  # a UNet that cannot be captured or compiled is a result like any other
        figures = {"wrong": fault_of(fault)}
    finally:
        if mode == COMPILED:
            torch.compiler.reset()
    return {**figures, "kernel": kernel}


def _of_step(subject: Subject, mode: str, expected: Expected, bench: Bench) -> dict[str, str]:
    unet = subject.unet
    if mode == COMPILED:
        backend = "aot_eager" if bench.rehearse else "inductor"
        unet = torch.compile(unet, backend=backend, dynamic=False)
    step = subject.step(unet)
    with contextlib.nullcontext() if mode == EAGER else hnetkit.capture(unet) as capture:
        for _ in range(3):
            output = step()
        if capture is not None and capture.obstacle is not None and not bench.rehearse:
            return {"wrong": f"not captured: {capture.obstacle}"}
        if wrong := error(output, expected):
            return {"wrong": wrong}
        return bench.figures(Called(step))


def _of_picture(subject: Subject, mode: str, steps: int, bench: Bench) -> dict[str, str]:
    plain, times = _picture(subject, steps), []
    for _ in range(1 if bench.rehearse else REPEATS):
        with contextlib.nullcontext() if mode == EAGER else hnetkit.capture(subject.unet) as capture:
            started = time.perf_counter()
            latents = _picture(subject, steps)
            times.append(1e3 * (time.perf_counter() - started))
            if capture is not None and capture.obstacle is not None and not bench.rehearse:
                return {"wrong": f"not captured: {capture.obstacle}"}
        if not torch.equal(latents, plain):
            return {"wrong": f"is {(latents - plain).norm() / plain.norm():.1e} off what it is uncaptured"}
    if bench.rehearse:
        return {}
    times = sorted(times)
    return {"ms": f"{statistics.median(times):.4f}", "ms_p10": f"{times[0]:.4f}", "ms_p90": f"{times[-1]:.4f}"}


def _picture(subject: Subject, steps: int) -> Tensor:
    """Returns the latents of a picture; the loop waits for the last step."""
    unet, device = subject.unet, subject.call["sample"].device
    shape = tuple(subject.call["sample"].shape[1:])
    noise = Noise(1, shape, source="cpu")
    scheduler = prepare_scheduler("Euler a", _SCHEDULE, steps)
    latents = noise.first()[None].to(device) * scheduler.init_noise_sigma
    size = shape[2] * 8, shape[1] * 8
    texts: Any = _Texts(subject)
    denoiser = Denoiser(_Pipe(unet, device), texts, 7.0, size)
    return sample(denoiser, scheduler, latents, [noise])
