"""What the program makes, as one hash a line: pictures, trainings, K and V, every path of the kernels, a mirror.

A change that is to change nothing leaves every line as it was. The hashes hold for one machine and one torch: run it
before and after, in the environment of either commit, and compare.

    PYTHONPATH=tests python -P tools/digests.py > before.txt
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}

import torch
from PIL import Image
from support.fake_sites import Sites, World
from support.networks import a1111_network, network_file, save_pt
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS, tiny_sd, tiny_sdxl
from support.training import make_pictures

import hnetkit
from hnetkit.cli import run

Digests = Iterator[tuple[str, str]]

PATHS = ("reference", "eager", "grouped", "fused")
SAMPLERS = (
    "Euler a",
    "Euler",
    "LMS",
    "LMS Karras",
    "Heun",
    "DPM2",
    "DPM2 a Karras",
    "DPM++ 2S a",
    "DPM++ 2M",
    "DPM++ 2M Karras",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun Exponential",
    "DPM++ 3M SDE Karras",
    "LCM",
    "DDIM",
    "PLMS",
    "UniPC",
)
CAT = "a cat <hypernet:ink:0.8>"
DRAWINGS: dict[str, tuple[str, ...]] = {
    **{f"sampler {name}": (CAT, "--sampler", name, "--steps", "4") for name in SAMPLERS},
    "no network": ("a cat",),
    "two networks": ("a cat <hypernet:ink:0.8><hypernet:wash:-0.5>",),
    "sides and kinds": ("a cat <hypernet:ink:k=0.5:v=1:self=0.3:cross=2>",),
    "a window": ("a cat <hypernet:ink:1:start=0.25:end=0.75>", "--steps", "8"),
    "blocks": ("a cat <hypernet:ink:1:blocks=up>",),
    "from the command line": ("a cat", "-n", "wash:0.4"),
    "weights": ("a (cat:1.3) [dog] ((hat)) <hypernet:ink:0.8>",),
    "a schedule": ("a [cat:dog:0.5] in [red|blue] <hypernet:ink:0.8>", "--steps", "6"),
    "AND": ("a cat AND a dog:0.5 <hypernet:ink:0.8>",),
    "BREAK": ("a cat BREAK a dog <hypernet:ink:0.8>",),
    "no-norm": ("a (cat:1.3) <hypernet:ink:0.8>", "--emphasis", "no-norm"),
    "negative": (CAT, "--negative-prompt", "a (dog:1.2)"),
    "clip skip": (CAT, "--clip-skip", "2"),
    "nv": (CAT, "--rng", "nv"),
    "variation": (CAT, "--variation-seed", "9", "--variation-strength", "0.3"),
    "ensd": (CAT, "--ensd", "31337", "--sampler", "Euler a"),
    "image": (CAT, "--image", "image.png", "--denoising", "0.6"),
    "mask": (CAT, "--image", "image.png", "--mask", "mask.png", "--mask-blur", "1"),
    "mask of noise": (CAT, "--image", "image.png", "--mask", "mask.png", "--masked-content", "noise", "--invert-mask"),
    "hires latent": (CAT, "--hires-scale", "2"),
    "hires Lanczos": (CAT, "--hires-size", "24x32", "--hires-upscaler", "Lanczos", "--hires-prompt", "a dog"),
    "two at once": (CAT, "--count", "2", "--batch-size", "2"),
    "wide": (CAT, "--width", "32", "--height", "16"),
    "cfg 1": (CAT, "--cfg-scale", "1"),
}
TRAININGS: dict[str, tuple[str, ...]] = {
    "plain": ("--rate", "1e-2", "--structure", "1,2,1", "--activation", "relu"),
    "norm and dropout": ("--rate", "1e-2:2, 1e-3:6", "--layer-norm", "--dropout", "0,0.3,0", "--batch-size", "2"),
    "captions and sides": ("--rate", "5e-3", "--sides", "v", "--accumulate", "2", "--drop-tags", "0.2", "--seed", "3"),
}


def digest(*parts: bytes | str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part.encode() if isinstance(part, str) else part)
    return whole.hexdigest()[:32]


def of_tensors(*tensors: torch.Tensor) -> str:
    return digest(*(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors))


def did(*arguments: str) -> str:
    """Returns what a command prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([*arguments])
    if code:
        raise SystemExit(f"hnetkit {' '.join(arguments)}: {code}\n{err.getvalue()}")
    return out.getvalue()


def pictures(folder: Path) -> Digests:
    widths = (*SELF_WIDTHS, SD_CROSS_WIDTH)
    (folder / "files").mkdir()
    for seed, (name, activation) in enumerate({"ink": "relu", "wash": "linear"}.items()):
        content = a1111_network(widths, activation=activation, seed=seed, scale=0.3)
        save_pt(content, folder / "files" / f"{name}.pt")
    did("scan", "files")
    tiny_sd().save_pretrained(folder / "sd")
    tiny_sdxl().save_pretrained(folder / "sdxl")
    make_pictures(folder / "begin", 2, sizes=((16, 16),))
    first, second = sorted((folder / "begin").glob("*.png"))
    first.rename("image.png")
    Image.open(second).convert("L").save("mask.png")
    for name, arguments in DRAWINGS.items():
        yield f"picture {name}", _drawn("sd", *arguments)
    yield "picture SDXL", _drawn("sdxl", "a cat")
    yield "picture bf16", _drawn("sd", CAT, "--dtype", "bf16")


