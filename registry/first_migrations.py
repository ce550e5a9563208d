"""The first migrations: tables, the search over all that is shown, and views. Released, so never changed."""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from hnetkit.registry.networks import SEARCH

migrations = Migrations("hnetkit")


@migrations()
def m001_files_and_networks(db: Database) -> None:
    """Files are locations, networks are contents: many files may have the same content.

    A path or name that is not valid text is stored as bytes, which SQLite accepts in any column.
    """
    for statement in (_M001 + _FIRST_SEARCH).split(";"):
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

_FIRST_SEARCH = """
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


@migrations()
def m007_search_over_all(db: Database) -> None:
    """The search index has all that is shown of a network, and any change of it puts the network into `unindexed`.

    Triggers do that, since what is shown comes from eight tables, and people write to some of them with other tools.
    """
    db.execute("DROP TABLE IF EXISTS network_text")
    db.execute(SEARCH)
    db.execute("CREATE TABLE unindexed (network_id INTEGER NOT NULL)")
    db.execute("INSERT INTO unindexed SELECT id FROM networks")
    db.execute("CREATE INDEX lookups_by_version ON lookups (version_id)")
    db.execute(NETWORK_VERSIONS)
    for table, events in _SHOWN.items():
        for event, ids in events.items():
            db.execute(
                f"CREATE TRIGGER {table}_unindexed_by_{event.split()[0].lower()} AFTER {event} ON {table} "
                f"BEGIN INSERT INTO unindexed {ids}; END"
            )
    db.execute(
        "CREATE TRIGGER networks_unindexed_by_delete AFTER DELETE ON networks BEGIN "
        "DELETE FROM network_text WHERE rowid = OLD.id; END"
    )


# which networks a site's version is of: by the hash of a file that it lists, or by the site's answer about a hash
NETWORK_VERSIONS = """
CREATE VIEW network_versions AS
SELECT networks.id AS network_id, remote_files.version_id AS version_id
FROM remote_files
JOIN files ON files.sha256 = remote_files.sha256
JOIN networks ON networks.content_hash = files.content_hash
UNION ALL
SELECT networks.id, versions.id
FROM versions
JOIN lookups ON lookups.version_id = versions.remote_id
JOIN files ON files.sha256 = lookups.sha256
JOIN networks ON networks.content_hash = files.content_hash
"""
NEW, OLD = "SELECT NEW.network_id", "SELECT OLD.network_id"
_OF_CONTENT = "SELECT id FROM networks WHERE content_hash"
_OF_FILE = "SELECT networks.id FROM networks JOIN files USING (content_hash) WHERE files.id"
_OF_VERSION = "SELECT network_id FROM network_versions WHERE version_id"
_OF_SHA256 = "SELECT networks.id FROM networks JOIN files USING (content_hash) WHERE files.sha256"
# table -> the change -> the networks of which other text is shown then
_SHOWN = {
    "networks": {
        "INSERT": "SELECT NEW.id",
        "UPDATE OF name, activation, layer_norm, base_model, sd_checkpoint, sd_checkpoint_name": "SELECT NEW.id",
    },
    **{table: {"INSERT": NEW, "UPDATE": f"{OLD} UNION {NEW}", "DELETE": OLD} for table in ("tags", "notes", "aliases")},
    "files": {
        "INSERT": f"{_OF_CONTENT} = NEW.content_hash",
        "UPDATE OF stem, sha256, content_hash": f"{_OF_CONTENT} IN (OLD.content_hash, NEW.content_hash)",
        "DELETE": f"{_OF_CONTENT} = OLD.content_hash",
    },
    "sidecars": {
        "INSERT": f"{_OF_FILE} = NEW.file_id",
        "UPDATE": f"{_OF_FILE} = NEW.file_id",
        "DELETE": f"{_OF_FILE} = OLD.file_id",
    },
    "models": {
        "UPDATE OF name, creator, tags, description": "SELECT network_id FROM versions "
        "JOIN network_versions ON version_id = versions.id WHERE model_id = NEW.id"
    },
    "versions": {
        "INSERT": f"{_OF_VERSION} = NEW.id",
        "UPDATE OF name, base_model, trained_words": f"{_OF_VERSION} = NEW.id",
    },
    "remote_files": {
        "INSERT": f"{_OF_SHA256} = NEW.sha256",
        "UPDATE OF sha256": f"{_OF_SHA256} IN (OLD.sha256, NEW.sha256)",
        "DELETE": f"{_OF_SHA256} = OLD.sha256",
    },
    "lookups": {
        "INSERT": f"{_OF_SHA256} = NEW.sha256",
        "UPDATE OF version_id": f"{_OF_SHA256} = NEW.sha256",
        "DELETE": f"{_OF_SHA256} = OLD.sha256",
    },
}


@migrations()
def m008_views(db: Database) -> None:
    """Views for people who open the database with other tools, and for lists: see docs/registry.md."""
    for statement in (*_M008.split(";"), LIBRARY):
        db.execute(statement)


_M008 = """
CREATE VIEW library_files AS
SELECT files.id AS id, files.stem AS name,
    CASE
        WHEN 'blob' IN (typeof(roots.path), typeof(files.path)) THEN quote(files.path)
        WHEN roots.path LIKE '/%' THEN rtrim(roots.path, '/') || '/' || files.path
        ELSE rtrim(roots.path, '\\') || '\\' || files.path
    END AS path,
    files.state AS state, files.kind AS kind, files.verdict AS verdict, files.reason AS reason,
    files.format AS format, files.size_bytes AS size_bytes, files.sha256 AS sha256,
    substr(files.sha256, 1, 10) AS a1111_hash, files.autov1 AS a1111_old_hash, networks.id AS network_id,
    files.content_hash AS content_hash,
    datetime(files.mtime_ns / 1000000000, 'unixepoch') AS modified_at, files.first_seen AS first_seen,
    files.last_seen AS last_seen
