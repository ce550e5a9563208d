"""Every trap of Civitai that is known, and what hnetkit does about it. The numbers are those of the project's notes."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from fake_sites import Fault, Sites, World
from fake_sites.contents import HTML_LOOKALIKE, Facts, Recipe
from fake_sites.messages import Ledger, Request, Response, html, json_response
from fake_sites.server import Origin as Server
from fast_clock import FastClock
from fetching import EVERYTHING, Library

import hnetkit
from hnetkit.errors import Archived, AuthRequired, Gone, NetworkFailed, RateLimited, RemoteError
from hnetkit.prompts.tags import split_tags
from hnetkit.sources import web
from hnetkit.sources.civitai import Civitai, Filters, is_past
from hnetkit.sources.names import safe_stem, split_name
from hnetkit.sources.plan import Item, items_of
from hnetkit.sources.shapes import model_of, version_of
from hnetkit.sources.sync import ask_about, updates

OpenLibrary = Callable[..., Library]


@pytest.fixture
def site() -> Iterator[Sites]:
    """Three ordinary models, for this test alone: the second holds two files in one version or two."""
    with Sites(World.make(3, plain=True)) as sites:
        yield sites


@pytest.fixture
def here(site: Sites, open_library: OpenLibrary) -> Library:
    return open_library(site)


def first_version(site: Sites, quirk: str | None = None) -> dict[str, Any]:
    """The first version of the first model, as the world holds it: changing it changes the site."""
    id = site.world.ids()[0] if quirk is None else site.world.find(quirk)[0]
    version: dict[str, Any] = site.world.model(id)["modelVersions"][0]
    return version


def give(site: Sites, file: dict[str, Any], content: bytes, name: str | None = None) -> None:
    """Lets the site serve these bytes, with their true size and hashes."""
    recipe = Recipe("network", 10**9 + file["id"], name=f"{len(content)}")
    contents = site.world.contents
    contents.define(file["id"], recipe)
    contents._cache[recipe], contents._facts[recipe] = content, Facts.of(content)
    file["sizeKB"] = None
    if name is not None:
        file["name"] = name


def network_bytes(seed: int = 1, *, legacy: bool = False) -> bytes:
    torch.manual_seed(seed)
    target = io.BytesIO()
    content = networks.a1111_network((8,), (1, 2, 1), "relu", seed=seed, name=f"net{seed}")
    torch.save(content, target, _use_new_zipfile_serialization=not legacy)
    return target.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


@contextmanager
def answering(answer: Callable[[Request], Response]) -> Iterator[tuple[Civitai, Ledger]]:
    """A site with answers of a test's own, and what came to it."""
    ledger = Ledger()
    server = Server("own", answer, ledger)
    server.start()
    try:
        yield Civitai(FastClock(2000), base=f"{server.url}/api/v1", token="t"), ledger
    finally:
        server.close()


def only_path(library: Library) -> Path:
    (path,) = library.installed().values()
    return path


# --- 1 to 6: what is said of models and files

OPTIONAL = (
    "creator",
    "stats",
    "tags",
    "description",
    "name",
    "type",
    "nsfwLevel",
    "allowCommercialUse",
    "modelVersions",
)
OPTIONAL_OF_VERSION = ("trainedWords", "images", "files", "name", "stats", "baseModel", "publishedAt", "nsfwLevel")
OPTIONAL_OF_FILE = ("hashes", "metadata", "name", "type", "sizeKB", "primary", "pickleScanResult")


@pytest.mark.parametrize("value", ["absent", None, [], {}, ""], ids=str)
def test_trap_01_any_field_may_be_missing_null_or_empty(value: Any) -> None:
    def without(data: dict[str, Any], key: str) -> dict[str, Any]:
        rest = {k: v for k, v in data.items() if k != key}
        return rest if value == "absent" else {**rest, key: value}

    (data,) = World.make(1).models
    version, file = data["modelVersions"][0], data["modelVersions"][0]["files"][0]
    for key in OPTIONAL:
        model = model_of(without(data, key))
        assert model is not None
        assert (model.id, bool(model.name)) == (data["id"], True)
    for key in OPTIONAL_OF_VERSION:
        model = model_of({**data, "modelVersions": [without(version, key)]})
        assert model is not None
        assert [v.id for v in model.versions] == [version["id"]]
    for key in OPTIONAL_OF_FILE:
        found = version_of({**version, "files": [without(file, key)]})
        assert found is not None
        assert [f.id for f in found.files] == [file["id"]]


@pytest.mark.parametrize("mode", ["creator", "username", "hashes"])
def test_trap_01_a_model_with_data_missing_is_fetched_all_the_same(site: Sites, here: Library, mode: str) -> None:
    site.faults.add(Fault("P", "api", times=9, mode=mode))
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert site.faults.fired
    assert job.state == "done"
    assert only_path(here).read_bytes() == site.world.content(first_version(site)["files"][0]["id"])


def test_trap_01_versions_without_files_are_gone_and_not_a_crash(site: Sites, here: Library) -> None:
    site.faults.add(Fault("P", "api", times=9, mode="files"))
    for all_versions in (False, True):
        with pytest.raises(Gone):
            here.pull(f"model:{site.world.ids()[0]}", all_versions=all_versions)


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (["Image", "RentCivit"], ("Image", "RentCivit")),
        ("{Image,RentCivit}", ("Image", "RentCivit")),
        ("{Image, Rent}", ("Image", "Rent")),
        ("Sell", ("Sell",)),
        (["Sell"], ("Sell",)),
        ("None", ()),
        ("{None}", ()),
        (["None"], ()),
        ("{}", ()),
        ("", ()),
        ([], ()),
        ([None, 5, "Rent"], ("Rent",)),
        (None, None),
        (True, None),
        ({"a": 1}, None),
    ],
)
def test_trap_02_the_licence_is_a_list_a_word_or_a_literal_of_postgres(said: Any, means: Any) -> None:
    model = model_of({"id": 1, "allowCommercialUse": said})
    assert model is not None
    assert model.commercial_use == means


