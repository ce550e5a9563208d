"""What `pip install hnetkit` alone can do, and what says which packages it needs beside that."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import networks
from support.training import make_pictures

from hnetkit import demo
from hnetkit.errors import HnetkitError, MissingExtra, failure_of

OF_THE_EXTRA = ("accelerate", "diffusers", "huggingface_hub", "matplotlib", "peft", "PIL", "transformers")
OF_THE_COMMAND_LINE = (
    *("blake3", "click", "click_default_group", "platformdirs", "requests", "rich", "safetensors", "sqlite_utils"),
    *("filelock", "triton"),
)

WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def everything_but(*kept: str) -> tuple[str, ...]:
    """Every module that is installed, but for those of the kept packages and of what these need themselves."""
    known, left = {"hnetkit"}, [*kept]
    while left:
        name = left.pop()
        if name not in known:
            known.add(name)
            left += needs_of(name)
    modules = importlib.metadata.packages_distributions().items()
    return tuple(module for module, packages in modules if known.isdisjoint(map(plain, packages)))


def needs_of(package: str) -> Iterator[str]:
    try:
        lines = importlib.metadata.requires(package) or ()
    except importlib.metadata.PackageNotFoundError:  # of another system or Python
        return
    for line in lines:
        if "extra ==" not in line:
            yield plain(re.split(r"[^\w.-]", line, maxsplit=1)[0])


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def python(code: str, absent: tuple[str, ...], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = WITHOUT.format(absent=absent) + code
    return subprocess.run([sys.executable, "-P", "-c", whole, *arguments], cwd=folder, capture_output=True, text=True)


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from hnetkit.cli import run; sys.exit(run(sys.argv[1:]))"
    return python(code, OF_THE_EXTRA, folder, *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    networks.network_file(tmp_path, "ink.pt", widths=(320,))
    make_pictures(tmp_path / "pictures", 2)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        *(["scan", "."], ["list"], ["doctor"], ["inspect", "ink.pt"], ["validate", "ink.pt"], ["config"]),
        *(["convert", "ink.pt", "ink.safetensors"], ["prompt", "a <hypernet:ink:1>"], ["train", "schedule", "1e-3:5"]),
        ["bench", "ink.pt", "--size", "64", "--batch", "1", "--seconds", "0.01", "--path", "eager"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_library_is_kept_without_what_draws(arguments: list[str], folder: Path) -> None:
    done = command(folder, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a cat", "--model", str(demo.model_folder())],
        ["grid", "--x", "steps=1-2", "--prompt", "a cat", "--model", str(demo.model_folder())],
        ["train", "run", "pictures", "--name", "new", "--model", str(demo.model_folder())],
        *(["train", "prepare", "pictures", "--out", "prepared"], ["train", "review", "pictures"], ["pull", "hf:a/b"]),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_what_is_missing_is_one_line_with_the_command_that_installs_it(arguments: list[str], folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = command(folder, *arguments)
    assert done.returncode == 2, done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("Error: ")
    assert error.endswith(", which is not installed")
    assert hint == 'Hint: pip install "hnetkit[diffusers]"'
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "call",
    [
        *("train({'name': 'new', 'pictures': 'pictures'})", "sweep({'name': 'new', 'pictures': 'pictures'}, vary={})"),
        *("prepare('pictures', 'prepared')", "review('pictures')"),
    ],
    ids=lambda call: call.split("(")[0],
)
def test_what_is_missing_is_named_from_python_too(call: str, folder: Path) -> None:
    code = f"""
import hnetkit
try:
    hnetkit.train.{call}
except hnetkit.errors.MissingExtra as error:
    print(error.exit_code, error.hint)
"""
    done = python(code, OF_THE_EXTRA, folder)
    assert done.stdout == '2 pip install "hnetkit[diffusers]"\n', done.stderr


def test_only_what_an_extra_installs_is_taken_for_a_missing_extra() -> None:
    def failed(name: str) -> HnetkitError:
        return failure_of(ModuleNotFoundError(f"No module named {name!r}", name=name), "drawing")

    assert str(failed("PIL.Image")) == "drawing: needs pillow, which is not installed"
    assert isinstance(failed("diffusers"), MissingExtra)
    assert not isinstance(failed("hnetkit.nowhere"), MissingExtra)
    assert failed("diffusers").exit_code == 2


@pytest.mark.parametrize("path", ["auto", "reference", "eager"])
def test_networks_are_read_written_and_computed_with_torch_and_numpy_alone(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", path)
    networks.network_file(tmp_path, "ink.pt", widths=(8,), activation="relu")
    code = """
