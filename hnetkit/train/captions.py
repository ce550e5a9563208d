"""Captions of pictures, and the prompts that templates make of them, as A1111's training has both."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hnetkit.errors import NotFound, UsageError, failure_of
from hnetkit.files import read_regular

MAX_TEXT = 256 << 10
"""Bytes of a caption or a template; what a text encoder reads of one is less than a thousand."""

_SHOWN = 5  # names in a warning

# A1111's names; the words are hnetkit's own
_BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "style_filewords": (
        "[filewords], made the way [name] does it",
        "[filewords] in [name] style",
        "[name] style, [filewords]",
        "this is how [name] shows [filewords]",
    ),
    "subject_filewords": (
        "[name], [filewords]",
        "[filewords], and [name] is in it",
        "here is [name]: [filewords]",
        "[name] seen once more, [filewords]",
    ),
    "style": (
        "[name] style",
        "made the way [name] does it",
        "something in [name] style",
        "this is how [name] shows it",
    ),
    "subject": ("[name]", "here is [name]", "[name] seen once more", "this is [name] again"),
    "hypernetwork": ("[filewords]", "this shows [filewords]", "[filewords], as it was made", "here: [filewords]"),
    "none": ("an image",),
}
BUILT_IN_TEMPLATES = tuple(_BUILT_IN)


def caption_of(picture: Path, *, filename_pattern: str = "", joiner: str = " ") -> str:
    """Returns a picture's caption on one line: of the ``.txt`` beside it, else of its file name; may be empty.

    Args:
        picture: its file; it is not opened.
        filename_pattern: a regular expression; of a file name, what it finds is joined. With a group in it, the
            first group counts.
        joiner: between what the pattern finds.

    Raises:
        UsageError: the ``.txt`` is not UTF-8, too long, or a link that leads away; or the pattern is no regular
            expression.
        HnetkitError: the ``.txt`` cannot be read.
    """
    beside = caption_file(picture)
    if beside.is_file():
        _require_near(beside, picture)
        return " ".join(_read_text(beside).split())
    stem = picture.stem.encode("utf-8", "ignore").decode()  # a name need not be text
    words = re.sub(r"^[-\d]+\s*", "", stem)
    if filename_pattern:
        found = _compiled(filename_pattern).finditer(words)
        words = joiner.join(match[1 if match.re.groups else 0] or "" for match in found)
    return " ".join(words.split())


def caption_file(picture: Path) -> Path:
    """Returns where a picture's caption is, or would be: its ``.txt``, or the ``.TXT`` that some systems leave."""
    usual, loud = (picture.with_suffix(suffix) for suffix in (".txt", ".TXT"))
    return loud if os.path.isfile(loud) and not os.path.exists(usual) else usual


def vary(caption: str, draw: random.Random, *, shuffle: bool, dropout: float) -> str:
    """Returns a caption with some of its tags, in another order; with neither wanted, the caption as it is.

    Args:
        caption: tags separated by commas.
        draw: where chance comes from; the same state gives the same caption.
        shuffle: put the tags that are left in a random order.
        dropout: the chance of each tag to be left out, 0 to 1; all of them may be.
    """
    if not shuffle and dropout == 0:
        return caption
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    tags = [tag for tag in tags if draw.random() >= dropout]
    if shuffle:
        draw.shuffle(tags)
    return ", ".join(tags)


@dataclass(frozen=True, slots=True)
class Template:
    """Lines of which one, drawn for each sample, becomes the prompt.

    Attributes:
        name: as it was asked for.
        lines: with ``[filewords]`` where the caption goes and ``[name]`` where the network's name goes.
    """

    name: str
    lines: tuple[str, ...]

    @classmethod
    def read(cls, name_or_path: str) -> Template:
        """Returns the template that comes with hnetkit under a name, or the one in a text file.

        Raises:
            NotFound: neither is there.
            UsageError: the file is not UTF-8, is too long, or has no line with text.
            HnetkitError: it cannot be read.
        """
        if name_or_path in _BUILT_IN:
            return cls(name_or_path, _BUILT_IN[name_or_path])
        path = Path(name_or_path)
        if not os.path.isfile(path):  # False too for what cannot be a path, such as a whole prompt
            raise NotFound(
                f"{name_or_path}: no such template", hint=f"a text file, or one of {', '.join(BUILT_IN_TEMPLATES)}"
            )
        lines = tuple(line.strip() for line in _read_text(path).splitlines() if line.strip())
        if not lines:
            raise UsageError(f"{path}: a template has at least one line", hint="for example: [filewords], [name] style")
        return cls(name_or_path, lines)

    @property
    def has_filewords(self) -> bool:
        """Whether any line uses the caption."""
        return any("[filewords]" in line for line in self.lines)

    def prompt(self, caption: str, name: str, draw: random.Random) -> str:
        """Returns the prompt of one sample: a line drawn with `draw`, with the caption and the network's name in it."""
        words = {"[filewords]": caption, "[name]": name}
        # in one pass: what a caption holds is not filled in again
        return re.sub(r"\[filewords\]|\[name\]", lambda match: words[match[0]], draw.choice(self.lines))


def caption_warnings(captions: Mapping[str, str], template: Template) -> Iterator[str]:
    """Yields what is odd about captions and the template that takes them, one line each.

    Args:
        captions: file name of each picture -> its caption.
        template: of the prompts.
    """
    empty = [name for name, caption in captions.items() if not caption.strip()]
    if empty:
        shown = ", ".join(empty[:_SHOWN]) + (", ..." if len(empty) > _SHOWN else "")
        yield f"{len(empty)} of {len(captions)} pictures have no caption: {shown}"
    if not template.has_filewords and len(empty) < len(captions):
        yield f"the template {template.name} has no [filewords]: captions are not used"


def _require_near(beside: Path, picture: Path) -> None:
    """Refuses a link to a text that is in neither the picture's folder nor that of the file which the picture is.

    A folder from a stranger may hold links; what they lead to would become captions, prompts and records.
    """
    if not beside.is_symlink():
        return
    text, folder, file = (Path(os.path.realpath(path)) for path in (beside, picture.parent, picture))
    if not text.is_relative_to(folder) and text.parent != file.parent:
        raise UsageError(f"{beside}: a link that leads out of the folder", hint="put the caption itself there")


def _read_text(path: Path) -> str:
    try:
        return read_regular(path, most=MAX_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text", hint="save it as UTF-8 in a text editor") from error
    except ValueError as error:
        raise UsageError(f"{path}: not a text to train with ({error})", hint="shorten it, or move it away") from error
    except OSError as error:
        raise failure_of(error, str(path)) from error


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error
