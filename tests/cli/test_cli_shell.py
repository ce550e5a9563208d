"""What all commands share: exit codes, one-line errors, output forms, settings."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest

import hnetkit.cli
from hnetkit.cli import MEANT, cli, run
from hnetkit.cli.output import Output, confirm
from hnetkit.errors import UsageError

ROWS = [{"name": "ink", "widths": [320, 768], "note": None, "more": {"a": 1}}]


def test_a_mistyped_command_names_the_nearest_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["conifg"]) == 2
    assert capsys.readouterr().err == "Error: there is no command conifg\nHint: hnetkit config\n"


@pytest.mark.parametrize("word", MEANT)
def test_a_word_of_other_programs_names_the_command_that_does_it_here(
    capsys: pytest.CaptureFixture[str], word: str
) -> None:
    assert word not in cli.list_commands(click.Context(cli)), "it would never be looked up"
    assert run([word, "ink"]) == 2
    hint = capsys.readouterr().err.partition("Hint: hnetkit ")[2]
    command, *options = hint.partition(",")[0].split()
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    known = {"--help", *(name for param in found.params for name in param.opts)}
    assert {option for option in options if option.startswith("-")} <= known


def test_who_renames_is_not_told_to_remove(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rename", "ink", "wash"]) == 2
    assert "Hint: hnetkit scan, after you renamed the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["scan", ""],
        ["link", "", "--layout", "comfyui"],
        ["export", "--overwrite", ""],
        ["convert", "a.pt", ""],
        ["convert", "a.pt", "--to", "pt", "--out-dir", ""],
        ["generate", "a", "--out", ""],
        ["generate", "a", "--out="],
        ["generate", "--from", "", "a"],
        ["generate", "a", "--model", ""],
        ["list", "--tag", ""],
        ["sync", "--query", " "],
        ["sync", "--creator", "\t", "--dry-run"],
        ["remove", "  ", "-y"],
        ["train", "prepare", "", "--out", "there"],
        ["train", ""],
        ["demo", "--out", ""],
    ],
)
def test_nothing_stands_for_the_folder_that_one_is_in(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    assert " is empty\n" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["list"], ["scan", "."], ["convert", "a.pt", "b.safetensors"], ["generate", "a"]]
)
def test_a_current_folder_that_was_deleted_is_what_the_error_names(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run(arguments) == 4
    assert capsys.readouterr().err.splitlines()[0] == "Error: the folder that you are in is not there any more"


def test_texts_may_be_empty(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", ""]) == 0
    assert run(["search", ""]) == 0


def test_two_output_forms_at_once_are_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "--json", "--csv"]) == 2
    assert "choose one of" in capsys.readouterr().err


def test_json_is_an_array_with_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").rows(ROWS, columns=["name"])
    assert json.loads(capsys.readouterr().out) == ROWS


def test_no_rows_are_an_empty_array_but_no_line_of_newline_delimited_json(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").rows([], columns=["name"])
    Output("nl").rows([], columns=["name"])
    assert capsys.readouterr().out == "[]\n"


def test_delimited_forms_carry_the_columns_with_a_header(capsys: pytest.CaptureFixture[str]) -> None:
    Output("csv").rows(ROWS, columns=["name", "widths", "note"])
    Output("tsv").rows(ROWS, columns=["name", "widths"])
    assert capsys.readouterr().out == 'name,widths,note\nink,"320, 768",\nname\twidths\nink\t320, 768\n'


def test_a_name_with_a_newline_stays_on_its_line_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table").rows([{"name": "a\nb\x1b[31m"}], columns=["name"])
    assert capsys.readouterr().out.splitlines()[-1] == r"a\nb\x1b[31m"


def test_a_question_that_nobody_can_answer_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no terminal to answer"):
        confirm("Forget 3 files?", yes=False)
    confirm("Forget 3 files?", yes=True)


def test_an_interrupt_leaves_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def stops() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hnetkit.cli, "cli", stops)
    assert run([]) == 130


def test_a_defect_is_one_line_unless_debugging(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def breaks() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(hnetkit.cli, "cli", breaks)
    assert run([]) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HNETKIT_DEBUG", "1")
    assert run([]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_setting_is_kept_shown_and_taken_back(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "my model").mkdir()
    (home / "my model" / "model_index.json").touch()
    assert run(["config", "model", str(home / "my model")]) == 0
    assert run(["config", "model"]) == 0
    assert capsys.readouterr().out == f"{home / 'my model'}\n"
    assert json.loads((home / "config.json").read_text()) == {"model": str(home / "my model")}
    assert run(["config", "--unset", "model"]) == 0
    assert run(["config", "model"]) == 4


def test_a_folder_that_is_set_is_meant_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model_index.json").touch()
    for key in ("model", "loras", "embeddings"):
        assert run(["config", key, "models"]) == 0
        assert run(["config", key]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'models'}\n"


def test_an_unknown_setting_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "modle", "x"]) == 2
    assert "model, vae, tokenizer, device, dtype" in capsys.readouterr().err


def test_broken_settings_are_named_and_left_alone(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.json").write_text("{")
    assert run(["config", "model", "x"]) == 1
    assert "config.json" in capsys.readouterr().err
    assert (home / "config.json").read_text() == "{"


def test_home_moves_everything(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for what, name in (("registry", "registry.db"), ("config", "config.json"), ("library", "library")):
        assert run(["path", what]) == 0
        assert capsys.readouterr().out.strip() == str(home / name)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "arguments",
    [
        *(["generate", "a", option] for option in ("--hires-scale", "--denoising", "--cfg-scale", "--mask-blur")),
        ["train", "prepare", ".", "--out", "o", "--split-threshold"],
        ["train", "run", ".", "--min-snr"],
        ["bench", "--seconds"],
    ],
)
def test_a_number_that_is_none_is_a_mistake_of_usage(
    arguments: list[str], number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, number]) == 2
    assert arguments[-1] in capsys.readouterr().err
