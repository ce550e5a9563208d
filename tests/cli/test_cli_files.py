"""`inspect`, `validate` and `convert` as a person or a script meets them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import networks
from torch.serialization import set_crc32_options

import hnetkit
from hnetkit.cli import run
from hnetkit.files import MODEL_SUFFIXES

INSPECT_KEYS = {
    *("path", "name", "format", "kind", "widths", "layer_structure", "activation", "layer_norm", "activate_output"),
    *("dropout", "dtype", "parameters", "size_bytes", "sha256", "content_hash", "base_model", "step", "metadata"),
    "warnings",
}


def test_inspect_gives_every_promised_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = networks.network_file(tmp_path, widths=(320, 768), structure=(1, 0.1, 1), activation="relu")
    assert run(["inspect", "--json", str(path)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row.keys() >= INSPECT_KEYS
    assert (row["kind"], row["format"], row["widths"], row["base_model"]) == (
        "hypernetwork",
        "pt-zip",
        [320, 768],
        "sd1",
    )
    assert (row["layer_structure"], row["activation"], row["step"]) == ([1, 0.1, 1], "relu", 1000)
    assert row["size_bytes"] == path.stat().st_size
    assert row["content_hash"] == hnetkit.load(path).content_hash


def test_inspect_names_a_look_alike_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = networks.network_file(tmp_path)
    page = tmp_path / "page.pt"
    page.write_bytes(b"<html>log in</html>")
    assert run(["inspect", "--json", str(page), str(good)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in rows] == ["html", "hypernetwork"]
    assert "web page" in rows[0]["reason"]


@pytest.mark.parametrize("name", ["ink.pt", "ink.safetensors", "page.pt"])
def test_a_file_that_is_inspected_is_opened_once(tmp_path: Path, name: str) -> None:
    hnetkit.save(hnetkit.load(networks.network_file(tmp_path, "ink.pt")), tmp_path / "ink.safetensors")
    (tmp_path / "page.pt").write_bytes(b"<html>log in</html>")
    code = """
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event == "open" else None)
from hnetkit.cli import run
print(run(["inspect", sys.argv[1]]), opened.count(sys.argv[1]))
"""
    command = [sys.executable, "-P", "-c", code, name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 1"


def test_the_card_of_a_network_reads_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = networks.network_file(tmp_path, widths=(320,), structure=(1, 0.1, 1), activation="swish", layer_norm=True)
    assert run(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "[1, 0.1, 1] swish; layer norm" in out
    assert "1,000 steps on model.ckpt [d7049739]" in out


def test_a_missing_file_is_exit_4_and_of_several_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = networks.network_file(tmp_path)
    assert run(["inspect", str(tmp_path / "no.pt")]) == 4
    assert run(["inspect", str(tmp_path / "no.pt"), str(good)]) == 1
    assert str(good) in capsys.readouterr().out


def test_validate_finds_values_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = networks.a1111_network((8,))
    content[8][1]["linear.1.weight"][3, 3] = torch.nan
    path = networks.save_pt(content, tmp_path / "broken.pt")
    assert run(["validate", "--json", str(path)]) == 7
    (row,) = json.loads(capsys.readouterr().out)
    assert row["verdict"] == "refused"
    assert row["problems"] == ["8.v.linear.1.weight: 1 of 128 values are not finite"]


def test_a_flipped_bit_in_a_weight_is_found_and_not_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = networks.network_file(tmp_path, "worn.pt")
    weight = hnetkit.load(path).mlps[8].value.stages[0].weight
    data = bytearray(path.read_bytes())
    data[weight.offset + 5] ^= 1  # the lowest bits of a value that stays finite
    path.write_bytes(data)
    assert run(["validate", "--json", str(path)]) == 7
    (row,) = json.loads(capsys.readouterr().out)
    assert [problem.split(": ")[0] for problem in row["problems"]] == ["worn/data/4"]
    assert run(["convert", str(path), str(tmp_path / "out.safetensors")]) == 7
    assert "checksum" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_that_torch_saved_without_checksums_is_whole(tmp_path: Path) -> None:
    content = networks.a1111_network((8,))
    set_crc32_options(False)
    try:
        path = networks.save_pt(content, tmp_path / "plain.pt")
    finally:
        set_crc32_options(True)
    assert run(["validate", str(path)]) == 0


def test_validate_says_that_a_network_was_never_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = networks.a1111_network((320,), (1, 0.1, 1))
    for side in content[320]:
        for key in side:
            if key.endswith("bias"):
                side[key].zero_()
    assert run(["validate", str(networks.save_pt(content, tmp_path / "new.pt"))]) == 0
    assert "never trained" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["end", "middle"])
def test_zeros_that_a_failed_disk_left_in_a_file_without_checksums_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    path = tmp_path / "ink.safetensors"
    hnetkit.save(hnetkit.load(networks.network_file(tmp_path, "ink.pt", widths=(96,))), path)
    assert run(["validate", str(path)]) == 0
    assert "values in a row are 0" not in capsys.readouterr().out
    data = path.read_bytes()
    first = len(data) - 40_000 if place == "end" else len(data) // 2
    path.write_bytes(data[:first] + bytes(40_000) + data[first + 40_000 :])
    assert run(["validate", str(path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("warnings")
    assert "values in a row are 0, as a failed copy or disk leaves them" in said


def test_convert_writes_the_named_file_and_prints_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = networks.network_file(tmp_path), tmp_path / "out.safetensors"
    assert run(["convert", str(path), str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert hnetkit.load(target).content_hash == hnetkit.load(path).content_hash


def test_convert_keeps_an_existing_file_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = networks.network_file(tmp_path), tmp_path / "out.safetensors"
    mine = networks.network_file(tmp_path, "mine.pt", seed=8).read_bytes()
    target.write_bytes(mine)
    assert run(["convert", str(path), str(target)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_bytes() == mine
    assert run(["convert", str(path), str(target), "--overwrite"]) == 0
    assert hnetkit.load(target).format == "safetensors"


def test_a_file_in_the_wanted_format_is_called_so_and_one_that_is_written_anew_is_told(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks.network_file(out, "ink.pt")
    assert run(["convert", "--to", "pt", "."]) == 2
    assert capsys.readouterr().err.startswith("Error: ink.pt: has this format already\nHint: --overwrite")
    assert run(["convert", "--to", "pt", "--overwrite", "."]) == 0
    assert "1 file written anew in place: sites and pictures know" in capsys.readouterr().err
    assert run(["convert", "--to", "safetensors", "."]) == 0
    assert "anew" not in capsys.readouterr().err


def test_convert_of_many_names_outputs_after_sources_and_goes_on_after_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [networks.network_file(tmp_path, f"{name}.pt", seed=i) for i, name in enumerate("ab")]
    (tmp_path / "page.pt").write_bytes(b"<html>")
    out = tmp_path / "out"
    code = run(
        [
            "convert",
            "--to",
            "safetensors",
            "--dtype",
            "bf16",
            "--out-dir",
            str(out),
            str(tmp_path / "page.pt"),
            *map(str, files),
        ]
    )
    assert code == 7
    assert sorted(p.name for p in out.iterdir()) == ["a.safetensors", "b.safetensors"]
    assert hnetkit.load(out / "a.safetensors").dtype == "bf16"
    assert "1 of 3 files failed" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_stops_no_other(tmp_path: Path) -> None:
    for name, width in (("a", 8), ("big", 600), ("z", 8)):
        networks.save_pt(networks.a1111_network((width,)), tmp_path / f"{name}.pt")
    script = (
        "import resource, sys; from hnetkit.cli import run; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); sys.exit(run(sys.argv[1:]))"
    )
    sources = [str(tmp_path / f"{name}.pt") for name in ("a", "big", "z")]
    command = [sys.executable, "-P", "-c", script, "convert", *sources, "--to", "safetensors", "--out-dir", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [f"out{os.sep}a.safetensors", f"out{os.sep}z.safetensors"]
    assert done.stderr.splitlines() == [
        f"Error: out{os.sep}big.safetensors: File too large",
        "Error: 1 of 3 files failed",
    ]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.safetensors", "z.safetensors"]


def test_a_full_disk_is_said_with_the_name_of_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = networks.network_file(tmp_path), tmp_path / "out.safetensors"

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert run(["convert", str(source), str(target)]) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"Error: {target}: no room is left on the disk",
        "Hint: make room, and run the command again",
    ]
    assert os.listdir(tmp_path) == [source.name]


@pytest.mark.parametrize("command", ["inspect", "validate", "convert"])
@pytest.mark.parametrize(
    "error", [MemoryError(), OverflowError("too large"), RecursionError("deep"), OSError(5, "I/O")]
)
def test_whatever_goes_wrong_with_one_file_the_others_are_done(
    command: str,
    error: Exception,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [networks.network_file(tmp_path, f"{name}.pt", seed=seed) for seed, name in enumerate(("a", "b", "c"))]
    pread = os.pread

    def failing(handle: int, *arguments: int) -> bytes:
        if os.path.samestat(os.fstat(handle), os.stat(files[1])):
            raise error
        return pread(handle, *arguments)

    monkeypatch.setattr(os, "pread", failing)
    options = ["--to", "safetensors"] if command == "convert" else []
    is_its_own_fault = isinstance(error, OverflowError | RecursionError)
    code = 7 if is_its_own_fault and command != "inspect" else 1
    assert run([command, *map(str, files), *options, "--json"]) == code
    out, err = capsys.readouterr()
    rows = json.loads(out)
    done = [Path(row.get("source") or row["path"]).stem for row in rows if row.get("verdict") != "refused"]
    assert done == ["a", "c"]
    assert f"Error: {files[1]}: " in err
    assert err.splitlines()[-1] == "Error: 1 of 3 files failed"


def test_two_sources_that_would_become_one_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    a, b = networks.network_file(tmp_path, "n.pt"), networks.network_file(tmp_path / "x", "n.pt")
    assert run(["convert", "--to", "safetensors", "--out-dir", str(tmp_path / "o"), str(a), str(b)]) == 2


def test_sources_of_one_name_fail_alone_and_the_others_are_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for number, name in enumerate(("a.pt", "a.ckpt", "a.PT", "b.pt", "c.pt")):
        first.mkdir(exist_ok=True)
        networks.network_file(first, name, seed=number)
    second.mkdir()
    networks.network_file(second, "b.pt", seed=9)
    out = tmp_path / "out"
    sources = [str(first), str(second), str(first / "c.pt")]
    assert run(["convert", "--to", "safetensors", "--out-dir", str(out), *sources]) == 1
    said = capsys.readouterr()
    assert [path.name for path in out.iterdir()] == ["c.safetensors"]
    assert said.out.splitlines() == [str(out / "c.safetensors")]
    for path in (first / "a.pt", first / "a.ckpt", first / "a.PT", first / "b.pt", second / "b.pt"):
        assert f"Error: {path}: " in said.err
        assert f"hnetkit convert {path} OTHER.safetensors" in said.err
    assert f"{first / 'b.pt'}: {second / 'b.pt'} would also become {out / 'b.safetensors'}" in said.err
    assert " and 1 more would also become" in said.err
    assert "5 of 6 files failed" in said.err


def test_convert_says_what_it_does_not_carry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = networks.a1111_network((8,)) | {"optimizer_state_dict": {"state": {}}}
    path = networks.save_pt(content, tmp_path / "n.pt")
    assert run(["convert", str(path), str(tmp_path / "n.safetensors")]) == 0
    assert "optimizer_state_dict is not carried over" in capsys.readouterr().err
    assert run(["convert", "--json", str(path), str(tmp_path / "other.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out)[0]["not_carried"] == ["optimizer_state_dict"]


def test_convert_says_what_stays_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = networks.network_file(tmp_path, "ink.pt")
    (tmp_path / "ink.json").write_text('{"description": "of ink", "notes": ""}')
    (tmp_path / "ink.pt.optim").write_bytes(b"of A1111")
    (tmp_path / "config.json").write_text("{}")
    assert run(["convert", str(path), str(tmp_path / "ink.safetensors")]) == 0
    assert "Beside the sources stay ink.pt.optim." in capsys.readouterr().err
    assert run(["convert", "--to", "safetensors", "--out", str(tmp_path / "out"), str(path)]) == 0
    assert "Beside the sources stay ink.json, ink.pt.optim." in capsys.readouterr().err
    assert run(["convert", str(path), str(path), "--overwrite"]) == 0
    assert "stay" not in capsys.readouterr().err
    assert run(["convert", str(path), str(path), "--overwrite", "--dtype", "fp16"]) == 0
    assert "another network to the library: tags, notes and aliases do not go along" in capsys.readouterr().err


def test_an_unknown_suffix_is_a_usage_error_and_leaves_nothing(tmp_path: Path) -> None:
    path = networks.network_file(tmp_path)
    assert run(["convert", str(path), str(tmp_path / "out.bin2")]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]


def test_files_are_inspected_and_converted_without_torch(tmp_path: Path) -> None:
    path = networks.network_file(tmp_path)
    code = "import sys; from hnetkit.cli import run; code = run(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    for arguments in (["inspect", path], ["validate", path], ["convert", path, tmp_path / "o.safetensors"]):
        command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=os.environ)
        assert done.stdout.splitlines()[-1] == "0 False"


def test_a_folder_with_a_link_that_leads_nowhere_is_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    networks.network_file(tmp_path, "a.pt")
    (tmp_path / "b.pt").symlink_to("x" * 300)
    (tmp_path / "c.pt").symlink_to("c.pt")
    assert run(["convert", "--to", "safetensors", str(tmp_path)]) == 0
    assert (tmp_path / "a.safetensors").is_file()


def test_a_folder_stands_for_model_files_of_every_suffix(tmp_path: Path) -> None:
    for suffix in MODEL_SUFFIXES:
        network = hnetkit.load(networks.network_file(tmp_path, "plain.pt"))
        hnetkit.save(network, tmp_path / f"{suffix[1:]}{suffix}")
    (tmp_path / "plain.pt").unlink()
    (tmp_path / "._pt.pt").write_bytes(b"what macOS leaves")
    assert run(["convert", "--to", "pt", "--out-dir", str(tmp_path / "out"), str(tmp_path)]) == 0
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {suffix[1:] for suffix in MODEL_SUFFIXES}


def test_two_sources_of_one_output_are_told_through_links_and_dots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "alias").symlink_to(folder)
    networks.network_file(folder, "a.pt")
    networks.network_file(folder, "a.ckpt", seed=1)
    for other in (tmp_path / "alias" / "a.ckpt", f"{folder}/../folder/a.ckpt"):
        assert run(["convert", "--to", "safetensors", "--overwrite", str(folder / "a.pt"), str(other)]) == 2
    assert not (folder / "a.safetensors").exists()


def test_a_folder_is_converted_whole_and_one_without_models_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, empty, out = tmp_path / "models", tmp_path / "empty", tmp_path / "out"
    folder.mkdir()
    empty.mkdir()
    networks.network_file(folder, "ink.pt")
    hnetkit.save(hnetkit.load(folder / "ink.pt"), folder / "glow.safetensors")
    (folder / "glow.safetensors").rename(folder / "glow.sft")
    (folder / "._ink.pt").write_bytes(b"\0\5\x16\7")
    assert run(["convert", "--to", "safetensors", "--out-dir", str(out), str(folder)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["glow.safetensors", "ink.safetensors"]
    assert run(["convert", "--to", "pt", str(empty)]) == 4
    assert "no model file" in capsys.readouterr().err


def test_one_file_in_two_spellings_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks.network_file(tmp_path, "ink.pt")
    monkeypatch.chdir(tmp_path)
    assert run(["convert", "--to", "safetensors", "ink.pt", "./ink.pt", str(tmp_path / "ink.pt")]) == 0
