"""A model that people draw with: `load_model`, and what its `Model` makes of a prompt."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit import demo, settings
from hnetkit.errors import UsageError, failure_of
from hnetkit.generate.loading.fingerprints import Stamp, stamp
from hnetkit.generate.options import DrawOptions
from hnetkit.generate.picture_files import Picture
from hnetkit.generate.pipeline import LoadedPipeline, load_pipeline
from hnetkit.generate.recipe import Recipe, read_recipe
from hnetkit.generate.request import Request, random_seed
from hnetkit.generate.resolved import (
    Note,
    ResolvedPrompts,
    read_prompt,
    resolve_prompts,
    untold,
    warn_of_marks,
    with_default_stack,
)
from hnetkit.prompts.tags import excerpt

if TYPE_CHECKING:
    from hnetkit.generate.picture import Progress
    from hnetkit.library.library import Library

AnyPath = str | os.PathLike[str]

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
DEMO = "demo"
"""Place of the bundled model, where no file or folder is called so."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is and how it is to be loaded; None leaves the choice to the settings. See `load_model`."""

    place: AnyPath | None = None
    device: str | None = None
    dtype: str | None = None
    vae: AnyPath | None = None
    tokenizer: AnyPath | None = None
    offload: bool = False
    attention_slicing: bool = False
    compiled: bool = False

    @property
    def is_chosen(self) -> bool:
        """Whether somebody chose a model, here or in the settings."""
        return (self.place or settings.get("model")) is not None

    @property
    def location(self) -> str:
        """The file, folder or hub id; of the bundled model its folder."""
        place = self.place or settings.get("model")
        if place is None or (place == DEMO and not os.path.exists(place)):
            return str(demo.model_folder())
        return os.fspath(place)

    @property
    def is_demo(self) -> bool:
        return os.path.realpath(self.location) == str(demo.model_folder())

    @property
    def bundled(self) -> Mapping[str, Path]:
        """The networks that come with the model, by stem."""
        return demo.networks() if self.is_demo else {}

    @property
    def torch_device(self) -> str:
        """``"cuda"``, ``"mps"`` or ``"cpu"``; raises UsageError where this machine has none."""
        return device_of(self.device or settings.get("device") or "auto")

    @property
    def torch_dtype(self) -> Any:
        """Torch's dtype; raises UsageError where there is no such type."""
        return torch_dtype(self.dtype or settings.get("dtype") or "auto", self.torch_device)

    def load(self, note: Note = untold) -> Model:
        """Returns the model, and tells what a person should know of it; raises as `load_model`."""
        before = stamp(self.location)
        if not self.is_chosen:
            note("No --model: the bundled demo model draws. `hnetkit config model FOLDER` sets another.")
        try:
            loaded = load_pipeline(
                self.location,
                device=self.torch_device,
                dtype=self.torch_dtype,
                vae=self.vae,
                tokenizer=self.tokenizer,
                offload=self.offload,
                attention_slicing=self.attention_slicing,
                compiled=self.compiled,
            )
        except ModuleNotFoundError as error:
            raise failure_of(error, self.location) from error
        for line in loaded.notes:
            note(line)
        found = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
        return Model(**{**found, "name": demo.MODEL_NAME if self.is_demo else loaded.name}, source=self, stamp=before)


