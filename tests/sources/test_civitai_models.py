"""Civitai's JSON in every shape it comes in, and in shapes it never came in: data or None, never an exception."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_sites import World
from support.fake_sites.civitai import dropped_empty
from support.fake_sites.world import real_models

from hnetkit.registry import Registry
from hnetkit.sources.civitai_models import (
    MOST_HTML,
    CivitaiModel,
    CivitaiVersion,
    parse_model,
    parse_version,
    plain_text,
)
from hnetkit.sources.sync import store_model

HTML = [
    "<p>",
    "</p>",
    "<![",
    "<!",
    "<!--",
    "-->",
    "]]>",
    "<script>",
    "</style>",
    "&#x1b;",
    "&#27;[2J",
    "&lt;",
    "&",
    "<",
]
HTML += [
    ">",
    "<a href='x",
    "<?",
    "\x1b]0;x\x07",
    "\x9b2J",
    "\r",
    "\0",
    "if",
    "CDATA[",
    "word",
    "\ud800",
    "<br/>",
    "\u202e",
]
texts = (
    st.text(st.characters(), max_size=20)  # lone surrogates too: JSON can spell them
    | st.lists(st.sampled_from(HTML), max_size=8).map("".join)
    | st.sampled_from(
        ["", "0", "1", "-1", "nan", "inf", "1e400", "\u00b2", "{Image,Sell}", "X", "Soft", "true", "0" * 64]
    )
    | st.sampled_from(["2023-02-10T18:05:00.000Z", "<hypernet:x:0.8>", "<hypernet:x:0.8.1>", "<hypernet:x:9e9>"])
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**400), 2**53, 2**31, 2**31 - 1])
    | texts
)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


def objects(**known: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects in which each known key is absent, of its kind, or anything."""
    return st.fixed_dictionaries({}, optional={key: value | anything for key, value in known.items()})


ids = st.integers(1, 9)
numbers = st.integers(-3, 10**7) | st.floats()
words = st.lists(texts, max_size=3)
images = objects(
    url=texts,
    type=texts,
    nsfwLevel=numbers | texts,
    nsfw=texts | st.booleans(),
    width=numbers,
    height=numbers,
    meta=st.dictionaries(
        st.sampled_from(["Hypernet", "Hypernet strength", "Hypernetwork strength", "prompt"]), anything
    ),
)
files = objects(
    id=ids,
    name=texts,
    type=texts,
    sizeKB=numbers,
    metadata=objects(format=texts, fp=texts, size=texts),
    pickleScanResult=texts,
    hashes=st.dictionaries(st.sampled_from(["SHA256", "sha256", "AutoV1", "CRC32"]) | texts, anything, max_size=3),
    primary=st.booleans(),
)
versions = objects(
    id=ids,
    modelId=ids,
    name=texts,
    baseModel=texts,
    publishedAt=texts,
    earlyAccessEndsAt=texts,
    earlyAccessDeadline=texts,
    availability=texts,
    usageControl=texts,
    nsfwLevel=numbers,
    trainedWords=words,
    files=st.lists(files | anything, max_size=3),
    images=st.lists(images | anything, max_size=3),
)
models = objects(
    name=texts,
    type=texts,
    creator=objects(username=texts | numbers),
    description=texts,
    tags=words | st.lists(objects(name=texts), max_size=2),
    nsfwLevel=numbers,
    nsfw=st.booleans() | texts,
    availability=texts,
    allowCommercialUse=words | texts,
    allowNoCredit=st.booleans(),
    allowDerivatives=st.booleans(),
    allowDifferentLicense=st.booleans(),
    stats=objects(downloadCount=numbers),
    mode=texts,
    modelVersions=st.lists(versions | anything, max_size=3),
)
numbered_models = models.flatmap(lambda model: ids.map(lambda id: {**model, "id": id}))


def has_right_types(model: CivitaiModel) -> bool:
    """Whether everything that the rest of hnetkit relies on holds."""
    assert 0 < model.id < 2**31
    assert model.name
    assert model.description is None or all(line.isprintable() for line in model.description.split("\n"))
    assert model.creator is None or (isinstance(model.creator, str) and model.creator)
    assert model.state in ("listed", "archived", "taken-down")
    assert all(isinstance(number, int | None) for number in (model.nsfw_level, model.downloads))
    for several in (model.tags, model.commercial_use):
        assert several is None or all(isinstance(text, str) and text for text in several)
    order = [(version.published_at or "", version.id) for version in model.versions]
    assert order == sorted(order, reverse=True)
    return all(map(_version_has_right_types, model.versions))


