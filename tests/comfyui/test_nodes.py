"""The nodes on the bundled model: what a workflow predicts, against diffusers with hnetkit."""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.comfyui import CPU, Model, model_of
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd, unet_call
from torch import Tensor

import hnetkit
from hnetkit.comfyui import NODE_CLASS_MAPPINGS
from hnetkit.errors import NodeFailed
from hnetkit.runtime.attention_patches import AttentionPatch, AttentionStack

TOLERANCE = 2e-6
Step = tuple[Tensor, Tensor, Tensor]
Expected = Callable[..., Tensor]


def node(id: str, **inputs: Any) -> tuple[Any, ...]:
    """Runs a node as ComfyUI does: a new object, the widgets that are not touched at their defaults."""
    assert NODE_CLASS_MAPPINGS is not None
    kind = NODE_CLASS_MAPPINGS[id]
    outputs: tuple[Any, ...] = getattr(kind(), kind.FUNCTION)(**inputs)  # type: ignore[attr-defined]
    return outputs


def load(model: Model, name: str, strength: float = 1.0, **advanced: Any) -> Model:
    (loaded,) = node("HnetkitHypernetworkLoader", model=model, hypernetwork_name=name, strength=strength, **advanced)
    return loaded  # type: ignore[no-any-return]


@torch.inference_mode()
def predict(model: Model, step: Step, **options: Any) -> Tensor:
    model.load()
    return model(*step, **options)


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max())


def test_a_model_without_networks_is_the_one_of_diffusers(model: Model, step: Step, expected: Expected) -> None:
    assert error(predict(model, step), expected()) <= TOLERANCE


def test_one_network_is_applied_as_hnetkit_does_in_diffusers(
    model: Model, folder: Path, step: Step, expected: Expected
) -> None:
    got = predict(load(model, "outline.pt", 0.8), step)
    assert error(got, expected((folder / "outline.pt", 0.8))) <= TOLERANCE
    assert error(got, expected()) > 1e-3


def test_three_nodes_in_a_row_are_one_stack_in_their_order(
    model: Model, folder: Path, step: Step, expected: Expected
) -> None:
    loaded = load(load(load(model, "dots.pt", 0.7), "paper.pt", 0.5), "outline.pt", -0.4)
    assert len(loaded.patches()) == 2
    networks = [(folder / "dots.pt", 0.7), (folder / "paper.pt", 0.5), (folder / "outline.pt", -0.4)]
    got = predict(loaded, step)
    assert error(got, expected(*networks)) <= TOLERANCE
    assert error(got, expected(*reversed(networks))) > 1e-4


def test_a_node_changes_the_model_of_its_own_branch_alone(model: Model, step: Step, expected: Expected) -> None:
    load(load(model, "dots.pt"), "outline.pt")
    assert error(predict(model, step), expected()) <= TOLERANCE


def test_strength_zero_gives_the_bits_of_the_model_without_networks(model: Model, step: Step) -> None:
    assert torch.equal(predict(load(model, "dots.pt", 0.0), step), predict(model, step))


def test_the_stack_node_applies_its_slots_in_order_and_skips_empty_ones(
    model: Model, folder: Path, step: Step, expected: Expected
) -> None:
    slots = {"hypernetwork_1": "dots.pt", "strength_1": 0.6, "hypernetwork_2": "None", "strength_2": 1.0}
    slots |= {"hypernetwork_4": "outline.pt", "strength_4": 0.9}
    (stacked,) = node("HnetkitHypernetworkStack", model=model, **slots)
    networks = [(folder / "dots.pt", 0.6), (folder / "outline.pt", 0.9)]
    assert error(predict(stacked, step), expected(*networks)) <= TOLERANCE


def test_tags_of_a_prompt_are_applied_and_taken_out_of_it(
    model: Model, folder: Path, step: Step, expected: Expected
) -> None:
    text = "a castle <hypernet:dots:0.6>, <lora:other:1> blue <hypernet:outline:0.9:end=1>"
    tagged, rest = node("HnetkitHypernetworksFromTags", model=model, text=text)
    assert rest == "a castle , <lora:other:1> blue "
    networks = [(folder / "dots.pt", 0.6), (folder / "outline.pt", 0.9)]
    assert error(predict(tagged, step), expected(*networks)) <= TOLERANCE


