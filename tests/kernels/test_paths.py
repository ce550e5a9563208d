"""Every path computes the same stack: the reference against torch's own modules, the others against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.stacks import cast, context, random_mlp, relative, through, torch_modules
from torch.utils._python_dispatch import TorchDispatchMode

from hnetkit.errors import KernelUnavailable, UsageError
from hnetkit.formats.activations import NAMES as readable_activations
from hnetkit.kernels import activations, affine, eager, reference
from hnetkit.kernels.dispatch import BF16, KERNELS, PATHS, chosen_path
from hnetkit.kernels.weights import MLPWeights, StageWeights

RELATIVE = {torch.float32: 5e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}


def test_the_table_has_every_activation_that_a1111_accepts_and_that_makes_sense() -> None:
    of_torch = {name.lower() for name in torch.nn.modules.activation.__all__}
    refused = {"glu", "threshold", "multiheadattention", "softmax", "softmax2d", "softmin", "logsoftmax"}
    assert (of_torch - refused) | {"swish"} == activations.NAMES
    assert set(reference.FORMULAS) == activations.NAMES - {"prelu"}
    assert readable_activations == activations.NAMES


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("name", sorted(activations.NAMES))
def test_the_reference_is_what_torch_computes(name: str, norm: bool) -> None:
    mlps = [random_mlp(seed, activation=name, norm=norm, last=True) for seed in (1, 2)]
    x = context(3, 7, 24)
    truth = x
    for mlp, strength in zip(mlps, (0.7, -1.3), strict=True):
        truth = truth + strength * torch_modules(mlp, truth)
    got = reference.apply(x, mlps, torch.tensor([0.7, -1.3], dtype=torch.float64))
    assert relative(got, truth) < 1e-12


@pytest.mark.parametrize("dtype", RELATIVE, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", [None, *sorted(activations.NAMES)])
def test_eager_is_as_exact_as_its_dtype_allows(name: str | None, dtype: torch.dtype) -> None:
    mlps = cast([random_mlp(seed, activation=name, norm=seed == 2) for seed in (1, 2, 3)], dtype)
    x, strengths = context(3, 7, 24, dtype=dtype), torch.tensor([0.7, -0.4, 1.1])
    truth = reference.apply(x.double(), cast(mlps, torch.float64), strengths)
    plain = x
    for mlp, strength in zip(mlps, strengths.tolist(), strict=True):
        plain = plain + strength * torch_modules(mlp, plain)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            got = eager.apply(x, mlps, strengths)
        assert got.dtype == dtype
        assert relative(got, truth) <= RELATIVE[dtype]
        assert relative(got, truth) <= 1.25 * relative(plain, truth) + 1e-5
        delta = truth - x.double()
        assert relative(got, truth, delta) <= 1.5 * relative(plain, truth, delta) + 1e-6


@pytest.mark.parametrize("shape", [(24,), (1, 24), (0, 24), (5, 24), (2, 3, 5, 24)], ids=str)
@pytest.mark.parametrize("hidden", [(2,), (7, 76), (48, 96, 48)], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_any_shape_of_context_and_of_network(path: str, shape: tuple[int, ...], hidden: tuple[int, ...]) -> None:
    mlps = [random_mlp(seed, (24, *hidden, 24), "mish", bias=seed == 1) for seed in (1, 2)]
    x, strengths = context(*shape), torch.tensor([0.7, 0.5])
    truth = reference.apply(x, mlps, strengths)
    got = through(path, x.float(), cast(mlps, torch.float32), strengths)
    assert got.shape == x.shape
    off = 1e-1 if path == BF16 else 1e-5  # of single values: where there is much to add up, little may be left
    assert torch.allclose(got.double(), truth, rtol=off, atol=off)


@pytest.mark.parametrize("name", [None, *sorted(activations.NAMES)])
@pytest.mark.parametrize("path", PATHS)
def test_a_broken_context_is_not_made_whole(path: str, name: str | None) -> None:
    """NaN in, NaN out, as in torch's own modules: a picture that is broken must not look like one."""
    width = 320 if path == "fused" else 24
    dtype = torch.float32 if path == BF16 else torch.float16
    mlp = random_mlp(1, (width, 64, width), name, last=True, dtype=dtype)
    x = context(3, width, dtype=dtype)
    x[1, 5] = torch.nan
    broken = torch_modules(mlp, x).isnan()
    assert broken.any(1).tolist() == [False, True, False]
    assert torch.equal(through(path, x, [mlp], torch.tensor([0.7])).isnan(), broken)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", RELATIVE, ids=lambda dtype: str(dtype)[6:])
