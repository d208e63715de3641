package sqlledger

import (
	"context"
	"database/sql"
	"time"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
)

const jobColumns = `project_id, id, state, from_day, to_day, next_day, rules_version, total, done, changed, error, create_ms, end_ms`

// CreateReclassification implements ledger.Reclassifications.
func (s *Store) CreateReclassification(ctx context.Context, j *ledger.Reclassification) (ok bool, err error) {
	err = s.db.Tx(ctx, func(tx *sql.Tx) error {
		var running int
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FILTER (WHERE state=$2), coalesce(max(id),0)+1 FROM reclassifications WHERE project_id=$1`, j.ProjectID, ledger.JobRunning).Scan(&running, &j.ID); err != nil || running > 0 {
			return err
		}
		ok = true
		_, err := tx.ExecContext(ctx, `INSERT INTO reclassifications (`+jobColumns+`) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13)`, jobValues(j)...)
		return err
	})
	return ok, err
}

func jobValues(j *ledger.Reclassification) []any {
	var end int64
	if !j.Ended.IsZero() {
		end = j.Ended.UnixMilli()
	}
	return []any{j.ProjectID, j.ID, j.State, j.FromDay, j.ToDay, j.NextDay, j.RulesVersion, j.Total, j.Done, j.Changed, j.Error, j.Created.UnixMilli(), end}
}

// PutReclassification implements ledger.Reclassifications.
func (s *Store) PutReclassification(ctx context.Context, j *ledger.Reclassification) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO reclassifications (`+jobColumns+`) VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13)
			ON CONFLICT (project_id, id) DO UPDATE SET state=excluded.state, next_day=excluded.next_day, done=excluded.done, changed=excluded.changed, error=excluded.error, end_ms=excluded.end_ms`, jobValues(j)...)
		return err
	})
}

// ListReclassifications implements ledger.Reclassifications.
func (s *Store) ListReclassifications(ctx context.Context, projectID int64) (out []ledger.Reclassification, err error) {
	err = each(ctx, s.db.Read(), `SELECT `+jobColumns+` FROM reclassifications WHERE project_id=$1 OR ($1=0 AND state=$2) ORDER BY project_id, id DESC LIMIT 100`, []any{projectID, ledger.JobRunning}, func(r *sql.Rows) error {
		j, err := scanJob(r)
		out = append(out, j)
		return err
	})
	return out, err
}

func scanJob(r *sql.Rows) (j ledger.Reclassification, err error) {
	var created, ended int64
	err = r.Scan(&j.ProjectID, &j.ID, &j.State, &j.FromDay, &j.ToDay, &j.NextDay, &j.RulesVersion, &j.Total, &j.Done, &j.Changed, &j.Error, &created, &ended)
	j.Created = time.UnixMilli(created).UTC()
	if ended != 0 {
		j.Ended = time.UnixMilli(ended).UTC()
	}
	return j, err
}

// GetReclassification implements ledger.Reclassifications.
func (s *Store) GetReclassification(ctx context.Context, projectID, id int64) (out *ledger.Reclassification, err error) {
	err = each(ctx, s.db.Read(), `SELECT `+jobColumns+` FROM reclassifications WHERE project_id=$1 AND id=$2`, []any{projectID, id}, func(r *sql.Rows) error {
		j, err := scanJob(r)
		out = &j
		return err
	})
	return out, err
}
