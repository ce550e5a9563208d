"""Three hypernetworks at Stable Diffusion 1.5's real size on the CPU: peak memory, and added cost of a UNet call.

python benchmarks/real_size.py [--dtype fp32] [--part cost]

Weights are random; the networks are [1, 2, 1] on widths 320, 640, 768 and 1280. All of it is in bf16, or in fp32 for
processors without bf16 instructions, where a convolution in bf16 takes a hundred times as long. Cost is paired: every
round calls the UNet bare, with the plain implementation (each layer applies each network anew), and with hnetkit. It is
CPU time of one thread: several would count what they wait for each other. In fp32, on a processor with instructions for
products in bf16, the networks with an activation are also measured with `HNETKIT_KERNEL=bf16`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import RESULTS, conditions, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from support import plain_a1111
from support.networks import network_file
from support.pipelines import tiny_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

import hnetkit
from hnetkit.kernels.eager import bf16_obstacle
from hnetkit.network import Hypernetwork

STEPS = 20
BF16_PRODUCTS = "activation, bf16 products"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MEMORY_GOAL = 1.05
COST_GOALS = {
    "bf16": {"activation": 0.72, "affine": 0.35},
    "fp32": {"activation": 0.68, "affine": 0.07, "activation, bf16 products": 0.40},
}
WIDTHS = (320, 640, 768, 1280)
UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
PEAK = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def build_model(folder: Path, dtype: torch.dtype) -> Path:
    """Writes a pipeline folder in diffusers' layout with SD 1.5's configuration and random weights."""
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    tokenizer = tiny_tokenizer()
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(**VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, eos_token_id=tokenizer.eos_token_id)),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**UNET),
        scheduler=EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    torch.set_default_dtype(torch.float32)
    pipe.save_pretrained(folder)
    return folder


def build_networks(folder: Path, dtype: torch.dtype) -> dict[str, list[Path]]:
    """Writes three networks with an activation and three affine ones."""
    return {
        kind: [
            network_file(
                folder,
                f"{kind}{seed}.pt",
                widths=WIDTHS,
                activation=activation,
                seed=seed,
                scale=0.01,
                dtype=dtype,
            )
            for seed in range(3)
        ]
        for kind, activation in (("activation", "relu"), ("affine", "linear"))
    }


def peak_bytes(model: Path, networks: list[Path], dtype: str, folder: Path) -> int:
    """Returns the peak resident memory of `hnetkit generate` in a process of its own."""
    options = [part for path in networks for part in ("-n", f"{path}:0.5")]
    sizes = ["--width", "256", "--height", "256", "--steps", "2", "--dtype", dtype, "--device", "cpu", "--seed", "1"]
    command = [sys.executable, "-P", "-m", "hnetkit", "generate", "a house", "--model", str(model), *sizes, *options]
    out = ["--out", str(folder / "picture.png"), "--overwrite"]
    environment = {**os.environ, "HNETKIT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    return peak_of([*command, *out], environment)


def peak_of(command: list[str], environment: dict[str, str]) -> int:
    """Returns the peak resident memory in bytes of a command.

    Raises:
        SystemExit: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", PEAK, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    code, peak = map(int, done.stdout.split())
    if code:
        raise SystemExit(f"{' '.join(command)} left with {code}")
    return peak


def memory(model: Path, networks: dict[str, list[Path]], dtype: str, folder: Path) -> dict[str, Any]:
    """Peaks of the same command without networks and with three, against the networks' own bytes."""
    without = peak_bytes(model, [], dtype, folder)
    result: dict[str, Any] = {"without_mb": without / 1e6}
    for kind, paths in networks.items():
        peak, own = peak_bytes(model, paths, dtype, folder), sum(path.stat().st_size for path in paths)
        allowed = (without + own) * MEMORY_GOAL
        result[kind] = {"with_mb": peak / 1e6, "networks_mb": own / 1e6, "of_allowed": peak / allowed}
        result[kind]["met"] = peak <= allowed
    return result


