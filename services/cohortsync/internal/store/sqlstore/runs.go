package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

const runColumns = `id, sync_id, project_id, connector_id, state, trigger_kind, is_full, evaluation, totals, plan, reason, reason_text, parent, span, trace_id,
	created, started, ended, attempts, cancel_requested, approved`

func scanRun(r scanner) (store.Run, error) {
	var x store.Run
	var eval, totals, plan string
	var full, created, started, ended, cancel, approved int64
	if err := r.Scan(&x.ID, &x.SyncID, &x.ProjectID, &x.ConnectorID, &x.State, &x.Trigger, &full, &eval, &totals, &plan, &x.Reason, &x.ReasonText, &x.Parent, &x.Span, &x.TraceID,
		&created, &started, &ended, &x.Attempts, &cancel, &approved); err != nil {
		return x, err
	}
	x.Full, x.CancelRequested, x.Approved = full != 0, cancel != 0, approved != 0
	x.Created, x.Started, x.Ended = at(created), at(started), at(ended)
	if err := json.Unmarshal([]byte(totals), &x.Totals); err != nil {
		return x, wrap("stored totals", err)
	}
	if eval != "" {
		x.Evaluation = &store.Evaluation{}
		if err := json.Unmarshal([]byte(eval), x.Evaluation); err != nil {
			return x, wrap("stored evaluation", err)
		}
	}
	if plan != "" {
		x.Plan = &store.Plan{}
		if err := json.Unmarshal([]byte(plan), x.Plan); err != nil {
			return x, wrap("stored plan", err)
		}
	}
	return x, nil
}

// wakeAfter is how long a new run's job has to arrive before the run is looked after.
const wakeAfter = 2 * time.Second

func insertRun(ctx context.Context, tx *sql.Tx, sy store.Sync, t store.Trigger, full bool, parent string, now time.Time) (store.Run, error) {
	return scanRun(tx.QueryRowContext(ctx, `INSERT INTO runs (sync_id, project_id, connector_id, state, trigger_kind, is_full, parent, created, wake)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING `+runColumns, sy.ID, sy.ProjectID, sy.ConnectorID, store.Queued, t, flag(full), parent, micros(now), micros(now.Add(wakeAfter))))
}

// CreateRun implements store.Runs.
func (s *Store) CreateRun(ctx context.Context, project, sync int64, t store.Trigger, full bool, parent string, now time.Time) (out store.Run, created bool, _ error) {
	err := s.db.Tx(ctx, func(tx *sql.Tx) error {
		sy, err := scanSync(tx.QueryRowContext(ctx, `SELECT `+syncColumns+` FROM syncs WHERE project_id = $1 AND id = $2`, project, sync))
		if err != nil {
			return orNotFound(err, "sync", sync)
		}
		out, err = scanRun(tx.QueryRowContext(ctx, `SELECT `+runColumns+` FROM runs WHERE sync_id = $1 AND (state <= 5 OR state = $2) ORDER BY id LIMIT 1`, sync, store.Blocked))
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		created = true
		out, err = insertRun(ctx, tx, sy, t, full, parent, now)
		return err
	})
	return out, created, err
}

// Run implements store.Runs.
func (s *Store) Run(ctx context.Context, project, sync, id int64) (store.Run, error) {
	r, err := scanRun(s.db.Read().QueryRowContext(ctx, `SELECT `+runColumns+` FROM runs WHERE project_id = $1 AND sync_id = $2 AND id = $3`, project, sync, id))
	return r, orNotFound(err, "run", id)
}

// RunByID implements store.Runs.
func (s *Store) RunByID(ctx context.Context, id int64) (store.Run, error) {
	r, err := scanRun(s.db.Read().QueryRowContext(ctx, `SELECT `+runColumns+` FROM runs WHERE id = $1`, id))
	return r, orNotFound(err, "run", id)
}

