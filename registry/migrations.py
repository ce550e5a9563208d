"""The schema, one step after another. A step that was released is never changed; a new one is added behind it."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

migrations = Migrations("hnetkit")


@migrations()
def m001_files_and_networks(db: Database) -> None:
    """Files are places, networks are contents: one content may stand in many files.

    A path or name that is not valid text is stored as its bytes (SQLite columns hold either).
    """
    for statement in _M001.split(";"):
        db.execute(statement)


_M001 = """
CREATE TABLE roots (
    id INTEGER PRIMARY KEY,
    path NOT NULL UNIQUE,
    added_at TEXT NOT NULL,
    scanned_at TEXT
);
CREATE TABLE files (
    id INTEGER PRIMARY KEY,
    root_id INTEGER NOT NULL REFERENCES roots (id) ON DELETE CASCADE,
    path NOT NULL,
    stem TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT,
    autov1 TEXT,
    content_hash TEXT,
    format TEXT,
    kind TEXT NOT NULL,
    verdict TEXT NOT NULL,
    reason TEXT,
    warnings TEXT NOT NULL,
    reader_version INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('present', 'missing', 'corrupt')),
    first_seen TEXT NOT NULL,
    last_seen TEXT NOT NULL,
    UNIQUE (root_id, path)
);
CREATE INDEX files_by_content ON files (content_hash);
CREATE INDEX files_by_sha256 ON files (sha256);
CREATE INDEX files_by_stem ON files (stem);
CREATE INDEX files_by_kind ON files (kind);
CREATE TABLE networks (
    id INTEGER PRIMARY KEY,
    content_hash TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    widths TEXT NOT NULL,
    layer_structure TEXT NOT NULL,
    activation TEXT NOT NULL,
    layer_norm INTEGER NOT NULL,
    activate_output INTEGER NOT NULL,
    dropout TEXT NOT NULL,
    dtype TEXT NOT NULL,
    parameters INTEGER NOT NULL,
    base_model TEXT NOT NULL,
    step INTEGER,
    sd_checkpoint TEXT,
    sd_checkpoint_name TEXT,
    metadata TEXT NOT NULL
);
CREATE TABLE tags (
    network_id INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (network_id, tag)
) WITHOUT ROWID;
CREATE TABLE notes (
    network_id INTEGER PRIMARY KEY REFERENCES networks (id) ON DELETE CASCADE,
    note TEXT NOT NULL
);
CREATE TABLE aliases (
    alias TEXT PRIMARY KEY,
    network_id INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE VIRTUAL TABLE network_text USING fts5 (
    names, tags, note, trained_on, base_model, prefix = '2 3', tokenize = 'unicode61 remove_diacritics 2'
)
"""
