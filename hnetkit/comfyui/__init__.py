"""Nodes for ComfyUI: hypernetworks on a model, as hnetkit computes them, with torch and numpy alone.

A folder in ComfyUI's ``custom_nodes`` imports the names below; `hnetkit link --node` writes it. ComfyUI takes
`comfy_entrypoint` where it has the API of that name, else the older `NODE_CLASS_MAPPINGS`, which is None otherwise.
"""

from hnetkit.comfyui.api import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
from hnetkit.comfyui.api import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS
from hnetkit.comfyui.api import comfy_entrypoint as comfy_entrypoint