// ListRuns implements store.Runs.
func (s *Store) ListRuns(ctx context.Context, project, sync, before int64, limit int) ([]store.Run, error) {
	if _, err := s.Sync(ctx, project, sync); err != nil {
		return nil, err
	}
	rows, err := s.db.Read().QueryContext(ctx, `SELECT `+runColumns+` FROM runs WHERE project_id = $1 AND sync_id = $2 AND ($3 = 0 OR id < $3) ORDER BY id DESC LIMIT $4`, project, sync, before, limit)
	return collect(rows, err, scanRun)
}

// LastRun implements store.Runs.
func (s *Store) LastRun(ctx context.Context, sync int64) (*store.Run, error) {
	r, err := scanRun(s.db.Read().QueryRowContext(ctx, `SELECT `+runColumns+` FROM runs WHERE sync_id = $1 ORDER BY id DESC LIMIT 1`, sync))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &r, err
}

// RequestCancel implements store.Runs.
func (s *Store) RequestCancel(ctx context.Context, project, sync, id int64, now time.Time) (out store.Run, _ error) {
	err := s.db.Tx(ctx, func(tx *sql.Tx) error {
		r, err := scanRun(tx.QueryRowContext(ctx, `UPDATE runs SET cancel_requested = 1 WHERE project_id = $1 AND sync_id = $2 AND id = $3 RETURNING `+runColumns, project, sync, id))
		if err != nil {
			return orNotFound(err, "run", id)
		}
		if r.State.Final() {
			return fault.New(fault.Precondition, "RUN_FINAL", "the run is over")
		}
		out = r
		if r.State != store.Queued && r.State != store.Blocked || r.Plan != nil {
			return nil
		}
		// Nobody is at it yet: it ends here. A holder that is just starting
		// finds its lease gone at its first write.
		out, err = scanRun(tx.QueryRowContext(ctx, `UPDATE runs SET state = $1, reason = 'REQUESTED', reason_text = 'cancelled on request', ended = $2 WHERE id = $3 RETURNING `+runColumns,
			store.Cancelled, micros(now), id))
		return err
	})
	return out, err
}

// Approve implements store.Runs.
func (s *Store) Approve(ctx context.Context, project, sync, id int64) (out store.Run, _ error) {
	err := s.db.Tx(ctx, func(tx *sql.Tx) (err error) {
		out, err = scanRun(tx.QueryRowContext(ctx, `UPDATE runs SET state = $1, approved = 1, reason = '', reason_text = '', wake = 0
			WHERE project_id = $2 AND sync_id = $3 AND id = $4 AND state = $5 RETURNING `+runColumns, store.Queued, project, sync, id, store.Blocked))
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		var one int
		if err := tx.QueryRowContext(ctx, `SELECT 1 FROM runs WHERE project_id = $1 AND sync_id = $2 AND id = $3`, project, sync, id).Scan(&one); err != nil {
			return orNotFound(err, "run", id)
		}
		return fault.New(fault.Precondition, "RUN_NOT_BLOCKED", "only a BLOCKED run can be approved")
	})
	return out, err
}

// TakeRun implements store.Runs.
func (s *Store) TakeRun(ctx context.Context, id int64, holder string, now time.Time, ttl time.Duration) (out store.Run, l store.Lease, res store.TakeResult, _ error) {
	err := s.db.Tx(ctx, func(tx *sql.Tx) error {
		res = store.NotMine
		var state store.RunState
		var connector, expires, project int64
		err := tx.QueryRowContext(ctx, `SELECT state, connector_id, lease_expires, project_id FROM runs WHERE id = $1`, id).Scan(&state, &connector, &expires, &project)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return nil
		case err != nil:
			return err
		case !state.Active() || expires > micros(now):
			return nil
		}
		var first int64
		if err := tx.QueryRowContext(ctx, `SELECT min(id) FROM runs WHERE project_id = $1 AND connector_id = $2 AND state <= 5`, project, connector).Scan(&first); err != nil {
			return err
		}
		if first != id {
			res = store.NotYet
			return nil
		}
		res = store.Taken
		l.RunID = id
		if err := tx.QueryRowContext(ctx, `UPDATE runs SET lease_token = lease_token + 1, lease_holder = $1, lease_expires = $2, attempts = attempts + 1
			WHERE id = $3 RETURNING lease_token`, holder, micros(now.Add(ttl)), id).Scan(&l.Token); err != nil {
			return err
		}
		out, err = scanRun(tx.QueryRowContext(ctx, `SELECT `+runColumns+` FROM runs WHERE id = $1`, id))
		return err
	})
	return out, l, res, err
}

