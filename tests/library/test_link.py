"""The library in other programs' folders: found by each program's own rules, kept up to date, and taken back whole."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import threading
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from support import networks
from support.failing_disk import fail_at

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import AmbiguousName, NotFound
from hnetkit.library.layouts import PROGRAMS, folder_of, program_at, stem_for_layout
from hnetkit.library.link import link, undo
from hnetkit.library.resolve import resolve
from hnetkit.library.scan import scan
from hnetkit.registry import Registry

A1111, COMFYUI = PROGRAMS["a1111"], PROGRAMS["comfyui"]
BY_STEM = ["a1111", "forge", "sdnext", "stabilitymatrix"]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Three networks: a `.pt`, a `.ckpt` in a sub-folder, and a `.safetensors`; and a file that is none."""
    folder = tmp_path / "library"
    (folder / "deep").mkdir(parents=True)
    networks.network_file(folder, "ink.pt", seed=1, activation="relu")
    networks.network_file(folder / "deep", "mist.ckpt", seed=3)
    hnetkit.save(hnetkit.load(networks.network_file(tmp_path, seed=2)), folder / "glow.safetensors")
    (folder / "page.pt").write_bytes(b"<html>log in</html>")
    return folder


@pytest.fixture
def registry(tmp_path: Path, library: Path) -> Any:
    with Registry(tmp_path / "registry.db") as opened:
        list(scan(opened, [library]))
        yield opened


@pytest.fixture
def webui(tmp_path: Path) -> Path:
    (tmp_path / "webui" / "models" / "hypernetworks").mkdir(parents=True)
    return tmp_path / "webui"


def listed_by_stem(folder: Path) -> dict[str, str]:
    """What A1111 and those that came from it find: every .pt below the folder, by its stem, the last one wins."""
    files = sorted(glob.iglob(os.path.join(folder, "**/*.pt"), recursive=True), key=str.lower)
    names = {os.path.splitext(os.path.basename(file))[0]: file for file in files}
    return {name: file for name, file in names.items() if name != "None"}


def listed_by_comfyui(folder: Path) -> dict[str, str]:
    suffixes = (".ckpt", ".pt", ".pt2", ".bin", ".pth", ".safetensors", ".pkl", ".sft")
    files = [path for path in folder.rglob("*") if path.suffix.lower() in suffixes]
    return {path.relative_to(folder).as_posix(): str(path) for path in files}


