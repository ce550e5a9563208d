"""Checkpoints in one file: every kind, both containers, whole or refused, and nothing in them runs."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.checkpoints import original_tensors, original_vae, save_checkpoint, save_ckpt, save_configurations
from support.hostile_files import CALLS, legacy_of, meta, zip_of
from support.pipelines import draw, tiny_sd, tiny_sdxl
from torch import Tensor

from hnetkit.errors import FileRefused, HnetkitError, ModelNotUsable, NotFound, UnsafeFile
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.loading.checkpoints import HARMLESS, predicts_noise, read_state_dict
from hnetkit.generate.loading.pipeline import fingerprint
from hnetkit.generate.model import load_model
from hnetkit.generate.sampling.samplers import prepare_scheduler
from hnetkit.hashes import sha256_of

UNET = "model.diffusion_model."


def sd2(prediction: str) -> Any:
    pipe = tiny_sd(seed=4)
    pipe.scheduler.register_to_config(prediction_type=prediction)
    pipe.unet.register_to_config(sample_size={"epsilon": 8, "v_prediction": 12}[prediction])
    return pipe


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny SD 1 and SDXL take the places of the real ones."""
    folder = save_configurations(tmp_path / "configurations", sd1=tiny_sd(), sdxl=tiny_sdxl())
    monkeypatch.setattr("hnetkit.generate.loading.checkpoints.CONFIGURATIONS", folder)
    return folder