@pytest.mark.parametrize(
    ("creator", "name"),
    [
        ({"username": 1234567}, "1234567"),
        ({"username": "0123"}, "0123"),
        ({"username": 0}, "0"),
        ({"username": "x"}, "x"),
        ({"username": None}, None),
        ({"username": ["x"]}, None),
        ({}, None),
        (None, None),
        ("x", None),
        (5, None),
    ],
)
def test_trap_03_a_username_is_a_number_null_or_not_there(creator: Any, name: str | None) -> None:
    model = model_of({"id": 1, "creator": creator})
    assert model is not None
    assert model.creator == name


def test_trap_04_primary_is_absent_instead_of_false_and_no_file_may_be_it() -> None:
    version = version_of({"id": 1, "files": [{"id": 2, "primary": True}, {"id": 3}, {"id": 4, "primary": False}]})
    assert version is not None
    assert [file.is_primary for file in version.files] == [True, False, False]


def test_trap_04_a_version_whose_primary_is_training_data_has_nothing_to_fetch(sites: Sites, library: Library) -> None:
    with pytest.raises(Gone, match="no file that may be a network"):
        library.pull(f"model:{sites.world.find('training primary')[0]}")
    assert not library.installed()


def test_trap_04_beside_training_data_the_network_comes_and_nothing_else(open_library: OpenLibrary) -> None:
    with Sites(World.make(17)) as sites:
        library, version = open_library(sites), first_version(sites, "training data")
        assert {file["type"] for file in version["files"]} == {"Model", "Training Data"}
        for file in version["files"]:
            file["primary"] = file["type"] == "Training Data"
        (job,) = library.pull(f"version:{version['id']}")
        assert (job.state, only_path(library).suffix) == ("done", ".pt")


def test_trap_04_a_newest_version_of_training_data_alone_does_not_hide_the_network_before_it(
    site: Sites, here: Library
) -> None:
    id = site.world.ids()[0]
    network = first_version(site)["files"][0]["id"]
    newer = site.world.add_version(id)
    newer["files"][0]["type"] = "Training Data"
    (job,) = here.pull(f"model:{id}")
    assert (job.key, job.state) == (f"civitai:{network}", "done")


def test_trap_05_two_files_of_one_name_and_one_address_both_come(open_library: OpenLibrary) -> None:
    with Sites(World.make(6)) as sites:
        library, version = open_library(sites), first_version(sites, "same name")
        one, other = version["files"]
        assert one["name"] == other["name"]
        other["downloadUrl"] = one["downloadUrl"]
        jobs = library.pull(f"version:{version['id']}")
        assert [job.state for job in jobs] == ["done", "done"]
        contents = {path.read_bytes() for path in library.installed().values()}
        assert contents == {sites.world.content(file["id"]) for file in version["files"]}
        asked = {request.query["fileId"][0] for request in sites.requests if "/download/" in request.path}
        assert asked == {str(one["id"]), str(other["id"])}


def test_trap_05_files_of_one_name_that_come_at_the_same_time_are_all_there_and_known(
    open_library: OpenLibrary,
) -> None:
    with Sites(World.make(24, plain=True)) as sites:
        for _, _, file in sites.world.files():
            file["name"] = "same.pt"
        sites.faults.add(Fault("F", "storage", times=99, mode="stall", seconds=0.02, match="/files/"))
        library = open_library(sites, parallel=8, previews=False)
        assert {job.state for job in library.sync(all_versions=False)} == {"done"}
        on_disk = {path: path.read_bytes() for path in library.folder.glob("*.pt")}
        known = {path: digest for digest, path in library.installed().items()}
        assert {path: hashlib.sha256(content).hexdigest() for path, content in on_disk.items()} == known
        assert len({path.stem.casefold() for path in on_disk}) == len(on_disk) >= 24


def test_trap_05_different_models_of_one_file_name_both_come(sites: Sites, library: Library) -> None:
    ids = sites.world.find("collision")
    assert len({sites.world.model(id)["modelVersions"][0]["files"][0]["name"] for id in ids}) == 1
    for id in ids:
        assert [job.state for job in library.pull(f"model:{id}")] == ["done"]
    assert len(library.installed()) == len(set(library.installed().values())) == 2
    assert all(path.is_file() for path in library.installed().values())


@pytest.mark.parametrize("parallel", [1, 2])
def test_trap_05_the_same_content_in_two_versions_is_one_file(
    sites: Sites, open_library: OpenLibrary, parallel: int
) -> None:
    library = open_library(sites, parallel=parallel)
    sites.faults.add(Fault("F", "storage", times=2, mode="stall", seconds=0.1))
    jobs = library.pull(f"model:{sites.world.find('same content')[0]}", all_versions=True)
    assert {job.state for job in jobs} == {"done"}
    assert len(list(library.folder.glob("*.pt"))) == 1
    assert library.pull(f"model:{sites.world.find('same content')[0]}", all_versions=True) == []


