"""Migrations: the schema, step by step. A released step is never changed; new ones are added at the end."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

migrations = Migrations("hnetkit")


@migrations()
def m001_files_and_networks(db: Database) -> None:
    """Files are locations, networks are contents: many files may have the same content.

    A path or name that is not valid text is stored as bytes, which SQLite accepts in any column.
    """
    for statement in (_M001 + SEARCH).split(";"):
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
"""

SEARCH = """
CREATE VIRTUAL TABLE network_text USING fts5 (
    names, tags, note, trained_on, base_model, prefix = '2 3', tokenize = 'unicode61 remove_diacritics 2'
)
"""


@migrations()
def m002_sources(db: Database) -> None:
    """Models as the sites list them, download jobs, and the files that hnetkit installed.

    `raw` is the site's own JSON, compressed. NULL means unknown; an empty list is known to be empty.
    """
    for statement in _M002.split(";"):
        db.execute(statement)


_M002 = """
CREATE TABLE models (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL CHECK (source IN ('civitai', 'huggingface')),
    remote_id TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT,
    creator TEXT,
    description TEXT,
    tags TEXT,
    nsfw_level INTEGER,
    availability TEXT,
    commercial_use TEXT,
    allow_no_credit INTEGER,
    allow_derivatives INTEGER,
    allow_different_license INTEGER,
    downloads INTEGER,
    state TEXT NOT NULL CHECK (state IN ('listed', 'archived', 'taken-down', 'gone')),
    raw BLOB NOT NULL,
    first_seen TEXT NOT NULL,
    last_seen TEXT NOT NULL,
    UNIQUE (source, remote_id)
);
CREATE TABLE versions (
    id INTEGER PRIMARY KEY,
    model_id INTEGER NOT NULL REFERENCES models (id) ON DELETE CASCADE,
    remote_id TEXT NOT NULL,
    name TEXT NOT NULL,
    base_model TEXT,
    published_at TEXT,
    early_access_until TEXT,
    availability TEXT,
    usage TEXT,
    nsfw_level INTEGER,
    trained_words TEXT,
    strength REAL,
    state TEXT NOT NULL CHECK (state IN ('listed', 'gone')),
    first_seen TEXT NOT NULL,
    last_seen TEXT NOT NULL,
    UNIQUE (model_id, remote_id)
);
CREATE INDEX versions_by_remote_id ON versions (remote_id);
CREATE TABLE remote_files (
    id INTEGER PRIMARY KEY,
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    remote_id TEXT NOT NULL,
    name TEXT NOT NULL,
    type TEXT,
    size_bytes INTEGER,
    format TEXT,
    fp TEXT,
    scan TEXT,
    is_primary INTEGER,
    sha256 TEXT,
    hashes TEXT,
    hashes_at TEXT,
    state TEXT NOT NULL CHECK (state IN ('listed', 'gone')),
    UNIQUE (version_id, remote_id)
);
CREATE INDEX remote_files_by_sha256 ON remote_files (sha256);
CREATE TABLE images (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    url TEXT NOT NULL,
    place INTEGER NOT NULL,
    type TEXT,
    nsfw_level INTEGER,
    width INTEGER,
    height INTEGER,
    PRIMARY KEY (version_id, url)
) WITHOUT ROWID;
CREATE TABLE lookups (
    sha256 TEXT PRIMARY KEY,
    model_id TEXT,
    version_id TEXT,
    looked_up_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL CHECK (source IN ('civitai', 'huggingface', 'url')),
    url TEXT NOT NULL,
    name TEXT NOT NULL,
    suffix TEXT NOT NULL,
    folder TEXT NOT NULL,
    remote_file_id INTEGER REFERENCES remote_files (id) ON DELETE SET NULL,
    sha256 TEXT,
    size_bytes INTEGER,
    state TEXT NOT NULL CHECK (state IN ('queued', 'fetching', 'installing', 'done', 'skipped', 'refused', 'failed')),
    owner TEXT,
    attempts INTEGER NOT NULL DEFAULT 0,
    not_before TEXT,
    code TEXT,
    reason TEXT,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE TABLE installs (
    path PRIMARY KEY,
    job_id INTEGER REFERENCES jobs (id) ON DELETE SET NULL,
    kind TEXT NOT NULL CHECK (kind IN ('network', 'preview', 'sidecar', 'quarantine')),
    sha256 TEXT,
    installed_at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE sidecars (
    file_id INTEGER PRIMARY KEY REFERENCES files (id) ON DELETE CASCADE,
    said TEXT NOT NULL
);
CREATE TABLE subscriptions (
    name TEXT PRIMARY KEY,
    filters TEXT NOT NULL,
    created_at TEXT NOT NULL,
    synced_at TEXT
) WITHOUT ROWID;
CREATE TABLE links (
    path PRIMARY KEY,
    folder NOT NULL,
    layout TEXT NOT NULL,
    how TEXT NOT NULL CHECK (how IN ('symlink', 'hardlink', 'copy', 'converted')),
    source NOT NULL,
    sha256 TEXT NOT NULL,
    linked_at TEXT NOT NULL
) WITHOUT ROWID
"""


@migrations()
def m003_trainings(db: Database) -> None:
    """How networks were trained here. `started_from` is a content hash, of which there may be no file any more."""
    db.execute(_M003)


_M003 = """
CREATE TABLE trainings (
    network_id INTEGER PRIMARY KEY REFERENCES networks (id) ON DELETE CASCADE,
    recipe TEXT NOT NULL,
    started_from TEXT,
    model_name TEXT,
    model_hash TEXT,
    trained_at TEXT NOT NULL
)
"""


@migrations()
def m004_indexes(db: Database) -> None:
    """Indexes on foreign keys, since a library may have many thousands of rows."""
    for statement in _M004.split(";"):
        db.execute(statement)


_M004 = """
CREATE INDEX aliases_by_network ON aliases (network_id);
CREATE INDEX installs_by_job ON installs (job_id);
CREATE INDEX jobs_by_remote_file ON jobs (remote_file_id)
"""


@migrations()
def m005_sources_of_conversions(db: Database) -> None:
    """The file that one was converted from, by its own claim. The next scan reads such files again to find it."""
    for statement in _M005.split(";"):
        db.execute(statement)


_M005 = """
ALTER TABLE files ADD COLUMN source_sha256 TEXT;
CREATE INDEX files_by_source ON files (source_sha256);
UPDATE files SET reader_version = 0 WHERE format = 'safetensors'
"""


@migrations()
def m006_sidecars_seen(db: Database) -> None:
    """What the sidecars of a file looked like when they were read; NULL has the next scan read them."""
    db.execute("ALTER TABLE files ADD COLUMN sidecars_seen TEXT")
