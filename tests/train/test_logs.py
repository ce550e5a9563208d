"""The record of a run: a table that survives being killed, TensorBoard, a plot."""

from __future__ import annotations

import csv
import io
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.hostile_images import large_png

from hnetkit.errors import HnetkitError, MissingPackage
from hnetkit.train.logs import Log, LogRow, has_no_step, read_log
from hnetkit.train.plot import draw_plot, write_plot


def row(step: int, *, loss: float = 0.1, rate: float = 5e-6, roll_backs: int = 0) -> LogRow:
    return LogRow(step, step // 12, step % 12, loss, rate, 0.2, 0.03, step / 4, roll_backs)


def log_of(folder: Path, rows: list[LogRow], **options: Any) -> Log:
    log = Log(folder, **options)
    for one in rows:
        log.step(one)
    return log


def table(folder: Path) -> list[LogRow]:
    return list(read_log(folder / "hypernetwork_loss.csv"))


def test_the_table_has_a1111s_columns_first_and_then_ours(tmp_path: Path) -> None:
    log_of(tmp_path, [row(1, loss=0.25)]).close()
    with open(tmp_path / "hypernetwork_loss.csv", newline="", encoding="utf-8") as file:
        header, line = csv.reader(file)
    assert header[:5] == ["step", "epoch", "epoch_step", "loss", "learn_rate"]
    assert header[5:] == ["running_mean", "gradient_norm", "seconds", "roll_backs"]
    assert line == ["1", "0", "1", "0.25", "5e-06", "0.2", "0.03", "0.25", "0"]


def test_rows_come_back_to_the_last_bit(tmp_path: Path) -> None:
    rows = [row(1, loss=1 / 3, rate=5e-6 / 7), row(2, loss=1e-30)]
    log_of(tmp_path, rows).close()
    assert table(tmp_path) == rows


def test_every_step_before_a_kill_is_there(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from hnetkit.train.logs import Log, LogRow
log = Log(Path(sys.argv[1]))
for step in range(1, 50):
    log.step(LogRow(step, 0, step, 0.1, 5e-6, 0.1, 0.1, 1.0))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [one.step for one in table(tmp_path)] == list(range(1, 50))


@pytest.mark.parametrize("cut", [1, 2, 5, 30])
def test_a_last_line_that_was_cut_off_is_dropped(tmp_path: Path, cut: int) -> None:
    log_of(tmp_path, [row(step) for step in range(1, 5)]).close()
    path = tmp_path / "hypernetwork_loss.csv"
    path.write_bytes(path.read_bytes()[:-cut])
    log_of(tmp_path, [row(4, loss=0.5)]).close()
    assert table(tmp_path) == [row(1), row(2), row(3), row(4, loss=0.5)]


def test_a_resumed_run_writes_the_table_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    rows = [row(step, loss=0.1 + step / 100) for step in range(1, 21)]
    log_of(whole, rows).close()
    log_of(resumed, rows[:17])  # not closed: killed after step 17, with a checkpoint of step 10
    log = Log(resumed)
    log.truncate_after(10)
    for one in rows[10:]:
        log.step(one)
    log.close()
    assert (resumed / "hypernetwork_loss.csv").read_bytes() == (whole / "hypernetwork_loss.csv").read_bytes()


def test_steps_that_a_roll_back_undid_stay_and_those_after_a_checkpoint_go(tmp_path: Path) -> None:
    before = [row(step) for step in range(1, 8)]
    after = [row(step, roll_backs=1) for step in range(4, 10)]
    log_of(tmp_path, before + after).close()
    log = Log(tmp_path)
    log.truncate_after(6, roll_backs=1)
    assert table(tmp_path) == before + after[:3]
    log.truncate_after(3, roll_backs=0)
    assert table(tmp_path) == before[:3]


def test_starting_over_empties_the_table(tmp_path: Path) -> None:
    log_of(tmp_path, [row(1), row(2)]).close()
    log = Log(tmp_path)
    log.truncate_after(0)
    assert table(tmp_path) == []
    assert (tmp_path / "hypernetwork_loss.csv").read_text().startswith("step,epoch,epoch_step,loss,learn_rate,")


def test_a_table_of_something_else_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "hypernetwork_loss.csv"
    path.write_text("step,epoch,epoch_step,loss,learn_rate\n1,0,1,0.1,5e-6\n")
    with pytest.raises(HnetkitError, match="line 1 is no row"):
        Log(tmp_path).truncate_after(0)
    assert path.read_text().endswith("1,0,1,0.1,5e-6\n")


def test_a_run_without_a_log_yet_has_no_rows(tmp_path: Path) -> None:
    assert table(tmp_path) == []


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    log = log_of(tmp_path, [row(1)])
    log.close()
    log.close()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


@pytest.mark.parametrize("line", ["1,2", "x" * 200_000, "9" * 5000 + ",0,1,0.1,5e-6,0.1,0.1,0.1,0"])
def test_a_line_of_any_kind_that_is_no_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "hypernetwork_loss.csv"
    log_of(tmp_path, [row(1)]).close()
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(HnetkitError, match="line 3 is no row"):
        list(read_log(path))
    os.truncate(path, 1 << 40)
    with pytest.raises(HnetkitError, match="not a training log"):
        list(read_log(path))


def test_tensorboard_shows_loss_mean_rate_gradient_and_previews(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.new("RGB", (8, 4), "red").save(tmp_path / "ink-2.png")
    log = log_of(tmp_path, [row(1), row(2, loss=0.5)], tensorboard=True)
    log.preview(2, tmp_path / "ink-2.png")
    log.close()
    shown = scalars(tmp_path)
    assert set(shown) == {"loss", "loss (running mean)", "learning rate", "gradient norm"}
    assert shown["loss"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.5))]
    pictures = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("preview")
    assert [(picture.step, picture.width, picture.height) for picture in pictures] == [(2, 8, 4)]


def test_a_preview_that_cannot_be_opened_again_does_not_end_a_training(tmp_path: Path) -> None:
    (tmp_path / "ink-1.png").write_bytes(large_png(13_300, 13_300))
    log = log_of(tmp_path, [row(1)], tensorboard=True)
    log.preview(1, tmp_path / "ink-1.png")
    log.preview(1, tmp_path / "gone.png")
    log.step(row(2))
    log.close()
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [1, 2]


def test_tensorboard_forgets_the_steps_that_a_resumed_run_makes_again(tmp_path: Path) -> None:
    log_of(tmp_path, [row(step, loss=1.0) for step in range(1, 8)], tensorboard=True).close()
    log = Log(tmp_path, tensorboard=True)
    log.truncate_after(3)
    for step in range(4, 6):
        log.step(row(step, loss=2.0))
    log.close()
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]


