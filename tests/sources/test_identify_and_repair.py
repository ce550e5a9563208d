"""`identify`, `repair`, sidecars, and a library's knowledge carried to another machine."""

from __future__ import annotations

import _thread
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import networks
from support.fake_sites import Fault, Sites, World
from support.fake_sites.messages import Request, Response
from support.fetching import EVERYTHING, installed
from support.registry_rows import row

import hnetkit
from hnetkit.cli import run
from hnetkit.errors import HnetkitError
from hnetkit.library.scan import scan
from hnetkit.registry import Registry
from hnetkit.sources import hub_plans, huggingface
from hnetkit.sources.civitai import Filters
from hnetkit.sources.export import export_records, import_records
from hnetkit.sources.maintenance import find_damage, identify_checkpoints, identify_files, requeue_damaged
from hnetkit.sources.results import require_all
from hnetkit.sources.session import FetchSession


@pytest.fixture
def mirror(open_session: Callable[..., FetchSession]) -> FetchSession:
    """A library that mirrors six models of a site that is not there any more."""
    with Sites(World.make(6, plain=True)) as sites:
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
    return session


def test_files_are_identified_all_in_one_request(
    sites: Sites, open_session: Callable[..., FetchSession], tmp_path: Path
) -> None:
    session = open_session(sites)
    known = {}
    for number, (model, version, file) in enumerate(list(sites.world.files())[:5]):
        path = tmp_path / "mine" / f"{number}.pt"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sites.world.content(file["id"]))
        known[path] = (str(model["id"]), str(version["id"]))
    stranger = networks.network_file(tmp_path / "mine", "own.pt", seed=99)
    list(scan(session.registry, [tmp_path / "mine"]))
    sites.clear()
    found = {Path(row["path"]): row for row in identify_files(session.registry, session.civitai)}
    assert len([r for r in sites.requests if r.path.endswith("by-hash/ids")]) == 1
    assert found[stranger]["model_id"] is None
    for path in found.keys() - {stranger}:
        assert found[path]["model_id"] == known[path][0], path
        assert found[path]["model"]
    sites.clear()
    list(identify_files(session.registry, session.civitai))
    assert sites.requests == [], "what is known, and what was not found lately, is not asked again"


def test_ten_thousand_hashes_are_one_request(sites: Sites, session: FetchSession) -> None:
    hashes = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(9_999)]
    file = next(f for _, _, f in sites.world.files() if f["hashes"].get("SHA256"))
    hashes.append(file["hashes"]["SHA256"].lower())
    sites.clear()
    (answer,) = session.civitai.ids_by_hash(hashes)
    assert [sha for sha, (model, _) in answer.items() if model] == [hashes[-1]]
    assert len(sites.requests) == 1


