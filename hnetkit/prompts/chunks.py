"""The chunks of a prompt, one for each window of the text encoder, and CLIP's tokens, without torch or transformers.

Source: AUTOMATIC1111/stable-diffusion-webui 1.10, modules/sd_hijack_clip.py; openai/CLIP, clip/simple_tokenizer.py, and
the tokenizer that transformers builds for it (behavior only).
"""

from __future__ import annotations

import html
import html.entities
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import groupby
from types import MappingProxyType

from hnetkit.text import normal_form

COMMA_REACH = 20  # a full chunk ends at its last comma, if that is at most this many tokens back

MOST_CHUNKS = 100
"""Chunks of one prompt, some 30,000 characters: the text encoder reads all of them at once."""

_END = "</w>"
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
# words as CLIP divides a text, with numbers among their letters, which `_words` divides; 1c-1f are no blanks of CLIP's
_WORD = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'(?:s|t|re|ve|m|ll|d)|[^\W_]+|(?:[^\w\s]|[_\x1c-\x1f])+")

_MARKS = ("\ue000", "\ue001")  # of private use
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
# letters that are one sign, each as its own letters; what these are made of stays
_LIGATURES = {
    code: "".join(chr(int(part, 16)) for part in unicodedata.decomposition(chr(code)).split()[1:])
    for code in (0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07))
}
_CONTROLS = (*range(9), 11, *range(14, 32), 127, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
_PLAIN_SIGNS: dict[int, str | None] = {
    **{code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFF01, 0xFFF0)},  # of another width
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
    **dict.fromkeys((0x3000, 0x2028, 0x2029), " "),
    **dict.fromkeys(_CONTROLS),
}

# a visible letter for each byte: its own one in Latin-1, or one beyond for a blank or a control character
_VISIBLE = frozenset(byte for byte in range(256) if chr(byte).isprintable() and not chr(byte).isspace())
_LETTERS = {byte: chr(byte) for byte in _VISIBLE} | {
    byte: chr(256 + number) for number, byte in enumerate(sorted(set(range(256)) - _VISIBLE))
}


@dataclass(slots=True)
class Chunk:
    """Tokens for one window of the encoder, without its start and end, and the weight of each."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def cut(self, length: int) -> Chunk:
        """Shortens this chunk to `length` and returns the rest."""
        rest = Chunk(self.tokens[length:], self.weights[length:])
        del self.tokens[length:], self.weights[length:]
        return rest


def split_chunks(
    pieces: Sequence[tuple[str, float]],
    tokenize: Callable[[str], Iterable[int]],
    room: int,
    comma: int | None,
    lengths: Mapping[int, int] = MappingProxyType({}),
) -> list[Chunk]:
    """Splits weighted text into chunks of at most `room` tokens, at least one.

    Args:
        pieces: (text, weight); ``("BREAK", -1)`` ends a chunk.
        tokenize: text -> its tokens, without start and end.
        room: tokens of a chunk.
        comma: the token of a comma, at which a full chunk ends if it can; None if the vocabulary has none.
        lengths: first token of a textual inversion -> its tokens, which stay in one chunk.
    """
    full: list[Chunk] = []
    chunk, last_comma = Chunk(), -1
    for text, weight in pieces:
        if (text, weight) == ("BREAK", -1):
            full.append(chunk)
            chunk, last_comma = Chunk(), -1
            continue
        for token in tokenize(text):
            index = len(chunk.tokens)
            if token == comma:
                last_comma = index
            elif index == room and last_comma >= 0 and index - last_comma <= COMMA_REACH:
                full.append(chunk)
                chunk, last_comma = chunk.cut(last_comma + 1), -1
            filled = len(chunk.tokens)
            if filled == room or 0 < room - filled < lengths.get(token, 1) <= room:
                full.append(chunk)
                chunk, last_comma = Chunk(), -1
            chunk.tokens.append(token)
            chunk.weights.append(weight)
    return [*full, chunk] if chunk.tokens or not full else full


def cleaned(text: str) -> str:
    """Returns a text as CLIP's tokenizer cleans it before it looks for words, with ftfy, which comes with A1111.

    Quotes are straight, letters of full width and ligatures plain ones, entities of HTML the signs that they mean, up
    to the first line that has a ``<``; control characters are gone. What ftfy makes of letters that were decoded
    wrongly is left out.

    Source: rspeer/python-ftfy 6.3, ftfy/fixes.py and ftfy/chardata.py (behavior only).
    """
    before, sign, _ = text.partition("<")
    end = before.rfind("\n") + 1 if sign else len(text)
    text = _ENTITY.sub(_sign_of, text[:end]) + text[end:]
    return normal_form("NFC", text.translate(_LIGATURES).translate(_PLAIN_SIGNS))


def as_read(text: str) -> str:
    """Returns a text as CLIP's tokenizer divides it into words: cleaned, and in lower case, for it knows no other."""
    return normal_form("NFC", cleaned(text).lower()).lower()


