"""What the registry knows of what is gone at its site, and of where else its bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.registry_rows import row

from hnetkit.registry import Registry

DAYS = [f"2026-0{month}-01T00:00:00+00:00" for month in range(1, 10)]
SHA = f"{1:064x}"
CONTENT = f"h1:{1:064x}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The time of the registry's own clock, as `clock["now"]`."""
    time = {"now": DAYS[0]}
    for module in ("catalogue", "mirrors"):
        monkeypatch.setattr(f"hnetkit.registry.{module}.now", lambda: time["now"])
    return time


@pytest.fixture
def registry(tmp_path: Path, clock: dict[str, str]) -> Iterator[Registry]:
    """A registry with one network, that versions 11 of model 1 and 21 of model 2 of a site are."""
    with Registry(tmp_path / "registry.db") as registry, registry.write():
        root = registry.files.add_root(tmp_path)
        registry.networks.put(row(1))
        _put(registry, root)
        for model in (1, 2):
            _list(registry, "civitai", model, SHA)
        yield registry


def _put(registry: Registry, root: Any) -> None:
    registry._db.execute(
        "INSERT INTO files (root_id, path, stem, size_bytes, mtime_ns, sha256, content_hash, kind, verdict, warnings, "
        "reader_version, state, first_seen, last_seen) VALUES (?, 'ink.pt', 'ink', 1, 1, ?, ?, 'hypernetwork', 'ok', "
        "'[]', 1, 'present', '', '')",
        [root.id, SHA, CONTENT],
    )


def _list(registry: Registry, source: str, number: int, sha256: str, **changes: Any) -> int:
    model = registry.catalogue.put_model(source, str(number), {"name": "Ink", "state": "listed", **changes}, {})
    version = registry.catalogue.put_version(model, f"{number}1", {"name": "v1"})
    return registry.catalogue.put_file(version, f"{number}2", {"name": "ink.pt", "sha256": sha256})


def test_a_network_is_lost_at_a_site_when_its_last_version_there_is(registry: Registry, clock: dict[str, str]) -> None:
    assert registry.catalogue.lost() == {}
    clock["now"] = DAYS[1]
    registry.catalogue.set_model_state("civitai", "1", "gone")
    assert registry.catalogue.lost() == {}, "model 2 has it"
    clock["now"] = DAYS[2]
    registry.catalogue.set_model_state("civitai", "2", "archived")
    assert registry.catalogue.lost() == {CONTENT: {"source": "civitai", "state": "archived", "since": DAYS[2]}}
    _list(registry, "huggingface", 3, SHA)
    assert registry.catalogue.lost()[CONTENT]["source"] == "civitai", "another site is another matter"


def test_a_state_keeps_the_time_at_which_it_was_first_seen(registry: Registry, clock: dict[str, str]) -> None:
    since = []
    for day, state in zip(DAYS, ("listed", "gone", "gone", "archived", "archived", "listed"), strict=False):
        clock["now"] = day
        registry.catalogue.set_model_state("civitai", "1", state)
        (found,) = registry.catalogue.files_of("civitai", model="1")
        since.append((found["model_state"], found["model_state_since"]))
    assert since == [
        ("listed", None),
        ("gone", DAYS[1]),
        ("gone", DAYS[1]),
        ("archived", DAYS[3]),
        ("archived", DAYS[3]),
        ("listed", DAYS[5]),
    ]


def test_an_answer_that_states_another_state_dates_it_too(registry: Registry, clock: dict[str, str]) -> None:
    clock["now"] = DAYS[1]
    _list(registry, "civitai", 1, SHA, state="taken-down")
    clock["now"] = DAYS[2]
    _list(registry, "civitai", 1, SHA, state="taken-down")
    (found,) = registry.catalogue.files_of("civitai", model="1")
    assert (found["model_state"], found["model_state_since"]) == ("taken-down", DAYS[1])


