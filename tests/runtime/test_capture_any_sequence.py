"""Any sequence of changes to a captured UNet: each call gives the bits that the same UNet gives without a capture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from support import any_truth
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS
from support.stand_in_graphs import StandInGraphs
from support.unet_truth import lora
from torch import Tensor

import hnetkit
from hnetkit import Strength
from hnetkit.errors import AttachError
from hnetkit.network import Hypernetwork
from hnetkit.runtime import folding
from hnetkit.runtime.capture import captured_by

NETWORKS: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"activation": "mish", "layer_norm": True},
    {"activation": None},
    {"activation": "linear", "structure": (1, 1, 2, 1)},
]
CHANGES = 6  # in a sequence


@pytest.fixture
def networks(tmp_path: Path) -> list[Hypernetwork]:
    widths = (SELF_WIDTHS[0], SD_CROSS_WIDTH)
    return [
        hnetkit.load(network_file(tmp_path, f"{seed}.pt", widths=widths, seed=seed, scale=0.3, **build))
        for seed, build in enumerate(NETWORKS)
    ]


class Changes:
    """A captured pipeline and one that is not, to which the same happens."""

    def __init__(self, networks: list[Hypernetwork], patch: pytest.MonkeyPatch) -> None:
        unet = any_truth.small_unet()
        self.pipe, self.twin = any_truth.pipeline_of(unet), any_truth.pipeline_of(unet)
        self.networks, self.patch = networks, patch
        self.lora = lora(self.twin, ("to_k", "to_v"))

    def begin(self, number: int) -> None:
        self.random = Random(number)
        self.loaded: list[str] = []
        self.has_lora = False
        self.step = 0
        self.text = any_truth.text_of(0, 7, self.pipe.unet.dtype)

    def end(self) -> None:
        self.both(hnetkit.unload_hypernetworks)
        if self.has_lora:
            self.both(lambda pipe: pipe.unload_lora_weights())
        hnetkit.release(self.pipe)

    def both(self, verb: Callable[..., Any], *arguments: Any) -> None:
        for pipe in (self.pipe, self.twin):
            verb(pipe, *arguments)

    def look(self) -> None:
        wanted = self.called(self.twin)
        for _ in range(self.random.choice((1, 1, 2, 3))):
            got = self.called(self.pipe)
            assert (got is None) is (wanted is None)
            assert got is None or torch.equal(got, wanted)

    def called(self, pipe: Any) -> Tensor | None:
        try:
            return any_truth.picture(pipe, self.text)
        except AttachError:  # a window, and no progress
            return None

    # --- what can happen

    def capture(self) -> None:
        captured_by(StandInGraphs, self.pipe)

    def release(self) -> None:
        hnetkit.release(self.pipe)

    def load(self) -> None:
        if len(self.loaded) < 3:
            name = self.random.choice([name for name in "abcd" if name not in self.loaded])
            self.both(hnetkit.load_hypernetwork, self.random.choice(self.networks), name, self.strength())
            self.loaded.append(name)

    def unload(self) -> None:
        if self.loaded:
            name = self.random.choice(self.loaded)
            self.both(hnetkit.unload_hypernetworks, name)
            self.loaded.remove(name)

    def stack(self) -> None:
        names = self.random.sample(self.loaded, self.random.randint(0, len(self.loaded)))
        self.both(hnetkit.set_hypernetworks, names, [self.strength() for _ in names])

    def strength(self) -> float | Strength:
        number = self.random.choice((0.0, 0.5, 1.0, -0.3))
        windowed = Strength(number, cross_k=0.2, end=0.5)
        return self.random.choice((number, number, Strength(number, self_v=0), windowed))

    def progress(self) -> None:
        self.step += 1
        self.both(hnetkit.set_progress, self.step % 4, 4)

    def enable(self) -> None:
        self.both(self.random.choice((hnetkit.disable_hypernetworks, hnetkit.enable_hypernetworks)))

    def come_or_go(self) -> None:
        if self.has_lora:
            self.both(lambda pipe: pipe.unload_lora_weights())
        else:
            self.both(lambda pipe: pipe.load_lora_weights(dict(self.lora), adapter_name="sketch"))
        self.has_lora = not self.has_lora

    def scale(self) -> None:
        if self.has_lora:
            self.both(lambda pipe, scale: pipe.set_adapters(["sketch"], [scale]), self.random.choice((0.3, 1.0)))

    def fold(self) -> None:
        self.patch.setattr(folding, "CPU_RATE", self.random.choice((0.0, 2e10)))

    def dtype(self) -> None:
        dtype = torch.float64 if self.pipe.unet.dtype is torch.float32 else torch.float32
        self.both(lambda pipe: pipe.unet.to(dtype))
        self.text = self.text.to(dtype)

    def size(self) -> None:
        tokens = self.random.choice((7, 5))
        self.text = any_truth.text_of(self.random.randrange(3), tokens, self.pipe.unet.dtype)


KINDS = (
    "load",
    "load",
    "unload",
    "stack",
    "stack",
    "progress",
    "enable",
    "come_or_go",
    "scale",
    "fold",
    "dtype",
    "size",
)


@pytest.mark.parametrize("sequences", [20, pytest.param(1000, marks=pytest.mark.long)])
def test_each_call_gives_the_bits_of_the_unet_without_a_capture(
    networks: list[Hypernetwork], monkeypatch: pytest.MonkeyPatch, sequences: int
) -> None:
    StandInGraphs.begin()
    changes = Changes(networks, monkeypatch)
    for number in range(sequences):
        changes.begin(number)
        changes.capture()
        for _ in range(CHANGES):
            kind = changes.random.choice((*KINDS, *KINDS, "capture", "release"))
            getattr(changes, kind)()
            try:
                changes.look()
            except BaseException as error:
                error.add_note(f"sequence {number}, after {kind}") if hasattr(error, "add_note") else None
                raise
        changes.end()
    assert not StandInGraphs.living
    assert StandInGraphs.replayed > sequences
    assert StandInGraphs.recorded > sequences / 4