@dataclass(frozen=True)
class Model(LoadedPipeline):
    """A model that draws.

    Attributes:
        source: what it was loaded from.
        stamp: of the files there, as they were then.
    """

    source: ModelSource = field(default_factory=ModelSource, compare=False)
    stamp: Stamp = ()

    def draw(
        self,
        prompt: str | None = None,
        *,
        seed: int | None = None,
        count: int = 1,
        batch_size: int = 1,
        networks: Iterable[AnyPath] = (),
        again: AnyPath | None = None,
        library: Library | None = None,
        progress: Progress | None = None,
        note: Note = untold,
        **options: Any,
    ) -> list[Picture]:
        """Draws pictures as `hnetkit generate` does; networks and LoRAs are on the pipeline only meanwhile.

        LoRAs of the prompt take the place of those that somebody loaded. On a compiled UNet, networks compile it anew
        for each call: draw many pictures with one.

        Args:
            prompt: in A1111's language, with tags of networks and LoRAs. They are found as in the command: networks in
                the library, LoRAs and textual inversions in the folders of the settings.
            seed: of the first picture, each further one is one higher; None and -1 pick one at random.
            count: how many pictures.
            batch_size: how many are sampled together.
            networks: ``NAME[:STRENGTH]`` of networks of the library, or files, that follow those of the prompt.
            again: a picture to draw again by the settings in it; what is said beside it counts instead.
            library: where networks are found; None is that of the command line.
            progress: told the calls of the UNet done and in all, over every picture.
            note: told what a person should read.
            options: of `hnetkit.generate.options.DrawOptions`: ``steps=20, sampler="Euler a"`` and so on.

        Raises:
            UsageError: what cannot be meant.
            NotFound, AmbiguousName: a name means nothing, or several things.
            FileRefused, ModelNotUsable, IncompatibleNetwork: a file cannot be read, or does not belong on this model.
            BadPicture: sampling gave NaN, or nothing but black.
            OutOfMemory: there is not enough of it.
        """
        pictures = draw_pictures(
            self,
            prompt,
            DrawOptions(**options),
            seed=seed,
            count=count,
            batch_size=batch_size,
            networks=networks,
            again=again,
            library=library,
            progress=progress,
            note=note,
        )
        return list(pictures)


def load_model(
    place: AnyPath | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    vae: AnyPath | None = None,
    tokenizer: AnyPath | None = None,
    offload: bool = False,
    attention_slicing: bool = False,
    compiled: bool = False,
) -> Model:
    """Loads a model straight into its dtype, without a safety checker, and moves it to its device.

    Args:
        place: a folder in diffusers' layout, a hub id (``"org/name"``, from the cache where the hub is out of
            reach), a checkpoint in one ``.safetensors`` or ``.ckpt`` file, or ``"demo"``: the bundled model. None is
            the model of the settings, else the bundled one.
        device: one of `DEVICES`; ``"auto"`` takes CUDA, then MPS, then the CPU. None: as set, else ``"auto"``.
        dtype: a key of `DTYPES`; ``"auto"`` is fp16 on CUDA and fp32 elsewhere. None: as set, else ``"auto"``.
        vae: an autoencoder instead of the model's own: a file, a folder or a hub id.
        tokenizer: a folder of tokenizer files, or a pipeline's; read for checkpoints in one file, which have none.
        offload: keeps on the GPU only the part at work.
        attention_slicing: computes attention in slices.
        compiled: compiles the UNet, in place, when it first draws.

    Raises:
        NotFound: no such file, folder or hub id; the hint has the nearest names.
        ModelNotUsable: it is not a Stable Diffusion pipeline, or only has pickled weights in a folder.
        FileRefused: a file that cannot be read safely.
        UsageError: the device is not there, or cannot be offloaded from.
        OutOfMemory: there is not enough of it.
        MissingExtra: diffusers is not installed.
    """
    source = ModelSource(place, device, dtype, vae, tokenizer, offload, attention_slicing, compiled)
    return source.load()


