"""Runs of a few steps: deterministic, gone on with to the bit, and stopped before they ruin anything."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.failing_disk import fail_at
from support.networks import a1111_network, save_pt
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd, tiny_sdxl
from support.training import make_picture, make_pictures, run_training, small_recipe

import hnetkit
from hnetkit.errors import (
    DamagedFile,
    HnetkitError,
    IncompatibleNetwork,
    NotAHypernetwork,
    NotFound,
    OutputExists,
    RunChanged,
    TrainingFailed,
    UsageError,
)
from hnetkit.generate.model import Model, load_model
from hnetkit.train.build import Build
from hnetkit.train.callbacks import TrainingReport
from hnetkit.train.checkpoints import Checkpoints, TrainingState
from hnetkit.train.data import read_data
from hnetkit.train.guards import GuardSettings
from hnetkit.train.previews import PreviewSettings
from hnetkit.train.recipe import Recipe
from hnetkit.train.trainer import Callbacks, train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), 5, sizes=((16, 16), (16, 24)))


@pytest.fixture(scope="module")
def whole(model: Model, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of `small_recipe` that came to its end."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_training(small_recipe(pictures), model, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a run."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "finished")


@pytest.fixture(scope="module")
def _cut(model: Model, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cut"
    stopped_after(5, small_recipe(pictures), model, folder)
    return folder


@pytest.fixture
def cut(_cut: Path, tmp_path: Path) -> Path:
    """The folder of a run of `small_recipe` that was stopped after its fifth step, one after a checkpoint."""
    return shutil.copytree(_cut, tmp_path / "cut")


def weights(folder: Path, name: str = "ink") -> dict[str, torch.Tensor]:
    network = hnetkit.load(folder / f"{name}.safetensors")
    return {f"{width}.{side}.{key}": ref.torch() for width, side, key, ref in network.each_tensor()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Stopped(Exception):
    """The power went."""


def stopped_after(step: int, recipe: Recipe, model: Model, folder: Path) -> None:
    """Trains until a step was made, and leaves no time to write anything more."""

    def made(report: TrainingReport) -> None:
        if report.step == step:
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe, model, read_data(recipe), folder, callbacks=Callbacks(step=made))


def test_a_run_leaves_the_network_in_both_formats_snapshots_a_log_and_its_recipe(
    model: Model, pictures: Path, whole: Path
) -> None:
    names = {path.name for path in whole.iterdir() if not path.name.startswith(".")}
    assert names == {
        *("ink.safetensors", "ink.pt", "ink-2.safetensors", "ink-4.safetensors", "ink-6.safetensors"),
        *("recipe.json", "state", "hypernetwork_loss.csv", "loss.png"),
    }
    for name in ("ink.safetensors", "ink.pt"):
        network = hnetkit.load(whole / name)
        assert network.step == 6
        assert network.metadata["sd_checkpoint"] == model.hash
        assert network.widths == [8, 24]
    assert hnetkit.load(whole / "ink-2.safetensors").step == 2
    recorded = json.loads((whole / "recipe.json").read_text())
    assert Recipe.from_json(recorded["recipe"]) == small_recipe(pictures)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    model: Model, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    run_training(small_recipe(pictures), model, tmp_path / "again")
    assert torch.equal(torch.random.get_rng_state(), before)
    run_training(small_recipe(pictures, seed=1), model, tmp_path / "other")
    assert same(weights(whole), weights(tmp_path / "again"))
    assert not same(weights(whole), weights(tmp_path / "other"))


def test_training_lowers_the_loss_and_leaves_the_model_as_it_was(pictures: Path, tmp_path: Path) -> None:
    pipe = tiny_sd(least=True)
    before = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    pipe.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    hnetkit.load_hypernetwork(model.pipe, _other_network(model, pictures, tmp_path), name="other")
    recipe = small_recipe(pictures, rates="3e-2", max_steps=40, save_every=0, batch_size=4, latents="deterministic")
    losses: list[float] = []
    told = Callbacks(step=lambda report: losses.append(report.loss))
    result = train(recipe, model, read_data(recipe), tmp_path / "ink", callbacks=told)
    assert result.loss < losses[0] * 0.98
    assert hnetkit.get_active_hypernetworks(model.pipe) == []
    for name, tensor in model.pipe.unet.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.requires_grad for parameter in model.pipe.unet.parameters())
    assert not model.pipe.unet._forward_pre_hooks


def _other_network(model: Model, pictures: Path, folder: Path) -> Path:
    recipe = small_recipe(pictures, max_steps=1, name="other")
    return run_training(recipe, model, folder / "other").files[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 2, "accumulation": 2},
        {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "latents": "random", "drop_tags": 0.5},
        {"build": Build(structure=(1, 2, 2, 1), activation="relu", dropout=(0, 0.3, 0.3, 0)), "shuffle_tags": True},
        {"precision": "fp16"},
        {"precision": "bf16", "gradient_checkpointing": True, "min_snr": 5.0, "clip_norm": "0.001"},
    ],
    ids=["accumulation", "momentum", "dropout", "fp16", "bf16"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    changes: dict[str, Any], model: Model, pictures: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(pictures, **changes)
    run_training(recipe, _fresh(model), tmp_path / "whole")
    stopped_after(5, recipe, _fresh(model), tmp_path / "ink")
    said: list[str] = []
    run_training(recipe, _fresh(model), tmp_path / "ink", said)
    assert "Resuming from step 4." in said
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "ink"))
    log, whole = (
        [line.split(",")[:5] for line in (tmp_path / name / "hypernetwork_loss.csv").read_text().splitlines()]
        for name in ("ink", "whole")
    )
    assert log == whole
    ends = [Checkpoints(tmp_path / name / "state").read() for name in ("ink", "whole")]
    assert all(end is not None and end.content["scaler"].get("_growth_tracker", 6) == 6 for end in ends)


def _fresh(model: Model) -> Model:
    """The model as a new process loads it: precisions of other runs are gone."""
    return load_model(model.weights.parent.parent, device="cpu")


def test_stopped_before_the_first_checkpoint_it_begins_again(
    model: Model, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(pictures)
    stopped_after(1, recipe, model, tmp_path / "ink")
    run_training(recipe, model, tmp_path / "ink")
    assert same(weights(whole), weights(tmp_path / "ink"))


def test_a_longer_run_is_the_same_as_one_that_was_prolonged(
    model: Model, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    run_training(small_recipe(pictures, max_steps=3), model, tmp_path / "ink")
    run_training(small_recipe(pictures), model, tmp_path / "ink")
    assert same(weights(whole), weights(tmp_path / "ink"))


def test_a_finished_run_given_again_makes_no_step(model: Model, pictures: Path, finished: Path) -> None:
    recipe = small_recipe(pictures)
    (finished / "ink.pt").unlink()
    steps: list[int] = []
    said: list[str] = []
    told = Callbacks(note=said.append, step=lambda report: steps.append(report.step))
    result = train(recipe, model, read_data(recipe), finished, callbacks=told)
    assert steps == []
    assert said == ["All 6 steps were made before: --max-steps continues the run, --restart starts over."]
    assert result.step == 6
    assert (finished / "ink.pt").is_file()


def test_restart_starts_over(model: Model, pictures: Path, whole: Path, finished: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, max_steps=4, seed=3)
    run_training(recipe, model, finished, start_mode="restart")
    run_training(recipe, model, tmp_path / "fresh")
    assert same(weights(finished), weights(tmp_path / "fresh"))
    assert not (finished / "ink-6.safetensors").exists()
    assert len((finished / "hypernetwork_loss.csv").read_text().splitlines()) == 5


def test_a_resumed_run_keeps_no_second_copy_of_its_state(model: Model, pictures: Path, cut: Path) -> None:
    kept: list[int] = []

    def count(report: TrainingReport) -> None:
        kept.append(sum(type(found) is TrainingState for found in gc.get_objects()))

    recipe = small_recipe(pictures)
    train(recipe, model, read_data(recipe), cut, callbacks=Callbacks(step=count))
    assert kept
    assert not any(kept)


def test_resume_without_a_checkpoint_is_refused(model: Model, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint"):
        run_training(small_recipe(pictures), model, tmp_path / "ink", start_mode="resume")


def test_another_recipe_is_refused_with_the_values_that_differ(model: Model, pictures: Path, cut: Path) -> None:
    other = small_recipe(pictures, seed=1, build=Build(activation="relu"), save_every=3)
    with pytest.raises(RunChanged, match=r"with seed 0, not 1; build\.activation unset, not 'relu'$") as raised:
        run_training(other, model, cut)
    assert raised.value.exit_code == 2
    assert "--restart" in str(raised.value.command_hint)


def test_a_record_that_was_edited_does_not_change_the_recipe_of_the_steps_that_were_made(
    model: Model, pictures: Path, cut: Path
) -> None:
    record = json.loads((cut / "recipe.json").read_text())
    record["recipe"] |= {"seed": 5, "rates": "1e-3"}
    (cut / "recipe.json").write_text(json.dumps(record))
    edited = replace(small_recipe(pictures), seed=5, rates="1e-3")
    with pytest.raises(RunChanged, match=r"trained so far with seed 0, not 5$"):
        run_training(edited, model, cut)
    assert json.loads((cut / "recipe.json").read_text()) == record


def test_rates_that_differ_from_those_of_the_steps_that_were_made_are_told(
    model: Model, pictures: Path, cut: Path, tmp_path: Path
) -> None:
    before = small_recipe(pictures)
    said: list[str] = []
    run_training(
        replace(before, rates=f"{before.rates}:4, 1e-7"), model, shutil.copytree(cut, tmp_path / "later"), said
    )
    assert not [line for line in said if "so far" in line]
    run_training(replace(before, rates="1e-7"), model, cut, said)
    (line,) = [line for line in said if "so far" in line]
    assert line.startswith(f"Warning: the 4 steps so far were made with the rates {before.rates}; ")


def test_changed_pictures_are_refused_unless_forced(model: Model, pictures: Path, cut: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(pictures, tmp_path / "changed")
    (changed / "01.txt").write_text("something else")
    make_picture(changed / "02.png", (16, 16), seed=77)
    recipe = small_recipe(changed)
    with pytest.raises(RunChanged, match=r"02\.png have other pixels; 01\.png have another caption"):
        run_training(recipe, model, cut)
    said: list[str] = []
    run_training(recipe, model, cut, said, force=True)
    assert "Resuming from step 4." in said
    assert any("another caption" in line for line in said)
    run_training(replace(recipe, max_steps=7), model, cut)


def test_where_all_checkpoints_are_damaged_the_last_network_is_what_to_go_on_from(
    model: Model, pictures: Path, cut: Path
) -> None:
    for folder in (cut / "state").iterdir():
        os.truncate(folder / "tensors.safetensors", 100)
    with pytest.raises(DamagedFile, match="a damaged checkpoint") as refused:
        run_training(small_recipe(pictures), model, cut)
    last = max(cut.glob("ink-*.safetensors"), key=lambda path: int(path.stem.removeprefix("ink-")))
    said = str(refused.value.command_hint)
    assert said.startswith(f"--init-from {last} with another --name goes on from its weights; --restart starts over")


def test_a_checkpoint_is_no_network_and_is_called_what_it_is(cut: Path) -> None:
    (*_, newest) = sorted((cut / "state").iterdir())
    with pytest.raises(NotAHypernetwork, match="a checkpoint of a training") as refused:
        hnetkit.load(newest / "tensors.safetensors")
    assert refused.value.kind == "training-state"


def test_a_checkpoint_of_other_layers_is_said_in_a_line(
    model: Model, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(pictures, start=str(whole / "ink.safetensors"), name="more", save_every=1)
    stopped_after(2, recipe, model, tmp_path / "more")
    other = small_recipe(pictures, name="other", max_steps=1, build=Build(structure=(1, 3, 1)))
    run_training(other, model, tmp_path / "other")
    changed = replace(recipe, start=str(tmp_path / "other" / "other.safetensors"))
    for path in (tmp_path / "more").glob("more-*.safetensors"):  # which would say how the network is built
        path.unlink()
    with pytest.raises(RunChanged, match="other layers") as caught:
        run_training(changed, model, tmp_path / "more", force=True)
    assert len(str(caught.value)) < 200 + len(str(tmp_path))
    assert "state_dict" not in str(caught.value)


def test_moved_pictures_are_the_same_pictures(
    model: Model, pictures: Path, whole: Path, cut: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(pictures, tmp_path / "moved")
    run_training(small_recipe(moved), model, cut, start_mode="resume")
    assert same(weights(whole), weights(cut))


def test_another_autoencoder_or_model_is_refused(model: Model, pictures: Path, cut: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures)
    other = _fresh(model)
    with torch.no_grad():
        other.pipe.vae.quant_conv.bias += 1e-3
    with pytest.raises(RunChanged, match="the autoencoder is another one"):
        run_training(recipe, other, cut)
    tiny_sd(seed=5, least=True).save_pretrained(tmp_path / "other")
    with pytest.raises(RunChanged, match="the model is another one"):
        run_training(recipe, load_model(tmp_path / "other", device="cpu"), cut)


def test_a_folder_of_something_else_is_left_alone(model: Model, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "ink").mkdir()
    (tmp_path / "ink" / "letter.txt").write_text("dear")
    for start_mode in ("continue", "restart"):
        with pytest.raises(OutputExists, match=r"letter\.txt"):
            run_training(small_recipe(pictures), model, tmp_path / "ink", start_mode=start_mode)


@pytest.mark.parametrize("record", ["ours", '{"name": "ink"}', '{"format": "hnetkit.training/1"}'])
def test_a_folder_of_networks_that_cannot_be_gone_on_with_is_left_alone(
    record: str, model: Model, pictures: Path, finished: Path
) -> None:
    shutil.rmtree(finished / "state")
    (finished / "previews").mkdir()
    (finished / "previews" / "mine.png").write_bytes(b"mine")
    if record != "ours":
        (finished / "recipe.json").write_text(record)
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    for seed in (0, 1):
        with pytest.raises((OutputExists, RunChanged)):
            run_training(small_recipe(pictures, seed=seed), model, finished)
    if record == "ours":
        run_training(small_recipe(pictures, seed=1), model, finished, start_mode="restart")
        assert (finished / "previews" / "mine.png").read_bytes() == b"mine"
    else:
        with pytest.raises(OutputExists, match="no record of a run of ink"):
            run_training(small_recipe(pictures), model, finished, start_mode="restart")
        assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_the_network_of_before_is_there_until_the_one_that_was_started_over_is_whole(
    model: Model, pictures: Path, whole: Path, finished: Path
) -> None:
    recipe = small_recipe(pictures, seed=3)

    def made(report: TrainingReport) -> None:
        if report.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        train(recipe, model, read_data(recipe), finished, start_mode="restart", callbacks=Callbacks(step=made))
    assert same(weights(finished), weights(whole))
    run_training(recipe, model, finished)
    assert not same(weights(finished), weights(whole))


def test_a_run_that_failed_before_its_first_step_is_tried_again(model: Model, pictures: Path, tmp_path: Path) -> None:
    few = PreviewSettings(prompts=("a dot",), seeds=(1,), steps=1, width=16, height=16, sampler="DDIM")
    recipe = small_recipe(pictures, guarded=True, guards=GuardSettings(), preview_every=3, previews=few)
    broken = _fresh(model)
    with torch.no_grad():
        broken.pipe.unet.conv_out.bias[:] = torch.nan
    with pytest.raises(TrainingFailed, match="there is no good network yet"):
        run_training(recipe, broken, tmp_path / "ink")
    assert (tmp_path / "ink" / "loss.png").is_file()
    run_training(recipe, model, tmp_path / "ink")
    assert (tmp_path / "ink" / "ink.pt").is_file()


def test_two_commands_do_not_train_in_one_folder(model: Model, pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures)

    def second(report: TrainingReport) -> None:
        with pytest.raises(HnetkitError, match="another command trains here"):
            run_training(recipe, model, tmp_path / "ink")

    train(recipe, model, read_data(recipe), tmp_path / "ink", callbacks=Callbacks(step=second))


def test_damaged_checkpoints_are_no_reason_to_start_over_unasked(model: Model, pictures: Path, cut: Path) -> None:
    for folder in (cut / "state").iterdir():
        (folder / "tensors.safetensors").write_bytes(b"")
    with pytest.raises(DamagedFile, match="damaged checkpoint"):
        run_training(small_recipe(pictures), model, cut)
    run_training(small_recipe(pictures, max_steps=1), model, cut, start_mode="restart")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_ends_the_step_and_leaves_a_checkpoint(
    model: Model, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(pictures, save_every=0)

    def made(report: TrainingReport) -> None:
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, model, read_data(recipe), tmp_path / "ink", callbacks=Callbacks(step=made))
    state = Checkpoints(tmp_path / "ink" / "state").read()
    assert state is not None
    assert state.step == 3
    run_training(recipe, model, tmp_path / "ink")
    assert same(weights(whole), weights(tmp_path / "ink"))


@pytest.mark.skipif(os.name != "posix", reason="Windows ends a process at once")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_told_to_end_loses_no_step(
    name: str, model: Model, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = signal.Signals[name]
    passed_on: list[int] = []
    before = signal.signal(number, lambda received, frame: passed_on.append(received))

    def end_at_three(report: TrainingReport) -> None:
        if report.step == 3:
            os.kill(os.getpid(), number)

    recipe = small_recipe(pictures, save_every=100)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, model, read_data(recipe), tmp_path / "ink", callbacks=Callbacks(step=end_at_three))
        assert passed_on == [number], "to the handler of before, whose exit code is the signal's"
        signal.signal(number, signal.SIG_IGN)  # as `nohup` has it
        run_training(small_recipe(pictures, max_steps=6, save_every=100), model, tmp_path / "ink")
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert sorted(path.name for path in (tmp_path / "ink").glob("ink-*")) == ["ink-4.safetensors", "ink-6.safetensors"]


def test_a_damaged_checkpoint_that_is_passed_over_is_told(model: Model, pictures: Path, finished: Path) -> None:
    said: list[str] = []
    newest = Checkpoints(finished / "state").newest_folder
    assert newest is not None
    (newest / "tensors.safetensors").write_bytes(b"torn by a power cut")
    run_training(small_recipe(pictures, max_steps=8), model, finished, said)
    assert said[0].startswith(f"Warning: {newest}: a damaged checkpoint")
    assert said[0].endswith("its steps since step 4 are made again")
    assert said[1] == "Resuming from step 4."


def test_a_checkpoint_that_cannot_be_read_now_is_not_passed_over(
    model: Model, pictures: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)
    newest = Checkpoints(finished / "state").newest_folder
    assert newest is not None
    for part in ("state.json", "tensors.safetensors"):
        with monkeypatch.context() as disk:
            fail_at(disk, newest / part, errno.EIO, "open")
            with pytest.raises(HnetkitError, match=f"{newest.name}: the checkpoint cannot be read") as raised:
                run_training(small_recipe(pictures, max_steps=8), model, finished)
        assert not isinstance(raised.value, DamagedFile)
    assert contents(finished) == before


@pytest.mark.parametrize(
    "edited",
    [lambda table: table.replace(",", ";"), lambda table: f"{table}my own line\n"],
    ids=["semicolons", "a line"],
)
def test_a_restart_over_a_table_that_a_person_saved_otherwise_removes_nothing(
    model: Model, pictures: Path, finished: Path, edited: Callable[[str], str]
) -> None:
    table = finished / "hypernetwork_loss.csv"
    table.write_text(edited(table.read_text()))
    before = contents(finished)
    with pytest.raises(HnetkitError, match="is no row of a training log") as raised:
        run_training(small_recipe(pictures), model, finished, start_mode="restart")
    assert "move it away" in str(raised.value.hint)
    assert contents(finished) == before


def test_a_restart_that_ends_before_its_first_step_leaves_what_was_there(
    model: Model, pictures: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(finished)

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    recipe = small_recipe(pictures, seed=5)
    with pytest.raises(KeyboardInterrupt):
        train(
            recipe,
            model,
            read_data(recipe),
            finished,
            start_mode="restart",
            callbacks=Callbacks(progress=interrupt),
        )
    assert contents(finished) == before


def test_training_goes_on_with_a_file(model: Model, pictures: Path, whole: Path, tmp_path: Path) -> None:
    recipe = small_recipe(
        pictures, start=str(whole / "ink.safetensors"), name="more", rates="1e-9", max_steps=2, save_every=1
    )
    stopped_after(2, recipe, model, tmp_path / "more")
    with pytest.raises(RunChanged, match="the network that training began with is another one"):
        run_training(replace(recipe, start=str(whole / "ink-2.safetensors")), model, tmp_path / "more")
    run_training(recipe, model, tmp_path / "more")
    before, after = weights(whole), weights(tmp_path / "more", "more")
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    assert not same(before, after)


def test_a_file_that_does_not_fit_and_a_build_beside_a_file_are_refused(
    model: Model, pictures: Path, whole: Path, tmp_path: Path
) -> None:
    beside = small_recipe(pictures, start=str(whole / "ink.pt"), build=Build(layer_norm=True))
    with pytest.raises(UsageError, match="says how the network is built"):
        run_training(beside, model, tmp_path / "beside")
    tiny_sdxl().save_pretrained(tmp_path / "xl")
    xl = load_model(tmp_path / "xl", device="cpu")
    with pytest.raises(IncompatibleNetwork):
        run_training(small_recipe(pictures, start=str(whole / "ink.pt")), xl, tmp_path / "other")


def test_a_start_with_nan_in_it_is_named_before_anything_is_computed(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    content = a1111_network((*SELF_WIDTHS, SD_CROSS_WIDTH), activation="relu")
    content[8][0]["linear.0.weight"][0, 0] = torch.nan
    spoiled = save_pt(content, tmp_path / "spoiled.pt")
    with pytest.raises(DamagedFile, match=r"spoiled\.pt: values that are not finite at width 8"):
        run_training(small_recipe(pictures, start=str(spoiled)), model, tmp_path / "ink")
    with pytest.raises(DamagedFile, match="spoiled"):
        run_training(small_recipe(pictures, beside=(str(spoiled),)), model, tmp_path / "ink")
    assert not (tmp_path / "ink" / "state").exists()


def test_a_network_is_trained_beside_another_that_stays_as_it_is(model: Model, whole: Path, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", 2)
    ink = str(shutil.copy(whole / "ink-2.safetensors", tmp_path / "ink.safetensors"))
    recipe = small_recipe(pictures, beside=(ink,), name="new", max_steps=3, save_every=1)
    run_training(recipe, model, tmp_path / "unnamed")
    (pictures / "00.txt").write_text("a house <hypernet:ink:-9>")
    run_training(recipe, model, tmp_path / "named")
    unnamed, named = (hnetkit.load(tmp_path / folder / "new.pt") for folder in ("unnamed", "named"))
    assert unnamed.content_hash != named.content_hash
    assert Path(ink).read_bytes() == (whole / "ink-2.safetensors").read_bytes()
    shutil.copy(whole / "ink.safetensors", ink)
    with pytest.raises(RunChanged, match="a network beside it is another one"):
        run_training(replace(recipe, max_steps=4), model, tmp_path / "named")


def test_gradients_are_averaged_over_accumulated_batches(model: Model, pictures: Path, tmp_path: Path) -> None:
    plain = small_recipe(pictures, optimizer="SGD", rates="1", max_steps=2)
    one_size = make_pictures(tmp_path / "one size", 4)
    large = replace(plain, pictures=str(one_size), batch_size=4)
    run_training(large, model, tmp_path / "large")
    run_training(replace(large, batch_size=1, accumulation=4), model, tmp_path / "small")
    before, after = weights(tmp_path / "large"), weights(tmp_path / "small")
    for key in before:
        torch.testing.assert_close(before[key], after[key], atol=1e-6, rtol=1e-4)


def test_clipping_counts_after_accumulation_and_unscaling(model: Model, pictures: Path, tmp_path: Path) -> None:
    for precision in ("no", "fp16"):
        recipe = small_recipe(
            pictures, optimizer="SGD", rates="1", max_steps=1, clip_norm="1e-3", accumulation=2, precision=precision
        )
        at_first = replace(recipe, rates="1e-30")
        for name, chosen in (("before", at_first), ("after", recipe)):
            run_training(chosen, _fresh(model), tmp_path / f"{name} {precision}")
        before, after = (weights(tmp_path / f"{name} {precision}") for name in ("before", "after"))
        moved = torch.cat([(after[key] - before[key]).flatten() for key in before]).norm()
        assert moved.item() == pytest.approx(1e-3, rel=2e-2)


def test_sdxl_and_velocity_models_can_be_trained_on(pictures: Path, tmp_path: Path) -> None:
    tiny_sdxl().save_pretrained(tmp_path / "xl")
    velocity = tiny_sd(least=True)
    velocity.register_to_config()
    velocity.scheduler.register_to_config(prediction_type="v_prediction")
    velocity.save_pretrained(tmp_path / "v")
    for name in ("xl", "v"):
        model = load_model(tmp_path / name, device="cpu")
        result = run_training(small_recipe(pictures, max_steps=2), model, tmp_path / f"{name} run")
        assert result.step == 2
        assert hnetkit.load(result.files[0]).widths == sorted({*([8, 20, 48] if name == "xl" else [8, 24])})


def test_a_schedule_that_ends_early_is_said_before_the_first_step(model: Model, pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []
    result = run_training(small_recipe(pictures, rates="1e-3:3", max_steps=10), model, tmp_path / "ink", said)
    assert result.step == 3
    assert "Warning: training ends at step 3, not at 10: the schedule ends there" in said
    with pytest.raises(UsageError, match="has no end of its own"):
        run_training(small_recipe(pictures, rates="1e-3", max_steps=None), model, tmp_path / "endless")


def test_what_cannot_be_meant_leaves_no_folder(model: Model, pictures: Path, tmp_path: Path) -> None:
    for changes in ({"rates": "fast"}, {"optimizer": "AdamQ"}, {"build": Build(widths=(77,))}, {"clip_norm": "x"}):
        with pytest.raises(UsageError):
            run_training(small_recipe(pictures, **changes), model, tmp_path / "ink")
        assert not (tmp_path / "ink").exists()


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_caption_that_is_far_too_long_is_named_before_the_first_step(
    model: Model, tmp_path: Path, shuffle: bool
) -> None:
    folder, said = make_pictures(tmp_path / "pictures"), list[str]()
    (folder / "03.txt").write_text("BREAK a, " * 101)
    with pytest.raises(UsageError, match=r"caption of 03\.png: .*more than 100 chunks"):
        run_training(small_recipe(folder, shuffle_tags=shuffle), model, tmp_path / "run", said)
    assert said == []


def test_a_rate_that_ruins_the_network_is_rolled_back_and_lowered(model: Model, pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, rates="1e30", optimizer="SGD", max_steps=6, save_every=1, guarded=True)
    said: list[str] = []
    recipe = replace(recipe, guards=GuardSettings(rate_factor=1e-32))
    result = run_training(recipe, model, tmp_path / "ink", said)
    assert result.roll_backs == 1
    assert result.step == 6
    assert any("Back to step 0, with 1e-32 times the rates" in line for line in said)
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "ink").values())
    log = (tmp_path / "ink" / "hypernetwork_loss.csv").read_text().splitlines()
    assert float(log[-1].split(",")[4]) == pytest.approx(1e-2)


def test_a_checkpoint_of_no_run_is_no_defect_when_a_run_goes_back_to_it(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    recipe = small_recipe(pictures, rates="1e30", optimizer="SGD", max_steps=6, save_every=0, guarded=True)
    folder = tmp_path / "ink" / "state" / "00000001"

    def replaced(report: TrainingReport) -> None:
        if folder.parent.is_dir() and report.step == 1:
            shutil.rmtree(folder)
            Checkpoints(tmp_path / "other").write(TrainingState(0, {"network": {}, "guards": {}, "seconds": 0.0}))
            (tmp_path / "other" / folder.name).rename(folder)

    with pytest.raises(RunChanged, match="another version"):
        train(recipe, model, read_data(recipe), tmp_path / "ink", callbacks=Callbacks(step=replaced))


def test_a_lowered_rate_outlives_an_interruption(model: Model, pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, rates="1e30", optimizer="SGD", save_every=0, guarded=True)
    recipe = replace(recipe, guards=GuardSettings(rate_factor=1e-32))
    run_training(recipe, model, tmp_path / "whole")
    stopped_after(3, recipe, model, tmp_path / "ink")
    said: list[str] = []
    result = run_training(recipe, model, tmp_path / "ink", said)
    assert result.roll_backs == 1
    assert not any("Back to step" in line for line in said)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "ink"))


def test_with_no_roll_back_left_the_last_good_network_is_named(model: Model, pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, rates="1e-3:2, 1e35", optimizer="SGD", save_every=1, guarded=True)
    recipe = replace(recipe, guards=GuardSettings(most_roll_backs=0))
    with pytest.raises(TrainingFailed, match="the last good network is"):
        run_training(recipe, model, tmp_path / "ink")
    state = Checkpoints(tmp_path / "ink" / "state").read()
    assert state is not None
    assert all(tensor.isfinite().all() for tensor in state.content["network"].values())


def test_a_network_that_is_not_finite_is_never_written(model: Model, pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, rates="1e38", optimizer="SGD", max_steps=8, save_every=4)
    with pytest.raises(TrainingFailed, match="no finite number; there is no good network yet"):
        run_training(recipe, model, tmp_path / "ink")
    assert not list((tmp_path / "ink").glob("*.safetensors"))


def test_previews_change_nothing_but_the_folder(model: Model, pictures: Path, whole: Path, tmp_path: Path) -> None:
    few = PreviewSettings(prompts=("a dot",), seeds=(1,), steps=1, width=16, height=16, sampler="DDIM")
    recipe = small_recipe(pictures, preview_every=3, previews=few)
    run_training(recipe, model, tmp_path / "ink")
    assert same(weights(whole), weights(tmp_path / "ink"))
    names = sorted(path.name for path in (tmp_path / "ink" / "previews").iterdir())
    assert names == ["ink-0.png", "ink-3.png", "ink-6.png"]


def test_what_takes_time_before_the_first_step_is_told_by_its_name(
    model: Model, pictures: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    recipe = small_recipe(pictures, guarded=True, preview_every=6, previews=PreviewSettings(seeds=(1,), steps=1))
    callbacks = Callbacks(progress=lambda what, done, total: told.append((what, done, total)))
    train(recipe, model, read_data(recipe), tmp_path / "ink", callbacks=callbacks)
    assert list(dict.fromkeys(what for what, _, _ in told)) == [
        "Encoding pictures",
        "Encoding captions",
        "Measuring the loss before training",
        "Drawing the preview of step 0",
        "Drawing the preview of step 6",
    ]
    assert all(0 <= done <= total for _, done, total in told)
    assert {total for what, _, total in told if "preview" in what} == {3}  # one prompt at three strengths


def test_a_finished_run_says_which_option_gives_it_more_steps(model: Model, pictures: Path, tmp_path: Path) -> None:
    recipe = small_recipe(pictures, rates="1e-2:4", max_steps=None)
    run_training(recipe, model, tmp_path / "ink")
    said: list[str] = []
    run_training(recipe, model, tmp_path / "ink", said)
    assert said == [
        "All 4 steps were made before: a --rate whose schedule ends later continues the run, --restart starts over."
    ]


def test_progress_is_told_after_every_step(model: Model, pictures: Path, tmp_path: Path) -> None:
    reports: list[TrainingReport] = []
    prepared: list[tuple[str, int, int]] = []
    recipe = small_recipe(pictures, rates="1e-2:3, 1e-3")
    told = Callbacks(step=reports.append, progress=lambda *state: prepared.append(state))
    train(recipe, model, read_data(recipe), tmp_path / "ink", callbacks=told)
    assert [(report.step, report.last_step, report.rate) for report in reports] == [
        *((step, 6, 1e-2) for step in (1, 2, 3)),
        *((step, 6, 1e-3) for step in (4, 5, 6)),
    ]
    assert [last for last in prepared if last[1] == last[2]] == [
        ("Encoding pictures", 5, 5),
        ("Encoding captions", 20, 20),  # five, in four lines
    ]
