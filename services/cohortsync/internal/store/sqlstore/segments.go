package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// LastWriter implements store.Ledgers.
func (s *Store) LastWriter(ctx context.Context, segment string) (int64, error) {
	return lastWriter(s.db.Read().QueryRowContext(ctx, lastWriterQuery, segment))
}

const lastWriterQuery = `SELECT sync_id FROM segments WHERE key = $1`

func lastWriter(r scanner) (sync int64, _ error) {
	err := r.Scan(&sync)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return sync, err
}

// setLastWriter makes a run's sync its segment's last writer, and that of no other.
func setLastWriter(ctx context.Context, tx *sql.Tx, segment string, sync int64, full, byName bool) error {
	last, err := lastWriter(tx.QueryRowContext(ctx, lastWriterQuery, segment))
	switch {
	case err != nil || last == sync:
		return err
	case !full:
		return fault.New(fault.Conflict, "SEGMENT_CHANGED", "another sync wrote to the segment")
	}
	// Another's ledger of this segment, and ours of the one we leave.
	if err := leaveSegments(ctx, tx, `key = $1 OR sync_id = $2`, segment, sync); err != nil {
		return err
	}
	return putWriter(ctx, tx, segment, sync, byName)
}

func putWriter(ctx context.Context, tx *sql.Tx, segment string, sync int64, byName bool) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO segments (key, sync_id, by_name) VALUES ($1, $2, $3)`, segment, sync, flag(byName))
	return err
}

// leaveSegments takes the last writers away from the segments that a condition
// selects. What they know of a segment that is left by name only is kept.
func leaveSegments(ctx context.Context, tx *sql.Tx, where string, args ...any) error {
	type row struct {
		key  string
		sync int64
	}
	rows, err := tx.QueryContext(ctx, `SELECT key, sync_id FROM segments WHERE by_name = 1 AND (`+where+`)`, args...)
	list, err := collect(rows, err, func(r scanner) (x row, err error) { return x, r.Scan(&x.key, &x.sync) })
	if err != nil {
		return err
	}
	for _, x := range list {
		if err := keepLeft(ctx, tx, x.key, x.sync); err != nil {
			return err
		}
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM segments WHERE `+where, args...)
	return err
}

// keepLeft keeps a sync's ledger as what is in a segment that it does not write to
// any more.
func keepLeft(ctx context.Context, tx *sql.Tx, segment string, sync int64) error {
	rows, err := tx.QueryContext(ctx, orphansQuery, sync)
	orphans, err := scanOrphans(rows, err)
	if err != nil {
		return err
	}
	var id int64
	if err := tx.QueryRowContext(ctx, `INSERT INTO segment_left (key, cohort_id) SELECT $1, cohort_id FROM syncs WHERE id = $2 RETURNING id`, segment, sync).Scan(&id); err != nil {
		return err
	}
	for _, q := range []string{
		`INSERT INTO segment_left_parts (left_id, kind, block, data) SELECT $1, -1, block, members FROM ledger_members WHERE sync_id = $2`,
		`INSERT INTO segment_left_parts (left_id, kind, block, data) SELECT $1, kind, block, data FROM ledger_details WHERE sync_id = $2`,
	} {
		if _, err := tx.ExecContext(ctx, q, id, sync); err != nil {
			return err
		}
	}
	if len(orphans) == 0 {
		return nil
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO segment_left_parts (left_id, kind, block, data) VALUES ($1, $2, 0, $3)`, id, kindOrphans, ledger.MarshalEntries(orphans))
	return err
}

// endAtSegment looks, at a run's end, whether another sync wrote to its segment
// meanwhile. Then nobody knows what is in it; where users leave by name, the other
// has to learn who this run put in.
func endAtSegment(ctx context.Context, tx *sql.Tx, segment string, r store.Run) error {
	if segment == "" {
		return nil
	}
	last, err := lastWriter(tx.QueryRowContext(ctx, lastWriterQuery, segment))
	switch {
	case err != nil || last == r.SyncID:
		return err
	case r.Plan != nil && r.Plan.ByName:
		return keepLeft(ctx, tx, segment, r.SyncID)
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM segments WHERE key = $1`, segment)
	return err
}

// leaveDeleted keeps what a sync that is about to be deleted has put, or may have
// put in a run that is under way, into segments that are left by name only.
func leaveDeleted(ctx context.Context, tx *sql.Tx, sync int64) error {
	if err := leaveSegments(ctx, tx, `sync_id = $1`, sync); err != nil {
		return err
	}
	rows, err := tx.QueryContext(ctx, `SELECT `+runColumns+` FROM runs WHERE sync_id = $1 AND state <= 5 AND plan <> ''`, sync)
	runs, err := collect(rows, err, scanRun)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if !r.Plan.ByName {
			continue
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO segment_left (key, cohort_id) SELECT $1, cohort_id FROM syncs WHERE id = $2`, r.Plan.Segment, sync); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO segment_left_parts (left_id, kind, block, data)
			SELECT (SELECT max(id) FROM segment_left), $1, idx, users FROM batches WHERE run_id = $2 AND op = $3 AND users IS NOT NULL`, kindBatch, r.ID, channel.Add); err != nil {
			return err
		}
	}
	return nil
}

