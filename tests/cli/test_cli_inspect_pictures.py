"""`hnetkit inspect` of pictures: how they were made, and which of their hypernetworks the library holds."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support import networks

import hnetkit
from hnetkit import demo
from hnetkit.cli import run
from hnetkit.image_text import write_image
from hnetkit.prompts import infotext

IMAGE = Image.new("RGB", (8, 8), "red")
SETTINGS = {"Steps": 20, "Sampler": "Euler a", "CFG scale": 7, "Seed": 42, "Size": "512x512"}


@pytest.fixture
def library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """``ink.pt``, and ``wash.safetensors`` that was converted from a ``.pt`` which is gone."""
    folder = tmp_path / "library"
    folder.mkdir()
    networks.network_file(folder, "ink.pt", seed=1)
    former = networks.network_file(tmp_path, "former.pt", seed=2)
    hnetkit.save(hnetkit.load(former), folder / "wash.safetensors")
    assert run(["scan", str(folder)]) == 0
    capsys.readouterr()
    return folder


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def picture(tmp_path: Path, prompt: str, name: str = "a.png", **more: Any) -> Path:
    hashes = more.pop("hashes", None)
    text = infotext.write(prompt, "blurry", SETTINGS | {key.replace("_", " "): more[key] for key in more}, hashes)
    write_image(tmp_path / name, IMAGE, text)
    return tmp_path / name


def inspect(capsys: pytest.CaptureFixture[str], *paths: Path, code: int = 0) -> list[dict[str, Any]]:
    assert run(["inspect", "--json", *map(str, paths)]) == code
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def held_as(file: Path, where: str = "in_library") -> dict[str, Any]:
    """What a network's row says of where the network is."""
    found = {"in_library": False, "comes_with_model": False, "found_as": file.stem, "path": str(file), "pass": 1}
    return found | {where: True}


@pytest.mark.parametrize(("name", "form"), [("a.png", "png"), ("a.jpg", "jpeg"), ("a.webp", "webp"), ("a.PNG", "png")])
def test_a_picture_tells_its_settings_and_its_hypernetworks(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, form: str
) -> None:
    digits = sha256(library / "ink.pt")[:10]
    path = picture(tmp_path, "a cat <hypernet:ink:0.5> <hypernet:dots:-1>", name, hashes={"hypernet:ink": digits})
    (row,) = inspect(capsys, path)
    assert (row["kind"], row["format"], row["path"], row["name"]) == ("picture", form, str(path), "a")
    assert (row["sha256"], row["size_bytes"]) == (sha256(path), path.stat().st_size)
    assert (row["prompt"], row["negative_prompt"]) == ("a cat <hypernet:ink:0.5> <hypernet:dots:-1>", "blurry")
    assert row["settings"] == {
        **{key: str(value) for key, value in SETTINGS.items()},
        "Hashes": json.dumps({"hypernet:ink": digits}),
    }
    assert row["hypernetworks"] == [
        {"name": "ink", "strength": 0.5, "hash": digits, **held_as(library / "ink.pt")},
        {"name": "dots", "strength": -1.0, "hash": None, **held_as(demo.networks()["dots"], "comes_with_model")},
    ]
    assert row["warnings"] == []


def test_the_content_decides_and_not_the_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = picture(tmp_path, "a cat").rename(tmp_path / "a.pt")
    assert inspect(capsys, path)[0]["kind"] == "picture"


def test_a_hash_finds_a_network_under_another_name(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hashes = {"hypernet:former": sha256(tmp_path / "former.pt")[:10], "hypernet:x": sha256(library / "ink.pt")[:8]}
    (row,) = inspect(capsys, picture(tmp_path, "<hypernet:former:1><hypernet:x:1>", hashes=hashes))
    assert [network["in_library"] for network in row["hypernetworks"]] == [True, True]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_converted_file_is_taken_for_its_original_in_silence_only_where_that_was_seen(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], is_known: bool
) -> None:
    if is_known:
        (tmp_path / "other").mkdir()
        seen = (tmp_path / "former.pt").rename(tmp_path / "other" / "former.pt")
        assert run(["scan", str(seen.parent)]) == 0
        former = sha256(seen)
        seen.unlink()
        run(["scan"])
        capsys.readouterr()
    else:
        former = sha256(tmp_path / "former.pt")
    (row,) = inspect(capsys, picture(tmp_path, "<hypernet:x:1>", hashes={"hypernet:x": former[:10]}))
    assert [network["in_library"] for network in row["hypernetworks"]] == [True]
    wash = library / "wash.safetensors"
    word = f"{wash}: used for {former[:10]} only because it states that it was converted from that file"
    assert row["warnings"] == ([] if is_known else [word])