def test_a_prompt_without_tags_leaves_the_model_as_it_is(model: Model) -> None:
    assert node("HnetkitHypernetworksFromTags", model=model, text="a castle") == (model, "a castle")


@pytest.mark.parametrize("tag", ["<Hypernet:dots:0.6>", "<HYPERNET:dots>", "<hypernetwork:dots:1>", "<hypernets:dots>"])
def test_a_tag_that_is_almost_one_of_a_hypernetwork_is_no_word_of_the_prompt(model: Model, tag: str) -> None:
    with pytest.raises(NodeFailed, match=f"{tag}: no known kind of tag. Write <hypernet:name:0.8>"):
        node("HnetkitHypernetworksFromTags", model=model, text=f"a castle {tag} <wildcard:hypernet>")


def test_what_a_terminal_obeys_in_a_prompt_does_not_reach_it(model: Model, logged: list[logging.LogRecord]) -> None:
    node("HnetkitHypernetworksFromTags", model=model, text="a castle <lora:x:\x1b[2J>")
    messages = "".join(record.getMessage() for record in logged)
    assert "is not a number" in messages
    assert "\x1b" not in messages


def test_shares_of_k_and_v_and_of_the_kinds_of_attention_multiply_the_strength(
    model: Model, folder: Path, step: Step, expected: Expected
) -> None:
    loaded = load(model, "dots.pt", 0.8, k=0.5, v=2.0, self_attention=0.25, cross_attention=1.5)
    strength = hnetkit.Strength(self_k=0.1, self_v=0.4, cross_k=0.6, cross_v=2.4)
    assert error(predict(loaded, step), expected((folder / "dots.pt", strength))) <= TOLERANCE


@pytest.mark.parametrize(
    ("blocks", "factors"),
    [
        ("down", {"": 0.0, "down_blocks": 1.0}),
        ("mid, up_blocks.1", {"": 0.0, "mid_block": 1.0, "up_blocks.1": 1.0}),
        ("up_blocks.0=0.5, down=0", {"up_blocks.0": 0.5, "down_blocks": 0.0}),
    ],
)
def test_blocks_are_those_of_diffusers(
    model: Model, folder: Path, step: Step, expected: Expected, blocks: str, factors: dict[str, float]
) -> None:
    strength = hnetkit.Strength(0.9, blocks=factors)
    got = predict(load(model, "dots.pt", 0.9, blocks=blocks), step)
    assert error(got, expected((folder / "dots.pt", strength))) <= TOLERANCE
    assert error(got, expected((folder / "dots.pt", 0.9))) > 1e-4


@pytest.mark.parametrize("name", ["dots.pt", "paper.pt"])
@pytest.mark.parametrize("number", range(4))
def test_a_window_takes_the_steps_whose_middle_is_in_it(model: Model, step: Step, number: int, name: str) -> None:
    sigmas = torch.tensor([14.6, 6.2, 2.1, 0.7, 0.0])
    latents, _, text = step
    loaded = load(load(model, "outline.pt", 0.5), name, 0.9, start=0.25, end=0.75)
    loaded.load()
    with torch.inference_mode():
        options = {"sample_sigmas": sigmas}
        got = loaded(latents, sigmas[number].expand(2), text, **options)
        between = loaded(latents, (sigmas[number : number + 2].sum() / 2).expand(2), text, **options)
    plain, windowed = load(model, "outline.pt", 0.5), load(load(model, "outline.pt", 0.5), name, 0.9)
    same = windowed if number in (1, 2) else plain
    for output, sigma in ((got, sigmas[number]), (between, sigmas[number : number + 2].sum() / 2)):
        assert error(output, predict(same, (latents, sigma.expand(2), text))) <= TOLERANCE


