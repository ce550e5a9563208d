"""The library's commands as a person or a script meets them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
import unicodedata
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from PIL import Image
from support import networks
from support.registry_rows import row as registry_row

from hnetkit.cli import cli, run
from hnetkit.errors import NotFound, UsageError
from hnetkit.facts import facts_of
from hnetkit.library.known_hashes import LEAST, hash_of_file
from hnetkit.library.library import Library
from hnetkit.library.resolve import find_network
from hnetkit.sharing.licenses import permissions


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
    assert err == "3 changes; 2 networks in 2 files, 1 other file\n"
    assert rows(capsys, "scan") == []
    (library / "ink.pt").unlink()
    assert run(["scan"]) == 0
    assert capsys.readouterr().err == "1 change; 2 networks in 1 file, 1 missing, 1 other file\n"


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


def test_strength_trigger_words_and_preview_are_shown_and_written_beside(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "castle.png")
    run(["scan", str(library)])
    capsys.readouterr()
    said = ["--strength", "0.8", "--trigger-words", "ink wash", "--preview", str(tmp_path / "castle.png")]
    assert run(["tag", "ink", *said]) == 0
    card = capsys.readouterr().out
    for shown in (
        "weight         0.8 preferred",
        "trigger words  ink wash",
        f"preview        {library / 'ink.preview.png'}",
    ):
        assert shown in card
    assert json.loads((library / "ink.json").read_text()) == {"preferred weight": 0.8, "activation text": "ink wash"}
    assert run(["tag", "ink", "--strength", "", "--trigger-words", "", "--preview", ""]) == 0
    capsys.readouterr()
    (row,) = rows(capsys, "show", "ink")
    assert not {"preferred_weight", "preview"} & {key for said in row["sidecars"] for key in said}


@pytest.mark.parametrize(("option", "value"), [("--strength", "much"), ("--strength", "0"), ("--preview", "none.png")])
def test_a_suggestion_that_is_none_is_one_line(
    library: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert run(["tag", "ink", option, value]) == (4 if option == "--preview" else 2)
    assert capsys.readouterr().err.startswith("Error: ")
    assert not (library / "ink.json").exists()


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


@pytest.mark.parametrize("name", ["h1:c2", "another@12ab", "c2aed3"])
def test_too_few_digits_of_a_hash_are_answered_with_how_many_it_takes(
    name: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert run(["show", name]) == 4
    assert "Hint: a hash has 8 of its digits or more" in capsys.readouterr().err


def test_a_network_that_was_moved_is_shown_where_it_is_and_its_bytes_once(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (library / "ink.png").write_bytes(b"a picture")
    run(["scan", str(library)])
    (library / "sub").mkdir()
    for suffix in (".pt", ".png"):
        (library / f"ink{suffix}").rename(library / "sub" / f"pen{suffix}")
    run(["scan"])
    capsys.readouterr()
    assert run(["show", "pen"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(" sha256 ") == 1
    assert f"  present        {library / 'sub' / 'pen.pt'}\n" in shown
    assert shown.endswith(f"  was at         {library / 'ink.pt'}\n")
    assert [line.split()[1] for line in shown.splitlines() if "  preview " in line] == [
        str(library / "sub" / "pen.png")
    ]
    (library / "sub" / "pen.pt").unlink()
    run(["scan"])
    capsys.readouterr()
    assert run(["show", "pen"]) == 0
    assert f"  missing        {library / 'sub' / 'pen.pt'}\n" in capsys.readouterr().out


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


def test_a_checkpoint_is_pointed_at_by_ten_digits_of_its_sha256_once_that_was_computed(
    library: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    weights = {"model.diffusion_model.x": torch.ones(LEAST // 4)}
    checkpoint = networks.save_pt({"state_dict": weights}, library / "wd.ckpt")
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    networks.network_file(library, "fresh.pt", seed=4, sd_checkpoint=sha256[:10])
    run(["scan", str(library)])
    capsys.readouterr()
    assert rows(capsys, "show", "fresh")[0]["checkpoint_path"] is None
    now = time.time_ns  # what was written a moment ago is not remembered
    monkeypatch.setattr("hnetkit.library.known_hashes.time.time_ns", lambda: now() + 3600 * 10**9)
    assert hash_of_file(checkpoint) == sha256
    assert rows(capsys, "show", "fresh")[0]["checkpoint_path"] == str(checkpoint)
    assert rows(capsys, "show", "ink")[0]["checkpoint_path"] is None


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
    assert "Forget 1 network in no file, and what only it held?" in capsys.readouterr().err
    assert [row["own_name"] for row in rows(capsys, "list", "--tag", "precious")] == ["net1"]
    assert run(["forget", "--missing", "-y"]) == 0
    capsys.readouterr()
    assert rows(capsys, "list") == []


def test_forget_missing_says_that_nothing_is_known_to_be_gone(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    (library / "glow.pt").unlink()
    capsys.readouterr()
    assert run(["forget", "--missing", "-y"]) == 0
    assert "nothing was missing at the last scan; hnetkit scan looks again" in capsys.readouterr().err
    run(["scan"])
    capsys.readouterr()
    assert run(["forget", "--missing", "-y"]) == 0
    printed = capsys.readouterr()
    assert "glow.pt" in printed.out
    assert "nothing was missing" not in printed.err


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


def test_an_alias_of_another_network_is_not_taken(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    run(["tag", "ink", "--alias", "best"])
    assert run(["tag", "ink", "--alias", "best"]) == 0
    capsys.readouterr()
    assert run(["tag", "glow", "new", "--alias", "best"]) == 2
    told = capsys.readouterr().err
    assert "best is an alias of ink already" in told
    assert "hnetkit tag ink --remove-alias best" in told
    assert rows(capsys, "list", "--tag", "new") == []
    assert rows(capsys, "show", "best")[0]["name"] == "ink"


def test_an_alias_is_removed_and_free_again(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    run(["tag", "ink", "--alias", "best"])
    capsys.readouterr()
    assert rows(capsys, "tag", "ink", "--remove-alias", "best")[0]["aliases"] == []
    assert run(["show", "best"]) == 4
    capsys.readouterr()
    assert rows(capsys, "tag", "glow", "--alias", "best")[0]["aliases"] == ["best"]


@pytest.mark.parametrize("removed", [["--remove-alias", "worst"], ["--remove", "best"]])
def test_what_a_network_does_not_have_is_not_removed_in_silence(
    removed: list[str], library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    run(["tag", "ink", "lines", "--alias", "best"])
    capsys.readouterr()
    assert run(["tag", "ink", *removed]) == 2
    told = capsys.readouterr().err
    assert f"{removed[1]} is no" in told
    assert ("lines" if removed[0] == "--remove" else "best") in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--tag", "nosuch"], "no network has the tag nosuch"),
        (["list", "--tag", "a", "--base-model", "SD 2.1"], "no network has the tag a and the base model sd2"),
        (["list", "--width", "0"], "no network has the width 0"),
        (["list", "--missing"], "there is no missing network"),
        (["list", "--files", "--missing"], "there is no missing file"),
        (["list", "--files", "--activation", "mish"], "no file has the activation mish"),
        (["search", "zzz"], "no network of the library has all of this"),
    ],
)
def test_filters_that_nothing_passes_do_not_call_the_library_empty(
    arguments: list[str], told: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert run([*arguments, "--csv"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert told in err
    assert "hnetkit scan FOLDER" not in err


@pytest.mark.parametrize(
    ("filters", "meant"),
    [
        (["--tag", "lineatr"], "no network has the tag lineatr; did you mean the tag lineart?"),
        (["--tag", "lineart", "--tag", "zzzz"], "no network has the tag lineart and the tag zzzz"),
        (["--width", "767"], "no network has the width 767; did you mean the width 768?"),
        (["--activation", "rellu"], "no network has the activation rellu; did you mean the activation relu?"),
        (["--activation", "relu", "--tag", "Lineart", "--missing"], "the activation relu"),
    ],
)
def test_a_filter_that_no_network_passes_is_answered_with_the_nearest_that_one_has(
    filters: list[str], meant: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    run(["tag", "ink", "lineart"])
    for form in ([], ["--json"], ["--files"]):
        capsys.readouterr()
        assert run(["list", *filters, *form]) == 0
        told = capsys.readouterr().err.rstrip()
        assert told.endswith(meant if form != ["--files"] else meant.replace("no network", "no file"))


def test_a_list_of_files_is_filtered_as_networks_are(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert [row["stem"] for row in rows(capsys, "list", "--files", "--activation", "relu")] == ["ink"]
    assert rows(capsys, "list", "--files", "--base-model", "sd2") == []


@pytest.mark.parametrize("spelling", ["sd1", "SD 1.5", "sd1.5", "sd15", "SD-v1-4", "1.5", "Stable Diffusion 1.5"])
def test_a_base_model_is_found_in_any_spelling(
    spelling: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert [row["name"] for row in rows(capsys, "list", "--base-model", spelling)] == ["ink"]


def test_networks_that_may_be_for_either_model_are_listed_for_both(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks.network_file(library, "either.pt", seed=5, widths=(320, 640))
    run(["scan", str(library)])
    capsys.readouterr()
    assert [row["base_model"] for row in rows(capsys, "show", "either")] == ["sd1-or-sd2"]
    for base in ("sd1", "sd2", "sd1-or-sd2"):
        assert "either" in [row["name"] for row in rows(capsys, "list", "--base-model", base)]
    assert "either" not in [row["name"] for row in rows(capsys, "list", "--base-model", "sdxl")]


@pytest.mark.parametrize("command", ["list", "browse", "sync", "bench"])
def test_an_unknown_base_model_is_a_usage_error_with_the_choices(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, *(["x"] if command == "bench" else []), "--base-model", "flux"]) == 2
    told = capsys.readouterr().err
    assert "'flux' is not one of" in told
    assert "sd1" in told
    assert "sdxl" in told


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("typed", ["NFC", "NFD"])
def test_a_name_is_found_in_either_normal_form(
    stored: str, typed: str, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, said = unicodedata.normalize(stored, "\u00c9lodie"), unicodedata.normalize(typed, "\u00c9lodie")
    networks.network_file(library, f"{named}.pt", seed=8)
    run(["scan", str(library)])
    capsys.readouterr()
    assert rows(capsys, "show", said)[0]["name"] == named
    alias, also = (unicodedata.normalize(form, "\u00fcber") for form in (stored, typed))
    rows(capsys, "tag", said, unicodedata.normalize(stored, "caf\u00e9"), "--alias", alias)
    assert rows(capsys, "show", also)[0]["name"] == named
    tag = unicodedata.normalize(typed, "caf\u00e9")
    assert [row["name"] for row in rows(capsys, "list", "--tag", tag)] == [named]
    assert rows(capsys, "tag", also, "--remove", tag, "--remove-alias", also)[0]["aliases"] == []
    assert run(["forget", str(library / f"{said}.pt"), "-y"]) == 0


def test_of_two_names_that_look_alike_the_one_that_is_typed_is_meant(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = [unicodedata.normalize(form, "\u00e9clair") for form in ("NFC", "NFD")]
    made = [networks.network_file(library, f"{name}.pt", seed=seed) for seed, name in enumerate(forms)]
    if os.path.samefile(*made):
        pytest.skip("this file system takes the two spellings of an accent for one file")
    run(["scan", str(library)])
    capsys.readouterr()
    assert [rows(capsys, "show", name)[0]["name"] for name in forms] == forms


LISTED: dict[str, Any] = {
    "state": "listed",
    "name": "Glass Orchard",
    "creator": "inkfox_test",
    "type": "Hypernetwork",
    "tags": ["Pixel Art", "sumi-e"],
    "nsfw_level": 3,
    "commercial_use": ["Image"],
    "allow_no_credit": False,
    "downloads": 1234,
    "description": "<p>Best with <b>ink</b>.</p><p>Use &lt;hypernet:ink:0.6&gt;</p>",
}
VERSION = {
    "name": "v1.0",
    "base_model": "SD 1.5",
    "published_at": "2023-02-03T10:00:00Z",
    "trained_words": ["nwcstyle"],
}
FILE = {"name": "ink.pt", "fp": "fp16", "scan": "Success", "hashes": {"AutoV2": "ABCDEF0123"}}


@pytest.fixture
def listed(library: Path) -> Path:
    """A library with a network that a site lists, and that has sidecars."""
    (library / "ink.json").write_text(
        '{"activation text": "lineart", "notes": "at night\\ntoo", "preferred weight": 0.7}'
    )
    (library / "ink.preview.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with Library() as opened:
        opened.scan(library)
        catalogue = opened.registry.catalogue
        sha256 = opened.record("ink")["files"][0]["sha256"]
        with opened.registry.write():
            version = catalogue.put_version(catalogue.put_model("civitai", "4209", LISTED, {}), "4931", VERSION)
            catalogue.put_file(version, "1", FILE | {"sha256": sha256})
    return library


def test_a_card_shows_all_that_is_known(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "ink"]) == 0
    card = capsys.readouterr().out
    (row,) = rows(capsys, "show", "ink")
    sha256 = row["files"][0]["sha256"]
    for shown in (
        *("build          [1, 0.05, 1] relu", f"{row['parameters']:,} in fp32"),
        *("Glass Orchard, v1.0 by inkfox_test, model:4209", "https://civitai.com/models/4209?modelVersionId=4931"),
        *("trigger words  nwcstyle", "site tags      Pixel Art, sumi-e", "rated          PG, PG-13"),
        *("stated as      Hypernetwork, SD 1.5, fp16", "virus scan     Success", "published      2023-02-03"),
        *("commercial use: Image; without credit: no", "downloads      1,234", "AutoV2 ABCDEF0123 (stated 20"),
        *("description    Best with ink.\n                 Use <hypernet:ink:0.6>\n",),
        *("trigger words  lineart", "notes          at night\n                 too\n", "weight         0.7 preferred"),
        *(f"preview        {listed / 'ink.preview.png'}", f"present        {listed / 'ink.pt'}"),
        *(f"A1111's hash [{sha256[:10]}]", f"sha256 {sha256}"),
    ):
        assert shown in card, shown


def test_tagging_shows_the_same_card(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tag", "ink", "new"]) == 0
    tagged = capsys.readouterr().out
    assert run(["show", "ink"]) == 0
    assert capsys.readouterr().out == tagged


def test_nothing_of_a_row_is_missing_on_its_card(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is added to a row has to be shown too, or to stand here."""
    (row,) = rows(capsys, "show", "ink")
    told_by = (facts_of, permissions)
    code = "".join(Path(each.__code__.co_filename).read_text(encoding="utf-8") for each in told_by)
    keys = {key for one in (row, *row["sites"], *row["sidecars"], *row["files"]) for key in one}
    # shown in other words, or by the site and the sidecars that say it
    beside = {"metadata", "present", "size", "sd_checkpoint", "sd_checkpoint_name", "name", "copies", "trigger_words"}
    numbers = {"remote_file_id", "file_id", "version_id", "looked_up", "availability"}  # of use to programs alone
    assert {key for key in keys - beside - numbers if f'"{key}"' not in code and f"'{key}'" not in code} == set()


