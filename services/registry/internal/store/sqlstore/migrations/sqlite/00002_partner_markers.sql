-- +goose Up
-- Marker values of the partners' MTU rules, a JSON object by rule; null for the defaults.
ALTER TABLE projects ADD COLUMN partner_markers TEXT NOT NULL DEFAULT 'null';

-- +goose Down
ALTER TABLE projects DROP COLUMN partner_markers;