// RenewLease implements store.Runs.
func (s *Store) RenewLease(ctx context.Context, l store.Lease, now time.Time, ttl time.Duration) (cancel bool, _ error) {
	err := s.leased(ctx, l, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `UPDATE runs SET lease_expires = $1 WHERE id = $2 RETURNING cancel_requested = 1`, micros(now.Add(ttl)), l.RunID).Scan(&cancel)
	})
	return cancel, err
}

// ReleaseLease implements store.Runs.
func (s *Store) ReleaseLease(ctx context.Context, l store.Lease) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE runs SET lease_expires = 0, lease_holder = '', wake = 0 WHERE id = $1 AND lease_token = $2`, l.RunID, l.Token)
		return err
	})
}

// ReleaseHolder implements store.Runs.
func (s *Store) ReleaseHolder(ctx context.Context, holder string) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		// The token moves on, so that a holder that is not gone after all can't write.
		_, err := tx.ExecContext(ctx, `UPDATE runs SET lease_expires = 0, lease_holder = '', lease_token = lease_token + 1, wake = 0 WHERE state <= 5 AND lease_holder = $1`, holder)
		return err
	})
}

// Unattended implements store.Runs.
func (s *Store) Unattended(ctx context.Context, now, next time.Time) (out []int64, _ error) {
	// Looked at outside a writing transaction first: nearly always there is nothing.
	const where = ` state <= 5 AND lease_expires <= $1 AND wake <= $1 AND NOT EXISTS (
		SELECT 1 FROM runs e WHERE e.connector_id = runs.connector_id AND e.project_id = runs.project_id AND e.state <= 5 AND e.id < runs.id)`
	var n int
	if err := s.db.Read().QueryRowContext(ctx, `SELECT count(*) FROM runs WHERE`+where, micros(now)).Scan(&n); err != nil || n == 0 {
		return nil, err
	}
	err := s.db.Tx(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `UPDATE runs SET wake = $2 WHERE`+where+` RETURNING id`, micros(now), micros(next))
		out, err = collect(rows, err, func(r scanner) (id int64, err error) { return id, r.Scan(&id) })
		return err
	})
	return out, err
}

func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// SaveRun implements store.Runs.
func (s *Store) SaveRun(ctx context.Context, l store.Lease, r store.Run) error {
	totals, err := toJSON(r.Totals)
	if err != nil {
		return err
	}
	eval, plan := "", ""
	if r.Evaluation != nil {
		if eval, err = toJSON(r.Evaluation); err != nil {
			return err
		}
	}
	if r.Plan != nil {
		if plan, err = toJSON(r.Plan); err != nil {
			return err
		}
	}
	return s.leased(ctx, l, func(tx *sql.Tx) error {
		if r.State == store.Delivering && r.Plan != nil && r.Plan.Segment != "" {
			if err := setLastWriter(ctx, tx, r.Plan.Segment, r.SyncID, r.Full, r.Plan.ByName); err != nil {
				return err
			}
		}
		_, err := tx.ExecContext(ctx, `UPDATE runs SET state = $1, is_full = $2, evaluation = $3, totals = $4, plan = $5, reason = $6, reason_text = $7, span = $8, trace_id = $9, started = $10 WHERE id = $11`,
			r.State, flag(r.Full), eval, totals, plan, r.Reason, r.ReasonText, r.Span, r.TraceID, micros(r.Started), l.RunID)
		return err
	})
}