@pytest.mark.parametrize("number", range(4))
def test_a_window_counts_the_steps_from_a_picture_to_noise_too(model: Model, step: Step, number: int) -> None:
    sigmas = torch.tensor([0.0, 0.7, 2.1, 6.2, 14.6])  # as FlipSigmas gives them
    latents, _, text = step
    windowed = load(model, "dots.pt", 0.9, start=0.25)
    windowed.load()
    with torch.inference_mode():
        got = windowed(latents, sigmas[number].expand(2), text, sample_sigmas=sigmas)
    same = load(model, "dots.pt", 0.9) if number else model
    assert error(got, predict(same, (latents, sigmas[number].expand(2), text))) <= TOLERANCE


def test_a_window_without_a_sampler_that_tells_its_steps_is_an_error(model: Model, step: Step) -> None:
    loaded = load(model, "dots.pt", end=0.5)
    with pytest.raises(hnetkit.errors.AttachError, match="dots is limited to a part of the steps"):
        predict(loaded, step)


def scaling(factor: float) -> Callable[..., Any]:
    """Returns another program's patch: it scales the values alone, so that K's and V's contexts differ."""
    return lambda q, k, v, options: (q, k, v * factor)


def test_a_patch_of_another_program_keeps_its_place(model: Model, folder: Path, step: Step) -> None:
    first = load(model, "outline.pt", 0.6)
    between = first.clone()
    between.set_model_attn1_patch(scaling(1.2))
    between.set_model_attn2_patch(scaling(1.2))
    last = load(between, "dots.pt", 0.8)
    assert len(last.patches()) == 6
    outline, dots = (hnetkit.load(folder / name) for name in ("outline.pt", "dots.pt"))

    def patch(q: Tensor, k: Tensor, v: Tensor, options: Any) -> tuple[Tensor, Tensor, Tensor]:
        k, v = hnetkit.Stack([(outline, 0.6)])(k)
        stack = hnetkit.Stack([(dots, 0.8)])
        return q, stack(k)[0], stack(v * 1.2)[1]

    by_hand = model.clone()
    by_hand.set_model_attn1_patch(patch)
    by_hand.set_model_attn2_patch(patch)
    assert error(predict(last, step), predict(by_hand, step)) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_node_between_that_changes_the_dtype_changes_the_numbers_alone(
    model: Model, folder: Path, step: Step, expected: Expected, dtype: torch.dtype
) -> None:
    between = load(model, "dots.pt", 0.7).clone()
    between.get_model_object = lambda name: dtype  # type: ignore[method-assign]
    last = load(between, "outline.pt", 0.5)
    networks = [(folder / "dots.pt", 0.7), (folder / "outline.pt", 0.5)]
    assert error(predict(last, step), expected(*networks)) <= 3e-2
    assert {own.dtype for patch in last.patches() for beside in patch.models() for own in beside.model.buffers()} == {
        dtype
    }


