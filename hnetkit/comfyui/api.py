"""The nodes in the words of ComfyUI's two APIs: the one of 2025, and the first one for programs without it."""

from __future__ import annotations

from typing import Any

from hnetkit.comfyui.nodes import CATEGORY, NODES, Input, NodeKind
from hnetkit.errors import HnetkitError, NodeFailed


def run(node: NodeKind, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """Runs a node; ComfyUI shows the message of what it raises beside it.

    Raises:
        NodeFailed: it cannot do its work: a sentence, and what to do.
    """
    try:
        return node.run(**inputs)
    except HnetkitError as error:
        raise NodeFailed.of(error) from error


async def comfy_entrypoint() -> Any:
    """Returns the nodes as ComfyUI's newer API takes them."""
    from comfy_api.latest import ComfyExtension  # type: ignore[import-not-found]

    class Extension(ComfyExtension):  # type: ignore[misc]
        async def get_node_list(self) -> list[type]:
            return [_newer(node) for node in NODES]

    return Extension()


def _newer(node: NodeKind) -> type:
    from comfy_api.latest import io

    def define_schema(cls: type) -> Any:
        return io.Schema(
            node_id=node.id,
            display_name=node.title,
            category=CATEGORY,
            description=node.description,
            inputs=[_newer_input(own) for own in node.inputs],
            outputs=[getattr(io, _NEWER[kind]).Output(display_name=name) for kind, name in node.outputs],
        )

    def execute(cls: type, /, **inputs: Any) -> Any:
        return io.NodeOutput(*run(node, inputs))

    def fingerprint_inputs(cls: type, /, **inputs: Any) -> Any:
        return node.state(inputs)

    methods = {
        "define_schema": classmethod(define_schema),
        "execute": classmethod(execute),
        "fingerprint_inputs": classmethod(fingerprint_inputs),
    }
    return type(node.id, (io.ComfyNode,), methods)


_NEWER = {"MODEL": "Model", "FLOAT": "Float", "STRING": "String", "COMBO": "Combo"}


def _newer_input(own: Input) -> Any:
    from comfy_api.latest import io

    options: dict[str, Any] = {"tooltip": own.tooltip, "optional": own.is_advanced}
    if own.type == "FLOAT":
        options |= {"default": own.default, "min": own.low, "max": own.high, "step": own.step}
    elif own.type == "STRING":
        options |= {"default": own.default, "multiline": own.is_multiline}
    elif own.choices is not None:
        options |= {"options": own.choices(), "default": own.default}
    made = getattr(io, _NEWER[own.type]).Input(own.name, **options)
    if own.is_advanced:
        made.extra_dict["advanced"] = True  # later versions have an argument of that name
    return made


def _older(node: NodeKind) -> type:
    def input_types(cls: type) -> dict[str, dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
        for own in node.inputs:
            groups["optional" if own.is_advanced else "required"][own.name] = _older_input(own)
        return groups

    def execute(self: Any, **inputs: Any) -> tuple[Any, ...]:
        return run(node, inputs)

    def state(cls: type, /, **inputs: Any) -> Any:
        return node.state(inputs)

    members = {
        "INPUT_TYPES": classmethod(input_types),
        "RETURN_TYPES": tuple(kind for kind, _ in node.outputs),
        "RETURN_NAMES": tuple(name for _, name in node.outputs),
        "FUNCTION": "execute",
        "CATEGORY": CATEGORY,
        "DESCRIPTION": node.description,
        "execute": execute,
        "IS_CHANGED": classmethod(state),
    }
    return type(node.id, (), members)


def _older_input(own: Input) -> tuple[Any, dict[str, Any]]:
    options: dict[str, Any] = {"tooltip": own.tooltip}
    if own.is_advanced:
        options["advanced"] = True
    if own.default is not None:
        options["default"] = own.default
    if own.type == "FLOAT":
        options |= {"min": own.low, "max": own.high, "step": own.step}
    if own.type == "STRING":
        options["multiline"] = own.is_multiline
    return own.choices() if own.choices is not None else own.type, options


def _has_newer_api() -> bool:
    try:
        from comfy_api.latest import ComfyExtension as ComfyExtension
        from comfy_api.latest import io
    except ImportError:
        return False
    return hasattr(io, "ComfyNode")


NODE_CLASS_MAPPINGS: dict[str, type] | None = None
"""The nodes as the first API takes them; None where ComfyUI has the newer one, which it would hide."""

NODE_DISPLAY_NAME_MAPPINGS = {node.id: node.title for node in NODES}

if not _has_newer_api():
    NODE_CLASS_MAPPINGS = {node.id: _older(node) for node in NODES}
