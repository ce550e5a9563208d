"""The captions of a training folder: read as a table, edited, taken back, looked at as a page."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.hostile_images import damaged_avif
from support.pictures import different, save

from hnetkit.errors import HnetkitError, NotFound, UsageError
from hnetkit.text import to_cell
from hnetkit.train.preparing.review import TO_EDIT, apply_captions, contact_sheet, parse_captions, review

HOSTILE = "</p><script>alert(1)</script> \"quoted\" 'and' &amp; <img src=x onerror=alert(2)>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training folder of two pictures with captions and one without, beside a file that is none of its business."""
    training = tmp_path / "training"
    training.mkdir()
    for number, path in enumerate(different(training, 3)):
        if number:
            path.with_suffix(".txt").write_text(f"number {number}, red\n", encoding="utf-8")
    (tmp_path / "outside.txt").write_text("precious", encoding="utf-8")
    save(tmp_path, "outside.png")
    return training


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))}


def in_lines(rows: Sequence[dict[str, Any]]) -> str:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerows([("file", "caption"), *((to_cell(row["file"]), to_cell(row["caption"])) for row in rows)])
    return table.getvalue()


def test_every_picture_is_a_row(folder: Path) -> None:
    rows = review(folder).rows
    assert [row["file"] for row in rows] == ["picture-00.png", "picture-01.png", "picture-02.png"]
    assert rows[1] == {
        "file": "picture-01.png",
        "width": 64,
        "height": 64,
        "caption": "number 1, red",
        "warnings": [],
        "digest": "b3:8587e2b4",
    }


def test_what_is_odd_about_a_picture_is_in_its_row(folder: Path) -> None:
    (folder / "picture-01.txt").write_text("", encoding="utf-8")
    (folder / "picture-03.png").write_bytes((folder / "picture-02.png").read_bytes())
    save(folder, "picture-04.png", size=(50, 64))
    (folder / "picture-05.png").write_bytes(b"broken")
    seen = review(folder)
    is_name = "the caption is the file name"
    assert [row["warnings"] for row in seen.rows] == [
        [is_name],
        ["no caption"],
        [],
        ["the same file as picture-02.png", is_name],
        [is_name, "sides are not multiples of 8"],
        ["cannot be read"],
    ]
    assert len(seen.unreadable) == 1
    assert "picture-05.png" in seen.unreadable[0]
    assert any("few" in warning for warning in seen.warnings)


def test_captions_that_are_file_names_are_told(folder: Path) -> None:
    save(folder, "IMG_2001-flipped.png", size=(64, 64))
    (folder / "IMG_2001-flipped.txt").write_text("IMG_2001\n")
    save(folder, "a red circle.png", size=(64, 64))
    seen = review(folder)
    flagged = [row["file"] for row in seen.rows if "the caption is the file name" in row["warnings"]]
    assert flagged == ["IMG_2001-flipped.png", "picture-00.png"]
    assert [line for line in seen.warnings if "file names" in line] == [
        "2 pictures have file names as captions, which training reads as words: IMG_2001-flipped.png, picture-00.png"
    ]


def test_a_caption_with_tags_that_training_cannot_apply_is_odd(folder: Path) -> None:
    for number, tag in enumerate(("<lora:glow:0.8>", "&lt;lora:glow:0.8&gt;", "<hypernet:x:1>")):
        (folder / f"picture-{number:02}.txt").write_text(f"a circle {tag}")
    odd = ["tags without effect in training" in row["warnings"] for row in review(folder).rows]
    assert odd == [True, True, False]


