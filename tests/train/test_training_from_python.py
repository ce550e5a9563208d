"""Training and sweeping from Python: what the commands make, byte for byte, with the package's own errors."""

from __future__ import annotations

import csv
import inspect
import json
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from support.networks import a1111_network, save_pt
from support.pipelines import tiny_sd
from support.training import make_pictures

import hnetkit
from hnetkit import train
from hnetkit.cli import run
from hnetkit.errors import BadPicture, NotFound, RunChanged, TrainingFailed, UsageError
from hnetkit.generate.model import load_model
from hnetkit.train.callbacks import TrainingReport
from hnetkit.train.recipe import Recipe
from hnetkit.train.sweeps import RunOutcome

SETTINGS: dict[str, Any] = {
    "name": "ink",
    "pictures": "pictures",
    "rates": "1e-2",
    "max_steps": 4,
    "save_every": 2,
    "preview_every": 2,
    "previews": {"prompts": ["a dot"], "seeds": [1]},
    "guarded": False,
    "seed": 3,
}
OPTIONS = [
    *("pictures", "--name", "ink", "--rate", "1e-2", "--max-steps", "4", "--save-every", "2", "--seed", "3"),
    *("--preview-every", "2", "--preview-prompt", "a dot", "--preview-seed", "1", "--no-guards", "--device", "cpu"),
]
QUICK = {"steps": 1, "cfg_scale": 4.0, "sampler": "DDIM"}


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_sd(least=True).save_pretrained(folder)
    (folder / "hnetkit.json").write_text(json.dumps(QUICK))
    return folder


