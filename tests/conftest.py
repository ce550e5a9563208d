"""What every test stands on: its own home folder, no network, no colour, and the golden data where it is there."""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import logging
import logging.handlers
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on tensors so small a second thread costs more than it brings

import torch

REPOSITORY = Path(__file__).resolve().parent.parent

# as shells start what runs in the background, and `nohup` does: what tests start and end would ignore it too
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
MEMORY = Path("/dev/shm")
"""A file system in memory, where there is one: on a disk, tests wait for what SQLite and hnetkit flush."""


def _can_hold_tests(folder: Path) -> bool:
    """Whether there is room, and programs could run: tests show that planted ones do not."""
    if not os.access(folder, os.W_OK) or shutil.disk_usage(folder).free <= 4 << 30:
        return False
    return not os.statvfs(folder).f_flag & os.ST_NOEXEC


if _can_hold_tests(MEMORY):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))
sys.dont_write_bytecode = False  # else each of a hundred processes compiles hnetkit anew
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "120"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are defined: before any of them is imported
    if importlib.util.find_spec("triton"):
        from support.quick_interpreter import quicken

        quicken()


def pytest_report_header() -> str:
    packages = ("torch", "diffusers", "transformers", "sqlite-utils", "click", "hypothesis")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    return f"sqlite {sqlite3.sqlite_version}, {versions}"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays for good: no garbage collection looks at it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # what is never collected is a leak to Triton's bindings, which report it


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """HNETKIT_HOME of this test: no test can touch the developer's own library."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HNETKIT_HOME", str(folder))
    for name in ("HNETKIT_LIBRARY", "HNETKIT_KERNEL", "HNETKIT_DEBUG", "CIVITAI_TOKEN", "CIVITAI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", "off")  # what Civitai has lost is looked for there
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # thousands of them would fill the memory


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """What is logged, of every level. Pytest's own plugin is off: it costs each of thousands of tests a millisecond."""
    handler, root = logging.handlers.BufferingHandler(sys.maxsize), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.buffer
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors made by the original implementation; it is not part of the repository."""
    folder = Path(os.environ.get("HNETKIT_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "data" / "golden").is_dir():
        pytest.skip(
            "compares with recorded outputs of AUTOMATIC1111, which hnetkit may not distribute: HNETKIT_SHARED=FOLDER"
        )
    return folder
