-- +goose Up
-- by_name: users leave the segment only by a call with their identifier.
ALTER TABLE segments ADD COLUMN by_name BIGINT NOT NULL DEFAULT 0;

-- Who was left in such a segment by a sync that does not write to it any more,
-- until another sync takes it over. It goes with the cohort.
CREATE TABLE segment_left (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  key TEXT NOT NULL,
  cohort_id BIGINT NOT NULL REFERENCES cohorts (id) ON DELETE CASCADE
);
CREATE INDEX segment_left_by_key ON segment_left (key);
CREATE INDEX segment_left_by_cohort ON segment_left (cohort_id);

-- kind -1 is a ledger block's members, 0 and 1 its base and delta, 2 orphans, and
-- 3 the users of a batch that may have been sent.
CREATE TABLE segment_left_parts (
  left_id BIGINT NOT NULL REFERENCES segment_left (id) ON DELETE CASCADE,
  kind BIGINT NOT NULL,
  block BIGINT NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (left_id, kind, block)
);

-- +goose Down
DROP TABLE segment_left_parts;
DROP TABLE segment_left;
ALTER TABLE segments DROP COLUMN by_name;
