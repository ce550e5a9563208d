"""From tags and options to networks: names, files, what comes with a model, and what travels with a conversion."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from hnetkit import Library, paths
from hnetkit.cli import run
from hnetkit.errors import AmbiguousName, FileRefused, NotAHypernetwork, NotFound, UsageError
from hnetkit.formats import load, save
from hnetkit.generate.options import DrawOptions
from hnetkit.generate.prompt_networks import (
    NetworkFinder,
    NetworkRequest,
    resolve_hires_prompt,
    warn_about_hires_loras,
    with_default_stack,
)
from hnetkit.library.scan import scan
from hnetkit.network import Hypernetwork
from hnetkit.prompts.tags import Tag, split_tags
from hnetkit.registry.store import Registry


@pytest.fixture
def library(network_files: Path, home: Path) -> Path:
    """The networks as the person's library."""
    with Registry(paths.registry_file()) as registry:
        list(scan(registry, [network_files]))
    return network_files


@pytest.mark.parametrize(
    ("option", "place", "strength"),
    [
        ("ink", "ink", 1.0),
        ("ink:0.5", "ink", 0.5),
        ("ink:-.5", "ink", -0.5),
        ("A1 Extra-600000:1", "A1 Extra-600000", 1.0),
        ("h1:0123456789abcdef", "h1:0123456789abcdef", 1.0),
        ("ink@01234567:2", "ink@01234567", 2.0),
        ("a/ink.pt", Path("a/ink.pt"), 1.0),
        ("./ink:0.5", Path("./ink"), 0.5),
        ("ink.safetensors:0.5", Path("ink.safetensors"), 0.5),
        ("C:/nets/ink.pt:0.5", Path("C:/nets/ink.pt"), 0.5),
        ("C:/nets/ink.pt", Path("C:/nets/ink.pt"), 1.0),
    ],
)
def test_an_option_is_a_name_or_a_file_and_a_strength(option: str, place: str | Path, strength: float) -> None:
    assert NetworkRequest.from_option(option) == NetworkRequest(place, strength)


@pytest.mark.parametrize("option", ["", "ink:much", "ink:", ":0.5", "ink:0.5:0.5x"])
def test_an_option_that_cannot_be_meant_is_a_usage_error(option: str) -> None:
    with pytest.raises(UsageError, match="-n"):
        NetworkRequest.from_option(option)


def test_a_tag_as_an_option_is_answered_with_the_option() -> None:
    for tag, option in (("<hypernet:ink:0.8>", "-n ink:0.8"), ("<hypernet:my ink>", "-n 'my ink:1'")):
        with pytest.raises(UsageError, match="not NAME or NAME:STRENGTH") as refusal:
            NetworkRequest.from_option(tag)
        assert refusal.value.hint == option


def test_tags_come_before_options_and_options_become_tags(library: Path) -> None:
    stacked = NetworkFinder().stack(split_tags("a <hypernet:wash:0.2>"), ["ink:0.5", str(library / "mist.pt")])
    assert [network.name for network in stacked.networks] == ["wash", "ink", "mist"]
    assert stacked.strengths == (0.2, 0.5, 1.0)
    assert stacked.prompt.written == "a <hypernet:wash:0.2> <hypernet:ink:0.5> <hypernet:mist:1>"


def test_a_hash_given_as_an_option_is_stored_under_the_files_name(library: Path) -> None:
    content = load(library / "ink.pt").content_hash
    stacked = NetworkFinder().stack(split_tags("a"), [content])
    assert stacked.prompt.written == "a <hypernet:ink:1>"


def test_a_tag_opens_no_file_by_its_path(library: Path) -> None:
    with pytest.raises(NotFound):
        NetworkFinder().networks([NetworkRequest.from_tag(Tag(str(library / "ink.pt")))])


def test_an_unknown_name_is_an_error_with_the_nearest(library: Path) -> None:
    with pytest.raises(NotFound) as missing:
        NetworkFinder().stack(split_tags("a <hypernet:imk:1>"), ())
    assert missing.value.hint == "did you mean ink?"


