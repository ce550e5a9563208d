"""`hnetkit repair --refill` on a clock on which waiting is short: a process for tests to kill.

python repair_process.py CIVITAI_URL TOKEN
"""

from __future__ import annotations

import sys
import warnings

from hnetkit.cli.signals import stopping_on_signals
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.http import Stopped
from hnetkit.sources.session import FetchSession
from support.fast_clock import FastClock


def main() -> int:
    """Returns 0 when everything is here, 1 where something failed, else the code of a signal."""
    warnings.simplefilter("ignore")  # each mirror that fails is said
    clock = FastClock()
    with FetchSession(clock=clock, site=Civitai(clock, base=sys.argv[1], token=sys.argv[2])) as session:
        try:
            with stopping_on_signals(clock):
                results = session.repair(refill=True)
        except Stopped as stopped:
            return stopped.exit_code
    for result in results:
        print(result.state, result.name, result.code, result.reason, flush=True)
    return int(any(result.is_failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
