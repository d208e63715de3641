package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

const syncColumns = `id, project_id, cohort_id, connector_id, mode, interval_us, state, pause_reason, pause_text, pause_actor, pause_since,
	next_run, origin, created, members, needs_full, profile_seq, fingerprint, publish_pending, dirty, confirmed`

func scanSync(r scanner) (store.Sync, error) {
	var s store.Sync
	var p store.Pause
	var interval, since, next, created, full, seq, print, publish, confirmed int64
	var dirty []byte
	if err := r.Scan(&s.ID, &s.ProjectID, &s.CohortID, &s.ConnectorID, &s.Mode, &interval, &s.State, &p.Reason, &p.Text, &p.Actor, &since,
		&next, &s.Origin, &created, &s.Ledger.Members, &full, &seq, &print, &publish, &dirty, &confirmed); err != nil {
		return s, err
	}
	s.Interval = time.Duration(interval) * time.Microsecond
	if p.Reason != "" {
		p.Since = at(since)
		s.Pause = &p
	}
	s.NextRun, s.Created = at(next), at(created)
	s.Ledger.NeedsFull, s.Ledger.PublishPending = full != 0, publish != 0
	s.Ledger.ProfileSeq, s.Ledger.Fingerprint = uint64(seq), uint64(print)
	s.Ledger.Confirmed = at(confirmed)
	var err error
	s.Ledger.Dirty, err = ledger.UnmarshalSet(dirty)
	return s, err
}

// CreateSync implements store.Syncs.
func (s *Store) CreateSync(ctx context.Context, n store.Sync, requestID string, maxDynamic int) (store.Sync, error) {
	var out store.Sync
	err := s.db.Tx(ctx, func(tx *sql.Tx) (err error) {
		if requestID != "" {
			out, err = scanSync(tx.QueryRowContext(ctx, `SELECT `+syncColumns+` FROM syncs WHERE project_id = $1 AND request_id = $2`, n.ProjectID, requestID))
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		var one int
		if err := tx.QueryRowContext(ctx, `SELECT 1 FROM cohorts WHERE project_id = $1 AND id = $2`, n.ProjectID, n.CohortID).Scan(&one); err != nil {
			return orNotFound(err, "cohort", n.CohortID)
		}
		if n.Mode == store.Dynamic {
			var have int
			if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM syncs WHERE project_id = $1 AND mode = $2`, n.ProjectID, store.Dynamic).Scan(&have); err != nil {
				return err
			}
			if have >= maxDynamic {
				return fault.New(fault.Precondition, "TOO_MANY_DYNAMIC_SYNCS", "the project has %d dynamic syncs, the most allowed", have)
			}
		}
		out, err = scanSync(tx.QueryRowContext(ctx, `INSERT INTO syncs (project_id, cohort_id, connector_id, mode, interval_us, state, next_run, origin, request_id, created, needs_full)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1) RETURNING `+syncColumns,
			n.ProjectID, n.CohortID, n.ConnectorID, n.Mode, n.Interval.Microseconds(), store.SyncActive, micros(n.NextRun), n.Origin, nullable(requestID), micros(n.Created)))
		return err
	})
	return out, err
}

// Sync implements store.Syncs.
func (s *Store) Sync(ctx context.Context, project, id int64) (store.Sync, error) {
	out, err := scanSync(s.db.Read().QueryRowContext(ctx, `SELECT `+syncColumns+` FROM syncs WHERE project_id = $1 AND id = $2`, project, id))
	return out, orNotFound(err, "sync", id)
}

// ListSyncs implements store.Syncs.
func (s *Store) ListSyncs(ctx context.Context, project, after int64, limit int) ([]store.Sync, error) {
	rows, err := s.db.Read().QueryContext(ctx, `SELECT `+syncColumns+` FROM syncs WHERE project_id = $1 AND id > $2 ORDER BY id LIMIT $3`, project, after, limit)
	return collect(rows, err, scanSync)
}

func setSyncState(ctx context.Context, tx *sql.Tx, id int64, st store.SyncState, p *store.Pause) error {
	if p == nil {
		p = &store.Pause{}
	}
	_, err := tx.ExecContext(ctx, `UPDATE syncs SET state = $1, pause_reason = $2, pause_text = $3, pause_actor = $4, pause_since = $5,
		next_run = CASE WHEN $1 = $7 THEN next_run ELSE 0 END WHERE id = $6`, st, p.Reason, p.Text, p.Actor, micros(p.Since), id, store.SyncActive)
	return err
}

// SetSyncState implements store.Syncs.
func (s *Store) SetSyncState(ctx context.Context, project, id int64, st store.SyncState, p *store.Pause, next time.Time) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.ExecContext(ctx, `UPDATE syncs SET next_run = $1 WHERE project_id = $2 AND id = $3`, micros(next), project, id))
		if err != nil {
			return err
		}
		if n == 0 {
			return notFound("sync", id)
		}
		return setSyncState(ctx, tx, id, st, p)
	})
}

// DeleteSync implements store.Syncs.
func (s *Store) DeleteSync(ctx context.Context, project, id int64, _ time.Time) error {
	return s.db.Tx(ctx, func(tx *sql.Tx) error {
		if _, err := scanSync(tx.QueryRowContext(ctx, `SELECT `+syncColumns+` FROM syncs WHERE project_id = $1 AND id = $2`, project, id)); err != nil {
			return orNotFound(err, "sync", id)
		}
		if err := leaveDeleted(ctx, tx, id); err != nil {
			return err
		}
		// Everything of the sync goes with it; a run under way finds its lease lost.
		n, err := affected(tx.ExecContext(ctx, `DELETE FROM syncs WHERE project_id = $1 AND id = $2`, project, id))
		if err == nil && n == 0 {
			return notFound("sync", id)
		}
		return err
	})
}

// StartDue implements store.Syncs.
func (s *Store) StartDue(ctx context.Context, now time.Time, limit int) (out []store.Run, _ error) {
	err := s.db.Tx(ctx, func(tx *sql.Tx) error {
		out = nil
		rows, err := tx.QueryContext(ctx, `SELECT `+syncColumns+` FROM syncs WHERE next_run > 0 AND next_run <= $1 ORDER BY next_run LIMIT $2`, micros(now), limit)
		due, err := collect(rows, err, scanSync)
		if err != nil {
			return err
		}
		for _, d := range due {
			next := time.Time{}
			if d.State == store.SyncActive && d.Mode == store.Dynamic {
				// From the plan, not from now, so that runs don't drift; what was missed is one run.
				next = d.NextRun.Add(d.Interval)
				if !next.After(now) {
					next = now.Add(d.Interval)
				}
				var busy int
				if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM runs WHERE sync_id = $1 AND (state <= 5 OR state = $2)`, d.ID, store.Blocked).Scan(&busy); err != nil {
					return err
				}
				if busy == 0 {
					r, err := insertRun(ctx, tx, d, store.BySchedule, false, "", now)
					if err != nil {
						return err
					}
					out = append(out, r)
				}
			}
			if _, err := tx.ExecContext(ctx, `UPDATE syncs SET next_run = $1 WHERE id = $2`, micros(next), d.ID); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// NextDue implements store.Syncs.
func (s *Store) NextDue(ctx context.Context) (time.Time, error) {
	var us sql.NullInt64
	err := s.db.Read().QueryRowContext(ctx, `SELECT min(next_run) FROM syncs WHERE next_run > 0`).Scan(&us)
	return at(us.Int64), err
}
