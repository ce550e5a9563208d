"""What a person may type to mean a model, and that nothing else is taken for it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hnetkit.errors import UsageError
from hnetkit.sources.references import Reference, parse_reference

HOSTS = [f"{www}civitai.{end}" for end in ("com", "red", "green") for www in ("", "www.")]
SHA256 = "CA978112CA1BBDCAFAC231B39A23DC4DA786EFF8147C4E72B9807785AFEE48BB"
numbers = st.integers(1, 2**31 - 1)


def meant(text: str) -> tuple[str, int]:
    ref = parse_reference(text)
    return ref.kind, ref.id


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("scheme", ["https", "http"])
@pytest.mark.parametrize(
    ("path", "kind", "number"),
    [
        ("/models/900101", "model", 900101),
        ("/models/900101/", "model", 900101),
        ("/models/900101/neon-watercolour-style", "model", 900101),
        ("/models/900101/neon?modelVersionId=910205", "version", 910205),
        ("/models/900101?modelVersionId=910205&dialog=x#comments", "version", 910205),
        ("/models/900101?dialogId=2", "model", 900101),
        ("/model-versions/910205", "version", 910205),
        ("/api/v1/models/900101", "model", 900101),
        ("/api/v1/model-versions/910205", "version", 910205),
        ("/api/download/models/910205", "version", 910205),
        ("/api/download/models/910205?type=Model&format=PickleTensor&size=full&fp=fp16", "version", 910205),
    ],
)
def test_an_address_of_any_civitai_host_means_its_model_or_version(
    host: str, scheme: str, path: str, kind: str, number: int
) -> None:
    assert meant(f"{scheme}://{host}{path}") == (kind, number)


def test_a_host_may_be_typed_in_upper_case_and_with_space_around() -> None:
    assert meant("  https://CivitAI.com/models/5 \n") == ("model", 5)


@pytest.mark.parametrize(
    ("text", "kind", "number"),
    [
        ("model:900101", "model", 900101),
        ("version:910205", "version", 910205),
        ("civitai:900101", "model", 900101),
        ("civitai:900101@910205", "version", 910205),
        ("urn:air:sd1:hypernet:civitai:900101@910205", "version", 910205),
        ("urn:air:sd1:hypernet:civitai:900101", "model", 900101),
        ("URN:AIR:SD1:HYPERNET:CIVITAI:900101@910205", "version", 910205),
        ("urn:air:sd1:hypernet:civitai:900101@910205.pt", "version", 910205),
    ],
)
def test_a_number_with_its_kind_and_an_air_urn_mean_a_model_or_a_version(text: str, kind: str, number: int) -> None:
    assert meant(text) == (kind, number)


@given(numbers, numbers)
def test_every_form_of_one_version_means_the_same(model: int, version: int) -> None:
    forms = (
        f"version:{version}",
        f"civitai:{model}@{version}",
        f"urn:air:sd1:hypernet:civitai:{model}@{version}",
        f"https://civitai.com/models/{model}/x?modelVersionId={version}",
        f"https://civitai.red/api/download/models/{version}?fileId=7",
    )
    assert {meant(form) for form in forms} == {("version", version)}


@pytest.mark.parametrize(
    "text", ["civitai.com/models/4?modelVersionId=7#token=SeCrEt0123", "www.CivitAI.red/models/4/x?modelVersionId=7"]
)
def test_an_address_may_be_typed_without_its_scheme(text: str) -> None:
    ref = parse_reference(text)
    assert (ref.kind, ref.model, ref.id) == ("version", 4, 7)
    assert "SeCrEt0123" not in repr(ref)


@pytest.mark.parametrize("text", ["128713", "1", "007", "9999999"])
def test_a_bare_number_is_refused_because_it_may_be_a_model_or_a_version(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_reference(text)
    assert "model:" in str(caught.value.hint)
    assert "version:" in str(caught.value.hint)


@pytest.mark.parametrize("length", [8, 10, 12, 64])
def test_a_hash_of_a_length_that_the_site_knows_is_taken_in_lower_case(length: int) -> None:
    ref = parse_reference(SHA256[:length])
    assert (ref.kind, ref.digits) == ("hash", SHA256[:length].lower())


def test_a_hash_may_say_its_kind() -> None:
    assert parse_reference(f"sha256:{SHA256}").digits == SHA256.lower()


@pytest.mark.parametrize("length", [1, 7, 9, 11, 13, 40, 63, 65, 128])
def test_hex_digits_of_any_other_length_are_refused(length: int) -> None:
    with pytest.raises(UsageError):
        parse_reference((SHA256 * 2)[:length])


@pytest.mark.parametrize(
    ("text", "repo", "revision", "pattern"),
    [
        ("hf:owner/repo", "owner/repo", None, None),
        ("hf:owner/repo:*.pt", "owner/repo", None, "*.pt"),
        ("hf:owner/repo@main", "owner/repo", "main", None),
        ("hf:datasets/owner/repo@main:*.pt", "datasets/owner/repo", "main", "*.pt"),
        ("hf:owner/repo@refs/pr/3:styles/*.pt", "owner/repo", "refs/pr/3", "styles/*.pt"),
        (f"hf:o-w.n_er/re.po-1@{'0a' * 20}:a b.pt", "o-w.n_er/re.po-1", "0a" * 20, "a b.pt"),
    ],
)
def test_a_place_on_the_hub_has_repository_revision_and_pattern(
    text: str, repo: str, revision: str | None, pattern: str | None
) -> None:
    ref = parse_reference(text)
    assert (ref.kind, ref.repo, ref.revision, ref.pattern) == ("hub", repo, revision, pattern)


@pytest.mark.parametrize("host", ["https://huggingface.co", "https://hf.co", "huggingface.co", "http://www.HF.co"])
@pytest.mark.parametrize(
    ("path", "repo", "revision", "pattern"),
    [
        ("o/r", "o/r", None, None),
        ("o/r/", "o/r", None, None),
        ("o/r/tree/main", "o/r", "main", None),
        ("o/r/tree/main/styles/old", "o/r", "main", "styles/old/"),
        ("o/r/blob/main/styles/a.pt", "o/r", "main", "styles/a.pt"),
        ("o/r/resolve/main/a%20b.pt?download=true", "o/r", "main", "a b.pt"),
        ("o/r/blob/refs%2Fpr%2F3/a[1].pt", "o/r", "refs/pr/3", "a[[]1].pt"),
        ("datasets/o/r", "datasets/o/r", None, None),
        ("datasets/o/r/blob/v1/a.pt", "datasets/o/r", "v1", "a.pt"),
        ("o/r/tree/main/styles/a.pt", "o/r", "main", "styles/a.pt"),
        ("o/r/tree/refs/pr/3/styles", "o/r", "refs/pr/3", "styles/"),
        ("api/models/o/r", "o/r", None, None),
        ("api/datasets/o/r/tree/v1/styles", "datasets/o/r", "v1", "styles/"),
    ],
)
def test_a_page_of_the_hub_means_its_repository_folder_or_file(
    host: str, path: str, repo: str, revision: str | None, pattern: str | None
) -> None:
    ref = parse_reference(f"{host}/{path}")
    assert (ref.kind, ref.repo, ref.revision, ref.pattern) == ("hub", repo, revision, pattern)


def test_the_hub_that_the_environment_names_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://mirror.example/o/r/blob/main/a.pt"
    assert parse_reference(url).kind == "url"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert parse_reference(url).kind == "hub"


def test_the_archive_that_the_environment_names_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://archive.example/models/5?modelVersionId=6"
    assert parse_reference(url).kind == "url"
    monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", "https://archive.example/api")
    assert meant(url) == ("version", 6)
    monkeypatch.setenv("HNETKIT_CIVARCHIVE_URL", "off")
    assert parse_reference(url).kind == "url"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "models",
        "datasets/o",
        "spaces/o/r",
        "o/r/discussions/3",
        "o/r/blob/main",
        "o/r/commits/main",
    ],
)
def test_a_page_of_the_hub_that_shows_no_file_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="not a page of a repository or of its file"):
        parse_reference(f"https://huggingface.co/{path}")


@pytest.mark.parametrize(
    "text",
    [
        *("hf:repo", "hf:", "hf:a/b/c", "hf:owner/repo@", "hf:owner/ repo", "hf:/etc/passwd"),
        *("hf:../..", "hf:owner/..", "hf:datasets/../..", "hf://../..", "urn:air:sd1:hypernet:huggingface:../.."),
        *("https://huggingface.co/../..", "https://huggingface.co/owner/../resolve/main/ink.pt"),
    ],
)
def test_a_hub_place_without_owner_and_repository_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/models/5",
        "https://civitai.com.evil.net/models/5",
        "https://evilcivitai.com/models/5",
        "https://evil.net/civitai.com/models/5",
        "https://evil.net/?https://civitai.com/models/5",
        "https://huggingface.co.evil.net/o/r/resolve/main/a.pt",
        "https://evil.net/huggingface.co/o/r/resolve/main/a.pt",
    ],
)
def test_an_address_of_another_host_is_a_plain_file_and_never_a_number(url: str) -> None:
    ref = parse_reference(url)
    assert (ref.kind, ref.url, ref.id) == ("url", url, 0)


@pytest.mark.parametrize(
    "authority",
    ["SeCrEt0123@civitai.com", "user:SeCrEt0123@evil.net", "civitai.com@evil.net", "user:Se@CrEt0123@evil.net", ":@h"],
)
def test_an_address_with_a_user_or_a_password_is_refused_without_showing_it(authority: str) -> None:
    with pytest.raises(UsageError, match="no user or password") as caught:
        parse_reference(f"https://{authority}/models/5")
    assert "SeCrEt0123" not in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    "path",
    ["/", "", "/user/inkfox", "/models", "/models/", "/models/abc", "/models/12x", "/images/5", "/search?models/5"],
)
def test_a_civitai_page_of_something_else_is_refused(path: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(f"https://civitai.com{path}")


def test_the_base_that_the_environment_names_is_a_civitai_too(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://127.0.0.1:7999/models/5?modelVersionId=6"
    assert parse_reference(url).kind == "url"
    monkeypatch.setenv("HNETKIT_CIVITAI_URL", "http://127.0.0.1:7999/api/v1/")
    assert meant(url) == ("version", 6)
    assert parse_reference(url.replace("7999", "7998")).kind == "url", "another port is another origin"


@pytest.mark.parametrize(
    "text", ["https://[", "https://[::1/models/5", "http://civitai.com\u2100/models/5", "https://"]
)
def test_a_broken_address_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://civitai.com/models/1?modelVersionId=\u00b2",
        "https://civitai.com/models/1?modelVersionId=\u2460",
        f"https://civitai.com/models/{'9' * 5000}",
        f"https://civitai.com/models/1?modelVersionId={'9' * 5000}",
    ],
)
def test_a_number_that_no_site_gave_out_is_no_crash(text: str) -> None:
    try:
        ref = parse_reference(text)
    except UsageError:
        return
    assert ref.kind in ("model", "version")


def test_a_token_in_a_pasted_address_is_kept_nowhere() -> None:
    """The site itself documents `?token=`, so people paste such addresses; messages show what a reference says."""
    ref = parse_reference("https://civitai.com/api/download/models/910205?type=Model&token=SeCrEt0123")
    assert ref.id == 910205
    assert "SeCrEt0123" not in repr(ref)
    with pytest.raises(UsageError) as caught:
        parse_reference("https://civitai.com/user/inkfox?token=SeCrEt0123")
    assert "SeCrEt0123" not in f"{caught.value} {caught.value.hint}"


def _parsed(text: str) -> Reference | None:
    try:
        return parse_reference(text)
    except UsageError as error:
        refusal = error
    assert str(refusal).isprintable()
    assert refusal.hint
    return None


@given(st.text())
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    _parsed(text)


PIECES = ["https://", "http://", "civitai.com", "civitai.red", ":", "@", "/", "\\", "[", "]", "?", "#", "%", "models/"]
PIECES += ["12", "modelVersionId=", "\u00b2", "\u0663", "hf:", "urn:air:", "model:", "version:", "..", "*", "\n", "\0"]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
def test_any_text_of_an_address_pieces_is_a_reference_or_a_usage_error(text: str) -> None:
    ref = _parsed(text)
    if ref is not None and ref.kind in ("model", "version"):
        assert ref.id >= 0


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
def test_whatever_follows_a_host_of_civitai_is_no_plain_file(rest: str) -> None:
    """Else a mistyped page would be fetched as a file from a host that hears the token."""
    ref = _parsed(f"https://civitai.com/{rest}")
    assert ref is None or ref.kind in ("model", "version")


@pytest.mark.parametrize(
    "text",
    [
        "user:SeCrEt0123@evil.net/x.pt",
        "https:user:SeCrEt0123@civitai.com/models/5",
        "http:/user:SeCrEt0123@evil.net/x.pt",
        "hf:user:SeCrEt0123@huggingface.co/a/b",
        "civitai.net/models/4#token=SeCrEt0123",
        "model:4&token=SeCrEt0123",
    ],
)
def test_what_means_nothing_is_shown_without_what_may_be_secret(text: str) -> None:
    with pytest.raises(UsageError, match=r"not a recognized reference|is not civitai\.com") as caught:
        parse_reference(text)
    assert "SeCrEt0123" not in f"{caught.value} {caught.value.hint}"


def test_what_means_nothing_is_shown_as_far_as_it_holds_no_secret() -> None:
    with pytest.raises(UsageError, match="hf:owner/repo@ma in: not a recognized reference"):
        parse_reference("hf:owner/repo@ma in")


@pytest.mark.parametrize("sign", ["=", "a=", "git clone -a 1 ", "urn:air:a:", "[](", "a(", "://"])
def test_a_long_text_that_is_no_reference_is_refused_at_once(sign: str) -> None:
    text = (sign * 60_000)[:60_000].strip()
    start = time.process_time()
    with pytest.raises(UsageError):
        parse_reference(text)
    assert time.process_time() - start < 2
