"""A captured UNet gives what it gives uncaptured, and is captured once for all calls that do the same.

`StandInGraphs` takes the place of CUDA graphs: it repeats the operations that it recorded, on the memory of then.
"""

from __future__ import annotations

import copy
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from diffusers.models.attention_processor import AttnProcessor
from support.compiled import Graphs
from support.pipelines import draw, tiny_sd, tiny_sdxl, unet_call
from support.stand_in_graphs import StandInGraphs
from support.unet_truth import lora, run, surface
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import hnetkit
from hnetkit import Strength
from hnetkit.errors import AttachError, UsageError
from hnetkit.network import Hypernetwork
from hnetkit.runtime import capture as module
from hnetkit.runtime.capture import MOST_CHANGES, Capture, captured_by, forget_graphs


@pytest.fixture(autouse=True)
def counted_anew() -> Iterator[None]:
    StandInGraphs.begin()
    yield
    StandInGraphs.begin()


@pytest.fixture
def pipe() -> Any:
    """The smallest pipeline that has both kinds of attention."""
    return tiny_sd(least=True)


@pytest.fixture
def twin() -> Any:
    """The same, never captured."""
    return tiny_sd(least=True)


def captured(pipe: Any) -> Capture:
    return captured_by(StandInGraphs, pipe)


