"""Networks as a folder for a Hugging Face repository, with the card that the hub reads; and its upload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hnetkit.sharing.api import plan_share as plan_share
    from hnetkit.sharing.api import share as share

__all__ = ["plan_share", "share"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loaded late: `hnetkit show` needs the words of licenses alone
        from hnetkit.sharing import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
