"""The pictures that a fit is made on and measured on: prompts, seeds and settings, those held out apart."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from hnetkit.errors import NotFound, UsageError
from hnetkit.files import read_regular
from hnetkit.generate.loading.pipeline import LoadedPipeline
from hnetkit.generate.request import NamedStrengths, Request, require_prompt
from hnetkit.prompts.infotext import is_generation_data
from hnetkit.prompts.tags import excerpt, options_in, split_comments, split_tags

GENERAL_PROMPTS = (
    "a castle on a hill at sunset",
    "portrait of an old man with a beard",
    "a red sports car in a city street at night",
    "a bowl of fruit on a wooden table",
    "a girl in a white dress in a field of flowers",
    "a dog running on a beach",
    "snowy mountains behind a lake, wide view",
    "a cup of coffee beside an open book",
    "close-up of a woman's face, soft light",
    "a knight in armor riding a horse",
    "an empty road through a forest in autumn",
    "a cat asleep on a blue sofa",
    "a sailing ship in a storm",
    "a crowded market in an old town",
    "a robot watering plants in a greenhouse",
    "two children looking at the stars",
)
"""For models that bring no prompts of their own: people, animals, places and things, near and far."""

FEWEST = 12
"""Pictures that contexts are gathered from at least; fewer prompts are drawn with several seeds."""

FEWEST_HELD_OUT = 4

TEXTS = 128
"""Texts that are encoded and not drawn."""

_HELD_OUT = 4  # every fourth prompt
_MOST_BYTES = 1 << 20
_FIRST_SEED, _FIRST_HELD_OUT = 1, 1_000_001


@dataclass(frozen=True, slots=True)
class PlannedPicture:
    """One picture."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class PicturePlan:
    """What is drawn for a fit.

    Attributes:
        seen: pictures that contexts are gathered from.
        held_out: pictures that errors are measured on: other prompts, with other seeds.
        texts: more texts for the contexts of cross-attention, which are not drawn: a few prompts hold few words.
        steps, cfg_scale, sampler, width, height: of all of them.
    """

    seen: tuple[PlannedPicture, ...]
    held_out: tuple[PlannedPicture, ...]
    texts: tuple[str, ...]
    steps: int
    cfg_scale: float
    sampler: str
    width: int
    height: int

    def request(self, picture: PlannedPicture, stack: NamedStrengths) -> Request:
        """Returns the request for one picture with a stack."""
        return Request(
            picture.prompt,
            picture.seed,
            steps=self.steps,
            cfg_scale=self.cfg_scale,
            width=self.width,
            height=self.height,
            sampler=self.sampler,
            stack=stack,
        )

    @property
    def holds_out_prompts(self) -> bool:
        """Whether errors are measured on prompts that were not fitted on, and not on other seeds alone."""
        return not {picture.prompt for picture in self.seen} & {picture.prompt for picture in self.held_out}


def plan_pictures(
    model: LoadedPipeline,
    prompts: Sequence[str] | None = None,
    *,
    steps: int | None = None,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    calls: int = 0,
) -> PicturePlan:
    """Returns what is drawn for a fit, with the model's default settings.

    Args:
        prompts: None for the model's own, else `GENERAL_PROMPTS`.
        steps: sampling steps of each picture; None is the model's default.
        size: (width, height) in pixels; None is the model's default.
        seed: added to all seeds.
        calls: of the UNet that the pictures to fit on make together at least; texts like the prompts bring more.

    Raises:
        UsageError: there is no prompt, or one has tags or cannot be drawn in so many steps.
    """
    own = model.defaults
    typed = [split_comments(prompt)[0] for prompt in prompts] if prompts is not None else own.prompts or GENERAL_PROMPTS
    chosen = tuple(dict.fromkeys(typed))
    steps = own.steps if steps is None else steps
    require_prompts(chosen, steps)
    held_out = chosen[_HELD_OUT - 1 :: _HELD_OUT] or chosen[1:] or chosen
    seen = tuple(prompt for prompt in chosen if prompt not in held_out) or chosen
    width, height = size or model.size
    drawn = _drawn(seen, FEWEST, _FIRST_SEED + seed)
    more = max(0, -(-calls // steps) - len(drawn))
    return PicturePlan(
        (*drawn, *_drawn(recombined(seen, seed, number=more), more, drawn[-1].seed + 1)),
        _drawn(held_out, FEWEST_HELD_OUT, _FIRST_HELD_OUT + seed),
        recombined(seen, seed, words_of(model.pipe.tokenizer)),
        steps=steps,
        cfg_scale=own.cfg_scale,
        sampler=own.sampler,
        width=width,
        height=height,
    )


def recombined(
    prompts: Sequence[str], seed: int, vocabulary: Sequence[str] = (), number: int = TEXTS
) -> tuple[str, ...]:
    """Returns texts like prompts, in which about every second word is another one; the same for a seed.

    Args:
        vocabulary: words that the model knows; half of the texts take theirs from it, the others from the prompts.
        number: of texts.
    """
    generator = random.Random(seed)
    own = [word for prompt in prompts for word in prompt.split()]
    texts = []
    for index in range(number):
        words = vocabulary if vocabulary and index % 2 else own
        template = generator.choice(prompts).split()
        texts.append(" ".join(generator.choice((word, generator.choice(words))) for word in template))
    return tuple(texts)


def words_of(tokenizer: Any) -> list[str]:
    """Returns the whole words that a tokenizer of CLIP knows, sorted."""
    tokens = (token.removesuffix("</w>") for token in tokenizer.get_vocab() if token.endswith("</w>"))
    return sorted(word for word in tokens if word.isalpha())


def require_prompts(prompts: Sequence[str], steps: int) -> None:
    """Raises UsageError where prompts cannot be fitted on: there is none, or one has tags of networks."""
    if not any(prompt.strip() for prompt in prompts):
        raise UsageError("there is no prompt to gather contexts from", hint="one prompt on each line of --prompts FILE")
    for prompt in prompts:
        tagged = split_tags(prompt)
        if tagged.tags or tagged.loras or tagged.unknown or tagged.warnings:
            raise UsageError(
                f"a prompt has tags: {excerpt(prompt)}", hint="leave them out: -n says what is baked, for all prompts"
            )
        if is_generation_data(prompt):
            raise UsageError(
                f"a prompt is the generation data of a picture, whose settings would be drawn as words: "
                f"{excerpt(prompt)}",
                hint="leave them out; --size, --steps and --seed are those of all prompts",
            )
        if (options := options_in(prompt)) is not None:
            raise UsageError(
                f"a prompt has options, which would be drawn as words: {options} in {excerpt(prompt)}",
                hint="leave them out; --size, --steps and --seed are those of all prompts",
            )
        require_prompt(prompt, steps)


def read_prompts(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the prompts of a text file, one on each line; empty lines, and those that begin with #, do not count.

    Raises:
        NotFound: there is no such file.
        UsageError: it is not text, or has no prompt.
    """
    try:
        text = read_regular(path, most=_MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise NotFound(f"{os.fspath(path)}: no such file") from error
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{os.fspath(path)}: no list of prompts: {error}", hint="a text file, a prompt a line"
        ) from error
    prompts = tuple(line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))
    if not prompts:
        raise UsageError(f"{os.fspath(path)}: has no prompt", hint="write one on each line")
    return prompts


def _drawn(prompts: Sequence[str], fewest: int, first_seed: int) -> tuple[PlannedPicture, ...]:
    number = max(fewest, len(prompts))
    return tuple(
        PlannedPicture(prompt, seed) for seed, prompt in enumerate(islice(cycle(prompts), number), start=first_seed)
    )