import torch, hnetkit
net = hnetkit.load("ink.pt")
hnetkit.save(net, "ink.safetensors")
hnetkit.save(hnetkit.load("ink.safetensors"), "again.pt")
k, v = hnetkit.Stack([(net, 0.5), (hnetkit.load("again.pt"), 0.5)])(torch.ones(2, 8))
print(tuple(k.shape), tuple(v.shape), not torch.equal(k, v))
"""
    absent = {*everything_but("torch", "numpy"), *OF_THE_EXTRA, *OF_THE_COMMAND_LINE}
    assert "pytest" in absent
    assert absent.isdisjoint(("torch", "numpy", "hnetkit"))
    done = python(code, tuple(absent), tmp_path)
    assert done.stdout == "(2, 8) (2, 8) True\n", done.stderr


PLUGIN = """
sys.path.insert(0, {tests!r})
import torch
from pathlib import Path
from types import SimpleNamespace
from support import comfyui, webui

class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.to_k = self.to_v = torch.nn.Linear(8, 8)

unet = torch.nn.Module()
block = torch.nn.ModuleDict({{"attn1": Attention(), "attn2": Attention()}})
blocks = torch.nn.ModuleDict({{"transformer_blocks": torch.nn.ModuleList([block])}})
unet.input_blocks = torch.nn.ModuleDict({{"1": blocks}})
unet.num_res_blocks, unet.channel_mult, unet.dtype = [1], [1], torch.float32
inner = SimpleNamespace(diffusion_model=unet, manual_cast_dtype=None, computation_dtype=torch.float32)
x, options = torch.ones(2, 3, 8), {{"block": ("input", 1), "block_index": 0}}
{use}
print(tuple(k.shape), not torch.equal(k, x))
"""

IN_COMFYUI = """
with comfyui.installed(Path("models/hypernetworks")):
    from hnetkit.comfyui import NODE_CLASS_MAPPINGS
    node = NODE_CLASS_MAPPINGS["HnetkitHypernetworksFromTags"]()
    model, text = node.execute(model=comfyui.Model(inner, comfyui.CPU, comfyui.CPU), text="a <hypernet:ink:0.5>")
    _, k, v = model.patches()[0](x, x, x, options)
"""

IN_FORGE = """
program = SimpleNamespace(before_ui=[], networks={}, options=SimpleNamespace(sd_hypernetwork="None"))
with webui.installed(program, Path("models")):
    from hnetkit.webui import register
    script = register()()
    program.before_ui[0]()
    unet = webui.UNetPatcher(inner, comfyui.CPU, comfyui.CPU)
    p = SimpleNamespace(sd_model=SimpleNamespace(forge_objects=SimpleNamespace(unet=unet)), extra_generation_params={},
                        sampler=SimpleNamespace(model_wrap_cfg=None))
    program.networks["hypernet"].activate(p, [SimpleNamespace(items=["ink", "0.5"])])
    script.process_before_every_sampling(p)
    _, k, v = p.sd_model.forge_objects.unet.patches()[0](x, x, x, options)
"""


@pytest.mark.parametrize("use", [IN_COMFYUI, IN_FORGE], ids=["comfyui", "forge"])
def test_nodes_and_the_extension_need_torch_and_numpy_alone(use: str, tmp_path: Path) -> None:
    (tmp_path / "models" / "hypernetworks").mkdir(parents=True)
    networks.network_file(tmp_path / "models" / "hypernetworks", "ink.pt", widths=(8,), activation="relu")
    absent = {*everything_but("torch", "numpy"), *OF_THE_EXTRA, *OF_THE_COMMAND_LINE}
    code = PLUGIN.format(tests=str(Path(__file__).parents[1]), use=use)
    done = python(code, tuple(absent), tmp_path)
    assert done.stdout == "(2, 3, 8) True\n", done.stderr


def test_a_repository_s_name_asks_for_the_hub_s_package_and_a_file_does_not(tmp_path: Path) -> None:
    networks.network_file(tmp_path, "ink.pt", widths=(8,))
    code = """
import torch, hnetkit
unet = torch.nn.Identity()
unet.down_blocks = ()
for name in ("owner/repo", "ink.pt"):
    try:
        hnetkit.load_hypernetwork(unet, name)
    except hnetkit.errors.HnetkitError as error:
        print(type(error).__name__, error, error.hint, sep=" | ")
"""
    done = python(code, (*OF_THE_EXTRA, *OF_THE_COMMAND_LINE), tmp_path)
    of_the_name, of_the_file = done.stdout.splitlines()
    hint = 'pip install "hnetkit[diffusers]"'
    assert of_the_name == f"MissingExtra | owner/repo: needs huggingface-hub, which is not installed | {hint}"
    assert of_the_file.startswith("AttachError | Identity has no attention layers"), "the file was read"


def test_a_triton_that_is_too_old_counts_as_absent_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("__version__ = '3.2.0'")
    code = """
import os, sys
sys.path.insert(0, ".")
from hnetkit.kernels.dispatch import chosen_path
print(chosen_path())
os.environ["HNETKIT_KERNEL"] = "fused"
try:
    chosen_path()
except Exception as error:
    print(error)
"""
    done = python(code, (), tmp_path)
    assert done.stdout.splitlines() == [
        "eager",
        "HNETKIT_KERNEL=fused: this path cannot run here: Triton 3.2.0 is older than 3.6",
    ], done.stderr
