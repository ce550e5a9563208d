"""Installs hnetkit beside what other programs hold to, and says what came of it: one line for each check.

A copy of what is committed is installed. Nothing changes outside of the work folder, whose environments (10 GB) are
used again by the next run. It asks a package index, and takes from minutes to an hour; CI does not run it.

    python tools/installs.py --pins FOLDER --record
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
EXTRAS = ("", "[diffusers]", "[all]")
CI_PYTHON = "3.11"
PYTHON_OF = {"forge": "3.10", "comfyui-2025-10": "3.12", "sdnext": "3.12", "forge-neo": "3.13"}
"""The Python that a program runs on, by the name of its file of pins; CI's where it is not known."""

GROUPS = ("least", "pythons", "pins", "diffusers")
SHOWN = ("torch", "numpy", "safetensors", "diffusers", "transformers", "huggingface-hub", "pillow")

LEAST_PYTHON = "3.10"
LEAST = {"torch": "2.3.1", "numpy": "1.26.2"}
"""Forge's, and the oldest torch that hnetkit takes."""

OLD_DIFFUSERS = {
    **{"torch": "2.5.1", "numpy": "1.26.4", "diffusers": "0.31.0", "transformers": "4.46.3", "accelerate": "0.31.0"},
    **{"huggingface-hub": "0.26.5", "safetensors": "0.4.5", "pillow": "9.5.0", "peft": "0.13.2"},
}
"""The oldest diffusers that hnetkit takes, and what was new beside it."""

OF_THE_TESTS = (
    *("hypothesis", "kernels", "opencv-python-headless>=4.8,<4.12", "picklescan", "psutil", "pytest>=8"),
    *("pytest-socket>=0.7", "pytest-timeout", "tensorboard>=2.16"),
)

_CONTRADICTS = "train/test_captioners.py::test_a_tagger_whose_files_contradict_each_other_is_told_as_no_defect"
# Two settings that transformers 4 does not look at; timm's taggers, which need transformers 5; where the UNet alone is
# offloaded, diffusers 0.31 takes the device of any part, in no fixed order, for the pipeline's; huggingface_hub before
# its version 1 asks once in a process whether it is offline; in matplotlib's font, for an old Pillow, lines break
# elsewhere; and a test opens the demo model by diffusers alone: transformers 4 fills the text encoder, which 5 saved,
# with random weights, and hnetkit does not.
OF_NEWER = (
    *(f"runtime/test_moving.py::test_offloading_keeps_working[{when}-sequential" for when in ("before", "after")),
    *(f"{_CONTRADICTS}[preprocessor_config.json-values{number}]" for number in (8, 14)),
    "train/test_captioners.py::test_of_a_timm_config",
    "runtime/test_from_the_hub.py::test_a_hub_out_of_reach",
    "generate/test_sheets.py::test_long_labels_of_columns",
    "train/test_learning.py::test_forty_steps",
)

# a torch of that time brings a Triton that is too old for the kernels
OF_KERNELS = (
    *("runtime/test_stack.py", "runtime/test_compiled_kernels.py"),
    *("runtime/test_real_size_plan.py::test_launches_of_a_step", "runtime/test_real_size_plan.py::test_flops_are"),
    "runtime/test_attaching.py::test_every_path_gives_the_same[grouped]",
    "runtime/test_attaching.py::test_every_path_gives_the_same[fused]",
    *("runtime/test_attaching.py::test_the_grouped_path", "runtime/test_compiled.py::test_with_the_fused_kernel"),
    "runtime/test_any_sequence.py::test_after_any_sequence_a_call_is_what_the_plain_implementation_computes[grouped",
    "runtime/test_any_sequence.py::test_after_any_sequence_a_call_is_what_the_plain_implementation_computes[fused",
    "generate/test_grids.py::test_ten_strengths",
)

GOLDEN_LIMIT = 1e-5
GOLDEN = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file
import hnetkit

folder, largest, count = Path(sys.argv[1]), 0.0, 0
cases, expected = json.loads((folder / "cases.json").read_text()), load_file(folder / "expected.safetensors")
networks = {case["name"]: hnetkit.load(folder / case["file"]) for case in cases["files"]}
runs = []
for key in expected:
    name, *rest = key.split("/")
    if name in networks and rest[-1].startswith("k@"):
        strength = rest[-1][2:]
        sides = [expected[f"{name}/{rest[0]}/{side}@{strength}"] for side in "kv"]
        runs.append(([(networks[name], float(strength))], expected[f"{name}/{rest[0]}/x"], sides))
