"""Strips and comparisons that the gallery draws by itself: a queue on the disk, and one process that draws."""

from __future__ import annotations

import _thread
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from support import networks
from support.pipelines import tiny_sdxl
from support.waiting import once

from hnetkit import Library, demo, settings
from hnetkit.cli import run
from hnetkit.errors import NotFound, UsageError
from hnetkit.files import TEMPORARY
from hnetkit.gallery.drawing import Drawing, DrawingSettings, NamedNetwork, PictureToDraw
from hnetkit.gallery.drawing_queue import DrawingQueue, networks_of, suggested_prompt
from hnetkit.gallery.worker import Drawer, DrawingProcess, model_for

pytestmark = pytest.mark.skipif(not demo.networks(), reason="the bundled demo model is missing from this checkout")

QUICK = DrawingSettings(steps=1)
LONG = DrawingSettings(strengths=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8), steps=20)


SERVER = """
import sys, time
from pathlib import Path
from hnetkit.gallery.drawing_queue import DrawingQueue
from hnetkit.gallery.worker import DrawingProcess
server = DrawingProcess(DrawingQueue(Path(sys.argv[1])))
server.start()
while server._child is None:
    time.sleep(0.02)
print(server._child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def queue(home: Path) -> DrawingQueue:
    return DrawingQueue(home)


@pytest.fixture
def demo_networks(tmp_path: Path) -> list[NamedNetwork]:
    """The networks of the demo model, as a library has them."""
    folder = tmp_path / "networks"
    shutil.copytree(demo.network_folder(), folder)
    with Library() as library:
        library.scan(folder)
        rows = {row["name"]: row["content_hash"] for row in library.networks()}
        return networks_of(library, [rows["outline"], rows["dots"], rows["paper"]])


@pytest.fixture
def processes(queue: DrawingQueue) -> Iterator[Callable[[], DrawingProcess]]:
    """Starts what a server starts; all are ended with the test."""
    started: list[DrawingProcess] = []

    def start() -> DrawingProcess:
        process = DrawingProcess(queue)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.close()


def drawn(queue: DrawingQueue, *added: Drawing) -> list[Drawing]:
    """Draws all that waits, in this process, and returns drawings as they are then."""
    Drawer(queue).run(idle_s=0)
    return [queue.drawing(one.id) for one in added]


def until(is_so: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def stamps(drawing: Drawing) -> dict[str, int]:
    """File of a cell -> when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in map(drawing.picture_file, drawing.pictures().values())}


