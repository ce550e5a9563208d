"""What the webui calls: the tag of hypernetworks in a prompt, and the moment before each sampling."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from hnetkit.errors import HnetkitError, printable
from hnetkit.prompts.tags import Tag, split_tags
from hnetkit.runtime.network_files import NetworkFile
from hnetkit.webui.files import NamedFiles
from hnetkit.webui.networks import patched

_TAGS = "hnetkit_tags"  # of a generation: what its prompt asks for now
_HASHES = "hnetkit_hashes"  # likewise: name -> hash of what was applied in this batch


def register() -> type | None:
    """Takes over the tag, and returns the script that the webui runs; None where that applies hypernetworks itself."""
    if importlib.util.find_spec("modules_forge") is None:
        logging.warning("hnetkit: this webui applies hypernetworks itself, so the extension does nothing")
        return None
    from modules import extra_networks, script_callbacks, scripts  # type: ignore[import-not-found]

    class HypernetTag(extra_networks.ExtraNetwork):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__("hypernet")

        def activate(self, p: Any, params_list: Any) -> None:
            setattr(p, _TAGS, _tags(p, params_list))

        def deactivate(self, p: Any) -> None:
            setattr(p, _TAGS, [])

    class HypernetworkScript(scripts.Script):  # type: ignore[misc]
        def title(self) -> str:
            return "Hypernetworks (hnetkit)"

        def show(self, is_img2img: bool) -> Any:
            return scripts.AlwaysVisible

        def process_batch(self, p: Any, *args: Any, **options: Any) -> None:
            _set_hashes(p, {})

        def process_before_every_sampling(self, p: Any, *args: Any, **options: Any) -> None:
            apply(p)

    script_callbacks.on_before_ui(lambda: extra_networks.register_extra_network(HypernetTag()))
    return HypernetworkScript


def apply(p: Any) -> None:
    """Puts the networks of a generation's prompt on its model for the sampling that comes.

    The webui takes them off: it begins each sampling with the model as it was. What cannot be applied is left out and
    said beneath the picture.
    """
    applied = _put_on_model(p)
    _set_hashes(p, getattr(p, _HASHES, {}) | {tag.name: file.sha256[:10] for file, tag in applied})
    if applied and getattr(p, "refiner_checkpoint_info", None) is not None:
        _say(p, "the refiner's steps are drawn without hypernetworks")


def _put_on_model(p: Any) -> list[tuple[NetworkFile, Tag]]:
    """Returns the networks that are on the model now."""
    tags: list[Tag] = getattr(p, _TAGS, [])
    if not tags:
        return []
    files, networks = NamedFiles(), list[tuple[NetworkFile, Tag]]()
    for tag in tags:
        try:
            networks.append((files.file(tag.name), tag))
        except HnetkitError as error:
            _say(p, error)
    if not networks:
        return []
    objects = p.sd_model.forge_objects
    try:
        result = patched(objects.unet, networks, getattr(p.sampler, "model_wrap_cfg", None))
    except HnetkitError as error:
        _say(p, error)
        return []
    objects.unet = result.unet
    for failure in result.failures:
        _say(p, failure)
    return result.applied


def _set_hashes(p: Any, hashes: dict[str, str]) -> None:
    """Has the infotext name the files of the passes of a batch that were drawn so far."""
    setattr(p, _HASHES, hashes)
    p.extra_generation_params.pop("Hypernet hashes", None)
    if hashes:
        p.extra_generation_params["Hypernet hashes"] = ", ".join(map(": ".join, hashes.items()))


def _tags(p: Any, params_list: Any) -> list[Tag]:
    """Returns the tags of a prompt, and the one that the webui's settings add to every prompt."""
    from modules import shared

    added = getattr(shared.opts, "sd_hypernetwork", "None")
    written = [":".join(map(str, params.items)) for params in params_list]
    if added != "None" and not any(params.items[0] == added for params in params_list):
        strength = getattr(shared.opts, "extra_networks_default_multiplier", 1.0)
        written.append(f"{added}:{strength}")
        _write(p, added, f"<hypernet:{written[-1]}>")
    read = split_tags("".join(f"<hypernet:{arguments}>" for arguments in written))
    for warning in read.warnings:
        _say(p, warning)
    return list(read.tags)


def _write(p: Any, name: str, tag: str) -> None:
    """Appends a tag to the prompts of a generation that do not name its network: what the infotext will say."""
    for pass_ in ("all_prompts", "all_hr_prompts"):
        prompts = getattr(p, pass_, None)
        if prompts:
            has = [any(own.name == name for own in split_tags(prompt).tags) for prompt in prompts]
            setattr(p, pass_, [prompt if named else prompt + tag for prompt, named in zip(prompts, has, strict=True)])


def _say(p: Any, problem: HnetkitError | str) -> None:
    """Shows a problem where the webui shows them: beneath the picture, and in the console."""
    hint = problem.command_hint if isinstance(problem, HnetkitError) else None
    said = printable(str(problem))  # of a warning, the text of a prompt, which may be a stranger's
    text = f"hnetkit: {said}. {hint}" if hint and not hint.startswith("-") else f"hnetkit: {said}"
    logging.warning("%s", text)
    p.comment(text)
