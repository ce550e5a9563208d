"""`Stack` against the outputs that the original implementation recorded, and against torch's own modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import plain_a1111
from support.networks import ACTIVATIONS, network_file
from support.stacks import relative
from torch import Tensor

import hnetkit
from hnetkit.errors import KernelUnavailable, UsageError
from hnetkit.kernels import executor
from hnetkit.kernels.gpu import fused, linear
from hnetkit.network import Hypernetwork

STACKS = [f"stack{number}" for number in range(7)]
FP32 = 1e-5


@pytest.fixture(params=["eager", "grouped"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each path in turn, and the proof that it was the one that ran."""
    path = str(request.param)
    monkeypatch.setenv("HNETKIT_KERNEL", path)
    ran = watched(monkeypatch)
    yield path
    assert set(ran) == {path}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list that tells what ran: plain torch, or which kernels."""
    ran: list[str] = []
    for module, name, path in (
        (executor.eager, "apply", "eager"),
        (linear, "run", "grouped"),
        (fused, "run", "fused"),
    ):
        run = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, run=run, path=path, **k: ran.append(path) or run(*a, **k))
    monkeypatch.setitem(executor._PLAIN, "eager", executor.eager.apply)
    return ran


def recorded_strengths(expected: dict[str, Tensor]) -> dict[tuple[str, str], list[str]]:
    """The strengths that were recorded for each file and width."""
    found: dict[tuple[str, str], list[str]] = {}
    for key in expected:
        name, *rest = key.split("/")
        if not name.startswith("stack") and rest[-1].startswith("k@"):
            found.setdefault((name, rest[0]), []).append(rest[1].removeprefix("k@"))
    return found


def require_recorded(golden: dict[str, Any], name: str, width: str, strength: str) -> None:
    expected = golden["expected"]
    k, v = hnetkit.Stack([(golden["networks"][name], float(strength))])(expected[f"{name}/{width}/x"])
    assert relative(k, expected[f"{name}/{width}/k@{strength}"]) <= FP32, (name, width, strength)
    assert relative(v, expected[f"{name}/{width}/v@{strength}"]) <= FP32, (name, width, strength)


@pytest.mark.parametrize("kernel", ["eager", pytest.param("grouped", marks=pytest.mark.long)], indirect=True)
def test_every_recorded_strength_of_every_file(golden: dict[str, Any], kernel: str) -> None:
    recorded = recorded_strengths(golden["expected"])
    assert sum(map(len, recorded.values())) > 50
    for (name, width), strengths in recorded.items():
        for strength in strengths:
            require_recorded(golden, name, width, strength)


@pytest.mark.parametrize("kernel", ["grouped"], indirect=True)
def test_every_file_at_a_recorded_strength_in_the_interpreter(golden: dict[str, Any], kernel: str) -> None:
    """Each width of each file once, each strength with a quarter of them: the interpreter is slow."""
    used = set()
    for number, ((name, width), strengths) in enumerate(recorded_strengths(golden["expected"]).items()):
        used.add(strengths[number % len(strengths)])
        require_recorded(golden, name, width, strengths[number % len(strengths)])
    assert len(used) > 2


def test_recorded_networks_of_width_320_go_through_the_fused_kernel(
    golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for 16 bits: what was recorded in fp32 is met as closely as plain fp16 meets it."""
    monkeypatch.setenv("HNETKIT_KERNEL", "fused")
    ran, names = watched(monkeypatch), [name for name in golden["networks"] if name.startswith("w320")]
    assert len(names) == 2
    for name in names:
        x = golden["expected"][f"{name}/320/x"].half()
        plain = plain_a1111.apply(x, [(plain_a1111.modules_of(golden["networks"][name], torch.float16), 1.0)])
        for side, got, usual in zip("kv", hnetkit.Stack([(golden["networks"][name], 1.0)])(x), plain, strict=True):
            truth = golden["expected"][f"{name}/320/{side}@1.0"]
            assert relative(got, truth) <= 1.5e-3
            assert relative(got, truth) <= 1.1 * relative(usual, truth)
    assert ran == ["fused", "fused"]


@pytest.mark.parametrize("stack", STACKS)
def test_every_recorded_stack(golden: dict[str, Any], stack: str, kernel: str) -> None:
    case = next(case for case in golden["stacks"] if case["id"] == stack)
    items = zip((golden["networks"][name] for name in case["names"]), case["multipliers"], strict=True)
    k, v = hnetkit.Stack(items)(golden["expected"][f"{stack}/x"])
    assert relative(k, golden["expected"][f"{stack}/k"]) <= FP32
    assert relative(v, golden["expected"][f"{stack}/v"]) <= FP32