@pytest.mark.parametrize("hashed", [True, False])
def test_trap_06_a_size_that_is_wrong_by_far_changes_nothing(open_library: OpenLibrary, hashed: bool) -> None:
    sizes = [0, 0.01, -5, 17.123, 50_000.5, 10**9, "12.5", False, [], "x", float("nan")]
    with Sites(World.make(len(sizes), plain=True)) as sites:
        models = sites.world.models
        for model, size in zip(models, sizes, strict=True):
            for version in model["modelVersions"]:
                for file in version["files"]:
                    file["sizeKB"] = size
                    if not hashed:
                        file["hashes"] = {}
        library = open_library(sites)
        jobs = library.sync(Filters(ids=tuple(model["id"] for model in models)), all_versions=False)
        assert {(job.state, job.reason) for job in jobs} == {("done", None)}
        assert len(jobs) >= len(sizes)
        for install in library.registry.jobs.installs("kind = 'network'"):
            file_id = library.registry.jobs.get(install["job_id"]).key.removeprefix("civitai:")
            assert Path(install["path"]).read_bytes() == sites.world.content(int(file_id))


@pytest.mark.parametrize("off", [-1023, -1, 1, 1023])
def test_trap_06_without_a_length_a_size_is_right_within_a_kibibyte(site: Sites, here: Library, off: int) -> None:
    file = first_version(site)["files"][0]
    content = site.world.content(file["id"])
    file["sizeKB"] = (len(content) + off) / 1024
    file["hashes"] = {}
    site.faults.add(Fault("E", "storage", after=2000, content_length=False))
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert site.faults.fired
    assert job.state == "done"
    assert only_path(here).read_bytes() == content


# --- 7 to 10: files and their names


@pytest.mark.parametrize(
    ("kind", "says"), [("vae", "VAE"), ("lora", "LoRA"), ("training zip", "zip"), ("html", "page")], ids=str
)
def test_trap_07_what_is_no_hypernetwork_is_refused_by_its_content_and_kept_apart(
    site: Sites, here: Library, kind: Any, says: str
) -> None:
    file = first_version(site)["files"][0]
    assert (file["type"], file["metadata"]["format"]) == ("Model", "PickleTensor")
    site.world.contents.define(file["id"], Recipe(kind, 5))
    file["sizeKB"] = None
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "refused"
    assert says.lower() in str(job.reason).lower()
    assert not here.installed()
    (bad,) = (here.folder / ".quarantine").glob("*.bad")
    assert bad.read_bytes() == site.world.content(file["id"])
    assert [path.name for path in here.folder.iterdir()] == [".quarantine"]


def test_trap_07_what_a_file_is_comes_from_its_tensors_and_not_from_what_is_declared(
    site: Sites, here: Library
) -> None:
    file = first_version(site)["files"][0]
    assert file["metadata"]["fp"] == "fp16"
    first_version(site)["baseModel"] = "SDXL 1.0"
    here.pull(f"model:{site.world.ids()[0]}")
    (network,) = here.registry.networks.rows()
    assert network["dtype"] == "fp32"
    assert network["base_model"] != "sdxl"


PT_FORMS: dict[str, tuple[bytes, dict[str, bytes], int]] = {
    "torch zip": (network_bytes(1), {}, 0),
    "legacy torch": (network_bytes(2, legacy=True), {}, 0),
    "stored zip": (network_bytes(3), {}, zipfile.ZIP_STORED),
    "packed zip": (network_bytes(4), {}, zipfile.ZIP_DEFLATED),
    "packed zip with a picture": (network_bytes(5), {"preview.png": b"\x89PNG"}, zipfile.ZIP_DEFLATED),
    "packed zip of a legacy pt": (network_bytes(6, legacy=True), {}, zipfile.ZIP_DEFLATED),
}


@pytest.mark.parametrize("form", PT_FORMS)
def test_trap_08_a_pt_of_any_of_its_forms_is_installed(site: Sites, here: Library, form: str) -> None:
    network, others, method = PT_FORMS[form]
    file = first_version(site)["files"][0]
    content = (
        zipped({"a/inner style.pt": network, **others}, method) if method or others or "stored" in form else network
    )
    give(site, file, content, "ink.pt")
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert (job.state, job.reason) == ("done", None)
    path = only_path(here)
    assert path.name == ("ink.pt" if content == network else "inner_style.pt")
    assert path.read_bytes() == network
    assert hnetkit.load(path).widths == [8]


@pytest.mark.parametrize("hashed", [True, False])
def test_trap_08_a_pt_that_is_a_web_page_is_never_installed(site: Sites, here: Library, hashed: bool) -> None:
    file = first_version(site)["files"][0]
    give(site, file, HTML_LOOKALIKE)
    site.world.model(site.world.ids()[0])
    if not hashed:
        file["hashes"] = {}
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state in ("refused", "failed")
    assert not here.installed()
    assert not list(here.folder.glob("*.pt"))


def test_trap_08_a_zip_gives_every_network_in_it_and_nothing_else(site: Sites, here: Library) -> None:
    """The site's hash is that of the zip; each network gets its own."""
    file = first_version(site)["files"][0]
    members = {"a-1000.pt": network_bytes(1), "steps/a-2000.pt": network_bytes(2, legacy=True)}
    junk = {"preview.png": b"\x89PNG", "readme.txt": b"x", "__MACOSX/._a-1000.pt": b"junk", "vae.pt": b"nothing"}
    give(site, file, zipped({**members, **junk}), "pack.zip")
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "done"
    assert {p.name: p.read_bytes() for p in here.installed().values()} == {
        "a-1000.pt": members["a-1000.pt"],
        "a-2000.pt": members["steps/a-2000.pt"],
    }
    suffixes = {path.suffix for path in here.folder.iterdir()}
    assert suffixes <= {".pt", ".json", ".info", ".jpg", ".jpeg"}, "nothing else of the zip"
    assert here.pull(f"model:{site.world.ids()[0]}") == [], "it is here already"


