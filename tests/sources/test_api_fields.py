"""What the API says of a model: values missing or of any type, creators, primary files, doubles, sizes, claims."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from support.fake_sites import Fault, Sites, World
from support.fake_sites.contents import Recipe
from support.fetching import EVERYTHING, installed, jobs_of
from support.odd_answers import OpenSession, first_version, only_path

from hnetkit.errors import Gone
from hnetkit.sources.civitai import Filters
from hnetkit.sources.civitai_models import parse_model, parse_version
from hnetkit.sources.session import FetchSession

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
def test_any_field_may_be_missing_null_or_empty(value: Any) -> None:
    def without(data: dict[str, Any], key: str) -> dict[str, Any]:
        rest = {k: v for k, v in data.items() if k != key}
        return rest if value == "absent" else {**rest, key: value}

    (data,) = World.make(1).models
    version, file = data["modelVersions"][0], data["modelVersions"][0]["files"][0]
    for key in OPTIONAL:
        model = parse_model(without(data, key))
        assert model is not None
        assert (model.id, bool(model.name)) == (data["id"], True)
    for key in OPTIONAL_OF_VERSION:
        model = parse_model({**data, "modelVersions": [without(version, key)]})
        assert model is not None
        assert [v.id for v in model.versions] == [version["id"]]
    for key in OPTIONAL_OF_FILE:
        found = parse_version({**version, "files": [without(file, key)]})
        assert found is not None
        assert [f.id for f in found.files] == [file["id"]]


@pytest.mark.parametrize("mode", ["creator", "username", "hashes"])
def test_a_model_with_data_missing_is_fetched_all_the_same(site: Sites, here: FetchSession, mode: str) -> None:
    site.faults.add(Fault("P", "api", times=9, mode=mode))
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert site.faults.fired
    assert job.state == "done"
    assert only_path(here).read_bytes() == site.world.content(first_version(site)["files"][0]["id"])


def test_versions_without_files_are_gone_and_not_a_crash(site: Sites, here: FetchSession) -> None:
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
def test_the_licence_is_a_list_a_word_or_a_literal_of_postgres(said: Any, means: Any) -> None:
    model = parse_model({"id": 1, "allowCommercialUse": said})
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
def test_a_username_is_a_number_null_or_not_there(creator: Any, name: str | None) -> None:
    model = parse_model({"id": 1, "creator": creator})
    assert model is not None
    assert model.creator == name


def test_primary_is_absent_instead_of_false_and_no_file_may_be_it() -> None:
    version = parse_version({"id": 1, "files": [{"id": 2, "primary": True}, {"id": 3}, {"id": 4, "primary": False}]})
    assert version is not None
    assert [file.is_primary for file in version.files] == [True, False, False]


def test_a_version_whose_primary_is_training_data_has_nothing_to_fetch(sites: Sites, session: FetchSession) -> None:
    with pytest.raises(Gone, match="no file that may be a network"):
        session.pull(f"model:{sites.world.find('training primary')[0]}")
    assert not installed(session)


def test_beside_training_data_the_network_comes_and_nothing_else(open_session: OpenSession) -> None:
    with Sites(World.make(17)) as sites:
        session, version = open_session(sites), first_version(sites, "training data")
        assert {file["type"] for file in version["files"]} == {"Model", "Training Data"}
        for file in version["files"]:
            file["primary"] = file["type"] == "Training Data"
        (job,) = session.pull(f"version:{version['id']}")
        assert (job.state, only_path(session).suffix) == ("done", ".pt")


def test_a_newest_version_of_training_data_alone_does_not_hide_the_network_before_it(
    site: Sites, here: FetchSession
) -> None:
    id = site.world.ids()[0]
    network = first_version(site)["files"][0]["id"]
    newer = site.world.add_version(id)
    newer["files"][0]["type"] = "Training Data"
    (job,) = jobs_of(here, here.pull(f"model:{id}"))
    assert (job.key, job.state) == (f"civitai:{network}", "done")


def test_two_files_of_one_name_and_one_address_both_come(open_session: OpenSession) -> None:
    with Sites(World.make(6)) as sites:
        session, version = open_session(sites), first_version(sites, "same name")
        one, other = version["files"]
        assert one["name"] == other["name"]
        other["downloadUrl"] = one["downloadUrl"]
        jobs = session.pull(f"version:{version['id']}")
        assert [job.state for job in jobs] == ["done", "done"]
        contents = {path.read_bytes() for path in installed(session).values()}
        assert contents == {sites.world.content(file["id"]) for file in version["files"]}
        asked = {request.query["fileId"][0] for request in sites.requests if "/download/" in request.path}
        assert asked == {str(one["id"]), str(other["id"])}


def test_files_of_one_name_that_come_at_the_same_time_are_all_there_and_known(
    open_session: OpenSession,
) -> None:
    with Sites(World.make(24, plain=True)) as sites:
        for _, _, file in sites.world.files():
            file["name"] = "same.pt"
        sites.faults.add(Fault("F", "storage", times=99, mode="stall", seconds=0.02, match="/files/"))
        session = open_session(sites, parallel=8, previews=False)
        assert {job.state for job in session.sync(EVERYTHING, all_versions=False)} == {"done"}
        on_disk = {path: path.read_bytes() for path in session.folder.glob("*.pt")}
        known = {path: digest for digest, path in installed(session).items()}
        assert {path: hashlib.sha256(content).hexdigest() for path, content in on_disk.items()} == known
        assert len({path.stem.casefold() for path in on_disk}) == len(on_disk) >= 24


def test_different_models_of_one_file_name_both_come(sites: Sites, session: FetchSession) -> None:
    ids = sites.world.find("collision")
    assert len({sites.world.model(id)["modelVersions"][0]["files"][0]["name"] for id in ids}) == 1
    for id in ids:
        assert [job.state for job in session.pull(f"model:{id}")] == ["done"]
    assert len(installed(session)) == len(set(installed(session).values())) == 2
    assert all(path.is_file() for path in installed(session).values())


@pytest.mark.parametrize("parallel", [1, 2])
def test_the_same_content_in_two_versions_is_one_file(sites: Sites, open_session: OpenSession, parallel: int) -> None:
    session = open_session(sites, parallel=parallel)
    sites.faults.add(Fault("F", "storage", times=2, mode="stall", seconds=0.1))
    jobs = jobs_of(session, session.pull(f"model:{sites.world.find('same content')[0]}", all_versions=True))
    assert {job.state for job in jobs} == {"done"}
    assert len(list(session.folder.glob("*.pt"))) == 1
    assert jobs_of(session, session.pull(f"model:{sites.world.find('same content')[0]}", all_versions=True)) == []


def test_a_file_that_failed_is_done_once_its_content_is_here_by_another_version(
    sites: Sites, session: FetchSession
) -> None:
    model = f"model:{sites.world.find('same content')[0]}"
    sites.faults.add(Fault("N", status=403))
    failed, done = jobs_of(session, session.pull(model, all_versions=True))
    assert (failed.state, done.state) == ("failed", "done")
    sites.clear()
    (now,) = jobs_of(session, session.pull(model, all_versions=True))
    assert (now.id, now.state, now.code) == (failed.id, "done", "had")
    assert not [request for request in sites.requests if "/download/" in request.path]
    assert jobs_of(session, session.pull(model, all_versions=True)) == []


@pytest.mark.parametrize("hashed", [True, False])
def test_a_size_that_is_wrong_by_far_changes_nothing(open_session: OpenSession, hashed: bool) -> None:
    sizes = [0, 0.01, -5, 17.123, 50_000.5, 10**9, "12.5", False, [], "x", float("nan")]
    with Sites(World.make(len(sizes), plain=True)) as sites:
        models = sites.world.models
        for model, size in zip(models, sizes, strict=True):
            for version in model["modelVersions"]:
                for file in version["files"]:
                    file["sizeKB"] = size
                    if not hashed:
                        file["hashes"] = {}
        session = open_session(sites)
        jobs = session.sync(Filters(ids=tuple(model["id"] for model in models)), all_versions=False)
        assert {(job.state, job.reason) for job in jobs} == {("done", None)}
        assert len(jobs) >= len(sizes)
        for install in session.registry.jobs.installs(kind="network"):
            file_id = session.registry.jobs.get(install["job_id"]).key.removeprefix("civitai:")
            assert Path(install["path"]).read_bytes() == sites.world.content(int(file_id))


@pytest.mark.parametrize("off", [-1023, -1, 1, 1023])
def test_without_a_length_a_size_is_right_within_a_kibibyte(site: Sites, here: FetchSession, off: int) -> None:
    file = first_version(site)["files"][0]
    content = site.world.content(file["id"])
    file["sizeKB"] = (len(content) + off) / 1024
    file["hashes"] = {}
    site.faults.add(Fault("E", "storage", after=2000, content_length=False))
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert site.faults.fired
    assert job.state == "done"
    assert only_path(here).read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "says"), [("vae", "VAE"), ("lora", "LoRA"), ("training zip", "zip"), ("html", "page")], ids=str
)
def test_what_is_no_hypernetwork_is_refused_by_its_content_and_kept_apart(
    site: Sites, here: FetchSession, kind: Any, says: str
) -> None:
    file = first_version(site)["files"][0]
    assert (file["type"], file["metadata"]["format"]) == ("Model", "PickleTensor")
    site.world.contents.define(file["id"], Recipe(kind, 5))
    file["sizeKB"] = None
    (job,) = here.pull(f"model:{site.world.ids()[0]}")
    assert job.state == "refused"
    assert says.lower() in str(job.reason).lower()
    assert not installed(here)
    (bad,) = (here.folder / ".quarantine").glob("*.bad")
    assert bad.read_bytes() == site.world.content(file["id"])
    assert [path.name for path in here.folder.iterdir()] == [".quarantine"]


def test_what_a_file_is_comes_from_its_tensors_and_not_from_what_is_declared(site: Sites, here: FetchSession) -> None:
    file = first_version(site)["files"][0]
    assert file["metadata"]["fp"] == "fp16"
    first_version(site)["baseModel"] = "SDXL 1.0"
    here.pull(f"model:{site.world.ids()[0]}")
    (network,) = here.registry.networks.rows()
    assert network["dtype"] == "fp32"
    assert network["base_model"] != "sdxl"
