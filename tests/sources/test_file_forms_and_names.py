"""What a downloaded file is, in whatever form it comes, and what it is called here."""

from __future__ import annotations

import re
import unicodedata
import zipfile

import pytest
from support.fake_sites import Sites
from support.fake_sites.contents import HTML_LOOKALIKE
from support.fetching import installed, jobs_of
from support.odd_answers import first_version, give, network_bytes, only_path, zipped

import hnetkit
from hnetkit.prompts.tags import split_tags
from hnetkit.sources.install import safe_stem, split_name
from hnetkit.sources.session import FetchSession

PNG = b"\x89PNG\r\n\x1a\n and pixels"
PT_FORMS: dict[str, tuple[bytes, dict[str, bytes], int]] = {
    "torch zip": (network_bytes(1), {}, 0),
    "legacy torch": (network_bytes(2, legacy=True), {}, 0),
    "stored zip": (network_bytes(3), {}, zipfile.ZIP_STORED),
    "packed zip": (network_bytes(4), {}, zipfile.ZIP_DEFLATED),
    "packed zip with a picture": (network_bytes(5), {"a/inner style.png": PNG}, zipfile.ZIP_DEFLATED),
    "packed zip of a legacy pt": (network_bytes(6, legacy=True), {}, zipfile.ZIP_DEFLATED),
}

OWN = {"library", "locks", "names.lock", "workers", "registry.db-wal", "registry.db-shm"}
"""What a fetch leaves in the home folder beside what it was asked for."""

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


@pytest.mark.parametrize("form", PT_FORMS)
def test_a_pt_of_any_of_its_forms_is_installed(site: Sites, here: FetchSession, form: str) -> None:
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
def test_a_pt_that_is_a_web_page_is_never_installed(site: Sites, here: FetchSession, hashed: bool) -> None:
    file = first_version(site)["files"][0]
    give(site, file, HTML_LOOKALIKE)
    site.world.model(site.world.ids()[0])
    if not hashed:
        file["hashes"] = {}
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state in ("refused", "failed")
    assert not installed(here)
    assert not list(here.folder.glob("*.pt"))


def test_a_zip_gives_every_network_in_it_and_is_kept_for_the_rest(site: Sites, here: FetchSession) -> None:
    """The site's hash is that of the zip; each network gets its own."""
    file = first_version(site)["files"][0]
    members = {"a-1000.pt": network_bytes(1), "steps/a-2000.pt": network_bytes(2, legacy=True)}
    junk = {"preview.png": b"\x89PNG", "readme.txt": b"x", "__MACOSX/._a-1000.pt": b"junk", "vae.pt": b"nothing"}
    give(site, file, zipped({**members, **junk}), "pack.zip")
    (job,) = jobs_of(here, here.pull(f"model:{site.world.ids()[0]}"))
    assert (job.state, job.code) == ("done", "unpacked")
    assert "__MACOSX" not in str(job.reason)
    for name in ("preview.png", "readme.txt", "vae.pt: a text, not a hypernetwork"):
        assert name in str(job.reason)
    assert {p.name: p.read_bytes() for p in installed(here).values()} == {
        "a-1000.pt": members["a-1000.pt"],
        "a-2000.pt": members["steps/a-2000.pt"],
    }
    suffixes = {path.suffix for path in here.folder.iterdir() if path.is_file()}
    assert suffixes <= {".pt", ".json", ".info", ".jpg", ".jpeg"}, "nothing else of the zip"
    assert [path.name for path in (here.folder / ".quarantine").glob("*.bad")] == ["pack.zip.bad"]
    assert jobs_of(here, here.pull(f"model:{site.world.ids()[0]}")) == [], "it is here already"


def test_a_file_of_type_archive_may_hold_networks(sites: Sites, session: FetchSession) -> None:
    model = sites.world.model(sites.world.find("archive")[0])
    (archive,) = (v for v in model["modelVersions"] if v["files"][0]["type"] == "Archive")
    (job,) = session.pull(f"version:{archive['id']}")
    assert job.state == "done"
    assert len(installed(session)) == 2


@pytest.mark.parametrize("name", AWKWARD.values(), ids=AWKWARD)
def test_a_file_of_any_name_is_installed_under_one_that_every_system_takes(
    site: Sites, here: FetchSession, name: str
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
    assert {path.name for path in after - before} <= OWN
    (row,) = [row for row in here.registry.catalogue.files() if row["file_id"] == str(file["id"])]
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
def test_names_that_some_disk_takes_for_one_get_different_stems(
    site: Sites, here: FetchSession, one: str, other: str
) -> None:
    ids = site.world.ids()[:2]
    for id, name in zip(ids, (one, other), strict=True):
        site.world.model(id)["modelVersions"][0]["files"][0]["name"] = name
        assert [job.state for job in here.pull(f"model:{id}")] == ["done"]
    stems = [unicodedata.normalize("NFC", path.stem).casefold() for path in installed(here).values()]
    assert len(set(stems)) == len(stems) == 2


def test_members_of_a_zip_stay_in_the_library_whatever_they_are_called(site: Sites, here: FetchSession) -> None:
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
    paths = set(installed(here).values())
    assert len(paths) == len(names)
    assert all(path.parent == here.folder and re.fullmatch(r"\w[\w.-]*\.pt", path.name) for path in paths)
    assert not {path.stem.lower() for path in paths} & {"con", "none"}
    after = {path for path in here.folder.parent.rglob("*") if here.folder not in path.parents}
    assert {path.name for path in after - before} <= OWN


@pytest.mark.parametrize(
    "name", ["Ink: wash, <etch>:2.pt", "a<b>.pt", "x:0.5.pt", "a, b (c:1.2) [d].pt", "<hypernet:x:1>.pt"]
)
def test_a_prompt_can_say_every_installed_name_and_the_original_is_kept(
    site: Sites, here: FetchSession, name: str
) -> None:
    file = first_version(site)["files"][0]
    file["name"] = name
    here.pull(f"model:{site.world.ids()[0]}")
    stem = only_path(here).stem
    assert re.fullmatch(r"[\w.-]+", stem)
    prompt = split_tags(f"a harbour <hypernet:{stem}:0.5>, at night")
    assert [(tag.name, tag.multiplier) for tag in prompt.tags] == [(stem, 0.5)]
    assert stem == safe_stem(split_name(name)[0], "x")
    (row,) = [row for row in here.registry.catalogue.files() if row["file_id"] == str(file["id"])]
    assert row["file_name"] == name