def test_a_strip_is_what_the_command_that_it_states_draws(
    queue: DrawingQueue, demo_networks: list[NamedNetwork], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.put("model", str(demo.model_folder()))
    waiting = queue.add(demo_networks[:1], DrawingSettings(prompt="a large red star", seed=3, steps=2, sampler="euler"))
    assert (waiting.state, waiting.kind, waiting.drawn, waiting.cells) == ("waiting", "strip", 0, 3)
    (strip,) = drawn(queue, waiting)
    assert (strip.state, strip.drawn, strip.progress.message, strip.progress.notes) == ("done", 3, "", ())
    strengths = [row["coordinates"]["strength"] for _, row in sorted(strip.pictures().items())]
    assert strengths == [0, 0.5, 1]
    assert {(row["seed"], row["steps"], row["sampler"], row["width"]) for row in strip.pictures().values()} == {
        (3, 2, "Euler", 64)
    }
    assert strip.command is not None
    words = shlex.split(strip.command)
    assert words[:2] == ["hnetkit", "grid"]
    monkeypatch.chdir(tmp_path)
    assert run(words[1:]) == 0
    assert Image.open("strip.png").tobytes() == Image.open(strip.sheet).tobytes()
    width, height = Image.open(strip.preview).size
    assert width == height


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the demo model with a network of its own."""
    out = tmp_path_factory.mktemp("outputs") / "red star.png"
    assert run(["generate", "a large red star <hypernet:outline:0.7>", "--steps=2", "--seed=9", "--out", str(out)]) == 0
    return out


def of_picture(path: Path) -> PictureToDraw:
    status = path.stat()
    return PictureToDraw(str(path), status.st_size, status.st_mtime_ns)


def test_a_picture_drawn_again_is_the_same_picture_and_what_its_command_draws(
    queue: DrawingQueue,
    demo_networks: list[NamedNetwork],
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = queue.add_picture("0" * 24, of_picture(picture), demo_networks[:1])
    assert (waiting.kind, waiting.state, waiting.drawn, waiting.cells) == ("picture", "waiting", 0, 1)
    (again,) = drawn(queue, waiting)
    assert (again.state, again.drawn, again.progress.message) == ("done", 1, "")
    assert again.prompt == "a large red star <hypernet:outline:0.7>"
    assert Image.open(again.sheet).tobytes() == Image.open(picture).tobytes()
    assert again.command is not None
    monkeypatch.chdir(tmp_path)
    assert run(shlex.split(again.command)[1:]) == 0
    assert Image.open("picture.png").tobytes() == Image.open(picture).tobytes()
    assert queue.drawings_of_picture("0" * 24) == [queue.drawing(again.id)]
    assert queue.drawings_of_picture("1" * 24) == []
    assert queue.drawings_of([demo_networks[0].content_hash]) == []
    assert queue.strip_of(demo_networks[0].content_hash) is None


def test_another_picture_in_the_place_of_the_one_that_was_asked_for_is_not_drawn(
    queue: DrawingQueue, picture: Path, tmp_path: Path
) -> None:
    moved, changed = (Path(shutil.copy(picture, tmp_path / name)) for name in ("moved.png", "changed.png"))
    added = [queue.add_picture("0" * 24, of_picture(path), []) for path in (moved, changed)]
    moved.unlink()
    os.utime(changed, (1, 1))
    for one, path in zip(drawn(queue, *added), (moved, changed), strict=True):
        assert (one.state, one.drawn) == ("failed", 0)
        assert one.progress.message == f"{path}: has changed or is gone"
        assert one.progress.next_step == "draw it again from its page"


def test_networks_are_compared_with_each_other_and_a_strip_is_found_under_any_name_of_its_network(
    queue: DrawingQueue, demo_networks: list[NamedNetwork], tmp_path: Path
) -> None:
    first, strip, later = (
        queue.add(demo_networks, DrawingSettings(strengths=(1,), steps=1)),
        queue.add(demo_networks[:1], QUICK),
        queue.add(demo_networks[:1], DrawingSettings(steps=1, seed=7)),
    )
    content = demo_networks[0].content_hash
    assert queue.strip_of(content) is None
    comparison, strip = drawn(queue, first, strip)
    assert (comparison.state, comparison.kind, comparison.drawn) == ("done", "comparison", 3)
    names = [row["hypernetworks"][0]["name"] for _, row in sorted(comparison.pictures().items())]
    assert names == ["outline", "dots", "paper"]
    assert comparison.progress.prompt == strip.progress.prompt == "a red circle"  # the model's first example
    assert comparison.progress.model == "demo"
    (tmp_path / "networks" / "outline.pt").rename(tmp_path / "networks" / "renamed.pt")
    with Library() as library:
        library.scan()
        (named,) = networks_of(library, [content])
    assert named.name == "renamed"
    found = queue.strip_of(content)
    assert found is not None
    assert found.id == later.id
    queue.remove(later.id)
    assert queue.strips_of([content, demo_networks[1].content_hash]) == {content: strip}


def test_a_network_that_fits_no_model_is_said_with_the_next_step_and_nothing_is_drawn(
    queue: DrawingQueue, demo_networks: list[NamedNetwork], tmp_path: Path
) -> None:
    networks.network_file(tmp_path / "networks", "ink.pt", widths=(320, 768), structure=(1, 0.01, 1))
    with Library() as library:
        library.scan()
        ink = networks_of(library, [library.record("ink")["content_hash"]])
    misfit, mixed, fitting = (queue.add(each, QUICK) for each in (ink, [*demo_networks[:1], *ink], demo_networks[:1]))
    misfit, mixed, fitting = drawn(queue, misfit, mixed, fitting)
    assert [one.state for one in (misfit, mixed, fitting)] == ["failed", "failed", "done"]
    assert misfit.progress.message == mixed.progress.message == "ink is for SD 1, and no model is set"
    assert misfit.progress.next_step == "hnetkit config model FOLDER, of SD 1"
    assert sorted(path.name for path in misfit.folder.iterdir()) == ["drawing.json", "state.json"]
    assert misfit.command is None


def test_the_bundled_model_draws_its_networks_beside_a_set_model_of_another_kind(
    queue: DrawingQueue, demo_networks: list[NamedNetwork], tmp_path: Path
) -> None:
    other = tmp_path / "other-model"
    tiny_sdxl().save_pretrained(other)
    settings.put("model", str(other))
    assert model_for(demo_networks).is_demo
    networks.network_file(tmp_path / "networks", "ink.pt", widths=(320, 768), structure=(1, 0.01, 1))
    with Library() as library:
        library.scan()
        ink = networks_of(library, [library.record("ink")["content_hash"]])
    (failed,) = drawn(queue, queue.add(ink, QUICK))
    assert failed.state == "failed"
    assert "ink" in failed.progress.message
    assert not failed.progress.next_step.startswith("-")


def test_a_drawing_goes_on_after_its_server_or_its_process_was_killed_and_draws_no_cell_twice(
    queue: DrawingQueue, demo_networks: list[NamedNetwork], processes: Callable[[], DrawingProcess]
) -> None:
    drawing = queue.add(demo_networks[:1], LONG)
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(queue.home)], stdout=subprocess.PIPE, text=True
    ) as other_server:
        assert other_server.stdout is not None
        first = int(other_server.stdout.readline())
        until(lambda: queue.drawing(drawing.id).drawn >= 1, "a cell was drawn")
        server = processes()
        time.sleep(1.0)
        assert server._child is None  # one process draws for all servers
        other_server.kill()  # it can say nothing to the process that draws
    until(lambda: not _is_alive(first), "no orphan is left", 60)
    cells = stamps(drawing)
    assert len(cells) < 9

    until(lambda: queue.drawing(drawing.id).drawn > len(cells), "the other server's process goes on")
    second = server._child
    assert second is not None
    os.kill(second.pid, signal.SIGKILL)
    killed = queue.drawing(drawing.id)
    assert killed.state == "drawing"
    assert cells.items() <= stamps(killed).items()
    cells = stamps(killed)
    assert len(cells) < 9

    until(lambda: queue.drawing(drawing.id).drawn > len(cells), "the next process goes on")
    third = server._child
    assert third is not None
    queue.stop(drawing.id)
    assert queue.drawing(drawing.id).state == "stopped"
    until(lambda: third.poll() is not None, "the process ends")
    stopped = queue.drawing(drawing.id)
    assert (stopped.state, server.trouble) == ("stopped", None)
    assert cells.items() <= stamps(stopped).items()
    assert not list(stopped.folder.rglob(f"*{TEMPORARY}"))
    assert len(list((stopped.folder / "strip-cells").iterdir())) == stopped.drawn < 9
    server.close()

    cells = stamps(stopped)
    queue.again(drawing.id)
    (done,) = drawn(queue, drawing)
    assert (done.state, done.drawn) == ("done", 9)
    assert cells.items() <= stamps(done).items()


def test_an_interrupted_drawing_waits_with_the_cells_that_it_has(
    queue: DrawingQueue, demo_networks: list[NamedNetwork]
) -> None:
    drawing = queue.add(demo_networks[:1], LONG)
    with once(lambda: drawing.drawn >= 1, _thread.interrupt_main), pytest.raises(KeyboardInterrupt):
        drawn(queue)
    waiting = queue.drawing(drawing.id)
    assert (waiting.state, waiting.progress.starts, waiting.progress.prompt) == ("waiting", 0, "a red circle")
    assert 1 <= waiting.drawn < 9
    assert not list(waiting.folder.rglob(f"*{TEMPORARY}"))


def _is_alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_the_last_strip_is_the_latest_also_where_the_clock_was_set_back(
    queue: DrawingQueue, demo_networks: list[NamedNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns()
    with monkeypatch.context() as patched:
        patched.setattr("time.time_ns", lambda: now + 86_400 * 10**9)
        first = queue.add(demo_networks[:1], QUICK)
    last = queue.add(demo_networks[:1], replace(QUICK, seed=7))
    assert [one.id for one in queue.drawings()] == [first.id, last.id]
    assert queue.drawings_of([demo_networks[0].content_hash])[0].id == last.id


def test_a_damaged_record_is_said_and_ends_no_other(queue: DrawingQueue, demo_networks: list[NamedNetwork]) -> None:
    torn, foreign, state, sound = (queue.add(demo_networks[:1], QUICK) for _ in range(4))
    (torn.folder / "drawing.json").write_bytes(b'{"format": "hnetkit.drawing/1", "netw')
    record = json.loads((foreign.folder / "drawing.json").read_text())
    record["networks"][0]["content_hash"] = "../../etc/passwd"
    (foreign.folder / "drawing.json").write_text(json.dumps(record))
    (state.folder / "state.json").write_bytes(b"\xff\x00")
    (queue.folder / "notes.txt").write_text("mine")
    drawn(queue)
    torn, foreign, state, sound = (queue.drawing(one.id) for one in (torn, foreign, state, sound))
    assert [one.state for one in (torn, foreign, state, sound)] == ["failed", "failed", "failed", "done"]
    assert "drawing.json: unreadable" in torn.progress.message
    assert "not the record" in foreign.progress.message
    with pytest.raises(UsageError, match="unreadable"):
        queue.again(torn.id)
    assert queue.again(state.id).state == "waiting"
    for one in (torn, foreign):
        queue.remove(one.id)
    assert [one.id for one in queue.drawings()] == [state.id, sound.id]
    assert (queue.folder / "notes.txt").read_text() == "mine"


def test_what_is_not_in_its_state_is_refused(queue: DrawingQueue, demo_networks: list[NamedNetwork]) -> None:
    waiting = queue.add(demo_networks[:1], QUICK)
    with pytest.raises(UsageError, match="is waiting"):
        queue.again(waiting.id)
    assert queue.stop(waiting.id).state == "stopped"
    assert queue.next() is None
    with pytest.raises(UsageError, match="nothing to stop"):
        queue.stop(waiting.id)
    begun = queue.write(queue.again(waiting.id), waiting.progress)
    (begun.folder / "state.json").write_text(
        (begun.folder / "state.json").read_text().replace('"waiting"', '"drawing"')
    )
    with pytest.raises(UsageError, match="being drawn"):
        queue.remove(waiting.id)
    queue.stop(waiting.id)
    queue.remove(waiting.id)
    assert list(queue.folder.iterdir()) == []
    for id in (waiting.id, "..", "../drawings", "", f"{waiting.id}/../x"):
        with pytest.raises(NotFound):
            queue.drawing(id)


def test_a_process_that_dies_again_and_again_is_not_started_for_ever(
    queue: DrawingQueue, demo_networks: list[NamedNetwork]
) -> None:
    drawing = queue.add(demo_networks[:1], QUICK)
    state = {
        "state": "drawing",
        "prompt": "",
        "model": "",
        "message": "",
        "next_step": "",
        "notes": [],
        "starts": 3,
        "cells": 0,
    }
    (drawing.folder / "state.json").write_text(json.dumps(state))
    (failed,) = drawn(queue, drawing)
    assert failed.state == "failed"
    assert "ended 3 times" in failed.progress.message
    assert "worker.log" in failed.progress.next_step
    queue.again(drawing.id)
    assert drawn(queue, drawing)[0].state == "done"


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        ("a  black\nstar", "a black star"),
        ("lines <hypernet:dots:9>, <lora:x:1>", "lines"),
        ("<hypernet:dots:9>", ""),
        ("lines, <hyper<hypernet:dots:9>net:other:1><lo<lora:x:1>ra:y:1>", "lines, <hyper net:other:1><lo ra:y:1>"),
        ("a\nSteps: 20, Sampler: Euler, CFG scale: 7", ""),
        (", ".join(["long"] * 300), ", ".join(["long"] * 50)),
        (", ".join(["x" * 300, "y"]), "x" * 300),
        ("x" * 301 + ", y", "x" * 300),
        ("", ""),
    ],
)
def test_the_prompt_is_the_trigger_words_without_tags_of_strangers(
    demo_networks: list[NamedNetwork], tmp_path: Path, words: str, prompt: str
) -> None:
    (tmp_path / "networks" / "dots.json").write_text(json.dumps({"activation text": words}))
    with Library() as library:
        library.scan()
        assert suggested_prompt(library, demo_networks) == prompt


def test_without_a_prompt_trigger_words_are_drawn(
    queue: DrawingQueue, demo_networks: list[NamedNetwork], tmp_path: Path
) -> None:
    (tmp_path / "networks" / "outline.json").write_text(json.dumps({"activation text": "a black star"}))
    with Library() as library:
        library.scan()
    own, given = queue.add(demo_networks[:1], QUICK), queue.add(demo_networks[:1], replace(QUICK, prompt="a circle"))
    assert [one.progress.prompt for one in drawn(queue, own, given)] == ["a black star", "a circle"]


@pytest.mark.parametrize(
    "given",
    [
        [],
        {"colour": 1},
        {"prompt": 5},
        {"prompt": "x" * 5000},
        {"prompt": "a star\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": True},
        {"strengths": []},
        {"strengths": "1"},
        {"strengths": [float("nan")]},
        {"strengths": [1] * 10},
        {"steps": 0},
        {"sampler": "no such"},
        {"sampler": 5},
        {"width": 64},
        {"width": 63, "height": 64},
    ],
)
def test_settings_out_of_their_range_are_refused_with_what_may_be_given(given: Any) -> None:
    with pytest.raises(UsageError) as refused:
        DrawingSettings.of(given)
    assert refused.value.command_hint
    assert "--" not in f"{refused.value} {refused.value.command_hint}"


def test_up_to_six_networks_are_drawn_together_each_once(
    queue: DrawingQueue, demo_networks: list[NamedNetwork]
) -> None:
    for chosen in ([], demo_networks[:1] * 2, [NamedNetwork(f"h1:{number:064}", "x") for number in range(7)]):
        with pytest.raises(UsageError, match="networks to draw"):
            queue.add(chosen, QUICK)
    with Library() as library, pytest.raises(NotFound):
        networks_of(library, [f"h1:{7:064}"])


def test_a_command_is_quoted_and_names_a_network_by_its_content_where_its_name_means_something_else() -> None:
    content = f"h1:{'ab' * 32}"
    assert NamedNetwork(content, "ink").mention == "ink@ababababab"
    for name in ("", "-ink", "a:0.5", "a/b"):
        assert NamedNetwork(content, name).mention == content
