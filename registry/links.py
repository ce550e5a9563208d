"""Files that `hnetkit link` put into other programs' folders, recorded so that they can be updated and removed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sqlite3 import Connection

from hnetkit.registry.columns import from_column, now, to_column


@dataclass(frozen=True, slots=True)
class Link:
    """One file in another program's folder.

    Attributes:
        path: of the file there, absolute.
        folder: the program's folder of hypernetworks, absolute.
        layout: the program.
        how: ``"symlink"``, ``"hardlink"``, ``"copy"`` or ``"converted"``.
        source: the library's file, absolute; empty for a folder that was created.
        sha256: of the bytes that were put there.
    """

    path: str
    folder: str
    layout: str
    how: str
    source: str
    sha256: str


class Links:
    """The table `links`."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def into(self, folder: str) -> list[Link]:
        """Returns the links in a folder, by path."""
        return self._links("folder = ?", [to_column(folder)])

    def rows(self) -> list[Link]:
        """Returns the links in all folders, by path."""
        return self._links("1")

    def _links(self, where: str, parameters: Iterable[str | bytes] = ()) -> list[Link]:
        rows = self._db.execute(
            f"SELECT path, folder, layout, how, source, sha256 FROM links WHERE {where} ORDER BY path",
            list(parameters),
        )
        return [
            Link(from_column(p), from_column(f), layout, how, from_column(s), sha) for p, f, layout, how, s, sha in rows
        ]

    def paths(self) -> list[str]:
        """Returns the paths of all links."""
        return [from_column(path) for (path,) in self._db.execute("SELECT path FROM links")]

    def put(self, link: Link) -> None:
        """Stores a link, replacing the one at its path."""
        self._db.execute(
            "INSERT OR REPLACE INTO links VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                to_column(link.path),
                to_column(link.folder),
                link.layout,
                link.how,
                to_column(link.source),
                link.sha256,
                now(),
            ],
        )

    def forget(self, paths: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM links WHERE path = ?", [(to_column(path),) for path in paths])
