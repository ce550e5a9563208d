"""How many threads torch is left: sums, and so the bits of a picture, depend on their number."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SEEN = """
import os
from hnetkit.distributed import use_default_threads
use_default_threads()
print(os.environ.get("OMP_NUM_THREADS"), os.environ.get("OMP_WAIT_POLICY"))
"""
LAUNCHED = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "RANK": "1", "WORLD_SIZE": "2"}
ALONE = {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        pytest.param({"OMP_NUM_THREADS": "1"}, "1 None", id="one thread, chosen by the user"),
        pytest.param({**LAUNCHED, "OMP_NUM_THREADS": "1"}, "None PASSIVE", id="one thread, chosen by the launcher"),
        pytest.param({**LAUNCHED, "OMP_NUM_THREADS": "2"}, "2 None", id="launched, two threads chosen by the user"),
        pytest.param({**ALONE, "OMP_NUM_THREADS": "1"}, "1 None", id="one process"),
        pytest.param(
            {**ALONE, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
            "None PASSIVE",
            id="one process, of several that were asked for on a CPU",
        ),
    ],
)
def test_a_launcher_s_choice_of_one_thread_is_not_kept(environment: dict[str, str], expected: str) -> None:
    others = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "ACCELERATE_"))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", SEEN], env=others | environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected.split()
