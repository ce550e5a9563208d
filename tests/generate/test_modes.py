"""Beyond one pass from noise: pictures and masks to begin with, a second pass, batches, other noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.drawing import REQUEST, load_all, one
from support.hostile_images import damaged_avif, large_png, postscript
from support.odd_images import ADOBE_RGB, SRGB, color_profile

from hnetkit.errors import BadPicture, NotFound, UsageError
from hnetkit.generate.drawing import SamplingPass, _ImageBatch, _InitPixels, _scheduler_of_pass, draw, steps_of_pass
from hnetkit.generate.model import Model, load_model
from hnetkit.generate.request import UPSCALERS, InitImage, Request, SecondPass, covering_size, nearest_size
from hnetkit.generate.sampling.noise import Noise
from hnetkit.generate.sampling.samplers import prepare_scheduler
from hnetkit.generate.sampling.vae import soft_mask
from hnetkit.runtime.strength import Strength


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A smooth picture of 16 x 16."""
    ramp = np.linspace(0, 255, 16)
    pixels = np.stack([np.tile(ramp, (16, 1)), np.tile(ramp[:, None], (1, 16)), np.full((16, 16), 90)], axis=-1)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def right_half(tmp_path: Path) -> Path:
    """A mask that is white on the right."""
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (8, 0, 16, 16))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def pixels(data: bytes, width: int = 16) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(-1, width, 3).astype(int)


def latents_of(model: Model, request: Request) -> torch.Tensor:
    """What the autoencoder is given in the end, ``[1, 4, 8, 8]``."""
    seen: list[torch.Tensor] = []
    vae = model.pipe.vae
    handle = vae.post_quant_conv.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    one(model, request)
    handle.remove()
    return seen[-1] * vae.config.scaling_factor


def encoded(model: Model, photo: Path) -> torch.Tensor:
    """What the autoencoder makes of a picture, with the noise of the request's seed."""
    generator = torch.Generator("cpu").manual_seed(REQUEST.seed)
    pixels_ = model.pipe.image_processor.preprocess(Image.open(photo))
    with torch.no_grad():
        latents = model.pipe.vae.encode(pixels_).latent_dist.sample(generator)
    return latents * model.pipe.vae.config.scaling_factor


def second(**changes: object) -> SecondPass:
    return replace(SecondPass(32, 32, 3, 0.7, "Latent", REQUEST.prompt, ""), **changes)


# --- image-to-image


def test_the_less_is_drawn_anew_the_nearer_is_the_result_to_the_picture(sd: Model, photo: Path) -> None:
    request = replace(REQUEST, steps=20)
    kept = encoded(sd, photo)
    drawn = [latents_of(sd, replace(request, init_image=InitImage(photo, amount))) for amount in (0.0, 0.3, 1.0)]
    far = [(latents - kept).abs().mean() for latents in drawn]
    assert far[0] < far[1] < far[2]


def test_image_to_image_makes_one_step_more_than_its_share(sd: Model, photo: Path) -> None:
    """A1111: of 20 steps at 0.5, 11."""
    told: list[tuple[int, int]] = []
    request = replace(REQUEST, steps=20, init_image=InitImage(photo, 0.5))
    list(draw(sd, request, lambda done, total: told.append((done, total))))
    assert told[-1] == (11, 11)


def test_a_picture_of_another_size_is_brought_to_the_one_asked_for(sd: Model, photo: Path) -> None:
    image = next(draw(sd, replace(REQUEST, width=32, height=24, init_image=InitImage(photo)))).image
    assert image.size == (32, 24)


def test_a_picture_that_is_not_there_or_none_is_an_error(sd: Model, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"missing\.png"):
        one(sd, replace(REQUEST, init_image=InitImage(tmp_path / "missing.png")))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(BadPicture, match=r"text\.png"):
        one(sd, replace(REQUEST, init_image=InitImage(tmp_path / "text.png")))


def test_a_hostile_picture_is_an_error_by_name(sd: Model, photo: Path, tmp_path: Path) -> None:
    for name, data in (
        ("code.png", postscript()),
        ("damaged.png", damaged_avif()),
        ("large.png", large_png(9000, 9000)),
    ):
        (tmp_path / name).write_bytes(data)
        for init in (InitImage(tmp_path / name), InitImage(photo, mask=tmp_path / name)):
            with pytest.raises(BadPicture, match=name):
                one(sd, replace(REQUEST, init_image=init))