def test_a_tag_of_a_site_or_a_sidecar_filters_too(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (listed / "glow.metadata.json").write_text('{"tags": ["Night"]}')
    os.utime(listed / "glow.pt", (1, 1))
    run(["scan"])
    run(["tag", "glow", "Mine"])
    capsys.readouterr()
    for tag, name in (("Pixel Art", "ink"), ("pixel art", "ink"), ("night", "glow"), ("MINE", "glow")):
        assert [row["name"] for row in rows(capsys, "list", "--tag", tag)] == [name]
    assert rows(capsys, "list", "--tag", "mine", "--tag", "pixel art") == []


@pytest.fixture
def copies(library: Path) -> Path:
    """A library with three files of one network, two of another, one of a third, and a copy that is gone."""
    networks.network_file(library, "wide.pt", seed=5, widths=(320, 640, 768))
    for source, copy in (("ink", "pen"), ("ink", "quill"), ("glow", "mist"), ("wide", "gone")):
        shutil.copy(library / f"{source}.pt", library / f"{copy}.pt")
    run(["scan", str(library)])
    (library / "gone.pt").unlink()
    run(["scan"])
    return library


def test_what_is_there_more_than_once_is_listed(copies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["list", "--duplicates", "--sort", "copies"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(",")[0] for line in lines if not line.startswith(" ")] == [
        "ink  3 copies",
        "glow  2 copies",
    ]
    assert [line.strip() for line in lines[1:4]] == [str(copies / f"{name}.pt") for name in ("ink", "pen", "quill")]
    assert [(row["name"], row["copies"]) for row in rows(capsys, "list", "--duplicates")] == [("glow", 2), ("ink", 3)]
    assert len(rows(capsys, "list", "--files", "--duplicates")) == 5


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ([], ["glow", "ink", "wide"]),
        (["--reverse"], ["wide", "ink", "glow"]),
        (["--sort", "size"], ["wide", "ink", "glow"]),
        (["--sort", "size", "--reverse"], ["glow", "ink", "wide"]),
        (["--sort", "copies"], ["ink", "glow", "wide"]),
        (["--sort", "creator"], ["ink", "glow", "wide"]),
        (["--sort", "added"], ["wide", "ink", "glow"]),
    ],
)
def test_lists_are_sorted(
    order: list[str], names: list[str], copies: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(sqlite3.connect(home / "registry.db")) as connection, connection:
        for day, name in enumerate(("glow", "ink", "wide"), 1):
            network = "(SELECT content_hash FROM files WHERE stem = ?)"
            added = f"UPDATE files SET first_seen = '2026-01-0{day}T00:00:00Z' WHERE content_hash IN {network}"
            assert connection.execute(added, [name]).rowcount
    with Library() as library, library.registry.write():
        catalogue = library.registry.catalogue
        version = catalogue.put_version(catalogue.put_model("civitai", "1", LISTED, {}), "1", VERSION)
        catalogue.put_file(version, "1", FILE | {"sha256": library.record("ink")["files"][0]["sha256"]})
    capsys.readouterr()
    assert [row["name"] for row in rows(capsys, "list", *order)] == names
    assert run(["list", *order, "--csv"]) == 0
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()[1:]] == names