def test_trap_08_a_file_of_type_archive_may_hold_networks(sites: Sites, library: Library) -> None:
    model = sites.world.model(sites.world.find("archive")[0])
    (archive,) = (v for v in model["modelVersions"] if v["files"][0]["type"] == "Archive")
    (job,) = library.pull(f"version:{archive['id']}")
    assert job.state == "done"
    assert len(library.installed()) == 2


AWKWARD = {
    "slashes": "../../../etc/evil.pt",
    "backslashes": "..\\..\\evil.pt",
    "absolute": "/tmp/evil.pt",
    "drive": "C:\\Windows\\evil.pt",
    "hidden": ".hidden.pt",
    "dots": "...pt",
    "trailing": "style. .pt",
    "device": "CON.pt",
    "device with a dot": "nul.v1.pt",
    "none": "None.pt",
    "suffix alone": ".pt",
    "empty": "",
    "signs alone": "???.pt",
    "unicode": "\u6700\u7d42 \u7248/final$.pt",
    "decomposed": "Gro\u0308\u00dfe e\u0301.pt",
    "emoji": "\U0001f98a\U0001f525.pt",
    "long": "n" * 300 + ".pt",
    "long in bytes": "\u6700" * 200 + ".pt",
    "controls": "a\x1b[2J\x07\x7f\u202eb.pt",
    "upper suffix": "STYLE.PT",
    "no suffix": "style",
    "other suffix": "style.exe",
    "option": "-rf.pt",
    "percent": "a%2F..%2Fb.pt",
}


@pytest.mark.parametrize("name", AWKWARD.values(), ids=AWKWARD)
def test_trap_09_a_file_of_any_name_is_installed_under_one_that_every_system_takes(
    site: Sites, here: Library, name: str
) -> None:
    """The home holds more than the library: nothing may appear outside of it."""
    file = first_version(site)["files"][0]
    file["name"] = name
    before = {path for path in here.folder.parent.rglob("*") if here.folder not in path.parents}
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert (job.state, job.reason) == ("done", None)
    path = only_path(here)
    assert path.parent == here.folder
    assert path.suffix == ".pt"
    assert re.fullmatch(r"\w[\w.-]*\.pt", path.name)
    assert unicodedata.is_normalized("NFC", path.name)
    assert len(path.name.encode()) < 200
    assert path.name.split(".")[0].lower() not in ("con", "nul", "none", "")
    assert path.read_bytes() == site.world.content(file["id"])
    after = {path for path in here.folder.parent.rglob("*") if here.folder not in path.parents}
    assert {path.name for path in after - before} <= {"library", "workers", "registry.db-wal", "registry.db-shm"}
    (row,) = here.registry.catalogue.files("remote_files.remote_id = ?", [str(file["id"])])
    assert row["file_name"] == (name.strip() or f"{file['id']}.pt"), "the site's own name is kept"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Style.pt", "style.pt"),
        ("STRASSE.pt", "stra\u00dfe.pt"),
        ("\u00e9t\u00e9.pt", "e\u0301te\u0301.pt"),
        ("a b.pt", "a_b.pt"),
        ("x.pt", "y/x.pt"),
    ],
)
def test_trap_09_names_that_some_disk_takes_for_one_get_different_stems(
    site: Sites, here: Library, one: str, other: str
) -> None:
    ids = site.world.ids()[:2]
    for id, name in zip(ids, (one, other), strict=True):
        site.world.model(id)["modelVersions"][0]["files"][0]["name"] = name
        assert [job.state for job in here.pull(f"model:{id}")] == ["done"]
    stems = [unicodedata.normalize("NFC", path.stem).casefold() for path in here.installed().values()]
    assert len(set(stems)) == len(stems) == 2


def test_trap_09_members_of_a_zip_stay_in_the_library_whatever_they_are_called(site: Sites, here: Library) -> None:
    names = [
        "../../up.pt",
        "/abs.pt",
        "C:\\win.pt",
        "a/../../b.pt",
        "CON.pt",
        "None.pt",
        "..pt",
        ".pt",
        "\u6700.pt",
        "a\x1bb.pt",
    ]
    give(site, first_version(site)["files"][0], zipped({n: network_bytes(k) for k, n in enumerate(names)}), "p.zip")
    before = {path for path in here.folder.parent.rglob("*") if here.folder not in path.parents}
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "done"
    paths = set(here.installed().values())
    assert len(paths) == len(names)
    assert all(path.parent == here.folder and re.fullmatch(r"\w[\w.-]*\.pt", path.name) for path in paths)
    assert not {path.stem.lower() for path in paths} & {"con", "none"}
    after = {path for path in here.folder.parent.rglob("*") if here.folder not in path.parents}
    assert {path.name for path in after - before} <= {"library", "workers", "registry.db-wal", "registry.db-shm"}


@pytest.mark.parametrize(
    "name", ["Ink: wash, <etch>:2.pt", "a<b>.pt", "x:0.5.pt", "a, b (c:1.2) [d].pt", "<hypernet:x:1>.pt"]
)
def test_trap_10_a_prompt_can_say_every_installed_name_and_the_original_is_kept(
    site: Sites, here: Library, name: str
) -> None:
    file = first_version(site)["files"][0]
    file["name"] = name
    here.pull(f"model:{site.world.ids()[0]}")
    stem = only_path(here).stem
    assert re.fullmatch(r"[\w.-]+", stem)
    prompt = split_tags(f"a harbour <hypernet:{stem}:0.5>, at night")
    assert [(tag.name, tag.multiplier) for tag in prompt.tags] == [(stem, 0.5)]
    assert stem == safe_stem(split_name(name)[0], "x")
    (row,) = here.registry.catalogue.files("remote_files.remote_id = ?", [str(file["id"])])
    assert row["file_name"] == name


# --- 11 and 12: lists


