"""Encoding prompts as A1111 does: chunks of tokens, weights with the mean restored, and schedules over the steps.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/sd_hijack_clip.py, sd_emphasis.py and prompt_parser.py
(behavior only).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from hnetkit.errors import ModelNotUsable, UsageError
from hnetkit.prompts.attention import BREAK, parse_attention
from hnetkit.prompts.chunks import MOST_CHUNKS, Chunk, as_read, name_of, split_chunks, tokens_with_names, words_in
from hnetkit.prompts.schedule import schedule, split_and, text_at
from hnetkit.text import counted

Emphasis: TypeAlias = Literal["original", "no-norm", "ignore", "none"]

_MOST_CACHED = 256  # encoded texts
_MOST_CACHED_TOKENS = 100_000  # of all of them: 300 MB with SD 1 in fp32


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One text, encoded.

    Attributes:
        hidden: ``[tokens, width]``, a multiple of the encoder's window.
        pooled: ``[width]`` of SDXL's second encoder, from the first chunk; None elsewhere.
    """

    hidden: Tensor
    pooled: Tensor | None

    def padded(self, tokens: int) -> Encoded:
        """Returns the text with its last vector repeated up to `tokens`."""
        return Encoded(_padded(self.hidden, tokens), self.pooled)


def takes_clip_skip(pipe: Any) -> bool:
    """Whether clip skip has an effect: in A1111 the OpenCLIP encoders of SD 2 and XL have a fixed layer."""
    is_xl = getattr(pipe, "text_encoder_2", None) is not None
    return not is_xl and pipe.text_encoder.config.hidden_act == "quick_gelu"


