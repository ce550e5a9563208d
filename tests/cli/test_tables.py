"""Tables that a person can read, whatever the terminal and the script of the names."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from support import networks

from hnetkit.cli import run
from hnetkit.cli.table import table_lines
from hnetkit.library.library import Library

HEADERS = ["name", "base_model", "layer_structure", "activation", "size", "tags", "trained_on"]
ROWS = [
    ["最終の水彩画のハイパーネットワーク_v10", "sd1", "1, 2, 1", "relu", "12.1 MB", "anime, lineart", "nai [925997e9]"],
    ["a" * 70, "sd1-or-sd2", "1, 2, 2, 1", "softsign", "4.1 MB", "", ""],
    ["glow 🌸🌸🌸", "sdxl", "1, 2, 1", "mish", "missing", "水彩, 夜", "wd-v1-3-full.ckpt [84692140]"],
]  # fmt: skip


def columns_of(line: str) -> int:
    """How many columns of a terminal a line takes, by Unicode's own account."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in line)


@pytest.mark.parametrize("most", [40, 60, 80, 100, 120])
def test_a_table_is_no_wider_than_the_terminal(most: int) -> None:
    lines = list(table_lines(HEADERS, ROWS, most))
    assert max(map(columns_of, lines)) <= most


@pytest.mark.parametrize("most", [12, 40, 80, None])
def test_nothing_of_a_cell_is_left_out(most: int | None) -> None:
    starts, lines = [0], list(table_lines(HEADERS, ROWS, most))
    rule = next(line for line in lines if set(line) == {"-", " "})
    starts = [match.start() for match in re.finditer("-+", rule)]
    signs = sorted("".join(lines).replace("-", ""))
    wanted = "".join([*HEADERS, *(cell for row in ROWS for cell in row)])
    assert [sign for sign in signs if sign != " "] == sorted(wanted.replace("-", "").replace(" ", ""))
    assert len(starts) == len(HEADERS)


@pytest.mark.parametrize(("most", "are_headers_whole"), [(84, True), (80, True), (70, False)])
def test_words_are_broken_only_where_lines_between_them_are_not_enough_and_headers_first(
    most: int, are_headers_whole: bool
) -> None:
    cells = [
        ["watercolor", "sd1", "1, 2, 1", "softsign", "18.9 MB", "landscape, night", "model.ckpt [d7049739]"],
        ["paperLantern3_v10", "sd1-or-sd2", "1, 2, 2, 1", "linear", "113.2 MB", "", ""],
    ]
    header, body = "\n".join(table_lines(HEADERS, cells, most)).split("-----", 1)
    for word in ("watercolor", "paperLantern3_", "softsign", "landscape,", "model.ckpt", "[d7049739]"):
        assert re.search(rf"(?<!\S){re.escape(word)}(?!\S)", body), word
    assert ("activation" in header and "structure" in header) == are_headers_whole


@pytest.mark.parametrize("most", [60, 80, 200, None])
def test_columns_stand_below_each_other(most: int | None) -> None:
    header, *lines = [
        line for line in table_lines(["name", "last"], [["水彩画", "x"], ["ink", "x"], ["🌸", "x"]], most)
    ]
    at = header.index("last")
    assert {columns_of(line.partition("x")[0]) for line in lines if "x" in line} == {at}


def test_a_table_for_a_file_or_a_program_is_as_wide_as_its_cells() -> None:
    assert any("a" * 70 in line for line in table_lines(HEADERS, ROWS, None))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    networks.network_file(
        folder, "最終の水彩画のハイパーネットワーク.pt", seed=1, sd_checkpoint_name="animefull-final-pruned.ckpt"
    )
    networks.network_file(folder, "glow.pt", seed=2)
    return folder


@pytest.mark.parametrize("command", ["list", "search ckpt", "list --files"])
def test_lists_fit_a_terminal_of_eighty_columns_and_reach_a_pipe_whole(command: str, library: Path) -> None:
    pty = pytest.importorskip("pty", reason="pseudo-terminals are of POSIX")
    run(["scan", str(library)])
    whole = [sys.executable, "-P", "-m", "hnetkit", *command.split()]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    ours, theirs = pty.openpty()
    subprocess.run(
        whole, stdout=theirs, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env=environment, check=True
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 65536):
            seen += part
    os.close(ours)
    lines = seen.decode().splitlines()
    assert len(lines) > 3
    assert max(map(columns_of, lines)) <= 80
    piped = subprocess.run(whole, capture_output=True, env=environment, check=True).stdout.decode()
    assert len(piped.splitlines()) < len(lines)
    assert "最終の水彩画のハイパーネットワーク  " in piped


COUNT = 10_000
MADE = """
import sys
from pathlib import Path
from hnetkit.registry import Registry
from support.registry_rows import row
with Registry(sys.argv[1]) as registry, registry.write():
    root = registry.files.add_root(Path("/library"))
    for number in range(int(sys.argv[2])):
        found = row(number, name=f"net{number}", sidecars={"notes": "night"})
        registry.files.put(root, f"net{number}.pt", 1, 1, found)
        registry.networks.put(found)
        registry.networks.add_tags(registry.networks.id_of(found["content_hash"]), ["anime", "ink"])
"""
QUERY = "SELECT name, base_model, layer_structure, activation, size_bytes, tags, checkpoint_name FROM library"


def processor_seconds(*command: str) -> float:
    """Returns the least time of five runs that a process works for, whatever else the machine does."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    whole = [sys.executable, "-P", "-c", code, sys.executable, "-P", "-m", *command]
    return min(float(subprocess.run(whole, capture_output=True, check=True).stdout) for _ in range(5))


@pytest.mark.long
def test_a_list_of_ten_thousand_takes_at_most_twice_a_bare_query(home: Path) -> None:
    pytest.importorskip("resource", reason="times of processes are POSIX's")
    path = home / "registry.db"
    home.mkdir(exist_ok=True)
    tests = Path(__file__).resolve().parents[1]
    made = [sys.executable, "-c", MADE, str(path), str(COUNT)]
    subprocess.run(made, check=True, env={**os.environ, "PYTHONPATH": str(tests)})
    bare = processor_seconds("sqlite_utils", "query", str(path), QUERY, "--csv")
    assert processor_seconds("hnetkit", "list", "--csv") < 2 * bare
    with Library() as library:
        assert len(library.networks(tags=["anime"], sort="size")) == COUNT
