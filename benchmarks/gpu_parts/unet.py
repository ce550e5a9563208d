"""Part `unet`: a whole UNet step of diffusers, without networks, as A1111 applies them, and with hnetkit's on it.

UNets have the real configurations and random fp16 weights, batch 2 and 77 tokens of text.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import hnetkit
from gpu_parts.clock import Bench, Called, Runner
from gpu_parts.paths import as_a1111
from gpu_parts.record import Key, Row, fault_of
from gpu_parts.work import BUILDS, LINEAR, MISH, STRENGTHS, SWISH, Stack, stack
from hnetkit.kernels import dispatch, reference
from hnetkit.kernels.weights import MLPWeights
from hnetkit.network import Hypernetwork, LayerNorm, MLPPair, ResidualMLP, Stage, TensorRef

STACKS = ((SWISH, 3), (SWISH, 1), (SWISH, 5), (LINEAR, 3), (MISH, 3))
"""Builds and numbers of networks, in the order in which they are measured."""

MODES = ("CUDA graph", "eager", "compiled")
"""The UNet captured, as it is called with what the host does for it, and through `torch.compile`, then captured."""

BARE, PLAIN, OURS = "no networks", "as A1111", "hnetkit"
STRENGTH = STRENGTHS[0]
ERROR_LIMIT, EFFECT_LIMIT = 2.0, 0.1
"""Of the error: as a multiple of the uncompiled fp16 UNet's as A1111, and of what the networks change at all."""

Replace = Callable[[Tensor, int], Tensor]
"""What K (0) or V (1) gets instead of a context ``[batch, tokens, width]``."""


class Model(NamedTuple):
    """A UNet's configuration; `widths` are those of its contexts."""

    widths: tuple[int, ...]
    config: Mapping[str, Any]


_SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
_SDXL = {
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_TOY = {
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 24,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
MODELS = {
    "SD 1.5, 512": Model((320, 640, 768, 1280), {"sample_size": 64, **_SD15}),
    "SDXL, 1024": Model((640, 1280, 2048), {"sample_size": 128, **_SDXL}),
    "SD 1.5, 1024": Model((320, 640, 768, 1280), {"sample_size": 128, **_SD15}),
}
TOY = {"toy": Model((8, 24), {"sample_size": 8, **_TOY})}


def steps(bench: Bench, stands: Callable[[Key], bool]) -> Iterator[Row]:
    """Yields a row for each UNet, stack, mode and way to apply the stack."""
    for name, model in (TOY if bench.rehearse else MODELS).items():
        todo = [key for key in _keys(name, STACKS[:1] if bench.rehearse else STACKS) if not stands(key)]
        subject = Subject(model, bench.device) if todo else None
        for key in todo:
            assert subject is not None
            yield {**key._asdict(), **measured(subject, key, bench)}


def _keys(name: str, stacks: Sequence[tuple[str, int]]) -> Iterator[Key]:
    for build, count in stacks:
        for mode in MODES:
            if (build, count) == stacks[0]:
                yield Key("unet", name, "", "0", mode, BARE)
            for path in (PLAIN, OURS):
                yield Key("unet", name, build, str(count), mode, path)


class Expected(NamedTuple):
    """What a UNet with networks should give.

    Attributes:
        output: of the same UNet in fp32, as the mathematics gives it, ``[2, 4, size, size]``, fp64.
        usual: how far the fp16 UNet is from it where every layer applies every network, in the 2-norm.
        effect: how far the output without networks is from it; infinite where there are none.
    """

    output: Tensor
    usual: Tensor
    effect: float


class Subject:
    """A UNet and one call of it.

    Attributes:
        unet: fp16, with random weights.
        call: its arguments.
    """

    def __init__(self, model: Model, device: str) -> None:
        self._model = model
        self._device = device
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float16)
        with torch.device(device):
            self.unet = UNet2DConditionModel(**model.config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        self.call = _call(self.unet, device)
        self._expected: dict[tuple[str, int], Expected] = {}

    def step(self, run: Callable[..., Any]) -> Callable[[], Tensor]:
        """Returns what calls `run` as the UNet is called and gives its output, ``[2, 4, size, size]``."""
        return lambda: run(**self.call, return_dict=False)[0]

    def stacks(self, build: str, count: int) -> dict[int, Stack]:
        """Returns networks by width of the context."""
        if not count:
            return {}
        return {width: stack(width, BUILDS[build], count, self._device) for width in self._model.widths}

    def expected(self, build: str, count: int) -> Expected:
        """Returns what is right, from a UNet that nothing is attached to; it is computed once."""
        if (build, count) not in self._expected:
            stacks = self.stacks(build, count)
            output = self._exact(stacks)
            with plainly(self.unet, stacks):
                usual = (self.step(self.unet)().double() - output).norm()
            effect = float((self.expected("", 0).output - output).norm()) if count else math.inf
            self._expected[build, count] = Expected(output, usual, effect)
        return self._expected[build, count]

    def _exact(self, stacks: Mapping[int, Stack]) -> Tensor:
        def exact(x: Tensor, side: int) -> Tensor:
            networks = stacks[x.shape[-1]].sides[side]
            return reference.apply(x, networks, STRENGTH[: len(networks)])

        wide = copy.deepcopy(self.unet).float()
        call = {name: _float(value) for name, value in self.call.items()}
        with replacing(wide, exact if stacks else None), _exact_products():
            output: Tensor = wide(**call, return_dict=False)[0].double()
        return output


def error(got: Tensor, expected: Expected) -> str | None:
    """Says how a UNet's output is wrong; None where it is right."""
    if not torch.isfinite(got).all():
        return "not finite"
    off = (got.double() - expected.output).norm()
    if off > ERROR_LIMIT * expected.usual:
        return f"is {off / expected.output.norm():.1e} off, as A1111 {expected.usual / expected.output.norm():.1e}"
    if off > EFFECT_LIMIT * expected.effect:
        return f"is {off / expected.effect:.1e} of the networks' effect off"
    return None


def measured(subject: Subject, key: Key, bench: Bench) -> dict[str, str]:
    """Returns the figures of one row, or what is wrong with it."""
    build, count = key.build, int(key.networks)
    attached = with_hnetkit if key.path == OURS else plainly
    kernel = dispatch.chosen_path(torch.device(bench.device)) if key.path == OURS else ""
    try:
        expected = subject.expected(build, count)
        with attached(subject.unet, subject.stacks(build, count)):
            runner = _runner(subject, key.work, bench)
            wrong = error(runner.outputs(), expected)
            figures = {"wrong": wrong} if wrong else bench.figures(runner)
    except Exception as fault:  # a UNet that cannot be captured or compiled is a result like any other
        figures = {"wrong": fault_of(fault)}
    finally:
        if key.work == "compiled":
            torch.compiler.reset()
    return {**figures, "kernel": kernel}


def _runner(subject: Subject, mode: str, bench: Bench) -> Runner:
    if mode != "compiled":
        step = subject.step(subject.unet)
        return Called(step) if mode == "eager" else bench.captured(step)
    backend = "aot_eager" if bench.rehearse else "inductor"
    return bench.captured(subject.step(torch.compile(subject.unet, backend=backend, dynamic=False)))


@contextlib.contextmanager
def replacing(unet: nn.Module, replace: Replace | None) -> Iterator[None]:
    """Has `replace` in front of `to_k` and `to_v` of every layer that hypernetworks reach."""

    def hook(side: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda module, arguments: (replace(arguments[0], side), *arguments[1:])

    handles = [
        module.register_forward_pre_hook(hook(int(name.endswith("to_v"))))
        for name, module in unet.named_modules()
        if replace and ".transformer_blocks." in name and name.endswith((".to_k", ".to_v"))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def plainly(unet: nn.Module, stacks: Mapping[int, Stack]) -> contextlib.AbstractContextManager[None]:
    """Has every layer apply every network anew, as A1111 does."""

    def plain(x: Tensor, side: int) -> Tensor:
        networks = stacks[x.shape[-1]].sides[side]
        return as_a1111(x, networks, STRENGTH[: len(networks)])

    return replacing(unet, plain if stacks else None)


@contextlib.contextmanager
def with_hnetkit(unet: nn.Module, stacks: Mapping[int, Stack]) -> Iterator[None]:
    """Has the networks loaded by hnetkit."""
    count = len(next(iter(stacks.values())).sides[0])
    try:
        for place in range(count):
            mlps = {width: MLPPair(*(_mlp(side[place]) for side in stacks[width].sides)) for width in stacks}
            # force: which model a network of random numbers is for need not be told from its content
            hnetkit.load_hypernetwork(unet, Hypernetwork(mlps), str(place), STRENGTH[place], force=True)
        yield
    finally:
        hnetkit.unload_hypernetworks(unet)


def _mlp(mlp: MLPWeights) -> ResidualMLP:
    def norm(stage: Any) -> LayerNorm | None:
        if stage.norm_weight is None:
            return None
        return LayerNorm(TensorRef.of(stage.norm_weight), TensorRef.of(stage.norm_bias))

    stages = []
    for stage in mlp:
        bias = None if stage.bias is None else TensorRef.of(stage.bias)
        stages.append(Stage(TensorRef.of(stage.weight), bias, stage.activation, norm=norm(stage)))
    return ResidualMLP(tuple(stages), {})


def _call(unet: Any, device: str) -> dict[str, Any]:
    noise = torch.Generator(device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=noise, device=device).half()

    size = unet.config.sample_size
    call: dict[str, Any] = {
        "sample": draw(2, 4, size, size),
        "timestep": torch.tensor(500, device=device),
        "encoder_hidden_states": draw(2, 77, unet.config.cross_attention_dim),
    }
    if unet.config.addition_embed_type == "text_time":
        call["added_cond_kwargs"] = {"text_embeds": draw(2, 1280), "time_ids": draw(2, 6)}
    return call


def _float(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _float(part) for name, part in value.items()}
    return value.float() if value.is_floating_point() else value


def _exact_products() -> contextlib.AbstractContextManager[None]:
    """Keeps convolutions from rounding fp32 to TF32; matrix products do not do so unasked."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
