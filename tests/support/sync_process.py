"""`hnetkit sync -y --all-versions --nsfw` on a clock on which waiting is short: a process for tests to kill.

python sync_process.py CIVITAI_URL TOKEN
"""

from __future__ import annotations

import sys

from fast_clock import FastClock
from fetching import EVERYTHING

from hnetkit.cli.signals import stopping_on_signals
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.http import Stopped
from hnetkit.sources.session import FetchSession


def main() -> int:
    """Returns 0 when everything came or was refused for good, 1 where something failed, else the code of a signal."""
    clock = FastClock()
    civitai = Civitai(clock, base=sys.argv[1], token=sys.argv[2])
    with FetchSession(clock=clock, site=civitai) as session:
        print("began", flush=True)
        try:
            with stopping_on_signals(clock):
                jobs = session.sync(EVERYTHING, all_versions=True)
        except Stopped as stopped:
            return stopped.exit_code
    print({state: sum(job.state == state for job in jobs) for state in {job.state for job in jobs}}, flush=True)
    return int(any(job.state == "failed" for job in jobs))


if __name__ == "__main__":
    sys.exit(main())
