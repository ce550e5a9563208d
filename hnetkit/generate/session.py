"""A model with networks, LoRAs and textual inversions attached while images are drawn with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from threading import Condition, Thread, current_thread
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary

from hnetkit.errors import HnetkitError, failure_of
from hnetkit.generate.drawing import steps_of_pass
from hnetkit.generate.loading.baked import applied_once_more
from hnetkit.generate.loading.extra_networks import (
    ActiveAdapters,
    Lora,
    active_adapters,
    attach_loras,
    detach_loras,
    embeddings_loaded,
    own_loras,
)
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.prompt_networks import (
    Note,
    ResolvedNetwork,
    ResolvedPrompts,
    StackedPrompt,
    attach_network,
    ignore_note,
)
from hnetkit.generate.request import NamedStrengths, Request, SecondPass
from hnetkit.generate.sampling.encoding import takes_clip_skip
from hnetkit.prompts.chunks import WordsOf
from hnetkit.prompts.tags import excerpt
from hnetkit.runtime.adapters import (
    applied,
    get_active_hypernetworks,
    set_hypernetworks,
    unload_hypernetworks,
    without_effect,
)
from hnetkit.runtime.capture import forget_graphs
from hnetkit.runtime.strength import Strength


class _Turn:
    """What a thread holds that draws with a UNet, as often as it likes: networks are on the UNet meanwhile.

    Another thread may give it back: a server may draw an image in one and end the drawing in another.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._holder: Thread | None = None
        self._held = 0

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._holder in (None, current_thread()))
            self._holder = current_thread()
            self._held += 1

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._held -= 1
            if self._held == 0:
                self._holder = None
                self._changed.notify_all()


_turns: WeakKeyDictionary[Any, _Turn] = WeakKeyDictionary()
"""UNet -> whose turn it is to draw with it."""

_StackKey = tuple[str, int]
"""A network in a stack: its content hash, and how many times it came before in the stack."""


