"""The settings of an image: read from its infotext as options, and listed for `hnetkit inspect`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from hnetkit import demo, settings
from hnetkit.errors import AmbiguousName, HnetkitError, NoSettings, UsageError
from hnetkit.files import is_file_at
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import is_sparse
from hnetkit.generate.prompt_networks import NONE_STATED, StatedHashes
from hnetkit.generate.request import LARGEST_SEED, MOST_STEPS, UPSCALERS, has_room, require_prompt
from hnetkit.generate.sampling.samplers import AUTOMATIC, sampler_of
from hnetkit.generate.setting_keys import COMFYUI_LOADER, EMBEDDINGS, IDLE_VALUES, OTHER_NAMES, WITHOUT_EFFECT
from hnetkit.hashes import sha256_of
from hnetkit.image_text import image_format, read_infotext, read_standard_input
from hnetkit.images import image_size, parse_size
from hnetkit.library.resolve import LibraryOpener, find_network, opened_when_needed
from hnetkit.limits import parse_json
from hnetkit.prompts import civitai
from hnetkit.prompts.chunks import cleaned
from hnetkit.prompts.infotext import MOST_MENTIONED, Infotext, Mention, hypernetworks_of
from hnetkit.prompts.schedule import as_whole_text, plain_elsewhere, schedule
from hnetkit.prompts.tags import excerpt, fits_in_tag, split_tags
from hnetkit.text import normal_form

if TYPE_CHECKING:
    from hnetkit.registry.store import Registry

Row = dict[str, Any]

EMPHASIS = {"original": "Original", "no-norm": "No norm", "ignore": "Ignore", "none": "None"}
"""Our name of an emphasis -> A1111's."""

MASKED_CONTENT = {"original": "original", "noise": "latent noise", "nothing": "latent nothing"}
"""Our name of what lies under a mask -> A1111's."""

MASK_MODES = {False: "Inpaint masked", True: "Inpaint not masked"}
"""Whether a mask is inverted -> A1111's name for that."""

_RNG = {"CPU": "cpu", "NV": "nv", "GPU": "nv", "cuda": "nv"}  # the last is stable-diffusion.cpp's name of A1111's GPU

_SHA256 = re.compile(r"[0-9a-f]{10,64}")
_DIGITS = re.compile(r"[0-9a-f]{8,64}")
_SECOND_PASS_KEYS = frozenset({"Hires upscale", "Hires resize", "First pass size"})
_MASK_KEYS = frozenset({"Mask blur", "Mask mode", "Masked content", "Mask image"})
_MOST_SHOWN = 60
_OLD_FIRST_PASS = 512 * 512  # pixels that A1111 of 2022 drew first
_OLD_TIMELINES = "Old prompt editing timelines"
_LIKE_COMFYUI = ("ComfyUI", "Fooocus")  # in `Version` of programs that sample as ComfyUI does
_VERSION = re.compile(r"v?(\d+)\.(\d+)")
_OLD_STEP = re.compile(r":\s*(0*[1-9][0-9]*\.[0-9]*)\s*\]")
_WEIGHT = re.compile(r"(?<!\\)\(")
_HASH_BEHIND = re.compile(r"\[[0-9a-f]{4,64}\]\s*$")  # of a textual inversion, behind its name
_GRAIN = 8  # pixels of a latent: sizes are rounded to them in several ways
_NOISY_STEPS = re.compile(r" a\b|LCM")  # in the name of a sampler that adds noise in every step


class RecordedFile(NamedTuple):
    """A file that an image was drawn with, as its settings name it; either may be empty.

    Attributes:
        name: as it is written.
        hash: 8 or more hex digits: A1111's old hash of a model (8), else the beginning of the sha256.
    """

    name: str
    hash: str

    def __str__(self) -> str:
        digits = f"[{self.hash[:10]}]" if self.hash else ""
        return " ".join(filter(None, (excerpt(self.name), digits)))


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """The settings that an image carries.

    Attributes:
        prompt: with tags; None if no image was read, or its prompt cannot be used.
        seed: None if the image states none.
        options: option -> value, by the names of `hnetkit.generate.options.DrawOptions`.
        hashes: ``hypernet:NAME``, ``lora:NAME`` and ``model`` -> the first 10 or more hex digits of the sha256 of the
            file that the image was drawn with, as far as it states them.
        files: ``model``, ``parts`` (what drew beside a folder's UNet), ``vae``, ``image`` (that image-to-image began
            with) and ``mask`` -> the file, as far as the image says that there was one.
        embeddings: names of its textual inversions.
        loaded_by_comfyui: names of the networks that ComfyUI's own loader applied.
        program: that drew it, where that is ComfyUI or one that is made of it; else empty.
        unread: keys of its settings that shaped it and that nothing here has, as a warning lists them.
        warnings: what could not be used, one line each.
        stated: the hashes of the networks in its prompts.
    """

    prompt: str | None = None
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, RecordedFile] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ()
    loaded_by_comfyui: tuple[str, ...] = ()
    program: str = ""
    unread: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    stated: StatedHashes = NONE_STATED