def test_where_k_and_v_differ_each_costs_one_side(model: Model, step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    from hnetkit.kernels import eager, executor

    calls: list[int] = []
    monkeypatch.setitem(
        executor._PLAIN, "eager", lambda x, mlps, strengths: calls.append(len(mlps)) or eager.apply(x, mlps, strengths)
    )
    alone = load(model, "dots.pt", 0.8)
    predict(alone, step)
    together, calls[:] = list(calls), []
    differing = model.clone()
    differing.set_model_attn1_patch(scaling(1.1))
    differing.set_model_attn2_patch(scaling(1.1))
    predict(load(differing, "dots.pt", 0.8), step)
    layers = len(find_layers(model))
    assert len(together) == 2 * (layers // 2 + 1)  # K and V: in each layer of self-attention, and once for the text
    assert len(calls) == 2 * layers  # the other patch makes another text for each layer


def find_layers(model: Model) -> Any:
    from hnetkit.runtime.layers import find_ldm_layers

    return find_ldm_layers(model.model.diffusion_model)


def test_the_text_is_computed_again_for_another_call_and_another_text(
    model: Model, step: Step, expected: Expected, folder: Path
) -> None:
    loaded = load(model, "dots.pt", 0.8)
    latents, timesteps, text = step
    predict(loaded, step)
    text = text.clone()
    got = predict(loaded, (latents, timesteps, text))
    text.mul_(1.5)  # the same object with other values, as a cache of prompts may have
    again = predict(loaded, (latents, timesteps.clone(), text))
    plain = predict(load(model.clone(), "dots.pt", 0.8), (latents, timesteps.clone(), text.clone()))
    assert torch.equal(again, plain)
    assert not torch.equal(got, again)


def test_copies_of_a_model_share_the_weights(model: Model) -> None:
    loaded = load(model, "dots.pt")
    stacks = {id(patch.stack) for twin in [loaded.clone() for _ in range(10)] for patch in twin.patches()}
    assert stacks == {id(loaded.patches()[0].stack)}
    assert copy.deepcopy(loaded.patches()[0]) is loaded.patches()[0]


def test_another_strength_reads_and_packs_nothing_again(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from hnetkit.runtime import buffers

    load(load(model, "dots.pt", 1.0), "outline.pt", 1.0)
    for name in ("pack_pair", "read_mlp"):
        monkeypatch.setattr(buffers, name, lambda *a, **k: pytest.fail("packed again"))
    load(load(model, "dots.pt", 0.5), "outline.pt", 0.25)


def test_comfyui_counts_the_weights_that_are_on_the_device_while_it_samples(model: Model, folder: Path) -> None:
    loaded = load(load(model, "dots.pt"), "paper.pt", 0.5)
    beside = loaded.load()
    dots = hnetkit.load(folder / "dots.pt")
    parameters = sum(tensor.numel for _, _, _, tensor in dots.each_tensor())
    composed = sum(2 * (width * width + width) for width in hnetkit.load(folder / "paper.pt").widths)
    assert sum(own.size for own in beside) == 4 * (parameters + composed)
    assert all(sum(buffer.nbytes for buffer in own.model.buffers()) == own.size for own in beside)


def test_two_branches_count_a_network_once(model: Model) -> None:
    one, other = load(model, "dots.pt", 0.5), load(model, "dots.pt", 1.0)
    assert one.load() == other.load()


def test_weights_that_wait_elsewhere_give_the_same_numbers(model: Model, step: Step) -> None:
    loaded = load(model, "dots.pt", 0.7)
    before = predict(loaded, step)
    for patch in loaded.patches():
        for own in patch.models():
            own.model.to(torch.float64).to(torch.float32)  # each tensor is another one, as after a move
    assert torch.equal(predict(loaded, step), before)


def test_leaving_the_device_forgets_what_was_made_there(model: Model, step: Step) -> None:
    loaded = load(model, "dots.pt", 0.7)
    predict(loaded, step)
    (stack,) = {patch.stack for patch in loaded.patches()}
    made = [group for groups in stack._plans.values() for group in groups.values()]
    assert all(group._ready for group in made)
    assert stack._text
    for patch in loaded.patches():
        patch.to(torch.device("meta"))
    assert not any(group._ready for group in made)
    assert not stack._text


def test_a_patch_runs_in_several_threads_at_once(model: Model, step: Step) -> None:
    from concurrent.futures import ThreadPoolExecutor

    loaded = load(load(model, "dots.pt", 0.7), "paper.pt", 0.5)
    generator = torch.Generator().manual_seed(1)
    contexts = [torch.randn(2, 9, 80, generator=generator) for _ in range(40)]
    patch = next(own for own in loaded.patches() if own.kind == "cross")
    layer = next(place for place in find_layers(model) if place.kind == "cross")
    options = {"block": (layer.block, layer.number), "block_index": layer.transformer}

    def run(context: Tensor) -> Tensor:
        with torch.inference_mode():
            _q, k, v = patch(context, context, context, {**options, "sigmas": object()})
        return k + v

    alone = [run(context) for context in contexts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(run, contexts * 5))
    assert all(torch.equal(got, own) for got, own in zip(together, alone * 5, strict=True))


@pytest.mark.parametrize(
    ("id", "inputs"),
    [
        ("HnetkitHypernetworkLoader", {"hypernetwork_name": "dots.pt"}),
        ("HnetkitHypernetworkStack", {"hypernetwork_1": "None", "hypernetwork_2": "dots.pt", "strength_2": 1.0}),
        ("HnetkitHypernetworksFromTags", {"text": "a <hypernet:dots:0.5> castle"}),
    ],
)
def test_a_node_runs_again_once_its_file_was_replaced(folder: Path, id: str, inputs: dict[str, Any]) -> None:
    kind: Any = (NODE_CLASS_MAPPINGS or {})[id]
    before = kind.IS_CHANGED(model=None, **inputs)
    assert before == kind.IS_CHANGED(model=None, **inputs)
    shutil.copy(folder / "outline.pt", folder / "dots.pt")
    replaced = kind.IS_CHANGED(model=None, **inputs)
    (folder / "dots.pt").unlink()
    assert len({str(state) for state in (before, replaced, kind.IS_CHANGED(model=None, **inputs))}) == 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"hypernetwork_name": "gone.pt"}, "gone.pt: the file is gone. Choose another, or put it back and press R"),
        ({"hypernetwork_name": "dots.pt", "blocks": "up_blocks.7"}, "no block up_blocks.7 .* Did you mean up_blocks"),
        ({"hypernetwork_name": "dots.pt", "blocks": "up=fast"}, "blocks: up=fast is no block with a number"),
        ({"hypernetwork_name": "dots.pt", "start": 0.8, "end": 0.2}, "starts at 0.8 cannot end at 0.2"),
    ],
)
def test_what_cannot_be_done_is_a_sentence_at_the_node(model: Model, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(NodeFailed, match=message):
        node("HnetkitHypernetworkLoader", **{"model": model, "strength": 1.0, **inputs})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda folder: network_file(folder, "other.pt", widths=(320, 640, 1024)),
            "other reaches no layer: its widths are 320, 640, 1024, the UNet's are 64, 80, 96. "
            "Use the model that it was trained for",
        ),
        (
            lambda folder: network_file(folder, "other.pt", widths=(64, 96, 1024)),
            "other is made for SD 2; this UNet's text context is 80 wide. Use the model that it was trained for",
        ),
        (
            lambda folder: network_file(folder, "other.pt", widths=(64, 80), scale=float("inf")),
            "{file}: values that are not finite at width 64: whatever it is applied to becomes NaN. "
            "Run hnetkit validate {file}; get the file again, or an earlier save of it",
        ),
    ],
)
def test_a_network_that_does_not_fit_is_said_with_a_step_that_helps(
    model: Model, folder: Path, make: Callable[[Path], Path], message: str
) -> None:
    file = make(folder)
    with pytest.raises(NodeFailed) as refused:
        load(model, "other.pt")
    assert str(refused.value) == message.format(file=file)


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        (
            {f"lora_unet_down_blocks_0_attn1_to_k.lora_{part}.weight": torch.ones(4, 4) for part in ("up", "down")},
            "a LoRA",
        ),
        ({"emb_params": torch.ones(2, 768)}, "a textual inversion embedding"),
    ],
)
def test_another_kind_of_file_among_the_hypernetworks_is_named(
    model: Model, folder: Path, tensors: dict[str, Tensor], kind: str
) -> None:
    save_file(tensors, folder / "other.safetensors")
    with pytest.raises(NodeFailed, match=f"other.safetensors: {kind}, not a hypernetwork"):
        load(model, "other.safetensors")


