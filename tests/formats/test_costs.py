"""Reading costs no more than a small multiple of what a file is, and one file's failure is that file's alone."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support import hostile_files
from support.hostile_files import again_and_again, good_safetensors, meta, text, zip_of

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import FileChanged, FileRefused, NotFound, UnreadableFile
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import MAX_FILE, identify, translating_unforeseen
from hnetkit.hashes import hash_file
from hnetkit.inspection import examine
from hnetkit.library.scan import scan
from hnetkit.registry.store import Registry
from hnetkit.text import shorten

LONG_TEXT = text("x" * 20_000)


@pytest.mark.parametrize("kind", ["text", "bytes", "list", "number", "dict"])
def test_a_strangers_value_is_shortened_before_it_is_text(kind: str) -> None:
    long = "x" * 10**7
    values = {"text": long, "bytes": long.encode(), "list": [long] * 10**5, "number": 1 << 10**6, "dict": {"a": [long]}}
    value = values[kind]
    tracemalloc.start()
    try:
        assert len(shorten(value)) <= 60
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("value", "text"),
    [("a b", "a b"), ([1, 2.5, "a"], "[1, 2.5, 'a']"), ((1,), "(1)"), (None, "None"), ([[[[1]]]], "[[[…]]]")],
)
def test_a_short_value_is_shown_as_it_is(value: object, text: str) -> None:
    assert shorten(value) == text


@pytest.mark.parametrize("key", ["is_layer_norm", "dropout_structure", "layer_structure", "activate_output", "step"])
def test_a_long_value_under_a_known_key_is_a_short_warning(key: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_of(meta(again_and_again(LONG_TEXT, 10), key=key)))
    found = examine(path)
    assert found.network is not None
    assert sum(map(len, found.network.warnings)) < 500
    assert (key in ("activate_output", "step")) != any(key in warning for warning in found.network.warnings)
    assert found.as_row()["layer_structure"] == [1, 2, 1]


def test_a_structure_of_text_is_not_multiplied_by_the_width(tmp_path: Path) -> None:
    path, width = tmp_path / "a.safetensors", 20_000
    shapes = {"0": [1, width], "1": [width, 1]}
    header: dict[str, object] = {}
    for number, (side, index) in enumerate((s, i) for s in "kv" for i in shapes):
        places = [4 * width * number, 4 * width * (number + 1)]
        header[f"{width}.{side}.linear.{index}.weight"] = {
            "dtype": "F32",
            "shape": shapes[index],
            "data_offsets": places,
        }
    note = json.dumps(["x" * 100_000, 1, 1])
    stated = {"format": "hnetkit.hypernetwork", "format_version": "1", "layer_structure": note}
    path.write_bytes(hostile_files.safetensors_of({"__metadata__": stated, **header}, bytes(16 * width)))
    tracemalloc.start()
    try:
        assert hnetkit.load(path).layer_structure == [1, 1 / width, 1]
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_metadata_that_is_read_is_as_small_where_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_of(meta(again_and_again(LONG_TEXT, 12))))
    net = hnetkit.load(path)
    hnetkit.save(net, tmp_path / "b.safetensors")
    assert hnetkit.load(tmp_path / "b.safetensors").metadata == net.metadata
    assert (tmp_path / "b.safetensors").stat().st_size < 300_000


def test_what_is_not_carried_over_is_named_in_short(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_of(hostile_files.network(metadata=b"".join(text(f"{n}" * 50) + b"C\1x" for n in range(900)))))
    names = hnetkit.load(path).not_carried
    assert (len(names), names[-1]) == (21, "and more")
    assert max(map(len, names)) <= 60


def _pickle(size: int) -> bytes:
    return zip_of(meta(b"](" + b"]" * size + b"e"))


def _storages(size: int) -> bytes:
    count = size // 30
    more = b"".join(
        text(f"n{n}") + hostile_files.tensor(str(n + 2), numel=1, shape=(1,), stride=(1,)) for n in range(count)
    )
    keys = tuple(map(str, range(count + 2)))
    data = hostile_files.legacy_of(hostile_files.network(metadata=more), keys=keys)
    return data + (struct.pack("<q", 1) + bytes(4)) * count


def _header(size: int) -> bytes:
    return good_safetensors("[" + "1," * size + "1]")


def _widths(size: int) -> bytes:
    return zip_of(
        b"\x80\x02}(" + b"".join(b"M" + struct.pack("<H", n % 60_000) + b"}}\x86" for n in range(size)) + b"u."
    )


@pytest.mark.parametrize("make", [_pickle, _storages, _header, _widths])
def test_a_file_of_four_times_the_size_takes_about_four_times_as_long(
    make: Callable[[int], bytes], tmp_path: Path
) -> None:
    def seconds(size: int) -> float:
        path = tmp_path / f"{size}.pt"
        path.write_bytes(make(size))
        return min(once(path) for _ in range(3))  # on a busy machine each may be slow

    def once(path: Path) -> float:
        started = time.process_time()
        with OpenFile(path) as file:
            identify(file)
        return time.process_time() - started

    seconds(100)
    assert seconds(60_000) < 10 * seconds(15_000) + 0.2
    assert seconds(60_000) < 3


def test_hashes_of_many_views_are_those_of_each(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    hnetkit.save(hnetkit.load(_saved(tmp_path)), path)
    net = hnetkit.load(path)
    assert hash_file(OpenFile(path), net).content_hash == net.content_hash


def _saved(folder: Path) -> Path:
    path = folder / "views.pt"
    views = b"".join(
        text(f"linear.{i}.weight") + hostile_files.tensor(numel=600, offset=7 * i, shape=(3, 3), stride=(3, 1))
        for i in range(60)
    )
    side = hostile_files.ORDERED_DICT + b"(" + views + b"u"
    path.write_bytes(zip_of(b"\x80\x02}K\3" + side + side + b"\x86s.", storages=(os.urandom(2400),)))
    return path


# --- one file's failure


@pytest.mark.parametrize("error", [RecursionError("deep"), OverflowError("large"), ValueError("x\ny")])
def test_whatever_reading_raises_refuses_that_file(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(hostile_files.good())
    with pytest.raises(UnreadableFile, match=r"a\.pt: ") as refusal, translating_unforeseen(OpenFile(path)):
        raise error
    assert "defect" in str(refusal.value.hint)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), MemoryError(), NotFound("gone"), FileChanged("changed")]
)
def test_a_failing_disk_a_full_memory_and_a_file_that_changes_stay_what_they_are(
    error: Exception, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(hostile_files.good())
    with pytest.raises(type(error)) as raised, translating_unforeseen(OpenFile(path)):
        raise error
    assert raised.value is error


@pytest.mark.parametrize("place", ["zlib.crc32", "hashlib.sha256"])
def test_a_file_that_cannot_be_read_is_stored_as_refused_and_not_read_again(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of Python that fails stands for the defect that nobody knows."""
    folder = tmp_path / "networks"
    folder.mkdir()
    (folder / "a.pt").write_bytes(hostile_files.good())
    calls = []

    def fail(*arguments: object) -> int:
        calls.append(arguments)
        raise OverflowError("nobody foresaw this")

    registry = Registry(tmp_path / "registry.db")
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        if place == "zlib.crc32":
            with pytest.raises(FileRefused, match="OverflowError: nobody foresaw this"):
                hnetkit.load(folder / "a.pt")
            assert examine(folder / "a.pt", hashes=False).verdict == "refused"
            (change,) = scan(registry, [folder])
            assert change.row is not None
            assert "nobody foresaw this" in change.row["reason"]
        else:
            with pytest.raises(UnreadableFile):
                examine(folder / "a.pt")
    made = len(calls)
    if place == "zlib.crc32":
        assert list(scan(registry, [folder])) == []
    assert len(calls) == made