def read_image_settings(path: Path) -> ImageSettings:
    """Returns the settings of an image file, of a text file, or of standard input (``-``).

    Raises:
        NotFound: there is no such file, or it carries no settings.
        FileRefused: it cannot be read safely.
    """
    if str(path) == "-":
        return settings_from_infotext(read_standard_input())
    with OpenFile(path) as file:
        found = settings_from_infotext(read_infotext(file))
        is_image = image_format(file.read_at(0, min(12, file.size))) is not None
    others = tuple(_other_size(path, found.options)) if is_image else ()
    return replace(found, warnings=(*found.warnings, *others)) if others else found


def _other_size(path: Path, options: Mapping[str, Any]) -> Iterator[str]:
    """Yields a line if an image has another size than its settings make, as sheets and enlarged images have."""
    width, height = options.get("width"), options.get("height")
    if width is None or height is None:
        return
    scale = options.get("hires_scale", 1)
    wide, high = options.get("hires_size") or (width * scale, height * scale)
    try:
        size = image_size(path)
    except HnetkitError:  # nothing but its texts can be read
        return
    if abs(size[0] - wide) >= _GRAIN or abs(size[1] - high) >= _GRAIN:
        yield (
            f"the picture is {size[0]}x{size[1]}, and its settings make one of {int(wide)}x{int(high)}: a sheet, or "
            "enlarged, scaled or cropped since"
        )


def settings_from_infotext(info: Infotext) -> ImageSettings:
    """Returns the settings in an infotext, by the names of our options.

    A1111 states its source of noise only if it is not CUDA's generator; hnetkit always states it. ComfyUI and Fooocus
    make the first noise on the CPU, also where they write A1111's infotext.
    """
    reader = _ParameterReader(info)
    take = reader.take
    take("Steps", "steps", _integer_within(1, MOST_STEPS))
    reader.take_sampler()
    take("CFG scale", "cfg_scale", _number_within(1, 1000))
    take("Seed", "seed", _integer_within(0, LARGEST_SEED))
    take("Size", "size", _image_size)
    take("Clip skip", "clip_skip", _integer_within(1, 12))
    take("ENSD", "eta_seed_delta", _integer_within(-LARGEST_SEED, LARGEST_SEED))
    take("Emphasis", "emphasis", {theirs: ours for ours, theirs in EMPHASIS.items()}.__getitem__)
    take("Variation seed", "variation_seed", _integer_within(0, LARGEST_SEED))
    take("Variation seed strength", "variation_strength", _number_within(0, 1))
    take("RNG", "rng", _RNG.__getitem__)
    take("Denoising strength", "denoising", _number_within(0, 1))
    files = reader.files()
    if reader.has_second_pass:
        reader.take_second_pass()
    elif "image" in files:
        take("Mask blur", "mask_blur", _number_within(0, 1000))
        take("Mask mode", "invert_mask", {theirs: ours for ours, theirs in MASK_MODES.items()}.__getitem__)
        take("Masked content", "masked_content", {theirs: ours for ours, theirs in MASKED_CONTENT.items()}.__getitem__)
    warnings, options = reader.warnings, reader.options
    if reader.others:
        more = f" and {len(reader.others) - _MOST_SHOWN} more" if len(reader.others) > _MOST_SHOWN else ""
        warnings.append(f"not taken over: {', '.join(map(excerpt, reader.others[:_MOST_SHOWN]))}{more}")
    prompts: dict[str, str] = {}
    for name, text in (("prompt", info.prompt), ("negative prompt", info.negative_prompt)):
        try:
            prompts[name] = _checked_prompt(text, options.get("steps", 1))
        except UsageError as error:
            warnings.append(f"its {name} cannot be taken over: {error}")
    other_program = next((name for name in _LIKE_COMFYUI if name in info.parameters.get("Version", "")), "")
    is_noise_unknown = not options.keys() & {"rng"} and "Version" not in info.parameters
    options.setdefault("rng", "cpu" if other_program else "nv")
    if other_program:
        warnings += _drawn_otherwise(other_program, info, str(options.get("sampler", "")))
    elif is_noise_unknown and "Civitai resources" in info.parameters:
        warnings.append("Civitai drew it, and does not say with which program's noise: the picture may differ")
    if _is_of_diffusers(info):
        warnings.append(
            "SD.Next drew it with diffusers, which samples and weighs words in another way than A1111: the picture "
            "will differ"
        )
    if (age := _age_of_timelines(info)) is not None:
        warnings += _times_read_otherwise(info, age)
        if reader.has_second_pass:
            warnings += _changes_begun_anew(age, prompts, options)
    warnings += _networks_outside(info)
    options["negative_prompt"] = prompts.get("negative prompt")
    options["width"], options["height"] = options.pop("size", (None, None))
    seed = options.pop("seed", None)
    given = {name: value for name, value in options.items() if value is not None}
    return ImageSettings(
        prompt=prompts.get("prompt"),
        seed=seed,
        options=given,
        hashes=_hashes(info),
        files=files,
        embeddings=tuple(dict.fromkeys(_embeddings(info)))[:MOST_MENTIONED],
        loaded_by_comfyui=tuple(filter(None, info.parameters.get(COMFYUI_LOADER, "").split(", "))),
        program=other_program,
        unread=tuple(reader.others[:_MOST_SHOWN]),
        warnings=tuple(warnings),
        stated=_stated(info),
    )


