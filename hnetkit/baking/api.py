"""`bake`: the networks of a pipeline's stack as a LoRA, as full weights, or as a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import torch
from torch import Tensor

from hnetkit.baking.changes import Changes, Rounding
from hnetkit.baking.checkpoint import differences, require_copyable, weights_dtype, write_checkpoint
from hnetkit.baking.contributions import NamedStack, StackOnLayers
from hnetkit.baking.key_sets import Program, named_tensors, require_key_set
from hnetkit.baking.making import USUAL_RANK, Form, make_changes
from hnetkit.baking.networks import MIXES, SUFFIXES, BakedNetwork, Mix, merge_networks
from hnetkit.baking.picture_plan import plan_pictures
from hnetkit.baking.pictures import Comparison, FitDrawing, Progress
from hnetkit.baking.record import refuse_all_but_baked
from hnetkit.baking.refining import MOST_REFINE_STEPS, calls_for
from hnetkit.errors import NotFound, UsageError
from hnetkit.files import SAFETENSORS_SUFFIXES, is_folder_at, new_file, suffixed
from hnetkit.formats.writing import require_output as require_network_output
from hnetkit.formats.writing import source_sha256, write_tensors
from hnetkit.generate.loading.baked import EARLIER, METADATA, record_of
from hnetkit.generate.loading.defaults import Defaults
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.model import Model
from hnetkit.library.bakes import record_bake
from hnetkit.network import DType, TensorRef
from hnetkit.runtime.adapters import applied, named_networks
from hnetkit.runtime.layers import Layer, find_layers
from hnetkit.runtime.strength import KINDS, SIDES, Strength
from hnetkit.text import argument

if TYPE_CHECKING:
    from hnetkit.library.library import Library

Target = Literal["lora", "diff", "checkpoint"]
TARGETS = ("lora", "diff", "checkpoint", "hypernetwork")

_DTYPES: Mapping[DType, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Baked:
    """A stack as changes of a UNet's weights, in the form that a program loads.

    Attributes:
        to: the target.
        program: that the tensors are named for; None for a checkpoint.
        changes: by layer and side.
        dtype: of the tensors; of a checkpoint, its own.
        pictures: drawn without networks, with them, and with what was baked; None where nothing was drawn.
        record: what it was made of and how, and every error after rounding, as JSON holds it.
    """

    to: Target
    program: Program | None
    changes: Changes
    dtype: DType
    pictures: Comparison | None
    record: Mapping[str, Any]
    _outputs: Mapping[Layer, Tensor] = field(repr=False)
    _model: str | None = field(repr=False)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names that the program reads, each rounded once; of a checkpoint, the differences."""
        if self.to == "checkpoint":
            return differences(self.changes, self._outputs)
        exact = named_tensors(self.changes, self._outputs, self.to, cast(Program, self.program))
        rounded = {name: tensor.to(_DTYPES[self.dtype]).cpu() for name, tensor in exact.items()}
        for name, tensor in rounded.items():
            if not torch.isfinite(tensor).all():
                raise Rounding(self.dtype).too_large(name)
        return rounded

    @property
    def errors(self) -> dict[str, float]:
        """The relative error of each projection in the file, on contexts that it was not fitted on.

        Where it is exact, that is what rounding takes away, of the values themselves.
        """
        return {f"{layer.name}.to_{side}": change.error for (layer, side), change in self.changes.items()}

    @property
    def is_exact(self) -> bool:
        return all(change.origin == "exact" for change in self.changes.values())

    @property
    def metadata(self) -> dict[str, str]:
        """The header of the file."""
        return {"format": "pt", METADATA: json.dumps(self.record, allow_nan=False)}

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False, library: Library | None = None) -> Path:
        """Writes the file, or the copy of the model, whole or not at all.

        Args:
            path: a ``.safetensors`` file; for a checkpoint, a file or a folder as its model is one.
            overwrite: replace a file that is there. A folder is never replaced.
            library: records what was baked to which file, and shows it with each of the networks.

        Raises:
            OutputExists, NotFound, DiskFull, UsageError: it cannot be written there.
            FileRefused: a value does not fit the type of the tensors.
            RegistryError: it is written, and cannot be recorded.
        """
        target = Path(path)
        require_output(self.to, self._model, target, overwrite=overwrite)
        if self.to == "checkpoint":
            write_checkpoint(cast(str, self._model), target, self.tensors, self.metadata, overwrite=overwrite)
        else:
            refs = {name: TensorRef.of(tensor) for name, tensor in self.tensors.items()}
            with new_file(target, overwrite=overwrite) as file:
                write_tensors(file, refs, self.metadata, name=str(target))
        if library is not None:
            record_bake(library.registry, target, self.record)
        return target


