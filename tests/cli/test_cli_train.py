"""`hnetkit train`: one command, given again until it is done, whatever happens in between."""

from __future__ import annotations

import json
import os
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support.networks import network_file
from support.pipelines import tiny_sd
from support.training import make_pictures
from support.waiting import once, wait_until

import hnetkit
from hnetkit import paths
from hnetkit.cli import run

FEW = ["--rate", "1e-2", "--max-steps", "6", "--save-every", "2", "--preview-every", "0", "--no-guards"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd(least=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pictures(out: Path) -> Path:
    """In the folder that is the current one."""
    return make_pictures(out / "pictures", 5, sizes=((16, 16), (16, 24)))


def command(tiny: str, *more: str) -> list[str]:
    return ["train", "pictures", "--model", tiny, "--name", "ink", "--device", "cpu", *FEW, *more]


def weights(path: str | Path) -> list[torch.Tensor]:
    return [reference.torch() for *_, reference in hnetkit.load(path).each_tensor()]


def same(one: str | Path, other: str | Path) -> bool:
    return all(map(torch.equal, weights(one), weights(other)))


def test_a_network_is_trained_and_its_path_printed(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tiny, "--structure", "1,1.5,1", "--activation", "relu", "--sides", "v")) == 0
    printed = capsys.readouterr()
    assert printed.out == "training/ink/ink.safetensors\n"
    assert printed.err == f'Draw with it: hnetkit generate "a picture <hypernet:ink:1>" --model {tiny}\n'
    network = hnetkit.load("training/ink/ink.safetensors")
    assert (network.layer_structure, network.activation, network.step) == ([1, 1.5, 1], "relu", 6)
    assert run(["show", "ink", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert network.content_hash in json.dumps(shown)
    assert run(["generate", "a dot <hypernet:ink:0.5>", "--model", tiny, "--steps", "1", "--out", "dot.png"]) == 0


def test_a_registry_that_takes_nothing_ends_with_the_network_and_the_same_command_enters_it(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths.registry_file().mkdir(parents=True)
    assert run(command(tiny)) == 1
    printed = capsys.readouterr()
    assert printed.out == "training/ink/ink.safetensors\n"
    assert "Error: training/ink/ink.safetensors is trained, and not in the library: " in printed.err
    paths.registry_file().rmdir()
    assert run(command(tiny)) == 0
    assert "All 6 steps were made before" in capsys.readouterr().err
    assert run(["show", "ink", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["training"]["recipe"]["rates"] == "1e-2"


def test_json_has_everything_and_the_recipe_trains_the_same_again(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tiny, "--optimizer", "sgd", "--optimizer-options", '{"momentum": 0.9}', "--json")) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["files"] == ["training/ink/ink.safetensors", "training/ink/ink.pt"]
    assert (row["name"], row["step"], row["roll_backs"], row["folder"]) == ("ink", 6, 0, "training/ink")
    again = ["train", "--recipe", "training/ink/recipe.json", "--out", "again", "--device", "cpu"]
    assert run(again) == 0
    assert same("training/ink/ink.safetensors", "again/ink/ink.safetensors")
    capsys.readouterr()
    assert run([*again, "--out", "other", "--seed", "5", "--max-steps", "3", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["step"] == 3
    assert json.loads(Path("other/ink/recipe.json").read_text())["recipe"]["optimizer_options"] == {"momentum": 0.9}


def test_given_again_it_goes_on_and_restart_starts_over(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tiny)) == 0
    assert run(command(tiny, "--max-steps", "8")) == 0
    assert "Resuming from step 6." in capsys.readouterr().err
    assert run(command(tiny, "--seed", "1")) == 2
    error = capsys.readouterr().err
    assert "trained so far with seed" in error
    assert "--restart" in error
    assert run(command(tiny, "--seed", "1", "--restart", "-q")) == 0
    assert capsys.readouterr().err == ""
    assert hnetkit.load("training/ink/ink.safetensors").step == 6


def test_a_recipe_in_the_folder_of_a_run_that_was_moved_begins_a_new_run_and_says_so(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tiny, "--max-steps", "1")) == 0
    Path("training").rename("moved")
    capsys.readouterr()
    begun = ["train", "--recipe", "moved/ink/recipe.json", "--device", "cpu", "--max-steps", "2"]
    word = "The run in moved/ink does not go on, and another one begins in training/ink: with --out moved it goes on."
    assert run(begun) == 0
    assert word in capsys.readouterr().err
    for more in ([], ["--out", "other"], ["--name", "pen"], ["--out", "moved"]):  # what was meant so, or goes on
        assert run([*begun, *more]) == 0
        assert "does not go on" not in capsys.readouterr().err
    assert hnetkit.load("moved/ink/ink.safetensors").step == 2


def test_the_command_that_draws_with_a_network_works_where_others_have_its_name(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("library").mkdir()
    network_file(Path("library"), "ink.pt", widths=(32,))
    assert run(["scan", "library"]) == 0
    for name in ("ink", "outline"):  # the second is one of the demo model's
        capsys.readouterr()
        assert run([*command(tiny, "--max-steps", "1"), "--name", name]) == 0
        said = capsys.readouterr().err
        assert f'hnetkit generate "a picture" -n training/{name}/{name}.safetensors --model' in said
        drawing = shlex.split(said.partition("Draw with it")[2].partition(": hnetkit ")[2])
        assert run([*drawing, "--steps", "1", "--out", f"{name}.png"]) == 0


def test_what_was_said_of_a_network_that_is_trained_further_is_told(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tiny)) == 0
    assert run(["tag", "ink", "fav", "--alias", "inky"]) == 0
    before = hnetkit.load("training/ink/ink.safetensors").content_hash
    capsys.readouterr()
    assert run(command(tiny)) == 0
    assert "stay with" not in capsys.readouterr().err, "nothing was replaced"
    assert run(command(tiny, "--max-steps", "8")) == 0
    said = capsys.readouterr().err
    assert f"Tags, notes and aliases stay with {before[:13]}, which no file of the library holds" in said
    assert run(["scan", "training/ink"]) == 0
    capsys.readouterr()
    assert run(["show", before[:13], "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert [Path(file["path"]).name for file in row["files"] if file["state"] == "present"] == ["ink-6.safetensors"]
    assert (row["tags"], row["aliases"]) == (["fav"], ["inky"])


def test_starting_over_keeps_the_last_file_of_a_network_of_which_something_was_said(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Path("training/ink/ink-2.safetensors")
    assert run(command(tiny, "--save-every", "2")) == 0
    assert run(["scan", "training/ink"]) == 0
    assert run(["tag", "ink-2", "--note", "the best so far"]) == 0
    before = kept.read_bytes()
    again = command(tiny, "--seed", "1", "--restart")
    capsys.readouterr()
    assert run(again) == 2
    said = capsys.readouterr().err
    assert f"{kept}: the last file of a network with your tags, note or alias" in said
    assert kept.read_bytes() == before
    hint = next(line for line in said.splitlines() if line.startswith("Hint: "))
    assert run([*shlex.split(hint.removeprefix("Hint: hnetkit ").partition(" moves")[0]), "-y"]) == 0
    assert run(again) == 0
    assert hnetkit.load("training/ink/ink.safetensors").content_hash


def test_starting_over_needs_no_file_of_a_network_that_another_file_holds_too(tiny: str, pictures: Path) -> None:
    assert run(command(tiny)) == 0
    assert run(["tag", "ink", "fav"]) == 0
    Path("library").mkdir()
    Path("library/best.safetensors").write_bytes(Path("training/ink/ink.safetensors").read_bytes())
    assert run(command(tiny, "--restart")) == 2, "no scan has seen the copy"
    assert run(["scan", "library"]) == 0
    assert run(command(tiny, "--restart")) == 0


def test_a_finished_run_goes_on_saying_what_its_steps_were_made_with(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tiny)) == 0
    record = Path("training/ink/recipe.json").read_bytes()
    for other in (["--rate", "5"], ["--max-steps", "3"]):
        capsys.readouterr()
        assert run(command(tiny, *other)) == 0
        assert "were made before" in capsys.readouterr().err
        assert Path("training/ink/recipe.json").read_bytes() == record
    assert run(["show", "ink", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["training"]["recipe"] == json.loads(record)["recipe"]
    assert run(command(tiny, "--max-steps", "7")) == 0
    assert json.loads(Path("training/ink/recipe.json").read_text())["recipe"]["max_steps"] == 7


def test_a_folder_that_only_looks_like_a_run_is_left_alone(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("training/ink")
    (folder / "previews").mkdir(parents=True)
    for name in ("recipe.json", "ink.pt", "loss.png", "hypernetwork_loss.csv", "previews/ink-5.png"):
        (folder / name).write_text("{}")
    for more in ([], ["--force"], ["--seed", "1"], ["--restart"], ["--resume"]):
        assert run(command(tiny, *more)) == 2
        said = capsys.readouterr().err
        assert "training/ink/recipe.json: no record of a run of ink" in said
        assert "Hint: choose another --name or --out" in said
    assert {path.read_text() for path in folder.rglob("*.*") if path.name != ".lock"} == {"{}"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 4, "nowhere: no such folder"),
        (["pictures", "--rate", "fast"], 2, "fast"),
        (["pictures", "--rate", "1e-3", "--max-steps", "5", "--structure", "1,x,1"], 2, "not numbers"),
        (["pictures", "--structure", "2,1"], 2, "starts and ends with 1"),
        (["pictures", "--size", "17"], 2, "multiples of 8"),
        (["pictures", "--template", "poems"], 4, "no such template"),
        (["pictures", "--resume"], 4, "no checkpoint to resume from"),
        (["pictures", "--resume", "--restart"], 2, "say the opposite"),
        (["pictures", "--clip-norm", "1", "--clip-value", "1"], 2, "not by both"),
        (["pictures", "--name", "con"], 2, "'con' cannot name a network's files on every system"),
        (["pictures", "--optimizer-options", "{"], 2, "not a JSON object"),
        (["pictures", "--recipe", "no.json"], 4, "no such recipe"),
        (["pictures", "--start", "no.pt"], 4, "no such file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_anything_is_trained(
    arguments: list[str],
    code: int,
    said: str,
    tiny: str,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["train", "--name", "ink", *arguments, "--model", tiny, "--device", "cpu"]) == code
    assert said in capsys.readouterr().err
    assert not list(Path().glob("training/ink/*.safetensors"))


def test_a_name_and_pictures_are_needed(tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "pictures", "--model", tiny]) == 2
    assert "--name X" in capsys.readouterr().err
    assert run(["train", "run", "--model", tiny, "--name", "ink"]) == 2
    assert "a folder of pictures" in capsys.readouterr().err


def test_bad_pictures_and_captions_are_said_first(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("pictures/01.txt").write_text("")
    assert run(command(tiny, "--template", "style")) == 0
    said = capsys.readouterr().err
    assert "1 of 5 pictures have no caption: 01.png" in said
    assert "has no [filewords]" in said
    Path("pictures/02.png").write_bytes(b"no picture")
    assert run(command(tiny)) == 1
    assert "not pictures that can be read: 02.png" in capsys.readouterr().err


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HNETKIT_HOME": str(home), "OMP_NUM_THREADS": str(torch.get_num_threads())}


def started(home: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-P", "-m", "hnetkit", *arguments]
    return subprocess.Popen(line, env=environment(home), stderr=subprocess.PIPE)


def rows() -> int:
    log = Path("training/ink/hypernetwork_loss.csv")
    return log.read_bytes().count(b"\n") - 1 if log.exists() else 0


def kill_after(process: subprocess.Popen[bytes], step: int, how: signal.Signals, delay: float = 0.0) -> bytes:
    """Sends a signal once so many steps are in the log; returns what was said."""
    wait_until(lambda: rows() >= step, process)
    time.sleep(delay)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert b"Traceback" not in said
    return said


def long_command(tiny: str, steps: int = 60) -> list[str]:
    """Steps enough to be interrupted in, with everything on that must not depend on it."""
    tags = ["--shuffle-tags", "--drop-tags", "0.2", "--latents", "random"]
    network = ["--structure", "1,2,2,1", "--activation", "relu", "--dropout", "0,0.2,0.2,0"]
    return command(tiny, "--max-steps", str(steps), "--save-every", "7", "--accumulate", "2", *tags, *network)


def survives(tiny: str, home: Path, kills: int, seed: int, steps: int) -> None:
    draw, arguments = random.Random(seed), long_command(tiny, steps)
    for step in sorted(draw.sample(range(3, steps - 10), kills)):
        process = started(home, arguments)
        kill_after(process, step, signal.SIGKILL, draw.random() * 0.01)
        assert process.returncode == -signal.SIGKILL
    assert not Path("training/ink/ink.safetensors").exists()
    assert run([*arguments, "--resume"]) == 0
    assert rows() == steps
    assert run([*arguments, "--out", "whole"]) == 0
    assert same("training/ink/ink.safetensors", "whole/ink/ink.safetensors")


def test_killed_it_ends_with_the_same_bits(tiny: str, pictures: Path, home: Path) -> None:
    survives(tiny, home, kills=1, seed=1, steps=60)


@pytest.mark.long
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_ten_times_it_ends_with_the_same_bits(seed: int, tiny: str, pictures: Path, home: Path) -> None:
    survives(tiny, home, kills=10, seed=seed, steps=120)


def test_ctrl_c_leaves_with_130_and_a_checkpoint(tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with once(lambda: rows() >= 5, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert run([*long_command(tiny), "--save-every", "0"]) == 130
    assert "Interrupted." in capsys.readouterr().err
    newest = max(Path("training/ink/state").iterdir())
    assert json.loads((newest / "state.json").read_text())["step"] == rows()


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Has the system refuse larger files, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_at_a_checkpoint_is_said_and_the_run_goes_on_later(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(tiny, "--max-steps", "2")) == 0
    newest = max(path.name for path in Path("training/ink/state").iterdir())
    with files_of_at_most(30_000):
        assert run(command(tiny)) == 1
    said = capsys.readouterr().err
    assert "Error: no room for a checkpoint" in said
    assert f"the one before, training/ink/state/{newest}, is whole" in said
    assert [path.name for path in Path("training/ink/state").iterdir()] == [newest]
    assert run(command(tiny)) == 0
    assert run(command(tiny, "--out", "whole")) == 0
    assert same("training/ink/ink.safetensors", "whole/ink/ink.safetensors")


def test_a_full_disk_at_the_first_checkpoint_is_said_before_any_step(
    tiny: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(10_000):
        assert run(command(tiny)) == 1
    assert "no room for a checkpoint" in capsys.readouterr().err
    assert rows() == 0


def launched(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-P", "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    local = ["--main_process_ip", "127.0.0.1", "--main_process_port", "0", "-m", "hnetkit"]
    line = [*launcher, *local, *arguments]
    return subprocess.run(line, env=environment(home), capture_output=True, text=True, timeout=240, check=False)


def test_two_processes_give_the_weights_of_one_to_rounding(tiny: str, pictures: Path, home: Path) -> None:
    momentum = ["--optimizer", "SGD", "--optimizer-options", '{"momentum": 0.9}', "--rate", "0.5", "--clip-norm", "1"]
    arguments = command(tiny, "--batch-size", "3", "--accumulate", "3", *momentum)
    done = launched(home, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "training/ink/ink.safetensors\n"
    assert rows() == 6
    assert run([*arguments, "--out", "alone"]) == 0
    for one, two in zip(weights("alone/ink/ink.safetensors"), weights("training/ink/ink.safetensors"), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-4)
    assert run([*arguments, "--max-steps", "7", "--resume"]) == 0  # one process goes on with what two began


@pytest.mark.long
def test_more_processes_than_samples_are_refused(tiny: str, pictures: Path, home: Path) -> None:
    done = launched(home, *command(tiny))
    assert done.returncode != 0
    assert "2 processes share 1 samples a step" in done.stderr
    assert "--accumulation 2" in done.stderr


def test_no_word_of_a_text_that_a_recipe_names_as_a_network_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "private").write_text("password: hunter2 and more words\n")
    pictures = make_pictures(tmp_path / "pictures")
    assert run(["train", str(pictures), "--name", "ink", "--init-from", str(tmp_path / "private")]) != 0
    said = capsys.readouterr().err
    assert "not a hypernetwork" in said
    assert "hunter2" not in said
