"""Captions by models: tiny ones with random weights, saved and loaded as real ones are."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.pictures import noise
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hnetkit.cli import run
from hnetkit.errors import MissingPackage, ModelNotUsable, NotFound
from hnetkit.train import prepare
from hnetkit.train.preparing.captioners import BLIP, TAGGER, Tagger, TagSettings, load_blip, load_tagger

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
BEGIN = len(WORDS)  # as in the real models, the token that a caption begins with is none of the tokenizer's


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a BLIP model of 2 layers of width 16."""
    folder = tmp_path_factory.mktemp("blip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(WORDS) + 2, "encoder_hidden_size": 16, "projection_dim": 16}
    tokens = {"bos_token_id": BEGIN, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    vision = {**small, "image_size": 32, "patch_size": 16, "projection_dim": 16}
    config = BlipConfig(text_config={**text, **tokens}, vision_config=vision, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS), encoding="utf-8")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def tagger_folder(folder: Path, names: list[str], bias: list[float]) -> Path:
    """Saves a ViT whose outputs are `bias`, whatever it sees."""
    config = ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    model = ViTForImageClassification(config)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor(bias)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def wd_folder(folder: Path, tags: list[tuple[str, int]], scores: list[float]) -> Path:
    """Saves a tagger as the WD taggers are, but of a ViT of transformers: its tags are in a table."""
    tagger_folder(folder, [f"LABEL_{number}" for number in range(len(tags))], torch.tensor(scores).logit().tolist())
    rows = [f"{number},{name},{kind},1" for number, (name, kind) in enumerate(tags)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]), encoding="utf-8")
    return folder


def test_blip_says_the_same_of_the_same_picture(blip: Path) -> None:
    model = load_blip(str(blip), device="cpu")
    first = model.caption(noise((50, 40)))
    assert first
    assert first == model.caption(noise((50, 40)))
    assert not set(first) & set("[]\n")
    assert not model.model.training


def test_blip_takes_pictures_with_transparency(blip: Path) -> None:
    assert load_blip(str(blip), device="cpu").caption(noise((50, 40)).convert("RGBA"))


def test_a_tagger_gives_the_tags_that_are_sure_enough(tmp_path: Path) -> None:
    folder = tagger_folder(tmp_path, ["cat", "long_hair", "dog", "rating:safe"], [2.0, 1.0, -2.0, 9.0])
    assert load_tagger(str(folder), device="cpu").caption(noise((30, 20))) == "cat, long hair"


TAGS = [("long_hair", 0), ("saber_(fate)", 4), ("miku", 4), ("^_^", 0), ("sky", 0), ("general", 9)]
SCORES = [0.5, 0.9, 0.8, 0.6, 0.3, 0.99]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, r"^_^, long hair, saber \(fate\)"),
        ({"escape": False}, "^_^, long hair, saber (fate)"),
        ({"underscores": True}, r"^_^, long_hair, saber_\(fate\)"),
        ({"by_score": True}, r"saber \(fate\), ^_^, long hair"),
        ({"general": 0.2}, r"^_^, long hair, saber \(fate\), sky"),
        ({"character": 0.75}, r"^_^, long hair, miku, saber \(fate\)"),
        ({"excluded": frozenset({"long hair", r"saber_\(fate\)"})}, "^_^"),
        ({"general": 1.0, "character": 1.0}, ""),
    ],
)
def test_tags_are_chosen_and_written_as_asked(tmp_path: Path, settings: dict[str, Any], expected: str) -> None:
    folder = wd_folder(tmp_path, TAGS, SCORES)
    model = load_tagger(str(folder), settings=TagSettings(**settings), device="cpu")
    assert model.caption(noise((30, 20))) == expected