def test_a_version_that_an_answer_lacks_is_gone_since_then(registry: Registry, clock: dict[str, str]) -> None:
    model = registry.catalogue.put_model("civitai", "1", {"name": "Ink", "state": "listed"}, {})
    clock["now"] = DAYS[1]
    registry.catalogue.mark_gone(model, keep_versions=["9"])
    clock["now"] = DAYS[2]
    registry.catalogue.mark_gone(model, keep_versions=["9"])
    (found,) = registry.catalogue.files_of("civitai", model="1", version="11")
    assert (found["version_state"], found["version_state_since"]) == ("gone", DAYS[1])


def test_a_file_that_was_gone_when_it_was_asked_for_stays_so_though_it_is_listed(
    registry: Registry, clock: dict[str, str]
) -> None:
    clock["now"] = DAYS[1]
    for model in (1, 2):
        registry.catalogue.set_file_state(_list(registry, "civitai", model, SHA), "gone")
    clock["now"] = DAYS[2]
    file = _list(registry, "civitai", 1, SHA)
    assert registry.catalogue.lost()[CONTENT] == {"source": "civitai", "state": "gone", "since": DAYS[1]}
    registry.catalogue.set_file_state(file, "listed")
    assert registry.catalogue.lost() == {}


def test_half_a_letter_in_a_trigger_word_does_not_end_the_reading_of_all(registry: Registry) -> None:
    """JSON can spell half a letter, which SQLite would give back as bytes that are no text."""
    model = registry.catalogue.put_model("civitai", "1", {"name": "Ink", "tags": ["x\ud83d"], "state": "listed"}, {})
    registry.catalogue.put_version(model, "11", {"name": "v1", "trained_words": ["\ud83d ink"]})
    _list(registry, "civitai", 1, SHA)
    (row,) = registry._db.execute("SELECT trigger_words, site_tags FROM library").fetchall()
    assert row[0] == "\\ud83d ink"


def test_files_are_found_by_any_hash_that_a_site_stated(registry: Registry) -> None:
    model = registry.catalogue.put_model("civitai", "5", {"name": "Pen", "state": "listed"}, {})
    version = registry.catalogue.put_version(model, "51", {"name": "v1"})
    hashes = {"SHA256": "ab" * 32, "AutoV1": "0123abcd", "CRC32": "FFFF0000"}
    registry.catalogue.put_file(version, "52", {"name": "pen.pt", "sha256": "ab" * 32, "hashes": hashes})
    for digits in ("ab" * 32, "ab" * 5, "0123abcd", "ffff0000"):
        (found,) = registry.catalogue.files_hashed(digits)
        assert found["sha256"] == "ab" * 32
    assert registry.catalogue.files_hashed("ffff") != []
    assert registry.catalogue.files_hashed("0" * 8 + "f" * 2) == []


def test_a_mirror_that_was_asked_is_not_merely_listed_again(registry: Registry, clock: dict[str, str]) -> None:
    def seen(state: str, day: str) -> tuple[str, str]:
        clock["now"] = day
        registry.mirrors.put(SHA, "https://a.example/x", "civarchive", state)
        (found,) = registry.mirrors.of([SHA])
        return found["state"], found["seen_at"]

    assert seen("listed", DAYS[0]) == ("listed", DAYS[0])
    assert seen("served", DAYS[1]) == ("served", DAYS[1])
    assert seen("listed", DAYS[2]) == ("served", DAYS[1])
    assert seen("deleted", DAYS[3]) == ("deleted", DAYS[3])
    assert seen("listed", DAYS[4]) == ("listed", DAYS[4])
    assert seen("other-bytes", DAYS[5]) == ("other-bytes", DAYS[5])
    assert seen("failed", DAYS[3]) == ("other-bytes", DAYS[5]), "older than what is known"


def test_the_mirrors_that_served_come_first(registry: Registry) -> None:
    for number, state in enumerate(("deleted", "listed", "served", "failed")):
        registry.mirrors.put(SHA, f"https://{number}.example/x", "civarchive", state)
    registry.mirrors.put("f" * 64, "https://other.example/x", "setting", "served")
    assert [row["state"] for row in registry.mirrors.of([SHA])] == ["served", "listed", "deleted", "failed"]
    assert registry.mirrors.of([]) == []
