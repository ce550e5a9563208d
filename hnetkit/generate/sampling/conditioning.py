"""What a prompt asks for at each call of the UNet: A1111's schedules, alternation and composition, encoded."""

from __future__ import annotations

from typing import NamedTuple

from hnetkit.generate.sampling.encoding import Encoded, TextEncoder
from hnetkit.prompts.schedule import schedule, split_and


class Guidance(NamedTuple):
    """What one call of the UNet is guided by.

    Attributes:
        positive: each sub-prompt with its weight.
        negative: what to steer away from.
    """

    positive: tuple[tuple[Encoded, float], ...]
    negative: Encoded


class Conditioning:
    """A prompt and a negative prompt over a run of sampling.

    Args:
        encoder: encodes each text once.
        prompt: in A1111's language, without tags.
        negative_prompt: the same; ``AND`` means nothing in it.
        calls: how often the UNet is called; schedules count these, from 0.
        first_pass_calls: of the pass before, where this one is the second of two.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        prompt: str,
        negative_prompt: str,
        calls: int,
        first_pass_calls: int | None = None,
    ) -> None:
        self._encoder = encoder
        self._positive = [(schedule(text, calls, first_pass_calls), weight) for text, weight in split_and(prompt)]
        self._negative = schedule(negative_prompt, calls, first_pass_calls)

    def at(self, call: int) -> Guidance:
        """Returns what guides the UNet's call number `call`, from 0."""
        return Guidance(
            tuple((self._encoder.encode(_text_at(texts, call)), weight) for texts, weight in self._positive),
            self._encoder.encode(_text_at(self._negative, call), is_negative=True),
        )


def _text_at(texts: list[tuple[int, str]], call: int) -> str:
    """A1111 counts from 0 and takes a text up to and with its last step, so that the first one has a call more."""
    return next((text for until, text in texts if call <= until), texts[-1][1])
