"""A library carried to another machine by its records alone: known by its names there, and fetched by `repair`."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import networks
from support.fake_sites import Fault, Sites, World
from support.fast_clock import FastClock
from support.fetching import EVERYTHING, installed
from support.registry_rows import row

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import NotFound, OutputExists, UsageError
from hnetkit.library.library import Library
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.export import export_library, import_library, import_records
from hnetkit.sources.huggingface import Repo, file_url
from hnetkit.sources.session import FetchSession

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def elsewhere(
    site: Sites, here: FetchSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], FetchSession]]:
    """Exports the library as it is, and imports it on a machine that has nothing; the old one is gone."""
    opened: list[Library] = []

    def moved() -> FetchSession:
        export_library(here.library, tmp_path / "library.jsonl", overwrite=True)
        home = tmp_path / f"new{len(opened)}"
        opened.append(Library(home))
        import_library(opened[-1], tmp_path / "library.jsonl")
        monkeypatch.setenv("HNETKIT_HOME", str(home))
        shutil.rmtree(here.folder, ignore_errors=True)
        return FetchSession(opened[-1], clock=here.clock, site=here.civitai)

    yield moved
    for library in opened:
        library.close()


def shas(session: FetchSession) -> dict[str, str]:
    """Stem -> sha256 of every network in the library's folder."""
    return {
        path.stem: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in session.folder.iterdir()
        if path.suffix in (".pt", ".safetensors")
    }