def test_a_picture_or_a_caption_that_cannot_be_read_fails_alone(folder: Path) -> None:
    (folder / "picture-01.png").write_bytes(damaged_avif())
    (folder / "picture-02.txt").write_bytes(b"\xff\xfe\xff")
    os.truncate(folder / "picture-00.png", 1 << 40)
    different(folder / "..", 4)[3].rename(folder / "picture-03.png")
    seen = review(folder)
    assert [row["warnings"] for row in seen.rows] == [["cannot be read"]] * 3 + [["the caption is the file name"]]
    assert [row["caption"] for row in seen.rows] == ["picture-00", "number 1, red", "", "picture-03"]
    assert [line.split(": ")[0].split("/")[-1] for line in seen.unreadable] == [
        *("picture-00.png", "picture-01.png", "picture-02.txt")
    ]


def test_a_caption_that_cannot_be_read_stays_unless_another_is_given(folder: Path) -> None:
    (folder / "picture-01.txt").write_bytes(b"\xff")
    rows = {row["file"]: row["caption"] for row in review(folder).rows}
    assert apply_captions(folder, rows) == []
    assert (folder / "picture-01.txt").read_bytes() == b"\xff"
    assert apply_captions(folder, {"picture-01.png": "a new one"}) == [folder / "picture-01.txt"]


def test_only_captions_that_changed_are_written(folder: Path) -> None:
    before = (folder / "picture-02.txt").stat().st_mtime_ns
    captions = {row["file"]: row["caption"] for row in review(folder).rows}
    assert apply_captions(folder, captions) == []
    captions["picture-01.png"] = "a new one"
    assert apply_captions(folder, captions) == [folder / "picture-01.txt"]
    assert texts(folder) == {"picture-01.txt": "a new one\n", "picture-02.txt": "number 2, red\n"}
    assert (folder / "picture-02.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("form", ["csv", "json"])
def test_what_became_of_a_caption_that_changed_since_the_table_was_made_is_told(folder: Path, form: str) -> None:
    rows = [dict(row) for row in review(folder).rows]
    for name in ("picture-01.txt", "picture-02.txt"):
        (folder / name).write_text("changed by hand\n", encoding="utf-8")
    rows[0]["caption"] = rows[2]["caption"] = "edited"
    if form == "json":
        table = json.dumps(rows)
    else:
        lines = io.StringIO()
        writer = csv.DictWriter(lines, TO_EDIT)
        writer.writeheader()
        writer.writerows(rows)
        table = lines.getvalue()
    notes: list[str] = []
    written = apply_captions(folder, parse_captions(table), note=notes.append)
    assert written == [folder / "picture-00.txt", folder / "picture-02.txt"]
    assert texts(folder) == {
        "picture-00.txt": "edited\n",
        "picture-01.txt": "changed by hand\n",  # the table did not change it
        "picture-02.txt": "edited\n",
    }
    assert notes == [
        f"{folder / 'picture-01.txt'}: changed since the table was made, and kept, as the table leaves it as it was",
        f"{folder / 'picture-02.txt'}: changed since the table was made; until now it says: changed by hand",
    ]
    assert apply_captions(folder, parse_captions(table.replace("edited", "again"))) == written


def test_a_caption_can_be_emptied(folder: Path) -> None:
    apply_captions(folder, {"picture-00.png": "", "picture-01.png": ""})
    assert [row["caption"] for row in review(folder).rows] == ["", "", "number 2, red"]


@pytest.mark.parametrize(
    "name",
    ["../outside.png", "..", "/etc/passwd", "sub/picture.png", "..\\outside.png", "C:\\x.png", "picture-01.png\0"],
)
def test_a_name_that_is_a_path_changes_nothing(folder: Path, name: str) -> None:
    before = texts(folder)
    with pytest.raises(UsageError, match="not a file name"):
        apply_captions(folder, {"picture-01.png": "changed", name: "changed"})
    assert texts(folder) == before
    assert (folder.parent / "outside.txt").read_text(encoding="utf-8") == "precious"


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such file names")
@pytest.mark.parametrize("write", [json.dumps, in_lines])
def test_the_table_of_a_folder_with_odd_names_can_be_given_back(
    folder: Path, write: Callable[[Sequence[dict[str, Any]]], str]
) -> None:
    odd = ["back\\slash.png", "bytes \udcff.png", "line\nbreak.png", "=1+1.png"]
    for name in odd:
        (folder / name).write_bytes((folder / "picture-00.png").read_bytes())
    rows = review(folder).rows
    assert apply_captions(folder, parse_captions(write(rows))) == []
    changed = [{**row, "caption": "new"} if row["file"] in odd else row for row in rows]
    found = apply_captions(folder, parse_captions(write(changed)))
    assert {path.with_suffix(".png").name for path in found} == set(odd)


def test_a_picture_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"picture-99\.png"):
        apply_captions(folder, {"picture-99.png": "changed"})


