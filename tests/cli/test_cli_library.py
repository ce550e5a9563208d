"""The library's commands as a person or a script meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from support import networks

from hnetkit.cli import cli, run


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    folder.mkdir()
    networks.network_file(folder, "ink.pt", seed=1, widths=(320, 768), structure=(1, 0.05, 1), activation="relu")
    networks.network_file(folder, "glow.pt", seed=2)
    (folder / "page.pt").write_bytes(b"<html>log in</html>")
    return folder


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    assert run([*map(str, arguments), "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_scan_says_what_changed_on_stdout_and_the_sum_on_stderr(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["scan", str(library)]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["new", "new", "new"]
    assert "a web page" in out
    assert err == "3 changes; 2 networks in 3 files\n"
    assert rows(capsys, "scan") == []


def test_scan_without_any_folder_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan"]) == 4
    assert "hnetkit scan FOLDER" in capsys.readouterr().err


def test_list_shows_networks_and_filters_them(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    run(["tag", "ink", "anime", "lineart"])
    capsys.readouterr()
    assert [row["name"] for row in rows(capsys, "list")] == ["glow", "ink"]
    for option in (["--tag", "anime"], ["--base-model", "sd1"], ["--width", "768"], ["--activation", "relu"]):
        assert [row["name"] for row in rows(capsys, "list", *option)] == ["ink"]
    assert rows(capsys, "list", "--missing") == []
    assert {row["kind"] for row in rows(capsys, "list", "--files")} == {"hypernetwork", "html"}


def test_an_empty_list_is_an_empty_array_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == []
    assert "hnetkit scan FOLDER" in err


def test_tag_alias_and_note_are_shown_and_searched(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    assert run(["tag", "ink", "anime", "--alias", "lines", "--note", "best at 0.6"]) == 0
    capsys.readouterr()
    (row,) = rows(capsys, "show", "lines")
    assert (row["name"], row["tags"], row["aliases"], row["note"]) == ("ink", ["anime"], ["lines"], "best at 0.6")
    assert row["trained_on"] == "model.ckpt [d7049739]"
    assert [found["name"] for found in rows(capsys, "search", "best")] == ["ink"]
    assert run(["tag", "ink", "--remove", "anime"]) == 0
    capsys.readouterr()
    assert rows(capsys, "show", "ink")[0]["tags"] == []


@pytest.mark.parametrize("alias", ["", "a:b", "<x>", "a@b", "x" * 201])
def test_an_alias_that_no_prompt_could_say_is_a_usage_error(library: Path, alias: str) -> None:
    run(["scan", str(library)])
    assert run(["tag", "ink", "--alias", alias]) == 2


@pytest.mark.parametrize("alias", ["--missing", "-y", " ink"])
def test_an_alias_that_no_command_would_take_for_a_name_is_a_usage_error(
    library: Path, alias: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert run(["tag", "ink", f"--alias={alias}"]) == 2
    assert "cannot be an alias" in capsys.readouterr().err


def test_an_unknown_name_is_exit_4_with_the_nearest(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert run(["show", "inc"]) == 4
    assert capsys.readouterr().err == "Error: no network named inc\nHint: did you mean ink?\n"


def test_forget_asks_and_leaves_the_file(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    assert run(["forget", "ink"]) == 2
    assert run(["forget", "ink", "-y"]) == 0
    assert (library / "ink.pt").exists()
    capsys.readouterr()
    assert [row["name"] for row in rows(capsys, "list")] == ["glow"]


def test_forget_takes_a_path_or_all_that_is_missing(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    (library / "glow.pt").unlink()
    run(["scan"])
    assert run(["forget", "--missing", "-y"]) == 0
    assert run(["forget", str(library / "page.pt"), "-y"]) == 0
    assert run(["forget"]) == 2
    capsys.readouterr()
    assert [row["stem"] for row in rows(capsys, "list", "--files")] == ["ink"]


def test_rehash_leaves_with_1_where_a_file_is_not_what_it_was(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    assert run(["scan", "--rehash"]) == 0
    (library / "glow.pt").unlink()
    assert run(["scan", "--rehash"]) == 1
    assert "missing" in capsys.readouterr().out


def test_names_are_completed_in_the_shell(library: Path) -> None:
    run(["scan", str(library)])
    complete = ShellComplete(cli, {}, "hnetkit", "_HNETKIT_COMPLETE")
    assert [item.value for item in complete.get_completions(["show"], "i")] == ["ink"]
    assert "scan" in [item.value for item in complete.get_completions([], "sc")]


def test_the_checkpoint_that_a_network_was_trained_on_is_pointed_at(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    from hnetkit.inspection import examine

    weights = {"model.diffusion_model.x": torch.ones(1 << 19)}
    checkpoint = networks.save_pt({"state_dict": weights}, library / "wd.ckpt")
    hashes = examine(checkpoint).hashes
    assert hashes is not None
    networks.network_file(library, "fresh.pt", seed=4, sd_checkpoint=hashes.autov1)
    run(["scan", str(library)])
    capsys.readouterr()
    assert rows(capsys, "show", "fresh")[0]["checkpoint_path"] == str(checkpoint)


@pytest.mark.parametrize("alias", ["deadbeef", "A" * 64, "in\u200bk", "\x1b[31mred"])
def test_an_alias_that_reads_as_a_hash_or_is_not_seen_is_a_usage_error(library: Path, alias: str) -> None:
    assert run(["scan", str(library)]) == 0
    assert run(["tag", "ink", "--alias", alias]) == 2


def test_an_alias_that_is_the_name_of_another_network_is_a_usage_error(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["scan", str(library)]) == 0
    assert run(["tag", "glow", "--alias", "ink"]) == 2
    assert "ink.pt" in capsys.readouterr().err
    assert run(["tag", "ink", "--alias", "ink"]) == 0


def test_forgetting_one_network_keeps_what_an_import_told_of_others(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    run(["tag", "ink", "precious"])
    run(["export", str(tmp_path / "all.jsonl")])
    run(["forget", "ink", "-y"])
    run(["import", str(tmp_path / "all.jsonl")])
    run(["forget", "glow", "-y"])
    capsys.readouterr()
    assert [row["own_name"] for row in rows(capsys, "list", "--tag", "precious")] == ["net1"]
    assert run(["forget", "--missing"]) == 2
    assert "Forget 0 files and 1 network in no file" in capsys.readouterr().err
    assert [row["own_name"] for row in rows(capsys, "list", "--tag", "precious")] == ["net1"]
    assert run(["forget", "--missing", "-y"]) == 0
    capsys.readouterr()
    assert rows(capsys, "list") == []


def test_one_long_text_does_not_make_every_line_of_a_table_as_long(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks.network_file(library, "wide.pt", seed=3, sd_checkpoint_name="A" * 50_000)
    run(["scan", str(library)])
    capsys.readouterr()
    assert run(["list"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 2000
    assert any(row["sd_checkpoint_name"] == "A" * 50_000 for row in rows(capsys, "list"))


def test_no_network_has_the_width_0(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert rows(capsys, "list", "--width", "0") == []
