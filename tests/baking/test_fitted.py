"""What is fitted: ranks, errors that hold, and where nothing is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hnetkit
from hnetkit.baking.api import bake
from hnetkit.baking.fit import error_of, fitted_change
from hnetkit.baking.moments import PairMoments
from hnetkit.errors import BadPicture, TooInexact, UsageError
from hnetkit.network import Hypernetwork

FEW: dict[str, Any] = {"prompts": ["a red circle", "a blue star", "a green square", "a black star"], "steps": 1}


def rows(seed: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns contexts ``[items, tokens, width]`` of few directions, and something that is added to them."""
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 50, width, generator=noise) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.1]) + 5
    return x, torch.tanh(x @ torch.linspace(-1, 1, width * width).reshape(width, width)) + 0.3


@pytest.mark.parametrize("side", ["k", "v"])
def test_errors_are_those_of_the_rows_themselves(side: Any) -> None:
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen, held_out = (PairMoments(6, torch.device("cpu"), centered=side == "k") for _ in range(2))
    seen.add(*rows(1))
    seen.add(*rows(2))
    held_out.add(*rows(3))
    change = fitted_change(weight, side, seen, held_out, in_parts=True)
    x, added = (part.double() for part in rows(3))
    for rank in range(change.rank + 1):
        part = change.truncated(rank)
        wanted, given = added @ weight.T, x @ part.matrix.T
        if side == "k":  # a constant on all keys of a text or image does not count
            wanted, given = wanted - wanted.mean(1, keepdim=True), given - given.mean(1, keepdim=True)
        else:
            given = given + part.constant
        error = (wanted - given).norm() / wanted.norm()
        assert float(part.errors[-1]) == pytest.approx(float(error), rel=1e-4)
        assert float(change.errors[rank]) == pytest.approx(float(error), rel=1e-4)
        same = error_of(weight, part.matrix, part.constant, held_out, side)
        assert float(same) == pytest.approx(float(error), rel=1e-4)


def test_more_parts_fit_what_was_seen_better() -> None:
    weight = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = PairMoments(6, torch.device("cpu"), centered=False)
    seen.add(*rows(1))
    errors = fitted_change(weight, "v", seen, seen, in_parts=True).errors
    assert bool((errors.diff() <= 1e-9).all())
    whole = fitted_change(weight, "v", seen, seen, in_parts=False)
    assert whole.error == pytest.approx(float(errors[-1]))
    assert whole.down is None


def test_a_row_that_counts_twice_is_two_rows() -> None:
    once, twice = (PairMoments(6, torch.device("cpu"), centered=False) for _ in range(2))
    x, added = rows(1)
    once.add(x, added, 2.0)
    twice.add(torch.cat([x, x]), torch.cat([added, added]))
    for own, other in zip((*once.covariances, *once.mean), (*twice.covariances, *twice.mean), strict=True):
        assert torch.allclose(own, other, atol=1e-5)


def test_a_lora_is_fitted_on_some_prompts_and_measured_on_others(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, "ink", 0.5)
    bare = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    baked = bake(pipe, rank=4, **FEW)
    assert {change.origin for change in baked.changes.values()} == {"fitted"}
    assert {change.rank for change in baked.changes.values()} == {4}
    assert all(0 < error < 1 for error in baked.errors.values())
    assert baked.record["fitted_on"]["prompts"] == FEW["prompts"][:3]
    assert baked.record["fitted_on"]["held_out"] == FEW["prompts"][3:]
    assert baked.record["pictures"]["number"] == 4
    assert hnetkit.get_active_hypernetworks(pipe) == ["ink"]
    assert all(torch.equal(tensor, bare[name]) for name, tensor in pipe.unet.state_dict().items())


