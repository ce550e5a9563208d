"""Three top-level folders install as one package, and the checkout disturbs nobody's imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import release
from filelock import FileLock

import hnetkit
from hnetkit.cli import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_package_folder_is_listed_and_every_listed_package_is_there() -> None:
    stated = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set()
    files = {REPOSITORY / "hnetkit" / "comfyui" / "custom_node"}  # a folder of ComfyUI's, copied there as it is
    for folder, prefix in (("hnetkit", "hnetkit"), ("kernels", "hnetkit.kernels"), ("registry", "hnetkit.registry")):
        for init in (REPOSITORY / folder).rglob("__init__.py"):
            if init.parent in files:
                continue
            found.add(".".join([prefix, *init.parent.relative_to(REPOSITORY / folder).parts]))
    assert set(stated) == found


def test_the_version_in_python_is_the_one_that_is_installed_and_that_the_command_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stated = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert hnetkit.__version__ == stated
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"hnetkit, version {stated}\n"


def test_the_folder_kernels_stands_aside_for_the_package_of_that_name() -> None:
    # transformers imports any top-level `kernels` that it finds: ours must do nothing when met by accident
    body = ast.parse((REPOSITORY / "kernels" / "__init__.py").read_text()).body
    assert len(body) == 1
    assert isinstance(body[0], ast.Expr)


def test_nothing_of_ours_is_imported_under_a_foreign_name(tmp_path: Path) -> None:
    code = "import hnetkit.kernels, hnetkit.registry, sys; print('kernels' in sys.modules, 'registry' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


def test_from_the_repository_root_with_hugging_faces_kernels_installed() -> None:
    import importlib.metadata

    assert importlib.metadata.version("kernels")  # Hugging Face's own, a test dependency
    code = "from diffusers import StableDiffusionPipeline; from transformers import CLIPTextModel"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=240)


def test_a_lock_is_of_a_version_that_does_not_follow_links(tmp_path: Path) -> None:
    """Before 3.20.1, taking a lock emptied the file that a link of its name leads to."""
    needed = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    (least,) = (one.partition(">=")[2] for one in needed if one.startswith("filelock"))
    assert tuple(map(int, least.split("."))) >= (3, 20, 1)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        FileLock(tmp_path / ".lock").acquire(timeout=0)
    assert (tmp_path / "precious").read_text() == "precious"


def test_the_changelog_has_a_section_for_the_version() -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## \[{re.escape(version)}\]", (REPOSITORY / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


def test_a_wheel_with_too_little_or_too_much_is_not_released(tmp_path: Path) -> None:
    wheel = tmp_path / "hnetkit-1-py3-none-any.whl"
    for names, fault in (((), "is missing"), (("hnetkit/kernels/__pycache__/eager.pyc",), "does not belong there")):
        with zipfile.ZipFile(wheel, "w") as opened:
            for name in [*(release.wanted_in_wheel() if names else ()), *names]:
                opened.writestr(name, "")
        with pytest.raises(release.Fault, match=fault):
            release.check_wheel(wheel)