class _ParameterReader:
    """The parameters of an infotext, and the options that are made of them.

    Attributes:
        options: option -> value, so far.
        warnings: about what could not be used, so far.
    """

    def __init__(self, info: Infotext) -> None:
        given = info.parameters
        self._hashes = info.hashes
        self._parameters = {OTHER_NAMES.get(key, key): value for key, value in given.items()} | given
        self._read: set[str] = {key for key in OTHER_NAMES if key in given}
        self.options: dict[str, Any] = {}
        self.warnings = list(info.warnings)

    @property
    def has_second_pass(self) -> bool:
        return not self._parameters.keys().isdisjoint(_SECOND_PASS_KEYS)

    @property
    def others(self) -> list[str]:
        """The keys that shaped the image and were not read."""
        return [
            key
            for key, value in self._parameters.items()
            if key not in self._read and key not in WITHOUT_EFFECT and value not in IDLE_VALUES.get(key, ())
        ]

    def text(self, key: str) -> str:
        """Returns the value of a parameter, which counts as read; empty if there is none."""
        self._read.add(key)
        return self._parameters.get(key, "")

    def take(self, key: str, name: str, read: Callable[[str], Any], *, instead: str = "") -> None:
        """Takes a parameter over as an option; one that cannot be read gives a warning.

        Args:
            instead: what happens then, for the warning.
        """
        text = self.text(key)
        if key not in self._parameters:
            return
        try:
            self.options[name] = read(text)
        except (ValueError, KeyError, UsageError):
            self.warnings.append(f"{key}: {excerpt(text)} cannot be taken over{instead}")

    def take_sampler(self) -> None:
        """Takes the sampler over, with its own schedule if the picture's is one that hnetkit lacks."""
        schedule = self.text("Schedule type") or None
        self.take("Sampler", "sampler", lambda text: sampler_of(text, AUTOMATIC if schedule else None))
        if schedule and "sampler" in self.options:
            own = self.options["sampler"]
            keeps = f"; {own} keeps its own schedule"
            self.take("Schedule type", "sampler", lambda text: sampler_of(self.text("Sampler"), text), instead=keeps)

    def take_second_pass(self) -> None:
        """Takes the settings of a second pass over."""
        if "First pass size" in self._parameters:
            self._take_first_pass()
        elif "Hires resize" in self._parameters:
            size = self.options.get("size") or (0, 0)
            self.take("Hires resize", "hires_size", lambda text: _completed_size(text, *size))
            self.text("Hires upscale")
        else:
            self.take("Hires upscale", "hires_scale", _number_within(1, 8))
        self.take("Hires steps", "hires_steps", _integer_within(0, MOST_STEPS))
        self.take("Hires strength", "denoising", _number_within(0, 1))  # of SD.Next, beside that of its first pass
        if "Hires upscaler" in self._parameters:
            self._take_upscaler()
        self.take("Hires prompt", "hires_prompt", _checked_prompt)
        self.take("Hires negative prompt", "hires_negative_prompt", str)

    def _take_upscaler(self) -> None:
        """Takes the upscaler over, or the nearest that hnetkit has; A1111 enlarges with ``None`` as with Lanczos."""
        text = self.text("Hires upscaler")
        nearest = text if text in UPSCALERS else "Latent" if text.startswith("Latent") else "Lanczos"
        self.options["hires_upscaler"] = nearest
        if text not in (*UPSCALERS, "None"):
            self.warnings.append(f"Hires upscaler: {excerpt(text)} cannot be taken over; {nearest} is used")

    def _take_first_pass(self) -> None:
        """Takes the two passes of A1111 in 2022 over: ``Size`` is that of the second, ``0x0`` of the first is any."""
        size = self.options.get("size")
        if size is None:
            return
        self.take("First pass size", "first_size", lambda text: _first_pass_size(text, *size))
        first_size = self.options.pop("first_size", None)
        if first_size is None:
            return
        self.options["size"], self.options["hires_size"] = first_size, size
        if "Hires upscaler" not in self._parameters:
            first = "x".join(map(str, first_size))
            self.warnings.append(
                f"it was drawn in two passes, the first of {first}; it does not say how that was enlarged: Latent is "
                "used, --hires-upscaler Lanczos is the other way"
            )

    def files(self) -> dict[str, RecordedFile]:
        """Returns the files that the image was drawn with; see `ImageSettings.files`."""
        model = self._recorded("Model", "Model hash", self._hashes.get("model", ""))
        vae = self._recorded("VAE", "VAE hash", self._hashes.get("vae", ""))
        image = self._recorded("Start image", "Start image hash")
        mask = self._recorded("Mask image", "Mask image hash")
        was_repainted = "Denoising strength" in self._parameters and not self.has_second_pass
        was_masked = was_repainted and not self._parameters.keys().isdisjoint(_MASK_KEYS)
        parts = self._recorded("", "Model parts hash")
        found = {
            "model": model,
            "parts": parts,
            "vae": vae if vae.name not in ("None", "Automatic") else RecordedFile("", ""),
        }
        files = {kind: file for kind, file in found.items() if file != ("", "")}
        return files | ({"image": image} if was_repainted else {}) | ({"mask": mask} if was_masked else {})

    def _recorded(self, name_key: str, hash_key: str, known: str = "") -> RecordedFile:
        if name_key in ("Start image", "Mask image"):
            self._read |= {name_key, hash_key}
        digits = (known or self._parameters.get(hash_key, "")).lower()
        return RecordedFile(self._parameters.get(name_key, ""), digits if _DIGITS.fullmatch(digits) else "")


