"""Part `train`: a training step of one network at Stable Diffusion's size, beside a plain loop; and its memory.

    plain loop         every layer applies the MLPs anew, in torch's own modules, under autocast
    hnetkit            a step of `hnetkit train` as it is
    hnetkit, captured  the same with `--capture`: forward and backward pass as CUDA graphs

Latents and text are given: nothing is encoded. All three make the same steps from the same weights, and are right where
their gradients are those of the plain loop, but for rounding. `peak_mb` is what torch has reserved at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gpu_parts.clock import Bench, Called
from gpu_parts.record import Key, Row, fault_of
from gpu_parts.unet import MODELS, TOY, Model, Subject, replacing
from hnetkit.distributed import Processes
from hnetkit.generate.sampling.encoding import Encoded
from hnetkit.runtime.cuda_graphs import CudaGraphs, Graphs
from hnetkit.train.build import Build
from hnetkit.train.captured_step import StepGraphs
from hnetkit.train.frozen import DTYPES, Latents
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.step import Objective, Stepper, make_optimizer
from hnetkit.train.unet_hooks import BatchStacks

PLAIN, OURS, CAPTURED = "plain loop", "hnetkit", "hnetkit, captured"
PATHS = (PLAIN, OURS, CAPTURED)
WORKS = (("bf16", 1), ("fp16", 1), ("bf16", 4))
"""Precision of the UNet, and batch size, in the order of what is most telling."""

BUILD = Build(structure=(1, 2, 1), activation="swish", zero_output=False)
RATE = 1e-5
CHECKED_STEPS = 3
LIMIT = 0.1
"""Of the difference between gradients, as a part of them: what they come from is rounded to 8 bits many times."""

_SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def steps(bench: Bench, stands: Callable[[Key], bool], graphs: type[Graphs] | None = None) -> Iterator[Row]:
    """Yields a row for each precision, batch size and path, for Stable Diffusion 1.5 at 512 pixels.

    Args:
        graphs: what captures; None for CUDA's, and for nothing in a rehearsal.
    """
    name, model = next(iter((TOY if bench.rehearse else MODELS).items()))
    if graphs is None and not bench.rehearse:
        graphs = CudaGraphs
    for precision, batch in WORKS:
        keys = [Key("train", name, "[1,2,1] swish", "1", f"{precision}, batch {batch}", path) for path in PATHS]
        todo = [key for key in keys if not stands(key)]
        work = _Work(model, bench.device, precision, batch) if todo else None
        for key in todo:
            assert work is not None
            with torch.enable_grad():
                yield {**key._asdict(), **_measured(work, key.path, bench, graphs)}


def _measured(work: _Work, path: str, bench: Bench, graphs: type[Graphs] | None) -> dict[str, str]:
    """Returns the figures of one path, or what is wrong with it."""
    try:
        expected = work.expected()
        if not bench.rehearse:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = _Run(work, path, graphs)
        wrong = error(run.gradients(), expected)
        if wrong is None and run.graphs is not None and not run.graphs.captures:
            wrong = "nothing was captured"
        figures = {"wrong": wrong} if wrong else bench.figures(Called(run.step))
        if not bench.rehearse:
            figures["peak_mb"] = f"{torch.cuda.max_memory_reserved() / 1e6:.0f}"
        if run.graphs is not None:
            run.graphs.release()
    except Exception as fault:  # a step that cannot be captured, or does not fit, is a result like any other
        figures = {"wrong": fault_of(fault)}
    return figures


def error(gradients: list[Tensor], expected: list[Tensor]) -> str | None:
    """Says how the gradients of steps are wrong; None where they are right."""
    for got, there in zip(gradients, expected, strict=True):
        if not torch.isfinite(got).all():
            return "gradients are not finite"
        off = float((got - there).norm() / there.norm())
        if off > LIMIT:
            return f"gradients are {off:.1e} off those of the plain loop"
    return None


class _Work:
    """A frozen UNet, and the samples of one batch, with other noise in each step: a run's data and prompts."""

    def __init__(self, model: Model, device: str, precision: str, batch: int) -> None:
        self.widths, self.device = model.widths, torch.device(device)
        self.unet = Subject(model, device).unet.to(DTYPES[precision])
        self.recipe = SimpleNamespace(precision=precision, samples_per_step=batch, seed=0, clip_norm=None)
        size: int = self.unet.config.sample_size
        noise = torch.Generator().manual_seed(0)
        self.latents = [Latents(torch.randn(4, size, size, generator=noise)) for _ in range(batch)]
        self._text = Encoded(torch.randn(77, self.unet.config.cross_attention_dim, generator=noise), None)
        self.images = [SimpleNamespace(size=(8 * size, 8 * size))] * batch
        self._expected: list[Tensor] = []

    def step(self, number: int) -> list[list[Any]]:
        """Returns the samples of a step, in one batch, as `hnetkit.train.data.TrainingData` does."""
        count, same = len(self.latents), {"prompt": "a house", "stack": (("ink", 1.0),)}
        return [[SimpleNamespace(index=number * count + place, image=place, **same) for place in range(count)]]

    def encode(self, prompt: str) -> Encoded:
        return self._text

    def expected(self) -> list[Tensor]:
        """Returns the gradients of the first steps of a plain loop; it is run once."""
        if not self._expected:
            self._expected = _Run(self, PLAIN, None).gradients()
        return self._expected


