"""Checkpoints: complete or absent, and everything in them comes back to the bit."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from support.failing_disk import fail_at
from torch import nn

from hnetkit.errors import DamagedFile, DiskFull, FileRefused, HnetkitError, UsageError
from hnetkit.train.checkpoints import Checkpoints, TrainingState, require_disk_space
from hnetkit.train.step import make_optimizer, restore_optimizer, set_rate


def state(step: int, fill: float = 0.0) -> TrainingState:
    return TrainingState(step, {"network": {"weight": torch.full((3, 2), fill)}, "seconds": 1.5})


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or one != one)


def test_what_is_written_comes_back_to_the_bit_and_with_its_types(tmp_path: Path) -> None:
    content = {
        "tensors": [torch.tensor(1.0), torch.tensor([1, 2]), torch.tensor([True]), torch.randn(2, 3).bfloat16()],
        "numbers": (0.1, 1e-300, float("nan"), float("inf"), 3, True, None),
        "by number": {0: {"step": torch.tensor(5.0)}, 7: {"lr": 5e-6}},
        "empty": {"dict": {}, "list": [], "tuple": (), "tensor": torch.empty(0, 4)},
        "tensor": "a text",
        "not in order": torch.randn(4, 5).T,
    }
    Checkpoints(tmp_path).write(TrainingState(12, content))
    read = Checkpoints(tmp_path).read()
    assert read is not None
    assert read.step == 12
    assert same(read.content, content)


def test_no_file_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path).write(state(1))
    assert {path.name for path in folder.iterdir()} == {"tensors.safetensors", "state.json"}
    assert (folder / "state.json").read_bytes().startswith(b"{")


def test_what_cannot_be_kept_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="optimizer"):
        Checkpoints(tmp_path).write(TrainingState(1, {"optimizer": object()}))
    assert Checkpoints(tmp_path).read() is None
    assert not list(tmp_path.iterdir())


def test_the_newest_is_read_and_the_last_few_are_kept(tmp_path: Path) -> None:
    states = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        states.write(state(step, step))
    newest = states.read()
    assert newest is not None
    assert newest.step == 30
    assert len(list(tmp_path.iterdir())) == 2
    older, oldest = states.read(most=29), states.oldest()
    assert older is not None
    assert oldest is not None
    assert older.step == oldest.step == 20
    assert states.read(most=19) is None


def test_a_state_that_was_gone_back_to_is_the_newest_and_later_ones_go(tmp_path: Path) -> None:
    states = Checkpoints(tmp_path)
    for step in (10, 20, 30):
        states.write(state(step))
    states.write(state(20, 5.0))
    states.remove_after(20)
    newest = states.read()
    assert newest is not None
    assert (newest.step, newest.content["network"]["weight"][0, 0]) == (20, 5.0)
    states.write(state(25))
    assert states.newest_folder is not None
    assert states.newest_folder.name == "00000005"


@pytest.mark.parametrize("spoil", ["cut", "changed", "gone", "not JSON"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, spoil: str) -> None:
    states = Checkpoints(tmp_path)
    states.write(state(10))
    tensors = states.write(state(20)) / "tensors.safetensors"
    data = tensors.read_bytes()
    if spoil == "cut":
        tensors.write_bytes(data[:-4])
    elif spoil == "changed":
        tensors.write_bytes(data[:-1] + b"\x01")
    elif spoil == "gone":
        tensors.unlink()
    else:
        (tensors.parent / "state.json").write_text("{")
    read = states.read()
    assert read is not None
    assert read.step == 10


def test_nothing_but_damaged_checkpoints_is_an_error_and_not_a_new_beginning(tmp_path: Path) -> None:
    (Checkpoints(tmp_path).write(state(10)) / "state.json").unlink()
    with pytest.raises(DamagedFile, match="damaged checkpoint"):
        Checkpoints(tmp_path).read()


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files is POSIX's")
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    import resource

    states = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        states.write(TrainingState(step, {"weight": torch.full((1000,), float(step))}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(DiskFull, match=r"no room for a checkpoint .*00000002, is whole"):
            states.write(TrainingState(3, {"weight": torch.full((1000,), 3.0)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    read = states.read()
    assert read is not None
    assert read.step == 2
    assert read.content["weight"].eq(2).all()
    assert [path.name for path in tmp_path.iterdir()] == ["00000002"]


@pytest.mark.skipif(os.name != "posix", reason="a limit on the size of files is POSIX's")
@pytest.mark.parametrize("damaged", [[3], [2, 3], [1, 2, 3]])
def test_a_full_disk_leaves_the_newest_checkpoint_that_is_whole(tmp_path: Path, damaged: list[int]) -> None:
    import resource

    states = Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        folder = states.write(TrainingState(step, {"weight": torch.full((1000,), float(step))}))
        if step in damaged:
            os.truncate(folder / "tensors.safetensors", 100)
    whole = 3 - len(damaged)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(DiskFull, match=f"{whole:08}, is whole" if whole else "no whole one before it"):
            states.write(TrainingState(4, {"weight": torch.full((1000,), 4.0)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    if whole:
        read = states.read()
        assert read is not None
        assert read.step == whole
    else:
        assert len(list(tmp_path.iterdir())) == 3


def test_too_little_room_is_said_before(tmp_path: Path) -> None:
    require_disk_space(tmp_path, 1)
    with pytest.raises(DiskFull, match="are free"):
        require_disk_space(tmp_path, 1 << 60)


_ENDLESS = """
import sys, torch
from pathlib import Path
from hnetkit.train.checkpoints import Checkpoints, TrainingState

