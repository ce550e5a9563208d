"""One network over HTTP: what its page says, what it changes, and that each change is that of a command."""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.gallery import Server, running
from support.networks import a1111_network, save_pt

import hnetkit
from hnetkit.cli import run
from hnetkit.gallery.network_page import is_https, python_text, verdict_of
from hnetkit.gallery.pages import path_part
from hnetkit.image_text import write_image

SETTINGS = "a castle <hypernet:ink:0.8>\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "networks"


@pytest.fixture
def place(library: hnetkit.Library) -> str:
    """The address of the page of ``ink``."""
    return f"/network/{path_part(library.record('ink')['content_hash'])}"


def picture(kind: str = "PNG") -> str:
    kept = io.BytesIO()
    Image.new("RGB", (48, 32), "red").save(kept, kind)
    return base64.b64encode(kept.getvalue()).decode()


def done(server: Server, address: str, **values: Any) -> dict[str, Any]:
    answer = server.change(address, values)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert set(found) == {"said", "command"}
    return found


# --- what the page says


def test_a_page_has_all_that_show_prints(
    server: Server, library: hnetkit.Library, place: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "ink.json").write_text(json.dumps({"activation text": "ink wash", "notes": "at night\ntoo"}))
    library.scan()
    assert run(["show", "ink"]) == 0
    page = html.unescape(server.get(place).text)
    for line in capsys.readouterr().out.splitlines()[1:]:
        text = line[17:].strip() or line.strip()
        parts = [text] if not text.startswith(("night", "lineart")) else text.split(", ")
        parts = re.split(r", A1111's hash |, (?=pt-zip)| in 2022|, \[", text) if "A1111" in text else parts
        for part in parts:
            assert part.strip(" []").removeprefix("sha256 ") in page, line


def test_what_to_copy_is_the_tag_at_the_suggested_strength_with_the_words(
    server: Server, library: hnetkit.Library, place: str
) -> None:
    library.tag("ink", strength=0.7, trigger_words='"wash" & co')
    copied = [html.unescape(text) for text in re.findall(r'data-copy="([^"]*)"', server.get(place).text)]
    assert copied[0] == '<hypernet:ink:0.7> "wash" & co'
    assert "set_hypernetworks(pipe, ['ink'], [0.7])" in copied[1]


def test_copied_python_is_python() -> None:
    compile(python_text("a'b\n\"c", 0.8), "copied", "exec")


def test_the_neighbours_are_those_of_the_present_filter(
    server: Server, library: hnetkit.Library, place: str, folder: Path
) -> None:
    lines, wash = (path_part(library.record(name)["content_hash"]) for name in ("lines", "wash"))
    assert f'rel="next" href="/network/{lines}?' in server.get(place).text
    assert 'rel="prev"' not in server.get(place).text
    filtered = server.get(f"{place}?activation=linear").text
    assert f'rel="next" href="/network/{wash}?activation=linear"' in html.unescape(filtered)


def test_a_preview_is_shown_with_the_prompt_that_it_was_drawn_with(
    server: Server, library: hnetkit.Library, place: str, folder: Path
) -> None:
    write_image(folder / "ink.preview.png", Image.new("RGB", (64, 32), "red"), SETTINGS)
    library.scan()
    page = html.unescape(server.get(place).text)
    assert SETTINGS.splitlines()[0] in page
    answer = server.get(f"{place}/preview/0")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/webp")
    assert b"castle" not in answer.content, "only pixels leave"
    assert server.get(f"{place}/preview/1").status_code == 404


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
def test_a_preview_that_is_a_link_out_of_the_library_is_not_read(
    server: Server, library: hnetkit.Library, place: str, folder: Path, tmp_path: Path
) -> None:
    write_image(tmp_path / "private.png", Image.new("RGB", (64, 32), "red"), SETTINGS)
    (folder / "ink.preview.png").symlink_to(tmp_path / "private.png")
    library.scan()
    assert "castle" not in server.get(place).text
    assert server.get(f"{place}/preview/0").status_code == 404


def test_widths_that_were_never_trained_are_named(server: Server, library: hnetkit.Library, folder: Path) -> None:
    net = hnetkit.load(folder / "ink.pt")
    assert "Every width was trained" in server.get(f"/network/{path_part(net.content_hash)}").text
    content = a1111_network(widths=(320, 768), seed=8)
    for side in content[320]:
        for key in side:
            if key.endswith("bias"):
                side[key].zero_()
    save_pt(content, folder / "fresh.pt")
    library.scan()
    page = server.get(f"/network/{path_part(library.record('fresh')['content_hash'])}").text
    assert "Never trained: width 320." in page