def listed(civitai: Civitai, filters: Filters = EVERYTHING) -> list[int]:
    return [model.id for page in civitai.pages(filters) for model in page]


def in_list(world: World) -> set[int]:
    """What a whole list can hold: hypernetworks that are neither archived, private nor of real people."""
    shown = [m for m in world.models if m["type"] == "Hypernetwork" and m.get("mode") != "Archived" and not m["poi"]]
    return {m["id"] for m in shown if any(v["availability"] == "Public" for v in m["modelVersions"])} & {
        m["id"] for m in shown if m["availability"] != "Private"
    }


@pytest.fixture(scope="module")
def long_list() -> Iterator[Sites]:
    """More models than a page holds."""
    with Sites(World.make(130, plain=True)) as sites:
        yield sites


def test_trap_11_short_and_empty_pages_and_cursors_with_a_bar_lose_nothing(long_list: Sites) -> None:
    long_list.clear()
    long_list.faults.add(Fault("J", "api", times=3, mode="empty"))
    found = listed(Civitai(FastClock(), base=long_list.civitai_url))
    assert len(long_list.faults.fired) == 3
    assert set(found) == in_list(long_list.world)
    assert len(found) == len(set(found)) == 130
    cursors = [r.query["cursor"][0] for r in long_list.requests if "cursor" in r.query]
    assert any("|" in cursor for cursor in cursors)
    assert len({(*r.query["sort"], *r.query["period"], *r.query["limit"]) for r in long_list.requests}) == 1
    assert not [r for r in long_list.requests if "page" in r.query], "pages end at the thousandth model"


def test_trap_11_a_cursor_of_a_search_is_a_number_and_its_pages_go_on(long_list: Sites) -> None:
    long_list.clear()
    names = {model["id"]: model["name"].lower() for model in long_list.world.models}
    word = max("aeiou", key=lambda letter: sum(letter in name for name in names.values()))
    found = listed(Civitai(FastClock(), base=long_list.civitai_url), Filters(query=word, nsfw=True))
    assert set(found) >= {id for id, name in names.items() if word in name}
    assert [r.query.get("cursor") for r in long_list.requests] == [None, ["100"]]


def test_trap_11_a_cursor_that_comes_back_ends_the_list() -> None:
    def page(request: Request) -> Response:
        return json_response({"items": [{"id": 1}, {"id": 1}], "metadata": {"nextCursor": "1|2"}})

    with answering(page) as (civitai, ledger):
        assert listed(civitai) == [1]
        assert len(ledger.entries()) == 2


def test_trap_11_ever_new_cursors_with_nothing_new_behind_them_end() -> None:
    count = itertools.count()

    def page(request: Request) -> Response:
        return json_response({"items": [{"id": 1}], "metadata": {"nextCursor": f"{next(count)}|9"}})

    with answering(page) as (civitai, _):
        pages = list(itertools.islice(civitai.pages(EVERYTHING), 600))
        assert [model.id for models in pages for model in models] == [1]
        assert len(pages) < 600, "it would go on for ever"


@pytest.mark.parametrize("metadata", [None, {}, [], {"nextCursor": None}, {"nextCursor": ""}, {"nextPage": "x"}])
def test_trap_11_only_a_missing_cursor_is_the_end_and_totals_are_not_needed(metadata: Any) -> None:
    with answering(lambda request: json_response({"items": [{"id": 1}], "metadata": metadata})) as (civitai, ledger):
        assert listed(civitai) == [1]
        assert len(ledger.entries()) == 1


@pytest.mark.parametrize("page", [{}, [], {"items": None}, {"items": {}}, "x", 5, None], ids=str)
def test_trap_11_an_answer_without_a_list_is_no_end(page: Any) -> None:
    with answering(lambda request: json_response(page)) as (civitai, _), pytest.raises(RemoteError):
        listed(civitai)


def test_trap_12_an_unknown_tag_filters_nothing_at_the_site_and_all_here(sites: Sites) -> None:
    civitai = Civitai(FastClock(), base=sites.civitai_url)
    assert listed(civitai, Filters(tag="no such tag", nsfw=True)) == []
    found = listed(civitai, Filters(tag="ANIME", nsfw=True))
    assert set(found) == {id for id in in_list(sites.world) if "anime" in sites.world.model(id)["tags"]}
    assert found


def test_trap_12_flags_are_sent_only_where_they_are_true(site: Sites) -> None:
    anonymous = Civitai(FastClock(), base=site.civitai_url)
    listed(anonymous, Filters(favorites=False))
    (request,) = site.requests
    flags = {"favorites", "hidden", "earlyAccess", "supportsGeneration", "fromPlatform", "followed", "archived"}
    assert not flags & set(request.query)
    with pytest.raises(AuthRequired) as caught:
        listed(anonymous, Filters(favorites=True))
    assert "CIVITAI_TOKEN" in str(caught.value.hint)
    site.world.favorites = {site.world.ids()[0]}
    known = Civitai(FastClock(), base=site.civitai_url, token=site.token)
    assert listed(known, Filters(favorites=True, nsfw=True)) == [site.world.ids()[0]]


def test_trap_12_other_types_that_a_list_holds_are_left_out() -> None:
    world = World.make(3, others=4)
    with answering(lambda request: json_response({"items": world.models, "metadata": {}})) as (civitai, ledger):
        assert set(listed(civitai)) == {m["id"] for m in world.models if m["type"] == "Hypernetwork"}
        (request,) = ledger.entries()
        assert request.query["types"] == ["Hypernetwork"]
        assert "type" not in request.query


