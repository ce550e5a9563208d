"""`hnetkit prompt` as a person or a script meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hnetkit.cli import run

PROMPT = "a (red:1.3) [circle:star:0.5] <hypernet:outline:0.8:k=0.5:end=0.6:blocks=mid,up> <lora:zelda:0.5:1>"


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run(["prompt", *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_json_says_what_the_prompt_means(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(capsys, PROMPT, "--steps", "10")
    text = "a (red:1.3) [circle:star:0.5]  "
    assert row == {
        "text": text,
        "hypernetworks": [{"name": "outline", "strength": 0.8, "k": 0.5, "end": 0.6, "blocks": ["mid", "up"]}],
        "loras": [{"name": "zelda", "te": 0.5, "unet": 1.0}],
        "attention": [["a ", 1.0], ["red", 1.3], [" ", 1.0], ["circle:star:0.5", 1 / 1.1], ["  ", 1.0]],
        "composition": [[text.rstrip(), 1.0]],
        "schedule": [[5, "a (red:1.3) circle  "], [10, "a (red:1.3) star  "]],
        "hires_schedule": None,
        "warnings": [],
    }


def test_every_row_of_the_original_parser_comes_out_equal(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for expected in json.loads((shared / "data" / "prompts.json").read_text(encoding="utf-8")):
        if "<" not in expected["prompt"]:
            (row,) = rows(capsys, expected["prompt"], "--steps", "10", "--hires-steps", "10")
            assert row["attention"] == expected["attention"]
            assert row["schedule"] == expected["schedule_10"]
            assert row["hires_schedule"] == expected["schedule_hires_10_10"]


def test_twenty_steps_are_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(capsys, "[a:b:0.5]")
    assert row["schedule"] == [[10, "a"], [20, "b"]]


def test_a_person_reads_the_steps_as_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", f"{PROMPT} BREAK x", "--steps", "10", "--hires-steps", "3"]) == 0
    assert capsys.readouterr().out == (
        "text           a (red:1.3) [circle:star:0.5]   BREAK x\n"
        "hypernetwork   outline 0.8, k 0.5, from 0 to 0.6 of the steps, in mid, up\n"
        "lora           zelda 0.5 in the text encoder, 1 in the UNet\n"
        "weight 1       a\n"
        "weight 1.3     red\n"
        "weight 0.9091  circle:star:0.5\n"
        "new chunk      BREAK\n"
        "weight 1       x\n"
        "steps 1-5      a (red:1.3) circle   BREAK x\n"
        "steps 6-10     a (red:1.3) star   BREAK x\n"
        "hires 1-3      a (red:1.3) star   BREAK x\n"
    )


def test_parts_of_a_composition_are_shown_with_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "a cat AND a dog:-0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "AND 1       a cat" in lines
    assert "AND -0.5     a dog" in lines


def test_a_malformed_tag_is_a_warning_with_its_column(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "a cat <hypernet:ink:num> <wild:cat>", "--json"]) == 0
    said = capsys.readouterr()
    (row,) = json.loads(said.out)
    assert (row["text"], row["hypernetworks"]) == ("a cat  ", [])
    assert row["warnings"] == [
        "column 7: <hypernet:ink:num>: 'num' is not a number; the tag is left out",
        "<wild:cat>: not a known kind of tag; it has no effect",
    ]
    assert said.err == "".join(f"Warning: {warning}\n" for warning in row["warnings"])


@pytest.mark.parametrize("form", ["--nl", "--csv", "--tsv", "-t"])
def test_the_other_forms_hold_one_row(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", PROMPT, form]) == 0
    assert "outline" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["a", "--steps", "0"], ["a", "--hires-steps", "x"], ["a \udcff"]])
def test_what_cannot_be_meant_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", *arguments]) == 2


def test_no_heavy_import_is_needed() -> None:
    code = (
        "import sys; from hnetkit.cli import run; run(['prompt', 'a <hypernet:x:1>']); "
        "print([m for m in ('torch', 'diffusers', 'requests', 'sqlite_utils') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
