"""Migrations: the schema, step by step. A released step is never changed; new ones are added at the end."""

from __future__ import annotations

from sqlite3 import Connection

from sqlite_utils import Database

from hnetkit.registry.first_migrations import LIBRARY, NAME, NETWORK_VERSIONS, NEW, OLD, migrations


def migrate(connection: Connection) -> None:
    """Brings a database up to date."""
    migrations.apply(Database(connection, execute_plugins=False))


@migrations()
def m009_imported_files(db: Database) -> None:
    """Files of another machine that an import told of, by which networks in no file are named, searched and fetched."""
    for statement in _M009.split(";"):
        db.execute(statement)
    db.execute("DROP VIEW library")
    db.execute(LIBRARY.replace(NAME, f"coalesce(best.stem, ({_IMPORTED_STEM}), networks.name)"))
    db.execute("DROP VIEW network_versions")
    db.execute(NETWORK_VERSIONS + _IMPORTED_VERSIONS)
    for name, event, ids in (
        ("imported_files_unindexed_by_insert", "INSERT ON imported_files", NEW),
        ("imported_files_unindexed_by_update", "UPDATE ON imported_files", NEW),
        ("imported_files_unindexed_by_delete", "DELETE ON imported_files", OLD),
        ("remote_files_unindex_imported_by_insert", "INSERT ON remote_files", _IMPORTED_OF),
        ("remote_files_unindex_imported_by_update", "UPDATE OF sha256 ON remote_files", _IMPORTED_OF),
    ):
        db.execute(f"CREATE TRIGGER {name} AFTER {event} BEGIN INSERT INTO unindexed {ids}; END")


_M009 = """
CREATE TABLE imported_files (
    id INTEGER PRIMARY KEY,
    network_id INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    stem TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    autov1 TEXT,
    size_bytes INTEGER,
    reference TEXT,
    reference_sha256 TEXT,
    UNIQUE (network_id, name, sha256)
);
CREATE INDEX imported_files_by_stem ON imported_files (stem);
CREATE INDEX imported_files_by_sha256 ON imported_files (sha256);
CREATE INDEX imported_files_by_reference ON imported_files (reference_sha256);
CREATE INDEX imported_files_by_autov1 ON imported_files (autov1)
"""
_IMPORTED_STEM = "SELECT stem FROM imported_files WHERE network_id = networks.id ORDER BY id LIMIT 1"
_IMPORTED_VERSIONS = """
UNION ALL
SELECT network_id, version_id FROM remote_files JOIN imported_files USING (sha256)
UNION ALL
SELECT network_id, version_id FROM remote_files JOIN imported_files ON reference_sha256 = remote_files.sha256
"""
_IMPORTED_OF = "SELECT network_id FROM imported_files WHERE NEW.sha256 IN (sha256, reference_sha256)"


@migrations()
def m010_faster_lists(db: Database) -> None:
    """A list sorts the files of no network, and leaves out the sites' tables where no column of theirs is asked for."""
    db.execute("CREATE INDEX files_best_first ON files (content_hash, state <> 'present', stem)")
    db.execute("DROP VIEW library")
    db.execute(_M010)


# tags are read in the order of their key
_M010 = """
CREATE VIEW library AS
SELECT networks.id AS id,
    coalesce(
        best.stem,
        (SELECT stem FROM imported_files WHERE network_id = networks.id ORDER BY id LIMIT 1),
        networks.name
    ) AS name,
    networks.base_model AS base_model,
    networks.layer_structure AS layer_structure, networks.activation AS activation, best.size_bytes AS size_bytes,
    coalesce(best.state, 'missing') AS state,
    (SELECT count(*) FROM files WHERE files.content_hash = networks.content_hash AND files.state = 'present') AS copies,
    (SELECT group_concat(tag, ', ') FROM tags WHERE network_id = networks.id) AS tags,
    (SELECT group_concat(alias, ', ') FROM (SELECT alias FROM aliases WHERE network_id = networks.id ORDER BY alias))
        AS aliases,
    (SELECT note FROM notes WHERE network_id = networks.id) AS note,
    networks.sd_checkpoint_name AS checkpoint_name, networks.sd_checkpoint AS checkpoint_hash, networks.step AS step,
    (SELECT name FROM models WHERE models.id = versions.model_id) AS title, versions.name AS version,
    (SELECT creator FROM models WHERE models.id = versions.model_id) AS creator,
    (SELECT group_concat(value, ', ')
        FROM models, json_each(CASE WHEN json_valid(models.tags) THEN models.tags ELSE '[]' END)
        WHERE models.id = versions.model_id) AS site_tags,
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
    ORDER BY state <> 'present', stem, id LIMIT 1
)
LEFT JOIN versions ON versions.id = (
    SELECT version_id FROM network_versions WHERE network_id = networks.id ORDER BY version_id LIMIT 1
)
"""


@migrations()
def m011_networks_of_archives(db: Database) -> None:
    """Networks in an archive that the library had already, from another download: each has one place, of one job."""
    db.execute(_M011)