def called(pipe: Any, **call: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = pipe.unet(**{**unet_call(pipe), **call}, return_dict=False)[0]
    return output


def require_same(pipe: Any, twin: Any, calls: int = 3, **call: Any) -> None:
    for _ in range(calls):
        assert torch.equal(called(pipe, **call), called(twin, **call))


def both(pipe: Any, twin: Any, verb: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    for one in (pipe, twin):
        verb(one, *arguments, **options)


# --- one graph for each set of shapes


def test_each_set_of_shapes_is_captured_once_and_replayed(pipe: Any, twin: Any) -> None:
    capture = captured(pipe)
    for _ in range(3):
        for batch, tokens in ((2, 7), (1, 7), (2, 9)):
            call = unet_call(twin, batch=batch)
            text = torch.randn(batch, tokens, 24)
            require_same(pipe, twin, 1, sample=call["sample"], encoder_hidden_states=text)
    assert capture.captures == capture.shapes == 3


def test_the_first_call_is_made_as_ever_and_the_second_is_computed_by_the_graph_alone(pipe: Any, twin: Any) -> None:
    captured(pipe)
    for calls in range(1, 5):
        require_same(pipe, twin, 1)
        assert (StandInGraphs.warmed, StandInGraphs.replayed) == (1, calls - 1)
    assert StandInGraphs.recorded == 1


@pytest.mark.parametrize("timestep", [999, 3.5, torch.tensor(20), torch.tensor([1.5, 7.0])])
def test_timesteps_are_no_constants(pipe: Any, twin: Any, timestep: Any) -> None:
    capture = captured(pipe)
    for later in range(4):
        require_same(pipe, twin, 1, timestep=timestep - later)
    with torch.no_grad():
        call = unet_call(pipe)
        sample, text = call["sample"], call["encoder_hidden_states"]
        outputs = [one.unet(sample, timestep, text, return_dict=False)[0] for one in (pipe, pipe, twin)]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[2])
    assert capture.captures == 2, "once by name, once by place"


def test_added_conditions_of_sdxl_are_copied_in() -> None:
    pipe, twin = tiny_sdxl(), tiny_sdxl()
    capture = captured(pipe)
    for seed in range(4):
        require_same(pipe, twin, 1, **unet_call(twin, seed))
    assert capture.captures == 1


def test_residuals_of_a_controlnet_are_copied_in(pipe: Any, twin: Any) -> None:
    capture, condition = captured(pipe), torch.randn(1, 3, 16, 16)
    net = ControlNetModel.from_unet(twin.unet, conditioning_embedding_out_channels=(16, 32)).eval()
    for weights in net.parameters():
        nn.init.normal_(weights, std=0.05)
    pictures = []
    for one in (pipe, twin):
        control = StableDiffusionControlNetPipeline(
            **{name: part for name, part in one.components.items() if name != "image_encoder"},
            controlnet=net,
            requires_safety_checker=False,
        )
        control.set_progress_bar_config(disable=True)
        pictures.append(draw(control, steps=4, image=condition))
    assert torch.equal(*pictures)
    assert capture.captures == 1


@pytest.mark.parametrize("return_dict", [True, False])
def test_what_a_call_gave_stays(pipe: Any, twin: Any, return_dict: bool) -> None:
    captured(pipe)
    outputs = [pipe_call(pipe, seed, return_dict) for seed in range(4)]
    wanted = [pipe_call(twin, seed, return_dict) for seed in range(4)]
    assert [type(output) for output in outputs] == [type(output) for output in wanted]
    assert all(torch.equal(ours[0], theirs[0]) for ours, theirs in zip(outputs, wanted, strict=True))


def pipe_call(pipe: Any, seed: int, return_dict: bool) -> Any:
    with torch.no_grad():
        return pipe.unet(**unet_call(pipe, seed), return_dict=return_dict)


def test_few_graphs_are_kept_and_the_one_that_was_not_called_for_longest_goes_first(
    pipe: Any, twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHAPES", 2)
    capture = captured(pipe)
    texts = [torch.randn(2, tokens, 24) for tokens in (3, 4, 5)]
    for text in (texts[0], texts[1], texts[0], texts[2]):
        require_same(pipe, twin, 2, encoder_hidden_states=text)
    assert len(StandInGraphs.living) == capture.shapes == 2
    assert capture.captures == 3
    require_same(pipe, twin, 2, encoder_hidden_states=texts[0])
    assert capture.captures == 3
    require_same(pipe, twin, 2, encoder_hidden_states=texts[1])
    assert capture.captures == 4


def test_memory_is_told_and_given_back(pipe: Any) -> None:
    capture = captured(pipe)
    run(pipe)
    buffers = capture.memory
    run(pipe)
    assert capture.memory > buffers > 0
    assert "1 graph in" in repr(capture)
    capture.release()
    assert capture.memory == 0
    assert not StandInGraphs.living


def test_what_was_taken_off_the_unet_is_freed_with_the_graphs(pipe: Any, twin: Any) -> None:
    capture = captured(pipe)
    require_same(pipe, twin)
    before = weakref.ref(pipe.unet.conv_in.weight)
    both(pipe, twin, other_weights)
    assert forget_graphs(pipe)
    assert before() is None
    require_same(pipe, twin)
    assert capture.captures == 2


def test_graphs_can_be_dropped_any_number_of_times(pipe: Any, twin: Any) -> None:
    capture = captured(pipe)
    for _ in range(MOST_CHANGES + 2):
        require_same(pipe, twin, 1)
        capture.forget()
    require_same(pipe, twin)
    assert capture.captures == 1


# --- hypernetworks


def test_strengths_and_prompts_of_one_length_need_no_other_graph(
    pipe: Any, twin: Any, ink: Hypernetwork, wash: Hypernetwork
) -> None:
    capture = captured(pipe)
    both(pipe, twin, hnetkit.load_hypernetwork, ink, "ink", 0.8)
    both(pipe, twin, hnetkit.load_hypernetwork, wash, "wash", 0.5)
    for seed, strength in enumerate((0.8, -0.3, 0.1, 1.5)):
        both(pipe, twin, hnetkit.set_hypernetworks, ["ink", "wash"], [strength, Strength(1.0, cross_v=strength)])
        require_same(pipe, twin, 2, encoder_hidden_states=torch.randn(2, 7, 24, generator=seeded(seed)))
    assert capture.captures == 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_window_that_closes_is_captured_once_where_plain_torch_leaves_the_network_out(
    pipe: Any, twin: Any, ink: Hypernetwork, wash: Hypernetwork
) -> None:
    capture = captured(pipe)
    both(pipe, twin, hnetkit.load_hypernetwork, ink, "ink", Strength(0.8, end=0.5))
    both(pipe, twin, hnetkit.load_hypernetwork, wash, "wash", 0.5)
    for _ in range(3):
        for step in range(6):
            both(pipe, twin, hnetkit.set_progress, step, 6)
            require_same(pipe, twin, 1)
    assert capture.captures == 2


def test_a_window_whose_progress_is_not_told_is_refused_as_ever(pipe: Any, ink: Hypernetwork) -> None:
    captured(pipe)
    hnetkit.load_hypernetwork(pipe, ink, "ink", Strength(0.8, end=0.5))
    hnetkit.set_progress(pipe, 0, 4)
    for _ in range(3):
        run(pipe)
    hnetkit.set_progress(pipe, 4, 4)
    for _ in range(2):
        with pytest.raises(AttachError, match="progress was not set"):
            run(pipe)


def test_a_grid_captures_as_often_as_it_has_shapes_of_plan(
    pipe: Any, twin: Any, ink: Hypernetwork, wash: Hypernetwork
) -> None:
    capture = captured(pipe)
    both(pipe, twin, hnetkit.load_hypernetwork, ink, "ink")
    both(pipe, twin, hnetkit.load_hypernetwork, wash, "wash")
    for prompt in range(3):
        text = torch.randn(2, 7, 24, generator=seeded(prompt))
        for names in (["ink"], ["wash"], ["ink", "wash"], ["wash", "ink"], []):
            for strength in (0.5, 1.0):
                both(pipe, twin, hnetkit.set_hypernetworks, names, strength)
                require_same(pipe, twin, 1, encoder_hidden_states=text)
    assert capture.captures == 5


def test_a_network_that_takes_the_name_of_another_is_not_taken_for_it(
    pipe: Any, twin: Any, ink: Hypernetwork, wash: Hypernetwork
) -> None:
    captured(pipe)
    for network in (ink, wash, ink):
        both(pipe, twin, hnetkit.load_hypernetwork, network, "one")
        require_same(pipe, twin)
        both(pipe, twin, hnetkit.unload_hypernetworks)
    require_same(pipe, twin)


# --- what drops the graphs


def attach_lora(pipe: Any) -> None:
    pipe.load_lora_weights(lora(pipe), adapter_name="sketch")


def to_double(pipe: Any) -> None:
    pipe.unet.to(torch.float64)


def other_weights(pipe: Any) -> None:
    pipe.unet.conv_in.weight = nn.Parameter(pipe.unet.conv_in.weight.detach() * 2)


def other_processor(pipe: Any) -> None:
    pipe.unet.set_attn_processor(AttnProcessor())


def hook(pipe: Any) -> None:
    pipe.unet.mid_block.register_forward_hook(lambda module, given, output: output * 1.5)


def slices(pipe: Any) -> None:
    pipe.enable_attention_slicing(1)


def free_u(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)


def tint_folded(pipe: Any) -> None:
    hnetkit.load_hypernetwork(pipe, TINT[0], "tint", 0.7)


TINT: list[Hypernetwork] = []


def other_forward(pipe: Any) -> None:
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *arguments, **options: (forward(*arguments, **options)[0] * 1.5,)


def fused_projections(pipe: Any) -> None:
    pipe.fuse_qkv_projections()


def transposed_weight(pipe: Any) -> None:
    """At the same place, of the same shape."""
    weight = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    weight.data = weight.data.t()


def other_buffer(pipe: Any) -> None:
    pipe.unet.mid_block.register_buffer("own", torch.ones(2))
    pipe.unet.mid_block.register_forward_hook(lambda module, given, output: output * module.own[0] * 1.5)


def other_order_of_hooks(pipe: Any) -> None:
    pipe.unet.mid_block._forward_hooks.move_to_end(min(pipe.unet.mid_block._forward_hooks))


CHANGES = [
    *(attach_lora, other_weights, other_processor, hook, slices, free_u, tint_folded),
    *(other_forward, fused_projections, transposed_weight, other_buffer),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_weights_modules_or_hooks_drops_the_graphs(
    pipe: Any, twin: Any, tint: Hypernetwork, change: Callable[[Any], None]
) -> None:
    TINT[:] = [tint]
    capture = captured(pipe)
    before = run(pipe)
    require_same(pipe, twin)
    both(pipe, twin, change)
    require_same(pipe, twin, 1)
    assert not StandInGraphs.living
    require_same(pipe, twin)
    assert torch.allclose(run(pipe), before, atol=1e-5) is (change in (other_processor, slices, fused_projections))
    assert capture.captures == 2


def test_hooks_in_another_order_drop_the_graphs(pipe: Any, twin: Any) -> None:
    for one in (pipe, twin):
        one.unet.mid_block.register_forward_hook(lambda module, given, output: output * 1.5)
        one.unet.mid_block.register_forward_hook(lambda module, given, output: output + 0.5)
    capture = captured(pipe)
    for change in (lambda one: None, other_order_of_hooks):
        both(pipe, twin, change)
        require_same(pipe, twin)
    assert capture.captures == 2


@pytest.mark.parametrize(
    "held", [1.5, torch.tensor(1.5), [1.5], {"scale": [1.5]}], ids=["number", "tensor", "list", "deep"]
)
def test_an_attribute_that_becomes_another_one_drops_the_graphs(pipe: Any, twin: Any, held: Any) -> None:
    def scaled(module: Any, given: Any, output: Tensor) -> Tensor:
        scale = module.held["scale"] if isinstance(module.held, dict) else module.held
        return output * (scale[0] if isinstance(scale, list) else scale)

    def other(one: Any) -> None:
        held = one.unet.mid_block.held
        if isinstance(held, dict):
            held["scale"][0] = 0.5
        elif isinstance(held, list):
            held[0] = 0.5
        else:
            one.unet.mid_block.held = held * 0.5

    for one in (pipe, twin):
        one.unet.mid_block.held = copy.deepcopy(held)
        one.unet.mid_block.register_forward_hook(scaled)
    capture = captured(pipe)
    for change in (lambda one: None, other):
        both(pipe, twin, change)
        require_same(pipe, twin)
    assert capture.captures == 2


def test_a_setting_of_torch_by_which_it_chooses_kernels_drops_the_graphs(pipe: Any, twin: Any) -> None:
    capture = captured(pipe)
    require_same(pipe, twin)
    with sdpa_kernel(SDPBackend.MATH):
        require_same(pipe, twin)
    assert capture.captures == 2


def test_the_device_replays_while_the_host_compares_and_what_a_changed_unet_gave_is_thrown_away(
    pipe: Any, twin: Any
) -> None:
    captured(pipe)
    require_same(pipe, twin)
    both(pipe, twin, hook)
    require_same(pipe, twin, 1)
    assert (StandInGraphs.warmed, StandInGraphs.replayed) == (2, 3)


def test_what_a_unet_adds_up_in_place_is_added_once_for_each_call(pipe: Any, twin: Any) -> None:
    def count(module: Any, given: Any, output: Tensor) -> Tensor:
        return output * module.calls.add_(1)

    for one in (pipe, twin):
        one.unet.mid_block.register_buffer("calls", torch.zeros(1))
        one.unet.mid_block.register_forward_hook(count)
    capture = captured(pipe)
    for change in (lambda one: None, hook, other_weights):
        both(pipe, twin, change)
        require_same(pipe, twin)
    assert capture.captures == 3
    assert pipe.unet.mid_block.calls == 9


def test_a_graph_whose_weights_are_elsewhere_is_not_replayed(pipe: Any, twin: Any) -> None:
    captured(pipe)
    require_same(pipe, twin)
    for one in (pipe, twin):
        one.unet.conv_in.weight.data = one.unet.conv_in.weight.data * 2
    require_same(pipe, twin, 1)
    assert (StandInGraphs.warmed, StandInGraphs.replayed) == (2, 2)


def test_weights_of_another_dtype_drop_the_graphs(pipe: Any, twin: Any, ink: Hypernetwork) -> None:
    both(pipe, twin, hnetkit.load_hypernetwork, ink)
    captured(pipe)
    for change in (to_double, lambda one: one.unet.float()):
        require_same(pipe, twin)
        both(pipe, twin, change)
    require_same(pipe, twin)


def test_lora_scales_are_no_part_of_a_graph(pipe: Any, twin: Any, ink: Hypernetwork) -> None:
    captured(pipe)
    both(pipe, twin, attach_lora)
    both(pipe, twin, hnetkit.load_hypernetwork, ink)
    for scale in (1.0, 0.3, 1.0):
        both(pipe, twin, lambda one, scale=scale: one.set_adapters(["sketch"], [scale]))
        require_same(pipe, twin)
    both(pipe, twin, lambda one: one.unload_lora_weights())
    require_same(pipe, twin)


def test_weights_that_are_written_in_place_are_read_by_the_same_graph(pipe: Any, twin: Any) -> None:
    capture = captured(pipe)
    for _ in range(3):
        require_same(pipe, twin, 2)
        for one in (pipe, twin):
            one.unet.conv_in.weight.data.mul_(0.5)
    assert capture.captures == 1


def test_folded_maps_with_another_strength_need_no_other_graph(pipe: Any, twin: Any, tint: Hypernetwork) -> None:
    capture = captured(pipe)
    both(pipe, twin, hnetkit.load_hypernetwork, tint, "tint")
    for strength in (1.0, 0.5, -0.2):
        both(pipe, twin, hnetkit.set_hypernetworks, ["tint"], strength)
        require_same(pipe, twin, 2)
    assert capture.captures == 1


# --- what cannot be captured


class Reads(AttnProcessor):
    """Looks at a value."""

    def __call__(self, attn: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        scale = 1.0 if hidden_states.abs().max().item() > 0 else 2.0
        output: Tensor = super().__call__(attn, hidden_states * scale, *arguments, **options)
        return output


class Counts(AttnProcessor):
    """Does something else at each call, which no tensor tells."""

    calls = 0

    def __call__(self, attn: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        Counts.calls += 1
        output: Tensor = super().__call__(attn, hidden_states * Counts.calls, *arguments, **options)
        return output


class Prepares(AttnProcessor):
    """Does something else at its first call, for later ones."""

    is_prepared = False

    def __call__(self, attn: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        first, Prepares.is_prepared = not Prepares.is_prepared, True
        given = hidden_states * 2 / 2 if first else hidden_states
        output: Tensor = super().__call__(attn, given, *arguments, **options)
        return output


def test_a_call_that_prepares_others_is_no_obstacle(pipe: Any, twin: Any) -> None:
    capture = captured(pipe)
    both(pipe, twin, lambda one: one.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(Prepares()))
    Prepares.is_prepared = False
    ours = [called(pipe) for _ in range(5)]
    assert all(torch.equal(one, called(twin)) for one in ours)
    assert capture.obstacle is None
    assert capture.shapes == len(StandInGraphs.living) == 1


class Remembers(AttnProcessor):
    """Changes at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __call__(self, attn: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        self.calls += 1
        output: Tensor = super().__call__(attn, hidden_states * self.calls, *arguments, **options)
        return output


class Random(AttnProcessor):
    def __call__(self, attn: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        noise = torch.rand_like(hidden_states) * 0
        output: Tensor = super().__call__(attn, hidden_states + noise, *arguments, **options)
        return output


@pytest.mark.parametrize(
    ("processor", "reason"),
    [
        (Reads, r"it waits for values on the host \(aten::_local_scalar_dense\)"),
        (Counts, "it does not do the same at every call"),
        (Remembers, "something on it changes at every call"),
        (Random, "it draws random numbers"),
    ],
)
def test_what_no_graph_can_repeat_is_said_once_and_runs_as_before(
    pipe: Any, twin: Any, processor: type[AttnProcessor], reason: str
) -> None:
    capture = captured(pipe)
    both(
        pipe, twin, lambda one: one.unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(processor())
    )
    Counts.calls = 0
    with pytest.warns(RuntimeWarning, match=f"this UNet runs without CUDA graphs: {reason}") as said:
        ours = [called(pipe) for _ in range(12)]
    Counts.calls = 0
    assert all(torch.equal(one, called(twin)) for one in ours)
    assert len(said) == 1
    assert said[0].filename == __file__
    assert not StandInGraphs.living
    assert capture.memory == 0


def test_a_capture_that_fails_is_said_once_and_the_call_is_made_as_before(pipe: Any, twin: Any) -> None:
    for fault, reason in (
        (RuntimeError("CUDA error: unsupported\nmore"), "capturing it fails .CUDA error: unsupported"),
        (torch.cuda.OutOfMemoryError("of 9 GB"), "there is not enough memory"),
    ):
        capture = captured(pipe)
        StandInGraphs.fault = fault
        with pytest.warns(RuntimeWarning, match=reason) as said:
            require_same(pipe, twin, 4)
        assert len(said) == 1
        StandInGraphs.fault = None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            require_same(pipe, twin)
        capture.release()
    assert StandInGraphs.recorded == 0


def test_an_offloaded_unet_runs_as_before_and_is_captured_once_it_is_not(pipe: Any, twin: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    capture = captured(pipe)
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    with pytest.warns(RuntimeWarning, match="parts of it are offloaded") as said:
        require_same(pipe, twin)
    assert len(said) == 1
    accelerate.hooks.remove_hook_from_module(pipe.unet, recurse=True)
    require_same(pipe, twin)
    assert capture.captures == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_without_cuda_a_captured_pipeline_runs_as_before_and_says_so(pipe: Any, twin: Any) -> None:
    hnetkit.capture(pipe)
    with pytest.warns(RuntimeWarning, match="it is on cpu") as said:
        require_same(pipe, twin)
    assert len(said) == 1
    hnetkit.release(pipe)


def test_calls_with_gradients_are_no_part_of_it(pipe: Any) -> None:
    captured(pipe)
    for _ in range(3):
        pipe.unet(**unet_call(pipe)).sample.sum().backward()
    assert pipe.unet.conv_in.weight.grad is not None
    assert StandInGraphs.warmed == 0


def test_autocast_runs_as_before(pipe: Any, twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda: True)
    captured(pipe)
    with pytest.warns(RuntimeWarning, match="under autocast"):
        require_same(pipe, twin)
    assert StandInGraphs.warmed == 0


def test_a_graph_that_the_caller_captures_has_the_call_itself_in_it(
    pipe: Any, twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    captured(pipe)
    require_same(pipe, twin)
    assert StandInGraphs.warmed == 0


def test_an_error_of_the_call_is_that_of_the_call(pipe: Any, twin: Any) -> None:
    captured(pipe)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            called(pipe, encoder_hidden_states=torch.randn(2, 7, 25))
    require_same(pipe, twin)


def test_inference_mode_in_some_calls_is_no_matter(pipe: Any, twin: Any, ink: Hypernetwork) -> None:
    captured(pipe)
    both(pipe, twin, hnetkit.load_hypernetwork, ink)
    wanted = run(twin)
    for mode in (torch.inference_mode, torch.no_grad, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            output = pipe.unet(**unet_call(pipe), return_dict=False)[0]
        assert torch.equal(output, wanted)
        assert output.is_inference() is (mode is torch.inference_mode)


# --- on and off


def test_release_leaves_the_unet_as_it_was(pipe: Any) -> None:
    before = surface(pipe.unet)
    captured(pipe)
    run(pipe)
    run(pipe)
    hnetkit.release(pipe)
    after = surface(pipe.unet)
    assert after == before
    hnetkit.release(pipe)


def test_a_block_ends_a_capture_that_nobody_else_asked_for(pipe: Any) -> None:
    with captured(pipe) as capture:
        run(pipe)
        with captured(pipe) as again:
            assert again is capture
        run(pipe)
        assert capture.captures == 1
    run(pipe)
    assert (StandInGraphs.warmed, StandInGraphs.replayed) == (1, 1)
    captured(pipe)
    with captured(pipe):
        pass
    run(pipe)
    assert StandInGraphs.warmed == 2


def test_what_has_no_unet_is_refused() -> None:
    for verb in (hnetkit.capture, hnetkit.release):
        with pytest.raises(UsageError, match="has no UNet"):
            verb(nn.Linear(1, 1))


def test_a_unet_can_be_captured_by_itself(pipe: Any, twin: Any) -> None:
    captured(pipe.unet)
    require_same(pipe, twin)
    assert StandInGraphs.replayed == 2


def test_copies_are_not_captured(pipe: Any, twin: Any, ink: Hypernetwork) -> None:
    captured(pipe)
    both(pipe, twin, hnetkit.load_hypernetwork, ink, "ink")
    require_same(pipe, twin)
    copied = copy.deepcopy(pipe)
    require_same(copied, twin)
    assert (StandInGraphs.warmed, StandInGraphs.replayed) == (1, 2)
    hnetkit.set_hypernetworks(copied, ["ink"], 0.1)
    require_same(pipe, twin)
    assert (StandInGraphs.warmed, StandInGraphs.replayed) == (1, 5)


def test_a_unet_is_freed_with_its_capture() -> None:
    pipe = tiny_sd(least=True)
    captured(pipe)
    run(pipe)
    run(pipe)
    unet = weakref.ref(pipe.unet)
    del pipe
    assert unet() is None


def test_another_unet_of_the_pipeline_is_captured_by_itself(pipe: Any, twin: Any) -> None:
    first = captured(pipe)
    require_same(pipe, twin)
    pipe.unet = tiny_sd(least=True).unet
    require_same(pipe, twin)
    assert StandInGraphs.replayed == 2, "a capture is of a UNet"
    assert captured(pipe) is not first
    require_same(pipe, twin)
    assert StandInGraphs.replayed == 4


# --- several at once


def test_two_pipelines_on_one_unet_share_its_graphs(pipe: Any, twin: Any) -> None:
    other = type(pipe)(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    capture = captured(pipe)
    assert captured(other) is capture
    for seed in range(2):
        for one in (pipe, other):
            assert torch.equal(draw(one, seed=seed, steps=3), draw(twin, seed=seed, steps=3))
    assert capture.captures == 1


def test_threads_take_turns_on_one_unet(pipe: Any, twin: Any, ink: Hypernetwork) -> None:
    both(pipe, twin, hnetkit.load_hypernetwork, ink)
    wanted = [called(twin, **unet_call(twin, seed)) for seed in range(4)]
    capture, wrong = captured(pipe), []

    def work(seed: int) -> None:
        for _ in range(5):
            if not torch.equal(called(pipe, **unet_call(pipe, seed)), wanted[seed]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert capture.captures == 1


# --- torch.compile


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_compiled_first_is_captured_compiled(graphs: Graphs, ink: Hypernetwork, in_place: bool) -> None:
    pipe, twin = tiny_sd(least=True), tiny_sd(least=True)
    pipe.unet.compile(backend=graphs) if in_place else setattr(pipe, "unet", torch.compile(pipe.unet, backend=graphs))
    capture = captured(pipe)
    require_same(pipe, twin)
    assert graphs.made
    assert capture.captures == 1
    with pytest.warns(UserWarning, match="compiles again"):
        both(pipe, twin, hnetkit.load_hypernetwork, ink)
    require_same(pipe, twin)
    capture.release()
    seen = len(graphs.made)
    torch.compiler.reset()
    require_same(pipe, twin, 1)
    assert len(graphs.made) > seen, "it is still compiled"


def test_what_is_compiled_in_place_after_that_is_captured_compiled(graphs: Graphs) -> None:
    pipe, twin = tiny_sd(least=True), tiny_sd(least=True)
    capture = captured(pipe)
    require_same(pipe, twin)
    pipe.unet.compile(backend=graphs)
    require_same(pipe, twin)
    assert graphs.made
    assert capture.captures == 2
    assert not copy.deepcopy(pipe).unet.compile(backend=graphs), "a copy can be compiled too"
    seen = len(graphs.made)
    torch.compiler.reset()
    capture.release()
    require_same(pipe, twin, 1)
    assert len(graphs.made) > seen, "it is still compiled"


def test_what_is_compiled_around_a_captured_unet_says_that_it_is_not_captured_and_how_it_would_be(
    graphs: Graphs,
) -> None:
    pipe, twin = tiny_sd(least=True), tiny_sd(least=True)
    first = captured(pipe)
    require_same(pipe, twin)
    pipe.unet = torch.compile(pipe.unet, backend=graphs)
    with pytest.warns(
        RuntimeWarning, match="torch.compile was called on it after hnetkit.capture; call hnetkit.release"
    ):
        require_same(pipe, twin)
    assert graphs.made
    assert StandInGraphs.replayed == 2
    capture = captured(pipe)
    assert capture is not first
    assert first.memory == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        require_same(pipe, twin)
    assert StandInGraphs.replayed == 4
    hnetkit.release(pipe)
    require_same(pipe, twin)
    assert StandInGraphs.replayed == 4