def tree(folder: Path) -> dict[str, Any]:
    """Every folder, link and file with its bytes."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def whats(changes: Any) -> list[tuple[str, str]]:
    return sorted((change.what, Path(change.path).name) for change in changes)


def whole(changes: Any) -> list[tuple[str, str, str | None]]:
    return sorted((change.what, Path(change.path).name, change.how) for change in changes)


def content(path: str | Path) -> str:
    return hnetkit.load(path).content_hash


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(1314, "a required privilege is not held by the client")

    monkeypatch.setattr(os, name, refuse)


# --- each program finds every network under its own rules


@pytest.mark.parametrize("layout", BY_STEM)
def test_a_program_that_lists_pt_finds_every_network_by_its_stem(
    registry: Registry, library: Path, webui: Path, layout: str
) -> None:
    changes = list(link(registry, webui, PROGRAMS[layout]))
    assert {change.what for change in changes} == {"linked"}
    found = listed_by_stem(folder_of(PROGRAMS[layout], webui))
    assert {name: content(path) for name, path in found.items()} == {
        name: resolve(registry, name).content_hash for name in ("ink", "mist", "glow")
    }
    for path in found.values():
        loaded = torch.load(path, weights_only=True)
        assert [key for key in loaded if isinstance(key, int)] == [8, 12]


def test_comfyui_finds_what_it_lists_as_it_is_and_can_read_the_rest(
    registry: Registry, library: Path, webui: Path
) -> None:
    list(link(registry, webui, COMFYUI))
    found = listed_by_comfyui(webui / "models" / "hypernetworks")
    assert set(found) == {"ink.pt", "mist.ckpt", "glow.pt"}  # in a .safetensors it would find no network, silently
    for path in found.values():
        assert [key for key in torch.load(path, weights_only=True) if isinstance(key, int)] == [8, 12]


def test_only_what_cannot_be_read_as_it_is_becomes_a_file_of_its_own(
    registry: Registry, library: Path, webui: Path
) -> None:
    changes = {Path(change.path).name: change for change in link(registry, webui, A1111)}
    assert {name: change.how for name, change in changes.items()} == {
        "ink.pt": "symlink",
        "mist.pt": "converted",
        "glow.pt": "converted",
    }
    assert os.readlink(changes["ink.pt"].path) == str(library / "ink.pt")
    assert changes["glow.pt"].source == str(library / "glow.safetensors")


def test_only_the_named_networks_are_linked(registry: Registry, webui: Path) -> None:
    assert whats(link(registry, webui, A1111, names=["ink"])) == [("linked", "ink.pt")]
    assert whats(link(registry, webui, A1111, names=["mist", "glow"])) == [("linked", "glow.pt"), ("linked", "mist.pt")]
    assert set(listed_by_stem(webui)) == {"ink", "mist", "glow"}
    with pytest.raises(NotFound):
        list(link(registry, webui, A1111, names=["nothing"]))


def test_the_folder_is_found_from_every_folder_around_it(tmp_path: Path) -> None:
    folder = tmp_path / "StabilityMatrix" / "Data" / "Models" / "Hypernetwork"
    folder.mkdir(parents=True)
    program = PROGRAMS["stabilitymatrix"]
    assert {folder_of(program, path) for path in (folder, *list(folder.parents)[:3])} == {folder}
    ui = tmp_path / "ui"
    (ui / "models").mkdir(parents=True)
    expected = ui / "models" / "hypernetworks"
    assert folder_of(A1111, ui) == folder_of(A1111, ui / "models") == expected
    expected.symlink_to(folder)
    assert folder_of(A1111, ui) == folder_of(A1111, expected) == folder
    with pytest.raises(NotFound):
        folder_of(A1111, tmp_path / "nowhere")


def test_one_folder_that_two_programs_share_is_filled_once(registry: Registry, tmp_path: Path) -> None:
    shared = tmp_path / "Data" / "Models" / "Hypernetwork"
    shared.mkdir(parents=True)
    package = tmp_path / "package" / "models"
    package.mkdir(parents=True)
    (package / "hypernetworks").symlink_to(shared)
    list(link(registry, tmp_path, PROGRAMS["stabilitymatrix"]))
    assert {change.what for change in link(registry, package.parent, A1111)} == {"there"}


# --- names


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("ink wash-v1.2_x", "ink wash-v1.2_x"),
        ("a:b<c>d,e", "a_b_c_d,e"),
        ("ink (wash) [v2] {50%} it's & co+1=2", "ink (wash) [v2] {50%} it's & co+1=2"),
        ('a|b*c?d"e#f', "a_b_c_d_e_f"),
        ("🎨 inks 👩\u200d🎨", "🎨 inks 👩\u200d🎨"),
        ("back\u202ewards", "back_wards"),
        ("None", "_None"),
        ("con", "_con"),
        ("LPT1.v2", "_LPT1.v2"),
        (".hidden. ", "hidden"),
        ("...", "hypernetwork"),
        ("cafe\u0301", "café"),
        ("墨絵", "墨絵"),
        ("हिन्दी", "हिन्दी"),
        ("up/..\\x\x1b", "up_.._x_"),
    ],
)
def test_a_stem_is_made_safe_for_prompts_and_disks(name: str, stem: str) -> None:
    assert stem_for_layout(name) == stem
    assert stem_for_layout(stem) == stem


def test_a_long_stem_leaves_room_for_a_suffix() -> None:
    stem = stem_for_layout("墨" * 300)
    assert unicodedata.is_normalized("NFC", stem)
    assert 190 < len(stem.encode()) <= 200


def test_odd_names_are_found_by_a1111_s_prompt(registry: Registry, library: Path, webui: Path) -> None:
    for seed, name in enumerate(["None.pt", "a,b.pt", "aux.pt", "e\u0301.pt", ".dot.pt"]):
        networks.network_file(library, name, seed=40 + seed)
    list(scan(registry))
    list(link(registry, webui, A1111))
    found = listed_by_stem(webui)
    assert set(found) == {"ink", "mist", "glow", "_None", "a,b", "_aux", "é", "dot"}


def test_stems_that_are_one_name_get_numbers_that_stay(registry: Registry, library: Path, webui: Path) -> None:
    def linked_now() -> dict[str, str]:
        list(scan(registry))
        forget_missing(registry)
        list(link(registry, webui, A1111))
        return {content(path): stem for stem, path in listed_by_stem(webui).items()}

    for number, name in enumerate(["one/Ink.pt", "two/ink.pt", "two/INK.safetensors"]):
        (library / name).parent.mkdir(exist_ok=True)
        hnetkit.save(hnetkit.load(networks.network_file(library.parent, seed=60 + number)), library / name)
    first = linked_now()
    assert sorted(stem.casefold() for stem in first.values()) == ["glow", "ink", "ink-2", "ink-3", "ink-4", "mist"]

    gone = content(library / "one" / "Ink.pt")
    (library / "one" / "Ink.pt").unlink()
    new = content(networks.network_file(library, "INk.pt", seed=70))
    second = linked_now()
    assert {hash: stem for hash, stem in second.items() if hash != new} == {
        hash: stem for hash, stem in first.items() if hash != gone
    }
    assert len({stem.casefold() for stem in second.values()}) == 6


def forget_missing(registry: Registry) -> None:
    with registry.write():
        registry.files.forget(row["id"] for row in registry.files.missing())
        registry.networks.forget_fileless()


def test_the_same_network_in_two_files_is_linked_once(registry: Registry, library: Path, webui: Path) -> None:
    shutil.copy(library / "ink.pt", library / "deep" / "pen.pt")
    list(scan(registry))
    list(link(registry, webui, A1111))
    assert set(listed_by_stem(webui)) == {"ink", "mist", "glow"}
    networks.network_file(library / "deep", "ink.pt", seed=99)
    list(scan(registry))
    with pytest.raises(AmbiguousName):
        list(link(registry, webui, A1111, names=["ink"]))


@pytest.mark.parametrize("how", ["symlink", "copy"])
def test_another_file_of_the_same_network_is_linked_where_the_first_is_gone_since_the_scan(
    registry: Registry, library: Path, webui: Path, how: Any
) -> None:
    (library / "other").mkdir()
    shutil.copy(library / "ink.pt", library / "other" / "ink.pt")
    for gone, left in (("ink.pt", "other/ink.pt"), ("other/ink.pt", "ink.pt")):
        list(scan(registry))
        (library / gone).rename(library.parent / "away")
        list(link(registry, webui, A1111, how=how))
        assert content(listed_by_stem(webui)["ink"]) == content(library / left)
        (library.parent / "away").rename(library / gone)


# --- again, and back


@pytest.mark.parametrize("how", [None, "symlink", "hardlink", "copy"])
@pytest.mark.parametrize("layout", list(PROGRAMS))
def test_a_second_run_changes_nothing_and_undo_leaves_the_earlier_tree(
    registry: Registry, webui: Path, layout: str, how: Any
) -> None:
    (webui / "models" / "hypernetworks" / "mine.pt").write_bytes(b"a person's")
    before = tree(webui)
    first = list(link(registry, webui, PROGRAMS[layout], how=how))
    assert {change.how for change in first} <= {how or "symlink", "converted"}
    after = tree(webui)
    assert len(after) > len(before)
    assert {change.what for change in link(registry, webui, PROGRAMS[layout], how=how)} == {"there"}
    assert {change.what for change in link(registry, webui, PROGRAMS[layout])} == {"there"}
    assert tree(webui) == after
    assert {change.what for change in undo(registry, webui, PROGRAMS[layout])} == {"removed"}
    assert tree(webui) == before
    assert list(undo(registry, webui, PROGRAMS[layout])) == []


def test_folders_that_were_made_are_taken_back_when_they_are_empty(registry: Registry, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    list(link(registry, bare, A1111))
    assert set(listed_by_stem(bare / "models" / "hypernetworks")) == {"ink", "mist", "glow"}
    list(undo(registry, bare, A1111))
    assert tree(bare) == {}
    list(link(registry, bare, A1111))
    (bare / "models" / "other.txt").write_text("a person's")
    list(undo(registry, bare, A1111))
    assert tree(bare) == {"models": False, "models/other.txt": b"a person's"}


def test_a_dry_run_says_the_same_and_does_nothing(registry: Registry, webui: Path) -> None:
    before = tree(webui)
    said = list(link(registry, webui, A1111, dry_run=True))
    assert tree(webui) == before
    assert registry.links.into(str(webui / "models" / "hypernetworks")) == []
    assert list(link(registry, webui, A1111)) == said
    after = tree(webui)
    assert whats(undo(registry, webui, A1111, dry_run=True)) == sorted(
        ("removed", Path(change.path).name) for change in said
    )
    assert tree(webui) == after
    assert len(list(undo(registry, webui, A1111))) == 3


def test_a_network_that_left_the_library_leaves_the_program(registry: Registry, library: Path, webui: Path) -> None:
    list(link(registry, webui, A1111, how="copy"))
    for name in ("ink", "glow"):
        with registry.write():
            registry.files.forget(row["id"] for row in registry.files.named(name))
            registry.networks.forget_fileless()
    assert whats(link(registry, webui, A1111)) == [("removed", "glow.pt"), ("removed", "ink.pt"), ("there", "mist.pt")]
    assert set(listed_by_stem(webui)) == {"mist"}


def test_a_network_whose_file_is_away_is_skipped_and_its_link_stays(
    registry: Registry, library: Path, webui: Path
) -> None:
    list(link(registry, webui, A1111, how="copy"))
    library.rename(library.with_name("elsewhere"))
    list(scan(registry))
    before = tree(webui)
    changes = list(link(registry, webui, A1111))
    assert {change.what for change in changes} == {"skipped"}
    assert all("No such file" in str(change.reason) for change in changes)
    assert tree(webui) == before


def test_a_file_that_changed_since_the_scan_is_skipped_and_later_updated(
    registry: Registry, library: Path, webui: Path
) -> None:
    list(link(registry, webui, A1111, how="copy"))
    networks.network_file(library, "ink.pt", seed=50, structure=(1, 3, 1))
    net = hnetkit.load(networks.network_file(library.parent, seed=51))
    hnetkit.save(net, library / "glow.safetensors", overwrite=True)
    (skipped, *_) = [c for c in link(registry, webui, A1111) if c.what == "skipped" and c.path.endswith("ink.pt")]
    assert "hnetkit scan" in str(skipped.reason)
    list(scan(registry))
    assert ("updated", "ink.pt") in whats(link(registry, webui, A1111))
    found = listed_by_stem(webui)
    assert content(found["ink"]) == content(library / "ink.pt")
    assert content(found["glow"]) == net.content_hash


def test_a_file_that_was_renamed_is_renamed_in_the_program(registry: Registry, library: Path, webui: Path) -> None:
    list(link(registry, webui, A1111))
    (library / "ink.pt").rename(library / "deep" / "pen.pt")
    list(scan(registry))
    assert ("removed", "ink.pt") in whats(link(registry, webui, A1111))
    assert set(listed_by_stem(webui)) == {"pen", "mist", "glow"}


def test_asking_for_copies_replaces_links_by_copies(registry: Registry, webui: Path) -> None:
    list(link(registry, webui, A1111))
    assert ("updated", "ink.pt") in whats(link(registry, webui, A1111, how="copy"))
    assert not Path(listed_by_stem(webui)["ink"]).is_symlink()
    assert {change.what for change in link(registry, webui, A1111)} == {"there"}


@pytest.mark.parametrize("how", ["copy", "hardlink"])
def test_what_comes_later_comes_in_the_way_that_was_asked_for(
    registry: Registry, library: Path, webui: Path, how: Any
) -> None:
    (library / "ink.txt").write_text("a note")
    list(link(registry, webui, A1111, how=how))
    networks.network_file(library, "ink.pt", seed=5)
    networks.network_file(library, "new.pt", seed=6)
    (library / "ink.txt").unlink()  # an editor that writes a file anew
    (library / "ink.txt").write_text("another note")
    list(scan(registry))
    foreseen = whole(link(registry, webui, A1111, dry_run=True))
    changes = whole(link(registry, webui, A1111))
    assert foreseen == changes
    assert {how_of for what, _, how_of in changes if what in ("linked", "updated")} == {how}
    assert {name for _, name, _ in changes} >= {"ink.pt", "ink.txt", "new.pt"}
    assert not any(path.is_symlink() for path in webui.rglob("*"))


# --- without the right to make links


def test_without_symbolic_links_hard_links_are_made(
    registry: Registry, library: Path, webui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "symlink")
    changes = {Path(change.path).name: change.how for change in link(registry, webui, A1111)}
    assert changes["ink.pt"] == "hardlink"
    assert os.path.samefile(listed_by_stem(webui)["ink"], library / "ink.pt")
    assert {change.what for change in link(registry, webui, A1111)} == {"there"}
    list(undo(registry, webui, A1111))
    assert (library / "ink.pt").exists()
    assert listed_by_stem(webui) == {}


def test_without_any_links_copies_are_made(
    registry: Registry, library: Path, webui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "symlink")
    forbid(monkeypatch, "link")
    changes = {Path(change.path).name: change.how for change in link(registry, webui, A1111)}
    assert changes["ink.pt"] == "copy"
    assert Path(listed_by_stem(webui)["ink"]).read_bytes() == (library / "ink.pt").read_bytes()


def test_a_hard_link_to_another_disk_is_skipped_with_what_can_be_done(
    registry: Registry, webui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across(source: Any, target: Any, **_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link", source, None, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", across)
        (change,) = link(registry, webui, A1111, names=["ink"], how="hardlink")
    assert (change.what, str(change.reason).partition("; ")[2]) == ("skipped", "--copy copies it")


def test_a_way_that_was_asked_for_and_cannot_be_is_skipped_with_the_reason(
    registry: Registry, webui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "symlink")
    before = tree(webui)
    (change,) = link(registry, webui, A1111, names=["ink"], how="symlink")
    assert (change.what, change.reason) == ("skipped", "a required privilege is not held by the client")
    assert tree(webui) == before
    assert registry.links.into(str(webui / "models" / "hypernetworks")) == []


# --- what hnetkit did not put there stays


def test_another_file_of_the_name_is_kept_and_named(registry: Registry, webui: Path) -> None:
    folder = webui / "models" / "hypernetworks"
    (folder / "sub").mkdir()
    (folder / "sub" / "Ink.pt").write_bytes(b"a person's")  # A1111 would find one of the two only
    (folder / "mist.pt").mkdir()
    (folder / "glow.pt").symlink_to("nowhere")
    before = tree(webui)
    changes = list(link(registry, webui, A1111))
    assert {change.what for change in changes} == {"skipped"}
    assert any("Ink.pt" in str(change.reason) for change in changes)
    assert tree(webui) == before
    assert whats(link(registry, webui, COMFYUI, names=["ink"])) == [("linked", "ink.pt")]  # there it is another name


def test_the_same_network_under_the_name_is_there_already(registry: Registry, library: Path, webui: Path) -> None:
    folder = webui / "models" / "hypernetworks"
    shutil.copy(library / "ink.pt", folder / "ink.pt")
    hnetkit.save(hnetkit.load(library / "glow.safetensors"), folder / "glow.pt")
    assert whats(link(registry, webui, A1111)) == [("linked", "mist.pt"), ("there", "glow.pt"), ("there", "ink.pt")]
    list(undo(registry, webui, A1111))
    assert {path.name for path in folder.iterdir()} == {"ink.pt", "glow.pt"}


def test_a_program_s_folder_that_is_part_of_the_library_gets_only_what_is_elsewhere(
    registry: Registry, webui: Path
) -> None:
    folder = webui / "models" / "hypernetworks"
    networks.network_file(folder, "own.pt", seed=80)
    networks.network_file(folder, "Glow.pt", seed=81)
    list(scan(registry, [folder]))
    for _ in range(2):
        list(link(registry, webui, A1111))
        list(scan(registry))  # finds the links as well: they are no networks of their own
        assert set(listed_by_stem(webui)) == {"own", "Glow", "ink", "mist", "glow-2"}
    assert {change.what for change in link(registry, webui, A1111)} == {"there"}
    with registry.write():
        elsewhere = [row["id"] for row in registry.files.rows() if "webui" not in row["path"]]
        registry.files.forget(elsewhere)
    list(link(registry, webui, A1111))
    assert set(listed_by_stem(webui)) == {"own", "Glow"}


@pytest.mark.parametrize("how", [None, "hardlink", "copy"])
def test_what_changed_since_is_neither_updated_nor_taken_back(registry: Registry, webui: Path, how: Any) -> None:
    list(link(registry, webui, A1111, how=how))
    found = listed_by_stem(webui)
    for name in ("ink", "glow"):
        data = Path(found[name]).read_bytes()
        os.unlink(found[name])
        Path(found[name]).write_bytes(data[:-1] + b"!")
    before = tree(webui)
    changes = list(link(registry, webui, A1111))
    assert whats(changes) == [("skipped", "glow.pt"), ("skipped", "ink.pt"), ("there", "mist.pt")]
    assert tree(webui) == before
    assert whats(undo(registry, webui, A1111)) == [("kept", "glow.pt"), ("kept", "ink.pt"), ("removed", "mist.pt")]
    assert tree(webui) == {path: data for path, data in before.items() if not path.endswith("mist.pt")}


def test_a_hard_link_whose_file_was_edited_is_still_taken_back(registry: Registry, library: Path, webui: Path) -> None:
    list(link(registry, webui, A1111, how="hardlink"))
    data = networks.network_file(library.parent, "other.pt", seed=9).read_bytes()
    (library / "ink.pt").write_bytes(data)
    assert ("removed", "ink.pt") in whats(undo(registry, webui, A1111))


@pytest.mark.parametrize("how", ["hardlink", "copy"])
@pytest.mark.parametrize("end", [undo, link])
def test_the_last_file_of_a_network_is_kept_and_taken_back_when_there_is_another(
    registry: Registry, library: Path, webui: Path, how: Any, end: Any
) -> None:
    list(link(registry, webui, A1111, how=how))
    before = {name: Path(path).read_bytes() for name, path in listed_by_stem(webui).items()}
    glow = library / "glow.safetensors"
    (library / "ink.pt").unlink()
    glow.rename(library.parent / "glow.safetensors")  # its link was converted
    (library / "deep" / "mist.ckpt").unlink()
    (library / "deep" / "mist.ckpt").write_bytes(b"<html>log in</html>")
    with registry.write():
        registry.files.forget(row["id"] for row in registry.files.rows())
        registry.networks.forget_fileless()
    assert {change.what for change in end(registry, webui, A1111)} == {"kept"}
    assert {name: Path(path).read_bytes() for name, path in listed_by_stem(webui).items()} == before
    (library.parent / "glow.safetensors").rename(glow)
    assert ("removed", "glow.pt") in whats(end(registry, webui, A1111))


def test_a_file_whose_source_has_become_a_link_to_it_is_kept(registry: Registry, library: Path, webui: Path) -> None:
    list(link(registry, webui, A1111, names=["ink"], how="copy"))
    (there,) = listed_by_stem(webui).values()
    (library / "ink.pt").unlink()
    (library / "ink.pt").symlink_to(there)
    assert whats(undo(registry, webui, A1111)) == [("kept", "ink.pt")]
    assert Path(there).is_file()


def test_a_network_of_the_same_name_does_not_replace_the_last_file_of_another(
    registry: Registry, library: Path, webui: Path
) -> None:
    list(link(registry, webui, A1111, names=["ink"], how="copy"))
    (there,) = listed_by_stem(webui).values()
    before = Path(there).read_bytes()
    (library / "ink.pt").unlink()
    with registry.write():
        registry.files.forget(row["id"] for row in registry.files.named("ink"))
        registry.networks.forget_fileless()
    networks.network_file(library / "deep", "ink.pt", seed=60)
    list(scan(registry))
    assert ("skipped", "ink.pt") in whats(link(registry, webui, A1111))
    assert Path(there).read_bytes() == before


@pytest.mark.parametrize(("how", "call"), [("symlink", "symlink"), ("hardlink", "link"), ("copy", "fsync")])
def test_a_link_that_cannot_be_renewed_stays_as_it_was(
    registry: Registry, library: Path, webui: Path, monkeypatch: pytest.MonkeyPatch, how: Any, call: str
) -> None:
    list(link(registry, webui, A1111, how="copy" if how != "copy" else "symlink"))
    before = tree(webui)

    def failing(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, failing)
        assert ("skipped", "ink.pt") in whats(link(registry, webui, A1111, how=how))
    assert tree(webui) == before
    assert ("updated", "ink.pt") in whats(link(registry, webui, A1111, how=how))
    assert all(change.what == "removed" for change in undo(registry, webui, A1111))


def test_a_conversion_goes_when_the_new_one_is_whole(
    registry: Registry, library: Path, webui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(link(registry, webui, A1111))
    before = tree(webui)
    net = hnetkit.load(networks.network_file(library.parent, seed=51))
    hnetkit.save(net, library / "glow.safetensors", overwrite=True)
    list(scan(registry))
    with monkeypatch.context() as patched:
        patched.setattr("hnetkit.library.link.save", lambda *arguments: 1 / 0)
        assert ("skipped", "glow.pt") in whats(link(registry, webui, A1111))
    assert tree(webui) == before
    assert ("updated", "glow.pt") in whats(link(registry, webui, A1111))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["symlink", "link"])
def test_a_run_that_was_killed_can_be_undone_and_gone_on_with(
    registry: Registry, webui: Path, monkeypatch: pytest.MonkeyPatch, moment: str, call: str
) -> None:
    before, real = tree(webui), getattr(os, call)

    def killed(*arguments: Any, **options: Any) -> None:
        if moment == "after":
            real(*arguments, **options)
        raise KeyboardInterrupt

    for end in (undo, link):
        monkeypatch.setattr(os, call, killed)
        with pytest.raises(KeyboardInterrupt):
            list(link(registry, webui, A1111))
        monkeypatch.setattr(os, call, real)
        list(end(registry, webui, A1111))
        if end is undo:
            assert tree(webui) == before
    assert set(listed_by_stem(webui)) == {"ink", "mist", "glow"}
    list(undo(registry, webui, A1111))
    assert tree(webui) == before


# --- names that prompts use


def test_a_name_that_prompts_use_is_kept(registry: Registry, library: Path, webui: Path) -> None:
    networks.network_file(library, "ink (wash).pt", seed=30)
    list(scan(registry))
    changes = {Path(change.path).name: change for change in link(registry, webui, A1111)}
    assert changes["ink (wash).pt"].what == "linked"
    assert changes["ink (wash).pt"].reason is None
    assert "ink (wash)" in listed_by_stem(webui)


def test_a_name_that_no_prompt_can_have_is_changed_and_said(registry: Registry, library: Path, webui: Path) -> None:
    networks.network_file(library, "ink:wash.pt", seed=30)
    (library / "two").mkdir()
    networks.network_file(library / "two", "ink.pt", seed=31)
    list(scan(registry))
    changes = {Path(change.path).name: change for change in link(registry, webui, A1111)}
    assert changes["ink_wash.pt"].reason == "its name there is ink_wash: ink:wash cannot be a name there"
    assert changes["ink-2.pt"].reason == "its name there is ink-2: another network is ink there"
    assert changes["mist.pt"].reason is None


# --- previews, notes and records come along

SIDECARS = {
    "ink.preview.png": b"\x89PNG\r\n\x1a\npreview",
    "ink.json": b'{"preferred weight": 0.7, "activation text": "ink wash"}',
    "ink.civitai.info": b'{"id": 10, "modelId": 1}',
    "ink.txt": b"a brush",
}


@pytest.fixture
def beside(library: Path) -> dict[str, bytes]:
    """Sidecars of `ink`, and of `mist`, which is converted."""
    files = {**SIDECARS, "deep/mist.jpg": b"\xff\xd8\xff"}
    for name, data in files.items():
        (library / name).write_bytes(data)
    return files


@pytest.mark.parametrize("how", [None, "symlink", "hardlink", "copy"])
def test_sidecars_come_along_and_go_with_their_network(
    registry: Registry, library: Path, webui: Path, beside: dict[str, bytes], how: Any
) -> None:
    folder = webui / "models" / "hypernetworks"
    list(link(registry, webui, A1111, how=how))
    assert {Path(name).name: (folder / Path(name).name).read_bytes() for name in beside} == {
        Path(name).name: data for name, data in beside.items()
    }
    after = tree(webui)
    assert {change.what for change in link(registry, webui, A1111, how=how)} == {"there"}
    assert tree(webui) == after
    with registry.write():
        registry.files.forget(row["id"] for row in registry.files.named("ink"))
        registry.networks.forget_fileless()
    list(link(registry, webui, A1111))
    assert {path.name for path in folder.iterdir()} == {"mist.jpg", "mist.pt", "glow.pt"}
    list(undo(registry, webui, A1111))
    assert list(folder.iterdir()) == []


def test_sidecars_have_the_name_that_the_network_has_there(registry: Registry, library: Path, webui: Path) -> None:
    networks.network_file(library, "ink:wash.pt", seed=30)
    (library / "ink:wash.preview.webp").write_bytes(b"RIFF....WEBP")
    list(scan(registry))
    list(link(registry, webui, A1111))
    assert (webui / "models" / "hypernetworks" / "ink_wash.preview.webp").read_bytes() == b"RIFF....WEBP"


def test_sidecars_of_every_file_of_a_network_come_along_the_best_file_s_first(
    registry: Registry, library: Path, webui: Path
) -> None:
    shutil.copy(library / "ink.pt", library / "deep" / "ink.pt")
    (library / "ink.txt").write_text("first")
    (library / "deep" / "ink.txt").write_text("second")
    (library / "deep" / "ink.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    list(scan(registry))
    list(link(registry, webui, A1111))
    folder = webui / "models" / "hypernetworks"
    assert (folder / "ink.txt").read_text() == "first"
    assert (folder / "ink.png").exists()


@pytest.mark.parametrize("how", ["hardlink", "copy"])
def test_a_sidecar_that_changed_in_the_library_is_renewed_and_one_changed_there_is_kept(
    registry: Registry, library: Path, webui: Path, beside: dict[str, bytes], how: Any
) -> None:
    folder = webui / "models" / "hypernetworks"
    list(link(registry, webui, A1111, how=how))
    (library / "ink.json").unlink()
    (library / "ink.json").write_bytes(b'{"notes": "of the library"}')
    (folder / "ink.txt").unlink()
    (folder / "ink.txt").write_bytes(b"of the program")
    changes = {Path(change.path).name: change for change in link(registry, webui, A1111, how=how)}
    assert (changes["ink.json"].what, changes["ink.txt"].what) == ("updated", "kept")
    assert (folder / "ink.json").read_bytes() == b'{"notes": "of the library"}'
    assert (folder / "ink.txt").read_bytes() == b"of the program"
    list(undo(registry, webui, A1111))
    assert {path.name for path in folder.iterdir()} == {"ink.txt"}


def test_a_person_s_own_sidecar_is_kept(registry: Registry, webui: Path, beside: dict[str, bytes]) -> None:
    folder = webui / "models" / "hypernetworks"
    (folder / "ink.json").write_bytes(b'{"notes": "mine"}')
    (folder / "ink.txt").write_bytes(SIDECARS["ink.txt"])
    changes = {Path(change.path).name: change for change in link(registry, webui, A1111)}
    assert (changes["ink.json"].what, changes["ink.txt"].what) == ("kept", "there")
    list(undo(registry, webui, A1111))
    assert (folder / "ink.json").read_bytes() == b'{"notes": "mine"}'
    assert (folder / "ink.txt").exists()


@pytest.mark.parametrize("how", ["hardlink", "copy"])
def test_the_last_copy_of_a_sidecar_is_kept(
    registry: Registry, library: Path, webui: Path, beside: dict[str, bytes], how: Any
) -> None:
    list(link(registry, webui, A1111, how=how))
    (library / "ink.txt").unlink()
    for end in (link, undo):
        changes = {Path(change.path).name: change for change in end(registry, webui, A1111)}
        assert changes["ink.txt"].what == "kept"
    assert (webui / "models" / "hypernetworks" / "ink.txt").read_bytes() == SIDECARS["ink.txt"]


@pytest.mark.parametrize("how", ["hardlink", "copy"])
@pytest.mark.parametrize("known_by", ["its tags", "its file"])
def test_the_last_file_of_a_network_that_the_library_knows_is_not_replaced_by_a_newer_one_of_its_name(
    registry: Registry, library: Path, webui: Path, how: Any, known_by: str
) -> None:
    folder = webui / "models" / "hypernetworks"
    list(link(registry, webui, A1111, names=["ink"], how=how))
    before = resolve(registry, "ink").content_hash
    if known_by == "its file":
        list(scan(registry, [folder]))
    else:
        (row,) = registry.networks.of_contents([before])
        with registry.write():
            registry.networks.add_tags(row["id"], ["the good one"])
    hnetkit.save(hnetkit.load(networks.network_file(library.parent, seed=50)), library / "ink.pt", overwrite=True)
    list(scan(registry))
    for is_dry in (True, False):
        (change,) = link(registry, webui, A1111, names=[str(library / "ink.pt")], how=how, dry_run=is_dry)
        assert (change.what, "hnetkit scan" in str(change.reason)) == ("skipped", True)
    assert content(folder / "ink.pt") == before
    (folder / "ink.pt").rename(library / "ink of old.pt")  # as the reason says
    list(scan(registry))
    assert ("linked", "ink.pt") in whats(link(registry, webui, A1111, how=how))
    assert content(folder / "ink.pt") == content(library / "ink.pt")
    assert before in {content(path) for path in folder.glob("*.pt")}


def test_only_sidecars_come_along(registry: Registry, library: Path, webui: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a person's")
    (library / "ink.txt").symlink_to(tmp_path / "secret.txt")  # an archive could hold such a link
    (library / "ink.json").write_text('{"private": "settings of something else"}')
    list(link(registry, webui, A1111, how="copy"))
    assert {path.suffix for path in (webui / "models" / "hypernetworks").iterdir()} == {".pt"}


def test_a_sidecar_that_cannot_be_put_there_costs_no_other(
    registry: Registry, webui: Path, beside: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    symlink = os.symlink

    def failing(source: Any, path: Any) -> None:
        if str(source).endswith("ink.txt"):
            raise OSError(28, "No space left on device")
        symlink(source, path)

    monkeypatch.setattr("os.symlink", failing)
    changes = {Path(change.path).name: change.what for change in link(registry, webui, A1111, how="symlink")}
    assert [name for name, what in changes.items() if what == "skipped"] == ["ink.txt"]
    assert set(SIDECARS) <= changes.keys()


# --- nothing goes before what comes instead is there


def test_a_renamed_network_keeps_its_old_link_until_the_new_one_is_there(
    registry: Registry, library: Path, webui: Path, beside: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(link(registry, webui, A1111, how="copy"))
    for path in library.glob("ink.*"):
        path.rename(path.with_name(path.name.replace("ink", "pen")))
    list(scan(registry))
    before = tree(webui)

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        assert ("skipped", "pen.pt") in whats(link(registry, webui, A1111, how="copy"))
    assert tree(webui) == before
    order = [(change.what, Path(change.path).name) for change in link(registry, webui, A1111, how="copy")]
    assert order.index(("linked", "pen.pt")) < order.index(("removed", "ink.pt"))
    assert {path.name.split(".")[0] for path in (webui / "models" / "hypernetworks").iterdir()} == {
        "pen",
        "mist",
        "glow",
    }


def test_linking_one_network_leaves_the_links_of_the_others(
    registry: Registry, library: Path, webui: Path, beside: dict[str, bytes]
) -> None:
    list(link(registry, webui, A1111))
    for path in library.glob("ink.*"):
        path.rename(path.with_name(path.name.replace("ink", "pen")))
    list(scan(registry))
    before = tree(webui)
    assert whats(link(registry, webui, A1111, names=["glow"])) == [("there", "glow.pt")]
    assert tree(webui) == before


@pytest.mark.parametrize("end", [link, undo])
def test_a_folder_of_a_program_that_cannot_be_seen_keeps_its_records(
    registry: Registry, library: Path, webui: Path, monkeypatch: pytest.MonkeyPatch, end: Any
) -> None:
    folder = webui / "models" / "hypernetworks"
    list(link(registry, webui, A1111, how="copy"))
    forget_all(registry)
    known = registry.links.into(str(folder))
    with monkeypatch.context() as patched:
        fail_at(patched, folder, 5, "stat", "lstat", "scandir", "open", "readlink")
        assert {change.what for change in end(registry, webui, A1111)} <= {"kept"}
    assert registry.links.into(str(folder)) == known
    (webui / "models").rename(webui / "unmounted")
    list(end(registry, webui, A1111))
    assert [link for link in registry.links.into(str(folder)) if link.source] == known


def forget_all(registry: Registry) -> None:
    with registry.write():
        registry.files.forget(row["id"] for row in registry.files.rows())
        registry.networks.forget_fileless()


@pytest.mark.parametrize("how", ["symlink", "hardlink", "copy"])
def test_another_file_of_the_network_is_linked_where_the_first_is_gone(
    registry: Registry, library: Path, webui: Path, how: Any
) -> None:
    shutil.copy(library / "ink.pt", library / "deep" / "ink.pt")
    list(scan(registry))
    list(link(registry, webui, A1111, names=["ink"], how=how))
    (library / "ink.pt").unlink()  # and no scan since
    assert whats(link(registry, webui, A1111, names=["ink"], how=how)) == [("updated", "ink.pt")]
    assert content(webui / "models" / "hypernetworks" / "ink.pt") == content(library / "deep" / "ink.pt")


def test_what_is_gone_names_steps_that_help_whether_it_was_scanned_since_or_not(
    registry: Registry, library: Path, webui: Path
) -> None:
    (library / "ink.pt").unlink()
    for _ in range(2):
        (change,) = link(registry, webui, A1111, names=["ink"])
        assert str(change.reason).endswith("; hnetkit repair fetches it; hnetkit scan finds it")
        list(scan(registry))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("ways", [("copy", "symlink"), ("symlink", "copy"), ("symlink", "hardlink"), ("copy", "copy")])
def test_a_run_that_was_killed_while_it_replaced_is_gone_on_with(
    registry: Registry, library: Path, webui: Path, monkeypatch: pytest.MonkeyPatch, moment: str, ways: Any
) -> None:
    first, second = ways
    list(link(registry, webui, A1111, names=["ink"], how=first))
    if first == second:
        networks.network_file(library, "ink.pt", seed=50)
        list(scan(registry))
    replace = os.replace

    def killed(source: Any, target: Any) -> None:
        if moment == "after":
            replace(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            list(link(registry, webui, A1111, names=["ink"], how=second))
    wanted = "updated" if moment == "before" else "there"
    assert whats(link(registry, webui, A1111, names=["ink"], how=second)) == [(wanted, "ink.pt")]
    assert content(webui / "models" / "hypernetworks" / "ink.pt") == content(library / "ink.pt")
    assert whats(undo(registry, webui, A1111)) == [("removed", "ink.pt")]


def test_a_file_renamed_in_capitals_alone_is_renamed_where_a_disk_knows_no_difference(
    registry: Registry, library: Path, webui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(link(registry, webui, A1111, names=["ink"]))
    (library / "ink.pt").rename(library / "Ink.pt")
    list(scan(registry))
    lexists = os.path.lexists

    def without_capitals(path: Any) -> bool:
        folder, name = os.path.split(path)
        return lexists(path) or (os.path.isdir(folder) and name.lower() in map(str.lower, os.listdir(folder)))

    monkeypatch.setattr("os.path.lexists", without_capitals)
    list(link(registry, webui, A1111, names=["ink"]))
    assert [path.name for path in (webui / "models" / "hypernetworks").iterdir()] == ["Ink.pt"]
    assert content(webui / "models" / "hypernetworks" / "Ink.pt") == content(library / "Ink.pt")


# --- the program is told by what is in its folder

MARKS = {
    "a1111": ["webui.py", "modules/"],
    "forge": ["webui.py", "modules/", "modules_forge/"],
    "sdnext": ["webui.py", "launch.py", "installer.py"],
    "comfyui": ["main.py", "custom_nodes/", "comfy/"],
    "stabilitymatrix": ["StabilityMatrix.exe", "Data/Packages/"],
}


def installed(folder: Path, layout: str) -> Path:
    """A folder as the program's installation leaves it."""
    for mark in MARKS[layout]:
        (folder / mark).parent.mkdir(parents=True, exist_ok=True)
        (folder / mark).mkdir() if mark.endswith("/") else (folder / mark).touch()
    folder.joinpath(*PROGRAMS[layout].folder).mkdir(parents=True)
    return folder


