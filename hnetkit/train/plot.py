"""The plot of a run's losses and learning rates."""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby, islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hnetkit.files import new_file, stat_at
from hnetkit.train.logs import CSV_NAME, PLOT_NAME, LogRow, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SETTINGS = "matplotlibrc"
_INK, _PALE_INK, _GRID = "#333333", "#777777", "#e6e6e6"
_RATE = "#c4722b"
_LARGEST = 1e30  # largest number that is drawn; the smallest is its inverse
_PLOTTED = 8 << 20  # bytes of a log of which every row is drawn: about a hundred thousand
_MOST_MARKED = 100  # roll-backs that are marked one by one
# room for the longest labels, as parts of the image: matplotlib takes longer to look for places than to draw
_MARGINS = {"left": 0.08, "right": 0.92, "bottom": 0.1, "top": 0.88}
_LABELS_AT = 0.06  # beside the axes, in parts of their width


class _Style(NamedTuple):
    """Colors of a stretch of steps, and their labels in the legend."""

    dots: str
    mean: str
    dots_label: str
    label: str


_KEPT = _Style("#a9c8e4", "#12507b", "loss of a step", "running mean")
_UNDONE = _Style("#f0c4bf", "#c0453a", "", "undone by a roll-back")


def write_plot(folder: Path, name: str) -> Path:
    """Plots the rows so far of the log in `folder`, beside it, and returns the image's path.

    Of a very long log every second row is drawn, or every third, and so on: more have no room in the image.

    Args:
        name: of the network, for the title.
    """
    path, log = folder / PLOT_NAME, folder / CSV_NAME
    status = stat_at(log)
    every = 1 + (status.st_size if status is not None else 0) // _PLOTTED
    with new_file(path, overwrite=True) as file:
        file.write(draw_plot(name, list(islice(read_log(log), None, None, every))))
    return path


def draw_plot(name: str, rows: Sequence[LogRow]) -> bytes:
    """Returns a PNG: the loss of each step and its running mean on the left axis, the rate on the right one.

    Args:
        name: of the network.
        rows: in the order in which the steps were made; those that a roll-back undid are red.
    """
    with _elsewhere():
        from matplotlib import style

    with style.context("default"):
        return _draw(name, [_clamped(row) for row in rows])


@contextmanager
def _elsewhere() -> Iterator[None]:
    """Has matplotlib imported from a folder without settings for it, where the current one has some.

    It reads them as it is imported, and a stranger's may be no text, may never end, or have texts set by LaTeX.
    """
    if "matplotlib" in sys.modules or not os.path.lexists(_SETTINGS):
        yield
        return
    here = os.getcwd()
    os.chdir(Path(__file__).parent)
    try:
        yield
    finally:
        os.chdir(here)


def _clamped(row: LogRow) -> LogRow:
    """Returns a row without the numbers that no axis can show."""
    return row._replace(
        loss=_or_nan(row.loss), running_mean=_or_nan(row.running_mean), learn_rate=_or_nan(row.learn_rate)
    )


def _or_nan(number: float) -> float:
    return number if number == 0 or 1 / _LARGEST < abs(number) < _LARGEST else math.nan


def _draw(name: str, rows: Sequence[LogRow]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), dpi=120)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(**_MARGINS)
    axes = figure.add_subplot()
    right = axes.twinx()
    stretches = list(_stretches(rows))
    size = 9.0 if len(rows) < 1000 else 4.0 if len(rows) < 10_000 else 1.5
    for style, stretch in stretches:
        steps = [row.step for row in stretch]
        axes.scatter(
            steps, [row.loss for row in stretch], s=size, color=style.dots, linewidths=0, label=style.dots_label
        )
        axes.plot(steps, [row.running_mean for row in stretch], color=style.mean, linewidth=1.8, label=style.label)
        right.plot(steps, [row.learn_rate for row in stretch], color=_RATE, linewidth=1.2, alpha=0.8, label="rate")
    for (style, before), (_, after) in pairwise(stretches):
        if style is _UNDONE:
            _mark_roll_back(axes, before[-1].step, after[0].step - 1)
    if any(row.loss > 0 for row in rows):
        axes.set_yscale("log")
    if any(row.learn_rate > 0 for row in rows):
        right.set_yscale("log")
    _finish(axes, right)
    axes.set_title(_title(name, rows), loc="left", y=1, fontsize=13, color=_INK, pad=26, parse_math=False)
    png = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font may lack characters of the name
        figure.savefig(png, format="png", pil_kwargs={"compress_level": 1})  # a third larger, in half the time
    return png.getvalue()


def _stretches(rows: Sequence[LogRow]) -> Iterator[tuple[_Style, list[LogRow]]]:
    """Yields rows that belong together with their style: between roll-backs, what stayed and what was undone.

    With very many roll-backs, only what stayed.
    """
    between = [list(group) for _, group in groupby(rows, key=lambda row: row.roll_backs)]
    firsts = accumulate((group[0].step for group in reversed(between)), min, initial=math.inf)
    undone_from = list(firsts)[-2::-1]
    if len(between) > _MOST_MARKED:
        yield _KEPT, [row for group, end in zip(between, undone_from, strict=True) for row in group if row.step < end]
        return
    for group, end in zip(between, undone_from, strict=True):
        for style, kept in ((_KEPT, True), (_UNDONE, False)):
            stretch = [row for row in group if (row.step < end) is kept]
            if stretch:
                yield style, stretch


def _mark_roll_back(axes: Axes, reached: int, back_to: int) -> None:
    axes.axvline(reached, color=_UNDONE.mean, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{reached:,} → {back_to:,}",
        (reached, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3, -3),
        textcoords="offset points",
        rotation=90,
        va="top",
        fontsize=9,
        color=_UNDONE.mean,
    )


def _finish(axes: Axes, right: Axes) -> None:
    """Labels the axes, and makes everything around the lines pale."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("step", color=_INK)
    axes.set_ylabel("loss", color=_KEPT.mean)
    right.set_ylabel("learning rate", color=_RATE)
    axes.xaxis.set_label_coords(0.5, -_LABELS_AT - 0.02)
    axes.yaxis.set_label_coords(-_LABELS_AT, 0.5)
    right.yaxis.set_label_coords(1 + _LABELS_AT, 0.5)
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


def _label_decades(axes: Axes, label: Callable[[float], str]) -> None:
    """Labels the left or right axis at powers of ten, and between them if they are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if axes.get_yscale() != "log":
        return
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def _title(name: str, rows: Sequence[LogRow]) -> str:
    if not rows:
        return f"{name}: no step yet"
    last, times = rows[-1], rows[-1].roll_backs
    undone = f", {times} roll-back{'s' if times > 1 else ''}" if times else ""
    mean = f", running mean {last.running_mean:.4f}" if math.isfinite(last.running_mean) else ""
    return f"{name}: {last.step:,} step{'s' if last.step > 1 else ''}{mean}{undone}"
