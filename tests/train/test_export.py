"""What is trained becomes files that hnetkit, A1111 and ComfyUI read as the same network."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks import sequential, state_dict

import hnetkit
from hnetkit.errors import OutputExists
from hnetkit.network import Hypernetwork
from hnetkit.train.build import Build
from hnetkit.train.export import save_trained, to_hypernetwork
from hnetkit.train.network import TrainedNetwork

BUILDS = {
    "linear": Build(),
    "relu, activated output": Build(activation="relu", activate_output=True, zero_output=False),
    "mish, layer norm, dropout": Build((1, 2, 1.5, 1), "mish", layer_norm=True, dropout=(0, 0.3, 0.1, 0)),
    "tanh, layer norm, activated output": Build(activation="tanh", layer_norm=True, activate_output=True),
    "prelu, a fraction": Build((1, 0.35, 1), "prelu", initialisation="KaimingUniform"),
    "dropout without activation": Build(dropout=(0, 0.2, 0)),
    "rrelu": Build(activation="rrelu"),
    "one layer": Build((1, 1)),
}


def trained(build: Build, widths: tuple[int, ...] = (8, 20)) -> TrainedNetwork:
    """A network that is no longer what it started from."""
    network = TrainedNetwork(build, widths, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    return network


def as_file(network: TrainedNetwork, **more: Any) -> Hypernetwork:
    stated = {"name": "ink", "step": 1000, "model_name": "dreams", "model_hash": "0123456789abcdef"}
    return to_hypernetwork(network, **{**stated, **more})


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_k_and_v_through_a_file_are_the_networks_own_to_the_last_bit(build: Build, tmp_path: Path) -> None:
    network = trained(build)
    made = as_file(network)
    paths = save_trained(made, tmp_path)
    network.eval()
    assert [path.name for path in paths] == ["ink.safetensors", "ink.pt"]
    for path in paths:
        read = hnetkit.load(path)
        assert read.warnings == ("no Stable Diffusion model has contexts of width 8, 20",)
        assert read.content_hash == made.content_hash
        for what in ("layer_structure", "activation", "activate_output", "layer_norm", "dropout", "dtype"):
            assert getattr(read, what) == getattr(made, what), what
        stack = hnetkit.Stack([(read, 1.0)])
        again = TrainedNetwork.from_hypernetwork(read).eval()
        for width in network.widths:
            x = torch.randn(2, 3, width)
            for side, found in zip(("k", "v"), stack(x), strict=True):
                own = network.apply_to(x, side)
                assert not torch.equal(own, x)
                assert torch.equal(found, own)
                assert torch.equal(again.apply_to(x, side), own)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_a1111_builds_the_same_modules_from_the_metadata_and_loads_them_strictly(build: Build, tmp_path: Path) -> None:
    content = torch.load(save_trained(as_file(trained(build)), tmp_path)[1], weights_only=True)
    for width in (8, 20):
        for side in content[width]:
            modules = sequential(
                width,
                content["layer_structure"],
                content["activation_func"],
                layer_norm=content["is_layer_norm"],
                activate_output=content["activate_output"],
                dropout=content["dropout_structure"],
            )
            assert list(state_dict(modules)) == list(side)
            modules.load_state_dict({name.removeprefix("linear."): tensor for name, tensor in side.items()})


def test_all_of_a1111s_keys_are_written_with_its_types(tmp_path: Path) -> None:
    build = BUILDS["mish, layer norm, dropout"]
    paths = save_trained(as_file(trained(build), extra={"optional_info": "made of rain"}), tmp_path)
    expected = {
        "step": 1000,
        "name": "ink",
        "layer_structure": [1.0, 2.0, 1.5, 1.0],
        "activation_func": "mish",
        "is_layer_norm": True,
        "weight_initialization": "Normal",
        "use_dropout": True,
        "sd_checkpoint": "0123456789",
        "sd_checkpoint_name": "dreams",
        "activate_output": False,
        "last_layer_dropout": True,
        "dropout_structure": [0.0, 0.3, 0.1, 0.0],
        "optional_info": "made of rain",
    }
    for path in paths:
        assert dict(hnetkit.load(path).metadata) == expected
    plain = as_file(trained(Build()), model_name=None, model_hash=None).metadata
    assert (plain["activation_func"], plain["use_dropout"], plain["last_layer_dropout"]) == ("linear", False, False)
    assert (plain["dropout_structure"], plain["optional_info"]) == ([0.0, 0.0, 0.0], None)
    assert (plain["sd_checkpoint"], plain["sd_checkpoint_name"]) == (None, None)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())
def test_a_side_that_was_not_trained_is_in_the_file_and_changes_nothing(build: Build, tmp_path: Path) -> None:
    network = trained(Build(**{**vars(build), "sides": ("v",)}))
    for path in save_trained(as_file(network), tmp_path):
        read = hnetkit.load(path)
        x = torch.randn(2, 3, 20)
        k, v = hnetkit.Stack([(read, 1.0)])(x)
        assert torch.equal(k, x)
        assert torch.equal(v, network.eval().apply_to(x, "v"))
        assert list(read.mlps[20].key.tensors) == list(read.mlps[20].value.tensors)
        assert read.metadata["optional_info"] == "only V was trained"
        assert TrainedNetwork.from_hypernetwork(read).build.sides == ("v",)


def test_a_new_network_with_zero_output_goes_on_with_both_sides(tmp_path: Path) -> None:
    read = hnetkit.load(save_trained(as_file(TrainedNetwork(Build(), [8], seed=0)), tmp_path)[0])
    assert TrainedNetwork.from_hypernetwork(read).build.sides == ("k", "v")


def test_what_is_saved_is_a_copy() -> None:
    network = trained(Build())
    net = as_file(network)
    before = net.content_hash
    with torch.no_grad():
        network.mlp(8, "k").linear[0].weight += 1
    assert Hypernetwork(net.mlps, net.metadata).content_hash == before != as_file(network).content_hash


def test_files_of_that_name_are_replaced_only_where_that_is_wanted(tmp_path: Path) -> None:
    save_trained(as_file(trained(Build())), tmp_path)
    with pytest.raises(OutputExists):
        save_trained(as_file(trained(Build())), tmp_path, overwrite=False)
    save_trained(as_file(trained(Build()), step=2000), tmp_path)
    assert {hnetkit.load(path).step for path in tmp_path.iterdir()} == {2000}


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="a limit on the size of files is POSIX's")
def test_a_full_disk_leaves_the_files_from_before_and_nothing_else(tmp_path: Path) -> None:
    code = f"""
import resource, signal
from hnetkit.train.build import Build
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.export import save_trained, to_hypernetwork
from hnetkit.errors import DiskFull
net = to_hypernetwork(TrainedNetwork(Build(), [20], seed=0), name="ink", step=1, model_name=None, model_hash=None)
save_trained(net, {str(tmp_path)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    save_trained(net, {str(tmp_path)!r})
except DiskFull as error:
    print(error, error.exit_code)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path / 'ink.safetensors'}: no room to write it 1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ink.pt", "ink.safetensors"]
    assert hnetkit.load(tmp_path / "ink.pt").content_hash == hnetkit.load(tmp_path / "ink.safetensors").content_hash