def test_an_export_that_a_link_leads_to_is_replaced_and_the_link_stays(here: FetchSession, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    export_library(here.library, tmp_path / "disk" / "backup.jsonl")
    (tmp_path / "library.jsonl").symlink_to(tmp_path / "disk" / "backup.jsonl")
    here.sync(EVERYTHING)
    count = export_library(here.library, tmp_path / "library.jsonl", overwrite=True)
    assert (tmp_path / "library.jsonl").is_symlink()
    assert len((tmp_path / "disk" / "backup.jsonl").read_bytes().splitlines()) == count + 1 > 2


def test_an_export_of_an_empty_library_replaces_none_that_has_records(tmp_path: Path) -> None:
    (tmp_path / "networks").mkdir()
    networks.network_file(tmp_path / "networks", "ink.pt")
    path = tmp_path / "library.jsonl"
    with Library(tmp_path / "home") as full, Library(tmp_path / "other") as empty:
        full.scan(tmp_path / "networks")
        assert export_library(empty, path) == 0
        assert export_library(empty, path, overwrite=True) == 0
        assert export_library(full, path, overwrite=True) == 1
        before = path.read_bytes()
        with pytest.raises(OutputExists, match=r"the library is empty, as .*other"):
            export_library(empty, path, overwrite=True)
    assert path.read_bytes() == before


def test_what_civitai_has_comes_back_byte_for_byte_under_the_names_it_had_with_all_words(
    here: FetchSession, elsewhere: Callable[[], FetchSession]
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    first, *_ = sorted(installed(here).values())
    first.rename(first.with_name("my ink (best).pt"))
    here.library.scan()
    here.library.tag("my ink (best)", "precious", alias="lines", note="at 0.6")
    before = shas(here)
    there = elsewhere()
    assert {known["name"] for known in there.library.networks()} == set(before)
    assert not there.folder.exists()
    assert {result.state for result in there.repair()} == {"done"}
    assert shas(there) == before
    known = there.library.record("my ink (best)")
    assert (known["tags"], known["aliases"], known["note"]) == (["precious"], ["lines"], "at 0.6")
    assert there.library.find("lines").stem == "my ink (best)"
    assert there.repair() == []


def test_sync_gives_them_their_names_too(here: FetchSession, elsewhere: Callable[[], FetchSession]) -> None:
    here.sync(EVERYTHING, all_versions=True)
    first, *_ = sorted(installed(here).values())
    first.rename(first.with_name("ink.pt"))
    here.library.scan()
    before = shas(here)
    there = elsewhere()
    there.sync(EVERYTHING, all_versions=True)
    assert shas(there) == before


def test_no_site_is_asked_for_more_than_the_files(
    site: Sites, here: FetchSession, elsewhere: Callable[[], FetchSession]
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    there = elsewhere()
    site.clear()
    there.repair()
    assert {request.path.split("/")[2] for request in site.requests if request.origin == "api"} == {"download"}


def test_another_content_than_was_there_is_not_installed(
    site: Sites, here: FetchSession, elsewhere: Callable[[], FetchSession]
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    there = elsewhere()
    for _, _, file in list(site.world.files()):
        site.world.replace_file(file["id"])
    results = there.repair()
    assert {result.state for result in results} == {"failed"}
    assert all("you asked for" in str(result.reason) for result in results)
    assert list(there.folder.glob("*.pt")) == []


def test_what_failed_is_fetched_by_the_next_repair(
    site: Sites, here: FetchSession, elsewhere: Callable[[], FetchSession]
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    before = shas(here)
    there = elsewhere()
    site.faults.add(Fault("N", "api", times=1, status=410))
    assert sorted({result.state for result in there.repair()}) == ["done", "failed"]
    assert {result.state for result in there.repair()} == {"done"}
    assert shas(there) == before


def test_a_converted_network_comes_as_what_it_was_converted_from(
    here: FetchSession, elsewhere: Callable[[], FetchSession]
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    original, *_ = sorted(installed(here).values())
    hnetkit.save(hnetkit.load(original), here.folder / "own words.safetensors")
    content = hnetkit.load(original).content_hash
    original.unlink()
    here.library.scan()
    here.library.forget(missing=True)
    there = elsewhere()
    assert {result.state for result in there.repair()} == {"done"}
    assert hnetkit.load(there.library.find("own words")).content_hash == content


def test_the_networks_of_an_archive_come_under_the_names_that_they_had(
    open_session: Callable[..., FetchSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for seed in (3, 4):
            packed.write(networks.network_file(tmp_path, f"{seed}.pt", seed=seed), f"{seed}.pt")
    with Sites(World.make(1), repos={"a/b": {"nets.zip": archive.getvalue()}}) as sites:
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        session = open_session(sites)
        assert [result.state for result in session.pull("hf:a/b:nets.zip")] == ["done"]
        (session.folder / "3.pt").rename(session.folder / "ink.pt")
        session.library.scan()
        before = shas(session)
        export_library(session.library, tmp_path / "library.jsonl")
        with Library(tmp_path / "new") as library:
            import_library(library, tmp_path / "library.jsonl")
            there = FetchSession(library, clock=session.clock, site=session.civitai)
            assert [result.state for result in there.repair()] == ["done"]
            assert shas(there) == before == {"ink": before["ink"], "4": before["4"]}


def test_a_local_file_is_listed_as_unknown_once_and_is_known_until_it_is_here(
    here: FetchSession, elsewhere: Callable[[], FetchSession], tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    own = networks.network_file(tmp_path / "mine", "own.pt", seed=7)
    shutil.copy(own, tmp_path / "mine" / "copy of own.pt")
    here.library.scan(tmp_path / "mine")
    there = elsewhere()
    (result,) = there.repair()
    assert (result.state, result.name, result.is_failed) == ("unknown", "copy of own.pt", False)
    for name in ("own", "copy of own"):
        assert there.library.record(name)["present"] is False
    there.library.scan(tmp_path / "mine")
    assert there.repair() == []
    assert there.library.find("own") == own


def test_a_file_that_is_here_keeps_its_name(
    here: FetchSession, elsewhere: Callable[[], FetchSession], tmp_path: Path
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    first, *_ = sorted(installed(here).values())
    taken, sha256 = first.stem, shas(here)[first.stem]
    there = elsewhere()
    there.folder.mkdir()
    other = networks.network_file(there.folder, f"{taken}.pt", seed=8)
    there.library.scan(there.folder)
    assert there.library.find(taken) == other
    there.repair()
    assert there.library.find(taken) == other
    assert sha256 in shas(there).values()


def test_what_comes_from_the_hub_and_from_an_address_comes_again(
    open_session: Callable[..., FetchSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = networks.network_file(tmp_path, "a.pt", seed=3).read_bytes()
    with Sites(World.make(1), repos={"someone/nets": {"deep/ink [v2].pt": data, "README.md": b"x"}}) as sites:
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        session = open_session(sites)
        assert [result.state for result in session.pull("hf:someone/nets")] == ["done"]
        before = shas(session)
        export_library(session.library, tmp_path / "library.jsonl")
        sites.hub.commit("someone/nets", {"other.pt": b"gone"})
        with Library(tmp_path / "new") as library:
            import_library(library, tmp_path / "library.jsonl")
            there = FetchSession(library, clock=session.clock, site=session.civitai)
            (known,) = library.networks()
            assert known["imported"][0]["reference"].startswith("hf:someone/nets@")
            sites.clear()
            assert [result.state for result in there.repair()] == ["done"]
            assert not any("/api/" in request.path for request in sites.requests)
            assert shas(there) == before
            (site_row,) = library.record(known["name"])["sites"]
            assert site_row["model"] == "someone/nets"


def test_an_export_of_before_is_imported_and_fetched_by_the_hashes_that_it_has(
    here: FetchSession, tmp_path: Path
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    export_library(here.library, tmp_path / "library.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "library.jsonl").read_text().splitlines()]
    old = [{key: value for key, value in line.items() if key != "files"} for line in lines]
    (tmp_path / "old.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in old))
    with Library(tmp_path / "new") as library:
        found = import_library(library, tmp_path / "old.jsonl")
        assert (found.failures, found.without_source) == ((), 0)
        there = FetchSession(library, clock=here.clock, site=here.civitai)
        assert {result.state for result in there.repair()} == {"done"}
        assert sorted(shas(there).values()) == sorted(shas(here).values())


def test_an_export_of_what_an_import_told_tells_the_same(here: FetchSession, tmp_path: Path) -> None:
    here.sync(EVERYTHING, all_versions=True)
    export_library(here.library, tmp_path / "first.jsonl")
    with Library(tmp_path / "new") as library:
        import_library(library, tmp_path / "first.jsonl")
        export_library(library, tmp_path / "second.jsonl")
    assert (tmp_path / "second.jsonl").read_text() == (tmp_path / "first.jsonl").read_text()


@pytest.mark.parametrize(
    "reference",
    [
        *("model:5", "https://civitai.com/models/5", "hf:a/b", "hf:a/b@main:x.pt", "../x", "x" * 4000),
        *("http://example.org/x.pt", "https://10.0.0.1/x.pt", "file:///etc/passwd"),
        f"hf:owner/repo@{'a' * 40}:../../../../settings/x.pt",
    ],
)
def test_a_reference_to_no_single_file_of_a_site_is_that_networks_failure(
    here: FetchSession, tmp_path: Path, reference: str
) -> None:
    told: list[dict[str, Any]] = [
        {"name": "../../evil.pt", "sha256": "a" * 64, "reference": reference, "reference_sha256": "a" * 64}
    ]
    lines = [{"kind": "hnetkit", "version": 1}, {**row(1), "kind": "network", "files": told}]
    (tmp_path / "library.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    import_library(here.library, tmp_path / "library.jsonl")
    (result,) = here.repair()
    assert result.is_failed
    assert not here.folder.exists() or list(here.folder.rglob("*.pt")) == []


def test_a_file_of_a_repository_that_leads_out_of_it_is_not_taken_in(here: FetchSession, tmp_path: Path) -> None:
    told = {"commit": "a" * 40, "sha256": "a" * 64, "size_bytes": 5}
    record = {"kind": "model", "source": "huggingface", "raw": {"id": "owner/repo", "sha": "a" * 40}}
    paths = ["../../../../settings/x.pt", "a/../x.pt", "/x.pt", "a//x.pt", "./x.pt"]
    lines = [{"kind": "hnetkit", "version": 1}, *(record | {"files": [told | {"path": path}]} for path in paths)]
    (tmp_path / "library.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert import_library(here.library, tmp_path / "library.jsonl").failed == len(paths)
    for path in paths:
        with pytest.raises(UsageError, match="not the path"):
            file_url(Repo("owner/repo", "a" * 40, (), None), path)


@pytest.mark.parametrize("key", ["name", "autov1", "reference"])
def test_half_a_letter_in_what_an_import_tells_of_a_file_is_met_as_everywhere(
    here: FetchSession, tmp_path: Path, key: str
) -> None:
    told = {"name": "a.pt", "sha256": "a" * 64, key: "\ud83d.pt"}
    lines = [{"kind": "hnetkit", "version": 1}, {**row(1), "kind": "network", "files": [told]}]
    (tmp_path / "library.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    report = import_library(here.library, tmp_path / "library.jsonl")
    assert (report.failed, report.counts) == (0, {"network": 1})


def test_an_address_of_ones_own_machine_is_not_asked_because_an_import_names_it(
    home: Path, tmp_path: Path, site: Sites
) -> None:
    """A service of this machine may do what its address says."""
    data = networks.network_file(tmp_path, "a.pt", seed=3).read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    address = f"{site.stranger_url}/shut-down"
    told = [{"name": "a.pt", "sha256": sha256, "reference": address, "reference_sha256": sha256}]
    lines = [{"kind": "hnetkit", "version": 1}, {**row(1), "kind": "network", "files": told}]
    (tmp_path / "library.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with Library(home) as library:
        import_library(library, tmp_path / "library.jsonl")
        (result,) = FetchSession(library, clock=FastClock(), site=Civitai(FastClock())).repair()
    assert result.is_failed
    assert "an import names it" in str(result.reason)
    assert site.requests == []


def test_a_name_from_an_import_leads_out_of_no_folder(
    here: FetchSession, elsewhere: Callable[[], FetchSession], tmp_path: Path
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    export_library(here.library, tmp_path / "library.jsonl")
    text = (tmp_path / "library.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for number, line in enumerate(lines):
        for file in line.get("files") or ():
            file["name"] = f"..\\..\\out{number}:<x>.pt"
    (tmp_path / "odd.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with Library(tmp_path / "new") as library:
        import_library(library, tmp_path / "odd.jsonl")
        there = FetchSession(library, clock=here.clock, site=here.civitai)
        assert {result.state for result in there.repair()} == {"done"}
        assert all(set(stem).isdisjoint("\\:<>/") and not stem.startswith(".") for stem in shas(there))


def test_commands_and_prompts_name_what_is_not_here_with_the_next_step(
    here: FetchSession, elsewhere: Callable[[], FetchSession], capsys: Capture
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    first, *_ = sorted(installed(here).values())
    first.rename(first.with_name("ink.pt"))
    here.library.scan()
    sha256 = shas(here)["ink"]
    here.library.tag("ink", alias="lines")
    there = elsewhere()
    capsys.readouterr()
    for name in ("ink", "lines", sha256[:10], f"ink@{sha256[:10]}"):
        assert run(["show", name]) == 0
        assert "not here       ink.pt; hnetkit repair fetches it" in capsys.readouterr().out
        with pytest.raises(NotFound, match="in no file of the library") as caught:
            there.library.find(name)
        assert caught.value.command_hint == "hnetkit repair fetches it"
    assert run(["show", "lnk"]) == 4
    assert "did you mean ink?" in capsys.readouterr().err
    title = there.library.record("ink")["title"]
    assert title is not None
    assert there.library.search(title)[0]["title"] == title
    assert [known["name"] for known in there.library.search("ink")] == ["ink"]
    assert run(["repair", "--dry-run"]) == 0
    assert "missing  ink.pt  (from https://civitai.com/api/download/models/" in capsys.readouterr().out


def test_an_import_says_how_many_are_not_here_and_what_fetches_them(
    here: FetchSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    (tmp_path / "mine").mkdir()
    networks.network_file(tmp_path / "mine", "own.pt", seed=7)
    here.library.scan(tmp_path / "mine")
    count = len(here.library.networks())
    export_library(here.library, tmp_path / "library.jsonl")
    monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "new"))
    assert run(["import", str(tmp_path / "library.jsonl")]) == 0
    said = capsys.readouterr().err
    assert f"{count - 1} networks not here yet; hnetkit repair fetches them" in said
    assert "no source is known of 1 network not here" in said
    assert run(["list"]) == 0
    assert "own " in capsys.readouterr().out


def test_an_interrupted_import_keeps_what_it_took_in_and_the_same_import_takes_in_the_rest(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.export.STEP_S", 0.0)
    head = json.dumps({"kind": "hnetkit", "version": 1})
    lines = [head, *(json.dumps({**row(number), "kind": "network"}) for number in range(20))]

    def interrupted() -> Iterator[str]:
        yield from lines[:11]
        raise KeyboardInterrupt

    with Library(home) as library:
        with pytest.raises(KeyboardInterrupt):
            import_records(library.registry, interrupted())
        assert len(library.networks()) == 10
        assert dict(import_records(library.registry, lines).counts) == {"network": 20}
        assert len(library.networks()) == 20


def test_an_import_tells_how_far_it_is(here: FetchSession, tmp_path: Path) -> None:
    here.sync(EVERYTHING, all_versions=True)
    path = tmp_path / "library.jsonl"
    export_library(here.library, path)
    told: list[tuple[int, int]] = []
    with Library(tmp_path / "new") as library:
        import_library(library, path, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (path.stat().st_size, path.stat().st_size)
    assert len(told) == len(path.read_text().splitlines())


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """An export of two networks of one's own, with words."""
    (tmp_path / "own").mkdir()
    networks.network_file(tmp_path / "own", "ink.pt", seed=1)
    networks.network_file(tmp_path / "own", "pen.pt", seed=2)
    with Library(tmp_path / "old") as library:
        library.scan(tmp_path / "own")
        library.tag("ink", "lines", alias="thin", note="best at 0.6")
        library.registry.subscriptions.put("mine", {"query": "ink"})
        export_library(library, tmp_path / "own.jsonl")
    return tmp_path / "own.jsonl"


def test_a_note_and_filters_that_are_others_here_stay_and_those_of_the_export_are_said(
    exported: Path, home: Path, capsys: Capture
) -> None:
    assert run(["import", str(exported)]) == 0
    assert run(["import", str(exported)]) == 0
    assert run(["tag", "ink", "--note", "too thin"]) == 0
    with Library(home) as library:
        library.registry.subscriptions.put("mine", {"query": "pen"})
        before = library.record("ink")
    capsys.readouterr()
    assert run(["import", str(exported)]) == 1
    said = capsys.readouterr().err
    assert "the note of ink, which has another one here: best at 0.6" in said
    assert 'the filters mine, which are others here: {"query": "ink"}' in said
    with Library(home) as library:
        assert library.record("ink") == before
        assert [row["filters"] for row in library.registry.subscriptions.rows()] == [{"query": "pen"}]


@pytest.mark.parametrize("how", ["cut at a line", "two, the first cut", "a line taken out", "to standard output"])
def test_an_export_that_lacks_records_says_so_and_gives_what_it_has(
    how: str, exported: Path, home: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "to standard output":
        monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / "old"))
        assert run(["export", "-"]) == 0
        exported.write_text(capsys.readouterr().out)
        monkeypatch.setenv("HNETKIT_HOME", str(home))
    lines = exported.read_text().splitlines(keepends=True)
    kept = lines[:2] + lines if how == "two, the first cut" else [*lines[:2], *lines[3:][: how == "a line taken out"]]
    exported.write_text("".join(kept))
    assert run(["import", str(exported)]) == 1
    said = capsys.readouterr().err
    assert f"the export ends after {2 if 'taken' in how else 1} of its 3 records" in said
    assert run(["show", "ink"]) == 0


@pytest.mark.parametrize("how", ["of before, without a count", "two in one file", "of before and of today"])
def test_an_export_that_lacks_nothing_is_not_suspected(how: str, exported: Path, home: Path, capsys: Capture) -> None:
    whole = exported.read_text()
    before = whole.replace(', "records": 3}', "}", 1)
    assert before != whole
    exported.write_text({"of before, without a count": before, "two in one file": whole * 2}.get(how, before + whole))
    assert run(["import", str(exported)]) == 0
    assert "the export ends" not in capsys.readouterr().err


@pytest.mark.parametrize("how", ["gzip", "xz", "utf-16-le", "utf-16-be"])
def test_an_export_that_was_compressed_or_written_otherwise_is_called_so_with_what_to_do(
    how: str, exported: Path, home: Path, capsys: Capture
) -> None:
    whole = exported.read_bytes()
    text = "\ufeff" + whole.decode().replace("\n", "\r\n")
    pack = {"gzip": gzip.compress, "xz": lzma.compress}.get(how)
    exported.write_bytes(text.encode(how) if pack is None else pack(whole))
    assert run(["import", str(exported)]) == 1
    said = capsys.readouterr().err
    assert (f"compressed by {how}" if pack is not None else "UTF-16, as PowerShell's > writes it") in said
    assert "hnetkit import" in said
    assert "give a file that" not in said
