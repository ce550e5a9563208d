"""ComfyUI's image metadata, converted to the equivalent infotext."""

from hnetkit.prompts.comfyui.conversion import has_sampler, parse

__all__ = ["has_sampler", "parse"]
