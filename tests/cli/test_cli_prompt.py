"""`hnetkit prompt` as a person or a script meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hnetkit import settings
from hnetkit.cli import run

PROMPT = "a (red:1.3) [circle:star:0.5] <hypernet:outline:0.8:k=0.5:end=0.6:blocks=mid,up> <lora:zelda:0.5:1>"


def rows(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run(["prompt", *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def test_json_says_what_the_prompt_means(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows(capsys, f"{PROMPT}# not this", "--steps", "10")
    text = "a (red:1.3) [circle:star:0.5]  "
    assert row == {
        "text": text,
        "comments": ["# not this"],
        "hypernetworks": [{"name": "outline", "strength": 0.8, "k": 0.5, "end": 0.6, "blocks": ["mid", "up"]}],
        "loras": [{"name": "zelda", "te": 0.5, "unet": 1.0}],
        "attention": [["a ", 1.0], ["red", 1.3], [" ", 1.0], ["circle:star:0.5", 1 / 1.1], ["  ", 1.0]],
        "composition": [[text.rstrip(), 1.0]],
        "schedule": [[5, "a (red:1.3) circle  "], [10, "a (red:1.3) star  "]],
        "hires_schedule": None,
        "drawn": [
            {
                "steps": [[first, last]],
                "parts": [
                    {
                        "text": f"a (red:1.3) {shape}",
                        "weight": 1.0,
                        "attention": [["a ", 1.0], ["red", 1.3], [f" {shape}", 1.0]],
                        "tokens": 3,
                        "chunks": 1,
                    }
                ],
            }
            for first, last, shape in ((1, 6, "circle"), (7, 10, "star"))
        ],
        "hires_drawn": None,
        "embeddings": [],
        "tokenizer": "hnetkit-demo",
        "tokens_per_chunk": 14,
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
        "text          a (red:1.3) [circle:star:0.5]   BREAK x\n"
        "hypernetwork  outline 0.8, k 0.5, from 0 to 0.6 of the steps, in mid, up\n"
        "lora          zelda 0.5 in the text encoder, 1 in the UNet\n"
        "steps 1-6     a (red:1.3) circle   BREAK x\n"
        "  weight 1.3  red\n"
        "  new chunk   BREAK\n"
        "steps 7-10    a (red:1.3) star   BREAK x\n"
        "  weight 1.3  red\n"
        "  new chunk   BREAK\n"
        "hires 1-3     a (red:1.3) star   BREAK x\n"
        "  weight 1.3  red\n"
        "  new chunk   BREAK\n"
        "tokens        4 in 2 chunks of 14, by the tokenizer of hnetkit-demo\n"
    )


def test_a_schedule_is_no_weight(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "a [red:blue:0.5] circle [x:5] ([y::0.2]:1.2)"]) == 0
    assert capsys.readouterr().out == (
        "text          a [red:blue:0.5] circle [x:5] ([y::0.2]:1.2)\n"
        "steps 1-5     a red circle  (y:1.2)\n"
        "  weight 1.2  y\n"
        "steps 6       a red circle  (:1.2)\n"
        "steps 7-11    a red circle x (:1.2)\n"
        "steps 12-20   a blue circle x (:1.2)\n"
        "tokens        at most 4 of 14, by the tokenizer of hnetkit-demo\n"
    )


def test_texts_that_take_turns_are_shown_once_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "[red|blue] star", "--steps", "1000"]) == 0
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "steps 1-2, 4, ..., 1000  red star",
        "steps 3, 5, ..., 999     blue star",
    ]


def test_parts_of_a_composition_are_shown_with_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "a (cat:1.2) AND a [dog:fox:0.5]:-0.5", "--steps", "4"]) == 0
    assert capsys.readouterr().out.splitlines()[1:9] == [
        "steps 1-3     2 parts",
        "  AND 1       a (cat:1.2)",
        "  weight 1.2  cat",
        "  AND -0.5     a dog",
        "steps 4       2 parts",
        "  AND 1       a (cat:1.2)",
        "  weight 1.2  cat",
        "  AND -0.5     a fox",
    ]


def test_a_network_behind_the_mark_of_a_comment_is_not_applied(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "a large red star # <hypernet:outline:0.8>"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "text        a large red star",
        "comment     # <hypernet:outline:0.8>",
        "steps 1-20  a large red star",
        "tokens      4 of 14, by the tokenizer of hnetkit-demo",
    ]


@pytest.mark.parametrize("kind", ["folder", "file", "hub id"])
def test_tokens_are_not_counted_where_no_tokenizer_is_at_hand(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "model_index.json").write_text("{}")
    model = {"folder": str(tmp_path), "file": str(tmp_path / "model.safetensors"), "hub id": "nobody/nothing"}[kind]
    settings.put("model", model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (row,) = rows(capsys, "a star")
    assert (row["tokenizer"], row["tokens_per_chunk"]) == (None, None)
    assert [(part["tokens"], part["chunks"]) for part in row["drawn"][0]["parts"]] == [(None, None)]
    assert run(["prompt", "a star"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"tokens      not counted ({model}: no tokenizer")


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
        "print([m for m in ('torch', 'transformers', 'diffusers', 'requests', 'sqlite_utils') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_textual_inversion_counts_as_its_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As drawing counts it: those that do not fit behind a text are in the next chunk."""
    monkeypatch.chdir(tmp_path)
    Path("embeddings").mkdir()
    for name, number in (("Glow (v2)", 8), ("ink", 2)):
        save_file({"emb_params": torch.ones(number, 80)}, f"embeddings/{name}.safetensors")
    Path("embeddings/torn.pt").write_bytes(b"no vectors")
    settings.put("embeddings", "embeddings")
    (row,) = rows(capsys, r"a ink, (glow \(v2\):1.2), ink # ink")
    assert row["embeddings"] == [{"name": "Glow (v2)", "vectors": 8}, {"name": "ink", "vectors": 2}]
    (part,) = row["drawn"][0]["parts"]
    assert (part["tokens"], part["chunks"]) == (1 + 2 + 1 + 8 + 1 + 2, 2)
    assert run(["prompt", "a torn ink"]) == 0
    out, said = capsys.readouterr()
    assert "inversion   ink, 2 vectors" in out
    assert "torn.pt" in said
    assert "it counts as the words of its name" in said


def test_generation_data_are_no_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["prompt", "a star\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"]) == 2
    assert "a prompt is the generation data of a picture" in capsys.readouterr().err


def test_the_networks_of_the_settings_are_told_as_they_are_drawn_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "hypernetworks", "<hypernet:dots:0.5> <hypernet:ink:0.3:end=0.6>"]) == 0
    capsys.readouterr()
    said = []
    for text in ("a star", "a star <hypernet:ink:1>", "a <hypernet:dots:1> <hypernet:ink:1> star"):
        assert run(["prompt", text]) == 0
        said.append(capsys.readouterr().err)
    assert said == [
        "Drawing adds <hypernet:dots:0.5> <hypernet:ink:0.3:end=0.6>, as the setting hypernetworks says.\n",
        "Drawing adds <hypernet:dots:0.5>, as the setting hypernetworks says.\n",
        "",
    ]