def test_what_comes_with_the_model_goes_before_the_library(library: Path, tmp_path: Path) -> None:
    own = tmp_path / "ink.pt"
    shutil.copy(library / "wash.pt", own)
    (network,) = NetworkFinder({"ink": own}).networks([NetworkRequest("ink", 1.0)])
    assert network.network.path == str(own)
    assert NetworkFinder({"ink": own}).networks([NetworkRequest("mist", 1.0)])[0].name == "mist"
    with pytest.raises(NotFound) as missing:
        NetworkFinder({"ink": own}).networks([NetworkRequest("imk", 1.0)])
    assert "ink" in str(missing.value.hint)


def test_two_networks_of_one_name_are_not_guessed_between(library: Path, tmp_path: Path) -> None:
    shutil.copy(library / "wash.pt", tmp_path / "ink.pt")
    with Registry(paths.registry_file()) as registry:
        list(scan(registry, [tmp_path]))
    with pytest.raises(AmbiguousName):
        NetworkFinder().networks([NetworkRequest("ink", 1.0)])


@pytest.mark.parametrize(
    ("prompt", "hires_prompt", "is_told"),
    [
        ("a cat <lora:glow:1>", "a dog <lora:glow:1>", False),
        ("a cat <lora:glow:1>", "a dog <lora:glow:0.5>", True),
        ("a cat <lora:glow:1>", "a dog", True),
        ("a cat", "a dog <lora:glow:1>", True),
        ("a cat", "a dog", False),
    ],
)
def test_a_second_pass_with_other_loras_than_the_prompt_is_told(prompt: str, hires_prompt: str, is_told: bool) -> None:
    notes: list[str] = []
    options = DrawOptions(hires_scale=2, hires_prompt=hires_prompt)
    hires = resolve_hires_prompt(options, NetworkFinder(), notes.append)
    warn_about_hires_loras([split_tags(prompt)], hires, notes.append)
    assert any("LoRAs are the same in both passes" in note for note in notes) == is_told


def test_what_is_no_hypernetwork_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(FileRefused):
        NetworkFinder().networks([NetworkRequest.from_option(str(tmp_path / "page.pt"))])


def test_a_mix_of_an_extension_is_refused_as_the_file_that_it_is(tmp_path: Path) -> None:
    (tmp_path / "mix.hns").write_text('[("ink", 0.2)]')
    with pytest.raises(NotAHypernetwork, match="a mix of networks"):
        NetworkFinder().networks([NetworkRequest.from_option(f"{tmp_path / 'mix.hns'}:0.5")])
    assert NetworkRequest.from_option("mix.hns:0.5") == NetworkRequest(Path("mix.hns"), 0.5)


def test_a_converted_file_goes_by_the_hash_of_its_source(network_files: Path, tmp_path: Path) -> None:
    source = network_files / "ink.pt"
    save(load(source), tmp_path / "ink.safetensors")
    networks = NetworkFinder().networks(
        [NetworkRequest(source, 1.0), NetworkRequest(tmp_path / "ink.safetensors", 1.0)]
    )
    assert [network.hash for network in networks] == [hashlib.sha256(source.read_bytes()).hexdigest()[:10]] * 2


def _hashes(content: str, sha256: str) -> list[str]:
    return [content, content.removeprefix("h1:")[:12], sha256[:10], f"ink@{content.removeprefix('h1:')[:10]}"]


@pytest.fixture
def replaceable(tmp_path: Path, network_files: Path, home: Path) -> Path:
    """A folder of ``ink``, in the library, whose file a test may replace."""
    shutil.copy(network_files / "ink.pt", tmp_path / "ink.pt")
    with Registry(paths.registry_file()) as registry:
        list(scan(registry, [tmp_path]))
    return tmp_path


