"""`hnetkit bench`: time each way to apply a stack on this machine, optionally with your own networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hnetkit.cli.completion import complete_name
from hnetkit.cli.options import BaseModelChoice, Number, command, device_option, dtype_option, option, size_in_pixels
from hnetkit.cli.output import Output, Row, output_options
from hnetkit.errors import PartlyFailed, UsageError
from hnetkit.generate.request import require_size
from hnetkit.text import argument, counted

if TYPE_CHECKING:
    import torch

    from hnetkit.generate.prompt_networks import NetworkRequest
    from hnetkit.network import BaseModel
    from hnetkit.runtime.bench import BenchItem, BenchLayers, PathTiming

_COLUMNS = ["path", "ms", "spread", "ratio", "error", "launches", "note"]
_FEW_ROUNDS = 3


def _size(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    size = size_in_pixels(ctx, param, text)
    return None if size is None else (require_size(size[0]), require_size(size[1]))


@command("bench")
@click.argument("names", nargs=-1, metavar="NAME[:STRENGTH]...", shell_complete=complete_name)
@option(
    "--size",
    callback=_size,
    metavar="N|WxH",
    show_default="sd1 512, sd2 768, sdxl 1024",
    help="Size of a picture in pixels.",
)
@option(
    "--batch-size",
    former=["--batch"],
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Number of pictures in one call of the UNet; guidance makes two of each.",
)
@option(
    "--base-model",
    former=["--base"],
    type=BaseModelChoice("sd1", "sd2", "sdxl"),
    show_default="what the networks are made for",
    help="Model whose attention layers to time.",
)
@option(
    "--path",
    "paths",
    multiple=True,
    metavar="PATH",
    show_default="all that can run here",
    help="Time this path: reference (A1111's way), eager (plain torch), bf16 (with products in bf16, on a CPU), "
    "grouped, fused or specialized (GPU kernels), or captured (CUDA graph). Repeatable.",
)
@option(
    "--seconds",
    type=Number(min=0, min_open=True),
    default=60,
    show_default=True,
    help="Begin no further round after this time.",
)
@device_option()
@dtype_option()
@output_options
def bench_command(
    names: tuple[str, ...],
    size: tuple[int, int] | None,
    batch_size: int,
    base_model: BaseModel | None,
    paths: tuple[str, ...],
    seconds: float,
    device: str | None,
    dtype: str | None,
    output: Output,
) -> None:
    """Time each way to apply a stack on this machine.

    Times what the networks do in one call of the UNet: on the contexts of all self-attention layers, and on the text.
    The rest of the UNet is not run. The first row is the plain way, as AUTOMATIC1111 does it, every network anew in
    every layer; "ratio" is how many times as fast a path is.

    Each path is first checked against the mathematics in fp32: "error" is relative to what the networks add. A path
    that is wrong is not timed, and the exit code is 1. Times are medians; "spread" is the first and the last tenth.
    HNETKIT_KERNEL=PATH makes everything else use that path.

    On CUDA, "captured" is that path for all layers in one CUDA graph, as pictures are drawn by default: the others
    have in their times what the processor does to launch them.

    \b
    Examples:
      hnetkit bench ink
      hnetkit bench ink:0.8 style.pt --size 768x512 --path eager --json
    """
    import torch

    from hnetkit.cli.progress import step_progress
    from hnetkit.generate.model import ModelSource
    from hnetkit.kernels.dispatch import chosen_path, path_on
    from hnetkit.runtime.bench import base_of, measure, require_unet, runnable_paths

    items = _items(names, output)
    chosen = base_model or base_of(items)
    model = require_unet(items, chosen)
    source = ModelSource(device=device, dtype=dtype)
    torch_device, torch_type = torch.device(source.torch_device), source.torch_dtype
    to_run, left_out = runnable_paths(paths, torch_device, torch_type)
    used = path_on(chosen_path(torch_device), torch_device, torch_type)
    width, height = size or (model.size, model.size)
    layers = [
        each for each in model.layers(width, height, batch_size) if any(each.width in item[1].mlps for item in items)
    ]
    _note_work(f"{model.name} at {width}x{height}, batch {batch_size}", items, layers, torch_device, torch_type, output)
    for reason in dict.fromkeys(left_out.values()):
        those = [path for path in left_out if left_out[path] == reason]
        output.note(f"Left out: {', '.join(those)}: {reason}.")
    with step_progress("Measuring", quiet=output.quiet) as progress:
        results = measure(
            items, layers, to_run, device=torch_device, dtype=torch_type, seconds=seconds, progress=progress
        )
    rounds = max(len(result.times) for result in results)
    facts = {
        "rounds": rounds,
        "base": chosen,
        "size": [width, height],
        "batch": batch_size,
        "device": torch_device.type,
        "device_name": _device_name(torch_device),
        "dtype": _dtype_name(torch_type),
        "widths": sorted({each.width for each in layers}),
        "networks": [{"name": name, "strength": strength} for name, _, strength in items],
    }
    output.rows(_rows(results, used, facts), columns=_COLUMNS)
    if rounds:
        few = f": too few to rely on, --seconds {3 * seconds:g} gives more" if rounds < _FEW_ROUNDS else ""
        output.note(f"{counted(rounds, 'round')}{few}.")
    _raise_wrong(results, torch_type)


def _items(names: Sequence[str], output: Output) -> list[BenchItem]:
    """Returns the networks that names stand for; what has strength 0 is left out, as it is in a picture."""
    from hnetkit.generate.prompt_networks import NetworkFinder

    if not names:
        raise UsageError("name the networks of a stack", hint="hnetkit bench NAME; `hnetkit list` shows the library's")
    requests = [_network_request(name) for name in names]
    items = [
        (found.name, found.network, request.strength)
        for found, request in zip(NetworkFinder(note=output.note).networks(requests), requests, strict=True)
    ]
    for name, _, strength in items:
        if not strength:
            output.note(f"Left out: {name}: strength 0 costs nothing.")
    active = [item for item in items if item[2]]
    if not active:
        raise UsageError(
            "every strength is 0: there is nothing to time", hint=f"hnetkit bench {argument(items[0][0])}:1"
        )
    return active


def _network_request(name: str) -> NetworkRequest:
    from hnetkit.generate.prompt_networks import NetworkRequest

    try:
        return NetworkRequest.from_option(name)
    except UsageError as error:
        said = name.partition(":")[0] or "NAME"
        hint = f"hnetkit bench {argument(f'{said}:0.8')}"
        raise UsageError(f"{name or 'an empty name'}: not NAME or NAME:STRENGTH", hint=hint) from error


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return counted(torch.get_num_threads(), "thread") if device.type == "cpu" else device.type


def _dtype_name(dtype: torch.dtype) -> str:
    from hnetkit.generate.model import DTYPES

    return next(short for short, long in DTYPES.items() if str(dtype) == f"torch.{long}")


def _note_work(
    what: str,
    items: Sequence[BenchItem],
    layers: Sequence[BenchLayers],
    device: torch.device,
    dtype: torch.dtype,
    output: Output,
) -> None:
    """Says what is measured."""
    stack = ", ".join(f"{name} {strength:g}" for name, _, strength in items)
    output.note(f"{what}, on {device.type} ({_device_name(device)}) in {_dtype_name(dtype)}: {stack}")
    for each in layers:
        once = ", and once for hnetkit" if each.kind == "cross" else ""
        output.note(
            f"  {each.kind}-attention, width {each.width}: {each.rows} rows in {counted(each.number, 'layer')}{once}"
        )
    affine = {
        name for name, network, _ in items if all(mlp.is_affine for pair in network.mlps.values() for mlp in pair)
    }
    if affine:
        output.note(
            f"Without an activation: {', '.join(sorted(affine))}. In a picture hnetkit composes or folds such "
            "networks, which is quicker than every path here."
        )


def _rows(results: Sequence[PathTiming], used: str, facts: Row) -> list[Row]:
    from hnetkit.kernels.dispatch import BF16
    from hnetkit.runtime.bench import CAPTURED

    plain = results[0].ms
    grouped = next((result.launches for result in results if result.path == "grouped"), None)
    rows = []
    for result in results:
        notes = [result.fault] if result.fault else []
        if result.path == used:
            notes.append("what hnetkit uses here")
        elif result.path == BF16:
            notes.append(f"less exact; HNETKIT_KERNEL={BF16} has hnetkit use it")
        if result.path == CAPTURED:
            notes.append("what hnetkit uses here, as one CUDA graph: see --capture")
        if result.path == "fused" and result.launches is not None and result.launches == grouped:
            notes.append("the same kernels as grouped: nothing here fits the fused one")
        rows.append(
            {
                "path": result.path,
                "ms": _short(result.ms, 4),
                "spread": result.spread and [_short(time, 4) for time in result.spread],
                "ratio": _short(plain / result.ms if plain and result.ms else None, 3),
                "error": _short(result.error, 2),
                "launches": result.launches,
                "state": "wrong" if result.fault else "ok",
                "note": "; ".join(notes),
                **facts,
            }
        )
    return rows


def _short(number: float | None, digits: int) -> float | None:
    if number is None:
        return None
    rounded = float(f"{number:.{digits}g}")
    return int(rounded) if rounded >= 1000 else rounded


def _raise_wrong(results: Sequence[PathTiming], dtype: torch.dtype) -> None:
    from hnetkit.kernels.dispatch import BF16, PATHS

    plain, *others = results
    wrong = [result.path for result in results if result.fault]
    right = [result.path for result in others if not result.fault and result.path in {*PATHS} - {BF16}]
    if not wrong:
        return
    if right and not plain.fault:
        hint = f"HNETKIT_KERNEL={right[-1]} has pictures drawn without it"
    else:
        hint = "hnetkit validate FILE" if _dtype_name(dtype) == "fp32" else "--dtype fp32"
    raise PartlyFailed(f"wrong here, and not timed: {', '.join(wrong)}", hint=hint)
