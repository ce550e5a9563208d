"""UNets under `torch.compile`: networks come, change and go after the first compiled call, and each of it is seen.

Tracing is the same for every backend, so all but one test use the one that runs the traced graph as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from diffusers import UNet2DConditionModel
from support import any_truth
from support.compiled import Graphs
from support.networks import network_file
from support.pipelines import tiny_sd, unet_call
from support.stacks import relative
from support.unet_truth import lora, run
from torch import Tensor

import hnetkit
from hnetkit.errors import AttachError
from hnetkit.kernels.gpu import fused
from hnetkit.network import Hypernetwork


@pytest.fixture
def pipe() -> Any:
    return tiny_sd(least=True)


@pytest.fixture
def twin() -> Any:
    """The same pipeline, never compiled."""
    return tiny_sd(least=True)


def compiled_model(pipe: Any, backend: Any) -> Callable[[], Tensor]:
    pipe.unet = torch.compile(pipe.unet, backend=backend, fullgraph=True)
    return lambda: run(pipe)


def compiled_in_place(pipe: Any, backend: Any) -> Callable[[], Tensor]:
    pipe.unet.compile(backend=backend, fullgraph=True)
    return lambda: run(pipe)


def compiled_by_block(pipe: Any, backend: Any) -> Callable[[], Tensor]:
    if not hasattr(pipe.unet, "compile_repeated_blocks"):
        pytest.skip("this diffusers does not compile by block")
    pipe.unet.compile_repeated_blocks(backend=backend, fullgraph=True)
    return lambda: run(pipe)


def compiled_elsewhere(pipe: Any, backend: Any) -> Callable[[], Tensor]:
    step = torch.compile(lambda **call: pipe.unet(**call, return_dict=False)[0], backend=backend)

    def call() -> Tensor:
        with torch.no_grad():
            result: Tensor = step(**unet_call(pipe))
        return result

    return call


@pytest.mark.parametrize("compiled", [compiled_model, compiled_in_place, compiled_by_block, compiled_elsewhere])
@pytest.mark.filterwarnings("ignore:hnetkit dropped:UserWarning")
def test_compile_run_attach_run_differs_and_detach_gives_the_first_bits(
    pipe: Any, twin: Any, graphs: Graphs, ink: Hypernetwork, tint: Hypernetwork, compiled: Any
) -> None:
    call = compiled(pipe, graphs)
    first = call()
    assert torch.equal(first, run(twin))
    for net in (ink, tint) if compiled is compiled_by_block else (ink,):
        for one in (pipe, twin):
            hnetkit.load_hypernetwork(one, net, strength=0.8)
        assert relative(call(), first) > 1e-3
        assert relative(call(), run(twin)) <= 1e-6
    hnetkit.unload_hypernetworks(pipe)
    assert torch.equal(call(), first)
    assert len(graphs.made) > 0


def test_dropped_code_is_said(pipe: Any, graphs: Graphs, ink: Hypernetwork) -> None:
    call = compiled_model(pipe, graphs)
    call()
    with pytest.warns(UserWarning, match="compiles again"):
        hnetkit.load_hypernetwork(pipe, ink)


@pytest.mark.filterwarnings("ignore:hnetkit dropped:UserWarning")
def test_a_strength_change_compiles_nothing_and_a_change_of_the_stack_is_seen(
    pipe: Any, twin: Any, graphs: Graphs, ink: Hypernetwork, tint: Hypernetwork
) -> None:
    call = compiled_model(pipe, graphs)

    def both(verb: Callable[..., None], *arguments: Any) -> None:
        for one in (pipe, twin):
            verb(one, *arguments)
        assert relative(call(), run(twin)) <= 1e-6

    both(hnetkit.load_hypernetwork, ink)
    both(hnetkit.load_hypernetwork, tint)
    before = len(graphs.made)
    both(hnetkit.set_hypernetworks, ["ink", "tint"], [0.3, -0.7])
    both(hnetkit.set_hypernetworks, ["ink", "tint"], [hnetkit.Strength(1.5, cross_v=0.2), 0.1])
    assert len(graphs.made) == before
    both(hnetkit.set_hypernetworks, ["tint", "ink"], [0.3, 0.7])
    both(hnetkit.set_hypernetworks, ["ink"], [hnetkit.Strength(cross_v=0)])
    both(hnetkit.set_hypernetworks, ["ink"], [hnetkit.Strength(blocks={"mid_block": 0.3})])
    both(hnetkit.disable_hypernetworks)
    both(hnetkit.enable_hypernetworks)
    both(hnetkit.unload_hypernetworks, ["tint"])


@pytest.mark.filterwarnings("ignore:hnetkit dropped:UserWarning")
def test_a_window_opens_and_closes_in_compiled_code(pipe: Any, twin: Any, graphs: Graphs, ink: Hypernetwork) -> None:
    call = compiled_model(pipe, graphs)
    bare = call()
    for one in (pipe, twin):
        hnetkit.load_hypernetwork(one, ink, strength=hnetkit.Strength(end=0.5))
    for picture in range(2):
        before = len(graphs.made)
        for step in range(4):
            for one in (pipe, twin):
                hnetkit.set_progress(one, step, 4)
            assert relative(call(), run(twin)) <= 1e-6
            assert torch.equal(call(), bare) == (step >= 2)
        assert (len(graphs.made) == before) == (picture > 0), "once for open and once for closed, and then no more"


@pytest.mark.filterwarnings("ignore:hnetkit dropped:UserWarning")
def test_with_the_fused_kernel_strengths_and_windows_compile_nothing(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are numbers on the device, and a closed window is the number 0."""
    pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")
    monkeypatch.setenv("HNETKIT_KERNEL", "fused")
    run_fused = Mock(side_effect=fused.run)
    monkeypatch.setattr(fused, "run", run_fused)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**any_truth.small_unet().config, "block_out_channels": [320]}).half()
    pipe, twin = any_truth.pipeline_of(unet), any_truth.pipeline_of(unet)
    file = network_file(tmp_path, "wide.pt", widths=(24, 320), structure=(1, 0.25, 1), activation="relu", scale=0.05)
    text = any_truth.text_of(0, 3, torch.float16)

    def both(verb: Callable[..., Any], *arguments: Any, **options: Any) -> Tensor:
        for one in (pipe, twin):
            verb(one, *arguments, **options)
        picture = any_truth.picture(pipe, text)
        assert relative(picture, any_truth.picture(twin, text)) <= 1e-6
        return picture

    pipe.unet.compile(backend=graphs, fullgraph=True)
    bare = both(hnetkit.unload_hypernetworks)
    opened = both(hnetkit.load_hypernetwork, file, strength=0.8)
    assert run_fused.call_count == 2, "once in each UNet: its text is not 320 wide"
    before = len(graphs.made)
    assert relative(both(hnetkit.set_hypernetworks, ["wide"], [-0.4]), opened) > 1e-3
    both(hnetkit.set_progress, 0, 4)
    assert torch.equal(both(hnetkit.set_hypernetworks, ["wide"], [hnetkit.Strength(0.8, end=0.5)]), opened)
    assert torch.equal(both(hnetkit.set_progress, 3, 4), bare)
    assert torch.equal(both(hnetkit.set_progress, 1, 4), opened)
    assert len(graphs.made) == before