@pytest.mark.parametrize("which", range(4))
def test_what_is_asked_for_by_its_hash_is_that_content_or_nothing(
    replaceable: Path, network_files: Path, which: int
) -> None:
    file = replaceable / "ink.pt"
    asked = _hashes(load(file).content_hash, hashlib.sha256(file.read_bytes()).hexdigest())[which]
    (network,) = NetworkFinder().networks([NetworkRequest.from_option(asked)])
    assert network.name == "ink"
    shutil.copy(network_files / "mist.pt", file)
    with pytest.raises(FileRefused, match="replaced since it was scanned") as refusal:
        NetworkFinder().networks([NetworkRequest.from_option(asked)])
    assert str(file) in str(refusal.value)
    assert refusal.value.command_hint == f"hnetkit scan {replaceable}"
    assert NetworkFinder().networks([NetworkRequest("ink", 1.0)])[0].network.content_hash == load(file).content_hash


def test_of_several_files_of_a_content_one_that_still_has_it_is_read(replaceable: Path, network_files: Path) -> None:
    content = load(replaceable / "ink.pt").content_hash
    save(load(replaceable / "ink.pt"), replaceable / "other.safetensors")
    with Registry(paths.registry_file()) as registry:
        list(scan(registry, [replaceable]))
    shutil.copy(network_files / "mist.pt", replaceable / "ink.pt")
    assert NetworkFinder().networks([NetworkRequest(content, 1.0)])[0].network.content_hash == content
    (replaceable / "ink.pt").write_bytes(b"no network")
    assert NetworkFinder().networks([NetworkRequest(content, 1.0)])[0].network.content_hash == content


def test_what_lies_in_the_current_folder_changes_no_name_with_a_strength(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ink:0.7", "ink.pt", "ink.pt:0.7", "colon:1"):
        Path(name).touch()
    assert NetworkRequest.from_option("ink:0.7") == NetworkRequest("ink", 0.7)
    assert NetworkRequest.from_option("./ink.pt:0.7") == NetworkRequest(Path("./ink.pt"), 0.7)
    assert NetworkRequest.from_option("./colon:1") == NetworkRequest(Path("./colon:1"), 1.0)


def test_an_alias_and_a_name_inside_a_file_mean_their_content_and_not_what_took_its_place(
    replaceable: Path, network_files: Path
) -> None:
    own_name = load(replaceable / "ink.pt").name
    with Library() as library:
        library.tag("ink", alias="thin")
    names = ["thin", *([own_name] if own_name != "ink" else [])]
    for name in names:
        assert NetworkFinder().networks([NetworkRequest(name, 1.0)])[0].network == load(network_files / "ink.pt")
    shutil.copy(network_files / "mist.pt", replaceable / "ink.pt")
    for name in names:
        with pytest.raises(FileRefused, match="replaced since it was scanned"):
            NetworkFinder().networks([NetworkRequest(name, 1.0)])
    shutil.copy(network_files / "ink.pt", replaceable / "other.pt")
    with Library() as library:
        library.scan(replaceable)
    assert NetworkFinder().networks([NetworkRequest("thin", 1.0)])[0].network == load(network_files / "ink.pt")


def test_a_file_that_takes_the_name_of_an_alias_is_told(library: Path, tmp_path: Path) -> None:
    with Library() as own:
        own.tag("ink", alias="thin")
        shutil.copy(library / "ink.pt", tmp_path / "thin.pt")
        own.scan(tmp_path)
        assert found_and_told("thin") == (load(library / "ink.pt"), [])  # the same network
        shutil.copy(library / "wash.pt", tmp_path / "thin.pt")
        own.scan(tmp_path)
    label = f"ink@{load(library / 'ink.pt').content_hash[3:13]}"
    said = f"Warning: thin is {tmp_path / 'thin.pt'}, and not {label}, which has this alias"
    assert found_and_told("thin") == (load(library / "wash.pt"), [said])
    assert found_and_told(label) == (load(library / "ink.pt"), [])


@pytest.mark.parametrize("by", ["stem", "alias"])
def test_a_network_of_the_library_beside_the_models_own_is_told(library: Path, tmp_path: Path, by: str) -> None:
    bundled = {"ink" if by == "stem" else "thin": tmp_path / "own.pt"}
    (name,) = bundled
    shutil.copy(library / "ink.pt", tmp_path / "own.pt")
    with Library() as own:
        own.tag("ink", alias="thin")
    assert found_and_told(name, bundled) == (load(library / "ink.pt"), [])
    bundled = {name: library / "wash.pt"}
    label = f"ink@{load(library / 'ink.pt').content_hash[3:13]}"
    said = f"Warning: {name} is the one that comes with the model, and not {label}"
    assert found_and_told(name, bundled) == (load(library / "wash.pt"), [said])
    assert found_and_told(label, bundled) == (load(library / "ink.pt"), [])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_found_however_its_accents_are_stored(
    library: Path, tmp_path: Path, form: Literal["NFC", "NFD"]
) -> None:
    other: Literal["NFC", "NFD"] = "NFD" if form == "NFC" else "NFC"
    stored, typed = (unicodedata.normalize(kind, "caf\u00e9") for kind in (form, other))
    shutil.copy(library / "ink.pt", tmp_path / f"{stored}.pt")
    with Library() as own:
        own.scan(tmp_path)
        if os.listdir(tmp_path) != [f"{stored}.pt"]:
            pytest.skip("this file system stores accents in a form of its own")
        assert found_and_told(typed) == (load(library / "ink.pt"), [])
        shutil.copy(library / "wash.pt", tmp_path / f"{typed}.pt")
        own.scan(tmp_path)
    assert found_and_told(typed)[0] == load(library / "wash.pt")  # what is written exactly so goes first
    assert found_and_told(stored)[0] == load(library / "ink.pt")


def found_and_told(name: str, bundled: dict[str, Path] | None = None) -> tuple[Hypernetwork, list[str]]:
    told: list[str] = []
    (network,) = NetworkFinder(bundled, note=told.append).networks([NetworkRequest.from_tag(Tag(name))])
    return network.network, told


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("ink", "ink is no tag of a hypernetwork"),
        ("ink:0.5", "ink:0.5 is no tag of a hypernetwork"),
        ("<hypernet:ink:x>", "'x' is not a number"),
        ("<lora:glow:1>", "<lora:glow> is no tag of a hypernetwork"),
        ("<hypernet:ink:1> words", "words is no tag of a hypernetwork"),
        ("<hypernet:ink:1:0.5>", "'0.5' has no effect"),
    ],
)
def test_networks_of_the_settings_that_are_none_are_refused_and_told(
    library: Path, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "hypernetworks", value]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert 'hnetkit config hypernetworks "<hypernet:NAME:0.5>"' in error
    assert run(["config", "hypernetworks", "<hypernet:ink:0.5>, <hypernet:wash>"]) == 0
    paths.config_file().write_text(json.dumps({"hypernetworks": value}))  # as an earlier version, or by hand
    told: list[str] = []
    finder = NetworkFinder(note=told.append)
    for _ in range(2):
        with_default_stack(split_tags("a"), finder)
    assert len(told) == 1
    assert told[0].startswith("Warning: the setting hypernetworks: ")
    assert said in told[0]


