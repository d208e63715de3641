-- +goose Up
-- Who wrote a destination segment last: only that sync's ledger says what is in
-- it, and a ledger is that of one segment. key is a hash, hex.
CREATE TABLE segments (
  key TEXT PRIMARY KEY,
  sync_id BIGINT NOT NULL UNIQUE REFERENCES syncs (id) ON DELETE CASCADE
) WITHOUT ROWID;

-- +goose Down
DROP TABLE segments;
