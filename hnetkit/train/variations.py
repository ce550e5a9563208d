"""What a sweep varies: settings or whole recipes, the runs of all combinations, and what differs between them.

Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from hnetkit.errors import UsageError
from hnetkit.text import argument
from hnetkit.train.recipe import Recipe
from hnetkit.train.schedules import schedule

SHARED = ("model", "vae", "tokenizer", "precision", "previews")
"""Settings that all runs share: the model is loaded once, and the sheet shows the same prompts and seeds of each."""

WHOLE = "recipe"
"""The name of what varies if whole recipes do."""

_LONGEST = 80  # characters of a run's folder; files add the sweep's name and more
_UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)


class VariedSetting(NamedTuple):
    """One setting that a sweep varies, or whole recipes.

    Attributes:
        what: its name, in labels, folders and the table.
        setting: of the recipe, such as ``build.structure``; empty for whole recipes.
        values: each as it is written, and as JSON holds it; a whole recipe with its name.
    """

    what: str
    setting: str
    values: Sequence[tuple[str, Any]]

    @classmethod
    def of(cls, setting: str, values: Sequence[Any] | Mapping[str, Any]) -> VariedSetting:
        """Returns the values of a setting, or whole recipes by name if `setting` is `WHOLE`.

        Args:
            values: in order; the keys of a mapping say how each is written.

        Raises:
            UsageError: recipes without names.
        """
        if setting == WHOLE and not isinstance(values, Mapping):
            raise UsageError("recipes that vary have names", hint='vary={"recipe": {"soft": ..., "hard": ...}}')
        values = [values] if isinstance(values, str) else values
        pairs = values.items() if isinstance(values, Mapping) else [(_value_text(value), value) for value in values]
        what = setting.rpartition(".")[2].replace("_", "-")
        return cls(what, "" if setting == WHOLE else setting, tuple(pairs))


class SweptChoice(NamedTuple):
    """One value of a varied setting.

    Attributes:
        what: the option's name, or ``recipe``.
        text: the value as it was given.
        setting: of the recipe, such as ``build.structure``; empty for a whole recipe.
    """

    what: str
    text: str
    setting: str = ""


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
        label: what differs, for the user.
        folder: of this run alone.
        recipe: named by the sweep and what differs.
        settings: what differs, by the names of options if they were varied, else by those of the recipe.
    """

    label: str
    folder: Path
    recipe: Recipe
    settings: Mapping[str, Any]

    @contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Puts the run's label before a UsageError that is raised inside the block."""
        try:
            yield
        except UsageError as error:
            raise type(error)(f"{self.label}: {error}", hint=error.command_hint) from error


def plan_runs(name: str, folder: Path, recipes: Sequence[tuple[Sequence[SweptChoice], Recipe]]) -> tuple[SweepRun, ...]:
    """Returns the runs of a sweep.

    The networks are named by what differs, but called by the sweep's name in their prompts and captions: otherwise the
    words of the prompts would differ too.

    Args:
        name: of the sweep.
        folder: of the sweep.
        recipes: each with its values of what varies.

    Raises:
        UsageError: fewer than two runs, two that are the same, or two that differ in what all share.
    """
    if len(recipes) < 2:
        raise UsageError(
            "a sweep has at least two runs",
            hint='--vary "rate=5e-5|5e-6"',
            python='vary={"rates": ["5e-5", "5e-6"]}',
        )
    names = [_folder_name(choices) for choices, _ in recipes]
    labels = [" · ".join(f"{choice.what} {choice.text}" for choice in choices) for choices, _ in recipes]
    _require_different(labels, names, [recipe for _, recipe in recipes])
    different = _different(recipes)
    runs = []
    for label, own, (choices, recipe) in zip(labels, names, recipes, strict=True):
        recipe = replace(recipe, name=f"{name}-{own}", prompt_name=recipe.called)
        runs.append(SweepRun(label, folder / own, recipe, _settings(choices, recipe, different)))
    return tuple(runs)


