"""What is no hypernetwork is told from its header: a folder of checkpoints is scanned without being read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import networks

from hnetkit.cli import run
from hnetkit.library.scan import recheck, scan
from hnetkit.registry import Registry

MOST = 1 << 20  # bytes of each file that a scan may read
GB = 1 << 30


def unet_names() -> list[str]:
    """As many names as the UNet of a Stable Diffusion checkpoint has, and as long ones."""
    return [f"model.diffusion_model.output_blocks.{n}.1.transformer_blocks.0.attn2.to_k.weight" for n in range(1100)]


def lora_names() -> list[str]:
    kinds = ("alpha", "lora_down.weight", "lora_up.weight")
    return [f"lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_{n}.{kind}" for n in range(264) for kind in kinds]


def vast_safetensors(path: Path, names: list[str], size: int, **metadata: str) -> None:
    """A file of this size that takes no room: its tensors are holes."""
    each = size // len(names) // 4
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for number, name in enumerate(names):
        offsets = [4 * each * number, 4 * each * (number + 1)]
        header[name] = {"dtype": "F32", "shape": [each], "data_offsets": offsets}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 4 * each * len(names))


def torch_checkpoint(path: Path, *, is_zip: bool) -> None:
    value = {"state_dict": {name: torch.zeros(1024) for name in unet_names()}, "global_step": 1}
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)


def holes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 * GB)


MADE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "checkpoint.safetensors": ("checkpoint", lambda path: vast_safetensors(path, unet_names(), 2 * GB)),
    "lora.safetensors": ("lora", lambda path: vast_safetensors(path, lora_names(), GB, ss_tags="a girl, " * 50_000)),
    "controlnet.safetensors": ("unknown", lambda path: vast_safetensors(path, ["zero_convs.0.0.weight"], GB)),
    "checkpoint.ckpt": ("checkpoint", lambda path: torch_checkpoint(path, is_zip=True)),
    "former.ckpt": ("checkpoint", lambda path: torch_checkpoint(path, is_zip=False)),
    "llm.bin": ("gguf", lambda path: (holes(path), path.open("r+b").write(b"GGUF"))),
    "zeros.pt": ("zeros", holes),
}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each read of a model file."""
    sizes: list[int] = []
    pread = os.pread
    monkeypatch.setattr("os.pread", lambda *args: sizes.append(args[1]) or pread(*args))
    return sizes


@pytest.mark.skipif(not hasattr(os, "pread"), reason="this system has no pread, which is counted")
@pytest.mark.parametrize("name", MADE)
def test_of_what_is_no_hypernetwork_less_than_a_megabyte_is_read(
    registry: Registry, tmp_path: Path, reads: list[int], name: str
) -> None:
    kind, make = MADE[name]
    folder = tmp_path / "models"
    folder.mkdir()
    make(folder / name)
    assert (folder / name).stat().st_size > 4 * MOST
    for command in (scan(registry, [folder]), scan(registry), recheck(registry)):
        reads.clear()
        found = [(change.what, change.row and change.row["kind"]) for change in command]
        assert found in ([("new", kind)], [])
        assert sum(reads) < MOST
    (row,) = registry.files.rows()
    assert (row["kind"], row["sha256"], row["content_hash"]) == (kind, None, None)


def test_inspect_of_one_file_still_gives_its_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "checkpoint.ckpt"
    torch_checkpoint(path, is_zip=True)
    assert run(["inspect", str(path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    vast_safetensors(folder / "lora.safetensors", lora_names(), 1 << 22)
    return folder / "lora.safetensors"


def test_a_file_that_is_not_hashed_is_known_by_size_and_time(registry: Registry, lora: Path) -> None:
    list(scan(registry, [lora.parent]))
    os.utime(lora, (1, 1))
    assert [change.what for change in recheck(registry)] == ["changed"]
    assert list(recheck(registry)) == list(scan(registry)) == []
    os.utime(lora, (2, 2))
    assert [change.what for change in scan(registry)] == ["changed"]


def test_a_hash_of_earlier_is_kept_while_the_file_is_the_same(registry: Registry, lora: Path) -> None:
    list(scan(registry, [lora.parent]))
    (root,) = registry.files.roots()
    (row,) = registry.files.rows()
    with registry.write():  # as earlier versions stored it
        registry.files.put(root, lora.name, row["mtime_ns"], 1, row | {"sha256": "a" * 64})
    assert [change.what for change in scan(registry)] == ["changed"]
    assert registry.files.rows()[0]["sha256"] == "a" * 64
    assert list(recheck(registry)) == []
    os.utime(lora, (1, 1))
    list(scan(registry))
    assert registry.files.rows()[0]["sha256"] is None


def test_a_network_whose_header_rots_is_corrupt_and_one_that_became_a_lora_has_changed(
    registry: Registry, lora: Path
) -> None:
    ink = networks.network_file(lora.parent, "ink.pt")
    list(scan(registry, [lora.parent]))
    status, data = ink.stat(), ink.read_bytes()
    ink.write_bytes(b"\0" * 4096 + data[4096:])
    os.utime(ink, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert [(change.what, Path(change.path).name) for change in recheck(registry)] == [("corrupt", "ink.pt")]
    ink.write_bytes(lora.read_bytes())
    assert [(change.what, Path(change.path).name) for change in recheck(registry)] == [("changed", "ink.pt")]
    assert {row["kind"] for row in registry.files.rows()} == {"lora"}
