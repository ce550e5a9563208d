"""Refining: the UNet with refined changes is nearer to the UNet with the networks, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import pytest
import torch
from support.pipelines import latents, tiny_sd

import hnetkit
from hnetkit.baking.api import bake
from hnetkit.baking.changes import Changes, Rounding, in_weights
from hnetkit.baking.contexts import GatheredContexts
from hnetkit.baking.contributions import NamedStack, StackOnLayers
from hnetkit.baking.making import Form, make_changes
from hnetkit.baking.picture_plan import plan_pictures
from hnetkit.baking.refining import GuidedCall, calls_for, recording, refined
from hnetkit.errors import TooInexact
from hnetkit.generate.model import load_model
from hnetkit.network import Hypernetwork
from hnetkit.runtime.strength import Strength

FEW: dict[str, Any] = {"prompts": ["a red circle", "a blue star", "a green square", "a black star"], "steps": 1}
Lengths = tuple[int, ...]
TEXTS: dict[str, Lengths] = {"none": (9,), "guided": (9, 9), "two lengths": (9, 18)}
SEEDS = range(12)
EXACT = Rounding("fp32")


@pytest.fixture
def pipe() -> Any:
    """The smallest pipeline, whose UNet is called and nothing else."""
    return tiny_sd(least=True)


def call_unet(pipe: Any, seed: int, texts: Lengths) -> torch.Tensor:
    """Returns what the UNet gives for texts of some lengths, as `Denoiser` calls it."""
    noise = torch.Generator().manual_seed(seed)
    sample, time = torch.randn(1, 4, 8, 8, generator=noise), torch.randint(1000, (), generator=noise)
    made = []
    with torch.no_grad():
        for length, alike in groupby(texts):
            text = torch.randn(len(list(alike)), length, 24, generator=noise)
            given = sample.repeat(len(text), 1, 1, 1)
            made.append(pipe.unet(given, time, encoder_hidden_states=text, return_dict=False)[0])
    return torch.cat(made)


def fitted(
    pipe: Any, stack: NamedStack, form: Form, texts: Lengths = (9, 9), refining: int = 0
) -> tuple[Changes, list[GuidedCall]]:
    """Returns changes that were fitted to calls of the UNet, and these calls; the networks stay loaded and active."""
    calls: list[GuidedCall] = []
    for name, network, strength in stack:
        if name not in hnetkit.get_active_hypernetworks(pipe):
            hnetkit.load_hypernetwork(pipe, network, name, strength)
    on_layers = StackOnLayers(pipe.unet, stack)
    seen = GatheredContexts(on_layers)
    with seen.watching(), recording(pipe.unet, calls):
        for seed in SEEDS:
            call_unet(pipe, seed, texts)
    better = partial(refine, pipe, calls=calls, steps=refining) if refining else None
    return make_changes(on_layers, lambda: (seen, seen), form, better), calls


def refine(pipe: Any, changes: Changes, calls: list[GuidedCall], steps: int = 20, cfg_scale: float = 3.0) -> Changes:
    with hnetkit.applied(pipe, {}):
        return refined(pipe.unet, changes, calls, steps=steps, cfg_scale=cfg_scale, seed=1, report=lambda steps: None)


def distance(pipe: Any, changes: Changes, texts: Lengths) -> float:
    """Returns how far guided outputs with changes are from those with the active stack."""

    def guided() -> torch.Tensor:
        outputs = [call_unet(pipe, seed, texts) for seed in SEEDS]
        return torch.stack([own[0] if len(texts) == 1 else own[0] + 3 * (own[1] - own[0]) for own in outputs])

    wanted = guided()
    with hnetkit.applied(pipe, {}), in_weights(pipe.unet, changes, EXACT):
        return float((guided() - wanted).norm())


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("in_parts", [True, False], ids=["parts", "differences"])
def test_the_unet_is_nearer_to_what_it_is_with_the_networks(
    in_parts: bool, texts: Lengths, pipe: Any, ink: Hypernetwork
) -> None:
    form = Form(in_parts, EXACT, rank=2 if in_parts else None)
    changes, calls = fitted(pipe, [("ink", ink, Strength(1.0))], form, texts)
    better = refine(pipe, changes, calls)
    assert distance(pipe, better, texts) < 0.9 * distance(pipe, changes, texts)
    for place, change in better.items():
        assert change.matrix.shape == changes[place].matrix.shape
        assert change.rank == changes[place].rank
        assert (change.constant is None) == (place[1] == "k")


def test_refining_leaves_the_unet_as_it_was_and_gives_the_same_again(pipe: Any, ink: Hypernetwork) -> None:
    changes, calls = fitted(pipe, [("ink", ink, Strength(1.0))], Form(True, EXACT, rank=2))
    pipe.unet.requires_grad_(False)
    pipe.unet.conv_in.requires_grad_(True)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in pipe.unet.named_parameters()}
    once, again = (refine(pipe, changes, calls, steps=3) for _ in range(2))
    for name, tensor in pipe.unet.named_parameters():
        assert torch.equal(tensor, before[name][0])
        assert (tensor.requires_grad, tensor.grad) == (before[name][1], None)
    assert all(torch.equal(change.matrix, again[place].matrix) for place, change in once.items())


def test_what_is_exact_stays_exact(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    stack = [("ink", ink, Strength(1.0, self_k=0, self_v=0)), ("tint", tint, Strength(1.0))]
    changes, calls = fitted(pipe, stack, Form(False, EXACT))
    for place, change in refine(pipe, changes, calls, steps=2).items():
        is_same = torch.equal(change.matrix, changes[place].matrix)
        assert is_same == (place[0].kind == "self") == (change.origin == "exact")


def test_errors_are_measured_anew_and_may_be_too_large(pipe: Any, ink: Hypernetwork) -> None:
    stack = [("ink", ink, Strength(1.0))]
    own, _ = fitted(pipe, stack, Form(True, EXACT, rank=4))
    better, _ = fitted(pipe, stack, Form(True, EXACT, rank=4), refining=10)
    assert all(change.error > own[place].error for place, change in better.items())  # a fit is the best of these
    most = max(change.error for change in own.values())
    with pytest.raises(TooInexact) as refusal:
        fitted(pipe, stack, Form(True, EXACT, rank=4, max_error=most + 1e-9), refining=10)
    assert "--refine" in str(refusal.value.command_hint)


def test_a_bake_says_how_it_was_refined(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, "ink")
    done: list[tuple[float, float]] = []
    baked = bake(pipe, rank=2, refine=2, **FEW, progress=lambda *report: done.append(report))
    assert baked.record["refine_steps"] == 2
    assert done == sorted(done)
    assert done[-1][0] == pytest.approx(done[-1][1])


def test_what_is_exact_draws_nothing_to_refine(pipe: Any, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, tint, "tint")
    baked = bake(pipe, refine=5, **FEW)
    assert baked.is_exact
    assert (baked.record["refine_steps"], baked.pictures) == (0, None)


def test_more_steps_draw_more_pictures_to_learn_from() -> None:
    model = load_model("demo", device="cpu")
    for steps in (1, 100):
        plan = plan_pictures(model, steps=8, calls=calls_for(steps))
        assert len(plan.seen) == max(12, -(-calls_for(steps) // 8))
        assert not {picture.seed for picture in plan.seen} & {picture.seed for picture in plan.held_out}
        assert len({picture.seed for picture in plan.seen}) == len(plan.seen)


def test_texts_of_two_lengths_are_trained_as_one_guided_call(pipe: Any, ink: Hypernetwork) -> None:
    changes, calls = fitted(pipe, [("ink", ink, Strength(1.0))], Form(True, EXACT, rank=2), (9, 18))
    assert len(calls) == len(SEEDS)
    noise = torch.Generator().manual_seed(1)
    others = [
        replace(call, output=torch.cat([torch.randn(1, 4, 8, 8, generator=noise), call.output[1:]])) for call in calls
    ]
    once, again = (refine(pipe, changes, own, steps=2, cfg_scale=1.0) for own in (calls, others))
    for place, change in once.items():  # at scale 1 the prompt alone counts, and the negative text does not
        assert torch.equal(change.matrix, again[place].matrix)


def test_calls_are_recorded_with_the_text_that_the_stack_has_not_seen(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, "ink")
    noise = torch.Generator().manual_seed(1)
    texts = [torch.randn(number, length, 24, generator=noise) for number, length in ((1, 5), (2, 10))]
    given, calls = latents(pipe), list[GuidedCall]()
    with torch.no_grad(), recording(pipe.unet, calls):
        for time in (1, 2):
            at = torch.tensor(time)
            made = [
                pipe.unet(given.repeat(len(text), 1, 1, 1), at, encoder_hidden_states=text, return_dict=False)[0]
                for text in texts
            ]
    first, second = calls
    assert torch.equal(second.output, torch.cat(made))
    assert torch.equal(second.sample, given)
    for text, before, now in zip(texts, first.conditions, second.conditions, strict=True):
        assert torch.equal(now["encoder_hidden_states"], text)
        assert before is now
    assert (int(first.timestep), int(second.timestep)) == (1, 2)
