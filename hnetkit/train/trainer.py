"""A training run from start to end: check everything, prepare, train, save."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hnetkit.distributed import Processes
from hnetkit.errors import DamagedFile, OutOfMemory, UsageError
from hnetkit.files import stat_at
from hnetkit.generate.backend_errors import is_out_of_memory
from hnetkit.runtime.cuda_graphs import CudaGraphs
from hnetkit.runtime.fit import require_fit
from hnetkit.runtime.layers import contexts_of, find_layers
from hnetkit.runtime.stack import require_finite
from hnetkit.text import argument, size_text
from hnetkit.train.callbacks import NO_CALLBACKS, Callbacks
from hnetkit.train.captured_step import StepGraphs, obstacle_of_run
from hnetkit.train.checkpoints import TrainingState, require_disk_space
from hnetkit.train.data import TrainingData
from hnetkit.train.export import save_trained, to_hypernetwork
from hnetkit.train.frozen import FrozenInputs, encode_inputs, frozen_unet
from hnetkit.train.guards import Guards
from hnetkit.train.logs import Log
from hnetkit.train.loop import TrainingLoop
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.previews import Previews
from hnetkit.train.recipe import Recipe, require_one_build, schedules_of
from hnetkit.train.run_folder import RunFolder, RunInputs, StartMode, inputs_of
from hnetkit.train.schedules import Rates, end_of
from hnetkit.train.step import Objective, Stepper, make_optimizer
from hnetkit.train.unet_hooks import BatchStacks

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.network import Hypernetwork

_HINT = "--gradient-checkpointing, --precision bf16, or a smaller --batch-size with a larger --accumulation"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run.

    Attributes:
        folder: of the run.
        model: that it was trained on, as the recipe names it.
        files: the network, ``NAME.safetensors`` first; none but in the main process.
        started_from: content hash of the file that training began with; None for a new network.
        step: steps made in all.
        loss: its running mean.
        roll_backs: in all.
        unregistered: why the library does not have it; empty if it has.
    """

    folder: Path
    model: str
    files: tuple[Path, ...]
    started_from: str | None
    step: int
    loss: float
    roll_backs: int
    unregistered: str = ""

    @property
    def file(self) -> Path | None:
        """The network as ``NAME.safetensors``; None but in the main process."""
        return self.files[0] if self.files else None


def train(
    recipe: Recipe,
    model: Model,
    data: TrainingData,
    folder: Path,
    *,
    start_mode: StartMode = "continue",
    force: bool = False,
    callbacks: Callbacks = NO_CALLBACKS,
) -> TrainingResult:
    """Trains a network, from its last checkpoint where the folder has one, and saves it.

    Args:
        model: on its device; its UNet is brought to the recipe's precision and keeps it.
        data: what `hnetkit.train.data.read_data` gave for the recipe.
        folder: of this run alone; made where it is missing.
        start_mode: continue from a checkpoint if there is one, insist on one, or start over.
        force: continue although images or model changed.

    Raises:
        UsageError: invalid settings, before anything is computed.
        RunChanged: the folder's run was made with another recipe, other images or another model.
        NotFound: asked to resume, and there is nothing to resume.
        DamagedFile: a network to begin with, or beside the trained one, has values that are not finite.
        DiskFull: no room for a checkpoint; the previous one is complete.
        TrainingFailed: a guard stopped the run; the message names the last good network.
        OutOfMemory: a step needs more memory than there is.
        KeyboardInterrupt: Ctrl-C, after the step and with a checkpoint.
    """
    with ExitStack() as stack:
        parts = stack.enter_context(_set_up(recipe, model, data, folder, start_mode, callbacks))
        processes, rates, files = parts.processes, parts.rates, parts.files
        for change in files.require_same(start_mode, parts.inputs, force=force):
            callbacks.note(f"Warning: continuing although {change}")
        log = None
        if processes.is_main:
            stack.enter_context(files.locked())
            log = Log(folder, tensorboard=recipe.tensorboard)
            stack.callback(log.close)
            _require_disk_space(folder, parts.network, recipe, rates, callbacks.note)
        state = None if start_mode == "restart" else _read_checkpoint(files, callbacks.note)
        if state is not None and (made_with := files.require_same_steps(state)) is not None and processes.is_main:
            _say_other_rates(made_with, rates, state.step, callbacks.note)
        frozen = encode_inputs(model, data, callbacks.progress)
        stepper = _stepper(parts, data, frozen, callbacks.note)
        if stepper.graphs is not None:
            stack.callback(stepper.graphs.release)
        loop = TrainingLoop(
            recipe=recipe,
            files=files,
            stepper=stepper,
            guards=Guards(recipe.guards, rates.last_step),
            rates=rates,
            clip_at=schedules_of(recipe)[1],
            export=partial(_export, parts.network, model, recipe.name),
            log=log,
            previews=_previews(recipe, model, frozen, folder, callbacks) if processes.is_main else None,
            progress=callbacks.progress,
            report=callbacks.step,
            note=callbacks.note,
        )
        with _translating_oom(recipe):
            _write_record(parts, state)
            _begin(loop, state)
            del state  # as large as the network and the optimizer's moments together
            loop.run()
            loop.plot()
        saved = tuple(save_trained(loop.export(loop.step), folder)) if processes.is_main else ()
        processes.wait()
        return TrainingResult(
            folder=folder,
            model=recipe.model,
            files=saved,
            started_from=parts.inputs.start,
            step=loop.step,
            loss=loop.guards.running_mean,
            roll_backs=loop.guards.roll_backs,
        )


