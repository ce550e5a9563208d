"""Places in the code at which something is done, by the file and the function around them: what scans of it list."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = ("hnetkit", "kernels", "registry")


def places(finds: Callable[[ast.AST], str | None], among: Iterable[str] = PACKAGE) -> dict[str, str]:
    """Returns ``hnetkit/files.py new_file`` -> the last that was found there.

    Args:
        finds: returns the text of a node that does it; None for any other.
        among: files, and folders with all files below them.
    """
    found: dict[str, str] = {}
    for path in (path for name in among for path in _files(REPOSITORY / name)):
        for function, node in _nodes(ast.parse(path.read_text(encoding="utf-8"))):
            if (text := finds(node)) is not None:
                found[f"{path.relative_to(REPOSITORY).as_posix()} {function}".rstrip()] = text
    return found


def _files(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _nodes(node: ast.AST, within: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Yields every node below one, with the qualified name of the function or class that it is in."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        own = f"{within}.{child.name}".lstrip(".") if named else within  # type: ignore[attr-defined]
        yield own, child
        yield from _nodes(child, own)
