"""A recipe: all of a run as data, there and back, and nothing in it that cannot be meant."""

from __future__ import annotations

import contextlib
import json
import math
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import NotFound, UsageError
from hnetkit.train.build import Build
from hnetkit.train.guards import GuardSettings
from hnetkit.train.previews import PreviewSettings
from hnetkit.train.recipe import Recipe, make_recipe, read_recipe

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
    "name",
    [
        *("con", "CON", "nul", "aux.v2", "prn", "com1", "LPT9", "com\N{SUPERSCRIPT ONE}", "conin$", "con .x", "none"),
        *("ink.", "ink ", "ink. .", " ", "", ".ink", "a:b", "a\\b", "a\nb"),
    ],
)
def test_a_name_that_some_system_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a network's files"):
        replace(PLAIN, name=name)


def test_names_that_only_look_reserved_are_taken() -> None:
    for name in ("console", "con-2", "com10", "ink.con", "nulla", "Conté (v2)"):
        assert replace(PLAIN, name=name).name == name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batchsize": 2}, "there is no setting batchsize"),
        ({"build": {"layers": 3}}, "build: there is no setting layers"),
        ({"batch_size": "2"}, "batch_size: a text is not a whole number"),
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
        *(({"previews": change}, "at least 1") for change in ({"clip_skip": -1}, {"clip_skip": 0}, {"cfg_scale": -1})),
        *(({"name": name}, "cannot name") for name in ("CON", "nul.v2", "com1", "lpt9", "aux ")),
        *(({"name": name}, "cannot name") for name in ("x\x9bm", "x\u202ey", "x\u200by", "x\x7f")),
        ({"max_steps": 0}, "at least 1"),
        ({"batch_size": 10**9}, "batch_size 1000000000: at most 4096"),
        ({"batch_size": 10**400}, "batch_size: 1000.*is no number from"),
        ({"batch_size": 1e30}, "batch_size: 1e.30 is no number from"),
        ({"accumulation": 10**9}, "accumulation 1000000000: at most"),
        ({"batch_size": 4096, "accumulation": 65_536}, "at most 1048576 samples a step"),
        ({"previews": {"prompts": ["a"] * 100_000}}, "previews of 600,000 pictures"),
        ({"max_steps": 10**18}, "max_steps 1000000000000000000: at most"),
        ({"size": [10**9, 512]}, "size 1000000000x512: larger than any"),
        ({"size": [16384, 16384]}, "larger than any"),
        ({"min_snr": 10**400}, "min_snr: 1000.*is no number from"),
        ({"min_snr": math.inf}, "min_snr: inf is no number from"),
        ({"drop_tags": math.nan}, "drop_tags: nan is no number from"),
        ({"name": "x" * 1_000_000}, "cannot name"),
        ({"name": "a\ud800"}, "name: .* is not a text"),
        ({"pictures": "a\0b"}, "pictures: .* is not a text"),
        ({"x" * 1_000_000: 1}, "there is no setting x{60}$"),
        ({"beside": [f"{n}.pt" for n in range(50_000)] * 2}, "two networks are called"),
        ({"optimizer_options": {"betas": [[[0.9]]]}}, "optimizer_options: 'betas'"),
        ({"optimizer_options": {"eps": [0.1] * 1_000}}, "optimizer_options: 'eps'"),
        ({"optimizer_options": {"eps": 10**400}}, "optimizer_options: 'eps'"),
        ({"build": {"structure": [1, 1e308, 1]}}, "is no number from"),
        ({"build": {"structure": [1, 1e6, 1]}}, "no layer is above 64 times"),
        ({"build": {"structure": [1] * 1_000}}, "a layer structure of 1,000 numbers: at most 64"),
        ({"build": {"structure": [1, 2, 1], "dropout": [0] + [0.5] * 100_000 + [0]}}, "a dropout of 100002 numbers"),
        ({"build": {"widths": [10**400]}}, "is no number from"),
        ({"build": {"std": math.inf}}, "is no number from"),
        ({"guards": {"window": 10**400}}, "is no number from"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Recipe.from_json({"name": "ink", "model": "m", "pictures": "p", **change})


def test_of_a_text_that_cannot_be_meant_nothing_is_said() -> None:
    """A folder from a stranger may hold a link to a private file in place of a recipe: a wallet's words, say."""
    for name in ("seed", "precision", "build", "size", "beside", "optimizer_options", "drop_tags", "alpha_as_weight"):
        for value in ("SECRET words", ["SECRET"], {"x": "SECRET"}):
            said = ""
            try:
                Recipe.from_json({"name": "ink", "model": "m", "pictures": "p", name: value})
            except UsageError as error:
                said = f"{error} {error.hint}"
            assert "SECRET" not in said, name


def test_a_near_name_is_offered() -> None:
    with pytest.raises(UsageError) as raised:
        Recipe.from_json({"name": "ink", "model": "m", "pictures": "p", "batchsize": 2})
    assert raised.value.hint is not None
    assert "batch_size" in raised.value.hint


def test_only_settings_that_make_other_steps_differ() -> None:
    assert PLAIN.differences(replace(PLAIN, max_steps=7, rates="1e-3", save_every=1, pictures="moved")) == []
    assert PLAIN.differences(replace(PLAIN, seed=1, build=Build(layer_norm=True))) == [
        "seed 0, not 1",
        "build.layer_norm False, not True",
    ]


def test_a_recipe_of_a_run_and_a_bare_one_are_both_read(tmp_path: Path) -> None:
    bare, run = tmp_path / "bare.json", tmp_path / "recipe.json"
    bare.write_text(json.dumps(UNUSUAL.to_json()))
    run.write_text(json.dumps({"format": "hnetkit.training/1", "recipe": UNUSUAL.to_json(), "found": {}}))
    assert Recipe.from_json(read_recipe(bare)) == Recipe.from_json(read_recipe(run)) == UNUSUAL


def test_a_recipe_of_another_version_is_refused_with_both(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"format": "hnetkit.training/2", "recipe": UNUSUAL.to_json()}))
    with pytest.raises(UsageError, match=r"of format hnetkit\.training/2, and this hnetkit reads hnetkit\.training/1"):
        read_recipe(tmp_path / "recipe.json")


