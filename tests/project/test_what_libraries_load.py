"""Every call by which a library opens a file or builds what a file says: a list, and what each must be told.

Libraries choose by themselves what they load: pickles, code beside a model, files that a configuration names. So each
such call stands here, with the arguments that hold it to what hnetkit means. A new one is added after a look at what
the library does with a hostile file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

LOADS = re.compile(
    r"""(?x) from_pretrained | from_single_file | from_config | from_dict | from_file | from_json\w* | from_url
    | load | loads | load_\w+ | open | create_model | torch_load | safe_open | read_image | imread | imdecode
    | hf_hub_download | snapshot_download | cached_download | cached_file | download | run_path
    | Unpickler | pipeline | load_library | AutoModel\w* | AutoTokenizer | AutoProcessor | AutoImageProcessor
    | AutoConfig | DiffusionPipeline | AutoPipeline\w*"""
)
"""Names by which the libraries load. Methods of hnetkit's own that are called so are told by `OURS`."""

LIBRARIES = (
    "diffusers",
    "transformers",
    "peft",
    "timm",
    "PIL",
    "torch",
    "huggingface_hub",
    "safetensors",
    "accelerate",
)

LOCAL = {"local_files_only": "True"}

# module -> call -> the keyword arguments that it must have; `Images`, `images` and `Image` are PIL's
ALLOWED: dict[str, dict[str, dict[str, str]]] = {
    # classes on a list, of configurations that hnetkit checked; weights come as tensors
    "generate.loading.checkpoints": {"getattr(diffusers, scheduler_config['_class_name']).from_config": {}},
    "generate.loading.parts": {
        "UNet2DConditionModel.from_config": {},
        "AutoencoderKL.from_config": {},
        "kind.config_class.from_dict": {},
    },
    "generate.sampling.samplers": {"kind.from_config": {}},
    "generate.sampling.schedulers": {"DDIMScheduler.from_config": {}},
    # bytes of the safetensors container, of limited size: no path and no pickle
    "train.checkpoints": {"load": {}},
    "train.step": {"DDPMScheduler.from_config": {}},
    "generate.loading.tokenizer": {"getattr(transformers, kind).from_pretrained": LOCAL},
    # tensors, never a path
    "generate.loading.extra_networks": {
        "pipe.load_lora_weights": {"adapter_name": "name"},
        "pipe.load_textual_inversion": {"token": "token", "text_encoder": "encoder", "tokenizer": "tokenizer"},
    },
    # classes on a list
    "generate.loading.diffusers_folder": {
        "getattr(diffusers, kind).from_config": {},
        "diffusers.EulerDiscreteScheduler.from_config": {},
    },
    # a file by its name, which hnetkit's own reader opens; what is in the cache is asked of nobody
    "hub": {
        "hub.hf_hub_download": {},
        "hf_hub_download": {"revision": "revision"},
        "snapshot_download": {"allow_patterns": "list(patterns)", **LOCAL},
    },
    "train.preparing.captioning_models": {
        # a clean folder that hnetkit wrote
        "BertTokenizer.from_pretrained": LOCAL,
        # no folder: a configuration and tensors that hnetkit made
        "kind.from_pretrained": {"config": "config", "state_dict": "tensors"},
    },
    # images: one reader, and fonts that come with Pillow or matplotlib
    "images": {"Image.open": {"formats": "*"}},
    "generate.grids.sheet": {"ImageFont.load_default": {}},
}

# what is called like a loader and is hnetkit's own, Python's, or loads nothing
OURS = re.compile(
    r"""(?x) open | os\.open | webbrowser\.open | (?!Image\b|images\b)[\w.()]+\.open | image\.load | json\.loads?
    | (?:hnetkit\.|settings\.|captioners\.)? (?:load | load_hypernetwork | load_model | load_tagger | load_blip)
    | load_(?:component | pipeline_folder | pipeline | vae | checkpoint | tokenizers | embeddings | trained_on)
    | download
    | Recipe\.from_json | dataclass_from_json | read_image
    | (?:self\. | renderer\. | source\. | ModelSource\([\w,\ ]*\)\. | trained\.mlp\(width,\ side\)\.)_?load\w*
    | type\(unet\)\.load_lora_adapter | [\w.]*\.load_state_dict"""
)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((REPOSITORY / "hnetkit").rglob("*.py")):
        yield ".".join(path.relative_to(REPOSITORY / "hnetkit").with_suffix("").parts), path


