"""What `--x AXIS=VALUES` means, and what of it is refused."""

from __future__ import annotations

import pytest

from hnetkit.errors import UsageError
from hnetkit.generate.grids.axes import MOST_VALUES, AxisChange, cross_axes, label_of, read_axis, read_strengths


def values(text: str) -> list[object]:
    return [change.value for (change,) in read_axis("--x", text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("strength=0,0.5, -1.5", [0.0, 0.5, -1.5]),
        ("strength=0:1:0.1", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("strength=1:0:0.5", [1.0, 0.5, 0.0]),
        ("strength=0-1 (0.25),2", [0.0, 0.25, 0.5, 0.75, 1.0, 2.0]),
        ("strength=1e-1", [0.1]),
        ("strength:ink=1", [1.0]),
        ("seed=1-3,10", [1, 2, 3, 10]),
        ("seed=-1", [-1]),
        ("steps=10-30 (10)", [10, 20, 30]),
        ("steps=1-10 [4]", [1, 4, 7, 10]),
        ("cfg=4-7 [3]", [4.0, 5.5, 7.0]),
        ("CFG-scale=7", [7.0]),
        ("sampler=euler a,ddim", ["Euler a", "DDIM"]),
        ("hypernetwork=ink,none,,wash:0.5", ["ink", None, None, "wash:0.5"]),
        ("order=all", [("all",)]),
        ("order=ink/wash, wash / ink", [("ink", "wash"), ("wash", "ink")]),
        ("prompt=red , blue ", ["red", "blue"]),  # blanks around a value are none of it, as in A1111
        ('prompt="a circle, red",a star', ["a circle, red", "a star"]),
        ('prompt=red, "say ""so"""', ["red", 'say "so"']),
        ("checkpoint=a.safetensors,models/b", ["a.safetensors", "models/b"]),
    ],
)
def test_values_are_read(text: str, expected: list[object]) -> None:
    assert values(text) == expected
    assert list(map(type, values(text))) == list(map(type, expected))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("strenth=1", "strenth"),
        ("strength", "AXIS=VALUE"),
        ("strength=", "strength"),
        ("strength=0,much", "much"),
        ("strength=nan", "nan"),
        ("strength:=1", "strength"),
        ("seed:ink=1", "seed:ink"),
        ("seed=1.5", "1.5"),
        ("seed=-2", "-2"),
        ("steps=0", "0"),
        ("steps=1-5000", "5000"),
        ("steps=10-30 (0)", "10-30"),
        (f"seed=1-{MOST_VALUES},5", "1001 values"),
        ("cfg=0.5", "0.5"),
        ("sampler=Eulr", "Eulr"),
        ("order=ink/", "ink/"),
        ('prompt="a circle', "prompt"),
        ("prompt=,star", "searched"),
        ("checkpoint=a,,b", "empty"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_axis_and_value(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_axis("--y", text)
    assert "--y" in str(caught.value)
    assert told in str(caught.value)


def test_the_nearest_name_is_told() -> None:
    for text, near in (("strenth=1", "strength"), ("smpler=x", "sampler"), ("sampler=Eulr", "Euler")):
        with pytest.raises(UsageError) as caught:
            read_axis("--x", text)
        assert near in str(caught.value.hint)


def test_strengths_in_the_short_form() -> None:
    assert read_strengths("0, 0.5,1") == tuple((AxisChange("strength", number),) for number in (0.0, 0.5, 1.0))
    for text in ("", "0,much", "inf", "0,,1"):
        with pytest.raises(UsageError, match="--strengths"):
            read_strengths(text)


def test_labels() -> None:
    named = {("hypernetwork", "lib/ink.pt"): "ink"}
    shown = {
        text: [label_of(value, named) for value in read_axis("--x", text)]
        for text in ("strength=0,0.5", "strength:ink=0,1", "hypernetwork=none,lib/ink.pt,wash", "seed=7", "steps=20")
    }
    assert list(shown.values()) == [
        ["none", "0.5"],
        ["ink 0", "ink 1"],
        ["none", "ink", "wash"],
        ["seed 7"],
        ["20 steps"],
    ]
    assert [label_of(value, {}) for value in read_axis("--x", "order=a/b")] == ["a + b"]
    assert (
        label_of((AxisChange("text", "a circle"), AxisChange("seed", 5), AxisChange("cfg", 7.0)), {})
        == "a circle, seed 5, CFG 7"
    )


def test_axes_that_are_crossed_run_through_every_combination() -> None:
    crossed = cross_axes(read_axis("--x", "seed=1,2"), read_axis("--x", "steps=3,4"))
    assert [tuple(change.value for change in value) for value in crossed] == [(1, 3), (1, 4), (2, 3), (2, 4)]
