"""What a person suggests of a network is written beside its files, as A1111 has it, and costs nothing that is there."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import networks

from hnetkit.errors import BadPicture, ChangedMeanwhile, HnetkitError, NotFound, OutputExists, PartlyFailed, UsageError
from hnetkit.image_text import infotext_of, write_image
from hnetkit.library.library import Library
from hnetkit.library.suggestions import MOST_SIDE, suggested_strength, trigger_words

SETTINGS = "a castle\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5"
posix = pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "networks"
    made.mkdir()
    networks.network_file(made, "ink.pt")
    return made


@pytest.fixture
def library(folder: Path) -> Iterator[Library]:
    with Library() as opened:
        opened.scan(folder)
        yield opened


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "castle.png"
    write_image(path, Image.new("RGB", (64, 32), "red"), SETTINGS)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settings(folder: Path, stem: str = "ink") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    return found


# --- what is written


def test_it_stands_beside_the_file_and_in_the_row_at_once(library: Library, folder: Path, picture: Path) -> None:
    row = library.tag("ink", strength=0.8, trigger_words="ink wash, 墨", preview=picture)
    assert settings(folder) == {"preferred weight": 0.8, "activation text": "ink wash, 墨"}
    (said,) = row["sidecars"]
    assert (said["preferred_weight"], said["activation_text"]) == (0.8, "ink wash, 墨")
    assert said["preview"] == str(folder / "ink.preview.png")
    assert suggested_strength(row) == (0.8, "preferred")
    assert trigger_words(row) == "ink wash, 墨"
    assert [change.what for change in library.scan()] == [], "a scan reads the same"
    assert [found["name"] for found in library.search("wash")] == ["ink"]


def test_a1111_s_file_keeps_all_else_in_its_order_and_its_form(library: Library, folder: Path) -> None:
    user = {"vae_te": ["x"], "description": "mine", "preferred weight": 0, "sd version": "SD1", "notes": "ü"}
    (folder / "ink.json").write_text(json.dumps(user, indent=4, ensure_ascii=False), encoding="utf-8")
    library.tag("ink", strength="1", trigger_words=" words ")
    wanted = user | {"preferred weight": 1, "activation text": "words"}
    assert (folder / "ink.json").read_text(encoding="utf-8") == json.dumps(wanted, indent=4, ensure_ascii=False)


def test_what_is_empty_removes_as_a1111_s_editor_does(library: Library, folder: Path, picture: Path) -> None:
    library.tag("ink", strength=0.8, trigger_words="ink", preview=picture)
    row = library.tag("ink", strength="", trigger_words="", preview="")
    assert settings(folder) == {"preferred weight": 0, "activation text": ""}
    assert not (folder / "ink.preview.png").exists()
    assert suggested_strength(row) is None
    assert trigger_words(row) == ""
    library.tag("ink", strength="", trigger_words="", preview="")


def test_nothing_to_remove_makes_no_file(library: Library, folder: Path) -> None:
    before = tree(folder)
    library.tag("ink", strength="", trigger_words=" ", preview="")
    assert tree(folder) == before


def test_a_preview_is_small_and_keeps_the_settings_of_its_picture(
    library: Library, folder: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.jpg"
    write_image(large, Image.new("RGB", (3 * MOST_SIDE, MOST_SIDE)), SETTINGS)
    library.tag("ink", preview=large)
    preview = folder / "ink.preview.png"
    with Image.open(preview) as image:
        assert (image.format, image.size[0]) == ("PNG", MOST_SIDE)
    assert infotext_of(preview) == SETTINGS


def test_each_copy_has_it_and_a_link_is_none(library: Library, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "ink.pt", other / "pen.pt")
    if os.name != "nt":
        (other / "link.pt").symlink_to(folder / "ink.pt")
    library.scan(other)
    row = library.tag("ink", strength=0.7)
    assert settings(folder) == settings(other, "pen") == {"preferred weight": 0.7}
    assert not (other / "link.json").exists()
    assert {said["preferred_weight"] for said in row["sidecars"]} == {0.7}
    assert library.scan() == []


def test_a_network_of_the_same_stem_shares_it_at_once(library: Library, folder: Path) -> None:
    networks.network_file(folder, "ink.ckpt", seed=9)
    library.scan()
    of_other = library.record(str(folder / "ink.ckpt"))["content_hash"]
    library.tag(str(folder / "ink.pt"), trigger_words="shared")
    assert trigger_words(library.record(of_other)) == "shared"


def test_what_is_known_of_a_copy_on_a_disk_that_is_away_stays(library: Library, folder: Path, tmp_path: Path) -> None:
    away = tmp_path / "disk"
    away.mkdir()
    shutil.copy(folder / "ink.pt", away / "pen.pt")
    (away / "pen.json").write_text('{"notes": "mine"}')
    library.scan(away)
    away.rename(tmp_path / "unmounted")
    row = library.tag("ink", strength=0.7, expected={"trigger_words": ""})
    assert [said.get("notes") for said in row["sidecars"]] == [None, "mine"]


# --- what it replaces


@pytest.mark.parametrize("key", ["note", "trigger_words"])
def test_a_text_that_changed_meanwhile_is_not_replaced(library: Library, folder: Path, key: str) -> None:
    library.tag("ink", **{key: "first"})  # type: ignore[arg-type]
    library.tag("ink", expected={key: "first"}, **{key: "a\nsecond"})  # type: ignore[arg-type]
    with pytest.raises(ChangedMeanwhile, match="ink changed meanwhile") as caught:
        library.tag("ink", "new", expected={key: "first"}, **{key: "third"})  # type: ignore[arg-type]
    assert caught.value.now == "a\nsecond"
    assert library.record("ink")["tags"] == []
    library.tag("ink", expected={key: "a\r\nsecond"}, **{key: "third"})  # type: ignore[arg-type]


def test_words_that_another_program_wrote_meanwhile_are_not_replaced(library: Library, folder: Path) -> None:
    library.tag("ink", trigger_words="first")
    (folder / "ink.json").write_text('{"activation text": "of A1111"}')
    with pytest.raises(ChangedMeanwhile) as caught:
        library.tag("ink", trigger_words="mine", expected={"trigger_words": "first"})
    assert caught.value.now == "of A1111"
    assert settings(folder) == {"activation text": "of A1111"}


# --- whose it is


def test_the_user_s_own_comes_before_the_site_s_and_the_site_s_copy_is_the_site_s() -> None:
    site = {"strength": 0.6, "trained_words": ["a", "b"]}
    assert suggested_strength({"sites": [site], "sidecars": [{"preferred_weight": 0.9}]}) == (0.9, "preferred")
    assert suggested_strength({"sites": [site], "sidecars": [{}]}) == (0.6, "in its example pictures")
    written = {"sites": [site], "sidecars": [{"preferred_weight": 0.6}]}
    assert suggested_strength(written) == (0.6, "in its example pictures")
    assert trigger_words({"sites": [site], "sidecars": [{"activation_text": " "}]}) == "a, b"
    assert trigger_words({"sites": [site], "sidecars": [{}, {"activation_text": "mine"}]}) == "mine"


# --- what stays


@pytest.mark.parametrize(
    "there",
    ['{"modelId": 1, "id": 2}', '{"modelVersions": []}', '{"samples_save": true}', "{", "[1]", '"text"', "\ufeff{,}"],
)
def test_a_file_that_is_not_a1111_s_is_left_alone(library: Library, folder: Path, there: str, picture: Path) -> None:
    (folder / "ink.json").write_text(there, encoding="utf-8")
    before = tree(folder)
    with pytest.raises(OutputExists, match=r"ink\.json: .*left alone"):
        library.tag("ink", "new", strength=0.5, preview=picture)
    assert tree(folder) == before
    assert library.record("ink")["tags"] == [], "nothing is changed"


def test_a_picture_that_would_hide_the_preview_is_named(library: Library, folder: Path, picture: Path) -> None:
    shutil.copy(picture, folder / "ink.png")
    before = tree(folder)
    with pytest.raises(OutputExists, match=r"ink\.png: programs show this picture, and not ink\.preview\.png"):
        library.tag("ink", strength=0.4, preview=picture)
    assert tree(folder) == before


def test_a_preview_that_is_no_copy_of_hnetkit_s_is_not_said_to_be_removed(
    library: Library, folder: Path, picture: Path
) -> None:
    shutil.copy(picture, folder / "ink.preview.jpeg")  # as a site's is
    before = tree(folder)
    with pytest.raises(OutputExists, match=r"ink\.preview\.jpeg: .* there is no ink\.preview\.png to remove"):
        library.tag("ink", preview="")
    library.tag("ink", preview=picture)
    library.tag("ink", preview="")
    assert tree(folder) == before
    assert library.record("ink")["sidecars"][0]["preview"] == str(folder / "ink.preview.jpeg")


@pytest.mark.parametrize("given", ["another", ""], ids=["replaced", "removed"])
def test_a_preview_that_a_person_or_another_program_put_there_is_left_alone(
    library: Library, folder: Path, picture: Path, given: str
) -> None:
    own = folder / "ink.preview.png"
    write_image(own, Image.new("RGB", (900, 700), "blue"), SETTINGS)  # as A1111 keeps a picture that it drew
    before = tree(folder)
    with pytest.raises(OutputExists, match=r"ink\.preview\.png: not a copy that hnetkit made") as caught:
        library.tag("ink", "new", strength=0.5, preview=picture if given else "")
    assert caught.value.command_hint == f"rename {own}, and try again"
    assert tree(folder) == before
    assert library.record("ink")["tags"] == []
    own.rename(folder / "mine.png")
    library.tag("ink", preview=picture)
    library.tag("ink", preview=picture)
    library.tag("ink", preview="")
    assert not own.exists()


def test_the_old_preview_stays_until_the_new_one_is_whole(
    library: Library, folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.tag("ink", preview=picture)
    before = tree(folder)

    def broken(*places: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), *places)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(HnetkitError, match="Input/output error"):
        library.tag("ink", preview=picture)
    assert tree(folder) == before


@posix
@pytest.mark.parametrize("name", ["ink.json", "ink.preview.png"])
def test_nothing_is_written_through_a_link_to_a_file_elsewhere(
    library: Library, folder: Path, tmp_path: Path, picture: Path, name: str
) -> None:
    private = tmp_path / "private"
    private.write_text("{}")
    (folder / name).symlink_to(private)
    with pytest.raises(OutputExists, match="link"):
        library.tag("ink", strength=0.5, preview=picture)
    assert private.read_text() == "{}"


@pytest.mark.parametrize("data", [b"", b"<html>", b"\x89PNG\r\n\x1a\n" + bytes(200)])
def test_a_preview_that_is_no_picture_is_refused_and_the_old_one_stays(
    library: Library, folder: Path, picture: Path, tmp_path: Path, data: bytes
) -> None:
    library.tag("ink", preview=picture)
    before = tree(folder)
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(BadPicture, match=r"bad\.png"):
        library.tag("ink", strength=0.5, preview=tmp_path / "bad.png")
    with pytest.raises(NotFound, match="no such picture"):
        library.tag("ink", preview=tmp_path / "none.png")
    assert tree(folder) == before


@pytest.mark.parametrize("strength", ["0", 0, "nan", float("inf"), "much", "1e999"])
def test_a_strength_that_is_none_is_a_usage_error(library: Library, folder: Path, strength: Any) -> None:
    before = tree(folder)
    with pytest.raises(UsageError, match="strength"):
        library.tag("ink", "new", strength=strength)
    assert tree(folder) == before
    assert library.record("ink")["tags"] == []


def test_a_network_in_no_file_that_is_here_says_so(library: Library, folder: Path) -> None:
    (folder / "ink.pt").unlink()
    library.scan()
    with pytest.raises(NotFound, match="in no file that is here"):
        library.tag("ink", strength=0.5)
    assert not (folder / "ink.json").exists()


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder one in which nothing new can be made, whoever runs the tests."""

    def refuse(folder: Path) -> None:
        real = os.open

        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_CREAT and Path(os.fsdecode(path)).parent == folder:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", opened)

    return refuse


def test_a_folder_that_cannot_be_written_is_one_line(
    library: Library, folder: Path, read_only: Callable[[Path], None]
) -> None:
    read_only(folder)
    with pytest.raises(HnetkitError, match="Read-only file system") as caught:
        library.tag("ink", "new", strength=0.5)
    assert not isinstance(caught.value, PartlyFailed)
    assert library.record("ink")["tags"] == []


def test_a_copy_that_cannot_be_written_is_named_and_the_other_has_it(
    library: Library, folder: Path, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(folder / "ink.pt", other / "ink.pt")
    library.scan(other)
    read_only(other)
    with pytest.raises(PartlyFailed, match=r"beside 1 file of ink not written: .*other.*Read-only"):
        library.tag("ink", "new", strength=0.5)
    assert settings(folder) == {"preferred weight": 0.5}
    row = library.record("ink")
    assert (row["tags"], suggested_strength(row)) == (["new"], (0.5, "preferred"))
