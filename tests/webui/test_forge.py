"""The extension in Forge: what a prompt with tags predicts, against diffusers with hnetkit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.webui import Generation, Webui, installed
from torch import Tensor

import hnetkit
from hnetkit import demo
from hnetkit.errors import AttachError
from hnetkit.formats.open_file import OpenFile
from hnetkit.hashes import sha256_of
from hnetkit.webui import register

TOLERANCE = 2e-6
OUTLINE, DOTS, PAPER = (demo.networks()[name] for name in ("outline", "dots", "paper"))
Expected = Callable[..., Tensor]


def error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max())


def test_a_tag_applies_its_network(forge: Webui, step: Any, expected: Expected) -> None:
    (got,) = Generation(forge, "a castle <hypernet:outline:0.8>").run(*step)
    assert error(got, expected((OUTLINE, 0.8))) <= TOLERANCE
    assert error(got, expected()) > 1e-3


def test_three_tags_are_a_stack_in_their_order(forge: Webui, step: Any, expected: Expected) -> None:
    tags = "<hypernet:dots:0.7><hypernet:paper:0.5><hypernet:outline:-0.4>"
    (got,) = Generation(forge, tags).run(*step)
    assert error(got, expected((DOTS, 0.7), (PAPER, 0.5), (OUTLINE, -0.4))) <= TOLERANCE


def test_a_tag_without_a_number_has_strength_one(forge: Webui, step: Any, expected: Expected) -> None:
    (got,) = Generation(forge, "<hypernet:outline>").run(*step)
    assert error(got, expected((OUTLINE, 1.0))) <= TOLERANCE


def test_strength_zero_gives_the_bits_of_the_model(forge: Webui, step: Any) -> None:
    (got,) = Generation(forge, "a castle <hypernet:dots:0>").run(*step)
    (plain,) = Generation(forge, "a castle").run(*step)
    assert torch.equal(got, plain)


def test_the_second_pass_has_the_networks_of_its_own_prompt(forge: Webui, step: Any, expected: Expected) -> None:
    first, second = Generation(forge, "<hypernet:outline:0.8>", "<hypernet:dots:0.5>").run(*step)
    assert error(first, expected((OUTLINE, 0.8))) <= TOLERANCE
    assert error(second, expected((DOTS, 0.5))) <= TOLERANCE


def test_a_second_pass_without_tags_has_no_networks(forge: Webui, step: Any, expected: Expected) -> None:
    _, second = Generation(forge, "<hypernet:outline:0.8>", "a castle").run(*step)
    assert error(second, expected()) <= TOLERANCE


def test_nothing_is_left_after_a_prompt_with_tags(forge: Webui, step: Any, expected: Expected) -> None:
    Generation(forge, "<hypernet:outline:0.8>").run(*step)
    after = Generation(forge, "a castle")
    (got,) = after.run(*step)
    assert error(got, expected()) <= TOLERANCE
    assert after.unets[0] is forge.unet
    assert not forge.unet.patches()
    assert not after.extra_generation_params


def test_a_window_is_in_steps(forge: Webui, step: Any, expected: Expected) -> None:
    got = Generation(forge, "<hypernet:dots:0.9:start=0.25:end=0.75>").run(*step, steps=4)
    inside, outside = expected((DOTS, 0.9)), expected()
    for output, same in zip(got, (outside, inside, inside, outside), strict=True):
        assert error(output, same) <= TOLERANCE


def test_the_infotext_gets_the_hashes_of_what_was_applied(forge: Webui, step: Any) -> None:
    generation = Generation(forge, "<hypernet:outline:0.8> <hypernet:nobody:1> <hypernet:dots:1>")
    generation.run(*step)
    with OpenFile(OUTLINE) as outline, OpenFile(DOTS) as dots:
        hashes = f"outline: {sha256_of(outline)[:10]}, dots: {sha256_of(dots)[:10]}"
    assert generation.extra_generation_params == {"Hypernet hashes": hashes}


def test_the_network_of_the_settings_is_added_to_every_prompt(forge: Webui, step: Any, expected: Expected) -> None:
    forge.options.sd_hypernetwork, forge.options.extra_networks_default_multiplier = "dots", 0.6
    generation = Generation(forge, "a castle")
    (got,) = generation.run(*step)
    assert error(got, expected((DOTS, 0.6))) <= TOLERANCE
    assert generation.all_prompts == ["a castle<hypernet:dots:0.6>"]


def test_the_network_of_the_settings_is_named_once_in_the_prompt_of_each_pass(
    forge: Webui, step: Any, expected: Expected
) -> None:
    forge.options.sd_hypernetwork, forge.options.extra_networks_default_multiplier = "dots", 0.6
    generation = Generation(forge, "a castle <hypernet:dots:0.3>", "a tower", batches=2)
    got = generation.run(*step)
    for output, strength in zip(got, (0.3, 0.6, 0.3, 0.6), strict=True):
        assert error(output, expected((DOTS, strength))) <= TOLERANCE
    assert generation.all_prompts == ["a castle <hypernet:dots:0.3>"] * 2
    assert generation.all_hr_prompts == ["a tower<hypernet:dots:0.6>"] * 2


def test_the_infotext_has_the_hashes_of_both_passes_and_of_no_other_batch(forge: Webui, step: Any) -> None:
    generation = Generation(forge, "<hypernet:outline:0.8>", "<hypernet:dots:0.5>", batches=3)
    generation.all_prompts[1], generation.all_prompts[2] = "<hypernet:paper:1>", "a castle"
    generation.all_hr_prompts[2] = "a castle"
    generation.run(*step)
    named = [
        [part.split(":")[0] for part in params.get("Hypernet hashes", "").split(", ") if part]
        for params in generation.infotexts
    ]
    assert named == [["outline", "dots"], ["paper", "dots"], []]


def test_a_sampler_that_tells_no_steps_is_enough_without_a_window(forge: Webui, step: Any, expected: Expected) -> None:
    plain = Generation(forge, "<hypernet:dots:0.9>", made_sampler=lambda steps: SimpleNamespace())
    (got,) = plain.run(*step)
    assert error(got, expected((DOTS, 0.9))) <= TOLERANCE
    windowed = Generation(forge, "<hypernet:dots:0.9:end=0.5>", made_sampler=lambda steps: SimpleNamespace())
    with pytest.raises(AttachError, match="dots is limited to a part of the steps"):
        windowed.run(*step)


def test_a_refiner_that_draws_without_networks_is_said(forge: Webui, step: Any) -> None:
    generation = Generation(forge, "<hypernet:dots:0.9>", refiner_checkpoint_info=object())
    generation.run(*step)
    assert list(generation.comments) == ["hnetkit: the refiner's steps are drawn without hypernetworks"]
    without = Generation(forge, "a castle", refiner_checkpoint_info=object())
    without.run(*step)
    assert not without.comments


def test_two_forms_of_one_network_are_no_two_networks(
    forge: Webui, models: Path, step: Any, expected: Expected
) -> None:
    folder = models / "hypernetworks" / "demo"
    hnetkit.save(hnetkit.load(DOTS), folder / "dots.safetensors")
    (got,) = Generation(forge, "<hypernet:dots:0.9>").run(*step)
    assert error(got, expected((DOTS, 0.9))) <= TOLERANCE
    hnetkit.save(hnetkit.load(OUTLINE), folder / "paper.safetensors")
    ambiguous = Generation(forge, "<hypernet:paper:0.9>")
    ambiguous.run(*step)
    (comment,) = ambiguous.comments
    assert "paper is the name of several files" in comment


def test_a_network_of_the_library_is_found_after_those_of_the_webui(
    forge: Webui, step: Any, expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "outline.pt").write_bytes(DOTS.read_bytes())  # the webui's own outline comes first
    (library / "spots.pt").write_bytes(DOTS.read_bytes())
    monkeypatch.setenv("HNETKIT_LIBRARY", str(library))
    (got,) = Generation(forge, "<hypernet:spots:0.5><hypernet:outline:0.5>").run(*step)
    assert error(got, expected((DOTS, 0.5), (OUTLINE, 0.5))) <= TOLERANCE


@pytest.mark.parametrize(
    ("tag", "told"),
    [
        ("<hypernet:outlines:1>", "hnetkit: outlines: no such hypernetwork. did you mean outline?"),
        ("<hypernet:cut:1>", "cut.pt: "),
        ("<hypernet:dots:strong>", "'strong' is not a number"),
        ("<hypernet:dots:1:blocks=up_blocks.7>", "the UNet has no block up_blocks.7"),
    ],
)
def test_what_cannot_be_applied_is_said_and_the_rest_is_drawn(
    forge: Webui, models: Path, step: Any, expected: Expected, tag: str, told: str
) -> None:
    (models / "hypernetworks" / "cut.pt").write_bytes(DOTS.read_bytes()[:-3000])
    generation = Generation(forge, f"a castle {tag} <hypernet:paper:0.5>")
    (got,) = generation.run(*step)
    assert error(got, expected((PAPER, 0.5))) <= TOLERANCE
    (comment,) = generation.comments
    assert told in comment


def test_hundreds_of_tags_look_at_the_files_once(forge: Webui, models: Path, step: Any) -> None:
    for number in range(400):
        (models / "hypernetworks" / f"ink in the style of painter {number}.pt").touch()
    prompt = "".join(f"<hypernet:ink in the style of the painter {number}:1>" for number in range(400))
    generation, begun = Generation(forge, prompt), time.process_time()
    generation.run(*step)
    assert time.process_time() - begun < 2
    assert len(generation.comments) == 400
    assert "did you mean ink in the style of painter 0?" in next(iter(generation.comments))


def test_links_in_a_circle_are_followed_once(forge: Webui, models: Path, step: Any, expected: Expected) -> None:
    """Two links of a folder to itself have no end: of ten folders below each other there are a thousand ways."""
    for name in ("a", "b"):
        (models / "hypernetworks" / name).symlink_to(models / "hypernetworks", target_is_directory=True)
    (got,) = Generation(forge, "<hypernet:outline:0.8>").run(*step)
    assert error(got, expected((OUTLINE, 0.8))) <= TOLERANCE


def test_what_a_terminal_obeys_in_a_prompt_does_not_reach_it(
    forge: Webui, step: Any, logged: list[logging.LogRecord]
) -> None:
    Generation(forge, "a castle <hypernet:dots:\x1b]0;mine\x07>").run(*step)
    messages = "".join(record.getMessage() for record in logged)
    assert "is not a number" in messages
    assert "\x1b" not in messages


def test_the_weights_are_moved_with_the_model_and_have_room(forge: Webui, step: Any) -> None:
    generation = Generation(forge, "<hypernet:dots:0.5> <hypernet:paper:0.5>")
    generation.run(*step)
    (unet,) = generation.unets
    assert len(unet.extra_modules) == 2
    held = sum(buffer.nbytes for module in unet.extra_modules for buffer in module.buffers())
    assert unet.preserved_bytes == held > 0


def test_the_next_picture_reads_nothing_again(forge: Webui, step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hnetkit.runtime import buffers

    Generation(forge, "<hypernet:dots:0.5>").run(*step)
    for name in ("pack_pair", "read_mlp"):
        monkeypatch.setattr(buffers, name, lambda *a, **k: pytest.fail("read again"))
    Generation(forge, "<hypernet:dots:0.9>").run(*step)


def test_where_the_webui_applies_hypernetworks_itself_the_extension_does_nothing(
    unet: Any, models: Path, logged: list[logging.LogRecord]
) -> None:
    program = Webui(unet)
    with installed(program, models, forge=False):
        assert register() is None
    assert not program.before_ui
    assert "applies hypernetworks itself" in "".join(record.getMessage() for record in logged)