class DrawSession:
    """A model with all that its images need attached. `close`, or the end of a ``with`` block, detaches it again.

    Other threads that would draw with the model wait for that.

    All networks are loaded at the start, so an image with another stack changes nothing but numbers on the UNet.

    Args:
        stacks: every stack that will be drawn with.
        embeddings: files of textual inversions.
        note: called when a LoRA fits the model only in part.
    """

    def __init__(
        self,
        model: LoadedPipeline,
        stacks: Iterable[Sequence[ResolvedNetwork]],
        *,
        embeddings: Sequence[Path] = (),
        note: Note = ignore_note,
    ) -> None:
        self.model = model
        self._note = note
        self._loras: tuple[Lora, ...] = ()
        self._loras_before: ActiveAdapters = []
        self._names: dict[_StackKey, str] = {}
        self._failures: dict[_StackKey, HnetkitError] = {}
        self._unusable: dict[Path, HnetkitError] = {}  # textual inversions
        self._said = set[str]()
        self._compared = set[tuple[str, tuple[Lora, ...]]]()  # with the records of what was baked
        with ExitStack() as undo:
            undo.enter_context(_turns.setdefault(model.pipe.unet, _Turn()))
            model.forget_texts()  # the caller may have changed the text encoders since they were encoded
            if replaced := " and ".join(model.replaced):
                self._say(f"Warning: pictures cannot name the model: its {replaced} was replaced after loading")
            if model.has_another_scheduler:
                self._say(
                    "Warning: the scheduler that was put on the pipeline changes no picture here: sampler=NAME does, "
                    "by the noise levels and prediction type that were loaded"
                )
            already_active = get_active_hypernetworks(model.pipe)
            if already_active:
                names = excerpt(", ".join(already_active))
                self._say(
                    f"Warning: what was loaded on the pipeline before is left out: {names}. Name it in the prompt."
                )
            undo.enter_context(applied(model.pipe, {}))
            if embeddings:
                undo.callback(model.forget_texts)
                undo.enter_context(embeddings_loaded(model.pipe, embeddings, self._unusable.__setitem__))
                model.forget_texts()
            undo.callback(self._unload)
            for key, network in {key: network for stack in stacks for key, network in _keyed(stack)}.items():
                try:
                    self._names[key] = attach_network(model.pipe, network, [*already_active, *self._names.values()])
                except Exception as error:
                    self._failures[key] = failure_of(error, network.name)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Restores the pipeline as it was before."""
        self._undo.close()

    def __enter__(self) -> DrawSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def prepare(self, request: Request, prompts: ResolvedPrompts) -> Request:
        """Attaches the LoRAs of prompts, activates their stack, and returns the request with its stacks.

        The stack stays active until the next request; one that differs in strengths alone changes nothing else.

        Raises:
            IncompatibleNetwork, AttachError, FileRefused: one of the networks cannot be used.
            NotFound, BadPicture: the init image or its mask cannot be opened.
            ModelNotUsable, FileChanged: a LoRA, or a textual inversion that the prompts name, cannot be used.
        """
        self._require_usable(request)
        for line in (*request.notes(), *self._clip_skip_without_effect(request)):
            self._say(line)
        self._attach_loras(prompts.loras)
        if unnamed := excerpt(", ".join(own_loras(self.model.pipe))):
            self._say(f"Warning: LoRAs on the pipeline are applied, and pictures cannot name their files: {unnamed}")
        stack = self._stack(prompts.first)
        set_hypernetworks(self.model.pipe, [name for name, _ in stack], [strength for _, strength in stack])
        self._say_without_effect(request, request, prompts.first, stack)
        self._say_baked(prompts)
        if request.second is None:
            return replace(request, stack=stack)
        hires = prompts.hires or prompts.first
        second = self._stack(hires)
        self._say_without_effect(request, request.second, hires, second)
        return replace(request, stack=stack, second=replace(request.second, stack=second))

    def _say(self, line: str) -> None:
        """Tells each line once, however many requests there are."""
        if line not in self._said:
            self._said.add(line)
            self._note(line)

    def _say_without_effect(
        self, request: Request, part: Request | SecondPass, prompt: StackedPrompt, stack: NamedStrengths
    ) -> None:
        """Tells which networks of a pass change nothing of it, although their strength is not 0."""
        has_window = any(isinstance(strength, Strength) and strength.has_window for _, strength in stack)
        steps = steps_of_pass(self.model, request, part) if has_window else 1
        where = " in the second pass" if part is not request else ""
        for network, (name, strength) in zip(prompt.networks, stack, strict=True):
            if why := without_effect(self.model.pipe, name, strength, steps):
                self._say(f"Warning: {network.name} has no effect{where}: {why}")

    def _say_baked(self, prompts: ResolvedPrompts) -> None:
        """Tells which networks are in the model or in a LoRA already, because these were baked of them."""
        applied_here = {
            network.name: network.network
            for prompt in filter(None, (prompts.first, prompts.hires))
            for network, strength in zip(prompt.networks, prompt.strengths, strict=True)
            if strength != 0 and (network.name, self._loras) not in self._compared
        }
        self._compared |= {(name, self._loras) for name in applied_here}
        for line in applied_once_more([self.model.weights, *(lora.path for lora in self._loras)], applied_here):
            self._say(line)

    def _clip_skip_without_effect(self, request: Request) -> Iterator[str]:
        if request.clip_skip > 1 and not takes_clip_skip(self.model.pipe):
            yield f"Clip skip {request.clip_skip} has no effect: only SD 1's text encoder has one."

    def _require_usable(self, request: Request) -> None:
        """Raises the error of a textual inversion that the request's prompts name and that cannot be used."""
        read = WordsOf(request.pieces if self._unusable else ())
        for path, failure in self._unusable.items():
            if read.have(path.stem):
                raise failure

    def _stack(self, prompt: StackedPrompt) -> NamedStrengths:
        keys = [key for key, _ in _keyed(prompt.networks)]
        for key in keys:
            if key in self._failures:
                raise self._failures[key]
        return tuple(zip([self._names[key] for key in keys], prompt.strengths, strict=True))

    def _attach_loras(self, loras: tuple[Lora, ...]) -> None:
        if loras == self._loras:
            return
        self._detach_loras()
        if not loras:
            return
        self._loras_before = active_adapters(self.model.pipe)
        if names := own_loras(self.model.pipe):
            replaced = excerpt(", ".join(sorted(names)))
            self._say(f"Warning: LoRAs on the pipeline are left out beside those of the prompt: {replaced}")
        self._loras = loras
        try:
            attach_loras(self.model.pipe, loras, self._note)
        except BaseException:
            self._detach_loras()  # those before the one that failed
            raise

    def _detach_loras(self) -> None:
        if self._loras:
            detach_loras(self.model.pipe, self._loras, self._loras_before)
        self._loras, self._loras_before = (), []
        self.model.forget_texts()

    def _unload(self) -> None:
        if self._loras:
            self._detach_loras()
        if self._names:
            with warnings.catch_warnings():  # compiled code is dropped, and nothing more is drawn with it
                warnings.filterwarnings("ignore", message="hnetkit dropped the compiled code")
                unload_hypernetworks(self.model.pipe, list(self._names.values()))
            forget_graphs(self.model.pipe)  # the UNet is another one without them


def _keyed(networks: Sequence[ResolvedNetwork]) -> list[tuple[_StackKey, ResolvedNetwork]]:
    """Returns each network with its key. A network that is twice in a stack is loaded onto the pipeline twice."""
    contents = [network.network.content_hash for network in networks]
    return [((content, contents[:index].count(content)), networks[index]) for index, content in enumerate(contents)]
