"""One step: what its loss is made of, and what depends on the number of each sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.pipelines import reading, tiny_sd
from support.training import make_pictures, stepper

import hnetkit
from hnetkit.errors import UsageError
from hnetkit.train.build import Build
from hnetkit.train.data import Sample
from hnetkit.train.export import to_hypernetwork
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.step import Stepper, make_optimizer
from hnetkit.train.unet_hooks import BatchStacks, NamedStack


def test_every_sample_has_noise_and_a_time_step_of_its_own(tmp_path: Path) -> None:
    with stepper(make_pictures(tmp_path, 1), Build(), latents="deterministic") as steps:
        losses = [steps.measure(step) for step in range(12)]
        assert len({round(loss, 5) for loss in losses}) == 12
        assert losses == [steps.measure(step) for step in range(12)]


def test_a_model_for_inpainting_is_trained_with_everything_masked_and_gray(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 5, sizes=((16, 16), (24, 16)))
    pipe = reading(tiny_sd(least=True), 9)
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0][:, 4:]))
    with stepper(pictures, Build(), pipe, batch_size=2) as steps:
        moved = [steps.make_step(step, 1e-2, None).gradient_norm for step in range(3)]
    assert all(moved)
    grays = {}
    for height, width in ((16, 16), (16, 24)):
        with torch.no_grad():
            latents = (
                pipe.vae.encode(torch.zeros(1, 3, height, width)).latent_dist.mean * pipe.vae.config.scaling_factor
            )
        grays[height // 2, width // 2] = torch.cat([torch.ones_like(latents[:, :1]), latents], dim=1)
    assert {tuple(call.shape[2:]) for call in seen} == grays.keys()
    for call in seen:
        torch.testing.assert_close(call, grays[tuple(call.shape[2:])].expand_as(call))


def test_a_model_that_makes_nothing_of_its_mask_is_trained_as_the_plain_one(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 3)
    losses = []
    for pipe in (tiny_sd(least=True), reading(tiny_sd(least=True), 9, ignored=True)):
        with stepper(pictures, Build(zero_output=False), pipe) as steps:
            losses.append([steps.make_step(step, 1e-2, None).loss for step in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_loss_of_a_step_is_the_mean_of_its_samples(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 5, sizes=((16, 16), (24, 16)))
    with stepper(pictures, Build(), batch_size=2, accumulation=3) as steps:
        mean = steps.measure(0)
        assert steps.make_step(0, 0.0, None).loss == pytest.approx(mean, rel=1e-6)
        each = [_loss_of(steps, index) for index in range(6)]
        assert mean == pytest.approx(sum(each) / 6, rel=1e-5)


def _loss_of(steps: Stepper, index: int) -> float:
    """The loss of one sample of the first step by itself; the network is still without effect."""
    (sample,) = [sample for batch in steps.data.step(0) for sample in batch if sample.index == index]
    with torch.no_grad():
        return steps._losses([sample], [steps.prompts.encode(sample.prompt)]).item()


def test_a_step_moves_the_weights_by_the_rate_times_the_gradient_of_the_mean(tmp_path: Path) -> None:
    build = Build(zero_output=False)
    with stepper(make_pictures(tmp_path, 4), build, batch_size=4) as steps:
        before = [parameter.detach().clone() for parameter in steps.network.parameters()]
        loss = steps.measure(0)
        made = steps.make_step(0, 1.0, None)
        moved = [old - new.detach() for old, new in zip(before, steps.network.parameters(), strict=True)]
        assert made.gradient_norm == pytest.approx(
            torch.cat([part.flatten() for part in moved]).norm().item(), rel=1e-4
        )
        rate = 1e-2 / made.gradient_norm
        with torch.no_grad():
            for parameter, old, step in zip(steps.network.parameters(), before, moved, strict=True):
                parameter.copy_(old - rate * step)
        expected = loss - rate * made.gradient_norm**2
        assert steps.measure(0) == pytest.approx(expected, abs=abs(loss - expected) * 0.2)


def test_texts_of_unlike_length_in_a_batch_change_nothing_for_each_other(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 2)
    (pictures / "00.txt").write_text("a very long story, " * 12)
    with stepper(pictures, Build(), batch_size=2) as steps:
        lengths = {len(steps.prompts.encode(sample.prompt).hidden) for sample in steps.data.step(0)[0]}
        assert len(lengths) == 2
        together = steps.measure(0)
        each = [_loss_of(steps, sample.index) for sample in steps.data.step(0)[0]]
        assert together == pytest.approx(sum(each) / 2, rel=1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_gradients_do_not_depend_on_company_either(precision: str, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path, 2)
    (pictures / "00.txt").write_text("a very long story, " * 12)
    build = Build(structure=(1, 2, 1), activation="relu", layer_norm=True, zero_output=False)
    moved = []
    for batch in ({"batch_size": 2}, {"accumulation": 2}):
        with stepper(pictures, build, precision=precision, **batch) as steps:
            before = torch.cat([parameter.detach().flatten() for parameter in steps.network.parameters()])
            steps.make_step(0, 1.0, None)
            moved.append(torch.cat([p.detach().flatten() for p in steps.network.parameters()]) - before)
    assert (moved[0] - moved[1]).norm() < (2e-4 if precision == "no" else 0.1) * moved[0].norm()


def test_a_sample_is_learned_at_its_own_strength(tmp_path: Path) -> None:
    """At strength 0 the network is not there and cannot learn; at half of it, half as much comes back."""
    norms = {}
    for strength in ("0", "0.5", "1"):
        folder = make_pictures(tmp_path / strength, 1)
        (folder / "00.txt").write_text(f"a house <hypernet:tiny:{strength}>")
        with stepper(folder, Build(activation="relu"), name="tiny", batch_size=1) as small:
            norms[strength] = small.make_step(0, 1e-3, None).gradient_norm
    assert norms["0"] == 0
    assert norms["0.5"] == pytest.approx(norms["1"] / 2, rel=1e-3)


def test_a_sample_is_learned_with_the_networks_that_its_caption_names_in_their_order(tmp_path: Path) -> None:
    """What a sample does not name is not there for it; all of them are in one batch."""
    tags = ("", "<hypernet:ink:0.5>", "<hypernet:tiny:0.8> <hypernet:ink:0.5>", "<hypernet:wet:0.3> <hypernet:ink:1>")
    folder = make_pictures(tmp_path, 8)
    for number, tag in enumerate(tags * 2):
        (folder / f"{number:02}.txt").write_text(f"a house {tag}")
    build = Build(structure=(1, 2, 1), activation="relu", zero_output=False, std=0.6)
    with stepper(folder, build, name="tiny", batch_size=8, beside=("ink.pt", "wet.pt")) as steps:
        networks = {"tiny": steps.network}
        for seed, name in enumerate(("ink", "wet"), 1):
            networks[name] = TrainedNetwork(build, [8, 24], seed=seed).eval().requires_grad_(False)
        steps.stacks = BatchStacks(networks)
        samples = steps.data.step(0)[0]
        with steps.stacks.on(steps.unet):
            losses = steps._losses(samples, [steps.prompts.encode(sample.prompt) for sample in samples])
            torch.autograd.backward(losses.sum())
        for name, network in networks.items():
            assert all((parameter.grad is not None) == (name == "tiny") for parameter in network.parameters())
        for sample, loss in zip(samples, losses.tolist(), strict=True):
            assert loss == pytest.approx(_loss_on(steps, sample, networks, sample.stack), rel=1e-5)
            for other in (sample.stack[:-1], sample.stack[::-1] if len(sample.stack) > 1 else ()):
                assert loss != pytest.approx(_loss_on(steps, sample, networks, other), rel=3e-5)


def _loss_on(steps: Stepper, sample: Sample, networks: dict[str, TrainedNetwork], stack: NamedStack) -> float:
    """The loss of a sample with a stack that hnetkit's runtime puts on the UNet."""
    for name, network in networks.items():
        net = to_hypernetwork(network, name=name, step=0, model_name=None, model_hash=None)
        hnetkit.load_hypernetwork(steps.unet, net, name=name)
    hnetkit.set_hypernetworks(steps.unet, [name for name, _ in stack], [strength for _, strength in stack])
    try:
        return _loss_of(steps, sample.index)
    finally:
        hnetkit.unload_hypernetworks(steps.unet)


@pytest.mark.parametrize(
    ("name", "options"),
    [("AdamW", {"betas": []}), ("Rprop", {"etas": [0.5]}), ("ASGD", {"t0": "x"}), ("SGD", {"momentum": []})],
)
def test_options_that_an_optimizer_meets_late_are_refused_at_once(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{name} does not take"):
        make_optimizer(name, [torch.nn.Parameter(torch.zeros(3))], options, 1e-3)
