"""Networks saved on Macs and other devices: their tensors are arrays within the pickle, and the same network."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.networks import a1111_network, save_pt
from support.other_devices import Reduced, Saved, as_array, as_cpu_tensor, elsewhere

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import DamagedFile, UnsafeFile, UnsupportedNetwork
from hnetkit.formats.numpy_values import SpelledBytes, SpelledText
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.loading.extra_networks import read_vectors
from hnetkit.hashes import damaged_parts


def with_pickle(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """Writes a torch zip anew with another pickle."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zip_:
        for name, data in members.items():
            zip_.writestr(name, change(data) if name.endswith("data.pkl") else data)
    return path


def of_2022(pickled: bytes) -> bytes:
    """As numpy before 2 names its modules."""
    return pickled.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def of_xla(pickled: bytes) -> bytes:
    """As torch before 1.8 names the global."""
    return pickled.replace(b"_rebuild_device_tensor_from_numpy\n", b"_rebuild_xla_tensor\n")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("widths", [(8, 12), (320,)], ids=["tensors that are short", "tensors that are long"])
@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("saved", [as_array, as_cpu_tensor])
def test_a_network_of_another_device_is_the_one_of_this_device(
    tmp_path: Path, saved: Saved, container: Any, widths: tuple[int, ...], dtype: torch.dtype
) -> None:
    content = a1111_network(widths, dtype=dtype, scale=0.01)
    here = hnetkit.load(save_pt(content, tmp_path / "here.pt", container))
    there = hnetkit.load(save_pt(elsewhere(content, saved), tmp_path / "there.pt", container))
    assert there.content_hash == here.content_hash
    assert there.metadata == here.metadata
    for width, side, key, tensor in here.each_tensor():
        assert torch.equal(
            getattr(there.mlps[width], {"k": "key", "v": "value"}[side]).tensors[key].torch(), tensor.torch()
        )


