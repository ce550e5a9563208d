"""What a run's folder says of it, which somebody may have changed: refused in a line, whatever it is."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hnetkit.errors import OutputExists, RunChanged
from hnetkit.train.recipe import Recipe
from hnetkit.train.run import _require_numbers
from hnetkit.train.run_folder import Found, RunFolder
from hnetkit.train.state import State
from hnetkit.train.sweep import Sweep
from hnetkit.train.sweep_runs import SweepRun

RECIPE = Recipe(name="ink", model="m", pictures="p")
FOUND = Found({"a.png": ["0" * 64, "a cat"]}, "m", "v", "t", None, {"wash": "h1:0"})


def begun(folder: Path) -> RunFolder:
    files = RunFolder(folder, RECIPE)
    folder.mkdir(exist_ok=True)
    files.begin(FOUND, afresh=False)
    files.states.write(State(1, {}))
    return files


def test_a_record_that_nobody_changed_is_the_same_run(tmp_path: Path) -> None:
    assert begun(tmp_path).require_same("go on", FOUND, force=False) == []
    with pytest.raises(RunChanged, match="a network beside it is another"):
        begun(tmp_path).require_same("go on", replace(FOUND, beside={}), force=False)


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
        files.require_same("go on", FOUND, force=True)
    assert len(str(raised.value)) < 600
    assert not files.is_finished(FOUND, 1)
    assert files.require_same("restart", FOUND, force=False) == []


@pytest.mark.skipif(os.name != "posix", reason="makes a pipe")
def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    files = begun(tmp_path)
    files.record.unlink()
    os.mkfifo(files.record)
    with pytest.raises(RunChanged, match="not a regular file"):
        files.require_same("go on", FOUND, force=False)


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
