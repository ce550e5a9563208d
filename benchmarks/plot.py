"""Draws `results/gpu.csv` as `results/gpu.svg`, and gives the README its tables of it.

    python benchmarks/plot.py

Of every GPU and part it takes the commit that was measured last. Ratios are within one part, GPU and commit.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, TypeAlias

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.csv"
CHART = "benchmarks/results/gpu.svg"
UNMEASURED = "Not yet measured on a GPU."
NO_DEFAULT = (
    "What `hnetkit generate` does by default, the UNet as CUDA graphs, is not yet measured from a step to a picture:\n"
    "`python benchmarks/gpu.py --part default`. Below, all is measured: `CUDA graph` is a step that the benchmark "
    "captured by itself, and\n`eager` is how `generate` ran it at that commit."
)
COMMAND = "python benchmarks/gpu.py --part isolated --budget 500"

BUILD, NETWORKS = "[1,2,1] swish", "3"
"""What the tables are about; the chart has every number of networks, the CSV every build."""

PLAIN, BARE, OURS, COMPILED = "as A1111", "no networks", "hnetkit", "torch.compile"
PATHS = ("eager", COMPILED, "grouped", "fused")
PAPER, INK, BARS = "#ffffff", "#222222", {PLAIN: "#9aa0a6", BARE: "#d0d3d6", COMPILED: "#c98a3d"}
OUR_BAR = "#2f6f9f"
ROW, LEFT, SCALE, RIGHT = 16, 150, 420, 170

Row: TypeAlias = Mapping[str, str]


class Group(NamedTuple):
    """Paths that did the same work.

    Attributes:
        rows: by path.
    """

    gpu: str
    model: str
    build: str
    networks: str
    work: str
    rows: Mapping[str, Row]


def newest(path: Path) -> list[Row]:
    """Returns the rows of the commit that was measured last, for every GPU and part."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = {(row["gpu"], row["part"]): row["commit"] for row in sorted(rows, key=lambda row: row["utc"])}
    return [row for row in rows if row["commit"] == last[row["gpu"], row["part"]]]


def groups(rows: Iterable[Row], part: str) -> list[Group]:
    """Returns the rows of a part by what they are about; for `unet`, those without networks are in every group."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    bare: dict[tuple[str, ...], Row] = {}
    for row in rows:
        if row["part"] == part and row["path"] == BARE:
            bare[row["gpu"], row["model"], row["work"]] = row
        elif row["part"] == part:
            key = tuple(row[name] for name in Group._fields[:-1])
            found.setdefault(key, {})[row["path"]] = row
    for (gpu, model, _, _, work), paths in found.items():
        if (gpu, model, work) in bare:
            paths[BARE] = bare[gpu, model, work]
    return [Group._make((*key, paths)) for key, paths in found.items()]


def table(path: Path = RESULTS) -> str:
    """Returns the README's tables as Markdown."""
    rows = newest(path)
    if not rows:
        return f"{UNMEASURED} To measure:\n\n    {COMMAND}\n"
    chart = [f"![times of each path against A1111's way]({CHART})\n"] if path.with_suffix(".svg").exists() else []
    step = f"A whole UNet step with {NETWORKS} networks of {BUILD}:"
    default = _unet_table(rows, "default", "What `hnetkit generate` does, captured by default:") or f"{NO_DEFAULT}\n"
    parts = [default, _unet_table(rows, "unet", step), _contexts_table(rows), _measured_with(rows), *chart]
    return "\n".join(part for part in parts if part)


def _contexts_table(rows: Sequence[Row]) -> str:
    of_compile = {group[:-1]: group.rows for group in groups(rows, "compile")}
    isolated = {group[:-1]: group.rows for group in groups(rows, "isolated")}
    lines = []
    for key in [*isolated, *(key for key in of_compile if key not in isolated)]:
        gpu, model, build, networks, work = key
        if (build, networks) != (BUILD, NETWORKS):
            continue
        alone, compiled = isolated.get(key, {}), of_compile.get(key, {})
        cells = [ratio(compiled if name == COMPILED else alone or compiled, name) for name in PATHS]
        lines.append([gpu, model, work, milliseconds((alone or compiled).get(PLAIN)), *cells])
    heading = f"{NETWORKS} networks of {BUILD}, applied to the contexts of one UNet step; x: as fast as A1111's way"
    return _markdown(heading, ("GPU", "UNet", "contexts", PLAIN, *PATHS), lines)


