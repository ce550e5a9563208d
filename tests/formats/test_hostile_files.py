"""Files made to harm: none runs anything, none takes long or much, each is refused with one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import hostile_files

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import FileRefused

LIMIT_S = 2.0
LIMIT_BYTES = 200_000_000

_MEASURE = """
import json, resource, sys, time
import hnetkit
from hnetkit.errors import FileRefused
import hnetkit.formats, hnetkit.inspection, hnetkit.inspection
rows = []
for path in sys.argv[1:]:
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        hnetkit.load(path)
        refused = False
    except FileRefused:
        refused = True
    rows.append([refused, time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before])
print(json.dumps(rows))
"""


def written(folder: Path) -> dict[str, Path]:
    paths = {}
    for name, make in hostile_files.TRICKS.items():
        paths[name] = folder / f"{name}.pt"
        paths[name].write_bytes(make())
    return paths


def test_the_base_that_all_tricks_change_is_a_good_network(tmp_path: Path) -> None:
    for name, data in {
        "zip": hostile_files.good(),
        "legacy": hostile_files.legacy_of(hostile_files.network()),
        "safetensors": hostile_files.good_safetensors(),
        "note": hostile_files.zip_of(hostile_files.meta(hostile_files.text("hello"))),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert hnetkit.load(tmp_path / name).widths == [2]


def test_there_are_more_than_sixty_tricks() -> None:
    assert len(hostile_files.TRICKS) > 60


def test_no_trick_runs_code_takes_long_or_takes_much(tmp_path: Path) -> None:
    paths = written(tmp_path)
    canary = tmp_path / "canary"
    done = subprocess.run(
        [sys.executable, "-P", "-c", _MEASURE, *map(str, paths.values())],
        cwd=tmp_path,
        env={**os.environ, "CANARY": str(canary)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = dict(zip(paths, json.loads(done.stdout), strict=True))
    assert not canary.exists()
    assert [name for name, (refused, _, _) in rows.items() if not refused] == []
    assert {name: seconds for name, (_, seconds, _) in rows.items() if seconds > LIMIT_S} == {}
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    assert {n: kib for n, (_, _, kib) in rows.items() if kib * 1024 > sizes[n] + LIMIT_BYTES} == {}
    assert done.stderr == ""


@pytest.mark.parametrize("name", list(hostile_files.TRICKS))
def test_each_trick_is_refused_with_exit_7_and_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "style.pt"
    path.write_bytes(hostile_files.TRICKS[name]())
    assert run(["validate", "-q", str(path)]) == 7
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Hint: ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"Error: {path}: ")
    assert lines[0].isprintable()


@pytest.mark.parametrize("name", ["zip_os_system", "legacy_eval", "memo_bomb", "random_bytes"])
def test_nothing_is_written_for_a_refused_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    path.write_bytes(hostile_files.TRICKS[name]())
    assert run(["convert", str(path), str(tmp_path / "out.safetensors")]) == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["style.pt"]


def test_an_optimizer_beside_the_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "style.pt").write_bytes(hostile_files.good())
    evil = tmp_path / "style.pt.optim"
    evil.write_bytes(hostile_files.TRICKS["bare_os_system"]())
    os.utime(evil, (1, 1))
    hnetkit.load(tmp_path / "style.pt")
    assert evil.stat().st_atime == 1


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for data in (hostile_files.good(), hostile_files.legacy_of(hostile_files.network())):
        for length in range(0, len(data), 7):
            path = tmp_path / "cut.pt"
            path.write_bytes(data[:length])
            with pytest.raises(FileRefused):
                hnetkit.load(path)


@pytest.mark.parametrize("name", ["line\nend.pt", "esc\x1b[31m.pt", "..pt", "spaces .pt"])
def test_a_strange_name_stays_on_its_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    path.write_bytes(b"not a model")
    assert run(["validate", "-q", str(path)]) == 7
    err = capsys.readouterr().err
    assert err.count("\n") == len([line for line in err.splitlines() if line.startswith(("Error: ", "Hint: "))])
    assert "\x1b" not in err


def test_a_pipe_a_folder_and_a_loop_of_links_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "a.pt").symlink_to("b.pt")
    (tmp_path / "b.pt").symlink_to("a.pt")
    assert run(["validate", str(tmp_path / "pipe.pt")]) == 7
    assert run(["validate", str(tmp_path / "folder.pt")]) == 4
    assert run(["validate", str(tmp_path / "a.pt")]) == 7


def test_a_file_that_changes_while_it_is_open_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    path.write_bytes(hostile_files.good())
    net = hnetkit.load(path)
    with path.open("r+b") as file:
        file.truncate(300)
    with pytest.raises(FileRefused):
        net.mlps[2].key.stages[0].weight.read()
