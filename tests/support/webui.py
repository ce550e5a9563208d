"""What Forge is to an extension, in small: tags that are parsed, scripts that are called, a model for each sampling.

Written from its documented behavior: a tag's network is activated with the arguments of a prompt, once for each pass
that has tags of its own; scripts are called before every sampling; and each sampling begins with the model as it was
loaded, so that what a script puts on it is gone after that.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from support import comfyui
from support.stand_in_modules import importable

_TAG = re.compile(r"<(\w+):([^>]+)>")


class UNetPatcher(comfyui.Model):
    """The UNet of a model with what scripts put on it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.extra_modules: list[torch.nn.Module] = []
        self.preserved_bytes = 0

    def clone(self) -> UNetPatcher:
        twin = UNetPatcher(self.model, self.load_device, self.offload_device, self.size)
        twin.model_options = copy.deepcopy(self.model_options)
        twin.extra_modules, twin.preserved_bytes = list(self.extra_modules), self.preserved_bytes
        return twin

    def add_extra_torch_module_during_sampling(self, module: torch.nn.Module, cast_to_unet_dtype: bool = True) -> None:
        if cast_to_unet_dtype:
            module.to(self.model_dtype())
        self.extra_modules.append(module)

    def add_extra_preserved_memory_during_sampling(self, size: int) -> None:
        self.preserved_bytes += size

    def load(self) -> list[Any]:
        for patch in self.patches():
            patch.to(self.load_device)
            patch.to(self.model_dtype())
        for module in self.extra_modules:
            module.to(self.load_device)
        return self.extra_modules


@dataclass
class Generation:
    """One press of the button: what Forge calls `p`.

    Attributes:
        comments: shown beneath the picture.
        extra_generation_params: of the infotext.
        batches: of one picture each.
        unets: with which each sampling ran.
        infotexts: what `extra_generation_params` were after each batch.
        refiner_checkpoint_info: of the model that draws the last steps.
        made_sampler: called with the number of steps, once for each sampling.
    """

    webui: Webui
    prompt: str
    hires_prompt: str = ""
    batches: int = 1
    all_prompts: list[str] = field(default_factory=list)
    all_hr_prompts: list[str] = field(default_factory=list)
    comments: dict[str, int] = field(default_factory=dict)
    extra_generation_params: dict[str, Any] = field(default_factory=dict)
    unets: list[UNetPatcher] = field(default_factory=list)
    infotexts: list[dict[str, Any]] = field(default_factory=list)
    sampler: Any = None
    refiner_checkpoint_info: Any = None
    made_sampler: Callable[[int], Any] = lambda steps: SimpleNamespace(
        model_wrap_cfg=SimpleNamespace(step=0, total_steps=steps)
    )

    def __post_init__(self) -> None:
        self.all_prompts = [self.prompt] * self.batches
        self.all_hr_prompts = [self.hires_prompt] * self.batches if self.hires_prompt else []
        self.sd_model = self.webui.model

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def run(self, latents: Tensor, timesteps: Tensor, text: Tensor, *, steps: int = 1) -> list[Tensor]:
        """Draws, and returns what the UNet predicted in each step of each pass.

        Args:
            latents, timesteps, text: what the UNet gets, every time.
            steps: of each pass.
        """
        outputs = []
        for number in range(self.batches):
            prompts = [own[number] for own in (self.all_prompts, self.all_hr_prompts) if own]
            self._activate(prompts[0])
            self.webui.script.process_batch(self, batch_number=number, prompts=prompts[:1])
            outputs += self._sampled(latents, timesteps, text, steps)
            for prompt in prompts[1:]:
                self._activate(prompt)
                # in vain: the model is then made what it was
                self.webui.script.process_before_every_sampling(p=self, x=latents, noise=latents)
                outputs += self._sampled(latents, timesteps, text, steps)
            self.infotexts.append(dict(self.extra_generation_params))
        for network in self.webui.networks.values():
            network.deactivate(self)
        return outputs

    def _sampled(self, latents: Tensor, timesteps: Tensor, text: Tensor, steps: int) -> list[Tensor]:
        self.sampler = self.made_sampler(steps)
        self.sd_model.forge_objects = SimpleNamespace(unet=self.webui.unet)
        self.webui.script.process_before_every_sampling(self, x=latents, noise=latents)
        unet = self.sd_model.forge_objects.unet
        self.unets.append(unet)
        unet.load()
        outputs = []
        with torch.inference_mode():
            for step in range(steps):
                if hasattr(self.sampler, "model_wrap_cfg"):
                    self.sampler.model_wrap_cfg.step = step
                outputs.append(unet(latents, timesteps.clone(), text))
        return outputs

    def _activate(self, prompt: str) -> None:
        for name, network in self.webui.networks.items():
            found = [match[2].split(":") for match in _TAG.finditer(prompt) if match[1] == name]
            network.activate(self, [SimpleNamespace(items=items) for items in found])


class Webui:
    """A running Forge with a model."""

    def __init__(self, unet: Any) -> None:
        inner = SimpleNamespace(diffusion_model=comfyui.UNet(copy.deepcopy(unet)), computation_dtype=unet.dtype)
        self.unet = UNetPatcher(inner, comfyui.CPU, comfyui.CPU)
        self.model = SimpleNamespace(forge_objects=SimpleNamespace(unet=self.unet))
        self.networks: dict[str, Any] = {}
        self.before_ui: list[Callable[[], None]] = []
        self.options = SimpleNamespace(sd_hypernetwork="None", extra_networks_default_multiplier=1.0)
        self.script: Any = None

    def start(self, script: type) -> None:
        """Starts it with an extension's script."""
        for callback in self.before_ui:
            callback()
        self.script = script()


@contextmanager
def installed(webui: Webui, models: Path, *, forge: bool = True) -> Iterator[None]:
    """Lets an extension import the webui; `models` is its folder, and without `forge` it is A1111's."""
    modules = {name: ModuleType(f"modules.{name}") for name in ("extra_networks", "script_callbacks", "scripts")}
    modules |= {name: ModuleType(f"modules.{name}") for name in ("shared", "paths")}
    own: Any = SimpleNamespace(**modules)
    own.extra_networks.ExtraNetwork = type("ExtraNetwork", (), {"__init__": _named})
    own.extra_networks.register_extra_network = lambda network: webui.networks.update({network.name: network})
    own.script_callbacks.on_before_ui = webui.before_ui.append
    own.scripts.Script = type("Script", (), {})
    own.scripts.AlwaysVisible = object()
    own.shared.cmd_opts = SimpleNamespace(hypernetwork_dir=str(models / "hypernetworks"))
    own.shared.opts = webui.options
    own.paths.models_path = str(models)
    package = ModuleType("modules")
    vars(package).update(modules)
    present: dict[str, Any] = {"modules": package, **{f"modules.{name}": module for name, module in modules.items()}}
    if forge:
        present["modules_forge"] = ModuleType("modules_forge")
        present["modules_forge"].__spec__ = ModuleSpec("modules_forge", None)
    with importable(present):
        yield


def _named(self: Any, name: str) -> None:
    self.name = name
