"""Products of fp16 whose sums are in fp16: only where torch's own setting asks, on GPUs that gain by it; how exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.networks import network_file
from support.pipelines import tiny_sd
from support.stacks import cast, context, random_mlp, relative, through, torch_modules
from torch import Tensor

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")

import hnetkit
from hnetkit.kernels import reference
from hnetkit.kernels.gpu import linear
from hnetkit.kernels.weights import MLPWeights

CPU = torch.device("cpu")
STRENGTHS = torch.tensor([0.55, 0.7, 1.0])


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch's setting is on, and the interpreter a GPU that gains by it."""
    if not hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"):
        pytest.skip("this torch has no such setting")
    before = torch.backends.cuda.matmul.allow_fp16_accumulation
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    monkeypatch.setattr(linear, "FP16_SUMS", frozenset({None}))
    yield
    torch.backends.cuda.matmul.allow_fp16_accumulation = before


def networks(count: int, scale: float) -> list[MLPWeights]:
    mlps = cast([random_mlp(seed, (320, 640, 320), "swish") for seed in range(count)], torch.float16)
    return [
        tuple(stage._replace(weight=scale * stage.weight, bias=scale * stage.bias) for stage in mlp) for mlp in mlps
    ]


def errors(mlps: list[MLPWeights], got: Tensor, x: Tensor) -> tuple[float, float]:
    """How far the kernels and A1111's way are from the mathematics."""
    strengths = STRENGTHS[: len(mlps)]
    truth = reference.apply(x.double(), cast(mlps, torch.float64), strengths.double())
    plain = x
    for mlp, strength in zip(mlps, strengths.tolist(), strict=True):
        plain = plain + torch_modules(mlp, plain) * strength
    return relative(got, truth), relative(plain, truth)


@pytest.mark.usefixtures("setting")
@pytest.mark.parametrize("scale", [1.0, 0.1], ids=["large", "small"])
@pytest.mark.parametrize("count", [1, 3])
def test_it_is_no_less_exact_than_a1111_but_for_a_tenth(count: int, scale: float) -> None:
    mlps, x = networks(count, scale), context(16, 320, dtype=torch.float16)
    with torch.no_grad():
        got = through("grouped", x, mlps, STRENGTHS[:count])
        torch.backends.cuda.matmul.allow_fp16_accumulation = False
        wide = through("grouped", x, mlps, STRENGTHS[:count])
    assert not torch.equal(got, wide), "sums are in fp16"
    ours, theirs = errors(mlps, got, x)
    assert ours <= 1.1 * theirs


def sums_of_32(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows weight^T`` as the instructions add it up: 16 products at once, rounded to fp16, and twice that to fp32."""
    total = torch.zeros(len(rows), len(weight))
    for start in range(0, rows.shape[1], 32):
        part = torch.zeros_like(total)
        for at in (start, start + 16):
            part = (part + rows[:, at : at + 16].float() @ weight[:, at : at + 16].float().T).half().float()
        total += part
    return total


@pytest.mark.parametrize("scale", [1.0, 0.1], ids=["large", "small"])
def test_so_it_is_where_an_instruction_adds_up_sixteen(scale: float) -> None:
    """The interpreter rounds a sum of 32 once, the hardware after each 16."""
    mlps, x = networks(3, scale), context(64, 320, dtype=torch.float16)
    y = x
    for (first, last), strength in zip(mlps, STRENGTHS.tolist(), strict=True):
        assert first.bias is not None
        assert last.bias is not None
        h = torch.nn.functional.hardswish(sums_of_32(y, first.weight) + first.bias.float()).half()
        y = (y.float() + strength * (sums_of_32(h, last.weight) + last.bias.float())).half()
    ours, theirs = errors(mlps, y, x)
    assert ours <= 1.1 * theirs


def test_only_where_torch_is_asked_and_the_gpu_gains_by_it(setting: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert linear.product_precision(torch.float16, CPU) == "fp16"
    assert linear.product_precision(torch.bfloat16, CPU) == "ieee"
    assert linear.product_precision(torch.float32, CPU) == "ieee"
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    assert linear.product_precision(torch.float16, CPU) == "ieee"
    torch.backends.cuda.matmul.allow_fp16_accumulation = True
    monkeypatch.undo()
    for capability in ((8, 0), (9, 0), (10, 0), "gfx1100"):
        monkeypatch.setattr(linear, "capability_of", lambda device, capability=capability: capability)
        assert linear.product_precision(torch.float16, CPU) == "ieee"
    for capability in ((8, 6), (8, 9), (12, 0)):
        monkeypatch.setattr(linear, "capability_of", lambda device, capability=capability: capability)
        assert linear.product_precision(torch.float16, CPU) == "fp16"


@pytest.mark.usefixtures("setting")
def test_the_plan_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", "grouped")
    pipe = tiny_sd(dtype=torch.float16, least=True)
    hnetkit.load_hypernetwork(pipe, network_file(tmp_path, "ink.pt", widths=(8,), activation="relu"), name="ink")
    reasons = [part["reason"] for part in hnetkit.explain(pipe)["parts"] if part["path"] == "grouped"]
    assert reasons
    assert all(reason.endswith(", with sums of 32 products in fp16, as torch allows") for reason in reasons)
    torch.backends.cuda.matmul.allow_fp16_accumulation = False
    assert "fp16" not in str([part["reason"] for part in hnetkit.explain(pipe)["parts"]])
