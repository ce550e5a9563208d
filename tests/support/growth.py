"""What reading one input costs, in CPU seconds and memory, each measured in a process of its own that may not harm the
machine.

`Meter` has one process that imports what the inputs need, once, and measures each in a fork: `python growth.py` reads
lines of `NAME FACTOR...` and prints for each a JSON list with the cost of each size of the input `NAME` of
`growing.CASES`.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from support.growing import CASES, Action, Case

LIMIT_S = 60
LIMIT_BYTES = 3 << 30
ENDED = "ended by the system"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one input cost.

    Attributes:
        size_bytes: of all files that were read.
        cpu_s: of the process; None where it was ended.
        made_bytes: by how much its memory grew at the most.
        outcome: "ok", or the class of the error.
    """

    size_bytes: int
    cpu_s: float | None
    made_bytes: int
    outcome: str


class Meter:
    """Measures inputs, in a process that is started with the first and lasts until `close`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._errors = Path(self._folder.name, "errors.txt")
        tests = Path(__file__).resolve().parents[1]
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "support.growth"],
                cwd=self._folder.name,
                env={**os.environ, "PYTHONPATH": f"{tests}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def costs(self, name: str, factors: Sequence[int]) -> list[Cost]:
        """Returns what the input costs at each of these sizes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join([name, *map(str, factors)]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the process that measures ended: {self._errors.read_text()[-2000:]}")
        return [Cost(**cost) for cost in json.loads(line)]

    def close(self) -> None:
        """Ends the process; it may be called again."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            self._process.wait(60)
            self._folder.cleanup()


def _measured(case: Case, factor: int) -> Cost:
    with tempfile.TemporaryDirectory(dir=".") as parent:
        folder = Path(parent, "input")
        folder.mkdir()
        action = case.make(folder, factor)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.environ["HNETKIT_HOME"] = str(Path(parent, "home").resolve())
            _carry_out(action, writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            said = pipe.read()
        _, status, usage = os.wait4(child, 0)
    if not said:
        return Cost(size, None, usage.ru_maxrss * 1024, f"{ENDED} ({status})")
    cpu_s, made, outcome = json.loads(said)
    return Cost(size, cpu_s, made, outcome)


def _carry_out(action: Action, writer: int) -> None:
    from hnetkit.errors import HnetkitError

    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + LIMIT_BYTES,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the highest memory so far is forgotten
    before, started = _memory("VmRSS"), resource.getrusage(resource.RUSAGE_SELF)
    outcome = "ok"
    try:
        action()
    except (HnetkitError, ValueError) as error:
        outcome = type(error).__name__
    except BaseException as error:
        outcome = f"unforeseen {type(error).__name__}"
    ended = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime
    os.write(writer, json.dumps([cpu_s, _memory("VmHWM") - before, outcome]).encode())
    os._exit(0)


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measures what the lines of stdin name."""
    for line in sys.stdin:
        name, *factors = line.split()
        CASES[name].prepare()
        print(json.dumps([asdict(_measured(CASES[name], int(factor))) for factor in factors]), flush=True)


if __name__ == "__main__":
    main()
