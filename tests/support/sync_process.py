"""`hnetkit sync -y --all-versions --nsfw`, or of a repository, on a clock on which waiting is short: to be killed.

python sync_process.py CIVITAI_URL TOKEN [hf:owner/repo]
"""

from __future__ import annotations

import sys
import warnings

from hnetkit.cli.signals import stopping_on_signals
from hnetkit.errors import HnetkitError
from hnetkit.sources.civitai import Civitai
from hnetkit.sources.http import Stopped
from hnetkit.sources.session import FetchSession
from support.fast_clock import FastClock
from support.fetching import EVERYTHING


def main() -> int:
    """Returns 0 when everything came or was refused for good, 1 where something failed, else the code of a signal.

    A repository that could not be listed is the exit code of its error, and one line.
    """
    warnings.simplefilter("ignore")  # that a site does not answer is said
    clock = FastClock()
    repository = sys.argv[3] if len(sys.argv) > 3 else None
    civitai = Civitai(clock, base=sys.argv[1], token=sys.argv[2])
    with FetchSession(clock=clock, site=civitai) as session:
        print("began", flush=True)
        try:
            with stopping_on_signals(clock):
                jobs = session.sync(EVERYTHING if repository is None else repository, all_versions=True)
        except Stopped as stopped:
            return stopped.exit_code
        except HnetkitError as error:
            print(f"Error: {error}", file=sys.stderr)
            return error.exit_code
    print({state: sum(job.state == state for job in jobs) for state in {job.state for job in jobs}}, flush=True)
    return int(any(job.state == "failed" for job in jobs))


if __name__ == "__main__":
    sys.exit(main())
