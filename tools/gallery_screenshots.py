"""The pictures of docs/gallery.md: a gallery of the bundled networks, and of pictures that the bundled model draws.

    PYTHONPATH=tests python -P tools/gallery_screenshots.py [--out FOLDER]

Needs Playwright and Chromium (`make browser`). Nothing of the library of whoever runs it is read.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
COLORS = 256
"""Of a screenshot: it is small, and nobody sees the difference."""

# what a person has drawn: prompt, seed
DRAWN = (
    ("a red circle", 7),
    ("a large blue star <hypernet:outline:1>", 3),
    ("a purple triangle at the top <hypernet:paper:0.8>", 4),
    ("a large yellow circle at the bottom <hypernet:dots:1>", 5),
    ("a black star on the right <hypernet:outline:0.7> <hypernet:paper:0.5>", 6),
    ("a small green square on the left <hypernet:paper:1>", 8),
    ("a large red star <hypernet:dots:0.6>", 9),
)
# address, file, color scheme, width, height
SHOWN: tuple[tuple[str, str, Literal["light", "dark"], int, int], ...] = (
    ("/", "gallery.png", "light", 1280, 760),
    ("/", "gallery-dark.png", "dark", 1280, 760),
    ("NETWORK", "gallery-network.png", "light", 1280, 900),
    ("/drawing", "gallery-drawing.png", "light", 1280, 760),
    ("/pictures", "gallery-pictures.png", "light", 1280, 760),
    ("PICTURE", "gallery-picture.png", "dark", 1280, 900),
)
STRIPS = ("outline", "dots", "paper")
"""Networks of which the gallery draws a strip."""
WITHOUT_FOLDER = """folder => {
    document.getElementById("no-token").hidden = true;
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(folder, "~");
}"""
"""In the paths that a page shows, the folder of all that was made for it is the home of a person."""
_DRAWN_WITHIN_MS = 300_000


def make_library(folder: Path) -> Path:
    """Makes a library of the bundled networks, tagged, and a folder of pictures; returns that folder."""
    import hnetkit
    from hnetkit import demo

    networks, pictures = folder / "hypernetworks", folder / "outputs"
    shutil.copytree(demo.network_folder(), networks)
    pictures.mkdir()
    with hnetkit.Library() as library:
        library.scan(networks)
        library.tag("outline", "lines", "shapes", note="Best at full strength.")
        library.tag("dots", "texture")
        library.tag("paper", "texture", "background", alias="parchment")
        model = hnetkit.load_model(demo.NAME, device="cpu")
        for number, (prompt, seed) in enumerate(DRAWN):
            (picture,) = model.draw(prompt, seed=seed, library=library)
            path = pictures / f"{number + 1:05}-{seed}.png"
            picture.save(path)
            os.utime(path, (1_700_000_000 + number,) * 2)
        library.tag("outline", preview=next(pictures.glob("00002-*.png")), strength=0.8)
    return pictures


def show(pictures: Path, out: Path) -> None:
    """Writes the screenshots."""
    from playwright.sync_api import sync_playwright
    from support.gallery import running

    with running("--pictures", str(pictures)) as server, sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(base_url=server.base)
        page.goto(server.address)
        for name in STRIPS:
            page.get_by_role("button", name=f"Draw a strip of {name}").click()
            page.locator("#said:not(:empty)").wait_for()
        page.goto("/drawing")
        page.locator("#drawings:not(:has([data-pending]))").wait_for(timeout=_DRAWN_WITHIN_MS)
        for address, name, scheme, width, height in SHOWN:
            page = browser.new_page(
                viewport={"width": width, "height": height}, color_scheme=scheme, base_url=server.base
            )
            page.goto(_found(page, address))
            page.wait_for_load_state("networkidle")
            page.evaluate(WITHOUT_FOLDER, str(pictures.parent))
            keep(page.screenshot(), out / name)
            page.close()
        browser.close()


def _found(page: Any, address: str) -> str:
    """Returns an address, for one that only a page knows."""
    if address == "NETWORK":
        page.goto("/")
        return str(page.get_by_role("link", name="outline", exact=True).get_attribute("href"))
    if address == "PICTURE":
        page.goto("/pictures")
        return str(page.locator(".card .name").nth(2).get_attribute("href"))
    return address


def keep(shot: bytes, path: Path) -> None:
    """Writes a screenshot as a small PNG."""
    image = Image.open(BytesIO(shot)).convert("RGB")
    image.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the pictures of docs/gallery.md.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "images", metavar="FOLDER")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HNETKIT_HOME"] = str(Path(folder) / "home")
        show(make_library(Path(folder)), out)


if __name__ == "__main__":
    main()
