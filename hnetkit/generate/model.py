"""`load_model`, and the `Model` that draws images of prompts."""

from __future__ import annotations

import gc
import operator
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit import demo, settings
from hnetkit.errors import IncompatibleNetwork, UsageError, failure_of
from hnetkit.files import stat_at
from hnetkit.generate.differences import (
    networks_of_comfyui,
    networks_replaced,
    other_chunks,
    other_embeddings,
    other_first_picture,
    other_model,
    other_second_pass,
    unsaid,
)
from hnetkit.generate.image_files import Picture
from hnetkit.generate.image_infotext import infotext_of
from hnetkit.generate.image_settings import ImageSettings, read_image_settings, settings_from_infotext
from hnetkit.generate.loading.outline import ModelOutline, read_outline
from hnetkit.generate.loading.pipeline import FileStamp, LoadedPipeline, file_stamp, load_pipeline
from hnetkit.generate.options import DrawOptions
from hnetkit.generate.prompt_networks import (
    NetworkFinder,
    Networks,
    Note,
    ResolvedNetwork,
    ResolvedPrompts,
    StatedHashes,
    ignore_note,
    network_options,
    read_prompt,
    resolve_prompts,
    warn_about_first_pass,
    warn_about_negative_lines,
    warn_about_negative_tags,
    without_comments,
    without_comments_in_options,
)
from hnetkit.generate.request import Request, random_seed
from hnetkit.prompts import infotext
from hnetkit.prompts.schedule import pieces_drawn
from hnetkit.prompts.tags import excerpt, require_text
from hnetkit.runtime.fit import BASE_MODEL_NAME, require_fit
from hnetkit.settings import CAPTURE, DEVICES
from hnetkit.text import shorten

if TYPE_CHECKING:
    from hnetkit.generate.drawing import Progress
    from hnetkit.generate.loading.extra_networks import Lora
    from hnetkit.library.library import Library

AnyPath = str | os.PathLike[str]

