"""Rows as a scan would store them for a file, without any file."""

from __future__ import annotations

from typing import Any


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """An examination of a network, as the library would store it."""
    return {
        **{
            "content_hash": f"h1:{number:064x}",
            "name": f"net{number}",
            "widths": [320, 768],
            "layer_structure": [1, 2, 1],
        },
        **{"activation": "relu", "layer_norm": False, "activate_output": False, "dropout": [0, 0, 0], "dtype": "fp32"},
        **{
            "parameters": 10,
            "base_model": "sd1",
            "step": 1,
            "sd_checkpoint": "d7049739",
            "sd_checkpoint_name": "wd.ckpt",
        },
        **{"metadata": {"layer_structure": [1, 2, 1]}, "size_bytes": 100, "sha256": f"{number:064x}", "autov1": None},
        **{"format": "pt-zip", "kind": "hypernetwork", "verdict": "ok", "reason": None, "warnings": []},
        **changes,
    }