def require_valid_variations(varied: Sequence[VariedSetting], changes: Mapping[str, Any]) -> None:
    """Checks what is to vary.

    Args:
        changes: settings that are the same for all runs.

    Raises:
        UsageError: all runs share it, it is given twice, or it has one value.
    """
    names = [setting.what for setting in varied]
    for what, setting, values in varied:
        if setting == "name" or setting.split(".")[0] in SHARED:
            raise UsageError(f"--vary {what}: all runs of a sweep have the {what} in common", hint="make two sweeps")
        if setting in changes:
            raise UsageError(f"--{what} and --vary {what}: which of them?", hint=f"leave --{what} out")
        if names.count(what) > 1:
            hint = f"--vary {argument(f'{what}=A|B|C')}"
            raise UsageError(f"{what} is varied twice", hint=hint, python=f'vary={{"{what}": [A, B, C]}}')
        if len(values) < 2:
            hint = f"a | separates values: --vary {argument(f'{what}=A|B')}"
            raise UsageError(f"--vary {what}: one value does not vary", hint=hint, python=f'vary={{"{what}": [A, B]}}')


def _value_text(value: Any) -> str:
    """Returns a value as its option is written."""
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, bool):
        return "none" if value is None else "on" if value else "off"
    if isinstance(value, list | tuple):
        return ",".join(map(_value_text, value))
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _require_different(labels: Sequence[str], names: Sequence[str], recipes: Sequence[Recipe]) -> None:
    """Raises UsageError if two runs are the same, or differ in what all must share."""
    for setting in SHARED:
        for label, recipe in zip(labels, recipes, strict=True):
            if getattr(recipe, setting) != getattr(recipes[0], setting):
                raise UsageError(
                    f"{labels[0]} and {label} differ in {setting}: the runs of a sweep have it in common",
                    hint="give it as an option beside the recipes, or make two sweeps",
                )
    for (one, mine), (other, others) in combinations(zip(labels, recipes, strict=True), 2):
        if _is_same(mine, others):
            raise UsageError(f"{one} and {other} are the same run", hint="leave one of them out")
    name, count = Counter(map(str.casefold, names)).most_common(1)[0]
    if count > 1:
        raise UsageError(f"{count} runs would share the folder {name}", hint="write their values otherwise")


def _is_same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes ask for the same steps, however their schedules are written."""

    def rest(recipe: Recipe) -> Recipe:
        return replace(recipe, name="run", tensorboard=False, rates="default", max_steps=None)

    if rest(one) != rest(other):
        return False
    mine, others = (schedule(recipe.rates, recipe.max_steps) for recipe in (one, other))
    return mine.is_same(others)


def _different(recipes: Sequence[tuple[Sequence[SweptChoice], Recipe]]) -> list[str]:
    """Returns the settings in which recipes differ beside those that vary."""
    flat = [_flat(recipe) for _, recipe in recipes]
    known = {"name", *(choice.setting for choice in recipes[0][0])}
    return [name for name in flat[0] if name not in known and any(one[name] != flat[0][name] for one in flat)]


def _settings(choices: Sequence[SweptChoice], recipe: Recipe, different: Sequence[str]) -> dict[str, Any]:
    flat = _flat(recipe)
    chosen = {choice.what: flat.get(choice.setting) for choice in choices}
    unset = {choice.what: choice.text for choice in choices if chosen[choice.what] in (None, [])}
    return {**chosen, **unset, **{name: flat[name] for name in different}}


def _flat(recipe: Recipe) -> dict[str, Any]:
    """Returns every setting of a recipe, those of a part as ``part.name``."""
    data = recipe.to_json()
    parts = {f"{part}.{name}": value for part in ("build", "guards") for name, value in data.pop(part).items()}
    return {**data, **parts}


def _folder_name(choices: Sequence[SweptChoice]) -> str:
    """Returns what differs as a name for files, valid on every system and the same for the same choices."""
    words = "-".join(f"{choice.what}-{choice.text}" for choice in choices)
    name = _UNSAFE.sub("_", words).strip("._-")
    if len(name) <= _LONGEST and not re.search(r"[^\x20-\x7e]", words):
        return name
    return f"{name[: _LONGEST - 9]}-{blake3(words.encode()).hexdigest()[:8]}"
