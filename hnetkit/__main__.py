"""`python -m hnetkit` is `hnetkit`."""

from hnetkit.cli import main

main()