def two_of_one_name(networks: Path, folder: Path) -> tuple[Path, Path]:
    """Two networks of one stem in two folders, both scanned."""
    found = [folder / name / "twin.pt" for name in ("ink", "wash")]
    for path in found:
        path.parent.mkdir()
        shutil.copy(networks / f"{path.parent.name}.pt", path)
    assert run(["scan", str(folder), "-q"]) == 0
    return found[0], found[1]


def test_a_file_that_the_last_scan_missed_and_that_is_back_counts_like_any_other(
    network_files: Path, tmp_path: Path, home: Path
) -> None:
    first, second = two_of_one_name(network_files, tmp_path)
    away = first.with_suffix(".away")
    first.rename(away)
    with Library() as opened:
        opened.scan()
        assert opened.find("twin") == second
        away.rename(first)  # no scan has seen it yet
        with pytest.raises(AmbiguousName):
            opened.find("twin")


def test_a_file_that_the_last_scan_saw_and_that_is_gone_counts_for_nothing_beside_one_that_is_there(
    network_files: Path, tmp_path: Path, home: Path
) -> None:
    first, second = two_of_one_name(network_files, tmp_path)
    with Library() as opened:
        with pytest.raises(AmbiguousName):
            opened.find("twin")
        first.unlink()
        assert opened.find("twin") == second
        second.unlink()
        with pytest.raises(AmbiguousName):
            opened.find("twin")