def test_a_model_with_other_attention_is_named(folder: Path) -> None:
    transformer = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(8, 8)])})
    inner = SimpleNamespace(diffusion_model=transformer, manual_cast_dtype=torch.float32)
    with pytest.raises(NodeFailed, match="ModuleDict has no attention layers that hypernetworks know"):
        load(Model(inner, CPU, CPU), "dots.pt")


def test_a_model_that_is_compiled_already_gets_networks(model: Model, step: Step) -> None:
    expected = predict(load(model, "dots.pt", 0.7), step)
    model.model.diffusion_model = torch.compile(model.model.diffusion_model, backend="eager")
    loaded = load(model, "dots.pt", 0.7)
    model.model.diffusion_model = model.model.diffusion_model._orig_mod  # the small ComfyUI calls it with its options
    assert torch.equal(predict(loaded, step), expected)


def test_a_model_of_videos_is_refused(model: Model) -> None:
    model.model.diffusion_model.time_stack = torch.nn.Linear(8, 8)
    with pytest.raises(NodeFailed, match="UNet draws videos: no hypernetwork was made for it"):
        load(model, "dots.pt")


def test_a_name_in_a_tag_that_nobody_has_is_an_error_that_names_the_nearest(model: Model) -> None:
    with pytest.raises(NodeFailed, match=r"outlines: no such hypernetwork\. Did you mean outline\?"):
        node("HnetkitHypernetworksFromTags", model=model, text="<hypernet:outlines:1>")


