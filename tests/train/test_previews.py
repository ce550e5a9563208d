"""Previews: what they show, that they disturb nothing, and that noise is told from pictures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.networks import a1111_network, save_pt
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd

import hnetkit
from hnetkit import demo
from hnetkit import settings as configured
from hnetkit.errors import UsageError
from hnetkit.generate.drawing import draw
from hnetkit.generate.model import Model, load_model
from hnetkit.generate.request import Request
from hnetkit.network import Hypernetwork, MLPPair, ResidualMLP, TensorRef
from hnetkit.train.guards import Guards, Verdict
from hnetkit.train.previews import Preview, Previews, PreviewSettings, high_frequencies

SMALL = PreviewSettings(prompts=("a red circle", "a blue star"), seeds=(3, 8), steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    tiny_sd().save_pretrained(folder)
    return folder


@pytest.fixture
def model(folder: Path) -> Model:
    return load_model(folder, device="cpu")


@pytest.fixture
def ink(tmp_path: Path) -> Hypernetwork:
    return network(tmp_path)


def network(folder: Path, name: str = "ink", scale: float = 0.3) -> Hypernetwork:
    content = a1111_network((*SELF_WIDTHS, SD_CROSS_WIDTH), activation="relu", scale=scale, name=name)
    return hnetkit.load(save_pt(content, folder / f"{name}.pt"))


def previews(model: Model, folder: Path, settings: PreviewSettings = SMALL, **options: Any) -> Previews:
    return Previews(model, settings, folder / "previews", "ink", **options)


def pixels(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image).astype(int)


def drawn(model: Model, prompt: str, seeds: tuple[int, ...], **options: Any) -> list[np.ndarray[Any, Any]]:
    """What `hnetkit generate` draws."""
    size, own = model.size, model.defaults
    wanted = {
        "steps": 2,
        "cfg_scale": own.cfg_scale,
        "width": size[0],
        "height": size[1],
        "sampler": "Euler a",
    } | options
    return [pixels(next(iter(draw(model, Request(prompt, seed, **wanted)))).image) for seed in seeds]


def test_the_sheet_has_a_row_for_each_prompt_and_seed_and_a_column_for_each_strength(
    model: Model, ink: Hypernetwork, tmp_path: Path
) -> None:
    three = previews(model, tmp_path).draw(ink, 500)
    assert three.path == tmp_path / "previews" / "ink-500.png"
    assert [path.name for path in three.path.parent.iterdir()] == ["ink-500.png"]
    assert three.step == 500
    assert len(three.images) == 4
    one = previews(model, tmp_path, replace(SMALL, strengths=(1.0,), seeds=(3,))).draw(ink, 501)
    with Image.open(three.path) as wide, Image.open(one.path) as narrow:
        assert wide.width > narrow.width
        assert wide.height > narrow.height + 2 * 192  # two seeds more, each a row of its own


def test_pictures_are_what_is_drawn_with_the_network_at_the_largest_strength(
    model: Model, ink: Hypernetwork, tmp_path: Path
) -> None:
    settings = replace(SMALL, batch_size=1, strengths=(1.0, 0.0, 0.5))
    preview = previews(model, tmp_path, settings).draw(ink, 1)
    hnetkit.load_hypernetwork(model.pipe, ink, "ink", strength=0.0)
    expected = [
        picture for prompt in SMALL.prompts for picture in drawn(model, prompt, SMALL.seeds, stack=(("ink", 1.0),))
    ]
    assert all((pixels(mine) == other).all() for mine, other in zip(preview.images, expected, strict=True))


def test_pictures_without_the_network_are_drawn_once(model: Model, ink: Hypernetwork, tmp_path: Path) -> None:
    calls: list[int] = []
    model.pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    drawing = previews(model, tmp_path)
    drawing.draw(ink, 1)
    first = len(calls)
    drawing.draw(ink, 2)
    assert len(calls) - first == first * 2 // 3


def test_random_numbers_modes_and_the_unet_are_as_before(model: Model, ink: Hypernetwork, tmp_path: Path) -> None:
    unet = model.pipe.unet
    unet.train()
    unet.mid_block.eval()
    modes = [module.training for module in unet.modules()]
    names = [name for name, _ in unet.named_modules()]
    weights = {name: value.clone() for name, value in unet.state_dict().items()}
    grads = [
        parameter.requires_grad_(index % 2 == 0).requires_grad for index, parameter in enumerate(unet.parameters())
    ]
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    previews(model, tmp_path, replace(SMALL, sampler="DPM++ SDE")).draw(ink, 1)

    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert [module.training for module in unet.modules()] == modes
    assert [name for name, _ in unet.named_modules()] == names
    assert [parameter.requires_grad for parameter in unet.parameters()] == grads
    assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unet.modules())


def test_they_are_as_before_after_an_error_and_whatever_drew_numbers(
    model: Model, ink: Hypernetwork, tmp_path: Path
) -> None:
    unet = model.pipe.unet.train()
    names = [name for name, _ in unet.named_modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    drawing = previews(model, tmp_path)

    def interrupt(*_: Any) -> None:
        torch.rand(1), random.random(), np.random.rand()
        raise KeyboardInterrupt

    hook = unet.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        drawing.draw(ink, 1)
    hook.remove()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert unet.training
    assert [name for name, _ in unet.named_modules()] == names


def test_drawing_is_without_dropout_and_the_same_in_any_mode(model: Model, ink: Hypernetwork, tmp_path: Path) -> None:
    model.pipe.unet.eval()
    still = previews(model, tmp_path).draw(ink, 1)
    for module in model.pipe.unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    model.pipe.unet.train()
    moving = previews(model, tmp_path).draw(ink, 2)
    assert [pixels(one).tolist() for one in still.images] == [pixels(one).tolist() for one in moving.images]


def test_a_network_that_is_loaded_already_stays_and_is_not_drawn_with(
    model: Model, ink: Hypernetwork, tmp_path: Path
) -> None:
    alone = previews(model, tmp_path).draw(ink, 1)
    hnetkit.load_hypernetwork(model.pipe, network(tmp_path, "mist", 0.5), "mist", strength=0.7)
    beside = previews(model, tmp_path).draw(ink, 2)
    assert [pixels(one).tolist() for one in beside.images] == [pixels(one).tolist() for one in alone.images]
    assert hnetkit.get_active_hypernetworks(model.pipe) == ["mist"]


def test_whoever_keeps_the_text_encoder_elsewhere_is_asked_for_it(
    model: Model, ink: Hypernetwork, tmp_path: Path
) -> None:
    encoder, model.pipe.text_encoder = model.pipe.text_encoder, None

    @contextmanager
    def bring() -> Iterator[None]:
        model.pipe.text_encoder = encoder
        yield
        model.pipe.text_encoder = None

    assert len(previews(model, tmp_path, ready=bring).draw(ink, 1).images) == 4
    assert model.pipe.text_encoder is None


def test_a_preview_of_nan_is_still_a_sheet_and_a_reason_to_go_back(
    model: Model, ink: Hypernetwork, tmp_path: Path
) -> None:
    preview = previews(model, tmp_path).draw(blown_up(ink, float("nan")), 7)
    assert preview.fault == "8 of 12 pictures came out NaN or black"
    assert preview.images == ()
    assert preview.path.exists()
    verdict = Guards().after_preview(preview.step, preview.energy, preview.fault)
    assert verdict is not None
    assert verdict.kind == "roll-back"


def test_a_model_whose_own_pictures_are_nan_is_no_fault_of_the_network(
    model: Model, ink: Hypernetwork, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.pipe.vae.decoder.conv_out.weight.fill_(float("nan"))
    settings = replace(SMALL, strengths=(0.5, 1.0))
    assert previews(model, tmp_path, settings).draw(ink, 1).fault == ""


def test_without_prompts_the_models_own_are_drawn(model: Model, ink: Hypernetwork, tmp_path: Path) -> None:
    own = replace(model, defaults=replace(model.defaults, prompts=("a", "b", "c", "d")))
    settings = replace(SMALL, prompts=())
    assert len(previews(own, tmp_path, settings).draw(ink, 1).images) == 3 * 2
    assert len(previews(model, tmp_path, settings).draw(ink, 1).images) == 2


def test_lms_is_taken_where_it_is_asked_for_and_never_else(model: Model, ink: Hypernetwork, tmp_path: Path) -> None:
    def of(model: Model, settings: PreviewSettings) -> list[Any]:
        return [pixels(picture).tolist() for picture in previews(model, tmp_path, settings).draw(ink, 1).images]

    by_lms = replace(model, defaults=replace(model.defaults, sampler="LMS Karras"))
    assert of(by_lms, SMALL) == of(model, replace(SMALL, sampler="Euler a"))
    assert of(model, replace(SMALL, sampler="LMS")) != of(model, SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"seeds": ()},
        {"strengths": ()},
        {"strengths": (0.0, float("nan"))},
        {"batch_size": 0},
        {"seeds": (-1,)},
        {"sampler": "Euler b"},
        {"width": 63},
        {"seeds": tuple(range(5000))},
    ],
    ids=str,
)
def test_what_cannot_be_drawn_is_refused_before_a_step_is_made(
    model: Model, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        previews(model, tmp_path, replace(SMALL, **wrong))


@pytest.fixture(scope="module")
def demo_model() -> Model:
    return load_model(demo.model_folder(), device="cpu")


def blown_up(network: Hypernetwork, times: float) -> Hypernetwork:
    """The network with all its weights multiplied: what a rate that is far too high makes of one."""

    def grown(mlp: ResidualMLP) -> ResidualMLP:
        new = {id(tensor): TensorRef.of(tensor.torch() * times) for tensor in mlp.tensors.values()}
        stages = []
        for stage in mlp.stages:
            norm = stage.norm and replace(stage.norm, weight=new[id(stage.norm.weight)], bias=new[id(stage.norm.bias)])
            bias = stage.bias and new[id(stage.bias)]
            stages.append(replace(stage, weight=new[id(stage.weight)], bias=bias, norm=norm))
        return ResidualMLP(tuple(stages), {name: new[id(tensor)] for name, tensor in mlp.tensors.items()})

    mlps = {width: MLPPair(grown(pair.key), grown(pair.value)) for width, pair in network.mlps.items()}
    return replace(network, mlps=mlps, path=None, source=None)  # as the trainer gives it


def test_styles_are_told_from_networks_that_broke(demo_model: Model, tmp_path: Path) -> None:
    styles = {name: hnetkit.load(path) for name, path in demo.networks().items()}
    settings = PreviewSettings(demo_model.defaults.prompts[:2], seeds=(1,), strengths=(1.0,), steps=10)
    drawing = previews(demo_model, tmp_path, settings)
    guards = Guards()

    def verdict(network: Hypernetwork) -> tuple[Preview, Verdict | None]:
        preview = drawing.draw(network, 1)
        return preview, guards.after_preview(1, preview.energy, preview.fault)

    assert verdict(blown_up(styles["outline"], 0.0))[1] is None  # nothing learned yet: the first preview
    for name, style in styles.items():
        preview, said = verdict(style)
        assert said is None, f"{name}: {said} {preview.energy}"
    # the layer norms of dots hold what it adds: it breaks into dark patches, which the loss shows and not the noise
    for name, times in (("outline", 3), ("outline", 10), ("paper", 3)):
        preview, said = verdict(blown_up(styles[name], times))
        assert said is not None, f"{name} x{times}: {preview.energy}"
        assert "noise" in said.reason


def test_noise_has_more_fine_detail_than_any_drawing() -> None:
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (64, 64, 3), np.uint8)
    blotches = np.asarray(Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64)))
    disc = (np.hypot(*np.mgrid[-32:32, -32:32]) < 20)[..., None].repeat(3, 2).astype(np.uint8) * 255
    gradient = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))[..., None].repeat(3, 2)
    assert high_frequencies(gradient, 8) < 0.001
    assert high_frequencies(noise, 8) > 5 * high_frequencies(disc, 8)
    assert high_frequencies(blotches, 8) > 2 * high_frequencies(disc, 8)


def test_noise_in_one_colour_alone_counts() -> None:
    draw = np.random.default_rng(0)
    flat = np.full((64, 64, 3), 128, np.uint8)
    blue = flat.copy()
    blue[..., 2] = draw.integers(0, 256, (64, 64))
    assert high_frequencies(flat, 8) == pytest.approx(0, abs=1e-12)
    assert high_frequencies(blue, 8) > 0.01


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 1, 3), (70, 33, 3)])
def test_pictures_of_any_size_are_measured(shape: tuple[int, ...]) -> None:
    assert high_frequencies(np.zeros(shape, np.uint8), 8) == 0


@pytest.mark.parametrize("tag", ["<hypernet:outline:1>", "<lora:glow:0.8>", "<wild:x>", "# blue <hypernet:outline:1>"])
def test_a_prompt_is_drawn_without_its_tags_and_comments_and_that_is_said(
    model: Model, ink: Hypernetwork, tmp_path: Path, tag: str
) -> None:
    said: list[str] = []
    settings = replace(SMALL, prompts=("a red circle ", f"a red circle {tag}"), seeds=(3,), strengths=(0.0, 1.0))
    drawing = previews(model, tmp_path, settings, note=said.append)
    plain, tagged = drawing.draw(ink, 1).images
    assert (pixels(plain) == pixels(tagged)).all()
    assert drawing.columns == ["seed 3: a red circle "] * 2
    assert len(said) == 1
    assert tag.partition(":")[0] in said[0]


@pytest.mark.parametrize("field", ["prompts", "negative_prompt"])
def test_generation_data_are_no_prompt(model: Model, tmp_path: Path, field: str) -> None:
    data = "a red circle\nSteps: 4, Sampler: Euler, Seed: 5"
    settings = replace(SMALL, **{field: (data,) if field == "prompts" else data})
    with pytest.raises(UsageError, match="generation data"):
        previews(model, tmp_path, settings)


def test_a_tag_in_the_negative_prompt_is_said_to_be_words(model: Model, tmp_path: Path) -> None:
    said: list[str] = []
    settings = replace(SMALL, negative_prompt="red <hypernet:outline:1> # blue")
    previews(model, tmp_path, settings, note=said.append)
    assert said == [
        "Left out of the prompt as a comment: # blue",
        "Tags in a negative prompt are plain text, as in A1111.",
    ]


def test_a_textual_inversion_in_a_prompt_is_said_to_be_words(model: Model, tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    save_file({"emb_params": torch.ones(2, SD_CROSS_WIDTH)}, tmp_path / "embeddings" / "mine.safetensors")
    configured.put("embeddings", str(tmp_path / "embeddings"))
    said: list[str] = []
    previews(model, tmp_path, replace(SMALL, prompts=("a mine star", "a star")), note=said.append)
    previews(model, tmp_path, replace(SMALL, prompts=("a star",), negative_prompt="mine"), note=said.append)
    assert said == ["Warning: mine: a textual inversion, which a preview reads as the words of its name"] * 2
