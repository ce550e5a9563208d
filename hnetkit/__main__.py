"""Runs the command line: `python -m hnetkit` is `hnetkit`."""

import os
import sys

# with -m, Python first looks for modules in the current folder, which may be a stranger's
if sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from hnetkit.cli import main

main()