@pytest.mark.filterwarnings("ignore:hnetkit dropped:UserWarning")
def test_a_lora_that_comes_after_compiled_code(pipe: Any, twin: Any, graphs: Graphs, ink: Hypernetwork) -> None:
    pipe.unet.compile(backend=graphs)
    for one in (pipe, twin):
        hnetkit.load_hypernetwork(one, ink)
    run(pipe)
    for one in (pipe, twin):
        one.load_lora_weights(lora(twin if one is twin else tiny_sd(least=True)))
    assert relative(run(pipe), run(twin)) <= 1e-6
    assert relative(run(pipe), run(twin)) <= 1e-6


@pytest.mark.filterwarnings("ignore:hnetkit dropped:UserWarning")
def test_projections_fused_after_compiled_code_are_refused(pipe: Any, graphs: Graphs, ink: Hypernetwork) -> None:
    pipe.unet.compile(backend=graphs)
    hnetkit.load_hypernetwork(pipe, ink)
    run(pipe)
    pipe.fuse_qkv_projections()
    with pytest.raises(AttachError, match="fused"):
        run(pipe)


def test_inductor_takes_weights_and_strengths_as_inputs(
    pipe: Any, twin: Any, graphs: Graphs, ink: Hypernetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default backend, on one projection: its code holds no constant that a strength change must reach."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # a pool of processes takes longer to start
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)  # no programs that try vector instructions out
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False)
    for one in (pipe, twin):
        hnetkit.load_hypernetwork(one, ink)
    projections = [one.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_k for one in (pipe, twin)]
    projections[0].compile()
    x = torch.randn(2, 64, 8)
    for strength in (1.0, -0.4):
        for one in (pipe, twin):
            hnetkit.set_hypernetworks(one, ["ink"], [strength])
        with torch.no_grad():
            try:
                got, truth = (projection(x) for projection in projections)
            except torch._inductor.exc.InvalidCxxCompiler:
                pytest.skip("torch.compile builds C++ on a CPU, and this machine has no compiler for it")
        assert relative(got, truth) <= 1e-5


def test_a_compiled_unet_is_refused_where_torch_is_too_old_to_compile_hooks(
    pipe: Any, ink: Hypernetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.runtime.adapters._COMPILES", False)
    pipe.unet.compile(backend="eager")
    with pytest.raises(AttachError, match="compiled"):
        hnetkit.load_hypernetwork(pipe, ink)
    assert not hnetkit.get_active_hypernetworks(pipe)
    assert not hasattr(pipe.unet, "hnetkit")
