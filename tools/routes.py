"""Count the modules that three everyday jobs run through: one sync, one training step, one picture.

    PYTHONPATH=tests python -P tools/routes.py [sync] [step] [picture]

A module counts where a line inside one of its functions runs, in any thread. Preparation does not count: opening the
library, loading the model, setting up a training run. Neither do the modules in `LEFT_OUT`, which every job may use.
Prints the modules of each route, and exits with 1 if more of them than its limit stand in the room that carries it
out: these are what somebody opens who follows it. Other rooms are entered by their front doors, and counted too.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
os.environ.pop("HNETKIT_KERNEL", None)
os.environ.pop("HNETKIT_LIBRARY", None)

from PIL import Image
from support.fake_sites import Sites, World

import hnetkit
from hnetkit import train

LEFT_OUT = {"errors", "files", "generate.backend_errors", "paths", "settings"}

STEP = 2
"""The training step that is traced; the first one also fills caches."""


class Trace:
    """Collects the modules of hnetkit whose functions run while `is_counting` is set.

    Every thread that starts while the trace is installed is traced. So are functions that began before counting did.
    """

    def __init__(self) -> None:
        self.is_counting = False
        self.modules: set[str] = set()

    @contextmanager
    def installed(self) -> Iterator[None]:
        threading.settrace(self._call)
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]

    @contextmanager
    def counting(self) -> Iterator[None]:
        self.is_counting = True
        try:
            yield
        finally:
            self.is_counting = False

    def _call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        module = frame.f_globals.get("__name__") or ""
        is_ours = module == "hnetkit" or module.startswith("hnetkit.")
        # the body of a module or a class is no function; methods that dataclasses generate have no lines of ours
        is_function = frame.f_code.co_flags & inspect.CO_OPTIMIZED and not frame.f_code.co_filename.startswith("<")
        return self._line if is_ours and is_function else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        if self.is_counting and event == "line":
            self.modules.add(frame.f_globals["__name__"].partition(".")[2] or "__init__")
        return self._line


def sync(folder: Path, trace: Trace) -> None:
    """Fetches the one model of a site into an empty library."""
    with Sites(World.make(1, plain=True)) as sites:
        os.environ |= {"HNETKIT_CIVITAI_URL": sites.civitai_url, "CIVITAI_TOKEN": sites.token}
        with hnetkit.Library(folder / "home") as library, hnetkit.FetchSession(library) as session:
            with trace.installed(), trace.counting():
                results = session.sync()
            assert [result.state for result in results] == ["done"], results
            assert len(library.networks()) == 1


def step(folder: Path, trace: Trace) -> None:
    """Trains on the demo model and counts one step, from the report of the one before to its own."""
    pictures = folder / "pictures"
    pictures.mkdir()
    for color in ("red", "blue"):
        Image.new("RGB", (64, 64), color).save(pictures / f"{color}.png")
        (pictures / f"{color}.txt").write_text(f"a {color} square", encoding="utf-8")
    recipe = {"name": "ink", "pictures": str(pictures), "max_steps": STEP + 1, "save_every": 0, "preview_every": 0}

    def report(done: Any) -> None:
        trace.is_counting = done.step == STEP - 1

    model = hnetkit.load_model("demo", device="cpu")
    with hnetkit.Library(folder / "home") as library, trace.installed():
        result = train.train(recipe, model, out=folder / "training", step=report, library=library)
    assert result.step == STEP + 1, result


def picture(folder: Path, trace: Trace) -> None:
    """Draws one picture with one of the demo model's networks."""
    model = hnetkit.load_model("demo", device="cpu")
    with hnetkit.Library(folder / "home") as library:
        with trace.installed(), trace.counting():
            pictures = model.draw("a red circle <hypernet:outline:0.8>", seed=1, steps=2, library=library)
        assert [len(one.hypernetworks) for one in pictures] == [1]


class Route(NamedTuple):
    """A job that people do every day.

    Attributes:
        run: does it, in an empty folder, and counts with the trace.
        room: carries it out.
        limit: of modules of that room.
    """

    run: Callable[[Path, Trace], None]
    room: str
    limit: int


ROUTES = {
    "sync": Route(sync, "sources", 14),
    "step": Route(step, "train", 12),
    "picture": Route(picture, "generate", 16),
}


def modules_of(route: str) -> list[str]:
    """Returns the modules that a route runs through, without those in `LEFT_OUT`."""
    trace = Trace()
    # on Windows a library's file may be held a moment longer than its session
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        os.environ["HNETKIT_HOME"] = str(Path(name, "home"))
        ROUTES[route].run(Path(name), trace)
    return sorted(trace.modules - LEFT_OUT)


def main(names: list[str]) -> int:
    is_too_long = False
    for name in names or ROUTES:
        modules, (_, room, limit) = modules_of(name), ROUTES[name]
        rooms = Counter(module.partition(".")[0] for module in modules)
        is_too_long |= rooms[room] > limit
        shares = ", ".join(f"{other} {count}" for other, count in rooms.most_common() if other != room)
        sys.stdout.write(
            f"{name}: {rooms[room]} modules of {room}, at most {limit}; {len(modules)} in all ({shares})\n"
        )
        sys.stdout.writelines(f"    {module}\n" for module in modules)
        sys.stdout.flush()
    return int(is_too_long)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
