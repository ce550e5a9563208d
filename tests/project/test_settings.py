"""Settings: kept whatever else runs at once, and read whatever lies at their place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from hnetkit import settings
from hnetkit.cli import run
from hnetkit.errors import HnetkitError


def test_settings_made_by_several_processes_at_once_are_all_kept(home: Path) -> None:
    code = "import sys; from hnetkit import settings; sys.stdin.read(); settings.put(sys.argv[1], sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-P", "-c", code, key], stdin=subprocess.PIPE) for key in settings.KEYS
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    assert {process.wait(timeout=60) for process in processes} == {0}
    assert settings.load() == {key: key for key in settings.KEYS}


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
    assert "a URL" in said.err
    assert "hunter22" not in said.out + said.err
    assert not (home / "config.json").exists()


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
def test_a_pipe_in_the_place_of_the_settings_is_not_waited_for(home: Path) -> None:
    os.mkfifo(home / "config.json")
    with pytest.raises(HnetkitError, match="not a regular file"):
        settings.load()
