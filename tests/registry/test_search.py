"""The search finds a network by whatever is shown of it, as soon as it is known and as long as it is."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.registry_rows import row

from hnetkit.errors import UsageError
from hnetkit.registry import Registry

SHA = f"{1:064x}"


@pytest.fixture
def registry(tmp_path: Path) -> Any:
    with Registry(tmp_path / "registry.db") as opened:
        put(opened, row(1, name="final"), "final.pt")
        put(opened, row(2, name="other", sha256="b" * 64), "other.pt")
        yield opened


def put(registry: Registry, found: dict[str, Any], name: str) -> None:
    with registry.write():
        root = registry.files.add_root(Path("/library"))
        registry.files.put(root, name, 1, 1, found)
        registry.networks.put(found)


def list_model(registry: Registry, *, sha256: str | None = SHA, **changes: Any) -> None:
    """Stores a model as a site lists it, with one version and one file."""
    model: dict[str, Any] = {
        "name": "Glass Orchard",
        "state": "listed",
        "creator": "inkfox_test",
        "tags": ["Pixel Art", "sumi-e"],
        "description": "<p>Best with <em>watercolor</em> &amp; a <code>&lt;hypernet:final:0.6&gt;</code></p>",
    }
    with registry.write():
        id = registry.catalogue.put_model("civitai", "4209", model | changes, {})
        words = {"name": "v1.0", "trained_words": ["nwcstyle"], "base_model": "SD 1.5"}
        version = registry.catalogue.put_version(id, "4931", words)
        registry.catalogue.put_file(version, "1", {"name": "final.pt", "sha256": sha256})


def found(registry: Registry, text: str) -> list[str]:
    return [network["name"] for network in registry.networks.search(text)]


@pytest.mark.parametrize(
    "text",
    [
        *("Orchard", "glass orch", "inkfox_test", "inkfox", "Pixel Art", "pixel", "sumi-e", "nwcstyle", "watercolor"),
        *("4209", "hypernet:final", "SD 1.5", "orchard wd", "relu orchard"),
    ],
)
def test_what_a_site_says_is_found(registry: Registry, text: str) -> None:
    assert "final" not in found(registry, "orchard")
    list_model(registry)
    assert found(registry, text) == ["final"]


@pytest.mark.parametrize("text", ["em", "code", "amp"])
def test_the_markup_of_a_description_is_not_found(registry: Registry, text: str) -> None:
    list_model(registry, tags=[], name="Ink", creator="fox")
    assert "final" not in found(registry, text)


@pytest.mark.parametrize("text", ["orchard", "pixel", "nwcstyle", "Glass"])
def test_what_a_site_says_about_a_hash_is_found(registry: Registry, text: str) -> None:
    list_model(registry, sha256=None)
    assert found(registry, text) == []
    with registry.write():
        registry.catalogue.put_lookup(SHA, "4209", "4931")
    assert found(registry, text) == ["final"]


def test_what_a_site_says_otherwise_is_searched_otherwise(registry: Registry) -> None:
    list_model(registry)
    list_model(registry, name="Glass Garden")
    assert (found(registry, "orchard"), found(registry, "garden")) == ([], ["final"])
    list_model(registry, sha256="b" * 64)
    assert found(registry, "glass") == ["other"]


SIDECAR = {
    "activation_text": "lineart, monochrome",
    "notes": "best at night",
    "description": "a wash of <b>ink</b>",
    "tags": ["Doodle"],
    "sd_version": "SD1",
    "negative_text": "blurry",
}


@pytest.mark.parametrize("text", ["monochrome", "night", "wash ink", "doodle", "blurry"])
def test_what_sidecars_say_is_found(registry: Registry, text: str) -> None:
    put(registry, row(1, name="final", sidecars=SIDECAR), "final.pt")
    assert found(registry, text) == ["final"]
    put(registry, row(1, name="final", sidecars={}), "final.pt")
    assert found(registry, text) == []


@pytest.mark.parametrize(
    "text", ["水彩", "最終", "水", "彩", "ベスト", "최종", "종의", "ink水彩", "\uff29\uff2e\uff2b"]
)
def test_words_of_scripts_without_spaces_are_found_inside_of_others(registry: Registry, text: str) -> None:
    list_model(registry, name="最終の水彩", description="ベストは0.6、최종의 ink水彩")
    assert found(registry, text) == ["final"]
    assert found(registry, "彩水") == []


@pytest.mark.parametrize("text", ["🔥", "☆", "🔥 ☆", "final 🔥", "fin ☆"])
def test_signs_that_are_no_words_are_found_inside_of_others(registry: Registry, text: str) -> None:
    list_model(registry, name="最終の☆水彩🔥")
    assert found(registry, text) == ["final"]
    assert found(registry, f"{text} ★") == found(registry, f"{text} other") == found(registry, "+ - ☔") == []


@pytest.mark.parametrize("text", ["orchard", "glass orchard", "glassOrchard", "glassorchard_v10", "v10"])
def test_words_that_are_joined_in_a_name_are_found(registry: Registry, text: str) -> None:
    put(registry, row(3, name="net"), "glassOrchard_v10.pt")
    assert found(registry, text) == ["net"]


@pytest.mark.parametrize("text", ["final " * 20_000, "fi " * 20_000 + "final", "final " * 9 + "fin"])
def test_a_word_that_is_said_often_is_looked_up_once(registry: Registry, text: str) -> None:
    """Any page in the browser can send a search to the gallery."""
    begun = time.process_time()
    assert found(registry, text) == ([] if text.startswith("fi ") else ["final"])
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(
    "text", [" ".join(map(str, range(20_000))), "\u732b" * 20_000, "".join(map(chr, range(0x2600, 0x2700)))]
)
def test_a_search_of_more_words_than_anybody_types_is_refused(registry: Registry, text: str) -> None:
    with pytest.raises(UsageError, match=r"a search of [0-9,]+ words"):
        registry.networks.contents_matching(text)


@pytest.mark.parametrize(
    ("text", "names"), [("co", ["co style", "comic"]), ("co++", ["co style"]), ("co% ", ["co style"])]
)
def test_a_word_with_a_mark_at_its_end_is_whole(registry: Registry, text: str, names: list[str]) -> None:
    put(registry, row(3, name="co style", sha256="c" * 64), "co style.pt")
    put(registry, row(4, name="comic", sha256="d" * 64), "comic.pt")
    assert sorted(found(registry, text)) == names
    assert found(registry, "com co++") == []


def test_a_name_counts_for_more_than_a_description(registry: Registry) -> None:
    list_model(registry, description="not like other ones, other than other ones")
    assert found(registry, "other") == ["other", "final"]


def test_what_is_removed_is_not_found(registry: Registry) -> None:
    list_model(registry)
    with registry.write():
        registry.files.forget(file["id"] for file in registry.files.rows())
        registry.networks.forget_fileless()
    assert found(registry, "orchard") == found(registry, "final") == []
    assert registry.check() == "0 networks in 0 files"


def test_damaged_words_are_no_reason_to_find_nothing(registry: Registry, tmp_path: Path) -> None:
    list_model(registry)
    put(registry, row(1, name="final", sidecars=SIDECAR), "final.pt")
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        connection.execute("UPDATE models SET tags = '[[['")
        connection.execute("UPDATE sidecars SET said = 'x'")
        connection.commit()
    with registry.write():
        registry.networks.set_note(1, "new")
    assert found(registry, "orchard new") == ["final"]


def test_words_of_another_program_are_found_from_the_next_change_on(registry: Registry, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        connection.execute("INSERT INTO notes VALUES (1, 'typed elsewhere')")
        connection.commit()
    with registry.write():
        registry.networks.set_note(2, "any")
    assert found(registry, "elsewhere") == ["final"]


def test_ten_times_as_many_networks_cost_about_ten_times_as_much(tmp_path: Path) -> None:
    def seconds(count: int) -> float:
        started = time.process_time()
        with Registry(tmp_path / f"{count}.db") as registry, registry.write():
            root = registry.files.add_root(Path("/library"))
            for number in range(count):
                registry.files.put(root, f"{number}.pt", 1, 1, row(number))
                registry.networks.put(row(number))
                model = registry.catalogue.put_model(
                    "civitai", str(number), {"name": f"Model {number}", "state": "listed"}, {}
                )
                version = registry.catalogue.put_version(model, str(number), {"name": "v1"})
                registry.catalogue.put_file(version, "1", {"name": "x.pt", "sha256": f"{number:064x}"})
                registry.catalogue.put_lookup(f"{number:064x}", str(number), str(number))
        return time.process_time() - started

    seconds(20)
    assert seconds(2000) < 25 * seconds(200)
