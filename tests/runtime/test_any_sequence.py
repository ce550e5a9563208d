"""Any sequence of changes: a UNet call after it is what the plain implementation computes for the same state.

There are two pipelines. One has hypernetworks; on the other the same LoRAs and dtypes come and go, and its attention is
the plain one. What should be active is written down here, and never asked of the package.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st
from support import any_truth
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS
from support.stacks import relative
from support.unet_truth import lora, surface
from torch import Tensor

import hnetkit
from hnetkit import Strength
from hnetkit.errors import AttachError, NotFound, UsageError
from hnetkit.network import Hypernetwork
from hnetkit.runtime import folding

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 0.02, torch.bfloat16: 0.1}
NAMES = ("a", "b", "c", "d")
WIDTHS = (SELF_WIDTHS[0], SD_CROSS_WIDTH)
NETWORKS: Sequence[Mapping[str, Any]] = (
    {"activation": "relu"},
    {"activation": "mish", "layer_norm": True},
    {"activation": None},
    {"activation": "linear", "structure": (1, 1, 2, 1)},
    {"activation": None, "structure": (1, 0.25, 1)},  # affine, and kept as its factors
    {"activation": "elu", "activate_output": True, "widths": WIDTHS[:1], "dtype": torch.half},
    {"activation": None, "widths": WIDTHS[1:]},
)
LORAS = (("to_k", "to_v"), ("to_k",), ("to_q",))
PLACES = ("self_k", "self_v", "cross_k", "cross_v")
MIDDLE = "mid_block.attentions.0.transformer_blocks.0"
PROGRESS = (0.125, 0.375, 0.625, 0.875, None)
"""After `set_progress(pipe, step, 4)`."""

CHEAP, DEAR = folding.CPU_RATE, 0.0
"""The rates by which maps go into the projections' weights, and by which they do not."""

NUMBERS = (1.0, 0.5, 0.25, -0.25, -0.75, 0.0)
"""Strengths, each the same in fp32 and fp64."""

Stack = list[tuple[str, float | Strength]]


@dataclass(frozen=True)
class Kit:
    """What sequences are made of."""

    unet: UNet2DConditionModel
    blocks: Sequence[str]
    networks: Sequence[Hypernetwork]
    loras: Sequence[Mapping[str, Tensor]]
    dtypes: Sequence[torch.dtype]
    patch: pytest.MonkeyPatch


