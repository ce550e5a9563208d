"""A shared folder: what is in it, what is not, and what becomes of one that is there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image
from support.networks import network_file

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import BadPicture, FileChanged, NotFound, OutputExists, UsageError
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.reading import loads_in_a1111
from hnetkit.image_text import read_image_text, read_infotext, write_image
from hnetkit.prompts import infotext
from hnetkit.sharing import plan_share, share
from hnetkit.sharing.api import without_folders
from hnetkit.sharing.folder import CARD, RECORD, ShareFolder

Capture = pytest.CaptureFixture[str]
INFOTEXT = (
    'a <hypernet:ink:0.8> castle: "old"\nNegative prompt: fog\n'
    'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Hashes: {"hypernet:ink": "0123456789"}'
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def networks_in(tmp_path: Path) -> Path:
    return tmp_path / "networks"


def test_each_network_is_there_in_both_formats_with_one_content(library: hnetkit.Library, tmp_path: Path) -> None:
    made = share(library, ["ink", "wash"], tmp_path / "out", license="mit")
    files = {f"{name}.{suffix}" for name in ("ink", "wash") for suffix in ("pt", "safetensors")}
    assert names(made.path) == {"README.md", RECORD, *files}
    for name in ("ink", "wash"):
        contents = {hnetkit.load(made.path / f"{name}.{suffix}").content_hash for suffix in ("pt", "safetensors")}
        assert contents == {library.record(name)["content_hash"]}
    assert made.contents == tuple(library.record(name)["content_hash"] for name in ("ink", "wash"))


def test_a_pt_that_a1111_loads_keeps_its_bytes_and_another_is_converted(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    made = share(library, ["ink", "wash"], tmp_path / "out", license="mit")
    assert sha256(made.path / "ink.pt") == sha256(networks_in(tmp_path) / "ink.pt")
    assert not loads_in_a1111(hnetkit.load(networks_in(tmp_path) / "wash.pt"))
    assert loads_in_a1111(hnetkit.load(made.path / "wash.pt"))
    card = (made.path / "README.md").read_text()
    assert "`ink.pt` is the original file, byte for byte." in card
    assert f"converted from the file with the sha256 `{sha256(networks_in(tmp_path) / 'wash.pt')}`" in card
    assert all(digest in card for name, digest in made.files.items() if name != "README.md")


def test_a_network_that_is_here_as_safetensors_alone_gets_its_pt_again(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    original = sha256(networks_in(tmp_path) / "ink.pt")
    hnetkit.save(hnetkit.load(networks_in(tmp_path) / "ink.pt"), networks_in(tmp_path) / "ink.safetensors")
    (networks_in(tmp_path) / "ink.pt").unlink()
    library.scan()
    made = share(library, ["ink"], tmp_path / "out", license="mit")
    assert loads_in_a1111(hnetkit.load(made.path / "ink.pt"))
    assert f"converted from the file with the sha256 `{original}`" in (made.path / "README.md").read_text()


def test_a_checkpoint_suffix_becomes_pt_with_the_same_bytes(library: hnetkit.Library, tmp_path: Path) -> None:
    folder = networks_in(tmp_path)
    (folder / "ink.pt").rename(folder / "ink.ckpt")
    library.scan()
    made = share(library, ["ink"], tmp_path / "out", license="mit")
    assert sha256(made.path / "ink.pt") == sha256(folder / "ink.ckpt")


def test_what_a_person_wrote_about_a_network_stays_at_home(library: hnetkit.Library, tmp_path: Path) -> None:
    library.tag("ink", "private-tag", alias="private-alias", note="private note")
    made = share(library, ["ink"], tmp_path / "out", license="mit")
    for name in names(made.path):
        data = (made.path / name).read_bytes()
        assert b"private" not in data
        assert os.fsencode(tmp_path) not in data, name


def test_a_picture_is_shared_as_it_is_seen_with_its_infotext_and_nothing_else(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    seen = Image.effect_noise((64, 48), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 3  # upside down
    seen.rotate(180).save(tmp_path / "camera.png", exif=exif)
    write_image(tmp_path / "drawn.png", seen, INFOTEXT)
    write_image(tmp_path / "drawn.jpg", seen, INFOTEXT)
    files = [tmp_path / name for name in ("camera.png", "drawn.png", "drawn.jpg")]
    made = share(library, ["ink"], tmp_path / "out", license="mit", pictures=files)
    shared = [made.path / "images" / name for name in ("1.png", "2.png", "3.jpg")]
    assert {f"images/{path.name}" for path in shared} < names(made.path)
    for path in shared:
        with OpenFile(path) as file, Image.open(path) as image:
            assert {"UserComment", "parameters"} >= read_image_text(file).keys()
            assert 0x010F not in image.getexif()
            if path.suffix == ".png":
                assert image.convert("RGB").tobytes() == seen.tobytes()
    for source, path in zip(files[1:], shared[1:], strict=True):
        with OpenFile(source) as before, OpenFile(path) as after:
            assert read_infotext(before)[:3] == read_infotext(after)[:3]


@pytest.mark.parametrize(
    ("noted", "shared"),
    [
        ("/home/me/private/ink.png", "ink.png"),
        ("~/private/a, b/ink.png", "ink.png"),
        ("C:\\Users\\me\\ink.png", "ink.png"),
        ("D:/models/ink.png", "ink.png"),
        ("\\\\server\\me\\ink.png", "ink.png"),
        ("Module: x, Mask: /home/me/ink.png", "Module: x, Mask: ink.png"),
        ("file:///home/me/ink.png", "ink.png"),
        ("file:/home/me/ink.png", "ink.png"),
        ("model:/home/me/ink.png", "model:ink.png"),
        ("model:C:\\Users\\me\\ink.png", "model:ink.png"),
        ("//server/me/ink.png", "ink.png"),
        ("smb://server/me/ink.png", "ink.png"),
        ("~me/private/ink.png", "ink.png"),
        ("$HOME/private/ink.png", "ink.png"),
        ("${HOME}/private/ink.png", "ink.png"),
        ("%USERPROFILE%\\private\\ink.png", "ink.png"),
        ("%HOME%/private/ink.png", "ink.png"),
        ("../../home/me/ink.png", "ink.png"),
        ("./private/ink.png", "ink.png"),
        ("sftp://me@server/me/ink.png", "ink.png"),
        ("\\/home\\/me\\/ink.png", "ink.png"),
        ("C:\\/Users\\/me\\/ink.png", "ink.png"),
        ("C:private\\ink.png", "ink.png"),
        ("~\\private\\ink.png", "ink.png"),
        (".\\private\\ink.png", "ink.png"),
        ("..\\..\\me\\ink.png", "ink.png"),
        ("$env:USERPROFILE\\private\\ink.png", "ink.png"),
        ("\\home\\me\\ink.png", "ink.png"),
        ("ssh://me@server/me/ink.png", "ink.png"),
        ("ftp://me:secret@server/me/ink.png", "ink.png"),
        ("a model, private\\my own\\ink.png", "a model, ink.png"),
        ("https://example.org/a/b, x:http://example.org/a/b", "https://example.org/a/b, x:http://example.org/a/b"),
        ("owner/repo", "owner/repo"),
        ("a / b / c, 16/9, \\(sign\\)", "a / b / c, 16/9, \\(sign\\)"),
        ("a line\\nand another, ..\\(sign\\), a:b", "a line\\nand another, ..\\(sign\\), a:b"),
    ],
)
def test_folders_that_a_program_noted_among_the_settings_stay_at_home(
    library: hnetkit.Library, tmp_path: Path, noted: str, shared: str
) -> None:
    settings = {"Steps": "5", "Init image": noted, "Hires prompt": "in \\(a\\) /home/ of stone/"}
    write_image(tmp_path / "drawn.png", Image.new("RGB", (8, 8)), infotext.write("a sea", "", settings))
    plan = plan_share(library, ["ink"], license="mit", pictures=[tmp_path / "drawn.png"])
    (picture,) = plan.pictures
    assert infotext.parse(picture.infotext).parameters == settings | {"Init image": shared}
    assert any("without their folders" in note for note in plan.notes) == (noted != shared)


def test_folders_are_looked_for_in_time_by_the_length_of_the_settings_alone() -> None:
    begun = time.process_time()
    for text in ("a ", "a:b", "a\\b ", "\\/", "~", "..\\", "$a:", "/a", "\\a", "\\a\\", "C:\\a ", "%a%", "a.b"):
        without_folders(text * 60_000)
    assert time.process_time() - begun < 5


def test_without_pictures_the_previews_are_taken_and_a_bad_one_is_left_out_with_a_word(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    write_image(networks_in(tmp_path) / "ink.png", Image.new("RGB", (8, 8), "red"), INFOTEXT)
    (networks_in(tmp_path) / "wash.preview.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    library.scan()
    plan = plan_share(library, ["ink", "wash"], license="mit")
    assert [picture.name for picture in plan.pictures] == ["images/1.png"]
    assert any("wash.preview.png" in note and note.startswith("left out") for note in plan.notes)
    with pytest.raises(BadPicture, match=r"wash\.preview\.png"):
        plan_share(library, ["ink"], pictures=[networks_in(tmp_path) / "wash.preview.png"])
    with pytest.raises(NotFound, match="no such picture"):
        plan_share(library, ["ink"], pictures=[tmp_path / "none.png"])


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
def test_nothing_is_shared_to_which_a_link_in_a_folder_of_strangers_leads(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    Image.new("RGB", (8, 8), "red").save(private / "photo.png")
    (private / "diary.txt").write_text("secret thoughts\nkey: secret, user: me, host: home\n")
    (networks_in(tmp_path) / "ink.preview.png").symlink_to(private / "photo.png")
    library.scan()
    plan = plan_share(library, ["ink"], license="mit")
    assert plan.pictures == ()
    assert any("ink.preview.png: a link to a file elsewhere" in note for note in plan.notes)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "plain.png")
    (tmp_path / "plain.txt").symlink_to(private / "diary.txt")
    plan = plan_share(library, ["ink"], license="mit", pictures=[tmp_path / "plain.png"])
    assert [(picture.prompt, picture.infotext) for picture in plan.pictures] == [(None, "")]
    assert any("plain.txt: a link to a file elsewhere" in note for note in plan.notes)


def test_a_private_picture_beside_a_network_of_mine_is_not_the_preview_of_a_strangers_link_or_copy_of_it(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    mine, folder = networks_in(tmp_path), tmp_path / "of a stranger"
    Image.new("RGB", (8, 8), "red").save(mine / "passport.png")
    (mine / "diary.txt").write_text("secret thoughts\nSteps: 20, Sampler: Euler a, Seed: 1")
    Image.new("RGB", (8, 8), "red").save(mine / "photo.png")
    folder.mkdir()
    shutil.copy(mine / "ink.pt", folder / "copy.pt")
    (folder / "linked.pt").symlink_to(mine / "wash.pt")
    for name in ("copy", "linked"):
        (folder / f"{name}.preview.png").symlink_to(mine / "passport.png")
    library.scan(folder)
    for name in ("ink", "wash"):
        plan = plan_share(library, [name], license="mit")
        assert plan.pictures == ()
        assert any("preview.png: a link to a file elsewhere" in note for note in plan.notes)
    (folder / "photo.png").symlink_to(mine / "photo.png")
    (folder / "photo.txt").symlink_to(mine / "diary.txt")
    [picture] = plan_share(library, ["ink"], license="mit", pictures=[folder / "photo.png"]).pictures
    assert (picture.prompt, picture.infotext) == (None, "")


def test_a_folder_that_is_there_is_not_touched(library: hnetkit.Library, tmp_path: Path) -> None:
    other, empty = tmp_path / "other", tmp_path / "empty"
    other.mkdir()
    empty.mkdir()
    (other / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match="did not make"):
            share(library, ["ink"], other, license="mit", overwrite=overwrite)
    with pytest.raises(OutputExists, match="not a folder"):
        share(library, ["ink"], other / "mine.txt", license="mit", overwrite=True)
    with pytest.raises(NotFound, match="no such folder"):
        share(library, ["ink"], tmp_path / "no" / "where", license="mit")
    assert names(other) == {"mine.txt"}
    share(library, ["ink"], empty, license="mit")
    with pytest.raises(OutputExists, match="an earlier share") as caught:
        share(library, ["ink"], empty, license="mit")
    assert caught.value.command_hint == "add --overwrite to update it"


def test_a_share_is_updated_in_place_and_what_a_person_put_there_stays(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    write_image(tmp_path / "drawn.png", Image.new("RGB", (8, 8), "red"), INFOTEXT)
    out = share(library, ["ink"], tmp_path / "out", license="mit", pictures=[tmp_path / "drawn.png"]).path
    (out / "LICENSE").write_text("mine")
    made = share(library, ["wash"], out, license="mit", overwrite=True)
    assert names(out) == {"LICENSE", "README.md", RECORD, "wash.pt", "wash.safetensors"}
    assert not (out / "images").exists()
    assert made.others() == ["LICENSE"]
    assert sorted(entry for entry in os.listdir(out) if entry.startswith(".")) == [RECORD]


def test_a_card_that_a_person_wrote_in_is_not_replaced(library: hnetkit.Library, tmp_path: Path) -> None:
    out = share(library, ["ink"], tmp_path / "out", license="mit").path
    with (out / "README.md").open("a") as card:
        card.write("\nDrawn by hand.\n")
    with pytest.raises(OutputExists, match=r"README\.md: changed since"):
        share(library, ["ink", "wash"], out, license="mit", overwrite=True)
    assert "Drawn by hand" in (out / "README.md").read_text()
    assert "wash.pt" not in names(out)


def test_a_file_of_a_person_s_own_is_not_replaced_by_an_update(library: hnetkit.Library, tmp_path: Path) -> None:
    out = share(library, ["ink"], tmp_path / "out", license="mit").path
    (out / "wash.pt").write_text("mine")
    before = {name: sha256(out / name) for name in names(out)}
    with pytest.raises(OutputExists, match=r"wash\.pt"):
        share(library, ["ink", "wash"], out, license="mit", overwrite=True)
    assert {name: sha256(out / name) for name in names(out)} == before


def test_a_file_that_a_person_put_in_the_place_of_a_shared_one_is_neither_replaced_nor_removed(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    out = share(library, ["ink"], tmp_path / "out", license="mit").path
    (out / "ink.pt").write_bytes((networks_in(tmp_path) / "wash.pt").read_bytes())
    before = {name: sha256(out / name) for name in names(out)}
    with pytest.raises(OutputExists, match=r"ink\.pt: there, and not of an earlier share"):
        share(library, ["ink"], out, license="mit", overwrite=True)
    assert {name: sha256(out / name) for name in names(out)} == before
    share(library, ["wash"], out, license="mit", overwrite=True)
    assert sha256(out / "ink.pt") == before["ink.pt"]
    assert ShareFolder.read(out).others() == ["ink.pt"]


def test_an_update_that_was_killed_between_its_files_and_its_record_is_made_good_by_the_same_one(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    out = share(library, ["ink"], tmp_path / "out", license="mit").path
    record = (out / RECORD).read_bytes()
    earlier = json.loads(record)
    earlier["files"]["ink.pt"] = earlier["files"]["ink.safetensors"]
    (out / RECORD).write_text(json.dumps(earlier))
    share(library, ["ink"], out, license="mit", overwrite=True)
    assert (out / RECORD).read_bytes() == record


@pytest.mark.parametrize("name", ["../no.pt", "/etc/passwd", "images/../../no", "a/b/c", "images/", "..", "a\\b"])
def test_a_record_from_a_stranger_names_no_file_outside_of_its_folder(
    library: hnetkit.Library, tmp_path: Path, name: str
) -> None:
    out = share(library, ["ink"], tmp_path / "out", license="mit").path
    record = json.loads((out / RECORD).read_text())
    record["files"][name] = "0" * 64
    (out / RECORD).write_text(json.dumps(record))
    with pytest.raises(OutputExists, match="did not make"):
        ShareFolder.read(out)


def test_what_a_strangers_record_claims_of_a_persons_own_files_is_neither_uploaded_nor_removed_nor_replaced(
    library: hnetkit.Library, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / CARD).write_text("---\n---\n")
    claimed = {CARD: hashlib.sha256(b"---\n---\n").hexdigest(), ".env": "0" * 64, "ink.pt": "0" * 64}
    record = {"format": "hnetkit.share/1", "networks": ["h1:" + "0" * 64], "files": claimed}
    (theirs / RECORD).write_text(json.dumps(record))
    (theirs / ".env").write_text("TOKEN=secret")
    (theirs / "ink.pt").write_text("mine")
    assert run(["share", "--out", str(theirs), "--upload", "me/it", "--dry-run"]) == 2
    said = capsys.readouterr()
    assert ".env: not the file that `hnetkit share` wrote" in said.err
    assert ".env" not in said.out
    with pytest.raises(OutputExists, match=r"\.env: not the file"):
        ShareFolder.read(theirs).uploading("me/it")
    with pytest.raises(OutputExists, match=r"ink\.pt: there, and not of an earlier share"):
        share(library, ["ink"], theirs, license="mit", overwrite=True)
    assert (theirs / "ink.pt").read_text() == "mine"
    (theirs / "ink.pt").unlink()
    share(library, ["ink"], theirs, license="mit", overwrite=True)
    assert (theirs / ".env").read_text() == "TOKEN=secret"
    assert ShareFolder.read(theirs).others() == [".env"]


@pytest.mark.parametrize("name", ["notes.txt", ".gitattributes", "images/1.png", "glow.pt"])
def test_what_share_never_wrote_is_not_removed_though_a_strangers_record_knows_its_content(
    library: hnetkit.Library, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    out = share(library, ["ink"], tmp_path / "out", license="mit").path
    place = out / name
    place.parent.mkdir(exist_ok=True)
    place.write_text("mine")
    record = json.loads((out / RECORD).read_text())
    record["files"][name] = hashlib.sha256(b"mine").hexdigest()
    (out / RECORD).write_text(json.dumps(record))
    assert run(["share", "wash", "--out", str(out), "--license", "mit", "--overwrite"]) == 0
    assert "removed, because it is not in this share: ink.pt, ink.safetensors\n" in capsys.readouterr().err
    assert place.read_text() == "mine"


def test_networks_of_one_name_are_refused_and_one_network_twice_is_one(
    library: hnetkit.Library, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    network_file(other, "INK.pt", seed=9)
    library.scan(other)
    with pytest.raises(UsageError, match="files of one name"):
        share(library, [str(networks_in(tmp_path) / "ink.pt"), str(other / "INK.pt")], tmp_path / "out", license="mit")
    assert not (tmp_path / "out").exists()
    again = str(networks_in(tmp_path) / "ink.pt")
    assert len(plan_share(library, [again, again], license="mit").networks) == 1


def test_a_file_that_changed_since_the_scan_is_not_shared(library: hnetkit.Library, tmp_path: Path) -> None:
    plan = plan_share(library, ["ink"], license="mit")
    shutil.copyfile(networks_in(tmp_path) / "wash.pt", networks_in(tmp_path) / "ink.pt")
    with pytest.raises(FileChanged, match="another network by now"):
        plan.write(tmp_path / "out")
    (networks_in(tmp_path) / "ink.pt").unlink()
    with pytest.raises(NotFound):
        plan.write(tmp_path / "out")
    assert names(tmp_path / "networks") == {"wash.pt"}
    assert sorted(os.listdir(tmp_path)) == ["networks"]


def test_an_unknown_license_is_asked_about(library: hnetkit.Library, tmp_path: Path, capsys: Capture) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(UsageError, match="no license is known of ink") as caught:
        share(library, ["ink"], out)
    assert caught.value.hint == "license=..., or agreed=True"
    assert run(["share", "ink", "--out", out]) == 2
    err = capsys.readouterr().err
    assert "No license is known of ink" in err
    assert "--license ID states one" in err
    assert not os.path.exists(out)
    assert run(["share", "ink", "--out", out, "--license", "MITT"]) == 2
    assert "Hint: --license mit" in capsys.readouterr().err
    assert run(["share", "ink", "--out", out, "-y"]) == 0
    assert "\nlicense: unknown\n" in Path(out, "README.md").read_text()


def test_a_dry_run_shows_what_there_would_be_and_writes_nothing(
    library: hnetkit.Library, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert run(["share", "ink", "--out", str(out), "--dry-run", "--json"]) == 0
    told = capsys.readouterr()
    rows = json.loads(told.out)
    assert [Path(row["path"]).name for row in rows] == ["ink.safetensors", "ink.pt", "README.md"]
    assert rows[-1]["card"].startswith("---\nlicense: unknown\n")
    assert "would be asked about: no license is known of ink" in told.err
    assert not out.exists()


def test_an_update_names_what_it_removes(library: hnetkit.Library, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    share(library, ["ink", "wash"], out, license="mit")
    words = ["share", "ink", "--out", str(out), "--license", "mit", "--overwrite"]
    assert run([*words, "--dry-run"]) == 0
    assert "would be removed: wash.pt, wash.safetensors\n" in capsys.readouterr().err
    assert "wash.pt" in names(out)
    assert run(words) == 0
    assert "removed, because it is not in this share: wash.pt, wash.safetensors\n" in capsys.readouterr().err
    assert "wash.pt" not in names(out)
    assert run(words) == 0
    assert "removed" not in capsys.readouterr().err


def test_an_update_keeps_the_last_files_of_a_network_and_names_them(
    library: hnetkit.Library, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    share(library, ["ink", "wash"], out, license="mit")
    library.scan(out)
    (networks_in(tmp_path) / "wash.pt").unlink()
    if os.name != "nt":
        (networks_in(tmp_path) / "link.pt").symlink_to(out / "wash.pt")
    library.scan()
    words = ["share", "ink", "--out", str(out), "--license", "mit", "--overwrite"]
    said = "no other file of the library holds what is in it: wash.pt, wash.safetensors\n"
    assert run([*words, "--dry-run"]) == 0
    assert f"would be kept, but not shared, because {said}" in capsys.readouterr().err
    assert run(words) == 0
    told = capsys.readouterr().err
    assert f"kept, but not shared, because {said}" in told
    assert "removed" not in told
    assert ShareFolder.read(out).others() == ["wash.pt", "wash.safetensors"]
    assert hnetkit.load(out / "wash.pt").content_hash == library.record("wash")["content_hash"]


@pytest.mark.parametrize("known_by", ["its tags", "its file"])
def test_an_update_does_not_replace_the_last_file_of_a_network_that_the_library_knows(
    library: hnetkit.Library, tmp_path: Path, capsys: Capture, known_by: str
) -> None:
    out = tmp_path / "out"
    share(library, ["ink"], out, license="mit")
    before = library.record("ink")["content_hash"]
    if known_by == "its file":
        library.scan(out)
    else:
        library.tag("ink", "the good one")
    path = networks_in(tmp_path) / "ink.pt"
    hnetkit.save(hnetkit.load(network_file(tmp_path, seed=50)), path, overwrite=True)
    library.scan()
    words = ["share", str(path), "--out", str(out), "--license", "mit", "--overwrite"]
    for command in ([*words, "--dry-run"], words):
        assert run(command) == 2
        assert "hnetkit scan" in capsys.readouterr().err
    assert {hnetkit.load(out / name).content_hash for name in ("ink.pt", "ink.safetensors")} == {before}
    for name in ("ink.pt", "ink.safetensors"):
        (out / name).rename(networks_in(tmp_path) / f"old {name}")
    library.scan()
    assert run(words) == 0
    assert hnetkit.load(out / "ink.pt").content_hash == hnetkit.load(path).content_hash


def test_an_update_removes_what_a_network_was_called_before(library: hnetkit.Library, tmp_path: Path) -> None:
    out = share(library, ["wash"], tmp_path / "out", license="mit").path
    (networks_in(tmp_path) / "wash.pt").rename(networks_in(tmp_path) / "mist.pt")
    library.scan()
    share(library, ["mist"], out, license="mit", overwrite=True)
    assert names(out) == {"README.md", RECORD, "mist.pt", "mist.safetensors"}


def test_the_command_lists_what_it_wrote(library: hnetkit.Library, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert run(["share", "ink", "--out", str(out), "--license", "cc-by-4.0", "--json"]) == 0
    rows = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {"README.md", "ink.pt", "ink.safetensors"}
    for name, row in rows.items():
        assert (row["sha256"], row["size_bytes"]) == (sha256(out / name), (out / name).stat().st_size)
    assert run(["share", "nobody", "--out", str(out)]) == 4
    assert run(["share", "--out", str(out)]) == 2
    assert run(["share", "ink", "--out", str(out), "--private"]) == 2
