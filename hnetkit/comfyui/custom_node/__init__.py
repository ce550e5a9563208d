"""hnetkit's nodes for ComfyUI. `hnetkit link --node` writes this folder; with `--remove` it takes it away."""

try:
    from hnetkit.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, comfy_entrypoint
except ModuleNotFoundError as error:
    if error.name != "hnetkit":
        raise
    message = "hnetkit's nodes need the package in ComfyUI's own Python: python -m pip install hnetkit"
    raise ImportError(message) from error

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "comfy_entrypoint"]
