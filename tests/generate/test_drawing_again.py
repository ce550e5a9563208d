"""What is taken over from a stranger's picture, and what is too absurd to be: settings, sizes, stacks, prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hnetkit.errors import UsageError
from hnetkit.generate.image_settings import RecordedFile, settings_from_infotext
from hnetkit.generate.request import LARGEST_SEED, MOST_PARTS, Request, SecondPass
from hnetkit.prompts.infotext import Infotext

REQUEST = Request("a cat", 1, steps=20, cfg_scale=7, width=512, height=512, sampler="Euler a")
HUGE = "9" * 5_000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("Steps", "1000000000"), ("Steps", HUGE), ("Steps", "-1"), ("CFG scale", "nan"), ("CFG scale", "1e400")),
        *(("Size", "65536x65536"), ("Size", "999992x8"), ("Size", "16384x16384"), ("Size", HUGE)),
        *(("Seed", HUGE), ("ENSD", HUGE), ("ENSD", "1" * 30), ("Clip skip", "1000000"), ("Variation seed", HUGE)),
        *(("Variation seed strength", "1e9"), ("Emphasis", "x" * 100_000), ("RNG", "x" * 100_000)),
        *(("Hires resize", "65536x65536"), ("Sampler", "x" * 100_000)),
    ],
)
def test_a_setting_that_no_picture_has_is_not_taken_over_and_said_in_a_line(key: str, value: str) -> None:
    plain = settings_from_infotext(Infotext("a cat", "", {}))
    recipe = settings_from_infotext(Infotext("a cat", "", {key: value}))
    assert (recipe.prompt, recipe.seed, recipe.options) == ("a cat", None, plain.options)
    (warning,) = recipe.warnings
    assert warning.startswith(f"{key}: {value[:20]}")
    assert warning.endswith(" cannot be taken over")
    assert len(warning) < 300


@pytest.mark.parametrize(("said", "rng"), [("CPU", "cpu"), ("NV", "nv"), ("GPU", "nv"), ("cuda", "nv")])
def test_the_source_of_noise_is_taken_over_by_each_name_of_it(said: str, rng: str) -> None:
    read = settings_from_infotext(Infotext("a cat", "", {"RNG": said}))
    assert (read.options["rng"], read.warnings) == (rng, ())


@pytest.mark.parametrize(
    ("key", "value"), [("Hires upscale", "1000000"), ("Hires steps", "1000000"), ("Denoising strength", "1e9")]
)
def test_a_second_pass_that_no_picture_has_is_not_taken_over(key: str, value: str) -> None:
    recipe = settings_from_infotext(Infotext("a cat", "", {"Hires upscale": "2", key: value}))
    assert recipe.warnings == (f"{key}: {value} cannot be taken over",)


@pytest.mark.parametrize("tag", ["<hypernet:ink:1>", "<lora:ink:1>"])
def test_a_stack_that_nobody_makes_is_not_taken_over(tag: str) -> None:
    recipe = settings_from_infotext(
        Infotext(tag * 101, "", {"Steps": "5", "Hires upscale": "2", "Hires prompt": tag * 101})
    )
    assert recipe.prompt is None
    assert recipe.options["steps"] == 5
    assert "hires_prompt" not in recipe.options
    assert recipe.warnings[-1] == "its prompt cannot be taken over: 101 tags are in it; at most 100"
    assert settings_from_infotext(Infotext(tag * 100, "", {})).prompt == tag * 100


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("[|]" * 80_000, "changes 1,000 times"),
        ("a AND " * 40_000, "40,001 prompts are joined by AND"),
        ("<hypernet:ink:1" + ":x=1" * 60_000 + ">", "60,001 tags are in it"),
        ("<hypernet:ink:x>" * 15_000, "15,000 tags are in it"),
    ],
)
def test_a_prompt_that_nobody_could_draw_is_not_taken_over(prompt: str, said: str) -> None:
    recipe = settings_from_infotext(Infotext(prompt, prompt, {"Steps": "1000"}))
    assert recipe.prompt is None
    assert "negative_prompt" not in recipe.options
    for name, warning in zip(("prompt", "negative prompt"), recipe.warnings, strict=True):
        assert warning.startswith(f"its {name} cannot be taken over: ")
        assert said in warning


def test_what_is_not_taken_over_is_named_in_one_line() -> None:
    known = {"Steps": "5", "Model": "m", "Version": "v1.10", "Hypernet": "ink", "Hypernet hash": "0123456789"}
    assert settings_from_infotext(Infotext("a cat", "", known)).warnings == ()
    unknown = {"Refiner": "xl", "Tiling": "True", **{f"Key {number}": "1" for number in range(100)}}
    (warning,) = settings_from_infotext(Infotext("a cat", "", known | unknown)).warnings
    assert warning.startswith("not taken over: Refiner, Tiling, Key 0, ")
    assert warning.endswith(" and 42 more")


def test_a_picture_that_was_drawn_over_another_one_says_so() -> None:
    def files(**parameters: str) -> dict[str, RecordedFile]:
        return dict(settings_from_infotext(Infotext("a cat", "", {"Denoising strength": "0.3"} | parameters)).files)

    unnamed = RecordedFile("", "")
    assert files() == {"image": unnamed}
    assert files(**{"Mask blur": "4"}) == {"image": unnamed, "mask": unnamed}
    assert files(**{"Hires upscale": "2"}) == {}
    named = {"Start image": "left.png", "Start image hash": "0123456789", "Mask image": "m.png"}
    assert files(**named) == {"image": RecordedFile("left.png", "0123456789"), "mask": RecordedFile("m.png", "")}


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({"Mask blur": "8"}, {"mask_blur": 8.0}),
        ({"Mask blur": "8", "Mask mode": "Inpaint not masked"}, {"mask_blur": 8.0, "invert_mask": True}),
        ({"Mask blur": "8", "Masked content": "latent noise"}, {"mask_blur": 8.0, "masked_content": "noise"}),
        ({"Mask blur": "8", "Masked content": "latent nothing"}, {"mask_blur": 8.0, "masked_content": "nothing"}),
    ],
)
def test_how_a_mask_was_used_is_taken_over(parameters: dict[str, str], options: dict[str, object]) -> None:
    read = settings_from_infotext(Infotext("a cat", "", {"Denoising strength": "0.3"} | parameters))
    assert read.options == {"rng": "nv", "negative_prompt": "", "denoising": 0.3} | options
    assert read.warnings == ()


def test_a_mask_that_was_filled_otherwise_is_said() -> None:
    parameters = {"Denoising strength": "0.3", "Masked content": "fill", "Inpaint area": "Only masked"}
    read = settings_from_infotext(Infotext("a cat", "", parameters))
    assert read.warnings == ("Masked content: fill cannot be taken over", "not taken over: Inpaint area")


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({"Size": "128x128", "First pass size": "64x64"}, {"width": 64, "height": 64, "hires_size": (128, 128)}),
        ({"Size": "864x1152", "First pass size": "0x0"}, {"width": 448, "height": 640, "hires_size": (864, 1152)}),
        ({"Size": "512x768", "Hires resize": "1024x1536"}, {"hires_size": (1024, 1536)}),
        ({"Size": "512x768", "Hires resize": "1024x0"}, {"hires_size": (1024, 1536)}),
        ({"Size": "512x768", "Hires resize": "0x1536"}, {"hires_size": (1024, 1536)}),
        ({"Size": "512x768", "Hires upscale": "1.5"}, {"hires_scale": 1.5}),
        ({"Size": "512x768", "Hires scale": "1.5", "Hires size": "768x1152"}, {"hires_size": (768, 1152)}),
    ],
)
def test_a_second_pass_is_taken_over_however_its_size_is_written(
    parameters: dict[str, str], options: dict[str, object]
) -> None:
    read = settings_from_infotext(Infotext("a cat", "", {"Denoising strength": "0.5"} | parameters))
    assert dict(read.options) | options == read.options
    assert read.options["denoising"] == 0.5
    assert "image" not in read.files
    assert [line for line in read.warnings if "First pass" in line or "not taken over" in line] == []


def test_the_strength_of_sdnexts_second_pass_goes_before_that_of_its_first() -> None:
    given = {"Size": "512x512", "Hires scale": "2", "Denoising strength": "0.5", "Hires strength": "0.3"}
    read = settings_from_infotext(Infotext("a cat", "", given))
    assert (read.options["denoising"], read.warnings) == (0.3, ())


def test_two_passes_of_2022_say_that_their_upscaler_is_a_guess() -> None:
    first = {"Size": "128x128", "First pass size": "64x64"}
    (warning,) = settings_from_infotext(Infotext("a cat", "", first)).warnings
    assert warning.startswith("it was drawn in two passes, the first of 64x64;")
    assert "--hires-upscaler Lanczos" in warning
    assert settings_from_infotext(Infotext("a cat", "", first | {"Hires upscaler": "Lanczos"})).warnings == ()
    (warning,) = settings_from_infotext(Infotext("a cat", "", first | {"First pass size": "64 x"})).warnings
    assert warning == "First pass size: 64 x cannot be taken over"


@pytest.mark.parametrize(
    ("written", "taken", "is_said"),
    [
        ("Latent", "Latent", False),
        ("None", "Lanczos", False),
        ("Latent (nearest-exact)", "Latent", True),
        ("4x-UltraSharp", "Lanczos", True),
    ],
)
def test_the_nearest_upscaler_is_used_and_named(written: str, taken: str, is_said: bool) -> None:
    read = settings_from_infotext(Infotext("a cat", "", {"Hires upscale": "2", "Hires upscaler": written}))
    assert read.options["hires_upscaler"] == taken
    said = (f"Hires upscaler: {written} cannot be taken over; {taken} is used",)
    assert read.warnings == (said if is_said else ())


def test_a_schedule_that_hnetkit_lacks_is_named_and_the_sampler_kept() -> None:
    def read(sampler: str, schedule: str) -> tuple[object, tuple[str, ...]]:
        found = settings_from_infotext(Infotext("a cat", "", {"Sampler": sampler, "Schedule type": schedule}))
        return found.options.get("sampler"), found.warnings

    assert read("Euler a", "Karras") == ("Euler a Karras", ())
    beta = "Schedule type: Beta cannot be taken over; {} keeps its own schedule"
    assert read("Euler a", "Beta") == ("Euler a", (beta.format("Euler a"),))
    assert read("DPM++ 2M", "Beta") == ("DPM++ 2M Karras", (beta.format("DPM++ 2M Karras"),))
    assert read("DPM fast", "Karras") == (None, ("Sampler: DPM fast cannot be taken over",))


def test_the_files_of_a_picture_are_read_with_their_hashes() -> None:
    given = {"Model": "anime", "Model hash": "925997E9", "VAE": "soft.vae.pt", "VAE hash": "735e4c3a44"}
    read = settings_from_infotext(Infotext("a cat", "", given | {"TI hashes": "bad: 0123456789"}))
    assert read.files == {"model": ("anime", "925997e9"), "vae": ("soft.vae.pt", "735e4c3a44")}
    assert str(read.files["model"]) == "anime [925997e9]"
    assert read.embeddings == ("bad",)
    named = {"Used embeddings": "soft [abcd], old style", "Embeddings": "soft"}
    assert settings_from_infotext(Infotext("a cat", "", named)).embeddings == ("soft", "old style")
    assert "vae" not in settings_from_infotext(Infotext("a cat", "", {"VAE": "Automatic"})).files


def test_the_json_of_other_programs_is_no_prompt() -> None:
    recipe = settings_from_infotext(Infotext('{"prompt": "a cat",\n"seed": "5"}', "", {}))
    assert recipe.prompt is None
    assert recipe.warnings == ("its prompt cannot be taken over: it is another program's JSON, and no prompt",)
    assert settings_from_infotext(Infotext("{a cat}", "", {})).prompt == "{a cat}"


def test_hashes_of_today_say_what_a_picture_was_drawn_with() -> None:
    hashes = '{"hypernet:ink": "0123456789", "lora:fine": "abcdefabcd", "model": "203feeb9a4"}'
    known = settings_from_infotext(Infotext("<hypernet:ink:1>", "", {"Hashes": hashes})).hashes
    assert known == {"hypernet:ink": "0123456789", "lora:fine": "abcdefabcd", "model": "203feeb9a4"}
    old = {
        "Hypernet": "ink",
        "Hypernet hash": "0123456789",
        "Model hash": "2700c435",
        "Lora hashes": "fine: abcdefabcdef",
    }
    assert settings_from_infotext(Infotext("a cat", "", old)).hashes == {"hypernet:ink": "0123456789"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 65_536}, "65536 pixels"),
        ({"width": 16_384, "height": 16_384}, "more pixels than any model draws"),
        ({"height": 10**40}, "pixels"),
        ({"steps": 10**9}, "1000000000 steps"),
        ({"eta_seed_delta": 10**30}, "ENSD"),
        ({"variation_seed": -1}, "variation seed"),
        ({"prompt": "a AND " * 60_000}, "60,001 prompts are joined by AND"),
        ({"prompt": "[|]" * 80_000, "steps": 1000}, "changes 1,000 times"),
        ({"negative_prompt": "[|]" * 80_000, "steps": 1000}, "changes 1,000 times"),
        ({"prompt": " AND ".join(["[a|b]" * 1_000] * 50), "steps": 1000}, "changes 1,000 times"),
    ],
)
def test_what_no_machine_can_draw_is_refused_before_anything_is_made(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(REQUEST, **change)


@pytest.mark.parametrize("change", [{"steps": 10**9}, {"width": 65_536}, {"prompt": "a AND " * 60_000}])
def test_a_second_pass_has_the_same_limits(change: dict[str, object]) -> None:
    second = SecondPass(1024, 1024, steps=20, denoising=0.7, upscaler="Latent", prompt="a cat", negative_prompt="")
    with pytest.raises(UsageError):
        replace(second, **change)


def test_the_largest_that_people_draw_is_within_the_limits() -> None:
    large = replace(REQUEST, width=8192, height=8192, steps=1000, eta_seed_delta=31_337, variation_seed=LARGEST_SEED)
    replace(large, prompt=" AND ".join(["a [red|blue] cat"] * MOST_PARTS))
    replace(large, prompt="a [red:blue:0.5] cat " * 2_000)
