-- +goose Up
-- Times are microseconds since 1970 UTC, 0 for none. Sets of users are roaring
-- bitmaps. user numbers and block numbers are 64-bit.
CREATE TABLE cohorts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id BIGINT NOT NULL,
  display_name TEXT NOT NULL,
  description TEXT NOT NULL,
  definition BLOB NOT NULL,
  version BIGINT NOT NULL,
  revision BIGINT NOT NULL,
  last_evaluation TEXT NOT NULL DEFAULT '',
  request_id TEXT,
  created BIGINT NOT NULL,
  updated BIGINT NOT NULL,
  UNIQUE (project_id, display_name),
  UNIQUE (project_id, request_id)
);

CREATE TABLE syncs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id BIGINT NOT NULL,
  cohort_id BIGINT NOT NULL REFERENCES cohorts (id),
  connector_id BIGINT NOT NULL,
  mode BIGINT NOT NULL,
  interval_us BIGINT NOT NULL,
  state BIGINT NOT NULL,
  pause_reason TEXT NOT NULL DEFAULT '',
  pause_text TEXT NOT NULL DEFAULT '',
  pause_actor TEXT NOT NULL DEFAULT '',
  pause_since BIGINT NOT NULL DEFAULT 0,
  next_run BIGINT NOT NULL DEFAULT 0,
  origin TEXT NOT NULL,
  request_id TEXT,
  created BIGINT NOT NULL,
  members BIGINT NOT NULL DEFAULT 0,
  needs_full BIGINT NOT NULL,
  profile_seq BIGINT NOT NULL DEFAULT 0,
  fingerprint BIGINT NOT NULL DEFAULT 0,
  publish_pending BIGINT NOT NULL DEFAULT 0,
  dirty BLOB,
  confirmed BIGINT NOT NULL DEFAULT 0,
  UNIQUE (project_id, request_id)
);
CREATE INDEX syncs_by_project ON syncs (project_id, id);
CREATE INDEX syncs_by_cohort ON syncs (cohort_id);
CREATE INDEX syncs_due ON syncs (next_run) WHERE next_run > 0;

CREATE TABLE runs (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  sync_id BIGINT NOT NULL REFERENCES syncs (id) ON DELETE CASCADE,
  project_id BIGINT NOT NULL,
  connector_id BIGINT NOT NULL,
  state BIGINT NOT NULL,
  trigger_kind BIGINT NOT NULL,
  is_full BIGINT NOT NULL DEFAULT 0,
  evaluation TEXT NOT NULL DEFAULT '',
  totals TEXT NOT NULL DEFAULT '{}',
  plan TEXT NOT NULL DEFAULT '',
  reason TEXT NOT NULL DEFAULT '',
  reason_text TEXT NOT NULL DEFAULT '',
  parent TEXT NOT NULL,
  span TEXT NOT NULL DEFAULT '',
  trace_id TEXT NOT NULL DEFAULT '',
  created BIGINT NOT NULL,
  started BIGINT NOT NULL DEFAULT 0,
  ended BIGINT NOT NULL DEFAULT 0,
  attempts BIGINT NOT NULL DEFAULT 0,
  cancel_requested BIGINT NOT NULL DEFAULT 0,
  approved BIGINT NOT NULL DEFAULT 0,
  lease_token BIGINT NOT NULL DEFAULT 0,
  lease_holder TEXT NOT NULL DEFAULT '',
  lease_expires BIGINT NOT NULL DEFAULT 0,
  wake BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX runs_by_sync ON runs (sync_id, id);
CREATE INDEX runs_active ON runs (connector_id, id) WHERE state <= 5;

-- users, flags, records and exceptions are zstd.
CREATE TABLE batches (
  run_id BIGINT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  idx BIGINT NOT NULL,
  page BIGINT NOT NULL,
  op BIGINT NOT NULL,
  user_count BIGINT NOT NULL,
  first_user BIGINT NOT NULL,
  last_user BIGINT NOT NULL,
  outcome BIGINT NOT NULL DEFAULT 0,
  reason TEXT NOT NULL DEFAULT '',
  attempts BIGINT NOT NULL DEFAULT 0,
  throttled BIGINT NOT NULL DEFAULT 0,
  exceptions BLOB,
  users BLOB,
  flags BLOB,
  records BLOB,
  PRIMARY KEY (run_id, idx)
);

CREATE TABLE skips (
  run_id BIGINT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  reason TEXT NOT NULL,
  users BLOB NOT NULL,
  PRIMARY KEY (run_id, reason)
);

CREATE TABLE ledger_members (
  sync_id BIGINT NOT NULL REFERENCES syncs (id) ON DELETE CASCADE,
  block BIGINT NOT NULL,
  members BLOB NOT NULL,
  PRIMARY KEY (sync_id, block)
) WITHOUT ROWID;

-- kind 0 is the base, 1 the delta: apart, so that a small change writes little.
CREATE TABLE ledger_details (
  sync_id BIGINT NOT NULL REFERENCES syncs (id) ON DELETE CASCADE,
  block BIGINT NOT NULL,
  kind BIGINT NOT NULL,
  data BLOB NOT NULL,
  PRIMARY KEY (sync_id, block, kind)
);

CREATE TABLE ledger_orphans (
  sync_id BIGINT NOT NULL REFERENCES syncs (id) ON DELETE CASCADE,
  identifier TEXT NOT NULL,
  user_no BIGINT NOT NULL,
  PRIMARY KEY (sync_id, identifier)
);

-- +goose Down
DROP TABLE ledger_orphans;
DROP TABLE ledger_details;
DROP TABLE ledger_members;
DROP TABLE skips;
DROP TABLE batches;
DROP TABLE runs;
DROP TABLE syncs;
DROP TABLE cohorts;
