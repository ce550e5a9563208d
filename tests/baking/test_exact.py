"""Networks without an activation leave hnetkit exactly: other programs' pictures are hnetkit's own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.checkpoints import save_checkpoint, save_configurations
from support.killed import Killed, killed_at
from support.lora_appliers import apply
from support.pipelines import draw, tiny_sd
from torch import Tensor

import hnetkit
from hnetkit.baking.api import Baked, bake
from hnetkit.errors import FileRefused, OutputExists, UsageError
from hnetkit.generate.loading import checkpoints
from hnetkit.generate.loading.baked import METADATA
from hnetkit.generate.model import load_model
from hnetkit.network import Hypernetwork, MLPPair, ResidualMLP, TensorRef
from hnetkit.runtime.strength import Strength

STACKS = {
    "one": [0.8],
    "two": [0.8, -0.5],
    "sides": [Strength(0.8, self_k=0.3, cross_v=0), Strength(0.6, cross_k=-0.4, self_v=1.2)],
    "blocks": [Strength(0.8, blocks={"up_blocks": 0.5, "down_blocks.0": 0}), 0.7],
}
TARGETS = [("diff", "comfyui"), ("diff", "a1111"), ("lora", "comfyui"), ("lora", "diffusers"), ("checkpoint", None)]


def with_networks(pipe: Any, networks: Sequence[Hypernetwork], strengths: Sequence[float | Strength]) -> Tensor:
    """Returns what hnetkit draws; the networks stay loaded."""
    for network, strength in zip(networks, strengths, strict=False):
        hnetkit.load_hypernetwork(pipe, network, strength=strength)
    return draw(pipe)


def with_file(baked: Baked, folder: Path, left_out: str = "?") -> Tensor:
    """Returns what another program draws with what was baked, alone; tensors whose name ends in `left_out` are not."""
    if baked.to == "checkpoint":
        return draw(StableDiffusionPipeline.from_pretrained(baked.save(folder / "copy")))
    path = baked.save(folder / "baked.safetensors")
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.endswith(left_out)}
    fresh = tiny_sd()
    if baked.program == "diffusers":
        fresh.load_lora_weights(tensors)
    else:
        apply(fresh, tensors, str(baked.program))
    return draw(fresh)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    """A model whose files are known."""
    tiny_sd().save_pretrained(tmp_path / "model")
    return load_model(tmp_path / "model", device="cpu")


@pytest.mark.parametrize("strengths", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize(("to", "program"), TARGETS)
def test_pictures_of_the_file_alone_are_those_with_the_networks(
    to: Any, program: Any, strengths: list[Any], model: Any, tint: Hypernetwork, shade: Hypernetwork, tmp_path: Path
) -> None:
    bare = draw(tiny_sd())
    expected = with_networks(model.pipe, [tint, shade], strengths)
    baked = bake(model, to=to, program=program)
    found = with_file(baked, tmp_path)
    assert (expected - bare).abs().max() > 0.05
    assert (found - expected).abs().max() < 1e-5
    assert baked.is_exact
    assert baked.pictures is None
    assert set(baked.errors.values()) == {0.0}
    assert torch.equal(draw(model.pipe), expected)  # the stack is active as before


@pytest.mark.parametrize(("to", "program"), TARGETS[:-1])
def test_without_the_constant_on_v_pictures_are_others(
    to: Any, program: Any, pipe: Any, tint: Hypernetwork, tmp_path: Path
) -> None:
    expected = with_networks(pipe, [tint], [0.8])
    baked = bake(pipe, to=to, program=program)
    without = with_file(baked, tmp_path, ".bias" if program == "diffusers" else ".diff_b")
    assert (without - expected).abs().max() > 1e-2


def test_a_lora_has_the_rank_of_its_networks(pipe: Any, make: Callable[..., Hypernetwork]) -> None:
    narrow = make("narrow", structure=(1, 0.125, 1), activation="linear", seed=5)
    with_networks(pipe, [narrow], [1.0])
    baked = bake(pipe, to="lora", program="comfyui")
    ranks = {layer.width: change.rank for (layer, _), change in baked.changes.items()}
    assert ranks == {8: 1, 20: 2, 24: 3}
    for name, tensor in bake(pipe, to="lora").tensors.items():  # diffusers: one rank
        assert "lora_A" not in name or tensor.shape[0] == 3


def test_a_network_without_constants_needs_no_bias(
    pipe: Any, make: Callable[..., Hypernetwork], tmp_path: Path
) -> None:
    network = make("plain", activation=None, seed=6, structure=(1, 1))
    quiet = without_biases(network)
    expected = with_networks(pipe, [quiet], [0.7])
    baked = bake(pipe, to="lora", program="a1111")
    assert {name.rpartition(".")[2] for name in baked.tensors} == {"weight", "alpha"}
    assert (with_file(baked, tmp_path) - expected).abs().max() < 1e-5


def test_a_lora_that_cannot_carry_the_constant_is_refused(pipe: Any, tint: Hypernetwork) -> None:
    with_networks(pipe, [tint], [0.7])
    with pytest.raises(UsageError, match="carry no bias") as refusal:
        bake(pipe, to="lora", program="a1111").tensors  # noqa: B018
    assert refusal.value.command_hint == "--to diff --for a1111"


def test_a_checkpoint_in_one_file_is_copied_with_the_stack_in_it(
    tint: Hypernetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CONFIGURATIONS", save_configurations(tmp_path / "configurations", sd1=tiny_sd()))
    original = save_checkpoint(tiny_sd().to(dtype=torch.float32), tmp_path / "model.safetensors", metadata={"a": "b"})
    tiny_sd().tokenizer.save_pretrained(tmp_path / "tokenizer")
    before = original.read_bytes()
    model = load_model(original, device="cpu", tokenizer=tmp_path / "tokenizer")
    expected = with_networks(model.pipe, [tint], [0.8])
    (tmp_path / "model.yaml").write_text("model: {}\n")  # what the UNet predicts
    copy = bake(model, to="checkpoint").save(tmp_path / "baked.safetensors")
    assert (tmp_path / "baked.yaml").read_bytes() == (tmp_path / "model.yaml").read_bytes()
    bake(model, to="checkpoint").save(tmp_path / "baked.safetensors", overwrite=True)
    (tmp_path / "mine.yaml").write_text("of a person\n")
    with pytest.raises(OutputExists, match=r"mine\.yaml: there, and not what lies beside the model"):
        bake(model, to="checkpoint").save(tmp_path / "mine.safetensors", overwrite=True)
    assert (tmp_path / "mine.yaml").read_text() == "of a person\n"
    assert not (tmp_path / "mine.safetensors").exists()
    before_it_was_large = (tmp_path / "model.yaml").read_bytes()
    os.truncate(tmp_path / "model.yaml", 2 << 20)
    bake(model, to="checkpoint").save(tmp_path / "without.safetensors")
    assert not (tmp_path / "without.yaml").exists()
    (tmp_path / "model.yaml").write_bytes(before_it_was_large)
    if os.name != "nt":
        (tmp_path / "private").mkdir()
        (tmp_path / "model.yaml").rename(tmp_path / "private" / "notes")
        (tmp_path / "model.yaml").symlink_to(tmp_path / "private" / "notes")
        with pytest.raises(FileRefused, match=r"model\.yaml: a link to a file elsewhere, which is not copied"):
            bake(model, to="checkpoint").save(tmp_path / "other.safetensors")
        assert not (tmp_path / "other.yaml").exists()
    found = load_model(copy, device="cpu", tokenizer=tmp_path / "tokenizer")
    assert (draw(found.pipe) - expected).abs().max() < 1e-5
    tiny_sd(seed=1).save_pretrained(tmp_path / "another")  # of the same configuration
    single = StableDiffusionPipeline.from_single_file(
        copy, config=str(tmp_path / "another"), local_files_only=True, safety_checker=None
    )
    assert (draw(single) - expected).abs().max() < 1e-5
    assert original.read_bytes() == before
    old, new = load_file(original), load_file(copy)
    assert old.keys() == new.keys()
    changed = {name.rpartition("attn")[2][2:] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"to_k.weight", "to_v.weight", "to_out.0.bias"}
    with safe_open(copy, "pt") as file:
        said = file.metadata()
    assert said["a"] == "b"
    assert json.loads(said[METADATA])["networks"][0]["content_hash"] == tint.content_hash


def test_a_copy_of_a_folder_leaves_other_variants_out(tint: Hypernetwork, tmp_path: Path) -> None:
    tiny_sd().save_pretrained(tmp_path / "model")
    tiny_sd().unet.save_pretrained(tmp_path / "model" / "unet", variant="fp16")
    (tmp_path / "model" / "v1-5-pruned.safetensors").write_bytes(b"another form of the same model")
    before = contents(tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    with_networks(model.pipe, [tint], [0.8])
    copy = bake(model, to="checkpoint").save(tmp_path / "copy")
    weights = [path.name for path in (copy / "unet").iterdir()]
    assert sorted(weights) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert not (copy / "v1-5-pruned.safetensors").exists()
    assert contents(tmp_path / "model") == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("named", ["../../there", "{}/there", "..", "."])
def test_a_part_that_leads_out_of_a_model_is_neither_read_nor_written(
    named: str, tint: Hypernetwork, tmp_path: Path
) -> None:
    for place in ("a/b/model", "c/d"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "a" / "there").mkdir()
    (tmp_path / "a" / "there" / "evil.desktop").write_text("[Desktop Entry]")
    (tmp_path / "a" / "b" / "secret.txt").write_text("secret")
    model = tmp_path / "a" / "b" / "model"
    tiny_sd().save_pretrained(model)
    index = json.loads((model / "model_index.json").read_text())
    index[named.format(tmp_path / "a")] = ["diffusers", "AutoencoderKL"]
    (model / "model_index.json").write_text(json.dumps(index))
    loaded = load_model(model, device="cpu")
    with_networks(loaded.pipe, [tint], [0.8])
    copy = bake(loaded, to="checkpoint").save(tmp_path / "c" / "d" / "copy")
    parts = {path.name for path in model.iterdir()}
    assert {path.name for path in copy.iterdir()} == parts
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("evil.desktop")) == [
        "a/there/evil.desktop"
    ]
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("secret.txt")) == ["a/b/secret.txt"]


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
@pytest.mark.parametrize("place", ["scheduler/notes.txt", "notes.json", "feature_extractor"])
def test_what_a_link_in_a_model_leads_to_elsewhere_is_not_copied(
    place: str, tint: Hypernetwork, tmp_path: Path
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "diary.txt").write_text("secret")
    tiny_sd().save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (tmp_path / "model" / "model_index.json").write_text(json.dumps(index))
    target = tmp_path / "private" if place == "feature_extractor" else tmp_path / "private" / "diary.txt"
    (tmp_path / "model" / place).symlink_to(target)
    model = load_model(tmp_path / "model", device="cpu")
    with_networks(model.pipe, [tint], [0.8])
    with pytest.raises(FileRefused, match="a link to a file elsewhere, which is not copied"):
        bake(model, to="checkpoint").save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
def test_a_model_in_the_cache_of_the_hub_is_copied_with_what_its_links_lead_to(
    tint: Hypernetwork, tmp_path: Path
) -> None:
    """There a model is a folder of links to files that are called by their hashes."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1234", tmp_path / "models--a--b" / "blobs"
    tiny_sd().save_pretrained(snapshot)
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in snapshot.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    model = load_model(snapshot, device="cpu")
    with_networks(model.pipe, [tint], [0.8])
    copy = bake(model, to="checkpoint").save(tmp_path / "copy")
    assert not any(path.is_symlink() for path in copy.rglob("*"))
    assert (copy / "unet" / "config.json").read_bytes() == (snapshot / "unet" / "config.json").read_bytes()