// TakeOver implements store.Ledgers.
func (s *Store) TakeOver(ctx context.Context, l store.Lease, segment string) (changed bool, _ error) {
	err := s.leased(ctx, l, func(tx *sql.Tx) error {
		changed = false
		var sync int64
		if err := tx.QueryRowContext(ctx, `SELECT sync_id FROM runs WHERE id = $1`, l.RunID).Scan(&sync); err != nil {
			return err
		}
		last, err := lastWriter(tx.QueryRowContext(ctx, lastWriterQuery, segment))
		if err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `SELECT id FROM segment_left WHERE key = $1 ORDER BY id`, segment)
		left, err := collect(rows, err, func(r scanner) (id int64, err error) { return id, r.Scan(&id) })
		if err != nil || last == sync && len(left) == 0 {
			return err
		}
		changed = true
		if last != sync {
			if left, err = takeLedger(ctx, tx, segment, sync, last, left); err != nil {
				return err
			}
		}
		for _, id := range left {
			if err := orphanLeft(ctx, tx, id, sync); err != nil {
				return err
			}
		}
		for _, q := range []string{`DELETE FROM segment_left WHERE key = $1`, `UPDATE syncs SET needs_full = 1 WHERE id = (SELECT sync_id FROM segments WHERE key = $1)`} {
			if _, err := tx.ExecContext(ctx, q, segment); err != nil {
				return err
			}
		}
		return nil
	})
	return changed, err
}

// takeLedger gives a sync the ledger of a segment's last writer, or without one the
// first of those left there, and returns the others that were left.
func takeLedger(ctx context.Context, tx *sql.Tx, segment string, sync, last int64, left []int64) ([]int64, error) {
	if err := leaveSegments(ctx, tx, `sync_id = $1`, sync); err != nil {
		return nil, err
	}
	for _, q := range []string{`DELETE FROM ledger_members WHERE sync_id = $1`, `DELETE FROM ledger_details WHERE sync_id = $1`, `DELETE FROM ledger_orphans WHERE sync_id = $1`} {
		if _, err := tx.ExecContext(ctx, q, sync); err != nil {
			return nil, err
		}
	}
	var copies []string
	from := last
	switch {
	case last != 0:
		copies = []string{
			`INSERT INTO ledger_members (sync_id, block, members) SELECT $1, block, members FROM ledger_members WHERE sync_id = $2`,
			`INSERT INTO ledger_details (sync_id, block, kind, data) SELECT $1, block, kind, data FROM ledger_details WHERE sync_id = $2`,
			`INSERT INTO ledger_orphans (sync_id, identifier, user_no) SELECT $1, identifier, user_no FROM ledger_orphans WHERE sync_id = $2`,
		}
	case len(left) > 0:
		from = left[0]
		copies = []string{
			`INSERT INTO ledger_members (sync_id, block, members) SELECT $1, block, data FROM segment_left_parts WHERE left_id = $2 AND kind = -1`,
			`INSERT INTO ledger_details (sync_id, block, kind, data) SELECT $1, block, kind, data FROM segment_left_parts WHERE left_id = $2 AND kind IN (0, 1)`,
		}
	}
	for _, q := range copies {
		if _, err := tx.ExecContext(ctx, q, sync, from); err != nil {
			return nil, err
		}
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM segments WHERE key = $1`, segment); err != nil {
		return nil, err
	}
	return left, putWriter(ctx, tx, segment, sync, true)
}

// orphanLeft makes orphans of what was left in a segment and is not in the sync's
// ledger under the same identifier.
func orphanLeft(ctx context.Context, tx *sql.Tx, left, sync int64) error {
	type part struct {
		kind  int
		block uint64
		data  []byte
	}
	rows, err := tx.QueryContext(ctx, `SELECT kind, block, CASE WHEN kind >= 2 THEN data END FROM segment_left_parts WHERE left_id = $1 AND kind NOT IN (0, 1) ORDER BY kind, block`, left)
	parts, err := collect(rows, err, func(r scanner) (p part, err error) {
		var no int64
		err = r.Scan(&p.kind, &no, &p.data)
		p.block = uint64(no)
		return p, err
	})
	if err != nil {
		return err
	}
	views := map[uint64]*ledger.View{}
	for _, p := range parts {
		var entries []ledger.Entry
		if p.kind == kindMembers {
			b, err := readBlock(ctx, tx, p.block, `SELECT kind, data FROM segment_left_parts WHERE left_id = $1 AND block = $2 AND kind <= 1`, left)
			if err != nil {
				return err
			}
			if entries, err = b.Entries(); err != nil {
				return err
			}
			clear(views) // blocks come in order
		} else if entries, err = ledger.UnmarshalEntries(p.data); err != nil {
			return err
		}
		for _, e := range entries {
			no := ledger.BlockOf(e.User)
			if views[no] == nil {
				own, err := readBlock(ctx, tx, no, `SELECT -1, members FROM ledger_members WHERE sync_id = $1 AND block = $2
					UNION ALL SELECT kind, data FROM ledger_details WHERE sync_id = $1 AND block = $2`, sync)
				if err != nil {
					return err
				}
				if views[no], err = own.View(); err != nil {
					return err
				}
			}
			if now, in := views[no].Lookup(e.User); in && now.Identifier == e.Identifier {
				continue
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO ledger_orphans (sync_id, identifier, user_no) VALUES ($1, $2, $3) ON CONFLICT (sync_id, identifier) DO NOTHING`, sync, e.Identifier, int64(e.User)); err != nil {
				return err
			}
		}
	}
	return nil
}