@overload
def bake(
    pipe: Any,
    names: str | Sequence[str] | Mapping[str, float | Strength | None] | None = ...,
    strengths: float | Strength | Sequence[float | Strength | None] | None = ...,
    *,
    to: Target = ...,
    mix: Mix = ...,
    program: Program | None = ...,
    rank: int | None = ...,
    max_error: float | None = ...,
    refine: int = ...,
    prompts: Sequence[str] | None = ...,
    steps: int | None = ...,
    size: tuple[int, int] | None = ...,
    seed: int = ...,
    dtype: DType | None = ...,
    compare: bool = ...,
    progress: Progress | None = ...,
) -> Baked: ...


@overload
def bake(
    pipe: Any,
    names: str | Sequence[str] | Mapping[str, float | Strength | None] | None = ...,
    strengths: float | Strength | Sequence[float | Strength | None] | None = ...,
    *,
    to: Literal["hypernetwork"],
    mix: Mix = ...,
    program: Program | None = ...,
    rank: int | None = ...,
    max_error: float | None = ...,
    refine: int = ...,
    prompts: Sequence[str] | None = ...,
    steps: int | None = ...,
    size: tuple[int, int] | None = ...,
    seed: int = ...,
    dtype: DType | None = ...,
    compare: bool = ...,
    progress: Progress | None = ...,
) -> BakedNetwork: ...


def bake(
    pipe: Any,
    names: str | Sequence[str] | Mapping[str, float | Strength | None] | None = None,
    strengths: float | Strength | Sequence[float | Strength | None] | None = None,
    *,
    to: Target | Literal["hypernetwork"] = "lora",
    mix: Mix = "stack",
    program: Program | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    refine: int = 0,
    prompts: Sequence[str] | None = None,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    dtype: DType | None = None,
    compare: bool = False,
    progress: Progress | None = None,
) -> Baked | BakedNetwork:
    """Turns loaded networks, at fixed strengths, into weights that other programs load.

    Networks without an activation are written down exactly. All others are fitted to the contexts that the model's
    layers see while it draws with the networks, and the error is measured on pictures that they were not fitted on.

    Args:
        pipe: a pipeline, or what `hnetkit.load_model` gave, with the networks loaded on it.
        names, strengths: as for `hnetkit.set_hypernetworks`; without names, the active stack. No windows of steps.
        to: ``"lora"``, ``"diff"`` (full differences), ``"checkpoint"``: the model's files with the stack in them, or
            ``"hypernetwork"``: one network, where one does exactly the same.
        mix: of a hypernetwork: ``"stack"``; ``"parallel"``, where each network sees the same context; or
            ``"average"``, of the weights, which does what none of them does.
        program: ``"diffusers"``, ``"comfyui"`` (and Forge), or ``"a1111"`` (and SD.Next); diffusers where it is not
            given, for a LoRA.
        rank: of a LoRA. Where neither this nor `max_error` is given, exact parts have the rank that they need, and with
            fitted ones all have `USUAL_RANK` at most.
        max_error: relative error that the worst layer and side may have. Without `rank`, it chooses the ranks.
        refine: steps of an optimizer that brings what was fitted nearer to the networks, as a whole.
        prompts: that contexts are gathered from, every fourth held out; None for the model's own, or general ones.
        steps: sampling steps of these pictures; None is the model's default.
        size: (width, height) of these pictures in pixels; None is the model's default.
        seed: of these pictures.
        dtype: of the tensors: ``"fp32"``, ``"fp16"`` or ``"bf16"``; None is that of the UNet. A checkpoint keeps
            its own.
        compare: draw pictures with and without, also where all is exact.
        progress: called with the pictures that are drawn, counting parts of the current one, and their number.

    Raises:
        UsageError: the stack is empty or limited to some steps, a number is out of its range, or the program cannot
            read what is asked for.
        NotFound: a name that is not loaded, or, for a checkpoint, the files of the model.
        IncompatibleNetwork: the networks change nothing on this UNet, or a value does not fit the UNet's dtype.
        AttachError: the UNet's projections are fused, or a LoRA is on them.
        DamagedFile: a network has NaN or infinity among its values.
        FileRefused: a value does not fit the type of the tensors.
        BadPicture: a picture came out NaN.
        TooInexact: the error is above `max_error`.
    """
    model = _as_loaded(pipe)
    stack = named_networks(model.pipe, names, strengths)
    require_options(to, mix=mix, program=program, rank=rank, max_error=max_error, refine=refine, dtype=dtype)
    if to == "hypernetwork":
        texts = {layer.width for layer in find_layers(model.pipe.unet) if layer.kind == "cross"}
        return bake_network(stack, texts, mix=mix, dtype=dtype)
    made_with = {"model": model.name, "model_hash": model.hash if isinstance(model, Model) else None}
    with applied(model.pipe, {}):
        on_layers = StackOnLayers(model.pipe.unet, stack)
        _require_rank(rank, on_layers)
        if to != "checkpoint":
            program = require_key_set(to, program, has_constant=not on_layers.is_affine)
        own_dtype: DType = next((short for short, kind in _DTYPES.items() if kind == model.pipe.unet.dtype), "fp32")
        place = model.source.location if isinstance(model, Model) else None
        written: DType = dtype or own_dtype
        if to == "checkpoint":
            written = own_dtype if place is None else weights_dtype(place)
        rounding = Rounding(written, of_sums=to == "checkpoint")
        form = Form(to == "lora", rounding, rank, max_error, is_shared=program == "diffusers")
        plan = plan_pictures(model, prompts, steps=steps, size=size, seed=seed, calls=calls_for(refine))
        drawing = FitDrawing(model, stack, on_layers, plan, progress, refine)
        changes = make_changes(on_layers, drawing.gather, form, drawing.refine if refine else None)
        pictures = drawing.compare(changes, rounding) if drawing.has_drawn or compare else None
        outputs = {layer: on_layers.projections(layer).output for layer in on_layers.layers}
    record = _record(stack, made_with, to, program, written, changes, drawing, pictures, refine)
    if to == "checkpoint" and isinstance(model, Model) and (earlier := record_of(model.weights)):
        record[EARLIER] = earlier
    return Baked(to, program, changes, written, pictures, record, outputs, place)


