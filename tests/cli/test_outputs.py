"""What a person names for a command to write: --overwrite replaces what is of the same kind, and nothing else."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support import networks

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import OutputExists
from hnetkit.library import sidecar_writing

STATE = ("registry.db", "registry.db-wal", "registry.db-shm", "registry.db-journal", "config.json", "Config.JSON")


@pytest.fixture
def library(home: Path) -> Path:
    """The folder of a library with one network, and a setting."""
    folder = home / "library"
    folder.mkdir()
    networks.network_file(folder, "ink.pt")
    assert run(["scan", "-q", str(folder)]) == 0
    assert run(["config", "device", "cpu"]) == 0
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    return folder


def content(folder: Path) -> dict[Path, bytes]:
    """All but SQLite's own journals, which come and go."""
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if "-wal" not in path.name and "-shm" not in path.name}


Commands = dict[str, Callable[[Path], list[str]]]


@pytest.fixture
def commands(pictures: Path, tmp_path: Path) -> Commands:
    """What writes the file that it is told to."""
    net = networks.network_file(tmp_path, "net.pt", seed=3)
    return {
        "export": lambda path: ["export", str(path)],
        "review": lambda path: ["train", "review", str(pictures), "--html", str(path)],
        "convert": lambda path: ["convert", str(net), str(path)],
        "generate": lambda path: ["generate", "a", "--out", str(path)],
        "grid": lambda path: ["grid", "--prompt", "a", "--out", str(path)],
    }


@pytest.mark.parametrize("command", ["export", "review", "convert", "generate", "grid"])
def test_neither_registry_nor_settings_nor_library_are_ever_replaced(
    command: str, commands: Commands, library: Path, home: Path, tmp_path: Path
) -> None:
    before = content(home)
    (tmp_path / "alias").symlink_to(home)
    paths = [*(home / name for name in STATE), tmp_path / "alias" / "config.json"]
    if command != "convert":
        paths.append(library / "ink.pt")
    for path in paths:
        for option in ([], ["--overwrite"]):
            assert run([*commands[command](path), *option]) == 2, path
    assert content(home) == before


@pytest.mark.parametrize("command", ["export", "review"])
def test_settings_that_were_never_made_are_no_place_to_write_to(command: str, commands: Commands, home: Path) -> None:
    assert run(commands[command](home / "config.json")) == 2
    assert run(["config"]) == 0


@pytest.mark.parametrize(("command", "suffix"), [("export", ".jsonl"), ("review", ".html")])
def test_a_text_replaces_an_earlier_one_under_any_name_and_no_other_file(
    command: str, suffix: str, commands: Commands, library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (f"a{suffix}", f"A{suffix.upper()}", "kept", "kept.json"):
        assert run(commands[command](tmp_path / name)) == 0
        assert run(commands[command](tmp_path / name)) == 2
        assert run([*commands[command](tmp_path / name), "--overwrite"]) == 0
    (tmp_path / "empty").touch()
    assert run([*commands[command](tmp_path / "empty"), "--overwrite"]) == 0
    for name in ("notes.txt", "data.json", "photo.png", "net.safetensors", "noise", f"grid{suffix}"):
        (tmp_path / name).write_bytes(b"mine")
        assert run([*commands[command](tmp_path / name), "--overwrite"]) == 2
        assert f"{name}: a file of another kind" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == b"mine"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a", "--out"],
        ["convert", "net.pt", "--to", "pt", "--out-dir"],
        ["link", "--layout", "comfyui"],
        ["demo", "--out"],
        ["train", "pictures", "--name", "x", "--out"],
        ["train", "sweep", "pictures", "--name", "x", "--out"],
        ["train", "prepare", "pictures", "--out"],
    ],
)
def test_no_folder_takes_the_name_of_registry_or_settings(arguments: list[str], home: Path, pictures: Path) -> None:
    for name in (*STATE, "config.json/pictures"):
        assert run([*arguments, str(home / name)]) == 2
    assert list(home.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("command", ["export", "review", "convert", "generate", "grid"])
def test_a_pipe_is_never_replaced(command: str, commands: Commands, tmp_path: Path) -> None:
    suffix = {"export": ".jsonl", "review": ".html", "convert": ".pt"}.get(command, ".png")
    os.mkfifo(tmp_path / f"pipe{suffix}")
    assert run([*commands[command](tmp_path / f"pipe{suffix}"), "--overwrite"]) == 2
    assert (tmp_path / f"pipe{suffix}").is_fifo()


def test_a_network_replaces_no_model_of_another_kind(commands: Commands, tmp_path: Path) -> None:
    models = {
        "lora": {"lora_unet_x.lora_up.weight": torch.zeros(2, 2)},
        "checkpoint": {"model.diffusion_model.x": torch.zeros(2)},
        "inversion": {"emb_params": torch.zeros(1, 8)},
    }
    for name, tensors in models.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        torch.save(tensors, tmp_path / f"{name}.pt")
    net = hnetkit.load(networks.network_file(tmp_path, "own.pt"))
    for path in [tmp_path / f"{name}{suffix}" for name in models for suffix in (".safetensors", ".pt")]:
        before = path.read_bytes()
        assert run([*commands["convert"](path), "--overwrite"]) == 2
        with pytest.raises(OutputExists, match="another kind"):
            hnetkit.save(net, path, overwrite=True)
        assert path.read_bytes() == before


def test_a_network_replaces_no_file_that_hnetkit_does_not_know(commands: Commands, tmp_path: Path) -> None:
    whole = {"run.pt": {"epoch": 3, "model_state": {"a.weight": torch.ones(3)}}, "module.pt": torch.nn.Linear(2, 2)}
    for name, value in whole.items():
        torch.save(value, tmp_path / name)
    save_file({"foo.weight": torch.ones(3)}, tmp_path / "foo.safetensors")
    plain = {
        "notes.bin": bytes(range(256)) * 9,
        "diary.bin": b"dear diary",
        "photo.pt": b"\x89PNG\r\n\x1a\n" + b"x" * 99,
    }
    for name, data in plain.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "backup.bin", "w") as archive:
        archive.writestr("diary.txt", "dear diary")
    for name in (*whole, *plain, "foo.safetensors", "backup.bin"):
        before = (tmp_path / name).read_bytes()
        assert run([*commands["convert"](tmp_path / name), "--overwrite"]) == 2
        assert (tmp_path / name).read_bytes() == before


