"""A page to look through: every picture of a training folder small, with its caption. One file, no scripts."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from html import escape
from pathlib import Path

from hnetkit.errors import BadPicture, NotFound
from hnetkit.files import new_file, refuse_all_but
from hnetkit.train.preparing.opening import opened
from hnetkit.train.preparing.review import Review

_SIDE = 224  # longest side of a thumbnail in pixels
_QUALITY = 80

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.4 system-ui, sans-serif; }}
body {{ margin: 1.5rem; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax({side}px, 1fr)); gap: 1.25rem; }}
figure {{ margin: 0; }}
img {{ max-width: 100%; background: repeating-conic-gradient(#ccc 0 25%, #fff 0 50%) 0 / 16px 16px; }}
figcaption {{ overflow-wrap: anywhere; }}
.name {{ font-weight: 600; }}
.size, .none {{ opacity: .7; }}
.warning {{ color: light-dark(#a33a00, #ffb38a); }}
p {{ margin: .2rem 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
{warnings}
<main>
{figures}
</main>
</body>
</html>
"""

_BEGINNING = _PAGE.split("<title>")[0].encode()  # of every page, and of no other program's


def write_page(seen: Review, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a page that shows every picture small with its caption: one file of HTML without scripts.

    Args:
        overwrite: replaces an earlier page; never a file of another kind.

    Raises:
        OutputExists: the file exists and must not be replaced.
    """
    refuse_all_but(_BEGINNING, path, overwrite=overwrite)
    with new_file(path, overwrite=overwrite) as file:
        for part in contact_sheet(seen):
            file.write(part.encode("utf-8", "backslashreplace"))


def contact_sheet(seen: Review) -> Iterator[str]:
    """Yields the page picture by picture, with thumbnails inside it; names and captions are text, never markup."""
    before, after = _PAGE.split("{figures}")
    yield before.format(
        title=escape(f"{seen.folder.resolve().name}: {len(seen.rows)} pictures"),
        side=_SIDE,
        warnings="\n".join(f'<p class="warning">{escape(warning)}</p>' for warning in seen.warnings),
    )
    for row in seen.rows:
        yield f"{_figure(seen.folder / row['file'], row)}\n"
    yield after.lstrip()


def _figure(path: Path, row: dict[str, object]) -> str:
    name, caption = escape(str(row["file"])), escape(str(row["caption"]))
    warnings = row["warnings"] if isinstance(row["warnings"], list) else []
    size = f' <span class="size">{row["width"]} &times; {row["height"]}</span>' if row["width"] else ""
    lines = [
        "<figure>",
        _thumbnail(path, alt=caption or name),
        "<figcaption>",
        f'<p><span class="name">{name}</span>{size}</p>',
        f"<p>{caption}</p>" if caption else '<p class="none">no caption</p>',
        *(f'<p class="warning">{escape(str(warning))}</p>' for warning in warnings if warning != "no caption"),
        "</figcaption>",
        "</figure>",
    ]
    return "\n".join(line for line in lines if line)


def _thumbnail(path: Path, alt: str) -> str:
    try:
        image = opened(path)
    except (BadPicture, NotFound):
        return ""
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    if image.mode == "RGBA":
        kind = "png"
        image.save(buffer, format="PNG")
    else:
        kind = "jpeg"
        image.save(buffer, format="JPEG", quality=_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/{kind};base64,{data}" width="{image.width}" height="{image.height}" alt="{alt}">'
