"""One mention means one network, wherever it stands: in an image that is inspected or drawn again, in a tag, in `-n`,
in a grid, and in Python. A hash decides; where a name says something else, that is told in a line.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.drawing import drawn
from support.networks import a1111_network, save_pt
from support.pipelines import SD_CROSS_WIDTH, SELF_WIDTHS

import hnetkit
from hnetkit import demo, settings
from hnetkit.errors import AmbiguousName, NotFound
from hnetkit.formats.open_file import OpenFile
from hnetkit.generate.image_settings import image_facts
from hnetkit.generate.model import Model, load_model
from hnetkit.generate.prompt_networks import NetworkFinder, NetworkRequest
from hnetkit.image_text import write_image
from hnetkit.library.library import Library
from hnetkit.prompts.tags import Tag

PACKAGE = Path(hnetkit.__file__).parent
BLANK = Image.new("RGB", (16, 16))
SETTINGS = "Steps: 1, Sampler: Euler, CFG scale: 1, Seed: 3, Size: 16x16"
NOTHING = "e3b0c442"  # the old hash of every small file

# stem -> own name and seed; john.pt and old/john.pt are two networks of one stem
NETWORKS = {
    "asuka_final-20000": ("helloasuka", 1),
    "johndoe": ("johndoe", 2),
    "johndoe-10000": ("johndoe", 3),
    "old/twin": ("twin", 4),
    "new/twin": ("twin", 5),
}


@dataclass(frozen=True)
class Held:
    """A network of the library, with the hashes that people know it by."""

    path: Path
    old: str
    sha256: str
    content: str

    @classmethod
    def of(cls, path: Path) -> Held:
        data = path.read_bytes()
        old = hashlib.sha256(data[1 << 20 : (1 << 20) + (64 << 10)]).hexdigest()[:8]
        return cls(path, old, hashlib.sha256(data).hexdigest(), hnetkit.load(path).content_hash)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, each large enough to have an old hash; ``asuka`` is an alias."""
    folder = tmp_path_factory.mktemp("library")
    for stem, (name, seed) in NETWORKS.items():
        (folder / stem).parent.mkdir(exist_ok=True)
        widths = (*SELF_WIDTHS, SD_CROSS_WIDTH)
        content = a1111_network(widths, (1, 500, 1), activation="relu", seed=seed, scale=0.05, name=name)
        save_pt(content, folder / f"{stem}.pt")
    return folder


