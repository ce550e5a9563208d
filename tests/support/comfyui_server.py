"""A real ComfyUI's server on a folder of its own, with a small random checkpoint and the nodes as a pack."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import save_file

from hnetkit.cli import run

Graph = dict[str, dict[str, Any]]

CHECKPOINT = "tiny-sd1.safetensors"
WIDTHS = (320, 640, 768)
"""Widths of the checkpoint's contexts."""


class Outcome(NamedTuple):
    """What became of a workflow.

    Attributes:
        images: that it saved.
        errors: by node: what ComfyUI shows beside it.
        ran: the nodes that were computed, and not taken from before.
    """

    images: list[Image.Image]
    errors: dict[str, str]
    ran: list[str]


def checkpoint(path: Path) -> None:
    """Writes a checkpoint that ComfyUI takes for SD 1: its names and context width, two levels, random weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    width, levels = 320, (1, 2)
    unet = UNet2DConditionModel(
        block_out_channels=[width * level for level in levels],
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2,
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
            hidden_act="quick_gelu",
        )
    )  # fmt: skip
    tensors = {f"model.diffusion_model.{_ldm(name)}": own for name, own in unet.state_dict().items()}
    prefix = "cond_stage_model.transformer.text_model."
    tensors |= {prefix + name.removeprefix("text_model."): own for name, own in text.state_dict().items()}
    tensors |= {f"first_stage_model.{name}": own for name, own in _tiny_autoencoder()}
    save_file({name: own.half().contiguous() for name, own in tensors.items()}, path)


def _ldm(name: str) -> str:
    """Returns the name in a checkpoint of a UNet's tensor, for the two levels of the one above."""
    replaced = {
        **{"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"},
        **{"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"},
        **{"down_blocks.0.resnets.0": "input_blocks.1.0", "down_blocks.0.attentions.0": "input_blocks.1.1"},
        **{"down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op"},
        **{"down_blocks.1.resnets.0": "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1"},
        **{"mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1"},
        **{"mid_block.resnets.1": "middle_block.2", "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv"},
    }
    for level, index in itertools.product(range(2), range(2)):
        block = f"output_blocks.{2 * level + index}"
        replaced[f"up_blocks.{level}.resnets.{index}"] = f"{block}.0"
        replaced[f"up_blocks.{level}.attentions.{index}"] = f"{block}.1"
    parts = {
        **{"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"},
        **{"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"},
    }
    own = next(prefix for prefix in replaced if name.startswith(f"{prefix}."))
    rest = name.removeprefix(f"{own}.")
    if "resnets" in own:
        part, _, kind = rest.partition(".")
        rest = f"{parts[part]}.{kind}"
    return f"{replaced[own]}.{rest}"


def _tiny_autoencoder() -> Iterator[tuple[str, torch.Tensor]]:
    """Random weights of the small autoencoder for previews, which checkpoints may have in place of the large one."""

    def conv(name: str, of: int, to: int, bias: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
        yield f"{name}.weight", torch.randn(to, of, 3, 3) / math.sqrt(9 * of)
        if bias:
            yield f"{name}.bias", torch.zeros(to)

    def layers(side: str, places: Sequence[tuple[int, str]]) -> Iterator[tuple[str, torch.Tensor]]:
        first, last = (3, 4) if side == "taesd_encoder" else (4, 3)
        for number, kind in places:
            name = f"{side}.{number}"
            if kind == "block":
                for step in (0, 2, 4):
                    yield from conv(f"{name}.conv.{step}", 64, 64)
            else:
                sizes = {"first": (first, 64), "last": (64, last)}.get(kind, (64, 64))
                yield from conv(name, *sizes, bias=kind != "size")

    down = ["first", "block", *["size", "block", "block", "block"] * 3, "last"]
    yield from layers("taesd_encoder", list(enumerate(down)))
    up = [(1, "first"), *((n, "block") for n in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18))]
    yield from layers("taesd_decoder", [*up, *((n, "size") for n in (7, 12, 17)), (19, "last")])
    yield "vae_scale", torch.tensor(1.0)
    yield "vae_shift", torch.tensor(0.0)


