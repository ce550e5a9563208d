"""A CLIP tokenizer: the captions' words are one token each, other text goes by its bytes."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import CLIPTokenizer

from demo_training.pictures import COLOURS, PLACES, SHAPES, SIZES

LENGTH = 16
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def words() -> list[str]:
    """Every word of the captions, in a fixed order."""
    text = " ".join(["a", *COLOURS, *SHAPES, *SIZES, *PLACES])
    return list(dict.fromkeys(text.split()))


def byte_symbols() -> list[str]:
    """One printable character for each of the 256 bytes, as GPT-2 and CLIP write them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(others))]


def _split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """A word's tokens under byte-pair merges, applied in order."""
    parts = [*word[:-1], word[-1] + WORD_END]
    for left, right in merges:
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == (left, right):
                parts[i : i + 2] = [left + right]
            i += 1
    return parts


def find_merges() -> list[tuple[str, str]]:
    """Merges that make every caption word one token."""
    merges: list[tuple[str, str]] = []
    for word in words():
        while len(parts := _split(word, merges)) > 1:
            merges.append((parts[0], parts[1]))
    return merges


def build() -> CLIPTokenizer:
    """The tokenizer: 512 byte tokens, the merges' results, start and end."""
    symbols, merges = byte_symbols(), find_merges()
    tokens = [*symbols, *(s + WORD_END for s in symbols), *(a + b for a, b in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Writes the tokenizer, also as the two plain files that older readers want."""
    tokenizer.save_pretrained(folder)
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in find_merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
