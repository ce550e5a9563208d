"""Captions come from beside a picture or from its name; templates make prompts of them; chance is the caller's."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import HnetkitError, NotFound, UsageError
from hnetkit.train.captions import MAX_TEXT, caption_of
from hnetkit.train.data import BUILT_IN_TEMPLATES, Template, caption_warnings, vary

FILEWORDS = Template("mine", ("[filewords]",))


def draw(seed: int = 0) -> random.Random:
    return random.Random(seed)


def test_the_text_beside_a_picture_is_its_caption(tmp_path: Path) -> None:
    (tmp_path / "001-a cat.txt").write_text("\ufeff a red circle,\n on  a plain \n", encoding="utf-8")
    assert caption_of(tmp_path / "001-a cat.png") == "a red circle, on a plain"


@pytest.mark.parametrize("suffix", [".TXT", ".Txt"])
def test_a_suffix_in_capitals_is_that_of_a_caption(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"p1{suffix}").write_text("a circle")
    assert caption_of(tmp_path / "p1.png") == "a circle"
    (tmp_path / "p1.txt").write_text("a star")
    assert caption_of(tmp_path / "p1.png") == "a star"


def test_only_the_last_suffix_of_a_picture_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "fig.2.txt").write_text("two")
    assert caption_of(tmp_path / "fig.2.jpg") == "two"


def test_an_empty_text_is_an_empty_caption_and_not_the_file_name(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text(" \n")
    assert caption_of(tmp_path / "cat.png") == ""


def test_a_folder_of_that_name_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").mkdir()
    assert caption_of(tmp_path / "cat.png") == "cat"


def test_a_link_to_a_text_elsewhere_is_refused_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "private.txt").write_text("a secret")
    folder = tmp_path / "from a stranger"
    folder.mkdir()
    (folder / "cat.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(UsageError, match=r"cat\.txt: a link that leads out of the folder") as raised:
        caption_of(folder / "cat.png")
    assert "secret" not in str(raised.value)


def test_a_link_to_a_text_of_the_folder_or_beside_a_linked_picture_is_a_caption(tmp_path: Path) -> None:
    for name in ("store", "chosen"):
        (tmp_path / name).mkdir()
    (tmp_path / "store" / "001.png").touch()
    (tmp_path / "store" / "001.txt").write_text("a cat")
    (tmp_path / "chosen" / "first.png").symlink_to(tmp_path / "store" / "001.png")
    (tmp_path / "chosen" / "first.txt").symlink_to(tmp_path / "store" / "001.txt")
    (tmp_path / "chosen" / "again.txt").symlink_to("same.txt")
    (tmp_path / "chosen" / "same.txt").write_text("a dog")
    assert caption_of(tmp_path / "chosen" / "first.png") == "a cat"
    assert caption_of(tmp_path / "chosen" / "again.png") == "a dog"


def test_a_text_beside_a_linked_picture_that_has_another_name_there_is_no_caption(tmp_path: Path) -> None:
    """A stranger's folder links to any picture of the user, and to a private text beside that."""
    for name in ("home", "from a stranger"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "avatar.png").touch()
    (tmp_path / "home" / "private.txt").write_text("a secret")
    (tmp_path / "from a stranger" / "cat.png").symlink_to(tmp_path / "home" / "avatar.png")
    (tmp_path / "from a stranger" / "cat.txt").symlink_to(tmp_path / "home" / "private.txt")
    with pytest.raises(UsageError, match=r"cat\.txt: a link that leads out of the folder"):
        caption_of(tmp_path / "from a stranger" / "cat.png")


def test_a_file_name_that_is_no_text_gives_what_is_text_in_it() -> None:
    assert caption_of(Path("a \udcff cat.png")) == "a cat"


def test_a_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(UsageError, match=r"cat\.txt: not UTF-8"):
        caption_of(tmp_path / "cat.png")


@pytest.mark.parametrize(
    "read", [lambda path: caption_of(path.with_suffix(".png")), lambda path: Template.read(str(path))]
)
def test_a_text_that_is_far_too_long_is_named_and_not_read(tmp_path: Path, read: Callable[[Path], object]) -> None:
    text = tmp_path / "cat.txt"
    text.write_bytes(b"a" * MAX_TEXT)
    read(text)
    os.truncate(text, 1 << 40)
    with pytest.raises(UsageError, match=r"cat\.txt: .*more than 262,144 bytes"):
        read(text)