@pytest.mark.parametrize("layout", list(PROGRAMS))
def test_a_program_is_told_from_each_of_its_folders(tmp_path: Path, layout: str) -> None:
    own = installed(tmp_path / "own", layout)
    folder = own.joinpath(*PROGRAMS[layout].folder)
    for directory in (folder, *folder.parents[: len(PROGRAMS[layout].folder)]):
        assert program_at(directory) == PROGRAMS[layout]
    (own / "outputs").mkdir()
    assert program_at(own / "outputs") is None
    assert program_at(tmp_path) is None


def test_link_needs_no_layout_where_the_folder_tells_it(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    comfy = installed(tmp_path / "comfy", "comfyui")
    assert linked(capsys, comfy)
    assert (comfy / "models" / "hypernetworks" / "mist.ckpt").exists()
    assert {row["change"] for row in linked(capsys, comfy, "--remove")} == {"removed"}


def test_a_folder_that_is_not_there_is_said_to_be_no_program_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["link", str(tmp_path / "gone")]) == 4
    said = capsys.readouterr().err
    assert "gone: no such folder\nHint: give the folder that a program is installed in" in said


def test_link_remembers_the_layout_that_was_given(
    library: Path, webui: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    linked(capsys, webui, "--layout", "comfyui")
    assert {row["change"] for row in linked(capsys, webui)} == {"there"}
    assert {row["change"] for row in linked(capsys, webui, "--remove")} == {"removed"}
    assert run(["link", str(webui)]) == 2


def test_a_layout_that_the_folder_contradicts_is_said(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    forge = installed(tmp_path / "forge", "forge")
    assert run(["link", str(forge), "--layout", "a1111"]) == 0
    err = capsys.readouterr().err
    assert "is the folder of forge, not a1111" in err
    assert "does not apply them" in err


def test_a_dry_run_of_link_says_what_it_would_do(
    library: Path, webui: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert run(["link", str(webui), "--layout", "a1111", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert [line[:8] for line in out.splitlines()] == ["to link "] * 3
    assert err.startswith("would be: 3 linked; ")
    run(["link", str(webui), "--layout", "a1111"])
    capsys.readouterr()
    run(["link", str(webui), "--layout", "a1111", "--dry-run"])
    assert capsys.readouterr().err.startswith("nothing to change, 3 there already; ")
    run(["link", str(webui), "--layout", "a1111", "--dry-run", "--remove"])
    assert [line[:10] for line in capsys.readouterr().out.splitlines()] == ["to remove "] * 3


# --- the command


def linked(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run(["link", *map(str, arguments), "--json"]) == code
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_link_says_what_it_did_and_a_second_run_that_nothing_changed(
    library: Path, webui: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert run(["link", str(webui), "--layout", "a1111"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["linked"] * 3
    assert err == f"3 linked; {webui / 'models' / 'hypernetworks'}\n"
    assert run(["link", str(webui), "--layout", "a1111"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"nothing to change, 3 there already; {webui / 'models' / 'hypernetworks'}\n")


def test_link_as_json_has_every_file(library: Path, webui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    for change in ("linked", "there"):
        rows = linked(capsys, webui, "--layout", "forge", "--copy")
        assert [row["change"] for row in rows] == [change] * 3
        assert set(rows[0]) == {"change", "path", "source", "how", "reason"}
    assert [row["change"] for row in linked(capsys, webui, "--layout", "forge", "--undo")] == ["removed"] * 3
    assert linked(capsys, webui, "--layout", "forge", "--undo") == []


def test_forge_s_users_are_told_that_it_ignores_hypernetworks(
    library: Path, webui: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    run(["link", str(webui), "--layout", "forge"])
    assert "does not apply them" in capsys.readouterr().err


def test_a_name_that_is_taken_is_exit_1_at_the_end(
    library: Path, webui: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    (webui / "models" / "hypernetworks" / "ink.pt").write_bytes(b"a person's")
    rows = linked(capsys, webui, "--layout", "a1111", code=1)
    assert sorted(row["change"] for row in rows) == ["linked", "linked", "skipped"]
    assert run(["link", str(webui), "--layout", "a1111"]) == 1
    out, err = capsys.readouterr()
    assert "ink.pt has this name" in out
    assert re.search(r"Error: 1 of 3 files could not be linked: .*ink\.pt has this name", err)


def test_why_nothing_could_be_linked_is_said_beside_the_rows_too(
    library: Path, webui: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["scan", str(library)])
    capsys.readouterr()

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run(["link", str(webui), "--layout", "a1111", "--copy"]) == 1
    assert "could not be linked: " in (err := capsys.readouterr().err)
    assert err.endswith("converted.pt: no room is left on the disk, and 2 more\n")  # where it is converted
    assert run(["link", str(webui), "--layout", "a1111", "--copy", "ink"]) == 1  # and where it is to be, not whence
    place = webui / "models" / "hypernetworks" / "ink.pt"
    assert capsys.readouterr().err.endswith(f"could not be linked: {place}: no room is left on the disk\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--layout", "a1111", "nothing"], 4),
        (["--layout", "kohya"], 2),
        ([], 2),
        (["--undo"], 2),
        (["--layout", "a1111", "--copy", "--symlink"], 2),
        (["--layout", "a1111", "--undo", "ink"], 2),
    ],
)
def test_what_cannot_be_meant_is_refused(library: Path, webui: Path, arguments: list[str], code: int) -> None:
    run(["scan", str(library)])
    before = tree(webui)
    assert run(["link", str(webui), *arguments]) == code
    assert tree(webui) == before


def test_a_folder_that_is_not_there_is_exit_4(library: Path, tmp_path: Path) -> None:
    assert run(["link", str(tmp_path / "nowhere"), "--layout", "a1111"]) == 4


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), OSError(28, "No space left on device")])
def test_a_network_that_fails_in_any_way_costs_no_other(
    registry: Registry, webui: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    waiting, symlink = [error], os.symlink

    def failing(*arguments: Any) -> None:
        if waiting:
            raise waiting.pop()
        symlink(*arguments)

    total = len(list(link(registry, webui, A1111, dry_run=True)))
    monkeypatch.setattr("os.symlink", failing)
    found = list(link(registry, webui, A1111, how="symlink"))
    (failed,) = (change for change in found if change.what == "skipped")
    assert failed.reason
    assert len(found) == total
    assert [change.what for change in link(registry, webui, A1111)].count("linked") == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_in_the_place_of_files_are_not_waited_for(registry: Registry, library: Path, webui: Path) -> None:
    found = {change.path: change for change in link(registry, webui, A1111, how="copy")}
    (target,) = (Path(path) for path in found if Path(path).name == "ink.pt")
    target.unlink()
    os.mkfifo(target)
    assert {c.what for c in link(registry, webui, A1111) if c.path == str(target)} == {"skipped"}
    assert {c.what for c in undo(registry, webui, A1111) if c.path == str(target)} == {"kept"}
    target.unlink()
    (library / "ink.pt").unlink()
    os.mkfifo(library / "ink.pt")
    (change,) = (c for c in link(registry, webui, A1111, how="copy") if c.path == str(target))
    assert (change.what, change.reason) == ("skipped", f"{library / 'ink.pt'}: not a regular file")


def test_what_cannot_be_removed_is_kept_and_taken_back_later(
    registry: Registry, webui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = len([change for change in link(registry, webui, A1111) if change.what == "linked"])
    unlink, waiting = os.unlink, [PermissionError(13, "Permission denied")]

    def failing(path: Any, **options: Any) -> None:
        if waiting:
            raise waiting.pop()
        unlink(path, **options)

    monkeypatch.setattr("os.unlink", failing)
    assert sorted(change.what for change in undo(registry, webui, A1111)) == ["kept"] + ["removed"] * (total - 1)
    assert [change.what for change in undo(registry, webui, A1111)] == ["removed"]


def test_a_file_of_a_time_that_no_clock_shows_is_linked(registry: Registry, library: Path, webui: Path) -> None:
    late = 10_413_792_000 * 10**9  # the year 2300
    os.utime(library / "ink.pt", ns=(late, late))
    list(scan(registry))
    assert [change.what for change in link(registry, webui, A1111, names=["ink"])] == ["linked"]


def test_a_file_that_was_swapped_under_its_size_and_time_is_not_linked(
    registry: Registry, library: Path, webui: Path
) -> None:
    path = library / "ink.pt"
    status = path.stat()
    path.write_bytes(b"\x80\x02cos\nsystem\n".ljust(status.st_size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changes = {Path(change.path).name: change for change in link(registry, webui, A1111)}
    assert changes["ink.pt"].what == "skipped"
    assert "a bare pickle" in str(changes["ink.pt"].reason)
    assert not (webui / "models" / "hypernetworks" / "ink.pt").exists()
    assert changes["mist.pt"].what == "linked"


def test_comfyui_does_not_get_a_file_whose_layers_it_would_apply_in_another_order(
    tmp_path: Path, registry: Registry, library: Path
) -> None:
    content = networks.a1111_network((8,), (1, 1, 1), seed=9)
    content[8] = tuple(dict(reversed(side.items())) for side in content[8])
    networks.save_pt(content, library / "back.pt")
    list(scan(registry, [library]))
    what = {}
    for program in (A1111, COMFYUI):
        (tmp_path / program.name / "models").mkdir(parents=True)
        changes = {Path(change.path).stem: change for change in link(registry, tmp_path / program.name, program)}
        what[program.name] = (changes["back"].what, changes["ink"].what)
    assert what == {"a1111": ("linked", "linked"), "comfyui": ("skipped", "linked")}


def test_no_link_leads_to_what_was_linked_into_another_programs_folder(
    registry: Registry, library: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first" / "models" / "hypernetworks", tmp_path / "second" / "models" / "hypernetworks"
    for folder in (first, second):
        folder.mkdir(parents=True)
    list(link(registry, first, A1111))
    list(scan(registry, [first]))
    list(link(registry, second, COMFYUI))
    list(undo(registry, first, A1111))
    for path in second.iterdir():
        assert hnetkit.load(path).content_hash == resolve(registry, path.stem).content_hash


def test_two_that_take_copies_back_at_once_leave_one_file_of_each_network(
    registry: Registry, tmp_path: Path, library: Path, webui: Path
) -> None:
    comfy = tmp_path / "comfy" / "models" / "hypernetworks"
    comfy.mkdir(parents=True)
    for folder, program in ((webui, A1111), (tmp_path / "comfy", COMFYUI)):
        list(link(registry, folder, program, how="copy"))
    list(scan(registry, [webui, comfy]))
    shutil.rmtree(library)
    hashes = {content(path) for path in comfy.iterdir()}
    first = undo(registry, webui, A1111)
    next(first)  # it has looked, and is about to remove more
    started = threading.Event()

    def second() -> None:
        started.set()
        with Registry(registry.path) as own:
            list(undo(own, tmp_path / "comfy", COMFYUI))

    thread = threading.Thread(target=second)
    thread.start()
    started.wait()
    thread.join(timeout=0.5)
    assert thread.is_alive()  # it waits
    list(first)
    thread.join()
    left = [path for path in (*(webui / "models" / "hypernetworks").iterdir(), *comfy.iterdir())]
    assert {content(path) for path in left} == hashes
