"""The model card: fields that the hub reads, and words of strangers that stay words."""

from __future__ import annotations

import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from support.fake_sites import Sites, World
from support.fake_sites.uploads import card_errors

import hnetkit
from hnetkit.cli import run
from hnetkit.sharing import plan_share
from hnetkit.sharing.card import CardFile, CardNetwork, CardPicture, card_text
from hnetkit.sharing.licenses import License, common_license, license_of, objections
from hnetkit.sources.export import export_library
from hnetkit.text import in_code, in_markdown, in_yaml, printable

SITE: dict[str, Any] = {
    **{"source": "civitai", "model_id": "7", "model": "Ink", "creator": "someone", "type": "Hypernetwork"},
    **{"tags": ["lines", "style"], "nsfw_level": 1, "availability": "Public", "commercial_use": ["Image", "Sell"]},
    **{"allow_no_credit": False, "allow_derivatives": True, "allow_different_license": False, "downloads": 3},
    **{"model_state": "listed", "description": "<p>Soft lines.</p><p>Best at 0.8</p>", "version_id": "8"},
    **{"version": "v1", "site_base_model": "SD 1.5", "published_at": "2023-02-01", "early_access_until": None},
    **{"trained_words": ["inkstyle"], "strength": 0.8, "version_state": "listed"},
    **{"link": "https://civitai.com/models/7?modelVersionId=8", "is_told": False},
}
ROW: dict[str, Any] = {
    **{"name": "ink", "base_model": "sd1", "layer_structure": [1, 2, 1], "activation": "relu", "layer_norm": True},
    **{"activate_output": False, "dropout": [0, 0], "widths": [320, 768], "parameters": 1000, "dtype": "fp16"},
    **{"step": 9000, "trained_on": "nai [925997e9]", "content_hash": "h1:" + "a" * 64, "sites": [SITE], "sidecars": []},
}


def network(stem: str = "ink", **row: Any) -> CardNetwork:
    known = {**ROW, **row}
    files = CardFile(f"{stem}.safetensors", 2000, "b" * 64), CardFile(f"{stem}.pt", 3000, "c" * 64)
    return CardNetwork(stem, known, license_of(known["sites"]), files)


def fields(text: str) -> dict[str, Any]:
    assert list(card_errors(text)) == []
    return dict(ModelCard(text).data.to_dict())


