"""A recipe: all of a run as data, there and back, and nothing in it that cannot be meant."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from hnetkit.errors import NotFound, UsageError
from hnetkit.train.build import Build
from hnetkit.train.guards import GuardSettings
from hnetkit.train.previews import PreviewSettings
from hnetkit.train.recipe import Recipe, read_recipe

PLAIN = Recipe(name="ink", model="sd15", pictures="pictures")
UNUSUAL = Recipe(
    name="ink 2",
    model="sd15",
    pictures="pictures",
    build=Build(structure=(1, 1.5, 1), activation="swish", dropout=(0, 0.1, 0), widths=(64, 96), sides=("k",)),
    start="old.pt",
    rates="1e-5:100",
    max_steps=50,
    clip_norm="1:10, 0.1",
    optimizer="SGD",
    optimizer_options={"momentum": 0.9, "nesterov": True},
    min_snr=5.0,
    size=(512, 768),
    previews=PreviewSettings(prompts=("a", "b"), seeds=(3,)),
    guards=GuardSettings(window=20),
)


@pytest.mark.parametrize("recipe", [PLAIN, UNUSUAL])
def test_a_recipe_comes_back_from_json_as_it_was(recipe: Recipe) -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_json_spells_every_setting_out() -> None:
    data = PLAIN.to_json()
    assert set(data) == {field.name for field in fields(Recipe)}
    assert set(data["build"]) == {field.name for field in fields(Build)}


def test_what_is_left_out_has_its_default() -> None:
    data = {"name": "ink", "model": "sd15", "pictures": "pictures", "build": {"layer_norm": True}}
    assert Recipe.from_json(data) == replace(PLAIN, build=Build(layer_norm=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batchsize": 2}, "there is no setting batchsize"),
        ({"build": {"layers": 3}}, "build: there is no setting layers"),
        ({"batch_size": "2"}, "batch_size: '2' is not a whole number"),
        ({"batch_size": True}, "is not a whole number"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"drop_tags": 2}, "between 0 and 1"),
        ({"drop_tags": "half"}, "is not a number"),
        ({"precision": "fp8"}, "none of no, fp16, bf16"),
        ({"min_snr": 0}, "above 0"),
        ({"size": [512]}, "has not 2 values"),
        ({"size": [500, 512]}, "multiples of 8"),
        ({"seed": -1}, "seed -1"),
        ({"clip_norm": "1", "clip_value": "1"}, "not by both"),
        ({"optimizer_options": [1]}, "not a JSON object"),
        ({"previews": {"prompts": "a"}}, "not a list"),
        ({"name": "a/b"}, "cannot name"),
        ({"name": "ink."}, "cannot name"),
        ({"name": "None"}, "cannot name"),
        ({"max_steps": 0}, "at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe.from_json({"name": "ink", "model": "m", "pictures": "p", **change})


def test_a_near_name_is_offered() -> None:
    with pytest.raises(UsageError) as raised:
        Recipe.from_json({"name": "ink", "model": "m", "pictures": "p", "batchsize": 2})
    assert raised.value.hint is not None
    assert "batch_size" in raised.value.hint


def test_only_settings_that_make_other_steps_differ() -> None:
    assert PLAIN.differences(replace(PLAIN, max_steps=7, rates="1e-3", save_every=1, pictures="moved")) == []
    assert PLAIN.differences(replace(PLAIN, seed=1, build=Build(layer_norm=True))) == ["seed", "build.layer_norm"]


def test_a_recipe_of_a_run_and_a_bare_one_are_both_read(tmp_path: Path) -> None:
    bare, run = tmp_path / "bare.json", tmp_path / "recipe.json"
    bare.write_text(json.dumps(UNUSUAL.to_json()))
    run.write_text(json.dumps({"format": "hnetkit.training/1", "recipe": UNUSUAL.to_json(), "found": {}}))
    assert Recipe.from_json(read_recipe(bare)) == Recipe.from_json(read_recipe(run)) == UNUSUAL


def test_no_file_and_no_json_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_recipe(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UsageError, match="one JSON object"):
        read_recipe(tmp_path / "bad.json")
    (tmp_path / "worse.json").write_text("{")
    with pytest.raises(UsageError, match="not a recipe"):
        read_recipe(tmp_path / "worse.json")