states = Checkpoints(Path(sys.argv[1]), keep=2)
step = 0
while True:
    step += 1
    states.write(TrainingState(step, {"weight": torch.full((20000,), float(step))}))
    if step == 3:
        print("going", flush=True)
"""


def test_killed_while_writing_the_newest_is_whole(tmp_path: Path) -> None:
    for number in range(2):
        folder = tmp_path / str(number)
        process = subprocess.Popen([sys.executable, "-P", "-c", _ENDLESS, str(folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        time.sleep(0.003 + 0.007 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        states = Checkpoints(folder)
        read = states.read()
        assert read is not None
        assert read.step >= 3
        assert read.content["weight"].eq(read.step).all()
        states.write(state(1000))
        assert not list(folder.glob("*.unfinished"))


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {},
    "Adam": {"amsgrad": True},
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "NAdam": {},
    "ASGD": {},
    "Adafactor": {},
    "Rprop": {"etas": [0.5, 1.2]},
}


def trained(name: str, folder: Path | None) -> list[torch.Tensor]:
    """Ten steps, with a checkpoint and a new optimizer after the fourth where a folder is given."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 4))
    optimizer = make_optimizer(name, layers.parameters(), OPTIMIZERS[name], 1e-2)
    for step in range(10):
        if folder is not None and step == 4:
            Checkpoints(folder).write(
                TrainingState(4, {"network": layers.state_dict(), "optimizer": optimizer.state_dict()})
            )
            layers = nn.Sequential(nn.Linear(4, 6), nn.PReLU(), nn.Linear(6, 4))
            optimizer = make_optimizer(name, layers.parameters(), OPTIMIZERS[name], 1e-2)
            read = Checkpoints(folder).read()
            assert read is not None
            layers.load_state_dict(read.content["network"])
            restore_optimizer(optimizer, read.content["optimizer"])
        optimizer.zero_grad()
        set_rate(optimizer, 1e-2 / (step + 1))
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        (layers(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in layers.parameters()]


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_an_optimizer_goes_on_from_its_state_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole, resumed = trained(name, None), trained(name, tmp_path)
    assert all(map(torch.equal, whole, resumed))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("AdamQ", {}, "no optimizer AdamQ"),
        ("LBFGS", {}, "several times a step"),
        ("SparseAdam", {}, "sparse"),
        ("Optimizer", {}, "no optimizer"),
        ("adamw", {"lr": 1.0}, "comes from the schedule"),
        ("SGD", {"moment": 1}, "does not take"),
        ("Adam", {"betas": [2, 2]}, "does not take"),
    ],
)
def test_an_optimizer_that_cannot_be_meant_is_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_optimizer(name, nn.Linear(2, 2).parameters(), options, 1e-3)


def spoilt(folder: Path, rest: object = None, tensors: bytes | None = None) -> None:
    """Replaces parts of a checkpoint, with the hash that makes them pass for what was written."""
    data = (folder / "tensors.safetensors").read_bytes() if tensors is None else tensors
    (folder / "tensors.safetensors").write_bytes(data)
    said = json.loads((folder / "state.json").read_text()) | {"blake3": blake3(data).hexdigest()}
    (folder / "state.json").write_text(rest if isinstance(rest, str) else json.dumps(said | (rest or {})))


@pytest.mark.parametrize(
    "rest",
    [
        *("[" * 100_000, '{"a": ' * 100_000, "[" + "{}," * 1_500_000 + "0]", "9" * 5_000, "[]", "null"),
        *({"step": "5"}, {"step": -1}, {"step": 10**30}, {"step": True}, {"step": None}, {"format": []}),
        *({"content": 5}, {"content": []}, {"content": {"dict": 5}}, {"content": {"dict": [[[], 1]]}}),
        *({"content": {"tensor": []}}, {"content": {"tensor": "nothing"}}, {"content": {"tuple": 5}}, {"content": {}}),
    ],
    ids=lambda rest: str(rest)[:20],
)
def test_a_checkpoint_that_somebody_changed_is_damaged_and_nothing_worse(tmp_path: Path, rest: Any) -> None:
    states = Checkpoints(tmp_path)
    spoilt(states.write(state(10)), rest)
    with pytest.raises(FileRefused) as raised:
        states.read()
    assert len(str(raised.value)) < 600
    states.write(state(20))
    read = states.read()
    assert read is not None
    assert read.step == 20


