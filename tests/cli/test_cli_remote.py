"""`browse`, `pull`, `sync`, `updates`, `identify`, `repair`, `export`, `import` as a person or a script meets them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_sites import Sites, World
from support.odd_answers import network_bytes, zipped

import hnetkit
from hnetkit.cli import run

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shared_sites() -> Iterator[Sites]:
    with Sites(World.make(12, plain=True), needs_token=True) as sites:
        yield sites


@pytest.fixture
def sites(shared_sites: Sites, monkeypatch: pytest.MonkeyPatch) -> Sites:
    shared_sites.clear()
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", shared_sites.civitai_url)
    monkeypatch.setenv("CIVITAI_TOKEN", shared_sites.token)
    return shared_sites


def rows(capsys: Capture) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_a_sync_without_a_filter_asks_first_and_a_script_must_agree(sites: Sites, home: Path, capsys: Capture) -> None:
    assert run(["sync"]) == 2
    error = capsys.readouterr().err
    assert "to fetch" in error
    assert "add -y to agree" in error
    assert not (home / "library").exists()
    assert run(["sync", "-y", "--all-versions", "--nsfw", "--json"]) == 0
    synced = rows(capsys)
    assert {row["state"] for row in synced} <= {"done", "had"}
    assert all(Path(path).is_file() for row in synced for path in row["paths"])  # type: ignore[attr-defined]
    assert run(["sync", "-y", "--all-versions", "--nsfw", "--json"]) == 0
    assert rows(capsys) == []
    assert run(["list", "--json"]) == 0
    assert len(rows(capsys)) == len({path for row in synced for path in row["paths"]})  # type: ignore[attr-defined]


@pytest.mark.parametrize(("place", "why"), [("link", "not a folder, or a link"), ("file/below", "Not a directory")])
def test_a_library_where_none_can_be_is_no_failure_of_the_network(
    sites: Sites, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, place: str, why: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "unplugged")
    monkeypatch.setenv("HNETKIT_LIBRARY", str(tmp_path / place))
    assert run(["pull", f"model:{sites.world.ids()[0]}"]) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path / place}: {why}" in said
    assert "Hint: see that the library's folder is there and can be written; HNETKIT_LIBRARY names another" in said


def test_a_dry_run_shows_sizes_and_makes_not_even_a_registry(sites: Sites, home: Path, capsys: Capture) -> None:
    assert run(["sync", "--dry-run", "--json"]) == 0
    plan = rows(capsys)
    assert {row["state"] for row in plan} == {"fetch"}
    assert all(row["size_bytes"] for row in plan)
    assert list(home.iterdir()) == []


def test_a_dry_run_names_the_model_of_each_file_and_ends_with_the_totals(
    sites: Sites, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", sys.stdout)
    assert run(["sync", "--dry-run", "--creator", str(sites.world.models[0]["creator"]["username"])]) == 0
    *lines, total = capfd.readouterr().out.splitlines()
    assert any(line.startswith("fetch ") and sites.world.models[0]["name"] in line for line in lines)
    assert " to fetch (" in total


def test_metadata_alone_is_kept_without_a_file(sites: Sites, home: Path, capsys: Capture) -> None:
    assert run(["sync", "--metadata-only", "-y"]) == 0
    told = capsys.readouterr().err
    assert "stores the records of 10 models and 11 files" in told
    assert "to fetch" not in told
    assert not (home / "library").exists()
    assert not [r for r in sites.requests if "/download/" in r.path]


def test_filters_are_remembered_under_a_name(sites: Sites, capsys: Capture) -> None:
    creator = next(m["creator"]["username"] for m in sites.world.models if isinstance(m.get("creator"), dict))
    assert run(["sync", "--creator", str(creator), "--save", "mine", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)
    assert f"saved as mine: username={creator}; hnetkit sync mine runs it again\n" in told.err
    assert run(["sync", "--subscriptions", "--json"]) == 0
    (saved,) = rows(capsys)
    assert (saved["name"], saved["filters"]) == ("mine", {"username": str(creator)})
    assert saved["synced_at"]
    assert run(["sync", "mine", "--json"]) == 0
    assert rows(capsys) == []
    assert run(["sync", "yours"]) == 4
    assert run(["sync", "--unsave", "yours"]) == 4
    assert run(["sync", "--unsave", "yours", "--dry-run"]) == 4
    assert run(["sync", "--unsave", "mine", "--dry-run"]) == 0
    assert run(["sync", "mine", "--tag", "x"]) == 2
    capsys.readouterr()
    assert run(["sync", "--unsave", "mine", "--json"]) == 0
    told = capsys.readouterr()
    assert (json.loads(told.out), told.err) == ([], "mine is not saved any more; fetched files stay\n")
    assert run(["sync", "mine"]) == 4


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("model:4209", "hnetkit pull model:4209"),
        ("https://civitai.com/models/4209", "hnetkit pull https://civitai.com/models/4209"),
        ("https://civitai.com/models/4209?token=s3cret", "hnetkit pull takes such an address"),
        ("https://civitai.com/user/luisa_pinguin", "hnetkit sync --creator luisa_pinguin --dry-run"),
        ("https://civitai.com/tag/watercolor", "hnetkit sync --tag watercolor --dry-run"),
        ("https://civitai.com/search/models?query=s3cret", "hnetkit sync --subscriptions lists them"),
        ("yours #2", "hnetkit sync --subscriptions lists them"),
    ],
)
def test_what_sync_does_not_take_is_answered_with_the_command_that_takes_it(
    sites: Sites, capsys: Capture, text: str, hint: str
) -> None:
    assert run(["sync", text]) == 4
    told = capsys.readouterr().err
    assert told.endswith(f"\nHint: {hint}\n")
    assert text in told or "s3cret" not in told


def test_a_sync_whose_filters_find_nothing_says_so(sites: Sites, capsys: Capture) -> None:
    for command in (["sync"], ["sync", "--dry-run"], ["browse"]):
        assert run([*command, "--tag", "nosuch"]) == 0
        assert "nothing found; --nsfw also finds what the site marks so\n" in capsys.readouterr().err
        assert run([*command, "--tag", "nosuch", "--nsfw"]) == 0
        assert "nothing found\n" in capsys.readouterr().err
    assert run(["sync", "--ids", str(sites.world.ids()[0])]) == 0
    assert "nothing found" not in capsys.readouterr().err


def test_browse_shows_what_people_choose_by(sites: Sites, home: Path, capsys: Capture) -> None:
    assert run(["browse", "--limit", "3", "--json"]) == 0
    found = rows(capsys)
    assert len(found) == 3
    assert found[0].keys() >= {"id", "name", "base_models", "size", "license", "downloads", "strength"}
    assert run(["browse", "--limit", "3"]) == 0
    assert "there are more; --limit 6 shows more of them" in capsys.readouterr().err
    assert run(["browse", "--limit", "12"]) == 0
    assert "there are more" not in capsys.readouterr().err
    assert run(["browse", "--creator", "nobody at all"]) == 4
    assert list(home.iterdir()) == []


def test_pull_prints_where_it_put_what(sites: Sites, home: Path, capsys: Capture) -> None:
    id = sites.world.ids()[0]
    assert run(["pull", f"model:{id}"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"done     {home / 'library'}")
    assert run(["pull", f"model:{id}", "--json"]) == 0
    assert [f"have     {path}\n" for row in rows(capsys) for path in row["paths"]] == [  # type: ignore[attr-defined]
        line.replace("done", "have") + "\n" for line in out.splitlines()
    ]
    assert run(["pull", "model:5"]) == 4
    assert run(["pull", f"model:{id}", "model:5"]) == 1
    assert "1 of 2 failed\nHint: hnetkit pull version:5\n" in capsys.readouterr().err
    assert run(["pull", f"model:{id}", "model:5", "what"]) == 1
    assert "2 of 3 failed\nHint: correct them; the others were fetched\n" in capsys.readouterr().err
    assert run(["pull", "model:5", "version:5"]) == 1
    assert "2 of 2 failed\nHint: correct them\n" in capsys.readouterr().err
    assert run(["pull", "what"]) == 2


def test_a_dry_run_of_pull_shows_what_a_dry_run_of_sync_shows_and_makes_not_even_a_registry(
    sites: Sites, home: Path, capsys: Capture
) -> None:
    ids = [model["id"] for model in sites.world.models[:3]]
    assert run(["sync", "--dry-run", "--ids", ",".join(map(str, ids)), "--json"]) == 0
    of_sync, total = rows_and_total(capsys)
    assert run(["pull", "--dry-run", *[f"model:{id}" for id in ids], "--json"]) == 0
    assert rows_and_total(capsys) == (of_sync, total)
    assert {row["state"] for row in of_sync} == {"fetch"}
    assert list(home.iterdir()) == []
    assert run(["pull", "--dry-run", f"model:{ids[0]}", "model:5", "--json"]) == 1
    told = capsys.readouterr()
    assert [(row["state"], row["model_id"] or row["name"]) for row in json.loads(told.out)] == [
        ("failed", "model:5"),
        ("fetch", ids[0]),
    ]
    assert "model:5" in told.err


def test_rows_hold_every_reference_that_was_asked_for(
    sites: Sites, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    there = f"model:{sites.world.ids()[0]}"
    for command in (["pull"], ["pull", "--dry-run"]):
        assert run([*command, there, "model:7", "what", "--json"]) == 1
        told = capsys.readouterr()
        failed = {row["name"]: row for row in json.loads(told.out) if row["state"] == "failed"}
        assert (failed["model:7"]["code"], failed["what"]["code"]) == ("gone", "failed")
        assert all(row["reason"] and row["reason"] in told.err for row in failed.values())
        assert len(json.loads(told.out)) > len(failed)
        assert run([*command, "model:7", "--csv"]) == 4
        assert [line.split(",")[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [["failed", "model:7"]]
    assert run(["sync", "hf:no/such", "--nl"]) == 5
    told = capsys.readouterr()
    assert (json.loads(told.out)["name"], json.loads(told.out)["state"]) == ("hf:no/such", "failed")
    assert run(["pull", there, "model:7"]) == 1
    assert "model:7" not in capsys.readouterr().out, "lines of text tell of failures once"


def test_what_is_fetched_and_what_is_to_be_repaired_are_rows_with_the_same_columns_and_a_path(
    sites: Sites, capsys: Capture
) -> None:
    model = f"model:{sites.world.ids()[0]}"
    found = []
    for command in (["pull", model], ["pull", model], ["pull", model, "--dry-run"]):
        assert run([*command, "--csv"]) == 0
        found.append(list(csv.DictReader(io.StringIO(capsys.readouterr().out))))
    (came,), (had,), (planned,) = found
    assert came["path"] == had["path"] == planned["path"]
    Path(came["path"]).unlink()
    for command in (["repair", "--dry-run", "--refill"], ["repair", "--refill"]):
        assert run([*command, "--csv"]) == 0
        (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert (list(row), row["path"]) == (list(came), came["path"])


def rows_and_total(capsys: Capture) -> tuple[list[dict[str, object]], str]:
    told = capsys.readouterr()
    found: list[dict[str, object]] = json.loads(told.out)
    return sorted(found, key=lambda row: str(row["file_id"])), told.err.splitlines()[-1]


@pytest.mark.parametrize(("most", "asks"), [("1kB", True), ("0", True), ("1GB", False), ("off", False), (None, False)])
def test_pull_asks_above_a_size_that_is_a_setting(
    sites: Sites, home: Path, capsys: Capture, most: str | None, asks: bool
) -> None:
    if most is not None:
        assert run(["config", "unasked", most]) == 0
    model = f"model:{sites.world.models[0]['id']}"
    sites.clear()
    capsys.readouterr()
    assert run(["pull", model]) == (2 if asks else 0)
    told = capsys.readouterr().err
    assert ("add -y to agree" in told) == asks
    assert bool([r for r in sites.requests if "/download/" in r.path]) != asks
    assert run(["pull", "-y", model]) == 0
    assert run(["pull", model]) == 0, "there is nothing to agree to"


@pytest.mark.parametrize("ref", ["hf:a/b", "version:4931", "0123456789", "https://example.org/ink.pt"])
def test_all_versions_of_what_is_no_model_are_refused_by_name(sites: Sites, capsys: Capture, ref: str) -> None:
    for refs in ([ref], [f"model:{sites.world.ids()[0]}", ref]):
        assert run(["pull", *refs, "--all-versions"]) == 2
        assert f"Error: {ref}: --all-versions is for models of Civitai\n" in capsys.readouterr().err
    assert run(["pull", "https://civitai.com/models/4209?modelVersionId=4931", "--all-versions"]) == 2
    assert "Hint: hnetkit pull model:4209 --all-versions\n" in capsys.readouterr().err
    assert sites.requests == []


def test_sync_by_filters_and_repair_ask_above_that_size_too(sites: Sites, capsys: Capture) -> None:
    model = sites.world.ids()[0]
    for size, asks in (("1kB", True), ("off", False)):
        assert run(["config", "unasked", size]) == 0
        sites.clear()
        assert run(["sync", "--ids", str(model)]) == (2 if asks else 0)
        assert ("add -y to agree" in capsys.readouterr().err) == asks
        assert bool([r for r in sites.requests if "/download/" in r.path]) != asks
    assert run(["pull", f"model:{model}", "--json"]) == 0
    (row,) = rows(capsys)
    Path(str(row["path"])).unlink()
    assert run(["config", "unasked", "1kB"]) == 0
    assert run(["repair", "--refill"]) == 2
    assert "Fetch 1 file (" in capsys.readouterr().err
    assert run(["repair", "--refill", "-y"]) == 0
    assert Path(str(row["path"])).is_file()


def test_without_a_token_the_exit_code_is_3_and_the_hint_names_the_variable(
    sites: Sites, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.delenv("CIVITAI_TOKEN")
    assert run(["pull", f"model:{sites.world.ids()[0]}"]) == 3
    error = capsys.readouterr().err
    assert "CIVITAI_TOKEN" in error
    assert "Traceback" not in error


def test_no_site_at_all_is_exit_5_within_a_minute(
    sites: Sites, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", "http://127.0.0.1:9/api/v1")
    monkeypatch.setattr("hnetkit.sources.http.LONGEST_WAIT_S", 0.1)
    started = time.monotonic()
    with pytest.warns(UserWarning, match=r"^127\.0\.0\.1: no connection; trying again$"):
        assert run(["browse"]) == 5
    assert time.monotonic() - started < 60
    assert "models: 127.0.0.1: no connection (6 attempts)" in capsys.readouterr().err
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", "not an address")
    assert run(["browse"]) == 2


def test_identify_repair_and_updates_of_a_fresh_mirror(sites: Sites, home: Path, capsys: Capture) -> None:
    run(["sync", "-y", "-q"])
    capsys.readouterr()
    assert run(["identify", "--json"]) == 0
    known = rows(capsys)
    assert sum(row["model_id"] is not None for row in known) >= len(known) - 2  # some the site has no hash of
    assert run(["updates", "--json"]) == 0
    assert rows(capsys) == []
    victim = Path(str(known[0]["path"]))
    victim.unlink()
    assert run(["repair", "--dry-run", "--json"]) == 0
    assert [(row["state"], row["path"]) for row in rows(capsys)] == [("missing", str(victim))]
    assert run(["repair", "--json"]) == 0
    assert [row["state"] for row in rows(capsys)] == ["done"]
    assert victim.is_file()
    name = victim.stem
    assert run(["show", name]) == 0
    assert "civitai" in capsys.readouterr().out


def test_export_and_import_carry_the_words(sites: Sites, tmp_path: Path, capsys: Capture) -> None:
    run(["sync", "-y", "-q"])
    file = tmp_path / "library.jsonl"
    assert run(["export", str(file)]) == 0
    assert run(["export", str(file)]) == 2
    capsys.readouterr()
    assert run(["import", str(file), "--json"]) == 0
    assert {row["kind"] for row in rows(capsys)} == {"network", "model"}
    capsys.readouterr()
    for missing in ("no.jsonl", "library.jsonl/no"):
        for command in (["import"], ["identify", "--dump"], ["inspect"]):
            assert run([*command, str(tmp_path / missing)]) == 4
            assert capsys.readouterr().err.startswith(f"Error: {tmp_path / missing}: no such file\n")
    assert run(["import", str(tmp_path)]) == 4
    assert capsys.readouterr().err == f"Error: {tmp_path}: a folder, not a file\n"


def test_a_rate_is_a_number_of_bytes(sites: Sites, capsys: Capture) -> None:
    for text in ("fast", "0", "-1", "5x"):
        assert run(["sync", "--limit-rate", text, "--dry-run"]) == 2
    assert run(["sync", "--limit-rate", "500", "--dry-run"]) == 2
    assert capsys.readouterr().err.endswith("alone is bytes\nHint: --limit-rate 500k, or 500M\n")
    assert run(["sync", "--limit-rate", "2M", "--dry-run", "-q"]) == 0


def test_ids_come_from_the_line_or_a_file(sites: Sites, tmp_path: Path, capsys: Capture) -> None:
    ids = sites.world.ids()[:2]
    (tmp_path / "ids.txt").write_text("\n".join(map(str, ids)))
    for given in (",".join(map(str, ids)), f"@{tmp_path / 'ids.txt'}"):
        assert run(["sync", "--ids", given, "--dry-run", "--json"]) == 0
        assert {row["model_id"] for row in rows(capsys)} == set(ids)
    (tmp_path / "notes.txt").write_text(f"{ids[0]}\nhttps://civitai.com/models/{ids[1]}\n")
    capsys.readouterr()
    assert run(["sync", "--ids", f"@{tmp_path / 'notes.txt'}"]) == 2
    assert f"https://civitai.com/models/{ids[1]} is not the number of a model" in capsys.readouterr().err
    assert run(["sync", "--ids", ","]) == 2
    assert "no number of a model" in capsys.readouterr().err
    assert run(["sync", "--ids", "@/no/such/file"]) == 4


def test_what_is_pulled_although_it_was_removed_says_where_its_tags_are(
    sites: Sites, home: Path, capsys: Capture
) -> None:
    model, _, _ = next(iter(sites.world.files()))
    assert run(["pull", f"model:{model['id']}"]) == 0
    (first, *_) = [path.stem for path in (home / "library").glob("*.pt")]
    assert run(["tag", first, "lines"]) == run(["remove", first, "-y"]) == 0
    capsys.readouterr()
    assert run(["pull", f"model:{model['id']}"]) == 0
    assert f"hnetkit remove --undo {first}\n" in capsys.readouterr().out


def test_doctor_says_that_a_token_is_there_and_never_which(sites: Sites, capsys: Capture) -> None:
    run(["doctor", "--json"])
    output = capsys.readouterr()
    assert "token set" in output.out
    assert sites.token not in output.out + output.err


def test_where_a_fetched_network_is_now_is_said_and_not_where_it_came_to(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = zipped({"day.pt": network_bytes(1), "cut.pt": network_bytes(2)[:2000]})
    with Sites(World.make(1), repos={"a/b": {"pack.zip": pack}}) as site:
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
        command = ["pull", f"{site.hub_url}/a/b/resolve/main/pack.zip", "--sha256", hashlib.sha256(pack).hexdigest()]
        assert run([*command, "--json"]) == 1
        (row,) = rows(capsys)
        came = home / "library" / "day.pt"
        assert (row["code"], row["paths"]) == ("partly", [str(came)])
        hnetkit.save(hnetkit.load(came), came.with_suffix(".safetensors"))
        came.unlink()
        assert run(["scan", "-q"]) == 0
        capsys.readouterr()
        assert run([*command, "--json"]) == 1
        (row,) = rows(capsys)
        assert (row["code"], row["paths"]) == ("partly", [str(came.with_suffix(".safetensors"))])
