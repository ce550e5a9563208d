"""Every shipped configuration compiles for the GPUs that take it, without a GPU, and fits on them.

With the installed Triton and with the oldest that is supported: every GPU with both in the long run, here each row of
the tables with one of them (what they give 86 they give 89 too). It cannot show speed, races, or that the hardware
does what its instructions say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from hnetkit.kernels import configs

SCRIPT = Path(__file__).resolve().parents[1] / "support" / "ahead_of_time.py"
OLDEST = Path(sys.prefix) / "triton-3.6.0"
"""Where `make` puts the oldest Triton, beside the environment's own."""

OF_AMD = SCRIPT.with_name("ahead_of_time_amd.py")

SHARED_KB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # that a program can have
TENSOR_CORES = {80: "mma", 86: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
MATRIX_INSTRUCTIONS = {"linear": 4, "wide": 8, "fused": 24, "gradient": 4}  # in a loop, at least: one tile of work
OUTSIDE_LOOPS = {"linear": 0, "wide": 0, "fused": 160, "gradient": 0, "norm": 0}  # local memory operations
BY_THE_OLDEST = {("linear", 120): 4}
"""What Triton 3.6 has more of them there."""

pytest.importorskip("triton", reason="Triton is there on Linux x86-64 only")


def compiled(
    folder: Path | None, gpus: Collection[int] | Collection[str], *options: str, script: Path = SCRIPT
) -> dict[str, Any]:
    """What came out with the installed Triton, or with the one in `folder`."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, filter(None, (folder, SCRIPT.parents[1]))))
    command = [sys.executable, "-P", str(script), *map(str, gpus), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def require_sound(found: dict[str, Any], gpus: Collection[int], *, every: bool = False) -> None:
    """All that can be said of compiled kernels without running them."""
    kernels, is_oldest = found["kernels"], found["triton"] == "3.6.0"
    assert {kernel["gpu"] for kernel in kernels} == set(gpus)
    for gpu in gpus:
        own = [kernel for kernel in kernels if kernel["gpu"] == gpu]
        tiles = {tuple(kernel["tiles"]) for kernel in own if kernel["kernel"] == "linear"}
        assert len(tiles) == (5 if gpu in (90, 100) else 2), "all that the table gives this GPU"
        builds, of_fused, of_wide = (4, 4, 3) if every else (2, 1, 1)
        wide = [kernel for kernel in own if kernel["kernel"] == "wide"]
        assert len(wide) == (of_wide * len(configs.WIDE) if gpu == 90 else 0)
        # the grouped kernels have all networks from 10.0 on, and those with layer norms on 9.0
        of_fused *= 0 if gpu >= 100 else 1 if gpu == 90 else 2
        assert len(own) == builds * len(tiles) + of_fused + len(wide) + 2, "configurations that were compiled"
        for kernel in own:
            assert kernel["local_in_loops"] == 0, kernel
            more = BY_THE_OLDEST.get((kernel["kernel"], gpu), 0) if is_oldest else 0
            assert kernel["local"] <= OUTSIDE_LOOPS[kernel["kernel"]] + more, kernel
            assert kernel["shared"] <= SHARED_KB[gpu] << 10, kernel
            assert kernel["serialised"] == "", kernel
            if kernel["kernel"] != "norm":
                others = {"mma", "wgmma", "tcgen05"} - {TENSOR_CORES[gpu]}
                assert kernel["loops"] == 1, kernel
                assert kernel[TENSOR_CORES[gpu]] >= MATRIX_INSTRUCTIONS[kernel["kernel"]], kernel
                assert all(kernel[other] == 0 for other in others), kernel
            if kernel["kernel"] == "wide":
                parts = {f"64x{columns}x16" for columns in (kernel["tiles"][1], kernel["tiles"][-1])}
                assert set(kernel["shapes"]) == parts, "one product for the head of a tile, one for its tail"


@pytest.mark.timeout(1300)
def test_kernels_compile_and_fit_with_the_installed_triton() -> None:
    gpus = (80, 90, 120)
    require_sound(compiled(None, gpus), gpus)


@pytest.mark.timeout(1300)
@pytest.mark.skipif(not OLDEST.is_dir(), reason="the oldest supported Triton is not installed: `make test` installs it")
def test_kernels_compile_and_fit_with_the_oldest_triton() -> None:
    gpus = (86, 100)
    found = compiled(OLDEST, gpus)
    assert found["triton"] == "3.6.0"
    require_sound(found, gpus)


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["usual", "every"])
@pytest.mark.parametrize("folder", [None, OLDEST], ids=["installed", "oldest"])
def test_the_specialized_kernel_has_its_warps_its_boxes_and_its_waits(folder: Path | None, every: bool) -> None:
    """Triton has compiled it, without a word, to something else: with other boxes, or with warps that are all alike."""
    if folder is not None and not folder.is_dir():
        pytest.skip("the oldest supported Triton is not installed: `make test` installs it")
    kernels = compiled(folder, (90,), "--specialized", *["--all"] * every)["kernels"]
    assert len(kernels) == (5 if every else 1)
    for kernel in kernels:
        assert kernel["warps"] == 12, "four that load, and two groups of four that multiply"
        assert kernel["boxes"] == [[64, 64]] * 2, "each group gets its own half of the rows"
        assert kernel["freed_early"] == 0, kernel
        assert kernel["waits"] == ["0"], kernel
        assert kernel["loops"] == 2, kernel
        assert kernel["local_in_loops"] == 0, kernel
        assert kernel["local"] <= 32, kernel
        assert kernel["shared"] <= SHARED_KB[90] << 10, kernel
        assert kernel["serialised"] == "", kernel
        assert kernel["wgmma"] == 48, kernel
        assert kernel["shapes"] == ["64x256x16", "64x32x16", "64x64x16"], kernel


@pytest.mark.long
@pytest.mark.parametrize("folder", [None, OLDEST], ids=["installed", "oldest"])
def test_every_build_of_every_configuration_compiles_and_fits(folder: Path | None) -> None:
    require_sound(compiled(folder, SHARED_KB, "--all"), SHARED_KB, every=True)


def require_fp16_sums(kernels: list[dict[str, Any]]) -> None:
    assert {kernel["tiles"][2] for kernel in kernels} == {32}
    for kernel in kernels:
        assert kernel["mma_shapes"] == ["16816.F16"], kernel
        assert kernel["local"] == kernel["local_in_loops"] == 0, kernel
        assert kernel["shared"] <= SHARED_KB[kernel["gpu"]] << 10, kernel


@pytest.mark.timeout(1300)
def test_sums_in_fp16_take_the_matrix_instructions_that_are_twice_as_fast() -> None:
    require_fp16_sums(compiled(None, (86, 120), "--fp16-sums")["kernels"])


@pytest.mark.long
@pytest.mark.parametrize("folder", [None, OLDEST], ids=["installed", "oldest"])
def test_sums_in_fp16_compile_for_every_gpu_that_has_them(folder: Path | None) -> None:
    require_fp16_sums(compiled(folder, (86, 89, 120), "--fp16-sums")["kernels"])


AMD_SHARED_KB = {"gfx90a": 64, "gfx942": 64, "gfx950": 160, "gfx1100": 64, "gfx1201": 64}


def require_sound_for_amd(kernels: list[dict[str, Any]], gpus: Collection[str], *, every: bool = False) -> None:
    assert {kernel["gpu"] for kernel in kernels} == set(gpus)
    for gpu in gpus:
        own = [kernel for kernel in kernels if kernel["gpu"] == gpu]
        assert len(own) == 2 * (4 if every else 2) + 2, "two tiles of the linear kernel, and the others"
        matrix, other = ("mfma", "wmma") if gpu.startswith("gfx9") else ("wmma", "mfma")
        for kernel in own:
            assert kernel["spilled"] == kernel["scratch"] == kernel[other] == 0, kernel
            assert kernel["shared"] <= AMD_SHARED_KB[gpu] << 10, kernel
            if kernel["kernel"] != "norm":
                assert kernel[matrix] >= 8, kernel


@pytest.mark.timeout(1300)
def test_kernels_compile_for_amd_without_spills() -> None:
    """Nobody has run them there."""
    gpus = ("gfx1100", "gfx942")
    require_sound_for_amd(compiled(None, gpus, script=OF_AMD)["kernels"], gpus)


@pytest.mark.long
@pytest.mark.parametrize("folder", [None, OLDEST], ids=["installed", "oldest"])
def test_every_build_compiles_for_every_amd_gpu_of_the_table(folder: Path | None) -> None:
    found = compiled(folder, AMD_SHARED_KB, "--all", script=OF_AMD)["kernels"]
    require_sound_for_amd(found, AMD_SHARED_KB, every=True)


def test_local_memory_in_a_loop_would_be_seen() -> None:
    """The reader of disassembled code, on a loop that spills and one that does not."""
    from support.ahead_of_time import LOCAL, innermost_loops

    code = (
        "/*0010*/ HMMA.16816 R0 ; \n/*0020*/ {} R1 ; \n/*0030*/ @P0 BRA 0x10 ; \n/*0040*/ BRA 0x0 ; \n/*0050*/ EXIT ; "
    )
    for instruction, count in (("STL [R1]", 1), ("FADD R1", 0)):
        (body,) = innermost_loops(code.format(instruction))
        assert len(LOCAL.findall(body)) == count


def test_a_place_that_is_given_back_too_early_would_be_seen() -> None:
    """The reader of Triton's own code, on products that are waited for and on ones that are not."""
    from support.ahead_of_time import freed_early

    product, wait = (
        "%1 = ttng.warp_group_dot %a, %b {isAsync = true}",
        "ttng.warp_group_dot_wait %1 {pendings = %s : i32}",
    )
    free = "ttng.arrive_barrier %slot, 128"
    assert freed_early("\n".join((product, wait.replace("%s", "0"), free))) == 0
    assert freed_early("\n".join((product.replace("isAsync = true", ""), free))) == 0
    assert freed_early("\n".join((product, wait.replace("%s", "1"), free))) == 1
    assert freed_early("\n".join((product, free, free))) == 2
