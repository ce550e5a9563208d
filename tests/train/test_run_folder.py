"""What a run's folder says of it, which somebody may have changed: refused in a line, whatever it is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import hnetkit
from hnetkit.errors import OutputExists, RunChanged, UsageError
from hnetkit.network import Hypernetwork
from hnetkit.train.build import Build
from hnetkit.train.checkpoints import TrainingState
from hnetkit.train.export import save_trained, to_hypernetwork
from hnetkit.train.logs import Log, LogRow
from hnetkit.train.loop import _require_numbers
from hnetkit.train.network import TrainedNetwork
from hnetkit.train.plot import write_plot
from hnetkit.train.recipe import Recipe
from hnetkit.train.run_folder import RunFolder, RunInputs
from hnetkit.train.sweeps import Sweep
from hnetkit.train.variations import SweepRun

RECIPE = Recipe(name="ink", model="m", pictures="p")
FOUND = RunInputs({"a.png": ["0" * 64, "a cat"]}, "m", "v", "t", None, {"wash": "h1:0"})


def begun(folder: Path) -> RunFolder:
    files = RunFolder(folder, RECIPE)
    folder.mkdir(exist_ok=True)
    files.begin(FOUND, afresh=False)
    files.checkpoints.write(TrainingState(1, {}))
    return files


def network(step: int, name: str = "ink", seed: int = 0) -> Hypernetwork:
    trained = TrainedNetwork(Build(zero_output=False), [8], seed=seed)
    return to_hypernetwork(trained, name=name, step=step, model_name=None, model_hash=None)


def trained(folder: Path) -> RunFolder:
    """A folder with all that a run of two steps leaves."""
    files = begun(folder)
    save_trained(network(2), folder)
    hnetkit.save(network(2), files.snapshot(2))
    log = Log(folder)
    log.step(LogRow(2, 0, 2, 0.1, 1e-3, 0.1, 1.0, 1.0))
    write_plot(folder, "ink")
    for name in ("previews/ink-0.png", "tensorboard/events.out.tfevents.1.here"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    return files


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_record_that_nobody_changed_is_the_same_run(tmp_path: Path) -> None:
    assert begun(tmp_path).require_same("continue", FOUND, force=False) == []
    with pytest.raises(RunChanged, match="a network beside it is another"):
        begun(tmp_path).require_same("continue", replace(FOUND, beside={}), force=False)


@pytest.mark.parametrize(
    "change",
    [
        *("[" * 100_000, '{"a": ' * 100_000, "[" + "{}," * 3_000_000 + "0]", "[]", "null", "9" * 5_000),
        *({"format": []}, {"format": "x" * 1_000_000}, {"recipe": 5}, {"recipe": {"name": "x" * 1_000_000}}),
        *({"found": 5}, {"found": {}}, {"found": {"pictures": 5}}, {"found": {"x" * 1_000_000: 5}}),
        *({"found": {"pictures": {"a.png": []}}}, {"found": {"pictures": {"a.png": 5}}}, {"found": {"model": []}}),
    ],
    ids=lambda change: str(change)[:30],
)
def test_a_record_that_somebody_changed_is_refused_in_a_line(tmp_path: Path, change: Any) -> None:
    files = begun(tmp_path)
    data = json.loads(files.record.read_text())
    if isinstance(change, dict) and isinstance(change.get("found"), dict) and change["found"]:
        change = {"found": data["found"] | change["found"]}
    files.record.write_text(change if isinstance(change, str) else json.dumps(data | change))
    with pytest.raises(RunChanged, match="cannot be read") as raised:
        files.require_same("continue", FOUND, force=True)
    assert len(str(raised.value)) < 600
    assert "xxx" not in str(raised.value).replace("setting " + "x" * 60, "")  # it may be a link to a private file
    assert not files.is_finished(FOUND, 1)
    assert files.require_same("restart", FOUND, force=False) == []
    if isinstance(change, dict) and "found" in change:
        files.require_ours()  # so that --restart may start over
    else:
        with pytest.raises(OutputExists, match="no record of a run of ink") as refused:
            files.require_ours()
        assert len(str(refused.value)) < 600


@pytest.mark.skipif(os.name != "posix", reason="this system has no named pipes")
def test_a_run_whose_record_could_not_be_read_again_is_not_begun(tmp_path: Path) -> None:
    files = begun(tmp_path)
    before = all_files(tmp_path)
    pictures = {f"{number}.png": ["0" * 64, "x" * 200_000] for number in range(400)}
    with pytest.raises(UsageError, match="400 pictures and their captions are too much"):
        files.begin(replace(FOUND, pictures=pictures), afresh=True)
    assert all_files(tmp_path) == before


def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    files = begun(tmp_path)
    files.record.unlink()
    os.mkfifo(files.record)
    with pytest.raises(RunChanged, match="not a regular file"):
        files.require_same("continue", FOUND, force=False)


@pytest.mark.parametrize("name", ["state", "previews", "tensorboard"])
def test_a_link_that_leads_out_of_a_runs_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    files = RunFolder(tmp_path / "ink", RECIPE)
    files.folder.mkdir()
    files.begin(FOUND, afresh=False)
    files.require_ours()
    (files.folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputExists, match=f"{name}: a link"):
        files.require_ours()


@pytest.mark.parametrize("name", ["sweep.csv", "sweep.png"])
def test_what_stands_where_a_sweep_will_write_is_refused_before_its_runs(tmp_path: Path, name: str) -> None:
    run = SweepRun("rate 1", tmp_path / "1", RECIPE, {})
    sweep = Sweep("ink", tmp_path, ("rate",), (run, run))
    sweep.begin()
    (tmp_path / name).mkdir()
    with pytest.raises(OutputExists, match=rf"{name}: not a file"):
        sweep.require_ours()


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "{}," * 1_500_000 + "0]", "[]", "5", '{"format": "x"}'])
def test_a_sweeps_record_that_somebody_changed_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    run = SweepRun("rate 1", tmp_path / "1", RECIPE, {})
    sweep = Sweep("ink", tmp_path, ("rate",), (run, run))
    sweep.begin()
    sweep.require_ours()
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(RunChanged, match="cannot be read"):
        sweep.require_ours()


@pytest.mark.parametrize("value", ["5", None, [], {}])
def test_guards_take_over_numbers_alone(value: Any) -> None:
    fresh = {"level": 0.5, "recent": [], "limit": None}
    _require_numbers(fresh, {"level": 1, "recent": [0.5, 1], "limit": 2.5})
    _require_numbers(fresh, {"level": 1, "recent": [], "limit": None})
    with pytest.raises(ValueError, match="level"):
        _require_numbers(fresh, {"level": value, "recent": [], "limit": None})
    with pytest.raises(ValueError, match="recent"):
        _require_numbers(fresh, {"level": 1, "recent": [value], "limit": None})


@pytest.mark.parametrize("value", [-1, 0.5, float("nan"), 2**63, True, [1]])
def test_guards_take_over_no_count_that_a_run_cannot_reach(value: Any) -> None:
    """The log is written again by the number of roll-backs, and could not be read any more."""
    _require_numbers({"roll_backs": 0}, {"roll_backs": 3})
    with pytest.raises(ValueError, match="roll_backs"):
        _require_numbers({"roll_backs": 0}, {"roll_backs": value})


@pytest.mark.parametrize("value", [5, 0.5, True])
def test_guards_take_over_no_number_in_place_of_several(value: Any) -> None:
    with pytest.raises(ValueError, match="recent"):
        _require_numbers({"recent": []}, {"recent": value})


def test_a_record_names_its_files_wherever_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "elsewhere"):
        for file in ("wash.pt", "lines.txt"):
            (tmp_path / name / "pictures").mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch()
    monkeypatch.chdir(tmp_path / "here")
    given = {"pictures": "pictures", "start": "wash.pt", "beside": ("wash.pt",), "template": "lines.txt"}
    recipe = Recipe(name="ink", model="org/model", **given)
    files = RunFolder(tmp_path / "run", recipe)
    files.folder.mkdir()
    files.begin(FOUND, afresh=False)
    made = files.made_with()
    here = tmp_path / "here"
    assert (made.pictures, made.start) == (str(here / "pictures"), str(here / "wash.pt"))
    assert (made.beside, made.template) == ((str(here / "wash.pt"),), str(here / "lines.txt"))
    assert made.model == "org/model"
    files.require_same_recipe("continue")
    data = json.loads(files.record.read_text())
    data["recipe"] |= given  # as earlier records have them
    files.record.write_text(json.dumps(data))
    files.require_same_recipe("continue")


def test_a_table_with_a_column_of_the_users_is_not_written_again(tmp_path: Path) -> None:
    files = trained(tmp_path)
    table = tmp_path / "hypernetwork_loss.csv"
    lines = table.read_text().splitlines()
    table.write_text(
        "\ufeff" + "\n".join(f"{line},{note}" for line, note in zip(lines, ["my note", "good"], strict=True))
    )
    with pytest.raises(OutputExists, match="without the column my note") as raised:
        files.require_ours()
    assert "move it away" in str(raised.value.hint)
    table.rename(tmp_path / "mine.csv")
    files.require_ours()


@pytest.mark.parametrize("name", [".lock", "state", "previews", "tensorboard", "hypernetwork_loss.csv"])
def test_a_run_writes_through_no_link_out_of_its_folder(tmp_path: Path, name: str) -> None:
    files = RunFolder(tmp_path / "ink", RECIPE)
    files.folder.mkdir()
    files.begin(FOUND, afresh=False)
    files.require_ours()
    (files.folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(OutputExists, match="a link"):
        files.require_ours()


def test_a_sweep_trains_in_no_folder_that_is_a_link(tmp_path: Path) -> None:
    runs = tuple(
        SweepRun(replace(RECIPE, name=f"ink-{n}"), tmp_path / "ink" / f"ink-{n}", f"{n}", {"seed": n}) for n in (1, 2)
    )
    sweep = Sweep("ink", tmp_path / "ink", ("seed",), runs)
    sweep.folder.mkdir()
    sweep.require_ours()
    runs[1].folder.symlink_to(tmp_path)
    with pytest.raises(OutputExists, match="a link"):
        sweep.require_ours()


RECORDS = {
    "of another program": '{"name": "ink", "steps": 5}',
    "a bare recipe": json.dumps(RECIPE.to_json()),
    "of another name": json.dumps({"format": "hnetkit.training/1", "recipe": {**RECIPE.to_json(), "name": "pen"}}),
    "no JSON": "soup",
}


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS.keys())
def test_a_folder_with_a_recipe_that_no_run_of_this_network_wrote_is_not_taken(tmp_path: Path, record: str) -> None:
    files = trained(tmp_path / "ink")
    files.record.write_text(record)
    with pytest.raises(OutputExists, match=r"recipe\.json: no record of a run of ink") as raised:
        files.require_ours()
    assert raised.value.exit_code == 2
    assert "--out" in str(raised.value.command_hint)


RESULTS = ["ink.pt", "ink.safetensors", "ink-2.safetensors", "hypernetwork_loss.csv", "loss.png", "previews/ink-0.png"]
RESULTS += ["tensorboard/events.out.tfevents.1.here"]


@pytest.mark.parametrize("kept", RESULTS)
def test_without_a_checkpoint_nothing_that_was_made_is_replaced_unasked(tmp_path: Path, kept: str) -> None:
    files = trained(tmp_path / "ink")
    files.checkpoints.clear()
    for name in set(RESULTS) - {kept}:
        (files.folder / name).unlink()
    files.require_ours()
    with pytest.raises(OutputExists, match=f"{kept}: an earlier run made it, and there is no checkpoint") as raised:
        files.require_same("continue", FOUND, force=True)
    assert raised.value.exit_code == 2
    assert str(raised.value.command_hint).startswith("--restart ")
    assert files.require_same("restart", FOUND, force=False) == []


def test_another_recipe_does_not_take_a_folder_that_was_begun_with(tmp_path: Path) -> None:
    files = begun(tmp_path / "ink")
    files.checkpoints.clear()
    assert files.require_same("continue", FOUND, force=False) == []
    other = replace(files, recipe=replace(RECIPE, seed=1))
    other.require_ours()
    with pytest.raises(RunChanged, match="trained so far with seed 0, not 1"):
        other.require_same("continue", FOUND, force=True)
    assert other.require_same("restart", FOUND, force=False) == []


def test_what_a_run_left_that_was_stopped_before_its_first_step_is_gone_on_with(tmp_path: Path) -> None:
    files = trained(tmp_path / "ink")
    files.checkpoints.clear()
    for name in ("ink.pt", "ink.safetensors", "ink-2.safetensors"):
        (files.folder / name).unlink()
    Log(files.folder).truncate_after(0)
    files.require_ours()
    assert files.require_same("continue", FOUND, force=False) == []


FOREIGN = {
    "ink.pt": lambda path: path.write_bytes(b"mine"),
    "ink.safetensors": lambda path: path.mkdir(),
    "ink-4.safetensors": lambda path: hnetkit.save(network(40), path),
    "ink-2.safetensors": lambda path: hnetkit.save(network(2, "pen"), path, overwrite=True),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_network_that_the_run_did_not_write_is_neither_replaced_nor_removed(tmp_path: Path, name: str) -> None:
    files = trained(tmp_path / "ink")
    path = files.folder / name
    if name in ("ink.pt", "ink.safetensors"):
        path.unlink()
    files.require_ours()
    FOREIGN[name](path)
    with pytest.raises(OutputExists, match=f"{name}: not what a run of ink wrote") as raised:
        files.require_ours()
    assert "move it away" in str(raised.value.hint)


@pytest.mark.parametrize("name", ["loss.png", "hypernetwork_loss.csv", "previews/ink-4.png"])
def test_what_no_file_could_replace_later_is_refused_before_the_first_step(tmp_path: Path, name: str) -> None:
    files = trained(tmp_path / "ink")
    (files.folder / name).unlink(missing_ok=True)
    (files.folder / name).mkdir()
    with pytest.raises(OutputExists, match=f"{name}: no file, and a run writes one there"):
        files.require_ours()


def test_a_run_is_finished_where_both_of_its_files_are_the_network_of_the_last_step(tmp_path: Path) -> None:
    files = trained(tmp_path / "ink")
    assert files.is_finished(FOUND, 2)
    for other in (network(1), network(2, seed=1)):
        hnetkit.save(other, files.folder / "ink.pt", overwrite=True)
        assert not files.is_finished(FOUND, 2)
    hnetkit.save(network(2), files.folder / "ink.pt", overwrite=True)
    assert files.is_finished(FOUND, 2)


@pytest.mark.parametrize("name", ["ink-2.safetensors", "ink.pt"])
def test_starting_over_does_not_remove_the_network_that_it_starts_from(tmp_path: Path, name: str) -> None:
    files = trained(tmp_path / "ink")
    given = str(files.folder / name)
    for recipe in (replace(RECIPE, start=given), replace(RECIPE, beside=(given,), prompt_name="x")):
        with pytest.raises(OutputExists, match="starting over would remove or replace it"):
            replace(files, recipe=recipe).require_same("restart", FOUND, force=True)
    (tmp_path / "copy.pt").write_bytes(Path(given).read_bytes())
    apart = replace(files, recipe=replace(RECIPE, start=str(tmp_path / "copy.pt")))
    assert apart.require_same("restart", FOUND, force=False) == []


def test_starting_over_removes_what_the_run_made_and_nothing_else(tmp_path: Path) -> None:
    files = trained(tmp_path / "ink")
    theirs = {
        *("notes.txt", "ink-two.safetensors", "ink-\N{SUPERSCRIPT TWO}.safetensors", "ink-02.safetensors"),
        *("inks-2.safetensors", "previews/mine.png", "previews/ink-best.png", "tensorboard/notes.txt"),
        *("state/notes.txt", "state/draft.unfinished", "state/00000001/notes.txt"),
    }
    for name in theirs:
        (files.folder / name).write_bytes(b"mine")
    kept = {name: data for name, data in all_files(files.folder).items() if Path(name).stem == "ink"}
    assert len(kept) == 2  # the network, until there is a new one
    files.require_ours()
    files.begin(FOUND, afresh=True)
    left = all_files(files.folder)
    assert {name: left.get(name) for name in kept} == kept
    assert sum(data == b"mine" for data in left.values()) == len(theirs)
    assert set(left) - set(kept) - {"recipe.json", "hypernetwork_loss.csv", "loss.png"} == {
        name.replace("00000001/", "00000001.unfinished/") for name in theirs
    }
    assert files.checkpoints.newest_folder is None
    files.checkpoints.write(TrainingState(1, {}))
    assert files.checkpoints.newest_folder == files.folder / "state" / "00000002"


def test_a_sweep_locks_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    run = SweepRun("rate 1", tmp_path / "ink" / "1", RECIPE, {})
    sweep = Sweep("ink", tmp_path / "ink", ("rate",), (run, run))
    sweep.begin()
    (sweep.folder / ".lock").symlink_to(tmp_path / "outside")
    with pytest.raises(OutputExists, match=r"\.lock: a link"):
        sweep.require_ours()


def test_a_run_goes_on_only_with_the_lines_of_its_template(tmp_path: Path) -> None:
    before, now = (replace(FOUND, template=lines) for lines in ("one", "two"))
    assert before.changes(now) == ["the template has other lines"]
    assert before.changes(before) == []
    assert FOUND.changes(now) == []  # a record of before, which does not hold them