DTYPES: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which model to load, and how; None takes the value of the settings. See `load_model`."""

    model: AnyPath | None = None
    device: str | None = None
    dtype: str | None = None
    vae: AnyPath | None = None
    tokenizer: AnyPath | None = None
    offload: bool = False
    attention_slicing: bool = False
    compiled: bool = False
    captured: bool | None = None

    @property
    def is_chosen(self) -> bool:
        """Whether a model was chosen, here or in the settings."""
        return (self.model or settings.get("model")) is not None

    @property
    def location(self) -> str:
        """The file, folder or hub id; for the bundled model its folder."""
        return demo.location_of(self.model or settings.get("model"))

    @property
    def own_vae(self) -> AnyPath | None:
        """The autoencoder in place of the model's own; that of the settings belongs to the model of the settings."""
        return self.vae if self.vae is not None or not self._is_of_settings else settings.get("vae")

    @property
    def _is_of_settings(self) -> bool:
        """Whether the model is that of the settings, given by its name or not."""
        place = settings.get("model")
        return place is not None and (self.model is None or _is_same_place(os.fspath(self.model), place))

    @property
    def own_tokenizer(self) -> AnyPath | None:
        return self.tokenizer if self.tokenizer is not None else settings.get("tokenizer")

    @property
    def is_demo(self) -> bool:
        return demo.is_bundled(self.location)

    @property
    def bundled(self) -> Mapping[str, Path]:
        """Stem -> file of the networks that come with the model."""
        return demo.comes_with(self.location)

    @property
    def torch_device(self) -> str:
        """``"cuda"``, ``"mps"`` or ``"cpu"``; raises UsageError if this machine does not have it."""
        with settings.naming(device=self.device):
            return device_of(chosen_device(self.device))

    @property
    def torch_dtype(self) -> Any:
        """Torch's dtype; raises UsageError if there is no such type."""
        device = self.torch_device
        with settings.naming(dtype=self.dtype):
            return torch_dtype(self.dtype or settings.get("dtype") or "auto", device)

    @property
    def is_captured(self) -> bool:
        """Whether the UNet runs as CUDA graphs where there is CUDA; raises UsageError if the setting is neither."""
        if self.captured is not None:
            return self.captured
        chosen = settings.get("capture") or CAPTURE[0]
        if chosen not in CAPTURE:
            raise UsageError(
                f"capture: {chosen} is neither {' nor '.join(CAPTURE)} (`hnetkit config`)",
                hint="hnetkit config capture on",
            )
        return chosen == CAPTURE[0]

    def outline(self) -> ModelOutline:
        """Returns what the model's configuration says of it; imports no torch. Raises as `read_outline`."""
        try:
            with settings.naming(model=self.model, vae=self.vae, tokenizer=self.tokenizer):
                return read_outline(self.location, self.own_vae, self.own_tokenizer)
        except ModuleNotFoundError as error:
            raise failure_of(error, self.location) from error

    def require_fit(self, networks: Iterable[ResolvedNetwork], outline: ModelOutline) -> None:
        """Raises IncompatibleNetwork, with the cure, if one of the networks is for another base model than this one."""
        if outline.contexts is None:
            return
        for network in networks:
            try:
                require_fit(network.name, network.network, outline.contexts)
            except IncompatibleNetwork as error:
                raise self._misfit(network, outline.contexts.base_model, error) from error

    def _misfit(self, network: ResolvedNetwork, here: str | None, error: IncompatibleNetwork) -> IncompatibleNetwork:
        made_for = BASE_MODEL_NAME.get(network.network.base_model)
        if not self.is_chosen:
            message = str(error) if made_for is None else f"{network.name} is for {made_for}, and no model is set"
            return IncompatibleNetwork(message, hint=f"hnetkit config model FOLDER, of {made_for or 'its base model'}")
        if made_for is None or here is None:
            return error
        name = os.path.basename(os.path.abspath(self.location))
        return IncompatibleNetwork(
            f"{network.name} is for {made_for}; the model, {name}, is {here}", hint=f"--model FOLDER, of {made_for}"
        )

    def load(self, note: Note = ignore_note) -> Model:
        """Loads the model and reports what the user should know of it; raises as `load_model`."""
        before = file_stamp(self.location)
        if not self.is_chosen:
            note("No --model: the bundled demo model draws. `hnetkit config model FOLDER` sets another.")
        try:
            with _importing_libraries():
                loaded = self._load()
                loaded = replace(loaded, notes=(*self._in_place_of_the_hub(), *loaded.notes))
        except ModuleNotFoundError as error:
            raise failure_of(error, self.location) from error
        for line in loaded.notes:
            note(line)
        attributes = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
        if self.is_demo:
            attributes["name"] = demo.MODEL_NAME
        return Model(**attributes, source=self, stamp=before)

    def _in_place_of_the_hub(self) -> Iterator[str]:
        """Yields a line for a hub id of the settings that is a path here, which is then what is read."""
        for key, given in (("model", self.model), ("vae", self.vae)):
            place = settings.get(key)
            if place is None or given not in (None, place) or not self._is_of_settings:
                continue
            if settings.is_hub_id(key, place) and stat_at(place) is not None:
                here = os.path.abspath(place)
                yield f"The {key} of `hnetkit config`, {place}, is read from {here}; elsewhere it is a hub id."

    def _load(self) -> LoadedPipeline:
        device = self.torch_device
        if self.offload and device != "cuda":
            raise UsageError(
                f"--offload moves parts off a CUDA device; this runs on {device}", hint="leave --offload out"
            )
        dtype, captured = self.torch_dtype, self.is_captured
        with settings.naming(model=self.model, vae=self.vae, tokenizer=self.tokenizer):
            return load_pipeline(
                self.location,
                device=device,
                dtype=dtype,
                vae=self.own_vae,
                tokenizer=self.own_tokenizer,
                offload=self.offload,
                attention_slicing=self.attention_slicing,
                compiled=self.compiled,
                captured=captured,
            )


def _is_same_place(place: str, other: str) -> bool:
    return place == other or (
        stat_at(place) is not None and stat_at(other) is not None and os.path.samefile(place, other)
    )


@contextmanager
def _importing_libraries() -> Iterator[None]:
    """Imports torch, diffusers and transformers in less time inside the block.

    They make a million objects that all stay, and Python's garbage collector would look through them again and again,
    for a fifth of the time. And each of them asks which packages are installed, for which Python reads the records of
    all of them: they get the same answer.
    """
    was_enabled, asked, before = gc.isenabled(), metadata.packages_distributions, len(sys.modules)
    gc.disable()
    metadata.packages_distributions = cache(asked)
    try:
        yield
    finally:
        metadata.packages_distributions = asked
        if was_enabled:
            # where the caller froze objects, they would be unfrozen; to count them takes a while too
            if len(sys.modules) > before and not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()  # together: what is new counts as old, without being looked through
            gc.enable()