for case in cases["stacks"]:
    items = [(networks[name], number) for name, number in zip(case["names"], case["multipliers"])]
    runs.append((items, expected[case["id"] + "/x"], [expected[f"{case['id']}/{side}"] for side in "kv"]))
for items, x, sides in runs:
    for got, truth in zip(hnetkit.Stack(items)(x), sides):
        error = ((got.double() - truth.double()).norm() / truth.double().norm()).item()
        largest, count = max(largest, error), count + 1
print(json.dumps({"files": len(networks), "outputs": count, "largest": largest}))
"""


@dataclass(frozen=True)
class Check:
    """What was asked, whether it holds, and by which figures or for which reason."""

    check: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Resolution:
    """What pip would install: versions by normalised name; or why nothing fits.

    Attributes:
        means: by which Python pip resolved.
    """

    versions: Mapping[str, str]
    problem: str
    means: str


# --- pythons, environments, pip


@cache
def interpreter(version: str) -> str | None:
    """Returns a Python of this version: one on the PATH, or pyenv's; None where there is none."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for candidate in (f"python{version}", *map(str, sorted(root.glob(f"versions/{version}.*/bin/python")))):
        found = shutil.which(candidate)
        if found and subprocess.run([found, "-c", ""], capture_output=True).returncode == 0:
            return found
    return None


