"""Model folders of strangers: what they name is not what is run, and what they state is not what is made."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.pipelines import draw

from hnetkit import demo
from hnetkit.errors import FileRefused, HnetkitError, ModelNotUsable
from hnetkit.generate.loading.defaults import read_defaults
from hnetkit.generate.loading.diffusers_folder import SCHEDULERS, download_pipeline, part_weights
from hnetkit.generate.model import load_model


@pytest.fixture
def folder(sd_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(sd_folder, tmp_path / "model"))
    # transformers 4 writes it too, and what it says counts before tokenizer_config.json
    (folder / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    return folder


def change(path: Path, **values: Any) -> None:
    """Writes other values into a JSON file."""
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**said, **values}))


def _without_plain_vocabulary(folder: Path) -> None:
    """Takes away what counts before tokenizer.json; transformers 5 does not write it."""
    (folder / "tokenizer" / "vocab.json").unlink(missing_ok=True)


def weights_of(pipe: Any) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


TEXTS = ["a red circle", "A Large  blue\nSTAR!", "<|endoftext|> x <|startoftext|>", "it's 42 (naïve:1.2)", "", "!"]


@pytest.mark.parametrize("name", ["sd_folder", "sdxl_folder", "demo"])
def test_a_folder_is_what_diffusers_loads_of_it(name: str, request: pytest.FixtureRequest) -> None:
    import diffusers
    import transformers

    if name == "demo" and int(transformers.__version__.split(".")[0]) < 5:
        pytest.skip(
            "transformers before 5 fills the demo model's text encoder with random weights: nothing to compare with"
        )
    place = demo.model_folder() if name == "demo" else request.getfixturevalue(name)
    theirs = diffusers.DiffusionPipeline.from_pretrained(place, local_files_only=True)
    pipe = load_model(place, device="cpu").pipe
    ours, expected = weights_of(pipe), weights_of(theirs)
    assert ours.keys() == expected.keys()
    # transformers 4 widens what it loads to fp32
    assert all(torch.equal(ours[key], expected[key].to(ours[key].dtype)) for key in ours)
    assert not any(
        tensor.is_meta for part in ("unet", "vae", "text_encoder") for tensor in getattr(pipe, part).buffers()
    )
    hidden = ("_name_or_path", "_class_name", "_diffusers_version", "_use_default_values")
    for part in ("unet", "vae", "scheduler"):
        mine, known = (
            {key: value for key, value in dict(getattr(one, part).config).items() if key not in hidden}
            for one in (pipe, theirs)
        )
        assert mine == known
    for part in ("tokenizer", "tokenizer_2"):
        if hasattr(pipe, part):
            mine, known = getattr(pipe, part), getattr(theirs, part)
            for text in TEXTS:
                options = {"padding": "max_length", "truncation": True}
                assert mine(text, **options).input_ids == known(text, **options).input_ids
            assert (len(mine), mine.model_max_length) == (len(known), known.model_max_length)
            assert mine.special_tokens_map == known.special_tokens_map
    assert not pipe.unet.training
    if name == "sd_folder":
        assert torch.equal(draw(pipe), draw(theirs))


def test_no_library_looks_into_a_folder(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ModelMixin", "DiffusionPipeline", "SchedulerMixin"):
        monkeypatch.setattr(f"diffusers.{name}.from_pretrained", None)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", None)
    load_model(sd_folder, device="cpu")


# --- what else a folder names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("feature_extractor", ["transformers", "TimmWrapperModel"]),
        ("feature_extractor", ["transformers", "CLIPProcessor"]),
        ("image_encoder", ["diffusers", "StableDiffusionPipeline"]),
        ("safety_checker", ["evil", "Module"]),
        ("extra", ["transformers", "AutoModel"]),
        ("extra", ["subprocess", "Popen", "x"]),
        ("extra", [["os"], {"system": 1}]),
    ],
)
def test_a_part_that_no_model_has_is_left_out_with_a_word(
    folder: Path, name: str, kind: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    marker = folder / "ran"
    inside = folder / name
    inside.mkdir()
    (inside / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    arguments = {"model_args": {"checkpoint_path": str(inside / "x.bin")}, "auto_map": {"AutoProcessor": "evil.Evil"}}
    for file in ("config.json", "tokenizer_config.json", "preprocessor_config.json", "model_index.json"):
        (inside / file).write_text(json.dumps({"model_type": "timm_wrapper", **arguments}))
    change(folder / "model_index.json", **{name: kind})
    model = load_model(folder, device="cpu")
    (note,) = model.notes
    assert str(folder) in note
    assert name in note
    assert str(kind[0]) in note
    assert not marker.exists()
    assert capfd.readouterr() == ("", "")


def test_the_command_line_says_what_is_left_out_and_asks_nothing(
    folder: Path, tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnetkit.cli import run

    def ask(*_: object) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    change(folder / "model_index.json", image_encoder=["diffusers", "StableDiffusionPipeline"])
    change(folder / "tokenizer" / "tokenizer_config.json", auto_map=None)
    assert run(["generate", "a", "--model", str(folder), "--steps", "1", "--out", str(tmp_path / "a.png")]) == 0
    said = capfd.readouterr()
    assert said.out == f"{tmp_path / 'a.png'}\n"
    assert "its image_encoder (diffusers.StableDiffusionPipeline) is left out" in said.err


def test_the_parts_that_most_models_have_beside_are_left_out_without_a_word(folder: Path) -> None:
    change(
        folder / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=[None, None],
        requires_safety_checker=True,
    )
    model = load_model(folder, device="cpu")
    assert model.notes == ()
    assert model.pipe.safety_checker is None
    assert model.pipe.feature_extractor is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("unet", ["diffusers", "AutoencoderKL"]),
        ("unet", ["diffusers_modules", "UNet2DConditionModel"]),
        ("unet", ["unet.evil", "UNet2DConditionModel"]),
        ("vae", ["diffusers", "StableDiffusionPipeline"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("tokenizer", ["transformers", "AutoTokenizer"]),
        ("scheduler", ["diffusers", "DiffusionPipeline"]),
        ("scheduler", ["diffusers", ["DDIMScheduler"]]),
        ("scheduler", [None, "DDIMScheduler"]),
        ("text_encoder", [None, None]),
        ("tokenizer", "CLIPTokenizer"),
    ],
)
def test_a_part_of_another_class_is_refused_by_name(folder: Path, name: str, kind: Any) -> None:
    change(folder / "model_index.json", **{name: kind})
    with pytest.raises(ModelNotUsable, match=name) as refusal:
        load_model(folder, device="cpu")
    assert refusal.value.hint


def test_every_scheduler_on_the_list_is_there() -> None:
    import diffusers

    assert all(hasattr(diffusers, kind) for kind in SCHEDULERS)


# --- what configurations state


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("unet/config.json", {"_class_name": "AutoencoderKL"}),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("unet/config.json", {"layers_per_block": 100_000}),
        ("unet/config.json", {"layers_per_block": [1, 16]}),
        ("unet/config.json", {"layers_per_block": 16, "transformer_layers_per_block": 32}),
        ("unet/config.json", {"block_out_channels": [8] * 50}),
        ("unet/config.json", {"block_out_channels": [1 << 40, 8]}),
        ("unet/config.json", {"block_out_channels": [8, 1 << 20]}),
        ("unet/config.json", {"cross_attention_dim": 1 << 20}),
        ("unet/config.json", {"sample_size": 65_536}),
        ("unet/config.json", {"sample_size": 8000}),
        ("unet/config.json", {"sample_size": None}),
        ("unet/config.json", {"act_fn": {"os": "system"}}),
        ("unet/config.json", {"act_fn": "x" * 1000}),
        ("unet/config.json", {"down_block_types": ["os.system", "DownBlock2D"]}),
        ("unet/config.json", {"cross_attention_dim": 48}),
        *(
            ("unet/config.json", values)
            for values in (
                *({"layers_per_block": -1}, {"downsample_padding": -1}, {"downsample_padding": None}),
                *({"norm_eps": "x"}, {"norm_eps": [1]}, {"freq_shift": "a"}, {"mid_block_scale_factor": "x"}),
                *({"attention_head_dim": -4}, {"dropout": float("nan")}, {"norm_eps": float("inf")}),
                *({"class_embed_type": "identity"}, {"num_class_embeds": 3}, {"sample_size": []}, {"sample_size": [1]}),
                *({"norm_num_groups": 0.5}, {"downsample_padding": 1e300}, {"attention_head_dim": [4, 0.5]}),
                *({"downsample_padding": 2}, {"down_block_types": ["DownEncoderBlock2D", "CrossAttnDownBlock2D"]}),
            )
        ),
        *(
            ("vae/config.json", values)
            for values in (
                *({"scaling_factor": None}, {"scaling_factor": "1"}, {"scaling_factor": [1]}),
                *({"scaling_factor": float("nan")}, {"scaling_factor": -1}, {"norm_num_groups": -1}),
                *({"norm_num_groups": 0.5}, {"up_block_types": []}, {"up_block_types": ["UpDecoderBlock2D"] * 5}),
            )
        ),
        *(
            ("text_encoder/config.json", values)
            for values in ({"num_attention_heads": -2}, {"eos_token_id": [1]}, {"layer_norm_eps": float("nan")})
        ),
        *(
            ("scheduler/scheduler_config.json", values)
            for values in (
                *({"prediction_type": "banana"}, {"prediction_type": None}, {"prediction_type": ["epsilon"]}),
                *({"timestep_spacing": "x"}, {"beta_start": float("nan")}, {"beta_end": 2}, {"beta_start": 0}),
                *({"trained_betas": []}, {"trained_betas": ["a"]}, {"trained_betas": 0.5}),
            )
        ),
        ("vae/config.json", {"layers_per_block": 100_000}),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}),
        ("vae/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("text_encoder/config.json", {"num_hidden_layers": 100_000}),
        ("text_encoder/config.json", {"num_hidden_layers": 99}),
        ("text_encoder/config.json", {"model_type": "timm_wrapper"}),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("text_encoder/config.json", {"quantization_config": {"load_in_8bit": True}}),
        ("text_encoder/config.json", {"hidden_act": "os.system"}),
        ("text_encoder/config.json", {"vocab_size": 1 << 40}),
        ("text_encoder/config.json", {"vocab_size": 1 << 20, "hidden_size": 1 << 20}),
        ("unet/config.json", {"time_embedding_dim": 1 << 20}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500_000_000}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": "many"}),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 200_000}),
        ("scheduler/scheduler_config.json", {"solver_order": 10**9}),
        ("scheduler/scheduler_config.json", {"_class_name": "DiffusionPipeline"}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}),
        ("tokenizer/tokenizer_config.json", {"bos_token": {"content": 5}}),
        ("tokenizer/vocab.json", {"a": "many"}),
        ("tokenizer/tokenizer.json", {"model": []}),
        ("tokenizer/added_tokens.json", {"a": 1 << 60}),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused_before_anything_is_built(
    folder: Path, file: str, values: dict[str, Any]
) -> None:
    if file == "tokenizer/vocab.json":
        (folder / "tokenizer" / "merges.txt").write_text("")
    if file == "tokenizer/tokenizer.json":
        _without_plain_vocabulary(folder)
    change(folder / file, **values)
    with pytest.raises(ModelNotUsable, match=Path(file).parent.name) as refusal:
        load_model(folder, device="cpu")
    assert refusal.value.hint
    assert "\n" not in str(refusal.value)


def test_what_real_schedulers_and_encoders_say_is_taken(folder: Path) -> None:
    change(
        folder / "scheduler/scheduler_config.json",
        **{"lambda_min_clipped": float("-inf"), "trained_betas": None, "steps_offset": 0, "variance_type": None},
    )
    change(folder / "text_encoder/config.json", eos_token_id=None, torch_dtype="float16", dropout=0.0)
    change(folder / "unet/config.json", upcast_attention=None, mid_block_only_cross_attention=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = load_model(folder, device="cpu")
    assert model.text_encoder(1, "original").encode("a").hidden.shape[0] == 77


@pytest.mark.parametrize("kind", ["LMSDiscreteScheduler", "DPMSolverSDEScheduler"])
def test_a_scheduler_whose_package_is_not_here_lends_its_configuration(folder: Path, kind: str) -> None:
    change(folder / "model_index.json", scheduler=["diffusers", kind])
    change(folder / "scheduler/scheduler_config.json", _class_name=kind, beta_end=0.013)
    assert load_model(folder, device="cpu").scheduler_config["beta_end"] == 0.013


@pytest.mark.parametrize("length", [None, 10**30, 1e30, 500])
def test_a_tokenizer_that_does_not_know_its_window_gets_the_text_encoders(folder: Path, length: float | None) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    said = json.loads(path.read_text())
    said.pop("model_max_length", None)
    path.write_text(json.dumps(said if length is None else {**said, "model_max_length": length}))
    model = load_model(folder, device="cpu")
    assert model.pipe.tokenizer.model_max_length == 77
    assert model.text_encoder(1, "original").encode("a").hidden.shape[0] == 77


@pytest.mark.parametrize("length", [-5, 0, 2, "x"])
def test_a_window_without_room_for_a_word_is_refused(folder: Path, length: Any) -> None:
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(ModelNotUsable, match="model_max_length"):
        load_model(folder, device="cpu")


def test_a_token_that_the_text_encoder_does_not_know_is_refused(folder: Path) -> None:
    (folder / "tokenizer" / "added_tokens.json").write_text('{"star": 5000}')
    change(folder / "tokenizer" / "tokenizer_config.json", added_tokens_decoder={"5000": {"content": "star"}})
    encoder = load_model(folder, device="cpu").text_encoder(1, "original")
    encoder.encode("a cat")
    with pytest.raises(ModelNotUsable, match=r"token \d+, and the text encoder knows"):
        encoder.encode("a star")


@pytest.mark.parametrize(
    ("base", "part", "other"),
    [
        ("sdxl_folder", "unet", "sd_folder"),
        ("sdxl_folder", "text_encoder_2", "sd_folder"),
        ("sd_folder", "unet", "sdxl_folder"),
    ],
)
def test_parts_of_several_models_are_refused_by_name(
    base: str, part: str, other: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = Path(shutil.copytree(request.getfixturevalue(base), tmp_path / "mixed"))
    shutil.rmtree(folder / part)
    shutil.copytree(request.getfixturevalue(other) / part.removesuffix("_2"), folder / part)
    if part == "text_encoder_2":
        change(folder / "model_index.json", text_encoder_2=["transformers", "CLIPTextModel"])
    with pytest.raises(ModelNotUsable, match="do not fit"):
        load_model(folder, device="cpu")


def test_what_a_library_says_of_a_folder_is_shortened(folder: Path) -> None:
    change(folder / "unet" / "config.json", down_block_types=["x" * 200] * 60)
    with pytest.raises(ModelNotUsable) as refusal:
        load_model(folder, device="cpu")
    assert len(str(refusal.value)) < 300 + 2 * len(str(folder)) + 100


JSON_FILES = (
    *("model_index.json", "hnetkit.json", "unet/config.json", "scheduler/scheduler_config.json"),
    *("text_encoder/config.json", "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"),
)


def _deep(path: Path) -> None:
    path.write_text('{"a":' + "[" * 200_000)


def _wide(path: Path) -> None:
    path.write_text('{"a": [' + "{}," * 2_000_000 + "{}]}")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("make", [_deep, _wide, *([_pipe] if hasattr(os, "mkfifo") else [])])
def test_json_that_is_too_much_is_refused(folder: Path, file: str, make: Callable[[Path], None]) -> None:
    (folder / file).unlink(missing_ok=True)
    make(folder / file)
    if file == "tokenizer/tokenizer.json":
        _without_plain_vocabulary(folder)
    with pytest.raises(ModelNotUsable, match=Path(file).name):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("side", [65_536, 16_384])
def test_a_folder_may_not_choose_huge_pictures(folder: Path, side: int) -> None:
    (folder / "hnetkit.json").write_text(json.dumps({"width": side, "height": side}))
    with pytest.raises(ModelNotUsable, match=f"'width' cannot be {side}"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(
    "prompt", ["a <hypernet:ink:1> star", "a <lora:ink:1> star", "<hypernet:ink", "\ud800", "star " * 1000, 5]
)
def test_a_folder_s_own_prompts_choose_no_network(tmp_path: Path, prompt: Any) -> None:
    change(tmp_path / "hnetkit.json", prompts=["a star", prompt])
    with pytest.raises(ModelNotUsable, match="without tags of networks"):
        read_defaults(tmp_path)
    change(tmp_path / "hnetkit.json", prompts=["a <3 star"])
    assert read_defaults(tmp_path).prompts == ("a <3 star",)


def test_a_key_without_meaning_does_no_harm(folder: Path) -> None:
    change(folder / "unet/config.json", **{"_name_or_path": "/etc/passwd", "peft_config": {"a": 1}, "dtype": "float64"})
    change(folder / "text_encoder/config.json", _name_or_path="x", dtype="float64", _attn_implementation="evil")
    change(folder / "tokenizer/tokenizer_config.json", chat_template="{{ x }}", extra_special_tokens={"a": "b"})
    (folder / "text_encoder" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/evil"}')
    (folder / "unet" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/evil"}')
    model = load_model(folder, device="cpu")
    assert model.pipe.unet.dtype == model.pipe.text_encoder.dtype == torch.float32


# --- weights


def _shards(folder: Path) -> list[Path]:
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    names = sorted(tensors)
    paths = []
    for number, some in enumerate((names[::2], names[1::2]), 1):
        paths.append(folder / "unet" / f"diffusion_pytorch_model-{number:05}-of-00002.safetensors")
        save_file({name: tensors[name] for name in some}, paths[-1])
    return paths


def test_shards_load_without_their_index_which_may_lead_anywhere(sd_folder: Path, folder: Path) -> None:
    shards = _shards(folder)
    elsewhere = {name: "../../elsewhere.safetensors" for shard in shards for name in load_file(shard)}
    for index in ("diffusion_pytorch_model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (folder / "unet" / index).write_text(json.dumps({"metadata": {}, "weight_map": elsewhere}))
    ours, expected = (load_model(place, device="cpu").pipe.unet.state_dict() for place in (folder, sd_folder))
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_missing_and_doubled_shards_are_refused(folder: Path) -> None:
    first, second = _shards(folder)
    second.rename(folder / "aside")
    with pytest.raises(ModelNotUsable, match="shards of its weights are missing"):
        load_model(folder, device="cpu")
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelNotUsable, match="in another shard too"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_never_looked_at(folder: Path, part: str) -> None:
    marker = folder / "ran"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(marker), "w")

    (weights,) = (folder / part).glob("*.safetensors")
    torch.save(Payload(), weights.with_suffix(".bin"))
    torch.save(Payload(), folder / part / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelNotUsable, match="safetensors"):
        load_model(folder, device="cpu")
    torch.save(Payload(), weights)
    with pytest.raises(FileRefused):
        load_model(folder, device="cpu")
    assert not marker.exists()


def test_of_several_variants_the_unets_is_taken_then_the_plain_one(tmp_path: Path) -> None:
    names = (
        "model.safetensors",
        "model.fp16.safetensors",
        "model.fp16-00001-of-00001.safetensors",
        "other.safetensors",
    )
    for name in names:
        (tmp_path / name).touch()
    assert [path.name for path in part_weights(tmp_path)] == ["model.safetensors"]
    assert [path.name for path in part_weights(tmp_path, "fp16")] == ["model.fp16.safetensors"]
    assert [path.name for path in part_weights(tmp_path, "non_ema")] == ["model.safetensors"]


def test_a_separate_autoencoder_is_held_to_the_same(folder: Path, sd_folder: Path) -> None:
    change(folder / "vae" / "config.json", layers_per_block=100_000)
    with pytest.raises(ModelNotUsable, match="layers_per_block"):
        load_model(sd_folder, device="cpu", vae=folder / "vae")
    change(folder / "vae" / "config.json", layers_per_block=1, auto_map={"AutoModel": "evil.Evil"})
    with pytest.raises(ModelNotUsable, match="auto_map"):
        load_model(sd_folder, device="cpu", vae=folder)


# --- the hub


def test_of_a_hub_model_only_what_is_loaded_is_fetched(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    there = Path(shutil.copytree(sd_folder, tmp_path / "there"))
    change(there / "model_index.json", image_encoder=["diffusers", "StableDiffusionPipeline"])
    unwanted = [
        *("pipeline.py", "unet/evil.py", "unet/diffusion_pytorch_model.bin", "notes.txt", "tokenizer/evil.py"),
        *("unet/diffusion_pytorch_model.fp16.safetensors", "image_encoder/config.json", "unet/notes.txt"),
        *("image_encoder/model.safetensors", "unet/adapter_config.json", "tokenizer/chat_template.jinja"),
    ]
    for name in unwanted:
        (there / name).parent.mkdir(exist_ok=True)
        (there / name).touch()
    plain = there / "vae" / "diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    cache = tmp_path / "cache"
    asked: list[str] = []

    def fetch(names: list[str]) -> str:
        asked.extend(names)
        for name in names:
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there / name, cache / name)
        return str(cache)

    def info(hub: Any, hub_id: str, **how: Any) -> Any:
        files = [path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda hub_id, name, **how: f"{fetch([name])}/{name}")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    folder = download_pipeline("somebody/tiny")
    assert not set(asked) & set(unwanted)
    model = load_model(folder, device="cpu")
    assert "image_encoder" in model.notes[0]


def test_a_hub_model_of_another_kind_is_refused_before_its_weights_are_fetched(
    sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    change(tmp_path / "model_index.json", _class_name=["evil", "Pipeline"])
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda hub_id, name, **how: str(tmp_path / name))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    with pytest.raises(HnetkitError, match="hypernetworks belong on"):
        download_pipeline("somebody/tiny")


def test_nothing_of_a_folder_is_imported(folder: Path) -> None:
    for name in ("evil", "unet", "pipeline"):
        (folder / f"{name}.py").write_text("raise SystemExit('ran')")
    change(folder / "model_index.json", _class_name="StableDiffusionPipeline", custom_pipeline="pipeline")
    before = set(sys.modules)
    load_model(folder, device="cpu")
    assert not {"evil", "pipeline"} & (set(sys.modules) - before)


@pytest.mark.parametrize("private", ['{"token": "hf_secret"}', '{"steps": "secret"}', '"secret"', '["secret"]'])
def test_a_private_file_that_a_model_s_defaults_lead_to_is_not_quoted(private: str, tmp_path: Path) -> None:
    (tmp_path / "private.json").write_text(private)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "hnetkit.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(ModelNotUsable) as caught:
        read_defaults(tmp_path / "model")
    assert "secret" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "private", [{"private_key": "secret" * 2000}, {"account": 5_300_700_900}, {"a": {"secret": 1}}]
)
def test_a_private_file_that_a_scheduler_s_settings_lead_to_is_not_quoted(
    private: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "private.json").write_text(json.dumps(private))
    path = folder / "scheduler" / "scheduler_config.json"
    path.unlink()
    path.symlink_to(tmp_path / "private.json")
    with pytest.raises(ModelNotUsable) as caught:
        load_model(folder, device="cpu")
    assert not any(said in f"{caught.value} {caught.value.hint}" for said in ("secret", "5300700900", "account"))


def test_a_private_file_that_a_tokenizer_s_merges_lead_to_is_not_quoted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("a s\nlogin secret\n")
    tokenizer = folder / "tokenizer"
    known = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    (tokenizer / "vocab.json").write_text(json.dumps({**known, "login": 0, "as": 1}))
    (tokenizer / "merges.txt").unlink(missing_ok=True)
    (tokenizer / "merges.txt").symlink_to(tmp_path / "private")
    with pytest.raises(ModelNotUsable, match="merges") as caught:
        load_model(folder, device="cpu")
    assert "secret" not in f"{caught.value} {caught.value.hint}"
