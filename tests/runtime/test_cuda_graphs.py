"""CUDA's graphs themselves: in what order streams use their memory. `test_capture` has the rest, without a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hnetkit.runtime.cuda_graphs import CudaGraphs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_stream_waits_for_a_replay_whose_output_could_not_be_taken() -> None:
    device = torch.device("cuda")
    graphs, number = CudaGraphs(device), torch.zeros(1, device=device)
    graphs.warm(lambda: number + 1)
    graph, output = graphs.record(lambda: number + 1)

    def fill_late() -> None:
        torch.cuda._sleep(10**9)
        number.fill_(5)

    def fill_soon() -> None:
        number.fill_(7)

    def take_nothing() -> Tensor:
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        graphs.replay(graph, fill_late, take_nothing)
    with torch.cuda.stream(torch.cuda.Stream()):
        taken = graphs.replay(graph, fill_soon, output.clone)
    torch.cuda.synchronize()
    assert (number.item(), taken.item()) == (7, 8)