def test_what_the_site_answered_before_an_interruption_is_not_asked_again(
    sites: Sites, session: FetchSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.sources.civitai.MOST_HASHES", 2)
    (tmp_path / "nets").mkdir()
    for number in range(6):
        networks.network_file(tmp_path / "nets", f"{number}.pt", seed=number)
    list(scan(session.registry, [tmp_path / "nets"]))
    asked: list[set[str]] = []

    def interrupting(request: Request, response: Response) -> Response:
        if request.path.endswith("by-hash/ids"):
            asked.append(set(json.loads(request.body)))
            if len(asked) == 3:
                _thread.interrupt_main()
                time.sleep(0.5)  # Ctrl-C is there before the answer
        return response

    monkeypatch.setattr(sites, "alter", interrupting)
    with pytest.raises(KeyboardInterrupt):
        list(identify_files(session.registry, session.civitai))
    assert len(list(identify_files(session.registry, session.civitai))) == 6
    assert len(asked) == 4
    assert asked[3] == asked[2]


def test_a_converted_file_is_identified_as_what_it_was_converted_from(
    sites: Sites, session: FetchSession, tmp_path: Path
) -> None:
    _, _, file = next(
        entry for entry in sites.world.files() if entry[2]["hashes"].get("SHA256") and entry[2]["name"].endswith(".pt")
    )
    (tmp_path / "a.pt").write_bytes(sites.world.content(file["id"]))
    (tmp_path / "converted").mkdir()
    hnetkit.save(hnetkit.load(tmp_path / "a.pt"), tmp_path / "converted" / "a.safetensors")
    list(scan(session.registry, [tmp_path / "converted"]))
    (row,) = identify_files(session.registry, session.civitai)
    assert row["sha256"] == file["hashes"]["SHA256"].lower()
    assert row["model_id"] in {str(model["id"]) for model in sites.world.models}


def test_of_a_file_that_is_another_one_since_the_scan_nothing_is_said(
    sites: Sites, session: FetchSession, tmp_path: Path
) -> None:
    _, _, file = next(entry for entry in sites.world.files() if entry[2]["hashes"].get("SHA256"))
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "ink.pt"
    path.write_bytes(sites.world.content(file["id"]))
    list(scan(session.registry, [tmp_path / "mine"]))
    networks.network_file(tmp_path / "mine", "ink.pt", seed=99)
    (row,) = identify_files(session.registry, session.civitai)
    assert (row["state"], row["model_id"], row["model"]) == ("changed", None, None)
    assert row["reason"] == "gone or changed since: hnetkit scan"
    path.write_bytes(sites.world.content(file["id"]))
    list(scan(session.registry))
    (row,) = identify_files(session.registry, session.civitai)
    assert row["state"] == "known"


def test_the_checkpoint_that_networks_were_trained_on_is_looked_up_once(
    sites: Sites, session: FetchSession, tmp_path: Path
) -> None:
    networks.network_file(tmp_path / "nets" if (tmp_path / "nets").mkdir() is None else tmp_path, "a.pt")
    list(scan(session.registry, [tmp_path / "nets"]))
    sites.clear()
    (row,) = identify_checkpoints(session.registry, session.civitai)
    assert (row["checkpoint"], row["model_id"]) == ("d7049739", None)
    assert len(sites.requests) == 1
    list(identify_checkpoints(session.registry, session.civitai))
    assert len(sites.requests) == 1


def test_what_is_missing_or_damaged_is_fetched_again_and_the_damaged_is_kept(
    open_session: Callable[..., FetchSession],
) -> None:
    with Sites(World.make(6, plain=True)) as sites:
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
        first, second, *others = sorted(installed(session).values())
        digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)}
        first.unlink()
        data = bytearray(second.read_bytes())
        data[-200] ^= 1
        second.write_bytes(data)
        found = {damage.path: damage for damage in find_damage(session.registry)}
        assert {path: damage.what for path, damage in found.items()} == {str(first): "missing", str(second): "corrupt"}
        results = {result.paths[0]: result for result in session.repair(found.values())}
        (kept,) = (session.folder / ".quarantine").glob("*.bad")
        assert {path: (r.state, r.reason) for path, r in results.items()} == {
            str(first): ("done", None),
            str(second): ("done", f"the damaged file is now {kept}"),
        }
        assert {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in digests} == digests
        assert kept.read_bytes() == bytes(data)
        assert list(find_damage(session.registry)) == []
        assert others


def test_sidecars_and_a_preview_lie_beside_what_was_installed_and_a_persons_own_stay(
    open_session: Callable[..., FetchSession],
) -> None:
    with Sites(World.make(4, plain=True)) as sites:
        session = open_session(sites)
        plan = session.plan(EVERYTHING, all_versions=True)
        pictured = {version.id for model in plan.models for version in model.versions if version.images}
        item = next(item for item in plan.items if item.version_id in pictured)
        session.folder.mkdir()
        stem = item.name.rsplit(".", 1)[0]
        own = {"notes": "mine", "preferred weight": 0.4, "extra": 1, "modelVersionId": item.version_id}
        (session.folder / f"{stem}.json").write_text(json.dumps(own))
        session.sync(EVERYTHING, all_versions=True)
    info = json.loads((session.folder / f"{stem}.civitai.info").read_text())
    assert (info["id"], info["modelId"]) == (item.version_id, item.model_id)
    assert info["model"]["type"] == "Hypernetwork"
    merged = json.loads((session.folder / f"{stem}.json").read_text())
    assert (merged["notes"], merged["preferred weight"], merged["extra"]) == ("mine", 0.4, 1)
    for path in session.folder.glob("*.preview.*"):
        assert path.suffix == (".png" if path.read_bytes().startswith(b"\x89PNG") else ".jpeg")
    assert list(session.folder.glob("*.preview.*"))


