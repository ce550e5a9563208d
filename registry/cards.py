"""What cards of networks show and are filtered by, beside the columns of the view `library`."""

from __future__ import annotations

from dataclasses import dataclass, field
from sqlite3 import Connection

_FILES = """
SELECT content_hash, verdict, root_id FROM files
WHERE content_hash NOTNULL ORDER BY state <> 'present', stem, id
"""
_PREVIEWS = """
SELECT content_hash, json_extract(said, '$.preview') FROM sidecars JOIN files ON files.id = file_id
WHERE content_hash NOTNULL AND json_valid(said) ORDER BY state <> 'present', stem, files.id
"""
_RATED = """
SELECT content_hash, models.nsfw_level FROM network_versions
JOIN networks ON networks.id = network_id
JOIN versions ON versions.id = version_id
JOIN models ON models.id = versions.model_id WHERE models.nsfw_level NOTNULL
"""


@dataclass(slots=True)
class CardFacts:
    """Of one network.

    Attributes:
        verdict: of its best file: ``"ok"``, ``"warnings"``; None where no file is known.
        roots: ids of the scanned folders that hold it.
        preview: path of the image that a sidecar of its best file names.
        nsfw_level: the bits of all ratings of its models, see `hnetkit.ratings`; 0 where nothing is rated.
    """

    verdict: str | None = None
    roots: set[int] = field(default_factory=set)
    preview: str | None = None
    nsfw_level: int = 0


class Cards:
    """Facts of all networks at once, by content."""

    def __init__(self, db: Connection) -> None:
        self._db = db

    def facts(self) -> dict[str, CardFacts]:
        """Returns content hash -> its facts; a network in no file that no site rates is not there."""
        found: dict[str, CardFacts] = {}
        for content, verdict, root in self._db.execute(_FILES):
            facts = found.setdefault(content, CardFacts(verdict))
            facts.roots.add(root)
        for content, preview in self._db.execute(_PREVIEWS):
            if isinstance(preview, str) and found[content].preview is None:
                found[content].preview = preview
        for content, level in self._db.execute(_RATED):
            if isinstance(level, int):
                found.setdefault(content, CardFacts()).nsfw_level |= level
        return found