def check(
    recipe: Recipe,
    model: Model,
    data: TrainingData,
    folder: Path,
    *,
    start_mode: StartMode = "continue",
    force: bool = False,
) -> RunInputs:
    """Returns the inputs of a run that `train` could begin with the same arguments; writes nothing.

    Raises:
        UsageError, RunChanged, NotFound: as `train`, before its first step.
    """
    with _set_up(recipe, model, data, folder, start_mode, NO_CALLBACKS) as parts:
        parts.files.require_same(start_mode, parts.inputs, force=force)
        return parts.inputs


@dataclass(frozen=True, slots=True, eq=False)
class _SetUp:
    """The parts of a run, all checked.

    Attributes:
        processes: that share each step.
        rates: of learning.
        files: the run's folder.
        unet: frozen, in the recipe's precision.
        network: to train, on the UNet's device.
        stacks: put it, and those beside it, in front of the UNet's attention.
        optimizer: of the network's parameters.
        objective: what predictions are measured against.
        inputs: what the run is made on, by content.
    """

    processes: Processes
    rates: Rates
    files: RunFolder
    unet: Any
    network: TrainedNetwork
    stacks: BatchStacks
    optimizer: torch.optim.Optimizer
    objective: Objective
    inputs: RunInputs


@contextmanager
def _set_up(
    recipe: Recipe, model: Model, data: TrainingData, folder: Path, start_mode: StartMode, callbacks: Callbacks
) -> Iterator[_SetUp]:
    """Gives a run's parts, after every check that needs no step; afterwards the model is as before."""
    processes = Processes.of_accelerate(model.pipe.unet.device.type)
    rates = _checked_rates(recipe, data, processes, callbacks)
    files = RunFolder(folder, recipe)
    files.require_ours()
    with _preserving_generators(model.pipe.unet.device), frozen_unet(model, recipe) as unet:
        network, start = _network(files, start_mode, unet)
        others = _other_networks(recipe, unet)
        beside = {name: content_hash for name, (_, content_hash) in others.items()}
        yield _SetUp(
            processes=processes,
            rates=rates,
            files=files,
            unet=unet,
            network=network,
            stacks=BatchStacks({recipe.called: network, **{name: other for name, (other, _) in others.items()}}),
            optimizer=make_optimizer(
                recipe.optimizer, network.parameters(), recipe.optimizer_options, rates.rate_at(0)
            ),
            objective=Objective(model.scheduler_config, recipe.min_snr),
            inputs=inputs_of(data, model, start, beside),
        )


