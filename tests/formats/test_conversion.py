"""Converting from Python: the files and failures of `hnetkit convert`."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.networks import network_file

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import FileRefused, UsageError
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
