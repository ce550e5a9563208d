"""Runs the extension in a real Forge, as a program of its own: with its parser of tags, its patcher and its UNet.

    FORGE_PYTHON real_forge.py FORGE_PATH FOLDER

`FOLDER` has ``models/hypernetworks`` and ``job.json``, a list of prompts in pairs: of the first pass, and of the second
one or nothing. ``results.json`` is written there: by pair and pass, how far the UNet's output is from that of the same
UNet whose projections get their contexts from `hnetkit.Stack`, and from that without networks; and what was said.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

FORGE, FOLDER = (Path(path).resolve() for path in sys.argv[1:3])
sys.argv[1:] = ["--always-cpu"]  # Forge's own arguments
sys.path[0] = str(FORGE)
sys.path.insert(1, str(FORGE / "packages_3rdparty"))

# ruff: noqa: E402 -- Forge reads its arguments while it is imported

import torch
from backend.nn.unet import IntegratedUNet2DConditionModel
from backend.patcher.unet import UnetPatcher
from backend.sampling.sampling_function import sampling_cleanup, sampling_prepare
from diffusers import EulerDiscreteScheduler
from torch import Tensor

import hnetkit
from hnetkit.prompts.tags import split_tags
from hnetkit.runtime.strength import Strength, strength_of

CPU = torch.device("cpu")
WIDTHS, TEXT = (64, 128), 96


def made_unet() -> IntegratedUNet2DConditionModel:
    torch.manual_seed(0)
    unet = IntegratedUNet2DConditionModel(
        in_channels=4, model_channels=64, out_channels=4, num_res_blocks=1, channel_mult=(1, 2), num_heads=4,
        use_spatial_transformer=True, transformer_depth=[1, 1], transformer_depth_middle=1,
        transformer_depth_output=[1, 1, 1, 1], context_dim=TEXT,
    ).eval()  # fmt: skip
    with torch.no_grad():  # the last layers are made of zeros, which nothing would come through
        for parameter in unet.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    unet.storage_dtype = unet.computation_dtype = torch.float32
    unet.load_device = unet.offload_device = unet.initial_device = CPU
    return unet


class Hooks:
    """The contexts of a stack in the projections of the UNet, as hnetkit computes them without a UNet."""

    def __init__(self, unet: torch.nn.Module, networks: list[tuple[Any, Any]]) -> None:
        stack = hnetkit.Stack(networks)
        self.handles = []
        for name, module in unet.named_modules():
            for index, side in enumerate(("to_k", "to_v")):
                if name.endswith((f"attn1.{side}", f"attn2.{side}")):
                    kind = "self" if ".attn1." in name else "cross"
                    self.handles.append(module.register_forward_pre_hook(self.hook(stack, index, kind)))

    @staticmethod
    def hook(stack: Any, index: int, kind: Any) -> Any:
        return lambda module, inputs: (stack(inputs[0], kind=kind)[index],)

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def main() -> None:
    fake = {
        name: ModuleType(f"modules.{name}") for name in ("script_callbacks", "scripts", "shared", "errors", "paths")
    }
    package: Any = ModuleType("modules")
    package.__path__ = [str(FORGE / "modules")]  # its own modules, but for those that are the program with its page
    sys.modules["modules"] = package
    for name, module in fake.items():
        sys.modules[f"modules.{name}"] = module
        setattr(package, name, module)
    own: Any = SimpleNamespace(**fake)
    before_ui: list[Any] = []
    own.script_callbacks.on_before_ui = before_ui.append
    own.scripts.Script = object
    own.scripts.AlwaysVisible = object()
    own.shared.opts = SimpleNamespace(sd_hypernetwork="None", extra_networks_default_multiplier=1.0)
    own.shared.cmd_opts = SimpleNamespace(hypernetwork_dir=str(FOLDER / "models" / "hypernetworks"))
    own.errors.display = lambda error, task: (_ for _ in ()).throw(error)
    own.paths.models_path = str(FOLDER / "models")
    from modules import extra_networks

    from hnetkit.webui import register

    script = register()
    assert script is not None
    for callback in before_ui:
        callback()
    patcher = UnetPatcher.from_model(made_unet(), EulerDiscreteScheduler(beta_schedule="scaled_linear"), None)
    unet = patcher.model.diffusion_model
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 77, TEXT)

    def denoised(own: Any) -> Tensor:
        options = {**own.model_options["transformer_options"], "sigmas": torch.tensor([3.0, 3.0])}
        sampling_prepare(own, x=x)
        with torch.inference_mode():
            output: Tensor = own.model.apply_model(
                x, torch.tensor([3.0, 3.0]), c_crossattn=text, transformer_options=options
            )
        sampling_cleanup(own)
        return output

    results = []
    for prompts in json.loads((FOLDER / "job.json").read_text()):
        said: dict[str, int] = {}
        p = SimpleNamespace(
            sd_model=SimpleNamespace(forge_objects=None),
            sampler=SimpleNamespace(model_wrap_cfg=SimpleNamespace(step=0, total_steps=1)),
            comment=lambda text, said=said: said.update({text: 1}),
            extra_generation_params={}, all_prompts=list(prompts), scripts=None,
        )  # fmt: skip
        for prompt in prompts:
            _, data = extra_networks.parse_prompts([prompt])
            extra_networks.activate(p, data)
            p.sd_model.forge_objects = SimpleNamespace(unet=patcher)
            script().process_before_every_sampling(p)
            got = denoised(p.sd_model.forge_objects.unet)
            plain = denoised(patcher)
            files = FOLDER / "models" / "hypernetworks"
            networks = [
                (hnetkit.load(files / f"{tag.name}.pt"), Strength.of(strength_of(tag)))
                for tag in split_tags(prompt).tags
                if (files / f"{tag.name}.pt").exists()
            ]
            hooks = Hooks(unet, networks) if networks else None
            expected = denoised(patcher)
            if hooks:
                hooks.remove()
            results.append(
                {
                    "error": float((got - expected).abs().max()),
                    "effect": float((got - plain).abs().max()),
                    "said": list(said),
                    "params": p.extra_generation_params,
                }
            )
        extra_networks.deactivate(p, {})
    (FOLDER / "results.json").write_text(json.dumps(results))


main()
