"""A disk that fills up inside a write, or a process that dies there: at every place that writes a file.

Then one line says it, with the exit code of a full disk; every file is whole, as it was before or as it is to be; and
the next run completes the work.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from PIL import Image
from support import networks
from support.fake_sites import Sites, World
from support.filling_disk import KILLED, End, FillingDisk, pages_left, small_disk
from support.odd_answers import network_bytes, zipped
from support.places import places
from support.training import make_pictures

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import DiskFull, failure_of
from hnetkit.files import TEMPORARY
from hnetkit.gallery.drawing import DrawingSettings, NamedNetwork, Progress
from hnetkit.gallery.drawing_queue import DrawingQueue
from hnetkit.generate.grids.files import FORMAT, GridFiles
from hnetkit.image_text import write_image
from hnetkit.images import open_image
from hnetkit.library import known_hashes, sidecar_writing
from hnetkit.registry import Registry
from hnetkit.train.checkpoints import Checkpoints, TrainingState
from hnetkit.train.logs import Log, LogRow, read_log
from hnetkit.train.plot import write_plot

WRITES = {"new_file", "write_text", "write_bytes", "copyfileobj", "copyfile", "copy2", "truncate"}

ELSEWHERE = {
    "hnetkit/gallery/actions.py Actions._preview": "a temporary file, of which a preview is made",
    "hnetkit/cli/__init__.py run": "to nowhere",
    "hnetkit/gallery/worker.py DrawingProcess._fail": "what the process that draws says, for a person to read",
    "hnetkit/gallery/worker.py DrawingProcess._spawn": "what the process that draws says, for a person to read",
    "hnetkit/images.py _silent": "to nowhere",
    "hnetkit/files.py new_file": "every case that writes a file",
    "hnetkit/files.py _private": "opens what `new_file` writes",
    "hnetkit/formats/writing.py _add": "a member of the zip that `save` writes",
    "hnetkit/files.py _remove_stale": "opens to lock, and writes nothing",
    "hnetkit/baking/api.py Baked.save": "fitted to a model; `new_file`",
    "hnetkit/baking/checkpoint.py write_checkpoint": "takes a whole model; `new_file`",
    "hnetkit/sources/download.py lock_download": "a lock, which holds no bytes",
    "hnetkit/sources/download.py PartialFile.restart": "makes a part shorter, which takes no room",
    "hnetkit/sources/download.py PartialFile.flush": "opens to flush, and writes nothing",
    "hnetkit/sharing/folder.py Upload._name_repository": "the card, before an upload; `new_file`",
    "hnetkit/gallery/thumbnails.py Thumbnails._keep": "what is not kept is made again; tests/gallery tries it",
    "hnetkit/generate/loading/tokenizer.py read_tokenizer": "the system's folder for temporary files",
    "hnetkit/train/preparing/captioning_models.py blip_model": "the system's folder for temporary files",
    "hnetkit/train/previews.py Previews.draw": "drawn by a model; `new_file`, as every picture",
    "hnetkit/train/run_folder.py RunFolder.begin": "a run's record; `new_file`, before anything is trained",
    "hnetkit/train/sweeps.py Sweep.write": "drawn by a model; `new_file`, as every picture",
    "hnetkit/train/sweeps.py _write": "the table and the record of a sweep; `new_file`",
}


def write(node: ast.AST) -> str | None:
    """Returns the text of a call that writes a file."""
    if not isinstance(node, ast.Call):
        return None
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    is_written = any(re.fullmatch(r"[rwxab+t]{1,3}", text) and set(text) & set("wxa+") for text in texts)
    of_the_system = name == "open" and re.search(r"O_WRONLY|O_RDWR|O_CREAT|, flags", ast.unparse(node))
    return ast.unparse(node) if name in WRITES or (name == "open" and (is_written or of_the_system)) else None


# --- what is tried: a folder as it is before, and work that writes into it


@dataclass(frozen=True)
class Case:
    """Work on a disk.

    Attributes:
        sites: the functions that write, which it reaches.
        before: makes what is on the disk.
        work: ends with an exit code; gets the disk and the address of a site.
        is_told: whether it is an error if it cannot write; else what is missing is made another time.
        has_points: whether Python writes, and not SQLite alone.
    """

    sites: tuple[str, ...]
    before: Callable[[Path], object]
    work: Callable[[Path, str], int]
    is_told: bool = True
    has_points: bool = True


def command(*words: str) -> Callable[[Path, str], int]:
    def work(disk: Path, site: str) -> int:
        return run([word.format(disk=disk, site=site, **HASHES) for word in words])

    return work


def call(function: Callable[[Path], object]) -> Callable[[Path, str], int]:
    """Work that Python calls; its failure is said as the command line says it."""

    def work(disk: Path, site: str) -> int:
        try:
            function(disk)
        except Exception as error:
            failure = failure_of(error, "the work")
            print(f"Error: {failure}", file=sys.stderr)
            return failure.exit_code
        return 0

    return work


def library(disk: Path) -> Path:
    """A scanned library of two networks, one with a sidecar."""
    folder = disk / "library"
    folder.mkdir()
    for number in range(2):
        networks.network_file(folder, f"ink{number}.pt", seed=number)
    (folder / "ink0.json").write_text('{"notes": "mine"}\n')
    assert run(["scan", str(folder)]) == 0
    return folder


def with_outputs(*names: str) -> Callable[[Path], None]:
    """The library, and files of an earlier run that are replaced."""

    def before(disk: Path) -> None:
        folder = library(disk)
        for name in names:
            path = disk / name
            path.parent.mkdir(exist_ok=True)
            if path.suffix == ".jsonl":
                run(["export", str(path)])
            else:
                hnetkit.save(hnetkit.load(folder / "ink0.pt"), path)

    return before


def pictures(disk: Path) -> None:
    make_pictures(disk / "pictures", 2, [(64, 64)])
    assert run(["train", "prepare", str(disk / "pictures"), "--out", str(disk / "made"), "--size", "64", "-q"]) == 0
    assert run(["train", "review", str(disk / "pictures"), "--html", str(disk / "page.html"), "-q"]) == 0
    for number in range(2):
        (disk / "pictures" / f"{number:02}.txt").write_text("another caption\n")
    (disk / "captions.csv").write_text("file,caption\n00.png,an edited caption\n01.png,an edited caption\n")


def row_of(number: int) -> dict[str, Any]:
    return {
        **{"format": FORMAT, "key": f"k{number}", "picture": "grid-cells/0000-a.png", "prompt": "a cat"},
        **{"negative_prompt": "", "seed": 1, "random_seeds": [1], "sampler": "Euler", "steps": 5, "cfg_scale": 7.0},
        **{"model": "m", "infotext": "i" * 20_000},
    }


def grid(disk: Path) -> None:
    GridFiles(disk / "grid.png").append([row_of(0)])
    GridFiles(disk / "grid.png", 1).append([row_of(1), row_of(2)])


def gather(disk: Path) -> None:
    files = GridFiles(disk / "grid.png")
    if not (disk / "other.jsonl").exists():
        os.link(disk / "grid.jsonl", disk / "other.jsonl")  # so that the record is copied first
    files.merge_records()
    assert {row["key"] for row in files.rows()} >= {"k0", "k1", "k2"}
    files.finish([row_of(number) for number in range(3)])


def log_rows(disk: Path) -> None:
    log = Log(disk)
    log.truncate_after(2)
    for step in range(3, 6):
        log.step(log_row(step))
    log.close()


def log_row(step: int) -> LogRow:
    return LogRow(step, 0, step, 0.5, 0.1, 0.5, 1.0, 1.0, 0)


def logged(disk: Path) -> None:
    log = Log(disk)
    for step in range(1, 4):
        log.step(log_row(step))
    log.close()


def checkpointed(disk: Path) -> None:
    checkpoints = Checkpoints(disk / "state", keep=1)
    made = checkpoints.read()
    if made is None or made.step < 2:  # it may have been complete when the disk was full
        checkpoints.write(TrainingState(1 if made is None else 2, {"weights": torch.ones(500)}))


def queued(disk: Path) -> None:
    DrawingQueue(disk).add([NamedNetwork(f"h1:{1:064}", "ink")], DrawingSettings())


def drawn_and_stopped(disk: Path) -> None:
    queue = DrawingQueue(disk)
    (drawing,) = queue.drawings()
    if drawing.state == "stopped":
        drawing = queue.again(drawing.id)
    queue.write(drawing, Progress("drawing", message="n" * 30_000))
    assert queue.stop(drawing.id).state == "stopped"


def pictured(disk: Path) -> None:
    Image.new("RGB", (64, 64)).save(disk / "a.png")


def sidecars_of(disk: Path) -> None:
    ink = disk / "library" / "ink0.pt"
    sidecar_writing.write_info(ink, {"id": 1, "modelId": 2, "description": "x" * 9000}, replace=True)
    sidecar_writing.write_preview(ink, b"\x89PNG\r\n\x1a\n" + bytes(9000), replace=True)
    sidecar_writing.merge_a1111(ink, {"description": "y" * 9000})
    if not (disk / "library" / "ink0.txt").exists():
        sidecar_writing.write_as_packed(ink, ".txt", b"z" * 9000)


def suggested(disk: Path) -> None:
    library(disk)
    write_image(disk / "a.png", Image.effect_noise((64, 64), 9), "a cat")


def remember(disk: Path) -> None:
    known_hashes._remember(str(disk / "model"), [1, 2], "0" * 64)


CONTENTS = {
    "ink.pt": network_bytes(1),
    "nets.zip": zipped({"a.pt": network_bytes(2), "a.txt": b"notes\n", "b.pt": network_bytes(3), "more.txt": b"m\n"}),
    "page.pt": b"<!DOCTYPE html><html>no</html>" * 300,
}
HASHES = {f"sha_{Path(name).stem}": hashlib.sha256(data).hexdigest() for name, data in CONTENTS.items()}


def pull(name: str) -> Callable[[Path, str], int]:
    return command("pull", f"{{site}}/a/b/resolve/main/{name}", "--sha256", f"{{sha_{Path(name).stem}}}")


def refused(disk: Path, site: str) -> int:
    code = pull("page.pt")(disk, site)
    return 0 if code == 7 else code


def removed(disk: Path, site: str) -> int:
    code = run(["remove", "ink0", "-y"])
    return 0 if code == 4 else code  # it was over when the disk was full


def shared(disk: Path) -> None:
    folder = library(disk)
    write_image(folder / "ink1.png", Image.effect_noise((64, 64), 9), "a cat")
    hnetkit.save(hnetkit.load(networks.network_file(disk, "raw.pt", seed=9)), folder / "ink2.pt")  # as A1111 loads it
    assert run(["scan", str(folder)]) == 0
    assert run(["share", "ink1", "--out", str(disk / "shared"), "--license", "mit"]) == 0


DOWNLOADS = tuple(f"hnetkit/sources/download.py PartialFile.{name}" for name in ("begin", "open"))
SAVE, COPY = "hnetkit/formats/writing.py save", "hnetkit/library/placing.py Placing.copy"
CASES: dict[str, Case] = {
    "convert": Case(
        (SAVE,),
        with_outputs("ink.safetensors"),
        command("convert", "{disk}/library/ink0.pt", "{disk}/ink.safetensors", "--overwrite"),
    ),
    "convert to pt": Case(
        (SAVE,),
        with_outputs("out/ink.pt"),
        command("convert", "{disk}/library/ink0.pt", "{disk}/out/ink.pt", "--overwrite"),
    ),
    "export": Case(
        ("hnetkit/sources/export.py export_library",),
        with_outputs("library.jsonl"),
        command("export", "{disk}/library.jsonl", "--overwrite"),
    ),
    "share": Case(
        tuple(f"hnetkit/sharing/{name}" for name in ("api.py Share.write", "api.py _copy", "folder.py _write_record")),
        shared,
        command("share", "ink2", "ink1", "--out", "{disk}/shared", "--license", "mit", "--overwrite"),
    ),
    "config": Case(
        ("hnetkit/settings.py put",), lambda disk: run(["config", "dtype", "fp32"]), command("config", "dtype", "fp16")
    ),
    "remove": Case(("hnetkit/library/trash.py write",), library, removed),
    "link": Case(
        (COPY,),
        lambda disk: (library(disk), (disk / "webui" / "models" / "hypernetworks").mkdir(parents=True)),
        command("link", "{disk}/webui", "--layout", "a1111", "--copy"),
    ),
    "pull": Case(DOWNLOADS, lambda disk: None, pull("ink.pt")),
    "pull a zip": Case(
        (
            *DOWNLOADS,
            "hnetkit/sources/archives.py _extract",
            "hnetkit/library/sidecar_writing.py write_as_packed",
            "hnetkit/sources/install.py quarantine",
        ),
        library,
        pull("nets.zip"),
    ),
    "pull what is no network": Case((*DOWNLOADS, "hnetkit/sources/install.py quarantine"), lambda disk: None, refused),
    "prepare": Case(
        ("hnetkit/train/preparing/folder.py TrainingFolder._write", "hnetkit/train/captions.py write_caption"),
        pictures,
        command("train", "prepare", "{disk}/pictures", "--out", "{disk}/made", "--size", "64", "--overwrite"),
    ),
    "review": Case(
        ("hnetkit/train/preparing/review.py write_page",),
        pictures,
        command("train", "review", "{disk}/pictures", "--html", "{disk}/page.html", "--overwrite"),
    ),
    "captions": Case(
        ("hnetkit/train/captions.py write_caption",),
        pictures,
        command("train", "review", "{disk}/pictures", "--apply", "{disk}/captions.csv"),
    ),
    "grid": Case(
        tuple(f"hnetkit/generate/grids/files.py GridFiles.{name}" for name in ("merge_records", "finish", "_append")),
        grid,
        call(gather),
    ),
    "picture": Case(
        ("hnetkit/image_text.py write_image",),
        pictured,
        call(lambda disk: write_image(disk / "a.png", Image.effect_noise((64, 64), 9), "a cat", overwrite=True)),
    ),
    "queue": Case(
        ("hnetkit/gallery/drawing.py write_json", "hnetkit/gallery/drawing_queue.py DrawingQueue.stop"),
        queued,
        call(drawn_and_stopped),
    ),
    "log": Case(
        tuple(f"hnetkit/train/logs.py Log.{n}" for n in ("_rewrite", "_open_for_appending")), logged, call(log_rows)
    ),
    "plot": Case(("hnetkit/train/plot.py write_plot",), logged, call(lambda disk: write_plot(disk, "ink"))),
    "checkpoint": Case(("hnetkit/train/checkpoints.py _write_file",), checkpointed, call(checkpointed)),
    "sidecars": Case(
        tuple(
            f"hnetkit/library/sidecar_writing.py {n}"
            for n in ("write_info", "write_preview", "replace", "write_as_packed")
        ),
        library,
        call(sidecars_of),
    ),
    "hashes": Case(("hnetkit/library/known_hashes.py _remember",), remember, call(remember), is_told=False),
    "scan": Case((), lambda disk: networks.network_file(disk, "ink.pt"), command("scan", "{disk}"), has_points=False),
    "suggest": Case(
        ("hnetkit/library/sidecar_writing.py replace",),
        suggested,
        command("tag", "ink0", "--strength", "0.8", "--trigger-words", "w" * 9000, "--preview", "{disk}/a.png"),
    ),
    "tag": Case((), library, command("tag", "ink0", "lines", "--note", "n" * 30_000), has_points=False),
}


def test_every_place_that_writes_a_file_is_tried_on_a_disk_that_fills_up() -> None:
    found = places(write).keys()
    tried = {site for case in CASES.values() for site in case.sites}
    assert found - tried - ELSEWHERE.keys() == set(), "say in CASES what writes there"
    assert (tried | ELSEWHERE.keys()) - found == set(), "nothing is written there any more"


# --- the disk


@pytest.fixture(scope="module")
def site() -> Iterator[Sites]:
    with Sites(World.make(1), repos={"a/b": CONTENTS}) as sites:
        yield sites


@pytest.fixture
def disk(tmp_path: Path, site: Sites, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setenv("HNETKIT_HOME", str(folder / "home"))
    monkeypatch.setenv("HNETKIT_LIBRARY", str(folder / "library"))
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    return folder


class Trial:
    """A case on a disk, which is put back to what it was before each try."""

    def __init__(self, name: str, disk: Path, site: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
        self.case, self.disk, self.site, self.monkeypatch = CASES[name], disk, site.hub_url, monkeypatch
        self.kept = disk.with_name("kept")
        self.case.before(disk)
        shutil.copytree(disk, self.kept, symlinks=True)
        self.was = names(disk)
        with FillingDisk(disk).mounted(monkeypatch) as whole:
            assert self.work() == 0
        self.points, self.done = whole.points, names(disk)
        assert not self.case.has_points or self.points

    def work(self) -> int:
        return self.case.work(self.disk, self.site)

    def reset(self) -> None:
        for path in self.disk.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.kept, self.disk, symlinks=True, dirs_exist_ok=True)

    def require_told(self, code: int, out: str, err: str) -> None:
        assert code in (0, DiskFull.exit_code), err
        assert "Traceback" not in err
        assert "defect" not in err
        if code:
            assert len(re.findall("^Error: ", err, re.MULTILINE)) == 1, err
            assert re.search("no room|disk is full|No space left", out + err), out + err
        elif self.case.is_told:
            assert names(self.disk) == self.done

    def require_whole(self) -> None:
        now = names(self.disk)
        for name in now:
            require_whole(self.disk / name)
        assert not (self.disk / "state").is_dir() or Checkpoints(self.disk / "state").read() is not None
        assert self.was & self.done <= now
        assert now <= self.was | self.done

    def require_next(self, err: Callable[[], str]) -> None:
        assert self.work() == 0, err()
        self.require_whole()
        assert names(self.disk) == self.done


def names(disk: Path) -> set[str]:
    """The files of a disk, without those that are still being written, locks, and what SQLite keeps beside its own."""
    files = (path.relative_to(disk).as_posix() for path in disk.rglob("*") if path.is_file())
    unfinished = rf"{re.escape(TEMPORARY)}(/|$)|\.part(\.json)?$|\.lock$|\.unexamined$|-(wal|shm)$|unfinished|^ballast$"
    hidden = (re.sub(r"\d{8}T\d+\.\d+-[0-9a-f]+-[0-9a-f]+|(?<=state/)\d{8}", "ANY", name) for name in files)
    return {name for name in hidden if not re.search(unfinished, name)}


def require_whole(path: Path) -> None:
    """Fails if a file was cut off, by what its suffix promises."""
    if "ANY" in str(path):  # a removal's journal; a checkpoint
        return
    if path.suffix in (".pt", ".safetensors") and not re.search("page|optimizer|state", str(path)):
        network = hnetkit.load(path)
        assert all(tensor.torch() is not None for tensor in tensors_of(network))
    elif path.suffix == ".db":
        with Registry(path) as registry:
            registry.check()
    elif path.suffix in (".json", ".info"):
        json.loads(path.read_bytes())
    elif path.suffix == ".jsonl":
        assert all(json.loads(line) for line in path.read_bytes().split(b"\n")[:-1])
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>")
    elif path.suffix == ".csv" and path.name != "captions.csv":
        list(read_log(path))
    elif path.suffix == ".png" and "preview" not in path.name:
        open_image(path)
    elif path.suffix == ".txt":
        assert path.read_bytes()[-1:] in (b"\n", b"z")


def tensors_of(network: Any) -> Iterator[Any]:
    for pair in network.mlps.values():
        for mlp in pair:
            for stage in mlp.stages:
                yield stage.weight


@pytest.fixture
def trial(disk: Path, site: Sites, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Trial]:
    return partial(Trial, disk=disk, site=site, monkeypatch=monkeypatch)


WRITING = [name for name, case in CASES.items() if case.has_points]


@pytest.mark.parametrize("name", WRITING)
def test_each_case_reaches_the_places_that_it_is_for(
    name: str, disk: Path, site: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, reached = CASES[name], set[tuple[str, str]]()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            reached.add((frame.f_code.co_filename, frame.f_code.co_name))

    case.before(disk)
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        assert case.work(disk, site.hub_url) == 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    for place in case.sites:
        file, function = place.split(" ")
        assert any(
            path.endswith(file.removeprefix("hnetkit/")) and name == function.split(".")[-1] for path, name in reached
        )


def tried(trial: Trial, number: int, end: End, capfd: pytest.CaptureFixture[str]) -> None:
    """Tries one point of a case: the disk is full there, or the process ends."""
    trial.reset()
    capfd.readouterr()
    filling = FillingDisk(trial.disk, number, end)
    if end == "full":
        with filling.mounted(trial.monkeypatch):
            code = trial.work()
        trial.require_told(code, *capfd.readouterr())
    else:
        child = os.fork()
        if child == 0:
            try:
                with filling.mounted(trial.monkeypatch):
                    trial.work()
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # a download may come, and be written, in one piece fewer than when the points were counted
        assert code == KILLED or (code == 0 and number == len(trial.points))
    trial.require_whole()
    trial.require_next(lambda: capfd.readouterr().err)


ENDS = ["full", pytest.param("killed", marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"))]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", WRITING)
def test_inside_a_write_of_each_kind(
    name: str, end: End, trial: Callable[[str], Trial], capfd: pytest.CaptureFixture[str]
) -> None:
    """Of all points, the last write: most is there by then."""
    tries = trial(name)
    last = max(number for number, kind in enumerate(tries.points, 1) if kind == "write")
    tried(tries, last, end, capfd)


@pytest.mark.long
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", WRITING)
def test_at_every_write_flush_and_close(
    name: str, end: End, trial: Callable[[str], Trial], capfd: pytest.CaptureFixture[str]
) -> None:
    tries = trial(name)
    for number in range(1, len(tries.points) + 1):
        tried(tries, number, end, capfd)


# --- SQLite's own writes: a disk that is really small, of which few pages are left


@pytest.fixture
def small(disk: Path) -> Iterator[Path]:
    with small_disk(disk, "16m"):
        yield disk


def tried_with(trial: Trial, pages: int, capfd: pytest.CaptureFixture[str]) -> int:
    """Tries a case on a disk of which so many pages are left; returns its exit code."""
    trial.reset()
    capfd.readouterr()
    with pages_left(trial.disk, pages):
        code = trial.work()
        trial.require_told(code, *capfd.readouterr())
    trial.require_whole()
    trial.require_next(lambda: capfd.readouterr().err)
    return code


@pytest.mark.parametrize("pages", [0, 6, 40])
@pytest.mark.parametrize("name", ["scan", "tag", "remove", "pull"])
def test_where_few_pages_of_a_disk_are_left(
    name: str, pages: int, small: Path, trial: Callable[[str], Trial], capfd: pytest.CaptureFixture[str]
) -> None:
    code = tried_with(trial(name), pages, capfd)
    assert code or pages


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_with_any_number_of_pages_left(
    name: str, small: Path, trial: Callable[[str], Trial], capfd: pytest.CaptureFixture[str]
) -> None:
    tries, pages, in_a_row = trial(name), 0, 0
    while in_a_row < 3:
        in_a_row = in_a_row + 1 if tried_with(tries, pages, capfd) == 0 else 0
        pages += 1
    assert pages > 3 or not tries.case.is_told
