-- +goose Up
-- The value a user waits for; empty when nobody can have it.
ALTER TABLE identifier_conflicts ADD COLUMN value TEXT NOT NULL DEFAULT '';
CREATE INDEX identifier_conflicts_value ON identifier_conflicts (project_id, value) WHERE value <> '';

-- +goose Down
DROP INDEX identifier_conflicts_value;
ALTER TABLE identifier_conflicts DROP COLUMN value;
