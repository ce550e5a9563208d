"""One step of the optimizer: the losses of its samples, their gradients, and what is done with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hnetkit.generate.sampling.encoding import Encoded
from hnetkit.train.loss import Objective
from hnetkit.train.optimizer import set_rate
from hnetkit.train.order import seed_for
from hnetkit.train.prompts import Prompts, conditions

if TYPE_CHECKING:
    from hnetkit.distributed import Processes
    from hnetkit.train.data import Sample, TrainingData
    from hnetkit.train.latents import Latents
    from hnetkit.train.modules import TrainedNetwork
    from hnetkit.train.unet_hooks import Stacks


@dataclass(frozen=True, slots=True)
class Made:
    """What a step was like, the same in every process.

    Attributes:
        loss: mean over its samples.
        gradient_norm: of all parameters together, after unscaling and before clipping.
        is_skipped: mixed precision's scaler found gradients that are not finite, and left the step out.
        is_last: a process was asked to stop after it.
    """

    loss: float
    gradient_norm: float
    is_skipped: bool
    is_last: bool


@dataclass(eq=False)
class Stepper:
    """Makes the steps of a run.

    Attributes:
        unet: frozen.
        network: whose parameters are trained.
        stacks: in front of the UNet's attention, of the network and those that captions name beside it.
        optimizer: of them.
        scaler: of gradients where the UNet computes in fp16; it is off otherwise.
        data, latents, prompts: of the run.
        objective: what predictions are measured against.
        processes: that share each step.
    """

    unet: Any
    network: TrainedNetwork
    stacks: Stacks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    data: TrainingData
    latents: Sequence[Latents]
    prompts: Prompts
    objective: Objective
    processes: Processes

    def make(self, step: int, rate: float, clip_at: float | None, *, is_last: bool = False) -> Made:
        """Makes the step that turns `step` into `step` + 1.

        Args:
            rate: of learning.
            clip_at: what gradients are clipped at; None where they are not.
            is_last: whether this process was asked to stop.
        """
        self.optimizer.zero_grad(set_to_none=True)
        set_rate(self.optimizer, rate)
        count = self.data.recipe.samples_per_step
        total = torch.zeros((), device=self.unet.device)
        with self.stacks.on(self.unet):
            for piece, texts in self._pieces(step):
                loss = self._losses(piece, texts).sum() / count
                torch.autograd.backward(self.scaler.scale(loss))
                total += loss.detach()
        asked = torch.full((), float(is_last), device=total.device)
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        self.processes.all_reduce([total, asked, *(p.grad for p in parameters if p.grad is not None)])
        norm = self._clipped(parameters, clip_at)
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return Made(total.item(), norm, self.scaler.get_scale() < before, bool(asked.item()))

    @torch.no_grad()
    def measure(self, step: int) -> float:
        """Returns the loss that a step would have with the network as it is, without dropout."""
        self.network.eval()
        total = torch.zeros((), device=self.unet.device)
        with self.stacks.on(self.unet):
            for piece, texts in self._pieces(step):
                total += self._losses(piece, texts).sum() / self.data.recipe.samples_per_step
        self.network.train()
        self.processes.all_reduce([total])
        return total.item()

    def _pieces(self, step: int) -> Iterator[tuple[list[Sample], list[Encoded]]]:
        """Yields this process's samples of a step, those of one batch together, with their texts."""
        samples = [(number, sample) for number, batch in enumerate(self.data.step(step)) for sample in batch]
        for _, alike in groupby(self.processes.slice_of(samples), key=lambda item: item[0]):
            piece = [sample for _, sample in alike]
            yield piece, [self.prompts.encode(sample.prompt) for sample in piece]

    def _losses(self, samples: Sequence[Sample], texts: Sequence[Encoded]) -> Tensor:
        """Returns the loss ``[n]`` of samples of one size."""
        device, dtype, seed = self.unet.device, self.unet.dtype, self.data.recipe.seed
        drawn = [self._draw(sample, seed) for sample in samples]
        latents, noise, times = (torch.stack(list(part)).to(device) for part in zip(*drawn, strict=True))
        told = conditions(texts, self.data.pictures[samples[0].picture].size, device, dtype)
        torch.manual_seed(seed_for(seed, "dropout", samples[0].index))
        noisy = self.objective.noisy(latents, noise, times).to(dtype)
        self.stacks.choose([sample.stack for sample in samples], device)
        predicted = self.unet(noisy, times, return_dict=False, **told)[0]
        return self.objective.losses(predicted, latents, noise, times, self._weights(samples))

    def _draw(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns latents ``[4, h, w]``, noise of the same shape, and the time step ``[]`` of a sample."""
        generator = torch.Generator("cpu").manual_seed(seed_for(seed, "sample", sample.index))
        time = torch.randint(self.objective.steps, (), generator=generator)
        latents = self.latents[sample.picture]
        noise = torch.randn(latents.mean.shape, generator=generator)
        return latents.sample(generator), noise, time

    def _weights(self, samples: Sequence[Sample]) -> Tensor | None:
        weights = [self.latents[sample.picture].weight for sample in samples]
        if all(weight is None for weight in weights):
            return None
        plain = torch.ones(1, *self.latents[samples[0].picture].mean.shape[1:])
        return torch.stack([plain if weight is None else weight for weight in weights]).to(self.unet.device)

    def _clipped(self, parameters: Sequence[nn.Parameter], clip_at: float | None) -> float:
        """Unscales and clips gradients; returns their norm in between."""
        self.scaler.unscale_(self.optimizer)
        if clip_at is not None and self.data.recipe.clip_norm is not None:
            return nn.utils.clip_grad_norm_(parameters, clip_at).item()
        norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
        if clip_at is not None:
            nn.utils.clip_grad_value_(parameters, clip_at)
        return float(torch.linalg.vector_norm(torch.stack(norms)))
