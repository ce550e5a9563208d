"""Draw Things' texts, which look like A1111's."""

from __future__ import annotations

import pytest

from hnetkit.prompts import draw_things

TEXT = (
    "a star\n-fog,\nrain\nSteps: 8, Sampler: Euler A, Guidance Scale: 7.0, Seed: 5, Size: 64x64, Model: z.ckpt, "
    "Strength: 1.0, Seed Mode: Torch CPU Compatible, Shift: 3.0"
)


def test_the_negative_prompt_is_no_part_of_the_prompt() -> None:
    read = draw_things.parse(TEXT)
    assert read is not None
    assert (read.prompt, read.negative_prompt) == ("a star", "fog,\nrain")
    assert (read.parameters["CFG scale"], read.parameters["RNG"]) == ("7.0", "CPU")
    assert not {"Guidance Scale", "Strength", "Seed Mode", "Denoising strength"} & read.parameters.keys()


def test_a_number_at_the_end_of_a_prompt_is_no_weight() -> None:
    read = draw_things.parse(TEXT.replace("a star", "a sign, 16:9"))
    assert read is not None
    assert read.prompt == "a sign, 16:9:1"


def test_a_picture_over_another_one_says_how_much_of_it_is_left() -> None:
    read = draw_things.parse(TEXT.replace("Strength: 1.0", "Strength: 0.6"))
    assert read is not None
    assert read.parameters["Denoising strength"] == "0.6"


def test_a_tag_in_its_prompt_is_no_network() -> None:
    read = draw_things.parse(TEXT.replace("a star", "a star <hypernet:dots:1>"))
    assert read is not None
    assert read.prompt == "a star"
    assert read.warnings == ("<hypernet:dots:1>: Draw Things does not read tags; it is left out",)


def test_what_only_a1111_reads_as_more_than_text_is_said() -> None:
    read = draw_things.parse(TEXT.replace("a star", "a [weak] (strong:1.2) star").replace("fog", "[fog]"))
    assert read is not None
    assert read.warnings == ()  # weights are those of A1111
    read = draw_things.parse(TEXT.replace("a star", "a [red:blue:0.5] star AND fog BREAK sky").replace("fog", "[a|b]"))
    assert read is not None
    assert read.warnings == (
        "its prompt has changes such as [a:b:0.5] and AND and BREAK, plain text in Draw Things and none in A1111",
        "its negative prompt has changes such as [a:b:0.5], plain text in Draw Things and none in A1111",
    )


@pytest.mark.parametrize("line_end", ["&#xA;", "\n"])
def test_the_data_of_a_png_are_read_without_their_markup(line_end: str) -> None:
    text = TEXT.replace("a star", "a &lt;b&gt; star").replace("\n", line_end)
    alternatives = f'<rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt>'
    for inner in (text, alternatives):
        read = draw_things.parse_xmp(f"<x:xmpmeta><dc:description>{inner}</dc:description></x:xmpmeta>")
        assert read is not None
        assert (read.prompt, read.negative_prompt) == ("a <b> star", "fog,\nrain")


def test_the_data_of_a_png_tell_a_list_in_the_prompt_from_the_negative_prompt() -> None:
    text = TEXT.replace("a star\n-fog,\nrain", "- a star\n- a moon")
    for negative, comment in (("", '{"c": "- a star\n- a moon", "uc": ""}'), ("fog", '{"c": "- a star", "uc": "fog"}')):
        found = f"<exif:UserComment>{comment.replace(chr(34), '&quot;')}</exif:UserComment>"
        read = draw_things.parse_xmp(f"<dc:description>{text}</dc:description>{found}")
        assert read is not None
        assert (read.prompt, read.negative_prompt) == ("- a star" if negative else "- a star\n- a moon", negative)
        assert read.warnings == ()


@pytest.mark.parametrize("comment", ["", "{", "[]", '{"c": 1, "uc": ""}', '{"c": "a star"}'])
def test_a_list_that_may_be_the_negative_prompt_is_told(comment: str) -> None:
    text = TEXT.replace("a star\n-fog,\nrain", "- a star\n- a moon")
    found = f"<exif:UserComment>{comment.replace(chr(34), '&quot;')}</exif:UserComment>"
    read = draw_things.parse_xmp(f"<dc:description>{text}</dc:description>{found}")
    assert read is not None
    assert (read.prompt, read.negative_prompt) == ("- a star", "a moon")
    assert read.warnings == ("its prompt may be a list: the last item is read as the negative prompt: a moon",)


@pytest.mark.parametrize(
    "text", ["", "a star\nSteps: 4, Seed: 3, CFG scale: 7", "Seed Mode: and Guidance Scale: alone"]
)
def test_other_texts_are_not_taken_for_its_own(text: str) -> None:
    assert draw_things.parse(text) is None
    assert draw_things.parse_xmp(f"<dc:description>{text}</dc:description>") is None


def test_a_reference_of_thousands_of_digits_in_the_data_of_a_png_is_no_defect() -> None:
    read = draw_things.parse_xmp(
        f"<dc:description>{TEXT.replace('a star', f'a &#{9:09}{0:05000}; star')}</dc:description>"
    )
    assert read is not None
    assert read.prompt == "a   star"
