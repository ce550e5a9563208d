"""Every variant that programs have written: read as what it is, warned about where it contradicts itself."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import networks

import hnetkit
from hnetkit.errors import DamagedFile, FileRefused, NotAHypernetwork, UnsupportedNetwork, UsageError
from hnetkit.formats.activations import NAMES
from hnetkit.network import MemorySource

QUIET = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def load(tmp_path: Path, content: Any, container: Any = "zip") -> hnetkit.Hypernetwork:
    return hnetkit.load(networks.save_pt(content, tmp_path / "net.pt", container))


def oddities(net: hnetkit.Hypernetwork) -> list[str]:
    """Warnings, less the one about the small widths of these tests."""
    return [warning for warning in net.warnings if "contexts of width" not in warning]


@QUIET
@given(
    structure=st.lists(st.sampled_from([0.5, 1.5, 2, 3]), min_size=1, max_size=3),
    activation=st.sampled_from([None, "linear", *sorted(NAMES)]),
    layer_norm=st.booleans(),
    activate_output=st.booleans(),
    dropped=st.booleans(),
    container=st.sampled_from(["zip", "legacy"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_any_build_is_read_as_it_was_built_and_survives_conversion(
    tmp_path: Path,
    structure: list[float],
    activation: str | None,
    layer_norm: bool,
    activate_output: bool,
    dropped: bool,
    container: str,
    dtype: torch.dtype,
) -> None:
    full = [1, *structure, 1]
    dropout = [0, *[0.2] * len(structure), 0] if dropped else None
    content = networks.a1111_network(
        (8, 12), full, activation, layer_norm=layer_norm, activate_output=activate_output, dropout=dropout, dtype=dtype
    )
    net = load(tmp_path, content, container)
    assert oddities(net) == []
    assert net.layer_structure == full
    assert net.activation == (None if activation == "linear" else activation)
    assert net.layer_norm == layer_norm
    assert net.activate_output == activate_output
    assert net.dropout == [0.0, *(dropout or [0] * len(full))[1:]]
    for width, side, key, ref in net.each_tensor():
        assert torch.equal(ref.torch(), content[width]["kv".index(side)][key])
    hnetkit.save(net, tmp_path / "net.safetensors", overwrite=True)
    again = hnetkit.load(tmp_path / "net.safetensors")
    assert again.metadata == net.metadata
    assert again.content_hash == net.content_hash
    assert again.warnings == net.warnings


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@QUIET
@given(value=plain, key=st.text(max_size=20).filter(lambda key: not key.isdigit()))
def test_metadata_survives_both_conversions_with_its_types(tmp_path: Path, key: str, value: Any) -> None:
    reserved = {"layer_structure", "activation_func", "dropout_structure", "skip_connection", "optimizer_state_dict"}
    if key in reserved | {"state_dict", "use_dropout", "is_layer_norm", "activate_output", "last_layer_dropout"}:
        return
    net = load(tmp_path, networks.a1111_network((8,), **{}) | {key: value})
    hnetkit.save(net, tmp_path / "a.safetensors", overwrite=True)
    hnetkit.save(hnetkit.load(tmp_path / "a.safetensors"), tmp_path / "b.pt", overwrite=True)
    assert repr(hnetkit.load(tmp_path / "b.pt").metadata[key]) == repr(net.metadata[key]) == repr(value)


def test_what_we_write_is_read_by_torch_without_its_unsafe_mode_and_has_three_globals(tmp_path: Path) -> None:
    from picklescan.scanner import scan_file_path

    content = networks.a1111_network((8,), (1, 2, 1), "relu")
    hnetkit.save(load(tmp_path, content), tmp_path / "ours.pt")
    read = torch.load(tmp_path / "ours.pt", weights_only=True)
    assert list(read) == list(content)
    assert all(torch.equal(read[8][i][k], t) for i in (0, 1) for k, t in content[8][i].items())
    assert isinstance(read[8], tuple)
    found = scan_file_path(str(tmp_path / "ours.pt"))
    names = {f"{g.module}.{g.name}" for g in found.globals}
    assert names == {"collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch.FloatStorage"}
    assert found.issues_count == 0


def test_what_we_write_passes_the_name_check_of_the_original(tmp_path: Path) -> None:
    import re
    import zipfile

    hnetkit.save(load(tmp_path, networks.a1111_network((8,))), tmp_path / "ours.pt")
    with zipfile.ZipFile(tmp_path / "ours.pt") as archive:
        names = archive.namelist()
    assert all(re.fullmatch(r"[^/]+/(data\.pkl|data/\d+|version)", name) for name in names)


def test_the_same_content_has_one_hash_in_every_container_and_under_every_name(tmp_path: Path) -> None:
    content = networks.a1111_network((8,), (1, 2, 1), "relu")
    files = [
        networks.save_pt(content, tmp_path / "a.pt"),
        networks.save_pt({**content, "name": "other", "step": 7}, tmp_path / "b.pt", "legacy"),
        networks.save_pt(dict(reversed(content.items())), tmp_path / "c.pt"),
    ]
    assert len({hnetkit.load(file).content_hash for file in files}) == 1


@pytest.mark.parametrize("change", ["weight", "activation", "output", "sides"])
def test_another_content_has_another_hash(tmp_path: Path, change: str) -> None:
    content = networks.a1111_network((8,), (1, 2, 1), "relu")
    before = load(tmp_path, content).content_hash
    if change == "weight":
        content[8][0]["linear.0.weight"][0, 0] += 1
    elif change == "activation":
        content["activation_func"] = "tanh"
    elif change == "output":
        content["activate_output"] = True
    else:
        content[8] = content[8][::-1]
    assert load(tmp_path, content).content_hash != before


def test_novelais_names_and_no_metadata_at_all(tmp_path: Path) -> None:
    sides = networks.a1111_network((8,))[8]
    old = tuple(
        OrderedDict((k.replace("linear.0", "linear1").replace("linear.1", "linear2"), t) for k, t in s.items())
        for s in sides
    )
    net = load(tmp_path, {8: old})
    assert (net.layer_structure, net.activation, net.metadata) == ([1, 2, 1], None, {})
    assert net.content_hash == load(tmp_path, {8: sides}).content_hash


def test_what_stands_around_a_state_dict_is_said_of_the_network_in_it(tmp_path: Path) -> None:
    content = networks.a1111_network((8,), activation="relu", name="ink", step=4000)
    mlps = {8: content.pop(8)}
    net = load(tmp_path, {"state_dict": mlps, **content, "author": "me", "ema": torch.ones(2)})
    assert (net.activation, net.step, net.metadata["author"]) == ("relu", 4000, "me")
    assert net.not_carried == ("ema",)
    both = load(tmp_path, {"state_dict": {**mlps, **content}, "step": 5000})
    assert both.step == 4000
    assert both.not_carried == ("step",), "what is said twice is named"


@pytest.mark.parametrize("form", ["list", "text width", "state_dict", "numpy step"])
def test_forms_that_other_programs_wrote(tmp_path: Path, form: str) -> None:
    content = networks.a1111_network((8,), (1, 2, 1), "relu")
    if form == "list":
        content[8] = list(content[8])
    elif form == "text width":
        content["8"] = content.pop(8)
    elif form == "state_dict":
        content = {"state_dict": content}
    else:
        content["step"] = np.int64(4000)
    net = load(tmp_path, content)
    assert net.widths == [8]
    assert net.activation == "relu"
    if form == "numpy step":
        assert net.step == 4000
    if form in ("text width", "state_dict"):
        assert len(oddities(net)) == 1


def test_the_version_numbers_that_torch_modules_leave_are_read_over(tmp_path: Path) -> None:
    sides = tuple(networks.sequential(8, activation="relu").state_dict(prefix="linear.") for _ in "kv")
    assert all(hasattr(side, "_metadata") for side in sides)
    for container in ("zip", "legacy"):
        assert load(tmp_path, {8: sides, "activation_func": "relu"}, container).layer_structure == [1, 2, 1]


def test_a_slope_under_another_activation_is_a_warning(tmp_path: Path) -> None:
    content = networks.a1111_network((8,), (1, 2, 1), "prelu") | {"activation_func": "relu"}
    net = load(tmp_path, content)
    assert net.activation == "prelu"
    assert any("activation_func is relu, but the tensors are those of prelu" in warning for warning in net.warnings)


def test_a_look_alike_that_asks_for_more_says_so(tmp_path: Path) -> None:
    from support import hostile_files

    asks = hostile_files.zip_of(
        b"\x80\x02}" + hostile_files.text("a.lora_up.weight") + hostile_files.CALL_SYSTEM + b"s."
    )
    (tmp_path / "x.pt").write_bytes(asks)
    with pytest.raises(NotAHypernetwork, match=r"a LoRA, not a hypernetwork; it asks for posix\.system"):
        hnetkit.load(tmp_path / "x.pt")


def test_a_fork_with_one_layer_and_one_without_first_bias(tmp_path: Path) -> None:
    single = OrderedDict({"linear.weight": torch.ones(8, 8), "linear.bias": torch.ones(8)})
    double = OrderedDict(
        {"linear1.weight": torch.ones(2, 8), "linear2.weight": torch.ones(8, 2), "linear2.bias": torch.ones(8)}
    )
    assert load(tmp_path, {8: (single, single)}).layer_structure == [1, 1]
    net = load(tmp_path, {8: (double, double)})
    assert net.layer_structure == [1, 0.25, 1]
    assert net.mlps[8].key.stages[0].bias is None


def test_an_optimizer_inside_is_named_as_not_carried(tmp_path: Path) -> None:
    net = load(tmp_path, networks.a1111_network((8,)) | {"optimizer_state_dict": {"state": {0: torch.ones(3)}}})
    assert net.not_carried == ("optimizer_state_dict",)
    assert "optimizer_state_dict" not in net.metadata


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("layer_structure", [1, 4, 1], "layer_structure is [1, 4, 1], the tensors are [1, 2, 1]"),
        ("is_layer_norm", True, "is_layer_norm is True, the tensors say False"),
        ("activation_func", "linear", "its layers are at [0, 2], its metadata would put them at [0, 1]"),
        ("dropout_structure", [0, 0.1], "dropout_structure is [0, 0.1], the tensors have 2 layers"),
    ],
)
def test_a_contradiction_is_a_warning_that_names_both_sides(tmp_path: Path, key: str, value: Any, said: str) -> None:
    content = networks.a1111_network((8,), (1, 2, 1), "relu") | {key: value}
    assert any(said in warning for warning in load(tmp_path, content).warnings)


@pytest.mark.parametrize("stated", ["missing", None])
def test_the_output_is_activated_where_nothing_is_stated_and_not_where_none_is(tmp_path: Path, stated: Any) -> None:
    content = networks.a1111_network((8,), (1, 2, 1), "relu") | {"activate_output": stated}
    if stated == "missing":
        del content["activate_output"]
    net = load(tmp_path, content)
    assert net.activate_output == (stated == "missing")
    assert any("activate_output is missing" in warning for warning in net.warnings) == (stated == "missing")


@pytest.mark.parametrize(
    "name", ["glu", "threshold", "multiheadattention", "softmax", "softmin", "logsoftmax", "softmax2d"]
)
def test_activations_that_cannot_be_computed_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedNetwork, match=f"activation {name} cannot"):
        load(tmp_path, networks.a1111_network((8,)) | {"activation_func": name})


def test_a_misspelt_activation_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedNetwork, match="nearest is leakyrelu"):
        load(tmp_path, networks.a1111_network((8,)) | {"activation_func": "LeakyReLu6"})


def test_skip_connections_are_refused_by_name(tmp_path: Path) -> None:
    side = OrderedDict({"linear.0.linear.0.weight": torch.ones(8, 8)})
    for content in ({8: (side, side)}, networks.a1111_network((8,)) | {"skip_connection": True}):
        with pytest.raises(UnsupportedNetwork, match="skip connections"):
            load(tmp_path, content)


def test_an_activation_behind_the_layer_norm_is_refused_by_name(tmp_path: Path) -> None:
    norm = {"weight": torch.ones(16), "bias": torch.ones(16)}
    side = OrderedDict({"linear.0.weight": torch.ones(16, 8), "linear.0.bias": torch.ones(16)})
    side |= {f"linear.1.{k}": t for k, t in norm.items()} | {"linear.3.weight": torch.ones(8, 16)}
    with pytest.raises(UnsupportedNetwork, match="after the layer norm"):
        load(tmp_path, {8: (side, side), "activation_func": "relu", "is_layer_norm": True})


def test_shapes_that_do_not_chain_are_damage(tmp_path: Path) -> None:
    side = OrderedDict({"linear.0.weight": torch.ones(16, 8), "linear.1.weight": torch.ones(8, 12)})
    with pytest.raises(DamagedFile, match="layer 2 takes 12 values, but gets 16"):
        load(tmp_path, {8: (side, side)})


LOOK_ALIKES: dict[str, Any] = {
    "lora": {"lora_unet_down_blocks_0.lora_down.weight": torch.ones(4, 8)},
    "lycoris": {"lora_unet_down_blocks_0.hada_w1_a": torch.ones(4, 8)},
    "textual-inversion": {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}},
    "vae": {"state_dict": {"encoder.conv_in.weight": torch.ones(1), "decoder.conv_in.weight": torch.ones(1)}},
    "checkpoint": {"state_dict": {"model.diffusion_model.out.2.bias": torch.ones(4)}},
    "sam": {"mask_decoder.output_hypernetworks_mlps.0.layers.0.weight": torch.ones(2, 2)},
    "aesthetic-gradient": torch.ones(1, 768),
    "optimizer": {"state": {}, "param_groups": []},
}


@pytest.mark.parametrize("kind", list(LOOK_ALIKES))
def test_look_alikes_are_named_from_their_content(tmp_path: Path, kind: str) -> None:
    with pytest.raises(NotAHypernetwork) as caught:
        load(tmp_path, LOOK_ALIKES[kind])
    assert caught.value.kind == kind


@pytest.mark.parametrize("text", ['[("ink", 0.2), ("wash", 0.4)]', '{"ink": 0.8, "wash": 0.1}', "ink", '["ink", []]'])
@pytest.mark.parametrize("name", ["mix.hns", "MIX.HNS"])
def test_a_mix_of_networks_for_an_extension_is_named_with_what_to_do(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(NotAHypernetwork, match="aria1th's extension") as caught:
        hnetkit.load(tmp_path / name)
    assert caught.value.kind == "network-mix"


@pytest.mark.parametrize("kind", ["lora", "checkpoint", "vae", "textual-inversion"])
def test_foreign_safetensors_are_named_from_their_content(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    names = {
        "lora": "lora_te_text_model.lora_up.weight",
        "checkpoint": "model.diffusion_model.x",
        "vae": "first_stage_model.encoder.x",
        "textual-inversion": "emb_params",
    }
    save_file({names[kind]: torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(NotAHypernetwork) as caught:
        hnetkit.load(tmp_path / "x.safetensors")
    assert caught.value.kind == kind


def test_our_safetensors_are_read_by_the_library_and_spell_the_topology_out(tmp_path: Path) -> None:
    from safetensors import safe_open

    content = networks.a1111_network((8, 12), (1, 2, 1), "relu", activate_output=True)
    del content["activate_output"]
    net = load(tmp_path, content)
    hnetkit.save(net, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("8.v.linear.2.weight"), content[8][1]["linear.2.weight"])
        header = file.metadata()
    assert header["format"] == "hnetkit.hypernetwork"
    assert json.loads(header["topology"])["activate_output"] is True
    assert json.loads(header["layer_structure"]) == [1, 2, 1]
    assert len(header["source_sha256"]) == 64


def test_half_precision_conversion_rounds_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    content = networks.a1111_network((8,))
    net = load(tmp_path, content)
    hnetkit.save(net, tmp_path / "half.safetensors", dtype="fp16")
    half = hnetkit.load(tmp_path / "half.safetensors")
    assert half.dtype == "fp16"
    assert torch.equal(half.mlps[8].key.stages[0].weight.torch(), content[8][0]["linear.0.weight"].half())
    content[8][0]["linear.0.weight"][0, 0] = 1e6
    with pytest.raises(FileRefused, match=r"8\.k\.linear\.0\.weight: a weight of 1e\+06 does not fit fp16"):
        hnetkit.save(load(tmp_path, content), tmp_path / "no.safetensors", dtype="fp16")
    assert not (tmp_path / "no.safetensors").exists()


@pytest.mark.parametrize(
    ("widths", "trained", "base"),
    [
        ((320, 640, 768, 1280), None, "sd1"),
        ((320, 640, 1024, 1280), None, "sd2"),
        ((768, 1024), 768, "sd1"),
        ((768, 1024), 1024, "sd2"),
        ((768, 1024), None, "unknown"),
        ((320, 640, 1280), None, "sd1-or-sd2"),
        ((640, 1280, 2048), None, "sdxl"),
        ((8,), None, "unknown"),
    ],
)
def test_the_base_model_is_told_from_widths_and_training(
    tmp_path: Path, widths: tuple[int, ...], trained: int | None, base: str
) -> None:
    content = networks.a1111_network(widths, (1, 0.125, 1))
    for width in widths:
        for side in content[width] if trained not in (None, width) else ():
            side["linear.0.bias"].zero_()
            side["linear.1.bias"].zero_()
    assert load(tmp_path, content).base_model == base


def test_an_output_activation_survives_beside_mlps_whose_tensors_show_theirs(tmp_path: Path) -> None:
    """Only the second width leaves it open; the file does not say, and then AUTOMATIC1111 activates."""
    normed, plain = (networks.sequential(width, (1, 1), "relu", layer_norm=width == 4) for width in (4, 6))
    sides = {4: (networks.state_dict(normed),) * 2, 6: (networks.state_dict(plain),) * 2}
    torch.save({**sides, "activation_func": "relu"}, tmp_path / "a.pt")
    net = hnetkit.load(tmp_path / "a.pt")
    hnetkit.save(net, tmp_path / "b.safetensors")
    again = hnetkit.load(tmp_path / "b.safetensors")
    assert [n.mlps[6].key.stages[-1].activation for n in (net, again)] == ["relu", "relu"]
    assert again.content_hash == net.content_hash


def test_memory_that_ends_before_a_tensor_does_is_not_written_as_one() -> None:
    with pytest.raises(ValueError, match="are not in 3 bytes"):
        MemorySource(bytes(3)).read_at(0, 8)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "claim",
    [{"a": b"x"}, {1: 2}, {"a": 2**10_000}, {"a": {1.5: 2}}, {"a\ud800": 1}, {"a": "x" * 400_000}],
    ids=["bytes", "number", "large number", "key", "surrogate", "long"],
)
def test_metadata_that_no_file_gives_back_is_refused_before_anything_is_written(
    claim: dict[Any, Any], suffix: str, tmp_path: Path
) -> None:
    net = hnetkit.load(networks.network_file(tmp_path))
    with pytest.raises((UsageError, FileRefused), match="metadata"):
        hnetkit.save(replace(net, metadata={**net.metadata, **claim}), tmp_path / f"out{suffix}")
    assert not (tmp_path / f"out{suffix}").exists()
