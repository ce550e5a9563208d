"""A folder that a stranger filled is no place that Python takes modules from, however hnetkit is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hnetkit.cli import run


@pytest.mark.parametrize("way", [["-m", "hnetkit"], ["-c", "import sys; sys.path.pop(0); import hnetkit.__main__"]])
def test_no_module_of_the_folder_is_run(way: list[str], tmp_path: Path) -> None:
    for name in {*sys.stdlib_module_names, "click", "torch", "numpy", "PIL", "platformdirs", "filelock", "tabulate"}:
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').write(__name__)\nraise SystemExit(99)\n")
    done = subprocess.run([sys.executable, *way, "list"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["home", "home/registry.db", "pictures"])
def test_the_demo_writes_through_no_link(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    link = tmp_path / "demo-output" / name
    link.parent.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    link.symlink_to(tmp_path / "outside")
    assert run(["demo"]) == 2
    assert "a link" in capsys.readouterr().err
    assert list((tmp_path / "outside").iterdir()) == []


def test_the_demo_writes_into_no_registry_that_is_hard_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-output" / "home").mkdir(parents=True)
    (tmp_path / "mine.db").write_bytes(b"")
    (tmp_path / "demo-output" / "home" / "registry.db").hardlink_to(tmp_path / "mine.db")
    assert run(["demo"]) == 2
    assert "another name" in capsys.readouterr().err
    assert (tmp_path / "mine.db").read_bytes() == b""
