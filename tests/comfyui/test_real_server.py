"""The nodes in ComfyUI's real server: workflows by its API, the pictures that it saves, and what it says at a node.

``COMFYUI_PATH`` and ``COMFYUI_PYTHON`` are those of `test_real_comfyui`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.comfyui_server import WIDTHS, Outcome, Server, graph, served
from support.networks import a1111_network, network_file, save_pt

import hnetkit

pytestmark = pytest.mark.skipif("COMFYUI_PATH" not in os.environ, reason="needs a ComfyUI: COMFYUI_PATH=FOLDER")

OWN = "HypernetworkLoader"
LOADER, STACK, TAGS = "HnetkitHypernetworkLoader", "HnetkitHypernetworkStack", "HnetkitHypernetworksFromTags"
KINDS = {"relu": "relu", "gelu": "gelu", "plain": "linear"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    networks = folder / "models" / "hypernetworks"
    (networks / "other").mkdir(parents=True)
    for seed, (name, activation) in enumerate(KINDS.items()):
        network_file(networks, f"{name}.pt", widths=WIDTHS, activation=activation, seed=seed, scale=0.05)
    hnetkit.save(hnetkit.load(networks / "relu.pt"), networks / "other" / "relu_too.safetensors")
    unreadable_files(networks)
    with served(folder) as server:
        yield server


def unreadable_files(folder: Path) -> None:
    """Files that cannot be applied to the checkpoint, each for another reason."""
    import torch
    from safetensors.torch import save_file

    network_file(folder, "sd2.pt", widths=(320, 640, 1024))
    content = a1111_network(WIDTHS)
    content[320][0]["linear.0.weight"][3, 5] = float("nan")
    save_pt(content, folder / "nan.pt")
    whole = network_file(folder, "cut.pt", widths=WIDTHS).read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    generator = torch.Generator().manual_seed(1)
    lora = {
        f"{name}.lora_down.weight": torch.randn(4, 768, generator=generator),
        f"{name}.lora_up.weight": torch.randn(320, 4, generator=generator),
        f"{name}.alpha": torch.tensor(4.0),
    }
    (folder.parent / "loras").mkdir()
    for place in (folder, folder.parent / "loras"):
        save_file(lora, place / "lora.safetensors")
    torch.save({"string_to_param": {"*": torch.ones(2, 768)}, "name": "word"}, folder / "embedding.pt")


def apply(name: str, strength: float = 1.0, kind: str = LOADER, **advanced: Any) -> tuple[str, dict[str, Any]]:
    return kind, {"hypernetwork_name": name, "strength": strength, **advanced}


def pixels(outcome: Outcome) -> Any:
    assert not outcome.errors
    (image,) = outcome.images
    assert isinstance(image, Image.Image)
    return np.asarray(image).astype(int)


def difference(one: Outcome, other: Outcome) -> int:
    """The largest difference of two pictures, of 255."""
    return int(np.abs(pixels(one) - pixels(other)).max())


@pytest.fixture(scope="module")
def plain(server: Server) -> Outcome:
    return server.run(graph())


@pytest.fixture(scope="module")
def relu(server: Server) -> Outcome:
    return server.run(graph(apply("relu.pt")))


def test_the_server_finds_the_nodes(server: Server) -> None:
    found = {name: info for name, info in server.get("/object_info").items() if name.startswith("Hnetkit")}
    assert sorted(found) == sorted([LOADER, STACK, TAGS])
    assert all(info["python_module"] == "custom_nodes.hnetkit" for info in found.values())


def test_a_network_that_comfyui_knows_gives_its_picture(server: Server, plain: Outcome, relu: Outcome) -> None:
    assert difference(relu, server.run(graph(apply("relu.pt", kind=OWN)))) <= 1
    assert difference(relu, plain) > 20


def test_safetensors_give_the_picture_of_the_pt(server: Server, relu: Outcome) -> None:
    assert difference(relu, server.run(graph(apply(os.path.join("other", "relu_too.safetensors"))))) == 0


def test_a_network_that_comfyui_drops_is_applied(server: Server, plain: Outcome) -> None:
    assert difference(plain, server.run(graph(apply("gelu.pt", kind=OWN)))) == 0
    assert difference(plain, server.run(graph(apply("gelu.pt")))) > 20


def test_strength_zero_gives_the_picture_without_networks(server: Server, plain: Outcome) -> None:
    assert difference(plain, server.run(graph(apply("relu.pt", 0.0)))) == 0


def test_three_nodes_in_a_row_are_one_with_three_networks(server: Server) -> None:
    row = server.run(graph(apply("relu.pt", 0.5), apply("plain.pt", 0.8), apply("gelu.pt", -0.4)))
    slots = {"hypernetwork_1": "relu.pt", "strength_1": 0.5, "hypernetwork_2": "None", "strength_2": 1.0}
    slots |= {"hypernetwork_3": "plain.pt", "strength_3": 0.8, "hypernetwork_4": "gelu.pt", "strength_4": -0.4}
    slots |= {"hypernetwork_5": "None", "strength_5": 1.0}
    assert difference(row, server.run(graph((STACK, slots)))) == 0
    tags = "a <hypernet:relu:0.5><hypernet:plain:0.8><hypernet:gelu:-0.4>castle"
    assert difference(row, server.run(graph((TAGS, {"text": tags})))) == 0


def test_a_lora_works_before_and_after_a_node(server: Server, relu: Outcome) -> None:
    lora = ("LoraLoaderModelOnly", {"lora_name": "lora.safetensors", "strength_model": 0.3})
    before, after = server.run(graph(lora, apply("relu.pt"))), server.run(graph(apply("relu.pt"), lora))
    assert difference(before, after) == 0
    assert difference(before, relu) > 2


def test_a_window_of_steps_is_applied(server: Server, plain: Outcome, relu: Outcome) -> None:
    windowed = server.run(graph(apply("relu.pt", start=0.5)))
    assert difference(windowed, plain) > 2
    assert difference(windowed, relu) > 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sd2.pt", "sd2 is made for SD 2; this UNet's text context is 768 wide. Use the model that it was trained for"),
        ("nan.pt", "values that are not finite at width 320"),
        ("cut.pt", "cut short, or followed by other bytes"),
        ("lora.safetensors", "a LoRA, not a hypernetwork"),
        ("embedding.pt", "a textual inversion embedding, not a hypernetwork"),
    ],
)
def test_a_file_that_cannot_be_applied_is_one_sentence_at_the_node(
    server: Server, plain: Outcome, name: str, message: str
) -> None:
    outcome = server.run(graph(apply(name)))
    assert list(outcome.errors) == ["node 0"]
    assert message in outcome.errors["node 0"]
    assert "\n" not in outcome.errors["node 0"]
    assert difference(plain, server.run(graph(text="a castle"))) == 0  # the server goes on


def test_a_file_that_is_gone_is_said_at_the_node(server: Server) -> None:
    file = network_file(server.networks, "soon_gone.pt", widths=WIDTHS)
    assert pixels(server.run(graph(apply("soon_gone.pt")))).any()
    file.unlink()
    outcome = server.run(graph(apply("soon_gone.pt", 0.5)))
    assert list(outcome.errors) == ["node 0"]
    assert "soon_gone.pt" in outcome.errors["node 0"]
    tagged = server.run(graph((TAGS, {"text": "<hypernet:soon_gone:1> castle"})))
    assert "soon_gone: no such hypernetwork" in tagged.errors["node 0"]


def test_a_file_that_was_replaced_is_read_again(server: Server) -> None:
    def draw() -> Outcome:
        return server.run(graph(apply("again.pt"), (TAGS, {"text": "castle <hypernet:again:0.1>"})))

    network_file(server.networks, "again.pt", widths=WIDTHS, activation="relu", seed=7, scale=0.05)
    before, cached = draw(), draw()
    assert cached.ran == []
    network_file(server.networks, "again.pt", widths=WIDTHS, activation="relu", seed=8, scale=0.05)
    after = draw()
    assert {"node 0", "node 1"} <= set(after.ran)
    assert difference(before, after) > 2


def test_memory_does_not_grow_with_strengths(server: Server) -> None:
    def draw(strength: float) -> None:
        pixels(server.run(graph(apply("relu.pt", strength), apply("plain.pt", strength), steps=1)))

    for strength in (0.11, 0.12, 0.13):
        draw(strength)
    before = server.memory
    for number in range(20):
        draw(0.2 + number / 100)
    size = sum((server.networks / name).stat().st_size for name in ("relu.pt", "plain.pt"))
    assert server.memory - before < size / 2
