"""What a prompt means, from Python: what `hnetkit prompt` prints."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit import demo
from hnetkit.cli import run
from hnetkit.errors import UsageError
from hnetkit.generate.loading.tokenizer import read_counting_tokenizer
from hnetkit.generate.sampling.encoding import Conditioning
from hnetkit.prompts.attention import parse_attention
from hnetkit.prompts.schedule import drawn_texts, explain_prompt


@pytest.mark.parametrize("hires", [None, 4])
@pytest.mark.parametrize(
    "prompt",
    ["a (red:1.3) [circle:star:0.5] AND b <hypernet:ink:0.8:k=0.5:end=0.6> <lora:zelda:0.5:1>", "<wild:x>", ""],
)
def test_a_prompt_means_what_the_command_prints(
    prompt: str, hires: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [] if hires is None else ["--hires-steps", str(hires)]
    assert run(["prompt", prompt, "--steps", "10", *more, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    demo_tokenizer = read_counting_tokenizer(str(demo.model_folder()), demo.MODEL_NAME)
    meaning = explain_prompt(prompt, steps=10, hires_steps=hires, tokenizer=demo_tokenizer)
    assert json.loads(json.dumps(meaning)) == row


def test_tokens_are_counted_by_the_tokenizer_that_is_given_alone() -> None:
    (drawn,) = explain_prompt("a star AND b")["drawn"]
    assert [(part["tokens"], part["chunks"]) for part in drawn["parts"]] == [(None, None)] * 2


TEXTS = st.lists(st.sampled_from([*"()[]\\:|ab  ", "3", ".5", "AND", "[a:b:3]", "[a|b]", "(c:1.2)", "BREAK"])).map(
    "".join
)


@pytest.mark.parametrize("first_pass", [None, 3])
@given(TEXTS, st.integers(1, 8))
def test_every_step_has_the_texts_that_the_encoder_is_given(first_pass: int | None, text: str, steps: int) -> None:
    class Spy:
        def chunks_of(self, words: str) -> int:
            return 1

        def encode(self, words: str, *, is_negative: bool = False, chunks: int = 1) -> str:
            return words

    conditioning = Conditioning(Spy(), text, "", steps, first_pass)  # type: ignore[arg-type]
    found = drawn_texts(text, steps, first_pass)
    for step in range(1, steps + 1):
        (at_once,) = [drawn for drawn in found if any(first <= step <= last for first, last in drawn["steps"])]
        assert [(part["text"], part["weight"]) for part in at_once["parts"]] == [*conditioning.at(step - 1).positive]
        assert [part["attention"] for part in at_once["parts"]] == [
            parse_attention(part["text"]) for part in at_once["parts"]
        ]
    keys = [tuple(part["text"] for part in drawn["parts"]) for drawn in found]
    assert len(set(keys)) == len(keys), "what recurs is told once"


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="not valid text"):
        explain_prompt("\udcff")
