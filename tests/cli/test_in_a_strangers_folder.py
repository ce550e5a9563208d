"""A folder that a stranger filled is no place that Python takes modules from, however hnetkit is started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("way", [["-m", "hnetkit"], ["-c", "import sys; sys.path.pop(0); import hnetkit.__main__"]])
def test_no_module_of_the_folder_is_run(way: list[str], tmp_path: Path) -> None:
    for name in {*sys.stdlib_module_names, "click", "torch", "numpy", "PIL", "platformdirs", "filelock", "tabulate"}:
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').write(__name__)\nraise SystemExit(99)\n")
    done = subprocess.run([sys.executable, *way, "list"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    assert done.returncode == 0, done.stderr
