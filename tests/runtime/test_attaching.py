"""Hypernetworks on a UNet: what it computes, and that it is what it was after them."""

from __future__ import annotations

import copy
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from support import plain_a1111
from support.networks import a1111_network, network_file, save_pt
from support.pipelines import draw, tiny_sd, tiny_sdxl, unet_call
from support.stacks import relative
from support.unet_truth import plain, run, surface
from torch import Tensor, nn

import hnetkit
from hnetkit.errors import (
    AttachError,
    DamagedFile,
    FileRefused,
    IncompatibleNetwork,
    KernelUnavailable,
    NotFound,
    UsageError,
)
from hnetkit.network import Hypernetwork, TensorRef

WIDTHS = (8, 20, 24)


# --- what it computes


def test_a_stack_is_what_the_plain_implementation_computes(
    ink: Hypernetwork, wash: Hypernetwork, tint: Hypernetwork, shade: Hypernetwork
) -> None:
    pipe = tiny_sd(dtype=torch.float64)
    stack = [(tint, 0.5), (ink, 0.75), (shade, -0.5), (wash, 1.25), (tint, 0.25), (shade, 0.625)]
    for number, (net, strength) in enumerate(stack):
        hnetkit.load_hypernetwork(pipe, net, name=str(number), strength=strength)
        assert relative(run(pipe), plain(pipe, stack[: number + 1])) <= 1e-12


