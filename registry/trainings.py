"""How networks came to be that were trained here: the recipe, the model, and the network that training began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlite_utils import Database

from hnetkit.registry.files import now, text_of
from hnetkit.registry.json_columns import from_json, to_json


@dataclass(frozen=True, slots=True)
class Training:
    """The training that made one content.

    Attributes:
        recipe: everything that the run was asked to do, as JSON holds it.
        started_from: content hash of the network that it began with; None for a new one.
        model_name, model_hash: of the model that it was trained on; None where nobody said.
        trained_at: when it was stored, UTC, ISO 8601.
    """

    recipe: Mapping[str, Any]
    started_from: str | None = None
    model_name: str | None = None
    model_hash: str | None = None
    trained_at: str | None = None


class Trainings:
    """The table `trainings`."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put(self, network_id: int, training: Training) -> None:
        """Stores how a network came to be, replacing what was known."""
        self._db.execute(
            "INSERT OR REPLACE INTO trainings VALUES (?, ?, ?, ?, ?, ?)",
            [
                network_id,
                to_json(training.recipe),
                training.started_from,
                training.model_name and text_of(training.model_name),
                training.model_hash,
                training.trained_at or now(),
            ],
        )

    def of(self, content_hash: str) -> Training | None:
        """Returns how the network of this content came to be; None where that is not known."""
        found = self._db.execute(
            "SELECT recipe, started_from, model_name, model_hash, trained_at FROM trainings "
            "JOIN networks ON networks.id = network_id WHERE content_hash = ?",
            [content_hash],
        ).fetchone()
        if found is None:
            return None
        return Training(from_json(found[0], "trainings", "recipe", content_hash), *found[1:])

    def lineage(self, content_hash: str) -> list[str]:
        """Returns the contents that training began with, one after another, the nearest first."""
        found: list[str] = []
        training = self.of(content_hash)
        while training is not None and training.started_from and training.started_from not in found:
            found.append(training.started_from)
            training = self.of(training.started_from)
        return found