@lru_cache(maxsize=1024)
def words_in(text: str) -> tuple[str, ...]:
    """Returns the words of a text as CLIP divides it: ``My-style2`` is ``my``, ``-``, ``style``, ``2``."""
    normal = as_read(text)
    return tuple(normal[start:end] for start, end in _spans(normal))


class WordsOf:
    """The words of some texts, in which the names of textual inversions are looked for.

    A prompt may have very many words, and a folder very many names: each text is divided once, and each name found by a
    search that Python makes of a whole text.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        # no word has a line break, and no name an empty line: it is in one text, and begins and ends with a word
        self._lines = "\n".join(_lines(words_in(text)) for text in dict.fromkeys(texts))

    def have(self, name: str) -> bool:
        """Whether one of the texts has the words of a name, one after the other."""
        own = words_in(name)
        return bool(own) and _lines(own) in self._lines


def _lines(words: Sequence[str]) -> str:
    return "".join(("\n", *(f"{word}\n" for word in words)))


def tokens_with_names(
    text: str, names: Mapping[tuple[str, ...], Sequence[int]], tokenize: Callable[[str], Iterable[int]]
) -> Iterator[int]:
    """Yields the tokens of a text in which the names of textual inversions stand for tokens of their own.

    Of several that begin with a word the longest counts, as in A1111, which looks for the tokens of a name.

    Args:
        text: of `as_read`.
        names: words of a name -> its tokens.
        tokenize: text -> its tokens.
    """
    begun = 0
    if names:
        spans = list(_spans(text))
        words = [text[start:end] for start, end in spans]
        by_first: dict[str, list[tuple[str, ...]]] = {}
        for name in sorted(names, key=len, reverse=True):
            by_first.setdefault(name[0], []).append(name)
        at = 0
        while at < len(words):
            longest = by_first.get(words[at], ())
            own = next((own for own in longest if tuple(words[at : at + len(own)]) == own), None)
            if own is None:
                at += 1
                continue
            yield from tokenize(text[begun : spans[at][0]])
            yield from names[own]
            at += len(own)
            begun = spans[at - 1][1]
    yield from tokenize(text[begun:])


def token_of(name: str) -> str:
    """Returns what a textual inversion is called in a vocabulary: no prompt has it, so that the words of it count."""
    return f"{_MARKS[0]}{name}{_MARKS[1]}"


def name_of(token: str) -> str | None:
    """Returns the name of the textual inversion whose first token this is; None for any other token."""
    is_one = len(token) > 2 and (token[0], token[-1]) == _MARKS
    return token[1:-1] if is_one else None


def _sign_of(entity: re.Match[str]) -> str:
    if entity[0].startswith("&#"):
        return html.unescape(entity[0])
    return html.entities.html5.get(entity[0][1:], entity[0])


class ClipTokenizer:
    """CLIP's tokenizer: pairs of letters merged by rank.

    Args:
        vocabulary: token -> its number; the end of a word is ``</w>``.
        merges: pairs that become one token, ``"a b</w>"``, the first ones first.
        window: tokens that the encoder reads at once, with a start and an end.
        name: of its model or folder, for a person.

    Attributes:
        room: tokens of a chunk.
        comma: the token of a comma; None if the vocabulary has none.
        embeddings: textual inversion -> number of its vectors; see `add_vectors`.
        lengths: first token of a textual inversion -> its tokens.
    """

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[str], window: int, name: str = "") -> None:
        self.name = name
        self._vocabulary = vocabulary
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._unknown = vocabulary.get(_SPECIAL[1], 0)
        self._known: dict[str, list[int]] = {}
        self.room = window - 2
        self.comma = vocabulary.get("," + _END)
        self.embeddings: dict[str, int] = {}
        self.lengths: dict[int, int] = {}
        self._vectors: dict[tuple[str, ...], list[int]] = {}

    def add_vectors(self, numbers: Mapping[str, int]) -> None:
        """Adds textual inversions, name -> number of their vectors; each has tokens below 0 from then on."""
        for name, number in numbers.items():
            first = -1 - sum(self.lengths.values())
            self._vectors[words_in(name)] = [first - index for index in range(number)]
            self.embeddings[name] = self.lengths[first] = number

    def tokens(self, text: str) -> list[int]:
        """Returns the tokens of a text, without start and end."""
        return list(tokens_with_names(as_read(text), self._vectors, self._tokens_of_text))

    def _tokens_of_text(self, text: str) -> list[int]:
        return [token for word in _words(text) for token in self._tokens_of(word)]

    def _tokens_of(self, word: str) -> list[int]:
        if word not in self._known:
            symbols = [word] if word in _SPECIAL else self._merged([*word[:-1], word[-1] + _END])
            self._known[word] = [self._vocabulary.get(symbol, self._unknown) for symbol in symbols]
        return self._known[word]

    def _merged(self, symbols: list[str]) -> list[str]:
        """Merges pairs until none has a rank: always the one of the lowest rank, of several the first."""
        parts: list[str | None] = [*symbols]
        before, after = [*range(-1, len(parts) - 1)], [*range(1, len(parts) + 1)]

        def pair_at(left: int) -> tuple[int, int] | None:
            if left < 0 or after[left] == len(parts):
                return None
            rank = self._ranks.get(f"{parts[left]} {parts[after[left]]}")
            return None if rank is None else (rank, left)

        waiting = [pair for left in range(len(parts)) if (pair := pair_at(left)) is not None]
        heapify(waiting)
        while waiting:
            pair = heappop(waiting)
            left = pair[1]
            if parts[left] is None or pair_at(left) != pair:  # one of the two was merged with another since
                continue
            right = after[left]
            parts[left], parts[right] = f"{parts[left]}{parts[right]}", None
            after[left] = after[right]
            if after[left] < len(parts):
                before[after[left]] = left
            for changed in (before[left], left):
                if (new := pair_at(changed)) is not None:
                    heappush(waiting, new)
        return [part for part in parts if part is not None]


def _words(text: str) -> Iterator[str]:
    """Yields the words of a text, each in the letters that CLIP has for bytes."""
    yield from (_as_letters(text[start:end]) for start, end in _spans(text))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yields where the words of a text are, as CLIP divides it."""
    for match in _WORD.finditer(text):
        start, end = match.span()
        if match[0].isalpha() or not match[0][0].isalnum():
            yield start, end
            continue
        for is_letters, group in groupby(range(start, end), lambda at: text[at].isalpha()):
            places = list(group)
            yield from [(places[0], places[-1] + 1)] if is_letters else ((at, at + 1) for at in places)


def _as_letters(word: str) -> str:
    return "".join(_LETTERS[byte] for byte in word.encode("utf-8", "replace"))
