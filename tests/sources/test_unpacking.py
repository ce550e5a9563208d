"""Archives as they unpack: what is wrong with a member is that member's, and never more than one lies on the disk."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from support import networks
from support.fake_sites import Sites, World
from support.fetching import installed

from hnetkit.cli import run
from hnetkit.errors import DamagedFile, DiskFull, HnetkitError, UnsafeFile
from hnetkit.files import is_model_name
from hnetkit.formats.open_file import OpenFile
from hnetkit.formats.torch_zip import listed_names, member_name
from hnetkit.registry.jobs import Job
from hnetkit.sources.archives import extract_models, holds_models
from hnetkit.sources.session import FetchSession

METHODS = {"stored": 0, "deflate": 8, "bzip2": 12, "lzma": 14}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytearray:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return bytearray(data.getvalue())


def directory_entry(data: bytes, name: str) -> int:
    return data.rindex(name.encode()) - 46


@pytest.fixture
def inks(tmp_path: Path) -> list[bytes]:
    return [networks.network_file(tmp_path, f"{n}.pt", seed=n).read_bytes() for n in range(3)]


@pytest.fixture
def archive(tmp_path: Path) -> Callable[[bytes], Path]:
    def written(data: bytes) -> Path:
        path = tmp_path / "nets.zip"
        path.write_bytes(data)
        return path

    return written


def found(path: Path) -> dict[str, bytes | HnetkitError]:
    members = extract_models(path, path.with_suffix(".unpacked"))
    return {name: member.read_bytes() if isinstance(member, Path) else member for name, member in members}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_damaged_member_is_named_and_those_around_it_are_unpacked(
    method: int, inks: list[bytes], archive: Callable[[bytes], Path]
) -> None:
    data = zipped({"day.pt": inks[0], "night.pt": inks[1], "dusk.pt": inks[2]}, method)
    begin, end = data.index(b"night.pt"), data.index(b"dusk.pt")
    data[begin + 60 : end - 40] = b"\xff" * (end - begin - 100)
    members = found(archive(bytes(data)))
    assert (members["day.pt"], members["dusk.pt"]) == (inks[0], inks[2])
    assert isinstance(members["night.pt"], DamagedFile)


@pytest.mark.parametrize(("field", "form", "value"), [(8, "<H", 1), (10, "<H", 99), (10, "<H", 93), (16, "<I", 1)])
def test_a_member_that_is_encrypted_or_packed_in_an_unknown_way_or_not_what_it_was_is_damaged(
    field: int, form: str, value: int, inks: list[bytes], archive: Callable[[bytes], Path]
) -> None:
    data = zipped({"day.pt": inks[0], "night.pt": inks[1]})
    struct.pack_into(form, data, directory_entry(data, "night.pt") + field, value)
    if field == 8 or field == 10:
        struct.pack_into(form, data, data.index(b"night.pt") - 30 + field - 2, value)
    members = found(archive(bytes(data)))
    assert members["day.pt"] == inks[0]
    assert isinstance(members["night.pt"], HnetkitError)


def test_members_that_lie_on_each_other_are_refused(archive: Callable[[bytes], Path]) -> None:
    data = zipped({"a.pt": b"x" * 9000, "b.pt": b"y" * 9000, "c.pt": b"z" * 9000})
    first = struct.unpack_from("<I", data, directory_entry(data, "a.pt") + 42)[0]
    for name in ("b.pt", "c.pt"):
        struct.pack_into("<I", data, directory_entry(data, name) + 42, first)
    cut = data.index(b"b.pt") - 30
    del data[cut : data.index(b"PK\1\2")]
    end = data.rindex(b"PK\5\6")
    struct.pack_into("<I", data, end + 16, cut)
    with pytest.raises(UnsafeFile, match="overlapping members"):
        found(archive(bytes(data)))


def test_all_members_together_have_a_most(archive: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hnetkit.sources.archives.MOST_UNPACKED", 100_000)
    with pytest.raises(UnsafeFile, match="members claim 120000"):
        found(archive(bytes(zipped({f"{n}.pt": bytes(40_000) for n in range(3)}))))


def test_a_list_of_very_many_members_is_refused_before_it_is_read(archive: Callable[[bytes], Path]) -> None:
    data = zipped({"a.pt": b"x"})
    begin, end = data.index(b"PK\1\2"), data.rindex(b"PK\5\6")
    many = 700_000
    directory = bytes(data[begin:end]) * many
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 0xFFFF, 0xFFFF, len(directory))
    path = archive(bytes(data[:begin]) + directory + bytes(tail))
    with pytest.raises(UnsafeFile, match="a directory of"):
        holds_models(path)
    struct.pack_into("<HHI", tail, 8, 2000, 2000, len(data[begin:end]) * 2000)
    with pytest.raises(UnsafeFile, match="2000 members"):
        holds_models(archive(bytes(data[:begin]) + bytes(data[begin:end]) * 2000 + bytes(tail)))


def test_one_member_lies_on_the_disk_at_a_time_and_none_afterwards(
    inks: list[bytes], archive: Callable[[bytes], Path]
) -> None:
    path = archive(bytes(zipped({"a.pt": inks[0], "b/../../c.pt": inks[1], "C:\\d.pt": inks[2]})))
    folder = path.with_suffix(".unpacked")
    for _, member in extract_models(path, folder):
        assert list(folder.iterdir()) == [member]
    assert not folder.exists()
    assert sorted(file.name for file in path.parent.iterdir()) == ["0.pt", "1.pt", "2.pt", "nets.zip"]


def test_without_room_for_a_member_nothing_is_unpacked(
    inks: list[bytes], archive: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.archives._MARGIN", 1e12)
    with pytest.raises(DiskFull, match="no room to unpack"):
        found(archive(bytes(zipped({"a.pt": inks[0]}))))


def test_an_archive_inside_of_an_archive_is_named_and_not_opened(
    inks: list[bytes], archive: Callable[[bytes], Path]
) -> None:
    inner = bytes(zipped({"b.pt": inks[1]}))
    members = found(archive(bytes(zipped({"a.pt": inks[0], "more/inner.zip": inner, "x.7z": b"7z"}))))
    assert members["a.pt"] == inks[0]
    assert "not opened" in str(members["more/inner.zip"])
    assert "not opened" in str(members["x.7z"])
    assert holds_models(archive(bytes(zipped({"inner.zip": inner}))))


# --- and what a person is told


def pulled(session: FetchSession, data: bytes) -> Job:
    with Sites(World.make(1), repos={"a/b": {"nets.zip": data}}) as sites:
        url = f"{sites.hub_url}/a/b/resolve/main/nets.zip"
        (job,) = session.pull(url, sha256=hashlib.sha256(data).hexdigest())
    return job


def test_a_network_that_is_damaged_in_an_archive_is_named_and_the_archive_kept(
    inks: list[bytes], here: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    data = zipped({"day.pt": inks[0], "night.pt": inks[1]}, zipfile.ZIP_LZMA)
    begin, end = data.index(b"night.pt"), data.index(b"PK\1\2")
    data[begin + 60 : end - 40] = b"\xff" * (end - begin - 100)
    with Sites(World.make(1), repos={"a/b": {"nets.zip": bytes(data)}}) as sites:
        url = f"{sites.hub_url}/a/b/resolve/main/nets.zip"
        assert run(["pull", url, "--sha256", hashlib.sha256(data).hexdigest()]) == 1
    (job,) = here.registry.jobs.rows()
    assert (job.state, job.code) == ("done", "partly")
    assert "night.pt: damaged" in str(job.reason)
    assert [path.name for path in installed(here).values()] == ["day.pt"]
    (kept,) = (here.folder / ".quarantine").glob("*.bad")
    assert kept.read_bytes() == data
    said = capsys.readouterr()
    assert "day.pt" in said.out
    assert "night.pt: damaged" in said.out
    assert ".quarantine" in said.err


def test_an_archive_of_nothing_but_damage_is_refused_and_says_what_was_in_it(
    inks: list[bytes], here: FetchSession
) -> None:
    data = zipped({"night.pt": inks[1]}, zipfile.ZIP_BZIP2)
    begin, end = data.index(b"night.pt"), data.index(b"PK\1\2")
    data[begin + 60 : end - 40] = b"\xff" * (end - begin - 100)
    job = pulled(here, bytes(data))
    assert (job.state, job.code) == ("refused", "wrong-bytes")
    assert "night.pt: damaged" in str(job.reason)


def test_a_member_that_claims_too_much_costs_those_around_it_nothing(
    inks: list[bytes], archive: Callable[[bytes], Path]
) -> None:
    data = zipped({"day.pt": inks[0], "zeros.pt": bytes(30_000_000), "more.zip": bytes(3000)}, zipfile.ZIP_DEFLATED)
    members = found(archive(bytes(data)))
    assert members["day.pt"] == inks[0]
    assert isinstance(members["zeros.pt"], UnsafeFile)


def test_what_was_not_examined_has_no_name_that_a_program_loads(
    inks: list[bytes], archive: Callable[[bytes], Path]
) -> None:
    path = archive(bytes(zipped({"day.pt": inks[0]})))
    for _, member in extract_models(path, path.with_suffix(".unpacked")):
        assert isinstance(member, Path)
        assert not is_model_name(member.name)


def test_a_network_that_the_site_calls_an_archive_gets_a_suffix_that_programs_look_for(
    inks: list[bytes], here: FetchSession
) -> None:
    assert pulled(here, inks[0]).state == "done"
    (path,) = installed(here).values()
    assert (path.name, path.read_bytes()) == ("nets.pt", inks[0])


# --- names as their packers meant them

UNICODE_PATH = 0x7075


def member_named(raw: bytes, *, flags: int = 0, extra: bytes = b"") -> bytes:
    """A zip with one member, of which the directory and the header have these bytes for a name."""
    content, size = b"weights", len(b"weights")
    fields = (zlib.crc32(content), size, size, len(raw), len(extra))
    header = struct.pack("<4s5H3L2H", b"PK\3\4", 20, flags, 0, 0, 0, *fields) + raw + extra
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, flags, 0, 0, 0, *fields, 0, 0, 0, 0, 0) + raw + extra
    start = len(header) + size
    return header + content + entry + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), start, 0)


def unicode_path(raw: bytes, name: str) -> bytes:
    field = struct.pack("<BL", 1, zlib.crc32(raw)) + name.encode()
    return struct.pack("<2H", UNICODE_PATH, len(field)) + field


NAMES = {
    "flagged as UTF-8": ("墨絵.pt".encode(), 0x800, b"", "墨絵.pt"),
    "UTF-8 without the flag": ("墨絵.pt".encode(), 0, b"", "墨絵.pt"),
    "a Unicode path": (b"????.pt", 0, unicode_path(b"????.pt", "墨絵.pt"), "墨絵.pt"),
    "the Unicode path of an older name": (b"new.pt", 0, unicode_path(b"old.pt", "墨絵.pt"), "new.pt"),
    "kanji": ("墨絵.pt".encode("cp932"), 0, b"", "墨絵.pt"),
    "one kanji": ("墨.pt".encode("cp932"), 0, b"", "墨.pt"),
    "one kanji behind a sign": ("ink_墨.pt".encode("cp932"), 0, b"", "ink_墨.pt"),
    "a backslash in a kanji": ("表現.pt".encode("cp932"), 0, b"", "表現.pt"),
    "kana": ("ペンとインク.pt".encode("cp932"), 0, b"", "ペンとインク.pt"),
    "narrow kana": ("ｲﾝｸ.pt".encode("cp932"), 0, b"", "ｲﾝｸ.pt"),
    "in a folder": ("画風/ink.pt".encode("cp932"), 0, b"", "画風/ink.pt"),
    "French": ("été à la plage.pt".encode("cp437"), 0, b"", "été à la plage.pt"),
    "one umlaut": ("König.pt".encode("cp437"), 0, b"", "König.pt"),
    "Spanish": ("España.pt".encode("cp437"), 0, b"", "España.pt"),
    "nothing but ASCII": (b"ink.pt", 0, b"", "ink.pt"),
}


@pytest.mark.parametrize(("raw", "flags", "extra", "name"), NAMES.values(), ids=NAMES)
def test_a_member_has_the_name_that_its_packer_meant(
    raw: bytes, flags: int, extra: bytes, name: str, archive: Callable[[bytes], Path]
) -> None:
    path = archive(member_named(raw, flags=flags, extra=extra))
    assert found(path) == {name: b"weights"}
    with OpenFile(path) as file:
        assert listed_names(file) == [name]


@pytest.mark.parametrize("length", range(15))
def test_a_unicode_path_that_is_cut_short_says_nothing(length: int) -> None:
    field = unicode_path(b"new.pt", "墨絵")
    assert (member_name(b"new.pt", 0, field[:length]), member_name(b"new.pt", 0, field)) == ("new.pt", "墨絵")


def test_a_network_with_a_japanese_name_is_installed_under_it(inks: list[bytes], here: FetchSession) -> None:
    data = zipped({"xxxx.pt": inks[0]})
    assert pulled(here, bytes(data).replace(b"xxxx.pt", "墨絵.pt".encode("cp932"))).state == "done"
    assert [path.name for path in installed(here).values()] == ["墨絵.pt"]


# --- archives of other kinds


def tarred(content: bytes, *, magic: bool = True) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        member = tarfile.TarInfo("ink.pt")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    made = bytearray(data.getvalue())
    if not magic:  # as tar was before POSIX
        made[257:265] = bytes(8)
        made[148:156] = b" " * 8
        made[148:156] = b"%06o\0 " % sum(made[:512])
    return bytes(made)


OTHER_KINDS = {
    "rar": (b"Rar!\x1a\x07\1\0" + bytes(range(256)), "a RAR archive", ".rar"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(range(256)), "a 7-Zip archive", ".7z"),
    "tar": (tarred(b"weights"), "a tar archive", ".tar"),
    "old tar": (tarred(b"weights", magic=False), "a tar archive", ".tar"),
    "tar.gz": (gzip.compress(tarred(b"weights")), "a tar archive packed with gzip", ".tar.gz"),
    "gz": (gzip.compress(b"weights"), "a file packed with gzip", ".gz"),
    "damaged gz": (b"\x1f\x8b\x08\0" + bytes(range(256)), "a file packed with gzip", ".gz"),
    "bz2": (bz2.compress(b"weights"), "a file packed with bzip2", ".bz2"),
    "xz": (lzma.compress(b"weights"), "a file packed with xz", ".xz"),
}


@pytest.mark.parametrize("called", ["ink_v10{}", "ink_v10.pt", "ink_v10.zip"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_another_archive_is_named_and_kept_as_what_it_is_with_what_to_do(
    kind: str, called: str, here: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    data, title, suffix = OTHER_KINDS[kind]
    name = called.format(suffix)
    with Sites(World.make(1), repos={"a/b": {name: data}}) as sites:
        url = f"{sites.hub_url}/a/b/resolve/main/{name}"
        assert run(["pull", url, "--sha256", hashlib.sha256(data).hexdigest()]) == 7
    told = capsys.readouterr()
    assert title in told.err + told.out
    assert "extract it" in told.err
    assert "hnetkit scan FOLDER" in told.err
    (kept,) = (here.folder / ".quarantine").glob("*.bad")
    assert kept.name == f"ink_v10{suffix}.bad"
    assert kept.read_bytes() == data


def test_inspect_names_the_kind_of_an_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ink.pt").write_bytes(OTHER_KINDS["rar"][0])
    run(["inspect", str(tmp_path / "ink.pt")])
    assert "a RAR archive" in capsys.readouterr().out


# --- what lies beside a network in an archive


PNG, OTHER_PNG = b"\x89PNG\r\n\x1a\n and pixels", b"\x89PNG\r\n\x1a\n and others"
JPEG = b"\xff\xd8\xff\xe0 and pixels"
INFO = json.dumps({"id": 5, "modelId": 4, "name": "v1", "trainedWords": ["wash"]}).encode()
NOTES = json.dumps({"activation text": "wash", "notes": "mine"}).encode()


def files_of(session: FetchSession) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in session.folder.iterdir() if path.is_file()}


def test_what_belongs_to_a_network_in_an_archive_goes_beside_it(inks: list[bytes], here: FetchSession) -> None:
    members = {
        "style/ink.pt": inks[0],
        "style/Ink.PREVIEW.png": PNG,
        "style/ink.civitai.info": INFO,
        "style/ink.json": NOTES,
        "style/ink.txt": b"a wash of ink",
        "__MACOSX/style/._ink.pt": b"junk",
        "style/.DS_Store": b"junk",
    }
    job = pulled(here, bytes(zipped(members)))
    assert (job.state, job.code, job.reason) == ("done", None, None)
    assert files_of(here) == {
        "ink.pt": inks[0],
        "ink.preview.png": PNG,
        "ink.civitai.info": INFO,
        "ink.json": NOTES,
        "ink.txt": b"a wash of ink",
    }
    assert not (here.folder / ".quarantine").exists()
    (row,) = here.registry.files.rows()
    (said,) = here.registry.files.sidecars([row["id"]]).values()
    assert said["preview"] == str(here.folder / "ink.preview.png")
    assert said["activation_text"] == "wash"
    kinds = {Path(row["path"]).name: row["kind"] for row in here.registry.jobs.installs()}
    assert (kinds["ink.json"], kinds["ink.preview.png"]) == ("sidecar", "preview")


def test_each_of_two_networks_gets_its_own(inks: list[bytes], here: FetchSession) -> None:
    members = {"a/ink.pt": inks[0], "a/ink.png": PNG, "b/ink.pt": inks[1], "b/ink.png": OTHER_PNG, "b/x.png": PNG}
    job = pulled(here, bytes(zipped(members)))
    assert job.code == "unpacked"
    assert "b/x.png" in str(job.reason)
    first, second = (installed(here)[hashlib.sha256(ink).hexdigest()] for ink in inks[:2])
    assert first.with_suffix(".png").read_bytes() == PNG
    assert second.with_suffix(".png").read_bytes() == OTHER_PNG


def test_the_only_picture_beside_the_only_network_is_its_preview_and_that_is_said(
    inks: list[bytes], here: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytes(zipped({"ink.pt": inks[0], "samples/cat.jpg": JPEG}))
    with Sites(World.make(1), repos={"a/b": {"nets.zip": data}}) as sites:
        url = f"{sites.hub_url}/a/b/resolve/main/nets.zip"
        assert run(["pull", url, "--sha256", hashlib.sha256(data).hexdigest()]) == 0
    assert files_of(here) == {"ink.pt": inks[0], "ink.preview.jpg": JPEG}
    assert "its preview is samples/cat.jpg, the only picture in the archive" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more",
    [
        {"cat.png": PNG, "dog.png": OTHER_PNG},
        {"cat.png": PNG, "ink.png": OTHER_PNG},
        {"cat.png": PNG, "night.pt": b"no network"},
        {"cat.png": b"no picture"},
        {"cat.png": PNG[:8] + bytes(17 << 20)},
    ],
    ids=["two pictures", "a preview by name", "two models", "no picture", "too large"],
)
def test_any_other_picture_stays_in_the_archive_which_is_kept(
    more: dict[str, bytes], inks: list[bytes], here: FetchSession
) -> None:
    data = bytes(zipped({"ink.pt": inks[0], **more}))
    job = pulled(here, data)
    assert (job.state, job.code) == ("done", "unpacked")
    assert "left in the archive (kept in .quarantine): " in str(job.reason)
    assert "cat.png" in str(job.reason)
    assert set(files_of(here)) == {"ink.pt", *({"ink.png"} & more.keys())}
    assert (here.folder / ".quarantine" / "nets.zip.bad").read_bytes() == data


NO_SIDECARS = {
    "another program's JSON": ("ink.json", b'{"architectures": ["UNet"]}'),
    "no JSON": ("ink.civitai.info", b"{"),
    "a list": ("ink.metadata.json", b"[]"),
    "no text": ("ink.txt", b"\0\1\2"),
    "a web page as a picture": ("ink.png", b"<html>"),
}


@pytest.mark.parametrize(("name", "content"), NO_SIDECARS.values(), ids=NO_SIDECARS)
def test_what_only_has_the_name_of_a_sidecar_stays_in_the_archive(
    name: str, content: bytes, inks: list[bytes], here: FetchSession
) -> None:
    job = pulled(here, bytes(zipped({"ink.pt": inks[0], name: content})))
    assert f"{name}: " in str(job.reason)
    assert set(files_of(here)) == {"ink.pt"}


def test_a_file_that_is_there_is_not_replaced_by_one_of_an_archive(inks: list[bytes], here: FetchSession) -> None:
    here.folder.mkdir(parents=True, exist_ok=True)
    (here.folder / "ink.pt").write_bytes(inks[0])
    (here.folder / "ink.png").write_bytes(OTHER_PNG)
    (here.folder / "ink.txt").write_bytes(b"the same")
    job = pulled(here, bytes(zipped({"ink.pt": inks[0], "ink.png": PNG, "ink.txt": b"the same"})))
    assert "ink.png: the file exists" in str(job.reason)
    assert "ink.txt" not in str(job.reason)
    assert (here.folder / "ink.png").read_bytes() == OTHER_PNG


def test_a_damaged_sidecar_is_named_and_costs_the_network_nothing(inks: list[bytes], here: FetchSession) -> None:
    data = zipped({"ink.pt": inks[0], "ink.txt": b"a wash of ink"})
    at = data.index(b"a wash")
    data[at : at + 6] = b"------"
    job = pulled(here, bytes(data))
    assert (job.state, job.code) == ("done", "unpacked")
    assert "ink.txt: damaged" in str(job.reason)
    assert set(files_of(here)) == {"ink.pt"}


def test_one_name_twice_is_two_networks(inks: list[bytes], here: FetchSession) -> None:
    data = bytes(zipped({"ink.pt": inks[0], "ini.pt": inks[1]})).replace(b"ini.pt", b"ink.pt")
    assert pulled(here, data).state == "done"
    assert {path.read_bytes() for path in installed(here).values()} == set(inks[:2])


def test_a_network_twice_in_an_archive_is_one_file(inks: list[bytes], here: FetchSession) -> None:
    assert pulled(here, bytes(zipped({"a/ink.pt": inks[0], "b/ink.pt": inks[0]}))).state == "done"
    assert set(files_of(here)) == {"ink.pt"}
