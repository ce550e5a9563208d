"""An extension for Forge and reForge, which parse ``<hypernet:NAME:STRENGTH>`` and apply nothing: the tag works again.

A script in the program's ``extensions`` calls `register`; `hnetkit link --extension` writes it. Torch and numpy are all
that it needs.
"""

from hnetkit.webui.script import register as register