@pytest.fixture(scope="module")
def library(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    with Library(home=tmp_path_factory.mktemp("home")) as library:
        library.scan(folder)
        library.tag("asuka_final-20000", alias="asuka")
        yield library


@pytest.fixture(scope="module")
def held(folder: Path) -> dict[str, Held]:
    return {stem: Held.of(folder / f"{stem}.pt") for stem in NETWORKS}


@pytest.fixture(scope="module")
def model(sd_folder: Path) -> Model:
    return load_model(sd_folder, device="cpu")


# --- what an image says

# how an image names a network: `name` and `net`, which it was drawn with -> its infotext
CARRIERS: dict[str, Callable[[str, Held], str]] = {
    "a tag, sha256 in Hashes": lambda name, net: (
        f"a <hypernet:{name}:0.5>\n{SETTINGS}, Hashes: " + json.dumps({f"hypernet:{name}": net.sha256[:10]})
    ),
    "a tag, Hypernet hashes": lambda name, net: (
        f'a <hypernet:{name}:0.5>\n{SETTINGS}, Hypernet hashes: "{name}: {net.sha256[:12]}"'
    ),
    "a tag, old hash in it": lambda name, net: f"a <hypernet:{name}({net.old}):0.5>\n{SETTINGS}",
    "a tag, our label": lambda name, net: f"a <hypernet:{name}@{net.content[3:13]}:0.5>\n{SETTINGS}",
    "Hypernet and its old hash": lambda name, net: (
        f"a\n{SETTINGS}, Hypernet: {name}, Hypernet strength: 0.5, Hypernet hash: {net.old}"
    ),
    "Hypernet and its sha256": lambda name, net: (
        f"a\n{SETTINGS}, Hypernet: {name}, Hypernetwork strength: 0.5, Hypernet hash: {net.sha256[:10]}"
    ),
    "Hypernet with the old hash in it": lambda name, net: (
        f"a\n{SETTINGS}, Hypernet: {name}({net.old}), Hypernet strength: 0.5"
    ),
    "Hypernetworks with old hashes in them": lambda name, net: (
        f"a\n{SETTINGS}, Hypernetworks: {name}({net.old}), Hypernetworks Strengths: 0.5"
    ),
}


def png(path: Path, text: str) -> Path:
    write_image(path, BLANK, text)
    return path


def inspected(path: Path, library: Library) -> list[dict[str, Any]]:
    with OpenFile(path) as file:
        found = image_facts(file, library.registry)
    assert found is not None
    rows: list[dict[str, Any]] = found[0]["hypernetworks"]
    return rows


def again(model: Model, path: Path, library: Library) -> tuple[hnetkit.generate.Picture, list[str]]:
    """The image drawn again, and the notes about its networks."""
    told: list[str] = []
    (picture,) = model.draw(again=path, library=library, note=told.append)
    return picture, [line for line in told if "model is" not in line]


def test_every_key_of_an_image_that_names_a_network_is_among_the_carriers() -> None:
    source = (PACKAGE / "prompts" / "infotext.py").read_text(encoding="utf-8")
    keys = {
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch("Hypernet[A-Za-z ]*", node.value)
    }
    some = Held(Path(), "0" * 8, "0" * 64, "h1:" + "0" * 64)
    texts = "\n".join(write("x", some) for write in CARRIERS.values())
    assert len(keys) >= 6
    assert {key for key in keys if f"{key}:" not in texts} == set()


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("name", "stem"), [("helloasuka", "asuka_final-20000"), ("johndoe", "johndoe-10000")])
def test_an_image_is_drawn_again_with_the_network_of_its_hash_which_inspect_names(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path, carrier: str, name: str, stem: str
) -> None:
    net = held[stem]
    path = png(tmp_path / "a.png", CARRIERS[carrier](name, net))
    (row,) = inspected(path, library)
    assert (row["in_library"], row["found_as"], row["path"]) == (True, stem, str(net.path))
    picture, told = again(model, path, library)
    assert [(one["name"], one["hash"]) for one in picture.hypernetworks] == [(stem, net.sha256[:10])]
    assert picture.prompt.endswith(f"<hypernet:{stem}:0.5>")
    (line,) = told
    assert line.startswith(name)
    assert line.endswith(f"is {stem} in the library")
    picture.save(tmp_path / "b.png")
    second, told = again(model, tmp_path / "b.png", library)
    assert (second.image.tobytes(), second.infotext, told) == (picture.image.tobytes(), picture.infotext, [])


@pytest.mark.parametrize("carrier", CARRIERS)
def test_nothing_is_said_where_name_and_hash_agree(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path, carrier: str
) -> None:
    for name in ("johndoe", "asuka"):
        net = held["johndoe" if name == "johndoe" else "asuka_final-20000"]
        picture, told = again(model, png(tmp_path / f"{name}.png", CARRIERS[carrier](name, net)), library)
        assert (picture.hypernetworks[0]["hash"], told) == (net.sha256[:10], [])


@pytest.mark.parametrize("carrier", [carrier for carrier in CARRIERS if "label" not in carrier])
def test_where_only_the_name_fits_a_warning_says_so(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path, carrier: str
) -> None:
    far = Held(Path(), "0123abcd", "0123456789ab" * 5 + "0123", "")
    path = png(tmp_path / "a.png", CARRIERS[carrier]("johndoe", far))
    (row,) = inspected(path, library)
    picture, told = again(model, path, library)
    assert (row["found_as"], picture.hypernetworks[0]["hash"]) == ("johndoe", held["johndoe"].sha256[:10])
    assert told == [f"Warning: johndoe: the library's has another hash than {row['hash']}"]


@pytest.mark.parametrize("form", ["png", "jpg", "webp"])
def test_every_format_of_images_says_the_same(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path, form: str
) -> None:
    net = held["johndoe-10000"]
    path = png(tmp_path / f"a.{form}", CARRIERS["a tag, sha256 in Hashes"]("johndoe", net))
    assert inspected(path, library)[0]["path"] == str(net.path)
    assert again(model, path, library)[0].hypernetworks[0]["hash"] == net.sha256[:10]