def pip(*arguments: str, python: str | None = None, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs this Python's pip, for the environment of another one where `python` says so."""
    target = ["--python", python] if python else []
    command = [sys.executable, "-P", "-m", "pip", *target, "--disable-pip-version-check", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def environment(folder: Path, version: str, pinned: Mapping[str, str], *more: str) -> str:
    """Returns the Python of an environment that holds the pinned versions; one that is there is used again."""
    python, base = folder / "bin" / "python", interpreter(version)
    if not python.exists():
        if base is None:
            raise RuntimeError(f"there is no Python {version} here")
        subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True)
    wanted = [f"{name}=={number}" for name, number in pinned.items()]
    done = pip("install", "-q", *wanted, *more, python=str(python))
    if done.returncode:
        raise RuntimeError(last_line(done))
    return str(python)


def versions_in(python: str, names: Sequence[str]) -> dict[str, str]:
    """Returns the versions of packages as an environment has them."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    done = subprocess.run([python, "-I", "-c", code, *names], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def resolve(version: str, *requirements: str, constraints: Path | None = None) -> Resolution:
    """Asks pip what it would install into an empty environment of a Python, and installs nothing."""
    python = interpreter(version)
    held = ["-c", str(constraints)] if constraints else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        asked = ["install", "--dry-run", "--ignore-installed", "--report", str(report), *held, *requirements]
        if python:
            means = f"python {version}"
            done = pip(*asked, python=python)
        else:
            means = f"--python-version {version}"
            done = pip(*asked, "--python-version", version, "--only-binary=:all:", "--target", str(Path(folder, "t")))
        if done.returncode:
            return Resolution({}, conflict(done), means)
        installs = json.loads(report.read_text())["install"]
    metadata = [one["metadata"] for one in installs]
    return Resolution({plain(one["name"]): one["version"] for one in metadata}, "", means)


def conflict(done: subprocess.CompletedProcess[str]) -> str:
    """Returns in one line between which requirements nothing fits."""
    _, found, after = done.stdout.partition("The conflict is caused by:\n")
    if not found:
        return last_line(done)
    lines = after.partition("\n\n")[0].splitlines()
    return "; ".join(dict.fromkeys(re.sub(r"; extra == .*", "", line.strip()) for line in lines if line.strip()))


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or [f"exit code {done.returncode}"])[-1].strip()


def plain(name: str) -> str:
    """Returns a package's name as indexes spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins_of(path: Path) -> dict[str, str]:
    """Returns the ``name==version`` lines of a file."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    return {plain(name): number for name, equal, number in (line.partition("==") for line in lines) if equal}


# --- the checks


class Installs:
    """A copy of what is committed, its wheel, and the checks on them.

    Args:
        work: where environments stay.
        pins: a folder with files of ``name==version``, one of each program.
        shared: a folder with ``data/golden``: networks, and K and V as the original implementation computed them.
    """

    def __init__(self, work: Path, pins: Path | None, shared: Path | None) -> None:
        self.work, self.pins, self.shared = work, pins, shared
        work.mkdir(parents=True, exist_ok=True)
        self.source = work / "source"
        shutil.rmtree(self.source, ignore_errors=True)
        self.source.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=REPOSITORY, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=self.source, input=archive, check=True)
        done = pip("wheel", "-q", "--no-deps", "-w", str(work), str(self.source))
        if done.returncode:
            raise RuntimeError(last_line(done))
        (self.wheel,) = work.glob("hnetkit-*.whl")

    def least(self) -> Iterator[Check]:
        """The oldest Python, torch and numpy, which were there first; then every command that keeps a library."""
        python = environment(self.work / "least", LEAST_PYTHON, LEAST)
        done = pip("install", "-q", "--force-reinstall", "--no-deps", str(self.source), python=python)
        done = done if done.returncode else pip("install", "-q", str(self.source), python=python)
        yield Check(
            f"python {LEAST_PYTHON}: pip install .", done.returncode == 0, last_line(done) if done.returncode else ""
        )
        found = versions_in(python, list(LEAST))
        yield Check("pip install . changes neither torch nor numpy", found == LEAST, listed(found))
        yield from self._commands(python)
        if self.shared is None:
            yield Check("golden files through Stack", False, "needs --shared, a folder with data/golden")
            return
        golden = str(self.shared / "data" / "golden")
        done = subprocess.run([python, "-I", "-c", GOLDEN, golden], cwd=self.work, capture_output=True, text=True)
        if done.returncode:
            yield Check("golden files through Stack", False, last_line(done))
            return
        said = json.loads(done.stdout)
        detail = f"{said['outputs']} outputs of {said['files']} files, largest relative error {said['largest']:.1e}"
        yield Check("golden files through Stack", said["outputs"] > 0 and said["largest"] <= GOLDEN_LIMIT, detail)

    def _commands(self, python: str) -> Iterator[Check]:
        bundled = self.source / "hnetkit" / "demo" / "hypernetworks"
        files = self.shared / "data" / "golden" if self.shared else bundled
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name).resolve()
            networks = folder / "networks"
            networks.mkdir()
            for path in [*files.glob("*.pt"), *files.glob("*.ckpt")]:
                shutil.copy(path, networks)
            first, second = sorted(networks.iterdir())[:2]
            (folder / "webui").mkdir()
            for arguments in (
                *(["scan", str(networks)], ["list", "--json"], ["inspect", str(first), str(second), "--json"]),
                *(["convert", str(first), "made.safetensors"], ["validate", str(first), "made.safetensors"]),
                *(["search", first.stem, "--json"], ["link", "webui", "--layout", "a1111"]),
            ):
                home = {"HNETKIT_HOME": str(folder / "home"), "NO_COLOR": "1", "COLUMNS": "120"}
                command = [python, "-I", "-m", "hnetkit", *arguments]
                done = subprocess.run(command, cwd=folder, env={**os.environ, **home}, capture_output=True, text=True)
                rows = json.loads(done.stdout) if "--json" in arguments and done.returncode == 0 else None
                detail = last_line(done) if done.returncode else f"rows: {len(rows)}" if rows is not None else ""
                yield Check(f"hnetkit {arguments[0]}", done.returncode == 0 and rows != [], detail)
            linked = [path for path in (folder / "webui").rglob("*.pt")]
            count = len(list(networks.iterdir()))
            yield Check("the webui's folder has what was linked", bool(linked), f"{len(linked)} of {count} files")

    def pythons(self) -> Iterator[Check]:
        """What each Python would get from the package index; and, where they hold, with CI's constraints."""
        for version in PYTHONS:
            for extra in EXTRAS:
                found = resolve(version, f"{self.wheel}{extra}")
                yield Check(f"{found.means}: hnetkit{extra}", not found.problem, main_versions(found) or found.problem)
        for extra in EXTRAS:
            found = resolve(CI_PYTHON, f"{self.wheel}{extra}", constraints=self.source / "constraints.txt")
            name = f"{found.means}, constraints.txt: hnetkit{extra}"
            yield Check(name, not found.problem, main_versions(found) or found.problem)

    def beside_pins(self) -> Iterator[Check]:
        """What each program holds to, as constraints and then as requirements: hnetkit changes none of it."""
        for path in sorted(self.pins.glob("*.txt")) if self.pins else ():
            version, pins = PYTHON_OF.get(path.stem, CI_PYTHON), pins_of(path)
            given = [f"{name}=={number}" for name, number in pins.items()]
            for extra in ("", "[diffusers]"):
                found = resolve(version, f"{self.wheel}{extra}", constraints=path)
                yield Check(f"{path.stem}, {found.means}: hnetkit{extra} changes none of its pins", *kept(found, pins))
            found = resolve(version, *given, f"{self.wheel}")
            yield Check(f"{path.stem}, {found.means}: hnetkit with all of its pins installed", *kept(found, pins))

    def old_diffusers(self) -> Iterator[Check]:
        """The tests of attaching, drawing and training with the oldest diffusers; they need Python 3.11 themselves."""
        python = environment(
            self.work / "diffusers", CI_PYTHON, OLD_DIFFUSERS, f"{self.wheel}[diffusers]", *OF_THE_TESTS
        )
        done = pip("install", "-q", "--force-reinstall", "--no-deps", str(self.wheel), python=python)
        found = versions_in(python, list(OLD_DIFFUSERS))
        ok = done.returncode == 0 and found == OLD_DIFFUSERS
        yield Check(f"python {CI_PYTHON}: hnetkit[diffusers] installs beside the oldest", ok, listed(found))
        for room in ("runtime", "generate", "train"):
            yield self._tested(python, room)

    def _tested(self, python: str, room: str) -> Check:
        left_out = [f"tests/{name}" for name in (*OF_KERNELS, *OF_NEWER) if name.startswith(room)]
        options = [f"--{'deselect' if '::' in name else 'ignore'}={name}" for name in left_out]
        shared = {"HNETKIT_SHARED": str(self.shared)} if self.shared else {}
        command = [python, "-I", "-m", "pytest", "-q", "--tb=line", "-p", "no:cacheprovider", *options, f"tests/{room}"]
        env = {**os.environ, **shared, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=self.source, env=env, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        failed = [line.partition(" - ")[0] for line in lines if line.startswith(("FAILED ", "ERROR "))]
        return Check(
            f"tests/{room}, without {len(left_out)} tests or files of kernels and of newer libraries",
            done.returncode == 0,
            "; ".join([lines[-1], *failed]),
        )


def kept(found: Resolution, pins: Mapping[str, str]) -> tuple[bool, str]:
    """Whether a resolution leaves every pin as it is, and the figures or the reason."""
    if found.problem:
        return False, found.problem
    there = {name: number for name, number in pins.items() if name in found.versions}
    moved = [f"{name} {pin} -> {found.versions[name]}" for name, pin in there.items() if found.versions[name] != pin]
    return not moved, "; ".join(moved) or f"as pinned: {listed(there) or 'nothing of it is needed'}"


def main_versions(found: Resolution) -> str:
    """The versions that matter to others."""
    return listed({name: found.versions[name] for name in SHOWN if name in found.versions})


def listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pins", type=Path, metavar="FOLDER", help="files of name==version, one for each program")
    parser.add_argument("--shared", type=Path, metavar="FOLDER", help="with data/golden; else HNETKIT_SHARED's")
    usual = Path(tempfile.gettempdir(), "hnetkit-installs")
    parser.add_argument("--work", type=Path, metavar="FOLDER", default=usual, help="where environments stay")
    parser.add_argument("--only", choices=GROUPS, action="append", help="these checks; again for more than one")
    parser.add_argument("--record", action="store_true", help="write benchmarks/results/installs.json")
    chosen = parser.parse_args()
    shared = chosen.shared or (Path(os.environ["HNETKIT_SHARED"]) if "HNETKIT_SHARED" in os.environ else None)
    installs = Installs(chosen.work.resolve(), chosen.pins, shared)
    groups: dict[str, Callable[[], Iterator[Check]]] = {
        "least": installs.least,
        "pythons": installs.pythons,
        "pins": installs.beside_pins,
        "diffusers": installs.old_diffusers,
    }
    all_ok = True
    for name in chosen.only or GROUPS:
        done = []
        try:
            for check in groups[name]():
                print(f"{'ok   ' if check.ok else 'FAILS'} {check.check}: {check.detail}", flush=True)
                done.append(check)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            print(f"FAILS {name}: {error}", flush=True)
            done.append(Check(name, False, str(error)))
        all_ok = all_ok and all(check.ok for check in done)
        if chosen.record:
            record(name, done)
    return 0 if all_ok else 1


def record(group: str, done: Sequence[Check]) -> None:
    """Writes a group into benchmarks/results/installs.json; the others stay as their last run left them."""
    sys.path.append(str(REPOSITORY / "benchmarks"))
    import machine

    path = machine.RESULTS / "installs.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    machine.write("installs", before | {group: {**machine.conditions("pip"), "checks": [asdict(one) for one in done]}})


if __name__ == "__main__":
    sys.exit(main())
