"""Files called .zip: a torch file is a network under that name too, and a zip with networks inside says so."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from support import networks

from hnetkit.cli import run
from hnetkit.library.resolve import resolve
from hnetkit.library.scan import scan
from hnetkit.registry import Registry

WAYS = {"stored": zipfile.ZIP_STORED, "deflated": zipfile.ZIP_DEFLATED}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    return made


def packed(path: Path, *names: str, way: str = "deflated", comment: bytes = b"") -> Path:
    ink = networks.network_file(path.parent, "packed.pt")
    with zipfile.ZipFile(path, "w", WAYS[way]) as file:
        for name in names:
            file.writestr(name, ink.read_bytes())
        file.comment = comment
    ink.unlink()
    return path


def test_a_torch_file_called_zip_is_scanned_and_found_by_its_name(registry: Registry, folder: Path) -> None:
    networks.network_file(folder, "ink.pt").rename(folder / "ink.zip")
    (change,) = scan(registry, [folder])
    assert change.row is not None
    assert (change.what, change.row["kind"], change.row["format"]) == ("new", "hypernetwork", "pt-zip")
    assert resolve(registry, "ink").path == folder / "ink.zip"
    assert list(scan(registry)) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("comment", [b"", b"packed on a Monday"])
def test_a_zip_with_networks_inside_says_so_and_what_to_do(
    registry: Registry, folder: Path, way: str, comment: bytes
) -> None:
    path = packed(folder / "pack.zip", "styles/day.pt", "night.safetensors", "readme.txt", way=way, comment=comment)
    (change,) = scan(registry, [folder])
    assert change.row is not None
    assert (change.row["kind"], change.row["verdict"]) == ("zip", "other")
    assert change.row["reason"] == (
        f"{path}: a zip archive with styles/day.pt and 1 more model inside; unpack it and scan that"
    )


def test_inspect_says_what_is_in_a_zip(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = packed(folder / "style.zip", "style.pt")
    assert run(["inspect", str(path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["reason"] == f"{path}: a zip archive with style.pt inside; unpack it and scan that"


@pytest.mark.parametrize("way", WAYS)
def test_a_zip_without_networks_is_one_of_other_things(registry: Registry, folder: Path, way: str) -> None:
    packed(folder / "photos.zip", "a.png", "__MACOSX/._style.pt", way=way)
    (change,) = scan(registry, [folder])
    assert change.row is not None
    assert "a zip archive of other things" in change.row["reason"]


def test_a_torch_file_that_was_packed_again_stays_refused_as_a_torch_file(registry: Registry, folder: Path) -> None:
    ink = networks.network_file(folder, "ink.pt")
    with zipfile.ZipFile(ink) as torch_file, zipfile.ZipFile(folder / "finder.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for member in torch_file.infolist():
            file.writestr(member.filename, torch_file.read(member))
    ink.unlink()
    (change,) = scan(registry, [folder])
    assert change.row is not None
    assert (change.row["kind"], change.row["verdict"]) == ("unknown", "refused")


@pytest.mark.parametrize("damage", [b"PK\3\4", b"PK\3\4" + b"\0" * 100, b"PK\3\4" + b"PK\5\6" + b"\xff" * 18])
def test_what_only_begins_like_a_zip_is_survived(registry: Registry, folder: Path, damage: bytes) -> None:
    (folder / "cut.zip").write_bytes(damage)
    (change,) = scan(registry, [folder])
    assert change.what == "new"
    assert list(scan(registry)) == []
