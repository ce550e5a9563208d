"""A training run: everything is read and checked, then made ready, then trained, then saved."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hnetkit.distributed import Processes
from hnetkit.errors import OutOfMemory, UsageError
from hnetkit.generate.backend_errors import is_out_of_memory
from hnetkit.runtime.layers import find_layers, require_fit
from hnetkit.train.build import Build
from hnetkit.train.checkpoints import TrainingState, require_room
from hnetkit.train.data import TrainingData
from hnetkit.train.export import save_trained, to_hypernetwork
from hnetkit.train.frozen import FrozenInputs, Progress, encode_inputs, frozen_unet
from hnetkit.train.guards import Guards
from hnetkit.train.logs import Log
from hnetkit.train.loop import TrainingLoop, TrainingReport
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.previews import Previews
from hnetkit.train.recipe import Recipe
from hnetkit.train.run_folder import RunFolder, RunInputs, StartMode, find
from hnetkit.train.schedules import Rates, schedule
from hnetkit.train.step import Objective, Stepper, make_optimizer
from hnetkit.train.unet_hooks import BatchStacks

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.network import Hypernetwork

_HINT = "--gradient-checkpointing, --precision bf16, or a smaller --batch-size with a larger --accumulate"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A run that came to its end.

    Attributes:
        folder: of the run.
        files: the network, as it is kept: ``NAME.safetensors`` first; none but in the main process.
        started_from: content hash of the file that training began with; None for a new network.
        step: steps made in all.
        loss: its running mean.
        roll_backs: in all.
    """

    folder: Path
    files: tuple[Path, ...]
    started_from: str | None
    step: int
    loss: float
    roll_backs: int

    @property
    def file(self) -> Path | None:
        """The network as ``NAME.safetensors``; None but in the main process."""
        return self.files[0] if self.files else None


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Who is told what happens.

    Attributes:
        note: takes a line for the person.
        progress: takes what is being made ready, how much of it is, and how much there is.
        step: takes where the run is, after each step.
    """

    note: Callable[[str], None] = lambda line: None
    progress: Progress = lambda what, done, total: None
    step: Callable[[TrainingReport], None] = lambda report: None


def train(
    recipe: Recipe,
    model: Model,
    data: TrainingData,
    folder: Path,
    *,
    beginning: StartMode = "go on",
    force: bool = False,
    told: Callbacks = Callbacks(),
) -> TrainingResult:
    """Trains a network, from its last checkpoint where the folder has one, and saves it.

    Args:
        model: on its device; its UNet is brought to the recipe's precision and keeps it.
        data: what `hnetkit.train.data.read_data` gave for the recipe.
        folder: of this run alone; made where it is not there.
        beginning: whether to go on, to insist on that, or to start over.
        force: go on although pictures or model changed.

    Raises:
        UsageError: settings that cannot be meant, before anything is computed.
        RunChanged: the folder's run was made with another recipe, other pictures or another model.
        NotFound: asked to resume, and there is nothing to resume.
        DiskFull: no room for a checkpoint; the one before is whole.
        TrainingFailed: a guard stopped the run; the message names the last good network.
        OutOfMemory: a step needs more than there is.
        KeyboardInterrupt: Ctrl-C, after the step and with a checkpoint.
    """
    with ExitStack() as stack:
        processes, rates, files, unet, network, stacks, optimizer, objective, found = stack.enter_context(
            _set_up(recipe, model, data, folder, told)
        )
        for change in files.require_same(beginning, found, force=force):
            told.note(f"Warning: going on although {change}")
        log = None
        if processes.is_main:
            stack.enter_context(files.locked())
            log = Log(folder, tensorboard=recipe.tensorboard)
            stack.callback(log.close)
            _require_room(folder, network, recipe, rates, told.note)
        state = _begin(files, found, processes, beginning, rates.last_step)
        material = encode_inputs(model, data, told.progress)
        scaler = torch.amp.GradScaler(unet.device.type, enabled=recipe.precision == "fp16")
        run = TrainingLoop(
            recipe=recipe,
            files=files,
            stepper=Stepper(
                *(unet, network, stacks, optimizer, scaler),
                *(data, material.latents, material.prompts, objective, processes),
            ),
            guards=Guards(recipe.guards, rates.last_step),
            rates=rates,
            clip_at=_clip_at(recipe, rates),
            as_file=partial(_as_file, network, model, recipe.name),
            log=log,
            previews=_previews(recipe, model, material, folder) if processes.is_main else None,
            report=told.step,
            say=told.note,
        )
        with _needing_memory(recipe):
            _go(run, state)
        saved = tuple(save_trained(run.as_file(run.step), folder)) if processes.is_main else ()
        processes.wait()
        return TrainingResult(folder, saved, found.start, run.step, run.guards.running_mean, run.guards.roll_backs)


def check(
    recipe: Recipe,
    model: Model,
    data: TrainingData,
    folder: Path,
    *,
    beginning: StartMode = "go on",
    force: bool = False,
) -> RunInputs:
    """Returns what a run is made on, where `train` with the same arguments could begin; nothing is written or said.

    Raises:
        UsageError, RunChanged, NotFound: as `train`, before its first step.
    """
    with _set_up(recipe, model, data, folder, Callbacks()) as run:
        run.files.require_same(beginning, run.found, force=force)
        return run.found


class _SetUp(NamedTuple):
    processes: Processes
    rates: Rates
    files: RunFolder
    unet: Any
    network: TrainedNetwork
    stacks: BatchStacks
    optimizer: torch.optim.Optimizer
    objective: Objective
    found: RunInputs


@contextmanager
def _set_up(recipe: Recipe, model: Model, data: TrainingData, folder: Path, told: Callbacks) -> Iterator[_SetUp]:
    """Gives a run's parts, after all that can be told of them without a step; the model is as before afterwards."""
    processes = Processes.of_accelerate(model.pipe.unet.device.type)
    rates = _checked(recipe, data, processes, told)
    files = RunFolder(folder, recipe)
    files.require_ours()
    with _own_generators(model.pipe.unet.device), frozen_unet(model, recipe) as unet:
        network, start = _network(recipe, unet)
        beside = _beside(recipe, unet)
        stacks = BatchStacks({recipe.called: network, **{name: other for name, (other, _) in beside.items()}})
        optimizer = make_optimizer(recipe.optimizer, network.parameters(), recipe.optimizer_options, rates.rate_at(0))
        objective = Objective(model.scheduler_config, recipe.min_snr)
        found = find(data, model, start, {name: content for name, (_, content) in beside.items()})
        yield _SetUp(processes, rates, files, unet, network, stacks, optimizer, objective, found)


