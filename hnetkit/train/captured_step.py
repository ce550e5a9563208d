"""The forward and backward pass of a batch as CUDA graphs, one for each set of shapes.

The host is slower at launching the kernels of a step than a fast GPU is at running them; a graph is launched at once.
The first batch of its shapes runs as it would anyway, which warms up what is captured at the second. A graph adds to
the gradients where they are, so they are set to 0 between steps and never dropped. The optimizer is not part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Parameter

from hnetkit.runtime.capture_obstacles import obstacle_of_error
from hnetkit.runtime.captured_call import CapturedCall, taken_apart
from hnetkit.runtime.cuda_graphs import CapturedGraph, Graphs

if TYPE_CHECKING:
    import torch

    from hnetkit.train.build import Build
    from hnetkit.train.recipe import Recipe

SHAPES = 16
"""How many graphs are kept: that of the shapes which were not seen for the longest time goes first."""

AddGradients = Callable[..., Tensor]
"""Adds the gradients of a batch to those of the parameters; returns its loss, detached."""


def obstacle_of_run(recipe: Recipe, build: Build, device: torch.device, graphs: type[Graphs]) -> str | None:
    """Says why the steps of a run cannot be captured; None where nothing is known against it."""
    if recipe.gradient_checkpointing:
        return "gradient checkpointing keeps the state of random numbers, which is on the host"
    if any(build.dropout) or build.activation == "rrelu":
        return "a graph would draw the same random numbers at each step"
    return graphs.obstacle(device)


class StepGraphs:
    """Batches of a run as graphs.

    Args:
        graphs: of the device.
        run: what is captured; tensors are its arguments and options, or in them.
        parameters: whose gradients it adds to.
        note: called with a line if capturing fails: from then on batches run as they would anyway.

    Attributes:
        captures: how many graphs were captured so far.
    """

    def __init__(
        self, graphs: Graphs, run: AddGradients, parameters: Sequence[Parameter], note: Callable[[str], None]
    ) -> None:
        self.captures = 0
        self._graphs = graphs
        self._run = run
        self._parameters = parameters
        self._note = note
        self._calls: dict[object, CapturedCall] = {}
        self._has_failed = False

    @property
    def memory(self) -> int:
        """Bytes on the device that the graphs hold."""
        return self._graphs.memory + sum(buffer.nbytes for call in self._calls.values() for buffer in call.buffers)

    def add_gradients(self, kind: object, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
        """Returns what `run` does of a batch, after it added the gradients.

        Args:
            kind: what a graph depends on beside the shapes; None of what no graph is for.
        """
        if self._has_failed or kind is None:
            return self._run(*arguments, **options)
        structure, tensors = taken_apart(arguments, dict(options))
        call = self._calls.pop((kind, structure), None)
        if call is None:
            while len(self._calls) >= SHAPES:
                self._drop(self._calls.pop(next(iter(self._calls))))
            call = CapturedCall(structure, tensors, self._parameters[0].device)
        self._calls[kind, structure] = call
        if not call.is_warm:
            call.fill(tensors)
            loss, _ = self._graphs.warm(lambda: self._made(call))
            call.be_warm([])
            return loss
        graph = call.graph or self._captured(call)
        if graph is None:
            return self._run(*arguments, **options)
        replayed: Tensor = self._graphs.replay(graph, lambda: call.fill(tensors), lambda: call.output[0].clone())
        return replayed

    def release(self) -> None:
        """Frees the memory of the graphs; the gradients stay."""
        for call in self._calls.values():
            self._drop(call)
        self._calls.clear()

    def _captured(self, call: CapturedCall) -> CapturedGraph | None:
        without = [parameter for parameter in self._parameters if parameter.grad is None]
        try:
            call.graph, call.output = self._graphs.record(lambda: self._made(call))
        except Exception as error:  # whatever a library raises there, the step itself may well be possible
            for parameter in without:
                parameter.grad = None
            self.release()
            self._has_failed = True
            self._note(f"Steps run without CUDA graphs: {obstacle_of_error(error)}.")
            return None
        self.captures += 1
        return call.graph

    def _made(self, call: CapturedCall) -> tuple[Tensor, list[Tensor]]:
        """Returns the loss, and the gradients: they are kept by others than who made them."""
        arguments, options = call.arguments()
        loss = self._run(*arguments, **options)
        return loss, [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _drop(self, call: CapturedCall) -> None:
        if call.graph is not None:
            self._graphs.drop(call.graph)
            call.graph = call.output = None