def test_picture_and_mask_are_turned_as_their_exif_data_says(sd: Model, photo: Path, right_half: Path) -> None:
    expected = one(sd, replace(REQUEST, init_image=InitImage(photo, 0.3, mask=right_half)))
    turned, exif = [], Image.Exif()
    exif[0x0112] = 3  # upside down
    for path in (photo, right_half):
        turned.append(path.with_stem(f"{path.stem}-turned"))
        Image.open(path).rotate(180).save(turned[-1], exif=exif)
    assert one(sd, replace(REQUEST, init_image=InitImage(turned[0], 0.3, mask=turned[1]))) == expected


def test_a_picture_that_is_stretched_says_so_with_a_size_of_its_shape(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a portrait
    Image.new("RGB", (96, 64)).save(tmp_path / "portrait.jpg", exif=exif)
    Image.new("L", (64, 64), "white").save(tmp_path / "mask.png")
    portrait = InitImage(tmp_path / "portrait.jpg")
    (note,) = portrait.notes((64, 64))
    assert note.endswith("portrait.jpg is 64x96 and is stretched to 64x64; 56x80 is a size of its shape")
    assert list(portrait.notes((56, 80))) == list(portrait.notes((128, 192))) == []
    (note,) = replace(portrait, mask=tmp_path / "mask.png").notes((128, 192))
    assert note.endswith("mask.png is 64x64 and is stretched over a picture of 64x96")


def test_of_several_pictures_in_a_file_the_first_is_said_to_be_used(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert list(InitImage(tmp_path / "moving.gif").notes((16, 16))) == [
        f"{tmp_path / 'moving.gif'} holds several pictures; the first is used"
    ]


def test_a_mask_that_repaints_nothing_says_so(photo: Path, right_half: Path, tmp_path: Path) -> None:
    for color, name in ((0, "black"), (255, "white")):
        Image.new("L", (16, 16), color).save(tmp_path / f"{name}.png")
    for inverted, without_effect in ((False, "black"), (True, "white")):
        for name in ("black", "white"):
            init = InitImage(photo, mask=tmp_path / f"{name}.png", inverted=inverted)
            said = [f"{name} everywhere, so nothing is repainted"] if name == without_effect else []
            assert [note.partition(" is ")[2] for note in init.notes((16, 16))] == said
        assert list(InitImage(photo, mask=right_half, inverted=inverted).notes((16, 16))) == []


@pytest.mark.parametrize("inverted", [False, True])
def test_a_mask_whose_white_does_not_last_to_the_unet_says_so(photo: Path, tmp_path: Path, inverted: bool) -> None:
    """The UNet reads one value for 8 x 8 pixels, after the blur: half white or more is repainted."""
    color, other = ("black", "white") if inverted else ("white", "black")
    line, dot, gray = (Image.new("L", (64, 64), other) for _ in range(3))
    line.paste(color, (0, 24, 64, 32))
    dot.putpixel((30, 30), 0 if inverted else 255)
    gray.paste(140 if inverted else 110, (0, 0, 32, 64))
    for name, mask in (("line", line), ("dot", dot), ("gray", gray)):
        mask.save(tmp_path / f"{name}.png")

    def notes(name: str, blur: float) -> list[str]:
        init = InitImage(photo, mask=tmp_path / f"{name}.png", inverted=inverted, mask_blur=blur)
        return [note.replace(str(tmp_path / name), name) for note in init.notes((64, 64)) if "stretched" not in note]

    assert notes("line", 0) == notes("line", 2) == []
    assert notes("line", 20) == [f"the {color} of line.png is too thin for --mask-blur 20, so nothing is repainted"]
    for name in ("dot", "gray"):
        assert notes(name, 0) == [
            f"no area of {name}.png is {color} and large enough to count, so nothing is repainted"
        ]


@pytest.mark.parametrize(
    ("shape", "size", "nearest"),
    [
        ((100, 100), (64, 64), (64, 64)),
        ((1000, 667), (768, 512), (768, 512)),  # no multiple of 8 is nearer
        ((1000, 667), (512, 512), (624, 416)),
        ((1, 60_000), (64, 64), (8, 15_680)),
    ],
)
def test_the_size_of_a_shape_has_about_as_many_pixels(
    shape: tuple[int, int], size: tuple[int, int], nearest: tuple[int, int]
) -> None:
    assert nearest_size(shape, size) == nearest


# --- inpainting


def test_outside_of_the_mask_everything_is_as_it_was(sd: Model, photo: Path, right_half: Path) -> None:
    init = InitImage(photo, 1.0, mask=right_half, mask_blur=0)
    kept, old = encoded(sd, photo), np.asarray(Image.open(photo)).astype(int)
    for inverted, outside, inside in ((False, slice(0, 4), slice(4, 8)), (True, slice(4, 8), slice(0, 4))):
        request = replace(REQUEST, init_image=replace(init, inverted=inverted))
        latents = latents_of(sd, request)
        torch.testing.assert_close(latents[..., outside], kept[..., outside])
        assert (latents[..., inside] - kept[..., inside]).abs().mean() > 0.1
        left, right = (slice(2 * part.start, 2 * part.stop) for part in (outside, inside))
        drawn = pixels(one(sd, request))
        assert (drawn[:, left] == old[:, left]).all()
        assert np.abs(drawn[:, right] - old[:, right]).mean() > 1


def test_the_masks_edge_is_softened(sd: Model, photo: Path, right_half: Path) -> None:
    sharp, soft = (
        pixels(one(sd, replace(REQUEST, init_image=InitImage(photo, 1.0, mask=right_half, mask_blur=blur))))
        for blur in (0, 3)
    )
    old = np.asarray(Image.open(photo)).astype(int)
    assert (sharp[:, 7] == old[:, 7]).all()
    assert (soft[:, 7] != old[:, 7]).any()


def test_a_picture_with_another_color_profile_is_told(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    for colorants, is_told in ((SRGB, False), (ADOBE_RGB, True)):
        Image.new("RGB", (16, 16), "red").save(path, icc_profile=color_profile(colorants))
        assert any("color profile" in line for line in InitImage(path).notes((16, 16))) == is_told


@pytest.mark.parametrize("inverted", [False, True])
def test_a_mask_is_blurred_at_its_own_size_as_in_a1111(inverted: bool) -> None:
    """A1111 blurs before it resizes, so a larger mask of one shape has a narrower edge in the picture."""
    large = Image.new("L", (128, 128))
    large.paste(255, (64, 0, 128, 128))
    small = large.resize((64, 64))
    halved = np.asarray(soft_mask(large, (64, 64), blur=8, inverted=inverted)).astype(int)
    expected = np.asarray(soft_mask(small, (64, 64), blur=4, inverted=inverted)).astype(int)
    as_wide = np.asarray(soft_mask(small, (64, 64), blur=8, inverted=inverted)).astype(int)
    assert np.abs(halved - expected).max() < 8 < np.abs(halved - as_wide).max()


def gaussian(values: np.ndarray, blur: float) -> np.ndarray:
    """A row of a mask as OpenCV blurs it, weight by weight."""
    reach = int(2.5 * blur + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * blur**2))
    padded = np.pad(values.astype(float), reach, mode="reflect")
    return np.rint([padded[at : at + 2 * reach + 1] @ weights / weights.sum() for at in range(len(values))])


@pytest.mark.parametrize("blur", [0.1, 1, 4, 16, 40])
def test_a_mask_is_blurred_by_the_weights_of_a1111(blur: float) -> None:
    """It takes OpenCV's blur: Pillow's differs by up to 18 of 255, and puts squares on the other side of the mask."""
    mask = Image.new("L", (48, 40))
    mask.paste(255, (7, 5, 30, 22))
    mask.paste(255, (36, 0, 39, 40))
    rows = np.apply_along_axis(gaussian, 1, np.asarray(mask), blur)
    expected = np.apply_along_axis(gaussian, 0, rows, blur)
    blurred = np.asarray(soft_mask(mask, (48, 40), blur=blur, inverted=False)).astype(int)
    assert np.abs(blurred - expected).max() <= 1  # a half is rounded either way


def test_a_mask_that_is_blurred_beyond_its_size_is_one_gray() -> None:
    half = Image.new("L", (16, 8))
    half.paste(255, (8, 0, 16, 8))
    assert set(soft_mask(half, (16, 8), blur=1e9, inverted=False).tobytes()) <= {127, 128}


def test_what_is_half_under_the_mask_is_drawn_whole_as_in_a1111(photo: Path, right_half: Path) -> None:
    """Its overlay has twice the blurred mask; the latents there were sampled, not kept."""
    init = _InitPixels.read(InitImage(photo, mask=right_half, mask_blur=3), (16, 16))
    assert init.mask is not None
    soft, before = np.asarray(init.mask), np.asarray(init.image).astype(int)
    after = np.asarray(init.restore_outside_mask(Image.new("RGB", (16, 16), (255, 255, 255)))).astype(int)
    assert 0 < soft.min() < 64 < 128 <= soft.max()
    assert (after[soft >= 128] == 255).all()
    share = 2 * soft[soft < 128, None] / 255
    assert np.abs(after[soft < 128] - (before[soft < 128] * (1 - share) + 255 * share)).max() <= 1


@pytest.mark.parametrize("content", ["original", "noise", "nothing"])
def test_what_lies_under_the_mask_counts(sd: Model, photo: Path, right_half: Path, content: str) -> None:
    init = InitImage(photo, 0.6, mask=right_half, content=content)  # type: ignore[arg-type]
    others = {"original", "noise", "nothing"} - {content}
    drawn = one(sd, replace(REQUEST, steps=6, init_image=init))
    assert all(drawn != one(sd, replace(REQUEST, steps=6, init_image=replace(init, content=other))) for other in others)


def test_noise_under_the_mask_is_that_of_the_seeds_as_in_a1111(sd: Model, photo: Path, right_half: Path) -> None:
    """Whatever the variation: A1111's `create_random_tensors` is given the seeds alone there."""
    init = InitImage(photo, 0.6, mask=right_half, content="noise")
    request = replace(REQUEST, init_image=init, variation_seed=9, variation_strength=0.5)
    varied, plain = (SamplingPass(sd, one, [5, 6], one) for one in (request, replace(request, variation_strength=0)))
    assert not torch.equal(varied.noise, plain.noise)
    assert torch.equal(varied.noise_of_seeds(), plain.noise)


@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_a_mask_is_resized_by_lanczos_as_in_a1111(size: tuple[int, int]) -> None:
    mask = Image.new("L", (50, 30))
    mask.paste(255, (11, 7, 33, 19))
    assert (
        soft_mask(mask, size, blur=0, inverted=False).tobytes() == mask.resize(size, Image.Resampling.LANCZOS).tobytes()
    )


@pytest.mark.parametrize(("sampler", "times"), [("DDIM", 31), ("PLMS", 31), ("UniPC", 31), ("Euler", 30), ("Heun", 30)])
def test_image_to_image_counts_its_steps_from_the_end_where_a_schedule_has_more(
    sd: Model, photo: Path, sampler: str, times: int
) -> None:
    """1000 is no multiple of 30: DDIM, PLMS and UniPC make 31 steps from noise."""
    request = replace(REQUEST, sampler=sampler, steps=30)
    assert steps_of_pass(sd, request, request) == times
    request = replace(request, init_image=InitImage(photo, 0.5))
    assert steps_of_pass(sd, request, request) == 16


# --- a second pass


@pytest.mark.parametrize(
    ("shape", "size", "covering"),
    [
        ((64, 64), (128, 128), (128, 128)),
        ((64, 64), (128, 96), (128, 128)),
        ((64, 64), (96, 128), (128, 128)),
        ((512, 768), (1024, 1024), (1024, 1536)),
        ((448, 640), (864, 1152), (864, 1232)),  # 1234.3, to a multiple of 8
    ],
)
def test_a_second_pass_covers_the_shape_of_the_first(
    shape: tuple[int, int], size: tuple[int, int], covering: tuple[int, int]
) -> None:
    assert covering_size(shape, size) == covering


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_a_second_pass_of_another_shape_shows_the_middle_of_the_first(sd: Model, upscaler: str) -> None:
    """As in A1111, which cuts off what is too much: nothing is stretched."""
    square, wide = (replace(REQUEST, second=second(height=height, upscaler=upscaler)) for height in (32, 16))
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def enlarged(request: Request, height: int) -> torch.Tensor:
        assert request.second is not None
        batch = _ImageBatch(sd, request, [REQUEST.seed], lambda done, total: None)
        return batch._enlarge(latents, request.second, (height, 16))

    with torch.no_grad():
        assert torch.equal(enlarged(wide, 8), enlarged(square, 16)[:, :, 4:12])


@pytest.mark.parametrize(
    ("width", "height", "is_said"), [(128, 64, True), (64, 128, True), (128, 128, False), (128, 136, False)]
)
def test_a_second_pass_that_cuts_the_first_says_so(width: int, height: int, is_said: bool) -> None:
    request = replace(REQUEST, width=64, height=64, second=second(width=width, height=height))
    said = f"the second pass of {width}x{height} has another shape than the first of 64x64, and shows its middle"
    assert list(request.notes()) == ([said] if is_said else [])


@pytest.mark.parametrize(
    ("prompt", "is_said"),
    [("a sign, 16:9", True), ("a sign, 16:9:1", False), ("a sign AND a clock, 10:30", False), ("16:9, a sign", False)],
)
def test_that_a_number_at_the_end_of_the_only_part_is_its_weight_is_said_once(prompt: str, is_said: bool) -> None:
    request = replace(REQUEST, prompt=prompt, second=second(prompt=prompt))
    notes = [note for note in request.notes() if "weight" in note]
    assert len(notes) == is_said
    if is_said:
        assert notes == [
            "the 9 at the end of 'a sign, 16:9' is its weight, as in A1111; for the text, write :1 behind it"
        ]


def test_a_second_pass_of_a_shape_that_would_enlarge_the_first_beyond_measure_is_refused() -> None:
    with pytest.raises(UsageError, match="8x16384 over 16x16: the first would be enlarged to 16384x16384"):
        replace(REQUEST, second=second(width=8, height=16384))


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos", "Nearest"])
def test_a_second_pass_draws_at_its_own_size(sd: Model, upscaler: str) -> None:
    picture = next(draw(sd, replace(REQUEST, second=second(upscaler=upscaler))))
    assert picture.image.size == (32, 32)


def test_each_thing_of_a_second_pass_counts(sd: Model) -> None:
    changes = [{}, {"steps": 5}, {"denoising": 0.3}, {"upscaler": "Lanczos"}, {"prompt": "x"}, {"negative_prompt": "x"}]
    pictures = {one(sd, replace(REQUEST, second=second(**change))) for change in changes}
    assert len(pictures) == len(changes)


def test_a_second_pass_has_a_stack_of_its_own(sd: Model, network_files: Path) -> None:
    (ink,) = load_all(sd, network_files, "ink")
    stack = ((ink, 0.8),)
    pictures = {
        one(sd, replace(REQUEST, stack=first, second=second(stack=later)))
        for first in ((), stack)
        for later in ((), stack)
    }
    assert len(pictures) == 4


def test_progress_counts_the_calls_of_both_passes(sd: Model) -> None:
    told: list[tuple[int, int]] = []
    request = replace(REQUEST, steps=4, second=second(steps=10, denoising=0.5))
    list(draw(sd, request, lambda done, total: told.append((done, total))))
    assert told == [(call, 14) for call in range(1, 15)]


@pytest.mark.parametrize("denoising", [0.0, 0.001, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM++ 2M Karras", "DDIM"])
def test_a_second_pass_makes_all_of_its_steps_at_the_end_of_a_longer_schedule(
    sd: Model, sampler: str, denoising: float
) -> None:
    """A1111's ``setup_img2img_steps``, which is given the steps of a second pass."""
    request = replace(REQUEST, sampler=sampler, steps=2, second=second(steps=10, denoising=denoising))
    assert request.second is not None
    assert steps_of_pass(sd, request, request.second) == 10
    scheduler, begin = _scheduler_of_pass(sd, request, request.second)
    if denoising >= 0.3:
        whole = int(10 / min(denoising, 0.999))
        times = prepare_scheduler(sampler, sd.scheduler_config, whole).timesteps
        assert scheduler.timesteps.tolist() == times.tolist()
        assert scheduler.timesteps[begin:].tolist() == times[-(19 if sampler == "Heun" else 10) :].tolist()
    else:
        assert scheduler.timesteps[begin] < 11


# --- batches and noise


def test_a_picture_over_another_is_the_one_of_its_seed_in_every_batch(sd: Model, photo: Path, right_half: Path) -> None:
    changes: list[dict[str, Any]] = [
        {"init_image": InitImage(photo, 0.4)},
        {"init_image": InitImage(photo, 0.4, mask=right_half)},
        {"second": second(upscaler="Lanczos", denoising=0.4)},
    ]
    for change in changes:
        request = replace(REQUEST, **change)
        alone = [one(sd, replace(request, seed=seed)) for seed in (5, 6)]
        together = [drawn.image.tobytes() for drawn in draw(sd, replace(request, count=2, batch_size=2))]
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(pixels(ours), pixels(theirs), atol=1)


def test_a_batch_holds_the_pictures_of_its_seeds(sd: Model) -> None:
    apart = list(draw(sd, replace(REQUEST, count=3)))
    together = list(draw(sd, replace(REQUEST, count=3, batch_size=2)))
    assert [picture.seed for picture in together] == [5, 6, 7]
    for one_, other in zip(apart, together, strict=True):
        difference = pixels(one_.image.tobytes()) - pixels(other.image.tobytes())
        assert np.abs(difference).max() <= 1


def test_cudas_noise_is_other_noise_and_gives_the_same_picture_each_time(sd: Model) -> None:
    nv = replace(REQUEST, rng="nv")
    assert one(sd, nv) == one(sd, nv) != one(sd)


def test_a_variation_goes_from_one_seeds_picture_to_anothers(sd: Model) -> None:
    request = replace(REQUEST, sampler="Euler", variation_seed=9)
    strengths = [one(sd, replace(request, variation_strength=amount)) for amount in (0.0, 0.3, 1.0)]
    assert strengths[0] == one(sd, replace(REQUEST, sampler="Euler"))
    assert strengths[2] == one(sd, replace(REQUEST, sampler="Euler", seed=9))
    assert len(set(strengths)) == 3


def test_variations_of_several_pictures_count_up(sd: Model) -> None:
    request = replace(REQUEST, count=2, variation_seed=9, variation_strength=0.5)
    _, later = draw(sd, request)
    assert later.image.tobytes() == one(sd, replace(request, count=1, seed=6, variation_seed=10))


def test_ensd_changes_what_samplers_draw_and_nothing_else(sd: Model) -> None:
    assert one(sd, replace(REQUEST, eta_seed_delta=31337)) != one(sd)
    euler = replace(REQUEST, sampler="Euler")
    assert one(sd, replace(euler, eta_seed_delta=31337)) == one(sd, euler)
    shape = (4, 2, 2)
    assert torch.equal(Noise(5, shape, source="cpu", ensd=3).next(), Noise(8, shape, source="cpu").first())


# --- prompts


@pytest.mark.parametrize(
    "prompt",
    ["a (red:1.4) circle", "a red BREAK circle", "a [red:blue:0.1] circle", "[b|a] red circle", "a circle AND red:0.5"],
)
def test_the_prompt_language_reaches_the_picture(sd: Model, prompt: str) -> None:
    bare = ("a red circle", "a circle", "a red red circle")
    assert one(sd, replace(REQUEST, prompt=prompt)) not in [one(sd, replace(REQUEST, prompt=text)) for text in bare]


def test_a_schedule_that_changes_before_the_first_call_is_the_text_after_it(sd: Model) -> None:
    assert one(sd, replace(REQUEST, prompt="a [red:blue:-1] circle")) == one(
        sd, replace(REQUEST, prompt="a blue circle")
    )


@pytest.mark.parametrize(
    ("sampler", "steps", "first"),
    [
        ("Euler", 20, 11),
        ("Heun", 20, 21),
        ("DPM2 Karras", 20, 21),
        ("DPM++ SDE", 6, 7),
        ("PLMS", 30, 16),
        ("DDIM", 60, 31),
    ],
)
def test_a_text_changes_at_the_call_at_which_a1111_changes_it(sd: Model, sampler: str, steps: int, first: int) -> None:
    """Its schedules are measured by the steps, twice as many of second order, whatever a sampler really makes."""
    texts: list[torch.Tensor] = []

    def see(unet: torch.nn.Module, arguments: Any, named: Any) -> None:
        texts.append(named["encoder_hidden_states"][-1].clone())

    handle = sd.pipe.unet.register_forward_pre_hook(see, with_kwargs=True)
    one(sd, replace(REQUEST, prompt="a [red:blue:0.5] circle", sampler=sampler, steps=steps))
    handle.remove()
    assert next(number for number, text in enumerate(texts) if not torch.equal(text, texts[0])) == first


@pytest.mark.parametrize(
    ("sampler", "calls"), [("Euler", 3), ("Heun", 6), ("DPM++ 2S a", 6), ("PLMS", 4), ("DPM2 a Karras", 6)]
)
def test_a_window_has_all_calls_of_its_steps(sd: Model, network_files: Path, sampler: str, calls: int) -> None:
    """The middle of 3 of 5 steps is before 0.6; two calls in one step are not divided."""
    (ink,) = load_all(sd, network_files, "ink")
    inputs: dict[str, torch.Tensor] = {}
    applied: list[bool] = []
    layer = sd.pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2

    def see_v(module: torch.nn.Module, output: Any) -> None:
        applied.append(inputs["k"] is not output[0])

    handles = [
        layer.to_k.register_forward_hook(lambda module, given, output: inputs.__setitem__("k", given[0])),
        layer.to_v.register_forward_pre_hook(see_v),
    ]
    one(sd, replace(REQUEST, sampler=sampler, steps=5, stack=((ink, Strength(1.0, end=0.6)),)))
    for handle in handles:
        handle.remove()
    assert applied == [True] * calls + [False] * (len(applied) - calls)


def test_a_prompts_weight_counts_without_guidance_too(sd: Model) -> None:
    """At a CFG scale of 1 the negative prompt is left out, unless the prompt's own weight needs it."""
    plain, half, whole = (replace(REQUEST, prompt=f"a red circle{end}", cfg_scale=1.0) for end in ("", " :0.5", " :1"))
    assert one(sd, plain) == one(sd, whole)
    difference = pixels(one(sd, half)) - pixels(one(sd, replace(half, cfg_scale=1.0000001)))
    assert np.abs(difference).max() <= 1
    assert one(sd, half) != one(sd, plain)


def test_a_part_of_weight_0_changes_nothing(sd: Model) -> None:
    difference = pixels(one(sd, replace(REQUEST, prompt="a red circle AND green :0"))) - pixels(one(sd))
    assert np.abs(difference).max() <= 1


def test_texts_of_different_length_are_both_read(sd: Model) -> None:
    long = "a b c d e " * 20
    pictures = {one(sd, replace(REQUEST, prompt=p, negative_prompt=n)) for p in ("a", long) for n in ("b", long)}
    assert len(pictures) == 4


@pytest.mark.parametrize(
    ("changed", "is_seen"),
    [
        *((Strength(0.0, self_k=0.8), True), (Strength(0.0, cross_v=0.8), True)),
        *((Strength(0.8, start=1.0), False), (Strength(0.8, blocks={"": 0.0}), False)),
        *((Strength(0.8, blocks={"": 0.0, "mid_block": 1.0}), True), (Strength(0.8, end=0.4), True)),
    ],
)
def test_a_part_a_window_and_a_block_count_where_they_should(
    sd: Model, network_files: Path, changed: Strength, is_seen: bool
) -> None:
    (ink,) = load_all(sd, network_files, "ink")
    assert (one(sd, replace(REQUEST, stack=((ink, changed),))) != one(sd)) == is_seen


def test_sizes_that_cannot_be_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="33 pixels"):
        second(width=33)


# --- other base models


def test_sdxl_draws_in_every_mode(sdxl_folder: Path, photo: Path, right_half: Path) -> None:
    model = load_model(sdxl_folder, device="cpu")
    long = "a b c d e " * 20
    changes = [
        {},
        {"prompt": "(red:1.4) circle"},
        {"prompt": f"{long} BREAK x"},
        {"negative_prompt": long},
        {"init_image": InitImage(photo, 0.5)},
        {"init_image": InitImage(photo, 1.0, mask=right_half)},
        {"second": second()},
        {"prompt": "red AND circle:0.5"},
        {"cfg_scale": 1.0},
    ]
    assert len({one(model, replace(REQUEST, **change)) for change in changes}) == len(changes)


def test_a_model_that_predicts_v_draws_the_same_way(sd: Model) -> None:
    """SD 2: the scheduler's configuration says what the UNet gives."""
    of_v = replace(sd, scheduler_config={**sd.scheduler_config, "prediction_type": "v_prediction"})
    for sampler in ("Euler a", "DPM++ 2M Karras", "DDIM", "UniPC", "LMS"):
        request = replace(REQUEST, sampler=sampler)
        assert one(of_v, request) == one(of_v, request) != one(sd, request)