@dataclass(frozen=True)
class Model(LoadedPipeline):
    """A model that draws.

    Attributes:
        source: what it was loaded from.
        stamp: of its files, taken before they were read.
    """

    source: ModelSource = field(default_factory=ModelSource, compare=False)
    stamp: FileStamp = ()

    def __repr__(self) -> str:
        unet = self.pipe.unet
        dtype = str(unet.dtype).removeprefix("torch.")
        return f"<Model {shorten(self.name)!r} [{self.hash}] on {unet.device}, {dtype}>"

    def draw(
        self,
        prompt: str | None = None,
        *,
        seed: int | None = None,
        count: int = 1,
        batch_size: int = 1,
        networks: Networks = (),
        again: AnyPath | None = None,
        library: Library | None = None,
        progress: Progress | None = None,
        note: Note = ignore_note,
        **options: Any,
    ) -> list[Picture]:
        """Draws pictures as `hnetkit generate` does. Networks and LoRAs are attached to the pipeline only meanwhile.

        LoRAs of the prompt replace those that are on the pipeline meanwhile, and networks on it are left out; both are
        told. A compiled UNet compiles again in each call that attaches networks, so draw many pictures in one call.

        Args:
            prompt: in A1111's language, with tags of networks and LoRAs. They are found as by the command: networks
                in the library, LoRAs and textual inversions in the folders of the settings.
            seed: of the first picture; each further one has the next seed. None and -1 pick one at random.
            count: number of pictures.
            batch_size: how many are sampled together.
            networks: ``NAME[:STRENGTH]`` of networks of the library, or files, that follow those of the prompt; or name
                -> strength.
            again: a picture to draw again by the settings in it, or a text file with them; ``"-"`` is standard input.
                Other arguments override them.
            library: where networks are found; None is that of the command line.
            progress: called with the calls of the UNet so far and in all, over every picture.
            note: called with each message for the user.
            options: of `hnetkit.generate.options.DrawOptions`: ``steps=20, sampler="Euler a"`` and so on.

        Raises:
            UsageError: a value is out of its range, or options contradict each other.
            NotFound, AmbiguousName: a name stands for nothing, or for several things.
            FileRefused, ModelNotUsable, IncompatibleNetwork: a file cannot be read, or does not fit this model.
            BadPicture: sampling gave NaN, or nothing but black.
            OutOfMemory: there is not enough memory.
        """
        images = draw_images(
            self,
            prompt,
            DrawOptions.of(options),
            seed=seed,
            count=count,
            batch_size=batch_size,
            networks=networks,
            again=again,
            library=library,
            progress=progress,
            note=note,
        )
        return list(images)


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
    captured: bool | None = None,
) -> Model:
    """Loads a model straight into its dtype, without a safety checker, and moves it to its device.

    Args:
        place: a folder in diffusers' layout, a hub id (``"org/name"``, from the cache where the hub is out of
            reach), a checkpoint in one ``.safetensors`` or ``.ckpt`` file, or ``"demo"``: the bundled model. None is
            the model of the settings, else the bundled one.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"``, which takes CUDA, then MPS, then the CPU. None is that
            of the settings, else ``"auto"``.
        dtype: a key of `DTYPES`, or ``"auto"``: fp16 on CUDA and fp32 elsewhere. None is that of the settings, else
            ``"auto"``.
        vae: an autoencoder instead of the model's own: a file, a folder or a hub id.
        tokenizer: a folder of tokenizer files, or a pipeline's; read for checkpoints in one file, which have none.
        offload: keep only the part at work on the GPU.
        attention_slicing: compute attention in slices.
        compiled: compile the UNet, in place, when it first draws.
        captured: run the UNet as CUDA graphs where the device is CUDA (`hnetkit.capture`). None is what the settings
            say, else True.

    Raises:
        NotFound: no such file, folder or hub id; the hint has the nearest names.
        ModelNotUsable: it is not a Stable Diffusion pipeline, or a folder with pickled weights only.
        FileRefused: a file cannot be read safely.
        UsageError: this machine does not have the device, or cannot offload from it.
        OutOfMemory: there is not enough memory.
        MissingExtra: diffusers is not installed.
    """
    source = ModelSource(place, device, dtype, vae, tokenizer, offload, attention_slicing, compiled, captured)
    source.outline()  # refuses what is no model, before torch is imported
    return source.load()


