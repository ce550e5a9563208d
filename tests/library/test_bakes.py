"""The library knows what its networks were baked to, and what the disk says of it."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hnetkit import Library, demo, paths
from hnetkit.cli import run
from hnetkit.errors import RegistryError
from hnetkit.library.bakes import record_bake

needs_demo = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")
pytestmark = needs_demo

FULL = {"self_k": 0.8, "self_v": 0.8, "cross_k": 0.8, "cross_v": 0.8, "blocks": {}}
BY_SIDE = {**FULL, "cross_v": 0.5, "blocks": {"": 0, "mid_block": 0.2}}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the demo's networks in the library."""
    monkeypatch.chdir(tmp_path)
    Path("networks").mkdir()
    for path in demo.networks().values():
        shutil.copy(path, "networks")
    assert run(["scan", "networks"]) == 0
    Path("baked").mkdir()
    return tmp_path


def record(library: Library, *names: str, **changes: Any) -> dict[str, Any]:
    """Returns the record of a bake, as `hnetkit.bake` makes it."""
    hashes = {name: library.record(name)["content_hash"] for name in names}
    networks = [
        {"name": name, "content_hash": own, "sha256": "5" * 64, "strength": FULL} for name, own in hashes.items()
    ]
    layers = {"mid.to_k": {"origin": "fitted", "rank": 8, "error": 0.25}, "mid.to_v": {"rank": 4, "error": 0.125}}
    made = {"networks": networks, "model": "dreams", "model_hash": "ab" * 5, "to": "lora", "for": "comfyui"}
    return {**made, "layers": layers, "pictures": {"share": 0.3, "psnr": 21.5}, **changes}