def cost(model: Path, networks: dict[str, list[Path]], dtype_name: str, rounds: int) -> dict[str, Any]:
    """Added CPU time of one UNet call at 256 px with guidance, by kind of network."""
    torch.set_num_threads(1)
    dtype, goals = DTYPES[dtype_name], COST_GOALS[dtype_name]
    bare = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=dtype).eval()
    unets, set_up = {"none": bare}, {}
    for kind, paths in networks.items():
        nets = [hnetkit.load(path) for path in paths]
        unets[f"plain {kind}"], unets[f"hnetkit {kind}"] = twin(bare), twin(bare)
        modules = [(plain_a1111.modules_of(net, dtype), 0.5) for net in nets]
        unets[f"plain {kind}"].set_attn_processor(plain_a1111.PlainProcessor(modules))
        set_up[kind] = cpu_timed(lambda unet=unets[f"hnetkit {kind}"], nets=nets: attach(unet, nets))
        if kind == "activation" and dtype == torch.float32 and bf16_obstacle() is None:
            unets[f"hnetkit {BF16_PRODUCTS}"] = twin(bare)
            with mock.patch.dict(os.environ, HNETKIT_KERNEL="bf16"):
                set_up[BF16_PRODUCTS] = cpu_timed(
                    lambda unet=unets[f"hnetkit {BF16_PRODUCTS}"], nets=nets: attach(unet, nets)
                )
    noise = torch.Generator().manual_seed(0)
    call = {
        "sample": torch.randn(2, 4, 32, 32, generator=noise).to(dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, 768, generator=noise).to(dtype),
    }
    times: dict[str, list[float]] = {name: [] for name in unets}
    with torch.no_grad():
        for number in range(rounds + 1):  # the first round warms up
            for name, unet in unets.items():
                seconds = cpu_timed(lambda unet=unet: unet(**call))
                if number:
                    times[name].append(seconds)
    result: dict[str, Any] = {
        "rounds": rounds,
        "call_s": {name: statistics.median(all_) for name, all_ in times.items()},
    }
    for kind in set_up:
        plain = added(times[f"plain {kind.partition(',')[0]}"], times["none"])
        ours = added(times[f"hnetkit {kind}"], times["none"]) + set_up[kind] / STEPS
        result[kind] = {
            "plain_added_s": plain,
            "hnetkit_added_s": ours,
            "of_it_set_up_s": set_up[kind] / STEPS,
            "ratio": ours / plain,
            "goal": goals[kind],
            "met": ours / plain <= goals[kind],
        }
    return result


def twin(unet: Any) -> Any:
    """Returns another UNet on the same weights in memory."""
    with torch.device("meta"):
        other = UNet2DConditionModel.from_config(unet.config)
    other.load_state_dict(unet.state_dict(), assign=True)
    return other.eval()


def attach(unet: Any, networks: list[Hypernetwork]) -> None:
    for number, network in enumerate(networks):
        hnetkit.load_hypernetwork(unet, network, name=str(number), strength=0.5)


def added(times: list[float], bare: list[float]) -> float:
    """Returns the median over rounds of what a call took longer than the bare call of its round."""
    return statistics.median(there - here for there, here in zip(times, bare, strict=True))


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def cpu_timed(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="paired rounds after a first that warms up")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument(
        "--part", choices=["memory", "cost"], help="measure this alone, and keep what is known of the other"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dtype = DTYPES[arguments.dtype]
        model, networks = build_model(folder / "model", dtype), build_networks(folder, dtype)
        parts = {
            "memory": lambda: memory(model, networks, arguments.dtype, folder),
            "cost": lambda: cost(model, networks, arguments.dtype, arguments.rounds),
        }
        measured = {
            part: {**measure(), **conditions("torch", "diffusers", "transformers"), "threads": torch.get_num_threads()}
            for part, measure in parts.items()
            if arguments.part in (None, part)
        }
    name = "real_size" if arguments.dtype == "bf16" else f"real_size_{arguments.dtype}"
    file = RESULTS / f"{name}.json"
    known = json.loads(file.read_text()) if arguments.part and file.exists() else {}
    write(name, {"dtype": arguments.dtype, **{part: known.get(part) for part in parts}, **measured})


if __name__ == "__main__":
    main()