@pytest.fixture
def here(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures and the model `tiny` in it."""
    make_pictures(tmp_path / "pictures", 4, sizes=((16, 16), (16, 24)))
    (tmp_path / "tiny").symlink_to(tiny_folder, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(folder: str, name: str = "ink") -> dict[str, bytes]:
    """Everything of a run that says nothing of the time that it took."""
    names = [f"{name}{end}" for end in (".safetensors", ".pt", "-2.safetensors", "-4.safetensors")]
    names += ["recipe.json", *(f"previews/{name}-{step}.png" for step in (0, 2, 4))]
    return {name: Path(folder, name).read_bytes() for name in names}


def rows(path: str, *without: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{key: row[key] for key in row if key not in without} for row in csv.DictReader(file)]


def test_a_run_is_the_one_of_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "run", *OPTIONS, "--model", "tiny", "--out", "command", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    prepared: list[str] = []
    steps: list[TrainingReport] = []
    result = train.train(
        SETTINGS, "tiny", out="python", progress=lambda what, done, total: prepared.append(what), step=steps.append
    )
    assert made("python/ink") == made("command/ink")
    log = "hypernetwork_loss.csv"
    assert rows(f"python/ink/{log}", "seconds") == rows(f"command/ink/{log}", "seconds")
    assert (result.step, result.loss, result.roll_backs) == (row["step"], row["loss"], row["roll_backs"])
    assert result.folder == Path("python/ink")
    assert [path.name for path in result.files] == [Path(path).name for path in row["files"]]
    assert result.file == Path("python/ink/ink.safetensors")
    assert [(report.step, report.last_step) for report in steps] == [(number, 4) for number in range(1, 5)]
    assert steps[-1].loss == result.loss
    assert list(dict.fromkeys(prepared)) == [
        *("Reading pictures", "Loading the model", "Encoding pictures", "Encoding captions"),
        *(f"Drawing the preview of step {step}" for step in (0, 2, 4)),
    ]
    with hnetkit.Library() as library:
        record = library.record("ink")
    assert record["training"]["recipe"] == json.loads(Path("python/ink/recipe.json").read_text())["recipe"]
    assert {file["path"] for file in record["files"]} == {str(here / path) for path in (*row["files"], *result.files)}


def test_a_model_that_is_loaded_and_a_recipe_of_any_form_train_the_same(here: Path) -> None:
    model = load_model("tiny", device="cpu")
    train.train(SETTINGS, model, out="first")
    record = Path("first/ink/recipe.json")
    assert json.loads(record.read_text())["recipe"]["model"] == "tiny"
    recipe = Recipe.from_json(json.loads(record.read_text())["recipe"])
    with hnetkit.Library(home=here / "other") as library:
        train.train(record, out="second", device="cpu", library=library)
        train.train(recipe, model, out="third", library=library)
        assert len(library.record("ink")["files"]) == 4
    assert made("first/ink") == made("second/ink") == made("third/ink")
    pictures = here / "pictures"
    train.train({**SETTINGS, "pictures": pictures}, here / "tiny", out="fourth", changes={"max_steps": 2})
    settings = json.loads(Path("fourth/ink/recipe.json").read_text())["recipe"]
    assert (settings["pictures"], settings["model"]) == (str(pictures), str(here / "tiny"))
    changed = train.train(record, model, out="fifth", changes={"max_steps": 2, "build.activation": "relu"})
    assert (changed.step, hnetkit.load(changed.files[0]).activation) == (2, "relu")


def test_a_run_goes_on_as_if_it_had_never_stopped(here: Path) -> None:
    notes: list[str] = []
    whole = train.train(SETTINGS, "tiny", out="whole")
    with pytest.raises(NotFound, match="no checkpoint to resume from"):
        train.train(SETTINGS, "tiny", resume=True)
    train.train({**SETTINGS, "max_steps": 2}, "tiny")
    result = train.train(SETTINGS, "tiny", resume=True, note=notes.append)
    assert notes == ["Resuming from step 2."]
    assert result.files[0].read_bytes() == whole.files[0].read_bytes()
    with pytest.raises(RunChanged, match="trained so far with seed"):
        train.train({**SETTINGS, "seed": 4}, "tiny")
    assert train.train({**SETTINGS, "seed": 4, "max_steps": 1}, "tiny", restart=True).step == 1
    with pytest.raises(UsageError, match="the opposite"):
        train.train(SETTINGS, "tiny", resume=True, restart=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": None}, "the recipe: name"),
        ({"rats": "1e-2"}, "there is no setting rats"),
        ({"rates": "fast"}, "fast"),
        ({"batch_size": 0}, "batch_size 0: at least 1"),
        ({"build.structure": [1, 2]}, "structure"),
        ({"optimizer": "AdamQ"}, "AdamQ"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_said_before_any_step(changes: dict[str, Any], said: str, here: Path) -> None:
    with pytest.raises(UsageError, match=said):
        train.train(SETTINGS, "tiny", changes=changes)
    assert not Path("training").exists()


def test_what_is_missing_is_named(here: Path) -> None:
    with pytest.raises(UsageError, match="a run needs a folder of pictures"):
        train.train({"name": "ink"}, "tiny")
    with pytest.raises(NotFound, match="no such recipe"):
        train.train("ink.json", "tiny")
    with pytest.raises(NotFound, match="nowhere"):
        train.train({**SETTINGS, "pictures": "nowhere"}, "tiny")
    with pytest.raises(NotFound):
        train.train(SETTINGS, "tinny")
    with pytest.raises(UsageError, match="no such device"):
        train.train(SETTINGS, "tiny", device="tpu")
    Path("pictures/00.png").write_bytes(b"no picture")
    with pytest.raises(BadPicture, match=r"00\.png"):
        train.train(SETTINGS, "tiny")


def test_a_guard_that_stops_a_run_names_the_last_good_network(here: Path) -> None:
    with pytest.raises(TrainingFailed, match="no finite number") as raised:
        train.train({**SETTINGS, "rates": "1e38", "optimizer": "SGD", "preview_every": 0}, "tiny")
    assert raised.value.hint == "a lower rates="


def test_a_sweep_is_the_one_of_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vary = ["--vary", "structure=1,2,1|1,1.5,1", "--vary", "layer-norm=on|off"]
    options = [option for option in OPTIONS if option != "3" and option != "--seed"]
    assert run(["train", "sweep", *options, "--model", "tiny", "--out", "command", *vary, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    notes: list[str] = []
    told: list[RunOutcome] = []
    outcomes = train.sweep(
        SETTINGS,
        "tiny",
        vary={"build.structure": [[1, 2, 1], [1, 1.5, 1]], "build.layer_norm": [True, False]},
        changes={"seed": 0},
        out="python",
        note=notes.append,
        made=told.append,
    )
    assert told == outcomes
    assert len(outcomes) == 4
    for outcome, row in zip(outcomes, printed, strict=True):
        mine = {**outcome.row(), "file": outcome.row()["file"].replace("python", "command", 1)}
        assert {**mine, "seconds": 0} == {**row, "seconds": 0}
        folder = outcome.run.folder
        name = outcome.run.recipe.name
        assert made(str(folder), name) == made(str(folder).replace("python", "command", 1), name)
    assert Path("python/ink/sweep.png").read_bytes() == Path("command/ink/sweep.png").read_bytes()
    assert rows("python/ink/sweep.csv", "seconds", "file") == rows("command/ink/sweep.csv", "seconds", "file")
    assert notes[0] == "Run 1 of 4: structure 1,2,1 · layer-norm on"
    assert notes[-1] == f"Sheet: {Path('python/ink/sweep.png')}"
    with hnetkit.Library() as library:
        assert len(library.record(outcomes[1].run.recipe.name)["files"]) == 4


def test_whole_recipes_vary_by_name_and_one_that_fails_stops_no_other(here: Path) -> None:
    soft = {**SETTINGS, "preview_every": 0, "optimizer": "SGD"}
    hard = {**soft, "rates": "1e38"}
    vary = {"recipe": {"hard": hard, "soft": soft}}
    failed, good = train.sweep({}, "tiny", vary=vary)
    assert "no finite number" in failed.failure
    assert (failed.files, good.failure, good.steps) == ((), "", 4)
    assert good.run.label == "recipe soft"
    before = good.files[0].stat().st_mtime_ns
    notes: list[str] = []
    _, again = train.sweep({}, "tiny", vary=vary, note=notes.append)
    assert again.files[0].stat().st_mtime_ns == before
    assert "Run 2 of 2: recipe soft, finished before" in notes


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        ({}, "at least two runs"),
        ({"rates": ["1e-2"]}, "one value does not vary"),
        ({"rates": "1e-2"}, "one value does not vary"),
        ({"precision": ["no", "bf16"]}, "have the precision in common"),
        ({"max_steps": [3, 5]}, "--max-steps and --vary max-steps"),
        ({"rates": ["1e-2", "fast"]}, "fast"),
        ({"rats": [1, 2]}, "there is no setting rats"),
        ({"recipe": ["a.json", "b.json"]}, "recipes that vary have names"),
    ],
    ids=str,
)
def test_a_sweep_that_cannot_be_meant_is_said_before_any_step(vary: dict[str, Any], said: str, here: Path) -> None:
    with pytest.raises(UsageError, match=said):
        train.sweep(SETTINGS, "tiny", vary=vary, changes={"max_steps": 4})
    assert not Path("training").exists()


def test_without_a_model_the_demo_trains_and_that_is_said(here: Path) -> None:
    notes: list[str] = []
    changes = {"max_steps": 1, "preview_every": 0, "save_every": 0}
    result = train.train(SETTINGS, changes=changes, device="cpu", note=notes.append)
    assert notes[0].startswith("No --model: training on the bundled demo model.")
    assert hnetkit.load(result.files[0]).metadata["sd_checkpoint_name"] == "hnetkit-demo"


def test_verbs_stay_what_they_are_when_everything_is_imported() -> None:
    """A function and a module of one name would overwrite each other."""
    for _ in range(2):
        for module in pkgutil.walk_packages(train.__path__, f"{train.__name__}."):
            __import__(module.name)
        for name in train.__all__:
            verb = getattr(hnetkit.train, name)
            assert inspect.isfunction(verb), name
            assert verb.__doc__
            assert name not in {module.name for module in pkgutil.iter_modules(train.__path__)}


@pytest.mark.parametrize("start", ["kept", "gone", "another one"])
def test_a_run_goes_on_without_the_network_that_it_began_with(start: str, here: Path) -> None:
    widths = (8, 12, 16)
    wash = save_pt(a1111_network(widths, activation="relu", seed=1), here / "wash.pt")
    settings = {**SETTINGS, "start": "wash.pt", "preview_every": 0}
    assert train.train({**settings, "max_steps": 2}, "tiny", device="cpu").step == 2
    assert train.train(settings, "tiny", device="cpu", out="whole").started_from
    with pytest.raises(NotFound, match=r"elsewhere\.pt: no such file"):
        train.train({**settings, "start": "elsewhere.pt"}, "tiny", device="cpu", out="new")
    if start != "kept":
        wash.unlink()
    if start == "another one":
        save_pt(a1111_network(widths, (1, 3, 3, 1), activation="tanh", seed=2), wash)
        with pytest.raises(RunChanged, match="the network that training began with is another one"):
            train.train(settings, "tiny", device="cpu")
    result = train.train(settings, "tiny", device="cpu", force=start == "another one")
    assert result.step == 4
    for name in ("ink.safetensors", "ink.pt", "ink-4.safetensors"):
        assert Path("training/ink", name).read_bytes() == Path("whole/ink", name).read_bytes()
    if start == "gone":
        with pytest.raises(NotFound, match=r"wash.pt: no such file"):
            train.train(settings, "tiny", device="cpu", restart=True)
        assert Path("training/ink/ink-4.safetensors").exists()


@pytest.mark.parametrize(("setting", "option"), [("start", "--init-from"), ("beside", "--with")])
@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_a_name_of_the_library_is_no_file_and_the_error_says_where_it_is(
    setting: str, option: str, verb: str, here: Path
) -> None:
    (here / "networks").mkdir()
    ink = save_pt(a1111_network((8,), activation="relu"), here / "networks" / "wash.pt")
    with hnetkit.Library() as library:
        library.scan("networks")
    for name, hint in (("wash", f"{option} {ink}"), ("nothing", f"{option} FILE")):
        value = name if setting == "start" else [name]
        more = {"vary": {"seed": [1, 2]}} if verb == "sweep" else {}
        with pytest.raises(NotFound, match=f"{name}: no such file") as refused:
            getattr(train, verb)({**SETTINGS, setting: value}, "tiny", device="cpu", **more)
        assert refused.value.command_hint == hint
        assert str(refused.value.hint).startswith(f"{setting}=")
    assert not (here / "training").exists()
