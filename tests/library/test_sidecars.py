"""Sidecars: what the tools of 2022 to 2025 left beside a file is read, and nothing of a person's is written over."""

from __future__ import annotations

import io
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hnetkit.errors import OutputExists
from hnetkit.library import sidecar_writing, sidecars

VERSION = {"id": 33, "modelId": 11, "name": "v1", "trainedWords": ["ink"], "files": [{"name": "ink.pt"}], "model": {}}
MODEL = {"id": 11, "name": "Ink", "modelVersions": [{"id": 33, "files": [{"name": "ink.pt"}]}, {"id": 34, "files": []}]}
MATRIX = {
    "ModelId": 11,
    "VersionId": 33,
    "ModelDescription": "<p>ink</p>",
    "Tags": ["style", "ink", 7],
    "TrainedWords": ["ink wash", "ink"],
    "BaseModel": "SD 1.5",
}
MANAGER = {"civitai": {"id": 33, "modelId": 11}, "notes": "mine", "tags": ["ink", "line"], "modelDescription": "lm"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "ink.pt"
    path.write_bytes(b"model")
    return path


def put(model: Path, suffix: str, value: Any) -> Path:
    path = model.with_name("ink" + suffix)
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def picture(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, format)
    return buffer.getvalue()


# --- reading


def test_where_no_sidecar_is_nobody_said_anything(model: Path) -> None:
    found = sidecars.read(model)
    assert found.looked_up is False
    assert found.unreadable == ()
    assert {name for name in found.__slots__ if getattr(found, name) not in (None, False, ())} == set()


def test_a_version_is_read_from_civitai_info(model: Path) -> None:
    put(model, ".civitai.info", VERSION)
    found = sidecars.read(model)
    assert (found.civitai_version, found.civitai_model) == (VERSION, None)
    assert (found.model_id, found.version_id, found.looked_up) == (11, 33, False)


def test_civitai_info_with_a_whole_model_gives_the_version_that_lists_the_file(model: Path) -> None:
    put(model, ".civitai.info", MODEL)
    found = sidecars.read(model)
    assert found.civitai_model == MODEL
    assert found.civitai_version == MODEL["modelVersions"][0]  # type: ignore[index]
    assert (found.model_id, found.version_id) == (11, 33)


def test_which_of_several_versions_it_is_is_never_guessed(model: Path) -> None:
    put(model, ".civitai.info", MODEL | {"modelVersions": [{"id": 1, "files": None}, {"id": 2}, "x"]})
    found = sidecars.read(model)
    assert (found.civitai_version, found.model_id, found.version_id) == (None, 11, None)


def test_an_empty_civitai_info_says_that_civitai_was_asked(model: Path) -> None:
    put(model, ".civitai.info", {})
    found = sidecars.read(model)
    assert found.looked_up
    assert (found.civitai_version, found.unreadable) == (None, ())


@pytest.mark.parametrize("payload", [MODEL, [MODEL], [1, {}, MODEL]])
@pytest.mark.parametrize("suffix", [".json", ".api_info.json"])
def test_a_raw_model_is_read_from_sdnext_and_browser_plus(model: Path, suffix: str, payload: Any) -> None:
    put(model, suffix, payload)
    found = sidecars.read(model)
    assert (found.civitai_model, found.model_id, found.description) == (MODEL, 11, None)


def test_a1111_s_metadata_is_read_and_empty_is_not_absent(model: Path) -> None:
    user = {"description": "", "activation text": "ink", "preferred weight": "0.8", "sd version": "SD1", "more": 1}
    put(model, ".json", user)
    found = sidecars.read(model)
    assert (found.description, found.notes, found.activation_text, found.preferred_weight, found.sd_version) == (
        *("", None, "ink"),
        *(0.8, "SD1"),
    )


def test_browser_plus_adds_its_ids_to_a1111_s_file(model: Path) -> None:
    put(model, ".json", {"modelId": "11", "modelVersionId": "33", "sha256": "AB", "description": "text"})
    found = sidecars.read(model)
    assert (found.model_id, found.version_id, found.description) == (11, 33, "text")
    assert (found.civitai_model, found.civitai_version) == (None, None)


def test_stability_matrix_and_lora_manager_are_read_together(model: Path) -> None:
    put(model, ".cm-info.json", MATRIX)
    put(model, ".metadata.json", MANAGER)
    found = sidecars.read(model)
    assert (found.model_id, found.version_id, found.notes) == (11, 33, "mine")
    assert (found.description, found.activation_text, found.sd_version) == ("<p>ink</p>", "ink wash, ink", "SD 1.5")
    assert found.tags == ("style", "ink", "line")


def test_a_person_s_words_come_before_a_tool_s(model: Path) -> None:
    put(model, ".cm-info.json", MATRIX)
    put(model, ".description.txt", "beschreibung \xff".encode("latin-1"))
    assert sidecars.read(model).description == "beschreibung \N{REPLACEMENT CHARACTER}"
    put(model, ".json", {"description": " "})
    assert sidecars.read(model).description == "beschreibung \N{REPLACEMENT CHARACTER}"
    put(model, ".json", {"description": "mine"})
    assert sidecars.read(model).description == "mine"


def test_the_preview_is_the_one_that_a1111_shows(model: Path) -> None:
    names = ["ink.preview.gif", "ink.gif", "ink.preview.jpg", "ink.jpg", "ink.preview.png", "ink.png"]
    for name in names:
        model.with_name(name).write_bytes(b"")
        assert sidecars.read(model).preview == model.with_name(name)


def test_two_files_of_one_stem_share_their_sidecars(model: Path) -> None:
    put(model, ".civitai.info", VERSION)
    assert sidecars.read(model.with_suffix(".safetensors")) == sidecars.read(model)


HOSTILE = [
    b"",
    b"not json",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b"7",
    b'"text"',
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"id": ' + b"9" * 10_000 + b"}",
    b" " * ((8 << 20) + 1),
]
SUFFIXES = [".civitai.info", ".json", ".api_info.json", ".cm-info.json", ".metadata.json"]


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_sidecar_that_is_not_valid_is_reported(model: Path, suffix: str, data: bytes) -> None:
    path = put(model, suffix, data)
    found = sidecars.read(model)
    assert [it.path for it in found.unreadable] == [path]
    assert found.unreadable[0].reason
    assert found.looked_up is False


WRONG = [None, 7, -1, 2**70, 1e400, True, "", "x", "\ud800", [], [None, 3, {}], {}, {"id": []}, [[["deep"]]]]


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
def test_any_value_under_any_key_is_survived(model: Path, value: Any) -> None:
    keys = [*VERSION, *MODEL, *MATRIX, *MANAGER, *sidecars.A1111_KEYS, "modelVersionId"]
    for suffix in SUFFIXES:
        put(model, suffix, dict.fromkeys(keys, value))
    found = sidecars.read(model)
    for name in ("description", "notes", "activation_text", "negative_text", "sd_version"):
        text = getattr(found, name)
        assert text is None or text.encode() is not None
    assert all(id is None or 0 < id < 2**63 for id in (found.model_id, found.version_id))
    assert found.preferred_weight is None or abs(found.preferred_weight) < float("inf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_all_sidecars_together_take_little_memory_and_one_that_is_too_large_costs_no_other(model: Path) -> None:
    for suffix in (".civitai.info", ".api_info.json", ".cm-info.json", ".metadata.json"):
        put(model, suffix, b'{"a":[' + b"{}," * 2_000_000 + b"0]}")
    for suffix in (".txt", ".description.txt"):
        put(model, suffix, b"x" * (8 << 20))
    put(model, ".json", {"notes": "mine"})
    tracemalloc.start()
    try:
        found = sidecars.read(model)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * sidecars.MAX_TOGETHER
    assert found.notes == "mine"
    assert len(found.unreadable) == 6


def test_sidecars_as_large_as_real_ones_are_read(model: Path) -> None:
    images = [{"url": f"https://x/{n}", "meta": {"prompt": "a castle, " * 20, "seed": n}} for n in range(2_000)]
    versions = [{"id": 2, "images": images, "files": [{"name": model.name}]}]
    put(model, ".civitai.info", {"id": 1, "modelVersions": versions})
    put(model, ".txt", b"words " * 10_000)
    found = sidecars.read(model)
    assert (found.model_id, found.version_id, found.unreadable) == (1, 2, ())


def test_a_pipe_or_a_folder_under_a_sidecar_s_name_is_not_waited_for(model: Path) -> None:
    os.mkfifo(model.with_name("ink.json"))
    model.with_name("ink.civitai.info").mkdir()
    model.with_name("ink.png").mkdir()
    found = sidecars.read(model)
    assert {it.path.name for it in found.unreadable} == {"ink.json", "ink.civitai.info"}
    assert found.preview is None


# --- writing


def test_what_is_written_is_read_back(model: Path) -> None:
    path = sidecar_writing.write_info(model, VERSION | {"name": "墨 \ud800"})
    assert path.name == "ink.civitai.info"
    assert sidecars.read(model).civitai_version == VERSION | {"name": "墨 \ud800"}
    assert sidecar_writing.write_preview(model, picture("PNG")) == sidecars.read(model).preview


def test_writing_replaces_only_when_asked_to(model: Path) -> None:
    sidecar_writing.write_info(model, VERSION)
    sidecar_writing.write_preview(model, picture("PNG"))
    before = tree(model.parent)
    with pytest.raises(OutputExists):
        sidecar_writing.write_info(model, {})
    with pytest.raises(OutputExists):
        sidecar_writing.write_preview(model, picture("PNG") + b"other")
    assert tree(model.parent) == before
    sidecar_writing.write_info(model, {}, replace=True)
    assert sidecars.read(model).looked_up


@pytest.mark.parametrize(("format", "suffix"), [("PNG", ".png"), ("JPEG", ".jpeg"), ("WEBP", ".webp"), ("GIF", ".gif")])
def test_a_preview_has_the_suffix_of_its_bytes(model: Path, format: str, suffix: str) -> None:
    data = picture(format)
    path = sidecar_writing.write_preview(model, data)
    assert path == model.with_name(f"ink.preview{suffix}")
    assert path.read_bytes() == data


@pytest.mark.parametrize("data", [b"", b"<html>", b"RIFF1234WAVE", b"\x00\x00\x00\x18ftypmp42"])
def test_what_is_no_picture_is_not_written(model: Path, data: bytes) -> None:
    assert sidecar_writing.write_preview(model, data) is None
    assert [path.name for path in model.parent.iterdir()] == ["ink.pt"]


def test_merging_makes_a_file_with_a1111_s_keys_only(model: Path) -> None:
    path = sidecar_writing.merge_a1111(model, {"activation text": "ink", "notes": None, "modelId": 3})
    assert path is not None
    assert json.loads(path.read_text()) == {"activation text": "ink"}
    assert sidecar_writing.merge_a1111(model.with_name("other.pt"), {"modelId": 3}) is None
    assert not model.with_name("other.json").exists()


def test_merging_keeps_what_a_person_wrote_and_every_unknown_key(model: Path) -> None:
    user = {
        "vae_te": ["x"],
        "description": "mine",
        "notes": "",
        "preferred weight": 0,
        "sd version": "Unknown",
        "modelId": 11,
    }
    path = put(model, ".json", user)
    values = {"description": "theirs", "notes": "n", "preferred weight": 0.8, "sd version": "SD1"}
    assert sidecar_writing.merge_a1111(model, values) == path
    merged = json.loads(path.read_text())
    assert merged == user | values | {"description": "mine"}
    assert list(merged)[:6] == list(user)
    before = path.stat()
    assert sidecar_writing.merge_a1111(model, values | {"notes": "others"}) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    "existing", [MODEL, [MODEL], VERSION, b"{", b"[1]", b'{"a":' * 500 + b"1" + b"}" * 500], ids=range(6)
)
def test_merging_leaves_alone_what_is_not_a1111_s(model: Path, existing: Any) -> None:
    path = put(model, ".json", existing)
    before = path.read_bytes()
    merged = sidecar_writing.merge_a1111(model, {"notes": "n"})
    assert path.read_bytes() == before or (merged == path and json.loads(path.read_bytes())["notes"] == "n")
    if not isinstance(existing, bytes) or len(existing) < 9:
        assert merged is None


def test_merging_writes_through_a_link(model: Path, tmp_path: Path) -> None:
    real = tmp_path / "notes.json"
    real.write_text('{"notes": ""}')
    try:
        model.with_name("ink.json").symlink_to(real)
    except OSError:
        pytest.skip("this user may not create symbolic links (on Windows, turn on developer mode)")
    sidecar_writing.merge_a1111(model, {"notes": "n"})
    assert model.with_name("ink.json").is_symlink()
    assert json.loads(real.read_text()) == {"notes": "n"}


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
@pytest.mark.parametrize("suffix", [".txt", ".description.txt", ".json", ".civitai.info", ".metadata.json"])
def test_a_link_to_a_file_elsewhere_is_not_read(model: Path, suffix: str, tmp_path: Path) -> None:
    private = tmp_path / "elsewhere" / "private"
    private.parent.mkdir()
    private.write_text('{"description": "secret", "notes": "secret", "modelDescription": "secret"}')
    model.with_name(f"ink{suffix}").symlink_to(private)
    found = sidecars.read(model)
    assert [it.path for it in found.unreadable] == [model.with_name(f"ink{suffix}")]
    assert "secret" not in repr(found.as_row())


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
@pytest.mark.parametrize("is_there", [True, False])
def test_nothing_is_written_through_a_link_to_a_file_elsewhere(model: Path, is_there: bool, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "other.json"
    other.parent.mkdir()
    if is_there:
        other.write_text("{}")
    model.with_name("ink.json").symlink_to(other)
    assert sidecar_writing.merge_a1111(model, {"activation text": "words"}) is None
    assert other.exists() == is_there
    assert not is_there or other.read_text() == "{}"


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
def test_links_to_a_network_and_to_what_lies_beside_it_are_followed(model: Path, tmp_path: Path) -> None:
    put(model, ".json", {"notes": "mine"})
    webui = tmp_path / "webui"
    webui.mkdir()
    for name in ("ink.pt", "ink.json"):
        (webui / name).symlink_to(tmp_path / name)
    assert sidecars.read(webui / "ink.pt").notes == "mine"
    assert sidecar_writing.merge_a1111(webui / "ink.pt", {"description": "d"}) == webui / "ink.json"
    assert json.loads((tmp_path / "ink.json").read_text()) == {"notes": "mine", "description": "d"}


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
def test_what_merely_lies_beside_a_network_to_which_a_link_leads_is_not_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("secret thoughts")
    folder = tmp_path / "of a stranger"
    folder.mkdir()
    (folder / "a.pt").symlink_to(model)
    (folder / "a.txt").symlink_to(tmp_path / "diary.txt")
    found = sidecars.read(folder / "a.pt")
    assert found.description is None
    assert [it.path for it in found.unreadable] == [folder / "a.txt"]


@pytest.mark.skipif(os.name == "nt", reason="creating symbolic links takes a privilege on Windows")
def test_links_of_another_name_to_a_network_and_its_sidecars_are_followed_also_in_the_cache_of_the_hub(
    model: Path, tmp_path: Path
) -> None:
    put(model, ".json", {"notes": "mine"})
    webui, shown, blobs = tmp_path / "webui", tmp_path / "models--o--r" / "snapshots" / "1", tmp_path / "models--o--r"
    webui.mkdir()
    shown.mkdir(parents=True)
    (blobs / "blobs").mkdir()
    for suffix in (".pt", ".json"):
        (webui / f"style{suffix}").symlink_to(model.with_suffix(suffix))
        (blobs / "blobs" / f"blob of{suffix}").write_bytes(model.with_suffix(suffix).read_bytes())
        (shown / f"ink{suffix}").symlink_to(blobs / "blobs" / f"blob of{suffix}")
    assert [sidecars.read(file).notes for file in (webui / "style.pt", shown / "ink.pt")] == ["mine", "mine"]


def test_of_a_huge_text_the_registry_gets_the_beginning(model: Path) -> None:
    put(model, ".txt", b"d" * 1_000_000)
    put(model, ".metadata.json", {"tags": [f"{number:09}" for number in range(100_000)]})
    row = sidecars.read(model).as_row()
    assert row["description"] == "d" * sidecars.MAX_TEXT
    assert row["tags"] == [f"{number:09}" for number in range(sidecars.MAX_TEXT // 10)]


@pytest.mark.parametrize("settings", [{"samples_save": True}, {"model": "x"}])
def test_another_program_s_settings_of_the_same_name_are_left_alone(model: Path, settings: dict[str, Any]) -> None:
    path = put(model, ".json", settings)
    before = path.read_bytes()
    assert sidecar_writing.merge_a1111(model, {"description": "d"}) is None
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="permission bits are POSIX's")
def test_a_write_protected_file_and_one_of_another_person_are_left_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(model, ".json", {"notes": "mine"})
    path.chmod(0o444)
    assert sidecar_writing.merge_a1111(model, {"description": "theirs"}) is None
    path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert sidecar_writing.merge_a1111(model, {"description": "theirs"}) is None
    assert json.loads(path.read_text()) == {"notes": "mine"}
    monkeypatch.undo()
    assert sidecar_writing.merge_a1111(model, {"description": "theirs"}) == path
