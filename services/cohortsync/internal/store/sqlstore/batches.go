package sqlstore

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// ClearPlan implements store.Runs.
func (s *Store) ClearPlan(ctx context.Context, l store.Lease) error {
	return s.leased(ctx, l, func(tx *sql.Tx) error {
		for _, q := range []string{`DELETE FROM batches WHERE run_id = $1`, `DELETE FROM skips WHERE run_id = $1`} {
			if _, err := tx.ExecContext(ctx, q, l.RunID); err != nil {
				return err
			}
		}
		return nil
	})
}

// packRecords joins records with their lengths, compressed.
func packRecords(records [][]byte) []byte {
	n := 0
	for _, r := range records {
		n += len(r) + 3
	}
	b := make([]byte, 0, n)
	for _, r := range records {
		b = binary.AppendUvarint(b, uint64(len(r)))
		b = append(b, r...)
	}
	return ledger.Compress(b)
}

var errRecords = errors.New("stored records are damaged")

func unpackRecords(z []byte) (out [][]byte, _ error) {
	if len(z) == 0 {
		return nil, nil
	}
	b, err := ledger.Decompress(z)
	if err != nil {
		return nil, err
	}
	for len(b) > 0 {
		n, k := binary.Uvarint(b)
		if k <= 0 || n > uint64(len(b)-k) {
			return nil, errRecords
		}
		out = append(out, b[k:k+int(n):k+int(n)])
		b = b[k+int(n):]
	}
	return out, nil
}

// AddBatches implements store.Runs.
func (s *Store) AddBatches(ctx context.Context, l store.Lease, bs []store.Batch) error {
	type packed struct{ users, flags, records []byte }
	ps := make([]packed, len(bs))
	for i, b := range bs { // outside the transaction: compressing takes longer than writing
		ps[i] = packed{ledger.MarshalEntries(b.Entries), ledger.Compress(b.Flags), nil}
		if len(b.Records) > 0 {
			ps[i].records = packRecords(b.Records)
		}
	}
	return s.leased(ctx, l, func(tx *sql.Tx) error {
		for i, b := range bs {
			var first, last uint64
			if n := len(b.Entries); n > 0 {
				first, last = b.Entries[0].User, b.Entries[n-1].User
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO batches (run_id, idx, page, op, user_count, first_user, last_user, users, flags, records) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
				l.RunID, b.Index, b.Page, b.Op, len(b.Entries), int64(first), int64(last), ps[i].users, ps[i].flags, ps[i].records); err != nil {
				return err
			}
		}
		return nil
	})
}

// SetSkips implements store.Runs.
func (s *Store) SetSkips(ctx context.Context, l store.Lease, by map[string]*roaring64.Bitmap) error {
	return s.leased(ctx, l, func(tx *sql.Tx) error {
		for reason, set := range by {
			if set.IsEmpty() {
				continue
			}
			b, err := ledger.MarshalSet(set)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO skips (run_id, reason, users) VALUES ($1, $2, $3) ON CONFLICT (run_id, reason) DO UPDATE SET users = excluded.users`, l.RunID, reason, b); err != nil {
				return err
			}
		}
		return nil
	})
}

// BatchHeads implements store.Runs.
func (s *Store) BatchHeads(ctx context.Context, run int64) ([]store.BatchHead, error) {
	rows, err := s.db.Read().QueryContext(ctx, `SELECT idx, page, op, user_count, first_user, last_user, outcome, exceptions IS NULL FROM batches WHERE run_id = $1 ORDER BY idx`, run)
	return collect(rows, err, func(r scanner) (h store.BatchHead, err error) {
		var first, last, outcome int64
		err = r.Scan(&h.Index, &h.Page, &h.Op, &h.Users, &first, &last, &outcome, &h.Clean)
		h.First, h.Last, h.Done = uint64(first), uint64(last), outcome != 0
		h.Clean = h.Clean && store.Outcome(outcome) == store.Sent
		return h, err
	})
}

// Batch implements store.Runs.
func (s *Store) Batch(ctx context.Context, run int64, index int) (store.Batch, error) {
	return s.batch(ctx, run, index, "records")
}

// BatchUsers implements store.Runs.
func (s *Store) BatchUsers(ctx context.Context, run int64, index int) (store.Batch, error) {
	return s.batch(ctx, run, index, "NULL")
}

func (s *Store) batch(ctx context.Context, run int64, index int, recordsColumn string) (store.Batch, error) {
	b := store.Batch{Index: index}
	var users, flags, records, except []byte
	var res store.Result
	err := s.db.Read().QueryRowContext(ctx, `SELECT page, op, outcome, reason, attempts, throttled, exceptions, users, flags, `+recordsColumn+` FROM batches WHERE run_id = $1 AND idx = $2`, run, index).
		Scan(&b.Page, &b.Op, &res.Outcome, &res.Reason, &res.Attempts, &res.Throttled, &except, &users, &flags, &records)
	if err != nil {
		return b, orNotFound(err, "batch", int64(index))
	}
	if b.Entries, err = ledger.UnmarshalEntries(users); err != nil {
		return b, err
	}
	if b.Flags, err = ledger.Decompress(flags); err != nil {
		return b, wrap("stored flags", err)
	}
	if b.Records, err = unpackRecords(records); err != nil {
		return b, err
	}
	if res.Outcome != 0 {
		res.Index = index
		if len(except) > 0 {
			j, err := ledger.Decompress(except)
			if err != nil {
				return b, wrap("stored exceptions", err)
			}
			if err := json.Unmarshal(j, &res.Except); err != nil {
				return b, wrap("stored exceptions", err)
			}
		}
		b.Result = &res
	}
	return b, nil
}

// Confirm implements store.Runs.
func (s *Store) Confirm(ctx context.Context, l store.Lease, results []store.Result, d store.Totals) (t store.Totals, _ error) {
	excepts := make([][]byte, len(results))
	for i, r := range results {
		if len(r.Except) > 0 {
			j, err := json.Marshal(r.Except)
			if err != nil {
				return t, err
			}
			excepts[i] = ledger.Compress(j)
		}
	}
	err := s.leased(ctx, l, func(tx *sql.Tx) error {
		for i, r := range results {
			if _, err := tx.ExecContext(ctx, `UPDATE batches SET outcome = $1, reason = $2, attempts = $3, throttled = $4, exceptions = $5 WHERE run_id = $6 AND idx = $7`,
				r.Outcome, r.Reason, r.Attempts, r.Throttled, excepts[i], l.RunID, r.Index); err != nil {
				return err
			}
		}
		var j string
		if err := tx.QueryRowContext(ctx, `SELECT totals FROM runs WHERE id = $1`, l.RunID).Scan(&j); err != nil {
			return err
		}
		t = store.Totals{}
		if err := json.Unmarshal([]byte(j), &t); err != nil {
			return err
		}
		t.Add(d)
		j, err := toJSON(t)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE runs SET totals = $1 WHERE id = $2`, j, l.RunID)
		return err
	})
	return t, err
}