@pytest.mark.parametrize("shard", ["400kB", "90kB"])
def test_weights_in_shards_are_copied_with_the_stack_in_them(shard: str, tint: Hypernetwork, tmp_path: Path) -> None:
    tiny_sd().save_pretrained(tmp_path / "model", max_shard_size=shard)
    model = load_model(tmp_path / "model", device="cpu")
    expected = with_networks(model.pipe, [tint], [0.8])
    copy = bake(model, to="checkpoint").save(tmp_path / "copy")
    assert (draw(StableDiffusionPipeline.from_pretrained(copy)) - expected).abs().max() < 1e-5


def test_a_shard_without_weights_is_copied_as_it_is(tint: Hypernetwork, tmp_path: Path) -> None:
    tiny_sd().save_pretrained(tmp_path / "model")
    first, second = (f"diffusion_pytorch_model-0000{number}-of-00002.safetensors" for number in (1, 2))
    unet = tmp_path / "model" / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / first)
    save_file({}, unet / second)
    model = load_model(tmp_path / "model", device="cpu")
    with_networks(model.pipe, [tint], [0.8])
    copy = bake(model, to="checkpoint").save(tmp_path / "copy")
    assert load_file(copy / "unet" / second) == {}


def test_what_is_there_is_kept(tint: Hypernetwork, model: Any, tmp_path: Path) -> None:
    with_networks(model.pipe, [tint], [0.8])
    (tmp_path / "copy").mkdir()
    with pytest.raises(OutputExists):
        bake(model, to="checkpoint").save(tmp_path / "copy", overwrite=True)
    baked = bake(model, to="lora")
    path = baked.save(tmp_path / "out.safetensors")
    first = path.read_bytes()
    with pytest.raises(OutputExists):
        baked.save(path)
    assert baked.save(path, overwrite=True).read_bytes() == first