def put(path: str, *names: str, **changes: Any) -> Path:
    Path(path).write_bytes(b"baked")
    with Library() as library:
        record_bake(library.registry, path, record(library, *names, **changes))
    return Path(path)


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[list[dict[str, Any]], str]:
    capsys.readouterr()
    assert run(["show", name, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert run(["show", name]) == 0
    return row["bakes"], capsys.readouterr().out


def test_a_network_is_shown_with_what_it_was_baked_to(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("baked/both.safetensors", "outline", "paper")
    (bake,), card = shown("paper", capsys)
    path = str(here / "baked" / "both.safetensors")
    assert (bake["path"], bake["target"], bake["program"], bake["state"]) == (path, "lora", "comfyui", "present")
    assert (bake["rank"], bake["error"], bake["picture_error"], bake["psnr"]) == (8, 0.25, 0.3, 21.5)
    assert (bake["model_name"], bake["model_hash"]) == ("dreams", "ab" * 5)
    assert [part["name"] for part in bake["networks"]] == ["outline", "paper"]
    assert bake["networks"][1]["strength"] == FULL
    assert f"  baked to       {path}\n" in card
    assert "LoRA of rank 8 for comfyui" in card
    assert "of outline:0.8, paper:0.8\n" in card
    assert "largest relative error 0.250; pictures 30.0% of what the networks change\n" in card
    assert shown("dots", capsys)[0] == []


def test_a_strength_by_side_and_block_is_shown_as_such(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Library() as library:
        made = record(library, "paper")
    made["networks"][0]["strength"] = BY_SIDE
    put("baked/paper.safetensors", "paper", networks=made["networks"])
    said = "paper (self_k 0.8, self_v 0.8, cross_k 0.8, cross_v 0.5, other blocks 0, mid_block 0.2)\n"
    assert said in shown("paper", capsys)[1]


def test_what_is_gone_or_replaced_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put("baked/paper.safetensors", "paper")
    path.write_bytes(b"something else")
    (bake,), card = shown("paper", capsys)
    assert (bake["state"], "where something else is by now" in card) == ("changed", True)
    path.unlink()
    (bake,), card = shown("paper", capsys)
    assert (bake["state"], "which is gone" in card) == ("missing", True)


def test_a_file_that_was_moved_is_found_by_a_scan_and_not_forgotten(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put("baked/paper.safetensors", "paper").absolute()
    put("baked/dots.safetensors", "dots")
    moved = path.rename(here / "networks" / "renamed.safetensors")
    assert [bake["found_at"] for bake in shown("paper", capsys)[0]] == [None]
    run(["scan", "networks"])
    (bake,), card = shown("paper", capsys)
    assert (bake["path"], bake["state"], bake["found_at"]) == (str(path), "missing", str(moved))
    assert f"{path}, which is {moved} by now" in card
    assert run(["forget", "--missing", "-y"]) == 0
    assert f"{path} kept: it is {moved} by now" in capsys.readouterr().err
    assert [bake["found_at"] for bake in shown("paper", capsys)[0]] == [str(moved)]
    moved.unlink()
    assert "which is gone" in shown("paper", capsys)[1]
    assert [bake["found_at"] for bake in shown("dots", capsys)[0]] == [None]


def test_a_folder_is_known_by_its_index(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("model").mkdir()
    Path("model", "model_index.json").write_text("{}")
    with Library() as library:
        record_bake(library.registry, "model", record(library, "paper", to="checkpoint", **{"for": None}))
    assert [(bake["state"], bake["rank"]) for bake in shown("paper", capsys)[0]] == [("present", None)]
    Path("model", "model_index.json").write_text('{"_class_name": "another"}')
    assert [bake["state"] for bake in shown("paper", capsys)[0]] == ["changed"]


def test_a_file_is_of_the_last_bake_alone(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("baked/out.safetensors", "paper")
    put("baked/out.safetensors", "outline")
    assert shown("paper", capsys)[0] == []
    assert len(shown("outline", capsys)[0]) == 1


def test_a_record_is_forgotten_by_its_path_and_the_file_stays(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put("baked/paper.safetensors", "paper")
    assert run(["forget", "baked/paper.safetensors", "-y"]) == 0
    assert "forgotten that" in capsys.readouterr().err
    assert path.exists()
    assert shown("paper", capsys)[0] == []


def test_forget_missing_keeps_what_may_be_on_a_disk_that_is_away(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put("baked/paper.safetensors", "paper").unlink()
    assert run(["forget", "--missing", "-y"]) == 0
    assert "baked/paper.safetensors kept" in capsys.readouterr().err.replace(f"{here}/", "")
    assert len(shown("paper", capsys)[0]) == 1
    put("baked/other.safetensors", "outline")
    assert run(["forget", "--missing", "-y"]) == 0
    assert shown("paper", capsys)[0] == []
    assert len(shown("outline", capsys)[0]) == 1


class Terminal(io.StringIO):
    """A user who takes so long to agree that something else happens before."""

    def __init__(self, happens: Callable[[], object]) -> None:
        super().__init__("y\n")
        self.happens = happens

    def isatty(self) -> bool:
        return True

    def readline(self, size: int | None = -1, /) -> str:
        self.happens()
        return super().readline(-1)


def test_what_came_back_while_the_question_stood_keeps_its_record(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put("baked/paper.safetensors", "paper").absolute()
    put("baked/outline.safetensors", "outline").rename(here / "away")
    path.rename(here / "away too")
    put("baked/stays.safetensors", "dots")
    monkeypatch.setattr(sys, "stdin", Terminal(lambda: (here / "away too").rename(path)))
    assert run(["forget", "--missing"]) == 0
    said = capsys.readouterr().err
    assert "2 records of what was baked" in said
    assert f"{path} kept: it is there again" in said
    assert f"forgotten that {here / 'baked' / 'outline.safetensors'} was baked" in said
    assert [bake["state"] for bake in shown("paper", capsys)[0]] == ["present"]
    assert shown("outline", capsys)[0] == []


def test_a_name_is_a_network_though_a_folder_was_baked_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("paper").mkdir()
    Path("paper", "model_index.json").write_text("{}")
    with Library() as library:
        record_bake(library.registry, "paper", record(library, "outline", to="checkpoint"))
    assert run(["forget", "paper", "-y"]) == 0
    assert "paper.pt" in capsys.readouterr().out
    assert len(shown("outline", capsys)[0]) == 1


def test_a_strength_that_something_broke_is_named_and_can_be_forgotten(here: Path) -> None:
    put("baked/paper.safetensors", "paper")
    with closing(sqlite3.connect(paths.registry_file())) as connection:
        connection.execute("UPDATE baked_networks SET strength = '{'")
        connection.commit()
    with Library() as library, pytest.raises(RegistryError, match="strength of paper") as caught:
        library.record("paper")
    assert "bake" in str(caught.value.hint)
    assert run(["forget", "baked/paper.safetensors", "-y"]) == 0
    with Library() as library:
        assert library.record("paper")["bakes"] == []