def test_a_wd_tagger_sees_a_white_square_with_blue_first(tmp_path: Path) -> None:
    tagger = load_tagger(str(wd_folder(tmp_path, TAGS, SCORES)), device="cpu")
    seen = tagger.pixels(Image.new("RGB", (32, 16), (255, 0, 0)))
    assert seen.shape == (1, 3, 16, 16)
    assert seen[0, :, 8, 8].tolist() == [-1, -1, 1]
    assert seen[0, :, 0, 8].tolist() == seen[0, :, 15, 8].tolist() == [1, 1, 1]
    ghost = tagger.pixels(Image.new("RGBA", (16, 16), (255, 0, 0, 0)))
    assert ghost.unique().tolist() == [1]


def test_a_tagger_whose_table_has_other_tags_is_refused(tmp_path: Path) -> None:
    folder = wd_folder(tmp_path, TAGS, SCORES)
    with (folder / "selected_tags.csv").open("a", encoding="utf-8") as file:
        file.write("\n9,one more,0,1")
    with pytest.raises(ModelNotUsable, match="7 tags for 6 outputs"):
        load_tagger(str(folder), device="cpu")


def test_a_model_with_pickled_weights_only_is_refused(blip: Path, tmp_path: Path) -> None:
    for path in blip.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    for load in (load_blip, load_tagger):
        with pytest.raises(ModelNotUsable, match="safetensors"):
            load(str(tmp_path))


@pytest.mark.parametrize("place", ["nobody/nothing", "no-such-folder", "../nowhere", "/nowhere/at/all"])
def test_a_model_that_is_nowhere_is_not_found(place: str) -> None:
    for load in (load_blip, load_tagger):
        with pytest.raises(NotFound) as error:
            load(place)
        assert error.value.hint


def test_a_model_of_another_kind_is_refused(blip: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotUsable, match="vit, not BLIP"):
        load_blip(str(tagger_folder(tmp_path, ["cat", "dog"], [0.0, 0.0])))
    with pytest.raises(ModelNotUsable):
        load_tagger(str(blip))


@pytest.mark.parametrize("config", ["", "[]", "{"])
def test_a_model_without_a_configuration_that_can_be_read_is_refused(tmp_path: Path, config: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ModelNotUsable, match=r"config\.json"):
        load_tagger(str(tmp_path))


def timm_can_be_imported() -> bool:
    try:
        import timm  # noqa: F401
    except ImportError:
        return False
    return True


def timm_folder(folder: Path) -> Path:
    """Saves a tiny timm model as its hub repositories are: an architecture's name, weights and a table of tags."""
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architecture": "vit_tiny_patch16_224",
                "num_classes": len(TAGS),
                "model_args": {"img_size": 32, "depth": 1},
                "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
            }
        ),
        encoding="utf-8",
    )
    rows = [f"{number},{name},{kind},1" for number, (name, kind) in enumerate(TAGS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]), encoding="utf-8")
    return folder


@pytest.mark.skipif(timm_can_be_imported(), reason="tries what is said without timm, which is installed")
def test_a_timm_tagger_without_timm_says_what_to_install(tmp_path: Path) -> None:
    (timm_folder(tmp_path) / "model.safetensors").write_bytes(b"")
    with pytest.raises(MissingPackage) as error:
        load_tagger(str(tmp_path))
    assert error.value.hint == 'pip install "hnetkit[train]"'


@pytest.mark.skipif(not timm_can_be_imported(), reason="needs timm and the torchvision of this torch")
def test_a_timm_tagger_gives_tags(tmp_path: Path) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", num_classes=len(TAGS), img_size=32, depth=1)
    torch.nn.init.zeros_(model.head.weight)
    model.head.bias.data = torch.tensor(SCORES).logit()
    save_file(model.state_dict(), timm_folder(tmp_path) / "model.safetensors")
    tagger: Tagger = load_tagger(str(tmp_path), device="cpu")
    assert tagger.caption(noise((30, 20))) == r"^_^, long hair, saber \(fate\)"


# --- what files of strangers say