def test_a_pipe_of_that_name_is_no_text_and_no_template(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cat.txt")
    assert caption_of(tmp_path / "cat.png") == "cat"
    with pytest.raises(NotFound, match="no such template"):
        Template.read(str(tmp_path / "cat.txt"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="file permissions do not stop root")
def test_a_text_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat.txt").touch(mode=0)
    with pytest.raises(HnetkitError, match=r"cat\.txt: Permission denied"):
        caption_of(tmp_path / "cat.png")


@pytest.mark.parametrize(
    ("file", "caption"),
    [
        ("a red circle.png", "a red circle"),
        ("00012-0-a red circle.png", "a red circle"),
        ("12 - dots.png", "- dots"),
        ("0001.png", ""),
        ("-3-.webp", ""),
        ("route 66.jpg", "route 66"),
    ],
)
def test_without_a_text_the_file_name_less_its_leading_numbers_is_the_caption(file: str, caption: str) -> None:
    assert caption_of(Path(file)) == caption


def test_a_caption_stays_as_it_is_where_nothing_varies() -> None:
    assert vary("a,  b ,,c", draw(), shuffle=False, dropout=0) == "a,  b ,,c"


def test_all_tags_are_kept_when_shuffled_and_come_in_many_orders() -> None:
    source = draw()
    orders = {vary("a, b ,c,, d", source, shuffle=True, dropout=0) for _ in range(200)}
    assert {tuple(sorted(order.split(", "))) for order in orders} == {("a", "b", "c", "d")}
    assert len(orders) > 15


def test_each_tag_is_dropped_with_the_chance_that_was_asked_for_and_the_order_stays() -> None:
    source = draw()
    kept = Counter[str]()
    for _ in range(2000):
        tags = [tag for tag in vary("a, b, c", source, shuffle=False, dropout=0.25).split(", ") if tag]
        assert tags == sorted(tags)
        kept.update(tags)
    assert all(0.70 < kept[tag] / 2000 < 0.80 for tag in "abc")


def test_a_dropout_of_one_leaves_nothing() -> None:
    assert vary("a, b, c", draw(), shuffle=True, dropout=1) == ""


@given(st.text(), st.integers(0, 2**32), st.booleans(), st.floats(0, 1))
def test_the_same_chance_gives_the_same_caption(caption: str, seed: int, shuffle: bool, dropout: float) -> None:
    first, second = (vary(caption, draw(seed), shuffle=shuffle, dropout=dropout) for _ in range(2))
    assert first == second
    assert Counter(first.replace(" ", "")) <= Counter(caption.replace(" ", ""))


def test_only_the_callers_chance_is_drawn_from() -> None:
    tags = ", ".join("abcdefghijklmnop")
    random.seed(1)
    before = random.getstate()
    vary(tags, draw(), shuffle=True, dropout=0.5)
    Template.read("style").prompt("", "ink", draw())
    assert random.getstate() == before


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_a_template_that_comes_with_hnetkit_uses_what_its_name_says(name: str) -> None:
    template = Template.read(name)
    assert template.name == name
    for line in template.lines:
        assert ("[filewords]" in line) == ("filewords" in name or name == "hypernetwork")
        assert ("[name]" in line) == (name not in ("hypernetwork", "none"))


def test_a_prompt_is_any_line_with_the_caption_and_the_name_in_it() -> None:
    template = Template.read("style_filewords")
    source = draw()
    prompts = {template.prompt("a red circle", "ink", source) for _ in range(100)}
    assert len(prompts) == len(template.lines)
    assert all("a red circle" in prompt and "ink" in prompt and "[" not in prompt for prompt in prompts)


def test_the_same_chance_draws_the_same_lines() -> None:
    template = Template.read("subject_filewords")
    first, second = draw(7), draw(7)
    assert all(template.prompt("x", "n", first) == template.prompt("x", "n", second) for _ in range(20))


def test_what_a_caption_holds_is_not_filled_in_again() -> None:
    template = Template("mine", ("[filewords] by [name]",))
    assert template.prompt("a [name] \\1", "in[filewords]k", draw()) == "a [name] \\1 by in[filewords]k"


def test_a_template_is_read_from_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeff[filewords] by [name]\n\n  [name]: [filewords]  \r\n", encoding="utf-8")
    template = Template.read(str(file))
    assert template.lines == ("[filewords] by [name]", "[name]: [filewords]")
    assert template.has_filewords


@pytest.mark.parametrize("name", ["style_filwords", "[filewords] in the style of [name] " * 20, "a\x00b"])
def test_a_template_that_is_not_there_is_not_found(name: str) -> None:
    with pytest.raises(NotFound, match="no such template") as caught:
        Template.read(name)
    assert "style_filewords" in (caught.value.hint or "")


def test_a_template_without_a_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(UsageError, match="at least one line"):
        Template.read(str(tmp_path / "empty.txt"))


def test_a_template_that_leaves_captions_unused_is_said() -> None:
    (said,) = caption_warnings({"a.png": "a red circle"}, Template.read("style"))
    assert said == "the template style has no [filewords]: captions are not used"


def test_pictures_without_a_caption_are_counted_and_the_first_named() -> None:
    captions = {f"{number:04}.png": "" if number < 7 else "a circle" for number in range(10)}
    (said,) = caption_warnings(captions, FILEWORDS)
    assert said == "7 of 10 pictures have no caption: 0000.png, 0001.png, 0002.png, 0003.png, 0004.png, ..."


def test_good_captions_and_a_template_that_uses_them_give_no_warning() -> None:
    assert list(caption_warnings({"a.png": "a circle"}, FILEWORDS)) == []
