"""A file that another program would take for something else is refused, whatever it is for hnetkit."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import hostile_files, networks

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import UnsafeFile, UnsupportedNetwork
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.polyglot import is_tar

PAYLOAD = b"cbuiltins\nexec\n(" + hostile_files.text('open("marker", "w").close()') + b"tR."


def checksummed(data: bytes, form: str = "%06o\0 ") -> bytes:
    """The same with the checksum of a tar header in its place."""
    block = data[:148] + b" " * 8 + data[156:512]
    return data[:148] + (form % sum(block)).encode() + data[156:]


def legacy_tar() -> bytes:
    """A note spans the fields of a tar header, and the member behind it that torch unpickles first."""
    storages = io.BytesIO()
    with tarfile.open(fileobj=storages, mode="w:", format=tarfile.USTAR_FORMAT) as archive:
        member = tarfile.TarInfo("storages")
        member.size = len(PAYLOAD)
        archive.addfile(member, io.BytesIO(PAYLOAD))

    def file(note: bytes) -> bytes:
        noted = hostile_files.text("note") + b"X" + struct.pack("<I", len(note)) + note
        return hostile_files.legacy_of(b"\x80\x02}(" + noted + hostile_files.network()[4:])

    start = file(b"@").index(b"@")
    return checksummed(file(bytes(512 - start) + storages.getvalue()))


def safetensors_tar() -> bytes:
    """JSON text holds no zeros, but a tar's numbers may be spaces."""
    note = json.dumps(" " * 600)
    stated = {"note": note, "format": "hnetkit.hypernetwork", "format_version": "1"}
    header = {"__metadata__": stated, **hostile_files.ours(a=[0, 16], b=[16, 32])}
    header["__metadata__"] = stated
    data = hostile_files.safetensors_of(header, bytes(32))
    return checksummed(data, "%06o  ")


def safetensors_pickle() -> bytes:
    """The first byte of the header's length is the opcode of a short text, the second its length; then text after
    text leads the pickle through the header, into a tensor.
    """
    tensors = {
        f"4.{side}.linear.0.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [begin, begin + 64]}
        for side, begin in (("k", 0), ("v", 64))
    }
    stated = {"format": "hnetkit.hypernetwork", "format_version": "1", "n": "@"}
    start, end = json.dumps({**tensors, "__metadata__": stated}, separators=(",", ":")).encode().split(b"@")
    size, landing = ord("U") + 256 * 250, 2 + 250
    note = b'\\"' + b" " * (landing - 8 - len(start) - 2)
    hops = (size - len(start) - len(note) - len(end) - 2) // 128
    note += (b"U~" + b"-" * 126) * hops
    left = size - len(start) - len(note) - len(end) - 2
    note += (b"U~" + b"-" * 126)[:left] + b'\\"'
    behind = (128 - left) % 128 - len(end) - 2
    assert 0 <= behind < 60, behind
    return hostile_files.safetensors_of(start + note + end, (b"-" * behind + PAYLOAD).ljust(128, b"\0"))