FROM files
JOIN roots ON roots.id = files.root_id
LEFT JOIN networks ON networks.content_hash = files.content_hash;
CREATE VIEW site_files AS
SELECT remote_files.id AS id, models.source AS source, models.name AS title, versions.name AS version,
    models.creator AS creator, versions.base_model AS base_model, remote_files.name AS file_name,
    remote_files.size_bytes AS size_bytes, remote_files.sha256 AS sha256, models.remote_id AS model_id,
    versions.remote_id AS version_id,
    CASE models.source
        WHEN 'civitai'
            THEN 'https://civitai.com/models/' || models.remote_id || '?modelVersionId=' || versions.remote_id
        ELSE 'https://huggingface.co/' || models.remote_id
    END AS link,
    models.state AS model_state, models.nsfw_level AS nsfw_level, models.downloads AS downloads,
    versions.published_at AS published_at,
    EXISTS (SELECT 1 FROM files WHERE files.sha256 = remote_files.sha256 AND files.state = 'present') AS is_here
FROM remote_files
JOIN versions ON versions.id = remote_files.version_id
JOIN models ON models.id = versions.model_id
"""
NAME = "coalesce(best.stem, networks.name)"
LIBRARY = f"""
CREATE VIEW library AS
SELECT networks.id AS id, {NAME} AS name, networks.base_model AS base_model,
    networks.layer_structure AS layer_structure, networks.activation AS activation, best.size_bytes AS size_bytes,
    coalesce(best.state, 'missing') AS state,
    (SELECT count(*) FROM files WHERE files.content_hash = networks.content_hash AND files.state = 'present') AS copies,
    (SELECT group_concat(tag, ', ') FROM (SELECT tag FROM tags WHERE network_id = networks.id ORDER BY tag)) AS tags,
    (SELECT group_concat(alias, ', ') FROM (SELECT alias FROM aliases WHERE network_id = networks.id ORDER BY alias))
        AS aliases,
    (SELECT note FROM notes WHERE network_id = networks.id) AS note,
    networks.sd_checkpoint_name AS checkpoint_name, networks.sd_checkpoint AS checkpoint_hash, networks.step AS step,
    models.name AS title, versions.name AS version, models.creator AS creator,
    (SELECT group_concat(value, ', ') FROM json_each(CASE WHEN json_valid(models.tags) THEN models.tags ELSE '[]' END))
        AS site_tags,
    coalesce(
        (SELECT group_concat(value, ', ')
        FROM json_each(CASE WHEN json_valid(versions.trained_words) THEN versions.trained_words ELSE '[]' END)),
        (SELECT json_extract(said, '$.activation_text') FROM sidecars JOIN files ON files.id = file_id
        WHERE files.content_hash = networks.content_hash AND json_valid(said)
        AND json_extract(said, '$.activation_text') NOTNULL LIMIT 1)
    ) AS trigger_words,
    (SELECT path FROM library_files WHERE library_files.id = best.id) AS path,
    (SELECT min(first_seen) FROM files WHERE files.content_hash = networks.content_hash) AS first_seen,
    networks.name AS own_name, networks.content_hash AS content_hash, best.sha256 AS sha256
FROM networks
LEFT JOIN files AS best ON best.id = (
    SELECT id FROM files WHERE files.content_hash = networks.content_hash
    ORDER BY state = 'present' DESC, stem, id LIMIT 1
)
LEFT JOIN versions ON versions.id = (
    SELECT version_id FROM network_versions WHERE network_id = networks.id ORDER BY version_id LIMIT 1
)
LEFT JOIN models ON models.id = versions.model_id
"""
