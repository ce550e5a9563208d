"""Mutated files and files made from a grammar: no exception but the package's own, and what is read can be saved."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from support import hostile_files, networks
from support.made_files import Maker
from support.other_devices import as_array, as_cpu_tensor, elsewhere

import hnetkit
from hnetkit.errors import FileRefused, UnreadableFile
from hnetkit.inspection import examine, validate
from hnetkit.network import Hypernetwork

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, ord("R"), ord("."), ord("c"), ord("("), ord("t"), ord("Q"), 0x93, 0x81)


def seeds(folder: Path) -> list[bytes]:
    """Good files of every container."""
    made = [
        networks.network_file(folder, "a.pt", widths=(4,), activation="relu", layer_norm=True),
        networks.save_pt(networks.a1111_network((4, 6), activation="prelu"), folder / "b.pt", "legacy"),
    ]
    hnetkit.save(hnetkit.load(made[0]), folder / "c.safetensors")
    hnetkit.save(hnetkit.load(made[1]), folder / "d.pt")
    for name, saved in (("e.pt", as_array), ("f.pt", as_cpu_tensor)):
        content = elsewhere(networks.a1111_network((4, 40), activation="relu"), saved)
        made.append(networks.save_pt(content, folder / name, "legacy"))
    data = [path.read_bytes() for path in (*made, folder / "c.safetensors", folder / "d.pt")]
    return [*data, hostile_files.good(), hostile_files.legacy_of(hostile_files.network())]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to eight changes: bytes, bits, numbers, pieces removed, doubled, moved or swapped for a trick's."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        # structure lies at both ends: half of the changes go there
        at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.choice((0, -1)) * rng.randrange(min(600, len(out)))
        at %= len(out)
        kind = rng.randrange(6)
        if kind == 0:
            out[at] = rng.choice(INTERESTING)
        elif kind == 1:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            size = rng.choice((2, 4, 8))
            out[at : at + size] = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1)).to_bytes(8, "little")[:size]
        elif kind == 3:
            del out[at : at + rng.randint(1, 64)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        else:
            call = rng.choice(list(hostile_files.CALLS.values()))
            out[at : at + rng.choice((0, len(call)))] = call
        if not out:
            return b""
    return bytes(out)


def fuzz(folder: Path, count: int, seed: int) -> tuple[int, float]:
    """Returns how many mutated files were still read as networks, and the longest time of one, in seconds."""
    rng, originals = random.Random(seed), seeds(folder)
    path, read, longest = folder / "mutated.pt", 0, 0.0
    for number in range(count):
        path.write_bytes(mutated(rng.choice(originals), rng))
        started = time.process_time()
        try:
            validate(hnetkit.load(path))
            read += 1
        except Exception as error:
            if isinstance(error, FileRefused) and not isinstance(error, UnreadableFile):
                continue
            raise AssertionError(f"seed {seed}, file {number}: {type(error).__name__}: {error}") from error
        finally:
            longest = max(longest, time.process_time() - started)
    return read, longest


def round_trips(folder: Path, count: int, seed: int) -> tuple[int, float]:
    """Returns how many files of the grammar were read as networks, each saved in both containers and read back
    equal, and the longest time that reading one took, in seconds.
    """
    path, read, longest = folder / "made.pt", 0, 0.0
    for number in range(count):
        path.write_bytes(Maker(random.Random(f"{seed} {number}")).file())
        started = time.process_time()
        try:
            net = hnetkit.load(path)
        except UnreadableFile as error:
            raise AssertionError(f"seed {seed}, file {number}: {error}") from error
        except FileRefused:
            continue
        finally:
            longest = max(longest, time.process_time() - started)
        read += 1
        for suffix in (".pt", ".safetensors"):
            other = folder / f"again{suffix}"
            hnetkit.save(net, other, overwrite=True)
            assert same(hnetkit.load(other)) == same(net), f"seed {seed}, file {number}, {suffix}"
        row = examine(path).as_row()
        assert row["content_hash"] == net.content_hash
        json.dumps(row)
    return read, longest


def same(net: Hypernetwork) -> tuple[object, ...]:
    """All that a round trip keeps; NaN equals itself, and True is not 1."""
    tensors = [(*place, ref.dtype, ref.shape, ref.read()) for *place, ref in net.each_tensor()]
    return net.content_hash, repr(net.metadata), net.activate_output, net.layer_structure, net.dropout, tensors


def test_four_hundred_mutated_files_raise_nothing_unknown(tmp_path: Path) -> None:
    read, _ = fuzz(tmp_path, 400, seed=1)
    assert 0 < read < 300


def test_two_hundred_files_of_the_grammar_are_refused_or_come_back_equal(tmp_path: Path) -> None:
    read, _ = round_trips(tmp_path, 200, seed=1)
    assert 40 < read < 190


@pytest.mark.long
def test_twenty_thousand_files_of_the_grammar_are_refused_or_come_back_equal(tmp_path: Path) -> None:
    read, longest = round_trips(tmp_path, 20_000, seed=20261128)
    assert 4000 < read < 19_000
    assert longest < 2


@pytest.mark.long
def test_twenty_thousand_mutated_files_raise_nothing_unknown(tmp_path: Path) -> None:
    read, longest = fuzz(tmp_path, 20_000, seed=20261123)
    assert 0 < read < 15_000
    assert longest < 2