def bake_network(
    stack: NamedStack, text_widths: Collection[int], *, mix: Mix, dtype: DType | None = None, name: str | None = None
) -> BakedNetwork:
    """Returns networks as one; see `hnetkit.baking.networks.merge_networks`.

    Args:
        name: shown by A1111; None joins those of the networks.
    """
    made = "-".join(own_name for own_name, _, _ in stack)
    network = merge_networks(stack, text_widths, mix=mix, name=name or made, dtype=dtype or "fp32")
    return BakedNetwork(network, {"networks": _networks_record(stack), "to": "hypernetwork", "mix": mix})


def require_options(
    to: str,
    *,
    mix: str = "stack",
    program: str | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    refine: int = 0,
    dtype: str | None = None,
) -> None:
    """Raises UsageError for a target that there is not, a number out of its range, or what a target does not take."""
    if to not in TARGETS:
        raise UsageError(
            f"{to}: nothing that networks are baked to", hint="--to lora, diff, checkpoint or hypernetwork"
        )
    if mix not in MIXES:
        raise UsageError(f"{mix}: no way to mix networks", hint="--mix stack, parallel or average")
    if mix != "stack" and to != "hypernetwork":
        raise UsageError(f"--mix {mix} is of --to hypernetwork", hint="--to hypernetwork")
    if to == "hypernetwork" and max_error is not None:
        raise UsageError("a hypernetwork is exact or refused, so it has no error", hint="leave --max-error out")
    if to == "hypernetwork" and refine:
        raise UsageError("a hypernetwork is exact or refused, so nothing is refined", hint="leave --refine out")
    if type(refine) is not int or not 0 <= refine <= MOST_REFINE_STEPS:
        raise UsageError(f"there are 0 to {MOST_REFINE_STEPS} steps of refining, not {refine}", hint="--refine 200")
    if to in ("checkpoint", "hypernetwork") and program is not None:
        raise UsageError(f"--to {to} has one form for all programs", hint="leave --for out")
    if rank is not None and to != "lora":
        raise UsageError(f"--rank is of a LoRA, and not of --to {to}", hint="leave --rank out")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise UsageError(f"a rank is a whole number from 1 on, not {rank}", hint="--rank 16")
    if max_error is not None and not 0 < max_error < 1:
        raise UsageError(f"an error lies between 0 and 1, not {max_error}", hint="--max-error 0.3")
    if dtype is not None and dtype not in _DTYPES:
        raise UsageError(f"{dtype}: not a type of weights", hint=f"use one of {', '.join(_DTYPES)}")