def _stepper(parts: _SetUp, data: TrainingData, frozen: FrozenInputs, note: Callable[[str], None]) -> Stepper:
    stepper = Stepper(
        unet=parts.unet,
        network=parts.network,
        stacks=parts.stacks,
        optimizer=parts.optimizer,
        scaler=torch.amp.GradScaler(parts.unet.device.type, enabled=data.recipe.precision == "fp16"),
        data=data,
        latents=frozen.latents,
        beside_latents=frozen.beside_latents,
        prompts=frozen.prompts,
        objective=parts.objective,
        processes=parts.processes,
    )
    if data.recipe.capture:
        stepper.graphs = _graphs(stepper, note)
    return stepper


def _graphs(stepper: Stepper, note: Callable[[str], None]) -> StepGraphs | None:
    """Returns the graphs that steps are made by; None, with a note, where they cannot be."""
    device = stepper.unet.device
    obstacle = obstacle_of_run(stepper.data.recipe, stepper.network.build, device, CudaGraphs)
    if obstacle is not None:
        note(f"Steps run without CUDA graphs: {obstacle}.")
        return None
    return StepGraphs(CudaGraphs(device), stepper.add_gradients, list(stepper.network.parameters()), note)


def _begin(loop: TrainingLoop, state: TrainingState | None) -> None:
    """Resumes from a checkpoint, or makes ready for the first step."""
    if state is not None:
        loop.resume(state)
        is_done = loop.step >= loop.last_step
        loop.note(_nothing_left(loop) if is_done else f"Resuming from step {loop.step}.")
    if loop.log is not None:
        loop.log.truncate_after(loop.step, loop.guards.roll_backs)
    if state is None:
        loop.begin()


def _nothing_left(loop: TrainingLoop) -> str:
    """Returns what to say of a run that has no step to make, with the option that gives it more."""
    end = end_of(loop.recipe.rates)
    further = "--max-steps" if end is None or end > loop.last_step else "a --rate whose schedule ends later"
    return f"All {loop.step} steps were made before: {further} continues the run, --restart starts over."


def _export(network: TrainedNetwork, model: Model, name: str, step: int) -> Hypernetwork:
    return to_hypernetwork(network, name=name, step=step, model_name=model.name, model_hash=model.hash)


def _previews(
    recipe: Recipe, model: Model, frozen: FrozenInputs, folder: Path, callbacks: Callbacks
) -> Previews | None:
    if not recipe.preview_every:
        return None
    return Previews(
        model,
        recipe.previews,
        folder / "previews",
        recipe.name,
        ready=frozen.pipeline_on_device,
        note=callbacks.note,
    )


def _checked_rates(recipe: Recipe, data: TrainingData, processes: Processes, callbacks: Callbacks) -> Rates:
    """Returns the rates of a run, after every check that needs no model."""
    if recipe.samples_per_step < processes.size:
        raise UsageError(
            f"{processes.size} processes share {recipe.samples_per_step} samples a step",
            hint=f"--batch-size {processes.size}, or --accumulation {processes.size}",
        )
    rates, clip_at = schedules_of(recipe)
    if processes.is_main:
        warnings = [*data.warnings(), *rates.warnings()]
        warnings += [f"clipping: {warning}" for warning in clip_at.warnings()] if clip_at else []
        for warning in warnings:
            callbacks.note(f"Warning: {warning}")
    return rates


def _network(files: RunFolder, start_mode: StartMode, unet: Any) -> tuple[TrainedNetwork, str | None]:
    """Returns the network to train, on the UNet's device, and the content hash of the file that it comes from."""
    recipe = files.recipe
    require_one_build(recipe)
    start: str | None
    if (file := files.network_to_load(start_mode)) is not None:
        network, start = _load_network(file, unet)
        if recipe.start is not None and file != recipe.start:
            start = files.began_with() if stat_at(recipe.start) is None else _content_hash(recipe.start)
    else:
        widths = sorted({layer.width for layer in find_layers(unet)})
        network, start = TrainedNetwork(recipe.build, widths, seed=recipe.seed), None
    network.to(unet.device).train()
    return network, start


