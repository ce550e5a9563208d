"""Sweeps: runs that differ in what was asked, each made once, and one sheet and one table of all."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.training import make_pictures, small_recipe

import hnetkit
from hnetkit.errors import HnetkitError, NotFound, OutputExists, RunChanged, UsageError
from hnetkit.generate.model import Model
from hnetkit.train.build import Build
from hnetkit.train.callbacks import TrainingReport
from hnetkit.train.data import read_data
from hnetkit.train.logs import read_log
from hnetkit.train.previews import Previews, PreviewSettings
from hnetkit.train.recipe import Recipe
from hnetkit.train.sweeps import RunOutcome, Sweep, run_sweep
from hnetkit.train.trainer import Callbacks
from hnetkit.train.variations import SweptChoice, VariedSetting, plan_runs

FEW = PreviewSettings(prompts=("a dot", "a line"), seeds=(1,), steps=1, width=16, height=16, sampler="DDIM")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), 3)


def plain(pictures: Path) -> Recipe:
    return small_recipe(pictures, max_steps=3, save_every=1, previews=FEW)


@pytest.fixture
def recipe(pictures: Path) -> Recipe:
    return plain(pictures)


def over_rates(recipe: Recipe, out: Path, rates: Sequence[str] = ("1e-2", "1e-3")) -> Sweep:
    asked = [([SweptChoice("rate", text, "rates")], replace(recipe, rates=text)) for text in rates]
    return Sweep("ink", out / "ink", ("rate",), plan_runs("ink", out / "ink", asked))


def made(sweep: Sweep, model: Model, told: Callbacks = Callbacks()) -> list[RunOutcome]:  # noqa: B008
    """Makes a sweep, with a library of its own."""
    sweep.require_ours()
    with hnetkit.Library(home=sweep.folder.parent / "home") as library:
        return run_sweep(sweep, model, sweep.read(), callbacks=told, library=library)


@pytest.fixture(scope="module")
def whole(model: Model, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep over two rates that came to its end."""
    out = tmp_path_factory.mktemp("sweeps")
    made(over_rates(plain(pictures), out), model)
    return out


@pytest.fixture
def done(whole: Path, recipe: Recipe, tmp_path: Path) -> Sweep:
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "done")
    return over_rates(recipe, tmp_path / "done")


