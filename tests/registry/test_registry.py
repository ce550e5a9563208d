"""The registry's file: opened by anyone, damaged by nobody, searched with whatever is typed."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.registry_rows import row

from hnetkit.errors import RegistryError
from hnetkit.registry import Registry
from hnetkit.registry.columns import from_column, to_column


def stored(registry: Registry, *rows: dict[str, Any]) -> None:
    with registry.write():
        root = registry.files.add_root(Path("/library"))
        for number, found in enumerate(rows):
            registry.files.put(root, f"{found['name']}-{number}.pt", 1, 1, found)
            if found["content_hash"]:
                registry.networks.put(found)


def test_a_registry_works_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, requests=None, diffusers=None)\n"
        "import hnetkit\n"
        "with hnetkit.registry.Registry(sys.argv[1]) as registry: print(registry.check())"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "r.db")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0 networks in 0 files\n"


def test_what_was_stored_comes_back(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        stored(registry, row(1))
    with Registry(tmp_path / "r.db") as registry:
        (network,) = registry.networks.rows()
        (file,) = registry.files.rows()
    assert {key: network[key] for key in ("name", "widths", "layer_structure", "layer_norm", "metadata")} == {
        key: row(1)[key] for key in ("name", "widths", "layer_structure", "layer_norm", "metadata")
    }
    assert (file["path"], file["state"]) == ("/library/net1-0.pt", "present")


def _stored_and_failed(registry: Registry) -> None:
    with registry.write():
        registry.files.add_root(Path("/library"))
        raise KeyError


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        with pytest.raises(KeyError):
            _stored_and_failed(registry)
        assert registry.files.roots() == []


def test_a_damaged_file_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "r.db").write_bytes(b"this is no database" * 500)
    with pytest.raises(RegistryError, match="damaged"):
        Registry(tmp_path / "r.db")


def test_a_file_of_a_newer_hnetkit_is_left_alone(tmp_path: Path) -> None:
    Registry(tmp_path / "r.db").close()
    with sqlite3.connect(tmp_path / "r.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(RegistryError, match="newer"):
        Registry(tmp_path / "r.db")


def test_many_processes_may_make_one_registry_together(tmp_path: Path) -> None:
    code = "import sys, hnetkit; print(hnetkit.registry.Registry(sys.argv[1]).check())"
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "r.db")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    assert {process.communicate() for process in processes} == {("0 networks in 0 files\n", "")}


def test_search_finds_names_tags_notes_and_checkpoints_by_word_and_beginning(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        stored(registry, row(1, name="water_color"), row(2, name="ink", sd_checkpoint_name="anything-v3.ckpt"))
        with registry.write():
            registry.networks.add_tags(registry.networks.id_of(row(2)["content_hash"]), ["Lineart"])
            registry.networks.set_note(registry.networks.id_of(row(2)["content_hash"]), "best at noon")

        def found(text: str) -> list[str]:
            return [network["name"] for network in registry.networks.search(text)]

        assert found("color") == found("WATER") == found("water_col") == ["water_color"]
        assert found("lineart") == found("noon ink") == found("anything") == ["ink"]
        assert found("noon color") == []
        with registry.write():
            registry.networks.remove_tags(registry.networks.id_of(row(2)["content_hash"]), ["Lineart"])
        assert found("lineart") == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    text=st.text(max_size=30) | st.sampled_from(['"', "a OR", "NEAR(", "name:x", "*", "-", "a AND NOT b", "(((", "'"])
)
def test_whatever_is_typed_is_a_search_and_never_an_error(tmp_path: Path, text: str) -> None:
    with Registry(tmp_path / "r.db") as registry:
        assert isinstance(registry.networks.search(text), list)


@given(st.binary(min_size=1, max_size=30).filter(lambda name: b"\0" not in name))
def test_any_path_of_the_system_is_stored_exactly(name: bytes) -> None:
    import os

    path = os.fsdecode(name)
    assert from_column(to_column(path)) == path


def test_an_alias_stays_with_the_network_that_has_it(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        stored(registry, row(1), row(2))
        with registry.write():
            for number in (1, 2):
                registry.networks.set_alias(registry.networks.id_of(row(number)["content_hash"]), "best")
        assert [network["aliases"] for network in registry.networks.rows()] == [["best"], []]


def test_files_are_found_by_the_first_digits_of_a_hash_and_by_nothing_else(tmp_path: Path) -> None:
    first, second = "ab" * 32, "abf" + "0" * 61
    with Registry(tmp_path / "r.db") as registry:
        stored(
            registry,
            row(1, sha256=first, content_hash=f"h1:{first}", autov1="01234567", source_sha256=second),
            row(2, sha256=second, content_hash=f"h1:{second}"),
            row(3, sha256="ab" + "c" * 62, content_hash=None),
        )
        files = registry.files

        def stems(**hashes: str) -> list[str]:
            return [found["stem"] for found in files.with_hash(**hashes)]

        assert stems(sha256="ab") == stems(content="ab") == ["net1-0", "net2-1"]
        assert stems(sha256="aba") == stems(content="aba") == stems(autov1="01234567") == ["net1-0"]
        assert stems(sha256="abf", autov1="01234567") == ["net1-0", "net2-1"]
        assert stems(source_sha256="abf") == ["net1-0"]
        assert stems(source_sha256="aba") == stems(autov1="0123") == stems(sha256="ac") == stems() == []
        assert [found["stem"] for found in files.of_networks()] == sorted(files.stems()) == ["net1-0", "net2-1"]


def test_jobs_and_what_they_installed_are_found_by_what_they_are(tmp_path: Path) -> None:
    about = {"source": "url", "url": "", "name": "ink", "suffix": ".pt", "folder": "/library"}
    with Registry(tmp_path / "r.db") as registry, registry.write():
        jobs = registry.jobs
        first, second = jobs.add("url:1", about), jobs.add("url:2", about)
        jobs.set_state(first.id, "done")
        jobs.add_install("/library/ink.pt", first.id, "network", None)
        jobs.add_install("/library/ink.json", first.id, "sidecar", None)
        jobs.add_install("/library/pen.pt", None, "network", None)
        assert [job.key for job in jobs.rows()] == ["url:1", "url:2"]
        assert [job.key for job in jobs.of("url:1")] == [job.key for job in jobs.of("url:1", "failed", "done")]
        assert jobs.of("url:2", "done") == jobs.of("url:3") == []

        def names(**which: Any) -> list[str]:
            return [Path(install["path"]).name for install in jobs.installs(**which)]

        assert names() == ["ink.json", "ink.pt", "pen.pt"]
        assert names(kind="network") == ["ink.pt", "pen.pt"]
        assert names(job=first.id, kind="network") == ["ink.pt"]
        assert names(job=second.id) == []


def test_forgetting_the_last_file_forgets_the_network_and_its_words(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        stored(registry, row(1), {**row(1), "name": "copy"}, row(2))
        with registry.write():
            registry.networks.add_tags(registry.networks.id_of(row(1)["content_hash"]), ["x"])
        first, second = [f["id"] for f in registry.files.rows() if f["content_hash"] == row(1)["content_hash"]]
        for file, left in ((first, 2), (second, 1)):
            with registry.write():
                registry.files.forget([file])
                registry.networks.forget_fileless()
            assert len(registry.networks.rows()) == left
        assert registry.networks.search("x") == []


def test_the_package_shows_what_it_holds() -> None:
    import hnetkit.registry

    assert dir(hnetkit.registry) == ["Registry"]
    assert all(hasattr(hnetkit.registry, name) for name in dir(hnetkit.registry))


def test_a_registry_that_is_up_to_date_is_opened_without_what_its_migrations_load(tmp_path: Path) -> None:
    """sqlite-utils loads numpy, which takes as long as all the rest of `hnetkit list`."""
    Registry(tmp_path / "r.db").close()
    code = (
        "import sys; from hnetkit.registry import Registry; Registry(sys.argv[1]).networks.rows(); "
        "print([name for name in ('numpy', 'sqlite_utils') if name in sys.modules])"
    )
    command = [sys.executable, "-P", "-c", code, str(tmp_path / "r.db")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_a_row_replaces_leaves_the_search_as_well(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry:
        assert registry._db.execute("PRAGMA recursive_triggers").fetchone() == (1,)


def test_the_state_changes_with_every_change_whoever_makes_it_and_with_nothing_else(tmp_path: Path) -> None:
    with Registry(tmp_path / "r.db") as registry, Registry(tmp_path / "r.db") as another:
        seen = [registry.state()]
        for changed in (registry, another, registry):
            stored(changed, row(len(seen)))
            seen.append(registry.state())
            registry.networks.rows()
            assert registry.state() == seen[-1]
    assert len(set(seen)) == 4
