"""Settings are found wherever a program leaves them: in a picture, in a text file beside it, in a given text."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hnetkit.errors import FileRefused, NoSettings, UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.differences import unsaid
from hnetkit.generate.image_settings import image_facts, read_image_settings, settings_from_infotext
from hnetkit.generate.options import DrawOptions
from hnetkit.image_text import as_infotext
from hnetkit.prompts import infotext

INFOTEXT = "a star <hypernet:ink:0.5>\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3"
EASY = {
    **{"prompt": "a star", "negative_prompt": "blurry", "seed": 3, "num_inference_steps": 20, "guidance_scale": 7},
    **{"sampler_name": "euler_a", "use_hypernetwork_model": "ink", "hypernetwork_strength": 0.5, "use_upscale": None},
}
LINES = "Prompt: a star\nNegative Prompt: blurry\nSeed: 3\nSampler: euler_a\nSteps: 20\nGuidance Scale: 7\n"
LINES += "Hypernetwork model: ink\nHypernetwork Strength: 0.5\n"
NOVELAI = {"steps": 20, "sampler": "k_euler_ancestral", "scale": 7, "seed": 3, "uc": "blurry"}


def png(path: Path, texts: dict[str, str], size: tuple[int, int] = (64, 96)) -> Path:
    about = PngInfo()
    for name, text in texts.items():
        about.add_text(name, text)
    Image.new("RGB", size).save(path, pnginfo=about)
    return path


def jpeg(path: Path, comment: str) -> Path:
    block = Image.Exif()
    block[0x8769] = {0x9286: b"UNICODE\0" + comment.encode("utf-16-be")}
    Image.new("RGB", (64, 96)).save(path, exif=block.tobytes())
    return path


def beside(path: Path, text: str) -> Path:
    Image.new("RGB", (64, 96)).save(path)
    path.with_suffix(".txt").write_text(text, encoding="utf-8")
    return path


def text_file(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


CARRIERS = {
    "A1111 in a PNG": lambda folder: png(folder / "a.png", {"parameters": INFOTEXT}),
    "A1111 in a PNG's other text": lambda folder: png(folder / "a.png", {"Comment": INFOTEXT}),
    "A1111 in a JPEG": lambda folder: jpeg(folder / "a.jpg", INFOTEXT),
    "A1111 beside a picture": lambda folder: beside(folder / "a.png", INFOTEXT),
    "a text file": lambda folder: text_file(folder / "a.txt", INFOTEXT),
    "a text file of Windows": lambda folder: text_file(folder / "a.txt", INFOTEXT.replace("\n", "\r\n"), "utf-8-sig"),
    "a text file of Windows' shell": lambda folder: text_file(folder / "a.txt", INFOTEXT, "utf-16"),
    "Easy Diffusion in a PNG": lambda folder: png(folder / "a.png", {key: str(value) for key, value in EASY.items()}),
    "Easy Diffusion in a JPEG": lambda folder: jpeg(folder / "a.jpg", json.dumps(EASY)),
    "Easy Diffusion beside a picture": lambda folder: beside(folder / "a.jpeg", LINES),
    "Easy Diffusion's text file": lambda folder: text_file(folder / "a.txt", LINES),
}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_the_same_settings_come_from_every_carrier(tmp_path: Path, home: Path, carrier: str) -> None:
    path = CARRIERS[carrier](tmp_path)
    read = read_image_settings(path)
    assert read.prompt in ("a star <hypernet:ink:0.5>", "a star<hypernet:ink:0.5>")
    assert read.seed == 3
    wanted = {"steps": 20, "sampler": "Euler a", "cfg_scale": 7.0, "negative_prompt": "blurry", "rng": "nv"}
    assert read.options == wanted
    said = (f"its settings are those in {path.stem}.txt beside it",) if "beside" in carrier else ()
    assert read.warnings == said
    with OpenFile(path) as file:
        row, failure = image_facts(file) or ({}, None)
    assert failure is None
    assert [(network["name"], network["strength"]) for network in row["hypernetworks"]] == [("ink", 0.5)]
    assert row["settings"]["Seed"] == "3"


def test_novelais_picture_is_read(tmp_path: Path) -> None:
    texts = {
        "Software": "NovelAI",
        "Description": "a {star}",
        "Comment": json.dumps(NOVELAI),
        "Source": "Stable Diffusion",
    }
    read = read_image_settings(png(tmp_path / "a.png", texts))
    assert (read.prompt, read.seed) == ("a (star:1.05)", 3)
    assert (read.options["width"], read.options["height"]) == (64, 96)
    assert read.options["eta_seed_delta"] == 31_337
    assert str(read.files["model"]) == "Stable Diffusion"
    assert read.warnings == ()


def test_a_caption_beside_a_picture_is_no_settings(tmp_path: Path) -> None:
    with pytest.raises(NoSettings, match="the picture carries no settings"):
        read_image_settings(beside(tmp_path / "a.png", "a large star, red: very, (soft:1.2)"))


def test_a_pictures_own_settings_go_before_a_text_beside_it(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", {"parameters": INFOTEXT})
    path.with_suffix(".txt").write_text(INFOTEXT.replace("Seed: 3", "Seed: 4"))
    assert read_image_settings(path).seed == 3


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
def test_a_link_beside_a_picture_to_a_text_elsewhere_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    diary = tmp_path / "private" / "diary.txt"
    diary.write_text("secret thoughts\nkey: secret, user: me, host: home\n")
    path = png(tmp_path / "a.png", {})
    path.with_suffix(".txt").symlink_to(diary)
    with pytest.raises(FileRefused, match=r"a\.txt: a link to a file elsewhere, whose text is not taken for") as error:
        read_image_settings(path)
    assert "secret" not in str(error.value)
    near = tmp_path / "near.txt"
    near.write_text(INFOTEXT)
    path.with_suffix(".txt").unlink()
    path.with_suffix(".txt").symlink_to(near)
    assert read_image_settings(path).seed == 3


def test_the_texts_of_an_unknown_program_are_named(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", {"invokeai_metadata": '{"seed": 1}', "Software": "Invoke", "empty": ""})
    with pytest.raises(NoSettings, match=r"its texts are: invokeai_metadata, Software$") as error:
        read_image_settings(path)
    assert error.value.hint
    with pytest.raises(NoSettings, match=r"Key 19 and 30 more$"):
        read_image_settings(png(tmp_path / "b.png", {f"Key {number}": "1" for number in range(50)}))


class _Input(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))


def test_standard_input_may_hold_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Input(INFOTEXT.encode()))
    assert read_image_settings(Path("-")).seed == 3


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (b"a cat", NoSettings, "standard input: the text has no settings"),
        (b"", NoSettings, "no settings"),
        (b"\0\1\2", NoSettings, "neither a picture nor a text"),
        (b"\x89PNG\r\n\x1a\n", UsageError, "holds a picture"),
        (b"a" * (1 << 21), NoSettings, "too long"),
        (b"a" * (1 << 19), FileRefused, "letters of parameters"),
    ],
)
def test_other_input_is_refused_for_what_it_is(
    monkeypatch: pytest.MonkeyPatch, data: bytes, error: type[Exception], said: str
) -> None:
    monkeypatch.setattr(sys, "stdin", _Input(data))
    with pytest.raises(error, match=said) as raised:
        read_image_settings(Path("-"))
    assert "standard input" in str(raised.value)


STATED = "a star\nSteps: 4, Sampler: Euler, CFG scale: 5, Seed: 7, Size: 64x64"


def warned(path: Path) -> str:
    return "\n".join(read_image_settings(path).warnings)


def test_other_settings_in_a_pictures_exif_data_are_said(tmp_path: Path) -> None:
    texts, exif = PngInfo(), Image.Exif()
    texts.add_text("parameters", STATED)
    exif.endian = ">"
    for seed, is_said in (("7", False), ("8", True)):
        comment = STATED.replace("Seed: 7", f"Seed: {seed}")
        exif[0x8769] = {0x9286: b"UNICODE\0" + comment.encode("utf-16-be")}
        path = tmp_path / f"{seed}.png"
        Image.new("RGB", (8, 8)).save(path, pnginfo=texts, exif=exif.tobytes())
        assert read_image_settings(path).seed == 7
        assert ("its EXIF data has other settings" in warned(path)) == is_said


def test_a_network_that_only_the_graph_of_a_picture_has_is_said(tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "HypernetworkLoader", "inputs": {"hypernetwork_name": "dots.pt", "strength": 0.7}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a star"}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 7, "model": ["1", 0], "positive": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
    }
    without = png(tmp_path / "a.png", {"parameters": STATED, "prompt": json.dumps(graph)})
    named = STATED.replace("a star", "a star<hypernet:dots:0.7>")
    assert "hypernetworks that its text `parameters` does not name, which are not applied: dots" in warned(without)
    assert warned(png(tmp_path / "b.png", {"parameters": named, "prompt": json.dumps(graph)}, (64, 64))) == ""


def test_a_lora_that_only_the_graph_of_a_picture_has_is_said(tmp_path: Path) -> None:
    lora = {"lora_name": "styles\\glow.safetensors", "strength_model": 0.6, "strength_clip": 0.6}
    graph = {
        "1": {"class_type": "LoraLoader", "inputs": lora},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a star", "clip": ["1", 1]}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 7, "model": ["1", 0], "positive": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
    }
    said = "LoRAs that its text `parameters` does not name, which are not applied: glow"
    without = png(tmp_path / "a.png", {"parameters": STATED, "prompt": json.dumps(graph)})
    assert said in warned(without)
    named = STATED.replace("a star", "a star <lora:styles\\Glow:0.6>")
    assert warned(png(tmp_path / "b.png", {"parameters": named, "prompt": json.dumps(graph)}, (64, 64))) == ""
    hashed = f"{STATED}, Hashes: {json.dumps({'LORA:glow': 'AABBCCDDEE'})}"  # said of the hashes
    assert said not in warned(png(tmp_path / "c.png", {"parameters": hashed, "prompt": json.dumps(graph)}))


def test_settings_that_only_the_graph_of_a_picture_has_are_said(tmp_path: Path) -> None:
    sampler = {"seed": 7, "steps": 4, "positive": ["2", 0], "latent_image": ["6", 0], "denoise": 0.5}
    graph = {
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a star"}},
        "3": {"class_type": "KSampler", "inputs": sampler},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
        "5": {"class_type": "LoadImage", "inputs": {"image": "first.png"}},
        "6": {"class_type": "VAEEncode", "inputs": {"pixels": ["5", 0]}},
    }
    said = "its ComfyUI graph has settings that its text `parameters` does not, which are not taken over"
    texts = {"parameters": STATED, "prompt": json.dumps(graph)}
    assert f"{said}: Denoising strength, Start image" in warned(png(tmp_path / "a.png", texts))
    stated = f"{STATED}, Denoising strength: 0.5, Start image: first.png"
    assert said not in warned(png(tmp_path / "b.png", {**texts, "parameters": stated}))


def test_letters_that_are_not_utf_8_are_said(tmp_path: Path) -> None:
    text = STATED.replace("a star", "un café")
    assert "letters of its prompts cannot be read" in warned(text_file(tmp_path / "a.txt", text, "cp1252"))
    assert warned(text_file(tmp_path / "b.txt", text)) == ""


def test_an_infotext_of_comfyui_has_its_noise(tmp_path: Path) -> None:
    text = f"{STATED}, Version: ComfyUI"
    read = read_image_settings(text_file(tmp_path / "a.txt", text))
    assert (read.options["rng"], read.warnings) == ("cpu", ())
    noisy = warned(text_file(tmp_path / "b.txt", text.replace("Euler", "Euler a")))
    assert noisy == "Euler a adds noise in every step, which ComfyUI makes in another way: the picture will differ"


def test_an_infotext_beside_a_graph_is_of_comfyui(tmp_path: Path) -> None:
    graph = {
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a star"}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 7, "positive": ["2", 0]}},
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0]}},
    }

    def noise(settings: str, *nodes: str) -> object:
        kept = {number: graph[number] for number in nodes}
        path = png(tmp_path / "a.png", {"parameters": settings, "prompt": json.dumps(kept)}, (64, 64))
        return read_image_settings(path).options["rng"]

    assert noise(STATED, *graph) == "cpu"
    assert noise(f"{STATED}, Version: v1.10.1", *graph) == "nv"  # it says itself who drew it
    assert noise(f"{STATED}, RNG: NV", *graph) == "nv"
    assert noise(STATED, "2") == "nv"  # no graph that draws


@pytest.mark.parametrize(
    "graph",
    [
        {"prompt": {"3": {"class_type": "PackSampler", "inputs": {"numbers": 7}}}},
        {"prompt": {"3": {"class_type": "KSampler", "inputs": {"seed": ["4", 0], "positive": ["2", 0]}}}},
        {"prompt": {"3": {"class_type": "KSampler", "inputs": {"seed": 7}, "is_changed": [float("nan")]}}},
        {"workflow": {"nodes": [{"id": 3, "type": "KSampler", "widgets_values": [7]}], "links": []}},
    ],
    ids=["of-another-pack", "seed-of-another-node", "not-a-number", "workflow-alone"],
)
def test_an_infotext_beside_a_graph_that_is_read_in_part_is_of_comfyui_too(tmp_path: Path, graph: Any) -> None:
    beside = {name: json.dumps(value) for name, value in graph.items()}
    path = png(tmp_path / "a.png", {"parameters": STATED, **beside}, (64, 64))
    assert read_image_settings(path).options["rng"] == "cpu"


def test_fooocus_samples_as_comfyui_does(tmp_path: Path) -> None:
    text = f"{STATED.replace('a star', 'a (red:1.5) star')}, Version: Fooocus v2.5.5"
    read = read_image_settings(text_file(tmp_path / "a.txt", text))
    said = "its prompt has weights in round brackets, which Fooocus applies in another way than A1111"
    assert (read.options["rng"], read.warnings) == ("cpu", (said,))


def test_signs_that_only_a1111_reads_as_plain_ones_are_said_of_comfyui(tmp_path: Path) -> None:
    said = "its prompt has signs such as \u201c or \uff0c, which A1111 reads as the plain ones, and ComfyUI may not"
    for prompt, lines in (("a \u201cred\u201d star", said), ("a red star\uff0c", said), ("un cafe\u0301", "")):
        text = f"{STATED.replace('a star', prompt)}, Version: ComfyUI"
        assert warned(text_file(tmp_path / "a.txt", text)) == lines


@pytest.mark.parametrize(
    ("others", "is_said"),
    [
        ("App: SD.Next, Version: 04a5071, Backend: Diffusers, Pipeline: StableDiffusionPipeline", True),
        ("App: SD.Next, Version: 04a5071, Pipeline: StableDiffusionPipeline", True),
        ("Version: 04a5071, Backend: Original, App: SD.Next", False),
        ("Version: 04a5071, Pipeline: Original", False),
    ],
)
def test_pictures_that_sdnext_drew_with_diffusers_are_said(tmp_path: Path, others: str, is_said: bool) -> None:
    said = "SD.Next drew it with diffusers, which samples and weighs words in another way than A1111: the picture will"
    assert (f"{said} differ" in warned(text_file(tmp_path / "a.txt", f"{STATED}, {others}"))) == is_said


@pytest.mark.parametrize("version", ["ComfyUI", "Fooocus v2.5.5"])
def test_what_only_a1111_reads_as_more_than_text_is_said(tmp_path: Path, version: str) -> None:
    text = f"{STATED.replace('a star', 'a [red:blue:0.5] sign, 16:9')}, Version: {version}"
    said = (
        f"its prompt has square brackets and a number at its end, plain text in {version.split()[0]} and none in A1111"
    )
    assert warned(text_file(tmp_path / "a.txt", text)) == said
    assert warned(text_file(tmp_path / "b.txt", f"{text}, RNG: CPU")) == ""  # of a graph, whose prompt was converted
    second = 'Hires upscale: 2, Denoising strength: 0.5, Hires prompt: "a [red:blue:0.5] sign, 16:9"'
    text = f"{STATED}, {second}, Version: {version}"
    assert warned(text_file(tmp_path / "c.txt", text)) == said


def test_the_unknown_noise_of_civitai_is_said(tmp_path: Path) -> None:
    text = f'{STATED}, Civitai resources: [{{"type": "checkpoint"}}]'
    said = "Civitai drew it, and does not say with which program's noise: the picture may differ"
    assert warned(text_file(tmp_path / "a.txt", text)) == said
    assert warned(text_file(tmp_path / "b.txt", f"{text}, RNG: CPU")) == ""


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (", Version: v1.5.1", "it was drawn by"),
        (", Version: v1.10.1, Old prompt editing timelines: True", "it was drawn by"),
        ("", "if it was drawn by"),
        (", Version: v1.10.1", ""),
        (", Version: f0.0.17v1.8.0rc-latest", ""),
        (", Version: hnetkit 0.2.0", ""),
    ],
)
def test_changes_that_an_older_a1111_made_in_both_passes_are_said(tmp_path: Path, others: str, said: str) -> None:
    text = STATED.replace("a star", "a [red:blue:0.5] star") + ", Denoising strength: 0.5, Hires upscale: 2" + others
    lines = read_image_settings(text_file(tmp_path / "a.txt", text)).warnings
    assert [line[: len(said)] for line in lines if "1.6" in line] == ([said] if said else [])
    plain = text.replace("[red:blue:0.5]", "red")
    assert not any("1.6" in line for line in read_image_settings(text_file(tmp_path / "b.txt", plain)).warnings)
    one_pass = text.replace(", Denoising strength: 0.5, Hires upscale: 2", "")
    assert not any("1.6" in line for line in read_image_settings(text_file(tmp_path / "c.txt", one_pass)).warnings)


@pytest.mark.parametrize(
    ("time", "version", "is_said"),
    [
        *(("1.0", ", Version: v1.5.1", True), ("10.", "", True), ("1.0", ", Version: v1.10.1", False)),
        *(("10", ", Version: v1.5.1", False), ("0.5", ", Version: v1.5.1", False)),
    ],
)
def test_a_step_that_an_older_a1111_wrote_with_a_point_is_said(
    tmp_path: Path, time: str, version: str, is_said: bool
) -> None:
    text = STATED.replace("a star", f"a [red:blue:{time}] star") + version
    assert (f" {time} in its prompt is a step" in warned(text_file(tmp_path / "a.txt", text))) == is_said


def test_a_variation_seed_that_a_picture_does_not_say_is_said() -> None:
    recorded = settings_from_infotext(infotext.parse(f"{STATED}, Variation seed strength: 0.5"))
    options = DrawOptions(**recorded.options)
    assert list(unsaid(recorded, options, None, None)) == [
        "it does not say its variation seed; 0 is used: --variation-seed N"
    ]


def test_a_prompt_that_begins_like_settings_of_sdnext_is_a_prompt() -> None:
    text = "a star\nApp: red circle,\nSteps: 4, Sampler: Euler, Seed: 5, Version: hnetkit 0.2.0"
    assert infotext.parse(text).prompt == "a star\nApp: red circle,"
    assert infotext.parse(text.replace(", Version: hnetkit 0.2.0", "")).prompt == "a star\nApp: red circle,"
    own = text.replace("App: red circle,", "App: SD.Next, Version: 1,").replace(", Version: hnetkit 0.2.0", "")
    assert infotext.parse(own).prompt == "a star"


def test_a_picture_of_another_size_than_its_settings_make_is_said(tmp_path: Path) -> None:
    said = "the picture is 192x128, and its settings make one of 64x64: a sheet, or enlarged, scaled or cropped since"
    assert warned(png(tmp_path / "a.png", {"parameters": STATED}, (192, 128))) == said
    assert warned(png(tmp_path / "b.png", {"parameters": STATED}, (64, 64))) == ""
    twice = f"{STATED}, Denoising strength: 0.5, Hires upscale: 1.55, Hires upscaler: Latent"
    assert warned(png(tmp_path / "c.png", {"parameters": twice}, (96, 96))) == ""  # 99 in multiples of 8
    assert "is 64x64, and its settings make one of 99x99" in warned(
        png(tmp_path / "d.png", {"parameters": twice}, (64, 64))
    )


def test_the_networks_of_civitais_list_are_said(tmp_path: Path) -> None:
    resources = [{"type": "checkpoint", "modelName": "Base"}, {"type": "lora", "weight": 0.8, "modelName": "Glow"}]
    text = f"{STATED}, Civitai resources: {json.dumps(resources)}, Civitai metadata: {{}}, Version: v1.10.1"
    said = "Civitai's list in it has networks that are not applied: Glow at 0.8; add their tags to the prompt"
    assert warned(text_file(tmp_path / "a.txt", text)) == said
    assert warned(text_file(tmp_path / "b.txt", text.replace("a star", "a star <lora:glow:0.8>"))) == ""


AIR = "urn:air:sd1:{}:civitai:82098@87153"


@pytest.mark.parametrize(
    ("resource", "prompt", "is_said"),
    [
        ({"air": AIR.format("lora")}, "a star", True),
        ({"air": AIR.format("checkpoint")}, "a star", False),
        ({"air": AIR.format("embedding")}, "a star", False),
        ({"modelVersionId": 87153}, "a star", True),
        ({"type": "LoCon"}, "a star <hypernet:ink:0.5>", True),
        ({"type": "Hypernetwork"}, "a star <hypernet:ink:0.5>", False),
        ({"type": "lycoris"}, "a star <lyco:glow:0.5>", False),
    ],
)
def test_a_network_of_civitais_list_is_said_unless_the_prompt_has_tags_of_its_kind(
    tmp_path: Path, resource: dict[str, Any], prompt: str, is_said: bool
) -> None:
    resources = json.dumps([{"modelName": "Glow", "versionName": "v1", "weight": 0.8, **resource}])
    text = f"{STATED.replace('a star', prompt)}, Civitai resources: {resources}, Version: v1.10.1"
    assert ("networks that are not applied: Glow v1 at 0.8" in warned(text_file(tmp_path / "a.txt", text))) == is_said


@pytest.mark.parametrize("kind", ["lora", "LORA", "LoCon", "lyco", "HYPERNET", "Hypernetwork"])
def test_a_network_that_only_the_hashes_name_is_said_however_its_kind_is_written(tmp_path: Path, kind: str) -> None:
    text = f"{STATED}, Hashes: {json.dumps({f'{kind}:glow': 'AABBCCDDEE'})}, Version: v1.10.1"
    said = "its hashes name networks that its prompt does not, which are not applied: glow"
    assert warned(text_file(tmp_path / "a.txt", text)) == said


@pytest.mark.parametrize("kind", ["lora", "LORA", "embed", "hypernet", "model"])
def test_a_hash_in_capitals_is_compared_as_any(tmp_path: Path, kind: str) -> None:
    resource, known = ("model", "model") if kind == "model" else (f"{kind}:glow", f"{kind.lower()}:glow")
    text = f"{STATED}, Hashes: {json.dumps({resource: 'AABBCCDDEE'})}, Version: v1.10.1"
    assert read_image_settings(text_file(tmp_path / "a.txt", text)).hashes[known] == "aabbccddee"


def test_draw_things_picture_is_read_without_the_markup_around_it(tmp_path: Path) -> None:
    settings = "Steps: 8, Sampler: Euler A, Guidance Scale: 7.0, Seed: 5, Size: 64x64, Strength: 1.0, Seed Mode: Legacy"
    xmp = f"<x:xmpmeta><dc:description>a star&#xA;-fog&#xA;{settings}</dc:description></x:xmpmeta>"
    read = read_image_settings(png(tmp_path / "a.png", {"XML:com.adobe.xmp": xmp}, (64, 64)))
    assert (read.prompt, read.options["negative_prompt"], read.options["cfg_scale"]) == ("a star", "fog", 7.0)
    assert read.warnings == ("not taken over: Seed Mode",)


SAMPLING = "Steps: 20, Sampler: Euler a, CFG scale: 7"


def test_what_was_read_can_be_written_again(shared: Path) -> None:
    texts = [entry["text"] for entry in json.loads((shared / "data" / "infotexts.json").read_text(encoding="utf-8"))]
    texts += [path.read_text(encoding="utf-8") for path in sorted((shared / "cases/pictures/infotexts").iterdir())]
    texts += [
        f'a\n{SAMPLING}, Hypernetworks: ink, wash, Hypernetworks Strengths: 0.5, 1, Hashes: {{"model": "0123456789"}}',
        f'a\n{SAMPLING}, Hypernet hashes: "ink: 0123456789"',
        f'a\nNegative prompt: b\nVersion: 1, App: SD.Next, \n{SAMPLING}, Hires prompt: "c, d\\ne: \\"f\\""',
    ]
    for text in texts:
        read = infotext.parse(text)
        again = infotext.parse(as_infotext(read))
        assert again[:2] == read[:2]
        assert again.parameters | {"Hashes": ""} == read.parameters | {"Hashes": ""}
        assert again.hashes == read.hashes
        assert infotext.hypernetworks_of(again).networks == infotext.hypernetworks_of(read).networks
    assert as_infotext(infotext.parse(texts[-3])).endswith(', Hashes: {"model": "0123456789"}')
