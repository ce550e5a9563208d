"""Networks as values: compared by content, shown in a line, copied and pickled."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import a1111_network, network_file, save_pt

import hnetkit
from hnetkit.hashes import sha256_of
from hnetkit.inspection import validate
from hnetkit.network import Hypernetwork, TensorRef

FILES: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"activation": "prelu", "layer_norm": True, "dropout": [0, 0.3, 0]},
    {"dtype": torch.float16, "structure": (1, 0.5, 2, 1)},
]


@pytest.fixture(params=FILES, ids=str)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return network_file(tmp_path, "ink.pt", **request.param)


@pytest.fixture
def ink(file: Path) -> Hypernetwork:
    return hnetkit.load(file)


def named(path: Path, name: str, **options: Any) -> Hypernetwork:
    """A network that has a name of its own in its file."""
    return hnetkit.load(save_pt({**a1111_network(**options), "name": name}, path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_was_saved_is_the_same_network(ink: Hypernetwork, tmp_path: Path, suffix: str) -> None:
    hnetkit.save(ink, tmp_path / f"saved{suffix}")
    saved = hnetkit.load(tmp_path / f"saved{suffix}")
    assert saved == ink
    assert hash(saved) == hash(ink)
    assert len({saved, ink}) == 1
    assert saved.mlps == ink.mlps


def test_one_value_makes_another_network(tmp_path: Path) -> None:
    """The same shapes and metadata are not the same network."""
    ink, other = (named(tmp_path / f"{seed}.pt", "ink", seed=seed, step=1) for seed in (1, 2))
    assert ink.metadata == other.metadata
    assert ink != other
    assert ink.mlps != other.mlps
    weights = [net.mlps[8].key.stages[0].weight for net in (ink, other)]
    assert weights[0] != weights[1]
    assert weights[0] == TensorRef.of(weights[0].torch())
    assert len({ink, other}) == 2
    assert ink != "ink"
    assert weights[0] != 0.5


def test_name_and_metadata_make_no_other_network(tmp_path: Path) -> None:
    nets = [named(tmp_path / f"{step}.pt", f"net {step}", step=step) for step in (1, 2)]
    assert nets[0] == nets[1]


def test_it_is_shown_in_a_line(ink: Hypernetwork) -> None:
    assert len(repr(ink)) < 120
    assert repr(ink).startswith("<Hypernetwork 'net0': 8, 12; 1x")


def test_the_line_reads_no_tensor_and_is_short_whatever_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = tuple(range(1, 30))
    net = named(tmp_path / "ink.pt", "x" * 9999, widths=widths, structure=(1, *[2] * 40, 1))
    monkeypatch.setattr(TensorRef, "read", lambda ref: pytest.fail("read"))
    assert len(repr(net)) < 220


def test_a_stack_is_shown_in_a_line(tmp_path: Path) -> None:
    ink = named(tmp_path / "ink.pt", "ink")
    strength = hnetkit.Strength(1.0, cross_v=0.5, end=0.6, blocks={"up_blocks": 0.5})
    stack = hnetkit.Stack([(ink, 0.8), (ink, strength)])
    shown = "Strength(1, cross_v=0.5, end=0.6, blocks={'up_blocks': 0.5})"
    assert repr(stack) == f"Stack([(ink, Strength(0.8)), (ink, {shown})])"
    assert eval(shown, {"Strength": hnetkit.Strength}) == strength


def test_a_pickle_needs_no_file_and_names_none(ink: Hypernetwork, file: Path) -> None:
    pickled = pickle.dumps(ink)
    sha256 = sha256_of(ink.source) if ink.source else None
    tensors = [tensor.read() for *_, tensor in ink.each_tensor()]
    os.remove(file)
    other = pickle.loads(pickled)
    assert other == ink
    assert [tensor.read() for *_, tensor in other.each_tensor()] == tensors
    assert (other.metadata, other.warnings, other.format) == (ink.metadata, ink.warnings, ink.format)
    assert other.source is None
    assert other.source_sha256 == sha256, "others still know it by its file"
    assert validate(other).problems == ()


def test_a_pickled_network_is_saved_as_its_file_was(ink: Hypernetwork, tmp_path: Path) -> None:
    for number, net in enumerate((ink, pickle.loads(pickle.dumps(ink)))):
        hnetkit.save(net, tmp_path / f"{number}.safetensors")
        hnetkit.save(net, tmp_path / f"{number}.pt")
    for suffix in (".safetensors", ".pt"):
        assert (tmp_path / f"0{suffix}").read_bytes() == (tmp_path / f"1{suffix}").read_bytes()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_the_same_network_and_reads_the_same_file(ink: Hypernetwork, copied: Any) -> None:
    other = copied(ink)
    assert other is not ink
    assert other == ink
    assert other.source is ink.source
    assert validate(other).problems == ()


def test_a_deep_copy_shares_nothing_that_changes(ink: Hypernetwork) -> None:
    before = dict(ink.metadata)
    other = copy.deepcopy(ink)
    other.metadata["layer_structure"].append(9)
    other.metadata["name"] = "other"
    other.mlps[8].key.tensors.clear()  # type: ignore[attr-defined]
    del other.mlps[12]  # type: ignore[attr-defined]
    assert ink.metadata == before
    assert ink.metadata["layer_structure"][-1] == 1
    assert ink.widths == [8, 12]
    assert ink.mlps[8].key.tensors


def test_a_stack_is_copied_and_pickled_with_its_networks(tmp_path: Path) -> None:
    stack = hnetkit.Stack([(hnetkit.load(network_file(tmp_path, activation="relu")), 0.5)])
    x = torch.randn(2, 8)
    first = stack(x)
    for other in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack))):
        assert all(torch.equal(a, b) for a, b in zip(other(x), first, strict=True))