def test_trap_12_several_base_models_are_repeated_keys_and_never_one_with_commas(sites: Sites) -> None:
    civitai = Civitai(FastClock(), base=sites.civitai_url)
    found = listed(civitai, Filters(base_models=("SD 1.4", "SD 2.1 768"), nsfw=True))
    assert sites.requests[0].query["baseModels"] == ["SD 1.4", "SD 2.1 768"]
    assert {sites.world.model(id)["baseModels"][0] for id in found} == {"SD 1.4", "SD 2.1 768"}


# --- 13 to 16: refusals, times, what vanishes, what is said


def test_trap_13_a_bad_token_is_anonymous_in_lists_and_found_out_by_asking_for_the_account(sites: Sites) -> None:
    bad = Civitai(FastClock(), base=sites.civitai_url, token="expired")
    assert set(listed(bad)) == in_list(sites.world)
    with pytest.raises(AuthRequired):
        bad.me()
    assert Civitai(FastClock(), base=sites.civitai_url, token=sites.token).me() == "fake_user"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("N", times=50, status=403), "early-access"),
        (Fault("N", times=50, status=410), "archived"),
        (Fault("N", times=50, status=451), "region-blocked"),
        (Fault("O", times=50, mode="redirect"), "no-token"),
        (Fault("O", times=50, mode="html"), "network"),
        (Fault("I", times=50, status=403, match="/download/"), "network"),
        (Fault("I", times=50, status=503, match="/download/"), "network"),
        (Fault("H", times=50, retry_after=None, match="/download/"), "rate-limited"),
        (Fault("H", times=50, retry_after=9999, match="/download/"), "rate-limited"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.kind}-{dict(value.options)}",
)
def test_trap_13_refusals_are_told_apart(site: Sites, here: Library, fault: Fault, code: str) -> None:
    site.faults.add(fault)
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert (job.state, job.code) == ("failed", code)
    assert not here.installed()


def test_trap_13_what_nobody_gets_is_not_a_matter_of_the_token(sites: Sites, library: Library) -> None:
    for quirk in ("taken down", "generation only"):
        (job,) = library.pull(f"model:{sites.world.find(quirk)[0]}")
        assert (job.state, job.code) == ("failed", "no-access")
    with pytest.raises(Gone):
        library.pull(f"model:{sites.world.find('private')[0]}")


def test_trap_13_a_login_that_is_needed_is_said_with_the_way_to_it(site: Sites, open_library: OpenLibrary) -> None:
    site.needs_token = True
    (job,) = open_library(site, token="expired").pull(f"model:{site.world.ids()[0]}")
    assert (job.state, job.code) == ("failed", "no-token")


def test_trap_13_early_access_in_the_past_is_over_and_in_the_future_is_waited_for(
    sites: Sites, library: Library
) -> None:
    def items(quirk: str) -> list[Item]:
        model = library.civitai.model(sites.world.find(quirk)[0])
        return items_of(library.registry, model, all_versions=True)

    assert {item.action for item in items("early access over")} == {"fetch"}
    (waiting,) = items("early access")
    assert (waiting.action, waiting.code) == ("skip", "early-access")
    assert waiting.not_before == "2099-01-01T00:00:00.000Z"
    jobs = library.pull(f"model:{sites.world.find('early access over')[0]}", all_versions=True)
    assert {job.state for job in jobs} == {"done"}


@pytest.mark.parametrize(
    ("time", "past"),
    [
        ("2023-05-01T00:00:00.000Z", True),
        ("2023-05-01", True),
        ("2023-05-01T00:00:00+02:00", True),
        ("2099-01-01T00:00:00.000Z", False),
        ("2099-01-01T00:00:00", False),
        ("2099-01-01", False),
        ("", True),
        ("soon", True),
        (None, True),
    ],
)
def test_trap_14_times_are_iso_with_milliseconds_or_missing(time: str | None, past: bool) -> None:
    assert is_past(time) is past


@pytest.mark.parametrize("time", ["absent", None, "", [], {}], ids=str)
def test_trap_14_a_version_without_a_time_is_older_than_any_with_one(time: Any) -> None:
    odd: dict[str, Any] = {"id": 9} if time == "absent" else {"id": 9, "publishedAt": time}
    model = model_of({"id": 1, "modelVersions": [odd, {"id": 2, "publishedAt": "2023-02-10T18:05:00.000Z"}]})
    assert model is not None
    assert [version.id for version in model.versions] == [2, 9]
    assert model.versions[1].published_at is None


def test_trap_14_a_model_without_any_time_is_fetched(site: Sites, here: Library) -> None:
    for version in site.world.model(site.world.ids()[0])["modelVersions"]:
        for key in ("publishedAt", "createdAt"):
            version[key] = None
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "done"


def test_trap_15_the_newest_version_is_the_newest_by_date_wherever_it_stands(sites: Sites, library: Library) -> None:
    data = sites.world.model(sites.world.find("out of order")[0])
    first, second = data["modelVersions"]
    assert first["publishedAt"] < second["publishedAt"]
    (job,) = library.pull(f"model:{data['id']}")
    assert job.key == f"civitai:{second['files'][0]['id']}"


def test_trap_15_a_version_that_vanished_is_marked_and_its_file_stays(open_library: OpenLibrary) -> None:
    with Sites(World.make(6, plain=True)) as sites:
        id = next(m["id"] for m in sites.world.models if len(m["modelVersions"]) == 2)
        library = open_library(sites)
        library.pull(f"model:{id}", all_versions=True)
        gone, kept = (version["id"] for version in sites.world.model(id)["modelVersions"])
        sites.world.remove_version(gone)
        assert dict(ask_about(library.registry, library.civitai, library.clock, [str(id)])) == {str(id): "listed"}
        rows = library.registry.catalogue.files("models.remote_id = ?", [str(id)])
        assert {row["version_id"]: row["version_state"] for row in rows} == {str(gone): "gone", str(kept): "listed"}
        assert len(library.installed()) == 2
        assert all(path.is_file() for path in library.installed().values())


