"""Options and commands as our help shows them: options under headings, in one spelling, with ranges in words."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem
from click.types import FloatParamType, IntParamType

from hnetkit import base_models
from hnetkit.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

DEVICES = ("auto", "cpu", "cuda", "mps")  # as in `hnetkit.settings`, which every command would have to import
DTYPES = ("auto", "fp32", "fp16", "bf16")

OUTPUT = "Output"
"""The heading of what a command prints and writes, which the help of every command with headings ends with."""


class Option(click.Option):
    """An option of a command.

    Args:
        section: its heading in the command's help.
        former: earlier spellings. They work the same; help, completion and messages show the present one.
    """

    def __init__(
        self,
        param_decls: Sequence[str] | None = None,
        *,
        section: str | None = None,
        former: Sequence[str] = (),
        **attributes: Any,
    ) -> None:
        super().__init__([*(param_decls or ()), *former], **attributes)
        self.section, self.former = section, frozenset(former)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return click.Option.get_help_record(self._as_shown(), ctx)

    def get_error_hint(self, ctx: click.Context | None) -> str:
        return click.Option.get_error_hint(self._as_shown(), ctx)

    def make_metavar(self, ctx: click.Context) -> str:
        if self.metavar is None and isinstance(self.type, IntParamType | FloatParamType):
            return "N"
        return super().make_metavar(ctx)

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default  # click puts brackets around words
        elif "default" in extra and isinstance(self.type, Choice):
            extra["default"] = self.type.means.get(extra["default"], extra["default"])
        if "range" in extra:
            extra["range"] = _range_text(self.type)
        return extra

    def _as_shown(self) -> Option:
        shown = copy.copy(self)
        shown.opts = [name for name in self.opts if name not in self.former]
        return shown


class Command(click.Command):
    """A command whose help has its options under their headings, in the order of their first options; output last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        has_headings = any(getattr(option, "section", None) not in (None, OUTPUT) for option in options)
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in options:
            heading = (getattr(option, "section", None) or OUTPUT) if has_headings else "Options"
            if (record := option.get_help_record(ctx)) is not None:
                sections.setdefault(heading, []).append(record)
        if OUTPUT in sections:  # last
            sections[OUTPUT] = sections.pop(OUTPUT)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        former = {name for param in self.params if isinstance(param, Option) for name in param.former}
        return [item for item in super().shell_complete(ctx, incomplete) if item.value not in former]


command = functools.partial(click.command, cls=Command)
option = functools.partial(click.option, cls=Option)


class Number(click.FloatRange):
    """A number in a range; click's own lets NaN through, which is below no limit and above none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns the number; fails for what is none, is not finite, or is out of the range."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Choice(click.Choice[str]):
    """One of several words.

    Args:
        choices: the words.
        means: other spellings, in lower case, and the word that each means; help and messages leave them out.
    """

    def __init__(self, choices: Sequence[str], means: Mapping[str, str]) -> None:
        super().__init__(choices)
        self.means = means

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(self.means.get(str(value).casefold(), value), param, ctx)


def device_option(*, section: str | None = None) -> Callable[[F], F]:
    """Adds --device; the command receives None where it is not given, and the settings decide."""
    return option(
        "--device",
        section=section,
        type=click.Choice(DEVICES),
        show_default="that of `hnetkit config`, else auto",
        help="Device to run on; auto takes a GPU if there is one.",
    )


def dtype_option(*, section: str | None = None) -> Callable[[F], F]:
    """Adds --dtype; the command receives None where it is not given, and the settings decide."""
    return option(
        "--dtype",
        section=section,
        type=click.Choice(DTYPES),
        show_default="that of `hnetkit config`, else auto",
        help="Precision to compute in; auto is fp16 on CUDA, fp32 elsewhere.",
    )


class BaseModelName(click.ParamType):  # type: ignore[type-arg]  # generic in later versions of click alone
    """A base model, in any spelling of our name for it or of Civitai's.

    Args:
        choices: our names that may be meant; help and messages show them.
        read: returns the value that a spelling stands for; an empty one if it stands for nothing.
    """

    name = "text"

    def __init__(self, choices: Sequence[str], read: Callable[[str], Any]) -> None:
        self.choices, self.read = tuple(choices), read

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns what `read` does; fails for a text that means none of the choices."""
        if not isinstance(value, str) or not value:  # read before, or no choice at all
            return value or None
        found = self.read(value)
        if not found:
            self.fail(f"{value!r} is not one of {', '.join(map(repr, self.choices))}.", param, ctx)
        return found

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self.choices if name.startswith(incomplete.casefold())]


class BaseModelChoice(Choice):
    """One of a few base models, in any spelling of our name for it or of Civitai's."""

    def __init__(self, *choices: str) -> None:
        super().__init__(
            choices, {name.casefold(): base for base in choices for name in base_models.SITE_BASE_MODELS[base]}
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(base_models.base_model_called(str(value)) or value, param, ctx)


def base_model_name() -> BaseModelName:
    """Returns the type of an option for a base model of the library's networks, by our name."""
    return BaseModelName(base_models.BASE_MODELS, base_models.base_model_called)


def site_base_model_names() -> BaseModelName:
    """Returns the type of an option for base models at Civitai: a value is a tuple of the site's names."""
    return BaseModelName(tuple(base_models.SITE_BASE_MODELS), base_models.site_names_called)


def each_once(ctx: click.Context, param: click.Parameter, found: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Callback of a repeatable option whose values are tuples: returns all that is in them, each once."""
    return tuple(dict.fromkeys(name for names in found if names for name in names))


def size_in_pixels(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Callback of an option: returns the (width, height) that ``512`` or ``512x768`` means."""
    from hnetkit.images import parse_size  # every command imports this module, and few read sizes

    if text is None:
        return None
    flag = param.opts[0]
    try:
        return parse_size(text)
    except ValueError as error:
        message = f"{flag} {text}: not a number of pixels, nor WIDTHxHEIGHT"
        raise UsageError(message, hint=f"{flag} 512, or {flag} 768x512") from error


def _range_text(kind: Any) -> str:
    """Returns in words what numbers a type takes."""
    least, most = (f"{number:g}" if isinstance(number, float) else number for number in (kind.min, kind.max))
    if most is None:
        return f"above {least}" if kind.min_open else f"{least} or more"
    return f"{least} to {most}"