def test_no_picture_above_pg13_comes_unless_asked_for(open_session: Callable[..., FetchSession]) -> None:
    with Sites(World.make(39)) as sites:
        session = open_session(sites)
        session.sync(EVERYTHING, all_versions=True)
        levels = {
            i["url"].split("/")[-1]: i.get("nsfwLevel")
            for m in sites.world.models
            for v in m["modelVersions"]
            for i in v.get("images") or ()
        }
        fetched = [r.path.split("/")[-1] for r in sites.requests if "/images/" in r.path]
        assert fetched
        assert all((levels[name] or 0) & ~3 == 0 for name in fetched)


def test_a_scan_reads_what_other_programs_left_beside_the_files(tmp_path: Path, home: Path) -> None:
    path = networks.network_file(tmp_path, "ink.pt")
    (tmp_path / "ink.json").write_text(json.dumps({"preferred weight": 0.7, "notes": "for hair"}))
    with Registry(home / "r.db") as registry:
        list(scan(registry, [tmp_path]))
        (row,) = registry.files.rows()
        assert row["path"] == str(path)
        (said,) = registry.files.sidecars([row["id"]]).values()
        assert said == {"preferred_weight": 0.7, "notes": "for hair"}


def test_what_is_known_travels_as_json_lines(mirror: FetchSession, tmp_path: Path) -> None:
    with mirror.registry.write():
        row = mirror.registry.networks.rows()[0]
        mirror.registry.networks.add_tags(row["id"], ["anime", "ink"])
        mirror.registry.networks.set_note(row["id"], "best at 0.6")
        mirror.registry.networks.set_alias(row["id"], "lines")
        mirror.registry.subscriptions.put("all", Filters(nsfw=True).as_dict())
    lines = [json.dumps(record) for record in export_records(mirror.registry)]
    assert not any(str(mirror.folder) in line for line in lines)
    with Registry(tmp_path / "other.db") as other:
        counts = import_records(other, lines).counts
        assert counts["model"] == 6
        assert [json.dumps(record) for record in export_records(other)] == lines
        (same,) = other.networks.of_contents([row["content_hash"]])
        assert (same["tags"], same["note"], same["aliases"]) == (["anime", "ink"], "best at 0.6", ["lines"])
        assert other.subscriptions.rows()[0]["filters"] == {"nsfw": True}
        assert len(other.catalogue.files()) == len(mirror.registry.catalogue.files())
        with other.write():
            other.networks.set_note(same["id"], "no, 0.5")
        import_records(other, lines)
        assert other.networks.of_contents([row["content_hash"]])[0]["note"] == "no, 0.5", (
            "what a person said here stays"
        )


