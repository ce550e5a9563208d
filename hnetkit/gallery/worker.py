"""The one process that draws what waits in the queue, and a server's hold on it.

``python -m hnetkit.gallery.worker`` draws one after the other with the model loaded once, by the verb of
`hnetkit grid`, which records each cell. So a process that was killed, with or without its server, loses the cell that
it was at; the next one goes on. It ends when nothing has waited for a while, when a person stops what it draws, and
with its server: at the end of its standard input.
"""

from __future__ import annotations

import _thread
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnetkit import demo, paths, settings
from hnetkit.distributed import use_default_threads
from hnetkit.errors import HnetkitError, IncompatibleNetwork, failure_of
from hnetkit.files import exclusive_lock, read_regular, stat_at
from hnetkit.gallery.drawing import Drawing, NamedNetwork, PictureToDraw, Progress
from hnetkit.gallery.drawing_queue import DrawingQueue, suggested_prompt
from hnetkit.generate.loading.pipeline import file_stamp
from hnetkit.generate.model import ModelSource
from hnetkit.generate.prompt_networks import NetworkFinder, NetworkRequest
from hnetkit.image_text import write_image
from hnetkit.images import open_rgb
from hnetkit.library.library import Library
from hnetkit.text import counted, printable

if TYPE_CHECKING:
    from hnetkit.generate.model import Model

PLAIN_PROMPT = "a castle on a hill, trees and a lake"
"""Drawn where neither trigger words nor the model suggest anything: a style shows on any motif."""

_BUSY = HnetkitError("another process draws")
_LOG = "worker.log"
_MOST_LOG = 1 << 20
_LOOK_S = 0.2
_PATIENCE_S = 5.0  # for a server that looks whether the lock is free
_GRACE_S = 2.0  # for the file that is being written; a call of the UNet may take longer
_IDLE_S = 30.0  # with the model loaded
_MOST_STARTS = 3
_PREVIEW = 768  # pixels of a side
_INTERRUPTED = 130
_LONGEST_WAIT_S = 60.0


class Drawer:
    """Draws what waits; one process at a time.

    Attributes:
        present: what is being drawn.
    """

    def __init__(self, queue: DrawingQueue) -> None:
        self.queue = queue
        self.present: Drawing | None = None
        self._model: Model | None = None
        self._loaded_by: dict[str, str] = {}

    def run(self, idle_s: float = _IDLE_S) -> None:
        """Draws until nothing has waited for `idle_s` seconds."""
        last = time.monotonic()
        while True:
            drawing = self.queue.next()
            if drawing is None:
                if time.monotonic() - last >= idle_s:
                    return
                time.sleep(_LOOK_S)
                continue
            self.present = drawing
            self.draw(drawing)
            self.present = None
            last = time.monotonic()

    def draw(self, drawing: Drawing) -> Drawing:
        """Draws what a drawing lacks, and returns it as it is then; its errors are in it."""
        before, drawn = drawing.progress, drawing.drawn
        was_cut_short = before.state == "drawing" and drawn <= before.cells
        progress = replace(before, state="drawing", starts=before.starts + 1 if was_cut_short else 1, cells=drawn)
        if progress.starts > _MOST_STARTS:
            return self.queue.write(drawing, _failed(progress, self._cut_short()))
        try:
            drawing = self._choose(self.queue.write(drawing, progress))
            return self.queue.write(drawing, self._draw(drawing))
        except KeyboardInterrupt:
            self.queue.write(drawing, replace(drawing.progress, state="waiting", starts=0))
            raise
        except Exception as error:
            return self.queue.write(drawing, _failed(drawing.progress, failure_of(error, "the drawing")))

    def _choose(self, drawing: Drawing) -> Drawing:
        """Writes down which prompt and which model are drawn with, so that an interrupted drawing keeps them."""
        if drawing.progress.model and (drawing.progress.prompt or drawing.picture):
            return drawing
        source = model_for(drawing.networks)
        if drawing.picture is not None:
            return self.queue.write(drawing, replace(drawing.progress, model=os.fspath(source.model or "")))
        examples = (*source.outline().defaults.prompts, PLAIN_PROMPT)
        prompt = drawing.prompt or self._suggested(drawing) or examples[0]
        return self.queue.write(drawing, replace(drawing.progress, prompt=prompt, model=os.fspath(source.model or "")))

    def _suggested(self, drawing: Drawing) -> str:
        with Library(self.queue.home) as library:
            return suggested_prompt(library, drawing.networks)

    def _draw(self, drawing: Drawing) -> Progress:
        """Draws the cells that are missing and the sheet, and returns what to say of them."""
        from hnetkit.generate.grids.run import draw_grid

        if drawing.picture is not None:
            return self._draw_again(drawing, drawing.picture)
        own, progress = drawing.settings, drawing.progress
        notes: list[str] = []
        grid = draw_grid(
            self._load(ModelSource(model=progress.model)),
            prompt=progress.prompt,
            negative_prompt=own.negative_prompt,
            seed=own.seed,
            names=[network.content_hash for network in drawing.networks],
            strengths=own.strengths,
            steps=own.steps,
            sampler=own.sampler,
            width=own.width,
            height=own.height,
            out=drawing.sheet,
            overwrite=True,  # the sheet of a process that was killed before it could say that it is done
            note=notes.append,
        )
        if drawing.kind == "strip":
            _write_preview(drawing)
        failed = grid.failed if grid else []
        if failed:
            notes.append(f"{counted(len(failed), 'cell')} could not be drawn: {failed[0]['failure']}")
        return replace(progress, state="done", notes=tuple(notes), message="", next_step="")

    def _draw_again(self, drawing: Drawing, picture: PictureToDraw) -> Progress:
        """Draws a picture by the settings in it, as `hnetkit generate --from` does."""
        if not picture.is_unchanged:
            raise HnetkitError(f"{picture.path}: has changed or is gone", hint="draw it again from its page")
        notes: list[str] = []
        model = self._load(ModelSource(model=drawing.progress.model))
        [drawn] = model.draw(again=picture.path, note=notes.append)
        drawn.save(drawing.sheet, overwrite=True)
        said = tuple(line.removeprefix(f"{picture.path}: ") for line in notes)
        return replace(drawing.progress, state="done", prompt=drawn.prompt, notes=said, message="", next_step="")

    def _load(self, source: ModelSource) -> Model:
        """Returns a model, loaded once as long as neither its files nor the settings change."""
        model, chosen = self._model, settings.load()
        if (
            model
            and model.source == source
            and self._loaded_by == chosen
            and file_stamp(source.location) == model.stamp
        ):
            return model
        self._model = model = None
        gc.collect()  # before another one comes
        self._model, self._loaded_by = source.load(), chosen
        return self._model

    def _cut_short(self) -> HnetkitError:
        return HnetkitError(
            f"the process that draws was ended {_MOST_STARTS} times before it could draw a cell",
            hint=f"close other programs if memory is short, or draw smaller; {self.queue.folder / _LOG} may say why",
        )


