"""A folder that cannot be read is no empty one: every command that reads a folder names it.

None ends as if all were well; but a picture is drawn, with a warning, where only textual inversions may be missing.
"""

from __future__ import annotations

import ast
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support import networks
from support.failing_disk import fail_at

import hnetkit
from hnetkit.cli import run

_LISTING = frozenset({"scandir", "listdir", "iterdir", "glob", "rglob", "walk"})
_OURS = "of hnetkit's own folders"
_PART = "where the part is missing, the model is refused"
# module -> what it lists folders for; one that lists a person's folder is tried below
LISTS: dict[str, str] = {
    "library.walking": "scan, link, generate with LoRAs and embeddings",
    "library.plugins": "what is in a folder that hnetkit made; an error is raised",
    "library.link": "how a name is spelled there; an error is raised",
    "library.belongings": "what lies beside a file that is removed; its sidecars then stay",
    "library.placing": "whether two names are one; they are two then",
    "library.trash": "the trash and the remains of killed processes in it",
    "generate.loading.extra_networks": "pictures with vectors, for a warning; the folder was walked before",
    "formats.conversion": "convert",
    "train.preparing.images": "train, train prepare, train review",
    "train.preparing.folder": "whether the output folder is empty; an error is raised",
    "train.run_folder": "what stands in the output folder; an error is raised",
    "train.sweeps": "what stands in the output folder; an error is raised",
    "train.checkpoints": _OURS,
    "generate.image_files": "the next free number; an error is raised",
    "generate.grids.files": _OURS,
    "gallery.drawing_queue": "the queue, of hnetkit's own; an error is raised",
    "generate.loading.pipeline": _PART,
    "generate.loading.diffusers_folder": _PART,
    "generate.loading.checkpoints": _OURS,
    "generate.loading.model_source": "a hint",
    "hub": "hub cache",
    "files": "the remains of killed processes",
    "sources.install": "the remains of killed processes",
    "sources.workers": "locks, of hnetkit's own",
    "sources.download": "parts of a file that is here; they stay",
    "sharing.folder": "what stands in the output folder; an error is raised",
    "demo": _OURS,
    "settings": "a hint",
    "gallery.pictures": "the pictures of a gallery, which says it on the page: tests/gallery/test_pictures.py",
    "webui.files": "the webui's own folder, of which the webui lists what it can",
    "baking.checkpoint": "a model that is copied; an error is raised",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Networks and pictures, in it and in ``sub``."""
    made = tmp_path / "stuff"
    (made / "sub").mkdir(parents=True)
    for number, place in enumerate((made, made / "sub")):
        networks.network_file(place, f"net{number}.pt", seed=number)
        Image.new("RGB", (64, 64)).save(place / f"{number}.png")
        (place / f"{number}.txt").write_text("a cat")
    return made


COMMANDS = {
    "scan": ["scan", "FOLDER"],
    "scan again": ["scan"],
    "convert": ["convert", "--to", "safetensors", "--out", "OUT", "FOLDER"],
    "link": ["link", "FOLDER", "--layout", "a1111", "--copy"],
    "loras": ["generate", "a <lora:ink:1>", "--out", "OUT"],
    "embeddings": ["generate", "a cat", "--out", "OUT"],
    "train": ["train", "FOLDER", "--name", "x"],
    "train prepare": ["train", "prepare", "FOLDER", "--out", "OUT", "--size", "64"],
    "train review": ["train", "review", "FOLDER"],
}
ENDS = {"loras": 4, "embeddings": 0}  # the LoRA may be there; the words may be meant
TAKES_ALL_BELOW = ("scan", "scan again", "loras", "embeddings")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize(
    ("command", "place"), [(name, ".") for name in COMMANDS] + [(n, "sub") for n in TAKES_ALL_BELOW]
)
def test_a_folder_that_cannot_be_read_is_named(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    place: str,
    number: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    run(["scan", str(folder)])
    if command in ("loras", "embeddings"):
        run(["config", command, str(folder)])
    if command == "link":
        (folder / "models" / "hypernetworks").mkdir(parents=True)
        place = "models/hypernetworks"
    capfd.readouterr()
    fail_at(monkeypatch, folder / place, number, "scandir", "listdir")
    places = {"FOLDER": str(folder), "OUT": str(tmp_path / "out")}
    code = run([places.get(word, word) for word in COMMANDS[command]])
    assert code == ENDS[command] if command in ENDS else code not in (0, 4)
    out, err = capfd.readouterr()
    assert any(str(folder / place) in line and os.strerror(number) in line for line in (out + err).splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_not_there_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run(["scan", str(folder)])
    if command in ("loras", "embeddings"):
        run(["config", command, str(folder)])
    capfd.readouterr()
    shutil.rmtree(folder)
    places = {"FOLDER": str(folder), "OUT": str(tmp_path / "out")}
    assert run([places.get(word, word) for word in COMMANDS[command]]) != 0
    assert str(folder) in "".join(capfd.readouterr())


def listing_modules() -> Iterator[str]:
    """The modules that list folders."""
    package = Path(hnetkit.__file__).parent
    for path in sorted(package.rglob("*.py")):
        calls = (
            node.func for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        )
        named = {
            call.attr for call in calls if isinstance(call, ast.Attribute) and "ast" not in ast.unparse(call.value)
        }
        if named & _LISTING:
            yield ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")


def test_every_module_that_lists_folders_is_known_here() -> None:
    assert set(listing_modules()) == set(LISTS), "say what it lists, and try a folder that cannot be read above"