@pytest.mark.parametrize(
    ("name", "dtype", "limit"), [("sigmoid_fp16", torch.float16, 2e-3), ("silu_bf16", torch.bfloat16, 5e-3)]
)
def test_a_half_precision_file_applied_in_its_own_precision(
    golden: dict[str, Any], name: str, dtype: torch.dtype, limit: float
) -> None:
    """bf16 has 8 bits: the recorded x rounded to it is 1.7e-3 off before anything is computed."""
    for width in golden["networks"][name].widths:
        x = golden["expected"][f"{name}/{width}/x"]
        contexts = hnetkit.Stack([(golden["networks"][name], 1.0)])(x.to(dtype))
        plain = plain_a1111.apply(x.to(dtype), [(plain_a1111.modules_of(golden["networks"][name], dtype), 1.0)])
        for side, got, usual in zip("kv", contexts, plain, strict=True):
            truth = golden["expected"][f"{name}/{width}/{side}@1.0"]
            assert got.dtype == dtype
            assert relative(got, truth) <= limit
            assert relative(got, truth) <= 1.1 * relative(usual, truth)


def network(folder: Path, name: str = "net.pt", **options: Any) -> Hypernetwork:
    return hnetkit.load(network_file(folder, name, **options))


def context(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_stack_is_what_torch_modules_compute(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("stack")
    items = []
    for seed in range(data.draw(st.integers(1, 4))):
        made = network(
            folder,
            f"{seed}.pt",
            widths=data.draw(st.sampled_from([(8,), (12,), (8, 12)])),
            structure=(1, *data.draw(st.lists(st.sampled_from([0.5, 1, 1.7, 3]), max_size=2)), 1),
            activation=data.draw(st.sampled_from([None, "linear", *ACTIVATIONS])),
            layer_norm=data.draw(st.booleans()),
            activate_output=data.draw(st.booleans()),
            dtype=data.draw(st.sampled_from([torch.float32, torch.float16])),
            seed=seed,
            scale=0.3,
        )
        items.append((made, data.draw(st.floats(-2, 2, allow_nan=False).map(lambda s: round(s, 3)))))
    x = context(2, 5, 8)
    truth = plain_a1111.apply(x, [(plain_a1111.modules_of(made), strength) for made, strength in items])
    for got, want in zip(hnetkit.Stack(items)(x), truth, strict=True):
        assert relative(got, want) <= 1e-5


def test_a_width_that_no_network_has_is_left_alone(tmp_path: Path) -> None:
    x = context(2, 10)
    k, v = hnetkit.Stack([(network(tmp_path), 1.0)])(x)
    assert k is x
    assert v is x


def test_strength_zero_is_bit_identical_to_none(tmp_path: Path) -> None:
    x = torch.cat([context(3, 8), torch.tensor([[-0.0, torch.inf, torch.nan] + [0.0] * 5])])
    k, v = hnetkit.Stack([(network(tmp_path), 0.0)])(x)
    assert torch.equal(k.view(torch.int32), x.view(torch.int32))
    assert torch.equal(v.view(torch.int32), x.view(torch.int32))


def test_an_empty_stack_changes_nothing() -> None:
    x = context(3, 8)
    assert hnetkit.Stack([])(x) == (x, x)


def test_k_and_v_have_weights_of_their_own(tmp_path: Path) -> None:
    net, x = network(tmp_path), context(3, 8)
    modules = plain_a1111.modules_of(net)[8]
    k, v = hnetkit.Stack([(net, 1.0)])(x)
    assert relative(k, x + modules[0](x)) <= FP32
    assert relative(v, x + modules[1](x)) <= FP32
    assert relative(k, v) > 1e-2


def test_each_number_of_a_strength_goes_to_its_place(tmp_path: Path) -> None:
    net, x = network(tmp_path), context(3, 8)
    key, value = plain_a1111.modules_of(net)[8]
    strength = hnetkit.Strength(9.0, self_k=0.1, self_v=0.2, cross_k=0.3, cross_v=0.4)
    for kind, (s_k, s_v) in {"self": (0.1, 0.2), "cross": (0.3, 0.4)}.items():
        k, v = hnetkit.Stack([(net, strength)])(x, kind=kind)
        assert relative(k, x + s_k * key(x)) <= FP32
        assert relative(v, x + s_v * value(x)) <= FP32


@pytest.mark.parametrize(("width", "kind"), [(320, "self"), (768, "cross"), (1024, "cross"), (2048, "cross")])
def test_the_text_widths_count_as_cross_attention(tmp_path: Path, width: int, kind: str) -> None:
    net, x = network(tmp_path, widths=(width,), structure=(1, 0.1, 1)), context(1, width)
    stack = hnetkit.Stack([(net, hnetkit.Strength(self_k=0.5, self_v=0.5, cross_k=2, cross_v=2))])
    assert torch.equal(stack(x)[0], stack(x, kind=kind)[0])


def test_a_window_opens_and_closes(tmp_path: Path) -> None:
    net, x = network(tmp_path), context(3, 8)
    stack = hnetkit.Stack([(net, hnetkit.Strength(1.0, start=0.25, end=0.5))])
    inside = hnetkit.Stack([(net, 1.0)])(x)[0]
    for progress, is_open in [(0.0, False), (0.25, True), (0.4, True), (0.5, True), (0.51, False), (None, True)]:
        k, _ = stack(x, progress=progress)
        assert torch.equal(k, inside if is_open else x), progress


def test_windows_that_meet_share_the_steps_out(tmp_path: Path) -> None:
    first, second = hnetkit.Strength(end=0.6), hnetkit.Strength(start=0.6)
    steps = [((step + 0.5) / 20, step) for step in range(20)]
    assert [step for progress, step in steps if first.applies_at(progress)] == list(range(12))
    assert [step for progress, step in steps if second.applies_at(progress)] == list(range(12, 20))


def test_any_leading_shape_and_dtype(tmp_path: Path) -> None:
    net = network(tmp_path)
    for shape in [(8,), (0, 8), (2, 3, 4, 8)]:
        for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            x = context(*shape).to(dtype)
            k, v = hnetkit.Stack([(net, 0.5)])(x)
            assert (k.shape, k.dtype, v.shape, v.dtype) == (x.shape, dtype, x.shape, dtype)


def test_weights_are_read_once(tmp_path: Path) -> None:
    path = network_file(tmp_path)
    stack = hnetkit.Stack([(hnetkit.load(path), 0.5)])
    x = context(3, 8)
    before = stack(x)
    path.write_bytes(b"")
    assert all(torch.equal(now, then) for now, then in zip(stack(x), before, strict=True))


def test_the_reference_can_be_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, x = hnetkit.Stack([(network(tmp_path, activation="mish"), 0.5)]), context(3, 8)
    usual = stack(x)[0]
    monkeypatch.setenv("HNETKIT_KERNEL", "reference")
    assert relative(stack(x)[0], usual) <= 1e-6
    monkeypatch.setenv("HNETKIT_KERNEL", "chain")
    with pytest.raises(KernelUnavailable):
        stack(x)


@pytest.mark.parametrize(
    "options",
    [
        {"value": float("nan")},
        {"value": 1, "cross_k": float("inf")},
        {"start": 0.6, "end": 0.5},
        {"end": 1.1},
        {"start": -0.1},
        {"blocks": {"mid_block": float("nan")}},
    ],
    ids=str,
)
def test_a_strength_that_means_nothing_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        hnetkit.Strength(**options)


def test_the_longest_block_name_counts() -> None:
    strength = hnetkit.Strength(blocks={"up_blocks": 0.5, "up_blocks.1": 2, "mid_block.attentions.0": 0})
    names = (
        "up_blocks.0.attentions.0",
        "up_blocks.1.attentions.0",
        "up_blocks.10.x",
        "mid_block.attentions.0.y",
        "down",
    )
    assert [strength.factor(name) for name in names] == [0.5, 2, 0.5, 0, 1]


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([("ink.pt", 0.8)], "a stack takes networks, each with its strength, and no str"),
        (["ink.pt"], "a stack takes networks, each with its strength, and no str"),
        ([3], "and no int"),
        ([("ink", 0.5, 1)], "and no tuple"),
    ],
)
def test_what_is_no_stack_is_said(items: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        hnetkit.Stack(items)
    assert refused.value.hint == 'hnetkit.Stack([(hnetkit.load("ink.pt"), 0.8)])'


def test_a_stack_of_networks_without_strengths_is_said_and_a_dict_is_one(tmp_path: Path) -> None:
    net = hnetkit.load(network_file(tmp_path))
    for items in ([net], [(net, None)]):
        with pytest.raises(UsageError, match="net0 has no strength"):
            hnetkit.Stack(items)
    with pytest.raises(UsageError, match=r"not 0\.8"):
        hnetkit.Stack([(net, "0.8")])
    assert repr(hnetkit.Stack({net: 0.5})) == repr(hnetkit.Stack([[net, 0.5]]))


def test_a_kind_of_attention_that_there_is_not_is_told() -> None:
    with pytest.raises(UsageError, match="a kind of attention is self or cross, not Cross"):
        hnetkit.Stack([])(torch.ones(1, 8), kind="Cross")