_M011 = """
CREATE TABLE job_networks (
    job_id INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    sha256 TEXT NOT NULL,
    PRIMARY KEY (job_id, sha256)
) WITHOUT ROWID
"""


@migrations()
def m012_bakes(db: Database) -> None:
    """Files that stacks were baked to. A network that went in is known by its content, wherever its files are."""
    for statement in _M012.split(";"):
        db.execute(statement)


_M012 = """
CREATE TABLE bakes (
    id INTEGER PRIMARY KEY,
    path NOT NULL UNIQUE,
    target TEXT NOT NULL CHECK (target IN ('lora', 'diff', 'checkpoint', 'hypernetwork')),
    program TEXT,
    rank INTEGER,
    refine_steps INTEGER,
    error REAL,
    picture_error REAL,
    psnr REAL,
    model_name TEXT,
    model_hash TEXT,
    size_bytes INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    baked_at TEXT NOT NULL
);
CREATE TABLE baked_networks (
    bake_id INTEGER NOT NULL REFERENCES bakes (id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    name TEXT NOT NULL,
    content_hash TEXT NOT NULL,
    sha256 TEXT,
    strength TEXT NOT NULL,
    PRIMARY KEY (bake_id, place)
) WITHOUT ROWID;
CREATE INDEX baked_networks_by_content ON baked_networks (content_hash)
"""


@migrations()
def m013_second_sources(db: Database) -> None:
    """Where else bytes are known to be, and since when a model, a version or a file is not at its site any more.

    Of what was gone before, the last look is the earliest time that is known.
    """
    for statement in _M013.split(";"):
        db.execute(statement)


_M013 = """
CREATE TABLE mirrors (
    sha256 TEXT NOT NULL,
    url TEXT NOT NULL,
    source TEXT NOT NULL CHECK (source IN ('civarchive', 'setting')),
    state TEXT NOT NULL CHECK (state IN ('listed', 'served', 'deleted', 'other-bytes', 'failed')),
    seen_at TEXT NOT NULL,
    PRIMARY KEY (sha256, url)
) WITHOUT ROWID;
ALTER TABLE models ADD COLUMN state_since TEXT;
ALTER TABLE versions ADD COLUMN state_since TEXT;
ALTER TABLE remote_files ADD COLUMN state_since TEXT;
UPDATE models SET state_since = last_seen WHERE state <> 'listed';
UPDATE versions SET state_since = last_seen WHERE state <> 'listed';
CREATE VIEW lost_versions AS
SELECT versions.id AS version_id, models.source AS source,
    CASE WHEN models.state <> 'listed' THEN models.state ELSE 'gone' END AS state,
    CASE
        WHEN models.state <> 'listed' THEN models.state_since
        WHEN versions.state <> 'listed' THEN versions.state_since
        ELSE (SELECT max(state_since) FROM remote_files WHERE remote_files.version_id = versions.id)
    END AS since
FROM versions
JOIN models ON models.id = versions.model_id
WHERE models.state <> 'listed' OR versions.state <> 'listed' OR (
    EXISTS (SELECT 1 FROM remote_files WHERE remote_files.version_id = versions.id AND state = 'gone')
    AND NOT EXISTS (SELECT 1 FROM remote_files WHERE remote_files.version_id = versions.id AND state = 'listed')
)
"""


@migrations()
def m014_folders_of_archives(db: Database) -> None:
    """A folder of a repository of the hub is a model of its own where it is known who made it; its link leads there."""
    ((view,),) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'site_files'").fetchall()
    db.execute("DROP VIEW site_files")
    db.execute(view.replace("'https://huggingface.co/' || models.remote_id", _HUB_LINK))


_HUB_LINK = "'https://huggingface.co/' || replace(models.remote_id, ':', '/tree/main/')"


@migrations()
def m015_own_words_first(db: Database) -> None:
    """Trigger words beside a file, which a person may have written, come before a site's; an index for own names."""
    db.execute("CREATE INDEX networks_by_name ON networks (name)")
    ((view,),) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'library'").fetchall()
    start, _, rest = view.partition(_BEFORE_WORDS)
    db.execute("DROP VIEW library")
    db.execute(f"{start}{_BEFORE_WORDS}{_OWN_WORDS_FIRST}{rest[rest.index(_AFTER_WORDS) :]}")


_BEFORE_WORDS = "WHERE models.id = versions.model_id) AS site_tags,\n"
_AFTER_WORDS = " AS trigger_words"
_OWN_WORDS_FIRST = """    coalesce(
        (SELECT json_extract(said, '$.activation_text') FROM sidecars JOIN files ON files.id = file_id
        WHERE files.content_hash = networks.content_hash AND json_valid(said)
        AND trim(json_extract(said, '$.activation_text')) <> ''
        ORDER BY files.state <> 'present', files.stem, files.id LIMIT 1),
        (SELECT group_concat(value, ', ')
        FROM json_each(CASE WHEN json_valid(versions.trained_words) THEN versions.trained_words ELSE '[]' END))
    )"""
