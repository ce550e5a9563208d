"""Archives as they unpack: what is wrong with a member is that member's, and never more than one lies on the disk."""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support import networks
from support.fake_sites import Sites, World
from support.fetching import installed

from hnetkit.cli import run
from hnetkit.errors import DamagedFile, DiskFull, HnetkitError, UnsafeFile
from hnetkit.files import is_model_name
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
