"""The settings of an image: written as A1111's infotext, read back as options, and listed for `hnetkit inspect`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from hnetkit import demo, settings
from hnetkit.errors import AmbiguousName, HnetkitError, NoSettings, UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import is_sparse
from hnetkit.generate.image_text import image_format, read_infotext
from hnetkit.generate.prompt_networks import NONE_STATED, StatedHashes
from hnetkit.generate.request import LARGEST_SEED, MOST_STEPS, UPSCALERS, Request, SecondPass, has_room, require_prompt
from hnetkit.generate.sampling.samplers import infotext_fields, sampler_of
from hnetkit.hashes import sha256_of
from hnetkit.images import parse_size
from hnetkit.library.resolve import LibraryOpener, find_network, opened_when_needed
from hnetkit.limits import parse_json
from hnetkit.prompts import infotext
from hnetkit.prompts.infotext import MOST_MENTIONED, Infotext, Mention, hypernetworks_of
from hnetkit.prompts.tags import excerpt, fits_in_tag, plain_number, split_tags
from hnetkit.registry.store import Registry

if TYPE_CHECKING:
    from hnetkit.generate.loading.pipeline import LoadedPipeline

Row = dict[str, Any]

EMPHASIS = {"original": "Original", "no-norm": "No norm", "ignore": "Ignore", "none": "None"}
"""Our name of an emphasis -> A1111's."""

_SHA256 = re.compile(r"[0-9a-f]{10,64}")
_SECOND_PASS_KEYS = frozenset({"Hires upscale", "Hires resize"})
_MOST_SHOWN = 10
# parameters that are read, and parameters that do not say how the image was drawn
_KNOWN = frozenset(
    {
        "Batch pos",
        "Batch size",
        "CFG scale",
        "Civitai metadata",
        "Civitai resources",
        "Clip skip",
        "Created Date",
        "Denoising strength",
        "ENSD",
        "Emphasis",
        "Hashes",
        "Hires negative prompt",
        "Hires prompt",
        "Hires resize",
        "Hires steps",
        "Hires upscale",
        "Hires upscaler",
        "Hypernet",
        "Hypernet hash",
        "Hypernet hashes",
        "Hypernet strength",
        "Hypernetwork strength",
        "Hypernetworks",
        "Hypernetworks Strengths",
        "Lora hashes",
        "Model",
        "Model hash",
        "RNG",
        "Sampler",
        "Schedule type",
        "Seed",
        "Size",
        "Steps",
        "TI hashes",
        "Time taken",
        "User",
        "VAE hash",
        "Variation seed",
        "Variation seed strength",
        "Version",
    }
)


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """The settings that an image carries.

    Attributes:
        prompt: with tags; None if no image was read, or its prompt cannot be used.
        seed: None if the image states none.
        options: option -> value, by the names of `hnetkit.generate.options.DrawOptions`.
        hashes: ``hypernet:NAME``, ``lora:NAME`` and ``model`` -> the first 10 or more hex digits of the sha256 of the
            file that the image was drawn with, as far as it states them.
        warnings: what could not be used, one line each.
        stated: the hashes of the networks in its prompts.
    """

    prompt: str | None = None
    seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    stated: StatedHashes = NONE_STATED


def read_image_settings(path: Path) -> ImageSettings:
    """Returns the settings of an image file.

    Raises:
        NotFound: there is no such file, or it carries no settings.
        FileRefused: it cannot be read safely.
    """
    with OpenFile(path) as file:
        return settings_from_infotext(read_infotext(file))


