"""What `--help` says: one style, true defaults, headings, and earlier spellings that work unseen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import click
import pytest
from click.shell_completion import ShellComplete
from support.pictures import save

from hnetkit import settings
from hnetkit.base_models import BASE_MODELS, SITE_BASE_MODELS, base_model_called, site_names_called
from hnetkit.cli import cli, run
from hnetkit.cli.groups import LazyGroup
from hnetkit.cli.options import OUTPUT, BaseModelChoice, BaseModelName, Option
from hnetkit.cli.train_options import _SETTINGS, _field
from hnetkit.generate.loading.defaults import Defaults
from hnetkit.generate.options import DrawOptions
from hnetkit.network import BaseModel


def commands(group: LazyGroup, *path: str) -> Iterator[tuple[str, click.Command]]:
    for name in group.table:
        found = group.get_command(click.Context(group), name)
        assert found is not None
        yield " ".join([*path, name]), found
        if isinstance(found, LazyGroup):
            yield from commands(found, *path, name)


ALL = dict(commands(cli))
OPTIONS = [
    (name, param) for name, command in ALL.items() for param in command.params if isinstance(param, click.Option)
]
ALIASES = [
    (name, param, former) for name, param in OPTIONS if isinstance(param, Option) for former in sorted(param.former)
]
BRITISH = re.compile(r"(?i)\b(colour|favourite|licence|centre|labelled|catalogue|grey|behaviour|initialis)")


def help_of(name: str) -> str:
    command = ALL[name]
    context = click.Context(command, info_name=f"hnetkit {name}", max_content_width=100, terminal_width=100)
    return command.get_help(context)


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=lambda value: getattr(value, "name", value))
def test_help_of_an_option_is_a_sentence_that_begins_with_a_verb_or_a_noun(name: str, option: click.Option) -> None:
    text = option.help or ""
    assert re.match(r"[A-Z].*\.$", text), text
    assert text.split()[0] not in (
        "Of",
        "For",
        "In",
        "After",
        "Before",
        "While",
        "With",
        "Else",
        "How",
        "What",
        "Where",
        "Only",
    ), text
    assert not re.search(r"\bdefaults?\b", text), f"{text}: show_default shows it"
    assert not BRITISH.search(text), text


@pytest.mark.parametrize("name", list(ALL))
def test_help_of_a_command_shows_numbers_and_ranges_in_words(name: str) -> None:
    text = help_of(name)
    assert not re.search(r"INTEGER|FLOAT|RANGE|<=|>=|x>", text)
    assert not re.search(r"\[default: [^]]*\[default|\(default", text)
    assert not re.search(r"\x1b", text)


@pytest.mark.parametrize(
    ("name", "headings"),
    {
        "generate": ["Prompt and networks", "Picture", "Model", "Image-to-image and inpainting", OUTPUT],
        "grid": ["Prompt and networks", "Axes", "Picture", "Model", "Image-to-image and inpainting", OUTPUT],
        "train run": ["Run", "Model", "Network", "Learning", "Guards", OUTPUT],
        "train sweep": ["Run", "Model", "Network", "Learning", "Guards", OUTPUT],
        "train prepare": ["Pictures", "Captions", OUTPUT],
        "sync": ["Filters", "Saved filters", "Downloads", OUTPUT],
        "inspect": ["Options"],
    }.items(),
)
def test_options_stand_under_headings_and_output_comes_last(name: str, headings: list[str]) -> None:
    found = re.findall(r"^(\S.*):$", help_of(name), re.MULTILINE)
    assert [heading for heading in found if heading in headings] == headings
    assert found[-1] == headings[-1]


def test_commands_stand_in_groups_below_a_line_for_who_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "New here? `hnetkit demo`" in text
    headings = ["Files", "Library", "Fetching", "Drawing", "Training", "This installation"]
    assert [line[:-1] for line in text.splitlines() if re.match(r"\S.*:$", line)] == ["Options", *headings]


def test_help_of_config_names_every_setting() -> None:
    named = re.search(r"KEY is ([\w, ]+)\.", ALL["config"].help or "")
    assert named is not None
    assert re.split(r", | or ", named[1]) == list(settings.KEYS)


# --- defaults


def test_the_defaults_that_generate_shows_are_what_a_picture_is_drawn_with(tmp_path: Path) -> None:
    model: Any = SimpleNamespace(defaults=Defaults(), size=(512, 512))
    request = DrawOptions(hires_size=(64, 64)).request(model, "a star", 1)
    drawn = {
        "steps": f"the model's, else {request.steps}",
        "cfg_scale": f"the model's, else {request.cfg_scale:g}",
        "sampler": f"the model's, else {request.sampler}",
        "clip_skip": str(request.clip_skip),
        "rng": request.rng,
        "emphasis": request.emphasis,
        "eta_seed_delta": str(request.eta_seed_delta),
        "variation_seed": str(request.variation_seed),
        "variation_strength": f"{request.variation_strength:g}",
    }
    assert request.second is not None
    drawn["hires_upscaler"] = request.second.upscaler
    save(tmp_path, "start.png")
    start = DrawOptions(image=tmp_path / "start.png").request(model, "a star", 1).init_image
    assert start is not None
    drawn["mask_blur"], drawn["masked_content"] = f"{start.mask_blur:g}", start.content
    drawn["denoising"] = f"{start.denoising:g}, in a hires pass {request.second.denoising:g}"
    shown = {param.name: param.show_default for name, param in OPTIONS if name == "generate"}
    assert {name: shown[name] for name in drawn} == drawn


def test_the_defaults_that_training_shows_are_those_of_a_recipe() -> None:
    shown = {
        param.name: param.get_help_extra(click.Context(ALL["train run"])).get("default")
        for name, param in OPTIONS
        if name == "train run"
    }
    assert (shown["seed"], shown["save_every"], shown["build_structure"]) == ("0", "500", "1,2,1")
    assert (shown["guards_rate_factor"], shown["build_zero_output"]) == ("0.1", "on")
    assert shown["previews_seeds"] == "1 and 2"  # the option is repeated, and takes no list
    in_words = [setting for settings in _SETTINGS.values() for setting in settings if setting.default]
    for setting in in_words:  # words only where the recipe's own default tells nothing, or depends on the machine
        own = _field(setting.name).default
        depends = setting.name in ("model", "precision", "build.sides")
        assert depends or "{}" in setting.default or not isinstance(own, int | float | str), setting.name


# --- earlier spellings


@pytest.mark.parametrize(("name", "option", "former"), ALIASES, ids=lambda value: getattr(value, "name", value))
def test_an_earlier_spelling_works_as_the_present_one_and_is_not_shown(name: str, option: Option, former: str) -> None:
    command = ALL[name]
    words = {"choice": "sd1", "integer range": "3"}
    value = [] if option.is_flag else [words.get(option.type.name, "ink")]
    given = {
        spelling: command.make_context(name, [spelling, *value], resilient_parsing=True).params
        for spelling in (option.opts[0], former)
    }
    assert given[former] == given[option.opts[0]]
    assert given[former][option.name or ""] not in (None, False, ())
    assert not re.search(rf"{former}(?![\w-])", help_of(name))
    offered = ShellComplete(cli, {}, "hnetkit", "").get_completions(name.split(), former[:4])
    assert former not in [item.value for item in offered]
    assert f"'{former}'" not in option.get_error_hint(click.Context(command))


def test_an_earlier_spelling_stands_for_each_of_these() -> None:
    assert {f"{name} {former} = {option.opts[0]}" for name, option, former in ALIASES} == {
        "bench --base = --base-model",
        "bench --batch = --batch-size",
        "config --unset = --remove",
        "convert --out-dir = --out",
        "link --undo = --remove",
        "sync --favourites = --favorites",
        "sync --unsave = --remove",
        *(
            f"train {command} {former}"
            for command in ("run", "sweep")
            for former in (
                "--accumulate = --accumulation",
                "--beside = --with",
                "--initialisation = --initialization",
                "--start = --init-from",
            )
        ),
    }


@pytest.mark.parametrize("spelling", ["sd1", "SD1", "SD 1.5", "sd 1.4"])
def test_a_base_model_goes_by_our_name_or_by_the_sites(spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    context = ALL["bench"].make_context("bench", ["x", "--base-model", spelling.replace("SD1", "sd1")])
    assert context.params["base_model"] == "sd1"
    assert run(["list", "--base-model", spelling]) == 0
    site = ALL["browse"].make_context("browse", ["--base-model", spelling, "--base-model", spelling])
    named = SITE_BASE_MODELS["sd1"] if spelling.casefold() == "sd1" else (spelling.upper(),)
    assert site.params["base_models"] == named


def test_one_vocabulary_names_the_base_models() -> None:
    assert set(BASE_MODELS) == set(get_args(BaseModel))
    assert set(SITE_BASE_MODELS) < set(BASE_MODELS)
    for base, names in SITE_BASE_MODELS.items():
        assert [base_model_called(name) for name in (base, *names)] == [base] * (len(names) + 1)
        assert [site_names_called(name) for name in names] == [(name,) for name in names]
    kinds = {type(option.type) for _, option in OPTIONS if "--base-model" in option.opts}
    assert kinds == {BaseModelName, BaseModelChoice}


def test_a_size_is_given_in_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "a star", "--size", "64x96", "--width", "64"]) == 2
    assert "--size and --width or --height say the same in two ways" in capsys.readouterr().err
    assert run(["generate", "a star", "--size", "wide"]) == 2
    assert "--size wide: not a number of pixels, nor WIDTHxHEIGHT" in capsys.readouterr().err
    assert "--width" not in help_of("generate")


@pytest.mark.parametrize("group", [[], ["train"]])
def test_a_group_without_a_command_shows_its_help_and_no_error(
    group: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*group, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert run(group) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == help_text.splitlines()
    assert "Error" not in shown.err
