"""A run's losses and rates as a picture."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hnetkit.files import new_file
from hnetkit.train.logs import CSV_NAME, PLOT_NAME, LogRow, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _PALE_INK, _GRID = "#333333", "#777777", "#e6e6e6"
_RATE = "#c4722b"
_LARGEST = 1e30  # number that is drawn; the smallest is as far from 1
_MOST_MARKED = 100  # roll-backs; each is drawn by itself


class _Look(NamedTuple):
    """Colours of a stretch of steps, and what the legend calls them."""

    dots: str
    mean: str
    dots_label: str
    label: str


_KEPT = _Look("#a9c8e4", "#12507b", "loss of a step", "running mean")
_LOST = _Look("#f0c4bf", "#c0453a", "", "undone by a roll-back")


def write_plot(folder: Path, name: str) -> Path:
    """Draws all rows so far of the log in `folder`, beside it, and returns the picture's path.

    Args:
        name: of the network, for the title.
    """
    path = folder / PLOT_NAME
    with new_file(path, overwrite=True) as file:
        file.write(draw_plot(name, list(read_log(folder / CSV_NAME))))
    return path


def draw_plot(name: str, rows: Sequence[LogRow]) -> bytes:
    """Returns a PNG: the loss of each step and its running mean on the left axis, the rate on the right one.

    Args:
        name: of the network.
        rows: in the order in which the steps were made; those that a roll-back undid are red.
    """
    from matplotlib import style

    # matplotlib reads a matplotlibrc in the current folder, and a stranger's may have texts set by LaTeX
    with style.context("default"):
        return _drawn(name, [_drawable(row) for row in rows])


def _drawable(row: LogRow) -> LogRow:
    """Returns a row without the numbers for which no axis has room."""
    return row._replace(
        loss=_fitting(row.loss), running_mean=_fitting(row.running_mean), learn_rate=_fitting(row.learn_rate)
    )


def _fitting(number: float) -> float:
    return number if number == 0 or 1 / _LARGEST < abs(number) < _LARGEST else math.nan


def _drawn(name: str, rows: Sequence[LogRow]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    right = axes.twinx()
    stretches = list(_stretches(rows))
    size = 9.0 if len(rows) < 1000 else 4.0 if len(rows) < 10_000 else 1.5
    for look, stretch in stretches:
        steps = [row.step for row in stretch]
        axes.scatter(steps, [row.loss for row in stretch], s=size, color=look.dots, linewidths=0, label=look.dots_label)
        axes.plot(steps, [row.running_mean for row in stretch], color=look.mean, linewidth=1.8, label=look.label)
        right.plot(steps, [row.learn_rate for row in stretch], color=_RATE, linewidth=1.2, alpha=0.8, label="rate")
    for (look, before), (_, after) in pairwise(stretches):
        if look is _LOST:
            _mark_roll_back(axes, before[-1].step, after[0].step - 1)
    if any(row.loss > 0 for row in rows):
        axes.set_yscale("log")
    if any(row.learn_rate > 0 for row in rows):
        right.set_yscale("log")
    _finish(axes, right)
    axes.set_title(_title(name, rows), loc="left", fontsize=13, color=_INK, pad=26, parse_math=False)
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name in letters that the font has not
        figure.savefig(written, format="png")
    return written.getvalue()


def _stretches(rows: Sequence[LogRow]) -> Iterator[tuple[_Look, list[LogRow]]]:
    """Yields rows that belong together, and how they look: between roll-backs, what stayed and what was undone.

    Of very many roll-backs, what stayed alone.
    """
    between = [list(group) for _, group in groupby(rows, key=lambda row: row.roll_backs)]
    firsts = accumulate((group[0].step for group in reversed(between)), min, initial=math.inf)
    undone_from = list(firsts)[-2::-1]
    if len(between) > _MOST_MARKED:
        yield _KEPT, [row for group, end in zip(between, undone_from, strict=True) for row in group if row.step < end]
        return
    for group, end in zip(between, undone_from, strict=True):
        for look, kept in ((_KEPT, True), (_LOST, False)):
            stretch = [row for row in group if (row.step < end) is kept]
            if stretch:
                yield look, stretch


def _mark_roll_back(axes: Axes, reached: int, back_to: int) -> None:
    axes.axvline(reached, color=_LOST.mean, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{reached:,} → {back_to:,}",
        (reached, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -3),
        textcoords="offset points",
        rotation=90,
        va="top",
        fontsize=9,
        color=_LOST.mean,
    )


def _finish(axes: Axes, right: Axes) -> None:
    """Names and thins out everything around the lines."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss", color=_KEPT.mean)
    right.set_ylabel("learning rate", color=_RATE)
    axes.grid(True, which="major", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)
    right.margins(y=0.12)
    for each in (axes, right):
        each.tick_params(colors=_PALE_INK, which="both")
        for spine in each.spines.values():
            spine.set_color(_GRID)
    _label_decades(axes, lambda loss: f"{loss:g}")
    _label_decades(right, lambda rate: f"{rate:.0e}".replace("e-0", "e-"))
    drawn = [pair for side in (axes, right) for pair in zip(*side.get_legend_handles_labels(), strict=True)]
    named = {label: artist for artist, label in drawn}
    legend = axes.legend(
        named.values(), named.keys(), loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=4, frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_color(_INK)


def _label_decades(axes: Axes, written: Callable[[float], str]) -> None:
    """Labels the left or right axis; between the powers of ten only where these are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if axes.get_yscale() != "log":
        return
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _title(name: str, rows: Sequence[LogRow]) -> str:
    if not rows:
        return f"{name}: no step yet"
    last, times = rows[-1], rows[-1].roll_backs
    undone = f", {times} roll-back{'s' if times > 1 else ''}" if times else ""
    mean = f", running mean {last.running_mean:.4f}" if math.isfinite(last.running_mean) else ""
    return f"{name}: {last.step:,} step{'s' if last.step > 1 else ''}{mean}{undone}"