def _go(run: TrainingLoop, state: TrainingState | None) -> None:
    """Makes the steps that are missing, from a checkpoint where there is one."""
    if state is not None:
        run.go_on_from(state)
        is_done = run.step >= run.last_step
        done = f"All {run.step} steps are made already: --max-steps goes further, --restart starts over."
        run.say(done if is_done else f"Going on from step {run.step}.")
    if run.log is not None:
        run.log.truncate_after(run.step, run.guards.roll_backs)
    if state is None:
        run.open()
    run.go()
    run.plot()


def _as_file(network: TrainedNetwork, model: Model, name: str, step: int) -> Hypernetwork:
    return to_hypernetwork(network, name=name, step=step, model_name=model.name, model_hash=model.hash)


def _previews(recipe: Recipe, model: Model, material: FrozenInputs, folder: Path) -> Previews | None:
    if not recipe.preview_every:
        return None
    return Previews(model, recipe.previews, folder / "previews", recipe.name, ready=material.drawing)


def _checked(recipe: Recipe, data: TrainingData, processes: Processes, told: Callbacks) -> Rates:
    """Returns the rates of a run, after everything that can be told of it without computing."""
    if recipe.samples_per_step < processes.size:
        raise UsageError(
            f"{processes.size} processes share {recipe.samples_per_step} samples a step",
            hint=f"--batch-size {processes.size}, or --accumulate {processes.size}",
        )
    rates = schedule(recipe.rates, recipe.max_steps)
    clip_at = _clip_at(recipe, rates)
    if processes.is_main:
        warnings = [*data.warnings(), *rates.warnings()]
        warnings += [f"clipping: {warning}" for warning in clip_at.warnings()] if clip_at else []
        for warning in warnings:
            told.note(f"Warning: {warning}")
    return rates


def _clip_at(recipe: Recipe, rates: Rates) -> Rates | None:
    return None if recipe.clip_at is None else Rates(recipe.clip_at, rates.last_step)


def _network(recipe: Recipe, unet: Any) -> tuple[TrainedNetwork, str | None]:
    """Returns the network to train, on the UNet's device, and the content hash of the file that it comes from."""
    if recipe.start is not None:
        if recipe.build != Build():
            raise UsageError(f"{recipe.start} says how the network is built", hint="leave --structure and the like out")
        network, start = _read(recipe.start, unet)
    else:
        widths = sorted({layer.width for layer in find_layers(unet)})
        network, start = TrainedNetwork(recipe.build, widths, seed=recipe.seed), None
    network.to(unet.device).train()
    return network, start


def _beside(recipe: Recipe, unet: Any) -> dict[str, tuple[TrainedNetwork, str]]:
    """Returns the networks that captions may name, frozen, by name, each with its content hash."""
    read = {name: _read(file, unet) for name, file in zip(recipe.networks[1:], recipe.beside, strict=True)}
    for network, _ in read.values():
        network.to(unet.device).eval().requires_grad_(False)
    return read


def _read(file: str, unet: Any) -> tuple[TrainedNetwork, str]:
    """Returns the network of a file, which must fit the UNet, and its content hash."""
    from hnetkit.formats import load

    loaded = load(file)
    require_fit(loaded.name, loaded, unet, find_layers(unet), force=False)
    return TrainedNetwork.of(loaded), loaded.content_hash


def _begin(
    files: RunFolder, found: RunInputs, processes: Processes, beginning: StartMode, last_step: int
) -> TrainingState | None:
    """Returns the checkpoint to go on from, None to begin; the folder then says what is trained.

    Where no step is left to make, it goes on saying what all of them were made with.
    """
    state = None if beginning == "restart" else files.states.read()
    processes.wait()  # every process has read before the main one writes
    if processes.is_main and (state is None or state.step < last_step):
        files.begin(found, afresh=state is None)
    return state


def _require_room(
    folder: Path, network: TrainedNetwork, recipe: Recipe, rates: Rates, say: Callable[[str], None]
) -> None:
    """Raises DiskFull where not even one checkpoint has room; says so where not all that is to be written has."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    checkpoint = 3 * weights  # with an optimizer's two moments
    require_room(folder, checkpoint + weights)
    snapshots = rates.last_step // recipe.save_every if recipe.save_every else 1
    needed = checkpoint * (recipe.keep + 1) + weights * (snapshots + 2)
    free = shutil.disk_usage(folder).free
    if free < needed:
        say(f"Warning: the run writes about {needed >> 20} MB and {free >> 20} MB are free in {folder}")


@contextmanager
def _own_generators(device: torch.device) -> Iterator[None]:
    """Leaves torch's generators as they are for whoever comes after."""
    on_device = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_device):
        yield


@contextmanager
def _needing_memory(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"not enough memory for a step of {recipe.batch_size} at once", hint=_HINT) from error