@pytest.mark.parametrize("lines", [["x"], ["[]"], ['{"kind": "network"}'], ['{"kind": "hnetkit", "version": 99}']])
def test_what_export_did_not_write_is_refused_whole(lines: list[str], tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        with pytest.raises(HnetkitError):
            import_records(registry, [*lines, SUBSCRIPTION])
        assert registry.subscriptions.rows() == []


HEAD = '{"kind": "hnetkit", "version": 1}'
SUBSCRIPTION = '{"kind": "subscription", "name": "a", "filters": {}}'


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        *(({"widths": value}, "widths is not a list of widths") for value in (5, None, [1.5], [-1], ["320"], [2**80])),
        *(({key: 5}, f"{key} is not a text") for key in ("name", "activation", "dtype", "base_model", "note")),
        ({"name": "x" * 300_000}, "name is not a text as a network's file holds"),
        *(({key: [None]}, f"{key} is not a list of texts") for key in ("tags", "aliases")),
        ({"content_hash": "h1:x"}, "not a content hash"),
        ({"layer_norm": "no"}, "not true or false"),
        ({"layer_structure": [float("nan")]}, "not a list of numbers"),
        ({"metadata": []}, "not an object"),
        ({"parameters": 2**63}, "not a number"),
        ({"metadata": {"a": json.loads("[" * 150 + "]" * 150)}}, "nested too deeply"),
    ],
)
def test_a_network_of_any_other_shape_is_named_and_the_other_lines_are_taken_in(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    line = json.dumps({**row(1), "kind": "network", "tags": ["x"], **change})
    with Registry(tmp_path / "r.db") as registry:
        found = import_records(registry, [HEAD, SUBSCRIPTION, line, json.dumps({**row(2), "kind": "network"})])
        assert dict(found.counts) == {"subscription": 1, "network": 1}
        (failure,) = found.failures
        assert failure.startswith("line 3: ")
        assert reason in failure
        assert [network["name"] for network in registry.networks.rows()] == ["net2"]
        assert registry.check() == "1 network in 0 files"


def test_an_empty_tag_or_alias_that_another_program_wrote_loses_none_of_the_others(tmp_path: Path) -> None:
    with Registry(tmp_path / "here.db") as registry:
        with registry.write():
            registry.files.put(registry.files.add_root(tmp_path), "ink.pt", 1, 1, row(1))
            registry.networks.put(row(1))
            registry.networks.add_tags(1, ["", "lineart"])
            registry.networks.set_note(1, "at 0.5")
            registry.networks.set_alias(1, "")
            registry.networks.set_alias(1, "best")
        lines = [json.dumps(record) for record in export_records(registry)]
    with Registry(tmp_path / "there.db") as registry:
        found = import_records(registry, lines)
        (network,) = registry.networks.rows()
        assert (network["tags"], network["note"], network["aliases"]) == (["lineart"], "at 0.5", ["best"])
        assert found.failures == ()


def test_what_a_network_need_not_state_may_be_left_out_of_its_line(tmp_path: Path) -> None:
    needed = {key: value for key, value in row(1).items() if not key.startswith("sd_checkpoint") and key != "step"}
    with Registry(tmp_path / "r.db") as registry:
        found = import_records(registry, [HEAD, json.dumps({**needed, "kind": "network"})])
        assert (dict(found.counts), found.failures) == ({"network": 1}, ())
        assert [network["step"] for network in registry.networks.rows()] == [None]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"kind": "subscription", "name": "b", "filters": {"base_models": 7}}', "not an object of filters"),
        (b'{"kind": "subscription", "name": "b", "filters": {"ids": ["x"]}}', "not an object of filters"),
        (b'{"kind": "subscription", "name": 5, "filters": {}}', "name is not a text"),
        (b'{"kind": "model", "source": "civitai", "raw": 5}', "raw is not an object"),
        (b'{"kind": "model", "source": "civitai", "raw": {"id": 5}, "state": "lost"}', "constraint"),
        (b'{"kind": "subscription", "name": "\xe9"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[" + b"{}," * 1_000_000 + b"0]", "not JSON"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_the_other_lines_are_taken_in(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    with Registry(tmp_path / "r.db") as registry:
        found = import_records(registry, [HEAD, line, SUBSCRIPTION.encode()])
        (failure,) = found.failures
        assert failure.startswith("line 2: ")
        assert reason in failure
        assert dict(found.counts) == {"subscription": 1}
        assert registry.catalogue.models() == []
        assert [saved["name"] for saved in registry.subscriptions.rows()] == ["a"]


def test_a_filter_that_a_later_version_knows_is_left_out(tmp_path: Path) -> None:
    line = '{"kind": "subscription", "name": "b", "filters": {"nsfw": true, "mood": 7}}'
    with Registry(tmp_path / "r.db") as registry:
        assert import_records(registry, [HEAD, line]).failures == ()
        assert registry.subscriptions.rows()[0]["filters"] == {"nsfw": True}


BAD_ALIASES = [
    *("h1:" + "a" * 64, "b" * 64, "deadbeef", "ink@deadbeef", "a:b", "<x>", " ", "\x1b[31mred", "in\u200bk"),
    *("--missing", "-y", " ink", "x" * 201, "\u202egnp"),
]


@pytest.mark.parametrize("alias", BAD_ALIASES)
def test_an_alias_that_is_none_is_left_out_by_name_and_the_rest_of_its_line_is_taken_in(
    tmp_path: Path, alias: str
) -> None:
    line = json.dumps({**row(1), "kind": "network", "tags": ["x"], "aliases": [alias, "best"]})
    with Registry(tmp_path / "r.db") as registry:
        found = import_records(registry, [HEAD, line])
        assert (dict(found.counts), found.failed) == ({"network": 1}, 1)
        (failure,) = found.failures
        assert failure.startswith("line 2: left out: ")
        assert "cannot be an alias: " in failure
        assert failure.isprintable()
        assert len(failure) < 400
        (network,) = registry.networks.rows()
        assert (network["aliases"], network["tags"]) == (["best"], ["x"])


def test_an_alias_that_is_the_name_of_another_networks_file_is_left_out_by_name(tmp_path: Path, home: Path) -> None:
    networks.network_file(tmp_path, "ink.pt")
    with Registry(home / "r.db") as registry:
        list(scan(registry, [tmp_path]))
        line = json.dumps({**row(1), "kind": "network", "aliases": ["ink", "best"]})
        (failure,) = import_records(registry, [HEAD, line]).failures
        assert "ink is the name of" in failure
        assert registry.networks.of_contents([row(1)["content_hash"]])[0]["aliases"] == ["best"]


def test_of_very_many_aliases_that_are_none_the_first_are_named_and_all_are_counted(tmp_path: Path) -> None:
    line = json.dumps({**row(1), "kind": "network", "aliases": [f"-{n}" for n in range(5000)]})
    with Registry(tmp_path / "r.db") as registry:
        (failure,) = import_records(registry, [HEAD, line]).failures
        assert failure.startswith("line 2: left out 5,000, of which the first are: '-0' cannot be an alias")
        assert len(failure) < 400


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        *(({"kind": kind, "name": "b"}, "not a record of hnetkit") for kind in (None, 5, [], {}, True, ["network"])),
        ({"name": "b"}, "not a record of hnetkit"),
        ({"kind": ""}, "of an unknown kind"),
        ({"kind": "Network"}, "of an unknown kind: Network"),
        ({"kind": "x" * 2_000_000}, "of an unknown kind: xxx"),
        ({"kind": "\x1b[31m\u202e"}, "of an unknown kind: \\x1b[31m\\u202e"),
        ({"kind": "hnetkit", "version": 99}, "unknown format version 99"),
        ({"kind": "hnetkit", "version": "9" * 2_000_000}, "unknown format version 999"),
        ({"kind": "model", "source": "civitai", "raw": {}}, "not a record of a model of civitai"),
        ({"kind": "model", "source": "civitai", "raw": {"id": 5}, "id": "6"}, "or of another model"),
        ({"kind": "model", "source": "huggingface", "raw": {"id": "a/b"}}, "not a record of a model of huggingface"),
        ({"kind": "model", "source": "y" * 2_000_000, "raw": {"id": 5}}, "not a record of a model of yyy"),
    ],
)
def test_a_line_of_which_nothing_can_be_made_is_named_in_few_words_and_not_counted(
    tmp_path: Path, record: dict[str, object], reason: str
) -> None:
    with Registry(tmp_path / "r.db") as registry:
        found = import_records(registry, [HEAD, json.dumps(record), SUBSCRIPTION])
        assert (dict(found.counts), found.failed) == ({"subscription": 1}, 1)
        (failure,) = found.failures
        assert failure.startswith("line 2: ")
        assert reason in failure
        assert len(failure) < 400
        assert failure.isprintable()
        assert registry.catalogue.models() == []
        assert registry.networks.rows() == []