def test_an_error_chooses_the_ranks(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, "ink", 0.5)
    full = max(bake(pipe, to="diff", program="comfyui", **FEW).errors.values())
    limit = full + (1 - full) / 10
    baked = bake(pipe, max_error=limit, program="comfyui", **FEW)
    assert max(baked.errors.values()) <= limit
    assert len({change.rank for change in baked.changes.values()}) > 1
    for_diffusers = bake(pipe, max_error=limit, **FEW)
    rank = max(change.rank for change in baked.changes.values())
    shapes = {tensor.shape[0] for name, tensor in for_diffusers.tensors.items() if "lora_A" in name}
    assert shapes == {rank}  # its loader takes one rank
    with pytest.raises(TooInexact, match=f"above {limit:g}") as refusal:
        bake(pipe, rank=1, max_error=limit, **FEW)
    assert refusal.value.command_hint == f"--rank {rank}"
    with pytest.raises(TooInexact) as refusal:
        bake(pipe, max_error=full / 2, **FEW)
    assert "no rank would do" in str(refusal.value.command_hint)


def test_what_is_exact_stays_exact_beside_what_is_fitted(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, "ink", hnetkit.Strength(0.5, self_k=0, self_v=0))
    hnetkit.load_hypernetwork(pipe, tint, "tint", 0.5)
    baked = bake(pipe, to="checkpoint", **FEW)
    assert {(layer.kind, change.origin) for (layer, _), change in baked.changes.items()} == {
        ("self", "exact"),
        ("cross", "fitted"),
    }


def test_one_projection_alone_is_fitted_too(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, "ink", hnetkit.Strength(0, cross_k=1, blocks={"": 0, "mid_block": 1}))
    ((name, error),) = bake(pipe, **FEW).errors.items()
    assert name.startswith("mid_block.")
    assert name.endswith(".attn2.to_k")
    assert 0 < error < 1


def test_networks_that_draw_nothing_but_nan_are_refused_at_the_first_picture(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, "ink", 1e30)
    with pytest.raises(BadPicture, match="seed 1 came out NaN: a red circle"):
        bake(pipe, **FEW)


def test_a_rank_below_that_of_a_network_is_fitted(pipe: Any, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, tint, "tint", 0.5)
    baked = bake(pipe, rank=2, **FEW)
    assert {change.origin for change in baked.changes.values()} == {"fitted"}
    whole = bake(pipe, rank=8, **FEW)
    assert {layer.projected for (layer, _), change in whole.changes.items() if change.origin == "exact"} == {8}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "from 1 on"),
        ({"refine": -1}, "steps of refining, not -1"),
        ({"to": "hypernetwork", "refine": 10}, "exact or refused"),
        ({"rank": 21}, "the widest layer has 20"),
        ({"max_error": 1.5}, "between 0 and 1"),
        ({"to": "diff", "program": "comfyui", "rank": 4}, "is of a LoRA"),
        ({"to": "diff"}, "name full differences differently"),
        ({"to": "diff", "program": "diffusers"}, "loads no full differences"),
        ({"to": "lora", "program": "a1111"}, "carry no bias"),
        ({"mix": "parallel"}, "is of --to hypernetwork"),
        ({"to": "checkpoint", "program": "comfyui"}, "one form for all programs"),
        ({"to": "hypernetwork", "max_error": 0.5}, "exact or refused"),
        ({"to": "embedding"}, "nothing that networks are baked to"),
        ({"prompts": []}, "no prompt"),
        ({"prompts": ["a star <hypernet:ink:1>"]}, "a prompt has tags"),
        ({"names": {"ink": hnetkit.Strength(1.0, end=0.5)}}, "limited to 0 to 0.5 of the steps"),
        ({"names": []}, "no hypernetwork to bake"),
        ({"dtype": "float16"}, "float16: not a type of weights"),
        ({"dtype": "fp64", "to": "hypernetwork"}, "fp64: not a type of weights"),
    ],
)
def test_what_cannot_be_baked_is_refused_before_anything_is_drawn(
    options: dict[str, Any], said: str, pipe: Any, ink: Hypernetwork
) -> None:
    hnetkit.load_hypernetwork(pipe, ink, "ink", 0.5)
    drawn: list[object] = []
    with pytest.raises(UsageError, match=said):
        bake(pipe, **{**FEW, **options}, progress=lambda done, total: drawn.append(done))
    assert drawn == []
