"""What people paste to mean a network: docs/addresses.md holds what each address means, or what is said instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import UsageError
from hnetkit.sources.references import Reference, parse_reference, redact_reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "addresses.md"
SECRET = "SeCrEt0123"


def rows() -> Iterator[tuple[str, list[str]]]:
    """Yields the addresses of the page, with the other cells of their rows."""
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            address, *cells = [cell.strip() for cell in line.strip("|").split(" | ")]
            yield address.strip("`"), cells


ROWS = dict(rows())
UNDERSTOOD = {address: cells[0] for address, cells in ROWS.items() if len(cells) == 1}
REFUSED = {address: (cells[0], cells[1]) for address, cells in ROWS.items() if len(cells) == 2}


def in_words(ref: Reference) -> str:
    """Says what a reference means, as the page does."""
    if ref.kind == "hash":
        return f"the hash `{ref.digits if len(ref.digits) < 64 else ref.digits[:6] + '...'}`"
    if ref.kind == "url":
        pinned = f"which must have the sha256 `{ref.sha256[:6]}...`" if ref.sha256 else "with `--sha256`"
        return f"a plain file, {pinned}"
    if ref.kind == "hub":
        what = "all networks" if ref.pattern is None else f"`{ref.pattern}`"
        revision = "" if ref.revision is None else f" at `{ref.revision}`"
        return f"{what} of `{ref.repo}`{revision}"
    words = f"{ref.kind} {ref.id}"
    words += f" of model {ref.model}" if ref.model is not None else ""
    words += f", or model {ref.id} if there is no such version" if ref.may_be_model else ""
    words += f": file {ref.file}" if ref.file is not None else ""
    return words + (f", as {ref.format}" if ref.format is not None else "")


def test_the_page_has_every_kind_of_address() -> None:
    assert len(ROWS) >= 90
    assert len(list(rows())) == len(ROWS), "each address once"
    assert {parse_reference(address).kind for address in UNDERSTOOD} == {"model", "version", "hash", "hub", "url"}


@pytest.mark.parametrize("address", UNDERSTOOD)
def test_an_address_means_what_the_page_says(address: str) -> None:
    assert in_words(parse_reference(address)) == UNDERSTOOD[address]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_cannot_be_fetched_is_answered_as_the_page_says(address: str) -> None:
    reason, instead = REFUSED[address]
    with pytest.raises(UsageError) as caught:
        parse_reference(address)
    said, _, why = str(caught.value).rpartition(": ")
    assert why == reason
    assert said
    assert caught.value.command_hint == instead.replace("`", "")


@pytest.mark.parametrize(
    ("text", "folder", "also"),
    [
        ("lib/ink.pt", "lib", "; for a repository of the hub: hnetkit pull hf:lib/ink.pt"),
        ("lib/old", "lib/old", "; for a repository of the hub: hnetkit pull hf:lib/old"),
        ("lib/old/pen.pt", "lib/old", ""),
    ],
)
def test_a_file_or_folder_that_is_here_is_not_taken_for_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, folder: str, also: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lib" / "old").mkdir(parents=True)
    for name in ("ink.pt", "old/pen.pt"):
        (tmp_path / "lib" / name).touch()
    with pytest.raises(UsageError, match="a file or folder of this machine") as caught:
        parse_reference(text)
    assert caught.value.command_hint == f"hnetkit scan {folder} takes up what is here already{also}"


@pytest.mark.parametrize("instead", [instead for _, instead in REFUSED.values()])
def test_what_the_page_advises_to_pull_is_understood(instead: str) -> None:
    for ref in re.findall(r"hnetkit pull (\S+?)[`;]", f"{instead};"):
        if ref not in ("HASH", "hf:someone/REPO", "hf:owner/repo"):
            assert parse_reference(ref).kind in ("model", "version", "hub", "url")


AROUND = [
    "{}",
    "  {}\n",
    "'{}'",
    "<{}>",
    "[ink]({})",
    "git clone {}",
    "HF_TOKEN=" + SECRET + " git clone {}",
    "\u200b{}",
]
HOLDERS = ["{}?token=" + SECRET, "{}?a=b&sig=" + SECRET, "{}#" + SECRET, "{}?query=" + SECRET]


def _parsed(text: str) -> str:
    """Returns all that is said of a text."""
    try:
        ref = parse_reference(text)
    except UsageError as error:
        refusal = error
    else:
        return f"{ref!r} {ref.text} {redact_reference(text)}"
    assert str(refusal).isprintable()
    assert refusal.command_hint
    return f"{refusal} {refusal.command_hint} {refusal.hint} {redact_reference(text)}"


# what follows the ? of a place on the hub is a glob
@given(
    st.sampled_from([a for a in sorted(ROWS) if not a.startswith("hf:")]),
    st.sampled_from(HOLDERS),
    st.sampled_from(AROUND),
)
def test_a_secret_at_the_end_of_any_address_is_not_said(address: str, holder: str, around: str) -> None:
    assert SECRET not in _parsed(around.format(holder.format(address)))


@given(st.sampled_from(sorted(ROWS)))
def test_what_follows_a_question_mark_that_was_forgotten_is_not_shown(address: str) -> None:
    assert SECRET not in redact_reference(f"{address}&token={SECRET}")


@given(st.sampled_from([address for address in sorted(ROWS) if "://" in address and " " not in address]))
def test_a_password_in_any_address_is_not_said(address: str) -> None:
    scheme, _, rest = address.partition("://")
    for text in (f"{scheme}://user:{SECRET}@{rest}", f"user:{SECRET}@{rest}", f"git clone {scheme}://{SECRET}@{rest}"):
        assert SECRET not in _parsed(text)


PIECES = [
    *re.findall(r"[\w.]+|\W", "".join(ROWS)),
    "\u00b2",
    "\0",
    "\ud800",
    "hf://",
    "git clone ",
    "0x",
    "..",
    "%2F",
    "%ff",
]


@given(st.lists(st.sampled_from(sorted(set(PIECES))) | st.text(max_size=3), max_size=14).map("".join))
def test_any_text_made_of_pieces_of_addresses_is_a_reference_or_a_usage_error(text: str) -> None:
    _parsed(text)


@given(st.sampled_from(sorted(ROWS)), st.integers(0, 200), st.text(max_size=2))
def test_an_address_with_a_slip_is_a_reference_or_a_usage_error(address: str, at: int, typed: str) -> None:
    _parsed(address[:at] + typed + address[at + 1 :])


@pytest.mark.parametrize("token", [f"hf_{SECRET * 3}", SECRET * 4, "9f" * 16])
def test_a_token_in_place_of_a_reference_is_not_shown(token: str) -> None:
    said = _parsed(token)
    assert token not in said
    assert "CIVITAI_TOKEN" in said
