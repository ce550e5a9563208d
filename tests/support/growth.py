"""What reading one input costs, in CPU seconds and memory, each measured in a process of its own that may not harm the
machine: `python growth.py NAME FACTOR...` prints a JSON line for each size of the input `NAME` of `growing.CASES`.
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


def costs(name: str, factors: Sequence[int]) -> list[Cost]:
    """Returns what the input costs at each of these sizes."""
    here = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": f"{here}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(here / "growth.py"), name, *map(str, factors)],
            cwd=folder,
            env={**environment, "HNETKIT_HOME": str(Path(folder) / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return [Cost(**json.loads(line)) for line in done.stdout.splitlines()]


def _measured(case: object, factor: int) -> Cost:
    folder = Path(tempfile.mkdtemp(dir="."))
    action = case.make(folder, factor)  # type: ignore[attr-defined]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _carry_out(action, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if not said:
        return Cost(size, None, usage.ru_maxrss * 1024, f"{ENDED} ({status})")
    cpu_s, made, outcome = json.loads(said)
    return Cost(size, cpu_s, made, outcome)


def _carry_out(action: object, writer: int) -> None:
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
        action()  # type: ignore[operator]
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


if __name__ == "__main__":
    import growing

    chosen = growing.CASES[sys.argv[1]]
    chosen.prepare()
    for factor in sys.argv[2:]:
        print(json.dumps(asdict(_measured(chosen, int(factor)))), flush=True)
