"""The folder of one run: its record, its checkpoints and networks, and whether the run may be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from blake3 import blake3

from hnetkit.errors import HnetkitError, NotFound, OutputExists, RunChanged, UsageError
from hnetkit.files import exclusive_lock, is_absent, is_file_at, is_folder_at, is_there, new_file, refuse_links, stat_at
from hnetkit.limits import json_size, read_json
from hnetkit.text import shorten
from hnetkit.train.checkpoints import Checkpoints, TrainingState
from hnetkit.train.data import BUILT_IN_TEMPLATES, fingerprint_changes
from hnetkit.train.logs import CSV_NAME, PLOT_NAME, TENSORBOARD_NAME, has_no_step, other_columns
from hnetkit.train.recipe import FORMAT, MADE_OF_RECORD, MAX_RECORD, Recipe, dataclass_from_json, dataclass_to_json

if TYPE_CHECKING:
    from hnetkit.generate.model import Model
    from hnetkit.train.data import TrainingData


# what a run writes into or appends to; every other file is written under another name and then renamed
_WRITTEN_IN = (".lock", "state", "previews", TENSORBOARD_NAME, CSV_NAME)

_PLACES = ("pictures", "vae", "tokenizer")  # settings of a recipe that may be paths

_ELSEWHERE = "choose another --name or --out"
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, UsageError)  # errors of reading a record

StartMode = Literal["continue", "resume", "restart"]
"""``continue`` from a checkpoint if there is one, ``resume`` only from one, or ``restart``."""


@dataclass(frozen=True, slots=True)
class RunInputs:
    """The inputs of a run, by content: they must not change during the run.

    Attributes:
        pictures: name -> sha256 and caption of each image.
        model, vae, text_encoder: hashes of their weights; the model's is A1111's.
        start: content hash of the file that training began with; None for a new network.
        beside: name -> content hash of each network that captions may name.
        template: hash of the template's lines; empty in earlier records, which do not hold it.
    """

    pictures: Mapping[str, Any]
    model: str
    vae: str
    text_encoder: str
    start: str | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    template: str = ""

    def changes(self, now: RunInputs) -> list[str]:
        """Returns what has changed, one phrase each."""
        names = {
            "model": "the model",
            "vae": "the autoencoder",
            "text_encoder": "the text encoder",
            "start": "the network that training began with",
            "beside": "a network beside it",
        }
        changed = [
            f"{what} is another one" for name, what in names.items() if getattr(self, name) != getattr(now, name)
        ]
        if self.template and self.template != now.template:
            changed.append("the template has other lines")
        return [*fingerprint_changes(self.pictures, now.pictures), *changed]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run in ``folder``: ``recipe.json``, ``state/``, and everything named like the network."""

    folder: Path
    recipe: Recipe

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder / "state", self.recipe.keep)

    @property
    def record(self) -> Path:
        return self.folder / "recipe.json"

    @property
    def results(self) -> list[Path]:
        """The files of the finished network, which may not exist: ``NAME.safetensors`` and ``NAME.pt``."""
        return [self.folder / f"{self.recipe.name}{suffix}" for suffix in (".safetensors", ".pt")]

    def locked(self) -> AbstractContextManager[None]:
        """Locks the folder while the block lasts.

        Raises:
            HnetkitError: another command trains here.
        """
        busy = HnetkitError(f"{self.folder}: another command trains here", hint="choose another --name")
        return exclusive_lock(self.folder / ".lock", busy, elsewhere="choose another --out")

    def require_ours(self) -> None:
        """Raises OutputExists if the folder is something else, or holds files that no run wrote, or a link.

        A folder with files in it is used only if its record and its networks are of a run of this name: nothing else
        is ever replaced or removed.
        """
        if stat_at(self.folder) and not is_folder_at(self.folder):
            raise OutputExists(f"{self.folder}: a file, not a run's folder", hint=_ELSEWHERE)
        refuse_links(self.folder / name for name in _WRITTEN_IN)
        if is_there(self.record):
            self._require_own_record()
            self._require_own_networks()
            self._require_names()
        elif is_folder_at(self.folder):
            others = [path.name for path in self.folder.iterdir() if not path.name.startswith(".")]
            if others:
                raise OutputExists(f"{self.folder}: holds {sorted(others)[0]} and is no run's folder", hint=_ELSEWHERE)

    def require_same(self, start_mode: StartMode, inputs: RunInputs, *, force: bool) -> list[str]:
        """Returns what changed although the run continues, because of `force`.

        Raises:
            NotFound, OutputExists, RunChanged: as `require_same_recipe`.
            RunChanged: images or model are not those of the run so far.
        """
        before = self.require_same_recipe(start_mode)
        changed = [] if before is None else before.changes(inputs)
        if changed and not force:
            raise RunChanged(
                f"{self.folder}: changed since the last checkpoint: {'; '.join(changed)}",
                hint="--restart starts over, --force continues anyway",
            )
        return changed

    def require_same_recipe(self, start_mode: StartMode) -> RunInputs | None:
        """Returns the inputs of the run that is to continue, None of one that begins; no model is needed.

        Raises:
            NotFound: asked to resume, and there is nothing to resume.
            OutputExists: there is no checkpoint, and the run would replace what an earlier one made; or a restart
                would replace a network that the recipe names.
            RunChanged: the recipe is not that of the run so far.
        """
        has_state = is_there(self.record) and self.checkpoints.newest_folder is not None
        if start_mode == "resume" and not has_state:
            raise NotFound(f"{self.folder}: no checkpoint to resume from", hint="leave --resume out")
        if start_mode == "restart":
            self._require_given_elsewhere()
        if start_mode == "restart" or not is_there(self.record):
            return None
        recipe, before = self._read_record()
        self._require_no_difference(recipe)
        if not has_state:
            for path in self._replaced():
                raise OutputExists(
                    f"{path}: an earlier run made it, and there is no checkpoint to continue from",
                    hint="--restart starts over and replaces it; another --name or --out leaves it",
                )
            return None
        return before

    def network_to_load(self, start_mode: StartMode) -> str | None:
        """Returns the file that says how the network is built, None for a new one.

        A run that goes on loads its own last network, whose weights its checkpoint replaces: the one that it began with
        may be gone, or another one by now.
        """
        if self.recipe.start is None or start_mode == "restart" or self.checkpoints.newest_folder is None:
            return self.recipe.start
        return self.recipe.start if (last := self.last_snapshot) is None else os.fspath(last)

    def began_with(self) -> str | None:
        """Returns the content hash of the network that the run so far began with, by its record.

        Raises:
            RunChanged: there is no record that can be read.
        """
        return self._read_record()[1].start

    def require_same_steps(self, state: TrainingState) -> Recipe | None:
        """Returns the recipe that the steps of a checkpoint were made with, None where earlier versions wrote it.

        The checkpoint says it, and not the record, which people take for the place to change a recipe.

        Raises:
            RunChanged: it is not that of this run.
        """
        if (data := state.content.get("recipe")) is None:
            return None
        try:
            recipe = Recipe.from_json(data, str(self.checkpoints.folder))
        except UsageError as error:
            raise RunChanged(f"{error}", hint="--restart starts over") from error
        self._require_no_difference(recipe)
        return recipe

    def to_checkpoint(self) -> Any:
        """Returns the recipe as a checkpoint holds it."""
        return _placed(self.recipe).to_json()

    def made_with(self) -> Recipe:
        """Returns the recipe of the steps that were made, from the record.

        Raises:
            RunChanged: there is no record that can be read.
        """
        return self._read_record()[0]

    def is_finished(self, inputs: RunInputs, last_step: int) -> bool:
        """Whether the folder holds the network that a run with this recipe and these inputs ends with.

        Args:
            last_step: of the run.
        """
        from hnetkit.formats import load

        if self.checkpoints.newest_folder is None or not all(is_file_at(path) for path in (self.record, *self.results)):
            return False
        try:
            recipe, before = self._read_record()
            if _placed(recipe) != _placed(self.recipe) or before.changes(inputs):
                return False
            first, second = map(load, self.results)  # a power cut may have happened between the two
            return first.step == second.step == last_step and first.content_hash == second.content_hash
        except HnetkitError:
            return False

    def begin(self, inputs: RunInputs, *, afresh: bool) -> None:
        """Writes the record; `afresh` removes what an earlier run of the folder left.

        Raises:
            UsageError: the record would be too large to be read again, so that the run could not be resumed; nothing
                was changed.
        """
        data = {"format": FORMAT, "recipe": _placed(self.recipe).to_json(), "found": dataclass_to_json(inputs)}
        record = json.dumps(data, indent=2, ensure_ascii=False).encode() + b"\n"
        if len(record) > MAX_RECORD or json_size(record) > MADE_OF_RECORD:
            raise UsageError(
                f"{len(inputs.pictures):,} pictures and their captions are too much for the record of a run",
                hint="shorter captions, or fewer pictures",
            )
        if afresh:
            self._clear()
        with new_file(self.record, overwrite=True) as file:
            file.write(record)

    def snapshot(self, step: int) -> Path:
        """The path of the network after so many steps."""
        return self.folder / f"{self.recipe.name}-{step}.safetensors"

    @property
    def last_snapshot(self) -> Path | None:
        """The network of the latest step that has one of its own; None without any."""
        last = max(self._snapshots(), key=lambda snapshot: snapshot[1], default=None)
        return None if last is None else last[0]

    def remove_snapshots_after(self, step: int) -> None:
        """Removes snapshots of later steps, which are made again."""
        for path, made in self._snapshots():
            if made > step:
                path.unlink()

    def _snapshots(self) -> list[tuple[Path, int]]:
        """Returns the snapshots, each with its step."""
        return _numbered(self.folder, self.recipe.name, ".safetensors")

    def networks(self) -> Iterator[tuple[Path, int | None]]:
        """Yields each file named like the network; a snapshot with its step."""
        yield from ((path, None) for path in self.results if is_there(path))
        yield from self._snapshots()

    def _previews_and_records(self) -> list[Path]:
        """Returns the previews and TensorBoard's records that a run names so; other files beside them stay."""
        records = (self.folder / TENSORBOARD_NAME).glob("events.out.tfevents.*")
        return [*(path for path, _ in _numbered(self.folder / "previews", self.recipe.name, ".png")), *records]

    def _replaced(self) -> Iterator[Path]:
        """Yields what a new run would replace or remove, except for what a run writes before its first step."""
        yield from (path for path, _ in self.networks())
        log = self.folder / CSV_NAME
        if not has_no_step(log):
            yield from (path for path in (log, self.folder / PLOT_NAME) if is_there(path))
            yield from self._previews_and_records()

    def _clear(self) -> None:
        """Removes what a run left, except for the finished network, which the next one replaces."""
        self.checkpoints.clear()
        for path in (*(path for path, _ in self._snapshots()), *self._previews_and_records()):
            path.unlink()
        for name in (TENSORBOARD_NAME, "previews"):
            with suppress(OSError):  # not there, or something else is in it
                (self.folder / name).rmdir()

    def _require_no_difference(self, recipe: Recipe) -> None:
        differences = _placed(recipe).differences(_placed(self.recipe))
        if differences:
            raise RunChanged(
                f"{self.folder}: trained so far with {'; '.join(differences)}",
                hint="--restart starts over; --name or --out leaves this run as it is",
            )

    def _require_own_record(self) -> None:
        try:
            recipe, _ = self._load_record()
            if recipe.name != self.recipe.name:
                raise ValueError(f"it is of {recipe.name}")
        except _UNREADABLE as error:
            raise OutputExists(
                f"{self.record}: no record of a run of {self.recipe.name} ({error}): nothing beside it is replaced",
                hint=_ELSEWHERE,
            ) from error

    def _require_own_networks(self) -> None:
        from hnetkit.formats import load

        for path, step in self.networks():
            try:
                network = load(path)
                is_ours = network.metadata.get("name") == self.recipe.name and step in (None, network.step)
            except (HnetkitError, OSError):
                is_ours = False
            if not is_ours:
                raise OutputExists(
                    f"{path}: not what a run of {self.recipe.name} wrote, and one would replace it",
                    hint=f"move it away, or {_ELSEWHERE}",
                )

    def _require_names(self) -> None:
        """Raises OutputExists if something that a run writes hours later could not be written."""
        previews = (path for path, _ in _numbered(self.folder / "previews", self.recipe.name, ".png"))
        for path in (self.folder / CSV_NAME, self.folder / PLOT_NAME, *previews):
            if stat_at(path) and not is_file_at(path):
                raise OutputExists(
                    f"{path}: no file, and a run writes one there", hint=f"move it away, or {_ELSEWHERE}"
                )
        if others := other_columns(self.folder / CSV_NAME):
            raise OutputExists(
                f"{self.folder / CSV_NAME}: a run would write it again without the column {shorten(others[0])}",
                hint="move it away to keep it: the run goes on with a new table",
            )

    def _require_given_elsewhere(self) -> None:
        """Raises OutputExists if a restart would replace a network that the recipe starts from or names."""
        replaced = [path for path, _ in self.networks()]
        given = [file for file in (self.recipe.start, *self.recipe.beside) if file is not None]
        for file in map(Path, given):
            if stat_at(file) and any(file.samefile(path) for path in replaced):
                raise OutputExists(
                    f"{file}: the run is given it, and starting over would remove or replace it",
                    hint=f"copy it elsewhere, or {_ELSEWHERE}",
                )

    def _load_record(self) -> tuple[Recipe, Any]:
        """Returns the recipe of the record, and the run's inputs as JSON holds them."""
        data = read_json(self.record, most=MAX_RECORD, made=MADE_OF_RECORD)
        if data["format"] != FORMAT:
            raise ValueError("of another format")
        return Recipe.from_json(data["recipe"], str(self.record)), data["found"]

    def _read_record(self) -> tuple[Recipe, RunInputs]:
        try:
            recipe, data = self._load_record()
            inputs = dataclass_from_json(RunInputs, data, str(self.record))
            if not all(isinstance(about, list) and about for about in inputs.pictures.values()):
                raise ValueError("a picture has no hash")
            return recipe, inputs
        except _UNREADABLE as error:
            raise RunChanged(
                f"{self.record}: cannot be read ({error})", hint="--restart starts over; another --name leaves it"
            ) from error