def of_libraries(tree: ast.AST) -> set[str]:
    """Names that a module has from one of the libraries, as it calls them."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names if is_of_one(alias.name)}
        elif isinstance(node, ast.ImportFrom) and is_of_one(node.module or ""):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def is_of_one(module: str) -> bool:
    return module.split(".")[0] in LIBRARIES


def loading_calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, str]]]:
    """Every call that may have a library load something: as it is written, and its keyword arguments."""
    names = of_libraries(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        if not LOADS.fullmatch(last):
            continue
        root = re.split(r"[.(\[]", called)[0]
        if root not in names and OURS.fullmatch(called):
            continue
        yield called, {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value))
def test_what_a_library_loads_is_on_the_list(module: str, path: Path) -> None:
    allowed = ALLOWED.get(module, {})
    for called, words in loading_calls(ast.parse(path.read_text(encoding="utf-8"))):
        assert called in allowed, (
            f"{called} in {module}: what may it load? Say so in ALLOWED, with what it must be told"
        )
        for word, value in allowed[called].items():
            assert word in words, f"{called} in {module} needs {word}="
            assert value in ("*", words[word]), f"{called} in {module} needs {word}={value}"


def test_every_call_on_the_list_stands_in_the_code() -> None:
    calls = {
        (module, called)
        for module, path in modules()
        for called, _ in loading_calls(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {(module, called) for module, rows in ALLOWED.items() for called in rows} <= calls


def test_nothing_asks_for_code_of_a_models_own() -> None:
    for module, path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword):
                assert node.arg not in ("custom_pipeline", "custom_revision", "weights_only"), module
                if node.arg == "trust_remote_code":
                    assert ast.unparse(node.value) == "False", module
                if node.arg == "use_safetensors":
                    assert ast.unparse(node.value) == "True", module


AUTOMATIC = re.compile(r"Auto(?:Model\w*|Tokenizer|Processor|ImageProcessor|FeatureExtractor|Config|Pipeline\w*)")


def test_no_class_is_chosen_by_a_file() -> None:
    for module, path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not {name for name in names if AUTOMATIC.fullmatch(name)}, module
        assert "DiffusionPipeline" not in names, module


NEVER = frozenset(
    {
        *(
            "pickle",
            "_pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "joblib",
            "marshal",
            "shelve",
            "dbm",
            "code",
            "codeop",
        ),
        *("yaml", "xml", "plistlib", "tarfile", "runpy", "ctypes", "cffi", "pandas", "onnxruntime", "h5py", "pty"),
        *("multiprocessing", "asyncio", "imp", "zipimport", "jinja2", "msgpack", "tokenizers"),
    }
)
"""Modules that run what a file holds, start programs, or read formats that no hypernetwork comes with."""

# module -> names of what only it may use, each after a look
POWERS: dict[str, set[str]] = {
    "": {"importlib.import_module"},
    "cli.demo": {"subprocess"},
    "gallery.worker": {"subprocess"},  # Python, with arguments that are constants
    "cli.groups": {"importlib.import_module"},
    # a file manager, by an absolute path, without a shell
    "gallery.actions": {"subprocess"},
    "gallery.pages": {"jinja2"},  # templates of the package alone
    "generate.grids.sheet": {"truetype"},
    "train.preparing.captioners": {"importlib.import_module"},
    "train.preparing.crops": {"importlib.import_module", "CascadeClassifier"},
}
_POWER = re.compile(
    r"""(?x) __import__ | exec | eval | execfile | os\.(?:system | popen | exec\w+ | spawn\w+ | startfile)
    | subprocess | importlib\.(?:import_module | reload | util\.(?:spec_from_\w+ | module_from_spec))
    | CascadeClassifier | readNet\w* | truetype | enable_load_extension | load_extension | unpack_archive
    | fromfile | genfromtxt | loadtxt | memmap | open_memmap | read_pickle | InferenceSession | run_module"""
)


def powers(tree: ast.AST) -> Iterator[str]:
    """Every name by which Python or a library runs or opens what it is given, called or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute | ast.Name):
            found = [ast.unparse(node)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [node.value] if _POWER.fullmatch(node.value) else []
        else:
            continue
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        for name in found:
            last = name.rpartition(".")[2]
            if (is_import and name.split(".")[0] in NEVER) or _POWER.fullmatch(name):
                yield name
            elif last not in ("eval", "subprocess") and _POWER.fullmatch(last):  # torch's modules have an eval too
                yield last


def loaders_by_another_name(tree: ast.AST) -> Iterator[str]:
    """Loaders of libraries that are handed on, renamed or looked up, so that no call of theirs is seen."""
    names, calls = of_libraries(tree), {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_of_one(node.module or ""):
            yield from (alias.name for alias in node.names if LOADS.fullmatch(alias.name) and alias.asname)
        elif isinstance(node, ast.Attribute) and LOADS.fullmatch(node.attr) and id(node) not in calls:
            if ast.unparse(node).split(".")[0] in names:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            wanted = [str(word.value) for word in node.args[1:2] if isinstance(word, ast.Constant)]
            yield from (ast.unparse(node) for word in wanted if LOADS.fullmatch(word))


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value))
def test_nothing_runs_or_opens_what_is_not_on_the_list(module: str, path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = module.removesuffix("__init__").rstrip(".")
    assert set(powers(tree)) <= POWERS.get(module, set())
    assert list(loaders_by_another_name(tree)) == []


@pytest.mark.parametrize(
    "line",
    [
        *("exec(text)", "eval(text)", "__import__(name)", "import yaml", "import xml.etree.ElementTree as E"),
        *("import pickle", "from marshal import loads", "import shelve", "import runpy", "import ctypes"),
        *("import subprocess\nsubprocess.run(x)", "import os\nos.system(x)", "import tarfile", "import pandas"),
        *("import importlib\nimportlib.import_module(x)", "from importlib import import_module\nimport_module(x)"),
        "import importlib.util\nimportlib.util.spec_from_file_location('a', p)",
        *("import cv2\ncv2.CascadeClassifier(p)", "import cv2\ncv2.dnn.readNet(p)", "import onnxruntime"),
        *("from PIL import ImageFont\nImageFont.truetype(p)", "connection.enable_load_extension(True)"),
        *(
            "import numpy as np\nnp.fromfile(p)",
            "import numpy as np\nnp.memmap(p)",
            "import shutil\nshutil.unpack_archive(p)",
        ),
    ],
)
def test_what_runs_or_opens_is_seen(line: str) -> None:
    assert list(powers(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "import torch\nread = torch.load\nread(path)",
        "import torch\ngetattr(torch, 'load')(path)",
        "from torch import load as open_image\nopen_image(path)",
        "import torch, functools\nfunctools.partial(torch.load, path)()",
        "import torch\nlist(map(torch.load, paths))",
        "import diffusers\nread = diffusers.UNet2DConditionModel.from_pretrained\nread(path)",
        "from safetensors.torch import load_file as read\nread(path)",
        "from safetensors import safe_open as opened\nopened(path)",
    ],
)
def test_a_loader_under_another_name_is_seen(line: str) -> None:
    assert list(loaders_by_another_name(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(path)",
        "from torch import load\nload(path)",
        "from PIL import Image\nImage.open(path)",
        "import diffusers\ngetattr(diffusers, kind).from_pretrained(folder)",
        "model = cls.from_pretrained(folder)",
        "pipe.load_lora_weights(path)",
        "from safetensors.torch import load_file\nload_file(path)",
        "import timm\ntimm.create_model(name)",
        "from huggingface_hub import snapshot_download\nsnapshot_download(name)",
        "import numpy as np\nnp.load(path)",
    ],
)
def test_a_call_that_loads_is_seen(line: str) -> None:
    assert list(loading_calls(ast.parse(line)))