def model_for(networks: Sequence[NamedNetwork]) -> ModelSource:
    """Returns the model of the settings or, where it does not fit all of some networks, the bundled one.

    Raises:
        IncompatibleNetwork: neither fits; the error is that of the first.
        NotFound, FileRefused, ModelNotUsable: a network or the model cannot be read.
    """
    chosen, bundled = settings.get("model"), ModelSource(model=demo.NAME)
    failure: IncompatibleNetwork | None = None
    for source in (ModelSource(), bundled) if chosen else (ModelSource(),):
        found = NetworkFinder(source.bundled).networks(
            NetworkRequest(network.content_hash, 1.0) for network in networks
        )
        try:
            source.require_fit(found, source.outline())
        except IncompatibleNetwork as error:
            failure = failure or error
            continue
        return ModelSource(model=chosen) if source.is_chosen and source != bundled else bundled
    assert failure is not None
    raise failure


def _write_preview(drawing: Drawing) -> None:
    """Writes the square that cards show: the picture at the largest strength, and below it the others."""
    from PIL import Image, ImageOps

    rows = sorted(drawing.pictures().items(), key=lambda row: drawing.settings.strengths[row[0][1]])
    *others, (_, strongest) = rows
    lower = _PREVIEW // 3 if others else 0
    square = Image.new("RGB", (_PREVIEW, _PREVIEW))
    square.paste(ImageOps.fit(open_rgb(drawing.picture_file(strongest)), (_PREVIEW, _PREVIEW - lower)), (0, 0))
    for number, (_, row) in enumerate(others):
        left, right = (_PREVIEW * place // len(others) for place in (number, number + 1))
        square.paste(ImageOps.fit(open_rgb(drawing.picture_file(row)), (right - left, lower)), (left, _PREVIEW - lower))
    write_image(drawing.preview, square, strongest["infotext"], overwrite=True)


def _failed(progress: Progress, error: HnetkitError) -> Progress:
    """Returns the progress of a drawing that failed, with its next step in words that help on a page."""
    hint = error.command_hint or ""
    if hint.startswith("--model "):
        hint = hint.replace("--model", "hnetkit config model", 1)
    elif hint.startswith("-"):
        hint = f"draw it on the command line, with {hint}"
    return replace(progress, state="failed", message=str(error), next_step=hint)


class _ServerWatch:
    """Ends this process when its server is gone, or when what it draws is stopped.

    It is interrupted as by Ctrl-C, so that no file is left half-written; where it is inside a long call, in which it
    writes nothing, it is ended.
    """

    def __init__(self, drawer: Drawer) -> None:
        self._drawer = drawer

    def start(self) -> None:
        for watch in (self._await_server, self._await_stop):
            threading.Thread(target=watch, daemon=True).start()

    def _await_server(self) -> None:
        with suppress(OSError):
            while os.read(0, 1):  # not `sys.stdin`, whose lock Python needs at its end
                pass
        self._end()

    def _await_stop(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            present = self._drawer.present
            with suppress(OSError):  # what cannot be seen now is looked at again
                if present is not None and self._drawer.queue.is_stopped(present):
                    self._end()

    def _end(self) -> None:
        _thread.interrupt_main()
        time.sleep(_GRACE_S)
        present = self._drawer.present
        if present is not None:
            with suppress(OSError, HnetkitError):
                known = self._drawer.queue.drawing(present.id)
                self._drawer.queue.write(known, replace(known.progress, state="waiting", starts=0))
        os._exit(_INTERRUPTED)


class DrawingProcess:
    """A server's hold on the process that draws: it is started while something waits, and ends with the server.

    Any number of servers of one home have one each; the lock of the queue lets one draw.
    """

    def __init__(self, queue: DrawingQueue) -> None:
        self.queue = queue
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._tend, daemon=True)
        self._woken, self._is_closing = threading.Event(), False
        self._failures, self._not_before = 0, 0.0
        self._seen: int | None = None
        self._has_work = True

    @property
    def trouble(self) -> str | None:
        """What keeps the process from drawing, in one line; None while all is well."""
        if not self._failures or self._child is not None:
            return None
        try:
            lines = read_regular(self.queue.folder / _LOG, most=_MOST_LOG).decode(errors="replace").split("\n")
        except (OSError, ValueError):
            lines = []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")
        return f"The process that draws ended by itself and is tried again: {printable(last)[:300]}"

    def start(self) -> None:
        """Begins to look after the queue: what an ended server left is gone on with."""
        self._thread.start()

    def wake(self) -> None:
        """Looks at the queue now."""
        self._has_work, self._not_before = True, 0.0
        self._woken.set()

    def close(self) -> None:
        """Ends the process. What it was drawing waits for the next server, with the cells that it has."""
        self._is_closing = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()
        child = self._child
        if child is None:
            return
        if child.stdin is not None:
            child.stdin.close()
        try:
            child.wait(_GRACE_S + _PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def _tend(self) -> None:
        while not self._is_closing:
            try:
                self._look()
            except Exception as error:  # a folder that cannot be read now may be readable again
                self._fail(str(failure_of(error, str(self.queue.folder))))
            self._woken.wait(_LOOK_S * 2)
            self._woken.clear()

    def _look(self) -> None:
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                return
            self._child = None
            if code in (0, _INTERRUPTED):
                self._failures = 0
            else:
                self._fail()
        if time.monotonic() >= self._not_before and self._is_needed():
            self._child = self._spawn()

    def _fail(self, why: str | None = None) -> None:
        self._failures += 1
        self._not_before = time.monotonic() + min(_LONGEST_WAIT_S, 2.0 ** (self._failures - 1))
        if why is not None:
            with suppress(OSError):
                (self.queue.folder / _LOG).write_text(why)

    def _is_needed(self) -> bool:
        """Whether something waits and no other server's process draws; the queue is read if it may have changed."""
        status = stat_at(self.queue.folder)
        seen = None if status is None else status.st_mtime_ns
        if self._has_work or seen != self._seen:
            self._seen = seen
            self._has_work = self.queue.next() is not None
        return self._has_work and not self._is_drawn_elsewhere()

    def _is_drawn_elsewhere(self) -> bool:
        try:
            with exclusive_lock(self.queue.lock, _BUSY):
                return False
        except HnetkitError as error:
            if error is not _BUSY:
                raise
            return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        environment: dict[str, Any] = {**os.environ, "HNETKIT_HOME": os.fspath(self.queue.home)}
        with open(self.queue.folder / _LOG, "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "hnetkit.gallery.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.queue.folder,  # a folder of hnetkit's own: Python looks for modules there
                env=environment,
            )


def main() -> int:
    """Draws what waits; returns at once where another process does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server in the background ignores it
    use_default_threads()  # before torch is imported
    drawer = Drawer(DrawingQueue(Path(paths.home())))
    _ServerWatch(drawer).start()
    try:
        with exclusive_lock(drawer.queue.lock, _BUSY, patience_s=_PATIENCE_S):
            drawer.run()
    except KeyboardInterrupt:
        return _INTERRUPTED
    except HnetkitError as error:
        if error is _BUSY:
            return 0
        logging.getLogger(__name__).error("%s", error)  # to standard error, of which the server keeps a log
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
