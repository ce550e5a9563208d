"""Converting from Python: the files and failures of `hnetkit convert`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import networks
from support.failing_disk import make_case_blind
from support.networks import network_file

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import FileRefused, OutputExists, UsageError
from hnetkit.formats.conversion import convert, convert_all


def test_many_files_become_what_the_command_makes_of_them(tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    for seed, name in enumerate(("ink", "glow")):
        network_file(tmp_path / "nets", f"{name}.pt", seed=seed)
    (tmp_path / "nets" / "broken.pt").write_bytes(b"no network")
    done, failures = convert_all([tmp_path / "nets"], "safetensors", out_dir=tmp_path / "python", dtype="fp16")
    assert [made.target.name for made in done] == ["glow.safetensors", "ink.safetensors"]
    (failure,) = failures
    assert isinstance(failure, FileRefused)
    assert "broken.pt" in str(failure)
    command = ["convert", "--to", "safetensors", "--dtype", "fp16", "--out-dir", str(tmp_path / "command")]
    assert run([*command, str(tmp_path / "nets")]) == 7
    for made in done:
        assert made.target.read_bytes() == (tmp_path / "command" / made.target.name).read_bytes()
        assert (made.dtype, made.content_hash) == ("fp16", hnetkit.load(made.target).content_hash)


def test_two_sources_of_one_name_are_refused_and_the_others_are_converted(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first = network_file(tmp_path / "a", "ink.pt", seed=1)
    second = network_file(tmp_path / "b", "ink.pt", seed=2)
    other = network_file(tmp_path / "a", "glow.pt", seed=3)
    done, failures = convert_all([first, second, other], "safetensors", out_dir=tmp_path / "out")
    assert [made.target.name for made in done] == ["glow.safetensors"]
    assert [type(failure) for failure in failures] == [UsageError, UsageError]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["glow.safetensors"]


def test_one_file_is_written_into_a_folder_under_its_own_name_and_replaced_only_when_asked(tmp_path: Path) -> None:
    source = network_file(tmp_path, "ink.pt", seed=1)
    (tmp_path / "out").mkdir()
    made = convert(source, tmp_path / "out")
    assert made.target == tmp_path / "out" / "ink.safetensors"
    assert made.content_hash == hnetkit.load(source).content_hash
    with pytest.raises(UsageError, match="exists"):
        convert(source, tmp_path / "out")
    assert convert(source, tmp_path / "out", overwrite=True) == made


def test_two_files_where_a_shell_made_them_of_one_pattern_are_both_kept(tmp_path: Path) -> None:
    first, second = (network_file(tmp_path, f"{name}.pt", seed=seed) for seed, name in enumerate("ab"))
    before = second.read_bytes()
    for dtype in (None, "fp16"):
        with pytest.raises(OutputExists, match=r"b\.pt: another network beside .*a\.pt"):
            convert(first, second, dtype=dtype, overwrite=True)
    assert second.read_bytes() == before
    convert(first, first, dtype="fp16", overwrite=True)  # in place
    second.write_bytes(first.read_bytes())
    assert convert(first, second, overwrite=True).is_same_content
    (tmp_path / "other").mkdir()  # no pattern gives files of two folders
    elsewhere = network_file(tmp_path / "other", "c.pt", seed=3)
    assert convert(first, elsewhere, overwrite=True).content_hash == hnetkit.load(elsewhere).content_hash


def test_two_names_that_are_one_to_the_disk_do_not_replace_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upper, lower = network_file(tmp_path, "Ink.pt", seed=1), network_file(tmp_path, "ink.ckpt", seed=2)
    (tmp_path / "usb").mkdir()
    make_case_blind(monkeypatch, tmp_path / "usb")
    done, (failure,) = convert_all([upper, lower], "safetensors", out_dir=tmp_path / "usb", overwrite=True)
    assert [made.source for made in done] == [str(upper)]
    assert f"{lower}: {upper} became" in str(failure)
    assert hnetkit.load(tmp_path / "usb" / "Ink.safetensors").content_hash == hnetkit.load(upper).content_hash


def test_values_that_all_vanish_in_a_smaller_type_are_not_written(tmp_path: Path) -> None:
    content = networks.a1111_network((8,))
    content[8][0]["linear.0.bias"].fill_(1e-8)
    source = networks.save_pt(content, tmp_path / "ink.pt")
    with pytest.raises(FileRefused, match=r"8\.k\.linear\.0\.bias: all its values, up to 1e-08, become 0 in fp16"):
        convert(source, tmp_path / "half.pt", dtype="fp16")
    assert not (tmp_path / "half.pt").exists()
    convert(source, tmp_path / "half.pt", dtype="bf16")
