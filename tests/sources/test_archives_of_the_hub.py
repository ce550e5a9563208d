"""Archives of other people's networks at the hub: creators, titles, and names that tell files apart, by folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.fake_sites import Sites, World
from support.fetching import installed
from support.odd_answers import network_bytes

from hnetkit.cli import run
from hnetkit.library.library import Library
from hnetkit.sharing.licenses import License, license_of
from hnetkit.sources.archive_layouts import ArchiveEntry, entry_of
from hnetkit.sources.export import export_records, import_records
from hnetkit.sources.session import FetchSession

REPO = "LMFResearchSociety/HypernetworkArchive"
COLLECTION = "WarriorMama777/HyperNetworkCollection_v2"
NAMES = [
    'Civitai/anna/"Ink wash [ink-wash]"/1.pt',
    'Civitai/anna/"Oil [oil]"/1.pt',
    'Civitai/ben/"Ink wash [ink-wash-2]"/1.pt',
    "MEGA/pack/chalk/v2.pt",
    "nai/furry.pt",
]
CONTENTS = [network_bytes(seed) for seed in range(1, 1 + len(NAMES))]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sites]:
    repos = {
        REPO: dict(zip(NAMES, CONTENTS, strict=True)),
        COLLECTION: {"pack/hypernetworks/terada tera.pt": network_bytes(9)},
    }
    with Sites(World.make(1, plain=True), repos=repos) as sites:
        monkeypatch.setenv("HF_ENDPOINT", sites.hub_url)
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", sites.civitai_url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield sites


@pytest.fixture
def here(hub: Sites, open_session: Callable[..., FetchSession]) -> FetchSession:
    return open_session(hub, parallel=1)


@pytest.mark.parametrize(
    ("repo", "path", "said"),
    [
        (REPO, NAMES[0], ArchiveEntry('Civitai/anna/"Ink wash [ink-wash]"', "Ink wash", "anna")),
        ("me/copy", "Civitai/anna/Ink [a] [b]/x/1.pt", ArchiveEntry("Civitai/anna/Ink [a] [b]", "Ink [a]", "anna")),
        (REPO, "Civitai/anna/Ink [ink].pt", ArchiveEntry("Civitai/anna/Ink [ink].pt", "Ink", "anna")),
        (REPO, "Civitai/anna/[ink]/1.pt", ArchiveEntry("Civitai/anna/[ink]", "[ink]", "anna")),
        (REPO, "MEGA/pack/chalk/v2.pt", ArchiveEntry("MEGA/pack/chalk", "chalk", None)),
        (REPO, "nai/furry.pt", ArchiveEntry("nai/furry.pt", "furry", None)),
        (
            COLLECTION,
            "a/hypernetworks/terada tera.pt",
            ArchiveEntry("a/hypernetworks/terada tera.pt", "terada tera", None),
        ),
        (REPO, "README.md", None),
        (REPO, "Civitai/loose.pt", None),
        ("anna/nets", "hypernetworks/ink.pt", None),
        ("anna/nets", "MEGA/ink.pt", None),
    ],
)
def test_folders_say_who_made_a_file_and_its_title_where_the_layout_is_known(
    repo: str, path: str, said: ArchiveEntry | None
) -> None:
    assert entry_of(repo, path) == said


def test_list_search_and_show_give_creator_and_title(
    hub: Sites, here: FetchSession, capsys: pytest.CaptureFixture[str]
) -> None:
    here.sync(f"hf:{REPO}")
    here.sync(f"hf:{COLLECTION}")

    def rows(*command: str) -> list[dict[str, object]]:
        assert run([*command, "--json"]) == 0
        found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
        return found

    listed = {(row["title"], row["creator"]) for row in rows("list")}
    assert listed == {
        ("Ink wash", "anna"),
        ("Oil", "anna"),
        ("Ink wash", "ben"),
        ("chalk", None),
        ("furry", None),
        ("terada tera", None),
    }
    assert {row["title"] for row in rows("search", "anna")} == {"Ink wash", "Oil"}
    (shown,) = rows("show", next(str(row["name"]) for row in rows("list") if row["title"] == "Oil"))
    (site,) = shown["sites"]  # type: ignore[misc]
    assert site["link"] == f"https://huggingface.co/{REPO}/tree/main/Civitai/anna/%22Oil%20%5Boil%5D%22"
    assert site["model_id"] == f'{REPO}:Civitai/anna/"Oil [oil]"'
    with pytest.warns(UserWarning, match=f"hnetkit sync hf:{REPO}, hnetkit sync hf:{COLLECTION}"):
        here.updates()


def test_stems_that_collide_are_told_apart_by_words_and_it_is_said(hub: Sites, here: FetchSession) -> None:
    results = here.sync(f"hf:{REPO}")
    names = {path.name for path in installed(here).values()}
    assert names == {"1.pt", "1-anna.pt", "1-ben.pt", "v2.pt", "furry.pt"}
    apart = [(Path(result.paths[0]).name, result.code, result.reason) for result in results if result.code]
    assert len(apart) == 2
    assert {code for _, code, _ in apart} == {"named"}
    assert {reason for *_, reason in apart} == {"another network has the name 1"}
    hub.clear()
    assert here.sync(f"hf:{REPO}") == []


def test_what_folders_say_is_known_on_another_machine(hub: Sites, here: FetchSession, tmp_path: Path) -> None:
    here.sync(f"hf:{REPO}")
    lines = [json.dumps(record) for record in export_records(here.registry)]
    with Library(tmp_path / "other") as library:
        report = import_records(library.registry, lines)
        assert not report.failed, report
        known = {(row["name"], row["creator"]) for row in library.registry.catalogue.models() if row["name"] != REPO}
    assert known == {("Ink wash", "anna"), ("Oil", "anna"), ("Ink wash", "ben"), ("chalk", None), ("furry", None)}


def test_what_an_import_told_of_an_archive_is_the_hubs_word_once_it_is_asked(
    hub: Sites, here: FetchSession, tmp_path: Path
) -> None:
    """An export may be made up, with a license among its tags that nobody gave."""
    here.sync(f"hf:{REPO}")
    records = list(export_records(here.registry))
    for record in records:
        if record.get("source") == "huggingface":
            record["raw"]["tags"] = ["license:mit"]
    with Library(tmp_path / "other") as library, FetchSession(library) as other:
        import_records(library.registry, map(json.dumps, records))
        files = library.registry.catalogue.files
        assert all(file["is_told"] for file in files())
        other.repair()
        assert all(file["is_told"] for file in files())
        assert all(license_of([file]) == License() for file in files())
        other.sync(f"hf:{REPO}")
        assert not any(file["is_told"] or "license:mit" in file["tags"] for file in files())


def test_half_a_letter_in_the_path_of_one_file_loses_no_other_of_an_import(here: FetchSession, tmp_path: Path) -> None:
    here.sync(f"hf:{REPO}")
    records = list(export_records(here.registry))
    told = next(record for record in records if record.get("source") == "huggingface" and record.get("files"))
    told["files"][0]["path"] = "Civitai/anna/\ud83d/1.pt"
    with Library(tmp_path / "other") as library:
        report = import_records(library.registry, map(json.dumps, records))
        assert not report.failed, report
        paths = {row["file_name"] for row in library.registry.catalogue.files(source="huggingface")}
    assert "Civitai/anna/\\ud83d/1.pt" in paths
    assert len(paths) == len(NAMES)
