"""Runs the nodes in a real ComfyUI, as a program of its own: it needs ComfyUI's packages, and none of the tests'.

    COMFYUI_PYTHON real_comfyui.py COMFYUI_PATH FOLDER

`FOLDER` has ``unet.safetensors`` and ``step.safetensors`` from diffusers, ``hypernetworks`` and ``job.json``, whose
workflows are lists of nodes in a row. ``results.json`` and ``results.safetensors`` are written there.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import json
import logging
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMFYUI, FOLDER = (Path(path).resolve() for path in sys.argv[1:3])
sys.argv[1:] = ["--cpu", "--base-directory", str(FOLDER)]  # ComfyUI's own arguments
sys.path[0] = str(COMFYUI)

# ruff: noqa: E402 -- ComfyUI reads its arguments while it is imported

import comfy.options

comfy.options.enable_args_parsing()

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.supported_models
import comfy.utils
import folder_paths
import nodes as comfyui_nodes
import torch
from safetensors.torch import load_file, save_file

import hnetkit
import hnetkit.comfyui
from hnetkit.runtime import network_files

CPU = torch.device("cpu")
OWN = "HypernetworkLoader"
"""ComfyUI's own node."""


class Multiple(float):
    """A factor of channels; what it gives is a number of channels."""

    def __mul__(self, channels: int) -> int:
        return int(float(self) * channels)

    __rmul__ = __mul__


class Operations(comfy.ops.disable_weight_init):
    """ComfyUI's layers, with the bundled model's groups."""

    class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
        def __init__(self, num_groups: int, *arguments: Any, **options: Any) -> None:
            super().__init__(16, *arguments, **options)


class CastingOperations(comfy.ops.manual_cast):
    """The same, of layers that cast their weights."""

    class GroupNorm(comfy.ops.manual_cast.GroupNorm):
        def __init__(self, num_groups: int, *arguments: Any, **options: Any) -> None:
            super().__init__(16, *arguments, **options)


def made_model(*, dtype: torch.dtype = torch.float32, cast: torch.dtype | None = None, **changes: Any) -> Any:
    """ComfyUI's model of the bundled UNet's shape, its weights not set.

    Args:
        dtype: of the weights.
        cast: what they are cast to where they are used.
        changes: of its configuration.
    """
    config = {
        "image_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 64,
        "channel_mult": [1, Multiple(1.5)],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1],
        "use_spatial_transformer": True,
        "context_dim": 80,
        "dtype": dtype,
        **changes,
    }
    known = comfy.supported_models.SD15(config)
    known.unet_config["num_heads"] = 4
    known.custom_operations = CastingOperations if cast else Operations
    known.manual_cast_dtype = cast
    model = comfy.model_base.BaseModel(known, device=CPU)
    return comfy.model_patcher.ModelPatcher(model.eval(), CPU, CPU)


def bundled_model(**options: Any) -> Any:
    """The bundled UNet's weights in ComfyUI's UNet, in ComfyUI's model; see `made_model`."""
    model = made_model(**options)
    own_names = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    weights = load_file(FOLDER / "unet.safetensors")
    model.model.diffusion_model.load_state_dict({own_names[name]: weights[name] for name in weights})
    return model


def random_model(seed: int, **options: Any) -> Any:
    model = made_model(**options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.model.diffusion_model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.08)
    return model


NEWER = asyncio.run(asyncio.run(hnetkit.comfyui.comfy_entrypoint()).get_node_list())


def run(node: str, **inputs: Any) -> Any:
    """Runs a node of ours as ComfyUI does, by the newer API."""
    kind = next(own for own in NEWER if own.GET_SCHEMA().node_id == node)
    output = getattr(kind, kind.FUNCTION)(**inputs)
    if inspect.iscoroutine(output):
        output = asyncio.run(output)
    return output.result


def workflow(nodes: list[list[Any]], model: Any) -> Any:
    """Returns a model after nodes in a row, each given as its name and its inputs."""
    for name, inputs in nodes:
        if name == OWN:
            model = comfyui_nodes.NODE_CLASS_MAPPINGS[OWN]().load_hypernetwork(model, **inputs)[0]
        else:
            model = run(name, model=model, **inputs)[0]
    return model


def loaded(model: Any) -> Any:
    comfy.model_management.load_models_gpu([model])
    return model


def predict(model: Any, latents: Any, timesteps: Any, text: Any) -> Any:
    """Returns what the UNet predicts in one call, the patches in place."""
    options = {**loaded(model).model_options["transformer_options"], "sigmas": timesteps}
    with torch.inference_mode():
        return model.model.diffusion_model(latents, timesteps, context=text, transformer_options=options)


