"""`train` and `sweep` for Python: read the images of a recipe, load its model, train, register the files.

torch is imported when one of the two is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from hnetkit import demo, settings
from hnetkit.distributed import Processes
from hnetkit.errors import HnetkitError, NotFound, OutputExists, RegistryError, UsageError, require_extra
from hnetkit.files import is_absent, is_file_at, stat_at
from hnetkit.text import argument
from hnetkit.train.callbacks import Callbacks, Progress

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.library.library import AnyPath, Library
    from hnetkit.library.scan import Note
    from hnetkit.train.callbacks import TrainingReport
    from hnetkit.train.recipe import Recipe
    from hnetkit.train.run_folder import RunFolder, StartMode
    from hnetkit.train.sweeps import RunOutcome, Sweep
    from hnetkit.train.trainer import TrainingResult
    from hnetkit.train.variations import VariedSetting

_DTYPES = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
_UNCHANGED: Mapping[str, Any] = MappingProxyType({})


def train(
    recipe: Recipe | Mapping[str, Any] | AnyPath,
    model: Model | AnyPath | None = None,
    *,
    changes: Mapping[str, Any] = _UNCHANGED,
    out: AnyPath = "training",
    resume: bool = False,
    restart: bool = False,
    force: bool = False,
    device: str | None = None,
    note: Note | None = None,
    progress: Progress | None = None,
    step: Callable[[TrainingReport], None] | None = None,
    library: Library | None = None,
) -> TrainingResult:
    """Trains a hypernetwork, and returns its files, its steps and its loss.

    The run has a folder of its own, ``OUT/NAME``, with the network as ``NAME.safetensors`` and ``NAME.pt``, snapshots
    of it, checkpoints, previews, a log and ``recipe.json``. Called again, it resumes from the last checkpoint, with the
    same result as if it had never stopped. Ctrl-C, SIGTERM and SIGHUP end it after the step, with a checkpoint.

    Args:
        recipe: a `hnetkit.train.recipe.Recipe`, its settings as JSON holds them, or a file of them, such as a run's
            ``recipe.json``. ``name`` and ``pictures`` are required; other settings have defaults.
        model: a diffusers folder, a hub id, a checkpoint in one file, or a loaded model, whose UNet then keeps the
            recipe's precision. None is the recipe's, else the one of ``hnetkit config``, else the demo model.
        changes: setting -> value that overrides the recipe's, ``{"max_steps": 3000, "build.activation": "relu"}``.
        out: the parent of the run's folder.
        resume: refuses to begin if there is no checkpoint to resume.
        restart: starts over, and removes what the run made so far, but no last file of a network with words of yours.
        force: continues although images or model have changed.
        device: where to compute: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``; a loaded model stays where it is. None
            is the one of ``hnetkit config``, else ``"auto"``.
        note: called with each line that a user should read.
        progress: called with what is being prepared, how much is done, and how much there is.
        step: called after each step with where the run is.
        library: for the network; None is that of the command line.

    Raises:
        UsageError: invalid settings, before anything is computed.
        NotFound: a file, a folder or a model is missing, or there is nothing to resume.
        BadPicture: an image cannot be read.
        RunChanged: the folder's run was made with another recipe, other images or another model.
        OutputExists: the folder holds files that no run of this name made; or starting over would remove the last file
            of a network with tags, a note or an alias.
        TrainingFailed: a guard stopped the run; the message names the last good network.
        OutOfMemory: a step needs more memory than there is.
        DiskFull: no room for a checkpoint; the previous one is complete.
        MissingExtra: a package for training is not installed.
    """
    require_extra("diffusers", "training")
    from hnetkit.train.data import read_data
    from hnetkit.train.recipe import make_recipe
    from hnetkit.train.run_folder import RunFolder

    if resume and restart:
        raise UsageError("--resume and --restart say the opposite", hint="leave one of them out")
    start_mode: StartMode = "resume" if resume else "restart" if restart else "continue"
    callbacks = _callbacks(note=note, progress=progress, step=step)
    source = _ModelSource.of(model, device)
    make = partial(make_recipe, recipe, source.changes(changes))
    whole = make(source.defaults())
    folder = Path(out) / whole.name
    _require_networks(RunFolder(folder, whole), start_mode, library)
    _require_none_lost([RunFolder(folder, whole)], start_mode, library)
    source.require_sense(RunFolder(folder, whole), start_mode)
    data = read_data(whole, partial(callbacks.progress, "Reading pictures"))
    # until here without torch
    from hnetkit.train.export import register_run
    from hnetkit.train.step import require_optimizer
    from hnetkit.train.trainer import train as run

    whole = make({**source.defaults(), "precision": source.precision()})
    data = replace(data, recipe=whole)
    require_optimizer(whole.optimizer, whole.optimizer_options)
    RunFolder(folder, whole).require_same_recipe(start_mode)
    loaded = source.load(whole, callbacks)
    result = run(whole, loaded, data, folder, start_mode=start_mode, force=force, callbacks=callbacks)
    if result.files:
        start = result.started_from
        why = register_run(library, result.folder, whole, loaded, result.files, start, callbacks.note)
        result = replace(result, unregistered=why)
    return result


def sweep(
    recipe: Recipe | Mapping[str, Any] | AnyPath,
    model: Model | AnyPath | None = None,
    *,
    vary: Mapping[str, Sequence[Any] | Mapping[str, Any]] | Sequence[VariedSetting],
    changes: Mapping[str, Any] = _UNCHANGED,
    out: AnyPath = "training",
    restart: bool = False,
    force: bool = False,
    device: str | None = None,
    note: Note | None = None,
    progress: Progress | None = None,
    step: Callable[[TrainingReport], None] | None = None,
    made: Callable[[RunOutcome], None] | None = None,
    library: Library | None = None,
) -> list[RunOutcome]:
    """Trains one network by several recipes, and returns the outcome of each run.

    There is a run for each combination of what varies, in ``OUT/NAME`` in a folder named by what differs. Model,
    precision and previews are the same for all: the model is loaded once. ``OUT/NAME/sweep.png`` shows a row for each
    run below a row without a network, ``sweep.csv`` has the numbers. Called again, it resumes where it stopped:
    finished runs are not made again, and values may be added. A run that a guard stops is an outcome with a `failure`,
    and the others are made.

    Args:
        recipe: of all runs, as `train` takes it.
        vary: setting -> values, ``{"rates": ["1e-5", "1e-6"], "build.layer_norm": [True, False]}``; the keys of a
            mapping instead of a list say how values are written in names; ``{"recipe": {"soft": RECIPE, "hard":
            RECIPE}}`` varies whole recipes.
        changes: setting -> value that overrides the recipes', for all runs.
        restart: starts every run over, and removes what it made so far.
        made: called with the outcome of each run.
        model, out, force, device, note, progress, step, library: as for `train`.

    Raises:
        UsageError: invalid values, runs that do not differ, or the fault of one run, before the first one begins.
        HnetkitError: as `train`, except TrainingFailed.
    """
    require_extra("diffusers", "training")
    from hnetkit.train.run_folder import RunFolder
    from hnetkit.train.sweeps import plan_sweep, run_sweep
    from hnetkit.train.variations import VariedSetting

    start_mode: StartMode = "restart" if restart else "continue"
    callbacks = _callbacks(note=note, progress=progress, step=step)
    source = _ModelSource.of(model, device)
    varied = [VariedSetting.of(*setting) for setting in vary.items()] if isinstance(vary, Mapping) else vary

    def planned(defaults: Mapping[str, Any]) -> Sweep:
        return plan_sweep(recipe, varied, source.changes(changes), defaults, Path(out))

    plan = planned(source.defaults())
    plan.require_ours()
    for made_run in plan.runs:
        _require_networks(RunFolder(made_run.folder, made_run.recipe), start_mode, library)
    _require_none_lost([RunFolder(made_run.folder, made_run.recipe) for made_run in plan.runs], start_mode, library)
    for made_run in plan.runs:
        with made_run.naming_errors():
            source.require_sense(RunFolder(made_run.folder, made_run.recipe), start_mode)
    data = plan.read(partial(callbacks.progress, "Reading pictures"))
    plan = planned({**source.defaults(), "precision": source.precision()})
    data = [replace(own, recipe=made_run.recipe) for own, made_run in zip(data, plan.runs, strict=True)]
    from hnetkit.train.step import require_optimizer

    for made_run in plan.runs:
        with made_run.naming_errors():
            require_optimizer(made_run.recipe.optimizer, made_run.recipe.optimizer_options)
            RunFolder(made_run.folder, made_run.recipe).require_same_recipe(start_mode)
    loaded = source.load(plan.runs[0].recipe, callbacks)
    return run_sweep(
        plan,
        loaded,
        data,
        start_mode=start_mode,
        force=force,
        callbacks=callbacks,
        made=made,
        library=library,
    )


def _callbacks(**given: Any) -> Callbacks:
    return Callbacks(**{name: callback for name, callback in given.items() if callback is not None})


def _require_networks(run: RunFolder, start_mode: StartMode, library: Library | None) -> None:
    """Raises NotFound if a network that training reads is no file; the hint is the file of the network of that name."""
    start = run.network_to_load(start_mode)
    for option, file in (("--init-from", start), *(("--with", file) for file in run.recipe.beside)):
        if file is not None and stat_at(file) is None:
            place = _file_of(file, library)
            hint = f"{option} {'FILE' if place is None else argument(place, is_path=True)}"
            raise NotFound(f"{file}: no such file", hint=hint)


def _require_none_lost(runs: Iterable[RunFolder], start_mode: StartMode, library: Library | None) -> None:
    """Raises OutputExists if starting over would remove the last file of a network that somebody tagged or noted."""
    from hnetkit.library.library import Library
    from hnetkit.library.scan import last_with_words

    if start_mode != "restart":
        return
    replaced = [path for run in runs for path, _ in run.networks()]
    try:
        with nullcontext(library) if library else Library() as opened:
            last = last_with_words(opened.registry, replaced) if replaced else None
    except RegistryError:  # as for what is trained: a library that cannot be opened ends no training
        return
    if last is not None:
        raise OutputExists(
            f"{last}: the last file of a network with your tags, note or alias, and starting over would remove it",
            hint=f"hnetkit remove {argument(last, is_path=True)} moves it to the trash; another --name leaves it",
        )


def _file_of(name: str, library: Library | None) -> Path | None:
    """Returns the file of a network that comes with the demo model, or that the library has."""
    from hnetkit.library.library import Library

    if name in demo.networks():
        return demo.networks()[name]
    try:
        with nullcontext(library) if library else Library() as opened:
            return opened.find(name)
    except HnetkitError:  # the name is no network's, or its file is gone too
        return None


class _ModelSource(NamedTuple):
    """Where the model comes from.

    Attributes:
        source: an absolute path or a hub id; None for the default or a loaded model.
        loaded: a model that is loaded already.
        device: to compute on, by the name that was asked for.
    """

    source: str | None
    loaded: Model | None
    device: str

    @classmethod
    def of(cls, model: Model | AnyPath | None, device: str | None) -> _ModelSource:
        from hnetkit.generate.model import chosen_device

        if model is None or isinstance(model, str | os.PathLike):
            source = None if model is None else os.fspath(model)
            if source is not None and not is_absent(source):  # no hub id: the recipe may be read in another folder
                source = os.path.abspath(source)
            return cls(source, None, chosen_device(device))
        return cls(None, model, model.pipe.unet.device.type)

    def changes(self, changes: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns changes of a recipe, with the model if one was given."""
        return changes if self.source is None else {**changes, "model": self.source}

    def defaults(self) -> dict[str, Any]:
        """Returns the settings of a recipe that depend on `hnetkit config`."""
        if self.loaded:
            return {"model": self.loaded.name}
        from hnetkit.generate.model import ModelSource

        source = ModelSource(self.source)
        tokenizer = source.own_tokenizer if is_file_at(source.location) else None
        parts = {"vae": source.own_vae, "tokenizer": tokenizer}
        model = settings.get("model") or str(demo.model_folder())
        return {"model": model, **{key: os.fspath(value) for key, value in parts.items() if value is not None}}

    def precision(self) -> str:
        """Returns the precision that suits the device, where a recipe says none.

        Raises:
            UsageError: this machine has no such device.
        """
        from hnetkit.generate.model import device_of

        if device_of(self.device) != "cuda":
            return "no"
        import torch

        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"

    def require_sense(self, run: RunFolder, start_mode: StartMode) -> None:
        """Raises what is wrong with a run and can be told without torch; its images are not looked at.

        Raises:
            UsageError, NotFound, ModelNotUsable: invalid settings, or no such model.
            OutputExists, RunChanged: the folder holds something else.
            FileRefused, IncompatibleNetwork: a network that the recipe names cannot be read, or is for another model.
        """
        from hnetkit.formats.reading import read_unquoted
        from hnetkit.generate.model import ModelSource
        from hnetkit.generate.prompt_networks import ResolvedNetwork
        from hnetkit.train.recipe import require_one_build, schedules_of

        recipe = run.recipe
        schedules_of(recipe)
        require_one_build(recipe)
        run.require_ours()
        if self.loaded is not None:
            return
        place = None if self._is_fallback(recipe) else recipe.model
        source = ModelSource(place, vae=recipe.vae, tokenizer=recipe.tokenizer)
        files = [file for file in (run.network_to_load(start_mode), *recipe.beside) if file is not None]
        networks = [ResolvedNetwork(network.name, network) for network in map(read_unquoted, files)]
        with settings.naming(model=self.source, vae=None, tokenizer=None):
            source.require_fit(networks, source.outline())

    def _is_fallback(self, recipe: Recipe) -> bool:
        """Whether nobody chose a model, so that the bundled one is trained on."""
        return self.source is None and os.path.realpath(recipe.model) == str(demo.model_folder())

    def load(self, recipe: Recipe, callbacks: Callbacks) -> Model:
        """Returns the model of a recipe, in its precision."""
        from hnetkit.generate.model import device_of, load_model

        if self.loaded is not None:
            return self.loaded
        if self._is_fallback(recipe):
            callbacks.note(
                "No --model: training on the bundled demo model. `hnetkit config model FOLDER` sets another."
            )
        device = device_of(self.device)
        if device == "cuda":
            import torch

            torch.cuda.set_device(Processes.of_environment().local_rank)
        callbacks.progress("Loading the model", 0, 1)
        model = load_model(
            recipe.model,
            device=device,
            dtype=_DTYPES[recipe.precision],
            vae=recipe.vae,
            tokenizer=recipe.tokenizer,
            captured=False,  # previews capture it while they draw: graphs take memory that training needs
        )
        for line in model.notes:
            callbacks.note(line)
        return model