def _version_has_right_types(version: CivitaiVersion) -> bool:
    assert 0 < version.id < 2**31
    assert version.name
    assert version.trained_words is None or all(isinstance(text, str) and text for text in version.trained_words)
    assert version.strength is None or 0 < version.strength <= 2
    for text in (version.base_model, version.published_at, version.early_access_until, version.usage):
        assert text is None or (isinstance(text, str) and text)
    for file in version.files:
        assert 0 < file.id < 2**31
        assert file.name
        assert file.size_bytes is None or 0 <= file.size_bytes < 2**50
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        assert all(isinstance(k, str) and isinstance(v, str) for k, v in file.hashes.items())
    for image in version.images:
        assert image.url
        assert all(isinstance(number, int | None) for number in (image.nsfw_level, image.width, image.height))
    return True


# --- whatever comes


@given(anything)
def test_any_json_is_a_model_or_none(data: Any) -> None:
    model = parse_model(data)
    assert model is None or has_right_types(model)


@settings(max_examples=200)
@given(numbered_models)
def test_a_model_with_anything_in_any_field_is_a_model(data: dict[str, Any]) -> None:
    model = parse_model(data)
    assert model is not None
    assert model.id == data["id"]
    assert has_right_types(model)


@given(versions)
def test_a_version_with_anything_in_any_field_is_a_version_or_none(data: dict[str, Any]) -> None:
    version = parse_version(data)
    assert version is None or _version_has_right_types(version)


SOUND = World.make(39).models


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _places(item, (*path, key))


@st.composite
def damaged_models(draw: st.DrawFn) -> dict[str, Any]:
    """Sound models with anything, or nothing, at one place."""
    model: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(SOUND)))
    path = draw(st.sampled_from([path for path in _places(model) if path != ("id",)]))
    holder: Any = model
    for key in path[:-1]:
        holder = holder[key]
    if isinstance(holder, dict) and draw(st.booleans()):
        del holder[path[-1]]
    else:
        holder[path[-1]] = draw(anything)
    return model


@given(damaged_models())
def test_a_sound_model_survives_any_value_at_any_single_place(data: dict[str, Any]) -> None:
    model = parse_model(data)
    assert model is not None
    assert model.id == data["id"]
    assert has_right_types(model)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("shapes") / "registry.db") as registry:
        yield registry


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=numbered_models | damaged_models())
def test_a_model_with_anything_in_any_field_can_be_kept_and_is_given_back(
    registry: Registry, data: dict[str, Any]
) -> None:
    model = parse_model(data)
    assert model is not None
    with registry.write():
        store_model(registry, model)
        rows = registry.catalogue.file_rows("civitai", str(model.id))
    assert rows.keys() >= {(str(version.id), str(file.id)) for version in model.versions for file in version.files}
    assert repr(registry.catalogue.raw("civitai", str(model.id))) == repr(json.loads(json.dumps(data)))
    assert registry.catalogue.model("civitai", str(model.id))
    for row in rows.values():
        registry.catalogue.images(registry.catalogue.version_row(row))


def _spelled(value: Any, text: str) -> Any:
    """`value` with `text` behind every string in it; times and kinds of hashes stay."""
    if isinstance(value, dict):
        return {key: _spelled(item, text) for key, item in value.items()}
    if isinstance(value, list):
        return [_spelled(item, text) for item in value]
    return value + text if isinstance(value, str) else value


@pytest.mark.parametrize("text", ["\ud800", "\0", "\x1b[2J", "\udce4\udcff", "\U0001f98a"])
def test_a_model_with_odd_letters_in_every_string_can_be_kept(registry: Registry, text: str) -> None:
    """JSON can spell half a letter (`"\\ud800"`), which no UTF-8 holds."""
    data = json.loads(json.dumps(_spelled(SOUND[4], text)))
    model = parse_model(data)
    assert model is not None
    with registry.write():
        store_model(registry, model)
    assert registry.catalogue.raw("civitai", str(model.id)) == data
    row = registry.catalogue.model("civitai", str(model.id))
    assert row["name"].startswith(SOUND[4]["name"])
    row["name"].encode("utf-8")


# --- what it means


def test_the_list_and_the_answer_by_id_mean_the_same_model() -> None:
    """By id, keys with null or an empty list are left out, and pictures have no number."""
    for listed in SOUND:
        one, other = parse_model(listed), parse_model(dropped_empty(listed))
        assert one is not None
        assert other is not None
        for version, short in zip(one.versions, other.versions, strict=True):
            assert (version.id, version.files, version.images) == (short.id, short.files, short.images)
            assert short.trained_words == (version.trained_words or None)
            assert (version.strength, version.published_at) == (short.strength, short.published_at)
        assert (one.creator, one.description, one.downloads) == (other.creator, other.description, other.downloads)
        assert other.commercial_use == (one.commercial_use if listed["allowCommercialUse"] != [] else None)


