-- +goose Up
-- The newest evaluation if it failed, as JSON.
ALTER TABLE cohorts ADD COLUMN failed_evaluation TEXT NOT NULL DEFAULT '';

-- Which cohorts a definition refers to: a cohort that is referred to stays.
CREATE TABLE cohort_references (
  cohort_id BIGINT NOT NULL REFERENCES cohorts (id) ON DELETE CASCADE,
  refers_to BIGINT NOT NULL REFERENCES cohorts (id),
  PRIMARY KEY (cohort_id, refers_to)
) WITHOUT ROWID;
CREATE INDEX cohort_references_to ON cohort_references (refers_to);

-- Users that were uploaded to a cohort or that a webhook keeps in it.
CREATE TABLE cohort_members (
  cohort_id BIGINT PRIMARY KEY REFERENCES cohorts (id) ON DELETE CASCADE,
  users BLOB NOT NULL,
  updated BIGINT NOT NULL
);

-- A cohort's size over time. reason and reason_text are of evaluations that failed.
CREATE TABLE cohort_evaluations (
  cohort_id BIGINT NOT NULL REFERENCES cohorts (id) ON DELETE CASCADE,
  as_of BIGINT NOT NULL,
  users BIGINT NOT NULL,
  identified BIGINT NOT NULL,
  took_us BIGINT NOT NULL,
  version BIGINT NOT NULL,
  reason TEXT NOT NULL,
  reason_text TEXT NOT NULL,
  PRIMARY KEY (cohort_id, as_of)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE cohort_evaluations;
DROP TABLE cohort_members;
DROP TABLE cohort_references;
ALTER TABLE cohorts DROP COLUMN failed_evaluation;