def test_a_network_in_no_file_says_what_to_do(
    server: Server, library: hnetkit.Library, place: str, folder: Path
) -> None:
    (folder / "ink.pt").unlink()
    library.scan()
    page = server.get(place).text
    assert ">missing</span>" in page
    assert "hnetkit scan FOLDER" in page
    assert "No file can be read to see which widths were trained" in page


def file(state: str, *warnings: str) -> dict[str, Any]:
    return {"state": state, "path": "/nets/ink.pt", "warnings": list(warnings)}


@pytest.mark.parametrize(
    ("files", "has_site", "word", "command"),
    [
        ([file("present")], False, "sound", None),
        (
            [file("present", "activate_output is missing: taken")],
            False,
            "with warnings",
            "hnetkit validate /nets/ink.pt",
        ),
        ([file("present"), file("corrupt")], False, "with warnings", "hnetkit validate /nets/ink.pt"),
        ([file("corrupt")], True, "damaged", "hnetkit repair"),
        ([file("corrupt")], False, "damaged", None),
        ([file("missing")], True, "missing", "hnetkit repair"),
        ([], False, "missing", "hnetkit scan FOLDER"),
    ],
)
def test_a_verdict_has_its_reasons_and_what_helps(
    files: list[dict[str, Any]], has_site: bool, word: str, command: str | None
) -> None:
    row = {"files": files, "sites": [{}] if has_site else [], "elsewhere": [], "imported": []}
    verdict = verdict_of(row)
    assert (verdict.word, verdict.command) == (word, command)
    assert bool(verdict.reasons) == (word != "sound")
    assert all(advice for _, advice in verdict.reasons)


@pytest.mark.parametrize(
    ("address", "is_link"),
    [
        ("https://civitai.com/models/4209", True),
        ("http://civitai.com/models/4209", False),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("https://user@host/", False),
        ("https://[", False),
        (None, False),
    ],
)
def test_only_a_page_of_a_site_is_a_link(address: str | None, is_link: bool) -> None:
    assert is_https(address) == is_link


def test_texts_of_strangers_are_texts(server: Server, library: hnetkit.Library, place: str, folder: Path) -> None:
    hostile = "</textarea><script>alert(1)</script>\u202e'\"><img src=x onerror=alert(1)>"
    (folder / "ink.json").write_text(json.dumps({"activation text": hostile, "notes": hostile, "description": hostile}))
    library.tag("ink", hostile.replace(",", ""), note=hostile * 900)
    library.scan()
    page = server.get(place).text
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert page.count("</textarea>") == 2


def test_a_strip_can_be_drawn_where_a_file_is_there(
    server: Server, library: hnetkit.Library, place: str, folder: Path
) -> None:
    assert 'data-change="/drawing/add"' in server.get(place).text
    (folder / "ink.pt").unlink()
    library.scan()
    assert 'data-change="/drawing/add"' not in server.get(place).text


def test_how_it_leaves_is_said_with_the_command(server: Server, library: hnetkit.Library, place: str) -> None:
    page = html.unescape(server.get(place).text)
    assert "Exactly, to rounding" in page
    assert "hnetkit bake -n ink:1 --to lora --out ink-lora.safetensors" in page
    other = server.get(f"/network/{path_part(library.record('lines')['content_hash'])}").text
    assert "Fitted" in other


# --- what it changes


def test_tags_and_aliases_are_added_and_removed_one_by_one(
    server: Server, library: hnetkit.Library, place: str
) -> None:
    answer = done(server, f"{place}/tags", add="mine, two words")
    assert answer == {"said": "Tagged: mine, two words", "command": "hnetkit tag ink mine 'two words'"}
    done(server, f"{place}/tags", remove="night")
    done(server, f"{place}/aliases", add="other")
    done(server, f"{place}/aliases", remove="tinte")
    row = library.record("ink")
    assert (row["tags"], row["aliases"]) == (["lineart", "mine", "two words"], ["other"])


def test_two_at_once_and_a_scan_lose_nothing(server: Server, library: hnetkit.Library, place: str) -> None:
    names = [f"tag{number}" for number in range(24)]
    with ThreadPoolExecutor(6) as pool:
        scans = pool.submit(run, ["scan", "-q"])
        answers = list(pool.map(lambda name: server.change(f"{place}/tags", {"add": name}).status_code, names))
        assert scans.result() == 0
    assert answers == [200] * len(names)
    assert set(names) <= set(library.record("ink")["tags"])