class TextEncoder:
    """The text encoders of a pipeline, with a cache of encoded texts.

    Args:
        pipe: a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.
        clip_skip: 1 takes the last layer, 2 the one before it; only for CLIP-L of SD 1, as in A1111.
        emphasis: ``original`` multiplies by weights and restores the mean, ``no-norm`` leaves the mean, ``ignore``
            reads the syntax and drops the weights, ``none`` reads brackets as text.
    """

    def __init__(self, pipe: Any, clip_skip: int = 1, emphasis: Emphasis = "original") -> None:
        self._pipe = pipe
        self._clip_skip, self._emphasis = clip_skip, emphasis
        self._cache: dict[tuple[str, bool, int], Encoded] = {}
        self.is_xl = getattr(pipe, "text_encoder_2", None) is not None

    def encode(self, text: str, *, is_negative: bool = False, chunks: int = 1) -> Encoded:
        """Returns a text as the UNet reads it; an empty negative prompt of SDXL is zeros, as in its training.

        Args:
            chunks: a text of fewer is filled up with empty ones.

        Raises:
            UsageError: it has more than `MOST_CHUNKS`, or clip skip is more than the encoder's layers.
        """
        key = text, is_negative and self.is_xl and not text, chunks
        if key not in self._cache:
            encoded = self._filled(self._encode(text), chunks)
            tokens = len(encoded.hidden) + sum(len(cached.hidden) for cached in self._cache.values())
            while self._cache and (len(self._cache) >= _MOST_CACHED or tokens > _MOST_CACHED_TOKENS):
                tokens -= len(self._cache.pop(next(iter(self._cache))).hidden)
            if key[1] and self._pipe.config.get("force_zeros_for_empty_prompt", True):
                assert encoded.pooled is not None
                encoded = Encoded(torch.zeros_like(encoded.hidden), torch.zeros_like(encoded.pooled))
            self._cache[key] = encoded
        return self._cache[key]

    def chunks_of(self, text: str) -> int:
        """Returns how many chunks a text has, which is not encoded; raises UsageError for more than `MOST_CHUNKS`."""
        return max(len(self._chunks(tokenizer, self._pieces(text))) for _, tokenizer in self._encoders())

    def is_divided(self, text: str) -> bool:
        """Whether a text is longer than a chunk, so that it is divided where no ``BREAK`` says so."""
        breaks = sum(piece == (BREAK, -1) for piece in self._pieces(text))
        return self.chunks_of(text) > breaks + 1

    def _filled(self, encoded: Encoded, chunks: int) -> Encoded:
        """Returns a text filled up with empty chunks, of one window each."""
        window = self._pipe.tokenizer.model_max_length
        missing = chunks - len(encoded.hidden) // window
        if missing <= 0:
            return encoded
        return Encoded(torch.cat([encoded.hidden, self._encode("").hidden.repeat(missing, 1)]), encoded.pooled)

    def _encode(self, text: str) -> Encoded:
        pieces = self._pieces(text)
        parts = [self._encode_with(encoder, tokenizer, pieces) for encoder, tokenizer in self._encoders()]
        longest = max(len(hidden) for hidden, _ in parts)
        hidden = torch.cat([_padded(hidden, longest) for hidden, _ in parts], dim=-1)
        return Encoded(hidden, parts[-1][1] if self.is_xl else None)

    def _pieces(self, text: str) -> Sequence[tuple[str, float]]:
        return [(text, 1.0)] if self._emphasis == "none" else parse_attention(text)

    def _encoders(self) -> list[tuple[Any, Any]]:
        """Returns the text encoders, each with its tokenizer."""
        pipe = self._pipe
        second = getattr(pipe, "text_encoder_2", None), getattr(pipe, "tokenizer_2", None)
        return [pair for pair in ((pipe.text_encoder, pipe.tokenizer), second) if pair[0] is not None]

    def _chunks(self, tokenizer: Any, pieces: Sequence[tuple[str, float]]) -> list[Chunk]:
        room = tokenizer.model_max_length - 2
        comma = tokenizer.convert_tokens_to_ids(",</w>")

        vectors, names = _vectors_of_added(tokenizer)
        left = MOST_CHUNKS * room

        def plain(text: str) -> Iterator[int]:
            for token in tokenizer(text, truncation=False, add_special_tokens=False).input_ids if text else ():
                yield from vectors.get(token, (token,))

        def tokenize(text: str) -> Iterator[int]:
            nonlocal left
            for token in tokens_with_names(as_read(text), names, plain):
                left -= 1
                if left < 0:  # before they are there: a short prompt may name many vectors many times
                    raise _too_long(room)
                yield token

        known_comma = None if comma == tokenizer.unk_token_id else comma
        lengths = {tokens[0]: len(tokens) for tokens in (*vectors.values(), *names.values())}
        chunks = split_chunks(pieces, tokenize, room, known_comma, lengths)
        if len(chunks) > MOST_CHUNKS:
            raise _too_long(room)
        return chunks

    def _encode_with(
        self, encoder: Any, tokenizer: Any, pieces: Sequence[tuple[str, float]]
    ) -> tuple[Tensor, Tensor | None]:
        """Returns one encoder's states ``[tokens, width]``, and its pooled vector if it has a projection."""
        room, chunks = tokenizer.model_max_length - 2, self._chunks(tokenizer, pieces)
        device = self._pipe._execution_device
        windows = [_window(chunk, tokenizer, room) for chunk in chunks]
        known = encoder.get_input_embeddings().num_embeddings
        if (last := max(map(max, windows))) >= known:
            raise ModelNotUsable(
                f"the tokenizer gives token {last}, and the text encoder knows {known}", hint="get the model again"
            )
        ids = torch.tensor(windows, device=device)
        output = encoder(ids, output_hidden_states=True)
        hidden = self._weighted(self._layer(encoder, output), chunks)
        pooled = getattr(output, "text_embeds", None)
        return hidden.flatten(0, 1), None if pooled is None else pooled[0]

    def _layer(self, encoder: Any, output: Any) -> Tensor:
        """Returns the states ``[chunks, window, width]`` that the UNet was trained on."""
        if self.is_xl:
            penultimate: Tensor = output.hidden_states[-2]
            return penultimate
        skip = self._clip_skip if takes_clip_skip(self._pipe) else 1
        if skip == 1:
            last: Tensor = output.last_hidden_state
            return last
        if skip > len(output.hidden_states):
            layers = len(output.hidden_states) - 1
            raise UsageError(f"clip skip {skip}: the text encoder has {counted(layers, 'layer')}", hint="--clip-skip 1")
        inner = getattr(encoder, "text_model", encoder)
        normed: Tensor = inner.final_layer_norm(output.hidden_states[-skip])
        return normed

    def _weighted(self, hidden: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        if self._emphasis in ("ignore", "none") or all(set(chunk.weights) <= {1.0} for chunk in chunks):
            return hidden
        window = hidden.shape[1]
        weights = torch.ones(len(chunks), window, 1, device=hidden.device)
        for row, chunk in zip(weights, chunks, strict=True):
            row[1 : 1 + len(chunk.weights), 0] = torch.tensor(chunk.weights)
        exact = hidden.float()
        weighted = exact * weights
        if self._emphasis == "original":
            mean = weighted.mean((1, 2), keepdim=True)  # 0 in a text encoder that was never trained
            weighted = weighted * torch.where(mean == 0, 1.0, exact.mean((1, 2), keepdim=True) / mean)
        return weighted.to(hidden.dtype)


def _vectors_of_added(tokenizer: Any) -> tuple[dict[int, list[int]], dict[tuple[str, ...], list[int]]]:
    """Returns the tokens of textual inversions, which diffusers calls NAME, NAME_1, NAME_2: all of each one's.

    By the first of them where a text has it, for those that somebody loaded; by the words of a name for our own.
    """
    added = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}

    def vectors(name: str) -> Iterator[int]:
        yield added[name]
        yield from (added[further] for further in takewhile(added.__contains__, (f"{name}_{n}" for n in count(1))))

    named = {name: words_in(own) for name in added if (own := name_of(name)) is not None}
    others = {number: list(vectors(name)) for name, number in added.items() if f"{name}_1" in added}
    return others, {words: list(vectors(name)) for name, words in named.items() if words}


