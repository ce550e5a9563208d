"""What a prompt means, from Python: what `hnetkit prompt` prints."""

from __future__ import annotations

import json

import pytest

from hnetkit.cli import run
from hnetkit.errors import UsageError
from hnetkit.prompts.schedule import explain_prompt


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
    assert json.loads(json.dumps(explain_prompt(prompt, steps=10, hires_steps=hires))) == row


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="not valid text"):
        explain_prompt("\udcff")