def test_each_value_has_a_run_a_line_of_the_table_and_a_row_of_the_sheet(whole: Path) -> None:
    with (whole / "ink" / "sweep.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line, rate in zip(lines, ("1e-2", "1e-3"), strict=True):
        path = whole / "ink" / f"rate-{rate}" / f"ink-rate-{rate}.safetensors"
        assert hnetkit.load(path).step == 3
        assert (line["name"], line["rate"], line["file"]) == (path.stem, rate, str(path))
        assert (line["steps"], line["roll_backs"], line["failure"]) == ("3", "0", "")
        (*_, last) = read_log(path.parent / "hypernetwork_loss.csv")
        assert float(line["loss"]) == pytest.approx(last.running_mean, abs=1e-6)
        assert float(line["seconds"]) == pytest.approx(last.seconds, abs=0.1)
    with Image.open(whole / "ink" / "sweep.png") as sheet:
        assert 3 * 192 < sheet.height < 4 * 192  # without a network, and two runs
        assert sheet.width > 2 * 192


def test_rows_of_the_sheet_are_drawn_with_the_networks_at_full_strength(model: Model, done: Sweep) -> None:
    previews = done.previews(model)
    assert previews.columns == ["seed 1: a dot", "seed 1: a line"]
    network = hnetkit.load(done.folder / "rate-1e-2" / "ink-rate-1e-2.pt")
    rows = [[picture.tobytes() for picture in previews.row(drawn_with)] for drawn_with in (None, network)]
    assert rows[0] != rows[1]
    full = Previews(model, replace(FEW, strengths=(1.0,)), done.folder, "ink").draw(network, 1)
    assert rows[1] == [picture.tobytes() for picture in full.images]


def test_prompts_have_the_sweeps_name_in_every_run(recipe: Recipe, tmp_path: Path) -> None:
    sweep = over_rates(replace(recipe, template="style_filewords"), tmp_path)
    one, other = sweep.read()
    assert list(one.prompts()) == list(other.prompts())
    assert "ink style, a red circle" in one.prompts()
    again = read_data(Recipe.from_json(sweep.runs[0].recipe.to_json()))
    assert list(again.prompts()) == list(one.prompts())


def test_captions_name_the_sweep_where_they_name_a_strength(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", 1)
    (folder / "00.txt").write_text("a red circle <hypernet:ink:0.5>")
    one, other = over_rates(plain(folder), tmp_path).read()
    assert one.images[0].stack == other.images[0].stack == (("ink", 0.5),)


def test_captions_are_read_anew_for_a_run_with_other_networks_beside_it(tmp_path: Path) -> None:
    recipe = plain(make_pictures(tmp_path / "pictures", 1))
    (tmp_path / "pictures" / "00.txt").write_text("a red circle <hypernet:wet:0.5>")
    asked = [
        ([SweptChoice("recipe", one)], replace(recipe, seed=seed, beside=beside))
        for one, seed, beside in (("with", 1, ("wet.pt",)), ("without", 2, ()))
    ]
    sweep = Sweep("ink", tmp_path / "ink", ("recipe",), plan_runs("ink", tmp_path / "ink", asked))
    with pytest.raises(UsageError, match="a caption names ink alone"):
        sweep.read()


def test_runs_may_be_called_otherwise_than_the_sweep(recipe: Recipe, tmp_path: Path) -> None:
    sweep = over_rates(replace(recipe, template="style_filewords", prompt_name="tnk"), tmp_path)
    assert all("tnk style, a red circle" in data.prompts() for data in sweep.read())


def test_a_run_that_fails_is_shown_as_failed_and_the_others_are_made(
    model: Model, recipe: Recipe, tmp_path: Path
) -> None:
    sweep = over_rates(replace(recipe, optimizer="SGD"), tmp_path, ("1e38", "1e-3"))
    failed, good = made(sweep, model)
    assert "no finite number" in failed.failure
    assert failed.files == ()
    assert len(good.files) == 2
    assert (failed.row()["file"], good.row()["failure"]) == ("", "")
    assert failed.failure in (sweep.folder / "sweep.csv").read_text()
    with Image.open(sweep.folder / "sweep.png") as sheet:
        greys = sum(count for count, colour in sheet.getcolors(1 << 24) or [] if colour == (0xD8, 0xD8, 0xD8))
    assert greys > 192 * 192  # of two crossed cells


def test_a_run_whose_log_or_checkpoints_are_damaged_stops_no_other(model: Model, recipe: Recipe, done: Sweep) -> None:
    table = done.runs[0].folder / "hypernetwork_loss.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:2], "x,y", *lines[2:], ""]))
    for path in (done.runs[1].folder / "state").glob("*/tensors.safetensors"):
        path.write_bytes(b"")
    (done.runs[1].folder / f"{done.runs[1].recipe.name}.pt").unlink()
    sweep = over_rates(recipe, done.folder.parent, ("1e-2", "1e-3", "1e-4"))
    logged, damaged, good = made(sweep, model)
    assert "no row of a training log" in logged.failure
    assert "damaged checkpoint" in damaged.failure
    assert (good.failure, len(good.files)) == ("", 2)


def test_a_table_that_somebody_edited_is_not_replaced(model: Model, recipe: Recipe, done: Sweep) -> None:
    made(done, model)
    table = done.folder / "sweep.csv"
    table.write_text(table.read_text() + "the second one is best\n")
    with pytest.raises(OutputExists, match=r"sweep\.csv: changed since it was written") as raised:
        made(over_rates(recipe, done.folder.parent, ("1e-2", "1e-3", "1e-4")), model)
    assert "move" in str(raised.value.hint)
    assert "best" in table.read_text()
    table.rename(done.folder / "mine.csv")
    made(done, model)
    assert table.is_file()


def test_what_is_finished_is_not_made_again_and_what_is_not_goes_on(
    model: Model, recipe: Recipe, tmp_path: Path
) -> None:
    class Stopped(Exception):
        """The power went."""

    steps: list[tuple[float, int]] = []

    def step(report: TrainingReport) -> None:
        steps.append((report.rate, report.step))
        if steps[-1] == (1e-3, 2):
            raise Stopped

    sweep = over_rates(recipe, tmp_path)
    with pytest.raises(Stopped):
        made(sweep, model, Callbacks(step=step))
    steps.clear()
    again = made(sweep, model, Callbacks(step=lambda report: steps.append((report.rate, report.step))))
    assert steps == [(1e-3, 2), (1e-3, 3)]
    steps.clear()
    assert [outcome.row() for outcome in made(sweep, model, Callbacks(step=step))] == [
        outcome.row() for outcome in again
    ]
    assert steps == []


def test_values_and_steps_are_added_to_what_there_is(model: Model, recipe: Recipe, done: Sweep) -> None:
    steps: list[tuple[float, int]] = []
    told = Callbacks(step=lambda report: steps.append((report.rate, report.step)))
    out = done.folder.parent
    made(over_rates(replace(recipe, max_steps=4), out, ("1e-3", "1e-4")), model, told)
    assert steps == [(1e-3, 4), (1e-4, 1), (1e-4, 2), (1e-4, 3), (1e-4, 4)]


def test_a_network_that_is_gone_is_written_again_from_its_checkpoint(model: Model, done: Sweep) -> None:
    gone = done.folder / "rate-1e-2" / "ink-rate-1e-2.pt"
    gone.unlink()
    steps: list[TrainingReport] = []
    made(done, model, Callbacks(step=steps.append))
    assert gone.is_file()
    assert steps == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([{}], "at least two runs"),
        ([{}, {}], "the same run"),
        ([{}, {"rates": "1e-2:3, 5e-3", "tensorboard": True}], "the same run"),
        ([{}, {"rates": "fast"}], "fast"),
        ([{}, {"model": "other", "seed": 1}], "differ in model"),
        ([{}, {"precision": "bf16"}], "differ in precision"),
        ([{}, {"previews": replace(FEW, steps=2)}], "differ in previews"),
    ],
    ids=str,
)
def test_runs_that_cannot_be_told_apart_or_compared_are_refused(
    changes: list[dict[str, Any]], said: str, recipe: Recipe, tmp_path: Path
) -> None:
    asked = [
        ([SweptChoice("recipe", f"r{number}")], replace(recipe, **change)) for number, change in enumerate(changes)
    ]
    with pytest.raises(UsageError, match=said):
        plan_runs("ink", tmp_path / "ink", asked)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("optimizer", "AdamQ"), ("build", Build(widths=(77,))), ("clip_norm", "x"), ("start", "no.pt")],
)
def test_a_fault_of_the_last_run_is_found_before_the_first_one_begins(
    setting: str, value: Any, model: Model, recipe: Recipe, tmp_path: Path
) -> None:
    asked = [
        ([SweptChoice("try", "one")], recipe),
        ([SweptChoice("try", "two")], replace(recipe, **{setting: value})),
    ]
    sweep = Sweep("ink", tmp_path / "ink", ("try",), plan_runs("ink", tmp_path / "ink", asked))
    with pytest.raises((UsageError, NotFound)) as raised:
        made(sweep, model)
    assert setting == "start" or str(raised.value).startswith("try two: ")
    assert not (tmp_path / "ink").exists()