def patches_of(model: Any) -> list[Any]:
    kinds = model.model_options["transformer_options"].get("patches", {})
    return [patch for kind in ("attn1_patch", "attn2_patch") for patch in kinds.get(kind, [])]


def steps_in_window(model: Any, window: Any, text: Any) -> dict[str, list[str]]:
    """Samples; returns for each call of the UNet whether the network was applied, by sampler."""
    (full,) = run("HnetkitHypernetworkLoader", model=model, hypernetwork_name="dots.pt", strength=1.0)
    applied = {"on": full, "off": model}
    found: dict[str, list[str]] = {}

    def watch(calls: list[str]) -> Callable[..., Any]:
        def call(apply: Any, given: dict[str, Any]) -> Any:
            x, timestep, conditions = given["input"], given["timestep"], given["c"]
            output = apply(x, timestep, **conditions)
            options = conditions["transformer_options"]
            same = [
                name
                for name, other in applied.items()
                if torch.equal(
                    output, apply(x, timestep, **{**conditions, "transformer_options": with_patches(options, other)})
                )
            ]
            calls.append(" ".join(same))
            return output

        return call

    for sampler, scheduler in window["samplers"]:
        (own,) = run("HnetkitHypernetworkLoader", model=model, strength=1.0, **window["inputs"])
        calls = found[sampler] = []
        own = own.clone()
        own.set_model_unet_function_wrapper(watch(calls))
        sample(own, [[text[:1], {}]], [[text[:1], {}]], window["steps"], sampler, scheduler)
    return found


def texts_of_their_own(model: Any, text: Any) -> dict[str, int]:
    """Samples with prompts of unlike lengths, which ComfyUI asks the UNet for one by one, in one step each.

    Returns how many calls there were, in how many steps, and how many gave what they do by themselves.
    """
    (own,) = run("HnetkitHypernetworkLoader", model=model, hypernetwork_name="dots.pt", strength=1.0)
    own = own.clone()
    calls: list[tuple[Any, ...]] = []

    def keep(apply: Any, given: dict[str, Any]) -> Any:
        output = apply(given["input"], given["timestep"], **given["c"])
        calls.append((apply, given["input"], given["timestep"], dict(given["c"]), output))
        return output

    own.set_model_unet_function_wrapper(keep)
    sample(own, [[text[:1], {}]], [[text[1:, :10], {}]], 3, "euler", "normal", cfg=4.0)
    alone = 0
    with torch.inference_mode():
        for apply, x, timestep, conditions, output in calls:
            options = conditions["transformer_options"]
            fresh = {**options, "sigmas": options["sigmas"].clone()}
            alone += torch.equal(output, apply(x, timestep, **{**conditions, "transformer_options": fresh}))
    steps = {id(conditions["transformer_options"]["sigmas"]) for _, _, _, conditions, _ in calls}
    return {"calls": len(calls), "steps": len(steps), "alone": alone}


Attach = Callable[..., Any]
"""Returns a model with one network more: its name without suffix, its strength, and where it is applied, if not all."""


def by_nodes(model: Any, name: str, strength: float, blocks: str = "") -> Any:
    inputs = {"hypernetwork_name": f"{name}.pt", "strength": strength, "blocks": blocks}
    return run("HnetkitHypernetworkLoader", model=model, **inputs)[0]


def by_hand(model: Any, name: str, strength: float, blocks: str = "") -> Any:
    """Applies a network in each layer by itself; blocks are none, or the first level of the way up."""
    stack = hnetkit.Stack([(hnetkit.load(FOLDER / "models" / "hypernetworks" / f"{name}.pt"), strength)])

    def patch(kind: Any) -> Callable[..., Any]:
        def contexts(q: Any, k: Any, v: Any, options: Any) -> Any:
            if blocks and (options["block"][0] != "output" or options["block"][1] > 1):
                return q, k, v
            return q, stack(k, kind=kind)[0], stack(v, kind=kind)[1]

        return contexts

    own = model.clone()
    own.set_model_attn1_patch(patch("self"))
    own.set_model_attn2_patch(patch("cross"))
    return own


def not_at_all(model: Any, name: str, strength: float, blocks: str = "") -> Any:
    return model


def with_more_tokens(model: Any) -> Any:
    """A patch that gives every layer tokens of its own, as packs for regions and pictures do."""

    def patch(q: Any, k: Any, v: Any, options: Any) -> Any:
        more = torch.full_like(k[:, :3], 0.1)
        return q, torch.cat([k, more], 1), torch.cat([v, more * 2], 1)

    own = model.clone()
    own.set_model_attn2_patch(patch)
    return own