def test_comfyuis_graph_names_a_network_as_any_image_does(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path
) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.ckpt"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog"}},
        "4": {
            "class_type": "HypernetworkLoader",
            "inputs": {"hypernetwork_name": "helloasuka.pt", "strength": 0.5, "model": ["1", 0]},
        },
        "3": {
            "class_type": "KSampler",
            "inputs": {"seed": 4, "steps": 1, "cfg": 1, "sampler_name": "euler", "scheduler": "normal"}
            | {"positive": ["2", 0], "model": ["4", 0], "latent_image": ["5", 0]},
        },
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 16, "height": 16, "batch_size": 1}},
    }
    about = PngInfo()
    about.add_text("prompt", json.dumps(graph))
    BLANK.save(tmp_path / "a.png", pnginfo=about)
    net = held["asuka_final-20000"]
    assert inspected(tmp_path / "a.png", library)[0]["path"] == str(net.path)
    assert again(model, tmp_path / "a.png", library)[0].hypernetworks[0]["hash"] == net.sha256[:10]


def test_an_own_name_is_the_last_that_counts_and_is_told(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path
) -> None:
    path = png(tmp_path / "a.png", f"a\n{SETTINGS}, Hypernet: helloasuka")
    assert inspected(path, library)[0]["found_as"] == "asuka_final-20000"
    picture, told = again(model, path, library)
    assert picture.prompt == "a<hypernet:asuka_final-20000:1>"
    assert told == ["helloasuka, as it calls itself, is asuka_final-20000 in the library"]
    path = png(tmp_path / "b.png", f"a\n{SETTINGS}, Hypernet: johndoe")  # the own name of two, and the stem of one
    assert again(model, path, library)[0].hypernetworks[0]["hash"] == held["johndoe"].sha256[:10]


def test_the_hash_of_every_small_file_is_no_hash(model: Model, library: Library, tmp_path: Path) -> None:
    for number, text in enumerate(
        (
            f"a <hypernet:johndoe({NOTHING}):1>\n{SETTINGS}",
            f"a\n{SETTINGS}, Hypernet: johndoe, Hypernet hash: {NOTHING}",
            f"a\n{SETTINGS}, Hypernetworks: johndoe({NOTHING}), Hypernetworks Strengths: 1",
        )
    ):
        path = png(tmp_path / f"{number}.png", text)
        assert inspected(path, library)[0]["found_as"] == "johndoe"
        assert again(model, path, library)[1] == []


def test_two_networks_of_one_name_in_an_image_are_both_drawn_and_stay_two(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path
) -> None:
    first, second = held["old/twin"], held["new/twin"]
    listed = f"twin({first.old}), twin({second.old})"
    path = png(tmp_path / "a.png", f"a\n{SETTINGS}, Hypernetworks: {listed}, Hypernetworks Strengths: 0.5, 1.5")
    assert [row["path"] for row in inspected(path, library)] == [str(first.path), str(second.path)]
    picture, _ = again(model, path, library)
    assert [one["hash"] for one in picture.hypernetworks] == [first.sha256[:10], second.sha256[:10]]
    assert picture.prompt == f"a<hypernet:twin:0.5><hypernet:twin@{second.content[3:13]}:1.5>"
    picture.save(tmp_path / "b.png")
    second_time, told = again(model, tmp_path / "b.png", library)
    assert (second_time.image.tobytes(), told) == (picture.image.tobytes(), [])
    assert [row["path"] for row in inspected(tmp_path / "b.png", library)] == [str(first.path), str(second.path)]


def test_two_files_of_one_stem_given_as_options_stay_two_in_the_image_and_in_both_passes(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path
) -> None:
    first, second = held["old/twin"], held["new/twin"]
    (picture,) = model.draw(
        "a",
        networks=[f"{first.path}:0.5"],
        hires_prompt=f"b <hypernet:twin@{second.content[3:13]}:1>",
        hires_size=(24, 24),
        **{"steps": 1, "width": 16, "height": 16, "seed": 1, "library": library},
    )
    picture.save(tmp_path / "a.png")
    second_time, told = again(model, tmp_path / "a.png", library)
    assert (second_time.image.tobytes(), second_time.infotext, told) == (picture.image.tobytes(), picture.infotext, [])
    (other,) = model.draw("a", networks=[first.path, second.path], library=library, steps=1, width=16, height=16)
    assert other.prompt == f"a <hypernet:twin:1> <hypernet:twin@{second.content[3:13]}:1>"


def test_a_prompt_given_instead_of_the_images_is_the_users_own(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path
) -> None:
    path = png(tmp_path / "a.png", CARRIERS["a tag, sha256 in Hashes"]("johndoe", held["johndoe-10000"]))
    (picture,) = model.draw("b <hypernet:johndoe:1>", again=path, library=library)
    assert picture.hypernetworks[0]["hash"] == held["johndoe"].sha256[:10]