def test_a_folder_of_something_else_is_left_alone(model: Model, recipe: Recipe, done: Sweep) -> None:
    folder = done.folder
    other = [([SweptChoice("seed", text, "seed")], replace(recipe, seed=int(text))) for text in "12"]
    with pytest.raises(RunChanged, match="a sweep over rate, not over seed"):
        made(Sweep("ink", folder, ("seed",), plan_runs("ink", folder, other)), model)
    with pytest.raises(RunChanged, match=r"rate 1e-2: .*trained so far with batch_size"):
        made(over_rates(replace(recipe, batch_size=2), folder.parent), model)
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(RunChanged, match="cannot be read"):
        made(done, model)
    (folder / "sweep.json").unlink()
    with pytest.raises(OutputExists, match="is no sweep's folder"):
        made(done, model)


def test_a_run_whose_checkpoints_are_gone_is_not_made_anew_unasked(model: Model, done: Sweep) -> None:
    folder = done.runs[1].folder
    shutil.rmtree(folder / "state")
    before = {path: path.read_bytes() for path in done.folder.rglob("*") if path.is_file()}
    with pytest.raises(OutputExists, match=r"rate 1e-3: .*no checkpoint to continue from") as raised:
        made(done, model)
    assert str(raised.value.command_hint).startswith("--restart ")
    (folder / "recipe.json").write_text("{}")
    with pytest.raises(OutputExists, match=r"rate 1e-3: .*no record of a run of ink-rate-1e-3"):
        made(done, model)
    (folder / "recipe.json").write_bytes(before[folder / "recipe.json"])
    assert {path: path.read_bytes() for path in done.folder.rglob("*") if path.is_file()} == before