def test_an_order_is_of_networks_and_never_ignored(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--files", "--sort", "size"]) == 2
    assert "order networks, not files" in capsys.readouterr().err
    with Library() as opened, pytest.raises(UsageError, match="not an order"):
        opened.networks(sort="color")


def test_a_network_of_an_import_is_shown_and_tagged_without_a_file(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    run(["tag", "ink", "precious", "--alias", "lines"])
    run(["export", str(tmp_path / "all.jsonl")])
    shutil.rmtree(library)
    run(["forget", str(library), "-y"])
    run(["import", str(tmp_path / "all.jsonl")])
    capsys.readouterr()
    (row,) = rows(capsys, "show", "lines")
    assert (row["tags"], row["files"], row["present"]) == (["precious"], [], False)
    own = row["own_name"]
    assert [rows(capsys, "show", name)[0]["content_hash"] for name in (own, f"{own}@{row['content_hash'][3:13]}")] == [
        *(row["content_hash"], row["content_hash"])
    ]
    assert rows(capsys, "tag", own, "--note", "kept")[0]["note"] == "kept"
    assert run(["show", own]) == 0
    capsys.readouterr()
    with Library() as opened, pytest.raises(NotFound, match="in no file of the library"):
        opened.find("lines")
    assert run(["show", "nosuch"]) == 4
    assert "the library is empty" not in capsys.readouterr().err
    assert run(["forget", "lines"]) == 2
    assert "Forget 1 network in no file, and what only it held?" in capsys.readouterr().err
    assert run(["forget", "lines", "-y"]) == 0
    assert "1 network in no file forgotten" in capsys.readouterr().err
    assert run(["show", own]) == 4


def test_two_networks_without_files_of_one_name_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with Library() as opened, opened.registry.write():
        for number in (1, 2):
            opened.registry.networks.put(registry_row(number, name="twin", content_hash=f"h1:{number}{0:063}"))
    assert run(["show", "twin"]) == 2
    assert "use one of twin@1000000000, twin@2000000000" in capsys.readouterr().err
    assert rows(capsys, "show", "twin@2000000000")[0]["content_hash"] == f"h1:2{0:063}"
    assert len(rows(capsys, "list")) == 2


def test_a_file_whose_name_is_the_alias_of_another_network_is_told(
    library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["scan", str(library)])
    run(["tag", "ink", "--alias", "mist"])
    networks.network_file(library, "mist.pt", seed=9)
    run(["scan"])
    with Library() as opened:
        found = find_network("mist", None, lambda: opened.registry)
    assert found.network.name == "mist"
    assert found.said is not None
    assert found.said.startswith(f"Warning: mist is {library / 'mist.pt'}, and not ink@")
    capsys.readouterr()
    assert rows(capsys, "show", "mist")[0]["files"][0]["path"] == str(library / "mist.pt")


def test_a_list_of_files_has_each_path_once(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["scan", str(library)])
    capsys.readouterr()
    assert run(["list", "--files"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "page" in line.split()[0]]
    assert line.count("page.pt") == 1
    assert "a web page" in line
    assert rows(capsys, "list", "--files")[2]["reason"].startswith(str(library / "page.pt"))


NOT_WORDS = {"content", "widths", "weights", "trained", "known since", "link", "strength", "stated as", "virus scan"}
NOT_WORDS |= {"license", "rated", "published", "downloads", "hashes", "weight", "preview", "present", "listed file", ""}
"""Labels of a card under which numbers, paths and the site's own words for things stand; nobody searches them."""


def test_every_word_of_a_card_is_found(listed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["tag", "ink", "shadow", "--alias", "lines", "--note", "best at noon"])
    capsys.readouterr()
    assert run(["show", "ink"]) == 0
    name, *lines = capsys.readouterr().out.splitlines()
    words, label = {name}, ""
    for line in lines:
        label = line[2:17].strip() or label
        if label not in NOT_WORDS:
            words |= set(re.findall(r"\w{2,}", line[17:].replace("model:4209", "4209")))
    assert {"Glass", "nwcstyle", "lineart", "noon", "Pixel", "shadow", "relu"} <= words
    for word in words - {"05", "by"}:  # of the structure, and before the creator
        assert "ink" in [row["name"] for row in rows(capsys, "search", word)], word


@pytest.mark.parametrize(
    ("lock", "command"),
    [
        ("locks", ["remove", "ink", "-y"]),
        ("locks", ["link", "ComfyUI", "--layout", "comfyui"]),
        (".config.lock/", ["config", "device", "cpu"]),
    ],
)
def test_a_home_in_which_no_lock_can_be_made_comes_with_a_way_out(
    lock: str, command: list[str], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks.network_file(tmp_path, "ink.pt")
    (tmp_path / "ComfyUI").mkdir()
    assert run(["scan", str(tmp_path)]) == 0
    if lock.endswith("/"):
        (home / lock).mkdir()
    else:
        (home / lock).write_text("something else")
    capsys.readouterr()
    assert run([word if word != "ComfyUI" else str(tmp_path / word) for word in command]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith(f"Error: {home / lock}")
    assert hint == "Hint: make it writable, or set HNETKIT_HOME to a folder of yours, with a library of its own"
    assert (tmp_path / "ink.pt").exists()
