"""Reading and converting a 121 MB `.pt`: time of its structure, growth of memory, peak of `convert`.

python benchmarks/read.py
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import conditions, write

MAKE = """
import sys, torch
from collections import OrderedDict
def side(width):
    sizes = [(2 * width, width), (width, 2 * width)]
    return OrderedDict(
        (f"linear.{i}.{kind}", torch.randn(*(size if kind == "weight" else size[:1])))
        for i, size in enumerate(sizes) for kind in ("weight", "bias"))
sides = {width: (side(width), side(width)) for width in (320, 640, 768, 1024, 1280)}
torch.save(sides | {"step": 1, "name": "big"}, sys.argv[1])
"""
STRUCTURE = """
import json, resource, sys, time
import hnetkit, hnetkit.formats
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, times = peak(), []
for _ in range(20):
    started = time.perf_counter()
    net = hnetkit.load(sys.argv[1])
    net.layer_structure
    times.append((time.perf_counter() - started) * 1e3)
print(json.dumps([times, peak() - before, "torch" in sys.modules]))
"""
CONVERT = """
import json, resource, sys
from hnetkit.cli import run
code = run(["convert", "-q", *sys.argv[1:]])
print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "torch" in sys.modules]))
"""


def measured(code: str, *arguments: Path, folder: Path) -> list:
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        big = folder / "big.pt"
        subprocess.run([sys.executable, "-P", "-c", MAKE, str(big)], check=True)
        size = big.stat().st_size
        times, growth, torch_loaded = measured(STRUCTURE, big, folder=folder)
        code, peak, torch_converted = measured(CONVERT, big, folder / "big.safetensors", folder=folder)
        back_code, back_peak, _ = measured(CONVERT, folder / "big.safetensors", folder / "back.pt", folder=folder)
    assert code == back_code == 0
    write(
        "read",
        {
            **conditions(),
            "file_mb": round(size / 1e6, 1),
            "structure_ms": {"median": round(statistics.median(times), 2), "worst": round(max(times), 2), "goal": 20},
            "structure_growth_mb": {"value": round(growth / 1e6, 1), "goal": 60},
            "convert_peak_mb": {
                "to_safetensors": round(peak / 1e6, 1),
                "to_pt": round(back_peak / 1e6, 1),
                "goal": round(size / 1e6 + 150, 1),
            },
            "torch_imported": {"structure": torch_loaded, "convert": torch_converted, "goal": False},
        },
    )


if __name__ == "__main__":
    main()