def _too_long(room: int) -> UsageError:
    message = f"a prompt of more than {MOST_CHUNKS} chunks of {room} tokens"
    return UsageError(message, hint="shorten it; each BREAK begins a chunk")


def _window(chunk: Chunk, tokenizer: Any, room: int) -> list[int]:
    """Returns a chunk with start and end, padded to the window: with end tokens for CLIP-L, else padding tokens."""
    padding = [tokenizer.pad_token_id] * (room - len(chunk.tokens))
    return [tokenizer.bos_token_id, *chunk.tokens, tokenizer.eos_token_id, *padding]


def _padded(hidden: Tensor, length: int) -> Tensor:
    """Returns states ``[tokens, width]`` with the last vector repeated up to `length`."""
    return torch.cat([hidden, hidden[-1:].expand(length - len(hidden), -1)]) if len(hidden) < length else hidden


class Guidance(NamedTuple):
    """The encoded prompts of one call of the UNet.

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
        negative_prompt: the same, but ``AND`` is plain text in it.
        calls: calls of the UNet, by which schedules count, from 0.
        first_pass_calls: calls of the first pass, if this is the second.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        prompt: str,
        negative_prompt: str,
        calls: int,
        first_pass_calls: int | None = None,
    ) -> None:
        def scheduled(text: str) -> _Scheduled:
            return _Scheduled(encoder, schedule(text, calls, first_pass_calls))

        self._positive = [(scheduled(text), weight) for text, weight in split_and(prompt)]
        self._negative = scheduled(negative_prompt)

    def at(self, call: int) -> Guidance:
        """Returns the encoded prompts of the UNet's call number `call`, from 0."""
        return Guidance(
            tuple((texts.at(call), weight) for texts, weight in self._positive),
            self._negative.at(call, is_negative=True),
        )


class _Scheduled:
    """The texts of a schedule. A1111 encodes them together, so all have the chunks of the longest."""

    def __init__(self, encoder: TextEncoder, texts: Sequence[tuple[int, str]]) -> None:
        self._encoder, self._texts = encoder, texts
        several = {text for _, text in texts} if len(texts) > 1 else set()
        self._chunks = max(map(encoder.chunks_of, several), default=1)

    def at(self, call: int, *, is_negative: bool = False) -> Encoded:
        return self._encoder.encode(text_at(self._texts, call), is_negative=is_negative, chunks=self._chunks)