def test_two_commands_do_not_sweep_in_one_folder(model: Model, recipe: Recipe, tmp_path: Path) -> None:
    sweep = over_rates(recipe, tmp_path)
    with sweep.locked(), pytest.raises(HnetkitError, match="another command trains here"), sweep.locked():
        pass


def test_folders_have_names_that_every_system_takes(recipe: Recipe, tmp_path: Path) -> None:
    long = ", ".join(f"{number}e-7:{number}00" for number in range(1, 40))
    rates = ["5e-5:100, 5e-6:1500", "cosine:4e-5:cycle=64", long, f"{long}, 1e-7:5000"]
    sweep = over_rates(replace(recipe, max_steps=9000), tmp_path, rates)
    names = [run.folder.name for run in sweep.runs]
    assert names[:2] == ["rate-5e-5_100_5e-6_1500", "rate-cosine_4e-5_cycle_64"]
    assert names[2] != names[3]
    assert max(map(len, names)) <= 80
    assert sweep.runs[2].label == f"rate {long}"
    seeds = [([SweptChoice("tag", text)], replace(recipe, seed=at)) for at, text in enumerate(("x y", "X?Y"))]
    with pytest.raises(UsageError, match="share the folder tag-x_y"):
        plan_runs("ink", tmp_path, seeds)


@pytest.mark.parametrize(
    ("setting", "value", "what", "text"),
    [
        ("rates", "1e-2:50, 1e-3", "rates", "1e-2:50, 1e-3"),
        ("batch_size", 4, "batch-size", "4"),
        ("drop_tags", 0.10, "drop-tags", "0.1"),
        ("build.structure", [1, 1.5, 1], "structure", "1,1.5,1"),
        ("build.layer_norm", True, "layer-norm", "on"),
        ("shuffle_tags", False, "shuffle-tags", "off"),
        ("min_snr", None, "min-snr", "none"),
        ("start", Path("old.pt"), "start", "old.pt"),
        ("optimizer_options", {"momentum": 0.9}, "optimizer-options", '{"momentum": 0.9}'),
    ],
    ids=str,
)
def test_values_are_written_as_their_options_are(setting: str, value: Any, what: str, text: str) -> None:
    assert VariedSetting.of(setting, [value, "x"]) == (what, setting, ((text, value), ("x", "x")))
    assert VariedSetting.of(setting, {"mine": value}) == (what, setting, (("mine", value),))


def test_recipes_that_differ_in_more_have_a_column_for_each_setting(recipe: Recipe, tmp_path: Path) -> None:
    other = replace(recipe, seed=3, build=Build(structure=(1, 1.5, 1), layer_norm=True))
    asked = [([SweptChoice("recipe", "soft")], recipe), ([SweptChoice("recipe", "hard")], other)]
    soft, hard = plan_runs("ink", tmp_path / "ink", asked)
    assert soft.settings == {
        "recipe": "soft",
        "seed": 0,
        "build.structure": [1.0, 2.0, 1.0],
        "build.layer_norm": False,
    }
    assert list(hard.settings.values()) == ["hard", 3, [1.0, 1.5, 1.0], True]