class _Run:
    """Steps from the first weights on, made by one path."""

    def __init__(self, work: Any, path: str, graphs: type[Graphs] | None) -> None:
        self._work, self._is_plain, self._made = work, path == PLAIN, 0
        self._network = TrainedNetwork(BUILD, work.widths, seed=0).to(work.device).train()
        self._parameters = list(self._network.parameters())
        self._stepper = Stepper(
            unet=work.unet,
            network=self._network,
            stacks=BatchStacks({"ink": self._network}),
            optimizer=make_optimizer("AdamW", self._parameters, {}, RATE),
            scaler=torch.amp.GradScaler(work.device.type, enabled=work.recipe.precision == "fp16", init_scale=256.0),
            data=work,
            latents=work.latents,
            beside_latents={},
            prompts=work,
            objective=Objective(_SCHEDULE),
            processes=Processes(),
        )
        self.graphs: StepGraphs | None = None
        if path == CAPTURED and graphs is not None:
            self.graphs = StepGraphs(graphs(work.device), self._stepper.add_gradients, self._parameters, print)
            self._stepper.graphs = self.graphs

    def step(self) -> None:
        """Makes the next step."""
        number, self._made = self._made, self._made + 1
        if not self._is_plain:
            self._stepper.make_step(number, RATE, None)
            return
        stepper, (samples,) = self._stepper, self._work.step(number)
        batch, arguments = stepper._batch(samples, [self._work.encode("")] * len(samples))
        stepper.optimizer.zero_grad()
        with replacing(stepper.unet, self._plainly), torch.autocast(self._work.device.type, stepper.unet.dtype):
            loss = stepper._losses_of(*batch, **arguments).mean()
        torch.autograd.backward(stepper.scaler.scale(loss))
        stepper.scaler.unscale_(stepper.optimizer)
        stepper.scaler.step(stepper.optimizer)
        stepper.scaler.update()
        loss.item()

    def _plainly(self, x: Tensor, side: int) -> Tensor:
        return x + self._network.mlp(x.shape[-1], "kv"[side]).linear(x)  # type: ignore[arg-type]

    def gradients(self) -> list[Tensor]:
        """Makes the first steps, and returns the gradients of each as a vector."""
        found = []
        for _ in range(CHECKED_STEPS):
            self.step()
            found.append(
                torch.cat(
                    [parameter.grad.flatten() for parameter in self._parameters if parameter.grad is not None]
                ).clone()
            )
        return found
