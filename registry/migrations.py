"""The schema, as the steps that made it. A step that was released is never edited: changes are new steps."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

migrations = Migrations("hnetkit")


def migrate(db: Database) -> None:
    """Applies what is pending, all or nothing. Processes that open one new file together take turns."""
    db.execute("BEGIN IMMEDIATE")
    try:
        migrations.apply(db)
        db.execute(f"PRAGMA user_version = {len(migrations.applied(db))}")
        db.commit()
    finally:
        db.rollback()


@migrations()
def m001_roots_files_networks(db: Database) -> None:
    db.executescript(r"""
        CREATE TABLE roots (
            id INTEGER PRIMARY KEY,
            path TEXT NOT NULL UNIQUE,
            added TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
            last_scanned TEXT  -- when a scan of it last came to its end
        );

        -- A content: what the tensors alone say. Tags, notes and aliases belong to it, whatever its files are called.
        CREATE TABLE networks (
            id INTEGER PRIMARY KEY,
            content_hash TEXT NOT NULL UNIQUE,
            name TEXT NOT NULL,  -- the stem of `file`, or of the last one that there was
            file INTEGER REFERENCES files (id) ON DELETE SET NULL,  -- of its files, the one to take
            widths TEXT NOT NULL,  -- JSON
            layer_structure TEXT NOT NULL,  -- JSON
            activation TEXT,
            layer_norm INTEGER NOT NULL,
            activate_output INTEGER NOT NULL,
            dtype TEXT NOT NULL,
            parameters INTEGER NOT NULL,
            base_model TEXT NOT NULL
        );

        -- A file under a root: where it is, what was found in it, and what it says of itself.
        CREATE TABLE files (
            id INTEGER PRIMARY KEY,
            root INTEGER NOT NULL REFERENCES roots (id) ON DELETE CASCADE,
            path TEXT NOT NULL,  -- below the root; `\uDCFF` for a byte that is not UTF-8, `\\` for a backslash
            stem TEXT NOT NULL,
            state TEXT NOT NULL DEFAULT 'present' CHECK (state IN ('present', 'missing')),
            size INTEGER NOT NULL,
            mtime_ns INTEGER NOT NULL,
            sha256 TEXT NOT NULL,
            autov1 TEXT,
            content_hash TEXT REFERENCES networks (content_hash) ON UPDATE CASCADE,
            kind TEXT NOT NULL,
            format TEXT,
            verdict TEXT NOT NULL,
            reason TEXT,
            warnings TEXT NOT NULL,  -- JSON
            reader_version TEXT NOT NULL,  -- of the reader that gave the verdict
            own_name TEXT,
            step INTEGER,
            dropout TEXT,  -- JSON
            sd_checkpoint TEXT,
            sd_checkpoint_name TEXT,
            metadata TEXT NOT NULL,  -- JSON
            first_seen TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
            last_seen TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now')),
            UNIQUE (root, path)
        );
        CREATE INDEX files_stem ON files (stem);
        CREATE INDEX files_content_hash ON files (content_hash);
        CREATE INDEX files_sha256 ON files (sha256);
        CREATE INDEX files_autov1 ON files (autov1);
        CREATE INDEX networks_file ON networks (file);

        CREATE TABLE tags (
            content_hash TEXT NOT NULL REFERENCES networks (content_hash) ON DELETE CASCADE ON UPDATE CASCADE,
            tag TEXT NOT NULL COLLATE NOCASE,
            PRIMARY KEY (content_hash, tag)
        );
        CREATE TABLE notes (
            content_hash TEXT PRIMARY KEY REFERENCES networks (content_hash) ON DELETE CASCADE ON UPDATE CASCADE,
            note TEXT NOT NULL
        );
        CREATE TABLE aliases (
            alias TEXT PRIMARY KEY,
            content_hash TEXT NOT NULL REFERENCES networks (content_hash) ON DELETE CASCADE ON UPDATE CASCADE
        );
        CREATE INDEX tags_tag ON tags (tag);
        CREATE INDEX aliases_content_hash ON aliases (content_hash);

        -- One row for each network, under its id.
        CREATE VIRTUAL TABLE search USING fts5 (
            name, aliases, stems, tags, notes, trained_on, base_model,
            tokenize = "unicode61 remove_diacritics 2", prefix = '1 2 3'
        );
    """)