def among_other_nodes(model: Any, text: Any) -> dict[str, Callable[[Attach], Any]]:
    """Returns what ends in latents, by name, for any way to attach networks."""
    from comfy_extras.nodes_hypertile import HyperTile
    from comfy_extras.nodes_model_advanced import ModelComputeDtype
    from comfy_extras.nodes_model_merging import ModelMergeSimple
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance
    from comfy_extras.nodes_tomesd import TomePatchModel

    plus, minus = [[text[:1], {}]], [[text[1:], {}]]
    halves = [[text[:1], {"area": (8, 4, 0, 0)}], [text[1:, :40], {"area": (8, 4, 0, 4), "strength": 0.7}]]

    def between(change: Callable[[Any], Any], model: Any = model) -> Callable[[Attach], Any]:
        def drawn(attach: Attach) -> Any:
            own = attach(change(attach(model, "outline", 0.6)), "dots", 0.8)
            return sample(own, plus, minus, 3, "euler", "normal", cfg=4.0)

        return drawn

    def alone(model: Any, positive: Any, negative: Any, blocks: str = "") -> Callable[[Attach], Any]:
        def drawn(attach: Attach) -> Any:
            own = attach(attach(model, "outline", 0.6, blocks), "dots", 0.8)
            return sample(own, positive, negative, 3, "euler", "normal", cfg=4.0)

        return drawn

    def computed_in_fp16(own: Any) -> Any:
        return ModelComputeDtype().patch(own, "fp16")[0]

    deep = {"transformer_depth": [0, 2], "transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 2, 2]}
    sdxl = random_model(1, **deep)
    return {
        "texts of unlike lengths": alone(model, plus, [[text[1:, :10], {}]]),
        "areas": alone(model, halves, minus),
        "fp8": alone(bundled_model(dtype=torch.float8_e4m3fn, cast=torch.float32), plus, minus),
        "no attention at the first level": alone(sdxl, plus, minus),
        "a block of a model without attention at the first level": alone(sdxl, plus, minus, blocks="up_blocks.0"),
        "ToMe": between(lambda own: TomePatchModel.execute(own, 0.5).result[0]),
        "HyperTile": between(lambda own: HyperTile.execute(own, 32, 2, 0, False)[0]),
        "PAG": between(lambda own: PerturbedAttentionGuidance.execute(own, 3.0).result[0]),
        "more tokens": between(with_more_tokens),
        "a merge": between(lambda own: ModelMergeSimple().merge(own, random_model(2), 0.7)[0]),
        "another dtype": between(computed_in_fp16),
        "another dtype at the end": lambda attach: sample(
            computed_in_fp16(attach(model, "dots", 0.8)), plus, minus, 3, "euler", "normal", cfg=4.0
        ),
    }


def differences(drawn: Callable[[Attach], Any]) -> dict[str, float]:
    """Returns how far nodes are from networks by hand, and from none."""
    latents = {}
    for attach in (by_nodes, by_hand, not_at_all):
        torch.manual_seed(0)  # which tiles are drawn from
        latents[attach] = drawn(attach)
    return {
        "error": float((latents[by_nodes] - latents[by_hand]).abs().max()),
        "effect": float((latents[by_nodes] - latents[not_at_all]).abs().max()),
    }


def second_sampler(model: Any, text: Any) -> bool:
    """Whether a model with a window draws in a second sampler what it does in a first one."""
    conditions = [[text[:1], {}]], [[text[1:], {}]]
    window = {"hypernetwork_name": "dots.pt", "strength": 1.0, "start": 0.3, "end": 0.8}
    (fresh,) = run("HnetkitHypernetworkLoader", model=model, **window)
    (used,) = run("HnetkitHypernetworkLoader", model=model, **window)
    sample(used, *conditions, 7, "dpmpp_2m", "karras", cfg=4.0)
    latents = [sample(own, *conditions, 4, "euler", "normal", cfg=4.0) for own in (fresh, used)]
    return torch.equal(*latents)


def sample(model: Any, positive: Any, negative: Any, steps: int, sampler: str, scheduler: str, cfg: float = 1.0) -> Any:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, scheduler, positive, negative, torch.zeros_like(noise),
            disable_pbar=True, seed=3,
        )  # fmt: skip


def with_patches(options: dict[str, Any], model: Any) -> dict[str, Any]:
    return {**options, "patches": model.model_options["transformer_options"].get("patches", {})}


