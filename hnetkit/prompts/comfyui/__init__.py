"""ComfyUI's image metadata, converted to the equivalent infotext."""

from hnetkit.prompts.comfyui.conversion import has_sampler, parse
from hnetkit.prompts.comfyui.graph import stem_of

__all__ = ["has_sampler", "parse", "stem_of"]
