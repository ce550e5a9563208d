"""What hypernetworks do I have, where were they, and what do I know of them? Rows in SQLite, no model files.

``Registry(path)`` is the way in. It is loaded when it is first used, so that this file does nothing
when a checkout's folder of this name is imported by accident.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnetkit.registry.store import Registry as Registry


def __getattr__(name: str) -> Any:
    if name == "Registry":
        from hnetkit.registry.store import Registry

        return Registry
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
