"""`hnetkit train sweep`: values in, runs and one sheet out, given again until all are done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.pipelines import tiny_sd
from support.training import make_pictures
from support.waiting import once

import hnetkit
from hnetkit import paths
from hnetkit.cli import run
from hnetkit.cli.train_options import read_setting
from hnetkit.train.recipe import make_recipe

FEW = ["--max-steps", "4", "--save-every", "0", "--preview-every", "0", "--preview-seed", "1", "--no-guards"]
QUICK = {"steps": 1, "cfg_scale": 4.0, "sampler": "DDIM", "prompts": ["a dot"]}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd(least=True).save_pretrained(folder)
    (folder / "hnetkit.json").write_text(json.dumps(QUICK))
    return folder


@pytest.fixture
def tiny(tiny_folder: Path, out: Path) -> str:
    """The model, as a link that a test may take away, beside pictures in the folder that is the current one."""
    make_pictures(out / "pictures", 3)
    (out / "tiny").symlink_to(tiny_folder, target_is_directory=True)
    return "tiny"


def command(*more: str) -> list[str]:
    return ["train", "sweep", "pictures", "--model", "tiny", "--name", "ink", "--device", "cpu", *FEW, *more]


RATES = ["--vary", "rate=1e-2|1e-3"]


def rows(folder: str) -> int:
    log = Path("training/ink", folder, "hypernetwork_loss.csv")
    return log.read_bytes().count(b"\n") - 1 if log.exists() else 0


def test_every_combination_is_a_run_of_one_table_and_one_sheet(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command("--vary", "rate=1e-2:2, 1e-3|1e-3", "--vary", "layer-norm=on|off", "--json")) == 0
    printed = capsys.readouterr()
    shown = json.loads(printed.out)
    assert [(row["rate"], row["layer-norm"]) for row in shown] == [
        *(("1e-2:2, 1e-3", True), ("1e-2:2, 1e-3", False)),
        *(("1e-3", True), ("1e-3", False)),
    ]
    for row in shown:
        network = hnetkit.load(row["file"])
        assert (network.name, network.step) == (row["name"], 4)
        assert network.metadata["is_layer_norm"] == row["layer-norm"]
    assert printed.err.splitlines()[0] == "Run 1 of 4: rate 1e-2:2, 1e-3 · layer-norm on"
    assert printed.err.splitlines()[-1] == "Sheet: training/ink/sweep.png"
    assert Path("training/ink/sweep.png").is_file()
    assert Path("training/ink/sweep.csv").read_text().count("\n") == 5
    assert run(["show", shown[1]["name"], "--json"]) == 0
    assert hnetkit.load(shown[1]["file"]).content_hash in capsys.readouterr().out


def test_a_registry_that_takes_nothing_ends_no_sweep(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    paths.registry_file().mkdir(parents=True)
    assert run(command(*RATES, "--json")) == 1
    printed = capsys.readouterr()
    assert [Path(row["file"]).is_file() for row in json.loads(printed.out)] == [True, True]
    assert printed.err.count(" is trained, and not in the library: ") == 2
    assert "Error: 2 of 2 networks are not in the library\n" in printed.err
    paths.registry_file().rmdir()
    assert run(command(*RATES)) == 0
    assert run(["show", "ink-rate-1e-2"]) == 0


def test_recipes_are_varied_by_the_names_of_their_files(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    soft = {"name": "s", "model": tiny, "pictures": "pictures", "rates": "1e-3", "build": {"activation": "relu"}}
    Path("soft.json").write_text(json.dumps(soft))
    Path("hard.json").write_text(json.dumps({**soft, "name": "h", "rates": "1e-2"}))
    recipes = ["train", "sweep", "--recipe", "soft.json", "--recipe", "hard.json", "--device", "cpu", *FEW]
    assert run(recipes) == 2
    assert "--name X" in capsys.readouterr().err
    assert run([*recipes, "--name", "ink", "--layer-norm", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [(row["recipe"], row["rates"]) for row in shown] == [("soft", "1e-3"), ("hard", "1e-2")]
    network = hnetkit.load("training/ink/recipe-hard/ink-recipe-hard.pt")
    assert (network.activation, network.metadata["is_layer_norm"]) == ("relu", True)


def test_the_model_is_loaded_once(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[bool] = []

    def take_it_away() -> None:
        Path(tiny).unlink()
        begun.append(Path("training/ink/rate-1e-3").exists())

    with once(lambda: rows("rate-1e-2") >= 1, take_it_away):
        assert run(command(*RATES, "--max-steps", "40")) == 0
    assert begun == [False]
    assert rows("rate-1e-3") == 40
    capsys.readouterr()
    assert run(command(*RATES)) == 4  # as it is gone


def test_interrupted_and_given_again_it_goes_on(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    long = command(*RATES, "--max-steps", "40")
    with once(lambda: rows("rate-1e-3") >= 5, lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert run(long) == 130
    assert not Path("training/ink/sweep.png").exists()
    stopped = rows("rate-1e-3")
    assert 5 <= stopped < 40
    first = Path("training/ink/rate-1e-2/ink-rate-1e-2.safetensors")
    made = first.stat().st_mtime_ns
    capsys.readouterr()
    assert run(long) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "Run 1 of 2: rate 1e-2, finished before",
        "Run 2 of 2: rate 1e-3",
        f"Resuming from step {stopped}.",
        "Sheet: training/ink/sweep.png",
    ]
    assert first.stat().st_mtime_ns == made
    assert rows("rate-1e-3") == 40
    assert run(command(*RATES, "--restart", "-q")) == 0
    assert rows("rate-1e-2") == rows("rate-1e-3") == 4


def test_a_run_that_fails_is_said_and_the_exit_code_is_1(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command("--vary", "rate=1e38|1e-3", "--optimizer", "SGD", "--json", "-q")) == 1
    printed = capsys.readouterr()
    failed, good = json.loads(printed.out)
    assert failed["file"] == ""
    assert "no finite number" in failed["failure"]
    assert good["file"] == "training/ink/rate-1e-3/ink-rate-1e-3.safetensors"
    assert "Error: rate 1e38: step 4: a weight is no finite number" in printed.err
    assert "Error: 1 of 2 runs failed: rate 1e38" in printed.err
    assert Path("training/ink/sweep.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "at least two runs"),
        (["--vary", "rate"], "a name and its values"),
        (["--vary", "rate=1e-2|"], "a name and its values"),
        (["--vary", "rat=1|2"], "do you mean rate?"),
        (["--vary", "rates=1|2"], "do you mean rate?"),
        (["--vary", "activation=relu,swish"], "a | separates values: --vary 'activation=A|B'"),
        (["--vary", "activation=relu|nonsense"], "nonsense"),
        (["--vary", "batch-size=1|0"], "batch-size: 0 is not in the range"),
        (["--vary", "structure=1,2,1|1,x,1"], "structure: '1,x,1' is not numbers"),
        (["--vary", "layer-norm=on|perhaps"], "layer-norm: 'perhaps' is not a valid boolean"),
        (["--vary", "precision=no|bf16"], "have the precision in common"),
        (["--vary", "preview-seed=1|2"], "have the preview-seed in common"),
        (["--vary", "seed=1|1"], "seed 1 and seed 1 are the same run"),
        (["--vary", "seed=1|2", "--vary", "seed=3|4"], "seed is varied twice"),
        (["--vary", "seed=1|2", "--seed", "3"], "leave --seed out"),
        (["--vary", "seed=1|2", "--template", "poems"], "no such template"),
        (["--vary", "clip-norm=none|x", "--rate", "1"], "clip-norm x: "),
        (["--vary", "with=one.pt|two.pt"], "one.pt: no such file"),
        ([*RATES, "--name", "nul"], "'nul' cannot name a network's files on every system"),
        (["--recipe", "a/x.json", "--recipe", "b/x.json"], "two recipes are called x"),
    ],
)
def test_what_cannot_be_meant_is_said_before_any_step(
    arguments: list[str], said: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command(*arguments)) in (2, 4)
    assert said in capsys.readouterr().err
    assert not Path("training").exists()


def test_a_list_that_is_empty_by_default_varies_with_none() -> None:
    assert read_setting("dropout", "none") == ("build.dropout", [])
    base = {
        "name": "ink",
        "pictures": "pictures",
        "model": "tiny",
        "build": {"dropout": [0, 0.1, 0], "structure": [1, 2, 1]},
    }
    assert make_recipe(base, {"build.dropout": []}).build.dropout == ()


def test_a_mistake_in_what_varies_is_said_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from hnetkit.cli import run; "
        "print(run(['train', 'sweep', '.', '--name', 'ink', '--vary', 'rate=1|x', '--vary', 'rat=1|2']), "
        "'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "do you mean rate?" in done.stderr
    assert done.stdout.splitlines()[-1] == "2 False"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("sweep.json", {"format": "hnetkit.sweep/1", "varied": ["seed"]}, "a sweep over seed, not over rate"),
        ("recipe.json", {}, "holds recipe.json and is no sweep's folder"),
    ],
)
def test_a_folder_of_another_sweep_or_of_a_run_is_left_alone_whatever_is_asked(
    name: str, content: object, said: str, tiny: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("training/ink")
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(content))
    for more in ([], ["--restart", "--force"]):
        assert run(command(*RATES, *more)) == 2
        assert said in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == [name]
