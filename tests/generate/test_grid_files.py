"""The record of a grid, which somebody may have changed: lines that no run wrote are passed over."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.killed import recorded_disk

from hnetkit.errors import OutputExists, UsageError
from hnetkit.generate.grids.axes import read_axis
from hnetkit.generate.grids.files import FAILURE, FORMAT, GridFiles

ROW: dict[str, Any] = {
    **{"format": FORMAT, "key": "a", "picture": "grid-cells/0000-a.png", "prompt": "a cat", "negative_prompt": ""},
    **{"seed": 1, "random_seeds": [1], "sampler": "Euler", "steps": 5, "cfg_scale": 7.0, "model": "m", "infotext": "i"},
}
GOOD = json.dumps(ROW).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"[" + b"{}," * 1_000_000 + b"0]",
        b"x" * (9 << 20),
        b"\xff\xfe",
        b"9" * 5_000,
        b'{"format": "hnetkit.grid/1", "key": "a"}',
    ],
    ids=["deep list", "deep object", "countless", "long", "no text", "number", "bare"],
)
def test_a_line_that_no_run_wrote_is_passed_over(tmp_path: Path, line: bytes) -> None:
    files = GridFiles(tmp_path / "grid.png")
    files.record.write_bytes(b"\n".join([GOOD, line, GOOD, GOOD[:50]]))
    assert list(files.rows()) == [ROW, ROW]
    files.merge_records()
    assert files.record.read_bytes() == b"\n".join([GOOD, line, GOOD, b""])


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"seed": "1"},
            {"seed": 2**70},
            {"seed": True},
            {"random_seeds": 5},
            {"random_seeds": [[]]},
            {"prompt": None},
        ),
        *({"steps": []}, {"cfg_scale": float("nan")}, {"cfg_scale": 10**400}, {"infotext": 5}, {"picture": {}}),
    ],
)
def test_a_row_with_values_of_another_kind_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    files = GridFiles(tmp_path / "grid.png")
    files.record.write_text(json.dumps(ROW | change) + "\n")
    assert list(files.rows()) == []


@pytest.mark.skipif(os.name != "posix", reason="this system has no named pipes")
def test_a_pipe_in_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    files = GridFiles(tmp_path / "grid.png")
    os.mkfifo(files.record)
    with pytest.raises(OutputExists, match="something else"):
        files.require_ours()
    files.folder.mkdir()
    os.mkfifo(files.folder / "process-1.jsonl")
    assert list(files.rows()) == []


@pytest.mark.parametrize("name", ["grid.jsonl", "grid-cells", "grid-cells/process-1.jsonl"])
def test_a_link_in_place_of_what_a_grid_writes_is_refused(tmp_path: Path, name: str) -> None:
    files = GridFiles(tmp_path / "grid.png")
    files.require_ours()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir() if name == "grid-cells" else elsewhere.touch()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).symlink_to(elsewhere)
    with pytest.raises(OutputExists, match=r"something else|a link"):
        files.require_ours()


def test_a_number_of_values_with_countless_digits_is_no_number() -> None:
    with pytest.raises(UsageError, match="not a number"):
        read_axis("--x", f"seed=1-9 [{'9' * 5_000}]")


@pytest.mark.parametrize("name", ["grid.jsonl", "grid-cells"])
def test_nothing_is_written_through_a_link_beside_a_sheet(tmp_path: Path, name: str) -> None:
    files, outside = GridFiles(tmp_path / "grid.png"), tmp_path / "outside"
    (tmp_path / name).symlink_to(outside)
    with pytest.raises(OutputExists, match="a link"):
        files.require_ours()
    assert not outside.exists()


def test_the_lines_of_another_process_are_not_taken_or_left_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_bytes(GOOD + b"\n")
    first, second = (GridFiles(tmp_path / "grid.png", process) for process in (0, 1))
    first.folder.mkdir()
    (first.folder / "process-1.jsonl").symlink_to(outside)
    assert list(first.rows()) == []
    with pytest.raises(OutputExists, match="a link"):
        second.append([ROW])
    assert outside.read_bytes() == GOOD + b"\n"


def test_a_record_that_is_another_name_of_a_file_elsewhere_becomes_a_file_of_its_own(tmp_path: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_bytes(GOOD + b"\n" + GOOD[:20])
    files = GridFiles(tmp_path / "grid.png")
    os.link(outside, files.record)
    files.require_ours()
    files.merge_records()
    files.append([ROW])
    assert len(list(files.rows())) == 2
    assert outside.read_bytes() == GOOD + b"\n" + GOOD[:20]


def test_of_the_lines_of_another_process_only_those_of_grids_are_taken(tmp_path: Path) -> None:
    outside, files = tmp_path / "outside", GridFiles(tmp_path / "grid.png")
    outside.write_bytes(GOOD + b"\na private line\n")
    files.folder.mkdir()
    os.link(outside, files.folder / "process-1.jsonl")
    files.merge_records()
    assert files.record.read_bytes() == GOOD + b"\n"
    assert outside.read_bytes() == GOOD + b"\na private line\n"


@pytest.mark.parametrize("name", ["process-log.jsonl", "process-.jsonl", "process-1.old.jsonl", "processes.jsonl"])
def test_a_persons_own_file_in_a_folder_of_a_grids_name_stays(tmp_path: Path, name: str) -> None:
    files = GridFiles(tmp_path / "grid.png")
    files.folder.mkdir()
    (files.folder / name).write_bytes(GOOD + b"\n")
    files.require_ours()
    files.merge_records()
    files.finish([ROW])
    files.discard(["a"])
    assert [path.name for path in files.folder.iterdir()] == [name]


def test_a_file_that_is_called_as_lines_of_a_process_and_is_none_is_not_written_to(tmp_path: Path) -> None:
    files = GridFiles(tmp_path / "grid.png")
    files.folder.mkdir()
    (files.folder / "process-1.jsonl").write_bytes(b'{"cell": 17}\n')
    with pytest.raises(OutputExists, match=r"process-1\.jsonl: the file exists and is no grid's record"):
        files.require_ours()
    for torn in (b"", GOOD[:5], GOOD[:5] + b"\n" + GOOD + b"\n"):
        (files.folder / "process-1.jsonl").write_bytes(torn)
        files.require_ours()


def test_a_line_for_which_there_was_no_room_spoils_no_other(tmp_path: Path) -> None:
    files = GridFiles(tmp_path / "grid.png")
    files.append([ROW])
    with files.record.open("ab") as file:
        file.write(GOOD[:100])
    files.append([ROW | {"key": "b"}])
    assert [row["key"] for row in files.rows()] == ["a", "b"]


def test_a_grid_that_fails_as_a_whole_leaves_the_record_of_another_one(tmp_path: Path) -> None:
    files = GridFiles(tmp_path / "grid.png")
    failed = {"format": FORMAT, "key": "b", FAILURE: "no network"}
    files.append([ROW, failed])
    files.discard(["b", "c"])
    assert list(files.rows()) == [ROW]
    files.discard(["a"])
    assert not files.record.exists()


def test_a_record_of_failures_alone_does_not_let_a_picture_be_replaced(tmp_path: Path) -> None:
    files = GridFiles(tmp_path / "cat.png")
    files.append([{"format": FORMAT, "key": "b", FAILURE: "no network"}])
    assert not files.lacks_pictures()
    assert not files.lacks_pictures(["b"])
    files.append([ROW])
    assert files.lacks_pictures(["a", "b"])


def test_whether_any_picture_is_there_opens_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = GridFiles(tmp_path / "grid.png")
    for number, key in enumerate(("a", "b", "c")):
        picture = files.write(number, key, Image.new("RGB", (8, 8)), "i")
        files.append([ROW | {"key": key, "picture": picture}])
    opened: list[Path] = []
    monkeypatch.setattr("hnetkit.generate.grids.files.open_image", opened.append)
    assert files.has_any(["b", "c"])
    assert len(opened) == 1
    assert not files.has_any(["d"])
    assert files.done(["a", "b", "d"]).keys() == {"a", "b"}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="what is flushed is told by /proc")
@pytest.mark.parametrize("step", ["merge", "finish"])
def test_a_part_is_removed_only_after_its_lines_and_their_name_are_on_the_disk(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = GridFiles(tmp_path / "grid.png")
    GridFiles(tmp_path / "grid.png", 1).append([ROW])
    events = recorded_disk(monkeypatch)
    if step == "merge":
        files.merge_records()
    else:
        files.finish([ROW])
    removal = events.index(("unlink", str(files.folder / "process-1.jsonl")))
    assert ("fsync", str(tmp_path)) in events[:removal]