def _drawn_otherwise(program: str, info: Infotext, sampler: str) -> Iterator[str]:
    """Yields warnings about what ComfyUI, or a program made of it, computes otherwise than A1111."""
    weights = "weights in round brackets"
    texts = (info.prompt, info.negative_prompt, info.parameters.get("Hires prompt", ""))
    if any(map(_WEIGHT.search, texts)) and not any(weights in said for said in info.warnings):
        yield f"its prompt has {weights}, which {program} applies in another way than A1111"
    if any(cleaned(text) != normal_form("NFC", text) for text in texts):
        signs = "signs such as \u201c or \uff0c"
        yield f"its prompt has {signs}, which A1111 reads as the plain ones, and {program} may not"
    is_of_graph = "RNG" in info.parameters  # which no text states; prompts of graphs are in our language by then
    said: dict[str, None] = {}
    for passed in filter(None, (info, info.second_pass)):
        numbers = ["a number at its end"] * (as_whole_text(passed.prompt) != passed.prompt)
        said |= dict.fromkeys(plain_elsewhere(program, passed.prompt, passed.negative_prompt, *numbers))
    yield from () if is_of_graph else said
    if _NOISY_STEPS.search(sampler):
        yield f"{sampler} adds noise in every step, which {program} makes in another way: the picture will differ"


def _is_of_diffusers(info: Infotext) -> bool:
    """Whether SD.Next drew an image with diffusers, and not as it did at first, with the code of A1111.

    Source: vladmandic/automatic modules/processing_info.py, modules/sd_samplers_diffusers.py (behavior only).
    """
    given = info.parameters
    return given.get("Backend", given.get("Pipeline", "Original")) != "Original"