class Seen(HTMLParser):
    """What a person sees of a rendered card, and the elements that it consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags, self.links = "", set[str](), set[str]()
        self.outside_code, self._within = "", list[str]()
        self.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))

    def handle_data(self, data: str) -> None:
        self.words += data
        self.outside_code += " " if {"code", "a"} & set(self._within) else data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._within.append(tag)
        self.links |= {str(value) for key, value in attrs if key in ("href", "src")}

    def handle_endtag(self, tag: str) -> None:
        self._within.remove(tag)


def test_the_fields_of_a_card_are_those_that_the_hub_reads() -> None:
    pictures = [CardPicture("images/1.png", "a castle <hypernet:ink:0.8>"), CardPicture("images/2.jpg", None)]
    text = card_text([network()], pictures, network().license)
    assert fields(text) == {
        "license": "other",
        "license_name": "permissions-stated-at-civitai",
        "license_link": "https://civitai.com/models/7?modelVersionId=8",
        "library_name": "hnetkit",
        "pipeline_tag": "text-to-image",
        "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "base_model_relation": "adapter",
        "tags": ["hypernetwork", "stable-diffusion", "lines", "style"],
        "instance_prompt": "inkstyle",
        "widget": [
            {"text": "a castle <hypernet:ink:0.8>", "output": {"url": "images/1.png"}},
            {"text": "-", "output": {"url": "images/2.jpg"}},
        ],
    }


def test_the_text_of_a_card_says_what_is_known() -> None:
    seen = Seen(card_text([network()], [], network().license, repo="me/ink").split("---\n", 2)[2])
    for words in (
        "For: Stable Diffusion 1",
        "Trigger words: inkstyle",
        "Strength: 0.8 (in its example pictures)",
        "Layer structure: [1, 2, 1] relu, layer norm",
        "Trained: 9,000 steps",
        "Source: Ink, v1 at Civitai",
        "Permissions: commercial use: Image, Sell; without credit: no; derivatives: yes; another license: no",
        '"me/ink", weight_name="ink.safetensors"',
        "hnetkit pull hf:me/ink:ink.safetensors",
        "<hypernet:ink:0.8>",
        "Civitai says:",
        "Best at 0.8",
    ):
        assert words in seen.words, words
    assert {"https://civitai.com/user/someone", SITE["link"]} == seen.links


@pytest.mark.parametrize(
    ("repository", "has_page"),
    [("someone/nets", True), ("datasets/someone/nets", True), ("archivist/nets:Civitai/someone/Ink", False)],
)
def test_a_creator_has_a_page_at_the_hub_where_the_repository_is_theirs(repository: str, has_page: bool) -> None:
    site = {**SITE, "source": "huggingface", "model_id": repository, "link": "https://huggingface.co/nets"}
    shared = network(sites=[site])
    seen = Seen(card_text([shared], [], shared.license).split("---\n", 2)[2])
    assert "Creator: someone" in seen.words
    assert ("https://huggingface.co/someone" in seen.links) == has_page


def test_what_is_not_known_is_left_out() -> None:
    bare = network(sites=[], base_model="unknown", step=None, trained_on=None)
    text = card_text([bare], [], bare.license)
    assert fields(text) == {
        "license": "unknown",
        "library_name": "hnetkit",
        "pipeline_tag": "text-to-image",
        "tags": ["hypernetwork", "stable-diffusion"],
    }
    for word in ("None", "For:", "Trigger", "Strength", "Trained", "Source", "Creator", "Permissions", "Gallery"):
        assert word not in text, word


@pytest.mark.parametrize(
    ("own", "stated", "repository"),
    [
        ("sd1", "SD 1.4", "CompVis/stable-diffusion-v1-4"),
        ("sd1", None, "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("sd1", "SDXL 1.0", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("sd1-or-sd2", "SD 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("sd1-or-sd2", None, None),
        ("sd2", "SD 2.1 768", "stabilityai/stable-diffusion-2-1"),
        ("sd2", "SD 2.1", None),
        ("sd2", "SD 1.5", None),
        ("sdxl", "Pony", "stabilityai/stable-diffusion-xl-base-1.0"),
        ("unknown", "SD 1.5", None),
    ],
)
def test_a_base_model_is_named_where_it_is_certain(own: str, stated: str | None, repository: str | None) -> None:
    text = card_text([network(base_model=own, sites=[{**SITE, "site_base_model": stated}])], [], License("mit"))
    assert fields(text).get("base_model") == repository


def test_several_networks_have_one_card_and_each_its_own_facts() -> None:
    other = network("wash", base_model="sdxl", sites=[])
    both = card_text([network(), other], [], common_license([License("mit"), License("mit")]))
    found = fields(both)
    assert found["base_model"] == [network().base_repository, other.base_repository]
    assert found["tags"][:3] == ["hypernetwork", "stable-diffusion", "stable-diffusion-xl"]
    assert (found["license"], found.get("instance_prompt")) == ("mit", None)
    assert [line for line in both.splitlines() if line.startswith("#")] == [
        "# ink, wash",
        "## Use",
        "## ink",
        "## wash",
    ]
    mixed = common_license([License("mit"), License()])
    assert mixed.fields == {"license": "other", "license_name": "see-each-network"}


def test_adult_networks_are_marked_as_the_hub_marks_them() -> None:
    tags = fields(card_text([network(sites=[{**SITE, "nsfw_level": 1 | 8}])], [], License("mit")))["tags"]
    assert "not-for-all-audiences" in tags


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_state": "archived"}, "its owner archived it at civitai"),
        ({"model_state": "taken-down"}, "civitai took it down"),
        ({"version_state": "gone"}, "it is no longer at civitai"),
        ({"availability": "Private"}, "it is private at civitai"),
        ({"early_access_until": "2999-01-02T00:00:00.000Z"}, "early access at civitai until 2999-01-02"),
        ({"early_access_until": "2023-01-02T00:00:00.000Z"}, None),
        ({}, None),
    ],
)
def test_a_record_that_speaks_against_sharing_is_named(changed: dict[str, Any], said: str | None) -> None:
    assert list(objections([{**SITE, **changed}], None)) == ([] if said is None else [said])


def test_another_license_than_the_owner_allows_is_named() -> None:
    assert list(objections([SITE], "mit")) == ["its owner at civitai does not allow another license"]
    assert list(objections([{**SITE, "allow_different_license": True}], "mit")) == []


def test_a_license_of_the_hub_is_taken_from_its_repository() -> None:
    hub = {**SITE, "source": "huggingface", "link": "https://huggingface.co/a/b", "commercial_use": None}
    assert license_of([{**hub, "tags": ["license:creativeml-openrail-m", "x"]}]) == License("creativeml-openrail-m")
    assert license_of([{**hub, "tags": ["license:unknown"]}]) == License()
    assert license_of([{**hub, "tags": ["license:<b>"]}]) == License()


def test_what_a_dump_tells_for_a_site_is_no_license_until_the_site_is_asked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anybody can make up a dump, or an export, that has the hash of a network."""
    with Sites(World.make(3, plain=True)) as site:
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
        model = site.world.models[0]
        assert run(["pull", f"model:{model['id']}", "-q"]) == 0
        with hnetkit.Library() as library:
            (row,) = library.networks()
            pulled = fields((plan_share(library, [row["content_hash"]])).card())
            assert pulled["license_name"] == "permissions-stated-at-civitai"
            export_library(library, tmp_path / "told.jsonl")
            network_path = Path(row["files"][0]["path"])
        (tmp_path / "dump.jsonl").write_text(json.dumps(model))
        for way in (["import", str(tmp_path / "told.jsonl")], ["identify", "--dump", str(tmp_path / "dump.jsonl")]):
            monkeypatch.setenv("HNETKIT_HOME", str(tmp_path / way[0]))
            mine = tmp_path / f"of {way[0]}"
            mine.mkdir()
            shutil.copy(network_path, mine / "ink.pt")
            assert run(["scan", str(mine)]) == run(way) == 0
            assert "told by" in run_out(["show", "ink"], capsys)
            with hnetkit.Library() as library:
                plan = plan_share(library, ["ink"])
            assert plan.license == License()
            assert any(f"hnetkit pull model:{model['id']} asks civitai" in doubt for doubt in plan.doubts)
            assert "Permissions" not in plan.card()
            assert "the site was not asked" in plan.card()
            assert run(["pull", f"model:{model['id']}", "-q"]) == 0
            assert "told by" not in run_out(["show", "ink"], capsys)
            with hnetkit.Library() as library:
                assert plan_share(library, ["ink"]).license.name == "permissions-stated-at-civitai"