def draw_images(
    model: Model | ModelSource,
    prompt: str | None,
    options: DrawOptions,
    *,
    seed: int | None = None,
    count: int = 1,
    batch_size: int = 1,
    networks: Networks = (),
    again: AnyPath | None = None,
    library: Library | None = None,
    progress: Progress | None = None,
    note: Note = ignore_note,
) -> Iterator[Picture]:
    """Draws images one after another; see `Model.draw`. Everything is found and checked before a model is loaded.

    Args:
        model: a loaded model, or which one to load.
    """
    source = model.source if isinstance(model, Model) else model
    if prompt is not None:
        require_text(prompt)
    seed = None if seed is None else _whole_number("seed", seed)
    count, batch_size = _whole_number("count", count), _whole_number("batch_size", batch_size)
    recorded, origin, prompt = _recorded_settings(prompt, again, note)

    def say(lines: Iterable[str]) -> None:
        for line in lines if origin else ():
            note(f"{origin}: {line}")

    say(recorded.warnings)
    say(other_second_pass(recorded, options, prompt))
    given = without_comments_in_options(options, note)
    options = given.fill_from(recorded.options)
    for line in given.without_effect(options):
        note(f"Warning: {line}")
    say(unsaid(recorded, options, prompt, seed))
    say(other_first_picture(recorded, options))
    text = recorded.prompt if prompt is None else without_comments(prompt, note)
    if text is None:
        raise UsageError("nothing to draw: a PROMPT is missing", hint='hnetkit generate "a red circle"')
    tagged = read_prompt(text, note)
    warn_about_negative_lines([text, options.negative_prompt or ""], note)
    finder = NetworkFinder(source.bundled, None if library is None else library.registry, note)
    names = network_options(networks)
    stated = _still_stated(recorded, text, options)
    prompts = resolve_prompts(tagged, names, options, finder, note, stated, with_defaults=origin is None)
    say(networks_replaced(recorded, text, prompts.first.prompt.tags))
    added = prompts.first.prompt.tags[-len(names) :] if names else ()
    warn_about_first_pass((tag.name for tag in added), prompts.hires, note)
    if text == recorded.prompt:
        _warn_about_other_loras(recorded, prompts.loras, note)
    say(networks_of_comfyui(recorded, prompts.networks))
    own = tuple(_own_texts(recorded, text, options, prompts))
    read = (piece for one in own for piece in pieces_drawn(one, options.emphasis or "original"))
    say(other_embeddings(recorded, prompts.embedding_hashes, read))
    warn_about_negative_tags([options.negative_prompt, options.hires_negative_prompt], note)
    seed = recorded.seed if seed is None else seed
    first_seed = random_seed() if seed in (None, -1) else seed
    hires = prompts.hires.prompt if prompts.hires else None

    def request_of(sizes: ModelOutline | Model) -> Request:
        request = options.request(sizes, prompts.first.prompt.text, first_seed, hires)
        return replace(request, count=count, batch_size=batch_size)

    if count > 1 and options.variation_strength:
        note(
            "Each further picture has the next seed and the next variation seed. A1111 keeps the seed: for its "
            "pictures, draw each with --count 1 and its own --variation-seed."
        )
    if isinstance(model, Model):
        loaded = model
    else:
        outline = source.outline()
        request_of(outline)  # raises what needs no model to be told
        source.require_fit(prompts.networks, outline)
        loaded = source.load(note)
    loaded.require_as_loaded()
    request = request_of(loaded)
    say(other_model(recorded, loaded))
    say(other_chunks(recorded, loaded.text_encoder(request.clip_skip, request.emphasis), own))
    yield from _draw_resolved(loaded, request, prompts, progress, note)


def _whole_number(name: str, value: Any) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # numpy's too
    except TypeError:
        pass
    raise UsageError(f"{name}: {shorten(value)} is not a whole number")


