"""`python -m hnetkit` is `hnetkit`."""

import os
import sys

# with -m, Python looks for modules in the folder that it is started in first, which may be a stranger's
if sys.path[:1] == [os.getcwd()]:
    del sys.path[0]

from hnetkit.cli import main

main()
