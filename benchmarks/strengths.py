"""Ten strengths of one network at Stable Diffusion 1.5's real size on the CPU: what a change costs beside a UNet call.

python benchmarks/strengths.py

Weights are random, in fp32; the networks are [1, 2, 1] on widths 320, 640, 768 and 1280. A call is at 256 px with
guidance. Files read and weights repacked by the changes are counted; they should be none.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from machine import conditions, write
from real_size import UNET, build_networks, timed

import hnetkit
from hnetkit.formats.open_file import OpenFile
from hnetkit.kernels import executor

STRENGTHS = [number / 10 for number in range(1, 11)]


def measure(unet: Any, network: Path) -> dict[str, Any]:
    """Seconds of the first set-up, of each change of strength, and of a call; reads and packings by the changes."""
    noise = torch.Generator().manual_seed(0)
    call = {
        "sample": torch.randn(2, 4, 32, 32, generator=noise),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, 768, generator=noise),
    }
    changes, calls = [], []
    with (
        patch.object(OpenFile, "read_at", autospec=True, side_effect=OpenFile.read_at) as reads,
        patch.object(executor, "pack", side_effect=executor.pack) as packs,
    ):
        load = timed(lambda: hnetkit.load_hypernetwork(unet, network, name="it", strength=1.0))
        first = timed(lambda: unet(**call))
        by_loading = {"reads": reads.call_count, "packings": packs.call_count}
        for strength in STRENGTHS:
            changes.append(timed(lambda s=strength: hnetkit.set_hypernetworks(unet, ["it"], [s])))
            calls.append(timed(lambda: unet(**call)))
    hnetkit.unload_hypernetworks(unet)
    return {
        "load_s": load,
        "first_call_s": first,
        "change_s": statistics.median(changes),
        "call_s": statistics.median(calls),
        "change_of_call": statistics.median(changes) / statistics.median(calls),
        "by_loading": by_loading,
        "by_the_changes": {
            "reads": reads.call_count - by_loading["reads"],
            "packings": packs.call_count - by_loading["packings"],
        },
    }


def main() -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        unet = UNet2DConditionModel(**UNET).eval()
        networks = build_networks(Path(name), torch.float32)
        measured = {kind: measure(unet, paths[0]) for kind, paths in networks.items()}
    write("strengths", {"dtype": "fp32", "strengths": STRENGTHS, **measured, **conditions("torch", "diffusers")})


if __name__ == "__main__":
    main()