def test_a_caption_that_is_a_link_out_of_the_folder_is_replaced_not_followed(folder: Path) -> None:
    (folder / "picture-00.txt").symlink_to(folder.parent / "outside.txt")
    apply_captions(folder, {"picture-00.png": "changed"})
    assert (folder.parent / "outside.txt").read_text(encoding="utf-8") == "precious"
    assert texts(folder)["picture-00.txt"] == "changed\n"


def test_two_pictures_of_one_caption_cannot_get_two(folder: Path) -> None:
    save(folder, "picture-01.jpg")
    assert apply_captions(folder, {"picture-01.png": "one", "picture-01.jpg": "one"})
    with pytest.raises(UsageError, match="shares"):
        apply_captions(folder, {"picture-01.png": "one", "picture-01.jpg": "two"})


@pytest.mark.parametrize(
    "text",
    [
        'file,width,caption\na.png,64,"red, blue"\nb.png,64,\n',
        'file;caption\r\na.png;red, blue\r\nb.png;""\r\n',
        "\ufefffile\tcaption\na.png\tred, blue\nb.png\t\n",
        json.dumps([{"file": "a.png", "caption": "red, blue", "width": 3}, {"file": "b.png", "caption": ""}]),
        'caption,file\n"red,\n  blue",a.png\n,b.png\n',
    ],
)
def test_a_table_is_read_as_spreadsheets_write_it(text: str) -> None:
    assert parse_captions(text) == {"a.png": "red, blue", "b.png": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name,text\na.png,red\n",
        "file,caption\na.png,red, blue\n",
        "file,caption\na.png\n",
        "file,caption\na.png,x\na.png,y\n",
        "file,caption,caption\na.png,x,y\n",
        "file\tcaption\tfile\na.png\tx\ta.png\n",
        '[{"file": "a.png", "caption": "x", "caption": "y"}]',
        'file,caption\na.png,"x\n',
        "[1, 2]",
        "[{",
        '[{"file": "a.png"}]',
        '[{"file": "a.png", "caption": 3}]',
        "[" * 100_000,
        "[" + "{}," * 1_000_000 + "{}]",
        'file,caption\na.png,"' + "x" * 300_000 + '"\n',
        '[{"file": "a.png", "caption": "' + "x" * 300_000 + '"}]',
        '[{"file": "a.png", "caption": "\\ud800"}]',
    ],
)
def test_what_is_no_table_of_captions_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_captions(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,width,caption,caption\na.png,1,x,y\n", "2 columns are called caption"),
        ("file;caption;file\na.png;x;b.png\n", "2 columns are called file"),
        ('[{"file": "a.png", "caption": "x", "caption": "y"}]', "has a key twice"),
    ],
)
def test_a_caption_that_is_there_twice_is_not_chosen_in_silence(folder: Path, text: str, said: str) -> None:
    before = texts(folder)
    with pytest.raises(UsageError, match=said):
        apply_captions(folder, parse_captions(text.replace("a.png", "picture-01.png")))
    assert texts(folder) == before


def test_empty_columns_that_a_spreadsheet_adds_are_no_twins() -> None:
    assert parse_captions("file,caption,,\na.png,x,,\n") == {"a.png": "x"}


