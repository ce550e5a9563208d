"""Safetensors files whose header has the topology and none of A1111's keys, as other tools may leave it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from hnetkit import demo
from hnetkit.formats import load, save
from hnetkit.formats.safetensors_schema import topology


def bare(path: Path) -> Path:
    """Takes everything out of a file's header but what names the format and the build."""
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + size])
    kept = ("format", "format_version", "topology")
    header["__metadata__"] = {key: text for key, text in header["__metadata__"].items() if key in kept}
    written = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written)) + written + data[8 + size :])
    return path


@pytest.mark.parametrize("name", list(demo.networks()))
def test_a_pt_made_of_it_is_the_same_network(name: str, tmp_path: Path) -> None:
    network = load(demo.networks()[name])
    save(network, tmp_path / "whole.safetensors")
    read = load(bare(tmp_path / "whole.safetensors"))
    assert read.content_hash == network.content_hash
    save(read, tmp_path / "again.pt")
    again = load(tmp_path / "again.pt")
    assert again.content_hash == network.content_hash
    assert topology(again) == topology(network)


def test_keys_of_a_whole_header_stay_what_they_are(tmp_path: Path) -> None:
    network = load(next(iter(demo.networks().values())))
    save(network, tmp_path / "whole.safetensors")
    assert load(tmp_path / "whole.safetensors").metadata == network.metadata


def test_texts_that_other_programs_add_to_the_header_are_kept(tmp_path: Path) -> None:
    network = load(next(iter(demo.networks().values())))
    save(network, tmp_path / "ink.safetensors")
    data = (tmp_path / "ink.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= {"modelspec.title": "My Ink", "modelspec.date": "2024-01-01", "ss_steps": "500"}
    text = json.dumps(header).encode()
    (tmp_path / "ink.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    added = {"modelspec.title": "My Ink", "modelspec.date": "2024-01-01", "ss_steps": 500}
    read = load(tmp_path / "ink.safetensors")
    assert (read.content_hash, read.metadata) == (network.content_hash, network.metadata | added)
    save(read, tmp_path / "again.pt")
    save(load(tmp_path / "again.pt"), tmp_path / "again.safetensors")
    assert load(tmp_path / "again.safetensors").metadata == read.metadata