# --- files of hardly anything but holes


@pytest.mark.parametrize("head", [b"", hostile_files.good(), good_safetensors(), b"\x89PNG\r\n\x1a\n"])
def test_a_file_of_holes_is_refused_and_not_hashed(head: bytes, tmp_path: Path) -> None:
    (tmp_path / "networks").mkdir()
    path = tmp_path / "networks" / "a.pt"
    path.write_bytes(head)
    os.truncate(path, 300 << 30)
    if OpenFile(path).bytes_on_disk() == 300 << 30:
        pytest.skip("this file system cannot store sparse files")
    found = examine(path)
    assert (found.verdict, found.hashes) == ("refused", None)
    assert "a sparse file: " in str(found.reason)
    assert run(["validate", str(path)]) == 7
    registry = Registry(tmp_path / "registry.db")
    (change,) = scan(registry, [tmp_path / "networks"])
    assert change.row is not None
    assert change.row["sha256"] is None
    assert list(scan(registry, [tmp_path / "networks"])) == []


def test_a_small_file_with_holes_is_read_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.touch()
    os.truncate(path, 3 << 20)
    assert path.stat().st_size < MAX_FILE
    assert examine(path).hashes is not None


def test_a_file_that_is_open_when_python_ends_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    ends = (
        "import ctypes, sys, hnetkit.formats.open_file as module; module.kept = module.OpenFile(sys.argv[1]); "
        "ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))"  # so its names are emptied first
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", ends, str(tmp_path / "a")], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stderr == ""


def test_a_header_that_nobody_would_read_again_is_not_written(tmp_path: Path) -> None:
    net = replace(hnetkit.load(_saved(tmp_path)), metadata={"note": "\u4e2d" * 2 * 10**6})
    with pytest.raises(FileRefused, match="its metadata"):
        hnetkit.save(net, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_header_of_several_megabytes_is_read_and_a_larger_one_is_not_called_cut_short(tmp_path: Path) -> None:
    for megabytes in (6, 11):
        tags = {"ss_tag_frequency": "a girl in a field, " * (megabytes * 55_000)}
        save_file({"a.lora_up.weight": torch.zeros(2, 2)}, tmp_path / f"{megabytes}.safetensors", metadata=tags)
    assert examine(tmp_path / "6.safetensors").kind == "lora"
    assert "at most 10,485,760 are read" in str(examine(tmp_path / "11.safetensors").reason)


def test_a_conversion_of_types_holds_a_part_of_a_tensor_at_a_time(tmp_path: Path) -> None:
    wide = {"linear.0.weight": torch.zeros(6000, 768).half(), "linear.1.weight": torch.zeros(768, 6000).half()}
    torch.save({768: (wide, wide)}, tmp_path / "wide.pt")
    net = hnetkit.load(tmp_path / "wide.pt")
    hnetkit.save(net, tmp_path / "first.safetensors", dtype="fp32")  # what Python itself loads for it
    tracemalloc.start()
    try:
        hnetkit.save(net, tmp_path / "second.safetensors", dtype="fp32")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # one tensor of fp32 has 18 MB
    finally:
        tracemalloc.stop()
    written = hnetkit.load(tmp_path / "second.safetensors")
    assert (written.dtype, written.widths) == ("fp32", [768])
