"""ComfyUI's graphs to the equivalent infotext: A1111's parameters, and a warning for what has no such term.

Source: comfyanonymous/ComfyUI nodes.py, comfy_extras/nodes_hypernetwork.py, nodes_custom_sampler.py and
nodes_upscale_model.py; AUTOMATIC1111/stable-diffusion-webui 1.10, modules/processing.py and sd_samplers_common.py;
Mikubill/sd-webui-controlnet (behavior only).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from hnetkit.limits import Budget
from hnetkit.prompts.comfyui.controls import control_units
from hnetkit.prompts.comfyui.enlarging import Enlargement, Size, enlargement_by
from hnetkit.prompts.comfyui.graph import Graph, Node, NodeLink, file_name, read_graph
from hnetkit.prompts.comfyui.nodes import SAMPLED_OTHERWISE
from hnetkit.prompts.comfyui.others import warn_of_others
from hnetkit.prompts.comfyui.passes import Made, Pass, checkpoint_of, find_passes
from hnetkit.prompts.comfyui.wording import picture_in
from hnetkit.prompts.infotext import Infotext
from hnetkit.prompts.tags import excerpt, plain_number

MOST_STEPS = 2_000_000
"""Steps from node to node that reading a graph may take; a graph of a hundred nodes takes a few hundred."""

_MOST_WARNINGS = 50
_MAY_BE_EMPTY = "Hires negative prompt"  # of a second pass, where the first one has some
Parameters = dict[str, str | None]


def parse(
    prompt: str | None, workflow: str | None = None, budget: Budget | None = None, size: Size | None = None
) -> Infotext:
    """Converts the graphs of an image to an infotext in A1111's terms; it is empty if they hold nothing known.

    Networks become tags at the end of the prompt, in stacking order; a second sampler becomes A1111's second pass. A
    text that is not a graph is ignored.

    Args:
        budget: for reading the graphs; None makes a new one.
        size: of the image, which counts where the graph does not say it; None if it is not known.

    Raises:
        UnsafeFile: reading the graphs would take too much memory or too many steps.
    """
    graph = read_graph(prompt, workflow, budget or Budget(work=MOST_STEPS))
    made = find_passes(graph, size)
    first = made.passes[0]
    positive, negative = first.prompt, first.negative_prompt
    stated = _parameters(graph, made, size)
    found = {key: value for key, value in stated.items() if value is not None and (value or key == _MAY_BE_EMPTY)}
    if found.keys() <= {"Size"}:  # which every image has
        found = {}
    else:
        found |= {"RNG": "CPU"} if "Seed" in found else {}  # ComfyUI makes its noise on the CPU
        found |= {"Used embeddings": ", ".join(graph.embeddings)} if graph.embeddings else {}
        found |= {"ComfyUI loader": ", ".join(graph.loaded)} if graph.loaded else {}
        found["Version"] = "ComfyUI"
    warn_of_others(graph, made.end, first.size)
    return Infotext(positive, negative, found, _first_of(tuple(graph.warnings)))


def has_sampler(prompt: str | None, workflow: str | None = None) -> bool:
    """Whether the graphs of an image have a node that samples, of whatever pack; raises as `parse`."""
    graph = read_graph(prompt, workflow, Budget(work=MOST_STEPS))
    return any("sampler" in node.kind.lower() for node in graph.nodes.values())


def _first_of(warnings: tuple[str, ...]) -> tuple[str, ...]:
    if len(warnings) <= _MOST_WARNINGS:
        return warnings
    return (*warnings[:_MOST_WARNINGS], f"{len(warnings) - _MOST_WARNINGS:,} more warnings are left out")


def _parameters(graph: Graph, made: Made, size: Size | None) -> Parameters:
    first, *later = made.passes
    after = enlargement_by(graph, made.output, None)
    sampled_size = None if after.upscaler else size
    parameters: Parameters = {
        "Steps": str(first.steps) if first.steps else first.number("steps"),
        "Sampler": first.sampler_name,
        "Schedule type": first.schedule_type,
        "CFG scale": first.cfg_scale,
        "Seed": first.seed,
        "Size": _size(first.size or (None if later else sampled_size)),
        "Model": first.model,
        "VAE": _vae(graph, made),
        "Clip skip": first.clip_skip("positive"),
    }
    _warn_of_parts(graph, made.passes)
    _warn_of_other_checkpoints(graph, made)
    if later and later[0].goes_on:
        refiner, *later = later
        parameters |= _refiner(graph, first, refiner)
    if first.encoder is not None:
        parameters |= _start(graph, first, first.encoder)
    elif first.denoising < 1:
        stated = plain_number(round(first.denoising, 4))
        graph.warn(f"it began with an empty latent at a denoising strength of {stated}; A1111 begins with noise alone")
    if later:
        parameters |= _second_pass(graph, first, later, sampled_size)
    parameters |= control_units(graph, first, later[-1] if later else None)
    return parameters | _after_sampling(after)


def _size(size: tuple[int, int] | None) -> str | None:
    return f"{size[0]}x{size[1]}" if size and all(size) else None


def _start(graph: Graph, first: Pass, encoder: Node) -> Parameters:
    """Image-to-image. A1111 makes one step more than the part of the schedule that it is asked for."""
    mask = _mask(graph, first.before)
    steps, made = first.steps_of_schedule, first.steps_made
    stated = denoising = plain_number(round(first.denoising, 4))
    if made and int(min(first.denoising, 0.999) * steps) + 1 != made:
        denoising = plain_number(round(first.denoising - 0.001, 4))
    if steps != first.steps:
        graph.warn(f"{made} steps at a denoising strength of {stated} are {steps} steps at {denoising} in A1111")
    return {
        "Steps": str(steps) if steps else None,
        "Denoising strength": denoising,
        "Start image": picture_in(graph, encoder, "pixels", "image", "images", "samples"),
        "Mask blur": None if mask is None else "0",
        "Mask image": mask,
    }


def _mask(graph: Graph, nodes: Sequence[Node]) -> str | None:
    """The file of the mask that some nodes apply, empty if it is not known; None if there is no mask."""
    masked = next((node for node in nodes if isinstance(node.inputs.get("mask"), NodeLink)), None)
    return None if masked is None else picture_in(graph, masked, "mask", "image")


def _warn_of_parts(graph: Graph, passes: Sequence[Pass]) -> None:
    """Warns of passes that are less than a whole run, unless another one goes on, sample otherwise, or are unread."""
    for one, following in zip_longest(passes, passes[1:]):
        for name, origin in one.unread:
            instead = ": 1 is used" if name == "denoise" else ""
            graph.warn(f"its {name} comes from {graph.origin(origin)}, which is not read{instead}")
        if one.stops_at is not None and not (following and following.goes_on):
            graph.warn(f"its sampling stops after step {one.stops_at} of {one.steps}; in A1111 it makes all of them")
        if not one.adds_noise and not one.goes_on:
            graph.warn("a pass of it begins without added noise; in A1111 noise is added")
        sampler = graph.text(one.inputs.get("sampler_name"))
        if sampler in SAMPLED_OTHERWISE:
            graph.warn(f"ComfyUI's {sampler} {SAMPLED_OTHERWISE[sampler]}: the picture will differ")


def _warn_of_other_checkpoints(graph: Graph, made: Made) -> None:
    """Warns of a text encoder or autoencoder of another checkpoint than the model's, and of two clip skips."""
    for one in made.passes:
        encoders = {side: one.encoders(side) for side in ("positive", "negative")}
        for side, nodes in encoders.items():
            other = checkpoint_of(graph, nodes)
            if other and one.model and other != one.model:
                graph.warn(
                    f"its {side} prompt is read by the text encoder of {excerpt(other)}; in A1111 by the model's"
                )
        if encoders["negative"] and one.clip_skip("positive") != one.clip_skip("negative"):
            graph.warn("its negative prompt has another clip skip; in A1111 it has that of the prompt")
    decoders = [node for node in made.output if isinstance(node.inputs.get("vae"), NodeLink)]
    loaders = list(graph.chain(decoders[-1], "vae")) if decoders else []
    other = "" if _vae(graph, made) else checkpoint_of(graph, loaders)
    if other and other not in {one.model for one in made.passes}:
        graph.warn(f"it is decoded by the VAE of the checkpoint {excerpt(other)}; in A1111 by the model's")


