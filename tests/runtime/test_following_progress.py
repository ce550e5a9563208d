"""`follow_progress`: windows of steps in the pipelines of diffusers, by the steps that each of them really makes."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from support.networks import network_file
from support.pipelines import draw, tiny_sd, tiny_sdxl

import hnetkit
from hnetkit.errors import AttachError, UsageError
from hnetkit.network import Hypernetwork

PICTURE = Image.new("RGB", (16, 16), "red")
MASK = Image.new("L", (16, 16), 255)


def applied_at(pipe: Any, call: Callable[..., Any], **options: Any) -> list[bool]:
    """Whether the loaded network was applied, for each call of the UNet that a call of the pipeline makes."""
    was_on: list[bool] = []
    handle = pipe.unet.register_forward_hook(
        lambda unet, *_: was_on.append(any(not group.is_idle for group in unet.hnetkit.plan.groups))
    )
    try:
        call(**options)
    finally:
        handle.remove()
    return was_on


def half(calls: int, calls_per_step: int = 1) -> list[bool]:
    """What a window over the first half means: a step counts by its middle, and all of its calls are in it."""
    steps = -(-calls // calls_per_step)
    return [(call // calls_per_step + 0.5) / steps <= 0.5 for call in range(calls)]


def of(kind: type[Any], pipe: Any) -> Any:
    """A pipeline of another kind on the parts of `pipe`."""
    options = {} if "XL" in kind.__name__ else {"requires_safety_checker": False}
    made = kind(**pipe.components, **options)
    made.set_progress_bar_config(disable=True)
    return made


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def text_to_image(pipe: Any) -> Callable[..., Any]:
    return lambda **options: pipe("a", output_type="latent", height=16, width=16, **options)


def image_to_image(pipe: Any, strength: float = 0.5) -> Callable[..., Any]:
    return lambda **options: pipe(
        "a", image=PICTURE, strength=strength, output_type="latent", generator=generator(), **options
    )


def inpainting(pipe: Any) -> Callable[..., Any]:
    return lambda **options: pipe(
        "a", image=PICTURE, mask_image=MASK, strength=0.5, height=16, width=16, output_type="latent", **options
    )


OF_SECOND_ORDER = [HeunDiscreteScheduler, KDPM2DiscreteScheduler]
SCHEDULERS = [DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, *OF_SECOND_ORDER]


@pytest.fixture
def pipe(pipe: Any, ink: Hypernetwork) -> Any:
    """A pipeline with a network that is limited to the first half of the steps."""
    hnetkit.load_hypernetwork(pipe, ink, strength=hnetkit.Strength(end=0.5))
    return pipe


@pytest.fixture
def sdxl(tmp_path: Any) -> Any:
    pipe = tiny_sdxl()
    file = network_file(tmp_path, "ink.pt", widths=(8, 20, 48), activation="relu")
    hnetkit.load_hypernetwork(pipe, file, strength=hnetkit.Strength(end=0.5))
    return pipe


@pytest.mark.parametrize(("scheduler", "stated"), [*((kind, ()) for kind in SCHEDULERS), (DDIMScheduler, (10,))])
@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (StableDiffusionPipeline, text_to_image),
        (StableDiffusionImg2ImgPipeline, image_to_image),
        (StableDiffusionInpaintPipeline, inpainting),
    ],
)
def test_a_window_is_of_the_steps_that_the_pipeline_makes(
    pipe: Any, scheduler: type[Any], stated: tuple[int, ...], kind: type[Any], call: Any
) -> None:
    pipe = of(kind, pipe)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    follow = hnetkit.follow_progress(pipe, *stated)
    for steps in (10, 3):  # and again: one callback serves many calls
        made = applied_at(pipe, call(pipe), num_inference_steps=steps, callback_on_step_end=follow)
        if scheduler is PNDMScheduler:  # whose first step alone calls it twice
            first, *later = made
            assert first
            assert later == half(len(later))
        else:
            assert made == half(len(made), 2 if scheduler in OF_SECOND_ORDER else 1)
        assert len(made) == pipe.num_timesteps


def test_the_picture_is_that_of_a_stack_switched_off_halfway(pipe: Any) -> None:
    drawn = draw(pipe, steps=4, callback_on_step_end=hnetkit.follow_progress(pipe))
    hnetkit.set_hypernetworks(pipe, ["ink"])

    def switch_off(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        hnetkit.set_hypernetworks(pipe, {"ink": 1.0 if step + 1 < 2 else 0.0})
        return tensors

    assert torch.equal(drawn, draw(pipe, steps=4, callback_on_step_end=switch_off))


def test_timesteps_of_ones_own(pipe: Any) -> None:
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    follow = hnetkit.follow_progress(pipe, 50)
    for timesteps in ([900, 700, 500, 300, 100], [800, 400, 1]):
        made = applied_at(pipe, text_to_image(pipe), timesteps=timesteps, callback_on_step_end=follow)
        assert made == half(len(timesteps))


def test_a_part_of_the_sampling_has_a_window_of_its_own(sdxl: Any) -> None:
    follow = hnetkit.follow_progress(sdxl)
    first = applied_at(
        sdxl, text_to_image(sdxl), num_inference_steps=10, denoising_end=0.6, callback_on_step_end=follow
    )
    assert first == half(6)
    refiner = of(StableDiffusionXLImg2ImgPipeline, sdxl)
    second = applied_at(
        refiner,
        image_to_image(refiner),
        num_inference_steps=10,
        denoising_start=0.6,
        callback_on_step_end=hnetkit.follow_progress(refiner),
    )
    assert second == half(4)


def test_pipelines_that_share_a_unet_follow_in_turns(pipe: Any) -> None:
    other = of(StableDiffusionImg2ImgPipeline, pipe)
    followers = hnetkit.follow_progress(pipe), hnetkit.follow_progress(other)
    for _ in range(2):
        for one, call, follow in zip((pipe, other), (text_to_image, image_to_image), followers, strict=True):
            made = applied_at(one, call(one), num_inference_steps=8, callback_on_step_end=follow)
            assert made == half(8 if one is pipe else 4)


def test_samplings_that_threads_make_on_one_unet_at_once_are_refused_and_not_drawn_with_each_others_steps(
    pipe: Any,
) -> None:
    other, finished = beside(pipe), []

    def draw_other() -> None:
        finished.append(draw(other, steps=2, callback_on_step_end=hnetkit.follow_progress(other)))

    with pytest.raises(UsageError, match="another thread"):
        draw(pipe, steps=8, callback_on_step_end=meanwhile(pipe, draw_other, hnetkit.follow_progress(pipe)))
    assert torch.equal(finished[0], draw(other, steps=2, callback_on_step_end=hnetkit.follow_progress(other)))


def test_threads_may_sample_on_one_unet_at_once_where_no_network_has_a_window(pipe: Any) -> None:
    hnetkit.set_hypernetworks(pipe, hnetkit.get_active_hypernetworks(pipe), 1.0)
    other = beside(pipe)
    alone = draw(pipe, steps=4)

    def draw_other() -> None:
        draw(other, "another text", steps=2, callback_on_step_end=hnetkit.follow_progress(other))

    follow = meanwhile(pipe, draw_other, hnetkit.follow_progress(pipe))
    assert torch.equal(draw(pipe, steps=4, callback_on_step_end=follow), alone)


def test_a_preview_within_a_callback_changes_nothing_of_the_picture(pipe: Any) -> None:
    other, follow = beside(pipe), hnetkit.follow_progress(pipe)
    alone = draw(pipe, steps=4, callback_on_step_end=follow)
    followed = hnetkit.follow_progress(pipe)

    def preview(*arguments: Any) -> dict[str, Any]:
        draw(other, steps=3, callback_on_step_end=hnetkit.follow_progress(other))
        return followed(*arguments)

    assert torch.equal(draw(pipe, steps=4, callback_on_step_end=preview), alone)


def beside(pipe: Any) -> Any:
    """Another pipeline on the same parts, with a scheduler of its own."""
    made = of(StableDiffusionPipeline, pipe)
    made.scheduler = copy.deepcopy(pipe.scheduler)
    return made


def meanwhile(pipe: Any, work: Callable[[], None], follow: Callable[..., Any]) -> Callable[..., Any]:
    """Does work in another thread, once, while the UNet is called for the second step; returns a callback."""
    done: list[int] = []

    def during(*_: Any) -> None:
        if done == [0]:
            done.append(1)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    def after(*arguments: Any) -> dict[str, Any]:
        done.append(arguments[1])
        return follow(*arguments)  # type: ignore[no-any-return]

    pipe.unet.mid_block.register_forward_hook(during)
    return after


def test_networks_come_and_go_under_one_callback(pipe: Any, wash: Hypernetwork) -> None:
    follow = hnetkit.follow_progress(pipe)
    hnetkit.unload_hypernetworks(pipe)
    draw(pipe, callback_on_step_end=follow)
    hnetkit.load_hypernetwork(pipe, wash, strength=hnetkit.Strength(end=0.5))
    assert applied_at(pipe, text_to_image(pipe), num_inference_steps=4, callback_on_step_end=follow) == half(4)


def test_it_is_one_of_the_callbacks_of_diffusers(pipe: Any) -> None:
    from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

    follow = hnetkit.follow_progress(pipe)
    both = MultiPipelineCallbacks([SDCFGCutoffCallback(cutoff_step_ratio=0.5), follow])
    for _ in range(2):
        assert applied_at(pipe, text_to_image(pipe), num_inference_steps=4, callback_on_step_end=both) == half(4)
    assert repr(follow) == "follow_progress(StableDiffusionPipeline)"


def test_a_call_without_the_callback_is_refused_and_not_drawn_as_its_first_step(pipe: Any) -> None:
    follow = hnetkit.follow_progress(pipe)
    draw(pipe, callback_on_step_end=follow)
    with pytest.raises(AttachError, match="the progress was not set") as refused:
        draw(pipe)
    assert (
        str(refused.value.hint)
        == "pass callback_on_step_end=hnetkit.follow_progress(pipe) to this call of the pipeline"
    )
    hnetkit.follow_progress(pipe)  # given to no call
    with pytest.raises(AttachError):
        draw(pipe)
    held = hnetkit.follow_progress(pipe)  # to none either, and kept for a later one
    with pytest.raises(AttachError, match="the progress was not set"):
        draw(pipe)
    assert applied_at(pipe, text_to_image(pipe), num_inference_steps=4, callback_on_step_end=held) == half(4)
    hnetkit.set_hypernetworks(pipe, [])
    later = hnetkit.follow_progress(pipe)
    draw(pipe)  # nothing is limited to a part of the steps
    assert later is not held


def test_a_sampling_that_was_interrupted_is_begun_anew(pipe: Any) -> None:
    follow = hnetkit.follow_progress(pipe)

    def fail(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            raise KeyboardInterrupt
        return dict(follow(pipe, step, timestep, tensors))

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, steps=4, callback_on_step_end=fail)
    assert applied_at(pipe, text_to_image(pipe), num_inference_steps=4, callback_on_step_end=follow) == half(4)


@pytest.mark.parametrize("how", ["an error", "pipe._interrupt", "an error, of a callback that nobody holds"])
def test_a_call_without_the_callback_is_refused_after_one_that_was_broken_off(pipe: Any, how: str) -> None:
    def draw_partly() -> None:
        follow = hnetkit.follow_progress(pipe)

        def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == 2 and "error" in how:
                raise KeyboardInterrupt
            pipe._interrupt = step == 2
            return dict(follow(pipe, step, timestep, tensors))

        with contextlib.suppress(KeyboardInterrupt):
            draw(pipe, steps=4, callback_on_step_end=stop)
        held.append(follow)

    held: list[Any] = []
    draw_partly()
    if "nobody" in how:
        held.clear()
    with pytest.raises(AttachError, match="the progress was not set"):
        draw(pipe, steps=4)
    follow = hnetkit.follow_progress(pipe)
    assert applied_at(pipe, text_to_image(pipe), num_inference_steps=4, callback_on_step_end=follow) == half(4)
    assert "progress_bar" not in vars(pipe)


def test_nothing_stays_on_the_pipeline(pipe: Any) -> None:
    before = set(vars(pipe))
    follow = hnetkit.follow_progress(pipe)
    other = copy.deepcopy(pipe)
    draw(pipe, callback_on_step_end=follow)
    assert set(vars(pipe)) - before <= {"_num_timesteps", "_guidance_scale", "_guidance_rescale", "_clip_skip"} | {
        name for name in vars(pipe) if name in ("_cross_attention_kwargs", "_interrupt")
    }
    hnetkit.disable_hypernetworks(other)
    draw(other)
    assert "progress_bar" not in vars(other)


def test_a_unet_alone_needs_the_number_and_it_must_be_right(pipe: Any) -> None:
    with pytest.raises(UsageError, match="does not say how many steps there are"):
        hnetkit.follow_progress(pipe.unet)
    made = applied_at(
        pipe, text_to_image(pipe), num_inference_steps=4, callback_on_step_end=hnetkit.follow_progress(pipe.unet, 4)
    )
    assert made == half(4)
    with pytest.raises(UsageError, match="makes 4 steps; its first was drawn as one of 9"):
        draw(pipe, steps=4, callback_on_step_end=hnetkit.follow_progress(pipe.unet, 9))
    with pytest.raises(UsageError, match="no UNet"):
        hnetkit.follow_progress(object())


def test_a_callback_for_another_pipeline_is_said(pipe: Any) -> None:
    other = of(StableDiffusionImg2ImgPipeline, pipe)
    draw(pipe, callback_on_step_end=hnetkit.follow_progress(pipe))
    with pytest.raises((UsageError, AttachError)):
        image_to_image(other)(num_inference_steps=10, callback_on_step_end=hnetkit.follow_progress(pipe))
    with pytest.raises(UsageError, match="makes 5 steps; its first was drawn as one of 10"):
        image_to_image(other)(num_inference_steps=10, callback_on_step_end=hnetkit.follow_progress(pipe, 10))


def test_a_compiled_unet_is_followed(ink: Hypernetwork) -> None:
    torch.compiler.reset()
    pipe = tiny_sd(least=True)
    plain = tiny_sd(least=True)
    pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
    assert isinstance(plain.unet, UNet2DConditionModel)
    for one in (pipe, plain):
        hnetkit.load_hypernetwork(one, ink, strength=hnetkit.Strength(end=0.3))
    drawn = [
        [draw(one, steps=steps, callback_on_step_end=follow) for steps in (4, 2)]
        for one in (pipe, plain)
        for follow in [hnetkit.follow_progress(one)]
    ]
    for compiled, eager in zip(*drawn, strict=True):
        assert torch.allclose(compiled, eager, atol=1e-5)
    torch.compiler.reset()
