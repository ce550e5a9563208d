"""Nodes and extensions in other programs' folders: put there, brought up to date, and removed again."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomllib
from support.killed import Killed, killed_at

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import NotFound, UsageError
from hnetkit.library import plugins
from hnetkit.library.plugins import PLUGINS, Kind, install, uninstall
from hnetkit.registry import Registry

KINDS: list[Kind] = ["node", "extension"]
OWN = {
    "node": ["__init__.py", "pyproject.toml", "requirements.txt"],
    "extension": ["hnetkit_hypernetworks.py"],
}


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with Registry(tmp_path / "registry.db") as opened:
        yield opened


@pytest.fixture
def programs(tmp_path: Path) -> dict[Kind, Path]:
    """A ComfyUI with another node, and a Forge with another extension."""
    comfyui, forge = tmp_path / "ComfyUI", tmp_path / "forge"
    (comfyui / "custom_nodes" / "other").mkdir(parents=True)
    (comfyui / "models" / "hypernetworks").mkdir(parents=True)
    (forge / "modules_forge").mkdir(parents=True)
    (forge / "extensions" / "other").mkdir(parents=True)
    (forge / "webui.py").write_text("")
    return {"node": comfyui, "extension": forge}


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("kind", KINDS)
def test_a_plugin_comes_whole_and_goes_whole(registry: Registry, programs: dict[Kind, Path], kind: Kind) -> None:
    before = tree(programs[kind])
    made = list(install(registry, programs[kind], kind))
    folder = programs[kind].joinpath(*PLUGINS[kind].folder)
    assert sorted(path.name for path in folder.iterdir()) == OWN[kind]
    assert {change.what for change in made} == {"linked"}
    assert {change.what for change in install(registry, programs[kind], kind)} == {"there"}
    assert {change.what for change in uninstall(registry, programs[kind], kind)} == {"removed"}
    assert tree(programs[kind]) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_changes_nothing(registry: Registry, programs: dict[Kind, Path], kind: Kind) -> None:
    before = tree(programs[kind])
    assert {change.what for change in install(registry, programs[kind], kind, dry_run=True)} == {"linked"}
    assert tree(programs[kind]) == before
    list(install(registry, programs[kind], kind))
    whole = tree(programs[kind])
    assert {change.what for change in uninstall(registry, programs[kind], kind, dry_run=True)} == {"removed"}
    assert tree(programs[kind]) == whole


def test_an_older_one_is_brought_up_to_date_and_a_changed_one_is_kept(
    registry: Registry, programs: dict[Kind, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = tmp_path / "older.py"
    older.write_text("# the nodes of an older version\n")
    with monkeypatch.context() as patched:
        patched.setattr(plugins, "_files", lambda plugin: [older.rename(tmp_path / "__init__.py")])
        list(install(registry, programs["node"], "node"))
    changes = {Path(change.path).name: change.what for change in install(registry, programs["node"], "node")}
    assert changes == {"__init__.py": "updated", "pyproject.toml": "linked", "requirements.txt": "linked"}
    file = programs["node"] / "custom_nodes" / "hnetkit" / "__init__.py"
    file.write_text("# changed by its owner\n")
    (kept,) = [change for change in install(registry, programs["node"], "node") if change.what != "there"]
    assert (kept.what, kept.path) == ("kept", str(file))
    assert "kept" in {change.what for change in uninstall(registry, programs["node"], "node")}
    assert file.read_text() == "# changed by its owner\n"


def test_a_file_of_somebody_else_is_kept(registry: Registry, programs: dict[Kind, Path]) -> None:
    file = programs["node"] / "custom_nodes" / "hnetkit" / "__init__.py"
    file.parent.mkdir()
    file.write_text("# another node of this name\n")
    changes = {Path(change.path).name: change for change in install(registry, programs["node"], "node")}
    assert changes["__init__.py"].what == "kept"
    assert changes["__init__.py"].reason == "it is not from hnetkit: it is kept"
    list(uninstall(registry, programs["node"], "node"))
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [False, True])
def test_a_kill_at_any_step_is_made_good_by_the_same_command_and_by_its_undoing(
    registry: Registry, programs: dict[Kind, Path], kind: Kind, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(programs[kind])

    def killed(number: int, work: Any) -> bool:
        try:
            with killed_at(monkeypatch, number, after=after):
                list(work(registry, programs[kind], kind))
        except Killed:
            return True
        return False

    number = 1
    while killed(number, install):
        list(uninstall(registry, programs[kind], kind))
        assert tree(programs[kind]) == before, number
        number += 1
    assert number > 3
    whole = tree(programs[kind])
    number = 1
    while killed(number, uninstall):
        list(install(registry, programs[kind], kind))
        assert tree(programs[kind]) == whole, number
        number += 1
    assert number > 2
    assert tree(programs[kind]) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_another_program_is_refused(
    registry: Registry, programs: dict[Kind, Path], kind: Kind, tmp_path: Path
) -> None:
    (other,) = (program for own, program in programs.items() if own != kind)
    before = tree(other)
    with pytest.raises(UsageError, match=f"{other} is not the folder of {PLUGINS[kind].program}: it has no "):
        list(install(registry, other, kind))
    with pytest.raises(NotFound, match="no such folder"):
        list(install(registry, tmp_path / "nowhere", kind))
    assert tree(other) == before


def test_the_command_says_what_else_the_program_needs(
    programs: dict[Kind, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    comfyui = programs["node"]
    python = comfyui / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("")
    before = tree(comfyui)
    assert run(["link", str(comfyui / "models"), "--layout", "comfyui", "--node"]) == 0
    told = capsys.readouterr()
    assert f"{python} -m pip install --no-deps hnetkit" in told.err
    assert str(comfyui / "custom_nodes" / "hnetkit" / "__init__.py") in told.out
    assert run(["link", str(comfyui), "--node", "--undo"]) == 0
    assert tree(comfyui) == before


def test_the_last_line_says_why_a_file_could_not_be_written(
    programs: dict[Kind, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = programs["node"] / "custom_nodes" / "hnetkit" / "__init__.py"
    file.parent.mkdir()
    file.write_text("# another node of this name\n")
    assert run(["link", str(programs["node"]), "--node", "--quiet"]) == 1
    assert "Error: 1 file could not be written: it is not from hnetkit: it is kept\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["ink", "--node"], ["--node", "--extension"], ["--node", "--copy"], ["--node", "--layout", "forge"]]
)
def test_a_plugin_goes_alone(programs: dict[Kind, Path], options: list[str]) -> None:
    before = tree(programs["node"])
    assert run(["link", str(programs["node"]), *options]) == 2
    assert tree(programs["node"]) == before


def test_the_node_folder_is_what_comfyui_and_its_registry_read(registry: Registry, programs: dict[Kind, Path]) -> None:
    list(install(registry, programs["node"], "node"))
    folder = programs["node"] / "custom_nodes" / "hnetkit"
    spec = importlib.util.spec_from_file_location("custom_nodes_hnetkit", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert len(module.NODE_DISPLAY_NAME_MAPPINGS) == 3
    assert callable(module.comfy_entrypoint)
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["version"] == hnetkit.__version__
    assert (folder / "requirements.txt").read_text().split() == project["project"]["dependencies"] == ["hnetkit"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_package_a_plugin_says_what_to_type(
    registry: Registry, programs: dict[Kind, Path], kind: Kind
) -> None:
    list(install(registry, programs[kind], kind))
    entry = programs[kind].joinpath(*PLUGINS[kind].folder, OWN[kind][0])
    bare = subprocess.run([sys.executable, "-I", "-S", entry], capture_output=True, text=True, check=False)
    assert "python -m pip install" in bare.stdout + bare.stderr