class Server:
    """A server that answers; see `served`."""

    def __init__(self, folder: Path, address: str, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.address = address
        self.process = process
        self.networks = folder / "models" / "hypernetworks"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, content: Any) -> Any:
        request = urllib.request.Request(
            self.address + path, json.dumps(content).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as refused:
            return json.load(refused)

    def run(self, graph: Graph, limit: float = 300) -> Outcome:
        """Runs a workflow and waits for it."""
        answer = self.post("/prompt", {"prompt": graph})
        if answer.get("node_errors"):
            errors = answer["node_errors"].items()
            return Outcome([], {node: own["errors"][0]["details"] for node, own in errors}, [])
        number = answer["prompt_id"]
        end = time.monotonic() + limit
        while number not in (history := self.get(f"/history/{number}")):
            assert time.monotonic() < end, f"no picture after {limit:g} seconds: {graph}"
            assert self.process.poll() is None, (self.folder / "log.txt").read_text()[-3000:]
            time.sleep(0.1)
        done = history[number]
        said = dict(done["status"]["messages"])
        errors = {}
        if "execution_error" in said:
            failed = said["execution_error"]
            errors[failed["node_id"]] = failed["exception_message"].strip()
        cached = said.get("execution_cached", {}).get("nodes", [])
        names = [own["filename"] for output in done["outputs"].values() for own in output.get("images", ())]
        images = [Image.open(self.folder / "output" / name).convert("RGB") for name in names]
        return Outcome(images, errors, [node for node in graph if node not in cached])

    @property
    def memory(self) -> int:
        """Bytes of the process that are in memory."""
        import psutil

        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Runs a server on `folder`, to which a checkpoint, the pack and ComfyUI's other folders are added."""
    for name in ("models/checkpoints", "models/hypernetworks", "custom_nodes", "input", "output", "user"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    checkpoint(folder / "models" / "checkpoints" / CHECKPOINT)
    assert run(["link", str(folder), "--layout", "comfyui", "--node", "--quiet"]) == 0
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        os.environ.get("COMFYUI_PYTHON", sys.executable), os.path.join(os.environ["COMFYUI_PATH"], "main.py"),
        "--cpu", "--port", str(port), "--base-directory", str(folder), "--disable-api-nodes",
        "--database-url", "sqlite:///:memory:",
    ]  # fmt: skip
    environment = {**os.environ, "HNETKIT_HOME": str(folder / "home"), "HNETKIT_LIBRARY": str(folder / "library")}
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
        try:
            server = Server(folder, f"http://127.0.0.1:{port}", process)
            _await(server)
            yield server
        finally:
            process.terminate()
            process.wait(30)
            (folder / "models" / "checkpoints" / CHECKPOINT).unlink()


def _await(server: Server, limit: float = 180) -> None:
    end = time.monotonic() + limit
    while True:
        try:
            server.get("/queue")
            return
        except OSError:
            said = (server.folder / "log.txt").read_text()[-3000:]
            assert server.process.poll() is None, said
            assert time.monotonic() < end, f"no answer after {limit:g} seconds: {said}"
            time.sleep(0.2)


def graph(*nodes: tuple[str, dict[str, Any]], text: str = "a castle", steps: int = 3, size: int = 64) -> Graph:
    """Returns a workflow in ComfyUI's API format, with nodes in a row between the checkpoint and the sampler."""
    row: Graph = {"checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}}}
    model, written = "checkpoint", text
    for number, (kind, inputs) in enumerate(nodes):
        name = f"node {number}"
        row[name] = {"class_type": kind, "inputs": {"model": [model, 0], **inputs}}
        model = name
        if "text" in inputs:
            written = [name, 1]
    clip = ["checkpoint", 1]
    sampling = {
        **{"seed": 5, "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0},
        **{
            "model": [model, 0],
            "positive": ["positive", 0],
            "negative": ["negative", 0],
            "latent_image": ["latent", 0],
        },
    }
    return {
        **row,
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": written}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": size, "height": size, "batch_size": 1}},
        "sampler": {"class_type": "KSampler", "inputs": sampling},
        "decoded": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["checkpoint", 2]}},
        "saved": {"class_type": "SaveImage", "inputs": {"images": ["decoded", 0], "filename_prefix": "picture"}},
    }
