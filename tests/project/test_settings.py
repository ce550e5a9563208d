"""Settings: kept whatever else runs at once, and read whatever lies at their place."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from support.failing_disk import fail_at

from hnetkit import demo, paths, settings
from hnetkit.cli import options, run
from hnetkit.errors import HnetkitError
from hnetkit.train.api import _ModelSource as ModelOfTraining


def model_folder(folder: Path) -> Path:
    """Makes a folder that has what settings look for in those of models and their parts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model_index.json", "config.json", "vocab.json"):
        (folder / name).write_text("{}")
    return folder


def values(folder: Path) -> dict[str, str]:
    """A value for each setting."""
    model_folder(folder)
    choices = {"device": "cpu", "dtype": "fp32", "capture": "off", "hypernetworks": "<hypernet:ink:0.5>"}
    choices["unasked"] = "2 GB"
    choices["mirrors"] = "https://example.org/{sha256} hf:me/backup"
    made = {key: choices.get(key, str(folder)) for key in settings.KEYS}
    assert len(made) > 7
    return made


def test_settings_made_by_several_processes_at_once_are_all_kept(home: Path) -> None:
    code = "import sys; from hnetkit import settings; sys.stdin.read(); settings.put(*sys.argv[1:])"
    processes = [
        subprocess.Popen([sys.executable, "-P", "-c", code, *pair], stdin=subprocess.PIPE)
        for pair in values(home).items()
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert {process.wait(timeout=60) for process in processes} == {0}
    assert settings.load() == values(home)


def test_a_process_that_never_lets_go_of_the_settings_is_not_waited_for_for_ever(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hnetkit.settings._PATIENCE_S", 0.1)
    with FileLock(home / ".config.lock"), pytest.raises(HnetkitError, match="another process"):
        settings.put("device", "cpu")
    settings.put("device", "cpu")
    assert settings.get("device") == "cpu"


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"device": 5}', "[]", "{", "\udcff", '{"device": "' + "x" * 9_000_000]
)
def test_settings_that_are_none_are_an_error_with_a_hint(home: Path, text: str) -> None:
    (home / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for use in (settings.load, lambda: settings.put("device", "cpu")):
        with pytest.raises(HnetkitError, match="settings") as caught:
            use()
        assert caught.value.hint == "fix or delete the file"


@pytest.mark.parametrize("key", settings.KEYS)
@pytest.mark.parametrize(
    "address",
    [
        "https://user:hunter22@example.com/model",
        "https://example.com/model.safetensors?X-Amz-Signature=hunter22",
        " HTTPS://user:hunter22@example.com",
        "s3://key:hunter22@bucket",
    ],
)
def test_no_setting_keeps_or_shows_an_address(
    home: Path, key: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", key, address]) == 2
    said = capsys.readouterr()
    assert "a URL" in said.err or key == "mirrors"
    assert "hunter22" not in said.out + said.err
    assert not (home / "config.json").exists()


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("https://example.org/", "{sha256}"),
        ("https://{sha256}.example.org/x", "{sha256}"),
        ("example.org/{sha256}", "{sha256}"),
        ("http://example.org/{sha256}", "https"),
        ("ftp://example.org/{sha256}", "{sha256}"),
        ("https://example.org/{sha256}?key=hunter22", "query"),
        ("https://me:hunter22@example.org/{sha256}", "password"),
        ("https://example.org/{sha256}#hunter22", "query"),
        ("hf:me/backup:*.pt", "hf:owner/repo"),
        ("hf:me", "hf:owner/repo"),
        (" ".join(f"https://{number}.example.org/{{sha256}}" for number in range(11)), "10 at most"),
    ],
)
def test_a_mirror_that_could_never_be_asked_is_refused_when_it_is_set(
    home: Path, value: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "mirrors", value]) == 2
    said = capsys.readouterr().err
    assert hint in said
    assert "hunter22" not in said
    assert settings.load() == {}


