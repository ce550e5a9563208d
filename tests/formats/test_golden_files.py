"""Files written by the original implementation: what they say, and that nothing of it is lost in a round trip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hnetkit
from hnetkit.network import Hypernetwork

NAMES = (
    *("nai_plain", "linear_121", "relu_121", "relu_121_missing_activate_output", "swish_1221", "mish_ln"),
    *("softsign_dropout", "relu_dropout_last", "tanh_ln_dropout_out", "elu_frac", "gelu_15"),
    *("leaky_legacy_container", "sigmoid_fp16", "silu_bf16", "one_width_only", "deep", "ckpt_ext"),
    *("w320_swish", "w320_relu_ln"),
)
SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def golden(shared: Path, name: str) -> tuple[dict[str, object], Hypernetwork]:
    folder = shared / "data" / "golden"
    case = next(c for c in json.loads((folder / "cases.json").read_text())["files"] if c["name"] == name)
    return case, hnetkit.load(folder / case["file"])


def exact(value: object) -> object:
    """A value with its type spelled out at every level: 1, 1.0 and True differ, and so do tuples and lists."""
    if isinstance(value, list | tuple):
        return type(value).__name__, [exact(item) for item in value]
    return type(value).__name__, value


def tensors(net: Hypernetwork) -> dict[tuple[int, str, str], tuple[str, tuple[int, ...], bytes]]:
    return {(width, side, key): (ref.dtype, ref.shape, ref.read()) for width, side, key, ref in net.each_tensor()}


def test_every_golden_file_is_in_this_list(shared: Path) -> None:
    cases = json.loads((shared / "data" / "golden" / "cases.json").read_text())["files"]
    assert {case["name"] for case in cases} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_file_says_what_its_maker_said(shared: Path, name: str) -> None:
    case, net = golden(shared, name)
    assert net.widths == case["widths"]
    assert net.layer_structure == (case["layer_structure"] or [1, 2, 1])
    assert (net.activation or "linear") == (case["activation_func"] or "linear")
    assert net.layer_norm == case["layer_norm"]
    assert any(net.dropout) == case["dropout"]
    assert net.dtype == SHORT[str(case["dtype"])]
    assert net.step == case["step"]
    assert net.format == {"zip": "pt-zip", "legacy": "pt-legacy"}[str(case["container"])]
    stated = case["activate_output_in_file"]
    assert net.activate_output == (True if stated is None else stated)


@pytest.mark.parametrize("name", NAMES)
def test_to_safetensors_and_back_loses_nothing(shared: Path, tmp_path: Path, name: str) -> None:
    _, net = golden(shared, name)
    hnetkit.save(net, tmp_path / "one.safetensors")
    middle = hnetkit.load(tmp_path / "one.safetensors")
    hnetkit.save(middle, tmp_path / "two.pt")
    back = hnetkit.load(tmp_path / "two.pt")
    assert tensors(middle) == tensors(back) == tensors(net)
    assert list(back.metadata) == list(middle.metadata) == list(net.metadata)
    assert [exact(v) for v in back.metadata.values()] == [exact(v) for v in net.metadata.values()]
    assert middle.content_hash == back.content_hash == net.content_hash
    assert back.activate_output == net.activate_output