def test_the_networks_of_the_demo_model_count_in_inspect_as_in_drawing(
    library: Library, held: dict[str, Held], tmp_path: Path
) -> None:
    if not demo.networks():
        pytest.skip("the bundled demo model is missing from this checkout")
    outline = demo.networks()["outline"]
    digits = hashlib.sha256(outline.read_bytes()).hexdigest()[:10]
    other = held["johndoe"].sha256[:10]
    cases = [("outline", None, outline), ("outline", digits, outline), ("renamed", digits, outline)]
    for number, (name, known, wanted) in enumerate([*cases, ("outline", other, held["johndoe"].path)]):
        hashes = {"Hashes": json.dumps({f"hypernet:{name}": known})} if known else {}
        said = "".join(f", {key}: {value}" for key, value in hashes.items())
        path = png(tmp_path / f"{number}.png", f"a <hypernet:{name}:1>\n{SETTINGS}{said}")
        (row,) = inspected(path, library)
        assert (row["path"], row["comes_with_model"]) == (str(wanted), wanted == outline)
        request = NetworkRequest.from_tag(Tag(name), known)
        (network,) = NetworkFinder(demo.networks(), library.registry).networks([request])
        assert (network.network.path, network.name) == (str(wanted), wanted.stem)


# --- what somebody types


MENTIONS: dict[str, Callable[[Held], str]] = {
    "an own name": lambda net: "helloasuka",
    "an alias": lambda net: "asuka",
    "a stem": lambda net: net.path.stem,
    "as lists of 2022 show it": lambda net: f"helloasuka({net.old})",
    "the same with the stem": lambda net: f"{net.path.stem}({net.old})",
    "in capital digits": lambda net: f"helloasuka({net.old.upper()})",
    "another network's name with its hash": lambda net: f"johndoe({net.old})",
    "our label": lambda net: f"{net.path.stem}@{net.content[3:13]}",
    "our label by a former name": lambda net: f"once@{net.sha256[:10]}",
    "the old hash": lambda net: net.old,
    "A1111's hash": lambda net: net.sha256[:10],
    "the whole sha256": lambda net: net.sha256,
    "digits of the content": lambda net: net.content[3:15],
    "the content hash": lambda net: net.content,
}


@pytest.mark.parametrize("kind", MENTIONS)
def test_every_form_of_a_mention_is_the_same_network_everywhere(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path, kind: str
) -> None:
    net = held["asuka_final-20000"]
    mention = MENTIONS[kind](net)
    assert library.find(mention) == net.path
    assert library.record(mention)["content_hash"] == library.load(mention).content_hash == net.content
    common: dict[str, Any] = {"steps": 1, "width": 16, "height": 16, "seed": 1, "library": library}
    (by_option,) = model.draw("a", networks=[f"{mention}:0.5"], **common)
    assert by_option.prompt == f"a <hypernet:{net.path.stem}:0.5>"
    pictures = [by_option]
    if ":" not in mention:
        (by_tag,) = model.draw(f"a <hypernet:{mention}:0.5>", **common)
        pictures += [by_tag]
        path = png(tmp_path / "a.png", f"a <hypernet:{mention}:0.5>\n{SETTINGS}")
        assert inspected(path, library)[0]["path"] == str(net.path)
        pictures.append(again(model, path, library)[0])
        assert by_tag.image.tobytes() == by_option.image.tobytes()
    assert {picture.hypernetworks[0]["hash"] for picture in pictures} == {net.sha256[:10]}