def test_several_mirrors_are_kept_in_their_order(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = "https://example.org/{sha256}/x.pt  hf:me/backup@main http://127.0.0.1:8000/{sha256}"
    assert run(["config", "mirrors", given]) == 0
    assert settings.get("mirrors") == given.replace("  ", " ")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["unasked", "5", "GB"], "quote them as one: hnetkit config unasked '5 GB'"),
        (["mirrors", "hf:a/b", "hf:c/d"], "quote them as one: hnetkit config mirrors 'hf:a/b hf:c/d'"),
        (["mirrors", "https://me:s3cret@x/", "hf:c/d"], "quote them as one: hnetkit config mirrors '... ...'"),
        (["unasked", "5"], "hnetkit config unasked 5GB, or 5MB"),
        (["unasked", "1.5"], "hnetkit config unasked 1.5GB, or 1.5MB"),
    ],
)
def test_a_value_that_was_surely_meant_otherwise_is_answered_with_how_to_write_it(
    home: Path, words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", *words]) == 2
    assert capsys.readouterr().err.endswith(f"\nHint: {hint}\n")
    assert settings.load() == {}


def test_a_setting_removed_with_a_value_is_told_the_command_without_one(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", "unasked", "5GB", "--remove"]) == 2
    assert "Hint: hnetkit config unasked --remove\n" in capsys.readouterr().err


@pytest.mark.parametrize("key", settings.KEYS)
@pytest.mark.parametrize("value", ["", " \t"])
def test_an_empty_setting_is_refused_with_the_command_that_takes_it_back(
    home: Path, key: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["config", key, value]) == 2
    assert f"hnetkit config {key} --remove" in capsys.readouterr().err
    (home / "config.json").write_text(json.dumps({key: ""}))
    assert settings.get(key) is None
    assert run(["config", key, "--remove"]) == 0
    assert settings.load() == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_settings_behind_a_link_that_leads_nowhere_are_not_taken_for_none(home: Path, tmp_path: Path) -> None:
    (home / "config.json").symlink_to(tmp_path / "dotfiles" / "config.json")
    with pytest.raises(HnetkitError, match=r"a link to .*dotfiles.*, which is not there"):
        settings.load()


def test_a_key_that_is_no_setting_is_listed_as_one_that_nothing_reads(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "config.json").write_text('{"modle": "/sd", "device": "cpu"}')
    assert run(["config", "--json"]) == 0
    rows = {row["key"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["modle"] == {"key": "modle", "value": "/sd", "meaning": "no setting has this name, so nothing reads it"}


def test_a_key_that_is_no_setting_is_told_by_doctor_and_can_be_removed(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "config.json").write_text('{"devcie": "cpu", "dtype": "fp32"}')
    run(["doctor", "--json"])
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["check"] == "settings"]
    assert row["state"] == "ok"  # a newer version may have such a setting
    assert row["detail"] == "devcie=cpu (no setting has this name, so nothing reads it), dtype=fp32"
    assert run(["config", "devcie", "--remove"]) == 0
    assert "devcie is no longer set; it was cpu" in capsys.readouterr().err
    assert settings.load() == {"dtype": "fp32"}
    assert run(["config", "devcie", "--remove"]) == 2


def test_the_home_folder_may_be_named_as_a_shell_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("HNETKIT_HOME", os.path.join("~", "hn"))
    assert paths.registry_file() == tmp_path / "hn" / "registry.db"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HNETKIT_HOME", "hn")
    assert paths.config_file() == tmp_path / "hn" / "config.json"


def test_a_pipe_in_the_place_of_the_settings_is_not_waited_for(home: Path) -> None:
    os.mkfifo(home / "config.json")
    with pytest.raises(HnetkitError, match="not a regular file"):
        settings.load()


def test_the_options_of_commands_have_the_values_of_the_settings() -> None:
    assert (options.DEVICES, options.DTYPES) == (settings.DEVICES, settings.DTYPES)


# --- what is set is checked, and shown as it is stored


@pytest.mark.parametrize("key", ["model", "vae", "tokenizer", "loras", "embeddings"])
@pytest.mark.parametrize("spelling", ["here/models", "./here/models/", "~/here/models"])
def test_a_folder_is_stored_with_its_absolute_path_and_shown(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    spelling: str,
) -> None:
    model_folder(tmp_path / "here" / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert run(["config", key, spelling]) == 0
    assert settings.get(key) == str(tmp_path / "here" / "models")
    assert capsys.readouterr().err == f"{key} is now {tmp_path / 'here' / 'models'}\n"
    assert run(["config", key, "--remove"]) == 0
    assert capsys.readouterr().err == f"{key} is no longer set; it was {tmp_path / 'here' / 'models'}\n"
    assert run(["config", key, "--remove"]) == 0
    assert capsys.readouterr().err == f"{key} was not set\n"


def test_an_autoencoder_that_stays_with_another_model_is_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("V", "M"):
        model_folder(tmp_path / name)
    settings.put("vae", str(tmp_path / "V"))
    assert run(["config", "model", str(tmp_path / "M")]) == 0
    assert f"the vae that is set, {tmp_path / 'V'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "code", "said"),
    [
        ("model", "/nosuch/x.safetensors", 4, "no such file or folder"),
        ("model", "animefull.ckpt", 4, "no such file or folder"),
        ("model", "empty", 4, "empty has no model_index.json"),
        ("model", "checkpoints", 4, "checkpoints/a.safetensors"),
        ("vae", "empty", 4, "empty has no config.json"),
        ("tokenizer", "empty", 4, "empty has no vocab.json"),
        ("vae", "./some/vae", 4, "no such file or folder"),
        ("tokenizer", "org/name", 4, "no such folder"),
        ("loras", "nosuch", 4, "no such folder"),
        ("embeddings", "a.txt", 4, "is not a folder"),
        ("device", "gpu", 2, "one of auto, cpu, cuda, mps"),
        ("dtype", "half", 2, "one of auto, fp32, fp16, bf16"),
        ("hypernetworks", "ink", 2, "hypernetworks: "),
        ("hypernetworks", "<hypernet:ink:0.5> a castle", 2, "hypernetworks: "),
        ("hypernetworks", "<hypernet:ink:much>", 2, "hypernetworks: "),
        ("hypernetworks", "<lora:ink:1>", 2, "hypernetworks: "),
    ],
)
def test_a_value_that_no_command_could_use_is_refused_when_it_is_set(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: str,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").touch()
    for name in ("empty", "checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoints" / "a.safetensors").touch()
    assert run(["config", key, value]) == code
    assert said in capsys.readouterr().err
    assert settings.load() == {}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_cannot_be_looked_at_is_not_said_to_be_absent(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    model_folder(tmp_path / "sd")
    for unseen in (tmp_path / "sd", tmp_path / "sd" / "model_index.json"):
        with monkeypatch.context() as patched:
            fail_at(patched, unseen, number, "stat")
            assert run(["config", "model", str(tmp_path / "sd")]) == 1
            assert f"Error: {unseen}: {os.strerror(number)}" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["runwayml/stable-diffusion-v1-5", "demo"])
def test_a_hub_id_and_the_bundled_model_are_stored_as_they_are(home: Path, value: str) -> None:
    settings.put("model", value)
    assert settings.get("model") == value


def test_a_name_that_is_no_path_here_is_said_to_be_taken_for_one_of_the_hub(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["config", "model", "models/sd-15"]) == 0
    assert "No file or folder here has this name: it is taken for a model of the hub." in capsys.readouterr().err
    for value in ("demo", str(model_folder(tmp_path / "M"))):
        assert run(["config", "model", value]) == 0
        assert "hub" not in capsys.readouterr().err


def test_a_model_of_the_hub_that_is_read_from_a_folder_here_is_told(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.put("model", "models/sd-15")
    shutil.copytree(demo.model_folder(), tmp_path / "models" / "sd-15")
    monkeypatch.chdir(tmp_path)
    said = f"The model of `hnetkit config`, models/sd-15, is read from {tmp_path / 'models' / 'sd-15'}; elsewhere"
    for given in ([], ["--model", "models/sd-15"]):
        assert run(["generate", "a star", "--steps", "1", "--out", "pictures", *given]) == 0
        assert said in capsys.readouterr().err
    assert run(["generate", "a star", "--steps", "1", "--out", "pictures", "--model", "./models/sd-15/."]) == 0
    assert run(["generate", "a star", "--steps", "1", "--out", "pictures", "--model", "demo"]) == 0
    assert said not in capsys.readouterr().err


def test_an_error_over_a_setting_names_the_setting(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_folder(tmp_path / "gone")
    for key in ("model", "loras", "embeddings"):
        settings.put(key, str(tmp_path / "gone"))
    shutil.rmtree(tmp_path / "gone")
    out = ["--out", str(tmp_path / "a.png")]
    assert run(["generate", "a <lora:x:1>", "--model", "demo", *out]) == 4
    assert "Hint: hnetkit config loras FOLDER" in capsys.readouterr().err
    assert run(["generate", "a circle", "--model", "demo", *out]) == 4
    assert "Hint: hnetkit config embeddings FOLDER" in capsys.readouterr().err
    settings.put("embeddings", None)
    assert run(["generate", "a circle", *out]) == 4
    assert "no such file or folder (the model of `hnetkit config`)" in capsys.readouterr().err


def test_the_setting_that_is_wrong_is_the_one_that_is_named(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo.model_folder(), tmp_path / "sd")
    settings.put("model", str(tmp_path / "sd"))
    settings.put("vae", str(model_folder(tmp_path / "sd" / "other")))
    shutil.rmtree(tmp_path / "sd" / "other")
    for command in (["generate", "a"], ["train", str(tmp_path), "--name", "ink"]):
        assert run([*command, "--out", str(tmp_path / "out")]) == 4
        assert "no such file or folder (the vae of `hnetkit config`)" in capsys.readouterr().err
    settings.put("vae", None)
    settings.put("hypernetworks", "<hypernet:nobody:0.5>")
    for command in (["generate", "a"], ["grid", "--prompt", "a", "--x", "steps=1,2"]):
        assert run(command) == 4
        assert "(the hypernetworks of `hnetkit config`)" in capsys.readouterr().err
    assert run(["generate", "a <hypernet:absent:1> <hypernet:nobody:1>"]) == 4
    assert "hnetkit config" not in capsys.readouterr().err


def test_a_path_that_has_the_name_of_a_setting_in_it_is_not_that_setting(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings.put("model", "demo")
    for vae in ("demo.safetensors", "a-demo", "./vaes/demo", "demo-vae"):
        assert run(["generate", "a", "--vae", vae, "--out", "a.png"]) == 4
        assert "hnetkit config" not in (err := capsys.readouterr().err), err


def test_doctor_names_every_setting_that_nothing_can_use_any_more(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = model_folder(tmp_path / "gone")
    keys = [key for key, value in values(gone).items() if value == str(gone)]
    for key in keys:
        settings.put(key, str(gone))
    settings.put("hypernetworks", "<hypernet:nobody:0.5>")
    shutil.rmtree(gone)
    assert run(["doctor", "--json"]) == 1
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["check"] == "settings"]
    assert row["state"] == "failed"
    for key in (*keys, "hypernetworks"):
        assert f"{key}: " in row["detail"]
    for key in (*keys, "hypernetworks"):
        settings.put(key, None)
    settings.put("hypernetworks", "<hypernet:dots:0.5>")  # of the demo model
    run(["doctor", "--json"])
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["check"] == "settings"]
    assert row["state"] == "ok"


@pytest.mark.parametrize(("key", "value"), [("device", "gpu"), ("dtype", "half")])
def test_a_setting_that_somebody_wrote_into_the_file_is_named_where_it_fails(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    (home / "config.json").write_text(json.dumps({key: value}))
    assert run(["generate", "a circle", "--out", str(tmp_path / "a.png")]) == 2
    assert f"(the {key} of `hnetkit config`)" in capsys.readouterr().err
    assert run(["generate", "a circle", f"--{key}", value, "--out", str(tmp_path / "a.png")]) == 2
    assert "hnetkit config" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_training_takes_the_autoencoder_of_the_settings_with_their_model_alone(
    home: Path, tmp_path: Path, kind: str
) -> None:
    for name in ("model", "other", "vae", "tokenizer"):
        model_folder(tmp_path / name)
    (tmp_path / "model.ckpt").touch()
    model = str(tmp_path / ("model" if kind == "folder" else "model.ckpt"))
    chosen = {"model": model, "vae": str(tmp_path / "vae"), "tokenizer": str(tmp_path / "tokenizer")}
    for key, value in chosen.items():
        settings.put(key, value)
    if kind == "folder":  # which has a tokenizer of its own
        del chosen["tokenizer"]
    assert ModelOfTraining.of(None, "cpu").defaults() == chosen
    assert ModelOfTraining.of(model, "cpu").defaults() == chosen
    assert ModelOfTraining.of(tmp_path / "other", "cpu").defaults() == {"model": model}
