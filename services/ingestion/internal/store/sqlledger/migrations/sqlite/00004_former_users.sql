-- +goose Up
-- Users whose first id is an alias of another user now, by that id.
CREATE TABLE former_users (
  project_id  INTEGER NOT NULL,
  distinct_id TEXT    NOT NULL,
  user_no     INTEGER NOT NULL,
  PRIMARY KEY (project_id, distinct_id)
) WITHOUT ROWID;
-- Only $create_alias in LEGACY projects (3) takes an id from its user.
INSERT INTO former_users (project_id, distinct_id, user_no)
  SELECT u.project_id, u.distinct_id, u.user_no FROM projects p JOIN users u ON u.project_id=p.project_id
  JOIN ids i ON i.project_id=u.project_id AND i.distinct_id=u.distinct_id
  WHERE p.identity_system=3 AND u.canonical=u.user_no AND i.user_no<>u.user_no;

-- +goose Down
DROP TABLE former_users;
