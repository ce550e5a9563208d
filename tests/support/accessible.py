"""What keeps people from reading a page: what axe finds serious, and what is wider than the window."""

from __future__ import annotations

from typing import Any


def faults_of(page: Any) -> list[str]:
    """Returns the serious faults of a page as it is shown now, each with the first element that has it."""
    from axe_playwright_python.sync_playwright import Axe

    is_wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    found = [fault for fault in Axe().run(page).response["violations"] if fault["impact"] in ("serious", "critical")]
    return [*(["wider than the window"] if is_wide else []), *(f"{it['id']}: {it['nodes'][0]['html']}" for it in found)]