def test_tensorboard_forgets_the_steps_that_a_roll_back_undid(tmp_path: Path) -> None:
    before = [row(step, loss=1.0) for step in range(1, 8)]
    log_of(tmp_path, [*before, row(4, loss=2.0, roll_backs=1)], tensorboard=True).close()
    assert scalars(tmp_path)["loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]


def test_without_tensorboard_asking_for_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingPackage, match="TensorBoard is not installed") as raised:
        Log(tmp_path, tensorboard=True)
    assert raised.value.hint == 'pip install "hnetkit[train]"'
    log_of(tmp_path, [row(1)]).close()
    assert len(table(tmp_path)) == 1


def picture(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def share_of(pixels: np.ndarray[Any, Any], colour: str) -> float:
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return float((np.abs(pixels - wanted).max(-1) < 24).mean())


def test_the_plot_shows_dots_mean_and_rate(tmp_path: Path) -> None:
    log_of(tmp_path, [row(step, loss=0.1 * 1.01**step) for step in range(1, 200)])
    pixels = picture(write_plot(tmp_path, "ink").read_bytes())
    assert write_plot(tmp_path, "ink") == tmp_path / "loss.png"
    assert pixels.shape == (660, 1200, 3)
    assert share_of(pixels, "#a9c8e4") > 1e-3
    assert share_of(pixels, "#12507b") > 1e-3
    assert share_of(pixels, "#c4722b") > 1e-4
    assert share_of(pixels, "#c0453a") == 0


def test_the_plot_marks_what_a_roll_back_undid() -> None:
    rows = [*(row(step) for step in range(1, 60)), *(row(step, loss=0.05, roll_backs=1) for step in range(20, 100))]
    assert share_of(picture(draw_plot("ink", rows)), "#c0453a") > 1e-4


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(1)],
        [row(1, loss=math.nan)],
        [row(1), row(2, loss=math.inf), row(2, loss=0.0, roll_backs=1)],
        [row(1, rate=0.0), row(2, rate=0.0)],
    ],
    ids=["none", "one", "nan", "inf and 0", "no rate"],
)
@pytest.mark.filterwarnings("error")
def test_odd_runs_have_a_plot_too(rows: list[LogRow]) -> None:
    assert picture(draw_plot("ink $x_$ 画", rows)).shape == (660, 1200, 3)