@pytest.fixture
def with_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where timm is installed: what is refused is refused before it is imported."""
    monkeypatch.setattr("hnetkit.train.preparing.captioners._require_timm", lambda place: None)


def change(path: Path, **values: Any) -> None:
    said = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**said, **values}))


@pytest.mark.usefixtures("with_timm")
@pytest.mark.parametrize(
    "values",
    [
        {"model_args": {"checkpoint_path": "notes.txt"}},
        {"model_args": {"img_size": 32, "pretrained_cfg_overlay": {"file": "x.bin"}}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"img_size": 1 << 30}},
        {"model_args": {"depth": 10**6}},
        {"model_args": {"act_layer": {"a": "b"}}},
        {"model_args": [1]},
        {"architecture": "hf_hub:evil/evil"},
        {"architecture": "local-dir:evil"},
        {"architecture": "../evil"},
        {"architecture": ["vit"]},
        {"auto_map": {"AutoModelForImageClassification": "evil.Evil"}},
        {"quantization_config": {"load_in_8bit": True}},
        {"num_classes": 10**9},
    ],
)
def test_what_no_timm_tagger_needs_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    save_file({"head.bias": torch.zeros(len(TAGS))}, timm_folder(tmp_path) / "model.safetensors")
    change(tmp_path / "config.json", **values)
    with pytest.raises(ModelNotUsable) as refusal:
        load_tagger(str(tmp_path), device="cpu")
    assert "\n" not in str(refusal.value)
    assert refusal.value.hint


def test_of_a_timm_config_the_library_sees_a_name_sizes_and_the_number_of_tags(
    tmp_path: Path, with_timm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hnetkit.train.preparing import captioning_models

    seen: list[Any] = []
    monkeypatch.setattr("transformers.TimmWrapperForImageClassification", object)
    monkeypatch.setattr(captioning_models, "_filled", lambda kind, config, *rest: seen.append(config))
    save_file({"head.bias": torch.zeros(len(TAGS))}, timm_folder(tmp_path) / "model.safetensors")
    change(
        tmp_path / "config.json",
        **{
            "pretrained_file": "x.bin",
            "pretrained_cfg": {"file": "x.bin", "url": "http://x", "input_size": [3, 32, 32]},
        },
        **{"_name_or_path": "evil/evil", "checkpoint_path": "x.bin", "transformers_weights": "x.bin"},
    )
    with pytest.raises(AttributeError):
        load_tagger(str(tmp_path), device="cpu")
    config = seen[0].to_dict()
    assert (config["architecture"], config["model_args"]) == ("vit_tiny_patch16_224", {"img_size": 32, "depth": 1})
    assert "x.bin" not in json.dumps(config)
    assert "evil" not in json.dumps(config)


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoModelForImageClassification": "evil.Evil"}}),
        ("config.json", {"quantization_config": {"load_in_8bit": True}}),
        ("config.json", {"model_type": "timm_wrapper"}),
        ("config.json", {"model_type": ["vit"]}),
        ("config.json", {"num_hidden_layers": 100_000}),
        ("config.json", {"hidden_size": 1 << 19, "intermediate_size": 1 << 19}),
        ("config.json", {"hidden_act": {"a": 1}}),
        ("config.json", {"id2label": {"0": 5}}),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.Evil"}}),
        ("preprocessor_config.json", {"image_processor_type": "TimmWrapperImageProcessor"}),
        ("preprocessor_config.json", {"size": {"height": 1 << 20, "width": 1}}),
        ("preprocessor_config.json", {"size": "large"}),
    ],
)
def test_a_classifiers_files_are_held_to_what_can_be_meant(tmp_path: Path, file: str, values: dict[str, Any]) -> None:
    tagger_folder(tmp_path, ["cat", "dog"], [0.0, 0.0])
    change(tmp_path / file, **values)
    with pytest.raises(ModelNotUsable):
        load_tagger(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"auto_map": {"AutoModel": "evil.Evil"}}),
        ("config.json", {"text_config": {"vocab_size": 1 << 20, "hidden_size": 1 << 16}}),
        ("config.json", {"vision_config": {"num_hidden_layers": 10**6}}),
        ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}),
        ("preprocessor_config.json", {"size": {"height": 1 << 20, "width": 1 << 20}}),
    ],
)
def test_blips_files_are_held_to_what_can_be_meant(
    blip: Path, tmp_path: Path, file: str, values: dict[str, Any]
) -> None:
    for path in blip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path / file, **values)
    with pytest.raises(ModelNotUsable):
        load_blip(str(tmp_path), device="cpu")


@pytest.mark.parametrize("kind", ["blip", "tags"])
def test_a_folder_of_a_stranger_does_not_stand_in_for_the_models_that_are_usual(
    blip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / (BLIP if kind == "blip" else TAGGER)
    theirs.parent.mkdir()
    shutil.copytree(blip, theirs) if kind == "blip" else tagger_folder(theirs, ["evil"], [9.0])
    with pytest.raises(NotFound, match="no folder here, and the hub gave no model"):
        load_blip(device="cpu") if kind == "blip" else load_tagger(device="cpu")


def test_a_very_long_picture_makes_no_square_of_gigabytes(tmp_path: Path) -> None:
    """806 bytes of PNG are 30,000 x 8 pixels: a white square around them would have 2.7 GB."""
    tagger = load_tagger(str(wd_folder(tmp_path, TAGS, SCORES)), device="cpu")
    begun = time.process_time()
    seen = tagger.pixels(Image.new("RGB", (60_000, 8), (255, 0, 0)))
    assert time.process_time() - begun < 5
    assert seen.shape == (1, 3, 16, 16)


def test_of_a_very_long_picture_whose_shorter_side_is_scaled_the_middle_is_seen(tmp_path: Path) -> None:
    folder = tagger_folder(tmp_path, ["cat", "dog"], [2.0, -2.0])
    sizes = {"size": {"shortest_edge": 256}, "crop_size": {"height": 16, "width": 16}}
    change(folder / "preprocessor_config.json", image_processor_type="BitImageProcessor", **sizes)
    begun = time.process_time()
    tagger = load_tagger(str(folder), device="cpu")
    picture = Image.new("RGB", (30_000, 8), (255, 0, 0))
    picture.paste((0, 255, 0), (14_000, 0, 16_000, 8))
    seen = tagger.pixels(picture)
    assert time.process_time() - begun < 8
    assert seen.shape == (1, 3, 16, 16)
    assert (seen[0, 1] > seen[0, 0]).all()


def test_a_model_whose_input_or_tables_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    """Neither of them is in a file: a few kilobytes of weights would do for gigabytes."""
    names = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
    fine = ConvNextConfig(patch_size=1, num_stages=2, hidden_sizes=[8, 8], depths=[1, 1], image_size=32, **names)
    ConvNextForImageClassification(fine).save_pretrained(tmp_path / "fine")
    ConvNextImageProcessor(size={"shortest_edge": 1024}, crop_pct=1.0).save_pretrained(tmp_path / "fine")
    with pytest.raises(ModelNotUsable, match="an input of 1024 pixels has 1024 patches on a side"):
        load_tagger(str(tmp_path / "fine"), device="cpu")
    wide = SwinConfig(image_size=128, patch_size=4, embed_dim=8, depths=[12], num_heads=[1], window_size=32, **names)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in SwinForImageClassification(wide).named_parameters()}
    wide.save_pretrained(tmp_path / "wide")
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "wide" / "model.safetensors")
    ViTImageProcessor(size={"height": 128, "width": 128}).save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelNotUsable, match="its tables of positions would take"):
        load_tagger(str(tmp_path / "wide"), device="cpu")


def test_a_model_that_compares_very_many_patches_is_refused(blip: Path, tmp_path: Path) -> None:
    """Their comparisons are in no file: with 300 kilobytes of weights, a picture took gigabytes or minutes."""
    shutil.copytree(blip, tmp_path / "blip")
    vision = json.loads((blip / "config.json").read_text())["vision_config"]
    change(tmp_path / "blip" / "config.json", vision_config={**vision, "image_size": 128, "patch_size": 1})
    change(tmp_path / "blip" / "preprocessor_config.json", size={"height": 128, "width": 128})
    with pytest.raises(ModelNotUsable, match="an input of 128 pixels has 128 patches on a side, where at most 53 are"):
        load_blip(str(tmp_path / "blip"), device="cpu")
    folder = tagger_folder(tmp_path / "vit", ["cat"], [0.0])
    change(folder / "preprocessor_config.json", size={"height": 1024, "width": 1024})
    with pytest.raises(ModelNotUsable, match="an input of 1024 pixels has 128 patches on a side, where at most 70 are"):
        load_tagger(str(folder), device="cpu")


def test_a_tokenizer_of_its_own_code_is_not_asked_for(blip: Path, tmp_path: Path) -> None:
    for path in blip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change(tmp_path / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    expected = load_blip(str(blip), device="cpu").caption(noise((50, 40)))
    assert load_blip(str(tmp_path), device="cpu").caption(noise((50, 40))) == expected
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_json_of_a_captioner_that_is_too_much_is_refused(tmp_path: Path, name: str) -> None:
    tagger_folder(tmp_path, ["cat", "dog"], [0.0, 0.0])
    (tmp_path / name).write_text('{"a":' + "[" * 200_000)
    with pytest.raises(ModelNotUsable, match="nested too deeply"):
        load_tagger(str(tmp_path), device="cpu")


def test_of_a_captioner_of_the_hub_only_files_with_known_names_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def fetch(hub_id: str, name: str, **how: Any) -> str:
        asked.append(name)
        return str(tmp_path / name)

    def info(hub: Any, hub_id: str, **how: Any) -> Any:
        names = [*os.listdir(tmp_path), "model.bin", "evil.py", "more/config.json", "pytorch_model.bin"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    tagger_folder(tmp_path, ["cat", "dog"], [2.0, -2.0])
    assert load_tagger("somebody/tagger", device="cpu").caption(noise((30, 20))) == "cat"
    assert {*asked} == {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.parametrize(
    ("file", "values"),
    [
        *(("config.json", {"num_attention_heads": -2}), ("config.json", {"image_size": -16})),
        *(
            ("preprocessor_config.json", values)
            for values in (
                *({"rescale_factor": "x"}, {"rescale_factor": None}, {"rescale_factor": float("nan")}),
                *({"image_std": [0, 0, 0]}, {"image_std": [1]}, {"image_std": ["a"] * 3}, {"image_mean": None}),
                *({"resample": 99}, {"resample": None}, {"size": {"shortest_edge": 5}}, {"size": {"height": 4096}}),
                {"do_center_crop": True},
            )
        ),
    ],
)
def test_a_tagger_whose_files_contradict_each_other_is_told_as_no_defect(
    tmp_path: Path, file: str, values: dict[str, Any]
) -> None:
    change(tagger_folder(tmp_path, ["red_hair", "b"], [3.0, 3.0]) / file, **values)
    with pytest.raises(ModelNotUsable) as refusal:
        load_tagger(str(tmp_path), device="cpu").caption(noise((30, 20)))
    assert "\n" not in str(refusal.value)
    assert refusal.value.hint


@pytest.mark.parametrize("name", ["\x1b]0;x\x07", "a\nb", "\u202eevil", "", "x" * 5000])
def test_a_tag_that_no_caption_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    change(
        tagger_folder(tmp_path, ["red_hair", "b", "c"], [3.0] * 3) / "config.json",
        id2label={"0": name, "1": "b", "2": "c"},
    )
    with pytest.raises(ModelNotUsable, match="is no tag"):
        load_tagger(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    "table",
    [
        "name,category\nSECRET,SECRET\nb,0\nc,0\n",
        "name,category\na\x1bSECRET,0\nb,0\nc,0\n",
        f"name,category\nSECRET{'x' * 400},0\nb,0\nc,0\n",
        "name,category,SECRET,SECRET,name\na,0,1,2,3\n",
    ],
)
def test_of_a_table_that_is_none_of_tags_nothing_is_said(tmp_path: Path, table: str) -> None:
    """A folder from a stranger may hold a link to a private table in place of it."""
    folder = wd_folder(tmp_path / "wd", [("a", 0), ("b", 0), ("c", 0)], [5.0, 5.0, 5.0])
    (folder / "selected_tags.csv").write_text(table)
    with pytest.raises(ModelNotUsable) as raised:
        load_tagger(str(folder), device="cpu")
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    "table",
    [
        pytest.param("tag_id,name,category,count" + "," * 40_000 + "\n" + "0,a,0\n" * 20_000, id="many columns"),
        pytest.param('tag_id,name,category,count,"' + '\n","' * 200_000 + '"\n', id="cells over many lines"),
        pytest.param("tag_id,name,category,count\n0," + "x" * 200_000 + ",0,1\n", id="a cell longer than any"),
    ],
)
def test_a_table_that_would_be_far_more_than_its_file_is_refused_at_once(tmp_path: Path, table: str) -> None:
    folder = wd_folder(tmp_path, TAGS, SCORES)
    (folder / "selected_tags.csv").write_text(table)
    started = time.process_time()
    with pytest.raises(ModelNotUsable, match=r"no list of tags and their categories|no column is called name"):
        load_tagger(str(folder), device="cpu")
    assert time.process_time() - started < 2


def test_a_table_without_tags_is_refused(tmp_path: Path) -> None:
    wd_folder(tmp_path, [("a", 0), ("b", 0)], [0.9, 0.9])
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category,count\n")
    with pytest.raises(ModelNotUsable, match="no tags"):
        load_tagger(str(tmp_path), device="cpu")


def test_a_table_that_names_each_tag_twice_is_refused(tmp_path: Path) -> None:
    wd_folder(tmp_path, [("a", 0), ("b", 0)], [0.9, 0.9])
    (tmp_path / "selected_tags.csv").write_text("tag_id,name,category,name\n0,a,0,c\n1,b,0,d\n")
    with pytest.raises(ModelNotUsable, match="2 columns are called name"):
        load_tagger(str(tmp_path), device="cpu")


def test_a_folder_is_captioned_by_both_as_by_the_command(blip: Path, tmp_path: Path) -> None:
    tagger = wd_folder(tmp_path / "tagger", TAGS, SCORES)
    (tmp_path / "photos").mkdir()
    noise((32, 32)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("mine", encoding="utf-8")
    photos = tmp_path / "photos"
    (one,) = prepare(
        photos,
        tmp_path / "python",
        size=32,
        captions=["tags", "blip"],
        blip_model=str(blip),
        tags_model=str(tagger),
        existing="append",
        prefix="in ink, ",
        exclude_tags=["cat"],
        keep_underscores=True,
        escape=False,
        by_score=True,
        device="cpu",
    ).made
    models = ["--caption", "tags", "--caption", "blip", "--blip-model", str(blip), "--tags-model", str(tagger)]
    how = ["--existing", "append", "--prefix", "in ink, ", "--exclude-tag", "cat", "--keep-underscores", "--no-escape"]
    said = ["train", "prepare", str(photos), "--out", str(tmp_path / "command"), "--size", "32", "--device", "cpu"]
    assert run([*said, *models, *how, "--by-score"]) == 0
    assert one.caption.startswith("mine, in ink, ")
    assert "cat" not in one.caption
    assert (tmp_path / "command" / "a.txt").read_text(encoding="utf-8") == f"{one.caption}\n"