@pytest.mark.parametrize("renamed", [of_2022, of_xla])
def test_the_names_that_older_libraries_wrote_are_read(tmp_path: Path, renamed: Callable[[bytes], bytes]) -> None:
    content = a1111_network()
    path = save_pt(elsewhere(content, as_array), tmp_path / "there.pt")
    before = path.read_bytes()
    assert with_pickle(path, renamed).read_bytes() != before
    assert hnetkit.load(path) == hnetkit.load(save_pt(content, tmp_path / "here.pt"))


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_it_is_converted_indexed_and_validated_like_any_other(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_pt(elsewhere(a1111_network((320,)), as_array), tmp_path / "there.pt")
    assert run(["validate", str(path)]) == 0
    assert run(["convert", str(path), str(tmp_path / f"new.{suffix}")]) == 0
    assert hnetkit.load(tmp_path / f"new.{suffix}") == hnetkit.load(path)
    assert run(["inspect", "--json", str(path)]) == 0
    assert hnetkit.load(path).content_hash in capsys.readouterr().out


def test_a_network_whose_pickle_is_larger_than_any_structure_is_read_without_its_weights(tmp_path: Path) -> None:
    content = a1111_network((1280,), dtype=torch.float32)
    path = save_pt(elsewhere(content, as_array), tmp_path / "there.pt")
    with zipfile.ZipFile(path) as zip_:
        assert zip_.getinfo("there/data.pkl").file_size > 64 << 20
    net = hnetkit.load(path)
    assert net == hnetkit.load(save_pt(content, tmp_path / "here.pt"))
    assert damaged_parts(net) == []
    data = bytearray(path.read_bytes())
    middle = data.index(b"a", len(data) // 2)
    data[middle] = ord("b")
    path.write_bytes(data)
    assert damaged_parts(hnetkit.load(path)) == ["there/data.pkl"]


def test_a_textual_inversion_of_a_mac_is_read(tmp_path: Path) -> None:
    vectors = torch.randn(2, 768)
    path = save_pt({"string_to_token": {"*": 265}, "string_to_param": {"*": as_array(vectors)}}, tmp_path / "word.pt")
    assert torch.equal(read_vectors(path)["clip_l"], vectors)


# --- what is no tensor is refused


def network_with(first: Any) -> dict[Any, Any]:
    content = a1111_network((8,))
    content[8][0]["linear.0.weight"] = first
    return content


ODD: dict[str, tuple[Callable[[torch.Tensor], Any], type[Exception]]] = {
    "whole numbers": (lambda t: as_array(t, t.numpy().astype(np.int32)), UnsupportedNetwork),
    "another byte order": (lambda t: as_array(t, t.numpy().astype(">f4")), UnsupportedNetwork),
    "columns first": (lambda t: as_array(t, np.asfortranarray(t.numpy())), UnsupportedNetwork),
    "objects": (lambda t: as_array(t, np.array([None, "x"])), UnsupportedNetwork),
    "another type than the array's": (lambda t: as_array(t, dtype=torch.float16), UnsupportedNetwork),
    "another type than the tensor's": (lambda t: as_cpu_tensor(t, torch.float16), UnsupportedNetwork),
    "a type that is no number's": (lambda t: as_array(t, dtype=torch.quint8), UnsafeFile),
    "no array": (lambda t: as_array(t, [1.0, 2.0]), UnsafeFile),
    "no tensor": (lambda t: Reduced(torch._utils._rebuild_device_tensor_from_cpu_tensor, 5, t.dtype, 0, 0), UnsafeFile),
    "a shape of another network": (lambda t: as_array(t[:3]), DamagedFile),
}


@pytest.mark.parametrize("case", list(ODD))
def test_what_a_tensor_of_another_device_cannot_be_is_refused(tmp_path: Path, case: str) -> None:
    make, error = ODD[case]
    with pytest.raises(error) as refused:
        hnetkit.load(save_pt(network_with(make(torch.ones(16, 8))), tmp_path / "odd.pt"))
    assert str(refused.value).startswith(str(tmp_path / "odd.pt"))


@pytest.mark.parametrize("width", [8, 320], ids=["short", "long"])
def test_a_text_that_spells_another_number_of_bytes_is_damage(tmp_path: Path, width: int) -> None:
    values = np.ones((2 * width, width), np.float32)
    content = a1111_network((width,))
    content[width][0]["linear.0.weight"] = as_array(torch.ones(1), values)
    path = save_pt(content, tmp_path / "odd.pt")
    one = np.float32(1).tobytes().decode("latin-1").encode()
    # the text has as many bytes as before, and one character less
    with_pickle(path, lambda pickled: pickled.replace(one * 2, one + "\0é\xc0".encode(), 1))
    with pytest.raises(DamagedFile):
        assert hnetkit.load(path).content_hash


def test_a_text_of_letters_that_are_no_bytes_is_damage(tmp_path: Path) -> None:
    content = a1111_network((320,))
    content[320][0]["linear.0.weight"] = as_array(torch.ones(1), np.full((640, 320), 1.5, np.float32))
    path = save_pt(content, tmp_path / "odd.pt")
    old = np.float32(1.5).tobytes().decode("latin-1").encode()
    with_pickle(path, lambda pickled: pickled.replace(old * 3, "水水水水".encode() + old[-3:], 1))
    with pytest.raises(DamagedFile, match=r"odd\.pt"):
        assert hnetkit.load(path).content_hash


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_part_of_spelled_bytes_is_that_part(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 5))
    plain = np.random.default_rng(seed).integers(0, 256, (3 << 20) + seed, np.uint8).tobytes()
    before = b"x" * data.draw(st.integers(0, 3))
    path = tmp_path_factory.mktemp("spelled") / "f"
    text = plain.decode("latin-1").encode()
    path.write_bytes(before + text + b"\xc3")
    with OpenFile(path) as file:
        spelled = SpelledBytes(SpelledText(file, len(before), len(text)), len(plain))
        for _ in range(20):
            start = data.draw(st.integers(0, len(plain)))
            size = data.draw(st.integers(0, min(len(plain) - start, 1 << 18)))
            assert spelled.read_at(start, size) == plain[start : start + size]


# --- what a refusal says


class Runs:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, ("echo ran > ran",)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["style.pt", "style.txt"])
def test_a_bare_pickle_that_runs_something_is_named_as_an_attack(
    tmp_path: Path, name: str, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"a": Runs()}, protocol))
    assert run(["inspect", str(tmp_path / name)]) == 7
    said = capsys.readouterr().err
    assert "a bare pickle that asks for posix.system" in said or "nt.system" in said
    assert "do not load this file with any program" in said


