"""Prompts as the UNet reads them: chunks, weights, layers, and what a schedule asks for at each call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.pipelines import SD_CROSS_WIDTH, tiny_sd, tiny_sdxl
from torch import Tensor

from hnetkit.errors import UsageError
from hnetkit.generate.sampling.encoding import Conditioning, Encoded, TextEncoder
from hnetkit.prompts.chunks import COMMA_REACH, MOST_CHUNKS, split_chunks

WINDOW = 77
COMMA = 44


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny_sd()


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return tiny_sdxl()


def letters(text: str) -> list[int]:
    return [COMMA if letter == "," else 1000 + ord(letter) for letter in text]


def chunked(*pieces: tuple[str, float], room: int = 75) -> list[str]:
    """Text -> chunks of single letters."""
    chunks = split_chunks(pieces, letters, room, COMMA)
    return ["".join("," if token == COMMA else chr(token - 1000) for token in chunk.tokens) for chunk in chunks]


def states(pipe: Any, text: str) -> Any:
    """What CLIP itself makes of a short text."""
    tokens = pipe.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(tokens, output_hidden_states=True)


def encode(pipe: Any, text: str, **settings: Any) -> Tensor:
    with torch.no_grad():
        return TextEncoder(pipe, **settings).encode(text).hidden


# --- chunks


def test_a_textual_inversion_is_in_one_chunk() -> None:
    def whole(text: str, room: int) -> list[str]:
        chunks = split_chunks([(text, 1)], letters, room, COMMA, {1000 + ord("X"): 3})
        return ["".join("," if token == COMMA else chr(token - 1000) for token in chunk.tokens) for chunk in chunks]

    assert whole("abXyz", 5) == ["abXyz"]
    assert whole("abcXyzd", 5) == ["abc", "Xyzd"]
    assert whole("a,cXyz", 5) == ["a,c", "Xyz"]  # A1111 ends a chunk at a comma only where it is full
    assert whole("aXyz", 2) == ["aX", "yz"]  # longer than a chunk


def test_a_text_fills_chunks_one_after_the_other() -> None:
    assert chunked(("abcdefg", 1), room=3) == ["abc", "def", "g"]
    assert chunked(("abc", 1), room=3) == ["abc"]
    assert chunked(("", 1), room=3) == [""]


def test_break_ends_a_chunk_unless_it_is_weighted() -> None:
    assert chunked(("ab", 1), ("BREAK", -1), ("c", 1)) == ["ab", "c"]
    assert chunked(("BREAK", -1), ("c", 1)) == ["", "c"]
    assert chunked(("ab", 1), ("BREAK", -1)) == ["ab"]
    assert chunked(("ab", 1), ("BREAK", -1.1)) == ["abBREAK"]


def test_a_full_chunk_ends_at_a_comma_that_is_near() -> None:
    assert chunked(("abc,def", 1), room=5) == ["abc,", "def"]
    far = "," + "a" * (COMMA_REACH + 1)
    assert chunked((far + "b", 1), room=len(far)) == [far, "b"]


@given(st.lists(st.tuples(st.text("ab,", max_size=40), st.sampled_from((1.0, 1.1))), max_size=5))
def test_chunks_hold_every_token_once_in_order_with_its_weight(pieces: list[tuple[str, float]]) -> None:
    chunks = split_chunks(pieces, letters, 7, COMMA)
    assert [token for chunk in chunks for token in chunk.tokens] == [t for text, _ in pieces for t in letters(text)]
    assert [weight for chunk in chunks for weight in chunk.weights] == [w for text, w in pieces for _ in text]
    assert all(len(chunk.tokens) <= 7 for chunk in chunks)


# --- encoding


def test_a_short_text_is_what_clip_makes_of_it(sd: Any) -> None:
    assert torch.equal(encode(sd, "a red circle"), states(sd, "a red circle").last_hidden_state[0])


def test_a_long_text_is_read_to_its_end_chunk_by_chunk(sd: Any) -> None:
    hidden = encode(sd, "a b c d e " * 20)
    assert hidden.shape == (2 * WINDOW, SD_CROSS_WIDTH)
    torch.testing.assert_close(hidden[:WINDOW], encode(sd, "a b c d e " * 15))
    assert (hidden[:WINDOW] - encode(sd, "a b c d d " * 15)).abs().max() > 1e-3
    apart = encode(sd, "ab BREAK c")
    torch.testing.assert_close(apart, torch.cat([encode(sd, "ab"), encode(sd, "c")]))


def test_clip_skip_takes_an_earlier_layer_and_norms_it(sd: Any) -> None:
    found = states(sd, "abc")
    norm = getattr(sd.text_encoder, "text_model", sd.text_encoder).final_layer_norm
    with torch.no_grad():
        assert torch.equal(encode(sd, "abc", clip_skip=2), norm(found.hidden_states[-2])[0])
    assert not torch.equal(encode(sd, "abc", clip_skip=2), encode(sd, "abc"))


def test_clip_skip_is_for_clip_l_alone(sd: Any) -> None:
    """Pipelines of SD 2 have the text encoder cut where it should end."""
    pipe = tiny_sd()
    pipe.text_encoder.config.hidden_act = "gelu"
    assert torch.equal(encode(pipe, "abc", clip_skip=2), encode(pipe, "abc"))


def test_a_weight_multiplies_its_tokens_and_the_mean_is_restored(sd: Any) -> None:
    plain = encode(sd, "a b")
    factors = torch.ones(WINDOW, 1)
    factors[2] = 1.5
    torch.testing.assert_close(encode(sd, "a(b:1.5)", emphasis="no-norm"), plain * factors)
    weighted = plain * factors
    expected = weighted * (plain.mean() / weighted.mean())
    torch.testing.assert_close(encode(sd, "a(b:1.5)"), expected)
    assert torch.equal(encode(sd, "a(b:1.5)", emphasis="ignore"), plain)
    assert torch.equal(encode(sd, "a(b:1.5)", emphasis="none"), states(sd, "a(b:1.5)").last_hidden_state[0])


def test_the_mean_is_restored_chunk_by_chunk(sd: Any) -> None:
    both = encode(sd, "a(b:1.5) BREAK (c:0.7)")
    torch.testing.assert_close(both, torch.cat([encode(sd, "a(b:1.5)"), encode(sd, "(c:0.7)")]))


def test_a_mean_of_0_is_left_as_it_is() -> None:
    pipe = tiny_sd(least=True)
    norm = getattr(pipe.text_encoder, "text_model", pipe.text_encoder).final_layer_norm
    torch.nn.init.zeros_(norm.weight)
    assert torch.equal(encode(pipe, "a(b:1.5)"), torch.zeros(WINDOW, SD_CROSS_WIDTH))


def test_sdxl_joins_the_last_layers_but_one_and_pools_the_first_chunk(sdxl: Any) -> None:
    with torch.no_grad():
        encoded = TextEncoder(sdxl).encode("abc BREAK de")
        ours, _, pooled, _ = sdxl.encode_prompt("abc", device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(encoded.hidden[:WINDOW], ours[0])
    assert encoded.pooled is not None
    torch.testing.assert_close(encoded.pooled, pooled[0])


def test_an_empty_negative_prompt_is_zeros_for_sdxl_alone(sd: Any, sdxl: Any) -> None:
    with torch.no_grad():
        assert not TextEncoder(sdxl).encode("", is_negative=True).hidden.any()
        assert TextEncoder(sdxl).encode("").hidden.any()
        assert TextEncoder(sd).encode("", is_negative=True).hidden.any()


def test_quotes_and_letters_of_another_form_are_the_plain_ones() -> None:
    pipe = tiny_sd()
    for written, plain in (("a \u201cred\u201d star\uff0c", 'a "red" star,'), ("\ufb01re &amp; ice", "fire & ice")):
        assert torch.equal(encode(pipe, written), encode(pipe, plain))


def test_a_textual_inversion_stands_for_all_of_its_vectors() -> None:
    pipe = tiny_sd()
    vectors = torch.randn(3, SD_CROSS_WIDTH, generator=torch.Generator().manual_seed(1))
    pipe.load_textual_inversion({"mine": vectors})
    seen: list[Tensor] = []
    pipe.text_encoder.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    encode(pipe, "(mine:1.2) a")
    embedded = pipe.text_encoder.get_input_embeddings()(seen[0][0, 1:4])
    torch.testing.assert_close(embedded, vectors)


def test_a_text_is_encoded_once(sd: Any) -> None:
    calls: list[int] = []
    handle = sd.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    encoder = TextEncoder(sd)
    with torch.no_grad():
        first = encoder.encode("a")
        assert encoder.encode("a") is first
    handle.remove()
    assert len(calls) == 1


# --- what a call is guided by


class Words:
    """Instead of an encoder: what would be encoded."""

    def chunks_of(self, text: str) -> int:
        return 1

    def encode(self, text: str, *, is_negative: bool = False, chunks: int = 1) -> str:
        return f"-{text}" if is_negative else text


def guidance(prompt: str, negative: str, calls: int, before: int | None = None) -> list[tuple[list[Any], Any]]:
    conditioning = Conditioning(Words(), prompt, negative, calls, before)  # type: ignore[arg-type]
    return [(list(at.positive), at.negative) for at in map(conditioning.at, range(calls))]


def test_a_schedule_counts_calls_from_0_and_keeps_a_text_through_its_last_step() -> None:
    assert [positive[0][0] for positive, _ in guidance("[a:b:2]", "", 5)] == ["a", "a", "a", "b", "b"]
    assert [negative for _, negative in guidance("x", "[a:b:0.4]", 5)] == ["-a", "-a", "-a", "-b", "-b"]


@pytest.mark.parametrize("make", [tiny_sd, tiny_sdxl])
def test_the_texts_of_a_schedule_have_the_chunks_of_the_longest(make: Any) -> None:
    """As in A1111, which encodes them together: the missing ones are empty, and not the last vector again."""
    encoder = TextEncoder(make())
    with torch.no_grad():
        guided = Conditioning(encoder, "[a cat:a dog BREAK b BREAK c:0.5] AND x", "[bad:bad BREAK x:2]", 4)
        (short, _), (other, _) = guided.at(0).positive
        alone, empty, other_alone = (encoder.encode(text).hidden for text in ("a cat", "", "x"))
        (long, _), _ = guided.at(3).positive
        negatives = [len(guided.at(call).negative.hidden) for call in (0, 3)]
    assert torch.equal(short.hidden, torch.cat([alone, empty, empty]))
    assert torch.equal(other.hidden, other_alone)
    assert (len(short.hidden), len(long.hidden), negatives) == (3 * WINDOW, 3 * WINDOW, [2 * WINDOW] * 2)


def test_alternation_changes_with_every_call() -> None:
    assert [positive[0][0] for positive, _ in guidance("[a|b]", "", 5)] == ["a", "a", "b", "a", "b"]


def test_each_part_of_a_composition_has_its_weight_and_schedule() -> None:
    first, *_, last = guidance("a AND [b:c:1]:0.5", "AND", 3)
    assert first == ([("a", 1.0), (" b", 0.5)], "-AND")
    assert last[0] == [("a", 1.0), (" c", 0.5)]


def test_shorter_texts_repeat_their_last_vector() -> None:
    hidden = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert Encoded(hidden, None).padded(4).hidden.tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]


def test_a_prompt_of_more_chunks_than_anybody_writes_is_refused_before_it_is_encoded(sd: Any) -> None:
    encode(sd, "BREAK " * (MOST_CHUNKS - 1))
    with pytest.raises(UsageError, match="more than 100 chunks of 75 tokens"):
        encode(sd, "BREAK " * 40_000)


def test_more_layers_than_the_encoder_has_cannot_be_left_out(sd: Any) -> None:
    with pytest.raises(UsageError, match="clip skip 12: the text encoder has"):
        encode(sd, "a cat", clip_skip=12)


def test_long_texts_that_were_encoded_are_kept_as_far_as_there_is_room(sd: Any) -> None:
    encoder = TextEncoder(sd)
    with torch.no_grad():
        for number in range(40):
            encoder.encode(f"{number} " + "BREAK " * 60)
    kept = [len(encoded.hidden) for encoded in encoder._cache.values()]
    assert 0 < sum(kept) <= 100_000
