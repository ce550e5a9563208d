"""The pictures of a run: found, checked before anything is trained, and the same sample for the same number."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.hostile_images import damaged_avif, large_png, postscript
from support.pipelines import tiny_sd, tiny_sdxl
from support.training import CAPTIONS, make_picture, make_pictures, small_recipe

from hnetkit.errors import BadPicture, FileChanged, NotFound, UsageError
from hnetkit.generate.loading.defaults import Defaults
from hnetkit.generate.loading.pipeline import file_stamp
from hnetkit.generate.model import Model
from hnetkit.train.data import Template, fingerprint_changes, read_data
from hnetkit.train.frozen import PromptCache, encode_images, encode_inputs, opacity_weight, unet_arguments
from hnetkit.train.run_folder import inputs_of


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures", 6, sizes=((16, 16), (24, 16)))


def model_of(pipe: object) -> Model:
    return Model(pipe, "tiny", Defaults(), Path("none"), (), pipe.scheduler.config)  # type: ignore[attr-defined]


def test_pictures_come_in_the_order_of_their_names_with_size_caption_and_hash(pictures: Path) -> None:
    data = read_data(small_recipe(pictures))
    assert [picture.path.name for picture in data.images] == [f"{number:02}.png" for number in range(6)]
    assert [picture.size for picture in data.images[:3]] == [(16, 16), (24, 16), (16, 16)]
    assert [picture.caption for picture in data.images[:5]] == list(CAPTIONS)
    assert len({picture.sha256 for picture in data.images}) == 6


def test_a_caption_may_name_the_strength_at_which_its_picture_is_learned(tmp_path: Path) -> None:
    make_pictures(tmp_path, 3)
    (tmp_path / "00.txt").write_text("a house <hypernet:tiny:0.5>")
    data = read_data(small_recipe(tmp_path, name="tiny", template="none"))
    assert data.images[0].caption == "a house"
    assert [picture.stack for picture in data.images] == [(("tiny", strength),) for strength in (0.5, 1.0, 1.0)]
    assert {sample.image: sample.stack for step in range(3) for batch in data.step(step) for sample in batch} == {
        number: picture.stack for number, picture in enumerate(data.images)
    }
    before = data.fingerprint
    (tmp_path / "00.txt").write_text("a house <hypernet:tiny:0.6>")
    now = read_data(small_recipe(tmp_path, name="tiny", template="none")).fingerprint
    assert fingerprint_changes(before, now) == ["00.png have another caption"]


@pytest.mark.parametrize("own", ["", "<hypernet:tiny:0.5>"])
def test_tags_that_mean_nothing_to_training_are_left_out_of_every_caption_and_told(tmp_path: Path, own: str) -> None:
    make_pictures(tmp_path, 4)
    tags = ["<lora:glow:0.8>", "<wild:x>", "<lora:a><lyco:b:1:2>", "<lora:much:x>"]
    for number, tag in enumerate(tags):
        (tmp_path / f"{number:02}.txt").write_text(f"a circle {tag} {own}")
    data = read_data(small_recipe(tmp_path, name="tiny"))
    assert [picture.caption for picture in data.images] == ["a circle"] * 4
    assert list(data.warnings()) == [
        "tags in captions have no effect in training and are left out of the text: "
        "00.png (<lora:glow>), 01.png (<wild:x>), 02.png (<lora:a>, <lora:b>)",
        "03.png, column 10: <lora:much:x>: 'x' is not a number; the tag is left out",
    ]


def test_file_names_that_are_read_as_captions_are_told(tmp_path: Path) -> None:
    make_pictures(tmp_path, 3)
    for number in (0, 2):
        (tmp_path / f"{number:02}.txt").unlink()
        (tmp_path / f"{number:02}.png").rename(tmp_path / f"IMG_200{number}.png")
    told = "2 pictures have file names as captions, which training reads as words: IMG_2000.png, IMG_2002.png"
    assert list(read_data(small_recipe(tmp_path)).warnings()) == [told]
    assert told not in list(read_data(small_recipe(tmp_path, template="style")).warnings())


def test_half_a_tag_in_a_caption_is_told_and_stays(tmp_path: Path) -> None:
    make_pictures(tmp_path, 7)
    for number in range(7):
        (tmp_path / f"{number:02}.txt").write_text("&lt;lora:glow:1&gt; :d <o> <o>")
    data = read_data(small_recipe(tmp_path))
    assert {picture.caption for picture in data.images} == {"&lt;lora:glow:1&gt; :d <o> <o>"}
    *some, last = data.warnings()
    assert [line.partition(":")[0] for line in some] == [f"{number:02}.png, column 1" for number in range(5)]
    assert last == "2 more tags in captions are malformed"


def test_tags_in_a_template_are_told(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    template = tmp_path / "mine.txt"
    template.write_text("[filewords] <lora:glow:1>\n<hypernet:x:1> [filewords] <lora:glow:1>\n")
    assert list(read_data(small_recipe(tmp_path, template=str(template))).warnings()) == [
        f"tags in the template {template} have no effect in training and are read as words: <lora:glow>, <hypernet:x:1>"
    ]


@pytest.mark.parametrize(
    "tags", ["<hypernet:other:0.5>", "<hypernet:tiny:1:k=0.5>", "<hypernet:tiny:1><hypernet:tiny:1>"]
)
def test_a_caption_that_asks_for_anything_else_of_networks_is_refused(tmp_path: Path, tags: str) -> None:
    make_pictures(tmp_path, 2)
    (tmp_path / "01.txt").write_text(f"a house {tags}")
    with pytest.raises(UsageError, match=r"01\.png: .* tiny alone") as refused:
        read_data(small_recipe(tmp_path, name="tiny"))
    assert (
        refused.value.command_hint == "<hypernet:tiny:0.5>; --prompt-name: what captions call it; --with FILE: another"
    )


def test_a_caption_may_name_networks_beside_the_one_that_is_trained(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    (tmp_path / "00.txt").write_text("a house <hypernet:wet:0.5> <hypernet:tiny:0.8> <hypernet:ink:0.6>")
    (tmp_path / "01.txt").write_text("a house <hypernet:ink:0.5>")
    recipe = small_recipe(tmp_path, name="tiny", template="none", batch_size=1, beside=("nets/ink.pt", "wet.pt"))
    data = read_data(recipe)
    assert [picture.caption for picture in data.images] == ["a house", "a house"]
    assert {sample.image: sample.stack for step in range(2) for (sample,) in data.step(step)} == {
        0: (("wet", 0.5), ("tiny", 0.8), ("ink", 0.6)),
        1: (("ink", 0.5), ("tiny", 1.0)),
    }
    (tmp_path / "00.txt").write_text("a house <hypernet:ink:0.6> <hypernet:tiny:0.8> <hypernet:wet:0.5>")
    assert fingerprint_changes(data.fingerprint, read_data(recipe).fingerprint) == ["00.png have another caption"]


def test_two_networks_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two networks are called ink"):
        small_recipe(tmp_path, name="ink", beside=("nets/ink.pt",))


def test_a_picture_that_was_replaced_since_it_was_read_is_not_trained_under_the_hash_of_the_old_one(
    tmp_path: Path,
) -> None:
    data = read_data(small_recipe(make_pictures(tmp_path, 2)))
    make_picture(tmp_path / "00.png", (16, 16), seed=99)
    with pytest.raises(FileChanged, match="replaced since"):
        data.images[0].open()
    assert data.images[1].open().size == (16, 16)


def test_hidden_files_and_other_files_are_no_pictures(tmp_path: Path) -> None:
    make_pictures(tmp_path, 1)
    (tmp_path / "._00.png").write_bytes(b"what another system keeps of it")
    (tmp_path / "captions.csv").write_text("")
    assert [picture.path.name for picture in read_data(small_recipe(tmp_path)).images] == ["00.png"]


def test_progress_counts_the_pictures(pictures: Path) -> None:
    told: list[tuple[int, int]] = []
    read_data(small_recipe(pictures), lambda done, total: told.append((done, total)))
    assert told == [(number, 6) for number in range(1, 7)]


def test_every_unreadable_picture_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    make_pictures(tmp_path, 3)
    (tmp_path / "empty.png").write_bytes(b"")
    whole = (tmp_path / "00.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(BadPicture, match=r"cut\.png, empty\.png, text\.jpg"):
        read_data(small_recipe(tmp_path))


def test_hostile_pictures_are_named_before_anything_is_trained(tmp_path: Path) -> None:
    make_pictures(tmp_path, 3)
    (tmp_path / "code.png").write_bytes(postscript())
    (tmp_path / "damaged.png").write_bytes(damaged_avif())
    (tmp_path / "large.png").write_bytes(large_png(13_300, 13_300))
    with pytest.raises(BadPicture, match=r"code\.png, damaged\.png, large\.png$"):
        read_data(small_recipe(tmp_path))


def test_a_caption_that_is_far_too_long_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    make_pictures(tmp_path, 3)
    os.truncate(tmp_path / "01.txt", 1 << 30)
    with pytest.raises(UsageError, match=r"01\.txt"):
        read_data(small_recipe(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="file permissions do not stop root")
def test_a_picture_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    (tmp_path / "01.png").chmod(0)
    with pytest.raises(BadPicture, match=r"01\.png"):
        read_data(small_recipe(tmp_path))


def test_no_folder_no_picture_and_no_template_are_said(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(NotFound, match="no such folder"):
        read_data(small_recipe(tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(NotFound, match="no pictures"):
        read_data(small_recipe(tmp_path))
    with pytest.raises(NotFound, match="no such template"):
        read_data(small_recipe(pictures, template="poems"))


def test_sides_that_are_no_multiples_of_8_are_refused_with_a_way_out(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    make_picture(tmp_path / "odd.png", (17, 16))
    with pytest.raises(UsageError, match=r"odd\.png is 17x16") as raised:
        read_data(small_recipe(tmp_path))
    assert raised.value.hint is not None
    assert "hnetkit train prepare" in raised.value.hint
    data = read_data(small_recipe(tmp_path, size=(24, 16)))
    assert {picture.size for picture in data.images} == {(24, 16)}
    assert {picture.open().size for picture in data.images} == {(24, 16)}


def test_a_picture_is_cut_in_the_middle_to_its_size(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (8, 0, 24, 16))
    image.save(tmp_path / "wide.png")
    opened = read_data(small_recipe(tmp_path, size=(16, 16))).images[0].open()
    assert [colour for _, colour in opened.getcolors()] == [(0, 0, 255)]


def test_missing_captions_and_a_template_that_ignores_captions_are_warned_of(tmp_path: Path) -> None:
    make_pictures(tmp_path, 3)
    (tmp_path / "00.txt").write_text("  \n")
    assert "1 of 3 pictures have no caption: 00.png" in list(read_data(small_recipe(tmp_path)).warnings())
    warnings = list(read_data(small_recipe(tmp_path, template="style")).warnings())
    assert "the template style has no [filewords]: captions are not used" in warnings


def test_a_sample_depends_on_its_number_alone(pictures: Path) -> None:
    recipe = small_recipe(
        pictures, batch_size=2, accumulation=3, shuffle_tags=True, drop_tags=0.3, template="style_filewords"
    )
    forwards, backwards = read_data(recipe), read_data(recipe)
    steps = [forwards.step(step) for step in range(8)]
    assert steps == [backwards.step(step) for step in reversed(range(8))][::-1]
    numbers = [sample.index for step in steps for batch in step for sample in batch]
    assert numbers == list(range(8 * 6))
    assert len({sample.prompt for step in steps for batch in step for sample in batch}) > 6


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3))
def test_nothing_is_dropped_where_an_epoch_ends_within_a_step(
    pictures: Path, batch_size: int, accumulation: int
) -> None:
    data = read_data(small_recipe(pictures, batch_size=batch_size, accumulation=accumulation))
    batches = (batch for step in range(6) for batch in data.step(step))
    seen = Counter(sample.image for batch, _ in zip(batches, range(6), strict=False) for sample in batch)
    assert seen == dict.fromkeys(range(6), batch_size)


def test_every_prompt_of_a_run_is_known_ahead(pictures: Path) -> None:
    data = read_data(small_recipe(pictures, template="style_filewords"))
    drawn = {sample.prompt for step in range(60) for batch in data.step(step) for sample in batch}
    assert drawn <= set(data.prompts())


def test_epochs_are_counted_over_the_stream_of_samples(pictures: Path) -> None:
    data = read_data(small_recipe(pictures, batch_size=4))
    assert [data.epoch(step) for step in range(5)] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]


def test_a_change_of_the_folder_is_told_by_kind(tmp_path: Path) -> None:
    make_pictures(tmp_path, 4)
    before = read_data(small_recipe(tmp_path)).fingerprint
    make_picture(tmp_path / "00.png", (16, 16), seed=99)
    (tmp_path / "01.txt").write_text("something else")
    (tmp_path / "02.png").unlink()
    make_picture(tmp_path / "new.png", (16, 16))
    now = read_data(small_recipe(tmp_path)).fingerprint
    assert fingerprint_changes(before, before) == []
    assert fingerprint_changes(before, now) == [
        "02.png are gone",
        "new.png are new",
        "00.png have other pixels",
        "01.png have another caption",
    ]


def latents_of(pictures: Path, how: str, seed: int = 0) -> torch.Tensor:
    data = read_data(small_recipe(pictures, latents=how, seed=seed))
    generator = torch.Generator().manual_seed(5)
    return encode_images(tiny_sd(least=True), data)[0].sample(generator)


def test_latents_once_are_one_sample_deterministic_the_mean_and_random_new_ones(pictures: Path) -> None:
    data = read_data(small_recipe(pictures, latents="random"))
    pipe = tiny_sd(least=True)
    pixels = pipe.image_processor.preprocess(data.images[0].open())
    distribution, scale = pipe.vae.encode(pixels).latent_dist, pipe.vae.config.scaling_factor
    torch.testing.assert_close(latents_of(pictures, "deterministic"), distribution.mean[0] * scale)
    (latents, *_) = encode_images(pipe, data)
    drawn = torch.stack([latents.sample(torch.Generator().manual_seed(seed)) for seed in range(400)])
    torch.testing.assert_close(drawn.mean(0), distribution.mean[0] * scale, atol=4 * scale / 20, rtol=0.1)
    torch.testing.assert_close(drawn.std(0), distribution.std[0] * scale, atol=0.02, rtol=0.3)
    once = latents_of(pictures, "once")
    assert torch.equal(once, latents_of(pictures, "once"))
    assert not torch.equal(once, latents_of(pictures, "once", seed=1))


def test_opacity_weighs_the_loss_least_0_and_1_on_average(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 16), "red")
    image.putalpha(0)
    image.paste((0, 0, 255, 255), (16, 0, 32, 16))
    weight = opacity_weight(image, (4, 2))
    assert weight is not None
    assert weight.shape == (1, 2, 4)
    assert weight.min() == 0
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))
    assert weight[0, 0, 3] > weight[0, 0, 0]
    assert opacity_weight(Image.new("RGBA", (16, 16), (1, 2, 3, 128)), (2, 2)) is None
    assert opacity_weight(Image.new("RGB", (16, 16)), (2, 2)) is None


def test_opacity_counts_where_it_is_asked_for(tmp_path: Path) -> None:
    make_picture(tmp_path / "clear.png", (16, 16), mode="RGBA")
    pipe = tiny_sd(least=True)
    weighed, plain = (
        encode_images(pipe, read_data(small_recipe(tmp_path, alpha_as_weight=wanted)))[0] for wanted in (True, False)
    )
    assert weighed.weight is not None
    assert plain.weight is None
    assert torch.equal(weighed.mean, plain.mean)


def test_prompts_are_encoded_as_pictures_are_drawn_with_them() -> None:
    model = model_of(tiny_sd(least=True))
    prompts = PromptCache(model)
    encoded = prompts.encode("a (red:1.3) circle")
    expected = model.text_encoder(1, "original").encode("a (red:1.3) circle").hidden
    assert torch.equal(encoded.hidden, expected)
    assert prompts.encode("a (red:1.3) circle") is encoded
    told = unet_arguments([encoded, encoded], (16, 24), "cpu", torch.bfloat16)
    assert told["encoder_hidden_states"].shape == (2, 77, 24)
    assert told["encoder_hidden_states"].dtype is torch.bfloat16
    assert "added_cond_kwargs" not in told


def test_of_millions_of_prompts_only_those_are_made_that_have_room(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.train.frozen._MOST_TOKENS", 5 * 77)
    data = read_data(small_recipe(pictures))
    data = replace(data, template=Template("many", tuple(f"[filewords] {number}" for number in range(400_000))))
    seen: list[tuple[int, int]] = []
    begun = time.process_time()
    encode_inputs(model_of(tiny_sd(least=True)), data, lambda what, done, total: seen.append((done, total)))
    assert time.process_time() - begun < 8
    assert seen[-1] == (5, data.prompts_in_all)


def test_long_prompts_take_the_room_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.train.frozen._MOST_TOKENS", 5 * 77)
    prompts = PromptCache(model_of(tiny_sd(least=True)))
    assert prompts.encode_all(["a red circle", "a blue star"])
    long = prompts.encode("a BREAK b BREAK c")
    assert prompts.encode("a BREAK b BREAK c") is long
    assert not prompts.encode_all(["a dot"])  # all of the room is taken
    assert prompts.encode("a dot") is prompts.encode("a dot")
    assert prompts.encode("a BREAK b BREAK c") is long


def test_sdxl_is_told_pooled_texts_and_sizes() -> None:
    pipe = tiny_sdxl()
    encoded = PromptCache(model_of(pipe)).encode("a red circle")
    told = unet_arguments([encoded], (24, 16), "cpu", torch.float32)
    assert told["encoder_hidden_states"].shape == (1, 77, 48)
    assert told["added_cond_kwargs"]["text_embeds"].shape == (1, 24)
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[16, 24, 0, 0, 16, 24]]
    assert pipe.unet(torch.randn(1, 4, 8, 12), torch.tensor([5]), return_dict=False, **told)[0].shape == (1, 4, 8, 12)


def test_a_template_that_was_edited_is_another_input_of_the_run(tmp_path: Path) -> None:
    make_pictures(tmp_path / "pictures", 1)
    template = tmp_path / "words.txt"
    (tmp_path / "weights").write_bytes(b"x")
    weights = tmp_path / "weights"
    model = replace(model_of(tiny_sd()), weights=weights, weights_stamp=file_stamp(weights))
    found = []
    for lines in ("[filewords]", "[filewords], again", "\n[filewords]  \n"):
        template.write_text(lines)
        data = read_data(small_recipe(tmp_path / "pictures", template=str(template)))
        found.append(inputs_of(data, model, None, {}))
    assert found[0].changes(found[1]) == ["the template has other lines"]
    assert found[0].changes(found[2]) == []


def test_pictures_that_lose_a_part_at_the_size_of_the_run_are_told(tmp_path: Path) -> None:
    make_pictures(tmp_path, 3, sizes=((16, 16), (32, 16), (32, 32)))
    (line,) = (line for line in read_data(small_recipe(tmp_path, size=(16, 16))).warnings() if "cropped" in line)
    assert line == "pictures of another shape than --size are cropped to their middle: 01.png (50% of it)"
    assert not [line for line in read_data(small_recipe(tmp_path)).warnings() if "cropped" in line]