def draw_pictures(
    model: Model | ModelSource,
    prompt: str | None,
    options: DrawOptions,
    *,
    seed: int | None = None,
    count: int = 1,
    batch_size: int = 1,
    networks: Iterable[AnyPath] = (),
    again: AnyPath | None = None,
    library: Library | None = None,
    progress: Progress | None = None,
    note: Note = untold,
) -> Iterator[Picture]:
    """Draws pictures one after another; see `Model.draw`. All is found and looked at before a model is loaded.

    Args:
        model: that draws, or where it is loaded from.
    """
    source = model.source if isinstance(model, Model) else model
    recipe = Recipe() if again is None else read_recipe(Path(again))
    for warning in recipe.warnings:
        note(f"{again}: {warning}")
    options = options.filled(recipe.options)
    text = recipe.prompt if prompt is None else prompt
    if text is None:
        raise UsageError("nothing to draw: a PROMPT is missing", hint='hnetkit generate "a red circle"')
    tagged = read_prompt(text, note)
    warn_of_marks([text, options.negative_prompt or ""], note)
    tagged = with_default_stack(tagged) if again is None else tagged
    registry = None if library is None else library.registry
    prompts = resolve_prompts(tagged, named(networks), options, source.bundled, registry, note)
    if text == recipe.prompt:
        _warn_of_others(recipe, prompts, note)
    if "<hypernet:" in (options.negative_prompt or ""):
        note("Tags in a negative prompt are plain text, as in A1111.")
    loaded = model if isinstance(model, Model) else source.load(note)
    seed = recipe.seed if seed is None else seed
    first_seed = random_seed() if seed in (None, -1) else seed
    hires = prompts.hires.prompt if prompts.hires else None
    request = options.request(loaded, prompts.first.prompt.text, first_seed, hires)
    request = replace(request, count=count, batch_size=batch_size)
    said = recipe.hashes.get("model", "")
    if not loaded.hash.startswith(said[: len(loaded.hash)]):
        note(f"{again}: the hash of its model is {said[:10]}; {loaded.hash} draws here.")
    yield from _drawn(loaded, request, prompts, progress, note)


def _drawn(
    model: Model, request: Request, prompts: ResolvedPrompts, progress: Progress | None, note: Note
) -> Iterator[Picture]:
    from hnetkit.generate.description import infotext_of
    from hnetkit.generate.picture import draw
    from hnetkit.generate.session import DrawSession

    stacks = [prompts.first.networks, *([prompts.hires.networks] if prompts.hires else [])]
    written, tags = prompts.first.prompt.written, prompts.first.prompt.tags
    hypernetworks = tuple(
        {"name": network.name, "strength": tag.multiplier, "hash": network.hash}
        for network, tag in zip(prompts.first.networks, tags, strict=True)
    )
    with DrawSession(model, stacks, embeddings=prompts.embeddings, note=note) as session:
        request = session.prepared(request, prompts)
        for drawn in draw(model, request, progress):
            infotext = infotext_of(model, request, drawn.seed, written, prompts.hashes)
            yield Picture(
                drawn.image, drawn.seed, infotext, written, request.negative_prompt, hypernetworks, model.name
            )


def named(networks: Iterable[AnyPath]) -> tuple[str, ...]:
    """Returns ``NAME[:STRENGTH]`` of networks; a text alone is one of them."""
    return (networks,) if isinstance(networks, str) else tuple(os.fspath(network) for network in networks)


def _warn_of_others(recipe: Recipe, prompts: ResolvedPrompts, note: Note) -> None:
    """Says which networks are others than those of their names that a picture was drawn with."""
    for key, known in prompts.full_hashes.items():
        said = recipe.hashes.get(key)
        if said and not any(digits.startswith(said) or said.startswith(digits) for digits in known):
            name, here = excerpt(key.partition(":")[2]), " or ".join(digits[:10] for digits in known)
            note(f"Warning: {name} is another one here ({here}) than the picture was drawn with ({said[:10]})")


def device_of(device: str) -> str:
    """Returns ``cuda``, ``mps`` or ``cpu`` for what was asked: the best that is here for ``auto``.

    Raises:
        UsageError: this machine has no such device.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, usable in there.items() if usable)
    if not there.get(device):
        raise UsageError(f"--device {device}: this machine's torch has no such device", hint="--device auto")
    return device


def torch_dtype(dtype: str, device: str) -> Any:
    """Returns torch's dtype for ``auto`` (fp16 on CUDA, fp32 elsewhere) or a short name.

    Raises:
        UsageError: there is no such type.
    """
    import torch

    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"--dtype {dtype}: no such type", hint=f"--dtype {' or '.join(DTYPES)}")
    if dtype == "auto":
        dtype = "fp16" if device == "cuda" else "fp32"
    return getattr(torch, DTYPES[dtype])