def test_no_file_and_no_json_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_recipe(tmp_path / "nothing.json")
    (tmp_path / "bad.json").write_text("[1]")
    with pytest.raises(UsageError, match="one JSON object"):
        read_recipe(tmp_path / "bad.json")
    (tmp_path / "worse.json").write_text("{")
    with pytest.raises(UsageError, match="not a recipe"):
        read_recipe(tmp_path / "worse.json")


def test_what_is_said_of_a_bad_value_is_one_short_line() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    for value in (deep, {"a": deep}, "x" * 1_000_000, ["y" * 1_000_000] * 100, {str(n): n for n in range(100_000)}):
        for name in ("batch_size", "build", "size", "precision", "beside", "optimizer_options"):
            with pytest.raises(UsageError) as raised:
                Recipe.from_json({"name": "ink", "model": "m", "pictures": "p", name: {"a": value}})
            assert len(str(raised.value)) < 400


def test_the_largest_that_people_train_is_within_the_limits() -> None:
    Recipe(**{"name": "ink", "model": "m", "pictures": "p", "batch_size": 512, "accumulation": 1000})
    build = Build(structure=(1, 4, 8, 16, 8, 4, 1))
    assert build.trained_widths([320, 640, 768]) == (320, 640, 768)
    with pytest.raises(UsageError, match="parameters; at most"):
        Build(structure=(1, 64, 64, 1)).trained_widths([320, 640, 768, 1280])


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "[" + "{}," * 3_000_000 + "0]", "9" * 5_000])
def test_a_recipe_that_no_run_wrote_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UsageError, match="not a recipe that can be read") as raised:
        read_recipe(tmp_path / "bad.json")
    assert len(str(raised.value)) < 300


@pytest.mark.skipif(os.name != "posix", reason="this system has no named pipes")
def test_a_pipe_in_place_of_a_recipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.json")
    with pytest.raises(UsageError, match="not a regular file"):
        read_recipe(tmp_path / "recipe.json")


@pytest.mark.parametrize("build", [5, [], "x"])
def test_an_option_cannot_be_put_into_a_part_that_is_none(tmp_path: Path, build: Any) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "ink", "model": "m", "pictures": "p", "build": build}))
    with pytest.raises(UsageError, match="build is not a JSON object"):
        make_recipe(tmp_path / "recipe.json", {"build.layer_norm": True})


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)
KEYS = st.sampled_from(
    [field.name for kind in (Recipe, Build, GuardSettings, PreviewSettings) for field in fields(kind)]
)
OBJECTS = st.dictionaries(KEYS, ANY | st.dictionaries(KEYS, ANY))


@given(OBJECTS)
def test_no_json_raises_anything_but_a_usage_error(data: dict[str, Any]) -> None:
    with contextlib.suppress(UsageError):
        recipe = Recipe.from_json({"name": "ink", "model": "m", "pictures": "p", **data})
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