def bytes_of_tensors() -> int:
    """Bytes of all tensors of the program, each storage once."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if isinstance(tensor, torch.Tensor)
    }
    return sum(storages.values())


def memory(model: Any, step: Any) -> dict[str, Any]:
    """What copies cost, what ComfyUI counts, and what is left when nobody uses the networks any more."""
    rows = [
        ["HnetkitHypernetworkLoader", {"hypernetwork_name": name, "strength": 0.5}]
        for name in ("dots.pt", "outline.pt", "paper.pt")
    ]
    for own in list(comfy.model_management.current_loaded_models):
        own.model.detach()
    comfy.model_management.current_loaded_models.clear()
    network_files._opened.cache_clear()
    gc.collect()
    own = workflow(rows, model)
    predict(own, **step)
    before = bytes_of_tensors()
    clones = [own.clone() for _ in range(10)]
    copied = bytes_of_tensors() - before
    predict(clones[9], **step)
    counted = [beside.model for beside in comfy.model_management.current_loaded_models]
    result = {
        "copied": copied,
        "counted": sorted(type(one.model).__name__ for one in counted),
        "bytes": sum(one.model_size() for one in counted if one.model is not model.model),
        "held": sum(buffer.nbytes for one in counted if one.model is not model.model for buffer in one.model.buffers()),
    }
    watched = [weakref.ref(one) for patch in patches_of(own) for one in (patch.stack, *patch.models())]
    result["watched"] = len(watched)
    comfy.model_management.unload_all_models()
    del own, clones, counted
    network_files._opened.cache_clear()
    gc.collect()
    result["left"] = sum(ref() is not None for ref in watched)
    return result


def older_api() -> Any:
    """Returns our nodes as a ComfyUI without the newer API finds them."""
    names = [name for name in sys.modules if name.startswith("comfy_api.latest")]
    hidden = {name: sys.modules.pop(name) for name in names}
    sys.modules["comfy_api.latest"] = None  # type: ignore[assignment]
    try:
        return importlib.reload(sys.modules["hnetkit.comfyui.api"]).NODE_CLASS_MAPPINGS
    finally:
        sys.modules.update(hidden)


def described(inputs: dict[str, Any]) -> dict[str, Any]:
    """Inputs of a node, each with what an editor is told: its type or choices, and its options."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, *rest) in inputs.get(group, {}).items():
            options = dict(rest[0]) if rest else {}
            options.pop("multiselect", None)  # which the newer API says of each choice
            choices = options.pop("options", None) if kind == "COMBO" else kind if isinstance(kind, list) else None
            found[name] = [group, "COMBO" if choices is not None else kind, choices, options]
    return found


def apis(model: Any, step: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    newer = {kind.GET_SCHEMA().node_id: kind.GET_NODE_INFO_V1() for kind in NEWER}
    mappings = older_api()
    older = {name: kind.INPUT_TYPES() for name, kind in mappings.items()}
    kind = mappings["HnetkitHypernetworkLoader"]
    (own,) = getattr(kind(), kind.FUNCTION)(model=model, hypernetwork_name="dots.pt", strength=0.8)
    result = {
        "mappings": hnetkit.comfyui.NODE_CLASS_MAPPINGS,
        "newer": {name: described(info["input"]) for name, info in newer.items()},
        "older": {name: described(inputs) for name, inputs in older.items()},
        "newer outputs": {name: [info["output"], info["output_name"]] for name, info in newer.items()},
        "older outputs": {name: [list(own.RETURN_TYPES), list(own.RETURN_NAMES)] for name, own in mappings.items()},
        "categories": sorted({own.CATEGORY for own in mappings.values()} | {own["category"] for own in newer.values()}),
    }
    return result, {"older api": predict(own, **step)}


def main() -> None:
    logging.disable(logging.WARNING)
    asyncio.run(comfyui_nodes.load_custom_node(str(COMFYUI / "comfy_extras" / "nodes_hypernetwork.py")))
    for folder in folder_paths.get_folder_paths("hypernetworks"):
        assert Path(folder).is_relative_to(FOLDER), folder
    job = json.loads((FOLDER / "job.json").read_text())
    step = load_file(FOLDER / "step.safetensors")
    model = bundled_model()
    results: dict[str, Any] = {"patches": {}}
    tensors: dict[str, Any] = {}
    for name, nodes in job["workflows"].items():
        own = workflow(nodes, model)
        results["patches"][name] = [type(patch).__name__ for patch in patches_of(own)]
        tensors[name] = predict(own, **step)
        if name == "tags":
            results["rest"] = run(nodes[0][0], model=model, **nodes[0][1])[1]
    results["windows"] = steps_in_window(model, job["window"], step["text"])
    results["texts"] = texts_of_their_own(model, step["text"])
    drawn = among_other_nodes(model, step["text"])
    results["differences"] = {name: differences(own) for name, own in drawn.items()}
    results["second sampler"] = second_sampler(model, step["text"])
    results["memory"] = memory(model, step)
    results["apis"], more = apis(model, step)
    save_file({**tensors, **more}, FOLDER / "results.safetensors")
    (FOLDER / "results.json").write_text(json.dumps(results))


main()
