-- +goose Up
-- The id that the link named; empty for first ids, and for links made before this column.
ALTER TABLE ids ADD COLUMN linked_to TEXT NOT NULL DEFAULT '';
-- Every merge of a number, so that a month that is over can be counted as it was.
CREATE TABLE merges (
  project_id INTEGER NOT NULL,
  seq        INTEGER NOT NULL,
  user_no    INTEGER NOT NULL,
  canonical  INTEGER NOT NULL,
  at_ms      INTEGER NOT NULL,
  PRIMARY KEY (project_id, seq)
) WITHOUT ROWID;
CREATE INDEX merges_by_user ON merges (project_id, user_no, at_ms);
CREATE INDEX merges_by_canonical ON merges (project_id, canonical);
-- Of the merges before, the last of each number is known.
INSERT INTO merges (project_id, seq, user_no, canonical, at_ms)
  SELECT u.project_id, u.seq, u.user_no, u.canonical, i.at_ms FROM users u
  JOIN ids i ON i.project_id=u.project_id AND i.distinct_id=u.distinct_id WHERE u.canonical<>u.user_no;
-- Jobs that judge stored events again.
CREATE TABLE reclassifications (
  project_id    INTEGER NOT NULL,
  id            INTEGER NOT NULL,
  state         INTEGER NOT NULL,
  from_day      INTEGER NOT NULL,
  to_day        INTEGER NOT NULL,
  next_day      INTEGER NOT NULL,
  rules_version INTEGER NOT NULL,
  total         INTEGER NOT NULL,
  done          INTEGER NOT NULL,
  changed       INTEGER NOT NULL,
  error         TEXT    NOT NULL,
  create_ms     INTEGER NOT NULL,
  end_ms        INTEGER NOT NULL,
  PRIMARY KEY (project_id, id)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE reclassifications;
DROP TABLE merges;
ALTER TABLE ids DROP COLUMN linked_to;
