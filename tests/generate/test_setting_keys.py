"""Every key that programs write is taken over, compared with what draws, listed, or known to shape nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from hnetkit.generate.image_settings import ImageSettings, settings_from_infotext
from hnetkit.generate.setting_keys import COMFYUI_LOADER, IDLE_VALUES, OTHER_NAMES, WITHOUT_EFFECT
from hnetkit.prompts import infotext

BASE = "a star\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 512x512"


class Row(NamedTuple):
    key: str
    value: str
    fate: str
    others: str = ""


def rows() -> list[Row]:
    text = Path(__file__).with_name("infotext_keys.tsv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [Row(*line.split("\t")) for line in lines]


def read(*pairs: str) -> ImageSettings:
    return settings_from_infotext(infotext.parse(", ".join([BASE, *filter(None, pairs)])))


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.key}: {row.value}")
def test_no_key_is_passed_over_without_a_word(row: Row) -> None:
    value = json.dumps(row.value[1:-1].replace('""', '"')) if row.value.startswith('"') else row.value
    plain, found = read(row.others), read(row.others, f"{row.key}: {value}")
    listed = {key for line in found.warnings if line.startswith("not taken over: ") for key in line[16:].split(", ")}
    is_taken = (plain.options, plain.seed) != (found.options, found.seed)
    is_compared = (plain.files, plain.embeddings) != (found.files, found.embeddings)
    assert (row.key in listed) == (row.fate == "listed"), found.warnings
    assert is_taken == (row.fate == "taken")
    assert is_compared or row.fate != "compared"
    if row.fate in ("nothing", "said"):
        assert (found.warnings == plain.warnings) == (row.fate == "nothing")
    assert any("ink" in line for line in found.warnings) == (row.fate == "named")
    assert not any("cannot be taken over" in line for line in found.warnings)


def test_every_key_of_the_tables_is_tried() -> None:
    tried = {row.key for row in rows()}
    known = {*WITHOUT_EFFECT, *IDLE_VALUES, *OTHER_NAMES, *OTHER_NAMES.values()}
    # tried with the infotext's other forms, and with graphs
    others = {"Hashes", "Hypernetworks", "Torch active/reserved", "Sys VRAM", COMFYUI_LOADER}
    assert known - tried == others


def test_every_key_that_is_read_is_tried() -> None:
    """Finds the keys in the source of the reader, so that a new one without a row fails."""
    source = Path(settings_from_infotext.__code__.co_filename).read_text(encoding="utf-8")
    named = re.findall(r'(?:take|text|_recorded)\(\s*"([A-Z][^"]*)"(?:, "([A-Z][^"]*)")?', source)
    found = {key for pair in named for key in pair if key}
    assert len(found) > 25
    assert found <= {row.key for row in rows()}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in IDLE_VALUES.items() for value in sorted(values)]
)
def test_a_setting_at_a_value_that_changes_nothing_is_not_listed(key: str, value: str) -> None:
    assert read(f"{key}: {value}").warnings == ()


def test_an_unknown_key_is_listed() -> None:
    assert read("Frobnicate: 5", "tool/mode-2: on").warnings == ("not taken over: Frobnicate, tool/mode-2",)
