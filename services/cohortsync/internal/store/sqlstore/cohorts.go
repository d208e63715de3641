package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/platform/sqldb"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

const cohortColumns = `id, project_id, display_name, description, definition, version, revision, last_evaluation, failed_evaluation, created, updated,
	coalesce((SELECT min(interval_us) FROM syncs WHERE cohort_id = cohorts.id AND mode = 2 AND state = 1), 0), coalesce((SELECT updated FROM cohort_members WHERE cohort_id = cohorts.id), 0)`

func scanCohort(r scanner) (store.Cohort, error) {
	var c store.Cohort
	var def []byte
	var eval, failed string
	var created, updated, interval, members int64
	if err := r.Scan(&c.ID, &c.ProjectID, &c.DisplayName, &c.Description, &def, &c.Version, &c.Revision, &eval, &failed, &created, &updated, &interval, &members); err != nil {
		return c, err
	}
	c.Created, c.Updated = at(created), at(updated)
	c.SyncInterval, c.MembersUpdated = time.Duration(interval)*time.Microsecond, at(members)
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
	if failed != "" {
		c.Failed = &store.EvaluationRecord{}
		if err := json.Unmarshal([]byte(failed), c.Failed); err != nil {
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
		if err != nil {
			return nameTaken(err)
		}
		return setReferences(ctx, tx, &out)
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
		if err == nil {
			return setReferences(ctx, tx, &out)
		}
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
		names, err := tx.QueryContext(ctx, `SELECT c.display_name FROM cohort_references r JOIN cohorts c ON c.id = r.cohort_id WHERE r.refers_to = $1 AND r.cohort_id <> $1 ORDER BY c.id LIMIT 5`, id)
		others, err := collect(names, err, func(r scanner) (s string, err error) { return s, r.Scan(&s) })
		if err != nil {
			return err
		}
		if len(others) > 0 {
			return fault.New(fault.Precondition, "COHORT_IN_USE", "other cohorts refer to the cohort (%s); change or delete them first", strings.Join(others, ", "))
		}
		n, err := affected(tx.ExecContext(ctx, `DELETE FROM cohorts WHERE project_id = $1 AND id = $2`, project, id))
		if err == nil && n == 0 {
			return notFound("cohort", id)
		}
		return err
	})
}

// setReferences stores what a cohort's definition refers to. One that was deleted
// meanwhile is an Invalid fault.
func setReferences(ctx context.Context, tx *sql.Tx, c *store.Cohort) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM cohort_references WHERE cohort_id = $1`, c.ID); err != nil {
		return err
	}
	for _, name := range cohort.References(c.Definition) {
		ids, err := resource.IDs("cohort.definition", name, "projects", "cohorts")
		if err != nil {
			return err
		}
		n, err := affected(tx.ExecContext(ctx, `INSERT INTO cohort_references (cohort_id, refers_to) SELECT $1, id FROM cohorts WHERE project_id = $2 AND id = $3`, c.ID, c.ProjectID, ids[1]))
		if err != nil {
			return err
		}
		if n == 0 || ids[0] != c.ProjectID {
			return fault.Field("cohort.definition", "refers to %s, which does not exist", name)
		}
	}
	return nil
}

// SetEvaluation implements store.Cohorts.
func (s *Store) SetEvaluation(ctx context.Context, project, id int64, e store.Evaluation) error {
	j, err := toJSON(e)
	if err != nil {
		return err
	}
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.ExecContext(ctx, `UPDATE cohorts SET last_evaluation = $1, failed_evaluation = '' WHERE project_id = $2 AND id = $3`, j, project, id))
		if err != nil || n == 0 {
			return err
		}
		return addEvaluation(ctx, tx, id, &store.EvaluationRecord{AsOf: e.AsOf, Users: e.Users, Identified: e.Identified, Took: e.Took})
	})
}

// SetEvaluationFailed implements store.Cohorts.
func (s *Store) SetEvaluationFailed(ctx context.Context, project, id int64, f store.EvaluationRecord) error {
	j, err := toJSON(f)
	if err != nil {
		return err
	}
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.ExecContext(ctx, `UPDATE cohorts SET failed_evaluation = $1 WHERE project_id = $2 AND id = $3`, j, project, id))
		if err != nil || n == 0 {
			return err
		}
		return addEvaluation(ctx, tx, id, &f)
	})
}

// addEvaluation adds to a cohort's history, and forgets what is too old.
func addEvaluation(ctx context.Context, tx *sql.Tx, id int64, r *store.EvaluationRecord) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO cohort_evaluations (cohort_id, as_of, users, identified, took_us, version, reason, reason_text)
		SELECT $1, $2, $3, $4, $5, version, $6, $7 FROM cohorts WHERE id = $1 ON CONFLICT (cohort_id, as_of) DO NOTHING`,
		id, micros(r.AsOf), r.Users, r.Identified, r.Took.Microseconds(), r.Reason, r.ReasonText)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM cohort_evaluations WHERE cohort_id = $1 AND as_of <= (
		SELECT as_of FROM cohort_evaluations WHERE cohort_id = $1 ORDER BY as_of DESC LIMIT 1 OFFSET $2)`, id, store.KeptEvaluations)
	return err
}

// Evaluations implements store.Cohorts.
func (s *Store) Evaluations(ctx context.Context, project, id int64, before time.Time, limit int) ([]store.EvaluationRecord, error) {
	end := int64(math.MaxInt64)
	if !before.IsZero() {
		end = micros(before)
	}
	rows, err := s.db.Read().QueryContext(ctx, `SELECT e.as_of, e.users, e.identified, e.took_us, e.version, e.reason, e.reason_text FROM cohort_evaluations e
		JOIN cohorts c ON c.id = e.cohort_id WHERE c.project_id = $1 AND c.id = $2 AND e.as_of < $3 ORDER BY e.as_of DESC LIMIT $4`, project, id, end, limit)
	return collect(rows, err, func(r scanner) (e store.EvaluationRecord, err error) {
		var asOf, took int64
		err = r.Scan(&asOf, &e.Users, &e.Identified, &took, &e.Version, &e.Reason, &e.ReasonText)
		e.AsOf, e.Took = at(asOf), time.Duration(took)*time.Microsecond
		return e, err
	})
}
