"""Files of another machine's library that an import told of: by what names prompts know a network that is not here.

They count while their network is in no file of this registry. Then what a scan found is known instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from sqlite3 import Connection
from typing import Any

from hnetkit.registry.columns import batches, spellings, text_of, upsert
from hnetkit.registry.networks import FILELESS

_COLUMNS = ("name", "sha256", "autov1", "size_bytes", "reference", "reference_sha256")


@dataclass(frozen=True, slots=True)
class ImportedFile:
    """A file that held a network on another machine.

    Attributes:
        content_hash: of the network.
        name: of the file, with its suffix.
        sha256, autov1, size_bytes: of the file; the latter two are None if unknown.
        reference: what `hnetkit pull` takes to fetch it; None if it is not known where it came from.
        reference_sha256: of the bytes that the reference gives: another one for an archive that holds the network, or
            for the file that it was converted from. None if unknown.
    """

    content_hash: str
    name: str
    sha256: str
    autov1: str | None = None
    size_bytes: int | None = None
    reference: str | None = None
    reference_sha256: str | None = None

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem


class ImportedFiles:
    """The table `imported_files`; all queries are about networks in no file."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def put(self, network_id: int, row: Mapping[str, Any]) -> None:
        """Stores a file of a network; what was known of it stays."""
        name = text_of(row["name"])
        values = {key: text_of(told) if isinstance(told := row.get(key), str) else told for key in _COLUMNS[2:]}
        key = {"network_id": network_id, "name": name, "sha256": row["sha256"]}
        first = {"stem": PurePosixPath(name).stem}
        upsert(self._db, "imported_files", key, values, first=first, keep_known=True)

    def by_content(self, among: list[str] | None = None) -> dict[str, list[ImportedFile]]:
        """Returns content hash -> files of the networks in no file; of each network the one that names it first.

        Args:
            among: content hashes of the networks that are wanted; None for all.
        """
        rows = self._rows("1", []) if among is None else []
        for part in batches(among or []):
            rows += self._rows(f"content_hash IN ({','.join('?' * len(part))})", list(part))
        found: dict[str, list[ImportedFile]] = {}
        for file in rows:
            found.setdefault(file.content_hash, []).append(file)
        return found

    def without_reference(self) -> list[ImportedFile]:
        """Returns the files of which it is not known where they came from."""
        return self._rows("imported_files.reference IS NULL", [])

    def counts(self) -> tuple[int, int]:
        """Returns the number of networks that some file says the source of, and of those that none does."""
        told = (
            "SELECT count(reference) > 0 AS is_told FROM imported_files JOIN networks ON networks.id = network_id "
            f"WHERE {FILELESS} GROUP BY network_id"
        )
        with_source, without = self._db.execute(f"SELECT total(is_told), total(NOT is_told) FROM ({told})").fetchone()
        return int(with_source), int(without)

    def contents(self, *, stem: str | None = None, digits: str | None = None) -> list[str]:
        """Returns the content hashes of the networks in no file that a file held with this stem, or with this hash.

        Args:
            stem: of the file; accents may be composed otherwise.
            digits: the first ones of its sha256, or of that which its reference gives; or all 8 of A1111's old hash.
        """
        tests: list[str] = []
        values: list[str] = []
        if stem is not None:
            texts = spellings(stem)
            tests.append(f"imported_files.stem IN ({','.join('?' * len(texts))})")
            values += texts
        if digits is not None:
            for column in ("sha256", "reference_sha256"):
                tests.append(f"imported_files.{column} >= ? AND imported_files.{column} < ? || 'g'")
                values += [digits, digits]
            tests.append("imported_files.autov1 = ?")
            values.append(digits)
        return list(dict.fromkeys(file.content_hash for file in self._rows(" OR ".join(tests), values)))

    def stem_of(self, sha256: str) -> str | None:
        """Returns what the network in no file is called of which a file, or what it came from, has these bytes."""
        same = "SELECT network_id FROM imported_files WHERE sha256 = ? UNION "
        same += "SELECT network_id FROM imported_files WHERE reference_sha256 = ?"
        found = self._rows(f"network_id IN ({same})", [sha256, sha256])
        return found[0].stem if found else None

    def stems(self) -> set[str]:
        """Returns the names of all networks in no file."""
        return {file.stem for file in self._rows("1", [])}

    def _rows(self, where: str, parameters: list[str]) -> list[ImportedFile]:
        cursor = self._db.execute(
            f"SELECT content_hash, {', '.join(f'imported_files.{column}' for column in _COLUMNS)} FROM imported_files "
            f"JOIN networks ON networks.id = network_id WHERE ({where}) AND {FILELESS} "
            "ORDER BY network_id, imported_files.id",
            parameters,
        )
        return [ImportedFile(*values) for values in cursor]
