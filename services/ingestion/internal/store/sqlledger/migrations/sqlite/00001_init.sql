-- +goose Up
CREATE TABLE projects (
  project_id      INTEGER NOT NULL PRIMARY KEY,
  identity_system INTEGER NOT NULL,
  next_user_no    INTEGER NOT NULL DEFAULT 1,
  profile_seq     INTEGER NOT NULL DEFAULT 0
);
-- Every distinct id ever seen and the number its events are stored under.
CREATE TABLE ids (
  project_id  INTEGER NOT NULL,
  distinct_id TEXT    NOT NULL,
  user_no     INTEGER NOT NULL,
  reason      INTEGER NOT NULL,
  at_ms       INTEGER NOT NULL,
  PRIMARY KEY (project_id, distinct_id)
) WITHOUT ROWID;
-- A number's first id is found through users; only the others need an index.
CREATE INDEX ids_by_user ON ids (project_id, user_no) WHERE reason <> 1;
CREATE TABLE users (
  project_id  INTEGER NOT NULL,
  user_no     INTEGER NOT NULL,
  canonical   INTEGER NOT NULL,
  distinct_id TEXT    NOT NULL,
  ids         INTEGER NOT NULL DEFAULT 1,
  seq         INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (project_id, user_no)
) WITHOUT ROWID;
CREATE INDEX users_merged ON users (project_id, canonical) WHERE canonical <> user_no;
CREATE INDEX users_changed ON users (project_id, seq) WHERE seq > 0;
CREATE TABLE profiles (
  project_id INTEGER NOT NULL,
  user_no    INTEGER NOT NULL,
  props      BLOB    NOT NULL,
  updated_ms INTEGER NOT NULL,
  PRIMARY KEY (project_id, user_no)
);
-- Users whose partner property holds a value that belongs to somebody else.
CREATE TABLE identifier_conflicts (
  project_id INTEGER NOT NULL,
  user_no    INTEGER NOT NULL,
  property   TEXT    NOT NULL,
  PRIMARY KEY (project_id, user_no, property)
) WITHOUT ROWID;
CREATE TABLE warnings (
  project_id INTEGER NOT NULL,
  kind       TEXT    NOT NULL,
  count      INTEGER NOT NULL,
  first_ms   INTEGER NOT NULL,
  last_ms    INTEGER NOT NULL,
  PRIMARY KEY (project_id, kind)
) WITHOUT ROWID;
CREATE TABLE group_profiles (
  project_id INTEGER NOT NULL,
  group_key  TEXT    NOT NULL,
  group_id   TEXT    NOT NULL,
  props      BLOB    NOT NULL,
  updated_ms INTEGER NOT NULL,
  PRIMARY KEY (project_id, group_key, group_id)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE group_profiles;
DROP TABLE warnings;
DROP TABLE identifier_conflicts;
DROP TABLE profiles;
DROP TABLE users;
DROP TABLE ids;
DROP TABLE projects;