def _refiner(graph: Graph, first: Pass, refiner: Pass) -> Parameters:
    """A sampler that goes on where the first one stops."""
    if (refiner.prompt, refiner.negative_prompt) != (first.prompt, first.negative_prompt):
        graph.warn(f"after step {refiner.first_step} it has other prompts or networks: {excerpt(refiner.prompt)}")
    names = ("sampler_name", "schedule_type", "cfg_scale", "steps")
    others = [str(value) for name in names if (value := getattr(refiner, name)) != getattr(first, name)]
    if others:
        graph.warn(f"after step {refiner.first_step} it has other settings: {excerpt(', '.join(others))}")
    if refiner.model == first.model:
        return {}
    return {
        "Refiner": refiner.model,
        "Refiner switch at": plain_number(round(refiner.first_step / max(first.steps, 1), 4)),
    }


def _second_pass(graph: Graph, first: Pass, later: Sequence[Pass], size: Size | None) -> Parameters:
    """A1111's high-resolution fix. There, too, all of its steps are made in the part of the schedule that is left."""
    last = later[-1]
    way = [node for one in reversed(later) for node in one.way]
    enlargement = enlargement_by(graph, way, first.size)
    if not enlargement.is_known:
        enlargement = replace(enlargement, size=size)
    with_networks = f" with {excerpt(last.networks)}" if last.networks else ""
    if first.encoder is not None:
        graph.warn(f"its second pass{with_networks} is left out: A1111 has none after a picture to begin with")
        return {}
    if not enlargement.is_known:
        by = f" by which {excerpt(enlargement.upscaler)} enlarges it" if enlargement.upscaler else ""
        graph.warn(f"its second pass{with_networks} is left out: the graph does not say the size{by}")
        return {}
    if len(later) > 1:
        graph.warn(f"{len(later) + 1} passes made it; only the first and the last are taken over")
    if last.seed != first.seed:
        graph.warn(f"its second pass has its own seed, {last.seed}; in A1111 it has the first one's")
    if last.clip_skip("positive") != first.clip_skip("positive"):
        graph.warn("its second pass has another clip skip; in A1111 it has the first one's")
    if first.prompt and not last.prompt:
        graph.warn("its second pass has no prompt; in A1111 it has the first one's")
    mask = _mask(graph, way)
    if mask is not None:
        graph.warn(f"its second pass has a mask, {excerpt(mask) or 'made in the graph'}; in A1111 it has none")
    return {
        "Denoising strength": plain_number(round(last.denoising, 4)),
        "Hires resize": _size(enlargement.size),
        "Hires upscale": enlargement.factor_text,
        "Hires steps": _other(str(last.steps_made), str(first.steps)),
        "Hires upscaler": enlargement.upscaler or "Latent",
        "Hires checkpoint": _other(last.model, first.model),
        "Hires sampler": _other(last.sampler_name, first.sampler_name),
        "Hires schedule type": _other(last.schedule_type, first.schedule_type),
        "Hires CFG Scale": _other(last.cfg_scale, first.cfg_scale),
        "Hires prompt": _other(last.prompt, first.prompt),
        "Hires negative prompt": _other(last.negative_prompt, first.negative_prompt),
    }


def _other(value: str | None, usual: str | None) -> str | None:
    return None if value == usual else value


def _vae(graph: Graph, made: Made) -> str | None:
    """The VAE that decodes the image, if it has a file of its own."""
    decoders = [node for node in made.output if isinstance(node.inputs.get("vae"), NodeLink)]
    loaders = (node for decoder in decoders[-1:] for node in graph.chain(decoder, "vae"))
    name = next((name for node in loaders if (name := graph.text(node.inputs.get("vae_name")))), "")
    return None if name in ("", "Baked VAE") else file_name(name)


def _after_sampling(enlargement: Enlargement) -> Parameters:
    """What enlarges the finished image: A1111's extras."""
    if not enlargement.upscaler:
        return {}
    return {
        "Postprocess upscale by": enlargement.factor_text,
        "Postprocess upscale to": _size(enlargement.size),
        "Postprocess upscaler": enlargement.upscaler,
    }