def test_what_a_sound_answer_says_is_read() -> None:
    data = SOUND[0]
    model = parse_model(data)
    assert model is not None
    (version,), raw = model.versions, data["modelVersions"][0]
    (file,), said = version.files, raw["files"][0]
    assert (model.name, model.type, model.creator) == (data["name"], "Hypernetwork", data["creator"]["username"])
    assert model.description == data["description"].removeprefix("<p>").removesuffix("</p>")
    assert (model.downloads, model.nsfw_level) == (data["stats"]["downloadCount"], data["nsfwLevel"])
    assert (version.id, version.base_model, version.published_at) == (raw["id"], "SD 1.5", raw["publishedAt"])
    assert (file.id, file.name, file.format, file.fp) == (said["id"], said["name"], "PickleTensor", "fp16")
    assert file.size_bytes == said["sizeKB"] * 1024
    assert file.sha256 == said["hashes"]["SHA256"].lower()
    assert file.is_primary
    assert [image.url for image in version.images] == [image["url"] for image in raw["images"]]
    assert model.raw == data


def test_the_real_models_of_2023_are_read(shared: Path) -> None:
    real = real_models()
    assert len(real) == 12
    for data in real:
        model = parse_model(data)
        assert model is not None
        assert has_right_types(model)
        assert (model.type, model.name) == ("Hypernetwork", data["name"])
        assert model.nsfw_level in (1, 28)
        assert model.versions
        assert all(version.files for version in model.versions)


@pytest.mark.parametrize("data", [None, [], "x", 5, {}, {"id": None}, {"id": 0}, {"id": -1}, {"id": True}, {"id": "x"}])
def test_what_has_no_number_is_no_model(data: Any) -> None:
    assert parse_model(data) is None
    assert parse_version(data) is None


def test_absent_is_unknown_and_empty_is_none() -> None:
    unknown, empty = parse_model({"id": 1}), parse_model({"id": 1, "tags": [], "allowCommercialUse": []})
    assert unknown is not None
    assert empty is not None
    assert (unknown.tags, unknown.commercial_use, unknown.downloads, unknown.allow_no_credit) == (None,) * 4
    assert (empty.tags, empty.commercial_use) == ((), ())
    assert (unknown.state, unknown.versions, unknown.name) == ("listed", (), "model 1")


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ({"nsfwLevel": 5}, 5),
        ({"nsfwLevel": "Mature"}, 4),
        ({"nsfwLevel": "X", "nsfw": False}, 8),
        ({"nsfw": "None"}, 1),
        ({"nsfw": "Soft"}, 2),
        ({"nsfw": True}, 28),
        ({"nsfw": False}, 1),
        ({"nsfwLevel": None, "nsfw": True}, 28),
        ({"nsfwLevel": None, "nsfw": "X"}, 8),
        ({}, None),
    ],
)
def test_a_level_is_bits_a_word_or_a_flag_whichever_is_there(said: dict[str, Any], level: int | None) -> None:
    model = parse_model({"id": 1, **said, "modelVersions": [{"id": 2, "images": [{"url": "u", **said}]}]})
    assert model is not None
    assert model.nsfw_level == level
    assert model.versions[0].images[0].nsfw_level == level


SHA = "CA978112CA1BBDCAFAC231B39A23DC4DA786EFF8147C4E72B9807785AFEE48BB"


def hashes_of(hashes: Any) -> tuple[dict[str, str], str | None]:
    version = parse_version({"id": 1, "files": [{"id": 2, "hashes": hashes}]})
    assert version is not None
    return dict(version.files[0].hashes), version.files[0].sha256


def test_hashes_are_an_open_dictionary_in_lower_case() -> None:
    kinds = {"SHA256": SHA, "AutoV2": SHA[:10], "SHA256_12": SHA[:12], "NEW": "AB"}
    assert hashes_of(kinds) == ({kind: value.lower() for kind, value in kinds.items()}, SHA.lower())
    assert hashes_of({"sha256": SHA})[1] == SHA.lower()


@pytest.mark.parametrize(
    "hashes", [None, {}, [], {"SHA256": None}, {"SHA256": SHA[:10]}, {"SHA256": "0" * 64}, {"X": 5}]
)
def test_a_file_without_a_usable_sha256_has_none(hashes: Any) -> None:
    assert hashes_of(hashes)[1] is None