def _recorded_settings(
    prompt: str | None, again: AnyPath | None, note: Note
) -> tuple[ImageSettings, str | None, str | None]:
    """Returns the settings to draw again, what states them (None: nothing does), and the prompt beside them.

    Raises:
        UsageError: both the prompt and `again` state settings.
    """
    is_data = prompt is not None and infotext.is_generation_data(prompt)
    if again is not None:
        if is_data:
            hint = "leave one of them out, or give the prompt alone"
            raise UsageError("PROMPT and --from both state the settings of a picture", hint=hint)
        return read_image_settings(Path(again)), "standard input" if os.fspath(again) == "-" else str(again), prompt
    if prompt is None or not is_data:
        return ImageSettings(), None, prompt
    note("The prompt is generation data: its settings are taken over, as by --from.")
    return settings_from_infotext(infotext.parse(prompt)), "the prompt", None


def _draw_resolved(
    model: Model, request: Request, prompts: ResolvedPrompts, progress: Progress | None, note: Note
) -> Iterator[Picture]:
    from hnetkit.generate.drawing import draw
    from hnetkit.generate.session import DrawSession

    stacks = [prompts.first.networks]
    if prompts.hires is not None:
        stacks.append(prompts.hires.networks)
    prompt = prompts.first.prompt
    hypernetworks = tuple(
        {"name": network.name, "strength": tag.multiplier, "hash": network.hash}
        for network, tag in zip(prompts.first.networks, prompt.tags, strict=True)
    )
    with DrawSession(model, stacks, embeddings=prompts.embeddings, note=note) as session:
        request = session.prepare(request, prompts)
        for drawn in draw(model, request, progress):
            text = infotext_of(model, request, drawn.seed, prompt.written, prompts.hashes)
            yield Picture(
                image=drawn.image,
                seed=drawn.seed,
                infotext=text,
                prompt=prompt.written,
                negative_prompt=request.negative_prompt,
                hypernetworks=hypernetworks,
                model=model.name,
            )


def _still_stated(recorded: ImageSettings, prompt: str, options: DrawOptions) -> StatedHashes:
    """Returns the hashes that an image states of networks, for those of its prompts that are not replaced."""
    return StatedHashes(
        recorded.stated.prompt if prompt == recorded.prompt else (),
        recorded.stated.hires_prompt if options.hires_prompt == recorded.options.get("hires_prompt") else (),
    )


def _own_texts(recorded: ImageSettings, prompt: str, options: DrawOptions, prompts: ResolvedPrompts) -> Iterator[str]:
    """Yields the prompts that are drawn as the image states them, without tags."""
    own = recorded.options
    if prompt == recorded.prompt:
        yield prompts.first.prompt.text
    if prompts.hires is not None and options.hires_prompt == own.get("hires_prompt"):
        yield prompts.hires.prompt.text
    for name in ("negative_prompt", "hires_negative_prompt"):
        if (text := getattr(options, name)) is not None and text == own.get(name):
            yield text


def _warn_about_other_loras(recorded: ImageSettings, loras: Iterable[Lora], note: Note) -> None:
    """Warns about each LoRA whose file is another one than the picture was drawn with."""
    for lora in loras:
        then = recorded.hashes.get(f"lora:{lora.tag.name}")
        if then and not (lora.hash.startswith(then) or then.startswith(lora.hash)):
            name = excerpt(lora.tag.name)
            note(
                f"Warning: {name} is another one here ({lora.hash[:10]}) than the picture was drawn with ({then[:10]})"
            )


def chosen_device(device: str | None) -> str:
    """Returns the name of the device that was asked for, here or in the settings, else ``auto``.

    Raises:
        UsageError: there is no such device.
    """
    chosen = device or settings.get("device") or "auto"
    if chosen not in DEVICES:
        raise UsageError(f"--device {chosen}: no such device", hint=f"--device {' or '.join(DEVICES)}")
    return chosen


def device_of(device: str) -> str:
    """Returns ``cuda``, ``mps`` or ``cpu``; for ``auto`` the best one of this machine.

    Raises:
        UsageError: this machine has no such device.
    """
    if device == "cpu":
        return device
    import torch

    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, is_usable in usable.items() if is_usable)
    if not usable.get(device):
        raise UsageError(f"--device {device}: this machine's torch has no such device", hint="--device auto")
    return device


def torch_dtype(dtype: str, device: str) -> Any:
    """Returns torch's dtype for ``auto`` (fp16 on CUDA, fp32 elsewhere) or a short name.

    Raises:
        UsageError: there is no such type.
    """
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"--dtype {dtype}: no such type", hint=f"--dtype {' or '.join(DTYPES)}")
    import torch

    if dtype == "auto":
        dtype = "fp16" if device == "cuda" else "fp32"
    return getattr(torch, DTYPES[dtype])