def _other_networks(recipe: Recipe, unet: Any) -> dict[str, tuple[TrainedNetwork, str]]:
    """Returns the networks that captions may name, frozen, by name, each with its content hash."""
    loaded = {name: _load_network(file, unet) for name, file in zip(recipe.networks[1:], recipe.beside, strict=True)}
    for network, _ in loaded.values():
        network.to(unet.device).eval().requires_grad_(False)
    return loaded


def _content_hash(file: str) -> str:
    from hnetkit.formats.reading import read_unquoted

    return read_unquoted(file).content_hash


def _load_network(file: str, unet: Any) -> tuple[TrainedNetwork, str]:
    """Returns the network of a file, which must fit the UNet, and its content hash."""
    from hnetkit.formats.reading import read_unquoted

    loaded = read_unquoted(file)
    require_fit(loaded.name, loaded, contexts_of(unet, find_layers(unet)))
    for width, _, _, tensor in loaded.each_tensor():
        require_finite(tensor.torch(), file, width)
    return TrainedNetwork.from_hypernetwork(loaded), loaded.content_hash


def _read_checkpoint(files: RunFolder, note: Callable[[str], None]) -> TrainingState | None:
    """Returns the checkpoint to continue from, None to begin; damaged ones that are passed over for it are noted."""
    passed_over: list[DamagedFile] = []
    try:
        state = files.checkpoints.read(passed_over=passed_over.append)
    except DamagedFile as damaged:
        if (last := files.last_snapshot) is None:
            raise
        kept = f"--init-from {argument(last, is_path=True)} with another --name goes on from its weights"
        raise DamagedFile(str(damaged), hint=f"{kept}; --restart starts over, and removes them") from damaged
    if state is not None:
        for error in passed_over:
            note(f"Warning: {error}: its steps since step {state.step} are made again")
    return state


def _say_other_rates(made_with: Recipe, rates: Rates, step: int, note: Callable[[str], None]) -> None:
    if not schedules_of(made_with)[0].is_same_until(min(step, rates.last_step), rates):
        them = f"the {step} steps so far were made with the rates {made_with.rates}"
        note(f"Warning: {them}; the record, and `hnetkit show`, tell the new ones alone")


def _write_record(parts: _SetUp, state: TrainingState | None) -> None:
    """Says in the folder's record what is trained, and removes what an earlier run left if this one begins afresh.

    Where no step is left to make, the record keeps saying what all of them were made with.
    """
    parts.processes.wait()  # every process has read before the main one writes
    if parts.processes.is_main and (state is None or state.step < parts.rates.last_step):
        parts.files.begin(parts.inputs, afresh=state is None)


def _require_disk_space(
    folder: Path, network: TrainedNetwork, recipe: Recipe, rates: Rates, note: Callable[[str], None]
) -> None:
    """Raises DiskFull if not even one checkpoint has room; warns if not all that is to be written has."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    checkpoint = 3 * weights  # with an optimizer's two moments
    require_disk_space(folder, checkpoint + weights)
    snapshots = rates.last_step // recipe.save_every if recipe.save_every else 1
    needed = checkpoint * (recipe.keep + 1) + weights * (snapshots + 2)
    free = shutil.disk_usage(folder).free
    if free < needed:
        note(f"Warning: the run writes about {size_text(needed)} and {size_text(free)} are free in {folder}")


@contextmanager
def _preserving_generators(device: torch.device) -> Iterator[None]:
    """Restores torch's random generators afterwards."""
    on_device = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_device):
        yield


@contextmanager
def _translating_oom(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"not enough memory for a step of {recipe.batch_size} at once", hint=_HINT) from error