def settings_from_infotext(info: Infotext) -> ImageSettings:
    """Returns the settings in an infotext, by the names of our options.

    A1111 states its source of noise only if it is not CUDA's generator; hnetkit always states it.
    """
    options: dict[str, Any] = {}
    warnings = list(info.warnings)

    def take(key: str, name: str, read: Callable[[str], Any]) -> None:
        text = info.parameters.get(key)
        if text is None:
            return
        try:
            options[name] = read(text)
        except (ValueError, KeyError, UsageError):
            warnings.append(f"{key}: {excerpt(text)} cannot be taken over")

    def sampler(text: str) -> str:
        return sampler_of(text, info.parameters.get("Schedule type"))

    take("Steps", "steps", _integer_within(1, MOST_STEPS))
    take("Sampler", "sampler", sampler)
    take("CFG scale", "cfg_scale", _number_within(1, 1000))
    take("Seed", "seed", _integer_within(0, LARGEST_SEED))
    take("Size", "size", _image_size)
    take("Clip skip", "clip_skip", _integer_within(1, 12))
    take("ENSD", "eta_seed_delta", _integer_within(-LARGEST_SEED, LARGEST_SEED))
    take("Emphasis", "emphasis", {theirs: ours for ours, theirs in EMPHASIS.items()}.__getitem__)
    take("Variation seed", "variation_seed", _integer_within(0, LARGEST_SEED))
    take("Variation seed strength", "variation_strength", _number_within(0, 1))
    take("RNG", "rng", {"CPU": "cpu", "NV": "nv", "GPU": "nv"}.__getitem__)
    options.setdefault("rng", "nv")
    take("Denoising strength", "denoising", _number_within(0, 1))
    _take_second_pass(info, take)
    warnings += _unused_settings(info)
    prompts: dict[str, str] = {}
    for name, text in (("prompt", info.prompt), ("negative prompt", info.negative_prompt)):
        try:
            prompts[name] = _checked_prompt(text, options.get("steps", 1))
        except UsageError as error:
            warnings.append(f"its {name} cannot be taken over: {error}")
    options["negative_prompt"] = prompts.get("negative prompt")
    options["width"], options["height"] = options.pop("size", (None, None))
    seed = options.pop("seed", None)
    given = {name: value for name, value in options.items() if value is not None}
    return ImageSettings(prompts.get("prompt"), seed, given, _hashes(info), tuple(warnings), _stated(info))


def _stated(info: Infotext) -> StatedHashes:
    hires = Infotext(info.parameters.get("Hires prompt", ""), "", {"Hashes": info.parameters.get("Hashes", "")})
    return StatedHashes(*(tuple(mention.hash for mention in _in_tags(of)) for of in (info, hires)))


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


def _unused_settings(info: Infotext) -> Iterator[str]:
    """Yields a warning for each setting that shaped the image and cannot be used."""
    if "Denoising strength" in info.parameters and not info.parameters.keys() & _SECOND_PASS_KEYS:
        yield "it was drawn over another picture, which is not in it: --image FILE"
    others = [key for key in info.parameters if key not in _KNOWN]
    if others:
        more = f" and {len(others) - _MOST_SHOWN} more" if len(others) > _MOST_SHOWN else ""
        yield f"not taken over: {', '.join(map(excerpt, others[:_MOST_SHOWN]))}{more}"


def _take_second_pass(info: Infotext, take: Callable[[str, str, Callable[[str], Any]], None]) -> None:
    if not info.parameters.keys() & _SECOND_PASS_KEYS:
        return
    if "Hires resize" in info.parameters:
        take("Hires resize", "hires_size", _image_size)
    else:
        take("Hires upscale", "hires_scale", _number_within(1, 8))
    take("Hires steps", "hires_steps", _integer_within(0, MOST_STEPS))
    take("Hires upscaler", "hires_upscaler", _known_upscaler)
    take("Hires prompt", "hires_prompt", _checked_prompt)
    take("Hires negative prompt", "hires_negative_prompt", str)


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


def _known_upscaler(text: str) -> str:
    if text not in UPSCALERS:
        raise ValueError(text)
    return text


def _image_size(text: str) -> tuple[int, int]:
    size = parse_size(text)
    if not has_room(*size):
        raise ValueError(text)
    return size


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