def test_the_context_is_never_written_to(path: str, dtype: torch.dtype) -> None:
    mlps = cast([random_mlp(1), random_mlp(2)], dtype)
    whole = context(4, 2, 24, dtype=dtype)
    for x in (whole, whole.transpose(0, 1), whole[1:3]):
        before = x.clone()
        with torch.no_grad():
            through(path, x, mlps, torch.tensor([0.7, 0.5]))
        assert torch.equal(x, before)


@pytest.mark.parametrize("path", PATHS)
def test_an_empty_stack_gives_the_context(path: str) -> None:
    x = context(3, 24, dtype=torch.bfloat16)
    assert torch.equal(through(path, x, [], torch.empty(0)), x)


@pytest.mark.parametrize("path", PATHS)
def test_order_matters(path: str) -> None:
    first, second = cast([random_mlp(1), random_mlp(2)], torch.float32)
    x, half = context(3, 24, dtype=torch.float32), torch.tensor([0.5, 0.5])
    there, back = through(path, x, [first, second], half), through(path, x, [second, first], half)
    assert relative(there, back) > 1e-2


def test_the_residual_stays_in_fp32_across_the_stack() -> None:
    """64 small steps that bf16 could not add one by one: each is under half a unit in the last place."""
    one = (StageWeights(torch.zeros(24, 24).bfloat16(), torch.ones(24).bfloat16()),)
    x = torch.ones(2, 24).bfloat16()
    got = eager.apply(x, [one] * 64, torch.full((64,), 1 / 1024))
    assert torch.equal(got, torch.full((2, 24), 1 + 64 / 1024).bfloat16())


@pytest.mark.parametrize("scale", [1.0, 0.1], ids=["large", "small"])
@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("path", ["eager", *KERNELS])
def test_a_sum_in_fp16_is_no_less_exact_than_a1111s(path: str, count: int, scale: float) -> None:
    """A1111 rounds a network's product with its strength, and then the sum. 0.55 and 0.7 are no numbers of fp16."""
    mlps = cast([random_mlp(seed, (320, 96, 320), "swish") for seed in range(count)], torch.float16)
    mlps = [
        tuple(stage._replace(weight=scale * stage.weight, bias=scale * stage.bias) for stage in mlp) for mlp in mlps
    ]
    x, strengths = context(24, 320, dtype=torch.float16), torch.tensor([0.55, 0.7, 1.0, 1.37, 0.3][:count])
    truth = reference.apply(x.double(), cast(mlps, torch.float64), strengths.double())
    plain = x
    for mlp, strength in zip(mlps, strengths.tolist(), strict=True):
        plain = plain + torch_modules(mlp, plain) * strength
    with torch.no_grad():
        got = through(path, x, mlps, strengths)
    allowed = 1.0 if scale == 1 else 1.005  # of small networks, rounding the result is nearly all of the error
    assert relative(got, truth) <= allowed * relative(plain, truth)


class Operations(TorchDispatchMode):
    """Notes the operations that are run, without those that only look at a tensor in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in ("view", "t", "unbind", "select", "detach", "alias", "_unsafe_view"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "casts"), [(torch.float16, 0), (torch.float32, 0), (torch.bfloat16, 4)], ids=["fp16", "fp32", "bf16"]
)
def test_a_network_is_four_operations_in_plain_torch(dtype: torch.dtype, casts: int) -> None:
    """A1111's are five. In bf16 the sum is in fp32: it is cast for every network, and back at the end."""
    mlps, x = cast([random_mlp(seed) for seed in range(3)], dtype), context(5, 24, dtype=dtype)
    strengths = torch.tensor([0.7, 0.5, 0.3])
    with torch.no_grad(), Operations() as ours:
        eager.apply(x, mlps, strengths)
    with torch.no_grad(), Operations() as theirs:
        for mlp, strength in zip(mlps, (0.7, 0.5, 0.3), strict=True):
            x = x + torch_modules(mlp, x) * strength
    assert len(ours.names) == 4 * 3 + casts, ours.names
    assert len(theirs.names) == 5 * 3, theirs.names