def test_two_forms_of_one_network_are_no_two_networks(
    model: Model, folder: Path, step: Step, expected: Expected
) -> None:
    hnetkit.save(hnetkit.load(folder / "dots.pt"), folder / "dots.safetensors")
    tagged, _ = node("HnetkitHypernetworksFromTags", model=model, text="<hypernet:dots:0.6>")
    assert error(predict(tagged, step), expected((folder / "dots.pt", 0.6))) <= TOLERANCE
    hnetkit.save(hnetkit.load(folder / "outline.pt"), folder / "paper.safetensors")
    with pytest.raises(NodeFailed, match=r"paper is the name of several files: paper\.pt, paper\.safetensors"):
        node("HnetkitHypernetworksFromTags", model=model, text="<hypernet:paper:1>")


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("HnetkitHypernetworkLoader", {"hypernetwork_name": None, "strength": 1.0}),
        ("HnetkitHypernetworkStack", {"hypernetwork_1": "paper.pt", "hypernetwork_2": None}),
        ("HnetkitHypernetworksFromTags", {"text": None}),
    ],
)
def test_a_file_that_a_linked_input_may_name_is_read_again_when_it_is_replaced(
    folder: Path, kind: str, inputs: dict[str, Any]
) -> None:
    def state() -> Any:
        return NODE_CLASS_MAPPINGS[kind].IS_CHANGED(model=None, **inputs)  # type: ignore[index,attr-defined]

    before = state()
    assert state() == before
    shutil.copy(folder / "outline.pt", folder / "dots.pt")
    assert state() != before


def test_a_tag_that_says_nothing_is_an_error(model: Model) -> None:
    with pytest.raises(NodeFailed, match="'strong' is not a number"):
        node("HnetkitHypernetworksFromTags", model=model, text="<hypernet:outline:strong>")


def test_the_patch_is_what_comfyui_calls(model: Model) -> None:
    patches = load(model, "dots.pt").patches()
    assert [patch.kind for patch in patches] == ["self", "cross"]
    assert all(isinstance(patch, AttentionPatch) and isinstance(patch.stack, AttentionStack) for patch in patches)
    assert all(own.load_device == CPU for patch in patches for own in patch.models())


def test_a_compiled_model_gives_the_same_and_is_compiled_once_for_each_window(folder: Path) -> None:
    from torch._dynamo.utils import counters

    pipe = tiny_sd(least=True)
    for seed, name in enumerate(("ink.pt", "wash.pt")):
        network_file(folder, name, widths=(*SELF_WIDTHS, SD_CROSS_WIDTH), seed=seed)
    sigmas = torch.tensor([14.6, 6.2, 2.1, 0.7, 0.0])
    loaded = load(load(model_of(pipe.unet), "ink.pt", 0.7), "wash.pt", 0.5, end=0.5)
    loaded.load()
    call = unet_call(pipe)
    compiled = torch.compile(loaded.model.diffusion_model, backend="eager")

    def run(predict: Any, number: int) -> Tensor:
        sigma = sigmas[number].expand(2)
        options = {**loaded.model_options["transformer_options"], "sigmas": sigma, "sample_sigmas": sigmas}
        output: Tensor = predict(call["sample"], sigma, call["encoder_hidden_states"], options)
        return output

    with torch.inference_mode():
        expected = [run(loaded.model.diffusion_model, number) for number in range(4)]
        graphs = []
        for _ in range(2):
            assert all(torch.equal(run(compiled, number), expected[number]) for number in range(4))
            graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] == graphs[1]