def _age_of_timelines(info: Infotext) -> str | None:
    """Returns how a warning begins that is about A1111 before 1.6; None if a later one drew the picture."""
    version = info.parameters.get("Version")
    number = _VERSION.match(version or "")
    is_old = _OLD_TIMELINES in info.parameters or (number is not None and tuple(map(int, number.groups())) < (1, 6))
    if version and not is_old:
        return None
    return f"{'it was drawn' if is_old else 'if it was drawn'} by A1111 before 1.6, or with its old timelines, "


def _times_read_otherwise(info: Infotext, age: str) -> Iterator[str]:
    """Yields a warning if a prompt changes at a number with a point that A1111 before 1.6 counted as a step."""
    texts = (info.prompt, info.negative_prompt, info.parameters.get("Hires prompt", ""))
    times = dict.fromkeys(time[1] for text in texts for time in _OLD_STEP.finditer(text))
    if times:
        named = ", ".join(map(excerpt, list(times)[:_MOST_SHOWN]))
        yield f"{age}{named} in its prompt is a step; here it is a share of all steps: leave the point out"


def _changes_begun_anew(age: str, prompts: Mapping[str, str], options: Mapping[str, Any]) -> Iterator[str]:
    """Yields a warning if the prompt of a second pass changes, and A1111 before 1.6 made the changes in each pass."""
    steps = options.get("steps", 20)
    again = options.get("hires_steps") or steps
    texts = (options.get("hires_prompt") or prompts.get("prompt"), prompts.get("negative prompt"))
    try:
        changes = any(text and schedule(text, again) != schedule(text, again, steps) for text in texts)
    except UsageError:  # said where it is drawn
        return
    if changes:
        yield (
            f"{age}the second pass began the changes of the prompt anew; here it goes on where the first one ends. In "
            "--hires-prompt, times from 1 to 2 such as [a:b:1.5] begin anew"
        )


def _networks_outside(info: Infotext) -> Iterator[str]:
    """Yields warnings about networks that the settings name and no prompt has, so that nothing says their strengths."""
    prompts = "\n".join((info.prompt, info.parameters.get("Hires prompt", ""))).casefold()
    keys = (key.partition(":") for key in info.hashes)
    hashed = [name for kind, _, name in keys if kind in ("hypernet", "lora")]
    applied = {mention.name for mention in hypernetworks_of(info).networks}
    named = [excerpt(name) for name in hashed if name not in applied and f":{name.casefold()}" not in prompts]
    if named:
        yield f"its hashes name networks that its prompt does not, which are not applied: {_listed(named)}"
    if resources := civitai.untagged_networks(info):
        listed = _listed([excerpt(name) for name in resources])
        yield f"Civitai's list in it has networks that are not applied: {listed}; add their tags to the prompt"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""
    return f"{', '.join(names[:_MOST_SHOWN])}{more}"


def _stated(info: Infotext) -> StatedHashes:
    passes = (info, info.second_pass or Infotext("", "", {}))
    return StatedHashes(*(tuple(mention.hash for mention in _in_tags(of)) for of in passes))


def _in_tags(info: Infotext) -> Iterator[Mention]:
    """Yields the networks of an infotext that are tags of its prompt."""
    return (mention for mention in hypernetworks_of(info).networks if fits_in_tag(mention.name))


def _hashes(info: Infotext) -> dict[str, str]:
    """Returns the hashes in the form that programs write today; older forms are hashes of another kind."""
    mentions = hypernetworks_of(info).networks
    mentioned = {f"hypernet:{mention.name}": mention.hash for mention in mentions if mention.hash}
    older = {key for key in info.hashes if key.startswith("lora:")} if "Hashes" not in info.parameters else set()
    found = {**info.hashes, **mentioned}
    found.setdefault("model", info.parameters.get("Model hash", ""))
    return {key: digits for key, digits in found.items() if key not in older and _SHA256.fullmatch(digits)}


def _embeddings(info: Infotext) -> Iterator[str]:
    """Yields the names of the textual inversions of an image, by their hashes or by name alone."""
    yield from (key.partition(":")[2] for key in info.hashes if key.startswith("embed:"))
    for key in EMBEDDINGS:
        names = (_HASH_BEHIND.sub("", name).strip() for name in info.parameters.get(key, "").split(","))
        yield from filter(None, names)


def _checked_prompt(text: str, steps: int = 1) -> str:
    if _is_json(text):
        raise UsageError("it is another program's JSON, and no prompt")
    require_prompt(text, steps)
    tagged = split_tags(text)
    count = sum(map(len, (tagged.tags, tagged.loras, tagged.unknown, tagged.warnings)))
    if count > MOST_MENTIONED:
        raise UsageError(f"{count:,} tags are in it; at most {MOST_MENTIONED}")
    return text