def test_a_wider_context_is_not_rounded_to_the_weights() -> None:
    mlps = cast([random_mlp(1)], torch.bfloat16)
    x = context(5, 24, dtype=torch.float32)
    got = eager.apply(x, mlps, torch.tensor([1e-6]))
    assert got.dtype == torch.float32
    assert relative(got, x) < 1e-4


def test_gradients_are_those_of_the_reference() -> None:
    mlps = [random_mlp(seed, activation="mish", norm=True) for seed in (1, 2)]
    strengths = torch.tensor([0.7, -0.4], dtype=torch.float64)
    gradients = []
    for path in (eager.apply, reference.apply):
        x = context(5, 24).requires_grad_()
        weight = mlps[0][0].weight.clone().requires_grad_()
        path(x, [(mlps[0][0]._replace(weight=weight), *mlps[0][1:]), mlps[1]], strengths).square().sum().backward()
        gradients.append((x.grad, weight.grad))
    for got, truth in zip(*gradients, strict=True):
        assert got is not None
        assert truth is not None
        assert relative(got, truth) < 1e-10


def affine_stack() -> tuple[list[MLPWeights], list[float]]:
    mlps = [
        random_mlp(1, (24, 48, 24), None),
        random_mlp(2, (24, 12, 30, 24), None, bias=False),
        random_mlp(3, (24, 24), None),
    ]
    return mlps, [0.7, -1.2, 0.4]


def test_composed_maps_are_the_stack() -> None:
    mlps, strengths = affine_stack()
    x = context(5, 24)
    truth = reference.apply(x, mlps, torch.tensor(strengths, dtype=torch.float64))
    total = affine.compose(zip(map(affine.collapse, mlps), strengths, strict=True))
    assert relative(x + x @ total.matrix.T + total.offset, truth) < 1e-13


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_folded_map_gives_the_projection_of_the_stack(with_bias: bool) -> None:
    mlps, strengths = affine_stack()
    x, weight, bias = context(5, 24), context(16, 24), context(16) if with_bias else None
    truth = torch.nn.functional.linear(
        reference.apply(x, mlps, torch.tensor(strengths, dtype=torch.float64)), weight, bias
    )
    total = affine.compose(zip(map(affine.collapse, mlps), strengths, strict=True))
    assert relative(torch.nn.functional.linear(x, *affine.fold(weight, bias, total)), truth) < 1e-13
    half = None if bias is None else bias.bfloat16()
    folded = affine.fold(weight.bfloat16(), half, total)
    exact = affine.fold(weight.bfloat16().double(), None if half is None else half.double(), total)
    assert all(torch.equal(got, once.bfloat16()) for got, once in zip(folded, exact, strict=True)), "rounded once"


def test_nothing_cannot_be_composed() -> None:
    with pytest.raises(ValueError, match="no map"):
        affine.compose([])


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("", "eager"),
        ("auto", "eager"),
        ("eager", "eager"),
        ("reference", "reference"),
        ("grouped", "grouped"),
        ("fused", "fused"),
    ],
)
def test_a_path_can_be_forced(monkeypatch: pytest.MonkeyPatch, name: str, path: str) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", name)
    assert chosen_path() == path


@pytest.mark.parametrize("name", ["chain"])
def test_a_forced_path_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", name)
    with pytest.raises(KernelUnavailable, match=name):
        chosen_path()


def test_a_misspelt_path_gets_the_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", "eagre")
    with pytest.raises(UsageError) as refused:
        chosen_path()
    assert refused.value.hint == "set it to eager"