@pytest.mark.parametrize(("action", "value", "before"), [("note", "note", "best at 0.8"), ("words", "words", "")])
def test_a_text_that_changed_meanwhile_is_refused_with_the_one_that_is_there(
    server: Server, library: hnetkit.Library, place: str, action: str, value: str, before: str
) -> None:
    done(server, f"{place}/{action}", **{value: "first\r\nof all", "before": before})
    answer = server.change(f"{place}/{action}", {value: "second", "before": before})
    assert answer.status_code == 409
    assert answer.json()["now"] == "first\nof all"
    assert "changed meanwhile" in answer.json()["error"]
    done(server, f"{place}/{action}", **{value: "second", "before": "first\nof all"})
    done(server, f"{place}/{action}", **{value: "", "before": "second"})
    row = library.record("ink")
    assert not row["note"] if action == "note" else not row["sidecars"][0].get("activation_text")


def test_a_preview_is_written_anew_beside_the_file(
    server: Server, library: hnetkit.Library, place: str, folder: Path
) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        answer = done(server, f"{place}/preview", data=picture(kind), file_name="../../my castle.png")
        assert answer["command"] == "hnetkit tag ink --preview '../../my castle.png'"
        with Image.open(folder / "ink.preview.png") as image:
            assert (image.format, image.size) == ("PNG", (48, 32))
    assert server.get(f"{place}/preview/0").status_code == 200
    done(server, f"{place}/preview", remove="1")
    assert not (folder / "ink.preview.png").exists()
    assert library.record("ink")["sidecars"] == []


def test_a_preview_that_is_none_is_a_sentence(server: Server, place: str, folder: Path) -> None:
    for data in ("", "!", base64.b64encode(b"<html>").decode(), picture()[:40]):
        answer = server.change(f"{place}/preview", {"data": data, "file_name": "castle.png"})
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"]
        assert "hnetkit-" not in answer.text, "no path of a temporary file is told"
        assert not (folder / "ink.preview.png").exists()


def test_the_strength_is_seen_by_the_command_line_at_once_and_the_other_way_round(
    server: Server, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert done(server, f"{place}/strength", strength="-0.5")["command"] == "hnetkit tag ink --strength=-0.5"
    assert run(["show", "ink"]) == 0
    assert "weight         -0.5 preferred" in capsys.readouterr().out
    assert run(["tag", "ink", "--strength", "0.9", "seen"]) == 0
    page = html.unescape(server.get(place).text)
    assert "<hypernet:ink:0.9>" in page
    assert 'value="seen"' in page


COMMANDS = {
    "tags": {"add": "-dash, it's"},
    "aliases": {"add": "feder"},
    "note": {"note": "- a 'list'\n- of two", "before": "best at 0.8"},
    "strength": {"strength": "-1.5"},
    "words": {"words": 'a "b" $HOME', "before": ""},
}


@pytest.mark.skipif(os.name == "nt", reason="commands are shown for a POSIX shell")
def test_the_command_that_is_said_does_the_same(server: Server, library: hnetkit.Library, place: str) -> None:
    for action, given in COMMANDS.items():
        begin_again(library)
        command = done(server, f"{place}/{action}", **given)["command"]
        wanted = told(library.record("ink"))
        begin_again(library)
        assert told(library.record("ink")) != wanted
        assert run(words_of(command)[1:]) == 0
        assert told(library.record("ink")) == wanted


def words_of(command: str) -> list[str]:
    """Returns the words of a command, as a shell reads them."""
    said = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], stdout=subprocess.PIPE, text=True, check=True)
    return said.stdout.split("\0")[:-1]


def begin_again(library: hnetkit.Library) -> None:
    row = library.record("ink")
    nothing = {"note": "", "strength": "", "trigger_words": ""}
    library.tag("ink", remove=row["tags"], remove_aliases=row["aliases"], **nothing)  # type: ignore[arg-type]
    library.tag("ink", "night", "lineart", alias="tinte", note="best at 0.8")


