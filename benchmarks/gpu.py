"""Stacks of hypernetworks on an NVIDIA GPU, each path side by side: right first, then how long.

    python benchmarks/gpu.py --part isolated --budget 500
    python benchmarks/gpu.py --part isolated --rehearse     # the same at toy sizes, without a GPU

Needs this checkout, torch 2.11, Triton 3.6 and numpy or newer, and diffusers for `default`, `unet` and `train`; nothing
has to be installed.

    default     what `hnetkit generate` does: a step and a picture, captured by hnetkit, as called, and compiled
    candidates  contexts by rows of the tables that are passed over until they are measured, beside those chosen
    isolated    the contexts of all self-attention layers of a UNet step, with and without the text, path by path
    compile     the same work as A1111 does it, through torch.compile, between plain torch and the kernels
    unet        whole UNet steps of diffusers: called, captured, and compiled
    train       training steps of one network: of a plain loop, of hnetkit, and captured; with the memory of each
    tiles       the kernels with other tiles than the tables give them

Rows go to `results/gpu.csv` as they come, the most telling first; one that stands there for this GPU and commit is not
measured again, so that a run can be cut short and gone on with. A path that computes something wrong is reported and
not timed. Times are medians of 30 runs in ms, with the first and last tenth; rates are those of the products that a
path does, and `of_ceiling` sets them against torch's own product of two large matrices in the same run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Measures until the budget is spent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", choices=["default", "candidates", "isolated", "compile", "unet", "train", "tiles"], default="isolated"
    )
    parser.add_argument("--budget", type=float, default=500.0, help="seconds after which nothing new is begun")
    parser.add_argument("--results", type=Path, default=FOLDER / "results" / "gpu.csv", help="the CSV to go on with")
    parser.add_argument("--commit", help="what the files are of, in a copy of the checkout without git")
    parser.add_argument("--rehearse", action="store_true", help="toy sizes on the CPU; times and writes nothing")
    options = parser.parse_args()
    started = time.monotonic()
    if options.rehearse:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported
    sys.path.insert(0, str(FOLDER))

    import torch
    from gpu_parts.clock import Bench
    from gpu_parts.record import Record, conditions

    if not options.rehearse and not torch.cuda.is_available():
        parser.error("no CUDA device; --rehearse goes through without one")
    if options.rehearse:
        torch.set_num_threads(1)  # for tensors this small, more only wait for each other
    torch.set_grad_enabled(False)
    measure = _part(options.part)
    bench = Bench(rehearse=options.rehearse)
    record = Record(None if options.rehearse else options.results, conditions(options.commit))
    for row in measure(bench, record.stands):
        record.add(row)
        bench.require_alive()
        if time.monotonic() - started > options.budget:
            print("the budget is spent; the same command goes on from here", file=sys.stderr)
            break


def _part(name: str) -> Callable[..., Iterator[Mapping[str, str]]]:
    """Returns what measures a part; only `default`, `unet` and `train` need diffusers."""
    if name == "default":
        from gpu_parts import default

        return default.steps
    if name == "train":
        from gpu_parts import train

        return train.steps
    if name == "unet":
        from gpu_parts.unet import steps

        return steps
    from gpu_parts import candidates, contexts, tiles

    return {
        "candidates": candidates.candidates,
        "isolated": contexts.isolated,
        "compile": contexts.compiled,
        "tiles": tiles.tiles,
    }[name]


if __name__ == "__main__":
    main()