@pytest.mark.parametrize(
    "value", ["0" * 64, "E3B0C44298FC", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
)
def test_hashes_of_nothing_are_no_hashes(value: str) -> None:
    """The site has files with all zeros, and with the hash of empty input, cut to 12 digits in AutoV3."""
    assert hashes_of({"SHA256": value, "AutoV3": value}) == ({}, None)


@pytest.mark.parametrize(
    ("metas", "strength"),
    [
        ([{"Hypernet": "a", "Hypernet strength": "0.8"}], 0.8),
        (
            [{"Hypernet": "a", "Hypernet strength": 0.8}, {"Hypernet strength": "0.4"}, {"Hypernet strength": "0.7"}],
            0.7,
        ),
        ([{"Hypernet": "a", "Hypernetwork strength": "0.5"}], 0.5),
        ([{"prompt": "x <hypernet:a:0.65> y"}], 0.65),
        ([{"prompt": "x <hypernet:a:0.6.5> y"}, None, {}, [], {"Hypernet strength": "strong"}], None),
        ([{"Hypernet strength": "0"}, {"Hypernet strength": "17"}, {"Hypernet strength": "nan"}], None),
    ],
)
def test_the_strength_is_the_median_of_what_the_pictures_were_made_with(
    metas: list[Any], strength: float | None
) -> None:
    version = parse_version({"id": 1, "images": [{"url": f"u{n}", "meta": meta} for n, meta in enumerate(metas)]})
    assert version is not None
    assert version.strength == strength


# --- descriptions


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Soft ink.</p><p>12k steps.</p>", "Soft ink.\n12k steps."),
        ("one<br/>two<li>three", "one\ntwo\nthree"),
        ("a &lt;b&gt; &amp; &eacute; &#233;", "a <b> & \u00e9 \u00e9"),
        ("<script>alert(1)</script>x<style>y{}</style>", "x"),
        ("I <3 you", "I <3 you"),
        ("<a href='https://e.vil' onclick=x>link</a>", "link"),
        ("\x1b[2Jclear\x07 \x9b31mred\x00", "[2Jclear 31mred"),
        ("&#27;[2Jclear &#x9b;x", "[2Jclear \u203ax"),
        ("right\u202eto left", "rightto left"),
        ("<p> </p>\n\n<p></p>", None),
        ("", None),
        (None, None),
        (5, None),
    ],
)
def test_a_description_is_its_text_without_tags_and_without_what_steers_a_terminal(html: Any, text: str | None) -> None:
    assert plain_text(html) == text


@pytest.mark.parametrize("space", ["&nbsp;", "\xa0", "\u3000", "\u2003", "&emsp;", "\t", "\u2009"])
def test_a_space_of_any_kind_in_a_description_keeps_words_apart(space: str) -> None:
    assert plain_text(f"<p>12k{space}steps</p>") == "12k steps"


@pytest.mark.parametrize(
    "html", ["a <![if word]> b", "a <![foo bar", "<![x[", "<!DOCTYPE [", "<!-- a", "<![CDATA[a]]>"]
)
def test_declarations_in_a_description_are_no_crash(html: str) -> None:
    """Word pastes `<![if !supportLists]>`."""
    text = plain_text(html)
    assert text is None or text.isprintable()


@given(texts | st.lists(st.sampled_from(HTML), max_size=20).map("".join))
def test_any_description_is_printable_lines_or_none(html: str) -> None:
    text = plain_text(html)
    assert text is None or (text and all(line and line.isprintable() for line in text.split("\n")))


@pytest.mark.parametrize(
    "piece", ["<!--", "<a ", "<![", "</", '<a b="', "<script>", "</script ", "<!-->", "< >", "&#", "&#x9", "<p>", "<"]
)
@pytest.mark.parametrize("end", ["", ">", "-->"])
def test_a_description_is_read_at_once_whatever_it_is_made_of(piece: str, end: str) -> None:
    """Python's own parser begins anew at each sign of these: 80 kB took it seconds."""
    started = time.process_time()
    plain_text(piece * (MOST_HTML // len(piece) - 1) + end)
    assert time.process_time() - started < 2.0


def test_what_a_description_is_longer_than_it_may_be_is_cut() -> None:
    assert plain_text("x" * (MOST_HTML + 5)) == "x" * MOST_HTML


@pytest.mark.parametrize("digits", ["9" * 6000, "x" + "f" * 6000])
def test_a_sign_of_a_number_beyond_all_signs_is_left_out(digits: str) -> None:
    assert plain_text(f"a&#{digits};b") == "a b"
