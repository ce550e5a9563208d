"""Easy Diffusion's settings, by the names of its interface and by those on the screen."""

from __future__ import annotations

import pytest

from hnetkit.generate.image_settings import settings_from_infotext
from hnetkit.prompts import easy_diffusion
from hnetkit.prompts.infotext import hypernetworks_of

GIVEN = {
    **{"prompt": "a large star", "negative_prompt": "blurry", "seed": "5", "width": "512", "height": "768"},
    **{"use_stable_diffusion_model": "models/sd-v1-5.ckpt", "use_vae_model": "None", "sampler_name": "euler_a"},
    **{"num_inference_steps": "25", "guidance_scale": "7.5", "use_hypernetwork_model": "ink", "use_upscale": "None"},
    **{"hypernetwork_strength": "0.4", "tiling": "None", "use_face_correction": "None", "clip_skip": "True"},
}
PARAMETERS = {
    **{
        "Steps": "25",
        "CFG scale": "7.5",
        "Seed": "5",
        "Model": "sd-v1-5",
        "Hypernet": "ink",
        "Hypernet strength": "0.4",
    },
    **{"Clip skip": "2", "Sampler": "Euler a", "Size": "512x768", "Version": "Easy Diffusion"},
}
SCREEN = """Prompt: a large star
Negative Prompt: blurry
Seed: 5
Stable Diffusion model: sd-v1-5
Clip Skip: True
Sampler: euler_a
Width: 512
Height: 768
Steps: 25
Guidance Scale: 7.5
Hypernetwork model: ink
Hypernetwork Strength: 0.4
Seamless Tiling: None
"""


def test_each_text_of_a_picture_is_a_setting() -> None:
    read = easy_diffusion.parse(GIVEN)
    assert read == ("a large star<hypernet:ink:0.4>", "blurry", PARAMETERS, ())
    assert hypernetworks_of(read).networks == (("ink", 0.4, None),)


def test_the_lines_of_its_text_file_are_the_same_settings() -> None:
    assert easy_diffusion.parse_lines(SCREEN) == easy_diffusion.parse(GIVEN)
    assert easy_diffusion.parse_lines(SCREEN.replace("\n", "\r\n")) == easy_diffusion.parse(GIVEN)


@pytest.mark.parametrize(
    ("models", "strengths", "tags"),
    [
        ("glow", "0.5", "<lora:glow:0.5>"),
        ("a/glow.safetensors", "0.5", "<lora:glow:0.5>"),
        ("['glow', 'soft light']", "[0.5, 1.0]", "<lora:glow:0.5><lora:soft light:1.0>"),
        ("glow, fog", "0.5, 0.2", "<lora:glow:0.5><lora:fog:0.2>"),
        ("None", "None", ""),
    ],
)
def test_its_loras_become_tags(models: str, strengths: str, tags: str) -> None:
    given = {key: value for key, value in GIVEN.items() if "hypernetwork" not in key}
    read = easy_diffusion.parse(given | {"use_lora_model": models, "lora_alpha": strengths})
    assert read is not None
    assert read.prompt == "a large star" + tags


def test_its_textual_inversions_are_named() -> None:
    read = easy_diffusion.parse(GIVEN | {"use_embeddings_model": "['old/soft.pt', 'bad']"})
    assert read is not None
    assert read.parameters["Used embeddings"] == "soft, bad"


def test_what_has_no_counterpart_keeps_its_name() -> None:
    read = easy_diffusion.parse(GIVEN | {"use_upscale": "RealESRGAN_x4plus", "prompt_strength": "0.6"})
    assert read is not None
    assert read.parameters["Use Upscaling"] == "RealESRGAN_x4plus"
    assert read.parameters["Denoising strength"] == "0.6"


@pytest.mark.parametrize("given", [{}, {"prompt": "a cat"}, {"prompt": "a", "seed": "1", "num_inference_steps": "5"}])
def test_other_texts_are_not_its_own(given: dict[str, str]) -> None:
    assert easy_diffusion.parse(given) is None


@pytest.mark.parametrize("text", ["", "a cat", "a cat\nSteps: 20, Sampler: Euler, Seed: 1", "Prompt: a\nSteps: 5"])
def test_other_lines_are_not_its_own(text: str) -> None:
    assert easy_diffusion.parse_lines(text) is None


def test_names_of_loras_may_have_commas_and_quotes() -> None:
    given = {"use_lora_model": "['glow, v2', \"it's\", 'b']", "lora_alpha": "[0.5, 0.7, 0.2]"}
    read = easy_diffusion.parse({"prompt": "a star", "num_inference_steps": "4", "guidance_scale": "5", **given})
    assert read is not None
    assert read.prompt == "a star<lora:glow, v2:0.5><lora:it's:0.7><lora:b:0.2>"


@pytest.mark.parametrize(
    ("prompt", "is_said"),
    [("a (star)1.4", True), ("blue++ sky", True), ("(a b)--, c", True), ("C++20, a well-known (star), 1-2", False)],
)
def test_weights_that_a1111_does_not_know_are_said(prompt: str, is_said: bool) -> None:
    read = easy_diffusion.parse({"prompt": prompt, "num_inference_steps": "4", "guidance_scale": "5"})
    assert read is not None
    assert bool(read.warnings) == is_said


def test_what_only_a1111_reads_as_more_than_text_is_written_so_or_said() -> None:
    read = easy_diffusion.parse({**GIVEN, "prompt": "a sign, 16:9"})
    assert read is not None
    assert (read.prompt, read.warnings) == ("a sign, 16:9:1<hypernet:ink:0.4>", ())
    read = easy_diffusion.parse({**GIVEN, "prompt": "a [red:blue:0.5] star AND a dot"})
    assert read is not None
    assert read.warnings == ("its prompt has square brackets and AND, plain text in Easy Diffusion and none in A1111",)
    read = easy_diffusion.parse({**GIVEN, "negative_prompt": "[red:blue:0.5], this AND that"})
    assert read is not None
    assert read.warnings == ("its negative prompt has square brackets, plain text in Easy Diffusion and none in A1111",)


def test_a_tag_in_its_prompt_is_no_network() -> None:
    read = easy_diffusion.parse({**GIVEN, "prompt": "a star <hypernet:dots:1>"})
    assert read is not None
    assert read.prompt == "a star<hypernet:ink:0.4>"
    assert read.warnings == ("<hypernet:dots:1>: Easy Diffusion does not read tags; it is left out",)


def test_settings_of_other_versions_are_named_and_none_is_lost() -> None:
    read = easy_diffusion.parse(
        GIVEN | {"scheduler_name": "karras", "control_alpha": "None", "use_embedding_models": "['/e/soft.pt']"}
    )
    assert read is not None
    assert read.parameters["scheduler_name"] == "karras"
    assert "control_alpha" not in read.parameters
    assert read.parameters["Used embeddings"] == "soft"
    assert "not taken over: scheduler_name" in settings_from_infotext(read).warnings


def test_a_lora_without_a_strength_that_can_be_read_is_told() -> None:
    read = easy_diffusion.parse(GIVEN | {"use_lora_model": "['glow', 'fog']", "lora_alpha": "[None, 0.5]"})
    assert read is not None
    assert read.prompt == "a large star<lora:fog:0.5><hypernet:ink:0.4>"
    assert [line for line in read.warnings if "LoRAs" in line and line.endswith("left out: glow")]
