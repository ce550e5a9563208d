"""Products in bf16 under a sum in fp32, on the CPU: only where they are asked for, and how exact they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.networks import network_file
from support.pipelines import tiny_sd
from support.stacks import cast, context, random_mlp, relative, through
from torch import Tensor

import hnetkit
from hnetkit.errors import KernelUnavailable
from hnetkit.kernels import reference
from hnetkit.kernels.dispatch import BF16, chosen_path, path_on
from hnetkit.kernels.executor import StackExecutor, pack_pair
from hnetkit.kernels.weights import MLPWeights

CPU = torch.device("cpu")
OF_DELTA = 6e-3


@pytest.fixture
def asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any processor: without the instructions the same is computed, slowly."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    monkeypatch.setenv("HNETKIT_KERNEL", BF16)


def weights(count: int, activation: str, *, norm: bool = False) -> list[MLPWeights]:
    return cast([random_mlp(seed, (320, 640, 320), activation, norm=norm) for seed in range(count)], torch.float32)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("activation", "norm"), [("swish", False), ("relu", False), ("mish", False), ("gelu", False), ("relu", True)]
)
def test_what_networks_of_two_layers_add_is_off_by_less_than_0_6_percent(
    activation: str, norm: bool, count: int
) -> None:
    mlps, strengths = weights(count, activation, norm=norm), torch.tensor([0.7, -0.4, 0.3][:count])
    x = context(64, 320, dtype=torch.float32)
    truth = reference.apply(x.double(), cast(mlps, torch.float64), strengths.double())
    got = through(BF16, x, mlps, strengths)
    assert got.dtype == torch.float32
    assert 1e-3 < relative(got, truth, truth - x.double()) <= OF_DELTA


@pytest.mark.parametrize("strength", [1.0, 0.1])
def test_k_and_v_are_off_by_as_much_of_what_is_added_and_the_context_by_nothing(strength: float) -> None:
    """The sum is in fp32: what a network does not change stays as it is."""
    mlps, numbers = weights(1, "swish"), torch.tensor([strength])
    x = context(64, 320, dtype=torch.float32)
    to_k = torch.randn(320, 320, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 320**0.5
    truth = reference.apply(x.double(), cast(mlps, torch.float64), numbers.double())
    got = through(BF16, x, mlps, numbers).double()
    added = float((truth - x.double()).norm() / truth.norm())
    assert relative(got @ to_k, truth @ to_k) <= 1.2 * OF_DELTA * added
    assert torch.equal(through(BF16, x, mlps, torch.tensor([0.0])), through("eager", x, mlps, torch.tensor([0.0])))


def test_an_affine_network_between_others_keeps_its_products_in_fp32() -> None:
    plain = cast([random_mlp(1, activation=None)], torch.float32)[0]
    x, strengths = context(7, 24, dtype=torch.float32), torch.tensor([0.7])
    assert torch.equal(through(BF16, x, [plain], strengths), through("eager", x, [plain], strengths))
    (packed,) = pack_pair(plain, plain, BF16)
    assert packed[0].weight.dtype == torch.float32
    mlps = [plain, *cast([random_mlp(2)], torch.float32), plain]
    truth = reference.apply(x.double(), cast(mlps, torch.float64), torch.tensor([0.7, 0.5, 0.3]).double())
    before = x.clone()
    got = through(BF16, x, mlps, torch.tensor([0.7, 0.5, 0.3]))
    assert relative(got, truth) < 1e-2
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_models_of_other_dtypes_have_products_in_their_own(dtype: torch.dtype) -> None:
    mlps, x, strengths = cast([random_mlp(1)], dtype), context(7, 24, dtype=dtype), torch.tensor([0.7])
    assert torch.equal(through(BF16, x, mlps, strengths), through("eager", x, mlps, strengths))
    assert path_on(BF16, CPU, dtype) == "eager"


def test_gradients_flow_through_it() -> None:
    mlps, x = weights(1, "swish"), context(8, 320, dtype=torch.float32).requires_grad_()
    gradients: list[Tensor] = []
    for path in (BF16, "eager"):
        pair = pack_pair(mlps[0], mlps[0], path)
        y, _ = StackExecutor([pair], path).apply(x, torch.ones(2, 1), [[True]] * 2)
        gradients += torch.autograd.grad(y.square().sum(), x)
    assert 0 < relative(*gradients) < 4e-2


@pytest.mark.usefixtures("asked_for")
def test_it_is_for_the_cpu_and_for_fp32() -> None:
    assert chosen_path() == chosen_path(CPU) == BF16
    assert path_on(BF16, CPU, torch.float32) == BF16
    assert chosen_path(torch.device("mps")) == "eager"
    assert path_on(BF16, torch.device("cuda", 0), torch.float32) == "eager"


def test_a_processor_without_the_instructions_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", BF16)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    with pytest.raises(KernelUnavailable, match=r"HNETKIT_KERNEL=bf16: .*AVX512-BF16 or AMX") as refused:
        chosen_path()
    assert refused.value.hint == "unset HNETKIT_KERNEL"
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    with pytest.raises(KernelUnavailable, match="does not tell what the processor can do"):
        chosen_path()


@pytest.mark.usefixtures("asked_for")
def test_a_unet_has_its_networks_in_bf16_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_sd(least=True)
    widths = (8, 20, 24)
    networks = {
        name: hnetkit.load(network_file(tmp_path, f"{name}.pt", widths=widths, activation=activation, scale=0.2))
        for name, activation in (("ink", "relu"), ("wash", "linear"))
    }
    call = {
        "sample": context(2, 4, 8, 8, dtype=torch.float32),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": context(2, 7, 24, dtype=torch.float32),
    }

    def drawn() -> Tensor:
        with torch.no_grad():
            return pipe.unet(**call).sample

    bare = drawn()
    for name in networks:
        hnetkit.load_hypernetwork(pipe, networks[name], name=name)
    got, plan = drawn(), hnetkit.explain(pipe)
    assert plan["kernel"] == BF16
    assert f", {BF16} on cpu" in str(plan)
    of_ink = [part for part in plan["parts"] if part["path"] == BF16]
    assert of_ink
    assert all("products in bf16" in part["reason"] for part in of_ink)
    state = pipe.unet.hnetkit
    assert {pair.pair()[0][0].weight.dtype for pair in state.networks["ink"].pairs} == {torch.bfloat16}
    hnetkit.unload_hypernetworks(pipe)
    assert torch.equal(drawn(), bare)

    monkeypatch.setenv("HNETKIT_KERNEL", "eager")
    for name in networks:
        hnetkit.load_hypernetwork(pipe, networks[name], name=name)
    exact = drawn()
    assert 0 < relative(got, exact, exact - bare) < 3e-2
    weights_of_eager = [part["bytes"] for part in hnetkit.explain(pipe)["parts"]]
    assert all(part["bytes"] <= more for part, more in zip(plan["parts"], weights_of_eager, strict=True))
    assert sum(part["bytes"] for part in plan["parts"]) < sum(weights_of_eager)


@pytest.mark.usefixtures("asked_for")
def test_a_change_of_dtype_reads_the_file_again(tmp_path: Path) -> None:
    """Weights that were rounded to bf16 are not what an fp64 or another path goes on with."""
    pipe = tiny_sd(least=True)
    network = hnetkit.load(network_file(tmp_path, "ink.pt", widths=(8,), activation="relu", scale=0.2))
    hnetkit.load_hypernetwork(pipe, network, name="ink")
    pipe.unet.double()
    (pair,) = pipe.unet.hnetkit.networks["ink"].pairs
    exact = network.mlps[8].key.stages[0].weight.torch().double()
    assert torch.equal(pair.pair()[0][0].weight[0, 0], exact)
    assert hnetkit.explain(pipe)["kernel"] == "eager"
