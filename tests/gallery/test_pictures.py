"""Looking back: which pictures of a person's folders were drawn with which networks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support import networks
from support.failing_disk import fail_at
from support.hostile_images import BAGGAGE, BOMBS, mutants, png_chunk

import hnetkit
from hnetkit import demo, settings
from hnetkit.errors import HnetkitError, NotFound
from hnetkit.gallery import pictures
from hnetkit.gallery.pictures import LookedUp, PictureFolders
from hnetkit.image_text import write_image
from hnetkit.library.library import Library
from hnetkit.prompts import infotext

IMAGE = Image.new("RGB", (8, 8), "red")
SETTINGS = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7, "Seed": 42, "Size": "512x512", "Model": "anything"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks."""
    folder = tmp_path_factory.mktemp("networks")
    for seed, name in enumerate(("ink", "wash"), start=1):
        networks.network_file(folder, f"{name}.pt", seed=seed)
    return folder


@pytest.fixture
def library(files: Path, tmp_path: Path) -> Iterator[Library]:
    """A library with ``ink`` and ``wash``."""
    shutil.copytree(files, tmp_path / "library")
    with Library() as library:
        library.scan(tmp_path / "library")
        yield library


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def picture(
    path: Path, prompt: str = "a cat", *, age: int = 0, hashes: dict[str, str] | None = None, **more: Any
) -> Path:
    """Writes a picture, which is `age` seconds older than those of age 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    given = SETTINGS | {key.replace("_", " "): value for key, value in more.items()}
    write_image(path, IMAGE, infotext.write(prompt, "blurry", given, hashes), overwrite=True)
    os.utime(path, (1_700_000_000 - age,) * 2)
    return path


def content(library: Library, name: str) -> str:
    return str(library.record(name)["content_hash"])


def digits(path: Path, name: str) -> str:
    return hashlib.sha256((path.parent / "library" / name).read_bytes()).hexdigest()[:10]


def looked(folder: Path, library: Library) -> PictureFolders:
    found = PictureFolders([folder], library)
    found.look()
    return found


def names(found: PictureFolders, **chosen: Any) -> list[str]:
    return [one.picture.name for one in found.page(**chosen).pictures]


def only(found: PictureFolders) -> LookedUp:
    (one,) = found.page().pictures
    return one


# --- which networks a picture was drawn with


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_a_hash_tells_the_network_whatever_the_picture_calls_it(library: Library, folder: Path, suffix: str) -> None:
    known = digits(folder, "ink.pt")
    picture(folder / f"a{suffix}", "a cat <hypernet:old:0.5>", hashes={"hypernet:old": known})
    ((used, meaning),) = only(found := looked(folder, library)).networks
    assert (used.name, used.strength, used.hash, used.in_second_pass) == ("old", 0.5, known, False)
    assert (meaning.how, meaning.content_hash, meaning.called) == ("hash", content(library, "ink"), "ink")
    assert meaning.said == f"old [{known}] is ink in the library"
    assert found.counts() == {content(library, "ink"): 1}


def test_a_name_without_a_hash_is_looked_up_and_that_is_said(library: Library, folder: Path) -> None:
    picture(folder / "a.png", "a cat <hypernet:ink:0.5>")
    picture(folder / "b.png", "a cat <hypernet:ink:1>", age=1, hashes={"hypernet:ink": "0123456789"})
    alone, other = (one.networks[0][1] for one in looked(folder, library).page().pictures)
    assert (alone.how, alone.content_hash) == ("name", content(library, "ink"))
    assert alone.said == "found by its name alone"
    assert other.how == "name"
    assert other.said == "found by its name alone; ink: the library's has another hash than 0123456789"


def test_a_network_that_is_not_here_comes_with_the_command_that_gets_it(library: Library, folder: Path) -> None:
    picture(folder / "a.png", "<hypernet:far:1><hypernet:near by:1>", hashes={"hypernet:far": "0123456789"})
    (_, far), (_, near) = only(looked(folder, library)).networks
    assert (far.how, far.content_hash, far.command) == ("unknown", None, "hnetkit pull 0123456789")
    assert (near.said, near.command) == ("not in the library", "hnetkit browse 'near by'")


def test_a_name_of_two_networks_is_neither_and_both_are_told(library: Library, folder: Path) -> None:
    networks.network_file(folder.parent / "library", "ink.safetensors", seed=9)
    library.scan()
    picture(folder / "a.png", "<hypernet:ink:1>")
    ((_, meaning),) = only(looked(folder, library)).networks
    assert (meaning.how, meaning.content_hash) == ("several", None)
    assert meaning.said == "ink means several networks"
    assert meaning.command is not None
    assert meaning.command.count("ink@") == 2


def test_a_network_gets_another_name_and_its_pictures_stay_with_it(library: Library, folder: Path) -> None:
    picture(folder / "a.png", "<hypernet:ink:1>", hashes={"hypernet:ink": digits(folder, "ink.pt")})
    picture(folder / "b.png", "<hypernet:lines:1>", age=1)
    found, ink = looked(folder, library), content(library, "ink")
    assert names(found, network=ink) == ["a.png"]
    (folder.parent / "library" / "ink.pt").rename(folder.parent / "library" / "sepia.pt")
    with Library() as another:
        another.scan()
    assert names(found, network=ink) == ["a.png"]
    assert found.page().pictures[0].networks[0][1].called == "sepia"
    with Library() as another:
        another.tag("sepia", alias="lines")
    assert names(found, network=ink) == ["a.png", "b.png"]


def test_a_network_in_no_file_is_still_known(library: Library, folder: Path) -> None:
    picture(folder / "a.png", "<hypernet:ink:1>", hashes={"hypernet:ink": digits(folder, "ink.pt")})
    found, ink = looked(folder, library), content(library, "ink")
    (folder.parent / "library" / "ink.pt").unlink()
    library.scan()
    assert names(found, network=ink) == ["a.png"]


def test_the_demo_models_networks_are_known_where_it_is_the_model(library: Library, folder: Path) -> None:
    picture(folder / "a.png", "<hypernet:dots:1>")
    found = looked(folder, library)
    settings.put("model", None)
    bundled = demo.networks()["dots"]
    ((_, meaning),) = only(found).networks
    assert (meaning.how, meaning.called, meaning.content_hash) == ("name", "dots", None)
    assert "comes with the demo model" in str(meaning.said)
    shutil.copy(bundled, folder.parent / "library")
    library.scan()
    ((_, meaning),) = only(found).networks
    assert meaning.content_hash == hnetkit.load(bundled).content_hash
    (folder / "other.ckpt").touch()
    settings.put("model", str(folder / "other.ckpt"))
    ((_, meaning),) = only(found).networks
    assert "demo" not in str(meaning.said)


def test_both_passes_count(library: Library, folder: Path) -> None:
    picture(folder / "a.png", "a cat <hypernet:ink:0.5>", Hires_prompt="a cat <hypernet:wash:0.7>")
    found = looked(folder, library)
    assert [(used.name, used.in_second_pass) for used, _ in only(found).networks] == [("ink", False), ("wash", True)]
    assert names(found, network=content(library, "wash")) == ["a.png"]


def comfyui(path: Path) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.ckpt"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog"}},
        "4": {
            "class_type": "HypernetworkLoader",
            "inputs": {"hypernetwork_name": "ink.pt", "strength": 0.3, "model": ["1", 0]},
        },
        "3": {
            "class_type": "KSampler",
            "inputs": {"seed": 4, "steps": 9, "positive": ["2", 0], "model": ["4", 0]},
        },
    }
    about = PngInfo()
    about.add_text("prompt", json.dumps(graph))
    IMAGE.save(path, pnginfo=about)


def text_beside(path: Path) -> None:
    IMAGE.save(path)
    path.with_suffix(".txt").write_text(infotext.write("a dog <hypernet:ink:0.3>", "", SETTINGS | {"Seed": 4}))


WRITERS: dict[str, Callable[[Path], object]] = {
    "A1111 of 2022": lambda path: picture(path, "a dog", Hypernet="ink", Hypernet_strength=0.3, Seed=4),
    "A1111": lambda path: picture(path, "a dog <hypernet:ink:0.3>", Seed=4, Version="v1.10.1"),
    "Forge": lambda path: picture(path, "a dog <hypernet:ink:0.3>", Seed=4, Version="f2.0.1v1.10.1"),
    "hnetkit": lambda path: picture(path, "a dog <hypernet:ink:0.3>", Seed=4, Version="hnetkit 0.2.0", RNG="CPU"),
    "ComfyUI": comfyui,
    "a text beside": text_beside,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_every_program_is_read(library: Library, folder: Path, writer: str) -> None:
    WRITERS[writer](folder / "a.png")
    found = looked(folder, library)
    (page,) = found.page(network=content(library, "ink")).pictures
    assert page.picture.prompt.startswith("a dog")
    assert dict(page.picture.facts)["Seed"] == "4"
    assert page.networks[0][0].strength == 0.3
    record = found.record(page.picture.id)
    again = infotext.parse(record.infotext)
    assert again[:3] == record.info[:3]
    assert page.picture.command == f"hnetkit generate --from {folder / 'a.png'}"


def test_what_people_really_wrote_is_read_and_copied_as_it_is(library: Library, folder: Path, shared: Path) -> None:
    texts = [entry["text"] for entry in json.loads((shared / "data" / "infotexts.json").read_text(encoding="utf-8"))]
    texts += [
        path.read_text(encoding="utf-8") for path in sorted((shared / "cases" / "pictures" / "infotexts").iterdir())
    ]
    for number, text in enumerate(texts):
        write_image(folder / f"{number}.png", IMAGE, text)
    found = looked(folder, library)
    records = [found.record(one.picture.id) for one in found.page(size=100).pictures]
    assert len(records) == len(texts) > 15
    assert all(one.found.picture.failure is None for one in records)
    assert [infotext.parse(one.infotext)[:3] for one in records] == [one.info[:3] for one in records]
    used = {used.name for one in records for used, _ in one.found.networks}
    assert {"yagamitaichi-200000", "helloasuka", "waterElemental_10", "A1 Extra-600000"} <= used


# --- the folders


def test_pictures_are_shown_newest_first_in_pages(library: Library, folder: Path) -> None:
    for age in range(5):
        picture(folder / f"{age}.png", age=age)
    found = looked(folder, library)
    first, last, beyond = (found.page(number=number, size=2) for number in (1, 3, 9))
    assert [one.picture.name for one in first.pictures] == ["0.png", "1.png"]
    assert (first.total, first.number, first.pages) == (5, 1, 3)
    assert last == beyond
    ids = [one.picture.id for one in found.page().pictures]
    assert [found.neighbours(id) for id in (ids[0], ids[2], ids[4], "?")] == [
        (None, ids[1]),
        (ids[1], ids[3]),
        (ids[3], None),
        (None, None),
    ]
    assert [one.picture.name for one in last.pictures] == ["4.png"]


def test_pictures_are_chosen_by_whether_their_networks_are_known(library: Library, folder: Path) -> None:
    picture(folder / "known.png", "<hypernet:ink:1><hypernet:far:1>")
    picture(folder / "unknown.png", "<hypernet:far:1>", age=1)
    picture(folder / "none.png", "a cat", age=2)
    IMAGE.save(folder / "bare.png")
    os.utime(folder / "bare.png", (1, 1))
    found = looked(folder, library)
    assert names(found, which="known") == ["known.png"]
    assert names(found, which="unknown") == ["unknown.png", "none.png", "bare.png"]
    assert names(found) == names(found, which="known") + names(found, which="unknown")
    assert names(found, network=content(library, "wash")) == []
    assert found.page(network=content(library, "wash")).pages == 1


def test_what_is_hidden_linked_or_no_picture_is_left_out(library: Library, folder: Path, tmp_path: Path) -> None:
    picture(folder / "2024" / "day" / "a.png")
    for name in (".hidden.png", "._a.png", ".cache/a.png"):
        picture(folder / name)
    (folder / "notes.md").write_text("Steps: 20")
    (folder / "a.pt").write_bytes(b"x")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    secret = picture(tmp_path / "elsewhere" / "secret.png")
    (folder / "a.png").symlink_to(secret)
    (folder / "elsewhere").symlink_to(secret.parent)
    (folder / "lost.png").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to(folder)
    (folder / "passwd").symlink_to("/etc")
    found = looked(folder, library)
    assert [one.picture.path for one in found.page().pictures] == [folder / "2024" / "day" / "a.png"]
    assert found.progress.said == ("5 links are not followed",)


def test_a_folder_may_itself_be_a_link_and_nested_ones_count_once(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    picture(folder / "day" / "a.png")
    (tmp_path / "link").symlink_to(folder)
    found = PictureFolders([tmp_path / "link", folder, folder / "day"], library)
    found.look()
    assert found.folders == (folder, folder / "day")
    assert names(found) == ["a.png"]


def test_a_folder_that_is_not_there_is_said_at_once(library: Library, folder: Path) -> None:
    with pytest.raises(NotFound, match="nowhere: no such folder"):
        PictureFolders([folder, folder / "nowhere"], library)


def test_only_what_changed_is_read_again(library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    true = pictures._info_at
    monkeypatch.setattr(pictures, "_info_at", lambda path: read.append(path.name) or true(path))
    for name in ("a.png", "b.png", "c.png"):
        picture(folder / name)
    text_beside(folder / "d.png")
    (folder / "bare.png").write_bytes(b"no picture")
    found = looked(folder, library)
    assert sorted(read) == ["a.png", "b.png", "bare.png", "c.png", "d.png"]
    read.clear()
    found.look()
    assert read == []
    picture(folder / "a.png", "a dog <hypernet:wash:1>", age=3)
    (folder / "b.png").unlink()
    (folder / "c.png").rename(folder / "e.png")
    (folder / "d.txt").write_text(infotext.write("changed", "", SETTINGS))
    found.look()
    assert sorted(read) == ["a.png", "d.png", "e.png"]
    assert sorted(names(found)) == ["a.png", "bare.png", "d.png", "e.png"]
    assert names(found, network=content(library, "wash")) == ["a.png"]
    assert "changed" in {one.picture.prompt for one in found.page().pictures}


def test_what_cannot_be_seen_is_said_and_does_not_vanish(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(folder / "day" / "a.png")
    picture(folder / "b.png", age=1)
    found = looked(folder, library)
    with monkeypatch.context() as patch:
        fail_at(patch, folder / "day", errno.EACCES, "scandir")
        found.look()
        assert names(found) == ["a.png", "b.png"]
        assert found.progress.said == (f"{folder / 'day'}: cannot be read: Permission denied",)
    shutil.rmtree(folder / "day")
    found.look()
    assert (names(found), found.progress.said) == (["b.png"], ())
    shutil.rmtree(folder)
    found.look()
    assert found.progress.said == (f"{folder}: cannot be read: No such file or directory",)


def test_a_picture_that_could_not_be_opened_is_tried_again(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(folder / "a.png", "a cat")
    with monkeypatch.context() as patch:
        fail_at(patch, folder / "a.png", errno.EIO, "open")
        found = looked(folder, library)
        assert "cannot be opened" in str(only(found).picture.failure)
    found.look()
    assert (only(found).picture.failure, only(found).picture.prompt) == (None, "a cat")


# --- hostile ones


def test_hostile_pictures_end_no_others_and_are_told(library: Library, folder: Path) -> None:
    for number, (name, make) in enumerate((BOMBS | BAGGAGE).items()):
        if name.endswith(pictures.SUFFIXES):
            (folder / f"{number}-{name}").write_bytes(make())
    for number, data in enumerate(mutants(1, 60)):
        (folder / f"mutant-{number}.png").write_bytes(data)
    about = PngInfo()
    about.add_text("parameters", "x" * (40 << 20), zip=True)
    IMAGE.save(folder / "text.png", pnginfo=about)
    (folder / "empty.png").touch()
    (folder / "text-only.png").write_text("Steps: 20, Sampler: Euler, Seed: 5")
    deep = json.dumps({"1": {"class_type": "KSampler", "inputs": {}}}).replace("{}", "[" * 5000 + "]" * 5000)
    about = PngInfo()
    about.add_text("prompt", deep)
    IMAGE.save(folder / "deep.png", pnginfo=about)
    picture(folder / "good.png", "a cat <hypernet:ink:1>")
    found = looked(folder, library)
    assert len(found.page(size=1000).pictures) == len(list(folder.iterdir()))
    assert names(found, network=content(library, "ink")) == ["good.png"]
    failures = {one.picture.name: one.picture.failure for one in found.page(size=1000).pictures}
    assert failures["text.png"] == "the picture carries more than 16 MiB of text"
    assert failures["text-only.png"] == "no PNG, JPEG or WebP picture, whatever its name says"
    for one in found.page(size=1000).pictures:
        found.record(one.picture.id)


def test_texts_of_any_kind_can_be_sent_and_are_kept_short(library: Library, folder: Path) -> None:
    prompt = "<script>alert(1)</script>\x00\u202e" + "long " * 20_000 + f"<hypernet:{'n' * 50_000}:1>"
    text = infotext.write(prompt, "", SETTINGS | {"Model": "m" * 50_000})
    write_image(folder / "a.png", IMAGE, text)
    comment = json.dumps(
        {"prompt": "half \ud800 a letter", "steps": 1, "sampler": "k_euler", "scale": 1, "seed": 3, "uc": ""}
    )
    about = PngInfo()
    for key, value in {"Software": "NovelAI", "Description": "", "Comment": comment}.items():
        about.add_text(key, value)
    IMAGE.save(folder / "half.png", pnginfo=about)
    found = looked(folder, library)
    for one in found.page().pictures:
        json.dumps([repr(one), one.picture.prompt, found.record(one.picture.id).infotext], ensure_ascii=False).encode()
        assert len(repr(one)) < 3000
    assert {one.picture.failure for one in found.page().pictures} == {None}


def test_a_name_that_is_no_text_is_shown_and_has_no_command(library: Library, folder: Path) -> None:
    path = os.fsencode(folder) + b"/\xff<b>.png"
    with open(path, "wb") as file:
        IMAGE.save(file, "png")
    picture(folder / "b.png")
    shutil.copy(folder / "b.png", path)
    (one,) = [one for one in looked(folder, library).page().pictures if one.picture.name != "b.png"]
    assert one.picture.name == "\\udcff<b>.png"
    assert one.picture.command is None


def test_an_id_opens_nothing_but_the_picture_that_was_found(library: Library, folder: Path, tmp_path: Path) -> None:
    path, secret = picture(folder / "a" / "a.png"), picture(tmp_path / "secret" / "a.png")
    found = looked(folder, library)
    id = only(found).picture.id
    assert found.path_of(id) == path
    for other in ("", "..", "../secret/a.png", str(secret), f"{id}/..", id.upper() + "x", "0" * 24):
        with pytest.raises(NotFound):
            found.path_of(other)
    shutil.rmtree(folder / "a")
    (folder / "a").symlink_to(secret.parent)
    with pytest.raises(NotFound, match="not there any more"):
        found.path_of(id)
    with pytest.raises(NotFound):
        found.record(id)


# --- many, and in the background


def many(folder: Path, count: int) -> None:
    """Writes pictures with the bytes of one, each with a text of its own."""
    plain = png_bytes()
    for number in range(count):
        text = infotext.write(
            f"cat {number} <hypernet:{'ink' if number % 2 else 'far'}:0.5>", "", SETTINGS | {"Seed": number}
        )
        chunk = png_chunk(b"tEXt", b"parameters\0" + text.encode("latin-1"))
        (folder / f"{number}.png").write_bytes(plain[:33] + chunk + plain[33:])


def png_bytes() -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    IMAGE.save(buffer, "png")
    return buffer.getvalue()


def test_two_thousand_pictures_are_read_once(library: Library, folder: Path) -> None:
    many(folder, 2000)
    found = looked(folder, library)
    assert found.progress.of == 2000
    assert found.counts() == {content(library, "ink"): 1000}
    assert found.page(which="unknown", size=10).total == 1000
    found.look()
    assert found.progress.of == 0


def test_a_picture_takes_little_memory(library: Library, folder: Path) -> None:
    many(folder, 200)
    found = PictureFolders([folder], library)
    tracemalloc.start()
    found.look()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 200 * 3000


def test_of_too_many_pictures_the_newest_are_kept_and_that_is_said(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_PICTURES", 2)
    for age in range(3):
        picture(folder / f"{age}.png", age=age)
    found = looked(folder, library)
    assert names(found) == ["0.png", "1.png"]
    assert found.progress.said == ("of 3 pictures, the newest 2 are shown",)


def test_a_look_goes_on_in_the_background_and_shows_what_it_has(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age in range(3):
        picture(folder / f"{age}.png", age=age)
    read, true, may_go_on = [], pictures._info_at, threading.Event()

    def slow(path: Path) -> Any:
        read.append(path.name)
        if len(read) > 1:
            assert may_go_on.wait(10)
        return true(path)

    monkeypatch.setattr(pictures, "_info_at", slow)
    found = PictureFolders([folder], library)
    found.begin_look()
    until(lambda: len(read) == 2)
    assert names(found) == ["0.png"]
    assert (found.progress.is_running, found.progress.done, found.progress.of) == (True, 1, 3)
    found.begin_look()
    may_go_on.set()
    until(lambda: not found.progress.is_running)
    assert (names(found), read) == (["0.png", "1.png", "2.png"], ["0.png", "1.png", "2.png"])


def test_closing_ends_a_look(library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age in range(50):
        picture(folder / f"{age}.png", age=age)
    read, true = [], pictures._info_at
    monkeypatch.setattr(pictures, "_info_at", lambda path: (read.append(path), time.sleep(0.02)) and true(path))
    found = PictureFolders([folder], library)
    found.begin_look()
    until(lambda: bool(read))
    found.close()
    assert len(read) < 50
    found.begin_look()
    assert not found.progress.is_running or len(read) < 50


def test_an_unexpected_failure_of_a_look_is_said(
    library: Library, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise HnetkitError("it broke")

    monkeypatch.setattr(pictures, "_id_of", fails)
    picture(folder / "a.png")
    found = looked(folder, library)
    assert found.progress == pictures.LookingBack(said=("it broke",))


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)