def run_out(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert run(command) == 0
    return capsys.readouterr().out


def test_a_network_of_a_site_is_shared_with_its_creator_and_words(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sites(World.make(3, plain=True)) as site:
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", site.civitai_url)
        assert run(["pull", f"model:{site.world.models[0]['id']}", "-q"]) == 0
    with hnetkit.Library() as library:
        (row,) = library.networks()
        (record,) = library.record(row["content_hash"])["sites"]
        plan = plan_share(library, [row["content_hash"]])
        made = plan.write(tmp_path / "out")
    text = (made.path / "README.md").read_text()
    assert fields(text)["license_link"] == record["link"]
    assert record["link"] in text
    assert in_markdown(record["creator"]) in text
    assert all(in_code(word) in text for word in record["trained_words"] or ())


# --- strangers

SIGNS = "`*_[](){}<>#+-.!|~$&\\\"'\n\r\t:;,?@%^=/ \u2028\u200b\u00e9\U0001f600a1\x07"
ATTACKS = st.sampled_from(["</td><script>alert(1)</script>", "![x](http://y/z.png)", "---\nlicense: mit\n---\n"])
TEXTS = st.one_of(st.text(st.sampled_from(SIGNS), max_size=30), st.text(max_size=30), ATTACKS)
WORDS = TEXTS.filter(lambda text: text.isprintable() and text.strip() == text != "")


def squeezed(text: str) -> str:
    return " ".join(text.split())


@given(title=WORDS, creator=WORDS, words=st.lists(WORDS, max_size=3), prompt=TEXTS, tag=WORDS)
@settings(max_examples=60, deadline=None)
def test_words_of_strangers_come_back_from_the_fields_unchanged(
    title: str, creator: str, words: list[str], prompt: str, tag: str
) -> None:
    site = {**SITE, "model": title, "creator": creator, "trained_words": words, "tags": [tag]}
    pictures = [CardPicture("images/1.png", prompt or None)]
    found = fields(card_text([network(sites=[site])], pictures, License("other", title, "https://x/y")))
    assert found["license_name"] == title
    assert found["widget"][0]["text"] == (prompt or "-")
    assert found.get("instance_prompt") == (", ".join(dict.fromkeys(words)) or None)
    assert ":" in tag or tag in found["tags"]


@given(stem=WORDS, title=WORDS, creator=WORDS, word=WORDS, description=TEXTS)
@settings(max_examples=60, deadline=None)
def test_words_of_strangers_are_seen_as_they_are_and_are_no_markup(
    stem: str, title: str, creator: str, word: str, description: str
) -> None:
    site = {**SITE, "model": title, "creator": creator, "trained_words": [word], "description": description}
    text = card_text([network(stem, sites=[site])], [CardPicture("images/1.png", None)], License("mit"))
    body = text.split("\n---\n", 1)[1].replace("<Gallery />\n", "")
    seen = Seen(body)
    plain = {"h1", "h2", "p", "ul", "li", "strong", "a", "code", "pre", "table", "thead", "tbody", "tr", "th", "td"}
    assert seen.tags <= plain | {"blockquote"}
    own = re.compile(r"https://civitai\.com/(?:user/[\w.%~-]*|models/7\?modelVersionId=8)")
    assert all(own.fullmatch(link) for link in seen.links), seen.links
    words = squeezed(seen.words)
    for said in (stem, title, creator, word):
        assert squeezed(said) in words, said


# what GitHub's Markdown makes a link of without any mark, as the hub does
LINKED_BARE = re.compile(r"(?i)(?:https?|ftp)://[^\s<]|\bwww\.[^\s<]|[\w.+-]@[\w-]+\.\w")


@pytest.mark.parametrize(
    "text",
    [
        "log in at https://evil.example/login?a=1#b now",
        "HTTP://evil.example",
        "(www.evil.example/x), WWW.evil.example",
        "mail me@evil.example or mailto:you@evil.example",
        "\u898b\u3066https://evil.example/\u3001\u306d",
        "`https://evil.example`",
        "https://`evil`.example",
        "ftp://evil.example",
        "<https://evil.example>",
        "[a](https://evil.example)",
    ],
)
def test_an_address_in_the_words_of_a_stranger_is_no_link(text: str) -> None:
    description = f"first line\n{text}"
    site = {**SITE, "model": text, "creator": text, "description": description}
    for written in (in_markdown(text), card_text([network(sites=[site])], [], License("mit")).partition("\n# ")[2]):
        seen = Seen(written)
        assert not LINKED_BARE.search(seen.outside_code), written
        assert not any("evil" in link.partition("civitai.com")[0] for link in seen.links)
    assert squeezed(Seen(in_markdown(text)).words) == squeezed(text)


def test_an_address_is_looked_for_in_time_by_the_length_of_the_text_alone() -> None:
    begun = time.process_time()
    for text in ("a" * 200_000, "a." * 100_000, "a@" * 100_000, "www" * 60_000, "http:/" * 30_000, "\\" * 200_000):
        in_markdown(text)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize(
    "text", [r"saber \(fate\)", r"\\(x^2\\) \[y\]", r"\(\(a\)\)", r"\(https://evil.example/\)", r"\ \\ a\b"]
)
def test_a_bracket_that_a_prompt_escapes_begins_no_formula(text: str) -> None:
    r"""The hub shows as one what stands between ``\\(`` and ``\\)`` in the source, or ``\(`` and ``\)`` on the page."""
    written = in_markdown(text)
    seen = Seen(written)
    assert squeezed(seen.words) == squeezed(text)
    assert not re.search(r"\\[()\[\]]", seen.outside_code)
    assert not re.search(r"\\\\[()\[\]]", re.sub(r"`[^`]*`", "", written))


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_text_in_markdown_in_code_and_in_yaml_is_that_text(text: str) -> None:
    import yaml

    assert yaml.safe_load(f"a: {in_yaml(text)}\nb: 1") == {"a": text, "b": 1}
    shown = squeezed(printable(" ".join(text.split())))
    seen = Seen(in_markdown(text))
    assert (squeezed(seen.words), seen.tags - {"p", "code"}) == (shown, set())
    assert not LINKED_BARE.search(seen.outside_code)
    if text.strip():
        seen = Seen(f"x {in_code(text)} y")
        assert (squeezed(seen.words), seen.tags) == (squeezed(f"x {printable(text)} y"), {"p", "code"})
