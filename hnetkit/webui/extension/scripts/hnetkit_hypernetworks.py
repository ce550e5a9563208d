"""hnetkit's extension for Forge and reForge. `hnetkit link --extension` writes it; with `--remove` it takes it away."""

import logging

try:
    from hnetkit.webui import register
except ModuleNotFoundError as error:
    if error.name != "hnetkit":
        raise
    logging.warning(
        "hnetkit's extension needs the package in this webui's Python: python -m pip install --no-deps hnetkit"
    )
else:
    HypernetworkScript = register()