def told(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a person says of a network."""
    said = [(one.get("preferred_weight"), one.get("activation_text") or None) for one in row["sidecars"]]
    return row["tags"], row["aliases"], row["note"], said or [(None, None)]


def shown_by(server: Server, view: str) -> str:
    """Which networks the page of a view shows, as it sends that with a change of all of them."""
    (networks,) = re.findall(r'name="which" value="([^"]+)"', server.get(f"/{view}").text)
    return str(networks)


def test_all_that_the_filters_show_are_tagged_at_once(server: Server, library: hnetkit.Library) -> None:
    view = "?activation=linear"
    values = {"view": view, "which": shown_by(server, view), "tags": "soft, -x", "do": "add"}
    answer = done(server, "/tags", **values)
    assert answer["said"] == "Tagged 2 networks: soft, -x"
    assert answer["command"] == "hnetkit tag ink soft -- -x; hnetkit tag wash soft -- -x"
    tags = {name: library.record(name)["tags"] for name in ("ink", "wash", "lines")}
    assert tags == {"ink": ["-x", "lineart", "night", "soft"], "wash": ["-x", "soft"], "lines": []}
    assert done(server, "/tags", **values)["said"].startswith("Tagged 0 networks")
    removed = done(server, "/tags", view="?", which=shown_by(server, ""), tags="night, -x", do="remove")
    assert removed["said"] == "Untagged 2 networks: night, -x"
    assert library.record("ink")["tags"] == ["lineart", "soft"]
    assert server.change("/tags", {**values, "which": ""}).status_code == 409
    assert server.change("/tags", {**values, "tags": ","}).status_code == 400
    assert server.change("/tags", values, Origin="http://evil.example").status_code == 403


def test_networks_that_nobody_saw_on_the_page_are_not_tagged_with_those_that_it_showed(
    server: Server, library: hnetkit.Library
) -> None:
    library.tag_all([library.record(name)["content_hash"] for name in ("ink", "wash")], "chosen")
    seen = shown_by(server, "?tag=chosen")
    library.tag("wash", remove=["chosen"])
    library.tag("lines", "chosen")
    answer = server.change("/tags", {"view": "?tag=chosen", "which": seen, "tags": "soft", "do": "add"})
    assert (answer.status_code, answer.json()["error"]) == (
        409,
        "these filters show other networks by now, 2 in all",
    )
    assert not any("soft" in library.record(name)["tags"] for name in ("ink", "wash", "lines"))


# --- what is done with its files


def test_a_file_is_validated_and_converted_and_the_copy_is_known_at_once(
    server: Server, library: hnetkit.Library, place: str, folder: Path
) -> None:
    ink = str(folder / "ink.pt")
    roots = library.registry.files.roots()
    assert done(server, f"{place}/validate", file=ink) == {
        "said": "Every value was read: sound",
        "command": f"hnetkit validate {ink}",
    }
    answer = done(server, f"{place}/convert", file=ink, to="safetensors")
    assert answer["command"] == f"hnetkit convert {ink} {folder / 'ink.safetensors'}"
    assert library.record("ink")["copies"] == 2
    assert library.registry.files.roots() == roots
    again = server.change(f"{place}/convert", {"file": ink, "to": "safetensors"})
    assert (again.status_code, "exists" in again.json()["error"]) == (400, True)


def test_a_file_with_bad_values_is_refused_in_a_sentence(
    server: Server, library: hnetkit.Library, folder: Path
) -> None:
    bad = folder / "bad.pt"
    content = a1111_network(widths=(320,), seed=8)
    content[320][0]["linear.0.weight"][0, 0] = float("nan")
    save_pt(content, bad)
    library.scan()
    place = f"/network/{path_part(library.record(str(bad))['content_hash'])}"
    answer = server.change(f"{place}/validate", {"file": str(bad)})
    assert answer.status_code == 422
    assert answer.json()["hint"] == "get the file again, or an earlier save of it"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="xdg-open is that of Linux")
def test_a_file_is_shown_in_its_folder_without_a_shell(
    library: hnetkit.Library, place: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "xdg-open"
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$#" "$@" > {tmp_path / "opened"}\n')
    fake.chmod(0o755)
    odd = tmp_path / "a folder; touch hacked $(touch hacked)"
    odd.mkdir()
    shutil.copy(folder / "ink.pt", odd / "ink.pt")
    library.scan(odd)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    with running() as server:
        answer = done(server, f"{place}/reveal", file=str(odd / "ink.pt"))
        assert (tmp_path / "opened").read_text() == f"1\n{odd}\n"
        assert shlex.split(answer["command"]) == ["xdg-open", str(odd)]
        fake.write_text("#!/bin/sh\nexit 3\n")
        failed = server.change(f"{place}/reveal", {"file": str(odd / "ink.pt")})
        assert "opened nothing" in failed.json()["error"]
    assert not list(tmp_path.rglob("hacked"))


def test_a_file_that_went_away_is_not_shown_in_its_folder(
    server: Server, library: hnetkit.Library, place: str, folder: Path
) -> None:
    path = folder / "ink.pt"
    path.unlink()
    answer = server.change(f"{place}/reveal", {"file": str(path)})
    assert (answer.status_code, answer.json()["hint"]) == (404, "hnetkit repair fetches it; hnetkit scan finds it")
    assert "not there any more" in answer.json()["error"]


def test_of_a_network_in_the_trash_a_page_says_what_brings_it_back(
    server: Server, library: hnetkit.Library, place: str
) -> None:
    library.remove("ink")
    answer = server.change(f"{place}/tags", {"add": "x"})
    assert (answer.status_code, answer.json()["hint"]) == (404, "hnetkit remove --undo ink brings it back")
    assert "hnetkit remove --undo ink brings it back" in server.get(place).text


def test_a_network_is_linked_into_the_folder_of_a_program(
    server: Server, library: hnetkit.Library, place: str, tmp_path: Path
) -> None:
    webui = tmp_path / "webui"
    (webui / "models" / "hypernetworks").mkdir(parents=True)
    (webui / "webui.py").touch()
    (webui / "launch.py").touch()
    answer = done(server, f"{place}/link", directory=str(webui), layout="a1111")
    assert answer["command"] == f"hnetkit link {webui} --layout a1111 ink"
    assert [path.name for path in (webui / "models" / "hypernetworks").iterdir()] == ["ink.pt"]
    again = done(server, f"{place}/link", directory=str(webui))
    assert f"already there: {webui}" in again["said"]
    (tmp_path / "bare").mkdir()
    untold = server.change(f"{place}/link", {"directory": str(tmp_path / "bare"), "layout": ""})
    assert (untold.status_code, untold.json()["hint"]) == (400, "choose the program beside it")
    assert "<option>forge</option>" in server.get(place).text
    for wrong in ("", "webui", str(tmp_path / "none")):
        assert 400 <= server.change(f"{place}/link", {"directory": wrong}).status_code < 500


# --- what is refused


def test_no_file_but_the_networks_own_is_touched(server: Server, place: str) -> None:
    paths = ("/etc/passwd", "../ink.pt", "", "networks/ink.pt", "file:///etc/passwd", "\0")
    for action, path in itertools.product(("validate", "convert", "reveal"), paths):
        answer = server.change(f"{place}/{action}", {"file": path, **({"to": "pt"} if action == "convert" else {})})
        assert answer.status_code == 404
        assert "no file of this network" in answer.json()["error"]


WRONG: list[tuple[str, Any, int]] = [
    ("tags", [], 400),
    ("tags", {"add": 5}, 400),
    ("tags", {"add": " , "}, 400),
    ("tags", {"add": "\ud800"}, 400),
    ("tags", {"other": "x"}, 400),
    ("tags", {"remove": "no such tag"}, 400),
    ("aliases", {"add": "a:b"}, 400),
    ("note", {"note": "x" * (2 << 20), "before": ""}, 400),
    ("strength", {"strength": "much"}, 400),
    ("strength", {"strength": "0"}, 400),
    ("convert", {"to": "exe"}, 404),
    ("no such action", {}, 404),
    ("__class__", {}, 404),
]


def test_what_is_wrong_is_said_with_what_to_do_and_changes_nothing(
    server: Server, library: hnetkit.Library, place: str
) -> None:
    before = library.record("ink")
    for action, given, status in WRONG:
        answer = server.change(f"{place}/{action}", given)
        assert (action, answer.status_code) == (action, status)
        assert answer.json()["error"]
        assert answer.json()["hint"]
        assert "Traceback" not in answer.text
        assert library.record("ink") == before
    assert server.change("/network/h1%3Anone/tags", {"add": "x"}).status_code == 404


def test_a_page_of_another_origin_changes_nothing(server: Server, library: hnetkit.Library, place: str) -> None:
    headers: list[dict[str, str | None]] = [
        {"Origin": "http://evil.example"},
        {"Origin": None},
        {"X-Gallery-Token": None},
        {"X-Gallery-Token": "guess"},
        {"Content-Type": "text/plain"},
    ]
    for wrong in headers:
        assert server.change(f"{place}/tags", {"add": "evil"}, **wrong).status_code == 403
    assert "evil" not in library.record("ink")["tags"]
    assert server.get(f"{place}/tags").status_code in (404, 405)