def test_a_hash_is_looked_up_without_opening_a_file_of_the_library(library: Path, tmp_path: Path) -> None:
    for number in range(3):
        made = networks.network_file(tmp_path, seed=10 + number)
        hnetkit.save(hnetkit.load(made), library / f"wash-{number}.safetensors")
    assert run(["scan"]) == 0
    former = sha256(tmp_path / "former.pt")
    hashes = {"hypernet:x": former[:10], "hypernet:y": "0123456789", "hypernet:z": "01234567"}
    path = picture(tmp_path, "".join(f"<hypernet:{name}:1>" for name in "xyz"), hashes=hashes)
    code = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from hnetkit.cli import run
print(run(["inspect", sys.argv[1]]), sys.argv[1] in opened, [p for p in opened if p.startswith(sys.argv[2])])
"""
    command = [sys.executable, "-P", "-c", code, str(path), str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert f"network      x at 1 [{former[:10]}]: in the library" in done.stdout
    assert done.stdout.splitlines()[-1] == "0 True []"


def test_the_old_hash_finds_a_large_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "large").mkdir()
    large = networks.network_file(tmp_path / "large", "large.pt", widths=(768,))
    assert run(["scan", str(large.parent)]) == 0
    old = hashlib.sha256(large.read_bytes()[1 << 20 :][: 64 << 10]).hexdigest()[:8]
    path = picture(tmp_path, "a cat", Hypernet="renamed", Hypernet_hash=old, Hypernet_strength=0.7)
    capsys.readouterr()
    (row,) = inspect(capsys, path)
    assert row["hypernetworks"] == [{"name": "renamed", "strength": 0.7, "hash": old, **held_as(large)}]


def test_a_network_of_the_name_but_another_hash_is_doubted(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = inspect(capsys, picture(tmp_path, "<hypernet:ink:1>", hashes={"hypernet:ink": "0123456789"}))
    assert row["hypernetworks"][0]["in_library"]
    assert row["warnings"] == ["ink: the library's has another hash than 0123456789"]


def test_an_alias_is_a_name(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tag", "ink", "--alias", "lines"]) == 0
    capsys.readouterr()
    assert inspect(capsys, picture(tmp_path, "<hypernet:lines:1>"))[0]["hypernetworks"][0]["in_library"]


def test_a_name_of_two_networks_is_held_and_both_are_told(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (library / "more").mkdir()
    networks.network_file(library / "more", "ink.pt", seed=9)
    assert run(["scan"]) == 0
    capsys.readouterr()
    (row,) = inspect(capsys, picture(tmp_path, "<hypernet:ink:1>"))
    assert row["hypernetworks"][0]["in_library"]
    assert "ink@" in row["warnings"][0]


def test_a_network_whose_file_is_gone_is_not_held(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = picture(tmp_path, "<hypernet:ink:1>", hashes={"hypernet:ink": sha256(library / "ink.pt")[:10]})
    (library / "ink.pt").unlink()
    assert run(["scan"]) == 0
    capsys.readouterr()
    assert not inspect(capsys, path)[0]["hypernetworks"][0]["in_library"]


def test_what_is_missing_comes_with_the_command_that_gets_it(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = "<hypernet:far:1><hypernet:$(rm x); y:1><hypernet:-v:1>"
    assert run(["inspect", str(picture(tmp_path, prompt, hashes={"hypernet:far": "0123456789"}))]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "Hint: far is not in the library; hnetkit pull 0123456789",
        "Hint: $(rm x); y is not in the library; hnetkit browse '$(rm x); y'",
        "Hint: -v is not in the library; hnetkit browse -- -v",
    ]


def test_looking_makes_no_library(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = inspect(capsys, picture(tmp_path, "<hypernet:ink:1>"))
    assert not row["hypernetworks"][0]["in_library"]
    assert list(home.iterdir()) == []


def test_comfyuis_graph_is_told_alike(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.ckpt"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog"}},
        "4": {"class_type": "HypernetworkLoader", "inputs": {"hypernetwork_name": "ink.pt", "strength": 0.3}},
        "5": {"class_type": "HypernetworkLoader", "inputs": {"hypernetwork_name": "dots.pt", "strength": 1}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 4, "steps": 9, "positive": ["2", 0], "model": ["4", 0]}},
    }
    graph["4"]["inputs"]["model"], graph["5"]["inputs"]["model"] = ["5", 0], ["1", 0]
    about = PngInfo()
    about.add_text("prompt", json.dumps(graph))
    IMAGE.save(tmp_path / "a.png", pnginfo=about)
    (row,) = inspect(capsys, tmp_path / "a.png")
    assert row["prompt"].startswith("a dog")
    assert (row["settings"]["Seed"], row["settings"]["Model"]) == ("4", "m")
    assert row["hypernetworks"] == [
        {"name": "dots", "strength": 1.0, "hash": None, **held_as(demo.networks()["dots"], "comes_with_model")},
        {"name": "ink", "strength": 0.3, "hash": None, **held_as(library / "ink.pt")},
    ]


def test_the_networks_of_both_passes_are_listed(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = picture(tmp_path, "a cat <hypernet:fog:0.5>", Hires_prompt="a cat <hypernet:ink:0.7> <hypernet:fog:0.5>")
    (row,) = inspect(capsys, path)
    assert [(one["name"], one["strength"], one["pass"]) for one in row["hypernetworks"]] == [
        ("fog", 0.5, 1),
        ("ink", 0.7, 2),
        ("fog", 0.5, 2),
    ]
    assert run(["inspect", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "ink at 0.7 in the second pass: in the library" in out
    assert err.count("fog is not in the library") == 1


def test_a_malformed_tag_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = inspect(capsys, picture(tmp_path, "a <hypernet:ink:num>"))
    assert row["hypernetworks"] == []
    assert "<hypernet:ink:num>" in row["warnings"][0]
    assert row["prompt"] == "a <hypernet:ink:num>"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_picture_without_settings_says_so_and_is_exit_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    IMAGE.save(tmp_path / name)
    (row,) = inspect(capsys, tmp_path / name, code=4)
    assert (row["kind"], row["settings"], row["hypernetworks"]) == ("picture", {}, [])
    assert run(["inspect", str(tmp_path / name)]) == 4
    out, err = capsys.readouterr()
    assert "no settings" in out
    assert "the picture carries no settings" in err


def test_a_hostile_picture_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = PngInfo()
    about.add_text("parameters", "x" * (40 << 20), zip=True)
    IMAGE.save(tmp_path / "a.png", pnginfo=about)
    assert inspect(capsys, tmp_path / "a.png", code=7) == []


def test_pictures_and_networks_stand_in_one_list(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = inspect(capsys, picture(tmp_path, "a cat"), library / "ink.pt")
    assert [row["kind"] for row in rows] == ["picture", "hypernetwork"]
    assert run(["inspect", "--csv", str(tmp_path / "a.png"), str(library / "ink.pt")]) == 0


def test_the_card_of_a_picture_reads_well(library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = picture(tmp_path, "a cat\nin the sun\x1b[2J <hypernet:ink:0.5>")
    assert run(["inspect", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(path),
        "  prompt       a cat",
        r"               in the sun\x1b[2J <hypernet:ink:0.5>",
        "  negative     blurry",
        "  settings     Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 42, Size: 512x512",
        "  network      ink at 0.5: in the library",
    ]


def test_a_picture_is_inspected_without_anything_heavy(library: Path, tmp_path: Path) -> None:
    path = picture(tmp_path, "<hypernet:ink:1>")
    code = "import sys; from hnetkit.cli import run; run(sys.argv[1:]); print({'torch', 'PIL'} & set(sys.modules))"
    command = [sys.executable, "-P", "-c", code, "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_picture_that_was_made_to_take_all_memory_is_refused_and_the_next_one_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = PngInfo()
    about.add_text("prompt", "[" + "{}," * 1_000_000 + "0]", zip=True)
    IMAGE.save(tmp_path / "bomb.png", pnginfo=about)
    assert run(["inspect", "--json", str(tmp_path / "bomb.png"), str(picture(tmp_path, "a cat"))]) != 0
    out, err = capsys.readouterr()
    assert [row["prompt"] for row in json.loads(out)] == ["a cat"]
    assert "bomb.png: its ComfyUI graph cannot be read" in err
    assert "carries no settings" not in err


def test_of_countless_networks_few_are_looked_up(
    library: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = "".join(f"<hypernet:n{number}:1>" for number in range(10_000))
    assert run(["inspect", "--json", str(picture(tmp_path, names))]) == 0
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert len(row["hypernetworks"]) == 100
    assert len(err.splitlines()) == 100
    assert row["warnings"] == ["10,000 hypernetworks are named; only the first 100 are read"]