@pytest.mark.parametrize(
    "settings", [b"text.usetex: True\n", b"font.family: \xff\n", None], ids=["latex", "no text", "pipe"]
)
def test_a_matplotlibrc_in_the_current_folder_is_not_read(tmp_path: Path, settings: bytes | None) -> None:
    if settings is not None:
        (tmp_path / "matplotlibrc").write_bytes(settings)
    elif hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "matplotlibrc")
    for program in ("latex", "dvipng", "kpsewhich"):
        (tmp_path / program).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (tmp_path / program).chmod(0o755)
    code = """
from hnetkit.train.logs import LogRow
from hnetkit.train.plot import draw_plot
draw_plot("ink", [LogRow(1, 0, 0, 0.1, 5e-6, 0.1, 0.1, 1.0)])
import os
print(os.getcwd())
"""
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 0, done.stderr
    assert os.path.samefile(done.stdout.strip(), tmp_path)


def test_plotting_draws_no_random_numbers_and_opens_no_window() -> None:
    code = """
import random, sys
from hnetkit.train.logs import LogRow
from hnetkit.train.plot import draw_plot
before = random.getstate()
draw_plot("ink", [LogRow(1, 0, 0, 0.1, 5e-6, 0.1, 0.1, 1.0)])
print(random.getstate() == before, "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_a_table_with_a_field_longer_than_any_is_no_defect(tmp_path: Path) -> None:
    log_of(tmp_path, [row(1)]).close()
    path = tmp_path / "hypernetwork_loss.csv"
    path.write_text(path.read_text() + "x" * 200_000 + "\n")
    with pytest.raises(HnetkitError, match="line 3 is no row"):
        list(read_log(path))


def test_a_table_with_two_columns_of_one_name_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "hypernetwork_loss.csv"
    log_of(tmp_path, [row(1)]).close()
    lines = path.read_text().splitlines()
    path.write_text("".join(f"{line},{line.split(',')[3]}\n" for line in lines))
    with pytest.raises(HnetkitError, match="line 1 is no row"):
        list(read_log(path))


def test_a_table_of_far_too_many_columns_is_no_log(tmp_path: Path) -> None:
    path = tmp_path / "hypernetwork_loss.csv"
    log_of(tmp_path, [row(1)] * 5000).close()
    first, *rows = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first.strip() + "," * 50_000 + "\n", *rows]))  # for each of them, each row would be filled
    started = time.process_time()
    with pytest.raises(HnetkitError, match="line 1 is no row"):
        list(read_log(path))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("number", [1, 3])
def test_cells_that_go_on_over_lines_make_no_row_of_a_whole_file(tmp_path: Path, number: int) -> None:
    path = tmp_path / "hypernetwork_loss.csv"
    log_of(tmp_path, [row(1), row(2)]).close()
    lines = path.read_text().splitlines()
    lines[number - 1] += ',"' + '\n","a' * 200_000 + '"'
    path.write_text("\n".join([*lines, ""]))
    tracemalloc.start()
    try:
        with pytest.raises(HnetkitError, match="is no row"):
            list(read_log(path))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def test_a_table_is_without_steps_only_as_a_run_begins_it(tmp_path: Path) -> None:
    path = tmp_path / "hypernetwork_loss.csv"
    assert not has_no_step(path)
    log = Log(tmp_path)
    log.truncate_after(0)
    assert has_no_step(path)
    log.step(row(1))
    log.close()
    assert not has_no_step(path)
    path.write_text("mine")
    assert not has_no_step(path)


@pytest.mark.parametrize(
    "numbers",
    [
        *({"loss": math.inf, "mean": math.inf, "rate": math.inf}, {"loss": 1e308, "rate": 1e308}),
        *({"loss": -math.inf}, {"loss": 5e-324, "rate": 5e-324}, {"loss": math.nan, "mean": math.nan}),
    ],
)
def test_numbers_for_which_no_axis_has_room_end_no_plot(numbers: dict[str, float]) -> None:
    of = {"loss": "loss", "mean": "running_mean", "rate": "learn_rate"}
    odd = row(2)._replace(**{of[name]: number for name, number in numbers.items()})
    for rows in ([odd], [row(1), odd, row(3)]):
        assert draw_plot("ink", rows).startswith(b"\x89PNG")


@pytest.mark.parametrize("column", ["step", "epoch", "epoch_step", "roll_backs"])
def test_a_row_with_a_number_that_no_run_reaches_is_none(tmp_path: Path, column: str) -> None:
    log_of(tmp_path, [row(1), row(2)._replace(**{column: 10**400})]).close()
    with pytest.raises(HnetkitError, match="line 3 is no row"):
        table(tmp_path)


def test_thousands_of_roll_backs_are_drawn_as_quickly_as_as_many_steps() -> None:
    rows = [row(step)._replace(roll_backs=step) for step in range(1, 3000)]
    started = time.process_time()
    draw_plot("ink", rows)
    assert time.process_time() - started < 10


def padded(path: Path, count: int) -> list[LogRow]:
    """Writes a log whose numbers have thousands of digits, so that few rows are many bytes, and returns the rows."""
    rows = [row(step) for step in range(1, count + 1)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(LogRow._fields)
        writer.writerows([*one[:3], f"{one.loss}{'0' * 10_000}", *one[4:]] for one in rows)
    return rows


def test_a_log_of_many_megabytes_is_read_and_written_again_line_by_line(tmp_path: Path) -> None:
    rows, log = padded(tmp_path / "hypernetwork_loss.csv", 2000), Log(tmp_path)
    tracemalloc.start()
    try:
        for read, one in zip(read_log(tmp_path / "hypernetwork_loss.csv"), rows, strict=True):
            assert read == one
        log.truncate_after(1999)
        log.step(row(2000))
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()
    log.close()
    assert table(tmp_path) == rows


def test_a_line_without_an_end_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "hypernetwork_loss.csv").write_text(",".join(LogRow._fields) + "\n" + "1," * 100_000 + "\n")
    with pytest.raises(HnetkitError, match="line 2 is no row of a training log"):
        table(tmp_path)


def test_of_a_log_of_many_megabytes_as_many_rows_are_drawn_as_there_is_room_for(tmp_path: Path) -> None:
    rows = padded(tmp_path / "hypernetwork_loss.csv", 2000)  # 20 MB
    assert write_plot(tmp_path, "ink").read_bytes() == draw_plot("ink", rows[::3])
