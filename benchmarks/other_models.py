"""SD 2 and SDXL at their real sizes through `hnetkit generate` on the CPU: seconds and peak memory, with two networks.

python benchmarks/other_models.py

Weights are random, in fp32, of the configurations that are part of the package; a picture takes 2 steps at 256 px.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from machine import conditions, write
from real_size import PEAK

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.networks import network_file
from support.pipelines import tiny_tokenizer

from hnetkit.generate.loading.checkpoints import CONFIGURATIONS

WIDTHS = {"sd2-v": (320, 640, 1024, 1280), "sdxl": (640, 1280, 2048)}
CLASSES: dict[str, Any] = {
    "unet": diffusers.UNet2DConditionModel,
    "vae": diffusers.AutoencoderKL,
    "text_encoder": transformers.CLIPTextModel,
    "text_encoder_2": transformers.CLIPTextModelWithProjection,
}


def build_model(kind: str, folder: Path) -> Path:
    """Writes a pipeline folder of random weights part by part, so that one part is in memory at a time."""
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    }
    for part in sorted(path.name for path in (CONFIGURATIONS / kind).iterdir() if path.is_dir()):
        config = json.loads(next((CONFIGURATIONS / kind / part).glob("*.json")).read_text())
        if part == "scheduler":
            diffusers.DDIMScheduler.from_config(config).save_pretrained(folder / part)
            index[part] = ["diffusers", "DDIMScheduler"]
            continue
        made = CLASSES[part]
        torch.manual_seed(0)
        if part.startswith("text"):
            made(transformers.CLIPTextConfig(**config)).save_pretrained(folder / part)
        else:
            made.from_config(config).save_pretrained(folder / part)
        index[part] = ["transformers" if part.startswith("text") else "diffusers", made.__name__]
    for name in ("tokenizer", "tokenizer_2") if kind == "sdxl" else ("tokenizer",):
        tiny_tokenizer().save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def draw(model: Path, networks: list[Path], folder: Path) -> dict[str, float]:
    """Seconds and peak memory of `hnetkit generate` in a process of its own, loading included."""
    options = [part for path in networks for part in ("-n", f"{path}:0.5")]
    sizes = ["--width", "256", "--height", "256", "--steps", "2", "--dtype", "fp32", "--device", "cpu", "--seed", "1"]
    command = [sys.executable, "-P", "-m", "hnetkit", "generate", "a house", "--model", str(model), *sizes, *options]
    environment = {**os.environ, "HNETKIT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    out = ["--out", str(folder / "picture.png"), "--overwrite"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-P", "-c", PEAK, *command, *out],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    code, peak = map(int, done.stdout.split())
    if code:
        raise SystemExit(f"hnetkit generate left with {code}")
    return {"seconds": seconds, "peak_mb": peak / 1e6}


def main() -> None:
    measured: dict[str, Any] = {}
    for kind, widths in WIDTHS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = build_model(kind, folder / "model")
            networks = [
                network_file(folder, f"net{seed}.pt", widths=widths, activation="relu", seed=seed, scale=0.01)
                for seed in range(2)
            ]
            measured[kind] = {"without": draw(model, [], folder), "two_networks": draw(model, networks, folder)}
    write("other_models", {"dtype": "fp32", **measured, **conditions("torch", "diffusers", "transformers")})


if __name__ == "__main__":
    main()