@pytest.mark.parametrize(
    ("cell", "caption"),
    [
        ("'=HYPERLINK(1)", "=HYPERLINK(1)"),
        ("'-_-", "-_-"),
        ("''=1", "'=1"),
        ("' @a", "@a"),
        ("'tis night", "'tis night"),
        ("=1", "=1"),
        ("a \\u001b[31m", "a \x1b[31m"),
        ("\\u005cu001b", "\\u001b"),
        ("\\ud83d\\ude00", "\N{GRINNING FACE}"),
        ("C:\\users", "C:\\users"),
    ],
)
def test_a_cell_is_read_without_what_keeps_spreadsheets_and_terminals_safe(cell: str, caption: str) -> None:
    assert parse_captions(f"file,caption\na.png,{cell}\n") == {"a.png": caption}
    assert parse_captions(json.dumps([{"file": "a.png", "caption": cell}])) == {"a.png": cell}


class Page(HTMLParser):
    """What a browser would make of a page: its elements and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_shows_every_picture_and_what_is_said_of_it(folder: Path) -> None:
    page = Page("".join(contact_sheet(review(folder))))
    assert not page.open
    assert "number 1, red" in page.text
    assert "picture-00.png" in page.text
    assert "few" in page.text
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 3
    for attributes in images:
        kind, data = (attributes["src"] or "").split(";base64,")
        assert kind == "data:image/jpeg"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 64)


def test_the_page_comes_picture_by_picture(folder: Path) -> None:
    parts = list(contact_sheet(review(folder)))
    assert [part.count("<figure>") for part in parts] == [0, 1, 1, 1, 0]


def test_what_strangers_wrote_is_text_in_the_page(folder: Path) -> None:
    (folder / "picture-00.txt").write_text(HOSTILE, encoding="utf-8")
    save(folder, "<b onclick=x>&.png", colour=(1, 2, 3, 4))
    page = Page("".join(contact_sheet(review(folder))))
    assert HOSTILE in page.text
    assert "<b onclick=x>&.png" in page.text
    assert {tag for tag, _ in page.elements} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "p", "main", "figure", "img", "figcaption", "span")
    }
    allowed = {"lang", "charset", "http-equiv", "content", "name", "class", "src", "width", "height", "alt"}
    assert {name for _, attributes in page.elements for name in attributes} <= allowed
    assert all((attributes.get("src") or "data:").startswith("data:") for _, attributes in page.elements)
    assert any(attributes.get("alt") == HOSTILE for _, attributes in page.elements)


def test_a_picture_that_cannot_be_read_is_in_the_page_by_name(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"")
    page = Page("".join(contact_sheet(review(folder))))
    assert "broken.png" in page.text
    assert "cannot be read" in page.text


@pytest.mark.parametrize("write", [json.dumps, in_lines])
def test_a_caption_as_long_as_a_caption_may_be_goes_out_and_comes_back(
    folder: Path, write: Callable[[Sequence[dict[str, Any]]], str]
) -> None:
    (folder / "picture-00.txt").write_text("word, " * 25_000, encoding="utf-8")
    rows = review(folder).rows
    assert apply_captions(folder, parse_captions(write(rows))) == []
    changed = [{**row, "caption": "new"} if row["file"] == "picture-01.png" else row for row in rows]
    assert apply_captions(folder, parse_captions(write(changed))) == [folder / "picture-01.txt"]


def test_one_caption_that_cannot_be_written_does_not_stop_the_others(folder: Path) -> None:
    (folder / "picture-00.txt").unlink(missing_ok=True)
    (folder / "picture-00.txt").mkdir()
    failures: list[HnetkitError] = []
    written = apply_captions(folder, {"picture-00.png": "new", "picture-01.png": "new"}, failures.append)
    assert written == [folder / "picture-01.txt"]
    assert [str(failure) for failure in failures] == [f"{folder / 'picture-00.txt'}: not a file, and never replaced"]
