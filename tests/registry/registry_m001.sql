-- A registry as the first released schema wrote it. Never edited: it stands for files that people have.
PRAGMA user_version = 1;
CREATE TABLE "_sqlite_migrations" (
   "id" INTEGER PRIMARY KEY,
   "migration_set" TEXT,
   "name" TEXT,
   "applied_at" TEXT
);
CREATE UNIQUE INDEX "idx__sqlite_migrations_migration_set_name"
    ON "_sqlite_migrations" ("migration_set", "name");
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
);
INSERT INTO _sqlite_migrations (id, migration_set, name, applied_at)
    VALUES (1, 'hnetkit', 'm001_files_and_networks', '2026-11-23 11:35:00.192639+00:00');
INSERT INTO roots (id, path, added_at, scanned_at)
    VALUES (1, '/library', '2026-11-23T11:35:00+00:00', NULL);
INSERT INTO files (id, root_id, path, stem, size_bytes, mtime_ns, sha256, autov1, content_hash, format, kind, verdict, reason, warnings, reader_version, state, first_seen, last_seen)
    VALUES (1, 1, 'ink-0.pt', 'ink-0', 100, 1, '0000000000000000000000000000000000000000000000000000000000000001', NULL, 'h1:0000000000000000000000000000000000000000000000000000000000000001', 'pt-zip', 'hypernetwork', 'ok', NULL, '[]', 1, 'present', '2026-11-23T11:35:00+00:00', '2026-11-23T11:35:00+00:00');
INSERT INTO networks (id, content_hash, name, widths, layer_structure, activation, layer_norm, activate_output, dropout, dtype, parameters, base_model, step, sd_checkpoint, sd_checkpoint_name, metadata)
    VALUES (1, 'h1:0000000000000000000000000000000000000000000000000000000000000001', 'ink', '[320, 768]', '[1, 2, 1]', 'relu', 0, 0, '[0, 0, 0]', 'fp32', 10, 'sd1', 1, 'd7049739', 'wd.ckpt', '{"layer_structure": [1, 2, 1]}');
INSERT INTO tags (network_id, tag)
    VALUES (1, 'anime');
INSERT INTO notes (network_id, note)
    VALUES (1, 'best at 0.6');
INSERT INTO aliases (alias, network_id)
    VALUES ('lines', 1);
INSERT INTO network_text (rowid, names, tags, note, trained_on, base_model)
    VALUES (1, 'ink ink-0 lines ink ink-0 lines', 'anime', 'best at 0.6', 'wd.ckpt d7049739', 'sd1');