def test_a_killed_copy_leaves_the_model_as_it_was_and_no_copy(
    tint: Hypernetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_sd(least=True).save_pretrained(tmp_path / "model")
    before = contents(tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    with_networks(model.pipe, [tint], [0.8])
    baked = bake(model, to="checkpoint")
    with killed_at(monkeypatch, 10_000) as made:
        whole = contents(baked.save(tmp_path / "whole"))
    for number in range(1, len(made) + 1):
        for after in (False, True):
            with killed_at(monkeypatch, number, after=after), suppress(Killed):
                baked.save(tmp_path / f"copy{number}{after}")
            copy = tmp_path / f"copy{number}{after}"
            assert not copy.exists() or contents(copy) == whole
    assert copy.exists()  # the last change is that of its name
    assert contents(tmp_path / "model") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_biases(network: Hypernetwork) -> Hypernetwork:
    """Returns the same network with biases of 0."""

    def quiet(mlp: ResidualMLP) -> ResidualMLP:
        stages = tuple(replace(stage, bias=TensorRef.of(torch.zeros(stage.bias.shape))) for stage in mlp.stages)
        return ResidualMLP(stages, mlp.tensors)

    mlps = {width: MLPPair(*map(quiet, pair)) for width, pair in network.mlps.items()}
    return replace(network, mlps=mlps)