def infotext_of(
    model: LoadedPipeline,
    request: Request,
    seed: int,
    prompt: str,
    hashes: Mapping[str, str],
) -> str:
    """Returns A1111's infotext for one image of a request.

    Args:
        prompt: as it is stored, with the tags of its hypernetworks.
        hashes: ``"hypernet:NAME"`` or ``"lora:NAME"`` -> 10 hex digits.
    """
    sampler, schedule_type = infotext_fields(request.sampler)
    parameters = {
        "Steps": request.steps,
        "Sampler": sampler,
        "Schedule type": schedule_type,
        "CFG scale": f"{request.cfg_scale:g}",
        "Seed": seed,
        "Size": f"{request.width}x{request.height}",
        "Model hash": model.hash,
        "Model": model.name,
        **_beside_defaults(request, seed),
        "Version": f"hnetkit {version('hnetkit')}",
    }
    return infotext.write(prompt, request.negative_prompt, parameters, {"model": model.hash, **hashes})


def _beside_defaults(request: Request, seed: int) -> dict[str, object]:
    """Returns the parameters that A1111 leaves out at their defaults; None leaves one out here too."""
    init, second = request.init_image, request.second
    varied = request.variation_strength > 0
    denoising = init.denoising if init else second.denoising if second else None
    parameters: dict[str, object] = {
        "Variation seed": request.variation_seed + seed - request.seed if varied else None,
        "Variation seed strength": plain_number(request.variation_strength) if varied else None,
        "Denoising strength": None if denoising is None else plain_number(denoising),
        "Mask blur": plain_number(init.mask_blur) if init and init.mask else None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        "ENSD": request.eta_seed_delta or None,
        "RNG": request.rng.upper(),
        "Emphasis": EMPHASIS[request.emphasis] if request.emphasis != "original" else None,
    }
    return parameters if second is None else parameters | _second_pass_parameters(request, second)


def _second_pass_parameters(request: Request, second: SecondPass) -> dict[str, object]:
    has_own_negative = second.negative_prompt != request.negative_prompt
    return {
        "Hires resize": f"{second.width}x{second.height}",
        "Hires steps": second.steps if second.steps != request.steps else None,
        "Hires upscaler": second.upscaler,
        "Hires prompt": second.written if second.written else None,
        "Hires negative prompt": second.negative_prompt if has_own_negative else None,
    }


def image_facts(file: OpenFile, registry: Registry | None = None) -> tuple[Row, NoSettings | None] | None:
    """Returns what `hnetkit inspect --json` prints of an image; if it carries no settings, with that error.

    Args:
        registry: of the library; None is that of `hnetkit.paths.home` if there is one. None is created.

    Returns:
        None if the file is not an image of a format that carries settings.

    Raises:
        FileRefused: its texts are damaged or too large.
    """
    kind = image_format(file.read_at(0, min(12, file.size)))
    if kind is None:
        return None
    failure = None
    try:
        info = read_infotext(file)
    except NoSettings as error:
        info, failure = Infotext("", "", {}), error
    mentioned = hypernetworks_of(info)
    bundled = demo.comes_with(settings.get("model"))
    with opened_when_needed(registry) as library:
        networks, doubts = _rows_of_networks(mentioned.networks, library, bundled)
    return {
        "path": file.path,
        "name": PurePath(file.path).stem,
        "format": kind,
        "kind": "picture",
        "size_bytes": file.size,
        "sha256": None if is_sparse(file) else sha256_of(file),
        "prompt": info.prompt,
        "negative_prompt": info.negative_prompt,
        "settings": info.parameters,
        "hypernetworks": networks,
        "warnings": [*mentioned.warnings, *doubts],
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
            path = next((path for path in found.files if path.is_file()), None)
            if path is not None:
                key = "comes_with_model" if found.is_bundled else "in_library"
                held |= {key: True, "found_as": found.network.name, "path": str(path)}
                doubts += [found.doubt] if found.doubt else []
        rows.append({**network._asdict(), **held})
    return rows, doubts