@pytest.mark.parametrize("kernel", ["auto", "eager", "reference", "grouped", "fused"])
def test_every_path_gives_the_same(
    pipe: Any, ink: Hypernetwork, tint: Hypernetwork, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", kernel)
    for net in (ink, tint):
        hnetkit.load_hypernetwork(pipe, net, strength=0.7)
    assert relative(run(pipe), plain(pipe, [(ink, 0.7), (tint, 0.7)])) <= 1e-5


def test_the_grouped_path_counts_its_own_launches(
    pipe: Any, ink: Hypernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = {}
    for kernel in ("eager", "grouped"):
        monkeypatch.setenv("HNETKIT_KERNEL", kernel)
        hnetkit.load_hypernetwork(pipe, ink, strength=0.7)
        plan = hnetkit.explain(pipe)
        hnetkit.unload_hypernetworks(pipe)
        assert plan["kernel"] == kernel
        counted[kernel] = plan["launches"]
    assert counted["grouped"] < counted["eager"] / 2 + 1


def test_a_forced_path_that_cannot_run_leaves_the_unet_alone(
    pipe: Any, ink: Hypernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = surface(pipe.unet)
    monkeypatch.setenv("HNETKIT_KERNEL", "chain")
    with pytest.raises(KernelUnavailable):
        hnetkit.load_hypernetwork(pipe, ink)
    assert surface(pipe.unet) == before


def test_golden_files_are_what_the_plain_implementation_computes(shared: Path, pipe: Any) -> None:
    folder = shared / "data" / "golden"
    nets = [
        hnetkit.load(folder / f"{name}.pt") for name in ("mish_ln", "nai_plain", "tanh_ln_dropout_out", "linear_121")
    ]
    for net in nets:
        hnetkit.load_hypernetwork(pipe, net, strength=0.6)
    assert relative(run(pipe), plain(pipe, [(net, 0.6) for net in nets])) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_unet_is_no_less_exact_than_plain(
    dtype: torch.dtype, ink: Hypernetwork, tint: Hypernetwork, wash: Hypernetwork
) -> None:
    stack = [(ink, 0.8), (tint, 0.5), (wash, 0.6)]
    half = tiny_sd(dtype=dtype)
    exact = tiny_sd()
    exact.unet.load_state_dict(half.unet.state_dict())
    call = {
        key: value.to(dtype).float() if value.is_floating_point() else value for key, value in unet_call(exact).items()
    }
    for pipe in (half, exact):
        for net, strength in stack:
            hnetkit.load_hypernetwork(pipe, net, strength=strength)
    with torch.no_grad():
        truth = exact.unet(**call, return_dict=False)[0]
        got = half.unet(
            **{key: value.to(dtype) if value.is_floating_point() else value for key, value in call.items()},
            return_dict=False,
        )[0]
    assert got.dtype == dtype
    assert relative(got, truth) <= 1.3 * relative(plain(half, stack), truth) + 1e-5


def test_sdxl_with_a_network_of_its_text_width(tmp_path: Path) -> None:
    pipe = tiny_sdxl()
    net = hnetkit.load(network_file(tmp_path, widths=(8, 20, 48), activation="tanh", scale=0.3))
    hnetkit.load_hypernetwork(pipe, net, strength=0.9)
    assert relative(run(pipe), plain(pipe, [(net, 0.9)])) <= 1e-5
    assert torch.isfinite(draw(pipe)).all()


def test_each_number_of_a_strength_goes_to_its_place(pipe: Any, ink: Hypernetwork) -> None:
    """K and V of self- and cross-attention: each number alone changes the picture in its own way."""
    hnetkit.load_hypernetwork(pipe, ink)
    pictures = [run(pipe)]
    for place in ("self_k", "self_v", "cross_k", "cross_v"):
        hnetkit.set_hypernetworks(pipe, ["ink"], [hnetkit.Strength(0.0, **{place: 1.0})])
        modules = plain_a1111.modules_of(ink)
        wanted = {
            width: (pair[0] if place[-1] == "k" else _Zero(), pair[1] if place[-1] == "v" else _Zero())
            for width, pair in modules.items()
            if (width == 24) == place.startswith("cross")
        }
        fresh = tiny_sd()
        fresh.unet.set_attn_processor(plain_a1111.PlainProcessor([(wanted, 1.0)]))
        assert relative(run(pipe), run(fresh)) <= 1e-5
        pictures.append(run(pipe))
    assert min(relative(a, b) for i, a in enumerate(pictures) for b in pictures[:i]) > 1e-4


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def test_a_block_has_a_factor_of_its_own(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=hnetkit.Strength(0.8, blocks={"up_blocks": 0, "mid_block": 0.5}))
    hnetkit.load_hypernetwork(pipe, tint, strength=0.5)
    fresh = tiny_sd()
    modules = [plain_a1111.modules_of(net) for net in (ink, tint)]
    processors = {}
    for name in fresh.unet.attn_processors:
        factor = 0 if name.startswith("up_blocks") else 0.5 if name.startswith("mid_block") else 1
        processors[name] = plain_a1111.PlainProcessor([(modules[0], 0.8 * factor), (modules[1], 0.5)])
    fresh.unet.set_attn_processor(processors)
    assert relative(run(pipe), run(fresh)) <= 1e-5


def test_a_block_that_the_unet_lacks_is_an_error_with_the_near_one(pipe: Any, ink: Hypernetwork) -> None:
    with pytest.raises(UsageError) as refused:
        hnetkit.load_hypernetwork(pipe, ink, strength=hnetkit.Strength(blocks={"up_block.1": 0.5}))
    assert refused.value.hint == "did you mean up_blocks.1?"
    assert hnetkit.get_active_hypernetworks(pipe) == []


def test_the_text_may_come_by_position(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    call = unet_call(pipe)
    with torch.no_grad():
        by_position = pipe.unet(call["sample"], call["timestep"], call["encoder_hidden_states"], return_dict=False)[0]
    assert torch.equal(by_position, run(pipe))


def test_the_text_goes_through_the_stack_once_per_call(
    pipe: Any, ink: Hypernetwork, wash: Hypernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr("torch.nn.functional.linear", lambda x, *rest: (rows.append(x.shape[-1]), linear(x, *rest))[1])
    for net in (ink, wash):
        hnetkit.load_hypernetwork(pipe, net)
    run(pipe)
    hidden_layers = [width for width in rows if width == 48]
    assert len(hidden_layers) == 2 * 2, "the second product of two networks, for K and for V"


def test_a_text_changed_in_place_is_seen(pipe: Any, ink: Hypernetwork) -> None:
    """Nothing is kept from one call to the next, not even for the same tensor."""
    hnetkit.load_hypernetwork(pipe, ink)
    call = unet_call(pipe)
    with torch.no_grad():
        pipe.unet(**call)
        call["encoder_hidden_states"].mul_(-1)
        got = pipe.unet(**call, return_dict=False)[0]
        fresh = pipe.unet(
            **{**call, "encoder_hidden_states": call["encoder_hidden_states"].clone()}, return_dict=False
        )[0]
    assert torch.equal(got, fresh)


def test_nothing_of_a_call_that_failed_is_left(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    before = run(pipe)
    with pytest.raises(TypeError):
        pipe.unet(**unet_call(pipe), no_such_argument=1)
    assert pipe.unet.hnetkit._text.source is None
    assert torch.equal(run(pipe), before)


@pytest.mark.parametrize("side_by_side", [False, True], ids=["one call", "two calls"])
def test_gradients_are_the_same_where_layers_are_computed_again(
    ink: Hypernetwork, wash: Hypernetwork, *, side_by_side: bool
) -> None:
    pipe = tiny_sd(least=True)
    for net in (ink, wash):
        hnetkit.load_hypernetwork(pipe, net, strength=0.7)
    pipe.unet.train()

    def gradients() -> list[Tensor]:
        call = unet_call(pipe)
        call["encoder_hidden_states"].requires_grad_()
        loss = pipe.unet(**call, return_dict=False)[0].square().mean()
        if side_by_side:  # before the first one's layers are computed again
            other = {**call, "encoder_hidden_states": call["encoder_hidden_states"] * -1}
            loss = loss + pipe.unet(**other, return_dict=False)[0].square().mean()
        pipe.unet.zero_grad()
        loss.backward()
        return [call["encoder_hidden_states"].grad, *(weight.grad.clone() for weight in pipe.unet.parameters())]

    kept = gradients()
    pipe.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradients(), kept)


# --- on and off


def test_detaching_gives_the_first_bits_back(
    pipe: Any, ink: Hypernetwork, tint: Hypernetwork, shade: Hypernetwork
) -> None:
    before, picture = surface(pipe.unet), draw(pipe)
    for net in (ink, tint, shade):
        hnetkit.load_hypernetwork(pipe, net)
    hnetkit.set_hypernetworks(pipe, ["shade", "ink"], [0.5, 2])
    assert not torch.equal(draw(pipe), picture)
    hnetkit.unload_hypernetworks(pipe)
    assert surface(pipe.unet) == before
    assert torch.equal(draw(pipe), picture)
    assert hnetkit.get_active_hypernetworks(pipe) == []


def test_strength_zero_is_bit_identical_to_none(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    picture = draw(pipe)
    for net in (ink, tint):
        hnetkit.load_hypernetwork(pipe, net, strength=0)
    assert torch.equal(draw(pipe), picture)


def test_disabling_and_enabling(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    picture = draw(pipe)
    for net in (ink, tint):
        hnetkit.load_hypernetwork(pipe, net)
    styled = draw(pipe)
    hnetkit.disable_hypernetworks(pipe)
    assert torch.equal(draw(pipe), picture)
    hnetkit.enable_hypernetworks(pipe)
    assert torch.equal(draw(pipe), styled)


def test_what_is_loaded_or_set_while_all_are_disabled_says_so(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    hnetkit.disable_hypernetworks(pipe)
    with pytest.warns(UserWarning, match=r"are disabled, these too: hnetkit\.enable_hypernetworks\(pipe\)"):
        hnetkit.load_hypernetwork(pipe, tint)
    with pytest.warns(UserWarning, match="are disabled"):
        hnetkit.set_hypernetworks(pipe, "tint")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hnetkit.set_hypernetworks(pipe, [])
        with hnetkit.applied(pipe, "ink"):
            run(pipe)


def test_applied_is_for_the_block_alone(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=0.3)
    hnetkit.load_hypernetwork(pipe, tint, strength=0.4)
    hnetkit.disable_hypernetworks(pipe)
    picture = draw(pipe)
    with hnetkit.applied(pipe, {"tint": 0.8, "ink": 0.2}):
        assert hnetkit.get_active_hypernetworks(pipe) == ["tint", "ink"]
        assert relative(run(pipe), plain(pipe, [(tint, 0.8), (ink, 0.2)])) <= 1e-5
    assert torch.equal(draw(pipe), picture)
    hnetkit.enable_hypernetworks(pipe)
    assert hnetkit.get_active_hypernetworks(pipe) == ["ink", "tint"]
    assert relative(run(pipe), plain(pipe, [(ink, 0.3), (tint, 0.4)])) <= 1e-5


def test_applied_puts_the_stack_back_after_an_error(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=0.3)
    picture = draw(pipe)
    with pytest.raises(RuntimeError), hnetkit.applied(pipe, {"ink": 1.5}):
        raise RuntimeError
    assert torch.equal(draw(pipe), picture)


def test_what_is_loaded_within_applied_is_not_active_after_it(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    with hnetkit.applied(pipe, {}):
        hnetkit.load_hypernetwork(pipe, ink)
    assert hnetkit.get_active_hypernetworks(pipe) == []
    hnetkit.set_hypernetworks(pipe, "ink")
    with hnetkit.applied(pipe, {}):
        hnetkit.load_hypernetwork(pipe, tint)
    assert hnetkit.get_active_hypernetworks(pipe) == ["ink"]


def test_one_of_several_is_unloaded(pipe: Any, ink: Hypernetwork, tint: Hypernetwork, wash: Hypernetwork) -> None:
    for net in (ink, tint, wash):
        hnetkit.load_hypernetwork(pipe, net)
    hnetkit.unload_hypernetworks(pipe, "tint")
    assert hnetkit.get_active_hypernetworks(pipe) == ["ink", "wash"]
    assert relative(run(pipe), plain(pipe, [(ink, 1), (wash, 1)])) <= 1e-5
    with pytest.raises(NotFound):
        hnetkit.set_hypernetworks(pipe, ["tint"])


def test_order_is_stacking_order(pipe: Any, ink: Hypernetwork, wash: Hypernetwork) -> None:
    for net in (ink, wash):
        hnetkit.load_hypernetwork(pipe, net)
    hnetkit.set_hypernetworks(pipe, ["wash", "ink"], [0.5, 0.9])
    assert relative(run(pipe), plain(pipe, [(wash, 0.5), (ink, 0.9)])) <= 1e-5
    assert relative(run(pipe), plain(pipe, [(ink, 0.9), (wash, 0.5)])) > 1e-4


def test_two_pipelines_that_share_a_unet_share_the_stack(pipe: Any, ink: Hypernetwork, wash: Hypernetwork) -> None:
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    hnetkit.load_hypernetwork(pipe, ink)
    hnetkit.load_hypernetwork(other, wash)
    assert hnetkit.get_active_hypernetworks(pipe) == hnetkit.get_active_hypernetworks(other) == ["ink", "wash"]
    assert torch.equal(run(pipe), run(other))
    hnetkit.unload_hypernetworks(other)
    assert hnetkit.get_active_hypernetworks(pipe) == []


def test_a_copy_of_the_unet_has_a_stack_of_its_own(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    for net in (ink, tint):
        hnetkit.load_hypernetwork(pipe, net)
    other = copy.deepcopy(pipe)
    styled = run(pipe)
    assert torch.equal(run(other), styled)
    hnetkit.set_hypernetworks(other, ["ink"], [0.5])
    assert torch.equal(run(pipe), styled)
    hnetkit.unload_hypernetworks(other)
    assert torch.equal(run(pipe), styled)
    assert torch.equal(run(other), run(tiny_sd()))


# --- a strength change


def test_a_strength_change_reads_nothing_and_moves_no_weight(
    pipe: Any,
    ink: Hypernetwork,
    tint: Hypernetwork,
    wash: Hypernetwork,
    shade: Hypernetwork,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = [(ink, 0.5), (tint, 0.4), (shade, 0.2), (wash, 0.3)]
    for net, strength in stack:
        hnetkit.load_hypernetwork(pipe, net, strength=strength)
    buffers = {name: buffer.data_ptr() for name, buffer in pipe.unet.named_buffers()}
    reads: list[TensorRef] = []
    monkeypatch.setattr(TensorRef, "read", lambda ref: reads.append(ref))
    monkeypatch.setattr(TensorRef, "torch", lambda ref: reads.append(ref))
    names = ["ink", "tint", "shade", "wash"]
    for strengths in ([0.1, 0.2, 0.3, 0.4], [1, -1, 0.5, 2], [hnetkit.Strength(1, cross_v=0.5), 0.5, 0.5, 0.5]):
        hnetkit.set_hypernetworks(pipe, names, strengths)
        run(pipe)
    hnetkit.set_hypernetworks(pipe, names, [0.9, 0.8, 0.7, 0.6])
    assert {name: buffer.data_ptr() for name, buffer in pipe.unet.named_buffers()} == buffers
    assert reads == []
    monkeypatch.undo()
    assert relative(run(pipe), plain(pipe, [(ink, 0.9), (tint, 0.8), (shade, 0.7), (wash, 0.6)])) <= 1e-5


def test_weights_are_there_once_per_width_and_not_per_layer(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    buffers = pipe.unet.hnetkit.named_buffers()
    held = {buffer.data_ptr(): buffer.numel() for name, buffer in buffers if not name.endswith("strengths")}
    assert sum(held.values()) == ink.parameters


def test_an_affine_network_is_kept_as_its_map(pipe: Any, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, tint)
    held = {buffer.data_ptr(): buffer.numel() for buffer in pipe.unet.hnetkit.buffers()}
    assert sum(held.values()) == 2 * sum(width * width + width for width in WIDTHS)


# --- windows of steps


def test_a_window_of_steps(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=hnetkit.Strength(0.8, end=0.5))
    hnetkit.load_hypernetwork(pipe, tint, strength=0.4)
    both, tint_alone = plain(pipe, [(ink, 0.8), (tint, 0.4)]), plain(pipe, [(tint, 0.4)])
    for step, wanted in enumerate([both, both, tint_alone, tint_alone]):
        hnetkit.set_progress(pipe, step, 4)
        assert relative(run(pipe), wanted) <= 1e-5
    hnetkit.set_progress(pipe, 0, 4)
    assert relative(run(pipe), both) <= 1e-5


def test_a_window_of_an_affine_network_goes_into_no_weight(pipe: Any, tint: Hypernetwork, shade: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, shade, strength=hnetkit.Strength(0.4, start=0.5))
    hnetkit.load_hypernetwork(pipe, tint, strength=0.8)
    for step, stack in enumerate([[(tint, 0.8)], [(shade, 0.4), (tint, 0.8)]]):
        hnetkit.set_progress(pipe, step, 2)
        assert {tuple(part["folded"]) for part in hnetkit.explain(pipe)["parts"]} == {("tint",)}
        assert relative(run(pipe), plain(pipe, stack)) <= 1e-5


def test_a_step_plans_again_only_for_a_network_with_a_window(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    plan = pipe.unet.hnetkit.plan
    hnetkit.set_progress(pipe, 1, 4)
    assert pipe.unet.hnetkit.plan is plan
    hnetkit.set_hypernetworks(pipe, ["ink"], [hnetkit.Strength(end=0.2)])
    assert all(group.is_idle for group in pipe.unet.hnetkit.plan.groups)
    hnetkit.set_progress(pipe, 0, 4)
    assert not any(group.is_idle for group in pipe.unet.hnetkit.plan.groups)


def test_a_window_without_progress_is_an_error_and_not_a_quiet_picture(pipe: Any, ink: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=hnetkit.Strength(end=0.5))
    with pytest.raises(AttachError, match=r"ink is limited to 0 to 0\.5") as refused:
        draw(pipe)
    assert "follow_progress" in str(refused.value.hint)
    hnetkit.disable_hypernetworks(pipe)
    draw(pipe)


# --- does it belong here


@pytest.mark.parametrize("widths", [(320, 640, 768, 1280), (8, 20), (8, 20, 24), (8, 20, 768)], ids=str)
def test_an_sd1_file_on_sdxl_is_refused(tmp_path: Path, widths: tuple[int, ...]) -> None:
    pipe = tiny_sdxl()
    before = surface(pipe.unet)
    net = hnetkit.load(network_file(tmp_path, widths=widths, structure=(1, 0.5, 1)))
    with pytest.raises(IncompatibleNetwork):
        hnetkit.load_hypernetwork(pipe, net)
    assert surface(pipe.unet) == before


def test_it_goes_on_sdxl_when_forced_and_some_layer_is_reached(tmp_path: Path) -> None:
    pipe = tiny_sdxl()
    hnetkit.load_hypernetwork(pipe, network_file(tmp_path, widths=(8, 20, 768), structure=(1, 0.5, 1)), force=True)
    assert hnetkit.explain(pipe)["layers_reached"] == 7
    with pytest.raises(IncompatibleNetwork, match="reaches no layer"):
        hnetkit.load_hypernetwork(pipe, network_file(tmp_path, "other.pt", widths=(320,)), force=True)


def test_a_known_text_width_that_is_not_the_unets_is_refused(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(IncompatibleNetwork, match="made for SD 2"):
        hnetkit.load_hypernetwork(pipe, network_file(tmp_path, widths=(8, 1024), structure=(1, 0.5, 1)))


def test_self_attention_alone_fits_sd(pipe: Any, tmp_path: Path) -> None:
    hnetkit.load_hypernetwork(pipe, network_file(tmp_path, widths=(20,)))
    assert hnetkit.explain(pipe)["layers_reached"] == 4


# --- names and refusals


def test_a_file_is_known_by_its_stem(pipe: Any, tmp_path: Path) -> None:
    assert hnetkit.load_hypernetwork(pipe, network_file(tmp_path, "old style.pt", widths=WIDTHS)) == "old style"
    assert hnetkit.get_active_hypernetworks(pipe) == ["old style"]


def test_a_name_is_given_once(pipe: Any, ink: Hypernetwork, wash: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, name="style")
    with pytest.raises(UsageError, match="style is loaded already"):
        hnetkit.load_hypernetwork(pipe, wash, name="style")
    with pytest.raises(UsageError, match="twice"):
        hnetkit.set_hypernetworks(pipe, ["style", "style"])
    assert hnetkit.get_active_hypernetworks(pipe) == ["style"]


def test_an_unknown_name_gets_the_near_one(pipe: Any, ink: Hypernetwork) -> None:
    with pytest.raises(NotFound) as refused:
        hnetkit.set_hypernetworks(pipe, "style")
    assert "load_hypernetwork" in str(refused.value.hint)
    hnetkit.load_hypernetwork(pipe, ink, name="style")
    for attempt in (
        lambda: hnetkit.set_hypernetworks(pipe, ["styel"]),
        lambda: hnetkit.unload_hypernetworks(pipe, ["styel"]),
        lambda: hnetkit.applied(pipe, {"styel": 1.0}).__enter__(),
    ):
        with pytest.raises(NotFound) as refused:
            attempt()
        assert refused.value.hint == "did you mean style?"
    assert hnetkit.get_active_hypernetworks(pipe) == ["style"]


def test_strengths_are_as_many_as_names(pipe: Any, ink: Hypernetwork, wash: Hypernetwork) -> None:
    for net in (ink, wash):
        hnetkit.load_hypernetwork(pipe, net)
    with pytest.raises(UsageError):
        hnetkit.set_hypernetworks(pipe, ["ink", "wash"], [0.5])
    hnetkit.set_hypernetworks(pipe, ["ink", "wash"], [None, 0.5])
    assert relative(run(pipe), plain(pipe, [(ink, 1.0), (wash, 0.5)])) <= 1e-5


def strengths_of(pipe: Any) -> dict[str, float]:
    networks = hnetkit.explain(pipe)["networks"]
    return {network["name"]: network["strength"]["self_k"] for network in networks if network["active"]}


FORMS: list[tuple[tuple[Any, ...], dict[str, float]]] = [
    (({"wash": 0.3, "ink": 0.5},), {"wash": 0.3, "ink": 0.5}),
    (({"ink": None},), {"ink": 1.0}),
    ((["ink", "wash"],), {"ink": 1.0, "wash": 1.0}),
    (("ink",), {"ink": 1.0}),
    ((["ink", "wash"], 0.5), {"ink": 0.5, "wash": 0.5}),
    ((("ink", "wash"), hnetkit.Strength(0.5)), {"ink": 0.5, "wash": 0.5}),
    ((["ink", "wash"], np.float32(0.5)), {"ink": 0.5, "wash": 0.5}),
    ((["ink", "wash"], torch.tensor([0.5, 0.25])), {"ink": 0.5, "wash": 0.25}),
    ((["ink", "wash"], torch.tensor(0.5)), {"ink": 0.5, "wash": 0.5}),
    (("ink", 0), {"ink": 0.0}),
]


@pytest.mark.parametrize(("stack", "meant"), FORMS, ids=str)
def test_names_and_strengths_come_in_every_form(
    pipe: Any, ink: Hypernetwork, wash: Hypernetwork, stack: tuple[Any, ...], meant: dict[str, float]
) -> None:
    for net in (ink, wash):
        hnetkit.load_hypernetwork(pipe, net, strength=0.125)
    if len(stack) == 1:
        with hnetkit.applied(pipe, *stack):
            assert hnetkit.get_active_hypernetworks(pipe) == list(meant)
            assert strengths_of(pipe) == pytest.approx(meant)
        assert strengths_of(pipe) == {"ink": 0.125, "wash": 0.125}
    hnetkit.set_hypernetworks(pipe, *stack)
    assert hnetkit.get_active_hypernetworks(pipe) == list(meant)
    assert strengths_of(pipe) == pytest.approx(meant)


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        (("ink", "0.8"), "a strength is a number or an hnetkit.Strength, not 0.8"),
        ((["ink"], ["strong"]), "not strong"),
        (({"ink": [0.5]},), "a strength is a number"),
        (({"ink": 0.3}, 0.5), "a dict has the strengths with the names"),
        ((["ink", 3],), "a stack is of names, and no int"),
        (([("ink", 0.3)],), "a stack is of names, and no tuple"),
        ((["ink"], [0.5, 0.5]), "1 name and 2 strengths"),
    ],
    ids=str,
)
def test_what_is_no_stack_is_said_and_changes_nothing(
    pipe: Any, ink: Hypernetwork, stack: tuple[Any, ...], said: str
) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=0.125)
    with pytest.raises(UsageError, match=re.escape(said)) as refused:
        hnetkit.set_hypernetworks(pipe, *stack)
    assert refused.value.hint
    assert strengths_of(pipe) == {"ink": 0.125}


def test_a_set_is_no_stack_because_it_has_no_order(pipe: Any, ink: Hypernetwork, wash: Hypernetwork) -> None:
    for net in (ink, wash):
        hnetkit.load_hypernetwork(pipe, net, strength=0.125)
    calls = [
        lambda: hnetkit.set_hypernetworks(pipe, {"ink", "wash"}),  # type: ignore[arg-type]
        lambda: hnetkit.set_hypernetworks(pipe, ["ink", "wash"], {0.8, 0.3}),  # type: ignore[arg-type]
        lambda: hnetkit.applied(pipe, frozenset({"ink", "wash"})).__enter__(),  # type: ignore[arg-type]
        lambda: hnetkit.Stack({(ink, 0.8), (wash, 0.3)}),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="a set has no order") as refused:
            call()
        assert refused.value.hint == "give a list"
    assert strengths_of(pipe) == {"ink": 0.125, "wash": 0.125}
    hnetkit.set_hypernetworks(pipe, {"ink"})  # type: ignore[arg-type]  # one thing is in order
    stack = {"wash": 0.5, "ink": 0.25}
    hnetkit.set_hypernetworks(pipe, stack.keys(), stack.values())  # type: ignore[arg-type]
    assert (hnetkit.get_active_hypernetworks(pipe), strengths_of(pipe)) == (list(stack), stack)


def test_a_list_of_files_is_said_to_be_one(pipe: Any) -> None:
    with pytest.raises(UsageError, match="takes one network or its file, and no list") as refused:
        hnetkit.load_hypernetwork(pipe, ["a.pt", "b.pt"])
    assert "for file in files" in str(refused.value.hint)


# --- values that are not finite


def spoiled(folder: Path, value: float, dtype: torch.dtype = torch.float32) -> Path:
    """A file with one value of its own, at width 20."""
    content = a1111_network(widths=WIDTHS, activation="relu", dtype=dtype)
    content[20][1]["linear.2.weight"][3, 3] = value
    return save_pt(content, folder / "spoiled.pt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_file_with_nan_is_refused_by_name_when_it_is_put_on(
    pipe: Any, ink: Hypernetwork, tmp_path: Path, value: float
) -> None:
    hnetkit.load_hypernetwork(pipe, ink)
    before = run(pipe)
    with pytest.raises(DamagedFile, match=r"spoiled\.pt: values that are not finite at width 20") as refused:
        hnetkit.load_hypernetwork(pipe, spoiled(tmp_path, value))
    assert str(refused.value.hint).startswith("hnetkit validate ")
    assert hnetkit.get_active_hypernetworks(pipe) == ["ink"]
    assert torch.equal(run(pipe), before)
    with pytest.raises(DamagedFile):
        hnetkit.Stack([(hnetkit.load(tmp_path / "spoiled.pt"), 1.0)])(torch.randn(2, 20))


def test_a_value_too_large_for_the_unets_dtype_is_said(tmp_path: Path) -> None:
    file = spoiled(tmp_path, 1e5)
    hnetkit.load_hypernetwork(tiny_sd(dtype=torch.bfloat16), file)
    half = tiny_sd(dtype=torch.float16)
    before = surface(half.unet)
    with pytest.raises(IncompatibleNetwork, match=r"values up to 100000 at width 20 do not fit float16"):
        hnetkit.load_hypernetwork(half, file)
    assert surface(half.unet) == before
    pipe = tiny_sd()
    hnetkit.load_hypernetwork(pipe, file)
    fits = run(pipe)
    with pytest.raises(IncompatibleNetwork):
        pipe.to(dtype=torch.float16)
    assert torch.equal(run(pipe.to(dtype=torch.float32)), fits) or relative(run(pipe), fits) < 1e-2


def test_a_file_that_is_no_hypernetwork_leaves_the_unet_alone(pipe: Any, tmp_path: Path) -> None:
    before = surface(pipe.unet)
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html>" * 99)
    with pytest.raises(FileRefused):
        hnetkit.load_hypernetwork(pipe, tmp_path / "page.pt")
    assert surface(pipe.unet) == before


def test_what_has_no_unet_is_an_error() -> None:
    with pytest.raises(UsageError, match="no UNet"):
        hnetkit.get_active_hypernetworks(object())


def test_verbs_without_anything_loaded_do_nothing(pipe: Any) -> None:
    before = surface(pipe.unet)
    hnetkit.unload_hypernetworks(pipe)
    hnetkit.disable_hypernetworks(pipe)
    hnetkit.enable_hypernetworks(pipe)
    hnetkit.set_hypernetworks(pipe, [])
    hnetkit.set_progress(pipe, 0, 1)
    with hnetkit.applied(pipe, {}):
        pass
    assert surface(pipe.unet) == before
    assert hnetkit.explain(pipe)["parts"] == []


# --- the plan, explained


def test_the_plan_is_data(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    hnetkit.load_hypernetwork(pipe, ink, strength=0.5)
    hnetkit.load_hypernetwork(pipe, tint, strength=hnetkit.Strength(0.4, cross_v=0))
    plan = json.loads(json.dumps(hnetkit.explain(pipe)))
    assert plan["layers_reached"] == 14
    parts = {(part["width"], part["side"]): part for part in plan["parts"]}
    assert {key: part["path"] for key, part in parts.items()} == {
        **{(width, side): "eager" for width in (8, 20) for side in "kv"},
        **{(24, side): "text-once" for side in "kv"},
    }
    assert parts[24, "v"]["left_out"] == {"tint": "strength 0, or outside its window of steps"}
    assert parts[24, "k"]["folded"] == ["tint"]
    assert parts[24, "k"]["applications"] == 1
    assert parts[24, "k"]["flops"] == 2 * (2 * 24 * 48) * 2 * 77
    assert parts[8, "k"]["flops"] == 2 * (2 * 8 * 16) * 2 * 64 * 3
    assert parts[20, "k"]["flops"] == 2 * (2 * 20 * 40) * 2 * 16 * 4
    assert plan["launches"] == sum(part["launches"] for part in plan["parts"])


def test_the_plan_prints_as_lines(pipe: Any, ink: Hypernetwork, tint: Hypernetwork) -> None:
    assert str(hnetkit.explain(pipe)) == "no hypernetworks are loaded"
    hnetkit.load_hypernetwork(pipe, ink, strength=0.5)
    hnetkit.load_hypernetwork(pipe, tint, strength=hnetkit.Strength(0.4, self_v=0))
    first, *lines = str(hnetkit.explain(pipe)).splitlines()
    assert first == "ink, tint: 14 layers, eager on cpu"
    assert "   20 self  v  eager      4 layers: ink 0.5" in lines
    assert "   24 cross k  text-once  7 layers: ink 0.5, tint 0.4" in lines
    hnetkit.disable_hypernetworks(pipe)
    assert str(hnetkit.explain(pipe)) == "no hypernetworks are applied; 2 networks loaded"


def test_affine_networks_alone_cost_nothing_at_run_time(pipe: Any, tint: Hypernetwork, shade: Hypernetwork) -> None:
    for net in (tint, shade):
        hnetkit.load_hypernetwork(pipe, net)
    plan = hnetkit.explain(pipe)
    assert {part["path"] for part in plan["parts"]} == {"folded"}
    assert plan["flops"] == plan["launches"] == 0