def _drawn(model: str, prompt: str, *more: str) -> str:
    plain = ["--width", "16", "--height", "16", "--steps", "3", "--seed", "5", "--device", "cpu", "--model", model]
    rows = json.loads(did("generate", prompt, *plain, *more, "--out", "drawn", "--json"))
    parts: list[bytes | str] = []
    for row in rows:
        with Image.open(row["path"]) as image:
            parts += [image.tobytes(), re.sub(r"Version: [^,\n]*", "", row["infotext"])]
        Path(row["path"]).unlink()
    return digest(*parts)


def trainings(folder: Path) -> Digests:
    tiny_sd(least=True).save_pretrained(folder / "least")
    make_pictures(folder / "training-pictures", 4, sizes=((16, 16), (16, 24)))
    for number, (name, recipe) in enumerate(TRAININGS.items()):
        yield f"training {name}", _trained(f"net{number}", "6", *recipe)
    _trained("resumed", "3", *TRAININGS["plain"])
    yield "training resumed", _trained("resumed", "6", *TRAININGS["plain"])


def _trained(name: str, steps: str, *recipe: str) -> str:
    how = ["--max-steps", steps, "--save-every", "3", "--preview-every", "0", "--no-guards", "--device", "cpu"]
    did("train", "run", "training-pictures", "--model", "least", "--name", name, *recipe, *how)
    log = Path("training", name, f"{name}.csv")
    return digest(of_tensors(*_tensors(Path("training", name, f"{name}.safetensors"))), _losses(log))


def _losses(log: Path) -> str:
    """The steps' losses and rates, without the times."""
    if not log.exists():
        return ""
    lines = [line.split(",") for line in log.read_text().splitlines()]
    kept = [i for i, column in enumerate(lines[0]) if column in ("step", "loss", "learn_rate", "rate")]
    return "\n".join(",".join(line[i] for i in kept) for line in lines)


def _tensors(path: Path) -> Iterator[torch.Tensor]:
    for *_, reference in hnetkit.load(path).each_tensor():
        yield reference.torch()


def golden() -> Digests:
    """K and V of the original implementation's files, where these are at hand: HNETKIT_SHARED."""
    folder = Path(os.environ.get("HNETKIT_SHARED", ""), "data", "golden")
    for path in sorted(folder.glob("*.pt")) if os.environ.get("HNETKIT_SHARED") else ():
        with contextlib.suppress(hnetkit.errors.FileRefused):
            yield f"golden {path.stem}", _stacked([(path, 0.8)], torch.float32)


def paths(folder: Path) -> Digests:
    """Each kernel path, under the interpreter where it is Triton's."""
    kinds: dict[str, dict[str, Any]] = {
        "linear": {"activation": "linear"},
        "relu": {"activation": "relu"},
        "swish norm": {"activation": "swish", "layer_norm": True},
        "deep": {"activation": "mish", "structure": (1, 1.5, 2, 1)},
    }
    files = {kind: network_file(folder, f"{kind}.pt", widths=(16, 24), scale=0.3, **how) for kind, how in kinds.items()}
    for path in PATHS:
        os.environ["HNETKIT_KERNEL"] = path
        for kind, file in files.items():
            for dtype in (torch.float32, torch.float16):
                made = _stacked([(file, 0.7), (files["relu"], 0.4)], dtype)
                yield f"path {path} {kind} {str(dtype).removeprefix('torch.')}", made
        yield f"path {path} training", _trained(path, "2", *TRAININGS["plain"])
    del os.environ["HNETKIT_KERNEL"]


def _stacked(networks: list[tuple[Path, float]], dtype: torch.dtype) -> str:
    stack = hnetkit.Stack([(hnetkit.load(path), strength) for path, strength in networks])
    outputs: list[torch.Tensor] = []
    for width in sorted(stack.widths):
        x = torch.randn(2, 9, width, generator=torch.Generator().manual_seed(width)).to(dtype)
        outputs += stack(x)
    return of_tensors(*outputs)


def mirror(folder: Path) -> Digests:
    with Sites(World.make(12, plain=True)) as sites:
        os.environ["HNETKIT_CIVITAI_URL"] = sites.civitai_url
        rows = json.loads(did("sync", "-y", "--nsfw", "--all-versions", "--parallel", "1", "--json"))
        listed = json.loads(did("list", "--json"))
        del os.environ["HNETKIT_CIVITAI_URL"]
    library = Path(os.environ["HNETKIT_HOME"], "library")
    files = sorted(path for path in library.rglob("*") if path.is_file() and path.suffix not in (".json", ".info"))
    yield "mirror files", digest(*(f"{path.relative_to(library)} {digest(path.read_bytes())}\n" for path in files))
    yield "mirror rows", digest(*sorted(f"{r['state']} {r['name']} {r['sha256']} {r['code']}\n" for r in rows))
    yield "mirror list", digest(*sorted(f"{r['name']} {r['content_hash']} {r['base_model']}\n" for r in listed))


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HNETKIT_HOME"] = str(folder / "home")
        os.chdir(folder)
        (folder / "kernels").mkdir()
        for made in (pictures(folder), trainings(folder), golden(), paths(folder / "kernels"), mirror(folder)):
            for what, hash in made:
                sys.stdout.write(f"{hash}  {what}\n")
                sys.stdout.flush()
        os.chdir("/")


if __name__ == "__main__":
    main()