def _is_json(text: str) -> bool:
    """Whether a text is a JSON object, into which some programs write all their settings."""
    if not (text.startswith("{") and text.endswith("}")):
        return False
    try:
        return isinstance(parse_json(text), dict)
    except ValueError:
        return False


def _image_size(text: str) -> tuple[int, int]:
    size = parse_size(text)
    if not has_room(*size):
        raise ValueError(text)
    return size


def _completed_size(text: str, width: int, height: int) -> tuple[int, int]:
    """Reads ``WIDTHxHEIGHT``, where a 0 means: as the other side demands it of a picture of `width` and `height`."""
    wide, high = parse_size(text)
    if not (wide and high) and width and height:
        wide, high = wide or high * width // height, high or wide * height // width
        text = f"{wide // 8 * 8}x{high // 8 * 8}"
    return _image_size(text)


def _first_pass_size(text: str, width: int, height: int) -> tuple[int, int]:
    """Reads the size of a first pass; for ``0x0`` returns the one that A1111 of 2022 took for a picture's size."""
    if 0 not in parse_size(text):
        return _image_size(text)
    scale = math.sqrt(_OLD_FIRST_PASS / (width * height))
    return math.ceil(scale * width / 64) * 64, math.ceil(scale * height / 64) * 64


def _integer_within(lowest: int, highest: int) -> Callable[[str], float]:
    return _value_within(int, lowest, highest)


def _number_within(lowest: float, highest: float) -> Callable[[str], float]:
    return _value_within(float, lowest, highest)


def _value_within(kind: Callable[[str], float], lowest: float, highest: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = kind(text)
        if not lowest <= value <= highest:
            raise ValueError(text)
        return value

    return read


def image_facts(file: OpenFile, registry: Registry | None = None) -> tuple[Row, NoSettings | None] | None:
    """Returns what `hnetkit inspect --json` prints of an image or a text of settings; with the error if it has none.

    Args:
        registry: of the library; None is that of `hnetkit.paths.home` if there is one. None is created.

    Returns:
        None if the file is neither an image of a format that carries settings, nor a text file with settings.

    Raises:
        FileRefused: its texts are damaged or too large.
    """
    kind = image_format(file.read_at(0, min(12, file.size)))
    if kind is None and PurePath(file.path).suffix.lower() != ".txt":
        return None
    failure = None
    try:
        info = read_infotext(file)
    except NoSettings as error:
        if kind is None:
            return None
        info, failure = Infotext("", "", {}), error
    mentioned = [hypernetworks_of(of) for of in (info, info.second_pass) if of is not None]
    bundled = demo.comes_with(settings.get("model"))
    with opened_when_needed(registry) as library:
        found = [_rows_of_networks(of.networks, library, bundled) for of in mentioned]
    networks = [{**row, "pass": number} for number, (rows, _) in enumerate(found, start=1) for row in rows]
    return {
        "path": file.path,
        "name": PurePath(file.path).stem,
        "format": kind or "text",
        "kind": "picture" if kind else "settings",
        "size_bytes": file.size,
        "sha256": None if is_sparse(file) else sha256_of(file),
        "prompt": info.prompt,
        "negative_prompt": info.negative_prompt,
        "settings": info.parameters,
        "hypernetworks": networks,
        "warnings": list(dict.fromkeys(chain(*(of.warnings for of in mentioned), *(doubts for _, doubts in found)))),
    }, failure


def _rows_of_networks(
    mentioned: Iterable[Mention], library: LibraryOpener, bundled: Mapping[str, Path]
) -> tuple[list[Row], list[str]]:
    """Returns the networks as rows, and warnings about those that may not be the image's."""
    rows, doubts = [], []
    for network in mentioned:
        held: Row = {"in_library": False, "comes_with_model": False, "found_as": None, "path": None}
        try:
            found = find_network(network.name, network.hash, library, bundled)
        except AmbiguousName as error:
            held["in_library"] = True
            doubts.append(f"{error}; {error.command_hint}")
        except HnetkitError:
            pass
        else:
            path = next((path for path in found.files if is_file_at(path)), None)
            if path is not None:
                key = "comes_with_model" if found.is_bundled else "in_library"
                held |= {key: True, "found_as": found.network.name, "path": str(path)}
                doubts += [found.doubt] if found.doubt else []
        rows.append({**network._asdict(), **held})
    return rows, doubts
