"""ComfyUI's image metadata, converted to the equivalent infotext."""

from hnetkit.prompts.comfyui.conversion import parse

__all__ = ["parse"]