def test_trap_15_an_empty_list_of_versions_is_a_fault_of_the_site_and_marks_nothing(site: Sites, here: Library) -> None:
    id = site.world.ids()[0]
    here.pull(f"model:{id}")
    data = site.world.model(id)
    versions = list(data["modelVersions"])
    data["modelVersions"].clear()
    list(ask_about(here.registry, here.civitai, here.clock, [str(id)]))
    data["modelVersions"].extend(versions)
    rows = here.registry.catalogue.files("models.remote_id = ?", [str(id)])
    assert {row["version_state"] for row in rows} == {"listed"}


def test_trap_15_a_deleted_model_is_gone_and_an_archived_one_says_so(site: Sites, here: Library) -> None:
    deleted, archived, _ = site.world.ids()
    here.sync()
    files = set(here.installed().values())
    site.world.remove(deleted)
    site.world.archive(archived)
    with pytest.raises(Gone) as caught:
        here.pull(f"model:{deleted}")
    assert not isinstance(caught.value, Archived)
    with pytest.raises(Archived):
        here.pull(f"model:{archived}")
    states = dict(ask_about(here.registry, here.civitai, here.clock, [str(deleted), str(archived)]))
    assert states == {str(deleted): "gone", str(archived): "archived"}
    assert set(here.installed().values()) == files
    assert all(path.is_file() for path in files)
    rows = here.registry.catalogue.files("models.remote_id = ?", [str(archived)])
    assert rows, "what is known of its files is kept"


def test_trap_15_one_deleted_model_does_not_hide_the_updates_of_the_others(site: Sites, here: Library) -> None:
    here.sync()
    deleted, other, _ = site.world.ids()
    version = site.world.add_version(other)
    site.world.remove(deleted)
    assert [update.newest.version.id for update in updates(here.registry, here.civitai)] == [version["id"]]


def test_trap_15_one_deleted_model_of_several_asked_for_does_not_hide_the_others(site: Sites, here: Library) -> None:
    ids = site.world.ids()
    site.world.remove(ids[0])
    assert set(listed(here.civitai, Filters(ids=tuple(ids)))) == set(ids[1:])


def test_trap_16_a_description_is_shown_without_tags_and_without_what_steers_a_terminal(
    site: Sites, here: Library
) -> None:
    id = site.world.ids()[0]
    html = "<p>Soft &amp; wet.\x1b]0;owned\x07</p><script>x()</script><p>\x9b2J12k&nbsp;steps &#27;[31m</p>"
    site.world.model(id)["description"] = html
    here.pull(f"model:{id}")
    (row,) = here.registry.catalogue.models("remote_id = ?", [str(id)])
    assert row["description"] == "Soft & wet.]0;owned\n2J12k steps [31m"


def test_trap_16_raw_control_characters_in_json_are_read_and_not_shown(site: Sites, here: Library) -> None:
    site.faults.add(Fault("K", "api", times=9))
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert site.faults.fired
    assert job.state == "done"
    (row,) = here.registry.catalogue.models("remote_id = ?", [str(site.world.ids()[0])])
    assert all(line.isprintable() for line in row["description"].split("\n"))


# --- 17 to 20: sizes, secrets, levels, guards


def test_trap_17_an_answer_of_any_size_is_read_up_to_a_limit() -> None:
    """A few packed kilobytes can be gigabytes."""
    body = gzip.compress(b'{"items": [' + b" " * (web.MOST_JSON + 1) + b"]}", 1)
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    with (
        answering(lambda request: Response(200, headers, body)) as (civitai, _),
        pytest.raises(NetworkFailed, match="64 MB"),
    ):
        listed(civitai)


def test_trap_17_a_page_of_megabytes_is_read_and_its_json_is_kept_packed(site: Sites, here: Library) -> None:
    id = site.world.ids()[0]
    image = first_version(site)["images"][0]
    image["meta"] = {"prompt": "harbour at night " * 200_000, "comfy": {"nodes": [{"id": n} for n in range(1000)]}}
    here.pull(f"model:{id}")
    (packed,) = here.registry.catalogue._db.execute("SELECT raw FROM models WHERE remote_id = ?", [str(id)]).fetchone()
    raw = zlib.decompress(packed)
    assert len(packed) * 20 < len(raw) > 3 << 20
    kept = here.registry.catalogue.raw("civitai", str(id))
    assert kept["modelVersions"][0]["images"][0]["meta"] == image["meta"]


def test_trap_17_an_answer_that_stalls_is_asked_for_again(
    site: Sites, here: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "TIMEOUT_S", (1.0, 0.2))
    site.faults.add(Fault("F", "api", times=2, mode="stall", seconds=1.0, match="/api/v1/models"))
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "done"
    assert len([r for r in site.requests if r.path.endswith(f"/models/{site.world.ids()[0]}")]) == 3


def everything_kept(home: Path) -> str:
    """All that is written below the home, the registry's packed columns unpacked."""
    kept = b"".join(path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file())
    return kept.decode("latin-1")