// Skips implements store.Runs.
func (s *Store) Skips(ctx context.Context, run int64) (map[string]*roaring64.Bitmap, error) {
	type row struct {
		reason string
		users  []byte
	}
	rows, err := s.db.Read().QueryContext(ctx, `SELECT reason, users FROM skips WHERE run_id = $1`, run)
	list, err := collect(rows, err, func(r scanner) (x row, err error) { return x, r.Scan(&x.reason, &x.users) })
	if err != nil {
		return nil, err
	}
	out := map[string]*roaring64.Bitmap{}
	for _, x := range list {
		if out[x.reason], err = ledger.UnmarshalSet(x.users); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// FinishRun implements store.Runs.
func (s *Store) FinishRun(ctx context.Context, l store.Lease, f store.Finish, now time.Time, keep int) (out store.Run, _ error) {
	dirty, err := ledger.MarshalSet(orEmpty(f.Ledger.Dirty))
	if err != nil {
		return out, err
	}
	err = s.leased(ctx, l, func(tx *sql.Tx) error {
		ended := micros(now)
		if f.State == store.Blocked {
			ended = 0
		}
		out, err = scanRun(tx.QueryRowContext(ctx, `UPDATE runs SET state = $1, reason = $2, reason_text = $3, ended = $4, lease_expires = 0, lease_holder = '' WHERE id = $5 RETURNING `+runColumns,
			f.State, f.Reason, f.ReasonText, ended, l.RunID))
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE batches SET records = NULL WHERE run_id = $1 AND records IS NOT NULL`, l.RunID); err != nil {
			return err
		}
		if f.SyncState != 0 {
			if err := setSyncState(ctx, tx, out.SyncID, f.SyncState, f.Pause); err != nil {
				return err
			}
		}
		if !f.KeepLedger {
			if _, err := tx.ExecContext(ctx, `UPDATE syncs SET members = $1, needs_full = $2, profile_seq = $3, fingerprint = $4, publish_pending = $5, dirty = $6, confirmed = $7 WHERE id = $8`,
				f.Ledger.Members, flag(f.Ledger.NeedsFull), int64(f.Ledger.ProfileSeq), int64(f.Ledger.Fingerprint), flag(f.Ledger.PublishPending), dirty, micros(f.Ledger.Confirmed), out.SyncID); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `DELETE FROM ledger_orphans WHERE sync_id = $1`, out.SyncID); err != nil {
				return err
			}
			for _, o := range f.Orphans {
				if _, err := tx.ExecContext(ctx, `INSERT INTO ledger_orphans (sync_id, identifier, user_no) VALUES ($1, $2, $3) ON CONFLICT (sync_id, identifier) DO NOTHING`, out.SyncID, o.Identifier, int64(o.User)); err != nil {
					return err
				}
			}
		}
		if err := endAtSegment(ctx, tx, f.Segment, out); err != nil {
			return err
		}
		var oldest sql.NullInt64
		err := tx.QueryRowContext(ctx, `SELECT id FROM runs WHERE sync_id = $1 ORDER BY id DESC LIMIT 1 OFFSET $2`, out.SyncID, keep).Scan(&oldest)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, q := range []string{
			`DELETE FROM batches WHERE run_id IN (SELECT id FROM runs WHERE sync_id = $1 AND id <= $2)`,
			`DELETE FROM skips WHERE run_id IN (SELECT id FROM runs WHERE sync_id = $1 AND id <= $2)`,
		} {
			if _, err := tx.ExecContext(ctx, q, out.SyncID, oldest.Int64); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

func orEmpty(s *roaring64.Bitmap) *roaring64.Bitmap {
	if s == nil {
		return roaring64.New()
	}
	return s
}
