"""What leaves the program: whoever wrote a name or a message, no terminal obeys it, and data reads back exactly."""

from __future__ import annotations

import ast
import csv
import io
import json
import logging
import os
import pty
import select
import shlex
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import click
import pytest
from support import networks
from support.fake_sites import Sites, World
from support.pictures import save

import hnetkit.cli
from hnetkit.cli import run
from hnetkit.cli.output import Output, confirm, is_terminal, put_path, say, take_streams
from hnetkit.cli.progress import Bar
from hnetkit.errors import UsageError

REPOSITORY = Path(__file__).resolve().parents[2]
ODD = "\x1b]0;t\x07\x1b[31m\x9b32m\x7f\u202etxt\u2066\u200e\u2028\u200b\U000e0041\r\nError: b"
BYTES = b"\x1b[31mcaf\xe9\xc2\x9b\xe2\x80\xae.pt"  # a name of a file, not UTF-8


def require_safe(text: str) -> None:
    """Fails where a terminal could take a character for more than its picture; tabs are those of TSV."""
    for sign in text.replace("\n", "").replace("\t", ""):
        assert unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), ascii(text)


def safe(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    captured = capsys.readouterr()
    require_safe(captured.out)
    require_safe(captured.err)
    return captured.out, captured.err


def test_only_one_module_prints_and_one_draws_bars() -> None:
    functions = {"print", "input", "click.echo", "click.secho", "click.confirm", "click.prompt", "click.pause"}
    functions |= {"click.echo_via_pager", "traceback.print_exc", "traceback.print_exception", "os.write"}
    methods = (".stdout.write", ".stderr.write", ".stdout.buffer.write", ".stderr.buffer.write", ".console.print")
    for folder in ("hnetkit", "kernels", "registry"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            room = path.parent.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and (room, path.name) != ("cli", "output.py"):
                    called = ast.unparse(node.func)
                    assert called not in functions, f"{path}:{node.lineno}: {called}"
                    assert not called.endswith(methods), f"{path}:{node.lineno}: {called}"
                    assert called != "error.show", f"{path}:{node.lineno}: {called}"
                if isinstance(node, ast.Import | ast.ImportFrom) and (room, path.name) != ("cli", "progress.py"):
                    assert "rich" not in ast.unparse(node).split(" import ")[0].split(), f"{path}: prints by rich"
                    assert not ast.unparse(node).startswith(("from rich.", "import rich.")), f"{path}: prints by rich"


@pytest.mark.parametrize("form", ["text", "table", "json", "nl", "csv", "tsv"])
def test_every_form_of_a_row_is_safe(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": ODD, "tags": [ODD, "b"], "more": {ODD: [ODD]}}]
    Output(form).rows(rows, columns=["name", "tags", "more"], text=lambda row: [f"{row['name']}", f"  {row['more']}"])
    out, _ = safe(capsys)
    if form != "json":
        assert len(out.splitlines()) == {"text": 2, "table": 3, "nl": 1, "csv": 2, "tsv": 2}[form]
    if form in ("json", "nl"):
        assert json.loads(out) == (rows if form == "json" else rows[0])


def test_a_line_of_text_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Output().rows([{"name": "a\nError: b"}], columns=["name"], text=lambda row: f"<{row['name']}>")
    assert safe(capsys)[0] == "<a\\nError: b>\n"


def test_values_that_json_does_not_have_are_texts(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").rows([{"a": {b"\xff\x9b"}, "b": b"\x1b", "c": float("nan"), 5: (1, {2})}], columns=[])
    found = json.loads(safe(capsys)[0])
    assert found == [{"a": "{b'\\xff\\x9b'}", "b": "b'\\x1b'", "c": "nan", "5": [1, "{2}"]}]


def test_numbers_stay_numbers_and_texts_are_no_formulas(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"a": -1, "b": -0.5, "c": "-1girl", "d": "=HYPERLINK(1)", "e": None, "f": True, "g": ["@x", "y"]}]
    Output("csv").rows(rows, columns=list("abcdefg"))
    (row,) = csv.DictReader(io.StringIO(safe(capsys)[0]))
    assert row == {"a": "-1", "b": "-0.5", "c": "'-1girl", "d": "'=HYPERLINK(1)", "e": "", "f": "True", "g": "'@x, y"}


def test_notes_questions_and_warnings_are_safe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Output().note(ODD)
    say(ODD)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    take_streams()
    warnings.showwarning(ODD, UserWarning, "file", 1)
    library = logging.getLogger("a_library")
    library.propagate = False  # nothing but its own handler, as the libraries of models have one
    library.addHandler(logging.StreamHandler(sys.stderr))
    library.error("odd: %s", ODD)
    monkeypatch.setattr("hnetkit.cli.output.is_terminal", lambda stream: True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    confirm(f"Forget {ODD}?", yes=False)
    _, err = safe(capsys)
    assert err.count("\\x1b]0;t") == 5


def test_commands_over_files_of_any_name_are_safe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.rename(networks.network_file(tmp_path), BYTES)
    name = os.fsdecode(BYTES)
    stem = Path(name).stem
    (tmp_path / "webui").mkdir()
    for arguments in (
        ["inspect", name],
        ["inspect", "-t", name],
        ["validate", name, "no\x9b.pt"],
        ["convert", name, f"{stem}\u202e.safetensors"],
        ["scan", "."],
        ["list"],
        ["list", "--files", "--tsv"],
        ["show", stem],
        ["tag", stem, ODD, "--note", ODD, "--alias", "a\x1b[1m"],
        ["search", "caf"],
        ["link", "webui", "--layout", "a1111"],
        ["export", "-"],
        ["config", "model", ODD],
        ["config"],
        ["config", "model"],
        ["config", ODD],
        ["doctor"],
        ["prompt", ODD],
        ["grid", ODD],
        ["bench", ODD],
        ["pull", ODD],
        ["train", "review", ODD],
        ["import", ODD],
        ["inspect", f"--{ODD}"],
        [ODD],
        ["forget", "-y", stem],
    ):
        run(arguments)
        assert "defect" not in safe(capsys)[1], arguments


def test_what_a_site_says_is_safe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.make(3, plain=True)
    for model in world.models:
        model["creator"] = {"username": ODD}
        model["name"] = f"={ODD}"
    with Sites(world) as sites:
        monkeypatch.setenv("HNETKIT_CIVITAI_URL", sites.civitai_url)
        said = ""
        for arguments in (["browse"], ["browse", "--csv"], ["sync", "-y", "-q"], ["identify"], ["updates"], ["list"]):
            assert run(arguments) == 0, arguments
            out, err = safe(capsys)
            said += f"{out}{err}"
        assert run(["list", "--json"]) == 0
        for row in json.loads(safe(capsys)[0]):
            assert run(["show", row["name"]]) == 0
            said += safe(capsys)[0]
    assert said.count("\\x1b]0;t") > 3  # the names are there


def test_a_shared_file_that_names_its_own_kinds_is_safe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = tmp_path / "library.jsonl"
    shared.write_text(f'{{"kind": "hnetkit", "version": 1}}\n{json.dumps({"kind": ODD})}\n')
    run(["import", str(shared)])
    out, err = safe(capsys)
    assert "\\x1b]0;t" in out + err


def test_the_way_a_command_is_used_is_said_with_what_click_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--sort", "no\nHint: rm\x1b[1m"]) == 2
    lines = safe(capsys)[1].splitlines()
    assert lines[:3] == ["Usage: hnetkit list [OPTIONS]", "Try 'hnetkit list -h' for help.", ""]
    assert len(lines) == 4
    assert lines[3].startswith(r"Error: Invalid value for '--sort': 'no\nHint: rm\x1b[1m' is not one of ")
    assert run(["import", "no\nHint: rm\x1b[1m"]) == 4
    assert safe(capsys)[1] == "Error: no\\nHint: rm\\x1b[1m: no such file\n"


def test_a_traceback_is_safe_and_shows_no_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def breaks() -> None:
        raise ValueError(f"Bearer 0123456789abcdef {ODD}")

    monkeypatch.setattr(hnetkit.cli, "cli", breaks)
    monkeypatch.setenv("HNETKIT_DEBUG", "1")
    monkeypatch.setenv("CIVITAI_TOKEN", "0123456789abcdef")
    assert run([]) == 1
    _, err = safe(capsys)
    assert "Traceback" in err
    assert "Bearer <CIVITAI_TOKEN>" in err
    assert "0123456789abcdef" not in err


def test_no_form_of_data_shows_a_token(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    for form in ("text", "table", "json", "nl", "csv"):
        Output(form).rows([{"reason": "said hf_0123456789"}], columns=["reason"])  # type: ignore[arg-type]
    assert "hf_0" not in capsys.readouterr().out


def test_a_label_of_a_bar_is_text_and_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with open(other, "w", encoding="utf-8") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        bar = Bar("[red]ink[/red] [link=http://a.b]x[/link] :smile:")
        bar.show("\x1b]0;title\x07[b]wash\x9b", 1, 2, about="\x1b]8;;http://a.b\x07")
        say("[i]line\x1b]0;title\x07 :smile:")
        bar.stop()
        monkeypatch.undo()
        data = b""
        while select.select([own], [], [], 0.5)[0]:  # a terminal gives what there is in pieces
            data += os.read(own, 100_000)
        shown = data.decode()
    os.close(own)
    assert "[b]wash" in shown
    assert "[i]line" in shown
    assert ":smile:" in shown
    assert not {"\x1b]", "\x07", "\x9b"} & {*shown, *(shown[i : i + 2] for i in range(len(shown)))}


def test_a_path_is_exact_for_a_program_and_safe_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = os.fsdecode(b"/home/caf\xe9\x1b[1m")
    put_path(path)
    assert capfdbinary.readouterr().out == b"/home/caf\xe9\x1b[1m\n"
    monkeypatch.setattr("hnetkit.cli.output.is_terminal", lambda stream: True)
    put_path(path)
    assert capfdbinary.readouterr().out == b"/home/caf\\udce9\\x1b[1m\n"


CAPTIONS = [
    "-1girl, solo",
    "=3",
    "'=3",
    "@ the beach",
    "+1",
    r"a \(b\)",
    r"a \u0041",
    "a \x1bb",
    "猫 \u202e 犬",
    "it's",
]


@pytest.mark.parametrize("form", ["--csv", "--tsv", "--json"])
def test_captions_come_back_from_a_spreadsheet_as_they_were(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = tmp_path / "training"
    training.mkdir()
    for number, caption in enumerate(CAPTIONS):
        save(training, f"{number}.png", (64, 64))
        (training / f"{number}.txt").write_text(caption, encoding="utf-8")
    before = {path: path.read_bytes() for path in training.iterdir()}
    assert run(["train", "review", str(training), form]) == 0
    table, _ = safe(capsys)
    (tmp_path / "table").write_text(table, encoding="utf-8")
    assert run(["train", "review", str(training), "--apply", str(tmp_path / "table")]) == 0
    assert "0 captions changed" in safe(capsys)[1]
    assert {path: path.read_bytes() for path in training.iterdir()} == before


def test_arguments_that_are_not_text_are_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    networks.network_file(tmp_path, "ink.pt")
    assert run(["scan", str(tmp_path), "-q"]) == 0
    capsys.readouterr()
    odd = os.fsdecode(b"caf\xe9")
    for arguments in (
        ["tag", "ink", "good", odd],
        ["tag", "ink", "good", "--alias", odd],
        ["tag", "ink", "good", "--note", odd],
        ["browse", odd],
        ["browse", "--creator", odd],
        ["sync", "--query", odd, "--dry-run"],
        ["prompt", odd],
        ["generate", odd],
    ):
        assert run(arguments) == 2, arguments
        out, err = safe(capsys)
        assert (out, len(err.splitlines())) == ("", 2), arguments
        assert err.startswith("Error: caf\\udce9")
    assert run(["show", "ink", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["tags"] == []


def hnetkit_in_bash(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    line = command.replace("hnetkit", f"{shlex.quote(sys.executable)} -P -m hnetkit", 1)
    whole = {**os.environ, **environment}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=whole, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("command", "exit_code"),
    [
        ("hnetkit forget ink <&-", 2),
        ("hnetkit forget ink -y <&- >&- 2>&-", 0),
        ("hnetkit train review . --apply - <&-", 2),
        ("hnetkit inspect nothing.pt 2>/dev/full", 4),
        ("hnetkit inspect nothing.pt 2>&-", 4),
        ("hnetkit list >/dev/full", 1),
        ("hnetkit list --json >&-", 0),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_closed_and_full_streams_end_in_no_defect(command: str, exit_code: int, tmp_path: Path) -> None:
    networks.network_file(tmp_path, "ink.pt")
    assert run(["scan", str(tmp_path), "-q"]) == 0
    done = hnetkit_in_bash(command, tmp_path)
    assert done.returncode == exit_code, done.stderr
    assert "defect" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_stream_lends_its_number_to_no_file(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(
        "import os; from hnetkit.cli.output import take_streams; take_streams()\n"
        "print(os.open('/', os.O_RDONLY) > 2, file=open('said', 'w'))\n"
    )
    subprocess.run(["bash", "-c", f"{shlex.quote(sys.executable)} probe.py <&- >&- 2>&-"], cwd=tmp_path, check=True)
    assert (tmp_path / "said").read_text() == "True\n"


def test_a_reader_that_left_is_no_failure(tmp_path: Path) -> None:
    done = hnetkit_in_bash('(sleep 1; hnetkit config --json) | true; exit "${PIPESTATUS[0]}"', tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stream_that_is_not_utf8_gets_escapes(tmp_path: Path) -> None:
    (tmp_path / "模型 é").mkdir()
    (tmp_path / "模型 é" / "model_index.json").touch()
    assert run(["config", "model", str(tmp_path / "模型 é")]) == 0
    done = hnetkit_in_bash("hnetkit config --json", tmp_path, PYTHONIOENCODING="latin-1")
    assert json.loads(done.stdout)[0]["value"] == str(tmp_path / "模型 é")
    done = hnetkit_in_bash("hnetkit config model", tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}{os.sep}\\u6a21\\u578b \\xe9\n")


def test_a_question_without_any_stdin_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert not is_terminal(sys.stdin)
    with pytest.raises(UsageError, match="no terminal to answer"):
        confirm("Forget it?", yes=False)
