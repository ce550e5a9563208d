"""Names of files: whatever a site calls them, every file system takes them and every prompt can say them."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.prompts.tags import split_tags
from hnetkit.sources.install import MOST_BYTES, SUFFIXES, safe_stem, split_name

# Microsoft's "Naming Files, Paths, and Namespaces": a device is a device with any extension behind its first dot.
DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{kind}{n}" for kind in ("com", "lpt") for n in "0123456789\u00b9\u00b2\u00b3"),
}
TELLING = "civitai-920301"
AWKWARD = st.text(
    st.sampled_from(
        "aZ9._- \t\n\0/\\:*?\"<>|,()[]{}'`~^%$#@!&;=+\u00e9\u0301\u30cd\u1112\U0001f98a\u202e\u200b\ud800\u0130\u00df"
    )
)
DEVICE_LIKE = st.builds(
    "".join, st.tuples(st.sampled_from(["", " ", ".", "_"]), st.sampled_from(sorted(DEVICES)), AWKWARD)
)
NAMES = st.text() | AWKWARD | DEVICE_LIKE


def is_device(name: str) -> bool:
    """Whether Windows would open a device instead of a file of this name."""
    return name.split(".")[0].rstrip(" ").lower() in DEVICES


@given(NAMES)
def test_a_stem_is_a_file_name_that_every_file_system_takes(name: str) -> None:
    stem = safe_stem(name, TELLING)
    assert re.fullmatch(r"[\w.-]+", stem)
    assert not set(stem) & set('<>:"/\\|?*\0')
    assert stem.isprintable()
    assert stem[0] not in ".-"
    assert stem[-1] not in ". "
    assert len(f"{stem}-v2147483647.safetensors".encode()) <= 255
    stem.encode("utf-8")


@given(NAMES)
def test_a_stem_is_never_a_device_of_windows_nor_the_word_that_a1111_skips(name: str) -> None:
    stem = safe_stem(name, TELLING)
    assert not is_device(stem)
    assert not is_device(f"{stem}.pt")
    assert stem.lower() != "none"


@pytest.mark.parametrize("name", sorted(DEVICES))
def test_a_device_gets_the_fallback_added(name: str) -> None:
    for spelled in (name, name.upper(), f" {name} ", f"{name}."):
        assert not is_device(safe_stem(spelled, TELLING))
        assert TELLING in safe_stem(spelled, TELLING)


@pytest.mark.parametrize("name", ["con.tar", "Aux.v2", "NUL.x.y", "lpt1.style"])
def test_a_device_with_something_behind_a_dot_is_still_a_device(name: str) -> None:
    assert not is_device(safe_stem(name, TELLING))


def test_names_that_only_begin_like_a_device_stay() -> None:
    for name in ("console", "con-1", "auxiliary", "com10", "nonesuch", "lpt"):
        assert safe_stem(name, TELLING) == name


@given(NAMES)
def test_a_stem_is_composed_so_that_macos_and_linux_agree_on_it(name: str) -> None:
    assert unicodedata.is_normalized("NFC", safe_stem(name, TELLING))
    assert safe_stem(unicodedata.normalize("NFD", name), TELLING) == safe_stem(
        unicodedata.normalize("NFC", name), TELLING
    )


@given(NAMES)
def test_a_stem_of_a_stem_is_the_same(name: str) -> None:
    stem = safe_stem(name, TELLING)
    assert safe_stem(stem, "another") == stem


@given(NAMES)
def test_a_prompt_can_say_a_stem(name: str) -> None:
    stem = safe_stem(name, TELLING)
    prompt = split_tags(f"a harbour <hypernet:{stem}:0.5>, at night")
    assert [(tag.name, tag.multiplier) for tag in prompt.tags] == [(stem, 0.5)]


@pytest.mark.parametrize("end", ["metadata", "cm-info", "api_info", "civitai", "Preview", "description"])
def test_no_stem_makes_its_sidecar_that_of_another_network(end: str) -> None:
    assert safe_stem(f"ink.{end}", TELLING) == f"ink_{end}"
    assert safe_stem(f"ink.{end}.", TELLING) == f"ink_{end}"


def test_a_good_name_stays_as_it_is() -> None:
    for name in (
        "neonWatercolourStyle_v10",
        "a.b-c_d",
        "\u30cd\u30aa\u30f3",
        "Gr\u00f6\u00dfe",
        "\u0430\u043a\u0432\u0430\u0440\u0435\u043b\u044c",
    ):
        assert safe_stem(name, TELLING) == name


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("Ink: wash/etch", "Ink_wash_etch"),
        ("a<b>,c", "a_b_c"),
        ("..hidden", "hidden"),
        ("-rf", "rf"),
        ("end. ", "end"),
        ("../../etc/passwd", "etc_passwd"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("fox \U0001f98a fire", "fox_fire"),
    ],
)
def test_what_no_file_system_or_prompt_can_hold_becomes_one_underscore(name: str, stem: str) -> None:
    assert safe_stem(name, TELLING) == stem


@pytest.mark.parametrize("name", ["", ".", "..", "...", "???", "*", " ", "\U0001f98a", "_", "-", "\0", "\ud800"])
def test_a_name_with_nothing_left_of_it_is_the_fallback(name: str) -> None:
    assert safe_stem(name, TELLING) == TELLING


@pytest.mark.parametrize("letter", ["n", "\u00e9", "\u6700", "\U00020000"])
def test_a_long_name_is_cut_between_letters(letter: str) -> None:
    stem = safe_stem(letter * 500, TELLING)
    assert MOST_BYTES - 4 < len(stem.encode()) <= MOST_BYTES
    assert set(stem) == {letter}


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("a.pt", "a", ".pt"),
        ("a.PT", "a", ".pt"),
        ("a.b.safetensors", "a.b", ".safetensors"),
        ("model.vae.pt", "model.vae", ".pt"),
        ("v1.5", "v1.5", ".pt"),
        ("noSuffix", "noSuffix", ".pt"),
        ("image.png", "image.png", ".pt"),
        (".pt", "", ".pt"),
        ("", "", ".pt"),
        ("\u6700\u7d42 \u7248/final$.pt", "final$", ".pt"),
        ("..\\..\\evil.zip", "evil", ".zip"),
        ("../../x.ckpt ", "x", ".ckpt"),
        ("ink_v10.RAR", "ink_v10", ".rar"),
        ("ink.tar.gz", "ink.tar", ".gz"),
        ("/etc/passwd", "passwd", ".pt"),
        ("C:\\a\\b.bin", "b", ".bin"),
    ],
)
def test_a_file_name_is_split_without_its_folders(name: str, stem: str, suffix: str) -> None:
    assert split_name(name) == (stem, suffix)


@given(NAMES | st.builds("{}{}".format, NAMES, st.sampled_from([".pt", ".PT", ".sft ", ".zip/", "\\.pt"])))
def test_whatever_a_site_calls_a_file_its_path_stays_in_the_folder(name: str) -> None:
    stem, suffix = split_name(name)
    folder = Path("/library/networks")
    path = folder / f"{safe_stem(stem, TELLING)}{suffix}"
    assert suffix in SUFFIXES
    assert path.parent == folder
    assert path.suffix == suffix
    assert Path(*path.parts).resolve().parent == folder.resolve()


@given(st.from_regex(r"[a-z0-9]+([._-][a-z0-9]+){0,3}", fullmatch=True), st.sampled_from(sorted(SUFFIXES)))
def test_splitting_takes_apart_what_was_put_together(stem: str, suffix: str) -> None:
    assert split_name(f"{stem}{suffix}") == (stem, suffix)
    assert split_name(f"folder/{stem}{suffix.upper()}") == (stem, suffix)