def test_a_network_replaces_nothing_that_is_damaged_and_never_was_one(commands: Commands, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    torch.save({"model.diffusion_model.x": torch.zeros(99)}, folder / "model.pt")
    save_file({"model.diffusion_model.x": torch.zeros(99)}, folder / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        os.truncate(folder / name, 350)
    with zipfile.ZipFile(folder / "photos.bin", "w") as archive:
        archive.writestr("1.raw", bytes(range(256)) * 9)
    os.truncate(folder / "photos.bin", 900)
    (folder / "rom.bin").write_bytes(bytes.fromhex("80371240") + b"game" * 99)
    (folder / "empty.ckpt").write_bytes(b"PK\5\6" + bytes(18) + b"more")
    (folder / "disk.bin").write_bytes(b"boot" * 999)
    os.truncate(folder / "disk.bin", 100 << 30)
    for path in sorted(folder.iterdir()):
        before = path.stat()
        assert run([*commands["convert"](path), "--overwrite"]) == 2, path.name
        assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)


def test_a_network_replaces_an_earlier_one_and_a_broken_one(commands: Commands, library: Path, tmp_path: Path) -> None:
    page, cut = tmp_path / "page.pt", tmp_path / "cut.pt"
    page.write_bytes(b"<!doctype html>")
    cut.write_bytes((library / "ink.pt").read_bytes()[:400])
    legacy, old = networks.network_file(tmp_path, "legacy.pt", container="legacy"), tmp_path / "old.pt"
    old.write_bytes(legacy.read_bytes().replace(b"linear.0.", b"linear1.0"))
    hnetkit.save(hnetkit.load(library / "ink.pt"), tmp_path / "cut.safetensors")
    torch.save(torch.load(legacy), resaved := tmp_path / "resaved.pt")
    broken = (cut, legacy, old, tmp_path / "cut.safetensors", resaved)
    for path in broken[1:]:
        os.truncate(path, 600 if path.suffix == ".safetensors" else path.stat().st_size - 100)
    for path in (library / "ink.pt", page, *broken):
        assert run([*commands["convert"](path), "--overwrite"]) == 0
        hnetkit.load(path)


def test_a_network_called_config_leaves_the_settings_alone(home: Path) -> None:
    assert run(["config", "device", "cpu"]) == 0
    before = (home / "config.json").read_bytes()
    (home / "other.json").symlink_to("config.json")
    for name in ("config.pt", "other.pt"):
        assert sidecar_writing.merge_a1111(networks.network_file(home, name), {"notes": "mine"}) is None
    assert (home / "config.json").read_bytes() == before
    assert sidecar_writing.merge_a1111(networks.network_file(home, "ink.pt"), {"notes": "mine"}) == home / "ink.json"
    assert json.loads((home / "ink.json").read_bytes()) == {"notes": "mine"}


def test_a_demo_is_not_run_in_ones_own_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "home"))
    assert run(["demo", "--out", str(tmp_path)]) == 2
    assert "your own library" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_page_of_another_program_is_not_replaced(commands: Commands, tmp_path: Path) -> None:
    page = tmp_path / "mine.html"
    page.write_text("<!doctype html>\n<html><title>mine</title>")
    assert run([*commands["review"](page), "--overwrite"]) == 2
    assert "mine" in page.read_text()


@pytest.mark.parametrize("name", ["grid.png", "dots.safetensors"])
def test_a_demo_replaces_only_what_a_demo_left(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"mine")
    assert run(["demo", "--out", str(tmp_path), "--overwrite"]) == 2
    assert "no earlier demo" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_settings_behind_a_link_are_changed_where_they_are(home: Path, tmp_path: Path) -> None:
    (tmp_path / "dotfiles.json").write_text('{"device": "cpu"}')
    (home / "config.json").symlink_to(tmp_path / "dotfiles.json")
    assert run(["config", "dtype", "fp32"]) == 0
    assert (home / "config.json").is_symlink()
    assert json.loads((tmp_path / "dotfiles.json").read_text()) == {"device": "cpu", "dtype": "fp32"}
