"""A build is checked before anything is computed, and travels through JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from hnetkit.errors import UsageError
from hnetkit.train.build import INITIALIZATIONS, Build
from hnetkit.train.recipe import dataclass_from_json, dataclass_to_json

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"structure": ()}, "starts and ends with 1"),
    ({"structure": (1,)}, "starts and ends with 1"),
    ({"structure": (1, 2)}, "layer structure 1, 2: it starts and ends with 1"),
    ({"structure": (2, 1)}, "starts and ends with 1"),
    ({"structure": (1, 0, 1)}, "layer structure 1, 0, 1: every number is above 0"),
    ({"structure": (1, -2, 1)}, "every number is above 0"),
    ({"structure": (1, float("nan"), 1)}, "every number is above 0"),
    ({"activation": "rellu"}, "the activation rellu is not known (the nearest is"),
    ({"activation": "softmax"}, "softmax cannot be computed faithfully"),
    ({"initialisation": "he"}, "there is no initialisation he"),
    ({"dropout": (0, 0.1)}, "a dropout of 2 numbers for a structure of 3"),
    ({"dropout": (0.1, 0, 0)}, "the first and the last are 0"),
    ({"dropout": (0, 0, 0.1)}, "the first and the last are 0"),
    ({"dropout": (0, 1, 0)}, "at least 0 and under 1"),
    ({"dropout": (0, -0.1, 0)}, "at least 0 and under 1"),
    ({"std": 0}, "std 0: a number above 0"),
    ({"widths": ()}, "widths none: at least one"),
    ({"widths": (0,)}, "widths 0: at least one, each above 0"),
    ({"sides": ()}, "sides none: k, v or both"),
    ({"sides": ("q",)}, "sides q: k, v or both"),
]


@pytest.mark.parametrize(("settings", "fault"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_build_that_cannot_be_meant_is_refused_in_one_line(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(UsageError) as caught:
        Build(**settings)
    assert fault in str(caught.value)


@pytest.mark.parametrize("name", [*INITIALIZATIONS, *INITIALIZATIONS.values(), "Xavier_Normal"])
def test_an_initialisation_has_a1111s_name_or_ours(name: str) -> None:
    assert Build(initialisation=name).initialisation in INITIALIZATIONS


def test_linear_is_no_activation_and_capitals_do_not_matter() -> None:
    assert Build(activation="linear").activation is None
    assert Build(activation="Swish").activation == "swish"


def test_dropout_of_zeros_is_no_dropout() -> None:
    assert Build(dropout=(0, 0, 0)) == Build()


def test_a_build_survives_json() -> None:
    build = Build(
        structure=(1, 2.5, 1),
        activation="mish",
        layer_norm=True,
        activate_output=True,
        dropout=(0, 0.2, 0),
        initialisation="KaimingNormal",
        zero_output=False,
        std=0.02,
        widths=(768, 320),
        sides=("v",),
    )
    assert dataclass_from_json(Build, json.loads(json.dumps(dataclass_to_json(build))), "build") == build
    assert (build.widths, build.structure) == ((320, 768), (1.0, 2.5, 1.0))


def test_widths_are_those_of_the_model_or_a_choice_of_them() -> None:
    assert Build().trained_widths([320, 768, 320, 64]) == (64, 320, 768)
    assert Build(widths=(768,)).trained_widths([320, 768]) == (768,)
    with pytest.raises(UsageError, match="the model has no contexts of width 1024") as caught:
        Build(widths=(768, 1024)).trained_widths([320, 768])
    assert caught.value.hint == "its widths are 320, 768"


def test_a_layer_without_values_is_refused() -> None:
    assert Build(structure=(1, 0.01, 1)).trained_widths([320]) == (320,)
    with pytest.raises(UsageError, match=r"a layer of 0\.01 times 64 has no values"):
        Build(structure=(1, 0.01, 1)).trained_widths([64, 320])


def test_one_side_is_not_trained_alone_where_the_other_could_not_be_silent() -> None:
    with pytest.raises(UsageError, match=r"not one side alone with sigmoid .* sigmoid makes 0\.5 of 0"):
        Build(activation="sigmoid", activate_output=True, zero_output=False, sides=("k",))
    assert Build(activation="sigmoid", activate_output=True, layer_norm=True, sides=("k",)).sides == ("k",)
    assert Build(activation="relu", activate_output=True, zero_output=False, sides=("k",)).sides == ("k",)


def test_a_build_needs_no_torch() -> None:
    code = "import sys, hnetkit.train.build; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
