-- +goose Up
-- Which cohort a sender's cohort is. cohort_id is NULL once it was deleted here: who
-- is in it is then not known until the sender sends all members again.
CREATE TABLE external_sources (
  project_id BIGINT NOT NULL,
  source TEXT NOT NULL,
  cohort_id BIGINT REFERENCES cohorts (id) ON DELETE SET NULL,
  -- 1 once a session had both additions and removals: then each has, and one that
  -- has not was abandoned.
  pairs BIGINT NOT NULL DEFAULT 0,
  PRIMARY KEY (project_id, source)
) WITHOUT ROWID;
CREATE INDEX external_sources_by_cohort ON external_sources (cohort_id);

-- state: 0 pages are missing, 1 applied, 2 overtaken by a later session. base is who
-- was in the cohort before, while only one half of the session is applied: the sender
-- of a session that is abandoned begins the next one from there.
CREATE TABLE external_sessions (
  cohort_id BIGINT NOT NULL REFERENCES cohorts (id) ON DELETE CASCADE,
  session TEXT NOT NULL,
  action BIGINT NOT NULL,
  pages BIGINT NOT NULL,
  state BIGINT NOT NULL,
  started BIGINT NOT NULL,
  updated BIGINT NOT NULL,
  base BLOB,
  PRIMARY KEY (cohort_id, session, action)
) WITHOUT ROWID;

CREATE TABLE external_pages (
  cohort_id BIGINT NOT NULL,
  session TEXT NOT NULL,
  action BIGINT NOT NULL,
  page BIGINT NOT NULL,
  users BLOB NOT NULL,
  PRIMARY KEY (cohort_id, session, action, page),
  FOREIGN KEY (cohort_id, session, action) REFERENCES external_sessions (cohort_id, session, action) ON DELETE CASCADE
) WITHOUT ROWID;

-- +goose Down
DROP TABLE external_pages;
DROP TABLE external_sessions;
DROP TABLE external_sources;
