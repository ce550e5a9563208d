"""Maps are folded into the module that is in a slot now, also after a LoRA went and before the next UNet call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.pipelines import tiny_sd
from support.stacks import relative
from support.unet_truth import lora, plain, run

import hnetkit
from hnetkit.network import Hypernetwork

CHANGES: dict[str, Callable[[Any], None]] = {
    "another strength": lambda pipe: hnetkit.set_hypernetworks(pipe, ["tint"], [0.5]),
    "progress": lambda pipe: hnetkit.set_progress(pipe, 0, 4),
    "another dtype": lambda pipe: pipe.unet.double().float(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_affine_network_changes_after_a_lora_went_and_before_the_next_call(tint: Hypernetwork, change: str) -> None:
    """The slots still hold PEFT's modules, which no map can be folded into."""
    pipe = tiny_sd(least=True)
    hnetkit.load_hypernetwork(pipe, tint, strength=0.8)
    pipe.load_lora_weights(lora(tiny_sd(least=True)))
    run(pipe)
    pipe.unload_lora_weights()
    CHANGES[change](pipe)
    strength = 0.5 if change == "another strength" else 0.8
    assert relative(run(pipe), plain(tiny_sd(least=True), [(tint, strength)])) <= 1e-5


def test_an_affine_network_is_loaded_after_a_lora_went_and_before_the_next_call(
    ink: Hypernetwork, tint: Hypernetwork
) -> None:
    pipe = tiny_sd(least=True)
    hnetkit.load_hypernetwork(pipe, ink, strength=0.8)
    pipe.load_lora_weights(lora(tiny_sd(least=True)))
    run(pipe)
    pipe.unload_lora_weights()
    hnetkit.load_hypernetwork(pipe, tint, strength=0.5)
    assert relative(run(pipe), plain(tiny_sd(least=True), [(ink, 0.8), (tint, 0.5)])) <= 1e-5
