"""The commands of the README and of the pages for users run as they are written there, on small models and fake sites.

`SMALLER` and `QUICKER` say what is changed, so that nothing takes hours or needs the network.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops
from support.fake_sites import Sites, World
from support.networks import network_file
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd
from support.training import make_pictures

from hnetkit import demo
from hnetkit.cli import run

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/baking.md", "docs/fetching.md", "docs/grids.md", "docs/sharing.md", "docs/training.md")

SMALLER = {
    "--size 512": "--size 16",
    "--refine 200": "--refine 1",
    "--caption blip": "",  # a model of 1 GB
    "model M": "model stable-diffusion-v1-5",
    "/models/4209": "/models/900000",
    "luisa_pinguin": "inkfox_test",
    " > captions.csv": "",
    "0:1:0.25": "0:1:0.5",
}
QUICKER = {
    "gallery": "--help",  # it serves until it is interrupted
    "generate": "--steps 2 --width 16 --height 16",
    "bake": "--steps 1",
    "grid": "--steps 1 --width 16 --height 16",
    "share": "-y",
    "train sweep": "--max-steps 2 --preview-every 0 --no-guards",
    "train small": "--max-steps 2 --preview-every 0 --no-guards",
    "train pictures": "--max-steps 2 --preview-every 0 --no-guards",
}


def commands(page: str, heading: str = "") -> list[str]:
    """Every command of the indented blocks of a page, or of a part of it, without comments; `\\` joins lines."""
    text = (REPOSITORY / page).read_text(encoding="utf-8").replace("\\\n", " ")
    if heading:
        text = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^    (hnetkit .*)$", text, re.MULTILINE)
    return [re.sub(r"\s{2,}#.*", "", line) for line in found]


def as_run(command: str) -> list[str]:
    for written, smaller in SMALLER.items():
        command = command.replace(written, smaller)
    more = next((more for which, more in QUICKER.items() if command.startswith(f"hnetkit {which}")), "")
    return [os.path.expanduser(word) for word in shlex.split(f"{command} {more}")[1:]]  # as a shell does


@pytest.fixture
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder as the pages take it for granted: A1111 with networks, a model, photos, a picture, two sites."""
    (tmp_path / "stable-diffusion-webui" / "models" / "hypernetworks").mkdir(parents=True)
    (tmp_path / "stable-diffusion-webui" / "webui.py").touch()
    for seed, name in enumerate(("ink", "glow")):
        folder = tmp_path / "stable-diffusion-webui" / "models" / "hypernetworks"
        network_file(folder, f"{name}.pt", widths=(*SELF_WIDTHS, SD_CROSS_WIDTH), seed=seed)
    tiny_sd(least=True).save_pretrained(tmp_path / "stable-diffusion-v1-5")
    make_pictures(tmp_path / "photos", 4, sizes=((32, 24),))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with Sites(World.make(3, plain=True)) as sites:
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", sites.civitai_url)
        monkeypatch.setenv("CIVITAI_TOKEN", sites.token)
        wash = network_file(tmp_path, "wash.pt", seed=7).read_bytes()
        sites.hub.add("someone/hypernetworks", {"styles/wash.pt": wash})
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        monkeypatch.setenv("HF_TOKEN", sites.hub_token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(page: str, at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if page != "docs/training.md":  # which trains its own
        assert run(["scan", "stable-diffusion-webui/models/hypernetworks"]) == 0
    if page == "docs/baking.md" and not demo.networks():
        pytest.skip("the bundled demo model is missing from this checkout")
    assert run(["config", "model", "demo" if page == "docs/baking.md" else "stable-diffusion-v1-5"]) == 0
    assert run(["generate", "a castle", *QUICKER["generate"].split(), "--out", "an-old-picture.png"]) == 0
    found = commands(page)
    assert len(found) >= 2
    for command in found:
        capsys.readouterr()
        assert run(as_run(command)) == 0, f"{command}\n{capsys.readouterr().err}"


@pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")
def test_the_ten_minutes_with_the_demo_model_run_with_the_few_steps_that_the_page_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "photos", 10, sizes=((96, 80),))
    for command in commands("docs/training.md", "Ten minutes with the demo model"):
        shorter = ["--max-steps", "20"] if command.startswith("hnetkit train small") else []
        assert run([*shlex.split(command)[1:], *shorter]) == 0, command
    previews = [path.name for path in Path("training/first/previews").iterdir()]
    assert "first-0.png" in previews
    assert Path("first.png").exists()
    assert Path("first-grid.png").exists()


@pytest.mark.long
def test_the_picture_of_the_readme_is_what_its_command_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = re.search(r"^\*`(hnetkit grid [^`]*)`", (REPOSITORY / "README.md").read_text("utf-8"), re.MULTILINE)
    assert command is not None
    assert run(shlex.split(command[1])[1:]) == 0
    with Image.open("grid.png") as drawn, Image.open(REPOSITORY / "docs" / "grid.png") as shown:
        assert drawn.size == shown.size
        assert (
            max(high for _, high in ImageChops.difference(drawn.convert("RGB"), shown.convert("RGB")).getextrema()) < 8
        )
