"""`hnetkit.Library`: what people do with a library, from Python, with the results of the commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import networks

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import AmbiguousName, FileRefused, NotFound, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    networks.network_file(tmp_path / "mine", "ink.pt", widths=(320, 768), activation="relu", seed=1)
    networks.network_file(tmp_path / "mine", "glow.pt", widths=(320, 1024), seed=2)
    (tmp_path / "mine" / "page.pt").write_bytes(b"<html>log in</html>")
    return tmp_path / "mine"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == 0
    rows: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return rows


def test_rows_are_those_of_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hnetkit.Library() as library:
        assert [(change.what, Path(change.path).name) for change in library.scan(folder)] == [
            ("new", name) for name in ("glow.pt", "ink.pt", "page.pt")
        ]
        assert library.scan() == []
        library.tag("ink", "lines", "old", alias="thin", note="best at 0.6")
        row = library.tag("thin", remove=["old"])
        assert (row["tags"], row["aliases"], row["note"]) == (["lines"], ["thin"], "best at 0.6")
        assert library.networks() == printed(capsys, "list")
        assert library.files() == printed(capsys, "list", "--files")
        assert library.search("lin") == printed(capsys, "search", "lin")
        assert [library.record("ink")] == printed(capsys, "show", "thin")
        assert library.recheck() == printed(capsys, "scan", "--rehash") == []


def test_a_text_alone_is_one_tag_or_one_name_and_not_its_letters(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "webui").mkdir()
    with hnetkit.Library() as library:
        library.scan(folder)
        library.tag("ink", "lines", "l", alias="i")
        assert [row["name"] for row in library.networks(tags="lines")] == ["ink"]
        assert library.tag("ink", remove="lines")["tags"] == ["l"]
        assert library.tag("ink", remove_aliases="i")["aliases"] == []
        assert len(library.tag_all(library.record("ink")["content_hash"], "new", remove="l")) == 1
        (change,) = library.link(tmp_path / "webui", layout="a1111", names="ink")
        assert Path(change.path).name == "ink.pt"
        assert len(hnetkit.sharing.plan_share(library, "ink").networks) == 1


def test_networks_are_chosen_by_what_they_are(folder: Path) -> None:
    with hnetkit.Library() as library:
        library.scan(folder)
        library.tag("glow", "light")

        def names(**chosen: object) -> list[str]:
            return [row["name"] for row in library.networks(**chosen)]  # type: ignore[arg-type]

        assert names() == ["glow", "ink"]
        assert names(tags=["light"]) == names(width=1024) == names(base_model="sd2") == ["glow"]
        assert names(activation="ReLU") == ["ink"]
        (folder / "ink.pt").unlink()
        library.scan()
        assert names(missing=True) == ["ink"]


def test_a_name_is_found_as_a_file_that_is_there(folder: Path) -> None:
    with hnetkit.Library() as library:
        library.scan(folder)
        assert library.find("ink") == folder / "ink.pt"
        assert hnetkit.load(library.find("ink")).content_hash == library.record("ink")["content_hash"]
        with pytest.raises(NotFound, match="no network named inc"):
            library.find("inc")
        with pytest.raises(FileRefused):
            library.find("page")
        (folder / "ink.pt").unlink()
        with pytest.raises(NotFound, match="is gone"):
            library.find("ink")
        networks.network_file(folder, "ink.pt", seed=5)
        networks.network_file(folder, "ink.ckpt", seed=6)
        library.scan()
        with pytest.raises(AmbiguousName):
            library.find("ink")


def test_what_is_forgotten_is_told_before(folder: Path) -> None:
    with hnetkit.Library() as library:
        library.scan(folder)
        assert len(library.forgetting(str(folder)).files) == 3
        (row,) = library.forget("ink")
        assert row["path"] == str(folder / "ink.pt")
        assert [row["name"] for row in library.networks()] == ["glow"]
        assert len(library.forget(str(folder))) == 2
        assert library.files() == []
        assert library.registry.files.roots() == []
        with pytest.raises(UsageError, match="say what to forget"):
            library.forget()


def test_what_goes_missing_after_somebody_was_shown_what_is_missing_stays(folder: Path) -> None:
    with hnetkit.Library() as library:
        library.scan(folder)
        (folder / "ink.pt").unlink()
        library.scan()
        shown = library.forgetting(missing=True)
        (folder / "glow.pt").unlink()
        library.scan()
        assert [row["stem"] for row in library.forget_found(shown)] == ["ink"]
        assert [row["stem"] for row in library.files(missing=True)] == ["glow"]


def test_networks_are_linked_into_a_program_and_taken_back(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "webui").mkdir()
    with hnetkit.Library() as library:
        library.scan(folder)
        linked = library.link(tmp_path / "webui", layout="a1111", names=["ink"])
        assert [(change.what, Path(change.path).name) for change in linked] == [("linked", "ink.pt")]
        assert Path(linked[0].path).samefile(folder / "ink.pt")
        assert [change.what for change in library.unlink(tmp_path / "webui", layout="a1111")] == ["removed"]
        assert not Path(linked[0].path).exists()
        with pytest.raises(UsageError, match="not a known program"):
            library.link(tmp_path / "webui", layout="a1112")


def test_a_library_of_another_home_is_another_one(folder: Path, tmp_path: Path, home: Path) -> None:
    with hnetkit.Library(home=tmp_path / "other") as library:
        assert library.folder == tmp_path / "other" / "library"
        with pytest.raises(NotFound, match="no folder was ever scanned"):
            library.scan()
        library.scan(folder)
        assert len(library.networks()) == 2
    assert not (home / "registry.db").exists()
    with hnetkit.Library() as own:
        assert own.networks() == []


@pytest.mark.parametrize("nothing", ["", " ", "\n\t"])
def test_a_blank_text_says_nothing(nothing: str, folder: Path) -> None:
    with hnetkit.Library() as library:
        library.scan(folder)
        library.tag("ink", note="best at 0.6", trigger_words="thin lines")
        row = library.tag("ink", note=nothing, trigger_words=nothing)
        assert (row["note"], row["trigger_words"]) == (None, None)


def test_a_comma_ends_a_tag_as_people_type_lists(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hnetkit.Library() as library:
        library.scan(folder)
        assert run(["tag", "ink", "anime,", "lineart", "fine lines,dark ,"]) == 0
        assert library.record("ink")["tags"] == ["anime", "dark", "fine lines", "lineart"]
        assert run(["tag", "ink", ","]) == UsageError.exit_code
        assert "nothing to change" in capsys.readouterr().err
        with library.registry.write():  # as an earlier hnetkit stored it
            library.registry.networks.add_tags(
                library.registry.networks.id_of(library.record("ink")["content_hash"]), ["a,"]
            )
        assert "a," not in library.tag("ink", remove=["a,"])["tags"]
