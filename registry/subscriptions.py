"""What is to be kept in step with a site: a name, and which models are meant by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlite_utils import Database

from hnetkit.registry.files import Row, now
from hnetkit.registry.json_columns import from_json, to_json


class Subscriptions:
    """The table `subscriptions`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, name: str, filters: Mapping[str, Any]) -> None:
        """Stores what `name` means from now on."""
        self._db.execute(
            "INSERT INTO subscriptions (name, filters, created_at) VALUES (?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET filters = excluded.filters",
            [name, to_json(dict(sorted(filters.items()))), now()],
        )

    def put_new(self, name: str, filters: Mapping[str, Any]) -> None:
        """Stores what `name` means, unless it means something already."""
        if self._db.execute("SELECT 1 FROM subscriptions WHERE name = ?", [name]).fetchone() is None:
            self.put(name, filters)

    def rows(self) -> list[Row]:
        """Returns all of them, by name."""
        cursor = self._db.execute("SELECT name, filters, created_at, synced_at FROM subscriptions ORDER BY name")
        return [
            {
                "name": name,
                "filters": from_json(filters, "subscriptions", "filters", name),
                "created_at": created,
                "synced_at": synced,
            }
            for name, filters, created, synced in cursor
        ]

    def synced(self, name: str) -> None:
        self._db.execute("UPDATE subscriptions SET synced_at = ? WHERE name = ?", [now(), name])

    def remove(self, name: str) -> None:
        self._db.execute("DELETE FROM subscriptions WHERE name = ?", [name])