def test_a_first_line_of_another_form_is_named_in_few_words(tmp_path: Path) -> None:
    with (
        Registry(tmp_path / "r.db") as registry,
        pytest.raises(HnetkitError, match="line 1: unknown format version") as caught,
    ):
        import_records(registry, [json.dumps({"kind": "hnetkit", "version": "9" * 2_000_000})])
    assert len(str(caught.value)) < 400


def test_several_exports_in_a_row_are_one(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        found = import_records(registry, [HEAD, SUBSCRIPTION, HEAD, SUBSCRIPTION])
        assert (dict(found.counts), found.failures) == ({"subscription": 2}, ())


def test_what_the_hub_says_of_a_repository_travels_too(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry, Registry(tmp_path / "other.db") as other:
        with registry.write():
            hub_plans.store_repo(registry, huggingface.Repo("a/b", "0a" * 20, ("ink",), 7))
        lines = [json.dumps(record) for record in export_records(registry)]
        assert dict(import_records(other, lines).counts) == {"model": 1}
        assert [json.dumps(record) for record in export_records(other)] == lines


def test_odd_parts_of_a_sites_record_are_named_and_the_rest_of_it_is_taken_in(tmp_path: Path) -> None:
    raw = {"id": 5, "modelVersions": [{}, {"id": 6, "files": [{"id": 7}, "x"]}]}
    with Registry(tmp_path / "r.db") as registry:
        found = import_records(registry, [HEAD, json.dumps({"kind": "model", "source": "civitai", "raw": raw})])
        assert found.failures == ("line 2: left out: versions without a number (1), files without a number (1)",)
        assert [file["file_id"] for file in registry.catalogue.files()] == ["7"]


def test_of_very_many_wrong_lines_the_first_are_named_and_all_are_counted(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        found = import_records(registry, [HEAD, *["x"] * 3000, SUBSCRIPTION])
        assert (len(found.failures), found.failed) == (1000, 3000)
        assert dict(found.counts) == {"subscription": 1}


def test_a_network_on_many_lines_is_looked_up_by_its_hash_alone(tmp_path: Path) -> None:
    def lines(count: int) -> list[str]:
        return [HEAD, *(json.dumps({**row(1), "kind": "network", "tags": [f"t{n}"]}) for n in range(count))]

    def time_of(count: int) -> float:
        with Registry(tmp_path / f"{count}.db") as registry:
            began = time.process_time()
            assert import_records(registry, lines(count)).counts == {"network": count}
            assert len(registry.networks.rows()[0]["tags"]) == count
            return time.process_time() - began

    time_of(50)
    assert time_of(4000) < 8 * time_of(1000)


@pytest.mark.parametrize("lines", [[], ["\n", "  \n"]])
def test_a_file_with_nothing_in_it_is_no_export(lines: list[str], open_session: Callable[..., FetchSession]) -> None:
    with Sites(World.make(1)) as sites, pytest.raises(HnetkitError, match="it is empty"):
        import_records(open_session(sites).registry, lines)


def test_what_could_not_be_fetched_again_is_still_missing_for_the_next_repair(site: Sites, here: FetchSession) -> None:
    here.sync(EVERYTHING, all_versions=True)
    lost, *_ = sorted(installed(here).values())
    lost.unlink()
    site.faults.add(Fault("N", "api", times=1, status=410))
    for state in ("failed", "done"):
        (result,) = here.repair()
        assert result.state == state
    assert lost.is_file()
    assert list(find_damage(here.registry)) == []


@pytest.mark.parametrize("missing", [False, True])
def test_what_was_deleted_and_forgotten_is_not_missing_any_more(site: Sites, here: FetchSession, missing: bool) -> None:
    here.sync(EVERYTHING)
    *_, gone = sorted(installed(here).values())
    gone.unlink()
    assert [damage.what for damage in here.damages()] == ["missing"]
    if missing:
        here.library.scan()
        here.library.forget(missing=True)
    else:
        here.library.forget(gone.stem)
    assert here.damages() == []
    assert here.repair() == []
    assert len(here.plan(EVERYTHING).to_fetch) == 1


@pytest.mark.parametrize("kept", ["ink.pt", "ink.safetensors"])
def test_what_was_forgotten_and_is_here_under_another_name_is_still_looked_after(
    site: Sites, here: FetchSession, kept: str
) -> None:
    here.sync(EVERYTHING)
    *_, gone = sorted(installed(here).values())
    other = here.folder / "own words" / kept
    other.parent.mkdir()
    gone.rename(other.with_suffix(".pt"))
    if kept.endswith(".safetensors"):
        hnetkit.save(hnetkit.load(other.with_suffix(".pt")), other)
        other.with_suffix(".pt").unlink()
    here.library.scan()
    here.library.forget(missing=True)
    other.unlink()
    assert [damage.what for damage in here.damages()] == ["missing"]


def test_what_is_elsewhere_by_now_is_not_missing_any_more(site: Sites, here: FetchSession, tmp_path: Path) -> None:
    here.sync(EVERYTHING, all_versions=True)
    moved, *_ = sorted(installed(here).values())
    (tmp_path / "mine").mkdir()
    moved.rename(tmp_path / "mine" / moved.name)
    list(scan(here.registry, [tmp_path / "mine"]))
    assert here.repair() == []
    assert list(find_damage(here.registry)) == []
    assert (tmp_path / "mine" / moved.name) in installed(here).values()
    assert not moved.exists()


def test_a_link_to_what_is_not_there_is_called_so_and_repaired_once_it_is_away(
    here: FetchSession, tmp_path: Path
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    lost, *_ = sorted(installed(here).values())
    moved = lost.rename(tmp_path / "archived.pt")
    lost.symlink_to(moved)
    assert here.repair() == []
    moved.unlink()
    (result,) = here.repair()
    assert result.state == "failed"
    assert str(result.reason) == f"{lost}: a link to {moved}, which is not there"
    with pytest.raises(HnetkitError) as failed:
        require_all([result])
    assert "its disk is there, or move it away" in str(failed.value.command_hint)
    lost.unlink()
    assert [result.state for result in here.repair()] == ["done"]


def test_repair_brings_no_other_content_than_was_there(
    site: Sites, here: FetchSession, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    sha256, lost = sorted(installed(here).items())[0]
    lost.unlink()
    for _, _, file in list(site.world.files()):
        site.world.replace_file(file["id"])
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
    assert run(["repair"]) != 0
    assert f"you asked for {sha256}" in capsys.readouterr().out
    assert not lost.exists()


def test_taking_up_what_is_missing_takes_as_long_for_each_in_a_large_library(tmp_path: Path) -> None:
    def time_of(count: int) -> float:
        with Registry(tmp_path / f"{count}.db") as registry:
            with registry.write():
                root = registry.files.add_root(tmp_path)
                for number in range(count):
                    path, sha256 = tmp_path / f"n{number}.pt", hashlib.sha256(str(number).encode()).hexdigest()
                    registry.files.put(root, path.name, 1, 1, {**row(1), "sha256": sha256, "content_hash": None})
                    values = {"source": "civitai", "url": "", "name": path.stem, "suffix": ".pt"}
                    values |= {"folder": str(tmp_path), "remote_file_id": None, "sha256": sha256, "size_bytes": 5}
                    job = registry.jobs.add(f"civitai:{number}", values)
                    registry.jobs.set_state(job.id, "done")
                    registry.jobs.add_install(str(path), job.id, "network", sha256)
            found = list(find_damage(registry))
            assert len(found) == count
            began = time.process_time()
            for damage in found[:30]:
                requeue_damaged(registry, damage, tmp_path)
            assert len(registry.files.missing()) == 30
            return time.process_time() - began

    time_of(30)
    assert time_of(2000) < 5 * time_of(60)


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
def test_a_link_that_a_person_put_in_the_place_of_a_file_is_kept_and_leads_where_it_led(
    site: Sites, here: FetchSession, tmp_path: Path
) -> None:
    here.sync(EVERYTHING, all_versions=True)
    path = next(iter(installed(here).values()))
    mine = tmp_path / "mine" / "my.pt"
    mine.parent.mkdir()
    mine.write_bytes(b"my own work")
    path.unlink()
    path.symlink_to(os.path.relpath(mine, path.parent))
    assert [result.state for result in here.repair()] == ["done"]
    kept = here.folder / ".quarantine" / f"{path.name}.bad"
    assert kept.is_symlink()
    assert kept.read_bytes() == mine.read_bytes() == b"my own work"


@pytest.mark.skipif(os.name == "nt", reason="this system has no named pipes")
def test_who_waits_for_a_pipe_keeps_nobody_from_the_registry(home: Path) -> None:
    beginning = b'{"kind": "hnetkit", "version": 1}\n'
    command = [sys.executable, "-m", "hnetkit", "import", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as waiting:
        assert waiting.stdin is not None
        waiting.stdin.write(beginning)
        waiting.stdin.flush()
        time.sleep(2)
        started = time.monotonic()
        with Registry(home / "registry.db") as registry, registry.write():
            pass
        assert time.monotonic() - started < 10
        waiting.stdin.close()
        assert waiting.wait() == 0


def test_an_import_of_holes_is_refused_at_once(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "library.jsonl"
    path.write_text('{"kind": "hnetkit", "version": 1}\n')
    os.truncate(path, 200 << 30)
    assert run(["import", str(path)]) == 2
    assert "as no export is" in capsys.readouterr().err
