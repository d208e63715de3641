-- +goose Up
CREATE TABLE projects (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  display_name TEXT NOT NULL,
  token TEXT NOT NULL UNIQUE,
  secret_hash TEXT NOT NULL UNIQUE,
  identity INTEGER NOT NULL,
  match_by_name_only BOOLEAN NOT NULL,
  clevertap_sources TEXT NOT NULL,
  by_event_time BOOLEAN NOT NULL,
  request_id TEXT UNIQUE,
  create_time BIGINT NOT NULL,
  version BIGINT NOT NULL
);

CREATE TABLE service_accounts (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id BIGINT NOT NULL REFERENCES projects (id),
  display_name TEXT NOT NULL,
  username TEXT NOT NULL UNIQUE,
  secret_hash TEXT NOT NULL,
  role INTEGER NOT NULL,
  expire_time BIGINT NOT NULL,
  create_time BIGINT NOT NULL
);
CREATE INDEX service_accounts_project ON service_accounts (project_id, id);

CREATE TABLE connectors (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  project_id BIGINT NOT NULL REFERENCES projects (id),
  display_name TEXT NOT NULL,
  account_id TEXT NOT NULL,
  passcode BLOB NOT NULL,
  region TEXT NOT NULL,
  channel INTEGER NOT NULL,
  host_url TEXT NOT NULL,
  partner_url TEXT NOT NULL,
  columns TEXT NOT NULL,
  admin_email TEXT NOT NULL,
  identity_property TEXT NOT NULL,
  state INTEGER NOT NULL,
  state_reason TEXT NOT NULL,
  check_time BIGINT NOT NULL,
  request_id TEXT,
  create_time BIGINT NOT NULL,
  version BIGINT NOT NULL,
  UNIQUE (project_id, request_id)
);
CREATE INDEX connectors_project ON connectors (project_id, id);
