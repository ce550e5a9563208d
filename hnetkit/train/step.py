"""One step of the optimizer: the losses of its samples, their gradients, and the update."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hnetkit.errors import ModelNotUsable, UsageError, did_you_mean
from hnetkit.train.batching import seed_for
from hnetkit.train.frozen import PromptCache, unet_arguments

if TYPE_CHECKING:
    from hnetkit.distributed import Processes
    from hnetkit.generate.sampling.encoding import Encoded
    from hnetkit.train.captured_step import StepGraphs
    from hnetkit.train.data import Sample, TrainingData
    from hnetkit.train.frozen import Latents
    from hnetkit.train.network import TrainedNetwork
    from hnetkit.train.unet_hooks import BatchStacks


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step was like, the same in every process.

    Attributes:
        loss: mean over its samples.
        gradient_norm: of all parameters together, after unscaling and before clipping.
        is_skipped: mixed precision's scaler found gradients that are not finite, and skipped the step.
        is_last: a process was asked to stop after it.
    """

    loss: float
    gradient_norm: float
    is_skipped: bool
    is_last: bool


@dataclass(eq=False, kw_only=True)
class Stepper:
    """Makes the steps of a run.

    Attributes:
        unet: frozen.
        network: whose parameters are trained.
        stacks: put it, and the networks that captions name beside it, in front of the UNet's attention.
        optimizer: of the network's parameters.
        scaler: of gradients, for a UNet that computes in fp16; otherwise disabled.
        data, latents, beside_latents, prompts: of the run; see `hnetkit.train.frozen.FrozenInputs`.
        objective: what predictions are measured against.
        processes: that share each step.
        graphs: that batches are made by; None makes them as they come.
    """

    unet: Any
    network: TrainedNetwork
    stacks: BatchStacks
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    data: TrainingData
    latents: Sequence[Latents]
    beside_latents: Mapping[tuple[int, int], Tensor]
    prompts: PromptCache
    objective: Objective
    processes: Processes
    graphs: StepGraphs | None = None

    def make_step(self, step: int, rate: float, clip_at: float | None, *, is_last: bool = False) -> StepResult:
        """Makes the step that turns `step` into `step` + 1.

        Args:
            rate: of learning.
            clip_at: what gradients are clipped at; None leaves them.
            is_last: whether this process was asked to stop.
        """
        self.optimizer.zero_grad(set_to_none=self.graphs is None)
        set_rate(self.optimizer, rate)
        total = torch.zeros((), device=self.unet.device)
        gain = self.scaler.scale(torch.ones_like(total))
        with self.stacks.on(self.unet):
            for samples, prompts in self._batches(step):
                batch, arguments = self._batch(samples, prompts)
                if self.graphs is None:
                    total += self.add_gradients(gain, *batch, **arguments)
                else:
                    total += self.graphs.add_gradients(self.stacks.shared, (gain, *batch), arguments)
        stop = torch.full((), float(is_last), device=total.device)
        parameters = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
        self.processes.all_reduce([total, stop, *(p.grad for p in parameters if p.grad is not None)])
        norm = self._unscale_and_clip(parameters, clip_at)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return StepResult(
            loss=total.item(),
            gradient_norm=norm,
            is_skipped=self.scaler.get_scale() < scale,  # the scaler's own sign that gradients were not finite
            is_last=bool(stop.item()),
        )

    @torch.no_grad()
    def measure(self, step: int) -> float:
        """Returns the loss that a step would have with the network as it is, without dropout."""
        self.network.eval()
        total = torch.zeros((), device=self.unet.device)
        with self.stacks.on(self.unet):
            for samples, prompts in self._batches(step):
                total += self._losses(samples, prompts).sum() / self.data.recipe.samples_per_step
        self.network.train()
        self.processes.all_reduce([total])
        return total.item()

    def _batches(self, step: int) -> Iterator[tuple[list[Sample], list[Encoded]]]:
        """Yields this process's samples of a step, those of one batch together, with their prompts."""
        numbered = [(number, sample) for number, batch in enumerate(self.data.step(step)) for sample in batch]
        for _, batch in groupby(self.processes.slice_of(numbered), key=lambda item: item[0]):
            samples = [sample for _, sample in batch]
            yield samples, [self.prompts.encode(sample.prompt) for sample in samples]

    def add_gradients(self, gain: Tensor, *batch: Tensor | None, **arguments: Any) -> Tensor:
        """Adds the gradients of a batch, times `gain`, to those of the parameters; returns its part of the loss."""
        loss = self._losses_of(*batch, **arguments).sum() / self.data.recipe.samples_per_step
        torch.autograd.backward(loss * gain)
        return loss.detach()

    def _losses(self, samples: Sequence[Sample], prompts: Sequence[Encoded]) -> Tensor:
        """Returns the loss ``[n]`` of samples of one size."""
        batch, arguments = self._batch(samples, prompts)
        return self._losses_of(*batch, **arguments)

    def _losses_of(
        self,
        noisy: Tensor | None,
        times: Tensor | None,
        target: Tensor | None,
        weights: Tensor | None,
        time_weights: Tensor | None,
        **arguments: Any,
    ) -> Tensor:
        """Returns the loss ``[n]`` of a batch; see `_batch`."""
        predicted = self.unet(noisy, times, return_dict=False, **arguments)[0]
        assert target is not None
        return weighed_losses(predicted, target, weights, time_weights)

    def _batch(
        self, samples: Sequence[Sample], prompts: Sequence[Encoded]
    ) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
        """Returns all that the loss of samples of one size is computed from, on the device.

        That is what the UNet reads ``[n, 4 or 9, h, w]``, time steps ``[n]``, the target of its predictions ``[n, 4, h,
        w]``, the weights of the loss in each place and of each sample, or None; and other arguments of the UNet.
        """
        device, dtype, seed = self.unet.device, self.unet.dtype, self.data.recipe.seed
        size = self.data.images[samples[0].image].size
        drawn = [self._draw(sample, seed) for sample in samples]
        latents, noise, times = (torch.stack(list(part)).to(device) for part in zip(*drawn, strict=True))
        arguments = unet_arguments(prompts, size, device, dtype)
        torch.manual_seed(seed_for(seed, "dropout", samples[0].index))
        noisy = self.objective.add_noise(latents, noise, times).to(dtype)
        if size in self.beside_latents:
            beside = self.beside_latents[size].to(noisy).expand(len(noisy), -1, -1, -1)
            noisy = torch.cat([noisy, beside], dim=1)
        self.stacks.choose([sample.stack for sample in samples], device)
        target = self.objective.target(latents, noise, times)
        return (noisy, times, target, self._weights(samples), self.objective.weights_of(times)), arguments

    def _draw(self, sample: Sample, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns latents ``[4, h, w]``, noise of the same shape, and the time step ``[]`` of a sample."""
        generator = torch.Generator("cpu").manual_seed(seed_for(seed, "sample", sample.index))
        time = torch.randint(self.objective.steps, (), generator=generator)
        latents = self.latents[sample.image]
        noise = torch.randn(latents.mean.shape, generator=generator)
        return latents.sample(generator), noise, time

    def _weights(self, samples: Sequence[Sample]) -> Tensor | None:
        """Returns the weights ``[n, 1, h, w]`` of the samples' loss; None if all of it weighs the same."""
        weights = [self.latents[sample.image].weight for sample in samples]
        if all(weight is None for weight in weights):
            return None
        ones = torch.ones(1, *self.latents[samples[0].image].mean.shape[1:])
        return torch.stack([ones if weight is None else weight for weight in weights]).to(self.unet.device)

    def _unscale_and_clip(self, parameters: Sequence[nn.Parameter], clip_at: float | None) -> float:
        """Unscales and clips gradients; returns their norm in between."""
        self.scaler.unscale_(self.optimizer)
        if clip_at is not None and self.data.recipe.clip_norm is not None:
            return nn.utils.clip_grad_norm_(parameters, clip_at).item()
        norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
        if clip_at is not None:
            nn.utils.clip_grad_value_(parameters, clip_at)
        return float(torch.linalg.vector_norm(torch.stack(norms)))


# --- losses

Prediction = Literal["epsilon", "v_prediction", "sample"]


class Objective:
    """The noise schedule of a model, and the loss of its predictions.

    Args:
        scheduler_config: of the scheduler that came with the model.
        min_snr: gamma of min-SNR weighting (Hang et al. 2023); None weighs every time step the same.

    Attributes:
        prediction: what the model was trained to predict.
        steps: time steps of the schedule.

    Raises:
        ModelNotUsable: it predicts something else.
    """

    def __init__(self, scheduler_config: Mapping[str, Any], min_snr: float | None = None) -> None:
        from diffusers import DDPMScheduler

        self._schedule = DDPMScheduler.from_config(dict(scheduler_config))
        self.prediction: Prediction = self._schedule.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ModelNotUsable(f"the model predicts {self.prediction}, which cannot be trained on")
        self.steps = int(self._schedule.config.num_train_timesteps)
        self._min_snr = min_snr

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Returns latents ``[n, 4, h, w]`` with the noise of their time steps ``[n]``."""
        result: Tensor = self._schedule.add_noise(latents, noise, times)
        return result

    def losses(
        self, predicted: Tensor, latents: Tensor, noise: Tensor, times: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Returns the loss ``[n]`` of each sample, in fp32.

        Args:
            predicted: by the UNet, ``[n, 4, h, w]``.
            weights: ``[n, 1, h, w]``; None weighs everything the same.
        """
        return weighed_losses(predicted, self.target(latents, noise, times), weights, self.weights_of(times))

    def weights_of(self, times: Tensor) -> Tensor | None:
        """Returns the weights ``[n]`` of time steps ``[n]``; None if all weigh the same."""
        return None if self._min_snr is None else self.time_weights(times)

    def time_weights(self, times: Tensor) -> Tensor:
        """Returns the min-SNR weight ``[n]`` of time steps ``[n]``."""
        assert self._min_snr is not None
        kept = self._schedule.alphas_cumprod.to(times.device)[times].double()
        ratio = kept / (1 - kept)  # of signal to noise
        clipped = ratio.clamp(max=self._min_snr)
        if self.prediction == "epsilon":
            clipped = torch.where(ratio > 0, clipped / ratio, torch.ones_like(ratio))
        elif self.prediction == "v_prediction":
            clipped = clipped / (ratio + 1)
        weights: Tensor = clipped.float()
        return weights

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Returns what the model should predict, ``[n, 4, h, w]``."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        velocity: Tensor = self._schedule.get_velocity(latents, noise, times)
        return velocity


def weighed_losses(predicted: Tensor, target: Tensor, weights: Tensor | None, time_weights: Tensor | None) -> Tensor:
    """Returns the loss ``[n]`` of each sample in fp32; `weights` ``[n, 1, h, w]``, `time_weights` ``[n]``."""
    errors = (predicted.float() - target.float()).square()
    if weights is not None:
        errors = errors * weights
    losses = errors.mean((1, 2, 3))
    return losses if time_weights is None else losses * time_weights


# --- the optimizer

_UNFIT: Mapping[str, str] = {
    "LBFGS": "it computes the loss several times a step",
    "SparseAdam": "it takes sparse gradients alone",
}
_FUSED = ("Adam", "AdamW", "SGD")  # these have a fused kernel, which reads and writes every value once
_MOST_KEPT = 32  # values that an optimizer keeps of a parameter: torch's keep up to six
_PATHS = frozenset({"fused", "foreach", "differentiable"})  # options that choose an implementation


def make_optimizer(
    name: str, parameters: Iterable[Parameter], options: Mapping[str, Any], rate: float
) -> torch.optim.Optimizer:
    """Returns a new optimizer.

    Args:
        name: of a class of ``torch.optim``, in upper or lower case.
        options: keyword arguments beside the rate, as JSON gives them: lists stand for tuples.
        rate: of its first step.

    Raises:
        UsageError: torch has no such optimizer, it cannot train a hypernetwork, or it does not take the options.
    """
    classes = {found.__name__: found for found in vars(torch.optim).values() if _is_optimizer(found)}
    chosen = next((known for known in classes if known.casefold() == name.casefold()), None)
    if chosen is None:
        near = did_you_mean(name, classes) or ", ".join(sorted(set(classes) - set(_UNFIT)))
        raise UsageError(f"torch has no optimizer {name}", hint=f"--optimizer {near}")
    if chosen in _UNFIT:
        raise UsageError(f"{chosen} cannot train a hypernetwork: {_UNFIT[chosen]}", hint="--optimizer AdamW")
    if "lr" in options:
        raise UsageError("the optimizer's rate comes from the schedule", hint="--rate 1e-5, and no lr in the options")
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    trained = list(parameters)
    on_device = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    if chosen in _FUSED and on_device and not _PATHS & set(arguments):
        arguments["fused"] = True
    try:
        _try_step(classes[chosen], {**arguments, "lr": rate}, trained[:1])  # some check their options no earlier
        optimizer: torch.optim.Optimizer = classes[chosen](trained, lr=rate, **arguments)
    except MemoryError:
        raise
    except Exception as error:
        raise UsageError(f"{chosen} does not take {dict(options)}: {error}") from error
    return optimizer


def require_optimizer(name: str, options: Mapping[str, Any]) -> None:
    """Raises UsageError where `make_optimizer` would, before there is anything to train."""
    make_optimizer(name, [Parameter(torch.zeros(2, 2))], options, rate=1e-5)


def _try_step(kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any], like: list[Parameter]) -> None:
    """Makes a step with an optimizer of one small parameter, on the device of the trained ones."""
    parameter = Parameter(torch.zeros(2, 2, device=like[0].device if like else None))
    parameter.grad = torch.ones_like(parameter)
    kind([parameter], **arguments).step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Makes `rate` the learning rate of the next step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads what ``state_dict()`` of an equal optimizer gave, but for its settings, which are those of the recipe.

    Every tensor keeps its type, which torch's own ``load_state_dict`` changes to that of the parameter.

    Raises:
        ValueError, KeyError, TypeError: it is of another optimizer.
    """
    _require_optimizer_state(optimizer, state)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state["state"]})
    for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in state["state"].get(number, {}).items():
            if isinstance(value, torch.Tensor):
                kept = optimizer.state[parameter][key]
                optimizer.state[parameter][key] = value.to(kept.device, copy=True)


def _require_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Raises ValueError if a state is none that an optimizer keeps of its parameters: its next step would fail.

    A checkpoint may name one huge tensor many times, and each would be copied.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    all_usual = {number: _kept_of_one(optimizer, number) for number in {p.ndim for p in parameters}}
    for number, parameter in enumerate(parameters):
        kept, usual = state["state"].get(number, {}), all_usual[parameter.ndim]
        if len(kept) > _MOST_KEPT:
            raise ValueError(f"optimizer: {len(kept)} values for one parameter")
        for key, value in kept.items():
            if isinstance(value, torch.Tensor) and value.numel() > max(1, parameter.numel()):
                raise ValueError(f"optimizer: {key} is {list(value.shape)} for a parameter of {list(parameter.shape)}")
        if kept and kept.keys() != usual.keys():
            raise ValueError("optimizer: it keeps other values of a parameter")
        for key, value in kept.items():
            if not _is_alike(value, usual[key], parameter):
                raise ValueError(f"optimizer: {key} cannot be what it keeps of a parameter")
    if len(state["state"]) > len(parameters):
        raise ValueError(f"optimizer: it is of {len(state['state'])} parameters, not of {len(parameters)}")


def _kept_of_one(optimizer: torch.optim.Optimizer, dimensions: int) -> Mapping[str, Any]:
    """Returns what an optimizer like this one keeps of a parameter with sides of 2 after a step."""
    parameter = Parameter(torch.zeros((2,) * dimensions, device=optimizer.param_groups[0]["params"][0].device))
    parameter.grad = torch.ones_like(parameter)
    taken = inspect.signature(type(optimizer)).parameters  # torch adds defaults that are no arguments
    like = type(optimizer)([parameter], **{key: value for key, value in optimizer.defaults.items() if key in taken})
    like.step()
    return dict(like.state[parameter])


def _is_alike(value: Any, usual: Any, parameter: Parameter) -> bool:
    """Whether a value has the type, and of a tensor the shape, that an optimizer keeps of a parameter.

    Args:
        usual: what it keeps of one with as many sides, all of 2.
    """
    if not isinstance(usual, torch.Tensor):
        return type(value) is type(usual)
    if not isinstance(value, torch.Tensor) or value.is_floating_point() != usual.is_floating_point():
        return False
    return usual.shape != (2,) * parameter.ndim or value.shape == parameter.shape


def _is_optimizer(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found is not torch.optim.Optimizer