def legacy_with(tail: bytes) -> bytes:
    """A good legacy file whose last storage, of no tensor of the network, ends with other bytes."""
    numel = -(-len(tail) // 4)
    more = hostile_files.text("more") + hostile_files.tensor("2", numel=numel, shape=(numel,), stride=(1,))
    good = hostile_files.legacy_of(hostile_files.network(metadata=more), keys=("0", "1", "2"))
    return good + struct.pack("<q", numel) + tail.rjust(4 * numel, b"\0")


def safetensors_with(tail: bytes) -> bytes:
    """A good safetensors file whose last tensor, a slope, ends with other bytes."""
    numel = -(-len(tail) // 4)
    header = hostile_files.ours(a=[0, 16], b=[16, 32])
    header["2.v.linear.1.weight"] = {"dtype": "F32", "shape": [numel], "data_offsets": [32, 32 + 4 * numel]}
    return hostile_files.safetensors_of(header, bytes(32) + tail.rjust(4 * numel, b"\0"))


def other_zip(comment: bytes = b"") -> bytes:
    data = hostile_files.zip_of(hostile_files.meta(hostile_files.CALL_SYSTEM))
    return data[:-2] + struct.pack("<H", len(comment)) + comment


def safetensors_gzip() -> bytes:
    """The length of its header is that of a gzip's."""
    size = int.from_bytes(b"\x1f\x8b\x08", "little")
    header = json.dumps(hostile_files.ours(a=[0, 16], b=[16, 32])).encode()
    return hostile_files.safetensors_of(header.ljust(size), bytes(32))


def with_hdf5(make: Callable[[bytes], bytes]) -> bytes:
    mark = b"\x89HDF\r\n\x1a\n"
    at = make(b"\1" * 4096).index(b"\1" * 4096)
    return make(bytes(2048 - at) + mark + bytes(2048 + at - len(mark)))


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "legacy, tar": ("a tar archive", legacy_tar),
    "safetensors, tar": ("a tar archive", safetensors_tar),
    "safetensors, pickle": ("a pickle", safetensors_pickle),
    "legacy, zip": ("a zip archive", lambda: legacy_with(other_zip())),
    "safetensors, zip": ("a zip archive", lambda: safetensors_with(other_zip())),
    "legacy, zip with a comment": ("a zip archive", lambda: legacy_with(other_zip(b"-" * 60_000))),
    "safetensors, zip with a comment": ("a zip archive", lambda: safetensors_with(other_zip(b"-" * 60_000))),
    "safetensors, gzip": ("a gzip archive", safetensors_gzip),
    "legacy, HDF5": ("an HDF5 file", lambda: with_hdf5(legacy_with)),
    "safetensors, HDF5": ("an HDF5 file", lambda: with_hdf5(safetensors_with)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_two_meanings_is_refused_and_says_which(name: str, tmp_path: Path) -> None:
    meaning, make = FILES[name]
    path = tmp_path / "ink.pt"
    path.write_bytes(make())
    with pytest.raises(UnsafeFile, match=f"ink.pt: is {meaning} as well: other programs may .* run code") as refusal:
        hnetkit.load(path)
    assert "with any program" in str(refusal.value.hint)


@pytest.mark.parametrize("make", [legacy_tar, safetensors_tar])
def test_python_takes_these_for_tars(make: Callable[[], bytes]) -> None:
    with tarfile.open(fileobj=io.BytesIO(make()), mode="r:") as archive:
        assert archive.getnames()[1:] == (["storages"] if make is legacy_tar else [])


@pytest.mark.parametrize("make", [legacy_with, safetensors_with])
def test_python_takes_these_for_zips(make: Callable[[bytes], bytes]) -> None:
    with zipfile.ZipFile(io.BytesIO(make(other_zip()))) as archive:
        assert "archive/data.pkl" in archive.namelist()


def test_pickle_runs_a_call_in_this_safetensors_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.load(io.BytesIO(safetensors_pickle()))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "call", [PAYLOAD, b"(ios\nsystem\n", b"V\n\x8c\2os\x8c\6system\x93.", b"I1\nS'os'\nq\1h\1\x93."]
)
def test_every_import_of_a_pickle_at_the_beginning_is_seen(call: bytes, tmp_path: Path) -> None:
    data = safetensors_pickle()
    (tmp_path / "a.pt").write_bytes(data[: data.index(PAYLOAD)] + call.ljust(len(PAYLOAD), b"\0") + data[-10:])
    with pytest.raises(UnsafeFile):
        hnetkit.load(tmp_path / "a.pt")


@pytest.mark.parametrize("make", [legacy_with, safetensors_with])
@pytest.mark.parametrize("tail", [b"PK\5\6" + bytes(12) + b"abc", b"PK\5\6" + b"\x11" * 40, b"PK\1\2" * 90], ids=len)
def test_a_few_signs_of_a_zip_among_the_weights_do_not_matter(
    make: Callable[[bytes], bytes], tail: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.pt").write_bytes(make(tail))
    assert not zipfile.is_zipfile(tmp_path / "a.pt") or tail[4] == 0x11
    if make is legacy_with:
        assert hnetkit.load(tmp_path / "a.pt").widths == [2]


def test_headers_of_every_length_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length in range(700):
        path.write_bytes(hostile_files.good_safetensors(json.dumps("a note. "[: length % 9] + "x" * length)))
        assert hnetkit.load(path).widths == [2]


@pytest.mark.parametrize(
    "field",
    [
        *("%06o\0 ", "%07o\0", "%7o\0", "%08o", " %6o ", "0o%o\0", "+%o\0", "0_%o\0", "\t%o\n", "%o"),
        *("%d\0", "-%o\0", "x%o", "%o8", "\0%o"),
    ],
)
@pytest.mark.parametrize("fill", [0, 32, 65, 200])
def test_a_tar_is_what_python_takes_for_one(field: str, fill: int) -> None:
    body = bytearray(512)
    body[:100], body[345:500] = bytes([fill]) * 100, bytes([fill]) * 155
    for signed in (False, True):
        rest = bytes(body[:148]) + b" " * 8 + bytes(body[156:])
        total = sum(struct.unpack("512b", rest)) if signed else sum(rest)
        for text in ((field % abs(total)).encode(), b"\x80" + total.to_bytes(7, "big", signed=True)):
            body[148:156] = text.ljust(8, b"\0")[:8]
            assert is_tar(bytes(body)) == _python_takes(bytes(body)), text
        body[148:156] = b"\xff" + total.to_bytes(7, "big", signed=True)
        assert is_tar(bytes(body)) == _python_takes(bytes(body))


def _python_takes(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def test_a_legacy_file_describes_its_machine_in_numbers_only(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for more in (b"C\1x", hostile_files.text("x"), b"](K\1e", b"}(" + hostile_files.text("a") + b"]u"):
        plain = hostile_files.legacy_of(hostile_files.network())
        path.write_bytes(plain.replace(b"\x88u.", b"\x88" + hostile_files.text("type_sizes") + more + b"u.", 1))
        with pytest.raises(UnsafeFile, match="more than numbers"):
            hnetkit.load(path)


def test_validate_scan_and_link_refuse_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "home"))
    folder, webui = tmp_path / "networks", tmp_path / "webui"
    folder.mkdir()
    (webui / "models" / "hypernetworks").mkdir(parents=True)
    (folder / "ink.pt").write_bytes(legacy_tar())
    (folder / "good.pt").write_bytes(hostile_files.good())
    assert run(["validate", str(folder / "ink.pt")]) == 7
    assert run(["inspect", str(folder / "ink.pt"), "--json"]) == 7
    assert "is a tar archive as well" in capsys.readouterr().out
    assert run(["scan", str(folder)]) == 0
    assert run(["link", str(webui), "--layout", "a1111"]) == 0
    assert [path.name for path in (webui / "models" / "hypernetworks").iterdir()] == ["good.pt"]
    assert run(["link", str(webui), "--layout", "a1111", "ink"]) != 0


def test_what_gzip_unpacks_begins_as_that_file(tmp_path: Path) -> None:
    assert gzip.compress(b"x")[:3] == safetensors_gzip()[:3]
    (tmp_path / "a").write_bytes(safetensors_gzip())
    assert OpenFile(tmp_path / "a").size > 500_000


def seen(*behind: bytes) -> bytes:
    """A tensor with other arguments behind its shape and strides."""
    made = hostile_files.tensor()
    return made[: made.rindex(b"\x89" + hostile_files.ORDERED_DICT)] + b"".join(behind) + b"tR"


def network_of(first: bytes, second: bytes) -> bytes:
    text, side = hostile_files.text, hostile_files.side
    tensors = text("linear.0.weight") + first + text("linear.1.weight") + second
    return b"\x80\x02}(K\x02" + hostile_files.items(hostile_files.ORDERED_DICT + b"(" + tensors + b"u", side()) + b"u."


HALF = b"ctorch\nHalfStorage\n"
MARKED = b"}" + hostile_files.text("neg") + b"\x88s"
HALVES = {"numel": 16, "shape": (2, 4), "stride": (4, 1), "storage": HALF}
NAMED_FIRST = hostile_files.items(
    *map(hostile_files.text, ("storage",)), HALF, hostile_files.text("0"), hostile_files.text("cpu"), b"K\x10"
)
DIFFERENT: dict[str, tuple[str, bytes]] = {
    "marked as negative": (
        "differs from its stored bytes",
        hostile_files.network(seen(b"\x89", hostile_files.ORDERED_DICT, MARKED)),
    ),
    "with hooks": ("differs from its stored bytes", hostile_files.network(seen(b"\x89", b"](Ne", b"N"))),
    "of a storage of two types": (
        "disagree about one storage",
        network_of(hostile_files.tensor(), hostile_files.tensor(**HALVES)),  # type: ignore[arg-type]
    ),
    "of a storage that was named before": (
        "disagree about one storage",
        b"\x80\x02" + NAMED_FIRST + b"Q0" + hostile_files.network()[2:],
    ),
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("name", DIFFERENT)
def test_weights_that_torch_would_read_otherwise_are_refused(name: str, container: str, tmp_path: Path) -> None:
    said, made = DIFFERENT[name]
    path = tmp_path / "ink.pt"
    path.write_bytes(hostile_files.zip_of(made) if container == "zip" else hostile_files.legacy_of(made))
    with pytest.raises(UnsafeFile, match=said):
        hnetkit.load(path)


@pytest.mark.parametrize("name", ["marked as negative", "of a storage of two types"])
def test_torch_reads_these_otherwise(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ink.pt"
    path.write_bytes(hostile_files.zip_of(DIFFERENT[name][1]))
    first = torch.load(path, weights_only=True)[2][0]
    assert first["linear.0.weight"].sum() < 0 or first["linear.1.weight"].dtype == torch.float32


def test_a_tensor_that_is_marked_as_nothing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ink.pt"
    path.write_bytes(hostile_files.zip_of(hostile_files.network(seen(b"\x89", hostile_files.ORDERED_DICT, b"N"))))
    assert hnetkit.load(path).widths == [2]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_numpy_value_is_read_in_its_own_order_of_bytes(order: str, tmp_path: Path) -> None:
    text, items = hostile_files.text, hostile_files.items
    kind = b"cnumpy\ndtype\n" + items(text("i2"), b"\x89", b"\x88") + b"R" + items(b"K\x03", text(order), b"N") + b"b"
    data = b"C\x02" + (515).to_bytes(2, "big" if order == ">" else "little")
    step = b"cnumpy.core.multiarray\nscalar\n" + items(kind, data) + b"R"
    (tmp_path / "ink.pt").write_bytes(hostile_files.zip_of(hostile_files.meta(step, key="step")))
    assert hnetkit.load(tmp_path / "ink.pt").step == 515


def reversed_file(folder: Path) -> Path:
    content = networks.a1111_network((8,), (1, 1, 1))
    content[8] = tuple(dict(reversed(side.items())) for side in content[8])
    return networks.save_pt(content, folder / "back.pt")


def test_layers_out_of_order_are_warned_about_and_put_in_order(tmp_path: Path) -> None:
    path = reversed_file(tmp_path)
    net = hnetkit.load(path)
    assert any("ComfyUI" in warning for warning in net.warnings)
    hnetkit.save(net, tmp_path / "mended.pt")
    mended = hnetkit.load(tmp_path / "mended.pt")
    assert not any("ComfyUI" in warning for warning in mended.warnings)
    assert mended.content_hash == net.content_hash
    names = [name for name in torch.load(tmp_path / "mended.pt")[8][0] if name.endswith("weight")]
    assert names == ["linear.0.weight", "linear.1.weight"]


def test_layers_that_the_safetensors_library_sorted_by_name_are_put_in_order(tmp_path: Path) -> None:
    path = networks.network_file(tmp_path, widths=(8,), structure=(1,) * 13)
    hnetkit.save(hnetkit.load(path), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        stated = file.metadata()
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", metadata=stated)
    hnetkit.save(hnetkit.load(tmp_path / "b.safetensors"), tmp_path / "b.pt")
    names = [name for name in torch.load(tmp_path / "b.pt")[8][0] if name.endswith("weight")]
    assert names == [f"linear.{number}.weight" for number in range(12)]


def safetensors_that_say(tmp_path: Path, **stated: str) -> Path:
    hnetkit.save(hnetkit.load(networks.network_file(tmp_path)), tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        said = file.metadata() | stated
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors", metadata=said)
    return tmp_path / "b.safetensors"


def test_a_header_whose_topology_is_not_the_networks_is_warned_about(tmp_path: Path) -> None:
    topology = json.dumps({"activation": "relu", "activate_output": False, "layer_norm": False})
    net = hnetkit.load(safetensors_that_say(tmp_path, topology=topology))
    assert [w for w in net.warnings if "topology" in w] == ["its header's topology says activation relu; it is linear"]


def test_a_later_version_of_the_convention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedNetwork, match="version 2 of hnetkit's format"):
        hnetkit.load(safetensors_that_say(tmp_path, format_version="2"))


def test_a_width_of_a_numpy_type_is_warned_about(tmp_path: Path) -> None:
    content = {np.int64(key) if isinstance(key, int) else key: item for key, item in networks.a1111_network().items()}
    net = hnetkit.load(networks.save_pt(content, tmp_path / "ink.pt"))
    assert "the width 8 is written as a numpy number" in net.warnings