def _unet_table(rows: Sequence[Row], part: str, heading: str) -> str:
    lines = []
    for group in groups(rows, part):
        if (group.build, group.networks) == (BUILD, NETWORKS):
            times = [milliseconds(group.rows.get(name)) for name in (BARE, PLAIN, OURS)]
            lines.append([group.gpu, group.model, group.work, *times, ratio(group.rows, OURS)])
    return _markdown(heading, ("GPU", "UNet", "run", BARE, PLAIN, OURS, f"{OURS} against {PLAIN}"), lines)


def ratio(rows: Mapping[str, Row], name: str) -> str:
    """Returns how many times as fast as A1111's way a path is; ``wrong`` where it computes something wrong."""
    row, plain = rows.get(name), rows.get(PLAIN)
    if row is not None and row["wrong"]:
        return "wrong"
    if row is None or plain is None or plain["wrong"]:
        return "-"
    return f"{float(plain['ms']) / float(row['ms']):.2f}x"


def milliseconds(row: Row | None) -> str:
    """Returns a median with the first and last tenth of its runs."""
    if row is None:
        return "-"
    if row["wrong"]:
        return "wrong"
    median, low, high = (float(row[name]) for name in ("ms", "ms_p10", "ms_p90"))
    return f"{median:.2f} ms ({low:.2f}-{high:.2f})"


def _measured_with(rows: Sequence[Row]) -> str:
    """Returns a line for each part, GPU, commit and day."""
    told = {
        f"{row['part']}: {row['gpu']}, driver {row['driver']}, torch {row['torch']}, Triton {row['triton']}, "
        f"commit {row['commit']}, {row['utc'][:10]}": None
        for row in rows
    }
    return "".join(f"- {line}\n" for line in told)


def _markdown(heading: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    cells = [columns, ["---"] * len(columns), *lines]
    return f"{heading}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in cells)


def charted(rows: Sequence[Row]) -> Iterator[tuple[str, Mapping[str, Row]]]:
    """Yields a title and the rows by path of everything that the chart shows."""
    chosen = (("isolated", "self and text"), ("compile", "self and text"), ("unet", "CUDA graph"), ("unet", "compiled"))
    for part, work in chosen:
        for group in groups(rows, part):
            if (group.build, group.work) == (BUILD, work) and not group.rows.get(PLAIN, {"wrong": "missing"})["wrong"]:
                what = f"UNet step, {work}" if part == "unet" else f"contexts, {work}, part {part}"
                yield f"{group.gpu}: {group.model}, {group.networks} x {BUILD}, {what}", group.rows


def chart(rows: Sequence[Row]) -> str:
    """Returns bars of each path's median against that of A1111's way, with the first and last tenth, as SVG."""
    parts, y = [_text(10, 18, "Time against A1111's way in the same run (line at 1); whiskers: p10 to p90")], 32
    for title, paths in charted(rows):
        parts.append(_text(10, y + 14, title, "bold"))
        y += ROW + 4
        top, plain = y, float(paths[PLAIN]["ms"])
        for name, row in paths.items():
            parts.append(_text(10, y + 12, name))
            parts.append(_text(LEFT + 4, y + 12, row["wrong"]) if row["wrong"] else _bar(name, row, plain, y))
            y += ROW
        x = LEFT + SCALE / 2
        parts.append(f'<line x1="{x}" y1="{top}" x2="{x}" y2="{y}" stroke="{INK}" stroke-dasharray="2 2"/>')
        y += 8
    size = f'width="{LEFT + SCALE + RIGHT}" height="{y}"'
    style = 'font-family="sans-serif" font-size="11"'
    paper = f'<rect width="100%" height="100%" fill="{PAPER}"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', paper, *parts, "</svg>", ""])


def _bar(name: str, row: Row, plain: float, y: int) -> str:
    width, low, high = (
        min(float(row[key]) / plain, 2.0) * SCALE / 2 for key in ("ms", "ms_p10", "ms_p90")
    )  # the scale ends at 2
    middle = y + ROW / 2
    return "".join(
        [
            f'<rect x="{LEFT}" y="{y + 2}" width="{width:.1f}" height="{ROW - 4}" fill="{BARS.get(name, OUR_BAR)}"/>',
            f'<line x1="{LEFT + low:.1f}" y1="{middle}" x2="{LEFT + high:.1f}" y2="{middle}" stroke="{INK}"/>',
            _text(LEFT + max(width, high) + 6, y + 12, f"{float(row['ms']):.2f} ms"),
        ]
    )


def _text(x: float, y: float, words: str, weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{INK}" font-weight="{weight}">{escape(words)}</text>'


def main() -> None:
    rows = newest(RESULTS)
    if not rows:
        raise SystemExit(f"{UNMEASURED} {COMMAND}")
    RESULTS.with_suffix(".svg").write_text(chart(rows))
    print(RESULTS.with_suffix(".svg"))


if __name__ == "__main__":
    main()
