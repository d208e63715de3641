package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"

	"google.golang.org/protobuf/proto"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/sqldb"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

const cohortColumns = `id, project_id, display_name, description, definition, version, revision, last_evaluation, created, updated`

func scanCohort(r scanner) (store.Cohort, error) {
	var c store.Cohort
	var def []byte
	var eval string
	var created, updated int64
	if err := r.Scan(&c.ID, &c.ProjectID, &c.DisplayName, &c.Description, &def, &c.Version, &c.Revision, &eval, &created, &updated); err != nil {
		return c, err
	}
	c.Created, c.Updated = at(created), at(updated)
	c.Definition = &typev1.Expression{}
	if err := proto.Unmarshal(def, c.Definition); err != nil {
		return c, wrap("stored definition", err)
	}
	if eval != "" {
		c.LastEvaluation = &store.Evaluation{}
		if err := json.Unmarshal([]byte(eval), c.LastEvaluation); err != nil {
			return c, wrap("stored evaluation", err)
		}
	}
	return c, nil
}

// CreateCohort implements store.Cohorts.
func (s *Store) CreateCohort(ctx context.Context, c store.Cohort, requestID string) (store.Cohort, error) {
	def, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.Definition)
	if err != nil {
		return c, err
	}
	var out store.Cohort
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		if requestID != "" {
			out, err = scanCohort(tx.QueryRowContext(ctx, `SELECT `+cohortColumns+` FROM cohorts WHERE project_id = $1 AND request_id = $2`, c.ProjectID, requestID))
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		out, err = scanCohort(tx.QueryRowContext(ctx, `INSERT INTO cohorts (project_id, display_name, description, definition, version, revision, request_id, created, updated)
			VALUES ($1, $2, $3, $4, 1, 1, $5, $6, $6) RETURNING `+cohortColumns,
			c.ProjectID, c.DisplayName, c.Description, def, nullable(requestID), micros(c.Created)))
		return nameTaken(err)
	})
	return out, err
}

func nameTaken(err error) error {
	if sqldb.IsUnique(err) {
		f := fault.New(fault.Exists, "COHORT_NAME_TAKEN", "a cohort with this display_name exists in the project")
		f.Violations = []fault.Violation{{Field: "cohort.display_name", Description: "is taken by another cohort of the project"}}
		return f
	}
	return err
}

// Cohort implements store.Cohorts.
func (s *Store) Cohort(ctx context.Context, project, id int64) (store.Cohort, error) {
	c, err := scanCohort(s.db.Read().QueryRowContext(ctx, `SELECT `+cohortColumns+` FROM cohorts WHERE project_id = $1 AND id = $2`, project, id))
	return c, orNotFound(err, "cohort", id)
}

// ListCohorts implements store.Cohorts.
func (s *Store) ListCohorts(ctx context.Context, project, after int64, limit int) ([]store.Cohort, error) {
	rows, err := s.db.Read().QueryContext(ctx, `SELECT `+cohortColumns+` FROM cohorts WHERE project_id = $1 AND id > $2 ORDER BY id LIMIT $3`, project, after, limit)
	return collect(rows, err, scanCohort)
}

// UpdateCohort implements store.Cohorts.
func (s *Store) UpdateCohort(ctx context.Context, c store.Cohort) (store.Cohort, error) {
	def, err := proto.MarshalOptions{Deterministic: true}.Marshal(c.Definition)
	if err != nil {
		return c, err
	}
	var out store.Cohort
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		out, err = scanCohort(tx.QueryRowContext(ctx, `UPDATE cohorts SET display_name = $1, description = $2, definition = $3, version = $4, revision = revision + 1, updated = $5
			WHERE project_id = $6 AND id = $7 AND revision = $8 RETURNING `+cohortColumns,
			c.DisplayName, c.Description, def, c.Version, micros(c.Updated), c.ProjectID, c.ID, c.Revision))
		if !errors.Is(err, sql.ErrNoRows) {
			return nameTaken(err)
		}
		var one int
		if err := tx.QueryRowContext(ctx, `SELECT 1 FROM cohorts WHERE project_id = $1 AND id = $2`, c.ProjectID, c.ID).Scan(&one); err != nil {
			return orNotFound(err, "cohort", c.ID)
		}
		return fault.New(fault.Conflict, "ETAG_MISMATCH", "the cohort changed since it was read")
	})
	return out, err
}

// DeleteCohort implements store.Cohorts.
func (s *Store) DeleteCohort(ctx context.Context, project, id int64) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		var uses int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM syncs WHERE project_id = $1 AND cohort_id = $2`, project, id).Scan(&uses); err != nil {
			return err
		}
		if uses > 0 {
			return fault.New(fault.Precondition, "COHORT_IN_USE", "%d syncs use the cohort; delete them first", uses)
		}
		n, err := affected(tx.ExecContext(ctx, `DELETE FROM cohorts WHERE project_id = $1 AND id = $2`, project, id))
		if err == nil && n == 0 {
			return notFound("cohort", id)
		}
		return err
	})
}

// SetEvaluation implements store.Cohorts.
func (s *Store) SetEvaluation(ctx context.Context, project, id int64, e store.Evaluation) error {
	j, err := toJSON(e)
	if err != nil {
		return err
	}
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE cohorts SET last_evaluation = $1 WHERE project_id = $2 AND id = $3`, j, project, id)
		return err
	})
}
