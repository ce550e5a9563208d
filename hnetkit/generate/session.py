"""A model with networks, LoRAs and textual inversions on it, while pictures are drawn with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from hnetkit.errors import HnetkitError, failure_of
from hnetkit.generate.loading.embeddings import embeddings_loaded, is_named
from hnetkit.generate.loras import Lora, put_on_loras
from hnetkit.generate.networks import Network, StackedPrompt, put_on_one
from hnetkit.generate.pipeline import LoadedPipeline
from hnetkit.generate.request import Request, Stack
from hnetkit.generate.resolved import Note, ResolvedPrompts, untold
from hnetkit.runtime.adapters import applied, get_active_hypernetworks, set_hypernetworks, unload_hypernetworks

_Slot = tuple[str, int]
"""A network in a stack: its content hash, and how often it was before in the stack."""


class DrawSession:
    """A model with all that its pictures need on it. `close`, or the end of a ``with`` block, takes it off again.

    All networks are loaded at once: a picture that differs in its stack then changes nothing but numbers on the UNet.

    Args:
        model: that draws.
        stacks: every stack that it will draw with.
        embeddings: files of textual inversions.
        note: told which LoRAs belong on the model only in part.
    """

    def __init__(
        self,
        model: LoadedPipeline,
        stacks: Iterable[Sequence[Network]],
        *,
        embeddings: Sequence[Path] = (),
        note: Note = untold,
    ) -> None:
        self.model = model
        self._note = note
        self._loras: tuple[Lora, ...] = ()
        self._names: dict[_Slot, str] = {}
        self._failures: dict[_Slot, HnetkitError] = {}
        self._unusable: dict[Path, HnetkitError] = {}  # textual inversions
        with ExitStack() as undo:
            own = get_active_hypernetworks(model.pipe)
            undo.enter_context(applied(model.pipe, {}))
            if embeddings:
                undo.callback(model.forget_texts)
                undo.enter_context(embeddings_loaded(model.pipe, embeddings, self._unusable.__setitem__))
                model.forget_texts()
            undo.callback(self._unload)
            for slot, network in {slot: network for stack in stacks for slot, network in _slots(stack)}.items():
                try:
                    self._names[slot] = put_on_one(model.pipe, network, [*own, *self._names.values()])
                except Exception as error:
                    self._failures[slot] = failure_of(error, network.name)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Makes the pipeline what it was."""
        self._undo.close()

    def __enter__(self) -> DrawSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def prepared(self, request: Request, prompts: ResolvedPrompts) -> Request:
        """Returns a request with the stacks of its prompts, and has their LoRAs on the model.

        The stack stays in effect until the next request: one that differs in strengths alone then changes nothing else.

        Raises:
            IncompatibleNetwork, AttachError, FileRefused: what is wrong with one of the networks.
            ModelNotUsable, FileChanged: what is wrong with a LoRA, or with a textual inversion that it names.
        """
        self._require_usable(request)
        self._put_on_loras(prompts.loras)
        stack = self._stack(prompts.first)
        set_hypernetworks(self.model.pipe, [name for name, _ in stack], [strength for _, strength in stack])
        if request.second is None:
            return replace(request, stack=stack)
        second = stack if prompts.hires is None else self._stack(prompts.hires)
        return replace(request, stack=stack, second=replace(request.second, stack=second))

    def _require_usable(self, request: Request) -> None:
        """Raises why a textual inversion that the request's prompts name cannot be used."""
        texts = [request.prompt, request.negative_prompt]
        if request.second is not None:
            texts += [request.second.prompt, request.second.negative_prompt]
        for path, failure in self._unusable.items():
            if any(is_named(path, text) for text in texts):
                raise failure

    def _stack(self, prompt: StackedPrompt) -> Stack:
        slots = [slot for slot, _ in _slots(prompt.networks)]
        for slot in slots:
            if slot in self._failures:
                raise self._failures[slot]
        return tuple(zip([self._names[slot] for slot in slots], prompt.strengths, strict=True))

    def _put_on_loras(self, loras: tuple[Lora, ...]) -> None:
        if loras == self._loras:
            return
        self._take_off_loras()
        try:
            put_on_loras(self.model.pipe, loras, self._note)
        except BaseException:
            self._take_off_loras(anyway=True)  # those before the one that failed
            raise
        self._loras = loras

    def _take_off_loras(self, *, anyway: bool = False) -> None:
        if self._loras or anyway:
            self.model.pipe.unload_lora_weights()
        self._loras = ()
        self.model.forget_texts()

    def _unload(self) -> None:
        if self._loras:
            self._take_off_loras()
        if self._names:
            with warnings.catch_warnings():  # of compiled code that is dropped: nothing is drawn with it any more
                warnings.filterwarnings("ignore", message="hnetkit dropped the compiled code")
                unload_hypernetworks(self.model.pipe, list(self._names.values()))


def _slots(networks: Sequence[Network]) -> list[tuple[_Slot, Network]]:
    """A stack may hold a network twice: it is then on the pipeline twice."""
    contents = [network.network.content_hash for network in networks]
    return [((content, contents[:at].count(content)), networks[at]) for at, content in enumerate(contents)]