def test_trap_18_an_address_that_expires_is_kept_nowhere(site: Sites, home: Path, open_library: OpenLibrary) -> None:
    done, broken, _ = site.world.ids()
    library = open_library(site)
    library.pull(f"model:{done}")
    site.faults.add(Fault("E", "storage", times=50, after=2000))
    (job,) = library.pull(f"model:{broken}")
    assert (job.state, job.code) == ("failed", "network")
    (note,) = library.folder.glob(".hnetkit-*.part.json")
    assert json.loads(note.read_text())["key"] == job.key
    assert note.with_suffix("").stat().st_size > 0, "what came is there for the next time"
    kept = everything_kept(home) + "".join(
        json.dumps(library.registry.catalogue.raw("civitai", str(id))) for id in (done, broken)
    )
    storage = site.storage_url.removeprefix("http://")
    for secret in ("X-Amz-", "Signature", f"{storage}/files", site.token):
        assert secret not in kept
    assert job.url == site.download_url(*map(int, re.findall(r"\d+", job.url.partition("/models/")[2])))
    site.clear()
    (again,) = library.pull(f"model:{broken}")
    assert again.state == "done"
    (request,) = [r for r in site.requests if r.origin == "storage" and r.path.startswith("/files/")]
    assert request.headers["range"].startswith("bytes=")


LEVELS: list[tuple[dict[str, Any], bool]] = [
    ({"nsfwLevel": 1}, True),
    ({"nsfwLevel": 2}, True),
    ({"nsfwLevel": 4}, False),
    ({"nsfwLevel": 9}, False),
    ({"nsfwLevel": 32}, False),
    ({"nsfwLevel": "None"}, True),
    ({"nsfwLevel": "Soft"}, True),
    ({"nsfwLevel": "Mature"}, False),
    ({"nsfwLevel": "X"}, False),
    ({"nsfw": "Soft"}, True),
    ({"nsfw": "X"}, False),
    ({"nsfw": True}, False),
    ({"nsfwLevel": None, "nsfw": "X"}, False),
]


def test_trap_19_a_picture_is_fetched_by_its_level_in_bits_or_in_words(open_library: OpenLibrary) -> None:
    with Sites(World.make(len(LEVELS), plain=True)) as sites:
        said: dict[str, tuple[dict[str, Any], bool]] = {}
        for model, level in zip(sites.world.models, LEVELS, strict=True):
            for version in model["modelVersions"]:
                for image in version["images"]:
                    image.pop("nsfwLevel", None)
                    image |= {"type": "image", **level[0]}
                    said[str(image["id"])] = level
        library = open_library(sites)
        for id in sites.world.ids():
            library.pull(f"model:{id}")
        fetched = [said[Path(r.path).stem] for r in sites.requests if r.path.startswith("/images/")]
        assert [level for level, safe in fetched if not safe] == []
        assert {str(level) for level, _ in fetched} == {str(level) for level, safe in LEVELS if safe}


def test_trap_19_pictures_of_any_level_come_to_who_asks_for_them(site: Sites, open_library: OpenLibrary) -> None:
    for image in first_version(site)["images"]:
        image["nsfwLevel"] = 16
    open_library(site, nsfw=True).pull(f"model:{site.world.ids()[0]}")
    assert [r for r in site.requests if r.path.startswith("/images/")]


def test_trap_20_the_guards_403_is_not_about_who_asks(site: Sites, here: Library) -> None:
    site.faults.add(Fault("I", "api", times=50, status=403))
    with pytest.raises(NetworkFailed, match="guard") as caught:
        here.pull(f"model:{site.world.ids()[0]}")
    assert caught.value.exit_code == 5
    assert len(site.requests) == 1, "asking on would make it worse"


def test_trap_20_a_web_page_with_a_5xx_passes(site: Sites, here: Library) -> None:
    for status in (500, 502, 503, 504, 520, 522, 524, 527):
        site.clear()
        site.faults.add(Fault("I", "api", times=3, status=status))
        assert here.civitai.model(site.world.ids()[0]).id == site.world.ids()[0]
        assert [r.status for r in site.requests] == [status, status, status, 200]


NONSENSE = {
    "empty": Response(200, {"Content-Type": "application/json"}, b""),
    "page": html(200, "Sign in"),
    "half": Response(200, {"Content-Type": "application/json"}, b'{"id": 1, "name'),
    "binary": Response(200, {"Content-Type": "application/json"}, b"\x80\x02\xff\x00"),
    "deep": Response(200, {"Content-Type": "application/json"}, b"[" * 100_000),
    "long number": Response(200, {"Content-Type": "application/json"}, b'{"id": ' + b"9" * 5000 + b"}"),
    "no status text": Response(599, {}, b""),
    "null": json_response(None),
    "list": json_response([]),
    "error with 200": json_response({"error": "Internal"}),
    "odd pause": Response(503, {"Retry-After": "\u00b2"}),
    "pause in words": Response(503, {"Retry-After": "soon"}),
    "empty redirect": Response(302, {"Location": ""}),
}


@pytest.mark.parametrize("answer", NONSENSE)
def test_trap_20_an_answer_that_makes_no_sense_is_a_failure_in_words_and_never_a_crash(answer: str) -> None:
    with answering(lambda request: NONSENSE[answer]) as (civitai, ledger):
        for ask in (lambda: civitai.model(1), lambda: civitai.version(1), lambda: listed(civitai)):
            with pytest.raises(RemoteError) as caught:
                ask()
            assert str(caught.value).isprintable()
            assert not isinstance(caught.value, AuthRequired | Gone | RateLimited)
        assert all(len(list(same)) <= 6 for _, same in itertools.groupby(r.path for r in ledger.entries()))


@pytest.mark.parametrize("answer", ["empty", "page", "null", "list", "error with 200"])
def test_trap_20_an_answer_that_makes_no_sense_is_no_proof_that_a_token_is_good(answer: str) -> None:
    with answering(lambda request: NONSENSE[answer]) as (civitai, _), pytest.raises(RemoteError):
        civitai.me()


def test_trap_20_an_empty_answer_is_asked_for_again() -> None:
    answers = iter([Response(200), html(200, "Maintenance"), Response(502), json_response({"id": 1})])
    with answering(lambda request: next(answers)) as (civitai, _):
        assert civitai.model(1).id == 1
