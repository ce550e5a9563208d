"""UNets under `torch.compile` with the Triton kernels: strengths and windows are numbers on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import any_truth
from support.compiled import Graphs
from support.stacks import relative
from torch import Tensor

import hnetkit
from hnetkit.network import Hypernetwork

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")


@pytest.mark.filterwarnings("ignore:hnetkit dropped:UserWarning")
def test_strengths_and_windows_change_in_compiled_code_and_compile_nothing(
    graphs: Graphs, ink: Hypernetwork, wash: Hypernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HNETKIT_KERNEL", "grouped")
    unet, text = any_truth.small_unet(), any_truth.text_of(0, 3, torch.float32)
    pipe, twin = any_truth.pipeline_of(unet), any_truth.pipeline_of(unet)
    pipe.unet.compile(backend=graphs, fullgraph=True)
    bare = any_truth.picture(pipe, text)
    assert torch.equal(bare, any_truth.picture(twin, text))
    for one in (pipe, twin):
        hnetkit.load_hypernetwork(one, ink, strength=hnetkit.Strength(0.8, end=0.5))
        hnetkit.load_hypernetwork(one, wash, strength=0.5)

    def both(verb: Callable[..., None], *arguments: Any) -> Tensor:
        for one in (pipe, twin):
            verb(one, *arguments)
        got = any_truth.picture(pipe, text)
        assert relative(got, any_truth.picture(twin, text)) <= 1e-6
        return got

    opened = both(hnetkit.set_progress, 0, 4)
    assert any("hnetkit.stack" in str(node.target) for node in graphs.made[-1].graph.nodes)
    before = len(graphs.made)
    assert relative(both(hnetkit.set_progress, 3, 4), opened) > 1e-3
    assert torch.equal(both(hnetkit.set_progress, 1, 4), opened)
    window = hnetkit.Strength(-0.3, cross_v=0.2, end=0.5)
    assert relative(both(hnetkit.set_hypernetworks, ["ink", "wash"], [window, 1.5]), opened) > 1e-3
    assert len(graphs.made) == before
    assert torch.equal(both(hnetkit.unload_hypernetworks), bare)