def _placed(recipe: Recipe) -> Recipe:
    """Returns a recipe with the absolute paths of what it names: elsewhere other files may have these names."""

    def place(name: str) -> str:
        return name if is_absent(name) else os.path.abspath(name)  # a hub id, or gone

    named: dict[str, Any] = {key: place(value) for key in _PLACES if (value := getattr(recipe, key)) is not None}
    if recipe.start is not None:  # a file, though a run that goes on may do so without it
        named["start"] = os.path.abspath(recipe.start)
    template = recipe.template if recipe.template in BUILT_IN_TEMPLATES else place(recipe.template)
    return replace(recipe, **named, beside=tuple(map(place, recipe.beside)), template=template)


def inputs_of(data: TrainingData, model: Model, start: str | None, beside: Mapping[str, str]) -> RunInputs:
    """Returns the inputs of a run.

    Args:
        start: content hash of the network that training begins with.
        beside: name -> content hash of each network that captions may name.
    """
    pipe = model.pipe
    encoder = [pipe.vae.encoder, getattr(pipe.vae, "quant_conv", None)]  # training does not use its decoder
    text_encoders = [pipe.text_encoder, getattr(pipe, "text_encoder_2", None)]
    vae, text_encoder = (weights_hash([part for part in parts if part]) for parts in (encoder, text_encoders))
    return RunInputs(
        pictures=data.fingerprint,
        model=model.hash,
        vae=vae,
        text_encoder=text_encoder,
        start=start,
        beside=beside,
        template=blake3("\n".join(data.template.lines).encode()).hexdigest()[:16],
    )


def weights_hash(modules: list[Any]) -> str:
    """Returns a hash of the weights of modules as they are in memory: names, types and bytes."""
    import torch

    digest = blake3()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()[:16]


def _numbered(folder: Path, name: str, suffix: str) -> list[tuple[Path, int]]:
    """Returns the files of a folder that a run names by a step, as ``NAME-500.png``, each with the step."""
    found = []
    for path in folder.glob(f"*{suffix}"):
        own, _, digits = path.stem.rpartition("-")
        if own == name and digits.isdecimal() and digits == str(int(digits)):
            found.append((path, int(digits)))
    return found
