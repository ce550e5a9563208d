"""`hnetkit train schedule`, and the group it is in, as a person or a script meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from hnetkit.cli import run
from hnetkit.cli.train import TrainGroup


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run(["train", "schedule", *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def said(capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 0) -> tuple[str, str]:
    assert run(["train", *arguments]) == exit_code
    out, err = capsys.readouterr()
    return out, err


def test_json_gives_the_stages_that_a_string_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(capsys, "1e-4:100,1e-5:1000", "--max-steps", "500", "--from-step", "20") == [
        {"rate": 1e-4, "from_step": 20, "to_step": 100},
        {"rate": 1e-5, "from_step": 100, "to_step": 500},
    ]


def test_every_published_schedule_gives_the_stages_of_the_original_parser(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in json.loads((shared / "data" / "learn_rate_schedules.json").read_text(encoding="utf-8")):
        for key, expected in row.items():
            if found := re.fullmatch(r"max_(\d+)_from_(\d+)", key):
                arguments = [row["text"], "--max-steps", found[1], "--from-step", found[2]]
                if isinstance(expected, str):
                    assert "column" in said(capsys, "schedule", *arguments, exit_code=2)[1]
                else:
                    assert [[stage["rate"], stage["to_step"]] for stage in rows(capsys, *arguments)] == expected


def test_a_person_reads_steps_rates_and_stops(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "schedule", "default", "--max-steps", "8000")
    assert out == ("steps 1-100      5e-5\nsteps 101-1500   5e-6\nsteps 1501-8000  5e-7  usable at steps 5000-8000\n")
    assert err == ""


def test_a_stop_of_one_step_is_in_the_stage_that_ends_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = said(capsys, "schedule", "default")
    assert out.splitlines()[-1] == "steps 10001-20000  5e-8  fine at step 20000"


def test_a_cosine_shows_its_cycles(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "schedule", "cosine:4e-5:cycle=100:mult=2:min=6e-7:decay=0.5", "--max-steps", "300")
    assert out == (
        "steps 1-100    4e-5 at most, 6.1e-07 at the end\nsteps 101-300  2e-5 at most, 6.01e-07 at the end\n"
    )
    assert err == ""


def test_an_early_end_is_a_warning_beside_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "schedule", "1e-5:100,1e-6:1", "--max-steps", "500")
    assert out == "steps 1-100  1e-5\nno steps     1e-6\n"
    assert err == (
        "Warning: training ends at step 100, not at 500: the schedule ends there\n"
        "Warning: 1e-6 until step 1 is never used: 100 steps are made by then\n"
    )
    assert said(capsys, "schedule", "1e-5:100", "--max-steps", "500", "-q")[1] == ""


def test_a_fault_is_a_usage_error_with_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "schedule", "5e-5:100, 5e-6:many", "--max-steps", "500", exit_code=2)
    assert out == ""
    assert err.startswith("Error: schedule '5e-5:100, 5e-6:many', column 16: 'many' is not a whole number\nHint: ")


def test_a_schedule_without_an_end_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Hint: --max-steps" in said(capsys, "schedule", "5e-5", exit_code=2)[1]


def test_without_a_schedule_the_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    presets = {row["name"]: row for row in rows(capsys)}
    assert presets["default"]["schedule"] == "5e-5:100, 5e-6:1500, 5e-7:10000, 5e-8:20000"
    assert presets["default"]["stops"] == {"usable": [5000, 10000], "fine": [20000, 20000]}
    out, _ = said(capsys, "schedule")
    assert all(name in out for name in presets)


def test_steps_without_a_schedule_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert "of which schedule" in said(capsys, "schedule", "--max-steps", "5", exit_code=2)[1]


def test_it_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from hnetkit.cli import run; run(['train', 'schedule', 'default']); "
        "print('torch' in sys.modules, 'PIL' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_a_misspelt_command_is_not_taken_for_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    _, err = said(capsys, "shedule", "default", exit_code=2)
    assert err == "Error: there is no command and no folder shedule\nHint: hnetkit train schedule\n"


@pytest.fixture
def group() -> click.Group:
    """A group like `hnetkit train`, of which another command is the default."""
    commands = {"schedule": ("train", ""), "prompt": ("prompt", "")}
    return TrainGroup("train", sections={"Commands": commands}, default="prompt")


@pytest.mark.parametrize(
    "arguments",
    [["a cat", "--steps", "3", "--json"], ["--steps", "3", "a cat", "--json"], ["prompt", "a cat", "--json"]],
)
def test_what_is_no_command_goes_to_the_default_one(
    group: click.Group, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    group.main(arguments, standalone_mode=False)
    assert json.loads(capsys.readouterr().out)[0]["text"] == "a cat"


def test_a_folder_named_almost_like_a_command_goes_to_the_default_one(
    group: click.Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "schedules").mkdir()
    group.main(["schedules", "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)[0]["text"] == "schedules"
