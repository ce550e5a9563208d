"""Drawing with a captured UNet: the same pictures, from as few graphs as there are shapes; the host goes ahead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.stand_in_graphs import StandInGraphs

from hnetkit import settings
from hnetkit.errors import OutOfMemory, UsageError
from hnetkit.generate import draw_grid
from hnetkit.generate.image_files import Picture
from hnetkit.generate.model import Model, ModelSource, load_model
from hnetkit.generate.sampling import vae
from hnetkit.generate.sampling.loop import AHEAD, StepProgress
from hnetkit.runtime.capture import Capture, captured_by

STACK = "a large red star <hypernet:outline:0.8> <hypernet:dots:0.7:end=0.5>"


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("demo", device="cpu")


@pytest.fixture
def capture(model: Model) -> Iterator[Capture]:
    """The demo model's UNet, captured."""
    StandInGraphs.begin()
    with captured_by(StandInGraphs, model.pipe) as capture:
        yield capture


def pixels(pictures: list[Picture]) -> list[Any]:
    return [np.asarray(picture.image).tolist() for picture in pictures]


OPTIONS: dict[str, dict[str, Any]] = {
    "two prompts in one": {"prompt": "a star AND a blue circle :0.5"},
    "a schedule": {"prompt": "[a star:a circle:0.5]", "sampler": "DPM++ SDE Karras"},
    "networks with a window": {"prompt": STACK, "sampler": "Euler"},
    "without guidance": {"prompt": "a star", "cfg_scale": 1, "sampler": "DDIM"},
    "a second pass": {"prompt": "a star", "hires_scale": 2, "hires_steps": 3, "sampler": "LCM"},
    "a batch": {"prompt": STACK, "count": 3, "batch_size": 2, "sampler": "PLMS"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_a_captured_unet_draws_the_same_picture(model: Model, options: dict[str, Any]) -> None:
    StandInGraphs.begin()
    given = {"seed": 3, "steps": 5, "width": 32, "height": 32, **options}
    plain = model.draw(**given)
    with captured_by(StandInGraphs, model.pipe):
        assert pixels(model.draw(**given)) == pixels(plain)
    assert StandInGraphs.replayed > StandInGraphs.warmed
    assert StandInGraphs.recorded <= StandInGraphs.warmed


def test_pictures_of_one_size_are_drawn_by_one_graph(model: Model, capture: Capture) -> None:
    for prompt in ("a star", "a small blue circle", "a red square on the left"):
        model.draw(prompt, steps=3, width=32, height=32)
    assert capture.captures == 1
    assert (StandInGraphs.warmed, StandInGraphs.replayed) == (1, 8)


def test_a_grid_over_strengths_and_prompts_is_drawn_by_one_graph(
    model: Model, capture: Capture, tmp_path: Path
) -> None:
    draw_grid(
        model,
        prompt=["a star", "a circle"],
        names=["outline"],
        strengths=[0.4, 0.8, 1.2],
        seed=1,
        out=tmp_path / "grid.png",
        steps=3,
        width=32,
        height=32,
    )
    assert capture.captures == 1


def test_graphs_of_networks_are_freed_with_them(model: Model, capture: Capture) -> None:
    model.draw(STACK, steps=3, width=32, height=32)
    assert capture.captures > 0
    assert not StandInGraphs.living
    model.draw("a star", steps=3, width=32, height=32)
    assert len(StandInGraphs.living) == 1


def test_graphs_give_their_memory_to_the_autoencoder(
    model: Model, capture: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = vae.decode

    def with_little_memory(*arguments: Any) -> Any:
        if StandInGraphs.living:
            raise torch.cuda.OutOfMemoryError("of 9 GB")
        return decode(*arguments)

    plain = pixels(model.draw("a star", seed=1, steps=3, width=32, height=32))
    monkeypatch.setattr(vae, "decode", with_little_memory)
    assert pixels(model.draw("a star", seed=1, steps=3, width=32, height=32)) == plain

    def with_none(*arguments: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("of 9 GB")

    monkeypatch.setattr(vae, "decode", with_none)
    with pytest.raises(OutOfMemory):
        model.draw("a star", seed=1, steps=3, width=32, height=32)


# --- whether it is captured


def test_the_setting_and_the_option_say_whether_to_capture() -> None:
    assert ModelSource().is_captured
    settings.put("capture", "off")
    assert not ModelSource().is_captured
    assert ModelSource(captured=True).is_captured
    settings.put("capture", "on")
    assert not ModelSource(captured=False).is_captured
    with pytest.raises(UsageError, match="capture: maybe is not one of its values"):
        settings.put("capture", "maybe")


def test_a_setting_that_is_neither_is_an_error() -> None:
    from hnetkit.paths import config_file

    config_file().parent.mkdir(parents=True, exist_ok=True)
    Path(config_file()).write_text('{"capture": "maybe"}')
    with pytest.raises(UsageError, match="capture: maybe is neither on nor off"):
        load_model("demo", device="cpu")


def test_without_cuda_nothing_is_captured_and_nothing_said(recwarn: pytest.WarningsRecorder) -> None:
    model = load_model("demo", device="cpu", captured=True)
    model.draw("a star", steps=2, width=32, height=32)
    assert "_compiled_call_impl" not in vars(model.pipe.unet)
    assert not [warning for warning in recwarn if "CUDA graphs" in str(warning.message)]


# --- the host and the device


class Device:
    """A device that makes a step only when someone waits for it."""

    def __init__(self) -> None:
        self.given = self.made = 0

    def mark(self) -> Any:
        self.given += 1
        return Mark(self, self.given)


class Mark:
    def __init__(self, device: Device, number: int) -> None:
        self.device, self.number = device, number

    def synchronize(self) -> None:
        self.device.made = max(self.device.made, self.number)


def test_the_host_goes_ahead_and_only_steps_that_are_made_are_told() -> None:
    device, told = Device(), list[tuple[int, int]]()

    def after_step(made: int, steps: int) -> None:
        assert made <= device.made
        told.append((made, steps))

    progress = StepProgress(torch.device("cpu"), 5, after_step, device.mark)
    for begun in range(1, 6):
        progress.begun_another()
        assert device.made == max(0, begun - AHEAD)
    progress.wait()
    assert told == [(made, 5) for made in range(1, 6)]


def test_on_the_cpu_each_step_is_told_at_its_end() -> None:
    told = list[int]()
    progress = StepProgress(torch.device("cpu"), 3, lambda made, steps: told.append(made))
    for made in range(1, 4):
        progress.begun_another()
        assert told[-1] == made
    progress.wait()
    assert told == [1, 2, 3]
