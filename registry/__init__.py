"""The registry: hypernetworks, their files, and what is known about them, as rows in SQLite. Opens no model file.

``Registry(path)`` is the entry point. It is imported at its first use, so that this file does nothing when a checkout's
folder of this name is imported by accident.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnetkit.registry.store import Registry as Registry


def __getattr__(name: str) -> Any:
    if name == "Registry":
        from hnetkit.registry.store import Registry

        return Registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return ["Registry"]
