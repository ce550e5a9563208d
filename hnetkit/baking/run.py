"""Baking as the command does it: networks found by name, a model loaded for them, a file written at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hnetkit.baking.api import (
    Baked,
    Target,
    bake,
    bake_network,
    rank_above,
    require_options,
    require_output,
)
from hnetkit.baking.contributions import require_whole_run
from hnetkit.baking.key_sets import Program, require_key_set
from hnetkit.baking.networks import BakedNetwork, Mix
from hnetkit.baking.picture_plan import read_prompts, require_prompts
from hnetkit.baking.pictures import Progress
from hnetkit.errors import DiskFull, HnetkitError, NotFound, OutputExists, RegistryError, UsageError
from hnetkit.files import is_file_at, is_folder_at, refuse_existing
from hnetkit.formats import load
from hnetkit.generate.image_files import is_image_file
from hnetkit.generate.loading.baked import applied_once_more
from hnetkit.generate.model import Model, ModelSource
from hnetkit.generate.prompt_networks import (
    NetworkFinder,
    Networks,
    Note,
    StackedPrompt,
    attach_network,
    ignore_note,
    network_options,
    read_prompt,
    warn_about_unread_embeddings,
    without_comments,
)
from hnetkit.generate.request import MOST_STEPS
from hnetkit.image_text import write_image
from hnetkit.library.bakes import record_bake
from hnetkit.library.library import Library
from hnetkit.network import DType
from hnetkit.runtime.adapters import named_networks, unload_hypernetworks
from hnetkit.runtime.fit import TEXT_WIDTH
from hnetkit.runtime.layers import find_layers
from hnetkit.runtime.strength import Strength
from hnetkit.text import size_text

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class BakeOutcome:
    """What was baked, and the files that were written: `sheet` only where one was asked for."""

    baked: Baked | BakedNetwork
    path: Path
    sheet: Path | None


def bake_file(
    source: ModelSource,
    out: AnyPath,
    *,
    tags: str = "",
    networks: Networks = (),
    to: Target | Literal["hypernetwork"] = "lora",
    mix: Mix = "stack",
    program: Program | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    refine: int = 0,
    prompts: AnyPath | None = None,
    steps: int | None = None,
    check: AnyPath | None = None,
    overwrite: bool = False,
    dtype: DType | None = None,
    library: Library | None = None,
    note: Note = ignore_note,
    progress: Progress | None = None,
    **options: Any,
) -> BakeOutcome:
    """Bakes networks of the library, or files, and writes the result; see `hnetkit.bake`.

    All that can be refused without a model is refused before one is loaded, the rest before anything is drawn.

    Args:
        source: the model.
        out: the file to write; for a checkpoint, a file or a folder as the model is one.
        tags: of networks, as in a prompt, for strengths by side and block.
        networks: ``NAME[:STRENGTH]`` of those that follow the tags.
        prompts: a text file with a prompt on each line.
        check: a picture to write: a sheet of pictures without networks, with them, and with what was baked.
        library: where networks are found, and what was baked is recorded; None is that of the command line.
        options: of `hnetkit.bake`.

    Raises:
        As `hnetkit.bake`, `Baked.save` and `hnetkit.load_model`; NotFound, AmbiguousName, FileRefused: a network.
    """
    path, sheet = Path(out), None if check is None else Path(check)
    require_options(to, mix=mix, program=program, rank=rank, max_error=max_error, refine=refine, dtype=dtype)
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise UsageError(f"{steps} steps: there are 1 to {MOST_STEPS}")
    if to == "hypernetwork" and check is not None:
        raise UsageError("--check compares a fit with its networks, and a hypernetwork is exact", hint="leave it out")
    require_output(to, source.location, path, overwrite=overwrite)
    if sheet is not None:
        if not is_image_file(os.fspath(sheet), option="--check", example="sheet.png"):
            raise UsageError(f"{sheet}: the sheet is a .png, .jpg or .webp file", hint="--check sheet.png")
        refuse_existing(sheet, overwrite=overwrite)
        if not is_folder_at(sheet.parent):
            raise NotFound(f"{sheet.parent}: no such folder")
    texts = None if prompts is None else [without_comments(text, note).strip() for text in read_prompts(prompts)]
    if texts is not None:
        require_prompts(texts, steps or MOST_STEPS)
        warn_about_unread_embeddings(texts, "a bake", note)
    stacked = _find(source, tags, network_options(networks), library, note)
    strengths = [Strength.of(strength) for strength in stacked.strengths]
    if to == "hypernetwork":
        _refuse_own_networks(path, stacked)
        stack = [(own.name, own.network, strength) for own, strength in zip(stacked.networks, strengths, strict=True)]
        contexts = source.outline().contexts
        text_widths = frozenset(TEXT_WIDTH.values()) if contexts is None else contexts.text
        merged = bake_network(stack, text_widths, mix=mix, dtype=dtype, name=path.stem)
        _save(merged, path, overwrite, library, note)
        return BakeOutcome(merged, path, None)
    for network, strength in zip(stacked.networks, strengths, strict=True):
        require_whole_run(network.name, strength)
    is_affine = all(network.network.is_affine for network in stacked.networks)
    if to != "checkpoint":
        require_key_set(to, program, has_constant=not is_affine)
    outline = source.outline()
    source.require_fit(stacked.networks, outline)
    widest = None if outline.contexts is None else max(outline.contexts.widths)
    if rank is not None and widest is not None and rank > widest:
        raise rank_above(rank, widest)
    model = source.load(note)
    _require_room(model, path, to, rank)
    for line in applied_once_more([model.weights], {own.name: own.network for own in stacked.networks}):
        note(line)
    names: list[str] = []
    try:
        for network in stacked.networks:
            names.append(attach_network(model.pipe, network, names))
        baked = bake(
            model,
            dict(zip(names, strengths, strict=True)),
            to=to,
            program=program,
            rank=rank,
            max_error=max_error,
            refine=refine,
            prompts=texts,
            steps=steps,
            dtype=dtype,
            compare=sheet is not None,
            progress=progress,
            **options,
        )
    finally:
        if names and named_networks(model.pipe):
            unload_hypernetworks(model.pipe, names)
    _save(baked, path, overwrite, library, note)
    if sheet is not None and baked.pictures is not None:
        shown = baked.pictures.sheet(_label(stacked), f"{path.name}")
        write_image(sheet, shown, "", overwrite=overwrite)
    return BakeOutcome(baked, path, sheet)


def _save(baked: Baked | BakedNetwork, path: Path, overwrite: bool, library: Library | None, note: Note) -> None:
    """Writes what was baked and has the library know of it; where the library cannot be written, that is said."""
    baked.save(path, overwrite=overwrite)
    try:
        with nullcontext(library) if library is not None else Library() as opened:
            record_bake(opened.registry, path, baked.record)
    except (RegistryError, DiskFull) as error:
        note(f"{path} is written, but the library has no record of it: {error}")


def _find(
    source: ModelSource, tags: str, networks: Sequence[str], library: Library | None, note: Note
) -> StackedPrompt:
    tagged = read_prompt(tags, note)
    if tagged.text.strip() or tagged.loras:
        raise UsageError(
            f"{tags}: hypernetworks are baked, and nothing else that a prompt has",
            hint="<hypernet:NAME:STRENGTH>, or -n NAME:STRENGTH; prompts to draw are in --prompts FILE",
        )
    finder = NetworkFinder(source.bundled, None if library is None else library.registry, note)
    stacked = finder.stack(tagged, networks)
    if not stacked.networks:
        raise UsageError("there is no hypernetwork to bake", hint="-n NAME:STRENGTH")
    return stacked


def _refuse_own_networks(path: Path, stacked: StackedPrompt) -> None:
    """Raises OutputExists where one of the networks that are baked is at `path`."""
    if not is_file_at(path):
        return
    try:
        there = load(path).content_hash
    except HnetkitError:
        return
    if any(there == own.network.content_hash for own in stacked.networks):
        raise OutputExists(
            f"{path}: one of the networks that are baked, which is not replaced", hint="choose another name"
        )


def _require_room(model: Model, path: Path, to: str, rank: int | None) -> None:
    """Raises DiskFull where the disk cannot hold the file; a copy of a model has been asked about already."""
    if to == "checkpoint":
        return
    layers = find_layers(model.pipe.unet)
    values = sum(
        2 * (rank * (layer.width + layer.projected) if rank else layer.width * layer.projected) for layer in layers
    )
    free, item = shutil.disk_usage(path.parent).free, model.pipe.unet.dtype.itemsize
    if values * item > free:
        raise DiskFull(
            f"{path}: up to {size_text(values * item)} are written, and the disk has {size_text(free)} left",
            hint="make room, or choose another disk",
        )


def _label(stacked: StackedPrompt) -> str:
    return " + ".join(f"{tag.name}:{tag.multiplier:g}" for tag in stacked.prompt.tags)