@pytest.mark.parametrize("text", ["cats\nand dogs\n.", "could not find it\nsorry\n", "(lp0\n.", "I am a text.", "."])
def test_a_text_that_looks_like_a_pickle_is_a_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pt").write_text(text)
    with pytest.raises(hnetkit.errors.NotAHypernetwork) as refused:
        hnetkit.load(tmp_path / "a.pt")
    assert refused.value.kind == "text"


MERE_DATA = {
    "a path": Path("x"),
    "a device": torch.device("cpu"),
    "a module": torch.nn.Linear(2, 2),
    "a set": {1, 2},
}


@pytest.mark.parametrize("what", list(MERE_DATA))
def test_an_object_that_is_no_attack_is_not_called_one(tmp_path: Path, what: str) -> None:
    with pytest.raises(UnsafeFile, match="holds an object of") as refused:
        hnetkit.load(save_pt(a1111_network((8,), extra=MERE_DATA[what]), tmp_path / "a.pt"))
    assert refused.value.hint == "save it again with nothing but tensors, numbers and text in it"


@pytest.mark.parametrize("name", ["os.system", "torch.hub.load", "torch.nn.modules.module.warnings.sys", "made.Up"])
def test_a_global_that_may_run_something_is_named_as_an_attack(tmp_path: Path, name: str) -> None:
    path = save_pt(a1111_network((8,), extra=torch.device("cpu")), tmp_path / "a.pt")
    module, _, attribute = name.rpartition(".")
    with_pickle(path, lambda pickled: pickled.replace(b"ctorch\ndevice\n", f"c{module}\n{attribute}\n".encode()))
    with pytest.raises(UnsafeFile, match=rf"asks for {name}") as refused:
        hnetkit.load(path)
    assert "do not load this file with any program" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"error":"Model not found"}', 'a JSON text, not a hypernetwork: {"error":"Model not found"}'),
        (b"Access denied: sign in", "a text, not a hypernetwork: Access denied: sign in"),
        (b"<html><style>a{}</style><body>Sign <b>in</b></body>", "not a hypernetwork: Sign in"),
    ],
)
def test_a_text_in_the_place_of_a_file_is_quoted(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "ink.pt").write_bytes(content)
    with pytest.raises(hnetkit.errors.NotAHypernetwork) as refused:
        hnetkit.load(tmp_path / "ink.pt")
    assert str(refused.value).endswith(said)


@pytest.mark.parametrize("content", [b"a secret", b'{"token": "secret"}', b"<html>secret</html>"])
def test_nothing_is_quoted_of_a_text_behind_a_link(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "of a stranger"
    folder.mkdir()
    (tmp_path / "private").write_bytes(content)
    (folder / "ink.pt").symlink_to(tmp_path / "private")
    with pytest.raises(hnetkit.errors.NotAHypernetwork, match="it is a link, so nothing of it is quoted") as refused:
        hnetkit.load(folder / "ink.pt")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(("size", "said"), [(0, "an empty file"), (9000, "begins with nothing but zeros")])
def test_zeros_are_not_an_empty_file(tmp_path: Path, size: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ink.pt").write_bytes(bytes(size))
    assert run(["inspect", str(tmp_path / "ink.pt")]) == 7
    assert said in capsys.readouterr().err


def test_every_damage_has_a_next_step(tmp_path: Path) -> None:
    data = save_pt(a1111_network((320,)), tmp_path / "ink.pt").read_bytes()
    for size in (100, 5000, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:size])
        with pytest.raises(DamagedFile) as refused:
            hnetkit.load(tmp_path / "cut.pt")
        assert refused.value.hint == "get the file again from its source"


def test_a_torch_file_that_was_zipped_again_says_how_to_pack_it(tmp_path: Path) -> None:
    path = save_pt(a1111_network((320,)), tmp_path / "ink.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "again.pt", "w", zipfile.ZIP_DEFLATED) as again:
        for name in source.namelist():
            again.writestr(name, source.read(name))
    with pytest.raises(UnsafeFile, match="is compressed") as refused:
        hnetkit.load(tmp_path / "again.pt")
    assert "zip -0 -r -D -X" in str(refused.value.hint)