@pytest.fixture
def tiny_sd2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The two kinds of SD 2, tiny: they differ in what the UNet predicts, and in its size."""
    kinds = {"sd2_base": sd2("epsilon"), "sd2_v": sd2("v_prediction")}
    folder = save_configurations(tmp_path / "configurations", **kinds)
    monkeypatch.setattr("hnetkit.generate.loading.checkpoints.CONFIGURATIONS", folder)
    return folder


def assert_same_weights(ours: Any, theirs: Any, dtype: torch.dtype = torch.float32) -> None:
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(theirs, part, None) is not None:
            expected, got = getattr(theirs, part).state_dict(), getattr(ours, part).state_dict()
            assert got.keys() == expected.keys()
            assert all(torch.equal(tensor, expected[name].to(dtype)) for name, tensor in got.items()), part


# --- what is loaded


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_sd_1_loads_every_weight_in_its_dtype(sd_folder: Path, tmp_path: Path, dtype: str) -> None:
    pipe = tiny_sd(seed=3)
    path = save_checkpoint(pipe, tmp_path / "model.safetensors")
    model = load_model(path, device="cpu", dtype=dtype, tokenizer=sd_folder)
    assert_same_weights(model.pipe, pipe, {"fp32": torch.float32, "fp16": torch.float16}[dtype])
    assert (model.name, model.hash, model.size) == ("model", sha256_of(OpenFile(path))[:10], (16, 16))
    assert model.pipe.safety_checker is None
    assert torch.equal(draw(load_model(path, device="cpu", tokenizer=sd_folder).pipe), draw(pipe))


@pytest.mark.usefixtures("tiny")
def test_sdxl_is_told_by_its_names_and_loads_every_weight(sdxl_folder: Path, tmp_path: Path) -> None:
    pipe = tiny_sdxl(seed=3)
    path = save_checkpoint(pipe, tmp_path / "xl.safetensors")
    model = load_model(path, device="cpu", tokenizer=sdxl_folder / "tokenizer")
    assert type(model.pipe).__name__ == "StableDiffusionXLPipeline"
    assert_same_weights(model.pipe, pipe)
    assert torch.equal(draw(model.pipe), draw(pipe))


@pytest.mark.usefixtures("tiny_sd2")
@pytest.mark.parametrize(("stated", "pixels"), [("epsilon", 16), ("v", 24)])
def test_sd_2_loads_every_weight_as_what_its_metadata_says(
    sd_folder: Path, tmp_path: Path, stated: str, pixels: int
) -> None:
    pipe = sd2("epsilon")
    metadata = {"modelspec.prediction_type": stated}
    path = save_checkpoint(pipe, tmp_path / "two.safetensors", open_clip=True, metadata=metadata)
    model = load_model(path, device="cpu", tokenizer=sd_folder)
    assert_same_weights(model.pipe, pipe)
    assert model.scheduler_config["prediction_type"].startswith(stated)
    assert model.size == (pixels, pixels)


@pytest.mark.usefixtures("tiny_sd2")
def test_sd_2_without_metadata_is_told_by_what_its_unet_makes_of_noise(sd_folder: Path, tmp_path: Path) -> None:
    path = save_checkpoint(sd2("epsilon"), tmp_path / "two.safetensors", open_clip=True)
    assert load_model(path, device="cpu", tokenizer=sd_folder).scheduler_config["prediction_type"] == "v_prediction"


@pytest.mark.usefixtures("tiny")
def test_the_yaml_beside_a_checkpoint_says_that_it_predicts_v(sd_folder: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tiny_sd(seed=3), tmp_path / "fluffy.safetensors")

    def predicts() -> object:
        return load_model(path, device="cpu", tokenizer=sd_folder).scheduler_config["prediction_type"]

    yaml, plain = tmp_path / "fluffy.yaml", fingerprint(path)
    yaml.write_text("model:\n  params:\n    linear_end: 0.0120\n")
    assert (predicts(), fingerprint(path)) == ("epsilon", plain)
    yaml.write_text('model:\n  params:\n    parameterization: "v"  # as SD 2\n    linear_end: 0.0120\n')
    assert predicts() == "v_prediction"
    assert fingerprint(path) != plain


@pytest.mark.usefixtures("tiny")
def test_sdxl_with_the_marks_of_its_trainer_ends_in_noise_alone(sdxl_folder: Path, tmp_path: Path) -> None:
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    path = save_checkpoint(tiny_sdxl(seed=3), tmp_path / "xl.safetensors", **marks)
    model = load_model(path, device="cpu", tokenizer=sdxl_folder)
    assert model.scheduler_config["prediction_type"] == "v_prediction"
    for sampler in ("Euler a", "Heun", "DPM2", "DPM++ 2M", "DPM++ 3M SDE"):
        levels = prepare_scheduler(sampler, model.scheduler_config, 5).sigmas
        assert levels[0].item() == pytest.approx(4518.7, rel=1e-3)  # sqrt((1 - a) / a) of A1111's last a


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", ["time_embed.cond_proj.weight", "time_embedding.cond_proj.weight"])
def test_a_unet_that_takes_the_cfg_scale_is_refused_in_one_file_as_in_a_folder(
    sd_folder: Path, tmp_path: Path, name: str
) -> None:
    path = save_checkpoint(tiny_sd(), tmp_path / "lcm.safetensors", **{UNET + name: torch.ones(8, 4)})
    with pytest.raises(ModelNotUsable, match="takes the CFG scale as an input") as refusal:
        load_model(path, device="cpu", tokenizer=sd_folder)
    assert str(path) in str(refusal.value)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("mark", ["edm_vpred.sigma_max", "edm_mean"])
def test_a_checkpoint_for_the_noise_of_edm_is_refused(sdxl_folder: Path, tmp_path: Path, mark: str) -> None:
    path = save_checkpoint(tiny_sdxl(), tmp_path / "edm.safetensors", **{mark: torch.ones(4)})
    with pytest.raises(ModelNotUsable, match="noise of EDM"):
        load_model(path, device="cpu", tokenizer=sdxl_folder)


@pytest.mark.usefixtures("tiny")
def test_the_autoencoder_beside_a_checkpoint_is_told(sd_folder: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tiny_sd(), tmp_path / "anime.safetensors")
    beside = tmp_path / "anime.vae.pt"
    torch.save({"state_dict": original_vae(tiny_sd(seed=9).vae)}, beside)
    (line,) = load_model(path, device="cpu", tokenizer=sd_folder).notes
    assert str(beside) in line
    assert "--vae" in line
    assert load_model(path, device="cpu", tokenizer=sd_folder, vae=beside).notes == ()


@pytest.mark.parametrize(("answer", "is_noise"), [(lambda x: 0.99 * x, True), (lambda x: 0.07 * x - 0.5, False)])
def test_a_unet_that_returns_its_noise_predicts_epsilon(answer: Any, is_noise: bool) -> None:
    class Fake:
        config = SimpleNamespace(in_channels=9, out_channels=4, cross_attention_dim=24)
        device, dtype = torch.device("cpu"), torch.float32

        def __call__(self, sample: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Any:
            assert (sample.shape, timestep, encoder_hidden_states.shape) == ((1, 9, 16, 16), 999, (1, 77, 24))
            assert (sample[:, 4] == 1).all()  # a mask of everything, and gray
            assert (sample[:, 5:] == 0).all()
            return SimpleNamespace(sample=answer(sample[:, :4]))

    assert predicts_noise(Fake()) == is_noise


@pytest.mark.usefixtures("tiny")
def test_an_empty_tensor_of_that_name_says_v_prediction(sdxl_folder: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tiny_sdxl(), tmp_path / "xl.safetensors", v_pred=torch.tensor([]))
    assert load_model(path, device="cpu", tokenizer=sdxl_folder).scheduler_config["prediction_type"] == "v_prediction"


@pytest.mark.usefixtures("tiny")
def test_an_inpainting_unet_takes_nine_channels(sd_folder: Path, tmp_path: Path) -> None:
    tensors = original_tensors(tiny_sd())
    first = f"{UNET}input_blocks.0.0.weight"
    tensors[first] = torch.cat([tensors[first], torch.ones(8, 5, 3, 3)], dim=1)
    path = save_ckpt(tensors, tmp_path / "inpaint.ckpt")
    unet = load_model(path, device="cpu", tokenizer=sd_folder).pipe.unet
    assert unet.config.in_channels == 9
    assert torch.equal(unet.conv_in.weight, tensors[first])


# --- .ckpt


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("form", ["zip", "legacy", "top level", "channels last", "old names"])
def test_a_ckpt_draws_what_its_safetensors_draws_bit_for_bit(sd_folder: Path, tmp_path: Path, form: str) -> None:
    pipe = tiny_sd(seed=3)
    tensors = original_tensors(pipe)
    if form == "top level":
        torch.save(tensors, tmp_path / "model.ckpt")
    else:
        if form == "channels last":
            last = torch.channels_last
            tensors = {k: t.to(memory_format=last) if t.ndim == 4 else t for k, t in tensors.items()}
            assert not all(tensor.is_contiguous() for tensor in tensors.values())
        if form == "old names":
            tensors = {name.replace("transformer.text_model.", "transformer."): t for name, t in tensors.items()}
        save_ckpt(tensors, tmp_path / "model.ckpt", legacy=form == "legacy")
    one = load_model(tmp_path / "model.ckpt", device="cpu", tokenizer=sd_folder).pipe
    other = load_model(save_checkpoint(pipe, tmp_path / "m.safetensors"), device="cpu", tokenizer=sd_folder).pipe
    assert torch.equal(draw(one), draw(other))
    assert_same_weights(one, pipe)


@pytest.mark.parametrize("container", [zip_of, legacy_of])
@pytest.mark.parametrize("trick", ["os_system", "eval", "subprocess", "new_object", "global_alone"])
def test_a_ckpt_that_would_run_something_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: Any, trick: str
) -> None:
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    (tmp_path / "model.ckpt").write_bytes(container(meta(CALLS[trick])))
    with pytest.raises(UnsafeFile, match=r"model\.ckpt: asks for [\w.]+, which no checkpoint needs"):
        load_model(tmp_path / "model.ckpt", device="cpu")
    assert not (tmp_path / "canary").exists()


@pytest.mark.usefixtures("tiny")
def test_a_whole_ckpt_with_one_call_more_is_refused(tmp_path: Path, sd_folder: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'canary'}",)

    path = save_ckpt(original_tensors(tiny_sd()), tmp_path / "model.ckpt", extra=Payload())
    with pytest.raises(UnsafeFile, match=r"asks for (posix|nt)\.system"):
        load_model(path, device="cpu", tokenizer=sd_folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_is_harmless_is_not_made_either(tmp_path: Path, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    made = f"c{module}\n{attribute}\n".encode() + b")R}b"
    (tmp_path / "model.ckpt").write_bytes(zip_of(b"\x80\x02}(" + b"X\4\0\0\0note" + made + b"u."))
    assert read_state_dict(tmp_path / "model.ckpt").shapes == {}


def test_more_tensors_than_the_file_has_bytes_are_refused(tmp_path: Path) -> None:
    whole = torch.zeros(4096)
    torch.save({f"a.{number}": whole.view(64, 64) for number in range(20)}, tmp_path / "model.ckpt")
    with pytest.raises(UnsafeFile, match="larger than the file"):
        read_state_dict(tmp_path / "model.ckpt").part("a.", torch.float32)


def test_tensors_that_reach_over_the_file_again_and_again_are_refused(tmp_path: Path) -> None:
    whole = torch.zeros(1 << 16)
    ends = {f"a.{number}": whole.as_strided((2,), ((1 << 16) - 1,)) for number in range(50)}
    torch.save(ends, tmp_path / "ends.ckpt")
    with pytest.raises(UnsafeFile, match=r"ends\.ckpt: its tensors together .* are larger than the file"):
        read_state_dict(tmp_path / "ends.ckpt")


def test_one_value_seen_again_and_again_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 20)}, tmp_path / "one.ckpt")
    with pytest.raises(UnsafeFile, match="larger than the file"):
        read_state_dict(tmp_path / "one.ckpt")


def test_more_tensors_than_a_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.generate.loading.checkpoints.MAX_TENSORS", 20)
    torch.save({f"a.{number}": torch.zeros(1) for number in range(21)}, tmp_path / "many.ckpt")
    state = read_state_dict(tmp_path / "many.ckpt")
    with pytest.raises(UnsafeFile, match=r"many\.ckpt: 21 tensors in one part"):
        state.part("a.", torch.float32)


def test_eight_bit_floats_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    values = {kind: torch.tensor([[1.5, -2.0]]).to(getattr(torch, kind)) for kind in ("float8_e4m3fn", "float8_e5m2")}
    save_file(values, tmp_path / "small.safetensors")
    read = read_state_dict(tmp_path / "small.safetensors").part("", torch.float16)
    assert [tensor.tolist() for tensor in read.values()] == [[[1.5, -2.0]]] * 2


@pytest.mark.parametrize(
    "scale", ["scale_weight", "scale_input", "weight_scale", "weight_scale_inv", "input_scale", "weight.absmax"]
)
def test_weights_that_are_to_be_multiplied_by_scales_are_refused(tmp_path: Path, scale: str) -> None:
    from safetensors.torch import save_file

    layer = "model.diffusion_model.out.2"
    weights = {f"{layer}.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), f"{layer}.{scale}": torch.ones(1)}
    save_file(weights, tmp_path / "scaled.safetensors")
    with pytest.raises(ModelNotUsable, match=rf"scaled\.safetensors: its weights are stored with scales.*{scale}"):
        read_state_dict(tmp_path / "scaled.safetensors")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("a ControlNet", "control_model.input_blocks.0.0.weight"),
        ("a LoRA", f"{UNET}middle_block.1.proj_in.lora_A.weight"),
        ("an IP-Adapter", f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k_ip.weight"),
        ("GLIGEN", f"{UNET}middle_block.1.transformer_blocks.0.fuser.linear.weight"),
        ("motion modules", f"{UNET}input_blocks.1.2.motion_modules.0.weight"),
        ("unCLIP", "embedder.model.visual.proj"),
    ],
)
def test_what_a_checkpoint_holds_beside_a_model_is_said_to_be_left_out(
    sd_folder: Path, tmp_path: Path, kind: str, name: str
) -> None:
    path = save_checkpoint(tiny_sd(), tmp_path / "more.safetensors", **{name: torch.ones(2, 2)})
    notes = load_model(path, device="cpu", tokenizer=sd_folder).notes
    assert notes == (f"Warning: {path} holds {kind} too, which is not applied",)


def test_what_a_folder_holds_beside_its_unet_is_said_to_be_left_out(sd_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = copytree(sd_folder, tmp_path / "sd") / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights) | {"mid_block.attentions.0.proj_in.lora_B.weight": torch.ones(2, 2)}, weights)
    notes = load_model(tmp_path / "sd", device="cpu").notes
    assert notes == (f"Warning: {weights} holds a LoRA too, which is not applied",)


# --- what is refused


def _lacking(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{UNET}output_blocks.0.0.in_layers.2.weight"]


def _misfit(tensors: dict[str, Tensor]) -> None:
    tensors[f"{UNET}out.2.bias"] = torch.zeros(5)


def _without_text(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("cond_stage_model.")]:
        del tensors[name]


def _without_vae(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("first_stage_model.")]:
        del tensors[name]


def _of_other_width(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("attn2.to_k.weight")]:
        tensors[name] = torch.zeros(8, 4096)


def _refiner(tensors: dict[str, Tensor]) -> None:
    _of_other_width(tensors)
    for name in [name for name in tensors if name.endswith("attn2.to_k.weight")]:
        tensors[name] = torch.zeros(8, 1280)
    tensors["conditioner.embedders.0.model.ln_final.weight"] = torch.zeros(2)


def _of_eight_channels(tensors: dict[str, Tensor]) -> None:
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(8, 8, 3, 3)


def _of_single_numbers(tensors: dict[str, Tensor]) -> None:
    for name in [name for name in tensors if name.endswith("attn2.to_k.weight")]:
        tensors[name] = torch.tensor(1.0)


def _with_flat(part: str) -> Any:
    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(part) and not name.endswith("attn2.to_k.weight")]:
            if name != f"{UNET}input_blocks.0.0.weight":
                tensors[name] = torch.tensor(1.0)

    return change


def _only_a_lora(tensors: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors["lora_unet_x.lora_up.weight"] = torch.zeros(2)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_lacking, r"lacks the tensor up_blocks\.0\.resnets\.0\.conv1\.weight"),
        (_misfit, r"does not fit: conv_out\.bias is \(5,\), not \(4,\)"),
        (_without_text, r"its text encoder lacks the tensor (text_model\.)?embeddings"),
        (_without_vae, "has no autoencoder of its own"),
        (_of_other_width, "4096 wide"),
        (_refiner, "refiner"),
        (_of_eight_channels, "takes 8 channels"),
        (_of_single_numbers, "no Stable Diffusion checkpoint"),
        (_with_flat(UNET), "its UNet has a tensor that does not fit"),
        (_with_flat("cond_stage_model."), "its text encoder has a tensor that does not fit"),
        (_with_flat("first_stage_model."), "its autoencoder has a tensor that does not fit"),
        (_only_a_lora, "no Stable Diffusion checkpoint .*a LoRA"),
    ],
)
def test_a_checkpoint_that_is_not_whole_or_another_is_refused(
    sd_folder: Path, tmp_path: Path, change: Any, says: str
) -> None:
    tensors = original_tensors(tiny_sd())
    change(tensors)
    path = save_ckpt(tensors, tmp_path / "model.ckpt")
    with pytest.raises(ModelNotUsable, match=says) as refusal:
        load_model(path, device="cpu", tokenizer=sd_folder)
    assert str(path) in str(refusal.value)
    assert refusal.value.hint


@pytest.mark.parametrize("content", [b"", b"<html>", b"GGUF" + bytes(99), b"PK\3\4" + bytes(99), b"\x80\x02N."])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_what_is_no_checkpoint_at_all_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ModelNotUsable, FileRefused), match=re.escape(name)):
        load_model(tmp_path / name, device="cpu")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("keep", [3, 9, 5000, -500])
def test_a_checkpoint_that_is_cut_short_is_refused(tmp_path: Path, keep: int) -> None:
    for path in (
        save_checkpoint(tiny_sd(), tmp_path / "a.safetensors"),
        save_ckpt(original_tensors(tiny_sd()), tmp_path / "a.ckpt"),
        save_ckpt(original_tensors(tiny_sd()), tmp_path / "b.ckpt", legacy=True),
    ):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(HnetkitError, match=path.name):
            load_model(path, device="cpu")


# --- the tokenizer


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.usefixtures("tiny", "empty_cache")
def test_offline_without_a_tokenizer_says_what_to_fetch(tmp_path: Path) -> None:
    path = save_checkpoint(tiny_sd(), tmp_path / "model.safetensors")
    with pytest.raises(ModelNotUsable, match="needs a tokenizer") as refusal:
        load_model(path, device="cpu")
    assert "--tokenizer DIR" in str(refusal.value.command_hint)
    assert "openai/clip-vit-large-patch14" in str(refusal.value.hint)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("hub_id", "inside"),
    [("openai/clip-vit-large-patch14", ""), ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer")],
)
def test_a_tokenizer_comes_from_the_hubs_cache(tmp_path: Path, empty_cache: Path, hub_id: str, inside: str) -> None:
    repository = empty_cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    tiny_sd().tokenizer.save_pretrained(repository / "snapshots" / ("0" * 40) / inside)
    pipe = load_model(save_checkpoint(tiny_sd(), tmp_path / "model.safetensors"), device="cpu").pipe
    assert pipe.tokenizer("ab").input_ids == tiny_sd().tokenizer("ab").input_ids


def test_the_second_tokenizer_fills_up_with_token_0_and_reads_that_mark_as_before(
    tiny: Path, sdxl_folder: Path, tmp_path: Path
) -> None:
    config = tiny / "sdxl" / "text_encoder_2" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "pad_token_id": 0}))
    path = save_checkpoint(tiny_sdxl(), tmp_path / "xl.safetensors")
    pipe = load_model(path, device="cpu", tokenizer=sdxl_folder).pipe
    assert (pipe.tokenizer.pad_token_id, pipe.tokenizer_2.pad_token_id) == (pipe.tokenizer.eos_token_id, 0)
    assert pipe.tokenizer.model_max_length == 77
    word = pipe.tokenizer.convert_ids_to_tokens(0)
    assert pipe.tokenizer(f"b{word}").input_ids == pipe.tokenizer_2(f"b{word}").input_ids


@pytest.mark.usefixtures("tiny")
def test_a_tokenizer_that_is_not_there_or_another_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    path = save_checkpoint(tiny_sd(), tmp_path / "model.safetensors")
    with pytest.raises(NotFound, match="no such folder"):
        load_model(path, device="cpu", tokenizer=tmp_path / "absent")
    with pytest.raises(ModelNotUsable, match="no tokenizer"):
        load_model(path, device="cpu", tokenizer=sd_folder / "unet")
    tokenizer = tiny_sd().tokenizer
    tokenizer.add_tokens("more")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelNotUsable, match="115 tokens; the model knows 114"):
        load_model(path, device="cpu", tokenizer=tmp_path / "other")