def require_output(to: str, model: str | None, path: Path, *, overwrite: bool) -> None:
    """Checks that what is baked can be written to `path`.

    Args:
        model: the files of the model, for a checkpoint.

    Raises:
        As `Baked.save`.
    """
    if to == "checkpoint":
        if model is None:
            raise UsageError(
                "which files the model came from is not known",
                hint="hnetkit bake --model FOLDER",
                python="hnetkit.bake(hnetkit.load_model(FOLDER), ...)",
            )
        require_copyable(model, path, overwrite=overwrite)
        return
    suffixes = SUFFIXES if to == "hypernetwork" else SAFETENSORS_SUFFIXES
    if path.suffix.lower() not in suffixes:
        raise UsageError(
            f"{path}: weights are written as {' or '.join(suffixes)}",
            hint=f"--out {argument(suffixed(path, '.safetensors'), is_path=True)}",
        )
    if not is_folder_at(path.parent):
        raise NotFound(f"{path.parent}: no such folder")
    if to == "hypernetwork":
        require_network_output(path, overwrite=overwrite)
    else:
        refuse_all_but_baked(path, overwrite=overwrite)


def _as_loaded(pipe: Any) -> LoadedPipeline:
    """Returns a pipeline with what drawing with it needs."""
    if isinstance(pipe, LoadedPipeline):
        return pipe
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or not hasattr(pipe, "vae"):
        raise UsageError(
            f"{type(pipe).__name__} draws no pictures, which contexts are gathered from",
            hint="give a StableDiffusionPipeline, or what hnetkit.load_model gave",
        )
    return LoadedPipeline(pipe, type(pipe).__name__, Defaults(), Path(), (), scheduler.config)


def _require_rank(rank: int | None, on_layers: StackOnLayers) -> None:
    widest = max(min(layer.width, layer.projected) for layer in on_layers.layers)
    if rank is not None and rank > widest:
        raise rank_above(rank, widest)


def rank_above(rank: int, widest: int) -> UsageError:
    """Returns the error for a rank that no layer has."""
    chosen = min(USUAL_RANK, widest)
    return UsageError(f"rank {rank}: the widest layer has {widest}", hint=f"--rank {chosen}")


def _record(
    stack: NamedStack,
    made_with: Mapping[str, str | None],
    to: Target,
    program: Program | None,
    dtype: DType,
    changes: Changes,
    drawing: FitDrawing,
    pictures: Comparison | None,
    refine: int,
) -> dict[str, Any]:
    """Returns what a bake was made of and how, and its errors, as JSON holds them."""
    plan = drawing.plan
    fitted_on = {
        "prompts": list(dict.fromkeys(picture.prompt for picture in plan.seen)),
        "held_out": list(dict.fromkeys(picture.prompt for picture in plan.held_out)),
        "seeds": [picture.seed for picture in plan.seen],
        "held_out_seeds": [picture.seed for picture in plan.held_out],
        "holds_out": "prompts and seeds" if plan.holds_out_prompts else "seeds",
        "steps": plan.steps,
        "cfg_scale": plan.cfg_scale,
        "sampler": plan.sampler,
        "size": [plan.width, plan.height],
    }
    return {
        "networks": _networks_record(stack),
        **made_with,
        "to": to,
        "for": program,
        "dtype": dtype,
        "layers": {
            f"{layer.name}.to_{side}": {"origin": change.origin, "rank": change.rank, "error": round(change.error, 6)}
            for (layer, side), change in changes.items()
        },
        "pictures": None if pictures is None else asdict(pictures.errors),
        "refine_steps": refine if drawing.has_drawn else 0,
        "fitted_on": fitted_on if drawing.has_drawn else None,
    }


def _networks_record(stack: NamedStack) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "content_hash": network.content_hash,
            "sha256": source_sha256(network),
            "strength": _strength_record(strength),
        }
        for name, network, strength in stack
    ]


def _strength_record(strength: Strength) -> dict[str, Any]:
    numbers = {f"{kind}_{side}": strength.number(kind, side) for kind in KINDS for side in SIDES}
    return {**numbers, "blocks": {block: strength.factor(block) for block in strength.block_names}}
