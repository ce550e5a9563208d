"""Caption files: read and written beside their images, as A1111's training has them."""

from __future__ import annotations

import re
from pathlib import Path

from hnetkit.errors import UsageError, failure_of
from hnetkit.files import is_file_at, is_link_elsewhere, new_file, read_regular, stat_at

MAX_TEXT = 256 << 10
"""Bytes of a caption or a template; what a text encoder reads of one is less than a thousand."""


def caption_of(image: Path) -> str:
    """Returns an image's caption on one line, from the ``.txt`` beside it or else from its file name; may be empty.

    Args:
        image: its file, which is not opened.

    Raises:
        UsageError: the ``.txt`` is not UTF-8, too long, or a link that leads away.
        HnetkitError: the ``.txt`` cannot be read.
    """
    try:
        beside = caption_file(image)
        is_written = is_file_at(beside)
    except OSError as error:
        raise failure_of(error, str(image)) from error
    if is_written:
        _require_near(beside, image)
        return " ".join(read_text(beside).split())
    return _words_of(image.stem)


def says_file_name(caption: str, image: Path) -> bool:
    """Whether a caption says no more than what the image's file is called, or the original that it was prepared from.

    A name of several words without digits, ``a red circle.png``, was given to be a caption: A1111 reads it as one.
    """
    text = caption.strip()
    if not text or (" " in text and not re.search(r"[\d_]", text)):
        return False
    original = re.sub(r"(-\d+|-flipped)+$", "", image.stem)
    return text in (_words_of(image.stem), _words_of(original))


def caption_file(image: Path) -> Path:
    """Returns the file of an image's caption, which may not exist: ``.txt``, or as some systems spell that."""
    usual, *others = (image.with_suffix(suffix) for suffix in (".txt", ".TXT", ".Txt"))
    found = others if stat_at(usual) is None else ()
    return next(filter(is_file_at, found), usual)


def write_caption(path: Path, caption: str, *, overwrite: bool) -> None:
    """Writes a caption file, completely or not at all.

    Raises:
        OutputExists: the file exists and `overwrite` is False.
    """
    with new_file(path, overwrite=overwrite) as file:
        file.write(f"{caption}\n".encode())


def read_text(path: Path) -> str:
    """Returns a caption or a template.

    Raises:
        UsageError: it is not UTF-8, or too long.
        HnetkitError: it cannot be read.
    """
    try:
        return read_regular(path, most=MAX_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text", hint="save it as UTF-8 in a text editor") from error
    except ValueError as error:
        raise UsageError(f"{path}: not a text to train with ({error})", hint="shorten it, or move it away") from error
    except OSError as error:
        raise failure_of(error, str(path)) from error


def _words_of(stem: str) -> str:
    """Returns a file name as A1111 reads it for a caption: without numbers in front, on one line."""
    text = stem.encode("utf-8", "ignore").decode()  # a file name need not be valid text
    return " ".join(re.sub(r"^[-\d]+\s*", "", text).split())


def _require_near(beside: Path, image: Path) -> None:
    """Refuses a link to a text outside of the image's folder, unless it is that of the file that the image links to.

    A stranger's folder may hold links to private files, which would become captions, prompts and records.
    """
    if is_link_elsewhere(beside, image) and not beside.resolve().is_relative_to(image.parent.resolve()):
        raise UsageError(f"{beside}: a link that leads out of the folder", hint="put the caption itself there")