@pytest.mark.parametrize("tensors", [b"", b"x" * 100, b"\xff" * 8 + b"{}", (2).to_bytes(8, "little") + b"[]"])
def test_tensors_that_are_none_are_damage(tmp_path: Path, tensors: bytes) -> None:
    states = Checkpoints(tmp_path)
    spoilt(states.write(state(10)), tensors=tensors)
    with pytest.raises(DamagedFile):
        states.read()


@pytest.mark.skipif(os.name != "posix", reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path: Path, name: str) -> None:
    states = Checkpoints(tmp_path)
    folder = states.write(state(10))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DamagedFile, match="not a regular file"):
        states.read()
    states.remove_after(5)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_oldest_that_is_whole_is_found_beside_a_damaged_one(tmp_path: Path, number: int, name: str) -> None:
    states = Checkpoints(tmp_path)
    damaged = [states.write(state(step)) for step in (10, 20, 30)][number]
    (damaged / name).unlink()
    (damaged / name).mkdir()
    assert states.read(most=5) is None
    oldest = states.oldest()
    assert oldest is not None
    assert oldest.step == (20 if number == 0 else 10)
    states.remove_after(30)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_checkpoint_that_cannot_be_read_now_has_no_step_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = Checkpoints(tmp_path)
    fail_at(monkeypatch, states.write(state(1)) / "state.json", errno.EIO, "open")
    for ask in (states.read, states.oldest, lambda: states.remove_after(0)):
        with pytest.raises(HnetkitError, match="the checkpoint cannot be read") as raised:
            ask()
        assert not isinstance(raised.value, DamagedFile)


def test_a_checkpoint_of_holes_is_passed_over_unread(tmp_path: Path) -> None:
    states = Checkpoints(tmp_path)
    states.write(state(1))
    os.truncate(states.write(state(2)) / "tensors.safetensors", 30 << 30)
    read = states.read()
    assert read is not None
    assert read.step == 1


def test_links_in_place_of_checkpoints_are_removed_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    outside, states = tmp_path / "outside", Checkpoints(tmp_path / "state")
    Checkpoints(outside).write(state(1))
    states.folder.mkdir()
    (states.folder / "00000001").symlink_to(outside / "00000001")
    (states.folder / "00000002.unfinished").symlink_to(outside)
    (states.folder / "00000003.unfinished").touch()
    states.clear()
    assert list(states.folder.iterdir()) == []
    states.write(state(2))
    assert Checkpoints(outside).read() is not None


def test_folders_that_no_run_made_are_no_checkpoints(tmp_path: Path) -> None:
    states = Checkpoints(tmp_path, keep=1)
    names = {"5", "²", "٣", "0000000000009", "9" * 250, "1" + "0" * 240}
    for name in names:
        (tmp_path / name).mkdir()
    states.write(state(1))
    states.write(state(2))
    states.remove_after(1)
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"exp_avg": torch.zeros(1_000)}, "exp_avg is .1000. for a parameter of .2, 3."),
        ({str(n): torch.zeros(6) for n in range(100)}, "values for one parameter"),
        ({"exp_avg": torch.zeros(6)}, "exp_avg cannot be"),
        ({"exp_avg": "zeros"}, "exp_avg cannot be"),
        ({"step": torch.zeros(1, dtype=torch.int64)}, "step cannot be"),
        ({"more": 1}, "keeps other values"),
    ],
)
def test_a_state_that_no_optimizer_of_the_network_has_is_refused_by_name(change: dict[str, Any], said: str) -> None:
    layer = nn.Linear(3, 2)
    optimizer = make_optimizer("AdamW", layer.parameters(), {}, 1e-3)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    kept = optimizer.state_dict()
    restore_optimizer(optimizer, kept)
    spoiled = {**kept, "state": {**kept["state"], 0: {**kept["state"][0], **change}}}
    with pytest.raises(ValueError, match=said):
        restore_optimizer(optimizer, spoiled)
    with pytest.raises(ValueError, match="of 1000 parameters, not of 2"):
        restore_optimizer(optimizer, {**kept, "state": {number: {} for number in range(1_000)}})


@pytest.mark.parametrize("change", [{"betas": ()}, {"fused": True, "differentiable": True}, {"maximize": True}, None])
def test_the_settings_of_an_optimizer_are_those_of_its_recipe(change: dict[str, Any] | None) -> None:
    layer = nn.Linear(3, 2)
    optimizer = make_optimizer("AdamW", layer.parameters(), {}, 1e-3)
    before = optimizer.state_dict()["param_groups"]
    (group,) = before
    stated = {"params": group["params"]} if change is None else {**group, **change}
    restore_optimizer(optimizer, {"state": {}, "param_groups": [stated]})
    assert optimizer.state_dict()["param_groups"] == before


def test_a_link_to_what_no_name_can_be_is_no_checkpoint(tmp_path: Path) -> None:
    states = Checkpoints(tmp_path / "state")
    states.write(state(4))
    (tmp_path / "state" / "00000009").symlink_to("n" * 300)
    found = states.read()
    assert found is not None
    assert found.step == 4
    states.clear()
    assert os.path.islink(tmp_path / "state" / "00000009")