def test_every_form_of_a_mention_is_the_same_network_in_grids(
    model: Model, library: Library, held: dict[str, Held], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = held["asuka_final-20000"]
    mentions = [form(net) for form in MENTIONS.values()]
    tags = [f"<hypernet:{mention}:1>" for mention in mentions if ":" not in mention]
    axes = {"x": {"hypernetwork": mentions}, "y": {"prompt": ["HERE", *tags]}}
    for name, axis in axes.items():
        told: list[str] = []
        sheet = drawn(model, axis, prompt="a HERE", library=library, out=f"{name}.png", note=told.append)
        drawn_with = [one["hash"] for cell in sheet.cells for one in cell["hypernetworks"]]
        assert drawn_with == [net.sha256[:10]] * len(mentions if name == "x" else tags)
        assert "helloasuka, as it calls itself, is asuka_final-20000 in the library" in told


@pytest.mark.parametrize("mention", ["johndoe(0123abcd)", "johndoe@0123abcd", "0123abcd", "h1:0123abcd"])
def test_verbs_of_the_library_act_on_nothing_but_the_hash_that_is_named(library: Library, mention: str) -> None:
    for verb in (library.find, library.load, library.record, library.forgetting, library.tag):
        with pytest.raises(NotFound) as missing:
            verb(mention)
        assert missing.value.hint is not None
        assert "johndoe?" not in missing.value.hint
    with pytest.raises(NotFound) as missing:
        library.find("johndoe(0123abcd)")
    assert missing.value.hint == "hnetkit pull 0123abcd"


def test_an_image_whose_network_is_nowhere_says_how_to_get_it(model: Model, library: Library, tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", f"a\n{SETTINGS}, Hypernet: johndo, Hypernet hash: 0123abcd")
    with pytest.raises(NotFound) as missing:
        again(model, path, library)
    assert (str(missing.value), missing.value.hint) == ("no network named johndo", "hnetkit pull 0123abcd")


def test_a_hash_of_several_networks_is_the_one_of_the_name_or_ambiguous(
    folder: Path, held: dict[str, Held], tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    made = {}
    for name, dtype in (("half", "fp16"), ("full", None)):  # both state that they were converted from one file
        made[name] = tmp_path / "files" / f"{name}.safetensors"
        hnetkit.save(hnetkit.load(held["johndoe"].path), made[name], dtype=dtype)
    digits = held["johndoe"].sha256[:10]
    with Library(home=tmp_path / "home") as library:
        library.scan(tmp_path / "files")
        finder = NetworkFinder({}, library.registry)
        for name, file in made.items():
            (network,) = finder.networks([NetworkRequest.from_tag(Tag(name), digits)])
            assert network.network.path == str(file)
        with pytest.raises(AmbiguousName, match="other"):
            finder.networks([NetworkRequest.from_tag(Tag("other"), digits)])


def test_two_files_of_one_content_are_one_network_whichever_of_them_is_gone(
    model: Model, held: dict[str, Held], tmp_path: Path
) -> None:
    files = tmp_path / "files"
    (files / "sub").mkdir(parents=True)
    for name in ("ink", "sub/ink", "pen"):
        shutil.copy(held["johndoe"].path, files / f"{name}.pt")
    told: list[str] = []
    with Library(home=tmp_path / "home") as library:
        library.scan(files)
        digits = held["johndoe"].sha256[:10]
        for gone in ("ink", "sub/ink"):
            (files / f"{gone}.pt").unlink()
            for mention, known in (
                ("ink", None),
                ("ink", digits),
                (digits, None),
                (f"ink({held['johndoe'].old})", None),
            ):
                request = NetworkRequest.from_tag(Tag(mention), known)
                (network,) = NetworkFinder({}, library.registry, told.append).networks([request])
                assert network.network.content_hash == held["johndoe"].content
                assert library.find(mention).is_file()
        (files / "pen.pt").unlink()
        with pytest.raises(NotFound) as missing:
            NetworkFinder({}, library.registry).networks([NetworkRequest.from_tag(Tag("ink"))])
        assert missing.value.command_hint == "hnetkit repair fetches it; hnetkit scan finds it"
    assert told == []


def test_the_network_of_the_settings_is_applied_once_whatever_the_prompt_calls_it(
    model: Model, library: Library, held: dict[str, Held]
) -> None:
    settings.put("hypernetworks", "<hypernet:asuka:0.5> <hypernet:johndoe:0.2>")
    net = held["asuka_final-20000"]
    for mention in ("asuka", "asuka_final-20000", f"helloasuka({net.old})", f"once@{net.sha256[:10]}"):
        prompt = f"a <hypernet:{mention}:1>"
        (picture,) = model.draw(prompt, library=library, steps=1, width=16, height=16)
        strengths = [one["strength"] for one in picture.hypernetworks]
        assert (strengths, picture.hypernetworks[0]["hash"]) == ([1, 0.2], net.sha256[:10])


# --- places


def test_nothing_but_the_one_function_looks_for_networks_by_their_names_and_hashes() -> None:
    queries = {"named", "with_alias", "with_hash", "with_own_name"}
    callers = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in queries
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "files"
    }
    # files that a link may lead to, files that share their sidecars, files beside one that was fetched: none names one
    of_files = {"library/link.py", "library/suggestions.py", "sources/results.py"}
    assert callers == {"library/resolve.py"} | of_files