class Changes:
    """A UNet, what can be done to it, and what should be active on it."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.random = Random()
        self.pipe, self.control = any_truth.pipeline_of(kit.unet), any_truth.pipeline_of(kit.unet)
        self.first_parameters = list(self.pipe.unet.parameters())
        self.loaded: dict[str, Hypernetwork] = {}
        self.stack: Stack = []
        self.is_enabled = True
        self.progress: float | None = None
        self.has_lora = False
        self.dtype = torch.float32
        self.text = any_truth.text_of(0, 7, self.dtype)
        kit.patch.setattr(folding, "CPU_RATE", CHEAP)

    def go(self, seeds: list[int], every: int) -> None:
        """Makes a change for each seed but 0, which is none.

        Args:
            every: a UNet call comes after so many changes: what a call repairs, the next change must not need.
        """
        for step, number in enumerate(filter(None, seeds)):
            self.random.seed(number)
            change = self.random.choice(self.possible())
            note(f"{change} by {number}")
            getattr(self, change)()
            if step % every == 0:
                self.look()
        self.look()
        self.unload_all()

    def possible(self) -> list[str]:
        """Names of the changes that can be made now, the likelier ones several times."""
        changes = ["another_text", "other_values_in_the_text", "another_dtype", "folding_becomes_cheap_or_dear"]
        changes += ["a_copy_goes_on", "a_call_fails_between_k_and_v", "a_block_is_called_by_itself"]
        changes += ["load"] * (30, 15, 5, 2, 0)[len(self.loaded)] + ["a_lora_comes_or_goes"] * 4
        if self.loaded:
            changes += ["unload_some", "apply_another_stack_for_a_while", "enable_or_disable", "ask_for_what_cannot_be"]
            changes += ["enable_or_disable"] * (0 if self.is_enabled else 3)
            changes += ["set_another_stack"] * 2
        if self.stack:
            changes += ["set_other_strengths"] * 2 + ["set_one_other_strength"] * 4
            changes += ["tell_progress"] * (12 if self.misses_progress else 4 if self.has_window else 1)
        return changes

    # --- what must hold

    def look(self) -> None:
        assert hnetkit.get_active_hypernetworks(self.pipe) == [name for name, _ in self.stack]
        if self.misses_progress:
            with pytest.raises(AttachError, match="progress was not set"):
                any_truth.picture(self.pipe, self.text)
        else:
            self.require_the_same(any_truth.picture, self.active)

    @property
    def active(self) -> Stack:
        return self.stack if self.is_enabled else []

    @property
    def has_window(self) -> bool:
        return any(isinstance(s, Strength) and (s.start, s.end) != (0, 1) for _, s in self.active)

    @property
    def misses_progress(self) -> bool:
        return self.has_window and self.progress is None

    def require_the_same(self, call: Callable[[Any, Tensor], Tensor], stack: Stack) -> None:
        """A call gives what it gives on the other pipeline, with `stack` in the plain implementation."""
        networks = [(self.loaded[name], strength) for name, strength in stack]
        any_truth.be_plain(self.control, networks, self.progress)
        got, truth = call(self.pipe, self.text), call(self.control, self.text)
        assert got.dtype == truth.dtype == self.dtype
        assert relative(got, truth) <= TOLERANCE[self.dtype]

    def require_first_bits(self) -> None:
        """Nothing is left of hypernetworks: every bit, hook and attribute is as on the other pipeline."""
        left, wanted = surface(self.pipe.unet), surface(self.control.unet)
        assert left.pop("parameters").keys() == wanted.pop("parameters").keys()
        assert left == wanted
        parameters = list(self.pipe.unet.parameters())
        assert {*map(id, self.first_parameters)} <= {*map(id, parameters)}
        assert [p.requires_grad for p in parameters] == [p.requires_grad for p in self.control.unet.parameters()]

    # --- the text

    def another_text(self) -> None:
        self.text = any_truth.text_of(self.random.randrange(9), self.random.choice((1, 7, 12)), self.dtype)

    def other_values_in_the_text(self) -> None:
        """In the same tensor."""
        self.text.mul_(self.random.choice((-1.0, 0.5)))

    # --- networks

    def load(self) -> None:
        name = self.random.choice([name for name in NAMES if name not in self.loaded])
        network, strength = self.random.choice(self.kit.networks), self.strength()
        hnetkit.load_hypernetwork(self.pipe, network, name, strength)
        self.loaded[name] = network
        self.stack = [*self.stack, (name, strength)]

    def unload_some(self) -> None:
        names = self.some(self.loaded)
        hnetkit.unload_hypernetworks(self.pipe, names)
        self.forget(names)

    def unload_all(self) -> None:
        hnetkit.unload_hypernetworks(self.pipe)
        self.forget(list(self.loaded))

    def forget(self, names: list[str]) -> None:
        self.loaded = {name: network for name, network in self.loaded.items() if name not in names}
        self.stack = [(name, strength) for name, strength in self.stack if name not in names]
        if not self.loaded:
            self.is_enabled, self.progress = True, None
            self.require_first_bits()

    def ask_for_what_cannot_be(self) -> None:
        with pytest.raises(NotFound):
            hnetkit.set_hypernetworks(self.pipe, [*self.loaded, "nobody"])
        with pytest.raises(UsageError, match="loaded already"):
            hnetkit.load_hypernetwork(self.pipe, self.kit.networks[0], self.random.choice(list(self.loaded)))

    # --- the active stack

    def set_another_stack(self) -> None:
        self.set([(name, self.strength()) for name in self.some(self.loaded)])

    def set_other_strengths(self) -> None:
        self.set([(name, self.strength()) for name, _ in self.stack])

    def set_one_other_strength(self) -> None:
        place = self.random.randrange(len(self.stack))
        self.set([*self.stack[:place], (self.stack[place][0], self.strength()), *self.stack[place + 1 :]])

    def set(self, stack: Stack) -> None:
        hnetkit.set_hypernetworks(self.pipe, [name for name, _ in stack], [strength for _, strength in stack])
        self.stack = stack

    def apply_another_stack_for_a_while(self) -> None:
        stack: Stack = [(name, self.number()) for name in self.some(self.loaded)]
        with hnetkit.applied(self.pipe, dict(stack)):
            self.require_the_same(any_truth.picture, stack)

    def enable_or_disable(self) -> None:
        self.is_enabled = not self.is_enabled
        (hnetkit.enable_hypernetworks if self.is_enabled else hnetkit.disable_hypernetworks)(self.pipe)

    def tell_progress(self) -> None:
        step = self.random.randrange(5)
        hnetkit.set_progress(self.pipe, step, 4)
        self.progress = PROGRESS[step]

    # --- the UNet

    def a_lora_comes_or_goes(self) -> None:
        tensors = self.random.choice(self.kit.loras)
        for pipe in (self.pipe, self.control):
            if self.has_lora:
                pipe.unload_lora_weights()
            else:
                pipe.load_lora_weights(dict(tensors))
        self.has_lora = not self.has_lora

    def another_dtype(self) -> None:
        self.dtype = self.random.choice(self.kit.dtypes)
        self.text = self.text.to(self.dtype)
        for pipe in (self.pipe, self.control):
            pipe.unet.to(self.dtype)

    def folding_becomes_cheap_or_dear(self) -> None:
        """It counts when the stack is next planned."""
        self.kit.patch.setattr(folding, "CPU_RATE", self.random.choice((CHEAP, DEAR)))

    def a_copy_goes_on(self) -> None:
        self.pipe = any_truth.pipeline_of(self.pipe.unet)
        self.first_parameters = []

    # --- other calls

    def a_call_fails_between_k_and_v(self) -> None:
        seen: list[weakref.ref[Tensor]] = []

        def fail(module: Any, arguments: tuple[Tensor, ...]) -> None:
            seen.append(weakref.ref(arguments[0]))
            raise _Failed

        projection = self.pipe.unet.get_submodule(f"{MIDDLE}.attn1.to_v")
        hook = projection.register_forward_pre_hook(fail, prepend=True)
        with contextlib.suppress(_Failed, AttachError):
            any_truth.picture(self.pipe, self.text)
        hook.remove()
        assert self.misses_progress or seen[0]() is None, "its context is still held"

    def a_block_is_called_by_itself(self) -> None:
        """With the text tensor of the UNet call before, that holds something else by now."""
        self.look()
        self.other_values_in_the_text()
        if not self.misses_progress:
            self.require_the_same(any_truth.middle, self.active)

    # --- choices

    def some(self, names: Iterable[str]) -> list[str]:
        """Returns one of the names or more, in any order."""
        known = sorted(names)
        return self.random.sample(known, self.random.randint(1, len(known)))

    def number(self) -> float:
        return self.random.choice(NUMBERS)

    def strength(self) -> float | Strength:
        """Returns a number, or what has a number for each place and factors for blocks or a window."""
        if self.random.random() < 0.5:
            return self.number()
        places = {place: self.random.choice((0.0, self.number())) for place in PLACES if self.random.random() < 0.5}
        if self.random.random() < 0.3:
            return Strength(self.number(), start=self.random.choice((0.0, 0.25)), end=0.75, **places)
        blocks = {block: self.number() for block in self.random.sample(self.kit.blocks, self.random.randrange(3))}
        return Strength(self.number(), blocks=blocks, **places)


class _Failed(Exception):
    pass


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    """One thread, since several wait for each other longer than tiny products take; and no advice of diffusers."""
    threads, verbosity = torch.get_num_threads(), diffusers.logging.get_verbosity()
    torch.set_num_threads(1)
    diffusers.logging.set_verbosity_error()
    yield
    torch.set_num_threads(threads)
    diffusers.logging.set_verbosity(verbosity)


def make_kit(folder: Path, unet: UNet2DConditionModel, dtypes: Sequence[torch.dtype], patch: pytest.MonkeyPatch) -> Kit:
    layers = [name.removesuffix(".processor") for name in unet.attn_processors]
    files = [
        network_file(folder, f"{place}.pt", **{"widths": WIDTHS, "scale": 0.2, "seed": place, **build})
        for place, build in enumerate(NETWORKS)
    ]
    return Kit(
        unet,
        blocks=sorted({".".join(layer.split(".")[:depth]) for layer in layers for depth in (1, 2, 4, 9)}),
        networks=[hnetkit.load(file) for file in files],
        loras=[lora(any_truth.pipeline_of(unet), parts) for parts in LORAS],
        dtypes=dtypes,
        patch=patch,
    )


def go_through(kit: Kit, examples: int, steps: int) -> None:
    seeds = st.lists(st.integers(0, 2**20), min_size=steps, max_size=steps)

    @seed(20261123)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(seeds, st.integers(1, 3))
    def sequence(seeds: list[int], every: int) -> None:
        Changes(kit).go(seeds, every)

    sequence()


SMALL, BROAD = any_truth.small_unet, any_truth.broad_unet


@pytest.mark.parametrize(
    ("kernel", "unet", "examples", "steps"),
    [
        ("auto", BROAD, 6, 20),
        ("auto", SMALL, 14, 20),
        ("grouped", SMALL, 6, 8),
        ("fused", SMALL, 3, 8),
        pytest.param("auto", BROAD, 150, 40, marks=pytest.mark.long),
        pytest.param("auto", SMALL, 500, 40, marks=pytest.mark.long),
        pytest.param("grouped", SMALL, 60, 15, marks=pytest.mark.long),
        pytest.param("fused", SMALL, 30, 15, marks=pytest.mark.long),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_after_any_sequence_a_call_is_what_the_plain_implementation_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str, unet: Any, examples: int, steps: int
) -> None:
    """bf16 is left out where kernels are interpreted: Triton's interpreter computes its products wrongly."""
    if kernel != "auto":
        pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")
    monkeypatch.setenv("HNETKIT_KERNEL", kernel)
    dtypes = [dtype for dtype in TOLERANCE if kernel == "auto" or dtype != torch.bfloat16]
    go_through(make_kit(tmp_path, unet(), dtypes, monkeypatch), examples, steps)
